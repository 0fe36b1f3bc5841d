"""A study's page, and the same as JSON and Markdown."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from robgib.reporting import figures
from robgib.reporting.page import page
from robgib.results import csv_text, plain_rows
from robgib.studies.claims import Claim
from robgib.studies.design import Study
from robgib.studies.phases import Phases, PhasesClaim, Traced

__all__ = [
    "STUDY_SCHEMA",
    "phases_json",
    "phases_markdown",
    "phases_page",
    "study_json",
    "study_markdown",
    "study_page",
]

STUDY_SCHEMA = 1
"""Version of what :func:`study_json` writes."""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": list(table.columns),
        "rows": [[_text(v) for v in row] for row in table.itertuples(index=False)],
        "numbers": [table[c].dtype.kind in "fi" for c in table.columns],
    }


def _shown(study: Study, claim: Claim) -> list[tuple[str, str, pd.DataFrame]]:
    facts = pd.DataFrame(list(claim.facts.items()), columns=["figure", "value"])
    return [
        (
            f"Correlations with {study.outcome.noun}",
            "Spearman's ρ with a 95% interval (bootstrap over groups of models that differ by their seed alone) and "
            "its permutation p; Holm's correction for the secondary figures; Pearson's and Kendall's coefficients. "
            "Reliability: the share of the figure's variance over models that is not its own estimation error; "
            "corrected: Pearson's coefficient had both been measured without error (not given where error is most of "
            "the variance, or where it would pass 1: intervals also hold errors that all models share).",
            claim.correlations,
        ),
        (
            "At each level of how the models differ",
            "The primary figure's correlation with the outcome among models that differ by their seed alone, by the "
            "dose of their training, and by regime; and its standardised coefficient in a mixed model.",
            claim.effects,
        ),
        (
            "Given what else is known of the models",
            "Spearman's partial correlation of the primary figure with the outcome.",
            claim.partial,
        ),
        ("With each group left out", "The primary figure's ρ without those models.", claim.without),
        (
            "GIB and IB",
            "Whether the two complexities can be told apart on these models, and whether the bound IB ≤ GIB holds in "
            "every layer's estimate.",
            facts,
        ),
    ]


def _downloads(rows: pd.DataFrame, told: dict[str, Any]) -> dict[str, str]:
    """What a page offers for download, in base 64."""
    texts = {"csv": csv_text(rows), "json": json.dumps(told)}
    return {kind: base64.b64encode(text.encode()).decode() for kind, text in texts.items()}


def _head(study: Study | Phases, claim: Claim | PhasesClaim, version: str) -> dict[str, Any]:
    """What the JSON of every kind of study begins with."""
    return {
        "schema": STUDY_SCHEMA,
        "robgib": version,
        "design": study.model_dump(mode="json"),
        "verdict": claim.verdict,
        "words": claim.words,
        "models_counted": claim.models,
    }


def study_page(study: Study, rows: pd.DataFrame, claim: Claim, version: str) -> str:
    """Return the page as self-contained HTML: the verdict first, then the design, then the results."""
    primary = study.primary.label
    told = rows[rows["left_out"] == ""]
    drawn = {"confirm", "explore"} & set(told["part"])
    plots = [
        (part, Markup(figures.study_scatter(told[told["part"] == part], primary, "outcome", study.outcome.axis)))
        for part in ("confirm", "explore", "control")
        if (part in drawn or part == "control") and primary in told and len(told[told["part"] == part])
    ]
    data = study_json(study, rows, claim, version)
    return page(
        "study.html.j2",
        title=study.name,
        study=study,
        claim=claim,
        primary=primary,
        secondary=[f.label for f in study.secondary],
        plots=plots,
        sections=[(t, w, _cells(f)) for t, w, f in _shown(study, claim) if len(f)],
        models=_cells(rows),
        **_downloads(rows, data),
        version=version,
    )


def phases_page(study: Phases, traced: Sequence[Traced], rows: pd.DataFrame, claim: PhasesClaim, version: str) -> str:
    """Return the page of a study of compression as self-contained HTML."""
    curves = pd.concat(
        [
            t.table.assign(network=t.network.name, group=t.network.group, control=t.network.control or "")
            for t in traced
            if t.table is not None
        ]
        or [pd.DataFrame()]
    )
    primary = rows[rows["primary"].eq(True)] if "primary" in rows else rows.iloc[:0]
    of_layer = curves.merge(primary[["network", "layer"]]) if len(curves) else curves
    data = phases_json(study, rows, claim, version)
    return page(
        "phases.html.j2",
        title=study.name,
        study=study,
        claim=claim,
        plot=Markup(figures.phase_curves(of_layer)) if len(of_layer) else "",
        groups=_cells(claim.groups) if len(claim.groups) else None,
        networks=_cells(rows),
        **_downloads(rows, data),
        version=version,
    )


def phases_json(study: Phases, rows: pd.DataFrame, claim: PhasesClaim, version: str) -> dict[str, Any]:
    """Return everything as plain values; NaN is null. ``schema`` is :data:`STUDY_SCHEMA`."""
    return {
        **_head(study, claim, version),
        "notes": list(claim.notes),
        "groups": plain_rows(claim.groups),
        "networks": plain_rows(rows),
    }


def phases_markdown(study: Phases, claim: PhasesClaim) -> str:
    """Return the verdict and the counts as Markdown."""
    lines = [f"# {study.name}", "", study.question, "", f"**{claim.verdict.capitalize()}.** {claim.words}", ""]
    lines += [f"- {note}" for note in claim.notes]
    if len(claim.groups):
        lines += ["", claim.groups.map(_text).to_markdown(index=False, disable_numparse=True)]
    return "\n".join(lines) + "\n"


def study_json(study: Study, rows: pd.DataFrame, claim: Claim, version: str) -> dict[str, Any]:
    """Return everything as plain values; NaN is null. ``schema`` is :data:`STUDY_SCHEMA`."""
    return {
        **_head(study, claim, version),
        "facts": plain_rows(pd.DataFrame([claim.facts]))[0] if claim.facts else {},
        "notes": list(claim.notes),
        "correlations": plain_rows(claim.correlations),
        "effects": plain_rows(claim.effects),
        "partial": plain_rows(claim.partial),
        "without": plain_rows(claim.without),
        "models": plain_rows(rows),
    }


def study_markdown(study: Study, rows: pd.DataFrame, claim: Claim) -> str:
    """Return the verdict, the design and the tables as Markdown."""
    lines = [
        f"# {study.name}",
        "",
        study.question,
        "",
        f"**{claim.verdict.capitalize()}.** {claim.words}",
        "",
        f"Primary figure: {study.primary.label}. Outcome: {study.outcome.words}. {len(rows)} models, {claim.models} "
        "counted.",
        "",
        *(f"- {note}" for note in claim.notes),
    ]
    for title, what, frame in _shown(study, claim):
        if len(frame):
            shown = frame.map(_text)
            lines += ["", f"## {title}", "", what, "", shown.to_markdown(index=False, disable_numparse=True)]
    return "\n".join(lines) + "\n"
