"""The results of an evaluation as text in a terminal, and as plain values for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from robgib.reporting.cells import LayerTable, cell, layer_table, shown_columns, star_reasons, without_negative_zero
from robgib.reporting.headline import budget_text, headline, of_images, random_points_text, rank
from robgib.reporting.summary import (
    LEAST_MODELS,
    display_names,
    feature_noun,
    in_reading_order,
    sections,
    unstable_orders,
)
from robgib.results import TERMS, Run, checks_run, plain_rows

__all__ = ["print_indented", "print_runs", "runs_json"]

_GAP = 1
"""Spaces between the columns of the table of layers."""
_WIDEST_NAME = 24
"""Characters of a layer's name on one line."""
_MOST_ROWS = 10
"""Rows of the accuracy table, above which it shows only the lowest accuracy at each budget."""


def print_runs(runs: Sequence[Run], out: Console, err: Console, layers: bool = False) -> None:
    """Print the results of runs: headlines, accuracies, notes; failures of attacks go to ``err``.

    Args:
        runs: of the models.
        out: console of the results.
        err: console of failures.
        layers: whether to print every attack, what each indicator measured, and the bits of every layer too.
    """
    names, ranking = display_names(runs), rank(runs)
    ordered = [(runs[i], names[i]) for i in ranking.order]
    for run, name in ordered:
        _print_headline(run, name, out)
    if ranking.text:
        out.print(escape(ranking.text), highlight=False)
    _print_accuracies(ordered, layers, out)
    for run, name in ordered:
        _print_notes(run, name, out)
    for run in runs:
        for r in run.robustness[run.robustness["status"] != "ok"].itertuples():
            err.print(f"[red]{escape(f'{run.name}: {r.reason}')}", highlight=False, soft_wrap=True)
    if layers:
        for run, name in ordered:
            _print_indicators(run, name, out)
    for run, name in ordered:
        for estimator, partition in sections([run]) if layers else ():
            chosen = (run.layers["estimator"] == estimator) & (run.layers["partition"] == partition)
            _print_layers(run.layers[chosen], f"{name}: bits by layer, {estimator}, {partition}".rstrip(", "), out)
    for sentence in unstable_orders(runs):
        out.print(f"[yellow]{escape(sentence)}[/yellow].", highlight=False)
    if 1 < len(runs) < LEAST_MODELS:
        out.print(f"{len(runs)} models are too few to correlate (at least {LEAST_MODELS}).", highlight=False)


def _print_headline(run: Run, name: str, out: Console) -> None:
    """Print the accuracies of a model in one sentence, then what limits them, and the most patch-sensitive layer."""
    line = headline(run, name)
    print_indented(f"[bold]{escape(name)}[/bold]: {escape(line.accuracies)}.", out, hanging=True)
    for warning in run.config.get("reading_warnings", ()):
        print_indented(f"[bold red]Check first:[/] {escape(str(warning))}.", out)
    diagnostics = line.diagnostics
    style = "[red]" if line.failed else "[yellow]" if line.flagged else ""
    parts = (
        [f"{style}{escape(diagnostics[:1].upper() + diagnostics[1:])}.{'[/]' if style else ''}"] if diagnostics else []
    )
    parts += [escape(line.brief_limits)] if line.weak else []
    parts += _most_sensitive(run)
    if parts:
        print_indented(" ".join(parts), out)


def print_indented(markup: str, out: Console, hanging: bool = False) -> None:
    """Print a sentence with two spaces before each of its lines; if ``hanging``, not before the first."""
    text = out.render_str(markup, highlight=False)  # a console may escape control characters there
    for number, line in enumerate(text.wrap(out, max(out.width - 2, 1))):
        line.rstrip()
        out.print(line if hanging and number == 0 else Text("  ") + line, highlight=False, soft_wrap=True)


def _most_sensitive(run: Run) -> list[str]:
    """Return a sentence on the layer that depends most on individual features of the input, if one is shown to.

    Its interval of v must lie above those of all other layers.
    """
    rows = run.layers[(run.layers["term"] == "v(X;Z)") & run.layers["value"].notna() & (run.layers["depth"] >= 0)]
    rows = rows[~rows["flagged"].astype(bool)]
    if rows.empty:
        return []
    key = rows[["estimator", "partition"]].iloc[0]
    rows = rows[(rows["estimator"] == key["estimator"]) & (rows["partition"] == key["partition"])]
    top = rows.loc[rows["value"].idxmax()]
    if (rows.drop(index=top.name)["high"] >= top["low"]).any():
        return []
    features = run.features
    count = int(
        (
            (features["layer"] == top["layer"])
            & (features["estimator"] == key["estimator"])
            & (features["partition"] == key["partition"])
        ).sum()
    )
    if not count:
        return []
    return [
        f"`{escape(str(top['layer']))}` depends most on individual {feature_noun(str(key['partition']), many=True)}: "
        f"masking one of {count} loses {top['value'] / count:.0%} of its information on average."
    ]


