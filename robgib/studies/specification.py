"""Specification curves: one claim tested under every reasonable analysis.

After Simonsohn, Simmons & Nelson (2020, "Specification curve analysis", Nature Human Behaviour 4).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from robgib.data.dataset import Dataset, split_information
from robgib.engines import HERE, Engine
from robgib.errors import RobGIBError
from robgib.files import cache_folder, digest
from robgib.information.activations import LOGITS, find_layers
from robgib.information.analysis import default_codes, default_features
from robgib.information.features import group_inputs
from robgib.information.measures import pmi_weights
from robgib.information.observer import Resolution, capture
from robgib.information.readings import subset_synergy
from robgib.models.inference import PreparedModel, predict, prepare
from robgib.options import Context
from robgib.results import SCHEMA_VERSION, csv_text, read_csv
from robgib.runtime import Progress
from robgib.studies.analyses import CHOICES, COMPRESSION, Layer, Sample, analyse, rescaled
from robgib.studies.checks import check_networks
from robgib.studies.design import Grid, Models, chosen_recipes, read_design
from robgib.studies.engines import Task, finish
from robgib.studies.measure import check_numbers, read_whole
from robgib.training.loop import accuracy
from robgib.training.tracing import control, log_spaced
from robgib.zoo.loading import trained_epochs
from robgib.zoo.recipe import Recipe, recipes

__all__ = [
    "RESCALED",
    "Analysed",
    "Specification",
    "analyse_all",
    "analysed_networks",
    "check_analysed",
    "read_specification",
    "read_specifications",
    "specification_rows",
]

RESCALED = ("rescaled layer", "rescaled unit")
_POOLED = 500  # samples of an epoch that views are fitted on
_VERSION = 1


class SpecificationControls(BaseModel):
    """Recipes of control networks, in which the claim must not hold.

    Every study also has rescaled copies of its networks as controls: they compute the same function.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    random_labels: list[Grid] = Field(default_factory=list)


class Specification(BaseModel):
    """The design of a specification curve for compression during training.

    All choices of an analysis (view of the layer, estimator, resolution, layer, interval and so on) are combined, and
    the share of analyses in which the claim holds is reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["specification"]
    name: str
    question: str
    train: list[Grid] = Field(min_length=1)
    controls: SpecificationControls = Field(default_factory=SpecificationControls)
    labels: dict[str, str] = Field(default_factory=dict)
    """Names of the recipes in tables and on the page; by default the recipe's own name."""
    samples: PositiveInt = 1000
    epochs: PositiveInt = 8
    """Largest number of epochs at which a network is analysed."""
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Analysed:
    """A network of the study.

    Attributes:
        recipe: its recipe, with the seed.
        kind: name of its recipe in tables.
        control: kind of control; None if it is not a control.
    """

    recipe: Recipe
    kind: str
    control: Literal["random-labels"] | None = None

    @property
    def name(self) -> str:
        """Name of the network in tables."""
        return f"{self.recipe.name}-{self.control}" if self.control else self.recipe.name

    def folder(self, study: Specification) -> Path:
        """Return the folder of its analyses in the cache, which all studies share."""
        content = {
            "weights": self.recipe.digest,
            "control": self.control,
            "data": self.recipe.data,
            "analyses": [study.samples, study.epochs, study.seed, _VERSION],
            "schema": SCHEMA_VERSION,
        }
        return cache_folder() / "measured" / f"analyses-{digest(content)[:16]}"


def read_specification(path: Path, catalogue: Sequence[Path] = ()) -> Specification:
    """Read the design of a specification curve from a YAML file.

    Args:
        path: the file, with ``kind: specification``.
        catalogue: not used; every kind of study is read with the same arguments.

    Raises:
        RobGIBError: the file is invalid; the message names the line and the key.
    """
    study = read_design(path, Specification)
    named = {grid.recipe for grid in study.train}
    wrong = next((n for n in study.labels if n not in named), None)
    if wrong is not None:
        raise RobGIBError(f"{path}: labels name {wrong!r}, which is no recipe of train.")
    return study


