"""The ledger's verdicts, derived again from its CSV with pandas, scipy and statsmodels alone."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import integrate, stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

REPORT = Path(__file__).parents[2] / "reports" / "ledger"
FIELDS = [
    "data", "architecture", "width", "depth", "regime", "strength", "epochs", "learning_rate", "weight_decay",
    "batch_size", "augmentation", "early_stopping",
]  # fmt: skip
CHECKED = [
    "v_last",
    "S_last",
    "r_last",
    "C_last",
    "I_last",
    "SY_last",
    "margin_per_gradient",
    "noise_drop",
    "linear_r2",
]
DRAWS = 1000


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """statsmodels' correction collects garbage at each call, for a second."""
    monkeypatch.setattr("gc.collect", lambda *generation: 0)


@pytest.fixture(scope="module")
def ledger():
    return pd.read_csv(REPORT / "ledger.csv")


@pytest.fixture(scope="module")
def learnt(ledger):
    """The networks that learnt: clean accuracy a tenth of the way from chance to 1, or more."""
    chance = ledger["chance"]
    return ledger[ledger["clean_accuracy"] >= chance + 0.1 * (1 - chance)].reset_index(drop=True)


@pytest.fixture(scope="module")
def published():
    return pd.read_csv(REPORT / "verdicts.csv").set_index(["figure", "outcome"])


def paired(d, column, outcome="area"):
    """Ranks of the figure and of the outcome over networks that share a training, less their mean in each cell."""
    both = d[d.groupby("cell")["seed"].transform("size") > 1].sort_values(["cell", "seed"])
    ranks = both[[column, outcome]].rank()
    return (ranks - ranks.groupby(both["cell"]).transform("mean")).to_numpy(), both["cell"].to_numpy()


def test_a_cell_is_what_shares_every_field_but_the_seed(ledger):
    assert ledger.groupby(FIELDS, dropna=False)["cell"].nunique().max() == 1
    assert ledger.groupby("cell")[FIELDS].nunique().max().max() == 1
    assert not ledger.duplicated(["cell", "seed"]).any()


def test_the_area_is_that_under_the_accuracies(ledger):
    at = [0, 0.02, 0.05, 0.1, 0.15, 0.2]
    under = integrate.trapezoid(ledger[[f"robust_{e:g}" for e in at]], at, axis=1) / at[-1]
    assert under == pytest.approx(ledger["area"].to_numpy(), abs=1e-9)
    gap = ledger["train_accuracy"] - ledger["test_accuracy"]
    assert gap.to_numpy() == pytest.approx(ledger["generalisation_gap"].to_numpy(), abs=1e-9)


def test_robustness_varies_at_fixed_strength(learnt):
    """Regime and strength leave more of the area's variance than seeds make."""
    level = learnt["regime"] + learnt["strength"].astype(str)
    left = {}
    for name, of in (("level", level), ("seed", learnt["cell"])):
        within = learnt["area"] - learnt.groupby(of)["area"].transform("mean")
        left[name] = (within**2).sum() / (len(learnt) - of.nunique()) / learnt["area"].var()
    assert left["level"] > 0.1
    assert left["level"] > 3 * left["seed"]


@pytest.mark.parametrize("outcome", ["area", "median_distance", "corruption_accuracy"])
@pytest.mark.parametrize("column", CHECKED)
def test_the_first_two_rungs(column, outcome, learnt, published):
    row = published.loc[(column, outcome)]
    assert row["networks"] == len(learnt)
    assert row["rho"] == pytest.approx(stats.spearmanr(learnt[column], learnt[outcome]).statistic, abs=1e-9)
    if math.isnan(row["fixed"]):  # the first rung was not reached
        assert row["verdict"] in ("not shown", "contradicted in sign", "undetermined")
        return
    ranks, _ = paired(learnt, column, outcome)
    assert row["fixed"] == pytest.approx(stats.pearsonr(*ranks.T).statistic, abs=1e-9)


def test_the_synergy_of_units_follows_how_much_was_learnt(learnt, published):
    """Spearman's partial correlation with the generalisation gap, by the recursion formula."""
    rho = learnt[["SY_last", "generalisation_gap", "IY_last", "train_accuracy"]].corr("spearman")
    assert rho.loc["SY_last", "generalisation_gap"] == pytest.approx(-0.542, abs=0.0005)
    for given, partial in (("IY_last", -0.089), ("train_accuracy", -0.032)):
        one, two = rho.loc["SY_last", given], rho.loc["generalisation_gap", given]
        left = rho.loc["SY_last", "generalisation_gap"] - one * two
        assert left / math.sqrt((1 - one**2) * (1 - two**2)) == pytest.approx(partial, abs=0.0005)
    assert (learnt["SY_last_se"].mean() / learnt["SY_last"].std()) == pytest.approx(1 / 9, abs=0.005)
    assert len(published) == 150


