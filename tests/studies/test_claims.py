"""Claims on models whose truth is known: there, not there, there through strength only, and there beyond baselines."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robgib.statistics import partial_correlation, smallest_correlation, williams_test
from robgib.studies import Study, claim, study_json, study_markdown, study_page
from robgib.studies.page import _cells

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


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """statsmodels' correction collects garbage at each call, for a second."""
    monkeypatch.setattr("gc.collect", lambda *generation: 0)


def made(rng, slope=0.0, between=0.0, seeds=2, alike=False):
    """Models of 4 architectures and 6 strengths: v moves the outcome by ``slope``, the strength both by ``between``."""
    rows = []
    for architecture in ("cnn", "vgg", "resnet", "vit"):
        for step in range(6):
            for seed in range(seeds):
                v, complexity = rng.standard_normal(2)
                rows.append(
                    {
                        "model": f"{architecture}-{step}-{seed}",
                        "part": "confirm",
                        "data": "digits",
                        "architecture": architecture,
                        "regime": "adversarial" if step else "standard",
                        "strength": 0.1 * step,
                        "training_seed": seed,
                        "left_out": "",
                        "clean_accuracy": 0.9 + 0.01 * rng.standard_normal(),
                        "weight_norm": rng.random(),
                        "gradient_norm": rng.random(),
                        "linear_r2": rng.random(),
                        "outcome": 0.5 + slope * v + between * step + 0.1 * rng.standard_normal(),
                        "outcome_se": 0.02,
                        V: v + 8 * between * step,
                        C: complexity,
                        OF_IB: complexity + (0.01 if alike else 1.0) * rng.standard_normal(),
                        **{f"{k}_se": 0.1 for k in (V, C, OF_IB)},
                        **{f"{k}_marked": False for k in (V, C, OF_IB)},
                    }
                )
    return pd.DataFrame(rows)


def status(found):
    return dict(zip(found.ladder["rung"], found.ladder["status"], strict=True))


def test_what_is_there_reaches_the_highest_rung():
    rows = made(np.random.default_rng(0), slope=-0.2)
    found = claim(STUDY, rows)
    assert found.verdict == "beyond the baselines"
    assert set(status(found).values()) == {"reached"}
    contrary = claim(STUDY.model_copy(update={"expect": "positive"}), rows)
    assert contrary.verdict == "contradicted in sign"
    main = found.correlations.iloc[0]
    assert main["rho"] == pytest.approx(stats.spearmanr(rows[V], rows["outcome"]).statistic)
    assert main["pearson"] == pytest.approx(stats.pearsonr(rows[V], rows["outcome"]).statistic)
    assert main["low"] < main["rho"] < main["high"] < 0


def test_what_strength_causes_reaches_the_first_rung_only():
    """Strength moves the figure and the outcome; at fixed strength nothing is there."""
    rows = made(np.random.default_rng(1), between=0.3)
    assert status(claim(STUDY, rows)) == {
        "goes with": "reached", "at fixed training": "not reached", "beyond the baselines": "not reached"
    }  # fmt: skip
    assert claim(STUDY, rows).verdict == "goes with"


def test_an_effect_that_turns_round_at_fixed_training_is_said():
    found = claim(STUDY, made(np.random.default_rng(0), slope=-0.2, between=2.0))
    assert status(found)["at fixed training"] == "opposite"
    assert "At fixed training the correlation has the opposite sign: r = -0." in found.words


def test_what_is_not_there_is_not_shown():
    found = claim(STUDY, made(np.random.default_rng(2)))
    assert found.verdict == "not shown"
    assert "four times in five" in found.words


def test_models_that_share_no_training_cannot_show_it_at_fixed_training():
    rows = made(np.random.default_rng(0), slope=-0.2, seeds=1)
    found = claim(STUDY, rows)
    assert "no two models share a training" in found.words
    assert status(found)["at fixed training"] == "undetermined"
    assert found.verdict == "goes with"
    assert found.agreement["τ at fixed training"].isna().all()
    ranks = study_page(STUDY, rows, found, "0").partition("Agreement of ranks</h2>")[2]
    shown = re.findall(r"<tr>(.*?)</tr>", ranks[: ranks.index("</table>")])
    assert len(shown) > 5
    assert not [row for row in shown if not any(re.findall(r"<td[^>]*>([^<]*)</td>", row)[1:]) and "<th" not in row]


