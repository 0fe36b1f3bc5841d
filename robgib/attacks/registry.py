"""Attacks by name: catalogue files, plug-in classes, entry points and other libraries."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from robgib import registry
from robgib.attacks.base import ATTACKS, Attack, changed, own_constructor, with_fields
from robgib.attacks.foreign import foreign_class, is_foreign
from robgib.attacks.libraries import ADAPTERS, takes
from robgib.attacks.threat_model import KINDS, NORMS, Norm, ThreatModel
from robgib.errors import RobGIBError, RobGIBWarning, unknown_name
from robgib.options import construct

__all__ = [
    "ATTACKS",
    "DEFAULT_EPS",
    "CatalogueEntry",
    "NamedAttack",
    "attack_catalogue",
    "attack_class",
    "list_attacks",
    "make_attack",
    "read_attack",
]

DEFAULT_EPS: Mapping[str, float] = {
    "linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0, "patch": 5.0, "rotation": 30.0
}  # fmt: skip
"""Default budget per norm, if the data set has none; the side of a patch in pixels, and a rotation in degrees."""


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
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", name).lower()


def _one_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]


def attack_catalogue(extra: Sequence[Path] = (), wanted: Sequence[str] = ()) -> dict[str, CatalogueEntry]:
    """Return all named attacks: the files of the catalogue, and plug-in classes by their hyphenated names.

    An invalid file is skipped with a warning.

    Raises:
        RobGIBError: a file of the ``wanted`` attacks is invalid.
    """
    classes = {**ATTACKS.entries(extra), **_foreign(extra)}
    entries: dict[str, CatalogueEntry] = {}
    for entry in classes.values():
        if entry.source != "built in":
            own_name = entry.name != entry.value.__name__  # from @register_attack
            name = entry.name if own_name else _kebab(entry.name)
            try:
                with_fields(entry.value)
            except RobGIBError as error:
                if name in wanted:
                    raise
                warnings.warn(f"attack skipped: {error}", RobGIBWarning, stacklevel=2)
                continue
            entries[name] = CatalogueEntry(
                name,
                entry.value,
                norm=None,
                eps=None,
                parameters={},
                description=_one_line(entry.value.__doc__),
                source=entry.source,
            )
    for name, path in registry.yaml_files("attacks", extra).items():
        try:
            entries[name] = _entry(name, path, classes)
        except RobGIBError as error:
            if name in wanted:
                raise
            warnings.warn(f"attack skipped: {error}", RobGIBWarning, stacklevel=2)
    return entries


def _foreign(extra: Sequence[Path]) -> dict[str, registry.Entry[type[Attack]]]:
    """Return the functions and classes of plug-in files that are attacks of another convention, by name."""
    return {
        name: registry.Entry(name, foreign_class(value), str(module.__file__))
        for module in registry.plugin_modules(extra)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_") and is_foreign(value)
    }


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


def _file(path: Path) -> AttackFile:
    try:
        return registry.read_model(AttackFile, registry.read_yaml(path), path)
    except ValidationError as error:
        raise registry.yaml_error(error, path) from error


@functools.cache  # every name is looked up among all files of the catalogue
def _packaged_file(path: Path) -> AttackFile:
    return _file(path)


def _entry(name: str, path: Path, classes: Mapping[str, registry.Entry[type[Attack]]]) -> CatalogueEntry:
    """Read one file of the catalogue."""
    file = _packaged_file(path) if registry.is_packaged(path) else _file(path)
    by_class = {entry.value.__name__: entry.value for entry in classes.values()}
    kind = classes[file.attack].value if file.attack in classes else by_class.get(file.attack)
    if kind is None:
        raise unknown_name(f"attack class in {path}:", file.attack, classes)
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


def attack_class(name: str, base: type[Any] = Attack) -> type[Any] | None:
    """Return the class of a name below ``base``, as the record of a run states it; None if there is none here.

    Plug-in files and classes that a user defined count once they are imported. Of several RobGIB's own is taken, since
    an adapted library has names of its own such as PGD; of others the latest.

    >>> attack_class("PGD").__name__, attack_class("Unheard")
    ('PGD', None)
    """
    waiting, named = [base], []
    while waiting:
        kind = waiting.pop()
        if kind.__name__ == name:
            named.append(kind)
        waiting += kind.__subclasses__()
    return next((kind for kind in named if kind.__module__.startswith("robgib.")), named[0] if named else None)


@dataclass(frozen=True)
class NamedAttack:
    """An attack that a specification names.

    Attributes:
        spec: the specification.
        attack: the attack, with the usual radius if the specification leaves it open.
        is_open: whether the radius is the default of the data.
    """

    spec: str
    attack: Attack
    is_open: bool

    def under(self, default_eps: Mapping[str, float] | None) -> Attack:
        """Return the attack; an open radius becomes ``default_eps`` of its norm, if there is one."""
        norm = self.attack.threat.norm
        if not self.is_open or norm not in (default_eps or {}):
            return self.attack
        assert default_eps is not None
        return changed(self.attack, eps=_radius(self.spec, norm, default_eps[norm]))


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
    return read_attack(spec, extra).under(default_eps)


def read_attack(spec: str, extra: Sequence[Path] = ()) -> NamedAttack:
    """Build the attack of a specification, whose radius may be left open until the data are known.

    Raises:
        RobGIBError: as for :func:`make_attack`.
    """
    name, _, rest = spec.partition(":")
    if name in ADAPTERS:
        return _of_library(spec, name, *rest.partition(":")[::2])
    given = registry.parse_pairs(rest, f"attack {spec!r}")
    entries = attack_catalogue(extra, [name])
    if name not in entries:
        forms = [f"{name}-{norm}" for norm in NORMS if f"{name}-{norm}" in entries]  # L-inf first
        raise unknown_name("attack", name, entries, "robgib attacks list", forms[0] if forms else None)
    entry = entries[name]
    if entry.norm is not None and "norm" in given:
        raise RobGIBError(f"attack {name!r} is defined for the norm {entry.norm}; choose another catalogue entry.")
    norm: Any = entry.norm or given.pop("norm", None) or entry.attack.norms[0]
    if norm not in KINDS:
        raise unknown_name("norm", str(norm), KINDS)
    is_open = "eps" not in given and entry.eps is None
    eps = _radius(spec, norm, given.pop("eps", DEFAULT_EPS[norm] if entry.eps is None else entry.eps))
    try:
        made: Attack = construct(entry.attack, {**entry.parameters, **given}, f"attack {spec!r}", norm=norm, eps=eps)
    except (TypeError, AttributeError) as error:  # of a constructor of its own
        raise own_constructor(entry.attack) from error
    return NamedAttack(spec, made, is_open)


def _of_library(spec: str, library: str, name: str, options: str) -> NamedAttack:
    """Build an attack of another library."""
    kind, norm_of = ADAPTERS[library]
    given = registry.parse_pairs(options, f"attack {spec!r}")
    eps = given.pop("eps", None)
    eot = None if "eot" in takes(library, name) else given.pop("eot", None)
    if eot is not None and type(eot) is not int:
        raise RobGIBError(f"attack {spec!r}: eot must be a whole number of draws such as 20, not {eot!r}.")
    norm = norm_of(name, given)
    radius = _radius(spec, norm, DEFAULT_EPS[norm] if eps is None else eps)
    return NamedAttack(spec, kind(norm, radius, name, given, eot=eot), eps is None)  # type: ignore[call-arg, misc, arg-type]


def _radius(spec: str, norm: Norm, eps: Any) -> float:
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise RobGIBError(f"attack {spec!r}: eps must be a number such as 8/255 or 0.03, not {eps!r}.")
    try:
        return ThreatModel(norm, float(eps)).eps
    except RobGIBError as error:
        raise RobGIBError(f"attack {spec!r}: {error}") from error
