"""Pictures in folders named for their classes, read at once where they are few, else when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robgib._torchvision import load_torchvision
from robgib.data.dataset import COLOUR_EPS, Dataset, Split, stratified
from robgib.data.lazy import LazyImages
from robgib.data.sizing import Sizing
from robgib.errors import RobGIBError, first_line

__all__ = ["read_folder"]

_EAGER = 2**28  # bytes of float32 up to which pictures are read at once
_THREADS = 4
_TESTS = ("test", "val", "validation", "valid")


def read_folder(path: Path, seed: int, sizing: Sizing | None = None) -> Dataset:
    """Read pictures in folders named for their classes: below ``train`` and ``test`` (or ``val``), or all for testing.

    8-bit pictures, 1-bit ones and those with a palette, 16-bit greys (of which 65535 is 1) and floats in [0, 1] are
    taken for what they are; what has no one meaning, such as transparency, is refused. Grey pictures among coloured
    ones get three equal channels. The test pictures are in an order of which every beginning holds the classes by their
    shares.

    Args:
        path: the folder.
        seed: of the order, and of the split for validation.
        sizing: how pictures are resized and cropped; needed where they differ in size.

    Raises:
        RobGIBError: no pictures, or such as cannot be read, or of several sizes.
    """
    try:
        inside = {p.name for p in path.iterdir() if p.is_dir()}
    except OSError as error:
        raise RobGIBError(f"{path} cannot be read: {error.strerror or error}.") from error
    parts_of = inside <= {"train", *_TESTS}
    tests = [name for name in _TESTS if name in inside and parts_of]
    if parts_of and "train" in inside and not tests:
        raise RobGIBError(f"{path} holds train/ and no test/ or val/; name the folder of the pictures to test on.")
    unseen = _Pictures(path / tests[0] if tests else path, sizing)
    learnt = _Pictures(path / "train", sizing) if tests and "train" in inside else None
    if learnt is not None and learnt.classes != unseen.classes:
        raise RobGIBError(f"{path / 'train'} and {path / tests[0]} do not hold the same classes.")
    if learnt is not None and learnt.shape != unseen.shape:
        raise RobGIBError(
            f"the pictures of {path / 'train'} are {learnt.shape} and those of {path / tests[0]} {unseen.shape}; "
            "bring all to one size (--input-size) and mode."
        )
    none = Split(torch.zeros((0, *unseen.shape)), torch.zeros(0, dtype=torch.int64))
    train, val = none, none
    if learnt is not None:
        parts = stratified(learnt.labels, (11 / 12, 1 / 12), seed)
        train, val = (learnt.split(part) for part in parts)
    test = unseen.split(_interleaved(unseen.labels, seed))
    return Dataset(f"folder:{path.name}", train, val, test, unseen.classes, COLOUR_EPS, by_name=True)


def _interleaved(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of the samples by which every beginning holds the classes by their shares."""
    rng = np.random.default_rng(seed)
    place = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(place, kind="stable")


class _Pictures:
    """The pictures of one folder: a source of images."""

    def __init__(self, folder: Path, sizing: Sizing | None) -> None:
        torchvision = load_torchvision()
        try:
            listed = torchvision.datasets.ImageFolder(str(folder))
        except (FileNotFoundError, OSError) as error:
            raise RobGIBError(f"{folder} holds no folders of pictures named for their classes.") from error
        self._files = [name for name, _ in listed.samples]
        self._sizing = sizing or Sizing()
        self.labels = np.array(listed.targets)
        self.classes = tuple(listed.classes)
        with ThreadPoolExecutor(_THREADS) as pool:
            looks = list(pool.map(_look, self._files))
        sizes = {(height, width) for height, width, _ in looks}
        out = sorted(
            {self._size(name, height, width) for name, (height, width, _) in zip(self._files, looks, strict=True)}
        )
        if len(out) > 1:
            first = next(n for n, look in zip(self._files, looks, strict=True) if look[:2] != looks[0][:2])
            raise RobGIBError(
                f"{first} is {'x'.join(map(str, looks[self._files.index(first)][:2]))} and {self._files[0]} is "
                f"{'x'.join(map(str, looks[0][:2]))} ({len(sizes)} sizes in all); bring them to one, with --input-size "
                "or --resize and --crop."
            )
        self._colours = 3 if any(coloured for _, _, coloured in looks) else 1
        self.shape: tuple[int, ...] = (self._colours, *out[0])

    def _size(self, name: str, height: int, width: int) -> tuple[int, int]:
        try:
            return self._sizing.size(height, width)
        except RobGIBError as error:
            raise RobGIBError(f"{name}: {error}") from error

    def split(self, rows: np.ndarray) -> Split:
        """Some of them with their labels; unread where all are too many to hold."""
        lazy = LazyImages(self, rows)
        few = 4 * len(self._files) * int(np.prod(self.shape)) <= _EAGER
        images: Any = lazy.read() if few else lazy
        held: Tensor = images
        return Split(held, torch.from_numpy(self.labels[rows]))

    def content(self, row: int) -> bytes:
        """The file, and how it is resized."""
        return Path(self._files[row]).read_bytes() + str(self._sizing).encode()

    def read(self, row: int) -> np.ndarray:
        """Pixels (C, H, W) of one picture."""
        name = self._files[row]
        with _opened(name) as picture:
            pixels = _pixels(picture, name)
        if self._sizing.changes:
            if pixels.dtype == np.uint8:
                pixels = np.asarray(self._sizing.picture(Image.fromarray(pixels)))
            else:
                pixels = self._sizing.images(torch.from_numpy(np.array(pixels))[None, None])[0, 0].numpy()
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return np.array(np.broadcast_to(planes, (self._colours, *planes.shape[1:])))


