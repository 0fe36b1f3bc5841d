"""The page's figures, from run tables alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from robgib.reporting.charts import MOST_ENTRIES, SYMBOLS, Axis, Chart, Entry, Series, figure, heat_map
from robgib.reporting.headline import NORMS, budget_text
from robgib.reporting.summary import PREDICTION, display_names
from robgib.results import Run

__all__ = [
    "accuracy_curves",
    "attack_convergence",
    "class_name",
    "corruption_accuracy",
    "feature_maps",
    "information_plane",
    "layer_terms",
    "measured_curves",
    "model_accuracies",
    "phase_curves",
    "picture_rows",
    "robustness_scatter",
    "study_scatter",
    "trace_accuracy",
    "trace_plane",
    "trace_terms",
    "validation_errors",
]

_SHARE = Axis("accuracy", "percent", low=0.0, high=1.0)


def _coloured(names: Sequence[str], most: int = MOST_ENTRIES) -> dict[str, tuple[int, str]]:
    """Return the colour and the legend's entry of each name; beyond ``most`` entries the last names share one in grey.

    >>> _coloured(["a", "b", "c"], most=2)
    {'a': (0, 'a'), 'b': (-1, '2 others'), 'c': (-1, '2 others')}
    """
    unique = list(dict.fromkeys(names))
    if len(unique) <= most:
        return {name: (i, name) for i, name in enumerate(unique)}
    rest = f"{len(unique) - most + 1} others"
    return {name: (i, name) if i < most - 1 else (-1, rest) for i, name in enumerate(unique)}


def _entries(colours: dict[str, tuple[int, str]], *, dash: bool = True, symbol: bool = True) -> list[Entry]:
    unique = dict.fromkeys(colours.values())
    return [Entry(label, colour, 0 if dash else None, 0 if symbol else None) for colour, label in unique]


def _interval(table: pd.DataFrame, scale: float = 1.0) -> tuple[list[float], list[float]]:
    return (table["low"] * scale).tolist(), (table["high"] * scale).tolist()


def model_accuracies(runs: Sequence[Run]) -> str:
    """Clean accuracy and robust accuracy at each budget, a point each with its 95% interval, in the runs' order."""
    names = tuple(display_names(runs))
    series = []
    legend = [Entry("clean", -1, None, 0)]
    clean = pd.DataFrame([r.robustness.iloc[0] for r in runs])
    series.append(
        Series(
            range(len(runs)),
            clean["clean_accuracy"].tolist(),
            y_interval=(clean["clean_low"].tolist(), clean["clean_high"].tolist()),
            colour=-1,
            hover=[f"{n}, clean: {v:.1%}" for n, v in zip(names, clean["clean_accuracy"], strict=True)],
        )
    )
    tried = [r.robustness[(r.robustness["status"] == "ok") & (r.robustness["attack"] != "none")] for r in runs]
    budgets = list(dict.fromkeys(b for t in tried for b in zip(t["norm"], t["eps"], strict=True)))
    for number, (norm, eps) in enumerate(budgets[: MOST_ENTRIES - 1]):
        rows = [(i, t[(t["norm"] == norm) & (t["eps"] == eps)]) for i, t in enumerate(tried)]
        worst = [(i, t.loc[t["robust_accuracy"].idxmin()]) for i, t in rows if len(t)]
        label = budget_text(str(norm), float(eps))
        legend.append(Entry(label, number, None, 1 + number))
        series.append(
            Series(
                [i + 0.12 * (1 + number) for i, _ in worst],
                [w["robust_accuracy"] for _, w in worst],
                y_interval=([w["low"] for _, w in worst], [w["high"] for _, w in worst]),
                colour=number,
                symbol=1 + number,
                hover=[f"{names[i]}, {label}: {w['robust_accuracy']:.1%} ({w['attack']})" for i, w in worst],
            )
        )
    chart = Chart(series, Axis(form="category", categories=names), _SHARE, width=max(360, min(720, 90 * len(runs))))
    return figure([chart], legend, "Accuracy of each model, clean and under attack")


def measured_curves(run: Run) -> pd.DataFrame:
    """Return the rows of ``curve`` of attacks that were measured at further radii than 0 and eps."""
    points = run.curve.groupby(["attack", "norm", "eps"], sort=False)["at"].transform("nunique")
    return run.curve[points > 2]


