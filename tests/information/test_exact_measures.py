"""The measures and the counting of symbols, beside figures worked out by hand."""

import math

import numpy as np
import pytest

from robgib.information import Exact
from robgib.information.discrete import (
    adjusted_by,
    adjusted_information,
    combine,
    entropy,
    jackknife_bias,
    plug_in,
    subset_codes,
)
from robgib.information.measures import (
    average_interaction,
    bound_slack,
    complexity,
    compression,
    effective_samples,
    functionals,
    gib_objective,
    ib_objective,
    interaction_information,
    pmi_weights,
    redundancy_degree,
    vulnerability_degree,
)
from robgib.information.views import count_information, entropy_estimate

TOTAL, SINGLES, RESTS = 2.0, [0.5, 0.25, 0.125], [1.5, 1.0, 1.75]
LN2, Z95 = math.log(2), 1.959963984540054


def test_identities_by_hand():
    # II: 2 − .5 − 1.5, 2 − .25 − 1, 2 − .125 − 1.75. C: (2 + 1.25 + 1.875)/3.
    assert interaction_information(TOTAL, SINGLES, RESTS).tolist() == [0.0, 0.75, 0.125]
    assert average_interaction(TOTAL, SINGLES, RESTS) == pytest.approx(0.875 / 3)
    assert complexity(SINGLES, RESTS) == pytest.approx(5.125 / 3)
    assert bound_slack(TOTAL, SINGLES, RESTS) == pytest.approx(2 - 5.125 / 6)
    assert ib_objective(3.0, 2.0, 0.25) == 2.5
    assert gib_objective(3.0, 2.0, 0.25) == 2.75


def test_degrees_are_shares_of_the_total():
    assert redundancy_degree(TOTAL, SINGLES) == pytest.approx(0.875 / 2)
    assert vulnerability_degree(TOTAL, RESTS) == pytest.approx((0.5 + 1 + 0.25) / 2)
    # The identities of their docstrings: S/I = (v − r)/n, C/I = 1 + (r − v)/n.
    r, v = redundancy_degree(TOTAL, SINGLES), vulnerability_degree(TOTAL, RESTS)
    assert average_interaction(TOTAL, SINGLES, RESTS) / TOTAL == pytest.approx((v - r) / 3)
    assert complexity(SINGLES, RESTS) / TOTAL == pytest.approx(1 + (r - v) / 3)
    for total in (0.0, -0.1):
        assert math.isnan(redundancy_degree(total, SINGLES))
        assert math.isnan(vulnerability_degree(total, RESTS))
    assert redundancy_degree(0.5, SINGLES) == 1.75
    assert vulnerability_degree(0.5, [0.25, 0.0]) == 1.5
    assert redundancy_degree(2, [1, 0.5]) == vulnerability_degree(2, [1, 1.5]) == 0.75


def test_functionals_row_by_row():
    terms = np.array([TOTAL, *SINGLES, *RESTS])
    derived = functionals(3) @ terms
    assert derived[:7].tolist() == terms.tolist()
    assert derived[7:10].tolist() == [0.0, 0.75, 0.125]
    assert derived[10:] == pytest.approx([0.875 / 3, 5.125 / 3, 2 - 5.125 / 6])
    assert functionals(3).shape == (13, 7)


def test_compression_and_effective_samples_by_hand():
    assert compression([1.0, 4.0, 3.0]) == 0.25
    assert compression([1.0, 4.0]) == 0
    assert compression([0.5, 0.25]) == 0.5
    assert math.isnan(compression([0.0, -1.0]))
    assert effective_samples([1.0, 2.0, 3.0]) == pytest.approx(36 / 14)


