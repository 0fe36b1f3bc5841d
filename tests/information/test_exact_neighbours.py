"""The nearest-neighbour information beside the papers' formulas, worked out pair by pair."""

import math

import numpy as np
import pytest
from scipy.special import digamma

from robgib import RobGIBError
from robgib.information import KSG, ksg
from robgib.information.ksg import _kraskov, _Space, _split
from robgib.information.preprocessing import SALTS, normal_scores

LN2 = math.log(2)
EULER = 0.5772156649015329


def reference(x, t, k, x_codes=None, t_codes=None):
    """Kraskov et al. 2004, equation 8, and Ross 2014 for classes, in bits per sample (N,)."""
    count = len(x)
    x_codes = np.zeros(count, int) if x_codes is None else x_codes
    t_codes = np.zeros(count, int) if t_codes is None else t_codes
    bits = np.zeros(count)
    for i in range(count):
        of_x = [max(abs(x[i] - x[j]), default=0) if x_codes[i] == x_codes[j] else math.inf for j in range(count)]
        of_t = [max(abs(t[i] - t[j]), default=0) if t_codes[i] == t_codes[j] else math.inf for j in range(count)]
        joint = [max(of_x[j], of_t[j]) for j in range(count) if j != i]
        joint = sorted(d for d in joint if d < math.inf)
        if not joint:
            continue
        found = min(k, len(joint))
        radius = joint[found - 1]
        near_x, near_t = sum(d < radius for d in of_x), sum(d < radius for d in of_t)
        bits[i] = (digamma(found) + digamma(count) - digamma(near_x) - digamma(near_t)) / LN2
    return bits


