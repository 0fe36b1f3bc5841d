"""What no attack can do: samples that are proven robust, by linear bounds on the network (CROWN)."""

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
from robgib.robustness.attacking import Subject
from robgib.runtime import SampleRNG, network_faults

__all__ = ["NotCertifiableError", "certify", "certify_tables"]

UNITS = 60_000
"""Units of activations, counted over the whole network, above which bounds are not tried."""
_ROOM = 2**26  # numbers held at once
_ROUNDING = 1e-5  # of the largest logit: what float32 may be off by
_RATE = 0.2  # of Adam, for slopes in [0, 1]
_TRIALS = 4  # random images of each ball at which bounds are held against the network itself
_BISECTIONS = 40
_TOGETHER = 8  # samples at once
_KEPT = 24  # samples whose bounds are kept together, should the work be interrupted

# What the gradient of an affine operation is called. Whatever else is found in a network's graph is no ground for a
# bound: a gradient that was written by hand may be anything.
_AFFINE = re.compile(
    "AccumulateGrad|CopyBackwards|_RelaxedBackward|("
    "Add|Sub|Rsub|Neg|Mul|Div|Addmm|Mm|Bmm|Convolution|NativeBatchNorm|View|UnsafeView|ReshapeAlias|Transpose|T|"
    "Permute|Expand|Slice|Select|Squeeze|Unsqueeze|Cat|Stack|Index|Clone|Alias|ToCopy|Mean|Sum|AvgPool2D|"
    "(Mkldnn)?AdaptiveAvgPool2D|ConstantPadNd|ReflectionPad2D|ReplicationPad2D|PixelShuffle|PixelUnshuffle|"
    "UpsampleNearest2D|UpsampleBilinear2D|AsStrided|Split|Unbind|Repeat)Backward[0-9]"
)
# What tells values to Python, and what makes tensors of another's shape only.
_TELL = re.compile(
    "item|tolist|numpy|__(bool|float|int|index|contains)__|equal|allclose|is_nonzero|register_hook|detach_"
)
_BLANK = re.compile("(zeros|ones|full|empty)_like|new_(zeros|ones|full|empty)")


class NotCertifiableError(RobGIBError):
    """Nothing can be proven of this network, or under this threat model; the message says why."""


@dataclass
class _Bounds:
    """Lower and upper bounds (B, …) of what goes into each activation, in the order in which they are called."""

    below: list[Tensor] = field(default_factory=list)
    above: list[Tensor] = field(default_factory=list)
    bent: list[bool] = field(default_factory=list)  # whether it is a ReLU, whose lower line may have any slope
    late: frozenset[int] = frozenset()  # calls of ReLU that are as well made after the pooling that follows


class _Reached(Exception):
    """Ends a pass at the activation whose input ``value`` was asked for; ``bent``: it is a ReLU."""

    def __init__(self, value: Tensor, bent: bool) -> None:
        super().__init__()
        self.value, self.bent = value, bent


class _Relaxed(torch.autograd.Function):
    """An activation that takes lines below and above it for itself on the way back.

    What comes back is no gradient but the coefficients of a linear function that is nowhere above what the rest of the
    network makes of its input (Zhang et al. 2018, theorem 3.2); its constant is added to ``shifts``.
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
        # All that is affine keeps the sum of coefficient times value but for its constant; here it is made up for.
        constant = up * shift_low + down * shift_high - grads[0] * value + inner * z
        shifts.append(constant.flatten(1).sum(1))
        return inner, None, None, None


class _Relaxation(TorchFunctionMode):
    """Puts relaxed activations in the place of a network's own while it is called.

    Args:
        bounds: of the activations' inputs as far as they are known; at the first that is not the pass ends.
        which: sample (R,) that each row is of.
        slopes: for each ReLU, by number, the slope (R, …) of the line below it where it may be on either side; None
            takes 0 or 1, whichever leaves less between the lines.
    """

    def __init__(self, bounds: _Bounds, which: Tensor, slopes: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self.bounds, self.which, self.slopes = bounds, which, slopes
        self.shifts: list[Tensor] = []
        self.count = self.calls = 0
        self.waiting: list[Tensor] = []  # for a ReLU after their pooling

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
        untold = f"it uses values of its own where no gradient follows them ({name})"
        if _TELL.fullmatch(name):
            raise NotCertifiableError(untold)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in (torch.float16, torch.bfloat16):
            raise NotCertifiableError("it computes in half precision, whose rounding no bound allows for")
        if isinstance(out, Tensor) and not out.requires_grad and not _BLANK.fullmatch(name):
            raise NotCertifiableError(untold)
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
    """Notes which calls of ReLU feed max pooling and nothing else.

    The two commute, and bounds are the tighter the fewer lines are drawn.
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
    """All tensors among values, however nested."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _flag(args: Any, kwargs: Any, place: int, name: str) -> bool:
    return bool(args[place] if len(args) > place else kwargs.get(name, False))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _in_place(old: Tensor, new: Tensor, asked: bool) -> Tensor:
    return old.copy_(new) if asked else new


def _line_below(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and constant of a line below a function that bends up on the left of 0 and down on its right."""
    width = high - low
    secant = torch.where(width > 1e-9, (function(high) - function(low)) / width.clamp_min(1e-9), slope(high))
    # On the right the secant. Elsewhere a tangent: at the middle on the left, else through the upper end, if it touches
    # within the interval; what is found by halving stays on the safe side, where the tangent passes below that end.
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
    # An interval of a point or two is no place for a secant: its slope is rounding.
    return lean, torch.minimum(function(through) - lean * through, function(low) - lean * low)


