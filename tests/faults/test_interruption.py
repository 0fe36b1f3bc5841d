"""What was killed goes on where it was, to the tables of one that was not; and one process at a time is at it."""

import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robgib
from robgib import evaluate
from robgib.attacks.base import Attack
from robgib.cli import app
from robgib.files import Parts, alone
from robgib.results import RUN_TABLES, load_run
from robgib.robustness.run_attack import run_attack

run_module = sys.modules[run_attack.__module__]


class Killed(KeyboardInterrupt):
    """In the place of a signal."""


@dataclass(frozen=True)
class Drawing(Attack):
    """Draws from every global generator there is, warns once, and dies at a pool."""

    def perturb(self, model, x, y, rng):
        if Drawing.pools == Drawing.last:
            raise Killed
        Drawing.pools += 1
        Drawing.samples += len(x)
        draw = torch.rand(1) + torch.tensor(np.random.rand() + random.random())  # noqa: NPY002
        delta = torch.sign(torch.rand(x.shape) - 0.5) * self.threat.eps * (draw / 3).to(x.dtype)
        return (x + delta).clamp(0, 1)


class Noisy(nn.Module):
    """Answers at random."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))


def drawing(monkeypatch, last=None):
    for name, value in (("pools", 0), ("samples", 0), ("last", last)):
        monkeypatch.setattr(Drawing, name, value, raising=False)
    return Drawing("linf", 0.3)


def arrays(found):
    return {name: getattr(found, name) for name in ("prediction", "right", "right_8bit", "linf", "l2", "distance")} | {
        f"picture {k}": v for k, v in found.pictures.items()
    }


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_long_attack_goes_on_from_its_survivors(noisy, last, digits, digits_mlp, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_KEPT", 0.0)
    net, (x, y) = Noisy(digits_mlp) if noisy else digits_mlp, (digits.test.x[:60], digits.test.y[:60])
    options = {"batch_size": 10, "seed": 3, "pictures": 4}
    whole = run_attack(net, x, y, drawing(monkeypatch), **options)
    asked = Drawing.samples
    kept = Parts(tmp_path / "kept")
    with pytest.raises(Killed):
        run_attack(net, x, y, drawing(monkeypatch, last), parts=kept, **options)
    before = Drawing.samples
    again = run_attack(net, x, y, drawing(monkeypatch), parts=kept, **options)
    assert 0 < Drawing.samples == asked - before  # nothing is attacked twice
    for name, values in arrays(whole).items():
        assert np.array_equal(arrays(again)[name], values), name
    assert (again.passes.forward, again.passes.backward) == (whole.passes.forward, whole.passes.backward)
    assert again.notes == whole.notes
    drawing(monkeypatch, 0)  # and when it is whole, the attack is not called at all
    third = run_attack(net, x, y, Drawing("linf", 0.3), parts=kept, **options)
    assert all(np.array_equal(arrays(third)[n], v) for n, v in arrays(whole).items())
    assert third.seconds >= again.seconds - 1


def test_damaged_parts_are_made_again(tmp_path):
    kept = Parts(tmp_path / "kept").at("a", "b")
    kept.write({"x": np.arange(3), "told": ["one"], "none": None, "count": np.int64(4)})
    held = kept.read()
    assert held["x"].tolist() == [0, 1, 2]
    assert (held["told"], held["none"], held["count"]) == (["one"], None, 4)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    for size in range(0, len(whole), 37):
        file.write_bytes(whole[:size])
        assert kept.read() is None
    assert Parts(tmp_path / "kept").at("a").read() is None
    assert Parts().at("a").read() is None


def test_where_nothing_can_be_kept_the_work_goes_on(tmp_path):
    (tmp_path / "file").touch()
    kept = Parts(tmp_path / "file" / "kept")
    with pytest.warns(robgib.RobGIBWarning, match="finished parts cannot be kept"):
        kept.write({"a": 1})
    kept.write({"a": 1})  # said once
    kept.at("other").write({"a": 1})
    with alone(tmp_path / "file" / "kept") as locked:
        assert not locked


OPTIONS = {
    "estimators": ["gaussian"], "features": "patches:2", "samples": 30, "seed": 1, "device": "cpu", "progress": False,
}  # fmt: skip
ATTACKS = ["pgd-linf:eps=0.05", "fgsm-l2:eps=0.5"]


def same_tables(one, two):
    for name in RUN_TABLES:
        a, b = (getattr(run, name).drop(columns="seconds", errors="ignore") for run in (one, two))
        pd.testing.assert_frame_equal(a, b, check_dtype=False)


MOMENTS = ["second attack"]
RARER = [
    pytest.param(m, marks=pytest.mark.slow) for m in ("curve", "layers", "first attack", "corruptions", "signs", "save")
]


@pytest.fixture(scope="module")
def whole(digits, digits_mlp):
    """Evaluate without interruption, once for each set of options."""
    return functools.cache(lambda beside: evaluate(digits_mlp, digits, attacks=ATTACKS, **OPTIONS, **dict(beside)))


@pytest.mark.parametrize("moment", [*MOMENTS, *RARER])
def test_an_evaluation_goes_on_from_every_moment(moment, whole, digits, digits_mlp, tmp_path, monkeypatch):
    beside = () if moment != "second attack" else (("signs", False), ("corruptions", False))  # what comes after it
    asked, expected = {"attacks": ATTACKS, **OPTIONS, **dict(beside)}, whole(beside)
    place = tmp_path / "unfinished"
    calls = {
        "layers": ("robgib.evaluation", "measure", 1),
        "first attack": ("robgib.robustness.attacking", "accuracy_curve", 1),
        "second attack": ("robgib.robustness.attacking", "run_attack", 2),
        "curve": ("robgib.robustness.run_attack", "run_attack", 3),
        "corruptions": ("robgib.robustness.beside", "examine", 1),
        "signs": ("robgib.robustness.beside", "examine", 2),
        "save": None,
    }

    def dies(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return own(*arguments, **options)

    def fail(run):
        raise Killed

    with monkeypatch.context() as patched:
        if calls[moment]:
            name, function, number = calls[moment]
            left, own = [number], getattr(sys.modules[name], function)
            patched.setattr(sys.modules[name], function, dies)
        with pytest.raises(Killed):
            evaluate(digits_mlp, digits, unfinished=place, save=fail, **asked)
    assert list(place.iterdir())
    done = []
    monkeypatch.setattr("robgib.information.analysis.group_inputs", lambda *_: pytest.fail("estimated again"))
    saved = []
    again = evaluate(
        digits_mlp, digits, unfinished=place, save=saved.append,
        **{**asked, "progress": lambda task, *_: done.append(task)},
    )  # fmt: skip
    same_tables(again, expected)
    assert len(saved) == 1
    assert saved[0] is again
    assert not list(place.iterdir())  # nothing is left of it
    if moment == "save":
        assert not {"corrupting", "attack-failure checks"} & set(done)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        *(pytest.param(c, marks=pytest.mark.slow) for c in ({"samples": 29}, {"attacks": ["pgd-linf:eps=0.06"]})),
    ],
)
def test_parts_of_another_evaluation_are_not_taken(change, digits, digits_mlp, tmp_path):
    def fail(run):
        raise Killed

    asked = {"attacks": ["pgd-linf:eps=0.05"], **OPTIONS, "signs": False, "corruptions": False, "curve": False}
    with pytest.raises(Killed):
        evaluate(digits_mlp, digits, unfinished=tmp_path / "u", save=fail, **asked)
    mine = evaluate(digits_mlp, digits, unfinished=tmp_path / "u", **{**asked, **change})
    same_tables(mine, evaluate(digits_mlp, digits, **{**asked, **change}))


def start(cache, *command, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "robgib", *command],
        env={**os.environ, "ROBGIB_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def kill_at(process, seconds):
    """Kill a process and its children so many seconds after its start; whether it lived so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def strangers(folder):
    """What no finished command leaves behind."""
    return [
        p.relative_to(folder)
        for p in folder.rglob("*")
        if p.name.startswith(".") or "unfinished" in p.suffix or p.suffix == ".lock" or p.parent.name == "unfinished"
    ]


