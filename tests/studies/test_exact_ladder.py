"""Agreement and the ladder beside figures that are put together from their definitions."""

import importlib
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robgib.statistics import weighted_correlation
from robgib.studies.agreement import agreement, granulated, partial_kendall, sign_errors, within_levels
from robgib.studies.ladder import (
    RUNGS,
    Question,
    Rung,
    beyond_baselines,
    bootstrap,
    centred,
    fixed_training,
    goes_with,
    ladder,
    partial_effect,
    prediction_errors,
    resamples,
    usable_baselines,
)
from robgib.studies.strata import axes, cell_of, clusters, exchangeable, relabelled, weighted_ranks
from tests.studies.test_claims import V, made

module = importlib.import_module("robgib.studies.ladder")  # the package has a function of that name
BASELINES = ("weight_norm", "gradient_norm")


@pytest.fixture(scope="module")
def rows():
    return made(np.random.default_rng(0), slope=-0.1)


def generator():
    return np.random.default_rng(7)


def test_models_without_a_partner_and_ties_count_for_nothing():
    levels = {"depth": np.array([0, 1, 0, 2]), "width": np.array([0, 0, 1, 0])}  # the third has no partner in depth
    x, y = np.array([1.0, 2.0, 5.0, 3.0]), np.array([1.0, 2.0, 9.0, 2.0])
    assert granulated(x, y, levels, "depth") == pytest.approx(2 / 3)  # of three pairs one is tied
    assert within_levels(x, y, levels["width"]) == pytest.approx(2 / 3)


def test_a_row_of_agreement_by_hand(rows):
    four = rows[(rows["architecture"] == "cnn") & (rows["training_seed"] == 0)].iloc[1:5].reset_index(drop=True)
    four = four.assign(**{V: [1.0, 2.0, 2.0, 1.0]}, outcome=[1.0, 3.0, 2.0, 4.0], weight_norm=[1.0, 2.0, 4.0, 3.0])
    found = agreement(four, [V], ("weight_norm",), expect=1).iloc[0]
    assert found["models"] == 4
    assert found["tau"] == pytest.approx(stats.kendalltau(four[V], four["outcome"]).statistic)
    given = four["weight_norm"].to_numpy()
    expected = partial_kendall(four[V].to_numpy(), four["outcome"].to_numpy(), [given])
    assert found["tau given baselines"] == pytest.approx(expected)
    lone = agreement(four.iloc[:3], [V], ())
    assert lone.columns.tolist() == ["figure", "models"]  # three models are too few
    for constant in (four.assign(**{V: 1.0}), four.assign(outcome=1.0)):
        assert agreement(constant, [V], ()).columns.tolist() == ["figure", "models"]
    missing = pd.concat([four, four.assign(**{V: math.nan})])
    assert agreement(missing, [V], ())["models"].tolist() == [4]


def test_what_a_row_of_agreement_has(rows):
    binary = rows.assign(outcome=(rows["outcome"] > rows["outcome"].median()).astype(float))
    found = agreement(binary, [V]).iloc[0]
    assert found["tau"] == pytest.approx(stats.kendalltau(binary[V], binary["outcome"]).statistic)
    kept = ["figure", "models", "tau", "tau given baselines", "Ψ", "Ψ architecture", "Ψ strength", "Ψ seed"]
    kept += ["τ at fixed architecture", "τ at fixed strength", "τ at fixed training"]
    assert found.index.tolist() == [*kept, "worst sign error", "mean sign error", "environments"]
    assert agreement(rows, [V]).iloc[0]["tau"] < 0
    contrary, given, free = (agreement(rows, [V], expect=e).iloc[0]["mean sign error"] for e in (1, -1, 0))
    assert free == given < contrary  # without an expectation the sign is that of τ


