"""Threat models: the sets of allowed perturbations, and projections onto them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import BeforeValidator, PositiveFloat
from torch import Tensor

from robgib.attacks.carried import carried, masked
from robgib.errors import RobGIBError, number_text, unknown_name
from robgib.registry import parse_value
from robgib.runtime import SampleRNG

__all__ = [
    "CONVEX_NORMS",
    "KINDS",
    "NORMS",
    "Norm",
    "Radius",
    "ThreatModel",
    "plain",
]

Norm = Literal["linf", "l2", "l1", "l0", "patch", "rotation"]
KINDS: tuple[str, ...] = get_args(Norm)
"""Kinds of threat models: norms; ``patch``, any content of one square, whose side in pixels is eps; and ``rotation`` by
at most eps degrees, with what else its attack allows. An image alone does not show its rotation: the parameters do."""
NORMS: tuple[str, ...] = KINDS[:4]
CONVEX_NORMS = NORMS[:3]
"""Norms with convex balls. L0, which is not convex, counts changed values; an RGB pixel has three."""


def _number(value: Any) -> Any:
    try:
        return parse_value(value)
    except RobGIBError as error:
        raise ValueError(str(error)) from error  # pydantic adds the line and the key


Radius = Annotated[PositiveFloat, BeforeValidator(_number)]
"""A radius in a YAML file, in pixel scale: a positive number, or a fraction such as 8/255."""


def plain(number: Any) -> Any:
    """Return a number of numpy as one of Python, of float32 the one that it shows; and anything else as it is.

    >>> plain(np.float32(0.1)), plain("8/255")
    (0.1, '8/255')
    """
    return float(str(number)) if isinstance(number, np.number) else number


Sizes = TypeVar("Sizes", Tensor, np.ndarray)
_TINY = 1e-10
_SPARSE = 0.01
_HAIR = 1e-6  # relative safety margin of projections, for the rounding of images to float32
_ROUNDING = 1e-5  # relative error of a float32 sum over about 100,000 pixels


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View values (N,) so that they broadcast over images (N, …)."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _length(delta: Tensor, norm: str) -> Tensor:
    """Return the norm (N,) of perturbations (N, …), in float64, since float32 sums over many pixels are inaccurate."""
    flat = delta.flatten(1)
    if norm == "patch":
        return _side(delta)
    if norm in ("linf", "rotation"):
        return flat.abs().amax(1).double()
    if norm == "l0":
        return (flat != 0).sum(1).double()
    return torch.linalg.vector_norm(flat, ord=1 if norm == "l1" else 2, dim=1, dtype=torch.float64)


def _side(delta: Tensor) -> Tensor:
    """Return the side (N,) of the smallest square that contains all changes of images (N, …); vectors are one row."""
    changed = (delta != 0).reshape(len(delta), -1, *(delta.shape[-2:] if delta.ndim > 3 else (1, delta.shape[-1])))
    changed = changed.any(1)
    sides = []
    for axis in (1, 2):
        line = changed.any(3 - axis)
        place = torch.arange(line.shape[1], device=line.device)
        last = torch.where(line, place, -1).amax(1)
        first = torch.where(line, place, line.shape[1]).amin(1)
        sides.append((last - first + 1).clamp_min(0))
    return torch.maximum(*sides).double()


def within(size: Sizes, eps: float, tolerance: float = 1e-6) -> Sizes:
    """Whether norms (N,) are at most ``eps``, up to rounding (see :meth:`ThreatModel.allows`)."""
    inside: Sizes = size <= eps * (1 + _ROUNDING) + tolerance
    return inside


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Return the norm (N,) of the perturbation of each sample, summed in float64."""
    return _length(x_adv - x, norm).to(x.dtype)


