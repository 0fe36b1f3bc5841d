"""Decoupled direction and norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import objective_gradient, register_attack
from robgib.attacks.nearest import Nearest, NearestAttack, cosine
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, Positive

__all__ = [
    "DDN",
]

_LAST = 0.01  # length of the last step; the first has length 1


@register_attack("DDN")
@dataclass(frozen=True)
class DDN(NearestAttack):
    """Gradient steps on a sphere whose radius decreases if the image fools and otherwise increases (Rony et al. 2019).

    Unlike in the paper, images are not quantized at each step.

    Fields:
        steps: gradient steps.
        gamma: relative change of the radius per step.
        first: initial radius (L2, pixel scale).
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    pooled: ClassVar[bool] = True
    steps: Count = 1000
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    first: Positive = 1.0

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        goal = Objective.untargeted(y, "ce")
        nearest = Nearest(x, self.norm)
        at, moved = x, torch.zeros_like(x)
        radius = torch.full((len(x),), self.first, dtype=x.dtype, device=x.device)
        for step in range(self.steps):
            gradient, logits = objective_gradient(model, at, goal)
            fooled = wrong_by(logits, goal.labels) > 0
            nearest.offer(at, fooled)
            moved = moved + cosine(step, self.steps, 1, _LAST) * _unit(gradient)
            radius = radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            at = (x + per_sample(radius, x) * _unit(moved)).clamp(*self.threat.box)
            moved = at - x
        with torch.no_grad():
            nearest.offer(at, wrong_by(model(at), goal.labels) > 0)
        return nearest.image


def _unit(images: Tensor) -> Tensor:
    """Scale images (N, …) to L2 norm 1; zeros are unchanged."""
    length = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return images / per_sample(length.clamp_min(torch.finfo(images.dtype).tiny), images)
