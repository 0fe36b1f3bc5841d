"""The truth, where every outcome can be listed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.discrete import plug_in, subset_codes
from robgib.information.features import Features, unit_slices
from robgib.information.preprocessing import Codes, relabel
from robgib.information.views import EXACT, View

__all__ = [
    "Exact",
]

Array = npt.NDArray[Any]


@register_estimator("exact")
@dataclass(frozen=True)
class Exact(Estimator):
    """Information of an enumerated distribution: the samples are all its outcomes.

    Of a network on data that list every input, a layer's units are cut into bins of equal width over the layer's
    range, and all units' bins together are the symbol, as Shwartz-Ziv & Tishby (2017) and Saxe et al. (2018) do: a
    deterministic network has H(T) bits of input information at that resolution, counted and not estimated.

    Fields:
        weights: probability of each outcome (N,), up to a factor; None weighs them alike.
        bins: bins of a real variable's range; one with no more values than that keeps them.
    """

    name: ClassVar[str] = "exact"
    bound: ClassVar[str] = "exact"
    summary: ClassVar[str] = "enumerated discrete distribution: the samples are all outcomes, each with its weight"
    least_samples: ClassVar[int] = 1
    guide: ClassVar[str] = (
        "This is no estimate: it computes the terms of a distribution whose outcomes are all listed, up to rounding "
        "error. The discrete validation tasks use it as the truth. On samples it is the plug-in estimate, which is "
        "biased upwards. For a network it takes the units of a layer in bins, on data that list every input."
    )
    weights: Any = None
    bins: Annotated[int, Field(ge=2)] = 30
    view: ClassVar[View] = EXACT

    def of_units(self, z: Array, fit: Array, groups: int) -> Features:
        """See :meth:`Estimator.of_units`: the units as they are."""
        return unit_slices(z.reshape(len(z), -1), groups)

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> list[Codes]:
        """Codes of the 2n+1 subsets."""
        return subset_codes([self._symbols(x) for x in features])

    def _estimate(self, problem: Problem) -> Decomposition:
        weights = problem.weights
        if self.weights is not None:
            weights = np.asarray(self.weights, float)
            if weights.shape != (problem.samples,) or not (weights >= 0).all() or not weights.sum() > 0:
                raise RobGIBError(
                    f"weights must be {problem.samples} numbers of at least 0 with a sum above 0, one an outcome."
                )
            weights = weights if problem.weights is None else weights * problem.weights
        problem = replace(problem, weights=None)  # they are those of the law, which is counted
        target = self._symbols(problem.target)
        terms = [plug_in(code, target, weights)[0] for code in problem.prepared.own]
        return decompose(terms, estimator=self, problem=problem, resolution=f"every outcome, {self._binned(problem)}")

    def _symbols(self, values: npt.NDArray[Any]) -> Codes:
        if not self._real(values):
            return relabel(values)
        low, high = values.min(), values.max()
        return relabel(np.minimum((values - low) / (high - low) * self.bins, self.bins - 1).astype(np.int64))

    def _real(self, values: npt.NDArray[Any]) -> bool:
        return values.dtype.kind == "f" and len(np.unique(values)) > self.bins

    def _binned(self, problem: Problem) -> str:
        real = any(map(self._real, (problem.target, *problem.features)))
        return f"real values in {self.bins} bins" if real else "values as they are"
