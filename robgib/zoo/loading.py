"""Load models from recipes, files and libraries; train them first if necessary."""

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
from robgib.options import Context, InformationOptions, ModelOptions, gather, or_default
from robgib.reading import as_path
from robgib.registry import load_plugins
from robgib.results import csv_text
from robgib.runtime import Progress, environment, network_faults, progress_bars
from robgib.training.loop import accuracy, train
from robgib.training.tracing import Trace, saved_epochs, snapshots, trace
from robgib.zoo.preprocessing import Preprocessing, preprocessing_of
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
    """Return a recipe's data set, from ``loaded`` if it is there.

    The split is always the zoo's own: a model must not have trained on its test images.
    """
    if recipe.data not in loaded:
        loaded[recipe.data] = load_data(recipe.data, root, catalogue=recipe.catalogue)
    return loaded[recipe.data]


def checkpoint_path(recipe: Recipe, data: Dataset) -> Path:
    """Return the path of a trained checkpoint in the cache.

    Raises:
        RobGIBError: the recipe's name cannot be part of a file name.
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
    options: InformationOptions | None = None,
    context: Context | None = None,
    **fields: Any,
) -> tuple[Trace, dict[str, Any]]:
    """Train a recipe's model and trace the information in its layers (:func:`~robgib.training.trace`).

    Args:
        recipe: the model's recipe.
        data: data set to train on.
        out: checkpoint to write. The networks of the traced epochs are saved in the folder ``.epochs`` beside it.
        at: epochs to trace.
        estimators: specifications of estimators.
        keep: whether to keep that folder.
        samples: largest number of samples to estimate on.
        options: layers, features and resolution (:class:`~robgib.options.InformationOptions`).
        context: device, plug-ins and progress (:class:`~robgib.options.Context`); the default is the CPU.
        fields: fields of ``options`` and ``context`` by name, such as ``features="pixels"`` or ``device="cuda"``.

    Returns:
        The trace, and the training's record.
    """
    options, context = gather(
        "trace_recipe",
        fields,
        or_default("options", options, InformationOptions()),
        or_default("context", context, Context(device="cpu")),
    )
    device, catalogue, progress = context.device, context.catalogue, context.progress
    networks, record = trained_epochs(recipe, data, out, at, device=device, catalogue=catalogue, progress=progress)
    result = trace(networks, data, estimators, samples=samples, options=options, context=context)
    if not keep:
        shutil.rmtree(out.with_suffix(".epochs"))
    return result, record


def trained_epochs(
    recipe: Recipe,
    data: Dataset,
    out: Path,
    at: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> tuple[dict[int, Callable[[], nn.Module]], dict[str, Any]]:
    """Train a recipe's model and keep it at some epochs, in the folder ``.epochs`` beside ``out``.

    Returns:
        What loads the network, by epoch, and the training's record.
    """
    folder = out.with_suffix(".epochs")
    about = {"name": recipe.name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
    watch = snapshots(folder, at, about)
    _, record, _ = train_recipe(recipe, data, out, device=device, progress=progress, watch=watch)

    def load(path: Path) -> nn.Module:
        return load_checkpoint(path, data=data, catalogue=catalogue, allow_code=recipe.allows_code).model

    return {e: partial(load, f) for e, f in saved_epochs(folder).items() if e in at}, record


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
    """Train a recipe's model; write its checkpoint, its record and a log (``.log.csv``, one row per epoch).

    An interrupted training resumes after its last finished epoch, from a file ``.unfinished`` beside the checkpoint.
    ``watch`` is called after each epoch (see :func:`~robgib.training.train`).

    Returns:
        The model (eval mode, on ``device``), its metadata record, and the checkpoint's path: ``out``, or
        the cache when ``out`` is None.
    """
    if recipe.checkpoint is not None:
        raise RobGIBError(f"model {recipe.name!r} is a finished checkpoint and cannot be trained.")
    recipe = recipe.lasting(epochs)
    recipe.check_architecture()
    path = out or checkpoint_path(recipe, data)
    if path.suffix != ".safetensors":
        raise RobGIBError(f"checkpoints are written as .safetensors files; {str(path)!r} has another ending.")
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
        name: the model's name.
        model: the network in eval mode, on the requested device.
        data: its data set.
        source: where it came from, as a run records it.
        notes: how its file was read and how images are preprocessed, one sentence each.
        left_out: the notes on what the file holds and the network does not.
    """

    name: str
    model: nn.Module
    data: Dataset
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def load_model(name: str | Path, **options: Any) -> tuple[nn.Module, Dataset]:
    """Load a model with its data; train it first if necessary.

    A warning (:class:`~robgib.RobGIBWarning`) lists what a checkpoint file holds and the network does not.

    Args:
        name: a zoo name, a checkpoint file, or a trained network of a library (see :func:`load`).
        options: keyword arguments of :func:`load`.

    Returns:
        The model in eval mode, and its data set.

    Raises:
        RobGIBError: an unknown name, a file that cannot be read, or missing data.

    >>> model, data = load_model("digits-cnn")
    >>> data.shape
    (1, 8, 8)
    """
    subject = load(name, **options)
    for sentence in subject.left_out:
        warnings.warn(f"{subject.name}: {sentence}", RobGIBWarning, stacklevel=2)
    return subject.model, read_images(subject.data)


