"""One gradient step from a random start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import Attack, projected_gradient_ascent, register_attack
from robgib.attacks.objective import Loss, Target, make_objective
from robgib.runtime import SampleRNG

__all__ = [
    "RFGSM",
]


@register_attack("RFGSM")
@dataclass(frozen=True)
class RFGSM(Attack):
    """R+FGSM (Tramèr et al. 2018, section 4.1): a random step of length start·eps, then a gradient step of the rest.

    Under L-inf the random step follows the signs of normal noise, under L2 the noise itself.

    Fields:
        start: length of the random step, as a share of eps; the paper uses 0.5.
    """

    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    start: Annotated[float, Field(gt=0, lt=1)] = 0.5
    loss: Loss = "ce"
    target: Target = "none"

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return 1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        goal = make_objective(model, x, y, self.target, self.loss, rng)
        first = self.start * self.threat.eps
        noise = rng.normal(tuple(x.shape[1:]), x.device).to(x.dtype)
        start = replace(self.threat, eps=first).project(self.threat.step(x, noise, first), x)
        size = self.threat.eps - first
        return projected_gradient_ascent(model, x, goal, self.threat, start=start, steps=1, step_size=size, keep="last")
