"""The ledger: its design, that a sitting is taken up again, its table, and its verdicts from the committed CSV."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import integrate

import robgib
from robgib import RobGIBError
from robgib.measures import list_measures
from robgib.studies import (
    dictionary,
    ledger_rows,
    ledger_study,
    measure_networks,
    networks,
    open_study,
    read_ledger,
    read_ledger_design,
    verdicts,
)
from robgib.studies import ledger as module
from robgib.studies.ledger import FIELDS, LEDGER_SCHEMA, OUTCOMES

REPORT = Path(__file__).parents[2] / "reports" / "ledger"
SMALL = """
kind: ledger
question: Does anything go with robustness?
data: digits
cells: 4
seeds: [1, 2]
architectures:
  mlp:
    - {width: 8, depth: 1, options: {hidden: [8]}}
    - {width: 16, depth: 1, options: {hidden: [16]}}
  cnn: [{width: 4, depth: 1, options: {widths: [4], hidden: 8}}]
regimes:
  standard: [{}]
  noise: [{strength: 0.2, training: {noise: 0.2}}]
  awp: [{strength: 0.1, training: {adversary: {eps: 0.1, steps: 1, awp: 0.01}}}]
epochs: [1]
learning_rate: [0.005, 0.01]
weight_decay: [0.0]
batch_size: [64]
augmentation: {none: {}, shift: {shift: 1}}
early_stopping: [false, true]
estimator: "imputation:donors=2,samples=60,steps=20"
outcome: {attack: "pgd-linf:steps=2", eps: [0.05, 0.1]}
nearest: "fmn-linf:steps=5"
samples: 40
information_samples: 80
expect: {v: negative}
"""


@pytest.fixture
def design(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def test_cells_differ_by_their_fields_and_seeds_by_nothing_else(design):
    found = networks(read_ledger_design(design))
    assert [n.cell for n in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [n.seed for n in found] == [1, 2] * 4
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert one.fields == two.fields
        same = [n.recipe.model_dump(exclude={"name"}) for n in (one, two)]
        assert [content["training"].pop("seed") for content in same] == [1, 2]
        assert same[0] == same[1]
    assert set(found[0].fields) == set(FIELDS)


def test_every_prefix_of_the_design_is_balanced():
    """Of the committed design: no architecture, regime or level is more than one deck ahead."""
    ledger = read_ledger_design(REPORT / "study.yaml", [REPORT / "catalogue"])
    cells = [n.fields for n in networks(ledger, [REPORT / "catalogue"])[::2]]
    assert len(cells) * len(ledger.seeds) >= 200
    for count in (5, 30, 45, 90, len(cells)):
        for name, levels, slack in (
            ("architecture", ledger.architectures, 1), ("regime", ledger.regimes, 2), ("epochs", ledger.epochs, 1),
            ("learning_rate", ledger.learning_rate, 1), ("early_stopping", ledger.early_stopping, 1),
        ):  # fmt: skip
            often = Counter(cell[name] for cell in cells[:count])
            assert max(often.values()) - min(often.get(level, 0) for level in levels) <= slack, (count, name)
    both = Counter((cell["architecture"], cell["regime"]) for cell in cells)
    assert set(both.values()) == {len(cells) // 30}


def test_a_sitting_takes_up_where_the_last_one_ended(design, tmp_path, monkeypatch):
    ledger, table = read_ledger_design(design), tmp_path / "ledger.csv"
    first, errors = measure_networks(ledger, table, most=1)
    assert (len(first), errors) == (1, {})
    assert list(first.columns) == list(read_ledger(table).columns)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_measured", lambda network, *others: pytest.fail(network.recipe.name))
        again, _ = measure_networks(ledger, table, most=1)
        pd.testing.assert_frame_equal(again, first)
        table.unlink()  # the row is in the cache as well
        assert len(measure_networks(ledger, table, most=1)[0]) == 1

    def failing(network, *others):
        raise RobGIBError(f"no {network.recipe.name}.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_measured", failing)
        kept, errors = measure_networks(ledger, table, most=2)
    assert (len(kept), errors) == (1, {"small-000-seed2": "no small-000-seed2."})
    row = first.iloc[0]
    assert row["robgib"] == robgib.__version__
    assert 0 <= row["robust_0.1"] <= row["robust_0.05"] <= row["robust_0"] <= 1
    at, accuracy = [0, 0.05, 0.1], [row["robust_0"], row["robust_0.05"], row["robust_0.1"]]
    assert row["area"] == pytest.approx(integrate.trapezoid(accuracy, at) / 0.1)
    assert row["generalisation_gap"] == pytest.approx(row["train_accuracy"] - row["test_accuracy"])
    assert not row["baselines_failed"]
    assert np.isfinite(
        row[[*OUTCOMES, *list_measures(), "v_last", "C_mean", "subset_last", "SY_last"]].astype(float)
    ).all()
    plan = open_study(design).plan(None)
    assert [r[3] for r in plan.rows] == ["yes", *[""] * 7]


def synthetic_of(design):
    """Rows of the design's first two networks, as an earlier sitting would have measured them."""
    ledger = read_ledger_design(design)
    own = {"samples": ledger.samples, "estimator": ledger.estimator, "partition": ledger.partition,
           "attack": ledger.outcome.attack, "nearest": ledger.nearest,
           "unit_estimator": ledger.unit_estimator}  # fmt: skip
    rows = [{"network": n.recipe.name, "cell": n.cell, "seed": n.seed, **n.fields} for n in networks(ledger)[:2]]
    table = pd.concat([robgib.load_ledger().iloc[:1]] * 2, ignore_index=True)
    return table.assign(**pd.DataFrame(rows), **own, schema=LEDGER_SCHEMA)


