"""A classifier as attacks call it: in batches that fit the memory, in a faster form, its passes counted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.fx
from torch import Tensor, nn

from robgib.errors import unknown_name

if TYPE_CHECKING:
    from robgib.attacks.attack import Goal

__all__ = ["PRECISIONS", "InBatches", "Passes", "count_passes", "fitting_batch", "quicken"]

PRECISIONS = ("float32", "bfloat16")
_CACHE = 2**25  # bytes of activations at which a CPU's batches are about fastest
_DOUBT = 0.05  # of the largest logit: what bfloat16 may be off by, and more


@dataclass
class Passes:
    """Images that went forward through a model, and gradients that came back (each counted singly)."""

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(*models: nn.Module) -> Iterator[Passes]:
    """Count the passes through all of ``models`` while the context lasts, whoever calls them."""
    passes = Passes()

    def seen(module: nn.Module, inputs: tuple[Any, ...], logits: Any) -> None:
        count = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else 0
        passes.forward += count

        def back(gradient: Tensor) -> None:
            passes.backward += count

        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(back)

    handles = [m.register_forward_hook(seen) for m in {id(m): m for m in models}.values()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class InBatches(nn.Module):
    """Gives a model images in batches, so that an attack may hold any number of samples at once.

    Where the device runs out of memory the batch size is halved, for good, and the batch repeated.

    Args:
        model: classifier, frozen.
        batch_size: images at once.
        precision: ``bfloat16`` takes gradients under autocast. Logits that come with them are float32's wherever
            bfloat16's are no safe ground for a decision, and those of a plain call always.
        watch: called after each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        precision: str = "float32",
        watch: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self.model, self.batch_size, self.precision, self.watch = model, batch_size, precision, watch
        weights = [p for p in model.parameters() if p.ndim == 4]
        self._last = bool(weights) and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to logits (N, classes)."""
        if not len(x):
            return self._call(x)
        return self.map(len(x), lambda rows: (self._call(x[rows]),))[0]

    def gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Gradient (N, …) of the goal's objective at the images ``x``, and the logits (N, classes) there."""
        gradient, logits = self.map(len(x), lambda rows: self._gradient(x[rows], goal.select(rows)))
        return gradient, logits

    def map(self, count: int, call: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Call with slices of a batch each that cover ``count`` rows; join each of the results along the rows."""
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while start < count:
            stop = min(start + self.batch_size, count)
            try:
                parts.append(call(slice(start, stop)))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                torch.cuda.empty_cache()
                continue
            start = stop
            if self.watch:
                self.watch()
        return parts[0] if len(parts) == 1 else tuple(torch.cat(kind) for kind in zip(*parts, strict=True))

    def _call(self, x: Tensor) -> Tensor:
        if self._last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(x)
        return logits

    def _gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        low = self.precision == "bfloat16"
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            with torch.autocast(x.device.type, torch.bfloat16) if low else nullcontext():
                logits = self._call(leaf)
            logits = logits.to(x.dtype)
            (gradient,) = torch.autograd.grad(goal.objective(logits).sum(), leaf)
        logits = logits.detach()
        if low:
            first, second = logits.topk(2, 1).values.unbind(1)
            doubtful = goal.reached(logits) | (first - second < _DOUBT * logits.abs().amax(1))
            if bool(doubtful.any()):
                with torch.no_grad():
                    logits[doubtful] = self._call(x[doubtful])
        return gradient.contiguous(), logits


def quicken(model: nn.Module, sample: Tensor) -> nn.Module:
    """Return a faster copy of a frozen model: batch norms folded, ReLU after max pooling, memory channels-last.

    The model itself comes back where it has no convolution, cannot be copied, or where the copy's logits on the
    images ``sample`` (N, …) are not the model's, to rounding (as with noise inside).
    """
    if sample.ndim != 4 or not len(sample) or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return model
    for copied in (_traced, copy.deepcopy):
        try:
            quick = copied(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for p in quick.parameters():
                p.requires_grad_(False)
            with torch.no_grad():
                told, wanted = quick(sample.contiguous(memory_format=torch.channels_last)), model(sample)
            if told.shape == wanted.shape and bool(
                ((told - wanted).abs() <= 1e-4 * wanted.abs().amax(1, keepdim=True)).all()
            ):
                return quick
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a stranger's module says to tracing or copying, it can be attacked as it is
            continue
    return model


def _traced(model: nn.Module) -> nn.Module:
    """A traced copy with each batch norm folded into the convolution before it, and ReLU after max pooling.

    The two commute, in their gradients too, and after the pooling there is less to do.
    """
    from torch.fx.experimental.optimization import fuse

    with torch.random.fork_rng(devices=[]):
        quick = fuse(model)
    assert isinstance(quick, torch.fx.GraphModule)
    kinds = dict(quick.named_modules())

    def is_a(node: object, kind: type[nn.Module]) -> TypeGuard[torch.fx.Node]:
        return isinstance(node, torch.fx.Node) and node.op == "call_module" and type(kinds[str(node.target)]) is kind

    for node in quick.graph.nodes:
        before = node.args[0] if is_a(node, nn.MaxPool2d) else None
        if is_a(before, nn.ReLU) and len(before.users) == 1:
            before.target, node.target = node.target, before.target
    quick.recompile()
    return quick


def fitting_batch(model: nn.Module, sample: Tensor) -> int:
    """Return a batch size for a frozen model, a power of two.

    On a CPU its activations stay about in the cache, elsewhere in an eighth of the memory. The rule looks at the size
    of the leaf modules' outputs for the images ``sample`` (N, …), on the model's device, and at no clock, so that it
    gives the same answer every time.
    """
    if not len(sample):
        return 64
    bytes_used = 0

    def weigh(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal bytes_used
        if isinstance(output, Tensor):
            bytes_used += output.numel() * output.element_size()

    leaves = [m for m in model.modules() if not any(m.children()) and not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_hook(weigh) for m in leaves]
    try:
        with torch.no_grad():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    each = max(1, bytes_used // len(sample))
    if sample.device.type == "cuda":
        room = torch.cuda.get_device_properties(sample.device).total_memory // 8
        return _power(room // each, 32, 2048)
    return _power(_CACHE // each, 32, 256)


def _power(wanted: int, least: int, most: int) -> int:
    return min(most, max(least, 1 << max(0, wanted.bit_length() - 1)))
