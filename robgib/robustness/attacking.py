"""Run all attacks of an evaluation on one model, independently or as a cascade, and collect their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robgib.attacks.apgd import APGD, WIDEST
from robgib.attacks.autoattack import AutoAttack
from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.errors import NoGradientError, RobGIBError
from robgib.models.inference import Answers, PreparedModel
from robgib.options import AttackOptions, Context
from robgib.results import column_names, table
from robgib.robustness.curve import accuracy_curve
from robgib.robustness.rows import curve_rows, outcome_rows, summary_row, unattacked_row, worst_row
from robgib.robustness.run_attack import AttackResult, after, gradient_cost, run_attack
from robgib.robustness.until import attack_until
from robgib.runtime import faults_of

__all__ = ["Budget", "Findings", "Subject", "attack_all", "attack_costs", "attack_until_narrow"]

Budget = tuple[str, float]
"""Norm and eps."""
Ready = Mapping[str, "AttackResult | Exception"]
"""Results of attacks that have already run, by label."""
_PICTURES = 6  # adversarial images kept for the page
_RADII = 5  # radii of a curve besides the attack's own eps
_STEPS = 10  # minimum number of attack steps at those radii
_STALLED = 0.2  # the first attack stalls if others fool more than this share of the samples that it left right


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, its samples, and the attacks to run.

    Attributes:
        model: the classifier, on the context's device.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        clean: the model's answers to the clean images.
        attacks: the attacks, by label.
        costs: maximum number of gradients per sample of each attack, by label.
        options: what to attack and measure; ``cascade`` is a bool here.
        context: the context of the computation; ``device`` is a torch device here.
    """

    model: PreparedModel
    x: Tensor
    y: Tensor
    clean: Answers
    attacks: Mapping[str, Attack]
    costs: Mapping[str, int]
    options: AttackOptions
    context: Context

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(self.context.device)

    @property
    def pictures(self) -> int:
        """Number of adversarial images to keep for each attack."""
        return len(self) if self.options.save_adversarial else _PICTURES

    def first(self, count: int) -> Subject:
        """Return the subject restricted to its first ``count`` samples."""
        clean = Answers(self.clean.prediction[:count], self.clean.right[:count])
        return replace(self, x=self.x[:count], y=self.y[:count], clean=clean)

    def in_order(self) -> list[tuple[str, Attack]]:
        """Return the attacks in running order. A cascade runs by threat model, and then by cost."""
        order = list(self.attacks.items())
        if self.options.cascade:
            threats = list(dict.fromkeys(a.threat for _, a in order))
            order.sort(key=lambda item: (threats.index(item[1].threat), self.costs[item[0]]))
        return order

    def is_last(self, label: str) -> bool:
        """Whether no attack under the same threat model runs after this one."""
        labels = [name for name, attack in self.in_order() if attack.threat == self.attacks[label].threat]
        return labels[-1] == label

    def attack(self, label: str, clean: Answers | AttackResult, rows: slice | None = None) -> AttackResult:
        """Run one attack on the samples that are right in ``clean``, or on the given ``rows`` of them."""
        whole = rows is None
        chosen = slice(0, len(self)) if rows is None else rows
        parts = self.context.parts.at("attack", label)
        return run_attack(
            self.model,
            self.x[chosen],
            self.y[chosen],
            self.attacks[label],
            label=label,
            clean=Answers(clean.prediction, clean.right),
            index=np.arange(len(self))[chosen],
            pictures=self.pictures,
            context=replace(self.context, parts=parts if whole else parts.at(str(chosen.start), str(chosen.stop))),
        )


def attack_costs(
    model: PreparedModel, x: Tensor, y: Tensor, clean: Answers, attacks: Mapping[str, Attack], context: Context
) -> dict[str, int]:
    """Return the approximate number of gradients per sample of each attack, stated or counted on a few samples."""
    costs = {}
    for label, attack in attacks.items():
        stated = attack.cost
        costs[label] = gradient_cost(model, x, y, clean, attack, label, context) if stated is None else stated
    return costs


