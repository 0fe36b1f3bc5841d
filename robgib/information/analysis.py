"""The information half of an evaluation: the terms of a model's layers, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.data.dataset import Dataset, information_rows, split_information
from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError, never_ends
from robgib.information.activations import LOGITS, find_layers, functions_of
from robgib.information.base import Decomposition, Estimator
from robgib.information.donors import most_donors
from robgib.information.estimate import Estimate
from robgib.information.exact import Exact
from robgib.information.features import Features, group_inputs
from robgib.information.measures import effective_samples, gib_objective, ib_objective, pmi_weights
from robgib.information.observer import LABEL, PREDICTION, Inputs, LayerView, Observation, Resolution, about
from robgib.information.readings import code_variants, noise_terms, subset_synergy, unit_terms
from robgib.information.registry import build_estimators
from robgib.information.views import (
    EXACT,
    NOISE,
    RATE,
    SYMBOLS_A_CLASS,
    Codebook,
    Target,
    View,
    entropy_estimate,
    mark_processing,
)
from robgib.models.inference import PreparedModel, predict, prepare
from robgib.options import Context, InformationOptions, gather, or_default
from robgib.results import table

__all__ = [
    "DEFAULT_ESTIMATORS",
    "LABEL",
    "PREDICTION",
    "SIGMA",
    "SWEPT",
    "TERMS",
    "LayerInformation",
    "bins_of",
    "check_suited",
    "check_used",
    "default_codes",
    "default_features",
    "layer_information",
    "make_estimators",
    "named_estimators",
    "partitions_of",
    "passes_of",
    "term_rows",
    "weighed",
]

DEFAULT_ESTIMATORS = ("imputation",)
TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)", "learnt I(X;Z)", "IB", "GIB")
"""The terms of a layer: prediction and IB complexity, which are counted; GIB complexity, synergy, and the degrees of
redundancy and vulnerability (numbers of features, not bits), which are estimated; the estimator's own I(X;Z); the
objectives."""
SWEPT = ("C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)")
"""The terms of a code that are also given at half and at twice as many symbols, as ``v(X;Z) k/2`` and ``v(X;Z) 2k``."""
SIGMA = 0.3
"""Standard deviation of the noise of the ``noise`` view, as a share of a layer's total standard deviation."""
_LARGE = 64
"""Side in pixels above which images are cut into few features alone by default."""
_STEPS = 800
"""Training steps of estimators that learn, for all layers together: more steps changed their figures by 1% or less."""
_GAP = 0.1
"""Share of a counted I(X;Z) that an estimator may fail to learn before its figures are flagged."""
_FEW_EFFECTIVE = 0.2
"""Share of the samples below which the effective sample size of PMI weights flags the figures."""

Part = tuple[Tensor, Tensor]
"""Images (N, …) and their labels (N,)."""
Rows = dict[str, list[dict[str, Any]]]
"""Rows by table."""


