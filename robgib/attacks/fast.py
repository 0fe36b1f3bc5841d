"""The standard ensemble's answer in a fraction of its passes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD, WIDEST
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import Attack
from robgib.attacks.fab import FAB
from robgib.attacks.linearization import boundary_distances, wrong_classes
from robgib.attacks.objective import Criterion, Loss, Objective, answers_at_random
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.options import AtLeastOne, Count, NonNegative
from robgib.runtime import SampleRNG

__all__ = [
    "FastEnsemble",
]

_BLIND = 0.02  # of the samples that a climb left: so many felled from elsewhere show that it is misled
_SCOUTS = 10  # samples that go through rounds 2 to 4 ahead: a climb that is misled shows before all have paid for it
_FEW = 3  # of them, felled from elsewhere, are no luck: were it 2% of all, 3 of 10 would come up once in 1,100 times
_TWO = 2  # felled by a climb from afar or the last look, or of all that stood: one alone may be luck
_SHORT_WALK = 40  # steps of FAB-T towards each class, on networks that mislead, before AutoAttack's own
_AFAR = (0.25, 0.5, 1, 1, 1, 1)  # of their steps: climbs from afar, one after the other; short ones fell most already
_FADING = 0.05  # of the samples: where a climb from afar fells fewer, half of them get the next, and then none
_LOOKED = 20  # samples, or a tenth, that FAB-T looks at: the others follow where any falls
_RESTARTS = 8  # climbs from what a short Square found, near the boundary
_PIECES = 5  # of Square, on from the best image
_PIECE = 500  # queries; in pieces of 250 they find less
_SETTLE = 30  # steps of a climb after each, since squares leave the pixels at the ball's faces
_GAIN = 0.8  # of the lead: where a piece left more, random search has no more to give
_NEXT = 5  # samples, beyond those near the boundary, that get the same to show whether more would fall
_EVERY = 25  # of so many that stand one at least is among these
_LAST = 20  # times as many queries of Square, on ten samples at the end, judge the whole
_LONGER = 5  # times as many queries of Square judge climbs from afar: where climbing has failed once, it may again
_YIELD = 0.2  # of the samples: where a climb from afar fells fewer, FAB-T at length may fell more
_BEYOND = 1.1  # eps: where FAB-T came so near along three boundaries, it may come through along others
_HALF = 0.5  # of the clean lead: where so many queries take that, Square goes on, whatever the climb says
_TARGETED_CLASSES = 4  # below so many the DLR loss has no targeted form


@dataclass(frozen=True)
class FastEnsemble(Attack):
    """AutoAttack's robust accuracy for a fraction of its passes: full effort goes where an image came near.

    A sample that stays right is most often nowhere near a boundary, and a few steps towards each class show it; one
    that only AutoAttack's long members fool comes close on the way. So each round goes on from what the last one left:

    1. APGD on the cross-entropy, ``first`` steps.
    2. APGD towards the ``targets`` wrong classes whose linearised boundaries are nearest to the clean image (logit gap
       over gradient norm, as in MALT, Melamed et al. 2024), ``short`` steps each.
    3. The ``finalists`` best of these targets again, from their best images, ``long`` steps each.
    4. Two looks from elsewhere, since a climb may stand still on a slope that misleads it: FAB-T, which walks along
       ``boundaries`` linearised boundaries, ``boundary_steps`` steps each, and Square, ``probe`` queries. FAB-T looks
       at twenty samples (or a tenth), and at the others where any of these falls.
    5. On the samples of which an image came within ``near`` of the boundary, as a share of the clean image's lead:
       APGD on from that image; eight climbs from what Square finds in ``probe`` queries; random search and a short
       climb in turn, on from the best image, for as long as they take a fifth of the lead, five times at most; APGD-T
       towards the ``finalists`` likeliest classes. The next five follow (one in 25 that stand, if that is more; one in
       ten, if that is less), and the next, for as long as any of them falls. Where Square got further than the climb
       did on a sample, it is run with AutoAttack's queries.

    Where round 4 felled 2% and more of the samples that the climb had left right (two at least, and far from the
    boundary), gradients mislead. Ten samples go ahead through rounds 2 to 4, and through a climb from afar, in balls
    that shrink from ``widest`` eps: where three of them show it, or two by that climb, the others do not climb so. Ten
    (a third of what stands, if that is less), those that Square took furthest, are looked at with a climb from afar
    before round 5, and ten with twenty times the queries of Square after it; two that fall show it too. If a climb from
    afar fooled any of those that it was tried on, such climbs then replace rounds 2 and 3, short ones first, and all
    but the first step of round 5. After a short one that fells less than 5% only the nearer half is climbed for; where
    that, or a full climb, fells less than 5%, none follows. Where a full one fells less than a fifth of those that it
    was tried on, FAB-T takes AutoAttack's number of steps on five samples, and on the next five for as long as any
    falls. Square takes five times as many queries in that round 4, and goes on where they took half of the clean lead.
    If round 4 belies these climbs too, all samples that stand are AutoAttack's: what felled more, FAB-T (a shorter one
    before AutoAttack's) or Square, comes first, and its members that climb come last. A note says which.

    What it can miss is a sample that never came near by any of these and that AutoAttack fools all the same. Since
    round 5 looks at all samples at once, what a sample gets may depend on those that it is attacked with.

    Fields:
        first: steps of round 1.
        targets: classes of round 2.
        short: steps of round 2 for each class.
        finalists: classes of round 3.
        long: steps of round 3 for each class.
        boundaries: classes of FAB-T in round 4.
        boundary_steps: steps of FAB-T for each class.
        probe: queries of Square in round 4.
        near: lead of the true class, as a share of its lead on the clean image, within which round 5 is run.
        widest: radius of the first ball of climbs from afar, in eps.

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
    widest: AtLeastOne = WIDEST

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`; of a sample that never comes near, on a network that does not mislead."""
        return self.first + self.targets * (self.short + 2) + self.finalists * self.long + self._looks

    @property
    def _looks(self) -> int:
        """Gradients of round 4: FAB takes three passes a step."""
        return 3 * self.boundaries * self.boundary_steps // 2 + self.probe // 2

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        full = AutoAttack(self.norm, self.eps, eot=self.eot)
        if answers_at_random(model):
            return replace(full, version="rand").perturb(model, x, y, rng)
        search = _Search(model, x, y)
        *gradients, black_box = full.members(search.classes)
        if not len(search.left):
            return search.image
        try:
            rows = search.left
            goal = Objective.untargeted(y[rows], "ce")
            ascent = APGD(self.norm, self.eps, steps=self.first)
            search.offer(rows, ascent.ascend(model, x[rows], goal, rng.select(rows))[0])
        except NoGradientError as error:
            warnings.warn(f"only Square was run: {error}", RobGIBWarning, stacklevel=2)
            search.run(black_box, search.left, rng)
            return search.image
        untargeted, targeted, along = gradients
        towards = APGD(self.norm, self.eps, loss=search.loss, targets=self.finalists)
        seen = self._rounds(search, rng)
        if not seen.blind:
            self._finish(search, seen, [towards], black_box, rng)
            if not seen.blind:
                return search.image
        told = f"of {seen.stood} images that climbing left right, {seen.felled}, far from the boundary, fell to "
        told += "FAB-T, Square or a climb from afar"
        if seen.helped:
            seen = self._rounds(search, rng, from_afar=True)
        if not seen.blind:
            afar = [replace(self._afar, loss="margin"), replace(towards, widest=self.widest)]
            self._finish(search, seen, afar, black_box, rng)
        instead = "AutoAttack was run on the rest" if seen.blind else f"climbs began in balls of {self.widest:g} eps"
        warnings.warn(f"{told}: gradients mislead here, and {instead}", RobGIBWarning, stacklevel=2)
        if not seen.blind:
            return search.image
        # What felled more goes first, and what climbs last: it would spend all its steps on images that others fell.
        walks = [replace(self._along, targets=self.targets, steps=_SHORT_WALK), along]
        others = [*walks, black_box] if seen.by_walks >= seen.by_probes else [black_box, *walks]
        rows = search.left
        search.offer(rows, cascade([*others, untargeted, targeted], model, x[rows], y[rows], rng.select(rows)))
        return search.image

    def _rounds(self, search: _Search, rng: SampleRNG, from_afar: bool = False) -> _Seen:
        """Climb, and look from elsewhere: ten samples ahead, and the rest where these do not show a climb misled."""
        seen = _Seen(search, self.near, from_afar)
        scouts = _some(search.right, _SCOUTS)
        for group, least in ((scouts, _FEW), (~scouts, _TWO)):
            seen.scouting = group is scouts and bool((search.right & ~scouts).any())
            self._explore(search, group, seen, rng)
            if group is scouts and not from_afar:
                seen.by_climbs += self._look_from_afar(search, search.among(group), seen, rng)
            seen.blind = seen.by_climbs >= _TWO or seen.felled >= max(least, _BLIND * seen.stood)
            if seen.blind:
                break
        return seen

    def _finish(
        self, search: _Search, seen: _Seen, members: Sequence[Attack], black_box: Attack, rng: SampleRNG
    ) -> None:
        """Round 5: long members where an image came near, and Square where it got further than the climb.

        Before and after it, a look at a few samples that stand far from the boundary, those that Square took furthest.
        """
        before = seen.felled
        if not seen.from_afar:
            rows = seen.taken(~seen.close & ~seen.ahead)
            seen.by_climbs += self._look_from_afar(search, rows, seen, rng)
            seen.blind = seen.felled - before >= _TWO
            if seen.blind:
                return
        tried, felled = seen.close.clone(), True
        self._push(search, search.among(tried), seen, members, rng)
        # How near is near enough differs between networks: the next few follow for as long as some of them fall.
        while felled:
            rows = search.among(~tried)
            rows = search.nearer(rows, max(_part(rows, 10, _NEXT), len(rows) // _EVERY))
            tried[rows] = True
            self._push(search, rows, seen, members, rng)
            felled = not bool(search.right[rows].all())
        search.run(black_box, search.among(seen.ahead), rng)
        long_probe = Square(self.norm, self.eps, queries=_LAST * self.probe, eot=self.eot)
        seen.by_probes += self._offered(search, long_probe, seen.taken(~tried & ~seen.ahead), seen, rng)
        seen.blind = seen.felled - before >= _TWO

    @staticmethod
    def _offered(search: _Search, attack: Attack, rows: Tensor, seen: _Seen, rng: SampleRNG) -> int:
        """Run an attack on the samples ``rows`` that stand; return how many fell that the climb had left far."""
        rows = search.still(rows)
        search.run(attack, rows, rng)
        return seen.afar(rows)

    def _look_from_afar(self, search: _Search, rows: Tensor, seen: _Seen, rng: SampleRNG) -> int:
        """Climb from afar on the samples ``rows`` that stand; return how many fell that the climb had left far."""
        before = int(search.right[rows].sum())
        fell = self._offered(search, self._afar, rows, seen, rng)
        seen.helped |= int(search.right[rows].sum()) < before
        return fell

    def _walk(self, search: _Search, seen: _Seen, rng: SampleRNG) -> None:
        """FAB-T at length, on five samples that stand, and the next for as long as any of these falls.

        Where it came near along few boundaries, it goes along more.
        """
        walk = replace(self._along, steps=2 * self.long)
        tried, near = seen.walked, torch.zeros_like(search.right)
        felled = True
        while felled:
            rows = search.among(~tried)
            rows = rows[search.lead[rows].argsort(stable=True)[:_NEXT]]
            tried[rows] = True
            found = search.approach(walk, rows, rng)
            near[rows] = found <= _BEYOND * self.eps
            felled = not bool(search.right[rows].all())
        if bool((tried & ~search.right).any()):
            search.run(replace(walk, targets=self.targets, skip=self.boundaries), search.among(near), rng)

    @property
    def _along(self) -> FAB:
        """FAB-T of round 4."""
        return FAB(self.norm, self.eps, targeted=True, targets=self.boundaries, steps=self.boundary_steps)

    @property
    def _afar(self) -> APGD:
        """A climb that begins far out."""
        return APGD(self.norm, self.eps, steps=2 * self.long, widest=self.widest)

    def _explore(self, search: _Search, group: Tensor, seen: _Seen, rng: SampleRNG) -> None:
        """Climb, and round 4, on the samples of a group (N,) that stand."""
        if seen.from_afar:
            self._climb_from_afar(search, group, seen, rng)
        else:
            self._climb(search, group, rng)
        stood = search.among(group)
        seen.climbed(stood)
        along = search.right & group & ~seen.walked
        few = _some(along, max(_LOOKED, int(along.sum()) // 10))
        for part in (few, along & ~few):
            rows = search.among(part)
            seen.by_walks += self._offered(search, self._along, rows, seen, rng)
            if bool(search.right[rows].all()):
                break
        rows = search.among(group)
        queries = _LONGER * self.probe if seen.from_afar else self.probe
        probe = Square(self.norm, self.eps, queries=queries, eot=self.eot)
        seen.sought(rows, search.run(probe, rows, rng))
        seen.by_probes += seen.afar(rows)

    def _push(self, search: _Search, rows: Tensor, seen: _Seen, members: Sequence[Attack], rng: SampleRNG) -> None:
        """All that is left for samples near the boundary: climbs, random search, then long members."""
        self._climb_on(search, rows, 2 * self.long, rng)
        if not seen.from_afar:
            self._restart(search, rows, rng)
            self._polish(search, rows, rng)
        rows = search.still(rows)
        if len(rows):
            x, y = search.x[rows], search.y[rows]
            search.offer(rows, cascade(members, search.model, x, y, rng.select(rows)))

    def _restart(self, search: _Search, rows: Tensor, rng: SampleRNG) -> None:
        """Climb from what a short Square found, towards the class likeliest on the clean image or on the best."""
        probe = Square(self.norm, self.eps, queries=self.probe, eot=self.eot)
        for turn in range(_RESTARTS):
            rows = search.still(rows)
            if not len(rows):
                return
            start = probe.perturb(search.model, search.x[rows], search.y[rows], rng.select(rows))
            targets = search.nearest(rows) if turn % 2 else search.likeliest[rows]
            search.offer(rows, self._towards(search, rows, targets, self.long, rng, start))

    def _polish(self, search: _Search, rows: Tensor, rng: SampleRNG) -> None:
        """Search at random on from the best images, and climb a little, in turn, on the samples that it takes further.

        A climb that stands still between folds of the network is one square away from a way on.
        """
        walk = Square(self.norm, self.eps, queries=_PIECE, eot=self.eot)
        for _ in range(_PIECES):
            rows = search.still(rows)
            if not len(rows):
                return
            before = search.lead[rows]
            goal = Objective.untargeted(search.y[rows], "margin")
            search.offer(rows, walk.search(search.model, search.x[rows], goal, rng.select(rows), search.image[rows])[0])
            self._climb_on(search, search.still(rows), _SETTLE, rng)
            rows = rows[search.lead[rows] < _GAIN * before]

    def _climb_on(self, search: _Search, rows: Tensor, steps: int, rng: SampleRNG) -> None:
        """Climb from the best images, towards the class that is likeliest there."""
        if len(rows):
            targets, start = search.nearest(rows), search.image[rows]
            search.offer(rows, self._towards(search, rows, targets, steps, rng, start))

    def _towards(
        self, search: _Search, rows: Tensor, targets: Tensor, steps: int, rng: SampleRNG, start: Tensor | None
    ) -> Tensor:
        """Climb towards one class of each sample; return the images."""
        goal = Objective(search.loss, targets, Criterion(search.y[rows]), targeted=True)
        climb = APGD(self.norm, self.eps, steps=steps)
        return climb.ascend(search.model, search.x[rows], goal, rng.select(rows), start)[0]

    def _climb_from_afar(self, search: _Search, group: Tensor, seen: _Seen, rng: SampleRNG) -> None:
        """Climb in shrinking balls, on the cross-entropy, again and again until it fells little."""
        fading = False
        for share in _AFAR:
            rows = search.among(group)
            if fading:
                rows = search.nearer(rows, max(_SCOUTS, len(rows) // 2))
            if not len(rows):
                return
            climb = replace(self._afar, steps=max(1, round(share * self._afar.steps)))
            search.run(climb, rows, rng)
            felled = len(rows) - len(search.still(rows))
            due = share == 1 and felled < _YIELD * len(rows)
            if due and not seen.scouting and not bool(seen.walked.any()):
                self._walk(search, seen, rng)
            if felled < _FADING * len(rows):
                if fading or share == 1:
                    return
                fading = True

    def _climb(self, search: _Search, group: Tensor, rng: SampleRNG) -> None:
        """Rounds 2 and 3."""
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
            found = self._towards(search, rows, targets, steps, rng, start)
            front.offer(rows, targets, found, search.offer(rows, found))

        for rank in range(count):
            rows = search.among(group)
            if not len(rows):
                return
            towards(order[rows, rank], rows, self.short)
        # The order now, since climbing changes it.
        ranked = front.lead.argsort(dim=1, stable=True)
        targets, images = front.target.clone(), front.image.clone()
        for place in range(front.lead.shape[1]):
            rows = search.among(group)
            if not len(rows):
                return
            which = ranked[rows, place]
            towards(targets[rows, which], rows, self.long, images[rows, which])


def _part(rows: Tensor, of: int, most: int) -> int:
    """How many make one in ``of`` samples, rounded up, ``most`` at most."""
    return min(most, -(-len(rows) // of))


def _some(which: Tensor, most: int) -> Tensor:
    """Up to ``most`` of the samples of a mask (N,), at even distances, as a mask."""
    rows = which.nonzero().squeeze(1)
    some = torch.zeros_like(which)
    some[rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]] = True
    return some


class _Search:
    """Where the samples stand: the best image of each so far, by how much the true class leads there, if it does."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        with torch.no_grad():
            self.logits = model(x)
        self.classes = self.logits.shape[1]
        goal = Objective.untargeted(y, "margin")
        self.clean = -goal.value(self.logits)
        self.image, self.lead = x.clone(), self.clean.clone()
        self.right = ~goal.criterion(self.logits)
        self.likeliest = wrong_classes(self.logits, y)[:, 0]
        self.loss: Loss = "dlr" if self.classes >= _TARGETED_CLASSES else "margin"

    @property
    def left(self) -> Tensor:
        """The samples (indices) that are still right."""
        return self.right.nonzero().squeeze(1)

    def among(self, group: Tensor) -> Tensor:
        """The samples (indices) of a group (N,) that are still right."""
        return (self.right & group).nonzero().squeeze(1)

    def still(self, rows: Tensor) -> Tensor:
        """Those of the samples ``rows`` that are still right."""
        return rows[self.right[rows]]

    def nearer(self, rows: Tensor, most: int) -> Tensor:
        """Those of the samples ``rows``, ``most`` of them, of which least is left of the lead on the clean image."""
        return rows[self.share(rows, self.lead[rows]).argsort(stable=True)[:most]]

    def share(self, rows: Tensor, lead: Tensor) -> Tensor:
        """Leads (N,) of the samples ``rows`` as shares of the clean image's; 0 where the true class ties there."""
        return lead / self.clean[rows].clamp_min(torch.finfo(lead.dtype).tiny)

    def nearest(self, rows: Tensor) -> Tensor:
        """The wrong class (N,) that is likeliest on the best image."""
        with torch.no_grad():
            return wrong_classes(self.model(self.image[rows]), self.y[rows])[:, 0]

    def offer(self, rows: Tensor, images: Tensor) -> Tensor:
        """Take what is better of ``images`` for the samples ``rows``; return the true class's lead there (N,)."""
        if not len(rows):
            return self.lead[rows]
        goal = Objective.untargeted(self.y[rows], "margin")
        with torch.no_grad():
            logits = self.model(images)
        lead, fooled = -goal.value(logits), goal.criterion(logits)
        better = fooled | (lead < self.lead[rows])
        self.image[rows[better]], self.lead[rows[better]] = images[better], lead[better]
        self.right[rows[fooled]] = False
        return lead

    def run(self, attack: Attack, rows: Tensor, rng: SampleRNG) -> Tensor:
        """Run an attack on the samples ``rows``, and take what is better; what it returns: as for :meth:`offer`."""
        if not len(rows):  # a network need not take an empty batch
            return self.lead[rows]
        return self.offer(rows, attack.perturb(self.model, self.x[rows], self.y[rows], rng.select(rows)))

    def approach(self, walk: FAB, rows: Tensor, rng: SampleRNG) -> Tensor:
        """As :meth:`run`; return how far (N,) the nearest image that fools is, in or out of the ball."""
        if not len(rows):
            return self.lead[rows]
        x = self.x[rows]
        found = walk.approach(self.model, x, self.y[rows], rng.select(rows))
        self.offer(rows, walk.kept(found, x))
        reach = walk.threat.distance(found, x)
        return torch.where(reach > 0, reach, torch.inf)


class _Seen:
    """What rounds 2 to 4 came to, for the choice of round 5.

    Attributes:
        from_afar: whether the climbs begin far out.
        stood: how many samples the climb left right.
        by_walks: how many of them, far from the boundary, FAB-T fooled.
        by_probes: how many Square did.
        by_climbs: how many a climb from afar did.
        share: what Square left of the clean lead (N,).
        close: where an image of the climb came near the boundary (N,).
        walked: where FAB-T went at length already (N,).
        ahead: where Square got further than the climb (N,), or half as far as needed after a climb from afar.
        blind: whether the looks from elsewhere show that the climb was misled.
        scouting: whether the samples that go ahead are at it, and others are to follow.
        helped: whether a climb from afar fooled any sample that it was tried on.
    """

    blind = helped = scouting = False

    def __init__(self, search: _Search, near: float, from_afar: bool = False) -> None:
        self.search, self.near, self.from_afar = search, near, from_afar
        self.stood = self.by_walks = self.by_probes = self.by_climbs = 0
        self.walked, self.close, self.ahead = (torch.zeros_like(search.right) for _ in range(3))
        self.lead = search.lead.clone()
        self.share = torch.ones_like(self.lead)

    @property
    def felled(self) -> int:
        """How many samples a look from elsewhere fooled that the climb had left far from the boundary.

        A few are luck; more show a slope that misleads the climb, and then what it says of the others is worth no more.
        """
        return self.by_walks + self.by_probes + self.by_climbs

    def taken(self, group: Tensor) -> Tensor:
        """Of a group (N,) that stands, the ten (or a third, if that is less) that Square took furthest."""
        rows = self.search.among(group)
        return rows[self.share[rows].argsort(stable=True)[: _part(rows, 3, _SCOUTS)]]

    def climbed(self, rows: Tensor) -> None:
        """Note how far the climb came on the samples that it left right."""
        self.stood += len(rows)
        self.lead[rows] = self.search.lead[rows]
        self.close[rows] = (self.lead[rows] < self.near * self.search.clean[rows]) | (self.lead[rows] <= 0)

    def afar(self, rows: Tensor) -> int:
        """How many of these samples are fooled now that the climb left far from the boundary."""
        return int((~self.search.right[rows] & ~self.close[rows]).sum())

    def sought(self, rows: Tensor, lead: Tensor) -> None:
        """Note the leads (N,) at which Square ended."""
        self.share[rows] = self.search.share(rows, lead)
        self.ahead[rows] = lead < self.lead[rows]
        if self.from_afar:
            self.ahead[rows] |= self.share[rows] < _HALF


class _Front:
    """The best images of each sample towards different classes, a few."""

    def __init__(self, search: _Search, places: int) -> None:
        count = len(search.x)
        self.lead = torch.full((count, places), torch.inf, dtype=search.lead.dtype, device=search.x.device)
        self.target = torch.full((count, places), -1, device=search.x.device)
        self.image = search.x[:, None].repeat(1, places, *([1] * (search.x.ndim - 1)))

    def offer(self, rows: Tensor, targets: Tensor, images: Tensor, lead: Tensor) -> None:
        """Take ``images`` towards ``targets`` for the samples ``rows`` where they are better than the worst held."""
        worst, place = self.lead[rows].max(1)
        # Where no wrong class has a finite logit the lead is infinite too, and yet better than none.
        lead = lead.clamp_max(torch.finfo(lead.dtype).max)
        better = lead < worst
        rows, place = rows[better], place[better]
        self.lead[rows, place], self.target[rows, place] = lead[better], targets[better]
        self.image[rows, place] = images[better]
