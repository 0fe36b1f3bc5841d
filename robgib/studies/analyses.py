"""Analyse the compression of one network's layers in every way that a study compares, one row per analysis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from robgib.information import Binned, Estimator, Exact, Gaussian, LossComparison
from robgib.information.features import Features, Projection
from robgib.information.measures import effective_samples
from robgib.information.observer import Resolution
from robgib.information.preprocessing import k_means, relabel
from robgib.information.views import EXACT, NOISE, RATE, FittedView, Rescaled, View, mixture_information
from robgib.training.compression import Point, agreed_verdict, complexity_point, verdict_of

__all__ = [
    "CHOICES",
    "COMPRESSION",
    "OUTCOMES",
    "UNIT_SYNERGY",
    "Layer",
    "Sample",
    "analyse",
    "rescaled",
]

Array = npt.NDArray[Any]
COMPRESSION = "compression phase"
UNIT_SYNERGY = "S(Z;Y) of the units falls while I(X;Z) rises"
OUTCOMES = {"compresses": "comes out", "does not compress": "does not"}
"""What a verdict on compression says of the claim; any other verdict is ``undetermined``."""
CHOICES = ("term", "features", "view", "fitted", "estimator", "weights", "layer")
"""What an analysis of a network chooses."""
FIXED, BY_EPOCH, OWN, SWEPT = "fixed over training", "by epoch", "own units of each epoch", "fixed, and swept"
PATCHES, UNITS, COMPONENTS = "input pieces", "layer units", "principal components"
VIEWS = {EXACT: "bins", RATE: "rate", NOISE: "noise"}
COUNTED, PLAIN, PMI = "counted", "none", "PMI"
_GROUPS, _COMPONENTS = 4, 4
_SWEEP = (0.5, 2.0)
"""Times the number of codes or bins, and parts of the noise, at which a swept analysis must agree with the main one."""
_LEAST = 0.02  # bits
_LOSS_SAMPLES = 600
_EPOCHS = 5
_SCALES = {"rescaled layer": (1.0, 2.0, 4.0, 2.0, 1.0), "rescaled unit": (1.0, 2.0, 4.0, 8.0, 16.0)}


@dataclass(frozen=True)
class Sample:
    """What is the same at all epochs.

    Attributes:
        y: labels (N,).
        weights: by epoch, PMI weights (N,).
        inputs: the features of the input.
        groups: the same input in few features, for estimators that learn.
        enumerated: whether the samples are all inputs there are.
        resolution: codes, bins and noise of the main analyses.
        noisy: samples of a mixture at most.
    """

    y: Array
    weights: Mapping[int, Array]
    inputs: Features
    groups: Features
    enumerated: bool
    resolution: Resolution
    noisy: int = 400

    def at_last(self) -> Sample:
        """The sample with the last epoch's weights at every epoch of a rescaled network."""
        last = list(self.weights.values())[-1]
        return replace(self, weights=dict.fromkeys(range(_EPOCHS), last))


@dataclass(frozen=True)
class Layer:
    """A layer's activations at every epoch.

    Attributes:
        name: ``last`` or ``before the last``.
        values: by epoch, (N, D).
        fit: by epoch, (M, D): what views are fitted on.
    """

    name: str
    values: Mapping[int, Array]
    fit: Mapping[int, Array]

    def changed(self, change: Callable[[int, Array], Array]) -> Layer:
        """The layer with every epoch's activations changed alike."""
        return Layer(
            self.name,
            {e: change(e, z) for e, z in self.values.items()},
            {e: change(e, z) for e, z in self.fit.items()},
        )

    @property
    def pooled(self) -> Array:
        """All epochs' activations, for fitting."""
        return np.concatenate(list(self.fit.values()))


def rescaled(layer: Layer, kind: str) -> Layer:
    """Return the trained layer at five epochs that differ only in its scale.

    The whole layer, or its most variable unit, is multiplied by a positive number, and the next weights are divided by
    it. The function is the same at every epoch, so a decrease of an estimate is not compression.

    Args:
        layer: of the trained network.
        kind: ``rescaled layer`` or ``rescaled unit``.
    """
    z, fit = list(layer.values.values())[-1], list(layer.fit.values())[-1]
    scale = np.ones(z.shape[1])
    place = slice(None) if kind == "rescaled layer" else slice(int(fit.var(0).argmax()), int(fit.var(0).argmax()) + 1)

    def at(factor: float, values: Array) -> Array:
        grown = scale.copy()
        grown[place] = factor
        return values * grown

    factors = dict(enumerate(_SCALES[kind]))
    return Layer(layer.name, {e: at(f, z) for e, f in factors.items()}, {e: at(f, fit) for e, f in factors.items()})


