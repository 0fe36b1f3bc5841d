"""Intervals for what evaluations report."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import optimize, special, stats

__all__ = [
    "clopper_pearson",
    "compression_interval",
    "detectable_share",
    "mcnemar_test",
    "mean_difference",
    "most_unseen",
    "paired_difference",
    "partial_correlation",
    "share_test",
    "sign_flip_test",
    "sign_test",
    "signed",
    "signed_interval",
    "smallest_correlation",
    "spearman",
    "weighted_correlation",
    "williams_test",
]


def clopper_pearson(hits: float, samples: int, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a share (Clopper & Pearson 1934).

    ``hits`` may be a sum of shares in [0, 1], one a sample: such a mean varies no more than one of zeros and ones. The
    interval is then that of the whole numbers around it, which holds the truth at least as often.

    >>> [round(end, 4) for end in clopper_pearson(9, 10)]
    [0.555, 0.9975]
    """
    if samples == 0:
        return 0.0, 1.0
    least, most = math.floor(hits), math.ceil(hits)
    # The ends are quantiles of beta variables.
    low = special.betaincinv(least, samples - least + 1, (1 - level) / 2) if least else 0.0
    high = special.betaincinv(most + 1, samples - most, (1 + level) / 2) if most < samples else 1.0
    return float(low), float(high)


def sign_test(ahead: int, behind: int) -> float:
    """Probability of at least so many pairs ahead if ahead and behind are equally probable (one-sided; exact)."""
    return float(stats.binomtest(ahead, ahead + behind, 0.5, "greater").pvalue) if ahead + behind else 1.0


def share_test(hits: int, samples: int, share: float) -> float:
    """Probability of at least so many hits if each sample is one with probability ``share`` (one-sided; exact)."""
    return float(stats.binomtest(hits, samples, share, "greater").pvalue) if samples else 1.0


def most_unseen(total: int, drawn: int, level: float = 0.95) -> int:
    """The largest number of marked items among ``total`` that a random draw without a marked one leaves possible.

    Exact (hypergeometric, one-sided): were there more, a draw of ``drawn`` items would hold one with a probability
    above ``level``.

    >>> most_unseen(400, 60), most_unseen(400, 400), most_unseen(400, 0)
    (18, 0, 400)
    """
    low, high = 0, total - drawn
    while low < high:
        middle = (low + high + 1) // 2
        if stats.hypergeom(total, middle, drawn).pmf(0) >= 1 - level:
            low = middle
        else:
            high = middle - 1
    return low


def detectable_share(samples: int, share: float, level: float, power: float = 0.8) -> float:
    """The smallest share that :func:`share_test` against ``share`` shows with this power; inf if none can be shown.

    >>> round(detectable_share(100, 0.05, 0.01), 2), round(detectable_share(20, 0.05, 0.01), 2)
    (0.14, 0.31)
    """
    needed = next((k for k in range(samples + 1) if share_test(k, samples, share) <= level), None)
    if needed is None:
        return math.inf
    # P(X >= k) of a binomial is the distribution function of a beta variable at its probability.
    return float(stats.beta.ppf(power, needed, samples - needed + 1))


