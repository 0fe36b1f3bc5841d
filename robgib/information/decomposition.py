"""What an estimator is given and what it returns: a problem, and the decomposition that its terms are turned into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from robgib.errors import unknown_name
from robgib.information.estimate import Estimate
from robgib.information.measures import functionals

__all__ = [
    "Decomposition",
    "Prepared",
    "Problem",
    "Uncertainty",
    "decompose",
]

Array = npt.NDArray[Any]
_ROUNDING = 1e-9
_SHARE_SD = 0.75
"""Standard deviation of the error of a kind of terms, as a share of what the estimator failed to learn of I(X;T).

On networks of known information, the shares of the single-feature and of the leave-one-out terms were off by up to 0.9
of that, each kind by an error that all its features have in common.
"""


@dataclass(frozen=True)
class Decomposition:
    """The information of features X_1 … X_n about a target T, in bits, as one estimator finds it.

    Attributes:
        total: I(X;T): counted where it is known, otherwise estimated.
        single_feature: I(X_i;T), one per feature.
        leave_one_out: I(X_-i;T), one per feature; X_-i is every feature but X_i.
        interaction: II_i(X;T), one per feature.
        synergy: S(X;T), the mean of the interaction.
        complexity: C(X;T) = I(X;T) − S(X;T).
        slack: I(X;T) − C(X;T)/2, which is never negative (the GIB bounds the IB).
        redundancy: the degree r = Σ_i I(X_i;T)/I(X;T); NaN if I(X;T) does not differ from 0.
        vulnerability: the degree v = Σ_i I(X_i;T|X_-i)/I(X;T); NaN in the same case.
        estimator: name of the estimator.
        samples: number of samples.
        resolution: the resolution of features and target at which the figures hold.
        bound: how the information terms relate to the truth (``lower``, ``exact``, ``none`` …).
        notes: limits that the reader must know.
        remarks: what was seen beside; they limit no figure.
        pointwise: (N, 2n+1) values per sample whose means are the terms, if there are such values.
        learnt: I(X;T) as the estimator finds it, also where it is counted.
        sided: whether I(X;T) is counted and all other terms are lower bounds. C and r are then lower bounds, and S and
            v upper bounds.
    """

    total: Estimate
    single_feature: tuple[Estimate, ...]
    leave_one_out: tuple[Estimate, ...]
    interaction: tuple[Estimate, ...]
    synergy: Estimate
    complexity: Estimate
    slack: Estimate
    redundancy: Estimate
    vulnerability: Estimate
    estimator: str
    samples: int
    resolution: str
    bound: str
    notes: tuple[str, ...] = ()
    pointwise: Array | None = field(default=None, repr=False, compare=False)
    learnt: Estimate = field(default_factory=lambda: Estimate(np.nan, np.nan, np.nan))
    sided: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def singles(self) -> tuple[Estimate, ...]:
        """Former name of :attr:`single_feature`."""
        return self.single_feature

    @property
    def rests(self) -> tuple[Estimate, ...]:
        """Former name of :attr:`leave_one_out`."""
        return self.leave_one_out


@dataclass(frozen=True)
class Prepared:
    """Features prepared for one estimator and any number of targets (:meth:`Estimator.prepare`).

    Attributes:
        features: (N, d_i) each.
        fit_features: other samples of the features, on which codes are fitted; the same samples if there are no others.
        own: what the estimator computed from them.
    """

    features: tuple[Array, ...]
    fit_features: tuple[Array, ...]
    own: Any

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return len(self.features[0])


@dataclass(frozen=True)
class Problem:
    """Checked input of an estimator.

    Attributes:
        prepared: the features.
        target: values (N, d) or codes (N,).
        fit_target: other samples of the target, on which codes may be fitted; the same samples if there are no others.
        weights: (N,) of mean 1, by which the pointwise terms of the samples are multiplied; or None.
        counted: I(X;T) in bits where it is known.
    """

    prepared: Prepared
    target: Array
    fit_target: Array
    weights: Array | None = None
    counted: Estimate | None = None

    @property
    def features(self) -> tuple[Array, ...]:
        """The features (N, d_i)."""
        return self.prepared.features

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return len(self.target)

    @property
    def discrete_target(self) -> bool:
        """Whether the target is integer codes."""
        return self.target.dtype.kind in "iub"


@dataclass(frozen=True)
class Uncertainty:
    """The errors of 2n+1 terms [total, single-feature, leave-one-out], in bits.

    Without ``pointwise`` and ``replicates``, the terms have no sampling error.

    Attributes:
        pointwise: (N, 2n+1) values per sample whose means are the terms: the sampling error is that of the mean.
        replicates: (K, 2n+1) estimates that each leave out one of K groups of samples: the sampling error is that of
            the grouped jackknife.
        floor: (2n+1,) standard deviation of each term when there is no information. Near independence a term is
            quadratic in the sampled quantities, and first-order errors vanish.
        missing: (2n+1,) expected deficit of each term, taken as the standard deviation of an error that all terms
            share, so that it does not average out over features.
        below: (2n+1,) distance from each term down to its lower bound: what extrapolation added to it.
        above: (2n+1,) how far above the term the truth may lie. Intervals reach from ``below`` to ``above``.
        apart: standard deviation of an error of all single-feature terms, and of another of all leave-one-out terms,
            as a share of the terms.
        flagged: (2n+1,) whether each term is at the estimator's ceiling or otherwise not reliable.
    """

    pointwise: Array | None = None
    replicates: Array | None = None
    floor: npt.ArrayLike = 0.0
    missing: npt.ArrayLike = 0.0
    below: npt.ArrayLike = 0.0
    above: npt.ArrayLike = 0.0
    apart: float = 0.0
    flagged: npt.ArrayLike = False


class _Named(Protocol):
    """The part of an estimator that a decomposition records."""

    @property
    def name(self) -> str: ...

    @property
    def bound(self) -> str: ...


def decompose(
    terms: npt.ArrayLike,
    *,
    estimator: _Named,
    problem: Problem,
    resolution: str,
    uncertainty: Uncertainty | None = None,
    notes: Sequence[str] = (),
    absent: str = "",
    **errors: Any,
) -> Decomposition:
    """Turn the 2n+1 terms [total, single-feature, leave-one-out] and their errors into a decomposition.

    If I(X;T) is counted (:attr:`Problem.counted`), the terms are taken as shares of the estimated I(X;T), and the
    shares are applied to the counted one. Then r and v do not change, C + S is the counted I(X;T), and no counted
    total is compared with an estimated leave-one-out term. The error of the estimated total also widens the intervals
    of the other terms.

    Args:
        terms: (2n+1,) estimates in bits; NaN is not estimable.
        estimator: the estimator, for its name and bound.
        problem: what was estimated.
        resolution: at which resolution.
        uncertainty: the errors of the terms; None takes them as exact.
        notes: limits to pass on.
        absent: why some of the terms are NaN, if others are not.
        errors: fields of ``uncertainty`` by name, such as ``pointwise=values``.

    Raises:
        RobGIBError: an unknown field of the uncertainty.

    >>> import numpy as np
    >>> from robgib.information import Exact
    >>> exact, bits = Exact(), np.array([0, 0, 1, 1])
    >>> problem = Problem(exact.prepare([bits]), bits, bits)
    >>> found = decompose([1.0, 1.0, 0.0], estimator=exact, problem=problem, resolution="values", floor=0.1)
    >>> found.complexity.value, round(found.complexity.high, 2)
    (1.0, 1.28)
    """
    values, uncertainty = np.asarray(terms, float), _with_fields(uncertainty or Uncertainty(), errors)
    if problem.weights is not None and uncertainty.pointwise is None:
        values = np.full(len(values), np.nan)
        notes = [*notes, f"the {estimator.name} estimator has no pointwise terms to weigh: not estimable"]
    elif problem.weights is not None:
        values, uncertainty = _weighted(values, uncertainty, problem.weights)
    made = _Terms.of(values, uncertainty)
    learnt = made.learnt()
    if problem.counted is not None:
        made = made.scaled_to(problem.counted)
    made, set_to = made.within_degrees()
    figures = made.figures(absent, notes, set_to)
    return Decomposition(
        **figures,
        estimator=estimator.name,
        samples=problem.samples,
        resolution=resolution,
        bound=estimator.bound,
        notes=tuple(notes),
        pointwise=made.pointwise,
        learnt=replace(learnt, note=figures["total"].note),
    )


_FORMER = {"saturated": "flagged"}
"""Fields of the uncertainty by their former names."""


def _with_fields(uncertainty: Uncertainty, given: Mapping[str, Any]) -> Uncertainty:
    """An uncertainty with some fields replaced by name."""
    known = [f.name for f in fields(Uncertainty)]
    renamed = {_FORMER.get(name, name): value for name, value in given.items()}
    for name in renamed:
        if name not in known:
            raise unknown_name("field of decompose's uncertainty:", name, known)
    return replace(uncertainty, **renamed)


def _weighted(values: Array, uncertainty: Uncertainty, weights: Array) -> tuple[Array, Uncertainty]:
    """Terms as weighted means of their pointwise values, with the bias correction that the plain means got."""
    pointwise = uncertainty.pointwise
    assert pointwise is not None
    weighted = weights[:, None] * pointwise
    values = weighted.mean(0) + (values - pointwise.mean(0))
    # The weights are scaled to mean 1, so that the error is that of a ratio.
    ratio = weighted - weights[:, None] * weighted.mean(0) + weighted.mean(0)
    return values, replace(uncertainty, pointwise=ratio, replicates=None)


def _covariance(values: Array, uncertainty: Uncertainty) -> tuple[Array, float]:
    """Covariance (2n+1, 2n+1) of the terms by sampling, and the 97.5% quantile that belongs to it."""
    normal = float(stats.norm.ppf(0.975))
    if uncertainty.pointwise is not None:
        pointwise = uncertainty.pointwise
        return np.atleast_2d(np.cov(pointwise, rowvar=False)) / len(pointwise), normal
    if uncertainty.replicates is not None:
        k = len(uncertainty.replicates)
        centred = uncertainty.replicates - uncertainty.replicates.mean(0)
        return (k - 1) / k * centred.T @ centred, float(stats.t.ppf(0.975, k - 1))
    return np.zeros((len(values), len(values))), normal


@dataclass(frozen=True)
class _Terms:
    """The 2n+1 terms with the parts of their errors.

    Attributes:
        values: (2n+1,); a term that is not estimable is 0 here if others are estimable.
        missed: (2n+1,) whether each term is not estimable while others are.
        pointwise: (N, 2n+1) or None.
        covariance: of sampling.
        quantile: of the 95% intervals.
        floors: least standard deviation of each term by sampling.
        shared: standard deviations of an error that all terms have in common.
        counting: the same of the counted total's own error.
        by_kind: standard deviations, as shares of the terms, of an error of the single-feature terms and of another of
            the leave-one-out terms.
        below: reach below each term.
        above: reach above each term.
        flagged: whether each term is marked.
    """

    values: Array
    missed: Array
    pointwise: Array | None
    covariance: Array
    quantile: float
    floors: Array
    shared: Array
    counting: Array
    by_kind: Array
    below: Array
    above: Array
    flagged: Array

    @classmethod
    def of(cls, values: Array, uncertainty: Uncertainty) -> _Terms:
        missed = np.isnan(values)
        if missed.all():
            missed = np.zeros(len(values), bool)  # nothing is estimable: all stays NaN
        if missed.any():
            values = np.where(missed, 0.0, values)
            if uncertainty.pointwise is not None:
                uncertainty = replace(uncertainty, pointwise=np.where(missed, 0.0, uncertainty.pointwise))
        covariance, quantile = _covariance(values, uncertainty)

        def each(value: npt.ArrayLike) -> Array:
            return np.broadcast_to(np.asarray(value, float), values.shape)

        return cls(
            values,
            missed,
            uncertainty.pointwise,
            covariance,
            quantile,
            each(uncertainty.floor),
            each(uncertainty.missing),
            np.zeros(len(values)),
            each(uncertainty.apart),
            each(uncertainty.below),
            each(uncertainty.above),
            np.broadcast_to(np.asarray(uncertainty.flagged, bool), values.shape),
        )

    @property
    def features(self) -> int:
        """Number of features n."""
        return (len(self.values) - 1) // 2

    def learnt(self) -> Estimate:
        """I(X;T) as it is estimated, with its sampling error and what it may lack."""
        variance = max(float(self.covariance[0, 0]), float(self.floors[0]) ** 2) + float(self.shared[0]) ** 2
        value, half = float(self.values[0]), self.quantile * np.sqrt(max(variance, 0.0))
        return Estimate(value, value - half, value + half, bool(self.flagged[0]))

    def scaled_to(self, counted: Estimate) -> _Terms:
        """The terms scaled so that their total is the counted one."""
        total = float(self.values[0])
        if not (counted.value > 0 and total > 0) or self.missed.any():
            return self
        scale = counted.value / total
        values = scale * self.values
        return replace(
            self,
            values=values,
            floors=scale * self.floors,
            shared=scale * self.shared,
            covariance=scale**2 * self.covariance,
            counting=values / counted.value * (counted.high - counted.low) / 2 / self.quantile,
            by_kind=np.hypot(self.by_kind, _SHARE_SD * abs(1 - 1 / scale)),
        )

    def systematic(self, row: Array) -> float:
        """Variance of a linear combination of the terms beyond that of sampling."""
        n, by_kind = self.features, self.by_kind * np.abs(self.values)
        variance = float(row @ self.shared) ** 2 + float(row @ self.counting) ** 2
        return variance + sum(float(row[kind] @ by_kind[kind]) ** 2 for kind in (slice(1, n + 1), slice(n + 1, None)))

    def reach(self, row: Array) -> tuple[float, float]:
        """How far below and above its value a linear combination may lie, each term between its bounds."""
        plus, minus = np.maximum(row, 0), np.maximum(-row, 0)
        return (
            float(plus @ self.below + minus @ self.above),
            float(plus @ self.above + minus @ self.below),
        )

    @cached_property
    def rows(self) -> Array:
        """Everything that is linear in the terms (:func:`~robgib.information.measures.functionals`)."""
        return functionals(self.features)

    @cached_property
    def half_widths(self) -> Array:
        """Half the width of the 95% interval of each row, by sampling and systematic errors."""
        rows = self.rows
        variance = np.maximum(np.einsum("ij,jk,ik->i", rows, self.covariance, rows), rows**2 @ self.floors**2)
        variance += [self.systematic(row) for row in rows]
        return np.asarray(self.quantile * np.sqrt(np.maximum(variance, 0)))

    def within_degrees(self) -> tuple[_Terms, tuple[str, str]]:
        """The terms moved so that r and v lie in [0, n], and a note on each of r and v that was outside.

        All terms of a kind move by the same amount, so that S and C agree with r and v. The intervals also reach to
        where the terms were.
        """
        n, total = self.features, float(self.values[0])
        if self.missed[0] or not total > 0 or total <= float(self.half_widths[0]):
            return self, ("", "")
        singles, rests = slice(1, n + 1), slice(n + 1, None)
        shift, said = np.zeros(len(self.values)), []
        degrees = (float(self.values[singles].sum() / total), float((total - self.values[rests]).sum() / total))
        for kind, sign, degree in zip((singles, rests), (1, -1), degrees, strict=True):
            bound = min(max(degree, 0.0), float(n))
            out = abs(degree - bound) > _ROUNDING and not self.missed[kind].any()
            said.append(f"{degree:.2g} is not possible: set to {bound:g}" if out else "")
            shift[kind] = sign * total * (bound - degree) / n if out else 0.0
        if not shift.any():
            return self, ("", "")
        moved = replace(
            self,
            values=self.values + shift,
            below=self.below + np.maximum(shift, 0),
            above=self.above + np.maximum(-shift, 0),
            pointwise=None if self.pointwise is None else self.pointwise + shift,
        )
        return moved, (said[0], said[1])

    def figures(self, absent: str, notes: Sequence[str], set_to: tuple[str, str] = ("", "")) -> dict[str, Any]:
        """The estimates of a :class:`Decomposition`, by the names of its fields; ``set_to`` are notes on r and v."""
        n, rows, linear = self.features, self.rows, self.linear(absent, notes)
        alone, without = rows[1 : n + 1].sum(0), rows[n + 1 : 2 * n + 1].sum(0)
        degrees = [
            _within(_noted(self.degree(row, absent, notes), said), 0.0, float(n))
            for row, said in zip((alone, n * rows[0] - without), set_to, strict=True)
        ]
        moved = "; ".join(f"{name}: {said}" for name, said in zip("rv", set_to, strict=True) if said)
        return {
            "total": linear[0],
            "single_feature": tuple(linear[1 : n + 1]),
            "leave_one_out": tuple(linear[n + 1 : 2 * n + 1]),
            "interaction": tuple(linear[2 * n + 1 : 3 * n + 1]),
            "synergy": _noted(linear[3 * n + 1], moved),
            "complexity": _noted(linear[3 * n + 2], moved),
            "slack": linear[3 * n + 3],
            "redundancy": degrees[0],
            "vulnerability": degrees[1],
        }

    def linear(self, absent: str, notes: Sequence[str]) -> list[Estimate]:
        """Estimates of all rows, each interval cut to the possible values."""
        n, rows = self.features, self.rows
        lost = (rows[:, self.missed] != 0).any(1)
        partly = bool(self.missed.any())
        note = absent if partly else "" if np.isfinite(self.values).all() else "; ".join(notes)
        flags = (rows != 0) @ self.flagged.astype(float) > 0
        made = []
        for row, value, half, flag, gone in zip(
            rows, np.where(lost, np.nan, rows @ self.values), self.half_widths, flags, lost, strict=True
        ):
            down, up = self.reach(row)
            reason = note if gone or not partly else ""
            made.append(
                Estimate(float(value), float(value - half - down), float(value + half + up), bool(flag), reason)
            )
        most = max(made[0].high, 0.0) if np.isfinite(made[0].high) else np.inf
        spans = [(-np.inf, np.inf), *[(0.0, most)] * (2 * n), *[(-most, most)] * (n + 1), (0.0, 2 * most)]
        return [_within(e, *span) for e, span in zip(made, [*spans, (-np.inf, np.inf)], strict=True)]

    def degree(self, row: Array, absent: str, notes: Sequence[str]) -> Estimate:
        """The ratio of a linear combination to the total, its error by first-order propagation."""
        total, top, half = float(self.values[0]), float(row @ self.values), float(self.half_widths[0])
        reason = ""
        if (row[self.missed] != 0).any():
            reason = absent
        elif not np.isfinite(top) or not np.isfinite(total):
            reason = "; ".join(notes)
        elif total <= 0 or (half > 0 and total <= half):
            reason = NO_INFORMATION
        else:
            slope = (row - top / total * self.rows[0]) / total
            sampled = max(float(slope @ self.covariance @ slope), float(slope**2 @ self.floors**2))
            half = self.quantile * np.sqrt(max(sampled + self.systematic(slope), 0.0))
            down, up = self.reach(slope)
            ratio = top / total
            bound = min(max(ratio, 0.0), float(self.features))
            if abs(ratio - bound) <= _ROUNDING:  # terms that put it on a bound do so up to rounding
                ratio = bound
            return Estimate(ratio, ratio - half - down, ratio + half + up, bool(self.flagged[0]))
        return Estimate(np.nan, np.nan, np.nan, note=reason)


NO_INFORMATION = "I(X;T) does not differ significantly from 0"
"""Why the degrees of redundancy and vulnerability are not estimable."""


def _noted(estimate: Estimate, note: str) -> Estimate:
    return replace(estimate, note="; ".join(filter(None, [estimate.note, note])))


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    """An estimate whose interval is cut to the possible values; flagged if it covers all of them."""
    if estimate.value != estimate.value or least >= most:
        return estimate
    value = estimate.value
    low = min(max(estimate.low, min(value, least)), value)
    high = max(min(estimate.high, max(value, most)), value)
    estimate = replace(estimate, low=low, high=high)
    if low > least or high < most or not np.isfinite(most):
        return estimate
    return replace(_noted(estimate, "the interval covers all possible values"), flagged=True)
