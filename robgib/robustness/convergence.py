"""Convergence of attacks: robust accuracy and margin after each gradient step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.objective import Objective, misclassified
from robgib.attacks.threat_model import distance
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.models.adapt import seeded
from robgib.models.inference import BatchedModel, ObjectiveProtocol, PreparedModel, eval_mode
from robgib.options import Context, gather
from robgib.runtime import SampleRNG

__all__ = ["TRACKED", "convergence"]

TRACKED = 50
"""Maximum number of samples."""
_POINTS = 40  # points of a curve


class _Labels(Tensor):
    """Labels that keep their sample indices when an attack selects some of them."""

    rows: Tensor

    @classmethod
    def of(cls, y: Tensor, rows: Tensor) -> _Labels:
        """Label the samples ``rows`` (N,) with ``y`` (N,)."""
        labels = y.as_subclass(cls)
        labels.rows = rows
        return labels

    # All other operations return plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        """Select labels and their sample indices."""
        picked = self.as_subclass(Tensor)[index]
        return _Labels.of(picked, self.rows[index]) if picked.ndim == 1 else picked


class _Watched(BatchedModel):
    """Records the margin of the true class and the distance of each sample at every gradient."""

    def __init__(self, prepared: PreparedModel, x: Tensor, y: Tensor, norm: str) -> None:
        draws = prepared.draws if prepared.random else 1
        super().__init__(prepared.model, prepared.batch_size, random=prepared.random, draws=draws)
        self.x, self.y, self.norm = x, y, norm
        self.margins: list[list[float]] = [[] for _ in range(len(x))]
        self.reach: list[list[float]] = [[] for _ in range(len(x))]

    def gradient(self, x: Tensor, goal: ObjectiveProtocol) -> tuple[Tensor, Tensor]:
        """See :meth:`BatchedModel.gradient`."""
        gradient, logits = super().gradient(x, goal)
        which = getattr(getattr(goal.criterion, "labels", None), "rows", None)
        if which is None:  # the attack created its own labels
            return gradient, logits
        margin = -Objective.untargeted(self.y[which], "margin").value(logits)
        reach = distance(x, self.x[which], self.norm)
        for row, a, b in zip(which.tolist(), margin.tolist(), reach.tolist(), strict=True):
            self.margins[row].append(a)
            self.reach[row].append(b)
        return gradient, logits


def convergence(
    prepared: PreparedModel,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    context: Context | None = None,
    **fields: Any,
) -> list[dict[str, Any]]:
    """Run an attack again on a few images, and measure its progress at each gradient step.

    Args:
        prepared: the model.
        x: correctly classified images (N, …); the first :data:`TRACKED` are used.
        y: their labels (N,).
        attack: the attack; it runs on its own, without the results of other attacks.
        context: seed and device, by default the CPU (:class:`~robgib.options.Context`).
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        One row per step, 40 at most: ``step``; ``samples``, their number; ``right``, the share that is still right;
        ``margin``, the mean of the smallest margin so far (in logits) as a share of the clean margin, 0 if fooled;
        ``distance``, the mean distance at that step. Only images in the ball count for the margin, except for
        minimum-norm attacks. The list is empty for an attack that uses no gradient of a loss.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:20], data.test.y[:20]
    >>> rows = convergence(prepare(model, x), x, y, robgib.attacks.PGD("linf", 0.1, steps=10))
    >>> rows[-1]["step"], rows[0]["right"] >= rows[-1]["right"]
    (10, True)
    """
    (context,) = gather("convergence", fields, context or Context(device="cpu"))
    x, y = x[:TRACKED].to(context.device), y[:TRACKED].to(context.device)
    if not len(x) or not attack.pooled:
        return []
    watched = _Watched(prepared, x, y, attack.threat.norm)
    with eval_mode(prepared.model), seeded(context.seed, torch.device(context.device)), warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)  # the attack has already emitted its warnings
        with torch.no_grad():
            clean = -Objective.untargeted(y, "margin").value(watched(x))
        try:
            find = attack.find if isinstance(attack, MinimumNormAttack) else attack.perturb
            labels = _Labels.of(y.clone(), torch.arange(len(y), device=y.device))
            x_adv = find(watched, x.clone(), labels, SampleRNG(context.seed, range(len(x))))
        except NoGradientError:
            return []
        with torch.no_grad():
            fooled = misclassified(watched(x_adv), y) & (attack.threat.allows(x_adv, x))
        end = distance(x_adv, x, attack.threat.norm)
    if not any(watched.margins):
        return []
    margin, reach, right = _by_step(watched, attack, clean, fooled, end)
    return [
        {
            "step": int(step),
            "samples": len(x),
            "right": float(right[:, step].mean()),
            "margin": float(margin[:, step].mean()),
            "distance": float(reach[:, step].mean()),
        }
        for step in _spread(margin.shape[1] - 1)
    ]


def _by_step(
    watched: _Watched, attack: Attack, clean: Tensor, fooled: Tensor, end: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the smallest margin so far, the distance, and whether a sample is still right, each (N, steps + 1).

    Args:
        watched: the recorded margins and distances.
        attack: the attack.
        clean: clean margins (N,).
        fooled: whether the returned image (N,) fools the model, inside the ball.
        end: distances (N,) of the returned images.
    """
    edge = attack.threat.eps * (1 + 1e-4)
    # Minimum-norm attacks may approach from outside the ball. Other attacks count inside the ball only, since a
    # large-to-small eps schedule starts outside.
    counted = math.inf if isinstance(attack, MinimumNormAttack) else edge
    for row, (margins, far) in enumerate(zip(watched.margins, watched.reach, strict=True)):
        # No gradient is taken at the result of the last step: use the returned image.
        if not margins or margins[-1] > 0 or far[-1] > counted:
            margins.append(0.0 if bool(fooled[row]) else float(clean[row]))
            far.append(float(end[row]))
    shape = (len(clean), max(map(len, watched.margins)))
    margin, reach, right = (np.zeros(shape) for _ in range(3))
    for row, (margins, far) in enumerate(zip(watched.margins, watched.reach, strict=True)):
        recorded, size = np.array(margins), np.array(far)
        least = np.minimum.accumulate(np.where(size <= counted, recorded, float(clean[row])))
        share = np.maximum(least, 0) / max(float(clean[row]), 1e-12)
        remains = np.minimum.accumulate(np.where(size <= edge, recorded, np.inf)) > 0
        for kept, values in ((margin, share), (reach, size), (right, remains)):
            kept[row, : len(values)], kept[row, len(values) :] = values, values[-1]
    return margin, reach, right


def _spread(steps: int) -> Sequence[int]:
    """Return the steps to show, from 0: all steps, or logarithmically spaced ones if there are many."""
    if steps < _POINTS:
        return range(steps + 1)
    many = np.unique(np.round(np.geomspace(1, steps, _POINTS - 1)).astype(int))
    return [0, *many.tolist()]
