"""The fast adaptive boundary attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import MinimumNormAttack, register_attack
from robgib.attacks.carried import masked, restored
from robgib.attacks.linearization import hyperplane_step, nearest_boundary, wrong_classes
from robgib.attacks.objective import misclassified, wrong_by
from robgib.attacks.threat_model import CONVEX_NORMS, distance, per_sample
from robgib.models.inference import at_once
from robgib.options import AtLeastOne, Count
from robgib.runtime import SampleRNG

__all__ = [
    "FAB",
]

_SEARCHES = 3  # steps of the final search, as in the paper
_NEARER = 0.999  # of images at nearly the same distance the first is kept, so that rounding does not decide


@register_attack("FAB")
@dataclass(frozen=True)
class FAB(MinimumNormAttack):
    """Projections onto linearised boundaries, biased towards the clean image (Croce & Hein 2020, algorithm 1).

    Fields:
        steps: linearisations per restart.
        restarts: number of runs (per target); the first starts at the clean image, later ones at half the distance of
            the nearest adversarial image so far, or at eps / 2 if that is smaller.
        alpha_max: maximum weight of the projection of the clean image (equation 9).
        eta: extrapolation past the boundary (equation 10).
        beta: share of the perturbation kept after a sample is fooled (the backward step, equation 11).
        targeted: use one boundary at a time, to each of the most likely wrong classes in turn (FAB-T), with one
            gradient per step instead of one per class; as many at once as fit into the model's batch. Any wrong class
            counts as success.
        targets: number of target classes of FAB-T.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    pooled: ClassVar[bool] = True
    steps: Count = 100
    restarts: Count = 1
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: AtLeastOne = 1.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    targeted: bool = False
    targets: Count = 9

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`: a step has two forward passes, and a backward pass for each class."""
        passes = self.targets * (2 + 2) if self.targeted else 2 + 2 * self.targets
        return -(-self.steps * self.restarts * passes // 3)

    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`MinimumNormAttack.find`."""
        return self._nearest(model, x, y, rng, enough=False)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`MinimumNormAttack.perturb`; a sample stops at its first adversarial image inside the ball."""
        return self.kept(self.approach(model, x, y, rng), x)

    def approach(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """As :meth:`perturb`, but also return the nearest adversarial images (N, …) outside the ball.

        Images inside the ball have priority. The result is the clean image if no adversarial image was found.
        """
        return self._nearest(model, x, y, rng, enough=True)

    def _nearest(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG, enough: bool) -> Tensor:
        """Return the nearest adversarial images (N, …); with ``enough``, the search stops inside the ball."""
        with torch.no_grad():
            logits = model(x)
        result = x.clone()
        remaining = (~misclassified(logits, y)).nonzero().squeeze(1)
        classes = wrong_classes(logits, y)
        groups = list(classes[:, : self.targets].split(1, dim=1)) if self.targeted else [classes]
        size = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        while groups and len(remaining):
            # A later restart starts at the distance of what the one before it found.
            count = at_once(model, len(remaining)) if self.restarts == 1 else 1
            now, groups = groups[:count], groups[count:]
            for restart in range(self.restarts):
                if not len(remaining):
                    return result
                rows = remaining.repeat(len(now))
                origin, labels, boundaries = x[rows], y[rows], torch.cat([group[remaining] for group in now])
                start = self._random_start(origin, size[remaining], rng.select(remaining)) if restart else origin
                image = self._run(model, origin, labels, boundaries, start, rows, enough)
                images, hits = _search(model, origin, labels, image)
                reaches = self.threat.distance(images, origin)
                parts = (part.split(len(remaining)) for part in (images, hits, reaches))
                for image, fooled, reach in zip(*parts, strict=True):
                    closer = fooled & self._improves(reach, size[remaining])
                    result[remaining[closer]], size[remaining[closer]] = image[closer], reach[closer]
                if enough:
                    inside = self.threat.allows(result[remaining], x[remaining])
                    remaining = remaining[~inside | size[remaining].isinf()]
        return result

    def _improves(self, reach: Tensor, size: Tensor) -> Tensor:
        """Whether images at the distances ``reach`` (N,) replace those at ``size`` (N,): nearer, or now in the ball."""
        return (reach < _NEARER * size) | ((reach <= self.threat.eps) & (size > self.threat.eps))

    def _random_start(self, x: Tensor, size: Tensor, rng: SampleRNG) -> Tensor:
        """Draw images (N, …) at half the distance ``size`` (N,) or eps from ``x``, whichever is smaller."""
        shape = tuple(x.shape[1:])
        noise = 2 * rng.uniform(shape, x.device) - 1 if self.threat.norm == "linf" else rng.normal(shape, x.device)
        noise = masked(noise.to(x.dtype), x)
        length = distance(noise, torch.zeros_like(noise), self.threat.norm)
        scale = size.clamp_max(self.threat.eps) / 2 / length.clamp_min(torch.finfo(x.dtype).tiny)
        return (x + noise * per_sample(scale, noise)).clamp(*self.threat.box)

    def _run(
        self, model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, start: Tensor, sample: Tensor, enough: bool
    ) -> Tensor:
        """Return the nearest adversarial images (N, …) of one restart, or the clean image.

        Row i is of sample ``sample[i]``. With ``enough``, the first adversarial image inside the ball ends all rows of
        its sample.
        """
        best, size = x.clone(), torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        norm, box = self.threat.norm, self.threat.box
        rows = torch.arange(len(x), device=x.device)
        origin, current = x.flatten(1), start.flatten(1)
        for _ in range(self.steps):
            if not len(rows):
                break
            value, w = nearest_boundary(model, current.view_as(x), y, classes, norm)
            # Both projections use the same hyperplane: its value at the clean image follows from that at the iterate.
            value_there = value + (w * (origin - current)).sum(1)
            here = hyperplane_step(current, w, value, norm, box)
            there = hyperplane_step(origin, w, value_there, norm, box)
            zero = torch.zeros_like(here)
            far, near = distance(here, zero, norm), distance(there, zero, norm)
            alpha = (far / (far + near).clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(self.alpha_max)[:, None]
            current = (1 - alpha) * (current + self.eta * here) + alpha * (origin + self.eta * there)
            # The sums of the clean image with itself may round to another value.
            image = restored(current.clamp(*box).view_as(x), x)
            current = image.flatten(1)
            with torch.no_grad():
                logits = model(image)
            # A kept image must be misclassified beyond rounding. The backward step is taken at the boundary itself, or
            # the iteration would stall just behind it.
            fooled = misclassified(logits, y)
            reach = self.threat.distance(image, x)
            closer = (wrong_by(logits, y) > 0) & self._improves(reach, size[rows])
            best[rows[closer]], size[rows[closer]] = image[closer], reach[closer]
            current = torch.where(fooled[:, None], (1 - self.beta) * origin + self.beta * current, current)
            if enough:
                done = closer & self.threat.allows(image, x)
                if bool(done.any()):
                    stay = ~torch.isin(sample, sample[done])
                    rows, origin, current, x, y, classes, sample = (
                        values[stay] for values in (rows, origin, current, x, y, classes, sample)
                    )
        return best


@torch.no_grad()
def _search(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Search the boundary on the line from adversarial images to the clean images (section 3.4).

    Each step uses the root of the secant of :func:`wrong_by`, with a small overshoot to remain adversarial.

    Returns:
        The images (N, …), and whether each is adversarial (N,); images that are not adversarial are unchanged.
    """
    shape = (-1, *([1] * (x.ndim - 1)))
    inner, outer = x, x_adv
    below, above = wrong_by(model(inner), y), wrong_by(model(outer), y)
    adversarial = above > 0
    for _ in range(_SEARCHES):
        root = torch.where(adversarial, -below / (above - below), 1)
        middle = inner + (root + 0.05 * (1 - root)).view(shape) * (outer - inner)
        value = wrong_by(model(middle), y)
        past = value > 0
        inner, outer = torch.where(past.view(shape), inner, middle), torch.where(past.view(shape), middle, outer)
        below, above = torch.where(past, below, value), torch.where(past, value, above)
    return outer, adversarial
