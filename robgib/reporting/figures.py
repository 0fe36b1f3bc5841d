"""The page's figures, from run tables alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.subplots import make_subplots

from robgib.errors import visible
from robgib.reporting.summary import display_names
from robgib.results import Run

__all__ = [
    "accuracy_curves",
    "corruption_accuracy",
    "feature_maps",
    "information_plane",
    "layer_terms",
    "phase_curves",
    "picture_rows",
    "robustness_scatter",
    "study_scatter",
    "trace_accuracy",
    "trace_plane",
    "trace_terms",
    "validation_errors",
]

# Okabe & Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
TITLES = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
"""Norms as the page writes them."""
_FONT = {"family": "Inter, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#24292f"}


def _styled(figure: go.Figure, height: int, legend: float = -0.22) -> str:
    figure.update_layout(
        height=height,
        font=_FONT,
        margin={"l": 60, "r": 20, "t": 48, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="#fbfbfc",
        legend={"orientation": "h", "y": legend, "x": 0},
        hoverlabel={"font": {"size": 12}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#c9ced4", "activecolor": "#59636e"},
    )
    figure.update_xaxes(gridcolor="#e6e8eb", zerolinecolor="#c9ced4", automargin=True)
    figure.update_yaxes(gridcolor="#e6e8eb", zerolinecolor="#c9ced4", automargin=True)
    html: str = plotly.io.to_html(
        _plain(figure.to_dict()),
        full_html=False,
        include_plotlyjs=False,
        validate=False,
        config={"displaylogo": False, "responsive": True},
    )
    return html


_TEMPLATES = ("template", "hovertemplate")  # no name is written into these


def _plain(value: Any) -> Any:
    """What a figure holds, its texts shown as they are: Plotly takes tags in them, links too, for markup."""
    if isinstance(value, dict):
        return {k: v if k in _TEMPLATES else _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, str):
        return visible(value).replace("&", "&amp;").replace("<", "&lt;").replace(_BREAK, "<br>")
    return value


_BREAK = "\ue000"
"""Where a title of our own goes on in a second line."""


def _errors(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (table["high"] - table["value"]).tolist(),
        "arrayminus": (table["value"] - table["low"]).tolist(),
        "thickness": 1.2,
        "width": 3,
    }


def accuracy_curves(runs: Sequence[Run]) -> str:
    """Accuracy against eps with its 95% band, one panel a norm; empty when no curve was measured."""
    names = display_names(runs)
    norms = [n for n in TITLES if any((r.curve["norm"] == n).any() for r in runs)]
    if not norms:
        return ""
    figure = make_subplots(
        1, len(norms), subplot_titles=[f"{TITLES[n]} perturbations" for n in norms], shared_yaxes=True
    )
    for m, (run, name) in enumerate(zip(runs, names, strict=True)):
        colour = _COLOURS[m % len(_COLOURS)]
        for column, norm in enumerate(norms, start=1):
            curves = run.curve[run.curve["norm"] == norm]
            for a, (attack, g) in enumerate(curves.groupby("attack", sort=False)):
                label = f"{name} · {attack}"
                figure.add_trace(
                    go.Scatter(
                        x=[*g["at"], *g["at"][::-1]], y=[*g["high"], *g["low"][::-1]], fill="toself", mode="lines",
                        line={"width": 0}, fillcolor=colour, opacity=0.12, hoverinfo="skip", showlegend=False,
                        legendgroup=label,
                    ), 1, column,
                )  # fmt: skip
                figure.add_trace(
                    go.Scatter(
                        x=g["at"], y=g["accuracy"], mode="lines+markers", name=label, legendgroup=label,
                        line={"color": colour, "dash": _DASHES[a % len(_DASHES)], "width": 2},
                        marker={"size": 7, "symbol": _SYMBOLS[a % len(_SYMBOLS)]},
                        customdata=np.stack([g["low"], g["high"]], 1),
                        hovertemplate="eps %{x:.4g}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]",
                    ), 1, column,
                )  # fmt: skip
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%", title_text="accuracy", col=1)
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_xaxes(title_text="eps (pixel scale)")
    return _styled(figure, 430)


def attack_convergence(runs: Sequence[Run]) -> str:
    """Share still right and margin of the true class by gradient step, one panel each; empty where none was watched."""
    names = display_names(runs)
    if all(r.convergence.empty for r in runs):
        return ""
    titles = ("still right", "margin of the true class")
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True)
    for m, (run, name) in enumerate(zip(runs, names, strict=True)):
        for a, (attack, g) in enumerate(run.convergence.groupby("attack", sort=False)):
            label = f"{name} · {attack}" if len(runs) > 1 else str(attack)
            for column, term in enumerate(("right", "margin"), start=1):
                figure.add_trace(
                    go.Scatter(
                        x=g["step"] + 1, y=g[term], mode="lines", name=label, legendgroup=label, showlegend=column == 1,
                        line={
                            "color": _COLOURS[(m if len(runs) > 1 else a) % len(_COLOURS)],
                            "dash": _DASHES[a % len(_DASHES)], "width": 2,
                            "shape": "hv" if term == "right" else "linear",
                        },
                        customdata=np.stack([g["step"], g["distance"]], 1),
                        hovertemplate="step %{customdata[0]}: %{y:.1%}, distance %{customdata[1]:.3g}",
                    ), 1, column,
                )  # fmt: skip
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_xaxes(title_text="gradient steps of a sample, and 1", type="log", dtick=1)
    return _styled(figure, 400)


def corruption_accuracy(runs: Sequence[Run]) -> str:
    """Accuracy against severity, one panel a corruption; empty when none was measured."""
    kinds = list(dict.fromkeys(k for r in runs for k in r.corruptions["corruption"]))
    if not kinds:
        return ""
    figure = make_subplots(1, len(kinds), subplot_titles=kinds, shared_yaxes=True, horizontal_spacing=0.03)
    for m, (run, name) in enumerate(zip(runs, display_names(runs), strict=True)):
        for column, kind in enumerate(kinds, start=1):
            g = run.corruptions[run.corruptions["corruption"] == kind].rename(columns={"accuracy": "value"})
            figure.add_trace(
                go.Scatter(
                    x=g["severity"], y=g["value"], error_y=_errors(g), mode="lines+markers", name=name,
                    legendgroup=name, showlegend=column == 1,
                    line={"color": _COLOURS[m % len(_COLOURS)], "width": 2},
                    marker={"size": 7, "symbol": _SYMBOLS[m % len(_SYMBOLS)]},
                    hovertemplate="severity %{x}: %{y:.1%}",
                ), 1, column,
            )  # fmt: skip
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_yaxes(title_text="accuracy", col=1)
    figure.update_xaxes(title_text="severity", dtick=1)
    return _styled(figure, 340)


def _term(held: pd.DataFrame, term: str) -> pd.DataFrame:
    """The rows of one term, in the layers' order, where it was estimated."""
    return held[(held["term"] == term) & held["value"].notna()].sort_values("depth")


