"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robgib.attacks.attack import Attack, Loss, Target, ascend, make_goal
from robgib.attacks.threat import NORMS, SampleRNG

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction (Goodfellow, Shlens & Szegedy 2015, section 4).

    Under L2 the step goes along the normalised gradient (the fast gradient method), under L1 along few pixels.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS
    pooled: ClassVar[bool] = True
    loss: Loss = "ce"
    target: Target = "none"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        goal = make_goal(model, x, y, self.target, self.loss, rng)
        return ascend(model, x, goal, self.threat, start=x, steps=1, step_size=self.threat.eps, keep="last")
