"""One object holds the seed, the device, resume and progress of an attack; the fields are also taken by name."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.attacks import FGSM, PGD, make_attack
from robgib.attacks.registry import read_attack
from robgib.cli.options import configuration_text
from robgib.files import Parts
from robgib.options import Context, plain_options
from robgib.robustness import accuracy_curve, corruption_accuracy, failure_indicators, run_attack
from robgib.robustness.evaluate import named_attacks
from robgib.robustness.run_attack import after, joined


@pytest.fixture(scope="module")
def subject():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.rand(20, 1, 4, 4, generator=generator)
    return model, x, model(x).argmax(1)


def test_fields_by_name_and_in_a_context_are_the_same(subject):
    attack = PGD("l2", 0.05, steps=1, step_size=0.001, keep="last")
    by_name = run_attack(*subject, attack, seed=3, batch_size=7)
    in_context = run_attack(*subject, attack, context=Context(seed=3, batch_size=7, device="cpu"))
    assert np.array_equal(by_name.l2, in_context.l2)
    assert np.array_equal(by_name.prediction, in_context.prediction)
    assert not np.array_equal(by_name.l2, run_attack(*subject, attack, seed=4).l2)
    for call in (
        lambda **how: run_attack(*subject, attack, **how),
        lambda **how: accuracy_curve(*subject, attack, by_name, clean=subject[2].numpy(), **how),
        lambda **how: failure_indicators(*subject, attack.threat, **how),
        lambda **how: corruption_accuracy(*subject, **how),
    ):
        with pytest.raises(RobGIBError, match=r"unknown option of \w+: 'sed'; did you mean 'seed'\?"):
            call(sed=3)
        with pytest.raises(RobGIBError, match="seed"):
            call(seed=-1)


@pytest.mark.parametrize(("name", "value"), [("progress", "loud"), ("parts", "runs/here")])
def test_a_context_takes_no_other_object(name, value):
    with pytest.raises(RobGIBError, match=name):
        Context(**{name: value})


def test_contexts_store_nothing_by_default():
    assert isinstance(Context().parts, Parts)
    assert Context().parts.folder is None
    assert Context() == Context(parts=Parts(), progress=print)
    assert not {"parts", "progress"} & set(plain_options(Context(progress=print)))
    assert configuration_text(["digits-cnn"], Context(seed=1)) == "models:\n- digits-cnn\ncontext:\n  seed: 1\n"


def test_a_result_knows_on_which_samples_the_attack_ran(subject):
    model, x, y = subject
    wrong = y.clone()
    wrong[:5] = (wrong[:5] + 1) % 3
    first = run_attack(model, x, wrong, FGSM("linf", 0.05))
    assert first.attacked.tolist() == [False] * 5 + [True] * 15
    left = run_attack(model, x, wrong, PGD("linf", 0.05), clean=first.prediction)
    assert after(first, left).attacked.tolist() == (first.right > 0).tolist()
    assert joined(first, left).attacked.tolist() == [*first.attacked, *left.attacked]


def test_an_open_radius_follows_the_data_and_nothing_else_does():
    budgets = {"linf": 0.3, "l1": 2.0}
    spec = "pgd-linf:step_size=0.01"
    assert named_attacks([spec], budgets) == {spec: PGD("linf", 0.3, step_size=0.01)}
    assert named_attacks(["pgd-linf:eps=0.1"], budgets) == {"pgd-linf:eps=0.1": PGD("linf", 0.1)}
    assert named_attacks(["pgd-l2"], budgets) == {"pgd-l2": make_attack("pgd-l2")} == {"pgd-l2": PGD("l2", 0.5)}
    assert (read_attack(spec).is_open, read_attack("pgd-linf:eps=0.1").is_open) == (True, False)
    assert named_attacks(["torchattacks:PGD"], budgets)["torchattacks:PGD"].eps == 0.3
    with pytest.raises(RobGIBError, match="eps"):
        named_attacks(["pgd-linf"], {"linf": -1.0})


class Slow(nn.Module):
    """Progress is reported at most five times per second."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        time.sleep(0.02)
        return self.inner(x)


def test_progress_moves_within_a_batch_and_ends_with_the_robust_accuracy(subject):
    reports = []
    context = Context(device="cpu", progress=lambda *report: reports.append(report))
    model, x, y = subject
    result = run_attack(Slow(model), x, y, PGD("linf", 0.02, steps=40), label="pgd", context=context)
    done = [count for _, count, _, _ in reports]
    assert len(set(done)) > 3  # it does not stay at 0 until the end
    assert done == sorted(done)
    assert all(count < total for _, count, total, _ in reports[:-1])
    assert reports[-1][1] == reports[-1][2]
    assert reports[-1][3].startswith(f"{result.right.mean():.1%} robust ({int(result.right.sum())}/20), ")


@pytest.mark.parametrize(
    ("attacks", "norm", "eps", "sentence"),
    [
        (
            ["fgsm-linf:eps=0.05"],
            None,
            0.1,
            "'fgsm-linf:eps=0.05' has an eps of its own, 0.05, and the given eps",
        ),
        (["fgsm-linf", "pgd-linf:eps=0.05"], "linf", "0.1", "'pgd-linf:eps=0.05' has an eps of its own, 0.05"),
        (
            {"mine": FGSM("l2", 1.0)},
            ["linf", "l2"],
            [0.1, 0.5],
            "'mine' has .* 1, and the given eps of l2 is 0.5",
        ),
        (["fgsm-l2:eps=1"], None, 0.1, r"no attack uses the given budget \(norm linf, eps 0.1\)"),
        (["fgsm-linf"], "l2", None, r"no attack uses the given budget \(norm l2\)"),
        (["fgsm-linf"], "linf", [0.1, 0.2], r"no attack uses the given budget \(norm linf, eps 0.1\)"),
    ],
)
def test_a_given_budget_that_an_attack_would_ignore_is_refused(attacks, norm, eps, sentence):
    with pytest.raises(RobGIBError, match=sentence):
        named_attacks(attacks, norm=norm, eps=eps)


def test_a_given_budget_that_agrees_with_the_attacks_is_taken():
    given = ["pgd-linf:eps=8/255", "pgd-l2:eps=1", "fgsm-linf:eps=0.1"]
    assert len(named_attacks(given, norm="linf", eps=["8/255", 0.1])) == 3
    assert named_attacks({"mine": FGSM("linf", 0.1)}, eps="0.1")["mine"].eps == 0.1
    assert named_attacks([], eps=0.1) == {}
