"""The audit: its bound is exact, a fall leads to all remaining samples, and a wrong figure comes down."""

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from robgib.attacks import APGD, FGSM, FMN, PGD, AutoAttack, EstimatedAscent, FastEnsemble, Square
from robgib.errors import RobGIBError
from robgib.models.inference import QueryCount, count_queries
from robgib.robustness import attacking
from robgib.robustness.audit import audit, audit_size, audit_wanted
from robgib.robustness.evaluate import evaluate
from robgib.robustness.failure_indicators import examine
from robgib.robustness.run_attack import AttackResult
from robgib.statistics import detectable_share, most_unseen, share_test
from tests.robustness.test_gradient_check import BackboneWithoutGradient, DecoyGradient

ATTACK = AutoAttack("linf", 0.1)


def result(right):
    right = np.asarray(right, dtype=float)
    prediction = np.where(right > 0, 1, 0)
    far = np.where(right > 0, np.inf, 0.05)
    zero = np.zeros(len(right))
    return AttackResult(prediction, right, right.copy(), zero, zero, far, {}, QueryCount(10, 10))


def auditor(falls, ran):
    """AutoAttack by decree: it fools the samples ``falls``."""

    def run(attack, known, rows, label):
        ran.append(rows)
        return result([row not in falls for row in rows])

    return run


@pytest.mark.parametrize(("total", "drawn"), [(400, 60), (40, 7), (10, 10), (30, 0), (5, 4)])
def test_the_bound_is_the_largest_number_that_the_draw_leaves_possible(total, drawn):
    most = most_unseen(total, drawn)
    assert stats.hypergeom(total, most, drawn).pmf(0) >= 0.05
    if most < total - drawn:
        assert stats.hypergeom(total, most + 1, drawn).pmf(0) < 0.05


def test_the_size_of_an_audit_is_the_smallest_that_reaches_the_bound():
    size = audit_size(400, 1000, 0.02)
    assert most_unseen(400, size) <= 20 < most_unseen(400, size - 1)
    assert audit_size(15, 1000, 0.02) == 0  # all of them are fewer than the bound
    assert audit_size(400, 1000, 0) == 380  # 19 draws of 20 hold a single one


def test_the_bound_holds_in_95_of_100_draws():
    """At the number of samples that is just above the bound of an audit without a fall."""
    known, hidden = result(np.ones(100)), set(range(most_unseen(100, 20) + 1))
    silent = 0
    for seed in range(400):
        audited = audit(auditor(hidden, []), known, ATTACK, "audit", spent=20 * 3 * ATTACK.cost, seed=seed)
        silent += audited.samples == 20
    assert silent <= stats.binom(400, 0.05).ppf(0.999)


@pytest.mark.parametrize("total", range(1, 11))
def test_the_bound_fails_in_one_of_20_of_all_draws_at_most(total):
    """By enumeration of the draws: for every number of hidden samples, and a smaller bound fails more often."""
    for drawn in range(total + 1):
        most, draws = most_unseen(total, drawn), [set(draw) for draw in combinations(range(total), drawn)]
        unseen = [sum(not draw & set(range(hidden)) for draw in draws) for hidden in range(total + 1)]
        assert all(20 * count <= len(draws) for count in unseen[most + 1 :])
        assert 20 * unseen[most] >= len(draws)


def test_without_a_fall_the_figure_stays_and_the_bound_is_said():
    known, ran = result([1] * 40 + [0] * 60), []
    audited = audit(auditor(set(), ran), known, ATTACK, "audit", spent=10 * 3 * ATTACK.cost + 5)
    assert [len(rows) for rows in ran] == [10]
    assert set(ran[0]) <= set(range(40))
    assert audited.result.right.sum() == 40
    assert audited.bound == most_unseen(40, 10) / 100
    assert audited.result.notes == (
        f"AutoAttack fooled none of 10 of the 40 remaining images: it would lower this by at most "
        f"{most_unseen(40, 10):.1f} points (95%)",
    )


def test_a_fall_leads_to_all_that_remain():
    known, ran = result([1] * 40 + [0] * 60), []
    audited = audit(auditor(set(range(0, 40, 2)), ran), known, ATTACK, "audit", spent=20 * 3 * ATTACK.cost)
    assert sorted(np.concatenate(ran)) == list(range(40))
    assert audited.result.right.sum() == 20
    assert (audited.samples, audited.bound) == (40, 0)
    assert (audited.result.passes.forward, audited.result.passes.backward) == (20, 20)