@never_ends
def layer_information(
    model: object,
    data: Dataset,
    estimators: Sequence[str | Estimator] | None = None,
    *,
    samples: int = 5000,
    options: InformationOptions | None = None,
    context: Context | None = None,
    **fields: Any,
) -> LayerInformation:
    """Estimate the information terms of a model's layers, each in the view of its estimator.

    Args:
        model: a classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        data: estimates use test images; codes and components are fitted on training images. Data without training
            images are split: every second test image is for fitting.
        estimators: specifications such as ``probe`` or ``imputation:donors=32``, or estimator objects; None takes those
            of the options.
        samples: largest number of images to estimate on, and to fit on.
        options: layers, features and resolution (:class:`~robgib.options.InformationOptions`).
        context: seed, device, batch size, plug-ins, resume and progress (:class:`~robgib.options.Context`); the default
            is the CPU.
        fields: fields of ``options`` and ``context`` by name, such as ``layers=["logits"]`` or ``seed=1``.

    Raises:
        RobGIBError: an unknown name, a layer that cannot be captured, or samples that an estimator cannot use.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> found = layer_information(model, data, ["gaussian"], layers=["logits"], samples=200)
    >>> found.layers.query("layer == 'logits'")["term"].unique().tolist()
    ['I(Z;Y)', 'I(X;Z)', 'C(X;Z)', 'S(X;Z)', 'r(X;Z)', 'v(X;Z)', 'learnt I(X;Z)', 'IB', 'GIB']
    """
    options, context = gather(
        "layer_information",
        fields,
        or_default("options", options, InformationOptions()),
        or_default("context", context, Context(device="cpu")),
    )
    options = replace(
        options, information_samples=samples, estimators=options.estimators if estimators is None else estimators
    )
    makers = make_estimators(options.estimators, data, samples, context.seed, context.catalogue)
    check_used(makers, options)
    partitions = partitions_of(options.features, data.shape)
    if not isinstance(model, PreparedModel):
        classes = len(data.classes)
        model = prepare(model, data.test.x, classes=classes, batch_size=context.batch_size, device=context.device)
    few = data.test.sample(2, context.seed)[0]
    names, left_out = find_layers(model.model, few.to(context.device), options.layers or None)
    estimated, fitted = (len(rows) for rows in information_rows(data, samples, context.seed))
    not_finite = 0
    rows: Rows = {"layers": [], "features": []}
    if makers:
        parts = split_information(data, samples, context.seed)
        parts, predicted, not_finite = _finite_parts(model, parts, context)
        estimated, fitted = (len(x) for x, _ in parts)
        layers = _Layers.observe(model, data, makers, names, parts, predicted, options, context)
        rows = layers.estimate(makers, partitions)
    tables = (table("layers", rows["layers"]), table("features", rows["features"]))
    return LayerInformation(*tables, names, partitions, estimated, fitted, not_finite, left_out)


