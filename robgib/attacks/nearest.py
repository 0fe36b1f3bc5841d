"""Common parts of the minimum-norm attacks."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from robgib.attacks.base import MinimumNormAttack, objective_gradient
from robgib.attacks.objective import Objective, misclassified, wrong_by
from robgib.attacks.threat_model import distance, per_sample
from robgib.runtime import SampleRNG

__all__ = [
    "Adam",
    "Nearest",
    "NearestAttack",
    "cosine",
    "margin_gradient",
]

_FIRST, _SECOND = 0.9, 0.999  # decay rates of the moments of Adam
_NEARER = 0.9998  # of images at nearly the same distance the first is kept, so that rounding does not decide


class Nearest:
    """The nearest adversarial image of each sample so far; initially the clean image at infinite distance.

    Attributes:
        image: images (N, …).
        size: their distances (N,) in ``norm``.
    """

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm = x, norm
        self.image = x.clone()
        self.size = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def offer(self, images: Tensor, fooled: Tensor) -> None:
        """Keep images (N, …) that fool (N,) and are nearer."""
        reach = distance(images, self.x, self.norm)
        nearer = fooled & (reach < _NEARER * self.size)
        self.image = torch.where(per_sample(nearer, images), images, self.image)
        self.size = torch.where(nearer, reach, self.size)


class NearestAttack(MinimumNormAttack):
    """A minimum-norm attack on correctly classified images; misclassified images are returned unchanged."""

    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`MinimumNormAttack.find`."""
        with torch.no_grad():
            logits = model(x)
        rows = (~misclassified(logits, y)).nonzero().squeeze(1)
        result = x.clone()
        if len(rows):
            result[rows] = self.search(model, x[rows], y[rows], logits[rows])
        return result

    @abstractmethod
    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the nearest adversarial images (N, …) found, or the clean image.

        Args:
            model: classifier, frozen.
            x: correctly classified images (N, …), at least one.
            y: their labels (N,).
            logits: logits (N, classes) of the clean images.
        """


class Adam:
    """The moments of Adam (Kingma & Ba 2015), per sample."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def moments(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Update with a gradient (N, …); return the bias-corrected mean and root mean square."""
        self.count += 1
        self.first = _FIRST * self.first + (1 - _FIRST) * gradient
        self.second = _SECOND * self.second + (1 - _SECOND) * gradient.square()
        curve = (self.second / (1 - _SECOND**self.count)).sqrt() + 1e-8
        return self.first / (1 - _FIRST**self.count), curve

    def select(self, mask: Tensor) -> None:
        """Keep only the selected samples."""
        self.first, self.second = self.first[mask], self.second[mask]


def margin_gradient(model: nn.Module, x: Tensor, goal: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Return the margin (N,) of the true class at ``x`` (N, …), its gradient (N, …), and which are fooled (N,)."""
    gradient, logits = objective_gradient(model, x, goal)
    return -goal.value(logits), -gradient, wrong_by(logits, goal.labels) > 0


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Return the value at ``step`` of a cosine schedule from ``first`` to ``last`` (Loshchilov & Hutter 2017)."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
