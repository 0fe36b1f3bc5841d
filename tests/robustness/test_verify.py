"""A run's claims, recomputed from its images; each that is made false is found, and named."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import robgib
from robgib import RobGIBError
from robgib.cli.app import app
from robgib.results import ADVERSARIAL, load_adversarial, load_run
from robgib.robustness.rows import curve_rows
from robgib.robustness.verify import verify

ATTACKS = ["fast-linf:eps=0.1,targets=3,short=3,finalists=2,long=5,probe=10", "ddn-l2:eps=0.5,steps=50"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, digits_mlp, digits):
    run = robgib.evaluate(
        digits_mlp, digits, attacks=ATTACKS, estimators=[], samples=40, save_adversarial=True, curve=False, signs=False,
        corruptions=False, audit=0, progress=False,
    )  # fmt: skip
    return run.save(tmp_path_factory.mktemp("runs"))


def broken(run, images, model, data=None):
    return [claim.what for claim in verify(run, images, model, data) if not claim.holds]


def test_all_claims_hold(saved, digits_mlp, digits):
    run, images = load_run(saved), load_adversarial(saved)
    claims = list(verify(run, images, digits_mlp, (digits.test.x, digits.test.y)))
    assert len(claims) == 49
    assert not [c for c in claims if not c.holds]
    fooled = {
        label: int(((rows["clean_prediction"] == rows["label"]) & ~rows["robust"]).sum())
        for label, rows in outcomes(run)
    }
    assert {label: len(images[f"{label}/rows"]) for label in ATTACKS} == fooled
    assert min(fooled.values()) > 10


def outcomes(run):
    return run.outcomes.groupby("attack")


def test_a_cascade_keeps_every_image(digits_mlp, digits):
    run = robgib.evaluate(
        digits_mlp, digits, attacks=["fgsm-linf", "pgd-linf"], cascade=True, estimators=[], samples=40,
        save_adversarial=True, curve=False, signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    assert len(run.adversarial["pgd-linf/rows"]) > len(run.adversarial["fgsm-linf/rows"]) > 0
    assert not broken(run, run.adversarial, digits_mlp)


COLUMNS = {
    "outcomes": {
        "index": "a row for each sample",
        "label": "labels",
        "attack": "an attack of the run",
        "norm": "norm and eps of each sample",
        "eps": "norm and eps of each sample",
        "clean_prediction": "answers to clean images",
        "adversarial_prediction": "answers to adversarial images",
        "robust": "which samples are robust",
        "right": "shares of right answers",
        "right_8bit": "answers to quantized copies",
        "linf": "sizes in linf",
        "l2": "sizes in l2",
        "distance": "distances",
    },
    "robustness": {
        "attack": "status",
        "norm": "norm and eps",
        "eps": "norm and eps",
        "samples": "robust accuracy and its interval",
        "correct": "clean accuracy and its interval",
        "robust": "robust accuracy and its interval",
        "clean_accuracy": "clean accuracy and its interval",
        "clean_low": "clean accuracy and its interval",
        "clean_high": "clean accuracy and its interval",
        "robust_accuracy": "robust accuracy and its interval",
        "low": "robust accuracy and its interval",
        "high": "robust accuracy and its interval",
        "robust_accuracy_8bit": "quantized robust accuracy",
        "certified": "certified accuracy",
        "certified_accuracy": "certified accuracy",
        "not_finite": "samples without a finite answer",
        "median_distance": "median minimum norm",
        "status": "status",
    },
    "curve": {
        "attack": "belongs to an attack that ran",
        "norm": "radii of the curve",
        "eps": "radii of the curve",
        "at": "radii of the curve",
        "right": "accuracy at each radius",
        "samples": "accuracy at each radius",
        "accuracy": "accuracy at each radius",
        "low": "accuracy at each radius",
        "high": "accuracy at each radius",
    },
}
"""Every column that can be recomputed, and the claim that it breaks."""


def with_all_there_is(model, digits, folder):
    """A saved run of two attacks at one budget, their curves, and the worst of them."""
    run = robgib.evaluate(
        model, digits, attacks=["fgsm-linf:eps=0.1", "pgd-linf:eps=0.1,steps=5"], estimators=[], samples=30,
        save_adversarial=True, curve=True, signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    return run.save(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits_mlp, digits):
    return with_all_there_is(digits_mlp, digits, tmp_path_factory.mktemp("runs"))


def changed(value):
    if isinstance(value, str):
        return "l1" if value == "linf" else f"{value}x"
    if isinstance(value, bool | np.bool_):
        return not value
    return 1.0 if np.isnan(value) else value + 1


@pytest.mark.parametrize(
    ("name", "column", "place"),
    [
        (name, column, place)
        for name in COLUMNS
        for column in COLUMNS[name]
        for place in (["first", "last"] if name == "robustness" else ["first"])
    ],
)
def test_a_changed_column_is_found(whole, tmp_path, digits_mlp, name, column, place):
    """In the table's first row, and of the robustness table in its last: that of the worst of both attacks."""
    folder = shutil.copytree(whole, tmp_path / "run")
    table = pd.read_csv(folder / f"{name}.csv")
    assert set(table.columns) - set(COLUMNS[name]) <= {
        "certified_margin", "audited", "audit_bound", "seconds", "forward", "backward", "reason", "note",
    }  # fmt: skip
    rows = table["attack"] == table["attack"].iloc[0 if place == "first" else -1]
    if name == "curve" and column in ("right", "samples"):  # one point is enough
        rows &= table["at"] > 0.1
    table[column] = table[column].astype(object)
    table.loc[rows, column] = table.loc[rows, column].map(changed)
    table.to_csv(folder / f"{name}.csv", index=False)
    found = broken(load_run(folder), load_adversarial(folder), digits_mlp)
    assert any(COLUMNS[name][column] in what for what in found), found


