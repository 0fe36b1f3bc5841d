"""The views of a layer beside entropies, mixtures and codes that are written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.cluster import KMeans

from robgib import RobGIBError
from robgib.information import Estimate, views
from robgib.information.features import Projection
from robgib.information.preprocessing import relabel
from robgib.information.views import (
    Bins,
    Codebook,
    Dominance,
    NoisyLayer,
    Rescaled,
    _mean,
    count_information,
    entropy_estimate,
    mark_processing,
    mixture_information,
)

NORMAL = stats.norm.ppf(0.975)


def by_hand(p, samples):
    """Miller and Madow's entropy with a multinomial interval, of shares p of so many samples."""
    p = np.asarray(p)
    ceiling = math.log2(len(p))
    value = min(-(p * np.log2(p)).sum() + (len(p) - 1) / (2 * samples * math.log(2)), ceiling)
    variance = (p * np.log2(p) ** 2).sum() - (p * np.log2(p)).sum() ** 2
    least = (len(p) - 1) / (2 * (samples * math.log(2)) ** 2)
    half = NORMAL * math.sqrt(max(variance / samples, least))
    return value, value - half, min(value + half, ceiling)


@pytest.mark.parametrize("counts", [(7, 3), (20, 10, 10, 5), (9, 1, 1, 1), (5, 5)])
def test_entropies_by_hand(counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    found = entropy_estimate(codes)
    assert (found.value, found.low, found.high) == pytest.approx(by_hand(np.array(counts) / sum(counts), sum(counts)))
    exact = entropy_estimate(codes, exact=True)
    p = np.array(counts) / sum(counts)
    assert exact == Estimate(*[pytest.approx(stats.entropy(p, base=2))] * 3)


def test_entropies_of_weighted_samples():
    codes, weights = np.array([0, 0, 1, 2, 1, 3]), np.array([0.5, 1.0, 2.0, 0.5, 0.0, 0.0])
    samples = 4.0**2 / (0.25 + 1 + 4 + 0.25)  # Kish's number of equal ones
    found = entropy_estimate(codes, weights)
    assert (found.value, found.low, found.high) == pytest.approx(by_hand([1.5 / 4, 2 / 4, 0.5 / 4], samples))
    one = entropy_estimate(np.array([4, 4, 1]), np.array([1.0, 1.0, 0.0]))
    assert (one.value, one.low, one.high) == (0, 0, 0)


def test_an_entropy_near_the_number_of_samples_is_flagged():
    assert entropy_estimate(np.arange(8)).flagged
    assert entropy_estimate(np.arange(8)).note.startswith("H(T) is near log2 of the number of samples")
    for counts in ([2] * 10, [1] * 9 + [7], [2, 2, 2, 2]):
        codes = np.repeat(np.arange(len(counts)), counts)
        found = entropy_estimate(codes)
        full = found.value >= 0.95 * math.log2(len(codes))
        assert (found.flagged, bool(found.note)) == (full, full)


def test_a_mean_and_its_interval():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0])
    plain = _mean(values, None)
    assert (plain.value, plain.high) == (
        pytest.approx(7 / 3),
        pytest.approx(7 / 3 + NORMAL * values.std() / math.sqrt(3)),
    )
    w = weights * 3 / 4
    mean = (w * values).mean()
    found = _mean(values, weights)
    assert found.value == pytest.approx(mean)
    assert mean - found.low == pytest.approx(found.high - mean)
    assert found.high - mean == pytest.approx(NORMAL * (w * (values - mean)).std() / math.sqrt(3))


def plain_mixture(centres, noise, sigma):
    """log2 of the density of each noisy centre under its own Gaussian over that under the mixture of all."""
    made = []
    for z, n in zip(centres, noise, strict=True):
        own = -(n @ n) / (2 * sigma**2)
        all_of_them = [-((z + n - other) @ (z + n - other)) / (2 * sigma**2) for other in centres]
        made.append((own - (logsumexp(all_of_them) - math.log(len(centres)))) / math.log(2))
    return np.array(made)


