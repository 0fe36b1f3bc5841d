"""The HTML page: one self-contained file, made from run folders."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from robgib.errors import RobGIBError, visible
from robgib.files import digest, write_file
from robgib.reading import as_path
from robgib.reporting import figures
from robgib.reporting.cells import cell, layer_table, shown_columns, spread, star_reasons
from robgib.reporting.charts import MOST_ENTRIES
from robgib.reporting.headline import NORMS, headline, of_images, random_points_text, rank
from robgib.reporting.summary import (
    ALIKE,
    FIGURES,
    LEAST_MODELS,
    PREDICTION,
    Correlation,
    collinearity,
    correlate,
    display_names,
    feature_noun,
    of_section,
    sections,
    summarise,
    unstable_orders,
)
from robgib.results import TERMS, Column, Run, checks_run, csv_text
from robgib.statistics import signed, signed_interval, spearman

__all__ = [
    "is_page_of",
    "page",
    "render",
    "trace_page",
    "typeset",
    "write_report",
    "write_trace",
]

_MOST_CLASSES = 10
_MOST_CONFUSED = 5
_SHOWN = [t.name for t in TERMS if "page" in t.shown]


def _percent(value: float) -> str:
    return "not estimable" if math.isnan(value) else f"{100 * value:.1f}%"


def _bits(row: Any) -> str:
    """Return an estimate of a row as text."""
    if row is None or math.isnan(row["value"]):
        return "" if row is None else "not estimable"
    return spread(row["value"], row["low"], row["high"]) + ("*" if row["flagged"] else "")


def _attack_rows(run: Run, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return what the accuracy table shows of each attack."""
    return [
        {
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


def _classes(run: Run) -> dict[str, Any]:
    """Return accuracy by class under the strongest attack, and the most frequent confusions; empty without attacks."""
    table = run.robustness
    tried = table[(table["status"] == "ok") & table["attack"].isin(run.outcomes["attack"])]
    if tried.empty:
        return {}
    strongest = tried.loc[tried["robust_accuracy"].idxmin()]
    own = run.outcomes[(run.outcomes["attack"] == strongest["attack"]) & (run.outcomes["eps"] == strongest["eps"])]
    names = run.config["data"]["classes"]
    correct = own["clean_prediction"] == own["label"]
    by_class = own.assign(clean=correct, robust=own["robust"].astype(bool)).groupby("label")
    means = by_class[["clean", "robust"]].mean().assign(samples=by_class.size()).sort_values("robust", kind="stable")
    rows = [
        [figures.class_name(names, int(label)), str(int(r["samples"])), _percent(r["clean"]), _percent(r["robust"])]
        for label, r in means.head(_MOST_CLASSES).iterrows()
    ]
    fooled = own[correct & (own["adversarial_prediction"] != own["label"])]
    pairs = fooled.groupby(["label", "adversarial_prediction"]).size().sort_values(ascending=False, kind="stable")
    confused = [
        f"{figures.class_name(names, int(a))} → {figures.class_name(names, int(b))} ({count})"
        for (a, b), count in pairs.head(_MOST_CONFUSED).items()
    ]
    more = max(0, len(means) - _MOST_CLASSES)
    return {"attack": strongest["attack"], "rows": rows, "confused": confused, "more": more}


def _corruption_table(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """By model: the mean accuracy over the severities of each corruption, and over all."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.corruptions["corruption"]))
    rows = []
    for run, name in zip(runs, names, strict=True):
        if len(run.corruptions):
            means = run.corruptions.groupby("corruption", sort=False)["accuracy"].mean()
            rows.append([name, *(_percent(means[k]) if k in means else "" for k in kinds), _percent(means.mean())])
    return {"headings": ["model", *kinds, "mean"], "numbers": [False, *[True] * (len(kinds) + 1)], "rows": rows}


def _without_curve(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Return which models have no curve against eps, as a clause; empty where all have one."""
    without = [
        name
        for run, name in zip(runs, names, strict=True)
        if run.robustness["norm"].isin(list(NORMS)).any() and figures.measured_curves(run).empty
    ]
    of = f" of {', '.join(without)}" if len(without) < len(runs) else ""
    return f"The curve against eps{of} was not run" if without else ""


def _corrupted_images(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Return which images the common corruptions were applied to."""
    own = [(of_images(run) or "the same images", name) for run, name in zip(runs, names, strict=True)]
    own = [item for item, run in zip(own, runs, strict=True) if len(run.corruptions)]
    if len({text for text, _ in own}) == 1:
        return own[0][0]
    return ", ".join(f"{text} ({name})" for text, name in own)


def _words(run: Run) -> tuple[str, list[list[str]], str]:
    """Return what one feature is called, each layer's information and shares of single features, and what * means."""
    layers = run.layers
    partitions = [p for p in dict.fromkeys(layers["partition"]) if p]
    if not partitions or "r(X;Z)" not in set(layers["term"]):
        return "", [], ""
    partition = partitions[-1]
    layers = layers[layers["partition"] == partition]
    features = run.features[run.features["partition"] == partition]
    rows: list[tuple[int, list[str]]] = []
    shown: list[Any] = []
    for layer, g in layers.sort_values("depth", kind="stable").groupby("layer", sort=False):
        best = {term: _best(g, term) for term in ("I(X;Z)", "I(Z;Y)", "r(X;Z)", "v(X;Z)")}
        if best["I(X;Z)"] is None:
            continue
        shown += [row for row in best.values() if row is not None]
        count = features[features["layer"] == layer]["feature"].nunique()
        depth = int(g["depth"].iloc[0])
        place = -1 if layer == PREDICTION else depth if depth >= 0 else 10**6
        shares = [_share(best[term], count) for term in ("r(X;Z)", "v(X;Z)")]
        rows.append((place, [str(layer), _bits(best["I(X;Z)"]), _bits(best["I(Z;Y)"]), *shares]))
    reasons = star_reasons(layers, pd.DataFrame(shown)) if shown else ""
    return feature_noun(partition), [row for _, row in sorted(rows, key=lambda item: item[0])], reasons


def _best(rows: pd.DataFrame, term: str) -> Any:
    """Return the row of a term to show: not flagged if there is one; v by imputation if there is one; or None."""
    own = rows[(rows["term"] == term) & rows["value"].notna()].sort_values("flagged", kind="stable")
    if term == "v(X;Z)" and (own["estimator"] == "imputation").any():
        own = own[own["estimator"] == "imputation"]
    return own.iloc[0] if len(own) else None


def _share(row: Any, count: int) -> str:
    """Return a degree of redundancy or vulnerability as a share of so many features."""
    if row is None or not count:
        return ""
    value, low, high = (100 * row[key] / count for key in ("value", "low", "high"))
    return spread(value, low, high, 0, "%") + ("*" if row["flagged"] else "")


def _shared_attacks(rows: pd.DataFrame, models: int) -> list[tuple[str, pd.DataFrame]]:
    """Return the attacks that all models have at one budget with their rows of the summary, the strongest first."""
    own = [(str(a), g) for a, g in rows.groupby("attack", sort=False) if len(g) == models and g["eps"].nunique() == 1]
    return sorted(own, key=lambda item: float(item[1]["robust_accuracy"].mean()))


def _estimators(runs: Sequence[Run], names: Sequence[str], summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the sections on layers, one an estimator and partition."""
    parts: list[dict[str, Any]] = []
    for estimator, partition in sections(runs):
        here = [(r, n, of_section(r, estimator, partition)) for r, n in zip(runs, names, strict=True)]
        here = [(r, n, t) for r, n, t in here if len(t)]
        own = summary[(summary["estimator"] == estimator) & (summary["partition"] == partition)]
        shared = _shared_attacks(own, len(runs))[:1] if len(runs) >= LEAST_MODELS else []
        models = []
        for r, n, t in here:
            whole = r.layers[(r.layers["estimator"] == estimator) & (r.layers["partition"] == partition)]
            source = t[t["term"] == "C(X;Z)"].iloc[0]
            models.append(
                {
                    "name": n,
                    "figure": Markup(figures.layer_terms(t)),
                    "table": layer_table(whole, "page"),
                    "starred": star_reasons(whole, whole[whole["term"].isin(_SHOWN)]),
                    "resolution": source["resolution"],
                    "bound": source["bound"],
                    "samples": int(source["samples"]),
                }
            )
        parts.append(
            {
                "name": estimator,
                "partition": partition,
                "plane": Markup(figures.information_plane([(n, t) for _, n, t in here])),
                "models": models,
                "scatters": [{"attack": a, "figure": Markup(figures.robustness_scatter(g))} for a, g in shared],
                "flagged": star_reasons(*[pd.concat([t for _, _, t in here])] * 2),
            }
        )
    return parts


_FIGURE_NAMES = {"gib": "GIB", "ib": "IB"}


def _figure_name(key: str) -> str:
    return " ".join(_FIGURE_NAMES.get(word, word) for word in key.split("_"))


def _finding(runs: Sequence[Run], summary: pd.DataFrame, correlations: Sequence[Correlation]) -> dict[str, Any] | None:
    """Return the scatter of the headline figure against robust accuracy with a sentence; None where there is none.

    The headline figure is the vulnerability by imputation, or else the first figure that correlates at all, under the
    strongest attack that all models share.
    """
    if len(runs) < LEAST_MODELS:
        return None
    shared = _shared_attacks(summary.drop_duplicates(["model", "attack"]), len(runs))
    strongest = {attack: number for number, (attack, _) in enumerate(shared)}
    usable = [c for c in correlations if not math.isnan(c.rho) and c.attack in strongest]
    if not usable:
        return None
    order = list(FIGURES)
    best = min(
        usable,
        key=lambda c: (
            strongest[c.attack],
            order.index(c.figure) if c.figure in order else len(order),
            c.estimator != "imputation",
        ),
    )
    rows = summary[
        (summary["estimator"] == best.estimator)
        & (summary["partition"] == best.partition)
        & (summary["attack"] == best.attack)
    ]
    clean = {n: float(r.robustness["clean_accuracy"].iloc[0]) for r, n in zip(runs, display_names(runs), strict=True)}
    baseline = spearman([clean[n] for n in rows["model"]], list(rows["robust_accuracy"]))
    figure = best.figure if best.figure in ("vulnerability", "gib_complexity", "ib_complexity") else ""
    return {
        "text": _finding_text(best, baseline, len(correlations)),
        "figure": Markup(figures.robustness_scatter(rows, figure)),
    }


def _finding_text(c: Correlation, baseline: tuple[float, float, float], tests: int) -> str:
    """Return the sentence on the headline correlation: its size, the baseline, and what it can show."""
    by = ", ".join(filter(None, (c.estimator, c.partition)))
    clear = c.low > 0 or c.high < 0
    verb = "correlates" if clear else "does not clearly correlate"
    text = (
        f"Over {c.models} models, {_figure_name(c.figure)} ({by}; mean over the layers) {verb} with robust accuracy "
        f"under {c.attack}: Spearman's ρ = {signed(c.rho, c.low, c.high)}. "
    )
    if not math.isnan(baseline[0]):
        as_well = "does as well" if abs(baseline[0]) >= abs(c.rho) else "does less well"
        rho, low, high = baseline
        text += f"Clean accuracy, the baseline, {as_well}: ρ = {signed(rho, low, high)}. "
    return text + (
        f"This is an association over few models; it does not establish causation. It is one of {tests} correlations "
        "without correction for multiple comparisons."
    )


def page(template: str, **content: Any) -> str:
    """Render a template of this package."""
    return _environment().get_template(template).render(**content)


def typeset(text: str) -> str:
    """Return a sentence with minus signs, and with its statistics kept on one line each.

    >>> typeset("the change is -0.5, and p < 0.05").split(" ")
    ['the', 'change', 'is', '−0.5,', 'and', 'p\\xa0<\\xa00.05']
    """
    text = _STATISTIC.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    return _HYPHEN.sub("−", text).replace("|ρ|", "|\N{WORD JOINER}ρ\N{WORD JOINER}|")


_HYPHEN = re.compile(r"(?<![\w.,…−-])-(?=\d)")
"""A hyphen in the place of a minus sign."""
_STATISTIC = re.compile(r"\b[ρrpt] [=<] (?=[\d+-])|(?<!\S)< (?=\d)")


@cache  # compiling the templates takes as long as filling them
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robgib.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["typeset"] = typeset
    return environment


_UNBROKEN = re.compile(r"\[[^]]*\]|at \S+ [^\s;]+")
"""What a headline keeps on one line."""


def _model(run: Run, name: str, columns: Sequence[Column], of_checks: Sequence[Column]) -> dict[str, Any]:
    """Return everything that the page shows of one model apart from its layers."""
    first = run.robustness.iloc[0]
    line = headline(run, name)
    noun, words, starred = _words(run)
    signs = run.signs.assign(ran=checks_run(run.signs))
    signs = signs.sort_values(["seen", "ran"], ascending=False, kind="stable").itertuples()
    return {
        "name": name,
        "line": line,
        "accuracies": Markup(_UNBROKEN.sub(r'<span class="nw">\g<0></span>', str(escape(visible(line.accuracies))))),
        "data": run.config["data"]["name"],
        "samples": int(first["samples"]),
        "clean": _percent(first["clean_accuracy"]),
        "interval": f"[{_percent(first['clean_low'])}, {_percent(first['clean_high'])}]",
        "attacks": _attack_rows(run, columns),
        "classes": _classes(run),
        "config": run.config,
        "reading_warnings": run.config.get("reading_warnings", ()),
        "reading": run.config.get("reading", ()),
        "random_points": random_points_text(run),
        "environment": run.environment,
        "pictures": figures.picture_rows(run),
        "noun": noun,
        "words": words,
        "starred": starred,
        "maps": Markup(figures.feature_maps(run)),
        "signs": [{**s._asdict(), "cells": [cell(column, s) for column in of_checks]} for s in signs],
    }


def render(runs: Sequence[Run]) -> str:
    """Return the page of one or several runs as HTML that needs no network."""
    ranking = rank(runs)
    runs = [runs[i] for i in ranking.order]
    names = display_names(runs)
    columns = shown_columns("robustness", "page", [run.robustness for run in runs])
    of_checks = shown_columns("signs", "page", [run.signs for run in runs])
    summary = summarise(runs)
    correlations = correlate(summary)
    curves = figures.accuracy_curves(runs)
    few = len(runs) <= MOST_ENTRIES and bool(curves)
    finding = _finding(runs, summary, correlations)
    return page(
        "report.html.j2",
        title=" · ".join(names) if len(names) <= 4 else f"{len(names)} models",
        runs=_digest(runs),
        models=[_model(run, name, columns, of_checks) for run, name in zip(runs, names, strict=True)],
        many=len(runs) >= LEAST_MODELS,
        ranked=ranking.text.startswith("Ranked"),
        ranking=ranking.text,
        picture=Markup(curves if few else figures.model_accuracies(runs)),
        curves=Markup("" if few else curves),
        without_curve=_without_curve(runs, names),
        columns=columns,
        of_checks=of_checks,
        certified=any(r.robustness["certified_accuracy"].notna().any() for r in runs),
        cascade=any(r.attack_options["cascade"] for r in runs),
        converged=Markup(figures.attack_convergence(runs)),
        watched=max((int(r.convergence["samples"].max()) for r in runs if len(r.convergence)), default=0),
        corruptions=Markup(figures.corruption_accuracy(runs)),
        corrupted=_corruption_table(runs, names),
        corrupted_images=_corrupted_images(runs, names),
        estimators=_estimators(runs, names, summary),
        finding=finding,
        apart=[
            {"name": ", ".join(filter(None, (e, p))), "rho": f"{rho:.3f}", "alike": rho > ALIKE}
            for (e, p), rho in collinearity(summary).items()
            if not math.isnan(rho)
        ],
        correlations=[_correlation_row(c) for c in correlations],
        orders=unstable_orders(runs),
        least=LEAST_MODELS,
    )


def _correlation_row(c: Correlation) -> list[str]:
    by = ", ".join(filter(None, (c.estimator, c.partition)))
    usable = not math.isnan(c.rho)
    figure = [signed(c.rho), signed_interval(c.low, c.high)] if usable else ["not estimable", ""]
    return [by, c.attack, _figure_name(c.figure), str(c.models), *figure]


_VERDICT_HEADINGS = ("layer", "term", "observed as", "peak", "final", "fall [95%]", "verdict")


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
        [
            r.layer,
            f"{r.term}, {r.estimator}",
            f"{r.resolution}; {r.units} units",
            f"{r.peak:.2f} (epoch {r.peak_epoch})",
            f"{r.final:.2f}",
            "not estimable"
            if math.isnan(r.compression)
            else f"{100 * r.compression:.1f}% [{100 * r.low:.1f}, {100 * r.high:.1f}]",
            r.verdict,
        ]
        for r in compression.itertuples()
    ]
    return page(
        "trace.html.j2",
        title=f"{name} in training",
        name=name,
        headlines=_trace_headlines(table, compression),
        accuracy=Markup(figures.trace_accuracy(table)),
        estimators=estimators,
        verdict_headings=_VERDICT_HEADINGS,
        verdict_numbers=[h in ("peak", "final", "fall [95%]") for h in _VERDICT_HEADINGS],
        verdicts=verdicts,
    )


def _trace_headlines(table: pd.DataFrame, compression: pd.DataFrame) -> list[str]:
    """Return the accuracy at the end, and a sentence on the compression of the last layer by each estimator."""
    last = table.sort_values("epoch").iloc[-1]
    lines = [f"After {last['epoch']:g} epochs: {last['test_accuracy']:.1%} test accuracy."]
    order = list(dict.fromkeys(table.sort_values("depth")["layer"]))
    for (estimator, layer), g in compression.groupby(["estimator", "layer"], sort=False):
        if layer != [n for n in order if n in set(compression["layer"])][-1]:
            continue
        verdicts = "; ".join(f"{r.term} {r.verdict}" for r in g.drop_duplicates("term").itertuples())
        lines.append(f"{layer}, {estimator}: {verdicts}.")
    return lines


def _digest(runs: Sequence[Run]) -> str:
    """Return what identifies the runs of a page, in any order."""
    return digest(sorted(digest(run.config) for run in runs))


_HEAD = 1000
"""Bytes in which a page names its runs."""


def is_page_of(path: Path, runs: Sequence[Run]) -> bool:
    """Return whether a file is a page that :func:`write_report` made of the same runs."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'<meta name="robgib-runs" content="{_digest(runs)}">'.encode() in file.read(_HEAD)


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


def write_trace(table: pd.DataFrame, compression: pd.DataFrame, checkpoint: str | Path, name: str) -> Path:
    """Write a trace beside its checkpoint: ``.trace.csv``, ``.compression.csv``, and the page ``.trace.html``.

    Returns:
        The page's path.
    """
    checkpoint = as_path(checkpoint, "checkpoint")
    write_file(checkpoint.with_suffix(".trace.csv"), csv_text(table).encode())
    write_file(checkpoint.with_suffix(".compression.csv"), csv_text(compression).encode())
    page = checkpoint.with_suffix(".trace.html")
    write_file(page, trace_page(table, compression, name).encode())
    return page
