import numpy as np
import pytest

from robgib import RobGIBError
from robgib.information import InfoNCE
from robgib.validation.known_variables import known_distributions
from robgib.validation.tasks import tasks

QUICK = InfoNCE(steps=300, width=48)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copy", "xor", "sum"])
def test_known_distributions(name):
    known = known_distributions()[name]
    found = InfoNCE().estimate(*known.draw(4000, 0))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=0.05)


@pytest.mark.slow
def test_gaussian_target_without_codes():
    sample = tasks()["gaussian-row"].draw(2000, np.random.default_rng(0))
    found = InfoNCE(steps=800).estimate(sample.features, sample.target)
    assert "codes" not in found.resolution
    for figure, truth in zip((found.total, *found.single_feature, *found.leave_one_out), sample.truth, strict=True):
        assert figure.low <= truth <= figure.high
        assert figure.value > truth - 0.15


@pytest.mark.slow
def test_shuffled_targets_contain_zero():
    rng = np.random.default_rng(1)
    hits = []
    for seed in range(8):
        x, target = [rng.standard_normal((400, 2)) for _ in range(3)], rng.standard_normal((400, 2))
        found = InfoNCE(steps=200, width=48, seed=seed).estimate(x, target)
        hits += [e.low <= 0 <= e.high for e in (found.total, found.synergy)]
    assert np.mean(hits) >= 0.93


@pytest.mark.slow
def test_a_deterministic_target_is_marked_and_noise_is_a_resolution():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((600, 2))
    plain = InfoNCE(steps=600).estimate([x[:, [0]], x[:, [1]]], x)
    assert plain.total.flagged
    assert any("the maximum of the contrast" in n for n in plain.notes)
    assert plain.total.value <= np.log2(120)
    noisy = QUICK.__class__(steps=300, noise=1.0).estimate([x[:, [0]], x[:, [1]]], x)
    assert "noise variance 1" in noisy.resolution
    assert not noisy.total.flagged
    assert noisy.total.value == pytest.approx(1.0, abs=0.35)  # two coordinates of half a bit each


@pytest.mark.slow
def test_few_alternatives_say_less():
    known = known_distributions()["concatenation"]
    x, target = known.draw(1000, 3)
    few = InfoNCE(steps=300, alternatives=4).estimate(x, target)
    assert few.total.value <= 2
    assert few.total.high < 2
    assert few.total.value < QUICK.estimate(x, target).total.value


def test_one_class_constant_features_and_too_few_samples():
    rng = np.random.default_rng(4)
    x = [rng.standard_normal(100), np.zeros(100)]
    nothing = QUICK.estimate(x, np.zeros(100, int))
    assert nothing.total.value == 0
    assert any("one value only" in n for n in nothing.notes)
    found = QUICK.estimate(x, rng.standard_normal(100))
    assert found.single_feature[1].value == pytest.approx(0, abs=0.05)
    with pytest.raises(RobGIBError, match="too few for the infonce estimator"):
        QUICK.estimate([rng.standard_normal(20)], rng.integers(2, size=20))


def test_the_same_twice_and_labels_as_target():
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=300)
    layer = labels[:, None] + 0.3 * rng.standard_normal((300, 3))
    one, two = (QUICK.label_information(layer, labels) for _ in range(2))
    assert one == two
    assert one.total.value > 0.5


@pytest.mark.parametrize(("option", "value"), [("folds", 2), ("steps", 0), ("alternatives", 1), ("noise", -1)])
def test_bad_options(option, value):
    with pytest.raises(RobGIBError, match=option):
        InfoNCE(**{option: value})
