"""Normalisation inside the model, so that attacks work on images in pixel scale [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, unknown_name

__all__ = [
    "IMAGENET",
    "NORMALIZATIONS",
    "Normalization",
    "Normalize",
    "Ported",
    "normalization",
]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": IMAGENET,
    "half": ((0.5,), (0.5,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.286,), (0.353,)),
}
"""Means and standard deviations by channel that networks are customarily trained with; ``half`` takes [0, 1] to
[-1, 1]."""


@dataclass(frozen=True)
class Normalization:
    """The normalisation that a network expects: images in [0, 1] to ``bounds``, then ``(x - mean) / std`` by channel.

    >>> normalization("imagenet").mean
    (0.485, 0.456, 0.406)
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std, *self.bounds)
        if not all(math.isfinite(v) for v in numbers) or min(self.std, default=0) <= 0 or not self.mean:
            raise RobGIBError("a normalisation needs finite means and positive standard deviations, one per channel.")
        if self.bounds[0] >= self.bounds[1]:
            raise RobGIBError(f"bounds must be two increasing numbers such as -1,1, not {self.bounds}.")

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self != Normalization()

    def before(self, net: nn.Module, channels: int, widen: bool = False) -> nn.Module:
        """Return the network behind this normalisation, for images of so many channels.

        With ``widen`` grey images are given to it as three channels.

        Raises:
            RobGIBError: it is of another number of channels.
        """
        channels = 3 if widen else channels
        for what, values in (("means", self.mean), ("standard deviations", self.std)):
            if len(values) not in (1, channels):
                raise RobGIBError(f"{len(values)} {what} were given, but the images have {channels} channels.")
        low, high = self.bounds
        # ((high - low) x + low - mean) / std in one step.
        scale = high - low
        mean = [(m - low) / scale for m in self.mean]
        return Ported(net, mean, [s / scale for s in self.std], widen)

    def __str__(self) -> str:
        own = (*self.mean, *self.std)
        name = next((k for k, v in NORMALIZATIONS.items() if _close((*v[0], *v[1]), own)), "")
        numbers = f"mean {_numbers(self.mean)}, std {_numbers(self.std)}" + (f" ({name})" if name else "")
        stretch = f"stretched to [{self.bounds[0]:g}, {self.bounds[1]:g}], " if self.bounds != (0.0, 1.0) else ""
        return f"{stretch}{numbers}"


def _close(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether the numbers are the same but for float32's rounding."""
    return len(one) == len(two) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, two, strict=True))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def normalization(name: str) -> Normalization:
    """Return a customary normalisation by name, or none.

    Raises:
        RobGIBError: there is none of this name.
    """
    if name == "none":
        return Normalization()
    if name not in NORMALIZATIONS:
        raise unknown_name("normalisation", name, [*NORMALIZATIONS, "none"])
    return Normalization(*NORMALIZATIONS[name])


class Normalize(nn.Module):
    """Per-channel ``(x - mean) / std`` as the first layer, so that attacks work in pixel scale."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return (x - self.mean) / self.std


class Ported(nn.Module):
    """Another library's network, ``net``, behind normalisation; grey images are given to it as three channels.

    Args:
        net: the network.
        mean: by channel, or one.
        std: likewise.
        widen: whether grey images become three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], widen: bool = True) -> None:
        super().__init__()
        self.net = net
        self.widen = widen
        # Not in the state dict, whose keys but for "net." are then the library's own.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.net(((x.expand(-1, 3, -1, -1) if self.widen else x) - self.mean) / self.std)
        return out

    def __repr__(self) -> str:
        mean, std = (_numbers(v.flatten().tolist()) for v in (self.mean, self.std))
        return f"Ported(mean {mean}, std {std}, {self.net!r})"
