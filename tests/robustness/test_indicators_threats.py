"""Attack-failure indicators with masks, targets and surrogates: which run, on what, and which say nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import robgib
from robgib.attacks import FGSM, PGD, Square, ThreatModel, Transfer, carry
from robgib.models.inference import eval_mode, prepare
from robgib.robustness.active_test import planted_found
from robgib.robustness.failure_indicators import BOUNDARY, CHECKS, GRADIENT, UNBOUNDED, Done, examine
from robgib.robustness.gradient_check import gradient_error
from tests.robustness.test_gradient_check import BackboneWithoutGradient, fitted

COUNT = 20
LEFT = torch.zeros(COUNT, 1, 8, 8, dtype=torch.bool)
LEFT[..., :4] = True


class RightDetached(nn.Module):
    """The right half of the image has no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.cat([x[..., :4], x[..., 4:].detach()], -1))


class Watched(nn.Module):
    """Keeps the images of all calls."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, x):
        self.calls.append(torch.Tensor(x.detach()).clone())
        return self.net(x)


@pytest.fixture(scope="module")
def right(digits, digits_mlp):
    """Return images that the network labels correctly, with their labels."""
    with torch.no_grad():
        rows = (digits_mlp.eval()(digits.test.x[:60]).argmax(1) == digits.test.y[:60]).nonzero()[:COUNT, 0]
    return digits.test.x[rows], digits.test.y[rows]


def test_the_gradient_is_checked_inside_the_mask(right, digits_mlp):
    x, y = right
    prepared = prepare(RightDetached(digits_mlp), x)
    assert gradient_error(prepared, x, y).false.mean() > 0.9
    assert not gradient_error(prepared, carry(x, mask=LEFT), y).false.any()
    assert gradient_error(prepared, carry(x, mask=~LEFT), y).false.mean() > 0.9


def test_planted_images_differ_inside_the_mask_only(right, digits_mlp):
    x, _ = right
    net = Watched(digits_mlp)
    prepared = prepare(net, x)
    attacks = {"pgd": PGD("linf", 0.2, steps=10), "square": Square("linf", 0.2, queries=60)}
    net.calls.clear()
    with eval_mode(prepared.model):
        found = planted_found(prepared, carry(x[:3], mask=LEFT[:3]), ThreatModel("linf", 0.2), attacks)
    seen = torch.cat(net.calls)
    near = torch.stack([(seen[..., 4:] == one[..., 4:]).flatten(1).all(1) for one in x[:3]]).any(0)
    assert len(seen) > 3 * 256
    assert near.all()
    assert (seen[..., :4] != x[0, :, :, :4]).any()
    assert sum(found["pgd"]) >= 2


def examined(model, x, y, **attacks):
    done = Done({name: (attack, np.ones(len(y))) for name, attack in attacks.items()})
    return examine(model, x, y, ThreatModel("linf", 0.3), done)


def test_checks_change_pixels_of_the_mask_only(right, digits_mlp):
    x, y = right
    found = examined(digits_mlp, carry(x, mask=LEFT), y, pgd=PGD("linf", 0.3))
    assert found.fooled
    for row, image in found.fooled.items():
        assert torch.equal(image[..., 4:], x[row, ..., 4:])
    names = {one.name: one for one in found.indicators}
    assert tuple(names) == tuple(name for name in CHECKS if name in names)
    assert not names[UNBOUNDED].seen
    assert "does not apply: an image of which a mask holds a part may stay right" in names[UNBOUNDED].detail
    assert "does not apply" not in names[BOUNDARY].detail


def test_checks_count_targets_only(right, digits_mlp):
    """A wrong class is no success, and images that reach the target are counted."""
    x, y = right
    targets = (y + 1) % 10
    found = examined(digits_mlp, carry(x, targets=targets), y, pgd=FGSM("linf", 0.3))
    assert found.fooled
    with torch.no_grad():
        for row, image in found.fooled.items():
            assert int(digits_mlp(image[None]).argmax()) == int(targets[row])
    details = {one.name: one.detail for one in found.indicators}
    assert details[UNBOUNDED] == "does not apply: a target class may be out of reach at any eps"
    assert details[BOUNDARY] == "does not apply: FAB-T chooses its target classes itself"
    assert "of the images" in details["loss does not grow"]


def test_an_evaluation_says_which_checks_a_transfer_leaves(digits, digits_mlp):
    """The gradient that the attacks follow is the surrogate's: it is checked, and no other gradient is."""
    linear = fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)
    surrogate = BackboneWithoutGradient(digits_mlp, linear)
    options = {"signs": True, "curve": False, "corruptions": False, "estimators": [], "progress": False}
    with pytest.warns(robgib.RobGIBWarning, match="of the surrogate, autograd explains"):
        run = robgib.evaluate(
            digits_mlp, digits, attacks=["pgd-linf:eps=0.1,steps=3"], samples=30, transfer_from=surrogate, **options
        )
    signs = run.signs.set_index("name")
    assert signs.loc[GRADIENT, "seen"]
    assert list(signs.index) == list(CHECKS)
    left = signs["detail"].str.startswith("does not apply: the attacks follow the gradient of the surrogate")
    assert list(signs.index[~left]) == [GRADIENT, "random outputs", "outputs depend on the batch"]
    assert run.robustness["attack"].tolist() == ["pgd-linf:eps=0.1,steps=3"]  # no images of the model's own gradient


def test_images_of_the_checks_count_with_targets(digits, digits_mlp):
    """A weak attack leaves targets unreached; those that the checks reach are a row of their own."""
    targets = (digits.test.y.numpy() + 1) % 10
    run = robgib.evaluate(
        digits_mlp, digits, attacks={"one": PGD("linf", 0.3, steps=1, step_size=0.001)}, targets=targets, signs=True,
        samples=30, curve=False, corruptions=False, estimators=[], progress=False,
    )  # fmt: skip
    rows = run.robustness.set_index("attack")["robust"]
    assert "failure-checks" in " ".join(rows.index)
    assert rows.iloc[1] < rows.iloc[0]
    assert run.convergence.empty


def test_a_transfer_needs_no_gradient_of_the_model(digits_mlp, right):
    x, y = right
    attack = Transfer.of(PGD("linf", 0.1, steps=2), digits_mlp)
    found = examined(lambda images: digits_mlp(images).detach(), x, y, pgd=attack)
    assert not [one.name for one in found.indicators if one.seen]