@pytest.fixture
def filled(digits_cnn, cache, tmp_path):
    """A cache of its own that holds the network."""
    shutil.copytree(cache / "zoo", tmp_path / "cache" / "zoo", ignore=shutil.ignore_patterns("*.unfinished*", "*.lock"))
    return tmp_path / "cache"


def only_run(folder):
    (file,) = folder.glob("*/config.json")
    assert (file.parent / "report.html").is_file()
    return load_run(file.parent)


EVALUATE = ["evaluate", "digits-cnn", "--samples", "60", "--estimator", "gaussian", "--attack", "apgd-t-linf"]
RECIPE = "data: digits\narchitecture: {name: mlp, hidden: [32]}\ntraining: {epochs: 30, batch_size: 16}\n"
STUDY = """
question: Does it fall?
primary: {figure: gib_complexity, estimator: gaussian, partition: "patches:2", layer: last}
outcome: {attack: "pgd-linf:steps=3", eps: [0.05, 0.1]}
samples: 40
information_samples: 120
confirm: {train: [{recipe: small, vary: {training.seed: [1, 2]}}]}
"""


def weights(folder):
    """What a finished training left: the weights' bytes, and the log without its times."""
    (file,) = folder.rglob("small*.safetensors")
    log = pd.read_csv(file.with_suffix(".log.csv")).drop(columns="seconds")
    from safetensors.numpy import load_file

    return {**load_file(file), "log": log.to_numpy()}


