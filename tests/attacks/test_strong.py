"""Auto-PGD, Square, R+FGSM, MI-FGSM: the papers' rules, their peers, and what they find."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, RobGIBWarning, SampleRNG, ThreatModel, check_attack, make_attack
from robgib.attacks import (
    APGD,
    FAB,
    MIFGSM,
    PGD,
    RFGSM,
    AutoAttack,
    Criterion,
    FastEnsemble,
    Objective,
    Square,
    cascade,
)
from robgib.attacks.apgd import _changed, _sparse_step, checkpoints
from robgib.attacks.fast import _State
from robgib.attacks.linearization import boundary_distances, wrong_classes
from robgib.attacks.square import _patterns, _pyramid, _sides, _window
from robgib.errors import NoGradientError
from robgib.models.inference import BatchedModel, count_queries
from tests.attacks.test_minimal import advlib_or_skip
from tests.unusual import HardOfHearing, Rippled, Terraces

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
        lambda *t: APGD(*t, steps=20),
        lambda *t: APGD(*t, steps=10, loss="dlr", restarts=2),
        lambda *t: APGD(*t, steps=10, loss="dlr", targets=3),
        lambda *t: Square(*t, queries=60),
        lambda *t: Square(*t, queries=20, restarts=2),
        RFGSM,
        MIFGSM,
        lambda *t: AutoAttack(*t, steps=5, targets=2, queries=20),
    ],
    ids=["apgd-ce", "apgd-dlr", "apgd-t", "square", "square-restarts", "rfgsm", "mifgsm", "autoattack"],
)
def test_contract(make, norm):
    broken = [c for c in check_attack(make(norm, 0.2)) if not c.passed]
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
    plain = Objective.untargeted(y, "dlr").value(logits)
    assert plain.tolist() == pytest.approx([-(3 - 2) / (3 - 1), -(0.5 - 2.5) / (2.5 - 0.5)])
    towards = Objective("dlr", t, Criterion(y), targeted=True).value(logits)
    assert towards.tolist() == pytest.approx([-(3 - 1) / (3 - (1 - 1) / 2), -(0.5 - 2.5) / (2.5 - (0.5 + 0.0) / 2)])
    scaled = Objective.untargeted(y, "dlr").value(100 * logits + 7)
    assert torch.allclose(plain, scaled)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_at_least_as_strong_as_pgd(digits_mlp, right_by_mlp, norm):
    threat = ThreatModel(norm, EPS[norm])
    apgd = robust(digits_mlp, *right_by_mlp, APGD(threat.norm, threat.eps, steps=50))
    targeted = robust(digits_mlp, *right_by_mlp, APGD(threat.norm, threat.eps, steps=30, loss="dlr", targets=9))
    pgd = robust(digits_mlp, *right_by_mlp, PGD(threat.norm, threat.eps, steps=50))
    assert apgd <= pgd + 0.02
    assert targeted <= pgd + 0.02


def test_large_to_small_apgd_needs_no_gradient_near_the_clean_image():
    model, x, y = HardOfHearing().eval(), torch.full((50, 1, 8, 8), 0.5), torch.zeros(50, dtype=torch.long)
    left = {}
    for widest in (None, 1.0, 4.0, 8.0):
        attack = APGD("l2", 0.4, schedule_start=widest)
        found = attack.perturb(model, x, y, SampleRNG(0, range(50)))
        assert attack.threat.allows(found, x).all()
        left[widest] = float((model(found).argmax(1) == y).float().mean())
    # One pixel, 0.25 from grey, is enough; from 64 at random, none is that far.
    assert left[None] == left[1.0] == 1
    assert left[8.0] < left[4.0] < 0.6
    assert left[8.0] < 0.3


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.35), ("l1", 2.0)])
def test_large_to_small_apgd_ends_in_the_ball(digits_mlp, right_by_mlp, norm, eps):
    x, y = (v[:32] for v in right_by_mlp)
    attack = make_attack(f"apgd-ce-{norm}:steps=20,schedule_start=50").at(eps)
    with count_queries(digits_mlp) as passes:
        found = attack.perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))
    assert attack.threat.allows(found, x).all()
    assert 0 < int((digits_mlp(found).argmax(1) != y).sum()) < len(x)
    # Four balls of the five are gone through by every sample.
    assert passes.backward >= 4 * 4 * len(x)


@pytest.mark.parametrize("start", ["0.5", "inf", "wide"])
def test_a_first_ball_below_eps_is_refused(start):
    with pytest.raises(RobGIBError, match="schedule_start"):
        make_attack(f"apgd-ce-l2:schedule_start={start}")


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
@pytest.mark.parametrize(("loss", "targets"), [("ce", 0), ("dlr", 0), ("dlr", 9)])
def test_apgd_agrees_with_torchattacks(digits_mlp, right_by_mlp, norm, name, loss, targets):
    x, y = right_by_mlp
    mine = robust(digits_mlp, x, y, APGD(norm, EPS[norm], steps=20, loss=loss, targets=targets))
    if targets:
        peer = torchattacks.APGDT(digits_mlp, norm=name, eps=EPS[norm], steps=20, n_classes=10, seed=0)
    else:
        peer = torchattacks.APGD(digits_mlp, norm=name, eps=EPS[norm], steps=20, loss=loss, seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = float((digits_mlp(peer(x, y)).argmax(1) == y).float().mean())
    # Random starts differ: 128 images, robust accuracy within its 95% interval.
    assert abs(mine - theirs) <= 1.96 * np.sqrt(max(theirs * (1 - theirs), 0.02) / len(x))


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_square_agrees_with_torchattacks(digits_mlp, right_by_mlp, norm, name):
    x, y = right_by_mlp
    mine = robust(digits_mlp, x, y, Square(norm, EPS[norm], queries=200))
    peer = torchattacks.Square(digits_mlp, norm=name, eps=EPS[norm], n_queries=200, seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = float((digits_mlp(peer(x, y)).argmax(1) == y).float().mean())
    assert mine <= theirs + 1.96 * np.sqrt(2 * max(theirs * (1 - theirs), 0.02) / len(x))


@pytest.mark.parametrize(("norm", "mean"), [("l2", 0.5), ("l1", 0.5), ("linf", 1.0)])
def test_pgd_starts_first_within_and_then_on_the_surface(norm, mean):
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 2)).eval()
    nn.init.zeros_(model[1].weight)  # nobody is fooled, and every start is drawn
    x = torch.full((500, 1, 20, 20), 0.5)
    y = model(x).argmax(1)
    threat, starts = ThreatModel(norm, 0.4), []

    class Watched(PGD):
        def _start(self, x, rng, first):
            starts.append(super()._start(x, rng, first))
            return starts[-1]

    Watched(threat.norm, threat.eps, steps=1, restarts=2).perturb(model, x, y, SampleRNG(0, range(500)))
    first, second = (threat.distance(start, x) / 0.4 for start in starts)
    assert float(first.mean()) == pytest.approx(mean, abs=0.03)
    assert float(second.min()) > 0.9
    assert float((first < 0.25).float().mean()) == pytest.approx(0.25 if mean < 1 else 0, abs=0.05)
    assert all(threat.allows(start, x).all() for start in starts)


def test_mifgsm_makes_the_images_of_torchattacks(digits_mlp, right_by_mlp):
    x, y = (v[:40] for v in right_by_mlp)
    mine = MIFGSM("linf", 0.1, step_size=0.02).perturb(digits_mlp, x, y, SampleRNG(0, range(40)))
    peer = torchattacks.MIFGSM(digits_mlp, eps=0.1, alpha=0.02, steps=10, decay=1.0)
    theirs = torch.cat([peer(x[[i]], y[[i]]) for i in range(40)])
    # It divides gradients by the mean of absolute values where the paper takes the sum: a factor that signs ignore.
    assert float((mine - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("make", [lambda *t: APGD(*t, steps=5), lambda *t: APGD(*t, steps=3, restarts=2)])
def test_ascent_never_ends_below_the_clean_loss(digits_mlp, right_by_mlp, make, norm):
    x, y = right_by_mlp
    goal = Objective.untargeted(y, "ce")
    found = make(norm, EPS[norm] / 5).perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))
    with torch.no_grad():
        logits, clean = digits_mlp(found), digits_mlp(x)
    fooled = logits.argmax(1) != y
    assert (fooled | (goal.value(logits) >= goal.value(clean) - 1e-6)).all()


def test_square_needs_no_gradient(right_by_mlp, digits_mlp):
    class Staircase(nn.Module):
        def forward(self, x):
            return digits_mlp((x * 8).round() / 8)

    x, y = right_by_mlp
    model = Staircase().eval()
    with torch.no_grad():
        keep = model(x).argmax(1) == y
    threat = ThreatModel("linf", EPS["linf"])
    assert robust(model, x[keep], y[keep], APGD(threat.norm, threat.eps, steps=10)) > 0.9  # its gradients are zero
    assert robust(model, x[keep], y[keep], Square(threat.norm, threat.eps, queries=300)) < 0.8


class Coarse(nn.Module):
    """A network whose logits are multiples of ``unit``, as a quantised one's are: it ties, and it has plateaus."""

    def __init__(self, model, unit=0.5):
        super().__init__()
        self.model, self.unit = model, unit

    def forward(self, x):
        return (self.model(x) / self.unit).round() * self.unit


