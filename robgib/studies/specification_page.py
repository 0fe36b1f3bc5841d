"""The page of a specification curve, and the same as JSON and Markdown."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from robgib.reporting.page import page
from robgib.reporting.specification_curve import specification_curve
from robgib.results import markdown_table, plain_rows
from robgib.studies.analyses import COMPRESSION
from robgib.studies.page import json_head, markdown_head
from robgib.studies.specification import Specification
from robgib.studies.specification_claim import NOT, OPEN, OUT, SpecificationClaim

__all__ = [
    "specification_json",
    "specification_markdown",
    "specification_page",
]

_CHOICES = {
    "kind": "Network", "seed": "Seed", "term": "Term", "features": "Features", "view": "View",
    "fitted": "Bins, codes, noise", "estimator": "Estimator", "weights": "PMI weights",
}  # fmt: skip
_OUTCOMES = {OUT: 1, NOT: 0, OPEN: -1}
_HEADINGS = {
    "choice": "Choice", "level": "Level", "analyses": "Analyses", "out": "Comes out", "does_not": "Does not",
    "undetermined": "Undetermined", "median_change": "Median change", "more": "More often at", "less": "Less often at",
    "difference": "Difference", "p": "p", "pairs": "Pairs", "networks": "Networks", "control": "Control",
    "out_trained": "Same analyses, trained", "claim": "Claim", "found": "Found",
}  # fmt: skip
_PERCENT = {"out", "does_not", "undetermined", "median_change", "difference", "out_trained"}


def _sections(claim: SpecificationClaim) -> list[tuple[str, str, pd.DataFrame]]:
    every = [
        (
            "What separates the analyses",
            "The two levels of a choice that differ most, over pairs of analyses of one network that differ in nothing "
            "else (features and estimator are paired together). p: exact sign flips over networks, times the number of "
            "pairs of levels. Networks of different kinds are not pairs: a difference alone.",
            claim.separating,
        ),
        (
            "Controls",
            "The claim must not come out here. Rescaled: the trained network as five epochs that differ in the scale "
            "of the layer, or of one unit, which the weights after it undo. p: networks with random labels and with "
            "their own exchanged within their kind, all ways.",
            claim.controls,
        ),
        ("Choices", "The share of analyses in which the claim comes out, by level of each choice.", claim.choices),
        (
            "Further claims",
            "The synergy of a layer's units about the label, S(Z;Y), from the first epoch to the last; and subset "
            "synergy against the generalisation gap over networks. Numbers of analyses.",
            claim.others,
        ),
    ]
    return [(title, what, table) for title, what, table in every if len(table)]


def _shown(column: str, value: Any, counts: bool) -> str:
    if isinstance(value, float):
        if value != value:
            return ""
        return f"{value:.0%}" if column in _PERCENT and not counts else f"{value:.2g}"
    return str(value)


def _rows(title: str, table: pd.DataFrame) -> list[list[str]]:
    counts = title == "Further claims"
    return [[_shown(c, v, counts) for c, v in zip(table, row, strict=True)] for row in table.itertuples(index=False)]


def specification_page(study: Specification, rows: pd.DataFrame, claim: SpecificationClaim, version: str) -> str:
    """Return the page as self-contained HTML."""
    own = rows[(rows["claim"] == COMPRESSION) & (rows["control"] == "")] if len(rows) else rows
    choices = {c: name for c, name in _CHOICES.items() if len(own) and own[c].nunique() > 1}
    plot = specification_curve(own, choices, _OUTCOMES, claim.words) if len(own) else ""
    return page(
        "specification.html.j2",
        title=study.name,
        study=study,
        claim=claim,
        plot=Markup(plot),
        sections=[
            (t, w, [_HEADINGS[c] for c in f], [f[c].dtype.kind in "fi" for c in f], _rows(t, f))
            for t, w, f in _sections(claim)
        ],
        count=f"{len(rows):,}",
        version=version,
    )


def specification_json(
    study: Specification, networks: pd.DataFrame, claim: SpecificationClaim, version: str
) -> dict[str, Any]:
    """Return everything but the analyses as plain values; NaN is null."""
    return {
        **json_head(study, claim, version),
        "notes": list(claim.notes),
        "choices": plain_rows(claim.choices),
        "separating": plain_rows(claim.separating),
        "controls": plain_rows(claim.controls),
        "others": plain_rows(claim.others),
        "networks": plain_rows(networks),
    }


def specification_markdown(study: Specification, claim: SpecificationClaim) -> str:
    """Return the verdict and the tables as Markdown."""
    lines = [*markdown_head(study, claim), *(f"- {note}" for note in claim.notes)]
    for title, what, table in _sections(claim):
        shown = pd.DataFrame(_rows(title, table), columns=[_HEADINGS[c] for c in table])
        lines += ["", f"## {title}", "", what, "", markdown_table(shown)]
    return "\n".join(lines) + "\n"
