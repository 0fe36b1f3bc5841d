"""The formulas behind a study's verdict, beside figures worked out by hand or by another library."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robgib.statistics import partial_correlation, smallest_correlation, weighted_correlation, williams_test
from robgib.studies.agreement import agreement, granulated, partial_kendall, sign_errors, within_levels
from robgib.studies.claims import (
    _against,
    _corrected,
    _correlation,
    _facts,
    _partial,
    _reliability,
    _spearman,
    _without,
)
from robgib.studies.ladder import (
    Question,
    bootstrap,
    centred,
    fixed_training,
    goes_with,
    partial_effect,
    prediction_errors,
    resamples,
    shown_p,
)
from robgib.studies.strata import axes, cell_of, clusters, relabelled, varied_fields, weighted_ranks
from tests.studies.test_claims import OF_IB, STUDY, C, V, made

BASELINES = ("weight_norm", "gradient_norm")


@pytest.fixture(scope="module")
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


def test_rank_correlation():
    assert _spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0])) == pytest.approx(0.8)
    assert math.isnan(_spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(_spearman(np.arange(4.0), np.ones(4)))


def test_cells_are_models_that_differ_by_their_seed_alone(rows):
    whole = clusters(rows, 8)
    assert [len(c) for c in whole] == [2] * 24
    assert sorted(np.concatenate(whole)) == list(range(48))
    assert rows.iloc[whole[1]][["architecture", "strength"]].drop_duplicates().shape[0] == 1
    few = rows[rows["architecture"] == "cnn"].reset_index(drop=True)  # six cells
    assert [c.tolist() for c in clusters(few, 8)] == [[i] for i in range(12)]
    longer = rows.assign(**{"recipe.training.epochs": rows["training_seed"], "recipe.architecture.width": 3})
    assert varied_fields(longer) == ["recipe.training.epochs"]
    assert len(set(cell_of(longer))) == 48
    assert list(axes(longer)) == ["architecture", "strength", "training.epochs"]
    drawn = resamples(whole, np.random.default_rng(0))
    assert drawn.shape == (10_000, 48)
    assert (drawn.sum(1) == 48).all()
    assert all((drawn[:, c] == drawn[:, c[:1]]).all() for c in whole)
    assert drawn[:, 0].var() == pytest.approx(23 / 24, abs=0.15)  # multinomial: n p (1 − p)


def test_the_bootstrap_ranks_each_resample_anew():
    """Spearman's ρ of the repeated rows, which is not the correlation of the whole sample's ranks."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 7))
    times = np.array([2, 0, 1, 3, 1, 1, 2])
    repeated = np.repeat(x, times), np.repeat(y, times)
    found = bootstrap(x, y, times[None].astype(float))[0]
    assert found == pytest.approx(stats.spearmanr(*repeated).statistic)
    former = weighted_correlation(stats.rankdata(x), stats.rankdata(y), times[None].astype(float))[0]
    assert found != pytest.approx(former, abs=1e-3)
    ranks = weighted_ranks(np.array([1.0, 1.0, 5.0]), np.array([[1.0, 2.0, 1.0]]))
    assert ranks.tolist() == [[2.0, 2.0, 4.0]]


