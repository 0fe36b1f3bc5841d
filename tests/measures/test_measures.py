"""The baselines beside figures worked out by hand, on networks whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.measures import MEASURES, Sample, list_measures, measure_model


class Linear(nn.Module):
    """Two logits, w·x and 0."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        z = x.flatten(1) @ self.w
        return torch.stack([z, torch.zeros_like(z)], 1)


@pytest.fixture
def sample():
    x = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([1.0, -1.0, 0.5, -0.5])
    return Sample(x, (x.flatten(1) @ w < 0).long(), x.flip(0))


@pytest.fixture
def model():
    return Linear([1.0, -1.0, 0.5, -0.5])


def one(name, model, sample):
    figures, failed = measure_model(model, sample, [name])
    assert not failed, failed
    return figures[name]


def test_margins_and_gradients_of_a_linear_network(model, sample):
    z = sample.x.flatten(1) @ model.w.detach()
    assert one("clean_accuracy", model, sample) == 1
    assert one("logit_margin", model, sample) == pytest.approx(float(z.abs().mean()))
    assert one("probability_margin", model, sample) == pytest.approx(float((2 * torch.sigmoid(z.abs()) - 1).mean()))
    # The margin's gradient is ±w, of L1 norm 3; the loss's is (1 − p) w, w of L2 norm √2.5.
    assert one("margin_per_gradient", model, sample) == pytest.approx(float((z.abs() / 3).median()))
    slope = torch.sigmoid(-z.abs()) * math.sqrt(2.5)
    assert one("gradient_norm", model, sample) == pytest.approx(float(slope.mean()), rel=1e-5)