def test_nothing_is_audited_where_nothing_remains_or_is_affordable():
    assert audit(auditor(set(), []), result([0, 0]), ATTACK, "audit", spent=10**9) is None
    assert audit(auditor(set(), []), result([1, 1]), ATTACK, "audit", spent=100) is None
    assert audit_wanted([FastEnsemble("linf", 0.1)], None)
    assert not audit_wanted([FastEnsemble("linf", 0.1), ATTACK], None)
    assert not audit_wanted([FastEnsemble("linf", 0.1)], 0)
    assert not audit_wanted([APGD("linf", 0.1)], None)
    assert audit_wanted([APGD("linf", 0.1)], 0.01)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_passes_that_an_audit_is_reckoned_to_take_are_those_that_it_takes(norm):
    """On a network that is never fooled, so that no member of AutoAttack stops early."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12)).requires_grad_(False)
    model[1].weight *= 0.01
    model[1].bias += torch.arange(12.0)
    attack = AutoAttack(norm, 0.01, steps=10, queries=1000)
    with count_queries(model) as passes:
        attack(model, torch.rand(2, 1, 4, 4), torch.full((2,), 11))
    assert 3 * attack.cost == pytest.approx(passes.cost / 2, rel=0.05)
    assert 3 * AutoAttack(norm, 0.01).cost == pytest.approx(11_600, abs=3)


def test_an_audit_is_reckoned_by_the_classes_of_the_model(monkeypatch):
    """AutoAttack takes 9 target classes, and of two classes one: three times as many samples are audited."""
    torch.manual_seed(0)
    asked = []
    monkeypatch.setattr(attacking, "audit", lambda runner, known, attack, *given, **options: asked.append(attack))
    options = {"audit": 0.1, "signs": False, "curve": False, "corruptions": False}
    for classes in (2, 5, 20):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
        evaluate(model, torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.long), ["fgsm-linf:eps=0.01"], **options)
    assert [attack.targets for attack in asked] == [1, 4, 9]
    assert 3 * asked[0].cost < asked[2].cost * 2


def test_a_network_in_training_mode_is_audited_and_stays_as_it_was():
    """A batch norm in training mode refuses a single image, and learns from every call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    x = torch.rand(8, 1, 4, 4)
    y = net(x).argmax(1)
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    rows = evaluate(net, x, y, ["fgsm-linf:eps=1e-6"], audit=0.5, signs=False, curve=False)["robustness"]
    assert rows.set_index("attack").loc["audit-linf", "status"] == "ok"
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_audit_that_fails_is_a_failed_attack(monkeypatch, digits, digits_mlp):
    def fail(*given, **options):
        raise RobGIBError("no memory")

    monkeypatch.setattr(attacking, "audit", fail)
    options = {"audit": 0.1, "signs": False, "curve": False, "corruptions": False}
    rows = evaluate(digits_mlp, digits.test.x[:8], digits.test.y[:8], ["fgsm-linf:eps=0.1"], **options)["robustness"]
    assert rows.set_index("attack").loc["audit-linf", ["status", "reason"]].tolist() == ["failed", "no memory"]


def test_what_a_share_test_detects():
    least = detectable_share(50, 0.05, 0.01)
    needed = next(k for k in range(51) if share_test(k, 50, 0.05) <= 0.01)
    assert stats.binom(50, least).sf(needed - 1) == pytest.approx(0.8)
    assert detectable_share(1, 0.05, 0.01) == np.inf


