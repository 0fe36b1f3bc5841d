"""The robustness half of an evaluation: every attack on one model, as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robgib.attacks.apgd import APGD, WIDEST
from robgib.attacks.autoattack import AutoAttack
from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.registry import make_attack
from robgib.errors import NoGradientError, RobGIBError, first_line
from robgib.files import Parts
from robgib.models.inference import Answers, Prepared, QueryCount, answers, check_decided, check_logits, prepare
from robgib.results import column_names, table
from robgib.robustness.certification import certify_tables
from robgib.robustness.convergence import TRACKED, convergence
from robgib.robustness.corruptions import corruption_accuracy
from robgib.robustness.failure_indicators import SAMPLES, failure_indicators, weaker_than_reference
from robgib.robustness.run_attack import AttackResult, accuracy_curve, after, run_attack
from robgib.robustness.until import attack_until
from robgib.runtime import Progress, faults_of, never_ends
from robgib.statistics import clopper_pearson

__all__ = [
    "BUDGETS",
    "DEFAULT_ATTACKS",
    "check_budgets",
    "curve_rows",
    "evaluate",
    "in_cascade",
    "named_attacks",
    "outcome_rows",
    "summary_row",
    "unattacked_row",
    "worst_row",
]

BUDGETS = {
    "quick": ("fgsm-linf", "pgd-linf", "pgd-l2"),
    "standard": ("apgd-ce-linf", "fast-linf", "apgd-ce-l2", "fast-l2"),
    "full": ("autoattack-linf", "autoattack-l2"),
}
"""Attacks by how much they may cost. ``standard`` says what ``full``, the standard ensemble, says on the zoo's networks
(docs/attacks.md has the table), on most in less than a fifth of its passes; both run as cascades."""
DEFAULT_ATTACKS = "standard"
_Budget = tuple[str, float]  # norm and eps
_PICTURES = 6
_FEWEST = 25  # images on which signs are looked for, at least
_RADII = 5  # at which a curve is measured beside the attack's own
_STEPS = 10  # of the attack there, at least
_STOOD = 0.2  # of what a cascade's first attack left: where so many fell to others, the curve's climbs begin far out
_SIGN = 1700  # forward passes that the search for signs takes for an image, about, at most
_WATCHED = 10  # images on which attacks are watched step by step, at least
_CORRUPTED = 20  # likewise under common corruptions


def _afforded(count: int, spent: float, each: float, fewest: int = _FEWEST) -> int:
    """How many of ``count`` images can be afforded at ``each`` passes, where ``spent`` are allowed: a few at least."""
    return min(count, max(fewest, int(spent / max(each, 1))))


@never_ends
def evaluate(
    model: object,
    x: Tensor,
    y: Tensor,
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack] = DEFAULT_ATTACKS,
    *,
    default_eps: Mapping[str, float] | None = None,
    classes: int | None = None,
    clean: Answers | None = None,
    cascade: bool | None = None,
    curve: bool = True,
    signs: bool = True,
    corruptions: bool = True,
    batch_size: int | None = None,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
    catalogue: Sequence[Path] = (),
    certify: bool = False,
    save_adversarial: bool = False,
    until_width: float | None = None,
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a classifier's accuracy, clean, under attacks and under common corruptions.

    Args:
        model: classifier on ``device``, or what :func:`~robgib.models.inference.prepare` made of it.
        x: images (N, …) in [0, 1]. Signs, corruptions and ``until_width`` take the first of them: draw their order
            where they lie class by class (:meth:`~robgib.data.Split.sample`).
        y: labels (N,).
        attacks: as for :func:`named_attacks`.
        default_eps: the customary budget per norm, for specifications that give none.
        classes: how many classes the data have, where that is known.
        clean: what the model says of ``x``, where that is known.
        cascade: run the attacks of one norm and eps cheapest first, each on what those before it left right; None is
            what the budget of that name does, and False for attacks that are listed.
        curve: also measure accuracy against eps around each attack's own; in a cascade by its cheapest attack.
        signs: also look for signs that the attacks failed.
        corruptions: also measure accuracy under common corruptions (images only).
        batch_size: images at once; None finds it.
        precision: ``float32``, or ``bfloat16`` for the gradients of attacks.
        device: where the model is.
        seed: of every random number.
        catalogue: further folders of attacks and plug-ins.
        certify: also look for samples that no attack can fool (:func:`~robgib.robustness.certify`), among those that
            the attacks left.
        save_adversarial: keep every adversarial image, and the clean ones, in memory and in what is returned.
        until_width: stop attacking further samples when every budget's 95% interval is this narrow (a share), after
            100 at least; all tables are then of the samples that were attacked.
        parts: where finished attacks, and what a long one has found so far, are kept and looked for.
        progress: called with (task, done, total, note).

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
    named = named_attacks(attacks, default_eps, catalogue)
    check_budgets(named, tuple(x.shape[1:]))
    if not isinstance(model, Prepared):
        model = prepare(model, x, classes=classes, batch_size=batch_size, precision=precision, device=device)
        if classes is None and len(y):  # a label that the model has no logit of would count as an error of its
            with torch.no_grad():
                check_logits(model.model(x[:2].to(device)), x[:2], 1 + int(y.max()))
    where = torch.device(device)
    if clean is None:
        clean = answers(model, x, y, classes=classes, seed=seed, device=where)
        check_decided(clean)
    parts = parts or Parts()
    together = in_cascade(attacks, cascade)
    ready: dict[str, AttackResult | Exception] = {}
    if until_width is not None and named:
        count, ready = _attack_until(
            model, x, y, clean, named, together, save_adversarial, until_width, seed, where, parts, progress
        )
        x, y, clean = x[:count], y[:count], Answers(clean.prediction[:count], clean.right[:count])
    tables, left, spent = _attack_all(
        model, x, y, clean, named, together, curve, save_adversarial, seed, where, parts, progress, ready
    )
    if certify:
        certify_tables(model, x, y, clean, named, tables, device=where, parts=parts, progress=progress)
    tables["corruptions"] = table("corruptions")
    if corruptions and x.ndim == 4:
        here = parts.at("corruptions")
        known = here.read()
        if known is None:
            # At most half as many passes as the attacks took; where there were none it is what was asked for.
            some = _afforded(len(x), sum(spent.values()) / 2, _CORRUPTED, 4 * _FEWEST) if spent else len(x)
            measured = corruption_accuracy(
                model, x[:some], y[:some], seed=seed, batch_size=model.batch_size, device=where, progress=progress
            )
            known = {"rows": measured.to_dict("records")}
            here.write(known)
        tables["corruptions"] = table("corruptions", known["rows"])
    seen: list[dict[str, Any]] = []
    if signs:
        seen, beside = _signs(model, x, y, clean, named, left, spent, seed, where, parts, progress)
        _note(tables["robustness"], beside)
    tables["signs"] = table("signs", seen)
    watched: list[dict[str, Any]] = []
    if signs:
        watched = _converged(model, x, y, clean, {n: named[n] for n in left}, len(x), seed, where, parts, progress)
    tables["convergence"] = table("convergence", watched)
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


def _in_order(attacks: Mapping[str, Attack], cascade: bool) -> list[tuple[str, Attack]]:
    """Attacks as they run: in a cascade one threat model after the other, the cheapest first."""
    order = list(attacks.items())
    if cascade:
        threats = list(dict.fromkeys(a.threat for _, a in order))
        order.sort(key=lambda item: (threats.index(item[1].threat), item[1].cost))
    return order


def _attack_until(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: Answers,
    attacks: Mapping[str, Attack],
    cascade: bool,
    save_adversarial: bool,
    width: float,
    seed: int,
    device: torch.device,
    parts: Parts,
    progress: Progress | None,
) -> tuple[int, dict[str, AttackResult | Exception]]:
    """See :func:`attack_until`."""

    def attacker(label: str, attack: Attack, rows: slice, known: AttackResult | None) -> AttackResult | Exception:
        held = known or clean
        right = held.right if known else held.right[rows]
        told = Answers(held.prediction if known else held.prediction[rows], right)

        def run() -> _Attacked:
            found = run_attack(
                model, x[rows], y[rows], attack, label=label, clean=told, index=np.arange(len(x))[rows], seed=seed,
                device=device, pictures=len(x) if save_adversarial else _PICTURES,
                parts=parts.at("attack", label, str(rows.start), str(rows.stop)), progress=progress,
            )  # fmt: skip
            return found, [], found.distance

        attacked = _guarded(run, label)
        return attacked if isinstance(attacked, Exception) else attacked[0]

    return attack_until(attacker, _in_order(attacks, cascade), cascade, len(x), width)


def _attack_all(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: Answers,
    attacks: Mapping[str, Attack],
    cascade: bool,
    curve: bool,
    save_adversarial: bool,
    seed: int,
    device: torch.device,
    parts: Parts,
    progress: Progress | None,
    ready: Mapping[str, AttackResult | Exception],
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[_Budget, int]]:
    """The tables of all attacks, by attack the shares (N,) of right answers that it left, and by budget its passes.

    ``ready`` are the attacks that have run, as they stand in a cascade.
    """
    truth, count = y.numpy(), len(y)
    summary, outcome_tables, curves = [], [], []
    pictures: dict[str, np.ndarray] = {}
    adversarial: dict[str, np.ndarray] = {"clean": x[:].numpy(), "labels": truth} if save_adversarial else {}
    images: dict[_Budget, dict[int, np.ndarray]] = {}
    standing: dict[_Budget, list[AttackResult]] = {}
    before: dict[_Budget, AttackResult] = {}
    spent: dict[_Budget, int] = {}
    left: dict[str, np.ndarray] = {}
    failures: list[Exception] = []
    order = _in_order(attacks, cascade)
    for number, (label, attack) in enumerate(order):
        budget = (attack.threat.norm, attack.threat.eps)
        last = not cascade or all(a.threat != attack.threat for _, a in order[number + 1 :])
        base = {"attack": label, "norm": attack.threat.norm, "eps": attack.threat.eps}

        known = before.get(budget) if cascade else None
        # A cascade's curve is its cheapest attack's, beside what all found at their own eps: at small eps nearly every
        # sample stands, and the dearest attack would be run on all of them.
        cheapest = (label, attack)
        if known and not isinstance(attack, MinimumNormAttack):
            cheapest = next((name, a) for name, a in order if a.threat == attack.threat)

        def run(
            attack: Attack = attack,
            label: str = label,
            known: AttackResult | None = known,
            curved: bool = curve and last,
            cheapest: tuple[str, Attack] = cheapest,
            before_it: int = spent.get(budget, 0),
            earlier: Sequence[AttackResult] = tuple(standing.get(budget, ())),
        ) -> _Attacked:
            found = ready.get(label)
            if isinstance(found, Exception):
                raise found
            if found is None:
                found = run_attack(
                    model, x, y, attack, label=label, clean=Answers(known.prediction, known.right) if known else clean,
                    seed=seed, device=device, pictures=count if save_adversarial else _PICTURES,
                    parts=parts.at("attack", label), progress=progress,
                )  # fmt: skip
                found = after(known, found) if known else found
            if not curved:
                return found, [], found.distance
            name, other = cheapest
            stuck = cascade and earlier and _stood_still(earlier[0], found)
            if stuck and isinstance(other, APGD) and other.widest is None:
                other = dataclasses.replace(other, widest=WIDEST)
            points, distance = accuracy_curve(
                model, x, y, _shortened(other, count, before_it + found.passes.cost), found, label=name, clean=clean,
                seed=seed, device=device, parts=parts.at("curve", label), progress=progress,
                attacked=known.right > 0 if known and name == label else None,
            )  # fmt: skip
            return found, points, distance

        attacked = _guarded(run, label)
        if isinstance(attacked, Exception):
            summary.append(summary_row(base, clean, None, str(attacked)))
            failures.append(attacked)
            continue
        outcome, points, nearest = attacked
        before[budget] = outcome
        spent[budget] = spent.get(budget, 0) + outcome.passes.cost
        left[label] = outcome.right
        summary.append(summary_row(base, clean, outcome, "", nearest))
        standing.setdefault(budget, []).append(outcome)
        outcome_tables.append(outcome_rows(base, truth, clean, outcome, nearest))
        curves += curve_rows(base, points, count)
        if save_adversarial:
            every = {**(images.get(budget, {}) if cascade else {}), **outcome.pictures}
            images[budget] = every
            adversarial[f"{label}/rows"] = np.array(sorted(every), dtype=np.int64)
            made = [every[row] for row in sorted(every)]
            adversarial[f"{label}/images"] = np.stack(made) if made else np.zeros((0, *x.shape[1:]), np.float32)
        rows = sorted(outcome.pictures)[:_PICTURES]
        if rows:
            pictures[f"{number}/attack"] = np.array(label)
            pictures[f"{number}/rows"] = np.array(rows)
            pictures[f"{number}/clean"] = x[rows].numpy()
            pictures[f"{number}/adversarial"] = np.stack([outcome.pictures[r] for r in rows])
            pictures[f"{number}/labels"] = truth[rows]
            pictures[f"{number}/clean_prediction"] = clean.prediction[rows]
            pictures[f"{number}/adversarial_prediction"] = outcome.prediction[rows]
    # Without gradients nothing is found out about robustness, but the signs say why, and what to do.
    if attacks and not outcome_tables and not all(isinstance(f, NoGradientError) for f in failures):
        raise RobGIBError(f"every attack failed; the first: {summary[0]['reason']}")
    for (norm, eps), outcomes in standing.items():
        if len(outcomes) > 1 and not cascade:
            summary.append(worst_row(norm, eps, clean, outcomes))
    if not summary:  # no attacks: the clean accuracy still stands
        summary = [unattacked_row(clean)]
    outcomes_table = pd.concat(outcome_tables, ignore_index=True) if outcome_tables else table("outcomes")
    tables = {
        "robustness": table("robustness", summary),
        "outcomes": outcomes_table[column_names("outcomes")],
        "curve": table("curve", curves),
        "pictures": pictures,
        "adversarial": adversarial,
    }
    return tables, left, spent


def _stood_still(first: AttackResult, found: AttackResult) -> bool:
    """Whether a fifth of what a cascade's first attack left fell to the others: its own curve would be far too high."""
    left = first.right > 0
    return bool((found.right[left] < 1).mean() > _STOOD) if left.any() else False


