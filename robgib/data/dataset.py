"""Labelled images as tensors in pixel scale, in three parts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError, first_line

__all__ = [
    "COLOUR_EPS",
    "Dataset",
    "Split",
    "stratified",
]

COLOUR_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
"""The customary perturbation budgets of coloured pictures, by norm."""
_ROUNDING = 1e-6
"""How far outside [0, 1] an image may lie: what float32 leaves when a normalisation is taken back."""


def stratified(y: np.ndarray, sizes: tuple[float, ...], seed: int) -> list[np.ndarray]:
    """Return the indices of disjoint parts, with ``sizes`` as shares of every class."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for label in np.unique(y):
        index = rng.permutation(np.flatnonzero(y == label))
        edges = np.round(np.cumsum(sizes) * len(index)).astype(int)
        for part, chunk in zip(parts, np.split(index, edges[:-1]), strict=False):
            part.append(chunk)
    return [rng.permutation(np.concatenate(part)) for part in parts]


@dataclass(frozen=True)
class Split:
    """Images ``x``: float32 (N, C, H, W) in [0, 1]; labels ``y``: int64 (N,).

    Images outside [0, 1] by no more than 1e-6, as rounding leaves them, are clamped to it; labels of any integer kind,
    or booleans (0 and 1), become int64.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
            raise RobGIBError(
                f"data must be images (N, C, H, W) with labels (N,), not {tuple(x.shape)} with {tuple(y.shape)}."
            )
        if len(x) and not x.numel():
            raise RobGIBError(f"images of shape {tuple(x.shape[1:])} hold no pixels.")
        if not x.is_floating_point() or y.is_floating_point() or y.is_complex():
            raise RobGIBError(
                f"images must be floating point and labels integers, not {x.dtype} and {y.dtype}; "
                "divide 8-bit images by 255."
            )
        if x.numel() and not isinstance(x, LazyImages):  # these are checked as they are read
            low, high = float(x.min()), float(x.max())
            if not (math.isfinite(low) and math.isfinite(high) and low >= -_ROUNDING and high <= 1 + _ROUNDING):
                # As many digits as show what is wrong: 1.00001 is not "1".
                raise RobGIBError(
                    f"images must be finite and lie in [0, 1], not in [{low:.8g}, {high:.8g}]; "
                    "put the normalisation inside the model."
                )
            if low < 0 or high > 1:
                object.__setattr__(self, "x", x.clamp(0, 1))
        if y.dtype != torch.int64:
            y = y.long()
            object.__setattr__(self, "y", y)
        if len(y) and int(y.min()) < 0:
            raise RobGIBError(f"labels must be class numbers from 0, not {int(y.min())}.")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts; ``train`` and ``val`` may be empty for data given as arrays.

    ``eps`` holds the customary perturbation budget per norm, in pixel scale [0, 1]. ``enumerated`` says that the test
    inputs are all there are, each once, so that information can be counted (:class:`~robgib.information.Exact`).
    ``by_name`` says that the classes are numbered in the order of their names, which need not be a model's own.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    eps: Mapping[str, float] = field(default_factory=lambda: dict(COLOUR_EPS))
    enumerated: bool = False
    by_name: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.test.x.shape[1:])

    @property
    def digest(self) -> str:
        """SHA-256 over every split's images and labels."""
        sha = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in (split.x, split.y):
                sha.update(str((tensor.dtype, tuple(tensor.shape))).encode())
                if isinstance(tensor, LazyImages):
                    tensor.update_digest(sha)
                    continue
                sha.update(np.ascontiguousarray(tensor.numpy()).data)
        return sha.hexdigest()

    @staticmethod
    def from_arrays(x: ArrayLike | Tensor, y: ArrayLike | Tensor, name: str = "arrays") -> Dataset:
        """Wrap your own images and labels as a test set.

        Args:
            x: images (N, C, H, W), floating point in [0, 1] or 8-bit: a tensor, an array or nested lists. (N, H, W, C)
                of 1 or 3 colours, where the second side is neither, is turned round; 8-bit (N, H, W) has one channel.
            y: labels (N,), class numbers from 0 of any integer kind, booleans for 0 and 1, or one-hot rows (N, K).
            name: of the data.

        Raises:
            RobGIBError: they hold no samples, do not fit each other, or are of another kind or range.

        >>> x = np.zeros((5, 8, 8, 3), np.uint8)
        >>> Dataset.from_arrays(x, np.eye(5)).shape
        (3, 8, 8)
        """
        images, labels = _as_tensor(x, "images"), _as_tensor(y, "labels")
        if images.ndim == 0 or len(images) == 0:
            raise RobGIBError("the data hold no samples; give at least one image with its label.")
        if images.dtype == torch.uint8:
            images = (images[:, None] if images.ndim == 3 else images).float() / 255
        if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.permute(0, 3, 1, 2).contiguous()
        if labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all()):
            if not bool((labels.sum(1) == 1).all()):
                raise RobGIBError("labels (N, K) must be one-hot: a single 1 in each row.")
            labels = labels.argmax(1)
        test = Split(images.float() if images.is_floating_point() else images, labels)
        none = Split(test.x[:0], test.y[:0])
        return Dataset(name, none, none, test, tuple(str(i) for i in range(int(test.y.max()) + 1)))

    @staticmethod
    def from_torch(source: object, name: str = "loader") -> Dataset:
        """Wrap a ``torch.utils.data`` Dataset of (image, label), or a DataLoader of batches of them, as a test set.

        Raises:
            RobGIBError: what it gives are no pairs of images and labels of one size.
        """
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=256)  # type: ignore[arg-type]
        try:
            parts = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y, *_ in loader]
            images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        except (TypeError, ValueError, RuntimeError) as error:
            raise RobGIBError(
                f"the loader must give pairs of images and labels, as tensors of one size: {first_line(error)}."
            ) from error
        return Dataset.from_arrays(images, labels, name)


def _as_tensor(value: ArrayLike | Tensor, what: str) -> Tensor:
    """Turn an array, a tensor or lists into a tensor without gradient."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise RobGIBError(f"{what} must be a dense tensor of numbers, not {value.layout!s} on {value.device}.")
        return value.detach()
    try:
        array = np.asarray(value)
        # In memory as torch takes it: in order, and in the machine's order of bytes.
        return torch.as_tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError) as error:
        raise RobGIBError(f"{what} must be an array of numbers: {first_line(error)}.") from error


def split_information(data: Dataset, limit: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The samples to estimate on, and those to fit codes on: disjoint."""
    test, train = data.test, data.train
    if len(train):
        return (test.x[:limit], test.y[:limit]), (train.x[:limit], train.y[:limit])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(test)))
    ours, theirs = order[::2][:limit], order[1::2][:limit]
    return (test.x[ours], test.y[ours]), (test.x[theirs], test.y[theirs])
