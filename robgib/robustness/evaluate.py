"""The robustness part of an evaluation: run attacks on one model and return tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robgib.attacks.base import Attack, check_range, classes_named, cost_of, images_and_labels
from robgib.attacks.carried import carried
from robgib.attacks.foreign import foreign_class, foreign_name, is_foreign
from robgib.attacks.registry import DEFAULT_EPS, NamedAttack, read_attack
from robgib.attacks.threat_model import NORMS, ThreatModel, plain
from robgib.errors import RobGIBError, never_ends, unknown_name
from robgib.models.inference import PreparedModel, answers, check_finite_answers, outputs, prepare
from robgib.options import AttackOptions, Context, gather, or_default
from robgib.registry import parse_value
from robgib.results import table
from robgib.robustness.attacking import Subject, attack_all, attack_costs, attack_until_narrow, measure_curves
from robgib.robustness.audit import without_audit
from robgib.robustness.beside import (
    add_notes,
    allowance,
    convergence_table,
    corruption_tables,
    find_failures,
    gradient_check,
    random_points_table,
)
from robgib.robustness.certification import certify_tables
from robgib.robustness.random_points import check_random_points
from robgib.robustness.run_attack import AttackResult

__all__ = [
    "BUDGETS",
    "DEFAULT_ATTACKS",
    "check_budgets",
    "evaluate",
    "given_eps",
    "in_cascade",
    "measure",
    "named_attacks",
    "read_attacks",
    "threat_models",
    "under_budgets",
]

BUDGETS: Mapping[str, tuple[str, ...]] = {
    "quick": ("fgsm", "pgd"),
    "standard": ("apgd-ce", "fast"),
    "full": ("autoattack",),
}
"""Sets of attacks by cost, of any norm in which a ball is convex. On the zoo's networks ``standard`` finds the same
robust accuracy as ``full``, the standard ensemble, in most cases with less than a fifth of its passes (see
docs/attacks.md). Both run as cascades."""
_SPARSE = {"quick": ("fmn",), "standard": ("fmn", "sigma-zero"), "full": ("fmn", "sigma-zero")}  # the same under L0
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
        The tables ``robustness``, ``outcomes``, ``curve``, ``signs``, ``convergence``, ``corruptions`` and
        ``random_points`` of :data:`~robgib.results.SCHEMA`; ``pictures`` and ``adversarial``, arrays by name; and
        ``further``, class and threat model of audits and failure checks, by label.

    Raises:
        RobGIBError: the model cannot be called on these images, an attack does not fit them, or all attacks failed.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> tables = evaluate(model, data.test.x[:64], data.test.y[:64], ["fgsm-linf:eps=0.1"], signs=False)
    >>> bool(tables["robustness"]["robust_accuracy"].item() < 0.9)
    True
    """
    options, context = gather(
        "evaluate",
        fields,
        or_default("options", options, AttackOptions()),
        or_default("context", context, Context(device="cpu")),
    )
    if options.mask is not None or options.targets is not None or options.transfer_from is not None:
        raise RobGIBError(
            "masks and targets come with the images here, as robgib.attacks.carry(x, mask=…, targets=…), and a "
            "surrogate with the attack, as robgib.attacks.Transfer.of(attack, surrogate)."
        )
    x, y = images_and_labels(x, y)
    check_range(x)
    attacks = options.attacks if attacks is None else attacks
    options = dataclasses.replace(options, attacks=attacks, cascade=in_cascade(attacks, options.cascade))
    named = named_attacks(attacks, default_eps, context.catalogue, norm=options.norm, eps=options.eps)
    check_budgets(named, tuple(x.shape[1:]))
    if carried(x, "targets") is not None:
        options = without_audit(options)
    if options.random_points is not None:
        check_random_points(attack.threat for attack in named.values())
    where = torch.device(context.device)
    if not isinstance(model, PreparedModel):
        model = prepare(
            model, x, classes=classes, batch_size=context.batch_size, precision=options.precision, device=where
        )
        if classes is None and len(y):  # a label without a logit would count as an error of the model
            outputs(model, x[:2], classes=classes_named(x, y), seed=context.seed, device=where)
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
    gradient = gradient_check(subject)
    findings = attack_all(subject, ready, false_gradient=gradient is not None and gradient.seen)
    signs, notes = find_failures(findings, gradient)
    measure_curves(findings, allowance(findings, "curve"))
    tables = findings.tables()
    add_notes(tables["robustness"], notes)
    if options.certify:
        certify_tables(subject, tables)
    tables |= corruption_tables(findings)
    tables["random_points"] = random_points_table(subject)
    tables["signs"] = table("signs", signs)
    tables["convergence"] = convergence_table(findings)
    tables["further"] = {
        label: {"class": type(attack).__name__, "threat": dataclasses.asdict(attack.threat)}
        for label, attack in findings.further.items()
    }
    return tables


