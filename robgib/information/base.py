"""One interface for every estimator: features and a target in, information terms with intervals out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from robgib.errors import RobGIBError, RobGIBWarning
from robgib.information.estimate import Estimate
from robgib.information.features import Features, group_units
from robgib.information.measures import functionals
from robgib.information.views import NOISE, Network, Target, View
from robgib.options import check
from robgib.runtime import Progress

__all__ = [
    "Decomposition",
    "Estimate",
    "Estimator",
    "Prepared",
    "Problem",
    "decompose",
]

Array = npt.NDArray[Any]
_APART = 0.75
"""Standard deviation of what a kind of terms' shares of the information are off, in what the learnt total lacks."""


@dataclass(frozen=True)
class Decomposition:
    """Everything one estimator says of features X_1 … X_n and a target T, in bits.

    Attributes:
        total: I(X;T): counted where it is known, else learnt.
        singles: I(X_i;T), one a feature.
        rests: I(X_-i;T), one a feature.
        interaction: II_i(X;T), one a feature.
        synergy: S(X;T), their mean.
        complexity: C(X;T) = I(X;T) − S(X;T).
        slack: I(X;T) − C(X;T)/2, at least 0 in truth (the bound of the IB by the GIB).
        redundancy: the degree r = Σ_i I(X_i;T)/I(X;T); NaN where I(X;T) is not told from 0.
        vulnerability: the degree v = Σ_i I(X_i;T|X_-i)/I(X;T); likewise.
        estimator: its name.
        samples: how many samples the figures rest on.
        resolution: at which resolution of features and target they hold.
        bound: how the information terms stand to the truth (``lower``, ``exact``, ``none`` …).
        notes: limits that the reader must know.
        pointwise: (N, 2n+1) values of the samples whose means the terms are, where there are such.
        learnt: I(X;T) as the estimator has it, whether or not it is known.
        sided: whether I(X;T) is counted and all other terms are lower bounds: then so are C and r, and S and v upper.
    """

    total: Estimate
    singles: tuple[Estimate, ...]
    rests: tuple[Estimate, ...]
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


@dataclass(frozen=True)
class Prepared:
    """Features made ready for one estimator and any number of targets (:meth:`Estimator.prepare`).

    Attributes:
        features: (N, d_i) each.
        fit_features: other samples of them, on which codes are fitted; the same where there are none.
        own: what the estimator made of them.
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
    """Checked input of an estimator: features made ready, a target (N, d) or codes (N,), and its reference.

    ``fit_target`` are other samples of it, on which codes may be fitted; where there are none they are the samples
    themselves. ``weights`` (N,), of mean 1, weigh each sample's pointwise terms. ``counted`` is I(X;T) in bits where it
    is known.
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


