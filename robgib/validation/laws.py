"""Laws of inputs that are known in full: what is left out can be drawn given what is kept, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from robgib.validation.known_variables import Vector

__all__ = [
    "Conditional",
    "Law",
]

Rows = npt.NDArray[np.int64]
_POOL = 4  # draws of the noise that are made ready, in draws of one point


@dataclass(frozen=True, eq=False)
class Law:
    """A mixture of Gaussians, one a class; a single Gaussian where there is one class.

    Attributes:
        shares: of the classes (K,).
        means: (K, d).
        roots: Cholesky factors (K, d, d) of the covariances, lower.

    >>> law = Law.of(np.array([1.0]), np.zeros((1, 2)), np.array([[[1.0, 0.8], [0.8, 1.0]]]))
    >>> x, label = law.draw(2000, np.random.default_rng(0))
    >>> bool(abs(np.corrcoef(x.T)[0, 1] - 0.8) < 0.05)
    True
    """

    shares: Vector
    means: Vector
    roots: Vector

    @classmethod
    def of(cls, shares: Vector, means: Vector, covariances: Vector) -> Law:
        """Make a law of shares (K,), means (K, d) and covariances (K, d, d)."""
        return cls(shares, means, np.linalg.cholesky(covariances).astype(np.float64))

    @classmethod
    def fitted(cls, x: Vector, labels: Rows | None, ridge: float) -> Law:
        """Fit one Gaussian to samples (P, d), or one a class where labels (P,) are given; ``ridge`` is added to each
        variance."""
        of = np.zeros(len(x), np.int64) if labels is None else labels
        parts = [x[of == k] for k in np.unique(of)]
        covariances = np.stack([np.cov(p, rowvar=False) + ridge * np.eye(x.shape[1]) for p in parts])
        return cls.of(np.array([len(p) for p in parts]) / len(x), np.stack([p.mean(0) for p in parts]), covariances)

    def draw(self, samples: int, rng: np.random.Generator) -> tuple[Vector, Rows]:
        """Draw inputs (N, d) and their classes (N,)."""
        classes = rng.choice(len(self.shares), size=samples, p=self.shares)
        noise = rng.standard_normal((samples, self.means.shape[1]))
        x = self.means[classes]
        for k in np.unique(classes):
            x[classes == k] += noise[classes == k] @ self.roots[k].T
        return x, classes

    def given(self, fixed: Rows, draws: int, rng: np.random.Generator) -> Conditional:
        """Prepare the law of all other inputs given those at ``fixed``, for some draws of each point."""
        return Conditional.of(self, fixed, draws, rng)


@dataclass(frozen=True, eq=False)
class Conditional:
    """The law of what is left out, given what is held.

    The noise of a point's draws is taken at random from a pool, since fresh noise of thousands of pixels costs more
    than the network that is asked. Each point's draws follow the conditional law; those of two points may share noise.

    Attributes:
        law: of all.
        held: places (h,) that are given.
        left: places (l,) that are drawn.
        own: Cholesky factor (h, h) of what is held, by class.
        gains: (h, l) by class.
        pools: noise (m, l) by class.
        draws: of each point.
    """

    law: Law
    held: Rows
    left: Rows
    own: tuple[Vector, ...]
    gains: tuple[Vector, ...]
    pools: tuple[Vector, ...]
    draws: int

    @classmethod
    def of(cls, law: Law, fixed: Rows, draws: int, rng: np.random.Generator) -> Conditional:
        """See :meth:`Law.given`."""
        free = np.setdiff1d(np.arange(law.means.shape[1]), fixed)
        own, gains, pools = [], [], []
        for root in law.roots:
            covariance = root @ root.T
            factor = cho_factor(covariance[np.ix_(fixed, fixed)], lower=True)
            gain = cho_solve(factor, covariance[np.ix_(fixed, free)])
            spread = covariance[np.ix_(free, free)] - covariance[np.ix_(free, fixed)] @ gain
            noise = rng.standard_normal((_POOL * draws, len(free))).astype(np.float32)
            own.append(np.tril(factor[0]))
            gains.append(gain)
            pools.append(noise @ np.linalg.cholesky(spread).T.astype(np.float32))
        return cls(law, fixed, free, tuple(own), tuple(gains), tuple(pools), draws)

    def __call__(self, point: Vector, rng: np.random.Generator) -> Vector:
        """Draw inputs (M, d) that agree with a point (d,) in what is held."""
        classes = rng.choice(len(self.own), size=self.draws, p=self.posterior(point))
        x = np.repeat(point[None], self.draws, 0)
        for k in np.unique(classes):
            rows = np.flatnonzero(classes == k)
            mean = self.law.means[k, self.left] + (point[self.held] - self.law.means[k, self.held]) @ self.gains[k]
            noise = self.pools[k][rng.choice(len(self.pools[k]), len(rows), replace=False)]
            x[np.ix_(rows, self.left)] = mean + noise
        return x

    def posterior(self, point: Vector) -> Vector:
        """Shares (K,) of the classes, given what is held of a point (d,)."""
        if len(self.own) == 1:
            return np.ones(1)
        logs = []
        for k, root in enumerate(self.own):
            off = solve_triangular(root, point[self.held] - self.law.means[k, self.held], lower=True)
            logs.append(np.log(self.law.shares[k]) - np.log(np.diag(root)).sum() - off @ off / 2)
        likelihoods = np.exp(np.array(logs) - max(logs))
        return np.asarray(likelihoods / likelihoods.sum())
