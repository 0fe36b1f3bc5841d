"""The preprocessing of images that the options describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robgib.data.dataset import Bounds
from robgib.data.sizing import INTERPOLATIONS, Sizing
from robgib.errors import RobGIBError, unknown_name
from robgib.models.normalization import Normalization, normalization
from robgib.options import ModelOptions

__all__ = [
    "Preprocessing",
    "preprocessing_of",
]


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images before the network.

    Attributes:
        normalization: of images in [0, 1]; None follows the checkpoint file, or the architecture.
        sizing: how images are resized and cropped; None follows a library's trained network, or leaves them as they
            are.
        data_bounds: the values of black and white in the data files; None follows their type.
    """

    normalization: Normalization | None = None
    sizing: Sizing | None = None
    data_bounds: Bounds | None = None


def preprocessing_of(options: ModelOptions) -> Preprocessing:
    """Return the preprocessing that the options describe.

    Raises:
        RobGIBError: options that contradict each other or cannot be read as numbers.

    >>> preprocessing_of(ModelOptions(input_size=32, data_bounds="0,16")).data_bounds
    (0.0, 16.0)
    """
    bounds = None if options.data_bounds is None else _pair("--data-bounds", options.data_bounds)
    return Preprocessing(_normalization_of(options), _sizing_of(options), bounds)


def _normalization_of(options: ModelOptions) -> Normalization | None:
    name, mean, std, bounds = options.normalize, options.mean, options.std, options.bounds
    if name is not None and (mean or std):
        raise RobGIBError("--normalize and --mean/--std exclude each other; give one.")
    if (mean is None) != (std is None):
        raise RobGIBError("--mean and --std belong together; give both.")
    if name is None and mean is None and bounds is None:
        return None
    made = normalization(name or "none")
    if mean is not None and std is not None:
        made = Normalization(_numbers("--mean", mean), _numbers("--std", std))
    if bounds is None:
        return made
    return Normalization(made.mean, made.std, _pair("--bounds", bounds))


def _sizing_of(options: ModelOptions) -> Sizing | None:
    if options.input_size is not None and (options.resize or options.crop):
        raise RobGIBError("--input-size sets both --resize and --crop; give --input-size or the other two.")
    if options.interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", options.interpolation, INTERPOLATIONS)
    side = options.crop or options.input_size
    if options.resize is None and side is None:
        return None
    interpolation: Any = options.interpolation
    return Sizing(options.resize or options.input_size, (side, side) if side else None, interpolation)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RobGIBError(f"{option} must be numbers such as 0.5,0.5,0.5, not {text!r}.") from error


def _pair(option: str, text: str) -> tuple[float, float]:
    low, *high = _numbers(option, text)
    if len(high) != 1:
        raise RobGIBError(f"{option} must be two numbers such as -1,1, not {text!r}.")
    return low, high[0]
