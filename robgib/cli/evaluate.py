"""``robgib evaluate`` and ``robgib report``: attack models, estimate the information in their layers, write pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape

import robgib
from robgib.cli.common import err, out
from robgib.cli.options import configuration_template, configuration_text, configured_models, names_of, with_options
from robgib.errors import RobGIBError
from robgib.files import atomic_directory, cache_folder, check_file, check_writable, digest, write_file
from robgib.options import (
    AttackOptions,
    Context,
    EngineOptions,
    InformationOptions,
    ModelOptions,
    ReportOptions,
    option,
)

CONFIGURATION = "run.yaml"
"""File of a run folder that repeats the run: ``robgib evaluate --config run.yaml``."""


@dataclass(frozen=True)
class BudgetOptions:
    """How much the attacks may cost; a configuration file names the attacks instead."""

    quick: bool = option(False, "FGSM and PGD: seconds, and the weakest claim.", from_file=False)
    standard: bool = option(
        False,
        "Auto-PGD, then a fast ensemble on the remaining samples: close to --full at a fraction of its cost.",
        from_file=False,
    )
    full: bool = option(False, "AutoAttack.", from_file=False)
    no_audit: bool = option(False, "Do not run AutoAttack on a sample of what remains.", from_file=False)


@with_options
def evaluate(
    models: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Zoo names, checkpoint files, torchvision:NAME, timm:NAME, hf:ORG/NAME or "
            "robustbench:DATASET/THREAT/NAME.",
            autocompletion=names_of("zoo"),
            show_default="those of --config",
        ),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Configuration file (YAML) with models and options; the command line overrides it."),
    ] = None,
    information: Annotated[bool, typer.Option(help="Estimate the information in the layers.")] = True,
    *,
    budget: BudgetOptions,
    model: ModelOptions,
    attack: AttackOptions,
    information_options: InformationOptions,
    report: ReportOptions,
    context: Context,
    engine: EngineOptions,
) -> None:
    """Attack models, estimate the information in their layers, and write run folders and a page."""
    has_attacks = attack.attacks != AttackOptions().attacks
    budgets = [name for name in ("quick", "standard", "full") if getattr(budget, name)]
    if len(budgets) + has_attacks > 1:
        raise RobGIBError("--quick, --standard, --full and --attack exclude each other; give one.")
    if budgets:
        attack = replace(attack, attacks=budgets[0])
    if budget.no_audit:
        if attack.audit:
            raise RobGIBError("--audit and --no-audit exclude each other; give one.")
        attack = replace(attack, audit=0)
    if not information:
        if information_options.estimators != InformationOptions().estimators:
            raise RobGIBError("--estimator and --no-information exclude each other; give one.")
        information_options = replace(information_options, estimators=())
    names = list(models or configured_models(config))
    work = _Evaluation(names, model, attack, information_options, report, context, engine)
    work.check()
    with robgib.runtime.progress_bars(not report.quiet, always=True) as progress:
        for name in names:
            work.evaluate(name, progress or False)
    work.write_study()
    work.show()


@dataclass
class _Evaluation:
    """The models that one command evaluates, and the results so far."""

    models: Sequence[str]
    model: ModelOptions
    attack: AttackOptions
    information: InformationOptions
    report: ReportOptions
    context: Context
    engine: EngineOptions
    runs: list[robgib.Run] = field(default_factory=list)
    new: list[robgib.Run] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    pages: list[Path] = field(default_factory=list)
    loaded: dict[str, robgib.Dataset] = field(default_factory=dict)

    def check(self) -> None:
        """Check everything that can be checked before any work."""
        extra = self.context.catalogue
        self._check_together()
        if not self.models:
            raise RobGIBError("name at least one model, such as digits-cnn; `robgib zoo list` lists the zoo.")
        robgib.engines.engine_of(self.engine.engine, self.engine.jobs, self.context.device, self.engine.address)
        normalization = robgib.zoo.preprocessing_of(self.model).normalization
        for name in self.models:
            if robgib.models.is_pretrained(name):
                continue
            robgib.zoo.check_named(name, self.model, normalization)
            if name.startswith(robgib.zoo.ROBUSTBENCH):
                continue
            if not robgib.zoo.is_file(name):
                robgib.zoo.find_recipe(name, extra, allow_code=self.model.allow_code)
            elif not Path(name).exists():
                raise RobGIBError(f"checkpoint {name!r} does not exist.")
        if self.model.data is not None:
            robgib.data.check_data(self.model.data, extra)
        if len(set(self.models)) < len(self.models):
            raise RobGIBError("a model is named twice; name each model once.")
        surrogate = self.attack.transfer_from
        if surrogate is not None and not isinstance(surrogate, str):
            raise RobGIBError(f"transfer_from must be the name or file of one model, not {surrogate!r}.")
        robgib.robustness.named_attacks(self.attack.attacks, None, extra, norm=self.attack.norm, eps=self.attack.eps)
        estimators = robgib.information.registry.build_estimators(self.information.estimators, extra)
        robgib.information.analysis.check_used(estimators, self.information)
        for tracker in self.report.log:
            robgib.reporting.check_tracker(tracker)
        check_writable(self.report.out)

    def _check_together(self) -> None:
        """Raise where options for checkpoint files meet models that are none."""
        files = [name for name in self.models if robgib.zoo.is_file(name)]
        others = [name for name in self.models if name not in files]
        if files and others and (self.model.arch or self.model.weights_key or self.model.normalize or self.model.mean):
            raise RobGIBError(
                f"options such as --arch apply to checkpoint files only; evaluate {', '.join(files)} and "
                f"{', '.join(others)} in two commands, and write one page with `robgib report RUN RUN`."
            )

    def evaluate(self, name: str, progress: Any) -> None:
        """Load and measure one model, or read its finished run."""
        where = robgib.runtime.resolve_device(robgib.runtime.first_device(self.context.device))
        own = replace(self.context, device=where)
        subject = robgib.zoo.load(name, self.model, context=own, loaded=self.loaded, progress=progress)
        fresh, folder = self.report.fresh, self.report.out
        attack = self.attack
        if attack.transfer_from is not None:
            surrogate = robgib.zoo.load(
                attack.transfer_from, replace(self.model, arch=None, weights_key=None), context=own,
                loaded=self.loaded, progress=progress,
            )  # fmt: skip
            attack = replace(attack, transfer_from=surrogate.model)
        run = robgib.evaluate(
            subject.model,
            subject.data,
            name=subject.name,
            attack=attack,
            information=self.information,
            context=self.context,
            **asdict(self.engine),
            source={**subject.source, **({"notes": list(subject.notes)} if subject.notes else {})},
            known=None if fresh else partial(robgib.results.find_run, folder),
            save=partial(self.save, name),
            unfinished=None if fresh else cache_folder() / "unfinished",
            planned=None if self.report.quiet else partial(_print_plan, subject.name),
            progress=progress,
        )
        if not any(run is one for one in self.new):  # tables are not compared
            self.known.append(run.name)
            if not (folder / run.folder / "report.html").is_file():
                self.save(name, run)
        self.runs.append(run)
        self.pages.append(folder / run.folder / "report.html")

    def save(self, name: str, run: robgib.Run) -> None:
        """Write a run folder with its page and the configuration that repeats the run."""
        text = configuration_text([name], self.model, self.attack, self.information, self.report, self.context)

        def also(folder: Path) -> None:
            robgib.reporting.write_report([run], folder / "report.html")
            (folder / CONFIGURATION).write_text(text)

        robgib.results.save_run(run, self.report.out, also=also)
        self.new.append(run)

    def write_study(self) -> None:
        """Write the page of several models, and send every run to the trackers of --log."""
        if len(self.runs) > 1:
            study = self.report.out / f"study-{digest([run.folder for run in self.runs])[:8]}"
            with atomic_directory(study) as folder:
                _write_study(self.runs, folder)
            self.pages.append(study / "report.html")
        for tracker in dict.fromkeys(self.report.log):
            for run in self.runs:
                sent = robgib.reporting.log_run(run, self.report.out / run.folder, tracker)
                err.print(f"{escape(run.name)}: {escape(sent)}", highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Print the results; exit with 1 if an attack failed or robust accuracy is below --fail-under."""
        report = self.report
        if report.as_json:
            folders = [str(report.out / run.folder) for run in self.runs]
            typer.echo(json.dumps(robgib.reporting.runs_json(self.runs, folders), indent=2))
        else:
            robgib.reporting.print_runs(self.runs, out, err, layers=report.verbose)
            if self.known:
                names = escape(", ".join(self.known))
                out.print(f"{names}: read from a finished run (--fresh measures again).", highlight=False)
            more = "" if report.verbose else " (--verbose also prints the bits of every layer)"
            out.print(f"Report: [bold]{escape(str(self.pages[-1]))}[/bold]{more}", soft_wrap=True, highlight=False)
        if any((run.robustness["status"] != "ok").any() for run in self.runs):
            raise typer.Exit(1)
        least = report.fail_under
        if least is not None:
            under = [run.name for run in self.runs if float(run.robustness["robust_accuracy"].min()) < least]
            if under:
                err.print(f"Below {least:.0%} robust accuracy: {escape(', '.join(under))}.", highlight=False)
                raise typer.Exit(1)


