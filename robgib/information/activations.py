"""Layers by module name: their discovery, and their activations."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError, RobGIBWarning, unknown_name
from robgib.information.features import WIDE, directions
from robgib.models.adapt import Classifier, network_of
from robgib.runtime import Progress, faults_of, network_faults

__all__ = [
    "LOGITS",
    "check_layers",
    "collect_activations",
    "default_layers",
    "find_layers",
    "functions_of",
    "layer_shapes",
    "without_units",
]

LOGITS = "logits"
"""The name of the model's output among the layers."""
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_SEQUENCES = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.Transformer,
)
_NORM_NAMES = {f"BatchNorm{d}d" for d in (1, 2, 3)} | {"LayerNorm", "GroupNorm", "RMSNorm"}


Keep = Callable[[nn.Module, str, str, Tensor], Any]
"""What is kept of one tensor that a module gives: of the module, its call, the tensor's place and the tensor."""
Change = Callable[[Tensor], Tensor]
_LABEL = re.compile(r"(?P<module>.+?)(?P<call>\[\d+\])?(?P<part>\([^()]*\))?", re.DOTALL)


def _module_of(layer: str, modules: Mapping[str, nn.Module]) -> str:
    """The module whose output a layer is: ``block[2](hidden)`` is of ``block``."""
    if layer in modules:
        return layer
    match = _LABEL.fullmatch(layer)
    return str(match["module"]) if match else layer


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """The network's modules under all of their names."""
    return dict(network_of(model).named_modules(remove_duplicate=False))


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's output with their places: ``1.0`` is the first of the second."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(output, tuple | list):
        for i, value in enumerate(output):
            yield from _tensors(value, f"{path}.{i}" if path else str(i))


def _record(model: nn.Module, x: Tensor, names: Sequence[str], keep: Keep) -> dict[str, Any]:
    """What is kept of the named modules' outputs, by layer in order of execution, then of the model's."""
    rows = model.rows if isinstance(model, Classifier) else None
    if rows is None or not len(x):
        return _call(model, x, names, keep)
    assert isinstance(model, Classifier)
    calls = x.split(1 if model.alone else rows)
    parts = [_call(model, part, names, keep) for part in calls]

    def joined(name: str) -> Any:
        kept = [part.get(name) for part in parts]
        tensors = [h for h in kept if isinstance(h, Tensor) and h.ndim]
        if len(tensors) < len(kept):
            return kept[0]
        return torch.cat([h[: len(part)] for h, part in zip(tensors, calls, strict=True)])  # less what filled it up

    return {name: joined(name) for name in parts[0]}


def _call(
    model: nn.Module, x: Tensor, names: Sequence[str], keep: Keep, instead: Mapping[str, Change] | None = None
) -> dict[str, Any]:
    """As :func:`_record`, of one call of the model.

    What is kept is taken when the module returns: a module or an operation after it may write over its output. A module
    that is called k times is k layers, ``block[1]`` to ``block[k]``, and each tensor of several that it gives is one,
    ``lstm(0)``. ``instead`` changes the outputs of layers, all named with their call and part.
    """
    outputs: list[tuple[str, int, str, Any]] = []
    counts: dict[str, int] = {}
    many: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            call = f"{name}[{counts[name]}]"
            tensors = list(_tensors(output))
            if len(tensors) > 1:
                many.add(name)
            for path, tensor in tensors:
                outputs.append((name, counts[name], path, keep(module, call, path, tensor)))
            if not tensors:
                outputs.append((name, counts[name], "", None))
            return _replaced(output, call, instead) if instead else None

        return hook

    modules = _modules(model) if names else {}
    modes = [(m, m.training) for m in model.modules()]
    with ExitStack() as stack, torch.no_grad():
        for name in names:
            if isinstance(modules[name], torch.jit.ScriptModule):
                raise RobGIBError(f"layer {name!r} is inside a TorchScript file and cannot be watched; use {LOGITS!r}.")
            stack.callback(modules[name].register_forward_hook(watch(name)).remove)
        if any(mode for _, mode in modes):
            model.eval()
        try:
            with faults_of(f"the model, given images of shape {tuple(x.shape)},"):
                output = model(x)
        finally:
            for module, mode in modes:
                if module.training != mode:  # to set it costs as much as a small layer
                    module.training = mode
    kept_by_layer = {
        f"{name}{f'[{call}]' if counts[name] > 1 else ''}{f'({path})' if name in many else ''}": kept
        for name, call, path, kept in outputs
    }
    return {**kept_by_layer, LOGITS: keep(model, LOGITS, "", output)}


