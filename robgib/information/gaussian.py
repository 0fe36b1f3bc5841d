"""Closed-form information under a Gaussian copula, every feature from two precision matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.special import digamma
from scipy.stats import norm
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.discrete import entropy
from robgib.information.preprocessing import SALTS, Vector, normal_scores, relabel, standardised
from robgib.options import NonNegative
from robgib.runtime import one_thread

__all__ = [
    "Gaussian",
]

_LOG2 = float(np.log(2))
_RIDGE = 1e-9  # added to unit variances: keeps an exactly collinear column from ending in an error
_A_CLASS = 20  # samples a class below which its figure falls short: 0.53 of 0.79 bits at 10
_SINGULAR = 1e-6  # smallest eigenvalue of the correlations below which a figure is marked


def _log_det_bias(dims: int, freedom: Vector) -> Vector:
    """E ln|S| − ln|Σ| in nats for a sample covariance with ``freedom`` degrees (Wishart)."""
    orders = np.arange(dims)
    return np.asarray(digamma((freedom[:, None] - orders) / 2).sum(1) - dims * np.log(freedom / 2), dtype=np.float64)


def _information_bias(a: int, b: int, freedom: Vector) -> Vector:
    """Bias in bits of the plug-in Gaussian information between blocks of a and b columns."""
    return (_log_det_bias(a, freedom) + _log_det_bias(b, freedom) - _log_det_bias(a + b, freedom)) / 2 / _LOG2


@register_estimator("gaussian")
@dataclass(frozen=True)
class Gaussian(Estimator):
    """Gaussian-copula information (Ince et al. 2017), with the conditional terms of all features at once.

    Real target: I(X;T) = ½ log2(|Σ_X||Σ_T|/|Σ_XT|) on normal scores. With the precision matrices P = Σ_X⁻¹
    and Q = Σ_XT⁻¹, I(X_i;T|X_-i) = ½ log2(|Q_ii|/|P_ii|), so every I(X_-i;T) follows from two inverses.
    The plug-in's bias under the Wishart law is removed (Misra, Singh & Demchuk 2005); covariances are not
    shrunk, since shrinkage biases the information by far more than it steadies it. Error: the jackknife
    over groups of samples.

    Class target: the Gaussian classifier (one Gaussian a class, covariances partly pooled) answers for
    every subset from one fit; I is H(Y) less its held-out, temperature-calibrated cross-entropy: usable
    information (Xu et al. 2020), which is at most I in expectation.

    Fields:
        noise: variance of the independent noise added to the target's normal scores (unit variance): the
            resolution. 0 adds none; a deterministic target may then be singular.
        groups: jackknife groups.
        folds: of the cross-fit for class targets.
        seed: of the noise, the groups and the folds.
    """

    name: ClassVar[str] = "gaussian"
    bound: ClassVar[str] = "none (exact when the copula is Gaussian); class targets: lower"
    summary: ClassVar[str] = "Gaussian copula, closed form, all features from two precision matrices"
    regimes: ClassVar[tuple[str, ...]] = ("gaussian", "marginals", "classes", "network")
    guide: ClassVar[str] = (
        "For a real target it is exact under a Gaussian copula, with any monotone change of single coordinates. It "
        "does not detect other dependence (such as a XOR of signs), and figures may then be too low or too high. For "
        "class labels it is a lower bound, tight for Gaussian classes. It is reliable from about three samples per "
        "dimension, and the fastest estimator. With noise variance v its ceiling is d/2 log2(1 + 1/v) bits for a "
        "target of d dimensions. Without noise, a target that the features determine has no finite figure, which is "
        "flagged."
    )
    noise: NonNegative = 0.0
    groups: Annotated[int, Field(ge=2)] = 20
    folds: Annotated[int, Field(ge=2)] = 5
    seed: int = 0

    def _prepare(self, features: tuple[Vector, ...], fit_features: tuple[Vector, ...]) -> dict[str, list[Vector]]:
        return {}  # normal scores, made when a real target asks: class targets do without

    def _estimate(self, problem: Problem) -> Decomposition:
        if problem.discrete_target:
            return self._classes(problem)
        own = problem.prepared.own
        if "scores" not in own:
            own["scores"] = [normal_scores(x) for x in problem.features]
        return self._real(problem, own["scores"], normal_scores(problem.target))

    def outside(self, problem: Problem) -> list[str]:
        """See :meth:`Estimator.outside`."""
        integers = sum(x.dtype.kind in "iu" for x in problem.features)
        limits = [f"{integers} features are discrete codes, which no Gaussian fits"] if integers else []
        dims = sum(x.shape[1] for x in problem.features) + problem.target.shape[1]
        if not problem.discrete_target and problem.samples < 3 * dims:
            limits.append(f"{problem.samples} samples are few for {dims} dimensions")
        values = len(np.unique(problem.target)) if problem.discrete_target else 0
        if problem.samples < _A_CLASS * values:
            limits.append(
                f"{values} whole numbers are taken as classes, with {problem.samples / values:.0f} samples each, which "
                "is too few; give a quantity as real numbers"
            )
        return limits

    def _real(self, problem: Problem, scores: list[Vector], target: Vector) -> Decomposition:
        rng = np.random.default_rng([self.seed, SALTS["gaussian"]])
        samples, dims_t = problem.samples, target.shape[1]
        if self.noise > 0:
            target = target + np.sqrt(self.noise) * rng.standard_normal(target.shape)
        sizes = [s.shape[1] for s in scores]
        dims = sum(sizes) + dims_t
        resolution = f"target {dims_t} dimensions" + (f", noise variance {self.noise:g}" if self.noise else "")
        k = min(self.groups, samples)
        if samples - -(-samples // k) - 1 < dims + 1:
            nothing = np.full(2 * len(scores) + 1, np.nan)
            why = f"{samples} samples are too few for {dims} dimensions: not estimable"
            return decompose(
                nothing, estimator=self, problem=problem, resolution=resolution, pointwise=None, notes=[why]
            )
        joint = np.hstack([*scores, target])
        covariance, freedom = _leave_group_out(joint, rng.permutation(samples) % k, k)
        terms, nearest = _all_terms(covariance, freedom, sizes, dims_t)
        notes = []
        if nearest < _SINGULAR:
            notes.append("near-singular: a column is nearly a linear function of the others")
        bent = not_gaussian(joint[:, :-dims_t], joint[:, -dims_t:])
        if bent:
            notes.append("the copula is not Gaussian: flagged figures include its linear dependence only")
        ceiling = dims_t / 2 * np.log2(1 + 1 / self.noise) if self.noise > 0 else np.inf
        blocks = np.array([sum(sizes), *sizes, *(sum(sizes) - s for s in sizes)])
        floor = np.sqrt(blocks * dims_t / 2) / samples / _LOG2
        return decompose(
            terms[0],
            estimator=self,
            problem=problem,
            resolution=resolution,
            replicates=terms[1:],
            pointwise=None if problem.weights is None else _pointwise(joint, covariance[0], sizes),
            floor=floor,
            flagged=(terms[0] >= 0.95 * ceiling) | ((nearest < _SINGULAR) & (terms[0] > 0)) | bent,
            notes=notes,
        )

    def _classes(self, problem: Problem) -> Decomposition:
        labels = relabel(problem.target)
        counts = np.bincount(labels)
        samples, n, joint = len(labels), len(problem.features), standardised(np.hstack(problem.features))
        resolution = f"features {joint.shape[1]} dimensions, {len(counts)} classes"
        splitter: Any = StratifiedKFold if counts.min() >= self.folds else KFold
        folds = splitter(self.folds, shuffle=True, random_state=self.seed)
        edges = np.cumsum([0, *(x.shape[1] for x in problem.features)])
        blocks = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        pointwise = np.zeros((samples, 2 * n + 1))
        # Many small products: threads would only wait for each other, for minutes on a busy machine.
        with one_thread():
            for train, test in folds.split(joint, labels):
                classifier = _GaussianClassifier(joint[train], labels[train], len(counts), blocks, self.seed)
                pointwise[test] = classifier.information(joint[test], labels[test])
        # A predictor may ignore what it is shown: where that does better, usable information is 0.
        pointwise[:, pointwise.mean(0) < 0] = 0.0
        terms = pointwise.mean(0)
        notes = ["at the ceiling H(Y)"] if terms[0] >= 0.98 * entropy(counts.astype(float)) else []
        return decompose(
            terms,
            estimator=self,
            problem=problem,
            resolution=resolution,
            pointwise=pointwise,
            floor=1 / samples / _LOG2,
            notes=notes,
        )


def not_gaussian(x: Vector, t: Vector, level: float = 0.01) -> bool:
    """Whether normal scores of features (N, a) and a target (N, b) depend on each other as no Gaussian's do.

    What a Gaussian target has beyond a linear function of the features is independent of them, with one variance. Of
    each target column's residual e, e and e² − 1 are held against products of two features, third Hermite polynomials,
    and features times the squared radius; and the squares of each feature and target against their squared correlation.
    Each mean is compared with its empirical error, at ``level`` for all of them together (Bonferroni). Dependence of
    higher order, such as that of fast waves, is left unseen.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2000, 2))
    >>> noise = rng.standard_normal((2000, 1))
    >>> not_gaussian(x, x[:, :1] + noise), not_gaussian(x, x[:, :1] * x[:, 1:] + noise)
    (False, True)
    """
    x, t = standardised(x), standardised(t)
    x, t = x[:, x.any(0)], t[:, t.any(0)]
    samples, dims = x.shape
    if samples < 100 or samples < 5 * dims or not dims:
        return False  # the tests' errors would mean nothing
    residual = standardised(t - x @ np.linalg.lstsq(x, t, rcond=None)[0])
    radius = (x**2).sum(1, keepdims=True) - dims
    of_x = np.hstack([x**3 - 3 * x, x * radius - 2 * x])
    largest, tests = 0.0, 0
    for e in residual[:, residual.any(0)].T:
        for moments in (e, e**2 - 1):
            moments = moments - moments.mean()
            # Products of two features, by their matrix, and the rest one by one.
            mean = (x * moments[:, None]).T @ x / samples
            square = ((x * moments[:, None]) ** 2).T @ x**2 / samples
            single = of_x * moments[:, None]
            scores = [
                mean / np.sqrt(np.maximum(square - mean**2, 1e-12) / samples),
                single.mean(0) / (single.std(0) / np.sqrt(samples) + 1e-12),
                (x * moments[:, None]).mean(0) / ((x * moments[:, None]).std(0) / np.sqrt(samples) + 1e-12),
            ]
            largest = max(largest, *(float(np.abs(z).max()) for z in scores))
            tests += dims * (dims + 1) // 2 + 3 * dims
    for column in t.T:
        rho = x.T @ column / samples
        each = (x**2 - 1) * (column[:, None] ** 2 - 1) / 2 - 2 * rho * (x * column[:, None] - rho)
        largest = max(largest, float(np.abs((each.mean(0) - rho**2) / (each.std(0) / np.sqrt(samples) + 1e-12)).max()))
        tests += dims
    return tests > 0 and largest > float(norm.isf(level / 2 / tests))


def _leave_group_out(joint: Vector, group: npt.NDArray[np.int64], k: int) -> tuple[Tensor, Vector]:
    """Covariances of all samples and of all but each group (k+1, d, d), with their degrees of freedom."""
    order = np.argsort(group, kind="stable")
    data = torch.from_numpy(joint[order])
    counts = np.bincount(group, minlength=k)
    parts = data.split(counts.tolist())
    sums = torch.stack([p.sum(0) for p in parts])
    products = torch.stack([p.T @ p for p in parts])
    remaining = torch.from_numpy(np.concatenate([[len(joint)], len(joint) - counts]).astype(np.float64))
    all_sums = torch.cat([sums.sum(0, keepdim=True), sums.sum(0) - sums])
    all_products = torch.cat([products.sum(0, keepdim=True), products.sum(0) - products])
    mean = all_sums / remaining[:, None]
    covariance = (all_products - remaining[:, None, None] * mean[:, :, None] * mean[:, None, :]) / (
        remaining[:, None, None] - 1
    )
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal[diagonal < 1e-9] = 1.0  # a column without variance informs of nothing
    diagonal += _RIDGE
    return covariance, remaining.numpy() - 1


def _all_terms(covariance: Tensor, freedom: Vector, sizes: list[int], dims_t: int) -> tuple[Vector, float]:
    """The 2n+1 bias-corrected terms in bits for each covariance (K, d, d), and the least eigenvalue."""
    dims_x = sum(sizes)
    of_x, of_t = covariance[:, :dims_x, :dims_x], covariance[:, dims_x:, dims_x:]
    log_x, log_t, log_joint = (_log_det(m) for m in (of_x, of_t, covariance))
    total = (log_x + log_t - log_joint) / 2 / _LOG2
    precision_x = torch.linalg.inv(of_x)
    precision = torch.linalg.inv(covariance)
    # What T leaves unexplained of each feature, without its companions: Σ_ii − Σ_iT Σ_T⁻¹ Σ_Ti.
    across = covariance[:, :dims_x, dims_x:]
    explained = across @ torch.linalg.solve(of_t, across.transpose(1, 2))
    single_feature, conditionals = [], []
    start = 0
    for size in sizes:
        block = slice(start, start + size)
        start += size
        own = of_x[:, block, block]
        single_feature.append((_log_det(own) - _log_det(own - explained[:, block, block])) / 2 / _LOG2)
        conditionals.append((_log_det(precision[:, block, block]) - _log_det(precision_x[:, block, block])) / 2 / _LOG2)
    raw = np.stack(
        [total.numpy(), *(s.numpy() for s in single_feature), *((total - c).numpy() for c in conditionals)], 1
    )
    blocks = [dims_x, *sizes, *(dims_x - s for s in sizes)]
    known = {b: _information_bias(b, dims_t, freedom) for b in set(blocks)}
    correlation = covariance[0] / torch.outer(covariance[0].diagonal().sqrt(), covariance[0].diagonal().sqrt())
    return raw - np.stack([known[b] for b in blocks], 1), float(torch.linalg.eigvalsh(correlation)[0])


def _pointwise(joint: Vector, covariance: Tensor, sizes: list[int]) -> Vector:
    """Per-sample log2 p(x_S,t)/(p(x_S)p(t)) under the fitted Gaussian, (N, 2n+1).

    Leaving block i out of a squared distance with precision P and g = Px takes g_iᵀ P_ii⁻¹ g_i from it.
    """
    values = torch.from_numpy(joint - joint.mean(0))
    dims_x = sum(sizes)
    blocks = [slice(b - a, b) for a, b in zip(sizes, np.cumsum(sizes), strict=True)]

    def distance(columns: Tensor, inside: Tensor) -> Tensor:
        return (columns * torch.linalg.solve(inside, columns.T).T).sum(1)

    def without(columns: Tensor, inside: Tensor) -> tuple[Tensor, list[Tensor]]:
        precision = torch.linalg.inv(inside)
        g = columns @ precision
        taken = [distance(g[:, b], precision[b, b]) for b in blocks]
        return (columns * g).sum(1), taken

    x, t = values[:, :dims_x], values[:, dims_x:]
    of_t = distance(t, covariance[dims_x:, dims_x:])
    of_x, taken_x = without(x, covariance[:dims_x, :dims_x])
    of_joint, taken = without(values, covariance)
    rows = [of_x + of_t - of_joint]
    for b in blocks:
        index = torch.cat([torch.arange(b.start, b.stop), torch.arange(dims_x, len(covariance))])
        both = distance(values[:, index], covariance[index][:, index])
        rows.append(distance(x[:, b], covariance[b, b]) + of_t - both)
    rows += [of_x - a + of_t - (of_joint - c) for a, c in zip(taken_x, taken, strict=True)]
    deviations = torch.stack(rows, 1) / 2 / _LOG2
    plain, _ = _all_terms(covariance[None], np.array([1e12]), sizes, len(covariance) - dims_x)
    return np.asarray(deviations - deviations.mean(0) + torch.from_numpy(plain))


def _log_det(matrices: Tensor) -> Tensor:
    if matrices.shape[-1] == 0:
        return torch.zeros(matrices.shape[:-2], dtype=matrices.dtype)
    return torch.linalg.slogdet(matrices)[1]


class _GaussianClassifier:
    """One Gaussian a class; its answers for all 2n+1 subsets of blocks come from one fit.

    With precision P of a class and g = P(x − μ), leaving block i out changes the squared distance by
    −g_iᵀ P_ii⁻¹ g_i and the log-determinant by +log|P_ii|.
    """

    _POOLING = (0.0, 0.25, 0.5, 0.75, 1.0)
    _SHARPNESS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    _PRIOR_COUNTS = (1, 3, 10)

    def __init__(self, x: Vector, y: npt.NDArray[np.int64], classes: int, blocks: list[slice], seed: int) -> None:
        self.blocks, self.classes = blocks, classes
        validation = np.random.default_rng(seed).random(len(y)) < 0.25
        lowest = np.inf
        for pooling in self._POOLING:
            self._fit(x[~validation], y[~validation], pooling)
            scores = self._log_likelihoods(x[validation])
            # Share of the prior in the answer: having seen n samples right, expect the next to be wrong with
            # 1/(n + 2) (Laplace's rule), or a single sure and wrong answer would cost without bound.
            priors = [d / (len(y) + 2) for d in self._PRIOR_COUNTS]
            grid = [(sharpness, prior) for sharpness in self._SHARPNESS for prior in priors]
            tempered = [self._tempered(scores, y[validation], sharpness) for sharpness in self._SHARPNESS]
            losses = np.stack([-self._mixed(sure, y[validation], d).mean(1) for sure in tempered for d in priors])
            if losses[:, 0].min() < lowest:
                lowest, best = losses[:, 0].min(), pooling
                self.sharpness, self.prior_share = np.array(grid)[losses.argmin(0)].T
        self._fit(x, y, best)

    def _fit(self, x: Vector, y: npt.NDArray[np.int64], pooling: float) -> None:
        counts = np.bincount(y, minlength=self.classes)
        self.log_prior = np.log((counts + 0.5) / (counts + 0.5).sum())
        dims = x.shape[1]
        self.means = np.zeros((self.classes, dims))
        within = np.zeros((self.classes, dims, dims))
        for c in range(self.classes):
            if counts[c]:
                rows = x[y == c]
                self.means[c] = rows.mean(0)
                within[c] = (rows - self.means[c]).T @ (rows - self.means[c])
        pooled = within.sum(0) / max(len(y) - self.classes, 1)
        own = within / np.maximum(counts - 1, 1)[:, None, None]
        own[counts < 2] = pooled
        covariance = (1 - pooling) * own + pooling * pooled + 1e-3 * np.eye(dims)
        self.precision = np.linalg.inv(covariance)
        self.log_det = np.linalg.slogdet(covariance)[1]
        self.inner = [np.linalg.inv(self.precision[:, b, b]) for b in self.blocks]
        self.inner_log_det = [np.linalg.slogdet(self.precision[:, b, b])[1] for b in self.blocks]
        self.own = [np.linalg.inv(covariance[:, b, b]) for b in self.blocks]
        self.own_log_det = [np.linalg.slogdet(covariance[:, b, b])[1] for b in self.blocks]

    def _log_likelihoods(self, x: Vector) -> Vector:
        """Log density up to a constant, (2n+1, N, classes)."""
        r = np.ascontiguousarray((x[:, None, :] - self.means).transpose(1, 0, 2))  # (classes, N, dims)
        g = r @ self.precision
        whole = (r * g).sum(-1).T
        single_feature, leave_one_out = [], []
        for i, b in enumerate(self.blocks):
            of_own = ((r[:, :, b] @ self.own[i]) * r[:, :, b]).sum(-1).T
            single_feature.append(of_own + self.own_log_det[i])
            taken = ((g[:, :, b] @ self.inner[i]) * g[:, :, b]).sum(-1).T
            leave_one_out.append(whole - taken + self.log_det + self.inner_log_det[i])
        if len(self.blocks) == 1:
            leave_one_out = [np.zeros_like(whole)]
        return -0.5 * np.stack([whole + self.log_det, *single_feature, *leave_one_out])

    def _answers(
        self, scores: Vector, y: npt.NDArray[np.int64], sharpness: float | Vector, prior_share: float | Vector
    ) -> Vector:
        """Log probability in nats (2n+1, N) of the true class, for tempered scores mixed with the prior."""
        return self._mixed(self._tempered(scores, y, sharpness), y, prior_share)

    def _tempered(self, scores: Vector, y: npt.NDArray[np.int64], sharpness: float | Vector) -> Vector:
        """Probability (2n+1, N) of the true class, for tempered scores."""
        logits = scores * np.reshape(sharpness, (-1, 1, 1)) + self.log_prior
        top = logits.max(-1)
        own = logits[:, np.arange(len(y)), y]
        return np.asarray(np.exp(own - top) / np.exp(logits - top[..., None]).sum(-1))

    def _mixed(self, sure: Vector, y: npt.NDArray[np.int64], prior_share: float | Vector) -> Vector:
        """Log probability in nats (2n+1, N), of a probability mixed with the prior."""
        share = np.reshape(prior_share, (-1, 1))
        return np.asarray(np.log((1 - share) * sure + share * np.exp(self.log_prior[y])))

    def information(self, x: Vector, y: npt.NDArray[np.int64]) -> Vector:
        """Per-sample log2 q(y|x_S) − log2 q(y), (N, 2n+1)."""
        answers = self._answers(self._log_likelihoods(x), y, self.sharpness, self.prior_share)
        return np.asarray((answers - self.log_prior[y]).T / _LOG2)