def load(
    name: str | Path,
    options: ModelOptions | None = None,
    *,
    classes: str | Path | Sequence[str] | None = None,
    normalization: Normalization | None = None,
    sizing: Sizing | None = None,
    data_bounds: Bounds | str | None = None,
    context: Context | None = None,
    loaded: dict[str, Dataset] | None = None,
    progress: Progress | bool = True,
    **fields: Any,
) -> Loaded:
    """Load a model with its data, and record where it came from.

    Args:
        name: a zoo name, a checkpoint file or folder, ``torchvision:NAME`` (or ``NAME/WEIGHTS``), ``timm:NAME``,
            ``hf:ORG/NAME`` or ``hf:FOLDER``, or ``robustbench:DATASET/THREAT/NAME``.
        options: how the model and its images are read (:class:`~robgib.options.ModelOptions`): ``arch`` and
            ``weights_key`` of a checkpoint file, ``data``, ``normalize``, ``input_size``, ``allow_code`` ….
            A checkpoint file needs ``data`` if there is no record beside it; for a zoo model, ``data`` replaces the
            model's own data set and must have images of the same shape.
        classes: the model's classes in its order, if the data number theirs differently
            (:func:`~robgib.data.read_classes`). A library's trained network brings its own.
        normalization: of images in [0, 1], for a checkpoint's network; None follows the file (a normaliser beside the
            network, a configuration) or the architecture.
        sizing: how images are resized and cropped; None follows a library's trained network, or leaves them as they
            are.
        data_bounds: the values of black and white in the data (:func:`~robgib.data.load_data`).
        context: ``device`` of the model (the CPU by default), ``data_root``, ``seed`` of the data split, and
            ``catalogue`` (:class:`~robgib.options.Context`).
        loaded: data sets that are loaded already, by name; data sets loaded here are added.
        progress: whether to show bars in a terminal or a notebook; or a function of (task, done, total, note).
        fields: fields of ``options`` and ``context`` by name, such as ``arch="mlp"`` or ``device="cuda"``.

    Raises:
        RobGIBError: an unknown name, a file that cannot be read, or missing data.
    """
    if isinstance(data_bounds, str):
        fields, data_bounds = {**fields, "data_bounds": data_bounds}, None
    options, context = gather(
        "load",
        fields,
        or_default("options", options, ModelOptions()),
        or_default("context", context, Context(device="cpu")),
    )
    described = preprocessing_of(options)
    preprocessing = Preprocessing(
        described.normalization if normalization is None else normalization,
        described.sizing if sizing is None else sizing,
        described.data_bounds if data_bounds is None else data_bounds,
    )
    stated = options.classes if classes is None else classes
    known = None if stated is None else read_classes(stated)
    return _Loading(name, options, preprocessing, context, known, {} if loaded is None else loaded, progress).load()


