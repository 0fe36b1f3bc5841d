"""The open ledger: many small networks of a drawn design, with every figure, baseline and outcome, a row each."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from pydantic import model_validator as validated

from robgib.attacks.registry import make_attack
from robgib.data.dataset import Dataset
from robgib.data.loaders import check_data
from robgib.engines import HERE, Engine
from robgib.errors import RobGIBError
from robgib.evaluation import evaluate
from robgib.files import alone, cache_folder, digest, write_file
from robgib.information.analysis import layer_information
from robgib.information.registry import make_estimator
from robgib.measures import MEASURES, list_measures, measure_model, sample_of
from robgib.reading import as_path
from robgib.results import Run, csv_text
from robgib.runtime import Progress, installed_version
from robgib.studies.checks import check_outcome, check_partition
from robgib.studies.claims import SIGNS, collapsed
from robgib.studies.design import Figure, Models, Outcome, Study, read_design, strength_of
from robgib.studies.engines import Task, run_tasks
from robgib.studies.ladder import LEAST, Question, highest, ladder, partial_effect, usable_baselines
from robgib.studies.measure import (
    chance_of,
    check_given,
    check_numbers,
    figure_of,
    outcome_of,
    outside_a_run,
    read_whole,
    reasons_text,
)
from robgib.studies.strata import FIELD, cell_of
from robgib.training.loop import accuracy
from robgib.zoo.loading import checkpoint_path, load_recipe
from robgib.zoo.recipe import Recipe

__all__ = [
    "FIELDS",
    "LEDGER_SCHEMA",
    "OUTCOMES",
    "Ledger",
    "Network",
    "dictionary",
    "ledger_rows",
    "ledger_structure",
    "ledger_study",
    "load_ledger",
    "measure_networks",
    "networks",
    "of_design",
    "read_ledger",
    "read_ledger_design",
    "rows_so_far",
    "stored_row",
    "verdicts",
    "without_units",
]

LEDGER_SCHEMA = 1
"""Version of the ledger's columns; it rises with every change that could break a reader."""
FIELDS = (
    "data", "architecture", "width", "depth", "regime", "strength", "epochs", "learning_rate", "weight_decay",
    "batch_size", "augmentation", "early_stopping",
)  # fmt: skip
"""Columns of the fields of a training; networks that share them all differ by their seed alone."""
_OF_STUDIES = ("data", "architecture", "regime", "strength")
Symbol = Literal["C", "S", "r", "v", "I", "IY", "subset", "Inoise", "SY"]
Sign = Literal["positive", "negative", "either"]
_SYMBOLS: Mapping[Symbol, str] = {
    "C": "gib_complexity",
    "S": "synergy",
    "r": "redundancy",
    "v": "vulnerability",
    "I": "ib_complexity",
    "IY": "label_information",
    "subset": "subset_synergy",
    "Inoise": "ib_complexity_noise",
    "SY": "unit_synergy",
}
_LAYERS = ("last", "mean")
_GROUPS = 8  # of a layer's units; the subset synergy is measured with them
_UNITS = ("SY_last", "SY_mean")
"""Figures of a layer's units about the label, by an estimator of their own: the first does not take variables."""
OUTCOMES = (
    "area", "median_distance", "robust_generalisation_gap", "generalisation_gap", "corruption_accuracy",
    "probabilistic_robustness",
)  # fmt: skip


class Shape(BaseModel):
    """A size of an architecture.

    ``width`` and ``depth`` are the values in the columns of the ledger; ``options`` are passed to the architecture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: PositiveInt
    depth: PositiveInt
    options: dict[str, Any] = Field(default_factory=dict)


class Level(BaseModel):
    """A strength of a training regime, and the keys of the recipe's ``training`` that it sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strength: NonNegativeFloat = 0.0
    training: dict[str, Any] = Field(default_factory=dict)


