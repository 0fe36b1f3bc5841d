"""Any classifier as attacks and estimators expect one: images in, one row of floating-point logits an image out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from robgib.errors import RobGIBError, first_line
from robgib.models.state import State
from robgib.runtime import faults_of, network_faults

__all__ = [
    "Adapted",
    "Classifier",
    "adapt",
    "as_module",
    "differ",
    "finite_answers",
    "logits_in",
    "network_of",
    "put_random_state",
    "random_state",
    "seeded",
]

Reading = Literal["logits", "softmax", "sigmoid"]
Fixed = Literal["", "buffers", "weights"]
Path = tuple[str | int, ...]
"""Keys, numbers and attributes that lead to a tensor in what a model returns."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
_CALLS = 64  # that a model which draws random numbers gets to show it: one draw in 20 would be missed once in 27 times
_FEW_CALLS = 8  # that a model gets which draws none: it may still hold a generator of its own
_DEEP = 3  # containers in each other that a model may return
_EQUAL = 1e-3  # of the logits' spread: on a GPU reductions differ from call to call, but not so much


def finite_answers(logits: Tensor) -> Tensor:
    """Whether each row (N,) of logits (N, classes) is an answer: no NaN, no +inf, and not all of it -inf.

    Classes may be masked with -inf.
    """
    bad = torch.isnan(logits) | (logits == float("inf"))
    return ~bad.any(1) & (logits > float("-inf")).any(1)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators that a model may draw from (torch, numpy, Python); put their states back after."""
    where = torch.device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where the global generators of :func:`seeded` stand, as arrays and plain values."""
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
    """Put the global generators where :func:`random_state` found them."""
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    name, *rest = state["numpy"]
    np.random.set_state((name, state["numpy_keys"], *rest))  # noqa: NPY002
    version, gauss = state["python"]
    random.setstate((version, tuple(int(w) for w in state["python_words"]), gauss))
    if "cuda" in state and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]), device)


class _Ends(TorchFunctionMode):
    """Remembers what went into each softmax and sigmoid, so that the last can be taken off exactly.

    The logarithm of a softmax that has come to 0 and 1 in float32 has lost what the softmax was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("softmax", "sigmoid") and args and isinstance(out, Tensor):
            self.seen.append((out, args[0], name))
        return out

    def before(self, out: Tensor) -> tuple[Tensor, str] | None:
        """What went into the softmax or sigmoid that gave ``out``, but for rounding, and which of them it was."""
        for made, given, name in reversed(self.seen):
            alike = made.numel() == out.numel()
            if made is out or (alike and torch.allclose(made.to(out).reshape(out.shape), out, rtol=0, atol=1e-5)):
                return given.reshape(out.shape), name
        return None


class Classifier(nn.Module):
    """A stranger's classifier, ``net``, called as it wants to be and read as logits (N, classes).

    Args:
        net: any callable of images (N, …).
        dtype: what it computes in, where it takes no float32.
        rows: images that it takes at once, where it takes one number only; batches are filled up.
        alone: give it no two different images at once, since its answers depend on their company.
        copies: give it a copy of the images, since it changes them.
        reading: what its output is: ``logits``, or a ``softmax`` or ``sigmoid`` of them, which is taken off.
        single: one logit z an image, of two classes; it is read as [0, z].
        masked: it masks classes with -inf, which is read as a number below all others.
        fixed: what it changes when it answers, and gets a copy of for each call: its ``buffers``, or ``weights`` too.
            An answer then does not depend on what was asked before. Its modes are put back after each call.
        item: the keys, numbers and attributes that lead to the logits in what it returns, where it returns more than
            one tensor; None looks for them at every call.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        *,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        alone: bool = False,
        copies: bool = False,
        reading: Reading = "logits",
        single: bool = False,
        masked: bool = False,
        fixed: Fixed = "",
        item: Path | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.dtype, self.rows, self.alone, self.copies = dtype, rows, alone, copies
        self.reading, self.single, self.masked, self.fixed, self.item = reading, single, masked, fixed, item
        self.training = bool(getattr(net, "training", False))

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
        if self.rows is None:
            return self._answer(x)
        if not len(x):
            return self._answer(x.new_zeros((self.rows, *x.shape[1:])))[:0]
        parts = []
        for part in x.split(1 if self.alone else self.rows):
            missing = self.rows - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self._answer(filled)[: len(part)])
        return torch.cat(parts)

    def raw(self, x: Tensor) -> Any:
        """What the network itself says of images (N, …), called as it wants to be."""
        given = x if self.dtype is None else x.to(self.dtype)
        given = given.clone() if self.copies else given
        if not self.fixed or not isinstance(self.net, nn.Module):
            return self.net(given)
        scripted: Any = torch.jit.ScriptModule
        plain = not any(isinstance(m, scripted) for m in self.net.modules())
        before = State([self.net], weights=not plain, buffers=not plain)
        held: dict[str, Tensor] = {name: b.clone() for name, b in self.net.named_buffers()} if plain else {}
        if self.fixed == "weights" and plain:
            held |= {name: p.detach().clone() for name, p in self.net.named_parameters()}
        try:
            return functional_call(self.net, held, (given,)) if plain else self.net(given)
        finally:
            before.restore()

    def output(self, x: Tensor) -> Tensor:
        """The tensor in what the network says of images (N, …) that its logits are read from."""
        told = self.raw(x)
        return logits_in(told, len(x))[0] if self.item is None else _at(told, self.item)

    def _answer(self, x: Tensor) -> Tensor:
        if self.reading == "logits":
            logits = self.output(x)
        else:
            with _Ends() as ends:
                told = self.output(x)
            before = ends.before(told)
            if before is not None and before[1] == self.reading:
                logits = before[0]
            else:
                tiny = torch.finfo(told.dtype).tiny
                logits = told.clamp_min(tiny).log()
                if self.reading == "sigmoid":
                    logits = logits - (1 - told).clamp_min(tiny).log()
        logits = logits.to(x.dtype)
        if self.single:
            logits = logits.reshape(len(logits), 1)
            return torch.cat([torch.zeros_like(logits), logits], 1)
        if logits.ndim > 2 and logits.shape[2:].numel() == 1:
            logits = logits.flatten(1)
        return _unmasked(logits) if self.masked else logits


