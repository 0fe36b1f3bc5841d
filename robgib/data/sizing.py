"""Resize and centre-crop pictures to one size before a model sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from robgib.data.dataset import Dataset, Split
from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError

__all__ = [
    "INTERPOLATIONS",
    "Sizing",
    "resized",
]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_MOST = 4096  # pixels a side


@dataclass(frozen=True)
class Sizing:
    """Resize the shorter side (or both) of pictures to ``resize``, then cut ``crop`` from the middle.

    Attributes:
        resize: the shorter side's new length, the longer one's in proportion; or (height, width), whatever the shape.
        crop: height and width of the middle that is kept; None keeps all.
        interpolation: how pixels are found in between.

    >>> Sizing(256, (224, 224)).size(480, 640)
    (224, 224)
    >>> Sizing(32).size(64, 96)
    (32, 48)
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __post_init__(self) -> None:
        sides = [s for part in (self.resize, self.crop) for s in (part if isinstance(part, tuple) else (part,))]
        for side in sides:
            if side is not None and not 1 <= side <= _MOST:
                raise RobGIBError(f"pictures are resized and cropped to sides of 1 to {_MOST:,} pixels, not {side}.")
        if self.interpolation not in INTERPOLATIONS:
            raise RobGIBError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}.")
        if isinstance(self.resize, int) and self.crop and max(self.crop) > self.resize:
            raise RobGIBError(f"a crop of {self.crop[0]}x{self.crop[1]} does not fit a shorter side of {self.resize}.")

    @property
    def changes(self) -> bool:
        """Whether it changes pictures."""
        return self.resize is not None or self.crop is not None

    @property
    def fixes(self) -> bool:
        """Whether pictures of all sizes get one size."""
        return self.crop is not None or isinstance(self.resize, tuple)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before the crop."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        other = max(1, int(self.resize * long / short))  # as torchvision has it
        return (self.resize, other) if height <= width else (other, self.resize)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture once it is resized and cut.

        Raises:
            RobGIBError: it is smaller than the crop.
        """
        h, w = self.scaled(height, width)
        if self.crop is None:
            return h, w
        if self.crop[0] > h or self.crop[1] > w:
            raise RobGIBError(
                f"a picture of {h}x{w} is smaller than the crop of {self.crop[0]}x{self.crop[1]}; give --resize too."
            )
        return self.crop

    def _corner(self, height: int, width: int) -> tuple[int, int, int, int]:
        h, w = self.crop or (height, width)
        return round((height - h) / 2), round((width - w) / 2), h, w

    def picture(self, picture: Image.Image) -> Image.Image:
        """Return a Pillow picture of 8 bits, resized and cropped."""
        self.size(picture.height, picture.width)
        height, width = self.scaled(picture.height, picture.width)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        top, left, h, w = self._corner(height, width)
        return picture.crop((left, top, left + w, top + h)) if (h, w) != (height, width) else picture

    def images(self, x: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [0, 1], resized and cropped."""
        self.size(int(x.shape[2]), int(x.shape[3]))
        height, width = self.scaled(int(x.shape[2]), int(x.shape[3]))
        if (height, width) != tuple(x.shape[2:]):
            mode = "bicubic" if self.interpolation == "lanczos" else self.interpolation
            smooth = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
            x = F.interpolate(x, (height, width), mode=mode, **smooth).clamp(0, 1)
        top, left, h, w = self._corner(height, width)
        return x[:, :, top : top + h, left : left + w]

    def __str__(self) -> str:
        parts = []
        if self.resize is not None:
            to = (
                "x".join(map(str, self.resize))
                if isinstance(self.resize, tuple)
                else f"a shorter side of {self.resize}"
            )
            parts.append(f"resized to {to} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"the middle {self.crop[0]}x{self.crop[1]} of each")
        return ", ".join(parts)


class _Resized:
    """Images of a data set, resized on demand."""

    def __init__(self, x: Tensor, sizing: Sizing) -> None:
        self._x, self._sizing = x, sizing
        self.shape: tuple[int, ...] = (int(x.shape[1]), *sizing.size(int(x.shape[2]), int(x.shape[3])))

    def read(self, row: int) -> np.ndarray:
        """One image."""
        return np.ascontiguousarray(self._sizing.images(self._x[[row]].to(torch.float32))[0].numpy())

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Return digests of the pixels and of how they are resized."""
        how = repr(self._sizing).encode()
        return [hashlib.sha256(self._x[[r]].to(torch.float32).numpy().tobytes() + how).digest() for r in rows]


def resized(data: Dataset, sizing: Sizing | None) -> Dataset:
    """Return the data with images that are resized and cropped on demand.

    Raises:
        RobGIBError: they are no images, or smaller than the crop.
    """
    if sizing is None or not sizing.changes or sizing.size(*_sides(data)) == _sides(data):
        return data

    def part(split: Split) -> Split:
        rows: Sequence[int] = range(len(split))
        if not len(split):
            return _none(split, sizing)
        return replace(split, x=LazyImages(_Resized(split.x, sizing), rows))  # type: ignore[arg-type]

    return replace(data, train=part(data.train), val=part(data.val), test=part(data.test))


def _none(split: Split, sizing: Sizing) -> Split:
    shape = (int(split.x.shape[1]), *sizing.size(int(split.x.shape[2]), int(split.x.shape[3])))
    return Split(torch.zeros((0, *shape)), split.y)


def _sides(data: Dataset) -> tuple[int, int]:
    if len(data.shape) != 3:
        raise RobGIBError(f"{data.name} holds no pictures; only pictures can be resized or cropped.")
    return data.shape[1], data.shape[2]