def _shortened(attack: Attack, count: int, allowed: int) -> Attack:
    """The attack for the curve's other radii: with fewer steps where it might take more passes than are allowed.

    Of AutoAttack it is then the first member. Passes do not depend on the machine, as seconds would; and the accuracy
    at the attack's own eps is known already.
    """
    share = allowed / max(_RADII * 3 * attack.cost * count, 1)
    if share >= 1 or isinstance(attack, MinimumNormAttack):
        return attack
    if isinstance(attack, AutoAttack):
        return _shortened(attack.members(attack.targets + 1)[0], count, allowed)
    steps = getattr(attack, "steps", None)
    if not isinstance(steps, int) or steps <= _STEPS:
        return attack
    shorter: Attack = dataclasses.replace(attack, steps=max(_STEPS, int(steps * share)))  # type: ignore[call-arg]
    return shorter


def _worst_answer(outcomes: Sequence[AttackResult]) -> np.ndarray:
    """For each sample the prediction (N,) of the attack that left the smallest share of right answers."""
    which = np.stack([o.right for o in outcomes]).argmin(0)
    return np.stack([o.prediction for o in outcomes])[which, np.arange(len(which))]


def _signs(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: Answers,
    attacks: Mapping[str, Attack],
    left: Mapping[str, np.ndarray],
    spent: Mapping[_Budget, int],
    seed: int,
    device: torch.device,
    parts: Parts,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Checks for failed attacks, once a norm, at the largest eps of its attacks; and notes on attacks by name.

    At other eps an attack is only held against the checks' own. What goes wrong in a check takes nothing from the rest.
    """
    right = clean.right >= 0.5
    threats = {(a.threat.norm, a.threat.eps): a.threat for a in attacks.values()}
    widest = {norm: max(eps for n, eps in threats if n == norm) for norm, _ in threats}
    rows: list[dict[str, Any]] = []
    beside: dict[str, str] = {}
    for (norm, eps), threat in threats.items():
        here = {n: (attacks[n], left[n][right]) for n in left if attacks[n].threat == threat}
        kept = parts.at("signs", norm, f"{eps:.9g}")
        known = kept.read()
        if known is not None:
            rows += known["rows"]
            beside |= known["beside"]
            continue
        try:
            own: list[dict[str, Any]] = []
            if eps == widest[norm]:
                found = failure_indicators(
                    model, x[right], y[right], threat, attacks=here, seed=seed, device=device, progress=progress,
                    samples=_afforded(SAMPLES, spent.get((norm, eps), 0) / 2, _SIGN) if spent else SAMPLES,
                )  # fmt: skip
                own = [{"norm": norm, "eps": eps, **dataclasses.asdict(sign)} for sign in found]
            rows += own
            told_here = weaker_than_reference(model, x[right], y[right], threat, here, seed=seed, device=device)
            beside |= told_here
            kept.write({"rows": own, "beside": told_here})
        except (RuntimeError, RobGIBError) as error:
            told = f"{type(error).__name__}: {first_line(error)}"
            rows.append(
                {
                    "norm": norm,
                    "eps": eps,
                    "name": "checks did not end",
                    "seen": True,
                    "detail": told,
                    "meaning": "nothing is known of failed attacks under this threat model; the rest stands",
                }
            )
    return rows, beside


def _converged(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: Answers,
    attacks: Mapping[str, Attack],
    count: int,
    seed: int,
    device: torch.device,
    parts: Parts,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Where each attack stood step by step, on a tenth of the samples; what goes wrong takes nothing from the rest."""
    some = np.flatnonzero(clean.right >= 0.5)[: min(TRACKED, max(_WATCHED, count // 10))]
    rows: list[dict[str, Any]] = []
    for number, (label, attack) in enumerate(attacks.items()):
        kept = parts.at("convergence", label)
        known = kept.read()
        if known is None:
            try:
                with faults_of(label):
                    found = convergence(model, x[some], y[some], attack, seed=seed, device=device)
            except Exception:  # a plug-in's own may be anything, and the attack itself ended well
                found = []
            base = {"attack": label, "norm": attack.threat.norm, "eps": attack.threat.eps}
            known = {"rows": [{**base, **row} for row in found]}
            kept.write(known)
        rows += known["rows"]
        if progress:
            progress("watching attacks", number + 1, len(attacks), label)
    return rows


def _note(robustness: pd.DataFrame, beside: Mapping[str, str]) -> None:
    """Put notes on attacks beside their figures."""
    for label, told in beside.items():
        here = robustness["attack"] == label
        robustness.loc[here, "note"] = robustness.loc[here, "note"].map(lambda note, told=told: _joined(note, told))


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


_Attacked = tuple[AttackResult, list[tuple[float, float]], np.ndarray]
"""An outcome, the points of its curve, and the distances of the nearest images found on the way."""


def _guarded(run: Callable[[], _Attacked], label: str) -> _Attacked | Exception:
    """Run one attack; what it raises is the reason of its failure, in a sentence, and the others go on."""
    try:
        with faults_of(f"attack {label!r}"):
            return run()
    except torch.OutOfMemoryError as error:
        raise RobGIBError("the device's memory does not suffice even for one image; use another --device.") from error
    except RobGIBError as error:
        return error


def outcome_rows(
    base: Mapping[str, Any], truth: np.ndarray, clean: Answers, outcome: AttackResult, nearest: np.ndarray
) -> pd.DataFrame:
    """An attack's rows of the outcomes table, one a sample; ``base`` is its label and budget."""
    return pd.DataFrame(
        {
            "index": np.arange(len(truth)),
            "label": truth,
            **base,
            "clean_prediction": clean.prediction,
            "adversarial_prediction": outcome.prediction,
            "robust": (clean.right > 0) & (outcome.prediction == truth),
            "right": outcome.right,
            "right_8bit": outcome.right_8bit,
            "linf": outcome.linf,
            "l2": outcome.l2,
            "distance": nearest,
            "certified_lead": np.nan,
        }
    )


def curve_rows(base: Mapping[str, Any], points: Sequence[tuple[float, float]], count: int) -> list[dict[str, Any]]:
    """An attack's rows of the curve table, one for each of its points (eps, samples right of ``count``)."""
    rows = []
    for eps, hits in points:
        low, high = clopper_pearson(hits, count)
        rows.append(
            {**base, "at": eps, "right": hits, "samples": count, "accuracy": hits / count, "low": low, "high": high}
        )
    return rows


def worst_row(norm: str, eps: float, clean: Answers, outcomes: Sequence[AttackResult]) -> dict[str, Any]:
    """The row of what attacks at one budget, each run on all samples, left together."""
    worst = dataclasses.replace(
        outcomes[0],
        prediction=_worst_answer(outcomes),
        right=np.minimum.reduce([o.right for o in outcomes]),
        right_8bit=np.minimum.reduce([o.right_8bit for o in outcomes]),
        passes=QueryCount(),
        seconds=0.0,
        notes=(),
    )
    return summary_row({"attack": f"worst of {len(outcomes)}", "norm": norm, "eps": eps}, clean, worst, "")


def unattacked_row(clean: Answers) -> dict[str, Any]:
    """The row of a run without attacks."""
    nowhere = np.zeros(len(clean.right))
    unharmed = AttackResult(clean.prediction, clean.right, clean.right, nowhere, nowhere, nowhere, {}, QueryCount())
    return summary_row({"attack": "none", "norm": "", "eps": 0.0}, clean, unharmed, "")


def summary_row(
    base: Mapping[str, Any],
    clean: Answers,
    outcome: AttackResult | None,
    reason: str,
    nearest: np.ndarray | None = None,
) -> dict[str, Any]:
    """A row of the robustness table; ``outcome`` is None where the attack failed."""
    count, correct = len(clean.right), _whole(clean.right.sum())
    clean_low, clean_high = clopper_pearson(correct, count)
    standing = np.nan if outcome is None else _whole(outcome.right.sum())
    low, high = (np.nan, np.nan) if outcome is None else clopper_pearson(standing, count)
    return {
        **base,
        "samples": count,
        "correct": correct,
        "robust": standing,
        "clean_accuracy": correct / count,
        "clean_low": clean_low,
        "clean_high": clean_high,
        "robust_accuracy": standing / count,
        "low": low,
        "high": high,
        "robust_accuracy_8bit": np.nan if outcome is None else float(outcome.right_8bit.mean()),
        "certified": np.nan,
        "certified_accuracy": np.nan,
        "undecided": 0 if outcome is None else int((outcome.prediction < 0).sum()),
        "seconds": round(outcome.seconds, 3) if outcome else 0.0,
        "forward": outcome.passes.forward if outcome else 0,
        "backward": outcome.passes.backward if outcome else 0,
        "median_distance": float(np.median(nearest[clean.right > 0])) if nearest is not None and correct else np.nan,
        "status": "ok" if outcome else "failed",
        "reason": reason,
        "note": _joined(*outcome.notes) if outcome else "",
    }


def _whole(total: float) -> float:
    """A count; whole, but where shares of draws are summed."""
    return int(total) if float(total).is_integer() else float(total)
