"""Table rows of an evaluation, from the results of attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robgib.models.inference import Answers, QueryCount
from robgib.robustness.run_attack import AttackResult
from robgib.statistics import clopper_pearson

__all__ = ["curve_rows", "outcome_rows", "summary_row", "unattacked_row", "worst_row"]


def outcome_rows(
    base: Mapping[str, Any],
    truth: np.ndarray,
    clean: Answers,
    outcome: AttackResult,
    nearest: np.ndarray,
    targets: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the outcomes rows of an attack, one per sample; ``base`` holds its label and budget.

    A sample with a target (N,) is robust unless its target is reached.
    """
    kept = outcome.prediction == truth if targets is None else outcome.prediction != targets
    return pd.DataFrame(
        {
            "index": np.arange(len(truth)),
            "label": truth,
            **base,
            "clean_prediction": clean.prediction,
            "adversarial_prediction": outcome.prediction,
            "robust": (clean.right > 0) & kept,
            "right": outcome.right,
            "right_8bit": outcome.right_8bit,
            "linf": outcome.linf,
            "l2": outcome.l2,
            "distance": nearest,
            "certified_margin": np.nan,
        }
    )


def curve_rows(base: Mapping[str, Any], points: Sequence[tuple[float, float]], count: int) -> list[dict[str, Any]]:
    """Return the curve rows of an attack, one per point (eps, number of right samples of ``count``)."""
    rows = []
    for eps, hits in points:
        low, high = clopper_pearson(hits, count)
        rows.append(
            {**base, "at": eps, "right": hits, "samples": count, "accuracy": hits / count, "low": low, "high": high}
        )
    return rows


def worst_row(norm: str, eps: float, clean: Answers, outcomes: Sequence[AttackResult]) -> dict[str, Any]:
    """Return the worst-case row of several attacks at one budget, each run on all samples."""
    worst = dataclasses.replace(
        outcomes[0],
        prediction=_worst_answer(outcomes),
        right=np.minimum.reduce([o.right for o in outcomes]),
        right_8bit=np.minimum.reduce([o.right_8bit for o in outcomes]),
        passes=QueryCount(),
        seconds=0.0,
        notes=(),
    )
    return summary_row({"attack": f"worst of {len(outcomes)}", "norm": norm, "eps": eps}, clean, worst, "")


def unattacked_row(clean: Answers) -> dict[str, Any]:
    """Return the row of a run without attacks."""
    nowhere = np.zeros(len(clean.right))
    unharmed = AttackResult(clean.prediction, clean.right, clean.right, nowhere, nowhere, nowhere, {}, QueryCount())
    return summary_row({"attack": "none", "norm": "", "eps": 0.0}, clean, unharmed, "")


def summary_row(
    base: Mapping[str, Any],
    clean: Answers,
    outcome: AttackResult | None,
    reason: str,
    nearest: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return a row of the robustness table; ``outcome`` is None if the attack failed."""
    count, correct = len(clean.right), _whole(clean.right.sum())
    clean_low, clean_high = clopper_pearson(correct, count)
    remaining = np.nan if outcome is None else _whole(outcome.right.sum())
    low, high = (np.nan, np.nan) if outcome is None else clopper_pearson(remaining, count)
    return {
        **base,
        "samples": count,
        "correct": correct,
        "robust": remaining,
        "clean_accuracy": correct / count,
        "clean_low": clean_low,
        "clean_high": clean_high,
        "robust_accuracy": remaining / count,
        "low": low,
        "high": high,
        "robust_accuracy_8bit": np.nan if outcome is None else float(outcome.right_8bit.mean()),
        "certified": np.nan,
        "certified_accuracy": np.nan,
        "audited": np.nan,
        "audit_bound": np.nan,
        "not_finite": 0 if outcome is None else int((outcome.prediction < 0).sum()),
        "seconds": round(outcome.seconds, 3) if outcome else 0.0,
        "forward": outcome.passes.forward if outcome else 0,
        "backward": outcome.passes.backward if outcome else 0,
        "median_distance": float(np.median(nearest[clean.right > 0])) if nearest is not None and correct else np.nan,
        "status": "ok" if outcome else "failed",
        "reason": reason,
        "note": "; ".join(filter(None, outcome.notes)) if outcome else "",
    }


def _whole(total: float) -> float:
    """Return a count as an int, or as a float if it is a sum of shares."""
    return int(total) if float(total).is_integer() else float(total)


def _worst_answer(outcomes: Sequence[AttackResult]) -> np.ndarray:
    """Return, for each sample, the prediction (N,) of the attack that left the smallest share of right answers."""
    which = np.stack([o.right for o in outcomes]).argmin(0)
    return np.stack([o.prediction for o in outcomes])[which, np.arange(len(which))]
