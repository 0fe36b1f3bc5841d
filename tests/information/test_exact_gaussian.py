"""The Gaussian estimator's formulas beside scipy's densities and sums that are written out."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from robgib.information import Gaussian
from robgib.information.gaussian import _GaussianClassifier, _pointwise, not_gaussian
from robgib.information.preprocessing import standardised

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
    assert chosen.precision == pytest.approx(trial.precision)