def test_environments_need_two_pairs_that_differ():
    x, y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 2.0, 2.5, 2.5])
    levels = {"depth": np.array([0, 1, 0, 1]), "width": np.array([0, 0, 1, 1])}
    # With errors of 5 each pair weighs 2Φ(1 / √50) − 1 = 0.11 or 0: less than 1 together.
    assert sign_errors(x, y, np.full(4, 5.0), levels, 1) == pytest.approx([0.0, 0.0])
    assert len(sign_errors(x, np.ones(4), np.full(4, 5.0), levels, 1)) == 0  # no outcome differs
    assert sign_errors(x[:3], y[:3], np.full(3, 5.0), {k: v[:3] for k, v in levels.items()}, 1) == []  # a pair each
    unequal = sign_errors(np.array([1.0, 0.0, 1.0, 2.0]), y, np.full(4, 0.1), levels, 1)
    weight = 2 * stats.norm.cdf(np.array([1.0, 0.0]) / np.hypot(0.1, 0.1)) - 1
    assert unequal[0] == pytest.approx(weight[0] / weight.sum())  # depth: the pair of the first width is wrong


def test_the_table_of_agreement_holds_the_sign_errors(rows):
    found = agreement(rows, [V], expect=-1).iloc[0]
    levels = {**axes(rows), "seed": rows.groupby("training_seed").ngroup().to_numpy()}
    x, y, error = (rows[name].to_numpy(float) for name in (V, "outcome", "outcome_se"))
    errors = sign_errors(x, y, error, levels, -1)
    assert found["worst sign error"] == max(errors)
    assert found["mean sign error"] == pytest.approx(np.mean(errors))
    alone = agreement(rows.assign(architecture="cnn", strength=0.1, training_seed=0, regime="adversarial"), [V]).iloc[0]
    assert math.isnan(alone["Ψ"])  # no two models differ in one field alone
    assert math.isnan(alone["mean sign error"])


def test_the_first_rung_by_its_definition(rows):
    found = goes_with(Question(rows, V), generator())
    rng, x, y = generator(), rows[V].to_numpy(), rows["outcome"].to_numpy()
    drawn = bootstrap(x, y, resamples(clusters(rows, 8), rng))
    unit, levels = exchangeable(rows, rng)
    means = rows.assign(x=x, y=y, unit=unit).groupby("unit")[["x", "y"]].mean()
    assert unit.tolist() == cell_of(rows).tolist()
    moved, every = relabelled(means["x"].to_numpy(), means["y"].to_numpy(), levels, 2000, rng)
    own = stats.spearmanr(means["x"], means["y"]).statistic
    rho = stats.spearmanr(x, y).statistic
    assert not every
    assert found.name == RUNGS[0]
    assert (found.figure, found.low, found.high) == pytest.approx((rho, *np.quantile(drawn, [0.025, 0.975])))
    assert found.p == pytest.approx((1 + (np.abs(moved) >= abs(own) - 1e-12).sum()) / 2001)
    assert (found.status, found.draws) == ("reached", 2000)
    figures = f"ρ = {rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}], p = {found.p:.2g}, over 48 models"
    assert found.sentence == f"The figure goes with the outcome over all models: {figures}."
    one_sided = goes_with(Question(rows, V, expect=-1), generator())
    assert one_sided.p == pytest.approx((1 + (-moved >= -own - 1e-12).sum()) / 2001)
    contrary = goes_with(Question(rows, V, expect=1), generator())
    assert (contrary.status, contrary.p) == ("opposite", found.p)
    assert contrary.sentence == f"The correlation over all models has the sign opposite to the expected one: {figures}."
    nothing = goes_with(Question(rows, "linear_r2"), generator())
    assert nothing.status == "not reached"
    assert nothing.sentence.startswith(f"No correlation over all models is shown: ρ = {nothing.figure:+.2f} [")


def test_the_first_rung_without_fields_permutes_the_models(rows):
    alike = rows.iloc[:9].assign(architecture="cnn", regime="standard", strength=0.0)
    found = goes_with(Question(alike, V), generator())
    rng, x, y = generator(), alike[V].to_numpy(), alike["outcome"].to_numpy()
    resamples(clusters(alike, 8), rng)
    moved, _ = relabelled(x, y, [np.arange(9)], 2000, rng)
    assert found.p == pytest.approx((1 + (np.abs(moved) >= abs(found.figure) - 1e-12).sum()) / 2001)


