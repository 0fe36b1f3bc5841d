"""The papers' formulas and constants, beside figures worked out by hand and references written from the papers."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional as F

from robgib import RobGIBError, SampleRNG, ThreatModel
from robgib.attacks import APGD, Criterion, Objective, Square
from robgib.attacks.apgd import _answered, _Ascent, _changed, _sparse_step, auto_ascend, checkpoints, sparse_ascend
from robgib.attacks.carried import carry
from robgib.attacks.objective import make_objective, misclassified, wrong_by
from robgib.attacks.square import _as_images, _pattern, _patterns, _placed, _pyramid, _sides, _window
from robgib.attacks.threat_model import Radius, onto_ball, within
from tests.elsewhere import a_second_device

NAN, INF = math.nan, math.inf


def doubles(*rows):
    return torch.tensor(np.array(rows), dtype=torch.float64)


# Objectives.

LOGITS = doubles([3.0, 1.0, 2.5, -1.0, 0.25], [0.5, 2.5, 0.125, 1.0, -4.0])
Y, T = torch.tensor([0, 0]), torch.tensor([1, 3])


def test_margin_and_cross_entropy():
    margins = [2.5 - 3, 2.5 - 0.5]
    assert Objective.untargeted(Y, "margin").value(LOGITS).tolist() == margins
    assert Objective("margin", T, Criterion(T, True), targeted=True).value(LOGITS).tolist() == [-(3 - 1), -(2.5 - 1)]
    ce = torch.tensor([math.log(sum(map(math.exp, row))) - row[0] for row in LOGITS.tolist()]).double()
    assert torch.allclose(Objective.untargeted(Y, "ce").value(LOGITS), ce, rtol=1e-6)
    aimed = Objective("ce", T, Criterion(T, True), targeted=True).value(LOGITS)
    assert torch.allclose(aimed, -F.cross_entropy(LOGITS, T, reduction="none"))


def test_difference_of_logits_ratio():
    # Croce & Hein 2020, equation 6: −(z_y − max z_i)/(z_1st − z_3rd).
    plain = Objective.untargeted(Y, "dlr").value(LOGITS).tolist()
    assert plain == pytest.approx([-(3 - 2.5) / (3 - 1), -(0.5 - 2.5) / (2.5 - 0.5)])
    # Equation 7: −(z_y − z_t)/(z_1st − (z_3rd + z_4th)/2).
    towards = Objective("dlr", T, Criterion(Y), targeted=True).value(LOGITS).tolist()
    assert towards == pytest.approx([-(3 - 1) / (3 - (1 + 0.25) / 2), -(0.5 - 1) / (2.5 - (0.5 + 0.125) / 2)])
    # Where the target itself must be reached, equation 6 of the target, falling.
    at = Objective("dlr", T, Criterion(T, True), targeted=True).value(LOGITS).tolist()
    assert at == pytest.approx([(1 - 3) / (3 - 1), (1 - 2.5) / (2.5 - 0.5)])
    even = torch.ones(1, 5, dtype=torch.float64)
    assert Objective.untargeted(Y[:1], "dlr").value(even).tolist() == [0]
    assert Objective("dlr", T[:1], Criterion(Y[:1]), targeted=True).value(even).tolist() == [0]


def test_the_ratio_needs_as_many_classes_as_it_names():
    with pytest.raises(RobGIBError, match=r"the loss dlr needs 3 classes and the model has 2; use loss=margin"):
        Objective.untargeted(Y, "dlr").value(LOGITS[:, :2])
    with pytest.raises(RobGIBError, match=r"the loss dlr towards targets needs 4 classes and the model has 3"):
        Objective("dlr", T, Criterion(Y), targeted=True).value(LOGITS[:, :3])
    assert Objective.untargeted(Y, "dlr").value(LOGITS[:, :3]).shape == (2,)
    assert Objective("dlr", torch.tensor([1, 1]), Criterion(Y), targeted=True).value(LOGITS[:, :4]).shape == (2,)


def test_who_is_fooled():
    rows = doubles([2, 1, 0], [0, 2, 1], [NAN, 0, 0], [INF, 0, 0], [1, 1, 0])
    y = torch.zeros(5, dtype=torch.long)
    assert misclassified(rows, y).tolist() == [False, True, True, True, False]
    assert Criterion(y)(rows).tolist() == [False, True, True, True, False]
    assert Criterion(torch.ones_like(y), True)(rows).tolist() == [False, True, True, True, False]
    assert Criterion(torch.full_like(y, 2), True)(rows).tolist() == [False, False, True, True, False]
    never = Criterion(y, patient=True)(rows)
    assert (never.tolist(), never.dtype) == ([False] * 5, torch.bool)
    assert Criterion(torch.ones_like(y), True, True)(rows).tolist() == [False] * 5
    part = Objective("ce", y + 1, Criterion(y), True).select(torch.tensor([0, 3]))
    assert (part.labels.tolist(), part.criterion.labels.tolist(), part.targeted) == ([1, 1], [0, 0], True)


def test_by_how_much_a_wrong_class_is_ahead_less_rounding():
    # The margin less a hundred-thousandth of the largest logit.
    rows = doubles([4, 1, -8], [1, 4, 2], [NAN, 1, 2])
    assert wrong_by(rows, torch.tensor([1, 1, 1])).tolist() == pytest.approx([3 - 8e-5, -2 - 4e-5, INF])
    masked = doubles([0.5, 0.25, -INF])  # a class that is masked has no size
    assert wrong_by(masked, torch.tensor([1])).tolist() == pytest.approx([0.25 - 5e-6], abs=1e-12)


def test_targets_by_their_rules():
    model, x = nn.Identity(), LOGITS
    for rule, labels in (("second", [2, 1]), ("least-likely", [3, 4])):
        goal = make_objective(model, x, Y, rule, "ce", SampleRNG(0, range(2)))
        assert goal.labels.tolist() == goal.criterion.labels.tolist() == labels
        assert (goal.targeted, goal.criterion.targeted, goal.criterion.patient) == (True, True, False)
        assert goal.loss == "ce"
    own = make_objective(model, LOGITS[:, [3, 0, 1, 2, 4]], Y, "least-likely", "ce", SampleRNG(0, range(2)))
    assert own.labels.tolist() == [4, 4]  # never the true class
    many = torch.arange(5).repeat(400)
    goal = make_objective(model, torch.zeros(2000, 5), many, "random", "dlr", SampleRNG(0, range(2000)))
    assert (goal.labels >= 0).all()
    assert (goal.labels < 5).all()
    assert torch.bincount((goal.labels - many) % 5, minlength=5)[0] == 0
    assert torch.bincount((goal.labels - many) % 5, minlength=5)[1:].min() > 430
    plain = make_objective(model, x, Y, "none", "margin", SampleRNG(0, range(2)))
    assert (plain.targeted, plain.loss, plain.labels.tolist()) == (False, "margin", [0, 0])
    with pytest.raises(RobGIBError, match="unknown loss 'cw'"):
        make_objective(model, x, Y, "none", "cw", SampleRNG(0, range(2)))
    with pytest.raises(RobGIBError, match="unknown target rule 'first'"):
        make_objective(model, x, Y, "first", "ce", SampleRNG(0, range(2)))


def test_the_objective_of_labels_that_carry_targets_is_to_reach_them():
    y = carry(torch.tensor([0, 0]), targets=T)
    for patient in (False, True):
        goal = Objective.untargeted(y, "margin", patient)
        assert (goal.labels.tolist(), goal.criterion.labels.tolist()) == (T.tolist(), T.tolist())
        assert (goal.targeted, goal.criterion.targeted, goal.criterion.patient) == (True, True, patient)
        assert goal.value(LOGITS).tolist() == [-(3 - 1), -(2.5 - 1)]
    plain = Objective.untargeted(Y, "margin")
    assert (plain.targeted, plain.criterion.targeted, plain.criterion.patient) == (False, False, False)
    assert Objective.untargeted(Y, "margin", True).criterion.patient


# Threat models.


def moved(norm, eps, delta, centre=0.5):
    """Where the projection puts ``centre + delta``, as a perturbation."""
    x = torch.full((1, len(delta)), centre, dtype=torch.float64)
    return (ThreatModel(norm, eps).project(x + doubles(delta), x) - x)[0].tolist()


@pytest.mark.parametrize(
    ("norm", "eps", "delta", "near", "rel"),
    [
        ("linf", 0.1, [0.4, -0.3, 0.05], [0.1, -0.1, 0.05], 1e-9),
        ("l2", 0.25, [0.3, 0.4, 0.0], [0.15, 0.2, 0.0], 2e-6),  # of length 0.5
        ("l2", 0.5001, [0.3, 0.4, 0.0], [0.3, 0.4, 0.0], 1e-9),
        ("l1", 0.2, [0.3, -0.1, 0.05], [0.2, 0.0, 0.0], 2e-5),  # each loses 0.1
        ("l1", 0.3, [0.3, -0.1, 0.0], [0.25, -0.05, 0.0], 4e-5),  # each loses 0.05
        ("l1", 0.4001, [0.3, -0.1, 0.0], [0.3, -0.1, 0.0], 1e-9),
        ("l0", 2, [0.3, -0.1, 0.2], [0.3, 0.0, 0.2], 1e-9),
        ("l0", 1.9, [0.3, -0.4, 0.2], [0.0, -0.4, 0.0], 1e-9),
    ],
)
def test_projections_by_hand(norm, eps, delta, near, rel):
    assert moved(norm, eps, delta) == pytest.approx(near, rel=rel, abs=1e-12)


def test_projections_at_the_edge_of_the_box():
    assert moved("linf", 0.2, [0.4, -0.4], 0.9) == pytest.approx([0.1, -0.2])
    assert moved("l2", 0.5, [0.6, 0.8], 0.9) == pytest.approx([0.1, 0.1])
    assert moved("l0", 1, [0.6, -0.2], 0.9) == pytest.approx([0.0, -0.2])  # after clipping the second is the larger
    # Under L1 the box takes part: with 0.15 off each, min(0.3 − 0.15, 0.1) + 0.15 + 0.05 = 0.3.
    x = doubles([0.9, 0.5, 0.5])
    near = ThreatModel("l1", 0.3).project(x + doubles([0.3, -0.3, 0.2]), x) - x
    assert near[0].tolist() == pytest.approx([0.1, -0.15, 0.05], abs=5e-6)
    below = ThreatModel("l1", 0.3).project(1 - x - doubles([0.3, -0.3, 0.2]), 1 - x) - (1 - x)
    assert below[0].tolist() == pytest.approx([-0.1, 0.15, -0.05], abs=5e-6)
    wide = doubles([-0.9, 0.0, 0.0])  # the same in a box of twice the width
    moved_there = ThreatModel("l1", 0.3, (-1.0, 1.0)).project(wide + doubles([-0.3, 0.3, -0.2]), wide) - wide
    assert moved_there[0].tolist() == pytest.approx([-0.1, 0.15, -0.05], abs=5e-6)
    # The ball that is projected on is a hundred-thousandth smaller.
    assert float(near.abs().sum()) == pytest.approx(0.3 * (1 - 1e-5), abs=1e-12)
    assert float(torch.linalg.vector_norm(doubles(moved("l2", 0.25, [0.3, 0.4])))) == pytest.approx(0.25 * (1 - 1e-6))


def test_projections_onto_balls_of_their_own_radius():
    delta, radius = doubles([0.3, -0.4, 0.0], [0.3, -0.4, 0.0]), torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert onto_ball(delta, radius, "linf").tolist() == [[0.25, -0.25, 0.0], [0.3, -0.4, 0.0]]
    assert onto_ball(delta, radius, "l2")[0].tolist() == pytest.approx([0.15, -0.2, 0.0])
    assert onto_ball(delta, radius, "l1")[0].tolist() == pytest.approx([0.075, -0.175, 0.0])
    for norm in ("l2", "l1"):
        assert onto_ball(delta, radius, norm)[1].tolist() == pytest.approx([0.3, -0.4, 0.0])
    assert onto_ball(delta, radius + 0.8, "l0").tolist() == [[0.0, -0.4, 0.0], [0.0, -0.4, 0.0]]
    assert onto_ball(torch.zeros(1, 2), torch.ones(1), "l2").tolist() == [[0, 0]]
    assert onto_ball(delta.view(2, 3, 1), radius, "l1").shape == (2, 3, 1)


def test_one_large_change_alone_is_thresholded():
    # 1 − 0.75 = 0.25; the other value is 0 already.
    assert onto_ball(doubles([1.0, 0.0]), torch.tensor([0.25]).double(), "l1").tolist() == [[0.25, 0.0]]


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_small_slopes_count_as_large_ones_do(norm):
    x, slope = doubles([0.5, 1.0, 0.0, 0.5]), doubles([0.5, 0.9, -0.9, -0.25])
    # The second and the third value are at the edge of the box; of the others the first has the steeper slope.
    assert (ThreatModel(norm, 1).step(x, slope, 0.2) - x)[0].tolist() == pytest.approx([0.2, 0, 0, 0])


def test_steps_by_hand():
    x, gradient = doubles([0.5, 0.5, 0.5]), doubles([3.0, -4.0, 0.0])
    assert (ThreatModel("linf", 0.1).step(x, gradient, 0.2) - x)[0].tolist() == pytest.approx([0.2, -0.2, 0])
    assert (ThreatModel("l2", 0.1).step(x, gradient, 0.2) - x)[0].tolist() == pytest.approx([0.12, -0.16, 0])
    assert ThreatModel("l2", 0.1).step(x, 0 * gradient, 0.2).tolist() == x.tolist()
    for norm in ("l1", "l0"):
        assert (ThreatModel(norm, 1).step(x, gradient, 0.2) - x)[0].tolist() == pytest.approx([0, -0.2, 0])
        # A hundredth of 300, an equal share each; the steepest is at the edge of the box and cannot move.
        wide, slope = torch.full((1, 300), 0.5, dtype=torch.float64), torch.zeros(1, 300, dtype=torch.float64)
        slope[0, :5] = torch.tensor([9.0, -8.0, 7.0, -6.0, 1.0])
        wide[0, :2] = torch.tensor([1.0, 0.0])
        slope[0, 5] = 5.0
        taken = (ThreatModel(norm, 1).step(wide, slope, 0.3) - wide)[0]
        assert taken[:6].tolist() == pytest.approx([0, 0, 0.1, -0.1, 0, 0.1])
        assert float(taken.abs().sum()) == pytest.approx(0.3)


def test_sizes_and_widest_radii_by_hand():
    x, y = doubles([0.5, 0.5, 0.5]), doubles([0.8, 0.1, 0.5])
    sizes = {"linf": 0.4, "l2": 0.5, "l1": 0.7, "l0": 2}
    for norm, size in sizes.items():
        threat = ThreatModel(norm, 1)
        assert threat.distance(y, x).tolist() == pytest.approx([size])
    for box, scale in (((0.0, 1.0), 1), ((-1.0, 1.0), 2)):
        widest = {norm: ThreatModel(norm, 1, box).widest(16) for norm in sizes}
        assert widest == {"linf": scale, "l2": 4 * scale, "l1": 16 * scale, "l0": 16}
    ThreatModel("l2", 4 * (1 + 1e-10)).check(16)
    ThreatModel("l2", 4 * (1 + 1e-9)).check(16)  # equality
    with pytest.raises(RobGIBError, match=r"eps 4\.01 \(l2\) is more than the whole box \[0, 1\] \(4\)"):
        ThreatModel("l2", 4.01).check(16)
    with pytest.raises(RobGIBError, match=r"eps 17 \(l0\) is more than the 16 values"):
        ThreatModel("l0", 17).check(16)
    with pytest.raises(RobGIBError, match=r"at least 1, not 0\.5"):
        ThreatModel("l0", 0.5)
    assert ThreatModel("linf", 2, (-1.0, 1.0)).eps == 2


def test_what_rounding_may_add():
    # A hundred-thousandth of eps and a millionth.
    sizes = torch.tensor([10, 10 + 1.005e-4, 10 + 1.02e-4], dtype=torch.float64)
    assert within(sizes, 10).tolist() == [True, True, False]
    threat = ThreatModel("linf", 0.5)
    x = doubles([0.5], [0.5], [0.5], [0.9])
    y = doubles([1 + 0.5e-6], [1 + 2e-6], [-2e-6], [0.3])
    assert threat.allows(y, x).tolist() == [True, False, False, False]
    assert threat.allows(y, x, tolerance=1e-5).tolist() == [True, True, True, False]


def test_random_starts_from_their_numbers():
    x = torch.full((3, 2, 2), 0.5, dtype=torch.float64)

    def drawn(name, *shape):
        return getattr(SampleRNG(1, range(3)), name)(*shape)

    u = drawn("uniform", (2, 2))
    found = ThreatModel("linf", 0.2).random_start(x, SampleRNG(1, range(3)))
    assert torch.allclose(found, (x + 0.2 * (2 * u - 1)).to(x), atol=1e-7)
    rng = SampleRNG(1, range(3))
    direction, radius = rng.normal((2, 2)), rng.uniform((1,)).flatten() ** (1 / 4)
    found = ThreatModel("l2", 0.2).random_start(x, SampleRNG(1, range(3)))
    unit = direction / direction.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(found, (x + 0.2 * radius[:, None, None] * unit).to(x), atol=1e-6)
    rng = SampleRNG(1, range(3))
    size = -torch.log(1 - rng.uniform((5,)).double())
    sign = 2 * rng.integers(2, (2, 2)) - 1
    found = ThreatModel("l1", 0.2).random_start(x, SampleRNG(1, range(3)))
    share = (size[:, :4] / size.sum(1, keepdim=True)).view(3, 2, 2)
    assert torch.allclose(found, x + 0.2 * share * sign, atol=1e-6)
    found = ThreatModel("l0", 2).random_start(x, SampleRNG(1, range(3)))
    assert (found != x).flatten(1).sum(1).tolist() == [2, 2, 2]
    rng = SampleRNG(1, range(3))
    largest = rng.normal((2, 2)).flatten(1).abs().topk(2, 1).indices
    assert torch.allclose(
        found.flatten(1).gather(1, largest).float(), rng.uniform((2, 2)).flatten(1).gather(1, largest)
    )


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.2), ("l1", 0.2), ("l0", 2)])
def test_random_starts_and_projections_stay_on_their_device(norm, eps):
    x, threat = torch.full((3, 2, 2), 0.5), ThreatModel(norm, eps)
    expected = threat.random_start(x, SampleRNG(1, range(3)))
    moved = onto_ball(expected - x, torch.full((3,), 1.0), norm)
    with a_second_device() as device:
        found = threat.random_start(x.to(device), SampleRNG(1, range(3)))
        assert found.device == device
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(onto_ball(found - x.to(device), torch.full((3,), 1.0).to(device), norm).cpu(), moved)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.2), ("l0", 2)])
def test_random_starts_keep_the_type_of_the_images(norm, eps):
    x = torch.full((3, 2, 2), 0.5, dtype=torch.float16)
    assert ThreatModel(norm, eps).random_start(x, SampleRNG(1, range(3))).dtype == torch.float16


def test_radii_of_files_are_numbers_or_fractions():
    read = TypeAdapter(Radius).validate_python
    assert (read("8/255"), read(0.5), read("2")) == (8 / 255, 0.5, 2)
    with pytest.raises(ValidationError, match="divides by zero"):
        read("8/0")


# Auto-PGD.


class Waves(nn.Module):
    """Two logits of images (N, D): 100, and a sum of waves a·sin(w·x + b) that never reaches it."""

    def __init__(self, size, seed, frequency=25.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.a, self.w, self.b = rng.uniform(0.5, 1.5, size), rng.uniform(5, frequency, size), rng.uniform(0, 6, size)
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        waves = torch.from_numpy(self.a) * torch.sin(torch.from_numpy(self.w) * x + torch.from_numpy(self.b))
        return torch.stack([torch.full((len(x),), 100.0, dtype=x.dtype), waves.sum(1)], 1)

    def value(self, x):
        """The margin of class 0, as the attack raises it."""
        return float((self.a * np.sin(self.w * x + self.b)).sum() - 100)

    def slope(self, x):
        return self.a * self.w * np.cos(self.w * x + self.b)


def nearest(norm, eps, z, x):
    delta = z - x
    if norm == "linf":
        delta = np.clip(delta, -eps, eps)
    else:
        delta = delta * min(1, eps * (1 - 1e-6) / max(np.sqrt((delta**2).sum()), 1e-10))
    return np.clip(x + delta, 0, 1)


def algorithm_1(model, norm, eps, x, start, steps, rho=0.75, momentum=0.75):
    """Croce & Hein 2020, algorithm 1, with the authors' first checkpoint, which has no second condition.

    Returns:
        Every iterate, and at which checkpoints the step was halved, by which condition.
    """
    shares = [0.0, 0.22]
    while shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06) <= 1 + 1e-9:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    turns = {math.ceil(round(share * steps, 9)) for share in shares[1:]}
    size, before, at, best = 2 * eps, start, start, start
    value = marked = model.value(start)
    rises, last, halved, seen, why = 0, 0, True, [start], []
    for k in range(1, steps + 1):
        slope = model.slope(at)
        unit = np.sign(slope) if norm == "linf" else slope / np.sqrt((slope**2).sum())
        ahead = nearest(norm, eps, at + size * unit, x)
        if k > 1:
            ahead = nearest(norm, eps, at + momentum * (ahead - at) + (1 - momentum) * (at - before), x)
        before, at = at, ahead
        rises += model.value(at) > value
        value = model.value(at)
        if value > model.value(best):
            best = at
        seen.append(at)
        if k in turns:
            few = rises < rho * (k - last)
            stuck = not halved and model.value(best) <= marked
            halved = few or stuck
            if halved:
                size, at, value = size / 2, best, model.value(best)
                why.append("few" if few else "stuck")
            marked, rises, last = model.value(best), 0, k
    return seen, best, why


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.45)])
@pytest.mark.parametrize("rho", [0.75, 0.3])
def test_apgd_goes_through_the_iterates_of_the_paper(norm, eps, rho):
    reasons = set()
    for seed in range(6):
        model = Waves(8, seed, frequency=6 + 2 * seed)
        rng = np.random.default_rng(seed)
        x = rng.uniform(0.1, 0.9, 8)
        start = nearest(norm, eps, x + eps * rng.uniform(-1, 1, 8), x)
        steps = (7, 23, 40)[seed % 3]
        seen, best, why = algorithm_1(model, norm, eps, x, start, steps, rho)
        reasons |= set(why)
        goal = Objective.untargeted(torch.tensor([0]), "margin")
        threat = ThreatModel(norm, eps)
        found, value, fooled = auto_ascend(model, doubles(x), goal, threat, doubles(start), steps, rho)
        asked = torch.cat(model.asked).numpy()
        assert asked == pytest.approx(np.array(seen), abs=1e-7)
        assert found[0].numpy() == pytest.approx(best, abs=1e-7)
        assert (float(value), bool(fooled)) == (pytest.approx(model.value(best)), False)
    assert reasons == ({"few", "stuck"} if rho == 0.3 else {"few"})


def test_checkpoints_of_the_paper():
    # Section 3.2: p_1 = 0.22, and each period is 0.03 shorter than the one before, but at least 0.06.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(1000)[:3] == [220, 410, 570]
    assert checkpoints(2) == [1, 2]


def test_each_sample_goes_at_its_own_pace_and_leaves_when_it_is_fooled():
    model = Waves(6, 3)
    x = torch.from_numpy(np.random.default_rng(4).uniform(0.2, 0.8, (5, 6)))
    threat, goal = ThreatModel("linf", 0.2), Objective.untargeted(torch.zeros(5, dtype=torch.long), "margin")
    together = auto_ascend(model, x, goal, threat, x, 20, 0.75)
    for i in range(5):
        alone = auto_ascend(model, x[i : i + 1], goal.select(slice(i, i + 1)), threat, x[i : i + 1], 20, 0.75)
        assert torch.equal(together[0][i], alone[0][0])

    class Falls(nn.Module):
        """Fooled where the first pixel is above 0.6."""

        def forward(self, x):
            return torch.stack([0 * x[:, 0], 50 * (x[:, 0] - 0.6)], 1)

    x = doubles([0.7, 0.5], [0.45, 0.5], [0.1, 0.5])
    goal = Objective.untargeted(torch.zeros(3, dtype=torch.long), "margin")
    found, value, fooled = auto_ascend(Falls(), x, goal, threat, x.clone(), 10, 0.75)
    assert fooled.tolist() == [True, True, False]
    assert found[0].tolist() == x[0].tolist()
    assert found[1:, 0].tolist() == pytest.approx([0.65, 0.3])
    assert value.tolist() == pytest.approx([5, 2.5, -15])


class Recorded(APGD):
    """Record the targets and samples of each ascent. It fools sample 0 and improves sample 1."""

    def ascend(self, model, x, goal, rng, start=None):
        calls.append((goal.labels.tolist(), goal.targeted, goal.criterion.labels.tolist(), x[:, 0].tolist()))
        gain = torch.where(x[:, 0] == 0.1, 1.0, -1.0).to(x)
        return x + 0.01 * len(calls), goal.value(model(x)) + gain, x[:, 0] == 0.0


calls = []


@pytest.mark.parametrize(("targets", "restarts"), [(0, 2), (2, 1), (9, 1)])
def test_targets_and_restarts_take_turns_on_what_is_left(targets, restarts):
    calls.clear()
    model = nn.Linear(1, 4, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([5.0, 1.0, 3.0, 2.0]))
    x, y = doubles([0.0], [0.1], [0.2], [0.3]), torch.tensor([0, 0, 0, 1])  # the last is wrong already
    attack = Recorded("linf", 0.5, targets=targets, restarts=restarts, loss="margin")
    found = attack.perturb(model, x, y, SampleRNG(0, range(4)))
    first = [0.0, 0.1, 0.2]
    if targets:  # the most likely wrong classes in turn
        assert [t[0] for t in calls] == [[2] * 3, [3] * 2, [1] * 2][: min(targets, 3)]
        assert all(t[1] and set(t[2]) == {0} for t in calls)
    else:
        assert [t[0] for t in calls] == [[0] * 3, [0] * 2]
        assert not any(t[1] for t in calls)
    assert [t[3] for t in calls] == [first, *[first[1:]] * (len(calls) - 1)]
    # Kept is what reached the goal, and what is better than the best so far.
    last = {0: 0.01, 2: 0.02, 9: 0.03}[targets]
    assert found.flatten().tolist() == pytest.approx([0.01, 0.1 + last, 0.2, 0.3])
    assert attack.cost == 100 * restarts * max(1, targets)
    assert APGD("l1", 1, steps=2, restarts=3).cost == 9
    assert APGD("l2", 1, steps=2, schedule_start=4).cost == 5


def test_the_first_sparsity_under_l1(monkeypatch):
    """A fifth of the pixels from a start that is drawn, else those of the start less a third."""
    seen = []
    for name in ("sparse_ascend", "auto_ascend"):
        monkeypatch.setattr(f"robgib.attacks.apgd.{name}", lambda *a: seen.append(a) or (a[4], a[1], a[1]))
    model, x = nn.Identity(), torch.full((2, 1, 4, 5), 0.5)
    goal = Objective.untargeted(torch.zeros(2, dtype=torch.long), "ce")
    APGD("l1", 1.0, steps=10).ascend(model, x, goal, SampleRNG(0, range(2)))
    assert seen[0][-1].tolist() == [4, 4]
    start = x.clone()
    start[0, 0, 0], start[1, 0, :3] = 0.6, 0.4
    for attack, last in ((APGD("l1", 1.0, steps=10), [5 / 1.5, 15 / 1.5]), (APGD("l2", 1.0, steps=10, rho=0.6), 0.6)):
        seen.clear()
        attack.ascend(model, x, goal, SampleRNG(0, range(2)), start)
        (given,) = seen
        assert [given[i] is v for i, v in enumerate((model, x, goal))] == [True] * 3
        assert (given[3], given[4] is start, given[5]) == (attack.threat, True, 10)
        assert (given[6] if isinstance(last, float) else given[6].tolist()) == pytest.approx(last)
    seen.clear()
    APGD("l2", 1.0, steps=7).ascend(model, x, goal, SampleRNG(0, range(2)))
    assert torch.equal(seen[0][4], ThreatModel("l2", 1.0).random_start(x, SampleRNG(0, range(2))))
    assert seen[0][5:] == (7, 0.75)


def test_what_apgd_can_do_and_costs():
    for attack in (APGD("l2", 1.0), Square("l2", 1.0)):
        assert (attack.aims, attack.pooled, attack.norms) == (True, True, ("linf", "l2", "l1"))
    defaults = APGD("l2", 1.0)
    assert (defaults.steps, defaults.restarts, defaults.loss, defaults.targets) == (100, 1, "ce", 0)
    assert (defaults.rho, defaults.schedule_start) == (0.75, None)
    assert APGD("l2", 1.0, steps=1).cost == 1
    assert APGD("l2", 1.0, steps=7, restarts=2, targets=3).cost == 42
    assert APGD("l2", 1.0, steps=3, schedule_start=2).cost == 5
    assert APGD("l1", 1.0, steps=2).cost == 3


def test_an_equal_value_is_no_rise_and_no_better_image():
    x = torch.full((2, 3), 0.5)
    flat = nn.Linear(3, 2)
    nn.init.zeros_(flat.weight)
    nn.init.constant_(flat.bias[:1].data, 1.0)
    nn.init.zeros_(flat.bias[1:].data)
    goal = Objective.untargeted(torch.zeros(2, dtype=torch.long), "margin")
    ascent = _Ascent(flat, x, goal, x)
    for is_last in (False, True):
        assert ascent.move(x + 0.1, is_last).tolist() == [False, False]
        assert torch.equal(ascent.state["at"], x + 0.1)
        assert torch.equal(ascent.state["best"], x)


class Holes(nn.Module):
    """Logits that are not a number where the first pixel is above 0.6; else 1 and the first pixel."""

    def forward(self, x):
        own = torch.where(x[:, 0] > 0.6, NAN, 1.0)
        return torch.stack([own, x[:, 0] * own], 1)


def test_a_search_that_starts_where_nothing_is_known_starts_at_the_clean_image():
    x = doubles([0.5, 0.5], [0.4, 0.5], [0.3, 0.5])
    start = doubles([0.55, 0.6], [0.7, 0.6], [0.8, 0.9])
    labels = torch.zeros(3, dtype=torch.long)
    goal = Objective("margin", labels, Criterion(labels, patient=True))
    begun, gradient, logits = _answered(Holes(), x, goal, start)
    assert begun.tolist() == [start[0].tolist(), x[1].tolist(), x[2].tolist()]
    assert gradient[:, 0].tolist() == pytest.approx([1, 1, 1])
    assert logits.tolist() == [[1, 0.55], [1, 0.4], [1, 0.3]]
    assert start[1].tolist() == [0.7, 0.6]  # as it was
    ends = Objective("margin", labels, Criterion(labels))  # where such an image ends the search it is the result
    assert torch.equal(_answered(Holes(), x, ends, start)[0], start)


def test_sparse_steps_of_several_samples_by_hand():
    x = torch.full((2, 1, 2, 2), 0.5)
    gradient = torch.tensor([[3.0, -4, 1, 0], [1.0, 2, -5, 4]]).view_as(x)
    found = _sparse_step(x, gradient, torch.tensor([0.2, 0.3]), torch.tensor([2.9, 3.0])) - x
    assert found.flatten(1).tolist() == [pytest.approx([0.1, -0.1, 0, 0]), pytest.approx([0, 0.1, -0.1, 0.1])]
    least = (
        _sparse_step(x, gradient, torch.tensor([0.2, 0.3]), torch.tensor([0.0, 9.0])) - x
    )  # one at least, all at most
    assert least.flatten(1).tolist() == [pytest.approx([0, -0.2, 0, 0]), pytest.approx([0.075, 0.075, -0.075, 0.075])]
    nothing = _sparse_step(x, 0 * gradient, torch.tensor([0.2, 0.3]), torch.tensor([1.0, 1.0]))
    assert torch.equal(nothing, x)
    assert _changed(x + found, x).tolist() == [2, 3]


def test_sparse_steps_go_through_the_iterates_of_the_paper():
    """Croce & Hein 2021, algorithm 1: sparsity and step by how many pixels the best image changes."""
    fewer_seen = set()
    for seed in range(4):
        model, steps, eps = Waves(40, seed, frequency=9 + 10 * seed), 50, 1.5
        threat = ThreatModel("l1", eps)
        x = np.random.default_rng(seed).uniform(0.05, 0.95, 40)
        at = best = x
        size, sparse, marked, seen = eps, 8.0, 8.0, [x]
        for k in range(1, steps + 1):
            slope = model.slope(at)
            chosen = np.argsort(-abs(slope))[: max(1, int(sparse))]
            step = np.zeros(40)
            step[chosen] = size * np.sign(slope[chosen]) / len(chosen)
            at = threat.project(doubles(at + step), doubles(x))[0].numpy()
            seen.append(at)
            if model.value(at) > model.value(best):
                best = at
            if k % 2 == 0:  # 0.04 of 50 steps
                now = float((best != x).sum())
                fewer = now < 0.95 * marked
                fewer_seen.add(fewer)
                sparse, marked = now / 1.5, now
                size = eps if fewer else max(size / 1.5, 0.1 * eps)
                at = best if fewer else at
        goal = Objective.untargeted(torch.tensor([0]), "margin")
        model.asked.clear()
        found, value, fooled = sparse_ascend(
            model, doubles(x), goal, threat, doubles(x), steps, torch.tensor([8.0], dtype=torch.float64)
        )
        assert torch.cat(model.asked).numpy() == pytest.approx(np.array(seen), abs=1e-9)
        assert found[0].numpy() == pytest.approx(best, abs=1e-9)
        assert (float(value), bool(fooled)) == (pytest.approx(model.value(best)), False)
    assert fewer_seen == {True, False}


@pytest.mark.parametrize(
    ("norm", "widest", "steps", "radii", "counts"),
    [
        ("l1", None, 10, [3, 2, 1], [3, 3, 4]),
        ("l1", None, 2, [3, 2, 1], [1, 1, 1]),
        ("l2", 16.0, 10, [16, 8, 4, 2, 1], [2, 2, 2, 2, 2]),
        ("linf", 81.0, 11, [10, 10, 9, 3, 1], [2, 2, 3, 2, 2]),  # no wider than the box
    ],
)
def test_balls_that_shrink(monkeypatch, norm, widest, steps, radii, counts):
    eps, gone = 0.1, []

    def ascend_in(self, ball, model, x, goal, start, steps, like):
        gone.append((ball.eps, steps, goal.criterion.patient, like is None))
        assert bool(ball.allows(start, x).all())
        return start, torch.zeros(len(x)), torch.zeros(len(x)).bool()

    monkeypatch.setattr(APGD, "_ascend_in", ascend_in)
    x = torch.full((2, 1, 4, 4), 0.5)
    goal = Objective.untargeted(torch.zeros(2, dtype=torch.long), "ce")
    APGD(norm, eps, steps=steps, schedule_start=widest).ascend(nn.Identity(), x, goal, SampleRNG(0, range(2)))
    assert [r for r, *_ in gone] == pytest.approx([eps * r for r in radii])
    assert [c for _, c, *_ in gone] == counts
    assert [p for *_, p, _ in gone] == [True] * (len(radii) - 1) + [False]
    assert [first for *_, first in gone] == [True] + [False] * (len(radii) - 1)


# Square.


def test_the_area_of_the_squares_is_halved_on_the_papers_schedule():
    attack = Square("linf", 0.1, queries=10_000)
    for k, turn in enumerate((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)):
        assert attack._share(turn) == 0.8 / 2**k
        assert attack._share(turn + 1) == 0.8 / 2 ** (k + 1)
    short = Square("linf", 0.1, queries=1000, area=0.05)
    assert [short._share(q) for q in (1, 2, 5, 6, 1000)] == [0.05, 0.025, 0.025, 0.0125, 0.05 / 512]
    assert Square("linf", 0.1).area == 0.8


@pytest.mark.parametrize(
    ("share", "height", "width", "sides"),
    [
        (0.8, 28, 28, (25, 25)),  # √(0.8·784) = 25.04
        (0.0001, 28, 28, (1, 1)),
        (1.0, 8, 8, (8, 7)),  # never all of it
        (0.8, 1, 10, (1, 8)),
        (0.8, 10, 1, (8, 1)),
        (1.0, 1, 10, (1, 9)),
        (0.25, 4, 16, (4, 4)),
        (0.05, 1, 10, (1, 1)),
        (0.1, 1, 10, (1, 1)),
        (0.5, 16, 4, (8, 4)),
        (0.5, 4, 16, (4, 8)),
        (1.0, 1, 1, (1, 1)),
    ],
)
def test_sides_of_the_squares(share, height, width, sides):
    assert _sides(share, height, width) == sides


def test_squares_under_the_other_norms_have_room_for_a_pattern():
    late = 10_000
    assert Square("linf", 0.1, queries=late)._sides(late, 28, 28) == (1, 1)
    assert Square("l2", 1.0, queries=late)._sides(late, 28, 28) == (3, 3)
    assert Square("l2", 1.0, queries=late)._sides(late, 8, 8) == (2, 2)
    assert Square("l1", 1.0, queries=late)._sides(1, 28, 28) == (25, 25)
    assert Square("l1", 1.0, queries=late)._sides(late, 1, 64) == (1, 3)


def test_the_pattern_of_the_squares():
    # η at distance d from the centre: the sum of 1/k² over k from d + 1 to the number of rings.
    one, two = 1.0, 1 + 1 / 4
    assert _pyramid(3, 3).tolist() == [[1 / 4] * 3, [1 / 4, two, 1 / 4], [1 / 4] * 3]
    assert _pyramid(1, 1).tolist() == [[one]]
    assert _pyramid(5, 5)[2].tolist() == pytest.approx([1 / 9, 1 / 9 + 1 / 4, 1 / 9 + two, 1 / 9 + 1 / 4, 1 / 9])
    # One below the other, of opposite sign, and of norm 1.
    like = torch.zeros(1, dtype=torch.float64)
    assert _pattern(2, 1, like).flatten().tolist() == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)])
    assert _pattern(1, 1, like).tolist() == [[-1.0]]
    assert _pattern(2, 1, torch.zeros(1)).dtype == torch.float32
    upright, turned = _patterns((2, 4), like)
    assert torch.equal(upright, _pattern(2, 4, like))
    assert torch.equal(turned, _pattern(4, 2, like).T)
    whole = np.vstack([_pyramid(2, 4), -_pyramid(3, 4)])
    assert _pattern(5, 4, like).numpy() == pytest.approx(whole / np.sqrt((whole**2).sum()))


def test_where_the_squares_lie():
    x = torch.zeros(2, 1, 5, 6)
    u, v = torch.tensor([0.0, 0.99]), torch.tensor([0.5, 0.99])
    windows = _window(x, (2, 3), u, v)[:, 0]
    # 4 rows and 4 columns to begin at.
    assert [w.nonzero().amin(0).tolist() for w in windows] == [[0, 2], [3, 3]]
    assert [w.nonzero().amax(0).tolist() for w in windows] == [[1, 4], [4, 5]]
    assert windows.sum().item() == 12
    pattern = torch.arange(12.0).view(2, 2, 3)
    placed = _placed(pattern, x, u, v)[:, 0]
    for i in range(2):
        assert placed[i][windows[i]].tolist() == pattern[i].flatten().tolist()
    assert placed[0][4].tolist() == [3, 3, 3, 4, 5, 5]  # repeated beyond


def test_a_proposal_under_linf_by_hand():
    attack = Square("linf", 0.1)
    x = torch.full((1, 2, 4, 4), 0.5)
    numbers = torch.tensor([[0.0, 0.9, 0, 0, 0, 0.4, 0.6, 0, 0]])
    made = attack._square(x, x - 0.1, (2, 2), numbers)
    expected = torch.full((2, 4, 4), 0.4)
    expected[1, :2, 2:] = 0.6  # u = 0, v = 0.9 of three places
    assert torch.allclose(made[0], expected)
    signs = torch.where(SampleRNG(3, [0]).integers(2, (2, 1, 4)) == 1, 0.1, -0.1)
    assert torch.allclose(attack._stripes(x, SampleRNG(3, [0])) - x, signs.expand(1, 2, 4, 4))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_a_proposal_under_the_other_norms_by_algorithm_3(norm, power, turned):
    rng = np.random.default_rng(0)
    eps, x = 0.3, np.full((2, 6, 6), 0.5)
    delta = rng.uniform(-0.02, 0.02, (2, 6, 6))
    numbers = torch.tensor([[0.1, 0.5, 0.9, 0.3, 0.7 if turned else 0.2, 0.7, 0.1, 0, 0]], dtype=torch.float64)
    attack = Square(norm, eps)
    made = attack._exchange(doubles(*x[None]), doubles(*(x + delta)[None]), (3, 3), numbers)[0].numpy() - x
    one, two = np.s_[:, 0:3, 2:5], np.s_[:, 3:6, 1:4]  # begin at int(4 u): 0 and 2, 3 and 1
    either = np.zeros((2, 6, 6), bool)
    either[one], either[two] = True, True

    def size(values):
        return (abs(values) ** power).sum((1, 2), keepdims=True)

    unused = max(eps**power - (abs(delta) ** power).sum(), 0) / 2
    budget = (size(delta * either) + unused) ** (1 / power)
    pattern = _pattern(3, 3, torch.zeros(1, dtype=torch.float64)).numpy()
    pattern = pattern.T if turned else pattern
    sign = np.array([1, -1])[:, None, None]
    fresh = sign * pattern + delta[one] / size(delta[one]) ** (1 / power)
    expected = delta.copy()
    expected[two] = 0
    expected[one] = budget * fresh / size(fresh) ** (1 / power)
    total = (abs(expected) ** power).sum() ** (1 / power)
    assert made == pytest.approx(expected * eps / total, rel=1e-4, abs=1e-7)


def test_the_first_image_under_the_other_norms():
    x = torch.full((1, 1, 10, 10), 0.5, dtype=torch.float64)
    attack = Square("l2", 0.6)
    made = (attack._tiles(x, SampleRNG(2, [0])) - x)[0, 0]
    assert float(made.norm()) == pytest.approx(0.6, rel=1e-5)
    upright = _pattern(2, 2, x)
    numbers = SampleRNG(2, [0]).uniform((50,)).view(5, 5, 2)
    for r in range(5):
        for c in range(5):  # each tile has norm 1 of 25
            kind, sign = numbers[r, c].tolist()
            pattern = (upright if kind < 0.5 else upright.T) * (-1 if sign < 0.5 else 1) * 0.6 / 5
            tile = made[2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
            assert torch.allclose(tile, pattern, rtol=1e-4)


def test_small_images_begin_with_tiles_of_a_pixel():
    x = torch.full((1, 1, 4, 3), 0.5)
    made = Square("l2", 0.6)._tiles(x, SampleRNG(2, [0])) - x
    assert torch.allclose(made.abs(), torch.tensor(0.6 / math.sqrt(12)), rtol=1e-4)


def test_samples_of_any_shape_are_images():
    for shape, image in (((3, 5), (3, 1, 1, 5)), ((3, 4, 5), (3, 1, 4, 5)), ((3, 2, 4, 5), (3, 2, 4, 5)),
                         ((3, 2, 6, 4, 5), (3, 2, 24, 5))):  # fmt: skip
        x = torch.arange(math.prod(shape)).view(shape)
        assert _as_images(x).shape == image
        assert torch.equal(_as_images(x).flatten(), x.flatten())
    x = torch.zeros(2, 3, 4, 4)
    draws = Square._draws(x, SampleRNG(0, range(2)))
    numbers = [next(draws) for _ in range(101)]
    rng = SampleRNG(0, range(2))
    first, second = rng.uniform((100, 11)), rng.uniform((100, 11))
    assert torch.equal(torch.stack(numbers[:100], 1), first)
    assert torch.equal(numbers[100], second[:, 0])


def test_square_keeps_what_does_not_lower_the_margin():
    """Its search, beside one written from algorithm 1 for a single sample, never fooled."""
    model, x = Waves(36, 1), np.random.default_rng(0).uniform(0.2, 0.8, (1, 1, 6, 6))
    flat = nn.Sequential(nn.Flatten(), model)
    attack = Square("linf", 0.1, queries=150)
    goal = Objective.untargeted(torch.tensor([0]), "margin")
    found, value, fooled = attack.search(flat, torch.from_numpy(x), goal, SampleRNG(5, [0]))
    rng = SampleRNG(5, [0])
    best = attack._stripes(torch.from_numpy(x), rng)
    at = model.value(best.numpy().reshape(-1))
    numbers = torch.cat([rng.uniform((100, 7)), rng.uniform((100, 7))], 1)
    for query in range(1, 150):
        proposal = attack._square(torch.from_numpy(x), best, attack._sides(query, 6, 6), numbers[:, query - 1])
        if (now := model.value(proposal.numpy().reshape(-1))) >= at:
            best, at = proposal, now
    assert torch.equal(found, best)
    assert (float(value), bool(fooled)) == (pytest.approx(at), False)
    assert len(model.asked) == 150
    assert attack.cost == 50
    assert Square("linf", 0.1, queries=1).cost == 1
    again = attack.search(flat, torch.from_numpy(x), goal, SampleRNG(5, [0]), start=found)[1]
    assert float(again) >= at


class Bright(nn.Module):
    """Class 1 where the mean is above 0.55."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0 * mean, 100 * (mean - 0.55)], 1)


