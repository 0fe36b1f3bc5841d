"""What is made of the codes of composed inputs, beside sums that are written out."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from robgib import RobGIBError
from robgib.information import Estimate, Imputation, imputation
from robgib.information import donors as donors_module
from robgib.information.decomposition import Prepared
from robgib.information.donors import Pool, most_donors, places, tell_apart
from robgib.information.imputation import (
    _around,
    _asked,
    _at_once,
    _columns,
    _differ,
    _donor_warnings,
    _Draws,
    _Found,
    _gap,
    _learnt,
    _marginal,
    _mean,
    _mixed,
    _narrowed,
    _refuted,
    _remarks,
    _Setting,
    _shown_apart,
    _still_to_come,
    _whole,
)
from robgib.information.pieces import Pieces
from robgib.information.stacking import Stack, stacked
from robgib.information.views import Network, Target

ROWS, CODES = 20, 3
EYE = np.eye(3, dtype=bool)
SUBSETS = np.concatenate([EYE, ~EYE])


def setting(seed=0, weights=None, **more):
    rng = np.random.default_rng(seed)
    marginal = rng.dirichlet(np.ones(CODES))
    given = {
        "own": {"a": rng.integers(CODES, size=ROWS)},
        "seen": {"a": rng.integers(-1, CODES, size=30)},
        "sizes": {"a": CODES},
        "marginals": {"a": marginal},
        "fold": np.arange(ROWS) % 5,
        "weights": weights,
        "subsets": SUBSETS,
    }
    return SimpleNamespace(**given | more)


def test_the_passes_that_it_takes():
    of = Imputation(donors=16, samples=500)
    assert [of.rows(n) for n in (1, 8, 10, 16, 40)] == [500, 500, 400, 250, 250]
    assert [of.draws(n) for n in (1, 4, 5, 6, 12, 40)] == [192, 48, 32, 32, 16, 16]
    assert of.passes(4, 1000) == 4 * (16 + 48) * 500 + 1000
    assert of.passes(4, 100) == 4 * (16 + 48) * 100 + 100
    assert Imputation(donors=16, single_feature=False).passes(4, 100) == 4 * 16 * 100 + 100
    assert Imputation(samples=1).rows(40) == 1
    defaults = {f.name: f.default for f in fields(Imputation)}
    assert defaults == {
        "donors": 16, "kind": "near", "samples": 500, "single_feature": True, "steps": 800, "components": 16,
        "device": "auto", "seed": 0,
    }  # fmt: skip


def test_settings_of_imputation():
    of = imputation
    assert (of._ALONE, of._AROUND, of._DOUBLING, of._MORE) == (12, (6, 14, 30, 80), (0.5, 0.65), (1.0, 3.0))
    assert of._PARTS == ((0, 2), (1, 3), (0, 1), (2, 3), (0,), (1,), (2,), (3,))
    assert (of._LEVEL, of._BETTER, of._APART, of._COMMON) == (1e-3, 0.05, 0.1, 10)
    assert (of._WIDELY, of._GAUGED, of._LEAST, of._APPARENT) == (8, 1000, 1e-12, 0.6)


def test_how_many_are_composed_at_once():
    assert [_at_once(torch.empty(1, *s)) for s in ((4,), (2**25,), (2**26,), (2**14,), (2**12,))] == [
        4096, 1, 1, 2048, 4096,
    ]  # fmt: skip


def test_quarters_of_the_draws():
    """Seven draws: the first three are near, of which the second is odd; so are the fourth and the sixth of the far."""
    draws = _Draws(SimpleNamespace(sizes={"a": 2}), np.zeros((2, 7)))
    assert draws.quarter.tolist() == [0, 1, 0, 3, 2, 3, 2]
    assert draws.each.tolist() == [2, 1, 2, 2]
    shares = np.random.default_rng(0).random((14, 3))
    draws.add(slice(0, 2), {"a": shares})  # of a label: the first two of three alternatives
    each = shares[:, :2].reshape(2, 7, 2)
    for q in range(4):
        assert draws.counts["a"][:, q] == pytest.approx(each[:, draws.quarter == q].sum(1))
    codes = _Draws(SimpleNamespace(sizes={"a": 2}), np.zeros((2, 1)))
    codes.add(slice(0, 2), {"a": np.array([0, 5])})  # a code that no sample has counts as the last
    assert codes.counts["a"].sum(1).tolist() == [[1, 0], [0, 1]]
    around = np.array([[0, 1], [1, 0]])
    found = codes.own("a", np.array([0, 1]), around)
    assert found.shape == (9, 5, 2)
    assert found[0, 0].tolist() == [1, 1]
    assert found[0, 1].tolist() == [0.5, 0.5]
    assert np.allclose(found[2], found[0])  # of an odd part without a draw: all of them


def test_shares_of_a_code():
    codes = np.array([0, 2, 2, -1])
    assert _marginal(np.array([1]), codes, 3, None) == pytest.approx(np.array([1.5, 0.5, 2.5]) / 4.5)
    weighted = _marginal(np.array([1, 0]), codes, 3, np.array([1.5, 0.5]))
    assert weighted == pytest.approx(np.array([1, 2, 0.5]) / 3.5)
    assert _columns(np.array([[0.2, 0.8]]), 3).tolist() == [[0.2, 0.8, 0]]
    assert _columns(np.array([[0.2, 0.3, 0.5]]), 2).tolist() == [[0.2, 0.3]]


def test_means_of_weighed_inputs():
    values = np.array([[1.0, 3.0], [5.0, 7.0]])
    assert _mean(None)(values).tolist() == [2, 6]
    assert _mean(np.array([1.5, 0.5]))(values).tolist() == [1.5, 5.5]


def test_inputs_near_each_other():
    scores = np.random.default_rng(0).standard_normal((90, 2))
    found = _around(SimpleNamespace(scores=scores, near=np.zeros((90, 1))), np.random.default_rng(0))
    far = ((scores[:, None] - scores) ** 2).sum(2)
    assert found.tolist() == np.argsort(far, 1)[:, :80].tolist()
    few = _around(SimpleNamespace(scores=scores[:5], near=np.zeros((5, 1))), np.random.default_rng(0))
    assert few.tolist() == np.argsort(far[:5, :5], 1).tolist()
    any_of_them = _around(SimpleNamespace(scores=np.zeros((5, 0)), near=np.zeros((5, 1))), np.random.default_rng(3))
    assert any_of_them.tolist() == np.random.default_rng(3).integers(5, size=(5, 5)).tolist()


def test_what_a_predictor_gains_where_it_was_trained():
    given, rng = setting(), np.random.default_rng(1)
    on, own = rng.uniform(0.6, 1, (6, 25)), rng.uniform(0.05, 0.2, (6, ROWS))
    on[3:] *= 0.02  # of leave-one-out subsets less than on the inputs: no gain
    codes, marginal = given.seen["a"][:25], given.marginals["a"]
    known = codes >= 0
    gain = [
        np.mean(np.log2(on[s, known] / marginal[codes[known]])) - np.mean(np.log2(own[s] / marginal[given.own["a"]]))
        for s in range(6)
    ]
    expected = [max(np.mean(gain[:3]), 0)] * 3 + [max(np.mean(gain[3:]), 0)] * 3
    assert expected[0] > 0 == expected[3]
    assert _gap(given, "a", on, own) == pytest.approx(expected)
    impossible = _gap(given, "a", np.ones((6, 25)), np.zeros((6, ROWS)))
    floor = np.mean(np.log2(1e-12 / marginal[given.own["a"]]))
    assert impossible[0] == pytest.approx(np.mean(-np.log2(marginal[codes[known]])) - floor)
    rests = setting(subsets=~EYE)
    assert _gap(rests, "a", on[:3], own[:3]) == pytest.approx([np.mean(gain[:3])] * 3)


def test_what_further_draws_would_bring():
    """A ratio of 0.6 of the gains: 0.6/(1 − 0.6) = 1.5 of the last; ratios are taken as 0.5 to 0.65."""
    last, before = np.array([0.3, 0.3, 0.0, 0.2, 0.1, 0.1]), np.array([0.5, 0.5, 0.0, 0.1, 0.1, 0.1])
    found = _still_to_come(last, before, setting())
    low = 0.65 / 0.35  # 0.4 / 0.3 is above 0.65
    assert found.tolist() == pytest.approx(np.array([[1.5], [1.5], [0], [low], [low], [low]]))
    slow = _still_to_come(np.full(6, 0.1), np.full(6, 0.9), setting())
    assert slow.ravel().tolist() == pytest.approx([1.0] * 6)  # a ninth counts as a half
    assert _still_to_come(np.full(6, -0.1), np.full(6, 0.9), setting()).any() == np.False_
    assert _still_to_come(np.full(6, 0.1), np.zeros(6), setting()).ravel().tolist() == pytest.approx([low] * 6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mixture_of_what_predicts(weighted):
    """Put together from the cross-fitted mixtures: (1 + 8) histograms, learnt predictors of half and all, the law."""
    weights = np.linspace(0.5, 1.5, ROWS) if weighted else None
    given, rng = setting(2, weights), np.random.default_rng(3)
    base = given.marginals["a"][given.own["a"]]
    better = np.linspace(1, 1.5, 9)[[8, 5, 4, 7, 1, 0, 0, 0, 0]]
    drawn = np.clip(base * better[:, None, None, None] * rng.uniform(0.6, 1.6, (9, 6, 2, ROWS)), 0, 1)
    learnt = np.clip(base * np.array([1.6, 1.1])[:, None, None] * rng.uniform(0.7, 1.3, (2, 6, ROWS)), 0, 1)
    gap, differ = rng.random(6) * 0.1, np.array([True] + [False] * 5)
    found = _mixed(given, "a", drawn, learnt, gap, differ)
    law = np.broadcast_to(base, (6, 1, ROWS))

    def all_of(h):
        return np.concatenate([h, learnt[0][:, None], law], 1)

    mean = _mean(weights)
    stack = Stack(given.fold, weights).fit(all_of(drawn[0]))
    whole = stack.log_probabilities(all_of(drawn[0]))
    even, odd, near, far, *quarters = [stack.again(all_of(h)) for h in drawn[1:]]
    halved = (even + odd) / 2
    to_come = _still_to_come(mean(whole - halved), mean(halved - sum(quarters) / 4), given)
    added = to_come * (whole - halved)
    share = stack.weights[:, :, 2].mean(0)  # of the learnt predictor, the last but one
    lone = [stacked(np.stack([of, law[:, 0]], 1), given.fold) for of in learnt]
    rise = np.maximum(mean(lone[0] - lone[1]), 0) * share
    fitted = np.maximum(stack.optimism(all_of(drawn[0])), 0) / 2
    cost = np.maximum(mean(added), 0)
    assert (rise > 0).any()
    assert (cost > 0).any()
    assert found.pointwise == pytest.approx((whole + added + (rise + fitted)[:, None]).T)
    assert found.below == pytest.approx(cost + rise + fitted)
    nearer = np.maximum(mean(near - far) / 2, 0)
    assert (nearer > 0).any()
    assert found.above == pytest.approx((cost + fitted) / 2 + nearer + 2 * rise + gap * share)
    spread = np.log2(all_of(drawn[0]).mean(1) / base).std(1) / math.sqrt(ROWS)
    assert found.floor == pytest.approx(np.maximum(spread, math.log2(ROWS) / ROWS))
    assert found.implausible.tolist() == (differ | _refuted(given, drawn[0], lone[0], base)).tolist()


def test_predictors_refute_donors_beyond_error_and_by_a_twentieth():
    given = setting()
    base = np.full(ROWS, 0.25)
    drawn = np.full((6, 1, ROWS), 0.25)
    noise = np.tile([1.0, -1.0], ROWS // 2)
    beyond = stats.norm.isf(1e-3 / 6)
    # Histograms gain nothing: log2 p is −2. H(T) is 2 bits, of which 0.1 is a twentieth.
    learnt = -2 + np.array([0.099, 0.101, 0.101, 0.5, 0.5, 0.0])[:, None] + np.zeros(ROWS)
    error = 0.5 / beyond * math.sqrt(ROWS)
    learnt[3] += 0.99 * error * noise
    learnt[4] += 1.01 * error * noise
    assert _refuted(given, drawn, learnt, base).tolist() == [False, True, True, True, False, False]


def test_composed_inputs_that_a_classifier_tells_apart():
    beyond = stats.norm.isf(1e-3 / 4)
    rows = np.array([[0.61, 0.0], [0.6, 0.0], [0.7, 0.2 / beyond * 1.01], [0.7, 0.2 / beyond * 0.99]])
    assert _shown_apart(rows) == [0.61, 0.7]


def found_of(implausible, apparent=()):
    return _Found(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.array(implausible), apparent)


def test_warnings_and_remarks():
    assert _donor_warnings(found_of([False, False])) == []
    (warning,) = _donor_warnings(found_of([True, False, True]))
    assert warning == "donors are implausible for 2 of 3 subsets: v is an upper bound, r a lower one"
    assert _remarks(found_of([False])) == ()
    (remark,) = _remarks(found_of([False] * 4, (0.7, 0.9)))
    assert remark == "a classifier tells composed inputs from real ones in 2 of 4 subsets (80% right)"


def shares_of(codes, size):
    return np.eye(size)[codes]


def test_codes_that_differ():
    """Wald's test by hand: the mean difference against its covariance, rare codes taken together."""
    rng = np.random.default_rng(0)
    own, others = rng.integers(3, size=60), rng.integers(3, size=60)
    shifted = np.where(rng.random(60) < 0.5, 2, others)

    def wald(shares, kept):
        difference = (shares_of(own, shares.shape[1]) - shares)[:, kept]
        mean = difference.mean(0)
        statistic = mean @ np.linalg.inv(np.cov(difference.T).reshape(len(kept), -1) / 60) @ mean
        return stats.chi2.sf(statistic, len(kept))

    for codes in (others, shifted):
        shares = shares_of(codes, 3)
        apart = np.abs((shares_of(own, 3) - shares).mean(0)).sum() / 2
        p = wald(shares, [0, 1])  # the third share follows from the others
        assert _differ(shares, own, 1.01 * p) is bool(apart > 0.1)
        assert not _differ(shares, own, 0.99 * p)
    assert apart > 0.1
    four = np.append(shares_of(shifted, 4), shares_of([3], 4), 0)[1:]  # a code of one input is rare
    p = wald(four, [0, 1, 2])
    assert _differ(four, own, 1.01 * p)
    assert not _differ(four, own, 0.99 * p)
    ten, nine = np.repeat([0, 1], [55, 5]), np.repeat([0, 1], [55, 4])  # a code of ten among both kinds is common
    assert not _differ(shares_of(1 - ten, 2)[:9], ten[:9], 0.5)
    other = np.repeat([0, 1], [40, 20])
    assert _differ(shares_of(other, 2), ten, 0.5)
    assert not _differ(shares_of(nine * 0, 2), nine * 0, 0.5)  # one code alone
    never = shares_of(np.zeros(60, int), 2)  # ten inputs of a code that is never made are enough, nine are not
    assert _differ(never, np.repeat([0, 1], [50, 10]), 0.5)
    assert not _differ(never, np.repeat([0, 1], [51, 9]), 0.5)
    tenth = np.repeat([0, 1], [54, 6])
    assert not _differ(shares_of(np.repeat([0, 1], [48, 12]), 2), tenth, 0.999)  # a tenth differs, not more
    assert _differ(shares_of(np.repeat([0, 1], [47, 13]), 2), tenth, 0.999)