@dataclass
class _Curves:
    """Curves over the epochs, by the choices of the analysis and the resolution of the sweep."""

    of: dict[tuple[str, ...], dict[int, dict[int, Point]]] = field(default_factory=dict)

    def add(self, choices: tuple[str, ...], sweep: int, epoch: int, point: Point) -> None:
        self.of.setdefault(choices, {}).setdefault(sweep, {})[epoch] = point

    def rows(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row an analysis."""
        for choices, sweep in self.of.items():
            found = [verdict_of(points, seed) for points in sweep.values()]
            row = dict(found[0])
            if len(found) > 1:  # what must be found at every resolution is as large as the least of them
                row |= {key: min(f[key] for f in found) for key in ("compression", "low", "high")}
                row["verdict"] = agreed_verdict([("", f["verdict"]) for f in found])
            outcome = OUTCOMES.get(row.pop("verdict"), "undetermined")
            change = {"change": row.pop("compression"), "low": row.pop("low"), "high": row.pop("high")}
            yield {
                "claim": COMPRESSION,
                **dict(zip(CHOICES, choices, strict=True)),
                **change,
                **row,
                "outcome": outcome,
            }


def analyse(layer: Layer, sample: Sample, *, learn: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """All analyses of one layer: a row each, with the choices, the fall as a share of the peak, and what comes out.

    Args:
        layer: at every epoch.
        sample: the samples.
        learn: whether to include the estimators that train networks.
        seed: of the resamples.
    """
    curves = _Curves()
    views: tuple[View, ...] = (EXACT, RATE, NOISE) if sample.enumerated else (RATE, NOISE)
    for view, fitted in itertools.product(views, (FIXED, BY_EPOCH, OWN, SWEPT)):
        for features in (UNITS, COMPONENTS):
            _counted(curves, layer, sample, view, fitted, features)
        if view != NOISE or not sample.enumerated:  # bits are not Gaussian
            _of_inputs(curves, layer, sample, view, fitted, learn and layer.name == "last")
    rows = list(curves.rows(seed))
    return [*rows, *_unit_synergy(layer, sample)]


# Counted: features of the layer itself, about the input.


def _seen(layer: Layer, fitted: str, features: str) -> tuple[Layer, Callable[[int], Array]]:
    """The layer as an analysis sees it, and by epoch what its bins, codes and scales are fitted on."""
    seen = layer.changed(lambda _, z: z)
    if fitted == OWN:
        scales = {e: Rescaled.of(z) for e, z in layer.fit.items()}
        seen = layer.changed(lambda e, z: (z - scales[e][0]) / scales[e][1])
    if features == COMPONENTS:
        each = {e: Projection.fit(z if fitted == BY_EPOCH else seen.pooled, _COMPONENTS) for e, z in seen.fit.items()}
        if fitted != BY_EPOCH:
            one = next(iter(each.values()))
            each = dict.fromkeys(each, one)
        wide = max(p.dims for p in each.values())  # an epoch of fewer components has zeros in their place
        seen = seen.changed(lambda e, z: np.pad(each[e](z), ((0, 0), (0, wide - each[e].dims))))
    if fitted == BY_EPOCH:
        return seen, lambda e: seen.fit[e]
    together = seen.pooled
    return seen, lambda _: together


def _counted(curves: _Curves, layer: Layer, sample: Sample, view: View, fitted: str, features: str) -> None:
    """I and C with the layer's units, or components, as features: I(Z_A;X) of a deterministic network is counted."""
    seen, of = _seen(layer, fitted, features)
    width = next(iter(seen.values.values())).shape[1]
    edges = np.linspace(0, width, min(width, _GROUPS) + 1).round().astype(int)
    groups = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    subsets = [np.arange(width), *groups, *(np.setdiff1d(np.arange(width), g) for g in groups)]
    for sweep, times in enumerate((1.0, *_SWEEP) if fitted == SWEPT else (1.0,)):
        readers: dict[int, Callable[[Array, Array, Array | None], Array]] = {}
        for epoch, z in seen.values.items():
            basis = of(epoch)
            if id(basis) not in readers:
                readers[id(basis)] = _reader(view, basis, sample, times)
            read = readers[id(basis)]
            for how, w in ((PLAIN, None), (PMI, sample.weights[epoch])):
                if how == PLAIN or view != NOISE:  # the weights count in the mean alone
                    whole = read(z, subsets[0], w)
                    bits = [read(z, columns, w) if len(columns) else np.zeros(len(whole)) for columns in subsets[1:]]
                few, parts = None if w is None else _usable(w[: len(whole)]), np.sum(bits, 0) / len(groups)
                for term, pointwise in (("I", whole), ("C", parts)):
                    choices = (term, features, VIEWS[view], fitted, COUNTED, how, layer.name)
                    curves.add(choices, sweep, epoch, _point(pointwise, few, sample.enumerated and view != NOISE))


def _reader(view: View, basis: Array, sample: Sample, times: float) -> Callable[[Array, Array, Array | None], Array]:
    """From activations (N, D), columns and weights to pointwise bits (N,) of those columns about the input."""
    resolution = sample.resolution
    if view == NOISE:
        width = resolution.sigma / times * float(np.sqrt(basis.var(0).sum()))

        def noisy(z: Array, columns: Array, weights: Array | None) -> Array:
            rng = np.random.default_rng([resolution.seed, 5])
            return mixture_information(z[: sample.noisy, columns], width, rng)

        return noisy
    if view == EXACT:
        low, high = float(basis.min()), float(basis.max())
        count = max(2, int(resolution.bins * times))

        def binned(z: Array, columns: Array, weights: Array | None) -> Array:
            share = (z[:, columns] - low) / max(high - low, 1e-300)
            return _surprise(relabel(np.clip(share * count, 0, count - 1).astype(np.int64)), weights, True)

        return binned
    size = max(2, int(resolution.codes * times))
    distinct = np.unique(basis, axis=0)
    centres = distinct if len(distinct) <= size else k_means(basis, size, resolution.seed).cluster_centers_

    def coded(z: Array, columns: Array, weights: Array | None) -> Array:
        own = centres[:, columns]
        codes = ((own**2).sum(1) - 2 * z[:, columns] @ own.T).argmin(1)
        return _surprise(codes, weights, sample.enumerated)

    return coded


def _surprise(codes: Array, weights: Array | None, enumerated: bool) -> Array:
    """−log2 of each sample's share (N,), of mean H: corrected after Miller and Madow unless all inputs are listed."""
    codes = relabel(codes)
    mass = np.bincount(codes, weights)
    total = len(codes) if weights is None else float(weights.sum())
    bits = -np.log2(np.maximum(mass[codes], 1e-300) / total)
    if weights is not None:
        bits = np.where(weights > 0, bits, 0.0)
    samples = len(codes) if weights is None else effective_samples(weights)
    return np.asarray(bits if enumerated else bits + (int((mass > 0).sum()) - 1) / (2 * samples * np.log(2)))


def _point(pointwise: Array, weights: Array | None, enumerated: bool) -> Point:
    if weights is None:
        value, terms = float(pointwise.mean()), pointwise
    else:
        weights = weights / max(float(weights.mean()), 1e-300)
        value = float((weights * pointwise).mean())
        terms = weights * (pointwise - value) + value
    return Point(value, 0.0) if enumerated else Point(value, 0.0, pointwise=terms)


# Estimated, or counted over all inputs: pieces of the input, about the layer.


def _views(layer: Layer, view: View, fitted: str, resolution: Resolution) -> Callable[[int], FittedView]:
    """By epoch, the fitted view of the layer."""
    if fitted == BY_EPOCH:
        own = {e: resolution.fit(view, z) for e, z in layer.fit.items()}
        return lambda e: own[e]
    if fitted == OWN:
        scales = {e: Rescaled.of(z) for e, z in layer.fit.items()}
        units = layer.changed(lambda e, z: (z - scales[e][0]) / scales[e][1])
        fixed = resolution.fit(view, units.pooled)
        return lambda e: Rescaled(fixed, *scales[e])
    one = resolution.fit(view, layer.pooled)
    return lambda _: one


def _of_inputs(curves: _Curves, layer: Layer, sample: Sample, view: View, fitted: str, learn: bool) -> None:
    """C with pieces of the input as features."""
    main = sample.resolution
    makers: list[tuple[str, Estimator, Features]]
    if sample.enumerated:
        makers = [(COUNTED, Exact(), sample.inputs)]
    else:
        maker = Gaussian() if view == NOISE else Binned(seed=main.seed)
        makers = [(maker.name, maker, sample.inputs)]
    if learn and view == RATE and fitted in (FIXED, BY_EPOCH):
        makers.append(("loss comparison after PCA", LossComparison(steps=75, width=16, folds=3), sample.groups))
    for called, estimator, features in makers:
        few = _LOSS_SAMPLES if isinstance(estimator, LossComparison) else sample.noisy if view == NOISE else None
        rows = slice(few)
        values = [v[rows] for v in features.values]
        prepared = estimator.prepare(values, values if sample.enumerated else features.fit)
        for sweep, times in enumerate((1.0, *_SWEEP) if fitted == SWEPT else (1.0,)):
            resolution = Resolution(
                main.dims, int(main.codes * times), main.sigma / times, int(main.bins * times), main.seed
            )
            at = _views(layer, view, fitted, resolution)
            for epoch, z in layer.values.items():
                for how, w in ((PLAIN, None), (PMI, sample.weights[epoch])):
                    w = None if w is None else _usable(w[rows])
                    fit = z[rows] if sample.enumerated else layer.fit[epoch]
                    target = at(epoch).target(layer.name, z[rows], fit, sample.y[rows], w)
                    (found,) = estimator.of_network(prepared, [target], None, w)
                    choices = ("C", PATCHES, VIEWS[view], fitted, called, how, layer.name)
                    point = Point(found.complexity.value, 0.0) if called == COUNTED else complexity_point(target, found)
                    curves.add(choices, sweep, epoch, point or Point(np.nan, 0.0))


def _usable(weights: Array) -> Array:
    """The weights, or equal ones where none of these samples counts."""
    return weights if weights.any() else np.ones(len(weights))


# Another claim: units about the label.


def _unit_synergy(layer: Layer, sample: Sample) -> Iterator[dict[str, Any]]:
    """S(Z;Y) of the units from the first epoch to the last, beside I(X;Z) in the same view: a row an analysis."""
    epochs = list(layer.values)
    first, last = epochs[0], epochs[-1]
    view: View = EXACT if sample.enumerated else RATE
    for fitted in (FIXED, BY_EPOCH, OWN):
        seen, of = _seen(layer, fitted, UNITS)
        synergy, total = {}, {}
        for epoch in (first, last):
            read, z = _reader(view, of(epoch), sample, 1.0), seen.values[epoch]
            total[epoch] = float(read(z, np.arange(z.shape[1]), None).mean())
            synergy[epoch] = _label_synergy(of(epoch), z, seen.fit[epoch], sample)
        change = synergy[last][0] - synergy[first][0]
        half = float(np.hypot(synergy[last][1], synergy[first][1]))
        rise = total[last] - total[first]
        outcome = "undetermined"
        if change + half < -_LEAST and rise > _LEAST:
            outcome = "comes out"
        elif change - half > -_LEAST or rise <= _LEAST:
            outcome = "does not"
        choices = ("S", UNITS, VIEWS[view], fitted, COUNTED if sample.enumerated else "binned", PLAIN, layer.name)
        yield {
            "claim": UNIT_SYNERGY,
            **dict(zip(CHOICES, choices, strict=True)),
            "change": change, "low": change - half, "high": change + half, "peak_epoch": first,
            "peak": synergy[first][0], "final": synergy[last][0], "rise": rise, "outcome": outcome,
        }  # fmt: skip


def _label_synergy(basis: Array, z: Array, fit: Array, sample: Sample) -> tuple[float, float]:
    """S(Z;Y) in bits with the layer's units as features, and half its interval."""
    if sample.enumerated:
        low, high, bins = float(basis.min()), float(basis.max()), sample.resolution.bins
        codes = np.clip((z - low) / max(high - low, 1e-300) * bins, 0, bins - 1).astype(np.int64)
        found = Exact().estimate(list(codes.T), sample.y)
    else:
        binned = Binned(seed=sample.resolution.seed)
        units = binned.of_units(z, fit, _GROUPS)
        found = binned.estimate(units.values, sample.y, fit_features=units.fit)
    return found.synergy.value, (found.synergy.high - found.synergy.low) / 2
