"""Cells of the tables that a person reads, as the schema of the results declares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from robgib.reporting.headline import budget_text
from robgib.reporting.summary import in_reading_order, term_label
from robgib.results import SCHEMA, TERMS, Column

__all__ = ["LayerTable", "cell", "layer_table", "shown_columns"]

Place = Literal["terminal", "page"]


def shown_columns(table: str, where: Place, frames: Sequence[pd.DataFrame]) -> list[Column]:
    """Return the columns of a table that are shown somewhere, those without a value in any of the frames left out.

    >>> [c.label for c in shown_columns("robustness", "terminal", [pd.DataFrame({"robust_accuracy": [0.5]})])]
    ['robust accuracy']
    """
    return [
        column
        for column in SCHEMA[table]
        if where in column.shown and any(column.name in f and f[column.name].notna().any() for f in frames)
    ]


def cell(column: Column, row: Any) -> str:
    """Return a value of a row (of ``itertuples``) as text; empty where there is none.

    >>> row = next(pd.DataFrame({"low": [0.1], "high": [0.25], "seconds": [0.0]}).itertuples())
    >>> cell(Column("low", "number", "", form="interval"), row)
    '[10.0, 25.0]'
    """
    value = getattr(row, column.name)
    if column.form == "budget":
        return budget_text(str(row.norm), float(value), str(getattr(row, "attack", "")))
    if isinstance(value, float) and math.isnan(value):
        return "n/e" if column.form in ("estimate", "error") else ""
    if column.form == "interval":
        return f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
    if column.form == "estimate":
        half = f" ± {(row.high - row.low) / 2:.2f}" if row.high > row.low else ""  # none where all outcomes are counted
        return f"{value:.2f}{half}{'*' if row.flagged else ''}"
    if column.form == "distance":
        return "not found" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    if column.form == "seconds":
        return f"{value:.1f} s" if value else ""
    pattern = {
        "percent": "{:.1%}",
        "bar": "{:.1%}",
        "share": "{:.0%}",
        "bits": "{:.3f}",
        "hundredths": "{:.2f}",
        "error": "{:+.3f}",
    }.get(column.form, "{}")
    return pattern.format(round(value, 9) + 0.0 if isinstance(value, float) else value)


@dataclass(frozen=True)
class LayerTable:
    """The layers of one estimator and partition as a table of texts: a row a layer, a column a term.

    Attributes:
        headings: of the columns.
        numbers: whether each column holds numbers.
        rows: texts, one per column.
    """

    headings: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[str]]


def layer_table(layers: pd.DataFrame, where: Place) -> LayerTable:
    """Return the layers' table as the schema shows it: an ``estimate`` becomes a column a term.

    The predicted label comes first. Texts that differ between the terms of a layer are joined.

    Args:
        layers: rows of ``layers``, of one estimator and partition.
        where: the place that it is shown in.
    """
    columns = shown_columns("layers", where, [layers])
    present = set(layers.loc[layers["value"].notna(), "term"])
    terms = [t for t in TERMS if where in t.shown and t.name in present]
    if where == "terminal" and "IB noise" in present:  # that of a code is I(Z;Y) less a rate that was chosen
        terms = [t for t in terms if t.name != "IB"]
    view = str(layers["view"].iloc[0])
    headings: list[str] = []
    for column in columns:
        if column.form == "estimate":
            named = [term_label(t.name, view) for t in terms]
            headings += [t.short or n for t, n in zip(terms, named, strict=True)] if where == "terminal" else named
        else:
            headings.append(column.label)
    missing = "n/e" if where == "terminal" else "not estimable"
    rows = []
    for _, of_layer in in_reading_order(layers).groupby("layer", sort=False):
        by_term = {r.term: r for r in of_layer.itertuples()}
        row: list[str] = []
        for column in columns:
            if column.form == "estimate":
                estimates = [cell(column, by_term[t.name]) if t.name in by_term else "" for t in terms]
                row += [missing if text == "n/e" else text for text in estimates]
            else:
                texts = (part for r in of_layer.itertuples() for part in cell(column, r).split("; ") if part)
                row.append("; ".join(dict.fromkeys(texts)))
        rows.append(row)
    numbers = [n for c in columns for n in ([True] * len(terms) if c.form == "estimate" else [False])]
    return LayerTable(headings, numbers, rows)
