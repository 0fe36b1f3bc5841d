"""Models from recipes, files and RobustBench; trained first where need be."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor, nn

from robgib._absent import stand_in
from robgib._torchvision import load_torchvision
from robgib.data.classes import class_indices, map_classes, read_classes
from robgib.data.dataset import Bounds, Dataset, read_images
from robgib.data.loaders import check_data, load_data
from robgib.data.sizing import Sizing
from robgib.errors import RobGIBError, RobGIBWarning, first_line
from robgib.files import alone, cache_folder, download, sha256, write_file
from robgib.models.adapt import logits_in
from robgib.models.checkpoint import (
    CHECKPOINT_SUFFIXES,
    Checkpoint,
    read_checkpoint,
    read_record,
    read_state,
    save_checkpoint,
)
from robgib.models.fitting import fit, load_into
from robgib.models.normalization import Normalization, Ported
from robgib.models.pretrained import is_pretrained, is_transformers_folder, load_pretrained
from robgib.models.programs import is_program
from robgib.models.registry import build, check_architecture, check_file_architecture
from robgib.registry import load_plugins
from robgib.results import csv_text
from robgib.runtime import Progress, environment, network_faults, progress_bars
from robgib.training.loop import accuracy, train
from robgib.training.tracing import Trace, saved_epochs, snapshots, trace
from robgib.zoo.recipe import Architecture, Recipe, check_name, find_recipe, recipes

__all__ = [
    "ROBUSTBENCH",
    "Loaded",
    "add_recipe",
    "check_named",
    "checkpoint_path",
    "data_of",
    "is_file",
    "load",
    "load_checkpoint",
    "load_model",
    "load_recipe",
    "load_robustbench",
    "stored_checkpoint",
    "trace_recipe",
    "train_recipe",
]


def data_of(recipe: Recipe, root: Path | None, loaded: dict[str, Dataset]) -> Dataset:
    """Return a recipe's data, from ``loaded`` if they are there.

    Always the zoo's own split: a model must not have trained on its test images.
    """
    if recipe.data not in loaded:
        loaded[recipe.data] = load_data(recipe.data, root, catalogue=recipe.catalogue)
    return loaded[recipe.data]


def checkpoint_path(recipe: Recipe, data: Dataset) -> Path:
    """Return where in the cache a trained checkpoint goes.

    Raises:
        RobGIBError: the recipe's name cannot be part of a file's.
    """
    check_name("model", recipe.name)  # a copy of a recipe may have been given one that nothing checked
    return cache_folder() / "zoo" / f"{recipe.name}-{recipe.digest[:8]}-{data.digest[:8]}.safetensors"


def trace_recipe(
    recipe: Recipe,
    data: Dataset,
    out: Path,
    at: Sequence[int],
    estimators: Sequence[str],
    *,
    keep: bool = False,
    samples: int = 2000,
    features: str = "auto",
    device: torch.device | str = "cpu",
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> tuple[Trace, dict[str, Any]]:
    """Train a recipe's model and follow the information in its layers (:func:`~robgib.training.trace`).

    Args:
        recipe: of the model.
        data: it learns from.
        out: checkpoint to write; the networks of the epochs lie in the folder ``.epochs`` beside it.
        at: epochs to follow.
        estimators: specifications.
        keep: whether that folder stays.
        samples: most samples to estimate on.
        features: partition of the input.
        device: where to compute.
        catalogue: further folders of plug-ins.
        progress: called with (task, done, total, note).

    Returns:
        The trace, and the training's record.
    """
    folder = out.with_suffix(".epochs")
    told = {"name": recipe.name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
    _, record, _ = train_recipe(recipe, data, out, device=device, progress=progress, watch=snapshots(folder, at, told))

    def load(path: Path) -> nn.Module:
        allowed = recipe.allows_code
        return load_checkpoint(path, None, None, None, data=data, extra=list(catalogue), allow_code=allowed).model

    networks = {e: partial(load, f) for e, f in saved_epochs(folder).items() if e in at}
    found = trace(
        networks,
        data,
        estimators,
        samples=samples,
        features=features,
        device=device,
        catalogue=catalogue,
        progress=progress,
    )
    if not keep:
        shutil.rmtree(folder)
    return found, record


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
    write_file(path.with_suffix(".log.csv"), csv_text(history).encode())
    save_checkpoint(model, path, record)
    unfinished.unlink(missing_ok=True)
    return model, record, path


@dataclass(frozen=True)
class Loaded:
    """A model with its data.

    Attributes:
        name: of the model.
        model: in eval mode, on the device that was asked for.
        data: its data set.
        source: what a run records about where it came from.
        notes: how its file was read and what is done to images before they reach it, a sentence each.
        left_out: those of them that say what the file holds and the network does not.
    """

    name: str
    model: nn.Module
    data: Dataset
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def load_model(name: str | Path, **options: Any) -> tuple[nn.Module, Dataset]:
    """Load a model with its data, trained first where need be.

    What a checkpoint file holds and the network does not is warned of (:class:`~robgib.RobGIBWarning`).

    Args:
        name: a zoo name, a checkpoint file, or a trained network of a library (:func:`load`).
        options: those of :func:`load`.

    Returns:
        The model in eval mode, and its data set.

    Raises:
        RobGIBError: an unknown name, a file that cannot be read, or data that are not there.

    >>> model, data = load_model("digits-cnn")
    >>> data.shape
    (1, 8, 8)
    """
    found = load(name, **options)
    for told in found.left_out:
        warnings.warn(f"{found.name}: {told}", RobGIBWarning, stacklevel=2)
    return found.model, read_images(found.data)


def load(
    name: str | Path,
    *,
    arch: str | None = None,
    data: str | None = None,
    data_root: str | Path | None = None,
    seed: int = 0,
    classes: str | Path | Sequence[str] | None = None,
    class_subset: bool | None = None,
    weights_key: str | None = None,
    normalization: Normalization | None = None,
    sizing: Sizing | None = None,
    data_bounds: Bounds | None = None,
    catalogue: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    loaded: dict[str, Dataset] | None = None,
    progress: Progress | bool = True,
    allow_pickle: bool = False,
    allow_code: bool = False,
) -> Loaded:
    """Load a model with its data, and say where it came from.

    Args:
        name: a zoo name, a checkpoint file or folder, ``torchvision:NAME`` (or ``NAME/WEIGHTS``), ``timm:NAME``,
            ``hf:ORG/NAME`` or ``hf:FOLDER``, or ``robustbench:DATASET/THREAT/NAME``.
        arch: architecture of a checkpoint file: a name, or ``package.module:factory``.
        data: data set of a checkpoint file; None reads it from the record beside the file. Another than a zoo model's
            own must have images of the same shape.
        data_root: folder of the data files.
        seed: of the data split, for checkpoint files.
        classes: of the model, in its order, where the data number theirs otherwise
            (:func:`~robgib.data.read_classes`). A library's trained network brings its own.
        class_subset: whether the model then chooses among the data's classes alone; None is where ``classes`` are given
            and the data's are some of them.
        weights_key: which of several sets of weights in a checkpoint file: the key of a state dict, such as
            ``state_dict_ema``, a prefix, such as ``teacher``, or both with a dot between.
        normalization: what a checkpoint's network wants done to images in [0, 1]; None is what its file says (a
            normaliser beside the network, a configuration), or what its architecture does by itself.
        sizing: how images are resized and cropped; None is as a library's trained network wants it, or not at all.
        data_bounds: the numbers of the data that mean black and white (:func:`~robgib.data.load_data`).
        catalogue: further folders of recipes and plug-ins.
        device: where the model goes.
        loaded: data sets that are loaded already, by name; what is loaded here is added.
        progress: whether bars show in a terminal or a notebook; or called with (task, done, total, note).
        allow_pickle: unpickle files that hold more than weights. They can run any code.
        allow_code: take ``package.module:factory`` from recipes and records, whose code is imported and run; read
            TorchScript and torch.export programs whatever they call.

    Raises:
        RobGIBError: an unknown name, a file that cannot be read, or data that are not there.
    """
    root = None if data_root is None else Path(data_root)
    text = str(name)
    own = None if classes is None else read_classes(classes)
    if is_pretrained(text) or (is_file(name) and is_transformers_folder(Path(name)) and not arch):
        if arch is not None or normalization is not None or weights_key is not None:
            raise RobGIBError(f"{text!r} has its own architecture, weights and normalisation; leave these options out.")
        if data is None:
            raise RobGIBError(f"{text!r} brings no data; give --data, such as folder:DIR.")

        def read(size: Sizing) -> Dataset:
            return load_data(data, root, seed, catalogue=catalogue, sizing=size, bounds=data_bounds, lazy=True)

        check_data(data, catalogue)  # refused before anything is downloaded
        return _library(text, read, own, class_subset, sizing, device)
    if class_subset and own is None:
        raise RobGIBError("a subset of the classes needs to know them all; give --classes imagenet or a file.")
    check_named(name, arch, weights_key, normalization)
    given = None
    if data is not None:
        given = load_data(data, root, seed, catalogue=catalogue, sizing=sizing, bounds=data_bounds, lazy=True)
    elif own is not None:
        raise RobGIBError("--classes says what the classes of --data are; give that too.")
    elif sizing is not None and sizing.changes:
        raise RobGIBError("resizing and cropping are of --data; give that too.")
    elif data_bounds is not None:
        raise RobGIBError("bounds are of --data; give that too.")
    known = given if given is None or own is None else map_classes(given, own)
    resized = _resizing(sizing)
    if is_file(name):
        path = Path(name)
        with_data = load_checkpoint(
            path,
            arch,
            data,
            root,
            seed,
            data=known,
            allow_pickle=allow_pickle,
            extra=catalogue,
            allow_code=allow_code,
            weights_key=weights_key,
            normalization=normalization,
        )
        source = {"kind": "checkpoint", "file": path.name, "arch": arch}
        model, found, notes = with_data.model.to(device), with_data.data, (*with_data.notes, *resized)
        made = Loaded(path.stem, model, found, source, notes, with_data.left_out)
        return _chosen_classes(made, given, own, class_subset)
    if text.startswith(ROBUSTBENCH):
        model, found = load_robustbench(text.removeprefix(ROBUSTBENCH), root)
        used, other = _other_data(text, found, known)
        source = {"kind": "robustbench", "name": text, **other}
        made = Loaded(text.rpartition("/")[2], model.to(device), used, source, resized)
        return _chosen_classes(made, given, own, class_subset)
    recipe = find_recipe(text, catalogue, allow_code=allow_code)
    found = data_of(recipe, root, {} if loaded is None else loaded)
    used, other = _other_data(text, found, known)  # refused before the model is trained
    with progress_bars(progress) as told:
        model, record = load_recipe(recipe, found, device=device, progress=told)
    accuracy_told = record.get("test_accuracy")
    source = {"kind": "zoo", "recipe": text, "recipe_digest": recipe.digest, "test_accuracy": accuracy_told, **other}
    notes, left_out = (tuple(record.get(key, ())) for key in ("notes", "left_out"))
    made = Loaded(text, model, used, source, (*notes, *resized), left_out)
    return _chosen_classes(made, given, own, class_subset)


def check_named(
    name: str | Path, arch: str | None, weights_key: str | None, normalization: Normalization | None
) -> None:
    """Raise where the options are not of such a model, or name no architecture."""
    file = is_file(name)
    if not file and (arch is not None or weights_key is not None or normalization is not None):
        raise RobGIBError(
            f"{'--arch' if arch else '--weights-key' if weights_key else 'a normalisation'} is of checkpoint files; "
            f"{name!r} has its own {'architecture' if arch else 'weights' if weights_key else 'normalisation'}."
        )
    if file and arch:
        check_architecture(arch)


def _library(
    name: str,
    read: Callable[[Sizing], Dataset],
    own: Sequence[tuple[str, ...]] | None,
    subset: bool | None,
    sizing: Sizing | None,
    device: torch.device | str,
) -> Loaded:
    """A network that a library holds trained, on data that are brought to what it takes."""
    asked = own is not None
    found = load_pretrained(name if is_pretrained(name) else f"hf:{name}")
    size = sizing
    if size is None:
        size = Sizing(found.resize, found.crop, found.interpolation)  # type: ignore[arg-type]
    given = read(size)
    own = own or _with_ids(found.classes)
    known = map_classes(given, own) if given.by_name and own else given
    if subset and not (given.by_name and own):
        raise RobGIBError("a subset of the classes needs to know them all; give --classes imagenet or a file.")
    source = {"kind": "library", "name": name, "weights": found.source}
    notes = (*_resizing(size), *_normalizing(found.model))
    made = Loaded(name.rpartition(":")[2].replace("/", "-"), found.model.to(device), known, source, notes)
    return _chosen_classes(made, given, own if subset or (asked and given.by_name) else None, subset)


_ALIKE = 0.9  # of the names that ImageNet's classes go by; libraries write some of them in other ways


def _with_ids(classes: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """The classes with their synset ids, which folders go by, where they are ImageNet's thousand."""
    known = read_classes("imagenet")
    if len(classes) != len(known):
        return classes
    same = sum(bool(set(a) & set(b)) for a, b in zip(classes, known, strict=True))
    if same < _ALIKE * len(known):
        return classes
    return [tuple(dict.fromkeys((*b, *a))) for a, b in zip(classes, known, strict=True)]


