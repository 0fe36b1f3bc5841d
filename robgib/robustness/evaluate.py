"""The robustness part of an evaluation: run attacks on one model and return tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robgib.attacks.base import Attack
from robgib.attacks.registry import NamedAttack, read_attack
from robgib.errors import RobGIBError, never_ends
from robgib.models.inference import PreparedModel, answers, check_finite_answers, check_logits, prepare
from robgib.options import AttackOptions, Context, gather
from robgib.robustness.attacking import Subject, attack_all, attack_costs, attack_until_narrow
from robgib.robustness.beside import add_indicators, convergence_table, corruption_table
from robgib.robustness.certification import certify_tables
from robgib.robustness.run_attack import AttackResult

__all__ = [
    "BUDGETS",
    "DEFAULT_ATTACKS",
    "check_budgets",
    "evaluate",
    "in_cascade",
    "measure",
    "named_attacks",
    "read_attacks",
    "under_budgets",
]

BUDGETS = {
    "quick": ("fgsm-linf", "pgd-linf", "pgd-l2"),
    "standard": ("apgd-ce-linf", "fast-linf", "apgd-ce-l2", "fast-l2"),
    "full": ("autoattack-linf", "autoattack-l2"),
}
"""Sets of attacks by cost. On the zoo's networks ``standard`` finds the same robust accuracy as ``full``, the standard
ensemble, in most cases with less than a fifth of its passes (see docs/attacks.md). Both run as cascades."""
DEFAULT_ATTACKS = "standard"


@never_ends
def evaluate(
    model: object,
    x: Tensor,
    y: Tensor,
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack] | None = None,
    *,
    options: AttackOptions | None = None,
    context: Context | None = None,
    default_eps: Mapping[str, float] | None = None,
    classes: int | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Measure the accuracy of a classifier on clean images, under attacks and under common corruptions.

    Args:
        model: classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1]. Indicators, corruptions and ``until_width`` use the first images: shuffle sorted
            images (:meth:`~robgib.data.Split.sample`).
        y: labels (N,).
        attacks: as for :func:`named_attacks`; None uses those of the options.
        options: what to attack and measure (:class:`~robgib.options.AttackOptions`).
        context: seed, device, batch size, plug-ins, resume and progress (:class:`~robgib.options.Context`); the
            default device is the CPU.
        default_eps: default budget per norm, for specifications without eps.
        classes: number of classes of the data, if known.
        fields: fields of ``options`` and ``context`` by name, such as ``curve=False`` or ``seed=1``.

    Returns:
        The tables ``robustness``, ``outcomes``, ``curve``, ``signs``, ``convergence`` and ``corruptions`` of
        :data:`~robgib.results.SCHEMA`, and ``pictures`` and ``adversarial``, arrays by name.

    Raises:
        RobGIBError: the model cannot be called on these images, an attack does not fit them, or all attacks failed.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> tables = evaluate(model, data.test.x[:64], data.test.y[:64], ["fgsm-linf:eps=0.1"], corruptions=False)
    >>> bool(tables["robustness"]["robust_accuracy"].item() < 0.9)
    True
    """
    options, context = gather("evaluate", fields, options or AttackOptions(), context or Context(device="cpu"))
    attacks = options.attacks if attacks is None else attacks
    options = dataclasses.replace(options, attacks=attacks, cascade=in_cascade(attacks, options.cascade))
    named = named_attacks(attacks, default_eps, context.catalogue)
    check_budgets(named, tuple(x.shape[1:]))
    where = torch.device(context.device)
    if not isinstance(model, PreparedModel):
        model = prepare(
            model, x, classes=classes, batch_size=context.batch_size, precision=options.precision, device=where
        )
        if classes is None and len(y):  # a label without a logit would count as an error of the model
            with torch.no_grad():
                check_logits(model.model(x[:2].to(where)), x[:2], 1 + int(y.max()))
    clean = answers(model, x, y, classes=classes, seed=context.seed, device=where)
    check_finite_answers(clean)
    costs = attack_costs(model, x, y, clean, named, context)
    return measure(Subject(model, x, y, clean, named, costs, options, context))


