"""The headline of a model, the order of models, and how long the terminal's text is."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from robgib import evaluate, load_run
from robgib.reporting import cells, print_runs, render
from robgib.reporting.headline import headline, rank, written_eps
from robgib.results import SCHEMA, Column, table
from tests.reporting.test_page import visible


@pytest.fixture(scope="module")
def run(digits, digits_cnn):
    return evaluate(
        digits_cnn, digits, attacks=["pgd-linf:eps=8/255,steps=2", "fgsm-linf:eps=8/255", "pgd-l2:eps=0.5,steps=2"],
        estimators=[], samples=60, curve=False, signs=True, name="digits-cnn",
    )  # fmt: skip


def printed(runs, **options):
    text = io.StringIO()
    print_runs(runs, Console(file=text, width=80), Console(file=io.StringIO()), **options)
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("eps", "attack", "text"),
    [
        (8 / 255, "", "8/255"),
        (np.float32(8 / 255), "", "8/255"),
        (0.1, "", "0.1"),
        (0.2, "", "0.2"),
        (0.2, "pgd-linf:steps=3,eps=51/255", "51/255"),
        (0.2, "pgd-linf:eps=0.3", "0.2"),
        (0.2, "odd:eps=1/0,eps=99999999999999999999", "0.2"),
        (0.12345, "", "0.1235"),
        (12.0, "", "12"),
    ],
)
def test_a_radius_is_written_as_its_user_wrote_it(eps, attack, text):
    assert written_eps(float(eps), attack) == text


def test_a_headline_holds_clean_and_lowest_accuracy_at_each_budget(run):
    line = headline(run, "digits-cnn")
    tried = run.robustness[run.robustness["attack"] != "none"]
    lowest = tried[tried["norm"] == "linf"].sort_values("robust_accuracy").iloc[0]
    expected = (
        f"{lowest['clean_accuracy']:.1%} clean → {lowest['robust_accuracy']:.1%} "
        f"[{100 * lowest['low']:.1f}, {100 * lowest['high']:.1f}] at L∞ 8/255; "
    )
    assert line.accuracies.startswith(expected)
    assert line.accuracies.endswith("at L2 0.5")
    assert re.sub('<span class="nw">|</span>', "", render([run])).count(line.accuracies) == 1


def test_the_terminal_begins_with_the_headlines_and_fits_a_screen():
    kept = Path(__file__).parents[2] / "reports" / "digits"
    lines = printed([load_run(folder) for folder in sorted(kept.iterdir()) if folder.is_dir()])
    assert lines[0].startswith("digits-cnn: ")
    assert any(line.startswith("digits-vit: ") for line in lines[:5])
    assert "at L∞ 0.1" in "".join(lines[:3])
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80


def test_many_attacks_are_cut_to_the_lowest_at_each_budget(run):
    many = [dataclasses.replace(run, name=f"model-{i}") for i in range(4)]
    assert sum("fgsm-linf" in line for line in printed(many)) < 4
    long = printed(many, layers=True)
    assert sum("fgsm-linf" in line for line in long) == 4
    flagged = run.signs[run.signs["seen"].astype(bool)]
    assert len(flagged)
    assert any(flagged["meaning"].iloc[0][:30] in line for line in long)


def scaled(run, name, factor):
    robustness = run.robustness.copy()
    for column in ("robust_accuracy", "low", "high"):
        robustness[column] *= factor
    return dataclasses.replace(run, name=name, robustness=robustness)


def test_models_are_ranked_and_overlapping_intervals_named(run):
    runs = [scaled(run, "weak", 0.1), scaled(run, "strong", 1.0), scaled(run, "equal", 0.99)]
    ranking = rank(runs)
    assert ranking.order == (1, 2, 0)
    assert ranking.text == "Ranked by robust accuracy at L∞ 8/255. Their 95% intervals overlap: strong and equal."
    text = visible(render(runs))
    assert text.index("strong :") < text.index("equal :") < text.index("weak :")
    other = dataclasses.replace(run, config={**run.config, "data": {**run.config["data"], "digest": "another"}})
    assert "different data" in rank([run, other]).text


def test_facts_have_no_colour_of_warnings(run):
    signs = table("signs", [("linf", 0.1, "zero gradients", False, "0%", "none"), ("linf", 0.1, "b", False, "0%", "n")])
    page = render([dataclasses.replace(run, signs=signs)])
    assert "None of 2 checks raised an indicator." in visible(page)
    assert 'class="caution"' not in page
    assert 'class="failed"' not in page
    flagged = render([dataclasses.replace(run, signs=signs.assign(seen=True))])
    assert "2 attack-failure indicators: zero gradients, b" in visible(flagged)
    assert 'class="checks failed"' in flagged


def test_five_models_begin_with_the_scatter_and_its_sentence(run):
    empty = dict.fromkeys((c.name for c in SCHEMA["layers"]), "")
    layers = [
        {
            **empty, "estimator": "imputation", "layer": str(depth), "depth": depth, "term": term, "value": value,
            "low": value - 0.1, "high": value + 0.1, "flagged": False, "samples": 60,
        }
        for depth in range(2)
        for term, value in (("I(X;Z)", 3.0), ("I(Z;Y)", 1.0), ("C(X;Z)", 2.0), ("v(X;Z)", 2.0), ("r(X;Z)", 2.0))
    ]  # fmt: skip
    runs = []
    for i in range(6):
        own = table("layers", layers)
        own.loc[own["term"] == "v(X;Z)", ["value", "low", "high"]] *= 1 - 0.1 * i
        runs.append(dataclasses.replace(scaled(run, f"m{i}", 0.5 + 0.1 * i), layers=own))
    page = render(runs)
    text = visible(page)
    assert "vulnerability (imputation; mean over the layers) correlates with robust accuracy" in text
    assert "Spearman's ρ = -1.00" in text
    assert "Clean accuracy, the baseline" not in text  # constant: it has no correlation
    assert "does not establish causation" in text
    assert "without correction for multiple comparisons" in text
    headings = [part.split("<")[0] for part in page.split("<h2>")[1:]]
    assert headings[:2] == ["Information and robustness across models", "Accuracy, clean and under attack"]
    accuracy = page[page.index("<h2>Accuracy, clean") :]
    assert accuracy.index("<details><summary>Every attack on 6 models") < accuracy.index("<table")


def test_a_new_column_of_layers_is_shown_by_its_schema_alone(monkeypatch):
    row = {**dict.fromkeys((c.name for c in SCHEMA["layers"]), ""), "layer": "fc", "depth": 0, "flagged": True}
    rows = [{**row, "term": t, "value": 1.0, "low": 0.9, "high": 1.1, "speed": "fast"} for t in ("I(X;Z)", "C(X;Z)")]
    frame = pd.DataFrame(rows)
    before = cells.layer_table(frame, "terminal")
    assert before.headings == ["layer", "I(X;Z)", "C"]
    assert before.rows == [["fc", "1.00 ± 0.10*", "1.00 ± 0.10*"]]
    new = Column("speed", "text", "how fast", label="speed", shown=("terminal",))
    monkeypatch.setattr(cells, "SCHEMA", {**SCHEMA, "layers": (*SCHEMA["layers"], new)})
    assert cells.layer_table(frame, "terminal").rows == [["fc", "1.00 ± 0.10*", "1.00 ± 0.10*", "fast"]]
    assert cells.layer_table(frame, "page").headings == ["layer", "I(X;Z)", "C(X;Z)", "limits"]
