"""Other libraries' attacks behind the same door: same budget, same verification, same record."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, frozen
from robgib.attacks.threat import NORMS, Norm, SampleRNG, ThreatModel, per_sample
from robgib.errors import RobGIBError, unknown_name

__all__ = ["DOORS", "ARTAttack", "FoolboxAttack", "TorchAttack", "art_norm", "foolbox_norm", "torchattacks_norm"]

_L2 = {"PGDL2", "PGDRSL2", "CW", "CWBS", "CWL2", "CWBSL2", "DeepFool", "EADEN", "FABL2"}
_OTHER = {"EADL1", "OnePixel", "SparseFool", "Pixle", "JSMA", "GN", "VANILA", "MultiAttack", "LGV"}


def _torchattacks() -> Any:
    import torchattacks

    import robgib._torchvision  # noqa: F401  (torchattacks asks for torchvision: mend it first)

    return torchattacks


def _attack_class(name: str) -> type:
    library = _torchattacks()
    base = library.attack.Attack
    return _class(vars(library), base, name, "torchattacks")


def _class(names: Mapping[str, Any], base: type[Any], name: str, library: str) -> type[Any]:
    """Return the attack class of that name, a proper subclass of ``base``."""
    known = {n: c for n, c in names.items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    if name not in known:
        raise unknown_name(f"{library} attack", name, known)
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

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return _cost(self.parameters)

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
        return found if own_eps else _inside(found, x, self.threat)


def _inside(found: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Images found (N, …), or the clean ones ``x`` where they lie outside the threat model."""
    return torch.where(per_sample(threat.allows(found, x), x), found, x)


def _library(name: str, package: str) -> Any:
    import robgib._torchvision  # noqa: F401  (either library may ask for torchvision: mend it first)

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RobGIBError(f"{package} is not installed ({error}); `pip install robgib[{package}]` adds it.") from error


def _foolbox_class(name: str) -> type[Any]:
    attacks = _library("foolbox.attacks", "foolbox")
    return _class(vars(attacks), attacks.base.Attack, name, "foolbox")


def foolbox_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which a Foolbox attack is bounded, from its ``distance``."""
    kind = _foolbox_class(name)
    _accept(kind, parameters, f"foolbox:{name}", ())
    distance = getattr(_construct(kind, parameters, f"foolbox:{name}"), "distance", None)
    p = getattr(distance, "p", None)
    if p not in (1, 2, float("inf")):
        raise RobGIBError(f"foolbox's {name} is not bounded in L-inf, L2 or L1, so no budget can be verified.")
    return "linf" if p == float("inf") else "l2" if p == 2 else "l1"


def _cost(parameters: Mapping[str, Any]) -> int:
    """Gradients a sample, as far as another library's parameters tell; 100 where they do not."""
    told = [parameters[n] for n in ("steps", "max_iter", "n_queries") if isinstance(parameters.get(n), int)]
    return max(1, told[0]) if told else 100


def _accept(kind: type[Any], parameters: Mapping[str, Any], what: str, taken: Sequence[str]) -> None:
    accepted = [p for p in inspect.signature(kind).parameters if p not in taken]
    for key in parameters:
        if key not in accepted:
            raise unknown_name(f"parameter of {what}:", key, accepted)


def _construct(kind: type[Any], parameters: Mapping[str, Any], what: str, *first: Any) -> Any:
    try:
        return kind(*first, **parameters)
    except (TypeError, ValueError) as error:
        raise RobGIBError(f"{what} does not take these parameters: {error}.") from error


