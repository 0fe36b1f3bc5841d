"""Carlini and Wagner's L2 attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import objective_gradient, register_attack
from robgib.attacks.carried import restored
from robgib.attacks.nearest import Adam, NearestAttack
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, NonNegative, Positive

__all__ = [
    "CarliniWagner",
]

_INSIDE = 1 - 1e-3  # starts are scaled into the box by this factor, since tanh is flat at its faces


@register_attack("CarliniWagner")
@dataclass(frozen=True)
class CarliniWagner(NearestAttack):
    """Squared distance plus c times the hinge f_6, descended under x = tanh(w) (Carlini & Wagner 2017, section V).

    Each sample has its own c, found by bisection, and stops if its objective no longer decreases.

    Fields:
        steps: steps of Adam for each c.
        rate: learning rate of Adam, in units of w.
        binary_steps: number of values of c; c grows tenfold until an attack succeeds, then bisection follows.
        initial_c: initial c, the weight of the hinge (in logits) relative to the squared distance (pixel scale).
        confidence: required margin of the wrong class in logits (kappa).
    """

    pooled: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    steps: Count = 200
    rate: Positive = 0.02
    binary_steps: Count = 9
    initial_c: Positive = 0.01
    confidence: NonNegative = 0.0

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps * self.binary_steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        best, size = x.clone(), torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        c, lower, upper = torch.full_like(size, self.initial_c), torch.zeros_like(size), size.clone()
        for _ in range(self.binary_steps):
            hit = self._descend(model, x, y, c, best, size)
            lower, upper = torch.where(hit, lower, c), torch.where(hit, c, upper)
            c = torch.where(upper.isinf(), 10 * c, (lower + upper) / 2)
        return best

    def _descend(self, model: nn.Module, x: Tensor, y: Tensor, c: Tensor, best: Tensor, size: Tensor) -> Tensor:
        """Run Adam from the clean images with weights ``c`` (N,); return which samples were fooled (N,).

        Nearer adversarial images and their squared distances are written to ``best`` (N, …) and ``size`` (N,).
        """
        low, high = self.threat.box
        w = torch.atanh(_INSIDE * (2 * (x - low) / (high - low) - 1))
        adam = Adam(w)
        rows = torch.arange(len(x), device=x.device)
        hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        earlier = torch.full_like(size, float("inf"))
        goal = Objective.untargeted(y, "margin")
        for step in range(1, self.steps + 1):
            bend = torch.tanh(w)
            image = restored(low + (high - low) * (bend + 1) / 2, x)
            slope, logits = objective_gradient(model, image, goal)
            gap = (image - x).flatten(1).square().sum(1)
            # f_6 plus kappa: the constant changes no gradient and keeps the objective positive.
            hinge = (self.confidence - goal.value(logits)).clamp_min(0)
            objective = gap + c * hinge
            fooled = wrong_by(logits, goal.labels) > self.confidence
            # The hinge gradient applies until the image is misclassified: at a tie the hinge is 0 already.
            gradient = 2 * (image - x) - per_sample(c * ~fooled, slope) * slope
            gradient = gradient * (high - low) / 2 * (1 - bend.square())
            hit[rows[fooled]] = True
            # Of images at nearly the same distance the first is kept, so that rounding does not decide.
            closer = fooled & (gap < 0.9998 * size[rows])
            best[rows[closer]] = image[closer]
            size[rows[closer]] = gap[closer]
            direction, curve = adam.moments(gradient)
            w = w - self.rate * direction / curve
            if step % max(1, self.steps // 10) == 0:
                go_on = objective < 0.9999 * earlier
                if not bool(go_on.any()):
                    break
                rows, goal, earlier = rows[go_on], goal.select(go_on), objective[go_on]
                x, c, w = x[go_on], c[go_on], w[go_on]
                adam.select(go_on)
        return hit
