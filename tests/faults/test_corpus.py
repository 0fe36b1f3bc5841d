# ruff: noqa: E501
"""Hundreds of wrong inputs, made by changing one thing of a right one: each is used, or refused in one sentence.

Options, recipes, attacks and estimators by name, records, run folders, plug-ins, and calls in Python; all run in this
process, in bounded time and memory. Damaged checkpoints, data and pictures are in ``test_bad_input``.
"""

import copy
import datetime
import io
import json
import resource
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import robgib
from robgib.errors import RobGIBError, visible
from robgib.results import load_run, save_run
from robgib.zoo.loading import data_of, load_checkpoint
from robgib.zoo.recipe import find_recipe, recipes
from tests.faults.test_pipes_and_aliases import in_time

EVERY = pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
"""By default one case of ten, so that it takes little time."""
MOST = 2**30  # bytes that one kind may add to the greatest memory of this process
LONG = "9" * 5000


class Tally:
    """What became of the cases of one kind; whatever else than a result or one sentence is a failure."""

    def __init__(self, every=1):
        self.every, self.asked = every, 0
        self.used, self.refused, self.failures = [], [], []
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def call(self, name, run):
        self.asked += 1
        if self.asked % self.every:
            return
        try:
            with in_time(60), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run()
        except RobGIBError as error:
            self._sentence(name, str(error))
        except BaseException as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            self.used.append(name)

    def command(self, name, cli, *arguments):
        self.asked += 1
        if self.asked % self.every:
            return
        try:
            with in_time(60):
                done = cli(*arguments)
        except BaseException as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            return
        if done.returncode == 0 or (done.returncode == 1 and "broken" in done.stdout):  # as `attacks check` tells it
            self.used.append(name)
        elif done.returncode in (1, 2) and "Traceback" not in done.stderr and done.stderr.strip():
            self._sentence(name, done.stderr.strip())
        else:
            self.failures.append(f"{name}: exit {done.returncode}: {done.stderr[-300:]}")

    def _sentence(self, name, said):
        boxed = "Usage:" in said  # Typer's own
        if not said.strip() or (not boxed and len(said.strip().splitlines()) > 3):
            self.failures.append(f"{name}: says {said[:300]!r}")
        elif len(said) > 3000:
            self.failures.append(f"{name}: says {len(said)} characters")
        else:
            self.refused.append(name)

    def end(self, least):
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before)
        told = f"{len(self.failures)} of {len(self.used) + len(self.refused) + len(self.failures)} cases:\n"
        assert not self.failures, told + "\n".join(self.failures)
        assert grown < MOST, f"{grown / 2**20:.0f} MiB"
        assert len(self.refused) * self.every >= 0.6 * least, f"only {len(self.refused)} refused; used: {self.used}"


WORDS = ("", " ", "-1", "0", "nan", "-inf", "1e400", LONG, "x", "[/red]", "\x1b[31m", "../..", "a:b", "\udcff", "0x10")
FAST = (
    "--attack", "fgsm-linf:eps=0.1", "--samples", "20", "--no-information", "--no-curve", "--no-signs",
    "--no-corruptions", "--quiet",
)  # fmt: skip
OPTIONS = (
    "--layer", "--arch", "--data", "--classes", "--weights-key", "--normalize", "--mean", "--bounds", "--input-size",
    "--interpolation", "--information-samples", "--features", "--codes", "--sigma", "--unit-groups", "--beta", "--out",
    "--batch-size", "--precision", "--device", "--seed", "--catalogue", "--fail-under", "--samples", "--attack",
    "--estimator", "--data-root",
)  # fmt: skip


@pytest.mark.parametrize("part", range(3))
@EVERY
def test_options(cli, tmp_path, part, every):
    tally = Tally(every)
    for option in OPTIONS[part::3]:
        for word in WORDS:
            known = {"--attack": "--no-attack", "--samples": "--no-samples"}
            fast = [f for f in FAST if not (option == "--estimator" and f == "--no-information")]
            if option in known:
                at = fast.index(option)
                fast[at : at + 2] = []
            if option in ("--layer", "--features", "--codes", "--sigma", "--unit-groups", "--beta", "--estimator"):
                fast = [f for f in fast if f != "--no-information"]
                if option != "--estimator":
                    fast += ["--estimator", "binned"]
            tally.command(f"{option} {word[:12]!r}", cli, "evaluate", "digits-mlp-relu", option, word, *fast)
    tally.end(60)
    for held in tmp_path.iterdir():
        assert not held.name.startswith("."), held


