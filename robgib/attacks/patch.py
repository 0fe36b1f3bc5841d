"""A square patch of any content, whose place and content are optimised for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.base import Attack, objective_gradient, register_attack
from robgib.attacks.carried import carried
from robgib.attacks.objective import Loss, Objective, is_stochastic
from robgib.errors import RobGIBError
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = ["Patch"]


@register_attack("Patch")
@dataclass(frozen=True)
class Patch(Attack):
    """Replaces one square of each image by optimised content (Brown et al. 2017; Karmon et al. 2018).

    Places are tried in the order of the loss gradient that their square holds on the clean image, every second one at
    random. At each place sign steps of decreasing size optimise the content in the box, from uniformly random content.
    ``eps`` is the side of the square in pixels. An image of one row has a patch of one row.

    Fields:
        places: number of places that are tried.
        steps: gradient steps at each place.
    """

    norms: ClassVar[tuple[str, ...]] = ("patch",)
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    places: Count = 10
    steps: Count = 40
    loss: Loss = "ce"

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return 1 + self.places * self.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if x.ndim not in (2, 4):
            raise RobGIBError(f"patch needs images of shape (N, C, H, W), not {tuple(x.shape)}.")
        goal = Objective.untargeted(y, self.loss, is_stochastic(model))
        gradient, logits = objective_gradient(model, x, goal)
        salience = self._salience(gradient)
        result, best = x.clone(), goal.value(logits)
        remaining = (~goal.criterion(logits)).nonzero().squeeze(1)
        for place in range(self.places):
            if not len(remaining):
                break
            draws = rng.select(remaining)
            inside, salience = self._square(x[remaining], salience, remaining, draws, at_random=place % 2 == 1)
            images, value, fooled = self._fill(model, x[remaining], inside, goal.select(remaining), draws)
            better = fooled | (value > best[remaining])
            result[remaining[better]], best[remaining[better]] = images[better], value[better]
            remaining = remaining[~fooled]
        return result

    def _sides(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of the patch, which the image bounds."""
        height, width = (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, x.shape[1])
        return min(int(self.eps), height), min(int(self.eps), width)

    def _salience(self, gradient: Tensor) -> Tensor:
        """Return the sum of absolute gradients (N, rows, columns) in the square at each place."""
        planes = gradient.abs().sum(1) if gradient.ndim == 4 else gradient.abs()[:, None]
        sides = self._sides(gradient)
        return F.avg_pool2d(planes[:, None], sides, stride=1)[:, 0]

    def _square(
        self, x: Tensor, salience: Tensor, rows: Tensor, rng: SampleRNG, at_random: bool
    ) -> tuple[Tensor, Tensor]:
        """Return which pixels (n, H, W) the next square of some rows covers, and the salience of the other places."""
        here = salience[rows]
        columns = here.shape[2]
        place = here.flatten(1).argmax(1)
        if at_random:
            place = rng.integers(here[0].numel(), (1,), x.device).squeeze(1)
        top, left = place // columns, place % columns
        high, wide = self._sides(x)
        height, width = here.shape[1] + high - 1, columns + wide - 1
        inside = _between(top, high, height)[:, :, None] & _between(left, wide, width)[:, None, :]
        # Squares that overlap the tried one by more than half of a side come last.
        near = _near(top, high, here.shape[1])[:, :, None] & _near(left, wide, columns)[:, None, :]
        salience = salience.clone()
        salience[rows] = torch.where(near, here - here.flatten(1).amax(1)[:, None, None] - 1, here)
        return inside, salience

    def _fill(
        self, model: nn.Module, x: Tensor, inside: Tensor, goal: Objective, rng: SampleRNG
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Optimise the content of squares; return the best images (n, …), their objective and whether they fool."""
        low, high = self.threat.box
        mask = (inside[:, None] if x.ndim == 4 else inside[:, 0]).expand_as(x)
        allowed = carried(x, "mask")
        mask = mask if allowed is None else mask & allowed
        start = low + (high - low) * rng.uniform(tuple(x.shape[1:]), x.device).to(x.dtype)
        at, best = torch.where(mask, start, x), x.clone()
        value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        alive = torch.arange(len(x), device=x.device)
        for step in range(self.steps + 1):
            aim = goal.select(alive)
            if step < self.steps:
                gradient, logits = objective_gradient(model, at[alive], aim)
            else:
                with torch.no_grad():
                    logits = model(at[alive])
            now, done = aim.value(logits), aim.criterion(logits)
            better = done | (now > value[alive])
            best[alive[better]], value[alive[better]] = at[alive[better]], now[better]
            fooled[alive[done]] = True
            if step == self.steps or bool(done.all()):
                break
            alive, gradient = alive[~done], gradient[~done]
            size = (high - low) * 0.25 * (1 - step / self.steps)
            moved = (at[alive] + size * gradient.sign()).clamp(low, high)
            at[alive] = torch.where(mask[alive], moved, x[alive])
        return best, value, fooled


def _between(first: Tensor, length: int, count: int) -> Tensor:
    """Return which places (n, count) lie in the ``length`` places from ``first`` (n,) on."""
    place = torch.arange(count, device=first.device)
    return (place >= first[:, None]) & (place < first[:, None] + length)


def _near(first: Tensor, length: int, count: int) -> Tensor:
    """Return which places (n, count) are at most half of ``length`` from ``first`` (n,)."""
    place = torch.arange(count, device=first.device)
    return (place - first[:, None]).abs() <= length // 2
