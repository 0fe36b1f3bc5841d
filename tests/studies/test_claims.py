"""Verdicts on models whose truth is known: there, not there, and there only between groups."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robgib.statistics import partial_correlation, smallest_correlation, williams_test
from robgib.studies import Study, claim, study_json, study_markdown, study_page
from robgib.studies.claims import _CELL, _interval_within, _within

STUDY = Study.model_validate(
    {
        "name": "made",
        "question": "Does v go with robustness?",
        "primary": {"figure": "vulnerability"},
        "secondary": [{"figure": "gib_complexity"}, {"figure": "ib_complexity"}],
        "confirm": {"models": ["digits-cnn"]},
    }
)
V, C, OF_IB = (f.label for f in STUDY.figures)


def made(rng, slope=0.0, between=0.0, seeds=4, alike=False):
    """Models of 2 architectures, 2 regimes and 3 doses: v moves the outcome by ``slope``, regimes both."""
    rows = []
    for architecture in ("cnn", "vit"):
        for r, regime in enumerate(("standard", "adversarial")):
            for dose in (0.0, 0.1, 0.2):
                for seed in range(seeds):
                    v = rng.standard_normal()
                    complexity = rng.standard_normal()
                    rows.append(
                        {
                            "model": f"{architecture}-{regime}-{dose}-{seed}",
                            "part": "confirm",
                            "data": "digits",
                            "architecture": architecture,
                            "regime": regime,
                            "dose": dose,
                            "training_seed": seed,
                            "left_out": "",
                            "clean_accuracy": 0.9 + 0.01 * rng.standard_normal(),
                            "weight_norm": rng.random(),
                            "gradient_norm": rng.random(),
                            "linear_r2": rng.random(),
                            "outcome": 0.5 + slope * v + between * r + 0.1 * rng.standard_normal(),
                            "outcome_se": 0.02,
                            V: v + 8 * between * r,
                            C: complexity,
                            OF_IB: complexity + (0.01 if alike else 1.0) * rng.standard_normal(),
                            **{f"{k}_se": 0.1 for k in (V, C, OF_IB)},
                            **{f"{k}_marked": False for k in (V, C, OF_IB)},
                        }
                    )
    return pd.DataFrame(rows)


def test_an_effect_that_turns_round_within_cells_is_told():
    found = claim(STUDY, made(np.random.default_rng(0), slope=-0.1, between=2.0))
    assert "positively" in found.words
    assert "Within cells (seeds) it is the opposite: -0." in found.words


@pytest.mark.parametrize(
    ("seeds", "keys"),
    [(2, _CELL), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((3, _CELL), (2, ["architecture"])))],
)
def test_intervals_within_groups_hold_nothing_about_as_often_as_they_say(seeds, keys):
    """Two models of a cell deviate from their mean as one, mirrored: taken for two, 77% of the intervals held 0."""
    held = []
    for draw in range(300):
        x, y, groups = _within(made(np.random.default_rng(draw), seeds=seeds), V, keys)
        low, high = _interval_within(np.corrcoef(x, y)[0, 1], x, y, groups, np.random.default_rng(draw))
        held.append(low <= 0 <= high)
    assert np.mean(held) >= 0.87  # a bootstrap of 12 groups is a little narrow


def test_what_is_there_is_supported_and_its_sign_told():
    found = claim(STUDY, made(np.random.default_rng(0), slope=-0.1))
    assert found.verdict == "supported"
    assert "negatively" in found.words
    assert "within cells (seeds)" in found.words
    contrary = claim(STUDY.model_copy(update={"expect": "positive"}), made(np.random.default_rng(0), slope=-0.1))
    assert contrary.verdict == "contradicted"
    main = found.correlations.iloc[0]
    rows = made(np.random.default_rng(0), slope=-0.1)
    assert main["rho"] == pytest.approx(stats.spearmanr(rows[V], rows["outcome"]).statistic)
    assert main["pearson"] == pytest.approx(stats.pearsonr(rows[V], rows["outcome"]).statistic)
    assert main["low"] < main["rho"] < main["high"]
    mixed = found.effects.iloc[-1]
    assert mixed["low"] < mixed["high"] < 0


@pytest.mark.slow
def test_what_is_not_there_is_rarely_found():
    told = [claim(STUDY, made(np.random.default_rng([1, s]), seeds=2)).verdict for s in range(20)]
    assert told.count("not shown") >= 17  # 95% of 20, within chance


def test_what_is_there_between_groups_only_is_said_to_be():
    found = claim(STUDY, made(np.random.default_rng(2), between=0.3))
    assert found.verdict == "supported"
    assert "what differs between the groups may stand behind it" in found.words
    within = found.effects.set_index("effect").loc["within cells (seeds)"]
    assert within["low"] < 0 < within["high"]


def test_secondary_figures_are_corrected_and_the_primary_is_not():
    found = claim(STUDY, made(np.random.default_rng(3), slope=0.1)).correlations.set_index("figure")
    assert np.isnan(found.loc[V, "p_holm"])
    assert (found.loc[[C, OF_IB], "p_holm"] >= found.loc[[C, OF_IB], "p"]).all()


def test_the_gib_is_not_told_from_an_ib_that_is_alike():
    found = claim(STUDY, made(np.random.default_rng(4), slope=0.1, alike=True))
    assert found.facts["corr(C, I)"] > 0.95
    assert "not told from the IB" in found.words
    assert "not told" not in claim(STUDY, made(np.random.default_rng(4), slope=0.1)).words


def test_models_left_out_are_said_and_too_few_carry_no_verdict():
    rows = made(np.random.default_rng(5), slope=0.1, seeds=1)
    rows.loc[:5, "left_out"] = "signs of a failed attack: noise"
    found = claim(STUDY, rows)
    assert found.models == len(rows) - 6
    assert found.verdict == "cannot be told"
    assert any("left out (signs of a failed attack: noise)" in note for note in found.notes)


def test_a_figure_that_does_not_vary_is_said():
    rows = made(np.random.default_rng(6)).assign(**{V: 1.0})
    assert "the same for all" in claim(STUDY, rows).words
    empty = made(np.random.default_rng(6)).drop(columns=[V, f"{V}_se", f"{V}_marked"])
    assert claim(STUDY, empty).verdict == "cannot be told"


def test_partial_correlation_takes_out_what_stands_behind():
    rng = np.random.default_rng(7)
    behind = rng.standard_normal(200)
    x, y = behind + 0.5 * rng.standard_normal((2, 200))
    assert stats.spearmanr(x, y).statistic > 0.6
    rho, p = partial_correlation(x, y, behind[:, None])
    assert abs(rho) < 0.2
    assert p > 0.01
    assert np.isnan(partial_correlation(x[:4], y[:4], behind[:4, None])[0])


def test_williams_keeps_its_level():
    """Two figures that correlate equally with the outcome are told apart in 5% of samples."""
    rng, hits = np.random.default_rng(8), 0
    for _ in range(400):
        y = rng.standard_normal(40)
        x, z = 0.5 * y + rng.standard_normal((2, 40))
        c = np.corrcoef([x, y, z])
        hits += williams_test(c[0, 1], c[1, 2], c[0, 2], 40)[1] < 0.05
    assert 8 <= hits <= 34
    assert np.isnan(williams_test(0.5, 0.3, 0.5, 3)[0])


def test_power_by_simulation():
    least, rng = smallest_correlation(30), np.random.default_rng(9)
    x, e = rng.standard_normal((2, 2000, 30))
    y = least * x + np.sqrt(1 - least**2) * e
    found = [stats.pearsonr(a, b).pvalue < 0.05 for a, b in zip(x, y, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_page_json_and_markdown_say_the_same():
    rows = made(np.random.default_rng(0), slope=-0.1)
    found = claim(STUDY, rows)
    page, told, text = (
        study_page(STUDY, rows, found, "0"),
        study_json(STUDY, rows, found, "0"),
        study_markdown(STUDY, rows, found),
    )
    assert told["schema"] == 1
    assert len(told["models"]) == len(rows)
    assert found.words.split(":")[0] in page
    assert found.words in text
    assert page.index("Verdict: supported") < page.index("The design, written before the results")
    assert len(page) < 6e6


def test_error_of_the_figures_is_taken_into_account():
    """A figure measured with an error as large as its spread correlates less; corrected, it does not."""
    rng = np.random.default_rng(5)
    rows = made(rng, slope=-0.3, seeds=20)
    clean = claim(STUDY, rows).correlations.iloc[0]
    noisy = rows.assign(**{V: rows[V] + rng.standard_normal(len(rows)), f"{V}_se": 1.0})
    found = claim(STUDY, noisy).correlations.iloc[0]
    assert abs(found["pearson"]) < abs(clean["pearson"]) - 0.15
    assert found["reliability"] == pytest.approx(0.5, abs=0.1)
    assert found["corrected"] == pytest.approx(clean["corrected"], abs=0.1)
    hopeless = claim(STUDY, noisy.assign(**{f"{V}_se": 10.0})).correlations.iloc[0]
    assert np.isnan(hopeless["corrected"])


def test_the_bound_is_counted():
    rows = made(np.random.default_rng(0)).assign(bound_of=4, bound_held=4, bound_worst=-0.1)
    rows.loc[0, ["bound_held", "bound_worst"]] = [3, 0.2]
    facts = claim(STUDY, rows).facts
    assert facts["estimates of IB and GIB"] == 4 * len(rows)
    assert facts["of them IB ≤ GIB"] == 4 * len(rows) - 1
    assert facts["largest IB − GIB, bits"] == 0.2
