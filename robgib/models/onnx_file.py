"""ONNX files: names are replaced before conversion, and outputs are compared with onnxruntime's."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from robgib._torchvision import load_torchvision
from robgib.errors import RobGIBError, first_line, visible

__all__ = [
    "read_onnx",
]

Check = Callable[[Tensor, Any], tuple[str, ...]]
"""Called with images as the network takes them and its answer: what there is to note, or an error where they differ."""

_TEXT = re.compile(r"[\w.,:> -]*", re.ASCII)
_OLDER = (18, 16, 15, 13)
"""Opset versions to try: the converter supports some operators in older versions only."""


def read_onnx(path: Path) -> tuple[nn.Module, Check]:
    """Read an ONNX file as a network of torch, with a function that compares its answers with onnxruntime's.

    The converter makes modules of the nodes and calls them after the nodes, and torch writes these names into Python
    source: every name of the file's is replaced by a plain one first.

    Raises:
        RobGIBError: a package is not installed, or the file is damaged or holds what cannot be converted.
    """
    load_torchvision()  # the converter imports it, and may not be able to alone
    try:
        onnx, converter = importlib.import_module("onnx"), importlib.import_module("onnx2torch")
    except ImportError as error:
        raise RobGIBError(
            f'reading ONNX needs onnx and onnx2torch ({error}); `pip install "robgib[onnx]"` adds them.'
        ) from error
    model = _load(path, onnx)
    version = next((o.version for o in model.opset_import if not o.domain), 0)
    first: Exception | None = None
    for older in (None, *(o for o in _OLDER if o < version)):
        try:
            brought = model if older is None else importlib.import_module("onnx.version_converter").convert_version(
                model, older
            )  # fmt: skip
            plain = _plain(brought, path)
            _check_known(plain, path)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                network: nn.Module = converter.convert(plain)
        except RobGIBError:
            raise
        except Exception as error:
            first = first or error
            continue
        messages = tuple(dict.fromkeys(first_line(w.message) for w in caught if isinstance(w.message, UserWarning)))
        return network.eval(), _Comparison(path, _plain(model, path), plain, network, messages)
    assert first is not None
    if lacking := _lacking(model, onnx):
        raise RobGIBError(
            f"{path} uses {', '.join(lacking)}, which onnx2torch cannot convert in any opset; export the network "
            "without it, or with torch.export."
        )
    mend = f"; export it with opset {_OLDER[-1]} or older" if version > _OLDER[-1] else ""
    raise RobGIBError(f"{path} uses what onnx2torch cannot convert ({visible(first_line(first))[:200]}){mend}.")


def _lacking(model: Any, onnx: Any) -> list[str]:
    """Return the operators that the converter has in no version, although the oldest opset tried has them.

    Operators that came later, such as Gelu, are written as several others in a file of an older opset.
    """
    registry = importlib.import_module("onnx2torch.node_converters.registry")

    def known(kind: str, version: int) -> bool:
        try:
            registry.get_converter(kind, version, "")
        except (NotImplementedError, onnx.defs.SchemaError):
            return False
        return True

    def there(kind: str) -> bool:
        try:
            onnx.defs.get_schema(kind, _OLDER[-1], "")
        except onnx.defs.SchemaError:
            return False
        return True

    kinds = sorted({node.op_type for node in _messages(model, "NodeProto")})
    versions = range(1, _OLDER[-1] + 1)
    return [repr(kind) for kind in kinds if there(kind) and not any(known(kind, v) for v in versions)]


def _load(path: Path, onnx: Any) -> Any:
    """Load the file's model with external weights read in and functions inlined."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise RobGIBError(f"{path} is not a whole ONNX file: {first_line(error)}.") from error
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            beside = PurePosixPath(entry.value.replace("\\", "/"))
            if entry.key == "location" and (beside.is_absolute() or ".." in beside.parts or ":" in entry.value):
                raise RobGIBError(
                    f"{path} takes weights from {entry.value[:80]!r}, which is outside its folder; RobGIB "
                    "does not read the file."
                )
    try:
        importlib.import_module("onnx.external_data_helper").load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        if model.functions:
            model = importlib.import_module("onnx.inliner").inline_local_functions(model)
    except Exception as error:
        raise RobGIBError(f"{path} is not a whole ONNX file: {first_line(error)}.") from error
    return model