@pytest.mark.parametrize("count", [4, 9, 1030])
def test_a_mixture_is_compared_with_its_halves(count):
    centres = np.random.default_rng(0).standard_normal((count, 2))
    found = mixture_information(centres, 0.5, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    noise = 0.5 * rng.standard_normal((count, 2))
    order = rng.permutation(count)
    if count > 1000:  # a part is enough: rows of more than one block are compared with all centres
        few = [0, 1023, 1024, 1029]
        whole = np.array([plain_mixture_of(centres, noise, 0.5, i) for i in few])
        own = [next(h for h in np.array_split(order, 2) if i in h) for i in few]
        at = [(h, int(np.flatnonzero(h == i)[0])) for i, h in zip(few, own, strict=True)]
        half = [plain_mixture_of(centres[h], noise[h], 0.5, place) for h, place in at]
        assert found[few] == pytest.approx(2 * whole - half)
        return
    halves = np.zeros(count)
    for part in np.array_split(order, 2):
        halves[part] = plain_mixture(centres[part], noise[part], 0.5)
    assert found == pytest.approx(2 * plain_mixture(centres, noise, 0.5) - halves)


def plain_mixture_of(centres, noise, sigma, i):
    squares = ((centres[i] + noise[i] - centres) ** 2).sum(1)
    own = -(noise[i] @ noise[i]) / (2 * sigma**2)
    return (own - (logsumexp(-squares / (2 * sigma**2)) - math.log(len(centres)))) / math.log(2)


def test_mixtures_of_nothing():
    assert not mixture_information(np.arange(3.0)[:, None], 0.5, np.random.default_rng(0)).any()
    assert mixture_information(np.arange(4.0)[:, None], 0.5, np.random.default_rng(0)).any()
    assert not mixture_information(np.arange(9.0)[:, None], 0.0, np.random.default_rng(0)).any()


def test_the_counted_information_of_a_code(monkeypatch):
    """A value, a plain count, an error and a mark are turned into an interval: as much as was taken off may be left."""
    given = {}

    def counted(value, plain, error, flagged=False):
        def adjusted(codes, y, draws, rng, weights):
            given.update(codes=codes, y=y, draws=draws, state=rng.bit_generator.state, weights=weights)
            return type("Counted", (), {"value": value, "plain": plain, "error": error, "flagged": flagged})

        monkeypatch.setattr(views, "adjusted_information", adjusted)
        return count_information(np.array([5, 9, 5, 9] * 5), np.array([1, 1, 3, 4] * 5), seed=3)

    found, notes = counted(0.5, 0.56, 0.04)
    one = math.log2(20) / 20  # bits of one label, which is more than the error
    half = NORMAL * math.hypot(one, 0.06)
    assert (found.low, found.value, found.high) == pytest.approx((0.5 - half, 0.5, 0.5 + half))
    assert (found.flagged, found.note, notes) == (False, "", [])
    assert (given["codes"].tolist(), given["y"].tolist()) == ([0, 1, 0, 1] * 5, [0, 0, 1, 2] * 5)
    assert (given["draws"], given["weights"]) == (8, None)
    assert given["state"] == np.random.default_rng([3, 7]).bit_generator.state
    count_information(np.arange(4), np.arange(4) % 2)
    assert given["state"] == np.random.default_rng([0, 7]).bit_generator.state
    above, _ = counted(0.5, 0.5, 0.3)
    assert above.low == pytest.approx(0.0)
    assert counted(0.3, 0.3, 0.3)[0].high == pytest.approx(0.3 + NORMAL * 0.3)
    sure, _ = counted(0.5, 0.5, 0.0)  # of a constant
    assert (sure.low, sure.high) == (0.5, 0.5)
    lowered = counted(0.5, 0.61, 0.04)
    assert lowered[1] == ["I(Z;Y) was lowered by 0.11 bits: few samples for this number of codes and classes"]
    assert lowered[0].flagged
    assert not counted(0.5, 0.6 - 1e-12, 0.04)[0].flagged
    full = "I(Z;Y) is at the ceiling of the code: the true value may be any higher one"
    assert counted(0.5, 0.5, 0.1, flagged=True)[1] == [full]
    code = entropy_estimate(np.array([0, 1] * 10)).value  # 1 bit, of labels of 1.5 bits
    assert counted(0.95 * code, 0.95 * code, 0.1)[0].note == full
    assert not counted(0.9499 * code, 0.9499 * code, 0.1)[0].flagged
    monkeypatch.undo()
    y = np.arange(400) % 2  # the label has no more entropy than the code: at its own ceiling nothing is hidden
    found, _ = count_information(y, y)
    assert not found.flagged
    # A code that determines the label in 400 samples may owe that to them.
    for weights, samples in ((None, 400), (np.where(np.arange(400) < 100, 1.0, 0.0), 100)):
        found, _ = count_information(y, y, weights)
        known = views.adjusted_information(y, y, 8, np.random.default_rng([0, 7]), weights)
        half = NORMAL * math.hypot(math.log2(samples) / samples, known.plain - known.value)
        assert (found.low, found.value, found.high) == pytest.approx((1 - half, 1, 1))


def test_large_units():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 40))
    z = (z - z.mean(0)) / z.std(0)
    assert Dominance.of(z * np.array([4.99] + [1] * 39)) is None  # not five times the others' deviation
    # Of 40 units two may be large. They need two thirds of the variance: 2 s² ≥ 2 · 38.
    assert Dominance.of(z * np.array([6.1, 6.1] + [1] * 38)) is None
    two = Dominance.of(z * np.array([6.3, 6.3] + [1] * 38))
    assert two.units == (0, 1)
    assert two.share == pytest.approx(2 * 6.3**2 / (2 * 6.3**2 + 38))
    assert two.scales == pytest.approx([1 / 6.3] * 2 + [1] * 38)
    assert str(two) == f"2 units (0, 1) hold {two.share:.1%} of the layer's variance"
    scaled = two(z * np.array([6.3, 6.3] + [1] * 38))
    assert scaled == pytest.approx(z)
    single = two((z * np.array([6.3, 6.3] + [1] * 38)).astype(np.float32))
    assert single.dtype == np.float32
    assert single == pytest.approx(z, abs=1e-5)
    third = Dominance.of(z * np.array([30.0, 30, 30] + [1] * 37))
    assert third is None  # three are more than a twentieth: the third is one of the others
    one = Dominance.of(z[:, :3] * np.array([1, 9.0, 1]))
    assert (one.units, str(one)[:12]) == ((1,), "unit 1 holds")
    assert one.scales == pytest.approx([1, 1 / 9, 1])
    maps = np.stack([z[:, :3], 2 * z[:, 3:6]], 2) * np.array([1, 9.0, 1])[:, None]
    of_maps = Dominance.of(maps)
    assert of_maps.scales == pytest.approx([1, 1 / 9, 1])
    assert of_maps(maps)[:, 1] == pytest.approx(maps[:, 1] / 9)
    single = of_maps(maps.astype(np.float32))
    assert single.dtype == np.float32
    assert Dominance.of(np.eye(4)[:, :1] * [[0.0, 7.0]]) is None  # the others do not vary
    many = replace(two, units=(0, 1, 2, 3))
    assert str(many).startswith("4 units (0, 1, 2 …) hold")
    assert str(replace(two, units=(0, 1, 2))).startswith("3 units (0, 1, 2) hold")


