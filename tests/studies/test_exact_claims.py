"""The formulas behind a study's verdict, beside figures worked out by hand or by another library."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from robgib.statistics import partial_correlation, smallest_correlation, williams_test
from robgib.studies import claim, claims
from robgib.studies.claims import (
    _clusters,
    _corrected,
    _correlation,
    _effects,
    _facts,
    _interval_within,
    _mixed,
    _partial,
    _reliability,
    _resamples,
    _spearman,
    _standard,
    _verdict,
    _weighted_correlations,
    _within,
    _without,
)
from tests.studies.test_claims import OF_IB, STUDY, C, V, made


@pytest.fixture
def rows():
    return made(np.random.default_rng(0), slope=-0.1)


def test_reliability_is_the_share_of_variance_that_is_not_error():
    # Variance of 1, 2, 3 is 1; the mean squared error is (.04 + .09 + .16)/3.
    values = np.array([1.0, 2.0, 3.0])
    assert _reliability(values, np.array([0.2, 0.3, 0.4])) == pytest.approx(1 - 0.29 / 3)
    assert _reliability(values, np.array([2.0, 2.0, 2.0])) == 0
    assert _reliability(np.ones(3), np.ones(3)) == 0


def test_attenuation_is_taken_off_after_spearman():
    assert _corrected(0.3, 0.5, 0.72) == pytest.approx(0.3 / 0.6)
    assert _corrected(-0.3, 0.2, 0.8) == pytest.approx(-0.3 / 0.4)
    assert math.isnan(_corrected(0.1, 0.19, 1.0))
    assert math.isnan(_corrected(0.6, 0.6, 0.6))  # it would be 1


def test_rank_correlation_and_standardised_values():
    assert _spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0])) == pytest.approx(0.8)
    assert math.isnan(_spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(_spearman(np.arange(4.0), np.ones(4)))
    assert _standard(np.array([1.0, 3.0])).tolist() == [-1, 1]
    assert _standard(np.ones(3)).tolist() == [0, 0, 0]


def test_clusters_are_cells_where_there_are_enough(rows):
    whole = _clusters(rows)
    assert [len(c) for c in whole] == [4] * 12
    assert sorted(np.concatenate(whole)) == list(range(48))
    cell = rows.iloc[whole[1]]
    assert cell[["data", "architecture", "regime", "dose"]].drop_duplicates().shape[0] == 1
    assert len(_clusters(rows[rows["dose"] < 0.15])) == 8
    few = rows[rows["dose"] == 0.0].reset_index(drop=True)  # four cells
    assert [c.tolist() for c in _clusters(few)] == [[i] for i in range(16)]
    drawn = _resamples(whole, np.random.default_rng(0))
    assert drawn.shape == (2000, 48)
    assert (drawn.sum(1) == 48).all()
    assert all((drawn[:, c] == drawn[:, c[:1]]).all() for c in whole)
    assert drawn[:, 0].var() == pytest.approx(11 / 12, abs=0.1)  # multinomial: n p (1 − p)


def test_weighted_correlation_is_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 7))
    times = np.array([2, 0, 1, 3, 1, 1, 2])
    found = _weighted_correlations(x, y, np.array([np.ones(7), times, np.eye(7)[0]]))
    assert found[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found[1] == pytest.approx(np.corrcoef(np.repeat(x, times), np.repeat(y, times))[0, 1])
    assert math.isnan(found[2])


def test_a_row_of_correlations_against_scipy(rows):
    found = _correlation("confirm", V, rows, np.random.default_rng(0))
    x, y = rows[V], rows["outcome"]
    rho, pearson = stats.spearmanr(x, y).statistic, stats.pearsonr(x, y).statistic
    assert (found["part"], found["figure"], found["models"], found["marked"]) == ("confirm", V, 48, 0)
    assert (found["rho"], found["pearson"]) == pytest.approx((rho, pearson))
    assert found["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    reliable = 1 - 0.01 / x.var(), 1 - 0.0004 / y.var()
    assert found["reliability"] == pytest.approx(reliable[0])
    assert found["corrected"] == pytest.approx(pearson / math.sqrt(reliable[0] * reliable[1]))
    assert found["p"] == pytest.approx(1 / 2001)  # none of 2,000 shuffles is as far out
    rng = np.random.default_rng(0)
    drawn = _weighted_correlations(stats.rankdata(x), stats.rankdata(y), _resamples(_clusters(rows), rng))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_the_permutation_p_is_that_of_all_orders():
    rows = made(np.random.default_rng(2)).iloc[:5].copy()
    rows[V], rows["outcome"] = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 5.0, 4.0]
    found = _correlation("confirm", V, rows, np.random.default_rng(0))
    # |ρ| ≥ 0.9 in 10 of 120 orders.
    assert found["p"] == pytest.approx(10 / 120, abs=3 * math.sqrt(10 / 120 / 2000))
    for few in (rows.iloc[:3], rows.assign(**{V: 1.0}), rows.assign(outcome=0.5), rows.drop(columns=V)):
        assert math.isnan(_correlation("confirm", V, few, np.random.default_rng(0))["rho"])
    assert math.isfinite(_correlation("confirm", V, rows.iloc[:4], np.random.default_rng(0))["rho"])


def test_deviations_within_groups(rows):
    x, y, groups = _within(rows, V, ["architecture", "regime"])
    assert [len(g) for g in groups] == [12] * 4
    for g in groups:
        assert x[g].mean() == pytest.approx(0, abs=1e-12)
    means = rows.groupby(["architecture", "regime"])[["outcome", V]].transform("mean")
    assert np.sort(y) == pytest.approx(np.sort(rows["outcome"] - means["outcome"]))
    assert np.sort(x) == pytest.approx(np.sort(rows[V] - means[V]))
    alone = _within(rows.iloc[::4], V, ["architecture", "regime", "dose"])
    assert [len(part) for part in alone] == [0, 0, 0]


@pytest.mark.parametrize("count", [8, 4])
def test_few_groups_have_wider_intervals(count):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 3 * count))
    y = y + x
    groups = [np.arange(3 * k, 3 * k + 3) for k in range(count)]
    r = np.corrcoef(x, y)[0, 1]
    low, high = _interval_within(r, x, y, groups, np.random.default_rng(0))
    drawn_of = groups if count >= 8 else [np.array([i]) for i in range(3 * count)]
    z = np.arctanh(_weighted_correlations(x, y, _resamples(drawn_of, np.random.default_rng(0))))
    factor = 1 if count >= 8 else math.sqrt(12 / 8)  # N/(N − groups)
    ends = [math.atanh(r) + factor * (q - math.atanh(r)) for q in np.quantile(z, [0.025, 0.975])]
    assert (math.atanh(low), math.atanh(high)) == pytest.approx(ends)


def test_effects_by_level(rows):
    found = _effects(rows, V, np.random.default_rng(0)).set_index("effect")
    cell = ["data", "architecture", "regime", "dose"]
    deviations = rows[[V, "outcome"]] - rows.groupby(cell)[[V, "outcome"]].transform("mean")
    seeds = found.loc["within cells (seeds)"]
    assert seeds["estimate"] == pytest.approx(np.corrcoef(deviations[V], deviations["outcome"])[0, 1])
    means = rows.groupby(cell)[[V, "outcome"]].mean()
    deviations = means - means.groupby(cell[:3]).transform("mean")
    doses = found.loc["within architecture and regime (dose)"]
    assert doses["estimate"] == pytest.approx(np.corrcoef(deviations[V], deviations["outcome"])[0, 1])
    assert (seeds["models"], doses["models"]) == (48, 12)
    assert math.isnan(found.loc["between regimes, within architecture", "estimate"])  # 4 less 2 groups
    assert found.loc["between regimes, within architecture", "models"] == 4


def test_the_mixed_model_and_its_interval():
    rows = made(np.random.default_rng(8), slope=-0.1, between=0.2)
    found = _mixed(rows, V)
    scaled = rows.assign(
        **{k: (rows[c] - rows[c].mean()) / rows[c].std(ddof=0) for k, c in (("y", "outcome"), ("x", V), ("d", "dose"))},
        one=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = smf.mixedlm(
            "y ~ x + d", scaled, groups="one", re_formula="0",
            vc_formula={"a": "0 + architecture", "r": "0 + regime"},
        ).fit(reml=True)  # fmt: skip
    value, error = peer.fe_params["x"], peer.bse_fe["x"]
    assert found["estimate"] == pytest.approx(value, abs=1e-4)
    assert found["low"] == pytest.approx(value - 1.96 * error, abs=2e-4)
    assert found["high"] == pytest.approx(value + 1.96 * error, abs=2e-4)
    assert found["models"] == 48


def test_where_there_is_no_mixed_model(rows):
    assert math.isnan(_mixed(rows.iloc[:11], V)["estimate"])  # four to a coefficient
    one = rows[(rows["architecture"] == "cnn") & (rows["regime"] == "standard")]
    assert math.isnan(_mixed(one, V)["estimate"])
    assert math.isfinite(_mixed(rows[rows["architecture"] == "cnn"], V)["estimate"])
    assert math.isfinite(_mixed(rows[rows["dose"] == 0.1], V)["estimate"])  # without the dose: two coefficients


def test_groups_left_out(rows):
    found = _without(rows, V).set_index("left out")
    assert list(found.index) == [
        "architecture cnn", "architecture vit", "regime standard", "regime adversarial"
    ]  # fmt: skip
    rest = rows[rows["regime"] != "standard"]
    row = found.loc["regime standard"]
    assert row["models"] == 24
    assert row["rho"] == pytest.approx(stats.spearmanr(rest[V], rest["outcome"]).statistic)
    assert len(_without(rows[rows["architecture"] == "cnn"], V)) == 2
    assert _without(rows.iloc[[0, 1, 2, 24, 25, 26, 27]], V)["left out"].tolist() == ["architecture cnn"]


def test_what_is_taken_out(rows):
    found = _partial(STUDY, rows.assign(linear_r2=np.nan, gradient_norm=2.0), V)
    assert found["given"].tolist() == ["clean_accuracy", "weight_norm", OF_IB, "all of them"]
    rho, p = partial_correlation(rows[V], rows["outcome"], rows[["weight_norm"]].to_numpy())
    assert found.iloc[1][["rho", "p"]].tolist() == pytest.approx([rho, p])
    rho, p = partial_correlation(rows[V], rows["outcome"], rows[found["given"].iloc[:3]].to_numpy())
    assert found.iloc[3][["rho", "p"]].tolist() == pytest.approx([rho, p])
    gap = STUDY.model_copy(update={"outcome": STUDY.outcome.model_copy(update={"measure": "generalisation_gap"})})
    assert "clean_accuracy" not in set(_partial(gap, rows, V)["given"])
    assert OF_IB not in set(_partial(STUDY, rows, OF_IB)["given"])


def test_gib_beside_ib(rows):
    found = _facts(STUDY, rows, np.random.default_rng(0))
    c, i, y = rows[C], rows[OF_IB], rows["outcome"]
    assert found["corr(C, I)"] == pytest.approx(np.corrcoef(c, i)[0, 1])
    rho = [abs(stats.spearmanr(v, y).statistic) for v in (c, i)]
    assert found["|ρ(C)| − |ρ(I)|"] == pytest.approx(rho[0] - rho[1])
    assert found["|ρ(C)| − |ρ(I)|, low"] < rho[0] - rho[1] < found["|ρ(C)| − |ρ(I)|, high"]
    t, p = williams_test(np.corrcoef(c, y)[0, 1], np.corrcoef(i, y)[0, 1], np.corrcoef(c, i)[0, 1], 48)
    assert (found["Williams' t"], found["Williams' p"]) == pytest.approx((t, p))
    assert found["smallest correlation shown with 80% power"] == smallest_correlation(48)
    told = rows.assign(bound_of=3, bound_held=2, bound_worst=np.linspace(-1, 0.5, 48))
    found = _facts(STUDY, told, np.random.default_rng(0))
    assert (found["estimates of IB and GIB"], found["of them IB ≤ GIB"]) == (144, 96)
    assert found["largest IB − GIB, bits"] == 0.5
    assert "corr(C, I)" not in _facts(STUDY, rows.iloc[:7], np.random.default_rng(0))


NONE = pd.DataFrame({"effect": ["mixed model"], "estimate": [0.3], "low": [0.1], "high": [0.5]})


@pytest.mark.parametrize(
    ("rho", "low", "high", "p", "expect", "verdict"),
    [
        (0.5, 0.2, 0.7, 0.01, "either", "supported"),
        (0.5, 0.2, 0.7, 0.01, "positive", "supported"),
        (0.5, 0.2, 0.7, 0.01, "negative", "contradicted"),
        (-0.5, -0.7, -0.2, 0.01, "negative", "supported"),
        (0.5, 0.2, 0.7, 0.05, "either", "not shown"),  # p must be below 5%
        (0.5, 0.2, 0.7, 0.0499, "either", "supported"),
        (0.5, 0.0, 0.7, 0.01, "either", "not shown"),  # and the interval exclude 0
        (-0.5, -0.7, 0.0, 0.01, "either", "not shown"),
    ],
)
def test_the_verdicts_rule(rho, low, high, p, expect, verdict):
    main = pd.Series({"rho": rho, "low": low, "high": high, "p": p, "models": 30})
    study = STUDY.model_copy(update={"expect": expect})
    facts = {"smallest correlation shown with 80% power": 0.49}
    found, words = _verdict(study, main, NONE, facts)
    assert found == verdict
    assert f"ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.3g}, over 30 models" in words
    assert ("one of 0.49 or more" in words) == (verdict == "not shown")


@pytest.mark.parametrize(
    ("low", "high", "estimate", "words"),
    [
        (0.1, 0.5, 0.3, " It is there within cells too."),
        (-0.1, 0.5, 0.3, "it is not shown: what differs between the groups"),
        (-0.5, -0.1, -0.3, "Within cells it is the opposite: -0.30 [-0.50, -0.10]."),
    ],
)
def test_the_verdict_names_what_is_there_within_groups(low, high, estimate, words):
    main = pd.Series({"rho": 0.5, "low": 0.2, "high": 0.7, "p": 0.01, "models": 30})
    effects = pd.DataFrame({"effect": ["within cells"], "estimate": [estimate], "low": [low], "high": [high]})
    assert words in _verdict(STUDY, main, effects, {})[1]
    told = _verdict(STUDY, main, effects, {"corr(C, I)": 0.999})[1]
    assert "corr(C, I) = 0.999" in told
    assert "corr(C, I)" not in _verdict(STUDY, main, effects, {"corr(C, I)": 0.5})[1]


def test_eight_models_carry_a_verdict_and_seven_do_not(monkeypatch):
    monkeypatch.setattr(claims, "_mixed", lambda rows, label: {"effect": "mixed model", "estimate": np.nan})
    monkeypatch.setattr("gc.collect", lambda *generation: 0)  # statsmodels' correction does it, for seconds
    rows = made(np.random.default_rng(5), slope=0.1)
    spread = rows.iloc[np.linspace(0, 47, 8).astype(int)]
    assert claim(STUDY, spread).verdict != "cannot be told"
    assert claim(STUDY, spread.iloc[:7]).verdict == "cannot be told"
    assert claim(STUDY, spread.iloc[:7]).models == 7
