"""The result of a study as an HTML page, as JSON, and as Markdown."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from robgib.reporting import figures
from robgib.reporting.page import page, typeset
from robgib.results import csv_text, markdown_table, plain_rows
from robgib.studies.claims import Claim, collapsed
from robgib.studies.design import Study, heading
from robgib.studies.ladder import DRAWS, shown_p
from robgib.studies.phases import Phases, PhasesClaim, Traced
from robgib.studies.specification import Specification
from robgib.studies.specification_claim import SpecificationClaim

__all__ = [
    "STUDY_SCHEMA",
    "json_head",
    "markdown_head",
    "phases_json",
    "phases_markdown",
    "phases_page",
    "study_json",
    "study_markdown",
    "study_page",
]

STUDY_SCHEMA = 2
"""Schema version of the JSON of a study; it rises with every change that could break a reader."""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": [heading(c) for c in table],
        "rows": [[typeset(_text(v)) for v in row] for row in table.itertuples(index=False)],
        "numbers": [table[c].dtype.kind in "fi" for c in table.columns],
    }


_NAMING = ("figure", "given", "baseline", "")
"""Columns whose cells are names of columns of the models' table, or of rows of the agreement."""


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells call figures and baselines what its headings call them."""
    named = [c for c in _NAMING if c in table]  # the ladder's column of this name holds numbers
    return table.assign(**{c: [heading(v) if isinstance(v, str) else v for v in table[c]] for c in named})


def _shown(study: Study, claim: Claim) -> list[tuple[str, str, pd.DataFrame]]:
    """Return the title, the explanation and the table of each section that has rows."""
    return [(title, what, _labelled(table)) for title, what, table in _sections(study, claim) if len(table)]


def _sections(study: Study, claim: Claim) -> list[tuple[str, str, pd.DataFrame]]:
    facts = pd.DataFrame(list(claim.facts.items()), columns=["figure", "value"])
    correlations = claim.correlations
    if "p" in correlations:
        correlations = correlations.assign(
            p=["" if math.isnan(p) else shown_p(p, DRAWS).removeprefix("= ") for p in correlations["p"]]
        )
    return [
        (
            "The ladder of evidence",
            "Goes with: Spearman's ρ over all models; p relabels architectures, strengths and other fields of the "
            "recipes. At fixed training: among models that differ by their seed alone; p permutes within them. Beyond "
            "the baselines: the share of the squared error that the figure removes when the baselines predict an "
            "architecture that they were not fitted on. Intervals are 95%, by a bootstrap over groups of models that "
            "differ by their seed alone, with ranks taken anew in each draw.",
            claim.ladder,
        ),
        (
            f"Correlations of figures and baselines with {study.outcome.noun}",
            "Spearman's ρ with a 95% interval (the same bootstrap) and p by permutation of the models, which takes "
            "them for independent; Holm's correction for the secondary figures; Pearson's and Kendall's coefficients. "
            "Reliability: the share of the figure's variance over models that is not its own estimation error; "
            "corrected: Pearson's coefficient had both been measured without error (not given where error is most of "
            "the variance, or where it would pass 1: intervals also hold errors that all models share).",
            correlations,
        ),
        (
            "Baselines beside the primary figure",
            "Is the baseline's correlation smaller than the figure's? |ρ(baseline)| − |ρ(figure)| with a 95% interval "
            "(the same bootstrap): the baseline is shown to correlate less closely if the whole interval is below 0.",
            claim.beside,
        ),
        (
            "Agreement of ranks",
            "Kendall's τ over all models, and given the baselines; Ψ: the mean agreement of models that differ in one "
            "field alone, by field (Jiang et al. 2020); τ among models that share a field; the share of wrong signs in "
            "the worst environment, a change of one field from one level to another, and its mean (Dziugaite et al. "
            "2020).",
            claim.agreement.dropna(axis=1, how="all").set_index("figure").T.rename_axis(None).reset_index(names="")
            if len(claim.agreement)
            else claim.agreement,
        ),
        (
            "GIB against IB",
            "C(X;Z) and I(X;Z) of the same layer, partition and estimator: how alike they are over the models, and "
            "which goes more with the outcome, whatever its sign. Williams' test compares the magnitudes of Pearson's "
            "coefficients.",
            claim.against,
        ),
        (
            "Given what else is known of the models",
            "Spearman's partial correlation of the primary figure with the outcome given each baseline, and of the "
            "baseline given the figure.",
            claim.partial,
        ),
        ("With each group left out", "The primary figure's ρ without those models.", claim.without),
        ("Power and the bound", "Whether IB ≤ GIB holds in every layer's estimate.", facts),
    ]


def _downloads(rows: pd.DataFrame, answer: dict[str, Any]) -> dict[str, str]:
    """Return the files that a page offers for download, in base 64."""
    texts = {"csv": csv_text(rows), "json": json.dumps(answer)}
    return {kind: base64.b64encode(text.encode()).decode() for kind, text in texts.items()}


AnyStudy = Study | Phases | Specification
AnyClaim = Claim | PhasesClaim | SpecificationClaim


def json_head(study: AnyStudy, claim: AnyClaim, version: str) -> dict[str, Any]:
    """Return the fields that the JSON of every kind of study begins with: schema, version, design and verdict."""
    return {
        "schema": STUDY_SCHEMA,
        "robgib": version,
        "design": study.model_dump(mode="json"),
        "verdict": claim.verdict,
        "words": claim.words,
        "models_counted": claim.models,
    }


def markdown_head(study: AnyStudy, claim: AnyClaim) -> list[str]:
    """Return the lines that the Markdown of every kind of study begins with: name, question and verdict."""
    return [f"# {study.name}", "", study.question, "", f"**{claim.verdict.capitalize()}.** {claim.words}", ""]


def study_page(study: Study, rows: pd.DataFrame, claim: Claim, version: str) -> str:
    """Return the page of a correlation study as self-contained HTML: verdict, design, then results.

    Args:
        study: the design.
        rows: one row per model (:func:`~robgib.studies.measured_rows`).
        claim: the result (:func:`~robgib.studies.claim`).
        version: version of robgib, shown at the foot of the page.
    """
    primary = study.primary.label
    rows = collapsed(study, rows)
    labels = [primary, *(f.label for f in study.secondary if f.figure in _COMPLEXITIES)]
    plots = [
        (part, Markup(figures.study_scatter(of, label, "outcome", heading(label), study.outcome.axis)))
        for part in ("confirm", "explore", "control")
        for label in (labels if part == "confirm" else labels[:1])
        if len(of := _drawn(rows, part, label))
    ]
    data = study_json(study, rows, claim, version)
    return page(
        "study.html.j2",
        title=study.name,
        study=study,
        claim=claim,
        primary=heading(primary),
        secondary=[heading(f.label) for f in study.secondary],
        plots=plots,
        sections=[(t, w, _cells(f)) for t, w, f in _shown(study, claim)],
        models=_cells(rows),
        **_downloads(rows, data),
        version=version,
    )


_COMPLEXITIES = ("gib_complexity", "ib_complexity")


def _drawn(rows: pd.DataFrame, part: str, label: str) -> pd.DataFrame:
    """Return the rows of one part that have the figure, with the collapsed models, which are drawn but not counted."""
    if label not in rows or "outcome" not in rows:
        return rows.iloc[:0]
    shown = (rows["left_out"] == "") | rows["left_out"].str.contains("accuracy")
    return rows[shown & (rows["part"] == part)].dropna(subset=[label, "outcome"])


def phases_page(study: Phases, traced: Sequence[Traced], rows: pd.DataFrame, claim: PhasesClaim, version: str) -> str:
    """Return the page of a study of compression as self-contained HTML.

    Args:
        study: the design.
        traced: the traces, for the curves.
        rows: one row per network, layer and term (:func:`~robgib.studies.phases_rows`).
        claim: the result (:func:`~robgib.studies.phases_claim`).
        version: version of robgib, shown at the foot of the page.
    """
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
    """Return the result of a study of compression as values that JSON can represent; NaN is null."""
    return {
        **json_head(study, claim, version),
        "notes": list(claim.notes),
        "groups": plain_rows(claim.groups),
        "networks": plain_rows(rows),
    }


def phases_markdown(study: Phases, claim: PhasesClaim) -> str:
    """Return the verdict and the counts of a study of compression as Markdown."""
    lines = [*markdown_head(study, claim), *(f"- {note}" for note in claim.notes)]
    if len(claim.groups):
        lines += ["", markdown_table(claim.groups.map(_text).rename(columns=heading))]
    return "\n".join(lines) + "\n"


def study_json(study: Study, rows: pd.DataFrame, claim: Claim, version: str) -> dict[str, Any]:
    """Return the result of a correlation study as values that JSON can represent; NaN is null."""
    return {
        **json_head(study, claim, version),
        "facts": plain_rows(pd.DataFrame([claim.facts]))[0] if claim.facts else {},
        "notes": list(claim.notes),
        "correlations": plain_rows(claim.correlations),
        "beside": plain_rows(claim.beside),
        "ladder": plain_rows(claim.ladder),
        "agreement": plain_rows(claim.agreement),
        "against": plain_rows(claim.against),
        "partial": plain_rows(claim.partial),
        "without": plain_rows(claim.without),
        "models": plain_rows(rows),
    }


def study_markdown(study: Study, rows: pd.DataFrame, claim: Claim) -> str:
    """Return the verdict, the design and the tables of a correlation study as Markdown."""
    lines = [
        *markdown_head(study, claim),
        f"Primary figure: {heading(study.primary.label)}. Outcome: {study.outcome.words}. {len(rows)} models, "
        f"{claim.models} counted.",
        "",
        *(f"- {note}" for note in claim.notes),
    ]
    for title, what, frame in _shown(study, claim):
        shown = frame.map(_text).rename(columns=heading)
        lines += ["", f"## {title}", "", what, "", markdown_table(shown)]
    return "\n".join(lines) + "\n"
