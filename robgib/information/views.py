"""How a layer is seen: the views in which a deterministic network has finite information, and what is counted there.

A deterministic network on continuous input has infinite I(X;Z). Every figure is therefore taken of T, which is a code
of the layer (``rate``), the layer in noise (``noise``), or its units in bins where all inputs are listed (``exact``).
I(X;T) then follows from T alone: it is H(T), or the entropy of a Gaussian mixture less that of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
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
from robgib.information.measures import effective_samples
from robgib.information.preprocessing import k_means, relabel

__all__ = [
    "EXACT",
    "NOISE",
    "RATE",
    "Bins",
    "Codebook",
    "Dominance",
    "FittedView",
    "Network",
    "NoisyLayer",
    "Rescaled",
    "Target",
    "View",
    "count_information",
    "entropy_estimate",
    "mark_processing",
    "mixture_information",
]

Array = npt.NDArray[Any]
View = Literal["rate", "noise", "exact"]
RATE: View = "rate"
NOISE: View = "noise"
EXACT: View = "exact"
SYMBOLS_A_CLASS = 4
"""Fewer codes per class than this cannot represent a layer's information about the label."""
_SALT = 5  # so that data drawn with the same seed do not repeat the noise
_TAKEN = 0.1  # bits of correction from which a counted I(T;Y) is marked
_CHANCE = 0.1  # of the most that is possible; where shuffled labels reach it, I(T;Y) in noise is marked
_EQUAL = 1e-9  # bits
_NEAR = 0.95  # of what a figure cannot exceed, from which it is marked