def test_what_the_networks_answer_tells_of_a_label(monkeypatch):
    given = setting()
    answer = np.random.default_rng(4).dirichlet(np.ones(CODES), ROWS)
    monkeypatch.setattr(imputation, "_codes", lambda network, x: {"a": answer})
    given.x, given.network = torch.zeros(ROWS, 1), SimpleNamespace(inputs=SimpleNamespace(names=("1", "2", "3")))
    nothing = Estimate(np.nan, np.nan, np.nan)
    target = Target("a", "rate", given.own["a"], given.own["a"], nothing, nothing, "", (), code=False)
    pointwise = np.log2(np.random.default_rng(5).uniform(0.1, 1.5, (ROWS, 6)))
    found = _Found(pointwise, *[np.zeros(6)] * 3, np.zeros(6, bool))
    own = given.own["a"]
    each = np.arange(ROWS)
    soft = np.sqrt(answer)
    columns = [answer[each, own], soft[each, own] / soft.sum(1)]
    columns += [np.minimum(2 ** pointwise[:, k], 1) for k in (3, 4, 5)]
    expected = stacked(np.stack([*columns, given.marginals["a"][own]])[None], given.fold)[0]
    assert _whole(given, target, found) == pytest.approx(expected)
    coded = Target("a", "rate", own, own, nothing, nothing, "")
    assert _whole(given, coded, found).tolist() == [0.0] * ROWS


