"""What the counting and the kernel estimators hand over, beside sums that are written out."""

import inspect

import numpy as np
import pytest
import torch

from robgib.information import Binned, Renyi, binned, renyi
from robgib.information.decomposition import Problem
from robgib.information.discrete import adjusted_by, entropy, subset_codes
from robgib.information.estimate import Estimate
from robgib.information.preprocessing import SALTS, codebook, encode
from robgib.information.renyi import _Data, _exponents, _notes, _squared_distances, _sum
from robgib.information.views import entropy_estimate


def handed_over(monkeypatch, module, estimator, features, target, weights=None):
    """What the estimator hands over to be decomposed."""
    seen = {}
    monkeypatch.setattr(module, "decompose", lambda terms, **more: seen.update(terms=terms, **more))
    columns = [f.reshape(len(f), -1) for f in features]
    target = target if target.dtype.kind == "i" else target.reshape(len(target), -1)
    estimator._estimate(Problem(estimator.prepare(columns), target, target, weights))
    return seen


def defaults(kind):
    parameters = inspect.signature(kind).parameters.items()
    return {name: one.default for name, one in parameters if one.default is not inspect.Parameter.empty}


def test_settings_of_the_counts():
    assert defaults(Binned) == {"codes": None, "target_codes": None, "joint_codes": None, "shuffles": 8, "seed": 0}
    with pytest.raises(Exception, match="codes must be at least 2"):
        Binned(codes=1)
    assert Binned(codes=2).codes == 2
    assert Binned.codes_target


@pytest.mark.parametrize("weighted", [False, True])
def test_counts_of_symbols(monkeypatch, weighted):
    rng = np.random.default_rng(0)
    x, y = [rng.integers(3, size=60) for _ in range(2)], rng.integers(2, size=60)
    weights = np.linspace(0.5, 1.5, 60) if weighted else None
    made = handed_over(monkeypatch, binned, Binned(seed=4, shuffles=3), x, y, weights)
    draw = np.random.default_rng([4, SALTS["binned"]])
    shuffled = [y[draw.permutation(60)] for _ in range(3)]
    counts = [adjusted_by(code, y, shuffled, weights) for code in subset_codes(x)]
    assert made["terms"] == pytest.approx([c.value for c in counts])
    assert made["floor"] == pytest.approx([c.floor for c in counts])
    assert made["flagged"].tolist() == [c.flagged for c in counts]
    each = np.stack([c.pointwise for c in counts], 1)
    if weighted:
        whole = (weights[:, None] * each).sum(0) / 60
        each = whole + weights[:, None] * (each - whole)
        assert made["problem"].weights is None
    assert made["pointwise"] == pytest.approx(each)
    assert made["resolution"] == "target 2 codes, features 3 codes each"
    assert made["notes"] == (["too few samples for the joint symbols: flagged figures are at the ceiling of counting"]
                             if made["flagged"].any() else [])  # fmt: skip


def test_notes_of_the_counts(monkeypatch):
    rng = np.random.default_rng(0)
    coded = "real values are coded: lower bounds of the information between the values themselves"
    one = handed_over(monkeypatch, binned, Binned(), [rng.standard_normal(400)], np.arange(400) % 2)
    assert one["notes"] == [coded]
    assert one["resolution"] == "target 2 codes, features 7 codes each"
    real = handed_over(monkeypatch, binned, Binned(codes=3, target_codes=4), [np.arange(400) % 2], rng.random(400))
    assert real["notes"] == [coded]
    assert real["resolution"] == "target 4 codes, features 2 codes each"
    constant = handed_over(monkeypatch, binned, Binned(), [np.arange(400) % 2], np.zeros(400, int))
    assert constant["notes"] == ["the target takes one symbol only: it carries no information"]


