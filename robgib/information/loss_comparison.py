"""Loss comparison after PCA: a network of its own for every feature subset, on the subset's principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from robgib.information.base import register_estimator
from robgib.information.features import Projection
from robgib.information.masked_network import Columns, Vector, layers, perceptron, subsets
from robgib.information.probe import Probe
from robgib.options import Count

__all__ = [
    "LossComparison",
]

_DECAY = 0.3  # of the gates before the components


@register_estimator("loss_comparison")
@dataclass(frozen=True)
class LossComparison(Probe):
    """I(X_S;T) as the loss of guessing less the held-out loss of a network that sees the components of X_S.

    Each of the 2n+1 subsets has networks of its own, on its leading principal components. No network is shown a mask,
    and none answers for two subsets: that is what sets it apart from :class:`~robgib.information.Probe`, whose folds,
    stopping, calibration and intervals it shares. Public summaries of the GIB paper name loss comparison after PCA
    among its estimators and say no more: everything else here is this project's reading.

    Fields:
        components: principal components of a subset at most.
    """

    name: ClassVar[str] = "loss_comparison"
    bound: ClassVar[str] = "lower (usable by the networks, of the components)"
    summary: ClassVar[str] = "a network a subset, on its principal components: held-out loss against chance"
    regimes: ClassVar[tuple[str, ...]] = ("discrete", "classes")
    guide: ClassVar[str] = (
        "Each information is what one small network can use of the principal components of one subset, held out and "
        "calibrated: a lower bound in expectation. What lies in small components is lost: components are chosen by "
        "their variance and not by what they tell about the target, so that a subset of many features may lose more "
        "than a single feature, which lowers the leave-one-out terms and raises synergy. Differences of such bounds, "
        "such as II and S, are not bounds. It takes 2n+1 networks, and is a cross-check of the probe."
    )
    width: Count = 64
    steps: Count = 800
    components: Annotated[int, Field(ge=1)] = 8

    def _prepare(self, features: tuple[Vector, ...], fit_features: tuple[Vector, ...]) -> Columns:
        made = Columns.made(features, fit_features)
        return _Components(made.of, made.pooled, made.more, self.components)


@dataclass(frozen=True)
class _Components(Columns):
    """Network inputs of all features, of which each subset is reduced to its principal components."""

    most: int = 8

    def network(self) -> Separate:  # type: ignore[override]
        """The networks that see them."""
        masks = subsets(len(self.of))
        nothing = np.zeros((len(self.of[0]), 1))
        scores = []
        for mask in masks:
            shown = [c.numpy() for c, kept in zip(self.of, mask.bool().tolist(), strict=True) if kept]
            scores.append(_standard_components(np.hstack(shown), self.most) if shown else nothing)
        wide = max(s.shape[1] for s in scores)
        padded = [np.pad(s, ((0, 0), (0, wide - s.shape[1]))) for s in scores]
        return Separate(torch.from_numpy(np.stack(padded)).float(), masks)


def _standard_components(columns: Vector, most: int) -> Vector:
    """Scores (N, d) of at most ``most`` components, in units of the first one's deviation."""
    scores = Projection.fit(columns, most)(columns)
    return np.asarray(scores / max(float(scores[:, 0].std()), 1e-12))


@dataclass(frozen=True)
class Separate:
    """Networks that each see one subset: one a subset and fold, side by side.

    Attributes:
        values: components of each subset (S, N, c), filled up with zeros.
        masks: of the subsets (S, n).
    """

    values: Tensor
    masks: Tensor

    @property
    def levels(self) -> int:
        """Networks of a fold."""
        return len(self.masks)

    def levels_of(self, mask: Tensor) -> list[int]:
        """The network that answers for a subset."""
        return (self.masks == mask).all(1).nonzero()[:1].flatten().tolist()

    def to(self, device: torch.device) -> Separate:
        """Move the values."""
        return Separate(self.values.to(device), self.masks)

    def decay(self, folds: int) -> Tensor:
        """Rate at which the gates of each member decay (members, 1, 1)."""
        return torch.full((self.levels * folds, 1, 1), _DECAY)

    def start(self, folds: int, sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """Draw the parameters: gates, then layers of the given output sizes."""
        members, wide = self.levels * folds, self.values.shape[2]
        return [torch.ones(members, 1, wide), *layers(members, [wide, *sizes], generator)]

    def __call__(self, parameters: Sequence[Tensor], rows: Tensor, masks: Tensor) -> Tensor:
        """Outputs (subsets · folds, B, b) for samples (folds, B), whatever the masks."""
        return perceptron(self.values[:, rows].flatten(0, 1) * parameters[0], parameters[1:])
