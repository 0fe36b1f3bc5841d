"""The fast ensemble: the robust accuracy of the standard ensemble with fewer passes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD, SCHEDULE_START
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import Attack, register_attack
from robgib.attacks.linearization import boundary_distances, wrong_classes
from robgib.attacks.objective import Criterion, Objective, is_stochastic, targeted_loss
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.options import AtLeastOne, Count, NonNegative, former_names
from robgib.runtime import SampleRNG

__all__ = [
    "FastEnsemble",
]

_BLIND = 0.02  # an attack fails if others fool this share of the samples that it left right
_SCOUTS = 10  # samples on which ascent and its checks run first, to detect a failing ascent early
_FEW = 2  # samples fooled by other attacks: a single one may be chance
_RESTARTS = 8  # ascents from results of a short Square, near the boundary
_PIECES = 5  # runs of Square from the best image
_PIECE = 500  # queries of each run; runs of 250 are weaker
_SETTLE = 30  # ascent steps after each run, since Square leaves pixels at the faces of the ball
_GAIN = 0.8  # share of the margin above which another run of random search is not worthwhile
_NEXT = 5  # further samples, not near the boundary, that are attacked next
_INFINITE = 1e25  # distance of a linearised boundary beyond which its gradient is 0


Mode = Literal["ascent", "schedule", "rest", "none"]
"""What the stages do: see :class:`FastEnsemble`; ``none`` without gradients."""


@register_attack("FastEnsemble")
@former_names(widest="schedule_start")
@dataclass(frozen=True)
class FastEnsemble(Attack):
    """Estimate the robust accuracy of AutoAttack with fewer passes, by spending them on samples near the boundary.

    Most samples that remain robust are far from any boundary, and a few steps towards each class show it. Samples that
    only the long members of AutoAttack fool come near the boundary early. The :attr:`stages`, each on the samples that
    remain and from the results of those before it:

    - **cross-entropy**: APGD on the cross-entropy, ``short`` steps.
    - **classes**: APGD towards the ``targets`` wrong classes whose linearised boundaries are nearest to the clean image
      (logit gap over gradient norm, as in MALT, Melamed et al. 2024), ``short`` steps each.
    - **finalists**: the ``finalists`` best of these targets again, from their best images, ``long`` steps each.
    - **queries**: Square with ``probe`` queries.
    - **zero gradients**: Square with the queries of AutoAttack on samples whose gradient is 0 (or not finite) on the
      clean image and on a random one in the ball, in place of the stages from classes to queries. A note reports them.
    - **schedule**: APGD with a large-to-small eps schedule, from ``schedule_start`` eps, on ten samples.
    - **near the boundary**, where the margin is below ``near`` times the clean margin: APGD from the best image; eight
      ascents from results of Square; random search and a short ascent from the best image, alternating at most five
      times, as long as they reduce the margin by a fifth; APGD-T towards the ``finalists`` most likely classes.
    - **next nearest**: the same on five more samples (at most a tenth), and on the next as long as any is fooled.

    Ascent fails if queries and the schedule fool 2% (and two) of the samples that it left right and far from the
    boundary. Ten samples go through these stages first: two fooled samples are sufficient. If the schedule fooled any,
    it then replaces ascent, and is repeated until it fools less than 2%.
    Otherwise, or if that fails too, AutoAttack runs on all that remain, Square first. A note reports the choice.

    The ensemble can miss a sample that AutoAttack fools and that never came near the boundary: an audit bounds their
    number (``robgib.evaluate``). The result of a sample may depend on the other samples.

    Fields:
        targets: target classes of the short ascents.
        short: steps of these per class.
        finalists: target classes of the long ascents.
        long: steps of the long ascents per class.
        probe: queries of Square.
        near: margin, as a share of the clean margin, below which a sample is near the boundary.
        schedule_start: start of the large-to-small eps schedule, in multiples of eps.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:16], data.test.y[:16]
    >>> images = robgib.attacks.FastEnsemble("linf", 0.1)(model, x, y)
    >>> bool((model(images).argmax(1) == y).float().mean() < 0.3)
    True
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    pooled: ClassVar[bool] = True
    batch_independent: ClassVar[bool] = False
    targets: Count = 9
    short: Count = 10
    finalists: Count = 3
    long: Count = 50
    probe: Count = 50
    near: NonNegative = 0.05
    schedule_start: AtLeastOne = SCHEDULE_START

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`; of a sample that is never near the boundary, with informative gradients."""
        return self.short + self.targets * (self.short + 2) + self.finalists * self.long + -(-self.probe // 3)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        ascent = (Stage("classes", self._towards_classes), Stage("finalists", self._towards_finalists))
        query = Stage("queries", self._query)
        # The schedule begins outside the ball, where flat samples may have a gradient.
        schedule = Stage("schedule", self._check_by_schedule, _every_scout, fails=_fails)
        both: tuple[Mode, ...] = ("ascent", "schedule")
        return (
            Stage("cross-entropy", self._ascend, _all),
            *(replace(stage, select=_scouts) for stage in (*ascent, query)),
            schedule,
            *(replace(stage, select=_others) for stage in ascent),
            Stage("repeated schedule", self._repeat_schedule, _all, modes=("schedule",)),
            replace(query, select=lambda s: s.among(~s.queried), modes=both, fails=_fails),
            Stage("zero gradients", self._search, lambda s: s.right_of(s.flat), modes=both),
            Stage("near the boundary", self._push, lambda s: s.right_of(s.close), modes=both),
            Stage("next nearest", self._push, _State.next_nearest, modes=both, repeats=True),
            Stage("AutoAttack", self._attack_the_rest, _all, modes=("rest",)),
        )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        full = AutoAttack(self.norm, self.eps, eot=self.eot)
        if is_stochastic(model):
            return replace(full, version="rand").perturb(model, x, y, rng)
        state = _State(model, x, y, rng, self.near)
        for stage in self.stages:
            if state.mode in stage.modes:
                stage.perform(state)
        if notes := self._notes(state):
            warnings.warn("; ".join(notes), RobGIBWarning, stacklevel=2)
        return state.image

    def _notes(self, state: _State) -> list[str]:
        """Return notes on gradients that were of no use, and on what was done instead."""
        notes = []
        if state.flat.any():
            count = int(state.flat.sum())
            notes.append(
                f"the gradient is 0 on {count} of {len(state.x)} images, which Square attacked in place of ascent"
            )
        if state.reason:
            schedule = f"APGD used a large-to-small schedule from {self.schedule_start:g} eps"
            remedy = "AutoAttack was run on the rest" if state.mode == "rest" else schedule
            notes.append(f"{state.reason}: gradients are uninformative, and {remedy}")
        return notes

    def _ascend(self, state: _State, rows: Tensor) -> None:
        """Run APGD on the cross-entropy; without gradients, Square alone."""
        try:
            goal = Objective.untargeted(state.y[rows], "ce")
            ascent = APGD(self.norm, self.eps, steps=self.short)
            state.offer(rows, ascent.ascend(state.model, state.x[rows], goal, state.rng.select(rows))[0])
        except NoGradientError as error:
            warnings.warn(f"only Square was run: {error}", RobGIBWarning, stacklevel=4)
            state.run(Square(self.norm, self.eps, eot=self.eot), rows)
            state.mode = "none"

    def _towards_classes(self, state: _State, rows: Tensor) -> None:
        """Run short ascents towards the classes with the nearest linearised boundaries."""
        count = min(self.targets, state.classes - 1)
        candidates = wrong_classes(state.logits, state.y)[:, : 2 * self.targets]
        reach = boundary_distances(state.model, state.x[rows], state.y[rows], candidates[rows], self.norm)
        rows, reach = self._with_slope(state, rows, reach)
        order = torch.zeros_like(candidates[:, :count])
        order[rows] = candidates[rows].gather(1, reach.argsort(dim=1, stable=True)[:, :count])
        if state.front is None:
            state.front = _Front(state, min(self.finalists, count))
        self._towards_front(state, state.front, rows, order[rows], self.short)

    def _with_slope(self, state: _State, rows: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples with a gradient and the distances of their boundaries; mark all others as flat."""
        if (reach > _INFINITE).all(1).any():
            self._mark_flat(state)
        sloped = ~state.flat[rows]
        return rows[sloped], reach[sloped]

    def _mark_flat(self, state: _State) -> None:
        """Mark the remaining samples whose gradient is 0 on the clean image and on a random one in the ball."""
        rows = state.remaining
        elsewhere = self.threat.random_start(state.x[rows], state.rng.select(rows))
        candidates = wrong_classes(state.logits, state.y)[:, : 2 * self.targets][rows]
        flat = torch.ones_like(rows, dtype=torch.bool)
        for images in (state.x[rows], elsewhere):
            reach = boundary_distances(state.model, images, state.y[rows], candidates, self.norm)
            flat &= (reach > _INFINITE).all(1)
        state.flat[rows[flat]] = True

    def _search(self, state: _State, rows: Tensor) -> None:
        """Run Square with the queries of AutoAttack, and the draws of Square alone: it fools what that would fool."""
        search = Square(self.norm, self.eps, queries=AutoAttack.queries, eot=self.eot)
        images = search.perturb(state.model, state.x[rows], state.y[rows], state.unused.select(rows))
        state.offer(rows, images)

    def _towards_finalists(self, state: _State, rows: Tensor) -> None:
        """Run long ascents towards the classes that came nearest, from their best images."""
        front = state.front
        assert front is not None
        # Indexing copies the targets and images, which ascent changes.
        ranked = front.margin.argsort(dim=1, stable=True)
        which = ranked[rows]
        self._towards_front(
            state, front, rows, front.target[rows[:, None], which], self.long, front.image[rows[:, None], which]
        )

    def _towards_front(
        self, state: _State, front: _Front, rows: Tensor, targets: Tensor, steps: int, starts: Tensor | None = None
    ) -> None:
        """Run ascents of the samples ``rows`` (n,) towards their ``targets`` (n, K), from ``starts`` (n, K, …)."""
        ascent, column = APGD(self.norm, self.eps, steps=steps), 0
        while column < targets.shape[1]:
            here = state.right[rows]
            rows, targets = rows[here], targets[here]
            if not len(rows):
                return
            count = ascent.at_once(state.model, len(rows))
            side = targets[:, column : column + count].unbind(1)
            goals = [state.towards(rows, target) for target in side]
            if starts is not None:
                starts = starts[here]
            first = None if starts is None else starts[:, column : column + count].unbind(1)
            ended = ascent.ascend_together(state.model, state.x[rows], goals, state.rng.select(rows), first)
            for target, (images, _, _) in zip(side, ended, strict=True):
                front.offer(rows, target, images, state.offer(rows, images))
            column += count

    def _query(self, state: _State, rows: Tensor) -> None:
        """Run a short Square."""
        state.queried[rows] = True
        state.queries += state.check(Square(self.norm, self.eps, queries=self.probe, eot=self.eot), rows)

    def _check_by_schedule(self, state: _State, rows: Tensor) -> None:
        """Run large-to-small APGD on samples that ascent had left."""
        state.scheduled[rows] = True
        state.schedules += state.check(self._schedule, rows)
        state.helped = bool((~state.right[rows]).any())

    def _attack_the_rest(self, state: _State, rows: Tensor) -> None:
        """Run AutoAttack: first Square, and last the ascents, which spend all steps on what stays."""
        untargeted, targeted, along, black_box = AutoAttack(self.norm, self.eps, eot=self.eot).members(state.classes)
        state.cascade([black_box, along, untargeted, targeted], rows)

    @property
    def _schedule(self) -> APGD:
        """APGD with a large-to-small eps schedule."""
        return APGD(self.norm, self.eps, steps=2 * self.long, schedule_start=self.schedule_start)

    def _push(self, state: _State, rows: Tensor) -> None:
        """Attack samples near the boundary: ascents, random search, then APGD-T."""
        state.tried[rows] = True
        self._ascend_further(state, rows, 2 * self.long)
        self._restart(state, rows)
        self._polish(state, rows)
        start = self.schedule_start if state.mode == "schedule" else None
        towards = APGD(self.norm, self.eps, loss=state.loss, targets=self.finalists, schedule_start=start)
        state.run(towards, state.still(rows))

    def _restart(self, state: _State, rows: Tensor) -> None:
        """Run ascents from results of a short Square, towards the likeliest class on the clean or the best image."""
        probe = Square(self.norm, self.eps, queries=self.probe, eot=self.eot)
        for turn in range(_RESTARTS):
            rows = state.still(rows)
            if not len(rows):
                return
            start = probe.perturb(state.model, state.x[rows], state.y[rows], state.rng.select(rows))
            targets = state.nearest(rows) if turn % 2 else state.likeliest[rows]
            state.offer(rows, self._towards(state, rows, targets, self.long, start))

    def _polish(self, state: _State, rows: Tensor) -> None:
        """Alternate random search from the best images and a short ascent, on the samples that still improve.

        Ascent may stall at a kink of the network; one changed square can be enough to continue.
        """
        walk = Square(self.norm, self.eps, queries=_PIECE, eot=self.eot)
        for _ in range(_PIECES):
            rows = state.still(rows)
            if not len(rows):
                return
            before = state.margin[rows]
            goal = Objective.untargeted(state.y[rows], "margin")
            rng = state.rng.select(rows)
            state.offer(rows, walk.search(state.model, state.x[rows], goal, rng, state.image[rows])[0])
            self._ascend_further(state, state.still(rows), _SETTLE)
            rows = rows[state.margin[rows] < _GAIN * before]

    def _ascend_further(self, state: _State, rows: Tensor, steps: int) -> None:
        """Run ascent from the best images, towards the class that is likeliest there."""
        if len(rows):
            targets, start = state.nearest(rows), state.image[rows]
            state.offer(rows, self._towards(state, rows, targets, steps, start))

    def _towards(self, state: _State, rows: Tensor, targets: Tensor, steps: int, start: Tensor) -> Tensor:
        """Run ascent towards one class of each sample, from ``start``; return the images."""
        goal, ascent = state.towards(rows, targets), APGD(self.norm, self.eps, steps=steps)
        return ascent.ascend(state.model, state.x[rows], goal, state.rng.select(rows), start)[0]

    def _repeat_schedule(self, state: _State, rows: Tensor) -> None:
        """Run large-to-small APGD on the cross-entropy repeatedly, until it fools few samples."""
        while len(rows):
            state.run(self._schedule, rows)
            left = state.still(rows)
            if len(rows) - len(left) < _BLIND * len(rows):
                return
            rows = left


Run = Callable[["_State", Tensor], None]
Select = Callable[["_State"], Tensor]
Judge = Callable[["_State"], bool]


def _all(state: _State) -> Tensor:
    return state.remaining


def _scouts(state: _State) -> Tensor:
    return state.among(state.scouts)


def _every_scout(state: _State) -> Tensor:
    return state.right_of(state.scouts)


def _others(state: _State) -> Tensor:
    return state.among(~state.scouts)


@dataclass(frozen=True)
class Stage:
    """A part of the ensemble.

    Attributes:
        name: what it is, in benchmarks.
        run: attacks the remaining samples ``rows`` (n,).
        select: returns the rows; the stage is skipped if there are none.
        fails: whether the results up to here show that ascent fails; the search then changes its mode.
        modes: the modes in which the stage runs.
        repeats: whether it runs again, on the rows that it then selects, as long as it fools any sample.
    """

    name: str
    run: Run
    select: Select = _all
    fails: Judge | None = None
    modes: tuple[Mode, ...] = ("ascent",)
    repeats: bool = False

    def perform(self, state: _State) -> None:
        """Run the stage on the samples that it selects."""
        fooled = True
        while fooled:
            rows = self.select(state)
            if len(rows):
                self.run(state, rows)
            fooled = self.repeats and not bool(state.right[rows].all())
        if self.fails and state.mode in self.modes and self.fails(state):
            state.fail()


def _fails(state: _State) -> bool:
    """Whether the checks fooled at least 2% (and two) of the samples that ascent had left far."""
    return state.fooled >= max(_FEW, _BLIND * state.left)


def _some(which: Tensor, most: int) -> Tensor:
    """Return at most ``most`` samples of a mask (N,), evenly spaced, as a mask."""
    rows = which.nonzero().squeeze(1)
    some = torch.zeros_like(which)
    some[rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]] = True
    return some


class _State:
    """The state of the search: the best image of each sample so far, and what the stages found.

    Attributes:
        image: the best images (N, …), with their ``margin`` (N,).
        right: whether each is classified correctly (N,).
        mode: ``ascent``; ``schedule`` if ascent fails and large-to-small APGD fooled any sample; else ``rest``.
        front: the best images towards a few classes.
        queries: number of samples far from the boundary that Square fooled.
        schedules: number that large-to-small APGD fooled.
        helped: whether large-to-small APGD fooled any sample.
        queried: whether Square has run (N,).
        scheduled: whether large-to-small APGD has checked it (N,).
        tried: whether a sample was attacked as one near the boundary (N,).
        flat: whether the gradient of a sample is 0, so that ascent is not informed (N,).
        reason: why the mode changed.
        unused: the random numbers before any was drawn.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG, near: float) -> None:
        self.model, self.x, self.y, self.rng, self.near = model, x, y, rng, near
        self.unused = copy.deepcopy(rng)
        with torch.no_grad():
            self.logits = model(x)
        self.classes = self.logits.shape[1]
        goal = Objective.untargeted(y, "margin")
        self.clean = -goal.value(self.logits)
        self.image, self.margin = x.clone(), self.clean.clone()
        self.right = ~goal.criterion(self.logits)
        self.likeliest = wrong_classes(self.logits, y)[:, 0]
        self.loss = targeted_loss(self.classes)
        self.front: _Front | None = None
        self.reason = ""
        self.flat = torch.zeros_like(self.right)
        self._begin("ascent")

    def _begin(self, mode: Mode) -> None:
        self.mode, self.helped = mode, False
        self.queries = self.schedules = 0
        self.queried, self.scheduled, self.tried = (torch.zeros_like(self.right) for _ in range(3))
        self._scouts: Tensor | None = None

    @property
    def scouts(self) -> Tensor:
        """The samples on which the stages of a mode run first (N,)."""
        if self._scouts is None:
            self._scouts = _some(self.right, _SCOUTS)
        return self._scouts

    def fail(self) -> None:
        """Change the mode, since ascent fails."""
        self.reason = self.reason or (
            f"Square or large-to-small APGD fooled {self.fooled} of {self.left} images that "
            "gradient ascent had left right and far from the boundary"
        )
        if self.mode == "ascent" and self.helped:
            self._begin("schedule")
        else:
            self.mode = "rest"

    @property
    def fooled(self) -> int:
        """Number of samples that other attacks fooled and that ascent had left far from the boundary.

        A few may be chance. More show that ascent fails, and then its results on other samples are unreliable.
        """
        return self.queries + self.schedules

    @property
    def left(self) -> int:
        """Number of samples that ascent left right, of those that the checks looked at."""
        return int((self.queried | self.scheduled).sum())

    @property
    def close(self) -> Tensor:
        """Whether each sample came near the boundary (N,)."""
        return (self.margin < self.near * self.clean) | (self.margin <= 0)

    @property
    def remaining(self) -> Tensor:
        """The indices of the remaining samples."""
        return self.right.nonzero().squeeze(1)

    def among(self, group: Tensor) -> Tensor:
        """Return the indices of the remaining samples of a group (N,) that have a gradient."""
        return (self.right & group & ~self.flat).nonzero().squeeze(1)

    def right_of(self, group: Tensor) -> Tensor:
        """Return the indices of the remaining samples of a group (N,)."""
        return (self.right & group).nonzero().squeeze(1)

    def still(self, rows: Tensor) -> Tensor:
        """Return the remaining samples of ``rows``."""
        return rows[self.right[rows]]

    def nearer(self, rows: Tensor, most: int) -> Tensor:
        """Return the ``most`` samples of ``rows`` with the smallest margin relative to the clean image."""
        share = self.margin[rows] / self.clean[rows].clamp_min(torch.finfo(self.margin.dtype).tiny)
        return rows[share.argsort(stable=True)[:most]]

    def towards(self, rows: Tensor, targets: Tensor) -> Objective:
        """Return the objective of ascent of the samples ``rows`` towards ``targets``, where any wrong class ends it."""
        return Objective(self.loss, targets, Criterion(self.y[rows]), targeted=True)

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the likeliest wrong class (N,) on the best image."""
        with torch.no_grad():
            return wrong_classes(self.model(self.image[rows]), self.y[rows])[:, 0]

    def offer(self, rows: Tensor, images: Tensor) -> Tensor:
        """Keep those of ``images`` that improve the samples ``rows``; return the margins (N,) of ``images``."""
        if not len(rows):
            return self.margin[rows]
        goal = Objective.untargeted(self.y[rows], "margin")
        with torch.no_grad():
            logits = self.model(images)
        margin, fooled = -goal.value(logits), goal.criterion(logits)
        better = fooled | (margin < self.margin[rows])
        self.image[rows[better]], self.margin[rows[better]] = images[better], margin[better]
        self.right[rows[fooled]] = False
        return margin

    def run(self, attack: Attack, rows: Tensor) -> Tensor:
        """Run an attack on the samples ``rows``, and keep improvements; returns: as for :meth:`offer`."""
        if not len(rows):  # a network may not accept an empty batch
            return self.margin[rows]
        return self.offer(rows, attack.perturb(self.model, self.x[rows], self.y[rows], self.rng.select(rows)))

    def check(self, attack: Attack, rows: Tensor) -> int:
        """Run an attack that checks ascent; return how many samples it fooled that were far from the boundary."""
        far = ~self.close[rows]
        self.run(attack, rows)
        return int((far & ~self.right[rows]).sum())

    def cascade(self, attacks: Sequence[Attack], rows: Tensor) -> None:
        """Run attacks one after another on those of the samples ``rows`` that remain."""
        if len(rows):
            self.offer(rows, cascade(attacks, self.model, self.x[rows], self.y[rows], self.rng.select(rows)))

    def next_nearest(self) -> Tensor:
        """Return five more samples (at most a tenth) to attack as ones near the boundary.

        The useful distance differs between networks.
        """
        rows = self.right_of(~self.tried)
        return self.nearer(rows, min(_NEXT, -(-len(rows) // 10)))


class _Front:
    """The best images of each sample towards a few different classes."""

    def __init__(self, state: _State, places: int) -> None:
        count = len(state.x)
        self.margin = torch.full((count, places), torch.inf, dtype=state.margin.dtype, device=state.x.device)
        self.target = torch.full((count, places), -1, device=state.x.device)
        self.image = state.x[:, None].repeat(1, places, *([1] * (state.x.ndim - 1)))

    def offer(self, rows: Tensor, targets: Tensor, images: Tensor, margin: Tensor) -> None:
        """Replace the worst images of the samples ``rows`` by ``images`` towards ``targets`` that are better."""
        worst, place = self.margin[rows].max(1)
        # If no wrong class has a finite logit the margin is infinite too; it must still replace an empty place.
        margin = margin.clamp_max(torch.finfo(margin.dtype).max)
        better = margin < worst
        rows, place = rows[better], place[better]
        self.margin[rows, place], self.target[rows, place] = margin[better], targets[better]
        self.image[rows, place] = images[better]
