"""Auto-PGD: projected ascent that finds its own step size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import Attack, objective_gradient
from robgib.attacks.linearization import wrong_classes
from robgib.attacks.objective import Criterion, Loss, Objective, answers_at_random, misled
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel, per_sample
from robgib.options import AtLeastOne, Count
from robgib.runtime import SampleRNG

__all__ = [
    "APGD",
    "WIDEST",
]

WIDEST = 8.0
"""Radius, in eps, in which climbs from afar begin where nothing else is said (docs/attacks.md)."""

_MOMENTUM = 0.75  # weight of the new step; the rest goes on in the former direction
_SPARSE_BALLS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # under L1: radii, in eps, and their shares of the steps
_BALLS = 5  # radii from ``widest`` to eps, by equal factors
_TURN = 0.04  # under L1: share of a radius's steps after which step and sparsity are reconsidered
_SPREAD = 0.2  # under L1: share of the pixels that the first steps change, without a start that says it
_SPARSER = 1.5  # under L1: by which factor fewer pixels are changed than the best image changes
_SETTLED = 0.95  # under L1: below this share of the pixels changed before, the steps are long again
_SHORTEST = 0.1  # under L1: step, in radii


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): momentum, and steps halved where the loss stops growing.

    The first step is 2 eps long. At checkpoints that come ever more often, a sample's step is halved, and it goes
    back to its best iterate, when fewer than ``rho`` of the steps since the last one raised its loss, or when neither
    step nor best loss has changed. Fooled samples leave the batch.

    Under L1 it is Croce & Hein's form for that norm (2021, algorithm 1 and section 3.3): a step changes as many pixels
    as the best image so far does, less a third; steps are long again where that number falls, else shorter; and the
    ball shrinks from three eps over two to one, each search from where the last one ended.

    With ``widest`` the ball shrinks under any norm: five balls by equal factors, a fifth of the steps each. That helps
    where the slope around the clean image misleads. A network trained against L-inf may answer to no change of a pixel
    below its eps; under L2 such a climb stands still, and one that starts far out does not.

    Fields:
        steps: gradient steps a restart and target; each ball takes one at least.
        restarts: independent starts.
        loss: ``ce`` or ``dlr`` (the difference of logits ratio, equation 6), or ``margin``.
        targets: 0 is untargeted; n ascends towards each of the n most likely wrong classes in turn, where any
            wrong class counts (APGD-T, section 4.2, with 9 and ``dlr``, equation 7).
        rho: share of steps that must raise the loss.
        widest: radius of the first ball, in eps; none is the norm's own, which is 1, and under L1 3.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    pooled: ClassVar[bool] = True
    steps: Count = 100
    restarts: Count = 1
    loss: Loss = "ce"
    targets: Annotated[int, Field(ge=0)] = 0
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    widest: AtLeastOne | None = None

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        least = len(self._balls()) if self._shrinks else 1
        return max(self.steps, least) * self.restarts * max(1, self.targets)

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
                found, value, is_adversarial = self.ascend(model, origin, aim, rng.select(left))
                better = is_adversarial | (value > best[left])
                result[left[better]], best[left[better]] = found[better], value[better]
                left = left[~is_adversarial]
        return result

    def ascend(
        self, model: nn.Module, x: Tensor, goal: Objective, rng: SampleRNG, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ascend one goal's objective once, from ``start`` or else a random image of the ball.

        Args and what it returns: as for :func:`auto_ascend`.
        """
        if start is None and self._shrinks:
            return self._shrink(model, x, goal, rng)
        start = self.threat.random_start(x, rng) if start is None else start
        return self._ascend_in(self.threat, model, x, goal, start, self.steps, start)

    def _ascend_in(
        self,
        ball: ThreatModel,
        model: nn.Module,
        x: Tensor,
        goal: Objective,
        start: Tensor,
        steps: int,
        like: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ascend in one ball. Under L1 first steps are as sparse as the images ``like`` (N, …), less a third, if any.

        What it returns: as for :func:`auto_ascend`.
        """
        if self.norm != "l1":
            return auto_ascend(model, x, goal, ball, start, steps, self.rho)
        spread = torch.full((len(x),), _SPREAD * x[:1].numel(), device=x.device)
        changed = spread if like is None else _changed(like, x) / _SPARSER
        return sparse_ascend(model, x, goal, ball, start, steps, changed)

    def _shrink(self, model: nn.Module, x: Tensor, goal: Objective, rng: SampleRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Ascend in ever smaller balls, from the best image of the one before, made to fit."""
        most = self.threat.widest(x[:1].numel())
        best: Tensor | None = None
        used, share = 0, 0.0
        for factor, part in self._balls():
            share += part
            count = max(1, round(share * self.steps) - used)
            used += count
            ball = replace(self.threat, eps=min(factor * self.eps, most))
            # Only in the ball that counts does an image end the search of its sample.
            aim = goal if factor == 1 else replace(goal, criterion=replace(goal.criterion, patient=True))
            start = ball.random_start(x, rng) if best is None else ball.project(best, x)
            found = self._ascend_in(ball, model, x, aim, start, count, best)
            best = found[0]
        return found

    @property
    def _shrinks(self) -> bool:
        return self.norm == "l1" or self.widest is not None

    def _balls(self) -> tuple[tuple[float, float], ...]:
        """Radii, in eps, and their shares of the steps; the last radius is 1."""
        if self.widest is None:
            return _SPARSE_BALLS
        return tuple((self.widest ** (1 - k / (_BALLS - 1)), 1 / _BALLS) for k in range(_BALLS))

    def _goals(self, logits: Tensor, y: Tensor, patient: bool) -> Iterator[Objective]:
        if not self.targets:
            yield Objective.untargeted(y, self.loss, patient)
            return
        order = wrong_classes(logits, y)
        for rank in range(min(self.targets, order.shape[1])):
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
    start, gradient, logits = _answered(model, x, goal, start)
    result, is_adversarial = start.clone(), torch.zeros(count, dtype=torch.bool, device=x.device)
    rows = torch.arange(count, device=x.device)
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


def _answered(model: nn.Module, x: Tensor, goal: Objective, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first iterate, the goal's gradient there (both (N, …)), and the logits (N, classes).

    Where the model has no answer to ``start`` (NaN) and the search does not end with that, nothing would ever be
    better and no gradient leads away: it begins at the clean image ``x``.
    """
    gradient, logits = objective_gradient(model, start, goal)
    lost = goal.value(logits).isnan() & ~goal.criterion(logits)
    if bool(lost.any()):
        start, rows = start.clone(), lost.nonzero().squeeze(1)
        start[rows] = x[rows]
        gradient[rows], logits[rows] = objective_gradient(model, x[rows], goal.select(rows))
    return start, gradient, logits


def _changed(images: Tensor, x: Tensor) -> Tensor:
    """How many pixels (N,) differ."""
    return (images != x).flatten(1).sum(1).float()


def sparse_ascend(
    model: nn.Module, x: Tensor, goal: Objective, threat: ThreatModel, start: Tensor, steps: int, changed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ascend in one L1 ball with steps that change ``changed`` (N,) pixels at first, and as many as pays later.

    Args and what it returns: as for :func:`auto_ascend`.
    """
    count = len(x)
    start, gradient, logits = _answered(model, x, goal, start)
    result, is_adversarial = start.clone(), torch.zeros(count, dtype=torch.bool, device=x.device)
    rows = torch.arange(count, device=x.device)
    value = goal.value(logits)
    values = value.clone()
    state = {
        "x": x, "at": start, "best": start, "gradient": gradient, "best_gradient": gradient, "best_value": value,
        "size": torch.full_like(value, threat.eps), "sparse": changed.to(value), "before": changed.to(value),
    }  # fmt: skip
    turn = max(1, int(_TURN * steps))
    for step in range(steps + 1):
        s = state
        if step:
            s["at"] = threat.project(_sparse_step(s["at"], s["gradient"], s["size"], s["sparse"]), s["x"])
            if step < steps:
                s["gradient"], logits = objective_gradient(model, s["at"], goal)
            else:
                with torch.no_grad():
                    logits = model(s["at"])
            value = goal.value(logits)
            better = value > s["best_value"]
            wide = per_sample(better, s["at"])
            s["best"] = torch.where(wide, s["at"], s["best"])
            s["best_gradient"] = torch.where(wide, s["gradient"], s["best_gradient"])
            s["best_value"] = torch.where(better, value, s["best_value"])
        done = goal.criterion(logits)
        if bool(done.any()):
            is_adversarial[rows[done]] = True
            result[rows[done]], values[rows[done]] = s["at"][done], value[done]
            rows, goal = rows[~done], goal.select(~done)
            s = state = {name: held[~done] for name, held in state.items()}
        if not len(rows):
            return result, values, is_adversarial
        if step and step % turn == 0:
            now = _changed(s["best"], s["x"])
            fewer = now < _SETTLED * s["before"]
            s["sparse"], s["before"] = now / _SPARSER, now
            s["size"] = torch.where(fewer, threat.eps, (s["size"] / _SPARSER).clamp_min(_SHORTEST * threat.eps))
            back = per_sample(fewer, s["at"])
            s["at"] = torch.where(back, s["best"], s["at"])
            s["gradient"] = torch.where(back, s["best_gradient"], s["gradient"])
    result[rows], values[rows] = state["best"], state["best_value"]
    return result, values, is_adversarial


def _sparse_step(x: Tensor, gradient: Tensor, size: Tensor, changed: Tensor) -> Tensor:
    """Go ``size`` (N,) in L1 along the signs of the ``changed`` (N,) steepest pixels, an equal share each."""
    slope = gradient.flatten(1)
    order = slope.abs().sort(1, descending=True).values
    last = changed.long().clamp(1, slope.shape[1])[:, None] - 1
    move = slope.sign() * (slope.abs() >= order.gather(1, last))
    return x + (per_sample(size, move) * move / move.abs().sum(1, keepdim=True).clamp_min(1)).view_as(x)
