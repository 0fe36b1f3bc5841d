"""Measurements besides the attacks: attack-failure indicators, convergence, and common corruptions."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robgib.attacks.base import Attack
from robgib.attacks.carried import carried
from robgib.attacks.threat_model import NORMS, ThreatModel
from robgib.attacks.transfer import Transfer
from robgib.data.corruptions import COMMON_CORRUPTIONS, CORRUPTIONS
from robgib.errors import RobGIBError, RobGIBWarning, first_line
from robgib.models.inference import prepare
from robgib.results import OF_FILES, OF_SURROGATE, table
from robgib.robustness.attacking import SHARES, Budget, Findings, Subject
from robgib.robustness.audit import further_label, scattered
from robgib.robustness.convergence import convergence_rows
from robgib.robustness.corruptions import Corrupted, corrupted_files, corrupted_images
from robgib.robustness.failure_indicators import (
    SAMPLES,
    Done,
    Examination,
    FailureIndicator,
    examine,
    gradient_indicator,
    weaker_than_reference,
)
from robgib.robustness.gradient_check import GRADIENT_IMAGES
from robgib.robustness.random_points import random_points_row
from robgib.robustness.run_attack import after
from robgib.runtime import SampleRNG, faults_of

__all__ = [
    "add_notes",
    "allowance",
    "convergence_table",
    "corrupted_samples",
    "corruption_tables",
    "find_failures",
    "gradient_check",
    "random_points_table",
]

_CORRUPTED = 20  # passes per image of the common corruptions
_FEWEST_CORRUPTED = 25  # images below which their accuracy says nothing


def allowance(findings: Findings, what: str) -> int | None:
    """Return the passes that a measurement beside the attacks may take; None does not limit it.

    ``what`` is ``curve``, ``corruptions`` or ``signs``. A measurement that the options ask for by name has no limit.
    """
    if getattr(findings.subject.options, what) or findings.beside is None:
        return None
    return int(SHARES[what] * findings.beside)


def corrupted_samples(count: int, allowed: int) -> int:
    """Return on how many of ``count`` samples the corruptions are measured with ``allowed`` passes; 0 if on too few.

    >>> [corrupted_samples(100, allowed) for allowed in (499, 500, 9000)]
    [0, 25, 100]
    """
    some = min(count, allowed // _CORRUPTED)
    return some if some >= min(count, _FEWEST_CORRUPTED) else 0


def corruption_tables(findings: Findings) -> dict[str, pd.DataFrame]:
    """Measure accuracy under common corruptions, on as many samples as the allowance suffices for.

    Returns:
        The tables ``corruptions`` and ``corrupted``.
    """
    subject, allowed = findings.subject, allowance(findings, "corruptions")
    options = subject.options
    wanted = options.all_corruptions or options.corruptions_from is not None
    if (options.corruptions is False and not wanted) or subject.x.ndim != 4:
        return {"corruptions": table("corruptions"), "corrupted": table("corrupted")}
    here = subject.context.parts.at("corruptions")
    known = here.read()
    if known is None:
        context = dataclasses.replace(subject.context, batch_size=subject.model.batch_size)
        parts: list[Corrupted] = []
        some = len(subject) if allowed is None or wanted else corrupted_samples(len(subject), allowed)
        if (options.all_corruptions or options.corruptions_from is None) and some:
            names = COMMON_CORRUPTIONS if options.all_corruptions else CORRUPTIONS
            x, y = subject.x[:some], subject.y[:some]
            parts.append(corrupted_images(subject.model, x, y, names, context))
        if options.corruptions_from is not None:
            shape, files = tuple(subject.x.shape[1:]), Path(options.corruptions_from)
            given = corrupted_files(subject.model, files, shape, len(subject), context)
            parts.append(_apart(given, parts))
        known = {
            name: [row for part in parts for row in getattr(part, name).to_dict("records")]
            for name in ("corruptions", "corrupted")
        }
        here.write(known)
    return {name: table(name, rows) for name, rows in known.items()}


def _apart(given: Corrupted, made: Sequence[Corrupted]) -> Corrupted:
    """Mark the corruptions of files that are called as generated ones are."""
    taken = {name for part in made for name in part.corruptions["corruption"]}
    tables = [
        frame.assign(corruption=[f"{n}{OF_FILES}" if n in taken else n for n in frame["corruption"]])
        for frame in (given.corruptions, given.corrupted)
    ]
    return Corrupted(*tables)


def random_points_table(subject: Subject) -> pd.DataFrame:
    """Measure the share of random points that keep their label, in the balls of each threat model of a norm."""
    points, rows = subject.options.random_points, []
    for threat in dict.fromkeys(attack.threat for attack in subject.attacks.values()):
        if points is None or threat.norm not in NORMS:
            continue
        here = subject.context.parts.at("random points", threat.norm, f"{threat.eps:.9g}", str(points))
        known = here.read()
        if known is None:
            known = random_points_row(subject.model, subject.x, subject.y, threat, points, context=subject.context)
            here.write(known)
        rows.append(known)
    return table("random_points", rows)


def gradient_check(subject: Subject) -> FailureIndicator | None:
    """Compare the model's gradient with finite differences, before any attack, and warn if it is another one.

    If the attacks transfer from a surrogate, its gradient is compared.

    Returns:
        The indicator, or None if it is not wanted, nothing is attacked, or the model has no gradient.
    """
    right = np.flatnonzero(subject.clean.right >= 0.5)[:GRADIENT_IMAGES]
    if subject.options.signs is False or not subject.attacks or not len(right):
        return None
    x, y = subject.x[right], subject.y[right]
    try:
        with faults_of("the model"):
            surrogate = _surrogate(subject)
            model = subject.model if surrogate is None else prepare(surrogate, x, device=subject.device)
            check = gradient_indicator(model, x, y, seed=subject.context.seed, device=subject.device)
    except (RuntimeError, RobGIBError):
        return None  # the indicators report missing gradients, and what the model raises
    if surrogate is not None:
        check = dataclasses.replace(check, detail=f"{OF_SURROGATE}{check.detail}")
    if check.seen:
        warnings.warn(f"{check.name}: {check.detail}. {check.meaning}.", RobGIBWarning, stacklevel=2)
    return check


def _surrogate(subject: Subject) -> Any:
    """Return the network that all attacks attack in place of the model, or None."""
    surrogates = [a.surrogate if isinstance(a, Transfer) else None for a in subject.attacks.values()]
    return surrogates[0] if all(one is not None for one in surrogates) else None


def find_failures(findings: Findings, gradient: FailureIndicator | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run the attack-failure indicators; samples that they fool are added to the findings as a further attack.

    All indicators are measured once per norm, at its largest eps. At other eps, attacks are only compared with the
    reference attack. An error under one threat model does not affect the others.

    Args:
        findings: results of the attacks.
        gradient: the result of :func:`gradient_check`.

    Returns:
        The rows of the table of indicators, and notes on attacks by label.
    """
    subject = findings.subject
    rows: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    if subject.options.signs is False:
        return rows, notes
    allowed = allowance(findings, "signs")
    threats = findings.budgets()
    largest = {norm: max(eps for n, eps in threats if n == norm) for norm, _ in threats}
    for budget, threat in threats.items():
        norm, eps = budget
        kept = subject.context.parts.at("signs", norm, f"{eps:.9g}")
        known = kept.read()
        if known is None:
            share = None if allowed is None else allowed // len(threats)
            try:
                known = _indicators(findings, budget, gradient, share, whole=eps == largest[norm])
                kept.write(known)
            except (RuntimeError, RobGIBError) as error:
                known = {"rows": [_unfinished(norm, eps, error)], "beside": {}, "fooled": [], "images": np.zeros(0)}
        rows += known["rows"]
        notes |= known["beside"]
        if len(known["fooled"]):
            _count_fooled(findings, threat, np.array(known["fooled"]), torch.from_numpy(known["images"]))
    return rows, notes