class _Parity:
    """Codes of four bits: whether the first two differ."""

    def __init__(self):
        self.asked = []

    def __call__(self, x):
        self.asked.append(x.flatten(1).clone())
        bits = (x.flatten(1) > 0.5).long()
        return {"a": (bits[:, 0] ^ bits[:, 1]).numpy()}


def test_a_setting_counts_what_is_given():
    rng = np.random.default_rng(0)
    x, donors = (torch.from_numpy(rng.integers(2, size=(n, 4))).float() for n in (40, 50))
    inputs = SimpleNamespace(names=("0", "1", "2", "3"), cells=[(slice(None), slice(i, i + 1)) for i in range(4)])
    codes = _Parity()
    network = SimpleNamespace(x=x, donors=donors, same=True, inputs=inputs, codes=codes)
    values = codes(x)["a"]
    nothing = Estimate(np.nan, np.nan, np.nan)
    code = Target("a", "rate", values, values, nothing, nothing, "")
    label = Target("b", "rate", values * 2, np.array([3, 1]), nothing, nothing, "", (), code=False)
    codes.asked.clear()
    network.codes = lambda part: {**codes(part), "b": np.zeros((len(part), 3))}
    weights = np.linspace(0, 2, 40)
    made = _Setting.of(Imputation(samples=40, seed=6), network, [code, label], weights)
    assert torch.equal(torch.cat(codes.asked), donors)
    assert (made.sizes, len(made.x)) == ({"a": 2, "b": 4}, 40)
    assert made.seen["a"].tolist() == codes(donors)["a"].tolist()
    assert made.seen["b"].tolist() == [3, 1] + [-1] * 48  # labels of the first two donors are known
    assert made.weights == pytest.approx(weights / weights.mean())
    assert made.fold.tolist() == (np.random.default_rng([6, 11]).permutation(40) % 5).tolist()
    assert made.subsets.tolist() == np.concatenate([np.eye(4, dtype=bool), ~np.eye(4, dtype=bool)]).tolist()
    assert made.marginals["a"] == pytest.approx(_marginal(values, made.seen["a"], 2, made.weights))
    without = _Setting.of(Imputation(samples=40, single_feature=False), network, [code], None)
    assert without.subsets.tolist() == (~np.eye(4, dtype=bool)).tolist()
    assert without.marginals["a"] == pytest.approx(_marginal(values, without.seen["a"], 2, None))
    assert [p.tolist() for p in places(inputs.cells, (4,))] == [[0], [1], [2], [3]]


