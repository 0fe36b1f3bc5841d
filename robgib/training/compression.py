"""Compression in training: how far a term falls from its peak over the epochs, with an interval and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from robgib.information.decomposition import Decomposition
from robgib.information.views import EXACT, RATE, Target, View

__all__ = [
    "OWN",
    "POOLED",
    "Curve",
    "Point",
    "agreed_verdict",
    "complexity_point",
    "compression_of",
    "compression_rows",
    "counted_point",
    "verdict_of",
]

POOLED, OWN = "pooled", "own"
"""Units of the layers: pooled over the epochs, or each epoch's own."""
_RESAMPLES = 400
_LEAST = 0.02
"""Share of the peak that a fall must exceed to be compression."""
_NONE = 0.05
"""Share of the peak below which the upper end of the interval excludes compression."""


@dataclass(frozen=True)
class Curve:
    """A term of a layer that is followed over the epochs.

    Attributes:
        estimator: name of the estimator, or ``counted``.
        view: in which the layer is seen.
        layer: name of the layer.
        term: name of the term.
        units: :data:`POOLED` or :data:`OWN`.
        main: whether it has the resolution of the estimates.
        resolution: that resolution in words.
    """

    estimator: str
    view: View
    layer: str
    term: str
    units: str
    main: bool
    resolution: str


@dataclass(frozen=True)
class Point:
    """A term at one epoch.

    Attributes:
        value: the estimate in bits.
        spread: standard deviation of the error beyond that of sampling.
        pointwise: (N,) values per sample whose mean is the estimate, or None.
        codes: (N,) codes whose entropy is the estimate, or None.
        weights: (N,) of the samples whose codes are counted, or None.
    """

    value: float
    spread: float
    pointwise: np.ndarray | None = None
    codes: np.ndarray | None = None
    weights: np.ndarray | None = None


def counted_point(target: Target, weights: np.ndarray | None = None) -> Point:
    """The counted I(X;Z) of one epoch; if all inputs are listed, it has no error."""
    if target.view == RATE:
        return Point(target.total.value, 0.0, codes=target.values, weights=weights)
    return Point(target.total.value, (target.total.high - target.total.low) / 2 / 1.96)


def complexity_point(target: Target, decomposition: Decomposition) -> Point | None:
    """The estimated C(X;Z) of one epoch; None if it is not estimable."""
    estimate = decomposition.complexity
    if target.view == EXACT:
        return Point(estimate.value, 0.0)
    if estimate.value != estimate.value:
        return None
    error = (estimate.high - estimate.low) / 2 / 1.96
    if decomposition.pointwise is None:
        return Point(estimate.value, error)
    pointwise = decomposition.pointwise[:, 1:].sum(1) / len(decomposition.single_feature)
    systematic = max(error**2 - pointwise.var() / len(pointwise), 0.0)
    return Point(estimate.value, float(np.sqrt(systematic)), pointwise=pointwise)


def compression_of(values: Sequence[float]) -> float:
    """(peak − final)/peak of a term over the epochs; NaN unless the peak is above 0.

    >>> compression_of([1.0, 2.0, 1.5])
    0.25
    """
    sequence = np.asarray(values, float)
    peak = sequence.max()
    return float((peak - sequence[-1]) / peak) if peak > 0 else float("nan")


