"""The standard ensemble."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD
from robgib.attacks.base import Attack, register_attack
from robgib.attacks.fab import FAB
from robgib.attacks.objective import Objective, targeted_loss
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS, per_sample
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.options import Count
from robgib.runtime import SampleRNG

__all__ = [
    "AutoAttack",
    "cascade",
]


@register_attack("AutoAttack")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020): APGD-CE, APGD-T, FAB-T and Square, each on the remaining samples.

    The parameters are those of the standard version: 100 steps and one restart each, 9 target classes, 5,000 queries;
    under L1 (Croce & Hein 2021) 5 restarts of APGD-CE and 5 target classes of APGD-T. The targeted DLR loss needs four
    classes; with fewer, APGD-T uses the margin.

    ``version="rand"`` is the version for stochastic models: APGD-CE and APGD-DLR (the margin for two classes), with
    gradients averaged over ``eot`` draws, 20 by default.

    Fields:
        version: ``standard`` or ``rand``.
        steps: steps of APGD and FAB.
        targets: target classes of APGD-T and FAB-T; at most 5 for APGD-T under L1.
        queries: queries of Square.
    """

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    pooled: ClassVar[bool] = True
    version: Literal["standard", "rand"] = "standard"
    steps: Count = 100
    targets: Count = 9
    queries: Count = 5000

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return sum(member.cost or 1 for member in self.members(self.targets + 1))

    def members(self, classes: int) -> tuple[Attack, ...]:
        """Return the attacks, in order, for a model of ``classes`` classes."""
        ce = APGD(self.norm, self.eps, steps=self.steps, eot=self.eot)
        if self.version == "rand":
            return ce, replace(ce, loss="dlr" if classes > 2 else "margin")
        sparse = self.norm == "l1"
        return (
            replace(ce, restarts=5 if sparse else 1),
            replace(ce, loss=targeted_loss(classes), targets=min(self.targets, 5) if sparse else self.targets),
            FAB(self.norm, self.eps, steps=self.steps, targeted=True, targets=self.targets, eot=self.eot),
            Square(self.norm, self.eps, queries=self.queries, eot=self.eot),
        )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        return cascade(self.members(classes), model, x, y, rng)


def cascade(attacks: Sequence[Attack], model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
    """Run attacks one after another on the remaining samples; keep the first adversarial image, else the last image.

    An attack that needs gradients is skipped if the model has none, with a :class:`~robgib.RobGIBWarning`.

    Raises:
        NoGradientError: no attack could run.
    """
    result = x.clone()
    if not len(x):  # a network may not accept an empty batch
        return result
    goal = Objective.untargeted(y, "margin")
    with torch.no_grad():
        remaining = (~goal.criterion(model(x))).nonzero().squeeze(1)
    missing: dict[str, NoGradientError] = {}
    ran = False
    for attack in attacks:
        if not len(remaining):
            break
        try:
            images = attack.perturb(model, x[remaining], y[remaining], rng.select(remaining))
        except NoGradientError as error:
            missing[_title(attack)] = error
            continue
        ran = True
        with torch.no_grad():
            fooled = goal.select(remaining).criterion(model(images))
        # FAB returns the clean image on failure: it does not replace an earlier image.
        moved = per_sample(fooled | (images != x[remaining]).flatten(1).any(1), images)
        result[remaining] = torch.where(moved, images, result[remaining])
        remaining = remaining[~fooled]
    if missing:
        reason = next(iter(missing.values()))
        if not ran:
            raise reason
        warnings.warn(f"{', '.join(missing)} skipped: {reason}", RobGIBWarning, stacklevel=2)
    return result


def _title(attack: Attack) -> str:
    """Return a name for messages, such as ``APGD (dlr, 9 targets)``."""
    details = [str(getattr(attack, "loss", ""))]
    if getattr(attack, "targeted", True) and getattr(attack, "targets", 0):
        details.append(f"{attack.targets} targets")  # type: ignore[attr-defined]
    details = [t for t in details if t]
    return type(attack).__name__ + (f" ({', '.join(details)})" if details else "")