def mcnemar_test(only_a: int, only_b: int) -> float:
    """McNemar's exact test of two shares on the same samples (two-sided), from the samples that are in one alone.

    >>> mcnemar_test(10, 0), mcnemar_test(5, 5)
    (0.001953125, 1.0)
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_difference(only_a: int, only_b: int, samples: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference (a − b) of two shares on the same samples (Tango 1998: the score interval).

    Args:
        only_a: samples that are in the first share alone.
        only_b: samples that are in the second alone.
        samples: number of samples.
        level: coverage.

    >>> [round(end, 3) for end in paired_difference(12, 2, 44)]
    [0.069, 0.386]
    """
    if not samples:
        return -1.0, 1.0
    reach = float(stats.norm.ppf((1 + level) / 2))

    def score(difference: float) -> float:
        a = 2 * samples
        b = -only_a - only_b + (a - only_a + only_b) * difference
        c = -only_b * difference * (1 - difference)
        q = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
        spread = samples * (2 * q + difference * (1 - difference))
        return (only_a - only_b - samples * difference) / math.sqrt(max(spread, 1e-12))

    middle = (only_a - only_b) / samples
    edge = 1 - 1e-9
    low = -1.0 if score(-edge) < reach else optimize.brentq(lambda d: score(d) - reach, -edge, middle)
    high = 1.0 if score(edge) > -reach else optimize.brentq(lambda d: score(d) + reach, middle, edge)
    return float(low), float(high)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact test (two-sided) that paired differences (n,) are as likely of either sign (Fisher 1935).

    Of differences that are −1, 0 or 1 it is :func:`mcnemar_test`. Differences are taken as multiples of their largest
    common unit, and rounded to thousandths where that is smaller.

    >>> sign_flip_test([0.2, 0.4, 0.6, 0.0]), sign_flip_test([0, 0])
    (0.25, 1.0)
    """
    exact = [Fraction(float(value)).limit_denominator(1000) for value in differences if value]
    unit = min(math.lcm(*(value.denominator for value in exact)), 1000) if exact else 1
    steps = [round(abs(value) * unit) for value in exact]
    total, seen = sum(steps), abs(sum(round(value * unit) for value in exact))
    # The share of the 2^n choices in which the negative differences sum to s, at s: all then sum to total - 2 s.
    chance, last = np.zeros(total + 1), 0
    chance[0] = 1.0
    for step in sorted(steps):  # the shortest first, so that few sums are possible for long
        chance[step : last + step + 1] += chance[: last + 1].copy()
        last += step
        chance[: last + 1] /= 2
    away = np.abs(total - 2 * np.arange(total + 1))
    return min(1.0, float(chance[away >= seen].sum()))


def mean_difference(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of paired differences (n,) in [−1, 1] (Bonett & Price 2012, whose are −1, 0 or 1).

    One pair of either sign is added, so that the interval keeps a width where no sample differs.

    >>> [round(end, 3) for end in mean_difference([0.0] * 50)]
    [-0.053, 0.053]
    """
    values = np.array([*differences, 1.0, -1.0])
    reach = float(stats.norm.ppf((1 + level) / 2)) * float(values.std()) / math.sqrt(len(values))
    middle = float(values.mean())
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def spearman(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Spearman's rank correlation with its interval.

    From 10 pairs on the interval is Bonett & Wright's (2000). Fewer are too few for it: the interval then holds those
    correlations of a Gaussian copula under which a ρ as far out as this is not too rare, by simulation.

    Returns:
        ρ, low, high; all NaN below 5 pairs or when a side is constant.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    usable = np.isfinite(a) & np.isfinite(b)
    a, b = a[usable], b[usable]
    if len(a) < 5 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan, math.nan
    rho = float(stats.spearmanr(a, b).statistic)
    if len(a) < _FEW:
        return rho, *_inverted(round(rho, 9), len(a), level)
    clipped = min(max(rho, -1 + 1e-12), 1 - 1e-12)
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(a) - 3))
    return rho, math.tanh(math.atanh(clipped) - half), math.tanh(math.atanh(clipped) + half)


_FEW = 10  # pairs below which the normal approximation's interval is too narrow


