import numpy as np
import pytest

from robgib import RobGIBError
from robgib.information import Flow
from robgib.validation.known_networks import known_networks
from robgib.validation.tasks import tasks
from robgib.validation.validate import validate

QUICK = Flow(steps=100)


def terms(found):
    return np.array([e.value for e in (found.total, *found.single_feature, *found.leave_one_out)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian-row", "gaussian-3-features"])
def test_gaussian_variables(name):
    sample = tasks()[name].draw(2000, np.random.default_rng(0))
    found = Flow().estimate(sample.features, sample.target)
    assert terms(found) == pytest.approx(sample.truth, abs=0.06)
    assert found.total.low <= sample.truth[0] <= found.total.high


@pytest.mark.slow
def test_it_learns_what_no_linear_law_has():
    """T is the square of X with noise, beside an idle feature: no correlation tells of it."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2000, 2))
    target = x[:, :1] ** 2 + 0.3 * rng.standard_normal((2000, 1))
    found = Flow(steps=400).estimate([x[:, 0], x[:, 1]], target)
    # h(T) − h(noise), by the density of a sum integrated on a grid.
    grid = np.linspace(-2, 30, 32_001)
    z = rng.standard_normal(4000) ** 2
    density = np.mean([np.exp(-((grid - c) ** 2) / 0.18) for c in z], 0) / np.sqrt(0.18 * np.pi)
    entropy = -np.trapezoid(density * np.log2(np.maximum(density, 1e-300)), grid)
    truth = entropy - 0.5 * np.log2(2 * np.pi * np.e * 0.09)
    assert found.total.value > 0.7 * truth
    assert found.total.low <= truth <= found.total.high
    assert found.single_feature[1].value == pytest.approx(0, abs=0.03)


@pytest.mark.slow
def test_a_shuffled_target_tells_nothing():
    inside = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        found = QUICK.estimate([rng.standard_normal(500) for _ in range(3)], rng.standard_normal((500, 2)))
        inside.append(found.total.low <= 0 <= found.total.high)
    assert all(inside)


@pytest.mark.slow
def test_known_networks():
    """The contraction is seen, and the linear layers' closed forms are met for every subset."""
    chosen = [known_networks()[name] for name in ("contraction", "linear")]
    table = validate([Flow()], chosen, repeats=5).set_index(["task", "figure"])
    assert (table["verdict"] == "holds").all()
    assert table.loc[("contraction/before", "C(X;Z)"), "truth"] == pytest.approx(5.08, abs=0.02)
    assert table.loc[("contraction/after", "C(X;Z)"), "truth"] == pytest.approx(1.825, abs=0.02)
    assert table["bias"].abs().max() < 0.1


def test_classes_are_not_its_matter():
    rng = np.random.default_rng(2)
    found = QUICK.estimate([rng.standard_normal(200)], rng.integers(3, size=200))
    assert np.isnan(found.total.value)
    assert "see probe" in found.total.note


def test_without_its_package(monkeypatch):
    import importlib

    def missing(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RobGIBError, match=r"needs the zuko package; pip install 'robgib\[flow\]'"):
        Flow()


def test_same_seed_same_answer():
    rng = np.random.default_rng(3)
    x, target = rng.standard_normal((300, 2)), rng.standard_normal((300, 2))
    first, again = (Flow(steps=10).estimate([x], target + x) for _ in range(2))
    assert terms(first).tolist() == terms(again).tolist()
