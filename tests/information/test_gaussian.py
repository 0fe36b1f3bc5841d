import numpy as np
import pytest

from robgib import RobGIBError, RobGIBWarning
from robgib.information import Gaussian
from robgib.validation.tasks import tasks

LOG2 = np.log(2)


def log_det(matrix):
    return np.linalg.slogdet(matrix)[1] if len(matrix) else 0.0


def gaussian_information(covariance, a, b):
    a, b = list(a), list(b)
    blocks = (covariance[np.ix_(i, i)] for i in (a, b, a + b))
    of_a, of_b, joint = map(log_det, blocks)
    return (of_a + of_b - joint) / 2 / LOG2


def draw(covariance, samples, rng):
    return rng.standard_normal((samples, len(covariance))) @ np.linalg.cholesky(covariance).T


def test_the_gaussian_row():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10_000, 2))
    found = Gaussian().estimate([x[:, 0], x[:, 1]], x.sum(1) + rng.standard_normal(10_000))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((0.7925, 0.2075, 0.5850), abs=0.02)


def test_bias_and_coverage_on_random_covariances():
    rng = np.random.default_rng(1)
    sizes, errors, covered = (3, 2, 4), [], []
    groups = [range(0, 3), range(3, 5), range(5, 9)]
    for _ in range(60):
        a = rng.standard_normal((11, 14))
        covariance = a @ a.T
        total = gaussian_information(covariance, range(9), (9, 10))
        singles = [gaussian_information(covariance, g, (9, 10)) for g in groups]
        rests = [gaussian_information(covariance, sorted(set(range(9)) - set(g)), (9, 10)) for g in groups]
        synergy = total - np.mean(singles) - np.mean(rests)
        values = draw(covariance, 1000, rng)
        features = np.split(values[:, :9], np.cumsum(sizes)[:-1], axis=1)
        found = Gaussian().estimate(features, values[:, 9:])
        errors.append([found.total.value - total, found.synergy.value - synergy])
        covered.append(
            [
                found.total.low <= total <= found.total.high,
                found.synergy.low <= synergy <= found.synergy.high,
                found.single_feature[1].low <= singles[1] <= found.single_feature[1].high,
                found.leave_one_out[2].low <= rests[2] <= found.leave_one_out[2].high,
            ]
        )
    assert np.abs(np.mean(errors, 0)).max() < 0.05
    share = np.mean(covered)  # 240 intervals
    assert 0.90 <= share <= 0.99


def test_one_pass_equals_separate_fits():
    """The 2n+1 terms of one pass are what 2n+1 fits on the subsets give."""
    rng = np.random.default_rng(2)
    x = [rng.standard_normal((400, d)) for d in (1, 2, 3, 2)]
    target = np.hstack(x) @ rng.standard_normal((8, 2)) + rng.standard_normal((400, 2))
    found = Gaussian().estimate(x, target)
    for i in range(4):
        single = Gaussian().estimate([x[i]], target).total
        rest = Gaussian().estimate([np.hstack([v for j, v in enumerate(x) if j != i])], target).total
        for one_pass, alone in ((found.single_feature[i], single), (found.leave_one_out[i], rest)):
            assert one_pass.value == pytest.approx(alone.value, abs=1e-6)
            assert one_pass.low == pytest.approx(alone.low, abs=1e-6)


def test_shrinkage_would_bias_the_information():
    """Why covariances are not shrunk: at these sizes Ledoit-Wolf's shrinkage costs bits, the correction none."""
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((32, 4)) / 6
    covariance = np.block([[np.eye(32), mixing], [mixing.T, mixing.T @ mixing + 0.1 * np.eye(4)]])
    truth = gaussian_information(covariance, range(32), range(32, 36))
    shrunk, corrected = [], []
    for _ in range(10):
        values = draw(covariance, 500, rng)
        shrunk.append(gaussian_information(ledoit_wolf(values / values.std(0))[0], range(32), range(32, 36)))
        corrected.append(Gaussian().estimate([values[:, :32]], values[:, 32:]).total.value)
    assert abs(np.mean(corrected) - truth) < 0.1
    assert np.mean(shrunk) < truth - 0.5


@pytest.mark.slow
def test_shuffled_targets_contain_zero():
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(40):
        x = [rng.standard_normal((300, 4)) for _ in range(5)]
        target = np.hstack(x)[:, :3]
        found = Gaussian().estimate(x, target[rng.permutation(300)])
        labels = Gaussian().estimate(x, rng.integers(3, size=300))
        hits += [e.low <= 0 <= e.high for e in (found.total, found.synergy, labels.total, labels.synergy)]
    assert np.mean(hits) >= 0.93


def test_marginal_transformations_change_nothing():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((500, 3))
    target = x.sum(1) + rng.standard_normal(500)
    one = Gaussian().estimate(list(np.exp(x).T), np.exp(target))
    other = Gaussian().estimate(list((np.exp(x) ** 3).T), -1 / np.exp(target))
    assert other.total.value == pytest.approx(one.total.value, abs=1e-9)
    assert other.synergy.value == pytest.approx(one.synergy.value, abs=1e-9)
    plain = Gaussian().estimate(list(x.T), target)
    assert plain.total.low <= one.total.value <= plain.total.high


