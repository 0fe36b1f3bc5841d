"""The Square attack: random search with squares, no gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import Attack, register_attack
from robgib.attacks.carried import masked
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import CONVEX_NORMS, distance, per_sample
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = [
    "Square",
]

_BLOCK = 100  # queries whose random numbers are drawn at once
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where the area of squares is halved


@register_attack("Square")
@dataclass(frozen=True)
class Square(Attack):
    """Score-based random search (Andriushchenko et al. 2020, algorithms 1 to 3): a black-box attack.

    Each query changes one random square of each image, and keeps the proposal unless the loss decreases. Under L-inf
    the square is set to ±eps by channel, and the search starts from vertical stripes. Under L2 and L1 (Croce & Hein
    2021, section 4) the square receives a pyramid-shaped pattern and the norm of another square. The squares shrink by
    the schedule of the paper, scaled to the number of queries. The attack needs logits only, and so gradient masking
    does not affect it.

    The paper accepts a proposal only if the loss increases, and stops at margin 0. Here a proposal of equal loss is
    also accepted, since quantized logits have plateaus, and a search ends when the image is misclassified, since at a
    tie the true class may win. Images too narrow for a square use a rectangle of its area; vectors (N, D) are images of
    one row, and matrices (N, L, D) images of one channel.

    Fields:
        queries: maximum number of model evaluations per sample.
        area: share of the image that the first squares cover (p in the paper).
        restarts: number of independent searches.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    queries: Count = 5000
    area: Annotated[float, Field(gt=0, le=1)] = 0.8
    restarts: Count = 1

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`: a query costs a third of a gradient and its forward pass."""
        return -(-self.queries * self.restarts // 3)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        result = x.clone()
        goal = Objective.untargeted(y, "margin")
        with torch.no_grad():
            clean = model(x)
            remaining = (~goal.criterion(clean)).nonzero().squeeze(1)
            best = goal.value(clean)
            for _ in range(self.restarts):
                if not len(remaining):
                    break
                images, value, fooled = self.search(model, x[remaining], goal.select(remaining), rng.select(remaining))
                better = fooled | (value > best[remaining])
                result[remaining[better]], best[remaining[better]] = images[better], value[better]
                remaining = remaining[~fooled]
        return result

    @torch.no_grad()
    def search(
        self, model: nn.Module, x: Tensor, goal: Objective, rng: SampleRNG, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one search, from ``start`` or the patterns of the paper.

        Args:
            model: classifier, frozen.
            x: clean, correctly classified images (N, …).
            goal: the objective to maximise.
            rng: random numbers of the samples.
            start: first images (N, …), inside the ball, such as the results of gradient ascent.

        Returns:
            The best images (N, …); their objective (N,); whether they fool (N,).
        """
        shape = x.shape
        x = _as_images(x)
        if start is None:
            best = (self._stripes if self.threat.norm == "linf" else self._tiles)(x, rng)
        else:
            best = start.reshape(x.shape).clone()
        logits = model(best.view(shape))
        value, fooled = goal.value(logits), goal.criterion(logits)
        remaining = (~fooled).nonzero().squeeze(1)
        goal, draws = goal.select(remaining), self._draws(x, rng)
        change = self._square if self.threat.norm == "linf" else self._exchange
        for query in range(1, self.queries):
            if not len(remaining):
                break
            numbers = next(draws)[remaining]
            proposal = change(x[remaining], best[remaining], self._sides(query, *x.shape[2:]), numbers)
            logits = model(proposal.view(-1, *shape[1:]))
            margin, done = goal.value(logits), goal.criterion(logits)
            better = (margin >= value[remaining]) | done
            best[remaining[better]], value[remaining[better]] = proposal[better], margin[better]
            if bool(done.any()):
                fooled[remaining[done]] = True
                remaining, goal = remaining[~done], goal.select(~done)
        return best.view(shape), value, fooled

    def _share(self, query: int) -> float:
        """Return the share of the image area that the square of a query covers."""
        return float(self.area / 2 ** sum(query * 10_000 > turn * self.queries for turn in _HALVED))

    def _sides(self, query: int, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the squares of a query."""
        high, wide = _sides(self._share(query), height, width)
        if self.threat.norm == "linf":
            return high, wide
        # A pattern on one pixel is only a sign. The minimum of the paper is 3; on 8 × 8 pixels 2 is stronger.
        least = min(3, max(height, width) // 4)
        return min(height, max(high, least)), min(width, max(wide, least))

    @staticmethod
    def _draws(x: Tensor, rng: SampleRNG) -> Iterator[Tensor]:
        """Yield uniform numbers (N, 5 + 2C) for each query."""
        width = 5 + 2 * x.shape[1]
        while True:
            yield from rng.uniform((_BLOCK, width), x.device).unbind(1)

    def _stripes(self, x: Tensor, rng: SampleRNG) -> Tensor:
        signs = 2.0 * rng.integers(2, (x.shape[1], 1, x.shape[3]), x.device) - 1
        return self.threat.project(x + self.threat.eps * signs.to(x.dtype), x)

    def _square(self, x: Tensor, best: Tensor, sides: tuple[int, int], numbers: Tensor) -> Tensor:
        """Set one square of each image to ±eps by channel (algorithm 2)."""
        inside = _window(x, sides, numbers[:, 0], numbers[:, 1])
        sign = torch.where(numbers[:, 5 : 5 + x.shape[1]] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
        return self.threat.project(torch.where(inside, x + self.threat.eps * sign, best), x)

    def _tiles(self, x: Tensor, rng: SampleRNG) -> Tensor:
        """Return start images with patterns of random signs on a 5 × 5 grid, scaled to the surface of the ball."""
        count, channels, height, width = x.shape
        high, wide = max(1, height // 5), max(1, width // 5)
        upright, turned = _patterns((high, wide), x)
        delta = torch.zeros_like(x)
        rows, columns = height // high, width // wide
        numbers = rng.uniform((rows * columns * (channels + 1),), x.device).view(count, rows, columns, channels + 1)
        for r in range(rows):
            for c in range(columns):
                pattern = torch.where((numbers[:, r, c, 0] < 0.5)[:, None, None], upright, turned)[:, None]
                sign = torch.where(numbers[:, r, c, 1:] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
                delta[:, :, r * high : (r + 1) * high, c * wide : (c + 1) * wide] = pattern * sign
        return self._on_surface(x, delta)

    def _exchange(self, x: Tensor, best: Tensor, sides: tuple[int, int], numbers: Tensor) -> Tensor:
        """Move the norm of another square, and the unused norm, to one square, in a pattern (algorithm 3)."""
        delta = best - x
        one = _window(x, sides, numbers[:, 0], numbers[:, 1])
        two = _window(x, sides, numbers[:, 2], numbers[:, 3])
        either = one | two
        power = 1 if self.threat.norm == "l1" else 2

        def mass(values: Tensor, over: tuple[int, ...] = (2, 3)) -> Tensor:
            """The norm before its root."""
            return values.abs().pow(power).sum(over, keepdim=True)

        def unit(values: Tensor) -> Tensor:
            return values / mass(values).pow(1 / power).clamp_min(1e-10)

        # By channel: the norm in the two squares, and a share of the unused norm.
        unused = (self.threat.eps**power - mass(delta, (1, 2, 3))).clamp_min(0) / x.shape[1]
        budget = (mass(delta * either) + unused).pow(1 / power)
        former = unit(delta * one)
        upright, turned = _patterns(sides, x)
        pattern = torch.where((numbers[:, 4] < 0.5)[:, None, None], upright, turned)
        sign = torch.where(numbers[:, 5 : 5 + x.shape[1]] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
        fresh = _placed(pattern, x, numbers[:, 0], numbers[:, 1]) * sign + former
        fresh = unit(fresh * one) * budget
        return self._on_surface(x, torch.where(either, fresh, delta))

    def _on_surface(self, x: Tensor, delta: Tensor) -> Tensor:
        """Scale perturbations to the surface of the ball, as far as the box allows."""
        delta = masked(delta, x)
        size = distance(delta, torch.zeros_like(delta), self.threat.norm).clamp_min(1e-10)
        return self.threat.project(x + delta * per_sample(self.threat.eps / size, x), x)


def _as_images(x: Tensor) -> Tensor:
    """View samples (N, …) as (N, C, H, W): vectors are one row, matrices one channel, volumes stacked slices."""
    if x.ndim == 4:
        return x
    if x.ndim > 4:
        return x.reshape(len(x), x.shape[1], -1, x.shape[-1])
    return x.reshape(len(x), *([1] * (4 - x.ndim)), *x.shape[1:])


def _sides(share: float, height: int, width: int) -> tuple[int, int]:
    """Return height and width of squares that cover ``share`` of an image, but never the whole image.

    Where the image is too narrow for a square, it is a rectangle of that area across it.
    """
    least, most = min(height, width), max(height, width)
    short = long = max(1, round(math.sqrt(share * height * width)))
    if short > least:
        short, long = least, min(most, max(1, round(share * most)))
    if (short, long) == (least, most):
        long = max(1, long - 1)
    return (short, long) if height <= width else (long, short)


def _corner(x: Tensor, sides: tuple[int, int], u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return top and left of rectangles inside the images, from uniform numbers (N,)."""
    return (u * (x.shape[2] - sides[0] + 1)).long(), (v * (x.shape[3] - sides[1] + 1)).long()


def _window(x: Tensor, sides: tuple[int, int], u: Tensor, v: Tensor) -> Tensor:
    """Return masks (N, 1, H, W) of one rectangle per image."""
    top, left = _corner(x, sides, u, v)
    rows, columns = torch.arange(x.shape[2], device=x.device), torch.arange(x.shape[3], device=x.device)
    down = (rows >= top[:, None]) & (rows < top[:, None] + sides[0])
    across = (columns >= left[:, None]) & (columns < left[:, None] + sides[1])
    return (down[:, :, None] & across[:, None, :])[:, None]


def _placed(pattern: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return patterns (N, h, w) placed at their rectangles in images (N, 1, H, W), with their edges repeated."""
    high, wide = pattern.shape[1:]
    top, left = _corner(x, (high, wide), u, v)
    rows = (torch.arange(x.shape[2], device=x.device) - top[:, None]).clamp(0, high - 1)
    columns = (torch.arange(x.shape[3], device=x.device) - left[:, None]).clamp(0, wide - 1)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return pattern[which, rows[:, :, None], columns[:, None, :]][:, None]


def _pyramid(height: int, width: int) -> np.ndarray:
    """Return the pattern η of the paper: at Chebyshev distance d from the centre, the sum of 1/k² over k > d."""
    layers = max(height, width) // 2 + 1
    beyond = np.cumsum(1 / np.arange(layers, 0, -1.0) ** 2)[::-1]
    row, column = np.indices((height, width))
    return np.asarray(beyond[np.maximum(abs(row - height // 2), abs(column - width // 2))])


def _patterns(sides: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return two patterns (h, w) of L2 norm 1: pyramids of opposite sign, stacked vertically and horizontally."""
    return _pattern(*sides, like), _pattern(sides[1], sides[0], like).T


def _pattern(height: int, width: int, like: Tensor) -> Tensor:
    half = height // 2
    parts = [_pyramid(half, width)] if half else []
    whole = np.vstack([*parts, -_pyramid(height - half, width)])
    return torch.as_tensor(whole / np.linalg.norm(whole), dtype=like.dtype, device=like.device)
