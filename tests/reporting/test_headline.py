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
from robgib.reporting import cells, print_runs, render, runs_json
from robgib.reporting.headline import headline, rank, written_eps
from robgib.results import SCHEMA, Column, table
from tests.reporting.test_page import visible


@pytest.fixture(scope="module")
def run(digits, digits_mlp):
    return evaluate(
        digits_mlp, digits, attacks=["pgd-linf:eps=8/255,steps=2", "fgsm-linf:eps=8/255", "pgd-l2:eps=0.5,steps=2"],
        estimators=[], samples=60, curve=False, signs=True, name="network",
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


def test_sentences_below_a_headline_are_indented_on_every_line(run):
    lines = printed([checked(run, "0%", "left out: it would take too long")])
    below = lines[1 : lines.index("")]
    assert len(below) > 1
    assert all(re.match(r"  \S.*\S$", line) for line in below), below


def test_a_headline_holds_clean_and_lowest_accuracy_at_each_budget(run):
    line = headline(run, "network")
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
    flagged = table("signs", [("linf", 8 / 255, "zero gradients", True, "40%", "zero gradients hide an attack")])
    many = [dataclasses.replace(run, name=f"model-{i}", signs=flagged) for i in range(4)]
    assert sum("fgsm-linf" in line for line in printed(many)) < 4
    long = printed(many, layers=True)
    assert sum("fgsm-linf" in line for line in long) == 4
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
    assert "2 checks without an indicator" in visible(page)
    assert 'class="caution"' not in page
    assert 'class="failed"' not in page
    flagged = render([dataclasses.replace(run, signs=signs.assign(seen=True))])
    assert "2 attack-failure indicators: zero gradients, b" in visible(flagged)
    assert 'class="checks failed"' in flagged


def checked(run, *details):
    rows = [("linf", 0.1, f"check {i}", False, detail, "none") for i, detail in enumerate(details)]
    return dataclasses.replace(run, signs=table("signs", rows))


def test_json_lists_the_checks_that_did_not_run_with_the_reason(run):
    some = checked(run, "0%", "left out: it would take too long", "of the surrogate, not measured: other logits")
    (found,) = runs_json(
        [
            some,
        ],
        [""],
    )["models"]
    assert found["checks_run"] == 1
    assert [(row["name"], row["detail"]) for row in found["checks_not_run"]] == [
        ("check 1", "left out: it would take too long"),
        ("check 2", "of the surrogate, not measured: other logits"),
    ]
    (nothing,) = runs_json([checked(run)], [""])["models"]
    assert (nothing["checks_run"], nothing["checks_not_run"]) == (0, [])


def test_a_verdict_counts_the_checks_that_ran(run):
    some = checked(
        run, "0%", "left out: it would take too long", "skipped: fgsm fooled every image", "does not apply: a mask",
        "of the surrogate, not measured: other logits", "0%",
    )  # fmt: skip
    sentence = "o attack-failure indicator in the 2 checks that ran; 4 did not run"
    assert headline(some, "net").diagnostics == f"n{sentence}"
    assert f"N{sentence}." in " ".join(" ".join(printed([some])).split())
    text = visible(render([some]))
    assert f"N{sentence}." in text
    assert "None of the 2 checks that ran raised an indicator; 4 did not run." in text
    assert "2 checks without an indicator, 4 that did not run" in text
    none = checked(run, "left out: it would take too long")
    assert headline(none, "net").diagnostics == "no attack-failure check ran"
    assert "No check ran." in visible(render([none]))
    assert "1 check that did not run" in visible(render([none]))
    assert headline(checked(run, "0%", "0%"), "net").diagnostics == "no attack-failure indicator in 2 checks"
    flagged = dataclasses.replace(some, signs=some.signs.assign(seen=[True, *[False] * 5]))
    assert "1 check without an indicator, 4 that did not run" in visible(render([flagged]))


def attacked(run, classes):
    """The run with other classes of its attacks in the record, by label."""
    recorded = run.attack_options["attacks"]
    attacks = {label: {**own, "class": classes.get(label, own["class"])} for label, own in recorded.items()}
    options = run.config["options"]
    return dataclasses.replace(
        run, config={**run.config, "options": {**options, "attack": {**options["attack"], "attacks": attacks}}}
    )


def test_weak_attacks_are_named_beside_the_result(run):
    sentence = "Attacks: PGD and FGSM only; AutoAttack was not run, and a stronger attack may lower this."
    page = visible(render([run]))
    assert page.index(sentence) < page.index("Accuracy, clean and under attack")
    assert "PGD and FGSM only, no AutoAttack." in " ".join(" ".join(printed([run])).split())
    linf, _, l2, *_ = run.attack_options["attacks"]
    assert headline(attacked(run, {linf: "FastEnsemble"}), "net").limits.startswith("Attacks: PGD only at L2 0.5; ")
    whole = attacked(run, {linf: "AutoAttack", l2: "FastEnsemble"})
    assert headline(whole, "net").limits == ""
    assert "AutoAttack was not run" not in visible(render([whole]))
    failed = whole.robustness.copy()
    failed.loc[failed["attack"] == linf, "status"] = "failed"  # an attack that failed is none
    assert headline(dataclasses.replace(whole, robustness=failed), "net").limits.startswith("Attacks: FGSM only at L∞")
    assert headline(attacked(run, {linf: "FoundImages"}), "net").limits.startswith("Attacks: FGSM and PGD only; ")
    foreign = headline(attacked(run, {l2: "ForeignAttack"}), "net").limits
    assert foreign.startswith(f"Attacks: PGD, FGSM and {l2} only; ")


def test_what_was_not_measured_in_full_is_stated(run):
    rows = [("noise", k, 90, 40, 0.9, 0.8, 0.95) for k in range(1, 6)]
    some = dataclasses.replace(run, corruptions=table("corruptions", rows))
    assert "Accuracy on 40 of the 60 images under common corruptions" in visible(render([some]))
    assert "90.0% under corruptions, on 40 of the 60 images (noise" in " ".join(" ".join(printed([some])).split())
    every = [(kind, k, 90, 60, 0.9, 0.8, 0.95) for kind, k, *_ in rows]
    whole = dataclasses.replace(run, name="whole", corruptions=table("corruptions", every))
    assert "Accuracy on the same images under common corruptions" in visible(render([whole]))
    both = visible(render([some, whole]))
    assert "Accuracy on 40 of the 60 images (network), the same images (whole) under" in both


def test_a_curve_that_was_left_out_is_stated(run):
    points = [0, 0.05, 0.1]
    rows = [("pgd-linf", "linf", 0.1, at, 30, 60, 0.5, 0.4, 0.6) for at in points]
    measured = dataclasses.replace(run, curve=table("curve", rows))
    assert "was not run ( --curve )" not in visible(render([measured]))
    ends = dataclasses.replace(run, name="ends", curve=table("curve", [rows[0], rows[2]]))
    for without in (run, ends):
        text = visible(render([without]))
        assert "Accuracy against eps The curve against eps was not run ( --curve )." in text
    assert "The curve against eps of ends was not run ( --curve )." in visible(render([measured, ends]))


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
