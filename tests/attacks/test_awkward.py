"""Networks that answer all the same, but take no empty batch, mask classes or have no answer somewhere."""

import warnings

import pytest
import torch
from torch import nn

from robgib import SampleRNG, make_attack
from robgib.attacks import APGD, FAB, FastEnsemble, Objective, ThreatModel, cascade
from robgib.attacks.apgd import auto_ascend, sparse_ascend
from robgib.attacks.linearization import wrong_classes
from robgib.models.inference import BatchedModel
from robgib.robustness.run_attack import run_attack
from tests.unusual import Around

SPECS = (
    "fgsm-linf", "rfgsm-linf", "pgd-linf:steps=5", "pgd-l1:steps=5", "mifgsm-linf:steps=5", "apgd-ce-linf:steps=20",
    "apgd-t-linf:steps=10", "apgd-ce-l1:steps=20", "apgd-ce-l2:steps=20,schedule_start=8", "fab-linf:steps=5",
    "fab-t-l2:steps=5", "square-linf:queries=20", "deepfool-l2:steps=10",
    "superdeepfool-l2:steps=5,deepfool_steps=10", "ddn-l2:steps=5", "fmn-linf:steps=5",
    "cw-l2:steps=5,binary_steps=2", "sigma-zero-l0:steps=5", "autoattack-linf:steps=5,queries=20",
    "fast-linf:short=2,long=3,probe=5", "fast-l2:short=2,long=3,probe=5",
    "fast-l1:short=2,long=3,probe=5",
)  # fmt: skip


class Full(Around):
    """Takes no empty batch: what ``x.view(len(x), -1)`` says of it."""

    def forward(self, x):
        return self.model(x.view(x.size(0), -1).view(x.shape))


class Saturated(Around):
    """Log-probabilities with -inf for the wrong classes, and thus an infinite margin."""

    def forward(self, x):
        return torch.softmax(3e4 * self.model(x), 1).log()


EPS = {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 6}


def _long(kind, share, spec):
    """Where few fall, the fast ensemble ends with its longest stages; where gradients are 0, with 5,000 queries."""
    return share < 1 and (spec.startswith(("fast-l1", "fast-l2")) or (spec.startswith("fast") and kind is Saturated))


ENDS = [
    pytest.param(kind, share, spec, marks=pytest.mark.slow) if _long(kind, share, spec) else (kind, share, spec)
    for kind in (Full, Saturated)
    for share in (0.05, 4)
    for spec in SPECS
]


@pytest.mark.parametrize(("kind", "share", "spec"), ENDS)
def test_every_attack_ends_where_few_or_all_fall(kind, digits_mlp, digits, spec, share):
    awkward = kind(digits_mlp).eval()
    x, y = digits.test.x[:5], digits.test.y[:5]
    attack = make_attack(spec)
    eps = min(EPS[attack.norm] * share, attack.threat.widest(64))
    attack = attack.at(max(1, round(eps)) if attack.norm == "l0" else eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batched, wrong = BatchedModel(awkward, 2), (y + 1) % 10  # with the latter every image is wrong as it is
        runs = [(awkward, y), (batched, y)] if share < 1 else [(awkward, y), (awkward, wrong), (batched, wrong)]
        for model, labels in runs:
            found = attack.perturb(model, x, labels, SampleRNG(0, range(len(x))))
            assert found.shape == x.shape
            assert attack.threat.allows(found, x).all()


@pytest.mark.filterwarnings("ignore::robgib.RobGIBWarning")
@pytest.mark.parametrize("eps", [pytest.param(0.02, marks=pytest.mark.slow), 0.4])
def test_the_fast_ensemble_on_a_network_that_takes_no_empty_batch(digits_mlp, digits, eps):
    x, y = digits.test.x[:12], digits.test.y[:12]
    usual = run_attack(digits_mlp, x, y, FastEnsemble("linf", eps))
    found = run_attack(Full(digits_mlp).eval(), x, y, FastEnsemble("linf", eps))
    assert (found.right == usual.right).all()


def test_an_empty_batch_is_none_for_a_cascade(digits_mlp, digits):
    x, y = digits.test.x[:0], digits.test.y[:0]
    assert cascade([APGD("linf", 0.1)], Full(digits_mlp).eval(), x, y, SampleRNG(0, range(0))).shape == x.shape


def test_a_class_of_no_chance_is_no_true_class():
    """Masked classes have logits of -inf, and the true class was taken off by a logit of -inf."""
    logits = torch.tensor([[3.0, 2.0, 5.0, -torch.inf, -torch.inf], [1.0, 4.0, 2.0, -torch.inf, -torch.inf]])
    y = torch.tensor([2, 4])
    assert wrong_classes(logits, y).tolist() == [[0, 1, 3, 4], [1, 2, 0, 3]]
    assert wrong_classes(logits[:0], y[:0]).shape == (0, 4)


def test_masked_classes_stop_no_walk(digits_mlp, digits):
    class Seven(Around):
        def forward(self, x):
            return self.model(x)[:, :7].index_fill(1, torch.tensor([5, 6]), -torch.inf)

    model = Seven(digits_mlp).eval()
    x, y = digits.test.x[:60], digits.test.y[:60]
    rows = model(x).argmax(1) == y
    attack = FAB("l2", 1.0, steps=10)
    found = attack.perturb(model, x[rows], y[rows], SampleRNG(0, range(int(rows.sum()))))
    assert (model(found).argmax(1) == y[rows]).float().mean() < 0.9


class Hole(nn.Module):
    """Has no answer where the first pixel is below 0.1; the wrong class grows with it."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        rise = torch.where(first < 0.1, torch.nan, first)
        return torch.stack([torch.full_like(first, 2.0), rise], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_ascent_leaves_an_image_without_a_finite_output(norm):
    x, y = torch.full((2, 1, 1, 1), 0.3), torch.tensor([0, 0])
    start = torch.tensor([0.05, 0.15]).view(2, 1, 1, 1)
    goal, ball = Objective.untargeted(y, "margin", patient=True), ThreatModel(norm, 0.28)
    if norm == "l1":
        found, value, _ = sparse_ascend(Hole(), x, goal, ball, start, 20, torch.ones(2))
    else:
        found, value, _ = auto_ascend(Hole(), x, goal, ball, start, 20, 0.75)
    assert found.flatten().tolist() == pytest.approx([0.58, 0.58], abs=1e-5)
    assert value.tolist() == pytest.approx([-1.42, -1.42], abs=1e-5)


def test_minimum_cost_of_a_large_to_small_schedule():
    assert APGD("l2", 0.5, steps=1, schedule_start=8).cost == 5
    assert APGD("l2", 0.5, steps=1).cost == 1
    assert APGD("l1", 0.5, steps=1).cost == 3
    assert APGD("l2", 0.5, steps=100, schedule_start=8, targets=3).cost == 300
