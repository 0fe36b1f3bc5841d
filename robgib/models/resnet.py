"""Residual networks for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError
from robgib.models.normalization import Normalize
from robgib.models.registry import register_architecture

__all__ = [
    "ResNet",
    "WideResNet",
]


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with a 3 × 3 stem and no pooling before the blocks, as is usual for images of 28 to 32 pixels.

    Layers: ``stem``; ``blocks.0`` … in stages of halving size and doubling width; ``head``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, depths: list[int]) -> None:
        super().__init__()
        self.normalize = Normalize((0.5,) * shape[0], (0.5,) * shape[0])
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks, inputs = [], width
        for stage, depth in enumerate(depths):
            outputs = width * 2**stage
            for i in range(depth):
                blocks.append(BasicBlock(inputs, outputs, 2 if i == 0 and stage else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(self.blocks(self.stem(self.normalize(x))).mean((2, 3)))
        return out


class PreActivation(nn.Module):
    """Norm and ReLU before each of two 3 × 3 convolutions, beside a shortcut (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        active = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        inner = self.dropout(F.relu(self.norm2(self.conv1(active))))
        return beside + torch.as_tensor(self.conv2(inner))


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko & Komodakis 2016, table 1). Layers: ``stem``; ``blocks.0`` …; ``head``."""

    def __init__(self, shape: tuple[int, ...], classes: int, depth: int, widen: int, dropout: float) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise RobGIBError(f"the depth of a Wide-ResNet is 6 n + 4 (10, 16, 22, 28 …), not {depth}.")
        self.normalize = Normalize((0.5,) * shape[0], (0.5,) * shape[0])
        self.stem = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        blocks, inputs = [], 16
        for stage in range(3):
            outputs = 16 * widen * 2**stage
            for i in range((depth - 4) // 6):
                blocks.append(PreActivation(inputs, outputs, 2 if i == 0 and stage else 1, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.head(F.relu(self.norm(self.blocks(self.stem(self.normalize(x))))).mean((2, 3)))
        return out


@register_architecture("resnet")
def resnet(shape: tuple[int, ...], classes: int, width: int = 64, depths: list[int] | None = None) -> nn.Module:
    """ResNet-18 for small images, or another ``width`` of the first stage and blocks a stage (``depths``)."""
    return ResNet(shape, classes, width, depths or [2, 2, 2, 2])


@register_architecture("wide-resnet")
def wide_resnet(
    shape: tuple[int, ...], classes: int, depth: int = 28, widen: int = 10, dropout: float = 0.0
) -> nn.Module:
    """Wide-ResNet, by default WRN-28-10."""
    return WideResNet(shape, classes, depth, widen, dropout)
