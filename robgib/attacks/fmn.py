"""The fast minimum-norm attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.linearization import dual_norm
from robgib.attacks.nearest import Nearest, NearestAttack, cosine, lead_gradient
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import NORMS, distance, onto_ball, per_sample
from robgib.options import Count, Positive

__all__ = [
    "FMN",
]

_LAST = 0.01  # of the first step: the last one


@dataclass(frozen=True)
class FMN(NearestAttack):
    """Descent of the margin in a ball that closes in on the boundary (Pintor et al. 2021, algorithm 1).

    While nothing fools, the ball reaches as far as the linearised boundary; afterwards it shrinks or grows by a share.
    Under L0, whose ball has no such estimate, it grows from one pixel on, by one at least.
    Steps are cut off at the box before the ball, not after it as in the paper, where on one digit in ten the cut took
    all of a step that the ball had left.

    Fields:
        steps: gradient steps.
        rate: first step (L2, pixel scale).
        gamma: first share by which the radius changes a step.
        gamma_last: last such share.
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
        # Without it a step that lands on the boundary would be the last to move.
        nudge = 2e-5 * logits.abs().amax(1)
        goal = Objective.untargeted(y, "margin")
        nearest = Nearest(x, self.norm)
        at, tiny = x, torch.finfo(x.dtype).tiny
        radius = torch.full_like(nearest.size, 1.0 if self.norm == "l0" else torch.inf)
        for step in range(self.steps):
            lead, gradient, fooled = lead_gradient(model, at, goal)
            nearest.offer(at, fooled)
            share = cosine(step, self.steps, self.gamma, self.gamma_last)
            if self.norm == "l0":
                fewer = torch.minimum((radius * (1 - share)).floor().minimum(radius - 1), nearest.size)
                radius = torch.where(fooled, fewer, (radius * (1 + share)).floor().maximum(radius + 1)).clamp_min(1)
            else:
                ahead = (lead.clamp_min(0) + nudge) / dual_norm(gradient.flatten(1), self.norm).clamp_min(tiny)
                guess = distance(at, x, self.norm) + ahead
                grown = torch.where(nearest.size.isinf(), guess, radius * (1 + share))
                radius = torch.where(fooled, torch.minimum(radius * (1 - share), nearest.size), grown)
            length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(tiny)
            rate = cosine(step, self.steps, self.rate, _LAST * self.rate)
            # The box first: what it cuts off would else take its share of the ball, which then stands still.
            moved = (at - rate * gradient / per_sample(length, x)).clamp(*self.threat.box) - x
            at = (x + onto_ball(moved, radius, self.norm)).clamp(*self.threat.box)
        with torch.no_grad():
            nearest.offer(at, wrong_by(model(at), goal.labels) > 0)
        return nearest.image
