"""Recipes: architecture, data and training of a model, one YAML file each."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import nn

from robgib import registry
from robgib.data.dataset import Dataset
from robgib.data.loaders import check_data
from robgib.errors import RobGIBError, RobGIBWarning, unknown_name
from robgib.models.registry import build, check_file_architecture, library_name
from robgib.training.config import Training

__all__ = [
    "Architecture",
    "PretrainedWeights",
    "Recipe",
    "chosen",
    "find_recipe",
    "list_models",
    "read_recipe",
    "recipes",
]


class Architecture(BaseModel):
    """A registered architecture and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.__pydantic_extra__ or {})


_LATER_KEYS = ("adversary", "schedule", "warmup", "noise", "penalty", "ema", "amp", "compile", "early_stopping")


class PretrainedWeights(BaseModel):
    """A finished checkpoint: where it lies, and what its bytes are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str | None = None
    """Path, relative to the recipe's folder or absolute."""
    url: str | None = None
    size: PositiveInt | None = None
    """Bytes of the file: a download goes no further, and one of another size is refused."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    weights_key: str | None = Field(default=None, min_length=1)
    """Which of several networks in the file, by key or prefix."""

    @field_validator("url")
    @classmethod
    def _of_the_web(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]", url):
            raise ValueError("a url begins with https:// or http://; give a local file as `file`")
        return url

    @model_validator(mode="after")
    def _one_place(self) -> PretrainedWeights:
        if (self.file is None) == (self.url is None):
            raise ValueError("give either file or url")
        if self.url is not None and (reason := _unsafe(self.download_name)):
            raise ValueError(f"the last part of the url becomes a file name; {reason}")
        return self

    @property
    def download_name(self) -> str:
        """Name of a download in the cache: the last part of the URL."""
        return (self.url or "").rpartition("/")[2] or "checkpoint"


def _unsafe(name: str) -> str | None:
    """Return why ``name`` cannot be the name of a file in a folder; None if it can."""
    if not name.strip() or name in (".", ".."):
        return "it must not be empty or consist of dots"
    if len(name.encode(errors="replace")) > 200:  # file systems end at 255, and a digest and an ending follow
        return "it must have at most 200 bytes"
    if any(c in "/\\:" or not c.isprintable() for c in name):
        return "it must not contain a slash, backslash, colon or control character"
    return None


def check_name(kind: str, name: str) -> None:
    """Raise unless a model's or group's name can be part of a file's name in the cache."""
    if fault := _unsafe(name):
        raise RobGIBError(f"{kind} name {name!r} cannot name a file: {fault}.")


