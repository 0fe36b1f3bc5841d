"""Searches of one sample towards several classes run in one batch, with the results of one after another."""

import copy

import pytest
import torch
from torch import nn

from robgib.attacks import APGD, FAB, AutoAttack, FastEnsemble, carry
from robgib.models.inference import BatchedModel, count_queries
from robgib.robustness.run_attack import run_attack
from robgib.runtime import SampleRNG

ATTACKS = [
    APGD("linf", 0.06, steps=20, loss="dlr", targets=9),
    APGD("l2", 0.4, steps=20, loss="margin", targets=3, restarts=2),
    APGD("linf", 0.06, steps=20, restarts=4),
    APGD("l1", 2.0, steps=20, targets=2),
    APGD("linf", 0.06, steps=20, targets=2, schedule_start=4.0),
    FAB("linf", 0.06, steps=20, targeted=True),
    FAB("l2", 0.4, steps=20, targeted=True, restarts=2, targets=3),
    AutoAttack("linf", 0.06, steps=20, queries=50),
    FastEnsemble("linf", 0.06),
]


def found(attack, net, x, y, batch):
    """The images (N, …) that an attack finds where so many fit into a batch of the network."""
    model = BatchedModel(net, batch)
    return attack.perturb(model, x, y, SampleRNG(0, range(len(x))))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{type(a).__name__}-{a.norm}")
def test_the_same_samples_are_fooled(attack, digits, digits_mlp):
    """And those that remain have the same images, up to the rounding of another batch."""
    net = copy.deepcopy(digits_mlp).double()
    x, y = digits.test.x[:12].double(), digits.test.y[:12]
    together, alone = (found(attack, net, x, y, batch) for batch in (256, 12))
    with torch.no_grad():
        right = [net(images).argmax(1) == y for images in (together, alone)]
    assert torch.equal(*right)
    assert 0 < int(right[0].sum()) < 12 or attack.norm == "l1"
    if not isinstance(attack, FastEnsemble):
        assert torch.allclose(together[right[0]], alone[right[0]], atol=1e-9)


def test_a_batch_holds_as_many_searches_as_fit(digits_mlp, digits):
    """Twelve samples that are never fooled, nine classes: 20 steps and one look in place of nine times as many."""
    x, y = digits.test.x[:12], digits.test.y[:12]
    attack = APGD("linf", 1e-6, steps=20, loss="dlr", targets=9)
    sizes = []
    with count_queries(digits_mlp) as passes:
        hook = digits_mlp.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
        found(attack, digits_mlp, x, y, 60)  # five classes, and then four
        hook.remove()
    right = int((digits_mlp(x).argmax(1) == y).sum())
    assert sizes == [12, *[5 * right] * 21, *[4 * right] * 21]
    assert passes.forward == sum(sizes)


def test_a_fooled_sample_ends_all_its_searches():
    """Towards the first class every step fools; the other classes are out of reach, and their searches end too."""

    class Steep(nn.Module):
        def forward(self, x):
            level = x.flatten(1).mean(1)
            return torch.stack([torch.full_like(level, 1.0), 2 * level + 0.1, -level, -2 * level], 1)

    x, y = torch.full((2, 1, 2, 2), 0.4), torch.zeros(2, dtype=torch.long)
    for attack in (
        APGD("linf", 0.3, steps=30, loss="margin", targets=3),
        FAB("linf", 0.3, steps=30, targeted=True, targets=3),
    ):
        steps = []
        net = Steep()
        net.register_forward_pre_hook(lambda module, given, steps=steps: steps.append(len(given[0])))
        images = found(attack, net, x, y, 64)
        assert (Steep()(images).argmax(1) == 1).all()
        assert len(steps) < 15


@pytest.mark.parametrize("batch", [1, 64])
def test_an_image_just_inside_the_ball_replaces_one_just_outside(batch):
    """The boundary of the likelier class is at 0.10004, that of the other at 0.09998: nearer by less than 0.1%."""

    class Walls(nn.Module):
        def forward(self, x):
            first, second = (x.flatten(1) - 0.5).unbind(1)
            return torch.stack([0 * first, first - 0.10004, 3 * (second - 0.09998)], 1)

    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.long)
    for norm in ("linf", "l2"):
        attack = FAB(norm, 0.1, steps=20, targeted=True)
        images = found(attack, Walls(), x, y, batch)
        assert Walls()(images).argmax(1).item() == 2
        assert attack.threat.allows(images, x).all()


@pytest.mark.parametrize("attack", ATTACKS[:2] + ATTACKS[5:6], ids=lambda a: f"{type(a).__name__}-{a.norm}")
def test_masks_are_kept(attack, digits, digits_mlp):
    x, y = digits.test.x[:8], digits.test.y[:8]
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[..., :4] = True
    result = run_attack(digits_mlp, carry(x, mask=mask), y, attack, pictures=8, batch_size=256)
    for row, image in result.pictures.items():
        changed = image.reshape(x.shape[1:]) != x[row].numpy()
        assert not changed[~mask[row].numpy()].any()
    images = found(attack, digits_mlp, carry(x, mask=mask), carry(y, mask=mask), 256)
    assert not ((images != x) & ~mask).any()
    assert (images != x).any()