def test_an_older_table_gets_what_it_lacks_and_keeps_the_rest(design, tmp_path, monkeypatch):
    ledger, table = read_ledger_design(design), tmp_path / "ledger.csv"
    older = synthetic_of(design)
    older = older.drop(columns=[c for c in older if c.startswith(("SY_", "unit_"))])
    older.to_csv(table, index=False)
    later = [c for c in read_ledger(table) if c not in older]
    assert len(later) == 8
    assert read_ledger(table)[later].isna().all(axis=None)
    plan = open_study(design).plan(None)
    assert [r[3] for r in plan.rows[:3]] == ["without S(Z;Y)", "without S(Z;Y)", ""]
    assert "2 of these lack S(Z;Y)" in plan.summary[0]
    monkeypatch.setattr(module, "_measured", lambda network, *others: pytest.fail(network.recipe.name))
    rows, errors = measure_networks(ledger, table, most=1)
    assert not errors
    assert rows["SY_last"].isna().tolist() == [False, True]
    rows, _ = measure_networks(ledger, table, most=2)
    pd.testing.assert_frame_equal(rows[older.columns].fillna(""), older.fillna(""), check_dtype=False)
    assert np.isfinite(rows[["SY_last", "SY_last_se", "SY_mean"]]).all(axis=None)
    assert rows["unit_samples"].tolist() == [len(robgib.load_data("digits").test)] * 2
    assert not ledger_rows(ledger, rows).filter(like="unit_synergy").filter(like="_marked").any(axis=None)
    monkeypatch.setattr(module, "_units_measured", lambda network, *others: pytest.fail(network.recipe.name))
    measure_networks(ledger, table, most=2)  # nothing is measured twice


