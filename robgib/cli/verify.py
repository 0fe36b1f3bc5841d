"""``robgib verify``: recompute the claims of a run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

import robgib
from robgib.cli.common import err, out
from robgib.cli.options import with_options
from robgib.errors import RobGIBError
from robgib.options import Context, ModelOptions


@with_options
def verify(
    run: Annotated[Path, typer.Argument(help="Run folder of an evaluation with --save-adversarial.")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The model, as for evaluate.", show_default="the zoo or library model that the run names"),
    ] = None,
    *,
    options: ModelOptions,
    context: Context,
) -> None:
    """Recompute a run's claims from its images: outcomes, accuracies, intervals, distances, curves.

    Exits with 1 at the first claim that does not hold. Runs of stochastic models cannot be verified.

    Give the same options for reading the model and its pictures as for the evaluation.

    A stored image proves that a sample was fooled. No file proves that a sample is robust: another attack may fool it.
    """
    record = robgib.results.load_run(run)
    saved = robgib.results.load_adversarial(run)
    where = robgib.runtime.resolve_device(context.device)
    source = record.config.get("source", {})
    name = model or source.get("recipe") or source.get("name")
    if not name:
        raise RobGIBError(
            f"{str(run)!r} evaluates {source.get('file') or 'a model from Python'}; give it with --model."
        )
    arch = source.get("arch")
    if options.arch is None and arch is not None:
        where_named = f"the configuration of the run {str(run)!r}"
        robgib.models.check_file_architecture(arch, {}, where_named, options.allow_code)
    own_data = None if source.get("kind") == "zoo" else str(record.config["data"]["name"])
    options = replace(options, arch=options.arch or arch, data=options.data or own_data)
    subject = robgib.zoo.load(name, options, context=replace(context, device=where, seed=0), progress=False)
    count = len(saved["clean"])
    test = subject.data.test
    known = (test.x, test.y) if tuple(subject.data.shape) == saved["clean"].shape[1:] else None
    checked = 0
    for claim in robgib.robustness.verify(record, saved, subject.model, known, device=where):
        if not claim.holds:
            err.print(f"[bold red]does not hold[/]  {escape(claim.what)}: {escape(claim.detail)}.", highlight=False)
            raise typer.Exit(1)
        checked += 1
        out.print(f"[green]holds[/]  {escape(claim.what)}", highlight=False)
    images = sum(len(v) for n, v in saved.items() if n.endswith("/rows"))
    out.print(f"\nAll {checked} claims hold for {count} samples and {images} adversarial images.", highlight=False)
    out.print(robgib.robustness.UNCHECKED, highlight=False)
