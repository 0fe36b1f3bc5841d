"""The figures of a decomposition beside sums that are written out, term by term."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from robgib.information import Estimate, Exact
from robgib.information.decomposition import NO_INFORMATION, Problem, Uncertainty, _covariance, _within, decompose

NORMAL = stats.norm.ppf(0.975)
NAMES = ("total", "single_feature", "leave_one_out", "interaction", "synergy", "complexity", "slack")
BITS = np.arange(6) % 2


def problem(features=2, **more):
    return Problem(Exact().prepare([BITS] * features), BITS, BITS, **more)


def decomposed(terms, counted=None, weights=None, **errors):
    given = problem((len(terms) - 1) // 2, counted=counted, weights=weights)
    return decompose(terms, estimator=Exact(), problem=given, resolution="values", **errors)


def figures(found):
    """All linear figures in the order of :data:`NAMES`."""
    parts = (getattr(found, name) for name in NAMES)
    return list(itertools.chain.from_iterable(p if isinstance(p, tuple) else [p] for p in parts))


def combinations(n):
    """The weights of the 2n+1 terms in each linear figure, from its definition."""
    count = 2 * n + 1

    def unit(*places, sign=1.0):
        return np.array([sign * (k in places) for k in range(count)])

    singles, rests = [unit(1 + i) for i in range(n)], [unit(1 + n + i) for i in range(n)]
    each = [unit(0) - s - r for s, r in zip(singles, rests, strict=True)]
    both = sum(singles + rests) / n
    return [unit(0), *singles, *rests, *each, sum(each) / n, both, unit(0) - both / 2]


def half_width(row, terms, covariance, quantile, e, counting=0.0):
    """Half the 95% interval of Σ row·term: sampling, a shared error, the count's, and one of each kind of terms."""
    n = (len(terms) - 1) // 2
    sampled = sum(row[i] * covariance[i][j] * row[j] for i in range(len(row)) for j in range(len(row)))
    independent = sum((row[i] * e["floor"][i]) ** 2 for i in range(len(row)))
    variance = max(sampled, independent) + sum(row[i] * e["missing"][i] for i in range(len(row))) ** 2
    variance += sum(row[i] * np.broadcast_to(counting, len(row))[i] for i in range(len(row))) ** 2
    for kind in (range(1, n + 1), range(n + 1, 2 * n + 1)):
        variance += sum(row[i] * e["apart"] * abs(terms[i]) for i in kind) ** 2
    return quantile * math.sqrt(variance)


def reaches(row, e):
    down = sum(w * e["below"][i] if w > 0 else -w * e["above"][i] for i, w in enumerate(row))
    up = sum(w * e["above"][i] if w > 0 else -w * e["below"][i] for i, w in enumerate(row))
    return down, up


def errors_of(rng, count, size):
    return {
        "floor": size * rng.random(count),
        "missing": 0.02 * rng.random(count),
        "below": 0.03 * rng.random(count),
        "above": 0.04 * rng.random(count),
        "apart": 0.1,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["pointwise", "replicates"])
def test_every_figure_and_its_interval(seed, kind):
    rng = np.random.default_rng(seed)
    terms = np.array([2.0, *(0.6 + 0.3 * rng.random(3)), *(1.2 + 0.6 * rng.random(3))])
    e = errors_of(rng, 7, 0.2 if seed % 2 else 0.001)
    values = terms + 0.5 * rng.standard_normal((30, 7)) * (1 if kind == "pointwise" else 0.02)
    if kind == "pointwise":
        values += terms - values.mean(0)
        covariance, quantile = np.cov(values.T) / 30, NORMAL
    else:
        centred = values - values.mean(0)
        covariance, quantile = 29 / 30 * sum(np.outer(c, c) for c in centred), stats.t.ppf(0.975, 29)
    found = decomposed(terms, **{kind: values}, **e)
    most = 2 + half_width(combinations(3)[0], terms, covariance, quantile, e) + reaches(combinations(3)[0], e)[1]
    spans = [(-math.inf, math.inf), *[(0, most)] * 6, *[(-most, most)] * 4, (0, 2 * most), (-math.inf, math.inf)]
    for got, row, (least, greatest) in zip(figures(found), combinations(3), spans, strict=True):
        half, (down, up) = half_width(row, terms, covariance, quantile, e), reaches(row, e)
        assert got.value == pytest.approx(row @ terms)
        assert got.low == pytest.approx(max(row @ terms - half - down, least))
        assert got.high == pytest.approx(min(row @ terms + half + up, greatest))
    alone = np.array([0, 1, 1, 1, 0, 0, 0.0])
    lost = np.array([3.0, 0, 0, 0, -1, -1, -1])
    for got, top in ((found.redundancy, alone), (found.vulnerability, lost)):
        ratio = top @ terms / 2.0
        slope = [(top[i] - ratio * (i == 0)) / 2.0 for i in range(7)]
        half, (down, up) = half_width(slope, terms, covariance, quantile, e), reaches(slope, e)
        assert got.value == pytest.approx(ratio)
        assert (got.low, got.high) == (
            pytest.approx(max(ratio - half - down, 0)), pytest.approx(min(ratio + half + up, 3)),
        )  # fmt: skip
    learnt = quantile * math.sqrt(max(covariance[0, 0], e["floor"][0] ** 2) + e["missing"][0] ** 2)
    assert (found.learnt.low, found.learnt.high) == (pytest.approx(2 - learnt), pytest.approx(2 + learnt))
    if kind == "pointwise":
        assert found.pointwise.tolist() == values.tolist()


