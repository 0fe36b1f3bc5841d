"""TorchScript files: nothing of a file's runs before it is looked at, and what it calls computes and does no more."""

import importlib
import re
import subprocess
import sys
import zipfile

import pytest
import torch

from robgib import RobGIBError
from robgib.models import read_checkpoint
from robgib.models.operators import operators
from robgib.zoo.loading import load_checkpoint

HEAD = "import torch, warnings\nfrom enum import Enum\nfrom typing import Tuple\n\n\nclass Net(torch.nn.Module):\n"
PLAIN = "    def forward(self, x):\n        return x.flatten(1)[:, :10]\n"


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Compiles the methods of a network, and gives the file; its code is replaced where asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(methods, replaced=(), renamed=lambda name: name, more=()):
        (tmp_path / "robgib_test_net.py").write_text(HEAD + methods)
        importlib.invalidate_caches()
        module = importlib.import_module("robgib_test_net")
        torch.jit.save(torch.jit.script(module.Net()), "plain.ts")
        del sys.modules["robgib_test_net"]
        with zipfile.ZipFile("plain.ts") as plain, zipfile.ZipFile("net.ts", "w") as forged:
            for name in plain.namelist():
                held = plain.read(name)
                for old, new in replaced if name.endswith((".py", ".pkl")) else ():
                    held = held.replace(old, new)
                if not name.endswith("debug_pkl"):  # which only shows where in the source a line was
                    forged.writestr(renamed(name), held)
            for name, held in more:
                forged.writestr(f"plain/{name}", held)
        return tmp_path / "net.ts"

    return make


def refused(path, what):
    with pytest.raises(RobGIBError, match=what) as found:
        read_checkpoint(path)
    assert "\n" not in str(found.value)
    assert not (path.parent / "written").exists()


STATE = (
    "    def __init__(self):\n        super().__init__()\n        self.w = torch.zeros(1)\n"
    "    @torch.jit.export\n    def __getstate__(self):\n        return (self.w, self.training)\n"
    "    @torch.jit.export\n    def __setstate__(self, s: Tuple[torch.Tensor, bool]):\n"
    "        torch.save(s[0], 'written')\n        self.w = s[0]\n        self.training = s[1]\n"
)


ENUM = (
    "    def __init__(self):\n        super().__init__()\n        self.kind = Kind.WIDE\n"
    "    def forward(self, x):\n        x = x.flatten(1)\n"
    "        if self.kind == Kind.WIDE:\n            return x[:, :10]\n        return x[:, :5]\n"
)
KINDS = "\n\nclass Kind(Enum):\n    WIDE = {}\n    THIN = {}\n"


@pytest.mark.parametrize(("kind", "values"), [("Whole", (1, 2)), ("Word", ("'a'", "'b'")), ("Share", (0.5, -1.5))])
def test_an_enum_is_read(kind, values, scripted):
    """It was refused as a damaged file."""
    path = scripted((ENUM + KINDS.format(*values)).replace("Kind", kind))  # torch keeps classes by name
    assert read_checkpoint(path).network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_value_of_an_enum_runs_nothing(scripted):
    path = scripted(ENUM + KINDS.format(1, 2), [(b"WIDE = 1", b'WIDE = torch.sum(torch.zeros([9], "written"))')])
    refused(path, "runs code when it is compiled")


@pytest.mark.parametrize("folder", ["Code", "CODE", "cODE"])
def test_code_under_a_name_of_another_case(folder, scripted):
    refused(
        scripted(STATE + PLAIN, renamed=lambda name: name.replace("/code/", f"/{folder}/")),
        f"holds the record '{folder}/",
    )


def test_one_name_in_two_cases(scripted):
    refused(scripted(PLAIN, more=[("Code/__torch__.py", b"")]), "several records of one name|holds the record 'Code")


def test_what_runs_at_loading(scripted):
    refused(scripted(STATE + PLAIN), "runs code when it is loaded")


@pytest.mark.parametrize(
    "record", ["model.json", "attributes.pkl", "libs/a.py", "tensors/0", "code/a.so", "code/../b.py"]
)
def test_records_of_other_readers(record, scripted):
    """torch reads a file with a model.json by an older reader, which looks elsewhere."""
    refused(scripted(PLAIN, more=[(record, b"{}")]), f"holds the record '{re.escape(record)}'")