@pytest.mark.parametrize(("norm", "most"), [("linf", 0.5), ("l2", 0.45)])
def test_square_goes_on_at_ties_and_across_plateaus(digits_mlp, digits, norm, most):
    model = Coarse(digits_mlp)
    x, y = digits.test.x[:128], digits.test.y[:128]
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    eps = {"linf": 0.1, "l2": 0.7}[norm]
    assert robust(model, x, y, Square(norm, eps, queries=300)) < most


def test_a_tie_that_the_true_class_wins_does_not_end_a_search():
    class Stairs(nn.Module):
        """Class 0 ties with class 1 from brightness 0.5, which fools nobody, and loses from 0.55."""

        def forward(self, x):
            bright = x.flatten(1).mean(1)
            return torch.stack([torch.ones_like(bright), (bright > 0.5).float() + (bright > 0.55)], 1)

    x, y = torch.full((6, 1, 4, 4), 0.45), torch.zeros(6, dtype=torch.int64)
    assert robust(Stairs(), x, y, Square("linf", 0.3, queries=300)) == 0
    found = cascade(
        [Square("linf", 0.1, queries=5), Square("linf", 0.3, queries=300)],
        Stairs(), x, y, SampleRNG(0, range(6)),
    )  # fmt: skip
    assert (Stairs()(found).argmax(1) != y).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "shape", [(3, 64, 6), (1, 6, 64), (2, 1, 9), (2, 9, 1), (1, 3, 3), (1, 1, 1), (20,), (12, 8), (1, 4, 5, 6)]
)
def test_square_takes_any_shape(shape, norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)).eval()
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(model[1].weight, generator=generator)
    x = torch.rand(16, *shape, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = Square(norm, 0.15 if norm == "linf" else 0.3 * np.prod(shape) ** 0.5, queries=200)
    fooled = 1 - robust(model, x, y, attack)
    possible = 1 - robust(model, x, y, PGD(attack.norm, attack.eps, steps=50, loss="margin"))
    assert fooled >= possible / 2
    one = attack.perturb(model, x[3:5], y[3:5], SampleRNG(0, [3, 4]))
    assert torch.allclose(one, attack.perturb(model, x, y, SampleRNG(0, range(16)))[3:5], atol=1e-6)


def test_autoattack_takes_vectors():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    x = torch.rand(40, 20, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = AutoAttack("linf", 0.03, steps=10, queries=50)
    assert 0 < robust(model, x, y, attack) < 1  # Square, the last, had its turn


@pytest.mark.parametrize(
    ("share", "image", "sides"),
    [
        (0.8, (8, 8), (7, 7)),
        (0.1, (8, 8), (3, 3)),
        (0.001, (8, 8), (1, 1)),
        (1.0, (8, 8), (8, 7)),
        (0.8, (64, 6), (51, 6)),
        (0.8, (1, 20), (1, 16)),
        (0.8, (20, 1), (16, 1)),
        (0.05, (64, 6), (4, 4)),
        (0.8, (1, 1), (1, 1)),
    ],
)
def test_squares_cover_their_share(share, image, sides):
    assert sorted(_sides(share, *image)) == sorted(sides)
    assert all(a <= b for a, b in zip(_sides(share, *image), image, strict=True))


def test_squares_lie_inside_and_patterns_have_norm_one():
    x = torch.zeros(50, 1, 9, 7)
    u, v = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) * 0.999999
    for sides in ((1, 1), (3, 3), (6, 6), (9, 4), (1, 7), (9, 1)):
        assert (_window(x, sides, u, v).sum((1, 2, 3)) == sides[0] * sides[1]).all()
        for pattern in _patterns(sides, x):
            assert pattern.shape == sides
            assert float(pattern.norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("norm", "size", "least"), [("linf", 28, 1), ("l2", 28, 3), ("l2", 8, 2), ("l2", 3, 1)])
def test_patterns_keep_room(norm, size, least):
    """A pattern on one pixel is a mere sign."""
    attack = Square(norm, 0.1, queries=1000)
    assert attack._sides(999, size, size) == (least, least)
    assert attack._sides(1, size, size)[0] == min(round((0.8 * size**2) ** 0.5), size)


def test_the_pyramid_is_a_sum_of_nested_rectangles():
    """Growing about the centre, the k-th weighs 1/k² and is cut off at the edges."""
    for height, width in ((3, 7), (7, 7), (2, 5), (1, 6), (4, 4)):
        expected = np.zeros((height, width))
        for k in range(1, max(height, width) // 2 + 2):
            rows = slice(max(0, height // 2 - k + 1), height // 2 + k)
            expected[rows, max(0, width // 2 - k + 1) : width // 2 + k] += 1 / k**2
        assert _pyramid(height, width) == pytest.approx(expected)


class Deaf(nn.Module):
    """A network behind a step that gives no gradient at all."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.no_grad():
            return self.model(x)


def test_autoattack_goes_on_without_gradients(digits_mlp, right_by_mlp):
    x, y = (v[:40] for v in right_by_mlp)
    model = Deaf(digits_mlp)
    attack = AutoAttack("linf", 0.1, queries=100)
    with pytest.warns(
        RobGIBWarning, match=r"APGD \(ce\), APGD \(dlr, 9 targets\), FAB \(9 targets\) skipped: .*no grad"
    ):
        found = attack.perturb(model, x, y, SampleRNG(0, range(40)))
    with torch.no_grad():
        assert float((model(found).argmax(1) != y).float().mean()) > 0.1
    with pytest.raises(NoGradientError, match="gives no gradient"):
        AutoAttack("linf", 0.1, version="rand").perturb(model, x, y, SampleRNG(0, range(40)))


def test_the_ensemble_for_random_models(digits_mlp, right_by_mlp):
    for norm in ("linf", "l2"):
        attack = make_attack(f"autoattack-{norm}-rand:eps=0.1")
        assert attack.members(10) == (
            APGD(attack.norm, attack.eps),
            APGD(attack.norm, attack.eps, loss="dlr"),
        )
        assert [a.loss for a in attack.members(3)] == ["ce", "dlr"]
        assert [a.loss for a in attack.members(2)] == ["ce", "margin"]
    x, y = right_by_mlp
    rand = AutoAttack("linf", 0.1, version="rand", steps=20)
    assert robust(digits_mlp, x, y, rand) <= robust(digits_mlp, x, y, APGD(rand.norm, rand.eps, steps=20))
    assert all(
        a.eot == 5
        for version in ("standard", "rand")
        for a in AutoAttack(rand.norm, rand.eps, version, eot=5).members(9)
    )
    with pytest.raises(RobGIBError, match=r"unknown version of AutoAttack: 'ran'; did you mean 'rand'\?"):
        AutoAttack(rand.norm, rand.eps, version="ran")


def test_too_few_classes_for_dlr():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(5, 1, 2, 2)
    y = model(x).argmax(1)
    with pytest.raises(RobGIBError, match="needs 4 classes and the model has 3; use loss=margin"):
        APGD("linf", 0.1, loss="dlr", targets=2).perturb(model, x, y, SampleRNG(0, range(5)))
    assert APGD("linf", 0.1, loss="margin", targets=2).perturb(model, x, y, SampleRNG(0, range(5))).shape


def test_the_standard_ensemble_and_its_budgets():
    ensemble = make_attack("autoattack-linf:eps=8/255")
    ce, targeted, fab, square = ensemble.members(10)
    assert (ce, targeted) == (
        APGD(ensemble.threat.norm, ensemble.threat.eps, steps=100, restarts=1, loss="ce"),
        APGD(ensemble.threat.norm, ensemble.threat.eps, steps=100, restarts=1, loss="dlr", targets=9),
    )
    assert fab == FAB(ensemble.threat.norm, ensemble.threat.eps, steps=100, restarts=1, targeted=True, targets=9)
    assert square == Square(ensemble.threat.norm, ensemble.threat.eps, queries=5000, restarts=1)
    assert ensemble.members(2)[1].loss == "margin"


def test_a_cascade_gives_later_attacks_the_survivors_only(digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    seen = []

    class Recorded(PGD):
        def perturb(self, model, x, y, rng):
            seen.append(len(x))
            return super().perturb(model, x, y, rng)

    threat = ThreatModel("linf", 0.08)
    first = Recorded(threat.norm, threat.eps, steps=3)
    found = cascade([first, Recorded(threat.norm, threat.eps, steps=20)], digits_mlp, x, y, SampleRNG(0, range(len(x))))
    alone = first.perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))
    with torch.no_grad():
        fooled = digits_mlp(alone).argmax(1) != y
        both = digits_mlp(found).argmax(1) != y
    assert seen[:2] == [len(x), int((~fooled).sum())]
    assert torch.equal(found[fooled], alone[fooled])
    assert (both | ~fooled).all()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_autoattack_is_as_strong_as_that_of_torchattacks(digits_mlp, right_by_mlp, norm, name):
    x, y = (v[:60] for v in right_by_mlp)
    eps = {"linf": 0.08, "l2": 0.35}[norm]
    mine = robust(digits_mlp, x, y, AutoAttack(norm, eps))
    # Its ensemble leaves more right than its own APGD-T, which therefore counts too.
    peers = (
        torchattacks.AutoAttack(digits_mlp, norm=name, eps=eps, version="standard", n_classes=10, seed=0),
        torchattacks.APGDT(digits_mlp, norm=name, eps=eps, steps=100, n_classes=10, seed=0),
    )
    with torch.random.fork_rng(devices=[]):
        images = [peer(x, y).detach() for peer in peers]
    with torch.no_grad():
        theirs = min(float((digits_mlp(found).argmax(1) == y).float().mean()) for found in images)
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


class Staircase(nn.Module):
    """The network on coarse colours: its gradients are all 0."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 8).round() / 8)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.35)])
def test_the_fast_ensemble_says_what_autoattack_says_in_a_fifth_of_its_passes(digits_mlp, right_by_mlp, norm, eps):
    x, y = (v[:64] for v in right_by_mlp)
    with count_queries(digits_mlp) as full:
        reference = robust(digits_mlp, x, y, AutoAttack(norm, eps))
    with count_queries(digits_mlp) as few:
        fast = robust(digits_mlp, x, y, FastEnsemble(norm, eps))
    assert 0.3 < reference < 0.9
    assert fast <= reference
    assert few.forward + few.backward < (full.forward + full.backward) / 5


@pytest.mark.slow
def test_the_fast_ensemble_leaves_no_more_than_its_long_members(digits_mlp, right_by_mlp):
    x, y = (v[:32] for v in right_by_mlp)
    reference = robust(digits_mlp, x, y, APGD("linf", 0.06, loss="dlr", targets=9))
    with count_queries(digits_mlp) as passes:
        fast = robust(digits_mlp, x, y, FastEnsemble("linf", 0.06))
    assert 0.3 < reference < 0.9
    assert fast <= reference
    # AutoAttack takes 8,600 on each image that remains right.
    assert passes.forward + passes.backward < 8600 / 3 * fast * len(x)


@pytest.mark.parametrize("norm", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))])
def test_the_fast_ensemble_turns_to_square_where_gradients_are_masked(digits_mlp, right_by_mlp, norm):
    x, y = (v[:16] for v in right_by_mlp)
    model, eps = Staircase(digits_mlp).eval(), {"linf": 0.1, "l2": 0.7, "l1": 4.0}[norm]
    black_box = robust(model, x, y, Square(norm, eps))
    blind = robust(model, x, y, APGD(norm, eps, steps=20, loss="dlr", targets=9))
    assert black_box < blind
    with count_queries(model) as passes, pytest.warns(RobGIBWarning, match="the gradient is 0 on 1[0-9] of 16 images"):
        fast = robust(model, x, y, FastEnsemble(norm, eps))
    assert fast <= black_box
    # What stays had as many queries as AutoAttack makes.
    assert passes.forward >= 5000 * fast * 16


def test_a_zero_gradient_of_some_images_leaves_the_others_to_ascent(monkeypatch):
    """Only where it is 0 on a random image of the ball as well: ascent starts there."""

    class Partly(nn.Module):
        def forward(self, x):
            first = x.flatten(1)[:, :1]
            # A gradient everywhere, nowhere, and everywhere but on the clean image.
            value = torch.where(first > 0.7, x.flatten(1)[:, 1:2], torch.where(first == 0.4, 0 * first, first.round()))
            value = torch.where((first - 0.4).abs().lt(0.2) & first.ne(0.4), x.flatten(1)[:, 1:2], value)
            return torch.cat([1 + 0 * value, value - 1], 1)

    x = torch.full((3, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.1, 0.4])
    state = _State(Partly(), x, torch.zeros(3, dtype=torch.long), SampleRNG(0, range(3)), 0.05)
    ascended, searched = [], []
    attack = FastEnsemble("linf", 0.01)
    monkeypatch.setattr(FastEnsemble, "_towards_front", lambda *given: ascended.append(given[3].tolist()))
    monkeypatch.setattr(Square, "perturb", lambda self, model, x, y, rng: searched.append((self.queries, len(x))) or x)
    attack._towards_classes(state, state.remaining)
    assert state.flat.tolist() == [False, True, False]
    assert ascended == [[0, 2]]
    next(s for s in attack.stages if s.name == "zero gradients").perform(state)
    assert searched == [(5000, 1)]
    assert state.among(state.right).tolist() == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.7), ("l1", 4.0)])
