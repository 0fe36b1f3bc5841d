"""Check the contract of attacks on a small network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robgib.attacks.base import Attack
from robgib.errors import first_line
from robgib.runtime import SampleRNG, seed_torch

__all__ = [
    "Check",
    "check_attack",
]


@dataclass(frozen=True)
class Check:
    """One clause of the contract, whether it holds, and a detail if it does not."""

    name: str
    passed: bool
    detail: str = ""


def _subject() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        seed_torch(0)
        model: nn.Sequential = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 5)
        )
    x = torch.rand(12, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    model[0].weight.requires_grad_(False)
    return model, x, y


def check_attack(attack: Attack) -> list[Check]:
    """Run an attack on a small convolutional network and check each clause of the contract.

    The clauses: the attack runs; the output has the shape and dtype of the input, is finite, and lies inside the ball
    and the box, up to rounding; the clean images are unchanged; the parameters, buffers, gradients, ``requires_grad``
    flags and train/eval modes of the model are unchanged; the output has no gradient history; the same seed gives the
    same images; split batches give the same images as one batch (to 1e-5), if the attack is batch-independent.
    """
    model, x, y = _subject()
    clean, before = x.clone(), _flags_of(model.eval())
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    def run(rows: slice = slice(None), images: torch.Tensor = x) -> torch.Tensor:
        index = list(range(len(images)))[rows]
        return attack.perturb(model, images[rows], y[rows], SampleRNG(1, index))

    x_adv: Any
    try:
        x_adv = run()
    except (Exception, SystemExit) as error:
        return [Check("runs", False, f"{type(error).__name__}: {first_line(error)}")]
    checks = [Check("runs", True)]
    if not isinstance(x_adv, torch.Tensor):
        return [*checks, Check("returns images", False, f"it returned a {type(x_adv).__name__}")]
    same = x_adv.shape == x.shape and x_adv.dtype == x.dtype
    detail = "" if same else f"{tuple(x_adv.shape)} {x_adv.dtype}"
    checks.append(Check("same shape and dtype as the input", same, detail))
    if x_adv.shape != x.shape:
        return checks
    flags, modes = before
    flags_now, modes_now = _flags_of(model)
    return [
        *checks,
        *_inside(attack, x_adv.detach(), clean),
        Check("clean images untouched", bool(torch.equal(x, clean))),
        Check(
            "parameters and buffers unchanged", all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        ),
        Check("no gradients left on the parameters", all(p.grad is None for p in model.parameters())),
        Check("requires_grad flags restored", flags_now == flags),
        Check("train/eval modes unchanged", modes_now == modes),
        Check("no gradient history on the output", not x_adv.requires_grad),
        *_repeatable(attack, run, model, x, x_adv.detach()),
    ]


def _flags_of(model: nn.Module) -> tuple[list[bool], list[bool]]:
    """Return the ``requires_grad`` flags of the parameters, and the modes of the modules."""
    return [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]


def _inside(attack: Attack, x_adv: torch.Tensor, clean: torch.Tensor) -> list[Check]:
    """Check that images are finite, and inside the ball and the box."""
    low, high = attack.threat.box
    distance = float(attack.threat.distance(x_adv, clean).max())
    finite = bool(torch.isfinite(x_adv).all())
    return [
        Check("finite values", finite),
        Check(
            f"inside the {attack.threat.norm} ball, up to rounding",
            finite and bool(attack.threat.allows(x_adv.clamp(low, high), clean).all()),
            f"largest distance {distance:.6g}, eps {attack.threat.eps:.6g}",
        ),
        Check(
            "inside the box to 1e-6",
            finite and float(x_adv.min()) >= low - 1e-6 and float(x_adv.max()) <= high + 1e-6,
            f"values in [{float(x_adv.min()):.6g}, {float(x_adv.max()):.6g}]",
        ),
    ]


def _repeatable(
    attack: Attack, run: Callable[..., torch.Tensor], model: nn.Module, x: torch.Tensor, x_adv: torch.Tensor
) -> list[Check]:
    """Check that the attack gives the same images again, and in other batches."""
    gap = float((run().detach() - x_adv).abs().max())
    checks = [Check("deterministic under a seed", gap == 0, f"two runs differ by {gap:.3g}" if gap else "")]
    if attack.batch_independent:
        gap = _batch_gap(run, x, x_adv)
        if gap > 1e-5:  # float64 separates accumulated rounding from dependence
            gap = min(gap, _in_double(run, model, x))
        detail = f"split batches differ by {gap:.3g}" if gap > 1e-5 else ""
        checks.append(Check("independent of the batch size", gap <= 1e-5, detail))
    return checks


def _in_double(run: Callable[..., torch.Tensor], model: nn.Module, images: torch.Tensor) -> float:
    model.double()
    try:
        return _batch_gap(run, images.double(), run(images=images.double()).detach())
    except RuntimeError:  # the attack supports float32 only
        return float("inf")
    finally:
        model.float()


def _batch_gap(run: Callable[..., torch.Tensor], images: torch.Tensor, whole: torch.Tensor) -> float:
    """Return the largest difference between the results of one batch and those of its parts."""
    split = torch.cat([run(rows, images).detach() for rows in (slice(0, 5), slice(5, None))])
    return float((split - whole).abs().max())
