"""The network as its own predictor, held against networks whose information is known."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from robgib import Dataset, RobGIBError, Split
from robgib.information import Imputation, layer_information


class Xor(nn.Module):
    """Its logits tell the exclusive or of the first two inputs; all else is idle."""

    def __init__(self):
        super().__init__()
        self.told = nn.Identity()

    def forward(self, x):
        odd = (x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)
        return self.told(torch.stack([1.0 - odd.float(), odd.float()], 1) + 0 * x[:, :2])


class Copy(Xor):
    """Its logits tell the first input, of which the second is a copy in the data."""

    def forward(self, x):
        one = (x[:, 0] + x[:, 1] > 1).float()
        return self.told(torch.stack([1 - one, one], 1) + 0 * x[:, :2])


def bits(count=1500, width=4, copied=False):
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(count, width)).astype(np.float32)
    if copied:
        x[:, 1] = x[:, 0]
    y = torch.from_numpy((x[:, 0] != x[:, 1]).astype(np.int64) if not copied else x[:, 0].astype(np.int64))
    part = [Split(torch.from_numpy(x[i::3]), y[i::3]) for i in range(3)]
    return Dataset("bits", *part, ("no", "yes"), {"linf": 0.1, "l2": 0.1, "l1": 0.1})


@functools.cache
def figures(network, kind, singles=False):
    """Figures of a network on its bits, which several tests look at."""
    asked = Imputation(kind=kind, donors=32, single_feature=singles, steps=200)
    found = layer_information(network(), bits(copied=network is Copy), [asked], layers=["logits"], features="pixels")
    return found.layers.query("layer == 'logits'").set_index("term"), found.features.query("layer == 'logits'")


@pytest.mark.parametrize("kind", ["near", "marginal"])
def test_an_exclusive_or_falls_with_either_input(kind):
    layers, features = figures(Xor, kind)
    assert layers.loc["I(X;Z)", "value"] == pytest.approx(1, abs=0.01)
    assert layers.loc["v(X;Z)", "value"] == pytest.approx(2, abs=0.05)  # two of four features, each destroys all
    assert layers.loc["v(X;Z)", "value"] >= 2 - 0.02  # a bound from above
    rests = features.set_index("feature")["leave_one_out"]
    assert rests[["input 0", "input 1"]].max() < 0.02
    assert rests[["input 2", "input 3"]].min() > 0.98


@pytest.mark.parametrize("kind", ["near", "marginal"])
def test_a_copy_makes_neither_input_vulnerable(kind):
    """Marginal donors are implausible here: what they leave loose, the learnt predictor bounds."""
    found, _ = figures(Copy, kind)
    assert found.loc["v(X;Z)", "value"] < 0.05
    assert found.loc["v(X;Z)", "low"] <= 0.01


def test_without_singles_what_needs_them_is_said_to_be_missing():
    layers, _ = figures(Xor, "near")
    for term in ("C(X;Z)", "S(X;Z)", "r(X;Z)", "GIB"):
        assert np.isnan(layers.loc[term, "value"])
        assert "what features alone tell was not learnt" in layers.loc[term, "note"]
    assert "not learnt" not in layers.loc["v(X;Z)", "note"]
    assert layers.loc["v(X;Z)", "low"] <= 2 <= layers.loc["v(X;Z)", "high"]  # it once had no interval


def test_singles_complete_the_terms():
    """An exclusive or of two of four bits: no feature alone tells anything, so that S is 2/4 and r is 0."""
    layers, features = figures(Xor, "near", singles=True)
    assert layers.loc["r(X;Z)", "value"] == pytest.approx(0, abs=0.05)
    assert layers.loc["S(X;Z)", "value"] == pytest.approx(0.5, abs=0.05)
    assert layers.loc["C(X;Z)", "value"] == pytest.approx(0.5, abs=0.05)
    assert features["single_feature"].max() < 0.05
    layers, features = figures(Copy, "near", singles=True)
    assert features.set_index("feature").loc[["input 0", "input 1"], "single_feature"].min() > 0.95


@pytest.mark.parametrize("certain", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_the_label_is_told_of_by_the_networks_own_answer(certain):
    """Of an exclusive or that is wrong in 11% of the samples, half a bit can be known, however sure the network is."""

    class Odds(Xor):
        def forward(self, x):
            return certain * np.log(0.89 / 0.11) * super().forward(x)

    data = bits(6000)
    flipped = [
        Split(s.x, torch.where(torch.from_numpy(np.random.default_rng(i).random(len(s.y)) < 0.11), 1 - s.y, s.y))
        for i, s in enumerate((data.train, data.val, data.test))
    ]
    data = Dataset("bits", *flipped, data.classes, data.eps)
    asked = Imputation(samples=2000, steps=200)
    found = layer_information(Odds(), data, [asked], layers=["logits"], features="pixels")
    layers = found.layers.query("layer == 'Y'").set_index("term")
    assert layers.loc["learnt I(X;Z)", "value"] == pytest.approx(0.5, abs=0.06)
    assert layers.loc["learnt I(X;Z)", "low"] < 0.5 < layers.loc["learnt I(X;Z)", "high"]
    assert layers.loc["v(X;Z)", "value"] == pytest.approx(2, abs=0.1)
    assert layers.loc["r(X;Z)", "value"] == pytest.approx(0, abs=0.1)
    assert np.isnan(layers.loc["I(X;Z)", "value"])
    assert layers.loc["v(X;Z)", "bound"] == "lower (usable by the network)"


def test_a_long_vector_is_cut_into_runs():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((400, 100))).float()
    y = (x[:, :50].sum(1) > x[:, 50:].sum(1)).long()
    parts = [Split(x[i::2], y[i::2]) for i in range(2)]
    data = Dataset("long", parts[0], parts[1], parts[1], ("no", "yes"), {"linf": 0.1, "l2": 0.1, "l1": 0.1})
    found = layer_information(nn.Linear(100, 2), data, [Imputation(donors=4, steps=20)], layers=["logits"])
    assert found.partitions == ("groups:4", "groups:16")
    assert found.features["feature"].iloc[0] == "inputs 0-24"


def test_bad_input(digits, digits_cnn):
    with pytest.raises(RobGIBError, match="runs the network itself"):
        Imputation().estimate([np.arange(50.0)], np.arange(50) % 2)
    with pytest.raises(RobGIBError, match="use patches, tokens, groups, channels or pixels"):
        layer_information(digits_cnn, digits, ["imputation"], features="pca:4", samples=100)
    with pytest.raises(RobGIBError, match="donors must be at least 1"):
        Imputation(donors=0)


def test_every_row_says_which_side_it_bounds():
    layers, _ = figures(Xor, "near", singles=True)
    told = layers["bound"].to_dict()
    assert (told["C(X;Z)"], told["r(X;Z)"]) == ("lower", "lower")
    assert (told["S(X;Z)"], told["v(X;Z)"]) == ("upper", "upper")


def test_nothing_is_not_told_to_the_last_digit():
    """r of an exclusive or is 0: its interval had a width of 0.01 and less."""
    layers, _ = figures(Xor, "near", singles=True)
    assert layers.loc["r(X;Z)", "low"] <= 0 <= layers.loc["r(X;Z)", "high"]
    assert layers.loc["r(X;Z)", "high"] > 0.02


def test_donors_that_a_predictor_refutes_are_called_implausible():
    """With marginal donors either input of a copy is replaced by anything, which the other input contradicts."""
    near, _ = figures(Copy, "near")
    assert "implausible" not in near.loc["v(X;Z)", "note"]
    anywhere, _ = figures(Copy, "marginal")
    assert "donors are implausible for 2 of 4 subsets" in anywhere.loc["v(X;Z)", "note"]


class Beside(Copy):
    """A copy, and a layer before it that has the third input alone, which any donor replaces rightly."""

    def __init__(self):
        super().__init__()
        self.third = nn.Identity()

    def forward(self, x):
        third = self.third(torch.stack([x[:, 2], 1 - x[:, 2]], 1))
        return super().forward(x) + 0 * third


def test_donors_that_one_layer_refutes_are_implausible_for_all_layers():
    """What is composed is the same for all layers: a layer that shows no difference was marked by chance only."""
    asked = Imputation(kind="marginal", donors=32, single_feature=False, steps=200)
    found = layer_information(Beside(), bits(copied=True), [asked], layers=["third", "logits"], features="pixels")
    notes = found.layers[found.layers["term"] == "v(X;Z)"].set_index("layer")["note"]
    assert "donors are implausible for 2 of 4 subsets" in notes["logits"]
    assert "donors are implausible for 2 of 4 subsets" in notes["third"]


def test_the_same_twice(digits, digits_cnn):
    one, two = (
        layer_information(
            digits_cnn, digits, ["imputation:donors=4,steps=50"], layers=["hidden"], features="patches:2", samples=60
        )
        for _ in range(2)
    )
    assert one.layers.equals(two.layers)
    assert one.features.equals(two.features)
