"""A run's claims, recomputed from its images; each that is made false is found, and named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import robgib
from robgib import RobGIBError
from robgib.cli.app import app
from robgib.results import ADVERSARIAL, load_adversarial, load_run
from robgib.robustness.verify import verify

ATTACKS = ["fast-linf:eps=0.1", "ddn-l2:eps=0.5,steps=50"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, digits_cnn, digits):
    run = robgib.evaluate(
        digits_cnn, digits, attacks=ATTACKS, estimators=[], samples=40, save_adversarial=True, curve=False, signs=False,
        corruptions=False, progress=False,
    )  # fmt: skip
    return run.save(tmp_path_factory.mktemp("runs"))


def broken(run, images, model, data=None):
    return [claim.what for claim in verify(run, images, model, data) if not claim.holds]


def test_all_claims_hold(saved, digits_cnn, digits):
    run, images = load_run(saved), load_adversarial(saved)
    claims = list(verify(run, images, digits_cnn, (digits.test.x, digits.test.y)))
    assert len(claims) == 22
    assert not [c for c in claims if not c.holds]
    fooled = {
        label: int(((rows["clean_prediction"] == rows["label"]) & ~rows["robust"]).sum())
        for label, rows in outcomes(run)
    }
    assert {label: len(images[f"{label}/rows"]) for label in ATTACKS} == fooled
    assert min(fooled.values()) > 10


def outcomes(run):
    return run.outcomes.groupby("attack")


def test_a_cascade_keeps_every_image(digits_cnn, digits):
    run = robgib.evaluate(
        digits_cnn, digits, attacks=["fgsm-linf", "pgd-linf"], cascade=True, estimators=[], samples=40,
        save_adversarial=True, curve=False, signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    assert len(run.adversarial["pgd-linf/rows"]) > len(run.adversarial["fgsm-linf/rows"]) > 0
    assert not broken(run, run.adversarial, digits_cnn)


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("label", lambda v: (v + 1) % 10, "labels"),
        ("clean_prediction", lambda v: (v + 1) % 10, "answers to clean images"),
        ("adversarial_prediction", lambda v: (v + 1) % 10, "answers to adversarial images"),
        ("right_8bit", lambda v: 1 - v, "answers to 8-bit copies"),
        ("linf", lambda v: v * 0.9, "sizes in linf"),
        ("l2", lambda v: v * 1.1, "sizes in l2"),
    ],
)
def test_a_changed_outcome_is_found(saved, digits_cnn, column, change, expected):
    run, images = load_run(saved), load_adversarial(saved)
    label = ATTACKS[1]
    row = images[f"{label}/rows"][3]
    table = run.outcomes.copy()
    here = (table["attack"] == label) & (table["index"] == row)
    table.loc[here, column] = change(table.loc[here, column])
    assert f"{label}: {expected}" in broken(replace(run, outcomes=table), images, digits_cnn)


@pytest.mark.parametrize("column", ["robust", "robust_accuracy", "low", "high", "samples"])
def test_a_changed_figure_is_found(saved, digits_cnn, column):
    run, images = load_run(saved), load_adversarial(saved)
    table = run.robustness.copy()
    table[column] = table[column].where(table["attack"] != ATTACKS[0], table[column] * 0.5 + 1)
    assert broken(replace(run, robustness=table), images, digits_cnn) == [
        f"{ATTACKS[0]}: robust accuracy and its interval"
    ]


def test_changed_images_are_found(saved, digits_cnn, digits):
    run, label = load_run(saved), ATTACKS[0]
    images = load_adversarial(saved)
    images[f"{label}/images"][2] += 0.05
    assert f"{label}: images within linf 0.1 and the box" in broken(run, images, digits_cnn)
    images = load_adversarial(saved)
    row = images[f"{label}/rows"][2]
    images[f"{label}/images"][2] = images["clean"][row]
    assert {f"{label}: answers to adversarial images", f"{label}: these answers are wrong"} <= set(
        broken(run, images, digits_cnn)
    )
    images = load_adversarial(saved)
    for part in ("rows", "images"):
        images[f"{label}/{part}"] = images[f"{label}/{part}"][1:]
    assert f"{label}: an image for each sample that it fooled" in broken(run, images, digits_cnn)
    images = {k: v for k, v in load_adversarial(saved).items() if not k.startswith(label)}
    assert f"{label}: images" in broken(run, images, digits_cnn)
    images = load_adversarial(saved)
    images["clean"][5] = 0
    found = broken(run, images, digits_cnn, (digits.test.x, digits.test.y))
    assert "the images and labels are those of the data" in found


def test_another_model_is_found_and_a_random_one_refused(saved, digits_cnn):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_cnn

        def forward(self, x):
            return self.net(x + 0.2 * torch.rand_like(x))

    run, images = load_run(saved), load_adversarial(saved)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    assert broken(run, images, other)[0] == "the model has the weights that were attacked"
    with pytest.raises(RobGIBError, match="answers at random"):
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
    told = call(app, ["verify", str(folder)])
    assert told.exit_code == 0
    assert "All 12 claims hold, of 30 samples" in told.output
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
    told = call(app, ["verify", str(folder), "--model", "digits-cnn", *reading, *sizing])
    assert told.exit_code == 0, told.output
    assert "the images and labels are those of the data" in told.output
    assert call(app, ["verify", str(folder), "--model", "digits-cnn", *reading, "--input-size", "6"]).exit_code != 0


def test_rows_that_point_nowhere_are_refused(saved, tmp_path):
    images = load_adversarial(saved)
    images[f"{ATTACKS[0]}/rows"] = images[f"{ATTACKS[0]}/rows"] + 1000
    from safetensors.numpy import save

    (tmp_path / ADVERSARIAL).write_bytes(save({k: np.ascontiguousarray(v) for k, v in images.items()}))
    with pytest.raises(RobGIBError, match="arrays do not fit each other"):
        load_adversarial(tmp_path)
