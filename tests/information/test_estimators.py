"""What every estimator keeps to: bad input is said or marked, and one pass is what separate fits would say."""

import dataclasses
import warnings

import numpy as np
import pytest

from robgib import RobGIBError
from robgib.information import ESTIMATORS
from robgib.information.measures import functionals
from robgib.validation.tasks import tasks

QUICK = {
    "probe": {"steps": 100, "width": 16, "folds": 3},
    "infonce": {"steps": 100, "width": 16, "folds": 3},
    "loss_comparison": {"steps": 40, "width": 16, "folds": 3},
    "renyi": {"exact_samples": 120},
    "flow": {"steps": 30},
}
NAMES = sorted(name for name in ESTIMATORS if not ESTIMATORS[name].runs_network)
RNG = np.random.default_rng(0)
N = 240
LABELS = RNG.integers(3, size=N)
NOISY = LABELS[:, None] + 0.3 * np.random.default_rng(5).standard_normal((N, 1))
REAL = [LABELS[:, None] + RNG.standard_normal((N, 1)), RNG.standard_normal((N, 1))]
CODES = [LABELS, RNG.integers(3, size=N)]


def make(name, **options):
    return ESTIMATORS[name](**{**QUICK.get(name, {}), **options})


def target(name):
    return NOISY if name == "flow" else LABELS  # it takes real targets


def features(name):
    return CODES if name == "exact" else REAL


def figures(found):
    return [
        found.total,
        *found.single_feature,
        *found.leave_one_out,
        *found.interaction,
        found.synergy,
        found.complexity,
    ]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_activations_are_refused(name, bad):
    broken = np.array(REAL[0])
    broken[3, 0] = bad
    with pytest.raises(RobGIBError, match="feature 0 has NaN or infinite values in 1 of 240 samples"):
        make(name).estimate([broken, REAL[1]], LABELS)
    with pytest.raises(RobGIBError, match="the target has NaN or infinite values"):
        make(name).estimate(REAL, broken)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_samples_than_it_needs_are_refused_or_marked(name):
    few = make(name).least_samples - 1
    if few:
        with pytest.raises(RobGIBError, match=f"{few} samples are too few for the {name} estimator"):
            make(name).estimate([x[:few] for x in features(name)], LABELS[:few])


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_feature_tells_nothing(name):
    constant = np.zeros((N, 1), features(name)[0].dtype)
    found = make(name).estimate([*features(name), constant], target(name))
    assert all(np.isfinite(e.value) for e in figures(found))
    assert found.single_feature[2].value == pytest.approx(0, abs=0.02)
    assert found.interaction[2].low <= 0 <= found.interaction[2].high


@pytest.mark.parametrize("name", NAMES)
def test_a_duplicated_feature_is_redundant(name):
    x = features(name)
    found = make(name).estimate([x[0], x[0].copy(), x[1]], target(name))
    for i in (0, 1):
        single, interaction = found.single_feature[i], found.interaction[i]
        assert np.isfinite(interaction.value)
        assert interaction.low - 1e-9 <= -single.value <= interaction.high + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_one_class_only(name):
    found = make(name).estimate(features(name), np.zeros(N, int))
    for figure in (found.total, found.synergy, found.complexity):
        assert figure.low <= 0 <= figure.high
    if name != "exact":
        assert any("it carries no information" in note for note in found.notes)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"exact"}))
def test_codes_with_as_many_symbols_as_samples_are_no_silent_number(name):
    """Features that number the samples tell a plug-in everything about any target."""
    found = make(name).estimate([np.arange(N), RNG.permutation(N)], LABELS)
    total = found.total
    unsure = np.isnan(total.value) or total.flagged or total.low <= 0
    assert unsure, (name, total)
    crowded = make(name).estimate(REAL, np.arange(N)).total
    assert np.isnan(crowded.value) or crowded.flagged or crowded.low <= np.log2(N), (name, crowded)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"exact"}))
