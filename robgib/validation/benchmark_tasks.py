"""Tasks of the public benchmark of mutual-information estimators, written from their definitions.

Czyż, Grabowski, Vogt, Beerenwinkel & Marx, "Beyond Normal: On the Evaluation of Mutual Information Estimators" (2023);
the waves after the fine distributions of the same authors' "The Mixtures and the Neural Critics" (2024). Bijections of
each side change no information. Where a bijection mixes a side's coordinates, the side is one feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import stats

from robgib.validation.known_variables import (
    Draw,
    Sample,
    VariableTask,
    Vector,
    asinh,
    gaussian_information,
    half_cube,
    spiral,
    student_information,
    subset_terms,
)

__all__ = [
    "benchmark_tasks",
    "dense_covariance",
    "sparse_covariance",
    "waves_truth",
]

_WAVES = 12
_TRUTH_DRAWS = 200_000


def sparse_covariance(dims: int, pairs: int = 2, correlation: float = 0.8) -> Vector:
    """Covariance of X (dims) and T (dims): unit variances, ``pairs`` coordinates of each correlated, nothing else."""
    covariance = np.eye(2 * dims)
    for i in range(min(pairs, dims)):
        covariance[i, dims + i] = covariance[dims + i, i] = correlation
    return covariance


def dense_covariance(dims: int, correlation: float = 0.5) -> Vector:
    """Covariance of X (dims) and T (dims): all pairs alike."""
    return np.full((2 * dims, 2 * dims), correlation) + (1 - correlation) * np.eye(2 * dims)


def wiggly(values: Vector) -> Vector:
    """x + 0.4 sin x + 0.2 sin(1.7 x + 1) + 0.03 sin(3.3 x − 2.5) of each coordinate: strictly increasing."""
    return np.asarray(
        values + 0.4 * np.sin(values) + 0.2 * np.sin(1.7 * values + 1) + 0.03 * np.sin(3.3 * values - 2.5)
    )


def swiss_roll(values: Vector) -> Vector:
    """A uniform coordinate (N, 1) rolled up in the plane: t(cos t, sin t)/21, t = 3π/2 (1 + 2u)."""
    t = 1.5 * np.pi * (1 + 2 * values[:, 0])
    return np.stack([t * np.cos(t), t * np.sin(t)], 1) / 21


def bimodal(values: Vector) -> Vector:
    """Quantiles of an even mixture of N(−1, 0.3²) and N(1, 0.3²) of each uniform coordinate."""
    grid = np.linspace(-3, 3, 4001)
    law = (stats.norm.cdf(grid, -1, 0.3) + stats.norm.cdf(grid, 1, 0.3)) / 2
    return np.interp(values, law, grid)


def normal_cdf(values: Vector) -> Vector:
    """Make standard normal coordinates uniform."""
    return np.asarray(stats.norm.cdf(values))


def _gaussian(
    covariance: Vector,
    sizes: Sequence[int],
    of_x: Callable[[Vector], Vector] = lambda v: v,
    of_t: Callable[[Vector], Vector] = lambda v: v,
    freedom: float = np.inf,
) -> Draw:
    """Gaussian or Student-t variables through bijections of each feature and of the target."""
    dims, total = sum(sizes), len(covariance)
    target = list(range(dims, total))
    root = np.linalg.cholesky(covariance)

    def of(columns: list[int]) -> float:
        if not columns:
            return 0.0
        added = student_information(len(columns), total - dims, freedom) if np.isfinite(freedom) else 0.0
        return gaussian_information(covariance, columns, target) + added

    truth = subset_terms(tuple(sizes), of)

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        values = rng.standard_normal((samples, total)) @ root.T
        if np.isfinite(freedom):
            values /= np.sqrt(rng.chisquare(freedom, size=(samples, 1)) / freedom)
        blocks = np.split(values, np.cumsum(sizes), axis=1)
        return Sample([of_x(b) for b in blocks[:-1]], of_t(blocks[-1]), truth)

    return draw


def _uniform_noise(width: float) -> Draw:
    """T = U + N, U uniform on [0, 1], N uniform on [−w, w].

    For 2w ≤ 1, I = w − log(2w) nats; above, 1/(4w).
    """
    bits = (width - np.log(2 * width) if 2 * width <= 1 else 1 / (4 * width)) / np.log(2)

    def draw(samples: int, rng: np.random.Generator) -> Sample:
        x = rng.random((samples, 1))
        target = x + rng.uniform(-width, width, (samples, 1))
        return Sample([x], target, np.array([bits, bits, 0.0]))

    return draw


def _waves(samples: int, rng: np.random.Generator) -> Sample:
    """Twelve narrow clusters along X's first coordinate, each at a level of T of its own; X is bent into waves."""
    x, t = _wave_clusters(samples, rng)[:2]
    bent = np.stack([0.1 * x[:, 0], x[:, 1] + 5 * np.sin(3 * x[:, 0])], 1)
    bits = waves_truth()
    return Sample([bent], t, np.array([bits, bits, 0.0]))