def _shown_rows(table: pd.DataFrame, every: bool) -> pd.DataFrame:
    """Return the rows of attacks to print: all, or the lowest accuracy at each budget, and failures."""
    rows = table[table["attack"] != "none"]
    if every or rows.empty:
        return rows
    done = rows[rows["status"] == "ok"]
    lowest = done.groupby(["norm", "eps"], sort=False)["robust_accuracy"].idxmin()
    return rows.loc[sorted([*lowest, *rows.index[rows["status"] != "ok"]])]


def _print_accuracies(models: Sequence[tuple[Run, str]], every: bool, out: Console) -> None:
    """Print one table of the robust accuracies of all models."""
    every = every or sum((run.robustness["attack"] != "none").sum() for run, _ in models) <= _MOST_ROWS
    rows = [(run, name, _shown_rows(run.robustness, every)) for run, name in models]
    if not any(len(own) for _, _, own in rows):
        return
    out.print()
    out.print(_accuracy_table([(name, own) for _, name, own in rows]))
    if not every:
        out.print("[dim]Lowest accuracy at each budget; --verbose prints every attack.", highlight=False)
    if any(run.attack_options["cascade"] for run, _ in models):
        out.print("[dim]Each attack ran on the samples that remained robust.", highlight=False)


def _accuracy_table(rows: Sequence[tuple[str, pd.DataFrame]]) -> Table:
    """Return the rows of ``robustness`` of several models, each with its name, as one table."""
    columns = shown_columns("robustness", "terminal", [own for _, own in rows])
    table = Table(box=None, pad_edge=False, header_style="bold")
    if len(rows) > 1:
        table.add_column("model", overflow="fold", min_width=6)
    for column in columns:
        if column.form == "name":
            table.add_column(column.label, overflow="fold", min_width=12)
        else:
            justify: Literal["left", "right"] = "left" if column.form == "budget" else "right"
            table.add_column(column.label.replace(" ", "\n"), justify=justify, no_wrap=True)
    for name, own in rows:
        for number, r in enumerate(own.itertuples()):
            known = [c for c in columns if r.status == "ok" or c.form in ("name", "budget")]
            cells = [escape(cell(column, r)) for column in known]
            model = [escape(name) if number == 0 else ""] if len(rows) > 1 else []
            table.add_row(*model, *cells, *([] if r.status == "ok" else ["[red]failed"]))
    return table


def _print_notes(run: Run, name: str, out: Console) -> None:
    """Print how the model was read, limits of the attacks' figures, accuracy under corruptions and at random points."""
    for note in run.config.get("reading", ()):
        print_indented(f"[yellow]{escape(name)}[/yellow]: {escape(note)}.", out, hanging=True)
    attacks_of: dict[str, list[str]] = {}
    for r in run.robustness.itertuples():
        if r.not_finite and r.seconds:  # not of the worst case of others
            text = f"{r.not_finite} of {r.samples} samples have no finite answer; none counts as robust"
            attacks_of.setdefault(text, []).append(str(r.attack))
        if r.note:
            attacks_of.setdefault(str(r.note), []).append(str(r.attack))
    for text, attacks in attacks_of.items():
        where = f"{name}, {', '.join(attacks)}"
        print_indented(f"[yellow]{escape(where)}[/yellow]: {escape(text)}.", out, hanging=True)
    if len(run.corruptions):
        means = run.corruptions.groupby("corruption", sort=False)["accuracy"].mean()
        listed = ", ".join(f"{kind} {100 * value:.0f}%" for kind, value in means.items())
        some = f", on {images}" if (images := of_images(run)) else ""
        text = f"{escape(name)}: {100 * means.mean():.1f}% under corruptions{some} ({listed})."
        print_indented(text, out, hanging=True)
    if points := random_points_text(run):
        print_indented(f"{escape(name)}: {escape(points)}.", out, hanging=True)


def _print_indicators(run: Run, name: str, out: Console) -> None:
    """Print the attack-failure indicators that were raised, with what they measured and mean."""
    for indicator, rows in run.signs[run.signs["seen"].astype(bool)].groupby("name", sort=False):
        for r in rows.itertuples():
            where = f"{name}, {budget_text(str(r.norm), float(r.eps))}: {indicator}"
            out.print(f"[yellow]{escape(where)}[/yellow]: {escape(str(r.detail))}.", highlight=False)
        for meaning in rows["meaning"].unique():
            print_indented(f"[dim]{escape(str(meaning))}", out)