@functools.cache
def _simulated(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's ρ (draws, correlations) of Gaussian samples of so many pairs, and the population's ρ of each."""
    rng = np.random.default_rng([pairs, 17])
    x, e = rng.standard_normal((2, 4000, pairs))
    grid = np.concatenate([[-1.0], np.tanh(np.linspace(-3.5, 3.5, 141)), [1.0]])
    ranks = x.argsort(1).argsort(1)
    rho = np.empty((len(x), len(grid)))
    for j, r in enumerate(grid):
        y = r * x + np.sqrt(1 - r**2) * e
        gaps = ((ranks - y.argsort(1).argsort(1)) ** 2).sum(1)
        rho[:, j] = 1 - 6 * gaps / (pairs * (pairs**2 - 1))
    return rho, 6 / np.pi * np.arcsin(grid / 2)


def _inverted(rho: float, pairs: int, level: float) -> tuple[float, float]:
    simulated, truth = _simulated(pairs)
    tail = (1 - level) / 2
    high_enough = (simulated >= rho - 1e-9).mean(0) > tail
    low_enough = (simulated <= rho + 1e-9).mean(0) > tail
    compatible = truth[high_enough & low_enough]
    return (float(compatible.min()), float(compatible.max())) if len(compatible) else (rho, rho)


def compression_interval(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(peak − last)/peak of a sequence of complexities with its interval.

    The peak is the highest estimate. The interval comes from normal errors of the given 95% intervals, taken
    as independent between the peak and the last. NaN when the peak is not above 0.
    """
    v = np.asarray(values, float)
    if not len(v) or not np.isfinite(v).all():
        return math.nan, math.nan, math.nan
    peak = int(v.argmax())
    if v[peak] <= 0:
        return math.nan, math.nan, math.nan
    if peak == len(v) - 1:
        return 0.0, 0.0, 0.0
    spread = (np.asarray(highs, float) - np.asarray(lows, float)) / (2 * stats.norm.ppf(0.975))
    rng = np.random.default_rng(seed)
    top = rng.normal(v[peak], spread[peak], 20_000)
    last = rng.normal(v[-1], spread[-1], 20_000)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile((top - last) / np.where(top == 0, np.nan, top), [tail, 100 - tail])
    return float((v[peak] - v[-1]) / v[peak]), float(low), float(high)


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """Spearman's partial correlation of x and y (N,) given covariates (N, k), with its two-sided p.

    Ranks are freed of their linear dependence on the covariates' ranks; the test is Student's with N − 2 − k degrees of
    freedom.

    Returns:
        ρ and p; NaN where there are too few samples or nothing is left.

    >>> z = np.arange(30.0)
    >>> noise = np.random.default_rng(0).standard_normal((2, 30))
    >>> abs(partial_correlation(z + noise[0], z + noise[1], z[:, None])[0]) < 0.4
    True
    """
    free = len(x) - 2 - given.shape[1]
    if free < 2:
        return math.nan, math.nan
    ranks = np.column_stack([np.ones(len(x)), *(stats.rankdata(c) for c in given.T)])
    residuals = [v - ranks @ np.linalg.lstsq(ranks, v, rcond=None)[0] for v in (stats.rankdata(x), stats.rankdata(y))]
    if min(v.std() for v in residuals) < 1e-9:
        return math.nan, math.nan
    rho = float(np.corrcoef(residuals)[0, 1])
    t = rho * math.sqrt(free / max(1 - rho**2, 1e-15))
    return rho, float(2 * stats.t.sf(abs(t), free))


def williams_test(r_xy: float, r_zy: float, r_xz: float, samples: int) -> tuple[float, float]:
    """Whether x and z correlate equally with y, from one sample (Williams 1959, as Steiger 1980 recommends).

    Returns:
        t and its two-sided p on N − 3 degrees of freedom; NaN below 4 samples or for a singular correlation matrix.

    >>> t, p = williams_test(0.5, 0.3, 0.5, 100)
    >>> round(t, 2), round(p, 3)
    (2.26, 0.026)
    """
    if samples < 4:
        return math.nan, math.nan
    determinant = 1 - r_xy**2 - r_zy**2 - r_xz**2 + 2 * r_xy * r_zy * r_xz
    mean = (r_xy + r_zy) / 2
    below = 2 * determinant * (samples - 1) / (samples - 3) + mean**2 * (1 - r_xz) ** 3
    if below <= 1e-15:
        return math.nan, math.nan
    t = (r_xy - r_zy) * math.sqrt((samples - 1) * (1 + r_xz) / below)
    return t, float(2 * stats.t.sf(abs(t), samples - 3))


_ROUNDING = 1e-24  # share of the mean square below which a variance is one of rounding


def weighted_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x and y, each (N,) or (draws, N), under each row of weights (draws, N); NaN where a side
    is constant.

    >>> weighted_correlation(np.arange(3.0), np.array([0.0, 2.0, 1.0]), np.array([[1.0, 1.0, 0.0]])).round(6).tolist()
    [1.0]
    """
    w = weights / weights.sum(1, keepdims=True)
    a, b = (v - (w * v).sum(1, keepdims=True) for v in (x, y))
    # What a constant side varies by is rounding.
    of_a, of_b = (np.where(s > _ROUNDING * (w * v**2).sum(1), s, np.nan)
                  for v, s in ((x, (w * a**2).sum(1)), (y, (w * b**2).sum(1))))  # fmt: skip
    return np.asarray((w * a * b).sum(1) / np.sqrt(of_a * of_b))


def smallest_correlation(samples: int, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest correlation that so many samples show with this power at this two-sided level (Fisher's z).

    >>> round(smallest_correlation(30), 2)
    0.49
    """
    if samples < 4:
        return math.nan
    reach = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return float(math.tanh(reach / math.sqrt(samples - 3)))


def signed(value: float, low: float = math.nan, high: float = math.nan, *, digits: int = 2) -> str:
    """Return a correlation or a difference as text with its sign, and with its interval if one is given.

    A value that rounds to 0 has no minus sign.

    >>> signed(0.314), signed(-0.001, -0.2, 0.19), signed(-1.25, digits=1)
    ('+0.31', '+0.00 [-0.20, +0.19]', '-1.2')
    """
    text = f"{round(float(value), digits) + 0.0:+.{digits}f}"
    return text if math.isnan(low) and math.isnan(high) else f"{text} {signed_interval(low, high, digits=digits)}"


def signed_interval(low: float, high: float, *, digits: int = 2) -> str:
    """Return the ends of an interval as text with their signs (:func:`signed`).

    >>> signed_interval(-0.2, 0.19)
    '[-0.20, +0.19]'
    """
    return f"[{signed(low, digits=digits)}, {signed(high, digits=digits)}]"
