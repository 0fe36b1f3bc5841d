"""A Vision Transformer for small images (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError
from robgib.models.normalization import Normalize
from robgib.models.registry import register_architecture

__all__ = [
    "Encoder",
    "ViT",
]


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, L, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise RobGIBError(f"a transformer's dim ({dim}) must be divisible by its heads ({heads}).")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, D) to tokens (N, L, D)."""
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, dim))
        return out


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a two-layer perceptron, each with a residual."""

    def __init__(self, dim: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, D) to tokens (N, L, D)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """A classifier of token sequences: class token, learned positions, pre-norm blocks, final norm, linear head.

    A subclass turns its input into tokens, and makes what it does that with before it calls :meth:`encode_with`.
    Layers: ``embed`` and ``blocks.0`` … are token layers (N, 1+L, D), the class token first; ``head``.
    """

    def encode_with(
        self, length: int, classes: int, dim: int, depth: int, heads: int, expansion: int, dropout: float
    ) -> None:
        """Make the layers for ``length`` tokens of width ``dim``."""
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + length, dim))
        self.embed = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, expansion, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def classify(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, D) to logits (N, classes)."""
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(self.embed(tokens)))[:, 0])
        return out


class ViT(Encoder):
    """Vision Transformer: square patches, embedded linearly, are the tokens."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        expansion: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise RobGIBError(f"a patch of {patch} does not divide images of {height}x{width} pixels.")
        self.normalize = Normalize((0.5,) * channels, (0.5,) * channels)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.encode_with((height // patch) * (width // patch), classes, dim, depth, heads, expansion, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        return self.classify(self.patches(self.normalize(x)).flatten(2).transpose(1, 2))


@register_architecture("vit")
def vit(
    shape: tuple[int, ...],
    classes: int,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    expansion: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """Vision Transformer with square patches of ``patch`` pixels."""
    return ViT(shape, classes, patch, dim, depth, heads, expansion, dropout)


def _fitting_patch(shape: tuple[int, ...]) -> int:
    """2 pixels for images of up to 16 a side, else 4: 16 to 64 patches for images of 8, 28 and 32."""
    return 2 if min(shape[1:]) <= 16 else 4


@register_architecture("vit-tiny")
def vit_tiny(shape: tuple[int, ...], classes: int, patch: int | None = None, dropout: float = 0.0) -> nn.Module:
    """ViT-Tiny (Touvron et al. 2021, table 1: 12 blocks of width 192, 3 heads), for small images."""
    return ViT(shape, classes, patch or _fitting_patch(shape), 192, 12, 3, 4, dropout)


@register_architecture("vit-small")
def vit_small(shape: tuple[int, ...], classes: int, patch: int | None = None, dropout: float = 0.0) -> nn.Module:
    """ViT-Small (Touvron et al. 2021, table 1: 12 blocks of width 384, 6 heads), for small images."""
    return ViT(shape, classes, patch or _fitting_patch(shape), 384, 12, 6, 4, dropout)