def test_the_default_of_an_argument(scripted):
    """Such an expression is run when the code is compiled."""
    value = b'x: Tensor, n: NoneType=torch.save([1], "written")) -> Tensor'
    refused(scripted(PLAIN, [(b"x: Tensor) -> Tensor", value)]), "runs code when it is compiled|calls 'save'")
    value = b"x: Tensor, n: Tensor=torch.sum(torch.zeros([1000]))) -> Tensor"
    refused(scripted(PLAIN, [(b"x: Tensor) -> Tensor", value)]), "runs code when it is compiled")


def test_a_constant_of_a_class(scripted):
    value = b"training : bool\n  n : Final[Tensor] = torch.sum(torch.zeros([1000]))\n"
    refused(scripted(PLAIN, [(b"training : bool\n", value)]), "runs code when it is compiled")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("torch.save(x, 'written')", "save"),
        ("x = x + torch.from_file('written', True, 1)", "from_file"),
        ("torch.manual_seed(0)", "manual_seed"),
        ("torch.set_grad_enabled(False)", "set_grad_enabled"),
        ("x = torch.jit.wait(torch.jit.fork(torch.relu, x))", "(fork|wait)"),
    ],
)
def test_what_does_more_than_compute(line, named, scripted):
    path = scripted(f"    def forward(self, x):\n        {line}\n        return x.flatten(1)[:, :10]\n")
    refused(path, f"calls '{named}', which is not part of a network's computation; .* give --allow-code")


@pytest.mark.parametrize(
    "call",
    [
        b'getattr(torch, "sa" "ve")(x, "written")',
        b'getattr(torch, "\\163ave")(x, "written")',
        b't = torch\n    t.save(x, "written")',
        b'x.save("written")',
        b'o = ops\n    o.image.write_file("written", x)',
        b"ops.aten.set_(x, x)",
        b"x.resize_([100000])",
        b"a = __torch__.torch.classes.quantized.LinearPackedParamsBase\n    a.__setstate__((x, None))",
    ],
)
def test_names_that_are_hidden(call, scripted):
    path = scripted(PLAIN, [(b"-> Tensor:\n", b"-> Tensor:\n    " + call + b"\n")])
    refused(path, "calls '(save|write_file|set_|resize_|classes|image)'|not a whole TorchScript file")


@pytest.mark.parametrize("code", [b"# torch\n", b"\x0c", b"\r", "é".encode()])
def test_code_that_could_be_read_in_two_ways(code, scripted):
    refused(scripted(PLAIN, [(b"-> Tensor:\n", b"-> Tensor:\n    " + code)]), "code that is not as torch writes it")


WEIGHTS = (
    "    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Parameter(torch.zeros(64, 10))\n"
    "    def forward(self, x):\n        return x.flatten(1) @ self.w\n"
)


@pytest.mark.parametrize("size", [b"KA", b"K\xff"])
def test_a_tensor_beyond_its_numbers(size, scripted):
    """torch's reader makes a tensor of memory that is not the file's."""
    scripted(WEIGHTS)
    refused(scripted(WEIGHTS, [(b"K@K\n", size + b"K\n")]), "a tensor reaches beyond its numbers")


def test_an_object_of_another_class(scripted):
    named = b"__torch__.torch.classes.quantized.Conv2dPackedParamsBase"
    pickled = b"\x80\x02c__torch__.torch.classes.quantized\nConv2dPackedParamsBase\n."
    assert named.count(b".") == 4
    path = scripted(PLAIN, renamed=lambda name: name.replace("data.pkl", "extra/none"), more=[("data.pkl", pickled)])
    refused(path, "holds an object of the class '__torch__.torch.classes.quantized.Conv2dPackedParamsBase'")


def test_an_archive_that_two_readers_see_differently(scripted, monkeypatch):
    """What torch takes for TorchScript is read as such: the reader of weights would hand it on to torch.jit.load."""
    path = scripted("    def forward(self, x):\n        torch.save(x, 'written')\n        return x.flatten(1)\n")
    monkeypatch.setattr(zipfile.ZipFile, "namelist", lambda self: ["net/data.pkl"])
    refused(path.rename(path.with_suffix(".pt")), "calls 'save'")