def _print_plan(name: str, parts: Sequence[Any]) -> None:
    """Print the parts of an evaluation (PlannedPart) on standard error: time at most, and what leaves it out."""
    if not parts:
        err.print(f"{escape(name)}: clean accuracy only", highlight=False)
        return
    total = sum(part.seconds for part in parts)
    err.print(f"{escape(name)}: about {_length(total)}", highlight=False)
    for part in parts:
        line = f"  {part.name:<26}{part.passes:>13,} passes  {_length(part.seconds):>7}  {part.switch}"
        err.print(line, highlight=False, soft_wrap=True)


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_STUDIES = {"runs.txt", "study.json"}
"""Files that exist in the folder of a study only."""


def _write_study(runs: list[robgib.Run], folder: Path) -> None:
    (folder / "runs.txt").write_text("".join(f"{run.folder}\n" for run in runs))
    summary = robgib.results.csv_text(robgib.reporting.summary.summarise(runs))
    (folder / "summary.csv").write_text(summary, encoding="utf-8", newline="")
    robgib.reporting.write_report(runs, folder / "report.html")


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path(CONFIGURATION),
) -> None:
    """Write a configuration file with every option and its meaning, to edit."""
    if file.exists():
        raise RobGIBError(f"{str(file)!r} exists; remove it or give another name.")
    kinds = (ModelOptions, AttackOptions, InformationOptions, ReportOptions, Context, EngineOptions)
    write_file(file, configuration_template(["digits-cnn"], kinds).encode())
    out.print(f"Configuration: [bold]{escape(str(file))}[/bold]", soft_wrap=True, highlight=False)
    out.print(f"[dim]robgib evaluate --config {escape(str(file))}", soft_wrap=True, highlight=False)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="The page to write.", show_default="report.html, unless it is of other runs"),
    ] = None,
) -> None:
    """Write one page from run folders."""
    whole = [folder for folder in runs if not (_STUDIES & {p.name for p in folder.glob("*")})]  # runs/* matches both
    if not whole:
        raise RobGIBError(f"{runs[0]} is the folder of a study and has a page of its own; give run folders.")
    for folder in runs:
        if folder not in whole:
            err.print(f"{escape(str(folder))}: skipped, since it is the folder of a study.", highlight=False)
    target = Path("report.html") if out_file is None else out_file
    check_file(target)
    loaded = [robgib.results.load_run(folder) for folder in whole]
    if out_file is None and target.exists() and not robgib.reporting.page.is_page_of(target, loaded):
        raise RobGIBError(f"{str(target)!r} exists and is not the page of these runs; name another file with --out.")
    written = robgib.reporting.write_report(loaded, target)
    out.print(f"Report: [bold]{escape(str(written))}[/bold]", soft_wrap=True, highlight=False)
