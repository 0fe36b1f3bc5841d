"""What the attacks that look for the nearest adversarial image share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from robgib.attacks.base import MinimumNormAttack, objective_gradient
from robgib.attacks.objective import Objective, misled, wrong_by
from robgib.attacks.threat_model import distance, per_sample
from robgib.runtime import SampleRNG

__all__ = [
    "Adam",
    "Nearest",
    "NearestAttack",
    "cosine",
    "lead_gradient",
]

_FIRST, _SECOND = 0.9, 0.999  # shares of Adam's moments that stay
_NEARER = 0.9998  # of images at all but the same distance the first stays, or rounding would choose between batches


class Nearest:
    """The nearest adversarial image of each sample so far: the clean one, at infinite distance, before there is one.

    Attributes:
        image: images (N, …).
        size: their distances (N,) in ``norm``.
    """

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm = x, norm
        self.image = x.clone()
        self.size = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def offer(self, images: Tensor, fooled: Tensor) -> None:
        """Take images (N, …) that fool (N,) where they are nearer."""
        reach = distance(images, self.x, self.norm)
        nearer = fooled & (reach < _NEARER * self.size)
        self.image = torch.where(per_sample(nearer, images), images, self.image)
        self.size = torch.where(nearer, reach, self.size)


class NearestAttack(MinimumNormAttack):
    """An attack that searches from right images; wrong ones come back as they are."""

    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`MinimumNormAttack.find`."""
        with torch.no_grad():
            logits = model(x)
        rows = (~misled(logits, y)).nonzero().squeeze(1)
        result = x.clone()
        if len(rows):
            result[rows] = self.search(model, x[rows], y[rows], logits[rows])
        return result

    @abstractmethod
    def search(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the nearest adversarial images (N, …) found, the clean one where none was.

        Args:
            model: classifier, frozen.
            x: images (N, …), one at least, which the model labels right.
            y: their labels (N,).
            logits: of the clean images (N, classes).
        """


class Adam:
    """The moments of Adam (Kingma & Ba 2015), by sample."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def moments(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Take one more gradient (N, …); return the mean gradient and the root of the mean square, both unbiased."""
        self.count += 1
        self.first = _FIRST * self.first + (1 - _FIRST) * gradient
        self.second = _SECOND * self.second + (1 - _SECOND) * gradient.square()
        curve = (self.second / (1 - _SECOND**self.count)).sqrt() + 1e-8
        return self.first / (1 - _FIRST**self.count), curve

    def select(self, mask: Tensor) -> None:
        """Go on with some of the samples."""
        self.first, self.second = self.first[mask], self.second[mask]


def lead_gradient(model: nn.Module, x: Tensor, goal: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The true class's lead (N,) in logits at ``x`` (N, …), its gradient (N, …), and who is fooled (N,)."""
    gradient, logits = objective_gradient(model, x, goal)
    return -goal.value(logits), -gradient, wrong_by(logits, goal.labels) > 0


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """From ``first`` at step 0 to ``last`` at the end along half a cosine (Loshchilov & Hutter 2017)."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