@dataclass(frozen=True)
class _Loading:
    """A model to be loaded, and how.

    Attributes:
        name: as given.
        options: as given.
        preprocessing: what is done to images.
        context: device, seed and folders.
        classes: the model's classes in its order, each by its names; None if nobody gave them.
        loaded: data sets that are loaded already, by name.
        progress: as given.
    """

    name: str | Path
    options: ModelOptions
    preprocessing: Preprocessing
    context: Context
    classes: Sequence[tuple[str, ...]] | None
    loaded: dict[str, Dataset]
    progress: Progress | bool

    def load(self) -> Loaded:
        text, options = str(self.name), self.options
        is_folder = is_file(self.name) and not options.arch and is_transformers_folder(Path(self.name))
        if is_pretrained(text) or is_folder:
            return self._library()
        if options.class_subset and self.classes is None:
            raise RobGIBError(_NO_CLASSES)
        check_named(self.name, options, self.preprocessing.normalization)
        data = self._given_data()
        known = data if data is None or self.classes is None else map_classes(data, self.classes)
        if is_file(self.name):
            made = self._file(known)
        elif text.startswith(ROBUSTBENCH):
            made = self._robustbench(known)
        else:
            made = self._recipe(known)
        made = replace(
            made, model=made.model.to(self.context.device), notes=(*made.notes, *_resizing(self.preprocessing.sizing))
        )
        return _chosen_classes(made, data, self.classes, options.class_subset)

    def _read_data(self, name: str, sizing: Sizing | None) -> Dataset:
        place, bounds = self.context, self.preprocessing.data_bounds
        return load_data(
            name, place.data_root, place.seed, catalogue=place.catalogue, sizing=sizing, bounds=bounds, lazy=True
        )

    def _given_data(self) -> Dataset | None:
        """The data set that the options name; None uses the model's own."""
        sizing = self.preprocessing.sizing
        if self.options.data is not None:
            return self._read_data(self.options.data, sizing)
        if self.classes is not None:
            raise RobGIBError("--classes describes the classes of --data; give --data too.")
        if sizing is not None and sizing.changes:
            raise RobGIBError("--input-size, --resize and --crop apply to --data; give --data too.")
        if self.preprocessing.data_bounds is not None:
            raise RobGIBError("--data-bounds applies to --data; give --data too.")
        return None

    def _library(self) -> Loaded:
        """A trained network of a library, on data that are resized to what it takes."""
        text, options, classes = str(self.name), self.options, self.classes
        if options.arch is not None or options.weights_key is not None:
            raise RobGIBError(f"{text!r} has its own architecture and weights; remove --arch and --weights-key.")
        if options.data is None:
            raise RobGIBError(f"{text!r} has no data set of its own; give --data, such as folder:DIR.")
        check_data(options.data, self.context.catalogue)  # before anything is downloaded
        network = load_pretrained(text if is_pretrained(text) else f"hf:{text}")
        sizing = self.preprocessing.sizing
        if sizing is None:
            sizing = Sizing(network.resize, network.crop, network.interpolation)  # type: ignore[arg-type]
        data = self._read_data(options.data, sizing)
        known = classes or _with_ids(network.classes)
        mapped = map_classes(data, known) if data.by_name and known else data
        if options.class_subset and not (data.by_name and known):
            raise RobGIBError(_NO_CLASSES)
        source = {"kind": "library", "name": text, "weights": network.source}
        name = text.rpartition(":")[2].replace("/", "-")
        model, given = network.model, self.preprocessing.normalization
        if given is not None:
            own = network.model
            assert isinstance(own, Ported)
            model = given.before(own.net, data.shape[0], own.widen).eval()
        elif network.assumed:
            warnings.warn(f"{name}: {network.assumed}.", RobGIBWarning, stacklevel=4)
        notes = (*_resizing(sizing), *_normalizing(model), *network.left_out)
        made = Loaded(name, model.to(self.context.device), mapped, source, notes, network.left_out)
        chooses = options.class_subset or (classes is not None and data.by_name)
        return _chosen_classes(made, data, known if chooses else None, options.class_subset)

    def _file(self, data: Dataset | None) -> Loaded:
        """The model of a checkpoint file."""
        path = Path(self.name)
        loaded = load_checkpoint(
            path, self.options, context=self.context, data=data, normalization=self.preprocessing.normalization
        )
        return replace(loaded, source={"kind": "checkpoint", "file": path.name, "arch": self.options.arch})

    def _robustbench(self, data: Dataset | None) -> Loaded:
        """A model of RobustBench."""
        text = str(self.name)
        model, own = load_robustbench(text.removeprefix(ROBUSTBENCH), self.context.data_root)
        used, other = _other_data(text, own, data)
        return Loaded(text.rpartition("/")[2], model, used, {"kind": "robustbench", "name": text, **other})

    def _recipe(self, data: Dataset | None) -> Loaded:
        """A model of the zoo, trained first if it is not in the cache."""
        text, context = str(self.name), self.context
        recipe = find_recipe(text, context.catalogue, allow_code=self.options.allow_code)
        own = data_of(recipe, context.data_root, self.loaded)
        used, other = _other_data(text, own, data)  # before the model is trained
        with progress_bars(self.progress) as report:
            model, record = load_recipe(recipe, own, device=context.device, progress=report)
        source = {
            "kind": "zoo",
            "recipe": text,
            "recipe_digest": recipe.digest,
            "test_accuracy": record.get("test_accuracy"),
            "trained": recipe.checkpoint is None,
            **other,
        }
        notes, left_out = (tuple(record.get(key, ())) for key in ("notes", "left_out"))
        return Loaded(text, model, used, source, notes, left_out)


