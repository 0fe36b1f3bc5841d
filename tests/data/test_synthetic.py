"""Functions of twelve inputs: that their information is what they say, and that it can be counted in a network."""

import numpy as np
import pytest
import torch

from robgib import RobGIBError, evaluate
from robgib.data.loaders import load_data
from robgib.data.synthetic import INPUTS, function, patterns
from robgib.information import Exact, make_estimator
from robgib.models import build
from robgib.training.config import Training
from robgib.training.loop import train
from robgib.validation import true_information


@pytest.mark.parametrize("k", [2, 3, 7, 12])
def test_parity_is_all_synergy_of_its_inputs(k):
    assert true_information(function(f"parity-{k}")) == pytest.approx((1.0, k / INPUTS), abs=1e-9)
    assert true_information(function(f"real-parity-{k}")) == (1.0, k / INPUTS)


@pytest.mark.parametrize(
    ("name", "total", "of_used", "used"),
    [
        ("parity-1", 1.0, 0.0, 1),
        ("majority-3", 1.0, 0.3113, 3),
        ("and-2", 0.8113, 0.1887, 2),
        ("sum-3", 1.8113, 0.6887, 3),
    ],
)
def test_known_answers_with_distractors(name, total, of_used, used):
    # A distractor adds nothing: only the inputs used have interaction information.
    information, synergy = true_information(function(name))
    assert information == pytest.approx(total, abs=1e-4)
    assert synergy == pytest.approx(of_used * used / INPUTS, abs=1e-4)


def test_random_functions_have_every_degree_of_synergy():
    found = [true_information(function(f"random-{k}")) for k in range(40)]
    synergy = np.array([s / i for i, s in found])
    assert synergy.min() < 0.05
    assert synergy.max() > 0.4
    assert np.quantile(synergy, 0.75) - np.quantile(synergy, 0.25) > 0.1
    assert min(i for i, _ in found) > 0.85  # about as many patterns have one label as the other
    data = load_data("function:random-3")
    assert (len(data.train), len(data.val), len(data.test)) == (512, 3584, 4096)
    assert load_data("function:random-3").digest == data.digest != load_data("function:random-4").digest


@pytest.mark.parametrize("name", ["real-sum", "real-max-2", "real-max-4", "real-parity-2"])
def test_closed_forms_of_real_functions(name):
    """Each term by integration over a fine grid of the conditional probabilities that the definition gives."""
    chosen = function(name)
    used = 2 if name in ("real-sum", "real-parity-2") else int(name[-1])
    side = {2: 2000, 4: 40}[used]
    # Cell middles; for real-max the edge lies on no cell border, so that the error falls with the side.
    axis = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(*[axis] * used, indexing="ij"), -1).reshape(-1, used)
    x = np.full((len(grid), INPUTS), 0.5)
    x[:, :used] = grid
    y = chosen.label(x).reshape([side] * used).astype(float)

    def h(p):
        p = np.clip(p, 1e-300, 1 - 1e-16)
        return float(np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p)))

    whole = h(y.mean())
    interactions = []
    for i in range(used):
        others = tuple(j for j in range(used) if j != i)
        interactions.append(whole - (whole - h(y.mean(axis=others))) - (whole - h(y.mean(axis=i))))
    information, synergy = true_information(chosen)
    assert information == pytest.approx(whole, abs=0.02)
    assert synergy == pytest.approx(sum(interactions) / INPUTS, abs=0.005)


def test_the_sphere_does_not_change_when_it_is_turned():
    from robgib.data.synthetic import _icosahedron

    points = _icosahedron()
    cosine = points @ points.T
    assert np.allclose((points**2).sum(1), 1)
    assert sorted(np.round(cosine[0], 4)) == sorted([1, -1, *[0.4472] * 5, *[-0.4472] * 5])
    chosen = function("sphere")
    x = patterns()
    y = chosen.label(x)
    assert abs(y.mean() - 0.5) < 0.01
    for axes in ([1, 2, 0], [2, 0, 1], [0, 1, 2]):  # turns and mirrors that map the icosahedron on itself
        for signs in ([1, 1, 1], [-1, 1, 1], [-1, -1, -1]):
            moved = points[:, axes] * signs
            order = np.abs(moved[:, None] - points[None]).sum(2).argmin(1)
            assert sorted(order) == list(range(12))
            assert (chosen.label(x[:, order]) == y).all()


