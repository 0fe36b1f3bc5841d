"""Where named content lives: attack files, zoo recipes and drop-in Python plug-ins.

Content is looked for in the package (or the repository it runs from), in the folders given with
``--catalogue`` or ``ROBGIB_CATALOGUE``, and in installed entry points. A folder may hold files
directly or in sub-folders named ``attacks`` and ``zoo``, and there in groups, a folder each. A later
folder overrides an earlier one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from robgib.errors import RobGIBError, unknown_name

__all__ = [
    "Kind",
    "entry_points",
    "folders",
    "line_of",
    "parse_pairs",
    "parse_value",
    "plugin_classes",
    "plugin_modules",
    "read_yaml",
    "validated",
    "yaml_files",
]

Kind = Literal["attacks", "zoo"]
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_MARK: dict[str, str] = {"attacks": "attack", "zoo": "data"}  # the key that tells a file's kind


def _own(kind: Kind) -> Path:
    package = Path(__file__).parent
    packaged = package / "content" / kind
    return packaged if packaged.is_dir() else package.parent / kind


def folders(kind: Kind, extra: Sequence[Path] = ()) -> list[Path]:
    """Return the folders searched for ``kind``, the least specific first."""
    found = [_own(kind)]
    from_environment = [Path(p) for p in os.environ.get("ROBGIB_CATALOGUE", "").split(os.pathsep) if p]
    for folder in (*from_environment, *extra):
        if not folder.is_dir():
            raise RobGIBError(f"catalogue folder {str(folder)!r} does not exist; give an existing folder.")
        found += [folder, folder / kind] if (folder / kind).is_dir() else [folder]
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RobGIBError(f"cannot read {path}: {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a date that is none
        raise RobGIBError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise RobGIBError(f"{path} must hold a mapping of keys to values, not {type(content).__name__}.")
    return content


def line_of(path: Path, keys: Sequence[object]) -> int:
    """Line, from 1, of the innermost of nested ``keys`` that a YAML file holds."""
    node, line = yaml.compose(path.read_text(encoding="utf-8")), 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key], node.value[key])
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _by_stem(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda p: p.stem)  # so that net comes before net-wide


def yaml_files(kind: Kind, extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Return every catalogue file of ``kind`` by its name (the file's stem).

    A folder named for the kind may hold sub-folders: groups, known by the sub-folder's name.
    """
    own, *others = folders(kind, extra)
    found = {p.stem: p for pattern in ("*.yaml", "*/*.yaml") for p in _by_stem(own, pattern)}
    for folder in others:
        grouped = _by_stem(folder, "*/*.yaml") if folder.name == kind else []
        for path in (*_by_stem(folder, "*.yaml"), *grouped):
            if _MARK[kind] in read_yaml(path):
                found[path.stem] = path
    return found


def plugin_modules(kind: Kind, extra: Sequence[Path] = ()) -> Iterator[ModuleType]:
    """Import and yield each Python plug-in file of the searched folders, once per process."""
    for folder in folders(kind, extra):
        for path in sorted(folder.glob("*.py")):
            if path.stem.startswith(("_", "test_")) or path.stem == "conftest":
                continue
            resolved = str(path.resolve())
            key = f"robgib_plugin_{path.stem}_{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"
            if key not in sys.modules:
                spec = importlib.util.spec_from_file_location(key, path)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                sys.modules[key] = module  # dataclasses look their module up while it executes
                try:
                    spec.loader.exec_module(module)
                except Exception as error:
                    del sys.modules[key]
                    raise RobGIBError(f"plug-in {path} does not import: {type(error).__name__}: {error}.") from error
            yield sys.modules[key]


def plugin_classes(kind: Kind, base: type[Any], extra: Sequence[Path] = ()) -> Iterator[tuple[type[Any], str]]:
    """Yield the concrete subclasses of ``base`` that plug-in files define, each with its file."""
    for module in plugin_modules(kind, extra):
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, base)
                and value.__module__ == module.__name__
                and not getattr(value, "__abstractmethods__", None)
            ):
                yield value, str(module.__file__)


def entry_points(group: str) -> dict[str, Any]:
    """Load the installed entry points of ``group`` (for example ``robgib.attacks``) by name."""
    loaded = {}
    for point in importlib.metadata.entry_points(group=group):
        try:
            loaded[point.name] = point.load()
        except Exception as error:
            raise RobGIBError(
                f"entry point {point.name!r} of {group} does not load: {type(error).__name__}: {error}."
            ) from error
    return loaded


def parse_value(text: Any) -> Any:
    """Turn ``8/255``, ``0.1``, ``20``, ``true``, ``none`` into what they mean; other text stays text."""
    if not isinstance(text, str):
        return text
    words = {"true": True, "false": False, "none": None, "null": None, "inf": math.inf, "nan": math.nan}
    text = text.strip()
    if text.lower() in words:
        return words[text.lower()]
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
            raise RobGIBError(f"{what}: {item!r} is not of the form key=value.")
        if key.strip() in parameters:
            raise RobGIBError(f"{what} gives {key.strip()!r} twice.")
        parameters[key.strip()] = parse_value(value)
    return parameters


def validated(kind: type[Any], parameters: dict[str, Any], what: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """Check parameters against the fields of a dataclass and return them in the fields' types.

    ``also`` names parameters that a person could have meant but that are dealt with elsewhere.
    """
    hints = typing.get_type_hints(kind)
    fields = {
        f.name: f for f in dataclasses.fields(kind) if f.init and f.name != "threat" and not f.name.startswith("_")
    }
    for key in parameters:
        if key not in fields:
            raise unknown_name(f"parameter of {what}:", key, [*fields, *also])
    model = create_model(
        kind.__name__,
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        **{n: (hints[n], None) for n in parameters},  # type: ignore[call-overload]
    )
    try:
        checked = model(**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise RobGIBError(f"{what}: {where}: {first['msg'].lower()} (found {first['input']!r}).") from error
    return {name: getattr(checked, name) for name in fields if name in parameters}
