"""``robgib study``: many models, one question, one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import Catalogue, DataRoot, Quiet, help_when_alone, out
from robgib.files import atomic_directory, check_writable

app = typer.Typer(help="Studies over many models: plan, run, verdict.")
app.callback(invoke_without_command=True)(help_when_alone)
File = Annotated[Path, typer.Argument(help="The study's YAML file.")]


@app.command()
def plan(file: File, catalogue: Catalogue = None) -> None:
    """Show a study's models and what is measured already, before anything runs."""
    extra = list(catalogue or [])
    study = robgib.studies.read_study(file, extra)
    table = Table(title=escape(study.name), title_justify="left")
    for column in ("model", "part", "architecture", "regime", "dose", "seed", "measured"):
        table.add_column(column, no_wrap=column != "model", overflow="fold")
    found = robgib.studies.cells(study, extra)
    there = 0
    for cell in found:
        done = robgib.studies.stored(cell, study).is_dir()
        there += done
        regime = "untrained" if cell.untrained else cell.regime
        told = (cell.name, cell.part, cell.architecture, regime, f"{cell.dose:g}", str(cell.training_seed))
        table.add_row(*map(escape, told), "yes" if done else "")
    out.print(table)
    each = len(study.outcome.attacks)
    out.print(
        f"{len(found)} models, {there} measured before. Each of the others: {each} attacks on {study.samples} images, "
        f"{len(study.estimators)} estimators on {len(study.partitions)} partitions of {study.information_samples}.",
        highlight=False,
    )


@app.command()
def run(
    file: File,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the page and the tables.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the models.")] = 1,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Train and measure what is not measured yet, and write the page with the verdict."""
    extra = list(catalogue or [])
    study = robgib.studies.read_study(file, extra)
    found = robgib.studies.cells(study, extra)
    target = out_folder or Path("runs") / f"study-{study.name}"
    check_writable(target)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        measured = robgib.studies.measure(
            study, found, data_root=data_root, jobs=jobs, catalogue=extra, progress=progress
        )
    rows = robgib.studies.measured_rows(study, measured)
    claim = robgib.studies.claim(study, rows)
    with atomic_directory(target) as folder:
        page = robgib.studies.study_page(study, rows, claim, robgib.__version__)
        (folder / "study.html").write_text(page, encoding="utf-8")
        (folder / "study.md").write_text(robgib.studies.study_markdown(study, rows, claim), encoding="utf-8")
        told = robgib.studies.study_json(study, rows, claim, robgib.__version__)
        (folder / "study.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        rows.to_csv(folder / "models.csv", index=False)
    out.print(f"[bold]{escape(claim.verdict.capitalize())}.[/bold] {escape(claim.words)}", highlight=False)
    for note in claim.notes:
        out.print(f"  {escape(note)}", highlight=False)
    out.print(f"\nPage: [bold]{escape(str(target / 'study.html'))}[/bold]", soft_wrap=True, highlight=False)
    if not any(m.run for m in measured):
        raise typer.Exit(1)
