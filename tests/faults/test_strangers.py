"""Models and plug-ins that raise, or would end the program, wherever they do: one sentence, and never exit code 0."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, evaluate
from robgib.attacks import PGD, Attack, DeepFool
from robgib.cli.common import Console
from robgib.information import layer_information
from robgib.information.gaussian import Gaussian
from robgib.robustness import failure_indicators
from robgib.robustness.corruptions import corruption_accuracy
from robgib.robustness.run_attack import run_attack


class Cancelled(BaseException):
    """No Exception, as asyncio's."""


class Loud(Exception):
    """Fails at its own words."""

    def __str__(self):
        raise ValueError("no words")


ERRORS = (
    Loud(),
    SystemExit(0), SystemExit(), Cancelled(), GeneratorExit(), ValueError("two\nlines"), KeyError(), AssertionError(),
    RecursionError("deep"), StopIteration(), OSError(28, "No space left on device"), ZeroDivisionError("by 0"),
)  # fmt: skip


class Raising(nn.Module):
    """Answers as another network, up to a call."""

    def __init__(self, net, last, error):
        super().__init__()
        self.net, self.calls, self.last, self.error = net, 0, last, error

    def forward(self, x):
        self.calls += 1
        if self.calls > self.last:
            raise self.error
        return self.net(x)


class _Backward(torch.autograd.Function):
    error: BaseException

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise _Backward.error


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(), nn.ReLU(), nn.Linear(20, 10)).eval()


@pytest.fixture
def images(digits):
    return digits.test.x[:20], digits.test.y[:20]


def one_sentence(error):
    told = str(error)
    assert "\n" not in told
    assert told.endswith(".")
    return told


OPTIONS = {"samples": 20, "information_samples": 40, "device": "cpu", "progress": False, "seed": 0}


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_model_that_raises_at_a_call_is_one_sentence(error, net, images, digits):
    stages = (
        lambda model: PGD("linf", 0.1, steps=3)(model, *images),
        lambda model: run_attack(model, *images, PGD("linf", 0.1, steps=3)),
        lambda model: run_attack(model, *images, DeepFool("l2", 0.5)),
        lambda model: evaluate(model, digits, attacks=["fgsm-linf"], estimators=["gaussian"], **OPTIONS),
        lambda model: layer_information(model, digits, ["gaussian"], samples=40),
    )
    for last in (0, 2):
        for stage in stages:
            with pytest.raises(RobGIBError, match="model") as raised:
                stage(Raising(net, last, error))
            one_sentence(raised.value)


def test_a_backward_pass_that_raises_is_one_sentence(net, images, monkeypatch):
    for error in (ValueError("no way back"), SystemExit(0)):
        monkeypatch.setattr(_Backward, "error", error, raising=False)
        with pytest.raises(RobGIBError, match="the model's backward pass"):
            run_attack(lambda x: net(_Backward.apply(x)), *images, PGD("linf", 0.1, steps=3))


def calls_of(model, digits, **options):
    """How often an evaluation calls a model."""
    counted = Raising(model, 10**9, None)
    evaluate(counted, digits, **options)
    return counted.calls


def outcome(model, digits, options):
    """What an evaluation says of what went wrong: its error, or the tables that tell of an attack or a check."""
    try:
        run = evaluate(model, digits, **options)
    except RobGIBError as error:
        return [one_sentence(error)]
    failed = run.robustness[run.robustness["status"] != "ok"]["reason"].tolist()
    ended = run.signs[run.signs["name"] == "checks did not finish"]["detail"].tolist()
    # What watches attacks step by step is beside the figures: attacks that it cannot watch are left out.
    left_out = [] if run.convergence["attack"].nunique() == 2 else ["a model that was not watched"]
    return [*failed, *ended, *left_out]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_call_raises_is_said(seed, net, digits):
    """From the first call to the last: attacks, layers, corruptions, signs, curves."""
    options = {"attacks": ["pgd-linf:eps=0.1,steps=3", "fgsm-l2:eps=0.5"], "estimators": ["gaussian"], **OPTIONS}
    calls = calls_of(net, digits, **options)
    rng = random.Random(seed)
    for last in rng.sample(range(calls), 25):
        error = rng.choice(ERRORS)
        said = outcome(Raising(net, last, error), digits, options)
        assert any("model" in told for told in said), (last, error, said)


