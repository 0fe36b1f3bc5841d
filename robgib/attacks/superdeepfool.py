"""SuperDeepFool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import register_attack
from robgib.attacks.linearization import nearest_boundary, wrong_classes
from robgib.attacks.nearest import Nearest, NearestAttack
from robgib.attacks.objective import wrong_by
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, NonNegative

__all__ = [
    "SuperDeepFool",
]


@register_attack("SuperDeepFool")
@dataclass(frozen=True)
class SuperDeepFool(NearestAttack):
    """Alternates DeepFool and a projection onto the normal of the boundary (Abdolahpourrostam et al. 2024).

    DeepFool crosses the boundary. The clean image is then projected onto the tangent plane at that point, so that the
    perturbation is orthogonal to the boundary. Both steps repeat until the projected image fools. Finally, a line
    search towards the clean image finds the boundary.

    Fields:
        steps: maximum number of rounds.
        deepfool_steps: maximum number of linearisations per round.
        overshoot: relative overshoot of DeepFool beyond the boundary.
        candidates: number of wrong classes, the most likely ones on the clean image.
        searches: bisections of the line search.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    pooled: ClassVar[bool] = True
    steps: Count = 20
    deepfool_steps: Count = 20
    overshoot: NonNegative = 0.02
    candidates: Count = 10
    searches: Count = 10

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps * (1 + self.deepfool_steps * self.candidates)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        classes = wrong_classes(logits, y)[:, : self.candidates]
        nearest = Nearest(x, self.norm)
        at, going = x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            if not len(going):
                break
            origin, labels, wrong = x[going], y[going], classes[going]
            crossed, fooled = self._deepfool(model, at[going], labels, wrong)
            nearest.offer(_put(x, going, crossed), _put(torch.zeros_like(y).bool(), going, fooled))
            with torch.no_grad():
                there = model(crossed).scatter(1, labels[:, None], float("-inf")).argmax(1, keepdim=True)
            _, normal = nearest_boundary(model, crossed, labels, there, self.norm)
            length = (normal * normal).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            along = ((crossed - origin).flatten(1) * normal).sum(1) / length
            image = (origin + (along[:, None] * normal).view_as(origin)).clamp(*self.threat.box)
            with torch.no_grad():
                done = wrong_by(model(image), labels) > 0
            nearest.offer(_put(x, going, image), _put(torch.zeros_like(y).bool(), going, done))
            at[going] = image
            going = going[~done]
        return self._return(model, x, y, nearest)

    def _deepfool(self, model: nn.Module, x: Tensor, y: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Run DeepFool from images (N, …); return the images, and whether they fool (N,)."""
        at, fooled = x.clone(), torch.zeros_like(y).bool()
        remaining = torch.arange(len(x), device=x.device)
        for _ in range(self.deepfool_steps):
            if not len(remaining):
                break
            value, normal = nearest_boundary(model, at[remaining], y[remaining], classes[remaining], self.norm)
            length = (normal * normal).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            # Without the minimum size the iteration would stop on the boundary.
            ahead = (1 + self.overshoot) * (value.abs() + 1e-5) / length
            at[remaining] = (at[remaining] + (ahead[:, None] * normal).view_as(at[remaining])).clamp(*self.threat.box)
            with torch.no_grad():
                done = wrong_by(model(at[remaining]), y[remaining]) > 0
            fooled[remaining[done]] = True
            remaining = remaining[~done]
        return at, fooled

    @torch.no_grad()
    def _return(self, model: nn.Module, x: Tensor, y: Tensor, nearest: Nearest) -> Tensor:
        """Bisect the line to the clean image for the boundary."""
        has_image = ~nearest.size.isinf()
        low, high = torch.zeros_like(nearest.size), torch.ones_like(nearest.size)
        far = nearest.image
        for _ in range(self.searches):
            middle = (low + high) / 2
            image = x + per_sample(middle, x) * (far - x)
            past = has_image & (wrong_by(model(image), y) > 0)
            nearest.offer(image, past)
            low, high = torch.where(past, low, middle), torch.where(past, middle, high)
        return nearest.image


def _put(whole: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return a copy of ``whole`` (N, …) with ``rows`` replaced by ``values``."""
    return whole.index_copy(0, rows, values)