def test_covariances():
    values = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 3.0]])
    by_samples = _covariance(np.zeros(2), Uncertainty(pointwise=values))
    assert by_samples[0] == pytest.approx(np.array([[1, -0.5], [-0.5, 1]]) / 3)
    by_groups = _covariance(np.zeros(2), Uncertainty(replicates=values))
    assert by_groups[0] == pytest.approx(np.array([[2, -1], [-1, 2]]) * 2 / 3)
    assert by_groups[1] == pytest.approx(stats.t.ppf(0.975, 2))
    assert _covariance(np.zeros(2), Uncertainty()) == (pytest.approx(np.zeros((2, 2))), pytest.approx(NORMAL))


def test_terms_are_scaled_to_a_count_with_its_error():
    """1 bit is learnt and 2 ± 0.2 are counted: all is doubled, and each term gets its share of the count's error."""
    terms, counted = np.array([1.0, 0.3, 0.4, 0.6, 0.7]), Estimate(2.0, 1.8, 2.2)
    e = errors_of(np.random.default_rng(5), 5, 0.1)
    e |= {"below": np.zeros(5), "above": np.zeros(5)}
    found = decomposed(terms, counted, **e)
    scaled = {name: 2 * e[name] for name in ("floor", "missing")} | {"below": np.zeros(5), "above": np.zeros(5)}
    scaled["apart"] = math.hypot(0.1, 0.75 * (1 - 1 / 2))
    counting = 2 * terms / 2.0 * 0.2 / NORMAL
    none = np.zeros((5, 5))
    for got, row in zip(figures(found), combinations(2), strict=True):
        assert got.value == pytest.approx(row @ (2 * terms))
        half = half_width(row, 2 * terms, none, NORMAL, scaled, counting)
        if row @ (2 * terms) - half > 0 and row @ (2 * terms) + half < 2:
            assert (got.low, got.high) == (
                pytest.approx(row @ (2 * terms) - half), pytest.approx(row @ (2 * terms) + half),
            )  # fmt: skip
    ratio = 0.7
    slope = np.array([-ratio, 1, 1, 0, 0]) / 2
    half = half_width(slope, 2 * terms, none, NORMAL, scaled, counting)
    assert (found.redundancy.low, found.redundancy.high) == (pytest.approx(ratio - half), pytest.approx(ratio + half))
    by_samples = np.random.default_rng(6).standard_normal((40, 5)) * 0.1 + terms
    by_samples += terms - by_samples.mean(0)
    found = decomposed(terms, Estimate(2.0, 2.0, 2.0), pointwise=by_samples)
    assert found.total.high - 2 == pytest.approx(NORMAL * 2 * math.sqrt(np.var(by_samples[:, 0], ddof=1) / 40))
    for untouched in (decomposed(terms, Estimate(0.0, 0.0, 0.0)), decomposed(-terms, counted)):
        assert abs(untouched.total.value) == 1
    assert decomposed([1.0, 0.5, 0.5], Estimate(0.5, 0.5, 0.5)).single_feature[0].value == 0.25
    assert decomposed([0.0, 0.5, 0.5], counted).single_feature[0].value == 0.5  # of nothing there are no shares
    assert decomposed([1.0, np.nan, np.nan, 0.5, 0.6], counted).total.value == 1