class Ledger(BaseModel):
    """The design of a ledger: which networks are trained, and what is measured of them.

    A cell is one combination of training settings; its networks differ by their seed alone. Architectures and regimes
    are paired in the order of a Latin square. The levels of every other field are drawn without replacement until each
    has been used, then again from the start. Therefore the first k cells are balanced for every k.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["ledger"]
    name: str
    question: str
    data: str
    table: str = "ledger.csv"
    """CSV file beside the design, with one row per measured network. Networks in it are not measured again."""
    cells: Annotated[int, Field(ge=1, le=10_000)] = 100
    seeds: list[NonNegativeInt] = Field(min_length=1)
    """Training seeds of each cell."""
    seed: NonNegativeInt = 0
    """Seed of the drawn design and of the measurements."""
    architectures: dict[str, Annotated[list[Shape], Field(min_length=1)]] = Field(min_length=1)
    regimes: dict[str, Annotated[list[Level], Field(min_length=1)]] = Field(min_length=1)
    epochs: list[PositiveInt] = Field(min_length=1)
    learning_rate: list[float] = Field(min_length=1)
    weight_decay: list[NonNegativeFloat] = Field(min_length=1)
    batch_size: list[PositiveInt] = Field(min_length=1)
    augmentation: dict[str, dict[str, Any]] = Field(min_length=1)
    """Keys of ``training`` that each augmentation sets, by its name."""
    early_stopping: list[bool] = Field(min_length=1)
    estimator: str = "imputation"
    partition: str = "patches:2"
    outcome: Outcome = Field(default_factory=Outcome)
    """Attack and radii of the area under accuracy, the robust generalisation gap, and the random points."""
    nearest: str = "fmn-linf"
    """Attack that finds the median distance."""
    samples: PositiveInt = 300
    information_samples: PositiveInt = 500
    unit_estimator: str = "gaussian"
    """Of S(Z;Y), whose features are groups of a layer's units."""
    unit_samples: PositiveInt = 3000
    """Largest number of images that S(Z;Y) is estimated from; it takes seconds."""
    expect: dict[Symbol, Sign] = Field(default_factory=dict)
    """Expected sign of the correlation of each figure with robustness."""

    @validated(mode="after")
    def _each_once(self) -> Ledger:
        for key in ("seeds", "epochs", "learning_rate", "weight_decay", "batch_size", "early_stopping"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} has a level twice; give each once")
        named: list[tuple[str, Sequence[object]]] = [*self.architectures.items(), *self.regimes.items()]
        for name, levels in named:
            if any(one in levels[:i] for i, one in enumerate(levels)):
                raise ValueError(f"{name} has a level twice; give each once")
        if "measure" in self.outcome.model_fields_set:
            raise ValueError("outcome.measure has no meaning, since a ledger measures all outcomes; leave it out")
        return self

    @property
    def figures(self) -> dict[str, Figure]:
        """Information figures, by the names of their columns."""
        return {
            f"{symbol}_{layer}": Figure(
                figure=figure,  # type: ignore[arg-type]
                estimator=self.unit_estimator if f"{symbol}_{layer}" in _UNITS else self.estimator,
                partition=self.partition,
                layer=layer,
            )
            for symbol, figure in _SYMBOLS.items()
            for layer in _LAYERS
        }

    def outcome_called(self, name: str) -> Outcome:
        """Return the outcome of a column of :data:`OUTCOMES`."""
        attack = self.nearest if name == "median_distance" else self.outcome.attack
        return self.outcome.model_copy(update={"measure": name, "attack": attack})


@dataclass(frozen=True)
class Network:
    """A network of a ledger.

    Attributes:
        cell: number of its cell. Networks of one cell differ by their seed alone.
        fields: levels of its training settings, by name (:data:`FIELDS`).
        seed: seed of the training.
        recipe: recipe that trains it.
    """

    cell: int
    fields: Mapping[str, Any]
    seed: int
    recipe: Recipe

    def key(self, ledger: Ledger) -> str:
        """Return a digest of everything that the row depends on."""
        content = [self.recipe.digest, ledger.outcome.model_dump(), ledger.nearest, ledger.estimator, ledger.partition]
        content.append(ledger.unit_estimator)
        numbers = [ledger.samples, ledger.information_samples, ledger.unit_samples, ledger.seed, LEDGER_SCHEMA]
        return digest([*content, *numbers, list_measures()])[:16]


def read_ledger_design(path: Path, catalogue: Sequence[Path] = ()) -> Ledger:
    """Read the design of a ledger from a YAML file.

    Args:
        path: the file, with ``kind: ledger``.
        catalogue: further folders of attacks, estimators and data sets.

    Raises:
        RobGIBError: the file is invalid, or names something that does not exist.
    """
    ledger = read_design(path, Ledger)
    try:
        for attack in (*ledger.outcome.attacks, ledger.nearest):
            make_attack(attack, extra=catalogue)
        for outcome in OUTCOMES:
            check_outcome(ledger.outcome_called(outcome), catalogue)
        make_estimator(ledger.estimator, catalogue)
        if make_estimator(ledger.unit_estimator, catalogue).runs_network:
            raise RobGIBError(
                f"unit_estimator {ledger.unit_estimator!r} replaces pieces of the input, and a layer's units are not "
                "pieces of the input; give an estimator of variables, such as gaussian."
            )
        check_partition(ledger.partition)
        check_data(ledger.data, catalogue)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return ledger


_DEALS = 1000  # of a cell, until its training is one that no other cell has


