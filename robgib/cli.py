"""The command line."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robgib.errors import RobGIBError, first_line

if TYPE_CHECKING:
    from torch import nn

    from robgib.data import Dataset
    from robgib.store import Run
    from robgib.training import Progress
    from robgib.zoo import Recipe

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adversarial robustness of image classifiers, and what the information in their layers says about it.",
)
zoo_app = typer.Typer(help="The model zoo.")
attacks_app = typer.Typer(help="The attack catalogue.")
estimators_app = typer.Typer(help="The information estimators.")
app.add_typer(zoo_app, name="zoo")
app.add_typer(attacks_app, name="attacks")
app.add_typer(estimators_app, name="estimators")

out = Console()
err = Console(stderr=True)

DataRoot = Annotated[
    Optional[Path], typer.Option("--data-root", help="Folder with the data files (default: the cache).")  # noqa: UP045
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Catalogue = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--catalogue", help="Further folder of attacks, recipes and plug-ins; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
TraceEstimators = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Estimator of the trace; repeatable. [default: gaussian, binned]"),
]


def _help_when_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log at debug level.")] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("robgib").setLevel(logging.DEBUG)
    if version:
        from robgib import __version__

        typer.echo(f"robgib {__version__}")
        raise typer.Exit
    _help_when_alone(context)


zoo_app.callback(invoke_without_command=True)(_help_when_alone)
attacks_app.callback(invoke_without_command=True)(_help_when_alone)
estimators_app.callback(invoke_without_command=True)(_help_when_alone)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """A bar for each task under way, on standard error; a finished one is printed once and left."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=err,
    ) as bars:
        known: dict[str, TaskID] = {}

        def report(task: str, done: int, total: int, note: str = "") -> None:
            if task not in known:
                known[task] = bars.add_task(task, total=total, note=note)
            bars.update(known[task], completed=done, total=total, note=note)
            if done >= total:
                finished = known.pop(task)
                bars.stop_task(finished)
                if " at eps=" in task:  # the many small steps of a curve would fill the screen
                    bars.remove_task(finished)

        yield report


@dataclass(frozen=True)
class _Subject:
    name: str
    model: nn.Module
    data: Dataset
    source: dict[str, Any]


_ROBUSTBENCH = "robustbench:"
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Unpickle .pt and .pth files that hold more than weights. [red]They can run any code."
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Take package.module:factory from recipes and records. [red]It imports and runs code that a file names.",
    ),
]


def _is_file(name: str) -> bool:
    from robgib.models import CHECKPOINT_SUFFIXES

    if name.startswith(_ROBUSTBENCH):
        return False
    return "/" in name or "\\" in name or Path(name).suffix in CHECKPOINT_SUFFIXES