def _indicators(
    findings: Findings, budget: Budget, gradient: FailureIndicator | None, allowed: int | None, whole: bool
) -> dict[str, Any]:
    """Return the indicator rows of one budget (none unless ``whole``), notes on attacks, and adversarial images."""
    subject = findings.subject
    right = np.flatnonzero(subject.clean.right >= 0.5)
    some = right[:SAMPLES]
    x, y = subject.x[some], subject.y[some]
    here = {
        label: (findings.attacks[label], result.right[right]) for label, result in findings.succeeded(budget).items()
    }
    ran_on = {
        label: result.attacked[right]
        for label, result in findings.succeeded(budget).items()
        if result.attacked is not None
    }
    threat = findings.budgets()[budget]
    if whole:
        examination = examine(
            subject.model,
            x,
            y,
            threat,
            Done(here, subject.costs, ran_on, gradient, passes=allowed),
            subject.context,
        )
    else:
        count = len(some) if allowed is None else allowed // _REFERENCE
        enough = count >= min(len(some), _FEWEST)
        compared = partial(weaker_than_reference, subject.model, x[:count], y[:count], threat, here)
        notes = compared(costs=subject.costs, context=subject.context) if enough else {}
        examination = Examination([], {}, notes)
    return {
        "rows": [{"norm": budget[0], "eps": budget[1], **dataclasses.asdict(one)} for one in examination.indicators],
        "beside": dict(examination.notes),
        "fooled": some[list(examination.fooled)].tolist(),
        "images": torch.stack(list(examination.fooled.values())).cpu().numpy() if examination.fooled else np.zeros(0),
    }


