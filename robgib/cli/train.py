"""``robgib train`` and ``robgib trace``: one model trained, its information epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, AllowPickle, Catalogue, DataRoot, Device, Quiet, TraceEstimators, out
from robgib.errors import RobGIBError, unknown_name
from robgib.files import check_file

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
        bool, typer.Option("--trace", help="Follow the layers' information over the epochs; .trace.csv and .html.")
    ] = False,
    trace_at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Epochs to trace, as 0,1,2,5.", show_default="0, 1, 2, 4, 8, … and the last"),
    ] = None,
    estimator: TraceEstimators = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Keep the network of the epochs of --trace-at, for `robgib trace`.")
    ] = False,
    control: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Train what must show nothing: untrained (a rate of nothing), or random-labels."),
    ] = None,
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
    if control is not None and control not in robgib.training.CONTROLS:
        raise unknown_name("control", control, robgib.training.CONTROLS)
    data = robgib.data.load_data(recipe.data, data_root, catalogue=extra)
    if trace:  # what cannot be traced is refused before the training
        samples = len(data.test) if data.enumerated else 2000
        robgib.information.analysis.make_estimators(_estimators(data, estimator), data, samples, 0, extra)
    if control is not None:
        data, training = robgib.training.control(control, data, recipe.training)
        recipe = recipe.model_copy(update={"training": training})
        out_file = out_file or Path(f"{name}-{control}.safetensors")
    path = out_file or robgib.zoo.checkpoint_path(recipe, data)
    if out_file:
        check_file(out_file)
    folder = path.with_suffix(".epochs")
    found: robgib.training.Trace | None = None
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        if trace:
            found, record = robgib.zoo.trace_recipe(
                recipe, data, path, at, _estimators(data, estimator), keep=snapshots, device=where, catalogue=extra,
                progress=progress,
            )  # fmt: skip
            written = robgib.reporting.page.write_trace(found.table, found.compression, path, name)
        else:
            watch: Callable[[int, torch.nn.Module], None] | None = None
            if snapshots:
                told = {"name": name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
                watch = robgib.training.snapshots(folder, at, told)
            _, record, path = robgib.zoo.train_recipe(recipe, data, path, device=where, progress=progress, watch=watch)
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
        out.print(f"Snapshots: [bold]{escape(str(folder))}[/bold]", soft_wrap=True, highlight=False)
    if found is not None:
        _tell(found, written)


def trace(
    folder: Annotated[Path, typer.Argument(help="Folder with the checkpoints of one training, an epoch each.")],
    estimator: TraceEstimators = None,
    arch: Annotated[Optional[str], typer.Option(help="Architecture, as for evaluate.")] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(help="Data set.")] = None,  # noqa: UP045
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Page to write, with its .csv.", show_default="beside the folder")  # noqa: UP045
    ] = None,
    allow_pickle: AllowPickle = False,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Follow the layers' information in the checkpoints of a training, and say whether it is compressed."""
    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    for spec in estimator or ():
        robgib.information.make_estimator(spec, extra)
    if out_file:
        check_file(out_file)
    files = robgib.training.saved_epochs(folder)
    beside = folder.resolve()
    page = out_file or beside.with_name(f"{beside.name.removesuffix('.epochs')}.trace.html")

    def load(path: Path, known: robgib.Dataset | None) -> tuple[torch.nn.Module, robgib.Dataset]:
        found = robgib.zoo.load_checkpoint(
            path,
            arch=arch,
            data=known or data,
            data_root=data_root,
            catalogue=extra,
            allow_pickle=allow_pickle,
            allow_code=allow_code,
        )
        return found.model, found.data

    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        _, loaded = load(next(iter(files.values())), None)
        networks = {epoch: partial(lambda p: load(p, loaded)[0], path) for epoch, path in files.items()}
        found = robgib.training.trace(
            networks, loaded, _estimators(loaded, estimator), device=where, catalogue=extra, progress=progress
        )
    name = page.name.removesuffix(".html").removesuffix(".trace")
    beside_it = page.with_name(f"{name}.safetensors")
    _tell(found, robgib.reporting.page.write_trace(found.table, found.compression, beside_it, name))


def _estimators(data: robgib.Dataset, given: list[str] | None) -> Sequence[str]:
    """Those asked for; else counting where all inputs are listed, and the defaults."""
    return given or (("exact",) if data.enumerated else robgib.information.DEFAULT_ESTIMATORS)


def _tell(found: robgib.training.Trace, page: Path) -> None:
    """Print what can be said of compression in training, and where the page is."""
    shown = found.compression.drop_duplicates(["layer", "term", "estimator", "view"])
    hows = list(dict.fromkeys("counted" if r.view == "exact" else r.estimator for r in shown.itertuples()))
    estimated = [how for how in hows if how != "counted"]
    how = f"C(X;Z) by {estimated[0]}" if len(estimated) == 1 else "all counted" if not estimated else ""
    title = "Compression in training: (peak − final)/peak" + (f"; {how}" if how else "")
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("term", no_wrap=True)
    for column in ("peak (epoch)", "final", "fall [95%]"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", min_width=len("compresses"))
    for r in shown.itertuples():
        fall = "n/e"
        if r.compression == r.compression:
            fall = escape(f"{100 * r.compression:.0f}% [{100 * r.low:.0f}, {100 * r.high:.0f}]")
        peak = f"{r.peak:.2f} ({r.peak_epoch})"
        table.add_row(
            escape(str(r.layer)),
            f"{r.term} {r.estimator}" if len(estimated) > 1 else str(r.term),
            peak,
            f"{r.final:.2f}",
            fall,
            r.verdict,
        )
    out.print(table)
    out.print(f"Trace: [bold]{escape(str(page))}[/bold]", soft_wrap=True, highlight=False)


def _epochs(text: str, last: int) -> tuple[int, ...]:
    try:
        at = sorted({int(part) for part in text.split(",")})
    except ValueError:
        at = []
    if not at or at[0] < 0 or at[-1] > last:
        raise RobGIBError(f"--trace-at must be epochs from 0 to {last}, such as 0,1,2, not {text!r}.")
    return tuple(at)
