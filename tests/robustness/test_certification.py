"""Lower bounds on a classifier's margin: exact where the network is affine, below the truth everywhere else."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp, minimize
from torch import nn
from typer.testing import CliRunner

import robgib
from robgib.attacks import PGD, ThreatModel, make_attack
from robgib.attacks.objective import Objective
from robgib.cli.app import app
from robgib.models.inference import prepare
from robgib.results import load_adversarial, load_run
from robgib.robustness import NotCertifiableError, certify
from robgib.robustness.run_attack import run_attack
from robgib.robustness.verify import verify
from robgib.runtime import SampleRNG


def margin(net, x, y):
    with torch.no_grad():
        return -Objective.untargeted(y, "margin").value(net(x))


class Residual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.inner, self.activation = nn.Conv2d(1, 1, 3, padding=1), activation
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.activation(x + self.inner(self.activation(self.inner(2 * x - 1)))).flatten(1))


def pooled(activation, inplace=False):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), activation, nn.MaxPool2d(2), nn.Conv2d(3, 4, 2),
        activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def dense(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), *layers)


NETWORKS = {
    "relu": lambda: dense(nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
    "in place": lambda: dense(nn.ReLU(inplace=True), nn.Linear(12, 3)),
    "leaky": lambda: dense(nn.LeakyReLU(0.2), nn.Linear(12, 3)),
    "tanh": lambda: dense(nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)),
    "sigmoid": lambda: dense(nn.Sigmoid(), nn.Linear(12, 3)),
    "max pool": lambda: pooled(nn.ReLU()),
    "max pool, in place": lambda: pooled(nn.ReLU(inplace=True)),
    "max pool of tanh": lambda: pooled(nn.Tanh()),
    "shortcut": lambda: Residual(nn.ReLU()),
}


def made(kind, seed, scale=2.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETWORKS[kind]().eval()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(scale)
        x = torch.rand(3, 1, 4, 4).clamp(0.2, 0.8).sub(0.2).div(0.6)  # some pixels at the edge of the box
        return net, x, net(x).argmax(1)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(NETWORKS)), st.integers(0, 10_000), st.sampled_from(["linf", "l2", "l1"]),
    st.floats(0.01, 0.5), st.sampled_from([0, 0, 4]),
)  # fmt: skip
def test_no_image_of_a_ball_lies_below_the_bound(kind, seed, norm, eps, parts):
    net, x, y = made(kind, seed)
    threat = ThreatModel(norm, eps)
    floor = torch.from_numpy(certify(prepare(net, x), x, y, threat, steps=5, parts=parts))
    assert bool((margin(net, x, y) >= floor).all())
    rng = SampleRNG(seed, range(len(x)))
    attacked = PGD(norm, eps, steps=20)(net, x, y, seed=seed)
    for image in (attacked, *(threat.random_start(x, rng) for _ in range(20))):
        assert bool((margin(net, image, y) >= floor - 1e-6).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.05, 0.4, 1.0])
def test_the_bound_is_exact_for_an_affine_network(norm, eps):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).eval()
        x = torch.tensor([[[[0.0, 1.0, 0.1, 0.9, 0.5, 0.3]]]])
    y = net(x).argmax(1)
    weight = (net[1].weight[y[0]] - net[1].weight[1 - y[0]]).detach().double().numpy()
    centre = x.flatten().double().numpy()
    start = float(margin(net, x, y))
    if norm == "linf":
        low, high = np.maximum(centre - eps, 0), np.minimum(centre + eps, 1)
        truth = start + float(np.minimum(weight * (low - centre), weight * (high - centre)).sum())
    else:
        # The least of a linear function over ball and box: a convex problem that scipy solves.
        size = (lambda d: eps**2 - (d**2).sum()) if norm == "l2" else (lambda d: eps - d.sum())
        if norm == "l2":
            bounds, slope = list(zip(-centre, 1 - centre, strict=True)), weight
        else:  # the size of each pixel's move, in the direction in which the function falls
            room = np.where(weight > 0, centre, 1 - centre)
            bounds, slope = [(0, r) for r in room], -np.abs(weight)
        found = minimize(
            lambda d: float(slope @ d), np.zeros(6), jac=lambda d: slope, bounds=bounds,
            constraints=[{"type": "ineq", "fun": size}], method="SLSQP", options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        truth = start + found.fun
    bound = certify(prepare(net, x), x, y, ThreatModel(norm, eps))
    assert bound[0] == pytest.approx(truth, abs=2e-4)


def least_margin(net, x, y, other, eps):
    """The least margin over one class in an L-infinity ball, by a mixed-integer program with exact ReLUs."""
    low, high = (x.double() - eps).clamp(0, 1).numpy(), (x.double() + eps).clamp(0, 1).numpy()
    layers = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in net if hasattr(m, "weight")
    ]
    lows, highs, whole, rows, least, most = list(low), list(high), [0] * len(low), [], [], []
    at = list(range(len(low)))  # the variables of the layer's input

    def add(a, b, integer=0):
        lows.append(a), highs.append(b), whole.append(integer)
        return len(lows) - 1

    def hold(terms, a, b):
        rows.append(terms), least.append(a), most.append(b)

    for k, (weight, bias) in enumerate(layers):
        floor = weight.clip(0) @ low + weight.clip(None, 0) @ high + bias
        roof = weight.clip(0) @ high + weight.clip(None, 0) @ low + bias
        z = [add(a, b) for a, b in zip(floor, roof, strict=True)]
        for unit, row in zip(z, range(len(z)), strict=True):
            hold({unit: -1.0, **dict(zip(at, weight[row], strict=True))}, -bias[row], -bias[row])
        if k + 1 < len(layers):
            at = []
            for unit, a, b in zip(z, floor, roof, strict=True):
                out, on = add(0, max(b, 0)), add(0, 1, 1)
                hold({out: 1.0, unit: -1.0}, 0, np.inf)
                hold({out: 1.0, unit: -1.0, on: -min(a, 0)}, -np.inf, -min(a, 0))
                hold({out: 1.0, on: -max(b, 0)}, -np.inf, 0)
                at.append(out)
            low, high = floor.clip(0), roof.clip(0)
    matrix = np.zeros((len(rows), len(lows)))
    for r, terms in enumerate(rows):
        for variable, value in terms.items():
            matrix[r, variable] = value
    cost = np.zeros(len(lows))
    cost[z[y]], cost[z[other]] = 1.0, -1.0
    found = milp(cost, constraints=LinearConstraint(matrix, least, most), bounds=Bounds(lows, highs), integrality=whole)
    assert found.success
    return found.fun


def tiny(widths, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        one, two, three, four = widths
        net = nn.Sequential(nn.Linear(one, two), nn.ReLU(), nn.Linear(two, three), nn.ReLU(), nn.Linear(three, four))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(2.5)
        x = torch.rand(4, one)
        return net.eval(), x, net(x).argmax(1)


def test_branch_and_bound_decides_what_a_mixed_integer_program_decides():
    """No bound exceeds the least margin, and branching leaves nothing open on tiny networks."""
    branched = vulnerable = 0
    for widths, seed in (((3, 12, 12, 3), 0), ((3, 12, 12, 3), 3), ((4, 10, 8, 3), 0), ((4, 10, 8, 3), 3)):
        net, x, y = tiny(widths, seed)
        root, bound = (certify(prepare(net, x), x, y, ThreatModel("linf", 0.4), parts=p) for p in (0, 4000))
        assert (bound >= root).all()
        for row in range(len(x)):
            label = int(y[row])
            truth = min(least_margin(net, x[row], label, c, 0.4) for c in range(3) if c != label)
            assert bound[row] <= truth + 1e-6
            assert (bound[row] > 0) == (truth > 0)
            branched += root[row] <= 0 < bound[row]
            vulnerable += truth <= 0
    assert branched >= 8
    assert vulnerable >= 2


def test_branch_and_bound_closes_the_interval_of_a_network_of_the_zoo(trained, digits):
    net = trained("digits-mlp-relu")
    x, y = digits.test.x[:60], digits.test.y[:60]
    prepared = prepare(net, x)
    attacked = run_attack(prepared, x, y, make_attack("apgd-dlr-linf:eps=0.05,steps=50,restarts=3"))
    rows = np.flatnonzero(attacked.right > 0)
    root, bound = (certify(prepared, x[rows], y[rows], ThreatModel("linf", 0.05), parts=p) for p in (0, 4000))
    assert (root <= 0).sum() >= 2
    assert (bound > 0).all()  # certified accuracy is robust accuracy


@pytest.mark.parametrize("kind", ["relu", "max pool", "shortcut"])
def test_the_first_layer_is_bounded_once_and_as_before(kind, monkeypatch):
    net, x, y = made(kind, 4)
    one = certify(prepare(net, x), x, y, ThreatModel("l2", 0.3), parts=0)
    monkeypatch.setattr("robgib.robustness.certification._First.bounds", lambda *_: None)
    two = certify(prepare(net, x), x, y, ThreatModel("l2", 0.3), parts=0)
    assert one == pytest.approx(two, abs=1e-9)


def test_one_unit_on_either_side_costs_what_the_triangle_says():
    # relu(z) for z = x - 0.5 in [-0.25, 0.75]: the line above is 0.75 (z + 0.25), that below 0 or z.
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(-0.5)
        net[2].weight.copy_(torch.tensor([[-1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([2.0, 0.0]))
    x = torch.tensor([[0.75]])
    # margin = 2 - relu(z) > 2 - 0.75: the line above is exact at the interval's end.
    assert certify(prepare(net, x), x, torch.tensor([0]), ThreatModel("linf", 0.5))[0] == pytest.approx(1.5, abs=1e-4)
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([0.1, 0.0]))
    x = torch.tensor(
        [[0.5]]
    )  # z in [-0.5, 0.5]: the least margin is 0.1, which the slope 0 below finds, and 1 does not
    assert certify(prepare(net, x), x, torch.tensor([0]), ThreatModel("linf", 0.5))[0] == pytest.approx(0.1, abs=1e-4)


def test_certified_and_fooled_exclude_each_other_and_nearly_meet(trained, digits):
    net, x, y = trained("digits-mlp-relu"), digits.test.x[:150], digits.test.y[:150]
    threat = ThreatModel("linf", 0.03)
    proven = certify(prepare(net, x), x, y, threat) > 0
    attacked = make_attack("apgd-t-linf:eps=0.03")(net, x, y)
    fooled = (margin(net, attacked, y) <= 0).numpy()
    assert not (proven & fooled).any()
    assert proven.mean() >= 1 - fooled.mean() - 0.03
    assert fooled.mean() > 0.05


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad


class Unseen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = (x > 0.5).float().to(x)
        ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return None


class With(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.net = function, nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(self.function(x))


def quartered(x):
    return x - x.detach() / 4


def looked_at(x):
    return x if float(x.sum()) > 1 else 2 * x


def written_over(x):
    """A part is changed where it lies: only a view's own gradient tells of it."""
    x = x.clone()
    x[:, :, 1:].exp_()
    return x


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (StraightThrough.apply, "without a gradient"),
        (lambda x: x + Unseen.apply(x), "without a gradient"),
        (quartered, "without a gradient"),
        (looked_at, "without a gradient"),
        (lambda x: x * (x > 0.5), "without a gradient"),
        (lambda x: x * x, "multiplies or divides values by one another"),
        (lambda x: 1 / (x + 1), "unsupported operation|divides by a value"),
        (torch.nn.functional.gelu, "Gelu"),
        (lambda x: torch.softmax(x, -1), "Softmax"),
        (lambda x: nn.functional.max_pool2d(x, 3, 1, padding=1), "max pooling is padded"),
        (lambda x: x + torch.rand_like(x), "stochastic"),
        (nn.InstanceNorm2d(1), "own mean and variance"),
        (nn.GroupNorm(1, 1), "GroupNorm"),
        (lambda x: x.clone()[:, :, 1:].exp_().sum((1, 2, 3), keepdim=True) + x, "unsupported operation"),
        (written_over, "unsupported operation"),
        (lambda x: x.half().to(x) + x, "half precision"),
        (lambda x: nn.functional.relu(x.flatten(0, 2)).view_as(x), "changes the number of samples"),
    ],
)
def test_what_no_bound_holds_for_is_refused(function, reason):
    net = With(function).eval()
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotCertifiableError, match=reason):
        certify(prepare(net, x), x, net(x).argmax(1), ThreatModel("linf", 0.1))


