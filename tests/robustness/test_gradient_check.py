"""The gradient check: gradients that are not those of the function are seen, and ordinary networks are not."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robgib
from robgib import RobGIBError, RobGIBWarning, ThreatModel
from robgib.models.inference import prepare
from robgib.robustness.evaluate import evaluate
from robgib.robustness.failure_indicators import GRADIENT, Done, examine, failure_indicators, gradient_indicator
from robgib.robustness.gradient_check import gradient_error
from tests.unusual import Around, Noisy, OwnNoise, Quantised, Saturated, StraightThrough

THREAT = ThreatModel("linf", 0.1)


class BackboneWithoutGradient(nn.Module):
    """A backbone called under no_grad, beside a trained head: a common slip."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x):
        with torch.no_grad():
            logits = self.backbone(x)
        return logits + 0.5 * self.head(x)


class Changing(nn.Module):
    """Its output is of another kind from one call on."""

    def __init__(self, net, other, last):
        super().__init__()
        self.net, self.other, self.last, self.calls = net, other, last, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) if self.calls < self.last else self.other(self.net(x))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class BinaryActivations(nn.Module):
    """A trained layer whose activations are signs, with the usual straight-through gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, x):
        return self.head(_Sign.apply(self.first(x.flatten(1))))


class AveragedGradient(Around):
    """The gradient is averaged over squares of pixels."""

    def __init__(self, model, side):
        super().__init__(model)
        self.side = side

    def forward(self, x):
        x = x + 0
        if x.requires_grad:
            x.register_hook(lambda g: F.avg_pool2d(g, self.side, 1, self.side // 2))
        return self.model(x)


class DecoyGradient(nn.Module):
    """The gradient is that of another network."""

    def __init__(self, model, decoy):
        super().__init__()
        self.model, self.decoy = model, decoy

    def forward(self, x):
        decoy = self.decoy(x)
        return decoy + (self.model(x) - decoy).detach()


def fitted(net, data, epochs=5):
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.x)).split(128):
            optimiser.zero_grad()
            F.cross_entropy(net(data.train.x[rows]), data.train.y[rows]).backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def linear(digits):
    return fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)


@pytest.fixture(scope="module")
def falsified(digits, digits_mlp, linear):
    return {
        "a backbone without gradient": BackboneWithoutGradient(digits_mlp, linear),
        "rounding to sixteenths": StraightThrough(digits_mlp),
        "binary activations": fitted(BinaryActivations(), digits),
        "averaged over 3 × 3 pixels": AveragedGradient(digits_mlp, 3),
        "averaged over 5 × 5 pixels": AveragedGradient(digits_mlp, 5),
        "of another network": DecoyGradient(digits_mlp, linear),
    }


FALSE = (
    "a backbone without gradient", "rounding to sixteenths", "binary activations", "averaged over 3 × 3 pixels",
    "averaged over 5 × 5 pixels", "of another network",
)  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_gradient_that_is_not_the_functions_is_seen(name, falsified, digits):
    x, y = digits.test.x[:16], digits.test.y[:16]
    found = gradient_indicator(prepare(falsified[name], x), x, y)
    assert found.name == GRADIENT
    assert found.seen


def test_the_gradient_is_checked_before_any_attack(falsified, digits, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("an attack ran")

    monkeypatch.setattr(sys.modules[evaluate.__module__], "attack_all", refuse)
    x, y = digits.test.x[:16], digits.test.y[:16]
    with pytest.warns(RobGIBWarning, match="the gradient is not the function's"), pytest.raises(AssertionError):
        evaluate(falsified["a backbone without gradient"], x, y, ["fgsm-linf:eps=0.02"])


@pytest.mark.parametrize("kind", ["cnn", "linear", "tanh", "saturated", "noisy", "softmax"])
def test_an_ordinary_gradient_explains_the_differences(kind, digits, digits_mlp, linear):
    model = {
        "cnn": digits_mlp,
        "linear": linear,
        "tanh": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
        "saturated": Saturated(digits_mlp),
        "noisy": Noisy(digits_mlp),
        "softmax": nn.Sequential(digits_mlp, nn.Softmax(1)),
    }[kind]
    x, y = digits.test.x[:16], digits.test.y[:16]
    error = gradient_error(prepare(model, x), x, y)
    assert error.repeatable
    assert error.share.max() < 0.005
    assert error.explained > 0.995


def test_the_share_that_is_explained():
    """A function of two pixels, of which autograd sees one."""

    class Half(nn.Module):
        def forward(self, x):
            value = 3 * x[:, 0] + 4 * x[:, 1].detach()
            return torch.stack([value, torch.zeros_like(value)], 1)

    x, y = torch.full((16, 2), 0.5), torch.zeros(16).long()
    error = gradient_error(prepare(Half(), x), x, y)
    # The gradient's own direction is right: (9 − 9)². Over random directions, 16/(25 + 9) is expected.
    assert np.median(error.share) == pytest.approx(16 / 34, abs=0.12)
    assert error.false.all()


def test_images_at_the_edge_of_the_box_and_tied_pixels_are_no_alarm():
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 8, 3, padding=1)

        def forward(self, x):
            return F.max_pool2d(self.conv(x.clamp(0, 1)), 4).flatten(1)[:, :10]

    x, y = torch.zeros(16, 1, 8, 8), torch.zeros(16).long()
    error = gradient_error(prepare(Clipped(), x), x, y)
    assert error.false.sum() <= 1  # a kink may lie between the two points of a difference


def test_outputs_that_do_not_repeat_are_not_compared(digits, digits_mlp):
    x, y = digits.test.x[:16], digits.test.y[:16]
    error = gradient_error(prepare(OwnNoise(digits_mlp), x), x, y)
    assert not error.repeatable
    assert not error.false.any()


class InFloat32(Around):
    def forward(self, x):
        return self.model(x.to(next(self.parameters()).dtype)).float()


def test_a_model_that_does_not_compute_in_float64(digits, digits_mlp):
    x, y = digits.test.x[:16], digits.test.y[:16]
    plain, false = (
        gradient_error(prepare(InFloat32(model), x), x, y) for model in (digits_mlp, AveragedGradient(digits_mlp, 3))
    )
    assert plain.bound == false.bound == 0.1
    assert not plain.false.any()
    assert false.false.mean() > 0.9


@pytest.mark.parametrize("other", [torch.sum, lambda logits: {"logits": logits}, lambda logits: logits[0]])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_an_output_that_changes_its_kind_is_one_sentence(other, last, digits, digits_mlp):
    x, y = digits.test.x[:4], digits.test.y[:4]
    prepared = prepare(digits_mlp, x)
    prepared = replace(prepared, model=Changing(prepared.model, other, last + 2))  # two calls choose the precision
    with pytest.raises(RobGIBError, match=r"for 4 images; it must be logits of shape \(N, classes\)"):
        gradient_error(prepared, x, y)


def test_what_a_check_fools_counts_as_fooled(digits, digits_mlp):
    """The attack that ran stalls on rounded images; Square among the checks does not."""
    model, x, y = Quantised(digits_mlp), digits.test.x[:60], digits.test.y[:60]
    tables = evaluate(
        model, x, y, ["pgd-linf:eps=0.15"], signs=True, curve=False, corruptions=False, save_adversarial=True
    )
    rows = tables["robustness"].set_index("attack")
    assert rows.loc["failure-checks-linf", "robust"] < rows.loc["pgd-linf:eps=0.15", "robust"]
    assert "the checks of attack failure fooled" in rows.loc["failure-checks-linf", "note"]
    assert rows.loc["worst of 2", "robust"] == rows.loc["failure-checks-linf", "robust"]
    images = torch.from_numpy(tables["adversarial"]["failure-checks-linf/images"])
    which = tables["adversarial"]["failure-checks-linf/rows"]
    assert bool((model(images).argmax(1) != y[which]).all())
    assert bool(((images - x[which]).abs() <= 0.15 + 1e-6).all())


def test_others_that_fool_what_ascent_leaves_are_a_sign(digits, digits_mlp):
    x, y = digits.test.x[:60], digits.test.y[:60]
    left = {"apgd": np.repeat([1.0, 0.0], 30), "square": np.repeat([1.0, 0.0], [20, 40])}
    ran = {"apgd": robgib.attacks.APGD("linf", 0.1), "square": robgib.attacks.Square("linf", 0.1)}
    both = {name: (ran[name], left[name]) for name in ran}
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, attacks=both, passes=0)}
    assert found["others fool what ascent leaves"].seen  # 10 of 30
    assert "of which square fooled 10" in found["others fool what ascent leaves"].detail
    ensemble = {"apgd": both["apgd"], "fast": (robgib.make_attack("fast-linf:eps=0.1"), left["square"])}
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, attacks=ensemble, passes=0)}
    assert not found["others fool what ascent leaves"].seen  # its targeted ascent fools what untargeted ascent leaves
    assert found["others fool what ascent leaves"].detail == "skipped: Square or a boundary attack did not run"
    few = {**both, "square": (ran["square"], np.repeat([1.0, 0.0], [27, 33]))}
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, attacks=few, passes=0)}
    assert not found["others fool what ascent leaves"].seen


def test_what_another_attack_of_a_cascade_fooled_is_not_of_the_others(digits, digits_mlp):
    """The ensemble fooled 10 of the 30 images that ascent left, and Square, which ran after it, none."""
    x, y = digits.test.x[:60], digits.test.y[:60]
    attacks = {
        "apgd": (robgib.attacks.APGD("linf", 0.1), np.repeat([1.0, 0.0], 30)),
        "fast": (robgib.make_attack("fast-linf:eps=0.1"), np.repeat([1.0, 0.0], [20, 40])),
        "square": (robgib.attacks.Square("linf", 0.1), np.repeat([1.0, 0.0], [20, 40])),
    }
    ran_on = {"square": np.repeat([True, False], [20, 40])}
    for given, fooled in (({}, 10), (ran_on, 0)):
        done = Done(attacks, ran_on=given, passes=0)
        found = {one.name: one for one in examine(digits_mlp, x, y, THREAT, done).indicators}
        assert found["others fool what ascent leaves"].seen == (fooled > 0)
        assert f"of which square fooled {fooled}" in found["others fool what ascent leaves"].detail


def test_checks_that_cannot_be_afforded_say_so(digits, digits_mlp):
    x, y = digits.test.x[:30], digits.test.y[:30]
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, passes=2400)}
    assert "30 images" in found["loss does not grow"].detail
    assert "--signs runs it" in found["black box beats gradients"].detail
