import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robgib import RobGIBError, RobGIBWarning
from robgib.information import Binned, Exact, Gaussian, Renyi
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
)
from robgib.validation.known_variables import known_distributions

# The design's table, to four places: written down apart from the code that derives it.
TABLE = {
    "xor": (1, 1, 0),
    "copy": (1, -1, 2),
    "and": (0.8113, 0.1887, 0.6226),
    "parity-2": (1, 1, 0),
    "parity-5": (1, 1, 0),
    "parity-8": (1, 1, 0),
    "concatenation": (2, 0, 2),
    "majority": (1, 0.3113, 0.6887),
    "sum": (1.8113, 0.6887, 1.1226),
    "xor-and-bit": (2, 0.6667, 1.3333),
}


@pytest.mark.parametrize("name", TABLE)
def test_known_distributions_match_the_table(name):
    known = known_distributions()[name]
    assert (known.total, known.synergy, known.complexity) == pytest.approx(TABLE[name], abs=5e-5)


@pytest.mark.parametrize("name", known_distributions())
def test_exact_on_known_distributions(name):
    known = known_distributions()[name]
    found = Exact().estimate(list(known.features.T), known.target)
    got = (found.total.value, found.synergy.value, found.complexity.value)
    assert got == pytest.approx((known.total, known.synergy, known.complexity), abs=1e-12)
    assert found.total.low == found.total.value == found.total.high


def distributions(largest_n=4):
    """Random discrete distributions: weights, features and a target with up to 3 symbols each."""

    @st.composite
    def build(draw):
        n = draw(st.integers(1, largest_n))
        rows = draw(st.integers(2, 24))
        symbols = st.lists(st.integers(0, 2), min_size=rows, max_size=rows)
        features = [np.array(draw(symbols)) for _ in range(n)]
        target = np.array(draw(symbols))
        weights = np.array(draw(st.lists(st.integers(1, 9), min_size=rows, max_size=rows)), float)
        return features, target, weights

    return build()


@settings(max_examples=50, deadline=None)
@given(distributions(), st.floats(0, 5))
def test_identities_hold_on_every_discrete_distribution(distribution, beta):
    features, target, weights = distribution
    d = Exact(weights).estimate(features, target)
    singles, rests = [e.value for e in d.single_feature], [e.value for e in d.leave_one_out]
    assert d.total.value == pytest.approx(d.complexity.value + d.synergy.value, abs=1e-10)
    assert [e.value for e in d.interaction] == pytest.approx(
        list(interaction_information(d.total.value, singles, rests)), abs=1e-10
    )
    assert d.synergy.value == pytest.approx(average_interaction(d.total.value, singles, rests), abs=1e-10)
    assert d.complexity.value == pytest.approx(complexity(singles, rests), abs=1e-10)
    assert d.slack.value == pytest.approx(bound_slack(d.total.value, singles, rests), abs=1e-10)
    # The bound: no prediction term is needed, it cancels.
    assert ib_objective(0.7, d.total.value, beta) <= gib_objective(0.7, d.complexity.value, beta) + 1e-10
    for part in (*singles, *rests):
        assert -1e-10 <= part <= d.total.value + 1e-10


@settings(max_examples=40, deadline=None)
@given(distributions(), st.randoms(use_true_random=False))
def test_relabelling_and_permuting_changes_nothing(distribution, random):
    features, target, weights = distribution
    before = Exact(weights).estimate(features, target)
    order = list(range(len(features)))
    random.shuffle(order)
    renamed = [np.array([7, -3, 40])[features[i]] for i in order]
    after = Exact(weights).estimate(renamed, np.array([5, 2, 9])[target])
    assert after.synergy.value == pytest.approx(before.synergy.value, abs=1e-10)
    assert [after.interaction[order.index(i)].value for i in range(len(order))] == pytest.approx(
        [e.value for e in before.interaction], abs=1e-10
    )


