"""The validation of the estimators as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from markupsafe import Markup

from robgib.errors import RobGIBError
from robgib.reporting import figures
from robgib.reporting.page import page
from robgib.results import column_names

__all__ = [
    "merge_validations",
    "read_validation",
    "validation_markdown",
    "validation_page",
    "validation_rows",
]

_COLUMNS = tuple(column_names("validation"))


class Described(Protocol):
    """What the page tells of an estimator: its class has these."""

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
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"{path} is not a validation's table ({error}); leave --add away to replace it.") from error
    if tuple(table.columns) != _COLUMNS:
        raise RobGIBError(f"{path} is not a validation's table; leave --add away to replace it.")
    return table


def merge_validations(
    former: pd.DataFrame | None, new: pd.DataFrame, estimators: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """Put new rows in the place of former ones of the same estimator and task, in the order of the names given."""
    if former is None:
        return new
    asked = pd.MultiIndex.from_frame(new[["estimator", "task"]])
    kept = former[~pd.MultiIndex.from_frame(former[["estimator", "task"]]).isin(asked)]
    whole = pd.concat([kept, new], ignore_index=True)
    order = pd.DataFrame(
        {
            "estimator": whole["estimator"].map({name: i for i, name in enumerate(estimators)}),
            "task": whole["task"].map({name: i for i, name in enumerate(tasks)}),
        }
    )
    return whole.loc[order.sort_values(["estimator", "task"], kind="stable").index].reset_index(drop=True)


def validation_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a validation as text."""

    def bits(value: float) -> str:
        return "n/e" if np.isnan(value) else f"{value:+.3f}"

    return [
        {
            "estimator": r.estimator,
            "regime": r.regime,
            "task": r.task,
            "samples": r.samples,
            "repeats": r.repeats,
            "figure": r.figure,
            "truth": f"{r.truth:.3f}",
            "bias": bits(r.bias),
            "sd": "" if np.isnan(r.sd) else f"{r.sd:.3f}",
            "coverage": f"{100 * r.coverage:.0f}%",
            "null": f"{100 * r.null:.0f}%",
            "saturated": f"{100 * r.saturated:.0f}%" if r.saturated else "",
            "seconds": f"{r.seconds:.2f}",
            "claims": r.claims,
        }
        for r in table.itertuples()
    ]


def validation_page(estimators: Sequence[type[Described]], table: pd.DataFrame, version: str) -> str:
    """Return the page as self-contained HTML."""
    sections = []
    for kind in estimators:
        own = table[table["estimator"] == kind.name]
        sections.append(
            {
                "name": kind.name,
                "guide": kind.guide,
                "rows": validation_rows(own),
                "figure": Markup(figures.validation_errors(own)) if len(own) else "",
            }
        )
    return page("validation.html.j2", title="Estimators against the truth", estimators=sections, version=version)


def validation_markdown(estimators: Sequence[type[Described]], table: pd.DataFrame, regimes: Mapping[str, str]) -> str:
    """Return the same as Markdown: what the regimes are, and a paragraph and a table an estimator."""
    lines = [
        "# The estimators, and how far each is off",
        "",
        "Made by `robgib validate-estimators`. Bias and standard deviation (sd) of the error are in bits; coverage is "
        "the share of 95% intervals that hold the truth; `null` is the share of shuffled targets whose intervals of I "
        "and S hold 0; `sat` is the share of figures marked saturated; s is the median time of one estimate, in "
        "seconds, on one core of two. Singles and rests pool I(X_i;T) and I(X_-i;T) over the features. A coverage over "
        "R repeats has itself a standard error of about 22%/√R. A regime in parentheses is one that the estimator does "
        "not claim.",
        "",
        "Regimes: " + "; ".join(f"*{name}*, {what}" for name, what in regimes.items()) + ".",
    ]
    for kind in estimators:
        lines += ["", f"## `{kind.name}`", "", kind.guide]
        own = table[table["estimator"] == kind.name]
        if not len(own):
            continue
        lines += [
            "",
            "| regime | task | samples | repeats | figure | truth | bias | sd | coverage | null | sat | s |",
            "| --- | --- | --: | --: | --- | --: | --: | --: | --: | --: | --: | --: |",
        ]
        for r in validation_rows(own):
            regime = r["regime"] if r["claims"] else f"({r['regime']})"
            lines.append(
                f"| {regime} | {r['task']} | {r['samples']} | {r['repeats']} | {r['figure']} | {r['truth']} "
                f"| {r['bias']} | {r['sd']} | {r['coverage']} | {r['null']} | {r['saturated']} | {r['seconds']} |"
            )
    return "\n".join(lines) + "\n"
