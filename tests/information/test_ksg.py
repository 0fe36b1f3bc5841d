import numpy as np
import pytest

from robgib import RobGIBError, RobGIBWarning
from robgib.information import KSG, Binned
from robgib.validation.known_variables import known_distributions
from robgib.validation.tasks import tasks
from robgib.validation.validate import validate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian-row", "mixture-2-classes"])
def test_the_goals_hold_in_two_dimensions(name):
    table = validate([KSG()], [tasks()[name]], repeats=20, every=True)
    assert table["bias"].abs().max() <= 0.05
    assert table["coverage"].mean() >= 0.9
    assert table["null"].min() >= 0.93


@pytest.mark.parametrize("name", known_distributions())
def test_symbols_are_counted(name):
    known = known_distributions()[name]
    found = KSG().estimate(*known.draw(5000, 0))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=0.05)


def test_one_pass_equals_separate_estimates():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 2))
    target = x.sum(1) + rng.standard_normal(400)
    found = KSG().estimate([x[:, 0], x[:, 1]], target)
    for i in range(2):
        assert found.single_feature[i].value == pytest.approx(KSG().estimate([x[:, i]], target).total.value, abs=1e-9)
        assert found.leave_one_out[i].value == pytest.approx(found.single_feature[1 - i].value, abs=1e-9)


def test_what_it_cannot_do_is_marked():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 4))
    with pytest.warns(RobGIBWarning, match="6 real dimensions of features and target, above 3"):
        found = KSG().estimate([x[:, :2], x[:, 2:]], x[:, :2] + 0.001 * rng.standard_normal((500, 2)))
    assert found.total.flagged
    assert any("outside its regime" in note for note in found.notes)


def test_ties_constants_and_few_samples():
    rng = np.random.default_rng(2)
    y = rng.integers(2, size=500)
    relu = np.maximum(y + rng.standard_normal(500) - 0.5, 0)
    found = KSG().estimate([relu, np.zeros(500)], y)
    assert found.single_feature[1].value == pytest.approx(0, abs=0.05)
    assert found.total.value == pytest.approx(Binned().estimate([relu], y).total.value, abs=0.1)
    assert KSG().estimate([relu], np.zeros(500, int)).total.value == pytest.approx(0, abs=1e-9)
    with pytest.raises(RobGIBError, match="too few for 8 neighbours"):
        KSG(k=8).estimate([np.arange(12.0)], np.arange(12.0))


def test_long_tails_do_not_blur_it():
    """Student-t of one degree of freedom with independent scales: the known information is 0.322 bit."""
    truth = 0.32193
    inside = []
    for seed in range(8):
        rng = np.random.default_rng([seed, 8])
        z = rng.standard_normal((5000, 2)) / np.sqrt(rng.chisquare(1, (5000, 1)))
        found = KSG().estimate([z[:, [0]]], z[:, [1]]).total
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) >= 7 / 8


def test_many_dimensions_are_looked_at_pair_by_pair_and_agree_with_the_tree(monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 6))
    y = x[:, :4] + rng.standard_normal((300, 4))
    pairs = KSG(limit=10).estimate([x[:, :3], x[:, 3:]], y)
    monkeypatch.setattr("robgib.information.ksg._TREE", 99)
    tree = KSG(limit=10).estimate([x[:, :3], x[:, 3:]], y)
    assert pairs.total.value == pytest.approx(tree.total.value, abs=1e-9)
    assert [e.value for e in pairs.leave_one_out] == pytest.approx([e.value for e in tree.leave_one_out], abs=1e-9)


def test_what_would_take_minutes_is_refused():
    x = [np.zeros((20_000, 4))] * 16
    with pytest.raises(RobGIBError, match="ksg would take minutes over 20000 samples of 72 real dimensions"):
        KSG().estimate([v + np.arange(20_000.0)[:, None] for v in x], np.arange(160_000.0).reshape(20_000, 8))