@settings(max_examples=40, deadline=None)
@given(distributions(3))
def test_duplicating_a_feature(distribution):
    features, target, weights = distribution
    before = Exact(weights).estimate(features, target)
    after = Exact(weights).estimate([*features, features[0]], target)
    own = before.single_feature[0].value
    assert after.interaction[0].value == pytest.approx(-own, abs=1e-10)
    assert after.interaction[-1].value == pytest.approx(-own, abs=1e-10)
    assert -own <= before.interaction[0].value + 1e-10
    assert [e.value for e in after.interaction[1:-1]] == pytest.approx(
        [e.value for e in before.interaction[1:]], abs=1e-10
    )


@settings(max_examples=40, deadline=None)
@given(distributions(3))
def test_an_independent_feature_changes_no_interaction(distribution):
    features, target, weights = distribution
    before = Exact(weights).estimate(features, target)
    coin = np.repeat([0, 1], len(target))
    after = Exact(np.tile(weights, 2)).estimate([*(np.tile(f, 2) for f in features), coin], np.tile(target, 2))
    assert after.interaction[-1].value == pytest.approx(0, abs=1e-10)
    assert [e.value for e in after.interaction[:-1]] == pytest.approx([e.value for e in before.interaction], abs=1e-10)


@settings(max_examples=12, deadline=None)
@given(distributions(3))
def test_exact_agrees_with_dit(distribution):
    dit = pytest.importorskip("dit")
    features, target, weights = distribution
    mass: dict[tuple[int, ...], float] = {}
    for row, weight in zip(zip(*features, target, strict=True), weights / weights.sum(), strict=True):
        key = tuple(int(v) for v in row)
        mass[key] = mass.get(key, 0.0) + weight
    joint = dit.Distribution(list(mass), list(mass.values()))
    n = len(features)
    found = Exact(weights).estimate(features, target)
    information = dit.shannon.mutual_information
    assert found.total.value == pytest.approx(information(joint, list(range(n)), [n]), abs=1e-9)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        assert found.single_feature[i].value == pytest.approx(information(joint, [i], [n]), abs=1e-9)
        expected = information(joint, rest, [n]) if rest else 0.0
        assert found.leave_one_out[i].value == pytest.approx(expected, abs=1e-9)


def test_functionals_are_the_identities():
    rng = np.random.default_rng(0)
    terms = rng.random(7)
    rows = functionals(3) @ terms
    assert rows[:7] == pytest.approx(terms)
    assert rows[7:10] == pytest.approx(interaction_information(terms[0], terms[1:4], terms[4:]))
    assert rows[10:] == pytest.approx(
        [
            average_interaction(terms[0], terms[1:4], terms[4:]),
            complexity(terms[1:4], terms[4:]),
            bound_slack(terms[0], terms[1:4], terms[4:]),
        ]
    )


def test_compression():
    assert compression([1, 4, 3, 1]) == pytest.approx(0.75)
    assert compression([1, 2, 3]) == 0
    assert np.isnan(compression([0, 0]))


