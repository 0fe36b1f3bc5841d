"""ONNX files: no name of a file's becomes code, and their answers are onnxruntime's or they are refused."""

import importlib
import sys

import numpy as np
import pytest
import torch

from robgib import RobGIBError
from robgib.models import Normalization, read_checkpoint
from robgib.zoo.loading import load_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")
EVIL = 'n" if getattr(__import__("os"), "mkdir")("hacked") else "n'


def weights(seed=0, outputs=10):
    return np.random.default_rng(seed).normal(size=(64, outputs)).astype(np.float32) / 8


def model(nodes, initializers, opset=13, **options):
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 10])],
        [onnx.numpy_helper.from_array(v, k) for k, v in initializers.items()],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8, **options)
    return made


def node(kind, inputs, output, name="", **options):
    return onnx.helper.make_node(kind, inputs, [output], name=name, **options)


def linear():
    return model([node("Flatten", ["x"], "f", "flat"), node("MatMul", ["f", "W"], "y", "mm")], {"W": weights()})


def renamed(made, old, new):
    """The model with a value under another name wherever it stands."""
    for part in made.graph.node:
        part.input[:] = [new if v == old else v for v in part.input]
        part.output[:] = [new if v == old else v for v in part.output]
    for part in (*made.graph.input, *made.graph.output, *made.graph.initializer):
        part.name = new if part.name == old else part.name
    return made


def in_node(made):
    made.graph.node[1].name = EVIL


def in_domain(made):
    made.graph.node[1].domain = EVIL
    made.opset_import.add(domain=EVIL, version=1)


def in_operator(made):
    made.graph.node[1].op_type = EVIL


def in_graph(made):
    made.graph.name = made.producer_name = made.graph.doc_string = EVIL
    made.metadata_props.add(key=EVIL, value=EVIL)


def in_size(made):
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = EVIL


def in_option(made):
    made.graph.node[0].attribute.add(name=EVIL, i=1, type=onnx.AttributeProto.INT)


def in_text(made):
    pad = node("Pad", ["x", "pads"], "p", "pad", mode=EVIL)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(8, np.int64), "pads"))
    made.graph.node.insert(0, pad)
    made.graph.node[1].input[0] = "p"


def in_constant(made):
    made.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["text"], name="c", value_string=EVIL))


def in_function(made):
    made.functions.add(name=EVIL, domain="mine", input=["a"], output=["b"]).node.append(node("Relu", ["a"], "b", EVIL))
    made.functions[0].opset_import.add(domain="", version=13)
    made.opset_import.add(domain="mine", version=1)
    made.graph.node.insert(0, onnx.helper.make_node(EVIL, ["x"], ["r"], name="call", domain="mine"))
    made.graph.node[1].input[0] = "r"