COMMANDS = (
    ("train", "digits-mlp-relu", "--epochs"),
    ("train", "digits-mlp-relu", "--trace", "--trace-at"),
    ("train", "digits-mlp-relu", "--control"),
    ("train", "digits-mlp-relu", "--out"),
    ("zoo", "layers", "resnet", "--shape"),
    ("zoo", "layers"),
    ("zoo", "show"),
    ("zoo", "train"),
    ("zoo", "add"),
    ("zoo", "list", "--group"),
    ("attacks", "check"),
    ("attacks", "new", "--into", "attacks"),
    ("study", "plan"),
    ("study", "run"),
    ("report",),
    ("trace",),
    ("validate-estimators", "--task"),
    ("validate-estimators", "--estimator"),
    ("validate-estimators", "--jobs"),
)


@EVERY
def test_commands(cli, tmp_path, every):
    tally = Tally(every)
    for command in COMMANDS:
        for word in ("", "-1", "nan", LONG, "[/red]", "../..", "\udcff"):
            tally.command(f"{' '.join(command)} {word[:12]!r}", cli, *command, word)
    tally.end(100)


ODD = (
    None, [], {}, "", -1, 0, 1.5, float("nan"), float("inf"), True, "x", int(LONG[:300]), [[1]], {"a": 1},
    datetime.date(2026, 1, 1), "x" * 5000, "../../x",
)  # fmt: skip
RECIPE = {
    "description": "A network",
    "data": "digits",
    "architecture": {"name": "mlp", "hidden": [8]},
    "training": {
        "epochs": 2, "batch_size": 32, "learning_rate": 0.01, "optimizer": "adamw", "schedule": "onecycle", "seed": 0,
        "adversary": {"norm": "linf", "eps": 0.1, "steps": 2}, "penalty": None, "warmup": 1, "shift": 1, "ema": 0.9,
    },
}  # fmt: skip


def places(content, prefix=()):
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def changed(content, keys, value):
    made = copy.deepcopy(content)
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return made


@EVERY
def test_recipes(tmp_path, digits, every):
    tally = Tally(every)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(RECIPE))
    for keys in [*places(RECIPE), ("unknown",), ("training", "unknown"), ("architecture", "unknown")]:
        for value in ODD:
            (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed(RECIPE, keys, value)))

            def use():
                recipe = find_recipe("changed", [tmp_path])
                recipe.untrained(digits if recipe.data == "digits" else data_of(recipe, None))

            tally.call(f"{'.'.join(keys)}: {str(value)[:20]!r}", use)
    assert "good" in recipes([tmp_path])
    tally.end(200)


@EVERY
def test_attacks_and_estimators_by_name(every):
    tally = Tally(every)
    wrong = ("", "-1", "0", "nan", "inf", "1e400", "9" * 400, "x", "true", "1/0", "[1]", "None", "1.5")
    for spec, keys in (
        ("pgd-linf", ("eps", "steps", "step", "restarts", "loss", "eot", "norm")),
        ("apgd-t-linf", ("eps", "steps", "targets")),
        ("square-l2", ("eps", "queries", "eot")),
        ("fab-l2", ("eps", "steps")),
        ("torchattacks:PGD", ("eps", "steps", "alpha")),
        ("foolbox:LinfPGD", ("eps", "steps")),
    ):
        for key in keys:
            for word in wrong:
                tally.call(f"{spec}:{key}={word[:8]}", lambda s=f"{spec}:{key}={word}": robgib.make_attack(s))
    for spec, keys in (
        ("imputation", ("donors", "kind", "samples", "steps", "device", "seed")),
        ("probe", ("steps", "folds", "seed")),
        ("binned", ("codes",)),
        ("ksg", ("k",)),
    ):
        for key in keys:
            for word in wrong:
                tally.call(f"{spec}:{key}={word[:8]}", lambda s=f"{spec}:{key}={word}": robgib.make_estimator(s))
    for text in ("", ":", "pgd-linf:", "pgd-linf:eps", "pgd-linf:eps=", "pgd-linf:=3", "pgd-linf:eps=1,eps=2", "foolbox:",
                 "art:x", "torchattacks:", "pgd-linf,eps=3", "pgd-linf:eps=0.1,,steps=3", "a" * 5000):  # fmt: skip
        tally.call(f"attack {text[:20]!r}", lambda s=text: robgib.make_attack(s))
        tally.call(f"estimator {text[:20]!r}", lambda s=text: robgib.make_estimator(s))
    tally.end(250)