@dataclass(frozen=True)
class FoolboxAttack(Attack):
    """An attack of Foolbox (Rauber et al. 2020), by class name and keyword arguments; untargeted.

    Attacks that look for the nearest adversarial image are held to the threat model's eps.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS
    name: str = "LinfPGD"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch_independent: ClassVar[bool] = False  # the library seeds a whole batch at once

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return _cost(self.parameters)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        foolbox = _library("foolbox", "foolbox")
        seed = int(rng.generators()[0].integers(2**31))
        with frozen(model), _seeded(seed, x.device), torch.enable_grad():
            attack = _construct(_foolbox_class(self.name), self.parameters, f"foolbox:{self.name}")
            housed = foolbox.PyTorchModel(model, bounds=self.threat.box, device=x.device)
            _, found, _ = attack(housed, x, foolbox.criteria.Misclassification(y), epsilons=self.threat.eps)
        return _inside(found.detach().to(x.dtype), x, self.threat)


_ART_FIXED: dict[str, Norm] = {"DeepFool": "l2", "CarliniL2Method": "l2", "CarliniLInfMethod": "linf"}
_ART_TAKEN = ("estimator", "classifier", "eps", "verbose", "batch_size")


def _art_class(name: str) -> type[Any]:
    evasion = _library("art.attacks.evasion", "art")
    return _class(vars(evasion), _library("art.attacks", "art").EvasionAttack, name, "ART")


def art_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which an attack of ART is bounded, from its class and its ``norm``."""
    kind = _art_class(name)
    _accept(kind, parameters, f"art:{name}", _ART_TAKEN)
    if name in _ART_FIXED:
        return _ART_FIXED[name]
    accepted = inspect.signature(kind).parameters
    if "norm" not in accepted or "eps" not in accepted:
        raise RobGIBError(f"ART's {name} is not bounded in L-inf or L2, so no budget can be verified.")
    norm = str(parameters.get("norm", "inf")).lower().removeprefix("l")
    if norm not in ("inf", "2", "2.0"):
        raise RobGIBError(f"art:{name} has norm {parameters['norm']!r}; use Linf or L2.")
    return "linf" if norm == "inf" else "l2"


@dataclass(frozen=True)
class ARTAttack(Attack):
    """An evasion attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018), by class name; untargeted.

    Without ``eps_step`` the step is 2.5 eps over the steps. Minimal-norm attacks are held to the threat model's eps.
    """

    name: str = "ProjectedGradientDescent"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch_independent: ClassVar[bool] = False  # the library seeds a whole batch at once

    @property
    def cost(self) -> int:
        """See :attr:`Attack.cost`."""
        return _cost(self.parameters)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        kind, art = _art_class(self.name), _library("art.estimators.classification", "art")
        accepted = inspect.signature(kind).parameters
        arguments = {k: v for k, v in self.parameters.items() if k != "norm"}
        if "norm" in accepted:
            arguments["norm"] = np.inf if self.threat.norm == "linf" else 2
        if "eps" in accepted:
            arguments["eps"] = self.threat.eps
        if "eps_step" in accepted:
            steps = arguments.get("max_iter", getattr(accepted.get("max_iter"), "default", 1))
            arguments.setdefault("eps_step", 2.5 * self.threat.eps / steps if steps > 2 else self.threat.eps)
        if "verbose" in accepted:
            arguments["verbose"] = False
        if "batch_size" in accepted:
            arguments["batch_size"] = len(x)
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        seed = int(rng.generators()[0].integers(2**31))
        with frozen(model), _seeded(seed, x.device), torch.enable_grad():
            classifier = art.PyTorchClassifier(
                _Housed(model, x.device),
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=classes,
                clip_values=self.threat.box,
                device_type="gpu" if x.device.type == "cuda" else "cpu",
            )
            attack = _construct(kind, arguments, f"art:{self.name}", classifier)
            found = attack.generate(x.cpu().numpy(), y.cpu().numpy())
        return _inside(torch.from_numpy(np.asarray(found)).to(x), x, self.threat)


DOORS: Mapping[str, tuple[type[Attack], Callable[[str, Mapping[str, Any]], Norm]]] = {
    "torchattacks": (TorchAttack, torchattacks_norm),
    "foolbox": (FoolboxAttack, foolbox_norm),
    "art": (ARTAttack, art_norm),
}
"""Other libraries by prefix: the class that runs their attacks, and how an attack's norm is found."""


class _Housed(nn.Module):
    """Gives a model without parameters the one that libraries read the device from."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.where = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.train(model.training)  # the library restores the mode that it finds here

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
