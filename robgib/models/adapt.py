"""Adapt any classifier to the interface of attacks and estimators: images in, one row of logits per image out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from robgib.errors import RobGIBError, first_line
from robgib.models.state import Settings, State
from robgib.runtime import faults_of, network_faults, seed_torch

__all__ = [
    "Adapted",
    "CallOptions",
    "Classifier",
    "adapt",
    "as_module",
    "differ",
    "finite_answers",
    "half_perturbed",
    "logits_in",
    "network_of",
    "put_random_state",
    "random_state",
    "seeded",
]

Reading = Literal["logits", "softmax", "sigmoid"]
Fixed = Literal["", "buffers", "weights"]
Path = tuple[str | int, ...]
"""Keys, indices and attributes of a tensor in a model's output."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
_CALLS = (
    64  # to detect randomness of a model that uses the global generators: a rate of 1 in 20 is missed 1 in 27 times
)
_FEW_CALLS = 8  # the same for other models, which may have a generator of their own
_DEEP = 3  # nesting of containers in a model's output
_BETWEEN = 0.4 / 255  # a change to a value between two levels of 8 bits
_EQUAL = 1e-3  # share of the logits' spread, above the differences of reductions between calls on a GPU


def finite_answers(logits: Tensor) -> Tensor:
    """Return whether each row (N,) of logits (N, classes) is a finite answer: no NaN, no +inf, and not all -inf.

    -inf may mask classes.
    """
    bad = torch.isnan(logits) | (logits == float("inf"))
    return ~bad.any(1) & (logits > float("-inf")).any(1)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global random generators (torch, numpy, Python); restore their states afterwards."""
    where = torch.device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        seed_torch(seed % 2**63)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the states of the global generators of :func:`seeded`, as arrays and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state().numpy(),
        "numpy_keys": np.asarray(keys),
        "numpy": [name, *rest],
        "python_words": np.array(words, dtype=np.uint64),
        "python": [version, gauss],
    }
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return state


def put_random_state(state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Restore the states of the global generators that :func:`random_state` returned."""
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    name, *rest = state["numpy"]
    np.random.set_state((name, state["numpy_keys"], *rest))  # noqa: NPY002
    version, gauss = state["python"]
    random.setstate((version, tuple(int(w) for w in state["python_words"]), gauss))
    if "cuda" in state and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]), device)


