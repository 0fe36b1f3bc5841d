"""Plug-ins and models that change what they must not: it is put back, and said, and no figure rests on it."""

import importlib
import os
import random
import sys
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, RobGIBWarning, evaluate
from robgib.attacks import PGD, Attack
from robgib.errors import AttackContractError
from robgib.information.gaussian import Gaussian
from robgib.models.inference import count_queries, prepare
from robgib.models.registry import build
from robgib.models.state import Settings, State
from robgib.robustness.run_attack import run_attack


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.6), nn.Linear(144, 10)
        ).eval()


@pytest.fixture
def images(digits):
    """Images with the labels that the network gives them."""
    x = digits.test.x[:200]
    with torch.no_grad():
        return x, network()(x).argmax(1)


def contents(model):
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def alike(model, before):
    return all(torch.equal(t, before[n]) for n, t in contents(model).items()) and len(before) == len(contents(model))


def inner(model):
    """The network that a plug-in gets, in whatever it comes."""
    while not isinstance(model, nn.Sequential | torch.fx.GraphModule):
        model = next(iter(model.children()))
    return model


def weights(model):
    for p in inner(model).parameters():
        p.data.add_(0.5)


def new_tensors(model):
    for m in inner(model).modules():
        if isinstance(m, nn.Linear):
            m._parameters["weight"] = nn.Parameter(torch.zeros_like(m.weight))


def statistics(model):
    for b in inner(model).buffers():
        b += 1
    next(inner(model).parameters()).data.mul_(2)  # where the batch norms are folded there are no buffers


def hooks(model):
    inner(model).register_forward_hook(lambda module, inputs, output: output.flip(1))


def other_forward(model):
    inner(model).forward = lambda x: torch.zeros(len(x), 10)


class Changing(Attack):
    """Changes what it gets, and returns the clean images."""

    change: ClassVar[Any]

    def perturb(self, model, x, y, rng):
        type(self).change(model)
        return x


@dataclass(frozen=True)
class Alone(Changing):
    """Gets the network itself."""


@dataclass(frozen=True)
class Pooled(Changing):
    """Gets many batches at once."""

    pooled: ClassVar[bool] = True