def in_cascade(attacks: object, wanted: bool | None) -> bool:
    """Whether attacks run as a cascade: the given value, or the default of their budget.

    >>> in_cascade("standard", None), in_cascade("quick", None), in_cascade(["pgd-linf"], None)
    (True, False, False)
    """
    return attacks in ("standard", "full") if wanted is None else wanted


def threat_models(
    norm: str | Sequence[str] | None,
    eps: float | str | Sequence[float | str] | None,
) -> list[tuple[str, float | str | None]]:
    """Return pairs of norm and eps, as they were written; an eps of None is the default of the norm.

    Args:
        norm: one norm or several; None is L∞, the customary one of pictures.
        eps: one radius for each norm, or several for one norm, as numbers or texts such as ``8/255``.

    Raises:
        RobGIBError: a norm or radius is invalid, or their numbers differ.

    >>> threat_models(["linf", "l2"], ["8/255", 0.5]), threat_models(None, None)
    ([('linf', '8/255'), ('l2', 0.5)], [('linf', None)])
    """
    norms = [norm] if isinstance(norm, str) else list(norm or ())
    eps = plain(eps)
    given = [] if eps is None else [eps] if isinstance(eps, str | int | float) else eps
    radii: list[float | str | None] = [plain(one) for one in given]
    for one in norms:
        if one not in NORMS:
            raise unknown_name("norm", str(one), NORMS)
    norms = norms or ["linf"]
    radii = radii or [None] * len(norms)
    norms = norms * len(radii) if len(norms) == 1 else norms
    if len(norms) != len(radii):
        raise RobGIBError(f"{len(norms)} norms came with {len(radii)} values of eps; give one eps for each norm.")
    pairs = list(zip(norms, radii, strict=True))
    for one, radius in pairs:
        value = parse_value(radius)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RobGIBError(f"eps must be a number such as 8/255 or 0.03, not {radius!r}.")
        if value is not None:
            ThreatModel(one, float(value))  # type: ignore[arg-type]
        if pairs.count((one, radius)) > 1:
            raise RobGIBError(f"the norm {one} is given twice with the same eps; name each pair once.")
    return pairs


def _budget_specs(name: str, pairs: Sequence[tuple[str, float | str | None]]) -> list[str]:
    """Return the specifications of a set of attacks under each pair of norm and eps."""
    return [
        f"{stem}-{norm}" + ("" if eps is None else f":eps={eps}")
        for norm, eps in pairs
        for stem in (_SPARSE if norm == "l0" else BUDGETS)[name]
    ]


def given_eps(norm: str | Sequence[str] | None, eps: float | str | Sequence[float | str] | None) -> dict[str, float]:
    """Return the given radii by norm, for attacks that leave theirs open.

    >>> given_eps("l2", None), given_eps(None, "1/4")
    ({}, {'linf': 0.25})
    """
    return {one: float(parse_value(radius)) for one, radius in threat_models(norm, eps) if radius is not None}


def named_attacks(
    attacks: str | Sequence[Any] | Mapping[str, Any],
    default_eps: Mapping[str, float] | None = None,
    catalogue: Sequence[Path] = (),
    *,
    norm: str | Sequence[str] | None = None,
    eps: float | str | Sequence[float | str] | None = None,
) -> dict[str, Attack]:
    """Return attacks by label.

    Args:
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, functions, classes and objects of other
            conventions (:func:`~robgib.attacks.foreign.is_foreign`), a mapping from labels to attacks, or the name of a
            budget (:data:`BUDGETS`).
        default_eps: default budget per norm, for specifications without eps.
        catalogue: additional folders of attacks and plug-ins.
        norm: norms of the attacks of a budget.
        eps: their radii, and those of specifications without eps, one for each norm.

    Raises:
        RobGIBError: a name or parameter is unknown, an attack is given twice, or has another radius than ``eps``, or
            no attack uses a given norm or radius.

    >>> list(named_attacks("quick", norm="l2", eps="64/255"))
    ['fgsm-l2:eps=64/255', 'pgd-l2:eps=64/255']
    """
    read = read_attacks(attacks, catalogue, norm=norm, eps=eps)
    return under_budgets(read, {**(default_eps or {}), **given_eps(norm, eps)})


def under_budgets(
    attacks: Mapping[str, Attack | NamedAttack], default_eps: Mapping[str, float] | None
) -> dict[str, Attack]:
    """Return attacks by label; a radius that a specification leaves open becomes the default of its norm."""
    return {label: a.under(default_eps) if isinstance(a, NamedAttack) else a for label, a in attacks.items()}


