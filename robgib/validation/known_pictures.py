"""Networks of known information on pictures cut into patches: where what a feature tells is spread over its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from robgib.runtime import seed_torch
from robgib.validation.known_networks import KnownNetwork, each_layer
from robgib.validation.known_variables import Vector
from robgib.validation.laws import Law

__all__ = [
    "known_pictures",
]

_SIDE = 12
_HALF = _SIDE // 2
_BOARD = np.indices((_SIDE, _SIDE)).sum(0) % 2 * 2.0 - 1
_STEPS = 300
_SPREAD = 1e-3  # variance that is added to each pixel's: some of the digits' never vary


def _pixels(x: Vector) -> Vector:
    return x.reshape(-1, _SIDE, _SIDE)


def _first_sign(x: Vector) -> Vector:
    """The sign of the checkerboard (N, 1) in the first patch."""
    corner = slice(0, _HALF), slice(0, _HALF)
    return np.asarray(np.sign((_pixels(x)[:, corner[0], corner[1]] * _BOARD[corner]).mean((1, 2)))[:, None])


def _brightness(x: Vector) -> Vector:
    """Whether the first patch is bright (N, 1)."""
    return np.asarray(np.sign(_pixels(x)[:, :_HALF, :_HALF].mean((1, 2)) - 0.5)[:, None])


def _smooth(samples: int, rng: np.random.Generator) -> Vector:
    """Pictures (N, H, W) of a few slow waves, with a little noise."""
    slow = np.cos(np.pi * np.outer(np.arange(4), np.arange(_SIDE) + 0.5) / _SIDE)
    waves = np.einsum("nab,ah,bw->nhw", rng.standard_normal((samples, 4, 4)), slow, slow)
    return np.asarray(0.5 + 0.06 * waves + 0.02 * rng.standard_normal(waves.shape))


def _checkerboard(samples: int, rng: np.random.Generator) -> tuple[Vector, npt.NDArray[np.int64]]:
    bit = rng.integers(2, size=samples)
    return (_smooth(samples, rng) + 0.05 * (2 * bit - 1)[:, None, None] * _BOARD).reshape(samples, -1), bit


def _copied(samples: int, rng: np.random.Generator) -> tuple[Vector, npt.NDArray[np.int64]]:
    bit = rng.integers(2, size=samples)
    noise = 0.5 + 0.08 * rng.standard_normal((samples, _SIDE, _SIDE))
    return (noise + 0.05 * (2 * bit - 1)[:, None, None] * _BOARD).reshape(samples, -1), bit


def _texture(samples: int, rng: np.random.Generator) -> tuple[Vector, npt.NDArray[np.int64]]:
    bit = rng.integers(2, size=samples)
    x = 0.5 + np.where(bit == 1, 0.24, 0.09)[:, None, None] * rng.standard_normal((samples, _SIDE, _SIDE))
    bright = 0.12 * (2 * bit - 1)[:, None, None] + 0.1 * rng.standard_normal((samples, _HALF, _HALF))
    x[:, :_HALF, :_HALF] = 0.5 + bright
    return x.reshape(samples, -1), bit


def _one_bit(
    name: str,
    what: str,
    sampled: Callable[[int, np.random.Generator], tuple[Vector, npt.NDArray[np.int64]]],
    layer: Callable[[Vector], Vector],
) -> KnownNetwork:
    """A network that reads one bit in the first patch, which each of the four patches tells by itself."""
    return KnownNetwork(
        name,
        what,
        {"sign": layer},
        None,
        dims=_SIDE**2,
        shape=(1, _SIDE, _SIDE),
        features="patches:2",
        sampled=sampled,
        known_terms=np.ones(9),
    )


@cache
def _digits() -> tuple[Law, nn.Sequential]:
    """The Gaussian fitted to the digits' pixels, and a small convolutional network trained on them."""
    loaded = load_digits()
    pictures = loaded.images.reshape(len(loaded.target), -1) / 16
    x, y = torch.from_numpy(pictures).float().view(-1, 1, 8, 8), torch.from_numpy(loaded.target)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        seed_torch(0)
        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(64, 32), nn.ReLU()),
            nn.Linear(32, 10),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(_STEPS):
            rows = torch.randint(len(x), (128,))
            optimiser.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return Law.fitted(pictures, None, _SPREAD), network.eval()


def _gaussian_digits(name: str, what: str, features: str) -> KnownNetwork:
    """A trained network on pictures drawn from the Gaussian that is fitted to those it was trained on."""

    def at_once(x: Vector) -> dict[str, Vector]:
        activations = torch.from_numpy(np.asarray(x, np.float32)).view(-1, 1, 8, 8)
        layers = {}
        with torch.no_grad():
            for name, part in zip(("", "maps", "hidden", "logits"), _digits()[1], strict=True):
                activations = part(activations)
                layers[name] = np.asarray(activations.numpy())
        del layers[""]
        return layers

    return KnownNetwork(
        name,
        what,
        each_layer(at_once, ("maps", "hidden", "logits")),
        None,
        dims=64,
        shape=(1, 8, 8),
        features=features,
        law=lambda: _digits()[0],
        at_once=at_once,
    )


@cache
def known_pictures() -> Mapping[str, KnownNetwork]:
    """Return the networks of known information on pictures by name.

    >>> known_pictures()["texture"].features
    'patches:2'
    """
    listed = [
        _one_bit(
            "checkerboard",
            "a faint checkerboard whose sign is the class; the network reads it in the first patch",
            _checkerboard,
            _first_sign,
        ),
        _one_bit(
            "copied-bits", "patches of independent pixels, all with one sign of a checkerboard", _copied, _first_sign
        ),
        _one_bit("texture", "one patch's brightness and the others' contrast carry one bit", _texture, _brightness),
        _gaussian_digits(
            "gaussian-digits",
            "a convolutional network trained on digits, on pictures of the Gaussian fitted to them",
            "patches:2",
        ),
        _gaussian_digits("gaussian-digits-4", "the same, cut into 16", "patches:4"),
    ]
    return {network.name: network for network in listed}