def test_a_bound_on_p_is_not_broken_from_its_number():
    assert _cells(pd.DataFrame({"p": ["< 0.0005", "0.031", "a < b"]}))["rows"] == [
        ["<\xa00.0005"],
        ["0.031"],
        ["a < b"],
    ]


def test_every_field_of_the_recipe_but_the_seed_makes_a_cell():
    """Models of unlike epochs are not of one training; a cell of architecture and strength alone took them for that."""
    rows = made(np.random.default_rng(3), seeds=2)
    rows["recipe.training.epochs"] = 1 + rows["training_seed"]
    rows["training_seed"] = 0
    rows["outcome"] += rows["recipe.training.epochs"]
    rows[V] = rows["outcome"] + 0.01 * np.random.default_rng(4).standard_normal(len(rows))
    found = claim(STUDY, rows)
    assert status(found)["at fixed training"] == "undetermined"
    assert "no two models share a training" in found.words
    assert "Ψ training.epochs" in found.agreement


def test_collapsed_networks_are_left_out_and_said():
    rows = made(np.random.default_rng(2))
    rows.loc[:2, ["clean_accuracy", "outcome", V]] = [0.12, -5, 40]
    found = claim(STUDY, rows)
    assert found.models == len(rows) - 3
    assert any("left out (collapsed: clean accuracy near chance): cnn-0-0, cnn-0-1, cnn-1-0" in n for n in found.notes)
    assert claim(STUDY, rows.assign(chance=0.01)).models == len(rows)
    assert claim(STUDY.model_copy(update={"least_accuracy": 0.95}), rows).models == 0


def test_secondary_figures_are_corrected_and_the_primary_is_not():
    found = claim(STUDY, made(np.random.default_rng(3), slope=0.1)).correlations
    own = found[found["part"] == "confirm"].set_index("figure")
    assert np.isnan(own.loc[V, "p_holm"])
    assert (own.loc[[C, OF_IB], "p_holm"] >= own.loc[[C, OF_IB], "p"]).all()


def test_baselines_stand_beside_the_figures_with_their_own_correlation():
    rows = made(np.random.default_rng(3), slope=0.1)
    found = claim(STUDY, rows).correlations.query("part == 'baseline'").set_index("figure")
    assert set(found.index) == {"strength", "clean_accuracy", "weight_norm", "gradient_norm", "linear_r2"}
    rho = stats.spearmanr(rows["weight_norm"], rows["outcome"]).statistic
    assert found.loc["weight_norm", "rho"] == pytest.approx(rho)


def test_a_baseline_that_fails_on_one_model_is_said_and_not_used():
    rows = made(np.random.default_rng(0), slope=-0.2)
    rows.loc[5, "gradient_norm"] = np.nan
    found = claim(STUDY, rows)
    assert any("the baseline gradient norm is missing for cnn-2-1" in n for n in found.notes)
    assert "gradient_norm" not in set(found.partial["given"])
    assert found.verdict == "beyond the baselines"


def test_gib_and_ib_that_are_collinear_are_said_to_be():
    found = claim(STUDY, made(np.random.default_rng(4), slope=0.1, alike=True))
    assert found.against["corr(C, I)"].iloc[0] > 0.95
    assert "collinear" in found.words
    assert "collinear" not in claim(STUDY, made(np.random.default_rng(4), slope=0.1)).words


def test_gib_and_ib_are_compared_in_one_layer():
    """With C of a second layer in the study, C of that layer was held against I of the first."""
    mean = STUDY.secondary[0].model_copy(update={"layer": "mean"})
    study = STUDY.model_copy(update={"secondary": [*STUDY.secondary, mean]})
    rows = made(np.random.default_rng(5))
    other = np.random.default_rng(6).standard_normal(len(rows))
    rows = rows.assign(**{mean.label: other, f"{mean.label}_se": 0.1, f"{mean.label}_marked": False})
    found = claim(study, rows).against
    assert found["layer"].tolist() == ["last"]
    assert found["corr(C, I)"].iloc[0] == pytest.approx(np.corrcoef(rows[C], rows[OF_IB])[0, 1])


