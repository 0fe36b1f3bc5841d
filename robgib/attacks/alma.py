"""The augmented Lagrangian attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import objective_gradient, register_attack
from robgib.attacks.nearest import Nearest, NearestAttack
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, Positive

__all__ = [
    "ALMA",
]

_MULTIPLIER = (1e-6, 1e12)  # range of the multiplier
_ENOUGH = 1e-4  # required margin of a wrong class, in units of the DLR loss


@register_attack("ALMA")
@dataclass(frozen=True)
class ALMA(NearestAttack):
    """Minimum distance under the constraint of misclassification, by an augmented Lagrangian (Rony et al. 2021).

    It follows algorithm 1. The constraint is the DLR loss (the margin for two classes), with the penalty P2. The
    multiplier is a moving average of the slope of the penalty. The weight of the penalty grows if the constraint does
    not improve. The optimiser is RMSprop with momentum; its rate decays from the first adversarial image on.

    Fields:
        steps: gradient steps.
        rate: initial learning rate.
        rate_last: final learning rate, as a share of the initial one.
        check: number of steps between updates of the penalty weight.
        better: factor by which the constraint must improve between updates.
        growth: growth factor of the penalty weight.
        mean: decay of the moving averages of multiplier and gradients.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2", "l1")
    pooled: ClassVar[bool] = True
    steps: Count = 1000
    rate: Positive = 0.1
    rate_last: Annotated[float, Field(gt=0, le=1)] = 0.01
    check: Count = 10
    better: Annotated[float, Field(gt=0, lt=1)] = 0.95
    growth: Annotated[float, Field(gt=1)] = 1.2
    mean: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        loss = "dlr" if logits.shape[1] > 2 else "margin"
        goal = Objective.untargeted(y, loss)
        nearest = Nearest(x, self.norm)
        moved, square, momentum = torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(x)
        multiplier, weight = torch.ones_like(nearest.size), torch.ones_like(nearest.size)
        before = multiplier
        met = torch.full_like(nearest.size, self.steps + 1)  # first step at which the sample was fooled
        for step in range(self.steps):
            at = x + moved
            slope, logits = objective_gradient(model, at, goal)
            fooled = wrong_by(logits, goal.labels) > 0
            nearest.offer(at, fooled)
            met = torch.where(fooled & (met > step), step, met)
            # Positive while the constraint is violated.
            broken = _ENOUGH - goal.value(logits)
            if step == 0:
                before = broken
            elif (step + 1) % self.check == 0:
                worse = (met > step) & (broken >= self.better * before)
                weight, before = torch.where(worse, self.growth * weight, weight), broken
            if step:
                pressed = _penalty_slope(broken, weight, multiplier)
                multiplier = (self.mean * multiplier + (1 - self.mean) * pressed).clamp(*_MULTIPLIER)
            gradient = self._pull(moved) - per_sample(_penalty_slope(broken, weight, multiplier), x) * slope
            # The rate decays from the first step at which the sample was fooled.
            far = (step - met).clamp_min(0) / (self.steps - met)
            rate = self.rate * self.rate_last**far
            square = self.mean * square + (1 - self.mean) * gradient.square()
            momentum = self.mean * momentum + gradient / (square.sqrt() + 1e-8)
            moved = moved - per_sample(rate, x) * momentum
            moved = (x + moved).clamp(*self.threat.box) - x
        return nearest.image

    def _pull(self, moved: Tensor) -> Tensor:
        """Return the gradient (N, …) of the distance."""
        if self.norm == "l1":
            return moved.sign()
        length = torch.linalg.vector_norm(moved.flatten(1), dim=1).clamp_min(1e-12)
        return moved / per_sample(length, moved)


def _penalty_slope(broken: Tensor, weight: Tensor, multiplier: Tensor) -> Tensor:
    """Return the slope (N,) of the penalty P2 (Birgin et al. 2005) with respect to the constraint.

    P2 is m y + m w y² + w² y³ / 6 for y >= 0 and m y / (1 - w y) below.
    """
    above = multiplier + 2 * multiplier * weight * broken + weight.square() * broken.square() / 2
    below = multiplier / (1 - weight * broken.clamp_max(0)).square()
    return torch.where(broken >= 0, above, below)