@dataclass
class Findings:
    """Results of the attacks on one subject so far, and their tables.

    Attributes:
        subject: the attacked subject.
        left: shares (N,) of right answers that remain, by attack.
        spent: number of passes, by budget.
    """

    subject: Subject
    left: dict[str, np.ndarray] = field(default_factory=dict)
    spent: dict[Budget, int] = field(default_factory=dict)
    _summary: list[dict[str, Any]] = field(default_factory=list)
    _outcomes: list[pd.DataFrame] = field(default_factory=list)
    _curves: list[dict[str, Any]] = field(default_factory=list)
    _pictures: dict[str, np.ndarray] = field(default_factory=dict)
    _adversarial: dict[str, np.ndarray] = field(default_factory=dict)
    _images: dict[Budget, dict[int, np.ndarray]] = field(default_factory=dict)
    _failures: list[Exception] = field(default_factory=list)
    results: dict[Budget, list[AttackResult]] = field(default_factory=dict)
    """Results of the attacks of each budget, in running order."""

    def fail(self, label: str, error: Exception) -> None:
        """Record a failed attack."""
        self._summary.append(summary_row(self._base(label), self.subject.clean, None, str(error)))
        self._failures.append(error)

    def add(self, number: int, label: str, attacked: Attacked) -> None:
        """Record the result of the ``number``-th attack."""
        subject, outcome = self.subject, attacked.outcome
        base, budget, truth = self._base(label), budget_of(subject.attacks[label]), subject.y.numpy()
        self.results.setdefault(budget, []).append(outcome)
        self.spent[budget] = self.spent.get(budget, 0) + outcome.passes.cost
        self.left[label] = outcome.right
        self._summary.append(summary_row(base, subject.clean, outcome, "", attacked.nearest))
        self._outcomes.append(outcome_rows(base, truth, subject.clean, outcome, attacked.nearest))
        self._curves += curve_rows(base, attacked.points, len(subject))
        if subject.options.save_adversarial:
            self._keep(label, budget, outcome)
        rows = sorted(outcome.pictures)[:_PICTURES]
        if rows:
            self._pictures |= {
                f"{number}/attack": np.array(label),
                f"{number}/rows": np.array(rows),
                f"{number}/clean": subject.x[rows].numpy(),
                f"{number}/adversarial": np.stack([outcome.pictures[r] for r in rows]),
                f"{number}/labels": truth[rows],
                f"{number}/clean_prediction": subject.clean.prediction[rows],
                f"{number}/adversarial_prediction": outcome.prediction[rows],
            }

    def _keep(self, label: str, budget: Budget, outcome: AttackResult) -> None:
        """Keep all adversarial images of an attack. In a cascade, also keep those of the attacks before it."""
        subject = self.subject
        if not self._adversarial:
            self._adversarial = {"clean": subject.x[:].numpy(), "labels": subject.y.numpy()}
        former = self._images.get(budget, {}) if subject.options.cascade else {}
        every = {**former, **outcome.pictures}
        self._images[budget] = every
        made = [every[row] for row in sorted(every)]
        self._adversarial[f"{label}/rows"] = np.array(sorted(every), dtype=np.int64)
        self._adversarial[f"{label}/images"] = (
            np.stack(made) if made else np.zeros((0, *subject.x.shape[1:]), np.float32)
        )

    def _base(self, label: str) -> dict[str, Any]:
        threat = self.subject.attacks[label].threat
        return {"attack": label, "norm": threat.norm, "eps": threat.eps}

    def tables(self) -> dict[str, Any]:
        """Return the tables ``robustness``, ``outcomes``, ``curve``, and the arrays ``pictures``, ``adversarial``.

        Raises:
            RobGIBError: every attack failed, and at least one for another reason than missing gradients.
        """
        subject, summary = self.subject, list(self._summary)
        # Missing gradients are no error here: the indicators report them, with a remedy.
        if subject.attacks and not self._outcomes and not all(isinstance(f, NoGradientError) for f in self._failures):
            raise RobGIBError(f"every attack failed; the first: {summary[0]['reason']}")
        for (norm, eps), results in self.results.items():
            if len(results) > 1 and not subject.options.cascade:
                summary.append(worst_row(norm, eps, subject.clean, results))
        if not summary:  # without attacks the clean accuracy is still reported
            summary = [unattacked_row(subject.clean)]
        outcomes = pd.concat(self._outcomes, ignore_index=True) if self._outcomes else table("outcomes")
        adversarial = self._adversarial
        if subject.options.save_adversarial and not adversarial:
            adversarial = {"clean": subject.x[:].numpy(), "labels": subject.y.numpy()}
        return {
            "robustness": table("robustness", summary),
            "outcomes": outcomes[column_names("outcomes")],
            "curve": table("curve", self._curves),
            "pictures": self._pictures,
            "adversarial": adversarial,
        }


@dataclass(frozen=True)
class Attacked:
    """The outcome of an attack, the points of its curve, and the minimum distances (N,) of its adversarial images."""

    outcome: AttackResult
    points: Sequence[tuple[float, float]]
    nearest: np.ndarray


def budget_of(attack: Attack) -> Budget:
    """Return the norm and eps of an attack."""
    return attack.threat.norm, attack.threat.eps


