"""The information half of an evaluation: the terms of a model's layers, as tables."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor, nn

from robgib.data.dataset import Dataset, information_rows, split_information
from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError, RobGIBWarning, never_ends
from robgib.files import Parts
from robgib.information.activations import LOGITS, collect_activations, find_layers, functions_of
from robgib.information.base import Decomposition, Estimator
from robgib.information.donors import most_donors
from robgib.information.estimate import Estimate
from robgib.information.exact import Exact
from robgib.information.features import Features, group_inputs
from robgib.information.measures import effective_samples, gib_objective, ib_objective, pmi_weights
from robgib.information.readings import noise_terms, subset_synergy, swept, unit_terms
from robgib.information.registry import check_estimators, make_estimator
from robgib.information.views import (
    EXACT,
    NOISE,
    RATE,
    SYMBOLS_A_CLASS,
    Bins,
    Codebook,
    Network,
    NoisyLayer,
    Seen,
    Target,
    View,
    entropy_estimate,
    mark_processing,
)
from robgib.models.adapt import seeded
from robgib.models.inference import PreparedModel, predict, prepare
from robgib.models.state import State, settings_kept
from robgib.options import Context, InformationOptions, gather
from robgib.results import table
from robgib.runtime import faults_of

__all__ = [
    "DEFAULT_ESTIMATORS",
    "LABEL",
    "PREDICTION",
    "SIGMA",
    "SWEPT",
    "TERMS",
    "LayerInformation",
    "about",
    "bins_of",
    "codes_of",
    "default_codes",
    "default_features",
    "fit_view",
    "layer_information",
    "make_estimators",
    "partitions_of",
    "passes_of",
    "term_rows",
]

DEFAULT_ESTIMATORS = ("imputation",)
TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)", "learnt I(X;Z)", "IB", "GIB")
"""Per layer: prediction and IB complexity, both counted; GIB complexity, synergy, and the degrees of redundancy and
vulnerability (no bits: numbers of features), estimated; the estimator's own I(X;Z); the objectives."""
SWEPT = ("C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)")
"""Those of a code that come at half and at twice as many symbols too, as ``v(X;Z) k/2`` and ``v(X;Z) 2k``."""
PREDICTION, LABEL = "Ŷ", "Y"
"""What stands beside the layers: the predicted and the true label."""
SIGMA = 0.3
"""Standard deviation of the noise in which the ``noise`` view sees a layer, in the layer's total one."""
_LARGE = 64
"""Pixels a side above which pictures are cut once only where nothing else is said."""
_STEPS = 800
"""Training steps of estimators that learn, all layers at once: more moved their figures by 1% or less."""
_GAP = 0.1
"""Share of a counted I(X;Z) that an estimator may fail to learn before its figures are marked."""

