"""Small networks of digits on which no constant of an attack was tuned, and networks whose gradients mislead."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import robgib
from tests.robustness.test_false_gradients import networks as false_networks
from tests.robustness.test_gradient_check import fitted
from tests.unusual import Quantised, Rippled, StraightThrough, Terraces

__all__ = ["ORDINARY", "false", "ordinary"]


class Transformer(nn.Module):
    """A vision Transformer: patches of 2 × 2 pixels, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patches(x).flatten(2).mT + self.places).mean(1))


class NextBlock(nn.Module):
    """A block of ConvNeXt: a depthwise convolution, layer normalisation, two pointwise layers, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(x).movedim(1, -1))
        return x + self.narrow(F.gelu(self.wide(inner))).movedim(-1, 1)


def _next() -> nn.Module:
    blocks = (NextBlock(24), NextBlock(24))
    return nn.Sequential(nn.Conv2d(1, 24, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def _weight_normalised() -> nn.Module:
    first, second = (weight_norm(nn.Conv2d(*size, 3, padding=1)) for size in ((1, 16), (16, 32)))
    head = weight_norm(nn.Linear(32 * 16, 10))
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), head)


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "ViT": Transformer,
    "ConvNeXt": _next,
    "weight-normalised": _weight_normalised,
}


@cache
def ordinary(name: str) -> nn.Module:
    """Return a network that is trained here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(ORDINARY[name](), robgib.load_data("digits"), epochs=15)


@cache
def false() -> dict[str, nn.Module]:
    """Return networks whose gradient is missing or not the function's, by name."""
    data = robgib.load_data("digits")
    cnn = robgib.load_model("digits-cnn")[0].eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = {name: pair[0].eval() for name, pair in false_networks(data, cnn).items()}
    return nets | {
        "rounded": Quantised(cnn).eval(),
        "straight-through": StraightThrough(cnn).eval(),
        "soft terraces": Terraces(cnn, 0.08).eval(),
        "rippled": Rippled(cnn).eval(),
    }
