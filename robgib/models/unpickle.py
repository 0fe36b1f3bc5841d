"""Read only the tensors of PyTorch's pickled files: placeholders replace all other objects, and no code runs."""

from __future__ import annotations

import pickle
import tarfile
import warnings
from collections import OrderedDict
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

import torch

from robgib.errors import RobGIBError

__all__ = [
    "StandIn",
    "read_pickled",
]

_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "UntypedStorage"): torch.UntypedStorage,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}
"""All that a file may call; these only put tensors together. They are looked up as a pair, never by attribute."""


class StandIn:
    """Placeholder for an object of any other class: it stores what the file assigns to it, without effect.

    Attributes:
        source: the class that the file names, ``package.module.Class``.
        state: what the file would have set the object's attributes to.
        entries: what it would have put into it as a mapping.
    """

    source = ""
    dump_patches = False  # torch asks it of classes that are saved with their code

    def __new__(cls, *arguments: Any, **options: Any) -> StandIn:
        """Take anything."""
        made = object.__new__(cls)
        made.state, made.entries = None, {}
        return made

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.state: Any
        self.entries: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        """Take an item of a list."""

    def extend(self, items: Any) -> None:
        """Take several."""

    def add(self, item: Any) -> None:
        """Take an item of a set."""


class _Unpickler(pickle._Unpickler):  # the one written in Python, since the other's steps cannot be changed
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Set the state of an object of the file; shared objects of the process must not be changed.

        torch writes a class's source to a file that its name leads to, where the class has ``dump_patches``.
        """
        if isinstance(self.stack[-2], type | FunctionType | BuiltinFunctionType):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it sets attributes of a class or function")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return type(name.rpartition(".")[2], (StandIn,), {"source": f"{module}.{name}"})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_MODULE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="robgib.models.unpickle")
"""What torch.load takes in the place of the module pickle."""


def read_pickled(path: Path) -> Any:
    """Read a file of torch.save; objects other than tensors, numbers, text and plain containers become stand-ins.

    Raises:
        RobGIBError: it is a tar archive, a format of before 2018 whose reader writes files.
        Exception: whatever a damaged file makes torch say.
    """
    if tarfile.is_tarfile(path):
        raise RobGIBError(f"{path} is a tar archive; unpack it, or save its weights anew with torch.save.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on code that changed since, and on storages
        return torch.load(path, map_location="cpu", pickle_module=_MODULE, weights_only=False)
