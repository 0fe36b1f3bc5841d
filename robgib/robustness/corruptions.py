"""Accuracy under common corruptions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.data.corruptions import CORRUPTIONS, corrupt
from robgib.errors import RobGIBError
from robgib.files import read_array
from robgib.models.inference import PreparedModel, answers
from robgib.options import Context, gather, or_default
from robgib.results import table
from robgib.runtime import SampleRNG
from robgib.statistics import clopper_pearson

__all__ = [
    "Corrupted",
    "corrupted_files",
    "corrupted_files_accuracy",
    "corrupted_images",
    "corruption_accuracy",
]

_BATCH = 64  # images per batch by default
_PICTURES = ("jpeg", "jpeg_compression", "pixelate")  # corruptions of pictures of one or three channels
_SEVERITIES = 5


@dataclass(frozen=True)
class Corrupted:
    """Accuracy under common corruptions.

    Attributes:
        corruptions: a row a corruption and severity (the table ``corruptions`` of a run).
        corrupted: a row a corruption and sample (the table ``corrupted`` of a run).
    """

    corruptions: pd.DataFrame
    corrupted: pd.DataFrame


def corruption_accuracy(
    model: nn.Module | PreparedModel,
    x: Tensor,
    y: Tensor,
    *,
    names: Sequence[str] = CORRUPTIONS,
    context: Context | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Measure accuracy at each corruption and severity, with 95% Clopper–Pearson intervals.

    Args:
        model: classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        names: the corruptions; :data:`~robgib.data.COMMON_CORRUPTIONS` are all 15.
        context: seed of the noise, device (by default the CPU), batch size (by default 64) and progress
            (:class:`~robgib.options.Context`).
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        A table with one row per corruption and severity, without those that need one or three channels if the images
        have others.
    """
    (context,) = gather("corruption_accuracy", fields, or_default("context", context, Context(device="cpu")))
    return corrupted_images(model, x, y, names, context).corruptions


def corrupted_images(
    model: nn.Module | PreparedModel, x: Tensor, y: Tensor, names: Sequence[str], context: Context
) -> Corrupted:
    """Measure as :func:`corruption_accuracy`, and keep the answers by sample."""
    size = context.batch_size or _BATCH
    names = [n for n in names if n not in _PICTURES or x.shape[1] in (1, 3)]
    rows: list[tuple[Any, ...]] = []
    samples: list[tuple[Any, ...]] = []
    for name in names:
        right = np.zeros((_SEVERITIES, len(x)))
        for severity in range(1, _SEVERITIES + 1):
            for start in range(0, len(x), 1024):
                part, index = x[start : start + 1024], range(start, min(start + 1024, len(x)))
                changed = corrupt(part, name, severity, SampleRNG(context.seed, index))
                labels = y[start : start + 1024]
                judged = answers(model, changed, labels, batch_size=size, seed=context.seed, device=context.device)
                right[severity - 1, start : start + 1024] = judged.right
            rows.append(_row(name, severity, right[severity - 1]))
            done, total = len(rows), _SEVERITIES * len(names)
            context.report("corrupting", done, total, name if done < total else "")
        samples += _by_sample(name, range(len(x)), right, from_file=False)
    return Corrupted(table("corruptions", rows), table("corrupted", samples))


def corrupted_files_accuracy(
    model: nn.Module | PreparedModel,
    folder: Path | str,
    shape: Sequence[int],
    *,
    samples: int | None = None,
    context: Context | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Measure accuracy on corrupted images from files, as those of CIFAR-10-C.

    Args:
        model: as for :func:`corruption_accuracy`.
        folder: holds ``labels.npy`` and a file ``NAME.npy`` for each corruption: images (5 N, H, W, C) of 8 bits, N of
            each severity in order, or (5 N, H, W) in grey. Labels are (5 N,), or (N,) if they repeat.
        shape: shape (C, H, W) of the model's images.
        samples: number of images of each severity, drawn with the context's seed, the same in all files; None is all.
        context: seed, device, batch size and progress.
        fields: fields of ``context`` by name.

    Returns:
        A table with one row per corruption and severity.

    Raises:
        RobGIBError: a file is missing, cannot be read or does not fit.
    """
    (context,) = gather("corrupted_files_accuracy", fields, or_default("context", context, Context(device="cpu")))
    return corrupted_files(model, Path(folder), shape, samples, context).corruptions


def corrupted_files(
    model: nn.Module | PreparedModel, folder: Path, shape: Sequence[int], samples: int | None, context: Context
) -> Corrupted:
    """Measure as :func:`corrupted_files_accuracy`, and keep the answers by image."""
    files = sorted(path for path in folder.glob("*.npy") if path.name != "labels.npy")
    if not files:
        raise RobGIBError(f"{folder} holds no arrays of corrupted images, such as fog.npy with labels.npy.")
    labels = read_array(folder / "labels.npy", "labels")
    rows: list[tuple[Any, ...]] = []
    answered: list[tuple[Any, ...]] = []
    for path in files:
        images = read_array(path, "images")
        count = len(images) // _SEVERITIES
        _check_fit(path, images, labels, shape)
        some = np.sort(np.random.default_rng(context.seed).permutation(count)[:samples])
        right = np.zeros((_SEVERITIES, len(some)))
        for severity in range(1, _SEVERITIES + 1):
            place = some + (severity - 1) * count
            pixels = torch.from_numpy(np.array(images[place]))
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
            truth = torch.from_numpy(labels[place % len(labels)].astype(np.int64))
            size = context.batch_size or _BATCH
            judged = answers(
                model, pixels.float() / 255, truth, batch_size=size, seed=context.seed, device=context.device
            )
            right[severity - 1] = judged.right
            rows.append(_row(path.stem, severity, right[severity - 1]))
            done, total = len(rows), _SEVERITIES * len(files)
            context.report("corrupted files", done, total, path.stem if done < total else "")
        answered += _by_sample(path.stem, some, right, from_file=True)
    return Corrupted(table("corruptions", rows), table("corrupted", answered))


def _row(name: str, severity: int, shares: np.ndarray) -> tuple[Any, ...]:
    """Return the row of a corruption under which images are labelled right in ``shares`` (n,) of the draws."""
    total, count = float(shares.sum()), len(shares)
    right = int(total) if total.is_integer() else total
    low, high = clopper_pearson(right, count)
    return name, severity, right, count, right / count, low, high


def _by_sample(name: str, index: Iterable[int], right: np.ndarray, *, from_file: bool) -> list[tuple[Any, ...]]:
    """Return the rows of a corruption by sample, of the shares ``right`` (severities, n)."""
    means = right.mean(0).tolist()
    return [(int(i), name, from_file, share) for i, share in zip(index, means, strict=True)]


def _check_fit(path: Path, images: np.ndarray, labels: np.ndarray, shape: Sequence[int]) -> None:
    """Raise an error if corrupted images are not five times as many 8-bit images as the model takes, with labels."""
    channels, height, width = shape
    fits = images.shape[1:] == (height, width, channels) or (channels == 1 and images.shape[1:] == (height, width))
    if not fits or images.dtype != np.uint8 or len(images) % _SEVERITIES or not len(images):
        raise RobGIBError(
            f"{path} holds {images.dtype} of shape {images.shape}; give 8-bit images (5 N, {height}, {width}, "
            f"{channels}), N of each of five severities."
        )
    if labels.shape not in ((len(images),), (len(images) // _SEVERITIES,)):
        raise RobGIBError(f"{path.parent / 'labels.npy'} has the shape {labels.shape} for {len(images)} images.")