@dataclass(frozen=True)
class Ends(Attack):
    """Ends the program."""

    def perturb(self, model, x, y, rng):
        raise SystemExit(0)


@dataclass(frozen=True)
class EndsEstimating(Gaussian):
    """Likewise."""

    name = "ends"

    def of_network(self, *arguments):
        sys.exit()


class EndsReading(torch.utils.data.Dataset):
    """Likewise."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        raise SystemExit(0)


def test_plug_ins_and_data_do_not_end_the_program(net, images, digits):
    with pytest.raises(RobGIBError, match=r"attack 'Ends' would end the program \(SystemExit\)"):
        Ends("linf", 0.1)(net, *images)
    with pytest.raises(RobGIBError, match="attack 'mine' would end the program"):
        run_attack(net, *images, Ends("linf", 0.1), label="mine")
    with pytest.raises(RobGIBError, match="every attack failed; the first: attack 'ends' would end the program"):
        evaluate(net, digits, attacks=[Ends("linf", 0.1)], estimators=[], **OPTIONS)
    with pytest.raises(RobGIBError, match=r"estimator 'ends', .* would end the program"):
        evaluate(net, digits, attacks=[], estimators=[EndsEstimating()], **OPTIONS)
    with pytest.raises(RobGIBError, match=r"would end the program"):
        evaluate(net, EndsReading(), attacks=["fgsm-linf:eps=0.1"], estimators=[], **OPTIONS)
    for stage in (
        lambda model: failure_indicators(model, *images, PGD("linf", 0.1).threat),
        lambda model: corruption_accuracy(model, *images),
    ):
        with pytest.raises(RobGIBError, match="the model"):
            stage(Raising(net, 1, SystemExit(0)))


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > {last}:
            raise {error}
        return self.net(x)

def make():
    return Net()
"""