class TestWeights:
    def classifier_right_on_half_of_the_classes(self, samples, rng):
        """Four classes; 0 and 1 are told apart surely, 2 and 3 are answered at random among each other."""
        y = rng.integers(4, size=samples)
        y_hat = np.where(y < 2, y, rng.integers(2, 4, size=samples))
        return y_hat, y

    def test_pmi_weights(self):
        rng = np.random.default_rng(0)
        y_hat, y = self.classifier_right_on_half_of_the_classes(20_000, rng)
        weights = pmi_weights(y_hat, y)
        assert weights.mean() == pytest.approx(1)
        # pmi is 2 bits on the classes that it knows and 1 bit on the two that it only tells from the rest, of which it
        # guesses half right.
        assert weights[y < 2].mean() / weights[y >= 2].mean() == pytest.approx(4, rel=0.05)
        assert (weights[y_hat != y] == 0).all()
        assert effective_samples(weights) == pytest.approx(20_000 * 1.25**2 / (0.5 * 4 + 0.25), rel=0.02)

    def test_a_rare_pair_does_not_weigh_without_bound(self):
        y = np.concatenate([np.arange(2).repeat(5000), [2]])
        weights = pmi_weights(y, y)
        assert weights[-1] == pytest.approx(weights[0] * np.log2(3), rel=0.01)  # ½ smooths log2(10,001) bits down

    def test_a_prediction_that_speaks_against_the_label_counts_nothing(self):
        y = np.array([0] * 50 + [1] * 50)
        y_hat = y.copy()
        y_hat[:5] = 1
        weights = pmi_weights(y_hat, y)
        assert (weights[:5] == 0).all()
        assert (weights[5:] > 0).all()

    def test_useless_predictions_weigh_all_alike(self):
        assert (pmi_weights(np.zeros(6), np.array([0, 1, 2] * 2)) == 1).all()

    @pytest.mark.parametrize("estimator", [Binned(), Gaussian()])
    def test_weighted_information_counts_where_the_prediction_tells(self, estimator):
        """One feature tells classes 0 and 1 apart, another 2 and 3: weighting prefers the first."""
        rng = np.random.default_rng(1)
        y_hat, y = self.classifier_right_on_half_of_the_classes(6000, rng)
        known, other = np.where(y < 2, y, 0), np.where(y < 2, 0, y)
        if isinstance(estimator, Gaussian):
            known, other = (v + 0.3 * rng.standard_normal(6000) for v in (known, other))
        plain = estimator.estimate([known, other], y)
        weighted = estimator.estimate([known, other], y, weights=pmi_weights(y_hat, y))
        assert weighted.single_feature[0].value > plain.single_feature[0].value + 0.02
        assert weighted.single_feature[1].value < plain.single_feature[1].value - 0.02
        assert weighted.total.value == pytest.approx(weighted.complexity.value + weighted.synergy.value)

    @pytest.mark.parametrize("estimator", [Binned(), Gaussian()])
    @pytest.mark.parametrize("real", [False, True])
    def test_equal_weights_change_nothing(self, estimator, real):
        rng = np.random.default_rng(2)
        x = rng.standard_normal((800, 2))
        target = x.sum(1) + rng.standard_normal(800)
        target = target if real else (target > 0).astype(int)
        plain = estimator.estimate(list(x.T), target)
        weighted = estimator.estimate(list(x.T), target, weights=np.full(800, 3.0))
        assert [e.value for e in weighted.leave_one_out] == pytest.approx(
            [e.value for e in plain.leave_one_out], abs=1e-9
        )
        assert weighted.synergy.value == pytest.approx(plain.synergy.value, abs=1e-9)

    def test_what_cannot_be_weighed_says_so(self):
        found = Renyi().estimate([np.arange(60.0) % 4], np.arange(60) % 4, weights=np.ones(60))
        assert np.isnan(found.total.value)
        assert "no pointwise terms" in found.total.note

    def test_weights_of_outcomes_are_their_law(self):
        found = Exact().estimate([np.arange(4)], np.arange(4), weights=np.array([2.0, 1.0, 1.0, 0.0]))
        assert found.total.value == 1.5

    @pytest.mark.parametrize("bad", [[1.0], [-1.0] * 20, [0.0] * 20, [np.nan] * 20])
    def test_bad_weights(self, bad):
        with pytest.raises(RobGIBError, match="weights must be 20 finite numbers"):
            Binned().estimate([np.arange(20)], np.arange(20), weights=bad)


def test_outside_its_regime_an_estimator_warns_and_says_so():
    with pytest.warns(RobGIBWarning, match="gaussian estimator is outside its regime: 1 features are discrete"):
        found = Gaussian().estimate([np.arange(60) % 2], np.random.default_rng(0).standard_normal(60))
    assert any(note.startswith("outside its regime") for note in found.notes)
