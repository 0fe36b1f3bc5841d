"""Counting discrete symbols: joint codes of feature subsets, in one pass, and their plug-in information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robgib.information.measures import effective_samples
from robgib.information.preprocessing import Codes, relabel

__all__ = [
    "Adjusted",
    "adjusted_information",
    "combine",
    "entropy",
    "plug_in",
    "subset_codes",
]

Vector = npt.NDArray[np.float64]


def combine(a: Codes, b: Codes) -> Codes:
    """Joint code of two codes, numbered from 0."""
    return relabel(a * (int(b.max(initial=0)) + 1) + b)


def subset_codes(codes: Sequence[Codes]) -> list[Codes]:
    """Codes of all features jointly, of each one, and of all but each one: 2n+1, in O(n) joins.

    The join of all but the i-th is the join of a running prefix and a running suffix.
    """
    n = len(codes)
    nothing = np.zeros_like(codes[0])
    prefix, suffix = [nothing], [nothing]
    for code in codes:
        prefix.append(combine(prefix[-1], code))
    for code in reversed(codes):
        suffix.append(combine(suffix[-1], code))
    leave_one_out = [combine(prefix[i], suffix[n - 1 - i]) for i in range(n)]
    return [prefix[n], *codes, *leave_one_out]


def entropy(weights: Vector) -> float:
    """Entropy in bits of unnormalised weights."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0  # not -0.0 for one symbol


def plug_in(x: Codes, t: Codes, weights: Vector | None = None) -> tuple[float, Vector, tuple[int, int, int]]:
    """Plug-in I(X;T) in bits of two codes (N,).

    Returns:
        The information, its pointwise terms log2 p(x,t)/(p(x)p(t)) (N,), and how many symbols x, t and the
        pair took.
    """
    joint = _paired(x, t)
    counts = np.bincount(joint, weights)
    of_x, of_t = np.bincount(x, weights), np.bincount(t, weights)
    mass = float(of_t.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        pointwise = np.log2(counts[joint] * mass / (of_x[x] * of_t[t]))
    if weights is None:
        value = float(pointwise.mean())
    else:
        pointwise = np.where(weights > 0, pointwise, 0.0)  # what counts nothing may have symbols that none else has
        value = float(np.sum(weights * pointwise) / mass)
    return value, pointwise, (int((of_x > 0).sum()), int((of_t > 0).sum()), int((counts > 0).sum()))


@dataclass(frozen=True)
class Adjusted:
    """Plug-in information, corrected for bias and for chance.

    Attributes:
        value: bits.
        plain: bits of the plug-in, before any correction.
        pointwise: the plug-in's pointwise terms (N,).
        floor: standard deviation in bits that it has near independence, whatever the pointwise terms say.
        error: standard deviation in bits.
        flagged: whether chance alone reaches half of the ceiling, or the value comes near log2 of the samples.
    """

    value: float
    plain: float
    pointwise: Vector
    floor: float
    error: float
    flagged: bool


def adjusted_information(
    x: Codes, t: Codes, shuffles: int, rng: np.random.Generator, weights: Vector | None = None
) -> Adjusted:
    """Plug-in I(X;T) of codes (N,), corrected by the jackknife (Zahl 1977) and for chance (Vinh, Epps & Bailey 2010).

    The correction of Miller and Madow (1955) takes off less where many pairs of symbols are rare. With E the same
    figure on shuffled targets and H the lesser entropy, I becomes H (I − E)/(H − E): 0 at chance, and H where one side
    determines the other.
    """
    return adjusted_by(x, t, [t[rng.permutation(len(t))] for _ in range(shuffles)], weights)


def adjusted_by(x: Codes, t: Codes, shuffled: Sequence[Codes], weights: Vector | None = None) -> Adjusted:
    """:func:`adjusted_information`, with the permutations of the target given."""
    samples = len(t) if weights is None else effective_samples(weights)
    value, pointwise, symbols = plug_in(x, t, weights)
    ceiling = min(entropy(np.bincount(c, weights).astype(float)) for c in (x, t))
    of_x, of_t = (_entropy_and_bias(code, weights) for code in (x, t))
    chance = np.zeros((len(shuffled), 2))  # information and its bias
    for row, other in zip(chance, shuffled, strict=True):
        of_other = of_t if weights is None else _entropy_and_bias(other, weights)  # a permutation has the same counts
        row[:] = of_x + of_other - _entropy_and_bias(_paired(x, other), weights)
    raw, bias = chance.mean(0) if len(chance) else (0.0, 0.0)
    remaining_bias = float(raw - bias)
    corrected = value - (of_x + of_t - _entropy_and_bias(_paired(x, t), weights))[1]
    # Zero at chance, and unchanged at the ceiling, where chance has no room.
    adjusted = (corrected - remaining_bias) * ceiling / (ceiling - remaining_bias) if ceiling > remaining_bias else 0.0
    floor = float(np.sqrt((symbols[0] - 1) * (symbols[1] - 1) / 2) / samples / np.log(2))
    flagged = ceiling > 0 and (value >= 0.95 * np.log2(samples) or raw >= 0.5 * ceiling)
    weighted = pointwise if weights is None else weights * (pointwise - value)
    error = max(float(weighted.std()) / np.sqrt(samples), floor) if ceiling > 0 else 0.0
    return Adjusted(float(adjusted), value, pointwise, floor, error, bool(flagged))


def jackknife_bias(x: Codes, t: Codes, weights: Vector | None = None) -> float:
    """Bias in bits of the plug-in information of codes (N,), as leaving out each sample in turn shows it (Zahl 1977).

    The entropies without one sample all follow from the counts.

    >>> codes = np.array([0, 0, 1, 1])
    >>> round(jackknife_bias(codes, codes), 3)
    -0.245
    """
    of_x, of_t, of_both = (_entropy_and_bias(code, weights)[1] for code in (x, t, _paired(x, t)))
    return float(of_x + of_t - of_both)


def _paired(x: Codes, t: Codes) -> Codes:
    """Joint code (N,), numbered from 0 where the table of its counts would be much larger than the sample."""
    width = int(t.max(initial=0)) + 1
    joint = x * width + t
    if (int(x.max(initial=0)) + 1) * width > 16 * len(x) + 1024:
        return relabel(joint)
    return np.asarray(joint)


def _entropy_and_bias(code: Codes, weights: Vector | None) -> Vector:
    """Plug-in entropy in bits of the samples that have a weight, and its bias.

    The bias is (N − 1)(mean entropy without one of N samples − entropy of all).
    """
    if weights is None:  # all samples of a symbol are alike
        masses = np.bincount(code).astype(float)
        masses = of_own = repeats = masses[masses > 0]
        each = np.ones(len(masses))
    else:
        code, each = code[weights > 0], np.asarray(weights, float)[weights > 0]
        masses = np.bincount(code, each).astype(float)
        of_own, repeats = masses[code], np.ones(len(code))
    samples, total = repeats.sum(), masses.sum()
    if samples < 2:
        return np.zeros(2)
    whole = _times_log(masses).sum()
    left_out = whole - _times_log(of_own) + _times_log(of_own - each)
    without = np.log2(total - each) - left_out / (total - each)
    entropy_of_all = np.log2(total) - whole / total
    return np.array([entropy_of_all, (samples - 1) * ((repeats * without).sum() / samples - entropy_of_all)])


def _times_log(masses: Vector) -> Vector:
    """c log2 c, which is 0 where nothing is left but an error of rounding."""
    present = masses > 1e-9 * masses.max()
    return np.asarray(np.where(present, masses * np.log2(np.where(present, masses, 1.0)), 0.0))
