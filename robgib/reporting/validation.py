"""The validation of the estimators as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
from markupsafe import Markup

from robgib.errors import RobGIBError
from robgib.reporting import figures
from robgib.reporting.cells import cell, shown_columns
from robgib.reporting.page import page
from robgib.results import SCHEMA, column_names, read_csv, with_present_names

__all__ = [
    "merge_validations",
    "read_validation",
    "validation_markdown",
    "validation_page",
    "validation_rows",
    "verdict_rows",
]

_COLUMNS = tuple(column_names("validation"))
_FORMER_FIGURES = {"singles": "single-feature", "rests": "leave-one-out"}
"""Figures by their names in older tables."""


class Described(Protocol):
    """The attributes of an estimator's class that the page shows."""

    name: ClassVar[str]
    guide: ClassVar[str]


def read_validation(path: Path) -> pd.DataFrame | None:
    """Read the table of an earlier validation; None where there is none.

    Raises:
        RobGIBError: the file is not such a table.
    """
    if not path.exists():
        return None
    try:
        table = with_present_names(read_csv(path), "validation")
    except (OSError, ValueError) as error:
        raise RobGIBError(f"{path} is not a table of a validation ({error}); omit --add to replace it.") from error
    if "figure" in table:
        table["figure"] = table["figure"].replace(_FORMER_FIGURES)
    if tuple(table.columns) != _COLUMNS:
        raise RobGIBError(f"{path} is not a table of a validation; omit --add to replace it.")
    return table


