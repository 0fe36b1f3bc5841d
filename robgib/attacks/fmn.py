"""The fast minimum-norm attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import register_attack
from robgib.attacks.linearization import dual_norm
from robgib.attacks.nearest import Nearest, NearestAttack, cosine, margin_gradient
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import NORMS, distance, onto_ball, per_sample
from robgib.options import Count, Positive

__all__ = [
    "FMN",
]

_LAST = 0.01  # final learning rate, as a share of the initial one


@register_attack("FMN")
@dataclass(frozen=True)
class FMN(NearestAttack):
    """Margin descent in a ball whose radius converges to the boundary (Pintor et al. 2021, algorithm 1).

    Before the first adversarial image, the radius is the distance of the linearised boundary; afterwards it changes by
    a relative amount. L0 has no such estimate: there the radius starts at one pixel and grows by at least one.
    Unlike in the paper, steps are clipped to the box before the projection onto the ball. In the order of the paper,
    one digit in ten made no progress.

    Fields:
        steps: gradient steps.
        rate: initial step size (L2, pixel scale).
        gamma: initial relative change of the radius per step.
        gamma_last: final relative change.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS
    pooled: ClassVar[bool] = True
    steps: Count = 1000
    rate: Positive = 1.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    gamma_last: Annotated[float, Field(gt=0, lt=1)] = 0.001

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        # Without it the iteration would stop on the boundary.
        nudge = 2e-5 * logits.abs().amax(1)
        goal = Objective.untargeted(y, "margin")
        nearest = Nearest(x, self.norm)
        at, tiny = x, torch.finfo(x.dtype).tiny
        radius = torch.full_like(nearest.size, 1.0 if self.norm == "l0" else torch.inf)
        for step in range(self.steps):
            margin, gradient, fooled = margin_gradient(model, at, goal)
            nearest.offer(at, fooled)
            share = cosine(step, self.steps, self.gamma, self.gamma_last)
            if self.norm == "l0":
                fewer = torch.minimum((radius * (1 - share)).floor().minimum(radius - 1), nearest.size)
                radius = torch.where(fooled, fewer, (radius * (1 + share)).floor().maximum(radius + 1)).clamp_min(1)
            else:
                ahead = (margin.clamp_min(0) + nudge) / dual_norm(gradient.flatten(1), self.norm).clamp_min(tiny)
                guess = distance(at, x, self.norm) + ahead
                grown = torch.where(nearest.size.isinf(), guess, radius * (1 + share))
                radius = torch.where(fooled, torch.minimum(radius * (1 - share), nearest.size), grown)
            length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(tiny)
            rate = cosine(step, self.steps, self.rate, _LAST * self.rate)
            # Clip to the box first: the clipped part would otherwise use up the ball, and the search would stall.
            moved = (at - rate * gradient / per_sample(length, x)).clamp(*self.threat.box) - x
            at = (x + onto_ball(moved, radius, self.norm)).clamp(*self.threat.box)
        with torch.no_grad():
            nearest.offer(at, wrong_by(model(at), goal.labels) > 0)
        return nearest.image