def _replaced(output: Any, call: str, instead: Mapping[str, Change], path: str = "") -> Any:
    """A module's output with some of its tensors changed."""
    if isinstance(output, Tensor):
        change = instead.get(f"{call}({path})")
        return output if change is None else change(output)
    if isinstance(output, Mapping):
        changed = copy.copy(output)
        for key, value in output.items():
            changed[key] = _replaced(value, call, instead, f"{path}.{key}" if path else str(key))  # type: ignore[index]
        return changed
    if isinstance(output, tuple | list):
        parts = [_replaced(v, call, instead, f"{path}.{i}" if path else str(i)) for i, v in enumerate(output)]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def _itself(module: nn.Module, call: str, path: str, tensor: Tensor) -> Tensor:
    return tensor


def _batch_first(module: nn.Module) -> bool | None:
    """Whether a module of sequences has the images first; None where it is none."""
    if not isinstance(module, _SEQUENCES):
        return None
    settings = [m.batch_first for m in module.modules() if hasattr(m, "batch_first")]
    return bool(settings[0]) if settings else None


def _images_first(module: nn.Module, path: str, output: Any, images: int) -> tuple[Tensor | None, bool]:
    """A tensor with a row an image, or None where it has none; and whether another axis might be the images'."""
    if not isinstance(output, Tensor) or output.ndim < 2 or output.layout != torch.strided:
        return None, False
    first = _batch_first(module)
    if isinstance(module, nn.RNNBase) and path.startswith("1"):  # the last states, a row a level
        return (output.transpose(0, 1).flatten(1), False) if output.ndim == 3 else (None, False)
    tokens = output.ndim == 3 and output.shape[1] == images
    if first is False and tokens and path in ("", "0"):
        return output.transpose(0, 1), False
    if len(output) == images:
        return output, tokens and first is None
    return (output.transpose(0, 1), False) if tokens else (None, False)


def layer_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of every layer's output for one image, in order of execution; the logits last."""
    names = [n for n, m in network_of(model).named_modules() if n and not isinstance(m, torch.jit.ScriptModule)]
    outputs = _record(model, example, names, _itself)
    return {n: tuple(v.shape[1:]) for n, v in outputs.items() if isinstance(v, Tensor) and v.ndim >= 2}


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _former(module: nn.Module) -> str:
    """The class that a module of an exported program had before it was exported."""
    type_name = getattr(module, "type_name", None)
    return str(type_name()) if callable(type_name) else ""


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
    """Return the output of every block that the forward pass computes, in order, and the logits.

    If a model only wraps another (normalisation before a network), the blocks are those of the inner one. A block that
    is called k times is k layers, ``block[1]`` to ``block[k]``; each of several output tensors is a layer, as
    ``lstm(0)``. A warning names each block that cannot be a layer.
    """
    layers, notes = find_layers(model, example)
    for note in notes:
        warnings.warn(note, RobGIBWarning, stacklevel=2)
    return layers


