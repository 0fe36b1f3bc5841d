"""Training regimes: that each does what its paper says, and that a killed training loses nothing."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robgib import RobGIBError, make_attack
from robgib.data.dataset import Split
from robgib.information import make_estimator
from robgib.models import build
from robgib.models.bottleneck import VariationalHead
from robgib.robustness.run_attack import run_attack
from robgib.training.config import Penalty, Training
from robgib.training.loop import train
from robgib.training.losses import adversarial, gaussian_complexity, mart_loss, penalty_of, weights_moved
from robgib.zoo.loading import train_recipe
from robgib.zoo.recipe import find_recipe, recipes


def small(data, bottleneck=None, **options):
    extra = {} if bottleneck is None else {"bottleneck": bottleneck}
    return lambda: build("mlp", data.shape, len(data.classes), {"hidden": [16], **extra, **options})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


REGIMES = [
    {"noise": 0.2},
    {"label_smoothing": 0.1},
    {"schedule": "cosine", "warmup": 0.5},
    {"schedule": "constant", "optimizer": "sgd", "learning_rate": 0.05},
    {"warmup": 1.0},
    {"ema": 0.9},
    {"amp": True},
    {"adversary": {"eps": 0.1, "steps": 2, "trades": 3.0}},
    {"adversary": {"eps": 0.1, "steps": 2, "mart": 5.0}},
    {"adversary": {"eps": 0.1, "steps": 2, "awp": 0.01}},
    {"penalty": {"kind": "vib", "beta": 0.01}},
    {"penalty": {"kind": "ib", "beta": 0.01}},
    {"penalty": {"kind": "gib", "beta": 0.01}},
]


def test_a_radius_may_be_a_fraction():
    assert Training(adversary={"eps": "8/255"}).adversary.eps == 8 / 255
    for wrong in ("8/0", "-1/255", "eight", 0):
        with pytest.raises(ValueError, match=r"adversary\.eps"):
            Training(adversary={"eps": wrong})


@pytest.mark.parametrize("regime", REGIMES, ids=lambda r: "-".join(map(str, r)) + str(r.get("penalty", "")))
def test_every_regime_is_deterministic_and_its_own(regime, digits):
    make = small(digits, 8)
    plain = Training(epochs=2, batch_size=128)
    config = Training(**{**plain.model_dump(exclude_unset=True), **regime})
    one, two, other = (train(make, digits, c)[0] for c in (config, config, plain))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_keys_that_are_left_out_leave_the_digest(digits):
    recipe = find_recipe("digits-cnn")
    for regime in REGIMES:
        training = Training(**{**recipe.training.model_dump(), **regime})
        assert recipe.model_copy(update={"training": training}).digest != recipe.digest
    same = Training(**{**recipe.training.model_dump(), "noise": 0.0, "ema": None})
    assert recipe.model_copy(update={"training": same}).digest == recipe.digest


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 2.0), ("constant", 1.0), ("onecycle", None)])
def test_courses_of_the_learning_rate(schedule, warmup, digits):
    config = Training(epochs=4, batch_size=32, schedule=schedule, warmup=warmup, learning_rate=0.01)
    _, result = train(small(digits), digits, config)
    rates = [row["learning_rate"] for row in result["history"]]
    if schedule == "constant":
        assert rates == pytest.approx([0.01] * 4)
    else:
        assert rates[-1] < 1e-4 < rates[0] <= 0.01
    if schedule == "cosine":
        assert rates[1] == pytest.approx(0.01)
        assert rates[2] == pytest.approx(0.005, rel=0.01)


@pytest.mark.slow
def test_trades_raises_the_divergence_and_makes_robust(digits, digits_cnn):
    x, y = digits.test.x[:200], digits.test.y[:200]
    config = Training(
        epochs=20, batch_size=64, learning_rate=0.005, adversary={"eps": 0.1, "steps": 3, "trades": 4}, ema=0.99
    )
    make = lambda: build("cnn", digits.shape, 10, {"widths": [16, 32, 32], "hidden": 64})  # noqa: E731
    model, result = train(make, digits, config)
    assert result["test_accuracy"] > 0.93
    robust, plain = (
        (run_attack(m, x, y, make_attack("pgd-linf:eps=0.1")).prediction == y.numpy()).mean()
        for m in (model, digits_cnn)
    )
    assert robust > plain + 0.3

    torch.manual_seed(0)
    attacked = adversarial(digits_cnn, x, y, config.adversary)
    noise = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)

    def divergence(other):
        with torch.no_grad():
            clean = digits_cnn(x).log_softmax(1)
            return F.kl_div(digits_cnn(other).log_softmax(1), clean, log_target=True, reduction="batchmean")

    assert float((attacked - x).abs().max()) <= 0.1 + 1e-6
    assert divergence(attacked) > 3 * divergence(noise)


def test_mart_is_its_equation():
    """By hand: two images, three classes."""
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]), torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2]])
    y = torch.tensor([0, 1])
    boosted = [-math.log(0.5) - math.log(1 - 0.4), -math.log(0.3) - math.log(1 - 0.5)]
    divergence = [
        0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.4),
        0.3 * math.log(0.3 / 0.5) + 0.6 * math.log(0.6 / 0.3) + 0.1 * math.log(0.1 / 0.2),
    ]
    expected = (boosted[0] + 5 * 0.3 * divergence[0] + boosted[1] + 5 * 0.4 * divergence[1]) / 2
    assert float(mart_loss(p.log(), q.log(), y, 5.0)) == pytest.approx(expected, rel=1e-5)


def test_mart_has_a_finite_gradient_where_another_class_is_certain():
    scores = torch.tensor([[60.0, -60.0, -60.0]], requires_grad=True)
    mart_loss(torch.zeros(1, 3), scores, torch.tensor([1]), 5.0).backward()
    assert bool(torch.isfinite(scores.grad).all())


def test_weights_move_up_the_loss_by_a_share_of_their_norm_and_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x, y = torch.randn(8, 4), torch.randint(2, (8,))
    before = [p.detach().clone() for p in net.parameters()]
    loss = F.cross_entropy(net(x), y)
    slope = torch.autograd.grad(loss, net[0].weight, retain_graph=True)[0]
    with weights_moved(net, loss, 0.1):
        moved = [p.detach() - own for p, own in zip(net.parameters(), before, strict=True)]
        assert float(moved[0].norm()) == pytest.approx(0.1 * float(before[0].norm()), rel=1e-4)
        assert float(F.cosine_similarity(moved[0].flatten(), slope.flatten(), dim=0)) == pytest.approx(1, abs=1e-5)
        assert not moved[1].any()  # biases stay
        assert float(F.cross_entropy(net(x), y).detach()) > float(loss.detach())
    assert all(torch.equal(p.detach(), own) for p, own in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("adversary", [None, {"eps": 0.1, "steps": 2}], ids=["clean", "attacked"])
def test_early_stopping_keeps_the_best_epoch(adversary, digits):
    """After the third epoch the weights are set to 0, from where the network does not learn."""
    seen = {}

    def watch(epoch, model):
        seen[epoch] = weights(model).clone()
        if epoch == 3:
            for p in model.parameters():
                p.data.zero_()

    config = Training(epochs=5, batch_size=64, learning_rate=0.01, early_stopping=True, adversary=adversary)
    model, result = train(small(digits), digits, config, watch=watch)
    held_out = [row["held_out"] for row in result["history"]]
    best = 1 + held_out.index(max(held_out))
    assert best <= 3
    assert max(held_out) > 0.5
    assert torch.equal(weights(model), seen[best])
    if adversary is None:
        assert result["val_accuracy"] == pytest.approx(max(held_out))


class TestPenalties:
    def test_gaussian_terms_are_the_estimators(self):
        torch.manual_seed(0)
        x = torch.randn(20_000, 2, dtype=torch.float64)
        total, complexity = gaussian_complexity(x, x.sum(1, keepdim=True) + torch.randn(20_000, 1, dtype=torch.float64))
        assert float(total) / math.log(2) == pytest.approx(0.7925, abs=0.02)
        assert float(complexity) / math.log(2) == pytest.approx(0.5850, abs=0.02)
        x = torch.randn(4000, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
        z = x @ torch.randn(5, 3, dtype=torch.float64) + 2 * torch.randn(4000, 3, dtype=torch.float64)
        total, complexity = gaussian_complexity(x, z)
        estimate = make_estimator("gaussian").estimate([c[:, None] for c in x.numpy().T], z.numpy())
        assert float(total) / math.log(2) == pytest.approx(estimate.total.value, abs=0.05)
        assert float(complexity) / math.log(2) == pytest.approx(estimate.complexity.value, abs=0.05)

    def test_vib_is_the_divergence_from_the_standard_normal(self):
        torch.manual_seed(0)
        head = VariationalHead(5, 3, 2).train()
        x = torch.randn(50, 5)
        with torch.no_grad():
            head(x)
        mean, scale, _ = head.drawn
        normal = torch.distributions.Normal
        expected = torch.distributions.kl_divergence(normal(mean, scale), normal(0.0, 1.0)).sum(1).mean()
        assert float(penalty_of(head, x, Penalty(kind="vib", beta=1))) == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.parametrize(("kind", "dear"), [("vib", 0.3), ("ib", 0.05), ("gib", 0.05)])
    def test_a_dearer_code_costs_less(self, kind, dear, digits):
        costs = []
        for beta in (0.0, dear):
            config = Training(
                epochs=15, batch_size=64, learning_rate=0.01, penalty={"kind": kind, "beta": beta, "features": 4}
            )
            model, result = train(small(digits, 6), digits, config)
            assert result["train_accuracy"] > 0.8
            x = digits.train.x
            with torch.no_grad():
                model.train()(x)
            costs.append(float(penalty_of(model, x, config.penalty)))
            model.eval()
            assert torch.equal(model(x), model(x))  # a function when it is attacked
        assert costs[1] < 0.8 * costs[0]

    def test_without_a_code(self, digits):
        config = Training(epochs=1, penalty={"kind": "gib", "beta": 0.1})
        with pytest.raises(RobGIBError, match="give the architecture `bottleneck: UNITS`"):
            train(small(digits), digits, config)

    @pytest.mark.parametrize("kind", ["ib", "gib"])
    @pytest.mark.parametrize("units", [48, 49])
    def test_a_batch_that_is_too_small_is_refused(self, kind, units, digits):
        """At 128 samples and 16 features a code of 48 units can be charged, and one of 49 cannot."""
        models, seen = [], []
        for beta in (0.0, 100.0):
            config = Training(epochs=1, penalty={"kind": kind, "beta": beta})
            if units == 48:
                models.append(train(small(digits, units), digits, config)[0])
                continue
            message = (
                rf"training.penalty '{kind}' needs batches of at least 130 samples, twice the 16 features and 49 units "
                r".*training.batch_size is 128; raise training.batch_size to 130 or lower the bottleneck to 48"
            )
            with pytest.raises(RobGIBError, match=message):
                train(small(digits, units), digits, config, watch=lambda *a: seen.append(a))
        assert not seen
        assert not models or not torch.equal(*map(weights, models))

    @pytest.mark.parametrize(
        ("penalty", "samples", "size", "units", "message"),
        [
            ({"kind": "ib"}, 50, 128, 20, "there are 50 to train on; lower the bottleneck to 9"),
            ({"kind": "ib", "features": 8}, 50, 128, 20, "there are 50 to train on; lower training.penalty.features"),
            ({"kind": "gib", "features": 8}, 200, 100, 20, "batch_size is 100; raise training.batch_size to 168"),
        ],
    )
    def test_the_mend_is_one_that_works(self, penalty, samples, size, units, message, digits):
        part = Split(digits.train.x[:samples], digits.train.y[:samples])
        config = Training(epochs=1, batch_size=size, penalty={"beta": 1, **penalty})
        with pytest.raises(RobGIBError, match=re.escape(message) + r"\.$"):
            train(small(digits, units), dataclasses.replace(digits, train=part), config)

    def test_what_is_left_of_an_epoch_is_charged_too(self, digits, monkeypatch):
        """1078 samples in batches of 128 leave 54, too few for 16 features and 20 units: they join those before."""
        sizes = []

        def charge(model, x, penalty):
            sizes.append(len(x))
            return penalty_of(model, x, penalty)

        monkeypatch.setattr("robgib.training.loop.penalty_of", charge)
        train(small(digits, 20), digits, Training(epochs=1, penalty={"kind": "ib", "beta": 1}))
        last = len(digits.train) % 128
        assert 2 < last < 72
        assert sizes == [128] * (len(digits.train) // 128 - 1) + [128 + last]

    def test_too_few_samples_have_no_penalty(self, digits):
        model = small(digits, 6)().train()
        x = digits.train.x[:43]
        model(x)
        with pytest.raises(RobGIBError, match="needs a batch of at least 44 samples, not 43"):
            penalty_of(model, x, Penalty(kind="gib", beta=1))

    @pytest.mark.parametrize(
        ("units", "message"), [(0, "units of at least 1, not 0"), ("many", "units of at least 1, not 'many'")]
    )
    def test_bad_codes(self, units, message, digits):
        with pytest.raises(RobGIBError, match=message):
            small(digits, units)()

    @pytest.mark.parametrize("arch", ["cnn", "vit", "mlp", "vgg", "resnet", "lenet"])
    def test_every_family_takes_one(self, arch):
        model = build(arch, (1, 28, 28), 10, {"bottleneck": 7}).eval()
        assert model.head.classes.in_features == 7
        assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


class Counting(nn.Module):
    """A classifier with batch normalisation that notes the sizes of its training batches."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
        self.sizes = []

    def forward(self, x):
        if self.training:
            self.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize(
    ("samples", "size", "sizes"),
    [(129, 64, [64, 65]), (130, 64, [64, 64, 2]), (128, 64, [64, 64]), (40, 64, [40]), (7, 2, [2, 2, 3])],
)
def test_no_batch_of_a_single_sample(samples, size, sizes, digits):
    data = dataclasses.replace(digits, train=Split(digits.train.x[:samples], digits.train.y[:samples]))
    rows = []
    model, result = train(
        Counting, data, Training(epochs=2, batch_size=size), progress=lambda task, done, total, note: rows.append(done)
    )
    assert model.sizes == sizes * 2
    assert rows[-1] == 2 * len(sizes)
    assert result["history"][-1]["learning_rate"] < 1e-4  # the course ends where the training does; 4 steps, too


