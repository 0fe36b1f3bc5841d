"""What attacks climb: batches, faster forms, low precision; and the model itself as the judge of it all."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from robgib import RobGIBError, SampleRNG, make_attack
from robgib.attacks import Attack, Objective
from robgib.attacks.base import objective_gradient
from robgib.attacks.linearization import class_differences, wrong_classes
from robgib.models.inference import BatchedModel, count_queries, eval_mode, fitting_batch, fuse_for_inference, prepare
from robgib.robustness.run_attack import run_attack


def test_batches_change_nothing(digits_mlp, right_by_mlp):
    x, y = right_by_mlp[0][:50], right_by_mlp[1][:50]
    with eval_mode(digits_mlp):
        net = BatchedModel(digits_mlp, 7)
        goal = Objective.untargeted(y, "ce")
        for ours, whole in zip(objective_gradient(net, x, goal), objective_gradient(digits_mlp, x, goal), strict=True):
            assert torch.allclose(ours, whole, atol=1e-5)
        with torch.no_grad():
            classes = wrong_classes(net(x), y)[:, :3]
            assert torch.allclose(net(x), digits_mlp(x), atol=1e-5)
            assert net(x[:0]).shape == (0, 10)
        both = (class_differences(model, x, y, classes) for model in (net, digits_mlp))
        for ours, whole in zip(*both, strict=True):
            assert torch.allclose(ours, whole, atol=1e-4)


def test_the_batch_is_halved_when_memory_does_not_suffice(digits_mlp, right_by_mlp):
    class Narrow(nn.Module):
        def __init__(self, most):
            super().__init__()
            self.net, self.most, self.largest = digits_mlp, most, 0

        def forward(self, x):
            self.largest = max(self.largest, len(x))
            if len(x) > self.most:
                raise torch.OutOfMemoryError("no")
            return self.net(x)

    x, y = right_by_mlp[0][:40], right_by_mlp[1][:40]
    narrow = Narrow(9)
    with eval_mode(narrow):
        net = BatchedModel(narrow, 32)
        gradient, _ = net.gradient(x, Objective.untargeted(y, "ce"))
        assert net.batch_size == 8
        assert torch.allclose(gradient, objective_gradient(digits_mlp, x, Objective.untargeted(y, "ce"))[0], atol=1e-5)
        with pytest.raises(torch.OutOfMemoryError):
            BatchedModel(Narrow(0), 4)(x)


def test_passes_are_counted_whoever_makes_them(digits_cnn, right_digits):
    x, y = right_digits[0][:20], right_digits[1][:20]
    with eval_mode(digits_cnn), count_queries(digits_cnn, digits_cnn) as passes:
        objective_gradient(digits_cnn, x, Objective.untargeted(y, "ce"))
        with torch.no_grad():
            digits_cnn(x[:5])
    assert (passes.forward, passes.backward) == (25, 20)
    digits_cnn(x)
    assert passes.forward == 25
    fooled = run_attack(digits_cnn, x, y, make_attack("pgd-linf:eps=1,steps=20"))
    robust, cyclic = (
        run_attack(digits_cnn, x, y, make_attack(f"pgd-{norm}:eps=1e-6,steps=20")) for norm in ("l2", "linf")
    )
    assert robust.passes.backward == 20 * len(x) + 2 * 5 * 16  # and five steps on 16 images to compare the forms
    assert cyclic.passes.backward < robust.passes.backward  # steps that repeat are not taken again
    assert fooled.passes.backward < 20 * len(x) / 2  # those that are fooled leave


class Residual(nn.Module):
    """Batch norms as attributes, out of any Sequential."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        return self.head((h + x).flatten(1))


class Branching(Residual):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Noisy(Residual):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn(x.shape[1:]))


def fresh(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model


def test_the_faster_form_is_the_same_function(right_by_mlp):
    x = right_by_mlp[0]
    for kind, norms in ((Residual, 0), (Branching, 1)):
        model = fresh(kind)
        with eval_mode(model):
            fused = fuse_for_inference(model, x[:8])
            assert fused is not model
            assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == norms
            with torch.no_grad():
                assert torch.allclose(fused(x), model(x), atol=1e-4)
    for model in (fresh(Noisy), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        with eval_mode(model):
            assert fuse_for_inference(model, x[:8]) is model


def test_preparing_leaves_the_model_as_it_was(right_by_mlp):
    model = fresh(Residual).train()
    state = copy.deepcopy(model.state_dict())
    prepared = prepare(model, right_by_mlp[0])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert prepared.batch_size == fitting_batch(model.eval(), right_by_mlp[0][:8])
    assert prepared.batch_size.bit_count() == 1
    with pytest.raises(RobGIBError, match="unknown precision 'float16'"):
        prepare(model, right_by_mlp[0], precision="float16")


def test_whoever_fools_the_faster_form_alone_meets_the_model(digits_cnn, right_digits):
    """A faster form that is easily fooled must not make the model look robust, nor fooled."""
    x, y = right_digits
    attack = make_attack("pgd-linf:eps=0.08")
    alone = run_attack(digits_cnn, x, y, attack)
    weak = copy.deepcopy(digits_cnn)
    with torch.no_grad():
        weak.head.weight.add_(0.5 * weak.head.weight.std() * torch.randn(weak.head.weight.shape))
    prepared = dataclasses.replace(prepare(digits_cnn, x), fused=weak.eval())
    outcome = run_attack(prepared, x, y, attack)
    with eval_mode(digits_cnn):
        lost = attack.perturb(weak, x, y, SampleRNG(0, range(len(x))))
        with torch.no_grad():
            transferred = (digits_cnn(lost).argmax(1) == y).float().mean()
    robust, truth = ((o.prediction == y.numpy()).mean() for o in (outcome, alone))
    assert abs(robust - truth) <= 0.05
    assert float(transferred) > truth + 0.1


def test_low_precision_proposes_and_float32_decides(digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    for spec in ("pgd-linf:eps=0.08,steps=40", "apgd-ce-linf:eps=0.08"):
        attack = make_attack(spec)
        low, full = (run_attack(prepare(digits_mlp, x, precision=p), x, y, attack) for p in PRECISIONS)
        robust = [(o.prediction == y.numpy()).mean() for o in (low, full)]
        assert 0.1 < robust[1] < 0.9
        assert abs(robust[0] - robust[1]) <= 0.03
    with eval_mode(digits_mlp):
        net = BatchedModel(digits_mlp, 64, "bfloat16")
        close = x + 0.08 * objective_gradient(digits_mlp, x, Objective.untargeted(y, "ce"))[0].sign()
        _, logits = net.gradient(close, Objective.untargeted(y, "ce"))
        with torch.no_grad():
            assert torch.equal(logits.argmax(1) == y, digits_mlp(close).argmax(1) == y)


PRECISIONS = ("bfloat16", "float32")


def test_plug_ins_get_the_model_itself_a_batch_at_a_time(digits_mlp, right_by_mlp):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Mine(Attack):
        def perturb(self, model, x, y, rng):
            seen.append((model is digits_mlp, len(x)))
            return x

    x, y = right_by_mlp[0][:40], right_by_mlp[1][:40]
    run_attack(digits_mlp, x, y, Mine("linf", 8 / 255), batch_size=16)
    assert seen == [(True, 16), (True, 16), (True, 8)]
