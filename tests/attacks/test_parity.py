"""Against torchattacks' independent implementations, on the same model and images."""

import copy
import dataclasses

import pytest
import torch

from robgib import SampleRNG, make_attack
from robgib.attacks import Objective
from robgib.attacks.base import objective_gradient

torchattacks = pytest.importorskip("torchattacks")

CASES = [
    ("fgsm-linf:eps=0.1", lambda m: torchattacks.FGSM(m, eps=0.1)),
    (
        "pgd-linf:eps=0.1,steps=10,step_size=0.02,random_start=false,keep=last",
        lambda m: torchattacks.PGD(m, eps=0.1, alpha=0.02, steps=10, random_start=False),
    ),
    (
        "pgd-l2:eps=0.5,steps=10,step_size=0.1,random_start=false,keep=last",
        lambda m: torchattacks.PGDL2(m, eps=0.5, alpha=0.1, steps=10, random_start=False),
    ),
    ("bim-linf:eps=0.1,step_size=0.01", lambda m: torchattacks.BIM(m, eps=0.1, alpha=0.01, steps=10)),
]


@pytest.mark.parametrize(("spec", "peer"), CASES, ids=[c[0].split(":")[0] for c in CASES])
@pytest.mark.parametrize("network", ["digits_cnn", pytest.param("digits_vit", marks=pytest.mark.slow)])
def test_same_adversarial_images(spec, peer, network, right_digits, request):
    # In double precision: rounding, which depends on batch and threads, grows from step to step.
    model = copy.deepcopy(request.getfixturevalue(network)).double()
    x, y = right_digits[0].double(), right_digits[1]
    # Small gradients left out: to their norms torchattacks adds 1e-10, which shortens its L2 steps.
    steep = objective_gradient(model, x, Objective.untargeted(y, "ce"))[0].flatten(1).norm(dim=1) > 1e-3
    x, y = x[steep][:40], y[steep][:40]
    attack = make_attack(spec)
    wider = dataclasses.replace(attack, eps=attack.eps * (1 + 1e-6))  # ours stay a millionth inside the ball
    ours, moved = (a.perturb(model, x, y, SampleRNG(0, range(len(x)))) for a in (attack, wider))
    # A path that meets a kink of the network parts from itself by that millionth already: it tells nothing of a peer.
    steady = (ours - moved).abs().flatten(1).amax(1) < 1e-5
    assert steady.float().mean() > 0.8
    x, y, ours = x[steady], y[steady], ours[steady]
    # One at a time: torchattacks scales gradients by the batch's mean loss, beside a constant in the L2 step.
    singly = peer(model)
    theirs = torch.cat([singly(x[[i]], y[[i]]) for i in range(len(x))])
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-6


def test_same_targeted_images(right_digits, digits_cnn):
    x, y = right_digits
    ours = make_attack("pgd-linf:eps=0.1,steps=5,step_size=0.02,random_start=false,keep=last,target=least-likely")
    peer = torchattacks.PGD(digits_cnn, eps=0.1, alpha=0.02, steps=5, random_start=False)
    peer.set_mode_targeted_least_likely(kth_min=1)
    found = ours.perturb(digits_cnn, x, y, SampleRNG(0, range(len(x))))
    assert float((found - peer(x, y)).abs().max()) <= 1e-6


def test_random_starts_agree_in_robust_accuracy(digits, digits_cnn):
    x, y = digits.test.x, digits.test.y
    ours = make_attack("pgd-linf:eps=0.1,steps=20,keep=last")
    peer = torchattacks.PGD(digits_cnn, eps=0.1, alpha=0.0125, steps=20, random_start=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = ours.perturb(digits_cnn, x, y, SampleRNG(0, range(len(x)))), peer(x, y)
    with torch.no_grad():
        robust = [float((digits_cnn(images).argmax(1) == y).float().mean()) for images in found]
    assert robust[0] == pytest.approx(robust[1], abs=0.05)
