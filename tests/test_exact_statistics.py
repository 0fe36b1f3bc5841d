"""The formulas of ``statistics.py``, each beside figures worked out by hand or by another formula."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from robgib import statistics
from robgib.statistics import (
    clopper_pearson,
    compression_interval,
    detectable_share,
    mcnemar_test,
    mean_difference,
    most_unseen,
    paired_difference,
    partial_correlation,
    share_test,
    sign_flip_test,
    sign_test,
    smallest_correlation,
    spearman,
    weighted_correlation,
    williams_test,
)

Z95, Z90 = 1.959963984540054, 1.6448536269514722  # quantiles of the normal distribution


def test_clopper_pearson_at_another_level():
    # The beta distribution's quantiles (Clopper & Pearson 1934); of 0 hits the upper end is 1 − (α/2)^(1/n).
    assert clopper_pearson(0, 10, 0.9) == pytest.approx((0, 1 - 0.05**0.1), abs=1e-12)
    assert clopper_pearson(10, 10, 0.9) == pytest.approx((0.05**0.1, 1), abs=1e-12)
    ends = stats.beta.ppf(0.05, 9, 2), stats.beta.ppf(0.95, 10, 1)
    assert clopper_pearson(9, 10, 0.9) == pytest.approx(ends, abs=1e-10)
    assert clopper_pearson(9, 10) == pytest.approx((0.5549839, 0.9974714), abs=1e-6)  # of tables
    assert clopper_pearson(0, 1)[1] == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("ahead", "behind", "p"),
    [(5, 1, 7 / 64), (3, 0, 1 / 8), (0, 3, 1), (0, 0, 1), (0, 1, 1), (1, 0, 1 / 2), (2, 2, 11 / 16)],
)
def test_sign_test_counts_the_outcomes(ahead, behind, p):
    assert sign_test(ahead, behind) == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize(
    ("hits", "samples", "share", "p"),
    [(2, 3, 0.25, 10 / 64), (1, 1, 0.3, 0.3), (1, 3, 0.5, 7 / 8), (0, 1, 0.3, 1), (0, 0, 0.3, 1)],
)
def test_share_test_counts_the_outcomes(hits, samples, share, p):
    assert share_test(hits, samples, share) == pytest.approx(p, abs=1e-12)


X = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
Y = [2, 1, 4, 3, 6, 5, 8, 7, 10, 9]
"""Ten differences of 1: ρ = 1 − 6·10/(10·99) = 31/33."""


@pytest.mark.parametrize(("level", "z"), [(0.95, Z95), (0.9, Z90)])
def test_spearman_has_the_interval_of_bonett_and_wright(level, z):
    rho = 31 / 33
    half = z * math.sqrt((1 + rho * rho / 2) / 7)
    middle = 0.5 * math.log((1 + rho) / (1 - rho))
    assert spearman(X, Y, level) == pytest.approx((rho, math.tanh(middle - half), math.tanh(middle + half)), abs=1e-9)


def test_spearman_leaves_out_what_is_missing():
    assert spearman([*X, math.nan, 3], [*Y, 5, math.inf]) == spearman(X, Y)
    assert all(map(math.isnan, spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])))
    assert all(map(math.isnan, spearman([1, 2, 3, 4, 5], [2, 2, 2, 2, 2])))
    assert all(map(math.isnan, spearman([1, 2, 3, 4], [1, 2, 4, 3])))
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])[0] == pytest.approx(0.9)
    rho, low, high = spearman(X, X)  # clipped below infinity
    assert rho == pytest.approx(1)
    assert 0.99 < low < high <= 1
    half = Z95 * math.sqrt(1.5 / 7)
    ends = math.tanh(math.atanh(1 - 1e-12) - half), math.tanh(math.atanh(1 - 1e-12) + half)
    assert (low, high) == pytest.approx(ends, rel=1e-13)
    assert spearman(X, X[::-1]) == pytest.approx((-1, -ends[1], -ends[0]), rel=1e-13)
    steps = [0, 0, 0, 1, 1, 1, 0, 1, 0, 1]  # ranges of 1 are no constants
    assert spearman(steps, X)[0] == pytest.approx(stats.spearmanr(steps, X).statistic)
    assert spearman(X, steps)[0] == pytest.approx(stats.spearmanr(steps, X).statistic)


def test_simulated_correlations_of_five_pairs():
    """At correlation 0 all 120 orders are equally probable: one has ρ = 1, four 0.9 (one swap of neighbours)."""
    found, truth = statistics._simulated(5)
    assert found.shape == (4000, 143)
    assert truth[[0, 71, -1]] == pytest.approx([-1, 0, 1])
    assert truth[72] == pytest.approx(6 / math.pi * math.asin(math.tanh(0.05) / 2))
    assert (found[:, 0] == -1).all()
    assert (found[:, -1] == 1).all()
    assert set(np.round(10 * found[:, 71]).astype(int)) == set(range(-10, 11))
    for at_least, share in ((1, 1 / 120), (0.9, 5 / 120), (0.8, 8 / 120)):
        assert (found[:, 71] >= at_least - 1e-9).mean() == pytest.approx(share, abs=3 * math.sqrt(share / 4000))


def test_an_interval_holds_the_correlations_under_which_rho_is_not_too_rare(monkeypatch):
    # 40 draws of four correlations; ρ = 0.5 is reached in 1, 2, 40 and 40 of them, and not exceeded in 40, 40, 2 and 1.
    found = np.zeros((40, 4))
    found[:1, 0], found[:2, 1] = 0.5, 0.5
    found[:, 2], found[:, 3] = 0.9, 0.9
    found[:2, 2], found[:1, 3] = 0.5, 0.5
    monkeypatch.setattr(statistics, "_simulated", lambda pairs: (found, np.array([-0.4, -0.1, 0.3, 0.7])))
    assert statistics._inverted(0.5, 7, 0.95) == (-0.1, 0.3)  # tails above 1 of 40
    assert statistics._inverted(0.5, 7, 0.96) == (-0.4, 0.7)
    assert statistics._inverted(0.5, 7, 0.89) == (0.5, 0.5)  # none holds it
    found[:10, :2], found[:10, 2:] = 0.5, 0.5
    assert statistics._inverted(0.5, 7, 0.5) == (0.5, 0.5)  # exactly a quarter is not above a quarter


@pytest.mark.parametrize(("level", "z"), [(0.95, Z95), (0.9, Z90)])
def test_compression_interval_by_propagation_of_errors(level, z):
    # Of f = 1 − last/peak with errors a and b: √((last/peak²·a)² + (b/peak)²); peak 10 ± 0.02, last 4 ± 0.03.
    value, low, high = compression_interval(
        [3, 10, 4], [0, 10 - 0.02 * Z95, 4 - 0.03 * Z95], [9, 10 + 0.02 * Z95, 4 + 0.03 * Z95], level
    )
    half = z * math.hypot(0.04 * 0.02, 0.03 / 10)
    assert value == 0.6
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.03 * half)
    rng = np.random.default_rng(0)
    top, last = rng.normal(10, 0.02, 20_000), rng.normal(4, 0.03, 20_000)
    tail = 50 * (1 - level)
    assert (low, high) == pytest.approx(tuple(np.percentile(1 - last / top, [tail, 100 - tail])), rel=1e-9)
    other = compression_interval([3, 10, 4], [0, 9, 3], [9, 11, 5], level, seed=1)
    assert other != compression_interval([3, 10, 4], [0, 9, 3], [9, 11, 5], level)


def test_compression_is_drawn_with_the_seed_0_by_default():
    values, lows, highs = [1.0, 2.0, 1.5], [0.9, 1.8, 1.2], [1.1, 2.2, 1.8]
    assert compression_interval(values, lows, highs) == compression_interval(values, lows, highs, seed=0)
    assert compression_interval(values, lows, highs) != compression_interval(values, lows, highs, seed=1)


def test_compression_where_there_is_none():
    assert compression_interval([1, 3, 3.5], [0, 0, 0], [4, 4, 4]) == (0, 0, 0)
    for values in ([], [0, -1], [-2, -3], [math.inf, 1]):
        assert all(map(math.isnan, compression_interval(values, values, values)))
    assert compression_interval([0.5, 0.25], [0.5, 0.25], [0.5, 0.25]) == (0.5, 0.5, 0.5)


def test_partial_correlation_by_the_formula_of_one_covariate():
    rng = np.random.default_rng(5)
    z = rng.standard_normal(12)
    x, y = z + rng.standard_normal((2, 12))
    r, s, t = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    rho = (r - s * t) / math.sqrt((1 - s**2) * (1 - t**2))
    p = 2 * stats.t.sf(abs(rho) * math.sqrt(9 / (1 - rho**2)), 9)  # 12 − 2 − 1 degrees of freedom
    assert partial_correlation(x, y, z[:, None]) == pytest.approx((rho, p), abs=1e-12)
    assert partial_correlation(-x, y, z[:, None]) == pytest.approx((-rho, p), abs=1e-12)


def test_partial_correlation_where_nothing_is_left():
    x = np.array([3.0, 1.0, 4.0, 2.0, 5.0])
    y = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
    z = np.array([2.0, 1.0, 5.0, 3.0, 4.0])[:, None]
    assert math.isfinite(partial_correlation(x, y, z)[0])  # two degrees of freedom
    assert all(map(math.isnan, partial_correlation(x[:4], y[:4], z[:4])))
    assert all(map(math.isnan, partial_correlation(x, y, x[:, None])))
    assert all(map(math.isnan, partial_correlation(x, y, y[:, None])))
    assert partial_correlation(x, x, z) == pytest.approx((1, 0), abs=1e-5)


@pytest.mark.parametrize(
    ("r", "samples", "t"),
    [
        # |R| = 1 − .25 − .09 − .25 + 2·.5·.3·.5 = .56; 2·.56·99/97 + .4²·.5³ = 1.163093; .2·√(99·1.5/1.163093)
        ((0.5, 0.3, 0.5), 100, 2.259883),
        # |R| = 1 − .36 − .04 − .01 − 2·.6·.2·.1 = .566; 2·.566·19/17 + .2²·.9³ = 1.294336; .8·√(19·1.1/1.294336)
        ((0.6, -0.2, 0.1), 20, 3.214693),
        # |R| = 1 − .04 − .49 − .09 + 2·.2·.7·.3 = .464; 2·.464·3/1 + .45²·.7³ = 2.8534575; −.5·√(3·1.3/2.8534575)
        ((0.2, 0.7, 0.3), 4, -0.584543),
    ],
)
def test_williams_test_by_hand(r, samples, t):
    found, p = williams_test(*r, samples)
    assert found == pytest.approx(t, abs=1e-6)
    assert p == pytest.approx(2 * stats.t.sf(abs(t), samples - 3), abs=1e-6)


def test_williams_test_where_there_is_none():
    assert all(map(math.isnan, williams_test(0.5, 0.3, 0.5, 3)))
    assert all(map(math.isnan, williams_test(1, 1, 1, 10)))  # the denominator is 0
    t, _ = williams_test(0.6, 0.6, 1, 10)  # |R| is 0 there, and so is (1 − r)³
    assert math.isnan(t)
    assert williams_test(0.8, 0.6, 0.48, 12)[0] > 0


@pytest.mark.parametrize(
    ("samples", "level", "power", "reach"),
    [
        (30, 0.05, 0.8, 1.959963985 + 0.841621234),
        (4, 0.05, 0.8, 2.801585219),
        (103, 0.01, 0.9, 2.575829304 + 1.281551566),
    ],
)
def test_smallest_correlation_by_fishers_z(samples, level, power, reach):
    expected = math.tanh(reach / math.sqrt(samples - 3))
    assert smallest_correlation(samples, level, power) == pytest.approx(expected, abs=1e-8)


def test_smallest_correlation_has_these_defaults():
    assert smallest_correlation(30) == smallest_correlation(30, 0.05, 0.8)
    assert math.isnan(smallest_correlation(3))


def tango(only_a, only_b, samples, difference):
    """Tango's score: the likelihood is maximised over the share of one side, the difference given, by search."""

    def loss(log_q):
        q = math.exp(log_q)  # the share that is in the second alone; that in the first alone is q + the difference
        likelihood = [(only_a, q + difference), (only_b, q), (samples - only_a - only_b, 1 - 2 * q - difference)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in likelihood if count)

    low, high = max(-difference, 0) + 1e-12, (1 - difference) / 2 - 1e-12
    q = math.exp(optimize.minimize_scalar(loss, (math.log(low), math.log(high)), (math.log(low), math.log(high)),
                                          method="bounded", options={"xatol": 1e-10}).x)  # fmt: skip
    variance = samples * (2 * q + difference * (1 - difference))
    return (only_a - only_b - samples * difference) / math.sqrt(variance)


