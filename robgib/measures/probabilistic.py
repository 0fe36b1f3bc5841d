"""Robustness to random points of a ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.models.inference import eval_mode
from robgib.statistics import clopper_pearson

__all__ = ["probabilistic_robustness"]

_BATCH = 256


def probabilistic_robustness(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", points: int = 20, seed: int = 0
) -> tuple[float, float, float]:
    """Return the share of random points of the ball around each image that keep its label (Robey et al. 2022).

    Args:
        model: classifier on the CPU.
        x: images (N, C, H, W) in [0, 1]; points are clipped to that range.
        y: labels (N,).
        eps: radius, pixel scale.
        norm: ``linf`` or ``l2``; points are uniform in the ball.
        points: of each image.
        seed: of the points.

    Returns:
        The share, and its exact 95% interval, in which the N images count, not their points.

    Raises:
        RobGIBError: another norm.

    >>> flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> share, low, high = probabilistic_robustness(flat, torch.rand(9, 1, 2, 2), torch.zeros(9, dtype=torch.long), 0.1)
    >>> 0 <= low <= share <= high <= 1
    True
    """
    if norm not in ("linf", "l2"):
        raise RobGIBError(
            f"random points are drawn from an linf or l2 ball, not {norm}; name an attack of such a norm."
        )
    generator, kept = torch.Generator().manual_seed(seed), 0.0
    with eval_mode(model), torch.no_grad():
        for part, label in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            for _ in range(points):
                if norm == "linf":
                    step = 2 * torch.rand(part.shape, generator=generator) - 1
                else:
                    step = torch.randn(part.shape, generator=generator)
                    size = step.flatten(1).norm(dim=1)
                    radius = torch.rand(len(part), generator=generator) ** (1 / step[0].numel())
                    step = step * (radius / size).view(-1, *[1] * (part.dim() - 1))
                kept += float((model((part + eps * step).clamp(0, 1)).argmax(1) == label).sum()) / points
    low, high = clopper_pearson(kept, len(x))
    return kept / len(x), low, high
