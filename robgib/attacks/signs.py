"""Signs that an attack failed rather than that a model is robust."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, Goal, ascend, ascent_gradient, frozen
from robgib.attacks.fgsm import FGSM
from robgib.attacks.pgd import PGD
from robgib.attacks.square import Square
from robgib.attacks.threat import SampleRNG, ThreatModel
from robgib.errors import first_line
from robgib.training import Progress

__all__ = ["Sign", "failure_signs"]

_SAMPLES = 100
_SHARE = 0.05  # of the samples, above which an effect counts
_QUERIES = 200
_STILL = (
    "gradient attacks stand still: use a loss that does not saturate (margin, dlr), or a way around the operation "
    "without gradient (a smooth stand-in, or a black-box attack)"
)


@dataclass(frozen=True)
class Sign:
    """One check: what it looks for, whether it was seen, what was measured, and what it means if it was."""

    name: str
    seen: bool
    detail: str
    meaning: str


def failure_signs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Sign]:
    """Look for signs that gradient attacks fail on a model although it is not robust.

    After Athalye, Carlini & Wagner (2018), Carlini et al. (2019), Pintor et al. (2022) and AutoAttack's flags (Croce &
    Hein 2020). A sign is a reason to look closer, and its absence proves nothing.

    Args:
        model: classifier on ``device``.
        x: images (N, …) in [0, 1], right ones; the first 100 are used.
        y: their labels (N,).
        threat: the threat model under which the attacks ran.
        seed: of random numbers.
        device: where the model is.
        progress: called after each check.

    Returns:
        Seven checks (six where Square does not apply, under L1 or on inputs other than (N, C, H, W)); a single one when
        the model gives no gradient at all; none when there are no images.
    """
    x, y = x[:_SAMPLES].to(device), y[:_SAMPLES].to(device)
    if not len(x):
        return []
    signs: list[Sign] = []
    robust: dict[str, Tensor] = {}

    def stands(name: str, attack: Attack) -> Tensor:
        """Which samples (N,) the attack leaves right."""
        if name not in robust:
            found = attack.perturb(model, x, y, SampleRNG(seed, range(len(x))))
            with torch.no_grad():
                robust[name] = model(found).argmax(1) == y
        return robust[name]

    def pgd(**options: object) -> PGD:
        return PGD(threat, **{"steps": 20, **options})  # type: ignore[arg-type]

    checks: list[Callable[[], Sign]] = [
        lambda: _random_outputs(model, x),
        lambda: _gradients(model, x, y),
        lambda: _flat_loss(model, x, y, threat),
        lambda: _fewer_steps(stands("fgsm", FGSM(threat)), stands("pgd", pgd())),
        lambda: _unbounded(stands("unbounded", replace(pgd(steps=50), threat=_everything(threat, x)))),
        lambda: _black_box(stands("square", Square(threat, queries=_QUERIES)), stands("pgd", pgd())),
        lambda: _more_effort(stands("pgd", pgd()), stands("more", pgd(steps=100, restarts=2))),
    ]
    if x.ndim != 4 or threat.norm not in Square.norms:
        del checks[5]
    with frozen(model):
        try:
            ascent_gradient(model, x[:1], Goal(y[:1], False, "ce"))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return [Sign("zero gradients", True, f"none can be taken: {first_line(error)}", _STILL)]
        for number, check in enumerate(checks):
            signs.append(check())
            if progress:
                progress("looking for failed attacks", number + 1, len(checks), signs[-1].name)
    return signs


def _everything(threat: ThreatModel, x: Tensor) -> ThreatModel:
    """A ball that holds the whole box."""
    low, high = threat.box
    span = high - low
    count = x[0].numel()
    return replace(threat, eps=span * {"linf": 1, "l2": math.sqrt(count), "l1": count}[threat.norm])


def _percent(mask: Tensor) -> str:
    return f"{100 * float(mask.float().mean()):.0f}%"


def _random_outputs(model: nn.Module, x: Tensor) -> Sign:
    with torch.no_grad():
        one, two = model(x), model(x)
    spread = float((one - one.mean(1, keepdim=True)).abs().mean().clamp_min(1e-12))
    gap = float((one - two).abs().max()) / spread
    return Sign(
        "random outputs",
        not gap <= 1e-3,  # on a GPU reductions differ from call to call, but not so much; NaN counts as seen
        f"two calls on the same images differ by {gap:.2g} of the logits' spread",
        "the model answers at random: average gradients and answers over its randomness, or fix it",
    )


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> Sign:
    gradient = ascent_gradient(model, x, Goal(y, False, "ce"))[0].flatten(1)
    broken = ~torch.isfinite(gradient).all(1)
    # float32 loses a loss below about 1e-7, whose gradient is then 0: the margin's, where there is one, tells which.
    zero = (gradient == 0).all(1)
    margin = ascent_gradient(model, x, Goal(y, False, "margin"))[0].flatten(1)
    saved = zero & (margin != 0).any(1)
    detail = f"of the cross-entropy at {_percent(zero)} of the images 0, at {_percent(broken)} not finite"
    if bool(saved.any()):
        detail += f"; the margin has one at {_percent(saved)} of them"
    return Sign(
        "zero gradients",
        bool((zero | broken).float().mean() > _SHARE),
        detail,
        _STILL,
    )


def _flat_loss(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Sign:
    goal = Goal(y, False, "margin")
    found = ascend(model, x, goal, threat, start=x, steps=20, step_size=2.5 * threat.eps / 20, keep="last")
    with torch.no_grad():
        before, after = goal.objective(model(x)), goal.objective(model(found))
    flat = ~(after > before)
    return Sign(
        "loss does not grow",
        bool(flat.float().mean() > _SHARE),
        f"20 steps did not raise the margin of {_percent(flat)} of the images",
        "the gradient does not point where the loss grows: it is masked, or the step size is wrong",
    )


def _beats(weak: Tensor, strong: Tensor) -> bool:
    """Whether the weaker attack leaves clearly fewer samples right."""
    return bool((strong.float().mean() - weak.float().mean()) > _SHARE)


def _fewer_steps(fgsm: Tensor, pgd: Tensor) -> Sign:
    return Sign(
        "one step beats many",
        _beats(fgsm, pgd),
        f"FGSM leaves {_percent(fgsm)} right, PGD of 20 steps {_percent(pgd)}",
        "the iteration is stuck in a bad place: the loss surface is rough, or gradients are masked",
    )


def _unbounded(stands: Tensor) -> Sign:
    return Sign(
        "unbounded eps does not reach 0",
        bool(stands.float().mean() > _SHARE),
        f"PGD of 50 steps with the whole box as its ball leaves {_percent(stands)} right",
        "with any image allowed an attack must reach every class: it does not follow the model's gradient",
    )


def _black_box(square: Tensor, pgd: Tensor) -> Sign:
    few = int((~square & pgd).sum())
    return Sign(
        "black box beats gradients",
        _beats(square, pgd) or few / len(pgd) > _SHARE,
        f"Square of {_QUERIES} queries leaves {_percent(square)} right, PGD of 20 steps {_percent(pgd)}; {few} of "
        f"{len(pgd)} fall to Square alone",
        "what random search finds, gradients should: they are masked",
    )


def _more_effort(pgd: Tensor, more: Tensor) -> Sign:
    drop = float(np.float64(pgd.float().mean()) - np.float64(more.float().mean()))
    return Sign(
        "more effort still helps",
        drop > _SHARE,
        f"PGD of 20 steps leaves {_percent(pgd)} right, of 100 steps and 2 restarts {_percent(more)}",
        "the attack had not converged: the robust accuracy of a longer one will be lower",
    )
