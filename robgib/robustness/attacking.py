"""Run all attacks of an evaluation on one model, independently or as a cascade, and collect their results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robgib.attacks.apgd import APGD, SCHEDULE_START
from robgib.attacks.autoattack import AutoAttack
from robgib.attacks.base import Attack, MinimumNormAttack, cost_of
from robgib.attacks.carried import carried
from robgib.attacks.estimated import EstimatedAscent
from robgib.attacks.square import Square
from robgib.attacks.threat_model import NORMS, ThreatModel
from robgib.errors import NoGradientError, RobGIBError
from robgib.models.inference import Answers, PreparedModel, outputs
from robgib.options import AttackOptions, Context
from robgib.results import column_names, table
from robgib.robustness.audit import Audited, audit, audit_wanted, further_label, scattered
from robgib.robustness.curve import accuracy_curve
from robgib.robustness.gradient_check import GRADIENT_IMAGES, GRADIENT_PASSES
from robgib.robustness.rows import curve_rows, outcome_rows, summary_row, unattacked_row, worst_row
from robgib.robustness.run_attack import AttackResult, after, attack_together, gradient_cost, run_attack
from robgib.robustness.until import attack_until
from robgib.runtime import faults_of

__all__ = [
    "SHARES",
    "Budget",
    "Findings",
    "Subject",
    "attack_all",
    "attack_costs",
    "attack_until_narrow",
    "curves_afforded",
    "measure_curves",
]

T = TypeVar("T")

Budget = tuple[str, float]
"""Norm and eps."""
Ready = Mapping[str, "AttackResult | Exception"]
"""Results of attacks that have already run, by label."""
_RIGHT = 0.5  # share of draws from which a sample counts as right
_PICTURES = 6  # adversarial images kept for the page
_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0)  # radii of a curve besides eps, as its multiples
_FACTORS_FIRST = (0.5, 2.0, 0.75, 1.5, 0.25)  # the same, the most informative first
SHARES = {"curve": 1 / 2, "corruptions": 1 / 6, "signs": 1 / 3}
"""How the passes beside the attacks, half as many as those of the attacks, are divided."""
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

    def classes(self) -> int:
        """Return the number of classes of the model."""
        return outputs(self.model, self.x[:2], seed=self.context.seed, device=self.device)

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

    def attack(self, label: str, clean: Answers | AttackResult, rows: slice | None = None) -> AttackResult:
        """Run one attack on the samples that are right in ``clean``, or on the given ``rows`` of them."""
        chosen = slice(0, len(self)) if rows is None else rows
        words = () if rows is None else (str(rows.start), str(rows.stop))
        return self._run(self.attacks[label], clean, chosen, label, words)

    def attack_rows(self, attack: Attack, known: AttackResult, rows: np.ndarray, label: str) -> AttackResult:
        """Run a further attack on some rows (n,), given what is known of all samples; return the result of the rows."""
        return self._run(attack, Answers(known.prediction[rows], known.right[rows]), rows, label, ())

    def attack_together(self, labels: Sequence[str]) -> dict[str, AttackResult | Exception]:
        """Run independent attacks on the samples that are right, sharing their shards among the workers."""
        return attack_together(
            self.model,
            self.x,
            self.y,
            {label: self.attacks[label] for label in labels},
            clean=self.clean,
            pictures=self.pictures,
            contexts={label: self._context(label) for label in labels},
        )

    def _context(self, label: str, *words: str) -> Context:
        return replace(self.context, parts=self.context.parts.at("attack", label, *words))

    def _run(
        self,
        attack: Attack,
        clean: Answers | AttackResult,
        rows: slice | np.ndarray,
        label: str,
        words: tuple[str, ...],
    ) -> AttackResult:
        """Run an attack on some rows, whose answers so far are ``clean``; ``words`` distinguish parts of it."""
        return run_attack(
            self.model,
            self.x[rows],
            self.y[rows],
            attack,
            label=label,
            clean=Answers(clean.prediction, clean.right),
            index=np.arange(len(self))[rows],
            pictures=self.pictures,
            context=self._context(label, *words),
        )


def attack_costs(
    model: PreparedModel, x: Tensor, y: Tensor, clean: Answers, attacks: Mapping[str, Attack], context: Context
) -> dict[str, int]:
    """Return the approximate number of gradients per sample of each attack, stated or counted on a few samples."""
    costs = {}
    for label, attack in attacks.items():
        stated = cost_of(attack, label)
        costs[label] = gradient_cost(model, x, y, clean, attack, label, context) if stated is None else stated
    return costs


@dataclass
class Findings:
    """Results of the attacks on one subject so far, and their tables.

    Attributes:
        subject: the attacked subject.
        attacks: the attacks that ran, by label, in running order; audits and failure checks among them.
        results: their results, or the exceptions that ended them.
        curves: points of the curve of an attack, and the minimum distances (N,) of its adversarial images, by label.
        audits: by label of an audit, how many remaining samples were audited, and the bound of the difference.
    """

    subject: Subject
    attacks: dict[str, Attack] = field(default_factory=dict)
    results: dict[str, AttackResult | Exception] = field(default_factory=dict)
    curves: dict[str, tuple[Sequence[tuple[float, float]], np.ndarray]] = field(default_factory=dict)
    audits: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, label: str, attack: Attack, result: AttackResult | Exception) -> None:
        """Record the result of an attack."""
        self.attacks[label], self.results[label] = attack, result

    def succeeded(self, budget: Budget | None = None) -> dict[str, AttackResult]:
        """Return the results by label, of one budget or of all, without the attacks that failed."""
        return {
            label: result
            for label, result in self.results.items()
            if isinstance(result, AttackResult) and budget in (None, budget_of(self.attacks[label]))
        }

    def budgets(self) -> dict[Budget, ThreatModel]:
        """Return the threat models by norm and eps, in running order."""
        return {budget_of(attack): attack.threat for attack in self.attacks.values()}

    def together(self, budget: Budget) -> AttackResult | None:
        """Return what all attacks of a budget leave together, or None if none succeeded."""
        results = list(self.succeeded(budget).values())
        return functools.reduce(after, results) if results else None

    def spent(self, budget: Budget | None = None) -> int:
        """Return the number of passes that the attacks of one budget, or of all, took."""
        return sum(result.passes.cost for result in self.succeeded(budget).values())

    @property
    def beside(self) -> int | None:
        """The number of passes that measurements beside the attacks may still take: half of the attacks' in all.

        The gradient check took some of them. None if no attack succeeded, since the checks then look for the reason.
        """
        if not self.succeeded():
            return None
        checked = GRADIENT_PASSES * GRADIENT_IMAGES * (self.subject.options.signs is not False)
        return max(0, self.spent() // 2 - checked)

    @property
    def further(self) -> dict[str, Attack]:
        """The attacks that the subject did not name: audits and failure checks."""
        return {label: attack for label, attack in self.attacks.items() if label not in self.subject.attacks}

    def tables(self) -> dict[str, Any]:
        """Return the tables ``robustness``, ``outcomes``, ``curve``, and the arrays ``pictures``, ``adversarial``.

        Raises:
            RobGIBError: every attack failed, and at least one for another reason than missing gradients.
        """
        subject, summary = self.subject, [self._row(label) for label in self.results]
        failures = [r for r in self.results.values() if isinstance(r, Exception)]
        # Missing gradients are no error here: the indicators report them, with a remedy.
        if failures and not self.succeeded() and not all(isinstance(f, NoGradientError) for f in failures):
            raise RobGIBError(f"every attack failed; the first: {summary[0]['reason']}")
        for norm, eps in self.budgets():
            results = list(self.succeeded((norm, eps)).values())
            if len(results) > 1 and not subject.options.cascade:
                summary.append(worst_row(norm, eps, subject.clean, results))
        if not summary:  # without attacks the clean accuracy is still reported
            summary = [unattacked_row(subject.clean)]
        given = carried(subject.x, "targets")
        truth, targets = subject.y.numpy(), None if given is None else given.numpy()
        outcomes = [
            outcome_rows(self._base(label), truth, subject.clean, result, self._nearest(label), targets)
            for label, result in self.succeeded().items()
        ]
        joint = pd.concat(outcomes, ignore_index=True) if outcomes else table("outcomes")
        curves = [
            row
            for label, (points, _) in self.curves.items()
            for row in curve_rows(self._base(label), points, len(subject))
        ]
        return {
            "robustness": table("robustness", summary),
            "outcomes": joint[column_names("outcomes")],
            "curve": table("curve", curves),
            "pictures": self._pictures(),
            "adversarial": self._adversarial() if subject.options.save_adversarial else {},
        }

    def _base(self, label: str) -> dict[str, Any]:
        threat = self.attacks[label].threat
        return {"attack": label, "norm": threat.norm, "eps": threat.eps}

    def _nearest(self, label: str) -> np.ndarray:
        result = self.results[label]
        assert isinstance(result, AttackResult)
        return self.curves[label][1] if label in self.curves else result.distance

    def _row(self, label: str) -> dict[str, Any]:
        """Return the row of an attack in the robustness table."""
        result, clean = self.results[label], self.subject.clean
        if isinstance(result, Exception):
            return summary_row(self._base(label), clean, None, str(result))
        row = summary_row(self._base(label), clean, result, "", self._nearest(label))
        if label in self.audits:
            row["audited"], row["audit_bound"] = self.audits[label]
        return row

    def _pictures(self) -> dict[str, np.ndarray]:
        """Return some adversarial images of each attack, for the page."""
        subject, truth = self.subject, self.subject.y.numpy()
        pictures: dict[str, np.ndarray] = {}
        for number, (label, result) in enumerate(self.results.items()):
            rows = sorted(result.pictures)[:_PICTURES] if isinstance(result, AttackResult) else []
            if not rows:
                continue
            assert isinstance(result, AttackResult)
            pictures |= {
                f"{number}/attack": np.array(label),
                f"{number}/rows": np.array(rows),
                f"{number}/clean": subject.x[rows].numpy(),
                f"{number}/adversarial": np.stack([result.pictures[r] for r in rows]),
                f"{number}/labels": truth[rows],
                f"{number}/clean_prediction": subject.clean.prediction[rows],
                f"{number}/adversarial_prediction": result.prediction[rows],
            }
        return pictures

    def _adversarial(self) -> dict[str, np.ndarray]:
        """Return all adversarial images of each attack, and what :func:`~robgib.robustness.verify` needs beside them.

        Those of a cascade also show those of the attacks before. Masks and targets stand by sample; parameters of
        transformations by attack, of the images that it made itself.
        """
        subject = self.subject
        arrays = {"clean": subject.x[:].numpy(), "labels": subject.y.numpy()}
        given = {name: carried(subject.x, name) for name in ("mask", "targets")}
        arrays |= {name: values.numpy() for name, values in given.items() if values is not None}
        before: dict[Budget, dict[int, np.ndarray]] = {}
        for label, result in self.succeeded().items():
            budget = budget_of(self.attacks[label])
            every = before[budget] = {**before.get(budget, {}), **result.pictures}
            shown = every if subject.options.cascade or label in self.further else result.pictures
            made = [shown[row] for row in sorted(shown)]
            arrays[f"{label}/rows"] = np.array(sorted(shown), dtype=np.int64)
            arrays[f"{label}/images"] = np.stack(made) if made else np.zeros((0, *subject.x.shape[1:]), np.float32)
            if result.parameters:
                own = sorted(result.parameters)
                arrays[f"{label}/made"] = np.array(own, dtype=np.int64)
                arrays[f"{label}/parameters"] = np.stack([result.parameters[row] for row in own])
        return arrays


def budget_of(attack: Attack) -> Budget:
    """Return the norm and eps of an attack."""
    return attack.threat.norm, attack.threat.eps


def attack_all(subject: Subject, ready: Ready, false_gradient: bool = False) -> Findings:
    """Run every attack of a subject, and then the audits.

    Args:
        subject: the model, its samples and the attacks.
        ready: results of attacks that have already run.
        false_gradient: whether the gradient check found that the gradient is not the function's. If it is not, and the
            fast ensemble ran or an audit is wanted, attacks without gradients run on all that remain.
    """
    findings, workers = Findings(subject), subject.context.workers
    if workers is not None and not workers.engine.alone and not subject.options.cascade:
        ready = {**subject.attack_together([label for label in subject.attacks if label not in ready]), **ready}
    for label, attack in subject.in_order():
        findings.add(label, attack, _guarded(partial(_attack, subject, label, attack, findings, ready), label))
    for budget, threat in findings.budgets().items():
        ran = [attack for attack in findings.attacks.values() if attack.threat == threat]
        audited = audit_wanted(ran, subject.options.audit)
        if false_gradient and not subject.model.random and (audited or audit_wanted(ran, None)):
            _attack_without_gradient(findings, budget, threat, audited)
        if audited:
            _audit(findings, budget, threat)
    return findings


def _attack(subject: Subject, label: str, attack: Attack, findings: Findings, ready: Ready) -> AttackResult:
    """Run one attack; in a cascade, on the samples that the attacks before it left right."""
    known = findings.together(budget_of(attack)) if subject.options.cascade else None
    result = ready.get(label)
    if isinstance(result, Exception):
        raise result
    if result is None:
        result = subject.attack(label, known or subject.clean)
        result = after(known, result) if known else result
    return result


def _attack_without_gradient(findings: Findings, budget: Budget, threat: ThreatModel, audited: bool) -> None:
    """Attack what the attacks of a budget leave without the model's gradients, and record the results.

    Estimated gradients come first. Without an audit, Square with the queries of AutoAttack follows: an audit, which
    takes as many passes as all attacks before it, runs Square on nearly all that remains.
    """
    attacks: dict[str, tuple[str, Attack]] = {
        "estimated-gradients": ("ascent on estimated gradients", EstimatedAscent(threat.norm, threat.eps))
    }
    if not audited:
        attacks["black-box"] = ("Square", Square(threat.norm, threat.eps, queries=AutoAttack.queries))
    for word, (name, attack) in attacks.items():
        _attack_the_rest(findings, budget, further_label(word, threat, findings.budgets()), name, attack)


def _attack_the_rest(findings: Findings, budget: Budget, label: str, name: str, attack: Attack) -> None:
    """Run an attack on all that the attacks of a budget leave, and record the result."""
    subject, known = findings.subject, findings.together(budget)
    if known is None or not (known.right >= _RIGHT).any():
        return
    left = np.flatnonzero(known.right >= _RIGHT)
    part = _guarded(partial(subject.attack_rows, attack, known, left, label), label)
    if not isinstance(part, AttackResult):
        findings.add(label, attack, part)
        return
    fooled = int((part.right < _RIGHT).sum())
    note = f"the gradient is not the function's: {name} fooled {fooled} of {len(left)} images"
    findings.add(label, attack, replace(after(known, scattered(known, part, left)), notes=(note,)))


def _audit(findings: Findings, budget: Budget, threat: ThreatModel) -> None:
    """Audit what the attacks of a budget leave, and record the result."""
    subject, known = findings.subject, findings.together(budget)
    if known is None:
        return
    label = further_label("audit", threat, findings.budgets())
    attack = AutoAttack(threat.norm, threat.eps, version="rand" if subject.model.random else "standard")

    def run() -> Audited | None:
        return audit(
            subject.attack_rows,
            known,
            # Its cost is then the one that it has.
            replace(attack, targets=min(attack.targets, subject.classes() - 1)),
            label,
            spent=findings.spent(budget),
            bound=subject.options.audit,
            seed=subject.context.seed,
        )

    audited = _guarded(run, label)
    if isinstance(audited, Exception):
        findings.add(label, attack, audited)
    elif audited is not None:
        findings.add(label, audited.attack, audited.result)
        findings.audits[label] = (audited.samples, audited.bound)


def measure_curves(findings: Findings, allowed: int | None) -> None:
    """Measure the curve of each attack, or in a cascade of each budget, and add them to ``findings``.

    ``allowed`` is the number of passes that the curves may take together; None does not limit them.
    """
    subject = findings.subject
    if subject.options.curve is False:
        return
    chosen = [
        (budget, label)
        for budget in findings.budgets()
        if budget[0] in NORMS
        for label in list(findings.succeeded(budget))[-1 if subject.options.cascade else 0 :]
        if subject.options.cascade or label in subject.attacks
    ]
    for budget, label in chosen:
        findings.curves[label] = _curve(findings, budget, label, None if allowed is None else allowed // len(chosen))


def _curve(
    findings: Findings, budget: Budget, label: str, allowed: int | None
) -> tuple[Sequence[tuple[float, float]], np.ndarray]:
    """Measure the curve of one attack; return its points, and the minimum distances (N,).

    That of a cascade uses its cheapest attack. At small eps nearly every sample remains robust, and the most expensive
    attack would run on all of them.
    """
    subject, results = findings.subject, findings.succeeded(budget)
    result, attack = results[label], findings.attacks[label]
    name, other = label, attack
    if subject.options.cascade and len(results) > 1:
        if not isinstance(attack, MinimumNormAttack):
            name, other = next((n, findings.attacks[n]) for n in results)
        if _stalled(results[name], result) and isinstance(other, APGD) and other.schedule_start is None:
            other = replace(other, schedule_start=SCHEDULE_START)
        result = replace(result, attacked=results[name].attacked)
    # The limit is in passes because seconds depend on the machine.
    limit = findings.spent(budget) if allowed is None else allowed
    factors = _FACTORS if allowed is None else _afforded_radii(other, len(subject), allowed)
    return accuracy_curve(
        subject.model,
        subject.x,
        subject.y,
        _shortened(other, subject.costs.get(name, other.cost or 1), len(subject), limit, len(factors)),
        result,
        label=name,
        clean=subject.clean,
        factors=factors,
        context=replace(subject.context, parts=subject.context.parts.at("curve", label)),
    )


def _afforded_radii(attack: Attack, count: int, allowed: int) -> tuple[float, ...]:
    """Return the radii of a curve, as multiples of eps, that ``allowed`` passes suffice for.

    A minimum-norm attack gives all of them at no cost.
    """
    if isinstance(attack, MinimumNormAttack):
        return _FACTORS
    return _FACTORS_FIRST[: int(allowed // max(1, 3 * _STEPS * count))]


def curves_afforded(attacks: Mapping[str, Attack], cascade: bool, count: int, allowed: int) -> bool:
    """Whether ``allowed`` passes suffice for a radius of any curve of ``count`` samples, as they are divided.

    >>> from robgib.attacks import PGD
    >>> [curves_afforded({"pgd": PGD("linf", 0.1)}, False, 100, allowed) for allowed in (2999, 3000)]
    [False, True]
    """
    chosen = [attack for attack in attacks.values() if attack.norm in NORMS]
    curves = len({budget_of(attack) for attack in chosen}) if cascade else len(chosen)
    return any(_afforded_radii(attack, count, allowed // curves) for attack in chosen)


def attack_until_narrow(subject: Subject, width: float) -> tuple[int, dict[str, AttackResult | Exception]]:
    """See :func:`attack_until`."""

    def attacker(label: str, attack: Attack, rows: slice, known: AttackResult | None) -> AttackResult | Exception:
        clean = known or Answers(subject.clean.prediction[rows], subject.clean.right[rows])
        return _guarded(lambda: subject.attack(label, clean, rows), label)

    return attack_until(attacker, subject.in_order(), bool(subject.options.cascade), len(subject), width)


def _stalled(first: AttackResult, result: AttackResult) -> bool:
    """Whether other attacks fooled many samples that the first attack left right: its curve is then too high."""
    remaining = first.right > 0
    return bool((result.right[remaining] < 1).mean() > _STALLED) if remaining.any() else False


def _shortened(attack: Attack, cost: int, count: int, allowed: int, radii: int) -> Attack:
    """Return the attack for the other radii of the curve, with fewer steps if it would exceed ``allowed`` passes.

    AutoAttack is replaced by its first member.
    """
    share = allowed / max(radii * 3 * cost * count, 1)
    if share >= 1 or isinstance(attack, MinimumNormAttack):
        return attack
    if isinstance(attack, AutoAttack):
        first = attack.members(attack.targets + 1)[0]
        return _shortened(first, first.cost or 1, count, allowed, radii)
    steps = getattr(attack, "steps", None)
    if not isinstance(steps, int) or steps <= _STEPS:
        return attack
    shorter: Attack = dataclasses.replace(attack, steps=max(_STEPS, int(steps * share)))  # type: ignore[call-arg]
    return shorter


def _guarded(run: Callable[[], T], label: str) -> T | Exception:
    """Run one attack and return its result, or the exception that ended it."""
    try:
        with faults_of(f"attack {label!r}"):
            return run()
    except torch.OutOfMemoryError as error:
        raise RobGIBError("the device's memory does not suffice even for one image; use another --device.") from error
    except RobGIBError as error:
        return error
