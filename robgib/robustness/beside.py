"""Measurements besides the attacks: attack-failure indicators, convergence, and common corruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from robgib.errors import RobGIBError, first_line
from robgib.results import table
from robgib.robustness.attacking import Budget, Findings, Subject
from robgib.robustness.convergence import TRACKED, convergence
from robgib.robustness.corruptions import corruption_accuracy
from robgib.robustness.failure_indicators import SAMPLES, failure_indicators, weaker_than_reference
from robgib.runtime import faults_of

__all__ = ["add_indicators", "convergence_table", "corruption_table"]

_FEWEST = 25  # minimum number of images for the indicators
_INDICATOR_PASSES = 1700  # approximate maximum number of forward passes of the indicators per image
_WATCHED = 10  # minimum number of images for the convergence table
_CORRUPTED = 20  # passes per image of the common corruptions


def _afforded(count: int, spent: float, each: float, fewest: int = _FEWEST) -> int:
    """Return how many of ``count`` images fit into ``spent`` passes, at ``each`` per image; at least ``fewest``."""
    return min(count, max(fewest, int(spent / max(each, 1))))


def corruption_table(subject: Subject, spent: Mapping[Budget, int]) -> pd.DataFrame:
    """Measure accuracy under common corruptions, with at most half as many passes as the attacks took."""
    if not subject.options.corruptions or subject.x.ndim != 4:
        return table("corruptions")
    here = subject.context.parts.at("corruptions")
    known = here.read()
    if known is None:
        count = len(subject)
        some = _afforded(count, sum(spent.values()) / 2, _CORRUPTED, 4 * _FEWEST) if spent else count
        measured = corruption_accuracy(
            subject.model,
            subject.x[:some],
            subject.y[:some],
            context=dataclasses.replace(subject.context, batch_size=subject.model.batch_size),
        )
        known = {"rows": measured.to_dict("records")}
        here.write(known)
    return table("corruptions", known["rows"])


def add_indicators(findings: Findings, robustness: pd.DataFrame) -> pd.DataFrame:
    """Return the table of attack-failure indicators, and add their notes on single attacks to ``robustness``.

    All indicators are measured once per norm, at its largest eps. At other eps, attacks are only compared with the
    reference attack. An error under one threat model does not affect the others.
    """
    subject = findings.subject
    if not subject.options.signs:
        return table("signs")
    threats = {(a.threat.norm, a.threat.eps): a.threat for a in subject.attacks.values()}
    largest = {norm: max(eps for n, eps in threats if n == norm) for norm, _ in threats}
    rows: list[dict[str, Any]] = []
    for norm, eps in threats:
        kept = subject.context.parts.at("signs", norm, f"{eps:.9g}")
        known = kept.read()
        if known is None:
            try:
                known = _indicators(findings, (norm, eps), whole=eps == largest[norm])
                kept.write(known)
            except (RuntimeError, RobGIBError) as error:
                known = {"rows": [_unfinished(norm, eps, error)], "beside": {}}
        rows += known["rows"]
        _note(robustness, known["beside"])
    return table("signs", rows)


def _indicators(findings: Findings, budget: Budget, whole: bool) -> dict[str, Any]:
    """Return the indicator rows of one budget (none unless ``whole``), and notes on attacks by label."""
    subject, spent = findings.subject, findings.spent
    right = subject.clean.right >= 0.5
    x, y = subject.x[right], subject.y[right]
    here = {
        label: (subject.attacks[label], left[right])
        for label, left in findings.left.items()
        if (subject.attacks[label].threat.norm, subject.attacks[label].threat.eps) == budget
    }
    threat = next(a.threat for a in subject.attacks.values() if (a.threat.norm, a.threat.eps) == budget)
    rows: list[dict[str, Any]] = []
    if whole:
        indicators = failure_indicators(
            subject.model,
            x,
            y,
            threat,
            attacks=here,
            costs=subject.costs,
            context=subject.context,
            samples=_afforded(SAMPLES, spent.get(budget, 0) / 2, _INDICATOR_PASSES) if spent else SAMPLES,
        )
        rows = [{"norm": budget[0], "eps": budget[1], **dataclasses.asdict(one)} for one in indicators]
    beside = weaker_than_reference(subject.model, x, y, threat, here, costs=subject.costs, context=subject.context)
    return {"rows": rows, "beside": beside}


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
    """Return the progress of each attack by step, on a tenth of the samples. Errors do not affect other results."""
    subject = findings.subject
    if not subject.options.signs:
        return table("convergence")
    right = np.flatnonzero(subject.clean.right >= 0.5)
    some = right[: min(TRACKED, max(_WATCHED, len(subject) // 10))]
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(findings.left):
        attack = subject.attacks[label]
        kept = subject.context.parts.at("convergence", label)
        known = kept.read()
        if known is None:
            x, y = subject.x[some], subject.y[some]
            try:
                with faults_of(label):
                    steps = convergence(subject.model, x, y, attack, context=subject.context)
            except Exception:  # a plug-in may raise any exception; the attack itself succeeded
                steps = []
            base = {"attack": label, "norm": attack.threat.norm, "eps": attack.threat.eps}
            known = {"rows": [{**base, **row} for row in steps]}
            kept.write(known)
        rows += known["rows"]
        subject.context.report("tracking convergence", number + 1, len(findings.left), label)
    return table("convergence", rows)


def _note(robustness: pd.DataFrame, beside: Mapping[str, str]) -> None:
    """Append notes on attacks to the robustness table."""
    for label, text in beside.items():
        here = robustness["attack"] == label
        robustness.loc[here, "note"] = robustness.loc[here, "note"].map(
            lambda note, text=text: "; ".join(filter(None, (note, text)))
        )
