"""Options and consoles that the subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich import console
from rich.text import Text

import robgib
from robgib.errors import RobGIBError, unknown_name, visible
from robgib.options import ModelOptions

_NARROWEST, _USUAL = 40, 80  # columns


class Console(console.Console):
    """A console that writes control characters out, whatever names hold them: in cells and titles of tables too."""

    @property
    def size(self) -> console.ConsoleDimensions:
        """See rich; wide enough for something to be seen, whatever the terminal says of itself."""
        width, height = super().size
        return console.ConsoleDimensions(width if width >= _NARROWEST else _USUAL, height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    @property
    def width(self) -> int:
        """See rich."""
        return self.size.width

    @width.setter
    def width(self, width: int) -> None:
        self._width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich."""
        return super().render_str(visible(text), **options)


out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
DataRoot = Annotated[
    Optional[Path], typer.Option("--data-root", help="Folder with the data files (default: the cache).")  # noqa: UP045
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Catalogue = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--catalogue", help="Further folder of attacks, recipes and plug-ins; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
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
        help="Take package.module:factory from recipes, records and studies; read TorchScript and .pt2 whatever they "
        "call. [red]It runs code that a file brings.",
    ),
]
Names = Annotated[Optional[list[str]], typer.Argument(help="Zoo names.", show_default="those of --group")]  # noqa: UP045
Group = Annotated[Optional[str], typer.Option(help="All models of a group, such as fashion-24.")]  # noqa: UP045
TraceEstimators = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="Estimator of the trace; repeatable.", show_default="imputation; exact where all inputs are listed"
    ),
]


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RobGIBError(f"{option} must be numbers such as 0.5,0.5,0.5, not {text!r}.") from error


def normalization_of(options: ModelOptions) -> robgib.models.Normalization | None:
    """Return the normalisation that the options name, or None where they name none."""
    name, mean, std, bounds = options.normalize, options.mean, options.std, options.bounds
    if name is not None and (mean or std):
        raise RobGIBError("--normalize names a mean and std; give it or the numbers, not both.")
    if (mean is None) != (std is None):
        raise RobGIBError("--mean and --std belong together; give both.")
    if name is None and mean is None and bounds is None:
        return None
    made = robgib.models.normalization(name or "none")
    if mean is not None and std is not None:
        made = robgib.models.Normalization(_numbers("--mean", mean), _numbers("--std", std))
    if bounds is None:
        return made
    return robgib.models.Normalization(made.mean, made.std, _pair("--bounds", bounds))


def _pair(option: str, text: str) -> tuple[float, float]:
    low, *high = _numbers(option, text)
    if len(high) != 1:
        raise RobGIBError(f"{option} must be two numbers such as -1,1, not {text!r}.")
    return low, high[0]


def data_bounds_of(text: str | None) -> tuple[float, float] | None:
    """What --data-bounds says, or None where it says nothing."""
    return None if text is None else _pair("--data-bounds", text)


def sizing_of(options: ModelOptions) -> robgib.data.Sizing | None:
    """Return the images' size that the options give, or None where they give none."""
    if options.input_size is not None and (options.resize or options.crop):
        raise RobGIBError("--input-size is --resize and --crop in one; give it or them.")
    if options.interpolation not in robgib.data.INTERPOLATIONS:
        raise unknown_name("interpolation", options.interpolation, robgib.data.INTERPOLATIONS)
    side = options.crop or options.input_size
    if options.resize is None and side is None:
        return None
    crop = (side, side) if side else None
    return robgib.data.Sizing(options.resize or options.input_size, crop, options.interpolation)  # type: ignore[arg-type]


def help_when_alone(context: typer.Context) -> None:
    """Print the help where no subcommand is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