def test_multiplexer():
    chosen = function("multiplexer")
    x = np.zeros((4, 12), int)
    x[:, :6] = [[0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]]
    assert chosen.label(x).tolist() == [1, 0, 1, 1]


def test_data_sets_of_functions():
    bits = load_data("function:parity-3")
    assert bits.enumerated
    assert len(bits.test) == 4096
    assert len(torch.unique(bits.test.x, dim=0)) == 4096
    assert len(bits.train) + len(bits.val) == 4096
    assert len(torch.unique(torch.cat([bits.train.x, bits.val.x]), dim=0)) == 4096
    real = load_data("function:real-sum", seed=1)
    assert not real.enumerated
    assert (len(real.train), len(real.val), len(real.test)) == (8192, 1024, 4096)
    assert len(load_data("function:sum-3").classes) == 4
    assert load_data("function:real-sum", seed=1).digest == real.digest != load_data("function:real-sum").digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function:parity-13", "from 1 to 12, as in parity-3"),
        ("function:majority-4", "odd, as in majority-3"),
        ("function:real-max-1", "from 2 to 12"),
        ("function:sfere", "did you mean 'sphere'"),
        ("function:", "unknown function"),
    ],
)
def test_unknown_functions(name, message):
    with pytest.raises(RobGIBError, match=message):
        load_data(name)


class TestCountedInANetwork:
    @pytest.fixture(scope="class")
    @staticmethod
    def run():
        data = load_data("function:parity-3")
        make = lambda: build("mlp", data.shape, 2, {"hidden": [8, 4], "activation": "tanh"})  # noqa: E731
        model, result = train(make, data, Training(epochs=40, batch_size=128, learning_rate=0.02))
        assert result["val_accuracy"] > 0.99
        options = {"attacks": [], "estimators": ["exact"], "signs": False}
        return model, data, evaluate(model, data, **options)

    def test_identities_hold_to_rounding(self, run):
        _, _, found = run
        layers = found.layers.query("depth >= 0").pivot_table(index="layer", columns="term", values="value")
        assert (layers["I(X;Z)"] - layers["C(X;Z)"] - layers["S(X;Z)"]).abs().max() < 1e-9
        assert (layers["IB"] <= layers["GIB"] + 1e-9).all()
        assert (layers["I(X;Z)"] <= 12 + 1e-9).all()
        assert (layers["I(Z;Y)"] <= 1 + 1e-9).all()
        assert layers.loc["logits", "I(Z;Y)"] == pytest.approx(1, abs=0.05)
        held = found.layers[found.layers["value"].notna()]
        assert (held["low"] == held["high"]).all()
        assert (held["view"] == "exact").all()

    def test_the_input_information_is_the_entropy_of_the_bins(self, run):
        model, data, found = run
        with torch.no_grad():
            z = model(data.test.x).double().numpy()
        cut = np.minimum((z - z.min()) / (z.max() - z.min()) * 30, 29).astype(int)
        _, counts = np.unique(cut, axis=0, return_counts=True)
        p = counts / counts.sum()
        told = found.layers.query("layer == 'logits' and term == 'I(X;Z)'")
        assert told["value"].item() == pytest.approx(float(-(p * np.log2(p)).sum()), abs=1e-9)
        assert "12 inputs that vary; every input, units in 30 bins" in told["resolution"].item()

    def test_only_where_every_input_is_listed(self, run, digits):
        model, data, _ = run
        options = {"attacks": [], "estimators": ["exact"]}
        with pytest.raises(RobGIBError, match="choose another estimator for 'digits'"):
            evaluate(build("mlp", digits.shape, 10), digits, **options)
        with pytest.raises(RobGIBError, match="at least 4096 information samples"):
            evaluate(model, data, information_samples=1000, **options)

    def test_bins(self):
        rng = np.random.default_rng(0)
        z = rng.random(2000)
        coarse, fine = (Exact(bins=b).estimate([z], z).total.value for b in (4, 64))
        assert coarse == pytest.approx(2, abs=0.02)
        assert fine == pytest.approx(6, abs=0.05)
        with pytest.raises(RobGIBError, match="bins must be at least 2, not 1"):
            make_estimator("exact:bins=1").estimate([z], z)
