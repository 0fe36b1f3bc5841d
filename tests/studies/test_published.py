"""The published studies' figures, derived again from their tables with pandas, scipy and statsmodels alone."""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from robgib.measures import list_measures
from robgib.studies import claim, read_rows, read_study

REPORTS = Path(__file__).parents[2] / "reports"
NAMES = {"v": "vulnerability", "synergy": "synergy", "gib": "gib_complexity", "ib": "ib_complexity"}


@dataclass(frozen=True)
class Published:
    """What ``reports/README.md`` says of a study.

    Attributes:
        alike: corr(C, I) of the last layer.
        gap: |ρ(C)| − |ρ(I)|.
        t: Williams' test of the magnitudes.
        pairs: pairs of seeds of one training; how many have the opposite sign; Pearson's coefficient of their
            differences.
        least: clean accuracy of a network that learnt.
        learnt: pairs of seeds among networks that learnt.
        given: R² and t of v, given indicators of architecture and of regime and strength, of networks that learnt.
    """

    alike: float
    gap: float
    t: float
    pairs: tuple[int, int, float]
    least: float
    learnt: tuple[int, int, float]
    given: tuple[float, float]


PUBLISHED = {
    "robustness": Published(
        alike=0.176, gap=0.138, t=1.06, pairs=(16, 10, -0.477), least=0.6, learnt=(16, 10, -0.477), given=(0.982, -0.36)
    ),
    "robustness-cifar": Published(
        alike=-0.076, gap=0.210, t=1.67, pairs=(9, 4, 0.159), least=0.19, learnt=(9, 4, 0.159), given=(0.989, -3.29)
    ),
}
STUDIES = pytest.mark.parametrize("study", PUBLISHED)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """statsmodels' correction collects garbage at each call, for a second."""
    monkeypatch.setattr("gc.collect", lambda *generation: 0)


def models(study, least=0.19):
    """The models to confirm on, by plain column names."""
    table = pd.read_csv(REPORTS / study / "models.csv")
    table = table[(table["part"] == "confirm") & table["left_out"].isna() & (table["clean_accuracy"] >= least)]
    for short, name in NAMES.items():
        table[short] = table[f"{name} (imputation, patches:2, last layer)"]
    table["level"] = table["regime"] + table["strength"].astype(str)
    return table.reset_index(drop=True)


@cache
def claimed(study, least=None):
    design = read_study(REPORTS / study / "study.yaml").model_copy(update={"least_accuracy": least})
    return claim(design, read_rows(REPORTS / study / "models.csv", design))


def baselines(table):
    return [n for n in ("strength", *list_measures()) if n in table]


def rho(table, name):
    return stats.spearmanr(table[name], table["outcome"]).statistic


def bootstrap(table, names, draws=1000):
    """ρ with the outcome in bootstrap samples of whole trainings, ranks taken anew in each."""
    cells = [g.index.to_numpy() for _, g in table.groupby(["architecture", "level"])]
    values, rng, drawn = table[["outcome", *names]].to_numpy(float), np.random.default_rng(0), []
    for _ in range(draws):
        rows = np.concatenate([cells[i] for i in rng.integers(len(cells), size=len(cells))])
        drawn.append(np.corrcoef(stats.rankdata(values[rows], axis=0).T)[0, 1:])
    return np.array(drawn)


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


@STUDIES
def test_gib_against_ib_like_with_like(study):
    """C and I of one layer; the test is of the magnitudes of their correlations."""
    d, published, against = models(study), PUBLISHED[study], claimed(study).against.iloc[0]
    alike, gap = d["gib"].corr(d["ib"]), abs(rho(d, "gib")) - abs(rho(d, "ib"))
    r_c, r_i = (d[n].corr(d["outcome"]) for n in ("gib", "ib"))
    t, p = williams(abs(r_c), abs(r_i), alike * np.sign(r_c * r_i), len(d))
    assert (against["layer"], len(claimed(study).against)) == ("last", 1)
    named = ["corr(C, I)", "|ρ(C)| − |ρ(I)|", "Williams' t", "Williams' p"]
    assert against[named].tolist() == pytest.approx([alike, gap, t, p])
    assert (alike, gap) == pytest.approx((published.alike, published.gap), abs=0.005)
    assert t == pytest.approx(published.t, abs=0.05)
    drawn = np.abs(bootstrap(d, ["gib", "ib"]))
    assert against["low"] == pytest.approx(np.quantile(drawn[:, 0] - drawn[:, 1], 0.025), abs=0.05)
    assert against["high"] == pytest.approx(np.quantile(drawn[:, 0] - drawn[:, 1], 0.975), abs=0.05)


