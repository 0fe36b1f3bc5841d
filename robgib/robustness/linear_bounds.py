"""Linear bounds of a network on a ball, by backward propagation through relaxed activations (CROWN)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robgib.attacks.threat_model import ThreatModel
from robgib.errors import RobGIBError

__all__ = [
    "Bounds",
    "NotCertifiableError",
    "Pooled",
    "Reached",
    "bounds_of_inputs",
    "lowest",
    "pass_through",
    "worst_move",
]

_BISECTIONS = 40

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
class Bounds:
    """Lower and upper bounds (B, …) of the input of each activation, in call order."""

    below: list[Tensor] = field(default_factory=list)
    above: list[Tensor] = field(default_factory=list)
    bent: list[bool] = field(default_factory=list)  # whether it is a ReLU, whose lower line has a free slope
    late: frozenset[int] = frozenset()  # calls of ReLU that are moved behind the pooling that follows


class Reached(Exception):
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
    def forward(
        ctx: Any,
        z: Tensor,
        value: Tensor,
        lines: tuple[Tensor, ...],
        shifts: list[Tensor],
        pull: Tensor | None = None,
        gaps: list[Tensor] | None = None,
    ) -> Tensor:
        ctx.kept = (z.detach(), value, lines, shifts, pull, gaps)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, value, (slope_low, shift_low, slope_high, shift_high), shifts, pull, gaps = ctx.kept
        up, down = grads[0].clamp_min(0), grads[0].clamp_max(0)
        inner = up * slope_low + down * slope_high
        if pull is not None:
            inner = inner + pull
        if gaps is not None:
            gaps.append((up * shift_low - down * shift_high).detach())
        # Affine operations keep the sum of coefficient times value up to their constant. This term corrects for the
        # activation.
        constant = up * shift_low + down * shift_high - grads[0] * value + inner * z
        shifts.append(constant.flatten(1).sum(1))
        return inner, None, None, None, None, None


class _Relaxation(TorchFunctionMode):
    """Replaces the activations of a network by relaxed ones during a call.

    Args:
        bounds: known bounds of the activations' inputs; the pass ends at the first unknown one.
        which: sample index (R,) of each row.
        slopes: for each ReLU, by number, the slope (R, …) of its lower line where the sign of its input is unknown;
            None takes 0 or 1, whichever gives the smaller area between the lines.
        pulls: for each ReLU, by number, a multiple (R, …) of its input that is added to the bounded function. A
            negative multiple where the input is known to be positive, and the other way round, keeps the bound valid
            (Wang et al. 2021).
    """

    def __init__(
        self,
        bounds: Bounds,
        which: Tensor,
        slopes: dict[int, Tensor] | None = None,
        pulls: dict[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.bounds, self.which, self.slopes, self.pulls = bounds, which, slopes, pulls or {}
        self.gaps: dict[int, list[Tensor]] = {}
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
            raise Reached(z, bent)
        return number, self.bounds.below[number][self.which], self.bounds.above[number][self.which]

    def _relu(self, z: Tensor) -> Tensor:
        number, low, high = self._next(z, bent=True)
        on, off = low >= 0, high <= 0
        nothing = torch.zeros_like(low)
        upper = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low).clamp_min(1e-30)))
        shift = torch.where(on | off, nothing, -low * upper)
        free = (high > -low).to(low) if self.slopes is None else self.slopes[number]
        lower = torch.where(on, 1.0, torch.where(off, 0.0, free))
        lines, gaps = (lower, nothing, upper, shift), self.gaps.setdefault(number, [])
        value: Tensor = _Relaxed.apply(  # type: ignore[no-untyped-call]
            z, z.detach().clamp_min(0), lines, self.shifts, self.pulls.get(number), gaps
        )
        return value

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


class Pooled(TorchFunctionMode):
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


def pass_through(
    net: nn.Module,
    x: Tensor,
    bounds: Bounds,
    which: Tensor,
    slopes: dict[int, Tensor] | None = None,
    pulls: dict[int, Tensor] | None = None,
) -> tuple[Tensor | Reached, Tensor, _Relaxation]:
    """Call the network on the given samples, up to the first activation without bounds."""
    with torch.enable_grad():
        leaf = x[which].detach().requires_grad_(True)
        relaxation = _Relaxation(bounds, which, slopes, pulls)
        try:
            with relaxation:
                out: Tensor | Reached = net(leaf)
        except Reached as reached:
            out = reached
    value = out.value if isinstance(out, Reached) else out
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


def lowest(
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
    bound = value.detach() + (lean * worst_move(lean.detach(), leaf.detach(), threat)).flatten(1).sum(1)
    for shift in relaxation.shifts:
        bound = bound + shift
    return bound


def worst_move(lean: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
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


def bounds_of_inputs(
    net: nn.Module, x: Tensor, bounds: Bounds, z: Tensor, threat: ThreatModel, rows: int
) -> tuple[Tensor, Tensor]:
    """Return bounds (B, …) of the input ``z`` of the next activation."""
    count, units = len(x), z[0].numel()
    sample = torch.arange(count, device=x.device).repeat_interleave(units)
    unit = torch.arange(units, device=x.device).repeat(count)
    ends: list[list[Tensor]] = [[], []]
    for start in range(0, len(sample), rows):
        which, one = sample[start : start + rows], unit[start : start + rows]
        reached, leaf, relaxation = pass_through(net, x, bounds, which)
        out = reached.value if isinstance(reached, Reached) else reached
        for sign, kept in zip((1.0, -1.0), ends, strict=True):
            seed = torch.zeros_like(out).flatten(1).scatter_(1, one[:, None], sign).view_as(out)
            kept.append(sign * lowest(out, seed, leaf, relaxation, threat, again=sign > 0))
    low, high = (torch.cat(kept).view(z.shape) for kept in ends)
    return low, torch.maximum(low, high)
