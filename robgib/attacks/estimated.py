"""Ascent on estimated gradients, for models whose own gradient is not that of their function."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD
from robgib.attacks.autoattack import cascade
from robgib.attacks.base import Attack
from robgib.attacks.objective import targeted_loss
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = ["EstimatedAscent"]

_STEP = 0.25  # half the distance of the two points of a difference, as a share of the ball's reach
_TOGETHER = 256  # images whose logits are computed together


@dataclass(frozen=True)
class EstimatedAscent(Attack):
    """APGD whose gradients are estimated from the logits by differences, as in NES and SPSA.

    Each gradient is the sum of central differences along random orthonormal directions (Ilyas et al. 2018; Uesato et
    al. 2018). It needs no gradient of the model, and a wrong one does not mislead it. The members run in a cascade:
    APGD on the cross-entropy, then APGD on the targeted DLR loss (the margin with fewer than four classes).

    The directions are drawn anew in every step, the same for all samples. With at least as many directions as pixels
    the estimate is the gradient, smoothed at the scale of a quarter of the ball.

    Fields:
        steps: gradient steps of each member and target.
        directions: number of directions; each takes two forward passes.
        targets: target classes.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:8], data.test.y[:8]
    >>> images = EstimatedAscent("linf", 0.2, steps=5, directions=16, targets=1)(model, x, y)
    >>> bool((model(images).argmax(1) == y).float().mean() < 0.5)
    True
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    pooled: ClassVar[bool] = True
    steps: Count = 25
    directions: Count = 64
    targets: Count = 3

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return math.ceil(self.steps * (1 + self.targets) * (1 + 2 * self.directions) / 3)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        estimated = _Estimated(model, self.directions, _STEP * _reach(self.threat, x[0].numel()))
        first = APGD(self.norm, self.eps, steps=self.steps)
        towards = replace(first, loss=targeted_loss(classes), targets=self.targets)
        return cascade([first, towards], estimated, x, y, rng)


def _reach(threat: ThreatModel, pixels: int) -> float:
    """Return the L2 length at which a direction of equal changes of all pixels leaves the ball."""
    return threat.eps * {"linf": pixels**0.5, "l2": 1.0, "l1": pixels**-0.5}[threat.norm]


class _Estimated(nn.Module):
    """A model whose logits have an estimated gradient with respect to the image.

    Args:
        model: the model.
        directions: number of directions.
        step: half the distance of the two points of a difference (L2).
    """

    def __init__(self, model: nn.Module, directions: int, step: float) -> None:
        super().__init__()
        self.model, self.directions, self.step = model, directions, step
        # All samples share the directions, so that the result of one does not depend on the others of its batch.
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to logits (N, classes)."""
        logits: Tensor = _Differences.apply(x, self)  # type: ignore[no-untyped-call]
        return logits

    def slope(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the estimated gradient (N, …) of the sum of the logits (N, classes) times ``weights``."""
        pixels = x[0].numel()
        drawn = torch.randn((pixels, min(self.directions, pixels)), generator=self.generator)
        directions = torch.linalg.qr(drawn)[0].T.to(x)
        total = torch.zeros_like(x)
        for some in directions.split(max(1, _TOGETHER // len(x))):
            moves = self.step * some.view(-1, 1, *x.shape[1:])
            # A foreign model may refuse values outside the box.
            above, below = ((x + move).clamp(0, 1).flatten(0, 1) for move in (moves, -moves))
            difference = (self.model(above) - self.model(below)).view(len(some), *weights.shape)
            along = (weights * difference).sum(2) / (2 * self.step)
            total += torch.einsum("dn,dp->np", along, some).view_as(x)
        return total


class _Differences(torch.autograd.Function):
    """Logits, and differences in place of their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, estimated: _Estimated) -> Tensor:
        ctx.save_for_backward(x)
        ctx.estimated = estimated
        with torch.no_grad():
            logits: Tensor = estimated.model(x)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return ctx.estimated.slope(x, weights), None
