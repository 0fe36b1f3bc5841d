"""The Square attack: random search with squares, no gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, Goal
from robgib.attacks.threat import SampleRNG, per_sample
from robgib.errors import RobGIBError

__all__ = ["Square"]

_BLOCK = 100  # queries whose random numbers are drawn at once
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, when the square's area is halved


@dataclass(frozen=True)
class Square(Attack):
    """Score-based random search (Andriushchenko et al. 2020, algorithms 1 to 3): a black-box attack.

    Each query proposes another perturbation inside one random square of each image and keeps it where it raises the
    margin. Under L-inf the square takes ±eps by channel, and the search starts from vertical stripes; under L2 a
    square takes a pyramid-shaped pattern and the norm that another square gives up. The squares shrink on the
    paper's schedule, scaled to the number of queries. It needs logits only, so that masked gradients do not stop it.

    Fields:
        queries: model evaluations a sample, at most.
        area: share of the image that the first squares cover (p in the paper).
        restarts: independent searches.
    """

    pooled: ClassVar[bool] = True
    queries: int = 5000
    area: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "restarts"):
            if getattr(self, name) < 1:
                raise RobGIBError(f"Square's {name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.area <= 1:
            raise RobGIBError(f"Square's area must lie above 0 and not above 1, not {self.area}.")

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`: a query is about half a gradient."""
        return max(1, self.queries * self.restarts // 2)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`. Images must be (N, C, H, W)."""
        if x.ndim != 4:
            raise RobGIBError(f"Square needs images of shape (N, C, H, W), not {tuple(x.shape)}.")
        result = x.clone()
        with torch.no_grad():
            clean = model(x)
            left = (clean.argmax(1) == y).nonzero().squeeze(1)
            best = Goal(y, False, "margin").objective(clean)
            for _ in range(self.restarts):
                if not len(left):
                    break
                found, value = self._search(model, x[left], y[left], rng.select(left))
                better = value > best[left]
                result[left[better]], best[left[better]] = found[better], value[better]
                left = left[best[left] < 0]
        return result

    def _search(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> tuple[Tensor, Tensor]:
        """Return the best images found (N, …) and their margins (N,), above 0 where they fool."""
        goal = Goal(y, False, "margin")
        best = (self._stripes if self.threat.norm == "linf" else self._tiles)(x, rng)
        value = goal.objective(model(best))
        left = (value < 0).nonzero().squeeze(1)
        height, width = x.shape[2:]
        draws = self._draws(x, rng)
        for query in range(1, self.queries):
            if not len(left):
                break
            numbers = next(draws)[left]
            side = max(1, round(math.sqrt(self._share(query) * height * width)))
            change = self._square if self.threat.norm == "linf" else self._exchange
            proposal = change(x[left], best[left], min(side, height - 1, width - 1) or 1, numbers)
            margin = goal.select(left).objective(model(proposal))
            better = margin > value[left]
            best[left[better]], value[left[better]] = proposal[better], margin[better]
            left = left[value[left] < 0]
        return best, value

    def _share(self, query: int) -> float:
        """Share of the image's area that the query's square covers."""
        return float(self.area / 2 ** sum(query * 10_000 > turn * self.queries for turn in _HALVED))

    @staticmethod
    def _draws(x: Tensor, rng: SampleRNG) -> Iterator[Tensor]:
        """Yield uniform numbers (N, 5 + 2C) for one query after the other."""
        width = 5 + 2 * x.shape[1]
        while True:
            yield from rng.uniform((_BLOCK, width), x.device).unbind(1)

    def _stripes(self, x: Tensor, rng: SampleRNG) -> Tensor:
        signs = 2.0 * rng.integers(2, (x.shape[1], 1, x.shape[3]), x.device) - 1
        return self.threat.project(x + self.threat.eps * signs.to(x.dtype), x)

    def _square(self, x: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """Set one square of each image to ±eps by channel (algorithm 2)."""
        inside = _window(x, side, numbers[:, 0], numbers[:, 1])
        sign = torch.where(numbers[:, 5 : 5 + x.shape[1]] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
        return self.threat.project(torch.where(inside, x + self.threat.eps * sign, best), x)

    def _tiles(self, x: Tensor, rng: SampleRNG) -> Tensor:
        """Start with patterns of random signs on a 5 × 5 grid, scaled to the ball's surface."""
        count, channels, height, width = x.shape
        side = max(1, height // 5)
        pattern = _pattern(side, x)
        delta = torch.zeros_like(x)
        rows, columns = max(1, height // side), max(1, width // side)
        numbers = rng.uniform((rows * columns * (channels + 1),), x.device).view(count, rows, columns, channels + 1)
        for r in range(rows):
            for c in range(columns):
                turned = torch.where((numbers[:, r, c, 0] < 0.5)[:, None, None], pattern, pattern.T)[:, None]
                sign = torch.where(numbers[:, r, c, 1:] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
                delta[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side] = turned * sign
        return self._on_surface(x, delta)

    def _exchange(self, x: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """Give one square the norm of another and what is unused, in a pattern (algorithm 3)."""
        delta = best - x
        one = _window(x, side, numbers[:, 0], numbers[:, 1])
        two = _window(x, side, numbers[:, 2], numbers[:, 3])
        either = one | two
        # Norms by channel: what the two squares hold, and the share of what the ball still allows.
        held = (delta * either).square().sum((2, 3), keepdim=True)
        unused = (self.threat.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / x.shape[1]
        budget = (held + unused).sqrt()
        former = delta * one
        former = former / former.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-10)
        pattern = _pattern(side, x)
        turned = torch.where((numbers[:, 4] < 0.5)[:, None, None], pattern, pattern.T)
        sign = torch.where(numbers[:, 5 : 5 + x.shape[1]] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
        fresh = _placed(turned[:, None], x, side, numbers[:, 0], numbers[:, 1]) * sign + former
        fresh = fresh * one
        fresh = fresh / fresh.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-10) * budget
        return self._on_surface(x, torch.where(either, fresh, delta))

    def _on_surface(self, x: Tensor, delta: Tensor) -> Tensor:
        """Scale perturbations to the ball's surface, as far as the box lets them."""
        size = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-10)
        return self.threat.project(x + delta * per_sample(self.threat.eps / size, x), x)


def _corner(x: Tensor, side: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Top and left of squares inside the images, from uniform numbers (N,)."""
    height, width = x.shape[2:]
    return (u * (height - side + 1)).long(), (v * (width - side + 1)).long()


def _window(x: Tensor, side: int, u: Tensor, v: Tensor) -> Tensor:
    """Masks (N, 1, H, W) of one square an image."""
    top, left = _corner(x, side, u, v)
    rows, columns = torch.arange(x.shape[2], device=x.device), torch.arange(x.shape[3], device=x.device)
    down = (rows >= top[:, None]) & (rows < top[:, None] + side)
    across = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _placed(pattern: Tensor, x: Tensor, side: int, u: Tensor, v: Tensor) -> Tensor:
    """Patterns (N, 1, side, side) at their squares' places in images of zeros (N, 1, H, W)."""
    top, left = _corner(x, side, u, v)
    rows = (torch.arange(x.shape[2], device=x.device) - top[:, None]).clamp(0, side - 1)
    columns = (torch.arange(x.shape[3], device=x.device) - left[:, None]).clamp(0, side - 1)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return pattern[:, 0][which, rows[:, :, None], columns[:, None, :]][:, None]


def _pyramid(height: int, width: int) -> np.ndarray:
    """Nested rectangles whose weights fall as inverse squares from the centre, as the paper's pattern η."""
    layers = max(height, width) // 2 + 1
    weights = np.cumsum(1 / np.arange(layers, 0, -1.0) ** 2)
    row, column = np.indices((height, width))
    depth = np.minimum(np.minimum(row, height - 1 - row), np.minimum(column, width - 1 - column))
    return np.asarray(weights[np.minimum(depth, layers - 1)])


def _pattern(side: int, like: Tensor) -> Tensor:
    """Two pyramids of opposite sign side by side (side, side), of L2 norm 1."""
    half = side // 2
    parts = [_pyramid(half, side)] if half else []
    whole = np.vstack([*parts, -_pyramid(side - half, side)])
    return torch.as_tensor(whole / np.linalg.norm(whole), dtype=like.dtype, device=like.device)
