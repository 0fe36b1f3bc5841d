"""The fast ensemble: the robust accuracy of the standard ensemble with fewer passes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

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

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        full = AutoAttack(self.norm, self.eps, eot=self.eot)
        if is_stochastic(model):
            return replace(full, version="rand").perturb(model, x, y, rng)
        search = _Search(model, x, y)
        *gradients, black_box = full.members(search.classes)
        if not len(search.remaining):
            return search.image
        try:
            rows = search.remaining
            goal = Objective.untargeted(y[rows], "ce")
            ascent = APGD(self.norm, self.eps, steps=self.first)
            search.offer(rows, ascent.ascend(model, x[rows], goal, rng.select(rows))[0])
        except NoGradientError as error:
            warnings.warn(f"only Square was run: {error}", RobGIBWarning, stacklevel=2)
            search.run(black_box, search.remaining, rng)
            return search.image
        untargeted, targeted, along = gradients
        towards = APGD(self.norm, self.eps, loss=search.loss, targets=self.finalists)
        findings = self._rounds(search, rng)
        if not findings.blind:
            self._finish(search, findings, [towards], black_box, rng)
            if not findings.blind:
                return search.image
        reason = (
            f"FAB-T, Square or large-to-small APGD fooled {findings.fooled} of {findings.remaining} images that "
            "gradient ascent had left right and far from the boundary"
        )
        if findings.helped:
            findings = self._rounds(search, rng, large_to_small=True)
        if not findings.blind:
            members = [replace(self._schedule, loss="margin"), replace(towards, schedule_start=self.schedule_start)]
            self._finish(search, findings, members, black_box, rng)
        schedule = f"APGD used a large-to-small schedule from {self.schedule_start:g} eps"
        remedy = "AutoAttack was run on the rest" if findings.blind else schedule
        warnings.warn(f"{reason}: gradients are uninformative, and {remedy}", RobGIBWarning, stacklevel=2)
        if not findings.blind:
            return search.image
        # The stronger of FAB-T and Square runs first, and ascent last, since it spends all steps on remaining images.
        walks = [replace(self._along, targets=self.targets, steps=_SHORT_WALK), along]
        others = [*walks, black_box] if findings.by_walks >= findings.by_probes else [black_box, *walks]
        rows = search.remaining
        search.offer(rows, cascade([*others, untargeted, targeted], model, x[rows], y[rows], rng.select(rows)))
        return search.image

    def _rounds(self, search: _Search, rng: SampleRNG, large_to_small: bool = False) -> _Findings:
        """Run rounds 2 to 4 on ten samples, and on the rest unless these show that ascent fails."""
        findings = _Findings(search, self.near, large_to_small)
        scouts = _some(search.right, _SCOUTS)
        for group, least in ((scouts, _FEW), (~scouts, _TWO)):
            findings.scouting = group is scouts and bool((search.right & ~scouts).any())
            self._explore(search, group, findings, rng)
            if group is scouts and not large_to_small:
                findings.by_schedule += self._check_by_schedule(search, search.among(group), findings, rng)
            findings.blind = findings.by_schedule >= _TWO or findings.fooled >= max(least, _BLIND * findings.remaining)
            if findings.blind:
                break
        return findings

    def _finish(
        self, search: _Search, findings: _Findings, members: Sequence[Attack], black_box: Attack, rng: SampleRNG
    ) -> None:
        """Run round 5: long members near the boundary, and Square if it reached a smaller margin than ascent.

        Before and after it, other attacks check a few samples far from the boundary, those of the smallest margin.
        """
        before = findings.fooled
        if not findings.large_to_small:
            rows = findings.taken(~findings.close & ~findings.ahead)
            findings.by_schedule += self._check_by_schedule(search, rows, findings, rng)
            findings.blind = findings.fooled - before >= _TWO
            if findings.blind:
                return
        tried, fooled = findings.close.clone(), True
        self._push(search, search.among(tried), findings, members, rng)
        # The useful distance differs between networks: further samples follow as long as any is fooled.
        while fooled:
            rows = search.among(~tried)
            rows = search.nearer(rows, max(_part(rows, 10, _NEXT), len(rows) // _EVERY))
            tried[rows] = True
            self._push(search, rows, findings, members, rng)
            fooled = not bool(search.right[rows].all())
        search.run(black_box, search.among(findings.ahead), rng)
        long_probe = Square(self.norm, self.eps, queries=_LAST * self.probe, eot=self.eot)
        findings.by_probes += self._offered(search, long_probe, findings.taken(~tried & ~findings.ahead), findings, rng)
        findings.blind = findings.fooled - before >= _TWO

    @staticmethod
    def _offered(search: _Search, attack: Attack, rows: Tensor, findings: _Findings, rng: SampleRNG) -> int:
        """Run an attack on the remaining samples of ``rows``; return how many it fooled that ascent had left far."""
        rows = search.still(rows)
        search.run(attack, rows, rng)
        return findings.fooled_far(rows)

    def _check_by_schedule(self, search: _Search, rows: Tensor, findings: _Findings, rng: SampleRNG) -> int:
        """Run large-to-small APGD on the samples ``rows``; return how many it fooled that ascent had left far."""
        before = int(search.right[rows].sum())
        fell = self._offered(search, self._schedule, rows, findings, rng)
        findings.helped |= int(search.right[rows].sum()) < before
        return fell

    def _walk(self, search: _Search, findings: _Findings, rng: SampleRNG) -> None:
        """Run a long FAB-T on five remaining samples, and on the next as long as any is fooled.

        If it came near the ball along few boundaries, it continues along more.
        """
        walk = replace(self._along, steps=2 * self.long)
        tried, near = findings.walked, torch.zeros_like(search.right)
        fooled = True
        while fooled:
            rows = search.among(~tried)
            rows = rows[search.margin[rows].argsort(stable=True)[:_NEXT]]
            tried[rows] = True
            reach = search.approach(walk, rows, rng)
            near[rows] = reach <= _BEYOND * self.eps
            fooled = not bool(search.right[rows].all())
        if bool((tried & ~search.right).any()):
            search.run(replace(walk, targets=self.targets, skip=self.boundaries), search.among(near), rng)

    @property
    def _along(self) -> FAB:
        """The FAB-T of round 4."""
        return FAB(self.norm, self.eps, targeted=True, targets=self.boundaries, steps=self.boundary_steps)

    @property
    def _schedule(self) -> APGD:
        """APGD with a large-to-small eps schedule."""
        return APGD(self.norm, self.eps, steps=2 * self.long, schedule_start=self.schedule_start)

    def _explore(self, search: _Search, group: Tensor, findings: _Findings, rng: SampleRNG) -> None:
        """Run ascent and round 4 on the remaining samples of a group (N,)."""
        if findings.large_to_small:
            self._ascend_by_schedule(search, group, findings, rng)
        else:
            self._ascend(search, group, rng)
        remaining = search.among(group)
        findings.record_ascent(remaining)
        along = search.right & group & ~findings.walked
        few = _some(along, max(_LOOKED, int(along.sum()) // 10))
        for part in (few, along & ~few):
            rows = search.among(part)
            findings.by_walks += self._offered(search, self._along, rows, findings, rng)
            if bool(search.right[rows].all()):
                break
        rows = search.among(group)
        queries = _LONGER * self.probe if findings.large_to_small else self.probe
        probe = Square(self.norm, self.eps, queries=queries, eot=self.eot)
        findings.record_square(rows, search.run(probe, rows, rng))
        findings.by_probes += findings.fooled_far(rows)

    def _push(
        self, search: _Search, rows: Tensor, findings: _Findings, members: Sequence[Attack], rng: SampleRNG
    ) -> None:
        """Attack samples near the boundary: ascents, random search, then long members."""
        self._ascend_further(search, rows, 2 * self.long, rng)
        if not findings.large_to_small:
            self._restart(search, rows, rng)
            self._polish(search, rows, rng)
        rows = search.still(rows)
        if len(rows):
            x, y = search.x[rows], search.y[rows]
            search.offer(rows, cascade(members, search.model, x, y, rng.select(rows)))

    def _restart(self, search: _Search, rows: Tensor, rng: SampleRNG) -> None:
        """Run ascents from results of a short Square, towards the likeliest class on the clean or the best image."""
        probe = Square(self.norm, self.eps, queries=self.probe, eot=self.eot)
        for turn in range(_RESTARTS):
            rows = search.still(rows)
            if not len(rows):
                return
            start = probe.perturb(search.model, search.x[rows], search.y[rows], rng.select(rows))
            targets = search.nearest(rows) if turn % 2 else search.likeliest[rows]
            search.offer(rows, self._towards(search, rows, targets, self.long, rng, start))

    def _polish(self, search: _Search, rows: Tensor, rng: SampleRNG) -> None:
        """Alternate random search from the best images and a short ascent, on the samples that still improve.

        Ascent may stall at a kink of the network; one changed square can be enough to continue.
        """
        walk = Square(self.norm, self.eps, queries=_PIECE, eot=self.eot)
        for _ in range(_PIECES):
            rows = search.still(rows)
            if not len(rows):
                return
            before = search.margin[rows]
            goal = Objective.untargeted(search.y[rows], "margin")
            search.offer(rows, walk.search(search.model, search.x[rows], goal, rng.select(rows), search.image[rows])[0])
            self._ascend_further(search, search.still(rows), _SETTLE, rng)
            rows = rows[search.margin[rows] < _GAIN * before]

    def _ascend_further(self, search: _Search, rows: Tensor, steps: int, rng: SampleRNG) -> None:
        """Run ascent from the best images, towards the class that is likeliest there."""
        if len(rows):
            targets, start = search.nearest(rows), search.image[rows]
            search.offer(rows, self._towards(search, rows, targets, steps, rng, start))

    def _towards(
        self, search: _Search, rows: Tensor, targets: Tensor, steps: int, rng: SampleRNG, start: Tensor | None
    ) -> Tensor:
        """Run ascent towards one class of each sample; return the images."""
        goal = Objective(search.loss, targets, Criterion(search.y[rows]), targeted=True)
        ascent = APGD(self.norm, self.eps, steps=steps)
        return ascent.ascend(search.model, search.x[rows], goal, rng.select(rows), start)[0]

    def _ascend_by_schedule(self, search: _Search, group: Tensor, findings: _Findings, rng: SampleRNG) -> None:
        """Run large-to-small APGD on the cross-entropy repeatedly, until it fools few samples."""
        fading = False
        for share in _SCHEDULE_SHARES:
            rows = search.among(group)
            if fading:
                rows = search.nearer(rows, max(_SCOUTS, len(rows) // 2))
            if not len(rows):
                return
            ascent = replace(self._schedule, steps=max(1, round(share * self._schedule.steps)))
            search.run(ascent, rows, rng)
            fooled = len(rows) - len(search.still(rows))
            due = share == 1 and fooled < _YIELD * len(rows)
            if due and not findings.scouting and not bool(findings.walked.any()):
                self._walk(search, findings, rng)
            if fooled < _FADING * len(rows):
                if fading or share == 1:
                    return
                fading = True

    def _ascend(self, search: _Search, group: Tensor, rng: SampleRNG) -> None:
        """Run rounds 2 and 3."""
        model, x, y = search.model, search.x, search.y
        rows = search.among(group)
        if not len(rows):
            return
        count = min(self.targets, search.classes - 1)
        candidates = wrong_classes(search.logits, y)[:, : 2 * self.targets]
        reach = boundary_distances(model, x[rows], y[rows], candidates[rows], self.norm)
        order = torch.zeros_like(candidates[:, :count])
        order[rows] = candidates[rows].gather(1, reach.argsort(dim=1, stable=True)[:, :count])
        front = _Front(search, min(self.finalists, count))

        def towards(targets: Tensor, rows: Tensor, steps: int, start: Tensor | None = None) -> None:
            images = self._towards(search, rows, targets, steps, rng, start)
            front.offer(rows, targets, images, search.offer(rows, images))

        for rank in range(count):
            rows = search.among(group)
            if not len(rows):
                return
            towards(order[rows, rank], rows, self.short)
        # Keep the order, since ascent changes it.
        ranked = front.margin.argsort(dim=1, stable=True)
        targets, images = front.target.clone(), front.image.clone()
        for place in range(front.margin.shape[1]):
            rows = search.among(group)
            if not len(rows):
                return
            which = ranked[rows, place]
            towards(targets[rows, which], rows, self.long, images[rows, which])


def _part(rows: Tensor, of: int, most: int) -> int:
    """Return one in ``of`` samples, rounded up, at most ``most``."""
    return min(most, -(-len(rows) // of))


def _some(which: Tensor, most: int) -> Tensor:
    """Return at most ``most`` samples of a mask (N,), evenly spaced, as a mask."""
    rows = which.nonzero().squeeze(1)
    some = torch.zeros_like(which)
    some[rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]] = True
    return some


class _Search:
    """The state of all samples: the best image of each so far, its margin, and whether it is classified correctly."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        with torch.no_grad():
            self.logits = model(x)
        self.classes = self.logits.shape[1]
        goal = Objective.untargeted(y, "margin")
        self.clean = -goal.value(self.logits)
        self.image, self.margin = x.clone(), self.clean.clone()
        self.right = ~goal.criterion(self.logits)
        self.likeliest = wrong_classes(self.logits, y)[:, 0]
        self.loss: Loss = "dlr" if self.classes >= _TARGETED_CLASSES else "margin"

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
        return rows[self.share(rows, self.margin[rows]).argsort(stable=True)[:most]]

    def share(self, rows: Tensor, margin: Tensor) -> Tensor:
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

    def run(self, attack: Attack, rows: Tensor, rng: SampleRNG) -> Tensor:
        """Run an attack on the samples ``rows``, and keep improvements; returns: as for :meth:`offer`."""
        if not len(rows):  # a network may not accept an empty batch
            return self.margin[rows]
        return self.offer(rows, attack.perturb(self.model, self.x[rows], self.y[rows], rng.select(rows)))

    def approach(self, walk: FAB, rows: Tensor, rng: SampleRNG) -> Tensor:
        """As :meth:`run`; return the distance (N,) of the nearest adversarial image, inside or outside the ball."""
        if not len(rows):
            return self.margin[rows]
        x = self.x[rows]
        images = walk.approach(self.model, x, self.y[rows], rng.select(rows))
        self.offer(rows, walk.kept(images, x))
        reach = walk.threat.distance(images, x)
        return torch.where(reach > 0, reach, torch.inf)


