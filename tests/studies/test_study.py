"""Study files, their models, and a small study from the command line to its page."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import robgib
from robgib import RobGIBError
from robgib.data import function
from robgib.evaluation import Record
from robgib.information import layer_information
from robgib.measures import list_measures
from robgib.results import csv_text, save_run
from robgib.studies import cells, measured_rows, open_study, read_rows, read_study, stored
from robgib.studies import measure as measure_all
from robgib.studies.claims import Claim
from robgib.studies.page import study_markdown
from robgib.validation import true_information
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import Recipe, find_recipe
from tests.studies.test_claims import STUDY, made

SMALL = """
question: Does v fall with the strength of adversarial training?
expect: negative
primary: {figure: vulnerability, estimator: "imputation:donors=2,samples=60,steps=20", partition: "patches:2"}
outcome: {attack: "pgd-linf:steps=3", eps: [0.05, 0.1]}
samples: 40
information_samples: 80
signs: false
confirm:
  train:
    - recipe: digits-cnn-at
      vary: {training.adversary.eps: [0.02, 0.1], training.epochs: [1], training.adversary.steps: [1]}
controls: {models: [digits-mlp-relu]}
"""
IMPUTED = '"imputation:donors=2,samples=60,steps=20"'
QUICK = SMALL.replace(IMPUTED, "binned").replace("signs: false", "signs: false\nmeasures: [weight_norm]")
"""The same with figures that take little time, for what does not depend on them."""


def written(tmp_path, text, name="small"):
    file = tmp_path / f"{name}.yaml"
    file.write_text(text)
    return file


def test_a_grid_names_its_models_and_tells_where_they_come_from(tmp_path):
    study = read_study(written(tmp_path, SMALL))
    found = {c.name: c for c in cells(study)}
    assert list(found) == ["digits-cnn-at-eps0.02", "digits-cnn-at-eps0.1", "digits-mlp-relu-untrained"]
    one = found["digits-cnn-at-eps0.1"]
    assert (one.regime, one.strength, one.part, one.recipe.training.epochs) == ("adversarial", 0.1, "confirm", 1)
    assert found["digits-mlp-relu-untrained"].part == "control"
    keys = {c.key(study) for c in found.values()}
    assert len(keys) == 3
    assert one.key(study.model_copy(update={"samples": 41})) not in keys


GAP = """
question: Do networks generalise better to more synergistic functions?
primary: {figure: synergy, estimator: exact, partition: pixels, layer: Y}
secondary: [{figure: synergy, estimator: exact, partition: pixels, layer: Ŷ}]
outcome: {measure: generalisation_gap}
information_samples: 4096
confirm:
  train:
    - recipe: function-mlp
      vary: {data: ["function:random-{0..3}"], training.epochs: [20]}
