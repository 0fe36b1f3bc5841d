"""Strangers' files that hold a network whole: read without unpickling, attacked like any other."""

import importlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

from robgib import RobGIBError, evaluate
from robgib._torchvision import load_torchvision
from robgib.information.activations import default_layers, layer_shapes
from robgib.models import build, read_checkpoint
from robgib.models.programs import _is_expression
from robgib.zoo.loading import load_checkpoint, load_robustbench

torchvision = load_torchvision()


def network_in(path):
    return read_checkpoint(path).network


def opened(*arguments, **options):
    found = load_checkpoint(*arguments, **options)
    return found.model, found.data


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("cnn", (1, 8, 8), 10, {"widths": [4, 8], "hidden": 8}).eval()


def save_torchscript(model, path):
    torch.jit.save(torch.jit.trace(model, torch.rand(2, 1, 8, 8)), str(path))


def save_exported(model, path, batch=None):
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if batch is None else None
    torch.export.save(torch.export.export(model, (torch.rand(batch or 3, 1, 8, 8),), dynamic_shapes=shapes), str(path))


def save_onnx(model, path, opset=13):
    pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    torch.onnx.export(
        model,
        (torch.rand(2, 1, 8, 8),),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )


KINDS = {
    "net.ts": save_torchscript,
    "net.pt": save_torchscript,
    "net.pt2": save_exported,
    "net.onnx": save_onnx,
    "newer.onnx": lambda model, path: save_onnx(model, path, 19),
}


def measured(model, data):
    return evaluate(
        model, data, attacks=["pgd-linf:steps=5"], estimators=["gaussian"], layers=["logits"], features="patches:2",
        samples=60, information_samples=200, signs=False, curve=False, corruptions=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(network, digits):
    return measured(network, digits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_the_same_function_and_attacked_alike(name, network, expected, tmp_path):
    path = tmp_path / name
    KINDS[name](network, path)
    model, data = opened(path, data="digits")
    x = data.test.x[:50].clone().requires_grad_(True)
    ours = data.test.x[:50].clone().requires_grad_(True)
    assert torch.allclose(model(x), network(ours), atol=1e-5)
    for images, net in ((x, model), (ours, network)):
        net(images).square().sum().backward()
    assert torch.allclose(x.grad, ours.grad, atol=1e-5)
    found = measured(model, data)
    assert found.robustness["robust"].tolist() == expected.robustness["robust"].tolist()
    logits = [r.layers.query("layer == 'logits'")["value"].tolist() for r in (found, expected)]
    assert logits[0] == pytest.approx(logits[1], abs=0.02)


@pytest.mark.filterwarnings("ignore")
def test_layers_by_the_names_that_they_had(network, tmp_path):
    save_exported(network, tmp_path / "net.pt2")
    model = network_in(tmp_path / "net.pt2")
    example = torch.rand(2, 1, 8, 8)
    assert default_layers(model, example) == default_layers(network, example)
    assert layer_shapes(model, example)["blocks.0"] == (4, 4, 4)


@pytest.mark.filterwarnings("ignore")
def test_layers_where_torch_names_no_former_classes(network, tmp_path, monkeypatch):
    """As torch 2.6, whose unflattened modules have no ``type_name``."""
    save_exported(network, tmp_path / "net.pt2")
    for kind in importlib.import_module("torch.export.unflatten").InterpreterModule.__mro__:
        if "type_name" in vars(kind):
            monkeypatch.delattr(kind, "type_name")
    model = network_in(tmp_path / "net.pt2")
    example = torch.rand(2, 1, 8, 8)
    assert default_layers(model, example) == default_layers(network, example)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_shows_its_logits_alone(network, tmp_path, digits):
    save_torchscript(network, tmp_path / "net.ts")
    model = network_in(tmp_path / "net.ts")
    assert default_layers(model, torch.rand(2, 1, 8, 8)) == ("logits",)
    with pytest.raises(RobGIBError, match=r"'net.blocks' is inside a TorchScript file"):
        evaluate(model, digits, attacks=[], layers=["net.blocks"], information_samples=100)


@pytest.mark.filterwarnings("ignore")
def test_a_fixed_batch_size_is_told(network, tmp_path):
    save_exported(network, tmp_path / "net.pt2", batch=2)
    with pytest.raises(RobGIBError, match=r"does not take 3 images .* export it with a dynamic batch dimension"):
        load_checkpoint(tmp_path / "net.pt2", data="digits")


@pytest.mark.filterwarnings("ignore")
def test_a_network_for_other_images(tmp_path):
    other = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 64)), nn.Linear(64, 10), nn.Flatten(0))
    save_torchscript(other, tmp_path / "net.ts")
    with pytest.raises(RobGIBError, match=r"returns \(20,\) for 2 images; a classifier returns logits"):
        load_checkpoint(tmp_path / "net.ts", data="digits")