@dataclass(frozen=True)
class _Layers:
    """A model's layers in the views of the estimators, and the targets that features of the input inform.

    Attributes:
        observation: the layers' activations.
        options: resolution, and which terms.
        names: names of the layers, in order.
        views: by view, the fitted views of all layers.
        targets: by view, the layers and the labels.
        noise: by layer, rows of the ``noise`` view, which are shown beside those of a layer's code.
        subsets: by layer, the row of the subset synergy.
        weights: (N,) of the samples, or None.
    """

    observation: Observation
    options: InformationOptions
    names: tuple[str, ...]
    views: Mapping[View, Sequence[LayerView]]
    targets: Mapping[View, Sequence[Target]]
    noise: Mapping[str, Sequence[Mapping[str, Any]]]
    subsets: Mapping[str, Mapping[str, Any]]
    weights: np.ndarray | None

    @classmethod
    def observe(
        cls,
        model: PreparedModel,
        data: Dataset,
        makers: Sequence[Estimator],
        names: tuple[str, ...],
        parts: tuple[Part, Part],
        predicted: Sequence[np.ndarray],
        options: InformationOptions,
        context: Context,
    ) -> _Layers:
        """Run the model on the images, and fit every view."""
        (x, y), (x_fit, y_fit) = parts
        runs = any(m.runs_network for m in makers)
        donors = _donors(model, data, x_fit, options.information_samples or len(x), context) if runs else x_fit
        inputs = Inputs(x, x_fit, y.numpy(), y_fit.numpy(), donors, data.enumerated)
        observation = Observation.of(model, names, inputs, context, reduced=not options.unit_groups)
        weights = pmi_weights(predicted[0], inputs.y) if options.pmi else None
        resolution = Resolution(
            options.layer_dims,
            options.codes or default_codes(len(data.classes), len(x_fit)),
            options.sigma,
            bins_of(makers),
            context.seed,
        )
        views: dict[View, list[LayerView]] = {}
        targets: dict[View, list[Target]] = {}
        for view in dict.fromkeys(m.view for m in makers):
            views[view] = [LayerView(n, resolution.fit(view, observation.fit[n])) for n in names]
            of_layers = observation.targets(views[view], weights)
            of_labels = _labels(view, predicted, (inputs.y, inputs.y_fit), weights)
            computed = partial(_computed_from, model.model, x[:8].to(context.device), view)
            targets[view] = mark_processing([*of_layers, *of_labels], computed)
        noise: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
        if RATE in views:
            variants = code_variants(views[RATE], observation.fit, resolution)
            views[RATE] += variants
            targets[RATE] += observation.targets(variants, weights)
            noise = {n: noise_terms(observation, n, resolution, options.beta, weights) for n in names}
        subsets: dict[str, dict[str, Any]] = {}
        if options.unit_groups:
            context.report("leaving out units", 0, 1)
            subsets = subset_synergy(
                model.model, x, inputs.y, predicted[0], names,
                batch_size=model.batch_size, device=context.device, seed=context.seed,
            )  # fmt: skip
        return cls(observation, options, names, views, targets, noise, subsets, weights)

    def estimate(self, makers: Sequence[Estimator], partitions: Sequence[str]) -> Rows:
        """Rows of the tables ``layers`` and ``features`` by every estimator, for every partition of the input."""
        context, rows = self.observation.context, {"layers": [], "features": []}  # type: tuple[Context, Rows]
        pairs = [(estimator, partition) for estimator in makers for partition in partitions]
        for number, (estimator, partition) in enumerate(pairs):
            context.report("estimating information", number, len(pairs), f"{estimator.name}, {partition}")
            kept = context.parts.at("information", estimator.name, partition)
            known = kept.read()
            if known is None:
                known = self._rows(estimator, partition)
                kept.write(known)
            for name, own in rows.items():
                own += known[name]
        context.report("estimating information", len(pairs), len(pairs))
        return rows

    def _rows(self, estimator: Estimator, partition: str) -> Rows:
        """Rows of both tables by one estimator, for one partition."""
        inputs, targets = self.observation.inputs, self.targets[estimator.view]
        features = group_inputs(partition, inputs.x, inputs.x_fit, self.options.feature_dims)
        views = {v.name: v for v in self.views[estimator.view]}
        with about(estimator, partition):
            decompositions = self.observation.estimate(
                estimator, features, list(views.values()), targets, weights=self.weights
            )
        rows: Rows = {"layers": [], "features": []}
        for target, decomposition in zip(targets, decompositions, strict=True):
            view = views.get(target.name)
            layer, variant = (view.layer, view.variant) if view else (target.name, "")
            base = {
                "estimator": estimator.name,
                "layer": layer,
                "depth": self.names.index(layer) if layer in self.names else -1,
                "view": estimator.view,
                "partition": partition,
            }
            terms = term_rows(target, decomposition, features, self.options.beta)
            if variant:
                terms = [{**row, "term": f"{row['term']} {variant}"} for row in terms if row["term"] in SWEPT]
            else:
                rows["features"] += [{**base, **row} for row in _feature_terms(features, decomposition)]
                if layer in self.names:
                    terms = self._with_further_terms(terms, estimator, layer)
            if self.weights is not None:
                terms = [weighed(row, self.weights) for row in terms]
            rows["layers"] += [{**base, **row} for row in terms]
        rows["layers"] = mark_open_orders(rows["layers"])
        return rows

    def _with_further_terms(self, rows: list[dict[str, Any]], estimator: Estimator, layer: str) -> list[dict[str, Any]]:
        """A layer's rows with those of its units and those of its ``noise`` view."""
        if self.options.unit_groups:
            with about(estimator, layer):
                own = unit_terms(estimator, self.observation, layer, self.options.unit_groups, self.weights)
            rows = [*rows[:4], *own, dict(self.subsets[layer]), *rows[4:]]
        if estimator.view == RATE:
            rows = [*rows, *({**row, "view": NOISE} for row in self.noise[layer])]
        return rows


@dataclass(frozen=True)
class LayerInformation:
    """The result of :func:`layer_information`.

    Attributes:
        layers: one row per estimator, partition, layer and term (:data:`~robgib.results.SCHEMA`).
        features: one row per estimator, partition, layer and feature of the input.
        names: names of the layers, in order.
        partitions: how the input was cut into features.
        samples: number of images that the estimates use.
        fit_samples: number of images that codes and components were fitted on.
        not_finite: number of images left out because the model's output is not finite.
        left_out: one sentence per block that cannot be a layer.
    """

    layers: pd.DataFrame
    features: pd.DataFrame
    names: tuple[str, ...]
    partitions: tuple[str, ...]
    samples: int
    fit_samples: int
    not_finite: int
    left_out: tuple[str, ...] = ()

    @property
    def undecided(self) -> int:
        """Former name of :attr:`not_finite`."""
        return self.not_finite