def attack_all(subject: Subject, ready: Ready) -> Findings:
    """Run every attack of a subject. ``ready`` holds the results of attacks that have already run."""
    findings = Findings(subject)
    for number, (label, _) in enumerate(subject.in_order()):
        attacked = _guarded(partial(_attack, subject, label, findings, ready), label)
        if isinstance(attacked, Exception):
            findings.fail(label, attacked)
        else:
            findings.add(number, label, attacked)
    return findings


def _attack(subject: Subject, label: str, findings: Findings, ready: Ready) -> Attacked:
    """Run one attack and measure its curve. In a cascade, only the last attack of a budget has a curve."""
    earlier = findings.results.get(budget_of(subject.attacks[label]), []) if subject.options.cascade else []
    result = ready.get(label)
    if isinstance(result, Exception):
        raise result
    if result is None:
        result = subject.attack(label, earlier[-1] if earlier else subject.clean)
        result = after(earlier[-1], result) if earlier else result
    if not subject.options.curve or (subject.options.cascade and not subject.is_last(label)):
        return Attacked(result, [], result.distance)
    name, curve_attack = _curve_attack(subject, label, earlier, result)
    spent = findings.spent.get(budget_of(subject.attacks[label]), 0) + result.passes.cost
    points, distance = accuracy_curve(
        subject.model,
        subject.x,
        subject.y,
        _shortened(curve_attack, subject.costs[name], len(subject), spent),
        result,
        label=name,
        clean=subject.clean,
        context=replace(subject.context, parts=subject.context.parts.at("curve", label)),
    )
    return Attacked(result, points, distance)


def _curve_attack(
    subject: Subject, label: str, earlier: Sequence[AttackResult], result: AttackResult
) -> tuple[str, Attack]:
    """Return the attack at the other radii of a curve, with its label.

    Args:
        subject: the attacked subject.
        label: the attack whose curve is measured.
        earlier: in a cascade, the results of the attacks of this budget before it.
        result: its own result.
    """
    # The curve of a cascade uses its cheapest attack. At small eps nearly every sample remains robust, and the most
    # expensive attack would run on all of them.
    attack = subject.attacks[label]
    if earlier and not isinstance(attack, MinimumNormAttack):
        label, attack = next((n, a) for n, a in subject.in_order() if a.threat == attack.threat)
    if earlier and isinstance(attack, APGD) and attack.widest is None and _stalled(earlier[0], result):
        attack = replace(attack, widest=WIDEST)
    return label, attack


def attack_until_narrow(subject: Subject, width: float) -> tuple[int, dict[str, AttackResult | Exception]]:
    """See :func:`attack_until`."""

    def attacker(label: str, attack: Attack, rows: slice, known: AttackResult | None) -> AttackResult | Exception:
        clean = known or Answers(subject.clean.prediction[rows], subject.clean.right[rows])

        def run() -> Attacked:
            result = subject.attack(label, clean, rows)
            return Attacked(result, [], result.distance)

        attacked = _guarded(run, label)
        return attacked if isinstance(attacked, Exception) else attacked.outcome

    return attack_until(attacker, subject.in_order(), bool(subject.options.cascade), len(subject), width)


def _stalled(first: AttackResult, result: AttackResult) -> bool:
    """Whether other attacks fooled many samples that the first attack left right: its curve is then too high."""
    left = first.right > 0
    return bool((result.right[left] < 1).mean() > _STALLED) if left.any() else False


def _shortened(attack: Attack, cost: int, count: int, allowed: int) -> Attack:
    """Return the attack for the other radii of the curve, with fewer steps if it would exceed ``allowed`` passes.

    AutoAttack is replaced by its first member. The limit is in passes because seconds depend on the machine.
    """
    share = allowed / max(_RADII * 3 * cost * count, 1)
    if share >= 1 or isinstance(attack, MinimumNormAttack):
        return attack
    if isinstance(attack, AutoAttack):
        first = attack.members(attack.targets + 1)[0]
        return _shortened(first, first.cost or 1, count, allowed)
    steps = getattr(attack, "steps", None)
    if not isinstance(steps, int) or steps <= _STEPS:
        return attack
    shorter: Attack = dataclasses.replace(attack, steps=max(_STEPS, int(steps * share)))  # type: ignore[call-arg]
    return shorter


def _guarded(run: Callable[[], Attacked], label: str) -> Attacked | Exception:
    """Run one attack and return its result, or the exception that ended it."""
    try:
        with faults_of(f"attack {label!r}"):
            return run()
    except torch.OutOfMemoryError as error:
        raise RobGIBError("the device's memory does not suffice even for one image; use another --device.") from error
    except RobGIBError as error:
        return error
