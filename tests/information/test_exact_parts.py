"""Parts that several estimators use, beside sums by hand and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtri
from sklearn.cluster import KMeans

from robgib import RobGIBError
from robgib.information import Exact
from robgib.information.loss_comparison import LossComparison, Separate, _standard_components
from robgib.information.masked_network import subsets
from robgib.information.preprocessing import (
    SALTS,
    codebook,
    columns_or_codes,
    default_size,
    encode,
    k_means,
    normal_scores,
    relabel,
    standardised,
)
from robgib.information.stacking import Stack, stacked


@pytest.mark.parametrize(
    "rows",
    [
        np.array([7, -3, 7, 2_000_000, 0]),  # too far apart for a table
        np.arange(40) * 3 % 17 - 5,
        np.array([0.5, -0.0, 0.0, 0.5, -1.0]),
        np.array([True, False, True]),
        np.array(["b", "a", "b"]),
        np.random.default_rng(0).integers(-2, 3, (60, 3)),
        np.random.default_rng(1).integers(0, 2, (50, 9)) / 2,
        np.random.default_rng(2).standard_normal((30, 4)),  # all different in the first column
        np.array([[1.0, 0.0], [1.0, -0.0], [0.0, 5.0]]),
        np.ones((4, 1)),
    ],
)
def test_rows_are_numbered_as_they_are_sorted(rows):
    expected = np.unique(rows, axis=0 if rows.ndim == 2 else None, return_inverse=True)[1].reshape(-1)
    found = relabel(rows)
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()


def test_standardised_columns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3)) * [1, 1e-13, 5] + [0, 7, 1e6]
    x[:, 1] = 7.0
    found = standardised(x)
    assert found[:, [0, 2]] == pytest.approx(stats.zscore(x[:, [0, 2]]), abs=1e-6)
    assert not found[:, 1].any()
    values, codes = columns_or_codes(x)
    assert (values.shape, codes.tolist()) == ((20, 2), [0] * 20)
    # A deviation counts from 1e-12 of the largest value, or of 1: these are 0.9e-12 and 1.1e-12 of them.
    for size in (1.0, 1e-3, 100.0):
        for share, varies in ((0.9, False), (1.1, True)):
            pair = np.array([[1.0], [-1.0]]) * share * 1e-12 * max(size, 1)
            assert standardised(np.hstack([pair, [[size], [size]]]))[:, 0].any() == varies
    zeros = standardised(np.zeros((3, 1)))
    assert zeros.tolist() == [[0.0]] * 3
    values, codes = columns_or_codes(np.array([[5], [3], [5]]))
    assert (values.shape, codes.tolist()) == ((3, 0), [1, 0, 1])


def test_normal_scores_of_what_is_not_normal():
    rng = np.random.default_rng(1)
    normal, skewed = rng.standard_normal(200), rng.exponential(size=200)
    found = normal_scores(np.stack([normal, skewed, np.ones(200)], 1))
    assert found[:, 0] == pytest.approx(stats.zscore(normal))  # it passes for normal: only scaled
    assert found[:, 1] == pytest.approx(stats.zscore(ndtri(stats.rankdata(skewed) / 201)))
    assert not found[:, 2].any()
    few = rng.standard_normal((19, 1))  # too few to test: ranked
    assert normal_scores(few)[:, 0] == pytest.approx(stats.zscore(ndtri(stats.rankdata(few[:, 0]) / 20)))
    twenty = rng.standard_normal((20, 1))
    assert stats.normaltest(twenty[:, 0]).pvalue > 1e-3
    assert normal_scores(twenty)[:, 0] == pytest.approx(stats.zscore(twenty[:, 0]))


def test_a_thousandth_decides_what_is_not_normal():
    """Of two columns, one to each side of p = 0.1% and within a tenth of it."""
    normal = stats.norm.ppf((np.arange(60) + 0.5) / 60)

    def p(power):
        return float(stats.normaltest(np.exp(power * normal)).pvalue)

    low, high = 0.0, 1.0
    for _ in range(40):
        low, high = ((low + high) / 2, high) if p((low + high) / 2) > 1e-3 else (low, (low + high) / 2)
    for power, kept in ((0.995 * low, True), (1.005 * low, False)):
        assert 0.9e-3 < p(power) < 1.1e-3
        values = np.exp(power * normal)
        expected = stats.zscore(values) if kept else stats.zscore(ndtri(np.arange(1, 61) / 61))
        assert normal_scores(values[:, None])[:, 0] == pytest.approx(expected)


def test_random_numbers_of_each_estimator_are_its_own():
    assert SALTS == {"binned": 1, "gaussian": 2, "infonce": 3, "ksg": 4, "renyi": 6, "flow": 8}


def test_the_sizes_of_codes():
    assert [default_size(n) for n in (1, 64, 91, 92, 1000, 4096, 10_000)] == [4, 4, 4, 5, 10, 16, 16]


def test_codes_of_values():
    fit = np.arange(12.0)[:, None]
    # Quartiles of 0 … 11 are 2.75, 5.5 and 8.25; a value on an edge belongs to the upper part.
    assert encode(np.array([[0.0], [2.75], [5.4], [5.5], [8.3], [99.0]]), fit, 4, 0).tolist() == [0, 1, 1, 2, 3, 3]
    assert encode(np.array([[4], [2], [4]]), fit, 4, 0).tolist() == [1, 0, 1]  # symbols are kept
    assert encode(fit[:4], fit[:4], 4, 0).tolist() == [0, 1, 2, 3]  # no more values than codes
    assert len(set(encode(fit, np.repeat(fit[:3], 4, axis=0), 3, 0).tolist())) == 12
    with pytest.raises(RobGIBError, match="5 codes need at least as many samples to fit them on, not 4"):
        encode(fit, fit[:4], 5, 0)
    plane = np.random.default_rng(0).standard_normal((60, 2))
    expected = KMeans(3, n_init=1, max_iter=60, random_state=5).fit(plane).predict(plane[:7])
    assert encode(plane[:7], plane, 3, 5).tolist() == expected.tolist()
    many = np.random.default_rng(0).standard_normal((2 * 256 * 3, 1))  # every second one is learnt on
    assert k_means(many, 3, 0).cluster_centers_ == pytest.approx(
        KMeans(3, n_init=1, max_iter=60, random_state=0).fit(many[::2]).cluster_centers_
    )
    assert relabel(np.array([[1, 2], [0, 5], [1, 2]])).tolist() == [1, 0, 1]


PLACES = ([0, 1, 2, 3], [1, 2, 3], [0, 3], [0, 1, 2])


def test_a_codebook_without_a_feature_takes_the_nearest_of_the_others():
    rng = np.random.default_rng(0)
    features, fit = [[rng.standard_normal((n, d)) for d in (1, 2, 1)] for n in (9, 40)]
    centres = KMeans(4, n_init=1, max_iter=60, random_state=3).fit(np.hstack(fit)).cluster_centers_
    x = np.hstack(features)
    expected = [((x[:, None, kept] - centres[:, kept]) ** 2).sum(2).argmin(1) for kept in PLACES]
    assert [c.tolist() for c in codebook(features, fit, 4, 3)] == [c.tolist() for c in expected]
    with pytest.raises(RobGIBError, match="41 codes need at least as many samples to fit them on, not 40"):
        codebook(features, fit, 41, 3)


def mixture(own, mass, weights, rounds):
    """Expectation and maximisation of one question's weights, sample by sample; the last has half a sample's weight."""
    count = own.shape[0]
    for _ in range(rounds):
        shares = np.zeros(count)
        for n in range(own.shape[1]):
            total = sum(weights[j] * own[j, n] for j in range(count))
            shares += [mass[n] * weights[j] * own[j, n] / total for j in range(count)]
        shares[-1] += 0.5
        weights = shares / (mass.sum() + 0.5)
    return weights


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_a_mixture_are_found_on_the_other_folds(weighted):
    rng = np.random.default_rng(0)
    own, fold = rng.random((2, 3, 15)), np.arange(15) % 5
    mass = rng.random(15) * 2 if weighted else np.ones(15)
    stack = Stack(fold, mass if weighted else None).fit(own)
    bits = stack.log_probabilities(own)
    assert stack.weights.shape == (5, 2, 3)
    for g in range(2):
        for f in range(5):
            kept = fold != f
            expected = mixture(own[g][:, kept], mass[kept], np.full(3, 1 / 3), 40)
            assert stack.weights[f, g] == pytest.approx(expected)
            assert bits[g, fold == f] == pytest.approx(np.log2(expected @ own[g][:, fold == f]))
            again = mixture(own[1 - g][:, kept], mass[kept], expected, 12)
            assert stack.again(own[::-1])[g, fold == f] == pytest.approx(np.log2(again @ own[1 - g][:, fold == f]))
        best = mixture(own[g], mass, np.full(3, 1 / 3), 40)
        assert stack.optimism(own)[g] == pytest.approx((mass * (np.log2(best @ own[g]) - bits[g])).mean())
    if not weighted:
        assert stacked(own, fold) == pytest.approx(bits)
    assert stacked(np.zeros((1, 2, 10)), np.arange(10) % 5) == pytest.approx(np.log2(1e-12))


def test_every_outcome_with_its_weight():
    x, y = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = Exact(weights=[3.0, 1.0, 1.0, 3.0]).estimate([x], y)
    p = np.array([[3, 1], [1, 3]]) / 8
    assert found.total.value == pytest.approx((p * np.log2(4 * p)).sum())
    both = Exact(weights=[3.0, 1.0, 1.0, 3.0]).estimate([x], y, weights=[1.0, 3.0, 3.0, 1.0])
    assert both.total.value == pytest.approx(0, abs=1e-12)
    assert "every outcome, values as they are" in found.resolution
    half = Exact(weights=[0.5, 0.0, 0.0, 0.4]).estimate([x], y)  # a sum below 1, and outcomes that never come
    assert half.total.value == pytest.approx(stats.entropy([5, 4], base=2))
    for wrong in ([1.0], [1.0, -1, 1, 1], [0.0] * 4):
        with pytest.raises(RobGIBError, match="weights must be 4 numbers of at least 0"):
            Exact(weights=wrong).estimate([x], y)


def test_every_outcome_of_real_values_in_bins():
    x = np.linspace(0, 1, 41)
    exact = Exact(bins=4)
    symbols = np.minimum((x * 4).astype(int), 3)
    assert exact._symbols(x[:, None]).tolist() == symbols.tolist()
    assert exact._symbols(3 - 2 * x[:, None]).tolist() == (np.minimum(((1 - x) * 4), 3).astype(int)).tolist()
    assert exact._symbols(np.array([[0.0], [0.01], [0.02], [1.0]])).tolist() == [0, 1, 2, 3]  # no more than bins: kept
    assert (Exact().bins, Exact.least_samples) == (30, 1)
    units = exact.of_units(np.arange(24.0).reshape(4, 3, 2), np.arange(12.0).reshape(2, 3, 2), 2)
    assert [v.shape for v in units.values] == [(4, 3), (4, 3)]
    assert exact._symbols(np.arange(9)[:, None]).tolist() == list(range(9))
    found = exact.estimate([x], x)
    assert found.total.value == pytest.approx(stats.entropy(np.bincount(symbols), base=2))
    assert found.resolution == "every outcome, real values in 4 bins"


def test_components_of_a_subset():
    x = np.random.default_rng(0).standard_normal((30, 4)) * [5, 1, 2, 0.1]
    centred = x - x.mean(0)
    scores = centred @ np.linalg.svd(centred)[2][:3].T
    found = _standard_components(x, 3)
    assert np.abs(found) == pytest.approx(np.abs(scores / scores[:, 0].std()))
    assert not _standard_components(np.ones((5, 2)), 3).any()


def test_networks_of_a_subset_each():
    features = tuple(np.random.default_rng(i).standard_normal((20, d)) for i, d in enumerate((1, 2)))
    columns = LossComparison(components=2)._prepare(features, features)
    network = columns.network()
    assert torch.equal(network.masks, subsets(2))
    assert (network.levels, tuple(network.values.shape)) == (5, (5, 20, 2))
    for of, mask, wide in zip(network.values, network.masks.bool(), (2, 1, 2, 2, 1), strict=True):
        shown = np.hstack([c.numpy() for c, kept in zip(columns.of, mask, strict=True) if kept])
        expected = _standard_components(shown, 2)
        assert expected.shape[1] == wide
        assert of[:, :wide].numpy() == pytest.approx(expected, abs=1e-5)
        assert not of[:, wide:].any()
    assert [network.levels_of(m) for m in network.masks] == [[0], [1], [2], [2], [1]]  # the first of equal subsets
    assert network.decay(3).shape == (15, 1, 1)
    assert network.decay(3).flatten().tolist() == pytest.approx([0.3] * 15)
    gates, *rest = network.start(3, [4, 6], torch.Generator().manual_seed(0))
    assert torch.equal(gates, torch.ones(15, 1, 2))
    assert [tuple(p.shape) for p in rest] == [(15, 2, 4), (15, 1, 4), (15, 4, 6), (15, 1, 6)]
    rows = torch.tensor([[0, 3], [1, 1], [9, 2]])
    identity = [torch.full((15, 1, 2), 2.0), torch.eye(2).repeat(15, 1, 1), torch.zeros(15, 1, 2)]
    out = network(identity, rows, torch.zeros(0))
    for s in range(5):
        for f in range(3):
            assert torch.allclose(out[3 * s + f], 2 * network.values[s][rows[f]])
    assert isinstance(network.to(torch.device("cpu")), Separate)
    one = LossComparison()._prepare(features[:1], features[:1]).network()
    assert not one.values[2].any()  # of nothing there is a column of zeros
    assert one.values.shape == (3, 20, 1)
    assert type(columns)(columns.of, (0, 0), 0).most == 8
    assert (LossComparison().components, LossComparison().width, LossComparison().steps) == (8, 64, 800)
