"""A figure in bits with its interval."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Estimate",
]


@dataclass(frozen=True, init=False)
class Estimate:
    """A figure in bits with its 95% interval.

    Attributes:
        value: the figure; NaN is not estimable.
        low: lower end of the interval.
        high: upper end of the interval.
        flagged: whether the figure is not reliable: it is at the estimator's ceiling, or ``note`` gives another reason.
            The true value may lie outside the interval.
        note: why the figure is flagged or not estimable.

    >>> Estimate(1.0, 0.9, 1.1).flagged
    False
    """

    value: float
    low: float
    high: float
    flagged: bool = False
    note: str = ""

    def __init__(
        self,
        value: float,
        low: float,
        high: float,
        flagged: bool = False,
        note: str = "",
        *,
        saturated: bool | None = None,  # former name of flagged
    ) -> None:
        flagged = flagged if saturated is None else saturated
        value, low, high = (0.0 if number == 0 else number for number in (value, low, high))  # no negative zero
        for name, given in zip(self.__match_args__, (value, low, high, flagged, note), strict=True):
            object.__setattr__(self, name, given)

    @property
    def saturated(self) -> bool:
        """Former name of :attr:`flagged`."""
        return self.flagged
