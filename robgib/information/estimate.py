"""A figure in bits with its interval."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Estimate",
]


@dataclass(frozen=True)
class Estimate:
    """A figure in bits with its 95% interval. NaN: not estimable, and ``note`` says why.

    ``saturated`` marks a figure at the ceiling of its estimator: the truth may be anything above.
    """

    value: float
    low: float
    high: float
    saturated: bool = False
    note: str = ""