def test_whoever_trusts_it_may_read_it(scripted):
    lines = "        torch.manual_seed(0)\n        return x.flatten(1)[:, :10] + torch.rand(10)\n"
    path = scripted("    def forward(self, x):\n" + lines)
    with pytest.raises(RobGIBError, match="--allow-code"):
        load_checkpoint(path, data="digits")
    model = load_checkpoint(path, data="digits", allow_code=True).model
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), model(x))


PRINTS = (
    "    def forward(self, x):\n        print('\\x1b]0;owned\\x07', x.shape)\n        for i in range(2):\n"
    "            if x.sum() > -1:\n                print(i)\n                warnings.warn('\\x1b[31mred')\n"
    "        return x.flatten(1)[:, :10] * self.scale(x)\n"
    "    def scale(self, x):\n        print('inside')\n        return x.dim()\n"
)


def test_nothing_is_printed(scripted, capfd, recwarn):
    """A file's text could steer the terminal, or stand in the JSON that a script reads."""
    path = scripted(PRINTS)
    recwarn.clear()  # of torch, which gives TorchScript up
    model = read_checkpoint(path).network
    x = torch.rand(2, 1, 8, 8)
    for _ in range(3):  # the first calls are of code that is not yet fused
        assert torch.equal(model(x), 4 * x.flatten(1)[:, :10])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_the_text_of_an_error_is_made_visible(scripted):
    path = scripted(PLAIN, [(b"-> Tensor:\n", b"-> Tensor:\n    x = 1 +\n")])
    refused(path, "not as torch writes it|not a whole TorchScript file")
    lines = "        assert x.dim() == 1, '\\x1b[31m red'\n        return x.flatten(1)\n"
    with pytest.raises(RobGIBError, match="does not take 2 images"):
        load_checkpoint(scripted("    def forward(self, x):\n" + lines), data="digits")


def test_ordinary_code_is_read(scripted):
    lines = (
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)])\n"
        "        self.register_buffer('indices', torch.arange(10))\n        self.name = 'net'\n"
        "    def forward(self, x):\n        found = {'x': x}\n        for layer in self.layers:\n"
        "            found['x'] = layer(found['x'])\n        parts = [found['x'].relu()]\n"
        "        parts.append(torch.nn.functional.interpolate(parts[0], scale_factor=2.0, mode='bilinear'))\n"
        "        values, indices = torch.topk(parts[-1].flatten(1), 10)\n"
        "        assert values.dim() == 2, 'save the {} of {}'.format(self.name, x.shape)\n"
        "        return torch.nn.functional.softmax(values) + values[:, self.indices]\n"
    )
    model = read_checkpoint(scripted(lines)).network
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_list_of_operators_holds_none_that_does_more():
    every = torch._C._jit_get_all_schemas()
    for space in ("aten", "prim", "prims"):
        allowed = operators(space)
        known = {s.name.partition("::")[2] for s in every if s.name.startswith(f"{space}::")}
        assert len(allowed & known) >= 40  # of other versions a few more
    for schema in every:
        space, _, name = schema.name.partition("::")
        if name in operators(space):
            assert not any(a.name in ("filename", "file", "storage") for a in schema.arguments), schema
    for name in ("save", "from_file", "_print", "warn", "manual_seed", "set_num_threads", "set_", "resize_", "wait"):
        assert name not in operators("aten")
    for name in ("Print", "PythonOp", "IgnoredPythonOp", "fork", "rpc_async", "awaitable"):
        assert name not in operators("prim")
    assert operators("image") == operators("c10d") == operators("quantized") == frozenset()


@pytest.mark.slow
def test_json_is_json_beside_a_file_that_prints(scripted):
    path = scripted(PRINTS)
    options = "--data digits --attack fgsm-linf --no-information --samples 20 --no-curve --no-signs --json --quiet"
    command = [sys.executable, "-m", "robgib", "evaluate", str(path), *options.split(), "--no-corruptions"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith(("{", "["))
    assert "owned" not in done.stdout + done.stderr