@dataclass(frozen=True)
class Target:
    """The target of an estimate: a layer in one view, or the label.

    Attributes:
        name: of the layer.
        view: in which it is seen.
        values: codes (N,) or values (N, d) of the samples.
        fit: the same of the samples that codes were fitted on.
        total: I(X;T), counted; NaN where it is not (the label).
        label: I(T;Y), counted.
        resolution: number of codes or bins, or the noise.
        notes: limits of the figures.
        code: whether the network computes it; it does not compute the true label.
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


def mark_processing(
    targets: Sequence[Target], functions: Callable[[str, Sequence[str]], Container[str]]
) -> list[Target]:
    """Flag each target whose I(T;Y) is lower, beyond both intervals, than that of a later target computed from it.

    Processing cannot add information (the data-processing inequality): the view of the earlier layer has lost some.

    Args:
        targets: in the order of execution.
        functions: called with the name of a target and names of others; returns those computed from it.
    """
    marked = list(targets)
    for i, target in enumerate(targets):
        above = [t for t in targets[i + 1 :] if t.code and t.label.low > target.label.high + _EQUAL]
        computed = functions(target.name, [t.name for t in above]) if above and target.code else ()
        larger = [t for t in above if t.name in computed]
        if larger:
            most = max(larger, key=lambda t: t.label.value)
            note = (
                f"violates the data-processing inequality: {most.name!r} is computed from it and has "
                f"{most.label.value:.2f} bits about the label, so that the view of this layer loses some of I(Z;Y)"
            )
            note = "; ".join(filter(None, [target.label.note, note]))
            marked[i] = replace(target, label=replace(target.label, flagged=True, note=note))
    return marked


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


class FittedView(Protocol):
    """A view of one layer, fitted once: from activations (N, …) to T."""

    @property
    def view(self) -> View:
        """Which one it is."""

    def __call__(self, z: Array) -> Array:
        """T of the activations (N, …)."""

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """T of the samples with labels ``y``, with what is counted of it."""


@dataclass(frozen=True)
class Dominance:
    """Units whose values are so large that they dominate a view of the layer.

    Attributes:
        scales: (U,) by which each unit is multiplied so that none is larger than the others are on average.
        units: which are large.
        share: of the layer's variance that they hold.
    """

    scales: Array
    units: tuple[int, ...]
    share: float

    @classmethod
    def of(cls, z: Array) -> Dominance | None:
        """Find dominant units of activations (N, U, …); None if there are none.

        They are at most a twentieth of the units (at least one), have two thirds of the variance together, and each
        exceeds five times the root mean square deviation of the other units.

        >>> z = np.random.default_rng(0).standard_normal((500, 8))
        >>> Dominance.of(z) is None, Dominance.of(z * [1, 1, 1, 1, 1, 1, 1, 100]).units
        (True, (7,))
        """
        variance = z.reshape(len(z), z.shape[1], -1).var(0, dtype=np.float64).mean(1)
        order = variance.argsort()[::-1]
        few = max(1, len(variance) // _FEW_UNITS)
        rest = float(variance[order[few:]].mean()) if len(variance) > few else 0.0
        large = [int(u) for u in order[:few] if variance[u] > _LARGE**2 * rest > 0]
        share = float(variance[large].sum() / max(variance.sum(), np.finfo(float).tiny))
        if not large or share < _DOMINANT:
            return None
        scales = np.ones(len(variance))
        scales[large] = np.sqrt(rest / variance[large])
        return cls(scales, tuple(sorted(large)), share)

    def __call__(self, z: Array) -> Array:
        """Activations (N, U, …) with the large units scaled down to the others."""
        scales = self.scales.reshape(1, -1, *[1] * (z.ndim - 2))
        return np.asarray(z * scales.astype(z.dtype) if z.dtype == np.float32 else z * scales)

    def __str__(self) -> str:
        named = ", ".join(map(str, self.units[:_NAMED])) + (" …" if len(self.units) > _NAMED else "")
        whose = f"unit {named} holds" if len(self.units) == 1 else f"{len(self.units)} units ({named}) hold"
        return f"{whose} {self.share:.1%} of the layer's variance"


_FEW_UNITS = 20
_LARGE = 5.0
_DOMINANT = 2 / 3
_NAMED = 3


def _marked(target: Target, dominance: Dominance | None, what: str) -> Target:
    """The target, flagged if a few large units dominate its view."""
    if dominance is None:
        return target
    label = replace(target.label, flagged=True)
    return replace(target, label=label, notes=(*target.notes, f"{dominance}: {what}"))


@dataclass(frozen=True)
class Codebook:
    """The ``rate`` view: a layer's principal components, coded by k-means. I(X;T) of a deterministic network is H(T).

    A few units of large values would determine the whole code; they are first scaled down to the other units, which
    loses no information.

    Attributes:
        projection: onto the components.
        centres: of the codes (k, d).
        dominance: the large units, or None.
    """

    projection: Projection
    centres: Array
    dominance: Dominance | None = None
    view: View = RATE

    @classmethod
    def fit(cls, z: Array, dims: int, size: int, seed: int = 0) -> Codebook:
        """Learn ``size`` codes on activations (N, …).

        Raises:
            RobGIBError: fewer samples than codes.
        """
        dominance = Dominance.of(z)
        z = z if dominance is None else dominance(z)
        projection = Projection.fit(z, dims)
        return cls(projection, _centres(projection(z), size, seed), dominance)

    def resized(self, z: Array, size: int, seed: int = 0) -> Codebook:
        """Learn another number of codes of the same scores, on activations (N, …).

        Raises:
            RobGIBError: fewer samples than codes.
        """
        scores = self.projection(z if self.dominance is None else self.dominance(z))
        return replace(self, centres=_centres(scores, size, seed))

    def __call__(self, z: Array) -> Array:
        """Codes (N,) of activations (N, …): the nearest centre."""
        return self.nearest(self.scores(z))

    def scores(self, z: Array) -> Array:
        """Scores (N, d) of activations (N, …), in their precision: what codebooks of several sizes share."""
        return self.projection(z if self.dominance is None else self.dominance(z), single=True)

    def nearest(self, scores: Array) -> Array:
        """Codes (N,) of scores (N, d)."""
        centres = self.centres.astype(scores.dtype)
        # |x|² is the same for all centres.
        return np.asarray(((centres**2).sum(1) - 2 * scores @ centres.T).argmin(1))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`FittedView.target`."""
        size, classes = len(self.centres), len(np.unique(y))
        resolution = f"k-means code of {size} symbols on {self.projection.dims} components"
        made = self.counted(name, self(z), self(fit), y, weights, RATE, resolution)
        if self.dominance is not None:
            made = replace(made, notes=(*made.notes, f"{self.dominance}: scaled down for the code"))
        if size >= SYMBOLS_A_CLASS * classes:
            return made
        few = f"{size} symbols are few for {classes} classes (at least {SYMBOLS_A_CLASS} a class)"
        return replace(made, notes=(*made.notes, few))

    @staticmethod
    def counted(
        name: str,
        codes: Array,
        fit: Array,
        y: Array,
        weights: Array | None,
        view: View,
        resolution: str,
        coarse: bool = True,
    ) -> Target:
        """Codes (N,) as a target: I(X;T) is H(T), of a deterministic network, and I(T;Y) is counted.

        ``coarse`` is as in :func:`count_information`.
        """
        if view == EXACT:
            return Bins(0.0, 0.0, None).target(name, codes, codes, y, weights)
        label, notes = count_information(codes, y, weights, coarse=coarse)
        return Target(name, view, codes, fit, entropy_estimate(codes, weights), label, resolution, tuple(notes))


