"""The command line: every subcommand, and how errors end."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape

import robgib
from robgib.cli import attacks, data, doctor, estimators, evaluate, study, train, verify, zoo
from robgib.cli.common import err, help_when_alone
from robgib.errors import RobGIBError, RobGIBWarning

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adversarial robustness of image classifiers, and what the information in their layers says about it.",
)
app.command()(evaluate.evaluate)
app.command()(evaluate.report)
app.command()(verify.verify)
app.command()(train.train)
app.command()(train.trace)
app.command()(doctor.doctor)
app.command("validate-estimators")(estimators.validate_estimators)
app.add_typer(zoo.app, name="zoo")
app.add_typer(attacks.app, name="attacks")
app.add_typer(data.app, name="data")
app.add_typer(estimators.app, name="estimators")
app.add_typer(study.app, name="study")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log at debug level.")] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("robgib").setLevel(logging.DEBUG)
    if version:
        typer.echo(f"robgib {robgib.__version__}")
        raise typer.Exit
    help_when_alone(context)


def run() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    plain = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RobGIBWarning):
            err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
        else:
            plain(message, category, *where, **more)

    warnings.showwarning = tell
    try:
        app(prog_name="robgib")
    except RobGIBError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        named = escape(str(error.filename)[-200:])
        err.print(f"[bold red]error:[/] {named}: {error.strerror}.", highlight=False, soft_wrap=True)
        sys.exit(2)
    except MemoryError:
        _lack_of_memory()
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch need not be there to ask
            raise
        _lack_of_memory()


def _lack_of_memory() -> None:
    err.print(
        "[bold red]error:[/] memory does not suffice; give fewer --samples, a smaller --batch-size or another "
        "--device. What was finished is kept.",
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(2)
