"""Masks of the pixels that may change, and target classes, of each sample: from arrays and files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robgib.errors import RobGIBError, first_line
from robgib.files import read_array

__all__ = ["read_masks", "read_targets"]

_ENDINGS = (".png", ".npy", ".bmp", ".gif", ".jpg", ".jpeg", ".tif", ".tiff")
_MIDDLE = 0.5  # of the brightest value of a picture, above which a pixel may change


def read_masks(
    value: Any, shape: Sequence[int], total: int, rows: np.ndarray, names: Sequence[str] | None = None
) -> Tensor:
    """Return masks of the pixels that may change, as booleans (n, …) of the samples ``rows`` of a data set.

    Args:
        value: an array, or a ``.npy`` file of one, of shape (H, W) or that of a sample for all samples, or with one
            mask for each of the ``total`` samples; or a folder of masks (pictures, brighter than half, or ``.npy``, not
            0) that are named as the pictures are.
        shape: shape of a sample.
        total: number of samples of the data set.
        rows: the samples (n,).
        names: paths of their pictures, if the samples are pictures.

    Raises:
        RobGIBError: the file cannot be read, its shape does not fit, a mask is missing, or a mask allows no pixel.

    >>> read_masks(np.eye(2), (3, 2, 2), 10, np.arange(4)).shape
    torch.Size([4, 3, 2, 2])
    """
    if isinstance(value, str | Path) and Path(value).is_dir():
        masks = _by_name(Path(value), names, shape)
    else:
        array = _array(value, "masks")
        whole = (array != 0) if array.dtype != bool else array
        masks = _fitted(whole, tuple(shape), total, rows, value)
    empty = np.flatnonzero(~masks.reshape(len(masks), -1).any(1))
    if len(empty):
        raise RobGIBError(f"the mask of sample {int(rows[empty[0]])} allows no pixel to change; correct the mask.")
    return torch.from_numpy(masks)


def _fitted(array: np.ndarray, shape: tuple[int, ...], total: int, rows: np.ndarray, value: Any) -> np.ndarray:
    """Return masks (n, …) of some samples from an array of one of the shapes of :func:`read_masks`."""
    plane = shape[-2:]
    if array.shape in (shape, plane):
        return np.array(np.broadcast_to(array, (len(rows), *shape)))
    if array.shape in ((total, *shape), (total, *plane)):
        some = array[rows]
        some = some.reshape(len(rows), *[1] * (len(shape) - some.ndim + 1), *some.shape[1:])
        return np.array(np.broadcast_to(some, (len(rows), *shape)))
    where = f" of {value}" if isinstance(value, str | Path) else ""
    raise RobGIBError(
        f"the masks{where} have the shape {array.shape}; give {plane} or {shape} for all samples, or {(total, *plane)} "
        f"or {(total, *shape)}, one for each test sample."
    )


def _by_name(folder: Path, names: Sequence[str] | None, shape: Sequence[int]) -> np.ndarray:
    """Return masks (n, …) from the files of a folder that are named as the pictures are."""
    if names is None:
        raise RobGIBError(
            f"masks in a folder ({folder}) are found by the names of pictures, which these data do not have; give a "
            ".npy file with one mask for each test sample."
        )
    files = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _ENDINGS}
    masks = []
    for name in names:
        path = Path(name)
        within = [folder / path.parent.name / f"{path.stem}{ending}" for ending in _ENDINGS]
        found = next((one for one in within if one.is_file()), files.get(path.stem))
        if found is None:
            raise RobGIBError(f"{folder} holds no mask named as the picture {path.name}; add {path.stem}.png.")
        mask = _mask_of(found)
        if mask.shape not in (tuple(shape), tuple(shape[-2:])):
            raise RobGIBError(f"mask {found} is {mask.shape}, its picture is {tuple(shape)}; bring it to that size.")
        masks.append(np.broadcast_to(mask, tuple(shape)))
    return np.stack(masks)


def _mask_of(path: Path) -> np.ndarray:
    """Return one mask (H, W) or (C, H, W) from a file."""
    if path.suffix.lower() == ".npy":
        return _array(path, "masks") != 0
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
    except Exception as error:  # a damaged picture raises of all kinds
        raise RobGIBError(f"mask {path} cannot be read: {first_line(error)}.") from error
    return pixels > _MIDDLE * max(int(pixels.max()), 1)


def read_targets(value: Any, labels: Tensor, total: int, rows: np.ndarray, classes: int) -> Tensor:
    """Return target classes (n,) of the samples ``rows`` of a data set.

    Args:
        value: an array, a ``.npy`` file or a ``.csv`` file of class numbers: one for each of the ``total`` samples; or
            a ``.csv`` file with the columns ``index`` and ``target``.
        labels: true labels (n,) of the samples.
        total: number of samples of the data set.
        rows: the samples (n,).
        classes: number of classes.

    Raises:
        RobGIBError: the file cannot be read, a target is missing, is no class, or is the true label.

    >>> read_targets([1, 0, 1], torch.tensor([1, 0]), 3, np.array([1, 2]), 2).tolist()
    [0, 1]
    """
    if isinstance(value, str | Path) and Path(value).suffix.lower() == ".csv":
        given = _from_csv(Path(value), total)
    else:
        array = _array(value, "targets")
        if array.shape != (total,) or array.dtype.kind not in "iu":
            raise RobGIBError(f"targets must be {total} class numbers, one for each test sample, not {array.shape}.")
        given = dict(enumerate(array.tolist()))
    missing = [int(row) for row in rows if int(row) not in given]
    if missing:
        raise RobGIBError(f"sample {missing[0]} has no target; give one for each test sample that is attacked.")
    targets = torch.tensor([given[int(row)] for row in rows], dtype=torch.int64)
    for row, target, label in zip(rows.tolist(), targets.tolist(), labels.tolist(), strict=True):
        if not 0 <= target < classes:
            raise RobGIBError(f"target {target} of sample {row} is none of the {classes} classes, counted from 0.")
        if target == label:
            raise RobGIBError(f"the target of sample {row} is its true label {label}; give another class.")
    return targets


def _from_csv(path: Path, total: int) -> dict[int, int]:
    """Return targets by sample, from a file with the columns index and target, or with one number in each row."""
    try:
        with path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if line]
        if lines and {"index", "target"} <= set(lines[0]):
            index, target = lines[0].index("index"), lines[0].index("target")
            return {int(line[index]): int(line[target]) for line in lines[1:]}
        numbers = [int(line[0]) for line in lines[int(not lines[0][0].strip().lstrip("-").isdigit()) :]]
    except (OSError, ValueError, IndexError) as error:
        raise RobGIBError(
            f"targets {path} cannot be read ({first_line(error)}); give the columns index and target, or one class "
            "number in each row."
        ) from error
    if len(numbers) != total:
        raise RobGIBError(f"targets {path} has {len(numbers)} class numbers for {total} test samples.")
    return dict(enumerate(numbers))


def _array(value: Any, what: str) -> np.ndarray:
    """Return an array, or that of a ``.npy`` file."""
    if isinstance(value, str | Path):
        return read_array(value, what)
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)
