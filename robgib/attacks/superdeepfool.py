"""SuperDeepFool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.linearization import nearest_boundary, wrong_classes
from robgib.attacks.nearest import Nearest, NearestAttack
from robgib.attacks.objective import wrong_by
from robgib.attacks.threat_model import per_sample
from robgib.options import Count, NonNegative

__all__ = [
    "SuperDeepFool",
]


@dataclass(frozen=True)
class SuperDeepFool(NearestAttack):
    """DeepFool, and after it a projection onto the boundary's normal, in turn (Abdolahpourrostam et al. 2024).

    DeepFool's steps cross the boundary somewhere; there the clean image is projected onto the tangent plane, which
    makes the perturbation orthogonal to it. Both are done until the projected image itself fools. At the end the image
    moves back along its line to where the class changes.

    Fields:
        steps: rounds of both.
        deepfool_steps: linearisations of a round, at most.
        overshoot: share by which DeepFool's perturbation goes past the boundary.
        candidates: how many wrong classes, the most likely on the clean image, to look at.
        searches: halvings of the last line search.
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
        """Step from images (N, …) until they fool; return them, and which do (N,)."""
        at, fooled = x.clone(), torch.zeros_like(y).bool()
        left = torch.arange(len(x), device=x.device)
        for _ in range(self.deepfool_steps):
            if not len(left):
                break
            value, normal = nearest_boundary(model, at[left], y[left], classes[left], self.norm)
            length = (normal * normal).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            # A step of at least rounding's size, or one onto the boundary would be the last to move.
            ahead = (1 + self.overshoot) * (value.abs() + 1e-5) / length
            at[left] = (at[left] + (ahead[:, None] * normal).view_as(at[left])).clamp(*self.threat.box)
            with torch.no_grad():
                done = wrong_by(model(at[left]), y[left]) > 0
            fooled[left[done]] = True
            left = left[~done]
        return at, fooled

    @torch.no_grad()
    def _return(self, model: nn.Module, x: Tensor, y: Tensor, nearest: Nearest) -> Tensor:
        """Halve the way back to the clean image as long as the class stays wrong."""
        found = ~nearest.size.isinf()
        low, high = torch.zeros_like(nearest.size), torch.ones_like(nearest.size)
        far = nearest.image
        for _ in range(self.searches):
            middle = (low + high) / 2
            image = x + per_sample(middle, x) * (far - x)
            past = found & (wrong_by(model(image), y) > 0)
            nearest.offer(image, past)
            low, high = torch.where(past, low, middle), torch.where(past, middle, high)
        return nearest.image


def _put(whole: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Copy ``whole`` (N, …) with ``values`` in the place of ``rows``."""
    return whole.index_copy(0, rows, values)
