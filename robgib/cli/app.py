"""The command line: all subcommands, and the handling of errors."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.markup import escape

import robgib
from robgib.cli import INTERRUPTS, attacks, compare, data, doctor, estimators, evaluate, study, train, verify, zoo
from robgib.cli.common import err, help_when_alone
from robgib.cli.options import at_home
from robgib.errors import RobGIBError, RobGIBWarning, never_ends, visible

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Measure the adversarial robustness of image classifiers, and the information in their layers.",
)
app.command()(evaluate.evaluate)
app.command()(evaluate.report)
app.command()(evaluate.init)
app.command()(verify.verify)
app.command()(compare.compare)
app.command()(compare.export)
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
            plain(visible(str(message)), category, *where, **more)  # the text may come from a file

    warnings.showwarning = tell
    keep_freed_memory()
    try:
        app(prog_name="robgib")
    except RobGIBError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        what = "" if error.filename is None else f"{escape(str(error.filename)[-200:])}: "
        if error.filename is None and not _has_working_folder():
            what = "the working folder no longer exists; change to another folder: "
        err.print(f"[bold red]error:[/] {what}{error.strerror}.", highlight=False, soft_wrap=True)
        sys.exit(2)
    except MemoryError:
        _exit_out_of_memory()
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # by name: torch may not be imported
            raise
        _exit_out_of_memory()


_OF_GLIBC = {"MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30), "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 27)}
"""Variables of the environment, the numbers that ``mallopt`` has for them, and their values in bytes."""


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, also in the processes that this one starts.

    By default it returns the memory of each large tensor, and the system clears it anew for the next one: 10% of the
    time of a small convolutional network on a CPU. At most 128 MiB are kept: joblib ends a worker whose memory grows
    by 300 MB. What the environment sets already is kept.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for name, (parameter, value) in _OF_GLIBC.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            libc.mallopt(parameter, value)


def _guard(commands: typer.Typer) -> None:
    """Wrap every command: code of others cannot end the program, and paths may begin with ``~``."""
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _guard(group.typer_instance)
    for command in commands.registered_commands:
        if command.callback is not None:
            command.callback = never_ends(_called(command.callback))


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Expand ``~`` in paths, also after a prefix such as ``folder:``; distinguish the user's interrupts from
    KeyboardInterrupt raised by other code."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*map(at_home, arguments), **{name: at_home(value) for name, value in options.items()})
        except KeyboardInterrupt as error:
            handler = signal.getsignal(signal.SIGINT)  # possibly one that a library installed
            if INTERRUPTS or (callable(handler) and handler.__module__ != "robgib.cli"):
                raise
            raise RobGIBError("a model, a plug-in or a data set raised KeyboardInterrupt.") from error

    return call


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _exit_out_of_memory() -> None:
    err.print(
        "[bold red]error:[/] out of memory; use fewer --samples, a smaller --batch-size or another --device. "
        "Finished parts are kept.",
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(2)


_guard(app)