def merge_validations(
    former: pd.DataFrame | None, new: pd.DataFrame, estimators: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """Replace former rows of the same estimator and task by new ones; order rows as the names are ordered."""
    if former is None:
        return new
    renewed = pd.MultiIndex.from_frame(new[["estimator", "task"]])
    kept = former[~pd.MultiIndex.from_frame(former[["estimator", "task"]]).isin(renewed)]
    whole = pd.concat([kept, new], ignore_index=True)
    order = pd.DataFrame(
        {
            "estimator": whole["estimator"].map({name: i for i, name in enumerate(estimators)}),
            "task": whole["task"].map({name: i for i, name in enumerate(tasks)}),
        }
    )
    return whole.loc[order.sort_values(["estimator", "task"], kind="stable").index].reset_index(drop=True)


def validation_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a validation as texts by column, in the forms that the schema declares."""
    columns = [column for column in SCHEMA["validation"] if "page" in column.shown]
    rows = [{column.name: cell(column, r) for column in columns} for r in table.itertuples()]
    return [{**row, "claims": bool(claims)} for row, claims in zip(rows, table["claims"], strict=True)]


_WORST = ("wrong", "refused", "marked", "holds")


def verdict_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return a row per task: each estimator's verdict, and the figures by verdict if these differ.

    >>> import pandas as pd
    >>> rows = {"task": "t", "estimator": "e", "figure": ["I", "S"], "verdict": ["holds", "wrong"]}
    >>> verdict_rows(pd.DataFrame(rows))
    [{'task': 't', 'e': 'wrong: S; holds: I'}]
    """
    rows = []
    for task, of_task in table.groupby("task", sort=False):
        row = {"task": str(task)}
        for estimator, own in of_task.groupby("estimator", sort=False):
            by = own.groupby("verdict", sort=False)["figure"].agg(list).to_dict()
            verdicts = [v for v in _WORST if v in by]
            row[str(estimator)] = (
                verdicts[0] if len(verdicts) == 1 else "; ".join(f"{v}: {', '.join(by[v])}" for v in verdicts)
            )
        rows.append(row)
    return rows


def validation_page(estimators: Sequence[type[Described]], table: pd.DataFrame, version: str) -> str:
    """Return the page as self-contained HTML."""
    columns = shown_columns("validation", "page", [table])
    sections = []
    for kind in estimators:
        own = table[table["estimator"] == kind.name]
        sections.append(
            {
                "name": kind.name,
                "guide": kind.guide,
                "rows": [
                    [text if column.name != "regime" or r.claims else f"{text} (not claimed)" for column, text in texts]
                    for r in own.itertuples()
                    for texts in [[(column, cell(column, r)) for column in columns]]
                ],
                "figure": Markup(figures.validation_errors(own)) if len(own) else "",
            }
        )
    names = list(dict.fromkeys(table["estimator"]))
    return page(
        "validation.html.j2",
        title="Estimators on tasks of known information",
        headlines=_headlines(table),
        headings=[column.label for column in columns],
        numbers=[column.kind in ("number", "integer") for column in columns],
        estimators=sections,
        verdicts={
            "columns": ["task", *names],
            "numbers": [False] * (len(names) + 1),
            "rows": [[row["task"], *(row.get(name, "") for name in names)] for row in verdict_rows(table)],
        },
        version=version,
    )


def _headlines(table: pd.DataFrame) -> list[str]:
    """Return a sentence an estimator: how many of its figures have each verdict."""
    lines = []
    for name, own in table.groupby("estimator", sort=False):
        counts = own["verdict"].value_counts()
        listed = ", ".join(f"{counts[v]} {v.removesuffix('s')}" for v in reversed(_WORST) if v in counts)
        lines.append(f"{name}: {len(own)} figures, {listed}.")
    return lines


def validation_markdown(estimators: Sequence[type[Described]], table: pd.DataFrame, regimes: Mapping[str, str]) -> str:
    """Return the same as Markdown: the regimes, the verdicts, and a paragraph and a table per estimator."""
    lines = [
        "# The estimators, and how far each is off",
        "",
        "Made by `robgib validate-estimators`; all figures are in `validation.csv`.",
        "",
        "**Verdicts.** A figure *holds* where its 95% interval covers the truth in 90% of the repeats or more, or in "
        "so many that fewer than 90% are within chance (5%, one-sided). It is *marked* where it does so but for "
        "figures that carry a mark or a note, *refused* where no figure is given, and *wrong* where it misses and "
        "does not say so. Variables are judged by I, S, C and by I(X_i;T) (single-feature) and I(X_-i;T) "
        "(leave-one-out), pooled "
        "over the features; layers of networks by the terms that `evaluate` shows, against the truth of the very code "
        "or noise that the layer is seen in. r and v are the degrees of redundancy and vulnerability. A regime in "
        "parentheses is one that the estimator does not claim.",
        "",
        "Regimes: " + "; ".join(f"*{name}*, {what}" for name, what in regimes.items()) + ".",
        "",
    ]
    names = [kind.name for kind in estimators if (table["estimator"] == kind.name).any()]
    lines += ["| task | " + " | ".join(f"`{n}`" for n in names) + " |", "| --- |" + " --- |" * len(names)]
    for row in verdict_rows(table):
        verdicts = ["**wrong**" + row[n][5:] if row.get(n, "").startswith("wrong") else row.get(n, "") for n in names]
        lines.append(f"| {row['task']} | " + " | ".join(verdicts) + " |")
    lines += [
        "",
        "**Errors.** The truth, bias ± standard deviation of the error in bits, and the share of 95% intervals that "
        "hold the truth. A coverage over R repeats has itself a standard error of about 22%/√R. `null` is the share of "
        "shuffled targets whose intervals of I and S hold 0; s is the median time of one estimate (of a network: of "
        "all its layers) in seconds, on one core of two.",
    ]
    for kind in estimators:
        lines += ["", f"## `{kind.name}`", "", kind.guide]
        own = table[table["estimator"] == kind.name]
        layers = own["regime"] == "network"
        for part, shown in ((own[~layers], _OF_VARIABLES), (own[layers], _OF_LAYERS)):
            if len(part):
                lines += ["", *_compact(part, shown)]
    return "\n".join(lines) + "\n"


_OF_VARIABLES = ("I", "S", "C", "single-feature", "leave-one-out")
_OF_LAYERS = ("I(X;Z)", "I(Z;Y)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)")


def _compact(table: pd.DataFrame, shown: Sequence[str]) -> list[str]:
    """A Markdown table with a line a task."""
    lines = [
        "| regime | task | N | repeats | " + " | ".join(shown) + " | null | s |",
        "| --- | --- | --: | --: |" + " --: |" * (len(shown) + 2),
    ]
    for _, of_task in table.groupby("task", sort=False):
        rows = {r["figure"]: r for r in validation_rows(of_task)}
        first = next(iter(rows.values()))
        regime = first["regime"] if first["claims"] else f"({first['regime']})"
        cells = []
        for figure in shown:
            r = rows.get(figure)
            cells.append(f"{r['truth']}: {r['bias']} ± {r['sd']}, {r['coverage']}" if r and r["coverage"] else "")
        lines.append(
            f"| {regime} | {first['task']} | {first['samples']} | {first['repeats']} | "
            + " | ".join(cells)
            + f" | {first['null']} | {first['seconds']} |"
        )
    return lines
