"""``robgib train`` and ``robgib trace``: one model trained, its information epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape

import robgib
from robgib.cli.common import AllowCode, AllowPickle, Catalogue, DataRoot, Device, Quiet, TraceEstimators, out
from robgib.errors import RobGIBError

if TYPE_CHECKING:
    import torch


def train(
    name: Annotated[str, typer.Argument(help="Zoo name.")],
    device: Device = "auto",
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Instead of the recipe's.")] = None,  # noqa: UP045
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Checkpoint to write (.safetensors; default: the cache).")  # noqa: UP045
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Estimate the layers' information while it trains; .trace.csv and .html.")
    ] = False,
    trace_at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Epochs to trace, as 0,1,2,5. [default: 0, 1, 2, 4, 8, … and the last]"),
    ] = None,
    estimator: TraceEstimators = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Keep the network of the epochs of --trace-at, for `robgib trace`.")
    ] = False,
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Train a model of the zoo and write its checkpoint, with a log. A training that was killed goes on."""

    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    recipe = robgib.zoo.find_recipe(name, extra, allow_code=allow_code).lasting(epochs)
    last = recipe.training.epochs
    at = robgib.training.log_spaced(last) if trace_at is None else _epochs(trace_at, last)
    if trace_at is not None and not (trace or snapshots):
        raise RobGIBError("--trace-at belongs to --trace or --snapshots; give one of them too.")
    if estimator and not trace:
        raise RobGIBError("--estimator belongs to --trace; give that too.")
    for spec in estimator or ():
        robgib.information.make_estimator(spec, extra)
    data = robgib.data.load_data(recipe.data, data_root)
    path = out_file or robgib.zoo.checkpoint_path(recipe, data)
    watchers: list[Callable[[int, torch.nn.Module], None]] = []
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        tracer = None
        if trace:
            keep = path.with_suffix(".trace.csv")
            tracer = robgib.training.Tracer(
                data,
                at,
                estimator or robgib.information.analysis.DEFAULT_ESTIMATORS,
                device=where,
                catalogue=extra,
                progress=progress,
                keep=keep,
            )
            watchers.append(tracer)
        if snapshots:
            told = {"name": name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
            watchers.append(robgib.training.snapshots(path.with_suffix(".epochs"), at, told))

        def watch(epoch: int, model: torch.nn.Module) -> None:
            for watcher in watchers:
                watcher(epoch, model)

        _, record, path = robgib.zoo.train_recipe(
            recipe, data, path, device=where, progress=progress, watch=watch if watchers else None
        )
        if tracer:
            written = robgib.reporting.page.write_trace(tracer.table, path, name)
    out.print(
        f"{escape(name)}: {100 * record['test_accuracy']:.1f}% test accuracy after {record['epochs']} epochs "
        f"({record['seconds']:.0f} s)\nCheckpoint: [bold]{escape(str(path))}[/bold]",
        soft_wrap=True,
        highlight=False,
    )
    if record["catastrophic_overfitting"]:
        out.print(
            f"[yellow]Stopped in epoch {record['catastrophic_overfitting']}[/yellow]: accuracy under PGD fell by over "
            "20 points (catastrophic overfitting to the one step); the epoch before is kept.",
            highlight=False,
        )
    if snapshots:
        kept = escape(str(path.with_suffix(".epochs")))
        out.print(f"Snapshots: [bold]{escape(str(kept))}[/bold]", soft_wrap=True, highlight=False)
    if tracer:
        out.print(f"Trace: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)


def trace(
    folder: Annotated[Path, typer.Argument(help="Folder with the checkpoints of one training, an epoch each.")],
    estimator: TraceEstimators = None,
    arch: Annotated[Optional[str], typer.Option(help="Architecture, as for evaluate.")] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(help="Data set.")] = None,  # noqa: UP045
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Page to write, with its .csv. [default: beside the folder]")  # noqa: UP045
    ] = None,
    allow_pickle: AllowPickle = False,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Estimate the layers' information in the checkpoints of a training, epoch by epoch."""

    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    for spec in estimator or ():
        robgib.information.make_estimator(spec, extra)
    files = robgib.training.saved_epochs(folder)
    beside = folder.resolve()
    page = out_file or beside.with_name(f"{beside.name.removesuffix('.epochs')}.trace.html")
    loaded: robgib.Dataset | None = None
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        for epoch, path in files.items():
            model, found = robgib.zoo.load_checkpoint(
                path,
                arch,
                data,
                data_root,
                data=loaded,
                allow_pickle=allow_pickle,
                extra=extra,
                allow_code=allow_code,
            )
            if loaded is None:
                loaded = found
                tracer = robgib.training.Tracer(
                    loaded,
                    tuple(files),
                    estimator or robgib.information.analysis.DEFAULT_ESTIMATORS,
                    device=where,
                    catalogue=extra,
                    progress=progress,
                )
            tracer(epoch, model.to(where))
    name = page.name.removesuffix(".html").removesuffix(".trace")
    written = robgib.reporting.page.write_trace(tracer.table, page.with_name(f"{name}.safetensors"), name)
    out.print(f"Trace: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)


def _epochs(text: str, last: int) -> tuple[int, ...]:
    try:
        at = sorted({int(part) for part in text.split(",")})
    except ValueError:
        at = []
    if not at or at[0] < 0 or at[-1] > last:
        raise RobGIBError(f"--trace-at must be epochs from 0 to {last}, such as 0,1,2, not {text!r}.")
    return tuple(at)
