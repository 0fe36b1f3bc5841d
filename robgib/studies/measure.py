"""Measure the cells of a study, each once. A finished cell is stored and not measured again."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.attacks.base import cost_of
from robgib.attacks.registry import make_attack
from robgib.data.dataset import Dataset
from robgib.engines import HERE, Engine
from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.evaluation import evaluate
from robgib.files import cache_folder, digest
from robgib.information.activations import LOGITS
from robgib.information.analysis import passes_of
from robgib.information.registry import make_estimator
from robgib.measures import measure_model, probabilistic_robustness, sample_of
from robgib.results import Run, load_run, read_csv, save_run
from robgib.runtime import Progress, seed_torch
from robgib.studies.design import FAILED_ATTACK, FIGURES, Cell, Figure, Outcome, Study
from robgib.studies.engines import Task, finish
from robgib.studies.strata import FIELD, training_fields, varied_fields
from robgib.training.loop import accuracy
from robgib.training.tracing import control
from robgib.zoo.loading import checkpoint_path, data_of, load_recipe
from robgib.zoo.recipe import Recipe

__all__ = [
    "Measured",
    "chance_of",
    "check_given",
    "check_numbers",
    "estimated_seconds",
    "figure_of",
    "measure",
    "measured_rows",
    "outcome_of",
    "outside_a_run",
    "read_rows",
    "read_whole",
    "reason_in",
    "reasons_text",
    "stored",
]

_TIMED = 64  # images of a pass that is timed
_UNSTATED = 100  # gradients a sample of an attack that does not state them


@dataclass(frozen=True)
class Measured:
    """A cell with its run, or with the message of the error."""

    cell: Cell
    run: Run | None
    error: str = ""


def stored(cell: Cell, study: Study) -> Path:
    """The folder of a cell's measurement, which all studies share."""
    return cache_folder() / "measured" / cell.key(study)


