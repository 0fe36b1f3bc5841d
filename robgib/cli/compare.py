"""``robgib compare`` and ``robgib export``: two runs on the same samples, and results for continuous integration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import out
from robgib.cli.options import with_options
from robgib.files import check_file, write_file
from robgib.options import Share, check, option

if TYPE_CHECKING:
    import pandas as pd

    from robgib.reporting.comparison import Finding

_OutFile = Annotated[Optional[Path], typer.Option("--out", help="File to write, in place of the terminal.")]  # noqa: UP045


@dataclass(frozen=True)
class CompareOptions:
    """When a comparison fails, and how it is written."""

    margin: Share | None = option(
        None,
        "Exit with 1 unless B is at most this much worse, as 2% (the 95% interval of the difference decides).",
        text=True,
        shown="exit with 1 if B is significantly worse (5%)",
    )
    format: Literal["table", "html", "json", "junit", "sarif"] = option(
        "table", "table, html, json, junit or sarif; --out with a name in .html writes a page.", shown="table"
    )

    def __post_init__(self) -> None:
        check(self, "compare")


@dataclass(frozen=True)
class ExportOptions:
    """What counts as a failure, and the format."""

    fail_under: Share | None = option(None, "A lower robust accuracy is a failure, as 40% or 0.4.", text=True)
    format: Literal["junit", "sarif"] = option("junit", "junit or sarif.")

    def __post_init__(self) -> None:
        check(self, "export")


@with_options
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder of the first model.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run folder of the second model.")],
    out_file: _OutFile = None,
    *,
    options: CompareOptions,
) -> None:
    """Compare two runs on the same samples: clean, robust and corrupted accuracy; exit with 1 if B is worse."""
    if out_file is not None:
        check_file(out_file)
    a, b = robgib.load_run(first), robgib.load_run(second)
    names = (a.name, b.name) if a.name != b.name else (a.folder, b.folder)
    table = robgib.reporting.compare_runs(a, b)
    place = str(second / "config.json")
    findings = robgib.reporting.comparison_findings(table, names, place, options.margin)
    findings += robgib.reporting.lost_findings(a, b, place)
    if options.format == "html" or (options.format == "table" and _is_page(out_file)):
        _write(robgib.reporting.comparison_page(table, findings, names, robgib.__version__), out_file)
    elif options.format == "json":
        content = {"schema": 1, "a": names[0], "b": names[1], "rows": robgib.results.plain_rows(table)}
        _write(json.dumps(content, indent=2) + "\n", out_file)
    elif options.format == "table":
        if out_file is None:
            out.print(_shown(table, names))
        else:
            _write(robgib.results.csv_text(table), out_file)
    else:
        _write(_report(options.format, findings, f"{names[0]} and {names[1]}"), out_file)
    errors = [one for one in findings if one.level == "error"]
    worse = ", ".join(one.name for one in errors if one.rule == "robgib/worse")
    if options.format == "table" and out_file is None:
        if worse:
            out.print(f"[red]{escape(names[1])} is worse[/red]: {escape(worse)}.", highlight=False)
        for one in errors:
            if one.rule != "robgib/worse":
                out.print(f"[red]{escape(one.name)}[/red]: {escape(one.text)}.", highlight=False)
    if errors:
        raise typer.Exit(1)


@with_options
def export(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out_file: _OutFile = None,
    *,
    options: ExportOptions,
) -> None:
    """Write results for continuous integration; exit with 1 if an attack failed or a robust accuracy is too low."""
    if out_file is not None:
        check_file(out_file)
    findings = [
        one
        for folder in runs
        for one in robgib.reporting.run_findings(
            robgib.load_run(folder), str(folder / "config.json"), options.fail_under
        )
    ]
    _write(_report(options.format, findings, "robgib"), out_file)
    if any(one.level == "error" for one in findings):
        raise typer.Exit(1)


def _is_page(file: Path | None) -> bool:
    return file is not None and file.suffix.lower() in (".html", ".htm")


def _report(format: str, findings: Sequence[Finding], suite: str) -> str:
    if format == "junit":
        return robgib.reporting.junit(findings, suite)
    return json.dumps(robgib.reporting.sarif(findings, robgib.__version__), indent=2) + "\n"


def _write(text: str, target: Path | None) -> None:
    if target is None:
        typer.echo(text, nl=False)
    else:
        write_file(target, text.encode())


_HEADS = ("samples", "A", "B", "only\nA", "only\nB", "B − A,\npoints", "95%\ninterval", "p")


def _shown(rows: pd.DataFrame, names: tuple[str, str]) -> Table:
    title = (
        f"A: {names[0]}\nB: {names[1]}\nAccuracy by sample; “only A” counts samples that A alone classifies correctly."
    )
    table = Table(
        title=escape(title), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold"
    )
    table.add_column("accuracy", overflow="fold")
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for cells in robgib.reporting.comparison_cells(rows):
        table.add_row(*map(escape, cells))
    table.caption = escape("; ".join(f"{r.measure}: {r.note}" for r in rows.itertuples() if r.note)) or None
    table.caption_justify = "left"
    return table
