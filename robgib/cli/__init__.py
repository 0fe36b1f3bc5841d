"""The command line, a file a group of subcommands; a caller of the package like any other."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType

__all__ = ["main"]

_INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, an interrupt with one and 130.

    Nothing is imported before interrupts are cared for: whoever stops it in its first second gets a sentence too.
    """
    told: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    for number in _INTERRUPTS:
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
