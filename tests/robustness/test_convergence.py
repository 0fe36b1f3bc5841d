"""Convergence of attacks by step."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBWarning, SampleRNG, make_attack
from robgib.attacks import PGD
from robgib.models.inference import prepare
from robgib.reporting.figures import attack_convergence
from robgib.robustness.convergence import convergence
from robgib.robustness.evaluate import evaluate


def test_every_step_of_a_linear_model_is_seen():
    """Steps of 0.02 from 0.5 lower the margin of 1 by 0.32 each: the fourth crosses."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(16), torch.zeros(16)]))
        model[1].bias.copy_(torch.tensor([-7.0, 0.0]))
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    x += torch.tensor([0, 1e-3, 2e-3]).view(3, 1, 1, 1)  # nearer to each other than the attack goes
    attack = PGD("linf", 0.2, steps=6, step_size=0.02, random_start=False)
    rows = convergence(prepare(model, x), x, y, attack)
    margin = 1 + 16e-3 * np.arange(3)[:, None]
    expected = np.maximum(margin - 0.32 * np.arange(7), 0) / margin
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
    assert [r["right"] for r in rows] == [1, 1, 1, 1, 0]
    assert [r["margin"] for r in rows] == pytest.approx(expected.mean(0)[:5], abs=1e-5)
    assert [r["distance"] for r in rows] == pytest.approx([0, 0.02, 0.04, 0.06, 0.08], abs=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        "pgd-linf:eps=0.08",
        "apgd-t-l2:eps=0.4,steps=20",
        "ddn-l2:eps=0.4,steps=60",
        "apgd-ce-linf:eps=0.08,steps=25,schedule_start=4",
        pytest.param("fast-linf:eps=0.08", marks=pytest.mark.slow),
    ],
)
def test_the_last_step_is_the_attacks_outcome(spec, digits_mlp, digits):
    x, y = digits.test.x[:40], digits.test.y[:40]
    right = digits_mlp(x).argmax(1) == y
    x, y = x[right], y[right]
    attack = make_attack(spec)
    rows = convergence(prepare(digits_mlp, x), x, y, attack)
    found = attack.perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))
    left = float((digits_mlp(found).argmax(1) == y).float().mean())
    assert 0.1 < left < 0.9
    assert rows[-1]["right"] == pytest.approx(left, abs=1.5 / len(x))
    assert all(a["right"] >= b["right"] and a["margin"] >= b["margin"] for a, b in zip(rows, rows[1:], strict=False))
    assert rows[0]["samples"] == len(x)
    assert len(rows) <= 41


def test_attacks_without_gradient_steps_have_no_curve(digits_mlp, digits):
    x, y = digits.test.x[:10], digits.test.y[:10]
    for spec in ("square-linf:queries=20,eps=0.1", "torchattacks:PGD:steps=2,eps=0.1", "fab-t-linf:steps=3"):
        assert convergence(prepare(digits_mlp, x), x, y, make_attack(spec)) == []


def test_what_an_attack_warns_of_is_not_said_again(digits_mlp, digits):
    class Talks(PGD):
        def perturb(self, model, x, y, rng):
            warnings.warn("a word", RobGIBWarning, stacklevel=2)
            return super().perturb(model, x, y, rng)

    x, y = digits.test.x[:10], digits.test.y[:10]
    assert convergence(prepare(digits_mlp, x), x, y, Talks("linf", 0.1, steps=3))


def test_it_is_in_the_tables_and_on_the_page(digits_mlp, digits):
    x, y = digits.test.x[:40], digits.test.y[:40]
    tables = evaluate(digits_mlp, x, y, ["pgd-linf", "square-linf:queries=20"], corruptions=False, curve=False)
    assert set(tables["convergence"]["attack"]) == {"pgd-linf"}
    assert tables["convergence"]["step"].max() == 20
    assert evaluate(digits_mlp, x, y, ["fgsm-linf"], signs=False, corruptions=False)["convergence"].empty
    assert attack_convergence([]) == ""
