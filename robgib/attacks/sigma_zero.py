"""Sigma-zero, a minimum-norm attack under L0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import register_attack
from robgib.attacks.nearest import Adam, Nearest, NearestAttack, cosine, margin_gradient
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, Positive

__all__ = [
    "SigmaZero",
]

_LAST = 0.1  # final learning rate, as a share of the initial one
_TRIM_STEPS = 5  # sign steps of the pixels that remain changed


@register_attack("SigmaZero")
@dataclass(frozen=True)
class SigmaZero(NearestAttack):
    """Descent on the margin and a smooth count of changed pixels (Cinà et al. 2025, algorithm 1).

    A change d counts as d² / (d² + sigma). After each step, changes below a threshold are set to 0; the threshold
    increases while the image fools and otherwise decreases. A pixel is one value of the image: an RGB pixel has three.
    As in the code of the authors, steps use Adam on gradients scaled to a largest entry of 1, with a decaying rate; the
    algorithm of the paper uses the scaled gradient itself. Afterwards, the nearest image is trimmed: a quarter of its
    changed pixels, those of the least effect, are restored, and the others take five sign steps. If the image no longer
    fools, half as many are restored, down to single pixels. The pixels of the steepest slope are also tried at once.

    Fields:
        steps: gradient steps.
        rate: initial learning rate.
        sigma: smoothing of the count.
        threshold: initial threshold.
        threshold_rate: change of the threshold, as a share of the learning rate.
        trims: maximum number of trimming rounds, of about 14 passes each.
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
            _, gradient, fooled = margin_gradient(model, at, goal)
            nearest.offer(at, fooled)
            counted = 2 * self.sigma * moved / (moved.square() + self.sigma).square() / pixels
            # The hinge gradient applies until the image is misclassified: at a tie the hinge is 0 already.
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
        """Restore changed pixels of the nearest images: a quarter of them, those of the least cost, then fewer."""
        low, high = self.threat.box
        needed = torch.zeros_like(x, dtype=torch.bool)  # pixels without which the image does not fool
        share = torch.where(torch.isfinite(nearest.size), nearest.size / 4, 1).floor().clamp_min(1)
        for _ in range(self.trims):
            image, size = nearest.image, nearest.size
            changed = (image != x) & ~needed
            trying = torch.isfinite(size) & (size > 1) & changed.flatten(1).any(1)
            if not bool(trying.any()):
                return
            _, gradient, _ = margin_gradient(model, image, goal)
            # An alternative choice of pixels: those that change the margin most, moved to the edge of the box.
            room = torch.where(gradient < 0, high - x, x - low)
            chosen = _least(-room * gradient.abs(), (size - share).clamp_min(1))
            other = torch.where(chosen, torch.where(gradient < 0, high, low), x)
            with torch.no_grad():
                nearest.offer(other, goal.criterion(model(other)) & trying)
            cost = torch.where(changed, gradient * (x - image), torch.inf)
            back = _least(cost, torch.minimum(share, size - 1)) & changed
            free, at = (image != x) & ~back, torch.where(back, x, image)
            for step in range(_TRIM_STEPS):
                _, gradient, fooled = margin_gradient(model, at, goal)
                nearest.offer(at, fooled & trying)
                moved = (at - (1 - step / _TRIM_STEPS) * gradient.sign() * free).clamp(*self.threat.box)
                at = torch.where(per_sample(fooled, x), at, moved)
            with torch.no_grad():
                nearest.offer(at, goal.criterion(model(at)) & trying)
            failed = nearest.size == size
            needed |= back & per_sample(failed & (share == 1), x)
            share = torch.where(failed, share / 2, share).floor().clamp_min(1)


def _least(values: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` (N,) smallest values of each sample (N, …); of equal values the first."""
    rank = values.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < count[:, None]).view_as(values)