def _resizing(sizing: Sizing | None) -> tuple[str, ...]:
    """What is done to the images' size, as a note, where anything is."""
    return (f"images are {sizing}",) if sizing is not None and sizing.changes else ()


def _normalizing(model: nn.Module) -> tuple[str, ...]:
    """By what a library's network or an option normalises images, as a note."""
    if not isinstance(model, Ported):
        return ()
    how = Normalization(tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist()))
    return (f"images are normalised by {how}",)


def _other_data(name: str, own: Dataset, asked: Dataset | None) -> tuple[Dataset, dict[str, str]]:
    """The data that a model with data of its own is used on, and what a run records of it."""
    if asked is None:
        return own, {}
    if asked.shape != own.shape:
        raise RobGIBError(
            f"{name!r} takes images {own.shape}, and those of {asked.name} are {asked.shape}; give others."
        )
    return asked, {"data": asked.name}


def _chosen_classes(
    model: Loaded, data: Dataset | None, own: Sequence[tuple[str, ...]] | None, subset: bool | None
) -> Loaded:
    """The model as it is, or with the logits of the data's classes alone.

    Where nothing is asked, it is so where the data's classes are some of the model's ``own``.
    """
    if own is None or data is None or subset is False:
        return model
    few = len(data.classes) < len(own)
    if not subset and not few:
        return model
    numbers = class_indices(data.classes, own)
    notes = model.notes
    if few:
        told = f"it chooses among the {len(numbers)} classes of the data alone, of its {len(own)}"
        notes = (*notes, told + ("" if subset else " (--no-class-subset: among all)"))
    chosen = Subset(model.model, numbers, len(own)).eval()
    return replace(model, model=chosen, data=replace(data, by_name=False), notes=notes)


