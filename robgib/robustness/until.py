"""Attack samples until the confidence intervals are narrow enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from robgib.attacks.base import Attack
from robgib.errors import RobGIBWarning
from robgib.robustness.run_attack import AttackResult, after, joined
from robgib.statistics import clopper_pearson

__all__ = ["attack_until", "samples_needed"]

_FIRST = 100  # samples of the first block
_MOST = 2**24  # upper limit of the number of samples
_LEAST = 32  # minimum number of samples of each further block

Budget = tuple[str, float]  # norm and eps
Attacker = Callable[[str, Attack, slice, AttackResult | None], AttackResult | Exception]


def samples_needed(hits: float, samples: int, width: float) -> int:
    """Return the number of samples, to 1%, at which an interval has at most this width, if the share does not change.

    >>> samples_needed(50, 100, 0.1) in range(400, 412)
    True
    """
    share = hits / samples

    def narrow(count: int) -> bool:
        low, high = clopper_pearson(round(share * count), count)
        return high - low <= width

    few, many = 0, 64
    while not narrow(many) and many < _MOST:
        few, many = many, 2 * many
    while many - few > max(1, few // 100):
        middle = (few + many) // 2
        few, many = (few, middle) if narrow(middle) else (middle, many)
    return many


def attack_until(
    attacker: Attacker, order: Sequence[tuple[str, Attack]], cascade: bool, count: int, width: float
) -> tuple[int, dict[str, AttackResult | Exception]]:
    """Attack blocks of samples until the 95% interval of every budget is at most ``width`` wide.

    The stopping rule depends on the data, which a fixed-size interval does not account for. In simulations of 1,500
    runs at six accuracies, the interval covered the true value in 94.9% to 99.3% of the runs.

    If the samples run out first, a warning gives the width reached and the number of samples needed.

    Args:
        attacker: function that runs an attack, by label, on some rows; in a cascade it receives the earlier results.
        order: labelled attacks in running order.
        cascade: whether each attack runs only on the samples that remain after the attacks before it.
        count: number of available samples.
        width: maximum width of the worst-case interval of each budget, as a share.

    Returns:
        The number of attacked samples, and the result of each attack, or the exception that ended it.
    """
    done, size = 0, min(count, _FIRST)
    results: dict[str, AttackResult | Exception] = {}
    while done < count:
        rows = slice(done, min(count, done + size))
        before: dict[Budget, AttackResult] = {}
        for label, attack in order:
            if isinstance(results.get(label), Exception):
                continue
            budget = (attack.threat.norm, attack.threat.eps)
            known = before.get(budget) if cascade else None
            part = attacker(label, attack, rows, known)
            if not isinstance(part, Exception):
                part = after(known, part) if known else part
                before[budget] = part
                former = results.get(label)
                part = joined(former, part) if isinstance(former, AttackResult) else part
            results[label] = part
        done = rows.stop
        remaining = _remaining(results, order)
        if not remaining:  # every attack failed
            break
        hits = [float(right.sum()) for right in remaining.values()]
        widest = max(high - low for low, high in (clopper_pearson(h, done) for h in hits))
        if widest <= width:
            break
        needed = max(samples_needed(h, done, width) for h in hits)
        if done == count:
            warnings.warn(
                f"after all {count:,} samples the widest 95% interval is {widest:.1%}, not {width:.1%}: "
                f"that takes about {needed:,}.",
                RobGIBWarning,
                stacklevel=2,
            )
        size = min(done, max(_LEAST, needed - done))
    return done, results


def _remaining(
    results: Mapping[str, AttackResult | Exception], order: Sequence[tuple[str, Attack]]
) -> dict[Budget, np.ndarray]:
    """Return, by budget, the smallest share (N,) of right answers that any attack left."""
    least: dict[Budget, np.ndarray] = {}
    for label, attack in order:
        result = results[label]
        if isinstance(result, AttackResult):
            budget = (attack.threat.norm, attack.threat.eps)
            least[budget] = np.minimum(least.get(budget, result.right), result.right)
    return least
