"""The truth, where every outcome can be listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from robgib.errors import RobGIBError
from robgib.information.discrete import plug_in, relabel, subset_codes
from robgib.information.estimator import Decomposition, Estimator, Problem, decompose

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(Estimator):
    """Information of an enumerated distribution: the samples are all its outcomes.

    Fields:
        weights: probability of each outcome (N,), up to a factor; None weighs them alike.
    """

    name: ClassVar[str] = "exact"
    bound: ClassVar[str] = "exact"
    summary: ClassVar[str] = "enumerated discrete distribution: the samples are all outcomes, each with its weight"
    least_samples: ClassVar[int] = 1
    guide: ClassVar[str] = (
        "No estimate: the terms of a distribution whose outcomes are all listed, to rounding error. It is the truth "
        "against which the discrete tasks are held; on samples it is the plain plug-in, biased upwards."
    )
    weights: npt.ArrayLike | None = None

    def _estimate(self, problem: Problem) -> Decomposition:
        weights = None
        if self.weights is not None:
            weights = np.asarray(self.weights, float)
            if weights.shape != (problem.samples,) or not (weights >= 0).all() or not weights.sum() > 0:
                raise RobGIBError(
                    f"weights must be {problem.samples} numbers of at least 0 with a sum above 0, one an outcome."
                )
        target = relabel(problem.target)
        codes = subset_codes([relabel(x) for x in problem.features])
        terms = [plug_in(code, target, weights)[0] for code in codes]
        return decompose(terms, estimator=self, problem=problem, resolution="every outcome")
