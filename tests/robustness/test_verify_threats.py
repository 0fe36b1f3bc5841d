"""Runs with masks, targets, rotations and patches: what was changed is judged again from the files of the run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import robgib
from robgib import RobGIBError
from robgib.attacks import RotationTranslation, Transfer
from robgib.attacks.rotation import rotated
from robgib.results import load_adversarial, load_run
from robgib.robustness import evaluate
from robgib.robustness.verify import verify

QUICK = {
    "estimators": [], "samples": 24, "curve": False, "signs": False, "corruptions": False, "audit": 0,
    "progress": False, "save_adversarial": True,
}  # fmt: skip
PGD, SQUARE = "pgd-linf:eps=0.2,steps=10", "square-linf:eps=0.4,queries=30"
ROTATION, PATCH = "rotation-translation:eps=60,angles=7,shifts=3,steps=2,starts=1", "patch:eps=4,places=3,steps=8"


def masks(count):
    made = np.zeros((count, 8, 8), bool)
    made[::2, :5], made[1::2, 3:] = True, True
    return made


def run_of(kind, digits, digits_mlp, **more):
    options = {
        "mask": {"attacks": [PGD, SQUARE], "mask": masks(len(digits.test))},
        "targets": {"attacks": [PGD, SQUARE], "targets": (digits.test.y.numpy() + 1) % 10},
        "rotation": {"attacks": [ROTATION]},
        "patch": {"attacks": [PATCH]},
    }[kind]
    return robgib.evaluate(digits_mlp, digits, **{**QUICK, **options, **more})


def broken(run, images, model):
    return [claim.what for claim in verify(run, images, model) if not claim.holds]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, digits_mlp):
    """Return the folder of a run of each kind."""
    root = tmp_path_factory.mktemp("runs")
    return {kind: run_of(kind, digits, digits_mlp).save(root) for kind in ("mask", "targets", "rotation", "patch")}


def read(runs, kind):
    return load_run(runs[kind]), dict(load_adversarial(runs[kind]))


@pytest.mark.parametrize("kind", ["mask", "targets", "rotation", "patch"])
def test_the_run_holds(kind, runs, digits_mlp):
    run, images = read(runs, kind)
    label = next(iter(run.attack_options["attacks"]))
    assert len(images[f"{label}/rows"]) >= 5
    assert not broken(run, images, digits_mlp)


def test_an_image_outside_its_mask_is_found(runs, digits_mlp):
    run, images = read(runs, "mask")
    row = images[f"{PGD}/rows"][0]
    there = np.argwhere(~images["mask"][row])[0]
    made = images[f"{PGD}/images"] = images[f"{PGD}/images"].copy()
    made[(0, *there)] = np.abs(made[(0, *there)] - 0.01)
    assert f"{PGD}: only pixels of the mask changed" in broken(run, images, digits_mlp)
    run, images = read(runs, "mask")
    images["mask"] = np.ones_like(images["mask"])  # a wider mask than the configuration's
    assert broken(run, images, digits_mlp) == ["the masks are those of the configuration"]


@pytest.mark.parametrize("kind", ["mask", "targets"])
def test_a_run_without_what_was_given_is_one_sentence(kind, runs, digits_mlp):
    run, images = read(runs, kind)
    del images[kind]
    with pytest.raises(RobGIBError, match=rf"the folder does not hold the {kind.removesuffix('s')}s of its run"):
        broken(run, images, digits_mlp)


def test_another_class_than_the_target_is_no_success(runs, digits_mlp):
    """Any wrong answer would do without targets; here it is one of another attack."""
    run, images = read(runs, "targets")
    rows = run.outcomes[run.outcomes["attack"] == PGD]
    reached = rows["adversarial_prediction"].to_numpy() == images["targets"]
    assert (rows["robust"] == (rows["clean_prediction"] == rows["label"]) & ~reached).all()
    place = rows.index[rows["robust"]][0]
    for column, value, what in (
        ("robust", False, "which samples are robust"),
        ("adversarial_prediction", images["targets"][rows.index.get_loc(place)], "an image for each sample"),
    ):
        changed = replace(run, outcomes=run.outcomes.copy())
        changed.outcomes.loc[place, column] = value
        assert any(what in claim for claim in broken(changed, images, digits_mlp)), column
    images[f"{PGD}/images"] = images["clean"][images[f"{PGD}/rows"]]
    assert f"{PGD}: these answers are the targets" in broken(run, images, digits_mlp)


def test_parameters_make_the_image_and_its_size(runs, digits_mlp):
    """A rotated image shows no angle: the parameters do, and those beyond the budget are found with their image."""
    run, images = read(runs, "rotation")
    rows, made, parameters = (images[f"{ROTATION}/{name}"] for name in ("rows", "made", "parameters"))
    assert (rows == made).all()
    outcomes = run.outcomes.set_index("index").loc[rows]
    assert np.allclose(outcomes["distance"], np.abs(parameters[:, 0]), atol=1e-4)

    further = {**images, f"{ROTATION}/parameters": parameters + np.float32([1, 0, 0])}
    assert f"{ROTATION}: images made again from their parameters" in broken(run, further, digits_mlp)

    beyond = parameters.copy()
    beyond[0, 0] = 90
    again = rotated(torch.from_numpy(images["clean"][rows]), torch.from_numpy(beyond)).clamp(0, 1).numpy()
    further = {**images, f"{ROTATION}/parameters": beyond, f"{ROTATION}/images": again}
    assert f"{ROTATION}: parameters within 60" in broken(run, further, digits_mlp)

    further = {name: values for name, values in images.items() if name != f"{ROTATION}/made"}
    assert f"{ROTATION}: parameters of each image" in broken(run, further, digits_mlp)
    changed = replace(run, outcomes=run.outcomes.assign(distance=run.outcomes["distance"] * 0.9))
    assert f"{ROTATION}: distances" in broken(changed, images, digits_mlp)


def test_a_patch_is_judged_by_its_square(runs, digits_mlp):
    run, images = read(runs, "patch")
    made = images[f"{PATCH}/images"] = images[f"{PATCH}/images"].copy()
    changed = np.argwhere(made[0, 0] != images["clean"][images[f"{PATCH}/rows"][0], 0])
    far = [0 if place >= 4 else 7 for place in changed[0]]
    made[(0, 0, *far)] = 1 - made[(0, 0, *far)]
    assert f"{PATCH}: images within patch 4 and the box" in broken(run, images, digits_mlp)
    run, images = read(runs, "patch")
    stated = replace(run, outcomes=run.outcomes.assign(distance=run.outcomes["distance"].where(lambda d: d != 4, 3)))
    assert f"{PATCH}: distances" in broken(stated, images, digits_mlp)


def test_a_cascade_keeps_the_parameters_of_each_attack(digits, digits_mlp):
    narrow = "rotation-translation:eps=60,angles=3,shifts=1,steps=0,shift=0"
    run = run_of("rotation", digits, digits_mlp, attacks=[narrow, ROTATION], cascade=True)
    assert len(run.adversarial[f"{ROTATION}/made"]) < len(run.adversarial[f"{ROTATION}/rows"])
    assert not broken(run, run.adversarial, digits_mlp)


def test_a_transferred_rotation_is_judged_by_its_parameters(digits, digits_mlp):
    """Its images are made again, and its size is the angle."""
    surrogate, _ = robgib.load_model("digits-mlp-relu")
    run = run_of("rotation", digits, digits_mlp, transfer_from=surrogate)
    assert not broken(run, run.adversarial, digits_mlp)
    finite = run.outcomes["distance"][np.isfinite(run.outcomes["distance"])]
    assert finite.max() > 1  # degrees

    class Beyond(RotationTranslation):
        def find_parameters(self, model, x, y, rng):
            return torch.full((len(x), 3), 0.0) + torch.tensor([80.0, 0.0, 0.0])

    attack = Transfer.of(Beyond("rotation", 60), surrogate)
    with pytest.raises(RobGIBError, match="left its threat model"):
        evaluate(digits_mlp, digits.test.x[:4], digits.test.y[:4], {"beyond": attack}, signs=False, corruptions=False)
