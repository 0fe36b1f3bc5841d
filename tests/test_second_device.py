"""What moves where: an evaluation and a training on a second device, which is no GPU but is as strict as one."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robgib
from robgib import RobGIBError
from robgib.attacks.base import Attack
from robgib.models import build
from robgib.training.config import Training
from robgib.training.loop import train
from tests.elsewhere import DEVICE, Elsewhere, a_second_device

SMALL = {
    "samples": 8, "information_samples": 40, "layers": ["hidden", "logits"], "features": "patches:2", "progress": False,
}  # fmt: skip


@pytest.fixture
def second(monkeypatch):
    """Evaluate on the second device; every room that asks for a device gets it."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)

    assert robgib.evaluate  # a room that is imported only while all are patched would stay so

    def evaluate(model, data, **options):
        with monkeypatch.context() as patched, a_second_device():
            for name, module in list(sys.modules.items()):
                if name.startswith("robgib") and "resolve_device" in vars(module):
                    patched.setattr(module, "resolve_device", lambda device: DEVICE)
            return robgib.evaluate(model, data, **{**SMALL, **options})

    yield evaluate
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_it_is_strict():
    with a_second_device() as device:
        x = torch.rand(3, 4).to(device)
        assert (type(x), x.device) == (Elsewhere, device)
        for mixed in (lambda: x + torch.rand(3, 4), lambda: torch.rand(3)[x[:, 0] > 0], lambda: x.cpu() @ x.T):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert torch.equal((x + 1).cpu(), x.cpu() + 1)


@pytest.mark.parametrize(
    "options",
    [
        {
            "attacks": ["apgd-ce-linf:eps=0.1,steps=4", "apgd-t-l2:eps=0.5,steps=2,targets=2"],
            "estimators": ["imputation:donors=2,steps=4,samples=8"],
            "curve": False, "signs": False, "corruptions": False,
        },
        pytest.param(
            {
                "attacks": ["fab-t-linf:eps=0.1,steps=5", "cw-l2:eps=0.5,steps=10", "deepfool-l2:eps=0.5",
                            "square-l2:eps=0.5,queries=50", "pgd-l1:eps=3,steps=5", "mifgsm-linf:eps=0.1",
                            "torchattacks:PGD:eps=0.1"],
                "estimators": ["probe:steps=30", "gaussian", "binned"], "curve": False, "signs": False,
                "information_samples": 120,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"attacks": ["autoattack-linf:eps=0.1"], "estimators": ["infonce:steps=30"], "information_samples": 120},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"attacks": ["fast-l2:eps=0.3,short=3,long=5", "apgd-ce-l2:eps=0.3,steps=10,schedule_start=8"],
             "estimators": [], "curve": False},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["default", "others", "full", "fast"],
)  # fmt: skip
def test_an_evaluation_there_gives_the_tables_of_the_cpu(second, digits, digits_cnn, options):
    home = next(digits_cnn.parameters()).device
    there, here = second(digits_cnn, digits, **options), robgib.evaluate(digits_cnn, digits, **{**SMALL, **options})
    assert next(digits_cnn.parameters()).device == home
    assert (there.robustness["status"] == "ok").all(), list(there.robustness["reason"])
    for name in ("robustness", "outcomes", "curve", "layers", "features", "signs", "corruptions"):
        one, other = (getattr(run, name).drop(columns="seconds", errors="ignore") for run in (there, here))
        pd.testing.assert_frame_equal(one, other)


@dataclass(frozen=True)
class AtHome(Attack):
    """Draws on the CPU, whatever the device."""

    def perturb(self, model, x, y, rng):
        return (x + self.threat.eps * torch.sign(torch.rand(x.shape) - 0.5)).clamp(0, 1)


def test_an_attack_that_stays_on_the_cpu_fails_in_a_sentence(second, digits, digits_cnn):
    with pytest.raises(RobGIBError, match="'at-home' raised RuntimeError: Expected all tensors"):
        second(digits_cnn, digits, attacks={"at-home": AtHome("linf", 0.1)}, estimators=[], signs=False)


@pytest.mark.slow
def test_a_batch_is_halved_there(second, digits, digits_cnn):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.hidden = digits_cnn, nn.Identity()

        def forward(self, x):
            if len(x) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.net(self.hidden(x))

    run = second(Narrow(), digits, attacks=["pgd-linf:eps=0.1,steps=3"], estimators=["binned"], batch_size=64)
    assert (run.robustness["status"] == "ok").all()


@pytest.mark.parametrize("training", [{}, {"adversary": {"eps": 0.1, "steps": 2}, "ema": 0.9, "shift": 1}])
def test_a_training_there(second, digits, training, monkeypatch):
    monkeypatch.setattr("robgib.training.loop.resolve_device", torch.device)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows real devices only
    config, found = Training(epochs=1, batch_size=64, learning_rate=0.01, **training), []
    few = robgib.Split(digits.train.x[:256], digits.train.y[:256])
    data = robgib.Dataset("few", few, digits.val, digits.test, digits.classes)
    for device in (torch.device("cpu"), DEVICE):
        with a_second_device():
            net, told = train(lambda: build("mlp", digits.shape, 10), data, config, device=device)
            net.to("cpu")
        found.append([p.detach().cpu().numpy().copy() for p in net.parameters()])
        assert told["epochs"] == 1
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, atol=1e-5)