def _unmasked(logits: Tensor) -> Tensor:
    """Logits (N, classes) with a finite number, below all others of its row, in the place of -inf."""
    with torch.no_grad():
        masked = logits == float("-inf")
        low = logits.masked_fill(masked, float("inf")).amin(1, keepdim=True)
        high = logits.amax(1, keepdim=True)
        floor = torch.where(masked.all(1, keepdim=True), torch.nan, low - (high - low) - 1)
    return torch.where(masked, floor, logits)


def network_of(model: nn.Module) -> nn.Module:
    """The network whose layers have names: what a :class:`Classifier` holds, or the model itself."""
    net = model.net if isinstance(model, Classifier) else model
    return net if isinstance(net, nn.Module) else model


def as_module(model: object) -> nn.Module:
    """Return a model as a module: an exported program's network, a plain callable behind one.

    Raises:
        RobGIBError: it is no module and cannot be called, or has modules that wait for a first batch.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not callable(model):
        raise RobGIBError(f"the model must be a torch.nn.Module or a function of images, not {type(model).__name__}.")
    if not isinstance(model, nn.Module):
        return Classifier(model)
    held: Mapping[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    waiting = [name for name, tensor in held.items() if is_lazy(tensor)]
    if waiting:
        raise RobGIBError(
            f"the model is not initialised yet ({waiting[0]} has no shape); call it once on a batch of images, then "
            "load its weights."
        )
    scripted: Any = torch.jit.ScriptModule
    if isinstance(model, scripted) or not _has_modes(model):
        return Classifier(model)  # such a module takes no hooks, or no modes
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
    """A model that can be called as any other.

    Attributes:
        model: the model itself where it is called as any other, else behind a :class:`Classifier`.
        random: whether it answers at random.
        probabilities: whether its output are probabilities.
        company: whether its answer to an image depends on the other images of the batch.
        notes: what else was found, a sentence each.
    """

    model: nn.Module
    random: bool = False
    probabilities: bool = False
    company: bool = False
    notes: tuple[str, ...] = ()


def adapt(model: object, sample: Tensor, classes: int | None = None) -> Adapted:
    """Find out how a classifier wants to be called, and what its output is.

    Args:
        model: a module, an exported program, or any function of images; frozen, and on the device of ``sample``.
        sample: clean images (N, …) in [0, 1], of which a few will do.
        classes: how many classes the data have, where that is known.

    Raises:
        RobGIBError: no way of calling it gives one row of numbers an image; the sentence tells what it said.
    """
    net = as_module(model)
    raw = net.net if isinstance(net, Classifier) else net
    before = State([raw]) if isinstance(raw, nn.Module) else None
    with torch.no_grad(), seeded(0, sample.device), faults_of("the model"):
        form, told, path = _form(raw, sample, classes)
        options: dict[str, Any] = {**form, "item": path}
        notes: list[str] = []
        if form.get("dtype"):
            notes.append(f"it computes in {str(form['dtype']).removeprefix('torch.')}")
        if form.get("rows"):
            notes.append(f"it takes batches of {form['rows']} only: they are filled up")
        if path:
            notes.append(f"its output is a {type(told).__name__}, of which {_named(path)} is read")
        if before is not None and isinstance(raw, nn.Module):
            tensors = before.changed()
            changed = [*tensors, *(f"mode of {name or type(raw).__name__}" for name in before.modes())]
            if changed:
                of_weights = not set(tensors).isdisjoint(name for name, _ in raw.named_parameters())
                options["fixed"] = "weights" if of_weights else "buffers"
                before.restore()
                notes.append(
                    f"it changes itself when it answers ({', '.join(changed[:3])}): what it changes is put back after "
                    "each call"
                )
        options["copies"] = _overwrites(Classifier(raw, **options), sample)
        if options["copies"]:
            notes.append("it changes the images that it is given: it gets copies")
        given = _at(told, path)
        logits = given.float()
        options["single"] = logits.ndim == 1 or logits.shape[1:].numel() == 1
        if options["single"]:
            if classes not in (None, 2):
                raise RobGIBError(
                    f"the model gives one number an image and the data have {classes} classes; use a model with a "
                    "logit a class."
                )
            notes.append("it gives one logit z an image, read as the logits [0, z] of two classes")
        options["reading"] = _read_as(Classifier(raw, **options), sample, logits)
        if options["reading"] == "softmax":
            notes.append("its output are probabilities: attacks climb the logits below them")
        elif options["reading"] == "sigmoid":
            notes.append("its output are probabilities of single classes: attacks climb the logits below them")
        options["masked"] = bool((logits == float("-inf")).any())
        if options["masked"]:
            notes.append("it masks classes with -inf")
        found = Classifier(raw, **options).train(False)
        at_random = _random(found, sample)
        if not at_random and _company(found, sample):
            found.rows, found.alone = found.rows or 1, True
            notes.append("its answer to an image depends on the others of the batch: images are given one at a time")
    as_it_is = (
        not any([*form.values(), *(options[n] for n in ("copies", "single", "masked")), found.fixed, found.alone, path])
        and options["reading"] == "logits"
        and logits.ndim == 2
        and given.dtype == sample.dtype
        and not isinstance(net, Classifier)
    )
    return Adapted(
        net if as_it_is else found,
        random=at_random,
        probabilities=options["reading"] != "logits",
        company=found.alone,
        notes=tuple(notes),
    )


def logits_in(told: Any, count: int, classes: int | None = None) -> tuple[Tensor, Path]:
    """Return the logits in what a model returns for ``count`` images, and what leads to them (``()``: all of it).

    Of several tensors with a row an image it is the one with a column a class of the data, then what is called
    ``logits``; the probabilities of another one are left aside.

    Args:
        told: a tensor, or a tuple, list, mapping, dataclass or object that holds some, also in each other.
        count: images that it was told of.
        classes: how many classes the data have, where that is known.

    Raises:
        TypeError: there is no tensor with a row an image.
        RobGIBError: several could be the logits, or none has a column for every class.

    >>> logits_in((torch.zeros(5, 64), {"out": torch.ones(5, 10)}), 5, classes=10)[1]
    (1, 'out')
    """
    if isinstance(told, Tensor):
        return told, ()
    kind = type(told).__name__
    tensors = list(_tensors(told))
    if not tensors:
        raise TypeError(f"it returns {kind} without logits")
    rows = [(path, t) for path, t in tensors if _has_rows(t, count)]
    if not rows:
        shapes = ", ".join(str(tuple(t.shape)) for _, t in tensors[:4])
        raise TypeError(f"it returns {kind} of {shapes} for {count} images, none of which is logits (N, classes)")
    fit = rows if classes is None else [(path, t) for path, t in rows if _columns(t) == classes]
    if not fit and classes == 2:
        fit = [(path, t) for path, t in rows if _columns(t) == 1]
    fit = fit or [(path, t) for path, t in rows if _columns(t) > (classes or 0)]
    named = [(path, t) for path, t in fit if path[-1] == "logits"]
    named = [(path, t) for path, t in named if len(path) == min(len(p) for p, _ in named)]
    left = _distinct(named if len(named) == 1 else fit)
    if len(left) == 1:
        return left[0][1], left[0][0]
    several = left or rows
    shapes = ", ".join(f"{_named(path)} {tuple(t.shape)}" for path, t in several[:4])
    why = "more than one could be its logits" if left else f"none has a column for each of the data's {classes} classes"
    raise RobGIBError(
        f"the model returns a {kind} of which {why} ({shapes} for {count} images); wrap it in a module whose forward "
        f"returns its logits alone, such as `return self.net(x){_code(several[-1][0])}`."
    )


def _tensors(told: Any, deep: int = _DEEP) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in what a model returns, and what leads to it."""
    for key, part in _inside(told):
        if isinstance(part, Tensor):
            yield (key,), part
        elif deep > 1:
            yield from (((key, *path), tensor) for path, tensor in _tensors(part, deep - 1))


