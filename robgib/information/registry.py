"""Estimators by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robgib import registry
from robgib.errors import RobGIBError, unknown_name
from robgib.information.base import ESTIMATORS, Estimator
from robgib.options import construct

__all__ = [
    "ESTIMATORS",
    "EstimatorEntry",
    "build_estimators",
    "check_estimators",
    "estimator_catalogue",
    "list_estimators",
    "make_estimator",
]


@dataclass(frozen=True)
class EstimatorEntry:
    """A named estimator: its class, and the parameters that its YAML file sets."""

    name: str
    estimator: type[Estimator]
    parameters: Mapping[str, Any]
    description: str
    source: str


def estimator_catalogue(extra: Sequence[Path] = ()) -> dict[str, EstimatorEntry]:
    """Return every named estimator: the classes, and those of YAML files (keys ``estimator``, ``parameters``).

    Raises:
        RobGIBError: a file has an unknown key, or names an unknown estimator.
    """
    classes = ESTIMATORS.entries(extra)
    entries = {name: EstimatorEntry(name, e.value, {}, e.value.summary, e.source) for name, e in classes.items()}
    for name, path in registry.yaml_files("estimators", extra).items():
        content = registry.read_yaml(path)
        for key in content:
            if key not in ("estimator", "parameters", "description"):
                raise unknown_name(f"key in {path}:", str(key), ("estimator", "parameters", "description"))
        if str(content["estimator"]) not in classes:
            raise unknown_name(f"estimator in {path}:", str(content["estimator"]), classes)
        kind = classes[str(content["estimator"])].value
        given = content.get("parameters") or {}
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise RobGIBError(f"{path}: parameters must map names to values, not {given!r}.")
        parameters = {k: registry.parse_value(v) for k, v in given.items()}
        described = str(content.get("description") or kind.summary)
        entries[name] = EstimatorEntry(name, kind, parameters, described, str(path))
    return entries


def list_estimators(catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of all estimators.

    >>> "gaussian" in list_estimators()
    True
    """
    return list(estimator_catalogue(catalogue))


def make_estimator(spec: str, extra: Sequence[Path] = (), **defaults: object) -> Estimator:
    """Build an estimator from ``NAME[:key=value,…]``; ``defaults`` apply where it has such an option.

    Raises:
        RobGIBError: an unknown name or option, or a value that the estimator does not take.

    >>> make_estimator("binned:codes=8").codes
    8
    """
    name, _, rest = spec.partition(":")
    known = estimator_catalogue(extra)
    if name not in known:
        raise unknown_name("estimator", name, known, "robgib estimators list")
    entry, what = known[name], f"estimator {spec!r}"
    kind = _declared(entry.estimator)
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    options = {k: v for k, v in defaults.items() if k in fields}
    given = {**options, **entry.parameters, **registry.parse_pairs(rest, what)}
    try:
        made: Estimator = construct(kind, given, what)
    except (TypeError, AttributeError) as error:  # of a constructor of its own
        raise _own_constructor(kind) from error
    if name != entry.estimator.name:
        object.__setattr__(made, "name", name)  # the tables show the name of a named setting
    return made


def _declared(kind: type[Estimator]) -> type[Estimator]:
    """Return the class of an estimator as a dataclass; one that was not decorated is made a frozen one in place."""
    if "__init__" in kind.__dict__ and "__dataclass_params__" not in kind.__dict__:
        raise _own_constructor(kind)
    return registry.as_dataclass(kind, "estimator")


def _own_constructor(kind: type[Estimator]) -> RobGIBError:
    """The error for a class whose constructor does not take its parameters by name."""
    return RobGIBError(
        f"estimator class {kind.__name__} has an __init__ or __post_init__ of its own that does not take its "
        "parameters by name: declare them as fields, such as `bins: int = 8`, without an __init__."
    )


def build_estimators(estimators: Any, extra: Sequence[Path] = (), **defaults: object) -> list[Estimator]:
    """Build estimators from specifications; estimator objects stay as they are.

    Args:
        estimators: a sequence of specifications such as ``probe``, or of estimators.
        extra: additional catalogue folders.
        defaults: options of the specified estimators that have them.

    Raises:
        RobGIBError: an unknown name or option, or an object of another type.

    >>> build_estimators(["probe", 3])
    Traceback (most recent call last):
    robgib.errors.RobGIBError: an estimator must be a specification such as 'probe', or an Estimator, not 3.
    """
    if isinstance(estimators, str) or not isinstance(estimators, Sequence):
        raise RobGIBError(f"estimators must be a sequence of specifications or estimators, not {estimators!r}.")
    for spec in estimators:
        if not isinstance(spec, str | Estimator):
            raise RobGIBError(f"an estimator must be a specification such as 'probe', or an Estimator, not {spec!r}.")
    return [spec if isinstance(spec, Estimator) else make_estimator(spec, extra, **defaults) for spec in estimators]


def check_estimators(estimators: Any, extra: Sequence[Path] = ()) -> None:
    """Raise unless :func:`build_estimators` can build these estimators."""
    build_estimators(estimators, extra)