_NO_CLASSES = "--class-subset needs all classes of the model; give --classes imagenet or a file."


def check_named(name: str | Path, options: ModelOptions, normalization: Normalization | None) -> None:
    """Raise if the options do not apply to such a model, or name no architecture."""
    file = is_file(name)
    arch, weights_key = options.arch, options.weights_key
    if not file and (arch is not None or weights_key is not None or normalization is not None):
        option = "--arch" if arch else "--weights-key" if weights_key else "a normalisation"
        thing = "architecture" if arch else "weights" if weights_key else "normalisation"
        raise RobGIBError(f"{option} applies to checkpoint files only; {name!r} has its own {thing}.")
    if file and arch:
        check_architecture(arch)


_ALIKE = 0.9  # share of ImageNet's class names that must agree; libraries spell some of them differently


def _with_ids(classes: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """The classes with their synset ids, which name folders, if they are the 1,000 of ImageNet."""
    known = read_classes("imagenet")
    if len(classes) != len(known):
        return classes
    same = sum(bool(set(a) & set(b)) for a, b in zip(classes, known, strict=True))
    if same < _ALIKE * len(known):
        return classes
    return [tuple(dict.fromkeys((*b, *a))) for a, b in zip(classes, known, strict=True)]


def _resizing(sizing: Sizing | None) -> tuple[str, ...]:
    """A note on how images are resized; none if they are not."""
    return (f"images are {sizing}",) if sizing is not None and sizing.changes else ()


def _normalizing(model: nn.Module) -> tuple[str, ...]:
    """A note on how images are normalised, if a library's network or an option does that."""
    if not isinstance(model, Ported):
        return ()
    how = Normalization(tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist()))
    return (f"images are normalised by {how}",)


def _other_data(name: str, own: Dataset, given: Dataset | None) -> tuple[Dataset, dict[str, str]]:
    """The data to evaluate a model on that has data of its own, and what a run records about them."""
    if given is None:
        return own, {}
    if given.shape != own.shape:
        raise RobGIBError(
            f"{name!r} takes images of shape {own.shape}, but those of {given.name} have shape {given.shape}; "
            "choose another --data."
        )
    return given, {"data": given.name}


