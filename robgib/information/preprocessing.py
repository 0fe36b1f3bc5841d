"""Preprocessing of variables for estimators: standardisation, normal scores, codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import normaltest, rankdata

from robgib.errors import RobGIBError
from robgib.runtime import one_thread

__all__ = [
    "SALTS",
    "codebook",
    "default_size",
    "encode",
    "k_means",
    "relabel",
]

Vector = npt.NDArray[np.float64]


SALTS = {"binned": 1, "gaussian": 2, "infonce": 3, "ksg": 4, "renyi": 6, "flow": 8}
"""Salts of the estimators' random numbers: drawn with the seed alone they would repeat those of data made with it."""


def standardised(values: npt.NDArray[Any]) -> Vector:
    """Scale each column (N, d) to mean 0 and variance 1; a constant one becomes zeros."""
    centred = values - values.mean(0)
    spread = centred.std(0)
    return np.divide(centred, spread, out=np.zeros(values.shape), where=spread > 1e-12 * np.abs(values).max(initial=1))


def columns_or_codes(values: npt.NDArray[Any]) -> tuple[Vector, Codes]:
    """Split a variable (N, d) into standardised columns that vary and codes (N,): it has one or the other.

    A real variable's codes are all 0; integers have no columns.
    """
    if values.dtype.kind in "iu":
        return np.zeros((len(values), 0)), relabel(values)
    scores = standardised(values)
    return scores[:, scores.any(0)], np.zeros(len(values), np.int64)


def normal_scores(values: npt.NDArray[Any]) -> Vector:
    """Replace each column (N, d) by the normal quantiles of its ranks, scaled to unit variance.

    A column that passes for normal (D'Agostino & Pearson's test at 0.1%) is only scaled: ranks would add noise
    of variance about 1/N to it, which costs information where little is left unexplained.
    """
    scores = standardised(values)
    with np.errstate(all="ignore"):
        skewed = ~(normaltest(scores, axis=0).pvalue > 1e-3) if len(values) >= 20 else np.ones(values.shape[1], bool)
    skewed &= scores.any(0)
    if skewed.any():
        ranks = rankdata(values[:, skewed], axis=0)
        scores[:, skewed] = standardised(ndtri(ranks / (len(values) + 1)))
    return scores


Codes = npt.NDArray[np.int64]
_POINTS_PER_CODE = 256  # to learn codes on; more would cost time and move them little


def relabel(rows: npt.NDArray[Any]) -> Codes:
    """Number the distinct rows (N, d), or values (N,), from 0 in ascending order."""
    if rows.ndim == 1:
        return _numbered(rows)
    if not rows.shape[1]:
        return np.zeros(len(rows), np.int64)
    codes = _numbered(rows[:, 0])
    for column in rows.T[1:]:  # the order of rows is that of their first columns
        if int(codes.max(initial=-1)) + 1 == len(codes):
            break
        other = _numbered(column)
        codes = _numbered(codes * (int(other.max(initial=0)) + 1) + other)
    return codes


def _numbered(values: npt.NDArray[Any]) -> Codes:
    if values.dtype.kind == "i" and len(values):
        least = int(values.min())
        span = int(values.max()) - least + 1
        if span <= 16 * len(values) + 1024:  # a table is faster than sorting
            at = values.astype(np.int64) - least
            present = np.zeros(span, np.int64)
            present[at] = 1
            return np.asarray((np.cumsum(present) - 1)[at])
    inverse: Codes = np.unique(values, return_inverse=True)[1]
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
            f"{size} codes need at least as many samples to fit them on, not {len(fit)}; give fewer codes."
        )
    if len(np.unique(fit, axis=0)) <= size:
        return relabel(values)
    if values.shape[1] == 1:
        edges = np.quantile(fit[:, 0], np.linspace(0, 1, size + 1)[1:-1])
        return np.searchsorted(np.unique(edges), values[:, 0], side="right").astype(np.int64)
    return np.asarray(k_means(fit, size, seed).predict(values)).astype(np.int64)


def k_means(fit: npt.NDArray[Any], size: int, seed: int) -> Any:
    """Learn ``size`` centres on samples (N, d): scikit-learn's estimator, fitted."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    fit = fit[:: max(1, len(fit) // (_POINTS_PER_CODE * size))]
    with warnings.catch_warnings(), one_thread():
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
            f"{size} codes need at least as many samples to fit them on, not {len(fit[0])}; give fewer codes."
        )
    centres = k_means(np.hstack(fit), size, seed).cluster_centers_
    own = np.split(centres, np.cumsum([x.shape[1] for x in features])[:-1], axis=1)
    squares = [(c**2).sum(1) - 2 * x @ c.T for x, c in zip(features, own, strict=True)]  # less |x|², which all share
    total = np.zeros_like(squares[0])
    for part in squares:
        total += part
    return [(total - part).argmin(1) for part in (0, *squares)]
