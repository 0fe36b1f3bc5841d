"""Counting discrete symbols: joint codes of feature subsets, in one pass, and their plug-in information."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from robgib.errors import RobGIBError

__all__ = ["codebook", "combine", "default_size", "encode", "entropy", "plug_in", "relabel", "subset_codes"]

Codes = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
_POINTS_PER_CODE = 256  # to learn codes on; more would cost time and move them little


def relabel(rows: npt.NDArray[Any]) -> Codes:
    """Number the distinct rows (N, d), or values (N,), from 0."""
    if rows.ndim == 2 and rows.shape[1] == 1:
        rows = rows[:, 0]
    inverse: Codes = np.unique(rows, axis=0 if rows.ndim == 2 else None, return_inverse=True)[1]
    return inverse.reshape(-1).astype(np.int64)


def default_size(samples: int) -> int:
    """Return how many codes a variable gets where nothing else is said: the cube root of the samples, 4 to 16."""
    return int(np.clip(round(samples ** (1 / 3)), 4, 16))


def encode(values: npt.NDArray[Any], fit: npt.NDArray[Any], size: int, seed: int) -> Codes:
    """Code real values (N, d) with ``size`` symbols learnt on ``fit``; discrete values keep their own."""
    if values.dtype.kind in "iu":
        return relabel(values)
    if size > len(fit):
        raise RobGIBError(
            f"an estimate asks for {size} codes and has {len(fit)} samples to learn them on; ask for fewer."
        )
    if len(np.unique(fit, axis=0)) <= size:
        return relabel(values)
    if values.shape[1] == 1:
        edges = np.quantile(fit[:, 0], np.linspace(0, 1, size + 1)[1:-1])
        return np.searchsorted(np.unique(edges), values[:, 0], side="right").astype(np.int64)
    return np.asarray(_k_means(fit, size, seed).predict(values)).astype(np.int64)


def _k_means(fit: npt.NDArray[Any], size: int, seed: int) -> Any:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    fit = fit[:: max(1, len(fit) // (_POINTS_PER_CODE * size))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than codes: fewer codes
        return KMeans(size, n_init=1, max_iter=60, random_state=seed).fit(fit)


def codebook(
    features: Sequence[npt.NDArray[Any]], fit: Sequence[npt.NDArray[Any]], size: int, seed: int
) -> list[Codes]:
    """Codes of all real features (N, d_i) jointly and of all but each one: n+1, by one k-means of ``size`` on ``fit``.

    A sample takes the nearest centroid, measured without the feature that is left out.
    """
    if size > len(fit[0]):
        raise RobGIBError(
            f"an estimate asks for {size} codes and has {len(fit[0])} samples to learn them on; ask for fewer."
        )
    centres = _k_means(np.hstack(fit), size, seed).cluster_centers_
    own = np.split(centres, np.cumsum([x.shape[1] for x in features])[:-1], axis=1)
    squares = [(c**2).sum(1) - 2 * x @ c.T for x, c in zip(features, own, strict=True)]  # less |x|², which all share
    total = np.zeros_like(squares[0])
    for part in squares:
        total += part
    return [(total - part).argmin(1) for part in (0, *squares)]


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
