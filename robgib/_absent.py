"""Packages that a library imports and that nothing here uses."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["stand_in"]


@contextmanager
def stand_in(package: str, names: tuple[str, ...] = (), parts: tuple[str, ...] = ()) -> Iterator[None]:
    """Let imports of ``package`` succeed in this context if it is not installed, with empty modules.

    Args:
        package: name of the package.
        names: that are imported from it or its parts; each is None.
        parts: names of its submodules.

    >>> with stand_in("no_such_package", ("Thing",), ("state",)):
    ...     from no_such_package.state import Thing
    >>> Thing is None, "no_such_package" in sys.modules
    (True, False)
    """
    if package in sys.modules or importlib.util.find_spec(package) is not None:
        yield
        return
    made = {}
    for name in (package, *(f"{package}.{part}" for part in parts)):
        made[name] = ModuleType(name)
        vars(made[name]).update(dict.fromkeys(names))
    made[package].__path__ = []  # a package, for its parts to be looked for
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)
