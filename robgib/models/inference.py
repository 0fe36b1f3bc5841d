"""Classifiers prepared for attacks: eval mode, batches that fit the memory, a fused copy, counted passes."""

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
    "at_once",
    "check_finite_answers",
    "count_queries",
    "eval_mode",
    "finite",
    "fitting_batch",
    "fuse_for_inference",
    "gradient_of",
    "one_thread_measures",
    "outputs",
    "predict",
    "prepare",
    "rows_of",
]


_ONE_THREAD = threading.RLock()
"""Lock of the measuring thread."""
if hasattr(os, "register_at_fork"):  # a forked process lacks the thread that would release the lock
    os.register_at_fork(after_in_child=lambda: globals().update(_ONE_THREAD=threading.RLock()))


@contextmanager
def one_thread_measures() -> Iterator[None]:
    """Make other measuring threads of this process wait.

    A model's modes, its counted passes, warnings and the global random numbers belong to the process, and concurrent
    threads would mix them. With this lock a thread gives the same results as alone. Processes run in parallel.
    """
    with _ONE_THREAD:
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode and freeze its parameters; restore both afterwards.

    Only one thread of the process can be in this context (:func:`one_thread_measures`).
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
_CACHE = 2**25  # bytes of activations for which batches are about fastest on a CPU
_UNCERTAIN = 0.05  # share of the largest logit, above the error of bfloat16
_SAME = 1e-3  # relative error of the fused copy's gradients, for most samples
_KINK = 0.2  # the same for all samples: if rounding changes the side of a ReLU, a gradient jumps


@dataclass
class QueryCount:
    """Numbers of forward and backward passes through a model, counted per image."""

    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> int:
        """Cost in forward passes; a backward pass costs about two."""
        return self.forward + 2 * self.backward