def analysed_networks(
    study: Specification, catalogue: Sequence[Path] = (), *, allow_code: bool = False
) -> list[Analysed]:
    """Return the networks of a study, controls last.

    Args:
        study: the design.
        catalogue: further folders of recipes.
        allow_code: as in :func:`~robgib.studies.cells`.

    Raises:
        RobGIBError: an unknown recipe, or a network that is named twice.
    """
    known, networks = recipes(catalogue), []
    parts: tuple[tuple[Sequence[Grid], Literal["random-labels"] | None], ...] = (
        (study.train, None),
        (study.controls.random_labels, "random-labels"),
    )
    for grids, how in parts:
        for grid in grids:
            models = chosen_recipes(study.name, Models(train=[grid]), known, allow_code)
            networks += [Analysed(r, study.labels.get(grid.recipe, grid.recipe), how) for r in models]
    names = [n.name for n in networks]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise RobGIBError(f"study {study.name!r} has the network {twice!r} twice; name it once.")
    return networks


def check_analysed(study: Specification, networks: Sequence[Analysed], data_root: Path | None) -> None:
    """Raise an error, before any network is trained, if the study asks for more samples than the data have."""
    given = study.samples if "samples" in study.model_fields_set else 1
    check_networks(study.name, [n.recipe for n in networks], ["last"], ["auto"], given, data_root)