def test_terms_are_moved_until_the_degrees_are_possible():
    """r = 1.2 of at most 1: its term is lowered by 0.4 of 2 bits; v = −0.1: the term is lowered by 0.2."""
    pointwise = np.tile([2.0, 2.4, 2.2], (8, 1)) + np.linspace(-0.1, 0.1, 8)[:, None]
    found = decomposed([2.0, 2.4, 2.2], pointwise=pointwise)
    assert [e.value for e in (found.total, *found.single_feature, *found.leave_one_out)] == pytest.approx([2, 2, 2])
    assert (found.redundancy.value, found.vulnerability.value) == (1, 0)
    assert found.redundancy.note.startswith("1.2 is not possible: set to 1")
    assert found.vulnerability.note.startswith("-0.1 is not possible: set to 0")
    both = "r: 1.2 is not possible: set to 1; v: -0.1 is not possible: set to 0"
    assert found.complexity.note == found.synergy.note == both
    assert found.pointwise.mean(0) == pytest.approx([2, 2, 2])
    half = NORMAL * math.sqrt(np.var(pointwise[:, 0], ddof=1) / 8)
    # Intervals reach back to where the terms were, up to what I(X;T) may be.
    assert found.single_feature[0].low == pytest.approx(2 - half)
    assert found.single_feature[0].high == pytest.approx(2 + half)
    assert found.interaction[0].value == pytest.approx(-2)
    low = decomposed([2.0, -0.4, -0.2], pointwise=np.tile([2.0, -0.4, -0.2], (8, 1)))  # r = −0.2, v = 1.1
    assert [e.value for e in (*low.single_feature, *low.leave_one_out)] == pytest.approx([0, 0])
    assert (low.single_feature[0].low, low.redundancy.value, low.vulnerability.value) == (0, 0, pytest.approx(1))
    assert low.interaction[0].high == pytest.approx(2)  # 2 bits at most
    assert low.complexity.low == pytest.approx(0)
    as_they_are = decomposed([2.0, 1.5, 1.0], pointwise=np.tile([2.0, 1.5, 1.0], (8, 1)))
    assert (as_they_are.redundancy.value, as_they_are.vulnerability.note) == (0.75, "")


def test_an_interval_reaches_to_where_a_term_was():
    """II lies at 2 − 0 − 1 = 1 with the term at 0, and at 1.4 where it was, at −0.4."""
    found = decomposed([2.0, -0.4, 1.0])
    assert found.interaction[0].value == 1
    assert (found.interaction[0].low, found.interaction[0].high) == (pytest.approx(1), pytest.approx(1.4))
    assert (found.complexity.low, found.complexity.high) == (pytest.approx(0.6), pytest.approx(1))
    down = decomposed([2.0, 2.4, 1.0])
    assert (down.interaction[0].low, down.interaction[0].high) == (pytest.approx(-1.4), pytest.approx(-1))
    assert (down.slack.low, down.slack.high) == (pytest.approx(2 - 3.4 / 2), pytest.approx(2 - 3 / 2))


def test_terms_that_are_missing():
    pointwise = np.tile([2.0, np.nan, 1.5], (8, 1)) + np.linspace(-0.1, 0.1, 8)[:, None]
    found = decomposed([2.0, np.nan, 1.5], pointwise=pointwise, absent="not learnt", notes=["few samples"])
    assert found.leave_one_out[0].value == 1.5
    assert found.leave_one_out[0].note == found.total.note == ""
    assert found.vulnerability.value == pytest.approx(0.25)
    half = NORMAL * math.sqrt(np.var(pointwise[:, 0], ddof=1) / 8)
    assert found.total.high == pytest.approx(2 + half)
    for one in (found.single_feature[0], *figures(found)[3:], found.redundancy):
        assert math.isnan(one.value)
        assert one.note == "not learnt"
    nothing = decomposed([np.nan] * 3, notes=["few samples", "ties"])
    for one in (nothing.total, nothing.single_feature[0], nothing.synergy, nothing.redundancy, nothing.vulnerability):
        assert math.isnan(one.value)
        assert one.note == "few samples; ties"
    assert decomposed([1.0, 0.5, 0.5], notes=["ties"]).total.note == ""


def test_degrees_need_information():
    for terms, floor in (([0.0, 0.1, 0.1], 0.0), ([-0.1, 0.1, 0.1], 0.0), ([0.2, 0.1, 0.1], 0.2 / NORMAL)):
        found = decomposed(terms, floor=floor)
        assert math.isnan(found.redundancy.value)
        assert found.redundancy.note == found.vulnerability.note == NO_INFORMATION
    assert decomposed([0.2, 0.1, 0.1], floor=0.19 / NORMAL).redundancy.value == pytest.approx(0.5)
    assert decomposed([0.5, -0.1, 0.1], floor=[0.01, 5.0, 0.01]).single_feature[0].value == 0
    # Without information nothing is moved, whatever the ratio is.
    assert decomposed([0.2, -0.3, 0.1], floor=0.3).single_feature[0].value == -0.3


