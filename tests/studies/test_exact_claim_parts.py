"""The parts of a claim, each beside figures by hand."""

import importlib
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robgib.statistics import williams_test
from robgib.studies import Study
from robgib.studies.claims import (
    SIGNS,
    _against,
    _baselines,
    _compared,
    _complexity,
    _controls,
    _corrected,
    _correlation,
    _correlations,
    _facts,
    _ladder_table,
    _no_verdict,
    _notes,
    _partial,
    _reliability,
    _verdict,
    _without,
    claim,
    collapsed,
)
from robgib.studies.ladder import RUNGS, Rung, bootstrap, resamples
from robgib.studies.strata import clusters
from tests.studies.test_claims import OF_IB, STUDY, C, V, made

module = importlib.import_module("robgib.studies.claims")


@pytest.fixture(scope="module")
def rows():
    return made(np.random.default_rng(0), slope=-0.1)


def generator():
    return np.random.default_rng(7)


def test_the_signs_of_expectations():
    assert dict(SIGNS) == {"positive": 1, "negative": -1, "either": 0}


def test_a_network_is_collapsed_below_a_tenth_of_the_way_from_chance_to_1():
    def left(accuracy, study=STUDY, **columns):
        table = pd.DataFrame({"clean_accuracy": accuracy, "left_out": "", "part": "confirm"}).assign(**columns)
        return [reason != "" for reason in collapsed(study, table)["left_out"]]

    assert left([0.189, 0.19, 0.191]) == [True, False, False]  # of ten classes: 0.1 + 0.1 · 0.9
    assert left([0.5499, 0.55], chance=0.5) == [True, False]
    assert left([0.1, 0.1], part=["confirm", "control"]) == [True, False]
    found = collapsed(STUDY, pd.DataFrame({"clean_accuracy": [0.1], "left_out": ["failed"], "part": ["confirm"]}))
    assert found["left_out"].tolist() == ["failed"]
    strict = STUDY.model_copy(update={"least_accuracy": 0.95})
    assert left([0.949, 0.95], strict) == [True, False]
    gap = STUDY.model_copy(update={"outcome": STUDY.outcome.model_copy(update={"measure": "generalisation_gap"})})
    assert left([0.1], gap) == [False]


def test_fewest_models_of_a_verdict(rows):
    assert _no_verdict(rows.iloc[:8], V) == ""
    assert _no_verdict(rows.iloc[:7], V).startswith("7 usable models are too few for a verdict (at least 8)")
    assert (
        _no_verdict(rows.assign(**{V: 1.0}), V) == f"{V} is the same for all 48 models: there is nothing to correlate."
    )
    constant = rows.assign(outcome=0.5)
    assert _no_verdict(constant, V) == "the outcome is the same for all 48 models: there is nothing to correlate."


def test_clean_accuracy_is_no_baseline_of_a_generalisation_gap(rows):
    own = _baselines(STUDY, rows)
    assert own[0] == "strength"
    assert "clean_accuracy" in own
    gap = STUDY.model_copy(update={"outcome": STUDY.outcome.model_copy(update={"measure": "generalisation_gap"})})
    assert _baselines(gap, rows) == tuple(n for n in own if n != "clean_accuracy")
    assert "linear_r2" not in _baselines(STUDY, rows.drop(columns="linear_r2"))


def test_only_secondary_figures_of_the_models_to_confirm_on_are_corrected(rows):
    parts = {"confirm": rows, "explore": rows.iloc[:20], "control": rows.iloc[:0]}
    table = _correlations(STUDY, parts, ("weight_norm",), generator()).set_index(["part", "figure"])
    assert list(table.index) == [
        *(("confirm", f) for f in (V, C, OF_IB)), *(("explore", f) for f in (V, C, OF_IB)), ("baseline", "weight_norm")
    ]  # fmt: skip
    p = table.loc["confirm"].loc[[C, OF_IB], "p"].to_numpy()
    by_holm = np.maximum.accumulate(np.sort(p) * [2, 1]).clip(max=1)  # the smaller of two doubled
    assert table.loc["confirm"].loc[[C, OF_IB], "p_holm"].to_numpy()[np.argsort(p)] == pytest.approx(by_holm)
    assert table["p_holm"].notna().sum() == 2
    nothing = dict.fromkeys(parts, rows.iloc[:0])
    assert _correlations(STUDY, nothing, (), generator()).empty


