"""A small convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn

from robgib.models.normalization import Normalize
from robgib.models.registry import register_architecture

__all__ = [
    "CNN",
]


class CNN(nn.Module):
    """Blocks of convolution, batch norm, ReLU and (all but the last) max pooling, then a linear head.

    Layers: ``blocks.0`` … ``blocks.(n-1)``, each (N, width_i, H_i, W_i); ``hidden`` (N, hidden); ``head``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, widths: list[int], hidden: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.normalize = Normalize((0.5,) * channels, (0.5,) * channels)
        blocks = []
        for i, out in enumerate(widths):
            parts = [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            if i < len(widths) - 1 and min(height, width) >= 4:
                parts.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            blocks.append(nn.Sequential(*parts))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        pooled = min(height, width, 4)
        self.pool = nn.AdaptiveAvgPool2d(pooled) if (height, width) != (pooled, pooled) else nn.Identity()
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * pooled * pooled, hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.hidden(self.pool(self.blocks(self.normalize(x)))))
        return out


@register_architecture("cnn")
def cnn(
    shape: tuple[int, ...],
    classes: int,
    widths: list[int] | None = None,
    hidden: int = 64,
    dropout: float = 0.1,
) -> nn.Module:
    """Convolutional network with the given channel widths, one block each."""
    return CNN(shape, classes, widths or [16, 32, 32], hidden, dropout)
