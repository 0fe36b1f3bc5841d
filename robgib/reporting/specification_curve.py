"""A specification curve: sorted effects above, a row of marks for each choice below, readable at every width."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import pandas as pd

from robgib.errors import visible

__all__ = ["specification_curve"]

_HEIGHT, _TICKS = 160.0, (0.0, 0.25, 0.5, 0.75, 1.0)


def specification_curve(rows: pd.DataFrame, choices: Mapping[str, str], outcomes: Mapping[str, int], text: str) -> str:
    """Draw the analyses in the order of their effect, each with its interval, and below them the choices of each.

    Text is placed outside of the drawings, which take the available width: nothing scrolls sideways.

    Args:
        rows: of the analyses: ``change`` with ``low`` and ``high`` (shares of 1), ``outcome``, and a column a choice.
        choices: columns to show, and their names.
        outcomes: what came of an analysis, and its colour in the palette; -1 is grey.
        text: what a screen reader says of it.
    """
    rows = rows.dropna(subset=["change"]).sort_values("change", kind="stable", ignore_index=True)
    if rows.empty:
        return ""
    places = {name: rows.index[rows["outcome"] == name].tolist() for name in outcomes}
    legend = "".join(
        f'<li><span class="swatch {_colour(colour)}"></span>{escape(name)} ({len(places[name])})</li>'
        for name, colour in outcomes.items()
    )
    body = [
        '<div class="plotrow"><span class="what">change, share of the peak</span>'
        f"{_effects(rows, places, outcomes)}</div>"
    ]
    for column, name in choices.items():
        levels = list(dict.fromkeys(rows[column].astype(str)))
        body.append(f'<p class="choice">{escape(visible(name))}</p>')
        body += [_strip(rows, column, level, places, outcomes) for level in sorted(levels)]
    label = escape(visible(text), quote=True)
    return (
        f'<figure class="curve" role="group" aria-label="{label}"><ul class="legend">{legend}</ul>'
        f"{''.join(body)}</figure>"
    )


def _colour(colour: int) -> str:
    return f"k{colour}" if colour >= 0 else "kg"


def _effects(rows: pd.DataFrame, places: Mapping[str, list[int]], outcomes: Mapping[str, int]) -> str:
    """The sorted effects with their intervals, from 0 to all of the peak."""

    def at(value: float) -> float:
        return _HEIGHT * (1 - min(1.0, max(0.0, value)))

    parts = [f'<path class="grid" vector-effect="non-scaling-stroke" d="M0 {at(t):.1f}H{len(rows)}"/>' for t in _TICKS]
    low, high, change = (rows[c].to_numpy(float) for c in ("low", "high", "change"))
    for name, colour in outcomes.items():
        bars = "".join(f"M{i + 0.5} {at(low[i]):.1f}V{at(high[i]):.1f}" for i in places[name] if high[i] > low[i])
        marks = "".join(f"M{i} {at(change[i]):.1f}h1" for i in places[name])
        parts.append(
            f'<g class="{_colour(colour)}"><path class="bar" vector-effect="non-scaling-stroke" d="{bars}"/>'
            f'<path class="effect" vector-effect="non-scaling-stroke" d="{marks}"/></g>'
        )
    ticks = "".join(f'<span style="top:{100 * (1 - t):.0f}%">{t:.0%}</span>' for t in _TICKS)
    return (
        f'<div class="effects"><div class="scale" aria-hidden="true">{ticks}</div><svg viewBox="0 -3 {len(rows)} '
        f'{_HEIGHT + 6:.0f}" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg></div>'
    )


def _strip(
    rows: pd.DataFrame, column: str, level: str, places: Mapping[str, list[int]], outcomes: Mapping[str, int]
) -> str:
    """One level of a choice: a mark at each analysis that takes it, and the share in which the claim comes out."""
    taken = rows[column].astype(str) == level
    paths = ""
    for name, colour in outcomes.items():
        d = "".join(f"M{i + 0.5} 0v10" for i in places[name] if taken[i])
        if d:
            paths += f'<path class="{_colour(colour)} tick" vector-effect="non-scaling-stroke" d="{d}"/>'
    first = next(iter(outcomes))
    share = float((rows.loc[taken, "outcome"] == first).mean())
    return (
        f'<div class="plotrow"><span class="what">{escape(visible(level))} <b>{share:.0%}</b></span>'
        f'<svg class="strip" viewBox="0 0 {len(rows)} 10" preserveAspectRatio="none" aria-hidden="true">{paths}</svg>'
        "</div>"
    )