def test_flags_go_to_every_figure_that_a_term_is_part_of():
    found = decomposed([2.0, 0.5, 0.6, 1.0, 1.1], flagged=[False, True, False, False, False])
    flags = [e.flagged for e in figures(found)]
    assert flags == [False, True, False, False, False, True, False, True, True, True]
    assert not found.redundancy.flagged
    total = decomposed([2.0, 0.5, 0.6, 1.0, 1.1], flagged=[True, False, False, False, False])
    assert [e.flagged for e in figures(total)] == [True, *[False] * 4, True, True, True, False, True]
    assert total.redundancy.flagged
    assert total.vulnerability.flagged
    assert total.learnt.flagged


def test_weighted_terms_are_means_of_weighted_values():
    rng = np.random.default_rng(7)
    pointwise = rng.random((6, 3)) + np.array([1.0, 0.5, 0.6])
    weights = np.array([2.0, 0, 1, 1, 0.5, 1.5])
    terms = pointwise.mean(0) - 0.01  # a correction, which weighted terms get too
    found = decomposed(terms, weights=weights, pointwise=pointwise, floor=[0.0, 0.0, 0.0])
    expected = (weights[:, None] * pointwise).mean(0) - 0.01
    assert [e.value for e in (found.total, *found.single_feature, *found.leave_one_out)] == pytest.approx(expected)
    own = weights * pointwise[:, 0]
    ratio = own - (weights - 1) * own.mean()  # of mean as the weighted one, with the variance of a ratio
    assert found.total.high - found.total.value == pytest.approx(NORMAL * math.sqrt(np.var(ratio, ddof=1) / 6))
    none = decomposed(terms, weights=weights)
    assert math.isnan(none.total.value)
    assert none.total.note == "the exact estimator has no pointwise terms to weigh: not estimable"


def test_no_figure_is_above_what_the_total_may_be():
    found = decomposed([0.2, 0.1, 0.1], floor=[0.05, 1.0, 1.0])
    most = 0.2 + NORMAL * 0.05
    assert (found.single_feature[0].low, found.single_feature[0].high) == (0, pytest.approx(most))
    assert (found.interaction[0].low, found.interaction[0].high) == (pytest.approx(-most), pytest.approx(most))
    assert found.complexity.high == pytest.approx(2 * most)
    assert decomposed([-0.5, 0.1, 0.1], floor=0.1).single_feature[0].high == pytest.approx(0.1 + NORMAL * 0.1)


def test_an_interval_is_cut_to_what_is_possible():
    cut = _within(Estimate(0.5, -0.1, 2.5), 0.0, 2.0)
    assert (cut.low, cut.high, cut.flagged, cut.note) == (0, 2, True, "the interval covers all possible values")
    assert _within(Estimate(0.5, 0.1, 2.5), 0.0, 2.0) == Estimate(0.5, 0.1, 2.0)
    assert _within(Estimate(0.5, -0.1, 1.5), 0.0, 2.0) == Estimate(0.5, 0.0, 1.5)
    assert _within(Estimate(0.5, -math.inf, math.inf), -math.inf, math.inf) == Estimate(0.5, -math.inf, math.inf)
    assert _within(Estimate(-0.2, -0.3, -0.1), 0.0, 2.0) == Estimate(-0.2, -0.2, -0.1)  # the value stays inside
    assert _within(Estimate(2.2, 2.1, 2.5), 0.0, 2.0) == Estimate(2.2, 2.1, 2.2)
    assert _within(Estimate(0.0, -1, 1), 0.0, 0.0) == Estimate(0.0, -1, 1)  # nothing is possible but 0
    assert math.isnan(_within(Estimate(math.nan, math.nan, math.nan), 0.0, 1.0).value)


def test_what_a_problem_says_of_itself():
    three = Exact().prepare([np.arange(5), np.zeros(5)])
    given = Problem(three, np.arange(5.0)[:, None], np.arange(5.0)[:, None])
    assert (three.samples, given.samples, len(given.features)) == (5, 5, 2)
    assert not given.discrete_target
    assert problem().discrete_target
