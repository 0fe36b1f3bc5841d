"""Attacks of Foolbox and ART by their adapters, and as independent references."""

import inspect
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, RobGIBWarning, SampleRNG, ThreatModel, make_attack
from robgib.attacks import FGSM, PGD
from robgib.attacks.base import reach_note
from robgib.attacks.libraries import _projected
from robgib.robustness.run_attack import run_attack

pytest.importorskip("foolbox")
pytest.importorskip("art")

SPECS = [
    ("foolbox:LinfPGD:eps=0.1,steps=10,rel_stepsize=0.25", "linf"),
    ("foolbox:L2FastGradientAttack:eps=0.5", "l2"),
    ("foolbox:L2DeepFoolAttack:eps=0.5", "l2"),
    ("foolbox:SparseL1DescentAttack:eps=3", "l1"),
    ("art:ProjectedGradientDescent:eps=0.1,max_iter=10", "linf"),
    ("art:FastGradientMethod:eps=0.5,norm=2", "l2"),
    ("art:DeepFool:eps=0.5,max_iter=10", "l2"),
]


@pytest.mark.parametrize(("spec", "norm"), SPECS)
def test_runs_verified_and_repeatably(spec, norm, digits_mlp, digits):
    attack = make_attack(spec)
    assert attack.threat.norm == norm
    x, y = digits.test.x[:30], digits.test.y[:30]
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (run_attack(digits_mlp, x, y, attack, label=spec) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert np.array_equal(one.prediction, two.prediction)
    assert (one.prediction != y.numpy()).mean() > 0.2


@pytest.mark.parametrize(("spec", "norm", "eps"), [
    ("foolbox:LinfFastGradientAttack:random_start=false", "linf", 0.1),
    ("art:FastGradientMethod", "linf", 0.1),
    ("foolbox:L2FastGradientAttack:random_start=false", "l2", 0.5),
    ("art:FastGradientMethod:norm=2", "l2", 0.5),
])  # fmt: skip
def test_fgsm_makes_the_same_images(spec, norm, eps, digits_mlp, right_by_mlp):
    x, y = (v[:40] for v in right_by_mlp)
    peer = make_attack(f"{spec},eps={eps}" if spec.count(":") > 1 else f"{spec}:eps={eps}")
    rng = SampleRNG(0, range(40))
    theirs = peer.perturb(digits_mlp, x, y, rng)
    mine = FGSM(norm, eps).perturb(digits_mlp, x, y, rng)
    assert float((mine - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize(("spec", "norm"), [
    ("foolbox:LinfPGD:steps=20,abs_stepsize=0.01,eps=0.08", "linf"),
    ("foolbox:L2PGD:steps=20,abs_stepsize=0.05,eps=0.35", "l2"),
    ("art:ProjectedGradientDescent:max_iter=20,eps_step=0.01,num_random_init=1,eps=0.08", "linf"),
])  # fmt: skip
def test_pgd_agrees_in_robust_accuracy(spec, norm, digits_mlp, right_by_mlp):
    x, y = right_by_mlp
    peer = make_attack(spec)
    mine = PGD(peer.threat.norm, peer.threat.eps, steps=20, step_size=0.01 if norm == "linf" else 0.05, keep="last")
    left = [
        float((digits_mlp(a.perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))).argmax(1) == y).float().mean())
        for a in (mine, peer)
    ]
    assert abs(left[0] - left[1]) <= 1.96 * np.sqrt(2 * 0.25 / len(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foolbox:LinfPDG", "unknown foolbox attack 'LinfPDG'; did you mean 'LinfPGD'"),
        ("foolbox:LinfPGD:stepz=3", "did you mean 'steps'"),
        ("foolbox:SpatialAttack", "no budget can be verified"),
        ("art:FastGradientMethot", "did you mean 'FastGradientMethod'"),
        ("art:FastGradientMethod:norm=3", "use Linf, L2 or L1"),
        ("art:HopSkipJump:norm=1", "use Linf or L2"),
        ("art:ElasticNet:decision_rule=L3", "use EN, L1 or L2"),
        ("art:ProjectedGradientDescent:targeted=true", "runs untargeted here"),
        ("torchattacks:APGD:norm=L1", "use Linf or L2"),
        ("torchattacks:PIFGSM:max_epsilon=0.1", "write eps=0.1"),
        ("torchattacks:PGD:eot=often", "eot must be a whole number"),
        ("torchattacks:PGD:eot=0", "eot must be at least 1"),
        ("torchattacks:FAB:norm=L1,multi_targeted=true", "leave multi_targeted out"),
        ("foolbox:InversionAttack", "give distance=linf, l2 or l1"),
        ("foolbox:VirtualAdversarialAttack", "missing 1 required positional argument: 'steps'"),
        ("art:ProjectedGradientDescent:max_itr=3", "did you mean 'max_iter'"),
        ("art:AdversarialPatch", "no budget can be verified"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(RobGIBError, match=message):
        make_attack(spec)


@pytest.mark.parametrize(("spec", "module"), [("foolbox:LinfPGD", "foolbox"), ("art:FastGradientMethod", "art")])
def test_a_missing_library_is_named_with_its_install_line(spec, module, monkeypatch):
    for name in [m for m in sys.modules if m == module or m.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{module}.attacks", None)
    monkeypatch.setitem(sys.modules, f"{module}.attacks.evasion", None)
    with pytest.raises(RobGIBError, match=rf'pip install "robgib\[{module}\]"'):
        make_attack(spec)


@pytest.mark.slow
def test_sparse_steps_are_no_weaker_than_foolbox(digits_mlp, digits):
    """At each of three budgets one may be stronger by a few samples; on average neither is."""
    x, y = digits.test.x, digits.test.y
    left = {"pgd-l1": [], "foolbox:SparseL1DescentAttack": []}
    for eps in (0.5, 1, 1.5):
        for name, options in (("pgd-l1", ""), ("foolbox:SparseL1DescentAttack", ",rel_stepsize=0.0625")):
            outcome = run_attack(digits_mlp, x, y, make_attack(f"{name}:eps={eps},steps=40{options}"))
            left[name].append(float((outcome.prediction == y.numpy()).mean()))
    ours, theirs = (sum(shares) / 3 for shares in left.values())
    assert 0.05 < ours < 0.95
    assert ours <= theirs + 0.015


def robust(model, x, y, spec) -> float:
    """Share of the samples that the attack leaves right, by the model's own answer on what it returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)
        attack = make_attack(spec)
        found = attack.perturb(model, x, y, SampleRNG(0, range(len(x))))
    assert bool(attack.threat.allows(found, x).all())
    with torch.no_grad():
        return float((model(found).argmax(1) == y).float().mean())


STEPPED = {
    "torchattacks": "BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM VMIFGSM "
    "VNIFGSM SPSA PGDL2 PGDRSL2",
    "art": "AutoAttack AutoProjectedGradientDescent AutoConjugateGradient RescalingAutoConjugateGradient "
    "FastGradientMethod BasicIterativeMethod MomentumIterativeMethod ProjectedGradientDescent "
    "ProjectedGradientDescentNumpy ProjectedGradientDescentPyTorch",
}


def library_classes(library: str) -> dict:
    if library == "torchattacks":
        import torchattacks as names

        base = names.attack.Attack
    elif library == "foolbox":
        import foolbox.attacks as names

        base = names.base.Attack
    else:
        import art.attacks.evasion as names
        from art.attacks import EvasionAttack as base
    return {n: c for n, c in vars(names).items() if inspect.isclass(c) and issubclass(c, base) and c is not base}


@pytest.mark.parametrize("library", STEPPED)
@pytest.mark.parametrize("times", [1, 10])
def test_steps_not_given_keep_their_share_of_the_radius(library, times, monkeypatch):
    """The classes are replaced: the test checks the step size that they receive."""
    from robgib.attacks import libraries as adapters

    stepped, built = [], {}
    for name, kind in library_classes(library).items():
        parameters = inspect.signature(kind).parameters
        step = next((s for s in ("alpha", "eps_step", "lr") if s in parameters), None)
        try:
            attack = make_attack(f"{library}:{name}")
        except RobGIBError:
            continue
        if step is None or "eps" not in parameters:
            continue
        stepped.append(name)
        share = parameters[step].default / parameters["eps"].default
        eps = parameters["eps"].default * times
        attack = make_attack(f"{library}:{name}:eps={min(eps, 1.0)}")
        monkeypatch.setattr(adapters, "_construct", lambda k, given, *_: built.update(given) or 1 / 0)
        with pytest.raises(RobGIBError, match=f"{library}:{name} fails"):
            attack.perturb(nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), SampleRNG(0, range(2)))
        monkeypatch.undo()
        least = 1.0 if name == "SPSA" else share  # SPSA's one step would not get anywhere by its default
        assert built[step] == pytest.approx(least * attack.threat.eps), name
    assert stepped == STEPPED[library].split()


@pytest.mark.parametrize("name", ["PGD", "MIFGSM", "RFGSM", "BIM", "UPGD", "FFGSM", "SPSA", "NIFGSM", "VMIFGSM"])
def test_default_steps_cross_a_large_ball(name, right_by_mlp, digits_mlp):
    assert robust(digits_mlp, *(v[:60] for v in right_by_mlp), f"torchattacks:{name}:eps=0.3") < 0.1


def test_a_radius_of_another_name_is_set(monkeypatch):
    """PIFGSM's max_epsilon kept its default, and all that it found in a smaller ball was thrown away."""
    weight = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    model[1].weight.data = weight.T
    x = 0.4 + 0.2 * torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    attack = make_attack("torchattacks:PIFGSM:eps=0.02")
    found = attack.perturb(model, x, model(x).argmax(1), SampleRNG(0, range(6)))
    assert attack.threat.distance(found, x).numpy() == pytest.approx(0.02, rel=1e-3)


def test_few_steps_reach_the_edge_too(right_by_mlp, digits_mlp):
    x, y = (v[:8] for v in right_by_mlp)
    for spec in ("torchattacks:PGD:steps=2,random_start=false", "foolbox:LinfPGD:steps=2,random_start=false"):
        attack = make_attack(f"{spec},eps=0.2")
        found = attack.perturb(digits_mlp, x, y, SampleRNG(0, range(len(x))))  # no warning: they would be errors
        assert float(attack.threat.distance(found, x).min()) == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize(("spec", "message"), [
    ("torchattacks:PGD:eps=0.3,alpha=2/255", "torchattacks:PGD: 10 steps of 0.0078 move at most 0.078 and the ball's "
     "radius is 0.3; give alpha=0.075 or more steps."),
    ("torchattacks:FFGSM:eps=0.3,alpha=0.1", "1 step of 0.1 moves at most 0.1 and .*; give alpha=0.3 or more steps"),
    ("foolbox:LinfPGD:eps=0.3,steps=10,abs_stepsize=0.01", "10 steps of 0.01 move at .*; give abs_stepsize=0.075"),
    ("foolbox:LinfPGD:eps=0.3,steps=10,rel_stepsize=0.05", "10 steps of 0.015 move at most 0.15 "),
    ("art:ProjectedGradientDescent:eps=0.3,max_iter=5,eps_step=0.02", "5 steps of 0.02 move .*eps_step=0.15"),
])  # fmt: skip
def test_given_steps_that_cannot_reach_the_edge_are_named(spec, message, right_by_mlp, digits_mlp):
    x, y = (v[:4] for v in right_by_mlp)
    with pytest.warns(RobGIBWarning, match=message):
        make_attack(spec).perturb(digits_mlp, x, y, SampleRNG(0, range(4)))


def test_reach_note_is_silent_where_the_edge_is_reached():
    assert reach_note(10, 0.03, 0.3) == ""
    assert reach_note(3, 1.0, 0.3) == ""
    assert "give step_size=0.3 or more steps" in reach_note(2, 0.1, 0.3)


class Hyperplane(nn.Module):
    """Two classes either side of a hyperplane through the middle of the box, with no parameters."""

    def __init__(self, normal: torch.Tensor) -> None:
        super().__init__()
        self.normal = normal.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = ((x.double() - 0.5).flatten(1) @ self.normal).to(x.dtype)
        return torch.stack([side, -side], 1)


@pytest.mark.parametrize(("spec", "eps"), [
    ("foolbox:SparseL1DescentAttack", 100.0),
    ("foolbox:L1PGD:random_start=false,steps=5,abs_stepsize=100", 100.0),
    ("foolbox:L2PGD:steps=5,abs_stepsize=3,random_start=false", 3.0),
    ("foolbox:L2DeepFoolAttack:overshoot=0.002,steps=3", 3.0),
    ("foolbox:LinfPGD:steps=5", 0.02),
    ("art:ProjectedGradientDescent:norm=2,max_iter=5", 3.0),
    ("art:ProjectedGradientDescent:norm=1,max_iter=5", 0.3),
    ("art:BasicIterativeMethod:max_iter=5", 0.02),
    ("torchattacks:PGDL2:random_start=false", 3.0),
    ("torchattacks:PGD", 0.02),
])  # fmt: skip
@pytest.mark.parametrize("size", [224, pytest.param(384, marks=pytest.mark.slow)])
def test_images_outside_by_rounding_count(spec, eps, size):
    """The hyperplane is 0.999 eps away from each image: the truth is that none is robust."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randint(2, (3 * size * size,), generator=generator) * 2.0 - 1
    if "norm=1" in spec:
        normal[1:] = 0  # ART's L1 step moves one pixel
    spec = f"{spec},eps={eps}" if spec.count(":") > 1 else f"{spec}:eps={eps}"
    order = {"linf": 1, "l2": 2, "l1": float("inf")}[make_attack(spec).threat.norm]  # of the dual norm
    reach = eps * float(torch.linalg.vector_norm(normal.double(), ord=order))
    x = 0.4 + 0.2 * torch.rand(3, 3, size, size, dtype=torch.float64, generator=generator)
    gap = (x - 0.5).flatten(1) @ normal.double() - 0.999 * reach
    x = (x - (gap[:, None] * normal / (normal @ normal)).view_as(x)).float()
    y = torch.zeros(3, dtype=torch.int64)
    model = Hyperplane(normal / reach)  # logits of about 1: a loss that saturates has no gradient
    assert bool((model(x).argmax(1) == y).all())
    assert robust(model, x, y, spec) == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_a_library_returns_is_held_to_the_threat_model(norm):
    threat = ThreatModel(norm, 0.3)
    x = 0.35 + 0.3 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = x + torch.tensor([1e-4, 1e-3, 0.1, 3.0]).view(4, 1, 1, 1) * torch.randn(x.shape)
    found[0] = (x[0] + 1e-4).clamp(0, 1)
    held = _projected("a library", found, x, threat)
    assert torch.equal(held[0], found[0])  # inside: as it is
    assert bool(threat.allows(held, x, 1e-7).all())
    assert float(threat.distance(held, x)[3]) == pytest.approx(0.3, rel=1e-3)


def test_images_that_are_not_finite_become_the_clean_ones():
    class Flat(nn.Module):  # a gradient of 0, by whose size NewtonFool divides
        def forward(self, x):
            return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    x, y = torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.warns(RobGIBWarning, match="foolbox:NewtonFoolAttack: 4 of 4 images have NaN"):
        found = make_attack("foolbox:NewtonFoolAttack:eps=0.1,steps=2").perturb(Flat(), x, y, SampleRNG(0, range(4)))
    assert torch.equal(found, x)


BOUNDED = {
    "torchattacks": {
        "linf": STEPPED["torchattacks"].removesuffix(" PGDL2 PGDRSL2")
        + " FGSM APGD APGDT PIFGSM PIFGSMPP FAB AutoAttack Square",
        "l2": "CW PGDL2 PGDRSL2 DeepFool EADEN",
        "l1": "EADL1",
    },
    "foolbox": {
        "linf": "FGSM PGD MIFGSM AdamPGD LinfAdamPGD LinfPGD LinfDeepFoolAttack LInfFMNAttack "
        "LinfAdditiveUniformNoiseAttack LinfRepeatedAdditiveUniformNoiseAttack LinfFastGradientAttack "
        "LinfBasicIterativeAttack LinfAdamBasicIterativeAttack LinfMomentumIterativeFastGradientMethod "
        "LinfProjectedGradientDescentAttack LinfAdamProjectedGradientDescentAttack",
        "l2": "FGM L2PGD L2AdamPGD L2DeepFoolAttack L2FMNAttack L2FastGradientAttack L2BasicIterativeAttack "
        "L2AdamBasicIterativeAttack L2MomentumIterativeFastGradientMethod L2ProjectedGradientDescentAttack "
        "L2AdamProjectedGradientDescentAttack L2ContrastReductionAttack DDNAttack L2CarliniWagnerAttack "
        "NewtonFoolAttack SaltAndPepperNoiseAttack BoundaryAttack HopSkipJumpAttack L2AdditiveGaussianNoiseAttack "
        "L2AdditiveUniformNoiseAttack L2ClippingAwareAdditiveGaussianNoiseAttack "
        "L2ClippingAwareAdditiveUniformNoiseAttack L2RepeatedAdditiveGaussianNoiseAttack "
        "L2RepeatedAdditiveUniformNoiseAttack L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack "
        "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
        "l1": "L1PGD L1AdamPGD L1FMNAttack L1FastGradientAttack L1BasicIterativeAttack L1AdamBasicIterativeAttack "
        "L1MomentumIterativeFastGradientMethod L1ProjectedGradientDescentAttack L1AdamProjectedGradientDescentAttack "
        "SparseL1DescentAttack EADAttack",
    },
    "art": {
        "linf": STEPPED["art"] + " CarliniLInfMethod SquareAttack ThresholdAttack UniversalPerturbation",
        "l2": "BoundaryAttack CarliniL2Method DeepFool GeoDA HopSkipJump NewtonFool SimBA VirtualAdversarialMethod "
        "ZooAttack SignOPTAttack",
        "l1": "ElasticNet",
    },
}
ASKING = (
    "InversionAttack BinarySearchContrastReductionAttack LinearSearchContrastReductionAttack GaussianBlurAttack "
    "LinearSearchBlendedUniformNoiseAttack VirtualAdversarialAttack"
)
TRUE_REASONS = ("so no budget can be verified.", "a PyTorch image classifier is not supported.")


@pytest.mark.parametrize("library", BOUNDED)
def test_every_attack_has_its_norm_or_a_true_reason(library):
    found: dict = {"linf": set(), "l2": set(), "l1": set()}
    for name in library_classes(library):
        try:
            found[make_attack(f"{library}:{name}").threat.norm].add(name)
        except RobGIBError as error:
            message = str(error)
            if library == "foolbox" and name in ASKING.split():
                assert "give distance=" in message or "argument: 'steps'" in message
            elif "BrendelBethge" in name:
                assert "numba" in message or "L0" in message
            else:
                assert message.endswith(TRUE_REASONS)
                assert "does not say" not in message or name == "PointwiseAttack"
    found["l1"].discard("L1BrendelBethgeAttack")
    found["l2"].discard("L2BrendelBethgeAttack")
    found["linf"].discard("LinfinityBrendelBethgeAttack")
    assert found == {norm: set(names.split()) for norm, names in BOUNDED[library].items()}


@pytest.mark.parametrize(("spec", "norm"), [
    ("torchattacks:FAB:norm=L1", "l1"),
    ("torchattacks:Square:norm=l2", "l2"),
    ("art:HopSkipJump:norm=inf", "linf"),
    ("art:ElasticNet:decision_rule=L1", "l1"),
    ("art:ElasticNet:decision_rule=L2", "l2"),
    ("art:ProjectedGradientDescent:norm=1", "l1"),
    ("foolbox:HopSkipJumpAttack:constraint=linf", "linf"),
    ("foolbox:InversionAttack:distance=l1", "l1"),
])  # fmt: skip
def test_norm_follows_the_parameters(spec, norm):
    assert make_attack(spec).threat.norm == norm


@pytest.mark.parametrize(("spec", "most"), [
    ("torchattacks:FAB:eps=6,norm=L1,n_restarts=2", 0.2),
    ("torchattacks:EADL1:eps=6,binary_search_steps=4,max_iterations=40", 0.5),
    ("torchattacks:APGD:eps=1,norm=l2", 0.2),
    ("art:BasicIterativeMethod:eps=0.15,max_iter=10", 0.2),
    ("art:HopSkipJump:eps=1.5,max_iter=3,max_eval=100,init_eval=20", 0.7),
    ("art:HopSkipJump:eps=0.3,max_iter=3,max_eval=100,init_eval=20,norm=inf", 0.7),
    ("art:ElasticNet:eps=8,max_iter=30,binary_search_steps=3", 0.7),
    ("art:SimBA:eps=2,max_iter=60", 0.9),
    ("foolbox:LinearSearchBlendedUniformNoiseAttack:eps=2,distance=l2,directions=5,steps=20", 0.95),
])  # fmt: skip
def test_attacks_once_refused_work(spec, most, right_by_mlp, digits_mlp):
    assert robust(digits_mlp, *(v[:16] for v in right_by_mlp), spec) <= most


class Lines(nn.Module):
    """A linear model whose buffer, which it does not use, holds a NaN."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.line = nn.Linear(48, classes)
        self.line.weight.data = torch.randn(classes, 48, generator=torch.Generator().manual_seed(0))
        self.register_buffer("unused", torch.tensor([float("nan")]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x.flatten(1))


@pytest.mark.parametrize("spec", [
    "torchattacks:PGD:eps=0.2",
    "torchattacks:TIFGSM:eps=0.2,len_kernel=3",
    "torchattacks:PIFGSM:eps=0.2",
    "torchattacks:FAB:eps=0.2",
    "foolbox:LinfPGD:eps=0.2",
    "foolbox:L2DeepFoolAttack:eps=2",
    "art:ProjectedGradientDescent:eps=0.2,max_iter=5",
    "art:DeepFool:eps=2,max_iter=5",
    "art:HopSkipJump:eps=2,max_iter=2,max_eval=50,init_eval=10",
])  # fmt: skip
@pytest.mark.parametrize(("classes", "count", "dtype"), [
    (2, 3, torch.float32), (4, 1, torch.float32), (3, 3, torch.float64), (2, 1, torch.float64),
])  # fmt: skip
def test_tiny_things(spec, classes, count, dtype):
    model = Lines(classes).to(dtype)
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = model(x).argmax(1)
    attack = make_attack(spec)
    found = attack.perturb(model, x, y, SampleRNG(0, range(count)))
    assert found.dtype == dtype
    assert bool(attack.threat.allows(found, x).all())
    if "TIFGSM" not in spec:
        assert bool((model(found).argmax(1) != y).any())
    assert not make_attack(spec).perturb(model, x[:0], y[:0], SampleRNG(0, [])).numel()


@pytest.mark.parametrize(("spec", "message"), [
    ("torchattacks:TIFGSM", r"torchattacks:TIFGSM fails on images \(2, 1, 8, 8\): Given groups=3"),
    ("torchattacks:APGDT", "torchattacks:APGDT fails on images .* out of bounds"),
    ("art:SignOPTAttack", "art:SignOPTAttack fails on images .* binary classification"),
    ("art:ProjectedGradientDescent:max_iter=many", "art:ProjectedGradientDescent .*"),
])  # fmt: skip
def test_a_library_that_fails_is_named_in_one_sentence(spec, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(RobGIBError, match=message):
        make_attack(spec).perturb(model, x, model(x).argmax(1), SampleRNG(0, range(2)))


def test_draws_go_to_the_attack_and_not_to_the_library():
    attack = make_attack("torchattacks:EOTPGD:eps=0.3,eot=5,eot_iter=3")
    assert attack.eot == 5
    assert attack.parameters == {"eot_iter": 3}
    assert make_attack("foolbox:LinfPGD:eot=2").eot == 2
    assert make_attack("art:FastGradientMethod").eot is None