def of_architectures(count, seeds=2):
    """Models of one strength: the levels of the architectures alone can be relabelled."""
    rng = np.random.default_rng(3)
    names = np.repeat(["cnn", "vgg", "resnet", "vit", "mlp"][:count], seeds)
    same = {"data": "digits", "regime": "standard", "strength": 0.0}
    x = np.repeat(np.arange(count), seeds) + 0.01 * rng.standard_normal(count * seeds)
    return pd.DataFrame({"architecture": names, V: x, "outcome": -x}).assign(**same)


@pytest.mark.parametrize(("count", "status", "p"), [(3, "undetermined", 2 / 6), (4, "reached", 2 / 24)])
def test_a_first_rung_of_few_relabellings(monkeypatch, count, status, p):
    """Of ρ = −1, the order and its reverse are as far from 0; 6 relabellings are fewer than the 20 of a test at 5%."""
    monkeypatch.setattr(module, "_LEVEL", 0.05 if count == 3 else 0.1)
    found = goes_with(Question(of_architectures(count, 4), V), generator())
    assert (found.name, found.status, found.draws) == (RUNGS[0], status, 0)
    assert found.p == pytest.approx(p)
    assert ("can be relabelled in 6 ways only" in found.sentence) is (count == 3)


def test_a_status_by_its_level():
    assert module._status(0.5, 0.1, 0.9, 0.049, 0) == "reached"
    assert module._status(0.5, 0.1, 0.9, 0.05, 0) == "not reached"
    assert module._status(0.5, 0.0, 0.9, 0.01, 0) == "not reached"
    assert module._status(-0.5, -0.9, 0.0, 0.01, -1) == "not reached"
    assert module._status(-0.5, -0.9, -0.1, 0.01, 1) == "opposite"
    assert module._status(-0.5, -0.9, -0.1, 0.01, -1) == "reached"


@pytest.mark.parametrize("architectures", [("cnn", "vgg", "resnet", "vit"), ("cnn",), 16])
def test_the_second_rung_by_its_definition(rows, architectures):
    if architectures == 16:  # models of eight cells, the fewest that are drawn together
        own = rows.iloc[:16].reset_index(drop=True)
    else:
        own = rows[rows["architecture"].isin(architectures)].reset_index(drop=True)
    own = own.assign(**{V: own[V] + own["strength"]})
    found = fixed_training(Question(own, V), generator(), -1)
    rng, cell = generator(), cell_of(own)
    order = np.argsort(cell, kind="stable")
    of, x, y = cell[order], own[V].to_numpy()[order], own["outcome"].to_numpy()[order]
    a, b = (centred(stats.rankdata(v)[None], np.ones((1, len(v))), of)[0] for v in (x, y))
    keys = rng.random((2000, len(x))) + of
    moved = [np.corrcoef(a, b[np.argsort(k)])[0, 1] for k in keys]
    r = np.corrcoef(a, b)[0, 1]
    cells = len(set(cell))
    groups = [np.flatnonzero(of == k) for k in range(cells)] if cells >= 8 else [np.array([i]) for i in range(len(x))]
    counts = resamples(groups, rng)
    a, b = (centred(weighted_ranks(v, counts), counts, of) for v in (x, y))
    ends = np.nanquantile(weighted_correlation(a, b, counts), [0.025, 0.975])
    assert (found.figure, found.low, found.high) == pytest.approx((r, *ends))
    assert found.p == pytest.approx((1 + (-np.array(moved) >= -r - 1e-12).sum()) / 2001)
    assert (found.name, found.draws) == (RUNGS[1], 2000)
    assert f"over {len(own)} models in {cells} groups that differ by their seed alone." in found.sentence
    if found.status == "reached":
        assert found.sentence.startswith("The figure goes with the outcome at fixed training too: r = -0.")
        contrary = fixed_training(Question(own, V), generator(), 1)
        assert contrary.status == ("opposite" if contrary.p < 0.05 else "not reached")
        wrong = contrary.status == "opposite"
        assert wrong == contrary.sentence.startswith("At fixed training the correlation has the opposite sign: r = -0.")
    else:
        assert found.sentence.startswith("At fixed training no correlation is shown: r = ")