def test_a_correlation_needs_four_models_and_two_values_of_each():
    few = pd.DataFrame({V: [1.0, 2.0, 2.0, 1.0], "outcome": [1.0, 1.0, 2.0, 2.0], **{
        name: ["a"] * 4 for name in ("data", "architecture", "regime", "strength")}})  # fmt: skip
    found = _correlation("confirm", V, few, generator())
    assert (found["rho"], found["pearson"], found["kendall"]) == pytest.approx((0, 0, 0))
    assert found["p"] == pytest.approx(1)  # every shuffle is as far out as 0
    assert math.isnan(_correlation("confirm", V, few.iloc[:3], generator())["rho"])


def test_the_p_of_a_correlation_counts_shuffles_that_are_as_far_out():
    table = pd.DataFrame({V: [0.0, 0, 0, 0, 1, 1, 1, 1], "outcome": [0.0, 0, 0, 1, 0, 1, 1, 1], "strength": range(8),
                          **{name: ["a"] * 8 for name in ("data", "architecture", "regime")}})  # fmt: skip
    found = _correlation("confirm", V, table, generator())
    # Of 70 ways 2 · (16 + 1) have three or four of a side: ρ = ±0.5 or ±1. Those of ±0.5 are ties.
    assert found["rho"] == pytest.approx(0.5)
    assert found["p"] == pytest.approx(34 / 70, abs=4 * math.sqrt(0.25 / 2000))


def test_the_shuffles_are_of_the_outcome_against_the_figure():
    table = pd.DataFrame({V: [0.0] * 7 + [1.0], "outcome": np.arange(8.0), "strength": range(8),
                          **{name: ["a"] * 8 for name in ("data", "architecture", "regime")}})  # fmt: skip
    # The one model with the other figure has the highest outcome: it, or the lowest, in 2 of 8 orders.
    p = _correlation("confirm", V, table, generator())["p"]
    assert p == pytest.approx(2 / 8, abs=4 * math.sqrt(0.25 * 0.75 / 2000))