def _dealt(levels: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """Yield the levels of a field for ever: all of them in a random order, then all in another."""
    while True:
        deck = list(levels)
        rng.shuffle(deck)
        yield from deck


def networks(ledger: Ledger, catalogue: Sequence[Path] = ()) -> list[Network]:
    """Return the networks of a design, cell by cell.

    Args:
        ledger: the design.
        catalogue: further folders of architectures and data sets.

    Raises:
        RobGIBError: the training settings or the architecture of a network are invalid, or there are fewer different
            trainings than cells.
    """
    rng = random.Random(ledger.seed)
    shapes = {a: _dealt(of, rng) for a, of in ledger.architectures.items()}
    levels = {r: _dealt(of, rng) for r, of in ledger.regimes.items()}
    decks = {
        key: _dealt(list(getattr(ledger, key)), rng)
        for key in ("epochs", "learning_rate", "weight_decay", "batch_size", "augmentation", "early_stopping")
    }
    regimes, found = list(ledger.regimes), []
    pairs: list[tuple[str, str]] = []
    while len(pairs) < ledger.cells:
        first = rng.sample(range(len(regimes)), k=len(regimes))
        rounds = [
            [(a, regimes[first[(i + turn) % len(regimes)]]) for i, a in enumerate(ledger.architectures)]
            for turn in range(len(regimes))
        ]
        for one in rounds:
            rng.shuffle(one)
            pairs += one
    used: set[str] = set()
    for cell, (architecture, regime) in enumerate(pairs[: ledger.cells]):
        for _ in range(_DEALS):
            shape, level = next(shapes[architecture]), next(levels[regime])
            dealt = {key: next(deck) for key, deck in decks.items()}
            training = digest([architecture, shape.model_dump(), regime, level.model_dump(), dealt])
            if training not in used:
                break
        else:
            raise RobGIBError(
                f"ledger {ledger.name!r}: of {architecture} and {regime} there is no other training for cell {cell}; "
                "give fewer cells, or more levels."
            )
        used.add(training)
        found += [_network(ledger, cell, architecture, shape, regime, level, dealt, seed, catalogue)
                  for seed in ledger.seeds]  # fmt: skip
    return found


def _network(
    ledger: Ledger,
    cell: int,
    architecture: str,
    shape: Shape,
    regime: str,
    level: Level,
    dealt: Mapping[str, Any],
    seed: int,
    catalogue: Sequence[Path],
) -> Network:
    """Return one network of a cell."""
    fields = {
        "data": ledger.data,
        "architecture": architecture,
        "width": shape.width,
        "depth": shape.depth,
        "regime": regime,
        "strength": float(level.strength),
        **dealt,
    }
    training = {
        **{key: dealt[key] for key in ("epochs", "learning_rate", "weight_decay", "batch_size", "early_stopping")},
        **ledger.augmentation[dealt["augmentation"]],
        **level.training,
        "seed": seed,
    }
    name = f"{ledger.name}-{cell:03d}-seed{seed}"
    try:
        recipe = Recipe.model_validate(
            {
                "name": name,
                "data": ledger.data,
                "architecture": {"name": architecture, **shape.options},
                "training": training,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RobGIBError(f"ledger {ledger.name!r}: {name}: {where}: {first['msg'].lower()}.") from error
    recipe.check_architecture(f"ledger {ledger.name!r}")
    if not math.isclose(level.strength, strength_of(recipe)):
        raise RobGIBError(
            f"ledger {ledger.name!r}: the regime {regime!r} has a level of strength {level.strength:g} whose training "
            f"has the strength {strength_of(recipe):g}; give both the same."
        )
    return Network(cell, fields, seed, recipe.among(catalogue))


def stored_row(network: Network, ledger: Ledger, part: str = "") -> Path:
    """Return the folder in the cache that holds the row of a measured network, or the part ``units`` of it."""
    return cache_folder() / "ledger" / (network.key(ledger) + (f"-{part}" if part else ""))


def measure_networks(
    ledger: Ledger,
    table: Path,
    *,
    catalogue: Sequence[Path] = (),
    data_root: Path | None = None,
    engine: Engine = HERE,
    most: int | None = None,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Train and measure the networks that are not in the table, and add one row after each of them.

    Of a network in the table whose S(Z;Y) was not measured, only that is measured, and added to its row. Each time,
    the whole table is replaced atomically. After an interruption it has all finished networks.

    Args:
        ledger: the design.
        table: CSV file of the rows; it is created if it does not exist.
        catalogue: further folders of data sets and plug-ins.
        data_root: folder of the data files; None is the usual one.
        engine: runs the tasks, on this machine or on a cluster.
        most: measure only the first so many networks of the design; None measures all.
        progress: called after each network and, for tasks on this machine, during them.

    Returns:
        The rows in the order of the design, and the error message of each network that failed, by name.

    Raises:
        RobGIBError: the table is not a ledger, has another schema version, or holds a network of the design with other
            settings.
    """
    every = networks(ledger, catalogue)
    wanted, order = every[:most], {one.recipe.name: i for i, one in enumerate(every)}
    tasks = _tasks(ledger, wanted, of_design(ledger, every, rows_so_far(table), table), list(catalogue))
    errors: dict[str, str] = {}
    done = len(wanted) - len(tasks)
    ready = [task for task in tasks if (task.target / _ROW).is_file()]
    for task in ready:
        _add(task, order, table)
        done += 1
    by_name = {task.name: task for task in tasks}
    for name, error in run_tasks([t for t in tasks if t not in ready], engine, data_root, progress):
        done += 1
        if error:
            errors[name] = error
        else:
            _add(by_name[name], order, table)
        if progress:
            progress(f"ledger {ledger.name}", done, len(wanted), f"{name}{': failed' if error else ''}")
    return rows_so_far(table), errors


_ROW = "row.json"


def _tasks(ledger: Ledger, wanted: Sequence[Network], rows: pd.DataFrame, catalogue: list[Path]) -> list[Task]:
    """The tasks of the networks that are not in the table, and of those whose units were not measured."""
    complete = set(rows.loc[~without_units(rows), "network"])
    started = set(rows["network"]) - complete
    return [
        Task(
            one.recipe.name,
            stored_row(one, ledger, "units" if one.recipe.name in started else ""),
            one.recipe,
            partial(_units_measured if one.recipe.name in started else _measured, one, ledger, catalogue),
            partial(_checkpoint, one.recipe),
        )
        for one in wanted
        if one.recipe.name not in complete
    ]


def without_units(rows: pd.DataFrame) -> pd.Series:
    """Whether the S(Z;Y) of each row of a ledger was not measured (:func:`read_ledger`)."""
    return rows["unit_estimator"].isna() if len(rows) else pd.Series(dtype=bool)


def _checkpoint(recipe: Recipe, data: Dataset) -> str:
    return checkpoint_path(recipe, data).name


def _add(task: Task, order: Mapping[str, int], table: Path) -> None:
    """Add a finished task's row to the table, or its part of one, in the design's order; others may add to it too."""
    row = json.loads((task.target / _ROW).read_text(encoding="utf-8"))
    with alone(table):
        rows = rows_so_far(table)
        there = rows["network"] == task.name
        if there.any():
            missing = {k: v for k, v in row.items() if k in _LATER}
            rows = rows.astype(dict.fromkeys(missing, object))
            rows.loc[there, list(missing)] = list(missing.values())
        else:
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True) if len(rows) else pd.DataFrame([row])
        place = rows["network"].map(lambda n: order.get(n, len(order)))
        write_file(table, csv_text(rows.iloc[place.argsort(kind="stable")]).encode())


def _measured(
    network: Network,
    ledger: Ledger,
    catalogue: list[Path],
    folder: Path,
    data: Dataset,
    device: str,
    progress: Progress | None,
) -> None:
    """Train and measure one network; its row goes into the folder."""
    began = time.process_time()
    model, record = load_recipe(network.recipe, data, device=device, progress=progress)
    trained = time.process_time()
    run = evaluate(
        model,
        data,
        attacks=[*ledger.outcome.attacks, ledger.nearest],
        estimators=[ledger.estimator],
        features=[ledger.partition],
        unit_groups=_GROUPS,
        name=network.recipe.name,
        samples=ledger.samples,
        information_samples=ledger.information_samples,
        curve=False,
        corruptions=True,
        audit=0,
        signs=False,
        device=device,
        seed=ledger.seed,
        catalogue=catalogue,
        source={"kind": "study"},
        progress=progress or False,
    )
    units = _unit_figures(model, data, ledger, catalogue, device)
    model = model.cpu()
    row = {
        "schema": LEDGER_SCHEMA,
        "network": network.recipe.name,
        "cell": network.cell,
        **network.fields,
        "seed": network.seed,
        "kept_epochs": int(record.get("epochs") or 0),
        "train_accuracy": accuracy(model, data.train),
        "test_accuracy": accuracy(model, data.test),
        **_outcomes(model, data, ledger, run, catalogue),
        **_figures(ledger, run.layers, (c for c in ledger.figures if c not in _UNITS)),
        **_baselines(model, data, ledger),
        "chance": chance_of(data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": ledger.samples,
        "information_samples": int(run.config["information_samples"]),
        "estimator": ledger.estimator,
        "partition": ledger.partition,
        "attack": ledger.outcome.attack,
        "nearest": ledger.nearest,
        **units,
        "seconds_training": round(trained - began, 1),
        "seconds_measuring": round(time.process_time() - trained, 1),
        "robgib": installed_version("robgib"),
        "torch": torch.__version__,
    }
    _write_row(folder, row)


def _units_measured(
    network: Network,
    ledger: Ledger,
    catalogue: list[Path],
    folder: Path,
    data: Dataset,
    device: str,
    progress: Progress | None,
) -> None:
    """Measure the units of a network whose other figures are in the table; they go into the folder."""
    model, _ = load_recipe(network.recipe, data, device=device, progress=progress)
    _write_row(folder, _unit_figures(model, data, ledger, catalogue, device))


def _write_row(folder: Path, row: Mapping[str, Any]) -> None:
    text = json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    write_file(folder / _ROW, text.encode())


def _outcomes(model: torch.nn.Module, data: Dataset, ledger: Ledger, run: Run, catalogue: list[Path]) -> dict[str, Any]:
    """Return every outcome with its standard error, and the accuracy at each radius."""
    row: dict[str, Any] = {}
    for name in OUTCOMES:
        outcome = ledger.outcome_called(name)
        run.config["source"] |= outside_a_run(model, data, outcome, ledger.samples, ledger.seed, catalogue)
        run.config["source"].setdefault("baselines", {})
        found = outcome_of(outcome, run)
        row |= {name: found["outcome"], f"{name}_se": found["outcome_se"]}
    swept = run.robustness[run.robustness["attack"].isin(ledger.outcome.attacks)].sort_values("eps")
    at = {f"robust_{e:g}": float(a) for e, a in zip(swept["eps"], swept["robust_accuracy"], strict=True)}
    return {**row, "robust_0": float(swept["clean_accuracy"].iloc[0]), **at}


def _figures(ledger: Ledger, layers: pd.DataFrame, columns: Iterable[str]) -> dict[str, Any]:
    """Return the figures of some columns, from the table ``layers``."""
    return {f"{c}{k}": v for c in columns for k, v in figure_of(ledger.figures[c], layers).items()}


def _unit_figures(
    model: torch.nn.Module, data: Dataset, ledger: Ledger, catalogue: list[Path], device: str
) -> dict[str, Any]:
    """Return S(Z;Y), and how it was estimated."""
    found = layer_information(
        model,
        data,
        [ledger.unit_estimator],
        features=[ledger.partition],
        samples=ledger.unit_samples,
        unit_groups=_GROUPS,
        device=device,
        seed=ledger.seed,
        catalogue=catalogue,
    )
    how = {"unit_estimator": ledger.unit_estimator, "unit_samples": found.samples}
    return {**_figures(ledger, found.layers, _UNITS), **how}


def _baselines(model: torch.nn.Module, data: Dataset, ledger: Ledger) -> dict[str, Any]:
    """Return the baselines, and the error message of each that failed."""
    figures, failed = measure_model(model, sample_of(data, ledger.seed))
    return {**figures, "baselines_failed": reasons_text(failed)}


def _packaged() -> Path:
    """The ledger of this release: in an installed package beside the code, in a working copy in ``reports``."""
    package = Path(__file__).parents[1]
    packaged = package / "content" / "ledger" / "ledger.csv"
    return packaged if packaged.is_file() else package.parent / "reports" / "ledger" / "ledger.csv"


def load_ledger(path: str | Path | None = None) -> pd.DataFrame:
    """Return the open ledger: one row per network, with its training settings, figures, baselines and outcomes.

    :func:`~robgib.studies.dictionary` describes the columns. Networks of one ``cell`` differ by ``seed`` alone.

    Args:
        path: CSV file of another ledger; None is the ledger of this release.

    Raises:
        RobGIBError: the file is not a ledger, or has another schema version.

    >>> import robgib
    >>> ledger = robgib.load_ledger()
    >>> bool((ledger.groupby("cell")["seed"].nunique() <= 2).all())
    True
    """
    return read_ledger(_packaged() if path is None else Path(path))


_TRAINING = (
    ("schema", "", "version of the columns", ""),
    ("network", "", "name of the network", ""),
    ("cell", "", "number of the training; networks of one cell differ by their seed alone", ""),
    ("data", "", "data set", ""),
    ("architecture", "", "architecture", ""),
    ("width", "units", "channels of the first layer, dimension of tokens, or hidden units", ""),
    ("depth", "layers", "convolutions, residual blocks, transformer blocks or hidden layers", ""),
    (
        "regime", "",
        "standard; noise: Gaussian; pgd-at: Madry et al. 2018; trades: Zhang et al. 2019; mart: Wang et al. 2020; awp: "
        "pgd-at with weight perturbation, Wu et al. 2020", "",
    ),
    ("strength", "pixel scale", "radius of the training's attack, or the noise's standard deviation; 0 for none", ""),
    ("epochs", "", "epochs of the training", ""),
    ("learning_rate", "", "highest learning rate (AdamW, one cycle)", ""),
    ("weight_decay", "", "decoupled weight decay", ""),
    ("batch_size", "images", "images a batch", ""),
    ("augmentation", "", "none, or mirroring and shifts by a pixel", ""),
    ("early_stopping", "", "whether the epoch with the best held-out accuracy was kept", "Rice, Wong & Kolter 2020"),
    ("seed", "", "seed of the training", ""),
    ("kept_epochs", "", "epochs that were trained", ""),
    ("train_accuracy", "share", "accuracy on all training images", ""),
    ("test_accuracy", "share", "accuracy on all test images", ""),
    ("chance", "share", "accuracy of one answer to all test images", ""),
    ("parameters", "", "trained numbers of the network", ""),
    ("samples", "images", "images that were attacked, of the test and of the training set each", ""),
    ("information_samples", "images", "images that the information was estimated from; S(Z;Y) excepted", ""),
    ("estimator", "", "estimator of the information figures, with its settings", ""),
    ("unit_estimator", "", "estimator of S(Z;Y), with its settings; empty where that was not measured", ""),
    ("unit_samples", "images", "images that S(Z;Y) was estimated from", ""),
    ("partition", "", "features of the input", ""),
    ("attack", "", "attack of area, robust gap and robust_*", ""),
    ("nearest", "", "attack of median_distance", ""),
    ("seconds_training", "s", "processor time of the training", ""),
    ("seconds_measuring", "s", "processor time of all measurements", ""),
    ("robgib", "", "release that measured", ""),
    ("torch", "", "release of torch", ""),
    ("baselines_failed", "", "reason of each baseline that failed, whose figure is empty", ""),
)  # fmt: skip
_FIGURE_WORDS = {
    "C": "C(X;Z), complexity of the generalised information bottleneck",
    "S": "S(X;Z), synergy",
    "r": "r(X;Z), degree of redundancy",
    "v": "v(X;Z), degree of vulnerability",
    "I": "I(X;Z), mutual information of input and code",
    "IY": "I(Z;Y), information of the code about the label",
    "subset": "subset synergy, I(Ŷ;Y) less its mean with random subsets of the units set to 0",
    "Inoise": "I(X;Z) of the layer with Gaussian noise, whose code is not limited to 40 symbols",
    "SY": "S(Z;Y), synergy of eight groups of the layer's units about the label",
}
_LATER = (*(f"{c}{k}" for c in _UNITS for k in ("", "_se", "_marked")), "unit_estimator", "unit_samples")
"""Columns that the first ledgers of this schema version lack."""
_OUTCOME_WORDS = {
    "area": ("share", "area under accuracy against eps from 0 to the largest, as a share of the widest", ""),
    "median_distance": ("pixel scale", "median L∞ distance of the nearest adversarial image; 0 for wrong labels", ""),
    "robust_generalisation_gap": ("share", "the area on training images less that on test images", "Rice et al. 2020"),
    "generalisation_gap": ("share", "accuracy on training images less that on test images", ""),
    "corruption_accuracy": (
        "share", "mean accuracy over noise, blur, contrast and JPEG of five severities", "Hendrycks & Dietterich 2019",
    ),
    "probabilistic_robustness": (
        "share", "share of 20 random points of the L∞ ball of the largest eps that keep the label", "Robey et al. 2022",
    ),
}  # fmt: skip


def dictionary(radii: Sequence[float] = (0, 0.02, 0.05, 0.1, 0.15, 0.2)) -> pd.DataFrame:
    """Return the data dictionary of the ledger: the ``unit``, ``meaning`` and ``source`` of each ``column``.

    Args:
        radii: radii of the attack; each has a column.

    >>> dictionary().set_index("column").loc["v_last", "meaning"]
    'v(X;Z), degree of vulnerability, of the last layer before the logits'
    """
    rows = list(_TRAINING)
    for name, (unit, meaning, source) in _OUTCOME_WORDS.items():
        rows += [(name, unit, meaning, source), (f"{name}_se", unit, f"standard error of {name}", "")]
    for eps in radii:
        what = f"accuracy under the attack of radius {eps:g}" if eps else "accuracy on the attacked images, unattacked"
        rows.append((f"robust_{eps:g}", "share", what, ""))
    places = {"last": "of the last layer before the logits", "mean": "mean over the layers before the logits"}
    for symbol, words in _FIGURE_WORDS.items():
        unit = "patches" if symbol in "rv" else "bits"
        for layer, place in places.items():
            column = f"{symbol}_{layer}"
            rows += [
                (column, unit, f"{words}, {place}", ""),
                (f"{column}_se", unit, f"standard error of {column}, from its interval", ""),
                (f"{column}_marked", "", f"whether the estimator flags {column}", ""),
            ]
    for name, entry in MEASURES.entries().items():
        rows.append((name, "", "baseline: " + " ".join((entry.value.__doc__ or "").split()), "its text"))
    return pd.DataFrame(rows, columns=["column", "unit", "meaning", "source"])


_TEXTS = (
    "network", "data", "architecture", "regime", "augmentation", "estimator", "partition", "attack", "nearest",
    "robgib", "torch", "baselines_failed",
)  # fmt: skip


def read_ledger(path: str | Path) -> pd.DataFrame:
    """Read the CSV file of a ledger.

    Raises:
        RobGIBError: the file does not exist, is not a ledger, has another schema version, is cut off, has a text in
            place of a number, or names a network twice.
    """
    path = as_path(path, "path")
    if not path.is_file():
        raise RobGIBError(f"ledger {str(path)!r} does not exist.")
    rows = read_whole(path, "ledger")
    if "schema" not in rows or "network" not in rows:
        raise RobGIBError(f"{path} is no ledger: it has no columns 'schema' and 'network'.")
    other = sorted({str(s) for s in rows["schema"]} - {str(LEDGER_SCHEMA)})
    if other:
        raise RobGIBError(
            f"{path} is a ledger of schema version {', '.join(other)}, and this release reads version {LEDGER_SCHEMA}; "
            "use the release of robgib that its column 'robgib' names."
        )
    wanted = [c for c in dictionary()["column"] if not c.startswith("robust_0.")]
    missing = next((c for c in wanted if c not in rows and c not in _LATER), None)
    if missing is not None:
        raise RobGIBError(f"{path} lacks the column {missing!r} of a ledger of schema version {LEDGER_SCHEMA}.")
    texts = [c for c in _TEXTS if c != "baselines_failed"]
    check_given(path, rows, [*texts, "seed", "cell", *FIELDS])
    others = (*_TEXTS, "early_stopping", "unit_estimator")
    numbers = [c for c in wanted if c in rows and c not in others and not c.endswith("_marked")]
    check_numbers(path, rows, numbers)
    twice = rows["network"][rows["network"].duplicated()]
    if len(twice):
        raise RobGIBError(f"{path} has the network {twice.iloc[0]!r} twice; remove one of the rows.")
    rows = rows.reindex(columns=[*rows.columns, *(c for c in _LATER if c not in rows)])
    return rows.assign(baselines_failed=rows["baselines_failed"].astype(object).fillna("").astype(str))


def rows_so_far(table: Path) -> pd.DataFrame:
    """Return the rows of a ledger; none if the file does not exist yet.

    Raises:
        RobGIBError: as for :func:`read_ledger`.
    """
    return read_ledger(table) if table.is_file() else pd.DataFrame({"network": []})


_SETTINGS = ("samples", "estimator", "partition", "nearest")


def of_design(ledger: Ledger, networks: Sequence[Network], rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return the rows of a ledger after a check of their settings.

    Args:
        ledger: the design.
        networks: its networks.
        rows: rows of the ledger; those of networks that the design does not name are not checked.
        table: the file that they come from, for the message.

    Raises:
        RobGIBError: a network of the design was trained or measured with other settings, as happens if the design is
            changed after a sitting.
    """
    by_name = {one.recipe.name: one for one in networks}
    same = {**{name: getattr(ledger, name) for name in _SETTINGS}, "attack": ledger.outcome.attack}
    for row in rows.to_dict("records"):
        if row["network"] not in by_name:
            continue
        one = by_name[row["network"]]
        units = {} if pd.isna(row["unit_estimator"]) else {"unit_estimator": ledger.unit_estimator}
        wanted = {"seed": one.seed, **one.fields, **same, **units}
        other = next((name for name, value in wanted.items() if not _equal(row[name], value)), None)
        if other is not None:
            raise RobGIBError(
                f"{table}: the network {row['network']!r} has the {other.replace('_', ' ')} {row[other]!s}, and that "
                f"of the design {wanted[other]!s}; restore the design, or name another table in it."
            )
    return rows


def _equal(value: Any, wanted: Any) -> bool:
    """Whether a value of a table is a setting of a design."""
    if isinstance(wanted, bool | str):
        return str(value) == str(wanted)
    return math.isclose(value, wanted)


def ledger_study(ledger: Ledger, column: str = "v_last", outcome: str = "area") -> Study:
    """Return a correlation study on the rows of a ledger, with one primary figure and one outcome.

    Args:
        ledger: the design.
        column: column of the primary figure, such as ``v_last``; all other figures are secondary.
        outcome: column of the outcome, one of :data:`OUTCOMES`.
    """
    figures = ledger.figures
    return Study(
        name=ledger.name,
        question=ledger.question,
        expect="either" if outcome.endswith("gap") else ledger.expect.get(column.partition("_")[0], "either"),  # type: ignore[call-overload]
        primary=figures[column],
        secondary=[figure for name, figure in figures.items() if name != column],
        outcome=ledger.outcome_called(outcome),
        confirm=Models(),
        samples=ledger.samples,
        information_samples=ledger.information_samples,
        seed=ledger.seed,
    )


def ledger_structure(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the training settings of each network under the column names of correlation studies, without figures.

    Args:
        rows: one row per network, with the columns ``network``, ``seed`` and all of :data:`FIELDS`.
    """
    return pd.DataFrame(
        {
            "model": rows["network"],
            **{name: rows[name] for name in _OF_STUDIES},
            "training_seed": rows["seed"],
            **{f"{FIELD}{name}": rows[name] for name in FIELDS if name not in _OF_STUDIES},
        }
    )


def ledger_rows(ledger: Ledger, rows: pd.DataFrame, outcome: str = "area") -> pd.DataFrame:
    """Return the rows of a ledger in the form of :func:`~robgib.studies.measured_rows`, with one outcome.

    Args:
        ledger: the design.
        rows: rows of the ledger (:func:`load_ledger`).
        outcome: column that becomes ``outcome``, one of :data:`OUTCOMES`.
    """
    figures = {
        f"{figure.label}{k}": rows[f"{column}{k}"] for column, figure in ledger.figures.items() for k in ("", "_se")
    }
    flags = {f"{figure.label}_marked": rows[f"{c}_marked"].isin([True]) for c, figure in ledger.figures.items()}
    return pd.DataFrame(
        {
            **ledger_structure(rows),
            "part": "confirm",
            "left_out": "",
            **{name: rows[name] for name in list_measures() if name in rows},
            "baselines_failed": rows["baselines_failed"],
            "chance": rows["chance"],
            "outcome": rows[outcome],
            "outcome_se": rows[f"{outcome}_se"],
            **figures,
            **flags,
        }
    )


def verdicts(ledger: Ledger, rows: pd.DataFrame, outcomes: Sequence[str] = OUTCOMES) -> pd.DataFrame:
    """Return the verdict of the ladder of evidence for every figure and baseline, with every outcome.

    A figure must add to all baselines, and a baseline to the other baselines. The expected signs are those of the
    design for figures and outcomes of robustness; for gaps and baselines either sign counts. Collapsed networks are
    left out, except with the generalisation gap.

    Args:
        ledger: the design.
        rows: rows of the ledger (:func:`load_ledger`).
        outcomes: columns of outcomes.

    Returns:
        One row per figure and outcome: the ``verdict``; ``rho``, ``fixed`` and ``beyond``, the figures of the three
        rungs, each with ``_low``, ``_high`` and ``_p``, NaN if the rung was not tested; ``effect``, ``effect_se`` and
        ``effect_p``, the partial effect given all baselines and recipe fields, even if the last rung was not tested;
        and ``in_words``, the sentences of the rungs.
    """
    names = [c for c in ledger.figures if c.endswith("_last")]
    table = []
    for outcome in outcomes:
        for column in (*names, "strength", *list_measures()):
            information = column in names
            study = ledger_study(ledger, column if information else "v_last", outcome)
            models = collapsed(study, ledger_rows(ledger, rows, outcome))
            label = study.primary.label if information else column
            models = models[models["left_out"] == ""].dropna(subset=[label, "outcome"]).reset_index(drop=True)
            baselines = [b for b in ("strength", *list_measures()) if b != column]
            if outcome == "generalisation_gap":  # of which clean accuracy is a part
                baselines = [b for b in baselines if b != "clean_accuracy"]
            expect = study.expect if information else "either"
            head = {"figure": column, "kind": "information" if information else "baseline", "outcome": outcome}
            table.append({**head, "expect": expect, **_verdict(models, label, expect, tuple(baselines), ledger.seed)})
    return pd.DataFrame(table)


def _effect(rows: pd.DataFrame, label: str, baselines: tuple[str, ...]) -> tuple[float, float, float]:
    """The partial effect of the last rung, also where that is not reached; NaN where too few networks are left."""
    return partial_effect(rows, label, usable_baselines(rows, baselines))


def _verdict(rows: pd.DataFrame, label: str, expect: str, baselines: tuple[str, ...], seed: int) -> dict[str, Any]:
    """The verdict of one figure and the figures of the three rungs."""
    own: dict[str, Any] = {"networks": len(rows), "cells": int(cell_of(rows).max(initial=-1)) + 1}
    if len(rows) < LEAST or rows[label].nunique() < 2 or rows["outcome"].nunique() < 2:
        few = f"fewer than {LEAST} networks" if len(rows) < LEAST else "the figure or the outcome is constant"
        return {**own, "verdict": "undetermined", "in_words": f"Undetermined: {few}."}
    rungs = ladder(Question(rows, label, SIGNS[expect], baselines), np.random.default_rng([seed, 41]))
    own["verdict"] = highest(rungs)
    for name, rung in zip(("rho", "fixed", "beyond"), rungs, strict=True):
        own |= {name: rung.figure, f"{name}_low": rung.low, f"{name}_high": rung.high, f"{name}_p": rung.p}
    own |= dict(zip(("effect", "effect_se", "effect_p"), _effect(rows, label, baselines), strict=True))
    return {**own, "in_words": " ".join(r.sentence for r in rungs)}
