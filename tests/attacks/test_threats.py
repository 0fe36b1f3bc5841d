"""Further threat models: known answers."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, SampleRNG, make_attack
from robgib.attacks import (
    ALMA,
    DDN,
    FAB,
    FMN,
    PDGD,
    PDPGD,
    PGD,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    Patch,
    RotationTranslation,
    SigmaZero,
    SuperDeepFool,
    ThreatModel,
    Transfer,
)
from robgib.attacks.carried import carry
from robgib.attacks.rotation import rotated
from robgib.errors import AttackContractError
from robgib.models.inference import count_queries
from robgib.robustness import run_attack


@pytest.fixture
def linear():
    """Two classes on 16 values; class 1 where the weighted sum exceeds 1, at 0.5 everywhere it is 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    weight = torch.linspace(-1, 1, 16)
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), weight]))
        model[1].bias.copy_(torch.tensor([0.0, -1.0]))
    return model, weight


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", 1)])
def test_hop_skip_jump_finds_the_distance_of_a_plane(norm, order, linear):
    """From 0.5 everywhere it is 1 / |w| in the dual norm."""
    model, weight = linear
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    truth = 1 / float(torch.linalg.vector_norm(weight, ord=order))
    with count_queries(model) as passes:
        result = run_attack(model, x, y, HopSkipJump(norm, 0.49 if norm == "linf" else 1.0, queries=3000))
    assert truth <= result.distance.min()
    assert result.distance.max() <= 1.05 * truth
    assert passes.backward == 0
    assert result.passes.forward <= 3 * 3000 + 20
    alone = run_attack(model, x[1:2], y[1:2], HopSkipJump(norm, 0.4, queries=3000), index=[1])
    assert alone.distance[0] == pytest.approx(result.distance[1], rel=1e-4)  # whatever its batch


def test_hop_skip_jump_keeps_to_its_queries(linear):
    model, _ = linear
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    for queries in (1, 60, 200):
        with count_queries(model) as passes, torch.no_grad():
            HopSkipJump("l2", 1.0, queries=queries).find(model, x, y, SampleRNG(0, [0, 1]))
        assert passes.forward <= 2 * queries


class Square(nn.Module):
    """Logits (N, 2): class 1 where the mean of the corner of 2 × 2 pixels at the bottom right exceeds 0.5."""

    def forward(self, x):
        mean = x[:, :, -2:, -2:].mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1) * 10


def test_a_patch_finds_the_place_that_decides():
    x, y = torch.full((3, 1, 6, 6), 0.2), torch.zeros(3, dtype=torch.int64)
    x[:, :, 0, 0] = torch.tensor([[0.1], [0.3], [0.4]])
    result = run_attack(Square(), x, y, Patch("patch", 2), pictures=3)
    assert result.right.tolist() == [0, 0, 0]
    changed = np.abs(result.pictures[0] - x[0].numpy())[0] > 0
    assert changed[-2:, -2:].any()
    assert not changed[:-2].any()
    assert not changed[:, :-2].any()
    assert result.distance.max() <= 2
    far = run_attack(Square(), x, y, Patch("patch", 1))  # one pixel raises the mean to 0.4
    assert far.right.tolist() == [1, 1, 1]


def test_a_patch_is_judged_by_the_square_that_holds_its_changes():
    x = torch.zeros(4, 3, 8, 8)
    changed = x.clone()
    changed[0, 1, 2:5, 4:7] = 1  # 3 × 3
    changed[1, 0, 0, 0] = changed[1, 2, 0, 5] = 1  # 1 × 6
    changed[2, :, 7, 7] = 1
    threat = ThreatModel("patch", 3)
    assert threat.distance(changed, x).tolist() == [3, 6, 1, 0]
    assert threat.allows(changed, x).tolist() == [True, False, True, True]

    class Stripe(Patch):
        def perturb(self, model, x, y, rng):
            return torch.cat([torch.ones_like(x[..., :1]), x[..., 1:]], -1)

    x = torch.full((1, 1, 6, 6), 0.2)
    with pytest.raises(AttackContractError, match=r"patch distance 6 .eps 2."):
        run_attack(Square(), x, torch.tensor([0]), Stripe("patch", 2))
    with pytest.raises(RobGIBError, match="the side of a patch in pixels, a whole number"):
        Patch("patch", 2.5)


class Upright(nn.Module):
    """Logits (N, 2): class 0 where the middle column is brighter than the middle row."""

    def forward(self, x):
        column, row = x[:, 0, :, 4].mean(1), x[:, 0, 4].mean(1)
        return torch.stack([column, row], 1) * 10