def test_weighted_correlation_is_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 7))
    times = np.array([2, 0, 1, 3, 1, 1, 2])
    found = weighted_correlation(x, y, np.array([np.ones(7), times, np.eye(7)[0]]))
    assert found[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found[1] == pytest.approx(np.corrcoef(np.repeat(x, times), np.repeat(y, times))[0, 1])
    assert math.isnan(found[2])


def test_relabelling_permutes_the_levels_of_each_field():
    a, b = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    x, y = np.random.default_rng(0).standard_normal((2, 6))
    found, every = relabelled(x, y, [a, b], 2000, np.random.default_rng(0))
    assert every
    table = x.reshape(3, 2)
    by_hand = [
        stats.spearmanr(table[np.ix_(p, q)].ravel(), y).statistic
        for p in itertools.permutations(range(3)) for q in itertools.permutations(range(2))
    ]  # fmt: skip
    assert sorted(found) == pytest.approx(sorted(by_hand))
    sampled, every = relabelled(x, y, [a, b], 11, np.random.default_rng(0))
    assert (len(sampled), every) == (11, False)
    assert all(np.isclose(one, by_hand).any() for one in sampled)


def test_a_relabelling_leaves_out_models_that_the_study_lacks():
    a, b = np.repeat([0, 1, 2], 3)[:8], np.tile([0, 1, 2], 3)[:8]  # (2, 2) is not there
    x, y = np.random.default_rng(0).standard_normal((2, 8))
    found, _ = relabelled(x, y, [a, b], 2000, np.random.default_rng(0))
    where = {(i, j): n for n, (i, j) in enumerate(zip(a, b, strict=True))}
    by_hand = []
    for p in itertools.permutations(range(3)):
        for q in itertools.permutations(range(3)):
            pairs = [(where[p[i], q[j]], n) for (i, j), n in where.items() if (p[i], q[j]) in where]
            source, place = map(list, zip(*pairs, strict=True))
            by_hand.append(stats.spearmanr(x[source], y[place]).statistic)
    assert sorted(found) == pytest.approx(sorted(by_hand))


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
    assert shown_p(found["p"], 2000) == "< 0.0005"
    drawn = bootstrap(x.to_numpy(), y.to_numpy(), resamples(clusters(rows, 8), np.random.default_rng(0)))
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


def test_the_rung_at_fixed_training_by_hand(rows):
    found = fixed_training(Question(rows, V), np.random.default_rng(0), 0)
    ranks = rows[[V, "outcome"]].rank()
    left = ranks - ranks.groupby([rows["architecture"], rows["strength"]]).transform("mean")
    assert found.figure == pytest.approx(np.corrcoef(left[V], left["outcome"])[0, 1])
    pairs = left.iloc[::2]
    signs = np.random.default_rng(1).choice([-1, 1], (20_000, 24))
    scale = (pairs[V] ** 2).sum() * (pairs["outcome"] ** 2).sum()
    flipped = signs @ (pairs[V] * pairs["outcome"]).to_numpy() / math.sqrt(scale)
    expected = (np.abs(flipped) >= abs(found.figure) - 1e-12).mean()
    assert found.p == pytest.approx(expected, abs=0.01)
    few = rows[rows["architecture"] == "cnn"].iloc[:8]  # four pairs: 16 orders
    assert "too few for a test" in fixed_training(Question(few, V), np.random.default_rng(0), 0).sentence
    assert centred(np.array([[1.0, 4.0, 9.0]]), np.array([[1.0, 2.0, 1.0]]), np.array([0, 0, 1])).tolist() == [
        [-2.0, 1.0, 0.0]
    ]


def test_too_few_relabellings_carry_no_test(rows):
    few = rows[rows["architecture"].isin(["cnn", "vgg"]) & rows["strength"].isin([0.0, 0.1, 0.2])]
    found = goes_with(Question(few.reset_index(drop=True), V), np.random.default_rng(0))
    assert found.status == "undetermined"  # 2! × 3! = 12
    assert "relabelled in 12 ways" in found.sentence


def test_the_partial_effect_against_statsmodels(rows):
    beta, error, p = partial_effect(rows, V, BASELINES)
    ranks = rows[[V, "outcome", *BASELINES]].rank() / (len(rows) + 1)
    ranks = ranks.apply(stats.norm.ppf).apply(stats.zscore).rename(columns={V: "v"})
    frame = ranks.assign(architecture=rows["architecture"], strength=rows["strength"].astype(str))
    peer = smf.ols("outcome ~ v + weight_norm + gradient_norm + architecture + strength", frame).fit(
        cov_type="HC3", use_t=True
    )
    assert (beta, error, p) == pytest.approx((peer.params["v"], peer.bse["v"], peer.pvalues["v"]))
    assert math.isnan(partial_effect(rows.iloc[:9], V, BASELINES)[0])
    assert math.isnan(partial_effect(rows.assign(again=rows[V]), V, ("again",))[0])


def test_predictions_of_an_architecture_against_scikit_learn(rows):
    found = prediction_errors(rows, [V, *BASELINES])
    held = (rows["architecture"] == "vit").to_numpy()
    x = rows[[V, *BASELINES]].join(pd.get_dummies(rows["strength"])).to_numpy(float)
    y = rows["outcome"].to_numpy()
    peers = [
        y[held] - make_pipeline(StandardScaler(), Ridge(a)).fit(x[~held], y[~held]).predict(x[held])
        for a in np.logspace(-2, 3, 6)
    ]
    assert any(np.allclose(found[held], peer) for peer in peers)


def test_granulated_coefficients_by_hand():
    levels = {"depth": np.array([0, 0, 1, 1]), "width": np.array([0, 1, 0, 1])}
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 5.0, 3.0, 4.0])
    assert granulated(x, y, levels, "depth") == 0.0  # width 0 agrees, width 1 does not
    assert granulated(x, y, levels, "width") == 1.0
    assert within_levels(x, y, levels["depth"]) == 1.0
    assert math.isnan(granulated(x, y, {**levels, "seed": np.arange(4)}, "depth"))
    assert math.isnan(within_levels(x, y, np.arange(4)))


