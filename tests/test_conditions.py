"""Masks, targets and surrogates in an evaluation, from Python and from the command line."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import robgib
from robgib import RobGIBError, evaluate, robustness
from robgib.attacks import Transfer, carry, make_attack
from robgib.data.conditions import read_masks, read_targets
from robgib.evaluation import Record
from robgib.robustness import corrupted_files_accuracy, run_attack

QUICK = {"estimators": [], "corruptions": False, "curve": False, "progress": False, "device": "cpu"}


def test_masks_of_an_evaluation_are_those_of_its_samples(digits, digits_mlp, tmp_path):
    """The rows that were drawn get their own masks; the images show it."""
    masks = np.zeros((len(digits.test), 8, 8), bool)
    masks[::2, :4], masks[1::2, 4:] = True, True
    np.save(tmp_path / "masks.npy", masks)
    options = {"attacks": ["pgd-linf:eps=0.4"], "samples": 12, "save_adversarial": True, **QUICK}
    run = evaluate(digits_mlp, digits, mask=tmp_path / "masks.npy", **options)
    rows, images = run.adversarial["pgd-linf:eps=0.4/rows"], run.adversarial["pgd-linf:eps=0.4/images"]
    assert len(rows)
    changed = images != run.adversarial["clean"][rows]
    assert not (changed[:, 0] & ~masks[rows]).any()
    assert len(run.signs)
    one = evaluate(digits_mlp, digits, mask=masks[0], **options)
    assert one.config["request"] != run.config["request"]


def test_an_audit_aims_at_no_given_targets(digits, digits_mlp):
    targets = (digits.test.y.numpy() + 1) % 10
    with pytest.raises(RobGIBError, match="--audit and --targets or --transfer-from exclude each other"):
        evaluate(digits_mlp, digits, targets=targets, attacks=["pgd-linf"], audit=0.1, samples=12, **QUICK)
    images = carry(digits.test.x[:12], targets=torch.from_numpy(targets[:12]))
    with pytest.raises(RobGIBError, match="--audit and --targets"):
        robustness.evaluate(digits_mlp, images, digits.test.y[:12], ["pgd-linf"], audit=0.1, signs=False)
    rows = robustness.evaluate(digits_mlp, images, digits.test.y[:12], ["fgsm-linf"], signs=False)["robustness"]
    assert rows["attack"].tolist() == ["fgsm-linf"]


def test_masks_of_pictures_are_found_by_name(tmp_path, digits_mlp):
    rng = np.random.default_rng(0)
    for label in range(2):
        for number in range(3):
            for folder, pixels in (
                ("test", rng.integers(0, 256, (8, 8))),
                ("masks", 255 * (np.arange(64).reshape(8, 8) < 8 * (1 + 3 * label + number))),
            ):
                (tmp_path / folder / f"c{label}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"c{label}" / f"{number}.png")
    data = robgib.load_data(f"folder:{tmp_path / 'test'}", lazy=True)
    names = data.test.x.names()
    found = read_masks(str(tmp_path / "masks"), data.shape, len(data.test), np.arange(6), names)
    expected = [1 + 3 * int(name.split("/")[-2][1]) + int(name.split("/")[-1][0]) for name in names]
    assert found[:, 0].sum((1, 2)).tolist() == [8 * count for count in expected]
    (tmp_path / "masks" / "c0" / "0.png").unlink()
    for rest in (tmp_path / "masks" / "c1").glob("0.png"):
        rest.unlink()
    with pytest.raises(RobGIBError, match=r"holds no mask named as the picture 0\.png; add 0\.png"):
        read_masks(str(tmp_path / "masks"), data.shape, len(data.test), np.arange(6), names)
    with pytest.raises(RobGIBError, match="found by the names of pictures, which these data do not have"):
        read_masks(str(tmp_path / "masks"), data.shape, len(data.test), np.arange(6))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 3)), r"the masks have the shape \(3, 3\); give \(8, 8\) or \(1, 8, 8\) for all samples"),
        (np.zeros((8, 8)), "the mask of sample 5 allows no pixel to change"),
        ("nowhere.npy", "masks 'nowhere.npy' cannot be read as a .npy file"),
    ],
)
def test_masks_that_cannot_be(value, message):
    with pytest.raises(RobGIBError, match=message):
        read_masks(value, (1, 8, 8), 10, np.array([5, 6]))


def test_targets_of_an_evaluation(digits, digits_mlp, tmp_path):
    y = digits.test.y.numpy()
    lines = ["index,target", *(f"{row},{(label + 3) % 10}" for row, label in enumerate(y))]
    (tmp_path / "targets.csv").write_text("\n".join(lines))
    run = evaluate(digits_mlp, digits, targets=tmp_path / "targets.csv", norm="linf", eps=0.4, samples=12, **QUICK)
    assert sorted(run.robustness["attack"]) == ["apgd-ce-linf", "pgd-linf", "square-linf"]
    last = run.outcomes[run.outcomes["attack"] == run.outcomes["attack"].iloc[-1]]
    reached = last["adversarial_prediction"] == (last["label"] + 3) % 10
    attacked = last["clean_prediction"] == last["label"]
    assert reached.any()
    assert (last["robust"] == (attacked & ~reached)).all()
    assert int(last["robust"].sum()) == run.robustness["robust"].min()
    with pytest.raises(RobGIBError, match="attack 'fab-linf' cannot aim at given target classes"):
        evaluate(digits_mlp, digits, targets=(y + 3) % 10, attacks=["fab-linf"], samples=12, **QUICK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], "the target of sample 0 is its true label 1"),
        ([0, 2], "targets must be 3 class numbers, one for each test sample"),
        ([0, 12, 3], "target 12 of sample 1 is none of the 10 classes"),
    ],
)
def test_targets_that_cannot_be(value, message):
    with pytest.raises(RobGIBError, match=message):
        read_targets(value, torch.tensor([1, 1, 1]), 3, np.arange(3), 10)


def test_a_transfer_attacks_the_surrogate_and_is_judged_on_the_model(digits, digits_mlp):
    """From the model itself it equals the attack; the number of passes through the model is that of the judge."""
    x, y = digits.test.x[:16], digits.test.y[:16]
    attack = make_attack("pgd-linf:eps=0.2")
    own = run_attack(digits_mlp, x, y, attack)
    same = run_attack(digits_mlp, x, y, Transfer.of(attack, digits_mlp))
    assert np.array_equal(own.right, same.right)
    surrogate = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    other = run_attack(digits_mlp, x, y, Transfer.of(attack, surrogate))
    assert other.right.sum() >= own.right.sum()
    assert other.passes.backward == 0
    options = {"attacks": {"pgd": attack}, "samples": 16, **QUICK}
    run = evaluate(digits_mlp, digits, transfer_from=surrogate, **options)
    assert run.robustness["robust"].tolist()[0] >= 0
    assert not run.signs["seen"].any()
    assert len(run.config["options"]["attack"]["transfer_from"]) >= 32
    with pytest.raises(RobGIBError, match="transfer_from must be the surrogate itself"):
        evaluate(digits_mlp, digits, transfer_from="digits-cnn", **options)


def test_the_command_line_takes_all_three(cli, digits, tmp_path):
    np.save(tmp_path / "mask.npy", np.tri(8, dtype=bool))
    np.save(tmp_path / "targets.npy", (digits.test.y.numpy() + 1) % 10)
    arguments = ["--samples", "8", "--no-information", "--no-corruptions", "--no-curve", "--eps", "0.3", "--quiet"]
    done = cli(
        "evaluate", "digits-cnn", *arguments, "--attack", "pgd-linf", "--mask", str(tmp_path / "mask.npy"),
        "--targets", str(tmp_path / "targets.npy"), "--transfer-from", "digits-mlp-relu", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = [robgib.load_run(path.parent) for path in tmp_path.glob("*/config.json")]
    assert {"mask", "targets", "transfer_from"} <= {k for k, v in run.config["options"]["attack"].items() if v}


def test_arrays_are_read_by_one_reader(tmp_path, digits, digits_mlp):
    """The same sentence for masks, targets and corrupted images; a pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe.npy")
    np.savez(tmp_path / "several", one=np.zeros(2))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "text.npy").write_text("no array")
    for name, words in (("pipe", "it is no regular file"), ("several", "it holds several arrays"), ("text", "")):
        file = tmp_path / f"{name}.npy"
        message = rf"{re.escape(repr(str(file)))} cannot be read as a \.npy file: .*{words}"
        with pytest.raises(RobGIBError, match=f"masks {message}"):
            read_masks(file, (1, 8, 8), 4, np.arange(4))
        with pytest.raises(RobGIBError, match=f"targets {message}"):
            read_targets(file, torch.zeros(4), 4, np.arange(4), 3)
        folder = tmp_path / f"only-{name}"
        folder.mkdir()
        file.rename(folder / "labels.npy")
        np.save(folder / "fog.npy", np.zeros((5, 8, 8), np.uint8))
        with pytest.raises(RobGIBError, match=r"labels '.*labels\.npy' cannot be read as a \.npy file"):
            corrupted_files_accuracy(digits_mlp, folder, (1, 8, 8))