def test_the_fast_ensemble_saves_ascent_where_gradients_are_masked(digits_mlp, right_by_mlp, norm, eps):
    x, y = (v[:32] for v in right_by_mlp)
    model = Staircase(digits_mlp).eval()
    with count_queries(model) as full:
        robust(
            model, x, y, AutoAttack(norm, eps)
        )  # its Square draws other patterns, and may fool one image more or less
    reference = robust(model, x, y, Square(norm, eps, queries=AutoAttack.queries))
    with count_queries(model) as few, pytest.warns(RobGIBWarning, match="the gradient is 0 on"):
        fast = robust(model, x, y, FastEnsemble(norm, eps))
    assert fast <= reference
    assert few.cost < full.cost / 5


@pytest.mark.slow
def test_the_fast_ensemble_uses_a_large_to_small_schedule_on_a_plateau(digits_mlp, right_by_mlp):
    x, y = (v[:48] for v in right_by_mlp)
    model = Terraces(digits_mlp, 0.08).eval()
    ascent = robust(model, x, y, APGD("l2", 0.7))
    reference = robust(model, x, y, Square("l2", 0.7))
    assert reference < ascent
    scheduled = robust(model, x, y, APGD("l2", 0.7, schedule_start=8))
    assert scheduled < ascent
    with pytest.warns(RobGIBWarning, match="uninformative, and APGD used a large-to-small schedule from 8 eps"):
        assert robust(model, x, y, FastEnsemble("l2", 0.7)) <= reference
    ascent, reference = robust(model, x, y, APGD("l2", 0.5)), robust(model, x, y, Square("l2", 0.5))
    with pytest.warns(RobGIBWarning, match="uninformative, and APGD used a large-to-small schedule from 8 eps"):
        assert robust(model, x, y, FastEnsemble("l2", 0.5)) <= min(reference, 0.6 * ascent)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_continues_from_the_result_of_ascent(digits_mlp, right_by_mlp, norm):
    """Never to a worse image, never out of the ball, and further than from its own patterns."""
    x, y = (v[:30] for v in right_by_mlp)
    threat = ThreatModel(norm, {"linf": 0.08, "l2": 0.4, "l1": 2.0}[norm])
    goal = Objective.untargeted(y, "margin")
    start = APGD(norm, threat.eps, steps=10).perturb(digits_mlp, x, y, SampleRNG(0, range(30)))
    square = Square(norm, threat.eps, queries=60)
    kept = start.clone()
    found, value, fooled = square.search(digits_mlp, x, goal, SampleRNG(1, range(30)), start)
    assert torch.equal(start, kept)
    with torch.no_grad():
        before, after = goal.value(digits_mlp(start)), goal.value(digits_mlp(found))
    assert torch.allclose(after, value, atol=1e-5)
    assert bool((after >= before - 1e-5).all())
    assert torch.equal(fooled, digits_mlp(found).argmax(1) != y)
    assert not value.requires_grad
    assert bool((threat.distance(found, x) <= threat.eps * (1 + 1e-5)).all())
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    scratch = square.search(digits_mlp, x, goal, SampleRNG(1, range(30)))[1]
    assert float(value.mean()) > float(scratch.mean())


