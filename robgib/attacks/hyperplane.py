"""Linearised decision boundaries, and exact projections onto them inside the box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robgib.attacks.passes import InBatches

__all__ = ["class_differences", "dual_norm", "hyperplane_step", "wrong_classes"]


def wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Return the wrong classes (N, C - 1), most likely first, for logits (N, C) and true labels (N,)."""
    return logits.scatter(1, y[:, None], float("-inf")).sort(dim=1, descending=True, stable=True).indices[:, :-1]


def class_differences(model: nn.Module, x: Tensor, y: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Linearise the boundaries between the true classes ``y`` (N,) and ``classes`` (N, K) at ``x`` (N, …).

    Returns:
        The logits' differences z_k - z_y (N, K), and their gradients (N, K, D) by the D flattened pixels.
    """
    if isinstance(model, InBatches):
        differences, gradients = model.map(
            len(x), lambda rows: class_differences(model.model, x[rows], y[rows], classes[rows])
        )
        return differences, gradients
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        differences = logits.gather(1, classes) - logits.gather(1, y[:, None])
        last = classes.shape[1] - 1
        each = [
            torch.autograd.grad(differences[:, k].sum(), leaf, retain_graph=k < last)[0].flatten(1)
            for k in range(last + 1)
        ]
    return differences.detach(), torch.stack(each, 1)


def hyperplane_step(x: Tensor, w: Tensor, value: Tensor, norm: str, box: tuple[float, float]) -> Tensor:
    """Return the smallest step (N, D) in ``norm`` from ``x`` onto a hyperplane, inside the box.

    Croce & Hein 2020, equation 5; where the hyperplane misses the box, their equation 6: the step to the corner
    of the box nearest to it.

    Args:
        x: flattened images (N, D) in the box.
        w: the hyperplanes' normals (N, D).
        value: (N,), the affine functions that vanish on the hyperplanes, at ``x``.
        norm: ``linf``, ``l2`` or ``l1``.
        box: lowest and highest pixel value.
    """
    if norm == "l1":
        return _sparse_step(x, w, value, box)
    # Each pixel moves downhill by min(t pace, room), with pace 1 under L-inf and |w| under L2 (the conditions of
    # Karush, Kuhn and Tucker); the gain sum |w| min(t pace, room) is piecewise linear in t and bends where a pixel
    # meets the box, so that sorting the bends gives the one t at which it equals |value|.
    direction = -value.sign()[:, None] * w.sign()
    room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    weight = w.abs()
    pace = weight if norm == "l2" else torch.ones_like(weight)
    bend, order = torch.where(weight > 0, room / pace, 0).sort(1)
    spent = torch.nn.functional.pad((weight * room).gather(1, order).cumsum(1)[:, :-1], (1, 0))
    slope = (weight * pace).gather(1, order).flip(1).cumsum(1).flip(1)
    wanted = value.abs()[:, None]
    piece = (spent + bend * slope < wanted).sum(1, keepdim=True).clamp_max(x.shape[1] - 1)
    t = (wanted - spent.gather(1, piece)) / slope.gather(1, piece).clamp_min(torch.finfo(x.dtype).tiny)
    return direction * torch.minimum(t.minimum(bend[:, -1:]) * pace, room)


def _sparse_step(x: Tensor, w: Tensor, value: Tensor, box: tuple[float, float]) -> Tensor:
    """As :func:`hyperplane_step` under L1: the pixels of the largest weights go first, as far as the box lets them."""
    direction = -value.sign()[:, None] * w.sign()
    room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    weight, order = w.abs().sort(1, descending=True)
    gain = weight * room.gather(1, order)
    left = (value.abs()[:, None] - (gain.cumsum(1) - gain)).clamp_min(0)
    move = torch.minimum(left / weight.clamp_min(torch.finfo(x.dtype).tiny), room.gather(1, order)) * (weight > 0)
    return direction * torch.zeros_like(x).scatter(1, order, move)


def dual_norm(gradients: Tensor, norm: str) -> Tensor:
    """Norm (N, K) of gradients (N, K, D) that is dual to ``norm``: what a step of length 1 can gain."""
    order = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
    return torch.linalg.vector_norm(gradients, ord=order, dim=2)
