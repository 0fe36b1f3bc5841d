"""The 15 common corruptions of Hendrycks & Dietterich (2019), from their definitions.

No library that installs beside NumPy 2 has them for small images. They follow the code of CIFAR-10-C and ImageNet-C
but for two points: ``frost`` mixes in a generated texture in place of six photographs, and ``elastic_transform``
interpolates once in place of twice. Images are float64 (N, H, W, C) in [0, 1] here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

__all__ = ["COMMON", "LARGE", "SMALL"]

Generators = Sequence[np.random.Generator]
_TURN = 244 / 224  # the code of ImageNet-C scales elastic distortions by this


def _gaussian_noise(x: np.ndarray, scale: float, rngs: Generators) -> np.ndarray:
    return x + scale * _each(rngs, lambda rng, one: rng.standard_normal(one.shape), x)


def _shot_noise(x: np.ndarray, photons: float, rngs: Generators) -> np.ndarray:
    return _each(rngs, lambda rng, one: rng.poisson(one * photons) / photons, x)


def _impulse_noise(x: np.ndarray, share: float, rngs: Generators) -> np.ndarray:
    draws = _each(rngs, lambda rng, one: rng.random(one.shape), x)
    return np.where(draws < share / 2, 0.0, np.where(draws < share, 1.0, x))


def _defocus_blur(x: np.ndarray, how: tuple[float, float], rngs: Generators) -> np.ndarray:
    radius, alias = how
    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    place = np.arange(-reach, reach + 1)
    disk = ((place[:, None] ** 2 + place**2) <= radius**2).astype(float)
    kernel = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * alias**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, kernel, axis=axis, mode="constant")
    return ndimage.convolve(x, (disk / disk.sum())[None, :, :, None], mode="mirror")


def _glass_blur(x: np.ndarray, how: tuple[float, int, int], rngs: Generators) -> np.ndarray:
    sigma, reach, rounds = how
    x = np.floor(_smooth(x, sigma) * 255)
    count, height, width = x.shape[:3]
    rows = np.arange(count)
    for _ in range(rounds):
        moves = np.stack([rng.integers(-reach, reach, (height, width, 2)) for rng in rngs])
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                # The published code takes the neighbour's value for both pixels, although it means to swap them.
                x[:, h, w] = x[rows, h + moves[:, h - 1, w - 1, 0], w + moves[:, h - 1, w - 1, 1]]
    return _smooth(x / 255, sigma)


def _motion_blur(x: np.ndarray, how: tuple[int, float], rngs: Generators) -> np.ndarray:
    angles = [rng.uniform(-45, 45) for rng in rngs]
    return np.stack([_moved(one, *how, angle) for one, angle in zip(x, angles, strict=True)])


def _zoom_blur(x: np.ndarray, zooms: np.ndarray, rngs: Generators) -> np.ndarray:
    return (x + sum(_zoomed(x, float(zoom)) for zoom in zooms)) / (len(zooms) + 1)


def _snow(x: np.ndarray, how: tuple[float, ...], rngs: Generators) -> np.ndarray:
    mean, scale, zoom, least, radius, sigma, kept = how
    layers = np.stack([rng.normal(mean, scale, x.shape[1:3]) for rng in rngs])[..., None]
    layers = _zoomed(layers, zoom)
    layers = np.floor(255 * np.where(layers < least, 0, layers).clip(0, 1)) / 255
    angles = [rng.uniform(-135, -45) for rng in rngs]
    layers = np.stack([_moved(one, int(radius), sigma, a) for one, a in zip(layers, angles, strict=True)])
    grey = x @ np.array([0.299, 0.587, 0.114]) if x.shape[3] == 3 else x.mean(3)
    x = kept * x + (1 - kept) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return x + layers + np.rot90(layers, 2, axes=(1, 2))


def _frost(x: np.ndarray, how: tuple[float, float], rngs: Generators) -> np.ndarray:
    kept, added = how
    veils = np.stack([_plasma(max(x.shape[1:3]), 1.7, rng)[: x.shape[1], : x.shape[2]] for rng in rngs])[..., None]
    tint = np.array([0.85, 0.95, 1.0]) if x.shape[3] == 3 else np.ones(x.shape[3])  # of ice, brighter in blue
    return kept * x + added * (0.3 + 0.7 * veils) * tint


def _fog(x: np.ndarray, how: tuple[float, float], rngs: Generators) -> np.ndarray:
    amount, decay = how
    veils = np.stack([_plasma(max(x.shape[1:3]), decay, rng)[: x.shape[1], : x.shape[2]] for rng in rngs])[..., None]
    most = x.max((1, 2, 3), keepdims=True)
    return (x + amount * veils) * most / (most + amount)


def _brightness(x: np.ndarray, amount: float, rngs: Generators) -> np.ndarray:
    value = x.max(3, keepdims=True)  # V of HSV, to which the amount is added at constant H and S
    raised = (value + amount).clip(0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def _contrast(x: np.ndarray, factor: float, rngs: Generators) -> np.ndarray:
    mean = x.mean((1, 2), keepdims=True)
    return mean + factor * (x - mean)


def _elastic_transform(x: np.ndarray, how: tuple[float, float, float], rngs: Generators) -> np.ndarray:
    height, width = x.shape[1:3]
    strength, sigma, corners = (max(height, width) * part for part in how)
    return np.stack([_bent(one, strength, sigma, corners, rng) for one, rng in zip(x, rngs, strict=True)])


def _pixelate(x: np.ndarray, share: float, rngs: Generators) -> np.ndarray:
    height, width = x.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))

    def coarse(picture: Image.Image) -> Image.Image:
        return picture.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _as_pictures(x, coarse)


def _jpeg_compression(x: np.ndarray, quality: int, rngs: Generators) -> np.ndarray:
    def coded(picture: Image.Image) -> Image.Image:
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=quality)
        return Image.open(held)

    return _as_pictures(x, coded)


COMMON: Mapping[str, Callable[[np.ndarray, Any, Generators], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""Each corruption takes images, the parameter of a severity, and a generator for each image."""