def test_corruptions_of_files_have_labels_of_their_own(tmp_path, digits, digits_mlp):
    """Generated noise and a file of the same name are two rows of the table, not their mean."""
    pixels = (digits.test.x[:4, 0].numpy() * 255).round().astype(np.uint8)
    for name in ("contrast", "sepia"):
        np.save(tmp_path / f"{name}.npy", np.tile(pixels, (5, 1, 1)))
    np.save(tmp_path / "labels.npy", digits.test.y[:4].numpy())
    run = evaluate(
        digits_mlp, digits, attacks=["fgsm-linf"], all_corruptions=True, corruptions_from=tmp_path, samples=12,
        signs=False, curve=False, estimators=[], progress=False,
    )  # fmt: skip
    counts = run.corruptions["corruption"].value_counts()
    assert {"contrast", "contrast (files)", "sepia"} <= set(counts.index)
    assert set(counts) == {5}


def test_the_plan_of_what_stands_beside_holds_the_gradient_check(digits, digits_mlp):
    """All of it together takes at most half of the attacks' passes."""
    planned = []
    evaluate(
        digits_mlp, digits, attacks=["pgd-linf:eps=0.1,steps=20"], samples=40, estimators=[], progress=False,
        record=Record(planned=planned.extend), random_points=3,
    )  # fmt: skip
    passes = {part.name: part.passes for part in planned}
    assert passes.pop("random points") == 3 * 40
    attacks = passes.pop("attacks") + passes.pop("audit by AutoAttack", 0)
    assert passes["gradient check"] > 0
    assert sum(passes.values()) <= attacks // 2
