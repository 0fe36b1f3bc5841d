"""One interface for every estimator: features and a target in, information terms with intervals out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from robgib.errors import RobGIBError, RobGIBWarning
from robgib.information.decomposition import Decomposition, Prepared, Problem, Uncertainty, decompose
from robgib.information.estimate import Estimate
from robgib.information.features import Features, group_units
from robgib.information.views import NOISE, Network, Target, View
from robgib.options import check
from robgib.registry import Registry
from robgib.runtime import Progress

__all__ = [
    "ESTIMATORS",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Prepared",
    "Problem",
    "Uncertainty",
    "decompose",
    "register_estimator",
]

Array = npt.NDArray[Any]


class Estimator(ABC):
    """Estimates I(X;T), every I(X_i;T) and every I(X_-i;T). A subclass is a frozen dataclass of options.

    Class attributes: ``name``; ``bound`` and ``summary``, a few words each; ``guide``, a paragraph on what the
    figure bounds, where it may be trusted and where it saturates; ``regimes``, the kinds of validation task in
    which it claims to be right; ``least_samples``; ``codes_target``, whether a real target is coded; ``view``, in which
    it sees a layer; ``runs_network``, whether it needs the network itself; ``weighs``, whether it can weight samples.

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
    weighs: ClassVar[bool] = True

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
            counted=[None if t.total.flagged else t.total for t in targets],
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
        varying = [p for p in problems if (p.target != p.target[0]).any()]
        answers = iter(self._estimate_many(varying) if varying else [])
        nothing = np.zeros(2 * len(prepared.features) + 1)
        note = "the target takes one value only: it carries no information"
        return [
            self._with_limits(p, next(answers))
            if any(p is a for a in varying)
            else decompose(
                nothing, estimator=self, problem=replace(p, weights=None), resolution="a constant target", notes=[note]
            )
            for p in problems
        ]

    def _estimate_many(self, problems: Sequence[Problem]) -> list[Decomposition]:
        """Do the estimates on checked input."""
        return [self._estimate(problem) for problem in problems]

    def _with_limits(self, problem: Problem, decomposition: Decomposition) -> Decomposition:
        """Add, and warn of, what the problem lies outside of."""
        limits = self.outside(problem)
        if limits:
            warnings.warn(f"the {self.name} estimator is outside its regime: {'; '.join(limits)}", RobGIBWarning, 3)
            decomposition = replace(
                decomposition, notes=(*decomposition.notes, *(f"outside its regime: {limit}" for limit in limits))
            )
        return decomposition

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


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator",
    group="robgib.estimators",
    valid=lambda value: isinstance(value, type) and issubclass(value, Estimator),
    wanted="a subclass of robgib.Estimator",
    base=Estimator,
    named=lambda value: value.name,
)
"""The estimator classes by name."""
Kind = TypeVar("Kind", bound=type[Estimator])


def register_estimator(name: str) -> Callable[[Kind], Kind]:
    """Register a subclass of :class:`Estimator` under ``name``, which becomes its attribute ``name``.

    A plug-in file needs no decorator: its estimators are known by their attribute ``name`` without one.

    Args:
        name: the name in specifications, tables and catalogue files.

    >>> from dataclasses import dataclass
    >>> @register_estimator("nothing")
    ... @dataclass(frozen=True)
    ... class Nothing(Estimator):
    ...     bound, summary = "none", "nothing at all"
    >>> Nothing.name, ESTIMATORS["nothing"] is Nothing
    ('nothing', True)
    >>> ESTIMATORS.remove("nothing")
    """
    register: Callable[[Kind], Kind] = ESTIMATORS.decorator(name, "register_estimator")

    def enter(kind: Kind) -> Kind:
        register(kind).name = name
        return kind

    return enter
