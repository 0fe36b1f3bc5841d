"""``robgib attacks``: the attack catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import Catalogue, help_when_alone, out, show_entry
from robgib.cli.options import names_of
from robgib.errors import RobGIBError

app = typer.Typer(help="The attack catalogue.")
app.callback(invoke_without_command=True)(help_when_alone)


@app.command("list")
def attacks_list(catalogue: Catalogue = None) -> None:
    """List the attacks by name."""
    table = Table(
        caption="Also torchattacks:NAME, foolbox:NAME, art:NAME and advlib:NAME.",
        caption_justify="left",
    )
    for column in ("attack", "norm", "parameters", "description"):
        table.add_column(column, no_wrap=column == "attack")
    for entry in robgib.attacks.attack_catalogue(list(catalogue or [])).values():
        parameters = ", ".join(f"{k}={v}" for k, v in entry.parameters.items())
        norms = entry.norm or " or ".join(entry.attack.norms)
        table.add_row(*map(escape, (entry.name, norms, parameters, entry.description)))
    out.print(table)


@app.command("show")
def attacks_show(
    name: Annotated[str, typer.Argument(help="Name of `robgib attacks list`.", autocompletion=names_of("attacks"))],
    catalogue: Catalogue = None,
) -> None:
    """Show what an attack does, and its parameters with their values."""
    extra = list(catalogue or [])
    robgib.attacks.make_attack(name, extra=extra)  # an unknown name ends with a suggestion
    entries = robgib.attacks.attack_catalogue(extra)
    if name not in entries:
        raise RobGIBError(f"{name!r} is not a name of the catalogue; `robgib attacks list` lists them.")
    entry = entries[name]
    eps = "that of the data set" if entry.eps is None else f"{entry.eps:g}"
    norms = entry.norm or " or ".join(entry.attack.norms)
    heading = f"{name}: {entry.description}\nnorm: {norms}; eps: {eps}"
    show_entry(entry.attack, heading, entry.parameters, entry.source)


@app.command("new")
def attacks_new(
    name: Annotated[str, typer.Argument(help="Name, in lower case with hyphens.")],
    folder: Annotated[Path, typer.Option("--into", help="Folder of the new files.")] = Path("attacks"),
) -> None:
    """Write the source of a working attack and its test, as a starting point."""
    attack, test = robgib.attacks.new_attack(name, folder)
    out.print(f"{attack}\n{test}", highlight=False, soft_wrap=True)
    shown = escape(str(folder))
    out.print(f"[dim]robgib attacks check {name} --catalogue {shown}", highlight=False, soft_wrap=True)
    out.print(f"[dim]robgib evaluate digits-cnn --attack {name}:eps=0.1 --catalogue {shown}", highlight=False)


@app.command("check")
def attacks_check(
    name: Annotated[str, typer.Argument(help="Attack, as NAME[:key=value,…].")], catalogue: Catalogue = None
) -> None:
    """Check that an attack obeys the contract of all attacks; exit with 1 if it does not."""
    checks = robgib.attacks.check_attack(robgib.attacks.make_attack(name, extra=list(catalogue or [])))
    table = Table(title=f"Contract of {name}", title_justify="left")
    for column in ("clause", "", "observed"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.name, "[green]ok" if check.passed else "[red]broken", escape(check.detail))
    out.print(table)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)
