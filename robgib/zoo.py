"""The model zoo: recipes in YAML, checkpoints trained on first use and cached."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from robgib import catalogue
from robgib.data import Dataset, cache_folder, check_data, load_data
from robgib.download import download, sha256
from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.models import (
    build,
    check_file_architecture,
    load_into,
    read_checkpoint,
    read_record,
    read_state,
    save_checkpoint,
)
from robgib.models.programs import is_program
from robgib.store import environment, write_file
from robgib.training import Progress, Training, accuracy, train

__all__ = [
    "Architecture",
    "Recipe",
    "Stored",
    "add_recipe",
    "checkpoint_path",
    "chosen",
    "data_of",
    "find_recipe",
    "load_checkpoint",
    "load_model",
    "load_robustbench",
    "measure",
    "recipes",
    "stored_checkpoint",
    "table_markdown",
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


class Stored(BaseModel):
    """A finished checkpoint: where it lies, and what its bytes are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str | None = None
    """Path, relative to the recipe's folder or absolute."""
    url: str | None = Field(default=None, pattern=r"^(https?|file)://.+")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _one_place(self) -> Stored:
        if (self.file is None) == (self.url is None):
            raise ValueError("give either file or url")
        if self.url is not None and (told := _unsafe(self.download_name)):
            raise ValueError(f"the last part of the url names the file that is kept, and {told}")
        return self

    @property
    def download_name(self) -> str:
        """What a download is called in the cache: the last part of the URL."""
        return (self.url or "").rpartition("/")[2] or "checkpoint"


def _unsafe(name: str) -> str | None:
    """Why ``name`` cannot be that of a file in a folder, or None where it can."""
    if not name.strip() or name in (".", ".."):
        return "it must not be empty or dots alone"
    if len(name.encode(errors="replace")) > 200:  # file systems end at 255, and a digest and an ending follow
        return "it must be of at most 200 bytes"
    if any(c in "/\\:" or not c.isprintable() for c in name):
        return "it must hold no slash, backslash, colon or control character"
    return None


def _check_name(kind: str, name: str) -> None:
    """Raise unless a model's or group's name can be part of a file's name in the cache."""
    if told := _unsafe(name):
        raise RobGIBError(f"{kind} name {name!r} cannot name a file: {told}.")


class Recipe(BaseModel):
    """One model of the zoo: what it is, what it learns from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    group: str | None = None
    """The sub-folder of the catalogue that it lies in."""
    folder: str | None = Field(default=None, exclude=True)
    """Where the recipe's file lies."""
    allow_code: bool = Field(default=True, exclude=True)
    """Whether its architecture may be ``package.module:factory``; not in one that was read from a file."""
    description: str = ""
    data: str
    architecture: Architecture | None = None
    """What it is; a checkpoint that holds its network whole needs none."""
    training: Training = Field(default_factory=Training)
    checkpoint: Stored | None = None
    """Weights that are there already, in the place of training."""

    @field_validator("name", "group")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name is not None and (told := _unsafe(name)):
            raise ValueError(told)
        return name

    @model_validator(mode="after")
    def _has_a_network(self) -> Recipe:
        if self.architecture is None and self.checkpoint is None:
            raise ValueError("a recipe needs an architecture, or a checkpoint that holds its network whole")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the trained weights."""
        if self.checkpoint is not None:
            return self.checkpoint.sha256
        content = self.model_dump(include={"data", "architecture", "training"})
        training = content["training"]
        for key in _LATER_KEYS:  # so that a recipe without them keeps the digest from before there were such keys
            if training[key] == Training.model_fields[key].default:
                del training[key]
        if training.get("adversary") and training["adversary"]["trades"] is None:
            del training["adversary"]["trades"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def lasting(self, epochs: int | None) -> Recipe:
        """The recipe with another number of epochs; the same where that is None."""
        if epochs is None:
            return self
        return self.model_copy(update={"training": self.training.model_copy(update={"epochs": epochs})})

    def check_architecture(self) -> None:
        """Raise where building the network would run code that the recipe's file chooses, and that is not allowed."""
        if self.architecture is not None and self.folder is not None:
            file = str(Path(self.folder) / f"{self.name}.yaml")
            check_file_architecture(self.architecture.name, self.architecture.options, file, self.allow_code)

    def untrained(self, data: Dataset) -> nn.Module:
        """The network before training."""
        if self.architecture is None:
            raise RobGIBError(
                f"model {self.name!r} is a checkpoint that holds its network whole; there is none to build."
            )
        self.check_architecture()
        return build(self.architecture.name, data.shape, len(data.classes), self.architecture.options)


def _sentence(error: ValidationError, path: Path) -> RobGIBError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    line = catalogue.line_of(path, first["loc"])
    return RobGIBError(f"{path}, line {line}: {where or 'content'}: {first['msg'].lower()} (found {first['input']!r}).")


