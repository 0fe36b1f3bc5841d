"""The views of a layer, and what is counted in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.information import Estimate, layer_information
from robgib.information.analysis import _labels
from robgib.information.views import (
    Bins,
    Codebook,
    Dominance,
    NoisyLayer,
    count_information,
    entropy_estimate,
    mark_processing,
    mixture_information,
)


def test_entropy_and_its_interval():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(20))
    truth = float(-(p * np.log2(p)).sum())
    found = [entropy_estimate(rng.choice(20, size=500, p=p)) for _ in range(300)]
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.92
    assert abs(np.mean([e.value for e in found]) - truth) < 0.01
    assert entropy_estimate(np.zeros(50, int)).value == 0
    exact = entropy_estimate(np.arange(8), exact=True)
    assert (exact.low, exact.value, exact.high) == (3, 3, 3)
    assert entropy_estimate(np.arange(300)).flagged
    assert not entropy_estimate(np.arange(3000) % 40).flagged


def test_weighted_entropy_is_that_of_the_weighted_law():
    codes, weights = np.array([0] * 100 + [1] * 300), np.array([3.0] * 100 + [1.0] * 300)
    assert entropy_estimate(codes, weights / weights.mean()).value == pytest.approx(1, abs=0.01)


def test_counted_information_of_codes():
    rng = np.random.default_rng(1)
    y = rng.integers(10, size=4000)
    code = np.where(rng.random(4000) < 0.5, y, 10 + rng.integers(30, size=4000))
    truth = 0.5 * np.log2(10)  # half of the samples tell the class, the others nothing
    found, notes = count_information(code, y)
    assert found.low <= truth <= found.high
    assert not notes
    nothing, _ = count_information(rng.permutation(code), y)
    assert nothing.low <= 0 <= nothing.high
    few, notes = count_information(y // 2, y)  # 5 codes for 10 classes: the code's own entropy is all there is
    assert few.flagged
    assert "ceiling of the code" in notes[0]


def test_few_codes_for_many_classes_are_marked():
    rng = np.random.default_rng(2)
    z, y = rng.standard_normal((1000, 4)), rng.integers(100, size=1000)
    told = Codebook.fit(z, 4, 40).target("layer", z, z, y)
    assert any("40 symbols are few for 100 classes" in n for n in told.notes)
    with pytest.raises(RobGIBError, match="40 codes need at least as many samples"):
        Codebook.fit(z[:30], 4, 40)


@pytest.mark.parametrize("dims", [1, 2, 6])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_mixture_against_its_closed_form(dims, sigma):
    truth, values = dims / 2 * np.log2(1 + 1 / sigma**2), []
    for seed in range(10):
        rng = np.random.default_rng([seed, 3])
        values.append(mixture_information(rng.standard_normal((1500, dims)), sigma, rng).mean())
    assert np.mean(values) == pytest.approx(truth, abs=0.05 + 0.02 * truth)


def test_two_clusters_are_one_bit_and_a_point_is_none():
    rng = np.random.default_rng(4)
    far = np.repeat([[0.0, 0.0], [9.0, 9.0]], 400, axis=0)
    assert mixture_information(far, 0.2, rng).mean() == pytest.approx(1, abs=0.01)
    assert np.abs(mixture_information(np.zeros((400, 2)), 0.2, rng)).max() < 1e-9


def test_a_contraction_is_seen_in_noise_of_one_scale():
    rng = np.random.default_rng(5)
    z, y = rng.standard_normal((2000, 8)), rng.integers(2, size=2000)
    small = z * np.array([1.0] + [1e-4] * 7)
    before, after = (NoisyLayer.fit(v, 8, 0.5).target("l", v, v, y).total for v in (z, small))
    # Eight units of variance 1 in noise of variance 0.25 * 8 each; one of them in noise of variance 0.25.
    assert before.value == pytest.approx(8 / 2 * np.log2(1 + 1 / 2), abs=0.15)
    assert after.value == pytest.approx(0.5 * np.log2(1 + 4), abs=0.1)


def test_a_bijection_keeps_what_there_is_in_every_view():
    """Rotations and radius-dependent turns keep N(0, I_8), and all of its information: no compression."""
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((3000, 8)), rng.integers(2, size=3000)
    layers, z = [], x
    for _ in range(4):
        z = z @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
        for a in range(0, 8, 2):  # each pair of units turns by an angle that grows with its radius
            angle = (z[:, a] ** 2 + z[:, a + 1] ** 2)[:, None]
            turned = np.hstack([np.cos(angle) * z[:, [a]] - np.sin(angle) * z[:, [a + 1]],
                                np.sin(angle) * z[:, [a]] + np.cos(angle) * z[:, [a + 1]]])  # fmt: skip
            z = np.hstack([z[:, :a], turned, z[:, a + 2 :]])
        layers.append(z)
    for make in (lambda v: Codebook.fit(v[:1500], 8, 40), lambda v: NoisyLayer.fit(v[:1500], 8, 0.5)):
        totals = np.array([make(v).target("l", v[1500:], v[:1500], y[1500:]).total.value for v in layers])
        assert np.ptp(totals) < 0.05 * totals.mean()


def test_noise_does_not_repeat_the_stream_of_data():
    z = np.random.default_rng(0).standard_normal((500, 3))
    noisy = NoisyLayer.fit(z, 3, 0.5)(z)
    added = noisy - NoisyLayer.fit(z, 3, 0.5).projection(z)
    assert np.abs(np.corrcoef(added.T, z.T)[:3, 3:]).max() < 0.2


def test_bins_are_fixed_when_they_are_fitted():
    z = np.array([[0.0], [1.0], [2.0], [4.0]])
    bins = Bins.fit(z, 2)
    assert bins(z).tolist() == [0, 0, 1, 1]
    assert len(set(bins(z / 10).tolist())) == 1  # a smaller layer is not cut finer
    target = bins.target("l", z, z, np.array([0, 0, 0, 1]))
    assert target.total.value == 1
    assert target.label.value == pytest.approx(0.3112781244591328)


@pytest.mark.parametrize("places", [(), (2, 2)])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_a_large_unit_does_not_hide_the_others(places, size):
    """The layer tells the class whatever a unit beside it holds: its information is no less."""
    rng = np.random.default_rng(7)
    y = rng.integers(4, size=2000)
    centres = rng.standard_normal((4, 12, *places)) * 3
    z = centres[y] + rng.standard_normal((2000, 12, *places))
    large = np.concatenate([z, size * rng.standard_normal((2000, 1, *places))], 1)
    plain, mended = (Codebook.fit(v, 8, 16).target("l", v, v, y) for v in (z, large))
    assert plain.label.value > 1.8
    assert mended.label.value == pytest.approx(plain.label.value, abs=0.1)
    assert not any("holds" in n for n in plain.notes)
    assert any("unit 12 holds" in n and "scaled down" in n for n in mended.notes)
    for seen in (NoisyLayer.fit(large, 8, 0.3), Bins.fit(large, 30)):  # what they hold fixed is one scale of the layer
        told = seen.target("l", large, large, y)
        assert told.label.flagged
        assert "unit 12 holds" in told.notes[-1]


def test_units_that_differ_are_not_large():
    rng = np.random.default_rng(8)
    assert Dominance.of(rng.standard_normal((500, 64)) * rng.uniform(0.2, 3, 64)) is None
    assert Dominance.of(np.maximum(rng.standard_normal((500, 64)) - 1.5, 0)) is None
    assert Dominance.of(np.zeros((50, 4))) is None
    assert Dominance.of(rng.standard_normal((50, 1))) is None
    few = Dominance.of(rng.standard_normal((500, 60)) * np.array([100.0, 200, 300] + [1] * 57))
    assert few is not None
    assert few.units == (0, 1, 2)


def test_a_layer_that_tells_less_than_what_is_computed_from_it_is_marked():
    z, y = np.zeros((40, 1)), np.arange(40) % 4
    made = Bins.fit(z).target("a", z, z, y)
    a, b, c = (
        replace(made, name=n, label=Estimate(v, v - 0.1, v + 0.1)) for n, v in (("a", 1.0), ("b", 1.15), ("c", 1.5))
    )
    asked = []

    def functions(name, others):
        asked.append((name, others))
        return {"b", "c"}

    marked = mark_processing([a, b, c], functions)
    assert asked == [("a", ["c"]), ("b", ["c"])]  # what lies inside the intervals is not tried
    assert [t.label.flagged for t in marked] == [True, True, False]
    assert "violates the data-processing inequality: 'c' is computed from it and has 1.50 bits" in marked[0].label.note
    assert not any(t.label.flagged for t in mark_processing([a, b, c], lambda name, others: ()))
    assert mark_processing([a, replace(c, code=False)], functions)[0] is a  # the label is not computed


def test_calls_and_lost_information_in_the_table_of_layers(digits, digits_cnn):
    """A hundred dimensions of the picture's noise leave no code for the class, which the logits tell of."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.wide, self.same = digits_cnn, nn.Linear(138, 138), nn.Linear(64, 64)
            with torch.no_grad():
                for layer in (self.wide, self.same):
                    layer.weight.copy_(torch.eye(len(layer.weight)))
                    layer.bias.zero_()

        def forward(self, x):
            net = self.net
            h = net.hidden(net.pool(net.blocks(net.normalize(x))))
            z = self.wide(torch.cat([h[:, :64], 100 * x.flatten(1), 100 * x.flatten(1)[:, :10]], 1))
            return net.head(self.same(self.same(z[:, :64])))

    found = layer_information(
        Wide().eval(), digits, ["gaussian"], layers=["wide", "same", "logits"], samples=300, features="patches:2"
    ).layers
    told = found[found["term"] == "I(Z;Y)"].set_index("layer")
    assert list(told.index[:4]) == ["wide", "same[1]", "same[2]", "logits"]
    assert told["value"]["same[1]"] == told["value"]["same[2]"]
    assert told["flagged"].to_dict() | {"Ŷ": 0, "Y": 0} == {
        "wide": True, "same[1]": False, "same[2]": False, "logits": False, "Ŷ": 0, "Y": 0,
    }  # fmt: skip
    assert "violates the data-processing inequality" in told["note"]["wide"]


def test_the_predicted_label_is_no_code_at_its_ceiling():
    """It is the target itself: nothing finer is behind it, as there is behind a layer's code."""
    truth = np.arange(200) % 4
    halves = truth // 2  # determined by the label, of 1 bit out of 2
    prediction, _ = _labels("rate", [halves, halves], [truth, truth], None)
    assert not any("ceiling" in note for note in (*prediction.notes, prediction.label.note))
    assert not prediction.label.flagged
    assert prediction.label.value == pytest.approx(1.0, abs=0.05)
    code = Codebook.counted("layer", halves, halves, truth, None, "rate", "2 symbols")
    assert code.label.flagged  # of a layer the note remains