_REFERENCE = 60  # passes per image of the reference attack
_FEWEST = 25  # images of it; on fewer it says nothing


@dataclass(frozen=True)
class FoundImages(Attack):
    """Returns images that were found before, for their evaluation.

    Fields:
        images: an image (…) by the index of each sample.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS
    aims: ClassVar[bool] = True
    images: Any = field(default_factory=dict, repr=False)

    def perturb(self, model: torch.nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        return torch.stack([self.images[index] for index in rng.index.tolist()]).to(x)


def _count_fooled(findings: Findings, threat: ThreatModel, rows: np.ndarray, images: Tensor) -> None:
    """Evaluate images that the checks found, and add a row to the findings if they fool samples that were left."""
    known = findings.together((threat.norm, threat.eps))
    if known is None:
        return
    fooled = {int(row): image for row, image in zip(rows, images, strict=True) if known.right[row] >= 0.5}
    if not fooled:
        return
    rows = np.array(sorted(fooled))
    subject = findings.subject
    label = further_label("failure-checks", threat, findings.budgets())
    attack = FoundImages(threat.norm, threat.eps, images=fooled)
    try:
        part = subject.attack_rows(attack, known, rows, label)
    except RobGIBError:  # an image that lies outside the ball by rounding
        return
    if not (part.right < 0.5).any():
        return
    note = f"the checks of attack failure fooled {int((part.right < 0.5).sum())} of the images that all attacks left"
    findings.add(label, attack, dataclasses.replace(after(known, scattered(known, part, rows)), notes=(note,)))


def _unfinished(norm: str, eps: float, error: Exception) -> dict[str, Any]:
    return {
        "norm": norm,
        "eps": eps,
        "name": "checks did not finish",
        "seen": True,
        "detail": f"{type(error).__name__}: {first_line(error)}",
        "meaning": "attack failure was not checked under this threat model; the other results are valid",
    }


def convergence_table(findings: Findings) -> pd.DataFrame:
    """Return the progress of each attack by step, as it was recorded on the first samples that it attacked.

    It is that of the true class: with targets the table is empty.
    """
    subject = findings.subject
    if subject.options.signs is False or carried(subject.x, "targets") is not None:
        return table("convergence")
    rows: list[dict[str, Any]] = []
    for label, result in findings.succeeded().items():
        if label not in subject.attacks:
            continue
        attack = subject.attacks[label]
        try:
            with faults_of("the model"):
                steps = convergence_rows(subject.model, subject.x, subject.y, attack, result, subject.device)
        except (RuntimeError, RobGIBError):  # the clean images are called once more; the attack itself succeeded
            steps = []
        rows += [{"attack": label, "norm": attack.threat.norm, "eps": attack.threat.eps, **row} for row in steps]
    return table("convergence", rows)


def add_notes(robustness: pd.DataFrame, beside: Mapping[str, str]) -> None:
    """Append notes on attacks to the robustness table."""
    for label, text in beside.items():
        here = robustness["attack"] == label
        robustness.loc[here, "note"] = robustness.loc[here, "note"].map(
            lambda note, text=text: "; ".join(filter(None, (note, text)))
        )
