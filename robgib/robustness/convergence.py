"""Convergence of attacks: robust accuracy and margin after each gradient step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.objective import Objective
from robgib.errors import NoGradientError
from robgib.models.adapt import seeded
from robgib.models.inference import Answers, BatchedModel, PreparedModel, eval_mode
from robgib.options import Context, gather, or_default
from robgib.robustness.run_attack import AttackResult, run_attack
from robgib.robustness.steps import TRACKED, StepRecord

__all__ = ["convergence", "convergence_rows"]

_POINTS = 40  # points of a curve


def convergence(
    prepared: PreparedModel,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    context: Context | None = None,
    **fields: Any,
) -> list[dict[str, Any]]:
    """Run an attack on a few images, and return its progress at each gradient step.

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
    (context,) = gather("convergence", fields, or_default("context", context, Context(device="cpu")))
    x, y = x[:TRACKED], y[:TRACKED]
    if not len(x):
        return []
    clean = Answers(y.cpu().numpy(), np.ones(len(x)))
    try:
        result = run_attack(prepared, x, y, attack, clean=clean, context=context)
    except NoGradientError:
        return []
    return convergence_rows(prepared, x, y, attack, result, context.device)


def convergence_rows(
    prepared: PreparedModel, x: Tensor, y: Tensor, attack: Attack, result: AttackResult, device: torch.device | str
) -> list[dict[str, Any]]:
    """Return the progress of an attack that ran, as :func:`convergence` does, from the steps that it recorded.

    Args:
        prepared: the model, on ``device``.
        x: images (N, …) of the attack.
        y: their labels (N,).
        attack: the attack.
        result: its result.
        device: device of the model.
    """
    record = result.steps
    if record is None or not any(record.margins):
        return []
    images, labels = x[record.rows].to(device), y[record.rows].to(device)
    with eval_mode(prepared.model), torch.no_grad(), seeded(0, torch.device(device)):
        logits = BatchedModel(prepared.model, prepared.batch_size)(images)
        clean = -Objective.untargeted(labels, "margin").value(logits)
    margin, reach, right = _by_step(record, attack, clean.cpu().numpy())
    return [
        {
            "step": int(step),
            "samples": len(images),
            "right": float(right[:, step].mean()),
            "margin": float(margin[:, step].mean()),
            "distance": float(reach[:, step].mean()),
        }
        for step in _spread(margin.shape[1] - 1)
    ]


def _by_step(record: StepRecord, attack: Attack, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the smallest margin so far, the distance, and whether a sample is still right, each (N, steps + 1).

    Args:
        record: the recorded steps.
        attack: the attack.
        clean: clean margins (N,).
    """
    edge = attack.threat.eps * (1 + 1e-4)
    # Minimum-norm attacks may approach from outside the ball. Other attacks count inside the ball only, since a
    # large-to-small eps schedule starts outside.
    counted = math.inf if isinstance(attack, MinimumNormAttack) else edge
    courses = []
    for row, (margins, far) in enumerate(zip(record.margins, record.reach, strict=True)):
        # No gradient is taken at the result of the last step: use the returned image.
        if not margins or margins[-1] > 0 or far[-1] > counted:
            last = 0.0 if record.fooled[row] else float(clean[row])
            margins, far = [*margins, last], [*far, float(record.end[row])]
        courses.append((np.array(margins), np.array(far)))
    shape = (len(clean), max(len(recorded) for recorded, _ in courses))
    margin, reach, right = (np.zeros(shape) for _ in range(3))
    for row, (recorded, size) in enumerate(courses):
        least = np.minimum.accumulate(np.where(size <= counted, recorded, clean[row]))
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