def accuracy_curves(runs: Sequence[Run]) -> str:
    """Accuracy against eps with its 95% band, a chart a norm, the strongest attack of each model; or an empty text."""
    names, measured = display_names(runs), [measured_curves(run) for run in runs]
    norms = [n for n in NORMS if any((curve["norm"] == n).any() for curve in measured)]
    colours = _coloured(names)
    charts = []
    for norm in norms:
        series = []
        for curve, name in zip(measured, names, strict=True):
            curves = curve[curve["norm"] == norm]
            if curves.empty:
                continue
            strongest = curves.groupby("attack", sort=False)["accuracy"].mean().idxmin()
            g = curves[curves["attack"] == strongest].sort_values("at")
            series.append(
                Series(
                    g["at"].tolist(), g["accuracy"].tolist(), y_interval=_interval(g), colour=colours[name][0],
                    symbol=max(0, colours[name][0]), line="straight", band=True,
                    hover=[f"{name}, {r.attack}, eps {r.at:.4g}: {r.accuracy:.1%} [{r.low:.1%}, {r.high:.1%}]"
                           for r in g.itertuples()],
                )
            )  # fmt: skip
        size = (420, 280) if len(norms) == 1 else (360, 260)
        charts.append(Chart(series, Axis("eps (pixel scale)"), _SHARE, f"{NORMS[norm]} perturbations", *size))
    legend = [Entry(label, colour, 0, max(0, colour)) for colour, label in dict.fromkeys(colours.values())]
    shown = legend if len(runs) > 1 else ()
    return figure(charts, shown, "Accuracy against the size of perturbations") if charts else ""


def attack_convergence(runs: Sequence[Run]) -> str:
    """Share still right and margin of the true class by gradient step, a chart each; empty where none was watched."""
    if all(r.convergence.empty for r in runs):
        return ""
    watched = [
        (f"{name} · {attack}" if len(runs) > 1 else str(attack), g)
        for run, name in zip(runs, display_names(runs), strict=True)
        for attack, g in run.convergence.groupby("attack", sort=False)
    ]
    colours = _coloured([label for label, _ in watched])
    charts = []
    for title, term in (("classified correctly", "right"), ("margin of the true class", "margin")):
        series = [
            Series(
                (g["step"] + 1).tolist(), g[term].tolist(), colour=colours[label][0], dash=max(0, colours[label][0]),
                line="step" if term == "right" else "straight", marks=False,
            )
            for label, g in watched
        ]  # fmt: skip
        y = Axis("share of samples" if term == "right" else "relative to the clean image", "percent", low=0.0, high=1.0)
        charts.append(Chart(series, Axis("gradient steps of a sample, plus 1", "log"), y, title))
    legend = [Entry(label, colour, max(0, colour), None) for colour, label in dict.fromkeys(colours.values())]
    return figure(charts, legend, "Progress of the attacks")


def corruption_accuracy(runs: Sequence[Run]) -> str:
    """Accuracy against severity, a chart a corruption; empty when none was measured."""
    kinds = list(dict.fromkeys(k for r in runs for k in r.corruptions["corruption"]))
    if not kinds:
        return ""
    names = display_names(runs)
    colours = _coloured(names)
    charts = []
    for kind in kinds:
        series = []
        for run, name in zip(runs, names, strict=True):
            g = run.corruptions[run.corruptions["corruption"] == kind]
            colour = colours[name][0]
            hover = [f"{name}, severity {r.severity}: {r.accuracy:.1%}" for r in g.itertuples()]
            series.append(
                Series(
                    g["severity"].tolist(), g["accuracy"].tolist(), y_interval=_interval(g), colour=colour,
                    symbol=max(0, colour), line="straight", hover=hover,
                )
            )  # fmt: skip
        charts.append(Chart(series, Axis("severity", low=0.8, high=5.2), _SHARE, str(kind), 300, 230))
    legend = [Entry(label, colour, 0, max(0, colour)) for colour, label in dict.fromkeys(colours.values())]
    return figure(charts, legend if len(runs) > 1 else (), "Accuracy under common corruptions")


_DRAWN = ["term", "layer", "depth", "value", "low", "high", "flagged"]
"""The columns of ``layers`` that figures draw: pandas takes as long for each row as a frame has columns."""


def _term(table: pd.DataFrame, term: str) -> pd.DataFrame:
    """The rows of one term, in the layers' order, where it was estimated."""
    return table[(table["term"] == term) & table["value"].notna()].sort_values("depth")