def make_estimators(
    estimators: Sequence[str | Estimator],
    data: Dataset,
    samples: int,
    seed: int = 0,
    catalogue: Sequence[Path] = (),
) -> list[Estimator]:
    """Build estimators for a model's layers, and see that they can use the data.

    Raises:
        RobGIBError: an unknown name or option, an estimator that is given twice, or one that the data do not suit.
    """
    made = named_estimators(estimators, seed, catalogue)
    check_suited(made, data, samples)
    return made


def named_estimators(
    estimators: Sequence[str | Estimator], seed: int = 0, catalogue: Sequence[Path] = ()
) -> list[Estimator]:
    """Build estimators for a model's layers, before the data are known.

    Raises:
        RobGIBError: an unknown name or option, or an estimator that is given twice.
    """
    made = build_estimators(estimators, catalogue, seed=seed, steps=_STEPS)
    if len({e.name for e in made}) < len(made):
        raise RobGIBError("an estimator is given twice; name each one once.")
    return made


def check_used(estimators: Sequence[Estimator], options: InformationOptions) -> None:
    """Raise if a resolution is given that no estimator uses: codes without a code, noise where all is counted.

    Raises:
        RobGIBError: the sentence names the option and the estimators that use it.
    """
    views = {e.view for e in estimators}
    names = ", ".join(e.name for e in estimators)
    if views and options.codes is not None and RATE not in views:
        raise RobGIBError(
            f"codes={options.codes} has no effect, since no given estimator ({names}) sees a layer as a code; omit it, "
            "or choose one that does, such as imputation, binned or probe."
        )
    if views == {EXACT} and options.sigma != SIGMA:
        raise RobGIBError(f"sigma={options.sigma:g} has no effect, since {names} adds no noise to a layer; omit it.")


def check_suited(estimators: Sequence[Estimator], data: Dataset, samples: int) -> None:
    """Raise if an estimator cannot use the data.

    Raises:
        RobGIBError: an estimator that counts all inputs, for data or samples that are not all inputs.
    """
    for estimator in estimators:
        if estimator.view == EXACT and not (data.enumerated and samples >= len(data.test)):
            enough = f" with at least {len(data.test)} information samples" if data.enumerated else ""
            raise RobGIBError(
                f"the {estimator.name} estimator counts all inputs there are, such as those of "
                f"function:parity-3{enough}; choose another estimator for {data.name!r}."
            )


def partitions_of(features: str | Sequence[str], shape: tuple[int, ...]) -> tuple[str, ...]:
    """The partitions that ``features`` names, each once; ``auto`` selects the default partitions of this shape.

    >>> partitions_of(["auto", "pixels"], (1, 8, 8))
    ('patches:2', 'patches:4', 'pixels')
    """
    cuts = [features] if isinstance(features, str) else features
    return tuple(dict.fromkeys(p for c in cuts for p in (default_features(shape) if c == "auto" else (c,))))


def passes_of(estimators: Sequence[Estimator], data: Dataset, partitions: Sequence[str], samples: int) -> int:
    """Approximate number of images that the estimators run through the network, over all partitions."""
    if not estimators:
        return 0
    few = data.test.sample(50)[0].numpy()
    pieces = [len(group_inputs(cut, few, few).names) for cut in partitions]
    return sum(e.passes(n, samples) for e in estimators for n in pieces)


