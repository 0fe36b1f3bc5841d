"""Many models: what each comes to in one row, and how the rows go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robgib.results import Run, table
from robgib.statistics import compression_interval, spearman

__all__ = [
    "ALIKE",
    "LEAST_MODELS",
    "Correlation",
    "correlate",
    "display_names",
    "of_section",
    "sections",
    "summarise",
    "told_apart",
]

LEAST_MODELS = 5
"""Fewer models than this are too few to correlate."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over models between an information figure and the robust accuracy, with its 95% interval."""

    estimator: str
    partition: str
    attack: str
    figure: str
    models: int
    rho: float
    low: float
    high: float


def display_names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: the model's, or the folder's where two models share one."""
    names = [run.name for run in runs]
    return [run.folder if names.count(run.name) > 1 else run.name for run in runs]


def sections(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The pairs of estimator and partition that the runs' layers were measured by, in order."""
    found = [t for run in runs for t in zip(run.layers["estimator"], run.layers["partition"], strict=True)]
    return list(dict.fromkeys(found))


def of_section(run: Run, estimator: str, partition: str) -> pd.DataFrame:
    """The layers' rows of one estimator and partition, without the labels beside them."""
    held = run.layers
    chosen = (held["estimator"] == estimator) & (held["partition"] == partition) & (held["depth"] >= 0)
    return held[chosen]


FIGURES = {
    "vulnerability": "v(X;Z)",
    "redundancy": "r(X;Z)",
    "gib_complexity": "C(X;Z)",
    "ib_complexity": "I(X;Z)",
    "synergy": "S(X;Z)",
}
"""What is averaged over the layers, by the term that it is of."""
DEPTH = {"gib_depth_compression": "C(X;Z)", "ib_depth_compression": "I(X;Z)"}


def summarise(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a model, estimator, partition and attack.

    ``vulnerability``, ``redundancy`` (numbers of features), ``gib_complexity``, ``ib_complexity`` and ``synergy``
    (bits) are averages over the layers. ``gib_depth_compression`` is how far C(X;Z) falls from its highest layer to the
    last one, as a share of the highest, and ``ib_depth_compression`` the same of I(X;Z): they describe an architecture,
    and untrained networks have them too.
    """
    rows = []
    for run, name in zip(runs, display_names(runs), strict=True):
        attacks = run.robustness[run.robustness["status"] == "ok"]
        for estimator, partition in sections([run]):
            held = of_section(run, estimator, partition)
            if held.empty:
                continue
            wide = {t: g.sort_values("depth") for t, g in held.groupby("term")}
            figures: dict[str, float] = {}
            for key, term in FIGURES.items():
                g = wide.get(term)
                value, half = np.nan, np.nan
                if g is not None:
                    # Layers share their samples, so the mean's half-width is the mean of theirs: nothing cancels.
                    value, half = float(g["value"].mean(skipna=False)), float((g["high"] - g["low"]).mean() / 2)
                figures |= {key: value, f"{key}_low": value - half, f"{key}_high": value + half}
            for key, term in DEPTH.items():
                g = wide[term]
                triple = compression_interval(list(g["value"]), list(g["low"]), list(g["high"]))
                figures |= {key: triple[0], f"{key}_low": triple[1], f"{key}_high": triple[2]}
            saturated = bool(held[held["term"].isin(FIGURES.values())]["saturated"].any())
            for attack in attacks.itertuples():
                rows.append(
                    {
                        "model": name,
                        "estimator": estimator,
                        "partition": partition,
                        "attack": attack.attack,
                        "norm": attack.norm,
                        "eps": attack.eps,
                        "robust_accuracy": attack.robust_accuracy,
                        "robust_low": attack.low,
                        "robust_high": attack.high,
                        **figures,
                        "saturated": saturated,
                    }
                )
    return table("summary", rows)


ALIKE = 0.95
"""Correlation of C and I over models above which the GIB cannot be told from the IB."""


def told_apart(summary: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Pearson's correlation of C and I, averaged over layers, over the models; by estimator and partition.

    NaN where it cannot be had. Above :data:`ALIKE` no comparison over these models can tell the GIB from the IB.
    """
    found: dict[tuple[str, str], float] = {}
    if summary.empty:
        return found
    for (estimator, partition), g in summary.groupby(["estimator", "partition"], sort=False):
        one = g.drop_duplicates("model")[["gib_complexity", "ib_complexity"]].dropna()
        enough = len(one) >= LEAST_MODELS and (one.std() > 0).all()
        rho = float(np.corrcoef(one.to_numpy().T)[0, 1]) if enough else float("nan")
        found[str(estimator), str(partition)] = rho
    return found


def correlate(summary: pd.DataFrame) -> list[Correlation]:
    """Correlate each figure with robust accuracy over the models, per estimator, partition and attack.

    Attacks that not every model has met are left out. Below :data:`LEAST_MODELS` models ρ is NaN.
    """
    found: list[Correlation] = []
    if summary.empty:
        return found
    models = summary["model"].nunique()
    for (estimator, partition, attack), g in summary.groupby(["estimator", "partition", "attack"], sort=False):
        if len(g) < models or g["eps"].nunique() > 1:
            continue
        for figure in (*FIGURES, *DEPTH):
            if len(g) < LEAST_MODELS:
                triple = (np.nan,) * 3
            elif g[figure].notna().any():
                triple = spearman(list(g[figure]), list(g["robust_accuracy"]))
            else:  # not what this estimator gives
                continue
            found.append(Correlation(str(estimator), str(partition), str(attack), figure, len(g), *triple))
    return found