def _inside(told: Any) -> Sequence[tuple[str | int, Any]]:
    """The parts of a container or an object with their keys, numbers or attributes."""
    if isinstance(told, Mapping):
        return [(key, part) for key, part in told.items() if isinstance(key, str | int)]
    if isinstance(told, tuple | list):
        return list(zip(getattr(told, "_fields", range(len(told))), told, strict=False))
    if isinstance(told, type | nn.Module | str):
        return []
    names = [f.name for f in fields(told)] if is_dataclass(told) else [n for n in _attributes(told) if n[:1] != "_"]
    return [(name, getattr(told, name, None)) for name in names]


def _attributes(told: Any) -> list[str]:
    own = list(getattr(told, "__dict__", ()))
    return own if "logits" in own or not hasattr(told, "logits") else [*own, "logits"]  # it may be a property


def _at(told: Any, path: Path) -> Any:
    """What a path leads to."""
    for key in path:
        told = told[key] if isinstance(key, int) or isinstance(told, Mapping) else getattr(told, key)
    return told


def _named(path: Path) -> str:
    """A path in words."""
    if len(path) == 1:
        return f"item {path[0]}" if isinstance(path[0], int) else repr(path[0])
    return f"item {''.join(f'[{key!r}]' for key in path)}"


def _code(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _has_rows(tensor: Tensor, count: int) -> bool:
    """Whether a tensor has one row of numbers an image."""
    if tensor.ndim < 1 or len(tensor) != count or not tensor.is_floating_point():
        return False
    return tensor.ndim <= 2 or tensor.shape[2:].numel() == 1


def _columns(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 1


def _distinct(found: list[tuple[Path, Tensor]]) -> list[tuple[Path, Tensor]]:
    """Those of several answers (N, classes) that are no other one once more, nor its (logarithmic) probabilities."""

    def alike(one: Tensor, two: Tensor) -> bool:
        near = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
        return one.numel() == two.numel() and torch.allclose(one.float().flatten(), two.float().flatten(), atol=near)

    once: list[tuple[Path, Tensor]] = []
    for path, tensor in found:
        if not any(alike(tensor, other) for _, other in once):
            once.append((path, tensor))
    left = []
    for path, tensor in once:
        others = [other.float().reshape(len(other), -1) for p, other in once if p != path]
        made = [made for o in others for made in (o.softmax(1), o.log_softmax(1), o.sigmoid())]
        if not any(alike(tensor, other) for other in made):
            left.append((path, tensor))
    return left


def _form(net: Callable[..., Any], sample: Tensor, classes: int | None) -> tuple[dict[str, Any], Any, Path]:
    """How the net takes images: its dtype and number of rows where they are not any; what it told, and where."""
    tensors = [*net.parameters(), *net.buffers()] if isinstance(net, nn.Module) else []
    own = next((t.dtype for t in tensors if t.is_floating_point()), sample.dtype)
    dtypes: list[torch.dtype | None] = [None] if own == sample.dtype else [own, None]
    if not tensors:
        dtypes.append(torch.float64)
    errors: list[str] = []

    def tried(count: int, dtype: torch.dtype | None) -> tuple[Any, Path] | None:
        rows = torch.arange(count, device=sample.device) % len(sample)
        given = sample[rows]
        try:
            with network_faults():
                told = net(given if dtype is None else given.to(dtype))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a stranger's model says: the caller tells it in a sentence
            errors.append(first_line(error))
            return None
        try:
            logits, path = logits_in(told, count, classes)
        except TypeError as error:
            errors.append(first_line(error))
            return None
        if logits.ndim < 1 or len(logits) != count or (logits.ndim > 2 and logits.shape[2:].numel() > 1):
            errors.append(f"its output is {tuple(logits.shape)} for {count} images, not (N, classes)")
            return None
        if not logits.is_floating_point():
            errors.append(f"its output is of type {str(logits.dtype).removeprefix('torch.')}, not logits")
            return None
        return told, path

    count = min(len(sample), 8)
    for dtype in dtypes:
        whole = tried(count, dtype)
        if whole is not None and tried(count + 1, dtype) is not None:
            return ({"dtype": dtype} if dtype else {}), *whole
    for rows in dict.fromkeys((count, *_SIZES)):
        for dtype in dtypes:
            whole = tried(rows, dtype)
            if whole is not None:
                return {"rows": rows, **({"dtype": dtype} if dtype else {})}, *whole
    raise RobGIBError(f"the model does not take images of shape {tuple(sample.shape[1:])}: {errors[0]}.")


def _overwrites(net: Classifier, sample: Tensor) -> bool:
    given = sample.clone() if net.rows is None else sample[torch.arange(net.rows, device=sample.device) % len(sample)]
    given = given if net.dtype is None else given.to(net.dtype)
    before = given.clone()
    net.raw(given)
    return not torch.equal(given, before)


def _read_as(net: Classifier, sample: Tensor, told: Tensor) -> Reading:
    """Whether the output is a softmax or a sigmoid."""
    if not bool(((told >= 0) & (told <= 1)).all()):
        return "logits"
    if not net.single and bool(((told.flatten(1).sum(1) - 1).abs() < (1e-3 if net.dtype is None else 2e-2)).all()):
        return "softmax"
    given = sample if net.rows is None else sample[torch.arange(net.rows, device=sample.device) % len(sample)]
    with _Ends() as ends:
        before = ends.before(net.output(given))
    return "sigmoid" if before is not None and before[1] == "sigmoid" else "logits"


def differ(one: Tensor, two: Tensor) -> float:
    """By how much two answers (N, classes) to the same images differ, in units of the logits' spread."""
    spread = (one - one.mean(1, keepdim=True)).abs().mean().clamp_min(1e-12)
    gap = float((one - two).abs().max() / spread)
    same = torch.equal(torch.isfinite(one), torch.isfinite(two))
    return gap if gap == gap else (0.0 if same else float("inf"))  # NaN where both were NaN is no difference


def _random(net: Classifier, sample: Tensor) -> bool:
    """Whether two calls on the same images differ."""

    def state() -> tuple[bytes, bytes, Any]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        cuda = torch.cuda.get_rng_state(sample.device) if sample.device.type == "cuda" else torch.empty(0)
        return torch.get_rng_state().numpy().tobytes() + cuda.numpy().tobytes(), str(numpy_state).encode(), (
            random.getstate()
        )  # fmt: skip

    before = state()
    first = net(sample[:4])
    calls = _CALLS if state() != before else _FEW_CALLS
    return any(differ(first, net(sample[:4])) > _EQUAL for _ in range(calls - 1))


def _company(net: Classifier, sample: Tensor) -> bool:
    """Whether an image's logits change with the images beside it."""
    count = net.rows or max(2, min(len(sample), 8))
    if count == 1:
        return False
    others = torch.rand((count, *sample.shape[1:]), device=sample.device, dtype=sample.dtype)
    one, two = others.clone(), others.flip(0) / 2
    one[0] = two[0] = sample[0]
    three = sample[torch.arange(count, device=sample.device) % len(sample)]
    told = [net(batch)[:1] for batch in (one, two, three)]
    return any(differ(told[0], other) > _EQUAL for other in told[1:])