def same_weights(one, two):
    first, second = (weights(folder) for folder in (one, two))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)


def same_runs(one, two):
    same_tables(only_run(one / "out"), only_run(two / "out"))


def same_studies(one, two):
    tables = [pd.read_csv(folder / "out" / "models.csv") for folder in (one, two)]
    pd.testing.assert_frame_equal(*tables)


COMMANDS = {
    "evaluate": (EVALUATE, "out", same_runs),
    "train": (["train", "small"], "small.safetensors", same_weights),
    "zoo train": (["zoo", "train", "small"], None, same_weights),
    "study": (["study", "run", "small-study.yaml"], "out", same_studies),
}


def check_kills(what, cache, tmp_path, kills, seed):
    """Kill a command so many times and hold what ends against one left in peace; again, until the kills are done.

    The cache has what was there before; each round ends by itself after three kills.
    """
    command, out, same = COMMANDS[what]
    rng = np.random.default_rng(seed)

    def began(place):
        place.mkdir(exist_ok=True)
        (place / "small.yaml").write_text(RECIPE)
        (place / "small-study.yaml").write_text(STUDY)
        if cache and not (place / "cache").exists():
            shutil.copytree(cache, place / "cache")
        options = [] if out is None else ["--out", out]
        extra = [] if what == "evaluate" else ["--catalogue", str(place)]
        return start(place / "cache", *command, *options, *extra, cwd=place)

    at = time.monotonic()
    whole = began(tmp_path / "whole")
    said = whole.communicate()
    assert whole.returncode == 0, said
    lasts, killed, number = time.monotonic() - at, 0, 0
    while killed < kills:
        place = tmp_path / f"round-{number}"
        for _ in range(3):
            killed += kill_at(began(place), lasts * rng.uniform(0.1, 0.9))
        ended = began(place)
        said = ended.communicate()
        assert ended.returncode == 0, said
        assert "Traceback" not in said[1]
        same(place, tmp_path / "whole")
        assert not strangers(place)
        shutil.rmtree(place)
        number += 1


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_a_hundred_kills(what, filled, tmp_path):
    check_kills(what, filled if what == "evaluate" else None, tmp_path, 25, seed=1)


