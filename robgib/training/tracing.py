"""Traces: the information in a network's layers epoch by epoch, and whether it is compressed in training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.data.dataset import Dataset, Split, split_information
from robgib.errors import RobGIBError, never_ends
from robgib.information.activations import find_layers
from robgib.information.analysis import bins_of, default_codes, make_estimators, partitions_of, term_rows, weighed
from robgib.information.base import Estimator
from robgib.information.decomposition import Decomposition, Prepared
from robgib.information.features import Features, group_inputs
from robgib.information.measures import pmi_weights
from robgib.information.observer import Activations, Inputs, LayerView, Observation, Resolution, about, capture
from robgib.information.views import EXACT, RATE, FittedView, Rescaled, Target, View
from robgib.models.checkpoint import CHECKPOINT_SUFFIXES, read_record, save_checkpoint
from robgib.models.inference import PreparedModel, answers, predict, prepare
from robgib.options import Context, InformationOptions, gather, or_default
from robgib.reading import as_path
from robgib.results import table
from robgib.training.compression import (
    OWN,
    POOLED,
    Curve,
    Point,
    complexity_point,
    compression_of,
    compression_rows,
    counted_point,
)
from robgib.training.config import Training

__all__ = [
    "CONTROLS",
    "Control",
    "Trace",
    "compression_of",
    "control",
    "log_spaced",
    "saved_epochs",
    "snapshots",
    "trace",
]

Control = Literal["untrained", "random-labels", "permuted-patches"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""Controls, which must show no compression by learning: a network that learns nothing, one that learns random labels,
and one whose images have their patches permuted."""
_PATCHES = 4
"""Largest number of patches along a side."""
_POOLED = 1000
"""Samples per epoch that codes, components and scales are fitted on."""
_RESOLVED = 0.5
"""Share of the information of a code in an epoch's own units below which the pooled code is flagged."""


@dataclass(frozen=True)
class Trace:
    """Estimates of a network's layers at some epochs of its training.

    Attributes:
        table: one row per epoch, estimator, layer and term (:data:`~robgib.results.SCHEMA`).
        compression: one row per estimator, layer and term: the fall from its peak, and the verdict.
    """

    table: pd.DataFrame
    compression: pd.DataFrame


def log_spaced(epochs: int) -> tuple[int, ...]:
    """Return 0 (the untrained network), the powers of two, and the last epoch.

    >>> log_spaced(10)
    (0, 1, 2, 4, 8, 10)
    """
    powers = [2**i for i in range(epochs.bit_length()) if 2**i < epochs]
    return tuple(dict.fromkeys([0, *powers, epochs]))


def control(kind: Control, data: Dataset, training: Training) -> tuple[Dataset, Training]:
    """Return the data and the training of a control.

    ``untrained`` trains with a learning rate of practically 0. ``random-labels`` shuffles the labels of every split.
    ``permuted-patches`` cuts every image into 4 × 4 patches (or 3 × 3 or 2 × 2, if its sides are not multiples of 4)
    and joins them in a random order, drawn for each image.

    Raises:
        RobGIBError: the data are not images that can be cut in this way.
    """
    if kind == "untrained":
        return data, training.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    generator = torch.Generator().manual_seed(training.seed)

    def shuffled(part: Split) -> Split:
        if kind == "random-labels":
            return replace(part, y=part.y[torch.randperm(len(part), generator=generator)])
        return replace(part, x=_permuted(part.x, cut, generator))

    cut = 1
    if kind == "permuted-patches":
        height, width = data.shape[1:] if len(data.shape) == 3 else (1, 1)
        cut = next((n for n in range(_PATCHES, 0, -1) if height % n == width % n == 0), 1)
        if cut == 1:
            raise RobGIBError(
                f"control 'permuted-patches' is for images whose sides are multiples of 4, 3 or 2; {data.name!r} holds "
                f"{' × '.join(map(str, data.shape))}."
            )

    return replace(data, train=shuffled(data.train), val=shuffled(data.val), test=shuffled(data.test)), training