_PANELS = (
    ("IB terms", "bits", (("I(Z;Y)", "prediction I(Z;Y)", 1.0, 2), ("I(X;Z)", "I(X;Z)", 1.0, 0))),
    ("GIB terms", "bits", (("I(Z;Y)", "prediction I(Z;Y)", 1.0, 2), ("C(X;Z)", "½ C(X;Z)", 0.5, 1))),
    ("Degrees", "features", (("r(X;Z)", "redundancy r", 1.0, 4), ("v(X;Z)", "vulnerability v", 1.0, 3))),
    ("Synergy", "bits", (("S(X;Z)", "synergy S(X;Z)", 1.0, 5), ("S(Z;Y)", "S(Z;Y)", 1.0, -1))),
)


def layer_terms(table: pd.DataFrame) -> str:
    """By layer: the IB's two terms, the GIB's two beside them, the degrees, the synergies; those that there are."""
    charts, drawn, table = [], {}, table[_DRAWN]
    rows = {key: _term(table, key) for key in {key for _, _, lines in _PANELS for key, *_ in lines}}
    for title, unit, lines in _PANELS:
        present = [line for line in lines if len(rows[line[0]])]
        own = {line[0] for line in present} - {"I(Z;Y)"} - ({"S(Z;Y)"} if title != "Synergy" else set())
        if not own:
            continue
        places = list(dict.fromkeys(table.sort_values("depth")["layer"]))
        series = []
        for key, label, scale, colour in present:
            g = rows[key]
            drawn[label] = colour
            series.append(
                Series(
                    [places.index(n) for n in g["layer"]], (g["value"] * scale).tolist(),
                    y_interval=_interval(g, scale), colour=colour, symbol=max(0, colour), line="straight",
                    hollow=g["flagged"].astype(bool).tolist(),
                    hover=[f"{r.layer}, {label}: {r.value * scale:.3f}" for r in g.itertuples()],
                )
            )  # fmt: skip
        low = min([0.0, *(float(v) for s in series for v in s.y if np.isfinite(v))])
        y = Axis(unit, low=0.0 if low == 0 else None)
        charts.append(Chart(series, Axis(form="category", categories=tuple(map(str, places))), y, title, 320, 270))
    legend = [Entry(label, colour, 0, max(0, colour)) for label, colour in drawn.items()]
    shared = legend if len(legend) <= MOST_ENTRIES else legend[:MOST_ENTRIES]
    return figure(charts, shared, "Information by layer") if charts else ""


