"""Iterated gradient steps with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import Attack, objective_gradient, register_attack
from robgib.attacks.objective import Loss, Target, make_objective
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, NonNegative, Positive
from robgib.runtime import SampleRNG

__all__ = [
    "MIFGSM",
]


@register_attack("MIFGSM")
@dataclass(frozen=True)
class MIFGSM(Attack):
    """MI-FGSM (Dong et al. 2018, algorithm 1): steps along a decaying sum of gradients, each of L1 norm 1.

    Its images transfer to other models better than those of the basic iterative method.

    Fields:
        steps: gradient steps from the clean image.
        decay: decay factor of the sum (μ); 0 is the basic iterative method.
        step_size: in units of the norm; None is eps / steps.
    """

    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    steps: Count = 10
    decay: NonNegative = 1.0
    step_size: Positive | None = None
    loss: Loss = "ce"
    target: Target = "none"

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        goal = make_objective(model, x, y, self.target, self.loss, rng)
        size = self.step_size if self.step_size is not None else self.threat.eps / self.steps
        current, velocity = x, torch.zeros_like(x)
        for _ in range(self.steps):
            gradient, _ = objective_gradient(model, current, goal)
            length = gradient.abs().flatten(1).sum(1).clamp_min(1e-12)
            velocity = self.decay * velocity + gradient / per_sample(length, x)
            current = self.threat.project(self.threat.step(current, velocity, size), x)
        return current