def analyse_all(
    study: Specification,
    networks: Sequence[Analysed],
    *,
    data_root: Path | None = None,
    engine: Engine = HERE,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Train and analyse the networks that are not yet analysed; the results go into the cache.

    Args:
        study: the design.
        networks: the networks (:func:`analysed_networks`).
        data_root: folder of the data files; None is the usual one.
        engine: runs the tasks, on this machine or on a cluster.
        progress: called after each network.

    Returns:
        The error message of each network that failed, by name.
    """
    waiting = [n for n in networks if not _analyses(n, study).is_file()]
    tasks = [Task(n.name, n.folder(study), n.recipe, partial(_one, n, study)) for n in waiting]
    return finish(study.name, tasks, "analysed", len(networks), engine, data_root, progress)


def _analyses(network: Analysed, study: Specification) -> Path:
    return network.folder(study) / "analyses.csv"


def specification_rows(study: Specification, networks: Sequence[Analysed]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two tables of the networks that were analysed: one row per analysis, and one row per network.

    Returns:
        The analyses, with one column per choice (:data:`~robgib.studies.analyses.CHOICES`), ``change`` and
        ``outcome``; and the networks, with ``gap``, the training accuracy less the test accuracy, and
        ``subset_synergy`` (bits) of the last network.
    """
    rows, facts = [], []
    for one in networks:
        if not _analyses(one, study).is_file():
            continue
        about = {
            "network": one.name,
            "kind": one.kind,
            "data": one.recipe.data,
            "seed": one.recipe.training.seed,
            "control": one.control or "",
        }
        table = read_csv(_analyses(one, study))
        # A rescaled network is a control of its own, made from a trained one.
        scaled = table.pop("rescaled").astype(object).fillna("").astype(str)
        rows.append(table.assign(**{**about, "control": scaled.where(scaled != "", about["control"])}))
        facts.append({**about, **json.loads((one.folder(study) / "network.json").read_text())})
    return (pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()), pd.DataFrame(facts)


def read_specifications(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the two tables of :func:`specification_rows`, as a run wrote them.

    Args:
        path: ``specifications.csv``; ``networks.csv`` is in the same folder.

    Raises:
        RobGIBError: a file does not exist, lacks a column, is cut off, or has a text in place of a number.
    """
    tables = []
    for file, wanted in ((path, ("claim", "kind", "control", *CHOICES, "change", "outcome")), (
        path.with_name("networks.csv"), ("network", "control", "subset_synergy", "gap"))):  # fmt: skip
        if not file.is_file():
            raise RobGIBError(f"table {str(file)!r} does not exist; give the specifications.csv of this study.")
        table = read_whole(file, "table of this study")
        missing = next((c for c in wanted if c not in table), None)
        if missing is not None:
            raise RobGIBError(f"{file} has no column {missing!r}; give the specifications.csv of this study.")
        check_numbers(file, table, [c for c in ("change", "subset_synergy", "gap") if c in wanted])
        tables.append(table.assign(control=table["control"].astype(object).fillna("").astype(str)))
    return tables[0], tables[1]


def _one(
    network: Analysed, study: Specification, folder: Path, data: Dataset, device: str, progress: Progress | None
) -> None:
    """Train and analyse one network, and write its tables to ``folder``."""
    recipe = network.recipe
    if network.control is not None:
        data, training = control(network.control, data, recipe.training)
        recipe = recipe.model_copy(update={"training": training})
    target = network.folder(study)
    work = target.with_name(f"{target.name}.unfinished")  # a training that was killed goes on there
    at = _thinned(log_spaced(recipe.training.epochs), study.epochs)
    loaders, _ = trained_epochs(recipe, data, work / "network.safetensors", at, device=device, progress=progress)
    classes = len(data.classes)
    models = {e: prepare(load().to(device), data.test.x, classes=classes, device=device) for e, load in loaders.items()}
    layer, sample, facts = _observed(models, data, study, device)
    # Estimators that train networks are most of the work: one seed has them.
    first = recipe.training.seed == 0
    learn = network.control is None and first
    found = [{**row, "rescaled": ""} for row in analyse(layer, sample, learn=learn, seed=study.seed)]
    for kind in RESCALED if learn else ():
        same = analyse(rescaled(layer, kind), sample.at_last(), learn=False, seed=study.seed)
        found += [{**row, "rescaled": kind} for row in same if row["claim"] == COMPRESSION]
    (folder / "network.json").write_text(json.dumps(facts))
    (folder / "analyses.csv").write_text(csv_text(pd.DataFrame(found)), encoding="utf-8", newline="")
    shutil.rmtree(work, ignore_errors=True)


def _observed(
    models: Mapping[int, PreparedModel], data: Dataset, study: Specification, device: str
) -> tuple[Layer, Sample, dict[str, Any]]:
    """Return the last layer before the logits at every epoch, the samples, and facts of the last network."""
    context = Context(device=device, seed=study.seed)
    final = list(models.values())[-1]
    limit = len(data.test) if data.enumerated else study.samples
    (x, y), (x_fit, _) = split_information(data, limit, study.seed)
    x_fit = x if data.enumerated else x_fit[:_POOLED]
    inner = [n for n in find_layers(final.model, data.test.x[:2].to(device))[0] if n != LOGITS]
    name = inner[-1] if inner else LOGITS
    values, fit, weights, predicted = {}, {}, {}, np.zeros(0)
    for epoch, model in models.items():
        predicted = predict(model, x, batch_size=model.batch_size, device=device)
        weights[epoch] = pmi_weights(predicted, y.numpy())
        values[epoch], fit[epoch] = (_flat(capture(model, z, [name], context, check=False)[name]) for z in (x, x_fit))
    synergy = subset_synergy(final.model, x, y.numpy(), predicted, [name], device=device, seed=study.seed)[name]
    trained, unseen = (accuracy(final.model, p) for p in (data.train, data.val if data.enumerated else data.test))
    facts = {
        "layer": name,
        "subset_synergy": synergy["value"],
        "subset_synergy_low": synergy["low"],
        "subset_synergy_high": synergy["high"],
        "trained_accuracy": trained,
        "held_out_accuracy": unseen,
        "gap": trained - unseen,
    }
    return Layer("last", values, fit), _sample(x, x_fit, y, weights, data, study), facts


def _thinned(epochs: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most ``most`` of the epochs, evenly spaced, with the first and the last.

    >>> _thinned((0, 1, 2, 4, 8, 16), 3)
    (0, 2, 16)
    """
    places = np.linspace(0, len(epochs) - 1, min(most, len(epochs))).astype(int)
    return tuple(epochs[i] for i in places)


def _flat(z: np.ndarray) -> np.ndarray:
    return z.reshape(len(z), -1).astype(np.float64)


def _sample(
    x: torch.Tensor,
    x_fit: torch.Tensor,
    y: torch.Tensor,
    weights: Mapping[int, np.ndarray],
    data: Dataset,
    study: Specification,
) -> Sample:
    inputs = group_inputs(default_features(data.shape)[0], x, x_fit)
    groups = group_inputs("groups:4", x, x_fit) if len(data.shape) == 1 else inputs
    codes = default_codes(len(data.classes), study.samples)
    return Sample(y.numpy(), weights, inputs, groups, data.enumerated, Resolution(8, codes, 0.3, seed=study.seed))
