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
_LEAST = 1e-12
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

    def optimism(self, own: Vector) -> Vector:
        """Bits (G,) by which weights that are found on all samples do better on these than cross-fitted ones do.

        The best weights of all lie about half of it above the cross-fitted ones: finding J weights on N samples costs
        as much as they seem to do better where they were found (Akaike 1974).
        """
        everywhere = np.full((1, own.shape[0], own.shape[1]), 1 / own.shape[1])
        weights = self._best(own, self.samples, everywhere[0], _ROUNDS)
        share = np.log2(np.maximum(np.einsum("gj,gjn->gn", weights, own), _LEAST)) - self.log_probabilities(own)
        return np.asarray((share * self.samples).mean(1))

    def again(self, own: Vector) -> Vector:
        """log2 of the mixture's probabilities (G, N) of a variant of what was fitted, its weights found from these."""
        return self._log_mixture(own, self._improved(own, self.weights, _AGAIN))

    def log_probabilities(self, own: Vector) -> Vector:
        """log2 of the mixture's probabilities (G, N)."""
        return self._log_mixture(own, self.weights)

    def _improved(self, own: Vector, weights: Vector, rounds: int) -> Vector:
        made = np.empty_like(weights)
        for f in range(FOLDS):
            training = np.ascontiguousarray(own[:, :, self.fold != f])
            made[f] = self._best(training, self.samples[self.fold != f], weights[f], rounds)
        return made

    def _best(self, own: Vector, mass: Vector, weights: Vector, rounds: int) -> Vector:
        """Weights (G, J) that do best on probabilities (G, J, N) of samples of some mass (N,)."""
        prior = np.zeros(own.shape[1])
        prior[-1] = _LAST
        for _ in range(rounds):
            total = (weights[:, None] @ own)[:, 0]
            shares = (own @ (mass / np.maximum(total, 1e-300))[:, :, None])[:, :, 0] * weights
            weights = (shares + prior) / (mass.sum() + _LAST)
        return weights

    def _log_mixture(self, own: Vector, weights: Vector) -> Vector:
        mixed = np.einsum("ngj,gjn->gn", weights[self.fold], own)
        return np.asarray(np.log2(np.maximum(mixed, _LEAST)))


def stacked(own: Vector, fold: npt.NDArray[np.int64]) -> Vector:
    """log2 of the cross-fitted mixture's probabilities (G, N), of probabilities (G, J, N) of what came out."""
    return Stack(fold).fit(own).log_probabilities(own)