def _centres(scores: Array, size: int, seed: int) -> Array:
    """Centres (k, d) of at most ``size`` codes of scores (N, d)."""
    if size > len(scores):
        raise RobGIBError(
            f"{size} codes need at least as many samples to fit them on, not {len(scores)}; give fewer codes."
        )
    distinct = np.unique(scores, axis=0)
    return np.asarray(distinct if len(distinct) <= size else k_means(scores, size, seed).cluster_centers_)


@dataclass(frozen=True)
class Bins:
    """The ``exact`` view: a layer's units in bins of equal width over its range, all units' bins together the symbol.

    As Shwartz-Ziv & Tishby (2017) and Saxe et al. (2018) do, on data that list every input.

    Attributes:
        low: lower end of the range.
        high: upper end.
        count: bins; None keeps the values as they are.
        dominance: large units beside which the bins are too wide for the others, or None.
    """

    low: float
    high: float
    count: int | None
    dominance: Dominance | None = None
    view: View = EXACT

    @classmethod
    def fit(cls, z: Array, count: int = 30) -> Bins:
        """Take the range of activations (N, …); few values are kept as they are."""
        few = len(np.unique(z)) <= count
        return cls(float(z.min()), float(z.max()), None if few else count, None if few else Dominance.of(z))

    def __call__(self, z: Array) -> Array:
        """Symbols (N,) of activations (N, …)."""
        flat = z.reshape(len(z), -1)
        if self.count is None:
            return relabel(flat)
        share = (flat - self.low) / max(self.high - self.low, np.finfo(float).tiny)
        return relabel(np.clip(share * self.count, 0, self.count - 1).astype(np.int64))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`FittedView.target`: everything is counted, and nothing is estimated."""
        codes = self(z)
        h = entropy_estimate(codes, weights, exact=True)
        both = entropy_estimate(relabel(np.stack([codes, y], 1)), weights, exact=True)
        bits = h.value + entropy_estimate(relabel(y), weights, exact=True).value - both.value
        how = (
            "values as they are" if self.count is None else f"{self.count} bins from {self.low:.3g} to {self.high:.3g}"
        )
        made = Target(name, EXACT, codes, codes, h, Estimate(bits, bits, bits), f"every input, units in {how}")
        return _marked(made, self.dominance, "the bins are too wide for the others")


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
        dominance: large units beside which the others drown, or None.
    """

    projection: Projection
    scale: float
    sigma: float
    seed: int
    dominance: Dominance | None = None
    view: View = NOISE

    @classmethod
    def fit(cls, z: Array, dims: int, sigma: float, seed: int = 0) -> NoisyLayer:
        """Find the components and the scale of activations (N, …)."""
        projection = Projection.fit(z, dims)
        return cls(projection, float(np.sqrt(projection(z).var(0).sum())), sigma, seed, Dominance.of(z))

    def __call__(self, z: Array, salt: int = 0) -> Array:
        """Noisy scores (N, d) of activations (N, …); the noise is a stream of its own."""
        scores = self.projection(z)
        rng = np.random.default_rng([self.seed, _SALT, salt])
        return np.asarray(scores + self.sigma * self.scale * rng.standard_normal(scores.shape))

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`FittedView.target`: both informations are those of mixtures."""
        scores, width = self.projection(z), self.sigma * self.scale
        codes = relabel(np.asarray(y))
        rng = np.random.default_rng([self.seed, _SALT, 2])
        of_x = mixture_information(scores, width, rng)
        bits = [_mean(of_x, weights), _mean(of_x - _within(scores, codes, width, rng), weights)]
        full = bool(bits[0].value >= _NEAR * np.log2(len(scores)))
        note = "I(X;T) is near log2 of the number of samples: the true value may be any higher one"
        total = Estimate(bits[0].value, bits[0].low, bits[0].high, full, note if full else "")
        rng = np.random.default_rng([self.seed, _SALT, 3])
        chance = _mean(of_x - _within(scores, codes[rng.permutation(len(codes))], width, rng), weights).value
        most = min(bits[0].value, entropy_estimate(codes, weights).value)
        bits[1] = _above_chance(bits[1], max(chance, 0.0), most)
        resolution = f"noise of {self.sigma:g} total standard deviations on {self.projection.dims} components"
        noisy = (self(z), self(fit, 1))
        notes = (*([note] if full else []), *([bits[1].note] if bits[1].note else []))
        made = Target(name, NOISE, *noisy, total, bits[1], resolution, notes)
        return _marked(made, self.dominance, "the others drown in noise of its scale")


@dataclass(frozen=True)
class Rescaled:
    """A view of a layer in units of its own: its mean taken off, divided by a scale, then seen as another view does.

    The same function may be computed by layers of different scale, each undone by the weights after it.

    Attributes:
        fitted: the view, fitted on such units.
        centre: the layer's mean (U, …).
        scale: its total standard deviation.
    """

    fitted: FittedView
    centre: Array
    scale: float

    @classmethod
    def of(cls, z: Array) -> tuple[Array, float]:
        """The centre and the scale of activations (N, …); of a layer that does not vary the scale is 1."""
        deviation = float(np.sqrt(z.reshape(len(z), -1).var(0, dtype=np.float64).sum()))
        return z.mean(0), deviation or 1.0

    @property
    def view(self) -> View:
        """See :attr:`FittedView.view`."""
        return self.fitted.view

    def __call__(self, z: Array) -> Array:
        """T of the activations (N, …)."""
        return self.fitted((z - self.centre) / self.scale)

    def target(self, name: str, z: Array, fit: Array, y: Array, weights: Array | None = None) -> Target:
        """See :meth:`FittedView.target`."""
        ours, theirs = ((part - self.centre) / self.scale for part in (z, fit))
        return self.fitted.target(name, ours, theirs, y, weights)


def _within(scores: Array, codes: Array, width: float, rng: np.random.Generator) -> Array:
    """I(Z;Z + noise) within the class of each sample (N,), as values whose mean it is."""
    within = np.zeros(len(scores))
    for c in range(int(codes.max()) + 1):
        rows = np.flatnonzero(codes == c)
        within[rows] = mixture_information(scores[rows], width, rng)
    return within


def _above_chance(label: Estimate, chance: float, most: float) -> Estimate:
    """I(T;Y) less what shuffled labels give by chance, as a share of what is left above it (Vinh et al. 2010).

    Classes of few samples fill too little of the space, so that the entropy within them comes out too low.
    """
    if chance == 0 or most <= 0:
        return label
    note = f"shuffled labels have {chance:.2f} bits: few samples of each class" if chance >= _CHANCE * most else ""
    if chance >= most:
        return Estimate(0.0, 0.0, most, True, note)
    value = (label.value - chance) * most / (most - chance)
    half = float(np.hypot(label.high - label.value, chance))
    high = min(value + half, max(most, value))
    return Estimate(float(value), float(value - half), float(high), bool(note), note)


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
    pointwise = []
    for t, own in zip((z + n).split(1024), n.split(1024), strict=True):
        squares = (t**2).sum(1)[:, None] + (z**2).sum(1) - 2 * t @ z.T
        ahead = ((own**2).sum(1)[:, None] - squares.clamp_min(0)) / (2 * sigma**2)
        pointwise.append(np.log(len(z)) - ahead.logsumexp(1).numpy())
    return np.concatenate(pointwise) / np.log(2)


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
    note = "H(T) is near log2 of the number of samples: the true value may be any higher one" if full else ""
    return Estimate(value, value - half, min(value + half, float(np.log2(len(p)))), full, note)


def count_information(
    codes: Array, y: Array, weights: Array | None = None, seed: int = 0, coarse: bool = True
) -> tuple[Estimate, list[str]]:
    """I(T;Y) in bits of two codes (N,), counted, with corrections for bias and chance; and what limits it.

    ``coarse`` says that the codes summarise finer values, whose information a code's ceiling may hide.
    """
    codes, y = relabel(np.asarray(codes)), relabel(np.asarray(y))
    counted = adjusted_information(codes, y, 8, np.random.default_rng([seed, 7]), weights)
    notes: list[str] = []
    # Of the bias the jackknife leaves about as much as it takes off (0.4 to 0.7 of it on forty codes of ten classes).
    # One label of another code that a sample happens to lack, or to have, counts log2 N / N: a code that determines
    # the label may owe that to the sample. Pairs that were never seen have about the share of those seen once (Good
    # 1953), and what is counted may be too high by all that these labels would tell.
    taken = abs(counted.plain - counted.value)
    samples = len(y) if weights is None else effective_samples(weights)
    error = max(counted.error, float(np.log2(samples)) / samples) if counted.error > 0 else 0.0
    half = float(stats.norm.ppf(0.975)) * float(np.hypot(error, taken))
    unseen = _seen_once(codes, y, weights) * float(np.log2(min(codes.max(), y.max()) + 1))
    code_entropy, label_entropy = entropy_estimate(codes, weights), entropy_estimate(y, weights)
    most = min(code_entropy.high, label_entropy.high)
    value = min(counted.value, most)
    low, high = max(value - half - unseen, min(value, 0.0)), min(value + half, most)
    ceiling = label_entropy.value > code_entropy.value > 0 and counted.value >= _NEAR * code_entropy.value
    full = coarse and (counted.flagged or ceiling)
    if full:
        notes.append("I(Z;Y) is at the ceiling of the code: the true value may be any higher one")
    if taken > _TAKEN:
        notes.append(f"I(Z;Y) was lowered by {taken:.2f} bits: few samples for this number of codes and classes")
    marked = full or taken > _TAKEN
    return Estimate(float(value), float(low), float(high), marked, "; ".join(notes)), notes


def _seen_once(codes: Array, y: Array, weights: Array | None) -> float:
    """The share of samples (N,) whose pair of code and label no other has, and the standard error of their number."""
    _, pair, times = np.unique(codes * (y.max() + 1) + y, return_inverse=True, return_counts=True)
    once = times[pair.reshape(-1)] == 1
    return float(np.average(once, weights=weights)) * (1 + 1 / max(np.sqrt(once.sum()), 1.0))
