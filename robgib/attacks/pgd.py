"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robgib.attacks.base import Attack, projected_gradient_ascent, register_attack
from robgib.attacks.objective import Loss, Target, make_objective
from robgib.attacks.threat_model import CONVEX_NORMS, per_sample
from robgib.options import Count, Positive
from robgib.runtime import SampleRNG

__all__ = [
    "PGD",
]


@register_attack("PGD")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent from random starts in the ball (Madry et al. 2018, equation 2.2 ff.).

    Under L1 the steps are sparse (SLIDE, Tramèr & Boneh 2019). Starts are uniform in the ball. Under L2 and L1 the
    first start is moved towards the clean image by a uniform factor: in high dimensions a uniform start lies near the
    surface of the ball, from where a single run of few steps is weaker on most networks.

    Fields:
        steps: gradient steps per restart.
        step_size: step size in units of the norm; None is 2.5 eps / steps, as in the code of Madry et al.
        random_start: start at a random image of the ball instead of the clean image.
        restarts: number of random restarts; fooled samples skip later ones.
        keep: ``best`` keeps the first adversarial iterate, else that of the highest loss; ``last`` keeps the last one.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    steps: Count = 20
    step_size: Positive | None = None
    random_start: bool = True
    restarts: Count = 1
    loss: Loss = "ce"
    target: Target = "none"
    keep: Literal["best", "last"] = "best"

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps * self.restarts

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        goal = make_objective(model, x, y, self.target, self.loss, rng)
        size = self.step_size if self.step_size is not None else 2.5 * self.threat.eps / self.steps
        result, best = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        remaining = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            origin, draws, aim = x[remaining], rng.select(remaining), goal.select(remaining)
            start = self._start(origin, draws, first=restart == 0) if self.random_start else origin
            x_adv = projected_gradient_ascent(
                model, origin, aim, self.threat, start=start, steps=self.steps, step_size=size, keep=self.keep
            )
            if self.restarts == 1:
                return x_adv
            with torch.no_grad():
                logits = model(x_adv)
            is_adversarial, value = aim.criterion(logits), aim.value(logits)
            better = is_adversarial | (value > best[remaining])
            result[remaining[better]], best[remaining[better]] = x_adv[better], value[better]
            remaining = remaining[~is_adversarial]
            if not len(remaining):
                break
        return result

    def _start(self, x: Tensor, rng: SampleRNG, first: bool) -> Tensor:
        start = self.threat.random_start(x, rng)
        if self.threat.norm == "linf" or not first:
            return start
        share = rng.uniform((1,), x.device).flatten().to(x.dtype)
        return x + per_sample(share, x) * (start - x)
