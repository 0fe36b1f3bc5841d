"""Each attack-failure indicator on a model built to show it, and none on an adversarially trained model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robgib import SampleRNG, ThreatModel, failure_indicators, make_attack
from robgib.attacks import PGD
from robgib.models.inference import eval_mode, prepare
from robgib.robustness.corruptions import corruption_accuracy
from robgib.robustness.evaluate import evaluate
from robgib.robustness.failure_indicators import CHECKS, weaker_than_reference
from robgib.robustness.run_attack import run_attack
from tests.unusual import (
    Company,
    Cut,
    Detached,
    HardOfHearing,
    Noisy,
    NoisyBetween,
    Optimises,
    OwnNoise,
    Probabilities,
    Quantised,
    RarelyNoisy,
    Saturated,
)

THREAT = ThreatModel("linf", 0.1)


def names(model, x, y, threat=THREAT, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {s.name for s in failure_indicators(model, x, y, threat, **options) if s.seen}


@pytest.fixture(scope="module")
def trained_adversarially(digits, digits_mlp):
    """The perceptron, trained on for some epochs on PGD's images (Madry et al. 2018)."""
    model = copy.deepcopy(digits_mlp)
    x, y = digits.train.x, digits.train.y
    attack = PGD("linf", 0.1, steps=5, step_size=0.05, keep="last")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(12):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(128):
            with eval_mode(model):
                images = attack.perturb(model, x[rows], y[rows], SampleRNG(epoch, rows))
            model.train()
            optimiser.zero_grad()
            F.cross_entropy(model(images), y[rows]).backward()
            optimiser.step()
    return model.eval()


def right(model, digits):
    x, y = digits.test.x[:250], digits.test.y[:250]
    with torch.no_grad():
        keep = model(x).argmax(1) == y
    return x[keep][:100], y[keep][:100]


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_silent_on_an_adversarially_trained_model(trained_adversarially, digits, norm):
    x, y = right(trained_adversarially, digits)
    assert len(x) >= 90
    found = failure_indicators(trained_adversarially, x, y, ThreatModel(norm, 0.1 if norm == "linf" else 0.5))
    assert [s.name for s in found] == list(CHECKS[:-3])
    assert not [s for s in found if s.seen]


def test_a_quantised_input_has_no_gradient(digits_mlp, digits):
    model = Quantised(digits_mlp)
    seen = names(model, *right(model, digits))
    assert {
        "zero gradients",
        "loss does not grow",
        "unbounded eps does not reach 0",
        "black box beats gradients",
    } <= seen


@pytest.mark.parametrize(
    "kind", [Noisy, NoisyBetween, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (RarelyNoisy, OwnNoise))]
)
def test_a_model_that_answers_at_random(kind, digits_mlp, digits):
    """Two calls miss randomness in one call of ten mostly."""
    x, y = (v[:8] for v in right(digits_mlp, digits))
    assert "random outputs" in names(kind(digits_mlp), x, y)


@pytest.mark.slow
def test_indicators_of_unusual_outputs(digits_mlp, digits):
    x, y = (v[:30] for v in right(digits_mlp, digits))
    assert "outputs depend on the batch" in names(Company(digits_mlp), x, y)
    assert "outputs are probabilities" in names(Probabilities(digits_mlp), x, y)
    assert "test-time optimisation" in names(Optimises(digits_mlp), x, y)


def test_an_attack_weaker_than_a_short_one_is_named(digits_mlp, digits):
    x, y = (v[:50] for v in right(digits_mlp, digits))
    specs = ("torchattacks:PGD:eps=0.1,alpha=0.0005,steps=10", "pgd-linf:eps=0.1,steps=40", "fgsm-linf:eps=0.1")
    attacks = {s: (make_attack(s), run_attack(digits_mlp, x, y, make_attack(s)).right) for s in specs}
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, attacks=attacks)}
    assert found["weaker than a short attack"].seen
    assert not found["more effort still helps"].seen  # the strongest that ran had converged
    named = weaker_than_reference(prepare(digits_mlp, x), x, y, THREAT, attacks)
    assert list(named) == [specs[0]]
    assert "leaves 9" in named[specs[0]] or "leaves 100%" in named[specs[0]]
    alone = {specs[0]: attacks[specs[0]]}
    found = {s.name: s for s in failure_indicators(digits_mlp, x, y, THREAT, attacks=alone)}
    assert found["more effort still helps"].seen


@pytest.mark.slow
def test_a_few_samples_raise_no_sign_by_chance(trained_adversarially, digits):
    """A share above 5% of 19 images is one image: "more effort" was seen in half of such draws."""
    x, y = digits.test.x, digits.test.y
    with torch.no_grad():
        keep = (trained_adversarially(x).argmax(1) == y).nonzero().squeeze(1)
    for draw in range(6):
        generator = torch.Generator().manual_seed(draw)
        some = keep[torch.randperm(len(keep), generator=generator)[: (15, 19, 25, 30, 40, 50)[draw]]]
        assert not names(trained_adversarially, x[some], y[some])


def test_a_saturated_softmax_loses_the_gradient_and_the_margin_tells(digits_mlp, digits):
    model = Saturated(digits_mlp)
    x, y = right(model, digits)
    found = {s.name: s for s in failure_indicators(model, x, y, THREAT)}
    assert found["zero gradients"].seen
    assert "that of the margin is not 0" in found["zero gradients"].detail
    assert not found["loss does not grow"].seen  # the margin grows
    assert found["black box beats gradients"].seen


