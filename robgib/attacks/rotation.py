"""Rotations and translations: a grid, and gradient steps from its best points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.base import TransformAttack, objective_gradient, register_attack
from robgib.attacks.objective import Objective, is_stochastic
from robgib.errors import RobGIBError
from robgib.options import Count, Share
from robgib.runtime import SampleRNG

__all__ = ["RotationTranslation", "rotated"]

_ROUNDING = 1e-4  # of parameters, in degrees and pixels


@register_attack("RotationTranslation")
@dataclass(frozen=True)
class RotationTranslation(TransformAttack):
    """Rotates and shifts each image (Engstrom et al. 2019): a grid, then gradient steps from its best points.

    ``eps`` is the largest rotation in degrees. Pixels from outside the image are 0; values are interpolated linearly.
    The parameters of an image are its angle in degrees and its shift to the right and downwards in pixels.

    Fields:
        shift: largest shift along each axis, as a share of that side of the image.
        angles: number of angles of the grid.
        shifts: number of shifts of the grid along each axis.
        steps: gradient steps of the refinement; 0 searches the grid only.
        starts: number of points of the grid, those of the highest loss, that the steps start from.
    """

    norms: ClassVar[tuple[str, ...]] = ("rotation",)
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    shift: Share = 0.1
    angles: Count = 31
    shifts: Count = 5
    steps: NonNegativeInt = 10
    starts: Count = 3

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.angles * self.shifts**2 // 3 + self.starts * self.steps + 1

    def find_parameters(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`TransformAttack.find_parameters`."""
        if x.ndim != 4:
            raise RobGIBError(f"rotations need images of shape (N, C, H, W), not {tuple(x.shape)}.")
        goal = Objective.untargeted(y, "ce", is_stochastic(model))
        points = self._grid(x)
        value = torch.full((len(x), self.starts), -torch.inf, dtype=x.dtype, device=x.device)
        best = torch.zeros(len(x), self.starts, 3, dtype=x.dtype, device=x.device)
        remaining = torch.arange(len(x), device=x.device)
        for point in points:
            if not len(remaining):
                break
            parameters = point.expand(len(remaining), 3)
            with torch.no_grad():
                logits = model(self.transform(x[remaining], parameters))
            aim = goal.select(remaining)
            now, done = aim.value(logits), aim.criterion(logits)
            now = torch.where(done, torch.inf, now)
            lowest = value[remaining].argmin(1)
            better = now > value[remaining, lowest]
            rows, place = remaining[better], lowest[better]
            value[rows, place], best[rows, place] = now[better], point
            remaining = remaining[~done]
        for start in range(self.starts):
            if self.steps > 0 and len(remaining):
                remaining = self._refine(model, x, goal, best, value, start, remaining)
        chosen = value.argmax(1)
        return best[torch.arange(len(x), device=x.device), chosen]

    def _refine(
        self, model: nn.Module, x: Tensor, goal: Objective, best: Tensor, value: Tensor, start: int, rows: Tensor
    ) -> Tensor:
        """Improve the points ``best[rows, start]`` by gradient steps, in place; return the rows that remain."""
        limits = self._limits(x)
        at = best[rows, start].clone()
        for step in range(self.steps + 1):
            aim = goal.select(rows)
            slope, logits = self._slope(model, x[rows], at, aim)
            now, done = aim.value(logits), aim.criterion(logits)
            now = torch.where(done, torch.inf, now)
            better = now > value[rows, start]
            best[rows[better], start], value[rows[better], start] = at[better], now[better]
            if step == self.steps or bool(done.all()):
                return rows[~done]
            rows, at, slope = rows[~done], at[~done], slope[~done]
            at = at + limits / 10 * (1 - step / self.steps) * slope.sign()
            at = torch.minimum(torch.maximum(at, -limits), limits)
        return rows

    def _slope(self, model: nn.Module, x: Tensor, at: Tensor, aim: Objective) -> tuple[Tensor, Tensor]:
        """Return the gradient (n, 3) of the objective in the parameters, and the logits."""
        with torch.enable_grad():
            leaf = at.detach().requires_grad_(True)
            images = self.transform(x, leaf)
            gradient, logits = objective_gradient(model, images.detach(), aim)
            (slope,) = torch.autograd.grad((images * gradient).sum(), leaf)
        return slope.nan_to_num(0, 0, 0), logits

    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """See :meth:`TransformAttack.transform`."""
        return rotated(x, parameters)

    def sizes(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TransformAttack.sizes`; :meth:`made` judges the shifts, whose limits depend on the image."""
        angle = parameters[:, 0].abs()
        return angle, torch.isfinite(parameters).all(1) & (angle <= self.eps + _ROUNDING)

    def made(self, label: str, parameters: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TransformAttack.made`."""
        if isinstance(parameters, Tensor) and parameters.shape == (len(x), 3):
            beyond = (parameters.abs() > self._limits(x) + _ROUNDING).any(1)
            parameters = torch.where(beyond[:, None], torch.nan, parameters)
        return super().made(label, parameters, x)

    def _limits(self, x: Tensor) -> Tensor:
        """Return the largest absolute parameters (3,)."""
        return torch.tensor(
            [self.eps, self.shift * x.shape[3], self.shift * x.shape[2]], dtype=x.dtype, device=x.device
        )

    def _grid(self, x: Tensor) -> Tensor:
        """Return the points of the grid (n, 3), without the clean image, from small to large transformations."""
        limits = self._limits(x).tolist()
        axes = [
            torch.linspace(-limit, limit, count) if count > 1 and limit else torch.zeros(1)
            for limit, count in zip(limits, (self.angles, self.shifts, self.shifts), strict=True)
        ]
        points = torch.cartesian_prod(*axes).to(x)
        size = (points.abs() / torch.tensor([max(limit, 1e-9) for limit in limits]).to(x)).sum(1)
        order = size.argsort(stable=True)
        return points[order[size[order] > 0]]


def rotated(x: Tensor, parameters: Tensor) -> Tensor:
    """Rotate images (N, C, H, W) counter-clockwise about their centres and shift them.

    Args:
        x: images.
        parameters: angle in degrees, shift to the right and downwards in pixels, each (N,), as (N, 3).

    >>> x = torch.eye(3).view(1, 1, 3, 3)
    >>> rotated(x, torch.tensor([[90.0, 0.0, 0.0]]))[0, 0].round()
    tensor([[0., 0., 1.],
            [0., 1., 0.],
            [1., 0., 0.]])
    """
    height, width = x.shape[2:]
    angle = parameters[:, 0] * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    # Each output pixel is read at the inverse transformation, in coordinates from -1 to 1.
    right, down = 2 * parameters[:, 1] / width, 2 * parameters[:, 2] / height
    ratio = height / width
    rows = [
        torch.stack([cosine, -sine * ratio, -(cosine * right - sine * ratio * down)], 1),
        torch.stack([sine / ratio, cosine, -(sine / ratio * right + cosine * down)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
