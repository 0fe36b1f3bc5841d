"""The command line, a file a group of subcommands; a caller of the package like any other."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

__all__ = ["INTERRUPTS", "main"]

INTERRUPTS: list[int] = []
"""The signals that came."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_NARROWEST = 40  # columns


def _check_columns() -> None:
    """Forget a width of the terminal, as the environment gives it, into which no output would fit."""
    columns = os.environ.get("COLUMNS")
    if columns is not None and not (columns.isascii() and columns.isdigit() and int(columns) >= _NARROWEST):
        del os.environ["COLUMNS"]


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, an interrupt with one and 130.

    Nothing is imported before interrupts are cared for: whoever stops it in its first second gets a sentence too.
    """
    _check_columns()
    try:
        os.getcwd()
    except OSError:  # numeric libraries end the program there, while they are imported
        print("error: the working folder is gone; change into one that is there.", file=sys.stderr)
        sys.exit(2)
    told = INTERRUPTS
    told.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)  # ends as Ctrl-C does: nothing half-written stays
    try:
        importlib.import_module("robgib.cli.app").run()
    except BaseException as error:
        # A library that is interrupted while it is imported may say so by another error.
        if not told and not isinstance(error, KeyboardInterrupt):
            raise
        print(
            "interrupted: what was finished is kept, attacks, estimates, models and trainings up to their last epoch; "
            "the same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(130)
