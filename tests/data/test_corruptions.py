"""Common corruptions: what they are, and what the evaluation makes of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from torch import nn

from robgib import RobGIBError, SampleRNG
from robgib.data.corruptions import CORRUPTIONS, corrupt
from robgib.robustness.corruptions import corruption_accuracy


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
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
    two = torch.cat([x, x], 1)
    both = corruption_accuracy(nn.Sequential(nn.Flatten(), nn.Linear(128, 10)), two, y)
    assert "jpeg" not in set(both["corruption"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(2, 3, 8, 8), "fog", 1), "unknown corruption 'fog'"),
        ((torch.rand(2, 3, 8, 8), "blur", 0), "is 1, 2, 3, 4 or 5, not 0"),
        ((torch.rand(2, 8), "blur", 1), r"shape \(N, C, H, W\)"),
        ((torch.rand(2, 2, 8, 8), "jpeg", 1), "1 or 3 channels, not 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(RobGIBError, match=message):
        corrupt(*arguments)