@pytest.mark.parametrize("counts", [(12, 2, 44), (3, 9, 30), (5, 5, 20), (7, 1, 100)])
@pytest.mark.parametrize("level", [0.95, 0.9])
def test_the_ends_of_a_paired_interval_have_tangos_score(counts, level):
    low, high = paired_difference(*counts, level)
    z = {0.95: Z95, 0.9: Z90}[level]
    assert tango(*counts, low) == pytest.approx(z, abs=1e-4)
    assert tango(*counts, high) == pytest.approx(-z, abs=1e-4)


def test_paired_intervals_of_tables_and_at_the_edges():
    assert paired_difference(12, 2, 44) == pytest.approx((0.0685, 0.3861), abs=1e-3)  # of Tango's table
    assert paired_difference(0, 0, 0) == (-1, 1)
    low, high = paired_difference(2, 0, 2)
    assert (high, low < 0.5) == (1.0, True)
    assert paired_difference(0, 2, 2) == (-1.0, pytest.approx(-low, abs=1e-9))
    # Of one sample z² / (1 + z²) is out of reach on either side.
    assert paired_difference(0, 0, 1) == pytest.approx((-(Z95**2) / (1 + Z95**2), Z95**2 / (1 + Z95**2)), abs=1e-6)


def test_mcnemars_test_is_that_of_statsmodels():
    for a, b in ((10, 0), (5, 5), (7, 2), (1, 4)):
        assert mcnemar_test(a, b) == pytest.approx(mcnemar([[3, a], [b, 4]], exact=True).pvalue)
    assert mcnemar_test(0, 0) == 1


