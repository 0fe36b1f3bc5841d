"""Primal-dual gradient descent, plain and proximal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import register_attack
from robgib.attacks.nearest import Adam, Nearest, NearestAttack, margin_gradient
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import CONVEX_NORMS, per_sample
from robgib.options import Count, Positive

__all__ = [
    "PDGD",
    "PDPGD",
]

_INNER = 5  # steps of the proximal descent under L1
_MOST = 13.8  # maximum log ratio of the weights: a ratio of a million


@register_attack("PDGD")
@dataclass(frozen=True)
class PDGD(NearestAttack):
    """Primal-dual optimisation of distance and misclassification (Matyasko & Chau 2021).

    Primal step: Adam on the distance plus the softplus of the margin, with two weights that sum to 1. Dual step: a
    multiplicative update of the weights by whether the image is still classified correctly. The primal step uses a
    moving average of the weights. Both learning rates decay.

    Fields:
        steps: gradient steps.
        rate: initial learning rate of Adam (pixel scale).
        rate_last: final learning rate, as a share of the initial one.
        dual_rate: initial learning rate of the log weights.
        dual_rate_last: final learning rate of the log weights, as a share of the initial one.
        ratio: initial ratio of the weight of the distance to that of misclassification.
        mean: decay of the moving average of the weights.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    pooled: ClassVar[bool] = True
    steps: Count = 1000
    rate: Positive = 0.1
    rate_last: Annotated[float, Field(gt=0, le=1)] = 0.01
    dual_rate: Positive = 0.1
    dual_rate_last: Annotated[float, Field(gt=0, le=1)] = 0.1
    ratio: Positive = 0.01
    mean: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.steps

    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See :meth:`NearestAttack.search`."""
        goal = Objective.untargeted(y, "margin")
        nearest = Nearest(x, self.norm)
        moved, adam = torch.zeros_like(x), Adam(x)
        # The log ratio determines both weights.
        odds = -torch.full_like(nearest.size, self.ratio).log()
        weight = torch.sigmoid(odds)
        for step in range(self.steps):
            at = x + moved
            margin, slope, fooled = margin_gradient(model, at, goal)
            nearest.offer(at, fooled)
            far = step / self.steps
            gradient = self._gradient(per_sample(torch.sigmoid(margin), x) * slope, moved, weight)
            direction, curve = adam.moments(gradient)
            rate = self.rate * self.rate_last**far
            moved = moved - rate * direction / curve
            moved = self._shrink(moved, curve / rate, (1 - weight) / weight)
            moved = (x + moved).clamp(*self.threat.box) - x
            # The weights follow the constraint itself, not its smooth form: they increase while the image is right.
            dual = self.dual_rate * (1 - far * (1 - self.dual_rate_last))
            odds = (odds + dual * torch.where(fooled, -1.0, 1.0)).clamp(-_MOST, _MOST)
            weight = self.mean * weight + (1 - self.mean) * torch.sigmoid(odds)
        with torch.no_grad():
            nearest.offer(x + moved, wrong_by(model(x + moved), goal.labels) > 0)
        return nearest.image

    def _gradient(self, slope: Tensor, moved: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient (N, …) of the primal objective, from the ``slope`` of the smooth margin."""
        length = torch.linalg.vector_norm(moved.flatten(1), dim=1).clamp_min(1e-12)
        return per_sample(weight, slope) * slope + per_sample((1 - weight) / length, moved) * moved

    def _shrink(self, moved: Tensor, curve: Tensor, price: Tensor) -> Tensor:
        """Apply the proximal step of the distance with weight ``price`` (N,) relative to the margin."""
        return moved


@register_attack("PDPGD")
@dataclass(frozen=True)
class PDPGD(PDGD):
    """PDGD with a proximal step for the distance, as needed for L1 and L-inf (Matyasko & Chau 2021, section 4).

    The proximal step uses the metric of Adam. It is exact under L-inf and L2, and takes five inner steps under L1,
    where the exact step would permanently set pixels of small curvature to 0.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS

    def _gradient(self, slope: Tensor, moved: Tensor, weight: Tensor) -> Tensor:
        return slope

    def _shrink(self, moved: Tensor, curve: Tensor, price: Tensor) -> Tensor:
        flat, metric = moved.flatten(1), curve.flatten(1)
        if self.norm == "l1":
            return _soften(flat, metric, price).view_as(moved)
        if self.norm == "l2":
            return _shrink_l2(flat, metric, price).view_as(moved)
        return _cap(flat, metric, price).view_as(moved)


def _soften(values: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    """Take five steps of proximal descent from ``values`` (N, D) on ½ Σ metric (v - values)² + weight Σ|v|."""
    largest = metric.amax(1, keepdim=True)
    least, share, solution = weight[:, None] / largest, metric / largest, values
    for _ in range(_INNER):
        towards = solution - share * (solution - values)
        solution = towards.sign() * (towards.abs() - least).clamp_min(0)
    return solution


def _cap(values: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    """Minimise ½ Σ metric (v - values)² + weight max|v| over v (N, D), by clipping.

    The level c solves Σ metric (|values| - c)₊ = weight; if it is below 0, the result is 0.
    """
    size, order = values.abs().sort(1, descending=True)
    mass = metric.gather(1, order)
    total, moment = mass.cumsum(1), (mass * size).cumsum(1)
    # The k largest values are clipped as long as the cost is below the weight.
    spent = moment - total * size
    count = (spent < weight[:, None]).sum(1, keepdim=True).clamp_min(1) - 1
    level = ((moment.gather(1, count) - weight[:, None]) / total.gather(1, count)).clamp_min(0)
    return values.clamp(-level, level)


def _shrink_l2(values: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    """Minimise ½ Σ metric (v - values)² + weight ‖v‖ over v (N, D), by bisection on ‖v‖.

    With r = ‖v‖, v = values metric / (metric + weight / r); where ‖metric values‖ <= weight, v is 0.
    """
    pull = weight[:, None]
    low = torch.zeros_like(pull)
    high = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    for _ in range(30):
        r = (low + high) / 2
        length = torch.linalg.vector_norm(values * metric * r / (metric * r + pull), dim=1, keepdim=True)
        low, high = torch.where(length > r, r, low), torch.where(length > r, high, r)
    inside = torch.linalg.vector_norm(values * metric, dim=1, keepdim=True) <= pull
    return torch.where(inside, 0, values * metric * high / (metric * high + pull))