class OfColour(Bright):
    """The same, of images of three channels alone."""

    def forward(self, x):
        assert x.shape[1:] == (3, 6, 6)
        return super().forward(x)


def test_a_search_says_which_images_of_several_channels_are_fooled():
    x = torch.full((2, 3, 6, 6), 0.54)
    x[1] = 0.1
    attack = Square("linf", 0.1, queries=60)
    goal = Objective.untargeted(torch.zeros(2, dtype=torch.long), "margin")
    found, value, fooled = attack.search(OfColour(), x, goal, SampleRNG(0, range(2)))
    assert fooled.tolist() == [True, False]
    means = found.flatten(1).mean(1)
    assert value.tolist() == pytest.approx((100 * (means - 0.55)).tolist(), abs=1e-3)
    assert Square("linf", 0.1, queries=60, restarts=3).cost == 60


def test_square_stops_a_sample_when_it_is_fooled():
    x = torch.full((3, 1, 6, 6), 0.5)
    x[1], x[2] = 0.7, 0.2
    y = torch.zeros(3, dtype=torch.long)
    attack = Square("linf", 0.1, queries=60, restarts=2)
    found = attack.perturb(Bright(), x, y, SampleRNG(0, range(3)))
    assert float(found[0].mean()) > 0.55
    assert torch.equal(found[1], x[1])  # wrong already
    assert 0.21 < float(found[2].mean()) <= 0.3 + 1e-6  # the best that was found
    none = attack.perturb(Bright(), x[1:2], y[:1], SampleRNG(0, [0]))
    assert torch.equal(none, x[1:2])