def test_random_search_goes_on_only_where_it_gains(digits_mlp, right_by_mlp, monkeypatch):
    """One run for every sample, and another if it reduced the margin by a fifth."""
    x, y = (v[:12] for v in right_by_mlp)
    took = []
    search_of = Square.search

    def counted(self, model, x, goal, rng, start=None):
        took.append(len(x))
        return search_of(self, model, x, goal, rng, start)

    monkeypatch.setattr(Square, "search", counted)
    attack = FastEnsemble("linf", 1e-5)
    state = _State(digits_mlp, x, y, SampleRNG(0, range(len(x))), attack.near)
    attack._polish(state, state.remaining)
    assert took == [12]
    assert bool(state.right.all())
    took.clear()
    attack = FastEnsemble("linf", 0.08)
    state = _State(digits_mlp, x, y, SampleRNG(0, range(len(x))), attack.near)
    attack._polish(state, state.remaining)
    assert took[0] == 12
    assert 1 < len(took) <= 5
    assert all(later < earlier for earlier, later in pairwise(took))


def test_a_sample_that_ties_on_the_clean_image_counts_as_nearest(right_by_mlp):
    class Tied(nn.Module):
        def forward(self, x):
            margin = torch.where(x.flatten(1)[:, 0] > 0.5, 0.0, 1.0)
            return torch.stack([margin, torch.zeros_like(margin), torch.zeros_like(margin)], 1)

    x, y = torch.zeros(6, 1, 4, 4), torch.zeros(6, dtype=torch.long)
    x[3:, 0, 0, 0] = 0.9
    state = _State(Tied(), x, y, SampleRNG(0, range(6)), 0.05)
    assert state.remaining.tolist() == list(range(6))
    assert state.nearer(state.remaining, 3).tolist() == [3, 4, 5]
    assert state.close.tolist() == [False] * 3 + [True] * 3