class _Ends(TorchFunctionMode):
    """Records the inputs of each softmax and sigmoid, so that the last one can be inverted exactly.

    The logarithm of a softmax that is 0 or 1 in float32 does not recover its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("softmax", "sigmoid") and args and isinstance(out, Tensor):
            self.calls.append((out, args[0], name))
        return out

    def before(self, out: Tensor) -> tuple[Tensor, str] | None:
        """The input of the softmax or sigmoid that returned ``out`` (up to rounding), and its name."""
        for made, given, name in reversed(self.calls):
            alike = made.numel() == out.numel()
            if made is out or (alike and torch.allclose(made.to(out).reshape(out.shape), out, rtol=0, atol=1e-5)):
                return given.reshape(out.shape), name
        return None


@dataclass(frozen=True)
class CallOptions:
    """How a foreign classifier is called, and how its output is read.

    Attributes:
        dtype: type of its computation, if it does not take float32.
        rows: batch size, if it takes one size only; smaller batches are padded.
        alone: whether each batch holds copies of one image, since outputs depend on the other images.
        copies: whether it gets a copy of the images, since it overwrites them.
        reading: its output: ``logits``, or a ``softmax`` or ``sigmoid`` of them, which is inverted.
        single: whether it returns one logit z per image, of two classes, read as [0, z].
        masked: whether it masks classes with -inf, read as a number below all others.
        fixed: what it changes in a call and gets a copy of for each call: its ``buffers``, or also its ``weights``.
            Outputs then do not depend on earlier calls. Its modes are restored after each call.
        settings: whether it changes settings of the process in a call, which are then restored.
        item: keys, indices and attributes of the logits in an output of several tensors; None looks for them at every
            call.
    """

    dtype: torch.dtype | None = None
    rows: int | None = None
    alone: bool = False
    copies: bool = False
    reading: Reading = "logits"
    single: bool = False
    masked: bool = False
    fixed: Fixed = ""
    settings: bool = False
    item: Path | None = None

    @property
    def usual(self) -> bool:
        """Whether the classifier needs none of this: it takes images and returns logits (N, classes)."""
        return replace(self, item=self.item or None) == CallOptions()


class Classifier(nn.Module):
    """Calls a foreign classifier, ``net``, as it requires, and reads its output as logits (N, classes).

    Args:
        net: any callable of images (N, …).
        options: how it is called and read.
    """

    def __init__(self, net: Callable[..., Any], options: CallOptions | None = None) -> None:
        super().__init__()
        self.net, self.options = net, options or CallOptions()
        self.training = bool(getattr(net, "training", False))

    @property
    def rows(self) -> int | None:
        """The batch size, if the network takes one size only."""
        return self.options.rows

    @property
    def alone(self) -> bool:
        """Whether each batch holds copies of one image."""
        return self.options.alone

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode, also of a network that has only one (an exported program)."""
        self.training = mode
        if isinstance(self.net, nn.Module):
            try:
                self.net.train(mode)
            except NotImplementedError:
                self.net.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to logits (N, classes) of the images' dtype."""
        rows = self.options.rows
        if rows is None:
            return self._answer(x)
        if not len(x):
            return self._answer(x.new_zeros((rows, *x.shape[1:])))[:0]
        parts = []
        for part in x.split(1 if self.options.alone else rows):
            missing = rows - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self._answer(filled)[: len(part)])
        return torch.cat(parts)

    def raw(self, x: Tensor) -> Any:
        """The output of the network itself for images (N, …)."""
        if not self.options.settings:
            return self._raw(x)
        before = Settings()
        try:
            return self._raw(x)
        finally:
            before.restore()

    def _raw(self, x: Tensor) -> Any:
        options = self.options
        given = x if options.dtype is None else x.to(options.dtype)
        given = given.clone() if options.copies else given
        if not options.fixed or not isinstance(self.net, nn.Module):
            return self.net(given)
        scripted: Any = torch.jit.ScriptModule
        plain = not any(isinstance(m, scripted) for m in self.net.modules())
        before = State([self.net], weights=not plain, buffers=not plain)
        copies: dict[str, Tensor] = {name: b.clone() for name, b in self.net.named_buffers()} if plain else {}
        if options.fixed == "weights" and plain:
            copies |= {name: p.detach().clone() for name, p in self.net.named_parameters()}
        try:
            return functional_call(self.net, copies, (given,)) if plain else self.net(given)
        finally:
            before.restore()

    def output(self, x: Tensor) -> Tensor:
        """The tensor of the network's output for images (N, …) from which logits are read."""
        raw = self.raw(x)
        item = self.options.item
        return logits_in(raw, len(x))[0] if item is None else _at(raw, item)

    def _answer(self, x: Tensor) -> Tensor:
        options = self.options
        if options.reading == "logits":
            logits = self.output(x)
        else:
            with _Ends() as ends:
                out = self.output(x)
            before = ends.before(out)
            if before is not None and before[1] == options.reading:
                logits = before[0]
            else:
                tiny = torch.finfo(out.dtype).tiny
                logits = out.clamp_min(tiny).log()
                if options.reading == "sigmoid":
                    logits = logits - (1 - out).clamp_min(tiny).log()
        logits = logits.to(x.dtype)
        if options.single:
            logits = logits.reshape(len(logits), 1)
            return torch.cat([torch.zeros_like(logits), logits], 1)
        if logits.ndim > 2 and logits.shape[2:].numel() == 1:
            logits = logits.flatten(1)
        return _unmasked(logits) if options.masked else logits


def _unmasked(logits: Tensor) -> Tensor:
    """Logits (N, classes) with -inf replaced by a finite number below all others of the row."""
    with torch.no_grad():
        masked = logits == float("-inf")
        low = logits.masked_fill(masked, float("inf")).amin(1, keepdim=True)
        high = logits.amax(1, keepdim=True)
        floor = torch.where(masked.all(1, keepdim=True), torch.nan, low - (high - low) - 1)
    return torch.where(masked, floor, logits)


def network_of(model: nn.Module) -> nn.Module:
    """Return the network whose layers have names: the ``net`` of a :class:`Classifier`, or the model itself."""
    net = model.net if isinstance(model, Classifier) else model
    return net if isinstance(net, nn.Module) else model


