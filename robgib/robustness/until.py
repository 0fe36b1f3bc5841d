"""Attacks on as many samples as an interval of a given width takes, and no more."""

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
_MOST = 2**24  # beyond which nobody has samples
_LEAST = 32  # and of each further one, at least

Budget = tuple[str, float]  # norm and eps
Attacker = Callable[[str, Attack, slice, AttackResult | None], AttackResult | Exception]


def samples_needed(hits: float, samples: int, width: float) -> int:
    """How many samples an interval of at most ``width`` takes, to a hundredth, if the share stays as it is.

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
    """Attack block after block of samples until every budget's 95% interval is at most ``width`` wide.

    Where one stops depends on what was found, for which an interval of fixed size makes no allowance: in simulations
    of 1,500 runs at six accuracies it held the truth in 94.9% to 99.3%.

    Where the samples end before that, a warning says how wide the interval is and how many it would take.

    Args:
        attacker: runs an attack, by label, on some rows, in a cascade after what those before it did to them.
        order: attacks by label, in turn.
        cascade: whether each is run on what those before it at its budget left.
        count: samples that there are.
        width: of the interval of what all attacks of a budget leave together, as a share.

    Returns:
        How many samples were attacked, and what each attack did to them; an exception where it failed.
    """
    done, size = 0, min(count, _FIRST)
    found: dict[str, AttackResult | Exception] = {}
    while done < count:
        rows = slice(done, min(count, done + size))
        before: dict[Budget, AttackResult] = {}
        for label, attack in order:
            if isinstance(found.get(label), Exception):
                continue
            budget = (attack.threat.norm, attack.threat.eps)
            known = before.get(budget) if cascade else None
            part = attacker(label, attack, rows, known)
            if not isinstance(part, Exception):
                part = after(known, part) if known else part
                before[budget] = part
                former = found.get(label)
                part = joined(former, part) if isinstance(former, AttackResult) else part
            found[label] = part
        done = rows.stop
        standing = _standing(found, order)
        if not standing:  # every attack failed
            break
        hits = [float(right.sum()) for right in standing.values()]
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
    return done, found


def _standing(
    found: Mapping[str, AttackResult | Exception], order: Sequence[tuple[str, Attack]]
) -> dict[Budget, np.ndarray]:
    """By budget the least share (N,) of right answers that any attack left."""
    least: dict[Budget, np.ndarray] = {}
    for label, attack in order:
        result = found[label]
        if isinstance(result, AttackResult):
            budget = (attack.threat.norm, attack.threat.eps)
            least[budget] = np.minimum(least.get(budget, result.right), result.right)
    return least