def test_a_detached_branch_masks_gradients(digits_mlp, digits):
    model = Detached(digits_mlp)
    seen = names(model, *right(model, digits))
    assert "zero gradients" not in seen
    assert {"unbounded eps does not reach 0", "black box beats gradients"} <= seen


def test_no_gradient_at_all(digits_mlp, digits):
    model = Cut(digits_mlp)
    found = failure_indicators(model, *right(model, digits), THREAT)
    seen = [s for s in found if s.seen]
    assert [s.name for s in seen] == ["zero gradients", "black box beats gradients"]
    assert "no gradient exists" in seen[0].detail


class OnePixel(nn.Module):
    """Right while a function of the first pixel's distance from grey is above 0."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        value = self.height(x[:, 0, 0, 0] - 0.5)
        return torch.stack([value, torch.zeros_like(value)], 1)


def greys():
    return 0.5 + 1e-3 * torch.linspace(-1, 1, 100)[:, None, None, None].expand(-1, 1, 2, 2), torch.zeros(100).long()


def test_on_a_rough_surface_one_step_beats_many():
    # Ripples turn short steps round; the edge lies farther than they get and nearer than one long step goes.
    rough = OnePixel(lambda u: 1 - 30 * (u.abs() - 0.09).clamp_min(0) + 2e-3 * torch.sin(800 * u))
    assert "one step beats many" in names(rough, *greys(), ThreatModel("linf", 0.14))


def test_an_attack_that_has_not_converged():
    # A narrow gap, over which long steps jump to and fro.
    gap = OnePixel(lambda u: 10 * (u - 0.0513).abs() - 0.01)
    assert "more effort still helps" in names(gap, *greys(), ThreatModel("linf", 0.14))


def test_a_slope_that_begins_beyond_the_ball():
    deaf, x, y = HardOfHearing(), torch.full((40, 1, 8, 8), 0.5), torch.zeros(40).long()
    threat = ThreatModel("l2", 0.4)
    assert "large-to-small eps beats ascent" in names(deaf, x, y, threat)
    scheduled = make_attack("apgd-ce-l2:eps=0.4,schedule_start=8")
    left = (deaf(scheduled(deaf, x, y)).argmax(1) == y).numpy().astype(float)
    assert "large-to-small eps beats ascent" not in names(deaf, x, y, threat, attacks={"scheduled": (scheduled, left)})


def test_gradients_taken_further_out_are_not_masked():
    """Square is stronger than PGD, but so is large-to-small APGD."""
    deaf, x, y = HardOfHearing(), torch.full((40, 1, 8, 8), 0.5), torch.zeros(40).long()
    left = {}
    for spec in ("pgd-l2:eps=0.8", "square-l2:eps=0.8,queries=200"):
        left[spec] = int((deaf(make_attack(spec)(deaf, x, y)).argmax(1) == y).sum())
    assert left["pgd-l2:eps=0.8"] >= 36
    assert left["square-l2:eps=0.8,queries=200"] <= 24
    seen = names(deaf, x, y, ThreatModel("l2", 0.8))
    assert "large-to-small eps beats ascent" in seen
    assert "black box beats gradients" not in seen


def test_a_gap_that_every_ascent_jumps_over():
    gap = OnePixel(lambda u: 10 * (u - 0.0513).abs() - 0.002)
    x, y = greys()
    threat = ThreatModel("linf", 0.14)
    assert "boundary steps beat ascent" in names(gap, x, y, threat)
    walk = make_attack("fab-t-linf:eps=0.14,targets=1,steps=20")
    left = (gap(walk(gap, x, y)).argmax(1) == y).numpy().astype(float)
    assert "boundary steps beat ascent" not in names(gap, x, y, threat, attacks={"fab": (walk, left)})


def test_a_finished_line_of_progress_names_no_check(digits_mlp, digits):
    """The name of the last check beside the finished count would read as a finding."""
    lines = []

    def progress(*line):
        lines.append(line)

    x, y = digits.test.x[:8], digits.test.y[:8]
    failure_indicators(digits_mlp, x, y, THREAT, passes=0, progress=progress)
    corruption_accuracy(digits_mlp, x, y, names=("noise", "blur"), progress=progress)
    notes = {(task, done == total): note for task, done, total, note in lines}
    assert notes["attack-failure checks", False] in CHECKS
    assert notes["attack-failure checks", True] == ""
    assert (notes["corrupting", False], notes["corrupting", True]) == ("blur", "")


def test_nothing_to_look_at(digits_mlp, digits):
    assert failure_indicators(digits_mlp, digits.test.x[:0], digits.test.y[:0], THREAT) == []


def test_a_budget_of_pixels_is_judged_without_checks_that_attack(digits_mlp, digits):
    x, y = digits.test.x[:30], digits.test.y[:30]
    tables = evaluate(digits_mlp, x, y, ["sigma-zero-l0:eps=2,steps=200"], corruptions=False)
    row = tables["robustness"].iloc[0]
    assert (row["norm"], row["eps"], row["status"]) == ("l0", 2, "ok")
    assert row["robust_accuracy"] < 0.5
    distance = tables["outcomes"]["distance"]
    assert bool((distance == distance.round()).all())
    assert set(tables["signs"]["name"]) == {
        "the gradient is not the function's",
        "random outputs",
        "outputs depend on the batch",
        "outputs are probabilities",
        "test-time optimisation",
        "zero gradients",
    }
    assert not tables["signs"]["seen"].any()
    curve = tables["curve"].set_index("at")["right"]
    assert [curve[eps] for eps in curve.index if eps >= 2] == [int((distance > e).sum()) for e in curve.index if e >= 2]