def _subject(
    name: str,
    arch: str | None,
    data_name: str | None,
    root: Path | None,
    seed: int,
    extra: list[Path],
    device: Any,
    loaded: dict[str, Dataset],
    progress: Progress | None,
    allow_pickle: bool,
    allow_code: bool,
) -> _Subject:
    """Load one model, a checkpoint file or a zoo name, with its data."""
    from robgib import zoo

    if _is_file(name):
        path = Path(name)
        model, data = zoo.load_checkpoint(
            path, arch, data_name, root, seed, allow_pickle=allow_pickle, extra=extra, allow_code=allow_code
        )
        source = {"kind": "checkpoint", "file": path.name, "arch": arch}
        return _Subject(path.stem, model, data, source)
    if name.startswith(_ROBUSTBENCH):
        model, data = zoo.load_robustbench(name.removeprefix(_ROBUSTBENCH), root)
        return _Subject(name.rpartition("/")[2], model, data, {"kind": "robustbench", "name": name})
    recipe = zoo.find_recipe(name, extra, allow_code=allow_code)
    data = zoo.data_of(recipe, root, loaded)
    model, record = zoo.load_model(recipe, data, device=device, progress=progress)
    source = {
        "kind": "zoo",
        "recipe": name,
        "recipe_digest": recipe.digest,
        "test_accuracy": record.get("test_accuracy"),
    }
    return _Subject(name, model, data, source)


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Zoo names, checkpoint files, or robustbench:DATASET/THREAT/NAME.")
    ],
    attack: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Attack, as NAME[:key=value,…]; repeatable. [default: fgsm-linf, pgd-linf, pgd-l2]"),
    ] = None,
    estimator: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Estimator, as NAME[:key=value,…]; repeatable. [default: gaussian, binned]"),
    ] = None,
    layer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Layer, by module name or 'logits'; repeatable. [default: every block and the logits]"),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Architecture of checkpoint files: package.module:factory, or a name."),
    ] = None,
    data: Annotated[Optional[str], typer.Option(help="Data set of checkpoint files.")] = None,  # noqa: UP045
    allow_pickle: AllowPickle = False,
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Test images to attack. [default: all]")] = None,
    information_samples: Annotated[int, typer.Option(min=20, help="Most images for information estimates.")] = 5000,
    features: Annotated[str, typer.Option(help="patches:G, pca:N, pixels, channels, tokens:G or auto.")] = "auto",
    beta: Annotated[float, typer.Option(help="Trade-off of the IB and GIB objectives.")] = 1.0,
    pmi: Annotated[bool, typer.Option("--pmi", help="Weigh samples by max(0, pmi(ŷ;y)).")] = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Cheapest attack first, each next one on the samples still right.")
    ] = False,
    curve: Annotated[bool, typer.Option(help="Measure accuracy against eps.")] = True,
    signs: Annotated[bool, typer.Option(help="Look for signs that the attacks failed.")] = True,
    corruptions: Annotated[bool, typer.Option(help="Measure accuracy under common corruptions.")] = True,
    out_folder: Annotated[Path, typer.Option("--out", help="Where run folders go.")] = Path("runs"),
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once. [default: found]")] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 for the attacks' gradients (float32 decides who is fooled).")
    ] = "float32",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Attack models, estimate the information in their layers, and write run folders and a page."""
    from robgib import evaluation, zoo
    from robgib.attacks import make_attack
    from robgib.attacks.passes import PRECISIONS
    from robgib.data import check_data
    from robgib.errors import unknown_name
    from robgib.information import make_estimator
    from robgib.store import check_writable, digest, save_run, write_whole
    from robgib.training import resolve_device

    extra = list(catalogue or [])
    attacks = attack or list(evaluation.DEFAULT_ATTACKS)
    estimators = estimator or list(evaluation.DEFAULT_ESTIMATORS)
    # Everything that can be refused is refused before any work.
    where = resolve_device(device)
    for name in models:
        if name.startswith(_ROBUSTBENCH):
            continue
        if not _is_file(name):
            zoo.find_recipe(name, extra, allow_code=allow_code)
        elif not Path(name).is_file():
            raise RobGIBError(f"checkpoint {name!r} does not exist.")
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if data is not None:
        check_data(data)
    if len(set(models)) < len(models):
        raise RobGIBError("a model is named twice; name each one once.")
    for spec in attacks:
        make_attack(spec, extra=extra)
    for spec in estimators:
        make_estimator(spec, extra)
    check_writable(out_folder)

    runs: list[Run] = []
    pages: list[Path] = []
    loaded: dict[str, Dataset] = {}
    with _progress(quiet) as progress:
        for name in models:
            subject = _subject(
                name, arch, data, data_root, seed, extra, where, loaded, progress, allow_pickle, allow_code
            )
            run = evaluation.evaluate(
                subject.model,
                subject.data,
                attacks=attacks,
                estimators=estimators,
                layers=layer,
                name=subject.name,
                samples=samples,
                information_samples=information_samples,
                features=features,
                beta=beta,
                pmi=pmi,
                cascade=cascade,
                curve=curve,
                signs=signs,
                corruptions=corruptions,
                batch_size=batch_size,
                precision=precision,
                device=where,
                seed=seed,
                catalogue=extra,
                source=subject.source,
                progress=progress,
            )
            folder = save_run(run, out_folder, also=partial(_write_page, run))
            runs.append(run)
            pages.append(folder / "report.html")
    if len(runs) > 1:
        study = out_folder / f"study-{digest([run.folder for run in runs])[:8]}"
        with write_whole(study) as folder:
            _write_study(runs, folder)
        pages.append(study / "report.html")
    _show(runs)
    out.print(f"\nReport: [bold]{escape(str(pages[-1]))}[/bold]", soft_wrap=True, highlight=False)


def _write_page(run: Run, folder: Path) -> None:
    from robgib.reporting import write_report

    write_report([run], folder / "report.html")


def _write_study(runs: list[Run], folder: Path) -> None:
    from robgib.reporting import write_report
    from robgib.study import summarise

    (folder / "runs.txt").write_text("".join(f"{run.folder}\n" for run in runs))
    summarise(runs).to_csv(folder / "summary.csv", index=False)
    write_report(runs, folder / "report.html")


def _show(runs: list[Run]) -> None:
    """Print what was found."""
    from robgib.study import LEAST_MODELS, display_names

    left = " (each attack on what those before it left)" if any(r.config.get("cascade") for r in runs) else ""
    table = Table(title=f"Accuracy, clean and under attack{left}", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("attack", overflow="fold", min_width=12)
    table.add_column("budget", no_wrap=True)
    for column in ("accuracy", "95% interval", "in 8 bits"):
        table.add_column(column, justify="right", no_wrap=True)
    names = display_names(runs)
    for run, name in zip(runs, names, strict=True):
        first = run.robustness.iloc[0]
        interval = f"[{100 * first['clean_low']:.1f}, {100 * first['clean_high']:.1f}]"
        table.add_row(escape(name), "none", "", f"{100 * first['clean_accuracy']:.1f}%", escape(interval), "")
        for r in run.robustness.itertuples():
            if r.attack == "none":
                continue
            ok = r.status == "ok"
            table.add_row(
                "",
                escape(str(r.attack)),
                f"{r.norm} {r.eps:.4g}",
                f"{100 * r.robust_accuracy:.1f}%" if ok else "[red]failed",
                escape(f"[{100 * r.low:.1f}, {100 * r.high:.1f}]") if ok else "",
                f"{100 * r.robust_accuracy_8bit:.1f}%" if r.robust_accuracy_8bit == r.robust_accuracy_8bit else "",
            )
        table.add_section()
    out.print(table)
    for run, name in zip(runs, names, strict=True):
        for told in run.config.get("reading", ()):
            out.print(f"[yellow]{escape(name)}[/yellow]: {escape(told)}.", highlight=False)
        for r in run.robustness.itertuples():
            if r.undecided and r.seconds:  # not of the worst case of others
                out.print(
                    f"[yellow]{escape(f'{name}, {r.attack}')}[/yellow]: {r.undecided} of {r.samples} samples not "
                    "decided (the model's answer is not finite); none counts as robust.",
                    highlight=False,
                )
            if r.note:
                out.print(f"[yellow]{escape(f'{name}, {r.attack}')}[/yellow]: {escape(str(r.note))}.", highlight=False)
    for run in runs:
        for r in run.robustness[run.robustness["status"] != "ok"].itertuples():
            err.print(f"[red]{escape(f'{run.name}: {r.reason}')}", highlight=False, soft_wrap=True)
    for run, name in zip(runs, names, strict=True):
        if len(run.corruptions):
            means = run.corruptions.groupby("corruption", sort=False)["accuracy"].mean()
            told = ", ".join(f"{kind} {100 * value:.1f}%" for kind, value in means.items())
            out.print(
                f"{escape(name)}: {100 * means.mean():.1f}% under common corruptions, mean of five severities "
                f"({told}).",
                highlight=False,
            )
    for run, name in zip(runs, names, strict=True):
        seen = run.signs[run.signs["seen"].astype(bool)]
        for r in seen.itertuples():
            where = f"{name}, {r.norm} {r.eps:.4g}"
            out.print(f"[yellow]{escape(f'{where}: {r.name}')}[/yellow]: {escape(str(r.detail))}.", highlight=False)
            out.print(f"  [dim]{escape(str(r.meaning))}", highlight=False)
        if len(run.signs) and not len(seen):
            out.print(f"{escape(name)}: no sign of a failed attack.", highlight=False)
    for run, name in zip(runs, names, strict=True):
        for estimator, held in run.layers.groupby("estimator", sort=False):
            terms = list(dict.fromkeys(held["term"]))
            table = Table(title=f"{escape(name)}: bits by layer, {estimator} estimator", title_justify="left")
            table.add_column("layer", overflow="fold")
            for term in terms:
                table.add_column(term, justify="right")
            for layer, g in held.sort_values("depth", kind="stable").groupby("layer", sort=False):
                by_term = {r.term: r for r in g.itertuples()}
                table.add_row(escape(str(layer)), *(_cell(by_term[t]) for t in terms))
            out.print(table)
            for note, g in held[held["note"] != ""].groupby("note", sort=False):
                where = ", ".join(dict.fromkeys(f"{r.term} of {r.layer}" for r in g.itertuples()))
                out.print(f"  [dim]{escape(f'{note}: {where}')}", highlight=False)
            if held["saturated"].any():
                out.print("  [dim]sat: saturated, the truth may be anything above", highlight=False)
    if 1 < len(runs) < LEAST_MODELS:
        out.print(f"{len(runs)} models are too few to correlate (at least {LEAST_MODELS}).", highlight=False)


def _cell(row: Any) -> str:
    if row.value != row.value:
        return "n/e"
    error = f"\n±{(row.high - row.low) / 2:.2f}" if row.high > row.low else ""  # none where all outcomes are counted
    return f"{row.value:.2f}{error}" + ("\n[yellow]sat[/]" if row.saturated else "")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out_file: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one page from run folders."""
    from robgib.reporting import write_report
    from robgib.store import load_run

    written = write_report([load_run(folder) for folder in runs], out_file)
    out.print(f"Report: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)


@app.command()
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
    from robgib import zoo
    from robgib.data import load_data
    from robgib.evaluation import DEFAULT_ESTIMATORS
    from robgib.information import make_estimator
    from robgib.tracing import Tracer, log_spaced, write_trace
    from robgib.tracing import snapshots as keep_snapshots
    from robgib.training import resolve_device

    where = resolve_device(device)
    extra = list(catalogue or [])
    recipe = zoo.find_recipe(name, extra, allow_code=allow_code).lasting(epochs)
    last = recipe.training.epochs
    at = log_spaced(last) if trace_at is None else _epochs(trace_at, last)
    if trace_at is not None and not (trace or snapshots):
        raise RobGIBError("--trace-at belongs to --trace or --snapshots; give one of them too.")
    if estimator and not trace:
        raise RobGIBError("--estimator belongs to --trace; give that too.")
    for spec in estimator or ():
        make_estimator(spec, extra)
    data = load_data(recipe.data, data_root)
    path = out_file or zoo.checkpoint_path(recipe, data)
    watchers: list[Callable[[int, nn.Module], None]] = []
    with _progress(quiet) as progress:
        tracer = None
        if trace:
            keep = path.with_suffix(".trace.csv")
            tracer = Tracer(
                data,
                at,
                estimator or DEFAULT_ESTIMATORS,
                device=where,
                catalogue=extra,
                progress=progress,
                keep=keep,
            )
            watchers.append(tracer)
        if snapshots:
            told = {"name": name, "data": recipe.data, "architecture": recipe.model_dump()["architecture"]}
            watchers.append(keep_snapshots(path.with_suffix(".epochs"), at, told))

        def watch(epoch: int, model: nn.Module) -> None:
            for watcher in watchers:
                watcher(epoch, model)

        _, record, path = zoo.train_recipe(
            recipe, data, path, device=where, progress=progress, watch=watch if watchers else None
        )
        if tracer:
            written = write_trace(tracer.table, path, name)
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


@app.command()
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
    from robgib import zoo
    from robgib.evaluation import DEFAULT_ESTIMATORS
    from robgib.information import make_estimator
    from robgib.tracing import Tracer, saved_epochs, write_trace
    from robgib.training import resolve_device

    where = resolve_device(device)
    extra = list(catalogue or [])
    for spec in estimator or ():
        make_estimator(spec, extra)
    files = saved_epochs(folder)
    beside = folder.resolve()
    page = out_file or beside.with_name(f"{beside.name.removesuffix('.epochs')}.trace.html")
    loaded: Dataset | None = None
    with _progress(quiet) as progress:
        for epoch, path in files.items():
            model, found = zoo.load_checkpoint(
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
                tracer = Tracer(
                    loaded,
                    tuple(files),
                    estimator or DEFAULT_ESTIMATORS,
                    device=where,
                    catalogue=extra,
                    progress=progress,
                )
            tracer(epoch, model.to(where))
    name = page.name.removesuffix(".html").removesuffix(".trace")
    written = write_trace(tracer.table, page.with_name(f"{name}.safetensors"), name)
    out.print(f"Trace: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)


def _epochs(text: str, last: int) -> tuple[int, ...]:
    try:
        at = sorted({int(part) for part in text.split(",")})
    except ValueError:
        at = []
    if not at or at[0] < 0 or at[-1] > last:
        raise RobGIBError(f"--trace-at must be epochs from 0 to {last}, such as 0,1,2, not {text!r}.")
    return tuple(at)


@app.command("validate-estimators")
def validate_estimators(
    estimator: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Estimator, as NAME[:key=value,…]; repeatable. [default: all]"),
    ] = None,
    task: Annotated[Optional[list[str]], typer.Option(help="Task; repeatable. [default: all]")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=2, help="Draws of each task.")] = 20,
    every: Annotated[bool, typer.Option("--every", help="Also outside the regimes that an estimator claims.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the repeats.")] = 1,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for validation.csv, validation.html and estimators.md.")
    ] = Path("runs/validation"),
    add: Annotated[bool, typer.Option("--add", help="Keep what the folder says of other tasks.")] = False,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Hold the information estimators against known answers."""
    from robgib.errors import unknown_name
    from robgib.information import make_estimator
    from robgib.information.registry import estimator_classes
    from robgib.information.validation import tasks, validate
    from robgib.reporting import (
        merge_validations,
        read_validation,
        validation_markdown,
        validation_page,
        validation_rows,
    )
    from robgib.store import check_writable, write_whole

    extra = list(catalogue or [])
    known = tasks()
    for name in task or []:
        if name not in known:
            raise unknown_name("validation task", name, known)
    classes = estimator_classes(extra)
    makers = [make_estimator(e, extra) for e in estimator or classes]
    check_writable(out_folder)
    former = read_validation(out_folder / "validation.csv") if add else None
    with _progress(quiet) as progress:
        found = validate(
            makers,
            [known[n] for n in task or known],
            repeats=repeats,
            seed=seed,
            every=every,
            jobs=jobs,
            progress=progress,
        )
    if found.empty:
        raise RobGIBError("no chosen estimator claims the regime of a chosen task; add --every to ask it all the same.")
    whole = merge_validations(former, found, list(classes), list(known))
    told = {*whole["estimator"], *(e.name for e in makers)}
    kinds = [kind for name, kind in classes.items() if name in told]
    with write_whole(out_folder) as folder:
        whole.to_csv(folder / "validation.csv", index=False)
        (folder / "validation.html").write_text(validation_page(kinds, whole), encoding="utf-8")
        (folder / "estimators.md").write_text(validation_markdown(kinds, whole), encoding="utf-8")
    for name, held in found[found["figure"].isin(["I", "S", "C"])].groupby("estimator", sort=False):
        table = Table(title=f"{name} against the truth, {repeats} repeats (bits)", title_justify="left")
        table.add_column("task", no_wrap=True)
        table.add_column("figure")
        for column in ("truth", "bias", "sd", "coverage", "null"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in validation_rows(held):
            table.add_row(*(str(row[c]) for c in ("task", "figure", "truth", "bias", "sd", "coverage", "null")))
        out.print(table)
    out.print(f"\nPage: [bold]{escape(str(out_folder / 'validation.html'))}[/bold]", soft_wrap=True, highlight=False)


@zoo_app.command("list")
def zoo_list(
    group: Annotated[Optional[str], typer.Option(help="Those of one group only.")] = None,  # noqa: UP045
    catalogue: Catalogue = None,
) -> None:
    """List the zoo's models."""
    from robgib import zoo

    table = Table()
    for column in ("model", "data", "architecture", "description"):
        table.add_column(column, no_wrap=column == "model")
    for recipe in zoo.chosen((), group, list(catalogue or [])):
        told = (recipe.name, recipe.data, _architecture(recipe), recipe.description)
        table.add_row(*map(escape, told))
    out.print(table)


def _architecture(recipe: Recipe) -> str:
    if recipe.architecture is None:
        return "in the checkpoint"
    options = ", ".join(f"{k} {v}" for k, v in recipe.architecture.options.items())
    return f"{recipe.architecture.name}: {options}" if options else recipe.architecture.name


Names = Annotated[Optional[list[str]], typer.Argument(help="Zoo names. [default: those of --group]")]  # noqa: UP045
Group = Annotated[Optional[str], typer.Option(help="All models of a group, such as fashion-24.")]  # noqa: UP045


@zoo_app.command("train")
def zoo_train(
    names: Names = None,
    group: Group = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Train models into the cache, those that are not there yet; what was killed goes on where it was."""
    from robgib import zoo
    from robgib.training import resolve_device

    where = resolve_device(device)
    recipes = zoo.chosen(names or (), group, list(catalogue or []), some=True, allow_code=allow_code)
    table = Table(title=f"Trained: {len(recipes)}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("epochs", "time", "training", "test"):
        table.add_column(column, justify="right")
    loaded: dict[str, Dataset] = {}
    with _progress(quiet) as progress:
        for i, recipe in enumerate(recipes):
            data = zoo.data_of(recipe, data_root, loaded)
            _, record = zoo.load_model(recipe, data, device=where, progress=progress)
            if progress:
                progress("models", i + 1, len(recipes), recipe.name)
            shares = [f"{100 * record[key]:.1f}%" if key in record else "" for key in _SHARES]
            epochs, seconds = str(record.get("epochs", "")), f"{record.get('seconds', 0):.0f} s"
            table.add_row(escape(recipe.name), escape(epochs), seconds, *shares)
    out.print(table)


_SHARES = ("train_accuracy", "test_accuracy")


@zoo_app.command("table")
def zoo_table(
    names: Names = None,
    group: Group = None,
    attack: Annotated[str, typer.Option(help="Attack of the table.")] = "pgd-linf:steps=20",
    samples: Annotated[int, typer.Option(min=1, help="Test images to attack.")] = 2000,
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Markdown file to write, such as zoo/README.md.")  # noqa: UP045
    ] = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Measure models' clean and robust accuracy, those not yet trained being trained first; write it as a table."""
    from robgib import zoo
    from robgib.attacks import make_attack
    from robgib.store import write_file
    from robgib.training import resolve_device

    where = resolve_device(device)
    extra = list(catalogue or [])
    recipes = zoo.chosen(names or (), group, extra, some=True, allow_code=allow_code)
    make_attack(attack, extra=extra)
    with _progress(quiet) as progress:
        rows = zoo.measure(recipes, attack, samples, root=data_root, device=where, catalogue=extra, progress=progress)
    shown = Table(title=escape(f"Clean accuracy, and accuracy under {attack}"), title_justify="left")
    columns = ["model", "MB", "clean", "robust", "95% interval", "trained in"]
    for column in columns:
        shown.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows[columns].itertuples(index=False):
        shown.add_row(*(escape(str(cell)) for cell in row))
    out.print(shown)
    if out_file:
        command = " ".join(["robgib zoo table", *(names or ()), *([f"--group {group}"] if group else [])])
        write_file(out_file, zoo.table_markdown(rows, attack, samples, command).encode())
        out.print(f"Table: [bold]{escape(str(out_file))}[/bold]", soft_wrap=True, highlight=False)


@zoo_app.command("add")
def zoo_add(
    file: Annotated[Path, typer.Argument(help="Checkpoint file.")],
    name: Annotated[str, typer.Option(help="Name of the model, in lower case with hyphens.")],
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Architecture of a state dict: a name, or package.module:factory."),
    ] = None,
    data: Annotated[Optional[str], typer.Option(help="Its data set. [default: what its record says]")] = None,  # noqa: UP045
    description: Annotated[str, typer.Option(help="A line for the list.")] = "",
    folder: Annotated[Path, typer.Option("--into", help="Folder of the recipe.")] = Path("zoo"),
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
) -> None:
    """Write a recipe for a checkpoint, with its SHA-256 digest, so that it goes by a name."""
    from robgib import zoo
    from robgib.catalogue import read_yaml
    from robgib.models import runs_code

    recipe, accuracy = zoo.add_recipe(
        file,
        name,
        folder,
        arch=arch,
        data_name=data,
        root=data_root,
        description=description,
        allow_code=allow_code,
    )
    place = escape(str(recipe))
    out.print(f"{name}: {100 * accuracy:.1f}% test accuracy\nRecipe: [bold]{place}[/bold]", highlight=False)
    named = (read_yaml(recipe).get("architecture") or {}).get("name", "")
    code = " --allow-code" if runs_code(named) else ""
    if code:
        out.print(
            f"The recipe names {escape(named)}, whose code runs when it is loaded: that needs --allow-code.",
            highlight=False,
        )
    out.print(f"[dim]robgib evaluate {name} --catalogue {escape(str(folder))}{code}", highlight=False, soft_wrap=True)


@zoo_app.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="Zoo name.")], catalogue: Catalogue = None) -> None:
    """Show one recipe whole, with its digest and the checkpoints in the cache."""
    import yaml

    from robgib import zoo
    from robgib.data import cache_folder

    recipe = zoo.find_recipe(name, list(catalogue or []), allow_code=True)  # it is shown, not built
    out.print(
        escape(yaml.safe_dump(recipe.model_dump(), sort_keys=False, default_flow_style=None).rstrip()),
        highlight=False,
    )
    out.print(f"digest: {recipe.digest}", highlight=False, soft_wrap=True)
    if recipe.checkpoint:
        out.print(f"checkpoint: {escape(str(zoo.stored_checkpoint(recipe)))}", highlight=False, soft_wrap=True)
        return
    held = sorted((cache_folder() / "zoo").glob(f"{name}-{recipe.digest[:8]}-*.safetensors"))
    for path in held:
        out.print(f"checkpoint: {escape(str(path))}", highlight=False, soft_wrap=True)
    if not held:
        out.print("checkpoint: none in the cache; trained on first use", highlight=False)


