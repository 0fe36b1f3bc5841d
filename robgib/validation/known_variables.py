"""Variables whose information terms are known: distributions listed, closed forms, and true densities."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import gammaln, psi

from robgib.data.synthetic import Function, patterns
from robgib.information.exact import Exact
from robgib.information.renyi import Renyi

__all__ = [
    "REGIMES",
    "Draw",
    "Known",
    "Sample",
    "VariableTask",
    "known_distributions",
    "true_information",
    "variable_tasks",
]


@dataclass(frozen=True)
class Known:
    """An enumerated distribution: equally likely outcomes, and its terms in bits worked out by hand.

    Attributes:
        features: integer symbols, (outcomes, n).
        target: integer symbols, (outcomes, d).
        total: I(X;T).
        synergy: S(X;T).
        complexity: C(X;T).
    """

    features: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    total: float
    synergy: float
    complexity: float

    def draw(
        self, samples: int, seed: int | np.random.Generator
    ) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.int64]]:
        """Draw features (n arrays of (samples,)) and a target (samples, d)."""
        rows = np.random.default_rng(seed).integers(len(self.features), size=samples)
        return [column[rows] for column in self.features.T], self.target[rows]


def _bits(n: int) -> npt.NDArray[np.int64]:
    return np.array(list(itertools.product((0, 1), repeat=n)))


def known_distributions() -> dict[str, Known]:
    """Return the discrete known answers by name; the bits are fair and independent unless the name says otherwise."""
    two, three = _bits(2), _bits(3)
    both = np.array([[0, 0], [1, 1]])
    # AND: H(T) = h(1/4); given one bit, T is known (0) or a fair coin (1).
    quarter = 2 - 0.75 * np.log2(3)
    single = quarter - 0.5
    # Majority of 3: H(T) = 1; given one bit, T is a 3:1 coin; given two, known half of the time.
    # Sum of 3: H(T) = h(1/8, 3/8, 3/8, 1/8); given one bit it is the sum of two, 1.5 bits; given two, 1 bit.
    sum_entropy = 3 - 0.75 * np.log2(3)
    table = {
        "xor": (two, two.sum(1) % 2, 1.0, 1.0),
        "copy": (both, both[:, 0], 1.0, -1.0),
        "and": (two, two.prod(1), quarter, quarter - 2 * single),
        "concatenation": (two, two, 2.0, 0.0),
        "majority": (three, (three.sum(1) > 1).astype(int), 1.0, 1 - (1 - quarter) - 0.5),
        "sum": (three, three.sum(1), sum_entropy, sum_entropy - (sum_entropy - 1.5) - (sum_entropy - 1)),
        "xor-and-bit": (three, np.stack([three[:, 0] ^ three[:, 1], three[:, 2]], 1), 2.0, 2 / 3),
    }
    for n in range(2, 9):
        bits = _bits(n)
        table[f"parity-{n}"] = (bits, bits.sum(1) % 2, 1.0, 1.0)
    return {
        name: Known(x, t.reshape(len(x), -1), float(total), float(synergy), float(total - synergy))
        for name, (x, t, total, synergy) in table.items()
    }


Vector = npt.NDArray[np.float64]
REGIMES = {
    "discrete": "few symbols, counted",
    "parity": "five to eight bits of which only all together tell",
    "gaussian": "jointly Gaussian",
    "marginals": "Gaussian copula under monotone changes of single coordinates",
    "nonlinear": "dependence that no Gaussian copula has",
    "classes": "real features, class labels",
    "hidden": "a label that two of many features tell together and none tells alone",
    "network": "layers of networks whose information is known, in the estimator's own view",
    "kernel": "jointly Gaussian, against the closed form of the matrix-based Rényi functional instead of Shannon's",
}
"""The regimes that an estimator may claim."""


@dataclass(frozen=True)
class Sample:
    """Features, a target, and the true terms [total, single-feature, leave-one-out] (2n+1) in bits; NaN: unknown."""

    features: list[npt.NDArray[Any]]
    target: npt.NDArray[Any]
    truth: Vector


Draw = Callable[[int, np.random.Generator], Sample]


@dataclass(frozen=True)
class VariableTask:
    """A way of drawing variables whose information is known.

    Attributes:
        name: of the task.
        regime: a key of :data:`REGIMES`.
        draw: from (samples, generator) to a :class:`Sample`; may draw the distribution anew each time.
        samples: how many samples it is asked with.
    """

    name: str
    regime: str
    draw: Draw
    samples: int = 2000


def _terms(total: float, single_feature: Sequence[float], leave_one_out: Sequence[float]) -> Vector:
    return np.array([total, *single_feature, *leave_one_out])


def _log_det(matrix: Vector) -> float:
    return float(np.linalg.slogdet(matrix)[1]) if len(matrix) else 0.0


def gaussian_information(covariance: Vector, a: Sequence[int], b: Sequence[int]) -> float:
    """I in bits of two sets of columns of a Gaussian."""
    a, b = list(a), list(b)
    own = sum(_log_det(covariance[np.ix_(i, i)]) for i in (a, b))
    return (own - _log_det(covariance[np.ix_(a + b, a + b)])) / 2 / np.log(2)


def subset_terms(sizes: Sequence[int], of: Callable[[list[int]], float]) -> Vector:
    """The 2n+1 terms from a function of the columns that a subset holds."""
    edges = np.cumsum([0, *sizes])
    groups = [list(range(a, b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    everything = list(range(edges[-1]))
    others = [[c for c in everything if c not in set(g)] for g in groups]
    return _terms(of(everything), [of(g) for g in groups], [of(r) for r in others])


def _random_covariance(dims: int, rng: np.random.Generator) -> Vector:
    """Correlations of a random Wishart matrix with a few more degrees of freedom than dimensions."""
    a = rng.standard_normal((dims, 2 * dims))
    covariance = a @ a.T
    scale = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(scale, scale))


def _known(name: str) -> Callable[[int, np.random.Generator], Sample]:
    def draw(samples: int, rng: np.random.Generator) -> Sample:
        known = known_distributions()[name]
        exact = Exact().estimate(list(known.features.T), known.target)
        truth = _terms(
            exact.total.value, [e.value for e in exact.single_feature], [e.value for e in exact.leave_one_out]
        )
        return Sample(*known.draw(samples, rng), truth)

    return draw


def _random_discrete(samples: int, rng: np.random.Generator) -> Sample:
    """Three features and a target of three symbols each, all 81 probabilities drawn from a Dirichlet law."""
    outcomes = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    weights = rng.dirichlet(np.full(len(outcomes), 0.5))
    try:
        import dit

        joint = dit.Distribution([tuple(map(int, o)) for o in outcomes], list(weights))

        def of(columns: list[int]) -> float:
            return float(dit.shannon.mutual_information(joint, columns, [3]))

        truth = subset_terms((1, 1, 1), of)
    except ImportError:
        exact = Exact(weights).estimate(list(outcomes.T[:3]), outcomes[:, 3])
        truth = _terms(
            exact.total.value, [e.value for e in exact.single_feature], [e.value for e in exact.leave_one_out]
        )
    rows = outcomes[rng.choice(len(outcomes), size=samples, p=weights)]
    return Sample(list(rows.T[:3]), rows[:, 3], truth)


def _gaussian(
    sizes: tuple[int, ...], dims_t: int, change: Callable[[Vector], Vector] = lambda x: x
) -> Callable[[int, np.random.Generator], Sample]:
    """Gaussian with a random covariance; ``change`` is a bijection of each feature and of the target."""

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        dims = sum(sizes)
        covariance = _random_covariance(dims + dims_t, rng)
        of_t = list(range(dims, dims + dims_t))
        truth = subset_terms(sizes, lambda columns: gaussian_information(covariance, columns, of_t))
        values = rng.standard_normal((samples, dims + dims_t)) @ np.linalg.cholesky(covariance).T
        blocks = np.split(values, np.cumsum(sizes), axis=1)
        changed = [change(b) for b in blocks]
        return Sample(list(changed[:-1]), changed[-1], truth)

    return draw


def gaussian_kernel_entropy(covariance: Vector, alpha: float) -> float:
    """Matrix-based Rényi entropy in bits of N(0, covariance) under the kernel exp(−|x − y|²/2), as N grows.

    Along each principal axis the kernel operator has eigenvalues (1 − b) bᵏ (Zhu et al. 1998, Mehler's formula),
    so that the entropy is a sum over axes.
    """
    a = 1 / (4 * np.linalg.eigvalsh(covariance))
    ratio = 0.5 / (a + 0.5 + np.sqrt(a**2 + a))
    if alpha == 1:
        return float(-np.sum(np.log2(1 - ratio) + ratio / (1 - ratio) * np.log2(ratio)))
    return float(np.sum(alpha * np.log2(1 - ratio) - np.log2(1 - ratio**alpha)) / (1 - alpha))


def _kernel_gaussian(sizes: tuple[int, ...], dims_t: int) -> Callable[[int, np.random.Generator], Sample]:
    """Gaussian with a random covariance, and the terms that :class:`Renyi` by its defaults should find."""
    gaussian = _gaussian(sizes, dims_t)

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        start = copy.deepcopy(rng)
        sample = gaussian(samples, rng)
        covariance = _random_covariance(sum(sizes) + dims_t, start)
        of_t = list(range(sum(sizes), len(covariance)))

        def of(columns: list[int]) -> float:
            # Widths go with the root of the number of columns, features and target each by their own.
            widths = Renyi.width * np.sqrt([len(columns)] * len(columns) + [dims_t] * dims_t)
            scaled = covariance[np.ix_(columns + of_t, columns + of_t)] / np.outer(widths, widths)
            k = len(columns)
            parts = (scaled[:k, :k], scaled[k:, k:])
            single = sum(gaussian_kernel_entropy(m, Renyi.alpha) for m in parts)
            return single - gaussian_kernel_entropy(scaled, Renyi.alpha)

        return Sample(sample.features, sample.target, subset_terms(sizes, of))

    return draw


def _row(samples: int, rng: np.random.Generator) -> Sample:
    """The Gaussian row of the design: T = X1 + X2 + N, all variances 1."""
    x = rng.standard_normal((samples, 2))
    half = np.log2(4 / 3) / 2 + 0.5 * np.log2(1.5) - 0.5 * np.log2(4 / 3)  # I(X1;T) = ½ log2(3/2)
    total = 0.5 * np.log2(3)
    target = x.sum(1) + rng.standard_normal(samples)
    return Sample([x[:, [0]], x[:, [1]]], target[:, None], _terms(total, [half] * 2, [half] * 2))


def half_cube(x: Vector) -> Vector:
    """x ↦ x|x|^½ of each coordinate: long tails (Czyż et al. 2023)."""
    return np.asarray(x * np.sqrt(np.abs(x)))


def asinh(x: Vector) -> Vector:
    """Inverse hyperbolic sine of each coordinate: short tails (Czyż et al. 2023)."""
    return np.asarray(np.arcsinh(3 * x))


def spiral(values: Vector, speed: float = 1 / 3) -> Vector:
    """Turn the first coordinate into the second, and the second into the third, by angles that grow with the radius.

    A bijection (Czyż et al. 2023).
    """
    turned = values.copy()
    angle = speed * (values**2).sum(1)
    for a, b in ((0, 1), (1, 2))[: values.shape[1] - 1]:
        first, second = turned[:, a].copy(), turned[:, b].copy()
        turned[:, a] = np.cos(angle) * first - np.sin(angle) * second
        turned[:, b] = np.sin(angle) * first + np.cos(angle) * second
    return turned


def student_information(dims_x: int, dims_t: int, freedom: float) -> float:
    """What a Student-t law's common scale adds in bits to its Gaussian information (Arellano-Valle et al. 2013)."""

    def f(v: float) -> float:
        return float(gammaln(v / 2) - v / 2 * psi(v / 2))

    excess = f(freedom) + f(freedom + dims_x + dims_t) - f(freedom + dims_x) - f(freedom + dims_t)
    return excess / float(np.log(2))


def _student(sizes: tuple[int, ...], dims_t: int, freedom: int) -> Callable[[int, np.random.Generator], Sample]:
    """Multivariate Student-t with a random dispersion (Arellano-Valle, Contreras-Reyes & Genton 2013)."""

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        dims = sum(sizes)
        covariance = _random_covariance(dims + dims_t, rng)
        of_t = list(range(dims, dims + dims_t))

        def of(columns: list[int]) -> float:
            if not columns:
                return 0.0
            return gaussian_information(covariance, columns, of_t) + student_information(len(columns), dims_t, freedom)

        values = rng.standard_normal((samples, dims + dims_t)) @ np.linalg.cholesky(covariance).T
        values /= np.sqrt(rng.chisquare(freedom, size=(samples, 1)) / freedom)
        blocks = np.split(values, np.cumsum(sizes), axis=1)
        return Sample(list(blocks[:-1]), blocks[-1], subset_terms(sizes, of))

    return draw


def _additive_noise(samples: int, rng: np.random.Generator, width: float = 0.75) -> Sample:
    """T = X1 + N, X1 uniform on [0, 1], N uniform on [−w, w], and an idle X2 (Czyż et al. 2023).

    T's density is a trapezoid with ramps of length 1 (2w ≥ 1), whence I = 1/(4w) nats.
    """
    x = rng.random((samples, 2))
    target = x[:, [0]] + rng.uniform(-width, width, (samples, 1))
    information = 1 / (4 * width) / np.log(2)
    return Sample([x[:, [0]], x[:, [1]]], target, _terms(information, [information, 0], [0, information]))


def _mixture(sizes: tuple[int, ...], classes: int) -> Callable[[int, np.random.Generator], Sample]:
    """Gaussian classes with random means and one covariance; the truth by the true densities on 200,000 draws."""

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        values, labels = _mixture_sample(sizes, classes, samples, rng)
        return Sample(list(np.split(values, np.cumsum(sizes)[:-1], axis=1)), labels, _mixture_truth(sizes, classes))

    return draw


def _mixture_law(sizes: tuple[int, ...], classes: int) -> tuple[Vector, Vector]:
    dims = sum(sizes)
    fixed = np.random.default_rng(classes + dims)
    return 1.2 * fixed.standard_normal((classes, dims)), _random_covariance(dims, fixed)


def _mixture_sample(
    sizes: tuple[int, ...], classes: int, samples: int, rng: np.random.Generator
) -> tuple[Vector, npt.NDArray[np.int64]]:
    means, covariance = _mixture_law(sizes, classes)
    labels = rng.integers(classes, size=samples)
    return means[labels] + rng.standard_normal((samples, sum(sizes))) @ np.linalg.cholesky(covariance).T, labels


@cache  # here, not inside `_mixture`, whose tasks are sent to other processes
def _mixture_truth(sizes: tuple[int, ...], classes: int) -> Vector:
    means, covariance = _mixture_law(sizes, classes)
    values, labels = _mixture_sample(sizes, classes, 200_000, np.random.default_rng(0))

    def of(columns: list[int]) -> float:
        inside = covariance[np.ix_(columns, columns)]
        logs = np.stack([stats.multivariate_normal(m[columns], inside).logpdf(values[:, columns]) for m in means], 1)
        own = logs[np.arange(len(labels)), labels]
        return float(np.mean(own - np.logaddexp.reduce(logs, axis=1))) / np.log(2) + float(np.log2(classes))

    return subset_terms(sizes, of)


def _hidden_xor(features: int, dims: int) -> Callable[[int, np.random.Generator], Sample]:
    """T is the exclusive or of the signs of two features' first coordinates; all else is idle."""

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        x = rng.standard_normal((samples, features, dims))
        a, b = rng.choice(features, 2, replace=False)
        target = (x[:, a, 0] > 0) ^ (x[:, b, 0] > 0)
        leave_one_out = [0.0 if i in (a, b) else 1.0 for i in range(features)]
        return Sample(
            [x[:, i] for i in range(features)], target.astype(np.int64), _terms(1, [0.0] * features, leave_one_out)
        )

    return draw


def true_information(function: Function) -> tuple[float, float]:
    """I(X;Y) and S(X;Y) in bits of a function's label over its twelve inputs, exactly.

    >>> from robgib.data import function
    >>> [round(bits, 4) for bits in true_information(function("parity-2"))]
    [1.0, 0.1667]
    """
    if function.closed_form is not None:
        return function.closed_form
    x = patterns()
    counted = Exact().estimate(list(x.T), function.label(x).astype(np.int64))
    return counted.total.value, counted.synergy.value


def variable_tasks() -> list[VariableTask]:
    """Return the tasks of this file."""
    return [
        *(
            VariableTask(
                name,
                "parity" if name in ("parity-5", "parity-6", "parity-7", "parity-8") else "discrete",
                _known(name),
                5000,
            )
            for name in known_distributions()
        ),
        VariableTask("random-3x3x3", "discrete", _random_discrete, 5000),
        VariableTask("gaussian-row", "gaussian", _row, 2000),
        VariableTask("gaussian-3-features", "gaussian", _gaussian((1, 2, 1), 1), 2000),
        VariableTask("gaussian-16x4", "gaussian", _gaussian((4,) * 16, 8), 5000),
        VariableTask("half-cube", "marginals", _gaussian((1, 1, 1), 1, half_cube), 2000),
        VariableTask("asinh-8x2", "marginals", _gaussian((2,) * 8, 4, asinh), 5000),
        VariableTask("spiral", "nonlinear", _gaussian((2, 2), 2, spiral), 2000),
        VariableTask("student-t3", "nonlinear", _student((1, 1), 1, 3), 2000),
        VariableTask("additive-noise", "nonlinear", _additive_noise, 2000),
        VariableTask("mixture-2-classes", "classes", _mixture((1, 2), 2), 2000),
        VariableTask("mixture-5-classes", "classes", _mixture((2,) * 6, 5), 3000),
        VariableTask("hidden-xor", "hidden", _hidden_xor(16, 4), 5000),
        VariableTask("kernel-3-features", "kernel", _kernel_gaussian((1, 2, 1), 1), 2000),
        VariableTask("kernel-4x4", "kernel", _kernel_gaussian((4,) * 4, 4), 2000),
    ]
