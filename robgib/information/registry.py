"""Estimators by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robgib import registry
from robgib.errors import RobGIBError, unknown_name
from robgib.information.base import Estimator
from robgib.information.binned import Binned
from robgib.information.exact import Exact
from robgib.information.gaussian import Gaussian
from robgib.information.infonce import InfoNCE
from robgib.information.ksg import KSG
from robgib.information.probe import Probe
from robgib.information.renyi import Renyi

__all__ = [
    "estimator_classes",
    "list_estimators",
    "make_estimator",
]

_BUILT_IN: tuple[type[Estimator], ...] = (Exact, Binned, Gaussian, Probe, KSG, InfoNCE, Renyi)


def estimator_classes(extra: Sequence[Path] = ()) -> dict[str, type[Estimator]]:
    """Return every estimator class by name: built in, from plug-in files and from entry points."""
    found = {c.name: c for c in _BUILT_IN}
    for kind, _ in registry.plugin_classes("attacks", Estimator, extra):
        found[kind.name] = kind
    for name, value in registry.entry_points("robgib.estimators").items():
        if not (isinstance(value, type) and issubclass(value, Estimator)):
            raise RobGIBError(f"entry point {name!r} of robgib.estimators is not a subclass of robgib.Estimator.")
        found[name] = value
    return found


def list_estimators(catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of all estimators.

    >>> "gaussian" in list_estimators()
    True
    """
    return list(estimator_classes(catalogue))


def make_estimator(spec: str, extra: Sequence[Path] = (), **defaults: object) -> Estimator:
    """Build an estimator from ``NAME[:key=value,…]``; ``defaults`` apply where it has such an option."""
    name, _, rest = spec.partition(":")
    classes = estimator_classes(extra)
    if name not in classes:
        raise unknown_name("estimator", name, classes, "robgib estimators list")
    fields = {f.name for f in dataclasses.fields(classes[name]) if not f.name.startswith("_")}  # type: ignore[arg-type]
    options = {k: v for k, v in defaults.items() if k in fields}
    options.update(
        registry.validated(classes[name], registry.parse_pairs(rest, f"estimator {spec!r}"), f"estimator {spec!r}")
    )
    return classes[name](**options)