"""


def test_synergy_against_the_generalisation_gap(tmp_path):
    study = read_study(written(tmp_path, GAP))
    found = cells(study)
    assert [c.name for c in found] == [f"function-mlp-random-{k}" for k in range(4)]
    rows = measured_rows(study, measure_all(study, found))
    assert not (rows["left_out"] != "").any()
    for row, cell in zip(rows.itertuples(), found, strict=True):
        assert row.data == cell.recipe.data
        assert row.outcome == pytest.approx(row.trained_accuracy - row.held_out_accuracy)
        assert rows.loc[row.Index, study.primary.label] == pytest.approx(true_information(function(row.data[9:]))[1])
    assert rows["trained_accuracy"].max() > 0.95


@pytest.mark.parametrize("values", ["{5..2}", "{0..99999}"])
def test_a_range_that_cannot_be_meant_is_refused(tmp_path, values):
    with pytest.raises(RobGIBError, match="range in rising order"):
        read_study(written(tmp_path, GAP.replace("{0..3}", values)))


def test_the_median_distance_as_the_outcome(tmp_path):
    text = QUICK.replace(
        '{attack: "pgd-linf:steps=3", eps: [0.05, 0.1]}', '{measure: median_distance, attack: "deepfool-linf"}'
    ).split("controls:")[0]
    study = read_study(written(tmp_path, text.replace("[0.02, 0.1]", "[0.02]")))
    rows = measured_rows(study, measure_all(study, cells(study)))
    trained = rows[rows["part"] == "confirm"]
    assert trained["outcome"].between(1e-4, 1).all()
    assert trained["outcome_se"].max() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("recipe: digits-cnn-at", "recipe: digits-cn-at"), "did you mean 'digits-cnn-at'"),
        (("training.epochs", "training.epoch_s"), "has no key 'training.epoch_s'|extra inputs"),
        (("vulnerability", "v"), "line 4: primary.figure"),
        (("[0.05, 0.1]", "[0.1, 0.05]"), "rising order"),
        (("pgd-linf", "pdg-linf"), "unknown attack"),
        (("imputation:", "imputaton:"), "unknown estimator"),
        (("models: [digits-mlp-relu]", "models: ['nothing-*']"), "unknown model"),
        (("signs: false", "sings: false"), "sings"),
        (("confirm:", "explore:"), "confirm"),
        (("primary:", "primry:"), "line 4: unknown key 'primry'; did you mean 'primary'"),
        (("partition:", "parttion:"), "unknown key of primary: 'parttion'; did you mean 'partition'"),
        (("recipe:", "recipee:"), r"unknown key of confirm.train.0: 'recipee'; did you mean 'recipe'"),
        (("controls:", "least_accuracy: 2\ncontrols:"), "least_accuracy"),
        (("figure: vulnerability", "figure: unit_sinergy"), "line 4: primary.figure"),
        (("controls:", "pni: true\ncontrols:"), "unknown key 'pni'; did you mean 'pmi'"),
        (("samples: 40", "samples: true"), "line 6: samples: must be a number, not true or false"),
        (("[0.05, 0.1]", "[0.05, true]"), r"line 5: outcome.eps.1: must be a number"),
        (("training.epochs: [1]", "training.epochs: [true]"), "training.epochs: must be a number"),
    ],
)
def test_what_does_not_exist_is_one_sentence(tmp_path, change, words):
    with pytest.raises(RobGIBError, match=words):
        cells(read_study(written(tmp_path, SMALL.replace(*change))))


FIGURE = 'primary: {figure: vulnerability, estimator: "imputation:donors=2,samples=60,steps=20",'
TWICE = """secondary:
  - {figure: synergy, estimator: "imputation:donors=2,samples=60,steps=20", partition: "patches:2"}
  - {figure: synergy, estimator: "imputation:donors=2,samples=60,steps=20", partition: "patches:2"}