@pytest.fixture(scope="module")
def wrong(digits, digits_mlp):
    """A backbone without gradient, beside a small head: ascent follows the head."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for rows in torch.randperm(len(digits.train.x)).split(64):
        optimiser.zero_grad()
        F.cross_entropy(head(digits.train.x[rows]), digits.train.y[rows]).backward()
        optimiser.step()
    return BackboneWithoutGradient(digits_mlp, head).eval()


@pytest.mark.slow
def test_a_wrong_figure_comes_down_under_the_audit(wrong, digits):
    x, y = digits.test.x[:20], digits.test.y[:20]
    options = {"curve": False, "corruptions": False, "signs": False}
    tables = evaluate(wrong, x, y, ["apgd-ce-linf:eps=0.06,steps=20"], audit=0.05, **options)
    rows = tables["robustness"].set_index("attack")
    audited = rows.loc["audit-linf"]
    assert audited["robust"] < rows.loc["apgd-ce-linf:eps=0.06,steps=20", "robust"]
    assert audited["audited"] == rows.loc["apgd-ce-linf:eps=0.06,steps=20", "robust"]
    assert audited["audit_bound"] == 0
    assert "and then attacked all of them" in audited["note"]
    assert tables["further"]["audit-linf"]["class"] == "AutoAttack"


def test_a_false_gradient_leads_to_ascent_on_estimated_ones(monkeypatch, digits):
    """Where the gradient check shows one, after the fast ensemble or before an audit; the row counts what it fooled."""
    torch.manual_seed(0)
    true, decoy = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    with torch.no_grad():
        y = true(digits.test.x[:16]).argmax(1)
    x = digits.test.x[:16]
    monkeypatch.setattr(attacking, "EstimatedAscent", partial(EstimatedAscent, steps=4, targets=1))
    monkeypatch.setattr(sys.modules[evaluate.__module__], "find_failures", lambda *given: ([], {}))
    monkeypatch.setattr(attacking, "audit", lambda *given, **options: None)
    given = {"audit": 0.9, "curve": False, "corruptions": False}

    def labels(model, attack="fgsm-linf:eps=0.02", **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables = evaluate(model, x, y, [attack], **{**given, **options})
        return tables, list(tables["robustness"]["attack"])

    tables, names = labels(DecoyGradient(true, decoy).eval())
    assert "estimated-gradients-linf" in names
    rows = tables["robustness"].set_index("attack")
    before, after = (rows.loc[name, "robust"] for name in ("fgsm-linf:eps=0.02", "estimated-gradients-linf"))
    assert after < before
    fooled = f"estimated gradients fooled {int(before - after)} of {int(before)} images"
    assert fooled in rows.loc["estimated-gradients-linf", "note"]
    assert tables["further"]["estimated-gradients-linf"]["class"] == "EstimatedAscent"
    assert "estimated-gradients-linf" not in labels(true.eval())[1]
    misleading = DecoyGradient(true, decoy).eval()
    for options in (
        {"audit": 0},
        {"signs": False},
        {"audit": 0, "attack": "autoattack-linf:eps=0.02,steps=1,queries=2"},
    ):
        assert not {"estimated-gradients-linf", "black-box-linf"} & set(labels(misleading, **options)[1])
    # An audit of the fast ensemble would run Square; without one it runs here, with the queries of AutoAttack.
    asked = []
    fast = "fast-linf:eps=0.02,short=1,long=1,finalists=1,near=0"
    monkeypatch.setattr(
        Square,
        "search",
        lambda self, model, x, goal, rng, start=None: (
            asked.append(self.queries) or (x, goal.value(model(x)), torch.zeros(len(x), dtype=torch.bool))
        ),
    )
    assert labels(misleading, fast, audit=0)[1][:3] == [fast, "estimated-gradients-linf", "black-box-linf"]
    assert asked[-1] == AutoAttack.queries
    assert "black-box-linf" not in labels(misleading, fast, audit=None)[1]


@dataclass(frozen=True)
class ShortAudit(AutoAttack):
    """AutoAttack of few passes."""

    steps: int = 5
    targets: int = 2
    queries: int = 50


def test_the_curve_of_an_audited_cascade_is_that_of_its_minimum_norm_attack(digits, digits_mlp, monkeypatch):
    """The audit ran on some samples only, the minimum-norm attack on all."""
    monkeypatch.setattr(attacking, "AutoAttack", ShortAudit)
    x, y = digits.test.x[:10], digits.test.y[:10]
    attacks = {"fmn": FMN("linf", 0.03, steps=20), "fast": FastEnsemble("linf", 0.03, short=2, long=5)}
    options = {"cascade": True, "signs": False, "corruptions": False, "audit": 0.5}
    tables = evaluate(digits_mlp, x, y, attacks, curve=True, **options)
    robustness, curve = tables["robustness"].set_index("attack"), tables["curve"].set_index("at")
    assert 0 < robustness.loc["audit-linf", "audited"] < robustness.loc["audit-linf", "robust"]
    assert curve.loc[0.03, "right"] == robustness.loc["audit-linf", "robust"]
    assert curve["right"].is_monotonic_decreasing
    assert (curve["attack"] == "audit-linf").all()


def test_a_cascade_says_on_which_images_each_attack_ran(digits, digits_mlp, monkeypatch):
    seen = {}

    def kept(model, x, y, threat, done, context):
        seen.update(done.ran_on)
        return examine(model, x, y, threat, done, context)

    monkeypatch.setattr(attacking, "AutoAttack", ShortAudit)
    monkeypatch.setattr("robgib.robustness.beside.examine", kept)
    x, y = digits.test.x[:12], digits.test.y[:12]
    attacks = {
        "fgsm": FGSM("linf", 0.05),
        "pgd": PGD("linf", 0.05, steps=10),
        "square": Square("linf", 0.05, queries=60),
    }
    options = {"curve": False, "corruptions": False, "audit": 0.3}
    tables = evaluate(digits_mlp, x, y, attacks, cascade=True, **options)
    left = tables["robustness"].set_index("attack")["robust"]
    assert (seen["pgd"].sum(), seen["square"].sum()) == (left["fgsm"], left["pgd"])
    assert len(seen["fgsm"]) == seen["fgsm"].sum() > left["fgsm"]
    assert 0 < seen["audit-linf"].sum() < len(seen["audit-linf"]) == len(seen["fgsm"])