NOTHING = Estimate(np.nan, np.nan, np.nan)


def network_of(rows=40, donors=50, same=False, pieces=4):
    """Codes of four real numbers, which their first two determine, and shares of a label of three alternatives."""
    rng = np.random.default_rng(1)
    x, others = (torch.from_numpy(rng.standard_normal((n, 4))).float() for n in (rows, donors))
    runs = np.array_split(np.arange(4), pieces)
    inputs = SimpleNamespace(
        names=tuple(map(str, range(pieces))),
        cells=[(slice(None), slice(int(run[0]), int(run[-1]) + 1)) for run in runs],
        resolution="4 numbers",
    )

    def codes(part):
        shares = torch.softmax(part[:, :3], 1).numpy()
        return {"a": (2 * (part[:, 0] > 0) + (part[:, 1] > 0.3)).long().numpy(), "b": shares}

    network = Network(x, x if same else others, same, inputs, codes)
    values = codes(x)["a"]
    code = Target("a", "rate", values, codes(network.donors)["a"], Estimate(1.9, 1.8, 2.0), NOTHING, "")
    label = Target("b", "rate", values % 3, np.array([2, 1, 0]), NOTHING, NOTHING, "", (), code=False)
    return network, [code, label]


@pytest.mark.parametrize(
    ("pieces", "same", "kind", "rows"), [(4, False, "near", 40), (1, False, "near", 40), (4, True, "marginal", 12)]
)
def test_composed_inputs_are_counted_subset_by_subset(monkeypatch, pieces, same, kind, rows):
    """Six donors, or three times as many for one of four features, at most all others; 50 are composed at once."""
    network, targets = network_of(rows, pieces=pieces, same=same)
    of = Imputation(donors=6, kind=kind, components=2, seed=8, samples=rows)
    given = _Setting.of(of, network, targets, None)
    calls, shown, subsets = [], [], len(given.subsets)
    answers = {name: (f"learnt of {name}", f"gap of {name}") for name in "ab"}
    monkeypatch.setattr(imputation, "_AT_ONCE", 50)
    monkeypatch.setattr(donors_module, "_UNITS", 8)
    monkeypatch.setattr(
        imputation, "_learnt", lambda *_: [{name: answers[name][k] for name in answers} for k in (0, 1)]
    )

    def mixed(setting, name, *more):
        calls.append((name, *more))
        implausible = np.zeros(subsets, bool)
        implausible["ab".index(name)] = True
        return _Found(*[np.zeros(0)] * 4, implausible)

    monkeypatch.setattr(imputation, "_mixed", mixed)
    found = _asked(of, given, lambda *step: shown.append(step))
    assert shown == [("imputing features", s, subsets, "") for s in range(subsets)] + [
        ("imputing features", subsets, subsets)
    ]
    draw, pool = np.random.default_rng([8, 12]), Pool.of(network.donors, same)
    runs = np.array_split(np.arange(4), pieces)
    apart, differ, drawn = [], {"a": [], "b": []}, {"a": [], "b": []}
    for subset in given.subsets:
        kept = np.concatenate([run for run, own in zip(runs, subset, strict=True) if own] + [np.zeros(0, int)])
        replaced = np.setdiff1d(np.arange(4), kept)
        count = 18 if pieces == 4 and subset.sum() == 1 else 6
        count = min(count, 11) if same else count
        made = pool.complete(network.x, kept, replaced, count, kind == "near", 2, draw)
        ((_, inputs),) = made.composed(1000)
        counted = _Draws(given, made.near.numpy())
        counted.add(slice(0, rows), network.codes(inputs))
        apart.append(tell_apart(network.x, inputs.view(rows, count, 4)[:, count // 2], replaced, draw))
        around = _around(made, draw)
        for t in targets:
            own = given.own[t.name]
            drawn[t.name].append(counted.own(t.name, own, around))
            differ[t.name].append(t.code and _differ(counted.shares(t.name), own, 1e-3 / subsets))
    for name, histograms, learnt, gap, other in calls:
        assert histograms == pytest.approx(np.stack(drawn[name], 1))
        assert (learnt, gap) == answers[name]
        assert other.tolist() == [bool(d) for d in differ[name]]
    assert [call[0] for call in calls] == ["a", "b"]
    for result in found.values():
        assert result.implausible.tolist() == [True, True] + [False] * (subsets - 2)
        assert result.apparent == tuple(_shown_apart(np.array(apart)))


@pytest.mark.parametrize("picture", [False, True])
def test_what_the_predictor_learns_from(monkeypatch, picture):
    """Numbers less the donors' mean, over their deviation; of pictures over the root of the mean variance."""
    network, targets = network_of(12, 20)
    network.donors[:, 2] = 3.0  # it does not vary, and is only centred
    if picture:
        x, donors = (of.repeat(1, 4).view(-1, 1, 4, 4) for of in (network.x, network.donors))
        codes = network.codes
        network = replace(network, x=x, donors=donors, codes=lambda part: codes(part.flatten(1)[:, :4]))
        network.inputs.cells = [(slice(None), slice(None), slice(None), slice(i, i + 1)) for i in range(4)]
    of = Imputation(steps=9, seed=4, device="cpu", samples=12)
    given = _Setting.of(of, network, targets, None)
    rng, seen, shown = np.random.default_rng(0), [], []
    answer = [rng.uniform(0.1, 1, (2, 8, 7 + 12)) for _ in targets]
    monkeypatch.setattr(imputation, "_GAUGED", 7)
    monkeypatch.setattr(imputation, "learn_codes", lambda *all_of, **more: (seen.extend([all_of, more]), answer)[1])
    answers, gaps = _learnt(of, given, lambda *step: shown.append(step))
    (train, known, sizes, masks, test, wanted), more = seen
    assert more == {"steps": 9, "seed": 4, "device": torch.device("cpu")}
    donors, x = network.donors.double().numpy(), network.x.double().numpy()
    scale = donors.std(0)
    scale = np.sqrt((scale**2).mean()) if picture else np.where(scale > 0, scale, 1)
    ready = [torch.from_numpy((part - donors.mean(0)) / scale) for part in (donors, x)]
    cut = [Pieces.of(part, network.inputs.cells, torch.zeros(()), torch.ones(())).x for part in ready]
    assert train.x.numpy() == pytest.approx(cut[0].numpy(), abs=1e-5)
    assert test.x.numpy() == pytest.approx(torch.cat([cut[0][:7], cut[1]]).numpy(), abs=1e-5)
    assert torch.equal(masks, torch.from_numpy(SUBSETS_OF_FOUR).float())
    assert sizes == [given.sizes["a"], given.sizes["b"]]
    for place, name in enumerate("ab"):
        assert known[place].tolist() == given.seen[name].tolist()
        assert wanted[place].tolist() == [*given.seen[name][:7], *given.own[name]]
        half, whole = answer[place]
        assert answers[name] == pytest.approx(np.stack([whole[:, 7:], half[:, 7:]]))
        assert gaps[name] == pytest.approx(_gap(given, name, whole[:, :7], whole[:, 7:]))
    assert shown == [("learning codes", 0, 1, ""), ("learning codes", 1, 1)]


SUBSETS_OF_FOUR = np.concatenate([np.eye(4, dtype=bool), ~np.eye(4, dtype=bool)])


def test_of_the_inputs_themselves_nothing_is_learnt():
    network, targets = network_of(12, same=True)
    given = _Setting.of(Imputation(samples=12), network, targets, None)
    answers, gaps = _learnt(Imputation(), given, None)
    for name in "ab":
        assert answers[name] == pytest.approx(np.broadcast_to(given.marginals[name][given.own[name]], (2, 8, 12)))
        assert gaps[name].tolist() == [0.0] * 8
    assert _narrowed(network, 3) is network


def test_inputs_and_donors_are_cut_to_what_is_used():
    network, _ = network_of(12, 20)
    cut = _narrowed(network, 5)
    assert (torch.equal(cut.x, network.x[:5]), torch.equal(cut.donors, network.donors)) == (True, True)
    wide = replace(network, donors=torch.empty(1, 1).expand(3, 2**25))
    assert len(_narrowed(wide, 5).donors) == most_donors((2**25,)) == 2


def test_the_estimate_of_a_network(monkeypatch):
    network, targets = network_of(12, 20)
    of, results = Imputation(donors=3, steps=7, samples=12), {}
    monkeypatch.setattr(imputation, "_asked", lambda estimator, setting, progress: {"a": "A", "b": "B"})
    monkeypatch.setattr(Imputation, "_decomposed", lambda *more: results.update({more[2].name: more[4]}))
    constant = replace(targets[0], name="c", values=np.zeros(12, int))
    of.of_network("prepared", [*targets, constant], network)
    assert results == {"a": "A", "b": "B", "c": None}
    of.of_network("prepared", [constant], network)
    assert results["c"] is None
    alone = replace(network, donors=network.donors[:1])
    of.of_network("prepared", [constant], alone)  # one other sample
    for few in (replace(network, donors=network.donors[:0]), replace(alone, x=network.x[:1], same=True)):
        with pytest.raises(RobGIBError, match="needs other samples to take content from"):
            of.of_network("prepared", targets, few)
    network.inputs.cells = []
    with pytest.raises(RobGIBError, match="replaces pieces of the input, which 4 numbers are not"):
        of.of_network("prepared", targets, network)
    assert of._resolution(4) == "3 nearest donors of a rest, 9 of a feature alone; 7 steps"
    assert of._resolution(1) == "3 nearest donors of a rest; 7 steps"
    assert of._resolution(2) == "3 nearest donors of a rest, 18 of a feature alone; 7 steps"
    other = Imputation(donors=3, kind="marginal", single_feature=False)
    assert other._resolution(4) == "3 random donors of a rest; 800 steps"


@pytest.mark.parametrize("single_feature", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_terms_of_a_target(monkeypatch, single_feature, weighted):
    """Terms are log2 p̂ less that of the law; those of a counted total take its value, the rest of it beside them."""
    network, (code, label) = network_of(12, 20)
    of, seen = Imputation(samples=12, single_feature=single_feature), {}
    weights = np.linspace(0.5, 1.5, 12) if weighted else None
    given = _Setting.of(of, network, [code, label], weights)
    result = SimpleNamespace(remarks=None, bound=None, sided=None)
    monkeypatch.setattr(imputation, "decompose", lambda terms, **more: (seen.update(more, terms=terms), result)[1])
    monkeypatch.setattr(imputation, "replace", lambda one, **more: SimpleNamespace(**vars(one) | more))
    wholes = {"a": np.zeros(12), "b": -np.linspace(0.1, 1, 12)}
    monkeypatch.setattr(imputation, "_whole", lambda setting, target, learnt: wholes[target.name])
    rng, count = np.random.default_rng(0), 8 if single_feature else 4
    learnt = _Found(-rng.random((12, count)), *rng.random((3, count)), np.array([True] + [False] * (count - 1)), (0.8,))
    prepared = Prepared((network.x.numpy(),), (network.x.numpy(),), None)
    full = replace(code, total=replace(code.total, flagged=True))
    for target in (code, full, label):
        made = of._decomposed(prepared, target, given, learnt)
        base = np.log2(given.marginals[target.name][given.own[target.name]])
        expected = np.full((12, 9), np.nan)
        expected[:, 0] = wholes[target.name] - base
        expected[:, 9 - count :] = learnt.pointwise - base[:, None]
        if target is code and not weighted:
            expected[:, [0, 5, 6, 7, 8]] += 1.9 - (-base).mean()
        assert seen["pointwise"] == pytest.approx(expected, nan_ok=True)
        assert seen["terms"] == pytest.approx(expected.mean(0), nan_ok=True)
        for name in ("below", "above", "floor"):
            assert seen[name].tolist() == [0.0] * (9 - count) + getattr(learnt, name).tolist()
        counted = target is code or (target is label)
        assert (seen["problem"].counted is target.total) == counted
        assert seen["notes"] == _donor_warnings(learnt)
        assert made.remarks == _remarks(learnt)
        assert made.bound == ("lower" if target.code else "lower (usable by the network)")
        assert made.sided == ((target is code) if target.code else None)
    seen.clear()
    of._decomposed(prepared, code, given, None)
    assert seen["terms"].tolist() == [0.0] * 9
    assert seen["notes"] == ["the target takes one value only: it carries no information"]
