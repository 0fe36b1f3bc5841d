"""Foolbox and ART through the same door, and as independent peers."""

import sys

import numpy as np
import pytest
import torch

from robgib import RobGIBError, SampleRNG, ThreatModel, make_attack
from robgib.attacks import FGSM, PGD, attack_samples

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
def test_runs_verified_and_repeatably(spec, norm, digits_cnn, digits):
    attack = make_attack(spec)
    assert attack.threat.norm == norm
    x, y = digits.test.x[:30], digits.test.y[:30]
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (attack_samples(digits_cnn, x, y, attack, label=spec) for _ in range(2))
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
def test_fgsm_makes_the_same_images(spec, norm, eps, digits_cnn, right_digits):
    x, y = (v[:40] for v in right_digits)
    peer = make_attack(f"{spec},eps={eps}" if spec.count(":") > 1 else f"{spec}:eps={eps}")
    rng = SampleRNG(0, range(40))
    theirs = peer.perturb(digits_cnn, x, y, rng)
    mine = FGSM(ThreatModel(norm, eps)).perturb(digits_cnn, x, y, rng)
    assert float((mine - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize(("spec", "norm"), [
    ("foolbox:LinfPGD:steps=20,abs_stepsize=0.01,eps=0.08", "linf"),
    ("foolbox:L2PGD:steps=20,abs_stepsize=0.05,eps=0.35", "l2"),
    ("art:ProjectedGradientDescent:max_iter=20,eps_step=0.01,num_random_init=1,eps=0.08", "linf"),
])  # fmt: skip
def test_pgd_agrees_in_robust_accuracy(spec, norm, digits_cnn, right_digits):
    x, y = right_digits
    peer = make_attack(spec)
    mine = PGD(peer.threat, steps=20, step_size=0.01 if norm == "linf" else 0.05, keep="last")
    left = [
        float((digits_cnn(a.perturb(digits_cnn, x, y, SampleRNG(0, range(len(x))))).argmax(1) == y).float().mean())
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
        ("art:FastGradientMethod:norm=1", "use Linf or L2"),
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
    with pytest.raises(RobGIBError, match=rf"pip install robgib\[{module}\]"):
        make_attack(spec)


def test_sparse_steps_are_no_weaker_than_foolbox(digits_cnn, digits):
    """At one budget of three either may lead by a few samples, by the network; on the whole neither does."""
    x, y = digits.test.x, digits.test.y
    left = {"pgd-l1": [], "foolbox:SparseL1DescentAttack": []}
    for eps in (0.5, 1, 1.5):
        for name, options in (("pgd-l1", ""), ("foolbox:SparseL1DescentAttack", ",rel_stepsize=0.0625")):
            outcome = attack_samples(digits_cnn, x, y, make_attack(f"{name}:eps={eps},steps=40{options}"))
            left[name].append(float((outcome.prediction == y.numpy()).mean()))
    ours, theirs = (sum(shares) / 3 for shares in left.values())
    assert 0.05 < ours < 0.95
    assert ours <= theirs + 0.015
