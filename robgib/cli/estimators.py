"""``robgib estimators``: the information estimators, and the error of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import Catalogue, Quiet, help_when_alone, out, show_entry
from robgib.cli.options import names_of, with_options
from robgib.errors import RobGIBError, unknown_name
from robgib.files import atomic_directory, check_writable
from robgib.options import Count, Seed, check, option

app = typer.Typer(help="The information estimators.")
app.callback(invoke_without_command=True)(help_when_alone)


@app.command("list")
def estimators_list(catalogue: Catalogue = None) -> None:
    """List the information estimators."""
    table = Table()
    for column in ("estimator", "bound", "description"):
        table.add_column(column, no_wrap=column == "estimator")
    for name, entry in robgib.information.estimator_catalogue(list(catalogue or [])).items():
        table.add_row(*map(escape, (name, entry.estimator.bound, entry.description)))
    out.print(table)


@app.command("show")
def estimators_show(
    name: Annotated[
        str, typer.Argument(help="Name of `robgib estimators list`.", autocompletion=names_of("estimators"))
    ],
    catalogue: Catalogue = None,
) -> None:
    """Show what an estimator bounds, where it may be trusted, and its parameters with their values."""
    known = robgib.information.estimator_catalogue(list(catalogue or []))
    if name not in known:
        raise unknown_name("estimator", name, known, "robgib estimators list")
    entry = known[name]
    heading = f"{name}: {entry.description}\nbound: {entry.estimator.bound}\n\n{entry.estimator.guide}"
    show_entry(entry.estimator, heading, entry.parameters, entry.source)


def _usable(classes: dict[str, type[robgib.Estimator]], extra: list[Path]) -> list[str]:
    """The estimators whose packages are installed."""
    usable = []
    for name in classes:
        try:
            robgib.information.make_estimator(name, extra)
        except RobGIBError:
            continue
        usable.append(name)
    return usable


@dataclass(frozen=True)
class ValidationOptions:
    """What to validate, and how often."""

    estimator: Sequence[str] | None = option(None, "Estimator, as NAME[:key=value,…]; repeatable.", shown="all")
    task: Sequence[str] | None = option(
        None,
        "Task: variables, or a network; 'pictures' takes all networks on pictures; repeatable.",
        shown="all that need no data set",
    )
    repeats: Annotated[int, Field(ge=2)] = option(20, "Draws of each task.")
    every: bool = option(False, "Also validate outside the regimes that an estimator claims.")
    seed: Seed = option(0, "Seed of the draws.")
    jobs: Count = option(1, "Processes that share the repeats.")
    add: bool = option(False, "Keep the results that the folder holds for other tasks.")

    def __post_init__(self) -> None:
        check(self, "the validation")


@with_options
def validate_estimators(
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for validation.csv, validation.html and estimators.md.")
    ] = Path("runs/validation"),
    catalogue: Catalogue = None,
    quiet: Quiet = False,
    *,
    options: ValidationOptions,
) -> None:
    """Compare information estimates with variables and networks of known information."""

    extra = list(catalogue or [])
    chosen = robgib.validation.chosen_tasks(options.task)
    classes = {n: e.estimator for n, e in robgib.information.estimator_catalogue(extra).items()}
    makers = [robgib.information.make_estimator(e, extra) for e in options.estimator or _usable(classes, extra)]
    check_writable(out_folder)
    former = robgib.reporting.read_validation(out_folder / "validation.csv") if options.add else None
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        results = robgib.validation.validate(
            makers,
            chosen,
            repeats=options.repeats,
            seed=options.seed,
            every=options.every,
            jobs=options.jobs,
            progress=progress,
        )
    if results.empty:
        raise RobGIBError("no chosen estimator claims the regime of a chosen task; give --every to validate it anyway.")
    order = robgib.validation.task_names()
    whole = robgib.reporting.merge_validations(former, results, list(classes), order)
    validated = {*whole["estimator"], *(e.name for e in makers)}
    kinds = [kind for name, kind in classes.items() if name in validated]
    with atomic_directory(out_folder) as folder:
        (folder / "validation.csv").write_text(robgib.results.csv_text(whole), encoding="utf-8", newline="")
        (folder / "validation.html").write_text(
            robgib.reporting.validation_page(kinds, whole, robgib.__version__), encoding="utf-8"
        )
        (folder / "estimators.md").write_text(
            robgib.reporting.validation_markdown(kinds, whole, robgib.validation.REGIMES), encoding="utf-8"
        )
    for name, of_estimator in results[~results["figure"].isin(["single-feature", "leave-one-out"])].groupby(
        "estimator", sort=False
    ):
        table = Table(title=f"{name} against the truth, {options.repeats} repeats (bits)", title_justify="left")
        table.add_column("task", overflow="fold")
        table.add_column("figure", no_wrap=True)
        columns = ("truth", "bias", "sd", "coverage", "verdict")
        for column in columns:
            table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
        for row in robgib.reporting.validation_rows(of_estimator):
            table.add_row(*(str(row[c]) for c in ("task", "figure", *columns)))
        out.print(table)
    out.print(f"\nPage: [bold]{escape(str(out_folder / 'validation.html'))}[/bold]", soft_wrap=True, highlight=False)