def _chosen_classes(
    model: Loaded, data: Dataset | None, own: Sequence[tuple[str, ...]] | None, subset: bool | None
) -> Loaded:
    """The model unchanged, or restricted to the classes of the data.

    If ``subset`` is None, it is restricted when the data have fewer classes than the model's ``own``.
    """
    if own is None or data is None or subset is False:
        return model
    few = len(data.classes) < len(own)
    if not subset and not few:
        return model
    numbers = class_indices(data.classes, own)
    notes = model.notes
    if few:
        note = f"predictions are restricted to the {len(numbers)} classes of the data, out of {len(own)}"
        notes = (*notes, note + ("" if subset else " (--no-class-subset allows all)"))
    chosen = Subset(model.model, numbers, len(own)).eval()
    return replace(model, model=chosen, data=replace(data, by_name=False), notes=notes)


class Subset(nn.Module):
    """A classifier whose predictions are restricted to some of its ``count`` classes."""

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
            raise RobGIBError(f"the model has {logits.shape[1]} classes, but --classes names {self.count}.")
        return logits[:, self.classes]


ROBUSTBENCH = "robustbench:"


def is_file(name: str | Path) -> bool:
    """Whether a model's name looks like a checkpoint file: a path, or a name with such an ending."""
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
    """Return a recipe's model with its record, from the cache; train or download it first if necessary."""
    if recipe.checkpoint is not None:
        path = stored_checkpoint(recipe, progress)
        content = read_checkpoint(path, weights_key=recipe.checkpoint.weights_key, allow_code=recipe.allows_code)
        architecture = recipe.architecture or Architecture(name="")
        if content.network is None and not architecture.name:
            raise RobGIBError(
                f"model {recipe.name!r}: {path.name} holds weights only; give the recipe an architecture."
            )
        recipe.check_architecture()
        model, notes, left_out = _assemble(
            content, architecture.name, architecture.options, data, str(path), allow_code=recipe.allows_code
        )
        reading = {"notes": list(notes), "left_out": list(left_out)}
        return model.to(device).eval(), {**(read_record(path) or {}), **reading}
    path = checkpoint_path(recipe, data)
    if not path.is_file():
        with alone(path.with_suffix(".unfinished"), f"trains {recipe.name}", progress):
            if not path.is_file():  # otherwise another process has just trained it
                model, record, _ = train_recipe(recipe, data, device=device, progress=progress)
                return model, record
    model = recipe.untrained(data)
    load_into(model, read_state(path), f"the cached checkpoint {path}")
    return model.to(device).eval(), read_record(path) or {}