@EVERY
def test_records(cli, tmp_path, digits_cnn, every):
    """The record beside a checkpoint, which tells what it is of."""
    done = cli("train", "digits-mlp-relu", "--epochs", "1", "--out", "net.safetensors", "--quiet")
    assert done.returncode == 0, done.stderr
    file, tally = tmp_path / "net.json", Tally(every)
    record = json.loads(file.read_text())
    load_checkpoint(tmp_path / "net.safetensors")
    for keys in [*places(record), ("unknown",)]:
        for value in ODD:
            if isinstance(value, datetime.date):
                continue
            file.write_text(json.dumps(changed(record, keys, value)))
            tally.call(
                f"{'.'.join(keys)}: {str(value)[:20]!r}",
                lambda: load_checkpoint(tmp_path / "net.safetensors"),
            )
    for text in ("", "[]", "3", "null", "{", '"x"', "[" * 100_000, '{"a": ' * 5000, "\x00", '{"architecture": 3}'):
        file.write_text(text)
        tally.call(f"record {text[:12]!r}", lambda: load_checkpoint(tmp_path / "net.safetensors"))
    tally.end(40)


@pytest.fixture(scope="module")
def run(digits, trained, tmp_path_factory):
    made = robgib.evaluate(
        trained("digits-mlp-relu"), digits, attacks=["fgsm-linf:eps=0.1"], estimators=["binned"], samples=40,
        layers=["logits"], progress=False,
    )  # fmt: skip
    return save_run(made, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_run_folders(run, tmp_path, every):
    tally, rng = Tally(every), np.random.default_rng(0)
    parts = sorted(p.name for p in run.iterdir())
    copied = tmp_path / "copied"

    def page():
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            robgib.write_report([load_run(copied)], tmp_path / "page.html")

    def each(name, change):
        if (tally.asked + 1) % every:
            tally.asked += 1
            return
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(run, copied)
        change()
        tally.call(name, page)

    for part in parts:
        whole = (run / part).read_bytes()
        each(f"{part} gone", lambda p=part: (copied / p).unlink())
        for name, content in (
            ("empty", b""), ("half", whole[: len(whole) // 2]), ("zeros", bytes(100)), ("word", b"x"),
            ("list", b"[1, 2]"), ("text", b"a,b\nc,d\n"), ("latin", "é,ü\n1,2".encode("latin-1")), ("number", b"3"),
        ):  # fmt: skip
            each(f"{part} {name}", lambda p=part, c=content: (copied / p).write_bytes(c))
        if part.endswith(".csv"):
            lines = whole.decode().splitlines()
            if len(lines) > 1:
                each(f"{part} a row short", lambda p=part, w=lines[:-1]: (copied / p).write_text("\n".join(w)))
                wide = [*lines[:-1], lines[-1] + ",9,9"]
                each(f"{part} a wide row", lambda p=part, w=wide: (copied / p).write_text("\n".join(w)))
                cells = lines[1].split(",")
                for at in rng.choice(len(lines[0].split(",")), min(8, lines[0].count(",") + 1), replace=False):
                    odd = ",".join([*cells[:at], "word", *cells[at + 1 :]])
                    each(
                        f"{part} {lines[0].split(',')[at]}: word",
                        lambda p=part, o=odd, li=lines: (copied / p).write_text("\n".join([li[0], o, *li[2:]])),
                    )
                each(f"{part} no rows", lambda p=part, li=lines: (copied / p).write_text(li[0] + "\n"))
    config = json.loads((run / "config.json").read_text())
    for keys in places(config):
        for value in (None, [], "x", -1, {"a": 1}):
            each(
                f"config {'.'.join(keys)}: {value!r}",
                lambda k=keys, v=value: (copied / "config.json").write_text(json.dumps(changed(config, k, v))),
            )
    tally.end(60)


PLUGINS = {
    "syntax": "def (",
    "import": "import nothing_there",
    "leaves": "import sys\nsys.exit(0)",
    "raises": "raise ValueError('no\\nsecond line')",
    "nothing": "",
    "null": "\x00",
    "recursion": "def f():\n    return f()\nf()",
    "no attack": "from robgib import Attack\nAttack = 3",
    "abstract": "from robgib import Attack\nclass Own(Attack):\n    pass",
    "init": "from robgib import Attack\nclass Own(Attack):\n    def __init__(self):\n        pass",
}
BODIES = {
    "none": "return None",
    "wrong shape": "return x[:, :, :1]",
    "fewer": "return x[:1]",
    "integers": "return x.long()",
    "nan": "return x * float('nan')",
    "far": "return x + 0.5",
    "in place": "x += 0.5\n        return x",
    "in place and back": "x.clamp_(0.5, 1)\n        return x.clone()",
    "labels": "y.zero_()\n        return x",
    "leaves": "raise SystemExit(0)",
    "raises": "raise ValueError('a\\nb')",
    "recursion": "return self.perturb(model, x, y, rng)",
    "array": "return x.numpy()",
    "list": "return [x]",
    "warning": "import warnings\n        warnings.warn('odd')\n        return x",
    "training mode": "model.train()\n        return x",
    "weights": "[p.data.zero_() for p in model.parameters()]\n        return x",
    "no rng": "return x + torch.rand_like(x).mul(0.01)",
    "threads": "torch.set_default_dtype(torch.float64)\n        return x.double()",
}


@EVERY
def test_plugins(cli, tmp_path, every):
    tally = Tally(every)
    for name, text in PLUGINS.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        (folder / f"own_{name.replace(' ', '_')}.py").write_text(text)
        for command in (["attacks", "list"], ["attacks", "check", "own"], ["evaluate", "digits-mlp-relu", *FAST]):
            tally.command(f"{name}: {command[0]}", cli, *command, "--catalogue", str(folder))
    plain = cli("evaluate", "digits-mlp-relu", *FAST, "--json")
    clean = json.loads(plain.stdout)["models"][0]["clean"]
    for name, body in BODIES.items():
        folder = tmp_path / f"body-{name.replace(' ', '-')}"
        folder.mkdir()
        kind = "".join(word.title() for word in name.split()) + "Body"
        (folder / f"{kind.lower()}.py").write_text(
            f"import torch\nfrom robgib import Attack\n\n\nclass {kind}(Attack):\n"
            f"    def perturb(self, model, x, y, rng):\n        {body}\n"
        )
        attack = "-".join(word for word in name.split()) + "-body"
        tally.command(f"check {name}", cli, "attacks", "check", attack, "--catalogue", str(folder))
        options = [attack if f == FAST[1] else f for f in FAST]
        done = cli("evaluate", "digits-mlp-relu", *options, "--catalogue", str(folder), "--json", "--fresh")
        assert done.returncode in (0, 1, 2), done.stderr
        assert "Traceback" not in done.stderr
        if done.stdout:
            told = json.loads(done.stdout)["models"][0]
            assert told["clean"] == clean, name  # whatever the attack did to images, labels, weights or modes
            (row,) = told["attacks"]
            if name not in ("warning", "training mode", "weights", "labels", "no rng", "threads"):
                assert row["status"] == "failed", (name, row)
        torch.set_default_dtype(torch.float32)
    tally.end(20)


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.last = error, nn.Linear(64, 10)

    def forward(self, x):
        raise self.error


@EVERY
def test_python(digits, trained, every):
    tally, net = Tally(every), trained("digits-mlp-relu")
    x, y = digits.test.x[:30], digits.test.y[:30]
    fast = {
        "attacks": ["fgsm-linf:eps=0.1"], "estimators": [], "curve": False, "signs": False, "corruptions": False,
        "progress": False,
    }  # fmt: skip

    def evaluated(model=net, data=(x, y), **options):
        return lambda: robgib.evaluate(model, data, **{**fast, **options})

    errors = (
        ValueError("a\nb"), TypeError("x"), KeyError("k"), IndexError(), AttributeError("no"), AssertionError(),
        ZeroDivisionError("0"), NotImplementedError(), StopIteration(), OSError(28, "full"), UnicodeDecodeError("u", b"", 0, 1, "r"),
        Exception(), RecursionError("deep"), ArithmeticError(), LookupError(), SystemExit(0),
    )  # fmt: skip
    for error in errors:
        tally.call(f"model raises {type(error).__name__}", evaluated(Raising(error)))
    for model in (None, 3, "x", [], object(), nn.Linear, lambda: 3, lambda x: None, lambda x: 3, lambda x: "x", lambda x: [],
                  lambda x: {}, lambda x: x.numpy(), lambda x: x.sum(), lambda x: x[:1].flatten(1), dict, nn.ReLU(),
                  nn.Linear(3, 10), lambda x: x.flatten(1).long(), lambda x: torch.full((len(x), 10), float("nan"))):  # fmt: skip
        tally.call(f"model {str(model)[:30]}", evaluated(model))
    arrays = (
        None, 3, "nowhere", [], (), (x,), (x, y, x), (None, None), (x, None), (x, y[:5]), (x[:0], y[:0]), (x * 2, y),
        (x - 1, y), (x * float("nan"), y), (x.long(), y), (x, y.float()), (x, -y - 1), (x, y + 50), (x[0], y[:1]),
        (x.to_sparse(), y), (x.bool(), y), (x.to(torch.complex64), y), (x.numpy().astype(object), y), ("a", "b"),
        ([[1, 2], [3]], [0, 1]), (x, [str(v) for v in y.tolist()]), (x[:, :, :0], y), (x, y[:, None, None]),
        (x, torch.ones(30, 10)), (x.unsqueeze(0), y), (x.numpy()[:, 0], y.numpy()), ({"x": x}, y), (x, {}), (iter([x]), y),
        digits.train, object(), np.zeros(3), torch.utils.data.TensorDataset(x), [(1, 2)], b"x", Path("nowhere"),
        (np.ma.masked_all((3, 1, 8, 8)), [0, 1, 2]), (np.zeros((3, 1, 8, 8), "M8[D]"), [0, 1, 2]), (x, y.to_sparse()),
    )  # fmt: skip
    for number, data in enumerate(arrays):
        tally.call(f"data {number} {type(data).__name__}", evaluated(data=data))
    for key, values in {
        "attacks": (None, [], {}, 3, "x", [None], [3], ["pgd-linf", "pgd-linf"], {"a": 3}, {3: "fgsm-linf"}, "", {"": None}),
        "estimators": (None, "x", 3, [None], ["binned", "binned"], [""], [3]),
        "layers": ([], [""], [None], [3], "logits", ["x"], 3),
        "samples": (0, -1, 1.5, "x", float("nan"), 10**30, True),
        "information_samples": (0, -1, 1.5, "x", 10**30),
        "features": (3, [], [None], "x", "patches:0", "patches:-1", "patches:999", "pca:0", "", ["auto", "x"]),
        "feature_dims": (0, -1, 1.5, "x", 10**9), "layer_dims": (0, -1, 1.5, "x", 10**9), "codes": (0, 1, -1, 1.5, "x", 10**9),
        "sigma": (0, -1, float("nan"), float("inf"), "x"), "unit_groups": (-1, 1.5, "x", 10**9),
        "beta": (-1, float("nan"), "x", None), "batch_size": (0, -1, 1.5, "x", 10**12), "precision": ("x", None, 3),
        "device": ("x", None, 3, "cuda:99", "mps", "meta"), "seed": (-1, 2**70, 1.5, "x", None), "name": (None, 3, "", "x" * 5000, "\x00"),
        "data_root": (3, "nowhere"), "catalogue": (3, ["nowhere"], "nowhere", [Path("nowhere")]), "cascade": ("x", 3),
        "progress": ("x", 3), "source": (3, "x", [1]), "unfinished": (3, "x"),
    }.items():  # fmt: skip
        own = {"estimators": ["binned"]} if key in (
            "layers", "information_samples", "features", "feature_dims", "layer_dims", "codes", "sigma", "unit_groups", "beta",
        ) else {}  # fmt: skip
        for value in values:
            tally.call(f"{key}={str(value)[:20]}", evaluated(**{**own, key: value}))
    tally.end(100)


def test_what_is_shown_of_odd_names_is_printable():
    assert visible(str(robgib.errors.unknown_name("model", "\x1b[31m", ["a"]))).isprintable()
