"""A Transformer encoder that classifies sequences of token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.models.registry import register_architecture
from robgib.models.vit import Block

__all__ = ["TextTransformer"]


class TextTransformer(nn.Module):
    """Linear embedding of token vectors, class token, learned positions, pre-norm blocks, linear head.

    The input is the tokens' vectors and not their numbers, so that attacks move them, as Miyato, Dai & Goodfellow
    (2017) do. Layers: ``embed`` and ``blocks.0`` … are token layers (N, 1+L, dim), the class token first; ``head``.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, dim: int, depth: int, heads: int, expansion: int, dropout: float
    ) -> None:
        super().__init__()
        if len(shape) != 2:
            raise RobGIBError(f"text-transformer takes token vectors (L, D), such as those of text:DIR, not {shape}.")
        length, width = shape
        self.project = nn.Linear(width, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + length, dim))
        self.embed = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, expansion, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Token vectors (N, L, D) in [0, 1] to logits (N, classes)."""
        tokens = self.project(2 * x - 1)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(self.embed(tokens)))[:, 0])
        return out


@register_architecture("text-transformer")
def text_transformer(
    shape: tuple[int, ...],
    classes: int,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    expansion: int = 2,
    dropout: float = 0.1,
) -> nn.Module:
    """Transformer encoder over token vectors."""
    return TextTransformer(shape, classes, dim, depth, heads, expansion, dropout)
