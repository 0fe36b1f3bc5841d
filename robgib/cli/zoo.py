"""``robgib zoo``: the model zoo."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import AllowCode, Catalogue, DataRoot, Device, Group, Names, Quiet, help_when_alone, out
from robgib.cli.options import with_options
from robgib.errors import RobGIBError, first_line
from robgib.files import cache_folder, check_file, write_file
from robgib.options import Count, check, option

app = typer.Typer(help="The model zoo.")
app.callback(invoke_without_command=True)(help_when_alone)


@app.command("list")
def zoo_list(
    group: Annotated[Optional[str], typer.Option(help="List one group only.")] = None,  # noqa: UP045
    catalogue: Catalogue = None,
) -> None:
    """List the zoo's models."""
    table = Table()
    for column in ("model", "data", "architecture", "description"):
        table.add_column(column, no_wrap=column == "model")
    for recipe in robgib.zoo.chosen((), group, list(catalogue or [])):
        cells = (recipe.name, recipe.data, _architecture(recipe), recipe.description)
        table.add_row(*map(escape, cells))
    out.print(table)


def _architecture(recipe: robgib.zoo.Recipe) -> str:
    if recipe.architecture is None:
        return "in the checkpoint"
    options = ", ".join(f"{k} {v}" for k, v in recipe.architecture.options.items())
    return f"{recipe.architecture.name}: {options}" if options else recipe.architecture.name


@app.command("train")
def zoo_train(
    names: Names = None,
    group: Group = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
) -> None:
    """Train models that are not in the cache yet. Interrupted trainings resume."""
    where = robgib.runtime.resolve_device(device)
    recipes = robgib.zoo.chosen(names or (), group, list(catalogue or []), some=True, allow_code=allow_code)
    table = Table(title=f"Trained: {len(recipes)}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("epochs", "time", "training", "test"):
        table.add_column(column, justify="right")
    loaded: dict[str, robgib.Dataset] = {}
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        for i, recipe in enumerate(recipes):
            data = robgib.zoo.data_of(recipe, data_root, loaded)
            _, record = robgib.zoo.load_recipe(recipe, data, device=where, progress=progress)
            if progress:
                progress("models", i + 1, len(recipes), recipe.name)
            shares = [f"{100 * record[key]:.1f}%" if key in record else "" for key in _SHARES]
            epochs, seconds = str(record.get("epochs", "")), f"{record.get('seconds', 0):.0f} s"
            table.add_row(escape(recipe.name), escape(epochs), seconds, *shares)
    out.print(table)


_SHARES = ("train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class TableOptions:
    """What the table of the zoo measures."""

    attack: str = option("pgd-linf:steps=20", "Attack of the table.")
    samples: Count = option(2000, "Test images to attack.")

    def __post_init__(self) -> None:
        check(self, "the table")


@app.command("table")
@with_options
def zoo_table(
    names: Names = None,
    group: Group = None,
    out_file: Annotated[
        Optional[Path], typer.Option("--out", help="Markdown file to write, such as zoo/README.md.")  # noqa: UP045
    ] = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
    quiet: Quiet = False,
    *,
    options: TableOptions,
) -> None:
    """Measure the clean and robust accuracy of models, and write a table; train missing models first."""
    where = robgib.runtime.resolve_device(device)
    extra = list(catalogue or [])
    recipes = robgib.zoo.chosen(names or (), group, extra, some=True, allow_code=allow_code)
    attack, samples = options.attack, options.samples
    robgib.attacks.make_attack(attack, extra=extra)
    if out_file:
        check_file(out_file)
    with robgib.runtime.progress_bars(not quiet, always=True) as progress:
        rows = robgib.zoo.measure(
            recipes, attack, samples, root=data_root, device=where, catalogue=extra, progress=progress
        )
    shown = Table(title=escape(f"Clean accuracy, and accuracy under {attack}"), title_justify="left")
    columns = ["model", "MB", "clean", "robust", "95% interval", "trained in"]
    for column in columns:
        shown.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows[columns].itertuples(index=False):
        shown.add_row(*(escape(str(cell)) for cell in row))
    out.print(shown)
    if out_file:
        command = " ".join(["robgib zoo table", *(names or ()), *([f"--group {group}"] if group else [])])
        write_file(out_file, robgib.zoo.table_markdown(rows, attack, samples, command).encode())
        out.print(f"Table: [bold]{escape(str(out_file))}[/bold]", soft_wrap=True, highlight=False)


@app.command("add")
def zoo_add(
    file: Annotated[Path, typer.Argument(help="Checkpoint file.")],
    name: Annotated[str, typer.Option(help="Name of the model, in lower case with hyphens.")],
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Architecture of a state dict: a name, or package.module:factory."),
    ] = None,
    weights_key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which of several networks in the file, by key or prefix, such as state_dict_ema."),
    ] = None,
    data: Annotated[Optional[str], typer.Option(help="Its data set.", show_default="from its record")] = None,  # noqa: UP045
    description: Annotated[str, typer.Option(help="One line for the list of models.")] = "",
    folder: Annotated[Path, typer.Option("--into", help="Folder of the recipe.")] = Path("zoo"),
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
) -> None:
    """Give a checkpoint a name: write a recipe with its SHA-256 digest."""
    recipe, accuracy = robgib.zoo.add_recipe(
        file,
        name,
        folder,
        arch=arch,
        weights_key=weights_key,
        data_name=data,
        root=data_root,
        description=description,
        allow_code=allow_code,
    )
    place = escape(str(recipe))
    out.print(f"{name}: {100 * accuracy:.1f}% test accuracy\nRecipe: [bold]{place}[/bold]", highlight=False)
    named = (robgib.registry.read_yaml(recipe).get("architecture") or {}).get("name", "")
    code = " --allow-code" if robgib.models.runs_code(named) else ""
    if code:
        out.print(
            f"The recipe names {escape(named)}. Loading it runs its code and needs --allow-code.",
            highlight=False,
        )
    out.print(f"[dim]robgib evaluate {name} --catalogue {escape(str(folder))}{code}", highlight=False, soft_wrap=True)


