"""Runs sent to the experiment trackers that people use: parameters, figures, tables and the page."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robgib.errors import RobGIBError, unknown_name
from robgib.results import RUN_TABLES, Run, markdown_table

__all__ = [
    "TRACKERS",
    "check_tracker",
    "log_run",
]

TRACKERS: Mapping[str, str] = {"mlflow": "mlflow", "tensorboard": "torch.utils.tensorboard"}
"""The trackers, and the module that each needs."""
_LONGEST = 500  # characters of a parameter, the least that MLflow's servers take


def check_tracker(name: str) -> None:
    """Raise where a tracker is unknown, or its package is not installed.

    >>> check_tracker("wandb")
    Traceback (most recent call last):
    ...
    robgib.errors.RobGIBError: unknown tracker 'wandb'; known: mlflow, tensorboard.
    """
    if name not in TRACKERS:
        raise unknown_name("tracker", name, TRACKERS)
    try:
        importlib.import_module(TRACKERS[name])
    except ImportError as error:
        raise RobGIBError(f"--log {name} needs a further package: pip install 'robgib[{name}]'.") from error


def log_run(run: Run, folder: Path, tracker: str) -> str:
    """Send a run to a tracker.

    Args:
        run: to send.
        folder: its run folder, with the tables and the page.
        tracker: ``mlflow`` (to where MLflow's own settings say, such as ``MLFLOW_TRACKING_URI``, and to its experiment,
            ``robgib`` where none is set), or ``tensorboard`` (event files in the run folder:
            ``tensorboard --logdir runs``).

    Returns:
        Where it went, for a person.

    Raises:
        RobGIBError: the tracker is unknown or not installed, or does not take it.
    """
    check_tracker(tracker)
    try:
        return _to_mlflow(run, folder) if tracker == "mlflow" else _to_tensorboard(run, folder)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"{tracker} does not take the run: {error}.") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "mlflow":
            raise
        raise RobGIBError(f"mlflow does not take the run: {str(error).splitlines()[0]}") from error


def parameters(run: Run) -> dict[str, str]:
    """What determines a run, in one level."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(inner, f"{name}.{key}" if name else str(key))
        else:
            yield _plain(name), str(list(value) if isinstance(value, tuple) else value)[:_LONGEST]

    return dict(flat(run.config, ""))


def metrics(run: Run) -> dict[str, float]:
    """The figures of a run: shares of accuracy, and the layers' terms in bits (degrees in features)."""
    first = run.robustness.iloc[0]
    figures = {f"clean_accuracy{end}": first[f"clean_{key}"] for end, key in _ENDS.items()}
    for row in run.robustness[run.robustness["attack"] != "none"].to_dict("records"):
        at = f"{row['attack']}/{row['norm']}-{row['eps']:.4g}"
        figures |= {f"robust_accuracy{end}/{at}": row[_ROBUST.get(key, key)] for end, key in _ENDS.items()}
        figures[f"certified_accuracy/{at}"] = row["certified_accuracy"]
        figures[f"seconds/{at}"] = row["seconds"]
    figures["signs_seen"] = float(run.signs["seen"].astype(bool).sum())
    for row in run.layers.to_dict("records"):
        at = f"{row['estimator']}/{row['partition'] or 'all'}/{_LABELS.get(row['layer'], row['layer'])}"
        figures[f"{row['term']}/{at}"] = row["value"]
    return {_plain(name): float(value) for name, value in figures.items() if math.isfinite(value)}


_LABELS = {"Ŷ": "predicted_label", "Y": "true_label"}
_ENDS = {"": "accuracy", "_low": "low", "_high": "high"}
_ROBUST = {"accuracy": "robust_accuracy"}


def _plain(name: str) -> str:
    """A name as MLflow takes it: letters, figures, and - _ . / alone."""
    parts = (re.sub(r"[^\w.-]+", "_", part, flags=re.ASCII).strip("_") or "_" for part in name.split("/"))
    return "/".join(parts)[:250]


def _to_mlflow(run: Run, folder: Path) -> str:
    import mlflow

    if not (os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")):
        mlflow.set_experiment("robgib")
    settings, figures = parameters(run), metrics(run)
    with mlflow.start_run(run_name=run.name, nested=mlflow.active_run() is not None) as made:
        names = sorted(settings)
        for start in range(0, len(names), 100):  # as many as a server takes at once
            mlflow.log_params({name: settings[name] for name in names[start : start + 100]})
        mlflow.log_metrics(figures)
        mlflow.set_tags({f"robgib.{k}": str(v) for k, v in run.environment.items() if not isinstance(v, Mapping)})
        mlflow.log_artifacts(str(folder))
        return f"MLflow run {made.info.run_id} of {mlflow.get_tracking_uri()}"


def _to_tensorboard(run: Run, folder: Path) -> str:
    from torch.utils.tensorboard import SummaryWriter

    for former in folder.glob("events.out.tfevents.*"):
        former.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, value in metrics(run).items():
            writer.add_scalar(name, value)
        for (attack, norm), curve in run.curve.groupby(["attack", "norm"], sort=False):
            for row in curve.itertuples():  # steps are whole: radii in thousandths of the pixel scale
                writer.add_scalar(f"curve/{_plain(f'{attack} {norm}')}", row.accuracy, round(1000 * row.at))
        for key, layers in run.layers[run.layers["depth"] >= 0].groupby(["estimator", "partition", "term"], sort=False):
            for row in layers.dropna(subset="value").itertuples():
                writer.add_scalar(f"by depth/{_plain('/'.join(map(str, key)))}", row.value, row.depth)
        for number in sorted({key.split("/")[0] for key in run.pictures}):
            shown = np.concatenate([run.pictures[f"{number}/clean"], run.pictures[f"{number}/adversarial"]])
            if shown.ndim == 4 and shown.shape[1] in (1, 3):
                writer.add_images(f"clean and adversarial/{_plain(str(run.pictures[f'{number}/attack']))}", shown)
        writer.add_text("parameters", "\n".join(f"    {name}: {value}" for name, value in parameters(run).items()))
        for name in RUN_TABLES:
            rows = getattr(run, name)
            if len(rows) and name not in ("outcomes", "corrupted"):  # a row an image
                texts = rows.head(200).map(lambda v: f"{v:g}" if isinstance(v, float) else v)
                writer.add_text(name, markdown_table(texts))
        writer.add_text("page", f"`{folder / 'report.html'}`")
    return f"TensorBoard events in {folder}"
