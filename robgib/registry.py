"""One registry of named things: attacks, estimators, architectures, data sets, and the zoo's models.

Content is looked for in the package (or the repository it runs from), in the folders given with
``--catalogue`` or ``ROBGIB_CATALOGUE``, and in installed entry points. A folder may hold files directly or in
sub-folders named ``attacks``, ``estimators``, ``data`` and ``zoo`` (models, there also in groups, a folder each).
Python files are plug-ins, whatever they add; what a YAML file is, one key of it tells. A later folder overrides an
earlier one.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import yaml

from robgib.errors import RobGIBError, RobGIBWarning, boolean_as_number, fault_text, first_line, unknown_name
from robgib.reading import DEEPEST, as_path, check_regular, too_deep

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = [
    "PLUGIN",
    "Entry",
    "Kind",
    "Registry",
    "as_dataclass",
    "entry_points",
    "folders",
    "is_packaged",
    "line_of",
    "load_plugins",
    "parse_pairs",
    "parse_value",
    "plugin_modules",
    "read_model",
    "read_yaml",
    "yaml_error",
    "yaml_files",
]

T = TypeVar("T")
V = TypeVar("V")
Model = TypeVar("Model", bound="BaseModel")
Kind = Literal["attacks", "estimators", "data", "zoo"]
BUILT_IN = "built in"
"""The source of what no plug-in adds."""
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_MARK: dict[str, str] = {"attacks": "attack", "estimators": "estimator", "data": "source", "zoo": "data"}
"""The key that tells what a YAML file is."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A named value and its source."""

    name: str
    value: T
    source: str


