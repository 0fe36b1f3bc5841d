"""Mixtures of predictors: weights by expectation and maximisation on the log-loss, cross-fitted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "Stack",
    "stacked",
]

Vector = npt.NDArray[np.float64]
FOLDS = 5
_ROUNDS = 40
_AGAIN = 12  # rounds from weights that are all but right
_LAST = 0.5  # samples' worth of weight that the last predictor has beforehand: what none foresees must not cost all


class Stack:
    """Weights (folds, G, J) of J predictors for each of G questions, each fold's found on the others.

    >>> right = np.array([[0.9] * 50, [0.5] * 50])
    >>> found = Stack(np.arange(50) % 5).fit(right[None])
    >>> bool(found.weights[0, 0, 0] > 0.95)
    True
    """

    def __init__(self, fold: npt.NDArray[np.int64], weights: Vector | None = None) -> None:
        self.fold = fold
        self.samples = np.ones(len(fold)) if weights is None else weights
        self.weights = np.zeros(0)

    def fit(self, own: Vector) -> Stack:
        """Find the weights for probabilities (G, J, N) of what came out."""
        count = own.shape[1]
        start = np.full((FOLDS, own.shape[0], count), 1 / count)
        made = Stack(self.fold, self.samples)
        made.weights = self._improved(own, start, _ROUNDS)
        return made

    def again(self, own: Vector) -> Vector:
        """log2 of the mixture's probabilities (G, N) of a variant of what was fitted, its weights found from these."""
        return self._told(own, self._improved(own, self.weights, _AGAIN))

    def told(self, own: Vector) -> Vector:
        """log2 of the mixture's probabilities (G, N)."""
        return self._told(own, self.weights)

    def _improved(self, own: Vector, weights: Vector, rounds: int) -> Vector:
        made = np.empty_like(weights)
        prior = np.zeros(own.shape[1])
        prior[-1] = _LAST
        for f in range(FOLDS):
            train = np.ascontiguousarray(own[:, :, self.fold != f])
            mass = self.samples[self.fold != f]
            w = weights[f]
            for _ in range(rounds):
                share = train * w[:, :, None]
                total = share.sum(1)
                w = (np.einsum("gjn,gn->gj", share, mass / np.maximum(total, 1e-300)) + prior) / (mass.sum() + _LAST)
            made[f] = w
        return made

    def _told(self, own: Vector, weights: Vector) -> Vector:
        mixed = np.einsum("ngj,gjn->gn", weights[self.fold], own)
        return np.asarray(np.log2(np.maximum(mixed, 1e-12)))


def stacked(own: Vector, fold: npt.NDArray[np.int64]) -> Vector:
    """log2 of the cross-fitted mixture's probabilities (G, N), of probabilities (G, J, N) of what came out."""
    return Stack(fold).fit(own).told(own)