class Estimator(ABC):
    """Estimates I(X;T), every I(X_i;T) and every I(X_-i;T). A subclass is a frozen dataclass of options.

    Class attributes: ``name``; ``bound`` and ``summary``, a few words each; ``guide``, a paragraph on what the
    figure bounds, where it may be trusted and where it saturates; ``regimes``, the kinds of validation task in
    which it claims to be right; ``least_samples``; ``codes_target``, whether a real target is coded; ``view``, in which
    it sees a layer; ``runs_network``, whether it needs the network itself.

    >>> import numpy as np
    >>> from robgib.information import Exact
    >>> a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    >>> exact = Exact()
    >>> prepared = exact.prepare([a, b])
    >>> [round(exact.estimate(prepared, target).synergy.value, 4) for target in (a ^ b, a & b)]
    [1.0, 0.1887]
    """

    name: ClassVar[str]
    bound: ClassVar[str]
    summary: ClassVar[str]
    least_samples: ClassVar[int] = 10
    regimes: ClassVar[tuple[str, ...]] = ()
    guide: ClassVar[str] = ""
    codes_target: ClassVar[bool] = False
    view: ClassVar[View] = NOISE
    runs_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, f"the {self.name} estimator")

    def passes(self, features: int, samples: int) -> int:
        """About how many images it runs through the network for an input of so many features; 0 where it runs none."""
        return 0

    def prepare(
        self, features: Sequence[npt.ArrayLike], fit_features: Sequence[npt.ArrayLike] | None = None
    ) -> Prepared:
        """Make features ready: what does not depend on the target is done once for all targets.

        Args:
            features: n arrays (N, d_i) or (N,); integers are taken as codes.
            fit_features: other samples of the features, on which codes are fitted (default: the same).

        Raises:
            RobGIBError: no features, unequal lengths, or NaN or infinite values.
        """
        values = tuple(_matrix(x, f"feature {i}") for i, x in enumerate(features))
        if not values:
            raise RobGIBError("an information estimate needs at least one feature.")
        for i, value in enumerate(values):
            if len(value) != len(values[0]):
                raise RobGIBError(f"feature {i} has {len(value)} samples and feature 0 {len(values[0])}.")
        reference = values if fit_features is None else tuple(_matrix(x, "a fit feature") for x in fit_features)
        if [v.shape[1] for v in values] != [v.shape[1] for v in reference]:
            raise RobGIBError("the features and the fit features differ in number or width.")
        self._check_samples(len(values[0]))
        return Prepared(values, reference, self._prepare(values, reference))

    def _check_samples(self, samples: int) -> None:
        if samples < self.least_samples:
            raise RobGIBError(
                f"{samples} samples are too few for the {self.name} estimator; give at least {self.least_samples}."
            )

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> Any:
        """What the estimator wants of checked features (:attr:`Prepared.own`)."""
        return None

    def of_network(
        self,
        prepared: Prepared,
        targets: Sequence[Target],
        network: Network | None = None,
        weights: Array | None = None,
        progress: Progress | None = None,
    ) -> list[Decomposition]:
        """Estimate what the prepared features of a network's input tell of each of several targets.

        Args:
            prepared: features (:meth:`prepare`).
            targets: layers in this estimator's view, or the label.
            network: the network itself, for estimators that run it.
            weights: as for :meth:`estimate`.
            progress: called as the work goes on.
        """
        return self.estimate_many(
            prepared,
            [t.values for t in targets],
            fit_targets=[t.fit for t in targets],
            weights=weights,
            counted=[None if t.total.saturated else t.total for t in targets],
        )

    def of_units(self, z: Array, fit: Array, groups: int) -> Features:
        """The features that a layer's units are: ``groups`` of them."""
        return group_units(z, fit, groups)

    def outside(self, problem: Problem) -> list[str]:
        """Say in what respects a problem is outside the regime in which the estimator is known to be right."""
        return []

    def estimate(
        self,
        features: Prepared | Sequence[npt.ArrayLike],
        target: npt.ArrayLike,
        *,
        fit_features: Sequence[npt.ArrayLike] | None = None,
        fit_target: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Decomposition:
        """Estimate the information of ``features`` about ``target``.

        Args:
            features: what :meth:`prepare` made of them, or n arrays (N, d_i) or (N,); integers are taken as codes.
            target: (N, d) or (N,); integers are taken as codes.
            fit_features: other samples of the features, on which codes are fitted (default: the same); not with
                prepared ones, which have them.
            fit_target: other samples of the target.
            weights: (N,) weights of the samples' pointwise terms, scaled here to mean 1 (see
                :func:`~robgib.information.measures.pmi_weights`).

        Returns:
            The terms in bits, with 95% intervals. Outside the estimator's regime it warns
            (:class:`~robgib.errors.RobGIBWarning`) and the notes say why.

        Raises:
            RobGIBError: no features, unequal lengths, NaN or infinite values, or too few samples.
        """
        prepared = features if isinstance(features, Prepared) else self.prepare(features, fit_features)
        fit_targets = None if fit_target is None else [fit_target]
        return self.estimate_many(prepared, [target], fit_targets=fit_targets, weights=weights)[0]

    def estimate_many(
        self,
        prepared: Prepared,
        targets: Sequence[npt.ArrayLike],
        *,
        fit_targets: Sequence[npt.ArrayLike] | None = None,
        weights: npt.ArrayLike | None = None,
        counted: Sequence[Estimate | None] | None = None,
    ) -> list[Decomposition]:
        """Estimate the information about each of several targets; where one pass can answer for all, it does.

        Args:
            prepared: features (:meth:`prepare`).
            targets: (N, d) or (N,) each.
            fit_targets: other samples of each, on which codes may be fitted.
            weights: as for :meth:`estimate`.
            counted: I(X;T) of each in bits, where it is known: see :func:`decompose`.

        Raises:
            RobGIBError: as for :meth:`estimate`.
        """
        problems = []
        for i, target in enumerate(targets):
            goal = _matrix(target, "the target")
            if prepared.samples != len(goal):
                raise RobGIBError(f"the features have {prepared.samples} samples and the target {len(goal)}.")
            reference = goal if fit_targets is None else _matrix(fit_targets[i], "the fit target")
            known = None if counted is None else counted[i]
            problems.append(Problem(prepared, goal, reference, _weights(weights, len(goal)), known))
        asked = [p for p in problems if (p.target != p.target[0]).any()]
        answers = iter(self._estimate_many(asked) if asked else [])
        nothing = np.zeros(2 * len(prepared.features) + 1)
        note = "the target takes one value only: it carries no information"
        return [
            self._with_limits(p, next(answers))
            if any(p is a for a in asked)
            else decompose(
                nothing, estimator=self, problem=replace(p, weights=None), resolution="a constant target", notes=[note]
            )
            for p in problems
        ]

    def _estimate_many(self, problems: Sequence[Problem]) -> list[Decomposition]:
        """Do the estimates on checked input."""
        return [self._estimate(problem) for problem in problems]

    def _with_limits(self, problem: Problem, found: Decomposition) -> Decomposition:
        """Add, and warn of, what the problem lies outside of."""
        limits = self.outside(problem)
        if limits:
            warnings.warn(f"the {self.name} estimator is outside its regime: {'; '.join(limits)}", RobGIBWarning, 3)
            found = replace(found, notes=(*found.notes, *(f"outside its regime: {limit}" for limit in limits)))
        return found

    def label_information(
        self,
        representation: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        fit_representation: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Decomposition:
        """Estimate I(Z;Y) of a representation (N, d), at the resolution it has when it is a target."""
        if self.codes_target:
            return self.estimate([labels], representation, fit_target=fit_representation, weights=weights)
        fit = None if fit_representation is None else [fit_representation]
        return self.estimate([representation], labels, fit_features=fit, weights=weights)

    @abstractmethod
    def _estimate(self, problem: Problem) -> Decomposition:
        """Do the estimate on checked input."""


def _weights(values: npt.ArrayLike | None, samples: int) -> Array | None:
    if values is None:
        return None
    weights = np.asarray(values, float)
    if weights.shape != (samples,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise RobGIBError(f"weights must be {samples} finite numbers of at least 0, not all 0.")
    return weights / weights.mean()


def _matrix(values: npt.ArrayLike, what: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuf":
        raise RobGIBError(f"{what} must hold numbers, not {array.dtype}.")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise RobGIBError(f"{what} must have shape (samples, dims), not {array.shape}.")
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.any():
            raise RobGIBError(f"{what} has NaN or infinite values in {int(bad.any(1).sum())} of {len(array)} samples.")
        array = array.astype(np.float64, copy=False)
    return array


def _possible(found: Estimate, least: float, most: float) -> Estimate:
    """An estimate whose interval ends where nothing lies beyond; marked where it holds all that is possible."""
    if found.value != found.value or least >= most:
        return found
    low, high = max(found.low, min(found.value, least)), min(found.high, max(found.value, most))
    if found.low > least or found.high < most or not np.isfinite(most):
        return replace(found, low=low, high=high)
    note = "; ".join(filter(None, [found.note, "the interval holds all that is possible: nothing is told"]))
    return replace(found, low=low, high=high, saturated=True, note=note)


def decompose(
    terms: npt.ArrayLike,
    *,
    estimator: Estimator,
    problem: Problem,
    resolution: str,
    pointwise: Array | None = None,
    replicates: Array | None = None,
    floor: npt.ArrayLike = 0.0,
    missing: npt.ArrayLike = 0.0,
    below: npt.ArrayLike = 0.0,
    above: npt.ArrayLike = 0.0,
    apart: float = 0.0,
    saturated: npt.ArrayLike = False,
    notes: Sequence[str] = (),
    absent: str = "",
) -> Decomposition:
    """Turn the 2n+1 terms [total, singles, rests] and their errors into a decomposition.

    Where I(X;T) is counted (:attr:`Problem.counted`), the terms are taken as shares of the learnt I(X;T), and those
    shares applied to what is counted: r and v do not change, C + S is the counted I, and no counted total meets a
    learnt rest. How far the learnt total is off tells how far the others may be: on networks of known information the
    shares of singles and of rests were off by up to 0.9 of it, each kind by an error of its own that all its features
    share. Three quarters are taken as its standard deviation.

    Args:
        terms: (2n+1,) estimates in bits.
        estimator: who made them.
        problem: from what.
        resolution: at which resolution.
        pointwise: (N, 2n+1) per-sample values whose mean the terms are: the error is the mean's.
        replicates: (K, 2n+1) leave-one-group-out estimates: the error is the grouped jackknife's.
            Neither: the terms are exact.
        floor: (2n+1,) standard deviation of each term when there is no information at all. Near
            independence a term is quadratic in what was sampled, and first-order errors vanish there.
        missing: (2n+1,) what each term lacks by expectation, taken as the standard deviation of an error that all
            terms share, so that it does not average out over features.
        below: (2n+1,) how far below each term its bound lies: what was added to it by extrapolation.
        above: (2n+1,) how far above it the truth may lie. The intervals reach from the one to the other.
        apart: standard deviation of an error of the singles, and of another of the rests, that all features share, as a
            share of the terms; beside what the learnt total tells of it.
        saturated: (2n+1,) marks.
        notes: limits to pass on.
        absent: why some of the terms are NaN, where others are estimated.
    """
    values = np.asarray(terms, float)
    if problem.weights is not None:
        if pointwise is None:
            values = np.full(len(values), np.nan)
            notes = [*notes, f"the {estimator.name} estimator has no pointwise terms to weigh: not estimable"]
        else:
            # The weighted mean of the pointwise terms, with the correction for bias that the plain mean got.
            weighted = problem.weights[:, None] * pointwise
            values = weighted.mean(0) + (values - pointwise.mean(0))
            # The weights' own mean is 1 by scaling: the error is that of a ratio.
            pointwise = weighted - problem.weights[:, None] * weighted.mean(0) + weighted.mean(0)
            replicates = None
    n = (len(values) - 1) // 2
    rows = functionals(n)
    # What is not estimated stays out of everything but what is made of it.
    missed = np.isnan(values)
    lost = (rows[:, missed] != 0).any(1)
    partly = bool(missed.any() and not missed.all())
    if partly:
        values = np.where(missed, 0.0, values)
        pointwise = None if pointwise is None else np.where(missed, 0.0, pointwise)
    quantile = float(stats.norm.ppf(0.975))
    if pointwise is not None:
        covariance = np.atleast_2d(np.cov(pointwise, rowvar=False)) / len(pointwise)
    elif replicates is not None:
        k = len(replicates)
        centred = replicates - replicates.mean(0)
        covariance = (k - 1) / k * centred.T @ centred
        quantile = float(stats.t.ppf(0.975, k - 1))
    else:
        covariance = np.zeros((len(values), len(values)))
    floors = np.broadcast_to(np.asarray(floor, float), values.shape)
    shared = np.broadcast_to(np.asarray(missing, float), values.shape)
    marked = np.broadcast_to(np.asarray(saturated, bool), values.shape)
    spread = max(float(covariance[0, 0]), float(floors[0]) ** 2) + float(shared[0]) ** 2
    first, reach = float(values[0]), quantile * np.sqrt(max(spread, 0.0))
    learnt = Estimate(first, first - reach, first + reach, bool(marked[0]))
    off_by = np.full(len(values), apart)
    known, steady = problem.counted, np.zeros(len(values))
    if known is not None and known.value > 0 and first > 0 and not partly:
        scale = known.value / first
        off_by = np.hypot(off_by, _APART * abs(1 - 1 / scale))
        values, floors, shared, covariance = scale * values, scale * floors, scale * shared, scale**2 * covariance
        steady = values / known.value * (known.high - known.low) / 2 / quantile  # the counted total's own error
    off_by = off_by * np.abs(values)
    kinds = [np.concatenate([[False], np.arange(2 * n) // n == k]) for k in range(2)]

    def off(row: Array) -> float:
        """Variance of a combination of terms beyond that of sampling."""
        whole = float(row @ shared) ** 2 + float(row @ steady) ** 2
        return whole + sum(float(row[kind] @ off_by[kind]) ** 2 for kind in kinds)

    variance = np.maximum(np.einsum("ij,jk,ik->i", rows, covariance, rows), rows**2 @ floors**2)
    variance += [off(row) for row in rows]
    half = quantile * np.sqrt(np.maximum(variance, 0))
    lower, upper = (np.broadcast_to(np.asarray(reach, float), values.shape) for reach in (below, above))

    def reaches(row: Array) -> tuple[float, float]:
        """How far down and up a combination of terms may lie, each term from its bound to what is extrapolated."""
        plus, minus = np.maximum(row, 0), np.maximum(-row, 0)
        return float(plus @ lower + minus @ upper), float(plus @ upper + minus @ lower)

    def degree(row: Array) -> Estimate:
        """The ratio of a row's term to the total, its error by first-order propagation."""
        total, top = float(values[0]), float(row @ values)
        if partly and (row[missed] != 0).any():
            return Estimate(np.nan, np.nan, np.nan, note=absent)
        if not np.isfinite(top) or not np.isfinite(total):
            return Estimate(np.nan, np.nan, np.nan, note="; ".join(notes))
        if total <= 0 or (half[0] > 0 and total <= half[0]):
            return Estimate(np.nan, np.nan, np.nan, note="I(X;T) is not told from 0")
        slope = (row - top / total * rows[0]) / total
        spread = max(float(slope @ covariance @ slope), float(slope**2 @ floors**2)) + off(slope)
        half_width = quantile * np.sqrt(max(spread, 0.0))
        down, up = reaches(slope)
        return Estimate(top / total, top / total - half_width - down, top / total + half_width + up, bool(marks[0]))

    derived = rows @ values
    marks = (rows != 0) @ marked.astype(float) > 0
    note = absent if partly else "" if np.isfinite(values).all() else "; ".join(notes)
    made = [
        Estimate(float(v), float(v - h - r[0]), float(v + h + r[1]), bool(s), note if partly is False or gone else "")
        for v, h, r, s, gone in zip(
            np.where(lost & partly, np.nan, derived), half, map(reaches, rows), marks, lost, strict=True
        )
    ]
    eye = rows[1 : 2 * n + 1]
    most = max(made[0].high, 0.0) if np.isfinite(made[0].high) else np.inf
    reach_of = [(-np.inf, np.inf), *[(0.0, most)] * (2 * n), *[(-most, most)] * (n + 1), (0.0, 2 * most)]
    made = [_possible(e, *span) for e, span in zip(made, [*reach_of, (-np.inf, np.inf)], strict=True)]
    return Decomposition(
        total=made[0],
        singles=tuple(made[1 : n + 1]),
        rests=tuple(made[n + 1 : 2 * n + 1]),
        interaction=tuple(made[2 * n + 1 : 3 * n + 1]),
        synergy=made[3 * n + 1],
        complexity=made[3 * n + 2],
        slack=made[3 * n + 3],
        redundancy=_possible(degree(eye[:n].sum(0)), 0.0, float(n)),
        vulnerability=_possible(degree(n * rows[0] - eye[n:].sum(0)), 0.0, float(n)),
        estimator=estimator.name,
        samples=problem.samples,
        resolution=resolution,
        bound=estimator.bound,
        notes=tuple(notes),
        pointwise=pointwise,
        learnt=replace(learnt, note=made[0].note),
    )
