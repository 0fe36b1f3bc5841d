"""DeepFool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import register_attack
from robgib.attacks.linearization import dual_norm, nearest_boundary, wrong_classes
from robgib.attacks.nearest import NearestAttack
from robgib.attacks.objective import wrong_by
from robgib.options import Count, NonNegative

__all__ = [
    "DeepFool",
]


@register_attack("DeepFool")
@dataclass(frozen=True)
class DeepFool(NearestAttack):
    """Steps onto the nearest linearised boundary until the class changes (Moosavi-Dezfooli et al. 2016, algorithm 2).

    L-inf uses equations 10 and 11. Iterates are clipped to the box, which the paper does not specify.

    Fields:
        steps: maximum number of linearisations; a fooled sample leaves the batch.
        overshoot: relative overshoot beyond the boundary.
        candidates: number of wrong classes, the most likely ones on the clean image.
    """

    pooled: ClassVar[bool] = True
    steps: Count = 50
    overshoot: NonNegative = 0.02
    candidates: Count = 10

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps * self.candidates

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        result = x.clone()
        remaining = torch.arange(len(x), device=x.device)
        classes = wrong_classes(logits, y)[:, : self.candidates]
        nudge = 2e-5 * logits.abs().amax(1)  # without it the iteration would stop on the boundary
        current, total = x.clone(), torch.zeros_like(x)
        for _ in range(self.steps):
            if not len(remaining):
                break
            slack = nudge[remaining]
            value, w = nearest_boundary(
                model, current[remaining], y[remaining], classes[remaining], self.threat.norm, slack
            )
            step = self._step(value.abs() + slack, w).view_as(total[remaining])
            total[remaining] = (x[remaining] + total[remaining] + step).clamp(*self.threat.box) - x[remaining]
            current[remaining] = (x[remaining] + (1 + self.overshoot) * total[remaining]).clamp(*self.threat.box)
            with torch.no_grad():
                fooled = wrong_by(model(current[remaining]), y[remaining]) > 0
            result[remaining[fooled]] = current[remaining[fooled]]
            remaining = remaining[~fooled]
        return result

    def _step(self, value: Tensor, w: Tensor) -> Tensor:
        """Return the step (N, D) onto the hyperplane that lies ``value`` (N,) ahead along its normals ``w`` (N, D)."""
        dual = dual_norm(w, self.threat.norm).clamp_min(torch.finfo(w.dtype).tiny)
        distances = (value / dual)[:, None]
        return distances * w.sign() if self.threat.norm == "linf" else distances * w / dual[:, None]
