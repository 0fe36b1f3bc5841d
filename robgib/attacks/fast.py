"""The standard ensemble's answer in a fraction of its passes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import Attack
from robgib.attacks.fab import FAB
from robgib.attacks.linearization import boundary_distances, wrong_classes
from robgib.attacks.objective import Criterion, Loss, Objective, answers_at_random
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.options import Count, NonNegative
from robgib.runtime import SampleRNG

__all__ = [
    "FastEnsemble",
]

_BLIND = 0.02  # of the samples that a climb left: so many felled from elsewhere show that it is misled
_SCOUTS = 10  # samples that go through rounds 2 to 4 ahead: a climb that is misled shows before all have paid for it
_FEW = 3  # of them, felled from elsewhere, are no luck: were it 2% of all, 3 of 10 would come up once in 1,100 times
_SHORT_WALK = 40  # steps of FAB-T towards each class, on networks that mislead, before AutoAttack's own
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
       ``boundaries`` linearised boundaries, ``boundary_steps`` steps each, and Square, ``probe`` queries.
    5. On the samples of which an image came within ``near`` of the boundary, as a share of the clean image's lead:
       APGD on from that image, then AutoAttack's APGD-CE, and its APGD-T twice, from other starts (its FAB-T costs more
       than a second APGD-T and fools fewer of these). Where Square got further than the climb did on a sample, it goes
       on to AutoAttack's queries.

    Where round 4 felled more than 2% of the samples that the climb had left far from the boundary, gradients mislead:
    all samples that stand are AutoAttack's, with a note. What felled more, FAB-T (a shorter one before AutoAttack's) or
    Square, comes first, and its members that climb come last. Ten samples go ahead through rounds 2 to 4, and where
    three of them show it, the others do not climb first.

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

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> x, y = data.test.x[:40], data.test.y[:40]
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

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return self.first + self.targets * (self.short + 1) + self.finalists * self.long + self._looks

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
        try:
            rows = search.left
            goal = Objective.untargeted(y[rows], "ce")
            ascent = APGD(self.norm, self.eps, steps=self.first)
            search.offer(rows, ascent.ascend(model, x[rows], goal, rng.select(rows))[0])
        except NoGradientError as error:
            warnings.warn(f"only Square was run: {error}", RobGIBWarning, stacklevel=2)
            rows = search.left
            search.offer(rows, black_box.perturb(model, x[rows], y[rows], rng.select(rows)))
            return search.image
        rows = search.left
        scouts = torch.zeros_like(search.right)
        scouts[rows[torch.linspace(0, len(rows) - 1, min(_SCOUTS, len(rows))).long()]] = True
        seen = _Seen(search, self.near)
        for group, least in ((scouts, _FEW), (~scouts, 2)):
            self._explore(search, group, seen, rng)
            blind = seen.felled >= max(least, _BLIND * seen.stood)
            if blind:
                break
        rows = search.left
        if not blind:
            self._onward(search, rows[seen.close[rows]], rng)
            rows = search.left
            near = rows[seen.close[rows]]
            untargeted, targeted, _ = gradients
            found = cascade((untargeted, targeted, targeted), model, x[near], y[near], rng.select(near))
            search.offer(near, found)
            rows = search.left
            ahead = rows[seen.ahead[rows]]
            search.offer(ahead, black_box.perturb(model, x[ahead], y[ahead], rng.select(ahead)))
            return search.image
        warnings.warn(
            f"{seen.felled} of {seen.stood} images that climbing left right, and far from the boundary, fell to FAB-T "
            "or Square: gradients mislead here, and AutoAttack was run on the rest",
            RobGIBWarning,
            stacklevel=2,
        )
        # What felled more goes first, and what climbs last: it would spend all its steps on images that others fell.
        *climbs, along = gradients
        walks = [replace(self._along, targets=self.targets, steps=_SHORT_WALK), along]
        others = [*walks, black_box] if seen.by_walks >= seen.by_probes else [black_box, *walks]
        members = [*others, *climbs]
        search.offer(rows, cascade(members, model, x[rows], y[rows], rng.select(rows)))
        return search.image

    @property
    def _along(self) -> FAB:
        """FAB-T of round 4."""
        return FAB(self.norm, self.eps, targeted=True, targets=self.boundaries, steps=self.boundary_steps)

    def _explore(self, search: _Search, group: Tensor, seen: _Seen, rng: SampleRNG) -> None:
        """Rounds 2 to 4 on the samples of a group (N,) that stand."""
        model, x, y = search.model, search.x, search.y
        self._climb(search, group, rng)
        stood = search.among(group)
        seen.climbed(stood)
        search.offer(stood, self._along.perturb(model, x[stood], y[stood], rng.select(stood)))
        seen.by_walks += seen.afar(stood)
        rows = search.among(group)
        probe = Square(self.norm, self.eps, queries=self.probe, eot=self.eot)
        seen.sought(rows, search.offer(rows, probe.perturb(model, x[rows], y[rows], rng.select(rows))))
        seen.by_probes += seen.afar(rows)

    def _onward(self, search: _Search, rows: Tensor, rng: SampleRNG) -> None:
        """Climb on from the best images of samples, towards the class that is nearest there."""
        if not len(rows):
            return
        with torch.no_grad():
            nearest = wrong_classes(search.model(search.image[rows]), search.y[rows])[:, 0]
        search.offer(rows, self._towards(search, rows, nearest, 2 * self.long, rng, search.image[rows]))

    def _towards(
        self, search: _Search, rows: Tensor, targets: Tensor, steps: int, rng: SampleRNG, start: Tensor | None
    ) -> Tensor:
        """Climb towards one class of each sample; return the images."""
        goal = Objective(search.loss, targets, Criterion(search.y[rows]), targeted=True)
        climb = APGD(self.norm, self.eps, steps=steps)
        return climb.ascend(search.model, search.x[rows], goal, rng.select(rows), start)[0]

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
        self.loss: Loss = "dlr" if self.classes >= _TARGETED_CLASSES else "margin"

    @property
    def left(self) -> Tensor:
        """The samples (indices) that are still right."""
        return self.right.nonzero().squeeze(1)

    def among(self, group: Tensor) -> Tensor:
        """The samples (indices) of a group (N,) that are still right."""
        return (self.right & group).nonzero().squeeze(1)

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


class _Seen:
    """What rounds 2 to 4 came to, for the choice of round 5.

    Attributes:
        stood: how many samples the climb left right.
        by_walks: how many of them, far from the boundary, FAB-T fooled.
        by_probes: how many Square did.
        close: where an image of the climb came near the boundary (N,).
        ahead: where Square got further than the climb (N,).
    """

    def __init__(self, search: _Search, near: float) -> None:
        self.search, self.near = search, near
        self.stood = self.by_walks = self.by_probes = 0
        self.close, self.ahead = (torch.zeros_like(search.right) for _ in range(2))
        self.lead = search.lead.clone()

    @property
    def felled(self) -> int:
        """How many samples a look from elsewhere fooled that the climb had left far from the boundary.

        A few are luck; more show a slope that misleads the climb, and then what it says of the others is worth no more.
        """
        return self.by_walks + self.by_probes

    def climbed(self, rows: Tensor) -> None:
        """Note how far the climb came on the samples that it left right."""
        self.stood += len(rows)
        self.lead[rows] = self.search.lead[rows]
        self.close[rows] = self.lead[rows] < self.near * self.search.clean[rows]

    def afar(self, rows: Tensor) -> int:
        """How many of these samples are fooled now that the climb left far from the boundary."""
        return int((~self.search.right[rows] & ~self.close[rows]).sum())

    def sought(self, rows: Tensor, lead: Tensor) -> None:
        """Note the leads (N,) at which Square ended."""
        self.ahead[rows] = lead < self.lead[rows]


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
        better = lead < worst
        rows, place = rows[better], place[better]
        self.lead[rows, place], self.target[rows, place] = lead[better], targets[better]
        self.image[rows, place] = images[better]