def onto_ball(moved: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Project perturbations ``moved`` (N, …) onto balls of ``radius`` (N,), without regard to the box."""
    flat, radius = moved.flatten(1), radius[:, None]
    if norm == "linf":
        return flat.clamp(-radius, radius).view_as(moved)
    if norm == "l2":
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(_TINY)
        return (flat * (radius / length).clamp_max(1)).view_as(moved)
    size, order = flat.abs().sort(dim=1, descending=True, stable=True)
    if norm == "l0":
        rank = torch.arange(flat.shape[1], device=moved.device).expand_as(order)
        return (flat * torch.zeros_like(flat).scatter(1, order, (rank < radius.floor()).to(flat))).view_as(moved)
    # Soft thresholding at the level at which the absolute values sum to the radius (Duchi et al. 2008, figure 1).
    count = torch.arange(1, flat.shape[1] + 1, device=moved.device)
    total = size.cumsum(1) - radius
    last = (size * count > total).sum(1, keepdim=True).clamp_min(1) - 1
    level = (total.gather(1, last) / (last + 1)).clamp_min(0)
    return (flat.sign() * (flat.abs() - level).clamp_min(0)).view_as(moved)


@dataclass(frozen=True)
class ThreatModel:
    """All images within ``eps`` of the clean one in ``norm``, inside ``box``; pixel scale [0, 1]."""

    norm: Norm
    eps: float
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in KINDS:
            raise unknown_name("norm", str(self.norm), KINDS)
        object.__setattr__(self, "eps", plain(self.eps))
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and self.eps > 0):
            raise RobGIBError(f"eps must be a finite number above 0 (pixel scale), not {self.eps!r}.")
        if self.norm == "l0" and self.eps < 1:
            raise RobGIBError(f"eps is a number of pixels under l0, at least 1, not {self.eps:g}.")
        if self.norm == "patch" and (self.eps < 1 or self.eps != int(self.eps)):
            raise RobGIBError(
                f"eps is the side of a patch in pixels, a whole number from 1 on, not {number_text(self.eps)}."
            )
        if self.norm == "rotation" and self.eps > 180:
            raise RobGIBError(f"eps is the largest rotation in degrees, at most 180, not {number_text(self.eps)}.")
        if self.norm == "linf" and self.eps > self.widest(1):
            raise RobGIBError(self._too_wide(self.widest(1)))

    def widest(self, pixels: int) -> float:
        """Return the smallest eps, for images of ``pixels`` values, whose ball contains the box for every centre."""
        low, high = self.box
        if self.norm in ("l0", "patch"):
            return float(pixels)
        if self.norm == "rotation":
            return 180.0
        return (high - low) * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[self.norm]

    def check(self, pixels: int) -> None:
        """Raise an error if eps is larger than the box of images of ``pixels`` values.

        Raises:
            RobGIBError: the ball is larger than the box.
        """
        if self.eps > self.widest(pixels) * (1 + 1e-9):
            raise RobGIBError(self._too_wide(self.widest(pixels)))

    def _too_wide(self, most: float) -> str:
        low, high = self.box
        eps = number_text(self.eps)
        if self.norm == "l0":
            return f"eps {eps} (l0) is more than the {most:.0f} values of an image; it counts changed values."
        problem = f"eps {eps} ({self.norm}) is more than the whole box [{low:g}, {high:g}] ({number_text(most)})"
        return f"{problem}; eps is in pixel scale: write {eps}/255 for {eps} of 255 levels."

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the images (N, …) nearest to ``x_adv`` in the ball, clipped to the box.

        Norms are summed in float64, and a safety margin of a millionth of eps keeps the images inside after rounding.
        Under L1 the projection is onto the intersection of ball and box (Croce & Hein 2021, section 3). If ``x``
        carries a mask, the other pixels are those of ``x``.
        """
        delta = masked(x_adv - x, x)
        if self.norm == "l1":
            move = self._within_l1(delta, x)
            near = (x + move).clamp(*self.box)
            # Rounding errors of many small changes add up: round each change towards 0.
            beyond = (near.double() - x.double()).abs() > move.double().abs()
            return torch.where(beyond, torch.nextafter(near, x), near)
        if self.norm == "l0":
            radius = torch.full((len(x),), self.eps, dtype=x.dtype, device=x.device)
            return (x + onto_ball(masked(x_adv.clamp(*self.box) - x, x), radius, "l0")).clamp(*self.box)
        if self.norm == "linf":
            return (
                delta.clamp_(-self.eps, self.eps).add_(x).clamp_(*self.box)
            )  # in place, since this runs at every step
        factor = (self.eps * (1 - _HAIR) / _length(delta, self.norm).clamp_min(_TINY)).clamp_max(1.0)
        return (x + delta * per_sample(factor, delta).to(delta.dtype)).clamp(*self.box)

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Take a step of length ``size`` along the steepest ascent direction of the norm, without projection.

        Under L1 and L0 that direction has one pixel. As in SLIDE (Tramèr & Boneh 2019, section 4.2), the step is
        divided among the steepest 1% of the pixels that can still change.
        """
        if self.norm == "linf":
            return gradient.sign().mul_(size).add_(x)
        if self.norm in ("l1", "l0"):
            low, high = self.box
            free = ((gradient > 0) & (x < high)) | ((gradient < 0) & (x > low))
            slope = (gradient * free).flatten(1)
            count = max(1, round(_SPARSE * slope.shape[1]))
            chosen = slope.abs().topk(count, 1).indices
            move = torch.zeros_like(slope).scatter(1, chosen, slope.gather(1, chosen).sign())
            return x + size * (move / count).view_as(x)
        # No constant is added to the norm, since gradients of a confident model may be very small.
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return x + size * (gradient / per_sample(length, gradient))

    def random_start(self, x: Tensor, rng: SampleRNG) -> Tensor:
        """Draw uniformly from the ball around each image of ``x``, clipped to the box."""
        shape = tuple(x.shape[1:])
        if self.norm == "linf":
            noise = (2 * rng.uniform(shape, x.device) - 1) * self.eps
        elif self.norm == "l0":
            noise = onto_ball(rng.normal(shape, x.device), torch.full((len(x),), self.eps, device=x.device), "l0")
            noise = torch.where(noise != 0, rng.uniform(shape, x.device) - x, 0)
        elif self.norm == "l1":
            # Exponential variables over the sum of themselves and one more are uniform in the simplex.
            size = -torch.log1p(-rng.uniform((x.shape[1:].numel() + 1,), x.device))
            share = (size[:, :-1] / size.sum(1, keepdim=True)).view_as(x)
            noise = self.eps * share * (2 * rng.integers(2, shape, x.device) - 1)
        else:
            direction = rng.normal(shape, x.device)
            radius = rng.uniform((1,), x.device).flatten() ** (1 / direction.shape[1:].numel())
            noise = direction * per_sample(
                self.eps * radius / torch.linalg.vector_norm(direction.flatten(1), dim=1), direction
            )
        return self.project(x + noise.to(x.dtype), x)

    def _within_l1(self, delta: Tensor, x: Tensor) -> Tensor:
        """Project ``delta`` (N, …) onto the L1 ball, intersected with the perturbations that keep ``x`` in the box."""
        wanted = delta.flatten(1).double().abs()
        low, high = self.box
        eps = self.eps * (1 - 1e-5)  # the sum of many pixels rounded to float32 stays below eps
        room = torch.where(delta > 0, high - x, x - low).flatten(1).double().clamp_min(0)
        # Each absolute value is min(wanted - t, room), at least 0, for the t at which they sum to eps (or t = 0). The
        # sum is piecewise linear and decreasing in t.
        full = torch.minimum(wanted, room)
        ends = torch.cat([wanted - full, wanted], 1)
        at, order = ends.sort(1)
        falling = torch.where(order < wanted.shape[1], 1.0, -1.0).to(wanted.dtype).cumsum(1)
        gaps = torch.diff(at, dim=1)
        total = full.sum(1, keepdim=True) - torch.nn.functional.pad((gaps * falling[:, :-1]).cumsum(1), (1, 0))
        piece = (total >= eps).sum(1, keepdim=True).sub(1).clamp_min(0)
        t = at.gather(1, piece) + (total.gather(1, piece) - eps) / falling.gather(1, piece).clamp_min(1)
        outside = full.sum(1, keepdim=True) > eps
        size = torch.minimum((wanted - torch.where(outside, t, 0)).clamp_min(0), room)
        return (delta.flatten(1).sign() * size.to(delta.dtype)).view_as(delta)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the perturbation size (N,) in the norm of the threat model."""
        return distance(x_adv, x, self.norm)

    def allows(self, x_adv: Tensor, x: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image (N,) is finite and lies in the ball and the box, up to rounding, and inside its mask.

        The tolerance is ``tolerance`` for the box and the distance, plus a hundred-thousandth of eps, which is the
        error of a norm summed in float32 over a large image.
        """
        flat = x_adv.flatten(1)
        low, high = self.box
        inside = (flat >= low - tolerance).all(1) & (flat <= high + tolerance).all(1)  # NaN compares false
        if carried(x, "mask") is not None:
            inside &= (masked(x_adv - x, x) == x_adv - x).flatten(1).all(1)
        if self.norm == "rotation":  # the attack's parameters are judged
            return inside
        return inside & within(_length(x_adv - x, self.norm), self.eps, tolerance)