def recipes(extra: Sequence[Path] = ()) -> dict[str, Recipe]:
    """Return every recipe of the zoo and the given catalogue folders, by name."""
    return {name: _read(path) for name, path in catalogue.yaml_files("zoo", extra).items()}


def _read(path: Path, allow_code: bool = False) -> Recipe:
    content = catalogue.read_yaml(path)
    for key in ("folder", "allow_code"):  # not for the file to say
        if key in content:
            raise RobGIBError(f"{path}, line {catalogue.line_of(path, [key])}: {key}: extra inputs are not permitted.")
    if content.get("name", path.stem) != path.stem:
        raise RobGIBError(
            f"{path}, line {catalogue.line_of(path, ['name'])}: name: a recipe is called as its file, {path.stem!r}, "
            f"not {content['name']!r}; leave the key out or rename the file."
        )
    try:
        group = None if path.parent.name == "zoo" or path.parent.parent.name != "zoo" else path.parent.name
        recipe = Recipe.model_validate(
            {
                "name": path.stem,
                "group": group,
                **content,
                "folder": str(path.parent),
                "allow_code": allow_code,
            }
        )
    except ValidationError as error:
        raise _sentence(error, path) from error
    try:
        check_data(recipe.data)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return recipe


def _register(extra: Sequence[Path]) -> None:
    """Import the plug-ins, which may register the architecture that a recipe or record names."""
    for _ in catalogue.plugin_modules("zoo", extra):
        pass
    catalogue.entry_points("robgib.models")


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
    files = catalogue.yaml_files("zoo", extra)
    if name not in files:
        raise unknown_name("model", name, files, "robgib zoo list")
    _register(extra)
    recipe = _read(files[name], allow_code)
    recipe.check_architecture()
    return recipe


def chosen(
    names: Sequence[str],
    group: str | None,
    extra: Sequence[Path] = (),
    *,
    some: bool = False,
    allow_code: bool = False,
) -> list[Recipe]:
    """Return the recipes of these names and of this group; of neither, all of them, or an error where ``some``.

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
        _register(extra)
        others = [r.model_copy(update={"allow_code": allow_code}) for r in others]
        for recipe in others:
            recipe.check_architecture()
    return [*named, *others]


def data_of(recipe: Recipe, root: Path | None, loaded: dict[str, Dataset]) -> Dataset:
    """Return a recipe's data, from ``loaded`` if they are there.

    Always the zoo's own split: a model must not have trained on its test images.
    """
    if recipe.data not in loaded:
        loaded[recipe.data] = load_data(recipe.data, root)
    return loaded[recipe.data]


def checkpoint_path(recipe: Recipe, data: Dataset) -> Path:
    """Return where in the cache a trained checkpoint goes.

    Raises:
        RobGIBError: the recipe's name cannot be part of a file's.
    """
    _check_name("model", recipe.name)  # a copy of a recipe may have been given one that nothing checked
    return cache_folder() / "zoo" / f"{recipe.name}-{recipe.digest[:8]}-{data.digest[:8]}.safetensors"


def measure(
    recipes: Sequence[Recipe],
    attack: str,
    samples: int,
    *,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure models, trained first where need be.

    Returns:
        A row a model: name, description, weights in MB, clean and robust accuracy in percent with the latter's 95%
        interval, on the first ``samples`` test images, and the seconds that training took.
    """
    from robgib.evaluation import evaluate

    loaded: dict[str, Dataset] = {}
    rows = []
    for i, recipe in enumerate(recipes):
        data = data_of(recipe, root, loaded)
        model, record = load_model(recipe, data, device=device, progress=progress)
        run = evaluate(
            model,
            data,
            attacks=[attack],
            estimators=[],
            samples=samples,
            curve=False,
            signs=False,
            corruptions=False,
            device=device,
            catalogue=catalogue,
        )
        found = run.robustness[run.robustness["attack"] != "none"].iloc[0]
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        rows.append(
            {
                "model": recipe.name,
                "what it is": recipe.description,
                "architecture": recipe.architecture.name if recipe.architecture else "program",
                "MB": f"{size / 1e6:.2f}",
                "clean": f"{100 * found['clean_accuracy']:.1f}%",
                "robust": f"{100 * found['robust_accuracy']:.1f}%",
                "95% interval": f"{100 * found['low']:.1f}–{100 * found['high']:.1f}",
                "trained in": f"{record['seconds']:.0f} s" if "seconds" in record else "",
                "digest": recipe.digest[:8],
            }
        )
        if progress:
            progress("measuring", i + 1, len(recipes), recipe.name)
    return pd.DataFrame(rows)


