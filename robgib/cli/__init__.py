"""The command line: one file per group of subcommands. It uses the package as any other caller does."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

__all__ = ["INTERRUPTS", "main"]

INTERRUPTS: list[int] = []
"""The signals received."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_NARROWEST = 40  # columns


def _check_columns() -> None:
    """Ignore a COLUMNS variable that is not a number or too small for any output."""
    columns = os.environ.get("COLUMNS")
    if columns is not None and not (columns.isascii() and columns.isdigit() and int(columns) >= _NARROWEST):
        del os.environ["COLUMNS"]


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, an interrupt with one and code 130.

    Signal handlers are installed before anything is imported, so that an early interrupt also ends with a sentence.
    """
    _check_columns()
    try:
        os.getcwd()
    except OSError:  # numeric libraries end the program there, while they are imported
        print("error: the working folder no longer exists; change to another folder.", file=sys.stderr)
        sys.exit(2)
    INTERRUPTS.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        INTERRUPTS.append(number)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)  # ends as Ctrl-C does, without half-written files
    try:
        importlib.import_module("robgib.cli.app").run()
    except BaseException as error:
        # A library that is interrupted during its import may raise another error.
        if not INTERRUPTS and not isinstance(error, KeyboardInterrupt):
            raise
        print(
            "interrupted: finished attacks, estimates, models and epochs of training are kept; run the same command to "
            "continue.",
            file=sys.stderr,
        )
        sys.exit(130)
