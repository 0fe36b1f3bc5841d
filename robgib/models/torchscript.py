"""TorchScript files: RobGIB checks that they only compute before any of their code runs."""

from __future__ import annotations

import ast
import io
import pickle
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, first_line, visible
from robgib.models.operators import operators
from robgib.models.unpickle import StandIn

__all__ = [
    "Program",
    "read_torchscript",
]


class Program(nn.Module):
    """A TorchScript program, ``net``, as a module with hooks; its inner layers have none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the program's output for images (N, …)."""
        out: Tensor = self.net(x)
        return out


def read_torchscript(path: Path, *, allow_code: bool = False) -> Program:
    """Read a TorchScript file.

    Compiling a file's code may run parts of it (defaults, constants, ``__setstate__``), so that it is read as text
    first; the operators that the compiled code holds are checked again, since their names can be written in many ways.

    Args:
        path: of the file.
        allow_code: read it whatever it calls.

    Raises:
        RobGIBError: it is damaged, or does more than compute and that is not allowed.
    """
    try:
        if not allow_code:
            _check_records(path)
        unit: Any = torch._C.CompilationUnit()
        compiled: Any = torch._C.import_ir_module
        module = compiled(unit, str(path), torch.device("cpu"), {}, False)
        functions = unit.get_functions()
        if not allow_code:
            for function in functions:
                _check_graph(function.graph, path)
        for function in functions:
            _silence(function.graph)
        return Program(torch.jit._recursive.wrap_cpp_module(module)).eval()
    except (RuntimeError, ValueError) as error:
        raise RobGIBError(f"{path} is not a whole TorchScript file: {visible(first_line(error))}.") from error


def _refused(path: Path, what: str) -> RobGIBError:
    return RobGIBError(
        f"{path} {what}, which is not part of a network's computation; export the network without it, or give "
        "--allow-code (allow_code=True) if you trust whoever made the file."
    )


_RECORDS = re.compile(
    r"(data|constants|traced_inputs)(\.pkl|/\d+)|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|code/[\w/]+\.py|code/[\w/]+\.py\.debug_pkl|extra/[\w./-]+",
    re.ASCII,
)


def _check_records(path: Path) -> None:
    """Raise unless every record of the archive is known and contains no runnable code."""
    reader = torch._C.PyTorchFileReader(str(path))
    records: list[str] = reader.get_all_records()
    if "constants.pkl" not in records:
        raise RobGIBError(
            f"{path} has an old TorchScript format, which RobGIB does not read; save it again with a newer torch."
        )
    # torch finds a record whatever the case of its name.
    if len({name.casefold() for name in records}) < len(records):
        raise _refused(path, "holds several records of one name")
    for name in records:
        if not _RECORDS.fullmatch(name):
            raise _refused(path, f"holds the record {visible(name)[:80]!r}")
    known = _denied()
    for name in records:
        if name.endswith(".py"):
            _check_source(reader.get_record(name), known, path)
    sizes = {name: len(reader.get_record(name)) for name in records if re.fullmatch(r"(data|constants)/\d+", name)}
    for kind in ("data", "constants"):
        _check_objects(reader.get_record(f"{kind}.pkl"), kind, sizes, path)


_KNOWN_WORDS = ("warn", "Print")
"""What is taken out of the compiled code."""


def _check_source(code: bytes, known: Container[str], path: Path) -> None:
    """Raise if code would run when it is compiled or loaded, or names an operator with side effects."""
    try:
        text = code.decode("ascii")
        if re.search(r"[^ -~\n]|#", text):  # in which Python's reader and TorchScript's could differ
            raise ValueError("a comment or control character")
        tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise _refused(
            path, f"holds code that is not as torch writes it ({visible(first_line(error))[:80]})"
        ) from error
    for part in ast.walk(tree):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            if part.name == "__setstate__":
                raise _refused(path, "runs code when it is loaded (__setstate__, as quantised modules do)")
            values = [v for v in (*part.args.defaults, *part.args.kw_defaults) if v is not None]
            if part.decorator_list or not all(map(_is_literal, values)):
                raise _refused(path, "runs code when it is compiled (the default of an argument)")
        elif isinstance(part, ast.ClassDef):
            listed = any(ast.unparse(base) == "Enum" for base in part.bases)  # whose members are assignments
            kinds = (ast.Assign, ast.AnnAssign) if listed else (ast.AnnAssign,)
            if not all(v.value is None or _is_literal(v.value) for v in part.body if isinstance(v, kinds)):
                raise _refused(path, "runs code when it is compiled (a constant of a class)")
        for word in _names(part):
            if word in known:
                raise _refused(path, f"calls {word!r}")


