"""Counting estimates on quantised variables, corrected for bias and for chance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.discrete import adjusted_by, combine, subset_codes
from robgib.information.preprocessing import SALTS, Codes, codebook, default_size, encode
from robgib.information.views import RATE, View

__all__ = [
    "Binned",
]

Array = npt.NDArray[Any]
Symbols = Annotated[int, Field(ge=2)]


@register_estimator("binned")
@dataclass(frozen=True)
class Binned(Estimator):
    """Plug-in information of quantile- or k-means-coded variables.

    Corrected by the jackknife (Zahl 1977), then adjusted for chance as Vinh, Epps & Bailey (2010) do: with E the
    same figure on shuffled targets and H the lesser entropy, I becomes H (I − E)/(H − E), which is 0 at chance
    and H where one side determines the other.

    When the features are real and their joint symbols are too many for the samples, X is coded by one k-means, and
    each X_-i by its centroids without feature i: squared distances add over features, so that one codebook and one
    pass over the samples answer for all, at one number of codes that the samples can support.

    Fields:
        codes: symbols a feature; None is the cube root of the samples, within 4 and 16.
        target_codes: symbols of a real target; None likewise.
        joint_codes: symbols of that codebook; None is a fifth of the samples per target symbol, within 8 and 64.
        shuffles: permutations of the target that measure chance.
        seed: of k-means and the permutations.
    """

    name: ClassVar[str] = "binned"
    bound: ClassVar[str] = "lower (information between codes)"
    summary: ClassVar[str] = "quantile or k-means codes, plug-in counts with jackknife and chance correction"
    regimes: ClassVar[tuple[str, ...]] = ("discrete", "parity")
    codes_target: ClassVar[bool] = True
    view: ClassVar[View] = RATE
    guide: ClassVar[str] = (
        "Its figures are information between codes: exact for discrete variables if the joint symbols are far fewer "
        "than the samples, and a lower bound, often a loose one, of the information between real variables. It needs "
        "no model, and its failure is visible: a figure is flagged if chance alone reaches half of the ceiling, or a "
        "count comes within 5% of log2 of the samples. Real features too many to count jointly are coded by one "
        "k-means codebook. Such figures compare layers and models at one resolution, but I(X;T) may be lower than the "
        "information of the layer about the label, since the code of X loses more than the code of the layer."
    )
    codes: Symbols | None = None
    target_codes: Symbols | None = None
    joint_codes: Symbols | None = None
    shuffles: Annotated[int, Field(ge=0)] = 8
    seed: int = 0

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> _Codes:
        size = self.codes or default_size(len(features[0]))
        single_feature = [encode(x, fit, size, self.seed) for x, fit in zip(features, fit_features, strict=True)]
        joint = single_feature[0]
        for code in single_feature[1:]:
            joint = combine(joint, code)
        return _Codes(single_feature, int(joint.max()) + 1)

    def _estimate(self, problem: Problem) -> Decomposition:
        samples = problem.samples
        size_t = self.target_codes or default_size(samples)
        target = encode(problem.target, problem.fit_target, size_t, self.seed)
        symbols_t = int(target.max()) + 1
        codes, how = self._subset_codes(problem, symbols_t)

        rng = np.random.default_rng([self.seed, SALTS["binned"]])
        shuffled = [target[rng.permutation(samples)] for _ in range(self.shuffles)]
        counts = [adjusted_by(code, target, shuffled, problem.weights) for code in codes]
        terms, floor, flagged = (np.array([getattr(f, key) for f in counts]) for key in ("value", "floor", "flagged"))
        pointwise = np.stack([f.pointwise for f in counts], 1)
        if problem.weights is not None:  # here: the counts, too, are those of the weighted law
            whole = problem.weights @ pointwise / samples
            pointwise = whole + problem.weights[:, None] * (pointwise - whole)
            problem = replace(problem, weights=None)
        notes = []
        if flagged.any():
            notes.append("too few samples for the joint symbols: flagged figures are at the ceiling of counting")
        if any(v.dtype.kind == "f" for v in (*problem.features, problem.target)):
            notes.append("real values are coded: lower bounds of the information between the values themselves")
        if len(np.unique(target)) < 2:
            notes.append("the target takes one symbol only: it carries no information")
        return decompose(
            terms,
            estimator=self,
            problem=problem,
            resolution=f"target {symbols_t} codes, {how}",
            pointwise=pointwise,
            floor=floor,
            flagged=flagged,
            notes=notes,
        )

    def _subset_codes(self, problem: Problem, symbols_t: int) -> tuple[list[Codes], str]:
        """Codes of the 2n+1 subsets, and what they are."""
        own: _Codes = problem.prepared.own
        single_feature = own.single_feature
        how = f"features {max(int(c.max()) + 1 for c in single_feature)} codes each"
        crowded = len(single_feature) > 1 and own.joint * symbols_t > problem.samples
        size = 0
        if crowded and all(x.dtype.kind == "f" for x in problem.features):
            size = self.joint_codes or int(np.clip(problem.samples / (5 * symbols_t), 8, 64))
            how += f", X and each X_-i by one codebook of {size}"
        if size not in own.subsets:
            if size:
                whole, *leave_one_out = codebook(problem.features, problem.prepared.fit_features, size, self.seed)
                own.subsets[size] = [whole, *single_feature, *leave_one_out]
            else:
                own.subsets[size] = subset_codes(single_feature)
        return own.subsets[size], how


@dataclass(frozen=True)
class _Codes:
    """Codes of the features.

    Attributes:
        single_feature: codes (N,) of each feature.
        joint: how many symbols they have together.
        subsets: codes of the 2n+1 subsets by the size of their codebook, 0 without one; made when a target asks.
    """

    single_feature: list[Codes]
    joint: int
    subsets: dict[int, list[Codes]] = field(default_factory=dict)
