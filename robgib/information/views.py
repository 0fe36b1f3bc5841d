"""How a layer is seen: the views in which a deterministic network has finite information, and what is counted there.

A deterministic network on continuous input has infinite I(X;Z). Every figure is therefore taken of T, which is a code
of the layer (``rate``), the layer in noise (``noise``), or its units in bins where all inputs are listed (``exact``).
I(X;T) then follows from T alone: it is H(T), or the entropy of a Gaussian mixture less that of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from robgib.errors import RobGIBError
from robgib.information.discrete import adjusted_information
from robgib.information.estimate import Estimate
from robgib.information.features import Features, Projection
from robgib.information.preprocessing import k_means, relabel

__all__ = [
    "EXACT",
    "NOISE",
    "RATE",
    "Bins",
    "Codebook",
    "Network",
    "NoisyLayer",
    "Seen",
    "Target",
    "View",
    "count_information",
    "entropy_estimate",
    "mixture_information",
]

Array = npt.NDArray[Any]
View = Literal["rate", "noise", "exact"]
RATE: View = "rate"
NOISE: View = "noise"
EXACT: View = "exact"
SYMBOLS_A_CLASS = 4
"""Fewer codes a class than this cannot tell what a layer knows of the label."""
_SALT = 5  # so that data drawn with the same seed do not repeat the noise
_TAKEN = 0.1  # bits of correction from which a counted I(T;Y) is marked
_NEAR = 0.95  # of what a figure cannot exceed, from which it is marked


@dataclass(frozen=True)
class Target:
    """What the features inform: a layer in one view, or the label.

    Attributes:
        name: of the layer.
        view: in which it is seen.
        values: codes (N,) or values (N, d) of the samples.
        fit: the same of the samples that codes were fitted on.
        total: I(X;T), counted; NaN where it is not (the label).
        label: I(T;Y), counted.
        resolution: what was held fixed.
        notes: limits that the reader must know.
        code: whether the network computes it; the label it only tells of.
    """

    name: str
    view: View
    values: Array
    fit: Array
    total: Estimate
    label: Estimate
    resolution: str
    notes: tuple[str, ...] = ()
    code: bool = True


@dataclass(frozen=True)
class Network:
    """A network and its inputs, for estimators that run it.

    Attributes:
        x: inputs (N, …) that are estimated on.
        donors: inputs (M, …) whose content replaces theirs.
        same: whether the donors are the inputs themselves.
        inputs: the features, their scores and places.
        codes: from inputs to the codes (N,) of every target by name; of one that the network does not compute but tells
            of, as the label, shares (N, K).
    """

    x: Tensor
    donors: Tensor
    same: bool
    inputs: Features
    codes: Callable[[Tensor], Mapping[str, Array]]


class Seen(Protocol):
    """A view of one layer, fitted once: from activations (N, …) to T."""

    @property
    def view(self) -> View:
        """Which one it is."""

    def __call__(self, z: Array) -> Array:
        """T of the activations (N, …)."""

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """T of the samples with labels ``y``, with what is counted of it."""


@dataclass(frozen=True)
class Codebook:
    """The ``rate`` view: a layer's principal components, coded by k-means. I(X;T) of a deterministic network is H(T).

    Attributes:
        projection: onto the components.
        centres: of the codes (k, d).
    """

    projection: Projection
    centres: Array
    view: View = RATE

    @classmethod
    def fit(cls, z: Array, dims: int, size: int, seed: int = 0) -> Codebook:
        """Learn ``size`` codes on activations (N, …).

        Raises:
            RobGIBError: fewer samples than codes.
        """
        if size > len(z):
            raise RobGIBError(
                f"{size} codes need at least as many samples to learn them on, not {len(z)}; ask for fewer."
            )
        projection = Projection.fit(z, dims)
        scores = projection(z)
        distinct = np.unique(scores, axis=0)
        centres = distinct if len(distinct) <= size else k_means(scores, size, seed).cluster_centers_
        return cls(projection, np.asarray(centres))

    def __call__(self, z: Array) -> Array:
        """Codes (N,) of activations (N, …): the nearest centre."""
        scores = self.projection(z)
        # |x|² is the same for all centres.
        return np.asarray(((self.centres**2).sum(1) - 2 * scores @ self.centres.T).argmin(1))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`Seen.target`."""
        size, classes = len(self.centres), len(np.unique(y))
        resolution = f"k-means code of {size} symbols on {self.projection.dims} components"
        made = self.counted(name, self(z), self(fit), y, weights, RATE, resolution)
        if size >= SYMBOLS_A_CLASS * classes:
            return made
        few = f"{size} codes are few for {classes} classes (at least {SYMBOLS_A_CLASS} a class)"
        return replace(made, notes=(*made.notes, few))

    @staticmethod
    def counted(
        name: str, codes: Array, fit: Array, y: Array, weights: Array | None, view: View, resolution: str
    ) -> Target:
        """Codes (N,) as a target: I(X;T) is H(T), of a deterministic network, and I(T;Y) is counted."""
        if view == EXACT:
            return Bins(0.0, 0.0, None).target(name, codes, codes, y, weights)
        label, notes = count_information(codes, y, weights)
        return Target(name, view, codes, fit, entropy_estimate(codes, weights), label, resolution, tuple(notes))