@pytest.mark.slow
def test_two_processes_at_one_evaluation(filled, tmp_path):
    both = [start(filled, *EVALUATE, "--out", str(tmp_path / "out")) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("read from a finished run" in out for out, _ in said) == 1
    assert only_run(tmp_path / "out")
    assert not strangers(tmp_path)


@pytest.mark.slow
def test_two_processes_at_one_network_of_the_zoo(tmp_path):
    (tmp_path / "both.yaml").write_text(RECIPE)
    both = [start(tmp_path / "cache", "zoo", "train", "both", "--catalogue", str(tmp_path)) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("waiting: another process trains both" in err for _, err in said) == 1
    assert not strangers(tmp_path)


FULL = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # as a full disk: no file grows beyond it
os.execv(sys.executable, [sys.executable, "-m", "robgib", *sys.argv[2:]])
"""


def on_a_full_disk(room, cache, *command):
    return subprocess.run(
        [sys.executable, "-c", FULL, str(room), *command],
        env={**os.environ, "ROBGIB_CACHE": str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def one_sentence_of_a_full_disk(done, out):
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert "the measurements are kept" in " ".join(done.stderr.split())
    assert not list(out.iterdir())


@pytest.mark.filterwarnings("ignore:finished parts cannot be kept")
def test_a_full_disk_is_one_sentence(filled, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBGIB_CACHE", str(filled))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, usual[1]))
    try:
        done = cli(
            *EVALUATE[:-2], "--attack", "fgsm-linf", "--no-signs", "--no-curve", "--no-corruptions", "--out",
            str(tmp_path / "out"), "--quiet",
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    one_sentence_of_a_full_disk(done, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("room", [100, 500_000])
def test_a_full_disk_loses_nothing(room, filled, tmp_path):
    one_sentence_of_a_full_disk(
        on_a_full_disk(room, filled, *EVALUATE, "--out", str(tmp_path / "out"), "--quiet"), tmp_path / "out"
    )
    if room > 1000:  # the parts had room
        again = start(filled, *EVALUATE, "--out", str(tmp_path / "other"))
        said = again.communicate()
        assert again.returncode == 0, said
        assert "apgd-t-linf: " not in said[1]  # no step is made again
        assert only_run(tmp_path / "other")
        assert not strangers(tmp_path)


@pytest.mark.slow
def test_a_training_on_a_full_disk_is_one_sentence(tmp_path):
    done = on_a_full_disk(
        3000, tmp_path / "cache", "train", "digits-mlp-relu", "--out", str(tmp_path / "a.safetensors")
    )
    assert done.returncode == 2
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*a.*"))


@pytest.mark.parametrize(
    ("signal_name", "module"),
    [
        ("SIGINT", "typer"),
        ("SIGTERM", "torch"),
        ("SIGHUP", "torch.nn"),
        *(
            pytest.param(name, module, marks=pytest.mark.slow)
            for name in ("SIGINT", "SIGTERM", "SIGHUP")
            for module in ("typer", "torch", "torch.nn")
        ),
    ],
)
def test_an_interrupt_while_libraries_are_imported_is_one_sentence(tmp_path, signal_name, module):
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *where):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        f"            os.kill(os.getpid(), signal.{signal_name})\n"
        # Those that a shell ignores for what it starts behind it would stay ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "import robgib.cli\n"
        "robgib.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", "digits-cnn", "--quick", "--samples", "20"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted: finished attacks, estimates")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_was_ignored_before_stays_so(cli, monkeypatch):
    own = app.run
    monkeypatch.setattr(app, "run", lambda: (os.kill(os.getpid(), signal.SIGHUP), own()))
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = cli("zoo", "list")
    finally:
        signal.signal(signal.SIGHUP, usual)
    assert done.returncode == 0, done.stderr
    assert "digits-cnn" in done.stdout


@pytest.mark.slow
def test_what_a_shell_said_to_ignore_is_ignored(tmp_path):
    done = subprocess.run(
        ["nohup", sys.executable, "-c",
         "import os, signal, sys, robgib.cli\nsys.argv = ['robgib', 'zoo', 'list']\n"
         "class Late:\n    def find_spec(self, name, *where):\n"
         "        name == 'rich.table' and os.kill(os.getpid(), signal.SIGHUP)\n"
         "sys.meta_path.insert(0, Late())\nrobgib.cli.main()"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "digits-cnn" in done.stdout
