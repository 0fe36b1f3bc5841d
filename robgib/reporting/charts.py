"""Charts as SVG: no script, colours of the page, readable from a width of 320 pixels on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np

from robgib.errors import number_text, visible

__all__ = ["COLOURS", "DASHES", "MOST_ENTRIES", "SYMBOLS", "Axis", "Chart", "Entry", "Series", "figure", "heat_map"]

COLOURS = 6
"""Colours of the palette, Okabe and Ito's, which colour-blind readers distinguish; 0 to 5, and -1 for grey."""
DASHES = ("", "6 4", "2 3", "8 3 2 3", "12 4")
SYMBOLS = ("circle", "square", "diamond", "triangle", "cross")
MOST_ENTRIES = 6
"""Entries of a legend at most."""
_LETTER = 0.58  # mean width of a letter, in its size
_SMALL, _MARK = 11.5, 4.2


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: what it shows, with its unit.
        form: of its values. The values of ``category`` are indices into ``categories``.
        categories: names of the places of a ``category`` axis.
        low: lower end, or None to fit the data.
        high: upper end, or None to fit the data.
        rules: values at which a reference line crosses the chart.
    """

    title: str = ""
    form: Literal["number", "percent", "log", "category"] = "number"
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    rules: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points (N,) of one colour, joined by a line or not.

    Attributes:
        x: places (N,) on the horizontal axis.
        y: places (N,) on the vertical axis; points that are not finite are left out.
        x_interval: lower and upper ends (N,) of horizontal error bars.
        y_interval: lower and upper ends (N,) of vertical error bars, or of the band.
        colour: index into the palette; -1 is grey.
        dash: index into :data:`DASHES`.
        symbol: index into :data:`SYMBOLS`.
        line: whether a line joins the points; ``step`` holds a value up to the next point.
        marks: whether points have marks.
        band: whether the vertical interval is a band instead of error bars.
        hollow: which points (N,) have hollow marks.
        hover: text of each point (N,) under the pointer.
        labels: text beside each point (N,), where it has room.
        ends: whether the mark of the last point is larger, so that the direction of a path is seen.
    """

    x: Sequence[float]
    y: Sequence[float]
    x_interval: tuple[Sequence[float], Sequence[float]] | None = None
    y_interval: tuple[Sequence[float], Sequence[float]] | None = None
    colour: int = 0
    dash: int = 0
    symbol: int = 0
    line: Literal["", "straight", "step"] = ""
    marks: bool = True
    band: bool = False
    hollow: Sequence[bool] = ()
    hover: Sequence[str] = ()
    labels: Sequence[str] = ()
    ends: bool = False


@dataclass(frozen=True)
class Entry:
    """An entry of a legend: a name with the colour, dash and symbol of its series."""

    name: str
    colour: int = 0
    dash: int | None = 0
    symbol: int | None = 0


@dataclass(frozen=True)
class Chart:
    """One set of axes with its series; ``title`` is above it, ``width`` and ``height`` are units of the drawing."""

    series: Sequence[Series]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""
    width: int = 360
    height: int = 260