def test_a_second_rung_that_cannot_be_tested_says_why(rows):
    alone = fixed_training(Question(rows[rows["training_seed"] == 0], V), generator(), 0)
    assert (alone.name, alone.status) == (RUNGS[1], "undetermined")
    assert alone.sentence == "Undetermined: no two models share a training."
    constant = rows.assign(**{V: rows["strength"]})
    same = fixed_training(Question(constant, V), generator(), 0)
    assert same.sentence == "Undetermined: the figure or the outcome is the same for all models of one training."
    assert same.name == RUNGS[1]
    fixed = fixed_training(Question(rows.assign(outcome=rows["strength"]), V), generator(), 0)
    assert fixed.sentence == same.sentence
    five = rows[rows["architecture"] == "cnn"].iloc[:10]  # five pairs: 32 orders, enough for one side alone
    assert fixed_training(Question(five, V), generator(), -1).status != "undetermined"
    few = fixed_training(Question(five, V), generator(), 0)
    assert few.name == RUNGS[1]
    assert "10 models in 5 groups of one training are too few" in few.sentence
    # Three models of one training and two each of three others: 6 · 2³ = 48 orders, of which 40 are needed.
    triple = rows.iloc[[0, 1, 0, 2, 3, 4, 5, 6, 7]].reset_index(drop=True)
    triple[V] = np.arange(9.0)
    assert fixed_training(Question(triple, V), generator(), 0).status != "undetermined"
    strong = fixed_training(Question(rows.assign(outcome=-rows[V]), V), generator(), 0)
    assert "p < 0.0005, over 48 models" in strong.sentence  # the smallest p of 2,000 permutations is a bound
    assert math.isnan(same.figure)
    assert (same.draws, math.isnan(same.p)) == (0, True)


def test_the_third_rung_by_its_definition(rows):
    own = 0.5 * generator().standard_normal(len(rows))
    rows = rows.assign(weight_norm=rows["outcome"] + rows["weight_norm"], outcome=rows["outcome"] - own)
    rows[V] += own
    found = beyond_baselines(Question(rows, V, baselines=BASELINES), generator(), -1)
    without, with_it = prediction_errors(rows, BASELINES), prediction_errors(rows, (*BASELINES, V))
    gained = without**2 - with_it**2
    counts = resamples(clusters(rows, 8), generator())
    share = gained.sum() / (without**2).sum()
    low, high = np.quantile((counts @ gained) / (counts @ without**2), [0.025, 0.975])
    beta, error, p = partial_effect(rows, V, BASELINES)
    assert (found.figure, found.low, found.high, found.p) == pytest.approx((share, low, high, p))
    assert (found.name, found.status, found.draws) == (RUNGS[2], "reached", 0)
    assert found.sentence == (
        "The figure adds to the baselines: given 2 baselines and the recipes' fields its standardised effect is "
        f"{beta:+.2f} ± {1.96 * error:.2f} (p = {p:.2g}), and it removes {100 * share:.0f}% [{100 * low:.0f}%, "
        f"{100 * high:.0f}%] of the squared error with which they predict another architecture (RMSE "
        f"{np.sqrt((without**2).mean()):.3f} → {np.sqrt((with_it**2).mean()):.3f})."
    )
    assert beyond_baselines(Question(rows, V, baselines=BASELINES), generator(), 0).status == "reached"
    contrary = beyond_baselines(Question(rows, V, baselines=BASELINES), generator(), 1)
    assert contrary.status == "not reached"
    assert contrary.sentence.startswith("It is not shown to add to the baselines: given 2 baselines")
    noise = beyond_baselines(Question(rows, "linear_r2", baselines=BASELINES), generator(), 0)
    assert noise.status == "not reached"