def as_module(model: object) -> nn.Module:
    """Return a model as a module; exported programs and plain callables are wrapped.

    Raises:
        RobGIBError: it is not callable, or has lazy modules without a shape.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not callable(model):
        raise RobGIBError(f"the model must be a torch.nn.Module or a function of images, not {type(model).__name__}.")
    if not isinstance(model, nn.Module):
        return Classifier(model)
    tensors: Mapping[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    waiting = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if waiting:
        raise RobGIBError(
            f"the model is not initialised yet ({waiting[0]} has no shape); call it once on a batch of images, then "
            "load its weights."
        )
    scripted: Any = torch.jit.ScriptModule
    if isinstance(model, scripted) or not _has_modes(model):
        return Classifier(model)  # such a module has no hooks, or no modes
    return model


def _has_modes(model: nn.Module) -> bool:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
    except NotImplementedError:
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    return True


@dataclass(frozen=True)
class Adapted:
    """A model with the standard interface.

    Attributes:
        model: the model itself if it has the standard interface, otherwise a :class:`Classifier` around it.
        random: whether it is stochastic.
        probabilities: whether its outputs are probabilities.
        company: whether its output for an image depends on the other images of the batch.
        notes: how it is called and read, if that is unusual, one sentence each.
    """

    model: nn.Module
    random: bool = False
    probabilities: bool = False
    company: bool = False
    notes: tuple[str, ...] = ()


def adapt(model: object, sample: Tensor, classes: int | None = None) -> Adapted:
    """Find out how to call a classifier, and what its output is.

    Args:
        model: a module, an exported program, or any function of images; frozen, and on the device of ``sample``.
        sample: a few clean images (N, …) in [0, 1].
        classes: number of classes of the data, if known.

    Raises:
        RobGIBError: no way of calling the model returns one row of numbers per image; the message names the reason.
    """
    net = as_module(model)
    with torch.no_grad(), seeded(0, sample.device), faults_of("the model"):
        return _Adaptation(net, sample, classes).adapted()


class _Adaptation:
    """Finds the :class:`CallOptions` of one network, step by step, each with the options found before."""

    def __init__(self, net: nn.Module, sample: Tensor, classes: int | None) -> None:
        self.net, self.sample, self.classes = net, sample, classes
        self.raw = net.net if isinstance(net, Classifier) else net
        self.notes: list[str] = []
        self.options = CallOptions()

    def adapted(self) -> Adapted:
        before = State([self.raw]) if isinstance(self.raw, nn.Module) else None
        changed: set[str] = set()
        form, output, path = _form(self.raw, self.sample, self.classes, changed)
        self.options = replace(form, item=path, settings=bool(changed))
        if changed:
            self.notes.append(
                f"the model changes settings of the process in a call ({', '.join(sorted(changed))}): they are "
                "restored after each call"
            )
        self._note_form(output, path)
        if before is not None:
            self._keep_fixed(before)
        self.options = replace(self.options, copies=_overwrites(self._classifier(), self.sample))
        if self.options.copies:
            self.notes.append("the model overwrites its input images: it gets copies")
        selected = _at(output, path).detach()
        logits = selected.float()
        self._read_as_logits(logits)
        at_random = _random(self._classifier().train(False), self.sample)
        if not at_random and _company(self._classifier().train(False), self.sample):
            self.options = replace(self.options, rows=self.options.rows or 1, alone=True)
            self.notes.append(
                "the model's output for an image depends on the other images of the batch: it gets one image at a time"
            )
        unchanged = (
            self.options.usual
            and logits.ndim == 2
            and selected.dtype == self.sample.dtype
            and not isinstance(self.net, Classifier)
        )
        return Adapted(
            self.net if unchanged else self._classifier().train(False),
            random=at_random,
            probabilities=self.options.reading != "logits",
            company=self.options.alone,
            notes=tuple(self.notes),
        )

    def _classifier(self) -> Classifier:
        return Classifier(self.raw, self.options)

    def _note_form(self, output: Any, path: Path) -> None:
        if self.options.dtype:
            self.notes.append(f"the model computes in {str(self.options.dtype).removeprefix('torch.')}")
        if self.options.rows:
            self.notes.append(f"the model takes batches of {self.options.rows} only: smaller batches are padded")
        if path:
            self.notes.append(f"the model's output is a {type(output).__name__}; {_named(path)} is read as the logits")

    def _keep_fixed(self, before: State) -> None:
        """Restore what the model changed in its calls, and have it restored after each later call."""
        assert isinstance(self.raw, nn.Module)
        tensors = before.changed()
        changed = [*tensors, *(f"mode of {name or type(self.raw).__name__}" for name in before.modes())]
        if not changed:
            return
        of_weights = not set(tensors).isdisjoint(name for name, _ in self.raw.named_parameters())
        self.options = replace(self.options, fixed="weights" if of_weights else "buffers")
        before.restore()
        self.notes.append(
            f"the model changes itself in a call ({', '.join(changed[:3])}): its state is restored after each call"
        )

    def _read_as_logits(self, logits: Tensor) -> None:
        """Find out whether the output is one number per image, probabilities, or masked."""
        notes, single = self.notes, logits.ndim == 1 or logits.shape[1:].numel() == 1
        self.options = replace(self.options, single=single)
        if single:
            if self.classes not in (None, 2):
                raise RobGIBError(
                    f"the model returns one number per image, but the data have {self.classes} classes; use a model "
                    "with one logit per class."
                )
            notes.append("the model returns one logit z per image, read as the logits [0, z] of two classes")
        reading, masked = _read_as(self._classifier(), self.sample, logits), bool((logits == float("-inf")).any())
        self.options = replace(self.options, reading=reading, masked=masked)
        if reading == "softmax":
            notes.append("the model's outputs are probabilities: attacks use the logits before the softmax")
        elif reading == "sigmoid":
            notes.append(
                "the model's outputs are probabilities of single classes: attacks use the logits before the sigmoid"
            )
        if masked:
            notes.append("the model masks classes with -inf")


def logits_in(output: Any, count: int, classes: int | None = None) -> tuple[Tensor, Path]:
    """Return the logits in a model's output for ``count`` images, and their path in it (``()``: the whole output).

    Among several tensors with one row per image, the logits have one column per class of the data; a tensor called
    ``logits`` takes precedence. Probabilities computed from another tensor are ignored.

    Args:
        output: a tensor, or a tuple, list, mapping, dataclass or object that holds tensors, also nested.
        count: number of images.
        classes: number of classes of the data, if known.

    Raises:
        TypeError: no tensor has one row per image.
        RobGIBError: several tensors could be the logits, or none has a column for every class.

    >>> logits_in((torch.zeros(5, 64), {"out": torch.ones(5, 10)}), 5, classes=10)[1]
    (1, 'out')
    """
    if isinstance(output, Tensor):
        return output, ()
    kind = type(output).__name__
    tensors = list(_tensors(output))
    if not tensors:
        raise TypeError(f"it returns {kind} without logits")
    rows = [(path, t) for path, t in tensors if _has_rows(t, count)]
    if not rows:
        shapes = ", ".join(str(tuple(t.shape)) for _, t in tensors[:4])
        raise TypeError(f"it returns {kind} of {shapes} for {count} images, none of which is logits (N, classes)")
    candidates = _candidates(rows, classes)
    if len(candidates) == 1:
        return candidates[0][1], candidates[0][0]
    several = candidates or rows
    shapes = ", ".join(f"{_named(path)} {tuple(t.shape)}" for path, t in several[:4])
    why = (
        "more than one could be its logits"
        if candidates
        else f"none has a column for each of the data's {classes} classes"
    )
    raise RobGIBError(
        f"the model returns a {kind} of which {why} ({shapes} for {count} images); wrap it in a module whose forward "
        f"returns its logits alone, such as `return self.net(x){_code(several[-1][0])}`."
    )


def _candidates(rows: list[tuple[Path, Tensor]], classes: int | None) -> list[tuple[Path, Tensor]]:
    """Return the tensors that could be the logits, among those with one row per image."""
    fit = rows if classes is None else [(path, t) for path, t in rows if _columns(t) == classes]
    if not fit and classes == 2:
        fit = [(path, t) for path, t in rows if _columns(t) == 1]
    fit = fit or [(path, t) for path, t in rows if _columns(t) > (classes or 0)]
    named = [(path, t) for path, t in fit if path[-1] == "logits"]
    named = [(path, t) for path, t in named if len(path) == min(len(p) for p, _ in named)]
    return _distinct(named if len(named) == 1 else fit)


def _tensors(output: Any, deep: int = _DEEP) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in a model's output, with its path."""
    for key, part in _inside(output):
        if isinstance(part, Tensor):
            yield (key,), part
        elif deep > 1:
            yield from (((key, *path), tensor) for path, tensor in _tensors(part, deep - 1))