class Flat(nn.Module):
    """The same answer everywhere."""

    def forward(self, x):
        return torch.tensor([2.0, 1.0, 0.0, 0.0]).expand(len(x), 4)


def test_all_is_tried_on_a_sample_near_the_boundary(monkeypatch):
    """Up from the best image; up from what Square finds, eight times; random search and up; the long members."""

    class Turning(nn.Module):
        """Class 1 comes second on black images, class 2 on white ones."""

        def forward(self, x):
            white = x[:, 0, 0, 0, None] > 0.5
            return torch.where(white, torch.tensor([3.0, 1, 2, 0]), torch.tensor([3.0, 2, 1, 0]))

    calls, towards = [], []

    def ascend(self, model, x, goal, rng, start=None):
        calls.append(("ascent", self.steps, start is not None))
        towards.append(goal.labels.tolist())
        kept = x if start is None else start
        return kept, goal.value(model(kept)), torch.zeros(len(x), dtype=torch.bool)

    def search_of(self, model, x, goal, rng, start=None):
        calls.append(("square", self.queries, start is not None))
        kept = x if start is None else start
        value = goal.value(model(kept))
        return kept, value, torch.zeros(len(x), dtype=torch.bool)

    monkeypatch.setattr(APGD, "ascend", ascend)
    monkeypatch.setattr(Square, "search", search_of)
    attack = FastEnsemble("l2", 0.5)
    x, y = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long)
    state = _State(Turning(), x, y, SampleRNG(0, [0]), attack.near)
    state.image[:] = 1
    attack._push(state, state.remaining)
    begun = [("ascent", 100, True), *[("square", 50, False), ("ascent", 50, True)] * 8]
    assert calls == [*begun, ("square", 500, True), ("ascent", 30, True), *[("ascent", 100, False)] * 3]
    # The class likeliest on the clean image and on the best, in turn.
    assert towards[:10] == [[2], *[[1], [2]] * 4, [2]]


