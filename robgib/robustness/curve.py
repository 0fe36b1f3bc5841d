"""Accuracy as a function of eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.threat_model import ThreatModel, within
from robgib.models.inference import Answers, PreparedModel, prepare
from robgib.options import Context, gather, or_default
from robgib.robustness.run_attack import AttackResult, run_attack

__all__ = ["accuracy_curve", "curve_points"]

_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0)  # multiples of eps at which a curve is measured


def accuracy_curve(
    model: object,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    known: AttackResult,
    *,
    label: str = "attack",
    clean: np.ndarray | Answers,
    factors: Sequence[float] = _FACTORS,
    context: Context | None = None,
    **fields: Any,
) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Return points (eps, number of right samples) at 0, eps and multiples of eps, in ascending order; and distances.

    Known results are reused. An adversarial image at a distance fools at every eps above that distance. A sample that
    ``known`` (the outcome at eps) did not fool counts as right at every smaller eps. The distances of a minimum-norm
    attack give the whole curve. In a cascade, such an attack also runs on the samples that were fooled before it. A
    stochastic model is attacked anew at each eps, and samples count by their shares of right answers.

    Args:
        model: classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attack: the attack with its threat model.
        known: its result at its own eps.
        label: name for messages and progress.
        clean: clean predictions (N,), or the result of :func:`~robgib.models.inference.answers`.
        factors: multiples of eps of the other points.
        context: seed, device (by default the CPU), batch size, resume and progress (:class:`~robgib.options.Context`).
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        The curve, and the minimum distance (N,) of an adversarial image for each sample (see :class:`AttackResult`).

    Raises:
        RobGIBError: as for :func:`~robgib.robustness.run_attack.run_attack`.
    """
    (context,) = gather("accuracy_curve", fields, or_default("context", context, Context(device="cpu")))
    if not isinstance(clean, Answers):
        clean = Answers(clean, (clean == y.numpy()).astype(float))
    if not isinstance(model, PreparedModel):
        model = prepare(model, x, batch_size=context.batch_size, device=context.device)
    measurement = _Curve(model, x, y, attack, label, clean, known.distance.copy(), context)
    radii = _radii(attack.threat, x[0].numel() if len(x) else 0, factors)
    if model.random:
        return measurement.of_shares(radii, known), measurement.nearest
    if isinstance(attack, MinimumNormAttack):
        measurement.complete(known)
    else:
        measurement.attack_between(radii, known)
    return curve_points(attack.threat, x, clean.right, known.right, measurement.nearest, factors), measurement.nearest


@dataclass(frozen=True)
class _Curve:
    """The measurement of a curve.

    Attributes:
        model: the classifier.
        x: images (N, …).
        y: labels (N,).
        attack: the attack with its threat model.
        label: name of the attack.
        clean: the model's answers to the clean images.
        nearest: minimum distance (N,) of an adversarial image so far; updated by every attack.
        context: the context of the computation.
    """

    model: PreparedModel
    x: Tensor
    y: Tensor
    attack: Attack
    label: str
    clean: Answers
    nearest: np.ndarray
    context: Context

    @property
    def right(self) -> np.ndarray:
        """Which samples (N,) are right on the clean images."""
        right: np.ndarray = self.clean.right > 0
        return right

    def attack_at(self, eps: float, rows: np.ndarray) -> AttackResult:
        """Attack some rows at a radius."""
        outcome = run_attack(
            self.model,
            self.x[rows],
            self.y[rows],
            self.attack.at(eps),
            label=f"{self.label} at eps={eps:.3g}",
            clean=Answers(self.clean.prediction[rows], self.clean.right[rows]),
            index=rows,
            context=replace(self.context, parts=self.context.parts.at(f"{eps:.9g}")),
        )
        self.nearest[rows] = np.minimum(self.nearest[rows], outcome.distance)
        return outcome

    def complete(self, known: AttackResult) -> None:
        """Find the distances of samples on which a minimum-norm attack did not run."""
        if known.attacked is not None:
            rest = np.flatnonzero(self.right & ~known.attacked)
            if len(rest):
                self.attack_at(self.attack.threat.eps, rest)

    def attack_between(self, radii: Sequence[float], known: AttackResult) -> None:
        """Attack, at each radius in ascending order, the samples whose answers there are not known."""
        eps, fooled = self.attack.threat.eps, self.right & (known.right < 1)
        for at in radii:
            remaining = _remaining(at, eps, self.right, fooled, self.nearest) & (fooled | (at > eps))
            if at != eps and remaining.any():
                self.attack_at(at, np.flatnonzero(remaining))

    def of_shares(self, radii: Sequence[float], known: AttackResult) -> list[tuple[float, float]]:
        """Return the curve of a stochastic model, which is attacked anew at each radius."""
        curve: list[tuple[float, float]] = [(0.0, _count(self.clean.right))]
        rows = np.flatnonzero(self.right)
        for at in radii:
            shares = self.clean.right.copy()
            if at == self.attack.threat.eps:
                shares = known.right
            elif len(rows):
                shares[rows] = self.attack_at(at, rows).right
            curve.append((at, min(curve[-1][1], _count(shares))))
        return curve


def curve_points(
    threat: ThreatModel,
    x: Tensor,
    clean: np.ndarray,
    known: np.ndarray,
    nearest: np.ndarray,
    factors: Sequence[float] = _FACTORS,
) -> list[tuple[float, float]]:
    """Return the curve (eps, number of right samples) of a deterministic model.

    Args:
        threat: threat model of the attack.
        x: images (N, …).
        clean: which samples (N,) are right on the clean images.
        known: which samples (N,) are right at eps.
        nearest: minimum distances (N,) of adversarial images.
        factors: multiples of eps of the other points.
    """
    right, fooled = clean > 0, (clean > 0) & (known < 1)
    radii = _radii(threat, x[0].numel() if len(x) else 0, factors)
    return [
        (0.0, _count(clean)),
        *((at, _count(_remaining(at, threat.eps, right, fooled, nearest))) for at in radii),
    ]


def _radii(threat: ThreatModel, pixels: int, factors: Sequence[float]) -> list[float]:
    """Return the radii of a curve, without 0. No radius exceeds the box."""
    widest = threat.widest(pixels) if pixels else threat.eps
    return sorted({min(threat.eps * factor, widest) for factor in (*factors, 1.0)})


def _remaining(at: float, eps: float, right: np.ndarray, fooled: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return which samples (N,) remain right at the radius ``at``; ``fooled`` are those fooled at ``eps``."""
    reached = within(nearest, at)
    fooled_here = fooled & reached if at < eps else fooled if at == eps else fooled | reached
    remaining: np.ndarray = right & ~fooled_here
    return remaining


def _count(right: np.ndarray) -> float:
    """Return the number of right samples, as an int, or as a float if it is a sum of shares."""
    total = float(right.sum())
    return int(total) if total.is_integer() else total
