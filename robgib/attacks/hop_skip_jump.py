"""HopSkipJump: a hard-label attack, which sees predicted classes only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import MinimumNormAttack, register_attack
from robgib.attacks.carried import carried, restored
from robgib.attacks.objective import misclassified
from robgib.attacks.threat_model import distance, per_sample
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = ["HopSkipJump"]

_FIRST = 0.1  # distance of the images of the first estimate
_STARTS = 50  # random images tried until one is misclassified
_PART = 100  # directions of a sample that are drawn at once
_BEYOND = 1e-3  # share of the distance by which a result lies beyond the boundary
_PIXELS = 2**24  # pixels of the images that are made at once
_HALVINGS = 20  # of a step along the estimated direction


@register_attack("HopSkipJump")
@dataclass(frozen=True)
class HopSkipJump(MinimumNormAttack):
    """Walks along the decision boundary by predicted classes alone (Chen, Jordan & Wainwright 2020, algorithm 2).

    An iteration projects the image onto the boundary by bisection, estimates the gradient there from the classes of
    random images around it, steps along the estimate, and halves the step until the image is misclassified. The search
    starts from a uniformly random image that is misclassified; without one the clean image is returned.

    Fields:
        queries: maximum number of predictions per sample.
        first: predictions of the first gradient estimate; that of iteration t takes sqrt(t) times as many.
        most: maximum number of predictions of an estimate.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    pooled: ClassVar[bool] = True
    queries: Count = 5000
    first: Count = 100
    most: Count = 10_000

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`: a query costs a third of a gradient and its forward pass."""
        return -(-self.queries // 3)

    @torch.no_grad()
    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`MinimumNormAttack.find`."""
        walk = _Walk(self, model, x.clone(), y)
        walk.start(rng)
        for iteration in range(1, self.queries):
            walk.onto_boundary()
            if not walk.go_on(self._estimates(iteration)):
                break
            walk.step(self._estimates(iteration), iteration, rng)
        return walk.best

    def _estimates(self, iteration: int) -> int:
        return int(min(self.first * math.sqrt(iteration), self.most))


@dataclass
class _Walk:
    """The images of a search.

    Attributes:
        attack: the attack.
        model: the classifier.
        x: clean images (N, …).
        y: labels (N,).
        at: current images, misclassified.
        best: nearest misclassified images so far, the clean image where there is none.
        near: their distances (N,), inf where there is none.
        used: predictions so far (N,).
        active: rows (n,) that continue.
    """

    attack: HopSkipJump
    model: nn.Module
    x: Tensor
    y: Tensor
    at: Tensor = field(init=False)
    best: Tensor = field(init=False)
    near: Tensor = field(init=False)
    used: Tensor = field(init=False)
    active: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.at, self.best = self.x.clone(), self.x.clone()
        self.used = torch.zeros(len(self.x), dtype=torch.long, device=self.x.device)
        self.near = torch.full((len(self.x),), math.inf, dtype=self.x.dtype, device=self.x.device)
        self.active = torch.arange(len(self.x), device=self.x.device)

    @property
    def pixels(self) -> int:
        """Number of values of an image."""
        return self.x[:1].numel()

    @property
    def precision(self) -> float:
        """Relative precision of the bisection (θ of the paper)."""
        power = 1.5 if self.attack.norm == "l2" else 2.0
        return max(1.0 / float(self.pixels) ** power, 1e-7)

    def wrong(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return whether the images (n, …) of some rows are misclassified; this takes a prediction each."""
        self.used += torch.bincount(rows, minlength=len(self.x))
        return misclassified(self.model(images), self.y[rows])

    def start(self, rng: SampleRNG) -> None:
        """Find a misclassified random image for each sample; samples without one leave the search."""
        clean = self.wrong(self.x, self.active)
        self.near[clean] = 0.0
        low, high = self.attack.threat.box
        waiting = self.active[~clean]
        found = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        for _ in range(min(_STARTS, self.attack.queries - 1)):
            if not len(waiting):
                break
            noise = rng.select(waiting).uniform(tuple(self.x.shape[1:]), self.x.device).to(self.x.dtype)
            images = restored(low + (high - low) * noise, self.x[waiting])
            hit = self.wrong(images, waiting)
            self.at[waiting[hit]] = images[hit]
            found[waiting[hit]] = True
            waiting = waiting[~hit]
        self.active = found.nonzero().squeeze(1)
        self.offer(self.at[self.active], self.active)

    def offer(self, images: Tensor, rows: Tensor) -> None:
        """Keep misclassified images (n, …) of some rows that are nearer than the best so far."""
        size = distance(images, self.x[rows], self.attack.norm)
        nearer = size < self.near[rows]
        self.best[rows[nearer]], self.near[rows[nearer]] = images[nearer], size[nearer]

    def go_on(self, estimates: int) -> bool:
        """Drop samples without queries for another iteration; return whether any remain."""
        needed = estimates + _HALVINGS + self.bisections
        self.active = self.active[self.used[self.active] + needed <= self.attack.queries]
        return len(self.active) > 0

    @property
    def bisections(self) -> int:
        """Number of predictions of a projection onto the boundary."""
        return math.ceil(math.log2(1 / self.precision)) + 1

    def onto_boundary(self) -> None:
        """Move each current image towards its clean image, until it is just misclassified."""
        rows = self.active[self.used[self.active] + self.bisections <= self.attack.queries]
        x, far = self.x[rows], self.at[rows]
        low = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
        high = torch.ones_like(low)
        for _ in range(self.bisections - 1):
            if not len(rows):
                return
            middle = (low + high) / 2
            wrong = self.wrong(self.blend(x, far, middle), rows)
            high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
        self.at[rows] = self.blend(x, far, high)
        # On the boundary itself the class depends on rounding: offer an image a little beyond it.
        beyond = self.blend(x, far, (high * (1 + _BEYOND)).clamp_max(1))
        wrong = self.wrong(beyond, rows)
        self.offer(beyond[wrong], rows[wrong])

    def blend(self, x: Tensor, far: Tensor, share: Tensor) -> Tensor:
        """Return images at a share (n,) of the way from ``x`` to ``far``; under L-inf in a ball of that radius."""
        if self.attack.norm == "l2":
            return x + per_sample(share, x) * (far - x)
        radius = per_sample(share * distance(far, x, "linf"), x)
        return torch.where(per_sample(share == 1, x), far, torch.minimum(torch.maximum(far, x - radius), x + radius))

    def step(self, estimates: int, iteration: int, rng: SampleRNG) -> None:
        """Step along the estimated gradient, and halve the step until the image is misclassified."""
        rows = self.active
        x, at = self.x[rows], self.at[rows]
        size = distance(at, x, self.attack.norm)
        direction = self.direction(at, rows, size, estimates, iteration == 1, rng)
        length, waiting = size / math.sqrt(iteration), torch.arange(len(rows), device=x.device)
        low, high = self.attack.threat.box
        for _ in range(_HALVINGS):
            if not len(waiting):
                break
            moved = at[waiting] + per_sample(length[waiting], x) * direction[waiting]
            moved = moved.clamp(low, high)
            hit = self.wrong(moved, rows[waiting])
            self.at[rows[waiting[hit]]] = moved[hit]
            waiting = waiting[~hit]
            length[waiting] /= 2

    def direction(self, at: Tensor, rows: Tensor, size: Tensor, estimates: int, first: bool, rng: SampleRNG) -> Tensor:
        """Return the estimated direction (n, …) in which misclassification grows, from classes near the images."""
        root = math.sqrt(self.pixels) if self.attack.norm == "l2" else self.pixels
        radius = torch.full_like(size, _FIRST) if first else root * self.precision * size
        group = max(1, _PIXELS // (_PART * self.pixels))
        parts = [
            self.estimate(*part, estimates, rng)
            for part in zip(at.split(group), rows.split(group), radius.split(group), strict=True)
        ]
        estimate = torch.cat(parts)
        if self.attack.norm == "linf":
            return estimate.sign()
        length = torch.linalg.vector_norm(estimate.flatten(1), dim=1).clamp_min(torch.finfo(at.dtype).tiny)
        return estimate / per_sample(length, at)

    def estimate(self, at: Tensor, rows: Tensor, radius: Tensor, estimates: int, rng: SampleRNG) -> Tensor:
        """Return the estimated gradients (n, …) at images from classes at the distances ``radius`` (n,)."""
        total, weighted, signs = torch.zeros_like(at), torch.zeros_like(at), torch.zeros_like(radius)
        spread = radius.view(-1, *[1] * at.ndim)
        for noise in self.noises(rows, estimates, rng):
            count = noise.shape[1]
            images = (at[:, None] + spread * noise).clamp(*self.attack.threat.box)
            moved = (images - at[:, None]) / spread
            wrong = self.wrong(images.flatten(0, 1), rows.repeat_interleave(count)).view(len(rows), count)
            sign = torch.where(wrong, 1.0, -1.0).to(at.dtype)
            total += moved.sum(1)
            weighted += (moved * sign.view(*sign.shape, *[1] * (at.ndim - 1))).sum(1)
            signs += sign.sum(1)
        mean = per_sample(signs / estimates, at)
        # A baseline lowers the variance; where all classes agree it would remove the estimate.
        return torch.where(mean.abs() == 1, weighted, weighted - mean * total)

    def noises(self, rows: Tensor, estimates: int, rng: SampleRNG) -> Iterator[Tensor]:
        """Yield directions (n, count, …) of L2 norm 1, ``estimates`` in all, in parts that fit into memory."""
        shape = tuple(self.x.shape[1:])
        for begin in range(0, estimates, _PART):
            count = min(_PART, estimates - begin)
            draws = rng.select(rows)
            if self.attack.norm == "l2":
                noise = draws.normal((count, *shape), self.x.device)
            else:
                noise = 2 * draws.uniform((count, *shape), self.x.device) - 1
            noise = noise.to(self.x.dtype)
            mask = carried(self.x, "mask")
            noise = noise if mask is None else noise * mask[rows][:, None]
            length = torch.linalg.vector_norm(noise.flatten(2), dim=2).clamp_min(1e-12)
            yield noise / length.view(*length.shape, *[1] * len(shape))