@pytest.mark.parametrize("mode", ["ascent", "schedule"])
@pytest.mark.parametrize(("falls", "fails"), [(0, False), (1, False), (2, True)])
def test_square_runs_on_all_that_remain_and_two_of_a_hundred_fail_ascent(mode, falls, fails, monkeypatch):
    attack = FastEnsemble("l2", 0.5)
    state = _State(Flat(), torch.zeros(100, 1, 2, 2), torch.zeros(100, dtype=torch.long), SampleRNG(0, range(100)), 0)
    state._begin(mode)
    probed = []

    def run(attack, rows):
        state.right[rows[: falls if not probed else 0]] = False
        probed.append(len(rows))

    monkeypatch.setattr(state, "run", run)
    for stage in attack.stages:
        if stage.name == "queries" and mode in stage.modes:
            stage.perform(state)
    assert probed == ([10, 90] if mode == "ascent" else [100])
    assert (state.queries, state.mode) == (falls, "rest" if fails else mode)


@pytest.mark.parametrize(
    ("falls", "given"), [((0.0, 1.0), [100]), ((0.5, 0.04, 0.0, 1.0), [100, 50, 48]), ((1.0, 1.0), [100])]
)
def test_the_schedule_is_repeated_until_it_fools_few(falls, given, monkeypatch):
    attack = FastEnsemble("l2", 0.5)
    state = _State(Flat(), torch.zeros(100, 1, 2, 2), torch.zeros(100, dtype=torch.long), SampleRNG(0, range(100)), 0)
    calls, shares = [], iter(falls)

    def run(attack_run, rows):
        calls.append(len(rows))
        state.right[rows[: round(next(shares) * len(rows))]] = False

    monkeypatch.setattr(state, "run", run)
    attack._repeat_schedule(state, state.remaining)
    assert calls == given