@app.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="Zoo name.")], catalogue: Catalogue = None) -> None:
    """Show a recipe, its digest and its checkpoints in the cache."""
    import yaml

    recipe = robgib.zoo.read_recipe(name, list(catalogue or []))
    out.print(
        escape(yaml.safe_dump(recipe.model_dump(), sort_keys=False, default_flow_style=None).rstrip()),
        highlight=False,
    )
    out.print(f"digest: {recipe.digest}", highlight=False, soft_wrap=True)
    if recipe.checkpoint:
        out.print(f"checkpoint: {escape(str(robgib.zoo.stored_checkpoint(recipe)))}", highlight=False, soft_wrap=True)
        return
    cached = sorted((cache_folder() / "zoo").glob(f"{name}-{recipe.digest[:8]}-*.safetensors"))
    for path in cached:
        out.print(f"checkpoint: {escape(str(path))}", highlight=False, soft_wrap=True)
    if not cached:
        out.print("checkpoint: none in the cache; the first use trains the model", highlight=False)


@app.command("layers")
def zoo_layers(
    name: Annotated[str, typer.Argument(help="Zoo name, or an architecture such as resnet or torchvision:resnet18.")],
    shape: Annotated[str, typer.Option(help="Image shape for an architecture, as C,H,W.")] = "3,32,32",
    allow_code: AllowCode = False,
    data_root: DataRoot = None,
    catalogue: Catalogue = None,
) -> None:
    """List a model's layers with their shapes for one image; the default layers of an evaluation are marked."""
    import torch

    if name in robgib.models.ARCHITECTURES or ":" in name:
        try:
            size = tuple(int(part) for part in shape.split(","))
        except ValueError:
            size = ()
        if len(size) != 3 or min(size) < 1:
            raise RobGIBError(f"--shape must be three numbers such as 3,32,32, not {shape!r}.")
        model = robgib.models.build(name, size, 10, allow_code=True)  # the user names it, as with --arch
    else:
        recipe = robgib.zoo.find_recipe(name, list(catalogue or []), allow_code=allow_code)
        data = robgib.data.load_data(recipe.data, data_root)
        size = data.shape
        model = robgib.zoo.load_recipe(recipe, data)[0] if recipe.checkpoint else recipe.untrained(data)
    example = torch.rand(2, *size)
    try:
        chosen, shapes = (
            robgib.information.default_layers(model.eval(), example),
            robgib.information.layer_shapes(model, example),
        )
    except RuntimeError as error:
        raise RobGIBError(f"{name} does not take images of shape {shape}: {first_line(error)}.") from error
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    table = Table(caption="* used by default (without --layer)", caption_justify="left")
    for column in ("layer", "kind", "shape", ""):
        table.add_column(column)
    for layer, size_of in shapes.items():
        marked = "*" if layer in chosen else ""
        module = re.split(r"[\[(]", layer)[0]  # without the number of the call and of the output
        kind = "" if layer == robgib.information.LOGITS else kinds[module]
        table.add_row(escape(layer), escape(kind), " × ".join(map(str, size_of)), marked)
    out.print(table)
