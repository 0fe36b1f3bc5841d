"""The published studies' figures, derived again from their tables with pandas, scipy and statsmodels alone."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from robgib.studies import claim, read_rows, read_study

REPORTS = Path(__file__).parents[2] / "reports"
BASELINES = ("strength", "clean_accuracy", "gradient_norm", "weight_norm", "linear_r2")
NAMES = {"v": "vulnerability", "gib": "gib_complexity", "ib": "ib_complexity"}


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """statsmodels' correction collects garbage at each call, for a second."""
    monkeypatch.setattr("gc.collect", lambda *generation: 0)


def models(study, least=0.0):
    """The models to confirm on, by plain column names."""
    table = pd.read_csv(REPORTS / study / "models.csv")
    table = table[(table["part"] == "confirm") & table["left_out"].isna() & (table["clean_accuracy"] >= least)]
    for short, name in NAMES.items():
        table[short] = table[f"{name} (imputation, patches:2, last layer)"]
    table["gib_mean"] = table["gib_complexity (imputation, patches:2, mean layer)"]
    table["level"] = table["regime"] + table["strength"].astype(str)
    return table.reset_index(drop=True)


def rho(table, name):
    return stats.spearmanr(table[name], table["outcome"]).statistic


def williams(r_xy, r_zy, r_xz, n):
    """Williams' t (Steiger 1980, equation 7) and p."""
    det = np.linalg.det(np.array([[1, r_xy, r_zy], [r_xy, 1, r_xz], [r_zy, r_xz, 1]]))
    below = 2 * (n - 1) / (n - 3) * det + (r_xy + r_zy) ** 2 / 4 * (1 - r_xz) ** 3
    t = (r_xy - r_zy) * math.sqrt((n - 1) * (1 + r_xz) / below)
    return t, 2 * stats.t.sf(abs(t), n - 3)


def pairs(table):
    """Differences of v and of the outcome between the two seeds of each training."""
    groups = table.sort_values("training_seed").groupby(["architecture", "level"])
    both = groups.filter(lambda g: len(g) == 2).sort_values("training_seed").groupby(["architecture", "level"])
    return both["v"].diff().dropna().to_numpy(), both["outcome"].diff().dropna().to_numpy()


@pytest.mark.parametrize(
    ("study", "alike", "gap", "t", "mixed"),
    [("robustness", -0.09, 0.51, 4.88, (0.26, 0.34)), ("robustness-cifar", -0.15, 0.34, 3.34, (-0.24, 0.53))],
)
def test_gib_against_ib_like_with_like(study, alike, gap, t, mixed):
    """The former figures were those of the mean layer's C and the last layer's I."""
    d = models(study)
    assert d["gib"].corr(d["ib"]) == pytest.approx(alike, abs=0.005)
    assert abs(rho(d, "gib")) - abs(rho(d, "ib")) == pytest.approx(gap, abs=0.005)
    r = [d[n].corr(d["outcome"]) for n in ("gib", "ib")]
    assert r[0] > 0 > r[1]
    found = williams(abs(r[0]), abs(r[1]), -d["gib"].corr(d["ib"]), len(d))
    assert found[0] == pytest.approx(t, abs=0.005)
    signed = williams(*r, d["gib"].corr(d["ib"]), len(d))
    assert signed[1] < found[1] / 100  # +0.8 against −0.3: it is the sign that differs
    assert d["gib_mean"].corr(d["ib"]) == pytest.approx(mixed[0], abs=0.005)
    assert abs(rho(d, "gib_mean")) - abs(rho(d, "ib")) == pytest.approx(mixed[1], abs=0.005)


@pytest.mark.parametrize(
    ("study", "upper", "former"), [("robustness", -0.70, -0.76), ("robustness-cifar", -0.41, -0.48)]
)
def test_intervals_that_keep_the_ranks_are_too_narrow(study, upper, former):
    d = models(study)
    cells = [g.index.to_numpy() for _, g in d.groupby(["architecture", "level"])]
    ranks = d[["v", "outcome"]].rank().to_numpy()
    rng, anew, kept = np.random.default_rng(0), [], []
    for _ in range(1000):
        rows = np.concatenate([cells[i] for i in rng.integers(len(cells), size=len(cells))])
        kept.append(np.corrcoef(ranks[rows].T)[0, 1])
        anew.append(np.corrcoef(stats.rankdata(ranks[rows], axis=0).T)[0, 1])
    assert np.quantile(anew, 0.975) == pytest.approx(upper, abs=0.035)
    assert np.quantile(kept, 0.975) == pytest.approx(former, abs=0.03)
    assert np.quantile(anew, 0.975) > np.quantile(kept, 0.975) + 0.02


