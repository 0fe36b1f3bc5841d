"""The gradient check: finite differences of a model's margin against its autograd gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.base import objective_gradient
from robgib.attacks.carried import carried, masked
from robgib.attacks.objective import Objective
from robgib.models.adapt import seeded
from robgib.models.inference import BatchedModel, PreparedModel, eval_mode
from robgib.runtime import SampleRNG

__all__ = ["GRADIENT_IMAGES", "GRADIENT_PASSES", "GradientError", "gradient_error"]

GRADIENT_IMAGES = 16
"""Number of images of the check."""
_DIRECTIONS = 8  # random directions per image, besides that of the gradient
_NOISE = (0.01, 0.05)  # amplitudes of uniform noise, pixel scale; without any, equal pixels tie in a maximum
GRADIENT_PASSES = len(_NOISE) * (3 + 2 * (_DIRECTIONS + 1))
"""Number of passes per image of the check."""
_STEP = 2e-5  # half the distance of the two points of a difference (L2) in float64
_COARSE = 1e-2  # the same in float32, along the gradient
_PIXEL = 1e-3  # the same in float32 along a random direction, per pixel
_FINE_BOUND, _COARSE_BOUND = 0.02, 0.1  # shares of squared error that ordinary networks do not reach
_REPEATS = (2, 30)  # calls of a deterministic and of a stochastic model that must agree
_ROUNDING = 30.0  # rounding errors of a margin, in units of the largest logit's last place


@dataclass(frozen=True)
class GradientError:
    """How far autograd is from finite differences.

    Attributes:
        share: share (N,) of squared error of each image, from 0 (equal) to 1 (unrelated): the largest of two noisy
            copies, along the gradient and over random directions.
        bound: share above which the gradient of an image is not that of the function.
        repeatable: whether the same call gives the same logits; otherwise nothing was compared.
    """

    share: np.ndarray
    bound: float
    repeatable: bool = True

    @property
    def false(self) -> np.ndarray:
        """Whether the gradient of each image (N,) is not that of the function."""
        return np.asarray(self.share > self.bound)

    @property
    def explained(self) -> float:
        """Share of the squared differences that autograd explains on the median image."""
        return float(1 - np.median(self.share)) if len(self.share) else math.nan


def gradient_error(
    prepared: PreparedModel, x: Tensor, y: Tensor, *, seed: int = 0, device: torch.device | str = "cpu"
) -> GradientError:
    """Compare autograd with central differences of the margin, near some images.

    A backbone called without gradient, rounding with a straight-through gradient, or a gradient that was averaged or
    replaced gives attacks a direction that is not the function's: they then report more robust accuracy than there is.
    The differences are taken in float64 where the model can compute in it. Random directions are counted apart from the
    gradient's, since in many dimensions they see a missing part of the gradient that the gradient's own does not.

    Args:
        prepared: the model.
        x: images (N, …) in [0, 1]; the first :data:`GRADIENT_IMAGES` are used. If they carry a mask, noise and
            directions stay inside it.
        y: their labels (N,).
        seed: seed of noise, directions and of the draws of a stochastic model, which are the same in all calls.
        device: device of the model.

    Raises:
        NoGradientError: the model has no gradient.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:4], data.test.y[:4]
    >>> bool(gradient_error(prepare(model, x), x, y).false.any())
    False
    """
    x, y = x[:GRADIENT_IMAGES].to(device), y[:GRADIENT_IMAGES].to(device)
    net, dtype = _in_float64(prepared, x[:2])
    compared = _Compared(net, prepared.batch_size, seed, device)
    x = x.to(dtype)
    with eval_mode(net):
        if not compared.repeats(x, _REPEATS[prepared.random]):
            return GradientError(np.zeros(len(x)), 1.0, repeatable=False)
        rng = SampleRNG(seed, range(len(x)))
        shares = [compared.share(_noisy(x, size, rng), y, x, rng) for size in _NOISE]
        share = torch.stack(shares).amax(0)
    return GradientError(share.cpu().numpy(), _FINE_BOUND if dtype == torch.float64 else _COARSE_BOUND)


def _in_float64(prepared: PreparedModel, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    """Return a copy of the model in float64, or the model itself where no such copy computes in it."""
    try:
        net = copy.deepcopy(prepared.model).double()
        with eval_mode(net), torch.no_grad():
            ours, theirs = net(x.double()), prepared.model(x)
        if ours.dtype == torch.float64 and ours.shape == theirs.shape:
            return net, torch.float64
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a foreign network may raise anything in another precision
        pass
    return prepared.model, torch.float32


def _noisy(x: Tensor, size: float, rng: SampleRNG) -> Tensor:
    """Add uniform noise to images (N, …), turned inwards at the faces of the box, where networks may clip."""
    noise = masked(size * (2 * rng.uniform(tuple(x.shape[1:]), x.device).to(x.dtype) - 1), x)
    outside = (x + noise < 0) | (x + noise > 1)
    return torch.where(outside, x - noise, x + noise)


class _Compared:
    """A model whose calls all use the same random numbers."""

    def __init__(self, net: nn.Module, batch_size: int, seed: int, device: torch.device | str) -> None:
        self.model = BatchedModel(net, batch_size)
        self.seed, self.device = seed, device

    def same_draws(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        with ExitStack() as stack:
            stack.enter_context(seeded(self.seed, self.device))
            return call()

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.same_draws(lambda: (self.model(x),))[0]

    def repeats(self, x: Tensor, calls: int) -> bool:
        """Whether so many calls on the images ``x`` (N, …) give the same logits."""
        first = self.logits(x)
        others = (self.logits(x) for _ in range(calls - 1))
        return all(torch.allclose(first, other, rtol=1e-4, atol=1e-6, equal_nan=True) for other in others)

    def share(self, z: Tensor, y: Tensor, x: Tensor, rng: SampleRNG) -> Tensor:
        """Return shares (N,) of squared error at the images ``z`` (N, …), inside the masks that ``x`` carries."""
        goal = Objective.untargeted(y, "margin")
        gradient, logits = self.same_draws(lambda: objective_gradient(self.model, z, goal))
        slope = masked(gradient, x).flatten(1)
        rounding = _ROUNDING * torch.finfo(z.dtype).eps * logits.abs().nan_to_num(0, 0, 0).amax(1)
        fine = z.dtype == torch.float64
        own = nn.functional.normalize(slope, dim=1, eps=1e-300 if fine else 1e-30)
        along = self._error(z, goal, [own], slope, _STEP if fine else _COARSE, rounding)
        shape = tuple(z.shape[1:])
        drawn = (masked(rng.normal(shape, z.device).to(z.dtype), x).flatten(1) for _ in range(_DIRECTIONS))
        aside = [nn.functional.normalize(one, dim=1) for one in drawn]
        mask = carried(x, "mask")
        pixels = slope.shape[1] if mask is None else float(mask.flatten(1).sum(1).double().mean())
        step = _STEP if fine else _PIXEL * math.sqrt(pixels)
        return torch.maximum(along, self._error(z, goal, aside, slope, step, rounding))

    def _error(
        self, z: Tensor, goal: Objective, directions: list[Tensor], slope: Tensor, step: float, rounding: Tensor
    ) -> Tensor:
        """Return shares (N,) of squared error over some directions (N, pixels)."""
        wrong, whole = torch.zeros_like(rounding), torch.zeros_like(rounding)
        floor = rounding / step
        for direction in directions:
            move = step * direction.view_as(z)
            difference = (goal.value(self.logits(z + move)) - goal.value(self.logits(z - move))) / (2 * step)
            expected = (slope * direction).sum(1)
            gap = (difference - expected).abs()
            wrong += torch.where(gap > floor, gap, 0) ** 2
            whole += difference**2 + expected**2
        return torch.where(torch.isfinite(wrong) & (wrong > 0), wrong / whole, 0)