@dataclass(frozen=True)
class _Box:
    """A rectangle of a drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: _Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class _Scale:
    """Maps the values of an axis to places of a drawing."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.axis.form == "log":
            value, low, high = (math.log10(max(v, 1e-12)) for v in (value, low, high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values of the ticks with their labels."""
        if self.axis.form == "category":
            return [(float(i), name) for i, name in enumerate(self.axis.categories)]
        values = _log_ticks(self.low, self.high) if self.axis.form == "log" else _ticks(self.low, self.high)
        if self.axis.form == "percent":
            return [(v, f"{100 * v:.4g}%") for v in values]
        return [(v, number_text(v)) for v in values]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round values between two ends.

    >>> _ticks(0.0, 1.02)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10, 20) if (high - low) / (s * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 in each power of ten between two ends; powers alone where there are many.

    >>> _log_ticks(1, 30)
    [1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) <= 2 else (1,)
    return [float(d * 10.0**p) for p in powers for d in digits if low * (1 - 1e-9) <= d * 10.0**p <= high * (1 + 1e-9)]


def _ends(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: as stated, or around the data."""
    if axis.form == "category":
        return -0.5, max(0.5, len(axis.categories) - 0.5)
    finite = [float(v) for v in (*values, *axis.rules) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if axis.form == "log":
        low, high = max(low, 1e-12), max(high, 1e-12)
        return (low / 1.1, high * 1.1) if low < high else (low / 2, high * 2)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room if axis.low is None else axis.low, high + room if axis.high is None else axis.high


def _values(chart: Chart, which: Literal["x", "y"]) -> list[float]:
    values: list[float] = []
    for series in chart.series:
        interval = getattr(series, f"{which}_interval")
        values += [float(v) for part in (getattr(series, which), *(interval or ())) for v in part]
    return values


def _text(x: float, y: float, text: str, kind: str = "", more: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}{more}>{escape(visible(text))}</text>'


def _shortened(text: str, letters: int) -> str:
    """Return a text with its middle left out where it is longer than so many letters.

    >>> _shortened("blocks.10.attention.projection", 13)
    'blocks…ection'
    """
    half = max(1, (letters - 1) // 2)
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"


def _horizontal(scale: _Scale, base: float, room: float) -> tuple[list[str], float]:
    """Return the labels below the horizontal axis, none of which meets another, and the height that they take."""
    ticks = scale.ticks()
    names = [_shortened(visible(label), 14) for _, label in ticks]
    width = max((len(n) for n in names), default=0) * _SMALL * _LETTER + 6
    slanted = scale.axis.form == "category" and width * len(names) > room
    if slanted:
        names = [_shortened(visible(label), 11) for _, label in ticks]
    needed = 15.0 if slanted else width
    every = max(1, math.ceil(needed * len(names) / max(room, 1.0)))
    parts = []
    for number, ((value, _), name) in enumerate(zip(ticks, names, strict=True)):
        if number % every:
            continue
        x = scale(value)
        if slanted:
            turn = f' text-anchor="end" transform="rotate(-40 {x:.1f} {base + 13:.1f})"'
            parts.append(_text(x, base + 13, name, "tick", turn))
        else:
            parts.append(_text(x, base + 16, name, "tick", ' text-anchor="middle"'))
    longest = max((len(n) for n in names), default=0) * _SMALL * _LETTER
    return parts, 24 + 0.65 * longest if slanted else 26.0


def _mark(kind: int, x: float, y: float, hollow: bool, hover: str, r: float = _MARK) -> str:
    """Return a point's mark of radius ``r``, with the text under the pointer."""
    shape = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        "square": f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        "diamond": f'<path d="M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}'
        f'l{-1.3 * r:.1f} {-1.3 * r:.1f}z"/>',
        "triangle": f'<path d="M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}z"/>',
        "cross": f'<path d="M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"/>',
    }[SYMBOLS[kind % len(SYMBOLS)]]
    title = f"<title>{escape(visible(hover))}</title>" if hover else ""
    return f'<g class="mark{" hollow" if hollow else ""}">{title}{shape}</g>'


def _path(points: Sequence[tuple[float, float]], step: bool) -> str:
    """Return the path through points, in parts where one is not finite."""
    d, before = "", None
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            before = None
            continue
        d += f"M{x:.1f} {y:.1f}" if before is None else f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}"
        before = y
    return d


def _colour(colour: int) -> str:
    return f"k{colour % COLOURS}" if colour >= 0 else "kg"


def _bars(series: Series, x: _Scale, y: _Scale) -> list[tuple[float, float, float, float]]:
    """Return the error bars as segments (x1, y1, x2, y2)."""
    segments = []
    for number, (a, b) in enumerate(zip(series.x, series.y, strict=True)):
        if not (math.isfinite(a) and math.isfinite(b)):
            continue
        if series.y_interval is not None and not series.band:
            low, high = (float(end[number]) for end in series.y_interval)
            if math.isfinite(low + high) and high > low:
                segments.append((x(a), y(low), x(a), y(high)))
        if series.x_interval is not None:
            low, high = (float(end[number]) for end in series.x_interval)
            if math.isfinite(low + high) and high > low:
                segments.append((x(low), y(b), x(high), y(b)))
    return segments


def _drawn(series: Series, x: _Scale, y: _Scale) -> str:
    """Return one series: its band, error bars, line and marks, from the lowest to the topmost."""
    points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    parts = []
    if series.band and series.y_interval is not None:
        low, high = ([y(float(v)) for v in end] for end in series.y_interval)
        ring = [
            *zip([p[0] for p in points], high, strict=True),
            *reversed(list(zip([p[0] for p in points], low, strict=True))),
        ]
        parts.append(f'<path class="band" d="{_path(ring, False)}z"/>')
    bars = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in _bars(series, x, y))
    if bars:
        parts.append(f'<path class="bar" d="{bars}"/>')
    if series.line:
        dash = DASHES[series.dash % len(DASHES)]
        more = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<path class="line"{more} d="{_path(points, series.line == "step")}"/>')
    for number, (a, b) in enumerate(points if series.marks else ()):
        if math.isfinite(a) and math.isfinite(b):
            hollow = bool(series.hollow[number]) if len(series.hollow) else False
            hover = series.hover[number] if len(series.hover) else ""
            last = series.ends and number == len(points) - 1
            parts.append(_mark(series.symbol, a, b, hollow, hover, 1.6 * _MARK if last else _MARK))
    return f'<g class="{_colour(series.colour)}">{"".join(parts)}</g>'


_PLACES = (
    (1, 0.35, "start"), (-1, 0.35, "end"), (0.7, -0.9, "start"), (-0.7, -0.9, "end"), (0.7, 1.6, "start"),
    (-0.7, 1.6, "end"), (0, -1.2, "middle"), (0, 1.9, "middle"),
)  # fmt: skip
"""Where a label may stand around its point: offsets in units of its distance and of its height, and its anchor."""


def _labels(chart: Chart, x: _Scale, y: _Scale, frame: _Box) -> list[str]:
    """Return the labels of points, each where it covers no mark, no line, no error bar and no label, or not at all."""
    taken: list[_Box] = []
    for series in chart.series:
        for a, b in zip(series.x, series.y, strict=True):
            if math.isfinite(a) and math.isfinite(b) and series.marks:
                taken.append(_Box(x(a) - _MARK, y(b) - _MARK, x(a) + _MARK, y(b) + _MARK))
        if series.line == "straight":
            points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
            taken += [box for ends in zip(points, points[1:], strict=False) for box in _along(*ends)]
        for left, top, right, bottom in _bars(series, x, y):
            taken.append(_Box(min(left, right) - 1, min(top, bottom) - 1, max(left, right) + 1, max(top, bottom) + 1))
    parts = []
    for series in chart.series:
        for a, b, label in zip(series.x, series.y, series.labels or [""] * len(series.x), strict=True):
            if not label or not (math.isfinite(a) and math.isfinite(b)):
                continue
            shown = _shortened(visible(label), 24)
            width = len(shown) * _SMALL * _LETTER
            for distance in (9.0, 16.0, 26.0):
                spot = _free(x(a), y(b), width, distance, taken, frame)
                if spot is not None:
                    box, at, base, anchor = spot
                    taken.append(box)
                    parts.append(_text(at, base, shown, "label", f' text-anchor="{anchor}"'))
                    break
    return parts


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[_Box]:
    """Return small boxes that cover a straight line; none where an end is not finite."""
    if not all(math.isfinite(v) for v in (*start, *end)):
        return []
    steps = math.ceil(math.dist(start, end) / 3) + 1
    places = (
        (start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in np.linspace(0, 1, steps)
    )
    return [_Box(x - 2, y - 2, x + 2, y + 2) for x, y in places]


def _free(
    x: float, y: float, width: float, distance: float, taken: Sequence[_Box], frame: _Box
) -> tuple[_Box, float, float, str] | None:
    """Return the first free place of a label around a point: its box, its anchor's place and the anchor."""
    for across, down, anchor in _PLACES:
        at, base = x + across * distance, y + down * distance
        left = at if anchor == "start" else at - width if anchor == "end" else at - width / 2
        box = _Box(left, base - _SMALL * 0.8, left + width, base + _SMALL * 0.25)
        if box.inside(frame) and not any(box.meets(other) for other in taken):
            return box, at, base, anchor
    return None


def _draw(chart: Chart, text: str) -> str:
    """Return a chart as an SVG element; ``text`` describes it to screen readers."""
    low, high = _ends(chart.y, _values(chart, "y"))
    y = _Scale(chart.y, low, high, 0.0, 1.0)
    widest = max((len(label) for _, label in y.ticks()), default=1)
    left, top = 10 + widest * _SMALL * _LETTER, 10 + 17.0 * (bool(chart.y.title) + bool(chart.title))
    frame = _Box(left, top, chart.width - 10.0, 0.0)
    x = _Scale(chart.x, *_ends(chart.x, _values(chart, "x")), frame.left, frame.right)
    _, below = _horizontal(x, 0.0, frame.right - frame.left)
    bottom = chart.height - below - (18.0 if chart.x.title else 0.0)
    frame = _Box(frame.left, top, frame.right, bottom)
    y = _Scale(chart.y, low, high, frame.bottom, frame.top)
    rules = [f'<path class="rule" d="M{left:.1f} {y(v):.1f}H{frame.right:.1f}"/>' for v in chart.y.rules]
    grid = [f'<path class="grid" d="M{left:.1f} {y(v):.1f}H{frame.right:.1f}"/>' for v, _ in y.ticks()]
    ticks = [_text(left - 5, y(v) + 4, label, "tick", ' text-anchor="end"') for v, label in y.ticks()]
    names, _ = _horizontal(x, frame.bottom, frame.right - frame.left)
    titles = [_text(0, 15, chart.title, "head")] if chart.title else []
    if chart.y.title:
        titles.append(_text(0, top - 11, _shortened(chart.y.title, 58), "axis"))
    if chart.x.title:
        middle = (frame.left + frame.right) / 2
        titles.append(_text(middle, chart.height - 5.0, _shortened(chart.x.title, 54), "axis", ' text-anchor="middle"'))
    area = (
        f'<rect class="area" x="{left:.1f}" y="{top:.1f}" width="{frame.right - left:.1f}" '
        f'height="{frame.bottom - top:.1f}"/>'
    )
    body = "".join(_drawn(series, x, y) for series in chart.series)
    parts = (area, *grid, *rules, *ticks, *names, *titles, body, *_labels(chart, x, y, frame))
    limit = min(640.0, 1.25 * chart.width)  # so that the letters of a chart alone are not larger than a heading's
    return (
        f'<svg viewBox="0 0 {chart.width} {chart.height}" style="max-width:{limit:.0f}px" role="img" '
        f'aria-label="{escape(visible(text), quote=True)}">' + "".join(parts) + "</svg>"
    )


def _legend(entries: Sequence[Entry]) -> str:
    """Return a legend of at most :data:`MOST_ENTRIES` entries."""
    assert len(entries) <= MOST_ENTRIES, "a legend has too many entries"
    items = []
    for entry in entries:
        parts = ""
        if entry.dash is not None:
            dash = DASHES[entry.dash % len(DASHES)]
            parts += f'<path class="line" d="M1 8H25" stroke-dasharray="{dash or "none"}"/>'
        if entry.symbol is not None:
            parts += _mark(entry.symbol, 13, 8, False, "")
        swatch = (
            '<svg viewBox="0 0 26 16" width="26" height="16" aria-hidden="true">'
            f'<g class="{_colour(entry.colour)}">{parts}</g></svg>'
        )
        items.append(f"<li>{swatch}{escape(visible(entry.name))}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def figure(charts: Sequence[Chart], legend: Sequence[Entry] = (), text: str = "") -> str:
    """Return charts beside each other as an HTML figure; on a narrow screen one below the other.

    Args:
        charts: the charts.
        legend: of all of them, at most :data:`MOST_ENTRIES` entries.
        text: what a screen reader says of each, before the chart's own title.
    """
    drawn = "".join(_draw(chart, ": ".join(filter(None, (text, chart.title)))) for chart in charts)
    return f'<figure class="chart n{min(len(charts), 4)}">{_legend(legend)}<div class="panels">{drawn}</div></figure>'


def heat_map(values: np.ndarray, title: str, colour: int, most: float, hover: str) -> str:
    """Return a map (rows, columns) of shares in percent as an SVG element, each cell with its value.

    Args:
        values: of the cells; NaN is empty.
        title: above the map.
        colour: index into the palette.
        most: the value of full colour.
        hover: what a value is, under the pointer.
    """
    rows, columns = values.shape
    side = 160.0 / max(rows, columns)
    parts = [_text(0, 13, _shortened(title, 24), "head")]
    for i, j in np.ndindex(rows, columns):
        value = float(values[i, j])
        if not math.isfinite(value):
            continue
        strength = min(1.0, max(0.0, value / most)) if most > 0 else 0.0
        x, y = j * side, 20 + i * side
        parts.append(
            f'<g class="{_colour(colour)}"><title>row {i}, column {j}: {escape(hover)} {value:.1f}%</title>'
            f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}" '
            f'fill-opacity="{strength:.2f}"/></g>'
        )
        if side >= 26:
            kind = "value strong" if strength > 0.55 else "value"
            parts.append(_text(x + side / 2, y + side / 2 + 4, f"{round(value)}", kind, ' text-anchor="middle"'))
    label = escape(visible(f"{title}: {hover}, percent by place in the image"), quote=True)
    box = f"0 0 162 {20 + side * rows:.0f}"
    return f'<svg class="map" viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
