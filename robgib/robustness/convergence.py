"""Attacks watched step by step: whether more steps would have found more."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.objective import Objective, misled
from robgib.attacks.threat_model import distance
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.models.adapt import seeded
from robgib.models.inference import BatchedModel, ObjectiveProtocol, PreparedModel, eval_mode
from robgib.runtime import SampleRNG

__all__ = ["TRACKED", "convergence"]

TRACKED = 50
"""Samples that an attack is watched on, at most."""
_POINTS = 40  # of a curve


class _Labels(Tensor):
    """Labels that know, whatever an attack picks of them, which samples they are of."""

    rows: Tensor

    @classmethod
    def of(cls, y: Tensor, rows: Tensor) -> _Labels:
        """Label the samples ``rows`` (N,) with ``y`` (N,)."""
        labels = y.as_subclass(cls)
        labels.rows = rows
        return labels

    # Whatever else is done with them gives plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        """Pick some, and their samples."""
        picked = self.as_subclass(Tensor)[index]
        return _Labels.of(picked, self.rows[index]) if picked.ndim == 1 else picked


class _Watched(BatchedModel):
    """Keeps what every gradient was taken at: lead of the true class, and distance, by sample."""

    def __init__(self, prepared: PreparedModel, x: Tensor, y: Tensor, norm: str) -> None:
        draws = prepared.draws if prepared.random else 1
        super().__init__(prepared.model, prepared.batch_size, random=prepared.random, draws=draws)
        self.x, self.y, self.norm = x, y, norm
        self.leads: list[list[float]] = [[] for _ in range(len(x))]
        self.reach: list[list[float]] = [[] for _ in range(len(x))]

    def gradient(self, x: Tensor, goal: ObjectiveProtocol) -> tuple[Tensor, Tensor]:
        """See :meth:`BatchedModel.gradient`."""
        gradient, logits = super().gradient(x, goal)
        which = getattr(getattr(goal.criterion, "labels", None), "rows", None)
        if which is None:  # an attack that makes labels of its own
            return gradient, logits
        lead = -Objective.untargeted(self.y[which], "margin").value(logits)
        reach = distance(x, self.x[which], self.norm)
        for row, a, b in zip(which.tolist(), lead.tolist(), reach.tolist(), strict=True):
            self.leads[row].append(a)
            self.reach[row].append(b)
        return gradient, logits


def convergence(
    prepared: PreparedModel,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Run an attack once more on a few images, and say where it stood at each of its gradient steps.

    Args:
        prepared: the model.
        x: images (N, …), right ones; the first :data:`TRACKED` are used.
        y: their labels (N,).
        attack: the attack, from the start: what others found before it is not known to it.
        seed: of its random numbers.
        device: where the model is.

    Returns:
        A row a step, 40 at most: ``step``; ``samples`` watched; ``right``, the share of them still right; ``lead``, the
        true class's smallest lead in logits so far as a share of that on the clean image, the mean (0 where fooled; in
        the ball, but for an attack that looks for the nearest image);
        ``distance``, the mean of the images at that step or a sample's last. None for an attack that takes no
        gradient of a loss.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:20], data.test.y[:20]
    >>> rows = convergence(prepare(model, x), x, y, robgib.attacks.PGD("linf", 0.1, steps=10))
    >>> rows[-1]["step"], rows[0]["right"] >= rows[-1]["right"]
    (10, True)
    """
    x, y = x[:TRACKED].to(device), y[:TRACKED].to(device)
    if not len(x) or not attack.pooled:
        return []
    with eval_mode(prepared.model), seeded(seed, device), warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)  # the attack said it when it ran
        watched = _Watched(prepared, x, y, attack.threat.norm)
        with torch.no_grad():
            clean = -Objective.untargeted(y, "margin").value(watched(x))
        try:
            find = attack.find if isinstance(attack, MinimumNormAttack) else attack.perturb
            labels = _Labels.of(y.clone(), torch.arange(len(y), device=y.device))
            found = find(watched, x.clone(), labels, SampleRNG(seed, range(len(x))))
        except NoGradientError:
            return []
        with torch.no_grad():
            fooled = misled(watched(found), y) & (attack.threat.allows(found, x))
        end = distance(found, x, attack.threat.norm)
    if not any(watched.leads):
        return []
    edge = attack.threat.eps * (1 + 1e-4)
    # Who looks for the nearest image comes from outside; of others' images only those in the ball count, since a climb
    # may begin far out.
    counted = math.inf if isinstance(attack, MinimumNormAttack) else edge
    for row, (leads, far) in enumerate(zip(watched.leads, watched.reach, strict=True)):
        # What the last step led to has no gradient of its own: the image that came back tells.
        if not leads or leads[-1] > 0 or far[-1] > counted:
            leads.append(0.0 if bool(fooled[row]) else float(clean[row]))
            far.append(float(end[row]))
    steps = max(map(len, watched.leads)) - 1
    lead, reach, right = (np.zeros((len(x), steps + 1)) for _ in range(3))
    for row, (leads, far) in enumerate(zip(watched.leads, watched.reach, strict=True)):
        held, size = np.array(leads), np.array(far)
        least = np.minimum.accumulate(np.where(size <= counted, held, float(clean[row])))
        whole = np.maximum(least, 0) / max(float(clean[row]), 1e-12)
        stands = np.minimum.accumulate(np.where(size <= edge, held, np.inf)) > 0
        for kept, values in ((lead, whole), (reach, size), (right, stands)):
            kept[row, : len(values)], kept[row, len(values) :] = values, values[-1]
    shown = _spread(steps)
    return [
        {
            "step": int(step),
            "samples": len(x),
            "right": float(right[:, step].mean()),
            "lead": float(lead[:, step].mean()),
            "distance": float(reach[:, step].mean()),
        }
        for step in shown
    ]


def _spread(steps: int) -> Sequence[int]:
    """Steps to show, from 0: all, or about as many a power of ten where they are many."""
    if steps < _POINTS:
        return range(steps + 1)
    many = np.unique(np.round(np.geomspace(1, steps, _POINTS - 1)).astype(int))
    return [0, *many.tolist()]
