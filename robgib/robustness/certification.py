"""Certified robustness by linear bounds on the network (CROWN)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel
from robgib.errors import RobGIBError, first_line
from robgib.models.inference import PreparedModel, eval_mode
from robgib.results import eps_text
from robgib.robustness.attacking import Subject
from robgib.runtime import SampleRNG, network_faults

__all__ = ["NotCertifiableError", "certify", "certify_tables"]

UNITS = 60_000
"""Maximum number of activation units of the whole network."""
_ROOM = 2**26  # maximum number of values in memory
_ROUNDING = 1e-5  # rounding error of float32, relative to the largest logit
_RATE = 0.2  # learning rate of Adam, for slopes in [0, 1]
_TRIALS = 4  # random images of each ball on which bounds are compared with the network itself
_BISECTIONS = 40
_TOGETHER = 8  # samples per batch
_KEPT = 24  # samples whose bounds are saved together, for resume

# Names of the gradients of affine operations. Any other operation of the graph is rejected, since a custom gradient may
# compute anything.
_AFFINE = re.compile(
    "AccumulateGrad|CopyBackwards|_RelaxedBackward|("
    "Add|Sub|Rsub|Neg|Mul|Div|Addmm|Mm|Bmm|Convolution|NativeBatchNorm|View|UnsafeView|ReshapeAlias|Transpose|T|"
    "Permute|Expand|Slice|Select|Squeeze|Unsqueeze|Cat|Stack|Index|Clone|Alias|ToCopy|Mean|Sum|AvgPool2D|"
    "(Mkldnn)?AdaptiveAvgPool2D|ConstantPadNd|ReflectionPad2D|ReplicationPad2D|PixelShuffle|PixelUnshuffle|"
    "UpsampleNearest2D|UpsampleBilinear2D|AsStrided|Split|Unbind|Repeat)Backward[0-9]"
)
# Functions that export values to Python, and functions that use only the shape of a tensor.
_EXPORT = re.compile(
    "item|tolist|numpy|__(bool|float|int|index|contains)__|equal|allclose|is_nonzero|register_hook|detach_"
)
_BLANK = re.compile("(zeros|ones|full|empty)_like|new_(zeros|ones|full|empty)")


class NotCertifiableError(RobGIBError):
    """The network or the threat model is not supported; the message gives the reason."""


@dataclass
class _Bounds:
    """Lower and upper bounds (B, …) of the input of each activation, in call order."""

    below: list[Tensor] = field(default_factory=list)
    above: list[Tensor] = field(default_factory=list)
    bent: list[bool] = field(default_factory=list)  # whether it is a ReLU, whose lower line has a free slope
    late: frozenset[int] = frozenset()  # calls of ReLU that are moved behind the pooling that follows


class _Reached(Exception):
    """Ends a pass at an activation with the input ``value``; ``bent``: it is a ReLU."""

    def __init__(self, value: Tensor, bent: bool) -> None:
        super().__init__()
        self.value, self.bent = value, bent


class _Relaxed(torch.autograd.Function):
    """An activation whose backward pass uses its lower and upper lines.

    The backward pass returns the coefficients of a linear lower bound of the rest of the network (Zhang et al. 2018,
    theorem 3.2), and adds the constant of the bound to ``shifts``.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, lines: tuple[Tensor, ...], shifts: list[Tensor]) -> Tensor:
        ctx.kept = (z.detach(), value, lines, shifts)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, value, (slope_low, shift_low, slope_high, shift_high), shifts = ctx.kept
        up, down = grads[0].clamp_min(0), grads[0].clamp_max(0)
        inner = up * slope_low + down * slope_high
        # Affine operations keep the sum of coefficient times value up to their constant. This term corrects for the
        # activation.
        constant = up * shift_low + down * shift_high - grads[0] * value + inner * z
        shifts.append(constant.flatten(1).sum(1))
        return inner, None, None, None