def test_the_dictionary_has_every_column_and_no_other(design):
    rows = robgib.load_ledger()
    listed = dictionary()
    assert not listed["column"].duplicated().any()
    assert set(rows.columns) == set(listed["column"])
    assert (listed["meaning"].str.len() > 3).all()
    pd.testing.assert_frame_equal(pd.read_csv(REPORT / "columns.csv").fillna(""), listed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: d.assign(schema=LEDGER_SCHEMA + 1),
            "is a ledger of schema version 2, and this release reads version 1",
        ),
        (lambda d: d.drop(columns="schema"), "is no ledger: it has no columns 'schema' and 'network'"),
        (lambda d: d.drop(columns="v_last"), "lacks the column 'v_last'"),
        (lambda d: pd.concat([d, d.iloc[:1]]), "has the network 'ledger-000-seed1' twice"),
    ],
)
def test_a_file_that_is_no_ledger_of_this_version(change, words, tmp_path):
    file = tmp_path / "other.csv"
    change(robgib.load_ledger()).to_csv(file, index=False)
    with pytest.raises(RobGIBError, match=words):
        robgib.load_ledger(file)
    with pytest.raises(RobGIBError, match="does not exist"):
        robgib.load_ledger(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs: [1]", "epochs: [1, 1]", "epochs has a level twice"),
        ("cells:", "cels:", "unknown key 'cels'; did you mean 'cells'"),
        ("noise: 0.2}", "nose: 0.2}", "training.nose"),
        ("steps: 1, awp", "steps: 0, awp", "training.adversary.steps"),
        ("pgd-linf", "pdg-linf", "unknown attack"),
        ("data: digits", "data: digit", "unknown data set"),
        ("kind: ledger", "kind: leger", "did you mean 'ledger'"),
        ("samples: 40", "unit_estimator: imputation", "a layer's units are not pieces of the input"),
        ("fmn-linf:steps=5", "pgd-linf:steps=5", "median_distance needs an attack that minimises the distance"),
        ("pgd-linf:steps=2", "pgd-l1:steps=2", "probabilistic_robustness draws points of an linf or l2 ball"),
        ("outcome: {", "outcome: {measure: area, ", "a ledger measures all outcomes; leave it out"),
        ("data: digits", "data: digits\npartition: patch:2", "did you mean 'patches'"),
        ("data: digits", "data: digits\npartition: auto", "partition 'auto' may be several"),
        ("standard: [{}]", "standard: []", "regimes.standard"),
        ("standard: [{}]", "standard: [{}, {}]", "standard has a level twice"),
        ("depth: 1, options: {widths", "depth: 1, optons: {widths", "did you mean 'options'"),
        ("[{strength: 0.2,", "[{strenth: 0.2,", "unknown key of regimes.noise.0: 'strenth'; did you mean 'strength'"),
        ("[{strength: 0.2,", "[{strength: 0.3,", "level of strength 0.3 whose training has the strength 0.2"),
        ("cells: 4", "cells: 400", "there is no other training for cell"),
        ("cells: 4", "cells: 40000", "cells"),
    ],
)
def test_a_design_that_cannot_be_is_one_sentence(old, new, words, design):
    design.write_text(SMALL.replace(old, new))
    with pytest.raises(RobGIBError, match=words):
        open_study(design)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cnn: [", "cnnn: [", "unknown architecture 'cnnn'"),
        ("{widths: [4]", "{widhts: [4]", "widhts"),
        ('"imputation:donors=2,samples=60,steps=20"', "exact", "the exact estimator counts all inputs"),
    ],
)
def test_a_network_that_cannot_be_built_or_measured_is_refused_before_any_is_trained(old, new, words, design):
    assert old in SMALL
    design.write_text(SMALL.replace(old, new))
    with pytest.raises(RobGIBError, match=words):
        open_study(design).plan(None)


def test_no_two_cells_have_the_same_training(design):
    design.write_text(SMALL.replace("cells: 4", "cells: 14"))  # of 2 architectures, 3 regimes, and 2 to 4 levels each
    of = [n for n in networks(read_ledger_design(design)) if n.seed == 1]
    assert len({(n.recipe.digest, str(n.fields)) for n in of}) == len(of) == 14


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs: [1]", "epochs: [2]", "has the epochs 1, and that of the design 2; restore the design"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nseed: 5", "of the design"),
        ("pgd-linf:steps=2", "pgd-linf:steps=3", "has the attack pgd-linf:steps=2"),
        ("samples: 40", "samples: 41", "has the samples 40"),
    ],
)
def test_a_table_of_a_design_that_was_changed_is_not_continued(old, new, words, design, tmp_path, monkeypatch):
    """The names of its networks are the same, their trainings are not."""
    monkeypatch.setattr(module, "_measured", lambda network, *others: pytest.fail(network.recipe.name))
    table = tmp_path / "ledger.csv"
    synthetic_of(design).to_csv(table, index=False)
    assert [row[3] for row in open_study(design).plan(None).rows[:3]] == ["yes", "yes", ""]
    design.write_text(SMALL.replace(old, new, 1))
    changed = open_study(design)
    for work in (lambda: changed.plan(None), lambda: changed.claim(table),
                 lambda: measure_networks(read_ledger_design(design), table)):  # fmt: skip
        with pytest.raises(RobGIBError, match=words):
            work()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:-40], r"line 241: it has .* values, and the table has \d+ columns; the file may be cut off"),
        (lambda t: t.replace(",cnn,", ",,", 1), "the column 'architecture' is empty"),
    ],
)
def test_a_ledger_that_was_changed_by_hand_or_is_cut_off(change, words, tmp_path):
    file = tmp_path / "ledger.csv"
    file.write_text(change((REPORT / "ledger.csv").read_text()))
    with pytest.raises(RobGIBError, match=words):
        robgib.load_ledger(file)