@dataclass(frozen=True)
class Bins:
    """The ``exact`` view: a layer's units in bins of equal width over its range, all units' bins together the symbol.

    As Shwartz-Ziv & Tishby (2017) and Saxe et al. (2018) do, on data that list every input.

    Attributes:
        low: lower end of the range.
        high: upper end.
        count: bins; None keeps the values as they are.
    """

    low: float
    high: float
    count: int | None
    view: View = EXACT

    @classmethod
    def fit(cls, z: Array, count: int = 30) -> Bins:
        """Take the range of activations (N, …); few values are kept as they are."""
        few = len(np.unique(z)) <= count
        return cls(float(z.min()), float(z.max()), None if few else count)

    def __call__(self, z: Array) -> Array:
        """Symbols (N,) of activations (N, …)."""
        flat = z.reshape(len(z), -1)
        if self.count is None:
            return relabel(flat)
        share = (flat - self.low) / max(self.high - self.low, np.finfo(float).tiny)
        return relabel(np.clip(share * self.count, 0, self.count - 1).astype(np.int64))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`Seen.target`: everything is counted, and nothing is estimated."""
        codes = self(z)
        h = entropy_estimate(codes, weights, exact=True)
        both = entropy_estimate(relabel(np.stack([codes, y], 1)), weights, exact=True)
        bits = h.value + entropy_estimate(relabel(y), weights, exact=True).value - both.value
        how = (
            "values as they are" if self.count is None else f"{self.count} bins from {self.low:.3g} to {self.high:.3g}"
        )
        return Target(name, EXACT, codes, codes, h, Estimate(bits, bits, bits), f"every input, units in {how}")


@dataclass(frozen=True)
class NoisyLayer:
    """The ``noise`` view: T = Z + σ·scale·N on a layer's principal components, one scale for all of them.

    The scale is the layer's total standard deviation, the root of the sum of the components' variances, so that a
    direction that shrinks beside the others drowns. I(X;T) of a deterministic network is the entropy of a Gaussian
    mixture less that of the noise (Goldfeld et al. 2019), by Monte Carlo.

    Attributes:
        projection: onto the components.
        scale: of the layer.
        sigma: standard deviation of the noise, in scales.
        seed: of the noise.
    """

    projection: Projection
    scale: float
    sigma: float
    seed: int
    view: View = NOISE

    @classmethod
    def fit(cls, z: Array, dims: int, sigma: float, seed: int = 0) -> NoisyLayer:
        """Find the components and the scale of activations (N, …)."""
        projection = Projection.fit(z, dims)
        return cls(projection, float(np.sqrt(projection(z).var(0).sum())), sigma, seed)

    def __call__(self, z: Array, salt: int = 0) -> Array:
        """Noisy scores (N, d) of activations (N, …); the noise is a stream of its own."""
        scores = self.projection(z)
        rng = np.random.default_rng([self.seed, _SALT, salt])
        return np.asarray(scores + self.sigma * self.scale * rng.standard_normal(scores.shape))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`Seen.target`: both informations are those of mixtures."""
        scores, width = self.projection(z), self.sigma * self.scale
        codes = relabel(np.asarray(y))
        rng = np.random.default_rng([self.seed, _SALT, 2])
        of_x = mixture_information(scores, width, rng)
        within = np.zeros(len(scores))
        for c in range(int(codes.max()) + 1):
            rows = np.flatnonzero(codes == c)
            within[rows] = mixture_information(scores[rows], width, rng)
        bits = [_mean(of_x, weights), _mean(of_x - within, weights)]
        full = bool(bits[0].value >= _NEAR * np.log2(len(scores)))
        note = "I(X;T) is near log2 of the samples: the truth may be anything above"
        total = Estimate(bits[0].value, bits[0].low, bits[0].high, full, note if full else "")
        resolution = f"noise of {self.sigma:g} total standard deviations on {self.projection.dims} components"
        noisy = (self(z), self(fit, 1))
        return Target(name, NOISE, *noisy, total, bits[1], resolution, (note,) if full else ())