def read_attacks(
    attacks: str | Sequence[Any] | Mapping[str, Any],
    catalogue: Sequence[Path] = (),
    *,
    norm: str | Sequence[str] | None = None,
    eps: float | str | Sequence[float | str] | None = None,
) -> dict[str, Attack | NamedAttack]:
    """Return attacks by label, before the data and thus the default radii are known; see :func:`named_attacks`."""
    pairs = threat_models(norm, eps)
    read = _read(attacks, catalogue, pairs)
    if read and (norm is not None or eps is not None):
        _check_given(read, pairs, given_eps(norm, eps))
    return read


def _check_given(
    attacks: Mapping[str, Attack | NamedAttack],
    pairs: Sequence[tuple[str, float | str | None]],
    shared: Mapping[str, float],
) -> None:
    """Raise if an attack has another radius than the given one of its norm, or if none uses a given norm or radius.

    Raises:
        RobGIBError: the message names the attack and the radius.
    """
    used: list[tuple[str, float]] = []
    for label, one in attacks.items():
        threat = (one.attack if isinstance(one, NamedAttack) else one).threat
        is_open = isinstance(one, NamedAttack) and one.is_open
        radius = shared.get(threat.norm, threat.eps) if is_open else threat.eps
        radii = [float(parse_value(r)) for n, r in pairs if n == threat.norm and r is not None]
        if radii and not any(math.isclose(radius, r) for r in radii):
            raise RobGIBError(
                f"attack {label!r} has an eps of its own, {radius:g}, and the given eps of {threat.norm} is "
                f"{radii[0]:g}; give one of them."
            )
        used.append((threat.norm, radius))
    for name, given in pairs:
        if not any(n == name and (given is None or math.isclose(r, float(parse_value(given)))) for n, r in used):
            budget = f"norm {name}" + ("" if given is None else f", eps {given}")
            raise RobGIBError(
                f"no attack uses the given budget ({budget}): {', '.join(map(repr, attacks))} "
                f"ha{'s another' if len(attacks) == 1 else 've others'}; give an attack of that budget, or omit it."
            )


def _read(
    attacks: str | Sequence[Any] | Mapping[str, Any],
    catalogue: Sequence[Path],
    pairs: Sequence[tuple[str, float | str | None]],
) -> dict[str, Attack | NamedAttack]:
    """Return attacks by label; ``pairs`` are the norms and radii of a budget and of objects of other conventions."""
    if isinstance(attacks, Mapping):
        for label, attack in attacks.items():
            if not isinstance(label, str) or not label or not (isinstance(attack, Attack) or is_foreign(attack)):
                raise RobGIBError(
                    f"attacks must map names to attacks, not {label!r} to {type(attack).__name__}: an attack is a "
                    "robgib.Attack, a function of (model, images, labels), or an object or class in the manner of "
                    "torchattacks or Foolbox."
                )
        return {label: _read_object(attack, pairs) for label, attack in attacks.items()}
    if isinstance(attacks, str):
        if attacks not in BUDGETS:
            budgets = ", ".join(BUDGETS)
            raise RobGIBError(
                f"attacks must be a sequence of specifications, as in [{attacks!r}], or one of {budgets}."
            )
        attacks = _budget_specs(attacks, pairs)
    if not isinstance(attacks, Sequence) or not all(isinstance(a, str | Attack) or is_foreign(a) for a in attacks):
        raise RobGIBError(f"attacks must be a sequence of specifications or attacks, not {attacks!r}.")
    named: dict[str, Attack | NamedAttack] = {}
    for item in attacks:
        own_name = type(item).__name__ if isinstance(item, Attack) else foreign_name(item)
        label = item if isinstance(item, str) else own_name.lower()
        if label in named:
            raise RobGIBError(f"attack {label!r} is given twice; name each one once.")
        named[label] = read_attack(item, catalogue) if isinstance(item, str) else _read_object(item, pairs)
    return named


def _read_object(value: Any, pairs: Sequence[tuple[str, float | str | None]]) -> Attack | NamedAttack:
    """Return an attack object; one of another convention has the given eps, else its own, else the default."""
    if isinstance(value, Attack):
        return value
    norm, given = pairs[0]
    own = getattr(value, "eps", None)
    radius = parse_value(given) if given is not None else own if isinstance(own, int | float) else None
    attack = foreign_class(value)(norm, float(DEFAULT_EPS[norm] if radius is None else radius))  # type: ignore[arg-type]
    return NamedAttack(foreign_name(value), attack, radius is None)


def check_budgets(attacks: Mapping[str, Attack], shape: tuple[int, ...]) -> None:
    """Raise an error if the ball of an attack is larger than the box of samples of this shape, or its cost is none."""
    for label, attack in attacks.items():
        cost_of(attack, label)
        try:
            attack.threat.check(math.prod(shape))
        except RobGIBError as error:
            raise RobGIBError(f"attack {label!r}: {error}") from error