def _messages(message: Any, kind: str) -> Iterator[Any]:
    """Yield all messages of a kind in a protocol buffer, in order, also those in subgraphs."""
    if message.DESCRIPTOR.name == kind:
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR") else (value,):
                yield from _messages(part, kind)


def _tensors(model: Any) -> Iterator[Any]:
    return _messages(model, "TensorProto")


def _plain(model: Any, path: Path) -> Any:
    """Copy a model with nodes and values named by number, and without descriptive texts.

    Raises:
        RobGIBError: it has operators of another domain than ONNX's, or text in the place of an option.
    """
    made = type(model)()
    made.CopyFrom(model)
    names: dict[str, str] = {"": ""}

    def plain(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}")

    for domain in (o.domain for o in made.opset_import):
        if domain not in ("", "ai.onnx"):
            used = next((n.op_type for n in _messages(made, "NodeProto") if n.domain == domain), None)
            if used is not None:
                raise RobGIBError(f"{path} uses the operator {f'{domain}:{used}'[:80]!r}, which is not one of ONNX's.")
    version = max((o.version for o in made.opset_import if o.domain in ("", "ai.onnx")), default=1)
    del made.opset_import[:]
    made.opset_import.add(domain="", version=version)
    for field in ("functions", "metadata_props", "training_info"):
        del getattr(made, field)[:]
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        made.ClearField(field)
    for graph in _messages(made, "GraphProto"):
        graph.name = "g"
        graph.ClearField("quantization_annotation")
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = plain(value.name)
        for tensor in graph.initializer:
            tensor.name = plain(tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = plain(sparse.values.name)
    for shape in _messages(made, "Dimension"):
        if shape.HasField("dim_param"):
            shape.dim_param = plain(shape.dim_param)
    for number, node in enumerate(_messages(made, "NodeProto")):
        _rename(node, number, plain, path)
    _own_weights(made.graph)
    return made


def _own_weights(graph: Any) -> None:
    """Copy shared weights for each layer: torch's exporter writes them once, with Identity nodes."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    for node in [
        n for n in graph.node if n.op_type == "Identity" and n.input[0] in weights and n.output[0] not in ends
    ]:
        copy = graph.initializer.add()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        weights[copy.name] = copy
        graph.node.remove(node)


def _rename(node: Any, number: int, plain: Callable[[str], str], path: Path) -> None:
    """Rename a node and its values by number; check that its operator and options are plain names."""
    node.name, node.domain = f"n{number}", ""
    node.ClearField("doc_string")
    node.input[:], node.output[:] = [plain(v) for v in node.input], [plain(v) for v in node.output]
    options = [a.name for a in node.attribute]
    options += [a.ref_attr_name for a in node.attribute if a.ref_attr_name]
    texts = [t.decode(errors="replace") for a in node.attribute for t in (a.s, *a.strings)]
    for text in (node.op_type, *options, *texts):
        if not _TEXT.fullmatch(text):
            raise RobGIBError(
                f"{path} has the option or operator {visible(text)[:80]!r}, which is not a plain name; "
                "RobGIB does not read the file."
            )


def _other_answers(path: Path, than: str) -> RobGIBError:
    return RobGIBError(
        f"{path} gives other answers by onnx2torch {than}, and another network would be measured; export it without "
        "that operator, or as TorchScript or .pt2."
    )


def _check_known(model: Any, path: Path) -> None:
    """Raise if the converter is known to be wrong where onnxruntime lacks the operator to compare with."""
    for node in _messages(model, "NodeProto"):
        size = next((a.i for a in node.attribute if a.name == "size"), 1)
        if node.op_type == "LRN" and size % 2 == 0:  # torch's window of channels begins one earlier
            raise _other_answers(path, f"than ONNX's definition of {_described(node)} has")


class _Comparison:
    """Compares the outputs of a converted network with onnxruntime's on the original file."""

    def __init__(self, path: Path, model: Any, converted: Any, network: nn.Module, warned: tuple[str, ...]) -> None:
        self.path, self.model, self.converted, self.network, self.warned = path, model, converted, network, warned

    def __call__(self, x: Tensor, answer: Any) -> tuple[str, ...]:
        """Compare the network's outputs for images (N, …) with onnxruntime's; return notes.

        Raises:
            RobGIBError: the answers differ by more than rounding.
        """
        try:
            theirs = list(_run(self.model, x).values())
        except Exception as error:
            why = "onnxruntime is not installed" if isinstance(error, ImportError) else visible(first_line(error)[:120])
            mend = '; `pip install "robgib[onnx]"` adds it' if isinstance(error, ImportError) else ""
            added = f"; the converter warns: {'; '.join(self.warned)}" if self.warned else ""
            return (f"its answers were not compared with onnxruntime's ({why}{mend}){added}",)
        ours = [answer] if isinstance(answer, Tensor) else list(answer)
        if _agree(ours, theirs, _ROUNDING):
            return ()
        name = self._first_difference(x)
        if name is None and _agree(ours, theirs, _SUMMED):
            return ()
        which = f"the first operator that differs is {name}" if name else "each operator alone agrees"
        raise _other_answers(self.path, f"than by onnxruntime ({which})")

    def _first_difference(self, x: Tensor) -> str | None:
        """Return the first operator, with its options, whose output differs on onnxruntime's own inputs."""
        assert isinstance(self.network, fx.GraphModule)
        try:
            follow = _Following(self.network, self.converted, x)
        except Exception:  # onnxruntime may not take the file as it was brought to older operators
            return None
        with torch.no_grad():
            follow.run(x)
        return follow.found


_ROUNDING = 1e-5
"""Share of the largest number that answers may differ by without a further look."""
_LOCAL = 1e-4
"""The same of an operator's answer to the same numbers."""
_SUMMED = 1e-2
"""The same of a network's answer where each operator's is the same to rounding."""


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _agree(ours: Sequence[Any], theirs: Sequence[Any], share: float) -> bool:
    """Whether tensors equal arrays up to rounding, relative to the largest value of each."""
    return all(
        _same(_array(one), np.asarray(two), share)
        for one, two in zip(ours, theirs, strict=False)
        if isinstance(one, Tensor)
    )


def _same(ours: Any, theirs: Any, share: float) -> bool:
    if ours.shape != theirs.shape:
        return False
    share = max(share, 1e-2) if theirs.dtype == np.float16 else share
    one, two = ours.astype(np.float64), theirs.astype(np.float64)
    odd = ~np.isfinite(two)
    if not np.array_equal(one[odd], two[odd], equal_nan=True):
        return False
    gap, most = np.abs(one[~odd] - two[~odd]).max(initial=0), np.abs(two[~odd]).max(initial=0)
    return bool(gap <= share * max(most, 1e-6))


def _run(model: Any, x: Tensor, all_values: bool = False) -> Mapping[str, Any]:
    """Run images (N, …) through onnxruntime; return the outputs by name, or every node's."""
    runtime = importlib.import_module("onnxruntime")
    if all_values:
        complete = type(model)()
        complete.CopyFrom(model)
        outputs = {value.name for value in complete.graph.output}
        for name in (n for node in complete.graph.node for n in node.output if n and n not in outputs):
            complete.graph.output.add(name=name)
        model = complete
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_outputs()]
    given = session.get_inputs()[0]
    images = _array(x).astype({"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(given.type, np.float32))
    return dict(zip(wanted, session.run(wanted, {given.name: images}), strict=True))


class _Following(fx.Interpreter):
    """Runs a converted network operator by operator on onnxruntime's values, up to the first difference."""

    def __init__(self, network: fx.GraphModule, model: Any, x: Tensor) -> None:
        super().__init__(network)
        self.truth = _run(model, x, all_values=True)
        self.nodes = {node.name: node for node in model.graph.node}
        self.found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """See torch; return onnxruntime's output of the operator."""
        made = super().run_node(n)
        node = self.nodes.get(str(n.target)) if n.op == "call_module" else None
        if node is None:
            return made
        alone = isinstance(made, Tensor)
        ours = [made] if alone else list(made)
        for i, name in enumerate(node.output[: len(ours)]):
            if name not in self.truth or not isinstance(ours[i], Tensor):
                continue
            theirs = self.truth[name]
            if self.found is None and not _agree([ours[i]], [theirs], _LOCAL):
                self.found = _described(node)
            ours[i] = torch.from_numpy(np.array(theirs))
        return ours[0] if alone else tuple(ours)


def _described(node: Any) -> str:
    """Describe a node's operator with its options, as ``Resize(mode=cubic)``."""
    get = importlib.import_module("onnx.helper").get_attribute_value
    attributes = []
    for attribute in node.attribute:
        value = get(attribute)
        if isinstance(value, bytes | int | float):
            text = value.decode(errors="replace") if isinstance(value, bytes) else f"{value:g}"
            attributes.append(f"{attribute.name}={text}")
    return f"{node.op_type}({', '.join(attributes)})"
