"""Common corruptions, without an adversary: noise, blur, low contrast and JPEG, or all 15 of the literature."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robgib.data.common import COMMON, LARGE, SMALL
from robgib.errors import RobGIBError, unknown_name
from robgib.runtime import SampleRNG

__all__ = [
    "COMMON_CORRUPTIONS",
    "CORRUPTIONS",
    "corrupt",
]

CORRUPTIONS = ("noise", "blur", "contrast", "jpeg")
"""The corruptions that an evaluation measures by default."""
COMMON_CORRUPTIONS = tuple(COMMON)
"""The 15 common corruptions, by their published names."""
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
        x: images (N, C, H, W) in [0, 1], of 1 or 3 channels for ``jpeg`` and ``pixelate``.
        name: ``noise``, ``blur``, ``contrast`` or ``jpeg``, or one of :data:`COMMON_CORRUPTIONS`.
        severity: 1 to 5, on the scales of Hendrycks & Dietterich (2019): CIFAR-10-C's up to 64 pixels a side,
            ImageNet-C's above.
        rng: random numbers of the noise; None is that of seed 0.

    Returns:
        Images (N, C, H, W) in [0, 1].

    >>> corrupt(torch.full((1, 3, 8, 8), 0.5), "brightness", 5)[0, 0, 0, 0].item()
    0.800000011920929
    """
    if x.ndim != 4:
        raise RobGIBError(f"corruptions need images of shape (N, C, H, W), not {tuple(x.shape)}.")
    if name not in CORRUPTIONS and name not in COMMON:
        raise unknown_name("corruption", name, (*CORRUPTIONS, *COMMON))
    if severity not in range(1, 6):
        raise RobGIBError(f"the severity of a corruption is 1, 2, 3, 4 or 5, not {severity}.")
    if name not in CORRUPTIONS:
        return _common(x, name, severity, rng or SampleRNG(0, range(len(x))))
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


def _common(x: Tensor, name: str, severity: int, rng: SampleRNG) -> Tensor:
    if name in ("pixelate", "jpeg_compression") and x.shape[1] not in (1, 3):
        raise RobGIBError(f"{name} takes images of 1 or 3 channels, not {x.shape[1]}.")
    how = (SMALL if max(x.shape[2:]) <= _LARGEST_SMALL else LARGE)[name][severity - 1]
    pictures = x.permute(0, 2, 3, 1).cpu().double().numpy()
    changed = COMMON[name](pictures, how, rng.generators()) if len(x) else pictures
    return torch.from_numpy(np.ascontiguousarray(changed.clip(0, 1).transpose(0, 3, 1, 2))).to(x)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian kernel, truncated at four standard deviations; borders repeat the last pixel."""
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
        encoded = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(encoded, "JPEG", quality=quality)
        back = np.asarray(Image.open(encoded))
        out[row] = back[..., None] if back.ndim == 2 else back
    return (torch.from_numpy(out).permute(0, 3, 1, 2).to(x) / 255).contiguous()
