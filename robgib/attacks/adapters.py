"""Other libraries' attacks behind the same door: same budget, same verification, same record."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, frozen
from robgib.attacks.threat import Norm, SampleRNG
from robgib.errors import RobGIBError, unknown_name

__all__ = ["TorchAttack", "torchattacks_norm"]

_L2 = {"PGDL2", "PGDRSL2", "CW", "CWBS", "CWL2", "CWBSL2", "DeepFool", "EADEN", "FABL2"}
_OTHER = {"EADL1", "OnePixel", "SparseFool", "Pixle", "JSMA", "GN", "VANILA", "MultiAttack", "LGV"}


def _torchattacks() -> Any:
    import torchattacks

    import robgib._torchvision  # noqa: F401  (torchattacks imports torchvision: mend it first)

    return torchattacks


def _attack_class(name: str) -> type:
    library = _torchattacks()
    base = library.attack.Attack
    known = {n: c for n, c in vars(library).items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    if name not in known:
        raise unknown_name("torchattacks attack", name, known)
    return known[name]


def torchattacks_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which a torchattacks attack is bounded, from its class and its ``norm``."""
    _attack_class(name)
    if name in _OTHER:
        raise RobGIBError(f"torchattacks' {name} is not bounded in L-inf or L2, so no budget can be verified.")
    if "norm" in parameters:
        norm = str(parameters["norm"]).lower()
        if norm not in ("linf", "l2"):
            raise RobGIBError(f"torchattacks:{name} has norm {parameters['norm']!r}; use Linf or L2.")
        return "linf" if norm == "linf" else "l2"
    return "l2" if name in _L2 else "linf"


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators that the library draws from, and put their states back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


@dataclass(frozen=True)
class TorchAttack(Attack):
    """An attack of the torchattacks library (Kim 2020), by class name and keyword arguments.

    An attack without an ``eps`` of its own (a minimal-norm attack) is held to the threat model's: what it
    finds outside the ball does not count.
    """

    name: str = "PGD"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch_independent: ClassVar[bool] = False  # the library seeds a whole batch at once

    def __post_init__(self) -> None:
        super().__post_init__()
        accepted = self._accepted()
        for key in self.parameters:
            if key not in accepted:
                raise unknown_name(f"parameter of torchattacks:{self.name}:", key, accepted)

    def _accepted(self) -> list[str]:
        parameters = inspect.signature(_attack_class(self.name)).parameters
        return [p for p in parameters if p not in ("self", "model", "eps")]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        kind = _attack_class(self.name)
        arguments = dict(self.parameters)
        own_eps = "eps" in inspect.signature(kind).parameters
        if own_eps:
            arguments["eps"] = self.threat.eps
        if "n_classes" in self._accepted() and "n_classes" not in arguments:
            with torch.no_grad():
                arguments["n_classes"] = model(x[:1]).shape[1]
        seed = int(rng.generators()[0].integers(2**31)) if len(x) else 0
        if "seed" in self._accepted():
            arguments.setdefault("seed", seed)  # unset, it is the clock
        with frozen(model), _seeded(seed, x.device), torch.enable_grad():
            attack = kind(_Housed(model, x.device), **arguments)
            attack.set_device(x.device)
            found: Tensor = attack(x, y).detach().to(x.dtype)
        if own_eps:
            return found
        outside = ~self.threat.allows(found, x)
        return torch.where(outside.view(-1, *([1] * (x.ndim - 1))), x, found)


class _Housed(nn.Module):
    """Gives a model without parameters the one that torchattacks reads the device from."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.where = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.train(model.training)  # the library restores the mode that it finds here

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