class Doubled(nn.Module):
    """A block that doubles the image, as maps, and three of its pixels as logits."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
        nn.init.constant_(self.blocks[0].weight, 2.0)

    def forward(self, x):
        return self.blocks(x).flatten(1)[:, :3]


def test_figures_of_a_last_layer_of_maps_take_its_units_side_by_side(sample):
    model = Doubled()
    assert one("linear_r2_layer", model, sample) == pytest.approx(1, abs=1e-6)
    values = sample.x.flatten(1).numpy().astype(float)
    share = np.linalg.svd(values - values.mean(0), compute_uv=False)
    share = share / share.sum()
    expected = float(np.exp(-(share * np.log(share)).sum()))
    assert one("effective_rank", model, sample) == pytest.approx(expected, rel=1e-5)


def test_norms_of_weights(sample):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 4.0, 0, 0]]))
    assert one("weight_norm", model, sample) == 5
    assert one("spectral_norm", model, sample) == pytest.approx(math.log(4))


def test_a_linear_network_is_linear_and_a_constant_one_loses_nothing(model, sample):
    assert one("linear_r2", model, sample) == pytest.approx(1, abs=1e-4)
    constant = Linear([0.0] * 4)
    for name in ("patch_swap_drop", "noise_drop", "local_lipschitz", "flatness", "gradient_norm"):
        assert one(name, constant, sample) == pytest.approx(0, abs=1e-6)


def test_what_is_lost_by_a_patch_of_another_image(sample):
    """A network that looks at the first pixel alone loses only where that is swapped: a quarter of the mean."""
    model = Linear([1.0, 0.0, 0.0, 0.0])
    shifted = Sample(sample.x, torch.zeros(40, dtype=torch.long), sample.fit)

    class First(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0] - 0.5, torch.zeros(len(x))], 1)

    first = sample.x[:, 0, 0, 0]
    labels = (first < 0.5).long()
    lost = float(((first.roll(1) < 0.5).long() != labels).float().mean()) / 4
    assert one("patch_swap_drop", First(), Sample(sample.x, labels, sample.fit)) == pytest.approx(lost)
    assert one("clean_accuracy", model, shifted) == 1


def test_the_steepness_of_probabilities(sample):
    """p = σ(kz): both change by k/4 · |Δz| at most, and Δz is at most 3 of a change of 1 in each pixel."""
    for factor in (0.1, 1.0):
        w = (factor * np.array([1.0, -1.0, 0.5, -0.5])).tolist()
        found = one("local_lipschitz", Linear(w), sample)
        assert 0.6 * 2 * 3 * factor / 4 < found <= 2 * 3 * factor / 4 + 1e-4


def test_the_thickness_of_a_boundary(sample):
    """Between the classes lies the stretch on which 2σ(kz) − 1 is in (0, 0.75): of z from 0 to ln 7 / k."""
    k = 20.0
    model = Linear([k, 0.0, 0.0, 0.0])
    at = Sample(sample.x.clone(), torch.zeros(40, dtype=torch.long), sample.fit)
    at.x[:, 0, 0, 0] = 0.3
    assert one("boundary_thickness", model, at) == pytest.approx(math.log(7) / k, abs=0.04)


def test_effective_rank(sample):
    x = torch.zeros(40, 1, 2, 2)
    x[::2, 0, 0, 0] = 1.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert one("effective_rank", model, Sample(x, torch.zeros(40, dtype=torch.long), x)) == pytest.approx(1, abs=1e-3)
    assert one("effective_rank", model, sample) > 1.5


def test_a_measure_of_ones_own(model, sample, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from robgib.measures import MEASURES\n\n"
        "@MEASURES.register('classes')\n"
        "def classes(model, sample):\n    return model(sample.x).shape[1]\n\n"
        "@MEASURES.register('broken')\n"
        "def broken(model, sample):\n    raise ValueError('no')\n\n"
        "@MEASURES.register('endless')\n"
        "def endless(model, sample):\n    return float('inf')\n"
    )
    assert {"classes", "broken"} <= set(list_measures([tmp_path]))
    figures, failed = measure_model(model, sample, ["classes", "broken", "endless"], [tmp_path])
    assert figures["classes"] == 2
    assert math.isnan(figures["broken"])
    assert math.isnan(figures["endless"])
    assert failed == {"broken": "ValueError: no", "endless": "it returned inf"}
    assert "classes" not in list_measures()
    with pytest.raises(RobGIBError, match="did you mean 'gradient_norm'"):
        measure_model(model, sample, ["gradient_nrom"])


def test_a_measure_leaves_model_sample_and_generators_as_they_were(sample, tmp_path):
    (tmp_path / "careless.py").write_text(
        "import torch\n\nfrom robgib.measures import MEASURES\n\n"
        "@MEASURES.register('careless')\n"
        "def careless(model, sample):\n"
        "    for p in model.parameters():\n        p.mul_(3)\n"
        "    model.train()\n    sample.x.zero_()\n    sample.y.zero_()\n"
        "    return float(torch.rand(()))\n"
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.5))
    names = ["logit_margin", "weight_norm", "linear_r2"]
    alone, _ = measure_model(model, sample, names)
    images, labels, weights = sample.x.clone(), sample.y.clone(), [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    beside, failed = measure_model(model, sample, ["careless", *names], [tmp_path])
    assert torch.equal(torch.rand(3), expected)
    assert not failed
    assert {name: beside[name] for name in names} == alone
    assert torch.equal(sample.x, images)
    assert torch.equal(sample.y, labels)
    assert all(map(torch.equal, model.parameters(), weights))
    assert measure_model(model, sample, ["careless"], [tmp_path])[0]["careless"] == beside["careless"]


def test_each_measure_names_what_it_is():
    assert all(MEASURES[name].__doc__ for name in list_measures())


def test_clean_accuracy_is_computed_once_for_all_measures():
    passes = []

    class Counted(nn.Sequential):
        def forward(self, x):
            passes.append(len(x))
            return super().forward(x)

    model = Counted(nn.Flatten(), nn.Linear(16, 2))
    sample = Sample(torch.rand(64, 1, 4, 4), torch.zeros(64, dtype=torch.long), torch.rand(8, 1, 4, 4))
    figures, failed = measure_model(model, sample, ["clean_accuracy", "patch_swap_drop", "noise_drop"])
    assert not failed
    assert len(passes) == 1 + 4 + 1
    with torch.no_grad():
        model[1].weight.neg_()
        model[1].bias.neg_()
    again, _ = measure_model(model, sample, ["clean_accuracy"])  # of the same sample, and another network
    assert again["clean_accuracy"] == pytest.approx(1 - figures["clean_accuracy"])
