"""Auto-PGD: projected gradient ascent with an adaptive step size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robgib.attacks.base import Attack, objective_gradient, register_attack
from robgib.attacks.carried import carried
from robgib.attacks.linearization import wrong_classes
from robgib.attacks.objective import Criterion, Loss, Objective, is_stochastic
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel, per_sample
from robgib.models.inference import at_once
from robgib.options import AtLeastOne, Count, former_names
from robgib.runtime import SampleRNG

__all__ = [
    "APGD",
    "SCHEDULE_START",
]

SCHEDULE_START = 8.0
"""Default start of the large-to-small eps schedule, in multiples of eps (docs/attacks.md)."""

_MOMENTUM = 0.75  # weight of the new step; the previous direction has the rest
_SPARSE_BALLS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # L1: radii, in eps, and their shares of the steps
_BALLS = 5  # radii from ``schedule_start`` to eps, in geometric progression
_TURN = 0.04  # L1: share of the steps of a radius between updates of step size and sparsity
_SPREAD = 0.2  # L1: share of the pixels that the first steps change, without a start image
_SPARSER = 1.5  # L1: a step changes fewer pixels than the best image by this factor
_SETTLED = 0.95  # L1: the step size is reset if the number of changed pixels falls below this share
_SHORTEST = 0.1  # L1: minimum step size, in radii


@register_attack("APGD")
@former_names(widest="schedule_start")
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): momentum, and a step size that is halved if the loss stalls.

    The initial step size is 2 eps. At checkpoints with decreasing intervals, the step size of a sample is halved and
    the sample returns to its best iterate, if fewer than ``rho`` of the steps since the last checkpoint increased the
    loss, or if neither the step size nor the best loss has changed. Fooled samples leave the batch. Ascents of a sample
    towards several classes, and its restarts, run at once where they fit into the model's batch.

    Under L1 it follows Croce & Hein (2021, algorithm 1 and section 3.3): a step changes two thirds as many pixels as
    the best image; the step size is reset if that number falls, else reduced; and the radius is three, two and one eps,
    each ascent from the result of the previous one.

    ``schedule_start`` enables a large-to-small eps schedule under any norm: five radii in geometric progression, with a
    fifth of the steps each. It helps if gradients near the clean image are uninformative. For example, a network
    trained against L-inf may ignore changes below its eps; under L2, ascent from the clean image then stalls.

    Fields:
        steps: gradient steps per restart and target; each radius has at least one.
        restarts: number of random restarts.
        loss: ``ce`` or ``dlr`` (the difference of logits ratio, equation 6), or ``margin``.
        targets: 0 is untargeted; n attacks each of the n most likely wrong classes in turn, and any wrong class
            counts as success (APGD-T, section 4.2, with 9 and ``dlr``, equation 7).
        rho: share of the steps that must increase the loss.
        schedule_start: start of the large-to-small eps schedule, in multiples of eps; None is 1, and 3 under L1.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    aims: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    steps: Count = 100
    restarts: Count = 1
    loss: Loss = "ce"
    targets: Annotated[int, Field(ge=0)] = 0
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    schedule_start: AtLeastOne | None = None

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
        reached = Objective.untargeted(y, "ce").criterion(logits)  # wrong, or the target that the labels carry
        remaining = (~reached).nonzero().squeeze(1)
        runs = []
        for goal in self._goals(logits, y, is_stochastic(model)):
            runs += [(goal, goal.value(logits))] * self.restarts  # restarts share their best values
        while runs and len(remaining):
            count = self.at_once(model, len(remaining))
            now, runs = runs[:count], runs[count:]
            goals = [goal.select(remaining) for goal, _ in now]
            found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            ended = self.ascend_together(model, x[remaining], goals, rng.select(remaining))
            for (_, best), (images, value, is_adversarial) in zip(now, ended, strict=True):
                better = ~found[remaining] & (is_adversarial | (value > best[remaining]))
                result[remaining[better]], best[remaining[better]] = images[better], value[better]
                found[remaining[is_adversarial]] = True
            remaining = remaining[~found[remaining]]
        return result

    def at_once(self, model: nn.Module, samples: int) -> int:
        """Return for how many objectives of so many samples :meth:`ascend_together` fits into one batch."""
        return 1 if self._shrinks else at_once(model, samples)

    def ascend_together(
        self,
        model: nn.Module,
        x: Tensor,
        goals: Sequence[Objective],
        rng: SampleRNG,
        starts: Sequence[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Maximise several objectives of the same images, which differ by their labels, at once.

        The first adversarial image of a sample ends all its ascents.

        Args:
            model: classifier, frozen.
            x: clean, correctly classified images (N, …).
            goals: the objectives.
            rng: random numbers of the samples.
            starts: for each objective the first images (N, …); by default random images of the ball.

        Returns:
            For each objective the results of :func:`auto_ascend`.
        """
        if len(goals) == 1:
            return [self.ascend(model, x, goals[0], rng, None if starts is None else starts[0])]
        starts = [self.threat.random_start(x, rng) for _ in goals] if starts is None else starts
        rows = torch.arange(len(x), device=x.device).repeat(len(goals))
        joint = replace(goals[0].select(rows), labels=torch.cat([goal.labels for goal in goals]))
        ended = auto_ascend(model, x[rows], joint, self.threat, torch.cat(list(starts)), self.steps, self.rho, rows)
        return list(zip(*(part.split(len(x)) for part in ended), strict=True))

    def ascend(
        self, model: nn.Module, x: Tensor, goal: Objective, rng: SampleRNG, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maximise one objective once, from ``start`` or a random image of the ball.

        Args and returns: as for :func:`auto_ascend`.
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
        """Run ascent in one ball. Under L1 the first steps have the sparsity of the images ``like`` (N, …), if given.

        Returns: as for :func:`auto_ascend`.
        """
        if self.norm != "l1":
            return auto_ascend(model, x, goal, ball, start, steps, self.rho)
        spread = torch.full((len(x),), _SPREAD * x[:1].numel(), device=x.device)
        changed = spread if like is None else _changed(like, x) / _SPARSER
        return sparse_ascend(model, x, goal, ball, start, steps, changed)

    def _shrink(self, model: nn.Module, x: Tensor, goal: Objective, rng: SampleRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Run ascent with decreasing eps, each from the projected best image of the previous one."""
        most = self.threat.widest(x[:1].numel())
        best: Tensor | None = None
        used, share = 0, 0.0
        for factor, part in self._balls():
            share += part
            count = max(1, round(share * self.steps) - used)
            used += count
            ball = replace(self.threat, eps=min(factor * self.eps, most))
            # An adversarial image ends the search only in the final ball.
            aim = goal if factor == 1 else replace(goal, criterion=replace(goal.criterion, patient=True))
            start = ball.random_start(x, rng) if best is None else ball.project(best, x)
            outcome = self._ascend_in(ball, model, x, aim, start, count, best)
            best = outcome[0]
        return outcome

    @property
    def _shrinks(self) -> bool:
        return self.norm == "l1" or self.schedule_start is not None

    def _balls(self) -> tuple[tuple[float, float], ...]:
        """Return radii, in eps, and their shares of the steps; the last radius is 1."""
        if self.schedule_start is None:
            return _SPARSE_BALLS
        return tuple((self.schedule_start ** (1 - k / (_BALLS - 1)), 1 / _BALLS) for k in range(_BALLS))

    def _goals(self, logits: Tensor, y: Tensor, patient: bool) -> Iterator[Objective]:
        if not self.targets or carried(y, "targets") is not None:
            yield Objective.untargeted(y, self.loss, patient)
            return
        order = wrong_classes(logits, y)
        for rank in range(min(self.targets, order.shape[1])):
            yield Objective(self.loss, order[:, rank], Criterion(y, patient=patient), targeted=True)


def checkpoints(steps: int) -> list[int]:
    """Return the checkpoints of the step size (Croce & Hein 2020, section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Round first: 0.57 · 100 is slightly above 57 in floating point.
    return sorted({math.ceil(round(share * steps, 6)) for share in shares if 0 < share <= 1})


def auto_ascend(
    model: nn.Module,
    x: Tensor,
    goal: Objective,
    threat: ThreatModel,
    start: Tensor,
    steps: int,
    rho: float,
    sample: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximise an objective from ``start``, with a step size of its own for each row.

    Args:
        model: classifier, frozen.
        x: clean, correctly classified images (N, …).
        goal: the objective to maximise.
        threat: ball, box and steepest direction.
        start: first iterate, inside the ball.
        steps: number of gradient steps.
        rho: share of the steps that must increase the objective.
        sample: (N,), the sample that each row is of; one adversarial row ends all of its sample. By default each row
            is a sample.

    Returns:
        The first adversarial iterate, else the best one (N, …); its objective (N,); whether it is adversarial (N,).
    """
    ascent = _Ascent(model, x, goal, start)
    s = ascent.state  # one row per active sample; counts since the last checkpoint
    s["before"], s["size"] = s["at"], torch.full_like(s["value"], 2 * threat.eps)
    if sample is not None:
        s["sample"] = sample
    s["rises"], s["marked"], s["halved"] = torch.zeros_like(s["value"]), s["value"], torch.ones_like(s["value"]).bool()
    ascent.release()
    turns, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        if not len(ascent.rows):
            break
        s = ascent.state
        ahead = threat.project(threat.step(s["at"], s["gradient"], per_sample(s["size"], s["at"])), s["x"])
        if step > 1:
            ahead = s["at"] + _MOMENTUM * (ahead - s["at"]) + (1 - _MOMENTUM) * (s["at"] - s["before"])
            ahead = threat.project(ahead, s["x"])
        s["before"] = s["at"]
        s["rises"] = s["rises"] + ascent.move(ahead, is_last=step == steps)
        ascent.release()
        if step in turns and len(ascent.rows):
            s = ascent.state
            stuck = ~s["halved"] & (s["best_value"] <= s["marked"])
            s["halved"] = (s["rises"] < rho * (step - last)) | stuck
            s["size"] = torch.where(s["halved"], s["size"] / 2, s["size"])
            ascent.restart(s["halved"])
            s["marked"], s["rises"], last = s["best_value"], torch.zeros_like(s["rises"]), step
    return ascent.end()


class _Ascent:
    """An ascent: its active samples, which are not adversarial yet, and the results of all N samples.

    Attributes:
        rows: rows (n,) of the active samples.
        goal: their objective.
        state: tensors with one row per active sample, by name: clean image ``x``, iterate ``at`` with its ``gradient``
            and ``value``, and the ``best`` iterate with its ``best_gradient`` and ``best_value``. A search adds others,
            such as the ``sample`` of each row, where several are of one.
    """

    def __init__(self, model: nn.Module, x: Tensor, goal: Objective, start: Tensor) -> None:
        start, gradient, self._logits = _answered(model, x, goal, start)
        self.model, self.goal = model, goal
        self.rows = torch.arange(len(x), device=x.device)
        value = goal.value(self._logits)
        self.state = {
            "x": x, "at": start, "gradient": gradient, "value": value,
            "best": start, "best_gradient": gradient, "best_value": value,
        }  # fmt: skip
        self._result, self._values = start.clone(), value.clone()
        self._is_adversarial = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def move(self, ahead: Tensor, is_last: bool) -> Tensor:
        """Move to the iterates ``ahead`` (n, …), and return whether each value (n,) rose. The last has no gradient."""
        s = self.state
        s["at"] = ahead
        if is_last:
            with torch.no_grad():
                self._logits = self.model(ahead)
        else:
            s["gradient"], self._logits = objective_gradient(self.model, ahead, self.goal)
        value = self.goal.value(self._logits)
        rose, better = value > s["value"], value > s["best_value"]
        wide = per_sample(better, ahead)
        s["value"] = value
        s["best"] = torch.where(wide, ahead, s["best"])
        s["best_gradient"] = torch.where(wide, s["gradient"], s["best_gradient"])
        s["best_value"] = torch.where(better, value, s["best_value"])
        return rose

    def release(self) -> None:
        """Record the iterates that are adversarial; their samples are no longer active."""
        adversarial = done = self.goal.criterion(self._logits)
        if not bool(done.any()):
            return
        if "sample" in self.state:
            done = torch.isin(self.state["sample"], self.state["sample"][done])
        leaving = self.rows[done]
        self._is_adversarial[leaving] = adversarial[done]
        self._result[leaving], self._values[leaving] = self.state["at"][done], self.state["value"][done]
        self.rows, self.goal = self.rows[~done], self.goal.select(~done)
        self.state = {name: tensor[~done] for name, tensor in self.state.items()}

    def restart(self, which: Tensor) -> None:
        """Return some of the active samples (n,) to their best iterates."""
        s, wide = self.state, per_sample(which, self.state["at"])
        s["at"] = torch.where(wide, s["best"], s["at"])
        s["gradient"] = torch.where(wide, s["best_gradient"], s["gradient"])
        s["value"] = torch.where(which, s["best_value"], s["value"])

    def end(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images (N, …), their values (N,), and whether they are adversarial (N,)."""
        self._result[self.rows], self._values[self.rows] = self.state["best"], self.state["best_value"]
        return self._result, self._values, self._is_adversarial


def _answered(model: nn.Module, x: Tensor, goal: Objective, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first iterate, the gradient of the objective there (both (N, …)), and the logits (N, classes).

    If the objective is NaN at ``start`` and the search does not end there, no later iterate would compare as better.
    The search then starts at the clean image ``x``.
    """
    gradient, logits = objective_gradient(model, start, goal)
    lost = goal.value(logits).isnan() & ~goal.criterion(logits)
    if bool(lost.any()):
        start, rows = start.clone(), lost.nonzero().squeeze(1)
        start[rows] = x[rows]
        gradient[rows], logits[rows] = objective_gradient(model, x[rows], goal.select(rows))
    return start, gradient, logits


def _changed(images: Tensor, x: Tensor) -> Tensor:
    """Return the number of changed pixels (N,)."""
    return (images != x).flatten(1).sum(1).float()


def sparse_ascend(
    model: nn.Module, x: Tensor, goal: Objective, threat: ThreatModel, start: Tensor, steps: int, changed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximise an objective in one L1 ball with sparse steps, which first change ``changed`` (N,) pixels.

    Args and returns: as for :func:`auto_ascend`.
    """
    ascent = _Ascent(model, x, goal, start)
    s = ascent.state
    s["size"] = torch.full_like(s["value"], threat.eps)
    s["sparse"] = s["before"] = changed.to(s["value"])
    ascent.release()
    turn = max(1, int(_TURN * steps))
    for step in range(1, steps + 1):
        if not len(ascent.rows):
            break
        s = ascent.state
        ahead = threat.project(_sparse_step(s["at"], s["gradient"], s["size"], s["sparse"]), s["x"])
        ascent.move(ahead, is_last=step == steps)
        ascent.release()
        if step % turn == 0 and len(ascent.rows):
            s = ascent.state
            now = _changed(s["best"], s["x"])
            fewer = now < _SETTLED * s["before"]
            s["sparse"], s["before"] = now / _SPARSER, now
            s["size"] = torch.where(fewer, threat.eps, (s["size"] / _SPARSER).clamp_min(_SHORTEST * threat.eps))
            ascent.restart(fewer)
    return ascent.end()


def _sparse_step(x: Tensor, gradient: Tensor, size: Tensor, changed: Tensor) -> Tensor:
    """Take a step of L1 length ``size`` (N,) along the signs of the ``changed`` (N,) steepest pixels."""
    slope = gradient.flatten(1)
    order = slope.abs().sort(1, descending=True).values
    last = changed.long().clamp(1, slope.shape[1])[:, None] - 1
    move = slope.sign() * (slope.abs() >= order.gather(1, last))
    return x + (per_sample(size, move) * move / move.abs().sum(1, keepdim=True).clamp_min(1)).view_as(x)
