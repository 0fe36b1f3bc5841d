"""The Gaussian estimator's formulas beside scipy's densities and sums that are written out."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma
from sklearn.model_selection import KFold, StratifiedKFold

from robgib.information import Gaussian, gaussian
from robgib.information.base import Problem
from robgib.information.decomposition import Prepared
from robgib.information.gaussian import (
    _all_terms,
    _GaussianClassifier,
    _information_bias,
    _leave_group_out,
    _log_det_bias,
    _pointwise,
    not_gaussian,
)
from robgib.information.preprocessing import SALTS, normal_scores, standardised

LOG2 = np.log(2)


def test_pointwise_terms_are_differences_of_log_densities():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    covariance = mixing @ mixing.T + 0.5 * np.eye(6)
    joint = rng.standard_normal((50, 6)) @ np.linalg.cholesky(covariance).T
    got = _pointwise(joint, torch.from_numpy(covariance), [1, 2, 1])

    def density(columns):
        inside = covariance[np.ix_(columns, columns)]
        return stats.multivariate_normal(np.zeros(len(columns)), inside).logpdf((joint - joint.mean(0))[:, columns])

    def information(columns):
        inside, target, both = (
            np.linalg.slogdet(covariance[np.ix_(c, c)])[1] for c in (columns, [4, 5], [*columns, 4, 5])
        )
        return (inside + target - both) / 2 / LOG2

    features = ([0], [1, 2], [3])
    subsets = [[0, 1, 2, 3], *features, *([c for c in range(4) if c not in f] for f in features)]
    for column, subset in zip(got.T, subsets, strict=True):
        expected = (density([*subset, 4, 5]) - density(subset) - density([4, 5])) / LOG2
        assert column == pytest.approx(expected - expected.mean() + information(subset), abs=1e-8)


def largest_score(x, t):
    """The largest of all test statistics in units of its error, and how many tests there are, one by one."""
    x, t = standardised(x), standardised(t)
    samples, dims = x.shape

    def score(values):
        return abs(values.mean()) / (values.std() / np.sqrt(samples))

    scores = []
    for e in standardised(t - x @ np.linalg.lstsq(x, t, rcond=None)[0]).T:
        for moments in (e - e.mean(), e**2 - (e**2).mean()):
            for i, j in itertools.combinations_with_replacement(range(dims), 2):
                scores.append(score(x[:, i] * x[:, j] * moments))
            for i in range(dims):
                scores.append(score((x[:, i] ** 3 - 3 * x[:, i]) * moments))
                squares = sum(x[:, j] ** 2 - 1 for j in range(dims))
                scores.append(score((x[:, i] * squares - 2 * x[:, i]) * moments))
                scores.append(score(x[:, i] * moments))
    for i, column in itertools.product(range(dims), t.T):
        rho = (x[:, i] * column).mean()
        each = (x[:, i] ** 2 - 1) * (column**2 - 1) / 2 - 2 * rho * (x[:, i] * column - rho)
        scores.append(abs(each.mean() - rho**2) / (each.std() / np.sqrt(samples)))
    return max(scores), len(scores)


BENDS = {
    "none": lambda a, b, e: a + b + e,
    "product": lambda a, b, e: a + a * b + e,
    "cube": lambda a, b, e: a**3 - 3 * a + e,
    "radius": lambda a, b, e: a * (b**2 - 1) + e,
    "spread": lambda a, b, e: e * np.exp(a / 2),
    "even": lambda a, b, e: np.abs(a) * np.sign(e),
}


@pytest.mark.parametrize("bend", list(BENDS))
@pytest.mark.parametrize("samples", [100, 150])
def test_the_test_of_a_gaussian_copula_is_bonferronis_of_its_largest_score(bend, samples):
    for seed in range(6):
        a, b, c, e, f = np.random.default_rng([seed, samples]).standard_normal((5, samples))
        x, t = np.stack([a, b, c], 1), np.stack([BENDS[bend](a, b, e), b + f], 1)
        largest, tests = largest_score(x, t)
        level = 2 * tests * stats.norm.sf(largest)
        assert not_gaussian(x, t, level=1.001 * level)
        assert not not_gaussian(x, t, level=0.999 * level)


def test_the_level_is_one_in_a_hundred():
    decided = []
    for seed in (261, 1097):
        a, b, e = np.random.default_rng(seed).standard_normal((3, 200))
        x, t = np.stack([a, b], 1), (a + b + e)[:, None]
        largest, tests = largest_score(x, t)
        level = 2 * tests * stats.norm.sf(largest)
        assert 0.008 < level < 0.0125
        assert not_gaussian(x, t) is bool(level < 0.01)
        decided.append(level < 0.01)
    assert sorted(decided) == [False, True]


def test_few_samples_are_not_tested():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((105, 21))
    t = x[:, :1] * x[:, 1:2]
    largest, tests = largest_score(x, t)
    level = 2 * tests * stats.norm.sf(largest)
    assert not_gaussian(x, t, level=1.001 * level)  # five samples a dimension
    assert not not_gaussian(x[:104], t[:104], level=1.9)
    few = x[:, :2]
    assert not_gaussian(few[:100], t[:100], level=0.5)
    assert not not_gaussian(few[:99], t[:99], level=0.5)
    assert not not_gaussian(np.zeros((200, 1)), t[:1].repeat(200, 0), level=1.9)


def test_samples_that_suffice_for_the_jackknife():
    """Of 23 samples in 20 groups 21 remain, which have 20 degrees of freedom: enough for 19 dimensions, not for 20."""
    rng = np.random.default_rng(0)
    estimator = Gaussian(groups=20)
    with pytest.warns(match="are few for"):
        enough = estimator.estimate([rng.standard_normal((23, 18))], rng.standard_normal(23))
    with pytest.warns(match="are few for"):
        lacking = estimator.estimate([rng.standard_normal((23, 19))], rng.standard_normal(23))
    assert np.isfinite(enough.total.value)
    assert np.isnan(lacking.total.value)


def test_figures_are_flagged_from_95_percent_of_the_ceiling():
    """With noise variance 0.01 the ceiling is log2(101)/2 = 3.33 bits; 2.7 are below 95% of it, 3.33 are not."""
    x, e = np.random.default_rng(1).standard_normal((2, 4000))
    left = 1.01 / 4**2.7 - 0.01  # variance that x leaves of the target, at 2.7 bits with the noise
    below = Gaussian(noise=0.01).estimate([x, e], np.sqrt(1 - left) * x + np.sqrt(left) * x[::-1])
    assert below.total.value == pytest.approx(2.7, abs=0.05)
    assert not below.total.flagged
    at = Gaussian(noise=0.01).estimate([x, e], x)
    assert [f.flagged for f in (at.total, *at.single_feature)] == [True, True, False]


def test_information_about_classes_is_never_below_0():
    rng = np.random.default_rng(2)
    y = rng.integers(2, size=300)
    x = [y + rng.standard_normal(300), *rng.standard_normal((6, 300))]
    found = Gaussian().estimate(x, y)
    others = [f.value for f in found.single_feature[1:]]
    assert found.total.value > 0.05
    assert min(others) == 0
    assert all(v >= 0 for v in others)


@pytest.mark.parametrize("seed", range(6))
def test_the_pooling_of_a_classifier_is_that_of_the_least_validation_loss_with_all_features(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=90)
    x = rng.standard_normal((90, 4)) * (1 + y[:, None] * rng.random(4)) + 0.5 * y[:, None]
    blocks = [slice(0, 1), slice(1, 4)]
    chosen = _GaussianClassifier(x, y, 3, blocks, seed)
    validation = np.random.default_rng(seed).random(90) < 0.25
    trial = _GaussianClassifier(x, y, 3, blocks, seed)
    losses = {}
    for pooling in (0.0, 0.25, 0.5, 0.75, 1.0):
        trial._fit(x[~validation], y[~validation], pooling)
        scores = trial._log_likelihoods(x[validation])
        losses[pooling] = min(
            -trial._answers(scores, y[validation], s, d / 92).mean(1)[0] for s in trial._SHARPNESS for d in (1, 3, 10)
        )
    trial._fit(x, y, min(losses, key=losses.get))
    assert all(np.isclose(share * 92, [1, 3, 10]).any() for share in chosen.prior_share)
    assert chosen.precision == pytest.approx(trial.precision)


def test_the_bias_of_a_log_determinant_is_wisharts():
    # E ln|S| − ln|Σ| with f degrees: the sum of ψ((f − i)/2) over i < d, less d ln(f/2).
    two = digamma(5) + digamma(4.5) - 2 * np.log(5)
    one, three = digamma(5) - np.log(5), digamma(5) + digamma(4.5) + digamma(4) - 3 * np.log(5)
    freedom = np.array([10.0, 1e9])
    assert _log_det_bias(2, freedom) == pytest.approx([two, 0], abs=1e-6)
    assert _information_bias(1, 2, freedom) == pytest.approx([(one + two - three) / 2 / LOG2, 0], abs=1e-6)


def test_covariances_without_each_group():
    rng = np.random.default_rng(0)
    joint, group = rng.standard_normal((23, 3)) @ rng.standard_normal((3, 3)), rng.permutation(23) % 4
    joint = np.hstack([joint, np.ones((23, 1)) / 3])
    covariance, freedom = _leave_group_out(joint, group, 4)
    for got, f, rows in zip(covariance, freedom, [group >= 0, *(group != g for g in range(4))], strict=True):
        expected = np.cov(joint[rows].T)
        expected[3, 3] = 1  # a constant column has variance 1
        assert f == rows.sum() - 1
        assert got.numpy() == pytest.approx(expected + 1e-9 * np.eye(4), abs=1e-12)


def test_all_terms_from_determinants_less_their_bias():
    rng = np.random.default_rng(1)
    covariance = np.stack([a @ a.T + 0.3 * np.eye(6) for a in rng.standard_normal((3, 6, 6))])
    freedom = np.array([30.0, 25.0, 20.0])
    terms, nearest = _all_terms(torch.from_numpy(covariance), freedom, [1, 2, 1], 2)
    features = ([0], [1, 2], [3])
    subsets = [[0, 1, 2, 3], *features, *([c for c in range(4) if c not in f] for f in features)]
    for got, of, f in zip(terms, covariance, freedom, strict=True):
        for value, subset in zip(got, subsets, strict=True):
            dets = [np.linalg.slogdet(of[np.ix_(c, c)])[1] for c in (subset, [4, 5], [*subset, 4, 5])]
            bias = _information_bias(len(subset), 2, np.array([f]))[0]
            assert value == pytest.approx((dets[0] + dets[1] - dets[2]) / 2 / LOG2 - bias)
    scale = np.sqrt(np.diag(covariance[0]))
    assert nearest == pytest.approx(np.linalg.eigvalsh(covariance[0] / np.outer(scale, scale))[0])


def handed_over(monkeypatch, estimator, features, target):
    """What the estimator hands over to be decomposed."""
    seen = {}
    monkeypatch.setattr(gaussian, "decompose", lambda terms, **more: seen.update(terms=terms, **more))
    own = tuple(f.reshape(len(f), -1) for f in features)
    target = target if target.dtype.kind == "i" else target.reshape(len(target), -1)
    estimator._estimate(Problem(Prepared(own, own, {}), target, target))
    return seen


def test_what_is_handed_over_of_a_real_target(monkeypatch):
    rng = np.random.default_rng(2)
    x, t = [rng.standard_normal((60, k)) for k in (1, 2)], rng.standard_normal((60, 2))
    made = handed_over(monkeypatch, Gaussian(noise=0.25, groups=6, seed=3), x, t)
    scores = [normal_scores(v) for v in (*x, t)]
    draws = np.random.default_rng([3, SALTS["gaussian"]])
    joint = np.hstack([*scores[:2], scores[2] + 0.5 * draws.standard_normal((60, 2))])
    covariance, freedom = _leave_group_out(joint, draws.permutation(60) % 6, 6)
    terms, _ = _all_terms(covariance, freedom, [1, 2], 2)
    assert made["terms"] == pytest.approx(terms[0])
    assert made["replicates"] == pytest.approx(terms[1:])
    assert made["replicates"].shape == (6, 5)
    assert made["resolution"] == "target 2 dimensions, noise variance 0.25"
    # √(p/2)/N nats for p = (columns of S) · 2 parameters.
    assert made["floor"] == pytest.approx(np.sqrt(np.array([3, 1, 2, 2, 1]) * 2 / 2) / 60 / LOG2)
    assert made["pointwise"] is None
    assert made["notes"] == []
    assert not made["flagged"].any()


def test_a_target_that_is_a_linear_function_is_flagged_where_it_informs(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 60))
    made = handed_over(monkeypatch, Gaussian(groups=6), [a, b], a)
    assert made["notes"] == ["near-singular: a column is nearly a linear function of the others"]
    assert made["flagged"].tolist() == [True, True, bool(made["terms"][2] > 0), bool(made["terms"][3] > 0), True]


def test_a_figure_of_a_tenth_of_a_bit_is_flagged_where_features_are_collinear(monkeypatch):
    rng = np.random.default_rng(2)
    a, e = rng.standard_normal((2, 60))
    made = handed_over(monkeypatch, Gaussian(groups=6), [a, a], 0.6 * a + e)
    assert 0 < made["terms"][0] < 0.5
    assert made["flagged"][0]


def test_densities_of_a_class_are_scipys():
    rng = np.random.default_rng(3)
    y = rng.integers(3, size=80)
    x = rng.standard_normal((80, 4)) @ rng.standard_normal((4, 4)) + y[:, None]
    blocks = [slice(0, 1), slice(1, 4)]
    model = _GaussianClassifier(x, y, 3, blocks, 0)
    model._fit(x, y, 0.25)
    counts = np.bincount(y)
    assert model.log_prior == pytest.approx(np.log((counts + 0.5) / (counts + 0.5).sum()))
    pooled = sum((counts[c] - 1) * np.cov(x[y == c].T) for c in range(3)) / (80 - 3)
    scores = model._log_likelihoods(x[:10])
    for c in range(3):
        covariance = 0.75 * np.cov(x[y == c].T) + 0.25 * pooled + 1e-3 * np.eye(4)
        for row, columns in zip(scores, ([0, 1, 2, 3], [0], [1, 2, 3], [1, 2, 3], [0]), strict=True):
            law = stats.multivariate_normal(x[y == c].mean(0)[columns], covariance[np.ix_(columns, columns)])
            constant = len(columns) / 2 * np.log(2 * np.pi)
            assert row[:, c] == pytest.approx(law.logpdf(x[:10][:, columns]) + constant)
    three = np.array([[0.0], [2.0], [5.0]])
    model._fit(three, np.array([0, 0, 1]), 1.0)  # one degree of freedom is left; the class of one has the pooled one
    assert model.precision.ravel() == pytest.approx(1 / (2.0 + 1e-3))
    model._fit(three, np.array([0, 0, 1]), 0.0)  # a class of two has its own
    assert model.precision.ravel() == pytest.approx([1 / (2.0 + 1e-3)] * 3)
    alone = _GaussianClassifier(x, y, 3, [slice(0, 4)], 0)._log_likelihoods(x[:10])
    assert (alone.shape, alone[2].any()) == ((3, 10, 3), np.False_)  # without the only feature nothing is known


def test_answers_are_tempered_and_mixed_with_the_prior():
    rng = np.random.default_rng(4)
    y = rng.integers(3, size=60)
    x = rng.standard_normal((60, 2)) + y[:, None]
    model = _GaussianClassifier(x, y, 3, [slice(0, 1), slice(1, 2)], 0)
    scores = rng.standard_normal((5, 60, 3)) * 4
    sharpness, share = rng.random(5), rng.random(5)
    got, prior = model._answers(scores, y, sharpness, share), np.exp(model.log_prior)
    for s, row in enumerate(got):
        chance = prior * np.exp(sharpness[s] * scores[s])
        chance /= chance.sum(1, keepdims=True)
        mixed = (1 - share[s]) * chance + share[s] * prior
        assert row == pytest.approx(np.log(mixed[np.arange(60), y]))
    scores = model._log_likelihoods(x)
    answers = model._answers(scores, y, model.sharpness, model.prior_share)
    assert model.information(x, y) == pytest.approx((answers - model.log_prior[y]).T / LOG2)


def test_what_is_handed_over_of_classes(monkeypatch):
    rng = np.random.default_rng(5)
    y = rng.integers(2, size=100)
    x = [y + 0.1 * rng.standard_normal(100), rng.standard_normal(100)]
    made = handed_over(monkeypatch, Gaussian(seed=1), x, y)
    joint, expected = standardised(np.stack(x, 1)), np.zeros((100, 5))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=1).split(joint, y):
        model = _GaussianClassifier(joint[train], y[train], 2, [slice(0, 1), slice(1, 2)], 1)
        expected[test] = model.information(joint[test], y[test])
    expected[:, expected.mean(0) < 0] = 0
    assert made["pointwise"] == pytest.approx(expected)
    assert made["terms"] == pytest.approx(expected.mean(0))
    assert made["floor"] == pytest.approx(1 / 100 / LOG2)
    assert made["resolution"] == "features 2 dimensions, 2 classes"
    share = np.bincount(y) / 100
    at_ceiling = made["terms"][0] >= 0.98 * -(share * np.log2(share)).sum()
    assert made["notes"] == (["at the ceiling H(Y)"] if at_ceiling else [])
    few = np.array([0] * 96 + [1] * 4)  # fewer of a class than folds: not stratified
    made = handed_over(monkeypatch, Gaussian(seed=1), x, few)
    for train, test in KFold(5, shuffle=True, random_state=1).split(joint, few):
        model = _GaussianClassifier(joint[train], few[train], 2, [slice(0, 1), slice(1, 2)], 1)
        expected[test] = model.information(joint[test], few[test])
    expected[:, expected.mean(0) < 0] = 0
    assert made["pointwise"] == pytest.approx(expected)


def test_where_it_says_that_it_is_not_made_for():
    def outside(features, target):
        own = tuple(features)
        return Gaussian().outside(Problem(Prepared(own, own, {}), target, target))

    rng = np.random.default_rng(0)
    real, codes = rng.standard_normal((12, 2)), rng.integers(3, size=(12, 1))
    assert outside([real, codes], real[:, :1]) == ["1 features are discrete codes, which no Gaussian fits"]
    assert outside([real, real[:, :1]], real[:, :1]) == []  # three samples a dimension
    assert outside([real, real], real[:, :1]) == ["12 samples are few for 5 dimensions"]
    labels = np.arange(40)[:, None] % 2
    assert outside([rng.standard_normal((40, 1))], labels) == []  # twenty a class
    (crowded,) = outside([rng.standard_normal((39, 1))], labels[:39])
    assert crowded.startswith("2 whole numbers are taken as classes, with 20 samples each")
