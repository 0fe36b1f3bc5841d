"""A classifier as attacks call it: eval mode, batches that fit the memory, a faster form, its passes counted."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from robgib.errors import NoGradientError, RobGIBError, first_line, unknown_name
from robgib.models.adapt import Classifier, adapt, as_module, finite_answers, seeded
from robgib.runtime import faults_of, network_faults

__all__ = [
    "PRECISIONS",
    "Answers",
    "BatchedModel",
    "PreparedModel",
    "QueryCount",
    "answers",
    "check_finite_answers",
    "count_queries",
    "eval_mode",
    "finite",
    "fitting_batch",
    "fuse_for_inference",
    "gradient_of",
    "one_thread_measures",
    "predict",
    "prepare",
    "rows_of",
]


_ONE_THREAD = threading.RLock()
"""Held by the thread that measures."""
if hasattr(os, "register_at_fork"):  # a process that was forked meanwhile has not the thread that would let go of it
    os.register_at_fork(after_in_child=lambda: globals().update(_ONE_THREAD=threading.RLock()))


@contextmanager
def one_thread_measures() -> Iterator[None]:
    """Let the other threads of this process wait that would measure too.

    A model's modes, the passes counted on it, what is warned of and the global random numbers are the process's own:
    threads at once would mix them. Measuring in a thread gives what it gives without others; processes run at once.
    """
    with _ONE_THREAD:
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with parameters that take no gradients; restore both afterwards.

    One thread of the process at a time is in here (:func:`one_thread_measures`).
    """
    with _ONE_THREAD, _eval_mode(model):
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    with faults_of("the model"):
        modes = [(m, m.training) for m in model.modules()]
        wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with faults_of("the model"):
            model.eval()
        for p, _ in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for p, flag in wanted:
            p.requires_grad_(flag)


PRECISIONS = ("float32", "bfloat16")
_CACHE = 2**25  # bytes of activations at which a CPU's batches are about fastest
_DOUBT = 0.05  # of the largest logit: what bfloat16 may be off by, and more
_SAME = 1e-3  # of a gradient's length: how far one form's may be from another's, for most samples
_KINK = 0.2  # and for all: where rounding takes a ReLU to its other side, a sample's gradient jumps


@dataclass
class QueryCount:
    """Images that went forward through a model, and gradients that came back (each counted singly)."""

    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> int:
        """In forward passes: a gradient takes about two."""
        return self.forward + 2 * self.backward


@contextmanager
def count_queries(*models: nn.Module) -> Iterator[QueryCount]:
    """Count the passes through all of ``models`` while the context lasts, whoever calls them."""
    passes = QueryCount()

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


def gradient_of(value: Tensor, leaf: Tensor, keep: bool = False) -> Tensor:
    """Gradient of the scalar ``value`` by ``leaf``; ``keep`` keeps the graph for another.

    Raises:
        NoGradientError: there is none.
    """
    try:
        with network_faults():
            return torch.autograd.grad(value, leaf, retain_graph=keep)[0]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a stranger's backward pass may raise anything
        if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
            raise NoGradientError(
                "the model gives no gradient: its logits do not depend on the image through differentiable "
                "operations; use a black-box attack such as square-linf."
            ) from error
        with faults_of("the model's backward pass"):
            raise


def finite(gradient: Tensor) -> Tensor:
    """A gradient with 0 for its entries that are NaN or infinite, which would spoil all later steps."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


class ObjectiveProtocol(Protocol):
    """What a gradient is taken of: an attack's objective (:class:`robgib.attacks.Objective`)."""

    @property
    def criterion(self) -> Callable[[Tensor], Tensor]:
        """From logits (N, classes) to whether each sample (N,) is where the attack wants it."""

    def value(self, logits: Tensor) -> Tensor:
        """Per-sample value (N,) that is increased."""

    def select(self, mask: slice) -> ObjectiveProtocol:
        """The same for some of the samples."""