_FEW_EFFECTIVE = 0.2
"""Share of the samples below which the effective sample size of PMI weights marks the figures."""


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
        model: classifier on the context's device, or what :func:`~robgib.models.inference.prepare` made of it.
        data: estimated on test images; codes and components are fitted on training images, or, where the data have
            none, on every second test image (the rest is estimated on).
        estimators: specifications such as ``probe`` or ``imputation:donors=32``, or estimator objects; None takes those
            of the options.
        samples: most images to estimate on, and to fit on.
        options: layers, features and resolution (:class:`~robgib.options.InformationOptions`).
        context: seed, device, batch size, plug-ins, resume and progress (:class:`~robgib.options.Context`), on the CPU
            by default.
        fields: fields of ``options`` and ``context`` by name, such as ``layers=["logits"]`` or ``seed=1``.

    Raises:
        RobGIBError: an unknown name, a layer that cannot be watched, or samples that an estimator cannot use.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> found = layer_information(model, data, ["gaussian"], layers=["logits"], samples=200)
    >>> found.layers.query("layer == 'logits'")["term"].unique().tolist()
    ['I(Z;Y)', 'I(X;Z)', 'C(X;Z)', 'S(X;Z)', 'r(X;Z)', 'v(X;Z)', 'learnt I(X;Z)', 'IB', 'GIB']
    """
    options, context = gather(
        "layer_information", fields, options or InformationOptions(), context or Context(device="cpu")
    )
    options = replace(
        options, information_samples=samples, estimators=options.estimators if estimators is None else estimators
    )
    makers = make_estimators(options.estimators, data, samples, context.seed, context.catalogue)
    partitions = partitions_of(options.features, data.shape)
    if not isinstance(model, PreparedModel):
        classes = len(data.classes)
        model = prepare(model, data.test.x, classes=classes, batch_size=context.batch_size, device=context.device)
    few = data.test.sample(2, context.seed)[0]
    names, left_out = find_layers(model.model, few.to(context.device), options.layers or None)
    estimated, fitted = (len(rows) for rows in information_rows(data, samples, context.seed))
    undecided = 0
    layer_rows: list[dict[str, Any]] = []
    feature_rows: list[dict[str, Any]] = []
    if makers:
        halves = split_information(data, samples, context.seed)
        halves, predicted, undecided = _decided_parts(model, halves, model.batch_size, context.device)
        estimated, fitted = (len(x) for x, _ in halves)
        layers = _Layers.observe(model, data, makers, names, halves, predicted, options, context)
        pairs = [(estimator, partition) for estimator in makers for partition in partitions]
        for number, (estimator, partition) in enumerate(pairs):
            context.report("estimating information", number, len(pairs), f"{estimator.name}, {partition}")
            kept = (context.parts or Parts()).at("information", estimator.name, partition)
            known = kept.read()
            if known is None:
                known = layers.estimate(estimator, partition)
                kept.write(known)
            layer_rows += known["layers"]
            feature_rows += known["features"]
        context.report("estimating information", len(pairs), len(pairs))
    return LayerInformation(
        table("layers", layer_rows),
        table("features", feature_rows),
        names,
        partitions,
        estimated,
        fitted,
        undecided,
        left_out,
    )


@dataclass(frozen=True)
class _Layers:
    """A model's layers as its estimators see them: their values, and the targets that pieces of the input inform.

    Attributes:
        model: that is watched.
        options: resolution, and which terms.
        context: of the computation.
        names: of the layers, in order.
        inputs: images (N, …) that are estimated on, and those (M, …) that codes are fitted on.
        labels: likewise (N,) and (M,).
        values: by layer, on either.
        donors: images whose content may take another's place.
        seen: by view, how each target is seen.
        targets: by view.
        swept: targets at another number of symbols: the layer, and how the term is called there.
        beside: by layer, rows of the view in noise, which stand beside those of its code.
        subsets: by layer, the row of the subset synergy.
        weights: of the samples (N,), or None.
        enumerated: whether the images are all that there are.
    """

    model: PreparedModel
    options: InformationOptions
    context: Context
    names: tuple[str, ...]
    inputs: tuple[Tensor, Tensor]
    labels: tuple[np.ndarray, np.ndarray]
    values: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
    donors: Tensor
    seen: Mapping[View, Mapping[str, Seen]]
    targets: Mapping[View, Sequence[Target]]
    swept: Mapping[str, tuple[str, str]]
    beside: Mapping[str, Sequence[Mapping[str, Any]]]
    subsets: Mapping[str, Mapping[str, Any]]
    weights: np.ndarray | None
    enumerated: bool

    @classmethod
    def observe(
        cls,
        model: PreparedModel,
        data: Dataset,
        makers: Sequence[Estimator],
        names: tuple[str, ...],
        halves: tuple[Part, Part],
        predicted: Sequence[np.ndarray],
        options: InformationOptions,
        context: Context,
    ) -> _Layers:
        """Run the model on the images, and fit every view."""
        (x, y), (x_fit, y_fit) = halves
        labels = y.numpy(), y_fit.numpy()
        size, device, seed = model.batch_size, context.device, context.seed
        now, then = (
            collect_activations(
                model.model, part, names, batch_size=size, device=device, progress=context.progress,
                reduced=not options.unit_groups,
            )
            for part in (x, x_fit)
        )  # fmt: skip
        weights = pmi_weights(predicted[0], labels[0]) if options.pmi else None
        count = options.codes or default_codes(len(data.classes), len(x_fit))
        dims, sigma = options.layer_dims, options.sigma
        seen: dict[View, dict[str, Seen]] = {}
        targets: dict[View, list[Target]] = {}
        for view in dict.fromkeys(m.view for m in makers):
            seen[view] = {n: fit_view(view, then[n], dims, count, sigma, seed, bins_of(makers)) for n in names}
            of_layers = [seen[view][n].target(n, now[n], then[n], labels[0], weights) for n in names]
            of_labels = _labels(view, predicted, labels, weights)
            computed = partial(_computed_from, model.model, x[:8].to(device), view)
            targets[view] = mark_processing([*of_layers, *of_labels], computed)
        others: dict[str, tuple[str, str]] = {}
        beside: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
        if RATE in seen:
            books, coarser, others = swept(now, then, labels[0], weights, dims, count, seed)
            seen[RATE] |= books
            targets[RATE] += coarser.values()
            for n in names:
                beside[n] = noise_terms(now[n], then[n], labels[0], dims, sigma, options.beta, seed, weights)
        subsets: dict[str, dict[str, Any]] = {}
        if options.unit_groups:
            context.report("leaving out units", 0, 1)
            subsets = subset_synergy(
                model.model, x, labels[0], predicted[0], names, batch_size=size, device=device, seed=seed
            )
        runs = any(m.runs_network for m in makers)
        donors = _donors(model, data, x_fit, options.information_samples or len(x), context) if runs else x_fit
        return cls(
            model, options, context, names, (x, x_fit), labels, (now, then), donors, seen, targets, others, beside,
            subsets, weights, data.enumerated,
        )  # fmt: skip

    def estimate(self, estimator: Estimator, partition: str) -> dict[str, list[dict[str, Any]]]:
        """Rows of the tables ``layers`` and ``features`` by one estimator, of one cut of the input."""
        (x, x_fit), wanted = self.inputs, self.targets[estimator.view]
        inputs = group_inputs(partition, x, x_fit, self.options.feature_dims)
        network = self._network(estimator, inputs) if estimator.runs_network else None
        labels = torch.from_numpy(self.labels[0])
        guard = _unchanged(self.model.model, estimator, (x, x_fit, labels), inputs, wanted)
        with about(estimator, partition), guard, seeded(self.context.seed, self.context.device):
            prepared = estimator.prepare(inputs.values, inputs.fit)
            found = estimator.of_network(prepared, wanted, network, self.weights, self.context.progress)
        rows: dict[str, list[dict[str, Any]]] = {"layers": [], "features": []}
        for target, decomposition in zip(wanted, found, strict=True):
            layer, how = self.swept.get(target.name, (target.name, ""))
            base = {
                "estimator": estimator.name,
                "layer": layer,
                "depth": self.names.index(layer) if layer in self.names else -1,
                "view": estimator.view,
                "partition": partition,
            }
            terms = self._terms(estimator, target, decomposition, inputs, layer, how)
            rows["layers"] += [{**base, **row} for row in terms]
            if not how:
                rows["features"] += [{**base, **row} for row in _feature_terms(inputs, decomposition)]
        return rows

    def _terms(
        self, estimator: Estimator, target: Target, found: Decomposition, inputs: Features, layer: str, how: str
    ) -> list[dict[str, Any]]:
        """The terms of one target; ``how`` names another resolution, at which some of them come."""
        rows = term_rows(target, found, inputs, self.options.beta)
        if how:
            rows = [{**row, "term": f"{row['term']} {how}"} for row in rows if row["term"] in SWEPT]
        elif layer in self.names:
            if self.options.unit_groups:
                (now, then), (y, y_fit) = self.values, self.labels
                with about(estimator, layer):
                    own = unit_terms(
                        estimator, now[layer], then[layer], y, y_fit, self.options.unit_groups, self.weights
                    )
                rows[4:4] = [*own, dict(self.subsets[layer])]
            if estimator.view == RATE:
                rows += [{**row, "view": NOISE} for row in self.beside[layer]]
        return rows if self.weights is None else [_weighed(row, self.weights) for row in rows]

    def _network(self, estimator: Estimator, inputs: Features) -> Network:
        """What an estimator needs that runs the network on changed inputs."""
        seen = self.seen[estimator.view]
        codes = codes_of(
            self.model,
            seen,
            self.model.batch_size,
            self.context.device,
            reduced=not self.options.unit_groups,
            layers={n: self.swept.get(n, (n, ""))[0] for n in seen},
        )
        return Network(self.inputs[0], self.donors, self.enumerated, inputs, codes)


@dataclass(frozen=True)
class LayerInformation:
    """What :func:`layer_information` found.

    Attributes:
        layers: a row an estimator, partition, layer and term (:data:`~robgib.results.SCHEMA`).
        features: a row an estimator, partition, layer and feature of the input.
        names: the layers, in order.
        partitions: how the input was cut into features.
        samples: images that were estimated on.
        fit_samples: images that codes and components were fitted on.
        undecided: images left out, since the model has no finite answer to them.
        left_out: blocks that cannot be layers, a sentence each.
    """

    layers: pd.DataFrame
    features: pd.DataFrame
    names: tuple[str, ...]
    partitions: tuple[str, ...]
    samples: int
    fit_samples: int
    undecided: int
    left_out: tuple[str, ...] = ()


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
    check_estimators(estimators, catalogue)
    made = [
        e if isinstance(e, Estimator) else make_estimator(e, catalogue, seed=seed, steps=_STEPS) for e in estimators
    ]
    for estimator in made:
        if estimator.view == EXACT and not (data.enumerated and samples >= len(data.test)):
            enough = f" with at least {len(data.test)} information samples" if data.enumerated else ""
            raise RobGIBError(
                f"the {estimator.name} estimator counts all inputs there are, such as those of "
                f"function:parity-3{enough}; choose another estimator for {data.name!r}."
            )
    if len({e.name for e in made}) < len(made):
        raise RobGIBError("an estimator is given twice; name each one once.")
    return made


def partitions_of(features: str | Sequence[str], shape: tuple[int, ...]) -> tuple[str, ...]:
    """The partitions that ``features`` asks for, each once, ``auto`` being those of this shape.

    >>> partitions_of(["auto", "pixels"], (1, 8, 8))
    ('patches:2', 'patches:4', 'pixels')
    """
    cuts = [features] if isinstance(features, str) else features
    return tuple(dict.fromkeys(p for c in cuts for p in (default_features(shape) if c == "auto" else (c,))))


def passes_of(estimators: Sequence[Estimator], data: Dataset, partitions: Sequence[str], samples: int) -> int:
    """About how many images the estimators run through the network, over all partitions."""
    if not estimators:
        return 0
    few = data.test.sample(50)[0].numpy()
    pieces = [len(group_inputs(cut, few, few).names) for cut in partitions]
    return sum(e.passes(n, samples) for e in estimators for n in pieces)


def default_features(shape: tuple[int, ...]) -> tuple[str, ...]:
    """How samples of this shape are cut where nothing else is said: into few pieces, and into more.

    Pictures of more than 64 pixels a side are cut into few alone: an estimator that runs the network does so for every
    piece of every sample, and their networks are large.

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
    """How many symbols a layer's code has where nothing else is said: four a class, 16 at least, a fifth of the samples
    at most.

    >>> default_codes(10, 5000), default_codes(2, 5000), default_codes(100, 1000)
    (40, 16, 200)
    """
    return max(2, min(max(16, SYMBOLS_A_CLASS * classes), samples // 5))


def fit_view(view: View, z: np.ndarray, dims: int, codes: int, sigma: float, seed: int, bins: int = 30) -> Seen:
    """Fit a view of one layer on activations (N, …)."""
    if view == RATE:
        return Codebook.fit(z, dims, codes, seed)
    return NoisyLayer.fit(z, dims, sigma, seed) if view == NOISE else Bins.fit(z, bins)


def bins_of(estimators: Sequence[Estimator]) -> int:
    """How many bins the ``exact`` view has: what the estimator that counts in it asks for."""
    return next((e.bins for e in estimators if isinstance(e, Exact)), Exact.bins)


Part = tuple[Tensor, Tensor]


def _decided_parts(
    model: PreparedModel, parts: tuple[Part, Part], batch_size: int, device: torch.device | str
) -> tuple[tuple[Part, Part], list[np.ndarray], int]:
    """The images (and labels) that the model has an answer to, its answers (N,), and how many of the first part it has
    none to."""
    told = [predict(model, x, batch_size=batch_size, device=device).astype(np.int64) for x, _ in parts]
    ours, theirs = ((x[answer >= 0], y[answer >= 0]) for (x, y), answer in zip(parts, told, strict=True))
    return (ours, theirs), [answer[answer >= 0] for answer in told], int((told[0] < 0).sum())


def _donors(model: PreparedModel, data: Dataset, fit: Tensor, limit: int, context: Context) -> Tensor:
    """Training inputs (P, …) whose content may take another's place: those that codes are fitted on, and more."""
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
    """The predicted and the true label as targets; in the views of codes the former is counted as a layer is."""
    told, truth = predicted[0], labels[0]
    exact = view == EXACT
    seen = Codebook.counted(PREDICTION, told, predicted[1], truth, weights, view, "the label predicted")
    unknown = Estimate(np.nan, np.nan, np.nan, note="what the input tells of the label is learnt, not counted")
    own = entropy_estimate(truth, weights, exact)
    return [seen, Target(LABEL, view, truth, labels[1], unknown, own, "the true label", code=False)]


def _computed_from(network: nn.Module, x: Tensor, view: View, layer: str, others: Sequence[str]) -> set[str]:
    """Which of the targets the network computes from a layer: the class predicted is one where the logits are.

    In noise it is not: the class predicted has none.
    """
    asked = [n for n in others if n not in (PREDICTION, LABEL)]
    found = {LOGITS} if layer == LOGITS else set(functions_of(network, x, layer, [*asked, LOGITS]))
    return found | ({PREDICTION} if LOGITS in found and view != NOISE else set())


def codes_of(
    model: PreparedModel,
    seen: Mapping[str, Seen],
    batch_size: int,
    device: torch.device | str,
    reduced: bool = False,
    layers: Mapping[str, str] | None = None,
) -> Any:
    """From inputs to the codes of every target, the class predicted, and the classes' probabilities.

    ``layers`` says of which layer each target is, where some layers are seen in several ways.
    """
    of = layers or {n: n for n in seen}
    names, wanted = tuple(seen), tuple(dict.fromkeys([*of.values(), LOGITS]))
    network = _laid_out(model.model, device)

    def codes(x: Tensor) -> dict[str, np.ndarray]:
        if network is not model.model and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        held = collect_activations(
            network, x, wanted, batch_size=batch_size, device=device, check=False, reduced=reduced
        )
        told = {n: seen[n](held[of[n]]) for n in names}
        logits = held[LOGITS]
        return {**told, PREDICTION: logits.argmax(1).astype(np.int64), LABEL: softmax(logits, axis=1)}

    return codes


def _laid_out(network: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy of a convolutional network with the channels last in memory, in which a CPU runs it twice as fast."""
    modules = list(network.modules())
    maps = any(isinstance(m, nn.Conv2d) for m in modules)
    if not maps or torch.device(device).type != "cpu" or any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return network
    laid_out: nn.Module = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out


@contextmanager
def about(estimator: Estimator, what: str) -> Iterator[None]:
    """Name the estimator in its errors; its warnings are in the notes, which are shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobGIBWarning)
            with faults_of("it"):
                yield
    except RobGIBError as error:
        raise RobGIBError(f"estimator {estimator.name!r}, {what}: {error}") from error


@contextmanager
def _unchanged(
    model: nn.Module, estimator: Estimator, samples: Sequence[Tensor], inputs: Features, targets: Sequence[Target]
) -> Iterator[None]:
    """See that a plug-in estimator changes neither the model, which is put back, nor what the others estimate on."""
    if type(estimator).__module__.startswith("robgib."):
        yield
        return

    def sums() -> list[int]:
        arrays = [*(s.numpy() for s in samples), *inputs.values, *inputs.fit]
        arrays += [a for t in targets for a in (t.values, t.fit)]
        return [zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in arrays]

    before, held = State([model]), sums()
    try:
        with settings_kept():
            yield
    finally:
        changed = [*before.changed(), *(f"mode of {name or type(model).__name__}" for name in before.modes())]
        before.restore()
    if changed:
        raise RobGIBError(f"it changed the model ({', '.join(changed[:3])}), which was put back; work on a copy.")
    if sums() != held:
        raise RobGIBError("it changed the samples that it was given, which others estimate on too; work on copies.")


def term_rows(target: Target, found: Decomposition, inputs: Features, beta: float) -> list[dict[str, Any]]:
    """The rows of one target: what is counted, what is estimated, and what is made of both."""
    counted, learnt, cost = target.total, found.learnt, found.complexity
    known = counted.value == counted.value
    notes = [*target.notes, *found.notes]
    gap = (counted.value - learnt.value) / counted.value if known and counted.value > 0 else 0.0
    over = gap < -_GAP and not counted.saturated
    # A single never tells more than all: one that does, beyond its error, betrays codes of X that lose more than it.
    beyond = [s for s in found.singles if s.value == s.value and s.low > found.total.high]
    marked = learnt.value == learnt.value and (gap > _GAP or over or bool(beyond))
    if gap > _GAP:
        notes.append(f"under {1 - _GAP:.0%} of the counted I(X;Z) is learnt: marked figures lack the rest")
    if over:
        notes.append(f"over {1 + _GAP:.0%} of the counted I(X;Z) is found: marked figures are not to be relied on")
    if beyond:
        notes.append("a feature alone tells more than all features: marked figures lack what their code lost")
    side = f"{inputs.resolution}; {target.resolution}; {found.resolution}"

    def row(term: str, e: Estimate, how: str, mark: bool = False, notes: Sequence[str] = notes) -> dict[str, Any]:
        return {
            "term": term,
            "value": e.value,
            "low": e.low,
            "high": e.high,
            "saturated": bool(e.saturated or (mark and e.value == e.value)),
            "bound": how,
            "resolution": side,
            "samples": found.samples,
            "note": "; ".join(dict.fromkeys([*notes, *([e.note] if e.note else [])])),
        }

    own, (low, high) = found.bound, ("lower", "upper") if found.sided else (found.bound, found.bound)
    predicted = target.label
    rows = [
        row("I(Z;Y)", predicted, "counted", notes=target.notes),
        row("I(X;Z)", counted, "counted", notes=target.notes),
        row("C(X;Z)", cost, low, marked),
        row("S(X;Z)", found.synergy, high, marked),
        row("r(X;Z)", found.redundancy, low, marked),
        row("v(X;Z)", found.vulnerability, high, marked),
        row("learnt I(X;Z)", learnt, own, marked),
    ]
    ib = _objective(float(ib_objective(predicted.value, counted.value, beta)), predicted, counted, beta)
    gib = _objective(float(gib_objective(predicted.value, cost.value, beta)), predicted, cost, beta / 2)
    return [*rows, row("IB", ib, "counted", notes=target.notes), row("GIB", gib, high, marked)]


def _weighed(row: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    """A row with what its samples' weights leave of them, marked where that is little."""
    w = weights[: row["samples"]]
    left = effective_samples(w)
    few = left < _FEW_EFFECTIVE * len(w) and row["value"] == row["value"]
    note = f"weighted by PMI: {left:.0f} effective samples of {len(w)}" + (", too few to rely on" if few else "")
    return {**row, "saturated": row["saturated"] or few, "note": "; ".join(filter(None, [row["note"], note]))}


def _feature_terms(inputs: Features, found: Decomposition) -> list[dict[str, Any]]:
    return [
        {
            "feature": feature,
            **{
                f"{key}{suffix}": getattr(estimate, part)
                for key, estimate in (("single", single), ("rest", rest), ("interaction", interaction))
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            "total": found.total.value,
        }
        for feature, single, rest, interaction in zip(
            inputs.names, found.singles, found.rests, found.interaction, strict=True
        )
    ]


def _objective(value: float, prediction: Estimate, cost: Estimate, weight: float) -> Estimate:
    """An objective's interval from its two terms', their errors taken as independent."""
    half = float(np.hypot((prediction.high - prediction.low) / 2, weight * (cost.high - cost.low) / 2))
    return Estimate(
        value,
        value - half,
        value + half,
        prediction.saturated or cost.saturated,
        prediction.note or cost.note,
    )