class Registry(Generic[T]):
    """Values of one kind by name: built in, registered by plug-in files, and from entry points.

    Args:
        kind: one of them in words, such as ``attack``.
        group: of the entry points, such as ``robgib.attacks``.
        valid: whether a value is one of the kind.
        wanted: what a value has to be, for the message.
        base: concrete subclasses that plug-in files define are entered by themselves, under the name that ``named``
            gives.
        named: the name of such a class, and of an entry point's value; None takes the entry point's own name.

    >>> shapes = Registry("shape", group="robgib.doctest", valid=callable, wanted="a function")
    >>> @shapes.register("square")
    ... def square(side):
    ...     return side * side
    >>> list(shapes.entries()), shapes["square"](3)
    (['square'], 9)
    """

    def __init__(
        self,
        kind: str,
        *,
        group: str,
        valid: Callable[[Any], bool],
        wanted: str,
        base: type[Any] | None = None,
        named: Callable[[Any], str] | None = None,
    ) -> None:
        self.kind, self.group, self.valid, self.wanted = kind, group, valid, wanted
        self.base, self.named = base, named
        self._held: dict[str, Entry[T]] = {}

    def enter(self, name: str, value: T, source: str = BUILT_IN) -> None:
        """Register a value under a name; it replaces a former one."""
        self._held[name] = Entry(name, value, source)

    def remove(self, name: str) -> None:
        """Remove a name, if it is registered."""
        self._held.pop(name, None)

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated object under ``name``.

        Raises:
            RobGIBError: no name, as in a decorator without parentheses.
        """
        if not isinstance(name, str) or not name:
            raise RobGIBError(
                f"a name must register the {self.kind}, not {name!r}; write it in the decorator's parentheses."
            )

        def enter(value: T) -> T:
            module = sys.modules.get(getattr(value, "__module__", ""))
            plugin = module is not None and module.__name__.startswith(PLUGIN)
            self.enter(name, value, str(getattr(module, "__file__", "")) if plugin else BUILT_IN)
            return value

        return enter

    def decorator(self, name: str, called: str) -> Callable[[V], V]:
        """Return a decorator that registers under ``name`` what is of the kind; ``called`` names it in messages.

        Raises:
            RobGIBError: no name; or, when it decorates, another kind of object.
        """
        register = self.register(name)

        def enter(value: V) -> V:
            if not self.valid(value):
                raise RobGIBError(f"{called}({name!r}) must decorate {self.wanted}, not {value!r}.")
            register(cast("T", value))
            return value

        return enter

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> T:
        return self._held[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def entries(self, extra: Sequence[Path] = ()) -> dict[str, Entry[T]]:
        """Return all entries by name, with those of plug-in files in ``extra`` folders and of entry points.

        Raises:
            RobGIBError: a folder that does not exist, a plug-in that does not import, or an entry point that is not of
                the kind.
        """
        plugins: dict[str, Entry[T]] = {}
        searched = {BUILT_IN}
        modules = list(plugin_modules(extra))  # importing them registers what they decorate
        decorated = {id(entry.value) for entry in self._held.values()}
        for module in modules:
            searched.add(str(module.__file__))
            for value in vars(module).values() if self.base else ():
                own = isinstance(value, type) and value.__module__ == module.__name__ and id(value) not in decorated
                if own and self.valid(value) and not getattr(value, "__abstractmethods__", None):
                    assert self.named is not None
                    name = self.named(value)
                    plugins[name] = Entry(name, value, str(module.__file__))
        for name, value in entry_points(self.group).items():
            if isinstance(value, ModuleType):  # imported to register what it holds
                continue
            if not self.valid(value):
                raise RobGIBError(f"entry point {name!r} of {self.group} is not {self.wanted}.")
            named = self.named(value) if self.named else name
            plugins[named] = Entry(named, value, f"entry point {name}")
        # What the plug-ins of other folders registered in this process is not theirs.
        registered = {name: entry for name, entry in self._held.items() if entry.source in searched}
        return {**registered, **plugins}

    def built_in(self, name: str) -> bool:
        """Whether the name exists without any plug-in."""
        return name in self._held and self._held[name].source == BUILT_IN

    def find(self, name: str, extra: Sequence[Path] = (), also: Sequence[str] = ()) -> T:
        """Return the entry called ``name``; ``also`` are further names to suggest in the error.

        Raises:
            RobGIBError: nothing is.
        """
        known = self.entries(extra)
        if name not in known:
            raise unknown_name(self.kind, name, [*known, *also])
        return known[name].value


def as_dataclass(kind: type[T], what: str) -> type[T]:
    """Make a plug-in's class that was not decorated a frozen dataclass, in place; return it.

    Args:
        kind: the class.
        what: what it is, for the error message, such as ``attack``.

    Raises:
        RobGIBError: a parameter has no type, or a default that all objects would share.

    >>> class Small:
    ...     steps: int = 10
    >>> as_dataclass(Small, "attack")(steps=5).steps
    5
    """
    if "__dataclass_params__" in kind.__dict__:
        return kind
    try:
        return dataclass(frozen=True)(kind)
    except (TypeError, ValueError) as error:
        if "__dataclass_params__" in kind.__dict__:  # so that the next use fails, too
            del kind.__dataclass_params__  # type: ignore[attr-defined]
        raise RobGIBError(
            f"{what} class {kind.__name__}: {first_line(error)}; give each parameter a type and a default of its own, "
            "as in `sizes: list = field(default_factory=list)`."
        ) from error


def is_packaged(path: Path) -> bool:
    """Whether a file of a catalogue comes with the package, and thus stays as it is while a process runs."""
    return path.parent in (_own("attacks"), _own("zoo"))


@functools.cache
def _own(kind: Kind) -> Path:
    package = Path(__file__).parent
    packaged = package / "content" / kind
    return packaged if packaged.is_dir() else package.parent / kind


def _given(extra: Sequence[Path]) -> list[Path]:
    """Return the folders that the environment and the caller name."""
    from_environment = [Path(p) for p in os.environ.get("ROBGIB_CATALOGUE", "").split(os.pathsep) if p]
    named = [as_path(p, "catalogue") for p in ([extra] if isinstance(extra, str | Path) else extra)]
    for folder in (*from_environment, *named):
        if not folder.is_dir():
            raise RobGIBError(f"catalogue folder {str(folder)!r} does not exist; give an existing folder.")
    return [*from_environment, *named]


def folders(kind: Kind, extra: Sequence[Path] = ()) -> list[Path]:
    """Return the folders searched for ``kind``, the least specific first."""
    searched = [_own(kind)] if kind in ("attacks", "zoo") else []
    for folder in _given(extra):
        searched += [folder, folder / kind] if (folder / kind).is_dir() else [folder]
    return searched


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping."""
    try:
        check_regular(path)
        content = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RobGIBError(f"cannot read {path}: {reason}.") from error
    except Exception as error:  # yaml raises of all kinds where a value is not of the kind that its tag says
        raise RobGIBError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        raise RobGIBError(f"{path} is empty; it must hold a mapping of keys to values.")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else repr(content)
        raise RobGIBError(f"{path} must hold a mapping of keys to values, not {kind}.")
    try:
        if _values(content, {}) > _MOST_VALUES:
            raise RobGIBError(
                f"{path} holds more than {_MOST_VALUES:,} values with its aliases expanded; make it smaller."
            )
        deep = too_deep(content)
    except RecursionError:
        deep = True
    if deep:
        raise RobGIBError(f"{path} is nested more than {DEEPEST} levels deep; make it flatter.")
    return copy.deepcopy(content)


