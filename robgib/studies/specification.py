"""Specification curves: one claim, every reasonable way to analyse it, and in which ways it comes out.

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
    """Networks in which the claim must not come out, beside the rescaled ones, which every study has."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    random_labels: list[Grid] = Field(default_factory=list)


class Specification(BaseModel):
    """A study of one claim under every analysis: compression in training."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["specification"]
    name: str
    question: str
    train: list[Grid]
    controls: SpecificationControls = Field(default_factory=SpecificationControls)
    labels: dict[str, str] = Field(default_factory=dict)
    """What tables and the page call the networks of each recipe; without it the recipe's name."""
    samples: PositiveInt = 1000
    epochs: PositiveInt = 8
    """Epochs at which networks are looked at, at most."""
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Analysed:
    """One network of the study: its recipe, what tables call its kind, and which control it is."""

    recipe: Recipe
    kind: str
    control: Literal["random-labels"] | None = None

    @property
    def name(self) -> str:
        """Of the network."""
        return f"{self.recipe.name}-{self.control}" if self.control else self.recipe.name

    def folder(self, study: Specification) -> Path:
        """Where its analyses are kept, for all studies."""
        content = {
            "weights": self.recipe.digest,
            "control": self.control,
            "data": self.recipe.data,
            "analyses": [study.samples, study.epochs, study.seed, _VERSION],
            "schema": SCHEMA_VERSION,
        }
        return cache_folder() / "measured" / f"analyses-{digest(content)[:16]}"


def read_specification(path: Path, catalogue: Sequence[Path] = ()) -> Specification:
    """Read a study of specifications.

    Raises:
        RobGIBError: it is none; the sentence names the line and the key.
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
    """Return the networks of a study, each once; ``allow_code`` as in :func:`~robgib.studies.cells`."""
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
    """Raise before any work for more samples than there are."""
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
    """Train and analyse the networks that were not analysed before; return the error of each that failed, by name."""
    waiting = [n for n in networks if not _analyses(n, study).is_file()]
    tasks = [Task(n.name, n.folder(study), n.recipe, partial(_one, n, study)) for n in waiting]
    return finish(study.name, tasks, "analysed", len(networks), engine, data_root, progress)


def _analyses(network: Analysed, study: Specification) -> Path:
    return network.folder(study) / "analyses.csv"


def specification_rows(study: Specification, networks: Sequence[Analysed]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row an analysis, and a row a network (its gap and its subset synergy), of all networks that were analysed."""
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
        scaled = table.pop("rescaled").fillna("").astype(str)
        rows.append(table.assign(**{**about, "control": scaled.where(scaled != "", about["control"])}))
        facts.append({**about, **json.loads((one.folder(study) / "network.json").read_text())})
    return (pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()), pd.DataFrame(facts)


def read_specifications(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a table of analyses (``specifications.csv``) and, beside it, that of the networks.

    Raises:
        RobGIBError: no such table, or one that lacks a column.
    """
    tables = []
    for file, wanted in ((path, ("claim", "kind", "control", *CHOICES, "change", "outcome")), (
        path.with_name("networks.csv"), ("network", "control", "subset_synergy", "gap"))):  # fmt: skip
        if not file.is_file():
            raise RobGIBError(f"table {str(file)!r} does not exist; give the specifications.csv of this study.")
        table = read_csv(file)
        missing = next((c for c in wanted if c not in table), None)
        if missing is not None:
            raise RobGIBError(f"{file} has no column {missing!r}; give the specifications.csv of this study.")
        tables.append(table.assign(control=table["control"].fillna("").astype(str)))
    return tables[0], tables[1]


def _one(
    network: Analysed, study: Specification, folder: Path, data: Dataset, device: str, progress: Progress | None
) -> None:
    """Train and analyse one network; its rows go into the folder."""
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
    """The last layer before the logits at every epoch, the samples, and the last network's gap and subset synergy."""
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
    """At most so many of the epochs, evenly spread, the first and the last among them.

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
