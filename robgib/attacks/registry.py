"""Attacks by name: catalogue files, plug-in classes, entry points and other libraries."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from robgib import registry
from robgib.attacks.alma import ALMA
from robgib.attacks.apgd import APGD
from robgib.attacks.autoattack import AutoAttack
from robgib.attacks.base import Attack
from robgib.attacks.carlini_wagner import CarliniWagner
from robgib.attacks.ddn import DDN
from robgib.attacks.deepfool import DeepFool
from robgib.attacks.fab import FAB
from robgib.attacks.fast import FastEnsemble
from robgib.attacks.fgsm import FGSM
from robgib.attacks.fmn import FMN
from robgib.attacks.libraries import ADAPTERS, takes
from robgib.attacks.mifgsm import MIFGSM
from robgib.attacks.pgd import PGD
from robgib.attacks.primal_dual import PDGD, PDPGD
from robgib.attacks.rfgsm import RFGSM
from robgib.attacks.sigma_zero import SigmaZero
from robgib.attacks.square import Square
from robgib.attacks.superdeepfool import SuperDeepFool
from robgib.attacks.threat_model import NORMS, Norm, ThreatModel
from robgib.errors import RobGIBError, RobGIBWarning, unknown_name
from robgib.options import construct

__all__ = [
    "ATTACKS",
    "CatalogueEntry",
    "attack_catalogue",
    "list_attacks",
    "make_attack",
]

ATTACKS: registry.Registry[type[Attack]] = registry.Registry(
    "attack class",
    group="robgib.attacks",
    valid=lambda value: isinstance(value, type) and issubclass(value, Attack),
    wanted="a subclass of robgib.Attack",
    base=Attack,
    named=lambda value: value.__name__,
)
"""The attack classes by class name."""
_BUILT_IN: tuple[type[Attack], ...] = (
    FGSM, RFGSM, PGD, MIFGSM, APGD, Square, DeepFool, SuperDeepFool, CarliniWagner, DDN, ALMA, PDGD, PDPGD, FMN,
    SigmaZero, FAB, AutoAttack, FastEnsemble,
)  # fmt: skip
for _kind in _BUILT_IN:
    ATTACKS.enter(_kind.__name__, _kind)


@dataclass(frozen=True)
class CatalogueEntry:
    """A named attack: its class, norm, budget (None: the default of the data set) and parameters."""

    name: str
    attack: type[Attack]
    norm: Norm | None
    eps: float | None
    parameters: Mapping[str, Any]
    description: str
    source: str


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _one_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]


def attack_catalogue(extra: Sequence[Path] = (), wanted: Sequence[str] = ()) -> dict[str, CatalogueEntry]:
    """Return all named attacks: the files of the catalogue, and plug-in classes by their hyphenated names.

    An invalid file is skipped with a warning.

    Raises:
        RobGIBError: a file of the ``wanted`` attacks is invalid.
    """
    classes = ATTACKS.entries(extra)
    entries: dict[str, CatalogueEntry] = {}
    for entry in classes.values():
        if entry.source != "built in":
            name = _kebab(entry.name)
            entries[name] = CatalogueEntry(
                name, entry.value, None, None, {}, _one_line(entry.value.__doc__), entry.source
            )
    for name, path in registry.yaml_files("attacks", extra).items():
        try:
            entries[name] = _entry(name, path, classes)
        except RobGIBError as error:
            if name in wanted:
                raise
            warnings.warn(f"attack skipped: {error}", RobGIBWarning, stacklevel=2)
    return entries


class AttackFile(BaseModel):
    """A file of the attack catalogue.

    Attributes:
        attack: name of its class.
        norm: norm of the perturbations; None if the class supports several.
        eps: budget in pixel scale; None is the default of the data set.
        parameters: parameters of the class.
        description: one line for the list of attacks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    attack: str
    norm: Norm | None = None
    eps: float | str | None = None
    parameters: dict[str, Any] = {}
    description: str = ""

    @field_validator("parameters", mode="before")
    @classmethod
    def _or_none(cls, value: Any) -> Any:
        return {} if value is None else value


