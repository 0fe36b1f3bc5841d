"""Auto-PGD: projected ascent that finds its own step size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import Attack, objective_gradient
from robgib.attacks.objective import Criterion, Loss, Objective, answers_at_random, misled
from robgib.attacks.threat_model import ThreatModel, per_sample
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = [
    "APGD",
]

_MOMENTUM = 0.75  # weight of the new step; the rest goes on in the former direction


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): momentum, and steps halved where the loss stops growing.

    The first step is 2 eps long. At checkpoints that come ever more often, a sample's step is halved, and it goes
    back to its best iterate, when fewer than ``rho`` of the steps since the last one raised its loss, or when neither
    step nor best loss has changed. Fooled samples leave the batch.

    Fields:
        steps: gradient steps a restart and target.
        restarts: independent starts.
        loss: ``ce`` or ``dlr`` (the difference of logits ratio, equation 6), or ``margin``.
        targets: 0 is untargeted; n ascends towards each of the n most likely wrong classes in turn, where any
            wrong class counts (APGD-T, section 4.2, with 9 and ``dlr``, equation 7).
        rho: share of steps that must raise the loss.
    """

    pooled: ClassVar[bool] = True
    steps: Count = 100
    restarts: Count = 1
    loss: Loss = "ce"
    targets: Annotated[int, Field(ge=0)] = 0
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        result = x.clone()
        with torch.no_grad():
            logits = model(x)
        left = (~misled(logits, y)).nonzero().squeeze(1)
        for goal in self._goals(logits, y, answers_at_random(model)):
            best = goal.value(logits)
            for _ in range(self.restarts):
                if not len(left):
                    return result
                origin, aim = x[left], goal.select(left)
                start = self.threat.random_start(origin, rng.select(left))
                found, value, is_adversarial = auto_ascend(model, origin, aim, self.threat, start, self.steps, self.rho)
                better = is_adversarial | (value > best[left])
                result[left[better]], best[left[better]] = found[better], value[better]
                left = left[~is_adversarial]
        return result

    def _goals(self, logits: Tensor, y: Tensor, patient: bool) -> Iterator[Objective]:
        if not self.targets:
            yield Objective.untargeted(y, self.loss, patient)
            return
        order = logits.scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            yield Objective(self.loss, order[:, rank], Criterion(y, patient=patient), targeted=True)


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is reconsidered (Croce & Hein 2020, section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded first: 0.57 · 100 is a little above 57 in floating point.
    return sorted({math.ceil(round(share * steps, 6)) for share in shares if 0 < share <= 1})


def auto_ascend(
    model: nn.Module, x: Tensor, goal: Objective, threat: ThreatModel, start: Tensor, steps: int, rho: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Ascend the goal's objective from ``start``, sample by sample at its own pace.

    Args:
        model: classifier, frozen.
        x: clean images (N, …), right so far.
        goal: what to increase.
        threat: ball, box and steepest direction.
        start: first iterate, inside the ball.
        steps: gradient steps.
        rho: share of steps that must raise the objective.

    Returns:
        The first iterate that reached the goal, else the best one (N, …); its objective (N,); whether it reached (N,).
    """
    count = len(x)
    result, is_adversarial = start.clone(), torch.zeros(count, dtype=torch.bool, device=x.device)
    rows = torch.arange(count, device=x.device)
    gradient, logits = objective_gradient(model, start, goal)
    value = goal.value(logits)
    values = value.clone()
    # One row a sample still in play: where it is and was, its best, and how its steps went since the last checkpoint.
    state = {
        "x": x, "at": start, "before": start, "best": start, "gradient": gradient, "best_gradient": gradient,
        "value": value, "best_value": value, "size": torch.full_like(value, 2 * threat.eps),
        "rises": torch.zeros_like(value), "marked": value, "halved": torch.ones_like(value).bool(),
    }  # fmt: skip

    def leave(done: Tensor) -> None:
        nonlocal rows, goal, state
        is_adversarial[rows[done]] = True
        result[rows[done]], values[rows[done]] = state["at"][done], state["value"][done]
        stay = ~done
        rows, goal = rows[stay], goal.select(stay)
        state = {name: held[stay] for name, held in state.items()}

    done = goal.criterion(logits)
    if bool(done.any()):
        leave(done)
    turns, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        if not len(rows):
            return result, values, is_adversarial
        s = state
        ahead = threat.project(threat.step(s["at"], s["gradient"], per_sample(s["size"], s["at"])), s["x"])
        if step > 1:
            ahead = s["at"] + _MOMENTUM * (ahead - s["at"]) + (1 - _MOMENTUM) * (s["at"] - s["before"])
            ahead = threat.project(ahead, s["x"])
        s["before"], s["at"] = s["at"], ahead
        if step < steps:
            s["gradient"], logits = objective_gradient(model, ahead, goal)
        else:
            with torch.no_grad():
                logits = model(ahead)
        value = goal.value(logits)
        s["rises"] = s["rises"] + (value > s["value"])
        s["value"] = value
        better = value > s["best_value"]
        wide = per_sample(better, ahead)
        s["best"] = torch.where(wide, ahead, s["best"])
        s["best_gradient"] = torch.where(wide, s["gradient"], s["best_gradient"])
        s["best_value"] = torch.where(better, value, s["best_value"])
        done = goal.criterion(logits)
        if bool(done.any()):
            leave(done)
        if step in turns and len(rows):
            s = state
            stuck = ~s["halved"] & (s["best_value"] <= s["marked"])
            s["halved"] = (s["rises"] < rho * (step - last)) | stuck
            s["size"] = torch.where(s["halved"], s["size"] / 2, s["size"])
            back = per_sample(s["halved"], s["at"])
            s["at"] = torch.where(back, s["best"], s["at"])
            s["gradient"] = torch.where(back, s["best_gradient"], s["gradient"])
            s["value"] = torch.where(s["halved"], s["best_value"], s["value"])
            s["marked"], s["rises"], last = s["best_value"], torch.zeros_like(s["rises"]), step
    result[rows], values[rows] = state["best"], state["best_value"]
    return result, values, is_adversarial
