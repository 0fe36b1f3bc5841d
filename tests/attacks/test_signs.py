"""Each sign of a failed attack on a model built to show it, and silence on an adversarially trained one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robgib import SampleRNG, ThreatModel, failure_signs
from robgib.attacks import PGD, frozen

THREAT = ThreatModel("linf", 0.1)


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


class Quantised(Wrapped):
    def forward(self, x):
        return self.model((x * 4).round() / 4)


class Noisy(Wrapped):
    def forward(self, x):
        return self.model(x + 0.05 * torch.randn_like(x))


class Saturated(Wrapped):
    def forward(self, x):
        return 1000 * self.model(x)


class Detached(Wrapped):
    """What it says comes from a branch without gradient; the gradient comes from elsewhere."""

    def forward(self, x):
        return self.model(x.detach()) + 1e-3 * x.flatten(1)[:, :10]


class Cut(Wrapped):
    def forward(self, x):
        return self.model(x.detach())


def names(model, x, y, threat=THREAT):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {s.name for s in failure_signs(model, x, y, threat) if s.seen}


@pytest.fixture(scope="module")
def trained_adversarially(digits, digits_cnn):
    """digits-cnn, trained on for some epochs on PGD's images (Madry et al. 2018)."""
    model = copy.deepcopy(digits_cnn)
    x, y = digits.train.x, digits.train.y
    attack = PGD(THREAT, steps=5, step_size=0.05, keep="last")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(12):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(128):
            with frozen(model):
                images = attack.perturb(model, x[rows], y[rows], SampleRNG(epoch, rows))
            model.train()
            optimiser.zero_grad()
            F.cross_entropy(model(images), y[rows]).backward()
            optimiser.step()
    return model.eval()


def right(model, digits):
    x, y = digits.test.x[:250], digits.test.y[:250]
    with torch.no_grad():
        keep = model(x).argmax(1) == y
    return x[keep][:100], y[keep][:100]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_silent_on_an_adversarially_trained_model(trained_adversarially, digits, norm):
    x, y = right(trained_adversarially, digits)
    assert len(x) >= 90
    found = failure_signs(trained_adversarially, x, y, ThreatModel(norm, 0.1 if norm == "linf" else 0.5))
    assert len(found) == 7
    assert not [s for s in found if s.seen]


def test_a_quantised_input_has_no_gradient(digits_cnn, digits):
    model = Quantised(digits_cnn)
    seen = names(model, *right(model, digits))
    assert {
        "zero gradients",
        "loss does not grow",
        "unbounded eps does not reach 0",
        "black box beats gradients",
    } <= seen


def test_a_noise_layer_answers_at_random(digits_cnn, digits):
    assert "random outputs" in names(Noisy(digits_cnn), *right(digits_cnn, digits))


def test_a_saturated_softmax_loses_the_gradient_and_the_margin_tells(digits_cnn, digits):
    model = Saturated(digits_cnn)
    x, y = right(model, digits)
    found = {s.name: s for s in failure_signs(model, x, y, THREAT)}
    assert found["zero gradients"].seen
    assert "the margin has one at" in found["zero gradients"].detail
    assert not found["loss does not grow"].seen  # the margin grows
    assert found["black box beats gradients"].seen


def test_a_detached_branch_leads_gradients_astray(digits_cnn, digits):
    model = Detached(digits_cnn)
    seen = names(model, *right(model, digits))
    assert "zero gradients" not in seen
    assert {"unbounded eps does not reach 0", "black box beats gradients"} <= seen


def test_no_gradient_at_all(digits_cnn, digits):
    model = Cut(digits_cnn)
    found = failure_signs(model, *right(model, digits), THREAT)
    assert [s.name for s in found] == ["zero gradients"]
    assert found[0].seen


class OnePixel(nn.Module):
    """Right while a function of the first pixel's distance from grey is above 0."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        value = self.height(x[:, 0, 0, 0] - 0.5)
        return torch.stack([value, torch.zeros_like(value)], 1)


def greys():
    return 0.5 + 1e-3 * torch.linspace(-1, 1, 100)[:, None, None, None].expand(-1, 1, 2, 2), torch.zeros(100).long()


def test_on_a_rough_surface_one_step_beats_many():
    # Ripples turn short steps round; the edge lies farther than they get and nearer than one long step goes.
    rough = OnePixel(lambda u: 1 - 30 * (u.abs() - 0.09).clamp_min(0) + 2e-3 * torch.sin(800 * u))
    assert "one step beats many" in names(rough, *greys(), ThreatModel("linf", 0.14))


def test_an_attack_that_has_not_converged():
    # A narrow gap, over which long steps jump to and fro.
    gap = OnePixel(lambda u: 10 * (u - 0.0513).abs() - 0.01)
    assert "more effort still helps" in names(gap, *greys(), ThreatModel("linf", 0.14))


def test_nothing_to_look_at(digits_cnn, digits):
    assert failure_signs(digits_cnn, digits.test.x[:0], digits.test.y[:0], THREAT) == []
