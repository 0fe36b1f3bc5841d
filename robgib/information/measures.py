"""The measures themselves: identities over information terms in bits, with no estimation in them.

The features X = (X_1 … X_n) carry information about a target T. The terms are ``total`` = I(X;T), ``singles`` =
I(X_i;T), the single-feature information, and ``rests`` = I(X_-i;T), the leave-one-out information, where X_-i is every
feature except the i-th.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "average_interaction",
    "bound_slack",
    "complexity",
    "compression",
    "effective_samples",
    "functionals",
    "gib_objective",
    "ib_objective",
    "interaction_information",
    "pmi_weights",
    "redundancy_degree",
    "vulnerability_degree",
]

Number = TypeVar("Number", float, np.ndarray)
Vector = npt.NDArray[np.float64]
_floats = partial(np.asarray, dtype=float)


def interaction_information(total: float, singles: npt.ArrayLike, rests: npt.ArrayLike) -> Vector:
    """II_i(X;T) = I(X;T) − I(X_i;T) − I(X_-i;T) for each feature (n,): above 0 synergy, below 0 redundancy."""
    return total - _floats(singles) - _floats(rests)


def average_interaction(total: float, singles: npt.ArrayLike, rests: npt.ArrayLike) -> float:
    """S(X;T), the mean of II_i over the features: the synergy."""
    return float(np.mean(interaction_information(total, singles, rests)))


def complexity(singles: npt.ArrayLike, rests: npt.ArrayLike) -> float:
    """C(X;T), the mean of I(X_i;T) + I(X_-i;T): the GIB's complexity. I(X;T) = C + S."""
    return float(np.mean(_floats(singles) + _floats(rests)))


def ib_objective(prediction: Number, total: Number, beta: float) -> Number:
    """IB_β = I(Z;Y) − β I(X;Z) (Tishby, Pereira & Bialek 1999), to be maximised."""
    return prediction - beta * total


def gib_objective(prediction: Number, complexity: Number, beta: float) -> Number:
    """GIB_β = I(Z;Y) − (β/2) C(X;Z), to be maximised. Never below IB_β when the terms are exact."""
    return prediction - beta / 2 * complexity


def bound_slack(total: float, singles: npt.ArrayLike, rests: npt.ArrayLike) -> float:
    """I(X;T) − C(X;T)/2 = (GIB_β − IB_β)/β, which is never below 0 when the terms are exact."""
    return total - complexity(singles, rests) / 2


def compression(values: npt.ArrayLike) -> float:
    """(peak − last) / peak of a sequence of complexities; NaN unless the peak is above 0."""
    sequence = _floats(values)
    peak = sequence.max()
    return float((peak - sequence[-1]) / peak) if peak > 0 else math.nan


def pmi_weights(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> Vector:
    """Weights 1[ŷ = y]·max(0, pmi(ŷ;y)) of samples (N,), scaled to mean 1.

    pmi(ŷ;y) = log2 (n(ŷ,y) + ½)/(n(ŷ)n(y)/N + ½) from the samples' own counts, smoothed so that a rare pair does not
    weigh without bound. A sample counts as much as its right prediction tells of its label; a wrong one counts
    nothing. Uniform when no prediction tells anything.

    Args:
        predicted: (N,) whole numbers, in the labels' numbering.
        labels: (N,).

    >>> pmi_weights([0, 0, 1, 1], [0, 1, 1, 1]).round(2).tolist()
    [1.9, 0.0, 1.05, 1.05]
    """
    guesses, truth = np.asarray(predicted).ravel(), np.asarray(labels).ravel()
    y_hat, y = (np.unique(v, return_inverse=True)[1].ravel() for v in (guesses, truth))
    joint = np.zeros((y_hat.max() + 1, y.max() + 1))
    np.add.at(joint, (y_hat, y), 1.0)
    expected = joint.sum(1)[y_hat] * joint.sum(0)[y] / len(y)
    pmi = np.log2((joint[y_hat, y] + 0.5) / (expected + 0.5))
    weights = np.where(guesses == truth, np.maximum(pmi, 0.0), 0.0)
    return weights / weights.mean() if weights.mean() > 1e-12 else np.ones(len(y))


def effective_samples(weights: npt.ArrayLike) -> float:
    """Effective sample size (Σw)²/Σw² of weights (N,) (Kish 1965): how many equal ones would tell as much.

    >>> effective_samples([1.0, 1.0, 0.0, 0.0])
    2.0
    """
    w = _floats(weights)
    return float(w.sum() ** 2 / np.square(w).sum())


def redundancy_degree(total: float, singles: npt.ArrayLike) -> float:
    """r = Σ_i I(X_i;T) / I(X;T) (Gutknecht et al. 2025): how many features hold a bit of it by themselves, in [0, n].

    >>> redundancy_degree(1.0, [1.0, 1.0])  # two copies
    2.0
    """
    return float(np.sum(_floats(singles)) / total) if total > 0 else math.nan


def vulnerability_degree(total: float, rests: npt.ArrayLike) -> float:
    """v = Σ_i I(X_i;T|X_-i) / I(X;T) (Gutknecht et al. 2025): how many features can each alone destroy a bit of it.

    In [0, n], and I(X_i;T|X_-i) = I(X;T) − I(X_-i;T). S/I = (v − r)/n and C/I = 1 + (r − v)/n.

    >>> vulnerability_degree(1.0, [0.0, 0.0])  # an exclusive or
    2.0
    """
    return float(np.sum(total - _floats(rests)) / total) if total > 0 else math.nan


def functionals(n: int) -> Vector:
    """The linear map (3n+4, 2n+1) from [total, single-feature, leave-one-out] to everything derived.

    Rows: total; single-feature (n); leave-one-out (n); II_i (n); S; C; I − C/2. The derived rows equal the functions
    above, so that an interval of a derived figure comes from the covariance of the terms.
    """
    eye = np.eye(n)
    terms = np.eye(2 * n + 1)
    interaction = np.hstack([np.ones((n, 1)), -eye, -eye])
    mean_sum = np.concatenate([[0.0], np.full(2 * n, 1 / n)])
    total = terms[0]
    return np.vstack([terms, interaction, total - mean_sum, mean_sum, total - mean_sum / 2])
