"""The HTML page: one self-contained file, made from run folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from robgib.errors import RobGIBError
from robgib.files import write_file
from robgib.reporting import figures
from robgib.reporting.summary import LEAST_MODELS, correlate, display_names, summarise
from robgib.results import Run

__all__ = [
    "page",
    "render",
    "trace_page",
    "write_report",
    "write_trace",
]

_TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "S(Z;Y)", "IB", "GIB")


def _percent(value: float) -> str:
    return "not estimable" if math.isnan(value) else f"{100 * value:.1f}%"


def _bits(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "not estimable"
    return f"{value:.2f} ± {(high - low) / 2:.2f}"


def _distance(row: Any) -> str:
    """The median distance of the nearest images found, or the last eps at which most samples still stood."""
    value = float(getattr(row, "median_distance", math.nan))  # missing from folders of early versions
    if math.isnan(value):
        return ""
    return "not found" if math.isinf(value) else f"{value:.3g}"


def _summary_table(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for run, name in zip(runs, names, strict=True):
        first = run.robustness.iloc[0]
        attacks = [
            {
                "label": r.attack,
                "norm": figures.TITLES.get(str(r.norm), ""),
                "eps": f"{r.eps:.4g}",
                "share": 0.0 if math.isnan(r.robust_accuracy) else r.robust_accuracy,
                "value": "failed" if r.status != "ok" else _percent(r.robust_accuracy),
                "interval": "" if r.status != "ok" else f"[{_percent(r.low)}, {_percent(r.high)}]",
                "coarse": "" if math.isnan(r.robust_accuracy_8bit) else _percent(r.robust_accuracy_8bit),
                "undecided": int(r.undecided),
                "note": r.note,
                "nearest": _distance(r),
                "seconds": f"{r.seconds:.1f} s" if r.seconds else "",
                "reason": r.reason,
            }
            for r in run.robustness.itertuples()
            if r.attack != "none"
        ]
        rows.append(
            {
                "name": name,
                "data": run.config["data"]["name"],
                "samples": int(first["samples"]),
                "rows": max(1, sum(1 + bool(a["note"] or a["undecided"]) for a in attacks)),
                "clean": _percent(first["clean_accuracy"]),
                "interval": f"[{_percent(first['clean_low'])}, {_percent(first['clean_high'])}]",
                "attacks": attacks,
            }
        )
    return rows


def _corruption_table(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """By model: the mean accuracy over the severities of each corruption, and over all."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        if len(run.corruptions):
            means = run.corruptions.groupby("corruption", sort=False)["accuracy"].mean()
            cells = {kind: _percent(value) for kind, value in means.items()}
            rows.append({"name": name, "cells": {**cells, "mean": _percent(means.mean())}})
    return rows


def _layer_table(run: Run, estimator: str) -> list[dict[str, Any]]:
    table = run.layers[run.layers["estimator"] == estimator]
    rows = []
    for layer, g in table.sort_values("depth").groupby("layer", sort=False):
        by_term = {r.term: r for r in g.itertuples()}
        rows.append(
            {
                "layer": layer,
                "cells": [
                    {
                        "text": _bits(by_term[t].value, by_term[t].low, by_term[t].high),
                        "saturated": bool(by_term[t].saturated),
                    }
                    for t in _TERMS
                ],
                "note": "; ".join(dict.fromkeys(f"{r.term}: {r.note}" for r in g.itertuples() if r.note)),
            }
        )
    return rows