@functools.lru_cache(maxsize=1024)  # every name is looked up among all files of the catalogue
def _parsed(text: str) -> Any:
    """Parse YAML; the result is shared by all calls with the same text."""
    return yaml.load(text, _Once)


class _Once(yaml.SafeLoader):
    """Reads plain values alone, and rejects repeated keys, of which YAML would silently keep the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See yaml; values that JSON cannot express are refused, since no reader of these files expects them."""
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind not in _PLAIN:
            hint = "; put it in quotes" if kind == "timestamp" else ""
            value = super().construct_object(node, deep) if kind == "timestamp" else None  # says so where it is none
            described = f"a date ({value})" if kind == "timestamp" else f"a value of the kind {kind}"
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} holds {described}, which is not a text, number or list{hint}")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.tag != "tag:yaml.org,2002:merge"]
        twice = next((k for k in keys if keys.count(k) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} is given twice in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "merge", "value")
_MOST_VALUES = 100_000


def _values(content: object, known: dict[int, int]) -> int:
    """Count the values of a YAML file with its aliases expanded, without expanding them."""
    if not isinstance(content, Mapping | list):
        return 1
    if id(content) not in known:
        known[id(content)] = _MOST_VALUES + 1  # of a list that holds itself
        parts = content.values() if isinstance(content, Mapping) else content
        known[id(content)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(content)]


def read_model(kind: type[Model], content: Mapping[str, Any], path: Path) -> Model:
    """Return the content of a YAML file as a pydantic model.

    Raises:
        ValidationError: see :func:`yaml_error`.
        RobGIBError: true or false stands where a number must be.
    """
    model = kind.model_validate(content)
    place = boolean_as_number(content, model)
    if place is not None:
        where = ".".join(map(str, place))
        raise RobGIBError(f"{path}, line {line_of(path, place)}: {where}: must be a number, not true or false.")
    return model


def yaml_error(error: ValidationError, path: Path) -> RobGIBError:
    """Return a file's first fault as an error of one sentence, with its line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    line = line_of(path, first["loc"])
    message = fault_text(first)
    if isinstance(first["input"], Mapping) or not where:  # what is wrong is no one value
        return RobGIBError(f"{path}, line {line}: {where + ': ' if where else ''}{message}.")
    return RobGIBError(f"{path}, line {line}: {where}: {message} (found {first['input']!r}).")


def line_of(path: Path, keys: Sequence[object]) -> int:
    """Return the line, from 1, of the innermost of nested ``keys`` in a YAML file."""
    node, line = yaml.compose(path.read_text(encoding="utf-8")), 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            pair = (node.value[key], node.value[key])
        else:
            pair = None
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def _by_stem(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda p: p.stem)  # so that net comes before net-wide


def yaml_files(kind: Kind, extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Return every catalogue file of ``kind`` by its name (the file's stem).

    A folder named for the kind may hold sub-folders: groups, known by the sub-folder's name.
    """
    others = folders(kind, extra)
    files: dict[str, Path] = {}
    if kind in ("attacks", "zoo"):
        own, *others = others
        files = {p.stem: p for pattern in ("*.yaml", "*/*.yaml") for p in _by_stem(own, pattern)}
    for folder in others:
        grouped = _by_stem(folder, "*/*.yaml") if folder.name == kind else []
        for path in (*_by_stem(folder, "*.yaml"), *grouped):
            try:
                content = read_yaml(path)
            except RobGIBError as error:  # its kind is unknown; the others remain usable
                if kind == "zoo":
                    files[path.stem] = path  # whoever reads it will say so
                elif kind == "attacks":
                    warnings.warn(f"skipped: {error}", RobGIBWarning, stacklevel=2)
                continue
            if _MARK[kind] in content:
                files[path.stem] = path
    return files


