import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from robgib import results
from robgib.reporting import cells, console
from robgib.reporting.cells import cell, shown_columns
from robgib.results import SCHEMA, Column


@pytest.mark.parametrize(
    ("form", "row", "text"),
    [
        ("percent", {"x": 0.1234}, "12.3%"),
        ("percent", {"x": np.nan}, ""),
        ("interval", {"x": 0.1, "low": 0.1, "high": 0.25}, "[10.0, 25.0]"),
        ("distance", {"x": np.inf}, "not found"),
        ("distance", {"x": 0.12345}, "0.123"),
        ("distance", {"x": 1234.5}, "1234"),
        ("seconds", {"x": 1.25}, "1.2 s"),
        ("hundredths", {"x": -0.004}, "0.00"),
        ("hundredths", {"x": -0.006}, "-0.01"),
        ("bits", {"x": -0.0004}, "0.000"),
        ("error", {"x": -0.0004}, "0.000"),
        ("error", {"x": 0.0004}, "+0.000"),
        ("share", {"x": -0.0}, "0%"),
        ("seconds", {"x": 0.0}, ""),
        ("text", {"x": "pgd"}, "pgd"),
        ("name", {"x": "pgd"}, "pgd"),
        ("bar", {"x": 0.1234}, "12.3%"),
        ("budget", {"x": 8 / 255, "norm": "linf", "attack": "pgd"}, "L∞ 8/255"),
        ("budget", {"x": 0.5, "norm": "l2"}, "L2 0.5"),
    ],
)
def test_a_value_is_written_in_the_form_of_its_column(form, row, text):
    assert cell(Column("x", "number", "", form=form), next(pd.DataFrame([row]).itertuples())) == text


def test_a_column_that_the_schema_shows_is_shown_where_it_has_values(monkeypatch):
    new = Column("speed", "number", "images a second", label="speed", shown=("terminal",))
    schema = {**results.SCHEMA, "robustness": (*results.SCHEMA["robustness"], new)}
    monkeypatch.setattr("robgib.reporting.cells.SCHEMA", schema)
    held, empty = pd.DataFrame({"speed": [3.0]}), pd.DataFrame({"speed": [np.nan]})
    assert shown_columns("robustness", "terminal", [empty, held]) == [new]
    assert shown_columns("robustness", "terminal", [empty]) == []
    assert shown_columns("robustness", "page", [held]) == []


def test_what_is_shown_has_a_heading():
    columns = [c for table in results.SCHEMA.values() for c in table]
    assert all(c.label for c in columns if c.shown)
    assert {f.name for f in dataclasses.fields(Column)} >= {"label", "form", "shown"}


def test_the_first_columns_are_those_of_the_schema_too():
    robustness = pd.DataFrame({"attack": ["pgd"], "norm": ["linf"], "eps": [0.1], "robust_accuracy": [0.5]})
    signs = pd.DataFrame({"norm": ["linf"], "eps": [0.1], "name": ["zero gradients"], "detail": ["0 on 1%"]})
    for where in ("terminal", "page"):
        shown = shown_columns("robustness", where, [robustness])
        assert [(c.label, c.is_number) for c in shown[:3]] == [
            ("attack", False), ("budget", False), ("robust accuracy", False)
        ]  # fmt: skip
    assert [c.label for c in shown_columns("signs", "page", [signs])] == ["budget", "indicator", "measured"]


def layers_of(*figures):
    """Rows of layers from (layer, term, value, low, high, flagged, note)."""
    names = ("layer", "term", "value", "low", "high", "flagged", "note")
    missing = {**dict.fromkeys((c.name for c in SCHEMA["layers"]), ""), "estimator": "imputation", "depth": 0}
    missing |= {"partition": "patches:2", "view": "rate", "samples": 100}
    return pd.DataFrame([{**missing, **dict(zip(names, figure, strict=True))} for figure in figures])


FIGURES = layers_of(
    ("fc", "I(Z;Y)", 2.82, 2.66, 2.98, True, "violates the data-processing inequality: 'logits' has 3.10 bits"),
    ("fc", "I(X;Z)", 5.0, 5.0, 5.0, False, ""),
    ("fc", "S(X;Z)", -2.46, -3.65, -1.92, False, "donors are implausible"),
    ("fc", "r(X;Z)", 2.3, 2.05, 2.95, True, "under 90% is learnt; donors are implausible"),
    ("fc", "C(X;Z) k/2", 4.0, 3.9, 4.1, False, "20 symbols are few for 10 classes; donors are implausible"),
    ("out", "r(X;Z)", 2.0, 1.9, 2.1, False, "donors are implausible"),
)


def test_an_interval_that_is_not_symmetric_is_shown_by_its_ends():
    assert cells.spread(-2.46, -3.65, -1.92) == "-2.46 [-3.65, -1.92]"
    assert cells.spread(2.82, 2.66, 2.98) == "2.82 ± 0.16"
    assert cells.spread(57.5, 51.25, 73.75, 0, "%") == "58% [51, 74]"
    assert cells.spread(0.5, 0.5, 0.5) == "0.50"
    for place in ("page", "terminal"):
        shown = " ".join(cells.layer_table(FIGURES, place).rows[0])
        assert "-2.46 [-3.65, -1.92]" in shown
        assert "2.30 [2.05, 2.95]*" in shown
        assert "2.82 ± 0.16*" in shown


@pytest.mark.parametrize("width", [80, 50])
def test_no_figure_of_the_layers_is_cut_in_a_terminal(width):
    out = io.StringIO()
    console._print_layers(FIGURES, "m", Console(file=out, width=width))
    shown = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in shown)
    words = " ".join(shown).split()
    assert {"-2.46", "[-3.65,", "-1.92]", "[2.05,", "2.95]*", "4.00"} - {*words} == {"4.00"}  # k/2 is on the page alone


def test_the_legend_of_the_star_names_the_reasons_of_the_flagged_figures():
    reasons = cells.star_reasons(FIGURES, FIGURES)
    assert reasons == "violates the data-processing inequality: 'logits' has 3.10 bits; under 90% is learnt"
    assert cells.star_reasons(FIGURES, FIGURES[FIGURES["term"] == "S(X;Z)"]) == ""
    two = layers_of(
        ("a", "C(X;Z)", 1, 0, 2, True, "low by 0.1 bits"), ("b", "C(X;Z)", 1, 0, 2, True, "low by 0.2 bits")
    )
    assert cells.star_reasons(two, two) == "low by … bits"
    out = io.StringIO()
    console._print_layers(FIGURES, "m", Console(file=out, width=200))
    assert "which are not reliable: violates the data-processing inequality" in out.getvalue()


def test_a_note_of_half_the_codes_alone_says_so():
    table = cells.layer_table(FIGURES, "page")
    limits = table.rows[0][list(table.headings).index("limits")]
    assert "at k/2, 20 symbols are few for 10 classes" in limits
    assert "; donors are implausible" in limits
