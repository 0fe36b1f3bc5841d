"""Plain deep convolutional networks: VGG's and LeNet's kind."""

from __future__ import annotations

from torch import Tensor, nn

from robgib.models.normalization import Normalize
from robgib.models.registry import register_architecture

__all__ = ["VGG", "LeNet"]


class VGG(nn.Module):
    """Stages of 3 × 3 convolutions with batch norm, each ended by max pooling (Simonyan & Zisserman 2015).

    Layers: ``blocks.0`` …, one a convolution, pooling included where a stage ends; ``head``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.normalize = Normalize((0.5,) * channels, (0.5,) * channels)
        blocks = []
        for outputs, depth in zip(widths, depths, strict=True):
            for i in range(depth):
                parts = [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                if i == depth - 1 and min(height, width) >= 2:
                    parts.append(nn.MaxPool2d(2))
                    height, width = height // 2, width // 2
                blocks.append(nn.Sequential(*parts))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.blocks(self.normalize(x)).mean((2, 3)))
        return out


class LeNet(nn.Module):
    """Two convolutions with pooling and two hidden layers (LeCun et al. 1998, figure 2, with ReLU and max pooling).

    Layers: ``blocks.0``, ``blocks.1`` (convolutions), ``hidden.0``, ``hidden.1`` (perceptron); ``head``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.normalize = Normalize((0.5,) * channels, (0.5,) * channels)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.hidden = nn.Sequential(
            nn.Sequential(nn.Flatten(), nn.Linear(16 * (height // 4) * (width // 4), 120), nn.ReLU()),
            nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        )
        self.head = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.hidden(self.blocks(self.normalize(x))))
        return out


@register_architecture("vgg")
def vgg(
    shape: tuple[int, ...], classes: int, widths: list[int] | None = None, depths: list[int] | None = None
) -> nn.Module:
    """VGG-style network of ``depths`` convolutions of the given widths a stage; by default VGG-11's."""
    return VGG(shape, classes, widths or [64, 128, 256, 512, 512], depths or [1, 1, 2, 2, 2][: len(widths or [0] * 5)])


@register_architecture("lenet")
def lenet(shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet-5-like network."""
    return LeNet(shape, classes)