def _permuted(x: Tensor, cut: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), the cut × cut patches of each in an order drawn for it."""
    n, channels, height, width = x.shape
    patches = x.reshape(n, channels, cut, height // cut, cut, width // cut).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, cut * cut, generator=generator).argsort(1)
    moved = patches[torch.arange(n)[:, None], order].unflatten(1, (cut, cut))
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


@never_ends
def trace(
    networks: Mapping[int, Callable[[], nn.Module]],
    data: Dataset,
    estimators: Sequence[str | Estimator] | None = None,
    *,
    samples: int = 2000,
    options: InformationOptions | None = None,
    context: Context | None = None,
    **fields: Any,
) -> Trace:
    """Estimate the information in the layers of one network at several epochs of its training.

    Codes, components, bins and scales are fitted once, on activations pooled over the epochs; otherwise a layer that
    shrinks would be scaled back. They are fitted twice: on the activations as they are, and in units of each epoch's
    own spread, because a layer that grows while the weights after it shrink computes the same function. A verdict needs
    both. Compression is (peak − final)/peak of a term over the epochs. Its interval comes from resampling the samples,
    the same at all epochs: the lower end from a simultaneous band of the falls from every epoch to the last, the upper
    end with the peak of each resample.

    Args:
        networks: functions that load the network, by epoch; epoch 0 is the untrained network.
        data: estimates use test samples; codes are fitted on training samples.
        estimators: as for :func:`~robgib.information.layer_information`.
        samples: largest number of samples to estimate on, the same at every epoch; all samples if the data list every
            input.
        options: layers, features and resolution (:class:`~robgib.options.InformationOptions`). A trace has one
            partition of the input; ``auto`` is the coarser one. I(X;Z) is also followed with half and twice the number
            of codes; with bins, all terms are, and with four times the number too.
        context: seed, device, plug-ins and progress (:class:`~robgib.options.Context`); the default is the CPU.
        fields: fields of ``options`` and ``context`` by name, such as ``layers=["logits"]`` or ``seed=1``.

    Raises:
        RobGIBError: no epoch, several partitions, a layer that cannot be captured, or samples that an estimator cannot
            use.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> same = {epoch: lambda: model for epoch in (0, 1)}
    >>> trace(same, data, ["gaussian"], layers=["logits"], samples=100).table["epoch"].unique().tolist()
    [0, 1]
    """
    options, context = gather(
        "trace",
        fields,
        or_default("options", options, InformationOptions()),
        or_default("context", context, Context(device="cpu")),
    )
    if not networks or min(networks) < 0:
        raise RobGIBError("a trace needs at least one epoch, from 0 on.")
    partitions = partitions_of(options.features, data.shape)
    if len(partitions) > 1 and options.features != "auto":
        raise RobGIBError(f"a trace takes one partition of the input, not {len(partitions)}; give one of them.")
    samples = len(data.test) if data.enumerated else samples
    chosen = options.estimators if estimators is None else estimators
    makers = make_estimators(chosen, data, samples, context.seed, context.catalogue)
    tracer = _Tracer.start(networks, data, makers, partitions[0], samples, options, context)
    for number, (epoch, load) in enumerate(networks.items()):
        accuracy = tracer.follow(epoch, load)
        context.report("tracing", number + 1, len(networks), f"epoch {epoch}, accuracy {100 * accuracy:.1f}%")
    rows = compression_rows(tracer.curves, tracer.layers, partitions[0], context.seed)
    return Trace(table("trace", tracer.rows), table("compression", rows))


@dataclass
class _Tracer:
    """A trace under way.

    Attributes:
        data: the data.
        inputs: the samples, the same at every epoch.
        makers: the estimators.
        context: seed and device; without progress, which is reported per epoch.
        layers: names of the layers, in order.
        ways: the ways in which the layers are viewed, the main one of each view in pooled units first.
        features: of the input.
        partition: how the input is cut.
        prepared: the features as each estimator prepared them, by name.
        pmi: whether samples are weighted by pointwise mutual information with the epoch's own predictions.
        rows: of the table of the trace so far.
        curves: what is followed, by epoch.
    """

    data: Dataset
    inputs: Inputs
    makers: Sequence[Estimator]
    context: Context
    layers: tuple[str, ...]
    ways: Sequence[_Way]
    features: Features
    partition: str
    prepared: Mapping[str, Prepared]
    pmi: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[Curve, dict[int, Point]] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        networks: Mapping[int, Callable[[], nn.Module]],
        data: Dataset,
        makers: Sequence[Estimator],
        partition: str,
        samples: int,
        options: InformationOptions,
        context: Context,
    ) -> _Tracer:
        """Choose the samples, and fit all views on the activations of all epochs."""
        (x, y), (x_fit, y_fit) = split_information(data, samples, context.seed)
        inputs = Inputs(x, x_fit, y.numpy(), y_fit.numpy(), x_fit, data.enumerated)
        pools = {m.view: x if m.view == EXACT else x_fit[:_POOLED] for m in makers}
        layers, pooled = _pooled(networks, data, options.layers, pools, context)
        count = options.codes or default_codes(len(data.classes), len(x_fit))
        resolution = Resolution(options.layer_dims, count, options.sigma, bins_of(makers), context.seed)
        features = group_inputs(partition, x, x_fit)
        prepared = {m.name: m.prepare(features.values, features.fit) for m in makers}
        quiet = replace(context, progress=None)
        ways = _ways(pooled, resolution)
        return cls(data, inputs, makers, quiet, layers, ways, features, partition, prepared, options.pmi)

    def follow(self, epoch: int, load: Callable[[], nn.Module]) -> float:
        """Estimate everything at one epoch; return the accuracy on the test samples."""
        data, device = self.data, self.context.device
        model = _prepared(load, data, device)
        answered = answers(model, data.test.x, data.test.y, classes=len(data.classes), device=device)
        accuracy = float(answered.right.mean())
        observation = Observation.of(model, self.layers, self.inputs, self.context, check=False)
        views = [way.at(epoch, number) for number, way in enumerate(self.ways)]
        weights = self._weights(model)
        targets = [observation.targets(of_way, weights) for of_way in views]
        for way, of_way in zip(self.ways, targets, strict=True):
            for layer, target in zip(self.layers, of_way, strict=True):
                self._add(way.curve("counted", layer, "I(X;Z)", target), epoch, counted_point(target, weights))
        for maker in self.makers:
            used = [i for i, way in enumerate(self.ways) if way.view == maker.view and (way.main or way.view == EXACT)]
            with about(maker, f"epoch {epoch}"):
                decompositions = observation.estimate(
                    maker,
                    self.features,
                    [view for i in used for view in views[i]],
                    [target for i in used for target in targets[i]],
                    prepared=self.prepared[maker.name],
                    weights=weights,
                )
            places = [(i, place) for i in used for place in range(len(self.layers))]
            for (i, place), decomposition in zip(places, decompositions, strict=True):
                way, target, layer = self.ways[i], targets[i][place], self.layers[place]
                point = complexity_point(target, decomposition)
                if point is not None:
                    self._add(way.curve(maker.name, layer, "C(X;Z)", target), epoch, point)
                if way.main and way.units == POOLED:
                    main = [t[place] for t, other in zip(targets, self.ways, strict=True) if other.main]
                    self._add_rows(epoch, accuracy, maker, place, _resolved(target, main), decomposition, weights)
        return accuracy

    def _weights(self, model: PreparedModel) -> np.ndarray | None:
        """Weights (N,) of the samples by what the network predicts; None if they are not asked for."""
        if not self.pmi:
            return None
        x = self.inputs.x
        return pmi_weights(predict(model, x, batch_size=model.batch_size, device=self.context.device), self.inputs.y)

    def _add(self, curve: Curve, epoch: int, point: Point) -> None:
        self.curves.setdefault(curve, {})[epoch] = point

    def _add_rows(
        self,
        epoch: int,
        accuracy: float,
        maker: Estimator,
        layer: int,
        target: Target,
        decomposition: Decomposition,
        weights: np.ndarray | None,
    ) -> None:
        base = {
            "epoch": epoch,
            "test_accuracy": accuracy,
            "estimator": maker.name,
            "layer": self.layers[layer],
            "depth": layer,
            "view": maker.view,
            "partition": self.partition,
        }
        rows = term_rows(target, decomposition, self.features, 1.0)
        if weights is not None:
            rows = [weighed(row, weights) for row in rows]
        self.rows += [{**base, **row} for row in rows]


@dataclass(frozen=True)
class _Way:
    """One way of viewing all layers at all epochs.

    Attributes:
        units: of the layers: pooled over the epochs, or each epoch's own.
        main: whether it has the resolution of the estimates.
        fitted: by layer, the view, fitted once for all epochs.
        scales: by epoch and layer, the centre and the scale of the epoch's own units.
    """

    units: str
    main: bool
    fitted: Mapping[str, FittedView]
    scales: Mapping[int, Mapping[str, tuple[np.ndarray, float]]]

    @property
    def view(self) -> View:
        return next(iter(self.fitted.values())).view

    def at(self, epoch: int, number: int) -> list[LayerView]:
        """The views of all layers at one epoch; ``number`` distinguishes the ways."""
        variant = str(number or "")
        if self.units == POOLED:
            return [LayerView(layer, fitted, variant) for layer, fitted in self.fitted.items()]
        scales = self.scales[epoch]
        return [LayerView(layer, Rescaled(fitted, *scales[layer]), variant) for layer, fitted in self.fitted.items()]

    def curve(self, estimator: str, layer: str, term: str, target: Target) -> Curve:
        """The curve of a term in this way."""
        return Curve(estimator, self.view, layer, term, self.units, self.main, target.resolution)


_Pools = Mapping[int, Activations]  # by epoch


def _pooled(
    networks: Mapping[int, Callable[[], nn.Module]],
    data: Dataset,
    layers: Sequence[str] | None,
    pools: Mapping[View, Tensor],
    context: Context,
) -> tuple[tuple[str, ...], dict[View, _Pools]]:
    """The names of the layers, and their activations at every epoch on the samples that each view is fitted on.

    Bins have the range of all inputs, which are counted; codes, components and scales are fitted on other samples.
    """
    names: tuple[str, ...] = ()
    pooled: dict[View, dict[int, Activations]] = {view: {} for view in pools}
    for number, (epoch, load) in enumerate(networks.items()):
        model = _prepared(load, data, context.device)
        names = names or find_layers(model.model, data.test.x[:2].to(context.device), layers or None)[0]
        for view, images in pools.items():
            pooled[view][epoch] = capture(model, images, names, replace(context, progress=None), check=False)
        context.report("pooling epochs", number + 1, len(networks), f"epoch {epoch}")
    return names, dict(pooled)


def _ways(pooled: Mapping[View, _Pools], resolution: Resolution) -> list[_Way]:
    """The ways in which the layers are viewed, the main one of each view in pooled units first."""
    ways = []
    for view, by_epoch in pooled.items():
        layers = list(next(iter(by_epoch.values())))
        scales = {e: {n: Rescaled.of(z) for n, z in of.items()} for e, of in by_epoch.items()}
        own = {e: {n: (z - scales[e][n][0]) / scales[e][n][1] for n, z in of.items()} for e, of in by_epoch.items()}
        for units, activations in ((POOLED, by_epoch), (OWN, own)):
            together = {n: np.concatenate([of[n] for of in activations.values()]) for n in layers}
            for number, one in enumerate(_resolutions(view, resolution)):
                if view == RATE and number and one.codes > len(together[layers[0]]):
                    continue
                fitted = {n: one.fit(view, z) for n, z in together.items()}
                ways.append(_Way(units, not number, fitted, scales))
    return ways


def _resolutions(view: View, main: Resolution) -> list[Resolution]:
    """The resolutions at which a view is followed, the main one first."""
    if view == RATE:
        codes = main.codes
        return [main, *(replace(main, codes=k) for k in sorted({max(2, codes // 2), 2 * codes} - {codes}))]
    if view == EXACT:
        bins = main.bins
        return [main, *(replace(main, bins=k) for k in sorted({max(2, bins // 2), 2 * bins, 4 * bins} - {bins}))]
    return [main]


def _resolved(target: Target, others: Sequence[Target]) -> Target:
    """The target of a pooled code, flagged if a code in the epoch's own units has far more information."""
    most = max((t.total.value for t in others if t.view == RATE), default=0.0)
    if target.view != RATE or target.total.value >= _RESOLVED * most:
        return target
    note = (
        f"the code pooled over the epochs has {abs(target.total.value):.2f} bits here, and {most:.2f} in units of "
        "this epoch's own spread: the layer is small compared with other epochs"
    )
    total, label = (replace(e, flagged=True) for e in (target.total, target.label))
    return replace(target, total=total, label=label, notes=(*target.notes, note))


