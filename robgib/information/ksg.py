"""Nearest-neighbour information of few dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor

from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.discrete import combine, subset_codes
from robgib.information.preprocessing import SALTS, Codes, columns_or_codes, normal_scores
from robgib.options import Count, NonNegative

__all__ = [
    "KSG",
]

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
_LOG2 = float(np.log(2))
_TIE = 1e-10  # standard deviations of the noise that tells equal real values apart (Kraskov et al. use the same)
_SHARED = float(np.sqrt(2))  # error of the mean over that of independent samples
_WIDER = 4  # times the neighbours, to see what their distance costs
_MISSING = 0.75  # standard deviation of what a figure misses, in what smaller neighbourhoods would add
_CURVED = 0.1  # bits that smaller neighbourhoods would add, above which a figure is marked
_TREE = 8  # real dimensions above which looking at all pairs is faster than a tree
_CHUNK = 512  # rows of distances at once
_ROWS = 64  # samples whose distances to all are held at once: the matrices stay in the cache
_LOOKS = 12  # times that a subset's distances are gone through, as long each as a coordinate takes
_MOST = 1e11  # coordinates compared: some minutes
_RARE = 0.05  # share of samples alone with their symbols, above which a figure is marked


@register_estimator("ksg")
@dataclass(frozen=True)
class KSG(Estimator):
    """k-nearest-neighbour information (Kraskov, Stögbauer & Grassberger 2004, estimator 1, max-norm).

    With ρ_i the distance of sample i to its k-th neighbour in (X_S, T), and c_X, c_T how many samples, itself
    included, lie nearer than ρ_i in X_S and in T alone: I = ψ(k) + ψ(N) − ⟨ψ(c_X) + ψ(c_T)⟩, eq. 8. Columns are
    replaced by their normal scores, which changes no information: long tails would blur the neighbourhoods.

    Class targets and integer features: neighbours are looked for, and counted, only among samples with the same
    symbols (Ross 2014). The mixed estimator of Gao et al. (2017) is the same where the distance of two classes
    exceeds those within them, but needs that distance chosen, and gives classes of k members or fewer nothing; here
    such a class has as many neighbours as it has. A sample alone with its symbols counts as 0 bits. With
    symbols only, the counts themselves give ψ(n_XT) + ψ(N) − ψ(n_X) − ψ(n_T).

    Real values that occur twice get noise of 1e-10 standard deviations, the same for all features, so that
    duplicated features stay duplicates; atoms (such as the zeros of a ReLU) thereby count as symbols do.

    Error: the per-sample values share neighbours. Measured on Gaussian and independent data of 2 to 8 dimensions,
    the estimate scatters 1.1 to 1.6 times as much as the mean of that many independent values would; √2 is taken.

    Limits: the density is taken as even over a neighbourhood, which fails where the dependence is strong (Gao,
    Ver Steeg & Galstyan 2015) or the dimension high; then the figure is low. That error goes as ρ², or as
    k^(2/d) in d dimensions, so that (I(k) − I(4k))/(4^(2/d) − 1) tells what smaller neighbourhoods would add:
    0.8 to 2 times the measured shortfall. It is in the intervals, and above 0.1 bits the figure is
    flagged.

    Fields:
        k: neighbours. More are steadier and blur more.
        noise: variance of the independent noise added to a real target's standardised columns: the resolution.
            0 adds none; a deterministic target then has infinite information, and a marked figure.
        limit: most real dimensions of features and target together without a note.
        workers: threads of the neighbour search; -1 takes all cores.
        seed: of the noise.
    """

    name: ClassVar[str] = "ksg"
    bound: ClassVar[str] = "none (low when the dependence is strong)"
    summary: ClassVar[str] = "nearest neighbours, Kraskov's form or Ross's for classes; for few dimensions"
    guide: ClassVar[str] = (
        "It assumes no form of dependence and no codes. With some thousand samples it is almost unbiased for one "
        "feature dimension and one target dimension, or two feature dimensions and classes. With every further "
        "dimension, and under strong dependence, it underestimates: already three real dimensions cost up to 0.07 bit "
        "at 2,000 samples, and the interval does not cover that. It therefore claims no complete regime. A figure "
        "that smaller neighbourhoods would still raise is flagged."
    )
    k: Count = 4
    noise: NonNegative = 0.0
    limit: Count = 3
    workers: int = -1
    seed: int = 0

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> list[_Space]:
        """The spaces of the 2n+1 subsets."""
        ties = self._ties(len(features[0]))[0]
        sides = [_split(x, ties) for x in features]
        codes = subset_codes([c for _, c in sides])
        everything = list(range(len(features)))
        subsets = [everything, *([i] for i in everything), *([j for j in everything if j != i] for i in everything)]
        nothing = np.zeros((len(features[0]), 0))
        return [_Space(np.hstack([nothing, *(sides[i][0] for i in s)]), c) for s, c in zip(subsets, codes, strict=True)]

    def _ties(self, samples: int) -> Vector:
        """Noise that tells equal values apart, of the features and of the target (2, N)."""
        return _TIE * np.random.default_rng([self.seed, SALTS["ksg"]]).standard_normal((2, samples))

    def _estimate(self, problem: Problem) -> Decomposition:
        samples, n = problem.samples, len(problem.features)
        least = _WIDER * self.k + 2
        if samples < least:
            raise RobGIBError(f"{samples} samples are too few for {self.k} neighbours; give {least} or a smaller k.")
        dims = sum(v.shape[1] for v in (*problem.features, problem.target) if v.dtype.kind == "f")
        if dims > _TREE and samples**2 * (dims + _LOOKS * (2 * n + 1)) > _MOST:
            raise RobGIBError(
                f"ksg would take minutes over {samples} samples of {dims} real dimensions, far outside its regime of "
                f"{self.limit}; give fewer samples, or choose another estimator."
            )
        rng = np.random.default_rng([self.seed, SALTS["ksg"]])
        rng.standard_normal((2, samples))  # the noise that separated equal values
        values_t, codes_t = _split(problem.target, self._ties(samples)[1])
        if self.noise > 0:
            values_t = values_t + np.sqrt(self.noise) * rng.standard_normal(values_t.shape)
        target = _Space(values_t, codes_t)
        pointwise, floor, flagged = np.zeros((samples, 2 * n + 1)), np.zeros(2 * n + 1), np.zeros(2 * n + 1, bool)
        spaces: list[_Space] = problem.prepared.own
        if spaces[0].values.shape[1] + values_t.shape[1] > _TREE and not any(s.codes.any() for s in spaces):
            around: Iterable[tuple[Vector, Vector]] = self._all_pairs([s.values for s in spaces[1 : n + 1]], target)
        else:
            around = (self._around(s, target) for s in spaces)
        for j, (space, (near, wide)) in enumerate(zip(spaces, around, strict=True)):
            pointwise[:, j], floor[j], flagged[j] = self._term(space, target, near, wide)
        if problem.weights is not None:  # here, since the errors below are not those of independent values
            weighted = problem.weights[:, None] * pointwise
            pointwise = weighted + (1 - problem.weights[:, None]) * weighted.mean(0)
            problem = replace(problem, weights=None)
        terms = pointwise.mean(0)
        dims_t = values_t.shape[1]
        of_target = f"target {dims_t} dimensions" if dims_t else f"target {int(codes_t.max()) + 1} symbols"
        added = f", noise variance {self.noise:g}" if self.noise > 0 and dims_t else ""
        return decompose(
            terms,
            estimator=self,
            problem=problem,
            resolution=f"{self.k} nearest neighbours, {of_target}{added}",
            pointwise=terms + _SHARED * (pointwise - terms),
            floor=floor,
            flagged=flagged,
            notes=self._notes(not dims_t and not codes_t.any(), flagged),
        )

    def outside(self, problem: Problem) -> list[str]:
        """See :meth:`Estimator.outside`."""
        dims = sum(v.shape[1] for v in (*problem.features, problem.target) if v.dtype.kind == "f")
        if dims <= self.limit:
            return []
        return [f"{dims} real dimensions of features and target, above {self.limit}"]

    def _notes(self, nothing: bool, flagged: npt.NDArray[np.bool_]) -> list[str]:
        notes = []
        if flagged.any():
            notes.append("too few samples for so strong a dependence or so many dimensions: flagged figures are low")
        if nothing:
            notes.append("the target takes one value only: it carries no information")
        return notes

    def _term(self, x: _Space, t: _Space, near: Vector, wide: Vector) -> tuple[Vector, float, bool]:
        """Per-sample information (N,) in bits, the least error of its mean, and whether it is marked.

        ``near`` and ``wide`` are what fewer and more neighbours give.
        """
        samples, codes = len(x.codes), combine(x.codes, t.codes)
        dims = x.values.shape[1] + t.values.shape[1]
        alone = bool((np.bincount(codes)[codes] == 1).mean() > _RARE)
        if not dims:
            chance = np.sqrt((len(x.counts) - 1) * (len(t.counts) - 1) / 2) / samples / _LOG2
            return near, chance, alone
        added = (near - wide) / (_WIDER ** (2 / dims) - 1)
        error = _SHARED * added.std() / np.sqrt(samples)
        missing = max(float(added.mean()), 0.0)
        return near, _MISSING * missing, alone or missing > max(_CURVED, error)

    def _around(self, x: _Space, t: _Space) -> tuple[Vector, Vector]:
        """Estimates (N,) by k and by more neighbours, or by as many as share the symbols of the sample."""
        joint = _Space(np.hstack([x.values, t.values]), combine(x.codes, t.codes))
        members = joint.counts[joint.codes]
        if not joint.values.shape[1]:
            counts = digamma(x.counts[x.codes]) + digamma(t.counts[t.codes])
            counted = np.asarray((digamma(members) + digamma(len(members)) - counts) / _LOG2)
            return counted, counted
        estimates = []
        for k in (self.k, _WIDER * self.k):
            radius = joint.distances(k, self.workers)
            near = x.within(radius, self.workers), t.within(radius, self.workers)
            estimates.append(_kraskov(np.minimum(k, members - 1), *near))
        return estimates[0], estimates[1]

    def _all_pairs(self, features: list[Vector], t: _Space) -> list[tuple[Vector, Vector]]:
        """What k neighbours and more give (N,) for each of the 2n+1 subsets of real features, from one look at all
        pairs: a subset's distance is the largest of its features'."""
        n, samples = len(features), len(t.codes)
        members = t.counts[t.codes]
        sizes = [min(k, samples - 1) for k in (self.k, _WIDER * self.k)]
        within = np.zeros((2, 2, 2 * n + 1, samples), np.int64)  # neighbours few or many; in X_S, in T; subset; sample
        points = [torch.from_numpy(np.ascontiguousarray(v)) for v in features]
        goal, codes = torch.from_numpy(np.ascontiguousarray(t.values)), torch.from_numpy(t.codes)
        nothing = torch.zeros(1, samples, dtype=torch.float64)
        for start in range(0, samples, _ROWS):
            rows = slice(start, start + _ROWS)
            far = [torch.cdist(p[rows], p, p=float("inf")) for p in points]
            of_t = torch.cdist(goal[rows], goal, p=float("inf")) if goal.shape[1] else nothing
            if codes.any():
                of_t = torch.where(codes[rows, None] == codes, of_t, torch.inf)
            before, after = [nothing], [nothing]
            for one in far:
                before.append(torch.maximum(before[-1], one))
            for one in reversed(far):
                after.append(torch.maximum(after[-1], one))
            leave_one_out = (torch.maximum(before[i], after[n - 1 - i]) for i in range(n))
            for j, own in enumerate(itertools.chain([before[n]], far, leave_one_out)):
                nearest = torch.topk(torch.maximum(own, of_t), sizes[1] + 1, largest=False, sorted=True).values
                for which, size in enumerate(sizes):
                    # The first is the sample itself; a class of fewer has as many neighbours as it has.
                    last = torch.from_numpy(np.minimum(size, members[rows] - 1))[:, None]
                    radius = nearest.gather(1, last)
                    radius = torch.nextafter(radius, torch.zeros_like(radius))
                    within[which, 0, j, rows] = (own <= radius).sum(1).numpy()
                    within[which, 1, j, rows] = (of_t <= radius).sum(1).numpy()
        neighbours = [np.minimum(size, members - 1) for size in sizes]
        few, many = (
            [_kraskov(f, *pair) for pair in zip(*w, strict=True)] for f, w in zip(neighbours, within, strict=True)
        )
        return list(zip(few, many, strict=True))


def _kraskov(joint: Array, of_x: Array, of_t: Array) -> Vector:
    """Per-sample information (N,) in bits from numbers of neighbours: found jointly, and within their radius."""
    counts = digamma(of_x) + digamma(of_t)
    return np.where(joint > 0, digamma(np.maximum(joint, 1)) + digamma(len(joint)) - counts, 0.0) / _LOG2


class _Space:
    """Samples with real coordinates (N, d), apart from each other where their codes (N,) differ; max-norm."""

    def __init__(self, values: Vector, codes: Codes) -> None:
        self.values, self.codes = values, codes
        self.counts = np.bincount(codes)
        self.members = np.split(np.argsort(codes, kind="stable"), np.cumsum(self.counts)[:-1])
        trees = 0 < values.shape[1] <= _TREE
        self.trees = [cKDTree(values[m]) for m in self.members] if trees else []

    def distances(self, k: int, workers: int) -> Vector:
        """The largest distance below that of the k-th neighbour, or the last one, of the same code (N,)."""
        radius = np.zeros(len(self.codes))
        if self.values.shape[1] > _TREE:
            for rows in self.members:
                nth = min(k, len(rows) - 1)
                for part, far in _pairs(self.values[rows]):
                    radius[rows[part]] = far.kthvalue(nth + 1, dim=1).values.numpy()  # the first is the sample itself
            return np.nextafter(radius, 0)
        for tree, rows in zip(self.trees, self.members, strict=True):
            nth = min(k, len(rows) - 1) + 1  # the first is the sample itself
            radius[rows] = tree.query(self.values[rows], [nth], p=np.inf, workers=workers)[0][:, 0]
        return np.nextafter(radius, 0)

    def within(self, radius: Vector, workers: int) -> npt.NDArray[np.int64]:
        """How many samples of the same code lie within each one's radius (N,), itself included."""
        if not self.values.shape[1]:
            return np.asarray(self.counts[self.codes])
        counts = np.zeros(len(self.codes), np.int64)
        if self.values.shape[1] > _TREE:
            for rows in self.members:
                for part, far in _pairs(self.values[rows]):
                    near = torch.from_numpy(radius[rows[part]])[:, None]
                    counts[rows[part]] = (far <= near).sum(1).numpy()
            return counts
        for tree, rows in zip(self.trees, self.members, strict=True):
            counts[rows] = tree.query_ball_point(
                self.values[rows], radius[rows], p=np.inf, workers=workers, return_length=True
            )
        return counts


def _pairs(values: Vector) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time, and their max-norm distances to all rows (rows, N)."""
    points = torch.from_numpy(np.ascontiguousarray(values))
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, torch.cdist(points[part], points, p=float("inf"))


def _split(values: Array, ties: Vector) -> tuple[Vector, Codes]:
    """Standardised columns that vary, without ties, and codes: a variable has one or the other."""
    scores, codes = columns_or_codes(values)
    if scores.shape[1]:
        scores = normal_scores(scores)
    ordered = np.sort(scores, axis=0)
    tied = (ordered[1:] == ordered[:-1]).any(0)
    return scores + np.where(tied, ties[:, None], 0.0), codes