def in_subgraph(made):
    inner = onnx.helper.make_graph(
        [node("Identity", ["f"], EVIL, EVIL)], EVIL, [], [onnx.helper.make_tensor_value_info(EVIL, 1, None)]
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    made.graph.node.insert(
        1, onnx.helper.make_node("If", ["yes"], ["g"], name="if", then_branch=inner, else_branch=inner)
    )
    made.graph.node[2].input[0] = "g"


PLACES = {
    "node": in_node,
    "domain": in_domain,
    "operator": in_operator,
    "graph": in_graph,
    "size": in_size,
    "option": in_option,
    "text": in_text,
    "constant": in_constant,
    "function": in_function,
    "subgraph": in_subgraph,
    "input": lambda made: renamed(made, "x", EVIL),
    "output": lambda made: renamed(made, "y", EVIL),
    "value": lambda made: renamed(made, "f", EVIL),
    "weights": lambda made: renamed(made, "W", EVIL),
}
READ = {"node", "graph", "size", "input", "output", "value", "weights"}


@pytest.mark.parametrize("place", PLACES)
def test_code_in_the_place_of_a_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = linear()
    PLACES[place](made)
    onnx.save(made, "net.onnx")
    x = torch.rand(3, 1, 8, 8)
    try:
        network = read_checkpoint(tmp_path / "net.onnx").network
        assert torch.allclose(network(x), x.flatten(1) @ torch.from_numpy(weights()), atol=1e-5)
        assert EVIL not in network.code
    except RobGIBError:
        assert place not in READ
    assert not (tmp_path / "hacked").exists()


def test_code_in_a_name_that_comes_back_by_older_operators(tmp_path, monkeypatch):
    """The converter takes Identity 19 for a file of 13 alone; what brings it to that keeps its names."""
    monkeypatch.chdir(tmp_path)
    made = model(
        [
            node("Flatten", ["x"], "f", EVIL),
            node("MatMul", ["f", "W"], "m", EVIL),
            node("Cast", ["m"], "y", EVIL, to=1),
        ],
        {"W": weights()},
        opset=19,
    )
    onnx.save(made, "net.onnx")
    network = read_checkpoint(tmp_path / "net.onnx").network
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("place", ["../weights", "/etc/hostname", "sub/../../weights", "..\\weights"])
def test_weights_that_lie_elsewhere(place, tmp_path):
    made = linear()
    tensor = made.graph.initializer[0]
    (tmp_path / "weights").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(RobGIBError, match="which is outside its folder; RobGIB"):
        read_checkpoint(tmp_path / "net" / "net.onnx")


def test_weights_beside_the_file(tmp_path):
    onnx.save_model(linear(), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    x = torch.rand(3, 1, 8, 8)
    network = read_checkpoint(tmp_path / "net.onnx").network
    assert torch.allclose(network(x), x.flatten(1) @ torch.from_numpy(weights()), atol=1e-5)


def resized(**options):
    """A network that enlarges the images by half before it looks at them."""
    scales = np.array([1, 1, 1.5, 1.5], np.float32)
    nodes = [
        node("Resize", ["x", "", "scales"], "r", "resize", **options),
        node("Flatten", ["r"], "f"),
        node("MatMul", ["f", "W"], "y"),
    ]
    w = np.random.default_rng(0).normal(size=(144, 10)).astype(np.float32)
    return model(nodes, {"scales": scales, "W": w})


def normed(size):
    w = np.random.default_rng(0).normal(size=(6, 1, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "C"], "c", "conv"),
        node("LRN", ["c"], "l", "lrn", size=size, alpha=0.5),
        node("Flatten", ["l"], "f"),
        node("MatMul", ["f", "W"], "y"),
    ]
    return model(nodes, {"C": w, "W": np.random.default_rng(1).normal(size=(216, 10)).astype(np.float32)})


OTHERS = {
    "asymmetric": (lambda: resized(mode="linear", coordinate_transformation_mode="asymmetric"), "Resize"),
    "cubic": (lambda: resized(mode="cubic", cubic_coeff_a=-0.5), "Resize"),
    "ceil": (lambda: resized(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"), "Res"),
}
SAME = {
    "half_pixel": lambda: resized(mode="linear", coordinate_transformation_mode="half_pixel"),
    "cubic": lambda: resized(mode="cubic"),
    "odd": lambda: normed(5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_answers_that_are_not_those_of_the_file(name, tmp_path):
    pytest.importorskip("onnxruntime")
    make, operator = OTHERS[name]
    onnx.save(make(), tmp_path / "net.onnx")
    with pytest.raises(RobGIBError, match=f"other answers .*the first operator that differs is {operator}"):
        load_checkpoint(tmp_path / "net.onnx", data="digits")


@pytest.mark.parametrize("size", [2, 4])
def test_a_window_of_channels_that_onnxruntime_does_not_know(size, tmp_path):
    onnx.save(normed(size), tmp_path / "net.onnx")
    with pytest.raises(RobGIBError, match=rf"other answers by onnx2torch than ONNX's definition of LRN\(.*size={size}"):
        load_checkpoint(tmp_path / "net.onnx", data="digits")


@pytest.mark.parametrize("name", SAME)
def test_answers_that_are(name, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx.save(SAME[name](), tmp_path / "net.onnx")
    assert load_checkpoint(tmp_path / "net.onnx", data="digits").notes == ()


def test_answers_behind_a_normalisation(tmp_path):
    """The images are compared as they reach the network."""
    pytest.importorskip("onnxruntime")
    onnx.save(OTHERS["cubic"][0](), tmp_path / "other.onnx")
    onnx.save(SAME["odd"](), tmp_path / "same.onnx")
    wide = Normalization((0.5,), (0.01,))
    with pytest.raises(RobGIBError, match="Resize"):
        load_checkpoint(tmp_path / "other.onnx", data="digits", normalization=wide)
    load_checkpoint(tmp_path / "same.onnx", data="digits", normalization=wide)


def test_without_onnxruntime_it_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    onnx.save(OTHERS["cubic"][0](), tmp_path / "net.onnx")
    (note,) = load_checkpoint(tmp_path / "net.onnx", data="digits").notes
    assert (
        'not compared with onnxruntime\'s (onnxruntime is not installed; `pip install "robgib[onnx]"` adds it)' in note
    )
    assert "cubic coefficient" in note


def _branch():
    return onnx.helper.make_graph(
        [node("Identity", ["f"], "o")], "branch", [], [onnx.helper.make_tensor_value_info("o", 1, None)]
    )


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("kind", ["Hardmax", "RandomNormalLike", "If"])
def test_an_operator_that_no_opset_helps(kind, opset, tmp_path):
    """An older opset was named."""
    branches = {"then_branch": _branch(), "else_branch": _branch()} if kind == "If" else {}
    nodes = [node("Flatten", ["x"], "f"), node(kind, ["yes" if branches else "f"], "y", **branches)]
    onnx.save(model(nodes, {"yes": np.array(True)}, opset=opset), tmp_path / "net.onnx")
    with pytest.raises(RobGIBError, match=f"uses '{kind}', which onnx2torch cannot convert in any opset") as found:
        read_checkpoint(tmp_path / "net.onnx")
    assert "or older" not in str(found.value)


@pytest.mark.parametrize(("kind", "opset"), [("Gelu", 20), ("ReduceMean", 18)])
def test_the_hint_of_an_older_opset_where_there_is_one(kind, opset, tmp_path, monkeypatch):
    """Gelu is written as several operators in an older file; ReduceMean is known in older versions."""
    converter = importlib.import_module("onnx.version_converter")

    def fails(*given):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(converter, "convert_version", fails)
    onnx.save(model([node("Flatten", ["x"], "f"), node(kind, ["f"], "y")], {}, opset=opset), tmp_path / "net.onnx")
    with pytest.raises(RobGIBError, match=r"cannot convert .*; export it with opset 13 or older"):
        read_checkpoint(tmp_path / "net.onnx")


def test_layers_of_the_same_weights(tmp_path):
    """torch's exporter writes them once, and the others as Identities of it."""
    kernel, bias = np.ones((1, 1, 1, 1), np.float32), np.array([0.25], np.float32)
    nodes = [
        node("Identity", ["b"], "same"),
        node("Conv", ["x", "k", "b"], "c1"),
        node("Conv", ["c1", "k", "same"], "c2"),
        node("Flatten", ["c2"], "f"),
        node("MatMul", ["f", "W"], "y"),
    ]
    onnx.save(model(nodes, {"k": kernel, "b": bias, "W": weights()}), tmp_path / "net.onnx")
    x = torch.rand(3, 1, 8, 8)
    network = read_checkpoint(tmp_path / "net.onnx").network
    assert torch.allclose(network(x), (x + 0.5).flatten(1) @ torch.from_numpy(weights()), atol=1e-5)
