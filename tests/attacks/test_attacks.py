import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robgib import AttackContractError, RobGIBError, SampleRNG, make_attack
from robgib.attacks import FGSM, MIFGSM, PGD, RFGSM, Attack, DeepFool, ThreatModel, carry
from robgib.models.inference import PreparedModel, count_queries, eval_mode, predict
from robgib.robustness import evaluate
from robgib.robustness.curve import accuracy_curve
from robgib.robustness.evaluate import named_attacks
from robgib.robustness.run_attack import run_attack


def perturb(spec, model, x, y, seed=0):
    with eval_mode(model):
        return make_attack(spec).perturb(model, x, y, SampleRNG(seed, range(len(x))))


def share_right(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_on_a_linear_model_is_the_exact_worst_case(norm):
    """On a linear two-class model the first-order step is optimal: the margin falls by eps times the dual norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(0))
    x = torch.full((1, 1, 3, 3), 0.5)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    y = model(x).argmax(1)
    dual = w.abs().sum() if norm == "linf" else w.norm()
    found = FGSM(norm, 0.05).perturb(model, x, y, SampleRNG(0, [0]))
    with torch.no_grad():
        margin = lambda v: (model(v)[0, 1] - model(v)[0, 0]) * (1 if y == 1 else -1)  # noqa: E731
        assert float(margin(x) - margin(found)) == pytest.approx(float(0.05 * dual), rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_stronger_than_fgsm_which_is_stronger_than_noise(norm, right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    eps = {"linf": 0.1, "l2": 0.5}[norm]
    noise, fgsm, pgd, restarts = (
        share_right(digits_mlp, perturb(spec, digits_mlp, x, y), y)
        for spec in (
            f"uniform-noise:norm={norm},eps={eps}",
            f"fgsm-{norm}:eps={eps}",
            f"pgd-{norm}:eps={eps}",
            f"pgd-{norm}:eps={eps},restarts=3",
        )
    )
    assert noise > fgsm > pgd >= restarts
    assert pgd < 0.5


def test_targeted_attacks_reach_their_targets(right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    found = perturb("pgd-linf:eps=0.4,steps=40,target=random", digits_mlp, x, y)
    with torch.no_grad():
        prediction = digits_mlp(found).argmax(1)
    assert float((prediction != y).float().mean()) > 0.9
    second = perturb("pgd-linf-targeted:eps=0.4", digits_mlp, x, y)
    with torch.no_grad():
        wanted = digits_mlp(x).scatter(1, y[:, None], -1e9).argmax(1)
        assert float((digits_mlp(second).argmax(1) == wanted).float().mean()) > 0.9


def test_best_is_never_worse_than_last_or_than_the_clean_image(right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    last = perturb("pgd-linf:eps=0.05,steps=5,keep=last", digits_mlp, x, y)
    best = perturb("pgd-linf:eps=0.05,steps=5", digits_mlp, x, y)
    loss = lambda v: nn.functional.cross_entropy(digits_mlp(v), y, reduction="none")  # noqa: E731
    with torch.no_grad():
        standing = digits_mlp(best).argmax(1) == y
        assert bool((digits_mlp(last).argmax(1) == y)[standing].all())
        assert bool((loss(best) >= loss(last) - 1e-6)[standing].all())
        assert bool((loss(best) >= loss(x) - 1e-6).all())


@pytest.mark.parametrize("spec", ["pgd-linf:eps=0.05", "pgd-l2:eps=0.3,restarts=2", "uniform-noise:eps=0.1"])
def test_the_same_seed_gives_the_same_images_in_any_batches(spec, right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    attack = make_attack(spec)
    small = run_attack(digits_mlp, x, y, attack, batch_size=7, seed=5)
    large = run_attack(digits_mlp, x, y, attack, batch_size=500, seed=5)
    assert (small.prediction == large.prediction).all()
    assert small.linf == pytest.approx(large.linf, abs=1e-5)
    other = run_attack(digits_mlp, x, y, attack, batch_size=500, seed=6)
    assert not np.allclose(other.l2, large.l2, atol=1e-6)


def test_model_is_left_as_it_was(right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    digits_mlp.train()
    digits_mlp[2].eval()
    modes = [m.training for m in digits_mlp.modules()]
    state = {k: v.clone() for k, v in digits_mlp.state_dict().items()}
    try:
        run_attack(digits_mlp, x, y, make_attack("pgd-linf"))
        assert [m.training for m in digits_mlp.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in digits_mlp.parameters())
        assert all(torch.equal(v, state[k]) for k, v in digits_mlp.state_dict().items())
    finally:
        digits_mlp.eval()


def test_wrong_samples_are_not_attacked_and_sizes_are_recorded(digits, digits_mlp):
    x, y = digits.test.x[:200], digits.test.y[:200].clone()
    y[:10] = (y[:10] + 1) % 10
    outcome = run_attack(digits_mlp, x, y, make_attack("pgd-linf:eps=0.1"), pictures=4)
    assert not outcome.linf[:10].any()
    assert outcome.linf.max() == pytest.approx(0.1, abs=1e-5)
    assert (outcome.l2 >= outcome.linf - 1e-6).all()
    assert len(outcome.pictures) == 4
    for row, image in outcome.pictures.items():
        assert outcome.prediction[row] != y[row]
        assert np.abs(image - x[row].numpy()).max() <= 0.1 + 1e-6


def test_curve_falls_and_passes_through_what_is_known(right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    attack = make_attack("pgd-linf:eps=0.1")
    clean = predict(digits_mlp, x)
    known = run_attack(digits_mlp, x, y, attack, clean=clean)
    points, _ = accuracy_curve(digits_mlp, x, y, attack, known, clean=clean)
    eps, right = zip(*points, strict=True)
    assert list(eps) == sorted(eps)
    assert list(right) == sorted(right, reverse=True)
    assert right[0] == len(x)
    assert dict(points)[0.1] == int((known.prediction == y.numpy()).sum())
    assert right[-1] < right[1]


class Wrong(Attack):
    how = ""

    def perturb(self, model, x, y, rng):
        return {
            "shape": lambda: x[:, :, 1:],
            "ball": lambda: (x + 0.5).clamp(0, 1),
            "box": lambda: x - 0.05,
            "nan": lambda: x * float("nan"),
            "type": lambda: x.numpy(),
        }[self.how]()


@pytest.mark.parametrize("how", ["shape", "ball", "box", "nan", "type"])
def test_broken_attacks_are_named(how, right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    attack = Wrong("linf", 0.1)
    object.__setattr__(attack, "how", how)
    with pytest.raises(AttackContractError, match=r"attack 'mine' (returned|left)"):
        run_attack(digits_mlp, x, y, attack, label="mine")


class Says(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.flatten(1).sum(1), r"must be logits of shape \(N, classes\)"),
        (lambda x: x, r"must be logits"),
        (lambda x: torch.zeros(len(x), 10) * float("nan"), "NaN or infinite logits on 4 of 4"),
        (lambda x: torch.zeros(len(x), 4), "4 logits, but the data have 10 classes"),
        (lambda x: nn.functional.linear(x.flatten(1), torch.zeros(10, 7)), "does not take images"),
    ],
)
def test_bad_models(answer, message):
    with pytest.raises(RobGIBError, match=message):
        predict(Says(answer), torch.rand(4, 1, 8, 8), classes=10)


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("restarts", 0), ("step_size", -1.0)])
def test_bad_parameters(field, value):
    with pytest.raises(RobGIBError, match=field):
        PGD("linf", 0.1, **{field: value})


def test_a_curve_of_distances_costs_a_minimal_norm_attack_nothing(right_by_mlp, digits_mlp):
    x, y = right_by_mlp[0][:60], right_by_mlp[1][:60]
    attack = make_attack("fab-t-linf:steps=20,targets=3,eps=0.08")
    clean = predict(digits_mlp, x)
    known = run_attack(digits_mlp, x, y, attack, clean=clean)
    assert np.isfinite(known.distance).all()
    assert ((known.distance <= 0.08 + 1e-6) == (known.prediction != y.numpy())).all()
    assert (known.linf[known.distance > 0.081] == 0).all()  # what lies outside the ball is not given out
    with count_queries(digits_mlp) as passes:
        points, nearest = accuracy_curve(
            PreparedModel(digits_mlp, digits_mlp, 64), x, y, attack, known, clean=clean, factors=(0.5, 2.0)
        )
    assert passes.forward == 0
    assert (nearest == known.distance).all()
    assert points == [(e, int((known.distance > e + 1e-6).sum())) for e in (0.0, 0.04, 0.08, 0.16)]
    direct = run_attack(digits_mlp, x, y, replace(attack, eps=0.04))
    assert points[1][1] == int((direct.prediction == y.numpy()).sum())


def test_the_sweep_finds_nearer_images(right_by_mlp, digits_mlp):
    x, y = right_by_mlp
    wrong = y.clone()
    wrong[:4] = (wrong[:4] + 1) % 10
    attack = make_attack("pgd-linf:eps=0.1")
    clean = predict(digits_mlp, x)
    known = run_attack(digits_mlp, x, wrong, attack, clean=clean)
    assert (known.distance[:4] == 0).all()
    _, nearest = accuracy_curve(digits_mlp, x, wrong, attack, known, clean=clean)
    assert (nearest <= known.distance).all()
    assert (nearest[4:] > 0).all()
    fooled = known.prediction[4:] != y.numpy()[4:]
    assert (known.distance[4:][fooled] <= 0.1 + 1e-6).all()
    assert np.isinf(known.distance[4:][~fooled]).all()
    assert np.median(nearest[4:][fooled]) < 0.9 * np.median(known.distance[4:][fooled])


class Meddler(Attack):
    def perturb(self, model, x, y, rng):
        with torch.no_grad():
            model[-1].bias[0] += 100
        return x


def test_a_model_that_an_attack_changed_is_mended(right_by_mlp, digits_mlp):
    x, y = right_by_mlp[0][:20], right_by_mlp[1][:20]
    before = {k: v.clone() for k, v in digits_mlp.state_dict().items()}
    with pytest.raises(RobGIBError, match=r"attack 'mine' changed the model \(3.bias\)"):
        run_attack(digits_mlp, x, y, Meddler("linf", 8 / 255), label="mine")
    assert all(torch.equal(v, before[k]) for k, v in digits_mlp.state_dict().items())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_is_called(norm, digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    attack = PGD(norm=norm, eps=eps, steps=5)
    whole = attack(digits_mlp, x, y, seed=3)
    assert bool(attack.threat.allows(whole, x).all())
    assert torch.equal(whole, attack(digits_mlp.train(), x, y, seed=3))
    assert digits_mlp.training
    digits_mlp.eval()
    assert torch.allclose(whole, attack(digits_mlp, x, y, seed=3, batch_size=17), atol=1e-5)
    assert not torch.equal(whole, attack(digits_mlp, x, y, seed=4))
    taken = run_attack(digits_mlp, x, y, attack, seed=3)
    with torch.no_grad():
        assert (digits_mlp(whole).argmax(1) == y).float().mean() == pytest.approx(taken.right.mean(), abs=0.03)
    assert attack(digits_mlp, x[:0], y[:0]).shape == (0, 1, 8, 8)


def test_a_call_with_what_is_no_image_is_refused(digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    with pytest.raises(RobGIBError, match=r"outside \[0, 1\]"):
        PGD("linf", 0.1)(digits_mlp, 255 * x, y)
    with pytest.raises(RobGIBError, match="one label an image"):
        PGD("linf", 0.1)(digits_mlp, x, y[:3])
    with pytest.raises(RobGIBError, match="more than the whole box"):
        PGD("l2", 100)(digits_mlp, x, y)


def _attacked(way, model, x, y, attack):
    if way == "call":
        return attack(model, x, y)
    quiet = {"signs": False, "curve": False, "corruptions": False} if way == "evaluate" else {}
    return (evaluate(model, x, y, [attack], **quiet) if way == "evaluate" else run_attack(model, x, y, attack),)


@pytest.mark.parametrize("way", ["call", "run_attack", "evaluate"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        pytest.param(lambda x: 2 * x - 1, lambda y: y, r"outside \[0, 1\]", id="range"),
        pytest.param(lambda x: x / (x > 0), lambda y: y, r"outside \[0, 1\]", id="NaN"),
        pytest.param(lambda x: x.half(), lambda y: y, r"float16 of shape .* give images.float", id="half"),
        pytest.param(lambda x: x, lambda y: y - y.max() - 1, "is no class number, which count from 0", id="negative"),
        pytest.param(lambda x: x, lambda y: y + 10, "10 classes|returns 10 logits", id="beyond"),
        pytest.param(
            lambda x: carry(x, mask=torch.ones(8, 8).bool()), lambda y: y, "masks must be booleans", id="mask"
        ),
        pytest.param(lambda x: carry(x, mask=torch.ones_like(x)), lambda y: y, "not float32 of shape", id="mask type"),
        pytest.param(
            lambda x: carry(x, targets=torch.zeros(len(x))), lambda y: y, "targets must be class numbers", id="targets"
        ),
        pytest.param(
            lambda x: carry(x, targets=torch.full((len(x),), 10)), lambda y: y, "10 classes|returns 10", id="target 10"
        ),
    ],
)
def test_images_and_labels_that_do_not_fit_are_named_before_any_attack(
    way, images, labels, message, digits_mlp, right_by_mlp
):
    x, y = right_by_mlp
    with pytest.raises(RobGIBError, match=message):
        _attacked(way, digits_mlp, images(x[:8]), labels(y[:8]), PGD("linf", 0.1, steps=1))


def test_a_target_is_no_label_and_has_no_other_rule(digits_mlp, right_by_mlp):
    x, y = (part[:8] for part in right_by_mlp)
    with pytest.raises(RobGIBError, match=r"the target of image 0 is its label"):
        PGD("linf", 0.1)(digits_mlp, carry(x, targets=y), y)
    images = carry(x, targets=(y + 1) % 10)
    for attack in (PGD, FGSM, MIFGSM, RFGSM):
        with pytest.raises(RobGIBError, match=r"the images carry targets, and the attack has target=random"):
            attack("linf", 0.1, target="random")(digits_mlp, images, y)


def test_no_images_are_one_sentence(digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    for way in ("run_attack", "evaluate"):
        with pytest.raises(RobGIBError, match="there are no images; give at least one"):
            _attacked(way, digits_mlp, x[:0], y[:0], PGD("linf", 0.1))


def test_a_call_averages_over_the_draws_that_are_given(digits_mlp, right_by_mlp):
    """A gradient of 10 draws takes 10 calls."""
    x, y = (part[:4] for part in right_by_mlp)
    for kind in (PGD, DeepFool):
        passes = {}
        for eot in (None, 10):
            with count_queries(digits_mlp) as counted:
                kind("linf", 0.01, steps=3, eot=eot)(digits_mlp, x, y)
            passes[eot] = counted.backward
        assert passes[10] == 10 * passes[None]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision_is_called_with_images_of_float32(kind, digits_mlp, right_by_mlp):
    x, y = (part[:8] for part in right_by_mlp)
    coarse = copy.deepcopy(digits_mlp).to(kind)
    images = PGD("linf", 0.2, steps=5)(coarse, x, y)
    assert images.dtype == torch.float32
    assert (digits_mlp(images).argmax(1) != y).float().mean() > 0.5


def test_a_radius_may_be_a_number_of_numpy():
    for number in (np.float32(0.1), np.float64(0.1)):
        assert PGD("linf", number) == PGD("linf", 0.1)
        assert ThreatModel("linf", number).eps == 0.1
        assert list(named_attacks("quick", norm="linf", eps=number)) == ["fgsm-linf:eps=0.1", "pgd-linf:eps=0.1"]
    assert next(iter(named_attacks("quick", norm="l2", eps=np.array([0.5])))) == "fgsm-l2:eps=0.5"