def test_models_left_out_are_said_and_too_few_carry_no_verdict():
    rows = made(np.random.default_rng(5), slope=0.1, seeds=1).iloc[:12]
    rows.loc[:5, "left_out"] = "signs of a failed attack: noise"
    found = claim(STUDY, rows)
    assert found.models == len(rows) - 6
    assert found.verdict == "undetermined"
    assert any("left out (signs of a failed attack: noise)" in note for note in found.notes)


def test_the_correlation_with_models_on_which_an_attack_failed_is_said_too():
    rows = made(np.random.default_rng(5), slope=0.5)
    strongest = rows["outcome"].nlargest(6).index
    rho = stats.spearmanr(rows[V], rows["outcome"]).statistic
    rows.loc[strongest, "left_out"] = "signs of a failed attack: noise"
    found = claim(STUDY, rows)
    (note,) = (n for n in found.notes if n.startswith("with the 6 models"))
    assert f"ρ = {rho:+.2f} [" in note
    assert note.endswith(f"over {len(rows)} models")
    rows["clean_accuracy"] = 0.8
    rows.loc[strongest[:2], "clean_accuracy"] = 0.1  # these did not learn either
    assert any(n.endswith(f"over {len(rows) - 2} models") for n in claim(STUDY, rows).notes)
    assert not any(n.startswith("with the") for n in claim(STUDY, rows.assign(left_out="")).notes)


def test_a_figure_that_does_not_vary_is_said():
    rows = made(np.random.default_rng(6)).assign(**{V: 1.0})
    assert "the same for all" in claim(STUDY, rows).words
    empty = made(np.random.default_rng(6)).drop(columns=[V, f"{V}_se", f"{V}_marked"])
    assert claim(STUDY, empty).verdict == "undetermined"


def test_controls_are_tested():
    rows = made(np.random.default_rng(7), slope=-0.2)
    few = pd.concat([rows, made(np.random.default_rng(8)).iloc[:3].assign(part="control")])
    assert "3 usable controls are too few" in " ".join(claim(STUDY, few).notes)
    many = pd.concat([rows, made(np.random.default_rng(8)).assign(part="control", clean_accuracy=0.1)])
    assert "on 48 controls no correlation is found" in " ".join(claim(STUDY, many).notes)
    bad = pd.concat([rows, made(np.random.default_rng(8), slope=0.2).assign(part="control")])
    assert "on 48 controls a correlation is found, although there must be none" in " ".join(claim(STUDY, bad).notes)


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
    rows = made(np.random.default_rng(0), slope=-0.2)
    rows.loc[0, "clean_accuracy"] = 0.1
    found = claim(STUDY, rows)
    page, content, text = (
        study_page(STUDY, rows, found, "0"),
        study_json(STUDY, rows, found, "0"),
        study_markdown(STUDY, rows, found),
    )
    assert content["schema"] == 2
    assert len(content["models"]) == len(rows)
    assert [r["rung"] for r in content["ladder"]] == ["goes with", "at fixed training", "beyond the baselines"]
    assert found.words.split(":")[0] in page
    assert found.words in text
    assert "&lt;\xa00.0005" in page
    assert 'class="mark hollow"' in page  # the collapsed network
    assert re.search(r'<text[^>]*class="label"[^>]*>0\.\d</text>', page)  # the strength of a training
    assert page.index("<b>Beyond the baselines.</b>") < page.index("Design, fixed before the results")
    headings = re.findall(r"<th[^>]*>(.*?)</th>", page)
    assert "p, Holm" in headings
    assert [h for h in headings if not h or "_" in h] == []  # without a name, or with that of a column in the CSV
    assert 'class="long"' in page  # sentences of a table have room on a narrow screen
    assert len(page) < 1e6


def test_error_of_the_figures_is_taken_into_account():
    """A figure measured with an error as large as its spread correlates less; corrected, it does not."""
    rng = np.random.default_rng(5)
    rows = made(rng, slope=-0.3, seeds=10)
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
