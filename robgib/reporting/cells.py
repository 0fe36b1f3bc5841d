"""Cells of the tables that a person reads, as the schema of the results declares them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from robgib.reporting.headline import budget_text
from robgib.reporting.summary import RESOLUTIONS, in_reading_order, term_label
from robgib.results import SCHEMA, TERMS, Column, Term

__all__ = ["LayerTable", "cell", "layer_table", "shown_columns", "spread", "star_reasons", "without_negative_zero"]

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


def without_negative_zero(text: str) -> str:
    """Return a written number, without the sign if all its digits are 0.

    >>> without_negative_zero("-0.00"), without_negative_zero("-0.01"), without_negative_zero("-0.0%")
    ('0.00', '-0.01', '0.0%')
    """
    return text[1:] if text.startswith("-") and not text.strip("-0.%") else text


def spread(value: float, low: float, high: float, digits: int = 2, unit: str = "") -> str:
    """Return a figure with its 95% interval: by ± if that is the interval, else by both ends.

    The value alone is returned if the interval has no width, as where all outcomes are counted.

    >>> spread(2.5, 2.34, 2.66), spread(-2.46, -3.65, -1.92), spread(45, 41.5, 52, 0, "%"), spread(1, 1, 1)
    ('2.50 ± 0.16', '-2.46 [-3.65, -1.92]', '45% [42, 52]', '1.00')
    """
    center, start, end = (without_negative_zero(f"{v:.{digits}f}") for v in (value, low, high))
    if not high > low:
        return center + unit
    if abs(low + high - 2 * value) < 0.1 * 10**-digits:
        return f"{center} ± {(high - low) / 2:.{digits}f}{unit}"
    return f"{center}{unit} [{start}, {end}]"


_VARIES = re.compile(r"('[^']*'|\d+(?:\.\d+)?)")
"""The parts of a note that differ from layer to layer: names and numbers."""


def star_reasons(layers: pd.DataFrame, shown: pd.DataFrame) -> str:
    """Return why the figures with a star are flagged, for the legend of a table; empty if none has one.

    The reasons are the notes of the flagged figures. A note that a reliable figure of the same term has too is no
    reason. What differs between notes of one kind is written as an ellipsis.

    Args:
        layers: rows of ``layers``, of one estimator and partition or of several.
        shown: the rows among them that the table shows.

    >>> rows = [("C", 1.0, True, "few samples; fast"), ("C", 1.0, False, "fast"), ("S", 1.0, True, "")]
    >>> frame = pd.DataFrame(rows, columns=["term", "value", "flagged", "note"])
    >>> star_reasons(frame, frame)
    "few samples; at the estimator's ceiling"
    """
    used = ["term", "value", "flagged", "note"]
    layers, shown = layers[used], shown[used]
    reliable = {(r.term, note) for r in layers[~layers["flagged"].astype(bool)].itertuples() for note in _notes(r)}
    kinds: dict[tuple[str, ...], list[str]] = {}
    for r in shown[shown["flagged"].astype(bool) & shown["value"].notna()].itertuples():
        own = [n for n in _notes(r) if (r.term, n) not in reliable] or [*_notes(r)] or ["at the estimator's ceiling"]
        for note in own:
            written = f"at {of}, {note}" if (of := _resolution_of(str(r.term))) else note
            kinds.setdefault(tuple(_VARIES.split(written)[::2]), []).append(written)
    return "; ".join(_merged(notes) for notes in kinds.values())


def _notes(row: Any) -> Iterator[str]:
    return filter(None, str(row.note if row.note == row.note else "").split("; "))


def _merged(notes: Sequence[str]) -> str:
    """Return notes of one kind as one, an ellipsis in place of what differs."""
    parts = zip(*(_VARIES.split(note) for note in notes), strict=True)
    return "".join(same[0] if len({*same}) == 1 else "…" for same in parts)


def _resolution_of(term: str) -> str:
    """Return the number of codes that a term names, as ``k/2``; empty for the layer's own."""
    return next((label for label, ending in RESOLUTIONS.items() if ending and term.endswith(ending)), "")


def _layer_notes(rows: Iterable[Any]) -> list[str]:
    """Return the notes of a layer's figures; one of figures at another number of codes alone says at which."""
    terms: dict[str, list[str]] = {}
    for r in rows:
        for note in _notes(r):
            terms.setdefault(note, []).append(_resolution_of(str(r.term)))
    return [
        note if "" in found else f"at {' and '.join(dict.fromkeys(found))}, {note}" for note, found in terms.items()
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
        return spread(value, row.low, row.high) + ("*" if row.flagged else "")
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
    return without_negative_zero(pattern.format(round(value, 9) if isinstance(value, float) else value))


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


def _shown_terms(layers: pd.DataFrame, where: Place) -> list[Term]:
    """Return the terms that a place shows, of those that have values."""
    present = set(layers.loc[layers["value"].notna(), "term"])
    terms = [t for t in TERMS if where in t.shown and t.name in present]
    if where == "terminal" and "IB noise" in present:  # that of a code is I(Z;Y) less a rate that was chosen
        terms = [t for t in terms if t.name != "IB"]
    return terms


def _joined(column: Column, of_layer: Sequence[Any]) -> str:
    """Return the texts of a column, of all rows of a layer, each once."""
    if column.name == "note":
        return "; ".join(_layer_notes(of_layer))
    texts = (part for r in of_layer for part in cell(column, r).split("; ") if part)
    return "; ".join(dict.fromkeys(texts))


def layer_table(layers: pd.DataFrame, where: Place) -> LayerTable:
    """Return the layers' table as the schema shows it: an ``estimate`` becomes a column a term.

    The predicted label comes first. Texts that differ between the terms of a layer are joined.

    Args:
        layers: rows of ``layers``, of one estimator and partition.
        where: the place that it is shown in.
    """
    columns, terms = shown_columns("layers", where, [layers]), _shown_terms(layers, where)
    named = [term_label(t.name, str(layers["view"].iloc[0])) for t in terms]
    if where == "terminal":
        named = [t.short or n for t, n in zip(terms, named, strict=True)]
    headings = [h for c in columns for h in (named if c.form == "estimate" else [c.label])]
    missing = "n/e" if where == "terminal" else "not estimable"
    by_layer: dict[str, list[Any]] = {}
    for r in in_reading_order(layers).itertuples():
        by_layer.setdefault(r.layer, []).append(r)
    rows = []
    for of_layer in by_layer.values():
        by_term = {r.term: r for r in of_layer}
        row: list[str] = []
        for column in columns:
            if column.form == "estimate":
                estimates = [cell(column, by_term[t.name]) if t.name in by_term else "" for t in terms]
                row += [missing if text == "n/e" else text for text in estimates]
            else:
                row.append(_joined(column, of_layer))
        rows.append(row)
    numbers = [n for c in columns for n in ([True] * len(terms) if c.form == "estimate" else [False])]
    return LayerTable(headings, numbers, rows)
