"""Cells of the tables that a person reads, as the schema of the results declares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from robgib.results import SCHEMA, Column

__all__ = ["cell", "shown_columns"]


def shown_columns(table: str, where: Literal["terminal", "page"], frames: Sequence[pd.DataFrame]) -> list[Column]:
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
    if isinstance(value, float) and math.isnan(value):
        return ""
    if column.form == "percent":
        return f"{100 * value:.1f}%"
    if column.form == "interval":
        return f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
    if column.form == "distance":
        return "not found" if math.isinf(value) else f"{value:.3g}"
    if column.form == "seconds":
        return f"{value:.1f} s" if value else ""
    return str(value)