def test_within_seeds_three_collapsed_networks_made_the_correlation():
    for least, count, opposite, r in ((0.0, 22, 12, -0.73), (0.6, 18, 8, -0.02)):
        dv, dy = pairs(models("robustness", least))
        assert (len(dv), int((dv * dy < 0).sum())) == (count, opposite)
        assert (dv * dy).sum() / math.sqrt((dv**2).sum() * (dy**2).sum()) == pytest.approx(r, abs=0.005)
    dv, dy = pairs(models("robustness-cifar"))
    assert (dv * dy).sum() / math.sqrt((dv**2).sum() * (dy**2).sum()) == pytest.approx(0.42, abs=0.005)


def test_given_architecture_and_strength_little_is_left():
    """Of networks that learnt; on CIFAR-10 v is clear among all, and not among those trained on attacked images."""

    def fit(d):
        return smf.ols("outcome ~ v + architecture + level", d).fit()

    learnt = fit(models("robustness", 0.6))
    assert learnt.rsquared == pytest.approx(0.976, abs=0.001)
    assert learnt.tvalues["v"] == pytest.approx(-0.69, abs=0.01)
    cifar = models("robustness-cifar")
    assert fit(cifar).tvalues["v"] == pytest.approx(-3.35, abs=0.01)
    attacked = cifar[cifar["regime"] == "adversarial"]
    assert fit(attacked).tvalues["v"] == pytest.approx(0.12, abs=0.01)
    assert rho(attacked, "v") == pytest.approx(-0.42, abs=0.005)
    assert rho(attacked, "weight_norm") == pytest.approx(-0.92, abs=0.005)


@pytest.mark.parametrize(("study", "least"), [("robustness", None), ("robustness", 0.6), ("robustness-cifar", None)])
def test_the_claim_says_the_same(study, least):
    design = read_study(REPORTS / study / "study.yaml").model_copy(update={"least_accuracy": least})
    found = claim(design, read_rows(REPORTS / study / "models.csv", design))
    d = models(study, least or 0.19)
    main, against = found.correlations.iloc[0], found.against.iloc[0]
    assert found.models == len(d)
    assert main["rho"] == pytest.approx(rho(d, "v"))
    assert main["kendall"] == pytest.approx(stats.kendalltau(d["v"], d["outcome"]).statistic)
    assert (against["layer"], len(found.against)) == ("last", 1)
    assert against["corr(C, I)"] == pytest.approx(d["gib"].corr(d["ib"]))
    assert against["|ρ(C)| − |ρ(I)|"] == pytest.approx(abs(rho(d, "gib")) - abs(rho(d, "ib")))
    dv, dy = pairs(d)
    agreed = found.agreement.set_index("figure").loc[design.primary.label]
    assert agreed["Ψ seed"] == pytest.approx(np.mean(np.sign(dv * dy)))
    assert agreed["tau"] == main["kendall"]
    baselines = found.correlations[found.correlations["part"] == "baseline"].set_index("figure")["rho"]
    for name in BASELINES:
        assert baselines[name] == pytest.approx(rho(d, name))
    rungs = found.ladder.set_index("rung")["status"]
    assert found.verdict == "goes with"
    assert rungs.tolist() == ["reached", "not reached", "not reached"]


@pytest.mark.parametrize(("study", "alike"), [("robustness", {"linear_r2"}), ("robustness-cifar", set(BASELINES))])
def test_baselines_whose_correlation_is_about_as_large(study, alike):
    """The differences of the magnitudes, and their intervals by another bootstrap over trainings."""
    design = read_study(REPORTS / study / "study.yaml")
    found, d = claim(design, read_rows(REPORTS / study / "models.csv", design)), models(study, 0.19)
    names = list(BASELINES)
    cells = [g.index.to_numpy() for _, g in d.groupby(["architecture", "level"])]
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        rows = d.loc[np.concatenate([cells[i] for i in rng.integers(len(cells), size=len(cells))])]
        ranks = rows[["outcome", "v", *names]].rank().corr()["outcome"].abs()
        drawn.append([ranks[n] - ranks["v"] for n in names])
    high = dict(zip(names, np.nanquantile(drawn, 0.975, axis=0), strict=True))
    beside = found.beside.set_index("baseline")
    for name in names:
        row = beside.loc[name]
        assert row["rho"] == pytest.approx(rho(d, name))
        assert row["|ρ(baseline)| − |ρ(figure)|"] == pytest.approx(abs(rho(d, name)) - abs(rho(d, "v")))
        assert row["high"] == pytest.approx(high[name], abs=0.05)
    assert set(beside.index[beside["high"] >= 0]) == alike
    assert f"For {len(alike)} of 5 baselines |ρ| is not shown to be smaller" in found.words