def test_codes_are_the_nearest_centres():
    z = np.random.default_rng(0).standard_normal((200, 3, 2))
    made = Codebook.fit(z, 4, 5, seed=2)
    scores = Projection.fit(z, 4)(z)
    fitted = KMeans(5, n_init=1, max_iter=60, random_state=2).fit(scores)
    assert made.centres == pytest.approx(fitted.cluster_centers_)
    far = ((scores[:, None] - made.centres) ** 2).sum(2)
    assert made(z).tolist() == far.argmin(1).tolist()
    assert made.resized(z, 7, 1).centres == pytest.approx(
        KMeans(7, n_init=1, max_iter=60, random_state=1).fit(scores).cluster_centers_
    )
    assert made.resized(z, 7, 1).dominance is None
    few = np.repeat(np.arange(4.0), 5)[:, None]
    assert sorted(Codebook.fit(few, 1, 4).centres.ravel()) == pytest.approx(
        [-1.5, -0.5, 0.5, 1.5]
    )  # no more are needed
    assert len(Codebook.fit(few, 1, 3).centres) == 3
    assert len(Codebook.fit(few[::5], 1, 4).centres) == 4
    with pytest.raises(RobGIBError, match="5 codes need at least as many samples to fit them on, not 4"):
        Codebook.fit(few[::5], 1, 5)
    large = z.reshape(200, 6) * np.array([1, 1, 1, 1, 1, 50.0])
    scaled = Codebook.fit(large, 4, 5, seed=2)
    assert scaled.dominance.units == (5,)
    plain = Codebook.fit(large * scaled.dominance.scales, 4, 5, seed=2)
    assert scaled(large).tolist() == plain(large * scaled.dominance.scales).tolist()
    assert scaled.resized(large, 7, 1).centres == pytest.approx(
        plain.resized(large * scaled.dominance.scales, 7, 1).centres
    )


