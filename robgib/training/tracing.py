"""Traces: the information in a network's layers epoch by epoch, and whether it is compressed in training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.data.dataset import Dataset, Split, split_information
from robgib.errors import RobGIBError
from robgib.information.activations import collect_activations, find_layers
from robgib.information.analysis import (
    DEFAULT_ESTIMATORS,
    SIGMA,
    about,
    bins_of,
    codes_of,
    default_codes,
    default_features,
    fit_view,
    make_estimators,
    term_rows,
)
from robgib.information.base import Decomposition, Estimator
from robgib.information.features import group_inputs
from robgib.information.views import EXACT, RATE, Network, Rescaled, Seen, Target, View
from robgib.models.checkpoint import CHECKPOINT_SUFFIXES, read_record, save_checkpoint
from robgib.models.inference import PreparedModel, answers, prepare
from robgib.results import table
from robgib.runtime import Progress
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
"""What must show no compression by learning: a network that learns nothing, one that learns labels without sense, one
whose pictures have lost their arrangement."""
_PATCHES = 4  # a side
_POOLED = 1000  # samples an epoch that codes, components and scales are fitted on
_RESOLVED = 0.5  # of what a code in an epoch's own units holds, below which the pooled one is marked
_RESAMPLES = 400
_LEAST = 0.02  # share of the peak: a smaller fall is none
_NONE = 0.05  # share of the peak that the upper end stays below, where there is no compression


@dataclass(frozen=True)
class Trace:
    """What was estimated of a network at some epochs of its training.

    Attributes:
        table: a row an epoch, estimator, layer and term (:data:`~robgib.results.SCHEMA`).
        compression: a row an estimator, layer and term: how far it falls from its peak, and the verdict.
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

    ``untrained`` trains at a rate of nothing. ``random-labels`` shuffles the labels of every part.
    ``permuted-patches`` cuts every image into 4 × 4 patches (or 3 × 3 or 2 × 2, where its sides allow no more) and puts
    them together in an order of its own.

    Raises:
        RobGIBError: the data are no images that can be cut so.
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