PLUGIN = "robgib_plugin_"
"""What the names of the modules of plug-in files begin with."""


def plugin_modules(extra: Sequence[Path] = ()) -> Iterator[ModuleType]:
    """Import and yield each Python plug-in file of the searched folders, once per process."""
    kinds: tuple[Kind, ...] = ("attacks", "estimators", "data", "zoo")
    for folder in dict.fromkeys(f for kind in kinds for f in folders(kind, extra)):
        for path in sorted(folder.glob("*.py")):
            if path.stem.startswith(("_", "test_")) or path.stem == "conftest":
                continue
            if not path.is_file():  # a pipe would be waited for
                raise RobGIBError(f"plug-in {path} is not a regular file; remove it.")
            resolved = str(path.resolve())
            key = f"{PLUGIN}{path.stem}_{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"
            if key not in sys.modules:
                spec = importlib.util.spec_from_file_location(key, path)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                sys.modules[key] = module  # dataclasses look their module up while it executes
                try:
                    spec.loader.exec_module(module)
                except (Exception, SystemExit) as error:
                    del sys.modules[key]
                    raise RobGIBError(
                        f"plug-in {path} does not import: {type(error).__name__}: {first_line(error)}."
                    ) from error
            yield sys.modules[key]


def load_plugins(extra: Sequence[Path] = ()) -> None:
    """Import every plug-in file and entry point, which may register architectures and data sets."""
    for _ in plugin_modules(extra):
        pass
    for group in ("robgib.models", "robgib.data"):
        entry_points(group)


def entry_points(group: str) -> dict[str, Any]:
    """Load the installed entry points of ``group`` (for example ``robgib.attacks``) by name."""
    loaded = {}
    for point in _installed(group, _package_folders()):
        try:
            loaded[point.name] = point.load()
        except (Exception, SystemExit) as error:
            raise RobGIBError(
                f"entry point {point.name!r} of {group} does not load: {type(error).__name__}: {first_line(error)}."
            ) from error
    return loaded


@functools.lru_cache(maxsize=64)
def _installed(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Return the installed entry points of a group; the search reads a file of every installed package."""
    return tuple(importlib.metadata.entry_points(group=group))


def _package_folders() -> tuple[tuple[str, int], ...]:
    """Return the folders that packages are imported from, each with the time at which a package was last installed."""
    return tuple((place, os.stat(place).st_mtime_ns if os.path.exists(place) else 0) for place in sys.path)


_LONGEST = 40  # characters of a number


def parse_value(text: Any) -> Any:
    """Turn ``8/255``, ``0.1``, ``20``, ``true``, ``none`` into values; other text remains text."""
    if not isinstance(text, str):
        return text
    words = {"true": True, "false": False, "none": None, "null": None, "inf": math.inf, "nan": math.nan}
    text = text.strip()
    if text.lower() in words:
        return words[text.lower()]
    if len(text) > _LONGEST and re.fullmatch(r"[-+\d./eE\s]+", text):
        raise RobGIBError(f"{text[:12]}… is a number of {len(text)} characters; give one of at most {_LONGEST}.")
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    top, slash, bottom = text.partition("/")
    if slash and _NUMBER.fullmatch(top.strip()) and _NUMBER.fullmatch(bottom.strip()):
        if float(bottom) == 0:
            raise RobGIBError(f"{text!r} divides by zero.")
        return float(top) / float(bottom)
    return text


def parse_pairs(text: str, what: str) -> dict[str, Any]:
    """Parse ``key=value,key=value``; ``what`` names the whole in error messages."""
    parameters: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise RobGIBError(f"{what}: {item!r} does not have the form key=value.")
        if key.strip() in parameters:
            raise RobGIBError(f"{what} gives {key.strip()!r} twice.")
        parameters[key.strip()] = parse_value(value)
    return parameters