def test_a_rotation_is_found_and_made_again_from_its_parameters():
    """A vertical bar is right up to 45°; beyond, the row is brighter."""
    bar = torch.zeros(2, 1, 9, 9)
    bar[:, :, :, 4] = 1
    y = torch.zeros(2, dtype=torch.int64)
    attack = RotationTranslation("rotation", 60, shift=0.0)
    result = run_attack(Upright(), bar, y, attack, pictures=2)
    assert result.right.tolist() == [0, 0]
    assert (result.distance > 40).all()
    assert (result.distance <= 60).all()
    parameters = attack.find_parameters(Upright(), bar, y, SampleRNG(0, [0, 1]))
    assert np.allclose(rotated(bar, parameters)[0].numpy(), result.pictures[0], atol=1e-6)
    assert run_attack(Upright(), bar, y, RotationTranslation("rotation", 30, shift=0.0)).right.tolist() == [1, 1]
    moved = run_attack(Upright(), bar, y, RotationTranslation("rotation", 1e-6, shift=0.2))
    assert moved.right.tolist() == [0, 0]  # the bar left the middle column: both are as bright, or the row is


def test_gradient_steps_refine_the_grid():
    bar = torch.zeros(1, 1, 9, 9)
    bar[:, :, :, 4] = 1
    y = torch.zeros(1, dtype=torch.int64)
    coarse = {"shift": 0.0, "angles": 3}  # -50, 0 and 50 degrees
    assert run_attack(Upright(), bar, y, RotationTranslation("rotation", 44, steps=0, **coarse)).right.tolist() == [1]
    start = RotationTranslation("rotation", 44, steps=0, **coarse).find_parameters(Upright(), bar, y, SampleRNG(0, [0]))
    refined = RotationTranslation("rotation", 44, **coarse).find_parameters(Upright(), bar, y, SampleRNG(0, [0]))

    def loss(parameters):
        return float(nn.functional.cross_entropy(Upright()(rotated(bar, parameters)), y))

    assert loss(refined) >= loss(start)


def test_parameters_outside_the_threat_model_are_refused():
    class Far(RotationTranslation):
        def find_parameters(self, model, x, y, rng):
            return torch.tensor([[self.far, 0.0, self.down]]).expand(len(x), 3)

    x, y = torch.rand(2, 1, 9, 9), torch.zeros(2, dtype=torch.int64)
    for far, down in ((31.0, 0.0), (0.0, 2.0)):
        Far.far, Far.down = far, down
        with pytest.raises(AttackContractError, match="left its threat model on 2 of 2 images: the first has the para"):
            run_attack(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.mean(), x, y, Far("rotation", 30))


MASKED = ["fgsm-linf", "pgd-linf", "pgd-l2", "pgd-l1", "apgd-ce-linf", "apgd-ce-l2", "apgd-t-linf", "square-linf",
          "square-l2", "mifgsm-linf", "rfgsm-linf", "fast-linf", "autoattack-l2"]  # fmt: skip


@pytest.mark.parametrize("spec", MASKED)
def test_attacks_change_what_the_mask_allows_only(spec, digits_mlp, digits):
    """Each picture has its own half; the attacks find some, but fewer than without a mask."""
    x, y = digits.test.x[:16], digits.test.y[:16]
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[::2, :, :, :4] = True
    mask[1::2, :, 4:] = True
    eps = {"l2": 1.5, "l1": 8, "nf": 0.3}[spec[-2:]]
    short = {
        "square": ",queries=200",
        "fast": ",short=5,long=5,probe=5",
        "autoattack": ",queries=100,steps=10,targets=2",
    }
    attack = make_attack(f"{spec}:eps={eps}{short.get(spec.partition('-')[0], '')}")
    images = carry(x, mask=mask)
    result = run_attack(digits_mlp, images, y, attack, pictures=16)
    assert (result.right == 0).sum() > 0
    for row, picture in result.pictures.items():
        assert not (picture != x[row].numpy())[~mask[row].numpy()].any()
    again = attack(digits_mlp, images, y)
    assert not (again != x)[~mask].any()


def test_the_mask_of_a_linear_model_leaves_its_share_of_the_margin(linear):
    """Of the dual norm of w only the free pixels count, so the smallest radius that fools grows."""
    model, weight = linear
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask.flatten(1)[:, :4] = True
    images = carry(x, mask=mask)
    truth = 1 / float(torch.linalg.vector_norm(weight[:4]))
    for norm, radius in (("l2", truth), ("linf", 1 / float(weight[:4].abs().sum()))):
        assert run_attack(model, images, y, PGD(norm, 0.98 * radius, steps=40)).right.tolist() == [1]
        assert run_attack(model, images, y, PGD(norm, 1.02 * radius, steps=40)).right.tolist() == [0]


NEAREST = {
    "linf": [FAB, FMN, DeepFool, HopSkipJump, PDPGD],
    "l2": [FAB, FMN, DeepFool, HopSkipJump, PDPGD, PDGD, ALMA, CarliniWagner, DDN, SuperDeepFool],
    "l1": [FAB, FMN, PDPGD, ALMA],
    "l0": [FMN, SigmaZero],
}