outcome:"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("question:", "kind: corelation\nquestion:"),
            "unknown kind of study 'corelation'; did you mean 'correlation'",
        ),
        (('"patches:2"', '"patch:2"'), "unknown kind of features 'patch'; did you mean 'patches'"),
        (('"patches:2"', '"patches:99"'), "images of 8x8 have no such grid"),
        (('"patches:2"', '"auto"'), "partition 'auto' may be several"),
        (('"patches:2"', '"patches:2", layer: blocks.99'), "unknown layer of 'digits-cnn-at-eps0.02'"),
        (("question:", "kind: [correlation]\nquestion:"), "line 2: unknown kind of study .*did you mean 'correlation'"),
        ((IMPUTED, "exact"), "the exact estimator counts all inputs there are"),
        (("training.epochs: [1]", "architecture.name: [cnnn]"), "unknown architecture 'cnnn'"),
        (("training.epochs: [1]", "architecture.widhts: [[4]]"), "widhts"),
        (("samples: 40", "samples: 100000"), "asks for 100,000 samples, and 'digits' has 592 test samples"),
        (("outcome: {", "outcome: {measure: median_distance, "), "needs an attack that minimises the distance"),
        (("outcome:", TWICE), "is named twice; name it once"),
        (("outcome:", TWICE.replace("steps=20", "steps=21", 1)), "is named twice; name it once"),
        (("samples: 40", "measures: [gradient_nrm]\nsamples: 40"), "did you mean 'gradient_norm'"),
        (("samples: 40", "measures: [flatness, flatness]\nsamples: 40"), "the measure flatness is named twice"),
        (('{attack: "pgd-linf:steps=3"', '{measure: probabilistic_robustness, attack: "pgd-l1"'), "of the norm l1"),
        (("figure: vulnerability", "figure: unit_synergy"), "unit_synergy needs an estimator of variables"),
        (
            (FIGURE, "primary: {figure: unit_complexity, layer: Ŷ, estimator: binned,"),
            "units, and Ŷ is a label",
        ),
        ((FIGURE, "pmi: true\nprimary: {figure: synergy, estimator: renyi,"), "which the renyi estimator cannot"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_runs(tmp_path, change, words):
    assert change[0] in SMALL
    with pytest.raises(RobGIBError, match=words):
        open_study(written(tmp_path, SMALL.replace(*change))).plan(None)


def test_a_layer_that_there_is_and_defaults_that_are_too_many_pass(tmp_path):
    text = SMALL.replace("samples: 40\ninformation_samples: 80\n", "").replace(
        '"patches:2"', '"patches:2", layer: logits'
    )
    planned = open_study(written(tmp_path, text)).plan(None)
    assert len(planned.rows) == 3
    assert planned.rows[0] == ("digits-cnn-at-eps0.02", "confirm", "cnn, adversarial 0.02", "")


@pytest.mark.parametrize(
    ("measure", "low", "high"),
    [("corruption_accuracy", 0.1, 1), ("probabilistic_robustness", 0.1, 1), ("robust_generalisation_gap", -0.6, 0.6)],
)
def test_other_outcomes(tmp_path, measure, low, high):
    text = QUICK.replace("outcome: {", f"outcome: {{measure: {measure}, ").split("controls:")[0]
    study = read_study(written(tmp_path, text.replace("[0.02, 0.1]", "[0.02]")))
    row = measured_rows(study, measure_all(study, cells(study))).iloc[0]
    assert row["left_out"] == ""
    assert low <= row["outcome"] <= high
    assert 0 < row["outcome_se"] < 0.2
    assert row["chance"] == pytest.approx(0.1, abs=0.01)
    if measure == "robust_generalisation_gap":
        assert row["outcome"] == pytest.approx(row["trained_area"] - row["test_area"])


def test_baselines_are_chosen_by_name(tmp_path):
    study = open_study(written(tmp_path, SMALL))
    assert study.study.measures == list_measures()
    chosen = study.measuring(["flatness", "flatness"])
    assert chosen.study.measures == ["flatness"]
    cell = chosen.cells[0]
    assert cell.key(chosen.study) != cell.key(study.study)
    with pytest.raises(RobGIBError, match="did you mean 'flatness'"):
        study.measuring(["flatnes"])


def test_the_same_weights_in_two_parts_are_refused(tmp_path):
    """Under another name, which a grid with one value gives them."""
    text = SMALL.split("controls:")[0] + ("explore: {models: [digits-cnn]}\n")
    text = text.replace("digits-cnn-at\n", "digits-cnn\n").replace(
        "{training.adversary.eps: [0.02, 0.1], training.epochs: [1], training.adversary.steps: [1]}",
        "{training.seed: [null, 5]}",
    )
    with pytest.raises(RobGIBError, match="have the same weights; a model may be in one part only"):
        cells(read_study(written(tmp_path, text)))


def test_a_claim_is_tested_again_on_a_table(cli, tmp_path):
    reports = Path(__file__).parents[2] / "reports" / "robustness"
    study, models = str(reports / "study.yaml"), str(reports / "models.csv")
    done = cli("study", "claim", study, "--models", models, "--out", "again")
    assert done.returncode == 0, done.stderr
    assert "Goes with." in done.stdout
    assert (tmp_path / "again" / "study.md").read_text() == (reports / "study.md").read_text()
    (tmp_path / "half.csv").write_text("model,part\na,confirm\n")
    done = cli("study", "claim", study, "--models", "half.csv")
    assert done.returncode == 2
    assert "half.csv has no column 'data'; give the models.csv of this study." in done.stderr


def table_with(tmp_path, change):
    """A table of 48 models, its bytes changed by a function, as it is read."""
    file = tmp_path / "models.csv"
    file.write_bytes(change(csv_text(made(np.random.default_rng(0))).encode()))
    return read_rows(file, STUDY)


def and_again(old, new):
    """Return a function that adds the first model again at the end, with another value."""

    def changed(table):
        first = table.splitlines()[1]
        assert old in first
        return table + first.replace(old, new, 1) + b"\n"

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t[:-60],
            r"models.csv, line 49: it has \d+ values, and the table has 23 columns; the file may be cut",
        ),
        (lambda t: b"", "is no table of models: No columns to parse"),
        (lambda t: t.decode().encode("utf-16"), "is no table of models: 'utf-8' codec can't decode"),
        (and_again(b"", b""), "has the model 'cnn-0-0' twice, in confirm; remove one of the rows"),
        (and_again(b",confirm,", b",explore,"), "has the model 'cnn-0-0' twice, in confirm and in explore; remove"),
        (and_again(b",confirm,", b",Confirm,"), "line 50: unknown part 'Confirm'; did you mean 'confirm'"),
        (and_again(b",cnn,", b",,"), "line 50: the column 'architecture' is empty; fill it, or remove the row"),
        (and_again(b",standard,0.0,", b",standard,weak,"), "line 50: the column 'strength' holds 'weak', which is no"),
        (
            and_again(b",0.02,", b",two,"),
            "the column 'outcome_se' holds 'two', which is no number; correct it, or leave",
        ),
    ],
)
def test_a_table_of_models_that_is_not_one_is_one_sentence(tmp_path, change, words):
    with pytest.raises(RobGIBError, match=words):
        table_with(tmp_path, change)


