import math

import numpy as np
import pytest
from scipy import stats

from robgib.statistics import clopper_pearson, compression_interval, spearman


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (3, 10), (10, 10), (570, 1000)])
def test_clopper_pearson_against_quantiles_of_the_beta_distribution(hits, samples):
    low = stats.beta.ppf(0.025, hits, samples - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, samples - hits) if hits < samples else 1.0
    assert clopper_pearson(hits, samples) == pytest.approx((low, high), abs=1e-10)


def test_clopper_pearson_of_a_sum_of_shares_is_the_wider_of_its_neighbours():
    low, high = clopper_pearson(7.3, 10)
    assert low == clopper_pearson(7, 10)[0]
    assert high == clopper_pearson(8, 10)[1]
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_spearman():
    x = np.arange(12.0)
    y = x + np.array([3, -2, 0, 4, -4, 1, 0, -3, 2, 5, -5, 0])
    rho, low, high = spearman(list(x), list(y))
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert low < rho < high <= 1
    assert all(math.isnan(v) for v in spearman([1, 2, 3, 4], [1, 2, 3, 4]))
    assert all(math.isnan(v) for v in spearman([1] * 6, list(range(6))))
    assert spearman(list(x), list(x))[0] == 1


def test_spearman_coverage():
    rng = np.random.default_rng(0)
    covariance = [[1, 0.6], [0.6, 1]]
    truth = 6 / np.pi * np.arcsin(0.3)  # of a bivariate normal
    hits = 0
    for _ in range(300):
        x, y = rng.multivariate_normal([0, 0], covariance, 30).T
        _, low, high = spearman(list(x), list(y))
        hits += low <= truth <= high
    assert 0.9 <= hits / 300 <= 0.99


def test_compression_interval():
    value, low, high = compression_interval([2, 10, 8, 5], [1.8, 9.8, 7.8, 4.8], [2.2, 10.2, 8.2, 5.2])
    assert value == pytest.approx(0.5)
    assert 0.45 < low < 0.5 < high < 0.55
    assert compression_interval([1, 2], [0, 1], [2, 3]) == (0, 0, 0)
    assert math.isnan(compression_interval([math.nan, 1], [0, 0], [1, 1])[0])


@pytest.mark.parametrize("pairs", [5, 7, 9])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("repeats", [150, pytest.param(400, marks=pytest.mark.slow)])
def test_the_interval_of_few_pairs_holds_the_truth(pairs, correlation, repeats):
    truth = 6 / np.pi * np.arcsin(correlation / 2)
    rng, inside = np.random.default_rng(pairs), []
    for _ in range(repeats):
        x = rng.standard_normal(pairs)
        y = correlation * x + np.sqrt(1 - correlation**2) * rng.standard_normal(pairs)
        _, low, high = spearman(list(x), list(y))
        inside.append(low <= truth <= high)
    assert np.mean(inside) >= 0.92


def test_five_pairs_in_order_say_little():
    rho, low, high = spearman([1, 2, 3, 4, 5], [2, 3, 5, 7, 11])
    assert rho == pytest.approx(1)
    assert low < 0.6  # by chance one draw in 60 is as far out
    assert high == pytest.approx(1)
