"""Files that hold a network whole, its computation with its weights: TorchScript, torch.export and ONNX."""

from __future__ import annotations

import importlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, first_line

__all__ = ["PROGRAM_SUFFIXES", "is_program", "read_program"]

PROGRAM_SUFFIXES = (".ts", ".torchscript", ".pt2", ".onnx")


class Program(nn.Module):
    """A TorchScript program, ``net``, as a module that can be watched; its inner layers cannot."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the program makes of images (N, …)."""
        out: Tensor = self.net(x)
        return out


def is_program(path: Path) -> bool:
    """Whether the file holds a network whole; a ``.pt`` may be a TorchScript archive as well as a state dict."""
    if path.suffix in PROGRAM_SUFFIXES:
        return True
    if path.suffix not in (".pt", ".pth") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["constants.pkl"] for name in archive.namelist())


@contextmanager
def _without_pickle() -> Iterator[None]:
    """Have torch.load read weights only, whoever calls it: torch.export would unpickle what it cannot read so."""
    guarded = partial(_weights_only, torch.load)
    with mock.patch("torch.load", guarded):
        yield


def _weights_only(load: Any, *arguments: Any, **options: Any) -> Any:
    return load(*arguments, **{**options, "weights_only": True})


def read_program(path: Path) -> nn.Module:
    """Read a network that a file holds whole; nothing is unpickled.

    Raises:
        RobGIBError: the file is missing or damaged, needs unpickling, or uses what its reader does not know.
    """
    if not path.is_file():
        raise RobGIBError(f"checkpoint {str(path)!r} does not exist.")
    if path.suffix == ".onnx":
        return _onnx(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on torch's plans for its formats
        if path.suffix != ".pt2":
            try:
                return Program(torch.jit.load(str(path), map_location="cpu")).eval()
            except (RuntimeError, ValueError) as error:
                raise RobGIBError(f"{path} is not a whole TorchScript file: {first_line(error)}.") from error
        try:
            with _without_pickle():
                exported = torch.export.load(str(path))
            network: nn.Module = torch.export.unflatten(exported)
        except pickle.UnpicklingError as error:
            raise RobGIBError(
                f"{path} holds more than a program and its weights and would have to be unpickled, which can run any "
                "code; export it anew with `torch.export.save`."
            ) from error
        except Exception as error:
            raise RobGIBError(f"{path} is not a file that torch.export can read: {first_line(error)}.") from error
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def _onnx(path: Path) -> nn.Module:
    from robgib._torchvision import torchvision  # noqa: F401  (the converter imports it, and may not be able to alone)

    try:
        onnx, converter = importlib.import_module("onnx"), importlib.import_module("onnx2torch")
    except ImportError as error:
        raise RobGIBError(
            f"reading ONNX needs onnx and onnx2torch ({error}); `pip install robgib[onnx]` adds them."
        ) from error
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise RobGIBError(f"{path} is not a whole ONNX file: {first_line(error)}.") from error
    versions = importlib.import_module("onnx.version_converter")
    first: Exception | None = None
    # The converter knows some operators in their older versions only.
    for older in (None, 18, 16, 15, 13):
        try:
            network: nn.Module = converter.convert(model if older is None else versions.convert_version(model, older))
            return network.eval()
        except Exception as error:
            first = first or error
    assert first is not None
    raise RobGIBError(
        f"{path} uses what onnx2torch cannot convert ({first_line(first)}); export it with opset 13 or older."
    ) from first