def test_stages_have_names_and_end_with_autoattack():
    names = [stage.name for stage in FastEnsemble("linf", 0.1).stages]
    assert names[0] == "cross-entropy"
    assert names[-1] == "AutoAttack"
    documented = FastEnsemble.__doc__
    assert all(f"**{name}**" in documented for name in dict.fromkeys(names) if name not in UNLISTED)


UNLISTED = {"AutoAttack", "repeated schedule"}


def test_random_search_from_the_result_of_ascent_is_stronger_than_longer_ascent(digits_mlp, right_by_mlp):
    """Behind ripples ascent stalls near the boundary; after one square it continues."""
    x, y = (v[:60] for v in right_by_mlp)
    model = Rippled(digits_mlp).eval()
    rng = SampleRNG(0, range(len(x)))
    state = _State(model, x, y, rng, 0.05)
    attack = FastEnsemble("linf", 0.1)
    goal = Objective.untargeted(y, "ce")
    state.offer(state.remaining, APGD("linf", 0.1).ascend(model, x, goal, rng)[0])
    rows, margin = state.remaining, state.margin.clone()
    attack._polish(state, rows)
    polished = margin[rows] - state.margin[rows]
    again = _State(model, x, y, rng, 0.05)
    again.offer(rows, APGD("linf", 0.1, steps=700).ascend(model, x[rows], goal.select(rows), rng.select(rows))[0])
    ascended = margin[rows] - again.margin[rows]
    assert float(polished.mean()) > float(ascended.mean())


def test_fab_tells_what_it_found_outside_the_ball(digits_mlp, right_by_mlp):
    x, y = (v[:20] for v in right_by_mlp)
    rng = SampleRNG(0, range(len(x)))
    near = FAB("l2", 0.1, targeted=True, targets=2, steps=10)
    found = near.approach(digits_mlp, x, y, rng)
    reach = near.threat.distance(found, x)
    assert bool((digits_mlp(found).argmax(1) != y).all())
    assert bool((reach > 0.1).any())
    kept = near.perturb(digits_mlp, x, y, rng)
    assert torch.equal(kept[reach > 0.1001], x[reach > 0.1001])


