"""Transfer attacks: images found on a surrogate, judged on the model under evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from robgib.attacks.base import Attack, given_to
from robgib.attacks.threat_model import KINDS
from robgib.errors import RobGIBError
from robgib.models.adapt import as_module
from robgib.models.inference import BatchedModel, eval_mode
from robgib.runtime import SampleRNG

__all__ = ["Transfer"]

_BATCH = 256


@dataclass(frozen=True)
class Transfer(Attack):
    """Runs an attack on a surrogate (Papernot et al. 2016); the model under evaluation judges its images.

    Fields:
        attack: the attack, whose threat model is that of the transfer.
        surrogate: the network that it attacks, on the device of the images.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> surrogate, _ = robgib.load_model("digits-mlp-relu")
    >>> attack = Transfer.of(robgib.make_attack("pgd-linf:eps=0.2"), surrogate)
    >>> attack(model, data.test.x[:4], data.test.y[:4]).shape
    torch.Size([4, 1, 8, 8])
    """

    norms: ClassVar[tuple[str, ...]] = KINDS
    aims: ClassVar[bool] = True
    attack: Any = field(default=None, kw_only=True)
    surrogate: Any = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, Attack) or self.surrogate is None:
            raise RobGIBError("Transfer needs an attack and a surrogate; make one with Transfer.of(attack, surrogate).")

    @classmethod
    def of(cls, attack: Attack, surrogate: object) -> Transfer:
        """Return the transfer of an attack from a surrogate: a network or any function of images."""
        return cls(attack.norm, attack.eps, eot=attack.eot, attack=attack, surrogate=as_module(surrogate))

    def at(self, eps: float) -> Attack:
        """See :meth:`Attack.at`."""
        return replace(self, eps=eps, attack=self.attack.at(eps))

    @property
    def cost(self) -> int | None:
        """See :attr:`Attack.cost`."""
        return self.attack.cost

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`; ``model`` is not called."""
        attacked = BatchedModel(self.surrogate, _BATCH) if self.attack.pooled else self.surrogate
        with eval_mode(self.surrogate):
            images: Tensor = self.attack.perturb(attacked, *given_to(self.attack, x, y), rng)
        return images