def test_a_third_rung_that_cannot_be_tested_says_why(rows):
    def why(own, baselines=BASELINES):
        found = beyond_baselines(Question(own, V, baselines=baselines), generator(), 0)
        assert (found.name, found.status) == (RUNGS[2], "undetermined")
        return found.sentence

    assert why(rows, ()) == "Undetermined: no baseline was measured on every model."
    missing = rows.assign(weight_norm=1.0, gradient_norm=math.nan)
    assert why(missing) == "Undetermined: no baseline was measured on every model."
    assert usable_baselines(rows, ("linear_r2", "nothing", "weight_norm")) == ("linear_r2", "weight_norm")
    two = rows[rows["architecture"].isin(["cnn", "vgg"])]
    assert why(two) == "Undetermined: fewer than three architectures leave none to predict from the others."
    assert usable_baselines(rows.assign(binary=rows["training_seed"] % 2), ("binary",)) == ("binary",)
    three = rows[rows["architecture"] != "vit"].reset_index(drop=True)
    assert beyond_baselines(Question(three, V, baselines=BASELINES), generator(), 0).status != "undetermined"
    few = rows.iloc[::6].reset_index(drop=True)
    assert why(few) == "Undetermined: 8 models are too few for 2 baselines and the fields of the recipes."


def test_five_degrees_of_freedom_must_be_left():
    """Of nine models a constant, two baselines and the figure leave five; of eight, four."""
    nine = of_architectures(1, 9)
    nine[["outcome", V, "one", "two"]] = generator().standard_normal((9, 4))
    assert math.isfinite(partial_effect(nine, V, ("one", "two"))[0])
    assert math.isnan(partial_effect(nine.iloc[:8], V, ("one", "two"))[0])
    assert math.isnan(partial_effect(nine.assign(one=nine[V]), V, ("one", "two"))[0])


def test_the_penalty_is_the_best_for_an_architecture_left_out_of_the_others(rows):
    columns = [V, *BASELINES]
    rows = rows.assign(outcome=rows["outcome"] + rows["architecture"].map({"cnn": 0, "vgg": 0, "resnet": 0, "vit": 9}))
    found = prediction_errors(rows, columns)
    x = rows[columns].join(pd.get_dummies(rows["strength"])).to_numpy(float)
    y, group = rows["outcome"].to_numpy(), rows["architecture"].to_numpy()

    def missed(fit, test, penalty):
        return y[test] - make_pipeline(StandardScaler(), Ridge(penalty)).fit(x[fit], y[fit]).predict(x[test])

    chosen = set()
    for left_out in np.unique(group):
        train = group != left_out
        others = [(train & (group != g), train & (group == g)) for g in np.unique(group[train])]
        errors = {p: sum((missed(a, b, p) ** 2).sum() for a, b in others) for p in np.logspace(-2, 3, 6)}
        best = min(errors, key=errors.get)
        chosen.add(best)
        assert found[~train] == pytest.approx(missed(train, ~train, best))
    assert len(chosen) > 1


def test_the_ladder_tests_a_rung_on_those_below_it(monkeypatch):
    calls = []

    def rung(number, status, figure=-0.5):
        def test(question, rng, sign=None):
            calls.append((number, sign))
            return Rung(RUNGS[number], status, figure, math.nan, math.nan, 0.01, 0, "")

        return test

    def tested(*statuses, expect=0):
        calls.clear()
        for number, (name, status) in enumerate(
            zip(("goes_with", "fixed_training", "beyond_baselines"), statuses, strict=True)
        ):
            monkeypatch.setattr(module, name, rung(number, status))
        rungs = ladder(Question(pd.DataFrame(), V, expect), generator())
        assert tuple(one.name for one in rungs) == RUNGS
        return [(one.status, one.sentence) for one in rungs]

    assert tested("reached", "reached", "reached") == [("reached", "")] * 3
    assert calls == [(0, None), (1, -1), (2, -1)]
    for status in ("not reached", "opposite"):
        below = f"Not tested: the rung {RUNGS[0]!r} is not reached in the expected sign."
        assert tested(status, "reached", "reached")[1:] == [("not reached", below)] * 2
        assert calls == [(0, None)]
    tested("undetermined", "reached", "reached")
    assert calls == [(0, None), (1, 0), (2, -1)]
    below = f"Not tested: the rung {RUNGS[1]!r} is not reached."
    assert tested("reached", "undetermined", "reached")[2] == ("not reached", below)
    tested("reached", "reached", "reached", expect=1)
    assert calls == [(0, None), (1, 1), (2, 1)]


