import numpy as np
import pytest
from sklearn.cluster import KMeans

from robgib import RobGIBError
from robgib.information import Binned
from robgib.information.discrete import plug_in, subset_codes
from robgib.information.preprocessing import codebook, relabel
from robgib.validation.known_variables import known_distributions


@pytest.mark.parametrize("name", known_distributions())
def test_known_distributions_from_samples(name):
    known = known_distributions()[name]
    found = Binned().estimate(*known.draw(10_000, 0))
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=0.02)
    assert not found.total.flagged


def test_bias_is_corrected_where_the_plug_in_is_far_off():
    rng = np.random.default_rng(0)
    raw, corrected = [], []
    for _ in range(20):
        x, t = rng.integers(20, size=300), rng.integers(20, size=300)
        raw.append(plug_in(x, t)[0])
        corrected.append(Binned(codes=20, target_codes=20).estimate([x], t).total.value)
    assert np.mean(raw) > 0.5
    assert abs(np.mean(corrected)) < 0.02


@pytest.mark.parametrize("repeats", [100, pytest.param(200, marks=pytest.mark.slow)])
def test_shuffled_target_interval_contains_zero(repeats):
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(repeats):
        x = [rng.standard_normal((400, 3)) for _ in range(4)]
        found = Binned(seed=seed).estimate(x, rng.permutation(x[0].sum(1)))
        hits += found.total.low <= 0 <= found.total.high and found.synergy.low <= 0 <= found.synergy.high
    assert hits >= 0.93 * repeats


def test_the_codebook_measures_without_the_feature_that_is_left_out():
    rng = np.random.default_rng(6)
    x = [rng.standard_normal((300, d)) for d in (1, 2, 3)]
    codes = codebook(x, x, 7, 0)
    centres = KMeans(7, n_init=1, max_iter=60, random_state=0).fit(np.hstack(x)).cluster_centers_
    for left_out, code in zip([[], [0], [1, 2], [3, 4, 5]], codes, strict=True):
        keep = [c for c in range(6) if c not in left_out]
        distances = ((np.hstack(x)[:, None, keep] - centres[None][..., keep]) ** 2).sum(2)
        assert (code == distances.argmin(1)).all()


def test_crowded_real_features_share_a_codebook_and_are_not_saturated():
    rng = np.random.default_rng(2)
    x = [rng.standard_normal((2000, 2)) for _ in range(8)]
    found = Binned().estimate(x, x[0][:, 0] + x[1][:, 0])
    assert "each X_-i by one codebook of" in found.resolution
    assert not found.total.flagged
    assert found.single_feature[0].value > 0.1 > found.single_feature[5].value


def test_crowded_symbols_are_marked_saturated():
    rng = np.random.default_rng(3)
    x = list(rng.integers(2, size=(20, 500)))
    found = Binned().estimate(x, rng.integers(2, size=500))
    assert found.total.flagged
    assert found.synergy.flagged
    assert found.notes
    assert not found.single_feature[0].flagged


def test_subset_codes_equal_the_naive_joins():
    rng = np.random.default_rng(4)
    codes = [relabel(c) for c in rng.integers(3, size=(5, 200))]
    found = subset_codes(codes)
    target = relabel(rng.integers(4, size=200))
    rows = np.stack(codes, 1)
    subsets = [range(5), *([i] for i in range(5)), *([j for j in range(5) if j != i] for i in range(5))]
    for code, subset in zip(found, subsets, strict=True):
        naive = relabel(rows[:, list(subset)])
        assert plug_in(code, target)[0] == pytest.approx(plug_in(naive, target)[0], abs=1e-12)


def test_prepared_features_serve_targets_of_other_sizes():
    rng = np.random.default_rng(5)
    estimator = Binned()
    x = [rng.standard_normal((500, 2)) for _ in range(3)]
    targets = [rng.integers(0, 3, 500), (x[0][:, 0] > 0).astype(int), rng.integers(0, 40, 500), x[1]]
    prepared = estimator.prepare(x)
    for target in (*targets, *targets):  # in any order, and again
        assert estimator.estimate(prepared, target) == Binned().estimate(x, target)


def test_more_codes_than_samples_is_refused():
    with pytest.raises(
        RobGIBError, match="64 codes need at least as many samples to fit them on, not 50; give fewer codes"
    ):
        Binned(codes=64).estimate([np.random.default_rng(0).standard_normal(50)], np.arange(50.0))


def test_constant_target_carries_no_information():
    found = Binned().estimate([np.arange(100.0)], np.zeros(100, int))
    assert found.total.value == 0
    assert "one value only" in found.notes[0]