@pytest.mark.parametrize(
    ("last", "error"), [(4, "SystemExit(0)"), (40, "SystemExit"), (9, "KeyboardInterrupt"), (7, "GeneratorExit")]
)
def test_a_gate_never_passes_since_a_model_ends_the_program(last, error, cli, tmp_path, monkeypatch):
    """`--fail-under 99%` ended with exit code 0, and nothing printed."""
    name = f"ends_{last}"
    (tmp_path / f"{name}.py").write_text(NET.format(last=last, error=error))
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)  # how many calls an attack takes depends on the weights
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "net.pt")
    state = {f"net.{k}": v for k, v in torch.load(tmp_path / "net.pt").items()}
    torch.save(state, tmp_path / "net.pt")
    done = cli(
        "evaluate", "net.pt", "--arch", f"{name}:make", "--data", "digits", "--quick", "--fail-under", "99%",
        "--samples", "20", "--no-information", "--quiet", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert error.removesuffix("(0)") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plug_in_that_ends_the_program_is_said_by_every_command(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ends.py").write_text(
        "from dataclasses import dataclass\nfrom robgib import Attack\n\n@dataclass(frozen=True)\n"
        "class Leaving(Attack):\n    def perturb(self, model, x, y, rng):\n        raise SystemExit(0)\n"
    )
    done = cli("attacks", "check", "leaving:eps=0.1", "--catalogue", "mine")
    assert done.returncode != 0
    assert "SystemExit" in done.stdout + done.stderr
    done = cli(
        "evaluate", "digits-cnn", "--attack", "leaving:eps=0.1", "--catalogue", "mine", "--samples", "20",
        "--no-information", "--fail-under", "0%", "--quiet", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 2
    assert "would end the program (SystemExit)" in done.stderr


def test_numpy_images_are_attacked_and_what_is_no_image_is_said(net, images):
    x, y = images
    attack = PGD("linf", 0.1, steps=2)
    whole = attack(net, x, y)
    assert torch.equal(attack(net, x.numpy(), y.numpy()), whole)
    assert torch.equal(attack(net, x.double().numpy(), y.numpy().astype(np.int32)), whole)
    assert torch.equal(attack(lambda v: net(v), x, y), whole)
    deep = net
    for _ in range(400):
        deep = nn.Sequential(deep)
    nested: list = [0.0]
    for _ in range(400):
        nested = [nested]
    for words, model, pictures, labels in (
        ("images must be a dense tensor", net, x.to_sparse(), y),
        ("images must be a dense tensor", net, x.to("meta"), y),
        ("labels must be a dense tensor", net, x, y.to("meta")),
        ("images must be floating-point numbers", net, (x * 255).to(torch.uint8), y),
        ("images must be an array of numbers", net, nested, y),
        ("images must be an array of numbers", net, None, y),
        ("label 10 is none of the model's 10 classes", net, x, torch.full_like(y, 10)),
        ("label -3 is no class number", net, x, y - y - 3),
        ("labels must be class numbers", net, x, y.float()),
        ("labels must be class numbers", net, x, torch.eye(10)[y]),
        ("20 images came with 19 labels", net, x, y[:19]),
        ("nests or calls itself too deeply", deep, x, y),
        ("must be a torch.nn.Module or a function", "net", x, y),
    ):
        with pytest.raises(RobGIBError, match=words) as raised:
            attack(model, pictures, labels)
        one_sentence(raised.value)
    with pytest.raises(RobGIBError, match="images must be a dense tensor"):
        run_attack(net, x.to_sparse(), y, attack)
    assert np.array_equal(run_attack(net, x.numpy(), y.numpy(), attack).right, run_attack(net, x, y, attack).right)


def test_a_path_begins_at_home(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    options = ("--attack", "fgsm-linf", "--samples", "10", "--no-information", "--no-signs", "--no-corruptions")
    done = cli("evaluate", "digits-cnn", *options, "--no-curve", "--quiet", "--device", "cpu", "--out=~/x")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "home" / "x").iterdir()
    assert not (tmp_path / "~").exists()
    assert cli("report", f"~/x/{folder.name}", "--out=~/page.html").returncode == 0
    assert (tmp_path / "home" / "page.html").is_file()
    told = cli("evaluate", "digits-cnn", "--data=folder:~/nowhere", "--quick").stderr
    assert str(tmp_path / "home" / "nowhere") in told


@pytest.mark.parametrize("columns", ["0", "1", "0007", "39"])
def test_a_console_is_never_too_narrow_to_show_anything(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for narrow in (Console(), Console(width=int(columns))):
        narrow.print("a line that is seen")
        assert "a line that is seen" in capsys.readouterr().out


def test_output_shows_without_a_width_of_the_terminal(process, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    done = process("--help")
    assert done.returncode == 0
    assert "evaluate" in done.stdout


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from robgib.cli import main; sys.argv = ['robgib']; main()"
    paths = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: the working folder no longer exists; change to another folder.\n"


STAGES = ("import", "make", "call", "backward", "copy", "eval", "parameters")
FAULTS = (
    "raise SystemExit(0)", "raise SystemExit", "sys.exit('bye')", "raise KeyboardInterrupt", "raise ValueError('a;b')",
    "raise Gone()", "1 / 0", "raise RecursionError", "raise MemoryError", "raise OSError(2, 'gone')", "assert False",
    "raise StopIteration", "raise UnicodeDecodeError('utf-8', b'', 0, 1, 'no')", "raise torch.OutOfMemoryError('all')",
    "raise Loud()",
)  # fmt: skip
WRONG = ("None", "x", "'text'", "logits[:-1]", "logits.sum()", "logits[0]", "logits.long()", "[logits, 3][1]", "{}")
MISBEHAVING = """
import sys
import torch
from torch import nn

class Gone(BaseException):
    pass

class Loud(Exception):
    def __str__(self):
        raise ValueError('no words')

CALLS = 0

def maybe(stage):
    global CALLS
    CALLS += stage == 'call'
    if stage == {stage!r} and CALLS >= {last}:
        {fault}

class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        maybe('backward')
        return gradient

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        maybe('make')
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))

    def forward(self, x):
        maybe('call')
        logits = self.net(Back.apply(x))
        return {answer} if CALLS >= {last} else logits

    def __deepcopy__(self, memo):
        maybe('copy')
        raise TypeError('cannot be copied')

    def train(self, mode=True):
        maybe('eval')
        return super().train(mode)

    def parameters(self, recurse=True):
        maybe('parameters')
        return super().parameters(recurse)

maybe('import')
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_misbehaving_architecture_is_one_sentence(seed, cli, tmp_path, monkeypatch):
    """Whatever it does, wherever: a sentence and exit code 2, or figures; never a traceback, never a gate passed."""
    rng = random.Random(seed)
    stage = rng.choice(STAGES)
    fault = rng.choice(FAULTS)
    last = rng.choice((0, 1, 3, 20, 60, 200, 500)) if stage in ("call", "backward", "eval", "parameters") else 0
    answer = "logits"
    if seed % 4 == 0:
        stage, answer, last = "none", rng.choice(WRONG), rng.choice((1, 3, 20, 60))
    name = f"misbehaves_{seed}"
    (tmp_path / f"{name}.py").write_text(MISBEHAVING.format(stage=stage, fault=fault, last=last, answer=answer))
    monkeypatch.syspath_prepend(str(tmp_path))
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    torch.save({f"net.{k}": v for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    done = cli(
        "evaluate", "net.pt", "--arch", f"{name}:Net", "--data", "digits", "--quick", "--fail-under", "100%",
        "--samples", "20", "--information-samples", "40", "--estimator", "gaussian", "--quiet", "--device", "cpu",
    )  # fmt: skip
    what = (stage, fault, last, answer, done.stderr)
    assert done.returncode in (1, 2), what
    assert "Traceback" not in done.stderr, what
    if done.returncode == 2:
        assert done.stderr.count("error: ") == 1, what


PLUGIN = """
import sys
import numpy as np
import torch
from dataclasses import dataclass
from typing import ClassVar
from robgib import Attack
from robgib.information.gaussian import Gaussian

class Gone(BaseException):
    pass

class Loud(Exception):
    def __str__(self):
        raise ValueError('no words')

def fault():
    {fault}

@dataclass(frozen=True)
class Mine{seed}(Attack):
    pooled: ClassVar[bool] = {pooled}

    def perturb(self, model, x, y, rng):
        {attack}
        return x

@dataclass(frozen=True)
class Guess{seed}(Gaussian):
    name: ClassVar[str] = "guess-{seed}"

    def prepare(self, features, fit_features):
        {prepare}
        return super().prepare(features, fit_features)

    def of_network(self, *arguments):
        {estimate}
        return super().of_network(*arguments)
"""
RETURNED = ("return None", "return x.numpy()", "return x[:-1]", "return x * 9", "return x * float('nan')", "return y")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_misbehaving_plug_in_is_one_sentence(seed, cli, tmp_path):
    rng = random.Random(seed)
    parts = dict.fromkeys(("attack", "prepare", "estimate"), "pass")
    part = rng.choice(list(parts))
    parts[part] = "fault()"
    if seed % 5 == 0:
        parts, part = {**dict.fromkeys(parts, "pass"), "attack": rng.choice(RETURNED)}, "attack"
    (tmp_path / "mine").mkdir()
    text = PLUGIN.format(fault=rng.choice(FAULTS), seed=seed, pooled=bool(seed % 2), **parts)
    (tmp_path / "mine" / "plug.py").write_text(text)
    done = cli(
        "evaluate", "digits-cnn", "--catalogue", "mine", "--attack", f"mine{seed}:eps=0.1", "--estimator",
        f"guess-{seed}", "--samples", "20", "--information-samples", "40", "--no-corruptions", "--fail-under", "0%",
        "--quiet", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 2, (text, done.stderr)
    assert "Traceback" not in done.stderr, (text, done.stderr)
    assert done.stderr.count("error: ") == 1, (text, done.stderr)
    done = cli("attacks", "check", f"mine{seed}:eps=0.1", "--catalogue", "mine")
    assert done.returncode == (part == "attack") or done.returncode == 2, (text, done.stderr)
