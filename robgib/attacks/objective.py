"""Objectives of attacks: losses, and the criterion for adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.carried import carried
from robgib.errors import RobGIBError, unknown_name
from robgib.models.adapt import finite_answers
from robgib.models.inference import BatchedModel
from robgib.runtime import SampleRNG

__all__ = [
    "Criterion",
    "Objective",
    "is_stochastic",
    "make_objective",
    "misclassified",
    "targeted_loss",
    "wrong_by",
]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each prediction (N,) from logits (N, classes) differs from ``y`` (N,) or is not finite.

    An output that is not finite counts as misclassified.
    """
    return (logits.argmax(1) != y) | ~finite_answers(logits)


def wrong_by(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin (N,) of the most likely wrong class over the true class, minus a tolerance for rounding.

    An image on the boundary may be right in one batch and wrong in another; above 0 it is wrong in both. The result is
    infinite if the output is not finite.
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
    """Margin over the spread of the three largest logits (Croce & Hein 2020, equation 6); it is invariant to scale."""
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
    """When an image is adversarial: the prediction differs from the true label, or equals the target.

    Attributes:
        labels: true labels (N,), or targets.
        targeted: whether they are targets.
        patient: the criterion is never met, so that the attack continues; for stochastic models, where one success
            may be a lucky draw.

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    >>> Criterion(torch.tensor([0, 0]))(logits)
    tensor([False,  True])
    """

    labels: Tensor
    targeted: bool = False
    patient: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Whether each sample (N,) with logits (N, classes) is adversarial; outputs that are not finite are."""
        if self.patient:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if not self.targeted:
            return misclassified(logits, self.labels)
        return (logits.argmax(1) == self.labels) | ~finite_answers(logits)

    def select(self, mask: Tensor | slice) -> Criterion:
        """Return the criterion of a subset of the samples."""
        return replace(self, labels=self.labels[mask])


@dataclass(frozen=True)
class Objective:
    """The objective that an attack maximises: the loss of the true labels, or the negative loss of targets.

    Attributes:
        loss: ``ce``, ``margin`` or ``dlr``.
        labels: true labels (N,), or targets.
        criterion: the stopping criterion; with targets it may accept any wrong class.
        targeted: whether the labels are targets.
    """

    loss: str
    labels: Tensor
    criterion: Criterion
    targeted: bool = False

    @classmethod
    def untargeted(cls, labels: Tensor, loss: str, patient: bool = False) -> Objective:
        """Return the untargeted objective for true labels (N,); if they carry targets, the objective of these."""
        targets = carried(labels, "targets")
        if targets is not None:
            return cls(loss, targets, Criterion(targets, True, patient), targeted=True)
        return cls(loss, labels, Criterion(labels, patient=patient))

    def value(self, logits: Tensor) -> Tensor:
        """Return the value (N,) of each sample, which the attack maximises."""
        if self.targeted and not self.criterion.targeted and self.loss == "dlr":
            return _towards(logits, self.criterion.labels, self.labels)
        value = _LOSSES[self.loss](logits, self.labels)
        return -value if self.targeted else value

    def select(self, mask: Tensor | slice) -> Objective:
        """Return the objective of a subset of the samples."""
        return replace(self, labels=self.labels[mask], criterion=self.criterion.select(mask))


def targeted_loss(classes: int) -> Loss:
    """Return the loss of ascent towards a class: DLR, or the margin if the model has too few classes for it.

    >>> targeted_loss(10), targeted_loss(3)
    ('dlr', 'margin')
    """
    return "dlr" if classes > 3 else "margin"


def is_stochastic(model: nn.Module) -> bool:
    """Whether the model of an attack is known to be stochastic."""
    return isinstance(model, BatchedModel) and model.random


def make_objective(model: nn.Module, x: Tensor, y: Tensor, target: str, loss: str, rng: SampleRNG) -> Objective:
    """Return the untargeted objective (``target="none"``), or a targeted one.

    The target is ``random`` (uniform over the wrong classes), ``least-likely`` or ``second`` (the most likely wrong
    class), by the logits of the clean images. Labels that carry targets have no other rule.

    Raises:
        RobGIBError: a name is unknown, or a rule is given with labels that carry targets.
    """
    if loss not in _LOSSES:
        raise unknown_name("loss", loss, _LOSSES)
    patient = is_stochastic(model)
    if target == "none":
        return Objective.untargeted(y, loss, patient)
    if carried(y, "targets") is not None:
        raise RobGIBError(f"the images carry targets, and the attack has target={target}; omit one of them.")
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
