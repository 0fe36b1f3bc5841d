"""Files whose content no reader expects: values that are none of JSON's, nesting without end, pipes."""

import json
import os
import re

import pytest
import yaml

import robgib
from robgib import RobGIBError
from robgib.models import build
from robgib.registry import plugin_modules, read_yaml
from robgib.reporting import read_validation
from robgib.studies import read_study
from robgib.studies.design import Models, chosen_recipes
from robgib.zoo.loading import load_checkpoint
from robgib.zoo.recipe import find_recipe
from tests.faults.test_pipes_and_aliases import in_time

STUDY = {
    "question": "?",
    "primary": {"figure": "vulnerability"},
    "outcome": {"attack": "pgd-linf", "eps": [0.1]},
    "confirm": {"models": ["digits-cnn"]},
}
DEEP = "[" * 400 + "]" * 400
VALUES = {
    "a set": ("!!set {a, b}", "holds a value of the kind set"),
    "bytes": ("!!binary aGVsbG8=", "holds a value of the kind binary"),
    "an ordered mapping": ("!!omap [a: 1]", "holds a value of the kind omap"),
    "pairs": ("!!pairs [a: 1]", "holds a value of the kind pairs"),
    "a date": ("2024-01-01", r"holds a date \(2024-01-01\).*; put it in quotes"),
    "a mapping that is none": ("!!map [1]", "is not valid YAML"),
    "a truth that is none": ("!!bool perhaps", "is not valid YAML"),
    "a date that is none": ("!!timestamp soon", "is not valid YAML"),
    "a list of 400 levels": (DEEP, "is nested more than 50 levels deep|is not valid YAML"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_nothing_can_use(kind, invoke, tmp_path):
    text, words = VALUES[kind]
    before = yaml.safe_dump({k: v for k, v in STUDY.items() if k != "confirm"})
    grid = "train: [{recipe: digits-mlp-relu, vary: {%s: [%s]}}]"
    for key, value in (("training.seed", text), ("architecture.hidden", text), ("architecture", f"{{name: {text}}}")):
        (tmp_path / "asked.yaml").write_text(f"{before}confirm: {{{grid % (key, value)}}}\n")
        with in_time(), pytest.raises(RobGIBError, match=words):
            read_study(tmp_path / "asked.yaml")
    (tmp_path / "zoo").mkdir()
    for content in (f"data: digits\narchitecture: {{name: mlp, hidden: {text}}}\n", f"data: {text}\n"):
        (tmp_path / "zoo" / "mine.yaml").write_text(content)
        with in_time(), pytest.raises(RobGIBError, match=words):
            find_recipe("mine", [tmp_path / "zoo"])
    if kind in ("a set", "a list of 400 levels"):
        said = invoke("study", "plan", "asked.yaml")
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture.name.x", 1), ("architecture.hidden.0", 1), ("architecture.", 1), ("data.x", 1),
        ("training.epochs.x", 1), ("training.seed.x.y", 1), ("name", "a"), ("folder", "/"), ("", 1), (".", 1),
    ],
)  # fmt: skip
def test_keys_that_a_recipe_does_not_have(key, value):
    models = Models.model_validate({"train": [{"recipe": "digits-mlp-relu", "vary": {key: [value]}}]})
    known = {"digits-mlp-relu": find_recipe("digits-mlp-relu")}
    if key == "architecture.":  # of an option without a name the factory speaks
        assert len(chosen_recipes("asked", models, known)) == 1
        return
    with pytest.raises(RobGIBError, match=re.escape(f"has no key {key!r} to vary")):
        chosen_recipes("asked", models, known)


@pytest.mark.parametrize(
    "text", ["estimator: [1]\n", "estimator: binned\nparameters: [1]\n", "estimator: binned\nparameters: {1: 2}\n"]
)
def test_estimators_files_of_other_kinds(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RobGIBError, match=r"mine\.yaml"):
        robgib.make_estimator("mine", [tmp_path])


def test_records_of_400_levels(tmp_path):
    from safetensors.torch import save_file

    save_file(dict(build("mlp", (1, 8, 8), 10).state_dict()), str(tmp_path / "net.safetensors"))
    for text in (f'{{"architecture": {DEEP}}}', f'{{"architecture": {{"name": "mlp", "hidden": {DEEP}}}}}'):
        (tmp_path / "net.json").write_text(text)
        json.loads(text)  # which Python itself can read
        with pytest.raises(RobGIBError, match=r"net\.json is not readable JSON: it is nested .* deep"):
            load_checkpoint(tmp_path / "net.safetensors", data="digits")


PIPES = {
    "plug-in": ("p.py", lambda folder: list(plugin_modules([folder]))),
    "plug-in in a folder for its kind": ("attacks/p.py", lambda folder: robgib.make_attack("p", extra=[folder])),
    "YAML": ("p.yaml", lambda folder: read_yaml(folder / "p.yaml")),
    "study": ("p.yaml", lambda folder: read_study(folder / "p.yaml")),
    "recipe": ("zoo/p.yaml", lambda folder: find_recipe("p", [folder])),
    "weights": ("p.safetensors", lambda folder: load_checkpoint(folder / "p.safetensors", arch="mlp", data="digits")),
    "pickled weights": ("p.pt", lambda folder: load_checkpoint(folder / "p.pt", arch="mlp", data="digits")),
    "TorchScript": ("p.ts", lambda folder: load_checkpoint(folder / "p.ts", data="digits")),
    "an exported program": ("p.pt2", lambda folder: load_checkpoint(folder / "p.pt2", data="digits")),
    "an index of weights": (
        "p.safetensors.index.json",
        lambda folder: load_checkpoint(folder / "p.safetensors.index.json", arch="mlp", data="digits"),
    ),
    "arrays": ("p.npz", lambda folder: robgib.load_data(f"npz:{folder / 'p.npz'}")),
    "IDX": (
        "fashion-mnist/train-images-idx3-ubyte",
        lambda folder: robgib.load_data("fashion-mnist", folder),
    ),
    "texts": ("train/one/p.txt", lambda folder: robgib.load_data(f"text:{folder}")),
    "classes": ("p.json", lambda folder: robgib.data.read_classes(folder / "p.json")),
    "a validation's table": ("p.csv", lambda folder: read_validation(folder / "p.csv")),
}


@pytest.mark.parametrize("what", PIPES)
def test_pipes_are_not_waited_for(what, tmp_path):
    name, read = PIPES[what]
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place)
    if what == "texts":
        (place.parent / "a.txt").write_text("a word")
        (tmp_path / "test" / "one").mkdir(parents=True)
        (tmp_path / "test" / "one" / "a.txt").write_text("a word")
    with in_time(), pytest.raises(RobGIBError):
        read(tmp_path)
