"""Nothing that a file names is imported and run, whatever the way it is read, unless whoever reads it allows it."""

import importlib
import inspect
import json
import pickle
import pkgutil
import sys
from functools import partial

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file

import robgib
from robgib import RobGIBError
from robgib.engines import _Own
from robgib.models import build
from robgib.options import ModelOptions
from robgib.results import save_run
from robgib.studies import Cell, Study, cells, followed, read_phases, read_study
from robgib.studies.design import Models, chosen_recipes
from robgib.studies.engines import Task, _here, _there
from robgib.studies.measure import _one
from robgib.zoo.loading import add_recipe, load, load_checkpoint, load_recipe, trace_recipe, train_recipe
from robgib.zoo.recipe import Recipe, chosen, find_recipe, read_recipe, recipes

NET = (
    "from pathlib import Path\nfrom robgib.models import build\n\nPath({mark!r}).touch()\n\n"
    "def make(**options):\n    return build('mlp', (1, 8, 8), 10, {{'hidden': [8]}})\n"
)
FAST = (
    "--samples", "20", "--attack", "fgsm-linf", "--no-curve", "--no-signs", "--no-corruptions", "--no-information",
    "--quiet",
)  # fmt: skip
ASKED = {
    "question": "Does it run?",
    "primary": {"figure": "vulnerability", "estimator": "imputation:donors=2,samples=60,steps=20"},
    "outcome": {"attack": "pgd-linf:steps=1", "eps": [0.1]},
    "samples": 20,
    "information_samples": 60,
    "signs": False,
}


class Place:
    """A folder with a network's code, of which a file there marks that it ran."""

    name = "robgib_test_marked:make"

    def __init__(self, folder):
        self.folder, self.mark = folder, folder / "PWNED"
        (folder / "more").mkdir()
        (folder / "code").mkdir()  # not where plug-ins are looked for, which were given by hand
        (folder / "code" / "robgib_test_marked.py").write_text(NET.format(mark=str(self.mark)))
        self.checkpoint = folder / "net.safetensors"
        save_file(dict(build("mlp", (1, 8, 8), 10, {"hidden": [8]}).state_dict()), str(self.checkpoint))

    def write(self, file, content):
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def record(self, beside=None):
        record = {"data": "digits", "architecture": {"name": self.name}, "allow_code": True}
        (beside or self.checkpoint).with_suffix(".json").write_text(json.dumps(record))

    def recipe(self, **others):
        content = {"data": "digits", "architecture": {"name": self.name}, "training": {"epochs": 1}, **others}
        self.write("more/own.yaml", content)

    def study(self, vary, part="confirm", recipe="digits-mlp-relu", **others):
        grid = {"train": [{"recipe": recipe, "vary": {"training.epochs": [1], **vary}}]}
        return self.write("asked.yaml", {**ASKED, "confirm": {"models": ["digits-cnn"]}, part: grid, **others})

    def phases(self, vary):
        grid = [{"recipe": "digits-mlp-relu", "vary": {"training.epochs": [1], **vary}}]
        return self.write(
            "asked.yaml",
            {
                "kind": "compression", "question": "?", "expect": {"digits-mlp-relu": "compresses"}, "train": grid,
                "estimator": "gaussian",
                "samples": 100,
            },
        )  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    yield Place(tmp_path)
    sys.modules.pop("robgib_test_marked", None)


def _weights_alone(place):
    """Metadata in the weights' file, where others keep a record."""
    place.checkpoint.unlink()
    told = {"data": "digits", "architecture": json.dumps({"name": place.name}), "arch": place.name}
    state = build("mlp", (1, 8, 8), 10, {"hidden": [8]}).state_dict()
    save_file(dict(state), str(place.checkpoint), metadata=told)


def _epochs(place):
    for epoch in (1, 2):
        file = place.folder / "saved" / f"epoch-{epoch}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(place.checkpoint.read_bytes())
        place.record(file)


def _run(place, source):
    """The folder of a run that says where its model came from."""
    data = robgib.load_data("digits")
    run = robgib.evaluate(
        build("mlp", data.shape, 10, {"hidden": [8]}).eval(), data, attacks=["fgsm-linf"], estimators=[], samples=10,
        curve=False, signs=False, corruptions=False, save_adversarial=True, source=source, progress=False,
    )  # fmt: skip
    save_run(run, place.folder).rename(place.folder / "run")


def _study(part="confirm", **vary):
    """Write a study that varies a recipe's architecture to the code."""
    return lambda place: place.study({"architecture": [{"name": place.name}], **vary}, part)


