"""A stochastic code before the classes: the layer that information penalties act on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.errors import RobGIBError

__all__ = [
    "VariationalHead",
    "variational_head",
]


class VariationalHead(nn.Module):
    """Gaussian code of ``dimension`` units, then a linear classifier (Alemi et al. 2017, section 3).

    In training mode the code is drawn from N(mean, scale²), whose ``mean``, ``scale`` and draw ``code`` stay readable
    until the next pass. In eval mode it is the mean, so that the network is a function and has gradients.
    Layers: ``code`` (N, dimension); ``classes``.
    """

    def __init__(self, features: int, dimension: int, classes: int) -> None:
        super().__init__()
        self.encode = nn.Linear(features, 2 * dimension)
        self.code = nn.Identity()
        self.classes = nn.Linear(dimension, classes)
        self.drawn: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, features) to logits (N, classes)."""
        mean, raw = self.encode(x).chunk(2, dim=1)
        code = mean
        if self.training:
            scale = F.softplus(raw - 5) + 1e-4
            code = mean + scale * torch.randn_like(mean)
            self.drawn = (mean, scale, code)
        else:
            self.drawn = None
        out: Tensor = self.classes(self.code(code))
        return out


def variational_head(model: nn.Module, dimension: object, arch: str) -> nn.Module:
    """Put a :class:`VariationalHead` in the place of the model's linear ``head``."""
    if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 1:
        raise RobGIBError(
            f"architecture {arch!r}: bottleneck must be a number of units of at least 1, not {dimension!r}."
        )
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise RobGIBError(f"architecture {arch!r} has no linear layer 'head', which a bottleneck needs.")
    model.head = VariationalHead(head.in_features, dimension, head.out_features)
    return model