@pytest.mark.filterwarnings("error")
def test_a_table_of_models_as_other_programs_write_it(tmp_path):
    whole = table_with(tmp_path, lambda t: t)
    assert set(whole["left_out"]) == {""}
    for change in (lambda t: b"\xef\xbb\xbf" + t, lambda t: t.replace(b"\n", b"\r\n"), lambda t: t.rstrip(b"\n")):
        pd.testing.assert_frame_equal(table_with(tmp_path, change), whole)


def test_the_plan_fits_80_columns(cli, tmp_path):
    written(tmp_path, SMALL)
    lines = cli("study", "plan", "small.yaml").stdout.splitlines()
    assert sum("digits-" in line for line in lines) == 3
    assert max(len(line) for line in lines if "digits-" in line) <= 80


def test_a_model_in_both_parts_is_refused(tmp_path):
    text = SMALL.replace("controls: {models: [digits-mlp-relu]}", "explore: {models: [digits-cnn]}")
    text = text.replace("confirm:\n", "confirm:\n  models: [digits-cnn]\n")
    with pytest.raises(RobGIBError, match="'digits-cnn' both in explore and in confirm"):
        cells(read_study(written(tmp_path, text)))


def test_from_the_command_line_to_the_page(cli, cache, tmp_path, monkeypatch):
    written(tmp_path, SMALL)
    planned = cli("study", "plan", "small.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "3 models, 0 measured before" in planned.stdout
    assert "About 1 min on one process" in planned.stdout
    done = cli("study", "run", "small.yaml", "--out", "found", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "Undetermined." in done.stdout  # two models do not suffice
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == [
        "models.csv", "study.html", "study.json", "study.md",
    ]  # fmt: skip
    told = json.loads((tmp_path / "found" / "study.json").read_text())
    assert told["verdict"] == "undetermined"
    first = pd.read_csv(tmp_path / "found" / "models.csv")
    assert first["outcome"].between(0, 1).all()
    assert set(list_measures()) <= set(first)
    assert first[["weight_norm", "boundary_thickness", "effective_rank"]].gt(0).all(axis=None)
    assert "3 measured before" in cli("study", "plan", "small.yaml").stdout

    # What is measured is read, not measured again; one that is gone is measured alone, to the same figures.
    study = read_study(tmp_path / "small.yaml")
    found = cells(study)
    monkeypatch.setattr(
        importlib.import_module("robgib.studies.measure"), "_one", lambda *_: pytest.fail("measured again")
    )
    assert all(m.run for m in measure_all(study, found))
    monkeypatch.undo()
    gone = stored(found[0], study)
    (next(gone.iterdir()) / "config.json").unlink()
    assert (
        cli("study", "run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "again"), "--quiet").returncode == 0
    )
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "models.csv"), first)


def test_the_folder_that_is_read_is_the_cell_s_own(tmp_path, digits, monkeypatch):
    """It was the first that held a config.json, also half of one, and another's."""
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))  # another test measures the same cell
    study = read_study(written(tmp_path, SMALL))
    (cell, other, *_) = cells(study)
    module, place = importlib.import_module("robgib.studies.measure"), stored(cell, study)
    monkeypatch.setattr(module, "_one", lambda *_: pytest.fail("measured"))

    def keep(name, key):
        asked = {"attacks": [], "estimators": [], "signs": False, "curve": False, "corruptions": False, "samples": 3}
        level = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        record = Record(source={"kind": "study", "study_cell": key})
        return save_run(robgib.evaluate(level, digits, name=name, record=record, progress=False, **asked), place)

    keep("another", other.key(study))
    assert module._read(cell, study) is None
    own = keep("own", cell.key(study))
    (place / "a").mkdir()
    (place / "a" / "config.json").write_text("{")
    shutil.copytree(own, place / ".own-of-a-killed-process")
    (found,) = measure_all(study, [cell])
    assert found.run.name == "own"