@contextmanager
def _opened(name: str) -> Any:
    try:
        with Image.open(name, formats=_FORMATS) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise RobGIBError(f"{name} is not a readable picture: {first_line(error)}.") from error


def _look(name: str) -> tuple[int, int, bool]:
    """Height, width and whether a picture is coloured, by its file's head."""
    if not Path(name).is_file():  # a pipe, which would be waited for
        raise RobGIBError(f"picture {name} is no regular file; remove it.")
    with _opened(name) as picture:
        grey = picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith(("I", "F"))
        return picture.height, picture.width, not grey


_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Kinds of pictures that are read: Pillow goes by content, and knows some that run a program of their own."""


def _pixels(picture: Image.Image, name: str) -> np.ndarray:
    """Pixels (H, W) of a grey picture or (H, W, 3) of a coloured one: bytes, or float32 in [0, 1].

    Raises:
        RobGIBError: what the picture's numbers mean as brightness cannot be told.
    """
    mode, kind = picture.mode, picture.format
    tags = getattr(picture, "tag_v2", {})
    if 2 in np.atleast_1d(tags.get(339, (1,))):
        raise RobGIBError(f"{name} holds signed numbers, of which it is not told which is white; save it unsigned.")
    if mode.startswith(("I", "F")):
        # Pillow gives a TIFF's numbers as they lie, whatever their depth and whether 0 is black.
        depth = tags.get(258, (16,)) if mode.startswith("I") else (32,)
        told = tags.get(262, 1) == 1 and "transparency" not in picture.info
        plain = told and tuple(np.atleast_1d(depth)) in ((16,), (32,))
        numbers = np.asarray(picture)
        sixteen = mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))
        if plain and sixteen and numbers.min() >= 0 and numbers.max() <= 65535:
            return (numbers / np.float32(65535)).astype(np.float32)
        if plain and mode == "F" and numbers.min() >= 0 and numbers.max() <= 1:
            return numbers.astype(np.float32)
        raise RobGIBError(
            f"{name} holds numbers from {numbers.min():g} to {numbers.max():g} (mode {mode}), of which it is not told "
            "which is white; save it with 8 or 16 bits, or as floats in [0, 1]."
        )
    if _depth(name, kind, tags) > 8:
        raise RobGIBError(f"{name} has more than 8 bits a colour, of which 8 would be read; save it with 8, or grey.")
    if mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise RobGIBError(
                f"{name} has transparent pixels, whose colour depends on what lies behind; lay it on a background."
            )
    if mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))
    if mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        return np.asarray(picture.convert("RGB"))
    raise RobGIBError(f"{name} is of mode {mode}, whose colours cannot be told; save it as RGB or grey.")


def _depth(name: str, kind: str | None, tags: Mapping[int, Any]) -> int:
    """Bits of a number in a picture's file."""
    with open(name, "rb") as file:
        head = file.read(200)
    if kind == "PNG":
        return head[24]
    if kind == "PPM" and head[:2] in (b"P3", b"P6"):
        words = re.sub(rb"#[^\n]*\n", b" ", head).split()
        return int(words[3]).bit_length()
    return int(np.max(tags.get(258, (8,))))