def test_a_codebook_where_symbols_are_too_many():
    """Of 200 samples: two features of 4 symbols beside 12 of the target are 192; with 13 they are 208, too many."""
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((200, 1)) for _ in range(2)]
    single = [encode(v, v, 4, 0) for v in x]

    def codes_of(estimator, symbols, features=x):
        prepared = estimator.prepare(features)
        return estimator._subset_codes(Problem(prepared, np.zeros(200, int), np.zeros(200, int)), symbols)

    plain, how = codes_of(Binned(codes=4), 12)
    assert how == "features 4 codes each"
    assert [c.tolist() for c in plain] == [c.tolist() for c in subset_codes(single)]
    assert Binned(codes=4)._prepare(tuple(x), tuple(x)).joint == 16
    crowded, how = codes_of(Binned(codes=4), 13)
    # A fifth of the samples a target symbol would be 3: at least 8.
    assert how == "features 4 codes each, X and each X_-i by one codebook of 8"
    whole, *rests = codebook(x, x, 8, 0)
    assert [c.tolist() for c in crowded] == [c.tolist() for c in (whole, *single, *rests)]
    assert codes_of(Binned(codes=16), 2)[1].endswith("one codebook of 20")  # 200 / (5 · 2)
    assert codes_of(Binned(codes=16, joint_codes=5), 2)[1].endswith("one codebook of 5")
    boundary = [np.arange(200)[:, None] % 10 + 0.0, np.arange(200)[:, None] // 10 % 10 + 0.0]
    assert "codebook" not in codes_of(Binned(codes=10), 2, boundary)[1]  # 100 · 2 are as many as the samples
    assert "codebook" in codes_of(Binned(codes=10), 3, boundary)[1]
    assert "codebook" not in codes_of(Binned(codes=4), 99, x[:1])[1]  # one feature has its own codes
    symbols = [x[0], np.arange(200)[:, None] % 9]
    assert "codebook" not in codes_of(Binned(codes=4), 99, symbols)[1]
    many = [rng.standard_normal((2000, 1)) for _ in range(2)]
    prepared = Binned(codes=40).prepare(many)
    how = Binned(codes=40)._subset_codes(Problem(prepared, np.zeros(2000, int), np.zeros(2000, int)), 2)[1]
    assert how.endswith("one codebook of 64")  # at most


def test_exponents_of_kernels():
    """Squared distances over 2 width² times the dimensions of the subset."""
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((7, d)) for d in (1, 0, 2)]
    tensors = [torch.from_numpy(f) for f in features]

    def expected(*chosen):
        x = np.hstack([features[i] for i in chosen])
        return ((x[:, None] - x[None]) ** 2).sum(2) / (2 * 0.7**2 * x.shape[1]) if x.shape[1] else None

    subsets = [(0, 1, 2), (0,), (1,), (2,), (1, 2), (0, 2), (0, 1)]
    found = dict(_exponents(tensors, 0.7))
    assert sorted(found) == list(range(7))
    for place, chosen in enumerate(subsets):
        wanted = expected(*chosen)
        assert (found[place] is None) is (wanted is None)
        if wanted is not None:
            assert found[place].numpy() == pytest.approx(wanted, abs=1e-9)
    assert all(v is None for _, v in _exponents([torch.zeros(3, 0)], 0.7))
    assert not _squared_distances(tensors[0]).diagonal().any()
    one, two = torch.ones(2, 2), torch.full((2, 2), 3.0)
    assert (_sum(None, one) is one, _sum(one, None) is one, _sum(None, None)) == (True, True, None)
    assert _sum(one, two).tolist() == [[4, 4], [4, 4]]


def renyi_entropy(kernel, alpha):
    values = np.linalg.eigvalsh(kernel / np.trace(kernel))
    values = values[values > 0]
    return -(values * np.log2(values)).sum() if alpha == 1 else np.log2((values**alpha).sum()) / (1 - alpha)


@pytest.mark.parametrize("alpha", [1.0, 1.01, 2.0])
def test_entropies_of_kernels(alpha):
    x = np.random.default_rng(0).standard_normal((8, 2))
    exponent = ((x[:, None] - x[None]) ** 2).sum(2)
    codes = np.array([0, 1, 0, 0, 1, 2, 0, 1])
    estimator = Renyi(alpha=alpha)
    same = np.equal.outer(codes, codes)
    plain = estimator._entropy(torch.from_numpy(exponent), np.zeros(8, int))
    assert plain == pytest.approx(renyi_entropy(np.exp(-exponent), alpha))
    assert estimator._entropy(torch.from_numpy(exponent), codes) == pytest.approx(
        renyi_entropy(np.exp(-exponent) * same, alpha)
    )
    assert estimator._entropy(None, codes) == pytest.approx(renyi_entropy(same * 1.0, alpha))


