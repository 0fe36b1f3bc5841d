"""Estimators against the truth: how far each estimate is off on tasks of known information."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed

from robgib.errors import RobGIBWarning
from robgib.information.base import Decomposition, Estimator
from robgib.information.measures import functionals
from robgib.information.validation_tasks import Task, Vector
from robgib.results import table
from robgib.runtime import Progress

__all__ = [
    "validate",
]


def _figures(found: Decomposition) -> list[Any]:
    return [
        found.total,
        *found.singles,
        *found.rests,
        *found.interaction,
        found.synergy,
        found.complexity,
        found.slack,
    ]


def validate(
    estimators: Sequence[Estimator],
    chosen: Sequence[Task],
    *,
    repeats: int = 20,
    seed: int = 0,
    every: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Hold estimators against the truth.

    Args:
        estimators: the estimators.
        chosen: the tasks.
        repeats: draws of each task.
        seed: of the draws.
        every: also ask estimators outside the regimes that they claim.
        jobs: processes that share the repeats, each with its part of the threads; the times are then theirs.
        progress: called after each repeat.

    Returns:
        A row an estimator, task and figure (I, S, C, and ``singles`` and ``rests`` pooled): mean truth,
        ``bias`` and ``sd`` of the error in bits, ``coverage`` of the 95% interval, ``null``: share of
        shuffled targets whose intervals of I and S contain 0, ``saturated``: share of marked figures,
        ``seconds`` an estimate, and whether the estimator ``claims`` the regime.
    """
    rows: list[dict[str, Any]] = []
    work = [(e, t) for e in estimators for t in chosen if every or t.regime in e.regimes]
    for number, (estimator, task) in enumerate(work):
        plug_in = type(estimator).__module__.startswith("robgib_plugin_")  # a file that others cannot import
        trials = []
        parallel = Parallel(n_jobs=1 if plug_in else jobs, return_as="generator")
        for trial in parallel(delayed(_try)(estimator, task, seed, r) for r in range(repeats)):
            trials.append(trial)
            if progress:
                progress(f"{estimator.name}: {task.name}", len(trials), repeats, f"{number + 1}/{len(work)}")
        rows += _rows(estimator, task, trials)
    return table("validation", rows)


@dataclass(frozen=True)
class _Trial:
    """One draw of a task: truth and error of every figure, whether its interval holds the truth, and the rest."""

    truth: Vector
    error: Vector
    inside: npt.NDArray[np.bool_]
    null: tuple[bool, bool]
    saturated: bool
    seconds: float


def _try(estimator: Estimator, task: Task, seed: int, repeat: int) -> _Trial:
    rng = np.random.default_rng([seed, repeat])
    sample = task.draw(task.samples, rng)
    truth = functionals((len(sample.truth) - 1) // 2) @ sample.truth
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)
        began = time.perf_counter()
        found = estimator.estimate(sample.features, sample.target)
        seconds = time.perf_counter() - began
        null = estimator.estimate(sample.features, sample.target[rng.permutation(task.samples)])
    figures = _figures(found)
    return _Trial(
        truth=truth,
        error=np.array([e.value for e in figures]) - truth,
        # Rounding: a figure without any error may differ from the truth in the last digit.
        inside=np.array([e.low - 1e-9 <= t <= e.high + 1e-9 for e, t in zip(figures, truth, strict=True)]),
        null=(null.total.low <= 0 <= null.total.high, null.synergy.low <= 0 <= null.synergy.high),
        saturated=found.total.saturated or found.synergy.saturated,
        seconds=seconds,
    )


def _rows(estimator: Estimator, task: Task, trials: Sequence[_Trial]) -> list[dict[str, Any]]:
    error, inside, truth = (np.stack([getattr(t, what) for t in trials]) for what in ("error", "inside", "truth"))
    n = (truth.shape[1] - 4) // 3
    places = {
        "I": [0],
        "S": [3 * n + 1],
        "C": [3 * n + 2],
        "singles": list(range(1, n + 1)),
        "rests": list(range(n + 1, 2 * n + 1)),
    }
    return [
        {
            "estimator": estimator.name,
            "regime": task.regime,
            "task": task.name,
            "samples": task.samples,
            "figure": figure,
            "truth": float(truth[:, columns].mean()),
            "bias": float(error[:, columns].mean()),
            "sd": float(error[:, columns].std(0, ddof=1).mean()) if len(trials) > 1 else float("nan"),
            "coverage": float(inside[:, columns].mean()),
            "null": float(np.mean([t.null for t in trials])),
            "saturated": float(np.mean([t.saturated for t in trials])),
            "seconds": float(np.median([t.seconds for t in trials])),
            "repeats": len(trials),
            "claims": task.regime in estimator.regimes,
        }
        for figure, columns in places.items()
    ]
