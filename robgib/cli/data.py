"""``robgib data``: the data sets."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import Catalogue, help_when_alone, out

app = typer.Typer(help="The data sets.")
app.callback(invoke_without_command=True)(help_when_alone)


@app.command("list")
def data_list(catalogue: Catalogue = None) -> None:
    """List the data sets that go by name."""
    table = Table(
        caption="Also npz:FILE, folder:DIR of pictures, text:DIR, and function:NAME.",
        caption_justify="left",
    )
    table.add_column("data set", no_wrap=True)
    table.add_column("from")
    for name, entry in robgib.data.data_sets(list(catalogue or [])).items():
        table.add_row(escape(name), escape(entry.source))
    out.print(table)