def _prepared(load: Callable[[], nn.Module], data: Dataset, device: torch.device | str) -> PreparedModel:
    return prepare(load().to(device), data.test.x, classes=len(data.classes), device=device)


def snapshots(folder: str | Path, at: Sequence[int], record: dict[str, Any]) -> Callable[[int, nn.Module], None]:
    """Return a ``watch`` that saves the network of chosen epochs as ``folder/epoch-0004.safetensors``.

    ``record`` is written beside each, with the epoch.
    """

    folder = as_path(folder, "folder")

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in at:
            if folder.is_symlink():  # its name is predictable, and a link may point anywhere
                raise RobGIBError(f"the folder of the traced epochs, {folder}, is a symbolic link; remove it.")
            save_checkpoint(model, folder / f"epoch-{epoch:04d}.safetensors", {**record, "epoch": epoch})

    return keep


def saved_epochs(folder: str | Path) -> dict[int, Path]:
    """Return a folder's checkpoints by epoch: the epoch in the record beside each, or the last number in its name.

    Raises:
        RobGIBError: the folder does not exist, has no checkpoint, has one without an epoch, or two of one epoch.
    """
    folder = as_path(folder, "folder")
    if not folder.is_dir():
        raise RobGIBError(f"folder {str(folder)!r} does not exist; give a folder of checkpoints.")
    by_epoch: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES):
        numbers = re.findall(r"\d+", path.stem)
        recorded = (read_record(path) or {}).get("epoch")
        if not isinstance(recorded, int) and not numbers:
            raise RobGIBError(f"{path} has no epoch in its record or name; put the number into its name: epoch-0004.")
        epoch = recorded if isinstance(recorded, int) else int(numbers[-1])
        if epoch in by_epoch:
            raise RobGIBError(f"{by_epoch[epoch]} and {path} are both of epoch {epoch}; give one training per folder.")
        by_epoch[epoch] = path
    if not by_epoch:
        raise RobGIBError(f"{folder} holds no checkpoints ({', '.join(CHECKPOINT_SUFFIXES)}).")
    return dict(sorted(by_epoch.items()))
