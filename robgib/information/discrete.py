"""Counting discrete symbols: joint codes of feature subsets, in one pass, and their plug-in information."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from robgib.information.preprocessing import Codes, relabel

__all__ = [
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
    rests = [combine(prefix[i], suffix[n - 1 - i]) for i in range(n)]
    return [prefix[n], *codes, *rests]


def entropy(weights: Vector) -> float:
    """Entropy in bits of unnormalised weights."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log2(p)).sum())


def plug_in(x: Codes, t: Codes, weights: Vector | None = None) -> tuple[float, Vector, tuple[int, int, int]]:
    """Plug-in I(X;T) in bits of two codes (N,).

    Returns:
        The information, its pointwise terms log2 p(x,t)/(p(x)p(t)) (N,), and how many symbols x, t and the
        pair took.
    """
    width = int(t.max(initial=0)) + 1
    joint = x * width + t
    if (int(x.max(initial=0)) + 1) * width > 16 * len(x) + 1024:
        joint = relabel(joint)  # keep the count table small when the codes are sparse
    counts = np.bincount(joint, weights)
    of_x, of_t = np.bincount(x, weights), np.bincount(t, weights)
    mass = float(of_t.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        pointwise = np.log2(counts[joint] * mass / (of_x[x] * of_t[t]))
    if weights is None:
        value = float(pointwise.mean())
    else:
        value = float(np.sum(np.where(weights > 0, weights * pointwise, 0.0)) / mass)
    return value, pointwise, (int((of_x > 0).sum()), int((of_t > 0).sum()), int((counts > 0).sum()))