class _Relaxation(TorchFunctionMode):
    """Replaces the activations of a network by relaxed ones during a call.

    Args:
        bounds: known bounds of the activations' inputs; the pass ends at the first unknown one.
        which: sample index (R,) of each row.
        slopes: for each ReLU, by number, the slope (R, …) of its lower line where the sign of its input is unknown;
            None takes 0 or 1, whichever gives the smaller area between the lines.
    """

    def __init__(self, bounds: _Bounds, which: Tensor, slopes: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self.bounds, self.which, self.slopes = bounds, which, slopes
        self.shifts: list[Tensor] = []
        self.count = self.calls = 0
        self.waiting: list[Tensor] = []  # inputs of a ReLU that is moved behind the pooling

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if not any(one.requires_grad for one in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        subject = args[0] if args else kwargs.get("input")
        if name in ("relu", "relu_"):
            self.calls += 1
            if self.calls in self.bounds.late:
                self.waiting.append(subject)
                return subject
            return _in_place(subject, self._relu(subject), name == "relu_" or _flag(args, kwargs, 1, "inplace"))
        if name in ("leaky_relu", "leaky_relu_"):
            slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
            # slope z + (1 - slope) relu(z)
            made = slope * subject + (1 - slope) * self._relu(subject)
            return _in_place(subject, made, name == "leaky_relu_" or _flag(args, kwargs, 2, "inplace"))
        if name in ("tanh", "sigmoid", "tanh_", "sigmoid_"):
            return _in_place(subject, self._s_shaped(subject, name.rstrip("_")), name.endswith("_"))
        if name == "max_pool2d":
            return self._max_pool(subject, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        no_gradient = f"it uses values that depend on its input without a gradient ({name})"
        if _EXPORT.fullmatch(name):
            raise NotCertifiableError(no_gradient)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in (torch.float16, torch.bfloat16):
            raise NotCertifiableError("it computes in half precision, whose rounding error is not bounded")
        if isinstance(out, Tensor) and not out.requires_grad and not _BLANK.fullmatch(name):
            raise NotCertifiableError(no_gradient)
        return out

    def _next(self, z: Tensor, bent: bool) -> tuple[int, Tensor, Tensor]:
        number, self.count = self.count, self.count + 1
        if number == len(self.bounds.below):
            raise _Reached(z, bent)
        return number, self.bounds.below[number][self.which], self.bounds.above[number][self.which]

    def _relu(self, z: Tensor) -> Tensor:
        number, low, high = self._next(z, bent=True)
        on, off = low >= 0, high <= 0
        nothing = torch.zeros_like(low)
        upper = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low).clamp_min(1e-30)))
        shift = torch.where(on | off, nothing, -low * upper)
        free = (high > -low).to(low) if self.slopes is None else self.slopes[number]
        lower = torch.where(on, 1.0, torch.where(off, 0.0, free))
        return _Relaxed.apply(z, z.detach().clamp_min(0), (lower, nothing, upper, shift), self.shifts)  # type: ignore[no-untyped-call]

    def _s_shaped(self, z: Tensor, name: str) -> Tensor:
        _, low, high = self._next(z, bent=False)
        function = getattr(torch, name)

        def slope(at: Tensor) -> Tensor:
            value: Tensor = function(at)
            return 1 - value**2 if name == "tanh" else value * (1 - value)

        lines = (*_line_below(function, slope, low, high), *_mirrored(function, slope, low, high, name))
        return _Relaxed.apply(z, function(z.detach()), lines, self.shifts)  # type: ignore[no-untyped-call]

    def _max_pool(
        self,
        z: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        (kh, kw), (sh, sw) = _pair(kernel_size), _pair(stride or kernel_size)
        if _pair(padding) != (0, 0) or _pair(dilation) != (1, 1) or ceil_mode or return_indices:
            raise NotCertifiableError("its max pooling is padded, dilated or rounded up")
        height, width = (z.shape[-2] - kh) // sh + 1, (z.shape[-1] - kw) // sw + 1
        parts = [
            z[..., i : i + sh * (height - 1) + 1 : sh, j : j + sw * (width - 1) + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
        while len(parts) > 1:  # max(a, b) is a + relu(b - a)
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [a + self._relu(b - a) for a, b in pairs] + parts[len(parts) // 2 * 2 :]
        return self._relu(parts[0]) if any(z is one for one in self.waiting) else parts[0]


class _Pooled(TorchFunctionMode):
    """Records which calls of ReLU feed max pooling only.

    ReLU and max pooling commute. A ReLU behind the pooling has fewer units, and so the bounds are tighter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.pooled: set[int] = set()
        self.elsewhere: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(out, Tensor):
            used = {k for k, one in enumerate(self.made, 1) if any(one is v for v in _tensors((args, kwargs)))}
            (self.pooled if name == "max_pool2d" else self.elsewhere).update(used)
            if name in ("relu", "relu_"):
                self.made.append(out)
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested values."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _flag(args: Any, kwargs: Any, place: int, name: str) -> bool:
    return bool(args[place] if len(args) > place else kwargs.get(name, False))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _in_place(old: Tensor, new: Tensor, overwrite: bool) -> Tensor:
    return old.copy_(new) if overwrite else new


def _line_below(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Return slope and constant of a line below an S-shaped function, convex below 0 and concave above 0."""
    width = high - low
    secant = torch.where(width > 1e-9, (function(high) - function(low)) / width.clamp_min(1e-9), slope(high))
    # Right of 0: the secant. Left of 0: the tangent at the middle. On both sides: the tangent through the upper end, if
    # it touches within the interval. The bisection keeps the side on which the tangent lies below that end.
    near, far = low, torch.zeros_like(low)
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        beneath = function(middle) + slope(middle) * (high - middle) <= function(high)
        near, far = torch.where(beneath, middle, near), torch.where(beneath, far, middle)
    touches = function(low) + slope(low) * (high - low) <= function(high)
    at = torch.where(high <= 0, (low + high) / 2, near)
    straight = (low >= 0) | (~touches & (high > 0))
    lean = torch.where(straight, secant, slope(at))
    through = torch.where(straight, low, at)
    # On a very short interval the slope of the secant is rounding error: lower the line to hold at both ends.
    return lean, torch.minimum(function(through) - lean * through, function(low) - lean * low)


def _mirrored(
    function: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    name: str,
) -> tuple[Tensor, Tensor]:
    """Return the upper line, by the symmetry of the function."""
    top = 0.0 if name == "tanh" else 1.0  # f(-z) = top - f(z)
    lean, shift = _line_below(function, slope, -high, -low)
    return lean, top - shift


def certify(
    model: PreparedModel,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Compute, for each sample, a lower bound of the margin of the true class on its ball.

    Linear functions of the image bound the input of every activation, by backward propagation (CROWN: Zhang et al.
    2018). For the margin itself, gradient ascent optimises the lower slopes of ReLUs (Xu et al. 2021, with fixed inner
    bounds). Supported are affine layers, ReLU, leaky ReLU, tanh, sigmoid and max pooling, in any order and with
    shortcuts. Only images in the box count. Sums are in float64, and a hundred-thousandth of the largest logit is
    subtracted for the rounding of float32.

    Args:
        model: the classifier, prepared by :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        threat: the ball, of a convex norm.
        steps: number of ascent steps.
        device: device of the model.

    Returns:
        Bounds (N,) in logits. A sample with a bound above 0 is proven robust.

    Raises:
        NotCertifiableError: the network has other operations, is stochastic or too large, or the norm is L0.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-mlp-relu")
    >>> x, y = data.test.x[:5], data.test.y[:5]
    >>> margin = certify(prepare(model, x), x, y, ThreatModel("linf", 0.01))
    >>> margin.shape, bool((margin > 0).any())
    ((5,), True)
    """
    if threat.norm not in CONVEX_NORMS:
        raise NotCertifiableError(f"certification does not support {threat.norm}: its ball is not convex.")
    if model.random or model.company:
        reason = "is stochastic" if model.random else "depends on the other images of a batch"
        raise NotCertifiableError(f"a network that {reason} cannot be certified.")
    x, y = x.to(device).double(), y.to(device)
    if not len(x):
        return np.zeros(0)
    try:
        net = copy.deepcopy(model.model).double()
        with eval_mode(net), network_faults():
            batches = []
            for start in range(0, len(x), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                batches.append(_margin_bounds(net, x[rows], y[rows], threat, steps))
            bounds = np.concatenate(batches)
            _check_bounds(net, x, y, threat, bounds)
    except NotCertifiableError as error:
        raise NotCertifiableError(f"this network cannot be certified: {str(error).rstrip('.')}.") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a custom module may fail in float64
        raise NotCertifiableError(
            f"this network cannot be certified: {type(error).__name__}: {first_line(error)}"
        ) from error
    return bounds


def _margin_bounds(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int) -> np.ndarray:
    with _Pooled() as uses, torch.no_grad():
        answer = net(x)
    bounds = _Bounds(late=frozenset(uses.pooled - uses.elsewhere))
    size = x[0].numel()
    while True:
        everyone = torch.arange(len(x), device=x.device)
        reached = _pass(net, x, bounds, everyone)[0]
        if not isinstance(reached, _Reached):
            logits = reached
            break
        z = reached.value
        units = z[0].numel()
        size += 2 * units
        if size > 2 * UNITS:
            raise NotCertifiableError(f"it has more than {UNITS:,} units, which would take hours per image")
        low, high = _bounded(net, x, bounds, z, threat, max(1, _ROOM // (8 * size)))
        bounds.below.append(low)
        bounds.above.append(high)
        bounds.bent.append(reached.bent)
    scale = answer.abs().amax(1)
    if not torch.allclose(logits, answer, rtol=0, atol=1e-9 * float(scale.max())):
        raise NotCertifiableError("its output changes when its activations are replaced by equivalent ones")
    return (_final(net, x, y, logits.shape[1], bounds, threat, steps) - _ROUNDING * scale).cpu().numpy()


def _pass(
    net: nn.Module, x: Tensor, bounds: _Bounds, which: Tensor, slopes: dict[int, Tensor] | None = None
) -> tuple[Tensor | _Reached, Tensor, _Relaxation]:
    """Call the network on the given samples, up to the first activation without bounds."""
    with torch.enable_grad():
        leaf = x[which].detach().requires_grad_(True)
        relaxation = _Relaxation(bounds, which, slopes)
        try:
            with relaxation:
                out: Tensor | _Reached = net(leaf)
        except _Reached as reached:
            out = reached
    value = out.value if isinstance(out, _Reached) else out
    if len(value) != len(which):
        raise NotCertifiableError("it changes the number of samples in a batch")
    if not value.requires_grad:
        raise NotCertifiableError("its output does not depend on its input by supported operations")
    _check_graph(value)
    return out, leaf, relaxation


def _check_graph(value: Tensor) -> None:
    """Raise an error if a value depends on the input by an operation that is neither affine nor relaxed."""
    todo, visited = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        name = node.name().split("::")[-1]
        if not _AFFINE.fullmatch(name):
            kind = re.sub("^Native|Backward[0-9]*$", "", name)
            raise NotCertifiableError(f"it has an unsupported operation ({kind})")
        if name == "NativeBatchNormBackward0" and getattr(node, "_saved_training", True):
            raise NotCertifiableError("it normalises by the image's own mean and variance")
        before = [f for f, _ in node.next_functions if f is not None]
        if name in ("MulBackward0", "DivBackward0", "MmBackward0", "BmmBackward0") and len(before) > 1:
            raise NotCertifiableError("it multiplies or divides values by one another, as attention does")
        if name == "DivBackward0" and node.next_functions[0][0] is None:
            raise NotCertifiableError("it divides by a value that depends on its input")
        if name in ("ConvolutionBackward0", "AddmmBackward0") and len(before) > 1:
            raise NotCertifiableError("its weights depend on its input")
        todo.extend(before)


def _lowest(
    out: Tensor,
    seed: Tensor,
    leaf: Tensor,
    relaxation: _Relaxation,
    threat: ThreatModel,
    again: bool,
    differentiate: bool = False,
) -> Tensor:
    """Return a lower bound (R,) of ``seed`` · ``out``, by row, over the ball around the image of the row.

    Args:
        out: network output of each row.
        seed: coefficients of each row.
        leaf: images of the rows.
        relaxation: the relaxation of the call.
        threat: the ball.
        again: whether another bound of the same pass follows.
        differentiate: whether the bound is differentiated with respect to the slopes.
    """
    relaxation.shifts.clear()
    value = (seed * out).flatten(1).sum(1)
    (lean,) = torch.autograd.grad(value.sum(), leaf, retain_graph=again or differentiate, create_graph=differentiate)
    bound = value.detach() + (lean * _worst_move(lean.detach(), leaf.detach(), threat)).flatten(1).sum(1)
    for shift in relaxation.shifts:
        bound = bound + shift
    return bound


def _worst_move(lean: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return the perturbation (R, …) in ball and box that minimises a linear function."""
    low, high = threat.box
    size = lean.abs().flatten(1)
    room = torch.where(lean > 0, x - low, high - x).clamp(0, threat.eps).flatten(1)
    if threat.norm == "l1":
        order = size.argsort(1, descending=True)
        ready = room.gather(1, order)
        budget = (threat.eps - (ready.cumsum(1) - ready)).clamp_min(0)
        room = torch.zeros_like(room).scatter(1, order, torch.minimum(ready, budget))
    elif threat.norm == "l2":
        room = torch.minimum(room, _pace(size, room, threat.eps) * size)
    return -lean.sign() * room.view_as(lean)


def _pace(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Return the factor (R, 1) of ``size`` at which the steps, each clipped at its ``room``, have L2 norm eps."""
    reach = torch.where(size > 0, room / size.clamp_min(1e-300), torch.inf)
    reach, order = reach.sort(1)
    full = (room.gather(1, order) ** 2).cumsum(1)
    full = torch.cat([torch.zeros_like(full[:, :1]), full[:, :-1]], 1)  # of the steps clipped before
    rest = (size.gather(1, order) ** 2).flip(1).cumsum(1).flip(1)
    pace = ((eps**2 - full).clamp_min(0) / rest.clamp_min(1e-300)).sqrt()
    ends = pace <= reach  # the first step that is not clipped
    first = ends.to(torch.int8).argmax(1, keepdim=True)
    return torch.where(ends.any(1, keepdim=True), pace.gather(1, first), torch.inf).clamp_max(1e300)


def _bounded(
    net: nn.Module, x: Tensor, bounds: _Bounds, z: Tensor, threat: ThreatModel, rows: int
) -> tuple[Tensor, Tensor]:
    """Return bounds (B, …) of the input ``z`` of the next activation."""
    count, units = len(x), z[0].numel()
    sample = torch.arange(count, device=x.device).repeat_interleave(units)
    unit = torch.arange(units, device=x.device).repeat(count)
    ends: list[list[Tensor]] = [[], []]
    for start in range(0, len(sample), rows):
        which, one = sample[start : start + rows], unit[start : start + rows]
        reached, leaf, relaxation = _pass(net, x, bounds, which)
        out = reached.value if isinstance(reached, _Reached) else reached
        for sign, kept in zip((1.0, -1.0), ends, strict=True):
            seed = torch.zeros_like(out).flatten(1).scatter_(1, one[:, None], sign).view_as(out)
            kept.append(sign * _lowest(out, seed, leaf, relaxation, threat, again=sign > 0))
    low, high = (torch.cat(kept).view(z.shape) for kept in ends)
    return low, torch.maximum(low, high)


def _final(
    net: nn.Module, x: Tensor, y: Tensor, classes: int, bounds: _Bounds, threat: ThreatModel, steps: int
) -> Tensor:
    """Return a lower bound (B,) of the margin of the true class."""
    everyone = torch.arange(len(x), device=x.device)
    which = everyone.repeat_interleave(classes)
    other = torch.arange(classes, device=x.device).repeat(len(x))
    which, other = which[other != y[which]], other[other != y[which]]

    def bound(rows: Tensor, slopes: dict[int, Tensor] | None) -> Tensor:
        out, leaf, relaxation = _pass(net, x, bounds, which[rows], slopes)
        assert isinstance(out, Tensor)
        seed = torch.zeros_like(out).scatter_(1, y[which[rows]][:, None], 1.0).scatter_(1, other[rows][:, None], -1.0)
        return _lowest(out, seed, leaf, relaxation, threat, again=False, differentiate=slopes is not None)

    best = bound(torch.arange(len(which), device=x.device), None)
    open_rows = (best <= 0).nonzero()[:, 0]
    slopes = {
        k: (high > -low).to(low)[which[open_rows]].clone().requires_grad_(True)
        for k, (low, high, bent) in enumerate(zip(bounds.below, bounds.above, bounds.bent, strict=True))
        if bent
    }
    if not slopes or not len(open_rows):
        return best.view(len(x), -1).amin(1)
    optimiser = torch.optim.Adam(slopes.values(), lr=_RATE)
    for _ in range(steps):
        now = bound(open_rows, slopes)
        best[open_rows] = torch.maximum(best[open_rows], now.detach())
        grads = torch.autograd.grad(-now.sum(), list(slopes.values()), allow_unused=True)
        for slope, grad in zip(slopes.values(), grads, strict=True):
            slope.grad = grad
        optimiser.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return best.view(len(x), -1).amin(1)


def _check_bounds(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, bounds: np.ndarray) -> None:
    """Raise an error if the margin on an image of a ball is below its bound."""
    rng = SampleRNG(0, range(len(x)))
    floor = torch.from_numpy(bounds).to(x)
    for trial in range(_TRIALS + 1):
        with torch.no_grad():
            logits = net(threat.random_start(x, rng) if trial else x)
            margin = -Objective.untargeted(y, "margin").value(logits)
        if bool((margin < floor).any()):
            raise NotCertifiableError(
                "its margin on an image of the ball is below the bound: not all of its operations were detected"
            )


def certify_tables(subject: Subject, tables: dict[str, Any]) -> None:
    """Add certified accuracy to the tables of attacks, once per budget, for the samples that remain robust.

    If certification is not possible, a note gives the reason.
    """
    outcomes, robustness = tables["outcomes"], tables["robustness"]
    x, y, progress = subject.x, subject.y, subject.context.progress
    threats = dict.fromkeys(a.threat for a in subject.attacks.values())
    for threat in threats:
        own = (outcomes["norm"] == threat.norm) & (outcomes["eps"] == threat.eps)
        here = (robustness["norm"] == threat.norm) & (robustness["eps"] == threat.eps) & (robustness["status"] == "ok")
        if not own.any():
            continue
        least_right = outcomes[own].groupby("index")["right"].min().reindex(range(len(x))).to_numpy()
        remaining = np.flatnonzero((least_right > 0) & (subject.clean.right > 0))
        margin = np.full(len(x), np.nan)
        try:
            for start in range(0, len(remaining), _KEPT):
                rows = remaining[start : start + _KEPT]
                kept = subject.context.parts.at("certified", threat.norm, f"{threat.eps:.9g}", str(start))
                known = kept.read()
                if known is None:
                    known = {"margin": certify(subject.model, x[rows], y[rows], threat, device=subject.device)}
                    kept.write(known)
                margin[rows] = known["margin"]
                if progress:
                    done = min(start + _KEPT, len(remaining))
                    progress("certifying", done, len(remaining), f"{threat.norm} {eps_text(threat.eps)}")
        except NotCertifiableError as error:
            reason = str(error).rstrip(".")
            notes = robustness.loc[here, "note"]
            robustness.loc[here, "note"] = notes.map(
                lambda note, reason=reason: f"{note}; {reason}" if note else reason
            )
            continue
        outcomes.loc[own, "certified_margin"] = margin[outcomes.loc[own, "index"]]
        robustness.loc[here, "certified"] = int((margin > 0).sum())
        robustness.loc[here, "certified_accuracy"] = float((margin > 0).mean())
