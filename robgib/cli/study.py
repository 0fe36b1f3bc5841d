"""``robgib study``: answer one question over many models."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, Catalogue, DataRoot, Quiet, help_when_alone, out
from robgib.cli.options import with_options
from robgib.errors import RobGIBError
from robgib.files import atomic_directory, check_file, check_writable, write_file
from robgib.options import EngineOptions

app = typer.Typer(help="Studies over many models: plan, run, verdict.")
app.callback(invoke_without_command=True)(help_when_alone)


class Format(str, Enum):
    """File formats of a study's answer."""

    HTML = "html"
    MARKDOWN = "markdown"
    JSON = "json"


_FILES = {Format.HTML: "study.html", Format.MARKDOWN: "study.md", Format.JSON: "study.json"}
File = Annotated[Path, typer.Argument(help="The study's YAML file.")]


@app.command()
def plan(file: File, allow_code: AllowCode = False, data_root: DataRoot = None, catalogue: Catalogue = None) -> None:
    """List a study's models and what is already measured; run nothing."""
    planned = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code).plan(data_root)
    table = Table(title=escape(planned.name), title_justify="left")
    table.box = SIMPLE_HEAD  # 80 columns hold a long name beside the rest
    for number, column in enumerate(planned.columns):
        table.add_column(column, no_wrap=number > 0, overflow="fold")
    for row in planned.rows:
        table.add_row(*map(escape, row))
    out.print(table)
    for sentence in planned.summary:
        out.print(escape(sentence), highlight=False)


@app.command("measures")
def measures_list(catalogue: Catalogue = None) -> None:
    """List the baselines that studies measure beside their figures."""
    table = Table("measure", "what it is", box=SIMPLE_HEAD)
    for name, entry in robgib.measures.MEASURES.entries(list(catalogue or [])).items():
        table.add_row(escape(name), escape(" ".join((entry.value.__doc__ or "").split())))
    out.print(table)


@app.command()
def simulate(
    file: File,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Simulated studies of each truth.")] = 200,
    out_file: Annotated[Path | None, typer.Option("--out", help="CSV file of the table.")] = None,
    allow_code: AllowCode = False,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Draw studies of the same structure whose truth is known: false positives and power of each rung."""
    study, rows = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code).structure()
    if out_file is not None:
        check_file(out_file)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        shares = robgib.studies.simulate(study, rows, draws, progress=progress)
    table = Table(title=escape(f"{study.name}: {draws} simulated studies of each truth"), title_justify="left")
    rungs = list(dict.fromkeys(shares["rung"]))
    for column in ("truth", *rungs):
        table.add_column(column, justify="left" if column == "truth" else "right")
    for truth, of in shares.groupby("truth", sort=False):
        shown = [f"{s:.0%}{'*' if m == 'power' else ''}" for s, m in zip(of["share"], of["meaning"], strict=True)]
        table.add_row(escape(str(truth)), *shown)
    out.print(table)
    out.print("* true of these studies: the power; the others are false positives, to be 5% or less.", highlight=False)
    if out_file is not None:
        write_file(out_file, robgib.results.csv_text(shares).encode())


@app.command()
@with_options
def run(
    file: File,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the page and the tables.")] = None,
    measure: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--measure", help="Baseline to measure; repeatable.", show_default="those of the study file"),
    ] = None,
    formats: Annotated[
        Optional[list[Format]],  # noqa: UP045
        typer.Option("--format", help="Format to write beside the tables; repeatable.", show_default="all"),
    ] = None,
    allow_code: AllowCode = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; several as cuda:0,cuda:1.")] = "cpu",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
    *,
    engine: EngineOptions,
) -> None:
    """Train and measure what is not measured yet, and write the page with the verdict."""
    wanted = formats or list(Format)
    where = robgib.engines.engine_of(engine.engine, engine.jobs, device, engine.address)
    study = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code)
    if measure:
        if not isinstance(study, robgib.studies.CorrelationStudy):
            raise RobGIBError("--measure is for studies of correlation; leave it out.")
        study = study.measuring(measure)
    target = out_folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        answer = study.run(data_root, where, progress)
    _write(answer, target, wanted)
    _print_answer(answer, target, wanted)
    if not answer.measured:
        raise typer.Exit(1)


@app.command()
def claim(
    file: File,
    models: Annotated[
        Path, typer.Option("--models", help="Table of measured models: models.csv of a study, or a ledger's CSV.")
    ],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the page and the tables.")] = None,
    allow_code: AllowCode = False,
    catalogue: Catalogue = None,
) -> None:
    """Test the claim again on a table of measured models; train and measure nothing."""
    study = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code)
    target = out_folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    answer = study.claim(models)
    _write(answer, target, list(Format))
    _print_answer(answer, target, list(Format))


def _write(answer: robgib.studies.Answer, target: Path, wanted: Sequence[Format]) -> None:
    with atomic_directory(target) as folder:
        for form in wanted:
            (folder / _FILES[form]).write_text(answer.texts[form.value](), encoding="utf-8")
        for name, table in answer.tables.items():
            (folder / name).write_text(robgib.results.csv_text(table), encoding="utf-8", newline="")


def _print_answer(answer: robgib.studies.Answer, target: Path, formats: Sequence[Format]) -> None:
    out.print(f"[bold]{escape(answer.verdict.capitalize())}.[/bold] {escape(answer.words)}", highlight=False)
    for note in answer.notes:
        robgib.reporting.print_indented(escape(note), out)
    what = "Page" if Format.HTML in formats else "Written"
    written = target / _FILES[Format.HTML if Format.HTML in formats else formats[0]]
    out.print(f"\n{what}: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)
