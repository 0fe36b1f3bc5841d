"""Networks that lose nothing on the way to the logits: every layer can be turned back into the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.models.registry import register_architecture

__all__ = [
    "Bijective",
]


class Coupling(nn.Module):
    """Adds a function of one half of the numbers to the other half, and swaps the halves (Dinh et al. 2015, NICE)."""

    def __init__(self, kept: int, moved: int, hidden: int) -> None:
        super().__init__()
        self.kept = kept
        self.shift = nn.Sequential(nn.Linear(kept, hidden), nn.Tanh(), nn.Linear(hidden, moved))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, D) to (N, D), volumes unchanged."""
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        return torch.cat([moved + self.shift(kept), kept], dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """The input (N, D) of an output."""
        moved, kept = z[:, : z.shape[1] - self.kept], z[:, z.shape[1] - self.kept :]
        return torch.cat([kept, moved - self.shift(kept)], dim=1)


class Bijective(nn.Module):
    """Coupling blocks as wide as the input, ``blocks.0``, ``blocks.1`` …, then a linear ``head``.

    Whatever it learns, each block holds all of the input: its I(X;Z) never falls, in training or from layer to layer.
    An estimate that says otherwise shows what its code or its bins make of the layer (Jacobsen, Smeulders & Oyallon
    2018 train such networks on ImageNet).

    >>> net = Bijective((1, 4, 4), 10, depth=2, hidden=8)
    >>> x = torch.rand(5, 1, 4, 4)
    >>> bool(torch.allclose(net.inverse(net.blocks(net.spread(x))), x, atol=1e-5))
    True
    """

    def __init__(self, shape: tuple[int, ...], classes: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        if size < 2 or depth < 1 or hidden < 1:
            raise RobGIBError("a bijective network needs two numbers of input, one block and one hidden unit at least.")
        blocks = []
        for i in range(depth):
            kept = size // 2 if i % 2 == 0 else size - size // 2
            blocks.append(Coupling(kept, size - kept, hidden))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(size, classes)

    def spread(self, x: Tensor) -> Tensor:
        """Numbers (N, D) from -1 to 1, neighbours in different halves."""
        flat = 2 * x.flatten(1) - 1
        return torch.cat([flat[:, 1::2], flat[:, ::2]], dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """The samples (N, *shape) that the last block's output (N, D) came from."""
        for block in reversed(self.blocks):
            assert isinstance(block, Coupling)
            z = block.inverse(z)
        half = z.shape[1] // 2
        flat = torch.empty_like(z)
        flat[:, 1::2], flat[:, ::2] = z[:, :half], z[:, half:]
        return ((flat + 1) / 2).unflatten(1, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Samples (N, *shape) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.blocks(self.spread(x)))
        return out


@register_architecture("bijective")
def bijective(shape: tuple[int, ...], classes: int, depth: int = 4, hidden: int = 64) -> nn.Module:
    """Bijective coupling blocks, each with the given number of hidden units."""
    return Bijective(shape, classes, depth, hidden)