def test_sign_errors_by_hand():
    levels = {"depth": np.array([0, 0, 1, 1]), "width": np.array([0, 1, 0, 1])}
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 5.0, 3.0, 4.0])
    error = np.full(4, 1 / math.sqrt(2))  # a difference has the standard error 1
    weight = 2 * stats.norm.cdf([2.0, 1.0]) - 1  # of depth: 3 − 1 agrees, 4 − 5 does not
    assert sign_errors(x, y, error, levels, 1) == pytest.approx([weight[1] / weight.sum(), 0.0])
    assert sign_errors(x, y, error, levels, -1) == pytest.approx([weight[0] / weight.sum(), 1.0])


def test_partial_kendall_is_that_of_one_variable():
    x, y, z = np.random.default_rng(3).standard_normal((3, 40))
    xy, xz, yz = (stats.kendalltau(*p).statistic for p in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_kendall(x, y, [z]) == pytest.approx(expected)
    assert math.isnan(partial_kendall(x, y, [z, z]))


def test_the_table_of_agreement(rows):
    found = agreement(rows, [V, "weight_norm"], ("weight_norm",)).set_index("figure")
    assert found.loc[V, "tau"] == pytest.approx(stats.kendalltau(rows[V], rows["outcome"]).statistic)
    alone = [np.sign(np.diff(g[V]) * np.diff(g["outcome"]))[0] for _, g in rows.groupby(["architecture", "strength"])]
    assert found.loc[V, "Ψ seed"] == pytest.approx(np.mean(alone))
    of = found.loc[V, ["Ψ architecture", "Ψ strength", "Ψ seed"]]
    assert found.loc[V, "Ψ"] == pytest.approx(of.mean())
    assert found.loc[V, "environments"] == 6 + 15 + 1
    assert math.isnan(found.loc["weight_norm", "tau given baselines"])


def test_groups_left_out(rows):
    found = _without(rows, V).set_index("left out")
    assert list(found.index)[-2:] == ["regime standard", "regime adversarial"]
    rest = rows[rows["regime"] != "standard"]
    row = found.loc["regime standard"]
    assert row["models"] == 40
    assert row["rho"] == pytest.approx(stats.spearmanr(rest[V], rest["outcome"]).statistic)
    assert len(_without(rows[rows["architecture"] == "cnn"], V)) == 1  # two standard models are too few


def test_what_is_taken_out(rows):
    found = _partial(rows, V, BASELINES, OF_IB)
    assert found["given"].tolist() == [*BASELINES, OF_IB, "all of them"]
    rho, p = partial_correlation(rows[V], rows["outcome"], rows[["weight_norm"]].to_numpy())
    assert found.iloc[0][["rho", "p"]].tolist() == pytest.approx([rho, p])
    other, _ = partial_correlation(rows["weight_norm"], rows["outcome"], rows[[V]].to_numpy())
    assert found.iloc[0]["of it given the figure"] == pytest.approx(other)
    rho, p = partial_correlation(rows[V], rows["outcome"], rows[found["given"].iloc[:3]].to_numpy())
    assert found.iloc[3][["rho", "p"]].tolist() == pytest.approx([rho, p])


def test_gib_beside_ib_by_magnitudes(rows):
    rows = rows.assign(**{"outcome": rows["outcome"] + 0.1 * rows[C], OF_IB: -rows[OF_IB]})
    found = _against(STUDY, rows, np.random.default_rng(0)).iloc[0]
    c, i, y = rows[C], rows[OF_IB], rows["outcome"]
    assert found["corr(C, I)"] == pytest.approx(np.corrcoef(c, i)[0, 1])
    rho = [stats.spearmanr(v, y).statistic for v in (c, i)]
    assert [found["ρ(C)"], found["ρ(I)"]] == pytest.approx(rho)
    assert found["|ρ(C)| − |ρ(I)|"] == pytest.approx(abs(rho[0]) - abs(rho[1]))
    assert found["low"] < abs(rho[0]) - abs(rho[1]) < found["high"]
    r = [np.corrcoef(v, y)[0, 1] for v in (c, i)]
    side = np.sign(r[0] * r[1])
    assert side == -1  # of unlike signs: compared as they are, ±0.1 would differ
    t, p = williams_test(abs(r[0]), abs(r[1]), side * np.corrcoef(c, i)[0, 1], 48)
    assert (found["Williams' t"], found["Williams' p"]) == pytest.approx((t, p))
    mirrored = _against(STUDY, rows.assign(**{OF_IB: -i}), np.random.default_rng(0)).iloc[0]
    assert mirrored["Williams' t"] == pytest.approx(t)
    assert _against(STUDY, rows.iloc[:7], np.random.default_rng(0)).empty


def test_power_and_the_bound(rows):
    assert _facts(rows) == {"smallest correlation shown with 80% power": smallest_correlation(48)}
    found = _facts(rows.assign(bound_of=3, bound_held=2, bound_worst=np.linspace(-1, 0.5, 48)))
    assert (found["estimates of IB and GIB"], found["of them IB ≤ GIB"]) == (144, 96)
    assert found["largest IB − GIB, bits"] == 0.5