def test_networks_on_permuted_patches_are_controls(tmp_path):
    text = QUICK.replace("controls: {models: [digits-mlp-relu]}", "permuted_patches: {models: [digits-mlp-relu]}")
    study = read_study(written(tmp_path, text))
    control = next(c for c in cells(study) if c.part == "control")
    assert control.name == "digits-mlp-relu-permuted-patches"
    row = measured_rows(study, measure_all(study, [control])).iloc[0]
    assert row["regime"] == "permuted-patches"
    assert row["clean_accuracy"] < 0.5  # digits without the places of their patches; whole ones give 0.95


def test_networks_on_random_labels_are_controls(tmp_path):
    text = QUICK.replace("controls: {models: [digits-mlp-relu]}", "random_labels: {models: [digits-mlp-relu]}")
    study = read_study(written(tmp_path, text))
    (control,) = (c for c in cells(study) if c.part == "control")
    assert control.name == "digits-mlp-relu-random-labels"
    row = measured_rows(study, measure_all(study, [control])).iloc[0]
    assert row["regime"] == "random-labels"
    assert row["clean_accuracy"] < 0.35  # the labels that it learnt make no sense
    assert row["bound_held"] == row["bound_of"] > 0


def test_a_study_in_which_every_model_fails_says_why(cli, tmp_path, monkeypatch):
    def failing(*given, **options):
        raise RobGIBError("the measurement counts all inputs there are.")

    monkeypatch.setattr(importlib.import_module("robgib.studies.measure"), "evaluate", failing)
    written(tmp_path, QUICK.replace("controls: {models: [digits-mlp-relu]}", ""))
    done = cli("study", "run", "small.yaml", "--out", "found", "--quiet")
    assert done.returncode == 1
    assert "counts all inputs there are" in done.stdout
    assert "counts all inputs there are" in (tmp_path / "found" / "study.html").read_text()