def test_equal_figures_are_half_an_error_of_sign():
    """Dziugaite et al. 2020: the error of a pair is (1 − the product of the signs) / 2."""
    levels = {"depth": np.array([0, 1, 0, 1]), "width": np.array([0, 0, 1, 1])}
    x, y = np.array([1.0, 1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    none = np.full(4, 1e-9)  # every pair weighs 1
    assert sign_errors(x, y, none, levels, 1) == pytest.approx([0.25, 0.25])
    assert sign_errors(x, y, none, levels, -1) == pytest.approx([0.75, 0.75])


def test_a_pair_without_an_error_weighs_nothing():
    levels = {"depth": np.array([0, 1, 0, 1, 0, 1]), "width": np.array([0, 0, 1, 1, 2, 2])}
    x, y = np.array([1.0, 2.0, 1.0, 2.0, 2.0, 1.0]), np.arange(6.0)
    error = np.array([0.1, 0.1, 0.1, 0.1, math.nan, 0.1])
    assert sign_errors(x, y, error, levels, 1)[0] == 0.0  # the third pair is wrong, and has no error


def test_a_model_alone_with_a_level_says_nothing_of_the_effect(rows):
    """It is fitted exactly, and the correction of the errors would divide by 0."""
    lone = rows.iloc[:1].assign(architecture="mlp", **{V: 3.0}, outcome=-3.0, weight_norm=0.3, gradient_norm=-0.2)
    more = pd.concat([rows, lone], ignore_index=True)
    beta, error, p = partial_effect(more, V, BASELINES)
    scores = {c: stats.zscore(stats.norm.ppf(more[c].rank() / (len(more) + 1))) for c in ("outcome", V, *BASELINES)}
    kept = slice(0, len(rows))
    fields = [pd.get_dummies(more[c].astype(str)).to_numpy(float)[kept] for c in ("architecture", "strength")]
    given = np.column_stack([*(scores[b][kept] for b in BASELINES), *fields])
    left, size, _ = np.linalg.svd(given, full_matrices=False)
    x = np.column_stack([scores[V][kept], left[:, size > 1e-9]])
    hat = x @ np.linalg.pinv(x)
    y = scores["outcome"][kept]
    residual = (y - hat @ y) / (1 - np.diag(hat))
    spread = np.linalg.pinv(x) @ np.diag(residual**2) @ np.linalg.pinv(x).T
    assert beta == pytest.approx((np.linalg.pinv(x) @ y)[0])
    assert error == pytest.approx(math.sqrt(spread[0, 0]))
    assert 0 < p < 1


def test_a_figure_that_is_a_baseline_under_another_name_is_said_to_be(rows):
    found = beyond_baselines(Question(rows.assign(**{V: rows["weight_norm"]}), V, 0, BASELINES), generator(), 0)
    assert found.sentence == (
        "Undetermined: the figure is a linear function of the 2 baselines and the fields of the recipes."
    )


def test_means_that_go_the_other_way_are_no_evidence():
    """Within trainings the figure rises with the outcome, and between them it falls: the permuted means fall."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(9), 12)
    own = np.tile(np.linspace(-2, 2, 12), 9)
    trained = pd.DataFrame({"data": "digits", "architecture": [f"a{i // 3}" for i in place], "regime": "at",
                            "strength": place % 3 / 10, "training_seed": np.tile(np.arange(12), 9)})  # fmt: skip
    x, y = own - 0.1 * place, own + 0.1 * place + 0.01 * rng.standard_normal(108)
    found = goes_with(Question(trained.assign(**{V: x}, outcome=y), V, 0), generator())
    assert found.figure > 0.5
    assert found.low > 0
    assert (found.status, found.p) == ("not reached", 1.0)
