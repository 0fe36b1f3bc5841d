"""Common corruptions: accuracy under changes that nobody chose to fool the model."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks import Prepared, answers
from robgib.attacks.threat import SampleRNG
from robgib.errors import RobGIBError, unknown_name
from robgib.statistics import clopper_pearson
from robgib.store import CORRUPTION_COLUMNS
from robgib.training import Progress

__all__ = ["CORRUPTIONS", "corrupt", "corruption_accuracy"]

CORRUPTIONS = ("noise", "blur", "contrast", "jpeg")

# The five severities of Hendrycks & Dietterich (2019): those of CIFAR-10-C for small images, of ImageNet-C for others.
_SMALL: Mapping[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation of Gaussian noise
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of a Gaussian, in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance from each channel's mean
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
_LARGE: Mapping[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
_LARGEST_SMALL = 64  # pixels a side


def corrupt(x: Tensor, name: str, severity: int, rng: SampleRNG | None = None) -> Tensor:
    """Corrupt images.

    Args:
        x: images (N, C, H, W) in [0, 1], of 1 or 3 channels for ``jpeg``.
        name: ``noise``, ``blur``, ``contrast`` or ``jpeg``.
        severity: 1 to 5, on the scales of Hendrycks & Dietterich (2019): CIFAR-10-C's up to 64 pixels a side,
            ImageNet-C's above.
        rng: random numbers of the noise; None is that of seed 0.

    Returns:
        Images (N, C, H, W) in [0, 1].
    """
    if x.ndim != 4:
        raise RobGIBError(f"corruptions need images of shape (N, C, H, W), not {tuple(x.shape)}.")
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in range(1, 6):
        raise RobGIBError(f"the severity of a corruption is 1, 2, 3, 4 or 5, not {severity}.")
    amount = (_SMALL if max(x.shape[2:]) <= _LARGEST_SMALL else _LARGE)[name][severity - 1]
    if name == "noise":
        rng = rng or SampleRNG(0, range(len(x)))
        return (x + amount * rng.normal(tuple(x.shape[1:]), x.device).to(x.dtype)).clamp(0, 1)
    if name == "blur":
        return _blurred(x, amount)
    if name == "contrast":
        mean = x.mean((2, 3), keepdim=True)
        return (mean + amount * (x - mean)).clamp(0, 1)
    return _jpeg(x, int(amount))


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, cut at four standard deviations; borders repeat the last pixel."""
    reach = max(1, round(4 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    channels = x.shape[1]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=channels)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[:, :, :, None], groups=channels)
    return x.clamp(0, 1)


def _jpeg(x: Tensor, quality: int) -> Tensor:
    from PIL import Image

    if x.shape[1] not in (1, 3):
        raise RobGIBError(f"jpeg takes images of 1 or 3 channels, not {x.shape[1]}.")
    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for row, picture in enumerate(pixels):
        held = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(held, "JPEG", quality=quality)
        back = np.asarray(Image.open(held))
        out[row] = back[..., None] if back.ndim == 2 else back
    return (torch.from_numpy(out).permute(0, 3, 1, 2).to(x) / 255).contiguous()


def corruption_accuracy(
    model: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Accuracy at each corruption and severity, with 95% Clopper–Pearson intervals.

    Args:
        model: classifier on ``device``, or what :func:`~robgib.attacks.prepare` made of it.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        seed: of the noise.
        batch_size: images at once.
        device: where the model is.
        progress: called after each severity.

    Returns:
        A row a corruption and severity. ``jpeg`` is left out for images that are neither grey nor coloured.
    """
    names = [n for n in CORRUPTIONS if n != "jpeg" or x.shape[1] in (1, 3)]
    rows = []
    for name in names:
        for severity in range(1, 6):
            shares = 0.0
            for start in range(0, len(x), 1024):
                part, index = x[start : start + 1024], range(start, min(start + 1024, len(x)))
                changed = corrupt(part, name, severity, SampleRNG(seed, index))
                labels = y[start : start + 1024]
                told = answers(model, changed, labels, batch_size=batch_size, seed=seed, device=device)
                shares += float(told.right.sum())
            right = int(shares) if shares.is_integer() else shares
            low, high = clopper_pearson(right, len(x))
            rows.append((name, severity, right, len(x), right / len(x), low, high))
            if progress:
                progress("corrupting", len(rows), 5 * len(names), name)
    return pd.DataFrame(rows, columns=CORRUPTION_COLUMNS)