@pytest.mark.slow
def test_networks_trained_against_c_show_it(digits):
    """The control that must show something: a price on C(X;Z) lowers the C that is measured, at nearly the same I."""
    base = find_recipe("digits-mlp-relu")
    found = {}
    for beta in (0.0, 1.0):
        training = {"penalty": {"kind": "gib", "beta": beta, "features": 4}, "batch_size": 128, "epochs": 40}
        content = base.model_dump(exclude={"group", "description"})
        content["architecture"] |= {"bottleneck": 8}
        content |= {"name": f"priced-{beta}", "folder": base.folder, "training": content["training"] | training}
        model, _ = load_recipe(Recipe.model_validate(content), digits)
        asked = ["imputation:samples=300,steps=300"]
        layers = layer_information(model, digits, asked, features="patches:4", samples=600, layers=["logits"]).layers
        found[beta] = layers[layers["layer"] == "logits"].set_index("term")
    terms = {beta: table["value"] for beta, table in found.items()}
    assert terms[1.0]["C(X;Z)"] < terms[0.0]["C(X;Z)"] - 0.5
    assert terms[1.0]["I(X;Z)"] == pytest.approx(terms[0.0]["I(X;Z)"], abs=0.3)


UNITS = """
question: Do the units' figures reach the table?
primary: {figure: unit_synergy, estimator: binned, partition: "patches:2"}
secondary:
  - {figure: unit_complexity, estimator: binned, partition: "patches:2"}
  - {figure: subset_synergy, estimator: binned, partition: "patches:2"}
  - {figure: label_information, estimator: binned, partition: "patches:2"}
outcome: {measure: generalisation_gap}
information_samples: 200
unit_groups: 4
signs: false
measures: [clean_accuracy]
confirm: {train: [{recipe: digits-mlp-relu, vary: {training.epochs: [3]}}]}
"""


def test_figures_of_units_and_pmi_weights_are_those_of_the_layers_table(tmp_path, digits):
    plain = read_study(written(tmp_path, UNITS))
    weighted = read_study(written(tmp_path, UNITS + "pmi: true\n", "weighted"))
    (cell,) = cells(plain)
    assert len({cell.key(s) for s in (plain, weighted, plain.model_copy(update={"unit_groups": 5}))}) == 3
    model, _ = load_recipe(cell.recipe, digits)
    for study in (plain, weighted):
        row = measured_rows(study, measure_all(study, [cell])).iloc[0]
        assert row["left_out"] == ""
        layers = layer_information(
            model, digits, ["binned"], samples=200, features="patches:2", unit_groups=4, pmi=study.pmi
        ).layers.query("layer == 'blocks.2'").set_index("term")["value"]  # fmt: skip
        for figure, term in zip(study.figures, ("S(Z;Y)", "C(Z;Y)", "subset synergy", "I(Z;Y)"), strict=True):
            assert row[figure.label] == pytest.approx(layers[term]), (term, study.pmi)


def test_tables_call_figures_and_baselines_what_their_headings_call_them(tmp_path):
    """Not gib_complexity and linear_r2, the names of columns."""
    reports = Path(__file__).parents[2] / "reports" / "robustness"
    study, rows = read_study(reports / "study.yaml"), pd.read_csv(reports / "models.csv", keep_default_na=False)
    row = {"part": "baseline", "models": 48, "rho": 0.8, "low": 0.6, "high": 0.9, "p": 0.01}
    named = ["gib_complexity (imputation, patches:2, last layer)", "linear_r2", "clean_accuracy"]
    empty = dict.fromkeys(("ladder", "beside", "agreement", "against", "partial", "without"), pd.DataFrame())
    claim = Claim("not shown", "", 48, correlations=pd.DataFrame([row | {"figure": name} for name in named]), **empty)
    text = study_markdown(study, rows, claim)
    for shown, name in zip(("C(X;Z) (imputation", "linear R²", "clean accuracy"), named, strict=True):
        assert f"| {shown}" in text
        assert f"| {name}" not in text
