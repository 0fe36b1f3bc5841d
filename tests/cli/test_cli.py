import json
import os
import runpy
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch import nn

from robgib.cli import main as command_line
from robgib.models import build
from robgib.robustness.failure_indicators import CHECKS
from tests.data.test_loaders import NAMES, write_fashion


@pytest.fixture
def refused(cache, tmp_path, monkeypatch, capsys):
    """Run the entry point in this process; it must end with one sentence and exit code 2, and write nothing."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["robgib", *arguments])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                command_line()
        finally:
            signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        assert ended.value.code == 2, said
        assert "Traceback" not in said.err
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        return " ".join(said.err.split())

    return run


def test_alone_it_prints_help(process, cli):
    done = process()
    assert done.returncode == 0
    assert "evaluate" in done.stdout
    assert cli("--version").stdout.startswith("robgib 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("attacks", "list"), ("pgd-linf", "fgsm-l2", "uniform-noise", "torchattacks:NAME")),
        (("estimators", "list"), ("gaussian", "binned", "exact")),
        (("zoo", "list"), ("digits-cnn", "fashion-vit")),
        (("zoo", "layers", "digits-cnn"), ("blocks.0.2", "MaxPool2d", "32 × 2 × 2", "logits")),
        (("zoo", "layers", "wide-resnet", "--shape", "1,28,28"), ("blocks.11", "PreActivation", "640 × 7 × 7")),
        (("zoo", "layers", "torchvision:resnet18"), ("net.layer1.0", "BasicBlock", "64 × 8 × 8")),
        (("zoo", "show", "digits-vit"), ("patch: 2", "digest: ")),
        (("attacks", "check", "pgd-l2"), ("inside the l2 ball", "ok")),
    ],
)
def test_listings(cli, arguments, words):
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words)


SMALL = "data: digits\narchitecture: {name: mlp, hidden: [16]}\ntraining: {epochs: 5, batch_size: 64}\n"


def test_two_models_end_to_end(cli, trained, tmp_path):
    trained("digits-mlp-relu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small-mlp.yaml").write_text(SMALL)
    done = cli(
        "evaluate", "digits-mlp-relu", "small-mlp", "--catalogue", "mine", "--samples", "40",
        "--attack", "pgd-linf:steps=5",
        "--estimator", "probe:steps=20", "--estimator", "imputation:donors=2,steps=20", "--layer", "logits",
        "--features", "patches:2",  # both partitions are evaluated in test_evaluation.py
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "training small-mlp" in done.stderr
    assert "too few to correlate" in done.stdout
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert [f.rsplit("-", 1)[0] for f in folders] == ["digits-mlp-relu", "small-mlp", "study"]
    page = tmp_path / "runs" / folders[2] / "report.html"
    assert str(page.relative_to(tmp_path)) in done.stdout.replace("\n", "")
    table = pd.read_csv(tmp_path / "runs" / folders[0] / "robustness.csv")
    assert f"{100 * table['robust_accuracy'][0]:.1f}%" in done.stdout
    signs = pd.read_csv(tmp_path / "runs" / folders[0] / "signs.csv")
    assert list(signs["name"]) == list(CHECKS)
    assert all(name in done.stdout for name in signs[signs["seen"]]["name"])
    for folder in folders[:2]:
        assert {p.name for p in (tmp_path / "runs" / folder).iterdir()} == {
            "config.json", "environment.json", "robustness.csv", "outcomes.csv", "curve.csv", "layers.csv",
            "features.csv", "signs.csv", "corruptions.csv", "corrupted.csv", "convergence.csv", "random_points.csv",
            "pictures.npz", "report.html", "run.yaml",
        }  # fmt: skip
    again = cli("report", *(f"runs/{f}" for f in folders[:2]), "--out", "both.html")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "both.html").stat().st_size == pytest.approx(page.stat().st_size, rel=0.01)


QUICK = [
    "evaluate", "digits-cnn", "--samples", "60", "--estimator", "binned", "--layer", "logits",
    "--information-samples", "200", "--no-curve", "--no-signs", "--no-corruptions", "--quiet",
]  # fmt: skip


def test_the_result_for_scripts(cli, tmp_path):
    done = cli(*QUICK, "--attack", "pgd-linf:steps=5", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == 1
    (model,) = told["models"]
    table = pd.read_csv(tmp_path / model["folder"] / "robustness.csv")
    assert model["attacks"][0]["robust_accuracy"] == pytest.approx(table["robust_accuracy"][0])
    assert model["clean"]["accuracy"] == pytest.approx(table["clean_accuracy"][0])
    assert {"logits", "Ŷ", "Y"} == {row["layer"] for row in model["layers"]}


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [("1%", 0, ""), ("99%", 1, "Below 99% robust accuracy: digits-cnn"), ("0.99", 1, ""), ("forty", 2, "40% or 0.4")],
)
def test_a_threshold_for_a_pipeline(cli, given, code, words):
    done = cli(*QUICK, "--attack", "pgd-linf:steps=5", "--fail-under", given)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_failed_attack_is_no_success(cli, tmp_path):
    (tmp_path / "breaks.py").write_text(
        "from dataclasses import dataclass\nfrom robgib import Attack\n\n\n@dataclass(frozen=True)\n"
        "class Breaks(Attack):\n    def perturb(self, model, x, y, rng):\n        raise ValueError('no such thing')\n"
    )
    done = cli(*QUICK, "--attack", "breaks:eps=0.1", "--attack", "fgsm-linf", "--catalogue", ".")
    assert done.returncode == 1, done.stderr
    assert "1 attack failed" in done.stdout
    assert "no such thing" in done.stderr
    assert "Report:" in done.stdout


@pytest.mark.parametrize("where", ["import", "perturb", "architecture"])
def test_a_plug_in_cannot_end_the_program(cli, tmp_path, where):
    """It ended with exit code 0 and no word."""
    asked = [*QUICK, "--attack", "leaves:eps=0.1", "--attack", "fgsm-linf", "--catalogue", "."]
    if where == "architecture":
        (tmp_path / "leaving.py").write_text("import sys\n\n\ndef make():\n    sys.exit(0)\n")
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
        asked = ["evaluate", "net.pt", "--arch", "leaving:make", "--data", "digits"]
    else:
        own = "sys.exit(0)" if where == "import" else ""
        (tmp_path / "leaves.py").write_text(
            "import sys\nfrom dataclasses import dataclass\nfrom robgib import Attack\n"
            f"{own}\n\n\n@dataclass(frozen=True)\n"
            "class Leaves(Attack):\n    def perturb(self, model, x, y, rng):\n        sys.exit(0)\n"
        )
    done = cli(*asked)
    assert done.returncode == (1 if where == "perturb" else 2)
    assert "SystemExit" in done.stderr
    assert "Traceback" not in done.stderr


def test_layers_are_printed_where_they_are_asked_for(cli):
    plain, long = (cli(*QUICK, "--attack", "fgsm-linf", *more).stdout for more in ([], ["--verbose"]))
    assert plain.splitlines()[0].startswith("digits-cnn: ")
    assert "% clean → " in plain.splitlines()[0]
    assert "bits by layer" not in plain
    assert "bits by layer" in long


def test_run_folders_of_a_study_are_left_out_of_a_page(cli, tmp_path):
    assert cli(*QUICK, "--attack", "fgsm-linf").returncode == 0
    (tmp_path / "runs" / "study-1234").mkdir()
    (tmp_path / "runs" / "study-1234" / "runs.txt").write_text("")
    done = cli("report", *map(str, sorted((tmp_path / "runs").iterdir())))
    assert done.returncode == 0, done.stderr
    assert "study-1234: skipped, since it is the folder of a study" in " ".join(done.stderr.split())
    assert cli("report", "runs/study-1234").returncode == 2


def test_what_was_measured_is_shown_again(cli, tmp_path):
    asked = [
        "evaluate", "digits-cnn", "--samples", "60", "--attack", "fgsm-linf", "--estimator", "binned",
        "--layer", "logits", "--information-samples", "200", "--no-curve", "--no-signs", "--no-corruptions", "--quiet",
    ]  # fmt: skip
    first = cli(*asked)
    assert first.returncode == 0, first.stderr
    assert "read from a finished run" not in first.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    written = (folder / "robustness.csv").stat().st_mtime_ns
    again = cli(*asked)
    assert "digits-cnn: read from a finished run" in again.stdout
    assert (folder / "robustness.csv").stat().st_mtime_ns == written
    assert again.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert "read from a finished run" not in cli(*asked, "--fresh").stdout
    assert (folder / "robustness.csv").stat().st_mtime_ns > written
    other = cli(*asked, "--seed", "1")  # another request
    assert "read from a finished run" not in other.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_own_checkpoint_with_own_architecture(cli, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "net.pt")
    done = cli(
        "evaluate", "net.pt", "--arch", "mynet:make", "--data", "digits", "--samples", "60", "--attack", "fgsm-linf",
        "--estimator", "binned", "--layer", "logits", "--no-curve", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "net" in done.stdout


def test_train_and_evaluate_the_file(cli, tmp_path):
    done = cli("train", "digits-mlp-tanh", "--epochs", "3", "--out", "mine.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "after 3 epochs" in done.stdout
    done = cli("evaluate", "mine.safetensors", "--samples", "40", "--attack", "fgsm-l2", "--estimator", "gaussian")
    assert done.returncode == 0, done.stderr


def test_plugin_attack_from_the_command_line(cli, trained, tmp_path):
    trained("digits-mlp-relu")
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "grey.py").write_text(
        "from dataclasses import dataclass\nfrom robgib import Attack\n\n\n"
        "@dataclass(frozen=True)\nclass TowardsGrey(Attack):\n    def perturb(self, model, x, y, rng):\n"
        "        return self.threat.project(0 * x + 0.5, x)\n"
    )
    assert "towards-grey" in cli("attacks", "list", "--catalogue", "plug").stdout
    checked = cli("attacks", "check", "towards-grey:eps=0.1", "--catalogue", "plug")
    assert checked.returncode == 0, checked.stdout
    done = cli(
        "evaluate", "digits-mlp-relu", "--catalogue", "plug", "--attack", "towards-grey:eps=0.2", "--samples", "50",
        "--estimator", "binned", "--layer", "logits", "--no-curve", "--no-signs", "--no-corruptions",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "towards-grey" in done.stdout


def test_a_broken_plugin_fails_the_check(cli, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from robgib import Attack\n\n\nclass Bad(Attack):\n"
        "    def perturb(self, model, x, y, rng):\n        return x + 1\n"
    )
    done = cli("attacks", "check", "bad", "--catalogue", ".")
    assert done.returncode == 1
    assert "broken" in done.stdout


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("evaluate", "digits-cnnn"), "unknown model 'digits-cnnn'; did you mean 'digits-cnn'"),
            (("evaluate", "digits-cnn", "--attack", "pgdd-linf"), "did you mean 'pgd-linf'"),
            (("evaluate", "digits-cnn", "--attack", "pgd-linf:eps=-1"), "eps must be a finite number above 0"),
            (("evaluate", "digits-cnn", "--attack", "pgd-linf:eps=much"), "eps must be a number"),
            (("evaluate", "digits-cnn", "--estimator", "gausian"), "did you mean 'gaussian'"),
            (("evaluate", "digits-cnn", "--layer", "blocks.9"), "unknown layer 'blocks.9'; did you mean 'blocks."),
            (("evaluate", "fashion-cnn", "--data-root", "nowhere"), "data folder 'nowhere' does not exist"),
            (("evaluate", "digits-cnn", "--out", "/dev/null/runs"), "cannot be created: /dev/null is a file"),
            (("evaluate", "no.pt", "--arch", "cnn", "--data", "digits"), "checkpoint 'no.pt' does not exist"),
            (("evaluate", "digits-cnn", "digits-cnn"), "a model is named twice"),
            (("evaluate", "digits-cnn", "--features", "patches:9"), "no such grid"),
            (("evaluate", "digits-cnn", "--samples", "0"), "--samples"),
            (("evaluate", "digits-cnn", "--beta", "nan"), "Invalid value for '--beta'"),
            (("evaluate", "digits-cnn", "--catalogue", "nowhere"), "catalogue folder 'nowhere' does not exist"),
            (("evaluate",), "name at least one model"),
            (("report", "nowhere"), "run folder 'nowhere' does not exist"),
            (("train", "digits-vitt"), "did you mean 'digits-vit'"),
            (("train", "digits-cnn", "--out", "x.pt"), "written as .safetensors files"),
            (("zoo", "show", "x"), "unknown model 'x'"),
            (("attacks", "check", "x"), "unknown attack 'x'"),
        ],
    )
    def test_names_values_and_places(self, refused, arguments, sentence):
        assert sentence in refused(*arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
    def test_cuda(self, refused):
        assert "this machine has no CUDA device" in refused("evaluate", "digits-cnn", "--device", "cuda")

    def test_truncated_idx(self, refused, tmp_path):
        folder = write_fashion(tmp_path / "data")
        path = folder / NAMES[0]
        path.write_bytes(path.read_bytes()[:5000])
        assert "is truncated" in refused("evaluate", "fashion-cnn", "--data-root", "data")

    def checkpoint(self, tmp_path, change):
        model = build("mlp", (1, 8, 8), 10, {"hidden": [8, 4]})
        state = model.state_dict()
        change(state)
        torch.save(state, tmp_path / "m.pt")
        (tmp_path / "net.py").write_text(
            "from robgib.models import build\n\n\ndef make():\n"
            "    return build('mlp', (1, 8, 8), 10, {'hidden': [8, 4]})\n"
        )
        return ("evaluate", "m.pt", "--arch", "net:make", "--data", "digits", "--samples", "30")

    def test_dead_layer(self, refused, tmp_path, monkeypatch):
        def kill(state):
            state["blocks.1.0.weight"].zero_()
            state["blocks.1.0.bias"].fill_(-1)

        monkeypatch.syspath_prepend(str(tmp_path))
        arguments = self.checkpoint(tmp_path, kill)
        sys.dont_write_bytecode, was = True, sys.dont_write_bytecode
        try:
            assert "layer 'blocks.1' never fires" in refused(*arguments)
        finally:
            sys.dont_write_bytecode = was
            sys.modules.pop("net", None)

    def test_nan_logits(self, refused, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        arguments = self.checkpoint(tmp_path, lambda s: s["head.bias"].fill_(float("nan")))
        sys.dont_write_bytecode, was = True, sys.dont_write_bytecode
        try:
            assert "NaN or infinite logits on 30 of 30" in refused(*arguments)
        finally:
            sys.dont_write_bytecode = was
            sys.modules.pop("net", None)

    def test_unwritable_folder(self, refused, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "is not writable" in refused("evaluate", "digits-cnn", "--out", "locked/runs")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interruption_leaves_no_half_written_folder(digits_cnn, tmp_path, number):
    process = subprocess.Popen(
        [
            sys.executable, "-m", "robgib", "evaluate", "digits-cnn", "--attack", "pgd-linf:steps=20,restarts=1000",
            "--no-information",
        ],
        cwd=tmp_path,
        env=os.environ.copy(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite run in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert any(line.startswith("pgd-linf") for line in process.stderr)  # the attack has begun
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_new_attack_works_and_is_tested(cli, tmp_path):
    done = cli("attacks", "new", "my-own", "--into", "mine")
    assert done.returncode == 0, done.stderr
    assert "robgib attacks check my-own --catalogue mine" in done.stdout.replace("\n", " ")
    assert cli("attacks", "check", "my-own:eps=0.1", "--catalogue", "mine").returncode == 0
    (test,) = (tmp_path / "mine").glob("test_*.py")
    keeps_the_contract = runpy.run_path(str(test))["test_my_own_keeps_the_contract"]
    (norms,) = keeps_the_contract.pytestmark
    assert norms.args == ("norm", ["linf", "l2"])
    for norm in norms.args[1]:
        keeps_the_contract(norm)
    for name, message in (("my-own", "already"), ("My Own", "cannot name an attack"), ("pgd", "already")):
        refused = cli("attacks", "new", name, "--into", "mine")
        assert refused.returncode == 2
        assert message in refused.stderr


def test_a_run_is_repeated_by_its_configuration(invoke, tmp_path):
    invoke(
        "evaluate", "digits-cnn", "--attack", "fgsm-linf", "--samples", "20", "--no-information", "--no-signs",
        "--no-corruptions", "--no-curve", "--quiet", "--seed", "3", "--device", "cpu",
    )  # fmt: skip
    (written,) = tmp_path.glob("runs/*/run.yaml")
    shown = invoke("evaluate", "--config", str(written))
    assert "--fresh" in shown
    assert len(list(tmp_path.glob("runs/*/run.yaml"))) == 1
    other = invoke("evaluate", "--config", str(written), "--seed", "4")  # the command line goes before the file
    assert "--fresh" not in other
    assert len(list(tmp_path.glob("runs/*/run.yaml"))) == 2
