"""The audit: AutoAttack on a random sample of what other attacks leave, and an exact bound of what it would find."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from robgib.attacks.autoattack import AutoAttack
from robgib.attacks.base import Attack
from robgib.attacks.fast import FastEnsemble
from robgib.attacks.threat_model import ThreatModel
from robgib.errors import RobGIBError
from robgib.models.inference import QueryCount
from robgib.options import AttackOptions
from robgib.robustness.run_attack import AttackResult, after
from robgib.statistics import most_unseen

__all__ = ["Audited", "Auditor", "audit", "audit_size", "audit_wanted", "further_label", "scattered", "without_audit"]

Auditor = Callable[[Attack, AttackResult, np.ndarray, str], AttackResult]
"""Runs an attack on rows (n,) of the samples, given what is known of all and a label; returns the rows' results."""


@dataclass(frozen=True)
class Audited:
    """The result of an audit.

    Attributes:
        attack: the audit's attack.
        result: what the attacks before it and the audit leave together.
        samples: number of remaining samples that were audited.
        bound: share of all samples by which AutoAttack would lower the robust accuracy at most (95%).
    """

    attack: Attack
    result: AttackResult
    samples: int
    bound: float


def audit_wanted(attacks: Iterable[Attack], wanted: float | None) -> bool:
    """Whether attacks of one budget are audited: by default after the fast ensemble, never after AutoAttack.

    ``wanted`` is :attr:`~robgib.options.AttackOptions.audit`.

    >>> from robgib.attacks import PGD
    >>> audit_wanted([FastEnsemble("linf", 0.1)], None), audit_wanted([PGD("linf", 0.1)], None)
    (True, False)
    """
    kinds = [type(attack) for attack in attacks]
    norm = {attack.norm for attack in attacks if attack.norm in AutoAttack.norms}
    if not norm or AutoAttack in kinds or wanted == 0:
        return False
    return wanted is not None or FastEnsemble in kinds


def without_audit(options: AttackOptions) -> AttackOptions:
    """Return options that leave out the audit, which is not defined for targets and transfers.

    Raises:
        RobGIBError: it was asked for.
    """
    if options.audit:
        raise RobGIBError(
            "--audit and --targets or --transfer-from exclude each other: AutoAttack aims at classes of its own, on "
            "the model itself; give one."
        )
    return replace(options, audit=0)


def further_label(word: str, threat: ThreatModel, budgets: Iterable[tuple[str, float]]) -> str:
    """Return the label of an audit or a failure check: with its eps where several budgets have one norm.

    >>> further_label("audit", ThreatModel("linf", 0.1), [("linf", 0.1), ("l2", 0.5)])
    'audit-linf'
    """
    several = sum(norm == threat.norm for norm, _ in budgets) > 1
    return f"{word}-{threat.norm}" + (f":eps={threat.eps:.9g}" if several else "")


def audit_size(remaining: int, samples: int, bound: float) -> int:
    """Return the smallest number of audited samples whose bound is at most ``bound``, if none of them is fooled.

    >>> audit_size(400, 1000, 0.02)
    52
    """
    low, high = 0, remaining
    while low < high:
        middle = (low + high) // 2
        if most_unseen(remaining, middle) <= bound * samples:
            high = middle
        else:
            low = middle + 1
    return high


def audit(
    auditor: Auditor,
    known: AttackResult,
    attack: AutoAttack,
    label: str,
    *,
    spent: int,
    bound: float | None = None,
    seed: int = 0,
) -> Audited | None:
    """Run AutoAttack on a random sample of the remaining samples; if it fools any, on all of them.

    Args:
        auditor: runs an attack on some rows.
        known: what the attacks of this budget leave together, of N samples.
        attack: AutoAttack at this budget, in its version for stochastic models if the model is one.
        label: name of the audit, for progress and resume.
        spent: passes that the attacks took; without a bound the audit takes about as many.
        bound: share of the N samples by which AutoAttack may lower the robust accuracy at most, if it fools none.
        seed: seed of the draw.

    Returns:
        The result, or None if nothing remains or not even one sample is affordable.
    """
    samples, remaining = len(known.right), np.flatnonzero(known.right >= 0.5)
    size = (
        min(len(remaining), int(spent // (3 * attack.cost)))
        if bound is None
        else audit_size(len(remaining), samples, bound)
    )
    if not size:
        return None
    # The draw depends on the seed and the budget alone, so that a resumed run audits the same samples.
    key = [seed, zlib.crc32(f"{attack.norm} {attack.eps:.9g}".encode())]
    drawn = np.random.default_rng(key).permutation(remaining)
    sample, rest = np.sort(drawn[:size]), np.sort(drawn[size:])
    result = _attacked(auditor, attack, known, sample, label)
    fooled = int((result.right[sample] < 0.5).sum())
    of = f"{size} of the {len(remaining)} remaining images"
    if not fooled:
        most = most_unseen(len(remaining), size)
        note = f"AutoAttack fooled none of {of}: it would lower this by at most {100 * most / samples:.1f} points (95%)"
        return Audited(attack, replace(result, notes=(note,)), size, most / samples)
    note = f"AutoAttack fooled {fooled} of {of}, and then attacked all of them"
    if len(rest):
        whole = _attacked(auditor, attack, result, rest, f"{label} of the rest")
        passes = [part.passes for part in (result, whole)]
        result = replace(
            whole,
            passes=QueryCount(sum(p.forward for p in passes), sum(p.backward for p in passes)),
            seconds=result.seconds + whole.seconds,
            pictures={**result.pictures, **whole.pictures},
        )
    return Audited(attack, replace(result, notes=(note,)), len(remaining), 0.0)


def _attacked(auditor: Auditor, attack: Attack, known: AttackResult, rows: np.ndarray, label: str) -> AttackResult:
    """Attack some rows, and return the result of all: the other rows keep theirs."""
    return after(known, scattered(known, auditor(attack, known, rows, label), rows))


def scattered(known: AttackResult, part: AttackResult, rows: np.ndarray) -> AttackResult:
    """Return the result ``part`` of the samples ``rows`` as one of all samples: the others keep those of ``known``."""

    def whole(name: str) -> np.ndarray:
        values: np.ndarray = getattr(known, name).copy()
        values[rows] = getattr(part, name)
        return values

    fields = ("prediction", "right", "right_8bit", "linf", "l2", "distance")
    return replace(
        part,
        **{name: whole(name) for name in fields},  # type: ignore[arg-type]
        attacked=None if part.attacked is None else _spread(part.attacked, rows, len(known.right)),
        pictures={int(rows[row]): image for row, image in part.pictures.items()},
    )


def _spread(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return booleans (n,) of some rows as those of all rows (count,), False elsewhere."""
    whole = np.zeros(count, bool)
    whole[rows] = values
    return whole
