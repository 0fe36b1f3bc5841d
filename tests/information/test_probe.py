import numpy as np
import pytest
import torch

from robgib import RobGIBError
from robgib.information import Probe
from robgib.validation.known_variables import known_distributions
from robgib.validation.tasks import tasks
from robgib.validation.validate import validate

QUICK = Probe(steps=300, width=48)


@pytest.mark.slow
def test_finds_the_exclusive_or_hidden_in_sixteen_features():
    sample = tasks()["hidden-xor"].draw(5000, np.random.default_rng(1))
    found = Probe().estimate(sample.features, sample.target)
    interaction = np.array([e.value for e in found.interaction])
    pair = sample.truth[17:] == 0  # what is left without one of the two tells nothing
    assert pair.sum() == 2
    assert (interaction[pair] > 0.8).all()
    assert (interaction[pair] <= 1.001).all()
    assert (np.abs(interaction[~pair]) < 0.1).all()


@pytest.mark.parametrize(
    ("name", "probe", "samples"),
    [
        ("xor", QUICK, 2000),
        *(pytest.param(n, Probe(), 5000, marks=pytest.mark.slow) for n in ("xor", "and", "concatenation", "majority")),
    ],
)
def test_known_distributions(name, probe, samples):
    known = known_distributions()[name]
    found = probe.estimate(*known.draw(samples, 0))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=0.05)


@pytest.mark.slow
def test_classes_against_the_true_densities():
    table = validate([Probe()], [tasks()["mixture-2-classes"]], repeats=3).set_index("figure")
    assert table["bias"].abs().max() <= 0.05


@pytest.mark.slow
def test_shuffled_targets_contain_zero():
    rng = np.random.default_rng(0)
    hits = []
    for seed in range(8):
        x = [rng.standard_normal((400, 2)) for _ in range(4)]
        found = Probe(steps=300, width=48, seed=seed).estimate(x, rng.integers(3, size=400))
        hits += [e.low <= 0 <= e.high for e in (found.total, found.synergy)]
    assert np.mean(hits) >= 0.93


def test_deterministic_and_leaves_the_global_generator():
    rng = np.random.default_rng(1)
    x, y = [rng.standard_normal((300, 2)) for _ in range(3)], rng.integers(2, size=300)
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    one, two = QUICK.estimate(x, y), QUICK.estimate(x, y)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert one == two


def test_a_real_target_is_coded():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1500, 2))
    found = QUICK.estimate([x[:, [0]], x[:, [1]]], x[:, [0]] + 0.1 * rng.standard_normal((1500, 1)))
    assert "target 11 codes" in found.resolution
    assert found.single_feature[0].value > 1.5
    assert abs(found.single_feature[1].value) < 0.1


def test_one_class_and_too_few_samples():
    rng = np.random.default_rng(3)
    x = [rng.standard_normal(100)]
    assert QUICK.estimate(x, np.zeros(100, int)).total.value == 0
    crowded = QUICK.estimate(x, np.arange(100))
    assert np.isnan(crowded.total.value)
    assert "too few" in crowded.total.note
    with pytest.raises(RobGIBError, match="samples are too few for the probe estimator"):
        QUICK.estimate([rng.standard_normal(20)], rng.integers(2, size=20))


def test_constant_and_duplicated_features():
    rng = np.random.default_rng(4)
    y = rng.integers(2, size=600)
    x = y + 0.3 * rng.standard_normal(600)
    found = QUICK.estimate([x, x.copy(), np.zeros(600)], y)
    assert found.single_feature[2].value == pytest.approx(0, abs=0.01)
    # Either copy alone tells what both do: II = -I of the one.
    assert found.interaction[0].value == pytest.approx(-found.single_feature[0].value, abs=0.05)


@pytest.mark.parametrize("option", ["folds", "width", "steps", "batch"])
def test_bad_options(option):
    with pytest.raises(RobGIBError, match=option):
        Probe(**{option: 0})
