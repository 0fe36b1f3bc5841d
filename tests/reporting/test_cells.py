import dataclasses

import numpy as np
import pandas as pd
import pytest

from robgib import results
from robgib.reporting.cells import cell, shown_columns
from robgib.results import Column


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