@pytest.mark.parametrize("change", [weights, new_tensors, statistics, hooks, other_forward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [Alone, Pooled])
def test_an_attack_that_changes_the_model_is_rejected(kind, change, images, monkeypatch):
    """A pooled one was not seen to: it left 3% right, and so did the attacks after it."""
    monkeypatch.setattr(Changing, "change", staticmethod(change), raising=False)
    model = network()
    before, clean = contents(model), model(images[0])
    for run in (
        lambda: run_attack(model, *images, kind("linf", 0.1)),
        lambda: run_attack(prepare(model, images[0]), *images, kind("linf", 0.1)),
        lambda: kind("linf", 0.1)(model, *images),
    ):
        with pytest.raises(AttackContractError, match="changed the model"):
            run()
        assert alike(model, before)
        assert torch.equal(model(images[0]), clean)
        assert not model._forward_hooks


@pytest.mark.parametrize("change", [weights, hooks], ids=lambda f: f.__name__)
def test_attacks_after_it_are_measured_on_the_model_as_it_was(change, digits, monkeypatch):
    monkeypatch.setattr(Changing, "change", staticmethod(change), raising=False)
    options = {"estimators": [], "samples": 40, "signs": False, "corruptions": False, "curve": False, "device": "cpu"}
    named = {"bad": Pooled("linf", 0.1), "pgd": PGD("linf", 0.05, steps=3)}
    found = evaluate(network(), digits, attacks=named, progress=False, **options).robustness.set_index("attack")
    alone = evaluate(network(), digits, attacks={"pgd": named["pgd"]}, progress=False, **options).robustness
    assert found.loc["bad", "status"] == "failed"
    assert "changed the model" in found.loc["bad", "reason"]
    assert found.loc["pgd", "robust"] == alone["robust"].item()


@pytest.mark.parametrize("kind", [Alone, Pooled])
@pytest.mark.parametrize("part", ["whole", "dropout alone"])
def test_training_mode_that_is_left_fools_nobody(kind, part, images, monkeypatch):
    """40 of 200 samples were fooled without a pixel changed."""

    def train(model):
        modules = [model] if part == "whole" else [m for m in model.modules() if isinstance(m, nn.Dropout)]
        for module in modules:
            module.train()

    monkeypatch.setattr(Changing, "change", staticmethod(train), raising=False)
    model = network()
    model[1].train()  # as its user left it
    found = run_attack(model, *images, kind("linf", 0.1))
    # The user's modes are put back too.
    assert [m.training for m in model] == [False, True, False, False, False, False]
    model.eval()
    assert (found.linf == 0).all()
    assert found.right.mean() == 1
    assert any("left the model in training mode" in note for note in found.notes)


@dataclass(frozen=True)
class Seeding(Attack):
    """Sets everything global that it can."""

    def perturb(self, model, x, y, rng):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return x


def drawn():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


@dataclass(frozen=True)
class SeedingEstimator(Gaussian):
    """Likewise."""

    name = "seeding"

    def of_network(self, *arguments):
        Seeding("linf", 0.1).perturb(None, None, None, None)
        return super().of_network(*arguments)


def test_global_random_numbers_and_settings_are_as_they_were(images, digits):
    def numbers(work):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        work()
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32
        return drawn()

    wanted = numbers(lambda: None)
    few = images[0][:20], images[1][:20]
    options = {"samples": 20, "information_samples": 40, "device": "cpu", "progress": False, "corruptions": False}
    options |= {"signs": False, "curve": False}
    for work in (
        lambda: run_attack(network(), *few, Seeding("linf", 0.1)),
        lambda: Seeding("linf", 0.1)(network(), *few),
        lambda: evaluate(network(), digits, attacks=[Seeding("linf", 0.1)], estimators=[SeedingEstimator()], **options),
    ):
        assert numbers(work) == wanted


class Noisy(nn.Module):
    """Answers at random."""

    def forward(self, x):
        return torch.randn(len(x), 10) + 3 * torch.eye(10)[torch.zeros(len(x), dtype=int)]


@dataclass(frozen=True)
class Foreseeing(Attack):
    """Seeds the generators so that the judge's first draw is one that it knows."""

    start: int = 0

    def perturb(self, model, x, y, rng):
        torch.manual_seed(self.start)
        return x


def test_an_attack_does_not_choose_the_draws_that_judge_it(images):
    x, y = images[0][:30], torch.zeros(30, dtype=torch.long)
    one, two = (run_attack(Noisy(), x, y, Foreseeing("linf", 0.1, start=s)).right for s in (0, 1))
    assert np.array_equal(one, two)


@dataclass(frozen=True)
class ChangingEstimator(Gaussian):
    """Changes the model, or what others estimate on."""

    name = "changing"
    net: Any = field(default=None, compare=False, hash=False)
    what: str = "weights"

    def of_network(self, prepared, targets, network, weights, progress):
        if self.what == "weights":
            self.net[5].weight.data.add_(1)
        elif self.what == "mode":
            self.net[4].train()
        else:
            targets[0].values.setflags(write=True)
            targets[0].values[:] = 0
        return super().of_network(prepared, targets, network, weights, progress)


@pytest.mark.parametrize(
    ("what", "words"), [("weights", "5.weight"), ("mode", "mode of 4"), ("samples", "changed the samples")]
)
def test_an_estimator_that_changes_the_model_is_refused(what, words, digits):
    model = network()
    before = contents(model)
    with pytest.raises(RobGIBError, match=f"estimator 'changing'.*{words}"):
        evaluate(
            model, digits, attacks=[], estimators=[ChangingEstimator(net=model, what=what)], samples=20,
            information_samples=40, device="cpu", progress=False,
        )  # fmt: skip
    assert alike(model, before)
    assert not any(m.training for m in model.modules())


class Adapting(nn.Module):
    """Keeps running statistics also in eval mode, as test-time adaptation does."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = network(), how
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        logits = self.net(x)
        if self.how == "in place":
            self.calls += 1
            self.mean.mul_(0.5).add_(0.5 * logits.detach()[0])
        elif self.how == "assigned":
            self.mean = 0.5 * self.mean + 0.5 * logits.detach()[0]
        elif self.how == "weights":
            self.net[5].bias.data.mul_(0.9)
        else:
            self.net[1].train()  # its statistics then are the batch's, and adapt
        return logits - 0.1 * self.mean


@pytest.mark.parametrize("how", ["in place", "assigned", "weights", "batch norm"])
def test_a_model_that_adapts_is_measured_as_it_was_given(how, images, digits):
    """Its buffers stayed changed in the user's model, and each answer depended on those before."""
    model = Adapting(how).eval()
    before, x = contents(model), images[0][:30]
    with torch.no_grad():
        first = Adapting(how).eval()(x[:1])
    prepared = prepare(model, x)
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(prepared.model(x[:1]), first, atol=1e-6)
    run = evaluate(
        model, digits, attacks=["pgd-linf:eps=0.1,steps=3", "deepfool-l2"], estimators=["gaussian"], samples=20,
        information_samples=40, signs=False, curve=False, corruptions=False, device="cpu", progress=False,
    )  # fmt: skip
    assert (run.robustness["status"] == "ok").all(), run.robustness["reason"].tolist()
    assert any("the model changes itself in a call" in told for told in run.config["reading"])
    assert alike(model, before)
    assert not any(m.training for m in model.modules())


def test_gradients_of_a_model_that_adapts_are_its_own(images):
    x = images[0][:4]
    model, other = Adapting("in place").eval(), Adapting("in place").eval()
    prepared = prepare(model, x)
    grads = []
    for net in (prepared.model, other):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0])
    assert torch.allclose(*grads, atol=1e-6)


