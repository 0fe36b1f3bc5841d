import numpy as np
import pytest
import torch
from scipy import stats

from robgib import RobGIBError
from robgib.information import Renyi
from robgib.information.renyi import _squared_distances
from robgib.validation.known_variables import gaussian_kernel_entropy, known_distributions
from robgib.validation.tasks import tasks
from robgib.validation.validate import validate

QUICK = Renyi(exact_samples=300)


@pytest.mark.parametrize("name", known_distributions())
def test_equality_kernels_of_order_one_are_the_plug_in(name):
    known = known_distributions()[name]
    found = Renyi(alpha=1).estimate(*known.draw(3000, 0))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=0.03)


def test_entropies_of_a_kernel_matrix_against_scipy():
    """The information itself, before any correction, from eigenvalues found by another route."""
    rng = np.random.default_rng(0)
    x, t = stats.zscore(rng.standard_normal((200, 2)) @ [[1, 0.5], [0, 1]]), rng.standard_normal((200, 1))
    matrices = [np.exp(-((v[:, None] - v[None]) ** 2).sum(2) / (2 * 1.5**2 * v.shape[1])) / 200 for v in (x, t)]
    joint = 200 * matrices[0] * matrices[1]

    def entropy(matrix, alpha=1.01):
        singular = np.linalg.svd(matrix, compute_uv=False)
        return np.log2((singular**alpha).sum()) / (1 - alpha)

    estimator = Renyi()
    for values, matrix in ((x, matrices[0]), (t, matrices[1])):
        exponent = _squared_distances(torch.from_numpy(values)) / (2 * 1.5**2 * values.shape[1])
        assert estimator._entropy(exponent, np.zeros(200, int)) == pytest.approx(entropy(matrix), abs=1e-6)
    assert entropy(joint) >= max(entropy(m) for m in matrices)  # Giraldo et al., proposition 4.1


@pytest.fixture(scope="module")
def spectrum():
    """A covariance, and the eigenvalues above 0 of the kernel matrix of many draws from it."""
    rng = np.random.default_rng(1)
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    x = rng.standard_normal((2500, 2)) @ np.linalg.cholesky(covariance).T
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    values = np.linalg.eigvalsh(np.exp(-squared / 2) / len(x))
    return covariance, values[values > 0]


@pytest.mark.parametrize("alpha", [1, 1.01, 2])
def test_the_closed_form_is_the_limit_of_matrices(alpha, spectrum):
    covariance, values = spectrum
    found = -(values * np.log2(values)).sum() if alpha == 1 else np.log2((values**alpha).sum()) / (1 - alpha)
    assert gaussian_kernel_entropy(covariance, alpha) == pytest.approx(found, abs=0.03)


@pytest.mark.slow
def test_blocks_agree_with_the_exact_matrix_and_with_the_limit():
    task = tasks()["kernel-4x4"]
    sample = task.draw(1000, np.random.default_rng(2))
    whole, blocks = (Renyi(exact_samples=s).estimate(sample.features, sample.target) for s in (1000, 250))
    assert "4 blocks of 250" in blocks.resolution
    for found in (whole, blocks):
        for figure, truth in zip((found.total, *found.single_feature, *found.leave_one_out), sample.truth, strict=True):
            assert figure.low - 0.005 <= truth <= figure.high + 0.005
        assert found.total.high - found.total.low < 0.1


@pytest.mark.slow
def test_many_samples_narrow_the_interval():
    sample = tasks()["kernel-3-features"].draw(10_000, np.random.default_rng(3))
    few = QUICK.estimate([x[:600] for x in sample.features], sample.target[:600])
    many = QUICK.estimate(sample.features, sample.target)
    assert many.total.low <= sample.truth[0] <= many.total.high
    assert many.total.high - many.total.low < 0.6 * (few.total.high - few.total.low)


@pytest.mark.slow
def test_goals_hold_where_it_claims():
    chosen = [tasks()[n] for n in ("random-3x3x3", "kernel-3-features")]
    found = validate([QUICK], chosen, repeats=5)
    assert found["bias"].abs().max() <= 0.05
    assert found["coverage"].mean() >= 0.9
    assert found["null"].min() >= 0.9


def test_classes_and_real_features():
    rng = np.random.default_rng(4)
    y = rng.integers(2, size=500)
    x = [y + 0.3 * rng.standard_normal(500), rng.standard_normal(500)]
    found = QUICK.estimate(x, y)
    assert found.single_feature[0].low > 0.2
    assert abs(found.single_feature[1].value) < 0.05
    assert "not Shannon" in found.notes[0]


def test_duplicated_and_constant_features():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 1))
    target = x + 0.5 * rng.standard_normal((400, 1))
    found = QUICK.estimate([x, x.copy(), np.zeros((400, 1))], target)
    assert found.leave_one_out[0].value == pytest.approx(found.single_feature[1].value, abs=0.02)
    assert found.single_feature[2].value == 0
    assert found.interaction[2].value == pytest.approx(0, abs=1e-9)


def test_nothing_to_tell_and_too_few():
    rng = np.random.default_rng(6)
    x = [rng.standard_normal(100), rng.standard_normal(100)]
    one = QUICK.estimate(x, np.zeros(100, int))
    assert (one.total.value, one.synergy.value) == (0, 0)
    assert any("one value only" in n for n in one.notes)
    crowded = QUICK.estimate([np.arange(100), np.arange(100) % 7], np.arange(100))
    assert crowded.total.flagged
    with pytest.raises(RobGIBError, match="too few for the renyi estimator"):
        QUICK.estimate([x[0][:20]], x[1][:20])
    weighted = QUICK.estimate(x, rng.integers(2, size=100), weights=rng.random(100))
    assert np.isnan(weighted.total.value)
    assert "no pointwise terms" in weighted.total.note


def test_the_same_twice():
    rng = np.random.default_rng(7)
    x, t = [rng.standard_normal((200, 2)) for _ in range(2)], rng.standard_normal((200, 1))
    assert QUICK.estimate(x, t) == QUICK.estimate(x, t)


@pytest.mark.parametrize("option", ["alpha", "width", "exact_samples", "shuffles"])
def test_bad_options(option):
    with pytest.raises(RobGIBError, match=option):
        Renyi(**{option: 0})
