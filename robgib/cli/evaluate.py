"""``robgib evaluate`` and ``robgib report``: models attacked, their layers estimated, pages written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

import robgib
from robgib.cli.common import (
    AllowCode,
    AllowPickle,
    Arch,
    Bounds,
    Catalogue,
    Classes,
    ClassSubset,
    Crop,
    DataBounds,
    DataRoot,
    Device,
    InputSize,
    Interpolation,
    Mean,
    Normalize,
    Quiet,
    Resize,
    Std,
    WeightsKey,
    data_bounds_of,
    err,
    normalization_of,
    out,
    sizing_of,
)
from robgib.errors import RobGIBError, unknown_name
from robgib.files import atomic_directory, cache_folder, check_file, check_writable, digest


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Zoo names, checkpoint files, torchvision:NAME, timm:NAME, hf:ORG/NAME or "
            "robustbench:DATASET/THREAT/NAME."
        ),
    ],
    attack: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Attack, as NAME[:key=value,…]; repeatable.", show_default="--standard"),
    ] = None,
    estimator: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Estimator, as NAME[:key=value,…]; repeatable.", show_default="imputation"),
    ] = None,
    layer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Layer, by module name or 'logits'; repeatable.", show_default="every block and the logits"),
    ] = None,
    arch: Arch = None,
    data: Annotated[Optional[str], typer.Option(help="Data set, in the place of a model's own.")] = None,  # noqa: UP045
    classes: Classes = None,
    class_subset: ClassSubset = None,
    weights_key: WeightsKey = None,
    normalize: Normalize = None,
    mean: Mean = None,
    std: Std = None,
    bounds: Bounds = None,
    input_size: InputSize = None,
    resize: Resize = None,
    crop: Crop = None,
    interpolation: Interpolation = "bilinear",
    data_bounds: DataBounds = None,
    allow_pickle: AllowPickle = False,
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Test images to attack.", show_default="all")] = None,
    information_samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=20, help="Most images for information estimates.", show_default="--samples, 5000 at most"),
    ] = None,
    features: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="patches:G, pca:N, pixels, channels, tokens:G or groups:G; repeatable.", show_default="two sizes"
        ),
    ] = None,
    codes: Annotated[
        int | None, typer.Option(min=2, help="Symbols of a layer's code.", show_default="four a class, 16 at least")
    ] = None,
    sigma: Annotated[float, typer.Option(help="Noise of the noise view, in a layer's total standard deviation.")] = 0.3,
    unit_groups: Annotated[int, typer.Option(min=0, help="Groups of units as the features of S(Z;Y); 0: none.")] = 0,
    beta: Annotated[float, typer.Option(help="Trade-off of the IB and GIB objectives.")] = 1.0,
    pmi: Annotated[bool, typer.Option("--pmi", help="Weigh samples by 1[ŷ = y]·max(0, pmi(ŷ;y)).")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="FGSM and PGD: the weakest claim, in seconds.")] = False,
    standard: Annotated[
        bool,
        typer.Option("--standard", help="Auto-PGD, then fast ensembles on what is left: --full's answer, sooner."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="AutoAttack.")] = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Cheapest attack first, each next one on the samples still right.")
    ] = False,
    information: Annotated[bool, typer.Option(help="Estimate the information in the layers.")] = True,
    curve: Annotated[bool, typer.Option(help="Measure accuracy against eps.")] = True,
    signs: Annotated[bool, typer.Option(help="Look for signs that the attacks failed.")] = True,
    corruptions: Annotated[bool, typer.Option(help="Measure accuracy under common corruptions.")] = True,
    certify: Annotated[
        bool, typer.Option("--certify", help="Also prove samples robust, by bounds on the network (small ones).")
    ] = False,
    until_width: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Attack until the 95% intervals are this narrow, as 2% or 0.02, and no longer."),
    ] = None,
    save_adversarial: Annotated[
        bool, typer.Option("--save-adversarial", help="Keep every adversarial image, for verify.")
    ] = False,
    out_folder: Annotated[Path, typer.Option("--out", help="Where run folders go.")] = Path("runs"),
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once.", show_default="found")] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 for the attacks' gradients (float32 decides who is fooled).")
    ] = "float32",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random number.")] = 0,
    catalogue: Catalogue = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the bits of every layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")] = False,
    fail_under: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Exit with 1 where a robust accuracy is lower, as 40% or 0.4."),
    ] = None,
    log: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Send parameters, figures, tables and the page to mlflow or tensorboard; repeatable."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what a run folder below --out holds already.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Attack models, estimate the information in their layers, and write run folders and a page."""

    extra = list(catalogue or [])
    chosen = [name for name, given in (("quick", quick), ("standard", standard), ("full", full)) if given]
    if len(chosen) + bool(attack) > 1:
        raise RobGIBError("--quick, --standard, --full and --attack exclude each other; give one.")
    attacks: str | list[str] = attack or (chosen[0] if chosen else robgib.robustness.DEFAULT_ATTACKS)
    if estimator and not information:
        raise RobGIBError("--estimator and --no-information exclude each other; give one.")
    estimators = (estimator or list(robgib.information.DEFAULT_ESTIMATORS)) if information else []
    # Everything that can be refused is refused before any work.
    least = None if fail_under is None else _share("--fail-under", fail_under)
    width = None if until_width is None else _share("--until-width", until_width)
    if width is not None and not 0 < width < 1:
        raise RobGIBError(f"--until-width must be more than 0% and less than 100%, not {until_width!r}.")
    where = robgib.runtime.resolve_device(device)
    normalization = normalization_of(normalize, mean, std, bounds)
    sizing = sizing_of(input_size, resize, crop, interpolation)
    bounds_of_data = data_bounds_of(data_bounds)
    robgib.data.load_data_sets(extra)
    for name in models:
        if robgib.models.is_pretrained(name):
            continue
        robgib.zoo.check_named(name, arch, weights_key, normalization)
        if name.startswith(robgib.zoo.ROBUSTBENCH):
            continue
        if not robgib.zoo.is_file(name):
            robgib.zoo.find_recipe(name, extra, allow_code=allow_code)
        elif not Path(name).exists():
            raise RobGIBError(f"checkpoint {name!r} does not exist.")
    if precision not in robgib.models.inference.PRECISIONS:
        raise unknown_name("precision", precision, robgib.models.inference.PRECISIONS)
    if data is not None:
        robgib.data.check_data(data)
    if len(set(models)) < len(models):
        raise RobGIBError("a model is named twice; name each one once.")
    for spec in attack or ():
        robgib.attacks.make_attack(spec, extra=extra)
    for spec in estimators:
        robgib.information.make_estimator(spec, extra)
    for tracker in log or ():
        robgib.reporting.check_tracker(tracker)
    check_writable(out_folder)

    runs: list[robgib.Run] = []
    known: list[str] = []
    pages: list[Path] = []
    loaded: dict[str, robgib.Dataset] = {}
    new: list[robgib.Run] = []

    def save(run: robgib.Run) -> None:
        robgib.results.save_run(run, out_folder, also=partial(_write_page, run))
        new.append(run)

    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        for name in models:
            subject = robgib.zoo.load(
                name,
                arch=arch,
                data=data,
                data_root=data_root,
                seed=seed,
                classes=classes,
                class_subset=class_subset,
                weights_key=weights_key,
                normalization=normalization,
                sizing=sizing,
                data_bounds=bounds_of_data,
                catalogue=extra,
                loaded=loaded,
                progress=progress or False,
                allow_pickle=allow_pickle,
                allow_code=allow_code,
                device=where,
            )
            run = robgib.evaluate(
                subject.model,
                subject.data,
                attacks=attacks,
                estimators=estimators,
                layers=layer,
                name=subject.name,
                samples=samples,
                information_samples=information_samples,
                features=features or "auto",
                codes=codes,
                sigma=sigma,
                unit_groups=unit_groups,
                beta=beta,
                pmi=pmi,
                cascade=cascade or None,
                curve=curve,
                signs=signs,
                corruptions=corruptions,
                certify=certify,
                save_adversarial=save_adversarial,
                until_width=width,
                batch_size=batch_size,
                precision=precision,
                device=where,
                seed=seed,
                catalogue=extra,
                source={**subject.source, **({"notes": list(subject.notes)} if subject.notes else {})},
                known=None if fresh else partial(robgib.results.find_run, out_folder),
                save=save,
                unfinished=None if fresh else cache_folder() / "unfinished",
                planned=None if quiet else partial(_tell_plan, subject.name),
                progress=progress or False,
            )
            folder = out_folder / run.folder
            if not any(run is one for one in new):  # tables have no truth value
                known.append(subject.name)
                if not (folder / "report.html").is_file():
                    save(run)
            runs.append(run)
            pages.append(folder / "report.html")
    if len(runs) > 1:
        study = out_folder / f"study-{digest([run.folder for run in runs])[:8]}"
        with atomic_directory(study) as folder:
            _write_study(runs, folder)
        pages.append(study / "report.html")
    for tracker in dict.fromkeys(log or ()):
        for run in runs:
            told = robgib.reporting.log_run(run, out_folder / run.folder, tracker)
            err.print(f"{escape(run.name)}: {escape(told)}", highlight=False, soft_wrap=True)
    if as_json:
        folders = [str(out_folder / run.folder) for run in runs]
        typer.echo(json.dumps(robgib.reporting.runs_json(runs, folders), indent=2))
    else:
        robgib.reporting.print_runs(runs, out, err, layers=verbose)
        if known:
            names = escape(", ".join(known))
            out.print(f"{names}: measured before, shown again (--fresh measures anew).", highlight=False)
        more = "" if verbose else " (the layers' bits: there, or with --verbose)"
        out.print(f"\nReport: [bold]{escape(str(pages[-1]))}[/bold]{more}", soft_wrap=True, highlight=False)
    if any((run.robustness["status"] != "ok").any() for run in runs):
        raise typer.Exit(1)
    if least is not None:
        under = [run.name for run in runs if float(run.robustness["robust_accuracy"].min()) < least]
        if under:
            err.print(f"Below {least:.0%} robust accuracy: {escape(', '.join(under))}.", highlight=False)
            raise typer.Exit(1)


