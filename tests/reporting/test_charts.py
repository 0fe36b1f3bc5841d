"""Charts: nothing overlaps, legends are short, and texts stay texts."""

import re

import numpy as np
import pandas as pd
import pytest

from robgib.reporting import charts, figures
from robgib.reporting.charts import MOST_ENTRIES, Axis, Chart, Entry, Series, figure


def placed(svg, kind):
    """The boxes (left, top, right, bottom) of the texts of a class, by the widths that the charts reckon with."""
    boxes = []
    for x, y, anchor, text in re.findall(
        rf'<text x="([\d.-]+)" y="([\d.-]+)" class="{kind}" text-anchor="(\w+)">([^<]*)</text>', svg
    ):
        width = len(text) * charts._SMALL * charts._LETTER
        left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, float(y) - 0.8 * charts._SMALL, left + width, float(y) + 0.25 * charts._SMALL))
    return np.array(boxes).reshape(-1, 4)


def meeting(a, b):
    return (a[0] < b[2]) & (b[0] < a[2]) & (a[1] < b[3]) & (b[1] < a[3])


@pytest.fixture(scope="module")
def crowded():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, 30), rng.uniform(0, 1, 30)
    return Series(
        x.tolist(), y.tolist(), ((x - 0.1).tolist(), (x + 0.1).tolist()), ((y - 0.1).tolist(), (y + 0.1).tolist()),
        labels=[f"model-{i}" for i in range(30)],
    )  # fmt: skip


def test_labels_cover_no_label_no_mark_and_no_error_bar(crowded):
    svg = figure([Chart([crowded], width=520, height=340)])
    boxes = placed(svg, "label")
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        assert not any(meeting(box, other) for other in boxes[:i])
    (bars,) = re.findall(r'class="bar" d="([^"]*)"', svg)
    segments = re.findall(r"M([\d.-]+) ([\d.-]+)L([\d.-]+) ([\d.-]+)", bars)
    assert len(segments) == 60
    for segment in segments:
        a, b, c, d = map(float, segment)
        assert not any(meeting(box, (min(a, c), min(b, d), max(a, c), max(b, d))) for box in boxes)
    for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', svg):
        assert not any(meeting(box, (float(x), float(y), float(x), float(y))) for box in boxes)


def test_ticks_of_many_long_categories_do_not_meet():
    names = tuple(f"blocks.{i}.attention.projection" for i in range(40))
    svg = figure([Chart([Series(range(40), range(40))], Axis(form="category", categories=names))])
    places = sorted(float(x) for x in re.findall(r"rotate\(-40 ([\d.]+)", svg))
    assert len(places) > 5
    assert np.diff(places).min() > 11.5  # a letter's height apart


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 7.1), (0.001, 0.0013), (1e4, 9e5)])
def test_ticks_are_round_and_within(low, high):
    ticks = charts._ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high
    assert np.diff(ticks) == pytest.approx(np.diff(ticks)[0])


def test_a_legend_has_six_entries_at_most():
    with pytest.raises(AssertionError, match="too many"):
        figure([Chart([Series([0], [0])])], [Entry(str(i)) for i in range(MOST_ENTRIES + 1)])
    colours = figures._coloured([f"m{i}" for i in range(20)])
    assert len(set(colours.values())) == MOST_ENTRIES
    assert colours["m19"] == (-1, "15 others")


def test_a_study_of_many_kinds_has_a_short_legend():
    rows = pd.DataFrame(
        [
            {
                "model": f"{a}-{r}",
                "architecture": a,
                "regime": r,
                "strength": 0.1,
                "left_out": "",
                "f": i,
                "f_se": 0.1,
                "y": j,
                "y_se": 0.1,
            }
            for i, a in enumerate(("cnn", "vgg", "vit", "mlp", "resnet"))
            for j, r in enumerate(("plain", "adversarial", "trades"))
        ]
    )
    page = figures.study_scatter(rows, "f", "y", "f", "robust accuracy")
    assert 1 < page.count("<li>") <= MOST_ENTRIES
    assert "cnn-trades" in page  # under the pointer


def test_points_that_are_not_finite_break_the_line_and_have_no_mark():
    svg = figure([Chart([Series([0, 1, 2, 3], [0.0, float("nan"), 1.0, 2.0], line="straight")])])
    (path,) = re.findall(r'class="line" d="([^"]*)"', svg)
    assert path.count("M") == 2
    assert svg.count("<circle") == 3
    assert "nan" not in svg


def test_texts_are_escaped():
    bad = "<a href='x'>\x1b[31m"
    svg = figure([Chart([Series([0], [0], hover=[bad], labels=[bad])], Axis(bad), Axis(bad), bad)], [Entry(bad)], bad)
    assert "<a href" not in svg
    assert "\x1b" not in svg


def path(layers, epochs=12):
    """A trace of layers whose paths through the plane cross."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"estimator": "exact", "layer": f"l{i}", "depth": i, "epoch": e, "term": term, "value": rng.uniform(0, 3)}
            for i in range(layers)
            for e in range(epochs)
            for term in ("I(X;Z)", "I(Z;Y)")
        ]
    )


@pytest.mark.parametrize(("layers", "most"), [(1, 3), (2, 6), (3, 6), (6, 0), (9, 0)])
def test_paths_over_the_epochs_have_few_numbers_and_a_large_mark_at_the_end(layers, most):
    svg = figures.trace_plane(path(layers), "exact")
    assert len(placed(svg, "label")) <= most
    drawn = svg[svg.index('<div class="panels">') :]
    large = re.findall(r'<circle [^>]*r="6.7', drawn) + re.findall(r'width="13.4', drawn)
    assert len(large) == min(2, layers) + (layers > 5)  # circles and squares: the first two layers, and the sixth


def test_labels_cover_no_line():
    series = Series([0, 1, 2, 3], [0, 0.1, 3, 3.1], line="straight", labels=["start", "", "", "end"])
    svg = figure([Chart([series], width=520, height=340)])
    (line,) = re.findall(r'class="line" d="([^"]*)"', svg)
    points = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", line)[1:]])
    boxes = placed(svg, "label")
    assert len(boxes) == 2
    for a, b in zip(points, points[1:], strict=False):
        for x, y in a + np.linspace(0, 1, 200)[:, None] * (b - a):
            assert not any(meeting(box, (x, y, x, y)) for box in boxes)


def test_short_slanted_names_leave_no_gap_below_the_chart():
    def heights(names):
        chart = Chart([Series(range(len(names)), range(len(names)))], Axis("epochs", "category", names), width=200)
        area = re.search(r'class="area"[^>]*height="([\d.]+)"', figure([chart]))
        return float(area[1])

    short = heights(tuple(str(10**i) for i in range(10)))
    assert short > heights(tuple(f"blocks.{i}.attention" for i in range(10)))


@pytest.mark.parametrize("width", [320, 360, 520, 720])
def test_a_chart_alone_is_not_drawn_with_large_letters(width):
    svg = figure([Chart([Series([0], [0])], width=width)])
    (most,) = re.findall(r"max-width:(\d+)px", svg)
    assert float(most) / width * charts._SMALL < 15  # below a heading's size


def test_a_share_that_rounds_to_nothing_has_no_sign():
    drawn = charts.heat_map(np.array([[-0.3, 0.2], [-4.4, 5.0]]), "layer", 0, 5.0, "share")
    assert re.findall(r">(-?\d+)</text>", drawn) == ["0", "0", "-4", "5"]