class Subset(nn.Module):
    """A classifier that chooses among some of its ``total`` classes."""

    classes: Tensor

    def __init__(self, model: nn.Module, classes: Sequence[int], count: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.count = count
        self.register_buffer("classes", torch.tensor(list(classes)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, …)."""
        logits, _ = logits_in(self.model(x), len(x), self.count)
        if self.count not in (None, logits.shape[1]):
            raise RobGIBError(f"the model has {logits.shape[1]} classes, and --classes names {self.count}.")
        return logits[:, self.classes]


ROBUSTBENCH = "robustbench:"


def is_file(name: str | Path) -> bool:
    """Whether a model is named by a checkpoint file, by its looks: a path, or an ending of one."""
    text = str(name)
    if text.startswith(ROBUSTBENCH) or is_pretrained(text):
        return False
    return isinstance(name, Path) or "/" in text or "\\" in text or Path(text).suffix in CHECKPOINT_SUFFIXES


def load_recipe(
    recipe: Recipe,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a recipe's model from the cache, trained or downloaded first if it is not there, with its record."""
    if recipe.checkpoint is not None:
        path = stored_checkpoint(recipe, progress)
        content = read_checkpoint(path, allow_code=recipe.allows_code)
        architecture = recipe.architecture or Architecture(name="")
        if content.network is None and not architecture.name:
            raise RobGIBError(
                f"model {recipe.name!r}: {path.name} holds weights alone; give the recipe an architecture."
            )
        recipe.check_architecture()
        model, notes, left_out = _assemble(
            content, architecture.name, architecture.options, data, str(path), allow_code=recipe.allows_code
        )
        told = {"notes": list(notes), "left_out": list(left_out)}
        return model.to(device).eval(), {**(read_record(path) or {}), **told}
    path = checkpoint_path(recipe, data)
    if not path.is_file():
        with alone(path.with_suffix(".unfinished"), f"trains {recipe.name}", progress):
            if not path.is_file():  # else the process that was waited for has trained it
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
        check_name("download", stored.download_name)
        path = cache_folder() / "downloads" / stored.sha256[:16] / stored.download_name
        if not path.is_file():
            download(stored.url, path, stored.sha256, recipe.name, progress, stored.size)
    else:
        path = Path(recipe.folder or ".") / stored.file
        if not path.is_file():
            raise RobGIBError(f"model {recipe.name!r}: its checkpoint {path} does not exist.")
    if stored.size not in (None, path.stat().st_size):
        raise RobGIBError(f"model {recipe.name!r}: {path} is of {path.stat().st_size} bytes, not {stored.size}.")
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
    found = load_checkpoint(file, arch, data_name, root, allow_code=allow_code)
    model, data = found.model, found.data
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
    weights_key: str | None = None,
    normalization: Normalization | None = None,
) -> Loaded:
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
        weights_key: which of several sets of weights in the file, by key or prefix.
        normalization: what the network wants done to images in [0, 1], where its architecture does not do it.

    Raises:
        RobGIBError: the file or its record is missing, damaged or of another network, or the record names code to run
            and that is not allowed.
    """
    content = read_checkpoint(path, allow_pickle=allow_pickle, weights_key=weights_key, allow_code=allow_code)
    whole = content.network is not None
    record = read_record(path) or {}
    beside = path.with_suffix(".json")
    architecture = record.get("architecture") or {}
    if not isinstance(architecture, dict) or not isinstance(architecture.get("name", ""), str):
        raise RobGIBError(f"the record {beside} has no architecture with a name; remove or mend it.")
    if record.get("data") is not None and not isinstance(record["data"], str):
        raise RobGIBError(f"the record {beside} does not name its data; remove or mend it.")
    load_plugins(extra)  # which may register the architecture
    options = {} if arch is not None else {k: v for k, v in architecture.items() if k != "name"}
    if not whole and arch is None and "name" in architecture:
        check_file_architecture(architecture["name"], options, f"the record {beside}", allow_code)
    if whole and arch is not None:
        raise RobGIBError(f"{path} holds its network whole; leave --arch out, which is of files of weights alone.")
    if not whole and arch is None and "name" not in architecture:
        pickled = (
            f" It holds a network of the class {content.pickled!r} whole, which would have to be unpickled, which can "
            "run any code: or give --allow-pickle if you trust whoever made the file."
        )
        raise RobGIBError(
            f"{path} has no record beside it that tells its architecture; give --arch package.module:factory."
            + (pickled if content.pickled else "")
        )
    name = data_name or record.get("data")
    if data is None:
        if name is None:
            raise RobGIBError(f"{path} has no record beside it that tells its data; give --data NAME.")
        data = load_data(name, root, seed, catalogue=extra, lazy=True)
    model, notes, left_out = _assemble(
        content,
        arch or architecture.get("name", ""),
        options,
        data,
        str(path),
        normalization,
        allow_code=allow_code or arch is not None,
    )
    return Loaded(path.stem, model, data, {}, notes, left_out)


def _assemble(
    content: Checkpoint,
    arch: str,
    options: dict[str, Any],
    data: Dataset,
    source: str,
    normalization: Normalization | None = None,
    *,
    allow_code: bool = False,
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Make the network of what a checkpoint holds, see that it takes the data, and say how it was read.

    Returns:
        The network, all notes, and those of them on what was left out.
    """

    def behind(net: nn.Module, how: Normalization | None) -> nn.Module:
        if how is None:
            return net
        if isinstance(net, Ported):  # another library's, whose own is replaced
            return how.before(net.net, data.shape[0], net.widen).eval()
        return how.before(net, data.shape[0]).eval()

    if content.network is None:
        model = build(arch, data.shape, len(data.classes), options, allow_code=allow_code)
        asked = normalization is not None
        sets = content.sets or {"": content.weights}
        found = fit(model, sets, source, wanted=content.wanted, said=content.said, normalized=asked)
        model = behind(model.eval(), normalization if asked else found.normalization)
        notes = (*content.notes, *found.notes, *found.left_out, *_normalizing(model))
        return model, notes, found.left_out
    network = behind(content.network, normalization)
    _check_takes(network, data, source)
    return network.eval(), (*content.notes, *_compared(content, network, data), *_normalizing(network)), ()


def _compared(content: Checkpoint, network: nn.Module, data: Dataset) -> tuple[str, ...]:
    """Hold the answers of a network that came whole against another reader's, on images as they reach it."""
    if content.check is None or content.network is None:
        return ()
    seen: list[tuple[Tensor, Any]] = []
    hook = content.network.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    try:
        with torch.no_grad():
            network(data.test.x[:4])
    finally:
        hook.remove()
    return content.check(*seen[0])


def _check_takes(content: nn.Module, data: Dataset, source: str) -> None:
    """Raise unless a network that came whole takes the data."""
    for count in (2, 3):  # of no fixed number
        x = data.test.x[:count].to(torch.float32)
        try:
            with torch.no_grad(), network_faults():
                logits, _ = logits_in(content(x), len(x), len(data.classes))
        except RobGIBError as error:
            raise RobGIBError(f"{source}: {error}") from error
        except Exception as error:
            hint = "" if count == 2 else "; export it with a dynamic batch dimension"
            raise RobGIBError(
                f"{source} does not take {count} images {data.shape} of {data.name} "
                f"({type(error).__name__}: {first_line(error)}){hint}."
            ) from error
        if logits.ndim != 2 or len(logits) != len(x):
            shape = tuple(logits.shape)
            raise RobGIBError(f"{source} gives {shape} for {count} images; a classifier gives logits (N, classes).")


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
    load_torchvision()  # robustbench imports it, and it may need mending
    try:
        # It names a package that is not on PyPI; what is there under another name lacks a part. Attacks are our own.
        with stand_in("autoattack", ("AutoAttack", "EvaluationState"), ("state",)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
            library = importlib.import_module("robustbench.utils")
    except ImportError as error:
        if error.name == "pkg_resources":
            raise RobGIBError(
                "robustbench needs pkg_resources, which newer setuptools lack; `pip install 'setuptools<81'` adds it."
            ) from error
        raise RobGIBError(
            f'robustbench is not installed ({error}); `pip install "robgib[robustbench]"` adds it.'
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
    _check_takes(model, data, f"robustbench:{name}")
    return model.eval(), data
