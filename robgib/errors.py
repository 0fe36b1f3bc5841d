"""Errors and warnings: one sentence that names the problem and the remedy."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "AttackContractError",
    "NoGradientError",
    "RobGIBError",
    "RobGIBWarning",
    "boolean_as_number",
    "ends_program",
    "fault_text",
    "first_line",
    "never_ends",
    "number_text",
    "place_text",
    "sentence_of",
    "unknown_name",
    "visible",
]


_LONG = re.compile(r"\S{400,}")  # a word too long to be written by a person


class RobGIBError(Exception):
    """Bad input. The message is one sentence for a person; the command line exits with code 2.

    >>> len(str(RobGIBError("unknown model " + 5000 * "9")))
    135
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_LONG.sub(lambda word: f"{word[0][:80]}…{word[0][-40:]} ", str(message)).rstrip())


class AttackContractError(RobGIBError):
    """An attack broke its contract: a wrong shape, or a point outside the ball or the box."""


class NoGradientError(RobGIBError):
    """The model has no gradient: its logits do not depend on the image through differentiable operations."""


class RobGIBWarning(UserWarning):
    """A result is valid, but has a limitation that its reader must know.

    Warnings of an attack are kept as a note beside its figure.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, without a full stop; the error's class if it is empty."""
    try:
        text = str(error).strip()
    except Exception:  # __str__ of a foreign class may fail
        text = ""
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Return text that is safe to print: control characters and changes of text direction are escaped.

    A name in a file may contain codes that colour a terminal, move its cursor or set its title.

    >>> visible("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\n'
    """
    if text.isprintable():
        return text
    hidden = (c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cs") or c in _TURNING)
    return text.translate({ord(c): ascii(c)[1:-1] for c in hidden})


_SHOWN = 40  # names in a message


def unknown_name(
    kind: str, name: str, known: Iterable[str], listing: str = "", meant: str | None = None
) -> RobGIBError:
    """Return the error for an unknown name, with what the user ``meant``, or else the nearest known name.

    >>> str(unknown_name("attack", "pgd", ["pgd-l2", "pgd-linf"], meant="pgd-linf"))
    "unknown attack 'pgd'; did you mean 'pgd-linf'?"
    """
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    some = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
    meant = meant or (folded[near[0]] if near else None)
    hint = f"; did you mean {meant!r}?" if meant else f"; known: {some or 'none'}."
    return RobGIBError(f"unknown {kind} {name!r}{hint}" + (f" `{listing}` lists them." if listing else ""))


_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
_KINDS = {
    "path": "a path",
    "callable": "a function",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "finite": "a finite number",
    "sequence": "a list",
}
_TAGS = ("str", "int", "float", "bool")
_OBJECTS = {
    "Sequence": "a list",
    "Mapping": "a mapping",
    "Progress": "a function of (task, done, total, note)",
    "WorkersProtocol": "a robgib.engines.Workers",
    "Parts": "a robgib.files.Parts",
}


def number_text(value: float) -> str:
    """Return a number as text: a whole one with all its digits, another with six.

    >>> number_text(4294967295), number_text(0.1 + 0.2), number_text(float("inf"))
    ('4294967295', '0.3', 'inf')
    """
    return f"{value:.0f}" if abs(value) < 1e15 and value == int(value) else f"{value:g}"


def _noun(fault: Mapping[str, Any]) -> str | None:
    """What a value had to be, in the words of a user; None where the fault is of another kind."""
    if fault["type"] == "is_instance_of":
        return _OBJECTS.get(fault["ctx"]["class"])
    return _KINDS.get(fault["type"].partition("_")[0])


def place_text(loc: Sequence[int | str], of_several: bool = False) -> str:
    """Return the name of an option and the place within it, without the kinds that a value may have.

    >>> place_text(["layers", 0])
    'layers[0]'
    """
    tags = _TAGS if of_several else ()
    named = [part for part in loc if isinstance(part, int) or not ("[" in part or part in tags)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named).removeprefix(".")


def sentence_of(error: ValidationError, what: str) -> str:
    """Return the first validation error of pydantic as one sentence with the owner of the option and the value."""
    every = error.errors()
    faults = [fault for fault in every if fault["loc"][:1] == every[0]["loc"][:1]]
    faults = [fault for fault in faults if any(isinstance(part, int) for part in fault["loc"])] or faults
    first = faults[0]
    where = place_text(first["loc"], len(every) > 1)
    whose = where if not what else f"{what}: {where}" if what.endswith("'") else f"{what}'s {where}"
    kind, given = first["type"], first["input"]
    if kind == "literal_error":
        wanted = first["ctx"]["expected"].replace("'", "")
        whole = f"{where} of {what}:" if what else where
        return str(unknown_name(whole, str(given), wanted.replace(" or ", ", ").split(", ")))
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"{whose} must be {word} {number_text(first['ctx'][key])}, not {given!r}."
    if (noun := _noun(first)) is not None:
        nouns = " or ".join(dict.fromkeys(filter(None, map(_noun, faults))))  # of each kind that the value may have
        example = f", such as [{given}]," if noun == "a list" and isinstance(given, str) and given else ""
        return f"{whose} must be {nouns}{example or ','} not {given!r}."
    if kind == "value_error":  # raised by a validator of RobGIB
        return f"{whose} {first['ctx']['error']}, not {given!r}."
    return f"{whose}: {first['msg'].lower()} (found {given!r})."


def fault_text(fault: Mapping[str, Any]) -> str:
    """Return what a fault that pydantic found says of a value, in the words of a user.

    >>> fault_text({"type": "too_short", "ctx": {"min_length": 1}, "msg": "Dictionary should have at least 1 item …"})
    'must have at least 1 entry'
    """
    if fault["type"] == "too_short":
        least = fault["ctx"]["min_length"]
        return f"must have at least {least} {'entry' if least == 1 else 'entries'}"
    text = str(fault["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def boolean_as_number(given: object, read: object) -> tuple[str | int, ...] | None:
    """Return the place of the first boolean in ``given`` that was read as a number, or None.

    Pydantic reads true as 1, also in lists, mappings and models.

    >>> boolean_as_number({"eps": [0.1, True]}, {"eps": [0.1, 1.0]})
    ('eps', 1)
    """
    if isinstance(given, bool):
        return () if isinstance(read, int | float) and not isinstance(read, bool) else None
    parts: Iterable[tuple[str | int, object, object]] = ()
    if isinstance(given, Mapping):
        own = read if isinstance(read, Mapping) else getattr(read, "__dict__", {})
        parts = ((key, value, own.get(key)) for key, value in given.items())
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple) and len(given) == len(read):
        parts = ((place, value, read[place]) for place, value in enumerate(given))
    for key, value, its in parts:
        inner = boolean_as_number(value, its)
        if inner is not None:
            return (key, *inner)
    return None


P = ParamSpec("P")
R = TypeVar("R")


def ends_program(error: BaseException) -> bool:
    """Whether an exception would end the program uncaught and is not an interrupt by the user."""
    return not isinstance(error, Exception | KeyboardInterrupt)


def never_ends(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise RobGIBError if code that it calls would end the program.

    The models, plug-ins and data of a user run in many places. If any of them calls ``exit``, the caller gets an error
    and never the exit code of a successful program.

    >>> @never_ends
    ... def measure(model):
    ...     return model()
    >>> measure(exit)
    Traceback (most recent call last):
    robgib.errors.RobGIBError: a model, a plug-in or a data set would end the program (SystemExit).
    """

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except BaseException as error:
            if ends_program(error):
                raise RobGIBError(
                    f"a model, a plug-in or a data set would end the program ({type(error).__name__})."
                ) from error
            raise

    return call