_INPUTS = "(sample|example)_inputs"
"""In the names of the pickled inputs in an exported program, of newer and of older releases of torch."""


def program_in(archive):
    """The name of the description of an exported program, which differs between releases of torch."""
    (name,) = (n for n in archive.namelist() if n.endswith(("models/model.json", "exported_program.json")))
    return name


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.filterwarnings("ignore")
class TestPickles:
    def test_inside_an_exported_program(self, network, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_exported(network, "good.pt2")
        buffer = io.BytesIO()
        torch.save({"x": Evil()}, buffer)
        with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
            assert any(re.search(_INPUTS, name) for name in good.namelist())
            for name in good.namelist():
                bad.writestr(name, buffer.getvalue() if re.search(_INPUTS, name) else good.read(name))
        with pytest.raises(RobGIBError, match=r"unpickled|not a file that torch.export can read"):
            network_in(tmp_path / "bad.pt2")
        assert not (tmp_path / "hacked").exists()

    def test_whole_modules_only_where_allowed(self, network, tmp_path):
        torch.save(network, tmp_path / "net.pt")
        torch.save({"epoch": 3, "model": network}, tmp_path / "wrapped.pt")
        with pytest.raises(
            RobGIBError,
            match=r"pickled network of the class 'robgib.models.cnn.CNN'.*give --allow-pickle only if you trust",
        ):
            load_checkpoint(tmp_path / "net.pt", data="digits")
        x = torch.rand(3, 1, 8, 8)
        for name in ("net.pt", "wrapped.pt"):
            model, _ = opened(tmp_path / name, data="digits", allow_pickle=True)
            assert torch.equal(model(x), network(x))

    def test_a_malicious_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bad.pt").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(RobGIBError, match="unpickled"):
            network_in(tmp_path / "bad.pt")
        assert not (tmp_path / "hacked").exists()


RUN = '__import__(\\"os\\").mkdir(\\"hacked\\")'


@pytest.mark.filterwarnings("ignore")
class TestProgramsThatDoMore:
    """A program file is a network's computation: what would run code when it is read, or touch files, is refused."""

    @pytest.fixture(scope="class")
    def good(self, network, tmp_path_factory):
        path = tmp_path_factory.mktemp("exported") / "good.pt2"
        save_exported(network, path)
        return path

    @pytest.fixture
    def forged(self, good, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(good, "good.pt2")

        def forge(old="", new="", **files):
            with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
                described = program_in(good)
                for name in good.namelist():
                    content = good.read(name)
                    if name == described and old:
                        assert old in content.decode()
                        content = content.decode().replace(old, new).encode()
                    bad.writestr(name.replace("good/", "bad/"), content)
                for name, content in files.items():
                    bad.writestr(f"bad/data/{name.replace('__', '/')}", content)
            return tmp_path / "bad.pt2"

        return forge

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("'s", "'s0') or __import__('os').mkdir('hacked') or Symbol('s", "its expr_str"),
            ('"torch.ops.aten.relu.default"', '"torch.os.system"', "its target 'torch.os.system'"),
            *(
                ('"torch.ops.aten.relu.default"', f'"torch.ops.{name}"', "its target")
                for name in (
                    "aten.from_file.default",
                    "aten.save.default",
                    "aten._print.default",
                    "aten.set_.source_T",
                    "aten.warn.default",
                    "prims._make_token.default",
                    "c10d.send.default",
                    "aten.relu\u017f.x",
                )
            ),
            ('"name": "x"', f'"name": "x={RUN}"', "its name 'x="),
            ('"blocks.0.0.weight"', f'"blocks\\"+{RUN}+\\""', "its parameter_name"),
            ("builtins.dict", "collections.defaultdict", "its in_spec"),
        ],
    )
    def test_what_names_code(self, old, new, message, forged, tmp_path):
        path = forged(old, new)
        with pytest.raises(RobGIBError, match=f"bad.pt2 is refused, since reading it could run code: {message}"):
            network_in(path)
        assert not (tmp_path / "hacked").exists()

    def test_an_expression_that_is_python(self, forged, tmp_path):
        """What a size is made of, sympy evaluates as Python."""
        with zipfile.ZipFile("good.pt2") as good:
            text = good.read(program_in(good)).decode()
        symbol = json.loads("{" + text[text.index('"expr_str"') :].split(', "hint"')[0] + "}")["expr_str"]
        with pytest.raises(RobGIBError, match="its expr_str"):
            network_in(forged(symbol, RUN))
        assert not (tmp_path / "hacked").exists()

    def test_compiled_code(self, forged):
        with zipfile.ZipFile("good.pt2") as good:
            if not program_in(good).endswith("model.json"):
                pytest.skip("files of this release of torch hold no compiled code")
        path = forged(**{"aotinductor__model__a.so": b"\x7fELF", "aotinductor__model__a_metadata.json": b"{}"})
        with pytest.raises(RobGIBError, match="holds more than a program and its weights"):
            network_in(path)

    def test_code_that_would_check_sizes_is_left_out(self, forged, tmp_path):
        with zipfile.ZipFile("good.pt2") as good:
            if b'"guards_code"' not in good.read(program_in(good)):
                pytest.skip("files of this release of torch hold no guards")
        model = network_in(forged('"guards_code": []', f'"guards_code": ["{RUN}"]'))
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
        assert not (tmp_path / "hacked").exists()

    def test_expressions_of_sizes_are_taken(self):
        for sound in (
            "Symbol('s77', positive=True, integer=True)",
            "Mul(Integer(2), Symbol('s0', integer=True))",
            "2*s0 + 1",
            "FloorDiv(s0, 2) - (s1 + 3)",
            "Eq(Max(1, s0), 1)",
        ):
            assert _is_expression(sound), sound
        for bad in ("s0.__class__", "().x", "exec(s0)", "Symbol('a').name", "(lambda: 1)()", "Max(1)(2)", "s['a']"):
            assert not _is_expression(bad), bad

    @pytest.mark.parametrize(
        "line", ['getattr(torch, "save")(x, "written")', 't = torch\n    getattr(t, "\\163ave")(x, "written")']
    )
    def test_torchscript_that_hides_the_call(self, line, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.rand(2, 1, 8, 8)), "plain.ts")
        with zipfile.ZipFile("plain.ts") as plain, zipfile.ZipFile("net.ts", "w") as forged:
            for name in plain.namelist():
                held = plain.read(name)
                if name.endswith(".py"):
                    head, sign, body = held.decode().partition("-> Tensor:\n")
                    assert sign
                    given = head.rpartition("(self")[2].split(",")[1].split(":")[0].strip()
                    held = f"{head}{sign}    {line.replace('(x,', f'({given},')}\n{body}".encode()
                forged.writestr(name, held)
        with pytest.raises(RobGIBError, match=r"net.ts calls 'save', which is not part of a network"):
            network_in(tmp_path / "net.ts")
        assert not (tmp_path / "written").exists()

    def test_torchscript_that_runs_when_it_is_loaded(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "robgib_test_state.py").write_text(
            "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.w = torch.zeros(1)\n\n    def forward(self, x):\n        return x.flatten(1)\n\n"
            "    @torch.jit.export\n    def __getstate__(self):\n        return (self.w, self.training)\n\n"
            "    @torch.jit.export\n    def __setstate__(self, s: tuple[torch.Tensor, bool]):\n"
            "        self.w = s[0]\n        self.training = s[1]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        module = importlib.import_module("robgib_test_state")
        del sys.modules["robgib_test_state"]
        torch.jit.save(torch.jit.script(module.Net()), "net.ts")
        with pytest.raises(RobGIBError, match="runs code when it is loaded"):
            network_in(tmp_path / "net.ts")

    @pytest.mark.parametrize("call", ["torch.save(x, 'written')", "x = x + torch.from_file('written', True, 1)"])
    def test_torchscript_that_touches_files(self, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "robgib_test_writer.py").write_text(
            "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
            f"        {call}\n        return x.flatten(1)[:, :10]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        module = importlib.import_module("robgib_test_writer")
        del sys.modules["robgib_test_writer"]
        torch.jit.save(torch.jit.script(module.Net()), "net.ts")
        with pytest.raises(RobGIBError, match=r"net.ts calls '(save|from_file)', which is not part of a network"):
            network_in(tmp_path / "net.ts")
        assert not (tmp_path / "written").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_prints(tmp_path, capfd):
    class Net(nn.Module):
        def forward(self, x):
            torch.ops.aten._print("\x1b]0;owned\x07")
            return x.flatten(1)

    save_exported(Net(), tmp_path / "net.pt2")
    capfd.readouterr()
    with pytest.raises(RobGIBError, match=r"its target 'torch.ops.aten._print.default' .* give --allow-code"):
        network_in(tmp_path / "net.pt2")
    assert capfd.readouterr() == ("", "")
    assert read_checkpoint(tmp_path / "net.pt2", allow_code=True).network(torch.rand(2, 1, 8, 8)).shape == (2, 64)


@pytest.mark.parametrize("damage", ["cut", "text", "no operator"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_program_is_said_in_a_sentence_alone(damage, network, tmp_path, capfd, monkeypatch):
    save_exported(network, tmp_path / "net.pt2")
    whole = (tmp_path / "net.pt2").read_bytes()
    wrong = {
        "cut": whole[: len(whole) // 2],
        "text": b"text" * 99,
        "no operator": whole.replace(b'"nodes"', b'"n0des"'),
    }
    (tmp_path / "net.pt2").write_bytes(wrong[damage])
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logging.getLogger("torch.export"), "handlers", [handler])
    capfd.readouterr()
    with pytest.raises(RobGIBError, match=r"is not a file that torch\.export can read") as found:
        network_in(tmp_path / "net.pt2")
    assert "warnings above" not in str(found.value)
    assert not logged
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.ts", "not a whole TorchScript file"),
        ("net.pt2", "not a file that torch.export can read"),
        ("net.onnx", "not a whole ONNX file"),
        ("net.bin", "unpickled|not a readable PyTorch file"),
    ],
)
def test_damaged_files(name, message, tmp_path):
    if name.endswith("onnx"):
        pytest.importorskip("onnx2torch")
    (tmp_path / name).write_bytes(b"\x08\x07garbage" * 20)
    with pytest.raises(RobGIBError, match=message):
        network_in(tmp_path / name)
    with pytest.raises(RobGIBError, match="does not exist"):
        network_in(tmp_path / f"no-{name}")


def test_onnx_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(RobGIBError, match=r'pip install "robgib\[onnx\]"'):
        network_in(tmp_path / "net.onnx")


class TestRobustBench:
    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "robustbench", None)
        with pytest.raises(RobGIBError, match="robustbench is not installed"):
            load_robustbench("cifar10/Linf/Standard", None)
        with pytest.raises(RobGIBError, match="must be robustbench:DATASET/THREAT/NAME"):
            load_robustbench("Standard", None)

    def test_with_one_that_answers(self, monkeypatch, digits):
        asked = {}

        def load_model(**arguments):
            asked.update(arguments)
            return build("mlp", (1, 8, 8), 10, {"hidden": [4]})

        module = types.ModuleType("robustbench.utils")
        module.load_model = load_model
        monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
        monkeypatch.setitem(sys.modules, "robustbench.utils", module)
        monkeypatch.setattr("robgib.zoo.loading.load_data", lambda name, root: digits)
        model, data = load_robustbench("cifar10/Linf/Standard", None)
        assert asked["model_name"] == "Standard"
        assert (asked["dataset"], asked["threat_model"]) == ("cifar10", "Linf")
        assert data is digits
        assert not model.training