def _mirrored(
    function: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    name: str,
) -> tuple[Tensor, Tensor]:
    """The line above: that below, turned about the function's middle."""
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
    """Bound from below, for each sample, the true class's lead over all others on every image of its ball.

    Every activation's input is bounded by linear functions of the image, traced back from there through all that comes
    before it (CROWN: Zhang et al. 2018); for the lead itself the slopes below ReLUs are improved by ascent (Xu et al.
    2021, with the inner bounds fixed). Networks of affine layers, ReLU, leaky ReLU, tanh, sigmoid and max pooling, in
    whatever order and with shortcuts; the ball's part in the box counts alone. The sums are float64's, and
    a hundred-thousandth of the largest logit is taken off for the rounding of float32.

    Args:
        model: the classifier, made ready by :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        threat: the ball, of a convex norm.
        steps: of the ascent.
        device: where the model is.

    Returns:
        Bounds (N,) in logits. Above 0 the sample is proven robust; elsewhere nothing is known.

    Raises:
        NotCertifiableError: the network does other things, answers at random, is too large, or the norm is L0.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-mlp-relu")
    >>> x, y = data.test.x[:5], data.test.y[:5]
    >>> lead = certify(prepare(model, x), x, y, ThreatModel("linf", 0.01))
    >>> lead.shape, bool((lead > 0).any())
    ((5,), True)
    """
    if threat.norm not in CONVEX_NORMS:
        raise NotCertifiableError(f"nothing can be proven under {threat.norm}: its ball is not convex.")
    if model.random or model.company:
        told = "answers at random" if model.random else "answers to an image by the others of its batch"
        raise NotCertifiableError(f"nothing can be proven of a network that {told}.")
    x, y = x.to(device).double(), y.to(device)
    if not len(x):
        return np.zeros(0)
    try:
        net = copy.deepcopy(model.model).double()
        with eval_mode(net), network_faults():
            found = []
            for start in range(0, len(x), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                found.append(_leads(net, x[rows], y[rows], threat, steps))
            bounds = np.concatenate(found)
            _hold_against(net, x, y, threat, bounds)
    except NotCertifiableError as error:
        raise NotCertifiableError(f"nothing can be proven of this network: {str(error).rstrip('.')}.") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a stranger's module may say anything to float64
        raise NotCertifiableError(
            f"nothing can be proven of this network: {type(error).__name__}: {first_line(error)}"
        ) from error
    return bounds


def _leads(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int) -> np.ndarray:
    with _Pooled() as uses, torch.no_grad():
        answer = net(x)
    bounds = _Bounds(late=frozenset(uses.pooled - uses.elsewhere))
    held = x[0].numel()
    while True:
        everyone = torch.arange(len(x), device=x.device)
        reached = _pass(net, x, bounds, everyone)[0]
        if not isinstance(reached, _Reached):
            logits = reached
            break
        z = reached.value
        units = z[0].numel()
        held += 2 * units
        if held > 2 * UNITS:
            raise NotCertifiableError(f"it has more than {UNITS:,} units, which would take hours an image")
        low, high = _bounded(net, x, bounds, z, threat, max(1, _ROOM // (8 * held)))
        bounds.below.append(low)
        bounds.above.append(high)
        bounds.bent.append(reached.bent)
    scale = answer.abs().amax(1)
    if not torch.allclose(logits, answer, rtol=0, atol=1e-9 * float(scale.max())):
        raise NotCertifiableError("its answer is another one where its activations are replaced by their like")
    return (_final(net, x, y, logits.shape[1], bounds, threat, steps) - _ROUNDING * scale).cpu().numpy()


def _pass(
    net: nn.Module, x: Tensor, bounds: _Bounds, which: Tensor, slopes: dict[int, Tensor] | None = None
) -> tuple[Tensor | _Reached, Tensor, _Relaxation]:
    """Call the network on rows of samples, up to the first activation without bounds."""
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
        raise NotCertifiableError("it takes its batches apart")
    if not value.requires_grad:
        raise NotCertifiableError("its output does not depend on its input through operations that are known")
    _check_graph(value)
    return out, leaf, relaxation


def _check_graph(value: Tensor) -> None:
    """Raise where what leads to a value is not affine but for relaxed activations."""
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().split("::")[-1]
        if not _AFFINE.fullmatch(name):
            kind = re.sub("^Native|Backward[0-9]*$", "", name)
            raise NotCertifiableError(f"it holds an operation that has no bounds here ({kind})")
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
    climb: bool = False,
) -> Tensor:
    """Lower bound (R,) of ``seed`` · ``out``, a row each, over the ball around the row's image.

    Args:
        out: what the network gave for each row.
        seed: likewise.
        leaf: the rows' images.
        relaxation: what the network was called in.
        threat: the ball.
        again: whether another bound is taken of the same pass.
        climb: whether the bound is differentiated by the slopes.
    """
    relaxation.shifts.clear()
    value = (seed * out).flatten(1).sum(1)
    (lean,) = torch.autograd.grad(value.sum(), leaf, retain_graph=again or climb, create_graph=climb)
    bound = value.detach() + (lean * _worst_move(lean.detach(), leaf.detach(), threat)).flatten(1).sum(1)
    for shift in relaxation.shifts:
        bound = bound + shift
    return bound


def _worst_move(lean: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The move (R, …) within ball and box along which a linear function falls most."""
    low, high = threat.box
    size = lean.abs().flatten(1)
    room = torch.where(lean > 0, x - low, high - x).clamp(0, threat.eps).flatten(1)
    if threat.norm == "l1":
        order = size.argsort(1, descending=True)
        ready = room.gather(1, order)
        left = (threat.eps - (ready.cumsum(1) - ready)).clamp_min(0)
        room = torch.zeros_like(room).scatter(1, order, torch.minimum(ready, left))
    elif threat.norm == "l2":
        room = torch.minimum(room, _pace(size, room, threat.eps) * size)
    return -lean.sign() * room.view_as(lean)


def _pace(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """How far (R, 1) all go, as a multiple of their ``size``, where each ends at its ``room``, for a length of eps."""
    reach = torch.where(size > 0, room / size.clamp_min(1e-300), torch.inf)
    reach, order = reach.sort(1)
    full = (room.gather(1, order) ** 2).cumsum(1)
    full = torch.cat([torch.zeros_like(full[:, :1]), full[:, :-1]], 1)  # of those that end before
    rest = (size.gather(1, order) ** 2).flip(1).cumsum(1).flip(1)
    pace = ((eps**2 - full).clamp_min(0) / rest.clamp_min(1e-300)).sqrt()
    ends = pace <= reach  # the first one that does not come to its room
    first = ends.to(torch.int8).argmax(1, keepdim=True)
    return torch.where(ends.any(1, keepdim=True), pace.gather(1, first), torch.inf).clamp_max(1e300)


def _bounded(
    net: nn.Module, x: Tensor, bounds: _Bounds, z: Tensor, threat: ThreatModel, rows: int
) -> tuple[Tensor, Tensor]:
    """Bounds (B, …) of the next activation's input ``z``."""
    count, units = len(x), z[0].numel()
    sample = torch.arange(count, device=x.device).repeat_interleave(units)
    unit = torch.arange(units, device=x.device).repeat(count)
    found: list[list[Tensor]] = [[], []]
    for start in range(0, len(sample), rows):
        which, one = sample[start : start + rows], unit[start : start + rows]
        reached, leaf, relaxation = _pass(net, x, bounds, which)
        out = reached.value if isinstance(reached, _Reached) else reached
        for sign, kept in zip((1.0, -1.0), found, strict=True):
            seed = torch.zeros_like(out).flatten(1).scatter_(1, one[:, None], sign).view_as(out)
            kept.append(sign * _lowest(out, seed, leaf, relaxation, threat, again=sign > 0))
    low, high = (torch.cat(kept).view(z.shape) for kept in found)
    return low, torch.maximum(low, high)


def _final(
    net: nn.Module, x: Tensor, y: Tensor, classes: int, bounds: _Bounds, threat: ThreatModel, steps: int
) -> Tensor:
    """Lower bound (B,) of the true class's lead."""
    everyone = torch.arange(len(x), device=x.device)
    which = everyone.repeat_interleave(classes)
    other = torch.arange(classes, device=x.device).repeat(len(x))
    which, other = which[other != y[which]], other[other != y[which]]

    def bound(rows: Tensor, slopes: dict[int, Tensor] | None) -> Tensor:
        out, leaf, relaxation = _pass(net, x, bounds, which[rows], slopes)
        assert isinstance(out, Tensor)
        seed = torch.zeros_like(out).scatter_(1, y[which[rows]][:, None], 1.0).scatter_(1, other[rows][:, None], -1.0)
        return _lowest(out, seed, leaf, relaxation, threat, again=False, climb=slopes is not None)

    best = bound(torch.arange(len(which), device=x.device), None)
    open_rows = (best <= 0).nonzero()[:, 0]
    slopes = {
        k: (high > -low).to(low)[which[open_rows]].clone().requires_grad_(True)
        for k, (low, high, bent) in enumerate(zip(bounds.below, bounds.above, bounds.bent, strict=True))
        if bent
    }
    if not slopes or not len(open_rows):
        return best.view(len(x), -1).amin(1)
    climber = torch.optim.Adam(slopes.values(), lr=_RATE)
    for _ in range(steps):
        now = bound(open_rows, slopes)
        best[open_rows] = torch.maximum(best[open_rows], now.detach())
        grads = torch.autograd.grad(-now.sum(), list(slopes.values()), allow_unused=True)
        for slope, grad in zip(slopes.values(), grads, strict=True):
            slope.grad = grad
        climber.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return best.view(len(x), -1).amin(1)


def _hold_against(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, bounds: np.ndarray) -> None:
    """Raise where the network leads by less than its bound on some image of a ball: it does more than was seen."""
    rng = SampleRNG(0, range(len(x)))
    floor = torch.from_numpy(bounds).to(x)
    for trial in range(_TRIALS + 1):
        with torch.no_grad():
            logits = net(threat.random_start(x, rng) if trial else x)
            lead = -Objective.untargeted(y, "margin").value(logits)
        if bool((lead < floor).any()):
            raise NotCertifiableError("its answers within a ball lie below the bounds: it does more than can be seen")


def certify_tables(subject: Subject, tables: dict[str, Any]) -> None:
    """Enter in the tables of attacks which of the samples that remain robust are certified, once a budget.

    Where nothing can be proven a note beside the figures says why.
    """
    outcomes, robustness = tables["outcomes"], tables["robustness"]
    x, y, progress = subject.x, subject.y, subject.context.progress
    threats = dict.fromkeys(a.threat for a in subject.attacks.values())
    for threat in threats:
        own = (outcomes["norm"] == threat.norm) & (outcomes["eps"] == threat.eps)
        here = (robustness["norm"] == threat.norm) & (robustness["eps"] == threat.eps) & (robustness["status"] == "ok")
        if not own.any():
            continue
        left = outcomes[own].groupby("index")["right"].min().reindex(range(len(x))).to_numpy()
        remaining = np.flatnonzero((left > 0) & (subject.clean.right > 0))
        lead = np.full(len(x), np.nan)
        try:
            for start in range(0, len(remaining), _KEPT):
                rows = remaining[start : start + _KEPT]
                kept = subject.context.parts.at("certified", threat.norm, f"{threat.eps:.9g}", str(start))
                known = kept.read()
                if known is None:
                    known = {"lead": certify(subject.model, x[rows], y[rows], threat, device=subject.device)}
                    kept.write(known)
                lead[rows] = known["lead"]
                if progress:
                    done = min(start + _KEPT, len(remaining))
                    progress("certifying", done, len(remaining), f"{threat.norm} {threat.eps:.4g}")
        except NotCertifiableError as error:
            told = str(error).rstrip(".")
            notes = robustness.loc[here, "note"]
            robustness.loc[here, "note"] = notes.map(lambda note, told=told: f"{note}; {told}" if note else told)
            continue
        outcomes.loc[own, "certified_lead"] = lead[outcomes.loc[own, "index"]]
        robustness.loc[here, "certified"] = int((lead > 0).sum())
        robustness.loc[here, "certified_accuracy"] = float((lead > 0).mean())