def measure(
    study: Study,
    cells: Sequence[Cell],
    *,
    data_root: Path | None = None,
    engine: Engine = HERE,
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[Measured]:
    """Train and measure the cells that are not measured yet, and read the others.

    Args:
        study: the design.
        cells: its models.
        data_root: folder of the data files.
        engine: what does the work.
        catalogue: further folders of plug-ins.
        progress: called after each cell, and while the cells of this machine are under way.

    Returns:
        The result of each cell, in order. A cell that fails has its error, and does not stop the others.
    """
    runs = {c.name: _read(c, study) for c in cells}
    waiting = [c for c in cells if runs[c.name] is None]
    tasks = [
        Task(
            c.name,
            stored(c, study),
            c.recipe,
            partial(_one, c, study, list(catalogue)),
            None if c.control else partial(_file, c.recipe),
        )
        for c in waiting
    ]
    errors = finish(study.name, tasks, "measured", len(cells), engine, data_root, progress)
    runs |= {c.name: _read(c, study) for c in waiting}
    return [Measured(c, runs[c.name], errors.get(c.name, "")) for c in cells]


def estimated_seconds(
    study: Study, cells: Sequence[Cell], data_root: Path | None = None, catalogue: Sequence[Path] = ()
) -> float:
    """Estimate the time that one process of this machine takes for the cells that are not measured yet.

    One pass of each untrained architecture is timed, and trainings, attacks and estimators that run the network are
    counted in passes. Estimators that train networks of their own, and attack-failure indicators, take about as long
    again as attacks and estimators.

    Raises:
        RobGIBError: the data are not there.
    """
    attacks = [make_attack(spec, extra=catalogue) for spec in study.outcome.attacks]
    makers = [make_estimator(spec, catalogue) for spec in study.estimators]
    loaded: dict[str, Dataset] = {}
    timed: dict[str, tuple[float, float]] = {}
    total = 0.0
    for cell in cells:
        if stored(cell, study).is_dir():
            continue
        recipe, data = cell.recipe, data_of(cell.recipe, data_root, loaded)
        key = digest([recipe.data, recipe.architecture])
        if key not in timed:
            timed[key] = _pass_times(recipe.untrained(data).eval(), data.test.x[:_TIMED], data.test.y[:_TIMED])
        forward, both = timed[key]
        if cell.control is None and not checkpoint_path(recipe, data).exists():
            adversary = recipe.training.adversary
            inner = adversary.steps if adversary else 0
            total += recipe.training.epochs * len(data.train) * (1 + inner) * both
        total += 2 * study.samples * sum(cost_of(a, type(a).__name__) or _UNSTATED for a in attacks) * both
        total += 2 * forward * passes_of(makers, data, study.partitions, study.information_samples)
    return total


def _pass_times(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Seconds an image forward, and forward and back."""
    best = [math.inf, math.inf]
    for _ in range(3):
        began = time.perf_counter()
        with torch.no_grad():
            model(x)
        best[0] = min(best[0], time.perf_counter() - began)
        began = time.perf_counter()
        leaf = x.clone().requires_grad_()
        nn.functional.cross_entropy(model(leaf), y).backward()
        best[1] = min(best[1], time.perf_counter() - began)
    return best[0] / len(x), best[1] / len(x)


def _read(cell: Cell, study: Study) -> Run | None:
    """Return the cell's finished run, the newest if there are several; None if it must be measured (again)."""
    files = [f for f in stored(cell, study).glob("*/config.json") if not f.parent.name.startswith(".")]
    for file in sorted(files, key=lambda f: (f.stat().st_mtime_ns, f), reverse=True):
        try:
            run = load_run(file.parent)
        except (RobGIBError, OSError):
            continue  # half of one, or of another version
        if run.config["source"].get("study_cell") == cell.key(study):
            return run
    return None


def _file(recipe: Recipe, data: Dataset) -> str:
    return checkpoint_path(recipe, data).name


def _one(
    cell: Cell, study: Study, catalogue: list[Path], folder: Path, data: Dataset, device: str, progress: Progress | None
) -> None:
    """Measure one cell; the run goes into the folder."""
    if cell.control == "untrained":
        seed_torch(cell.training_seed)
        model = cell.recipe.untrained(data).eval()
    elif cell.control is not None:
        changed, training = control(cell.control, data, cell.recipe.training)
        recipe = cell.recipe.model_copy(update={"training": training, "name": cell.name})
        model, _ = load_recipe(recipe, changed, device=device, progress=progress)
        data = changed if cell.control == "permuted-patches" else data
    else:
        model, _ = load_recipe(cell.recipe, data, device=device, progress=progress)
    model = model.to(device)
    evaluate(
        model,
        data,
        attacks=study.outcome.attacks,
        estimators=study.estimators,
        features=study.partitions,
        unit_groups=study.groups,
        pmi=study.pmi,
        name=cell.name,
        samples=study.samples,
        information_samples=study.information_samples,
        curve=False,
        corruptions=study.outcome.measure == "corruption_accuracy",
        audit=0,
        signs=study.signs,
        device=device,
        seed=study.seed,
        catalogue=catalogue,
        source={
            "kind": "study",
            "study_cell": cell.key(study),
            "recipe_digest": cell.recipe.digest,
            **_further(model.cpu(), data, study, catalogue),
        },
        save=partial(save_run, root=folder),
        unfinished=cache_folder() / "unfinished",
        progress=progress or False,
    )


def _further(model: nn.Module, data: Dataset, study: Study, catalogue: list[Path]) -> dict[str, Any]:
    """Return the baselines, and what the outcome needs beyond the tables of a run."""
    figures, failed = measure_model(model, sample_of(data, study.seed), study.measures, catalogue)
    further = {"baselines": figures, "baselines_failed": failed, "chance": chance_of(data)}
    return further | outside_a_run(model, data, study.outcome, study.samples, study.seed, catalogue)


def chance_of(data: Dataset) -> float:
    """Return the accuracy of one answer to all test samples."""
    return float(np.bincount(data.test.y.numpy()).max() / len(data.test.y))


def outside_a_run(
    model: nn.Module, data: Dataset, outcome: Outcome, samples: int, seed: int, catalogue: Sequence[Path]
) -> dict[str, Any]:
    """Measure what an outcome needs that is no part of a run; ``samples`` are attacked, or points drawn around them."""
    further: dict[str, Any] = {}
    kind = outcome.measure
    if kind == "generalisation_gap":
        further["gap"] = _gap(model, data)
    elif kind == "robust_generalisation_gap":
        if not len(data.train):
            raise RobGIBError(f"{data.name!r} has no training samples; a robust generalisation gap needs them.")
        trained = evaluate(
            model, replace(data, test=data.train), attacks=outcome.attacks, estimators=[], samples=samples,
            curve=False, corruptions=False, signs=False, audit=0, seed=seed, catalogue=catalogue, progress=False,
        )  # fmt: skip
        area, error = _area(outcome, trained)
        further["trained_area"] = {"value": area, "se": error}
    elif kind == "probabilistic_robustness":
        norm = make_attack(outcome.attack, extra=catalogue).norm
        x, y = data.test.sample(samples, seed)
        share, low, high = probabilistic_robustness(model, x, y, outcome.eps[-1], norm=norm, seed=seed)
        further["probabilistic"] = {"value": share, "se": (high - low) / 2 / 1.96}
    return further


def _gap(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracy on the samples that were trained on, on those held out, and how many there are."""
    unseen = data.val if data.enumerated else data.test  # where all inputs are listed, the test ones are among them
    if not len(data.train) or not len(unseen):
        raise RobGIBError(f"{data.name!r} has no training or no held-out samples; a gap needs both.")
    return {"trained": accuracy(model, data.train), "held_out": accuracy(model, unseen), "samples": len(unseen)}


def read_rows(path: Path, study: Study) -> pd.DataFrame:
    """Read a table of measured models (``models.csv`` of a study's folder).

    Raises:
        RobGIBError: it is no such table, lacks a figure of the study, is cut off, has a text in place of a number, or
            names a model twice.
    """
    if not path.is_file():
        raise RobGIBError(f"table of models {str(path)!r} does not exist.")
    rows = read_whole(path, "table of models").rename(columns={"dose": "strength"})  # the name of former versions
    wanted = [*_ORIGIN, "outcome", "outcome_se", *(f.label for f in study.figures)]
    missing = next((c for c in wanted if c not in rows), None)
    if missing is not None:
        raise RobGIBError(f"{path} has no column {missing!r}; give the models.csv of this study.")
    check_given(path, rows, [c for c in _ORIGIN if c != "left_out"])
    errors = [f"{f.label}_se" for f in study.figures]
    numbers = ["strength", "outcome", "outcome_se", "clean_accuracy", "chance", *(f.label for f in study.figures)]
    check_numbers(path, rows, [c for c in (*numbers, *errors, *study.measures) if c in rows])
    wrong = rows.index[~rows["part"].isin(_PARTS)]
    if len(wrong):
        raise RobGIBError(f"{path}, line {wrong[0] + 2}: {unknown_name('part', str(rows['part'][wrong[0]]), _PARTS)}")
    twice = rows[rows["model"].duplicated(keep=False)]
    if len(twice):
        same = twice[twice["model"] == twice["model"].iloc[0]]
        parts = " and in ".join(dict.fromkeys(same["part"]))
        raise RobGIBError(f"{path} has the model {same['model'].iloc[0]!r} twice, in {parts}; remove one of the rows.")
    return rows.assign(left_out=rows["left_out"].astype(object).fillna("").astype(str))


def read_whole(path: Path, what: str) -> pd.DataFrame:
    """Read a table and raise if a line of it has fewer or more values than the first, as a file that is cut off has.

    Args:
        path: the CSV file.
        what: what it is, for the message.

    Raises:
        RobGIBError: it cannot be read, or is not whole.
    """
    try:
        rows = read_csv(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            columns = len(next(lines))
            short = next(((lines.line_num, len(line)) for line in lines if line and len(line) != columns), None)
    except (OSError, ValueError, csv.Error) as error:
        raise RobGIBError(f"{path} is no {what}: {first_line(error)}.") from error
    if short is not None:
        raise RobGIBError(
            f"{path}, line {short[0]}: it has {short[1]} values, and the table has {columns} columns; the file may be "
            "cut off: make it again, or remove the line."
        )
    return rows


def check_given(path: Path, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise if a row of a table has no value in one of these columns."""
    for column in columns:
        empty = rows.index[rows[column].isna()]
        if len(empty):
            raise RobGIBError(
                f"{path}, line {empty[0] + 2}: the column {column!r} is empty; fill it, or remove the row."
            )


def check_numbers(path: Path, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise if a column of numbers holds a text."""
    for column in columns:
        wrong = rows.index[pd.to_numeric(rows[column], errors="coerce").isna() & rows[column].notna()]
        if len(wrong):
            raise RobGIBError(
                f"{path}, line {wrong[0] + 2}: the column {column!r} holds {str(rows[column][wrong[0]])!r}, which is "
                "no number; correct it, or leave it empty."
            )


_PARTS = ("explore", "confirm", "control")
_ORIGIN = ("model", "part", "data", "architecture", "regime", "strength", "training_seed", "left_out")


def measured_rows(study: Study, measured: Sequence[Measured]) -> pd.DataFrame:
    """Return one row per model: its origin, the outcome, every figure with its standard error, and the baselines.

    ``left_out`` says why a model is no part of the statistics.
    """
    rows = []
    for one in measured:
        cell, run = one.cell, one.run
        row: dict[str, Any] = {
            "model": cell.name,
            "part": cell.part,
            "data": cell.recipe.data,
            "architecture": cell.architecture,
            "regime": cell.control or cell.regime,
            "strength": cell.strength,
            "training_seed": cell.training_seed,
            "left_out": one.error,
            **training_fields(cell.recipe),
        }
        if run is not None:
            row |= {k: float(v) for k, v in run.config["source"]["baselines"].items()}
            row |= outcome_of(study.outcome, run)  # with the clean accuracy of all attacked images
            row["baselines_failed"] = reasons_text(run.config["source"].get("baselines_failed", {}))
            row["chance"] = float(run.config["source"]["chance"])
            for figure in study.figures:
                row |= {f"{figure.label}{k}": v for k, v in figure_of(figure, run.layers).items()}
            row |= _bound(run)
            signs = run.signs[run.signs["seen"].astype(bool)]
            if len(signs) and not one.error:
                row["left_out"] = f"{FAILED_ATTACK}: {', '.join(dict.fromkeys(signs['name']))}"
        rows.append(row)
    table = pd.DataFrame(rows)
    unneeded = {c for c in table if c.startswith(FIELD)} - set(varied_fields(table))
    if "baselines_failed" in table and not table["baselines_failed"].astype(object).fillna("").any():
        unneeded.add("baselines_failed")
    return table.drop(columns=[c for c in table if c in unneeded])


def reasons_text(failed: Mapping[str, str]) -> str:
    """Return why baselines failed on a model as one text (:func:`reason_in`).

    >>> reasons_text({"flatness": "ValueError: no; weights", "linear_r2": "TypeError: none"})
    'flatness: ValueError: no, weights; linear_r2: TypeError: none'
    """
    return "; ".join(f"{name}: {' '.join(reason.split()).replace(';', ',')}" for name, reason in failed.items())


def reason_in(text: str, name: str) -> str:
    """Return why a baseline failed, from the text of all that did; nothing if it is not among them.

    >>> reason_in("flatness: ValueError: no, weights; linear_r2: TypeError: none", "linear_r2")
    'TypeError: none'
    """
    return next((part.removeprefix(f"{name}: ") for part in text.split("; ") if part.startswith(f"{name}: ")), "")


def _bound(run: Run) -> dict[str, float]:
    """How many layers have estimates of IB and GIB, in how many IB ≤ GIB, and the largest IB − GIB."""
    keys = ["estimator", "partition", "layer"]
    both = [run.layers[run.layers["term"] == term].set_index(keys)["value"] for term in ("IB", "GIB")]
    over = (both[0] - both[1]).dropna()
    if over.empty:
        return {"bound_of": 0, "bound_held": 0, "bound_worst": float("nan")}
    return {"bound_of": len(over), "bound_held": int((over <= 1e-9).sum()), "bound_worst": float(over.max())}


def outcome_of(outcome: Outcome, run: Run) -> dict[str, float]:
    """Return the outcome with its standard error, and the clean accuracy."""
    source, kind = run.config["source"], outcome.measure
    clean = float(run.robustness["clean_accuracy"].iloc[0]) if len(run.robustness) else math.nan
    if math.isnan(clean):
        clean = float(source["baselines"].get("clean_accuracy", math.nan))
    row = {"clean_accuracy": clean}
    if kind == "generalisation_gap":
        gap = source["gap"]
        spread = float(np.sqrt(gap["held_out"] * (1 - gap["held_out"]) / gap["samples"]))
        parts = {"trained_accuracy": gap["trained"], "held_out_accuracy": gap["held_out"]}
        return {**row, "outcome": gap["trained"] - gap["held_out"], "outcome_se": spread, **parts}
    if kind == "corruption_accuracy":
        share, n = float(run.corruptions["accuracy"].mean()), int(run.corruptions["samples"].iloc[0])
        return {**row, "outcome": share, "outcome_se": math.sqrt(share * (1 - share) / n)}  # the same images in all
    if kind == "probabilistic_robustness":
        return {**row, "outcome": source["probabilistic"]["value"], "outcome_se": source["probabilistic"]["se"]}
    if kind == "median_distance":
        own, each = (t[t["attack"] == outcome.attack] for t in (run.robustness, run.outcomes))
        table = own[own["status"] == "ok"]
        value = float(table["median_distance"].iloc[0]) if len(table) else math.nan
        return {**row, "outcome": value if np.isfinite(value) else math.nan, **_median_se(each)}
    area, error = _area(outcome, run)
    if kind == "robust_generalisation_gap":
        trained = source["trained_area"]
        return {**row, "outcome": trained["value"] - area, "outcome_se": math.hypot(trained["se"], error),
                "trained_area": trained["value"], "test_area": area}  # fmt: skip
    return {**row, "outcome": area, "outcome_se": error}


def _area(outcome: Outcome, run: Run) -> tuple[float, float]:
    """The area under accuracy against eps as a share of the widest, and its standard error; NaN if a radius lacks."""
    table = run.robustness[run.robustness["status"] == "ok"].drop_duplicates("eps").set_index("eps")
    swept = table.loc[[e for e in table.index if any(np.isclose(e, outcome.eps))]].sort_index()
    if len(swept) < len(outcome.eps):
        return math.nan, math.nan
    at = np.array([0.0, *swept.index])
    accuracy = np.array([float(swept["clean_accuracy"].iloc[0]), *swept["robust_accuracy"]])
    weights = np.zeros(len(at))
    weights[:-1] += np.diff(at) / 2
    weights[1:] += np.diff(at) / 2
    samples = int(run.robustness["samples"].iloc[0])
    # The same samples at every radius: their errors go together, so the deviations add.
    spread = np.sqrt(accuracy * (1 - accuracy) / samples)
    return float(weights @ accuracy / at[-1]), float(weights @ spread / at[-1])


def _median_se(outcomes: pd.DataFrame) -> dict[str, float]:
    """Standard error of the median distance, from the order statistics (the two-sided 68% interval's half width)."""
    near = np.sort(outcomes["distance"].to_numpy(float))
    n = len(near)
    below, above = (int(np.clip(round(n / 2 + side * np.sqrt(n) / 2), 0, n - 1)) for side in (-1, 1))
    half = float(near[above] - near[below]) / 2 if n and np.isfinite(near[above]) else float("nan")
    return {"outcome_se": half}


def figure_of(figure: Figure, layers: pd.DataFrame) -> Mapping[str, Any]:
    """Return a figure by ``""``, its standard error by ``_se``, and whether it is marked by ``_marked``."""
    name = figure.estimator.partition(":")[0]
    chosen = layers[
        (layers["estimator"] == name)
        & (layers["partition"] == figure.partition)
        & (layers["term"] == FIGURES[figure.figure])
    ].sort_values("depth")
    inner = chosen[(chosen["layer"] != LOGITS) & (chosen["depth"] >= 0)]
    if figure.layer == "last":
        chosen = inner.tail(1)
    elif figure.layer == "mean":
        chosen = inner
    else:
        chosen = chosen[chosen["layer"] == figure.layer]
    if chosen.empty:
        return {"": float("nan"), "_se": float("nan"), "_marked": False}
    half = (chosen["high"] - chosen["low"]).mean() / 2  # layers share their samples: nothing cancels
    return {
        "": float(chosen["value"].mean(skipna=False)),
        "_se": float(half / 1.96),
        "_marked": bool(chosen["flagged"].any()),
    }
