"""Rank agreement of figures with an outcome, as studies of generalisation measures report it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from robgib.studies.strata import axes, cell_of

__all__ = ["agreement", "granulated", "partial_kendall", "sign_errors", "within_levels"]

Vector = npt.NDArray[np.float64]
_FEWEST = 2  # pairs of models that make an environment


def agreement(
    rows: pd.DataFrame, labels: Sequence[str], baselines: Sequence[str] = (), expect: int = 0
) -> pd.DataFrame:
    """Return a row a figure with its rank agreement with the outcome.

    Columns: ``tau`` (Kendall's τ over all models), ``tau given baselines`` (partial), ``Ψ`` (Jiang et al. 2020: the
    mean of the granulated coefficients) and ``Ψ FIELD`` (only that field varies), ``τ at fixed FIELD`` (the mean of τ
    among models that share its level), ``worst sign error`` and ``mean sign error`` over environments (Dziugaite et al.
    2020), and how many ``environments`` there are.

    Args:
        rows: models, with ``outcome`` and ``outcome_se``.
        labels: columns of the figures.
        baselines: columns that the partial coefficient is given.
        expect: sign of the agreement that counts as right; 0 takes that of τ.
    """
    return pd.DataFrame([_row(rows, label, baselines, expect) for label in labels])


def _row(rows: pd.DataFrame, label: str, baselines: Sequence[str], expect: int) -> dict[str, float | str]:
    rows = rows.dropna(subset=[label, "outcome"])
    row: dict[str, float | str] = {"figure": label, "models": len(rows)}
    if len(rows) < 4 or rows[label].nunique() < 2 or rows["outcome"].nunique() < 2:
        return row
    x, y = rows[label].to_numpy(float), rows["outcome"].to_numpy(float)
    tau = float(stats.kendalltau(x, y).statistic)
    given = [rows[b].to_numpy(float) for b in baselines if b != label]
    levels = {**axes(rows), **_seeds(rows)}
    psi = {name: granulated(x, y, levels, name) for name in levels}
    known = [v for v in psi.values() if not math.isnan(v)]
    errors = sign_errors(x, y, rows["outcome_se"].to_numpy(float), levels, expect or int(np.sign(tau)))
    return {
        **row,
        "tau": tau,
        "tau given baselines": partial_kendall(x, y, given) if given else math.nan,
        "Ψ": float(np.mean(known)) if known else math.nan,
        **{f"Ψ {name}": v for name, v in psi.items()},
        **{f"τ at fixed {name}": within_levels(x, y, levels[name]) for name in levels if name != "seed"},
        "τ at fixed training": within_levels(x, y, cell_of(rows)),
        "worst sign error": max(errors, default=math.nan),
        "mean sign error": float(np.mean(errors)) if errors else math.nan,
        "environments": len(errors),
    }


def _seeds(rows: pd.DataFrame) -> dict[str, npt.NDArray[np.int64]]:
    level = np.asarray(rows.groupby("training_seed").ngroup(), dtype=np.int64)
    return {"seed": level} if level.max(initial=0) > 0 else {}


def granulated(x: Vector, y: Vector, levels: dict[str, npt.NDArray[np.int64]], field: str) -> float:
    """Return Jiang et al.'s ψ of one field: the mean sign agreement of models that differ in that field alone.

    Groups of models that share every other field are averaged with equal weight (their equation 6); NaN where there is
    none of two models.

    >>> levels = {"depth": np.array([0, 1, 0, 1]), "seed": np.array([0, 0, 1, 1])}
    >>> granulated(np.array([1.0, 2, 1, 2]), np.array([1.0, 2, 5, 3]), levels, "depth")
    0.0
    """
    others = [level for name, level in levels.items() if name != field]
    keys = np.column_stack([np.zeros(len(x), dtype=np.int64), *others])
    _, group = np.unique(keys, axis=0, return_inverse=True)
    agreed = [_concordance(x[group == g], y[group == g]) for g in np.unique(group) if (group == g).sum() > 1]
    return float(np.mean(agreed)) if agreed else math.nan


def _concordance(x: Vector, y: Vector) -> float:
    i, j = np.triu_indices(len(x), 1)
    return float((np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])).mean())


def within_levels(x: Vector, y: Vector, level: npt.NDArray[np.int64]) -> float:
    """Kendall's τ-a among models that share a level, over all such pairs; NaN where no two do."""
    i, j = np.triu_indices(len(x), 1)
    same = level[i] == level[j]
    if not same.any():
        return math.nan
    return float((np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]))[same].mean())


def partial_kendall(x: Vector, y: Vector, given: Sequence[Vector]) -> float:
    """Kendall's partial τ of x and y given further variables: from the inverse of the matrix of their τ's.

    NaN where that matrix is singular.

    >>> x, y, z = np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4]), np.array([1, 2, 4, 3])  # τ: 2/3, 2/3 and 1/3
    >>> round(partial_kendall(x, y, [z]), 4)
    0.6325
    """
    columns = pd.DataFrame(np.column_stack([x, y, *given]))
    matrix = columns.corr("kendall").to_numpy()
    if not np.isfinite(matrix).all() or np.linalg.cond(matrix) > 1e10:
        return math.nan
    inverse = np.linalg.inv(matrix)
    return float(np.clip(-inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1]), -1, 1))


def sign_errors(
    x: Vector, y: Vector, error: Vector, levels: dict[str, npt.NDArray[np.int64]], sign: int
) -> list[float]:
    """Return the sign error of each environment (Dziugaite et al. 2020).

    An environment is a change of one field from one level to another. Its error is the weighted share of the pairs of
    models, differing by this change alone, in which figure and outcome do not change in the direction of ``sign``; a
    pair with equal figures is half an error. The weight of a pair is 2Φ(|difference of outcomes| / standard error) − 1;
    a pair without a standard error has none.
    """
    errors = []
    for field, level in levels.items():
        keys = np.column_stack([np.zeros(len(x), dtype=np.int64), *(v for n, v in levels.items() if n != field)])
        _, group = np.unique(keys, axis=0, return_inverse=True)
        i, j = np.triu_indices(len(x), 1)
        pair = (group[i] == group[j]) & (level[i] != level[j])
        i, j = i[pair], j[pair]
        spread = np.maximum(np.hypot(error[i], error[j]), 1e-12)
        weight = np.nan_to_num(2 * stats.norm.cdf(np.abs(y[i] - y[j]) / spread) - 1)
        wrong = (1 - sign * np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) / 2
        low, high = np.minimum(level[i], level[j]), np.maximum(level[i], level[j])
        for a, b in itertools.combinations(range(int(level.max()) + 1), 2):
            of = (low == a) & (high == b)
            if of.sum() >= _FEWEST and weight[of].sum() > 0:
                errors.append(float((weight * wrong)[of].sum() / weight[of].sum()))
    return errors