def test_the_command_line_names_the_column(digits, digits_cnn, tmp_path):
    folder = with_all_there_is(digits_cnn, digits, tmp_path)
    arguments = ["verify", str(folder), "--model", "digits-cnn"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Not checked" in result.output
    table = pd.read_csv(folder / "robustness.csv")
    table.loc[2, "clean_low"] = 0.5
    table.to_csv(folder / "robustness.csv", index=False)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "worst of 2, linf 0.1: clean accuracy and its interval: clean_low is stated as 0.5" in " ".join(
        result.output.split()
    )


def test_a_curve_that_agrees_with_itself_is_held_against_the_distances(whole, digits_mlp):
    run, images = load_run(whole), load_adversarial(whole)
    base = {"attack": "fgsm-linf:eps=0.1", "norm": "linf", "eps": 0.1}
    own = run.curve[run.curve["attack"] == base["attack"]]
    points = list(zip(own["at"], own["right"], strict=True))
    raised = [(at, right + (at == points[2][0])) for at, right in points]
    table = pd.concat([pd.DataFrame(curve_rows(base, raised, 30)), run.curve[run.curve["attack"] != base["attack"]]])
    assert broken(replace(run, curve=table), images, digits_mlp) == [
        "fgsm-linf:eps=0.1: accuracy at each radius, by the distances"
    ]


def test_distances_of_samples_that_remain_robust(saved, whole, digits_mlp):
    """A bounded attack alone finds none; one that looks outside its ball, or a curve, may."""
    for folder, label, expected in ((saved, ATTACKS[0], True), (saved, ATTACKS[1], False)):
        run, images = load_run(folder), load_adversarial(folder)
        table = run.outcomes.copy()
        table.loc[(table["attack"] == label) & table["robust"], "distance"] = 0.9
        found = broken(replace(run, outcomes=table), images, digits_mlp)
        assert (f"{label}: distances" in found) == expected
    run, images = load_run(whole), load_adversarial(whole)
    table = run.outcomes.copy()
    table["distance"] *= 0.5  # nearer than the images kept: a curve may have found such, but would show them
    found = broken(replace(run, outcomes=table), images, digits_mlp)
    assert any("accuracy at each radius" in what for what in found)
    assert any("median minimum norm" in what for what in found)


class Unsure(torch.nn.Module):
    """Has no answer to bright images, and another to dark ones."""

    def __init__(self, net, bright):
        super().__init__()
        self.net, self.bright = net, bright

    def forward(self, x):
        logits, mean = self.net(x), x.flatten(1).mean(1)
        logits = torch.where((mean > self.bright)[:, None], torch.nan, logits)
        return torch.where((mean < 0.26)[:, None], logits.flip(1), logits)


@pytest.mark.parametrize("cascade", [False, True])
def test_undecided_wrong_and_failed(digits_mlp, digits, tmp_path, cascade):
    net = Unsure(digits_mlp, 0.34)
    run = robgib.evaluate(
        net, digits, attacks=["fgsm-linf:eps=0.1", "ddn-l2:eps=0.5,steps=30", "torchattacks:TIFGSM:eps=0.1",
        "fmn-l0:eps=3,steps=30", "pgd-l2:eps=0.5,steps=5", "pgd-linf:eps=0.1,steps=5"], cascade=cascade, estimators=[],
        samples=60, save_adversarial=True, curve=True, signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    folder = run.save(tmp_path)
    loaded, images = load_run(folder), load_adversarial(folder)
    table = loaded.robustness
    assert "failed" in set(table["status"])
    assert table["not_finite"].max() > 0
    assert table["correct"].iloc[0] < 60 - (loaded.outcomes["clean_prediction"].iloc[:60] < 0).sum()
    assert not broken(loaded, images, net)
    failed = table.copy()
    failed.loc[failed["status"] == "failed", "correct"] -= 1
    assert broken(replace(loaded, robustness=failed), images, net) == [
        "torchattacks:TIFGSM:eps=0.1: clean accuracy and its interval"
    ]


def test_a_run_without_attacks(digits_mlp, digits, tmp_path):
    run = robgib.evaluate(
        digits_mlp, digits, attacks=[], estimators=[], samples=30, save_adversarial=True, corruptions=False,
        progress=False,
    )  # fmt: skip
    loaded, images = load_run(run.save(tmp_path)), run.adversarial
    assert not broken(loaded, images, digits_mlp)
    table = loaded.robustness.assign(clean_accuracy=0.9)
    assert broken(replace(loaded, robustness=table), images, digits_mlp) == ["none: clean accuracy and its interval"]


def test_changed_images_are_found(saved, digits_mlp, digits):
    run, label = load_run(saved), ATTACKS[0]
    images = load_adversarial(saved)
    images[f"{label}/images"][2] += 0.05
    assert f"{label}: images within linf 0.1 and the box" in broken(run, images, digits_mlp)
    images = load_adversarial(saved)
    row = images[f"{label}/rows"][2]
    images[f"{label}/images"][2] = images["clean"][row]
    assert {f"{label}: answers to adversarial images", f"{label}: these answers are wrong"} <= set(
        broken(run, images, digits_mlp)
    )
    images = load_adversarial(saved)
    for part in ("rows", "images"):
        images[f"{label}/{part}"] = images[f"{label}/{part}"][1:]
    assert f"{label}: an image for each sample that it fooled" in broken(run, images, digits_mlp)
    images = {k: v for k, v in load_adversarial(saved).items() if not k.startswith(label)}
    assert f"{label}: images" in broken(run, images, digits_mlp)
    images = load_adversarial(saved)
    images["clean"][5] = 0
    found = broken(run, images, digits_mlp, (digits.test.x, digits.test.y))
    assert "the images and labels are those of the data" in found


def test_another_model_is_found_and_a_random_one_refused(saved, digits_mlp):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_mlp

        def forward(self, x):
            return self.net(x + 0.2 * torch.rand_like(x))

    run, images = load_run(saved), load_adversarial(saved)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    assert broken(run, images, other)[0] == "the model has the weights that were attacked"
    with pytest.raises(RobGIBError, match="is stochastic"):
        list(verify(run, images, Noisy()))


def test_from_the_command_line(tmp_path, monkeypatch):
    call = CliRunner().invoke
    done = call(
        app,
        ["evaluate", "digits-cnn", "--samples", "30", "--attack", "fgsm-linf", "--no-information", "--no-curve",
         "--no-signs", "--no-corruptions", "--save-adversarial", "--quiet", "--out", str(tmp_path)],
    )  # fmt: skip
    assert done.exit_code == 0
    folder = next(p for p in tmp_path.iterdir())
    result = call(app, ["verify", str(folder)])
    assert result.exit_code == 0
    assert "All 26 claims hold for 30 samples" in result.output
    wrong = call(app, ["verify", str(folder), "--model", "digits-mlp-relu"])
    assert wrong.exit_code == 1
    table = (folder / "robustness.csv").read_text()
    (folder / "robustness.csv").write_text(table.replace(",30,", ",29,", 1))
    assert call(app, ["verify", str(folder)]).exit_code == 1
    whole = (folder / ADVERSARIAL).read_bytes()
    (folder / ADVERSARIAL).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RobGIBError, match=r"adversarial.safetensors' cannot be read"):
        load_adversarial(folder)
    (folder / ADVERSARIAL).unlink()
    with pytest.raises(RobGIBError, match="holds no adversarial images; evaluate with --save-adversarial"):
        load_adversarial(folder)


def test_pictures_are_read_as_the_evaluation_read_them(tmp_path, digits):
    for index in range(40):
        place = tmp_path / "pictures" / f"digit-{int(digits.test.y[index])}"
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((digits.test.x[index, 0].numpy() * 255).astype("uint8"))
        grey.resize((16, 16), Image.Resampling.NEAREST).save(place / f"{index}.png")
    (tmp_path / "classes.txt").write_text("".join(f"digit-{d}\n" for d in range(10)))
    reading = ["--data", f"folder:{tmp_path / 'pictures'}", "--classes", str(tmp_path / "classes.txt")]
    sizing = ["--input-size", "8"]
    call = CliRunner().invoke
    done = call(
        app,
        ["evaluate", "digits-cnn", *reading, *sizing, "--attack", "fgsm-linf:eps=0.1", "--no-information", "--no-curve",
         "--no-signs", "--no-corruptions", "--save-adversarial", "--quiet", "--out", str(tmp_path / "runs")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    folder = next((tmp_path / "runs").iterdir())
    result = call(app, ["verify", str(folder), "--model", "digits-cnn", *reading, *sizing])
    assert result.exit_code == 0, result.output
    assert "the images and labels are those of the data" in result.output
    assert call(app, ["verify", str(folder), "--model", "digits-cnn", *reading, "--input-size", "6"]).exit_code != 0


def test_rows_that_point_nowhere_are_refused(saved, tmp_path):
    images = load_adversarial(saved)
    images[f"{ATTACKS[0]}/rows"] = images[f"{ATTACKS[0]}/rows"] + 1000
    from safetensors.numpy import save

    (tmp_path / ADVERSARIAL).write_bytes(save({k: np.ascontiguousarray(v) for k, v in images.items()}))
    with pytest.raises(RobGIBError, match="arrays do not fit each other"):
        load_adversarial(tmp_path)