@pytest.mark.parametrize("column", ["v_last", "S_last", "noise_drop"])
def test_their_intervals_and_p(column, learnt, published):
    """By a bootstrap over cells with ranks taken anew, and by flips of the sign within pairs."""
    row = published.loc[(column, "area")]
    rng = np.random.default_rng(0)
    groups = [g.index.to_numpy() for _, g in learnt.groupby("cell")]
    values = learnt[[column, "area"]].to_numpy()
    drawn = []
    for _ in range(DRAWS):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        drawn.append(stats.spearmanr(*values[rows].T).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (row["rho_low"], row["rho_high"]) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    if math.isnan(row["fixed"]):
        return
    ranks, cell = paired(learnt, column)
    x, y = (ranks[:, k].reshape(-1, 2) for k in (0, 1))
    assert (cell.reshape(-1, 2)[:, 0] == cell.reshape(-1, 2)[:, 1]).all()
    own = float((x * y).sum())
    signs = rng.choice([-1, 1], size=(4000, len(x)))
    flipped = signs @ (x * y).sum(1)
    side = -1 if column == "v_last" or own < 0 else 1
    one_sided = (side * flipped >= side * own - 1e-9).mean()
    expected = one_sided if column == "v_last" and own < 0 else (np.abs(flipped) >= abs(own) - 1e-9).mean()
    # Of figures without an expected sign the second rung takes that of the first.
    first = np.sign(row["rho"])
    if column != "v_last" and np.sign(own) == first:
        expected = one_sided
    assert row["fixed_p"] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("column", CHECKED)
def test_the_verdict_follows_from_the_rungs(column, published):
    """A rung is reached where p is below 5%, and the interval, on the expected side, leaves 0 out."""
    row = published.loc[(column, "area")]
    sign = -1 if column == "v_last" else np.sign(row["rho"])

    def reached(name):
        excludes = sign * row[f"{name}_low" if sign > 0 else f"{name}_high"] > 0
        return row[f"{name}_p"] < 0.05 and excludes and np.sign(row[name]) == sign

    expected = "not shown"
    if row["rho_p"] < 0.05 and row["rho_low"] * row["rho_high"] > 0 and np.sign(row["rho"]) != sign:
        expected = "contradicted in sign"
    if reached("rho"):
        expected = "at fixed training" if reached("fixed") else "goes with"
    if row["verdict"] == "beyond the baselines":
        assert expected == "at fixed training"
        assert row["beyond_low"] > 0
        assert row["beyond_p"] < 0.05
    else:
        assert row["verdict"] == expected


@pytest.mark.parametrize("column", ["v_last", "S_last", "r_last", "C_last", "I_last"])
def test_the_partial_effect_given_baselines_and_fields(column, learnt, published):
    """Least squares on normal scores, indicators of every field, errors robust to unequal variance (HC3)."""
    row = published.loc[(column, "area")]
    d = learnt
    level = d["regime"] + d["strength"].astype(str)
    of = d["architecture"] + level
    further = [f for f in FIELDS[2:] if f not in ("regime", "strength") and d[f].groupby(of).nunique().max() > 1]
    dummies = [
        pd.get_dummies(f.astype(str)).to_numpy(float) for f in (d["architecture"], level, *(d[f] for f in further))
    ]
    baselines = [c for c in ("strength", *BASELINES) if d[c].notna().all() and d[c].nunique() > 1]
    z = stats.zscore(stats.norm.ppf(d[[*baselines, column, "area"]].rank().to_numpy() / (len(d) + 1)))
    given = np.column_stack([np.ones(len(d)), z[:, :-2], *dummies])
    left, size, _ = np.linalg.svd(given, full_matrices=False)
    basis = left[:, size > size[0] * len(d) * np.finfo(float).eps]
    fit = sm.OLS(z[:, -1], np.column_stack([z[:, -2], basis])).fit(cov_type="HC3", use_t=True)
    found = float(fit.params[0]), float(fit.bse[0]), float(fit.pvalues[0])
    assert found == pytest.approx(tuple(row[["effect", "effect_se", "effect_p"]]), rel=1e-6)


def out_of_architecture(d, columns):
    """Errors of nested ridge regressions: an architecture predicted from the others, the penalty chosen among these."""
    level = d["regime"] + d["strength"].astype(str)
    fields = [level, *(d[f].astype(str) for f in FIELDS[2:] if f not in ("regime", "strength"))]
    x = np.column_stack([d[columns], *(pd.get_dummies(f) for f in fields)]).astype(float)
    y, of = d["area"].to_numpy(float), d["architecture"].to_numpy()
    errors = np.zeros(len(d))
    for one in np.unique(of):
        others = of != one
        best, least = None, np.inf
        for penalty in np.logspace(-2, 3, 6):
            model = make_pipeline(StandardScaler(), Ridge(alpha=penalty))
            made = cross_val_predict(model, x[others], y[others], groups=of[others], cv=LeaveOneGroupOut())
            if ((made - y[others]) ** 2).sum() < least:
                best, least = model, ((made - y[others]) ** 2).sum()
        errors[~others] = y[~others] - best.fit(x[others], y[others]).predict(x[~others])
    return errors


@pytest.mark.parametrize("column", CHECKED)
def test_the_share_of_the_error_that_a_figure_removes(column, learnt, published):
    row = published.loc[(column, "area")]
    if math.isnan(row["beyond"]):  # a rung below was not reached
        assert row["verdict"] != "beyond the baselines"
        return
    baselines = [c for c in ("strength", *BASELINES) if c != column and learnt[c].notna().all()]
    without, with_it = (out_of_architecture(learnt, c) for c in (baselines, [*baselines, column]))
    share = ((without**2).sum() - (with_it**2).sum()) / (without**2).sum()
    assert row["beyond"] == pytest.approx(share, abs=1e-6)


BASELINES = (
    "clean_accuracy", "gradient_norm", "probability_margin", "logit_margin", "margin_per_gradient", "local_lipschitz",
    "boundary_thickness", "weight_norm", "spectral_norm", "flatness", "linear_r2", "linear_r2_layer", "patch_swap_drop",
    "noise_drop", "effective_rank",
)  # fmt: skip
