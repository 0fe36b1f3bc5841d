"""``robgib train`` and ``robgib trace``: train one model, and trace the information in its layers over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, Catalogue, DataRoot, Device, Quiet, TraceEstimators, out
from robgib.cli.options import with_options
from robgib.errors import RobGIBError, unknown_name
from robgib.files import check_file
from robgib.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TracingOptions:
    """What to record while a model is trained."""

    trace: bool = option(False, "Trace the layers' information over the epochs; writes .trace.csv and .trace.html.")
    trace_at: str | None = option(None, "Epochs to trace, as 0,1,2,5.", shown="0, 1, 2, 4, 8, … and the last")
    estimator: Sequence[str] | None = option(
        None, "Estimator of the trace; repeatable.", shown="imputation; exact if all inputs are listed"
    )
    snapshots: bool = option(False, "Keep the networks of the epochs of --trace-at, for `robgib trace`.")
    control: str | None = option(
        None,
        "Train a control that must show no compression: untrained (a learning rate near 0) or random-labels.",
    )


@dataclass(frozen=True)
class CheckpointOptions:
    """How checkpoint files are read."""

    arch: str | None = option(None, "Architecture of checkpoint files: package.module:factory, or a name.")
    data: str | None = option(None, "Data set.")
    allow_pickle: bool = option(
        False, "Unpickle .pt and .pth files that hold more than weights. [red]They can run any code."
    )
    allow_code: bool = option(
        False,
        "Import package.module:factory that records name; read TorchScript and .pt2 with any operators. "
        "[red]This runs code that a file brings.",
    )


@with_options
def train(
    name: Annotated[str, typer.Argument(help="Zoo name.")],
    device: Device = "auto",
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Number of epochs, in place of the recipe's.")] = None,  # noqa: UP045
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Checkpoint to write (.safetensors; default: the cache).")  # noqa: UP045
    ] = None,
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
    *,
    tracing: TracingOptions,
) -> None:
    """Train a model of the zoo; write its checkpoint and a log. An interrupted training resumes."""
    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    recipe = robgib.zoo.find_recipe(name, extra, allow_code=allow_code).lasting(epochs)
    at = _checked_epochs(tracing, recipe.training.epochs, extra)
    data = robgib.data.load_data(recipe.data, data_root, catalogue=extra)
    if tracing.trace:  # refuse what cannot be traced before the training
        samples = len(data.test) if data.enumerated else 2000
        robgib.information.analysis.make_estimators(_estimators(data, tracing.estimator), data, samples, 0, extra)
    if tracing.control is not None:
        control: Any = tracing.control  # one of CONTROLS, as checked
        data, training = robgib.training.control(control, data, recipe.training)
        recipe = recipe.model_copy(update={"training": training})
        out_file = out_file or Path(f"{name}-{tracing.control}.safetensors")
    path = out_file or robgib.zoo.checkpoint_path(recipe, data)
    if out_file:
        check_file(out_file)
    folder = path.with_suffix(".epochs")
    result: robgib.training.Trace | None = None
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        if tracing.trace:
            result, record = robgib.zoo.trace_recipe(
                recipe, data, path, at, _estimators(data, tracing.estimator), keep=tracing.snapshots, device=where,
                catalogue=extra, progress=progress,
            )  # fmt: skip
            page = robgib.reporting.page.write_trace(result.table, result.compression, path, name)
        else:
            watch: Callable[[int, torch.nn.Module], None] | None = None
            if tracing.snapshots:
                about = {"name": name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
                watch = robgib.training.snapshots(folder, at, about)
            _, record, path = robgib.zoo.train_recipe(recipe, data, path, device=where, progress=progress, watch=watch)
    _print_training(name, record, path)
    if tracing.snapshots:
        out.print(f"Snapshots: [bold]{escape(str(folder))}[/bold]", soft_wrap=True, highlight=False)
    if result is not None:
        _print_trace(result, page)


def _checked_epochs(tracing: TracingOptions, last: int, extra: list[Path]) -> Sequence[int]:
    """The epochs to trace, after checking that the options belong together."""
    at = robgib.training.log_spaced(last) if tracing.trace_at is None else _epochs(tracing.trace_at, last)
    if tracing.trace_at is not None and not (tracing.trace or tracing.snapshots):
        raise RobGIBError("--trace-at needs --trace or --snapshots; give one of them too.")
    if tracing.estimator and not tracing.trace:
        raise RobGIBError("--estimator needs --trace; give --trace too.")
    for spec in tracing.estimator or ():
        robgib.information.make_estimator(spec, extra)
    if tracing.control is not None and tracing.control not in robgib.training.CONTROLS:
        raise unknown_name("control", tracing.control, robgib.training.CONTROLS)
    return at


def _print_training(name: str, record: dict[str, Any], path: Path) -> None:
    out.print(
        f"{escape(name)}: {100 * record['test_accuracy']:.1f}% test accuracy after {record['epochs']} epochs "
        f"({record['seconds']:.0f} s)\nCheckpoint: [bold]{escape(str(path))}[/bold]",
        soft_wrap=True,
        highlight=False,
    )
    if record["catastrophic_overfitting"]:
        out.print(
            f"[yellow]Training stopped in epoch {record['catastrophic_overfitting']}[/yellow]: accuracy under PGD fell "
            "by more than 20 points (catastrophic overfitting). The weights of the epoch before are kept.",
            highlight=False,
        )


@with_options
def trace(
    folder: Annotated[Path, typer.Argument(help="Folder with the checkpoints of one training, one per epoch.")],
    estimator: TraceEstimators = None,
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Page to write, with its .csv.", show_default="beside the folder")  # noqa: UP045
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
    *,
    checkpoint: CheckpointOptions,
) -> None:
    """Trace the layers' information over the checkpoints of a training, and report whether it is compressed."""
    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    for spec in estimator or ():
        robgib.information.make_estimator(spec, extra)
    if out_file:
        check_file(out_file)
    files = robgib.training.saved_epochs(folder)
    beside = folder.resolve()
    page = out_file or beside.with_name(f"{beside.name.removesuffix('.epochs')}.trace.html")

    def load(path: Path, data: robgib.Dataset | None) -> robgib.zoo.Loaded:
        return robgib.zoo.load_checkpoint(
            path, arch=checkpoint.arch, data=data or checkpoint.data, data_root=data_root, catalogue=extra,
            allow_pickle=checkpoint.allow_pickle, allow_code=checkpoint.allow_code,
        )  # fmt: skip

    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        data = load(next(iter(files.values())), None).data
        networks = {epoch: partial(lambda p: load(p, data).model, path) for epoch, path in files.items()}
        result = robgib.training.trace(
            networks, data, _estimators(data, estimator), device=where, catalogue=extra, progress=progress
        )
    name = page.name.removesuffix(".html").removesuffix(".trace")
    beside_it = page.with_name(f"{name}.safetensors")
    _print_trace(result, robgib.reporting.page.write_trace(result.table, result.compression, beside_it, name))


def _estimators(data: robgib.Dataset, given: Sequence[str] | None) -> Sequence[str]:
    """The given estimators; by default exact counts if all inputs are listed, otherwise the usual ones."""
    return given or (("exact",) if data.enumerated else robgib.information.DEFAULT_ESTIMATORS)


def _print_trace(result: robgib.training.Trace, page: Path) -> None:
    """Print the verdicts on compression, and the path of the page."""
    shown = result.compression.drop_duplicates(["layer", "term", "estimator", "view"])
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
        raise RobGIBError(f"--trace-at must list epochs from 0 to {last}, such as 0,1,2, not {text!r}.")
    return tuple(at)
