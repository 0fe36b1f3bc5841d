"""Layers by module name: which ones there are, and what they hold for given inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError, unknown_name
from robgib.information.features import WIDE, directions
from robgib.models.adapt import Classifier, network_of
from robgib.runtime import Progress, faults_of, network_faults

__all__ = [
    "LOGITS",
    "check_layers",
    "collect_activations",
    "default_layers",
    "layer_shapes",
]

LOGITS = "logits"
"""The name of the model's output among the layers."""
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_NORM_NAMES = {f"BatchNorm{d}d" for d in (1, 2, 3)} | {"LayerNorm", "GroupNorm", "RMSNorm"}


def _record(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Outputs of the named modules, in the order in which they were last called, then the model's."""
    rows = model.rows if isinstance(model, Classifier) else None
    if rows is None or not len(x):
        return _call(model, x, names)
    assert isinstance(model, Classifier)
    calls = x.split(1 if model.alone else rows)
    parts = [_call(model, part, names) for part in calls]

    def joined(name: str) -> Any:
        held = [part[name] for part in parts]
        if not all(isinstance(h, Tensor) and h.ndim for h in held):
            return held[0]
        return torch.cat([h[: len(part)] for h, part in zip(held, calls, strict=True)])  # less what filled it up

    return {name: joined(name) for name in parts[0]}


def _call(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found.pop(name, None)
            found[name] = output

        return hook

    modules = dict(network_of(model).named_modules())
    modes = [(m, m.training) for m in model.modules()]
    with ExitStack() as stack, torch.no_grad():
        for name in names:
            if isinstance(modules[name], torch.jit.ScriptModule):
                raise RobGIBError(f"layer {name!r} is inside a TorchScript file and cannot be watched; use {LOGITS!r}.")
            stack.callback(modules[name].register_forward_hook(keep(name)).remove)
        model.eval()
        try:
            with faults_of(f"the model, given images of shape {tuple(x.shape)},"):
                found[LOGITS] = model(x)
        finally:
            for module, mode in modes:
                module.training = mode
    return found


def layer_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of every layer's output for one image, in order of execution; the logits last."""
    names = [n for n, m in network_of(model).named_modules() if n and not isinstance(m, torch.jit.ScriptModule)]
    found = _record(model, example, names)
    return {n: tuple(v.shape[1:]) for n, v in found.items() if isinstance(v, Tensor) and v.ndim >= 2}


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _former(module: nn.Module) -> str:
    """The class that a module of an exported program had before it was exported."""
    told = getattr(module, "type_name", None)
    return str(told()) if callable(told) else ""


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or _former(module).rpartition(".")[2] in _NORM_NAMES


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) or _former(module).endswith(".Sequential")


def _candidates(module: nn.Module, prefix: str) -> Iterator[str]:
    """Blocks among a module's children; a run of leaves counts as one block from weight to weight."""
    children = list(module.named_children())
    sequence = _is_sequence(module)
    pending = ""
    for name, child in children:
        path = f"{prefix}{name}"
        leaf = not list(child.children())
        if leaf and sequence:
            if _has_parameters(child) and not _is_norm(child):
                if pending:
                    yield pending
                pending = path
            elif pending:
                pending = path
            continue
        if pending:
            yield pending
            pending = ""
        if not _has_parameters(child) or _is_norm(child) or isinstance(child, torch.jit.ScriptModule):
            continue
        if _is_sequence(child) or isinstance(child, nn.ModuleList):
            inner = list(_candidates(child, f"{path}."))
            blocks = any(list(c.children()) for c in child.children())
            yield from inner if (len(inner) > 1 or blocks or isinstance(child, nn.ModuleList)) else [path]
        else:
            yield path
    if pending:
        yield pending


def default_layers(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return every block's output that the forward pass computes, in order, and the logits.

    Where a model is but a wrapper of another (normalisation before a network), the blocks are the inner one's.
    """
    modules = dict(network_of(model).named_modules())
    prefix = ""
    while True:
        names = [n for n in _candidates(modules[prefix.rstrip(".")], prefix) if n]
        found = _record(model, example, names)
        output = found.pop(LOGITS)
        blocks = [
            n
            for n, v in found.items()
            if isinstance(v, Tensor) and v.ndim >= 2 and len(v) == len(example) and v is not output
        ]
        wrapped = [n for n, v in found.items() if v is output and any(modules[n].children())]
        if blocks or not wrapped:
            return (*blocks, LOGITS)
        prefix = f"{wrapped[-1]}."


_UNITS = {  # what a leaf of this class tells of the number of units that its output has
    "Conv1d": "out_channels",
    "Conv2d": "out_channels",
    "ConvTranspose1d": "out_channels",
    "ConvTranspose2d": "out_channels",
    "BatchNorm1d": "num_features",
    "BatchNorm2d": "num_features",
    "GroupNorm": "num_channels",
    "Linear": "out_features",
    "LayerNorm": "normalized_shape",
}
_MAPS_1D = ("Conv1d", "ConvTranspose1d", "BatchNorm1d")


def _units(module: nn.Module, shape: tuple[int, ...]) -> tuple[str, int]:
    """The class of a module's last leaf whose units are one of its output's axes, and which axis; 1 if unknown."""
    for leaf in reversed([m for m in module.modules() if not list(m.children())]):
        kind = type(leaf).__name__
        units = getattr(leaf, _UNITS.get(kind, ""), None)
        units = units[-1] if isinstance(units, tuple) else units
        if units is not None and units in (shape[1], shape[-1]):
            return kind, 1 if units == shape[1] else len(shape) - 1
    return "", 1


def _compact(output: Tensor, pool: int, class_token: bool, module: nn.Module | None = None) -> Tensor:
    """Maps (N, C, H, W) or (N, H, W, C) pooled to at most pool x pool; maps (N, C, L) to pool² places; tokens (N, L, D)
    to the class token or their mean. Units come first."""
    kind, axis = _units(module, tuple(output.shape)) if module is not None and output.ndim in (3, 4) else ("", 1)
    if output.ndim == 4 and axis == 3:
        output = output.permute(0, 3, 1, 2)
    if output.ndim == 3 and kind in _MAPS_1D and axis == 1:
        return F.adaptive_avg_pool1d(output, min(output.shape[2], pool**2))
    if output.ndim == 4 and max(output.shape[2:]) > pool:
        return F.adaptive_avg_pool2d(output, (min(output.shape[2], pool), min(output.shape[3], pool)))
    if output.ndim == 3:
        return output[:, 0] if class_token else output.mean(1)
    return output


def check_layers(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the layers, each once; raise where a model has no module of such a name."""
    modules = dict(network_of(model).named_modules())
    for name in layers:
        if name != LOGITS and name not in modules:
            raise unknown_name("layer", name, [*(n for n in modules if n), LOGITS])
    return tuple(dict.fromkeys(layers))


def collect_activations(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    *,
    pool: int = 4,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    check: bool = True,
    reduced: bool = False,
) -> dict[str, npt.NDArray[np.float32]]:
    """Run the model on ``x`` and return what the named layers hold.

    Args:
        model: on ``device``; run in eval mode. The layers' names are those of the network itself where it is behind a
            :class:`~robgib.models.adapt.Classifier`.
        x: images (N, …).
        layers: module names, or ``logits``.
        pool: largest side to which convolutional maps are averaged.
        batch_size: images at once; halved where memory does not suffice.
        device: where the model is.
        progress: called after each batch.
        check: whether a layer that is constant over the samples is refused.
        reduced: whether layers of more than 4,096 numbers are projected on 1,024 random directions as they are
            captured (Li, Hastie & Church 2006), the same each time, which keep their distances to some 5%: so many
            samples of a large network need little memory.

    Returns:
        Arrays (N, U, …) by layer, U the units or channels. Token layers give the class token, where the
        model has one (``class_token`` or ``cls_token``), else the mean over tokens.

    Raises:
        RobGIBError: an unknown name, a layer that the forward pass does not reach, that gives no tensor, that
            is constant over the samples, or that holds NaN or infinite values.
    """
    layers, modules = check_layers(model, layers), dict(network_of(model).named_modules())
    class_token = any(n.rpartition(".")[2] in ("class_token", "cls_token") for n, _ in model.named_parameters())
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    start = 0
    while start < len(x):
        batch = x[start : start + batch_size].to(device)
        try:
            with network_faults():
                found = _record(model, batch, [n for n in layers if n != LOGITS])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
            torch.cuda.empty_cache()
            continue
        start += len(batch)
        for name in layers:
            if name not in found:
                raise RobGIBError(f"layer {name!r} never fires: the model's forward pass does not call it.")
            output = found[name]
            if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(batch):
                raise RobGIBError(f"layer {name!r} does not give one tensor (N, …) for N images; choose another.")
            kept = _compact(output, pool, class_token, modules.get(name)).float().cpu()
            if reduced and kept[0].numel() > WIDE:
                kept = torch.from_numpy(directions(kept[0].numel()).transform(kept.flatten(1).numpy()))
            parts[name].append(kept)
        if progress:
            progress("capturing layers", start, len(x))
    held = {name: torch.cat(chunks).numpy() for name, chunks in parts.items()}
    for name, values in held.items():
        if not np.isfinite(values).all():
            raise RobGIBError(f"layer {name!r} holds NaN or infinite activations; no estimate would mean anything.")
        if check and np.ptp(values.reshape(len(values), -1), axis=0).max() == 0:
            raise RobGIBError(
                f"layer {name!r} never fires: it is the same for all {len(values)} images; "
                "choose other layers with --layer."
            )
    return held