_PANELS = (
    ("IB terms, bits", (("I(Z;Y)", "prediction I(Z;Y)", 1.0, "#009E73"), ("I(X;Z)", "I(X;Z)", 1.0, "#0072B2"))),
    ("GIB terms, bits", (("I(Z;Y)", "prediction I(Z;Y)", 1.0, "#009E73"), ("C(X;Z)", "½ C(X;Z)", 0.5, "#D55E00"))),
    ("Degrees, features", (("r(X;Z)", "redundancy r", 1.0, "#E69F00"), ("v(X;Z)", "vulnerability v", 1.0, "#CC79A7"))),
    ("Synergy, bits", (("S(X;Z)", "synergy S(X;Z)", 1.0, "#56B4E9"), ("S(Z;Y)", "S(Z;Y)", 1.0, "#000000"))),
)


def layer_terms(held: pd.DataFrame) -> str:
    """By layer: the IB's two terms, the GIB's two beside them, the degrees, the synergies; those that there are."""
    panels = [
        (title, [(*line, g) for line in lines if len(g := _term(held, line[0]))])
        for title, lines in _PANELS
        if any(len(_term(held, line[0])) for line in lines[-1:] if line[0] != "S(Z;Y)")
        or (title.startswith(("Deg", "Syn")) and any(len(_term(held, line[0])) for line in lines))
    ]
    figure = make_subplots(1, len(panels), subplot_titles=[t for t, _ in panels], horizontal_spacing=0.06)
    shown: set[str] = set()
    for column, (_, lines) in enumerate(panels, start=1):
        for _key, label, scale, colour, g in lines:
            scaled = g.assign(**{c: g[c] * scale for c in ("value", "low", "high")})
            figure.add_trace(
                go.Scatter(
                    x=g["layer"], y=scaled["value"], error_y=_errors(scaled), mode="lines+markers", name=label,
                    legendgroup=label, showlegend=label not in shown, line={"color": colour, "width": 2},
                    marker={"size": 8, "symbol": ["circle-open" if s else "circle" for s in g["flagged"]]},
                    hovertemplate="%{x}: %{y:.3f}",
                ), 1, column,
            )  # fmt: skip
            shown.add(label)
    figure.update_yaxes(rangemode="tozero")
    return _styled(figure, 380)