def _inside(output: Any) -> Sequence[tuple[str | int, Any]]:
    """The parts of a container or an object with their keys, indices or attributes."""
    if isinstance(output, Mapping):
        return [(key, part) for key, part in output.items() if isinstance(key, str | int)]
    if isinstance(output, tuple | list):
        return list(zip(getattr(output, "_fields", range(len(output))), output, strict=False))
    if isinstance(output, type | nn.Module | str):
        return []
    names = (
        [f.name for f in fields(output)] if is_dataclass(output) else [n for n in _attributes(output) if n[:1] != "_"]
    )
    return [(name, getattr(output, name, None)) for name in names]


def _attributes(output: Any) -> list[str]:
    own = list(getattr(output, "__dict__", ()))
    return own if "logits" in own or not hasattr(output, "logits") else [*own, "logits"]  # it may be a property


def _at(output: Any, path: Path) -> Any:
    """The part of a model's output at a path."""
    for key in path:
        output = output[key] if isinstance(key, int) or isinstance(output, Mapping) else getattr(output, key)
    return output


def _named(path: Path) -> str:
    """A path in words."""
    if len(path) == 1:
        return f"item {path[0]}" if isinstance(path[0], int) else repr(path[0])
    return f"item {''.join(f'[{key!r}]' for key in path)}"