def find_layers(
    model: nn.Module, example: Tensor, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the layers of the named modules, one per call and tensor, and one sentence per block that is left out.

    Args:
        model: on the device of ``example``.
        example: a few images (N, …).
        names: modules, layers or ``logits``; None takes every block (:func:`default_layers`).

    Raises:
        RobGIBError: an unknown name.
    """
    if names is not None:
        return _asked_layers(model, example, tuple(dict.fromkeys(names))), ()
    modules = _modules(model)
    prefix = ""
    while True:
        named = [n for n in _candidates(modules[prefix.rstrip(".")], prefix) if n]
        once = {id(modules[n]): n for n in reversed(named)}  # a module that has two names is watched under the first
        outputs = _record(model, example, list(reversed(once.values())), _itself)
        output = outputs.pop(LOGITS)
        inner = {n: v for n, v in outputs.items() if v is not output}
        usable = {n: _layer_of(modules, n, v, len(example)) for n, v in inner.items()}
        blocks = [n for n, v in usable.items() if v is not None]
        wrapped = [n for n, v in outputs.items() if v is output and any(modules[_module_of(n, modules)].children())]
        if blocks or not wrapped:
            notes = [f"layer {n!r} {_WHY}: left out" for n, v in usable.items() if v is None]
            return (*blocks, LOGITS), tuple(notes)
        prefix = f"{_module_of(wrapped[-1], modules)}."


_WHY = "has no tensor of numbers with one row per image that differs between images"


def _layer_of(modules: Mapping[str, nn.Module], layer: str, value: Any, images: int) -> Tensor | None:
    """A layer's output, images first; None where it has none, or is one of several parts and the same for all."""
    name = _module_of(layer, modules)
    part = layer[len(name) :].rpartition("(")[2].rstrip(")")
    output = _images_first(modules[name], part, value, images)[0]
    if output is None or (part and images > 1 and bool((output == output[:1]).all())):
        return None
    return output


def _asked_layers(model: nn.Module, example: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """The layers that are asked for by name: every call and every tensor of a module's."""
    modules = _modules(model)
    watched = [_watched(n, modules) for n in names if n != LOGITS]
    outputs = _record(model, example, list(dict.fromkeys(watched)), _itself)
    usable = {n for n, v in outputs.items() if n == LOGITS or _layer_of(modules, n, v, len(example)) is not None}
    return tuple(dict.fromkeys(layer for name in names for layer in _matching(name, outputs, usable, modules)))


def _watched(layer: str, modules: Mapping[str, nn.Module]) -> str:
    """The module to watch for a layer."""
    name = _module_of(layer, modules)
    if name not in modules:
        raise unknown_name("layer", layer, [*(n for n in modules if n), LOGITS])
    return name


def _matching(name: str, layers: Iterable[str], usable: Container[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """The layers found for a name; the name itself where the module never fires, which the capture reports."""
    if name in layers:
        return [name]
    module = _module_of(name, modules)
    own = [n for n in layers if n != LOGITS and _module_of(n, modules) == module]
    matching = own if name == module else [n for n in own if n.startswith((f"{name}(", f"{name}["))]
    if own and not matching:
        raise unknown_name("layer", name, own)
    return [n for n in matching if n in usable] or matching or [name]


def functions_of(model: nn.Module, x: Tensor, layer: str, others: Sequence[str]) -> frozenset[str]:
    """Return those of the other layers that the network computes from ``layer`` alone.

    This is a test: the network runs on the second half of the images with the layer's activations of the first half. A
    layer that is a function of it then has its activations of the first half.

    Args:
        model: on the device of ``x``.
        x: images (N, …), two at least.
        layer: a layer as :func:`find_layers` names it.
        others: further ones, or ``logits``.
    """
    modules = _modules(model)
    half = len(x) // 2
    if isinstance(model, Classifier) and model.rows is not None:
        half = 1 if model.alone else min(half, model.rows)
    ours, theirs = x[:half], x[half : 2 * half]
    watched = list(dict.fromkeys(_watched(n, modules) for n in (layer, *others) if n != LOGITS))

    def copied(module: nn.Module, call: str, path: str, tensor: Tensor) -> tuple[str, Tensor]:
        return f"{call}({path})", tensor.detach().clone()

    of_ours, of_theirs = (_call(model, part, watched, copied) for part in (ours, theirs))
    place, values = of_ours[layer]
    mixed = _call(model, theirs, watched, copied, {place: lambda output: values.clone()})
    return frozenset(
        n for n in others if _alike(mixed[n][1], of_ours[n][1]) and not _alike(of_theirs[n][1], of_ours[n][1])
    )


def without_units(
    model: nn.Module,
    x: Tensor,
    layer: str,
    subsets: Callable[[int], Iterable[npt.NDArray[np.int64]]],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> list[npt.NDArray[np.int64]]:
    """Predict the classes (N,) with some units of a layer set to 0, for each of several subsets of units.

    Args:
        model: on ``device``.
        x: images (N, …).
        layer: a layer as :func:`find_layers` names it, or ``logits``.
        subsets: of the layer's number of units (channels), those to set to 0.
        batch_size: images at once.
        device: where the model is.
    """
    modules = _modules(model)
    watched = [] if layer == LOGITS else [_watched(layer, modules)]
    if isinstance(model, Classifier) and model.rows is not None:
        batch_size = 1 if model.alone else model.rows

    def shaped(module: nn.Module, call: str, path: str, tensor: Tensor) -> tuple[str, int, int]:
        shape = tuple(tensor.shape)
        axis = _units(module, shape)[1] if len(shape) == 4 else 1 if _is_map(module, shape) else len(shape) - 1
        return f"{call}({path})", axis, shape[axis]

    place, axis, count = _call(model, x[:2].to(device), watched, shaped)[layer]
    predictions = []
    for subset in subsets(count):
        index = torch.as_tensor(subset, device=device)
        change = {place: lambda output, index=index: output.index_fill(axis, index, 0)}
        parts = []
        for part in x.split(batch_size):
            logits = _call(model, part.to(device), watched, _itself, change)[LOGITS]
            if layer == LOGITS:
                logits = logits.index_fill(1, index, 0)
            parts.append(logits.argmax(1).cpu().numpy())
        predictions.append(np.concatenate(parts).astype(np.int64))
    return predictions


def _is_map(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether an output (N, C, L) is of channels at places, not of tokens."""
    kind, axis = _units(module, shape) if len(shape) == 3 else ("", 1)
    return kind in _MAPS_1D and axis == 1


def _alike(a: Tensor, b: Tensor) -> bool:
    size = float(b.abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5 * size)


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
    """Return the layers, each once; raise if the model has no module of such a name."""
    modules = _modules(model)
    for name in layers:
        if name != LOGITS:
            _watched(name, modules)
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
    """Run the model on ``x`` and return the activations of the named layers.

    Args:
        model: on ``device``; run in eval mode. Names of layers are those of the network inside a
            :class:`~robgib.models.adapt.Classifier`.
        x: images (N, …).
        layers: module names, or ``logits``. A module that is called k times, or gives several tensors, is several
            layers, ``block[1]``, ``lstm(0)``; its own name selects all of them.
        pool: largest side to which convolutional maps are averaged.
        batch_size: images per batch; halved if memory does not suffice.
        device: where the model is.
        progress: called after each batch.
        check: whether a layer that is constant over the samples is refused.
        reduced: whether layers of more than 4,096 numbers are projected on 1,024 random directions as they are
            captured (Li, Hastie & Church 2006), which saves memory. The directions are the same each time and keep
            distances to about 5%.

    Returns:
        Arrays (N, U, …) by layer, with U units or channels. Layers of tokens give the class token if the model has one
        (``class_token`` or ``cls_token``), otherwise the mean over tokens.

    Raises:
        RobGIBError: an unknown name, a layer that the forward pass does not reach, that gives no tensor, that
            is constant over the samples, or that holds NaN or infinite values.
    """
    modules, names = _modules(model), check_layers(model, layers)
    watched = list(dict.fromkeys(_watched(n, modules) for n in names if n != LOGITS))
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for outputs, images in _outputs_by_batch(model, x, watched, pool, batch_size, device):
        usable = [n for n, v in outputs.items() if isinstance(v, Tensor) and len(v) == images]
        wanted = parts or [layer for n in names for layer in _matching(n, outputs, usable, modules)]
        for name in dict.fromkeys(wanted):
            parts.setdefault(name, []).append(_checked(name, outputs, modules, images, reduced))
        done += images
        if progress:
            progress("capturing layers", done, len(x))
    activations = {name: torch.cat(chunks).numpy() for name, chunks in parts.items()}
    return {
        name: _varying(name, values, check)
        for name, values in activations.items()
        # One of several tensors of a module, the same for all images, is no layer unless it is named.
        if name in names or not name.endswith(")") or (values != values[:1]).any()
    }


def _outputs_by_batch(
    model: nn.Module, x: Tensor, watched: Sequence[str], pool: int, batch_size: int, device: torch.device | str
) -> Iterator[tuple[dict[str, Any], int]]:
    """The outputs of watched modules batch by batch, with the number of images of each batch."""
    class_token = any(n.rpartition(".")[2] in ("class_token", "cls_token") for n, _ in model.named_parameters())
    rows = model.rows if isinstance(model, Classifier) else None
    start, fewer = 0, 0
    while start < len(x):
        batch = x[start : start + batch_size - fewer].to(device)
        kept = _Kept(pool, class_token, rows, len(batch))
        try:
            with network_faults():
                outputs = _record(model, batch, watched, kept)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
            torch.cuda.empty_cache()
            continue
        if kept.doubtful and not fewer and len(batch) > 1 and rows is None:
            fewer = 1 + batch_size - len(batch)  # one image fewer than tokens distinguishes the two axes
            continue
        fewer = 0
        start += len(batch)
        yield outputs, len(batch)


_FEW = 4  # so few images may give a layer one value by chance


def _varying(name: str, values: npt.NDArray[np.float32], check: bool) -> npt.NDArray[np.float32]:
    """A layer's activations, refused if they are not finite or, with ``check``, the same for all images."""
    if not np.isfinite(values).all():
        raise RobGIBError(f"layer {name!r} holds NaN or infinite activations; its information cannot be estimated.")
    if check and np.ptp(values.reshape(len(values), -1), axis=0).max() == 0:
        if len(values) < _FEW:
            raise RobGIBError(
                f"layer {name!r} is the same for all {len(values)} images; these are too few images to tell layers "
                "apart: give more with --samples or --information-samples."
                if len(values) > 1
                else f"one image is too few for the information in layer {name!r}: give more with --samples or "
                "--information-samples."
            )
        raise RobGIBError(
            f"layer {name!r} never fires: it is the same for all {len(values)} images; "
            "choose other layers with --layer."
        )
    return values


@dataclass
class _Kept:
    """What :func:`collect_activations` keeps of a tensor: a copy, pooled, units first.

    Attributes:
        pool: as there.
        class_token: whether the first token represents the whole sequence.
        rows: images that the network takes at once, where that is fixed.
        images: how many it is given.
        doubtful: whether a tensor had as many tokens as images, so that either might be either.
    """

    pool: int
    class_token: bool
    rows: int | None
    images: int
    doubtful: bool = False

    def __call__(self, module: nn.Module, call: str, path: str, tensor: Any) -> Tensor | None:
        if call == LOGITS:
            return _compact(tensor, self.pool, self.class_token).detach().float().cpu().clone()
        output, uncertain = _images_first(module, path, tensor, self.rows or self.images)
        self.doubtful |= uncertain
        if output is None:
            return None
        return _compact(output, self.pool, self.class_token, module).detach().float().cpu().clone()


def _checked(
    name: str, outputs: Mapping[str, Any], modules: Mapping[str, nn.Module], images: int, reduced: bool
) -> Tensor:
    """What was kept of a layer, on random directions where it is wide and ``reduced``."""
    if name not in outputs:
        fired = any(n != LOGITS and _module_of(n, modules) == _module_of(name, modules) for n in outputs)
        if fired:
            raise RobGIBError(
                f"layer {name!r} is not computed for all images: the forward pass calls its module more often for some "
                "images than for others; choose another."
            )
        raise RobGIBError(f"layer {name!r} never fires: the model's forward pass does not call it.")
    kept = outputs[name]
    if not isinstance(kept, Tensor) or len(kept) != images:
        raise RobGIBError(f"layer {name!r} does not give one tensor (N, …) for N images; choose another.")
    if reduced and kept[0].numel() > WIDE:
        kept = torch.from_numpy(directions(kept[0].numel()).transform(kept.flatten(1).numpy()))
    return kept