@STUDIES
def test_intervals_take_ranks_anew(study):
    main = claimed(study).correlations.iloc[0]
    drawn = bootstrap(models(study), ["v"])
    assert (main["low"], main["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.035)


@STUDIES
def test_pairs_of_seeds(study):
    of = PUBLISHED[study]
    for least, (count, opposite, published) in ((0.19, of.pairs), (of.least, of.learnt)):
        dv, dy = pairs(models(study, least))
        assert (len(dv), int((dv * dy < 0).sum())) == (count, opposite)
        r = (dv * dy).sum() / math.sqrt((dv**2).sum() * (dy**2).sum())
        assert r == pytest.approx(published, abs=0.005)


@STUDIES
def test_what_v_adds_to_architecture_and_strength(study):
    fit = smf.ols("outcome ~ v + architecture + level", models(study, PUBLISHED[study].least)).fit()
    share, t = PUBLISHED[study].given
    assert fit.rsquared == pytest.approx(share, abs=0.001)
    assert fit.tvalues["v"] == pytest.approx(t, abs=0.05)


def test_among_networks_trained_on_attacked_images():
    """What the text says beside the tables: on CIFAR-10 the weights' norm, and not v; on Fashion-MNIST one network."""
    cifar = models("robustness-cifar")
    cifar = cifar[cifar["regime"] == "adversarial"]
    assert (len(cifar), round(rho(cifar, "weight_norm"), 2), round(rho(cifar, "v"), 2)) == (14, -0.83, -0.34)
    fit = smf.ols("outcome ~ v + architecture + level", cifar).fit()
    assert fit.tvalues["v"] == pytest.approx(-0.2, abs=0.05)
    fashion = models("robustness")
    fashion = fashion[fashion["regime"] == "adversarial"]
    alone = fashion["model"] == "f24-cnn-at-eps0.2-seed12"
    for rows, t in ((fashion, -3.2), (fashion[~alone], -0.8)):
        fit = smf.ols("outcome ~ v + architecture + level", rows).fit()
        assert fit.tvalues["v"] == pytest.approx(t, abs=0.05)


@pytest.mark.parametrize(("study", "least"), [*((study, None) for study in PUBLISHED), ("robustness", 0.6)])
def test_the_claim_says_the_same(study, least):
    found, d = claimed(study, least), models(study, least or 0.19)
    main = found.correlations.iloc[0]
    assert found.models == len(d)
    assert main["rho"] == pytest.approx(rho(d, "v"))
    assert main["kendall"] == pytest.approx(stats.kendalltau(d["v"], d["outcome"]).statistic)
    dv, dy = pairs(d)
    agreed = found.agreement.set_index("figure").loc[read_study(REPORTS / study / "study.yaml").primary.label]
    assert agreed["Ψ seed"] == pytest.approx(np.mean(np.sign(dv * dy)))
    assert agreed["tau"] == main["kendall"]
    own = found.correlations[found.correlations["part"] == "baseline"].set_index("figure")["rho"]
    assert own.to_dict() == pytest.approx({name: rho(d, name) for name in baselines(d)})


@STUDIES
def test_baselines_beside_the_figure(study):
    """The differences of the magnitudes, and their intervals by another bootstrap."""
    d, beside = models(study), claimed(study).beside.set_index("baseline")
    names = baselines(d)
    drawn = np.abs(bootstrap(d, [*names, "v"]))
    for i, name in enumerate(names):
        row = beside.loc[name]
        assert row["rho"] == pytest.approx(rho(d, name))
        assert row["|ρ(baseline)| − |ρ(figure)|"] == pytest.approx(abs(rho(d, name)) - abs(rho(d, "v")))
        assert row["high"] == pytest.approx(np.quantile(drawn[:, i] - drawn[:, -1], 0.975), abs=0.06)
    alike = int((beside["high"] >= 0).sum())
    assert f"For {alike} of {len(names)} baselines |ρ| is not shown to be smaller" in claimed(study).words


def test_the_table_of_correlations_holds_those_of_the_tables():
    text = (REPORTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:[^|]+?)(?: `(\w+)`) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) >= 9
    for name, *cells in rows:
        for study, cell in zip(PUBLISHED, cells, strict=True):
            d = models(study)
            if cell.strip() == "–":
                assert name not in d
            else:
                assert float(cell.replace("−", "-")) == pytest.approx(rho(d, name), abs=0.0051), (name, study)


@STUDIES
def test_the_claims_table_holds_the_verdict(study):
    """ρ with its interval, the number of networks, and the verdict."""
    (line,) = [one for one in (REPORTS / "README.md").read_text("utf-8").splitlines() if f"({study}/study.md)" in one]
    rung = claimed(study).ladder.iloc[0]
    shown = f"ρ = {rung['figure']:+.2f} [{rung['low']:+.2f}, {rung['high']:+.2f}], {claimed(study).models} networks"
    assert shown.replace("-", "−") in line
    assert f"| {claimed(study).verdict} |" in line
