"""What an attack is after: the losses it climbs, and when an image is adversarial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError, unknown_name
from robgib.models.adapt import finite_answers
from robgib.models.inference import BatchedModel
from robgib.runtime import SampleRNG

__all__ = [
    "Criterion",
    "Objective",
    "answers_at_random",
    "make_objective",
    "misled",
    "wrong_by",
]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def misled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each answer (N,) in logits (N, classes) is another than ``y`` (N,), or none at all.

    An answer that is not finite is none: whoever finds such an image has done with the model.
    """
    return (logits.argmax(1) != y) | ~finite_answers(logits)


def wrong_by(logits: Tensor, y: Tensor) -> Tensor:
    """By how much (N,) a wrong class leads the true one, less what rounding could explain.

    An image on the boundary is right in one batch and wrong in another; above 0 it is wrong in both. Where there is no
    answer at all it is infinite.
    """
    scale = torch.where(torch.isfinite(logits), logits.abs(), 0).amax(1)
    return torch.where(finite_answers(logits), _margin(logits, y) - 1e-5 * scale, float("inf"))


def _largest(logits: Tensor, count: int) -> Tensor:
    if logits.shape[1] < count:
        raise RobGIBError(
            f"the loss dlr{' towards targets' if count > 3 else ''} needs {count} classes and the model has "
            f"{logits.shape[1]}; use loss=margin."
        )
    return logits.topk(count, 1).values


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin over the spread of the three largest logits (Croce & Hein 2020, equation 6): no scale saturates it."""
    top = _largest(logits, 3)
    return _margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(_TINY)


def _towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted form of :func:`_dlr` (Croce & Hein 2020, equation 7)."""
    top = _largest(logits, 4)
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


_TINY = 1e-12
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "margin": _margin,  # Carlini & Wagner 2017, f_6 without its floor
    "dlr": _dlr,
}
Loss = Literal["ce", "margin", "dlr"]
Target = Literal["none", "random", "least-likely", "second"]


@dataclass(frozen=True)
class Criterion:
    """When an image is adversarial: the model's answer is not the true label, or is the target.

    Attributes:
        labels: true labels (N,), or targets.
        targeted: whether they are targets.
        patient: never, as long as an attack goes on: against a model that answers at random one success is a lucky
            draw.

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    >>> Criterion(torch.tensor([0, 0]))(logits)
    tensor([False,  True])
    """

    labels: Tensor
    targeted: bool = False
    patient: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Whether each sample (N,) of logits (N, classes) is adversarial; one without an answer is."""
        if self.patient:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if not self.targeted:
            return misled(logits, self.labels)
        return (logits.argmax(1) == self.labels) | ~finite_answers(logits)

    def select(self, mask: Tensor | slice) -> Criterion:
        """The same for some of the samples."""
        return replace(self, labels=self.labels[mask])


@dataclass(frozen=True)
class Objective:
    """What an attack climbs: a loss away from the true labels, or down towards targets.

    Attributes:
        loss: ``ce``, ``margin`` or ``dlr``.
        labels: true labels (N,), or targets.
        criterion: when to stop. With targets it may be that of any wrong class.
        targeted: whether the labels are targets.
    """

    loss: str
    labels: Tensor
    criterion: Criterion
    targeted: bool = False

    @classmethod
    def untargeted(cls, labels: Tensor, loss: str, patient: bool = False) -> Objective:
        """Away from the true labels (N,)."""
        return cls(loss, labels, Criterion(labels, patient=patient))

    def value(self, logits: Tensor) -> Tensor:
        """Per-sample value (N,) that the attack increases."""
        if self.targeted and not self.criterion.targeted and self.loss == "dlr":
            return _towards(logits, self.criterion.labels, self.labels)
        value = _LOSSES[self.loss](logits, self.labels)
        return -value if self.targeted else value

    def select(self, mask: Tensor | slice) -> Objective:
        """Return the objective of a subset of the samples."""
        return replace(self, labels=self.labels[mask], criterion=self.criterion.select(mask))


def answers_at_random(model: nn.Module) -> bool:
    """Whether the model that an attack was given is known to answer at random."""
    return isinstance(model, BatchedModel) and model.random


def make_objective(model: nn.Module, x: Tensor, y: Tensor, target: str, loss: str, rng: SampleRNG) -> Objective:
    """Return the untargeted objective (``target="none"``), or one with target classes chosen by the rule.

    Rules: ``random`` (uniform over the wrong classes), ``least-likely`` and ``second`` (most likely wrong
    class), by the model's logits on the clean images.
    """
    if loss not in _LOSSES:
        raise unknown_name("loss", loss, _LOSSES)
    patient = answers_at_random(model)
    if target == "none":
        return Objective.untargeted(y, loss, patient)
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    own = F.one_hot(y, classes).bool()
    if target == "random":
        labels = (y + 1 + rng.integers(classes - 1, (1,), y.device).squeeze(1)) % classes
    elif target == "least-likely":
        labels = logits.masked_fill(own, float("inf")).argmin(1)
    elif target == "second":
        labels = logits.masked_fill(own, float("-inf")).argmax(1)
    else:
        raise unknown_name("target rule", target, ("none", "random", "least-likely", "second"))
    return Objective(loss, labels, Criterion(labels, True, patient), targeted=True)
