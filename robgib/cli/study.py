"""``robgib study``: many models, one question, one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, Catalogue, DataRoot, Quiet, help_when_alone, out
from robgib.errors import RobGIBError, unknown_name
from robgib.files import atomic_directory, check_writable

if TYPE_CHECKING:
    import pandas as pd

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
    extra = list(catalogue or [])
    if _kind(file) == "compression":
        phases = robgib.studies.read_phases(file, extra)
        _plan_phases(phases, robgib.studies.followed(phases, extra, allow_code=allow_code))
        return
    study = robgib.studies.read_study(file, extra)
    table = Table(title=escape(study.name), title_justify="left")
    for column in ("model", "part", "architecture", "regime", "dose", "seed", "measured"):
        table.add_column(column, no_wrap=column != "model", overflow="fold")
    found = robgib.studies.cells(study, extra, allow_code=allow_code)
    there = 0
    for cell in found:
        done = robgib.studies.stored(cell, study).is_dir()
        there += done
        regime = cell.control or cell.regime
        told = (cell.name, cell.part, cell.architecture, regime, f"{cell.dose:g}", str(cell.training_seed))
        table.add_row(*map(escape, told), "yes" if done else "")
    out.print(table)
    each = len(study.outcome.attacks)
    out.print(
        f"{len(found)} models, {there} measured before. Each of the others: {each} attacks on {study.samples} images, "
        f"{len(study.estimators)} estimators on {len(study.partitions)} partitions of {study.information_samples}.",
        highlight=False,
    )
    if there < len(found):
        try:
            seconds = robgib.studies.estimated_seconds(study, found, data_root, extra)
        except RobGIBError as error:
            out.print(f"How long it takes cannot be told: {escape(str(error))}", highlight=False)
            return
        minutes = max(1, round(seconds / 60))
        length = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        out.print(f"About {length} on one process of this machine, trainings included.", highlight=False)


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
    extra, wanted = list(catalogue or []), formats or list(Format)
    where = _engine(engine, jobs, device, address)
    if _kind(file) == "compression":
        phases = robgib.studies.read_phases(file, extra)
        networks = robgib.studies.followed(phases, extra, allow_code=allow_code)
        _run_phases(phases, networks, out_folder, where, wanted, data_root, extra, quiet)
        return
    study = robgib.studies.read_study(file, extra)
    found = robgib.studies.cells(study, extra, allow_code=allow_code)
    target = out_folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        measured = robgib.studies.measure(
            study, found, data_root=data_root, engine=where, catalogue=extra, progress=progress
        )
    rows = robgib.studies.measured_rows(study, measured)
    claim = robgib.studies.claim(study, rows)
    version = robgib.__version__
    _write(
        target,
        {
            Format.HTML: lambda: robgib.studies.study_page(study, rows, claim, version),
            Format.MARKDOWN: lambda: robgib.studies.study_markdown(study, rows, claim),
            Format.JSON: lambda: _plain(robgib.studies.study_json(study, rows, claim, version)),
        },
        wanted,
        {"models.csv": rows},
    )
    _tell(claim, target, wanted)
    if not any(m.run for m in measured):
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


def _kind(file: Path) -> str:
    """The kind that a study file says it is; what is wrong with the file is said when it is read."""
    if not file.is_file():
        return ""
    content = robgib.registry.read_yaml(file)
    return str(content.get("kind", ""))


def _plain(told: dict[str, Any]) -> str:
    return json.dumps(told, indent=2) + "\n"


def _write(
    target: Path,
    texts: Mapping[Format, Callable[[], str]],
    formats: Sequence[Format],
    tables: Mapping[str, pd.DataFrame],
) -> None:
    with atomic_directory(target) as folder:
        for form in formats:
            (folder / _FILES[form]).write_text(texts[form](), encoding="utf-8")
        for name, table in tables.items():
            (folder / name).write_text(robgib.results.csv_text(table), encoding="utf-8", newline="")


def _tell(claim: robgib.studies.Claim | robgib.studies.PhasesClaim, target: Path, formats: Sequence[Format]) -> None:
    out.print(f"[bold]{escape(claim.verdict.capitalize())}.[/bold] {escape(claim.words)}", highlight=False)
    for note in claim.notes:
        out.print(f"  {escape(note)}", highlight=False)
    what = "Page" if Format.HTML in formats else "Written"
    written = target / _FILES[Format.HTML if Format.HTML in formats else formats[0]]
    out.print(f"\n{what}: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)


def _plan_phases(study: robgib.studies.Phases, networks: Sequence[robgib.studies.Followed]) -> None:
    table = Table(title=escape(study.name), title_justify="left")
    for column in ("network", "group", "control", "epochs", "traced"):
        table.add_column(column, no_wrap=column != "network", overflow="fold")
    there = 0
    for one in networks:
        done = (one.folder(study) / "trace.csv").is_file()
        there += done
        epochs = str(one.recipe.training.epochs)
        table.add_row(*map(escape, (one.name, one.group, one.control or "", epochs)), "yes" if done else "")
    out.print(table)
    out.print(f"{len(networks)} networks, {there} traced before.", highlight=False)


def _run_phases(
    study: robgib.studies.Phases,
    networks: Sequence[robgib.studies.Followed],
    folder: Path | None,
    where: robgib.studies.Engine,
    formats: Sequence[Format],
    data_root: Path | None,
    extra: list[Path],
    quiet: bool,
) -> None:
    import pandas as pd

    target = folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        traced = robgib.studies.trace_all(
            study, networks, data_root=data_root, engine=where, catalogue=extra, progress=progress
        )
    rows = robgib.studies.phases_rows(study, traced)
    claim = robgib.studies.phases_claim(study, rows)
    version = robgib.__version__
    traces = [
        t.table.assign(network=t.network.name, control=t.network.control or "") for t in traced if t.table is not None
    ]
    _write(
        target,
        {
            Format.HTML: lambda: robgib.studies.phases_page(study, traced, rows, claim, version),
            Format.MARKDOWN: lambda: robgib.studies.phases_markdown(study, claim),
            Format.JSON: lambda: _plain(robgib.studies.phases_json(study, rows, claim, version)),
        },
        formats,
        {"networks.csv": rows, **({"traces.csv": pd.concat(traces)} if traces else {})},
    )
    _tell(claim, target, formats)
    if not traces:
        raise typer.Exit(1)