def table_markdown(rows: pd.DataFrame, attack: str, samples: int, command: str) -> str:
    """Return :func:`measure`'s table as a Markdown page."""
    head = "| " + " | ".join(map(str, rows.columns)) + " |\n|" + " --- |" * len(rows.columns) + "\n"
    body = "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows.itertuples(index=False))
    told = environment()
    return (
        f"# The zoo, measured\n\nClean accuracy, and accuracy under `{attack}`, on {samples} test images; made by\n"
        f"`{command}` with torch {told['packages']['torch']}. The digest is the recipe's.\n\n{head}{body}"
    )


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
    if recipe.checkpoint is not None:
        raise RobGIBError(f"model {recipe.name!r} is a finished checkpoint; there is nothing to train.")
    recipe = recipe.lasting(epochs)
    recipe.check_architecture()
    path = out or checkpoint_path(recipe, data)
    if path.suffix != ".safetensors":
        raise RobGIBError(f"checkpoints are written as safetensors: name {str(path)!r} with that ending.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RobGIBError(f"cannot write to {path.parent}: {error.strerror or error}.") from error
    unfinished = path.with_suffix(".unfinished")
    model, result = train(
        lambda: recipe.untrained(data),
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
        "architecture": recipe.architecture.model_dump() if recipe.architecture else None,
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
    """Return a recipe's model from the cache, trained or downloaded first if it is not there, with its record."""
    if recipe.checkpoint is not None:
        path = stored_checkpoint(recipe, progress)
        content = read_checkpoint(path)
        architecture = recipe.architecture or Architecture(name="")
        if not isinstance(content, nn.Module) and not architecture.name:
            raise RobGIBError(
                f"model {recipe.name!r}: {path.name} holds weights alone; give the recipe an architecture."
            )
        recipe.check_architecture()
        model = _assemble(content, architecture.name, architecture.options, data, str(path))
        return model.to(device).eval(), read_record(path) or {}
    path = checkpoint_path(recipe, data)
    if not path.is_file():
        model, record, _ = train_recipe(recipe, data, device=device, progress=progress)
        return model, record
    model = recipe.untrained(data)
    load_into(model, read_state(path), f"the cached checkpoint {path}")
    return model.to(device).eval(), read_record(path) or {}


def stored_checkpoint(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Return the file of a recipe's ``checkpoint``, downloaded to the cache if need be, its digest verified.

    Raises:
        RobGIBError: the file is missing, its digest is another, or it cannot be downloaded.
    """
    stored = recipe.checkpoint
    assert stored is not None
    if stored.file is None:
        assert stored.url is not None
        _check_name("download", stored.download_name)
        path = cache_folder() / "downloads" / stored.sha256[:16] / stored.download_name
        if not path.is_file():
            download(stored.url, path, stored.sha256, recipe.name, progress)
    else:
        path = Path(recipe.folder or ".") / stored.file
        if not path.is_file():
            raise RobGIBError(f"model {recipe.name!r}: its checkpoint {path} does not exist.")
    found = sha256(path)
    if found != stored.sha256:
        raise RobGIBError(
            f"model {recipe.name!r}: {path} has the SHA-256 digest {found}, not the recipe's {stored.sha256}; "
            "it was changed or damaged."
        )
    return path


def add_recipe(
    file: Path,
    name: str,
    folder: Path,
    *,
    arch: str | None = None,
    data_name: str | None = None,
    root: Path | None = None,
    description: str = "",
    allow_code: bool = False,
) -> tuple[Path, float]:
    """Write a recipe for a checkpoint file, with its SHA-256 digest, once it is seen to load and to classify.

    Args:
        file: the checkpoint.
        name: of the model to be.
        folder: of recipes.
        arch: a registered name, or ``package.module:factory``; None for a file with a record or a whole network.
        data_name: its data set; None reads it from the record.
        root: the data folder.
        description: for the list.
        allow_code: take ``package.module:factory`` from the record, too, and run it.

    Returns:
        The recipe's path, and the model's accuracy on the test images.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise RobGIBError(f"a model's name is of lower-case letters, digits, hyphens and dots, not {name!r}.")
    target = folder / f"{name}.yaml"
    if target.exists() or name in recipes():
        raise RobGIBError(f"there is a model {name!r} already; choose another --name.")
    model, data = load_checkpoint(file, arch, data_name, root, allow_code=allow_code)
    record = read_record(file) or {}
    # A file that holds its network whole needs none, and a record beside it may name anything.
    architecture = {"name": arch} if arch else None if is_program(file) else record.get("architecture")
    try:
        place = (
            os.path.relpath(file, folder) if file.resolve().is_relative_to(folder.resolve()) else str(file.resolve())
        )
        content = {
            "description": description or f"Checkpoint {file.name}",
            "data": data_name or record["data"],
            **({"architecture": architecture} if architecture else {}),
            "checkpoint": {"file": place, "sha256": sha256(file)},
        }
    except OSError as error:
        raise RobGIBError(f"cannot read {file}: {error.strerror or error}.") from error
    write_file(target, yaml.safe_dump(content, sort_keys=False, default_flow_style=None).encode())
    return target, accuracy(model, data.test)


def load_checkpoint(
    path: Path,
    arch: str | None,
    data_name: str | None,
    root: Path | None,
    seed: int = 0,
    *,
    data: Dataset | None = None,
    allow_pickle: bool = False,
    extra: Sequence[Path] = (),
    allow_code: bool = False,
) -> tuple[nn.Module, Dataset]:
    """Load a checkpoint file and its data set.

    Args:
        path: a file of any kind that :func:`~robgib.models.read_checkpoint` reads.
        arch: of a state dict: ``package.module:factory`` or a registered name; None reads it from the record beside
            the file.
        data_name: the data set; None reads it from the record.
        root: the data folder.
        seed: of the data split.
        data: the data set itself, where it is loaded already.
        allow_pickle: unpickle what cannot be read otherwise. That can run any code.
        extra: further folders of plug-ins, which may register the architecture.
        allow_code: import and run what the record names as ``package.module:factory``; ``arch`` always may.

    Raises:
        RobGIBError: the file or its record is missing, damaged or of another network, or the record names code to run
            and that is not allowed.
    """
    content = read_checkpoint(path, allow_pickle=allow_pickle)
    whole = isinstance(content, nn.Module)
    record = read_record(path) or {}
    beside = path.with_suffix(".json")
    architecture = record.get("architecture") or {}
    if not isinstance(architecture, dict) or not isinstance(architecture.get("name", ""), str):
        raise RobGIBError(f"the record {beside} has no architecture with a name; remove or mend it.")
    if not isinstance(record.get("data") or "", str):
        raise RobGIBError(f"the record {beside} does not name its data; remove or mend it.")
    _register(extra)
    options = {} if arch is not None else {k: v for k, v in architecture.items() if k != "name"}
    if not whole and arch is None and "name" in architecture:
        check_file_architecture(architecture["name"], options, f"the record {beside}", allow_code)
    if not whole and arch is None and "name" not in architecture:
        raise RobGIBError(
            f"{path} has no record beside it that tells its architecture; give --arch package.module:factory."
        )
    name = data_name or record.get("data")
    if data is None:
        if name is None:
            raise RobGIBError(f"{path} has no record beside it that tells its data; give --data NAME.")
        data = load_data(name, root, seed)
    return _assemble(content, arch or architecture.get("name", ""), options, data, str(path)), data


def _assemble(
    content: nn.Module | dict[str, Tensor], arch: str, options: dict[str, Any], data: Dataset, source: str
) -> nn.Module:
    """Make the network of what a checkpoint holds, and see that it takes the data."""
    if not isinstance(content, nn.Module):
        model = build(arch, data.shape, len(data.classes), options)
        load_into(model, content, source)
        return model.eval()
    for count in (2, 3):  # of no fixed number
        x = data.test.x[:count]
        try:
            with torch.no_grad():
                logits = content(x)
        except Exception as error:
            hint = "" if count == 2 else "; export it with a dynamic batch dimension"
            raise RobGIBError(
                f"{source} does not take {count} images {data.shape} of {data.name} "
                f"({type(error).__name__}: {first_line(error)}){hint}."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RobGIBError(f"{source} gives {shape} for {count} images; a classifier gives logits (N, classes).")
    return content.eval()


def load_robustbench(name: str, root: Path | None) -> tuple[nn.Module, Dataset]:
    """Load a model of RobustBench's, ``DATASET/THREAT/NAME`` such as ``cifar10/Linf/Standard``, and its data.

    RobustBench's package downloads the weights and unpickles them.
    """
    parts = name.split("/")
    if len(parts) != 3 or parts[0] not in ("cifar10", "cifar100"):
        raise RobGIBError(
            f"robustbench:{name} must be robustbench:DATASET/THREAT/NAME, such as robustbench:cifar10/Linf/Standard, "
            "with cifar10 or cifar100."
        )
    try:
        library = importlib.import_module("robustbench.utils")
    except ImportError as error:
        raise RobGIBError(
            f"robustbench is not installed ({error}); `pip install git+https://github.com/RobustBench/robustbench.git` "
            "adds it."
        ) from error
    data = load_data(parts[0], root)
    try:
        model = library.load_model(
            model_name=parts[2],
            dataset=parts[0],
            threat_model=parts[1],
            model_dir=str(cache_folder() / "robustbench"),
        )
    except Exception as error:
        raise RobGIBError(f"robustbench:{name} does not load: {type(error).__name__}: {error}.") from error
    return _assemble(model, "", {}, data, f"robustbench:{name}"), data