def test_errors_of_estimation():
    assert _reliability(np.array([0.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(1 - 0.5 / 2)
    assert _corrected(0.5, 0.2, 0.2) != _corrected(0.5, 0.25, 0.25)
    assert _corrected(0.1, 0.2, 0.2) == pytest.approx(0.5)
    assert math.isnan(_corrected(0.1, 0.2, 0.1999))


def test_the_mutual_information_beside_a_figure(rows):
    assert _complexity(STUDY, rows) == OF_IB
    assert _complexity(STUDY, rows.drop(columns=OF_IB)) is None
    own = Study.model_validate(
        {"name": "made", "question": "?", "primary": {"figure": "ib_complexity"}, "confirm": {"models": ["a"]}}
    )
    assert _complexity(own, rows) is None
    known = [*_partial(rows, V, ("weight_norm",), OF_IB)["given"]]
    assert known == ["weight_norm", OF_IB, "all of them"]
    for lacking in (rows.assign(**{OF_IB: 1.0}), rows.assign(**{OF_IB: [np.nan, *rows[OF_IB][1:]]})):
        assert [*_partial(lacking, V, ("weight_norm",), OF_IB)["given"]] == ["weight_norm", "all of them"]
    two = rows.assign(**{OF_IB: np.arange(48) % 2})
    assert [*_partial(two, V, ("weight_norm",), OF_IB)["given"]] == ["weight_norm", OF_IB, "all of them"]
    assert [*_partial(rows, V, ("weight_norm",), None)["given"]] == ["weight_norm", "all of them"]
    assert _partial(rows, V, (), None).empty
    assert math.isnan(_partial(rows, V, ("weight_norm",), OF_IB)["of it given the figure"].iloc[-1])


def test_groups_are_left_out_if_four_models_remain(rows):
    own = rows.iloc[:10].assign(architecture=["a"] * 4 + ["b"] * 6, regime="standard")
    found = _without(own, V)
    assert found["left out"].tolist() == ["architecture a", "architecture b"]
    assert found["models"].tolist() == [6, 4]
    assert _without(own.iloc[:7], V)["left out"].tolist() == ["architecture b"]


PAIRS = Study.model_validate(
    {
        "name": "made",
        "question": "?",
        "primary": {"figure": "gib_complexity", "layer": "logits"},
        "secondary": [
            {"figure": "ib_complexity", "layer": "features"},
            {"figure": "gib_complexity", "layer": "features"},
            {"figure": "ib_complexity", "layer": "logits"},
            {"figure": "vulnerability", "layer": "logits"},
        ],
        "confirm": {"models": ["digits-cnn"]},
    }
)


def test_pairs_of_one_layer_are_compared_the_primary_first(rows):
    rng = np.random.default_rng(5)
    table = rows.assign(**{f.label: rng.standard_normal(48) for f in PAIRS.figures})
    found = _against(PAIRS, table, generator())
    assert found["layer"].tolist() == ["logits", "features"]
    assert found["models"].tolist() == [48, 48]
    constant = table.assign(**{PAIRS.figures[1].label: 1.0})
    assert _against(PAIRS, constant, generator())["layer"].tolist() == ["logits"]
    assert len(_against(PAIRS, table.iloc[:8], generator())) == 2
    assert _against(PAIRS, table.drop(columns=PAIRS.figures[1].label), generator())["layer"].tolist() == ["logits"]


def test_a_pair_is_compared_by_magnitudes(rows):
    c, i, y = (rows[k].to_numpy() for k in (V, OF_IB, "outcome"))
    i = i + 0.5 * c
    found = _compared(c, i, rows, generator())
    counts = resamples(clusters(rows, 8), generator())
    drawn = np.abs(bootstrap(c, y, counts)) - np.abs(bootstrap(i, y, counts))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    r = [np.corrcoef(a, b)[0, 1] for a, b in ((c, y), (i, y), (c, i))]
    t, p = williams_test(abs(r[0]), abs(r[1]), r[2] * np.sign(r[0]) * np.sign(r[1]), 48)
    assert (found["Williams' t"], found["Williams' p"]) == pytest.approx((t, p))
    rho = [abs(stats.spearmanr(v, y).statistic) for v in (c, i)]
    assert found["|ρ(C)| − |ρ(I)|"] == pytest.approx(rho[0] - rho[1])


def test_the_bound_is_counted_where_it_was_measured(rows):
    assert len(_facts(rows.assign(bound_of=0, bound_held=0, bound_worst=np.nan))) == 1
    one = _facts(rows.assign(bound_of=[1] + [0] * 47, bound_held=0, bound_worst=0.25))
    assert one["estimates of IB and GIB"] == 1


def test_notes_on_what_is_left_out_marked_or_missing(rows):
    own = rows.assign(left_out=["failed: x", "failed: x", *[""] * 46])
    own.loc[[3, 4], "weight_norm"] = np.nan
    own = own.assign(gradient_norm=1.0)
    models = own.iloc[2:].reset_index(drop=True)
    models[f"{V}_marked"] = [True] * 3 + [False] * 43
    left_out, marked, missing = _notes(own, models, V, ("weight_norm", "gradient_norm", "linear_r2"))
    assert left_out == "left out (failed: x): cnn-0-0, cnn-0-1"
    assert marked == "the primary figure is marked in 3 of 46 models: see their own pages"
    assert missing.startswith("the baseline weight norm is missing for cnn-1-1, cnn-2-0: it has its own ρ")
    assert _notes(rows, rows, V, ("linear_r2",)) == ()


def test_notes_on_controls():
    def note(**values):
        row = {"part": "control", "figure": V, "models": 4, "rho": 0.5, "p": 0.2} | values
        return _controls(pd.DataFrame([row, {**row, "figure": C, "p": 0.001}]), V)

    assert note() == ("on 4 controls no correlation is found: ρ = +0.50, p = 0.2",)
    assert note(p=0.05) == ("on 4 controls no correlation is found: ρ = +0.50, p = 0.05",)
    found = "on 9 controls a correlation is found, although there must be none: ρ = -0.50, p = 0.049"
    assert note(p=0.049, models=9, rho=-0.5) == (found,)
    few = "usable controls are too few for a test (at least 4)"
    assert note(models=3) == (f"3 {few}",)
    assert note(rho=math.nan) == (f"4 {few}",)
    assert note(part="confirm") == ()


def rung(number, status, sentence, p=0.01, draws=0):
    return Rung(RUNGS[number], status, 0.5, 0.1, 0.9, p, draws, sentence)


NOTHING = pd.DataFrame({"baseline": [], "rho": [], "high": []})
"""No baseline beside a figure."""


def test_the_words_of_a_verdict():
    facts = {"smallest correlation shown with 80% power": 0.394}
    words = _verdict(PAIRS, (rung(0, "reached", "One."),), NOTHING, pd.DataFrame(), {})[1]
    assert words.startswith("Figure: C(X;Z); outcome:")
    head = f"Figure: vulnerability; outcome: {STUDY.outcome.noun}."
    rungs = (rung(0, "reached", "One."), rung(1, "not reached", "Two."), rung(2, "not reached", "Not tested: two."))
    assert _verdict(STUDY, rungs, NOTHING, pd.DataFrame(), facts) == (RUNGS[0], f"{head} One. Two.")
    alike = pd.DataFrame({"corr(C, I)": [0.999, 0.1]})
    words = _verdict(STUDY, rungs, NOTHING, alike, facts)[1]
    assert words.endswith(
        "C and I are collinear on these models (corr = 0.999): nothing separates the GIB from the IB."
    )
    assert _verdict(STUDY, rungs, NOTHING, alike.iloc[::-1], facts)[1] == f"{head} One. Two."
    none = (rung(0, "not reached", "None."), *rungs[1:])
    verdict, words = _verdict(STUDY, none, NOTHING, pd.DataFrame(), facts)
    assert verdict == "not shown"
    assert words.endswith("So many models show a correlation of 0.39 or more four times in five.")


def test_the_table_of_rungs():
    made_of = (rung(0, "reached", "One.", p=1 / 2001, draws=2000), rung(1, "not reached", "Two.", p=math.nan))
    table = _ladder_table(made_of)
    assert table["p"].tolist() == ["< 0.0005", ""]
    assert table["in words"].tolist() == ["One.", "Two."]
    assert table[["figure", "low", "high"]].iloc[0].tolist() == [0.5, 0.1, 0.9]
    assert _ladder_table((rung(2, "reached", "", p=0.04),))["p"].tolist() == ["0.04"]


@pytest.mark.parametrize("figures", [1, 3])
def test_a_claim_compares_the_figures_that_were_measured(monkeypatch, rows, figures):
    handed = []

    def agreement(*given):
        handed.append(given)
        return pd.DataFrame()

    monkeypatch.setattr(module, "agreement", agreement)
    monkeypatch.setattr(
        module, "ladder", lambda question, rng: (asked.append(question), (rung(0, "reached", "One."),))[1]
    )
    asked = []
    study = STUDY.model_copy(update={"expect": "negative", "secondary": STUDY.secondary if figures == 3 else ()})
    lacking = rows.assign(part="confirm").drop(columns=[C])
    found = claim(study, lacking)
    assert (found.models, found.verdict) == (48, RUNGS[0])
    ((models, labels, shared, sign),) = handed
    assert labels == [V, *([OF_IB] if figures == 3 else []), *shared]
    assert sign == (-1 if figures == 1 else 0)  # the expected sign is that of the only figure
    assert len(models) == 48
    assert (asked[0].label, asked[0].expect) == (V, -1)
    assert asked[0].baselines == _baselines(study, lacking)


def test_an_error_that_is_not_known_does_not_make_a_figure_unreliable():
    values = np.array([0.0, 2.0, 4.0])
    assert _reliability(values, np.array([1.0, math.nan, 1.0])) == pytest.approx(1 - 1 / 4)
    assert math.isnan(_reliability(values, np.full(3, math.nan)))
    assert math.isnan(_corrected(0.5, math.nan, 1.0))


def test_models_without_a_figure_or_an_outcome_are_left_out_and_said(rows):
    own = rows.assign(part="confirm", left_out="")
    own.loc[0, V], own.loc[1, V], own.loc[2, "outcome"] = math.nan, math.inf, -math.inf
    found = claim(STUDY, own)
    assert found.models == len(own) - 3
    names = own["model"].tolist()
    assert found.notes[:2] == (
        f"left out (vulnerability (imputation, patches:4, last layer) is missing or infinite): {names[0]}, {names[1]}",
        f"left out (the outcome is missing or infinite): {names[2]}",
    )
    assert found.correlations["models"].iloc[0] == found.models
    assert claim(STUDY, own.drop(columns=V)).notes[0].endswith(f"infinite): {', '.join(names)}")
