"""The steps of an attack: margin and distance of some samples at every gradient, recorded while the attack runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from robgib.attacks.carried import carried
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import distance
from robgib.models.inference import BatchedModel, ObjectiveProtocol

__all__ = ["TRACKED", "RecordingModel", "StepRecord"]

TRACKED = 50
"""Maximum number of recorded samples of an attack: the first that it attacks."""


@dataclass
class StepRecord:
    """The steps of an attack on n samples.

    Attributes:
        norm: norm of the distances.
        rows: rows (n,) of the samples among those of the attack.
        margins: margin of the true class at each gradient, in logits, by sample.
        reach: distance of the image at each gradient, by sample.
        fooled: whether the image (n,) that the attack returned fools the model, inside the ball.
        end: its distance (n,).
    """

    norm: str
    rows: np.ndarray
    margins: list[list[float]] = field(default_factory=list)
    reach: list[list[float]] = field(default_factory=list)
    fooled: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    end: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def begin(cls, norm: str, rows: np.ndarray) -> StepRecord:
        """Return the record of an attack that will run on ``rows`` in this order."""
        few = rows[:TRACKED]
        margins: list[list[float]] = [[] for _ in few]
        reach: list[list[float]] = [[] for _ in few]
        return cls(norm, few, margins, reach, np.zeros(len(few), bool), np.zeros(len(few)))

    def add(self, logits: Tensor, y: Tensor, images: Tensor, clean: Tensor, places: Tensor) -> None:
        """Record the logits at ``images``, whose clean images and labels are ``clean`` and ``y``, of some places."""
        margin = -Objective.untargeted(y, "margin").value(logits)
        reach = distance(images, clean, self.norm)
        for place, a, b in zip(places.tolist(), margin.tolist(), reach.tolist(), strict=True):
            self.margins[place].append(a)
            self.reach[place].append(b)

    def finish(self, fooled: Tensor, end: Tensor) -> None:
        """Record the returned images: whether each fools, and its distance (N,); others than the first are left out."""
        count = len(self.rows)
        self.fooled, self.end = fooled[:count].cpu().numpy(), end[:count].cpu().numpy()

    def extend(self, other: StepRecord, rows: np.ndarray) -> None:
        """Append the record of further samples, which are places of ``rows``."""
        self.rows = np.concatenate([self.rows, rows[other.rows]])
        self.margins, self.reach = self.margins + other.margins, self.reach + other.reach
        self.fooled = np.concatenate([self.fooled, other.fooled])
        self.end = np.concatenate([self.end, other.end])

    def kept(self) -> dict[str, np.ndarray]:
        """Return the record as arrays, for :meth:`restore`."""
        return {
            "steps/rows": self.rows,
            "steps/lengths": np.array([len(one) for one in self.margins], dtype=np.int64),
            "steps/margins": np.array([value for one in self.margins for value in one]),
            "steps/reach": np.array([value for one in self.reach for value in one]),
            "steps/fooled": self.fooled,
            "steps/end": self.end,
        }

    @classmethod
    def restore(cls, norm: str, kept: Mapping[str, Any]) -> StepRecord:
        """Return the record of :meth:`kept`."""
        cuts = np.cumsum(kept["steps/lengths"])[:-1]
        margins, reach = (
            [one.tolist() for one in np.split(kept[f"steps/{name}"], cuts)] if len(kept["steps/rows"]) else []
            for name in ("margins", "reach")
        )
        return cls(norm, kept["steps/rows"], margins, reach, kept["steps/fooled"].copy(), kept["steps/end"].copy())


class RecordingModel(BatchedModel):
    """A :class:`BatchedModel` that records the steps of an attack.

    The samples under attack are set by :meth:`watching`; gradients are those of samples whose labels carry ``rows``.
    """

    record: StepRecord
    clean: Tensor
    labels: Tensor

    def watching(self, record: StepRecord, x: Tensor, y: Tensor) -> None:
        """Record from now on the attack on the images ``x`` (N, …) with labels ``y``."""
        count = len(record.rows)
        self.record = record
        self.clean, self.labels = x[:count].clone(), y[:count].clone()

    def gradient(self, x: Tensor, goal: ObjectiveProtocol) -> tuple[Tensor, Tensor]:
        """See :meth:`BatchedModel.gradient`."""
        gradient, logits = super().gradient(x, goal)
        labels = getattr(goal.criterion, "labels", None)
        places = None if labels is None else carried(labels, "rows")
        if places is not None and len(self.labels):  # else the attack created its own labels
            recorded = (places < len(self.labels)).nonzero().squeeze(1)
            if len(recorded):
                some = places[recorded]
                self.record.add(logits[recorded], self.labels[some], x[recorded].detach(), self.clean[some], some)
        return gradient, logits