def _code(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _has_rows(tensor: Tensor, count: int) -> bool:
    """Whether a tensor has one row of numbers per image."""
    if tensor.ndim < 1 or len(tensor) != count or not tensor.is_floating_point():
        return False
    return tensor.ndim <= 2 or tensor.shape[2:].numel() == 1


def _columns(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 1


def _distinct(candidates: list[tuple[Path, Tensor]]) -> list[tuple[Path, Tensor]]:
    """The tensors (N, classes) without duplicates and without (logarithmic) probabilities of another one."""

    def alike(one: Tensor, two: Tensor) -> bool:
        near = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
        return one.numel() == two.numel() and torch.allclose(one.float().flatten(), two.float().flatten(), atol=near)

    once: list[tuple[Path, Tensor]] = []
    for path, tensor in candidates:
        if not any(alike(tensor, other) for _, other in once):
            once.append((path, tensor))
    independent = []
    for path, tensor in once:
        others = [other.float().reshape(len(other), -1) for p, other in once if p != path]
        made = [made for o in others for made in (o.softmax(1), o.log_softmax(1), o.sigmoid())]
        if not any(alike(tensor, other) for other in made):
            independent.append((path, tensor))
    return independent


def _form(
    net: Callable[..., Any], sample: Tensor, classes: int | None, changed: set[str]
) -> tuple[CallOptions, Any, Path]:
    """How the network takes images: dtype and batch size if fixed; its output, and the path of the logits."""
    tensors = [*net.parameters(), *net.buffers()] if isinstance(net, nn.Module) else []
    own = next((t.dtype for t in tensors if t.is_floating_point()), sample.dtype)
    dtypes: list[torch.dtype | None] = [None] if own == sample.dtype else [own, None]
    if not tensors:
        dtypes.append(torch.float64)
    errors: list[str] = []

    def call(count: int, dtype: torch.dtype | None) -> tuple[Any, Path] | None:
        rows = torch.arange(count, device=sample.device) % len(sample)
        given = sample[rows]
        try:
            with network_faults(), torch.enable_grad():  # in which its switching gradients off is seen
                before = Settings()
                try:
                    output = net(given if dtype is None else given.to(dtype))
                finally:
                    changed.update(before.changed())
                    before.restore()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a foreign model may raise anything; the caller reports the first error
            errors.append(first_line(error))
            return None
        try:
            logits, path = logits_in(output, count, classes)
        except TypeError as error:
            errors.append(first_line(error))
            return None
        if logits.ndim < 1 or len(logits) != count or (logits.ndim > 2 and logits.shape[2:].numel() > 1):
            errors.append(f"its output is {tuple(logits.shape)} for {count} images, not (N, classes)")
            return None
        if not logits.is_floating_point():
            errors.append(f"its output is of type {str(logits.dtype).removeprefix('torch.')}, not logits")
            return None
        return output, path

    count = min(len(sample), 8)
    for dtype in dtypes:
        whole = call(count, dtype)
        if whole is not None and call(count + 1, dtype) is not None:
            return CallOptions(dtype=dtype), *whole
    for rows in dict.fromkeys((count, *_SIZES)):
        for dtype in dtypes:
            whole = call(rows, dtype)
            if whole is not None:
                return CallOptions(dtype=dtype, rows=rows), *whole
    raise RobGIBError(f"the model does not take images of shape {tuple(sample.shape[1:])}: {errors[0]}.")


def _overwrites(net: Classifier, sample: Tensor) -> bool:
    rows, dtype = net.options.rows, net.options.dtype
    given = sample.clone() if rows is None else sample[torch.arange(rows, device=sample.device) % len(sample)]
    given = given if dtype is None else given.to(dtype)
    before = given.clone()
    net.raw(given)
    return not torch.equal(given, before)


def _read_as(net: Classifier, sample: Tensor, output: Tensor) -> Reading:
    """Whether the output is logits, a softmax or a sigmoid."""
    if not bool(((output >= 0) & (output <= 1)).all()):
        return "logits"
    rows, rounding = net.options.rows, 1e-3 if net.options.dtype is None else 2e-2
    if not net.options.single and bool(((output.flatten(1).sum(1) - 1).abs() < rounding).all()):
        return "softmax"
    given = sample if rows is None else sample[torch.arange(rows, device=sample.device) % len(sample)]
    with _Ends() as ends:
        before = ends.before(net.output(given))
    return "sigmoid" if before is not None and before[1] == "sigmoid" else "logits"


def differ(one: Tensor, two: Tensor) -> float:
    """Return the largest difference of two outputs (N, classes) for the same images, in units of the logits' spread."""
    spread = (one - one.mean(1, keepdim=True)).abs().mean().clamp_min(1e-12)
    gap = float((one - two).abs().max() / spread)
    same = torch.equal(torch.isfinite(one), torch.isfinite(two))
    return gap if gap == gap else (0.0 if same else float("inf"))  # NaN in the same places is no difference


def half_perturbed(x: Tensor) -> Tensor:
    """Return images (N, …) in [0, 1], the last half of which (at least one) is moved off the levels of 8 bits.

    A model may answer at random to perturbed images alone.
    """
    moved = x.clone()
    last = moved[len(x) // 2 :]
    moved[len(x) // 2 :] = torch.where(last > 0.5, last - _BETWEEN, last + _BETWEEN)
    return moved


def _random(net: Classifier, sample: Tensor) -> bool:
    """Whether two calls on the same images, clean and perturbed, differ."""

    def state() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        cuda = torch.cuda.get_rng_state(sample.device) if sample.device.type == "cuda" else torch.empty(0)
        of_torch = torch.get_rng_state().numpy().tobytes() + cuda.numpy().tobytes()
        return of_torch, name, np.asarray(keys).tobytes(), rest, random.getstate()

    before = state()
    some = half_perturbed(sample[:4])
    first = net(some)
    calls = _CALLS if state() != before else _FEW_CALLS
    return any(differ(first, net(some)) > _EQUAL for _ in range(calls - 1))


def _company(net: Classifier, sample: Tensor) -> bool:
    """Whether an image's logits change with the images beside it."""
    count = net.options.rows or max(2, min(len(sample), 8))
    if count == 1:
        return False
    others = torch.rand((count, *sample.shape[1:]), device=sample.device, dtype=sample.dtype)
    one, two = others.clone(), others.flip(0) / 2
    one[0] = two[0] = sample[0]
    three = sample[torch.arange(count, device=sample.device) % len(sample)]
    outputs = [net(batch)[:1] for batch in (one, two, three)]
    return any(differ(outputs[0], other) > _EQUAL for other in outputs[1:])