def _names(part: ast.AST) -> Iterator[str]:
    """Yield the attribute names that an expression reads: after a dot, or by getattr."""
    if isinstance(part, ast.Attribute):
        yield part.attr
    elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("getattr", "hasattr"):
        for given in part.args[1:]:
            yield from (n.value for n in ast.walk(given) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _is_literal(value: ast.AST) -> bool:
    """Whether an expression contains only numbers, texts and names; torch.device and annotate give types alone."""
    calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
    plain = all(ast.unparse(n.func) in ("annotate", "torch.device") for n in calls)
    return plain and not any(isinstance(n, ast.Lambda | ast.comprehension | ast.BinOp) for n in ast.walk(value))


_NAMESPACES = ("aten", "prim", "prims", "torchvision", "quantized_decomposed")


def _denied() -> frozenset[str]:
    """Return the names of all operators that are not allowed, and of custom classes."""
    allowed = frozenset().union(*map(operators, _NAMESPACES), _KNOWN_WORDS)
    every: Any = torch._C._jit_get_all_schemas
    return frozenset(schema.name.rpartition("::")[2] for schema in every()) - allowed | {"classes"}


def _check_graph(graph: Any, path: Path) -> None:
    """Raise unless every operator of a compiled function is allowed."""
    for node in graph.nodes():
        space, _, name = node.kind().partition("::")
        if name not in operators(space) and node.kind() not in _SILENT:
            raise _refused(path, f"calls {name!r}")
        for block in node.blocks():
            _check_graph(block, path)


_SILENT = ("prim::Print", "aten::warn")


def _silence(graph: Any) -> None:
    """Remove print operators: their text could control a terminal or corrupt output that a script reads."""
    for node in list(graph.nodes()):
        for block in node.blocks():
            _silence(block)
        if node.kind() in _SILENT:
            node.destroy()


class _Objects(pickle._Unpickler):  # the one written in Python, since steps of the other cannot be changed
    """Reads a record of objects without creating any; checks that classes are the file's own and tensors in bounds."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_reduce(self) -> None:
        """Call what a file may call; torch writes the value of an Enum's member where others have all arguments."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-2], type) and issubclass(stack[-2], StandIn) and not isinstance(stack[-1], tuple):
            stack[-1] = (stack[-1],)
        super().load_reduce()  # type: ignore[misc]

    def load_build(self) -> None:
        """Set the state of an object of the file's own, and of nothing else."""
        if not isinstance(self.stack[-2], StandIn):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it sets attributes of a class or function")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce  # type: ignore[assignment]
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def __init__(self, content: bytes, kind: str, sizes: dict[str, int], path: Path) -> None:
        super().__init__(io.BytesIO(content))
        self.kind, self.sizes, self.path = kind, sizes, path

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "collections.OrderedDict": StandIn,
            "torch.device": StandIn,
        }
        if whole in known:
            return known[whole]
        if module == "torch.jit._pickle":
            return StandIn
        if module == "torch" and name.endswith("Storage"):
            return name
        if whole.startswith("__torch__.") and not whole.startswith("__torch__.torch.classes."):
            return type(name, (StandIn,), {})
        raise _refused(self.path, f"holds an object of the class {visible(whole)[:80]!r}")

    def persistent_load(self, key: Any) -> Any:
        _, storage, name, _, count = key
        size = self.sizes.get(f"{self.kind}/{name}", -1)
        kind = {"HalfStorage": "float16", "BFloat16Storage": "bfloat16"}.get(
            storage, {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}.get(
                storage.removesuffix("Storage"), storage.removesuffix("Storage").lower()
            )
        )  # fmt: skip
        dtype = getattr(torch, kind, None)
        if not isinstance(dtype, torch.dtype) or not 0 <= count * dtype.itemsize <= size:
            raise ValueError(f"a tensor's numbers are missing ({visible(str(name))[:40]})")
        return count

    def _tensor(self, count: int, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> StandIn:
        # torch's reader does not look whether a tensor lies within its numbers.
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or min(numbers) < 0:
            raise ValueError("a tensor has a negative size")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if 0 not in shape and last >= count:
            raise ValueError("a tensor reaches beyond its numbers")
        return StandIn()


def _check_objects(content: bytes, kind: str, sizes: dict[str, int], path: Path) -> None:
    try:
        _Objects(content, kind, sizes, path).load()
    except RobGIBError:
        raise
    except Exception as error:
        raise ValueError(f"its {kind}.pkl: {first_line(error)}") from error