def test_terms_of_kernels():
    """The adjusted information by hand: 0 at chance, unchanged at the ceiling."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((40, 1)), rng.integers(3, size=40)[:, None], np.ones((40, 1))]
    t = x[0] + 0.5 * rng.standard_normal((40, 1))
    estimator = Renyi(alpha=1.5, width=0.8, shuffles=2)
    data = _Data.of(Problem(estimator.prepare(x), t, t), torch.device("cpu"))
    assert data.real
    rows = np.arange(5, 25)
    found = estimator._terms(data, rows, np.random.default_rng(1))
    draw = np.random.default_rng(1)
    orders = [draw.permutation(20) for _ in range(2)]
    real, code, target = data.features[0].numpy()[rows], x[1][rows], data.target.numpy()[rows]

    def exponent(v):
        return ((v[:, None] - v[None]) ** 2).sum(2) / (2 * 0.8**2 * v.shape[1])

    kernels = {"real": np.exp(-exponent(real)), "t": np.exp(-exponent(target))}
    kernels["code"] = np.equal.outer(code[:, 0], code[:, 0]) * 1.0
    both = kernels["real"] * kernels["code"]
    subsets = [both, kernels["real"], kernels["code"], None, kernels["code"], kernels["real"], both]
    of_t = renyi_entropy(kernels["t"], 1.5)
    assert found.adjusted.shape == found.short.shape == found.flagged.shape == (7,)
    for place, kernel in enumerate(subsets):
        if kernel is None:  # a constant
            assert (found.adjusted[place], found.short[place], found.flagged[place]) == (0, 0, False)
            continue
        of_x = renyi_entropy(kernel, 1.5)
        ceiling = min(of_x, of_t)
        joint = renyi_entropy(kernel * kernels["t"], 1.5)
        chance = np.mean([of_x + of_t - renyi_entropy(kernel * kernels["t"][o][:, o], 1.5) for o in orders])
        value = (of_x + of_t - joint - chance) * ceiling / (ceiling - chance)
        assert found.adjusted[place] == pytest.approx(value)
        assert found.short[place] == pytest.approx(max(chance, 0) / ceiling)
        assert found.flagged[place] == (joint >= 0.95 * np.log2(20) or chance / ceiling >= 0.5)


def test_terms_are_extrapolated_from_halves(monkeypatch):
    estimator = Renyi()
    asked = []

    def terms(self, data, rows, rng):
        asked.append(len(rows))
        return renyi._Terms(np.array([1.0, 2.0, 5.0]) - 1 / len(rows), np.zeros(3), np.zeros(3, bool))

    monkeypatch.setattr(Renyi, "_terms", terms)
    found, whole = estimator._extrapolated(None, np.arange(10), np.random.default_rng(0))
    assert asked == [10, 5, 5]
    assert found == pytest.approx([1.0, 2.0, 5.0])  # 2 (1 − 1/10) − (1 − 1/5)
    assert whole.adjusted == pytest.approx([0.9, 1.9, 4.9])


@pytest.mark.parametrize(("samples", "count"), [(40, 1), (41, 2)])
def test_what_the_kernels_hand_over(monkeypatch, samples, count):
    """Blocks of at most 40 samples; deviations of quarters over four partitions; and what chance leaves open."""
    calls = []

    def extrapolated(self, data, rows, rng):
        calls.append(len(rows))
        made = np.array([1.0, 0.5, 0.2]) + 0.01 * len(calls)
        return made, renyi._Terms(made, np.array([0.1, 0.2, 0.3]), np.array([False, True, False]))

    monkeypatch.setattr(Renyi, "_extrapolated", extrapolated)
    x = np.random.default_rng(0).standard_normal((samples, 1))
    made = handed_over(monkeypatch, renyi, Renyi(exact_samples=40), [x], x)
    partitions = 4 // count  # of four groups
    each = 1 + partitions * 4
    assert len(calls) == count * each
    firsts = [1 + b * each for b in range(count)]
    terms = np.array([1.0, 0.5, 0.2]) + 0.01 * np.mean(firsts)
    assert made["terms"] == pytest.approx(terms)
    steps = [
        np.arange(f + 1 + p * renyi._GROUPS, f + 1 + (p + 1) * renyi._GROUPS) for f in firsts for p in range(partitions)
    ]
    variance = np.mean([np.sum((0.01 * (s - s.mean())) ** 2) / (len(s) * (len(s) - 1)) for s in steps]) / count
    missing = 0.75 * np.array([0.1, 0.2, 0.3]) * terms
    k = len(made["replicates"])
    deviations = made["replicates"] - made["replicates"].mean(0)
    assert (k - 1) / k * (deviations**2).sum(0) == pytest.approx(variance + missing**2)
    assert made["flagged"].tolist() == [False, True, False]
    blocks = f"{count} blocks of " if count > 1 else ""
    size = samples // count
    assert (
        f"exact eigenvalues of {blocks}{size} samples, extrapolated, short of their limit by up to 30%"
        in made["resolution"]
    )


def test_symbols_alone_need_no_blocks(monkeypatch):
    codes = np.arange(90) % 3
    made = handed_over(monkeypatch, renyi, Renyi(exact_samples=40), [codes], codes)
    assert "exact eigenvalues of 90 samples" in made["resolution"]
    assert made["resolution"].startswith("equality kernels")


def test_notes_of_the_kernels():
    def notes(target, codes, flagged):
        data = _Data([torch.zeros(4, 1)], torch.zeros(4, target), [], np.array(codes))
        return _notes(data, np.array(flagged))

    functional = "a matrix-based functional, not Shannon information"
    assert notes(1, [0] * 4, [False]) == [functional]
    assert notes(0, [0, 1, 0, 1], [False]) == [functional]
    assert notes(0, [0] * 4, [False]) == [functional, "the target takes one value only: it carries no information"]
    assert notes(1, [0] * 4, [True])[1].startswith("kernel matrices near the identity")
    assert not _Data([torch.zeros(4, 0)], torch.zeros(4, 0), [], np.zeros(4, int)).real


def test_no_entropy_and_no_estimate_is_a_negative_zero():
    assert str(entropy(np.array([3.0]))) == "0.0"
    assert str(entropy_estimate(np.zeros(5, int)).value) == "0.0"
    zero = Estimate(-0.0, -0.0, -0.0)
    assert [str(v) for v in (zero.value, zero.low, zero.high)] == ["0.0"] * 3