@pytest.mark.parametrize(("norm", "kind"), [(norm, kind) for norm, kinds in NEAREST.items() for kind in kinds])
def test_minimum_norm_attacks_find_the_distance_inside_the_mask(norm, kind, linear):
    """Under L1 two pixels reach the box, and a third does the rest; L0 needs three."""
    model, weight = linear
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    x[:, :, 1:3] = 0.9  # held, with no effect on the logits
    mask = torch.zeros_like(x, dtype=torch.bool)
    first = 1 if norm == "l1" else 0  # else two pixels at the edge of the box would lie on the plane itself
    mask[:, :, ::3, first:] = True
    free = weight.view(4, 4)[::3, first:]
    order = {"linf": 1, "l2": 2}
    truth = (
        1 / float(torch.linalg.vector_norm(free, ord=order[norm])) if norm in order else {"l1": 1.077, "l0": 3}[norm]
    )
    names = {field.name for field in dataclasses.fields(kind)}
    effort = {"queries": 1500} if "queries" in names else {"steps": 200 if kind in (ALMA, PDGD, PDPGD, DDN) else 30}
    attack = kind(norm, 4 if norm == "l0" else 1.3 * truth, **effort)
    found = attack.find(model, carry(x, mask=mask), carry(y, mask=mask), SampleRNG(0, [0, 1]))
    assert not (found != x)[~mask].any()
    result = run_attack(model, carry(x, mask=mask), y, attack)
    assert result.right.tolist() == [0, 0]
    assert (result.distance >= 0.999 * truth).all()
    assert (result.distance <= (1.2 if norm == "l1" else 1.06) * truth).all()  # proximal steps under L1 are rough


def test_a_found_image_outside_the_mask_is_an_error_at_any_distance(linear):
    class Far(DeepFool):
        pooled = False

        def find(self, model, x, y, rng):
            return torch.ones_like(x)

    model, _ = linear
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    images = carry(x, mask=torch.zeros_like(x, dtype=torch.bool))
    for call in (lambda: run_attack(model, images, y, Far("l2", 0.1)), lambda: Far("l2", 0.1)(model, images, y)):
        with pytest.raises(AttackContractError, match=r"on 2 of 2 images: it changed pixels outside their mask"):
            call()


def test_a_pixel_outside_the_mask_is_an_error_of_the_attack(digits_mlp, digits):
    class Blind(PGD):
        pooled = False

        def perturb(self, model, x, y, rng):
            return (x + 0.1).clamp(0, 1)

    x, y = digits.test.x[:4], digits.test.y[:4]
    images = carry(x, mask=torch.zeros_like(x, dtype=torch.bool))
    with pytest.raises(AttackContractError, match=r"left its threat model on 4 of 4 images: .* outside their mask"):
        run_attack(digits_mlp, images, y, Blind("linf", 0.2))


@pytest.mark.parametrize("spec", ["fgsm-linf", "pgd-linf", "apgd-ce-linf", "square-linf:queries=300", "patch:places=2"])
def test_only_the_target_counts_as_success(spec, digits_mlp, digits):
    x, y = digits.test.x[:16], digits.test.y[:16]
    right = digits_mlp(x).argmax(1) == y
    x, y = x[right], y[right]
    targets = (y + 1) % 10
    spec = spec if spec.startswith("patch") else f"{spec}{',' if ':' in spec else ':'}eps=0.4"
    result = run_attack(digits_mlp, carry(x, targets=targets), y, make_attack(spec), pictures=16)
    answers = {row: int(digits_mlp(torch.tensor(image)[None]).argmax(1)) for row, image in result.pictures.items()}
    assert all(answers[row] == int(targets[row]) for row in answers)
    assert sorted(answers) == np.flatnonzero(result.right == 0).tolist()
    untargeted = run_attack(digits_mlp, x, y, make_attack(spec))
    assert result.right.sum() >= untargeted.right.sum()
    assert (result.right == 0).any() or spec.startswith(("fgsm", "patch"))


def test_attacks_without_a_targeted_form_say_so(digits_mlp, digits):
    x, y = digits.test.x[:4], digits.test.y[:4]
    with pytest.raises(RobGIBError, match="attack 'attack' cannot aim at given target classes; use pgd"):
        run_attack(digits_mlp, carry(x, targets=(y + 1) % 10), y, make_attack("fab-linf"))


def test_a_surrogate_of_fewer_classes_is_one_sentence(digits_mlp, digits):
    x, y = digits.test.x[:16], digits.test.y[:16]
    attack = Transfer.of(PGD("linf", 0.1, steps=1), nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    for call in (lambda: run_attack(digits_mlp, x, y, attack), lambda: attack(digits_mlp, x, y)):
        with pytest.raises(RobGIBError, match=f"has 5 classes, and the labels reach {int(y.max())}; transfer"):
            call()