class TestClasses:
    def mixture(self, samples, rng, gap=1.0):
        """Two features of 2 dimensions; classes differ in mean along both and share a covariance."""
        y = rng.integers(2, size=samples)
        means = np.array([[-gap, 0, -gap, 0], [gap, 0, gap, 0]])
        covariance = np.eye(4)
        covariance[0, 2] = covariance[2, 0] = 0.5
        values = draw(covariance, samples, rng) + means[y]
        return values, y, means, covariance

    def truth(self, means, covariance, rng, dims):
        """Monte Carlo of I(X_S;Y) from the true densities."""
        from scipy.stats import multivariate_normal

        values, y, *_ = self.mixture(200_000, rng, gap=means[1, 0])
        inside = covariance[np.ix_(dims, dims)]
        log_p = np.stack([multivariate_normal(m[dims], inside).logpdf(values[:, dims]) for m in means], 1)
        posterior = log_p - np.logaddexp(log_p[:, 0], log_p[:, 1])[:, None]
        return 1 + posterior[np.arange(len(y)), y].mean() / LOG2

    @pytest.mark.slow
    def test_against_the_true_densities(self):
        rng = np.random.default_rng(6)
        _, _, means, covariance = self.mixture(10, rng)
        total = self.truth(means, covariance, rng, [0, 1, 2, 3])
        single = self.truth(means, covariance, rng, [0, 1])
        errors, covered = [], []
        for seed in range(20):
            values, y, *_ = self.mixture(2000, rng)
            found = Gaussian(seed=seed).estimate([values[:, :2], values[:, 2:]], y)
            # Leaving one of two features out leaves the other.
            assert found.leave_one_out[1].value == pytest.approx(found.single_feature[0].value, abs=0.01)
            errors.append([found.total.value - total, found.single_feature[0].value - single])
            covered.append(found.total.low <= total <= found.total.high)
        assert np.abs(np.mean(errors, 0)).max() < 0.02
        assert np.mean(covered) >= 0.85

    def test_one_pass_subsets_equal_classifiers_fitted_on_them(self):
        from robgib.information.gaussian import _GaussianClassifier

        rng = np.random.default_rng(7)
        values, y, *_ = self.mixture(500, rng)
        blocks = [slice(0, 1), slice(1, 3), slice(3, 4)]
        whole = _GaussianClassifier(values, y, 2, blocks, 0)
        whole._fit(values, y, 0.5)
        rest = _GaussianClassifier(values[:, [0, 3]], y, 2, [slice(0, 2)], 0)
        rest._fit(values[:, [0, 3]], y, 0.5)
        got, expected = whole._log_likelihoods(values)[5], rest._log_likelihoods(values[:, [0, 3]])[0]
        assert got == pytest.approx(expected, abs=1e-8)

    def test_never_more_than_the_labels_hold(self):
        rng = np.random.default_rng(8)
        values, y, *_ = self.mixture(600, rng, gap=30.0)
        found = Gaussian().estimate([values[:, :2], values[:, 2:]], y)
        assert 0.98 <= found.total.value <= 1.001
        assert "ceiling" in found.notes[0]

    def test_one_class_only(self):
        found = Gaussian().estimate([np.arange(50.0)], np.zeros(50, int))
        assert found.total.value == 0
        assert "one value only" in found.notes[0]


def test_too_few_samples_is_said_and_not_guessed():
    rng = np.random.default_rng(9)
    with pytest.warns(RobGIBWarning, match="30 samples are few for 44 dimensions"):
        found = Gaussian().estimate([rng.standard_normal((30, 40))], rng.standard_normal((30, 4)))
    assert np.isnan(found.total.value)
    assert "too few" in found.total.note


def test_constant_and_duplicated_features():
    rng = np.random.default_rng(10)
    x = rng.standard_normal(500)
    target = x + rng.standard_normal(500)
    constant = Gaussian().estimate([x, np.zeros(500)], target)
    assert constant.single_feature[1].value == pytest.approx(0, abs=0.01)
    twice = Gaussian().estimate([x, x], target)
    assert twice.total.flagged
    assert "near-singular" in twice.notes[0]
    assert np.isfinite(twice.total.value)


def test_a_deterministic_target_is_finite_at_a_noise_level_and_saturated():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((1000, 2))
    found = Gaussian(noise=0.01).estimate([x[:, 0], x[:, 1]], x)
    assert found.total.value == pytest.approx(np.log2(101), abs=0.1)
    assert found.total.flagged
    assert "noise variance 0.01" in found.resolution


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_refused(bad):
    values = np.ones(50)
    values[3] = bad
    with pytest.raises(RobGIBError, match="feature 0 has NaN or infinite values in 1 of 50"):
        Gaussian().estimate([values], np.arange(50.0))


def test_lengths_must_agree():
    with pytest.raises(RobGIBError, match="feature 1 has 40 samples and feature 0 50"):
        Gaussian().estimate([np.ones(50), np.ones(40)], np.arange(50.0))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("gaussian-row", 0, 0.1), ("half-cube", 0, 0.1), ("spiral", 0.8, 1), ("student-t3", 0.8, 1),
     ("additive-noise", 0.8, 1)],
)  # fmt: skip
def test_a_copula_that_is_not_gaussian_is_marked(name, least, most):
    seen = []
    for seed in range(20):
        sample = tasks()[name].draw(2000, np.random.default_rng([seed, 9]))
        found = Gaussian().estimate(sample.features, sample.target)
        seen.append(found.total.flagged)
        assert found.total.flagged == any("copula is not Gaussian" in n for n in found.notes)
    assert least <= np.mean(seen) <= most


def test_whole_numbers_that_are_a_quantity_are_marked():
    """0.37 of 0.79 bits, unmarked: each of 230 values was taken for a class."""
    a, b, noise = np.random.default_rng(0).standard_normal((3, 1000))
    target = np.round(30 * (a + b + noise)).astype(int)
    with pytest.warns(RobGIBWarning, match="give a quantity as real numbers"):
        told = Gaussian().estimate([a, b], target)
    assert told.total.high < 0.7
    assert any("whole numbers are taken as classes" in note for note in told.notes)
    real = Gaussian().estimate([a, b], target.astype(float))
    assert real.total.low < 0.5 * np.log2(3) < real.total.high
    assert not real.notes