def _wave_clusters(samples: int, rng: np.random.Generator) -> tuple[Vector, Vector, Vector, Vector]:
    centres = np.linspace(0, 4, _WAVES)
    levels = np.arange(_WAVES) * 5 % _WAVES / 2.0  # neighbours in X are far apart in T
    which = rng.integers(_WAVES, size=samples)
    x = np.stack([centres[which] + 0.1 * rng.standard_normal(samples), rng.standard_normal(samples)], 1)
    return x, (levels[which] + 0.4 * rng.standard_normal(samples))[:, None], centres, levels


@cache
def waves_truth() -> float:
    """I of the waves in bits, by the true densities over 200,000 draws: to 0.005 bit."""
    x, t, centres, levels = _wave_clusters(_TRUTH_DRAWS, np.random.default_rng(0))
    of_x = -((x[:, :1] - centres) ** 2) / (2 * 0.1**2)
    of_t = -((t - levels) ** 2) / (2 * 0.4**2)
    logs = [np.logaddexp.reduce(v, axis=1) for v in (of_x + of_t, of_x, of_t)]
    return float(np.mean(logs[0] - logs[1] - logs[2]) + np.log(_WAVES)) / float(np.log(2))


def _turn(speed: float) -> Callable[[Vector], Vector]:
    return lambda values: spiral(values, speed)


def benchmark_tasks() -> list[VariableTask]:
    """Return the benchmark's tasks, 5,000 samples each; their names begin with ``bmi-``."""
    one = np.array([[1.0, 0.75], [0.75, 1.0]])
    uniform_modes = lambda v: bimodal(normal_cdf(v))  # noqa: E731
    listed: list[tuple[str, str, Draw]] = [
        ("normal-1+1", "gaussian", _gaussian(one, (1,))),
        ("dense-2+2", "gaussian", _gaussian(dense_covariance(2), (1, 1))),
        ("dense-5+5", "gaussian", _gaussian(dense_covariance(5), (1,) * 5)),
        ("dense-25+25", "gaussian", _gaussian(dense_covariance(25), (5,) * 5)),
        ("sparse-2+2", "gaussian", _gaussian(sparse_covariance(2), (1, 1))),
        ("sparse-5+5", "gaussian", _gaussian(sparse_covariance(5), (1,) * 5)),
        ("sparse-25+25", "gaussian", _gaussian(sparse_covariance(25), (5,) * 5)),
        ("uniform-margins-1+1", "marginals", _gaussian(one, (1,), normal_cdf, normal_cdf)),
        ("uniform-margins-sparse-3+3", "marginals", _gaussian(sparse_covariance(3), (1,) * 3, normal_cdf, normal_cdf)),
        ("bimodal-1+1", "marginals", _gaussian(one, (1,), uniform_modes, uniform_modes)),
        ("wiggly-1+1", "marginals", _gaussian(one, (1,), wiggly, wiggly)),
        ("half-cube-1+1", "marginals", _gaussian(one, (1,), half_cube, half_cube)),
        ("half-cube-25+25", "marginals", _gaussian(sparse_covariance(25), (5,) * 5, half_cube, half_cube)),
        ("student-1-1+1", "nonlinear", _gaussian(np.eye(2), (1,), freedom=1)),
        ("student-1-2+2", "nonlinear", _gaussian(sparse_covariance(2), (1, 1), freedom=1)),
        ("student-2-2+2", "nonlinear", _gaussian(sparse_covariance(2), (1, 1), freedom=2)),
        ("student-5-2+2", "nonlinear", _gaussian(dense_covariance(2), (1, 1), freedom=5)),
        ("student-2-5+5", "nonlinear", _gaussian(sparse_covariance(5), (1,) * 5, freedom=2)),
        ("asinh-student-1-1+1", "nonlinear", _gaussian(np.eye(2), (1,), asinh, asinh, freedom=1)),
        ("spiral-3+3", "nonlinear", _gaussian(sparse_covariance(3), (3,), _turn(1 / 3), _turn(1 / 3))),
        ("spiral-5+5", "nonlinear", _gaussian(sparse_covariance(5), (5,), _turn(1 / 5), _turn(1 / 5))),
        ("swiss-roll-2+1", "nonlinear", _gaussian(one, (1,), lambda v: swiss_roll(normal_cdf(v)), normal_cdf)),
        ("additive-noise-0.1-1+1", "nonlinear", _uniform_noise(0.1)),
        ("additive-noise-0.75-1+1", "nonlinear", _uniform_noise(0.75)),
        ("waves-2+1", "nonlinear", _waves),
    ]
    return [VariableTask(f"bmi-{name}", regime, draw, 5000) for name, regime, draw in listed]