def test_a_code_as_a_target():
    rng = np.random.default_rng(0)
    z, fit, y = rng.standard_normal((160, 3)), rng.standard_normal((50, 3)), rng.integers(2, size=160)
    made = Codebook.fit(z, 3, 8)
    found = made.target("layer", z, fit, y)
    assert (found.name, found.view, found.code) == ("layer", "rate", True)
    assert found.values.tolist() == made(z).tolist()
    assert found.fit.tolist() == made(fit).tolist()
    assert found.total == entropy_estimate(made(z))
    assert found.label == count_information(made(z), y)[0]
    assert found.resolution == "k-means code of 8 symbols on 3 components"
    assert found.notes == tuple(count_information(made(z), y)[1])  # eight codes are enough for two classes
    seven = Codebook.fit(z, 3, 7).target("layer", z, fit, y)
    assert seven.notes[-1] == "7 symbols are few for 2 classes (at least 4 a class)"
    weights = np.linspace(0.1, 1.9, 160)
    assert made.target("layer", z, fit, y, weights).total == entropy_estimate(made(z), weights)
    large = Codebook.fit(z * [1, 1, 40.0], 3, 8).target("layer", z * [1, 1, 40.0], fit, y)
    assert large.notes[-1].endswith("of the layer's variance: scaled down for the code")
    exact = Codebook.counted("layer", np.array([0, 1, 0, 1]), np.zeros(0), np.array([0, 1, 1, 1]), None, "exact", "")
    assert (exact.view, exact.total.value, exact.total.low) == ("exact", 1, 1)
    assert exact.label.value == pytest.approx(1 + stats.entropy([1, 3], base=2) - 1.5)


def test_bins_of_equal_width():
    z = np.linspace(0, 1, 41)[:, None]
    made = Bins.fit(z, 30)
    assert (made.low, made.high, made.count) == (0, 1, 30)
    assert made(np.array([[0.0], [1 / 30 - 1e-9], [1 / 30 + 1e-9], [1.0]])).tolist() == [0, 0, 1, 2]
    assert made(np.array([[-5.0], [0.01], [0.99], [7.0]])).tolist() == [0, 0, 1, 1]
    y = np.arange(41) % 3
    found = made.target("layer", z, z, y)
    symbols = np.minimum((z[:, 0] * 30).astype(int), 29)

    def entropy(*codes):
        return stats.entropy(np.unique(np.stack(codes, 1), axis=0, return_counts=True)[1], base=2)

    bits = entropy(symbols) + entropy(y) - entropy(symbols, y)
    assert (found.total.low, found.total.value, found.total.high) == pytest.approx((entropy(symbols),) * 3)
    assert (found.label.low, found.label.value, found.label.high) == pytest.approx((bits,) * 3)
    assert found.resolution == "every input, units in 30 bins from 0 to 1"
    assert (found.view, found.values.tolist()) == ("exact", relabel(symbols).tolist())
    kept = Bins.fit(z[:30], 30)  # thirty values are kept as they are
    assert (kept.count, kept(z[:30]).tolist()) == (None, list(range(30)))
    assert kept.target("layer", z[:30], z, y[:30]).resolution == "every input, units in values as they are"
    pair = Bins(0.0, 1.0, 2)
    assert pair(np.array([[0.1, 0.9], [0.1, 0.1], [0.9, 0.9]])).tolist() == [1, 0, 2]
    assert Bins(3.0, 3.0, 2)(np.full((3, 1), 3.0)).tolist() == [0, 0, 0]
    large = np.random.default_rng(0).standard_normal((100, 4)) * [1, 1, 1, 90]
    marked = Bins.fit(large, 30).target("layer", large, large, np.arange(100) % 2)
    assert marked.label.flagged
    assert marked.notes[-1].endswith(": the bins are too wide for the others")


