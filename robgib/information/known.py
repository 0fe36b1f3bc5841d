"""Distributions whose information terms are known, against which estimators are held."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Known", "known_distributions"]


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