def test_correlations_of_repeated_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6))
    counts = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 3, 1, 0, 2]])
    expected = [np.corrcoef(np.repeat(x, c), np.repeat(y, c))[0, 1] for c in counts]
    assert weighted_correlation(x, y, counts) == pytest.approx(expected)
    assert weighted_correlation(x, y, 7.0 * counts) == pytest.approx(expected)
    each = rng.standard_normal((2, 6))
    rows = [np.corrcoef(np.repeat(e, c), np.repeat(y, c))[0, 1] for e, c in zip(each, counts, strict=True)]
    assert weighted_correlation(each, y, counts) == pytest.approx(rows)
    for constant in (np.ones(6), np.full(6, 0.1), np.zeros(6)):  # up to rounding
        assert np.isnan(weighted_correlation(constant, y, counts)).all()
        assert np.isnan(weighted_correlation(y, constant, counts)).all()
    assert weighted_correlation(1e3 + 1e-6 * x, y, counts) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("total", "drawn"), [(10, 3), (7, 7), (7, 0), (30, 12)])
def test_most_unseen_by_enumeration(total, drawn):
    for level in (0.95, 0.5):
        chance = [math.comb(total - m, drawn) / math.comb(total, drawn) for m in range(total + 1)]
        assert most_unseen(total, drawn, level) == max(m for m, p in enumerate(chance) if p >= 1 - level - 1e-12)
    assert most_unseen(30, 12) == most_unseen(30, 12, 0.95)