def test_a_layer_in_noise():
    rng = np.random.default_rng(0)
    z, fit, y = rng.standard_normal((30, 3)) * [1, 2, 3], rng.standard_normal((20, 3)), np.array([4, 7, 9] * 10)
    made = NoisyLayer.fit(z, 2, 0.5, seed=3)
    projection = Projection.fit(z, 2)
    scale = math.sqrt(projection(z).var(0).sum())
    assert made.scale == pytest.approx(scale)

    def noisy(values, salt):
        noise = np.random.default_rng([3, 5, salt]).standard_normal((len(values), 2))
        return projection(values) + 0.5 * scale * noise

    assert made(z) == pytest.approx(noisy(z, 0))
    found = made.target("layer", z, fit, y)
    assert found.values == pytest.approx(noisy(z, 0))
    assert found.fit == pytest.approx(noisy(fit, 1))
    rng = np.random.default_rng([3, 5, 2])
    of_x = mixture_information(projection(z), 0.5 * scale, rng)
    within = np.zeros(30)
    for c in (4, 7, 9):
        within[y == c] = mixture_information(projection(z)[y == c], 0.5 * scale, rng)
    assert found.total == _mean(of_x, None)
    plain, shuffled = _mean(of_x - within, None), np.zeros(30)
    rng = np.random.default_rng([3, 5, 3])
    labels = y[rng.permutation(30)]
    for c in (4, 7, 9):
        shuffled[labels == c] = mixture_information(projection(z)[labels == c], 0.5 * scale, rng)
    chance, most = float((of_x - shuffled).mean()), min(found.total.value, entropy_estimate(y).value)
    half = math.hypot(plain.high - plain.value, chance)
    value = (plain.value - chance) * most / (most - chance)
    assert found.label.value == pytest.approx(value)
    assert (found.label.low, found.label.high) == pytest.approx((value - half, min(value + half, most)))
    assert found.resolution == "noise of 0.5 total standard deviations on 2 components"
    assert (found.view, found.notes) == ("noise", ())
    weights = np.linspace(0.2, 1.8, 30)
    assert made.target("layer", z, fit, y, weights).total == _mean(of_x, weights)
    fine = NoisyLayer.fit(z, 2, 1e-4, seed=3).target("layer", z, fit, y)
    assert fine.total.flagged
    assert fine.notes == (fine.total.note, fine.label.note)
    assert fine.total.note.startswith("I(X;T) is near log2 of the number of samples")
    large = NoisyLayer.fit(z * [1, 1, 90], 2, 0.5).target("layer", z * [1, 1, 90], fit, y)
    assert large.notes[-1].endswith(": the others drown in noise of its scale")


def test_the_ceiling_of_a_layer_in_noise(monkeypatch):
    z = np.random.default_rng(0).standard_normal((16, 1))
    for share, full in ((0.9501, True), (0.9499, False)):
        monkeypatch.setattr(views, "mixture_information", lambda c, s, r, share=share: np.full(len(c), share * 4.0))
        found = NoisyLayer.fit(z, 1, 0.5).target("layer", z, z, np.zeros(16, int))
        assert found.total.flagged is full


def test_a_layer_in_units_of_its_own():
    z = np.random.default_rng(0).standard_normal((50, 3)) * [1, 2, 3] + 5
    centre, scale = Rescaled.of(z)
    assert centre == pytest.approx(z.mean(0))
    assert scale == pytest.approx(math.sqrt(z.var(0).sum()))
    assert Rescaled.of(np.ones((4, 2)))[1] == 1
    bins = Bins.fit((z - centre) / scale, 10)
    view = Rescaled(bins, centre, scale)
    assert view.view == "exact"
    assert view(z).tolist() == bins((z - centre) / scale).tolist()
    y = np.arange(50) % 2
    assert view.target("l", z, z, y).label == bins.target("l", (z - centre) / scale, (z - centre) / scale, y).label


def test_processing_adds_no_information():
    z = np.zeros((4, 1))
    plain = Bins.fit(z).target("a", z, z, np.arange(4) % 2)

    def layers(*labels):
        made = zip("abcd", labels, strict=False)
        return [replace(plain, name=n, label=Estimate(v, v - 0.1, v + 0.1)) for n, v in made]

    everything = {"a", "b", "c", "d"}
    marked = mark_processing(layers(1.0, 1.2 + 1e-8, 1.4), lambda name, others: everything)
    assert [t.label.flagged for t in marked] == [True, False, False]
    assert marked[0].label.note.startswith(
        "violates the data-processing inequality: 'c' is computed from it and has 1.40"
    )
    assert not mark_processing(layers(1.0, 1.2), lambda name, others: everything)[0].label.flagged  # they touch
    back = mark_processing(layers(1.4, 1.0), lambda name, others: everything)
    assert not any(t.label.flagged for t in back)  # an earlier layer may have more
    noted = [replace(plain, label=Estimate(1.0, 1.0, 1.0, True, "few samples")), *layers(2.0)]
    assert mark_processing(noted, lambda name, others: everything)[0].label.note.startswith("few samples; violates")


