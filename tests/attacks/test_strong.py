"""Auto-PGD, Square, R+FGSM, MI-FGSM: the papers' rules, their peers, and what they find."""

import numpy as np
import pytest
import torch
from torch import nn

import robgib._torchvision  # noqa: F401
from robgib import RobGIBError, SampleRNG, ThreatModel, check_attack, make_attack
from robgib.attacks import APGD, FAB, MIFGSM, PGD, RFGSM, AutoAttack, Goal, Square, cascade
from robgib.attacks.apgd import checkpoints
from robgib.attacks.square import _pattern, _window

torchattacks = pytest.importorskip("torchattacks")

EPS = {"linf": 0.15, "l2": 1.0}


def robust(model, x, y, attack):
    found = attack.perturb(model, x, y, SampleRNG(0, range(len(x))))
    assert attack.threat.allows(found, x).all()
    with torch.no_grad():
        return float((model(found).argmax(1) == y).float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: APGD(t, steps=20),
        lambda t: APGD(t, steps=10, loss="dlr", restarts=2),
        lambda t: APGD(t, steps=10, loss="dlr", targets=3),
        lambda t: Square(t, queries=60),
        lambda t: Square(t, queries=20, restarts=2),
        RFGSM,
        MIFGSM,
        lambda t: AutoAttack(t, steps=5, targets=2, queries=20),
    ],
    ids=["apgd-ce", "apgd-dlr", "apgd-t", "square", "square-restarts", "rfgsm", "mifgsm", "autoattack"],
)
def test_contract(make, norm):
    broken = [c for c in check_attack(make(ThreatModel(norm, 0.2))) if not c.passed]
    assert not broken


def test_checkpoints_come_ever_more_often():
    turns = checkpoints(100)
    assert turns[:3] == [22, 41, 57]
    gaps = np.diff(turns)
    assert (np.diff(gaps) <= 0).all()
    assert gaps.min() == 6
    assert checkpoints(1) == [1]


