"""Common corruptions: what they are, and what the evaluation makes of them."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from torch import nn

from robgib import RobGIBError, SampleRNG
from robgib.data.common import _moved
from robgib.data.corruptions import COMMON_CORRUPTIONS, CORRUPTIONS, corrupt
from robgib.options import Context
from robgib.robustness import evaluate
from robgib.robustness.corruptions import (
    corrupted_files,
    corrupted_files_accuracy,
    corrupted_images,
    corruption_accuracy,
)

IRREGULAR = ("contrast", "glass_blur", "elastic_transform", "snow", "pixelate", "frost")
"""Those whose published severities do not grow in every step on random pixels."""


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*CORRUPTIONS, *(n for n in COMMON_CORRUPTIONS if n not in IRREGULAR)])
def test_images_change_more_with_severity_and_stay_in_the_box(name, images):
    distances = []
    for severity in range(1, 6):
        changed = corrupt(images, name, severity)
        assert changed.shape == images.shape
        assert changed.dtype == images.dtype
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        distances.append(float((changed - images).square().mean()))
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_each_is_what_it_is_called(images):
    noise = corrupt(torch.full((200, 1, 16, 16), 0.5), "noise", 3) - 0.5
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)
    mean = images.mean((2, 3))
    lower = corrupt(images, "contrast", 2)
    assert torch.allclose(lower.mean((2, 3)), mean, atol=1e-6)
    assert float(lower.std()) < 0.6 * float(images.std())
    blurred = corrupt(images, "blur", 5).numpy()
    wanted = gaussian_filter1d(gaussian_filter1d(images.numpy(), 1.0, axis=2, mode="nearest"), 1.0, axis=3,
                               mode="nearest")  # fmt: skip
    assert np.abs(blurred - wanted).max() < 1e-5
    held = io.BytesIO()
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(held, "JPEG", quality=58)
    wanted = np.asarray(Image.open(held)).transpose(2, 0, 1) / 255
    assert np.abs(corrupt(images, "jpeg", 3)[0].numpy() - wanted).max() < 1e-6
    assert corrupt(images[:, :1], "jpeg", 1).shape == (12, 1, 16, 16)


def test_large_images_are_corrupted_more():
    large = torch.full((4, 1, 65, 65), 0.5)
    assert float(corrupt(large, "noise", 1).std()) == pytest.approx(0.08, rel=0.05)


@pytest.mark.parametrize("name", IRREGULAR)
def test_all_fifteen_stay_in_the_box(name, images):
    for x in (images, images[:, :1], torch.rand(1, 3, 80, 72)):
        changed = corrupt(x, name, 3)
        assert changed.shape == x.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float((changed - x).square().mean()) > 0
    assert len(COMMON_CORRUPTIONS) == 15


def test_known_answers_of_the_fifteen(images):
    flat = torch.full((300, 1, 16, 16), 0.4)
    assert float(corrupt(flat, "gaussian_noise", 5).std()) == pytest.approx(0.1, rel=0.02)
    assert float(corrupt(flat, "shot_noise", 3).var()) == pytest.approx(0.4 / 100, rel=0.05)
    impulse = corrupt(flat, "impulse_noise", 5)
    assert float((impulse == 0).float().mean()) == pytest.approx(0.035, rel=0.1)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.035, rel=0.1)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        tolerance = 1 / 255 if name == "glass_blur" else 1e-6
        assert torch.allclose(corrupt(flat[:2], name, 4), flat[:2], atol=tolerance), name
    colour = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    brighter = corrupt(colour, "brightness", 3)[0, :, 0, 0]
    assert brighter.tolist() == pytest.approx([0.2 * 0.55 / 0.4, 0.55, 0.1 * 0.55 / 0.4])  # V 0.4 -> 0.55
    assert torch.allclose(corrupt(images, "jpeg_compression", 3), corrupt(images, "jpeg", 3), atol=1e-6)
    blocks = corrupt(torch.rand(1, 1, 80, 80), "pixelate", 5)  # 20 × 20 blocks of 4 × 4 pixels
    assert torch.equal(blocks, blocks[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))
    fog = corrupt(flat[:4], "fog", 5)  # (0.4 + 1.5 p) 0.4 / 1.9 with p in [0, 1]
    assert float(fog.min()) >= 0.4 * 0.4 / 1.9 - 1e-6
    assert float(fog.max()) <= 0.4 + 1e-6


def test_motion_blur_of_a_point_is_its_kernel():
    point = np.zeros((31, 31, 1))
    point[15, 15] = 1
    blurred = _moved(point, 6, 2.0, 0.0)[15, :, 0]
    kernel = np.exp(-(np.arange(13) ** 2) / 8)
    assert np.allclose(blurred[15 - 12 : 16][::-1], kernel / kernel.sum())
    assert blurred.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", COMMON_CORRUPTIONS)
def test_what_a_sample_gets_is_its_own(name, images):
    whole = corrupt(images[:4], name, 4, SampleRNG(7, range(4)))
    part = corrupt(images[2:4], name, 4, SampleRNG(7, range(2, 4)))
    assert torch.allclose(part, whole[2:4], atol=1e-6)


def test_noise_belongs_to_the_sample(images):
    whole = corrupt(images, "noise", 4, SampleRNG(7, range(12)))
    assert torch.equal(corrupt(images[5:], "noise", 4, SampleRNG(7, range(5, 12))), whole[5:])


def test_accuracy_by_severity(digits, digits_cnn):
    x, y = digits.test.x[:200], digits.test.y[:200]
    table = corruption_accuracy(digits_cnn, x, y)
    assert list(table["corruption"].unique()) == list(CORRUPTIONS)
    assert (table["samples"] == 200).all()
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    with torch.no_grad():
        right = digits_cnn(corrupt(x, "contrast", 5)).argmax(1) == y
    row = table[(table["corruption"] == "contrast") & (table["severity"] == 5)].iloc[0]
    assert row["right"] == int(right.sum())
    assert row["accuracy"] < table["accuracy"].max() - 0.2
    measured = corrupted_images(digits_cnn, x, y, CORRUPTIONS, Context(device="cpu"))
    pd.testing.assert_frame_equal(measured.corruptions, table)
    by_sample = measured.corrupted.groupby("corruption", sort=False)["right"].mean()
    assert by_sample.to_dict() == pytest.approx(table.groupby("corruption", sort=False)["accuracy"].mean().to_dict())
    assert measured.corrupted["index"].tolist() == [*range(200)] * len(CORRUPTIONS)
    two = torch.cat([x, x], 1)
    both = corruption_accuracy(nn.Sequential(nn.Flatten(), nn.Linear(128, 10)), two, y)
    assert "jpeg" not in set(both["corruption"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(2, 3, 8, 8), "rain", 1), "unknown corruption 'rain'"),
        ((torch.rand(2, 3, 8, 8), "blur", 0), "is 1, 2, 3, 4 or 5, not 0"),
        ((torch.rand(2, 8), "blur", 1), r"shape \(N, C, H, W\)"),
        ((torch.rand(2, 2, 8, 8), "jpeg", 1), "1 or 3 channels, not 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(RobGIBError, match=message):
        corrupt(*arguments)


class Bright(nn.Module):
    """Logits (N, 2): class 1 where the mean exceeds 0.5."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_corrupted_images_from_files(tmp_path):
    """Severity s makes the first s of ten dark images bright."""
    dark = np.zeros((5, 10, 4, 4, 3), np.uint8)
    for severity in range(5):
        dark[severity, : severity + 1] = 200
    np.save(tmp_path / "fog.npy", dark.reshape(50, 4, 4, 3))
    np.save(tmp_path / "labels.npy", np.zeros(50, np.uint8))
    found = corrupted_files_accuracy(Bright(), tmp_path, (3, 4, 4))
    assert found["corruption"].tolist() == ["fog"] * 5
    assert found["right"].tolist() == [9, 8, 7, 6, 5]
    assert found["severity"].tolist() == [1, 2, 3, 4, 5]
    by_image = corrupted_files(Bright(), tmp_path, (3, 4, 4), None, Context(device="cpu")).corrupted
    assert by_image["right"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    assert by_image["from_file"].all()
    few = corrupted_files_accuracy(Bright(), tmp_path, (3, 4, 4), samples=4)
    assert few["samples"].tolist() == [4] * 5
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))  # labels that repeat
    assert corrupted_files_accuracy(Bright(), tmp_path, (3, 4, 4))["right"].tolist() == [9, 8, 7, 6, 5]
    x, y = torch.zeros(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64)
    options = {"signs": False, "curve": False}
    tables = evaluate(Bright(), x, y, ["fgsm-linf"], corruptions_from=tmp_path, all_corruptions=True, **options)
    assert set(tables["corruptions"]["corruption"]) == {*COMMON_CORRUPTIONS, "fog (files)"}
    assert len(tables["corruptions"]) == 16 * 5
    tables = evaluate(Bright(), x, y, ["fgsm-linf"], corruptions_from=tmp_path, **options)
    assert len(tables["corruptions"]) == 5


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog.npy", np.zeros((7, 4, 4, 3), np.uint8), r"give 8-bit images \(5 N, 4, 4, 3\), N of each of five"),
        ("fog.npy", np.zeros((10, 4, 4, 3)), "holds float64 of shape"),
        ("labels.npy", np.zeros(3, np.uint8), r"has the shape \(3,\) for 10 images"),
        (None, None, "holds no arrays of corrupted images"),
    ],
)
def test_corrupted_files_that_cannot_be(tmp_path, name, array, message):
    if name is not None:
        np.save(tmp_path / "fog.npy", np.zeros((10, 4, 4, 3), np.uint8))
        np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
        np.save(tmp_path / name, array)
    with pytest.raises(RobGIBError, match=message):
        corrupted_files_accuracy(Bright(), tmp_path, (3, 4, 4))
