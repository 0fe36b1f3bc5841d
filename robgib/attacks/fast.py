"""The fast ensemble: the robust accuracy of the standard ensemble with fewer passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD, SCHEDULE_START
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import Attack, register_attack
from robgib.attacks.fab import FAB
from robgib.attacks.linearization import boundary_distances, wrong_classes
from robgib.attacks.objective import Criterion, Loss, Objective, is_stochastic
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.options import AtLeastOne, Count, NonNegative, former_names
from robgib.runtime import SampleRNG

__all__ = [
    "FastEnsemble",
]

_BLIND = 0.02  # ascent fails if other attacks fool more than this share of the samples that it left right
_SCOUTS = 10  # samples on which rounds 2 to 4 run first, to detect a failing ascent early
_FEW = 3  # of these samples, fooled by other attacks: at a true rate of 2% this has a probability of 1 in 1,100
_TWO = 2  # samples fooled by large-to-small APGD or the last check: a single one may be chance
_SHORT_WALK = 40  # steps of FAB-T per class, before the FAB-T of AutoAttack, if ascent fails
_SCHEDULE_SHARES = (0.25, 0.5, 1, 1, 1, 1)  # step counts of successive runs of large-to-small APGD, as shares
_FADING = 0.05  # if a run of large-to-small APGD fools fewer, half of the samples get the next one, and then none
_LOOKED = 20  # number of samples (or a tenth) of the first FAB-T; the others follow if it fools any
_RESTARTS = 8  # ascents from results of a short Square, near the boundary
_PIECES = 5  # runs of Square from the best image
_PIECE = 500  # queries of each run; runs of 250 are weaker
_SETTLE = 30  # ascent steps after each run, since Square leaves pixels at the faces of the ball
_GAIN = 0.8  # share of the margin above which another run of random search is not worthwhile
_NEXT = 5  # further samples, not near the boundary, that are attacked next
_EVERY = 25  # at least one in this number of remaining samples is attacked next
_LAST = 20  # factor of the queries of Square in the final check on ten samples
_LONGER = 5  # factor of the queries of Square that check large-to-small APGD
_YIELD = 0.2  # if large-to-small APGD fools a smaller share, a longer FAB-T may be stronger
_BEYOND = 1.1  # distance in eps: FAB-T continues along more boundaries for samples this near
_HALF = 0.5  # share of the clean margin: Square continues if it got below it, regardless of ascent
_TARGETED_CLASSES = 4  # minimum number of classes of the targeted DLR loss


Mode = Literal["ascent", "schedule", "rest", "none"]
"""What the stages do: see :class:`FastEnsemble`; ``none`` without gradients."""


@register_attack("FastEnsemble")
@former_names(widest="schedule_start")
@dataclass(frozen=True)
class FastEnsemble(Attack):
    """Estimate the robust accuracy of AutoAttack with fewer passes, by spending them on samples near the boundary.

    Most samples that remain robust are far from any boundary, and a few steps towards each class show it. Samples that
    only the long members of AutoAttack fool come near the boundary early. Each round starts from the results of the
    previous one:

    1. APGD on the cross-entropy, ``first`` steps.
    2. APGD towards the ``targets`` wrong classes whose linearised boundaries are nearest to the clean image (logit gap
       over gradient norm, as in MALT, Melamed et al. 2024), ``short`` steps each.
    3. The ``finalists`` best of these targets again, from their best images, ``long`` steps each.
    4. Two other attacks, to detect uninformative gradients: FAB-T along ``boundaries`` linearised boundaries, with
       ``boundary_steps`` steps each, and Square with ``probe`` queries. FAB-T runs on twenty samples (or a tenth), and
       on the others if it fools any.
    5. On the samples whose margin fell below ``near`` times the clean margin: APGD from the best image; eight ascents
       from results of Square with ``probe`` queries; random search and a short ascent from the best image, alternating
       at most five times, as long as they reduce the margin by a fifth; APGD-T towards the ``finalists`` most likely
       classes. The next five samples follow (or one in 25 of the remaining ones, if that is more; or one in ten, if
       that is less), and further ones as long as any is fooled. If Square reached a smaller margin than ascent on a
       sample, Square runs with the queries of AutoAttack.

    Gradients count as uninformative if round 4 fools at least 2% (and at least two) of the samples that ascent left
    right and far from the boundary. To detect this early, rounds 2 to 4 and APGD with a large-to-small eps schedule,
    from ``schedule_start`` eps, first run on ten samples: three fooled samples, or two fooled by the schedule, are
    sufficient.
    Ten further samples (at most a third), those of the smallest margin under Square, are attacked with the schedule
    before round 5, and ten with twenty times the queries of Square after it; two fooled samples are sufficient.

    If the schedule fooled any sample, it then replaces rounds 2 and 3, with short runs first, and all but the first
    step of round 5. After a short run that fools less than 5% only the nearer half is attacked again; after a second
    such run, or a full one, none follows. If a full run fools less than a fifth, FAB-T runs with AutoAttack's steps
    on five samples, and on the next five as long as any is fooled. Square then has five times as many queries in round
    4, and continues where they halve the clean margin. If round 4 shows that the schedule fails too, AutoAttack runs on
    all remaining samples, in the order of strength: FAB-T (a shorter one first) or Square, and its ascents last. A note
    reports the choice.

    The ensemble can miss a sample that AutoAttack fools and that never came near the boundary. Since round 5 depends on
    all samples, the result of a sample may depend on the other samples.

    Fields:
        first: steps of round 1.
        targets: target classes of round 2.
        short: steps of round 2 per class.
        finalists: target classes of round 3.
        long: steps of round 3 per class.
        boundaries: target classes of FAB-T in round 4.
        boundary_steps: steps of FAB-T per class.
        probe: queries of Square in round 4.
        near: margin, as a share of the clean margin, below which round 5 runs.
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
    first: Count = 20
    targets: Count = 9
    short: Count = 10
    finalists: Count = 3
    long: Count = 50
    boundaries: Count = 3
    boundary_steps: Count = 20
    probe: Count = 50
    near: NonNegative = 0.05
    schedule_start: AtLeastOne = SCHEDULE_START

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`; of a sample that is never near the boundary, with informative gradients."""
        return self.first + self.targets * (self.short + 2) + self.finalists * self.long + self._looks

    @property
    def _looks(self) -> int:
        """Gradients of round 4; FAB needs three passes per step."""
        return 3 * self.boundaries * self.boundary_steps // 2 + self.probe // 2

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        look = (
            Stage("boundary steps", self._step_along_boundaries),
            Stage("queries", self._query),
        )
        ascent = (Stage("classes", self._towards_classes), Stage("finalists", self._towards_finalists), *look)
        repeated = (Stage("repeated schedule", self._repeat_schedule), *look)
        near = (
            Stage("near the boundary", self._push, lambda s: s.among(s.close)),
            Stage("next nearest", self._push, _State.next_nearest, repeats=True),
            Stage("long queries where they lead", self._query_at_length, lambda s: s.among(s.ahead)),
            Stage("long queries on a few", self._check_by_queries, lambda s: s.taken(~s.tried & ~s.ahead), _far_fails),
        )
        return (
            Stage("cross-entropy", self._ascend, lambda s: s.remaining),
            *_on(_scouts, ascent),
            Stage("schedule on scouts", self._check_by_schedule, _scouts, _fails(_FEW)),
            *_on(_others, ascent, _fails(_TWO)),
            Stage("schedule on a few", self._check_by_schedule, lambda s: s.taken(~s.close & ~s.ahead), _far_fails),
            *near,
            *(replace(stage, mode="schedule") for stage in _on(_scouts, repeated, _fails(_FEW))),
            *(replace(stage, mode="schedule") for stage in _on(_others, repeated, _fails(_TWO))),
            *(replace(stage, mode="schedule") for stage in near),
            Stage("AutoAttack", self._attack_the_rest, lambda s: s.remaining, mode="rest"),
        )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        full = AutoAttack(self.norm, self.eps, eot=self.eot)
        if is_stochastic(model):
            return replace(full, version="rand").perturb(model, x, y, rng)
        state = _State(model, x, y, rng, self.near)
        state.members = full.members(state.classes)
        for stage in self.stages:
            if stage.mode == state.mode:
                stage.perform(state)
        if state.reason:
            schedule = f"APGD used a large-to-small schedule from {self.schedule_start:g} eps"
            remedy = "AutoAttack was run on the rest" if state.mode == "rest" else schedule
            warnings.warn(f"{state.reason}: gradients are uninformative, and {remedy}", RobGIBWarning, stacklevel=2)
        return state.image

    def _ascend(self, state: _State, rows: Tensor) -> None:
        """Run APGD on the cross-entropy; without gradients, Square alone."""
        try:
            goal = Objective.untargeted(state.y[rows], "ce")
            ascent = APGD(self.norm, self.eps, steps=self.first)
            state.offer(rows, ascent.ascend(state.model, state.x[rows], goal, state.rng.select(rows))[0])
        except NoGradientError as error:
            warnings.warn(f"only Square was run: {error}", RobGIBWarning, stacklevel=4)
            state.run(state.members[-1], rows)
            state.mode = "none"

    def _towards_classes(self, state: _State, rows: Tensor) -> None:
        """Run short ascents towards the classes with the nearest linearised boundaries."""
        count = min(self.targets, state.classes - 1)
        candidates = wrong_classes(state.logits, state.y)[:, : 2 * self.targets]
        reach = boundary_distances(state.model, state.x[rows], state.y[rows], candidates[rows], self.norm)
        order = torch.zeros_like(candidates[:, :count])
        order[rows] = candidates[rows].gather(1, reach.argsort(dim=1, stable=True)[:, :count])
        if state.front is None:
            state.front = _Front(state, min(self.finalists, count))
        for rank in range(count):
            rows = state.still(rows)
            self._towards_front(state, state.front, rows, order[rows, rank], self.short)

    def _towards_finalists(self, state: _State, rows: Tensor) -> None:
        """Run long ascents towards the classes that came nearest, from their best images."""
        front = state.front
        assert front is not None
        # Keep the order, since ascent changes it.
        ranked = front.margin.argsort(dim=1, stable=True)
        targets, images = front.target.clone(), front.image.clone()
        for place in range(front.margin.shape[1]):
            rows = state.still(rows)
            which = ranked[rows, place]
            self._towards_front(state, front, rows, targets[rows, which], self.long, images[rows, which])

    def _towards_front(
        self, state: _State, front: _Front, rows: Tensor, targets: Tensor, steps: int, start: Tensor | None = None
    ) -> None:
        if len(rows):
            images = self._towards(state, rows, targets, steps, start)
            front.offer(rows, targets, images, state.offer(rows, images))

    def _step_along_boundaries(self, state: _State, rows: Tensor) -> None:
        """Run FAB-T on some samples, and on the others if it fools any."""
        state.record_ascent(rows)
        along = torch.zeros_like(state.right)
        along[rows] = ~state.walked[rows]
        few = _some(along, max(_LOOKED, int(along.sum()) // 10))
        for part in (few, along & ~few):
            rows = state.among(part)
            state.by_walks += self._offered(state, self._along, rows)
            if bool(state.right[rows].all()):
                break

    def _query(self, state: _State, rows: Tensor) -> None:
        """Run a short Square, and record its margins."""
        queries = _LONGER * self.probe if state.mode == "schedule" else self.probe
        state.record_square(rows, state.run(Square(self.norm, self.eps, queries=queries, eot=self.eot), rows))
        state.by_probes += state.fooled_far(rows)

    def _query_at_length(self, state: _State, rows: Tensor) -> None:
        """Run the Square of AutoAttack."""
        state.run(state.members[-1], rows)

    def _check_by_queries(self, state: _State, rows: Tensor) -> None:
        """Run a long Square on samples far from the boundary."""
        state.by_probes += self._offered(
            state, Square(self.norm, self.eps, queries=_LAST * self.probe, eot=self.eot), rows
        )

    def _check_by_schedule(self, state: _State, rows: Tensor) -> None:
        """Run large-to-small APGD on samples that ascent had left."""
        before = int(state.right[rows].sum())
        state.by_schedule += self._offered(state, self._schedule, rows)
        state.helped |= int(state.right[rows].sum()) < before

    @staticmethod
    def _offered(state: _State, attack: Attack, rows: Tensor) -> int:
        """Run an attack on the remaining samples of ``rows``; return how many it fooled that ascent had left far."""
        rows = state.still(rows)
        state.run(attack, rows)
        return state.fooled_far(rows)

    def _attack_the_rest(self, state: _State, rows: Tensor) -> None:
        """Run AutoAttack: the stronger of FAB-T and Square first; ascent last, as it spends all steps on what stays."""
        untargeted, targeted, along, black_box = state.members
        walks = [replace(self._along, targets=self.targets, steps=_SHORT_WALK), along]
        others = [*walks, black_box] if state.by_walks >= state.by_probes else [black_box, *walks]
        state.cascade([*others, untargeted, targeted], rows)

    def _walk(self, state: _State) -> None:
        """Run a long FAB-T on five remaining samples, and on the next as long as any is fooled.

        If it came near the ball along few boundaries, it continues along more.
        """
        walk = replace(self._along, steps=2 * self.long)
        tried, near = state.walked, torch.zeros_like(state.right)
        fooled = True
        while fooled:
            rows = state.among(~tried)
            rows = rows[state.margin[rows].argsort(stable=True)[:_NEXT]]
            tried[rows] = True
            reach = state.approach(walk, rows)
            near[rows] = reach <= _BEYOND * self.eps
            fooled = not bool(state.right[rows].all())
        if bool((tried & ~state.right).any()):
            state.run(replace(walk, targets=self.targets, skip=self.boundaries), state.among(near))

    @property
    def _along(self) -> FAB:
        """The FAB-T of round 4."""
        return FAB(self.norm, self.eps, targeted=True, targets=self.boundaries, steps=self.boundary_steps)

    @property
    def _schedule(self) -> APGD:
        """APGD with a large-to-small eps schedule."""
        return APGD(self.norm, self.eps, steps=2 * self.long, schedule_start=self.schedule_start)

    def _push(self, state: _State, rows: Tensor) -> None:
        """Attack samples near the boundary: ascents, random search, then long members."""
        state.tried[rows] = True
        self._ascend_further(state, rows, 2 * self.long)
        towards = APGD(self.norm, self.eps, loss=state.loss, targets=self.finalists)
        members = [towards]
        if state.mode == "schedule":
            members = [replace(self._schedule, loss="margin"), replace(towards, schedule_start=self.schedule_start)]
        else:
            self._restart(state, rows)
            self._polish(state, rows)
        state.cascade(members, state.still(rows))

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

    def _towards(self, state: _State, rows: Tensor, targets: Tensor, steps: int, start: Tensor | None) -> Tensor:
        """Run ascent towards one class of each sample; return the images."""
        goal = Objective(state.loss, targets, Criterion(state.y[rows]), targeted=True)
        ascent = APGD(self.norm, self.eps, steps=steps)
        return ascent.ascend(state.model, state.x[rows], goal, state.rng.select(rows), start)[0]

    def _repeat_schedule(self, state: _State, rows: Tensor) -> None:
        """Run large-to-small APGD on the cross-entropy repeatedly, until it fools few samples."""
        group, fading = rows, False
        scouting = bool(state.scouts[rows].all()) and bool((state.right & ~state.scouts).any())
        for share in _SCHEDULE_SHARES:
            rows = state.still(group)
            if fading:
                rows = state.nearer(rows, max(_SCOUTS, len(rows) // 2))
            if not len(rows):
                return
            ascent = replace(self._schedule, steps=max(1, round(share * self._schedule.steps)))
            state.run(ascent, rows)
            fooled = len(rows) - len(state.still(rows))
            due = share == 1 and fooled < _YIELD * len(rows)
            if due and not scouting and not bool(state.walked.any()):
                self._walk(state)
            if fooled < _FADING * len(rows):
                if fading or share == 1:
                    return
                fading = True


Run = Callable[["_State", Tensor], None]
Select = Callable[["_State"], Tensor]
Judge = Callable[["_State"], bool]


def _scouts(state: _State) -> Tensor:
    return state.among(state.scouts)


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
        mode: the mode in which the stage runs.
        repeats: whether it runs again, on the rows that it then selects, as long as it fools any sample.
    """

    name: str
    run: Run
    select: Select = _others
    fails: Judge | None = None
    mode: Mode = "ascent"
    repeats: bool = False

    def perform(self, state: _State) -> None:
        """Run the stage on the samples that it selects."""
        fooled = True
        while fooled:
            rows = self.select(state)
            if len(rows):
                self.run(state, rows)
            fooled = self.repeats and not bool(state.right[rows].all())
        if self.fails and state.mode == self.mode and self.fails(state):
            state.fail()


def _on(select: Select, stages: Sequence[Stage], fails: Judge | None = None) -> tuple[Stage, ...]:
    """Return stages on the samples that ``select`` returns, judged after the last one."""
    chosen = [replace(stage, select=select) for stage in stages]
    return (*chosen[:-1], replace(chosen[-1], fails=fails))


def _fails(least: int) -> Judge:
    """Whether other attacks fooled at least 2% (and ``least``) of the samples that ascent had left far."""

    def judge(state: _State) -> bool:
        state.before = state.fooled
        return state.by_schedule >= _TWO or state.fooled >= max(least, _BLIND * state.left)

    return judge


def _far_fails(state: _State) -> bool:
    """Whether the later checks fooled two samples that ascent had left far."""
    return state.fooled - state.before >= _TWO


def _part(rows: Tensor, of: int, most: int) -> int:
    """Return one in ``of`` samples, rounded up, at most ``most``."""
    return min(most, -(-len(rows) // of))


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
        members: the members of AutoAttack.
        front: the best images towards a few classes.
        scouts: the ten samples on which the stages run first (N,).
        left: number of samples that ascent left right.
        by_walks: number of them, far from the boundary, that FAB-T fooled.
        by_probes: number that Square fooled.
        by_schedule: number that large-to-small APGD fooled.
        before: number that all fooled before the samples near the boundary were attacked.
        share: margin (N,) after Square, as a share of the clean margin.
        close: whether ascent came near the boundary (N,).
        tried: whether a sample was attacked as one near the boundary (N,).
        walked: whether the long FAB-T has run (N,).
        ahead: whether Square reached a smaller margin than ascent (N,); in mode ``schedule``, half the clean margin.
        helped: whether large-to-small APGD fooled any sample.
        reason: why the mode changed.
    """

    members: tuple[Attack, ...]

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG, near: float) -> None:
        self.model, self.x, self.y, self.rng, self.near = model, x, y, rng, near
        with torch.no_grad():
            self.logits = model(x)
        self.classes = self.logits.shape[1]
        goal = Objective.untargeted(y, "margin")
        self.clean = -goal.value(self.logits)
        self.image, self.margin = x.clone(), self.clean.clone()
        self.right = ~goal.criterion(self.logits)
        self.likeliest = wrong_classes(self.logits, y)[:, 0]
        self.loss: Loss = "dlr" if self.classes >= _TARGETED_CLASSES else "margin"
        self.front: _Front | None = None
        self.reason = ""
        self._begin("ascent")

    def _begin(self, mode: Mode) -> None:
        self.mode, self.helped = mode, False
        self.left = self.by_walks = self.by_probes = self.by_schedule = self.before = 0
        self.walked, self.close, self.tried, self.ahead = (torch.zeros_like(self.right) for _ in range(4))
        self.ascended, self.share = self.margin.clone(), torch.ones_like(self.margin)
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
            f"FAB-T, Square or large-to-small APGD fooled {self.fooled} of {self.left} images that "
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
        return self.by_walks + self.by_probes + self.by_schedule

    @property
    def remaining(self) -> Tensor:
        """The indices of the remaining samples."""
        return self.right.nonzero().squeeze(1)

    def among(self, group: Tensor) -> Tensor:
        """Return the indices of the remaining samples of a group (N,)."""
        return (self.right & group).nonzero().squeeze(1)

    def still(self, rows: Tensor) -> Tensor:
        """Return the remaining samples of ``rows``."""
        return rows[self.right[rows]]

    def nearer(self, rows: Tensor, most: int) -> Tensor:
        """Return the ``most`` samples of ``rows`` with the smallest margin relative to the clean image."""
        return rows[self.relative(rows, self.margin[rows]).argsort(stable=True)[:most]]

    def relative(self, rows: Tensor, margin: Tensor) -> Tensor:
        """Return margins (N,) of the samples ``rows`` as shares of the clean margin; 0 if that is a tie."""
        return margin / self.clean[rows].clamp_min(torch.finfo(margin.dtype).tiny)

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

    def approach(self, walk: FAB, rows: Tensor) -> Tensor:
        """As :meth:`run`; return the distance (N,) of the nearest adversarial image, inside or outside the ball."""
        if not len(rows):
            return self.margin[rows]
        x = self.x[rows]
        images = walk.approach(self.model, x, self.y[rows], self.rng.select(rows))
        self.offer(rows, walk.kept(images, x))
        reach = walk.threat.distance(images, x)
        return torch.where(reach > 0, reach, torch.inf)

    def cascade(self, attacks: Sequence[Attack], rows: Tensor) -> None:
        """Run attacks one after another on those of the samples ``rows`` that remain."""
        if len(rows):
            self.offer(rows, cascade(attacks, self.model, self.x[rows], self.y[rows], self.rng.select(rows)))

    def taken(self, group: Tensor) -> Tensor:
        """Return the ten remaining samples of a group (N,), at most a third, with the smallest margin under Square."""
        rows = self.among(group)
        return rows[self.share[rows].argsort(stable=True)[: _part(rows, 3, _SCOUTS)]]

    def next_nearest(self) -> Tensor:
        """Return the next samples that are attacked as ones near the boundary, since its distance differs by network.

        Five, or one in 25 of the remaining ones if that is more, or one in ten if that is less.
        """
        rows = self.among(~self.tried)
        return self.nearer(rows, max(_part(rows, 10, _NEXT), len(rows) // _EVERY))

    def record_ascent(self, rows: Tensor) -> None:
        """Record the margins of the samples that ascent left right."""
        self.left += len(rows)
        self.ascended[rows] = self.margin[rows]
        self.close[rows] = (self.ascended[rows] < self.near * self.clean[rows]) | (self.ascended[rows] <= 0)

    def fooled_far(self, rows: Tensor) -> int:
        """Return how many of these samples are fooled now and were left far from the boundary by ascent."""
        return int((~self.right[rows] & ~self.close[rows]).sum())

    def record_square(self, rows: Tensor, margin: Tensor) -> None:
        """Record the final margins (N,) of Square."""
        self.share[rows] = self.relative(rows, margin)
        self.ahead[rows] = margin < self.ascended[rows]
        if self.mode == "schedule":
            self.ahead[rows] |= self.share[rows] < _HALF


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