def test_dlr_against_its_formula():
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, 2.5, 0.0, 1.0]])
    y, t = torch.tensor([0, 0]), torch.tensor([1, 1])
    plain = Goal(y, False, "dlr").objective(logits)
    assert plain.tolist() == pytest.approx([-(3 - 2) / (3 - 1), -(0.5 - 2.5) / (2.5 - 0.5)])
    towards = Goal(t, True, "dlr", truth=y).objective(logits)
    assert towards.tolist() == pytest.approx([-(3 - 1) / (3 - (1 - 1) / 2), -(0.5 - 2.5) / (2.5 - (0.5 + 0.0) / 2)])
    scaled = Goal(y, False, "dlr").objective(100 * logits + 7)
    assert torch.allclose(plain, scaled)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_at_least_as_strong_as_pgd(digits_cnn, right_digits, norm):
    threat = ThreatModel(norm, EPS[norm])
    apgd = robust(digits_cnn, *right_digits, APGD(threat, steps=50))
    targeted = robust(digits_cnn, *right_digits, APGD(threat, steps=30, loss="dlr", targets=9))
    pgd = robust(digits_cnn, *right_digits, PGD(threat, steps=50))
    assert apgd <= pgd + 0.02
    assert targeted <= pgd + 0.02


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
@pytest.mark.parametrize(("loss", "targets"), [("ce", 0), ("dlr", 0), ("dlr", 9)])
def test_apgd_agrees_with_torchattacks(digits_cnn, right_digits, norm, name, loss, targets):
    x, y = right_digits
    mine = robust(digits_cnn, x, y, APGD(ThreatModel(norm, EPS[norm]), steps=20, loss=loss, targets=targets))
    if targets:
        peer = torchattacks.APGDT(digits_cnn, norm=name, eps=EPS[norm], steps=20, n_classes=10, seed=0)
    else:
        peer = torchattacks.APGD(digits_cnn, norm=name, eps=EPS[norm], steps=20, loss=loss, seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = float((digits_cnn(peer(x, y)).argmax(1) == y).float().mean())
    # Random starts differ: 128 images, robust accuracy within its 95% interval.
    assert abs(mine - theirs) <= 1.96 * np.sqrt(max(theirs * (1 - theirs), 0.02) / len(x))


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_square_agrees_with_torchattacks(digits_cnn, right_digits, norm, name):
    x, y = right_digits
    mine = robust(digits_cnn, x, y, Square(ThreatModel(norm, EPS[norm]), queries=200))
    peer = torchattacks.Square(digits_cnn, norm=name, eps=EPS[norm], n_queries=200, seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = float((digits_cnn(peer(x, y)).argmax(1) == y).float().mean())
    assert mine <= theirs + 1.96 * np.sqrt(2 * max(theirs * (1 - theirs), 0.02) / len(x))


def test_mifgsm_makes_the_images_of_torchattacks(digits_cnn, right_digits):
    x, y = (v[:40] for v in right_digits)
    mine = MIFGSM(ThreatModel("linf", 0.1), step_size=0.02).perturb(digits_cnn, x, y, SampleRNG(0, range(40)))
    peer = torchattacks.MIFGSM(digits_cnn, eps=0.1, alpha=0.02, steps=10, decay=1.0)
    theirs = torch.cat([peer(x[[i]], y[[i]]) for i in range(40)])
    # It divides gradients by the mean of absolute values where the paper takes the sum: a factor that signs ignore.
    assert float((mine - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("make", [lambda t: APGD(t, steps=5), lambda t: APGD(t, steps=3, restarts=2)])
def test_ascent_never_ends_below_the_clean_loss(digits_cnn, right_digits, make, norm):
    x, y = right_digits
    goal = Goal(y, False, "ce")
    found = make(ThreatModel(norm, EPS[norm] / 5)).perturb(digits_cnn, x, y, SampleRNG(0, range(len(x))))
    with torch.no_grad():
        logits, clean = digits_cnn(found), digits_cnn(x)
    fooled = logits.argmax(1) != y
    assert (fooled | (goal.objective(logits) >= goal.objective(clean) - 1e-6)).all()


def test_square_needs_no_gradient(right_digits, digits_cnn):
    class Staircase(nn.Module):
        def forward(self, x):
            return digits_cnn((x * 8).round() / 8)

    x, y = right_digits
    model = Staircase().eval()
    with torch.no_grad():
        keep = model(x).argmax(1) == y
    threat = ThreatModel("linf", EPS["linf"])
    assert robust(model, x[keep], y[keep], APGD(threat, steps=10)) > 0.9  # its gradients are zero
    assert robust(model, x[keep], y[keep], Square(threat, queries=300)) < 0.8


def test_squares_lie_inside_and_patterns_have_norm_one():
    x = torch.zeros(50, 1, 9, 7)
    u, v = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) * 0.999999
    for side in (1, 3, 6):
        assert (_window(x, side, u, v).sum((1, 2, 3)) == side**2).all()
        pattern = _pattern(side, x)
        assert float(pattern.norm()) == pytest.approx(1, abs=1e-6)


def test_too_few_classes_for_dlr():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(5, 1, 2, 2)
    y = model(x).argmax(1)
    with pytest.raises(RobGIBError, match="needs 4 classes and the model has 3; use loss=margin"):
        APGD(ThreatModel("linf", 0.1), loss="dlr", targets=2).perturb(model, x, y, SampleRNG(0, range(5)))
    assert APGD(ThreatModel("linf", 0.1), loss="margin", targets=2).perturb(model, x, y, SampleRNG(0, range(5))).shape


def test_the_standard_ensemble_and_its_budgets():
    ensemble = make_attack("autoattack-linf:eps=8/255")
    ce, targeted, fab, square = ensemble.members(10)
    assert (ce, targeted) == (
        APGD(ensemble.threat, steps=100, restarts=1, loss="ce"),
        APGD(ensemble.threat, steps=100, restarts=1, loss="dlr", targets=9),
    )
    assert fab == FAB(ensemble.threat, steps=100, restarts=1, targeted=True, targets=9)
    assert square == Square(ensemble.threat, queries=5000, restarts=1)
    assert ensemble.members(2)[1].loss == "margin"


def test_a_cascade_gives_later_attacks_the_survivors_only(digits_cnn, right_digits):
    x, y = right_digits
    seen = []

    class Recorded(PGD):
        def perturb(self, model, x, y, rng):
            seen.append(len(x))
            return super().perturb(model, x, y, rng)

    threat = ThreatModel("linf", 0.08)
    first = Recorded(threat, steps=3)
    found = cascade([first, Recorded(threat, steps=20)], digits_cnn, x, y, SampleRNG(0, range(len(x))))
    alone = first.perturb(digits_cnn, x, y, SampleRNG(0, range(len(x))))
    with torch.no_grad():
        fooled = digits_cnn(alone).argmax(1) != y
        both = digits_cnn(found).argmax(1) != y
    assert seen[:2] == [len(x), int((~fooled).sum())]
    assert torch.equal(found[fooled], alone[fooled])
    assert (both | ~fooled).all()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_autoattack_is_as_strong_as_that_of_torchattacks(digits_cnn, right_digits, norm, name):
    x, y = (v[:60] for v in right_digits)
    eps = {"linf": 0.08, "l2": 0.35}[norm]
    mine = robust(digits_cnn, x, y, AutoAttack(ThreatModel(norm, eps)))
    # Its ensemble leaves more right than its own APGD-T, which therefore counts too.
    peers = (
        torchattacks.AutoAttack(digits_cnn, norm=name, eps=eps, version="standard", n_classes=10, seed=0),
        torchattacks.APGDT(digits_cnn, norm=name, eps=eps, steps=100, n_classes=10, seed=0),
    )
    with torch.random.fork_rng(devices=[]):
        images = [peer(x, y).detach() for peer in peers]
    with torch.no_grad():
        theirs = min(float((digits_cnn(found).argmax(1) == y).float().mean()) for found in images)
    assert 0.1 < theirs < 0.9
    assert mine <= theirs + 0.02  # both are upper bounds: the lower is the nearer


@pytest.mark.parametrize(
    "spec",
    ["autoattack-linf:steps=0",
     "apgd-ce-linf:steps=0", "apgd-t-linf:targets=-1", "apgd-ce-linf:rho=1", "square-linf:queries=0",
     "square-l2:area=0", "rfgsm-linf:start=1", "mifgsm-linf:steps=0", "mifgsm-linf:decay=-1"],
)  # fmt: skip
def test_bad_options(spec):
    with pytest.raises(RobGIBError, match="must"):
        make_attack(spec)
