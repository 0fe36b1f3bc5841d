"""The robustness half of an evaluation: every attack on one model, as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robgib.attacks.base import Attack
from robgib.attacks.registry import make_attack
from robgib.errors import RobGIBError, never_ends
from robgib.files import Parts
from robgib.models.inference import Answers, PreparedModel, answers, check_finite_answers, check_logits, prepare
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
    "named_attacks",
]

BUDGETS = {
    "quick": ("fgsm-linf", "pgd-linf", "pgd-l2"),
    "standard": ("apgd-ce-linf", "fast-linf", "apgd-ce-l2", "fast-l2"),
    "full": ("autoattack-linf", "autoattack-l2"),
}
"""Attacks by how much they may cost. ``standard`` says what ``full``, the standard ensemble, says on the zoo's networks
(docs/attacks.md has the table), on most in less than a fifth of its passes; both run as cascades."""
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
    clean: Answers | None = None,
    costs: Mapping[str, int] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Measure a classifier's accuracy, clean, under attacks and under common corruptions.

    Args:
        model: classifier on the context's device, or what :func:`~robgib.models.inference.prepare` made of it.
        x: images (N, …) in [0, 1]. Indicators, corruptions and ``until_width`` take the first of them: draw their order
            where they are sorted by class (:meth:`~robgib.data.Split.sample`).
        y: labels (N,).
        attacks: as for :func:`named_attacks`; None takes those of the options.
        options: what is attacked and measured beside it (:class:`~robgib.options.AttackOptions`).
        context: seed, device, batch size, plug-ins, resume and progress (:class:`~robgib.options.Context`), on
            the CPU by default.
        default_eps: the customary budget per norm, for specifications that give none.
        classes: how many classes the data have, where that is known.
        clean: the model's answers to ``x``, where they are known.
        costs: of :func:`~robgib.robustness.attacking.attack_costs`, where they are known.
        fields: fields of ``options`` and ``context`` by name, such as ``curve=False`` or ``seed=1``.

    Returns:
        The tables ``robustness``, ``outcomes``, ``curve``, ``signs``, ``convergence`` and ``corruptions`` of
        :data:`~robgib.results.SCHEMA`, and ``pictures`` and ``adversarial``, arrays by name.

    Raises:
        RobGIBError: the model cannot be called on such images, an attack does not fit them, or all attacks failed.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> tables = evaluate(model, data.test.x[:64], data.test.y[:64], ["fgsm-linf:eps=0.1"], corruptions=False)
    >>> bool(tables["robustness"]["robust_accuracy"].item() < 0.9)
    True
    """
    options, context = gather("evaluate", fields, options or AttackOptions(), context or Context(device="cpu"))
    attacks = options.attacks if attacks is None else attacks
    options = dataclasses.replace(options, attacks=attacks, cascade=in_cascade(attacks, options.cascade))
    context = dataclasses.replace(context, parts=context.parts or Parts())
    named = named_attacks(attacks, default_eps, context.catalogue)
    check_budgets(named, tuple(x.shape[1:]))
    where = torch.device(context.device)
    if not isinstance(model, PreparedModel):
        model = prepare(
            model, x, classes=classes, batch_size=context.batch_size, precision=options.precision, device=where
        )
        if classes is None and len(y):  # a label that the model has no logit of would count as an error of its
            with torch.no_grad():
                check_logits(model.model(x[:2].to(where)), x[:2], 1 + int(y.max()))
    if clean is None:
        clean = answers(model, x, y, classes=classes, seed=context.seed, device=where)
        check_finite_answers(clean)
    if costs is None:
        costs = attack_costs(model, x, y, clean, named, context)
    subject = Subject(model, x, y, clean, named, costs, options, context)
    ready: dict[str, AttackResult | Exception] = {}
    if options.until_width is not None and named:
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


def in_cascade(attacks: object, asked: bool | None) -> bool:
    """Whether attacks run as a cascade: as asked, or as their budget does.

    >>> in_cascade("standard", None), in_cascade("quick", None), in_cascade(["pgd-linf"], None)
    (True, False, False)
    """
    return attacks in ("standard", "full") if asked is None else asked


def named_attacks(
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack],
    default_eps: Mapping[str, float] | None = None,
    catalogue: Sequence[Path] = (),
) -> dict[str, Attack]:
    """Return attacks by label.

    Args:
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, a mapping of labels to them, or the name
            of a budget (:data:`BUDGETS`).
        default_eps: the customary budget per norm, for specifications that give none.
        catalogue: further folders of attacks and plug-ins.

    Raises:
        RobGIBError: an unknown name or parameter, or an attack that is given twice.
    """
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
    named: dict[str, Attack] = {}
    for item in attacks:
        attack = item if isinstance(item, Attack) else make_attack(item, default_eps, catalogue)
        label = item if isinstance(item, str) else type(item).__name__.lower()
        if label in named:
            raise RobGIBError(f"attack {label!r} is given twice; name each one once.")
        named[label] = attack
    return named


def check_budgets(attacks: Mapping[str, Attack], shape: tuple[int, ...]) -> None:
    """Raise where an attack's ball is larger than the box of samples of this shape."""
    for label, attack in attacks.items():
        try:
            attack.threat.check(math.prod(shape))
        except RobGIBError as error:
            raise RobGIBError(f"attack {label!r}: {error}") from error
