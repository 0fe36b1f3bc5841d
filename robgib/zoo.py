"""The model zoo: recipes in YAML, checkpoints trained on first use and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from robgib import catalogue
from robgib.data import Dataset, cache_folder, check_data, load_data
from robgib.errors import RobGIBError, unknown_name
from robgib.models import build, load_into, read_record, read_state, save_checkpoint
from robgib.store import environment, write_file
from robgib.training import Progress, Training, train

__all__ = [
    "Architecture",
    "Recipe",
    "find_recipe",
    "load_checkpoint",
    "load_model",
    "recipes",
    "train_recipe",
]


class Architecture(BaseModel):
    """A registered architecture and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.__pydantic_extra__ or {})


_LATER_KEYS = ("adversary", "schedule", "warmup", "noise", "penalty", "ema", "amp", "compile")


class Recipe(BaseModel):
    """One model of the zoo: what it is, what it learns from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    group: str | None = None
    """The sub-folder of the catalogue that it lies in."""
    description: str = ""
    data: str
    architecture: Architecture
    training: Training = Field(default_factory=Training)

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the trained weights."""
        content = self.model_dump(include={"data", "architecture", "training"})
        training = content["training"]
        for key in _LATER_KEYS:  # so that a recipe without them keeps the digest from before there were such keys
            if training[key] == Training.model_fields[key].default:
                del training[key]
        if training.get("adversary") and training["adversary"]["trades"] is None:
            del training["adversary"]["trades"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sentence(error: ValidationError, source: object) -> RobGIBError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return RobGIBError(f"{source}: {where or 'content'}: {first['msg'].lower()} (found {first['input']!r}).")


def recipes(extra: Sequence[Path] = ()) -> dict[str, Recipe]:
    """Return every recipe of the zoo and the given catalogue folders, by name."""
    return {name: _read(path) for name, path in catalogue.yaml_files("zoo", extra).items()}


def _read(path: Path) -> Recipe:
    try:
        group = None if path.parent.name == "zoo" or path.parent.parent.name != "zoo" else path.parent.name
        recipe = Recipe.model_validate({"name": path.stem, "group": group, **catalogue.read_yaml(path)})
    except ValidationError as error:
        raise _sentence(error, path) from error
    try:
        check_data(recipe.data)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return recipe


def find_recipe(name: str, extra: Sequence[Path] = ()) -> Recipe:
    """Return the recipe called ``name``."""
    files = catalogue.yaml_files("zoo", extra)
    if name not in files:
        raise unknown_name("model", name, files, "robgib zoo list")
    for _ in catalogue.plugin_modules("zoo", extra):
        pass  # a plug-in may register the architecture that the recipe names
    catalogue.entry_points("robgib.models")
    return _read(files[name])


def _checkpoint_path(recipe: Recipe, data: Dataset) -> Path:
    return cache_folder() / "zoo" / f"{recipe.name}-{recipe.digest[:8]}-{data.digest[:8]}.safetensors"


def train_recipe(
    recipe: Recipe,
    data: Dataset,
    out: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    epochs: int | None = None,
    progress: Progress | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, dict[str, Any], Path]:
    """Train a recipe's model and write its checkpoint, its record and a log, ``.log.csv``, a row an epoch.

    A training that was killed is taken up where its last epoch ended, from a file beside the checkpoint that ends in
    ``.unfinished``. ``watch`` is called after each epoch, as :func:`~robgib.training.train` says.

    Returns:
        The model (eval mode, on ``device``), its metadata record, and the checkpoint's path: ``out``, or
        the cache when ``out`` is None.
    """
    if epochs is not None:
        training = recipe.training.model_copy(update={"epochs": epochs})
        recipe = recipe.model_copy(update={"training": training})
    path = out or _checkpoint_path(recipe, data)
    if path.suffix != ".safetensors":
        raise RobGIBError(f"checkpoints are written as safetensors: name {str(path)!r} with that ending.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RobGIBError(f"cannot write to {path.parent}: {error.strerror or error}.") from error
    unfinished = path.with_suffix(".unfinished")
    model, result = train(
        lambda: build(recipe.architecture.name, data.shape, len(data.classes), recipe.architecture.options),
        data,
        recipe.training,
        device=device,
        progress=progress,
        label=f"training {recipe.name}",
        watch=watch,
        unfinished=(unfinished, f"{recipe.digest}-{data.digest}"),
    )
    history = pd.DataFrame(result.pop("history"))
    record = {
        "name": recipe.name,
        "data": recipe.data,
        "architecture": recipe.architecture.model_dump(),
        "training": recipe.training.model_dump(),
        "recipe_digest": recipe.digest,
        "data_digest": data.digest,
        "seed": recipe.training.seed,
        **result,
        "environment": environment(device),
    }
    write_file(path.with_suffix(".log.csv"), history.to_csv(index=False).encode())
    save_checkpoint(model, path, record)
    unfinished.unlink(missing_ok=True)
    return model, record, path


def load_model(
    recipe: Recipe,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a recipe's model from the cache, trained first if it is not there, with its record."""
    path = _checkpoint_path(recipe, data)
    if not path.is_file():
        model, record, _ = train_recipe(recipe, data, device=device, progress=progress)
        return model, record
    model = build(recipe.architecture.name, data.shape, len(data.classes), recipe.architecture.options)
    load_into(model, read_state(path), f"the cached checkpoint {path}")
    return model.to(device).eval(), read_record(path) or {}


def load_checkpoint(
    path: Path, arch: str | None, data_name: str | None, root: Path | None, seed: int = 0
) -> tuple[nn.Module, Dataset]:
    """Load a checkpoint file and its data set.

    Args:
        path: ``.safetensors``, ``.pt`` or ``.pth`` state dict.
        arch: ``package.module:factory`` or a registered name; None reads it from the record beside the file.
        data_name: the data set; None reads it from the record.
        root: the data folder.
        seed: of the data split.
    """
    state = read_state(path)
    record = read_record(path) or {}
    architecture = dict(record.get("architecture") or {})
    if arch is None and "name" not in architecture:
        raise RobGIBError(
            f"{path} has no record beside it that tells its architecture; give --arch package.module:factory."
        )
    name = data_name or record.get("data")
    if name is None:
        raise RobGIBError(f"{path} has no record beside it that tells its data; give --data NAME.")
    data = load_data(name, root, seed)
    options = {} if arch is not None else {k: v for k, v in architecture.items() if k != "name"}
    model = build(arch or architecture["name"], data.shape, len(data.classes), options)
    load_into(model, state, str(path))
    return model.eval(), data
