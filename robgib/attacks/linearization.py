"""Linearised decision boundaries, and exact projections onto them inside the box."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robgib.attacks.carried import carried
from robgib.models.inference import BatchedModel, finite, gradient_of
from robgib.runtime import faults_of

__all__ = [
    "boundary_distances",
    "class_differences",
    "dual_norm",
    "hyperplane_step",
    "nearest_boundary",
    "wrong_classes",
]


def wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Return the wrong classes (N, C - 1), most likely first, for logits (N, C) and true labels (N,)."""
    order = logits.sort(dim=1, descending=True, stable=True).indices
    # Compare class numbers: the model itself may mask classes with logits of -inf.
    return order[order != y[:, None]].view(len(y), logits.shape[1] - 1)


Watch = Callable[[Tensor], None]
"""Callback for every gradient (N, …) before entries that are not finite are set to 0."""


def class_differences(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Linearise the boundaries between the true classes ``y`` (N,) and ``classes`` (N, K) at ``x`` (N, …).

    Gradients are 0 outside the masks that the labels carry, as in the functions below. All N · K · D values are in
    memory at once; :func:`nearest_boundary` needs less memory.

    Returns:
        The logit differences z_k - z_y (N, K), and their gradients (N, K, D) with respect to the D flattened pixels.

    Raises:
        NoGradientError: the logits do not depend on the images by differentiable operations.
    """
    if isinstance(model, BatchedModel):
        differences, gradients = model.map(
            len(x), lambda rows: class_differences(model.model, x[rows], y[rows], classes[rows], model.note_broken)
        )
        return differences, gradients
    values, each = zip(*_linearised(model, x, y, classes, watch), strict=True)
    return torch.stack(values, 1), torch.stack(each, 1)


def nearest_boundary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: Tensor,
    norm: str,
    nudge: Tensor | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Linearise the boundary nearest to ``x`` (N, …), in ``norm``, of those between ``y`` (N,) and ``classes`` (N, K).

    Boundaries are computed one by one, so that memory does not grow with K.

    Args:
        model: classifier, frozen.
        x: images.
        y: true labels.
        classes: wrong classes.
        norm: ``linf``, ``l2`` or ``l1``.
        nudge: (N,), added to the absolute value of every difference; None is 0.
        watch: callback for every gradient.

    Returns:
        The difference z_k - z_y (N,) of that boundary, and its gradient (N, D) with respect to the D flattened pixels.

    Raises:
        NoGradientError: the logits do not depend on the images by differentiable operations.
    """
    if isinstance(model, BatchedModel) and (model.draws == 1 or classes.shape[1] == 1):

        def some(rows: slice) -> tuple[Tensor, Tensor]:
            slack = None if nudge is None else nudge[rows]
            return nearest_boundary(model.model, x[rows], y[rows], classes[rows], norm, slack, model.note_broken)

        value, normal = model.map(len(x), some)
        return value, normal
    each: Iterator[tuple[Tensor, Tensor]]
    if isinstance(model, BatchedModel):
        # Average each boundary over the draws first, since the nearest boundary differs between draws.
        averaged = (class_differences(model, x, y, classes[:, [k]]) for k in range(classes.shape[1]))
        each = ((values[:, 0], gradients[:, 0]) for values, gradients in averaged)
    else:
        each = _linearised(model, x, y, classes, watch)
    value, normal = next(each)
    nearest = _reach(value, normal, norm, nudge)
    for other, gradient in each:
        reach = _reach(other, gradient, norm, nudge)
        nearer = reach < nearest
        value, nearest = torch.where(nearer, other, value), torch.where(nearer, reach, nearest)
        normal = torch.where(nearer[:, None], gradient, normal)
    return value, normal


def boundary_distances(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, norm: str, watch: Watch | None = None
) -> Tensor:
    """Return the distances (N, K), in ``norm``, from images ``x`` (N, …) to the linearised boundaries of ``classes``.

    Args: as for :func:`nearest_boundary`.

    Raises:
        NoGradientError: the logits do not depend on the images by differentiable operations.
    """
    if isinstance(model, BatchedModel):
        net, note = model.model, model.note_broken
        (reach,) = model.map(
            len(x), lambda rows: (boundary_distances(net, x[rows], y[rows], classes[rows], norm, note),)
        )
        return reach
    each = _linearised(model, x, y, classes, watch)
    return torch.stack([_reach(value, normal, norm, None) for value, normal in each], 1)


def _reach(value: Tensor, normal: Tensor, norm: str, nudge: Tensor | None) -> Tensor:
    size = value.abs() if nudge is None else value.abs() + nudge
    return size / dual_norm(normal, norm).clamp_min(torch.finfo(normal.dtype).tiny)


def _linearised(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, watch: Watch | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the differences z_k - z_y (N,) and their gradients (N, D) for each of the K ``classes``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        with faults_of("the model"):
            logits = model(leaf)
        differences = logits.gather(1, classes) - logits.gather(1, y[:, None])
        sums = differences.sum(0).unbind()
    mask = carried(y, "mask")
    for k, total in enumerate(sums):
        gradient = gradient_of(total, leaf, keep=k < len(sums) - 1)
        if watch:
            watch(gradient)
        gradient = finite(gradient)
        yield differences[:, k].detach(), (gradient if mask is None else gradient * mask).flatten(1)


def hyperplane_step(x: Tensor, w: Tensor, value: Tensor, norm: str, box: tuple[float, float]) -> Tensor:
    """Return the smallest step (N, D) in ``norm`` from ``x`` onto a hyperplane, inside the box.

    Croce & Hein 2020, equation 5. If the hyperplane does not intersect the box, equation 6: the step to the nearest
    corner of the box.

    Args:
        x: flattened images (N, D) in the box.
        w: normals (N, D) of the hyperplanes.
        value: (N,), values at ``x`` of the affine functions that vanish on the hyperplanes.
        norm: ``linf``, ``l2`` or ``l1``.
        box: lowest and highest pixel value.
    """
    if norm == "l1":
        return _sparse_step(x, w, value, box)
    # By the Karush-Kuhn-Tucker conditions each pixel moves by min(t pace, room), with pace 1 under L-inf and |w| under
    # L2. The gain sum |w| min(t pace, room) is concave and piecewise linear in t. Newton's method from t = 0 finds the
    # t at which it equals |value|: each step stays below, and takes the pixels that reached the box out of the slope.
    direction = -value.sign()[:, None] * w.sign()
    room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    weight, wanted = w.abs(), value.abs()
    pace = weight if norm == "l2" else torch.ones_like(weight)
    bend = torch.where(weight > 0, room / pace, 0)
    most, free, t = bend.amax(1), weight > 0, torch.zeros_like(wanted)
    while True:
        slope = (weight * pace * free).sum(1)
        spent = (weight * room * ~free).sum(1)
        # If small weights remain, the difference is rounding alone, and t would fall back behind the pixels at the box.
        t = t.fmax(torch.where(slope > 0, (wanted - spent) / slope.clamp_min(torch.finfo(x.dtype).tiny), most))
        within = free & (bend > t[:, None])
        if torch.equal(within, free):
            break
        free = within
    # Under L2 a kink may be infinite, and a pixel with weight 0 still stays.
    return direction * torch.where(weight > 0, torch.minimum(t.minimum(most)[:, None] * pace, room), 0)


def _sparse_step(x: Tensor, w: Tensor, value: Tensor, box: tuple[float, float]) -> Tensor:
    """As :func:`hyperplane_step` under L1: pixels move in order of their weights, each as far as the box allows."""
    direction = -value.sign()[:, None] * w.sign()
    room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    weight, order = w.abs().sort(1, descending=True)
    gain = weight * room.gather(1, order)
    budget = (value.abs()[:, None] - (gain.cumsum(1) - gain)).clamp_min(0)
    move = torch.minimum(budget / weight.clamp_min(torch.finfo(x.dtype).tiny), room.gather(1, order)) * (weight > 0)
    return direction * torch.zeros_like(x).scatter(1, order, move)


def dual_norm(gradients: Tensor, norm: str) -> Tensor:
    """Return the dual norm (N, …) of gradients (N, …, D): the maximum gain of a step of length 1."""
    order = {"linf": 1.0, "l2": 2.0, "l1": float("inf"), "l0": float("inf")}[norm]
    return torch.linalg.vector_norm(gradients, ord=order, dim=-1)
