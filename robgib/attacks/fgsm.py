"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robgib.attacks.base import Attack, projected_gradient_ascent, register_attack
from robgib.attacks.objective import Loss, Target, make_objective
from robgib.attacks.threat_model import CONVEX_NORMS
from robgib.runtime import SampleRNG

__all__ = [
    "FGSM",
]


@register_attack("FGSM")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction (Goodfellow, Shlens & Szegedy 2015, section 4).

    Under L2 the step follows the normalised gradient (the fast gradient method), under L1 it is sparse.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    loss: Loss = "ce"
    target: Target = "none"

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return 1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        goal = make_objective(model, x, y, self.target, self.loss, rng)
        return projected_gradient_ascent(
            model, x, goal, self.threat, start=x, steps=1, step_size=self.threat.eps, keep="last"
        )