def _upto(*ends: float, step: Sequence[float]) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(1, end, by) for end, by in zip(ends, step, strict=True))


SMALL: Mapping[str, Sequence[Any]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": _upto(1.06, 1.11, 1.16, 1.21, 1.26, step=(0.01,) * 5),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}  # fmt: skip
"""The parameters of CIFAR-10-C by severity, for small images; lengths of elastic distortions are shares of the side."""
LARGE: Mapping[str, Sequence[Any]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": _upto(1.11, 1.16, 1.21, 1.26, 1.31, step=(0.01, 0.01, 0.02, 0.02, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": tuple(
        tuple(_TURN * part for part in parts)
        for parts in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}  # fmt: skip
"""The parameters of ImageNet-C by severity, for larger images."""


def _each(rngs: Generators, make: Callable[[np.random.Generator, np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    return np.stack([make(rng, one) for rng, one in zip(rngs, x, strict=True)])


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blur an image (H, W, C) along a direction, with a one-sided Gaussian of 2 radius + 1 points (ImageMagick)."""
    steps = np.arange(2 * radius + 1)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    turn = np.deg2rad(angle)
    right, down = (np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(turn), np.sin(turn)))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    out = np.zeros_like(x)
    for weight, dx, dy in zip(kernel, right, down, strict=True):
        out += weight * x[(rows + dy).clip(0, len(rows) - 1)][:, (columns + dx).clip(0, len(columns) - 1)]
    return out


def _zoomed(x: np.ndarray, zoom: float) -> np.ndarray:
    """Enlarge the centres of images (N, H, W, C), interpolated linearly, to the whole images."""
    height, width = x.shape[1:3]
    high, wide = int(np.ceil(height / zoom)), int(np.ceil(width / zoom))
    top, left = (height - high) // 2, (width - wide) // 2
    large = ndimage.zoom(x[:, top : top + high, left : left + wide], (1, zoom, zoom, 1), order=1)
    top, left = (large.shape[1] - height) // 2, (large.shape[2] - width) // 2
    return large[:, top : top + height, left : left + width]


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return a height map in [0, 1] by the diamond-square algorithm, of the next power of two from ``side`` on."""
    size = 1 << max(1, (side - 1).bit_length())
    field = np.zeros((size, size))
    step, wibble = size, 100.0

    def middle(total: np.ndarray) -> np.ndarray:
        return np.asarray(total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape))

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = middle(rows + np.roll(rows, -1, 1))
        centres, corners = field[half::step, half::step], field[::step, ::step]
        field[::step, half::step] = middle(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        field[half::step, ::step] = middle(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    field -= field.min()
    return np.asarray(field / max(float(field.max()), 1e-12))


def _bent(x: np.ndarray, strength: float, sigma: float, corners: float, rng: np.random.Generator) -> np.ndarray:
    """Warp an image (H, W, C) by a random affine map and a smooth random displacement."""
    height, width = x.shape[:2]
    centre, size = np.array([height // 2, width // 2], float), min(height, width) // 3
    before = centre + size * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-corners, corners, before.shape)
    moves = rng.uniform(-1, 1, (2, height, width))
    if strength:
        moves = strength * np.stack([ndimage.gaussian_filter(one, sigma, mode="reflect", truncate=3) for one in moves])
    else:
        moves = np.zeros_like(moves)
    there = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")) + moves
    solution, *_ = np.linalg.lstsq(np.hstack([after, np.ones((3, 1))]), before, rcond=None)
    flat = np.vstack([there.reshape(2, -1), np.ones(height * width)])
    source = (solution.T @ flat).reshape(2, height, width)
    planes = [ndimage.map_coordinates(x[..., c], source, order=1, mode="mirror") for c in range(x.shape[2])]
    return np.stack(planes, -1)


def _as_pictures(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return images (N, H, W, C), changed as 8-bit pictures of one or three channels."""
    pixels = (x * 255).round().astype(np.uint8)
    out = np.empty_like(pixels)
    for row, one in enumerate(pixels):
        back = np.asarray(change(Image.fromarray(one[..., 0] if one.shape[2] == 1 else one)))
        out[row] = back[..., None] if back.ndim == 2 else back
    return out / 255