class BatchedModel(nn.Module):
    """Gives a model images in batches, so that an attack may hold any number of samples at once.

    Where the device runs out of memory the batch size is halved, for good, and the batch repeated. Entries of gradients
    that are not finite count as 0; ``broken`` tells on how many images there were any.

    Args:
        model: classifier, frozen.
        batch_size: images at once.
        precision: ``bfloat16`` takes gradients under autocast. Logits that come with them are float32's wherever
            bfloat16's are no safe ground for a decision, and those of a plain call always.
        watch: called after each batch.
        random: whether the model answers at random. No image then counts as one that fooled it while an attack goes on:
            a lucky draw is none.
        draws: calls over which logits and gradients are averaged (expectation over transformation, Athalye et al.
            2018).
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        precision: str = "float32",
        watch: Callable[[], None] | None = None,
        random: bool = False,
        draws: int = 1,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self.model, self.batch_size, self.precision, self.watch = model, batch_size, precision, watch
        self.random, self.draws = random, draws
        self._broken: list[Tensor] = []
        weights = [p for p in model.parameters() if p.ndim == 4]
        self._last = bool(weights) and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    @property
    def broken(self) -> int:
        """How many images had gradients with entries that are not finite, each time counted singly."""
        return int(torch.stack(self._broken).sum()) if self._broken else 0

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to logits (N, classes)."""
        if not len(x):
            return self._call(x)
        return self.map(len(x), lambda rows: (self._call(x[rows]),))[0]

    def gradient(self, x: Tensor, goal: ObjectiveProtocol) -> tuple[Tensor, Tensor]:
        """Gradient (N, …) of the goal's objective at the images ``x``, and the logits (N, classes) there."""
        gradient, logits = self.map(len(x), lambda rows: self._gradient(x[rows], goal.select(rows)))
        return gradient, logits

    def map(self, count: int, call: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Call with slices of a batch each that cover ``count`` rows; join each of the results along the rows.

        The results, floating-point all, are averaged over the draws.
        """
        if self.draws > 1:
            found = self._map(count, call)
            for _ in range(self.draws - 1):
                found = tuple(a + b for a, b in zip(found, self._map(count, call), strict=True))
            return tuple(a / self.draws for a in found)
        return self._map(count, call)

    def _map(self, count: int, call: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while start < count:
            stop = min(start + self.batch_size, count)
            try:
                with network_faults():
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
        with faults_of(f"the model, given images of shape {tuple(x.shape)},"):
            logits: Tensor = self.model(x)
        return logits

    def _gradient(self, x: Tensor, goal: ObjectiveProtocol) -> tuple[Tensor, Tensor]:
        low = self.precision == "bfloat16"
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            with torch.autocast(x.device.type, torch.bfloat16) if low else nullcontext():
                logits = self._call(leaf)
            logits = logits.to(x.dtype)
            gradient = gradient_of(goal.value(logits).sum(), leaf)
        logits = logits.detach()
        self.note_broken(gradient)
        if low:
            first, second = logits.topk(2, 1).values.unbind(1)
            doubtful = goal.criterion(logits) | (first - second < _DOUBT * logits.abs().amax(1))
            if bool(doubtful.any()):
                with torch.no_grad():
                    logits[doubtful] = self._call(x[doubtful])
        return finite(gradient).contiguous(), logits

    def note_broken(self, gradient: Tensor) -> None:
        """Count the images of ``gradient`` (N, …) where it is not finite."""
        self._broken.append((~torch.isfinite(gradient.flatten(1))).any(1).sum())
        if len(self._broken) > 1000:
            self._broken = [torch.stack(self._broken).sum()]


def fuse_for_inference(model: nn.Module, sample: Tensor) -> nn.Module:
    """Return a faster copy of a frozen model: batch norms folded, ReLU after max pooling, memory channels-last.

    The model itself comes back where it has no convolution, cannot be copied, or where the copy is not the same
    function with the same gradients, to rounding: on the images ``sample`` (N, …) and on perturbed ones, for each of
    the losses that attacks climb. A form that is traced loses custom gradients, hooks and what else it does not see.
    """
    if isinstance(model, Classifier) or sample.ndim != 4 or not len(sample):
        return model
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return model
    try:
        wanted = _probed(model, sample)
    except RobGIBError:  # no gradient, or none that its own code can give
        return model
    for copied in (_traced, copy.deepcopy):
        try:
            with network_faults():
                fused = copied(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                for p in fused.parameters():
                    p.requires_grad_(False)
                if _alike(_probed(fused, sample), wanted):
                    return fused
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a stranger's module says to tracing or copying, it can be attacked as it is
            continue
    return model


def _probed(model: nn.Module, sample: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Logits, and the gradients of what losses are made of, at images and around them, near and far."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand((2, *sample.shape), generator=generator, dtype=torch.float32).to(sample)
    found = []
    for x in (sample, (sample + 0.2 * (draws[0] - 0.5)).clamp(0, 1), draws[1]):
        leaf = x.contiguous(memory_format=torch.channels_last).detach().requires_grad_(True)
        with torch.enable_grad():
            logits = model(leaf)
            top = logits.detach().argsort(1, descending=True)
            first, second = (logits.gather(1, top[:, i : i + 1]).sum() for i in (0, min(1, logits.shape[1] - 1)))
            # Cross-entropy's gradient, the margin's, and those of single logits, of which DLR's is made too.
            values = (
                -torch.nn.functional.log_softmax(logits, 1).mean(1).sum(),
                second - first,
                first,
                logits[:, 0].sum(),
            )
            gradients = [gradient_of(v, leaf, keep=i < len(values) - 1) for i, v in enumerate(values)]
        found.append((logits.detach(), gradients))
    return found


def _alike(told: list[tuple[Tensor, list[Tensor]]], wanted: list[tuple[Tensor, list[Tensor]]]) -> bool:
    for (logits, gradients), (right, slopes) in zip(told, wanted, strict=True):
        if logits.shape != right.shape or not torch.equal(finite_answers(logits), finite_answers(right)):
            return False
        far = (logits - right).abs() > 1e-4 * right.abs().amax(1, keepdim=True)
        if bool(far.any()):
            return False
        for one, two in zip(gradients, slopes, strict=True):
            if not torch.equal(torch.isfinite(one), torch.isfinite(two)):
                return False
            gap = torch.linalg.vector_norm(finite(one - two).flatten(1), dim=1)
            off = gap / torch.linalg.vector_norm(finite(two).flatten(1), dim=1).clamp_min(1e-12)
            off = torch.where(gap == 0, 0.0, off)
            if bool(off.median() > _SAME) or bool(off.max() > _KINK):
                return False
    return True


def _traced(model: nn.Module) -> nn.Module:
    """A traced copy with each batch norm folded into the convolution before it, and ReLU after max pooling.

    The two commute, in their gradients too, and after the pooling there is less to do.
    """
    from torch.fx.experimental.optimization import fuse

    with torch.random.fork_rng(devices=[]):
        fused = fuse(model)
    assert isinstance(fused, torch.fx.GraphModule)
    kinds = dict(fused.named_modules())

    def is_a(node: object, kind: type[nn.Module]) -> TypeGuard[torch.fx.Node]:
        return isinstance(node, torch.fx.Node) and node.op == "call_module" and type(kinds[str(node.target)]) is kind

    for node in fused.graph.nodes:
        before = node.args[0] if is_a(node, nn.MaxPool2d) else None
        if is_a(before, nn.ReLU) and len(before.users) == 1:
            before.target, node.target = node.target, before.target
    fused.recompile()
    return fused


def rows_of(model: nn.Module) -> int | None:
    """How many images a model takes at once, where it takes one number only."""
    return model.rows if isinstance(model, Classifier) else None


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


_DRAWS = 20  # over which a model that answers at random is attacked, unless an attack says so, and judged
NO_ANSWER = -1
"""The prediction where a model has no answer."""


@dataclass(frozen=True)
class Answers:
    """What a model says of N images, beside their labels.

    Attributes:
        prediction: classes (N,), int64; the most frequent of a model that answers at random, and -1 where it has no
            answer (NaN).
        right: share (N,) of the draws in which the label came out: 0 or 1 for a model that does not answer at random.
    """

    prediction: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class PreparedModel:
    """A model made ready for attacks.

    Attributes:
        model: the model as attacks call it (:func:`~robgib.models.adapt.adapt`).
        fused: the faster form that attacks climb; the model itself where there is none.
        batch_size: images at once.
        precision: of gradients.
        random: whether it answers at random.
        probabilities: whether its output are probabilities.
        company: whether its answer to an image depends on the others of the batch.
        notes: what else there is to know of how it is called, a sentence each.
    """

    model: nn.Module
    fused: nn.Module
    batch_size: int
    precision: str = "float32"
    random: bool = False
    probabilities: bool = False
    company: bool = False
    notes: tuple[str, ...] = ()

    @property
    def draws(self) -> int:
        """Calls by which an answer is judged."""
        return _DRAWS if self.random else 1


def prepare(
    model: object,
    sample: Tensor,
    *,
    classes: int | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> PreparedModel:
    """Make a model on ``device`` ready for attacks on images like ``sample`` (N, …), of which a few will do.

    Args:
        model: classifier: a module, an exported program, or a function of images.
        sample: clean images in [0, 1].
        classes: how many classes the data have, where that is known.
        batch_size: images at once; None finds it. It is halved where memory does not suffice.
        precision: ``float32``, or ``bfloat16`` for gradients; who is fooled is decided in float32 either way.
        device: where the model is.

    Raises:
        RobGIBError: the model cannot be called on such images, or gives no logits.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    net = as_module(model)
    with eval_mode(net):
        for count in (16, 4, 1):
            few = sample[:count].to(device)
            try:
                adapted = adapt(net, few, classes)
                with eval_mode(adapted.model), faults_of("the model"):
                    fused = adapted.model if adapted.random else fuse_for_inference(adapted.model, few)
                    size = batch_size or rows_of(adapted.model) or fitting_batch(adapted.model, few)
                break
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
    told = (adapted.random, adapted.probabilities, adapted.company, adapted.notes)
    return PreparedModel(adapted.model, fused, size, precision, *told)


def check_logits(logits: Tensor, x: Tensor, classes: int | None = None) -> None:
    """Raise when a model's output is not logits (N, classes), or no answer to any image."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RobGIBError(
            f"the model's output is {shape} for {len(x)} images; it must be logits of shape (N, classes)."
        )
    if classes is not None and logits.shape[1] < classes:
        raise RobGIBError(
            f"the model gives {logits.shape[1]} logits and the data have {classes} classes; "
            "use a model and data that belong together."
        )


def answers(
    model: nn.Module | PreparedModel,
    x: Tensor,
    y: Tensor,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Answers:
    """Return what a model says of images ``x`` (N, …) with labels ``y`` (N,), after checking that it is logits.

    A model that was found to answer at random (:func:`prepare`) is asked 20 times.

    Raises:
        RobGIBError: the output is not logits.
    """
    net = model.model if isinstance(model, PreparedModel) else model
    draws = model.draws if isinstance(model, PreparedModel) else 1
    batch_size = model.batch_size if isinstance(model, PreparedModel) else batch_size
    parts = []
    with eval_mode(net), torch.no_grad(), seeded(seed, device):
        housed = BatchedModel(net, batch_size)
        for batch, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            try:
                parts.append(ask(housed, batch.to(device), labels.to(device), draws, classes))
            except RobGIBError as error:
                if parts or not isinstance(error.__cause__, RuntimeError):
                    raise
                raise RobGIBError(
                    f"the model does not take images of shape {tuple(batch.shape[1:])}: {first_line(error.__cause__)}."
                ) from error
    prediction, right = (torch.cat(kind).cpu().numpy() for kind in zip(*parts, strict=True))
    return Answers(prediction, right)


def check_finite_answers(clean: Answers) -> None:
    """Raise when a model has an answer to no clean image."""
    count = len(clean.prediction)
    if count and (clean.prediction == NO_ANSWER).all():
        raise RobGIBError(
            f"the model gives NaN or infinite logits on {count} of {count} clean images; no result would mean anything."
        )


def ask(model: nn.Module, x: Tensor, y: Tensor, draws: int, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The model's most frequent answers (N,) to images in ``draws`` calls, and the share of right ones (N,)."""
    votes = []
    for _ in range(draws):
        logits = model(x)
        check_logits(logits, x, classes)
        votes.append(torch.where(finite_answers(logits), logits.argmax(1), NO_ANSWER))
    said = torch.stack(votes)
    right = (said == y).double().mean(0)
    return said[0] if draws == 1 else said.mode(0).values, right


def predict(
    model: nn.Module | PreparedModel,
    x: Tensor,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return predicted classes (N,) of clean images ``x``, -1 where the model has no answer; see :func:`answers`.

    Raises:
        RobGIBError: the output is not logits, or no answer to any image.
    """
    nothing = torch.full((len(x),), NO_ANSWER - 1)
    told = answers(model, x, nothing, classes=classes, batch_size=batch_size, device=device)
    check_finite_answers(told)
    return told.prediction