def gaussian(count, columns, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((count, 1))
    return [common + rng.standard_normal((count, 1)) for _ in range(columns)], common + rng.standard_normal((count, 1))


def test_neighbours_by_hand():
    # ψ(1) = −γ, ψ(n + 1) = ψ(n) + 1/n.
    one = -EULER
    two, three, four = one + 1, one + 3 / 2, one + 11 / 6
    found = _kraskov(np.array([2, 0, 1]), np.array([3, 5, 1]), np.array([4, 6, 1]))
    assert found == pytest.approx([(two + three - three - four) / LN2, 0, (one + three - 2 * one) / LN2])


@pytest.mark.parametrize("k", [1, 3])
def test_real_features_and_target(k):
    features, target = gaussian(40, 2)
    terms = KSG(k=k).estimate(features, target)
    a, b = (normal_scores(x) for x in features)
    t = normal_scores(target)
    expected = [reference(np.hstack(s), t, k) for s in ((a, b), (a,), (b,), (b,), (a,))]
    assert terms.pointwise[:, 0] == pytest.approx(
        expected[0].mean() + math.sqrt(2) * (expected[0] - expected[0].mean())
    )
    values = [terms.total, *terms.singles, *terms.rests]
    assert [v.value for v in values] == pytest.approx([e.mean() for e in expected])


def test_classes_and_symbols():
    features, _ = gaussian(30, 1)
    classes = np.array([0] * 14 + [1] * 12 + [2] * 3 + [3])  # the last is alone, and three have two neighbours each
    terms = KSG(k=4).estimate(features, classes)
    expected = reference(normal_scores(features[0]), np.zeros((30, 0)), 4, t_codes=classes)
    # Without real values in the target, all of the same class are near.
    counts = np.bincount(classes)[classes]
    x = normal_scores(features[0])
    for i in range(30):
        same = sorted(abs(x[i, 0] - x[j, 0]) for j in range(30) if j != i and classes[j] == classes[i])
        found = min(4, len(same))
        near = sum(abs(x[i, 0] - x[j, 0]) < same[found - 1] for j in range(30)) if found else 1
        expected[i] = (digamma(found) + digamma(30) - digamma(near) - digamma(counts[i])) / LN2 if found else 0
    assert terms.total.value == pytest.approx(expected.mean())
    symbols = np.array([0, 1] * 15)
    both = KSG(k=4).estimate([symbols], classes)
    pairs = np.bincount(4 * symbols + classes)[4 * symbols + classes]
    counted = (digamma(pairs) + digamma(30) - digamma(15) - digamma(counts)) / LN2
    assert both.total.value == pytest.approx(counted.mean())


@pytest.mark.parametrize("columns", [8, 9])
def test_many_dimensions(columns):
    """Of 9 real dimensions by a tree; of 10 by all pairs at once."""
    features, target = gaussian(40, 1, seed=3)
    wide = np.random.default_rng(4).standard_normal((40, columns - 1))
    terms = KSG(k=2, limit=10).estimate([features[0], wide], target)
    a, b, t = (normal_scores(v) for v in (features[0], wide, target))
    expected = [reference(s, t, 2).mean() for s in (np.hstack([a, b]), a, b, b, a)]
    assert [v.value for v in (terms.total, *terms.singles, *terms.rests)] == pytest.approx(expected)


def test_many_dimensions_and_classes():
    features = [np.random.default_rng(9).standard_normal((70, columns)) for columns in (1, 8)]
    classes = np.array([0] * 40 + [1] * 27 + [2] * 2 + [3])
    terms = KSG(k=3, limit=10).estimate(features, classes)
    a, b = (normal_scores(x) for x in features)
    expected = [reference(s, np.zeros((70, 0)), 3, t_codes=classes).mean() for s in (np.hstack([a, b]), a, b, b, a)]
    assert [v.value for v in (terms.total, *terms.singles, *terms.rests)] == pytest.approx(expected)


@pytest.mark.parametrize("columns", [3, 9])
def test_distances_and_counts_of_a_space(columns):
    values, codes = np.random.default_rng(5).standard_normal((25, columns)), np.array([0] * 20 + [1] * 3 + [2] * 2)
    space = _Space(values, codes)
    far = abs(values[:, None] - values[None]).max(2)
    far[codes[:, None] != codes[None]] = math.inf
    nth = np.sort(far, 1)[np.arange(25), np.minimum(4, np.bincount(codes)[codes] - 1)]
    radius = space.distances(4, 1)
    assert radius == pytest.approx(nth, rel=1e-12)
    assert (radius < nth).all()
    assert space.within(nth, 1).tolist() == (far <= nth[:, None]).sum(1).tolist()
    assert space.within(radius, 1).tolist() == (far < nth[:, None]).sum(1).tolist()


def test_what_smaller_neighbourhoods_would_add():
    x, t = _Space(np.arange(4.0)[:, None], np.zeros(4, int)), _Space(np.arange(4.0)[:, None], np.zeros(4, int))
    near, wide = np.array([2.0, 2, 2, 2]), np.array([1.4, 1.4, 1.4, 1.4])
    # (I(k) − I(4k))/(4^(2/2) − 1) = 0.2, three quarters of it are the floor; 0.2 is above 0.1 bits.
    bits, floor, flagged = KSG()._term(x, t, near, wide)
    assert (bits.tolist(), floor, flagged) == ([2, 2, 2, 2], pytest.approx(0.15), True)
    assert KSG()._term(x, t, near, near - 0.3 + 1e-9)[1:] == (pytest.approx(0.075), False)
    assert KSG()._term(x, t, near, near - 0.3 - 1e-9)[2]
    assert KSG()._term(x, t, near, near + 0.6)[1:] == (0, False)
    # Not above its own error, √2 · sd/√N, of 0.9 and −0.3.
    assert not KSG()._term(x, t, near, near - 3 * np.array([0.9, -0.3, 0.9, -0.3]))[2]
    assert KSG()._term(x, t, near, near - 3 * np.array([0.6, 0.0, 0.6, 0.0]))[2]  # 0.3, of an error of 0.21
    flat = _Space(np.zeros((4, 0)), np.zeros(4, int))
    assert KSG()._term(x, flat, near, near - 0.3)[1] == pytest.approx(0.75 * 0.3 / 15)  # one dimension: 4² − 1
    symbols = _Space(np.zeros((40, 0)), np.arange(40) % 4)
    _, chance, alone = KSG()._term(symbols, _Space(np.zeros((40, 0)), np.arange(40) % 3), np.ones(40), np.ones(40))
    assert (chance, alone) == (pytest.approx(math.sqrt(3 * 2 / 2) / 40 / LN2), False)


def test_samples_alone_with_their_symbols_flag_a_figure():
    for lone, flagged in ((2, False), (3, True)):  # of 40: 5% and 7.5%
        codes = np.concatenate([np.zeros(40 - lone, int), 1 + np.arange(lone)])
        space, one = _Space(np.zeros((40, 0)), codes), _Space(np.zeros((40, 0)), np.zeros(40, int))
        assert KSG()._term(space, one, np.ones(40), np.ones(40))[2] is flagged


def test_spaces_of_the_subsets():
    rng = np.random.default_rng(0)
    spaces = KSG()._prepare((rng.standard_normal((20, 2)), rng.integers(2, size=20), rng.standard_normal((20, 1))), ())
    assert [s.values.shape[1] for s in spaces] == [3, 2, 0, 1, 1, 3, 2]
    assert [int(s.codes.max()) for s in spaces] == [1, 0, 1, 0, 1, 0, 1]


def test_features_that_repeat_values_get_noise_of_their_own():
    tied = np.repeat(np.arange(10.0), 2)[:, None]
    space = KSG(seed=7)._prepare((tied,), ())[1]
    assert (space.values - normal_scores(tied))[:, 0] == pytest.approx(KSG(seed=7)._ties(20)[0], rel=1e-3)


def test_many_dimensions_beside_symbols():
    features = [np.random.default_rng(9).standard_normal((40, 9)), np.arange(40) % 3]
    target = features[0][:, :1] + np.random.default_rng(8).standard_normal((40, 1))
    terms = KSG(k=2, limit=10).estimate(features, target)
    a, t = normal_scores(features[0]), normal_scores(target)
    alone = reference(a, t, 2)
    # Neighbours are those of the same symbol; within the target alone, of all.
    joint = np.zeros(40)
    far = abs(a[:, None] - a[None]).max(2)
    of_t = abs(t - t.T)
    same = features[1][:, None] == features[1]
    for i in range(40):
        distance = np.where(same[i], np.maximum(far[i], of_t[i]), np.inf)
        radius = np.sort(distance)[2]
        near_x, near_t = (far[i][same[i]] < radius).sum(), (of_t[i] < radius).sum()
        joint[i] = (digamma(2) + digamma(40) - digamma(near_x) - digamma(near_t)) / LN2
    assert terms.total.value == pytest.approx(joint.mean())
    assert terms.rests[1].value == pytest.approx(alone.mean())


def test_the_most_samples_of_many_dimensions(monkeypatch):
    """40 samples, of 10 dimensions, and three subsets that are gone through 12 times each."""
    features = [np.random.default_rng(9).standard_normal((40, 9))]
    target = np.random.default_rng(8).standard_normal(40)
    monkeypatch.setattr(ksg, "_MOST", 40**2 * (10 + 12 * 3))
    assert "noise" not in KSG(limit=10).estimate(features, target).resolution
    monkeypatch.setattr(ksg, "_MOST", 40**2 * (10 + 12 * 3) - 1)
    with pytest.raises(RobGIBError, match="minutes over 40 samples of 10 real dimensions"):
        KSG(limit=10).estimate(features, target)


def test_noise_of_a_variance_and_of_ties():
    features, target = gaussian(40, 1, seed=6)
    rng = np.random.default_rng([7, SALTS["ksg"]])
    ties = 1e-10 * rng.standard_normal((2, 40))
    noisy = normal_scores(target) + 0.5 * rng.standard_normal((40, 1))
    terms = KSG(k=2, noise=0.25, seed=7).estimate(features, target)
    assert terms.total.value == pytest.approx(reference(normal_scores(features[0]), noisy, 2).mean())
    assert "noise variance 0.25" in terms.resolution
    assert KSG(seed=7)._ties(40).tolist() == ties.tolist()
    later = np.append(np.arange(39.0), 38.0)[:, None]  # the highest values alone are equal
    assert (_split(later, ties[0])[0] - normal_scores(later))[:, 0] == pytest.approx(ties[0], rel=1e-3)
    tied = np.repeat(np.arange(20.0), 2)[:, None]
    scores, codes = _split(np.hstack([tied, features[0]]), ties[0])
    assert (scores[:, 0] - normal_scores(tied)[:, 0]) == pytest.approx(ties[0], rel=1e-3)
    assert scores[:, 1] == pytest.approx(normal_scores(features[0])[:, 0], rel=1e-12)
    assert not codes.any()


def test_weights_are_those_of_repeated_samples():
    features, target = gaussian(40, 1, seed=8)
    weights = np.tile([2.0, 0.0], 20)
    plain = KSG(k=2).estimate(features, target)
    bits = reference(normal_scores(features[0]), normal_scores(target), 2)
    weighted = KSG(k=2).estimate(features, target, weights=weights)
    assert weighted.total.value == pytest.approx((weights * bits).mean())
    assert plain.total.value == pytest.approx(bits.mean())


def test_the_fewest_samples():
    features, target = gaussian(14, 1)
    assert KSG(k=3).estimate(features, target).total.value is not None
    with pytest.raises(RobGIBError, match="13 samples are too few for 3 neighbours; give 14 or a smaller k"):
        KSG(k=3).estimate([features[0][:13]], target[:13])
