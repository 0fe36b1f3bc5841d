"""Iterates of constant steps that repeat: the same result with fewer passes."""

import pytest
import torch
from torch import nn

from robgib.attacks import PGD, Objective, ThreatModel, projected_gradient_ascent
from robgib.models.inference import BatchedModel, count_queries, eval_mode
from robgib.options import Context
from robgib.robustness.run_attack import run_attack


def plain(model, x, y, threat, start, steps, size, keep):
    """Projected ascent step by step, for all samples to the end."""
    goal = Objective.untargeted(y, "ce")
    best, fooled = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    value = goal.value(model(x)).detach()
    current = start
    for _ in range(steps + 1):
        leaf = current.detach().requires_grad_(True)
        logits = model(leaf)
        now, done = goal.value(logits).detach(), goal.criterion(logits)
        better = ~fooled & ((now > value) | done)
        best[better], value[better] = current.detach()[better], now[better]
        fooled |= done
        last = current.detach()
        (gradient,) = torch.autograd.grad(goal.value(logits).sum(), leaf)
        current = threat.project(threat.step(last, gradient, size), x)
    return best if keep == "best" else last


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.1)])
def test_the_images_are_those_of_all_steps(keep, norm, eps, digits, digits_cnn):
    threat, x, y = ThreatModel(norm, eps), digits.test.x[:40], digits.test.y[:40]
    start = threat.project(x + eps * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5), x)
    for steps in (41, 42, 43):  # the last iterates of cycles of length 2 and 3 differ
        with eval_mode(digits_cnn), count_queries(digits_cnn) as passes:
            found = projected_gradient_ascent(
                BatchedModel(digits_cnn, 64), x, Objective.untargeted(y, "ce"), threat,
                start=start, steps=steps, step_size=eps / 4, keep=keep,
            )  # fmt: skip
            taken = passes.backward
            wanted = plain(digits_cnn, x, y, threat, start, steps, eps / 4, keep)
        assert torch.allclose(found, wanted, atol=1e-6)
        assert norm != "linf" or taken < 0.75 * steps * len(x)


def test_a_long_attack_saves_most_of_its_steps(digits, digits_cnn):
    x, y = digits.test.x[:40], digits.test.y[:40]
    found = run_attack(digits_cnn, x, y, PGD("linf", 0.02, steps=200, step_size=0.005), context=Context(device="cpu"))
    assert found.right.mean() > 0.5
    assert found.passes.backward < 0.5 * 200 * found.right.sum()


class Noisy(nn.Module):
    def forward(self, x):
        return torch.stack([x.flatten(1).sum(1) + 0 * torch.rand(len(x)), torch.zeros(len(x))], 1)


@pytest.mark.parametrize("model", [BatchedModel(Noisy(), 8, random=True), Noisy()])
def test_no_step_is_saved_where_a_model_may_answer_differently(model):
    x, y = torch.full((3, 4), 0.5), torch.zeros(3).long()
    inner = model.model if isinstance(model, BatchedModel) else model
    with count_queries(inner) as passes:
        projected_gradient_ascent(
            model, x, Objective.untargeted(y, "margin"), ThreatModel("linf", 0.1),
            start=x, steps=10, step_size=0.1, keep="last",
        )  # fmt: skip
    assert passes.backward == 30
