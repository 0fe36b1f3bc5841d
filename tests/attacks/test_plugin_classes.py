"""A plug-in class with a constructor of its own, a shared default or a cost that is none is one clear sentence."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from robgib import Attack, RobGIBError, make_attack
from robgib.robustness import evaluate
from robgib.robustness.evaluate import named_attacks

_OWN = r"attack class Mine has an __init__ .* declare the parameters as fields, .* super\(\).__init__\(norm, eps\)"
_BODY = "    def perturb(self, model, x, y, rng):\n        return x\n"
_CLASSES = {
    "none": "    def __init__(self, strength=0.5):\n        self.strength = strength\n",
    "unset": "    def __init__(self, norm, eps):\n        self.strength = 1\n",
    "frozen": "    def __init__(self, norm, eps):\n        self.eps = eps\n",
    "narrow": "    def __init__(self, norm, eps):\n        super().__init__(norm, eps)\n",
    "post": "    def __post_init__(self):\n        pass\n",
}


@pytest.mark.parametrize("kind", _CLASSES)
def test_a_constructor_of_its_own_is_named_with_the_mend(tmp_path, kind):
    (tmp_path / "mine.py").write_text(f"from robgib import Attack\n\nclass Mine(Attack):\n{_CLASSES[kind]}{_BODY}")
    with pytest.raises(RobGIBError, match=_OWN):
        named_attacks(["mine:eps=0.1"], None, [tmp_path])["mine:eps=0.1"].at(0.2).threat.check(4)


def test_a_default_that_all_attacks_would_share_is_named_with_the_mend(tmp_path):
    code = f"from robgib import Attack\n\nclass Mine(Attack):\n    sizes: list = []\n{_BODY}"
    (tmp_path / "mine.py").write_text(code)
    sentence = r"attack class Mine: mutable default .*; give .* `sizes: list = field\(default_factory=list\)`"
    with pytest.raises(RobGIBError, match=sentence):
        make_attack("mine", extra=[tmp_path])
    with pytest.warns(UserWarning, match="attack skipped: attack class Mine"):
        assert make_attack("fgsm-linf", extra=[tmp_path]).norm == "linf"


@dataclass(frozen=True)
class Priced(Attack):
    price: Any = 1

    @property
    def cost(self):
        if self.price == "raises":
            raise KeyError("steps")
        return self.price

    def perturb(self, model, x, y, rng):
        return x


@pytest.mark.parametrize("price", ["many", 0, -3, float("nan"), float("inf"), 1.5, True, [1]])
def test_a_cost_that_is_no_whole_number_of_at_least_1_is_refused(price):
    images, labels = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    attacks = {"fgsm": make_attack("fgsm-linf:eps=0.1"), "priced": Priced("linf", 0.1, price)}
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(RobGIBError, match="the cost of attack 'priced' must be a whole number of at least 1 or None"):
        evaluate(model, images, labels, attacks, cascade=True)


def test_a_cost_that_raises_names_the_attack():
    images, labels = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(RobGIBError, match="the cost of attack 'priced' raised KeyError: 'steps'"):
        evaluate(nn.Flatten(), images, labels, {"priced": Priced("linf", 0.1, "raises")})
