"""Multi-layer perceptrons: the networks on which the compression debate began."""

from __future__ import annotations

from torch import Tensor, nn

from robgib.errors import unknown_name
from robgib.models.registry import register_architecture

__all__ = [
    "MLP",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class MLP(nn.Module):
    """Fully connected blocks (linear, activation) named ``blocks.0``, ``blocks.1`` …, then ``head``."""

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: list[int], activation: str) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        width = 1
        for side in shape:
            width *= side
        blocks = []
        for size in hidden:
            blocks.append(nn.Sequential(nn.Linear(width, size), _ACTIVATIONS[activation]()))
            width = size
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.blocks(2 * x.flatten(1) - 1))
        return out


@register_architecture("mlp")
def mlp(shape: tuple[int, ...], classes: int, hidden: list[int] | None = None, activation: str = "relu") -> nn.Module:
    """Perceptron with the given hidden widths and ``tanh``, ``relu`` or ``gelu`` units."""
    return MLP(shape, classes, hidden or [64, 32, 16], activation)