def _resampled(curve: Mapping[int, Point], seed: int) -> np.ndarray:
    """Values (resamples, epochs); each resample draws the same samples at all epochs."""
    sizes = [len(per_sample) for p in curve.values() for per_sample in (p.pointwise, p.codes) if per_sample is not None]
    weights, state = _draws(sizes[0] if sizes else 0, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    columns = []
    for point in curve.values():
        drawn = np.full(_RESAMPLES, point.value)
        if point.pointwise is not None:
            drawn = point.value + weights @ (point.pointwise - point.pointwise.mean()) / len(point.pointwise)
        elif point.codes is not None:
            own = weights if point.weights is None else weights * point.weights
            drawn = point.value + _entropies(point.codes, own)
        columns.append(drawn + point.spread * rng.standard_normal(_RESAMPLES))
    return np.stack(columns, 1)


@lru_cache(maxsize=4)  # the curves of a network have the same samples
def _draws(samples: int, seed: int) -> tuple[np.ndarray, Any]:
    """How often each sample is drawn in each resample (resamples, N), and the state of the generator afterwards."""
    rng = np.random.default_rng([seed, 13])
    shares = np.full(samples, 1 / max(samples, 1))
    weights = rng.multinomial(samples, shares, size=_RESAMPLES) if samples else np.zeros((_RESAMPLES, 0))
    return weights.astype(float), rng.bit_generator.state


def _entropies(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Plug-in entropies of resampled codes (resamples,), less their mean.

    A resample has fewer symbols than the sample; the mean takes out the bias that follows.
    """
    _, dense = np.unique(codes, return_inverse=True)
    one_hot = np.zeros((len(dense), dense.max() + 1))
    one_hot[np.arange(len(dense)), dense.reshape(-1)] = 1
    p = weights @ one_hot / weights.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.nansum(np.where(p > 0, p * np.log2(p), 0.0), 1)
    return np.asarray(h - h.mean())


def verdict_of(curve: Mapping[int, Point], seed: int) -> dict[str, Any]:
    """Compression of one term with its 95% interval, and the verdict."""
    epochs, values = list(curve), np.array([p.value for p in curve.values()])
    peak = int(values.argmax())
    row: dict[str, Any] = {
        "peak_epoch": epochs[peak],
        "peak": float(values[peak]),
        "final": float(values[-1]),
        "compression": compression_of(list(values)),
    }
    if not np.isfinite(row["compression"]):
        return {**row, "low": np.nan, "high": np.nan, "verdict": "undetermined"}
    resampled = _resampled(curve, seed)
    low = _least_fall(values, resampled) / float(values[peak])
    peaks = resampled.max(1)
    shares = (peaks - resampled[:, -1]) / np.where(peaks > 0, peaks, np.nan)
    high = max(float(np.nanquantile(shares, 0.975)), row["compression"])
    verdict = "compresses" if low > _LEAST else "does not compress" if high < _NONE else "undetermined"
    return {**row, "low": low, "high": high, "verdict": verdict}


def _least_fall(values: np.ndarray, resampled: np.ndarray) -> float:
    """Lower end, at 97.5%, of the largest fall from any epoch to the last, by a simultaneous band over the epochs."""
    falls, resampled_falls = values - values[-1], resampled - resampled[:, -1:]
    error = resampled_falls.std(0)
    uncertain = error > 1e-12
    low = 0.0
    if uncertain.any():
        worst = ((resampled_falls - falls)[:, uncertain] / error[uncertain]).max(1)
        critical = float(np.quantile(worst, 0.975))
        low = float(max(0.0, (falls[uncertain] - critical * error[uncertain]).max()))
    return max(low, float(falls[~uncertain].max(initial=0.0)))


def compression_rows(
    curves: Mapping[Curve, Mapping[int, Point]], layers: Sequence[str], partition: str, seed: int
) -> list[dict[str, Any]]:
    """One row per curve; the first row of each term of a layer has the verdict on which all its curves agree."""
    groups: dict[tuple[str, str, str, str], list[tuple[Curve, dict[str, Any]]]] = {}
    for curve, points in curves.items():
        key = (curve.layer, curve.term, curve.estimator, curve.view)
        groups.setdefault(key, []).append((curve, verdict_of(points, seed)))
    rows = []
    for (layer, term, estimator, view), own in groups.items():
        own.sort(key=lambda one: (one[0].units != POOLED, not one[0].main))
        place = {
            "estimator": estimator,
            "layer": layer,
            "depth": layers.index(layer),
            "view": view,
            "partition": partition,
            "term": term,
        }
        agreed = agreed_verdict([(curve.units, row["verdict"]) for curve, row in own])
        for i, (curve, row) in enumerate(own):
            verdict = row["verdict"] if i else agreed
            rows.append({**place, "resolution": curve.resolution, "units": curve.units, **row, "verdict": verdict})
    return sorted(rows, key=lambda r: (r["depth"], r["term"] != "I(X;Z)", r["estimator"]))


def agreed_verdict(verdicts: Sequence[tuple[str, str]]) -> str:
    """The common verdict of a term's curves, each given with its units; the main curve of each units comes first.

    >>> agreed_verdict([("pooled", "compresses"), ("own", "compresses")])
    'compresses'
    >>> agreed_verdict([("pooled", "compresses"), ("own", "does not compress")])
    'rescaling'
    >>> agreed_verdict([("pooled", "compresses"), ("pooled", "does not compress"), ("own", "compresses")])
    'depends on the resolution'
    """
    by_units = {u: [v for units, v in verdicts if units == u] for u, _ in verdicts}
    if any({"compresses", "does not compress"} <= set(own) for own in by_units.values()):
        return "depends on the resolution"
    first = {own[0] for own in by_units.values()}
    if len(first) == 1:
        return first.pop()
    return "undetermined" if "undetermined" in first else "rescaling"