def test_a_state_tells_what_changed_and_puts_it_back():
    model = network()
    state, before = State([model]), contents(model)
    model[0].bias.data.add_(1)
    model[1].register_buffer("late", torch.ones(1))
    model[1].running_mean = torch.ones(4)
    model[5].weight.data = torch.zeros(3, 3)
    model[5].bias.grad = torch.ones(10)
    model[4].train()
    model.register_forward_pre_hook(lambda module, inputs: None)
    assert set(state.changed()) == {"0.bias", "1.running_mean", "1.late", "5.weight", "hooks of Sequential"}
    assert state.modes() == ["4"]
    state.restore()
    assert (state.changed(), state.modes()) == ([], [])
    assert alike(model, before)
    assert model[5].bias.grad is None


@dataclass(frozen=True)
class Telling(Attack):
    """Warns of its own name, some calls apart."""

    told: str = ""

    def perturb(self, model, x, y, rng):
        for _ in range(5):
            model(x)
            threading.Event().wait(0.01)
        warnings.warn(f"{self.told} was here", RobGIBWarning, stacklevel=2)
        return x


def test_threads_on_one_model_do_not_mix_their_counts_notes_and_modes(images):
    """Three at once counted each other's passes and took each other's notes."""
    model = network().train()
    x, y = images[0][:20], images[1][:20]
    names = ("one", "two", "three")
    alone = run_attack(network(), x, y, Telling("linf", 0.1, told="one"), batch_size=20)
    found: dict[str, Any] = {}

    def work(name):
        found[name] = run_attack(model, x, y, Telling("linf", 0.1, told=name), batch_size=20, seed=3)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert found[name].notes == (f"{name} was here",)
        assert found[name].passes == alone.passes
        assert np.array_equal(found[name].right, alone.right)
    assert all(m.training for m in model.modules())
    assert not model._forward_hooks
    with count_queries(model) as passes:
        model(x)
    assert passes.forward == 20


SETTINGS = {
    "the default dtype": lambda where: torch.set_default_dtype(torch.float64),
    "the number of threads": lambda where: torch.set_num_threads(torch.get_num_threads() % 3 + 1),
    "the working folder": lambda where: os.chdir(where),
    "the seed of torch": lambda where: torch.manual_seed(12345),
    "whether gradients are computed": lambda where: torch.set_grad_enabled(not torch.is_grad_enabled()),
}


def settings():
    return (
        torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(), torch.initial_seed(), torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    )  # fmt: skip


@pytest.fixture
def put_back(tmp_path):
    """What a test changes is undone, also where it fails."""
    before = Settings()
    yield tmp_path
    before.restore()


class Meddler(nn.Module):
    """Changes a setting of the process in its calls, from one of them on."""

    def __init__(self, change, since=1):
        super().__init__()
        self.net, self.change, self.since, self.calls = network(), change, since, 0

    def forward(self, x):
        out = self.net(x)
        self.calls += 1
        if self.calls >= self.since:
            self.change()
        return out


class TestSettings:
    """What holds for the whole process, and stayed as a user's model had left it."""

    ASKED: ClassVar = {"attacks": ["pgd-linf:eps=0.1,steps=2"], "estimators": [], "curve": False, "signs": False}

    @pytest.mark.parametrize("name", SETTINGS)
    def test_of_a_model_in_its_calls(self, name, images, put_back):
        x, y = (part[:20] for part in images)
        before = settings()
        meddler = Meddler(lambda: SETTINGS[name](put_back))
        run = evaluate(meddler, (x, y), progress=False, corruptions=False, **self.ASKED)
        assert settings() == before
        (note,) = run.config["reading"]
        assert (
            note == f"the model changes settings of the process in a call ({name}): they are restored after each call"
        )
        plain = evaluate(network(), (x, y), progress=False, corruptions=False, **self.ASKED)
        columns = ["label", "clean_prediction", "adversarial_prediction", "linf"]
        assert run.outcomes[columns].equals(plain.outcomes[columns])

    def test_of_a_model_in_later_calls(self, images, put_back):
        x, y = (part[:20] for part in images)
        before = settings()
        meddler = Meddler(lambda: SETTINGS["the working folder"](put_back), since=12)
        with pytest.warns(RobGIBWarning, match=r"^model: settings of the process were changed \(the working folder\)"):
            evaluate(meddler, (x, y), progress=False, corruptions=False, **self.ASKED)
        assert settings() == before

    @pytest.mark.parametrize("name", SETTINGS)
    def test_of_a_network_that_is_built(self, name, put_back, monkeypatch):
        before = settings()
        monkeypatch.syspath_prepend(str(put_back))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        (put_back / "robgib_meddling.py").write_text("def make():\n    change()\n    return net\n")
        importlib.invalidate_caches()
        module = importlib.import_module("robgib_meddling")
        module.change, module.net = (lambda: SETTINGS[name](put_back)), network()
        try:
            with pytest.warns(RobGIBWarning, match=rf"'robgib_meddling:make' changes settings .* \({name}\): they are"):
                build("robgib_meddling:make", (1, 8, 8), 10, allow_code=True)
        finally:
            del sys.modules["robgib_meddling"]
        assert settings() == before