def test_pmi_weights_by_hand():
    # ŷ=0: 2 samples, ŷ=1: 2; y=0: 1, y=1: 3, of 4. pmi(0,0) = log2(1.5/1), pmi(1,1) = log2(2.5/2), one is wrong.
    of_0, of_1 = math.log2(1.5), math.log2(1.25)
    mean = (of_0 + 2 * of_1) / 4
    assert pmi_weights([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx([of_0 / mean, 0, of_1 / mean, of_1 / mean])
    assert pmi_weights([[0], [0]], [1, 0]).tolist() == [1, 1]  # they tell nothing: (1.5/1.5), uniform
    assert pmi_weights([1, 0], [0, 1]).tolist() == [1, 1]  # all wrong
    # Right, and rarer than chance: max(0, log2 (1.5/(3·3/4 + .5))) = 0.
    assert pmi_weights([0, 0, 0, 1], [0, 1, 1, 0])[0] == 1


X = np.array([0, 0, 0, 1, 1, 2])
T = np.array([0, 0, 1, 1, 1, 0])
"""Counts 2, 1, 0 and 0, 2, 1 of 6."""
# Σ p log2 p/(p_x p_t): 2/6·log2(2·6/(3·3)) + 1/6·log2(1·6/(3·3)) + 2/6·log2(2·6/(2·3)) + 1/6·log2(1·6/(1·3))
PLUG_IN = math.log2(4 / 3) / 3 + math.log2(2 / 3) / 6 + 1 / 3 + 1 / 6
H_X, H_T = math.log2(6) - math.log2(3) / 2 - 1 / 3, 1.0


def test_plug_in_by_hand():
    value, pointwise, seen = plug_in(X, T)
    a, b = math.log2(4 / 3), math.log2(2 / 3)
    assert value == pytest.approx(PLUG_IN)
    assert pointwise == pytest.approx([a, a, b, 1, 1, 1])
    assert seen == (3, 2, 4)
    assert entropy(np.array([3.0, 2.0, 0.0, 1.0])) == pytest.approx(H_X)


def test_weighted_plug_in_is_that_of_repeated_samples():
    times = np.array([2, 1, 1, 3, 1, 0])
    value, pointwise, seen = plug_in(X, T, times.astype(float))
    repeated = plug_in(np.repeat(X, times), np.repeat(T, times))
    assert value == pytest.approx(repeated[0])
    assert seen == (2, 2, 3)
    assert pointwise[5] == 0
    assert np.repeat(pointwise, times) == pytest.approx(repeated[1])


def test_sparse_codes_are_counted_alike():
    wide = X * 100_000
    assert plug_in(wide, T)[0] == pytest.approx(PLUG_IN)
    assert plug_in(wide, T)[2] == plug_in(X, 2 * T)[2] == (3, 2, 4)


def test_joint_codes():
    assert combine(np.array([0, 0, 1, 1]), np.array([0, 2, 0, 2])).tolist() == [0, 1, 2, 3]
    whole, first, second, third, *rests = subset_codes([X, T, X % 2])
    assert (first is X, second is T, third.tolist()) == (True, True, (X % 2).tolist())
    pairs = [list(zip(*p, strict=True)) for p in ((T, X % 2), (X, X % 2), (X, T))]
    for code, pair in zip([*rests, whole], [*pairs, list(zip(X, T, X % 2, strict=True))], strict=True):
        assert [code[i] == code[j] for i in range(6) for j in range(6)] == [
            pair[i] == pair[j] for i in range(6) for j in range(6)
        ]


def without_each(x, t, weights=None):
    """(N − 1)(mean of the plug-in without one sample − the plug-in of all): its bias by the jackknife."""
    weights = np.ones(len(x)) if weights is None else weights
    there = np.flatnonzero(weights)
    fewer = [plug_in(*(np.delete(values, i) for values in (x, t, weights)))[0] for i in there]
    return (len(there) - 1) * (np.mean(fewer) - plug_in(x, t, weights)[0])


def test_the_jackknife_leaves_out_each_sample():
    assert jackknife_bias(X, T) == pytest.approx(without_each(X, T))
    rng = np.random.default_rng(0)
    x, t = rng.integers(7, size=60), rng.integers(4, size=60)
    assert jackknife_bias(x, t) == pytest.approx(without_each(x, t))
    assert jackknife_bias(x, t, np.full(60, 0.3)) == pytest.approx(without_each(x, t))
    weights = rng.uniform(0, 2, 60) * (rng.uniform(size=60) < 0.8)
    assert jackknife_bias(x, t, weights) == pytest.approx(without_each(x, t, weights))
    # Of two equal samples each way: H of (1, 2) less that of (2, 2), times 3.
    even = np.array([0, 0, 1, 1])
    assert jackknife_bias(even, even) == pytest.approx(3 * (math.log2(3) - 2 / 3 - 1))
    assert jackknife_bias(even, 0 * even) == 0
    assert jackknife_bias(np.array([0]), np.array([0])) == 0


def test_the_jackknife_takes_off_what_miller_and_madow_leave_of_rare_pairs():
    """Forty codes of ten classes: of a bias of 0.049 bits the one leaves 0.026, the other 0.013."""
    rng = np.random.default_rng(3)
    law = rng.dirichlet(np.full(400, 0.05))
    joint = law.reshape(40, 10)
    truth = float(np.nansum(joint * np.log2(np.where(joint > 0, joint / np.outer(joint.sum(1), joint.sum(0)), 1))))
    errors = []
    for _ in range(30):
        cells = rng.choice(400, 1000, p=law)
        x, t = np.unique(cells // 10, return_inverse=True)[1], np.unique(cells % 10, return_inverse=True)[1]
        plain, _, symbols = plug_in(x, t)
        madow = (symbols[2] - symbols[0] - symbols[1] + 1) / (2 * 1000 * LN2)
        errors.append([plain - truth, plain - madow - truth, plain - jackknife_bias(x, t) - truth])
    plain, madow, jackknife = np.mean(errors, 0)
    assert plain > madow > 1.3 * jackknife
    assert abs(jackknife) < 0.4 * plain


def test_chance_is_taken_off_as_a_share_of_what_is_left_above_it():
    # H (I − E)/(H − E) with one shuffle, both corrected by the jackknife.
    other = np.array([0, 1, 0, 1, 0, 1])
    found = adjusted_by(X, T, [other])
    # Cells of (X, other): (0,0) 2, (0,1) 1, (1,1) 1, (1,0) 1, (2,1) 1.
    chance = math.log2(4 / 3) / 3 + math.log2(2 / 3) / 6 + 0 + 0 + 1 / 6
    chance -= without_each(X, other)
    corrected = PLUG_IN - without_each(X, T)
    assert found.plain == pytest.approx(PLUG_IN)
    assert found.value == pytest.approx((corrected - chance) * H_T / (H_T - chance))
    assert found.floor == pytest.approx(math.sqrt(2 * 1 / 2) / 6 / LN2)
    deviation = np.std([math.log2(4 / 3)] * 2 + [math.log2(2 / 3)] + [1] * 3)
    assert found.error == pytest.approx(max(deviation / math.sqrt(6), found.floor))
    assert found.pointwise == pytest.approx(plug_in(X, T)[1])
    alone = adjusted_by(X, T, [])
    assert (alone.value, alone.flagged) == (pytest.approx(corrected), False)
    assert plug_in(np.arange(3), np.array([0, 0, 1]))[2] == (3, 2, 3)


def test_many_even_symbols_have_the_floor_for_an_error():
    x = np.arange(400) % 2
    found = adjusted_by(x, x, [np.arange(400) // 200])
    other = np.arange(400) // 200
    chance = 0 - without_each(x, other)
    assert found.value == pytest.approx((1 - without_each(x, x) - chance) / (1 - chance))
    assert found.error == found.floor == pytest.approx(math.sqrt(1 / 2) / 400 / LN2)
    assert not found.flagged
    assert adjusted_by(np.arange(8), np.arange(8), []).flagged  # 3 bits of log2 8
    none = adjusted_by(np.zeros(9, int), np.arange(9) % 2, [np.arange(9) % 2])
    assert (none.value, none.error, none.flagged) == (0, 0, False)


def test_where_chance_alone_is_half_of_the_ceiling_a_figure_is_marked():
    x, t = np.array([0, 0, 0, 1, 0, 0, 0, 1]), np.array([0, 1] * 4)
    # H(X) = 0.811; of the shuffled targets the first gives all of it, the second 0.311 (of 4 and 4), the third 0.
    whole, part = x, np.array([0, 0, 1, 1, 0, 0, 1, 1])
    assert plug_in(x, part)[0] == pytest.approx(0.311, abs=1e-3)
    assert adjusted_by(x, t, [whole]).flagged
    assert adjusted_by(x, t, [whole, part]).flagged
    assert not adjusted_by(x, t, [part]).flagged
    assert adjusted_by(x, t, [whole, 0 * x]).flagged  # exactly half


def test_weights_enter_the_error_as_those_of_a_ratio():
    weights = np.array([2.0, 1, 1, 1, 1, 0])
    found = adjusted_by(X, T, [], weights)
    value, pointwise, seen = plug_in(X, T, weights)
    samples = 36 / 8  # (Σw)²/Σw²
    assert found.value == pytest.approx(value - without_each(X, T, weights))
    other = np.array([0, 1, 0, 1, 0, 1])
    left = plug_in(X, other, weights)[0] - without_each(X, other, weights)
    ceiling = min(entropy(np.bincount(code, weights)) for code in (X, T))
    left_out = adjusted_by(X, T, [other], weights)
    assert left_out.value == pytest.approx((found.value - left) * ceiling / (ceiling - left))
    held = weights * (pointwise - value)
    floor = math.sqrt((seen[0] - 1) * (seen[1] - 1) / 2) / samples / LN2
    assert found.error == pytest.approx(max(held.std() / math.sqrt(samples), floor))


def test_weights_enter_the_share_of_chance():
    x, weights = np.array([0, 0, 0, 0, 1, 2] * 10 + [0] * 100), np.array([1.0] * 60 + [0.0] * 100)
    found, (value, pointwise, _) = adjusted_by(x, x, [x], weights), plug_in(x, x, weights)
    # The shuffle gives the whole ceiling by its weighted mean, and less than half by the mean of its pointwise terms.
    assert (value, pointwise.mean()) == pytest.approx((H_X_OF_FOUR, H_X_OF_FOUR * 60 / 160))
    assert found.flagged
    alone = adjusted_information(x, x, 0, np.random.default_rng(0), weights)
    assert alone.value == adjusted_by(x, x, [], weights).value != adjusted_by(x, x, []).value


H_X_OF_FOUR = math.log2(6) - 4 / 6 * 2  # of the shares 4/6, 1/6, 1/6


def test_the_floor_of_three_by_three_symbols():
    # sqrt((3 − 1)(3 − 1)/2) / (N ln 2)
    codes = np.arange(9) % 3
    assert adjusted_by(codes, np.arange(9) // 3, []).floor == pytest.approx(math.sqrt(2) / 9 / LN2)
    assert adjusted_by(codes, codes // 2, []).floor == pytest.approx(math.sqrt(2 * 1 / 2) / 9 / LN2)


def test_shuffles_are_permutations_of_the_target():
    x = np.arange(600) % 3
    t = (np.arange(600) // 3) % 2
    rng = np.random.default_rng(0)
    shuffled = [t[rng.permutation(600)] for _ in range(4)]
    found = adjusted_information(x, t, 4, np.random.default_rng(0))
    assert found.value == adjusted_by(x, t, shuffled).value
    assert abs(found.value) < 0.01


def test_entropy_and_its_interval_by_hand():
    codes = np.repeat([0, 1, 2], [10, 20, 30])
    p = np.array([1, 2, 3]) / 6
    plain = -(p * np.log2(p)).sum()
    value = plain + 2 / (2 * 60 * LN2)
    variance = ((p * np.log2(p) ** 2).sum() - plain**2) / 60
    found = entropy_estimate(codes)
    half = Z95 * math.sqrt(variance)
    assert (found.value, found.low) == pytest.approx((value, value - half))
    assert found.high == pytest.approx(min(value + half, math.log2(3)))
    assert not found.flagged


def test_the_floor_of_an_entropys_interval():
    # Of even shares the first-order variance is 0: χ² with m − 1 degrees, (m − 1)/2 / (N ln 2)² bits².
    found = entropy_estimate(np.arange(40) % 4)
    assert found.value == 2
    assert found.low == pytest.approx(2 - Z95 * math.sqrt(3 / 2) / (40 * LN2))
    assert found.high == 2
    weighted = entropy_estimate(np.arange(40) % 4, np.ones(40))
    assert (weighted.value, weighted.low) == pytest.approx((2, found.low))
    for codes, exact in ((np.zeros(5, int), False), (np.arange(4), True)):
        known = entropy_estimate(codes, exact=exact)
        assert known.low == known.value == known.high == (2 if exact else 0)


def test_as_much_as_is_corrected_of_a_counted_information_may_be_left():
    rng = np.random.default_rng(2)
    z = rng.integers(0, 4, 400)
    y = np.where(rng.random(400) < 0.7, z, rng.integers(0, 4, 400))
    found, _ = count_information(z, y, seed=3)
    known = adjusted_information(z, y, 8, np.random.default_rng([3, 7]))
    half = Z95 * math.hypot(known.error, abs(known.plain - known.value))
    assert found.value == pytest.approx(known.value)
    assert (found.value - found.low) == pytest.approx(half)


def test_exact_counts_the_weighted_law():
    """Half of the outcomes weigh nothing: what is left is a copy of the first bit, not an exclusive or."""
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = Exact().estimate([a, b], a ^ b, weights=[1, 0, 1, 0])
    assert (found.total.value, found.synergy.value, found.complexity.value) == pytest.approx((1.0, 0.0, 1.0))
    both = Exact(weights=[3, 1, 1, 1]).estimate([a, b], a ^ b, weights=[1, 0, 1, 0])  # a law of 3/4 and 1/4
    assert both.total.value == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
