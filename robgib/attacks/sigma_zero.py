"""Sigma-zero: the fewest pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.nearest import Adam, Nearest, NearestAttack, cosine, lead_gradient
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, Positive

__all__ = [
    "SigmaZero",
]

_LAST = 0.1  # of the first step: the last one
_TRIM_STEPS = 5  # of the pixels that stay


@dataclass(frozen=True)
class SigmaZero(NearestAttack):
    """Descent of the margin and of a smooth count of changed pixels (Cinà et al. 2025, algorithm 1).

    A pixel d counts as d² / (d² + sigma). Small changes are set to 0 after each step, below a threshold that rises
    while the image fools and else falls. A pixel is one number of the image: a colour has three. As in the authors'
    code, steps are Adam's on gradients scaled to a largest entry of 1, and their size falls to a tenth; the paper's
    algorithm takes the scaled gradient itself. Here the nearest image is trimmed afterwards: a quarter of its changed
    pixels are put back, those that matter least, and the others take five sign steps; where the image does not fool
    then, half as many are tried, down to single pixels. Beside it the pixels of steepest slope are tried at once.

    Fields:
        steps: gradient steps.
        rate: first step of a pixel.
        sigma: how small a change counts in part.
        threshold: first threshold.
        threshold_rate: by how much of the step it rises and falls.
        trims: how often pixels are put back, at most; about 14 passes each.
    """

    norms: ClassVar[tuple[str, ...]] = ("l0",)
    pooled: ClassVar[bool] = True
    steps: Count = 1000
    rate: Positive = 1.0
    sigma: Positive = 1e-3
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    threshold_rate: Positive = 0.01
    trims: Annotated[int, Field(ge=0)] = 30

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        goal = Objective.untargeted(y, "margin")
        nearest, pixels = Nearest(x, self.norm), x[:1].numel()
        moved, adam = torch.zeros_like(x), Adam(x)
        threshold = torch.full_like(nearest.size, self.threshold)
        for step in range(self.steps):
            at = (x + moved).clamp(*self.threat.box)
            _, gradient, fooled = lead_gradient(model, at, goal)
            nearest.offer(at, fooled)
            counted = 2 * self.sigma * moved / (moved.square() + self.sigma).square() / pixels
            # The hinge pulls until the image counts: at a tie it is 0 already, and the true class may still win.
            gradient = gradient * per_sample(~fooled, x) + counted
            largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny)
            direction, curve = adam.moments(gradient / per_sample(largest, x))
            rate = cosine(step, self.steps, self.rate, _LAST * self.rate)
            moved = (x + moved - rate * direction / curve).clamp(*self.threat.box) - x
            threshold = (threshold + self.threshold_rate * rate * torch.where(fooled, 1, -1)).clamp(0, 1)
            moved = torch.where(moved.abs() < per_sample(threshold, x), 0, moved)
        self._trim(model, x, goal, nearest)
        return nearest.image

    def _trim(self, model: nn.Module, x: Tensor, goal: Objective, nearest: Nearest) -> None:
        """Put changed pixels of the nearest images back: a quarter of them, those that cost least, then fewer."""
        low, high = self.threat.box
        needed = torch.zeros_like(x, dtype=torch.bool)  # pixels without which an image did not fool
        share = torch.where(torch.isfinite(nearest.size), nearest.size / 4, 1).floor().clamp_min(1)
        for _ in range(self.trims):
            image, size = nearest.image, nearest.size
            changed = (image != x) & ~needed
            trying = torch.isfinite(size) & (size > 1) & changed.flatten(1).any(1)
            if not bool(trying.any()):
                return
            _, gradient, _ = lead_gradient(model, image, goal)
            # Another choice of as many pixels as shall stay: those that move the lead most, all the way.
            room = torch.where(gradient < 0, high - x, x - low)
            chosen = _least(-room * gradient.abs(), (size - share).clamp_min(1))
            other = torch.where(chosen, torch.where(gradient < 0, high, low), x)
            with torch.no_grad():
                nearest.offer(other, goal.criterion(model(other)) & trying)
            cost = torch.where(changed, gradient * (x - image), torch.inf)
            back = _least(cost, torch.minimum(share, size - 1)) & changed
            free, at = (image != x) & ~back, torch.where(back, x, image)
            for step in range(_TRIM_STEPS):
                _, gradient, fooled = lead_gradient(model, at, goal)
                nearest.offer(at, fooled & trying)
                moved = (at - (1 - step / _TRIM_STEPS) * gradient.sign() * free).clamp(*self.threat.box)
                at = torch.where(per_sample(fooled, x), at, moved)
            with torch.no_grad():
                nearest.offer(at, goal.criterion(model(at)) & trying)
            failed = nearest.size == size
            needed |= back & per_sample(failed & (share == 1), x)
            share = torch.where(failed, share / 2, share).floor().clamp_min(1)


def _least(values: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` (N,) least of each sample's values (N, …), of equal ones the first."""
    rank = values.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < count[:, None]).view_as(values)
