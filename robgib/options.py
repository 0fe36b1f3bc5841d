"""Options of attacks and estimators: what each may be is declared with its type, and checked here for all of them.

A class of options is a frozen dataclass whose types carry their bounds (pydantic's ``Annotated[int, Field(ge=1)]``),
and whose ``__post_init__`` calls :func:`check`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from robgib.errors import RobGIBError, sentence_of, unknown_name

__all__ = [
    "AtLeastOne",
    "Count",
    "NonNegative",
    "Positive",
    "Seed",
    "check",
    "checked_arguments",
    "construct",
]

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number of at least 0."""
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""A finite number of at least 1."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A whole number that every generator takes."""

P = ParamSpec("P")
R = TypeVar("R")


def checked_arguments(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Hold the named arguments of a function to their declared types, and turn what was meant into them.

    Raises:
        RobGIBError: (in the function) an argument out of its bounds or of another type.

    >>> @checked_arguments("samples")
    ... def draw(samples: Count, name: str = ""):
    ...     return samples
    >>> draw("3"), draw(0)
    Traceback (most recent call last):
    ...
    robgib.errors.RobGIBError: samples must be at least 1, not 0.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.cache
        def model() -> type[BaseModel]:
            hints = typing.get_type_hints(function, include_extras=True)
            config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
            fields = {name: (hints[name], None) for name in names}
            return create_model(function.__name__, __config__=config, **fields)  # type: ignore[call-overload]

        @functools.wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            given = signature.bind(*arguments, **options)
            held = {name: _plain(given.arguments[name]) for name in names if name in given.arguments}
            given.arguments.update(_fitted(model(), held, ""))
            return function(*given.args, **given.kwargs)

        return call

    return wrap


@functools.cache
def _model(kind: type[Any]) -> type[BaseModel]:
    """The fields of a dataclass as a pydantic model."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError:  # a class made inside a function may use names that are seen there alone
        hints = {}
    fields = {f.name: (hints.get(f.name, Any), None) for f in dataclasses.fields(kind) if f.init}
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)
    return create_model(kind.__name__, __config__=config, **fields)  # type: ignore[call-overload]


def check(options: Any, what: str) -> None:
    """Hold a dataclass of options to its types, and turn what was meant (``"20"``, NumPy's numbers) into them.

    Args:
        options: the dataclass, frozen or not.
        what: whose options they are, for the message.

    Raises:
        RobGIBError: an option out of its bounds or of another type.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Walk:
    ...     steps: Count = 10
    ...     def __post_init__(self):
    ...         check(self, "Walk")
    >>> Walk(steps=0)
    Traceback (most recent call last):
    ...
    robgib.errors.RobGIBError: Walk's steps must be at least 1, not 0.
    """
    given = {f.name: _plain(getattr(options, f.name)) for f in dataclasses.fields(options) if f.init}
    for name, value in _checked(type(options), given, what).items():
        object.__setattr__(options, name, value)


def construct(kind: type[Any], parameters: Mapping[str, Any], what: str, **fixed: Any) -> Any:
    """Make a dataclass of options from named parameters.

    Args:
        kind: the dataclass.
        parameters: what a person gave.
        what: what they are of, for the message.
        fixed: further fields, which no parameter may name.

    Raises:
        RobGIBError: an unknown parameter, or one that the class does not take.
    """
    known = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in fixed]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of {what}:", key, [*known, *fixed])
    return kind(**fixed, **_checked(kind, parameters, what))


def _checked(kind: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    return _fitted(_model(kind), given, what)  # type: ignore[arg-type]


def _fitted(model: type[BaseModel], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The given values as the model's types take them."""
    try:
        held = model(**given)
    except ValidationError as error:
        raise RobGIBError(sentence_of(error, what)) from error
    return {name: getattr(held, name) for name in given}


def _plain(value: Any) -> Any:
    """A NumPy number as Python's."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value