def test_shares_that_a_test_detects():
    for samples, share, level in ((50, 0.05, 0.01), (20, 0.1, 0.05)):
        needed = next(k for k in range(samples + 1) if stats.binom(samples, share).sf(k - 1) <= level)
        for power in (0.8, 0.5):
            found = detectable_share(samples, share, level, power)
            assert stats.binom(samples, found).sf(needed - 1) == pytest.approx(power)
        assert detectable_share(samples, share, level) == detectable_share(samples, share, level, 0.8)
    assert detectable_share(1, 0.05, 0.01) == math.inf
    assert detectable_share(1, 0.05, 0.05) == pytest.approx(0.8)  # one hit of one is shown at exactly 5%


@pytest.mark.parametrize(("ahead", "behind"), [(10, 0), (5, 5), (12, 2), (0, 0), (1, 0), (0, 7)])
def test_the_sign_flip_test_of_differences_of_one_is_mcnemars(ahead, behind):
    differences = [1.0] * ahead + [-1.0] * behind + [0.0] * 3
    assert sign_flip_test(differences) == pytest.approx(mcnemar_test(ahead, behind), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_flip_test_counts_all_choices_of_signs(seed):
    differences = np.random.default_rng(seed).integers(-25, 26, 11) / 25
    every = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=11)]
    expected = np.mean(np.array(every) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_test(differences) == pytest.approx(expected, abs=1e-12)
    assert sign_flip_test(-differences) == pytest.approx(expected, abs=1e-12)


def test_the_sign_flip_test_of_thousands_of_differences_is_near_the_normal_one():
    """Of shares of 20 draws of 75 answers: the sum of n signed differences has their squares' sum as its variance."""
    differences = np.random.default_rng(1).integers(-300, 306, 2000) / 1500
    z = (abs(differences.sum()) - 0.0005) / math.sqrt((differences**2).sum())
    assert 0.001 < 2 * stats.norm.sf(z) < 0.05
    assert sign_flip_test(differences) == pytest.approx(2 * stats.norm.sf(z), rel=0.03)


def test_the_interval_of_a_mean_difference_is_bonett_and_prices():
    """Of differences of one by their formula: one is added to either count, and two to the samples."""
    ahead, behind, samples = 12, 2, 44
    p, q = (ahead + 1) / (samples + 2), (behind + 1) / (samples + 2)
    half = math.sqrt((p + q - (p - q) ** 2) / (samples + 2))
    differences = [1.0] * ahead + [-1.0] * behind + [0.0] * (samples - ahead - behind)
    for level, z in ((0.95, Z95), (0.9, Z90)):
        assert mean_difference(differences, level) == pytest.approx((p - q - z * half, p - q + z * half), abs=1e-9)
    assert mean_difference([]) == (-1.0, 1.0)
    assert mean_difference([1.0] * 3)[1] == 1.0


def test_the_interval_of_a_mean_difference_holds_the_truth():
    """Of 60 samples whose differences are shares of 25 answers: in 95% of 2,000 draws, less three standard errors."""
    rng = np.random.default_rng(0)
    truth, held = 0.1 * 0.4, 0
    for _ in range(2000):
        differences = np.where(rng.random(60) < 0.1, rng.choice([0.2, 0.6], 60), 0.0)
        low, high = mean_difference(differences)
        held += low <= truth <= high
    assert held / 2000 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)
