"""Options and consoles that the subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich import console
from rich.text import Text

import robgib
from robgib.errors import RobGIBError, unknown_name, visible

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
Arch = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Architecture of checkpoint files: package.module:factory, or a name."),
]
Classes = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The model's classes in its order, where folders number theirs otherwise: imagenet, or a file."),
]
ClassSubset = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--class-subset/--no-class-subset",
        help="Let the model choose among the classes of the data alone.",
        show_default="where --classes names more than the data have",
    ),
]
DataBounds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--data-bounds",
        help="What the numbers of npz: and folder: data mean by black and white, as 0,16.",
        show_default="0,255 for 8 bits, else 0,1",
    ),
]
WeightsKey = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Which of several networks in a checkpoint file, by key or prefix, such as state_dict_ema or teacher."
    ),
]
Normalize = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="What a checkpoint file's network was trained with: imagenet, cifar10, half, … or none.",
        show_default="what its architecture does",
    ),
]
Mean = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The same by numbers: mean by channel, as 0.5,0.5,0.5."),
]
Std = Annotated[Optional[str], typer.Option(help="Standard deviation by channel.")]  # noqa: UP045
Bounds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="What the network takes black and white for, as -1,1 or 0,255.", show_default="0,1"),
]
InputSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Shorter side to this, then the middle square: --resize and --crop in one."),
]
Resize = Annotated[Optional[int], typer.Option(min=1, help="Images' shorter side.")]  # noqa: UP045
Crop = Annotated[Optional[int], typer.Option(min=1, help="Side of the middle square that is kept.")]  # noqa: UP045
Interpolation = Annotated[str, typer.Option(help="nearest, bilinear, bicubic or lanczos.")]
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


def normalization_of(
    name: str | None, mean: str | None, std: str | None, bounds: str | None
) -> robgib.models.Normalization | None:
    """What the options say of normalisation, or None where they say nothing."""
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


def sizing_of(
    input_size: int | None, resize: int | None, crop: int | None, interpolation: str
) -> robgib.data.Sizing | None:
    """What the options say of the images' size, or None where they say nothing."""
    if input_size is not None and (resize or crop):
        raise RobGIBError("--input-size is --resize and --crop in one; give it or them.")
    if interpolation not in robgib.data.INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, robgib.data.INTERPOLATIONS)
    side = crop or input_size
    if resize is None and side is None:
        return None
    return robgib.data.Sizing(resize or input_size, (side, side) if side else None, interpolation)  # type: ignore[arg-type]


def help_when_alone(context: typer.Context) -> None:
    """Print the help where no subcommand is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
