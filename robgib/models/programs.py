"""Files that hold a network whole, its computation with its weights: TorchScript, torch.export and ONNX."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from robgib.errors import RobGIBError, first_line, visible
from robgib.models.onnx_file import Check, read_onnx
from robgib.models.operators import operators
from robgib.models.torchscript import read_torchscript

__all__ = [
    "PICKLED_SUFFIXES",
    "PROGRAM_SUFFIXES",
    "is_program",
    "read_program",
]

PICKLED_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
"""Endings of torch.save's files, some of which are TorchScript archives."""
PROGRAM_SUFFIXES = (".ts", ".torchscript", ".pt2", ".onnx")


def is_program(path: Path) -> bool:
    """Whether the file holds a network whole; a ``.pt`` may be a TorchScript archive as well as a state dict."""
    if path.suffix in PROGRAM_SUFFIXES:
        return True
    if path.suffix not in PICKLED_SUFFIXES or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:  # as torch.load does, which hands such a file on to torch.jit.load
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False


@contextmanager
def _guarded() -> Iterator[None]:
    """Have torch.export read a program and its weights, and neither unpickle nor run anything else of the file's.

    By itself it unpickles what it cannot read as weights, loads compiled libraries, evaluates expressions as Python,
    looks operators up among all that torch imports, and writes Python source with the file's names in it.
    """
    from torch._export.serde import serialize

    reader = serialize.ExportedProgramDeserializer
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.load", partial(_weights_only, torch.load)))
        stack.enter_context(mock.patch("pickle.loads", _refuse))
        stack.enter_context(mock.patch.object(reader, "deserialize", _checked(reader.deserialize)))
        for place, name in (
            ("torch._C", "_pickle_load_obj"),
            ("torch._C._aoti", "AOTIModelPackageLoader"),
            ("torch.export.pt2_archive._package", "_load_aoti"),
        ):
            try:
                module = importlib.import_module(place)
            except ImportError:  # a torch from before there was such a thing
                continue
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, _refuse))
        yield


def _weights_only(load: Any, *arguments: Any, **options: Any) -> Any:
    return load(*arguments, **{**options, "weights_only": True})


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise pickle.UnpicklingError("more than a program and its weights")


def _checked(deserialize: Any) -> Any:
    def checked(self: Any, program: Any, *arguments: Any, **options: Any) -> Any:
        _check_program(program)
        return deserialize(self, program, *arguments, **options)

    return checked


_PLAIN = re.compile(r"[\w.+: -]*")
_STACK = re.compile(r"[\w.,;:@\[\]'() <>-]*")
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.(\w+)(\.\w+)?", re.ASCII)
_FUNCTION = re.compile(
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|max|min|not|ite|sqrt|sum)"
)
_SYMBOL = re.compile(r"\b(?:Symbol|Dummy)\('\w+'(?:, ?\w+=(?:True|False))*\)")
_TERMS = re.compile(r"[\w .,()+*/%<>=!&|~-]*")
_FUNCTIONS = (
    "Integer Rational Float Add Mul Pow Mod Max Min Abs Eq Ne Gt Ge Lt Le Equality Unequality StrictGreaterThan "
    "GreaterThan StrictLessThan LessThan And Or Not floor ceiling FloorDiv ModularIndexing Where PythonMod CleanDiv "
    "CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt "
    "RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator"
)


def _is_expression(text: str) -> bool:
    """Whether the expression of a size is pure arithmetic: sympy evaluates any text as Python."""
    text = _SYMBOL.sub("s", text)
    called = re.findall(r"([\w.]*)\s*\(", text)
    return (
        _TERMS.fullmatch(text) is not None
        and "__" not in text
        and re.search(r"\.\s*[^\W\d]|\)\s*\(", text) is None
        and all(not name or name in _FUNCTIONS.split() for name in called)
    )