class _Findings:
    """Results of rounds 2 to 4, for the choice of round 5.

    Attributes:
        large_to_small: whether ascent uses a large-to-small eps schedule.
        remaining: number of samples that ascent left right.
        by_walks: number of them, far from the boundary, that FAB-T fooled.
        by_probes: number that Square fooled.
        by_schedule: number that large-to-small APGD fooled.
        share: margin (N,) after Square, as a share of the clean margin.
        close: whether ascent came near the boundary (N,).
        walked: whether the long FAB-T has run (N,).
        ahead: whether Square reached a smaller margin than ascent (N,); with ``large_to_small``, half the clean margin.
        blind: whether the other attacks show that ascent fails.
        scouting: whether the current group is the first ten samples.
        helped: whether large-to-small APGD fooled any sample.
    """

    blind = helped = scouting = False

    def __init__(self, search: _Search, near: float, large_to_small: bool = False) -> None:
        self.search, self.near, self.large_to_small = search, near, large_to_small
        self.remaining = self.by_walks = self.by_probes = self.by_schedule = 0
        self.walked, self.close, self.ahead = (torch.zeros_like(search.right) for _ in range(3))
        self.margin = search.margin.clone()
        self.share = torch.ones_like(self.margin)

    @property
    def fooled(self) -> int:
        """Number of samples that other attacks fooled and that ascent had left far from the boundary.

        A few may be chance. More show that ascent fails, and then its results on other samples are unreliable.
        """
        return self.by_walks + self.by_probes + self.by_schedule

    def taken(self, group: Tensor) -> Tensor:
        """Return the ten remaining samples of a group (N,), at most a third, with the smallest margin under Square."""
        rows = self.search.among(group)
        return rows[self.share[rows].argsort(stable=True)[: _part(rows, 3, _SCOUTS)]]

    def record_ascent(self, rows: Tensor) -> None:
        """Record the margins of the samples that ascent left right."""
        self.remaining += len(rows)
        self.margin[rows] = self.search.margin[rows]
        self.close[rows] = (self.margin[rows] < self.near * self.search.clean[rows]) | (self.margin[rows] <= 0)

    def fooled_far(self, rows: Tensor) -> int:
        """Return how many of these samples are fooled now and were left far from the boundary by ascent."""
        return int((~self.search.right[rows] & ~self.close[rows]).sum())

    def record_square(self, rows: Tensor, margin: Tensor) -> None:
        """Record the final margins (N,) of Square."""
        self.share[rows] = self.search.share(rows, margin)
        self.ahead[rows] = margin < self.margin[rows]
        if self.large_to_small:
            self.ahead[rows] |= self.share[rows] < _HALF


class _Front:
    """The best images of each sample towards a few different classes."""

    def __init__(self, search: _Search, places: int) -> None:
        count = len(search.x)
        self.margin = torch.full((count, places), torch.inf, dtype=search.margin.dtype, device=search.x.device)
        self.target = torch.full((count, places), -1, device=search.x.device)
        self.image = search.x[:, None].repeat(1, places, *([1] * (search.x.ndim - 1)))

    def offer(self, rows: Tensor, targets: Tensor, images: Tensor, margin: Tensor) -> None:
        """Replace the worst images of the samples ``rows`` by ``images`` towards ``targets`` that are better."""
        worst, place = self.margin[rows].max(1)
        # If no wrong class has a finite logit the margin is infinite too; it must still replace an empty place.
        margin = margin.clamp_max(torch.finfo(margin.dtype).max)
        better = margin < worst
        rows, place = rows[better], place[better]
        self.margin[rows, place], self.target[rows, place] = margin[better], targets[better]
        self.image[rows, place] = images[better]