@pytest.mark.parametrize(("symbols", "samples", "flipped"), [(40, 1000, 0.02), (40, 500, 0.05), (10, 200, 0.05)])
def test_a_code_that_nearly_determines_the_label(symbols, samples, flipped):
    """Rare pairs of code and label are mostly unseen: the count is too high, and its interval reaches the truth."""
    joint = np.full((symbols, 10), flipped / 10)
    joint[np.arange(symbols), np.arange(symbols) % 10] += 1 - flipped
    truth = float((joint / symbols * np.log2(joint * 10)).sum())
    missed, above = 0, 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        code = rng.integers(symbols, size=samples)
        y = np.where(rng.random(samples) < flipped, rng.integers(10, size=samples), code % 10)
        found, _ = count_information(code, y)
        above += found.value > truth
        missed += not found.low <= truth <= found.high and not found.flagged
    assert above > 60
    assert missed <= 11  # 9% of many draws; 8 would be 10%, and 11 is within chance of it


def test_a_counted_information_stays_within_what_is_possible():
    code = np.arange(100) % 10
    found, _ = count_information(code, code)
    assert 3.0 < found.low < found.value <= found.high <= math.log2(10) + 1e-12
    weights = np.ones(200)
    for weight in (150.0, 1e6):
        weights[0] = weight
        found, _ = count_information(np.arange(200) % 5, np.arange(200) % 5, weights)
        assert min(found.value, 0) <= found.low <= found.value <= found.high <= math.log2(5) + 1e-12
    constant, notes = count_information(np.zeros(9, int), np.arange(9) % 2)
    assert (constant.value, constant.low, constant.high, constant.flagged, notes) == (0, 0, 0, False, [])


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_labels_that_a_layer_does_not_know_have_no_information_in_noise(classes):
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((1000, 4)), rng.integers(classes, size=1000)
    found = NoisyLayer.fit(z, 4, 0.3).target("layer", z, z, y)
    assert found.label.low <= 0 <= found.label.high
    assert abs(found.label.value) < 0.25
    assert found.label.flagged == any("few samples of each class" in note for note in found.notes) == (classes == 200)


@pytest.mark.parametrize(("classes", "samples"), [(2, 800), (10, 800), (50, 1000)])
def test_the_information_of_gaussian_classes_in_noise(classes, samples):
    rng = np.random.default_rng(1)
    means, y = rng.standard_normal((classes, 6)), rng.integers(classes, size=samples)
    layer = means[y] + 0.5 * rng.standard_normal((samples, 6))
    view = NoisyLayer.fit(layer, 6, 0.3)
    variance = 0.25 + (view.sigma * view.scale) ** 2
    drawn = rng.integers(classes, size=20_000)
    t = means[drawn] + np.sqrt(variance) * rng.standard_normal((20_000, 6))
    density = np.exp(-((t[:, None] - means) ** 2).sum(2) / 2 / variance)
    truth = float(np.log2(density[np.arange(20_000), drawn] / density.mean(1)).mean())
    found = view.target("layer", layer, layer, y).label
    assert found.low <= truth <= found.high
    assert found.value == pytest.approx(truth, abs=0.2)


def test_the_share_of_pairs_that_were_seen_once():
    codes, y = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    expected = 0.5 * (1 + 1 / math.sqrt(2))  # two of four, and the standard error of two
    assert views._seen_once(codes, y, None) == pytest.approx(expected)
    assert views._seen_once(codes, y, np.array([1.0, 1, 2, 0])) == pytest.approx(expected)
    assert views._seen_once(codes[:3], y[:3], None) == pytest.approx(2 / 3)
    assert views._seen_once(codes, codes, None) == 0


def test_what_shuffled_labels_give_is_taken_off_as_a_share():
    plain = Estimate(1.0, 0.8, 1.2)
    found = views._above_chance(plain, 0.5, 2.0)
    half = math.hypot(0.2, 0.5)
    assert (found.low, found.value, found.high) == pytest.approx((2 / 3 - half, 2 / 3, 2 / 3 + half))
    assert (found.flagged, found.note) == (True, "shuffled labels have 0.50 bits: few samples of each class")
    little = views._above_chance(plain, 0.19, 2.0)
    assert (little.flagged, little.note) == (False, "")
    assert views._above_chance(plain, 0.2, 2.0).flagged
    nothing = views._above_chance(plain, 2.0, 2.0)
    assert (nothing.low, nothing.value, nothing.high, nothing.flagged) == (0, 0, 2, True)
    assert views._above_chance(plain, 0.0, 2.0) is plain
    assert views._above_chance(Estimate(1.9, 1.7, 2.1), 0.1, 2.0).high == 2.0