def _tell_plan(name: str, seconds: Mapping[str, float]) -> None:
    """Say on standard error how long it may take, before it begins."""
    parts = []
    for part, words in (
        ("information", "information about"),
        ("attacks", "attacks"),
        ("beside", "what is beside them"),
    ):
        if seconds[part] > 0:
            parts.append(f"{words} {'up to ' if part != 'information' else ''}{_length(seconds[part])}")
    err.print(f"{escape(name)}: {', '.join(parts) or 'nothing but the clean accuracy'}", highlight=False)


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _share(option: str, text: str) -> float:
    """A share given as 40% or 0.4."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RobGIBError(f"{option} must be a share such as 40% or 0.4, not {text!r}.")
    return value


_STUDIES = {"runs.txt", "study.json"}
"""Files that only a study's folder holds."""


def _write_page(run: robgib.Run, folder: Path) -> None:

    robgib.reporting.write_report([run], folder / "report.html")


def _write_study(runs: list[robgib.Run], folder: Path) -> None:

    (folder / "runs.txt").write_text("".join(f"{run.folder}\n" for run in runs))
    summary = robgib.results.csv_text(robgib.reporting.summary.summarise(runs))
    (folder / "summary.csv").write_text(summary, encoding="utf-8", newline="")
    robgib.reporting.write_report(runs, folder / "report.html")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out_file: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one page from run folders."""

    whole = [folder for folder in runs if not (_STUDIES & {p.name for p in folder.glob("*")})]  # runs/* takes them too
    if not whole:
        raise RobGIBError(f"{runs[0]} is the folder of a study, which has its page; give run folders.")
    for folder in runs:
        if folder not in whole:
            err.print(f"{escape(str(folder))}: a study's folder, left out.", highlight=False)
    check_file(out_file)
    written = robgib.reporting.write_report([robgib.results.load_run(folder) for folder in whole], out_file)
    out.print(f"Report: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)