@zoo_app.command("layers")
def zoo_layers(
    name: Annotated[str, typer.Argument(help="Zoo name, or an architecture such as resnet or torchvision:resnet18.")],
    shape: Annotated[str, typer.Option(help="Image shape for an architecture, as C,H,W.")] = "3,32,32",
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
) -> None:
    """List a model's layers with their shapes for one image; what an evaluation takes unasked is marked."""
    import torch

    from robgib import zoo
    from robgib.data import load_data
    from robgib.information.layers import LOGITS, default_layers, layer_shapes
    from robgib.models import ARCHITECTURES, build

    if name in ARCHITECTURES or ":" in name:
        try:
            size = tuple(int(part) for part in shape.split(","))
        except ValueError:
            size = ()
        if len(size) != 3 or min(size) < 1:
            raise RobGIBError(f"--shape must be three numbers such as 3,32,32, not {shape!r}.")
        model = build(name, size, 10)
    else:
        recipe = zoo.find_recipe(name, list(catalogue or []), allow_code=allow_code)
        data = load_data(recipe.data, data_root)
        size = data.shape
        model = zoo.load_model(recipe, data)[0] if recipe.checkpoint else recipe.untrained(data)
    example = torch.rand(2, *size)
    try:
        chosen, shapes = default_layers(model.eval(), example), layer_shapes(model, example)
    except RuntimeError as error:
        raise RobGIBError(f"{name} does not take images of {shape}: {first_line(error)}.") from error
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    table = Table(caption="* taken when no --layer is given", caption_justify="left")
    for column in ("layer", "kind", "shape", ""):
        table.add_column(column)
    for layer, found in shapes.items():
        marked = "*" if layer in chosen else ""
        kind = "" if layer == LOGITS else kinds[layer]
        table.add_row(escape(layer), escape(kind), " × ".join(map(str, found)), marked)
    out.print(table)


