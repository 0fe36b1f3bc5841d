"""Many models: what each comes to in one row, and how the rows go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robgib.results import Run
from robgib.statistics import compression_interval, spearman

__all__ = ["LEAST_MODELS", "Correlation", "correlate", "display_names", "summarise"]

LEAST_MODELS = 5
"""Fewer models than this are too few to correlate."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over models between an information figure and the robust accuracy, with its 95% interval."""

    estimator: str
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


def summarise(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a model, estimator and attack.

    ``gib_compression`` is how far the GIB complexity C(X;Z) falls from its highest layer to the last one, as a
    share of the highest: the compression that synergy-based complexity sees. ``ib_compression`` is the same of
    I(X;Z). ``ib_complexity`` is I(X;Z) averaged over the layers, ``synergy`` is S(X;Z) likewise (bits).
    """
    rows = []
    for run, name in zip(runs, display_names(runs), strict=True):
        attacks = run.robustness[run.robustness["status"] == "ok"]
        for estimator, table in run.layers.groupby("estimator", sort=False):
            wide = {t: g.sort_values("depth") for t, g in table.groupby("term")}
            figures: dict[str, float] = {}
            for key, term in (("gib_compression", "C(X;Z)"), ("ib_compression", "I(X;Z)")):
                g = wide[term]
                triple = compression_interval(list(g["value"]), list(g["low"]), list(g["high"]))
                figures |= {key: triple[0], f"{key}_low": triple[1], f"{key}_high": triple[2]}
            for key, term in (("ib_complexity", "I(X;Z)"), ("synergy", "S(X;Z)")):
                g = wide[term]
                # Layers share their samples, so the mean's half-width is the mean of theirs: no cancelling assumed.
                half = float((g["high"] - g["low"]).mean() / 2)
                value = float(g["value"].mean())
                figures |= {key: value, f"{key}_low": value - half, f"{key}_high": value + half}
            saturated = bool(pd.concat([wide["C(X;Z)"], wide["I(X;Z)"]])["saturated"].any())
            for attack in attacks.itertuples():
                rows.append(
                    {
                        "model": name,
                        "estimator": estimator,
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
    return pd.DataFrame(rows)


def correlate(summary: pd.DataFrame) -> list[Correlation]:
    """Correlate each figure with robust accuracy over the models, per estimator and attack.

    Attacks that not every model has met are left out. Below :data:`LEAST_MODELS` models ρ is NaN.
    """
    found: list[Correlation] = []
    if summary.empty:
        return found
    models = summary["model"].nunique()
    for (estimator, attack), g in summary.groupby(["estimator", "attack"], sort=False):
        if len(g) < models or g["eps"].nunique() > 1:
            continue
        for figure in ("gib_compression", "ib_compression", "ib_complexity", "synergy"):
            triple = spearman(list(g[figure]), list(g["robust_accuracy"])) if len(g) >= LEAST_MODELS else (np.nan,) * 3
            found.append(Correlation(str(estimator), str(attack), figure, len(g), *triple))
    return found
