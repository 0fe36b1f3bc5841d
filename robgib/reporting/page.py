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

from robgib.errors import RobGIBError, visible
from robgib.files import write_file
from robgib.reporting import figures
from robgib.reporting.cells import cell, shown_columns
from robgib.reporting.summary import (
    ALIKE,
    LEAST_MODELS,
    PREDICTION,
    correlate,
    display_names,
    first_of_all,
    named,
    of_section,
    order_doubts,
    sections,
    summarise,
    told_apart,
)
from robgib.results import Column, Run, csv_text

__all__ = [
    "page",
    "render",
    "trace_page",
    "write_report",
    "write_trace",
]

_TERMS = (
    "I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "S(Z;Y)", "C(Z;Y)", "subset synergy", "r(X;Z)", "v(X;Z)", "learnt I(X;Z)",
    "IB", "I(X;Z) noise", "IB noise", "GIB", *(f"{t}(X;Z) {k}" for t in "CSrv" for k in ("k/2", "2k")),
)  # fmt: skip


def _percent(value: float) -> str:
    return "not estimable" if math.isnan(value) else f"{100 * value:.1f}%"


def _bits(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "not estimable"
    return f"{value:.2f} ± {(high - low) / 2:.2f}"


def _summary_table(runs: Sequence[Run], names: Sequence[str], columns: Sequence[Column]) -> list[dict[str, Any]]:
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
                "certified": "" if math.isnan(r.certified_accuracy) else _percent(r.certified_accuracy),
                "cells": [cell(column, r) for column in columns],
                "not_finite": int(r.not_finite),
                "note": r.note,
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
                "rows": max(1, sum(1 + bool(a["note"] or a["not_finite"]) for a in attacks)),
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


def _layer_table(held: pd.DataFrame, terms: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for layer, g in first_of_all(held).groupby("layer", sort=False):
        by_term = {r.term: r for r in g.itertuples()}
        cells = []
        for t in terms:
            r = by_term.get(t)
            told = {"text": "", "flagged": False}
            if r is not None:
                told = {"text": _bits(r.value, r.low, r.high), "flagged": bool(r.flagged)}
            cells.append(told)
        notes = dict.fromkeys(note for r in g.itertuples() for note in str(r.note).split("; ") if note)
        rows.append({"layer": layer, "cells": cells, "note": "; ".join(notes)})
    return rows


def _words(run: Run) -> list[dict[str, Any]]:
    """For each layer what it keeps, what a feature tells of it by itself, and what hiding one costs."""
    held = run.layers
    told: list[dict[str, Any]] = []
    if held.empty or "r(X;Z)" not in set(held["term"]):
        return told
    partitions = [p for p in dict.fromkeys(held["partition"]) if p]
    if not partitions:
        return told
    partition = partitions[-1]
    held = held[held["partition"] == partition]
    features = run.features[run.features["partition"] == partition]
    for layer, g in held.sort_values("depth", kind="stable").groupby("layer", sort=False):
        best = {}
        for term in ("I(X;Z)", "I(Z;Y)", "r(X;Z)", "v(X;Z)"):
            rows = g[(g["term"] == term) & g["value"].notna()].sort_values("flagged", kind="stable")
            if term == "v(X;Z)" and (rows["estimator"] == "imputation").any():
                rows = rows[rows["estimator"] == "imputation"]
            best[term] = rows.iloc[0] if len(rows) else None
        if best["I(X;Z)"] is None:
            continue
        count = features[features["layer"] == layer]["feature"].nunique()

        def share(row: Any, n: int = count) -> str:
            if row is None or not n:
                return ""
            half = (row["high"] - row["low"]) / 2 / n
            return f"{100 * row['value'] / n:.0f} ± {100 * half:.0f}%" + ("*" if row["flagged"] else "")

        told.append(
            {
                "layer": layer,
                "keeps": _bits(*(best["I(X;Z)"][k] for k in ("value", "low", "high"))),
                "label": ""
                if best["I(Z;Y)"] is None
                else _bits(*(best["I(Z;Y)"][k] for k in ("value", "low", "high"))),
                "alone": share(best["r(X;Z)"]),
                "hidden": share(best["v(X;Z)"]),
                "depth": int(g["depth"].iloc[0]),
            }
        )
    told.sort(key=lambda w: -1 if w["layer"] == PREDICTION else w["depth"] if w["depth"] >= 0 else 10**6)
    noun = {"patches": "patch", "tokens": "run of tokens", "pixels": "pixel", "channels": "channel"}
    for row in told:
        row["noun"] = noun.get(partition.partition(":")[0], "component")
    return told


def _estimators(runs: Sequence[Run], names: Sequence[str], summary: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for estimator, partition in sections(runs):
        here = [(r, n, of_section(r, estimator, partition)) for r, n in zip(runs, names, strict=True)]
        here = [(r, n, t) for r, n, t in here if len(t)]
        scatters: list[dict[str, Any]] = []
        if len(runs) > 1 and len(summary):
            own = summary[(summary["estimator"] == estimator) & (summary["partition"] == partition)]
            for attack, met in own.groupby("attack", sort=False):
                if len(met) == len(runs) and met["eps"].nunique() == 1:
                    figure = Markup(figures.robustness_scatter(summary, estimator, partition, str(attack)))
                    scatters.append({"attack": attack, "figure": figure, "robust": met["robust_accuracy"].mean()})
        scatters.sort(key=lambda s: s["robust"])  # the strongest attack first: it is the one that is shown open
        models = []
        for r, n, t in here:
            whole = r.layers[(r.layers["estimator"] == estimator) & (r.layers["partition"] == partition)]
            terms = [k for k in _TERMS if whole.loc[whole["term"] == k, "value"].notna().any()]
            source = t[t["term"] == "C(X;Z)"].iloc[0]
            models.append(
                {
                    "name": n,
                    "figure": Markup(figures.layer_terms(t)),
                    "terms": [named(k, str(t["view"].iloc[0])) for k in terms],
                    "table": _layer_table(whole, terms),
                    "resolution": source["resolution"],
                    "bound": source["bound"],
                    "samples": int(source["samples"]),
                }
            )
        found.append(
            {
                "name": estimator,
                "partition": partition,
                "view": here[0][2]["view"].iloc[0],
                "plane": Markup(figures.information_plane([(n, t) for _, n, t in here])),
                "models": models,
                "scatters": scatters,
                "flagged": bool(any(t["flagged"].any() for _, _, t in here)),
            }
        )
    return found


def page(template: str, **content: Any) -> str:
    """Render a template of this package with Plotly's script inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robgib.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **content)


def render(runs: Sequence[Run]) -> str:
    """Return the page of one or several runs as HTML that needs no network."""
    names = display_names(runs)
    columns = shown_columns("robustness", "page", [run.robustness for run in runs])
    summary = summarise(runs)
    correlations = [
        {
            "estimator": f"{c.estimator}, {c.partition}" if c.partition else c.estimator,
            "attack": c.attack,
            "figure": c.figure.replace("_", " ").replace("gib", "GIB").replace("ib ", "IB "),
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
                "doubts": r.config.get("doubts", ()),
                "reading": r.config.get("reading", ()),
                "environment": r.environment,
                "pictures": figures.picture_rows(r),
                "words": _words(r),
                "maps": Markup(figures.feature_maps(r)),
                "signs": [
                    s._asdict() for s in r.signs.sort_values("seen", ascending=False, kind="stable").itertuples()
                ],
            }
            for r, n in zip(runs, names, strict=True)
        ],
        table=_summary_table(runs, names, columns),
        columns=columns,
        norms=figures.TITLES,
        certified=any(r.robustness["certified_accuracy"].notna().any() for r in runs),
        cascade=any(r.attack_options["cascade"] for r in runs),
        curves=Markup(figures.accuracy_curves(runs)),
        converged=Markup(figures.attack_convergence(runs)),
        watched=max((int(r.convergence["samples"].max()) for r in runs if len(r.convergence)), default=0),
        corruptions=Markup(figures.corruption_accuracy(runs)),
        corrupted=_corruption_table(runs, names),
        estimators=_estimators(runs, names, summary),
        apart=[
            {"estimator": e, "partition": p, "rho": f"{rho:.3f}", "alike": rho > ALIKE}
            for (e, p), rho in told_apart(summary).items()
            if not math.isnan(rho)
        ],
        correlations=correlations,
        orders=order_doubts(runs),
        least=LEAST_MODELS,
    )


def trace_page(table: pd.DataFrame, compression: pd.DataFrame, name: str) -> str:
    """Return the page of one trace (:func:`robgib.training.trace`) as HTML that needs no network."""
    estimators = []
    for estimator, g in table.groupby("estimator", sort=False):
        source = g[g["term"] == "C(X;Z)"].iloc[0]
        estimators.append(
            {
                "name": estimator,
                "resolution": source["resolution"],
                "samples": int(source["samples"]),
                "terms": Markup(figures.trace_terms(table, str(estimator))),
                "plane": Markup(figures.trace_plane(table, str(estimator))),
            }
        )
    verdicts = [
        {
            "layer": r.layer,
            "term": r.term,
            "estimator": r.estimator,
            "resolution": r.resolution,
            "units": r.units,
            "peak": f"{r.peak:.2f} (epoch {r.peak_epoch})",
            "final": f"{r.final:.2f}",
            "fall": "not estimable"
            if math.isnan(r.compression)
            else f"{100 * r.compression:.1f}% [{100 * r.low:.1f}, {100 * r.high:.1f}]",
            "verdict": r.verdict,
        }
        for r in compression.itertuples()
    ]
    return page(
        "trace.html.j2",
        title=f"{name} in training",
        name=name,
        accuracy=Markup(figures.trace_accuracy(table)),
        estimators=estimators,
        verdicts=verdicts,
    )


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


def write_trace(table: pd.DataFrame, compression: pd.DataFrame, checkpoint: Path, name: str) -> Path:
    """Write a trace beside its checkpoint: ``.trace.csv``, ``.compression.csv``, and the page ``.trace.html``.

    Returns:
        The page's path.
    """
    write_file(checkpoint.with_suffix(".trace.csv"), csv_text(table).encode())
    write_file(checkpoint.with_suffix(".compression.csv"), csv_text(compression).encode())
    page = checkpoint.with_suffix(".trace.html")
    write_file(page, trace_page(table, compression, name).encode())
    return page