def _mean(values: Array, weights: Array | None) -> Estimate:
    """The weighted mean of values (N,) with its interval."""
    w = np.ones(len(values)) if weights is None else weights / weights.mean()
    mean = float((w * values).mean())
    half = float(stats.norm.ppf(0.975) * (w * (values - mean)).std() / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def mixture_information(centres: Array, sigma: float, rng: np.random.Generator) -> Array:
    """I(Z;Z + σN) in bits as values (N,) whose mean it is, Z being the law that the centres (N, d) are drawn from.

    At each centre a noisy value is drawn, and its density under the mixture of all centres compared with that under its
    own (Goldfeld et al. 2019). The mixture of N centres has less information than their law; that goes as 1/N and is
    taken out by comparing all with halves (Quenouille 1956).

    >>> far = np.repeat([[0.0], [9.0]], 500, axis=0)
    >>> round(float(mixture_information(far, 0.1, np.random.default_rng(0)).mean()), 3)
    1.0
    """
    if len(centres) < 4 or sigma <= 0:
        return np.zeros(len(centres))
    noise = sigma * rng.standard_normal(centres.shape)
    whole = _plain_mixture(centres, noise, sigma)
    order = rng.permutation(len(centres))
    halves = np.empty(len(centres))
    for part in np.array_split(order, 2):
        halves[part] = _plain_mixture(centres[part], noise[part], sigma)
    return np.asarray(2 * whole - halves)


def _plain_mixture(centres: Array, noise: Array, sigma: float) -> Array:
    z, n = torch.from_numpy(np.ascontiguousarray(centres)), torch.from_numpy(np.ascontiguousarray(noise))
    found = []
    for t, own in zip((z + n).split(1024), n.split(1024), strict=True):
        squares = (t**2).sum(1)[:, None] + (z**2).sum(1) - 2 * t @ z.T
        ahead = ((own**2).sum(1)[:, None] - squares.clamp_min(0)) / (2 * sigma**2)
        found.append(np.log(len(z)) - ahead.logsumexp(1).numpy())
    return np.concatenate(found) / np.log(2)


def entropy_estimate(codes: Array, weights: Array | None = None, exact: bool = False) -> Estimate:
    """H(T) in bits of codes (N,): plug-in, corrected after Miller and Madow (1955), with a multinomial interval.

    Args:
        codes: whole numbers.
        weights: (N,) of the samples.
        exact: the samples are all outcomes: no correction, and no error.

    >>> round(entropy_estimate(np.arange(1000) % 4, exact=True).value, 6)
    2.0
    """
    codes = relabel(np.asarray(codes))
    p = np.bincount(codes, weights) / (len(codes) if weights is None else np.sum(weights))
    p = p[p > 0] if weights is not None else p
    value = float(-(p * np.log2(p)).sum())
    if exact or len(p) < 2:
        return Estimate(value, value, value)
    samples = len(codes) if weights is None else float(np.sum(weights) ** 2 / np.sum(np.square(weights)))
    value = min(value + (len(p) - 1) / (2 * samples * np.log(2)), float(np.log2(len(p))))
    spread = float((p * np.log2(p) ** 2).sum() - (p * np.log2(p)).sum() ** 2) / samples
    floor = (len(p) - 1) / 2 / (samples * np.log(2)) ** 2  # of even shares, where first-order errors vanish
    half = float(stats.norm.ppf(0.975)) * np.sqrt(max(spread, floor))
    full = bool(value >= _NEAR * np.log2(samples))
    note = "H(T) is near log2 of the samples: the truth may be anything above" if full else ""
    return Estimate(value, value - half, min(value + half, float(np.log2(len(p)))), full, note)


def count_information(
    codes: Array, y: Array, weights: Array | None = None, seed: int = 0
) -> tuple[Estimate, list[str]]:
    """I(T;Y) in bits of two codes (N,), counted, with corrections for bias and chance; and what limits it."""
    codes, y = relabel(np.asarray(codes)), relabel(np.asarray(y))
    found = adjusted_information(codes, y, 8, np.random.default_rng([seed, 7]), weights)
    notes: list[str] = []
    # What was taken off for bias and chance is itself known to about a half.
    taken = abs(found.plain - found.value)
    half = float(stats.norm.ppf(0.975)) * float(np.hypot(found.error, taken / 2))
    held, wanted = entropy_estimate(codes, weights).value, entropy_estimate(y, weights).value
    full = found.saturated or (wanted > held and found.value >= _NEAR * held)
    if full:
        notes.append("I(Z;Y) is at the ceiling of the code: the truth may be anything above")
    if taken > _TAKEN:
        notes.append(f"I(Z;Y) was lowered by {taken:.2f} bits: few samples for so many codes and classes")
    marked = full or taken > _TAKEN
    return Estimate(found.value, found.value - half, found.value + half, marked, "; ".join(notes)), notes