def stored_checkpoint(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Return the file of a recipe's ``checkpoint``, with its digest verified; download it first if necessary.

    Raises:
        RobGIBError: the file is missing, has another digest, or cannot be downloaded.
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
        raise RobGIBError(f"model {recipe.name!r}: {path} has {path.stat().st_size} bytes, not {stored.size}.")
    actual = sha256(path)
    if actual != stored.sha256:
        raise RobGIBError(
            f"model {recipe.name!r}: {path} has the SHA-256 digest {actual}, but the recipe states {stored.sha256}; "
            "the file was changed or damaged."
        )
    return path


def add_recipe(
    file: str | Path,
    name: str,
    folder: str | Path,
    *,
    arch: str | None = None,
    weights_key: str | None = None,
    data_name: str | None = None,
    root: Path | None = None,
    description: str = "",
    allow_code: bool = False,
) -> tuple[Path, float]:
    """Write a recipe for a checkpoint file, with its SHA-256 digest, after checking that it loads and classifies.

    Args:
        file: the checkpoint.
        name: name of the new model.
        folder: folder of the new recipe.
        arch: a registered name, or ``package.module:factory``; None for a file with a record or a complete network.
        weights_key: which of several networks in the file, by key or prefix.
        data_name: its data set; None reads it from the record.
        root: the data folder.
        description: one line for the list of models.
        allow_code: also import and run ``package.module:factory`` from the record.

    Returns:
        The recipe's path, and the model's accuracy on the test images.
    """
    file = as_path(file, "file")
    folder = as_path(folder, "folder")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise RobGIBError(
            f"a model's name consists of lower-case letters, digits, hyphens and dots; {name!r} does not."
        )
    target = folder / f"{name}.yaml"
    if target.exists() or name in recipes():
        raise RobGIBError(f"a model {name!r} exists already; choose another --name.")
    loaded = load_checkpoint(
        file, arch=arch, weights_key=weights_key, data=data_name, data_root=root, allow_code=allow_code
    )
    record = read_record(file) or {}
    # A file that holds a complete network needs no architecture, and a record beside it may name anything.
    architecture = {"name": arch} if arch else None if is_program(file) else record.get("architecture")
    try:
        place = (
            os.path.relpath(file, folder) if file.resolve().is_relative_to(folder.resolve()) else str(file.resolve())
        )
        content = {
            "description": description or f"Checkpoint {file.name}",
            "data": data_name or record["data"],
            **({"architecture": architecture} if architecture else {}),
            "checkpoint": {
                "file": place,
                "sha256": sha256(file),
                **({"weights_key": weights_key} if weights_key else {}),
            },
        }
    except OSError as error:
        raise RobGIBError(f"cannot read {file}: {error.strerror or error}.") from error
    write_file(target, yaml.safe_dump(content, sort_keys=False, default_flow_style=None).encode())
    return target, accuracy(loaded.model, loaded.data.test)


def load_checkpoint(
    path: str | Path,
    options: ModelOptions | None = None,
    *,
    data: Dataset | str | None = None,
    normalization: Normalization | None = None,
    context: Context | None = None,
    **fields: Any,
) -> Loaded:
    """Load a checkpoint file and its data set.

    Args:
        path: a file of any kind that :func:`~robgib.models.read_checkpoint` reads.
        options: how the file is read (:class:`~robgib.options.ModelOptions`). ``arch`` of a state dict is
            ``package.module:factory`` or a registered name; None reads it from the record beside the file.
            ``weights_key`` chooses one of several sets of weights. ``allow_code`` also imports and runs what the record
            names as ``package.module:factory``; ``arch`` is always imported.
        data: the data set, or its name; None reads the name from the record.
        normalization: of images in [0, 1], if the architecture does not normalise them.
        context: ``data_root``, ``seed`` of the data split and ``catalogue`` (:class:`~robgib.options.Context`).
        fields: fields of ``options`` and ``context`` by name, such as ``arch="mlp"``.

    Raises:
        RobGIBError: the file or its record is missing, damaged or of another network; or the record names code to run
            without ``allow_code``.
    """
    path = as_path(path, "path")
    options, context = gather(
        "load_checkpoint",
        fields,
        or_default("options", options, ModelOptions()),
        or_default("context", context, Context()),
    )
    arch, allow_code = options.arch, options.allow_code
    content = read_checkpoint(
        path, allow_pickle=options.allow_pickle, weights_key=options.weights_key, allow_code=allow_code
    )
    record = _checked_record(path)
    load_plugins(context.catalogue)  # which may register the architecture
    recorded = {} if arch is not None else dict(record.get("architecture") or {})
    name = arch or recorded.pop("name", None)
    if content.network is not None and arch is not None:
        raise RobGIBError(f"{path} holds a complete network; remove --arch, which is for files that hold weights only.")
    if content.network is None and name is None:
        raise _no_architecture(path, content)
    if content.network is None and arch is None:
        check_file_architecture(name, recorded, f"the record {path.with_suffix('.json')}", allow_code)
    if not isinstance(data, Dataset):
        data_name = data or options.data or record.get("data")
        if data_name is None:
            raise RobGIBError(f"no record beside {path} names its data set; give --data NAME.")
        data = load_data(data_name, context.data_root, context.seed, catalogue=context.catalogue, lazy=True)
    allowed = allow_code or arch is not None
    model, notes, left_out = _assemble(
        content, name or "", recorded, data, str(path), normalization, allow_code=allowed
    )
    return Loaded(path.stem, model, data, {}, notes, left_out)


def _checked_record(path: Path) -> dict[str, Any]:
    """The record beside a checkpoint; empty if there is none."""
    record, file = read_record(path) or {}, path.with_suffix(".json")
    architecture = record.get("architecture") or {}
    if not isinstance(architecture, dict) or not isinstance(architecture.get("name", ""), str):
        raise RobGIBError(f"the record {file} has no architecture with a name; correct or remove it.")
    if record.get("data") is not None and not isinstance(record["data"], str):
        raise RobGIBError(f"the record {file} does not name its data set; correct or remove it.")
    return record


def _no_architecture(path: Path, content: Checkpoint) -> RobGIBError:
    pickled = (
        f" It holds a pickled network of the class {content.pickled!r}. Unpickling can run any code: give "
        "--allow-pickle only if you trust whoever made the file."
    )
    return RobGIBError(
        f"no record beside {path} names its architecture; give --arch package.module:factory."
        + (pickled if content.pickled else "")
    )


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
    """Build the network of a checkpoint, check that it takes the data, and describe how it was read.

    Returns:
        The network, all notes, and the notes on what was left out.
    """

    def normalized(net: nn.Module, how: Normalization | None) -> nn.Module:
        if how is None:
            return net
        if isinstance(net, Ported):  # replaces the normalisation of another library's network
            return how.before(net.net, data.shape[0], net.widen).eval()
        return how.before(net, data.shape[0]).eval()

    if content.network is None:
        model = build(arch, data.shape, len(data.classes), options, allow_code=allow_code)
        is_given = normalization is not None
        sets = content.sets or {"": content.weights}
        fitted = fit(model, sets, source, wanted=content.wanted, declared=content.declared, normalized=is_given)
        model = normalized(model.eval(), normalization if is_given else fitted.normalization)
        notes = (*content.notes, *fitted.notes, *fitted.left_out, *_normalizing(model))
        return model, notes, fitted.left_out
    network = normalized(content.network, normalization)
    _check_takes(network, data, source)
    return network.eval(), (*content.notes, *_compared(content, network, data), *_normalizing(network)), ()


def _compared(content: Checkpoint, network: nn.Module, data: Dataset) -> tuple[str, ...]:
    """Compare a complete network's outputs with those of another reader, on the images that it receives."""
    if content.check is None or content.network is None:
        return ()
    calls: list[tuple[Tensor, Any]] = []
    hook = content.network.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        with torch.no_grad():
            network(data.test.x[:4])
    finally:
        hook.remove()
    return content.check(*calls[0])


def _check_takes(content: nn.Module, data: Dataset, source: str) -> None:
    """Raise if a complete network does not take the data."""
    for count in (2, 3):  # a network with a fixed batch size takes one of them only
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
            raise RobGIBError(f"{source} returns {shape} for {count} images; a classifier returns logits (N, classes).")


def load_robustbench(name: str, root: Path | None) -> tuple[nn.Module, Dataset]:
    """Load a model of RobustBench, ``DATASET/THREAT/NAME`` such as ``cifar10/Linf/Standard``, and its data.

    The RobustBench package downloads and unpickles the weights.
    """
    parts = name.split("/")
    if len(parts) != 3 or parts[0] not in ("cifar10", "cifar100"):
        raise RobGIBError(
            f"robustbench:{name} must be robustbench:DATASET/THREAT/NAME, such as robustbench:cifar10/Linf/Standard, "
            "with cifar10 or cifar100."
        )
    load_torchvision()  # robustbench imports it, and it may need a repair first
    try:
        # RobustBench imports autoattack, which is not on PyPI. Its attacks are not used here.
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