STUDIES = {
    "study, architecture varied": _study(),
    "study, name of it varied": lambda place: place.study({"architecture.name": [place.name]}),
    "study, explore": _study("explore"),
    "study, controls": _study("controls"),
    "study, random labels": _study("random_labels"),
    "study, permuted patches": _study("permuted_patches"),
    "study, beside a checkpoint": _study(checkpoint=[{"file": "net.safetensors", "sha256": "0" * 64}]),
    "study of a recipe's grid": lambda place: (place.recipe(), place.study({}, recipe="own")),
    "study of models": lambda place: (
        place.recipe(), place.write("asked.yaml", {**ASKED, "confirm": {"models": ["own"]}})
    ),
    "study of a group": lambda place: (
        place.write("more/zoo/mygroup/own.yaml", {"data": "digits", "architecture": {"name": place.name}}),
        place.write("asked.yaml", {**ASKED, "confirm": {"group": "mygroup"}}),
    ),
    "compression": lambda place: place.phases({"architecture": [{"name": place.name}]}),
}  # fmt: skip
COMMANDS = {
    "zoo YAML, evaluate": (Place.recipe, ("evaluate", "own", *FAST)),
    "zoo YAML, train": (Place.recipe, ("train", "own")),
    "zoo YAML, train and trace": (Place.recipe, ("train", "own", "--trace")),
    "zoo YAML, zoo train": (Place.recipe, ("zoo", "train", "own")),
    "zoo YAML, zoo table": (Place.recipe, ("zoo", "table", "own")),
    "zoo YAML, zoo layers": (Place.recipe, ("zoo", "layers", "own")),
    "record, evaluate": (Place.record, ("evaluate", "net.safetensors", *FAST)),
    "record, zoo add": (Place.record, ("zoo", "add", "net.safetensors", "--name", "bad")),
    "record, verify": (
        lambda place: (place.record(), _run(place, {"kind": "checkpoint"})),
        ("verify", "run", "--model", "net.safetensors"),
    ),
    "records, trace": (_epochs, ("trace", "saved", "--quiet")),
    "metadata of the weights": (_weights_alone, ("evaluate", "net.safetensors", "--data", "digits", *FAST)),
    "run, its architecture": (
        lambda place: _run(place, {"kind": "checkpoint", "file": "net.safetensors", "arch": place.name}),
        ("verify", "run", "--model", "net.safetensors"),
    ),
    "run, its recipe": (
        lambda place: (place.recipe(), _run(place, {"kind": "zoo", "recipe": "own"})),
        ("verify", "run"),
    ),
    "run, the path of its model": (
        lambda place: (place.record(), _run(place, {"kind": "checkpoint", "name": str(place.checkpoint)})),
        ("verify", "run"),
    ),
    "data YAML": (
        lambda place: place.write("more/mine.yaml", {"source": place.name}),
        ("evaluate", "digits-cnn", "--data", "mine", *FAST),
    ),
    "attack YAML": (
        lambda place: place.write("more/mine.yaml", {"attack": place.name}),
        ("evaluate", "digits-cnn", "--attack", "mine"),
    ),
    "estimator YAML": (
        lambda place: place.write("more/mine.yaml", {"estimator": place.name}),
        ("evaluate", "digits-cnn", "--estimator", "mine"),
    ),
}


@pytest.mark.parametrize(
    ("way", "command"),
    [*((way, "plan") for way in STUDIES), ("study, architecture varied", "run"), ("compression", "run")],
)
def test_a_study_runs_nothing(way, command, place, invoke):
    STUDIES[way](place)
    said = invoke("study", command, "asked.yaml", "--catalogue", "more")
    assert f"names the architecture {place.name!r}" in said
    assert "study 'asked', model" in said
    assert "--allow-code" in said
    assert not place.mark.exists()
    assert not (place.folder / "runs").exists()


def test_a_study_allows_nothing_by_itself(place):
    known = {"digits-mlp-relu": find_recipe("digits-mlp-relu")}
    for key in ("allow_code", "allows_code", "_allows_code", "folder", "group"):
        grid = {"recipe": "digits-mlp-relu", "vary": {"architecture": [{"name": place.name}], key: [True]}}
        models = Models.model_validate({"train": [grid]})
        with pytest.raises(RobGIBError, match=f"has no key {key!r} to vary"):
            chosen_recipes("asked", models, known)
    assert not place.mark.exists()


@pytest.mark.parametrize("way", COMMANDS)
def test_nothing_else_runs_it(way, place, invoke):
    prepare, command = COMMANDS[way]
    prepare(place)
    said = invoke(*command, *(() if command[1] == "add" else ("--catalogue", "more")))
    assert place.name in said or "give --arch" in said
    assert not place.mark.exists()


