"""The standard ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD
from robgib.attacks.attack import Attack
from robgib.attacks.fab import FAB
from robgib.attacks.square import Square
from robgib.attacks.threat import SampleRNG, per_sample
from robgib.errors import RobGIBError

__all__ = ["AutoAttack", "cascade"]


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020): APGD-CE, APGD-T, FAB-T and Square, each on what the ones before left.

    The budgets are the standard version's: 100 steps and one restart each, 9 target classes, 5,000 queries. A model of
    fewer than four classes has no DLR loss towards targets; APGD-T then ascends the plain margin.

    Fields:
        steps: of APGD and FAB.
        targets: of APGD-T and FAB-T.
        queries: of Square.
    """

    pooled: ClassVar[bool] = True
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "targets", "queries"):
            if getattr(self, name) < 1:
                raise RobGIBError(f"AutoAttack's {name} must be at least 1, not {getattr(self, name)}.")

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return sum(member.cost for member in self.members(self.targets + 1))

    def members(self, classes: int) -> tuple[Attack, ...]:
        """Return the four attacks, in order, for a model of so many classes."""
        return (
            APGD(self.threat, steps=self.steps),
            APGD(self.threat, steps=self.steps, loss="dlr" if classes > 3 else "margin", targets=self.targets),
            FAB(self.threat, steps=self.steps, targeted=True, targets=self.targets),
            Square(self.threat, queries=self.queries),
        )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        return cascade(self.members(classes), model, x, y, rng)


def cascade(attacks: Sequence[Attack], model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
    """Run attacks in turn on the samples that are still right; the first image that fools is kept, else the last."""
    result = x.clone()
    with torch.no_grad():
        left = (model(x).argmax(1) == y).nonzero().squeeze(1)
    for attack in attacks:
        if not len(left):
            break
        found = attack.perturb(model, x[left], y[left], rng.select(left))
        with torch.no_grad():
            fooled = model(found).argmax(1) != y[left]
        # An image that does not fool is worth no less than the clean one, and FAB gives that back.
        moved = per_sample(fooled | (found != x[left]).flatten(1).any(1), found)
        result[left] = torch.where(moved, found, result[left])
        left = left[~fooled]
    return result
