"""Transfer attacks: images found on a surrogate, judged on the model under evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.base import Attack, TransformAttack, classes_named, given_to
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
        kind = TransferredTransformation if isinstance(attack, TransformAttack) else cls
        return kind(attack.norm, attack.eps, eot=attack.eot, attack=attack, surrogate=as_module(surrogate))

    def at(self, eps: float) -> Attack:
        """See :meth:`Attack.at`."""
        return replace(self, eps=eps, attack=self.attack.at(eps))

    @property
    def cost(self) -> int | None:
        """See :attr:`Attack.cost`."""
        return self.attack.cost

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`; ``model`` is not called."""
        return self._found(self.attack.perturb, x, y, rng)

    def _found(self, look: Callable[..., Tensor], x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return what a method of the attack finds on the surrogate."""
        attacked = BatchedModel(self.surrogate, _BATCH) if self.attack.pooled else self.surrogate
        with eval_mode(self.surrogate):
            if len(x):
                self._check_classes(attacked, x, y)
            return look(attacked, *given_to(self.attack, x, y), rng)

    @staticmethod
    def _check_classes(surrogate: nn.Module, x: Tensor, y: Tensor) -> None:
        """Raise if the surrogate has no logit for a label or target."""
        with torch.no_grad():
            classes = surrogate(x[:1]).shape[1]
        if classes_named(x, y) > classes:
            raise RobGIBError(
                f"the surrogate has {classes} classes, and the labels reach {classes_named(x, y) - 1}; transfer from a "
                "network with the same classes."
            )


@dataclass(frozen=True)
class TransferredTransformation(Transfer, TransformAttack):
    """A transfer of a transformation, whose images are made again from the parameters that the attack chose."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        return TransformAttack.perturb(self, model, x, y, rng)

    def find_parameters(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`TransformAttack.find_parameters`; ``model`` is not called."""
        return self._found(self.attack.find_parameters, x, y, rng)

    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """See :meth:`TransformAttack.transform`."""
        images: Tensor = self.attack.transform(x, parameters)
        return images

    def sizes(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TransformAttack.sizes`."""
        size, allowed = self.attack.sizes(parameters)
        return size, allowed

    def made(self, label: str, parameters: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TransformAttack.made`."""
        images, size = self.attack.made(label, parameters, x)
        return images, size