@contextmanager
def count_queries(*models: nn.Module) -> Iterator[QueryCount]:
    """Count the passes through all of ``models`` in this context, whoever calls them."""
    passes = QueryCount()

    def count_forward(module: nn.Module, inputs: tuple[Any, ...], logits: Any) -> None:
        count = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else 0
        passes.forward += count

        def count_backward(gradient: Tensor) -> None:
            passes.backward += count

        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(count_backward)

    handles = [m.register_forward_hook(count_forward) for m in {id(m): m for m in models}.values()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def gradient_of(value: Tensor, leaf: Tensor, keep: bool = False) -> Tensor:
    """Return the gradient of the scalar ``value`` with respect to ``leaf``; ``keep`` retains the graph.

    Raises:
        NoGradientError: ``value`` does not depend on ``leaf`` through differentiable operations.
    """
    try:
        with network_faults():
            return torch.autograd.grad(value, leaf, retain_graph=keep)[0]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a foreign backward pass may raise anything
        if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
            raise NoGradientError(
                "the model gives no gradient: its logits do not depend on the image through differentiable operations; "
                "use a black-box attack such as square-linf."
            ) from error
        with faults_of("the model's backward pass"):
            raise


def finite(gradient: Tensor) -> Tensor:
    """Replace NaN and infinite entries of a gradient by 0; they would spoil all later steps."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


class ObjectiveProtocol(Protocol):
    """The function that an attack maximises (:class:`robgib.attacks.Objective`)."""

    @property
    def criterion(self) -> Callable[[Tensor], Tensor]:
        """Maps logits (N, classes) to whether the attack has succeeded on each sample (N,)."""

    def value(self, logits: Tensor) -> Tensor:
        """Value per sample (N,) to increase."""

    def select(self, mask: slice) -> ObjectiveProtocol:
        """The same objective for some of the samples."""


class BatchedModel(nn.Module):
    """Calls a model in batches, so that an attack may pass any number of samples.

    If the device runs out of memory, the batch size is halved permanently and the batch repeated. Entries of gradients
    that are not finite are replaced by 0; ``broken`` counts the images with such entries.

    Args:
        model: classifier, frozen.
        batch_size: images per batch.
        precision: ``bfloat16`` computes gradients under autocast. Logits are recomputed in float32 wherever bfloat16 is
            too coarse for a decision; a plain call always computes in float32.
        watch: called after each batch.
        random: whether the model is stochastic. An attack on a stochastic model counts no image as a success while it
            runs, since the success may be due to one lucky draw.
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
        """Number of image gradients with entries that are not finite."""
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
        """Call with one slice per batch until ``count`` rows are covered; concatenate the results along the rows.

        Results must be floating-point; they are averaged over the draws.
        """
        if self.draws > 1:
            totals = self._map(count, call)
            for _ in range(self.draws - 1):
                totals = tuple(a + b for a, b in zip(totals, self._map(count, call), strict=True))
            return tuple(total / self.draws for total in totals)
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
        check_logits(logits, x)
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
            doubtful = goal.criterion(logits) | (first - second < _UNCERTAIN * logits.abs().amax(1))
            if bool(doubtful.any()):
                with torch.no_grad():
                    logits[doubtful] = self._call(x[doubtful])
        return finite(gradient).contiguous(), logits

    def note_broken(self, gradient: Tensor) -> None:
        """Count the images of ``gradient`` (N, …) where it is not finite."""
        self._broken.append((~torch.isfinite(gradient.flatten(1))).any(1).sum())
        if len(self._broken) > 1000:
            self._broken = [torch.stack(self._broken).sum()]


def at_once(model: nn.Module, samples: int) -> int:
    """Return how many independent searches for each of so many samples fit into one batch of the model, at least 1.

    >>> at_once(BatchedModel(nn.Identity(), 64), 7), at_once(nn.Identity(), 7)
    (9, 1)
    """
    return max(1, model.batch_size // max(1, samples)) if isinstance(model, BatchedModel) else 1


def fuse_for_inference(model: nn.Module, sample: Tensor) -> nn.Module:
    """Return an optimised copy of a frozen model: fused batch norms, ReLU after max pooling, channels-last memory.

    The model itself is returned if it has no convolution or cannot be copied, or if logits or gradients of the copy
    differ from the model's by more than rounding. They are compared on the images ``sample`` (N, …) and on perturbed
    images, for each loss that attacks use. Tracing loses custom gradients, hooks and other code it does not record.
    """
    if isinstance(model, Classifier) or sample.ndim != 4 or not len(sample):
        return model
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return model
    try:
        wanted = _probed(model, sample)
    except RobGIBError:  # no gradient
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
        except Exception:  # tracing or copying may raise anything; the model itself can still be attacked
            continue
    return model


def _probed(model: nn.Module, sample: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Logits, and gradients of the parts of all losses, at the images and at near and far perturbed images."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand((2, *sample.shape), generator=generator, dtype=torch.float32).to(sample)
    answers = []
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
        answers.append((logits.detach(), gradients))
    return answers


def _alike(ours: list[tuple[Tensor, list[Tensor]]], wanted: list[tuple[Tensor, list[Tensor]]]) -> bool:
    for (logits, gradients), (right, slopes) in zip(ours, wanted, strict=True):
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
    """A traced copy with each batch norm fused into the convolution before it, and ReLU after max pooling.

    ReLU and max pooling commute, also in their gradients, and ReLU costs less after the pooling.
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
    """The batch size of a model that takes one size only, otherwise None."""
    return model.rows if isinstance(model, Classifier) else None


def fitting_batch(model: nn.Module, sample: Tensor) -> int:
    """Return a batch size for a frozen model, a power of two.

    The activations of a batch fit about into the cache of a CPU, or into an eighth of a GPU's memory. The rule adds up
    the sizes of the leaf modules' outputs for the images ``sample`` (N, …) on the model's device. It measures no time,
    so the result is reproducible.
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


_DRAWS = 20  # draws over which a stochastic model is judged, and attacked unless an attack states its own number
NO_ANSWER = -1
"""The prediction for images without a finite answer."""


@dataclass(frozen=True)
class Answers:
    """Predictions of a model for N labelled images.

    Attributes:
        prediction: classes (N,), int64; the most frequent class of a stochastic model; -1 without a finite answer.
        right: share (N,) of the draws that predict the label: 0 or 1 for a deterministic model.
    """

    prediction: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class PreparedModel:
    """A model prepared for attacks.

    Attributes:
        model: the model as attacks call it (:func:`~robgib.models.adapt.adapt`).
        fused: optimised copy from which attacks take gradients; the model itself if there is none.
        batch_size: images per batch.
        precision: precision of gradients.
        random: whether the model is stochastic.
        probabilities: whether its outputs are probabilities.
        company: whether its output for an image depends on the other images of the batch.
        notes: how it is called, if that is unusual, one sentence each.
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
        """Calls over which a prediction is judged."""
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
    """Prepare a model on ``device`` for attacks on images like ``sample`` (N, …).

    Args:
        model: classifier: a module, an exported program, or a function of images.
        sample: a few clean images in [0, 1].
        classes: number of classes of the data, if known.
        batch_size: images per batch; None chooses it. It is halved when memory runs out.
        precision: ``float32``, or ``bfloat16`` for gradients; float32 decides which samples are fooled.
        device: device of the model.

    Raises:
        RobGIBError: there are no images, or the model cannot be called on such images, or does not return logits.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if not len(sample):
        raise RobGIBError("there are no images; give at least one.")
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
    properties = (adapted.random, adapted.probabilities, adapted.company, adapted.notes)
    return PreparedModel(adapted.model, fused, size, precision, *properties)


def check_logits(logits: Tensor, x: Tensor, classes: int | None = None) -> None:
    """Raise if a model's output is not logits (N, classes)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RobGIBError(
            f"the model's output is {shape} for {len(x)} images; it must be logits of shape (N, classes)."
        )
    if classes is not None and logits.shape[1] < classes:
        raise RobGIBError(
            f"the model returns {logits.shape[1]} logits, but the data have {classes} classes; "
            "use a model and data with the same classes."
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
    """Return a model's predictions for images ``x`` (N, …) with labels ``y`` (N,), after checking the output.

    A stochastic model (:func:`prepare`) is called 20 times.

    Raises:
        RobGIBError: the output is not logits.
    """
    net = model.model if isinstance(model, PreparedModel) else model
    draws = model.draws if isinstance(model, PreparedModel) else 1
    batch_size = model.batch_size if isinstance(model, PreparedModel) else batch_size
    parts = []
    with eval_mode(net), torch.no_grad(), seeded(seed, device):
        batched = BatchedModel(net, batch_size)
        for batch, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            try:
                parts.append(ask(batched, batch.to(device), labels.to(device), draws, classes))
            except RobGIBError as error:
                if parts or not isinstance(error.__cause__, RuntimeError):
                    raise
                raise RobGIBError(
                    f"the model does not take images of shape {tuple(batch.shape[1:])}: {first_line(error.__cause__)}."
                ) from error
    prediction, right = (torch.cat(kind).cpu().numpy() for kind in zip(*parts, strict=True))
    return Answers(prediction, right)


def outputs(
    model: PreparedModel,
    x: Tensor,
    *,
    classes: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> int:
    """Return the number of classes of a model, which is called in eval mode on a few images ``x`` (N, …).

    Raises:
        RobGIBError: the model cannot be called on them, its output is not logits, or it has fewer than ``classes``.
    """
    with eval_mode(model.model), torch.no_grad(), seeded(seed, device), faults_of("the model"):
        logits: Tensor = model.model(x.to(device))
    check_logits(logits, x, classes)
    return logits.shape[1]


def check_finite_answers(clean: Answers) -> None:
    """Raise if a model has no finite answer to any clean image."""
    count = len(clean.prediction)
    if count and (clean.prediction == NO_ANSWER).all():
        raise RobGIBError(
            f"the model gives NaN or infinite logits on {count} of {count} clean images; results would be meaningless."
        )


def ask(model: nn.Module, x: Tensor, y: Tensor, draws: int, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The most frequent predictions (N,) in ``draws`` calls, and the share of correct ones (N,)."""
    votes = []
    for _ in range(draws):
        logits = model(x)
        check_logits(logits, x, classes)
        votes.append(torch.where(finite_answers(logits), logits.argmax(1), NO_ANSWER))
    predictions = torch.stack(votes)
    right = (predictions == y).double().mean(0)
    return predictions[0] if draws == 1 else predictions.mode(0).values, right


def predict(
    model: nn.Module | PreparedModel,
    x: Tensor,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return predicted classes (N,) of clean images ``x``, -1 without a finite answer; see :func:`answers`.

    Raises:
        RobGIBError: the output is not logits, or no answer is finite.
    """
    nothing = torch.full((len(x),), NO_ANSWER - 1)
    result = answers(model, x, nothing, classes=classes, batch_size=batch_size, device=device)
    check_finite_answers(result)
    return result.prediction