def _estimators(runs: Sequence[Run], names: Sequence[str], summary: Any) -> list[dict[str, Any]]:
    found = list(dict.fromkeys(e for run in runs for e in run.layers["estimator"]))
    sections: list[dict[str, Any]] = []
    for estimator in found:
        here = [(r, n) for r, n in zip(runs, names, strict=True) if (r.layers["estimator"] == estimator).any()]
        table = [r.layers[r.layers["estimator"] == estimator] for r, _ in here]
        of_input = [t[t["term"] == "I(X;Z)"].iloc[0] for t in table]
        scatters: list[dict[str, Any]] = []
        if len(runs) > 1 and len(summary):
            for attack, met in summary[summary["estimator"] == estimator].groupby("attack", sort=False):
                if len(met) == len(runs) and met["eps"].nunique() == 1:
                    figure = Markup(figures.robustness_scatter(summary, estimator, str(attack)))
                    scatters.append({"attack": attack, "figure": figure, "robust": met["robust_accuracy"].mean()})
        scatters.sort(key=lambda s: s["robust"])  # the strongest attack first: it is the one that is shown open
        sections.append(
            {
                "name": estimator,
                "plane": Markup(figures.information_plane([r for r, _ in here], estimator)),
                "models": [
                    {
                        "name": n,
                        "figure": Markup(figures.layer_terms(r, estimator)),
                        "table": _layer_table(r, estimator),
                        "resolution": source["resolution"],
                        "bound": source["bound"],
                        "samples": int(source["samples"]),
                    }
                    for (r, n), source in zip(here, of_input, strict=True)
                ],
                "scatters": scatters,
                "saturated": bool(any(t["saturated"].any() for t in table)),
            }
        )
    return sections


def page(template: str, **content: Any) -> str:
    """Render a template of this package with Plotly's script inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robgib.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **content)


def render(runs: Sequence[Run]) -> str:
    """Return the page of one or several runs as HTML that needs no network."""
    names = display_names(runs)
    summary = summarise(runs)
    correlations = [
        {
            "estimator": c.estimator,
            "attack": c.attack,
            "figure": c.figure.replace("_", " ").replace("gib", "GIB").replace("ib c", "IB c"),
            "models": c.models,
            "rho": f"{c.rho:+.2f}",
            "interval": f"[{c.low:+.2f}, {c.high:+.2f}]",
            "usable": not math.isnan(c.rho),
        }
        for c in correlate(summary)
    ]
    return page(
        "report.html.j2",
        title=" · ".join(names) if len(names) <= 4 else f"{len(names)} models",
        runs=[
            {
                "name": n,
                "config": r.config,
                "reading": r.config.get("reading", ()),
                "environment": r.environment,
                "pictures": figures.picture_rows(r),
                "signs": [
                    s._asdict() for s in r.signs.sort_values("seen", ascending=False, kind="stable").itertuples()
                ],
            }
            for r, n in zip(runs, names, strict=True)
        ],
        table=_summary_table(runs, names),
        norms=figures.TITLES,
        cascade=any(r.config.get("cascade") for r in runs),
        curves=Markup(figures.accuracy_curves(runs)),
        corruptions=Markup(figures.corruption_accuracy(runs)),
        corrupted=_corruption_table(runs, names),
        estimators=_estimators(runs, names, summary),
        terms=_TERMS,
        correlations=correlations,
        least=LEAST_MODELS,
    )


def trace_page(table: pd.DataFrame, name: str) -> str:
    """Return the page of one trace (:class:`robgib.training.Tracer`) as HTML that needs no network."""
    estimators = []
    for estimator, g in table.groupby("estimator", sort=False):
        source = g[g["term"] == "I(X;Z)"].iloc[0]
        estimators.append(
            {
                "name": estimator,
                "resolution": source["resolution"],
                "samples": int(source["samples"]),
                "terms": Markup(figures.trace_terms(table, str(estimator))),
                "plane": Markup(figures.trace_plane(table, str(estimator))),
            }
        )
    accuracy = Markup(figures.trace_accuracy(table))
    return page("trace.html.j2", title=f"{name} in training", name=name, accuracy=accuracy, estimators=estimators)


def write_report(runs: Run | Sequence[Run], path: str | Path) -> Path:
    """Write the page of one or several runs to ``path``, whole or not at all.

    Raises:
        RobGIBError: there is no run, or the file cannot be written.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise RobGIBError("a report needs at least one run.")
    write_file(Path(path), render(runs).encode())
    return Path(path)


def write_trace(table: pd.DataFrame, checkpoint: Path, name: str) -> Path:
    """Write a trace beside its checkpoint, as ``.trace.csv`` and the page ``.trace.html``; return the page's path."""
    write_file(checkpoint.with_suffix(".trace.csv"), table.to_csv(index=False).encode())
    page = checkpoint.with_suffix(".trace.html")
    write_file(page, trace_page(table, name).encode())
    return page
