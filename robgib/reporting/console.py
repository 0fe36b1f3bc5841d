"""What an evaluation found, as text in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robgib.reporting.cells import cell, shown_columns
from robgib.reporting.summary import LEAST_MODELS, display_names, first_of_all, named, order_doubts, sections
from robgib.results import Run, plain_rows

__all__ = ["print_runs", "runs_json"]


def print_runs(runs: Sequence[Run], out: Console, err: Console, layers: bool = False) -> None:
    """Print what was found: doubts, two lines a model, accuracies and signs; failures of attacks go to ``err``.

    Args:
        runs: of the models.
        out: where to.
        err: where failures go.
        layers: whether the bits of every layer are printed too.
    """
    names = display_names(runs)
    for run, name in zip(runs, names, strict=True):
        for doubt in run.config.get("doubts", ()):
            out.print(f"[bold red]Check first:[/] {escape(name)}: {escape(doubt)}.", highlight=False)
    for run, name in zip(runs, names, strict=True):
        _print_verdict(run, name, out)
    for run, name in zip(runs, names, strict=True):
        out.print(_accuracy_table(run, name))
    for run, name in zip(runs, names, strict=True):
        for told in run.config.get("reading", ()):
            out.print(f"[yellow]{escape(name)}[/yellow]: {escape(told)}.", highlight=False)
        for r in run.robustness.itertuples():
            if r.not_finite and r.seconds:  # not of the worst case of others
                out.print(
                    f"[yellow]{escape(f'{name}, {r.attack}')}[/yellow]: {r.not_finite} of {r.samples} samples not "
                    "decided (the model's answer is not finite); none counts as robust.",
                    highlight=False,
                )
            if r.note:
                out.print(f"[yellow]{escape(f'{name}, {r.attack}')}[/yellow]: {escape(str(r.note))}.", highlight=False)
    for run in runs:
        for r in run.robustness[run.robustness["status"] != "ok"].itertuples():
            err.print(f"[red]{escape(f'{run.name}: {r.reason}')}", highlight=False, soft_wrap=True)
    for run, name in zip(runs, names, strict=True):
        if len(run.corruptions):
            means = run.corruptions.groupby("corruption", sort=False)["accuracy"].mean()
            told = ", ".join(f"{kind} {100 * value:.1f}%" for kind, value in means.items())
            out.print(
                f"{escape(name)}: {100 * means.mean():.1f}% under common corruptions, mean of five severities "
                f"({told}).",
                highlight=False,
            )
    for run, name in zip(runs, names, strict=True):
        seen = run.signs[run.signs["seen"].astype(bool)]
        for r in seen.itertuples():
            where = f"{name}, {r.norm} {r.eps:.4g}"
            out.print(f"[yellow]{escape(f'{where}: {r.name}')}[/yellow]: {escape(str(r.detail))}.", highlight=False)
            out.print(f"  [dim]{escape(str(r.meaning))}", highlight=False)
    for run, name in zip(runs, names, strict=True):
        for estimator, partition in sections([run]) if layers else ():
            chosen = (run.layers["estimator"] == estimator) & (run.layers["partition"] == partition)
            _print_layers(run.layers[chosen], f"{name}: bits by layer, {estimator}, {partition}".rstrip(", "), out)
    for told in order_doubts(runs):
        out.print(f"[yellow]{escape(told)}[/yellow].", highlight=False)
    if 1 < len(runs) < LEAST_MODELS:
        out.print(f"{len(runs)} models are too few to correlate (at least {LEAST_MODELS}).", highlight=False)


def _accuracy_table(run: Run, name: str) -> Table:
    """Clean accuracy, and a row an attack."""
    left = ", each attack on the samples still right" if run.attack_options["cascade"] else ""
    table = Table(title=escape(f"{name}: accuracy, clean and under attack{left}"), title_justify="left")
    table.add_column("attack", overflow="fold", min_width=12)
    table.add_column("budget", no_wrap=True)
    columns = shown_columns("robustness", "terminal", [run.robustness])
    for column in columns:
        table.add_column(column.label, justify="right", no_wrap=True)
    first = run.robustness.iloc[:1]
    clean = {"robust_accuracy": first["clean_accuracy"], "low": first["clean_low"], "high": first["clean_high"]}
    blank = {column.name: math.nan for column in columns if column.name not in clean}
    for r in first.assign(**blank, **clean).itertuples():
        table.add_row("none", "", *(escape(cell(column, r)) for column in columns))
    for r in run.robustness[run.robustness["attack"] != "none"].itertuples():
        cells = [cell(column, r) for column in columns] if r.status == "ok" else ["failed"]
        style = "red" if r.status != "ok" else ""
        table.add_row(
            escape(str(r.attack)),
            f"{r.norm} {r.eps:.4g}",
            *(f"[{style}]{escape(c)}" if style else escape(c) for c in cells),
        )
    return table


def _print_verdict(run: Run, name: str, out: Console) -> None:
    """Clean and worst accuracy at each budget; then what speaks against it, and which layer stands out."""
    first = run.robustness.iloc[0]
    words = f"{first['clean_accuracy']:.1%} clean"
    tried = run.robustness[(run.robustness["status"] == "ok") & (run.robustness["attack"] != "none")]
    for (norm, eps), g in tried.groupby(["norm", "eps"], sort=False):
        r = g.loc[g["robust_accuracy"].idxmin()]
        interval = f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
        proven = f", {r['certified_accuracy']:.1%} proven" if r["certified_accuracy"] >= 0 else ""
        words += f"; {norm} {eps:.4g}: {r['robust_accuracy']:.1%} {interval} ({r['attack']}){proven}"
    out.print(f"[bold]{escape(name)}[/bold]: {escape(words)}.", highlight=False)
    told = []
    seen = list(dict.fromkeys(run.signs.loc[run.signs["seen"].astype(bool), "name"]))
    if seen:
        told.append(f"[yellow]Not to be relied on:[/yellow] {escape('; '.join(seen))}.")
    elif len(run.signs):
        told.append("No sign of a failed attack.")
    if len(run.robustness) > len(tried) + int((run.robustness["attack"] == "none").sum()):
        told.append("[red]An attack failed.[/red]")
    told += _standing_out(run)
    if told:
        out.print("  " + " ".join(told), highlight=False)


def _standing_out(run: Run) -> list[str]:
    """Which layer depends most on individual features of the input."""
    held = run.layers[(run.layers["term"] == "v(X;Z)") & run.layers["value"].notna() & (run.layers["depth"] >= 0)]
    held = held[~held["flagged"].astype(bool)]
    if held.empty:
        return []
    key = held[["estimator", "partition"]].iloc[0]
    held = held[(held["estimator"] == key["estimator"]) & (held["partition"] == key["partition"])]
    top = held.loc[held["value"].idxmax()]
    of = run.features
    of = of[
        (of["layer"] == top["layer"]) & (of["estimator"] == key["estimator"]) & (of["partition"] == key["partition"])
    ]
    count = len(of)
    if not count:
        return []
    return [
        f"Layer {escape(str(top['layer']))} depends most on individual features: masking one of {count} loses "
        f"{top['value'] / count:.0%} of its information on average."
    ]


def runs_json(runs: Sequence[Run], folders: Sequence[str]) -> dict[str, Any]:
    """Return what was found as plain values for scripts; ``schema`` rises with changes that could break a reader."""

    models = []
    for run, name, folder in zip(runs, display_names(runs), folders, strict=True):
        first = run.robustness.iloc[0]
        keys = ["attack", "norm", "eps", "robust_accuracy", "low", "high", "certified_accuracy", "status", "reason"]
        models.append(
            {
                "name": name,
                "doubts": list(run.config.get("doubts", ())),
                "folder": folder,
                "data": run.config["data"]["name"],
                "samples": int(first["samples"]),
                "clean": {k: float(first[f"clean_{k}"]) for k in ("accuracy", "low", "high")},
                "attacks": plain_rows(run.robustness.loc[run.robustness["attack"] != "none", keys]),
                "signs": plain_rows(run.signs.loc[run.signs["seen"].astype(bool), ["norm", "eps", "name", "detail"]]),
                "layers": plain_rows(
                    run.layers[["estimator", "partition", "layer", "view", "term", "value", "low", "high", "flagged"]]
                ),
                "reading": list(run.config.get("reading", ())),
            }
        )
    return {"schema": 1, "models": models}


_UNITS = ("S(Z;Y)", "C(Z;Y)", "subset synergy")
_SHOWN = (
    "I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", *_UNITS, "r(X;Z)", "v(X;Z)", "IB", "I(X;Z) noise", "IB noise", "GIB"
)  # fmt: skip


def _print_layers(held: pd.DataFrame, title: str, out: Console) -> None:
    """Print one estimator's table of layers, the predicted label first, with the notes below."""
    terms = [t for t in _SHOWN if held.loc[held["term"] == t, "value"].notna().any()]
    if "IB noise" in terms:  # that of a code is I(Z;Y) less a rate that was chosen
        terms.remove("IB")
    view = str(held.loc[held["term"] == "I(X;Z)", "view"].iloc[0])
    table = Table(title=escape(title), title_justify="left")
    table.add_column("layer", overflow="fold")
    for term in terms:
        short = term.replace("(X;Z)", "") if term[0] in "rvCS" else named(term, view)
        table.add_column(short, justify="right")
    order = first_of_all(held)
    for layer, g in order.groupby("layer", sort=False):
        by_term = {r.term: r for r in g.itertuples()}
        table.add_row(escape(str(layer)), *(_cell(by_term[t]) if t in by_term else "" for t in terms))
    out.print(table)
    told: dict[str, list[str]] = {}
    for r in order[order["term"].isin([*terms, *_UNITS])].itertuples():
        for note in filter(None, str(r.note).split("; ")):
            told.setdefault(note, []).append(str(r.layer))
    for note, layers in told.items():
        out.print(f"  [dim]{escape(note)}: {escape(', '.join(dict.fromkeys(layers)))}", highlight=False)
    swept = {t: held[held["term"] == f"v(X;Z){t}"].set_index("layer")["value"] for t in (" k/2", "", " 2k")}
    layers = [n for n in swept[""].index if all(n in v.index and v[n] == v[n] for v in swept.values())]
    if layers:
        told_at = "; ".join(f"{escape(str(n))} {', '.join(f'{v[n]:.2f}' for v in swept.values())}" for n in layers)
        out.print(f"  [dim]v at k/2, k and 2k codes: {told_at}", highlight=False)
    if held["flagged"].any():
        out.print("  [dim]*: marked, the truth may be above", highlight=False)


def _cell(row: Any) -> str:
    if row.value != row.value:
        return "n/e"
    error = f"\n±{(row.high - row.low) / 2:.2f}" if row.high > row.low else ""  # none where all outcomes are counted
    return f"{row.value:.2f}" + ("[yellow]*[/]" if row.flagged else "") + error