class Cracking(nn.Module):
    """A classifier that turns wrong on any attacked image once it has learnt for some passes."""

    def __init__(self, passes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.passes = passes
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        sign = -1.0 if self.seen > self.passes and not self.training else 1.0
        return sign * self.net(x)


def test_catastrophic_overfitting_stops_fast_adversarial_training(digits):
    steps = -(-len(digits.train) // 32)
    config = Training(epochs=9, batch_size=32, learning_rate=0.02, adversary={"eps": 0.03, "steps": 1})
    model, result = train(lambda: Cracking(steps * 4), digits, config)
    assert result["catastrophic_overfitting"] == result["epochs"] == 5
    last, before = result["history"][-1], result["history"][-2]
    assert last["pgd"] < before["pgd"] - 0.2
    assert {"one_step", "pgd"} <= last.keys()
    assert int(model.seen) == steps * 4  # the weights before it
    assert result["test_accuracy"] > 0.7
    _, sound = train(lambda: Cracking(10**9), digits, config)
    assert sound["catastrophic_overfitting"] is None
    assert sound["epochs"] == 9


def test_a_gpu_that_runs_out_of_memory_is_told(digits):
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RobGIBError, match=r"training batch of 128; lower training\.batch_size"):
        train(Greedy, digits, Training(epochs=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training: {adversary: {norm: l3, eps: 0.1}}", "training.adversary.norm: input should be"),
        ("training: {adversary: {eps: 0.1, trades: -1}}", "training.adversary.trades"),
        ("training: {adversary: {eps: 0.1, trades: 6, mart: 5}}", "trades and mart are two losses; give one of them"),
        ("training: {penalty: {kind: mdl, beta: 1}}", "training.penalty.kind"),
        ("training: {epochs: 2, warmup: 2}", "warmup must end before the last epoch"),
        ("training: {ema: 1.5}", "training.ema"),
    ],
)
def test_bad_regimes(content, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(f"data: digits\narchitecture: {{name: mlp}}\n{content}\n")
    with pytest.raises(RobGIBError, match=message):
        find_recipe("bad", [tmp_path])


LONG = """
data: digits
architecture: {name: mlp, hidden: [16], bottleneck: 4}
training: {epochs: 6, batch_size: 64, shift: 1, noise: 0.1, ema: 0.9, adversary: {eps: 0.1, steps: 1},
  early_stopping: true, penalty: {kind: gib, beta: 0.01}}
"""


class Stop(Exception):
    pass


class TestUnfinished:
    @pytest.fixture
    def recipe(self, tmp_path):
        (tmp_path / "long.yaml").write_text(LONG)
        return find_recipe("long", [tmp_path])

    @staticmethod
    def broken_off(recipe, data, path, at):
        def stop(epoch, model):
            if epoch == at:
                raise Stop

        with pytest.raises(Stop):
            train_recipe(recipe, data, path, watch=stop)

    def test_goes_on_to_the_same_weights(self, recipe, digits, tmp_path):
        whole, two = tmp_path / "whole.safetensors", tmp_path / "two.safetensors"
        _, record, _ = train_recipe(recipe, digits, whole)
        self.broken_off(recipe, digits, two, 3)  # before the third epoch is put away
        assert not two.exists()
        seen = []
        _, again, _ = train_recipe(recipe, digits, two, watch=lambda epoch, model: seen.append(epoch))
        assert seen == [3, 4, 5, 6]
        assert whole.read_bytes() == two.read_bytes()
        assert not two.with_suffix(".unfinished").exists()
        assert again["test_accuracy"] == record["test_accuracy"]
        logs = [pd.read_csv(p.with_suffix(".log.csv")).drop(columns="seconds") for p in (whole, two)]
        assert logs[0].equals(logs[1])
        assert list(logs[0]["epoch"]) == [1, 2, 3, 4, 5, 6]

    def test_of_another_recipe_or_damaged(self, recipe, digits, tmp_path):
        path = tmp_path / "net.safetensors"
        self.broken_off(recipe, digits, path, 2)
        other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 1})})
        with pytest.raises(RobGIBError, match="unfinished training of another recipe"):
            train_recipe(other, digits, path)
        kept = path.with_suffix(".unfinished").read_bytes()
        path.with_suffix(".unfinished").write_bytes(kept[: len(kept) // 2])
        with pytest.raises(RobGIBError, match="cannot be read; remove it"):
            train_recipe(recipe, digits, path)

    @pytest.mark.slow
    def test_survives_kill_9(self, recipe, digits, tmp_path, cli):
        (tmp_path / "long.yaml").write_text(LONG.replace("epochs: 6", "epochs: 20"))
        command = ("train", "long", "--catalogue", ".", "--quiet", "--device", "cpu")
        process = subprocess.Popen(
            [sys.executable, "-m", "robgib", *command, "--out", "killed.safetensors"], cwd=tmp_path
        )
        unfinished = tmp_path / "killed.unfinished"
        for _ in range(3000):
            if unfinished.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert unfinished.exists()
        assert not (tmp_path / "killed.safetensors").exists()
        for name in ("killed", "whole"):
            done = cli(*command, "--out", f"{name}.safetensors")
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
        assert json.loads((tmp_path / "killed.json").read_text())["epochs"] == 20


def test_the_published_set():
    published = [r for r in recipes().values() if r.group == "fashion-24"]
    assert len(published) == 24
    assert len({r.digest for r in published}) == 24
    for family in ("cnn", "vgg", "resnet", "vit"):
        of_family = [r for r in published if r.architecture.name == family]
        assert sum(r.training.adversary is not None and r.training.adversary.trades is None for r in of_family) >= 1
        assert sum(r.training.adversary is not None and r.training.adversary.trades is not None for r in of_family) == 1
        assert sum(r.training.noise > 0 for r in of_family) == 1
        assert sum(r.training.penalty is not None for r in of_family) == 1


def test_moved_weights_leave_the_statistics_of_batch_norms(digits):
    """A pass at moved weights is no second sight of the batch."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).train()
    x, y = digits.train.x[:32], digits.train.y[:32]
    loss = nn.functional.cross_entropy(net(x), y)
    before = {name: value.clone() for name, value in net.named_buffers()}
    with weights_moved(net, loss, 0.01):
        nn.functional.cross_entropy(net(x), y).backward()
    assert int(net[2].num_batches_tracked) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert net[1].weight.grad.abs().sum() > 0