def feature_maps(run: Run) -> str:
    """Where in the image the layers' information lies: the single-feature information of a
    patch, and the loss when it is left out.

    Shares of I(X;Z) by patch, for some of the layers and the prediction; empty where no patches were measured.
    """
    held = run.features[run.features["partition"].str.startswith("patches:")]
    if held.empty:
        return ""
    finest = max(held["partition"].unique(), key=lambda p: int(p.partition(":")[2]))
    grid, held = int(finest.partition(":")[2]), held[held["partition"] == finest]
    kinds = []
    for label, column in (("single patch", "single_feature"), ("leave-one-out loss", "leave_one_out")):
        able = [e for e, g in held.groupby("estimator", sort=False) if g[column].notna().any()]
        if able:
            own = held[
                held["estimator"] == ("imputation" if column == "leave_one_out" and "imputation" in able else able[0])
            ]
            share = own[column] / own["total"] if column == "single_feature" else 1 - own[column] / own["total"]
            kinds.append((label, own.assign(share=share)))
    order = list(dict.fromkeys(held.loc[held["depth"] >= 0].sort_values("depth")["layer"]))
    layers = [order[i] for i in sorted({0, len(order) // 2, len(order) - 1})] if order else []
    layers += ["Ŷ"] if (held["layer"] == "Ŷ").any() else []
    figure = make_subplots(
        len(kinds), len(layers), column_titles=layers, row_titles=[k for k, _ in kinds],
        horizontal_spacing=0.02, vertical_spacing=0.04,
    )  # fmt: skip
    for r, (label, own) in enumerate(kinds, start=1):
        for c, layer in enumerate(layers, start=1):
            z = np.full((grid, grid), np.nan)
            for row in own[own["layer"] == layer].itertuples():
                i, j = (int(part) for part in row.feature.removeprefix("patch ").split(","))
                z[i, j] = 100 * row.share
            figure.add_trace(
                go.Heatmap(
                    z=z, coloraxis=f"coloraxis{r if r > 1 else ''}", xgap=1, ygap=1, name=layer,
                    hovertemplate=f"row %{{y}}, column %{{x}}: {label} %{{z:.1f}}% of I",
                ), r, c,
            )  # fmt: skip
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    bars = {
        f"coloraxis{r if r > 1 else ''}": {
            "colorscale": scale,
            "cmin": 0,
            "colorbar": {"len": 0.9 / len(kinds), "y": 1 - (r - 0.5) / len(kinds), "ticksuffix": "%", "thickness": 10},
        }
        for r, scale in zip(range(1, len(kinds) + 1), ("Blues", "Oranges"), strict=False)
    }
    figure.update_layout(**bars)
    return _styled(figure, 60 + 190 * len(kinds))


def information_plane(runs: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """Prediction against complexity, a path through the layers for each model: IB's plane, and the GIB's beside it."""
    axes = [("IB plane", "I(X;Z)", 1.0), ("GIB plane", "C(X;Z)", 0.5)]
    axes = [a for a in axes if any(len(_term(held, a[1])) for _, held in runs)]
    figure = make_subplots(
        1, len(axes), subplot_titles=[a[0] for a in axes], shared_yaxes=True, horizontal_spacing=0.06
    )
    for m, (name, held) in enumerate(runs):
        for column, (_, term, scale) in enumerate(axes, start=1):
            g = _term(held, term)
            p = _term(held, "I(Z;Y)").set_index("layer").reindex(g["layer"]).reset_index()
            scaled = g.assign(**{c: g[c] * scale for c in ("value", "low", "high")})
            figure.add_trace(
                go.Scatter(
                    x=scaled["value"], y=p["value"], error_x=_errors(scaled), error_y=_errors(p), name=name,
                    mode="lines+markers+text", text=[str(i) for i in g["depth"]], textposition="top center",
                    textfont={"size": 11}, customdata=g["layer"], legendgroup=name, showlegend=column == 1,
                    line={"color": _COLOURS[m % len(_COLOURS)], "width": 1.5},
                    marker={"size": 9, "symbol": ["circle-open" if s else "circle" for s in g["flagged"]]},
                    hovertemplate="%{customdata}: complexity %{x:.3f}, prediction %{y:.3f} bits",
                ), 1, column,
            )  # fmt: skip
            figure.update_xaxes(title_text=f"{'½ ' if scale != 1 else ''}{term}, bits", col=column)
    figure.update_yaxes(title_text="I(Z;Y), bits", col=1)
    return _styled(figure, 420)


_AXES = (
    ("vulnerability", "vulnerability v", "v(X;Z), mean over layers"),
    ("gib_complexity", "GIB complexity", "C(X;Z), bits, mean over layers"),
    ("ib_complexity", "IB complexity", "I(X;Z), bits, mean over layers"),
)


def robustness_scatter(summary: pd.DataFrame, estimator: str, partition: str, attack: str) -> str:
    """Vulnerability, GIB complexity and IB complexity against robust accuracy, a point a model; those there are."""
    chosen = (summary["estimator"] == estimator) & (summary["partition"] == partition) & (summary["attack"] == attack)
    g = summary[chosen]
    axes = [a for a in _AXES if g[a[0]].notna().any()]
    figure = make_subplots(
        1, len(axes), subplot_titles=[a[1] for a in axes], shared_yaxes=True, horizontal_spacing=0.05
    )
    y = g.assign(value=g["robust_accuracy"], low=g["robust_low"], high=g["robust_high"])
    for column, (key, _, title) in enumerate(axes, start=1):
        x = g.assign(value=g[key], low=g[f"{key}_low"], high=g[f"{key}_high"])
        figure.add_trace(
            go.Scatter(
                x=x["value"], y=y["value"], error_x={**_errors(x), "color": "#9aa3ad"},
                error_y={**_errors(y), "color": "#9aa3ad"}, mode="markers+text", text=g["model"],
                textposition="top center", showlegend=False,
                marker={"size": 10, "color": [_COLOURS[i % len(_COLOURS)] for i in range(len(g))]},
                hovertemplate="%{text}: %{x:.3f}, robust %{y:.1%}",
            ), 1, column,
        )  # fmt: skip
        figure.update_xaxes(title_text=title, col=column)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text=f"robust accuracy, {attack}", col=1)
    return _styled(figure, 400)


def study_scatter(rows: pd.DataFrame, figure_label: str, outcome: str, axis: str) -> str:
    """A figure against the outcome, a point a model: colours are architectures, shapes are regimes, sizes strengths;
    open are models that were left out."""
    most = max(float(rows["strength"].max()), 1e-12)
    figure = go.Figure()
    architectures, regimes = (list(dict.fromkeys(rows[k])) for k in ("architecture", "regime"))
    for (architecture, regime), g in rows.groupby(["architecture", "regime"], sort=False):
        figure.add_trace(
            go.Scatter(
                x=g[figure_label], y=g[outcome], mode="markers", name=f"{architecture}, {regime}",
                error_x={"type": "data", "array": 1.96 * g[f"{figure_label}_se"], "thickness": 0.8, "width": 0},
                error_y={"type": "data", "array": 1.96 * g[f"{outcome}_se"], "thickness": 0.8, "width": 0},
                marker={
                    "size": 7 + 8 * g["strength"] / most,
                    "color": _COLOURS[architectures.index(architecture) % len(_COLOURS)],
                    "symbol": [
                        _SYMBOLS[regimes.index(regime) % len(_SYMBOLS)] + ("-open" if out else "")
                        for out in g["left_out"]
                    ],
                },
                text=[f"{m}, strength {d:g}" for m, d in zip(g["model"], g["strength"], strict=True)],
                hovertemplate="%{text}: %{x:.3f}, %{y:.3f}",
            )
        )  # fmt: skip
    figure.update_xaxes(title_text=figure_label.replace(" (", f"{_BREAK}("))
    figure.update_yaxes(title_text=axis)
    return _styled(figure, 450, legend=-0.3)  # below a title of two lines


def phase_curves(table: pd.DataFrame) -> str:
    """I(X;Z) and C(X;Z) of one layer over the epochs, a line a network, a colour a group; controls dotted."""
    terms = ("I(X;Z)", "C(X;Z)")
    figure = make_subplots(1, 2, subplot_titles=terms, horizontal_spacing=0.08)
    groups = list(dict.fromkeys(zip(table["group"], table["control"], strict=True)))
    shown = set()
    for n, term in enumerate(terms):
        held = table[table["term"] == term]
        for name, g in held.groupby("network", sort=False):
            key = (g["group"].iloc[0], g["control"].iloc[0])
            label = f"{key[0]}, {key[1]}" if key[1] else key[0]
            figure.add_trace(
                go.Scatter(
                    x=g["epoch"].astype(str), y=g["value"], mode="lines+markers", name=label, legendgroup=label,
                    showlegend=key not in shown,
                    line={
                        "color": _COLOURS[groups.index(key) % len(_COLOURS)], "width": 1.6,
                        "dash": "dot" if key[1] else "solid",
                    },
                    marker={"size": 4}, text=[name] * len(g), hovertemplate="%{text}, epoch %{x}: %{y:.3f} bits",
                ), 1, 1 + n,
            )  # fmt: skip
            shown.add(key)
    figure.update_xaxes(type="category", title_text="epochs")
    figure.update_yaxes(title_text="bits", col=1)
    return _styled(figure, 430)


def validation_errors(table: pd.DataFrame) -> str:
    """Bias with ±1 standard deviation of I, S and C by task."""
    figure = go.Figure()
    for colour, name in zip(_COLOURS, ("I", "S", "C"), strict=False):
        g = table[table["figure"].isin([name, f"{name}(X;Z)"])]
        figure.add_trace(
            go.Scatter(
                x=g["task"], y=g["bias"], error_y={"type": "data", "array": g["sd"].tolist(), "thickness": 1.2},
                mode="markers", name=name, marker={"color": colour, "size": 8},
                hovertemplate="%{x}: bias %{y:+.3f} bits",
            )
        )  # fmt: skip
    for limit in (-0.05, 0.05):
        figure.add_hline(y=limit, line={"dash": "dot", "width": 1, "color": "#9aa3ad"})
    figure.update_layout(scattermode="group")
    figure.update_yaxes(title_text="bias ± sd, bits")
    return _styled(figure, 330)


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


def trace_terms(table: pd.DataFrame, estimator: str) -> str:
    """The terms of each layer over the epochs, a panel a term; bits, and features for the degrees r and v."""
    table = table[(table["estimator"] == estimator) & table["value"].notna()]
    terms = [t for t in ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)") if (table["term"] == t).any()]
    rows = -(-len(terms) // 2)
    figure = make_subplots(rows, 2, subplot_titles=terms, horizontal_spacing=0.08, vertical_spacing=0.32 / rows)
    for n, term in enumerate(terms):
        held = table[table["term"] == term]
        for d, (layer, g) in enumerate(held.groupby("layer", sort=False)):
            figure.add_trace(
                go.Scatter(
                    x=g["epoch"].astype(str), y=g["value"], error_y=_errors(g), mode="lines+markers", name=layer,
                    legendgroup=layer, showlegend=n == 0, line={"color": _COLOURS[d % len(_COLOURS)], "width": 2},
                    marker={"size": 7, "symbol": [_SYMBOLS[d % len(_SYMBOLS)] + ("-open" if s else "")
                                                  for s in g["flagged"]]},
                    hovertemplate="epoch %{x}: %{y:.3f} bits",
                ), 1 + n // 2, 1 + n % 2,
            )  # fmt: skip
    figure.update_xaxes(type="category", title_text="epochs")
    return _styled(figure, 360 * rows)


def trace_plane(table: pd.DataFrame, estimator: str) -> str:
    """Each layer's way through the information plane; the numbers are epochs."""
    table = table[table["estimator"] == estimator]
    figure = go.Figure()
    for d, (layer, g) in enumerate(table.groupby("layer", sort=False)):
        wide = g.pivot(index="epoch", columns="term", values="value")
        figure.add_trace(
            go.Scatter(
                x=wide["I(X;Z)"], y=wide["I(Z;Y)"], mode="lines+markers+text", name=layer, text=wide.index.astype(str),
                textposition="top center", textfont={"size": 10}, line={"color": _COLOURS[d % len(_COLOURS)]},
                marker={"size": 7, "symbol": _SYMBOLS[d % len(_SYMBOLS)]},
                hovertemplate="epoch %{text}: I(X;Z) %{x:.3f}, I(Z;Y) %{y:.3f} bits",
            )
        )  # fmt: skip
    figure.update_xaxes(title_text="I(X;Z), bits")
    figure.update_yaxes(title_text="I(Z;Y), bits")
    return _styled(figure, 480)


def trace_accuracy(table: pd.DataFrame) -> str:
    """Test accuracy over the epochs."""
    g = table.drop_duplicates("epoch")
    figure = go.Figure(
        go.Scatter(
            x=g["epoch"].astype(str), y=g["test_accuracy"], mode="lines+markers",
            line={"color": _COLOURS[0], "width": 2}, hovertemplate="epoch %{x}: %{y:.1%}",
        )
    )  # fmt: skip
    figure.update_xaxes(type="category", title_text="epochs")
    figure.update_yaxes(title_text="test accuracy", tickformat=".0%")
    return _styled(figure, 300)


def picture_rows(run: Run) -> list[dict[str, Any]]:
    """Per attack: clean, adversarial and magnified perturbation pictures with predicted labels."""
    classes = run.config["data"]["classes"]
    rows = []
    numbers = sorted({int(k.split("/")[0]) for k in run.pictures})
    for number in numbers:
        held = {k.split("/")[1]: v for k, v in run.pictures.items() if k.startswith(f"{number}/")}
        if held["clean"].ndim != 4 or held["clean"].shape[1] not in (1, 3):
            continue
        samples = []
        for i in range(len(held["rows"])):
            delta = held["adversarial"][i] - held["clean"][i]
            largest = float(np.abs(delta).max()) or 1.0
            samples.append(
                {
                    "index": int(held["rows"][i]),
                    "clean": _png(held["clean"][i]),
                    "adversarial": _png(held["adversarial"][i]),
                    "perturbation": _png(0.5 + delta / (2 * largest)),
                    "magnified": 0.5 / largest,
                    "clean_label": _class_name(classes, int(held["clean_prediction"][i])),
                    "adversarial_label": _class_name(classes, int(held["adversarial_prediction"][i])),
                }
            )
        rows.append({"attack": str(held["attack"]), "samples": samples})
    return rows


def _class_name(classes: Sequence[str], index: int) -> str:
    if index < 0:
        return "not decided"
    return classes[index] if index < len(classes) else f"class {index}"
