"""Options and consoles that the subcommands share."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich import console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from robgib.errors import number_text, visible

_NARROWEST, _USUAL = 40, 80  # columns


class Console(console.Console):
    """Console that escapes control characters, in cells and titles of tables too."""

    @property
    def size(self) -> console.ConsoleDimensions:
        """See rich; at least 40 columns, since some terminals report a width of 0."""
        width, height = super().size
        return console.ConsoleDimensions(width if width >= _NARROWEST else _USUAL, height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    @property
    def width(self) -> int:
        """See rich."""
        return self.size.width

    @width.setter
    def width(self, width: int) -> None:
        self._width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich."""
        return super().render_str(visible(text), **options)


out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
DataRoot = Annotated[
    Optional[Path], typer.Option("--data-root", help="Folder with the data files (default: the cache).")  # noqa: UP045
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Catalogue = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--catalogue", help="Further folder of attacks, recipes and plug-ins; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Unpickle .pt and .pth files that hold more than weights. [red]They can run any code."
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Import package.module:factory that recipes, records and studies name; read TorchScript and .pt2 with any "
        "operators. [red]This runs code that a file brings.",
    ),
]
Names = Annotated[Optional[list[str]], typer.Argument(help="Zoo names.", show_default="those of --group")]  # noqa: UP045
Group = Annotated[Optional[str], typer.Option(help="All models of a group, such as fashion-24.")]  # noqa: UP045
TraceEstimators = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="Estimator of the trace; repeatable.", show_default="imputation; exact where all inputs are listed"
    ),
]


def show_entry(kind: type[Any], heading: str, given: Mapping[str, Any], source: str) -> None:
    """Print what a named attack or estimator is: its description, and its parameters with their values.

    Args:
        kind: its class, a dataclass of parameters.
        heading: the first line.
        given: values that its file sets.
        source: where it is defined.
    """
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n>>> ")[0].rstrip()
    text = re.sub(r"(?<=\S)\n(?=\S)|\n {8,}", " ", text)  # the terminal breaks lines
    out.print(f"[bold]{escape(heading)}[/bold]\n", highlight=False)
    for line in without_markup(text).splitlines():
        _print_hanging(line)
    out.print()
    table = Table()
    for column in ("parameter", "value", "type"):
        table.add_column(column, no_wrap=column == "parameter")
    hints = typing.get_type_hints(kind, include_extras=True)
    for parameter in dataclasses.fields(kind):
        if parameter.init and parameter.name not in ("norm", "eps"):
            plain = None if parameter.default is dataclasses.MISSING else parameter.default
            value = str(given.get(parameter.name, plain))
            table.add_row(*map(escape, (parameter.name, value, type_text(hints[parameter.name]))))
    if table.row_count:
        out.print(table)
    out.print(f"defined in: {escape(source)}", highlight=False, soft_wrap=True)


def without_markup(text: str) -> str:
    """Return a docstring's text without the marks of code and of references.

    >>> without_markup("``best``, after :func:`~robgib.information.pieces.learn_codes`")
    'best, after learn_codes'
    """
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?([^`]+)`", r"\1", text).replace("``", "")


def _print_hanging(line: str) -> None:
    """Print a line; what the terminal is too narrow for goes below, and further in if the line is indented."""
    indent = len(line) - len(line.lstrip())
    further = indent + 4 if indent else 0
    for number, part in enumerate(Text(visible(line.strip())).wrap(out, max(out.width - further, 1)) or [Text()]):
        part.rstrip()
        out.print(Text(" " * (further if number else indent)) + part, highlight=False, soft_wrap=True)


_KINDS = {int: "whole number", float: "number", bool: "True or False", str: "text", type(None): "None"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def type_text(hint: Any) -> str:
    """Return a type, with the bounds that it carries, in words.

    >>> from robgib.options import Count
    >>> type_text(Count | None)
    'whole number at least 1, or None'
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = [m for extra in inner[1:] for m in getattr(extra, "metadata", [])]
        bounds = [
            f"{word} {number_text(getattr(m, name))}"
            for m in limits
            for name, word in _LIMITS.items()
            if hasattr(m, name)
        ]
        return " ".join([type_text(inner[0]), " and ".join(bounds)]).rstrip()
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(type_text, inner))
    return _KINDS.get(hint, getattr(hint, "__name__", str(hint)))


def help_when_alone(context: typer.Context) -> None:
    """Print the help when no subcommand is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
