"""The only place that imports torchvision.

The published torchvision wheel registers its C++ operators against a CUDA build of torch. Beside a
CPU-only torch the shared library does not load, and torchvision's Python side then fails on the
missing schemas. Nothing here uses those operators, so declaring the schemas is enough.
"""

from __future__ import annotations

import importlib
import logging
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch

__all__ = ["State", "load_torchvision", "torchvision_state"]

State = Literal["works", "mended", "absent", "broken"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # kept alive: its schemas go when it is collected


@cache
def load_torchvision() -> ModuleType:
    """Import torchvision; repair it if its compiled operators do not load."""
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)
    module = importlib.import_module("torchvision")
    logging.getLogger("robgib").debug(
        "torchvision's compiled operators do not load beside this torch build; declared %s without them",
        ", ".join(_SCHEMAS),
    )
    return module


def torchvision_state() -> tuple[State, str]:
    """Whether torchvision can be imported, and the first line of the error if it cannot.

    Returns:
        ``works``; ``mended``: only RobGIB can import it; ``absent``: it is not installed; ``broken``: it cannot be
        imported at all.

    >>> torchvision_state()[0] in ("works", "mended")
    True
    """
    if find_spec("torchvision") is None:
        return "absent", ""
    try:
        load_torchvision()
    except Exception as error:
        return "broken", (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return ("works" if _library is None else "mended"), ""