def trace(
    networks: Mapping[int, Callable[[], nn.Module]],
    data: Dataset,
    estimators: Sequence[str | Estimator] = DEFAULT_ESTIMATORS,
    *,
    layers: Sequence[str] | None = None,
    samples: int = 2000,
    features: str = "auto",
    layer_dims: int = 8,
    codes: int | None = None,
    sigma: float = SIGMA,
    device: torch.device | str = "cpu",
    seed: int = 0,
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Trace:
    """Estimate the information in the layers of one network at several epochs of its training.

    Codes, components, bins and scales are fitted once for all epochs, on activations pooled over them: else a layer
    that shrinks would be scaled back. They are fitted twice, on the activations as they are and in units of each
    epoch's own spread: a layer that grows while the weights after it shrink computes the same function. A verdict needs
    both. Compression is (peak − final)/peak of a term over the epochs. Its interval comes
    from resampling the samples, the same for all epochs: the lower end from a simultaneous band of the falls from every
    epoch to the last, the upper one with the peak chosen anew in each resample.

    Args:
        networks: what loads the network, by epoch, from 0 (untrained).
        data: estimated on test samples; the rest is fitted on training samples.
        estimators: as for :func:`~robgib.information.layer_information`.
        layers: module names, or ``logits``; None takes every block's output and the logits.
        samples: most samples to estimate on, the same at every epoch; data that list every input are taken whole.
        features: one partition of the input; ``auto`` is the coarser of the usual ones.
        layer_dims: principal components of a layer.
        codes: symbols of a layer's code; I(X;Z) is also followed with half and with twice as many; with bins all terms,
            and four times as many too.
        sigma: noise of the ``noise`` view.
        device: where to compute.
        seed: of every random number.
        catalogue: further folders of plug-ins.
        progress: called after each epoch.

    Raises:
        RobGIBError: no epoch, a layer that cannot be watched, or samples that an estimator cannot use.
    """
    if not networks or min(networks) < 0:
        raise RobGIBError("a trace needs at least one epoch, from 0 on.")
    samples = len(data.test) if data.enumerated else samples
    makers = make_estimators(estimators, data, samples, seed, catalogue)
    (x, y), (x_fit, _) = split_information(data, samples, seed)
    partition = default_features(data.shape)[0] if features == "auto" else features
    inputs = group_inputs(partition, x, x_fit)
    count = codes or default_codes(len(data.classes), len(x_fit))
    chosen, pooled = _pooled(networks, data, tuple(layers or ()), x, x_fit[:_POOLED], makers, device, progress)
    looks = _looks(pooled, makers, layer_dims, count, sigma, seed)
    prepared = {m.name: m.prepare(inputs.values, inputs.fit) for m in makers}
    rows: list[dict[str, Any]] = []
    curves: dict[_Curve, dict[int, _Point]] = {}
    for number, (epoch, load) in enumerate(networks.items()):
        model = _prepared(load, data, device)
        told = answers(model, data.test.x, data.test.y, classes=len(data.classes), device=device)
        accuracy = float(told.right.mean())
        now, then = _activations(model, x, chosen, device), _activations(model, x_fit, chosen, device)
        seen = [look.at(epoch) for look in looks]
        # Those of one layer that are seen in other ways have a name of their own.
        targets = [
            {n: held[n].target(f"{n}\n{i}" if i else n, now[n], then[n], y.numpy()) for n in chosen}
            for i, held in enumerate(seen)
        ]
        for look, held in zip(looks, targets, strict=True):
            for layer, target in held.items():
                curves.setdefault(_Curve.of(look, "counted", layer, "I(X;Z)", target), {})[epoch] = _counted(target)
        for m in makers:
            used = [i for i, look in enumerate(looks) if look.view == m.view and (look.main or m.view == EXACT)]
            asked = [(i, n, targets[i][n]) for i in used for n in chosen]
            network = None
            if m.runs_network:
                layer_of = {t.name: n for _, n, t in asked}
                ways: dict[str, Seen] = {t.name: seen[i][n] for i, n, t in asked}
                network = Network(
                    x,
                    x_fit,
                    data.enumerated,
                    inputs,
                    codes_of(model, ways, model.batch_size, device, layers=layer_of),
                )
            with about(m, f"epoch {epoch}"):
                found = m.of_network(prepared[m.name], [t for *_, t in asked], network)
            for (i, layer, target), decomposition in zip(asked, found, strict=True):
                cost = _cost(target, decomposition)
                if cost is not None:
                    curves.setdefault(_Curve.of(looks[i], m.name, layer, "C(X;Z)", target), {})[epoch] = cost
                if looks[i].main and looks[i].units == POOLED:
                    base = {
                        "epoch": epoch,
                        "test_accuracy": accuracy,
                        "estimator": m.name,
                        "layer": layer,
                        "depth": chosen.index(layer),
                        "view": m.view,
                        "partition": partition,
                    }
                    shown = _resolved(target, [t[layer] for t, look in zip(targets, looks, strict=True) if look.main])
                    rows += [{**base, **row} for row in term_rows(shown, decomposition, inputs, 1.0)]
        if progress:
            progress("tracing", number + 1, len(networks), f"epoch {epoch}, accuracy {100 * accuracy:.1f}%")
    return Trace(table("trace", rows), table("compression", _verdicts(curves, chosen, partition, seed)))


POOLED, OWN = "pooled", "own"


@dataclass(frozen=True)
class _Look:
    """One way of seeing all layers at all epochs.

    Attributes:
        units: of the layers: pooled over the epochs, or each epoch's own.
        main: whether it is the resolution that the estimates are made at.
        seen: by layer, fitted once for all epochs.
        scales: by epoch and layer the centre and the scale of its own units.
    """

    units: str
    main: bool
    seen: Mapping[str, Seen]
    scales: Mapping[int, Mapping[str, tuple[np.ndarray, float]]]

    @property
    def view(self) -> View:
        return next(iter(self.seen.values())).view

    def at(self, epoch: int) -> dict[str, Seen]:
        """How the layers of one epoch are seen."""
        if self.units == POOLED:
            return dict(self.seen)
        return {n: Rescaled(one, *self.scales[epoch][n]) for n, one in self.seen.items()}


@dataclass(frozen=True)
class _Curve:
    """What is followed over the epochs: a term of a layer, and how it is seen."""

    estimator: str
    view: View
    layer: str
    term: str
    units: str
    main: bool
    resolution: str

    @classmethod
    def of(cls, look: _Look, estimator: str, layer: str, term: str, target: Target) -> _Curve:
        return cls(estimator, look.view, layer, term, look.units, look.main, target.resolution)


_Pools = Mapping[int, Mapping[str, np.ndarray]]  # activations by epoch and layer


def _pooled(
    networks: Mapping[int, Callable[[], nn.Module]],
    data: Dataset,
    layers: tuple[str, ...],
    x: Tensor,
    pool: Tensor,
    makers: Sequence[Estimator],
    device: torch.device | str,
    progress: Progress | None,
) -> tuple[tuple[str, ...], dict[View, _Pools]]:
    """The layers, and what they hold at every epoch of the samples that each view is fitted on.

    Bins have the range of all inputs, which are counted; codes, components and scales are fitted on other samples.
    """
    fitted_on = {view: x if view == EXACT else pool for view in dict.fromkeys(m.view for m in makers)}
    held: dict[View, dict[int, Mapping[str, np.ndarray]]] = {view: {} for view in fitted_on}
    for number, (epoch, load) in enumerate(networks.items()):
        model = _prepared(load, data, device)
        if not number:
            layers = find_layers(model.model, data.test.x[:2].to(device), layers or None)[0]
        for view, part in fitted_on.items():
            held[view][epoch] = _activations(model, part, layers, device)
        if progress:
            progress("pooling epochs", number + 1, len(networks), f"epoch {epoch}")
    return layers, dict(held)


def _looks(
    pooled: Mapping[View, _Pools], makers: Sequence[Estimator], dims: int, codes: int, sigma: float, seed: int
) -> list[_Look]:
    """The ways in which the layers are seen, the main one of each view in pooled units first."""
    bins = bins_of(makers)
    sizes = {
        RATE: [codes, *sorted({max(2, codes // 2), 2 * codes} - {codes})],
        EXACT: [bins, *sorted({max(2, bins // 2), 2 * bins, 4 * bins} - {bins})],
    }
    found = []
    for view, held in pooled.items():
        layers = list(next(iter(held.values())))
        scales = {e: {n: Rescaled.of(z) for n, z in of.items()} for e, of in held.items()}
        own = {e: {n: (z - scales[e][n][0]) / scales[e][n][1] for n, z in of.items()} for e, of in held.items()}
        for units, values in ((POOLED, held), (OWN, own)):
            together = {n: np.concatenate([of[n] for of in values.values()]) for n in layers}
            for i, size in enumerate(sizes.get(view, [0])):
                if view == RATE and i and size > len(together[layers[0]]):
                    continue
                seen = {n: fit_view(view, z, dims, size, sigma, seed, size) for n, z in together.items()}
                found.append(_Look(units, not i, seen, scales))
    return found


def _resolved(target: Target, others: Sequence[Target]) -> Target:
    """The target of a pooled code, marked where the epoch's own units show far more of the layer."""
    most = max((t.total.value for t in others if t.view == RATE), default=0.0)
    if target.view != RATE or target.total.value >= _RESOLVED * most:
        return target
    note = (
        f"the code pooled over the epochs holds {abs(target.total.value):.2f} bits here, and {most:.2f} in units of "
        "this epoch's own spread: the layer is small beside that of other epochs"
    )
    total, label = (replace(e, saturated=True) for e in (target.total, target.label))
    return replace(target, total=total, label=label, notes=(*target.notes, note))


@dataclass(frozen=True)
class _Point:
    """A term at one epoch: its estimate, and what can be resampled of it.

    Attributes:
        value: bits.
        spread: standard deviation of what resampling the samples does not show.
        pointwise: (N,) values whose mean it is, or None.
        codes: (N,) whose entropy it is, or None.
    """

    value: float
    spread: float
    pointwise: np.ndarray | None = None
    codes: np.ndarray | None = None


def _counted(target: Target) -> _Point:
    """I(X;Z) as it is counted; of all inputs without an error."""
    if target.view == RATE:
        return _Point(target.total.value, 0.0, codes=target.values)
    return _Point(target.total.value, (target.total.high - target.total.low) / 2 / 1.96)


def _cost(target: Target, found: Decomposition) -> _Point | None:
    """C(X;Z) as estimated, where there are singles."""
    c = found.complexity
    if target.view == EXACT:
        return _Point(c.value, 0.0)
    if c.value != c.value:
        return None
    whole = (c.high - c.low) / 2 / 1.96
    if found.pointwise is None:
        return _Point(c.value, whole)
    own = found.pointwise[:, 1:].sum(1) / len(found.singles)
    rest = max(whole**2 - own.var() / len(own), 0.0)
    return _Point(c.value, float(np.sqrt(rest)), pointwise=own)


def compression_of(values: Sequence[float]) -> float:
    """(peak − final)/peak of a term over the epochs; NaN unless the peak is above 0.

    >>> compression_of([1.0, 2.0, 1.5])
    0.25
    """
    sequence = np.asarray(values, float)
    peak = sequence.max()
    return float((peak - sequence[-1]) / peak) if peak > 0 else float("nan")


def _resampled(curve: Mapping[int, _Point], seed: int) -> np.ndarray:
    """Values (resamples, epochs), the samples drawn anew for all epochs together."""
    rng = np.random.default_rng([seed, 13])
    sizes = [len(held) for p in curve.values() for held in (p.pointwise, p.codes) if held is not None]
    weights = rng.multinomial(sizes[0], np.full(sizes[0], 1 / sizes[0]), size=_RESAMPLES) if sizes else None
    columns = []
    for point in curve.values():
        drawn = np.full(_RESAMPLES, point.value)
        if point.pointwise is not None and weights is not None:
            drawn = point.value + weights @ (point.pointwise - point.pointwise.mean()) / len(point.pointwise)
        elif point.codes is not None and weights is not None:
            drawn = point.value + _entropies(point.codes, weights)
        columns.append(drawn + point.spread * rng.standard_normal(_RESAMPLES))
    return np.stack(columns, 1)


def _entropies(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Plug-in entropies of resampled codes (resamples,), less that of the codes themselves.

    A resample has fewer symbols than the sample, by as much as the sample has fewer than the law: the bias is common to
    all epochs, but for the number of symbols, and is taken out by the mean.
    """
    _, dense = np.unique(codes, return_inverse=True)
    one_hot = np.zeros((len(dense), dense.max() + 1))
    one_hot[np.arange(len(dense)), dense.reshape(-1)] = 1
    p = weights @ one_hot / len(dense)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.nansum(np.where(p > 0, p * np.log2(p), 0.0), 1)
    return np.asarray(h - h.mean())


def _verdict(curve: Mapping[int, _Point], seed: int) -> dict[str, Any]:
    """Compression of one term with its interval, and what can be said."""
    epochs, values = list(curve), np.array([p.value for p in curve.values()])
    peak = int(values.argmax())
    told: dict[str, Any] = {
        "peak_epoch": epochs[peak],
        "peak": float(values[peak]),
        "final": float(values[-1]),
        "compression": compression_of(list(values)),
    }
    if not np.isfinite(told["compression"]):
        return {**told, "low": np.nan, "high": np.nan, "verdict": "cannot be told"}
    drawn = _resampled(curve, seed)
    falls, again = values - values[-1], drawn - drawn[:, -1:]
    error = again.std(0)
    moving = error > 1e-12
    low = 0.0
    if moving.any():
        # A simultaneous band: with 97.5% no epoch's fall is overstated.
        worst = ((again - falls)[:, moving] / error[moving]).max(1)
        critical = float(np.quantile(worst, 0.975))
        low = float(max(0.0, (falls[moving] - critical * error[moving]).max()))
    still = falls[~moving]
    low = max(low, float(still.max(initial=0.0))) / float(values[peak])
    tops = drawn.max(1)
    shares = (tops - drawn[:, -1]) / np.where(tops > 0, tops, np.nan)
    high = max(float(np.nanquantile(shares, 0.975)), told["compression"])
    verdict = "compresses" if low > _LEAST else "does not compress" if high < _NONE else "cannot be told"
    return {**told, "low": low, "high": high, "verdict": verdict}


def _verdicts(
    curves: Mapping[_Curve, Mapping[int, _Point]], layers: Sequence[str], partition: str, seed: int
) -> list[dict[str, Any]]:
    """A row a curve; the first of each term of a layer says on what all of them agree."""
    groups: dict[tuple[str, str, str, str], list[tuple[_Curve, dict[str, Any]]]] = {}
    for curve, points in curves.items():
        key = (curve.layer, curve.term, curve.estimator, curve.view)
        groups.setdefault(key, []).append((curve, _verdict(points, seed)))
    rows = []
    for (layer, term, estimator, view), held in groups.items():
        held.sort(key=lambda one: (one[0].units != POOLED, not one[0].main))
        place = {
            "estimator": estimator,
            "layer": layer,
            "depth": layers.index(layer),
            "view": view,
            "partition": partition,
            "term": term,
        }
        agreed = _agreed([(curve.units, told["verdict"]) for curve, told in held])
        for i, (curve, told) in enumerate(held):
            verdict = told["verdict"] if i else agreed
            rows.append({**place, "resolution": curve.resolution, "units": curve.units, **told, "verdict": verdict})
    return sorted(rows, key=lambda r: (r["depth"], r["term"] != "I(X;Z)", r["estimator"]))


def _agreed(told: Sequence[tuple[str, str]]) -> str:
    """What the verdicts of one term say together, each with its units, the main one of each units first.

    >>> _agreed([("pooled", "compresses"), ("own", "compresses")])
    'compresses'
    >>> _agreed([("pooled", "compresses"), ("own", "does not compress")])
    'rescaling'
    >>> _agreed([("pooled", "compresses"), ("pooled", "does not compress"), ("own", "compresses")])
    'depends on the resolution'
    """
    by_units = {u: [v for units, v in told if units == u] for u, _ in told}
    if any({"compresses", "does not compress"} <= set(own) for own in by_units.values()):
        return "depends on the resolution"
    first = {own[0] for own in by_units.values()}
    if len(first) == 1:
        return first.pop()
    return "cannot be told" if "cannot be told" in first else "rescaling"


def _prepared(load: Callable[[], nn.Module], data: Dataset, device: torch.device | str) -> PreparedModel:
    return prepare(load().to(device), data.test.x, classes=len(data.classes), device=device)


def _activations(
    model: PreparedModel, x: torch.Tensor, layers: Sequence[str], device: torch.device | str
) -> dict[str, np.ndarray]:
    held = collect_activations(model.model, x, layers, batch_size=model.batch_size, device=device, check=False)
    return dict(held)


def snapshots(folder: Path, at: Sequence[int], record: dict[str, Any]) -> Callable[[int, nn.Module], None]:
    """Return a ``watch`` that keeps the network of chosen epochs as ``folder/epoch-0004.safetensors``.

    ``record`` goes beside each, with its epoch.
    """

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in at:
            save_checkpoint(model, folder / f"epoch-{epoch:04d}.safetensors", {**record, "epoch": epoch})

    return keep


def saved_epochs(folder: Path) -> dict[int, Path]:
    """Return a folder's checkpoints by epoch: that of the record beside each, or the last number in its name.

    Raises:
        RobGIBError: no folder, no checkpoint in it, one without an epoch, or two of the same.
    """
    if not folder.is_dir():
        raise RobGIBError(f"folder {str(folder)!r} does not exist; give one that holds checkpoints.")
    found: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES):
        numbers = re.findall(r"\d+", path.stem)
        told = (read_record(path) or {}).get("epoch")
        if not isinstance(told, int) and not numbers:
            raise RobGIBError(f"{path} does not tell its epoch; put the number into its name, as in epoch-0004.")
        epoch = told if isinstance(told, int) else int(numbers[-1])
        if epoch in found:
            raise RobGIBError(f"{found[epoch]} and {path} are both of epoch {epoch}; a trace is of one training.")
        found[epoch] = path
    if not found:
        raise RobGIBError(f"{folder} holds no checkpoints ({', '.join(CHECKPOINT_SUFFIXES)}).")
    return dict(sorted(found.items()))