def default_features(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The default partitions of samples of this shape: one into few features, and one into more.

    Images larger than 64 pixels have the first one only: an estimator that runs the network does so for every feature
    of every sample, and networks for large images are slow.

    >>> default_features((3, 32, 32)), default_features((3, 224, 224))
    (('patches:2', 'patches:4'), ('patches:2',))
    """
    if len(shape) == 3:
        side = min(shape[1:])
        if side > _LARGE:
            return ("patches:2",)
        return tuple(dict.fromkeys(f"patches:{min(g, side)}" for g in (2, 4)))
    if len(shape) == 2:
        return tuple(dict.fromkeys(f"tokens:{min(g, shape[0])}" for g in (4, 8)))
    size = int(np.prod(shape))
    return ("pixels",) if size <= 64 else ("groups:4", "groups:16")


def default_codes(classes: int, samples: int) -> int:
    """Default number of symbols of a layer's code: four per class, at least 16, at most a fifth of the samples.

    >>> default_codes(10, 5000), default_codes(2, 5000), default_codes(100, 1000)
    (40, 16, 200)
    """
    return max(2, min(max(16, SYMBOLS_A_CLASS * classes), samples // 5))


def bins_of(estimators: Sequence[Estimator]) -> int:
    """Number of bins of the ``exact`` view: that of the estimator that counts in it."""
    return next((e.bins for e in estimators if isinstance(e, Exact)), Exact.bins)


def _finite_parts(
    model: PreparedModel, parts: tuple[Part, Part], context: Context
) -> tuple[tuple[Part, Part], list[np.ndarray], int]:
    """The images (and labels) for which the model's output is finite, the predicted classes (N,), and the number of
    images left out of the first part."""
    predicted = [
        predict(model, x, batch_size=model.batch_size, device=context.device).astype(np.int64) for x, _ in parts
    ]
    first, second = ((x[p >= 0], y[p >= 0]) for (x, y), p in zip(parts, predicted, strict=True))
    return (first, second), [p[p >= 0] for p in predicted], int((predicted[0] < 0).sum())


def _donors(model: PreparedModel, data: Dataset, fit: Tensor, limit: int, context: Context) -> Tensor:
    """Training images (P, …) whose content may replace that of others: those that codes are fitted on, and more."""
    most = most_donors(data.shape)
    if len(fit) >= most or len(data.train) <= limit:
        return fit
    rows = data.train.rows(limit + most - len(fit), context.seed)[limit:]
    more = data.train.at(rows)[0]
    more = more[predict(model, more, batch_size=model.batch_size, device=context.device) >= 0]
    return torch.cat([part.read() if isinstance(part, LazyImages) else part for part in (fit, more)])


def _labels(
    view: View, predicted: Sequence[np.ndarray], labels: Sequence[np.ndarray], weights: np.ndarray | None
) -> list[Target]:
    """The predicted and the true label as targets; the predicted label is counted like a layer's code."""
    truth = labels[0]
    exact = view == EXACT
    # The predicted label is itself the target, and no code of finer values.
    prediction = Codebook.counted(
        PREDICTION, predicted[0], predicted[1], truth, weights, view, "the label predicted", coarse=False
    )
    unknown = Estimate(np.nan, np.nan, np.nan, note="I(X;Y) of the true label is estimated, not counted")
    own = entropy_estimate(truth, weights, exact)
    return [prediction, Target(LABEL, view, truth, labels[1], unknown, own, "the true label", code=False)]


def _computed_from(network: nn.Module, x: Tensor, view: View, layer: str, others: Sequence[str]) -> set[str]:
    """The targets that the network computes from a layer; the predicted class is one of them if the logits are.

    In the ``noise`` view it is not: no noise is added to the predicted class.
    """
    layers = [n for n in others if n not in (PREDICTION, LABEL)]
    computed = {LOGITS} if layer == LOGITS else set(functions_of(network, x, layer, [*layers, LOGITS]))
    return computed | ({PREDICTION} if LOGITS in computed and view != NOISE else set())


def term_rows(target: Target, decomposition: Decomposition, inputs: Features, beta: float) -> list[dict[str, Any]]:
    """The rows of one target: counted terms, estimated terms, and the objectives."""
    counted, learnt, cost = target.total, decomposition.learnt, decomposition.complexity
    known = counted.value == counted.value
    notes = [*target.notes, *decomposition.notes]
    gap = (counted.value - learnt.value) / counted.value if known and counted.value > 0 else 0.0
    over = gap < -_GAP and not counted.flagged
    # I(X_i;T) cannot exceed I(X;T): if it does, beyond its error, the code of X is coarser than that of the feature.
    beyond = [s for s in decomposition.single_feature if s.value == s.value and s.low > decomposition.total.high]
    marked = learnt.value == learnt.value and (gap > _GAP or over or bool(beyond))
    if gap > _GAP:
        notes.append(f"under {1 - _GAP:.0%} of the counted I(X;Z) is learnt: flagged figures are too low")
    if over:
        notes.append(f"over {1 + _GAP:.0%} of the counted I(X;Z) is estimated: flagged figures are not reliable")
    if beyond:
        notes.append("a single feature has more information than all features: the code of flagged figures is coarse")
    side = f"{inputs.resolution}; {target.resolution}; {decomposition.resolution}"

    def row(term: str, e: Estimate, how: str, mark: bool = False, notes: Sequence[str] = notes) -> dict[str, Any]:
        return {
            "term": term,
            "value": e.value,
            "low": e.low,
            "high": e.high,
            "flagged": bool(e.flagged or (mark and e.value == e.value)),
            "bound": how,
            "resolution": side,
            "samples": decomposition.samples,
            "note": "; ".join(dict.fromkeys([*notes, *([e.note] if e.note else [])])),
        }

    notes += decomposition.remarks
    own, (low, high) = (
        decomposition.bound,
        ("lower", "upper") if decomposition.sided else (decomposition.bound, decomposition.bound),
    )
    predicted = target.label
    rows = [
        row("I(Z;Y)", predicted, "counted", notes=target.notes),
        row("I(X;Z)", counted, "counted", notes=target.notes),
        row("C(X;Z)", cost, low, marked),
        row("S(X;Z)", decomposition.synergy, high, marked),
        row("r(X;Z)", decomposition.redundancy, low, marked),
        row("v(X;Z)", decomposition.vulnerability, high, marked),
        row("learnt I(X;Z)", learnt, own, marked),
    ]
    ib = _objective(float(ib_objective(predicted.value, counted.value, beta)), predicted, counted, beta)
    gib = _objective(float(gib_objective(predicted.value, cost.value, beta)), predicted, cost, beta / 2)
    return [*rows, row("IB", ib, "counted", notes=target.notes), row("GIB", gib, high, marked)]


def mark_open_orders(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Note in the rows of r and v which layers' order is open: those whose interval overlaps that of another layer.

    >>> spans = [(0.1, 0.4), (0.3, 0.5), (0.6, 0.8)]
    >>> rows = [{"term": "v(X;Z)", "depth": i, "low": a, "high": b, "note": ""} for i, (a, b) in enumerate(spans)]
    >>> [row["note"] for row in mark_open_orders(rows)][1:]
    ['by v its order among the layers is open: intervals overlap', '']
    """
    marked = []
    for row in rows:
        others = [
            other
            for other in rows
            if other["term"] == row["term"] and other["depth"] >= 0 and other["depth"] != row["depth"]
        ]
        overlaps = any(other["low"] <= row["high"] and row["low"] <= other["high"] for other in others)
        if row["term"] in ("r(X;Z)", "v(X;Z)") and row["depth"] >= 0 and overlaps:
            note = f"by {row['term'][0]} its order among the layers is open: intervals overlap"
            row = {**row, "note": "; ".join(filter(None, [row["note"], note]))}
        marked.append(row)
    return marked


def weighed(row: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    """A row with the effective sample size of the weights, flagged if it is small."""
    w = weights[: row["samples"]]
    effective = effective_samples(w)
    few = effective < _FEW_EFFECTIVE * len(w) and row["value"] == row["value"]
    warning = ", too few for a reliable figure" if few else ""
    note = f"weighted by PMI: {effective:.0f} effective samples of {len(w)}{warning}"
    return {**row, "flagged": row["flagged"] or few, "note": "; ".join(filter(None, [row["note"], note]))}


def _feature_terms(inputs: Features, decomposition: Decomposition) -> list[dict[str, Any]]:
    return [
        {
            "feature": feature,
            **{
                f"{key}{suffix}": getattr(estimate, part)
                for key, estimate in (
                    ("single_feature", alone),
                    ("leave_one_out", without),
                    ("interaction", interaction),
                )
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            "total": decomposition.total.value,
        }
        for feature, alone, without, interaction in zip(
            inputs.names,
            decomposition.single_feature,
            decomposition.leave_one_out,
            decomposition.interaction,
            strict=True,
        )
    ]


def _objective(value: float, prediction: Estimate, cost: Estimate, weight: float) -> Estimate:
    """An objective with the interval from its two terms, whose errors are taken as independent."""
    half = float(np.hypot((prediction.high - prediction.low) / 2, weight * (cost.high - cost.low) / 2))
    return Estimate(
        value,
        value - half,
        value + half,
        prediction.flagged or cost.flagged,
        prediction.note or cost.note,
    )