def feature_maps(run: Run) -> str:
    """Where in the image the layers' information lies: the share of each patch alone, and the loss without it.

    Shares of I(X;Z) by patch, for some of the layers and the prediction; empty where no patches were measured.
    """
    patches = run.features[run.features["partition"].str.startswith("patches:")]
    if patches.empty:
        return ""
    finest = max(patches["partition"].unique(), key=lambda p: int(p.partition(":")[2]))
    grid, patches = int(finest.partition(":")[2]), patches[patches["partition"] == finest]
    order = list(dict.fromkeys(patches.loc[patches["depth"] >= 0].sort_values("depth")["layer"]))
    layers = [order[i] for i in sorted({0, len(order) // 2, len(order) - 1})] if order else []
    layers += [PREDICTION] if (patches["layer"] == PREDICTION).any() else []
    rows = []
    for colour, (label, column) in enumerate(
        (("single patch", "single_feature"), ("leave-one-out loss", "leave_one_out"))
    ):
        able = [e for e, g in patches.groupby("estimator", sort=False) if g[column].notna().any()]
        if not able:
            continue
        own = patches[
            patches["estimator"] == ("imputation" if column == "leave_one_out" and "imputation" in able else able[0])
        ]
        own = own.assign(
            share=own[column] / own["total"] if column == "single_feature" else 1 - own[column] / own["total"]
        )
        grids = []
        for layer in layers:
            z = np.full((grid, grid), np.nan)
            for row in own[own["layer"] == layer].itertuples():
                i, j = (int(part) for part in row.feature.removeprefix("patch ").split(","))
                z[i, j] = 100 * row.share
            grids.append(z)
        most = float(np.nanmax(grids)) if np.isfinite(grids).any() else 1.0
        maps = "".join(heat_map(z, layer, colour, most, label) for z, layer in zip(grids, layers, strict=True))
        rows.append(
            f'<figure class="chart"><figcaption>{label}, % of I(X;Z)</figcaption>'
            f'<div class="maps">{maps}</div></figure>'
        )
    return "".join(rows)


def information_plane(models: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """Prediction against complexity, a path through the layers for each model: IB's plane, and the GIB's beside it."""
    colours = _coloured([name for name, _ in models])
    models = [(name, table[_DRAWN]) for name, table in models]
    charts = []
    for title, term, scale in (("IB plane", "I(X;Z)", 1.0), ("GIB plane", "C(X;Z)", 0.5)):
        series = []
        for name, table in models:
            g = _term(table, term)
            if g.empty:
                continue
            p = _term(table, "I(Z;Y)").set_index("layer").reindex(g["layer"]).reset_index()
            colour = colours[name][0]
            hover = [
                f"{name}, {r.layer}: complexity {r.value * scale:.3f}, prediction {v:.3f} bits"
                for r, v in zip(g.itertuples(), p["value"], strict=True)
            ]
            series.append(
                Series(
                    (g["value"] * scale).tolist(), p["value"].tolist(), _interval(g, scale), _interval(p), colour,
                    symbol=max(0, colour), line="straight", hollow=g["flagged"].astype(bool).tolist(), hover=hover,
                    labels=[str(d) for d in g["depth"]],
                )
            )  # fmt: skip
        if series:
            x = Axis(f"{'½ ' if scale != 1 else ''}{term}, bits")
            charts.append(Chart(series, x, Axis("I(Z;Y), bits"), title))
    legend = [Entry(label, colour, 0, max(0, colour)) for colour, label in dict.fromkeys(colours.values())]
    return figure(charts, legend, "Information plane") if charts else ""


_AXES = (
    ("vulnerability", "vulnerability v", "v(X;Z), mean over layers"),
    ("gib_complexity", "GIB complexity", "C(X;Z), bits, mean over layers"),
    ("ib_complexity", "IB complexity", "I(X;Z), bits, mean over layers"),
)


def robustness_scatter(rows: pd.DataFrame, only: str = "") -> str:
    """Vulnerability, GIB complexity and IB complexity against robust accuracy, a point a model; those there are.

    Args:
        rows: of the summary, of one estimator, partition and attack.
        only: name of the one figure to draw, or nothing for all.
    """
    charts = []
    for key, title, axis in _AXES:
        if (only and key != only) or not rows[key].notna().any():
            continue
        hover = [
            f"{r.model}: {axis} {v:.3f}, robust {r.robust_accuracy:.1%}"
            for r, v in zip(rows.itertuples(), rows[key], strict=True)
        ]
        series = Series(
            rows[key].tolist(), rows["robust_accuracy"].tolist(),
            (rows[f"{key}_low"].tolist(), rows[f"{key}_high"].tolist()),
            (rows["robust_low"].tolist(), rows["robust_high"].tolist()), hover=hover,
            labels=[str(name) for name in rows["model"]],
        )  # fmt: skip
        size = (480, 320) if only else (360, 280)
        y = Axis(f"robust accuracy, {rows['attack'].iloc[0]}", "percent")
        charts.append(Chart([series], Axis(axis), y, title, *size))
    return figure(charts, (), "Models: information against robust accuracy") if charts else ""


def study_scatter(rows: pd.DataFrame, column: str, outcome: str, name: str, axis: str) -> str:
    """A figure against the outcome, a point a model: colours are architectures, and symbols regimes where they fit.

    Models that were left out are hollow. A label is the strength of the training, where it has room.
    """
    architectures = _coloured(list(rows["architecture"]))
    regimes = list(dict.fromkeys(rows["regime"]))
    by_symbol = len(set(architectures.values())) + len(regimes) <= MOST_ENTRIES and 1 < len(regimes) <= len(SYMBOLS)
    series = []
    for (architecture, regime), g in rows.groupby(["architecture", "regime"], sort=False):
        x, y = g[column], g[outcome]
        dx, dy = 1.96 * g[f"{column}_se"], 1.96 * g[f"{outcome}_se"]
        series.append(
            Series(
                x.tolist(), y.tolist(), ((x - dx).tolist(), (x + dx).tolist()), ((y - dy).tolist(), (y + dy).tolist()),
                colour=architectures[architecture][0], symbol=regimes.index(regime) if by_symbol else 0,
                hollow=(g["left_out"] != "").tolist(),
                labels=[f"{strength:g}" if strength else "" for strength in g["strength"]],
                hover=[f"{r.model}, {regime}, strength {r.strength:g}: {a:.3f}, {b:.3f}"
                       for r, a, b in zip(g.itertuples(), x, y, strict=True)],
            )
        )  # fmt: skip
    legend = _entries(architectures, dash=False, symbol=not by_symbol)
    if by_symbol:
        legend = [Entry(e.name, e.colour, 0, None) for e in legend]
        legend += [Entry(str(name), -1, None, i) for i, name in enumerate(regimes)]
    return figure([Chart(series, Axis(name), Axis(axis), "", 520, 340)], legend, "Models of the study")


def phase_curves(table: pd.DataFrame) -> str:
    """I(X;Z) and C(X;Z) of one layer over the epochs, a line a network, a colour a group; controls dotted."""
    epochs = sorted(table["epoch"].unique())
    groups = [f"{g}, {c}" if c else str(g) for g, c in zip(table["group"], table["control"], strict=True)]
    table = table.assign(label=groups)
    colours = _coloured(groups)
    dashes = {label: 2 if control else 0 for label, control in zip(groups, table["control"], strict=True)}
    charts = []
    for term in ("I(X;Z)", "C(X;Z)"):
        series = []
        for name, g in table[table["term"] == term].groupby("network", sort=False):
            label = g["label"].iloc[0]
            series.append(
                Series(
                    [epochs.index(e) for e in g["epoch"]], g["value"].tolist(), colour=colours[label][0],
                    dash=dashes[label], line="straight",
                    hover=[f"{name}, epoch {r.epoch}: {r.value:.3f} bits" for r in g.itertuples()],
                )
            )  # fmt: skip
        places = Axis("epochs", "category", tuple(f"{e:g}" for e in epochs))
        charts.append(Chart(series, places, Axis("bits"), term))
    shown = {label: (colour, name) for label, (colour, name) in colours.items()}
    legend = {name: Entry(name, colour, dashes[label], 0) for label, (colour, name) in reversed(shown.items())}
    return figure(charts, list(reversed(legend.values())), "Information over the epochs of training")


def validation_errors(table: pd.DataFrame) -> str:
    """Bias with ±1 standard deviation of I, S and C by task."""
    tasks = list(dict.fromkeys(table["task"]))
    series, legend = [], []
    for number, name in enumerate(("I", "S", "C")):
        g = table[table["figure"].isin([name, f"{name}(X;Z)"])]
        if g.empty:
            continue
        legend.append(Entry(name, number, None, number))
        series.append(
            Series(
                [tasks.index(t) + 0.18 * (number - 1) for t in g["task"]], g["bias"].tolist(),
                y_interval=((g["bias"] - g["sd"]).tolist(), (g["bias"] + g["sd"]).tolist()), colour=number,
                symbol=number, hover=[f"{r.task}, {name}: bias {r.bias:+.3f} bits" for r in g.itertuples()],
            )
        )  # fmt: skip
    x, y = Axis(form="category", categories=tuple(map(str, tasks))), Axis("bias ± sd, bits", rules=(-0.05, 0.05))
    return figure([Chart(series, x, y, "", max(360, min(760, 34 * len(tasks))), 280)], legend, "Errors by task")


def _spread(layers: Sequence[str]) -> list[str]:
    """Return at most as many layers as a legend takes, evenly spread from the first to the last.

    >>> _spread(["a", "b", "c"]), len(_spread([str(i) for i in range(20)]))
    (['a', 'b', 'c'], 6)
    """
    places = np.linspace(0, len(layers) - 1, min(MOST_ENTRIES, len(layers))).round().astype(int)
    return [layers[i] for i in places]


def trace_terms(table: pd.DataFrame, estimator: str) -> str:
    """The terms of layers over the epochs, a chart a term; bits, and features for the degrees r and v."""
    table = table[(table["estimator"] == estimator) & table["value"].notna()]
    epochs = sorted(table["epoch"].unique())
    layers = _spread(list(dict.fromkeys(table.sort_values("depth")["layer"])))
    charts = []
    for term in ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)"):
        series = []
        for number, layer in enumerate(layers):
            g = table[(table["term"] == term) & (table["layer"] == layer)].sort_values("epoch")
            if len(g):
                series.append(
                    Series(
                        [epochs.index(e) for e in g["epoch"]], g["value"].tolist(), y_interval=_interval(g),
                        colour=number, symbol=number, line="straight", hollow=g["flagged"].astype(bool).tolist(),
                        hover=[f"{layer}, epoch {r.epoch}: {r.value:.3f}" for r in g.itertuples()],
                    )
                )  # fmt: skip
        if series:
            x = Axis("epochs", "category", tuple(f"{e:g}" for e in epochs))
            charts.append(Chart(series, x, Axis("features" if term[0] in "rv" else "bits"), term))
    return figure(charts, [Entry(n, i, 0, i) for i, n in enumerate(layers)], "Information over the epochs")


def trace_plane(table: pd.DataFrame, estimator: str) -> str:
    """Each layer's path through the information plane, with a large mark at the last epoch and numbers at some.

    With more than three layers the numbers would crowd, and only the text under the pointer gives the epochs.
    """
    table = table[table["estimator"] == estimator]
    layers = _spread(list(dict.fromkeys(table.sort_values("depth")["layer"])))
    each = max(1, MOST_ENTRIES // max(1, len(layers)))  # labels of a path: as many as a legend has entries, in all
    series = []
    for number, layer in enumerate(layers):
        wide = table[table["layer"] == layer].pivot_table(index="epoch", columns="term", values="value", dropna=False)
        hover = [f"{layer}, epoch {e}: I(X;Z) {a:.3f}, I(Z;Y) {b:.3f} bits"
                 for e, a, b in zip(wide.index, wide["I(X;Z)"], wide["I(Z;Y)"], strict=True)]  # fmt: skip
        numbered = {1: set(), 2: {0, len(wide) - 1}}.get(each, {0, len(wide) // 2, len(wide) - 1})
        series.append(
            Series(
                wide["I(X;Z)"].tolist(), wide["I(Z;Y)"].tolist(), colour=number, symbol=number, line="straight",
                hover=hover, labels=[f"{e:g}" if i in numbered else "" for i, e in enumerate(wide.index)], ends=True,
            )
        )  # fmt: skip
    chart = Chart(series, Axis("I(X;Z), bits"), Axis("I(Z;Y), bits"), "", 520, 340)
    return figure([chart], [Entry(n, i, 0, i) for i, n in enumerate(layers)], "Information plane over the epochs")


def trace_accuracy(table: pd.DataFrame) -> str:
    """Test accuracy over the epochs."""
    g = table.drop_duplicates("epoch").sort_values("epoch")
    series = Series(
        range(len(g)), g["test_accuracy"].tolist(), line="straight",
        hover=[f"epoch {r.epoch}: {r.test_accuracy:.1%}" for r in g.itertuples()],
    )  # fmt: skip
    x = Axis("epochs", "category", tuple(f"{e:g}" for e in g["epoch"]))
    return figure([Chart([series], x, Axis("test accuracy", "percent"), "", 480, 240)], (), "Accuracy in training")


def _png(image: np.ndarray) -> str:
    """A (C, H, W) image in [0, 1] as a data URI."""
    from PIL import Image

    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if pixels.shape[0] == 1:
        picture = Image.fromarray(pixels[0])
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_rows(run: Run) -> list[dict[str, Any]]:
    """Per attack: clean, adversarial and magnified perturbation pictures with predicted labels, the nearest first."""
    classes = run.config["data"]["classes"]
    rows = []
    numbers = sorted({int(k.split("/")[0]) for k in run.pictures})
    for number in numbers:
        own = {k.split("/")[1]: v for k, v in run.pictures.items() if k.startswith(f"{number}/")}
        if own["clean"].ndim != 4 or own["clean"].shape[1] not in (1, 3):
            continue
        deltas = own["adversarial"] - own["clean"]
        samples = []
        for i in np.argsort(np.square(deltas).sum((1, 2, 3)), kind="stable"):
            largest = float(np.abs(deltas[i]).max()) or 1.0
            samples.append(
                {
                    "index": int(own["rows"][i]),
                    "clean": _png(own["clean"][i]),
                    "adversarial": _png(own["adversarial"][i]),
                    "perturbation": _png(0.5 + deltas[i] / (2 * largest)),
                    "magnified": 0.5 / largest,
                    "clean_label": class_name(classes, int(own["clean_prediction"][i])),
                    "adversarial_label": class_name(classes, int(own["adversarial_prediction"][i])),
                }
            )
        rows.append({"attack": str(own["attack"]), "samples": samples})
    return rows


def class_name(classes: Sequence[str], index: int) -> str:
    """Return the name of a class; -1 is a prediction that is not finite."""
    if index < 0:
        return "no finite answer"
    return classes[index] if index < len(classes) else f"class {index}"