def test_counted_norms_and_large_networks_are_refused(monkeypatch):
    net, x, y = made("relu", 0)
    with pytest.raises(NotCertifiableError, match="not convex"):
        certify(prepare(net, x), x, y, ThreatModel("l0", 2))
    monkeypatch.setattr("robgib.robustness.certification.UNITS", 15)
    with pytest.raises(NotCertifiableError, match="more than 15 units"):
        certify(prepare(net, x), x, y, ThreatModel("linf", 0.1))


def test_the_model_stays_as_it_was():
    net, x, y = made("max pool, in place", 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    certify(prepare(net, x), x, y, ThreatModel("linf", 0.1))
    assert all(torch.equal(v, net.state_dict()[k]) and v.dtype == net.state_dict()[k].dtype for k, v in before.items())
    assert all(p.requires_grad for p in net.parameters())


ATTACKS = ["pgd-linf:eps=0.03", "fgsm-linf:eps=0.03", "pgd-l2:eps=0.2", "fgsm-linf:eps=0.05", "fmn-l0:eps=3"]


@pytest.fixture(scope="module")
def run(trained, digits):
    return robgib.evaluate(
        trained("digits-mlp-relu"), digits, attacks=ATTACKS, estimators=[], samples=40, curve=False, signs=False,
        corruptions=False, certify=True, save_adversarial=True, progress=False,
    )  # fmt: skip


def test_tables_hold_the_bracket(run):
    table = run.robustness.set_index("attack")
    for budget in ("pgd-linf:eps=0.03", "pgd-l2:eps=0.2", "fgsm-linf:eps=0.05", "worst of 2"):
        row = table.loc[budget]
        assert row["certified_accuracy"] == row["certified"] / 40
        assert row["certified_accuracy"] <= row["robust_accuracy"]
    assert table.loc["pgd-linf:eps=0.03", "certified_accuracy"] > 0.8
    assert table.loc["worst of 2", "certified"] == table.loc["fgsm-linf:eps=0.03", "certified"]
    assert np.isnan(table.loc["fmn-l0:eps=3", "certified"])
    assert "not convex" in table.loc["fmn-l0:eps=3", "note"]
    outcomes = run.outcomes[run.outcomes["attack"] == "pgd-linf:eps=0.03"]
    assert (outcomes["certified_margin"] > 0).sum() == table.loc["pgd-linf:eps=0.03", "certified"]
    assert outcomes.loc[~outcomes["robust"], "certified_margin"].isna().all()


def test_verify_proves_again(run, trained, digits, tmp_path):
    folder = run.save(tmp_path)
    loaded, images, net = load_run(folder), load_adversarial(folder), trained("digits-mlp-relu")
    claims = list(verify(loaded, images, net))
    assert all(c.holds for c in claims)
    assert sum("proven robust" in c.what for c in claims) == 4
    outcomes = loaded.outcomes
    here = (outcomes["attack"] == "fgsm-linf:eps=0.05") & ~(outcomes["certified_margin"] > 0)
    outcomes.loc[here, "certified_margin"] = 1.0  # all of them
    failed = [c.what for c in verify(loaded, images, net) if not c.holds]
    assert failed == ["fgsm-linf:eps=0.05: 40 samples are proven robust", "fgsm-linf:eps=0.05: certified accuracy"]


def test_the_command_line_says_the_bracket(tmp_path, trained):
    trained("digits-mlp-relu")
    arguments = [
        "evaluate", "digits-mlp-relu", "--attack", "pgd-linf:eps=0.03", "--samples", "30", "--no-information",
        "--no-signs", "--no-curve", "--no-corruptions", "--certify", "--out", str(tmp_path), "--quiet",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "certified" in result.stdout
    again = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(again.stdout)["models"][0]["attacks"][0]
    assert 0.7 < found["certified_accuracy"] <= found["robust_accuracy"]
    page = next(tmp_path.glob("*/report.html")).read_text()
    assert '<th scope="col" class="n">certified</th>' in page