class Recipe(BaseModel):
    """One model of the zoo: its architecture, its data and its training."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    group: str | None = None
    """The sub-folder of the catalogue that it lies in."""
    folder: str | None = Field(default=None, exclude=True)
    """Where the recipe's file lies."""
    description: str = ""
    data: str
    architecture: Architecture | None = None
    """What it is; a checkpoint that holds its network whole needs none."""
    training: Training = Field(default_factory=Training)
    checkpoint: PretrainedWeights | None = None
    """Weights that are there already, in the place of training."""
    _allows_code: bool = PrivateAttr(default=False)
    _catalogue: tuple[Path, ...] = PrivateAttr(default=())
    """Whether its architecture may be ``package.module:factory``. Private: no text that is read can set it."""

    @field_validator("name", "group")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name is not None and (fault := _unsafe(name)):
            raise ValueError(fault)
        return name

    @model_validator(mode="after")
    def _has_a_network(self) -> Recipe:
        if self.architecture is None and self.checkpoint is None:
            raise ValueError("a recipe needs an architecture, or a checkpoint that holds a complete network")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the trained weights."""
        if self.checkpoint is not None:
            stored, key = self.checkpoint.sha256, self.checkpoint.weights_key
            return stored if key is None else hashlib.sha256(f"{stored} {key}".encode()).hexdigest()
        content = self.model_dump(include={"data", "architecture", "training"})
        training = content["training"]
        for key in _LATER_KEYS:  # so that a recipe without them keeps the digest from before there were such keys
            if training[key] == Training.model_fields[key].default:
                del training[key]
        if training.get("adversary"):
            training["adversary"] = {
                k: v for k, v in training["adversary"].items() if v is not None or k not in ("trades", "mart", "awp")
            }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def lasting(self, epochs: int | None) -> Recipe:
        """The recipe with another number of epochs; unchanged if that is None."""
        if epochs is None:
            return self
        return self.model_copy(update={"training": self.training.model_copy(update={"epochs": epochs})})

    @property
    def allows_code(self) -> bool:
        """Whether its architecture may be ``package.module:factory``, whose code is imported and run."""
        return self._allows_code

    def allowing_code(self, allowed: bool = True) -> Recipe:
        """The recipe with such an architecture allowed or not, by the decision of the user who trusts it.

        >>> own = Recipe(name="own", data="digits", architecture={"name": "mynets:make"})
        >>> own.allows_code, own.allowing_code().allows_code
        (False, True)
        """
        made = self.model_copy()
        made._allows_code = allowed
        return made

    @property
    def catalogue(self) -> tuple[Path, ...]:
        """Further folders of plug-ins, whose data sets it may name."""
        return self._catalogue

    def among(self, catalogue: Sequence[Path]) -> Recipe:
        """The recipe with the data sets and plug-ins of these folders."""
        made = self.model_copy()
        made._catalogue = tuple(catalogue)
        return made

    def check_architecture(self, source: str | None = None) -> None:
        """Raise if building the network would run code that the recipe names and that is not allowed.

        Args:
            source: what names the architecture, for the message; None is the recipe's file.
        """
        if self.architecture is not None:
            file = f"recipe {self.name!r}" if self.folder is None else str(Path(self.folder) / f"{self.name}.yaml")
            check_file_architecture(
                self.architecture.name, self.architecture.options, source or file, self._allows_code
            )

    def untrained(self, data: Dataset) -> nn.Module:
        """The network before training."""
        if self.architecture is None:
            raise RobGIBError(f"model {self.name!r} is a checkpoint with a complete network and cannot be built.")
        self.check_architecture()
        return build(
            self.architecture.name,
            data.shape,
            len(data.classes),
            self.architecture.options,
            allow_code=self._allows_code,
        )


def recipes(extra: Sequence[Path] = ()) -> dict[str, Recipe]:
    """Return every recipe of the zoo and the given catalogue folders, by name.

    One that cannot be read is skipped with a warning, so that the others remain usable.
    """
    registry.load_plugins(extra)
    by_name = {}
    for name, path in registry.yaml_files("zoo", extra).items():
        try:
            by_name[name] = _read(path, extra)
        except RobGIBError as error:
            warnings.warn(f"recipe skipped: {error}", RobGIBWarning, stacklevel=2)
    return by_name


def _read(path: Path, extra: Sequence[Path] = ()) -> Recipe:
    content = registry.read_yaml(path)
    if "folder" in content:  # not for the file to say
        line = registry.line_of(path, ["folder"])
        raise RobGIBError(f"{path}, line {line}: folder: extra inputs are not permitted.")
    if content.get("name", path.stem) != path.stem:
        raise RobGIBError(
            f"{path}, line {registry.line_of(path, ['name'])}: name: a recipe has the name of its file, {path.stem!r}, "
            f"not {content['name']!r}; remove the key or rename the file."
        )
    try:
        group = None if path.parent.name == "zoo" or path.parent.parent.name != "zoo" else path.parent.name
        whole = {"name": path.stem, "group": group, **content, "folder": str(path.parent)}
        recipe = registry.read_model(Recipe, whole, path)
    except ValidationError as error:
        raise registry.yaml_error(error, path) from error
    try:
        check_data(recipe.data, extra)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return recipe.among(extra)


def list_models(group: str | None = None, catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of the zoo's models, or of one group of them.

    >>> "digits-cnn" in list_models()
    True
    """
    return [recipe.name for recipe in chosen((), group, catalogue)]


def find_recipe(name: str, extra: Sequence[Path] = (), *, allow_code: bool = False) -> Recipe:
    """Return the recipe called ``name``.

    Args:
        name: of the model.
        extra: further folders of the catalogue.
        allow_code: take an architecture ``package.module:factory`` of the recipe's, whose code is imported and run
            when the network is built.

    Raises:
        RobGIBError: there is none, its file is wrong, or it names code to run and that is not allowed.
    """
    recipe = read_recipe(name, extra).allowing_code(allow_code)
    recipe.check_architecture()
    return recipe


def read_recipe(name: str, extra: Sequence[Path] = ()) -> Recipe:
    """Return the recipe called ``name`` for inspection; a recipe that names code is not allowed to run it.

    Raises:
        RobGIBError: there is none, or its file is wrong.
    """
    files = registry.yaml_files("zoo", extra)
    registry.load_plugins(extra)
    if name not in files:
        here = f"./{name}" if Path(name).exists() else None
        raise unknown_name("model", name, files, "robgib zoo list", here or library_name(name))
    return _read(files[name], extra)


def chosen(
    names: Sequence[str],
    group: str | None,
    extra: Sequence[Path] = (),
    *,
    some: bool = False,
    allow_code: bool = False,
) -> list[Recipe]:
    """Return the recipes of these names and of this group; without either all recipes, or an error if ``some``.

    With ``some`` they are to be built, and code that a recipe names is refused as :func:`find_recipe` does.
    """
    known = recipes(extra)
    groups = sorted({r.group for r in known.values() if r.group})
    if group is not None and group not in groups:
        raise unknown_name("group", group, groups)
    if some and not names and group is None:
        raise RobGIBError(f"name models, or give --group ({', '.join(groups)}).")
    named = [find_recipe(name, extra, allow_code=allow_code) for name in names]
    if names and group is None:
        return named
    others = [r for r in known.values() if (group is None or r.group == group) and r.name not in names]
    if some:
        others = [r.allowing_code(allow_code) for r in others]
        for recipe in others:
            recipe.check_architecture()
    return [*named, *others]
