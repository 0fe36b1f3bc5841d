"""Assemble the sources of the site in ``.site``: the guide, the evidence, and pages made from the program.

python docs/reference.py    (`make docs` does so, and builds the site from it)
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from robgib.attacks import attack_catalogue
from robgib.cli.app import app
from robgib.cli.options import show_all
from robgib.results import SCHEMA, SCHEMA_VERSION

ROOT = Path(__file__).parents[1]
SITE = ROOT / ".site"
LISTED = Path("robgib/models/operators.txt")
"""A file that a guide links to."""


def rows(*cells: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head.

    >>> print(rows(("a", "b"), ("1", "x|y")), end="")
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables() -> str:
    """The tables of a run folder, with their columns."""
    parts = [
        f"# Tables of a run folder\n\nSchema version {SCHEMA_VERSION}; [run folder](run-folder.md) lists the files.\n"
    ]
    for name, columns in SCHEMA.items():
        cells = [(f"`{c.name}`", c.kind, c.unit, c.what) for c in columns]
        parts.append(f"## `{name}.csv`\n\n" + rows(("column", "type", "unit", "content"), *cells))
    return "\n".join(parts)


def attacks() -> str:
    """The names of the catalogue."""
    cells = [
        (
            f"`{e.name}`",
            e.norm or ", ".join(e.attack.norms),
            ", ".join(f"{k}={v}" for k, v in e.parameters.items()),
            e.description,
        )
        for e in attack_catalogue().values()
    ]
    text = "# Names of attacks\n\n`robgib attacks list` prints this table, with your own plug-ins.\n\n"
    return text + rows(("name", "norm", "parameters", "description"), *cells)


def whole_sentences(command: typer.core.TyperCommand | typer.core.TyperGroup) -> None:
    """List each command with the first paragraph of its help, which is cut to 45 characters otherwise."""
    command.short_help = " ".join((command.help or "").partition("\n\n")[0].split())
    for below in getattr(command, "commands", {}).values():
        whole_sentences(below)


def command_line() -> str:
    """All commands, with every option."""
    command = typer.main.get_command(app)
    show_all(command)
    whole_sentences(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="robgib", title="Command line")
    return re.sub(r"\[/?(red|bold|dim)\]", "", text)  # styles of the terminal


def inside(text: str, folder: Path) -> str:
    """Return a page with the links that leave its part of the repository made to stay inside the site.

    The pages of ``docs/`` lie at the top of the site, beside ``reports/``.

    >>> inside("[a](../reports/README.md)", Path("docs")), inside("[b](../docs/studies.md)", Path("reports"))
    ('[a](reports/README.md)', '[b](../studies.md)')
    """
    return text.replace("](../", "](") if folder == Path("docs") else text.replace("../docs/", "../")


def copy(folder: str, endings: tuple[str, ...]) -> None:
    """Copy pages and pictures of a folder."""
    for source in sorted((ROOT / folder).rglob("*")):
        if source.suffix in endings:
            place = SITE / source.relative_to(ROOT / "docs" if folder == "docs" else ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                place.write_text(inside(source.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
            else:
                shutil.copy(source, place)


def main() -> None:
    """Write the pages."""
    shutil.rmtree(SITE, ignore_errors=True)
    copy("docs", (".md", ".png", ".svg", ".css"))
    copy("reports", (".md", ".png", ".html"))
    (SITE / LISTED).parent.mkdir(parents=True)
    shutil.copy(ROOT / LISTED, SITE / LISTED)
    (SITE / "tables.md").write_text(tables(), encoding="utf-8")
    (SITE / "attack-list.md").write_text(attacks(), encoding="utf-8")
    (SITE / "cli.md").write_text(command_line(), encoding="utf-8")


if __name__ == "__main__":
    main()
