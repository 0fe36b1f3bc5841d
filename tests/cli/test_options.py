import dataclasses
from pathlib import Path
from typing import Annotated, Optional

import pytest
import typer
from typer.testing import CliRunner

from robgib import RobGIBError
from robgib.cli.app import app
from robgib.cli.options import configuration_reference, configuration_text, configured_models, with_options
from robgib.options import (
    AttackOptions,
    Context,
    EngineOptions,
    InformationOptions,
    ModelOptions,
    ReportOptions,
    gather,
    plain_options,
)

KINDS = (ModelOptions, AttackOptions, InformationOptions, ReportOptions, Context, EngineOptions)


@pytest.fixture
def command():
    """Run a command of all options; it returns what it was called with."""
    app, calls = typer.Typer(), []

    @app.command()
    @with_options
    def evaluate(
        models: Annotated[list[str], typer.Argument()],
        config: Annotated[Optional[Path], typer.Option()] = None,  # noqa: UP045
        *,
        model: ModelOptions,
        attack: AttackOptions,
        information: InformationOptions,
        report: ReportOptions,
        context: Context,
        engine: EngineOptions,
    ):
        calls.append((model, attack, information, report, context, engine))

    def run(*arguments):
        done = CliRunner().invoke(app, ["net", *arguments])
        if isinstance(done.exception, RobGIBError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return calls[-1]

    return run


def test_without_options_a_command_has_the_defaults(command):
    assert command() == tuple(kind() for kind in KINDS)


def test_every_option_reaches_its_object(command):
    model, attack, information, report, context, engine = command(
        "--attack", "pgd-linf", "--attack", "fgsm-linf", "--no-curve", "--until-width", "2%", "--certify",
        "--codes", "40", "--features", "patches:2", "--input-size", "32", "--out", "here", "--json",
        "--fail-under", "40%",
        "--seed", "3", "--catalogue", "a", "--catalogue", "b", "--normalize", "cifar10", "--jobs", "3",
    )  # fmt: skip
    assert list(attack.attacks) == ["pgd-linf", "fgsm-linf"]
    assert (attack.curve, attack.signs, attack.until_width, attack.certify) == (False, None, 0.02, True)
    assert (information.codes, list(information.features)) == (40, ["patches:2"])
    assert (model.input_size, model.normalize) == (32, "cifar10")
    assert (report.out, report.as_json, report.fail_under) == (Path("here"), True, 0.4)
    assert (context.seed, list(context.catalogue)) == (3, [Path("a"), Path("b")])
    assert (engine.jobs, engine.engine, engine.address) == (3, "local", None)


def test_the_command_line_goes_before_the_file_and_the_file_before_the_default(command, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("models: [net]\nattack:\n  samples: 7\n  curve: false\ncontext:\n  seed: 5\n")
    _, attack, _, _, context, _ = command("--config", str(file), "--seed", "9")
    assert (attack.samples, attack.curve, attack.signs, context.seed) == (7, False, None, 9)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("attak: {samples: 7}", "unknown section of .*'attak'; did you mean 'attack'"),
        ("attack: {sample: 7}", "unknown option in section 'attack' of .*: 'sample'; did you mean 'samples'"),
        ("attack: {samples: 0}", "samples must be at least 1, not 0"),
        ("attack: 7", "section 'attack' must map options to values"),
        ("model: {allow_pickle: true}", "allow_pickle may only be given on the command line"),
        ("model: {allow_code: true}", "allow_code may only be given on the command line"),
        ("model: {arch: 'os:system'}", "arch in the configuration file can name code to run"),
        ("context: {progress: 'os:system'}", "unknown option in section 'context' of .*: 'progress'"),
        ("context: {catalogue: [.]}", "catalogue in the configuration file can name code to run"),
    ],
)
def test_a_wrong_file_is_one_sentence(command, tmp_path, text, sentence):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(RobGIBError, match=sentence):
        command("--config", str(file))


def test_a_path_in_a_file_begins_at_home(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text("models: ['~/net.pt']\nmodel: {data: 'folder:~/x'}\nreport: {out: '~/runs'}\n")
    model, _, _, report, _, _ = command("--config", str(file))
    assert (model.data, report.out) == (f"folder:{tmp_path}/x", tmp_path / "runs")
    assert configured_models(file) == [f"{tmp_path}/net.pt"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("context: {device: [cpu]}", r"unknown device \"\['cpu'\]\""),
        ("context: {device: {a: 1}}", "unknown device"),
        ("information: {estimators: [[probe]]}", r"an estimator must be a specification .*not \['probe'\]"),
        ("information: {estimators: 3}", "estimators must be a sequence of specifications or estimators, not 3"),
    ],
)
def test_values_of_another_kind_are_one_sentence(tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(f"models: [digits-cnn]\n{text}\n")
    with pytest.raises(RobGIBError, match=sentence):
        CliRunner().invoke(app, ["evaluate", "--config", "run.yaml"], catch_exceptions=False)


def test_a_file_that_is_not_there_is_named(command):
    with pytest.raises(RobGIBError, match=r"configuration file 'none\.yaml' does not exist"):
        command("--config", "none.yaml")


def test_a_file_may_name_code_where_the_command_line_allows_it(command, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {arch: 'nets:make'}")
    assert command("--config", str(file), "--allow-code")[0].arch == "nets:make"


def test_the_written_configuration_repeats_the_command(command, tmp_path):
    made = command(
        "--attack", "pgd-linf:eps=8/255", "--samples", "7", "--until-width", "2%", "--out", "x", "--seed", "3"
    )
    file = tmp_path / "run.yaml"
    file.write_text(configuration_text(["net"], *made))
    again = command("--config", str(file))
    assert [plain_options(one) for one in again] == [plain_options(one) for one in made]


def test_every_name_means_one_option():
    names = [field.name for kind in KINDS for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


def test_flat_names_are_routed_to_their_objects():
    attack, context = gather("evaluate", {"samples": "5", "seed": 2}, AttackOptions(), Context())
    assert (attack.samples, context.seed) == (5, 2)
    with pytest.raises(RobGIBError, match="unknown option of evaluate: 'sample'; did you mean 'samples'"):
        gather("evaluate", {"sample": 5}, AttackOptions(), Context())


def test_the_reference_is_made_of_the_definitions():
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    assert page.endswith(configuration_reference(KINDS)), "docs/options.md: put configuration_reference(...) at its end"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "run.yaml is empty; it must hold a mapping"),
        ("attack: {transfer_from: [a]}", r"transfer_from must be the name or file of one model, not \['a'\]"),
        ("context: {seed: true}", "seed must be a whole number, not True"),
        ("attack: {eps: [0.1, true]}", r"eps\[1\] must be a number, not True"),
        ("information: {layers: logits}", r"layers must be a list, such as \[logits\], not 'logits'"),
        ("attack: {attacks: ['fgsm-linf:eps=0.05'], eps: 0.1}", "has an eps of its own, 0.05"),
        (None, "is a folder; give the configuration file in it, such as"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_of_the_whole_command(tmp_path, monkeypatch, text, sentence):
    path = tmp_path if text is None else tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", "digits-cnn", "--config", str(path)])
    assert isinstance(done.exception, RobGIBError)
    with pytest.raises(RobGIBError, match=sentence):
        raise done.exception