@pytest.mark.parametrize("way", ["study, architecture varied", "study of a group", "compression"])
def test_a_study_that_is_allowed_to(way, place):
    STUDIES[way](place)
    file = place.folder / "asked.yaml"
    if way == "compression":
        found = followed(read_phases(file), [place.folder / "more"], allow_code=True)
    else:
        found = cells(read_study(file), [place.folder / "more"], allow_code=True)
    recipe = next(one.recipe for one in found if one.recipe.name != "digits-cnn")
    assert pickle.loads(pickle.dumps(recipe)).untrained(robgib.load_data("digits")) is not None
    assert place.mark.exists()


def test_the_command_line_allows_it(place, invoke):
    place.phases({"architecture": [{"name": place.name}]})
    assert "1 network, 0 traced before" in invoke("study", "plan", "asked.yaml", "--allow-code")
    assert place.mark.exists()  # a plan builds each network, to see that it can be built
    done = invoke("study", "run", "asked.yaml", "--allow-code", "--out", "found", "--quiet")
    assert "found/study.html" in done


def _texts(place):
    """Ways in Python, each a function that reads a text that names the code."""
    place.recipe()
    place.record()
    digits = robgib.load_data("digits")
    content = {"name": "own", "data": "digits", "architecture": {"name": place.name}, "training": {"epochs": 1}}
    own, extra = Recipe.model_validate(content), [place.folder / "more"]
    cell = Cell(own, "confirm", place.name, "standard", 0.0, 0)
    study = Study.model_validate({"name": "asked", **ASKED, "confirm": {"models": ["own"]}})
    task = Task("own", place.folder / "done", own, partial(_one, cell, study, extra))
    return {
        "a recipe from JSON": lambda: Recipe.model_validate_json(json.dumps(content)).untrained(digits),
        "a recipe in Python": lambda: Recipe(**content).untrained(digits),
        "one that was copied": lambda: load_recipe(own.model_copy(update={"allows_code": True}), digits),
        "one that was listed": lambda: load_recipe(recipes(extra)["own"], digits),
        "one to look at": lambda: train_recipe(read_recipe("own", extra), digits),
        "find_recipe": lambda: find_recipe("own", extra),
        "chosen": lambda: chosen(["own"], None, extra, some=True),
        "load": lambda: load("own", catalogue=extra),
        "load_model": lambda: robgib.load_model("own", catalogue=extra),
        "load_checkpoint": lambda: load_checkpoint(place.checkpoint),
        "load, a file": lambda: load(place.checkpoint),
        "add_recipe": lambda: add_recipe(place.checkpoint, "new", place.folder),
        "trace_recipe": lambda: trace_recipe(own, digits, place.folder / "t.safetensors", [1], ["gaussian"]),
        "build": lambda: build(place.name, digits.shape, 10),
        "a process's task": lambda: _said(_here("cpu", task, None, None)),
        "a ray worker's task": lambda: _said(_there("cpu", task, _Own(digits), None, {})[2]),
        "cells": lambda: cells(study, extra),
    }


def _said(error):
    if error:
        raise RobGIBError(error)


def test_no_call_runs_it_unasked(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    for way, read in _texts(place).items():
        with pytest.raises(RobGIBError, match=r"allow_code=True"):
            read()
        assert not place.mark.exists(), way
    for key in ("allow_code", "allows_code", "_allows_code"):
        with pytest.raises(ValidationError, match="Extra inputs"):
            Recipe.model_validate({"name": "own", "data": "digits", "architecture": {"name": "mlp"}, key: True})


def test_it_is_allowed_nowhere_by_default():
    """Every parameter, option and field of the package by which code could be allowed says no where nobody speaks."""
    found = set()
    for module in pkgutil.walk_packages(robgib.__path__, "robgib."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(value):
                for parameter in inspect.signature(value).parameters.values():
                    if parameter.name in ("allow_code", "allow_pickle"):
                        assert parameter.default in (False, None, inspect.Parameter.empty), f"{module.name}.{name}"
                        found.add(value.__qualname__)
            elif inspect.isclass(value) and issubclass(value, BaseModel):
                assert not {"allow_code", "allows_code"} & set(value.model_fields), f"{module.name}.{name}"
    assert {"build", "cells", "followed", "add_recipe", "find_recipe", "plan", "run", "verify"} <= found
    # load and load_checkpoint take these options as an object
    assert not ModelOptions().allow_code
    assert not ModelOptions().allow_pickle
