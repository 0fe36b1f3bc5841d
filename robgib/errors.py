"""What goes wrong, said in one sentence that names the thing and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AttackContractError",
    "NoGradientError",
    "RobGIBError",
    "RobGIBWarning",
    "first_line",
    "unknown_name",
]


class RobGIBError(Exception):
    """Bad input. The message is one sentence for a person; the command line exits with code 2."""


class AttackContractError(RobGIBError):
    """An attack returned something that no attack may: a wrong shape, a point outside the ball or box."""


class NoGradientError(RobGIBError):
    """A gradient was asked of a model that gives none: no differentiable way leads from the image to its logits."""


class RobGIBWarning(UserWarning):
    """A result stands, but with a limit that its reader must know.

    What an attack warns of while it runs is kept as a note beside its figure.
    """


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, without a full stop; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> RobGIBError:
    """Return the error for an unknown name, with the nearest known one."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else f"; known: {', '.join(known) or 'none'}."
    return RobGIBError(f"unknown {kind} {name!r}{hint}" + (f" `{listing}` lists them." if listing else ""))
