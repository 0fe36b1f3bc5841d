"""Help, completion, the commands that show and write what there is to choose, and suggestions."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import typer
import yaml

from robgib import RobGIBError, make_attack
from robgib.cli.app import app
from robgib.cli.options import configuration, configuration_template, section_of
from robgib.options import (
    AttackOptions,
    Context,
    EngineOptions,
    InformationOptions,
    ModelOptions,
    ReportOptions,
    plain_options,
)

KINDS = (ModelOptions, AttackOptions, InformationOptions, ReportOptions, Context, EngineOptions)


def flags(text):
    return {word.strip(",|│") for word in text.split() if word.startswith("--")}


def test_everyday_options_come_first_and_help_all_lists_the_rest(cli):
    few, all_of_them = flags(cli("evaluate", "--help").stdout), flags(cli("evaluate", "--help-all").stdout)
    assert {"--attack", "--samples", "--data", "--arch", "--quick", "--help-all"} <= few
    assert {"--sigma", "--pmi", "--weights-key", "--no-signs"} <= all_of_them - few
    assert few <= all_of_them
    hidden = [p for p in typer.main.get_command(app).commands["evaluate"].params if p.hidden]
    assert len(hidden) >= 15


def test_a_hidden_option_works(cli):
    done = cli("evaluate", "digits-cnn", "--codes", "1")
    assert done.returncode == 2
    assert "--codes" in done.stderr
    assert "No such option" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script_and_completions(shell, cli, tmp_path, monkeypatch):
    def ask(**given):
        if shell != "bash":  # a process of its own, as a shell starts it, for one of them
            with monkeypatch.context() as patched:
                for name, value in given.items():
                    patched.setenv(name, value)
                return cli().stdout
        environment = {**os.environ, **given}
        return subprocess.run(
            [sys.executable, "-c", "from robgib.cli import main; main()"],
            env=environment, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    script = ask(_ROBGIB_COMPLETE=f"source_{shell}")
    assert "_ROBGIB_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0
    words = {
        "bash": {"COMP_WORDS": "robgib evaluate digits-v", "COMP_CWORD": "2"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "robgib evaluate digits-v"},
        "fish": {"_TYPER_COMPLETE_ARGS": "robgib evaluate digits-v", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    assert "digits-vit" in ask(_ROBGIB_COMPLETE=f"complete_{shell}", **words[shell])


def completions(option, incomplete):
    (found,) = [p for p in typer.main.get_command(app).commands["evaluate"].params if option in p.opts]
    return [item.value for item in found.shell_complete(typer.Context(typer.main.get_command(app)), incomplete)]


@pytest.mark.parametrize(
    ("option", "incomplete", "found"),
    [
        ("--attack", "apgd-ce-li", ["apgd-ce-linf"]),
        ("--estimator", "gau", ["gaussian"]),
        ("--norm", "l", ["linf", "l2", "l1", "l0"]),
        ("--log", "t", ["tensorboard"]),
    ],
)
def test_values_of_options_are_completed(option, incomplete, found):
    assert completions(option, incomplete) == found


def test_an_attack_is_shown(invoke):
    shown = invoke("attacks", "show", "pgd-linf")
    assert all(
        word in shown for word in ("norm: linf", "steps", "whole number at least 1", "best, last", "pgd-linf.yaml")
    )
    assert "did you mean 'pgd-linf'" in invoke("attacks", "show", "pgd")


def test_an_estimator_is_shown(invoke):
    shown = invoke("estimators", "show", "imputation")
    assert all(word in shown for word in ("bound: ", "donors", "built in", "learn_codes"))
    assert "`" not in shown
    fields = shown.partition("Fields:\n")[2].partition("\n\n")[0].splitlines()
    assert len(fields) > 8
    assert all(line.startswith("    ") for line in fields)
    assert "did you mean 'gaussian'" in invoke("estimators", "show", "gausian")


def test_init_writes_a_file_that_changes_nothing_until_it_is_edited(invoke, tmp_path):
    assert "run.yaml" in invoke("init")
    file = tmp_path / "run.yaml"
    assert configuration(file, KINDS) == {}
    assert "exists" in invoke("init")
    file.write_text(file.read_text().replace("  # samples: null", "  samples: 7"))
    assert configuration(file, KINDS) == {AttackOptions: {"samples": 7}}


def test_every_line_of_the_template_is_an_option_at_its_default():
    lines = configuration_template(["digits-cnn"], KINDS).splitlines()
    content = yaml.safe_load(
        "\n".join(line.replace("  # ", "  ", 1) for line in lines if not line.endswith(".") and "…" not in line)
    )
    for kind in KINDS:
        default = plain_options(kind())
        assert content[section_of(kind)].items() <= default.items()
        assert len(content[section_of(kind)]) >= min(4, len(default))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("hfvit",), "did you mean './hfvit'"),
        (("resnet18",), "did you mean 'torchvision:resnet18'"),
        (("./net.pt", "--data", "digits", "--arch", "mynet.py:make"), "did you mean its module, 'mynet:make'"),
        (("./net.pt", "--data", "digits", "--arch", "nets/mynet.py:make"), "its module, 'nets.mynet:make'"),
        (("./net.pt", "--data", "digits", "--arch", "resnet18"), "did you mean 'torchvision:resnet18'"),
        (("digits-cnn", "--attack", "pgd"), "did you mean 'pgd-linf'"),
        (("digits-cnn", "--attack", "fast"), "did you mean 'fast-linf'"),
        (("digits-cnn", "./net.pt", "--arch", "mynet:make"), "write one page with `robgib report RUN RUN`"),
    ],
)
def test_a_suggestion_helps(invoke, tmp_path, arguments, sentence):
    (tmp_path / "hfvit").mkdir()
    torch.save({}, tmp_path / "net.pt")
    assert sentence in invoke("evaluate", *arguments)


def test_a_suggestion_of_a_norm_is_of_one_that_exists():
    with pytest.raises(RobGIBError, match="did you mean 'sigma-zero-l0'"):
        make_attack("sigma-zero")
