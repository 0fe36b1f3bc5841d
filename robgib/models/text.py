"""A Transformer encoder that classifies sequences of token embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.models.registry import register_architecture
from robgib.models.vit import Encoder

__all__ = [
    "TextTransformer",
]


class TextTransformer(Encoder):
    """Transformer encoder whose tokens are linear embeddings of token vectors.

    The input is the tokens' vectors and not their numbers, so that attacks move them, as Miyato, Dai & Goodfellow
    (2017) do.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, dim: int, depth: int, heads: int, expansion: int, dropout: float
    ) -> None:
        super().__init__()
        if len(shape) != 2:
            raise RobGIBError(f"text-transformer takes token vectors (L, D), such as those of text:DIR, not {shape}.")
        length, width = shape
        self.project = nn.Linear(width, dim)
        self.encode_with(length, classes, dim, depth, heads, expansion, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Token vectors (N, L, D) in [0, 1] to logits (N, classes)."""
        return self.classify(self.project(2 * x - 1))


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