def _check_program(part: Any, key: str = "") -> None:
    """Raise if a part of a program, under its ``key``, could do more than compute."""
    if key == "metadata" and isinstance(part, dict):
        for name in [k for k in part if k != "nn_module_stack"]:  # the origin of the program, which is not used
            del part[name]
    if isinstance(part, list) and key == "guards_code":
        part.clear()  # Python code that would check the sizes of images
    elif isinstance(part, (list, tuple)):
        for item in part:
            _check_program(item, key)
    elif isinstance(part, dict):
        for name, value in part.items():
            _check_program(str(name))
            _check_program(value, str(name))
    elif isinstance(part, str):
        if not _only_computes(part, key):
            raise RobGIBError(f"its {key or 'name'} {part[:80]!r} is more than a network's computation")
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        for name, value in vars(part).items():
            _check_program(value, name)


def _only_computes(text: str, key: str) -> bool:
    """Whether a text of a program, under its ``key``, describes a computation and nothing else."""
    if key in ("in_spec", "out_spec"):
        return _is_structure(text)
    if key == "expr_str":
        return _is_expression(text)
    if key in ("target", "as_operator"):
        operator = _OPERATOR.fullmatch(text)
        return operator[2] in operators(operator[1]) if operator else _FUNCTION.fullmatch(text) is not None
    if key in ("as_string", "as_strings"):
        return True  # an argument of an operator
    return (_STACK if key == "nn_module_stack" else _PLAIN).fullmatch(text) is not None


def _is_structure(text: str) -> bool:
    """Whether the structure of inputs or outputs has only plain containers, which name nothing to import."""

    def plain(part: Any) -> bool:
        if isinstance(part, dict):
            kind = part.get("type")
            return (
                set(part) <= {"type", "context", "children_spec"}
                and kind in (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
                and (part.get("context") is None or isinstance(json.loads(part["context"]), (list, type(None))))
                and "__enum__" not in str(part.get("context"))
                and "\\" not in str(part.get("context"))
                and all(map(plain, part.get("children_spec") or ()))
            )
        return isinstance(part, int) or (isinstance(part, list) and all(map(plain, part)))

    try:
        return plain(json.loads(text))
    except (ValueError, TypeError):
        return False


def read_program(path: Path, *, allow_code: bool = False) -> tuple[nn.Module, Check | None]:
    """Read the complete network of a file; nothing is unpickled, and only its computation is run.

    Args:
        path: of the file.
        allow_code: read TorchScript and torch.export programs whatever they hold, which can run any code.

    Returns:
        The network, in eval mode, and for ONNX what compares its answers with onnxruntime's.

    Raises:
        RobGIBError: the file is missing or damaged, needs unpickling, or uses what its reader does not know.
    """
    if not path.is_file():
        raise RobGIBError(f"checkpoint {str(path)!r} does not exist.")
    if path.suffix == ".onnx":
        return read_onnx(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on torch's plans for its formats
        if path.suffix != ".pt2":
            return read_torchscript(path, allow_code=allow_code), None
        return _exported(path, allow_code), None


def _exported(path: Path, allow_code: bool) -> nn.Module:
    try:
        with _quiet(), nullcontext() if allow_code else _guarded():
            exported = torch.export.load(str(path))
            network: nn.Module = torch.export.unflatten(exported)
            _name_classes(network, exported)
    except RobGIBError as error:
        raise RobGIBError(
            f"{path} is refused, since reading it could run code: {error}; give --allow-code (allow_code=True) if you "
            "trust whoever made the file."
        ) from error
    except pickle.UnpicklingError as error:
        raise RobGIBError(
            f"{path} holds more than a program and its weights and would have to be unpickled, which can run any "
            "code; export it anew with `torch.export.save`, or give --allow-code if you trust whoever made the file."
        ) from error
    except Exception as error:
        why = visible(first_line(error)).partition(". Please check the warnings above")[0]  # which are not shown
        raise RobGIBError(f"{path} is not a file that torch.export can read: {why}.") from error
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return network.eval()


def _name_classes(network: nn.Module, exported: torch.export.ExportedProgram) -> None:
    """Give modules a ``type_name``, the class that they had before the export, where torch (2.6) does not."""
    classes: dict[str, str] = {}
    for node in exported.graph.nodes:
        classes.update(node.meta.get("nn_module_stack", {}).values())
    for path, module in network.named_modules():
        if path in classes and not hasattr(module, "type_name"):
            vars(module)["type_name"] = partial(str, classes[path])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's log: on a damaged file its reader writes pages before it reports the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
