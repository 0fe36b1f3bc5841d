"""``robgib study``: many models, one question, one page."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, Catalogue, DataRoot, Quiet, help_when_alone, out
from robgib.errors import RobGIBError, unknown_name
from robgib.files import atomic_directory, check_writable

app = typer.Typer(help="Studies over many models: plan, run, verdict.")
app.callback(invoke_without_command=True)(help_when_alone)


class Format(str, Enum):
    """What a study's answer is written as."""

    HTML = "html"
    MARKDOWN = "markdown"
    JSON = "json"


_FILES = {Format.HTML: "study.html", Format.MARKDOWN: "study.md", Format.JSON: "study.json"}
File = Annotated[Path, typer.Argument(help="The study's YAML file.")]


@app.command()
def plan(file: File, allow_code: AllowCode = False, data_root: DataRoot = None, catalogue: Catalogue = None) -> None:
    """Show a study's models and what is measured already, before anything runs."""
    planned = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code).plan(data_root)
    table = Table(title=escape(planned.name), title_justify="left")
    for number, column in enumerate(planned.columns):
        table.add_column(column, no_wrap=number > 0, overflow="fold")
    for row in planned.rows:
        table.add_row(*map(escape, row))
    out.print(table)
    for sentence in planned.summary:
        out.print(escape(sentence), highlight=False)


@app.command()
def run(
    file: File,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the page and the tables.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the models.")] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray: a Ray cluster.")] = "local",
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of the Ray cluster, as HOST:PORT or auto.", show_default="one is started here"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; several as cuda:0,cuda:1.")] = "cpu",
    formats: Annotated[
        Optional[list[Format]],  # noqa: UP045
        typer.Option("--format", help="What is written beside the tables; repeatable.", show_default="all"),
    ] = None,
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Train and measure what is not measured yet, and write the page with the verdict."""
    wanted = formats or list(Format)
    where = _engine(engine, jobs, device, address)
    study = robgib.studies.open_study(file, list(catalogue or []), allow_code=allow_code)
    target = out_folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        answer = study.run(data_root, where, progress)
    with atomic_directory(target) as folder:
        for form in wanted:
            (folder / _FILES[form]).write_text(answer.texts[form.value](), encoding="utf-8")
        for name, table in answer.tables.items():
            (folder / name).write_text(robgib.results.csv_text(table), encoding="utf-8", newline="")
    _tell(answer, target, wanted)
    if not answer.measured:
        raise typer.Exit(1)


def _engine(name: str, jobs: int, device: str, address: str | None) -> robgib.studies.Engine:
    """The engine asked for; what cannot be is refused before any work."""
    if name not in robgib.studies.ENGINES:
        raise unknown_name("engine", name, robgib.studies.ENGINES)
    if address is not None and name != "ray":
        raise RobGIBError("--address belongs to --engine ray; give that too.")
    devices = tuple(part.strip() for part in device.split(",")) if device else ("cpu",)
    if name == "local":
        devices = tuple(str(robgib.runtime.resolve_device(d)) for d in devices)
    return robgib.studies.Engine("ray" if name == "ray" else "local", jobs, devices, address)


def _tell(answer: robgib.studies.Answer, target: Path, formats: Sequence[Format]) -> None:
    out.print(f"[bold]{escape(answer.verdict.capitalize())}.[/bold] {escape(answer.words)}", highlight=False)
    for note in answer.notes:
        out.print(f"  {escape(note)}", highlight=False)
    what = "Page" if Format.HTML in formats else "Written"
    written = target / _FILES[Format.HTML if Format.HTML in formats else formats[0]]
    out.print(f"\n{what}: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)
