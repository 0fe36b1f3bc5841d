"""Ascent on estimated gradients: the estimate against autograd, and a network whose own gradient misleads."""

import pytest
import torch
from torch import nn

from robgib.attacks import APGD, EstimatedAscent, SampleRNG, check_attack
from robgib.attacks.estimated import _Estimated
from robgib.attacks.objective import Objective
from robgib.models.inference import count_queries
from tests.robustness.test_gradient_check import DecoyGradient


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_contract(norm):
    attack = EstimatedAscent(norm, 0.2, steps=3, directions=4, targets=1)
    assert [check for check in check_attack(attack) if not check.passed] == []


def test_as_many_directions_as_pixels_give_the_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = 0.3 + 0.4 * torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    goal = Objective.untargeted(y, "ce")

    def gradient(model):
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(goal.value(model(leaf)).sum(), leaf)[0]

    truth = gradient(net)
    assert torch.allclose(gradient(_Estimated(net, 16, 1e-2)), truth, atol=1e-4)
    assert torch.allclose(gradient(_Estimated(net, 100, 1e-2)), truth, atol=1e-4)
    # Fewer give its part in their span: it has an acute angle with the gradient, and is shorter.
    part = gradient(_Estimated(net, 8, 1e-2))
    assert torch.allclose((part * truth).sum((1, 2, 3)), (part**2).sum((1, 2, 3)), atol=1e-4)
    assert bool(((part**2).sum((1, 2, 3)) < (truth**2).sum((1, 2, 3))).all())


def test_no_point_of_a_difference_leaves_the_box():
    class Watched(nn.Module):
        def forward(self, x):
            assert float(x.min()) >= 0
            assert float(x.max()) <= 1
            return x.flatten(1)[:, :3]

    x = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]).requires_grad_(True)
    torch.autograd.grad(_Estimated(Watched(), 4, 0.5)(x).sum(), x)


def test_a_gradient_of_another_network_does_not_mislead_it(digits_cnn, right_digits):
    x, y = (v[:12] for v in right_digits)
    torch.manual_seed(0)
    net = DecoyGradient(digits_cnn, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).eval()
    honest = digits_cnn(APGD("linf", 0.1, steps=25)(digits_cnn, x, y)).argmax(1) == y
    misled = net(APGD("linf", 0.1, steps=25)(net, x, y)).argmax(1) == y
    with count_queries(net) as passes:
        images = EstimatedAscent("linf", 0.1, targets=1)(net, x, y)
    left = net(images).argmax(1) == y
    assert passes.backward == 0
    assert passes.forward <= 3 * EstimatedAscent("linf", 0.1, targets=1).cost * len(x) + 10 * len(x)
    assert int(misled.sum()) >= int(left.sum()) + 4
    assert int(left.sum()) <= int(honest.sum()) + 1


def test_a_sample_gives_the_same_in_any_company(digits_cnn, right_digits):
    x, y = (v[:8] for v in right_digits)
    attack = EstimatedAscent("linf", 0.04, steps=4, directions=16, targets=2)
    together = attack.perturb(digits_cnn, x, y, SampleRNG(0, range(8)))
    alone = attack.perturb(digits_cnn, x[3:4], y[3:4], SampleRNG(0, [3]))
    assert torch.allclose(together[3:4], alone, atol=1e-5)
