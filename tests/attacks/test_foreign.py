"""Attacks of other conventions are taken as they are, in Python and in files."""

import pytest
import torch
from torch.nn import functional as F

from robgib import Attack, RobGIBError
from robgib.attacks.foreign import foreign_class, is_foreign
from robgib.attacks.registry import list_attacks, make_attack
from robgib.robustness.evaluate import evaluate, named_attacks


def one_step(model, images, labels, eps, scale=1.0):
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels, reduction="sum"), images)
    return (images + scale * eps * gradient.sign()).clamp(0, 1).detach()


class Stepper:
    """In torchattacks' manner."""

    def __init__(self, model, eps=8 / 255, steps: int = 3):
        self.model, self.eps, self.steps = model, eps, steps

    def forward(self, images, labels):
        return one_step(self.model, images, labels, self.eps)

    def __call__(self, images, labels):
        return self.forward(images, labels)


class Balanced:
    """In Foolbox's manner: raw images, clipped images, successes."""

    def __init__(self, steps=3):
        self.steps = steps

    def __call__(self, model, inputs, criterion, *, epsilons):
        made = one_step(model, inputs, criterion, epsilons)
        return made, made, made


class WithoutDecorator(Attack):
    steps: int = 4

    def perturb(self, model, x, y, rng):
        return one_step(model, x, y, self.eps, 1 / self.steps)


def test_every_convention_gives_the_same_images(digits, digits_mlp):
    x, y = digits.test.x[:8], digits.test.y[:8]
    expected = one_step(digits_mlp, x, y, 0.1)
    for code in (one_step, Stepper, Stepper(digits_mlp, eps=0.3), Balanced, Balanced()):
        assert is_foreign(code)
        images = foreign_class(code)("linf", 0.1)(digits_mlp, x, y)
        assert torch.allclose(images, expected, atol=1e-6)


def test_they_run_in_an_evaluation_and_are_verified(digits, digits_mlp):
    x, y = digits.test.x[:30], digits.test.y[:30]
    options = {"signs": False, "curve": False, "corruptions": False, "norm": "linf", "eps": 0.1}
    attacks = {"own": one_step, "class": Stepper, "object": Stepper(digits_mlp), "foolbox": Balanced()}
    rows = evaluate(digits_mlp, x, y, {**attacks, "fgsm": make_attack("fgsm-linf:eps=0.1")}, **options)["robustness"]
    robust = rows.set_index("attack")["robust"]
    assert (robust[[*attacks]] == robust["fgsm"]).all()

    def cheats(model, x, y, eps):
        return (x + 2 * eps).clamp(0, 1)

    rows = evaluate(digits_mlp, x, y, [cheats, "fgsm-linf:eps=0.1"], **options)["robustness"].set_index("attack")
    assert "left its threat model" in rows.loc["cheats", "reason"]


def test_an_object_keeps_its_own_radius_unless_another_is_given(digits_mlp):
    own = Stepper(digits_mlp, eps=0.05)
    assert named_attacks([own])["stepper"].eps == 0.05
    assert named_attacks([own], eps="8/255")["stepper"].eps == 8 / 255
    assert own.eps == 0.05


def test_an_attack_class_without_the_decorator_has_its_fields():
    assert WithoutDecorator("linf", 0.1, steps=2).steps == 2
    with pytest.raises(RobGIBError, match="steps"):
        WithoutDecorator("linf", 0.1, steps="many")


def test_files_with_functions_and_plain_classes(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from robgib import Attack\n"
        "def half_tilt(model, x, y, eps, strength: float = 0.5):\n    return x\n"
        "class Stepper:\n"
        "    def __init__(self, model, eps=0.1, steps=3):\n        self.model = model\n"
        "    def forward(self, images, labels):\n        return images\n"
        "class Plain(Attack):\n    steps: int = 4\n"
        "    def perturb(self, model, x, y, rng):\n        return x\n"
        "def helper(x):\n    return x\n"
    )
    names = list_attacks([tmp_path])
    assert {"half-tilt", "stepper", "plain"} <= set(names)
    assert "helper" not in names
    assert make_attack("stepper:steps=5,eps=0.2", extra=[tmp_path]).steps == 5
    assert make_attack("half-tilt:strength=1", extra=[tmp_path]).strength == 1
    assert make_attack("plain:steps=7", extra=[tmp_path]).steps == 7
    with pytest.raises(RobGIBError, match="unknown parameter of attack 'stepper:step=5': 'step'"):
        make_attack("stepper:step=5", extra=[tmp_path])


def test_what_is_no_attack_is_refused_with_the_way_out():
    with pytest.raises(RobGIBError, match=r"a function of \(model, images, labels\)"):
        named_attacks({"odd": print})
    with pytest.raises(RobGIBError, match="is no attack: give a function"):
        foreign_class(3)