def test_a_ledger_with_a_text_in_place_of_a_number(tmp_path):
    file = tmp_path / "ledger.csv"
    rows = robgib.load_ledger()
    rows["area"] = ["high", *rows["area"].iloc[1:]]
    rows.to_csv(file, index=False)
    with pytest.raises(RobGIBError, match="line 2: the column 'area' holds 'high', which is no number"):
        robgib.load_ledger(file)


FIGURES = ("C_last", "S_last", "r_last", "I_last", "IY_last", "subset_last", "Inoise_last", "SY_last")


def synthetic(count=24, effect=0.0, seeds=2):
    """Rows of a ledger in which v depends on robustness, and nothing else does."""
    rng = np.random.default_rng(3)
    rows = pd.concat([robgib.load_ledger().iloc[:1]] * count * seeds, ignore_index=True)
    cell = np.repeat(np.arange(count), seeds)
    robust = rng.normal(size=len(rows))
    changed = {name: rng.normal(size=len(rows)) for name in (*list_measures(), *FIGURES)}
    changed["v_last"] = rng.normal(size=len(rows)) - effect * robust
    return rows.assign(
        network=[f"n{i}" for i in range(len(rows))], cell=cell, seed=np.tile(np.arange(seeds), count),
        architecture=[f"a{c % 4}" for c in cell], width=cell, area=robust, **{**changed, "clean_accuracy": 0.8},
    )  # fmt: skip


def test_a_real_relation_is_found_at_fixed_training_and_none_is_not(design):
    ledger = read_ledger_design(design)
    found = verdicts(ledger, synthetic(effect=2.0), ["area"]).set_index("figure")
    assert found.loc["v_last", "verdict"] in ("at fixed training", "beyond the baselines")
    assert found.loc["v_last", "rho"] < -0.6
    assert found.loc["v_last", "fixed"] < -0.6
    assert (found.drop(index="v_last")["verdict"] == "not shown").mean() > 0.8


def test_where_every_training_has_one_network_the_rung_says_so(design):
    rows = synthetic(effect=2.0, seeds=1)
    found = verdicts(read_ledger_design(design), rows, ["area"]).set_index("figure")
    assert "no two models share a training" in found.loc["v_last", "in_words"]
    assert found.loc["v_last", "verdict"] == "goes with"


def test_a_baseline_that_fails_on_one_network_is_named_with_its_reason(design):
    rows = synthetic(effect=2.0)
    rows.loc[3, "flatness"] = np.nan
    rows.loc[3, "baselines_failed"] = "flatness: ValueError: no weights"
    ledger = read_ledger_design(design)
    answer = robgib.studies.claim(ledger_study(ledger), ledger_rows(ledger, rows))
    assert any("flatness is missing for n3 (ValueError: no weights)" in note for note in answer.notes)


def test_a_constant_figure_cannot_be_told(design):
    rows = synthetic().assign(v_last=1.0)
    found = verdicts(read_ledger_design(design), rows, ["area"]).set_index("figure")
    assert found.loc["v_last", "verdict"] == "undetermined"
    assert "constant" in found.loc["v_last", "in_words"]


def test_the_claim_of_a_ledger_comes_from_its_table_alone(design, tmp_path, monkeypatch):
    monkeypatch.setattr("robgib.studies.kinds.verdicts", lambda ledger, rows: pd.DataFrame({"networks": [len(rows)]}))
    file = tmp_path / "rows.csv"
    synthetic(effect=2.0).assign(schema=LEDGER_SCHEMA).to_csv(file, index=False)
    answer = open_study(design).claim(file)
    assert answer.verdict in ("at fixed training", "beyond the baselines")
    assert answer.notes[0] == "0 of 8 networks of the design are in the ledger, and 48 that are not of the design"
    assert set(answer.tables) == {"ledger.csv", "columns.csv", "verdicts.csv"}
    assert answer.tables["verdicts.csv"]["networks"].item() == 48
    assert "margin per gradient" in answer.texts["markdown"]()
    with pytest.raises(RobGIBError, match="has no table of models"):
        open_study(REPORT.parent / "phases" / "study.yaml").claim(file)


def test_the_rows_of_a_sitting_are_json_without_nan(design, tmp_path):
    ledger = read_ledger_design(design)
    measure_networks(ledger, tmp_path / "ledger.csv", most=1)
    text = (module.stored_row(networks(ledger)[0], ledger) / "row.json").read_text()
    assert json.loads(text)["schema"] == LEDGER_SCHEMA
    assert "NaN" not in text
