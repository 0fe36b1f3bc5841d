"""Primal-dual gradient descent, plain and proximal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.nearest import Adam, Nearest, NearestAttack, lead_gradient
from robgib.attacks.objective import Objective, wrong_by
from robgib.attacks.threat_model import CONVEX_NORMS, per_sample
from robgib.options import Count, Positive

__all__ = [
    "PDGD",
    "PDPGD",
]

_INNER = 5  # steps of the proximal descent under L1
_MOST = 13.8  # of the logarithm of the weights' ratio: a million


@dataclass(frozen=True)
class PDGD(NearestAttack):
    """Distance and misclassification weighed against each other as in a game (Matyasko & Chau 2021).

    The image descends with Adam on the distance plus a smooth form of the margin, softplus, under two weights that
    sum to 1; the weights ascend on whether the image still is right, by multiplication. Images descend under their
    moving mean. Both learning rates fall from step to step.

    Fields:
        steps: gradient steps.
        rate: Adam's first learning rate (pixel scale).
        rate_last: the last one, as a share of the first.
        dual_rate: first learning rate of the weights' logarithms.
        dual_rate_last: the last one, as a share of the first.
        ratio: first weight of the distance over that of misclassification.
        mean: of the weights' moving mean, the share that stays.
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
        # The logarithm of the weights' ratio says both.
        odds = -torch.full_like(nearest.size, self.ratio).log()
        weight = torch.sigmoid(odds)
        for step in range(self.steps):
            at = x + moved
            lead, slope, fooled = lead_gradient(model, at, goal)
            nearest.offer(at, fooled)
            far = step / self.steps
            gradient = self._gradient(per_sample(torch.sigmoid(lead), x) * slope, moved, weight)
            direction, curve = adam.moments(gradient)
            rate = self.rate * self.rate_last**far
            moved = moved - rate * direction / curve
            moved = self._shrink(moved, curve / rate, (1 - weight) / weight)
            moved = (x + moved).clamp(*self.threat.box) - x
            # The weights move by the constraint itself, not by its smooth form: up while the image is right.
            dual = self.dual_rate * (1 - far * (1 - self.dual_rate_last))
            odds = (odds + dual * torch.where(fooled, -1.0, 1.0)).clamp(-_MOST, _MOST)
            weight = self.mean * weight + (1 - self.mean) * torch.sigmoid(odds)
        with torch.no_grad():
            nearest.offer(x + moved, wrong_by(model(x + moved), goal.labels) > 0)
        return nearest.image

    def _gradient(self, slope: Tensor, moved: Tensor, weight: Tensor) -> Tensor:
        """Gradient (N, …) of what the image descends, from the ``slope`` of the smooth margin alone."""
        length = torch.linalg.vector_norm(moved.flatten(1), dim=1).clamp_min(1e-12)
        return per_sample(weight, slope) * slope + per_sample((1 - weight) / length, moved) * moved

    def _shrink(self, moved: Tensor, curve: Tensor, price: Tensor) -> Tensor:
        """What the distance, at ``price`` (N,) against the margin, leaves of a step."""
        return moved


@dataclass(frozen=True)
class PDPGD(PDGD):
    """The same with a proximal step for the distance, which L1 and L-inf need (Matyasko & Chau 2021, section 4).

    The proximal step is taken in the metric of Adam's curvature: exactly under L-inf and L2, and by five inner steps
    under L1, where the exact one would set every pixel of small curvature to 0 for good.
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
    """Go five steps of proximal descent from ``values`` (N, D) on ½ Σ metric (v - values)² + weight Σ|v|."""
    largest = metric.amax(1, keepdim=True)
    least, share, found = weight[:, None] / largest, metric / largest, values
    for _ in range(_INNER):
        towards = found - share * (found - values)
        found = towards.sign() * (towards.abs() - least).clamp_min(0)
    return found


def _cap(values: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    """Minimise ½ Σ metric (v - values)² + weight max|v| over v (N, D): cut at the level where the cut pays.

    The level c solves Σ metric (|values| - c)₊ = weight; below 0, all is 0.
    """
    size, order = values.abs().sort(1, descending=True)
    mass = metric.gather(1, order)
    total, moment = mass.cumsum(1), (mass * size).cumsum(1)
    # The k largest are cut while what that costs stays below the weight.
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