@pytest.mark.slow
def test_the_fast_ensemble_goes_on_for_as_long_as_samples_fall(digits, digits_mlp):
    x, y = digits.test.x[:60], digits.test.y[:60]
    model = Rippled(digits_mlp).eval()
    with count_queries(model) as full:
        reference = robust(model, x, y, AutoAttack("l2", 0.5))
    with count_queries(model) as few:
        fast = robust(model, x, y, FastEnsemble("l2", 0.5))
    assert 0.1 < reference < 0.5
    # Those within 5% of the boundary alone left three more.
    assert fast <= reference + 1 / len(x)
    assert few.cost < full.cost / 2


@pytest.mark.slow
def test_the_fast_ensemble_without_gradients_and_with_few_classes(digits_mlp, right_by_mlp):
    class Silent(nn.Module):
        def forward(self, x):
            return digits_mlp(x).detach()

    class Two(nn.Module):
        def forward(self, x):
            return digits_mlp(x)[:, [0, 1]]

    x, y = (v[:24] for v in right_by_mlp)
    with pytest.warns(RobGIBWarning, match="only Square was run"):
        found = robust(Silent().eval(), x, y, FastEnsemble("linf", 0.15))
    assert found == robust(Silent().eval(), x, y, Square("linf", 0.15)) < 1
    rows = y < 2
    ascent = robust(Two().eval(), x[rows], y[rows], APGD("linf", 0.4, loss="margin"))
    assert robust(Two().eval(), x[rows], y[rows], FastEnsemble("linf", 0.4)) <= ascent < 1


@pytest.mark.filterwarnings("ignore:.*gradients are uninformative")  # two steps of ascent do stall
@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [0, pytest.param(0.02, marks=pytest.mark.slow), 0.5, 1])
def test_the_fast_ensemble_ends_wherever_all_are_fooled(digits_mlp, right_by_mlp, norm, share):
    x, y = (v[:6] for v in right_by_mlp)
    eps = ThreatModel(norm, 1.0).widest(64) * max(share, 1e-3)
    attack = FastEnsemble(norm, eps, short=2, long=2, probe=2, near=0)
    for count in (0, 1, len(x)):
        found = attack.perturb(digits_mlp, x[:count], y[:count], SampleRNG(0, range(count)))
        assert found.shape == x[:count].shape
        assert attack.threat.allows(found, x[:count]).all()


def test_targets_are_ranked_by_the_distance_of_linear_boundaries():
    """Logit gap over the gradients' dual norm; the most likely wrong class need not be the nearest."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0, 0, 0, 0], [4.0, 4, 0, 0]]))
        model[1].bias.copy_(torch.tensor([3.0, 1, 0]))
    x, y = torch.full((1, 1, 2, 2), 0.1), torch.tensor([0])
    classes = wrong_classes(model(x), y)
    assert classes.tolist() == [[1, 2]]
    for norm, second in (("linf", 8), ("l2", 32**0.5), ("l1", 4)):
        for net in (model, BatchedModel(model, 1)):
            reach = boundary_distances(net, x, y, classes, norm)
            assert reach[0].tolist() == pytest.approx([1.9 / 1, 2.2 / second])


def test_sparse_steps_share_their_size_among_the_steepest():
    x, gradient = torch.zeros(2, 1, 2, 2), torch.tensor([[3.0, -2, 1, 0.5], [0.1, 0.2, -0.3, 0]]).view(2, 1, 2, 2)
    moved = _sparse_step(x, gradient, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])).flatten(1)
    assert moved[0].tolist() == pytest.approx([0.5, -0.5, 0, 0])
    assert moved[1].tolist() == pytest.approx([2 / 3, 2 / 3, -2 / 3, 0])
    assert _changed(moved.view_as(x), x).tolist() == [2, 3]


@pytest.mark.slow
def test_apgd_under_l1_finds_what_sparse_descent_and_fab_do_not(digits_mlp, right_by_mlp):
    x, y = (v[:100] for v in right_by_mlp)
    targeted = robust(digits_mlp, x, y, APGD("l1", 1.0, loss="dlr", targets=5))
    assert targeted <= robust(digits_mlp, x, y, APGD("l1", 1.0)) + 0.01
    assert targeted <= robust(digits_mlp, x, y, PGD("l1", 1.0, steps=50)) - 0.02
    assert targeted <= robust(digits_mlp, x, y, FAB("l1", 1.0, targeted=True)) + 0.01


@pytest.mark.parametrize("targets", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_apgd_under_l1_leaves_no_more_than_adv_lib(digits_mlp, right_by_mlp, targets):
    library = advlib_or_skip()
    x, y = (v[:64] for v in right_by_mlp)
    if targets:
        peer = library.apgd_targeted(digits_mlp, x, y, 1.0, 1, use_large_reps=True, num_targets=targets)
    else:
        peer = library.apgd(digits_mlp, x, y, 1.0, 1, loss_function="ce", use_large_reps=True)
    with torch.no_grad():
        theirs = float((digits_mlp(peer).argmax(1) == y).float().mean())
    mine = robust(digits_mlp, x, y, APGD("l1", 1.0, loss="dlr" if targets else "ce", targets=targets))
    assert mine <= theirs + 0.05
