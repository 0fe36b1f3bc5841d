"""Comparison of models: one row per model, and correlations over the rows."""

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
    "collinearity",
    "correlate",
    "display_names",
    "feature_noun",
    "in_reading_order",
    "of_section",
    "sections",
    "summarise",
    "term_label",
    "unstable_orders",
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
    """Return distinct names of the runs: the model's, or the folder's if two models share one."""
    names = [run.name for run in runs]
    return [run.folder if names.count(run.name) > 1 else run.name for run in runs]


def feature_noun(partition: str, many: bool = False) -> str:
    """Return what one feature of a partition is called, or many.

    >>> feature_noun("patches:4"), feature_noun("tokens:4", many=True), feature_noun("pca:8", many=True)
    ('patch', 'runs of tokens', 'components')
    """
    nouns = {
        "patches": ("patch", "patches"),
        "tokens": ("run of tokens", "runs of tokens"),
        "pixels": ("pixel", "pixels"),
        "channels": ("channel", "channels"),
    }
    return nouns.get(partition.partition(":")[0], ("component", "components"))[many]


def sections(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the pairs of estimator and partition in the runs' layers, in order."""
    pairs = [t for run in runs for t in zip(run.layers["estimator"], run.layers["partition"], strict=True)]
    return list(dict.fromkeys(pairs))


def of_section(run: Run, estimator: str, partition: str) -> pd.DataFrame:
    """Return the layers' rows of one estimator and partition, without those of the labels."""
    layers = run.layers
    chosen = (layers["estimator"] == estimator) & (layers["partition"] == partition) & (layers["depth"] >= 0)
    return layers[chosen]


FIGURES = {
    "vulnerability": "v(X;Z)",
    "redundancy": "r(X;Z)",
    "gib_complexity": "C(X;Z)",
    "ib_complexity": "I(X;Z)",
    "synergy": "S(X;Z)",
}
"""Figures that average a term over the layers."""
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
            layers = of_section(run, estimator, partition)
            if layers.empty:
                continue
            wide = {t: g.sort_values("depth") for t, g in layers.groupby("term")}
            figures: dict[str, float] = {}
            for key, term in FIGURES.items():
                g = wide.get(term)
                for end, column in ((key, "value"), (f"{key}_low", "low"), (f"{key}_high", "high")):
                    # Layers share their samples, so the ends of the mean are the means of their ends: nothing cancels.
                    figures[end] = np.nan if g is None else float(g[column].mean(skipna=False))
            for key, term in DEPTH.items():
                g = wide[term]
                triple = compression_interval(list(g["value"]), list(g["low"]), list(g["high"]))
                figures |= {key: triple[0], f"{key}_low": triple[1], f"{key}_high": triple[2]}
            flagged = bool(layers[layers["term"].isin(FIGURES.values())]["flagged"].any())
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
                        "flagged": flagged,
                    }
                )
    return table("summary", rows)


PREDICTION = "Ŷ"
"""The layer of the tables that needs no codes: the predicted label."""
RESOLUTIONS = {"k/2": " k/2", "k": "", "2k": " 2k"}
"""Numbers of codes at which terms are given, with the ends of the terms' names."""


def in_reading_order(layers: pd.DataFrame) -> pd.DataFrame:
    """Return a table's rows in reading order: the predicted label, which needs no codes, the layers, the label.

    >>> layers = pd.DataFrame({"layer": ["fc", "Ŷ", "Y"], "depth": [0, -1, -1]})
    >>> in_reading_order(layers)["layer"].tolist()
    ['Ŷ', 'fc', 'Y']
    """
    place = layers["depth"].where(layers["depth"] >= 0, 10**6).where(layers["layer"] != PREDICTION, -1)
    return layers.assign(place=place).sort_values("place", kind="stable").drop(columns="place")


def term_label(term: str, view: str) -> str:
    """Return a term's label: I(X;Z) of a code is its rate, which the number of symbols determines.

    >>> term_label("I(X;Z)", "rate"), term_label("I(X;Z)", "noise")
    ('rate', 'I(X;Z)')
    """
    return "rate" if term == "I(X;Z)" and view == "rate" else term


def unstable_orders(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each figure by which the order of the models depends on the number of codes.

    The predicted label needs no codes: the sentence also gives the order by its own figure.
    """
    sentences = []
    names = dict(zip(map(id, runs), display_names(runs), strict=True))
    for estimator, partition in sections(runs) if len(runs) > 1 else ():
        here = {names[id(r)]: of_section(r, estimator, partition) for r in runs}
        for term in ("v(X;Z)", "r(X;Z)", "C(X;Z)", "S(X;Z)"):
            orders: dict[str, list[str]] = {}
            for label, ending in RESOLUTIONS.items():
                means = {name: _mean_of(layers, term + ending) for name, layers in here.items()}
                if not any(np.isnan(list(means.values()))):
                    orders[label] = sorted(means, key=lambda name, means=means: means[name])  # type: ignore[misc]
            if len({tuple(o) for o in orders.values()}) < 2:
                continue
            listed = "; ".join(f"{label}: {' < '.join(order)}" for label, order in orders.items())
            sure = {names[id(r)]: _of_prediction(r, estimator, partition, term) for r in runs}
            if not any(np.isnan(list(sure.values()))):
                listed += f"; by {PREDICTION}, which needs no codes: {' < '.join(sorted(sure, key=lambda n: sure[n]))}"
            where = f"{estimator}, {partition}".rstrip(", ")
            sentences.append(f"{where}: by {term.partition('(')[0]} the order depends on the resolution ({listed})")
    return sentences


def _mean_of(layers: pd.DataFrame, term: str) -> float:
    """Return the mean of a term over the layers; NaN if a layer lacks it."""
    values = layers.loc[layers["term"] == term, "value"]
    return float(values.mean(skipna=False)) if len(values) else float("nan")


def _of_prediction(run: Run, estimator: str, partition: str, term: str) -> float:
    layers = run.layers
    chosen = (layers["estimator"] == estimator) & (layers["partition"] == partition) & (layers["layer"] == PREDICTION)
    return _mean_of(layers[chosen], term)


ALIKE = 0.95
"""Correlation of C and I over models above which they are collinear: no comparison separates GIB from IB."""


def collinearity(summary: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Pearson's correlation of C and I, averaged over layers, over the models; by estimator and partition.

    NaN if it is not defined. Above :data:`ALIKE` no comparison over these models separates the GIB from the IB.
    """
    correlations: dict[tuple[str, str], float] = {}
    if summary.empty:
        return correlations
    for (estimator, partition), g in summary.groupby(["estimator", "partition"], sort=False):
        one = g.drop_duplicates("model")[["gib_complexity", "ib_complexity"]].dropna()
        enough = len(one) >= LEAST_MODELS and (one.std() > 0).all()
        rho = float(np.corrcoef(one.to_numpy().T)[0, 1]) if enough else float("nan")
        correlations[str(estimator), str(partition)] = rho
    return correlations


def correlate(summary: pd.DataFrame) -> list[Correlation]:
    """Correlate each figure with robust accuracy over the models, per estimator, partition and attack.

    Attacks that were not run on every model are left out. Below :data:`LEAST_MODELS` models ρ is NaN.
    """
    correlations: list[Correlation] = []
    if summary.empty:
        return correlations
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
            correlations.append(Correlation(str(estimator), str(partition), str(attack), figure, len(g), *triple))
    return correlations