def _entry(name: str, path: Path, classes: Mapping[str, registry.Entry[type[Attack]]]) -> CatalogueEntry:
    """Read one file of the catalogue."""
    try:
        file = AttackFile.model_validate(registry.read_yaml(path))
    except ValidationError as error:
        raise registry.yaml_error(error, path) from error
    if file.attack not in classes:
        raise unknown_name(f"attack class in {path}:", file.attack, classes)
    kind = classes[file.attack].value
    return CatalogueEntry(
        name,
        kind,
        file.norm,
        registry.parse_value(file.eps),
        {k: registry.parse_value(v) for k, v in file.parameters.items()},
        file.description or _one_line(kind.__doc__),
        str(path),
    )


def list_attacks(catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of all attacks except those of other libraries.

    >>> "pgd-linf" in list_attacks()
    True
    """
    return sorted(attack_catalogue(catalogue))


def make_attack(spec: str, default_eps: Mapping[str, float] | None = None, extra: Sequence[Path] = ()) -> Attack:
    """Build an attack from ``NAME[:key=value,…]``, or from ``LIBRARY:NAME[:key=value,…]``.

    The libraries are torchattacks, foolbox, art and advlib.

    Args:
        spec: for example ``pgd-linf:eps=8/255,steps=20``. ``eps`` is in pixel scale; the default is that of the
            catalogue file, else ``default_eps`` of the norm. A plug-in class also takes ``norm``.
        default_eps: default budget per norm; None is 8/255 (L-inf), 0.5 (L2), 12 (L1) and 24 (L0).
        extra: additional catalogue folders.

    Raises:
        RobGIBError: a name or parameter is unknown, or a value is invalid.
    """
    budgets = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0, **(default_eps or {})}
    name, _, rest = spec.partition(":")
    if name in ADAPTERS:
        library, (kind, norm_of) = name, ADAPTERS[name]
        name, _, rest = rest.partition(":")
        given = registry.parse_pairs(rest, f"attack {spec!r}")
        eps = given.pop("eps", None)
        eot = None if "eot" in takes(library, name) else given.pop("eot", None)
        if eot is not None and type(eot) is not int:
            raise RobGIBError(f"attack {spec!r}: eot must be a whole number of draws such as 20, not {eot!r}.")
        bounded = norm_of(name, given)
        radius = _radius(spec, bounded, budgets[bounded] if eps is None else eps)
        return kind(bounded, radius, name, given, eot=eot)  # type: ignore[call-arg, misc, arg-type]
    given = registry.parse_pairs(rest, f"attack {spec!r}")
    entries = attack_catalogue(extra, [name])
    if name not in entries:
        forms = [f"{name}-{norm}" for norm in NORMS if f"{name}-{norm}" in entries]  # L-inf first
        raise unknown_name("attack", name, entries, "robgib attacks list", forms[0] if forms else None)
    entry = entries[name]
    if entry.norm is not None and "norm" in given:
        raise RobGIBError(f"attack {name!r} is defined for the norm {entry.norm}; choose another catalogue entry.")
    norm: Any = entry.norm or given.pop("norm", None) or entry.attack.norms[0]
    if norm not in NORMS:
        raise unknown_name("norm", str(norm), NORMS)
    eps = given.pop("eps", entry.eps if entry.eps is not None else budgets[norm])
    parameters = {**entry.parameters, **given}
    made: Attack = construct(entry.attack, parameters, f"attack {spec!r}", norm=norm, eps=_radius(spec, norm, eps))
    return made


def _radius(spec: str, norm: Norm, eps: Any) -> float:
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise RobGIBError(f"attack {spec!r}: eps must be a number such as 8/255 or 0.03, not {eps!r}.")
    try:
        return ThreatModel(norm, float(eps)).eps
    except RobGIBError as error:
        raise RobGIBError(f"attack {spec!r}: {error}") from error