@attacks_app.command("list")
def attacks_list(catalogue: Catalogue = None) -> None:
    """List the attacks that go by name."""
    from robgib.attacks import attack_catalogue

    table = Table(
        caption="Also torchattacks:NAME, foolbox:NAME and art:NAME.",
        caption_justify="left",
    )
    for column in ("attack", "norm", "parameters", "description"):
        table.add_column(column, no_wrap=column == "attack")
    for entry in attack_catalogue(list(catalogue or [])).values():
        parameters = ", ".join(f"{k}={v}" for k, v in entry.parameters.items())
        norms = entry.norm or " or ".join(entry.attack.norms)
        table.add_row(*map(escape, (entry.name, norms, parameters, entry.description)))
    out.print(table)


@attacks_app.command("new")
def attacks_new(
    name: Annotated[str, typer.Argument(help="Name, in lower case with hyphens.")],
    folder: Annotated[Path, typer.Option("--into", help="Folder of the new files.")] = Path("attacks"),
) -> None:
    """Write a working attack and its test, to start from."""
    from robgib.attacks.template import new_attack

    attack, test = new_attack(name, folder)
    out.print(f"{attack}\n{test}", highlight=False, soft_wrap=True)
    shown = escape(str(folder))
    out.print(f"[dim]robgib attacks check {name} --catalogue {shown}", highlight=False, soft_wrap=True)
    out.print(f"[dim]robgib evaluate digits-cnn --attack {name}:eps=0.1 --catalogue {shown}", highlight=False)


@attacks_app.command("check")
def attacks_check(
    name: Annotated[str, typer.Argument(help="Attack, as NAME[:key=value,…].")], catalogue: Catalogue = None
) -> None:
    """Check that an attack keeps the contract of all attacks; exit code 1 when it does not."""
    from robgib.attacks import check_attack, make_attack

    checks = check_attack(make_attack(name, extra=list(catalogue or [])))
    table = Table(title=f"Contract of {name}", title_justify="left")
    for column in ("clause", "", "seen"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.name, "[green]ok" if check.passed else "[red]broken", escape(check.detail))
    out.print(table)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@estimators_app.command("list")
def estimators_list(catalogue: Catalogue = None) -> None:
    """List the information estimators."""
    from robgib.information import estimator_classes

    table = Table()
    for column in ("estimator", "bound", "description"):
        table.add_column(column, no_wrap=column == "estimator")
    for name, kind in estimator_classes(list(catalogue or [])).items():
        table.add_row(*map(escape, (name, kind.bound, kind.summary)))
    out.print(table)


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # ends as Ctrl-C does: nothing half-written stays
    try:
        app(prog_name="robgib")
    except RobGIBError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
