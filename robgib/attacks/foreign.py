"""Attacks written for other conventions, taken as they are: functions, and torchattacks- and Foolbox-style code."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robgib.attacks.base import Attack
from robgib.attacks.threat_model import NORMS
from robgib.errors import RobGIBError
from robgib.models.adapt import seeded
from robgib.runtime import SampleRNG

__all__ = ["ForeignAttack", "foreign_class", "foreign_name", "is_foreign"]

_MODELS = ("model", "net", "network", "classifier")
_SET = ("self", "eps", "norm", "seed", "device", "epsilons", "kwargs", "args")
"""Parameters that are no parameters of the attack: they are set, or not passed."""
_PLAIN = (int, float, bool, str)
_TYPES: Mapping[Any, type[Any]] = {key: t for t in _PLAIN for key in (t, t.__name__)}
Kind = Literal["function", "torchattacks class", "torchattacks object", "foolbox class", "foolbox object"]


@dataclass(frozen=True)
class ForeignAttack(Attack):
    """Base of the classes that :func:`foreign_class` makes. The images are verified as those of any attack."""

    norms: ClassVar[tuple[str, ...]] = NORMS
    batch_independent: ClassVar[bool] = False
    code: ClassVar[Any] = None
    kind: ClassVar[Kind] = "function"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        seed = int(rng.generators()[0].integers(2**31)) if len(x) else 0
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        ours: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "seed": seed, "device": x.device}
        with seeded(seed, x.device), torch.enable_grad():
            images: Tensor = _RUN[self.kind](type(self).code, model, x, y, {**own, **ours})
        return images


def _accepted(call: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that a call accepts by name."""
    known = inspect.signature(call).parameters
    return {name: value for name, value in values.items() if name in known}


def _run_function(code: Any, model: nn.Module, x: Tensor, y: Tensor, values: Mapping[str, Any]) -> Any:
    return code(model, x, y, **_accepted(code, values))


def _run_class(code: Any, model: nn.Module, x: Tensor, y: Tensor, values: Mapping[str, Any]) -> Any:
    made = code(model, **_accepted(code, values))
    return (made if callable(made) else made.forward)(x, y)


def _run_object(code: Any, model: nn.Module, x: Tensor, y: Tensor, values: Mapping[str, Any]) -> Any:
    """Run a copy of an object, with this model and eps in the place of its own."""
    made = copy.copy(code)
    made.model = model
    for name in ("eps", "device"):
        if hasattr(made, name):
            setattr(made, name, values[name])
    return (made if callable(made) else made.forward)(x, y)


def _run_foolbox_class(code: Any, model: nn.Module, x: Tensor, y: Tensor, values: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in values.items() if name not in _SET}
    return _run_foolbox(code(**_accepted(code, own)), model, x, y, values)


def _run_foolbox(code: Any, model: nn.Module, x: Tensor, y: Tensor, values: Mapping[str, Any]) -> Any:
    """Call an attack of Foolbox, or one with its signature, which then gets the model itself and the labels."""
    if any(base.__module__.startswith("foolbox.") for base in type(code).__mro__):
        foolbox = importlib.import_module("foolbox")
        wrapped: Any = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        images = code(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=values["eps"])
    else:
        images = code(model, x, y, epsilons=values["eps"])
    # Foolbox returns raw images, clipped images, and successes.
    return images[1] if isinstance(images, tuple) else images


_RUN: Mapping[Kind, Callable[..., Any]] = {
    "function": _run_function,
    "torchattacks class": _run_class,
    "torchattacks object": _run_object,
    "foolbox class": _run_foolbox_class,
    "foolbox object": _run_foolbox,
}


def _parameters(call: Any) -> list[inspect.Parameter]:
    try:
        return [p for p in inspect.signature(call).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):
        return []


def _kind(value: Any) -> Kind | None:
    """Return which convention a value follows, or None."""
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, FunctionType) or (callable(value) and not isinstance(value, type) and _takes_model(value)):
        first = _parameters(value)
        if any(p.name == "epsilons" for p in first):
            return "foolbox object"
        return "function" if len(first) >= 3 and first[0].name in _MODELS else None
    if any(p.name == "epsilons" for p in _parameters(_called(kind))):
        return "foolbox class" if isinstance(value, type) else "foolbox object"
    if len(_parameters(getattr(kind, "forward", None))) < 2:
        return None
    if isinstance(value, type):
        first = _parameters(value)
        return "torchattacks class" if first and first[0].name in _MODELS else None
    return "torchattacks object" if hasattr(value, "model") else None


def _called(kind: type[Any]) -> Any:
    """Return the method that calls of the objects of a class run, or None."""
    return next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)


def _takes_model(value: Any) -> bool:
    first = _parameters(value)
    return bool(first) and first[0].name in _MODELS


def is_foreign(value: Any) -> bool:
    """Whether a value is an attack of another convention.

    These are functions of (model, images, labels), which may also take ``eps``, ``norm`` and ``seed``; classes with
    ``forward(images, labels)`` and the model as the first argument of their constructor, and objects of them; and
    classes and objects that are called with (model, images, labels, epsilons=…).

    >>> def tilt(model, x, y, eps): ...
    >>> is_foreign(tilt), is_foreign(print), is_foreign(3)
    (True, False, False)
    """
    if isinstance(value, Attack) or (isinstance(value, type) and issubclass(value, Attack | nn.Linear)):
        return False
    return _kind(value) is not None


def foreign_name(value: Any) -> str:
    """Return the name of an attack of another convention: of its function or class."""
    return str(getattr(value, "__name__", type(value).__name__))


def foreign_class(value: Any) -> type[ForeignAttack]:
    """Return an attack class that runs ``value``; its parameters with defaults become those of the class.

    Raises:
        RobGIBError: ``value`` follows none of the conventions of :func:`is_foreign`.

    >>> def tilt(model, x, y, eps, strength=1.0):
    ...     return (x + strength * eps).clamp(0, 1)
    >>> attack = foreign_class(tilt)("linf", 0.1, strength=0.5)
    >>> attack.strength
    0.5
    """
    kind = _kind(value)
    if kind is None:
        raise RobGIBError(
            f"{foreign_name(value)} is no attack: give a function of (model, images, labels), an object or class "
            "in the manner of torchattacks or Foolbox, or a subclass of robgib.Attack."
        )
    skipped = {"function": 3, "torchattacks class": 1}.get(kind, 0)
    named = _parameters(value)[skipped:] if kind in ("function", "torchattacks class", "foolbox class") else []
    fields = [
        (p.name, _TYPES.get(p.annotation, Any), dataclasses.field(default=p.default, kw_only=True))
        for p in named
        if p.name not in _SET and p.default is not p.empty
    ]
    made = dataclasses.make_dataclass(
        foreign_name(value),
        fields,
        bases=(ForeignAttack,),
        frozen=True,
        namespace={"code": staticmethod(value), "kind": kind, "__doc__": inspect.getdoc(value) or f"A {kind}."},
    )
    made.__module__ = str(getattr(value, "__module__", __name__))
    return made