def test_an_independent_feature_changes_no_interaction_by_more_than_its_interval(name):
    rng = np.random.default_rng(9)
    # Of many real features `binned` makes codes afresh, which are other variables: it is held to its own regime.
    x, added = (CODES, rng.integers(2, size=N)) if name == "binned" else (REAL, rng.standard_normal((N, 1)))
    one, two = (make(name).estimate(v, target(name)) for v in (x, [*x, added]))
    for before, after in zip(one.interaction, two.interaction, strict=False):
        half = max(before.high - before.low, after.high - after.low, 0.02)
        assert abs(after.value - before.value) <= half


@pytest.mark.parametrize("name", ["binned", "gaussian", pytest.param("renyi", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["labels", "real"])
def test_one_pass_equals_separate_fits_of_closed_forms(name, target):
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((400, 2)) for _ in range(4)]
    goal = sum(x) + rng.standard_normal((400, 2))
    if target == "labels":
        goal = (goal[:, 0] > 0).astype(int)
    if name == "binned":  # of real features it codes the whole afresh, so that subsets are other codes
        x = [(v[:, 0] > 0).astype(int) for v in x]
    # Random blocks and shuffles differ from fit to fit: enough of them that little depends on it.
    maker = make(name, exact_samples=400, shuffles=6) if name == "renyi" else make(name)
    found = maker.estimate(x, goal)
    joined = [x, *([v] for v in x), *(x[:i] + x[i + 1 :] for i in range(4))]
    alone = [maker.estimate([np.stack(s, 1) if s[0].ndim == 1 else np.hstack(s)], goal).total for s in joined]
    for mine, naive in zip([found.total, *found.single_feature, *found.leave_one_out], alone, strict=True):
        if name == "renyi" or (name, target) == ("gaussian", "labels"):
            assert mine.low - 0.01 <= naive.value <= mine.high + 0.01
        else:
            assert mine.value == pytest.approx(naive.value, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["probe", "infonce"])
@pytest.mark.parametrize("task", ["xor-and-bit", "mixture-5-classes"])
def test_one_masked_network_agrees_with_a_network_a_subset(name, task):
    found_in = tasks()[task]
    sample = found_in.draw(found_in.samples, np.random.default_rng(2))
    maker = ESTIMATORS[name]()
    found = maker.estimate(sample.features, sample.target)
    n = len(sample.features)
    subsets = [list(range(n)), *([i] for i in range(n)), *([j for j in range(n) if j != i] for i in range(n))]
    x = [v.reshape(len(v), -1) for v in sample.features]
    alone = np.array([maker.estimate([np.hstack([x[i] for i in s])], sample.target).total.value for s in subsets])
    mine = np.array([e.value for e in (found.total, *found.single_feature, *found.leave_one_out)])
    half = np.array([e.high - e.low for e in (found.total, *found.single_feature, *found.leave_one_out)]) / 2
    assert (np.abs(mine - alone) <= half + 0.02).all(), np.round(np.stack([mine, alone, sample.truth]), 3)
    synergy = functionals(n)[3 * n + 1] @ alone
    assert found.synergy.low - 0.02 <= synergy <= found.synergy.high + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_says_what_it_is(name):
    kind = ESTIMATORS[name]
    assert kind.summary
    assert kind.bound
    assert len(kind.guide) > 100
    assert dataclasses.is_dataclass(kind) or name == "exact"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [np.zeros((N, 2)), np.full(N, 3)])
def test_a_constant_target_is_exactly_nothing(name, target):
    options = {"noise": 0.5} if name in ("gaussian", "infonce", "ksg") else {}
    found = make(name, **options).estimate(features(name), target)
    for e in (
        found.total,
        *found.single_feature,
        *found.leave_one_out,
        *found.interaction,
        found.synergy,
        found.complexity,
    ):
        assert (e.low, e.value, e.high) == (0, 0, 0)
    assert "one value only" in found.notes[0]


@pytest.mark.parametrize("name", ["gaussian", "ksg"])
def test_noise_is_no_copy_of_data_made_with_the_same_seed(name):
    """Data of default_rng(0), a deterministic target and noise of seed 0: at the noise's ceiling, not beyond."""
    x = np.random.default_rng(0).standard_normal((1000, 2))
    found = ESTIMATORS[name](noise=0.5, seed=0).estimate([x[:, [0]], x[:, [1]]], x)
    assert found.total.value < 2 * 0.5 * np.log2(1 + 1 / 0.5) + 0.15