def measure(subject: Subject) -> dict[str, Any]:
    """Run the attacks of a subject and the measurements beside them; return the tables of :func:`evaluate`.

    Raises:
        RobGIBError: all attacks failed.
    """
    options = subject.options
    ready: dict[str, AttackResult | Exception] = {}
    if options.until_width is not None and subject.attacks:
        count, ready = attack_until_narrow(subject, options.until_width)
        subject = subject.first(count)
    findings = attack_all(subject, ready)
    tables = findings.tables()
    if options.certify:
        certify_tables(subject, tables)
    tables["corruptions"] = corruption_table(subject, findings.spent)
    tables["signs"] = add_indicators(findings, tables["robustness"])
    tables["convergence"] = convergence_table(findings)
    return tables


def in_cascade(attacks: object, wanted: bool | None) -> bool:
    """Whether attacks run as a cascade: the given value, or the default of their budget.

    >>> in_cascade("standard", None), in_cascade("quick", None), in_cascade(["pgd-linf"], None)
    (True, False, False)
    """
    return attacks in ("standard", "full") if wanted is None else wanted


def named_attacks(
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack],
    default_eps: Mapping[str, float] | None = None,
    catalogue: Sequence[Path] = (),
) -> dict[str, Attack]:
    """Return attacks by label.

    Args:
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, a mapping from labels to attacks, or
            the name of a budget (:data:`BUDGETS`).
        default_eps: default budget per norm, for specifications without eps.
        catalogue: additional folders of attacks and plug-ins.

    Raises:
        RobGIBError: a name or parameter is unknown, or an attack is given twice.
    """
    return under_budgets(read_attacks(attacks, catalogue), default_eps)


def under_budgets(
    attacks: Mapping[str, Attack | NamedAttack], default_eps: Mapping[str, float] | None
) -> dict[str, Attack]:
    """Return attacks by label; a radius that a specification leaves open becomes the default of its norm."""
    return {label: a.under(default_eps) if isinstance(a, NamedAttack) else a for label, a in attacks.items()}


def read_attacks(
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack], catalogue: Sequence[Path] = ()
) -> dict[str, Attack | NamedAttack]:
    """Return attacks by label, before the data and thus the default radii are known; see :func:`named_attacks`."""
    if isinstance(attacks, Mapping):
        for label, attack in attacks.items():
            if not isinstance(label, str) or not label or not isinstance(attack, Attack):
                raise RobGIBError(f"attacks must map names to attacks, not {label!r} to {type(attack).__name__}.")
        return dict(attacks)
    if isinstance(attacks, str):
        if attacks not in BUDGETS:
            budgets = ", ".join(BUDGETS)
            raise RobGIBError(
                f"attacks must be a sequence of specifications, as in [{attacks!r}], or one of {budgets}."
            )
        attacks = BUDGETS[attacks]
    if not isinstance(attacks, Sequence) or not all(isinstance(item, str | Attack) for item in attacks):
        raise RobGIBError(f"attacks must be a sequence of specifications or attacks, not {attacks!r}.")
    named: dict[str, Attack | NamedAttack] = {}
    for item in attacks:
        label = item if isinstance(item, str) else type(item).__name__.lower()
        if label in named:
            raise RobGIBError(f"attack {label!r} is given twice; name each one once.")
        named[label] = read_attack(item, catalogue) if isinstance(item, str) else item
    return named


def check_budgets(attacks: Mapping[str, Attack], shape: tuple[int, ...]) -> None:
    """Raise an error if the ball of an attack is larger than the box of samples of this shape."""
    for label, attack in attacks.items():
        try:
            attack.threat.check(math.prod(shape))
        except RobGIBError as error:
            raise RobGIBError(f"attack {label!r}: {error}") from error