def runs_json(runs: Sequence[Run], folders: Sequence[str]) -> dict[str, Any]:
    """Return the results as plain values for scripts; ``schema`` rises with changes that could break a reader."""

    models = []
    for run, name, folder in zip(runs, display_names(runs), folders, strict=True):
        first = run.robustness.iloc[0]
        keys = ["attack", "norm", "eps", "robust_accuracy", "low", "high", "certified_accuracy", "status", "reason"]
        ran, of_check = checks_run(run.signs), ["norm", "eps", "name", "detail"]
        models.append(
            {
                "name": name,
                "reading_warnings": list(run.config.get("reading_warnings", ())),
                "doubts": list(run.config.get("reading_warnings", ())),  # the former name of reading_warnings
                "folder": folder,
                "data": run.config["data"]["name"],
                "samples": int(first["samples"]),
                "clean": {k: float(first[f"clean_{k}"]) for k in ("accuracy", "low", "high")},
                "attacks": plain_rows(run.robustness.loc[run.robustness["attack"] != "none", keys]),
                "random_points": plain_rows(run.random_points),
                "signs": plain_rows(run.signs.loc[run.signs["seen"].astype(bool), of_check]),
                "checks_run": int(ran.sum()),
                "checks_not_run": plain_rows(run.signs.loc[~ran, of_check]),  # the detail is the reason
                "layers": plain_rows(
                    run.layers[["estimator", "partition", "layer", "view", "term", "value", "low", "high", "flagged"]]
                ),
                "reading": list(run.config.get("reading", ())),
            }
        )
    return {"schema": 1, "models": models}


def _broken(content: LayerTable) -> list[list[list[str]]]:
    """Return the heading and rows as lines of cells: a figure above its interval, the words of a heading by line."""

    def lines(text: str) -> list[str]:
        return text.replace(" ± ", "\n±").replace(" [", "\n[").replace(", ", ",\n").split("\n")

    numbers = content.numbers
    head = [h.split() if n else [h] for h, n in zip(content.headings, numbers, strict=True)]
    return [head, *([lines(t) if n else [t] for t, n in zip(row, numbers, strict=True)] for row in content.rows)]


def _layer_tables(content: LayerTable, width: int) -> Iterator[Table]:
    """Yield the layers' table, in as many parts as the width needs: no number is broken."""

    def widths() -> list[int]:
        return [max(len(line) for row in texts for line in row[i]) + _GAP for i in range(len(content.headings))]

    fixed = [i for i, n in enumerate(content.numbers) if not n]
    texts = [[[text] for text in row] for row in (content.headings, *content.rows)]
    if sum(widths()) > width:
        texts = _broken(content)
    wide = widths()
    room = width - sum(min(wide[i], _WIDEST_NAME + _GAP) for i in fixed)
    parts: list[list[int]] = [[]]
    for i in (i for i, n in enumerate(content.numbers) if n):
        if parts[-1] and sum(wide[j] for j in [*parts[-1], i]) > room:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = Table(title_justify="left", box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for i in fixed:
            table.add_column("\n".join(texts[0][i]), overflow="fold", max_width=_WIDEST_NAME)
        for i in part:
            table.add_column("\n".join(texts[0][i]), justify="right", no_wrap=True)
        for row in texts[1:]:
            cells = [escape("\n".join(row[i])) for i in part]
            table.add_row(*(escape(row[i][0]) for i in fixed), *(t.replace("*", "[yellow]*[/]") for t in cells))
        yield table


def _print_layers(layers: pd.DataFrame, title: str, out: Console) -> None:
    """Print the table of layers of one estimator, with the notes below."""
    for number, table in enumerate(_layer_tables(layer_table(layers, "terminal"), out.width)):
        table.title = None if number else escape(title)
        out.print(table)
    shown = layers[layers["term"].isin([t.name for t in TERMS if "terminal" in t.shown])]
    layers_of: dict[str, list[str]] = {}
    for r in in_reading_order(shown).itertuples():
        for note in filter(None, str(r.note).split("; ")):
            layers_of.setdefault(note, []).append(str(r.layer))
    for note, noted in layers_of.items():
        print_indented(f"[dim]{escape(note)}: {escape(', '.join(dict.fromkeys(noted)))}", out)
    swept = {t: layers[layers["term"] == f"v(X;Z){t}"].set_index("layer")["value"] for t in (" k/2", "", " 2k")}
    complete = [n for n in swept[""].index if all(n in v.index and v[n] == v[n] for v in swept.values())]
    if complete:
        by_layer = "; ".join(
            f"{escape(str(n))} {', '.join(without_negative_zero(f'{v[n]:.2f}') for v in swept.values())}"
            for n in complete
        )
        print_indented(f"[dim]v at k/2, k and 2k codes: {by_layer}", out)
    if reasons := star_reasons(layers, shown):
        print_indented(f"[dim]* marks flagged figures, which are not reliable: {escape(reasons)}", out)
