"""Labelled images as tensors in pixel scale, in three parts."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robgib.data.by_index import Samples, known_labels, selecting
from robgib.data.lazy import LazyImages, in_memory
from robgib.errors import RobGIBError, RobGIBWarning, first_line

__all__ = [
    "COLOUR_EPS",
    "Bounds",
    "Dataset",
    "Split",
    "as_images",
    "check_bounds",
    "check_brightness",
    "drawn_order",
    "information_rows",
    "read_images",
    "split_information",
    "stratified",
]

COLOUR_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
"""The customary perturbation budgets of coloured pictures, by norm."""
_ROUNDING = 1e-6
"""How far outside [0, 1] an image may lie: what float32 leaves when a normalisation is taken back."""
_DARK = 128
"""Half of what 8 bits hold: where no number reaches it, 255 is hardly what the data mean by white."""
_ENDLESS = (100_000, 2**33)
"""Images, and bytes of them, after which an iterable of unknown length is taken for one without an end."""
_ITERATED = 10_000  # least number of images that are read from an iterable, if only some are needed

Bounds = tuple[float, float]
"""What data mean by black and by white."""


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


def drawn_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order (N,) of samples in which every prefix holds the classes by their shares.

    >>> drawn_order(np.repeat([0, 1], 50), 0)[:20].tolist().count(0) < 50
    True
    >>> np.bincount(np.repeat([0, 1], 50)[drawn_order(np.repeat([0, 1], 50), 0)][:20]).tolist()
    [10, 10]
    """
    rng = np.random.default_rng(seed)
    place = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(place, kind="stable")


@dataclass(frozen=True)
class Split:
    """Images ``x``: float32 (N, C, H, W) in [0, 1]; labels ``y``: int64 (N,).

    Images outside [0, 1] by no more than 1e-6, as rounding leaves them, are clamped to it; labels of any integer kind,
    or booleans (0 and 1), become int64. ``shuffled`` says that the samples lie in an order that was drawn, so that the
    first N are a fair draw of N; of others, which may lie class by class, samples are drawn (:meth:`rows`).
    """

    x: Tensor
    y: Tensor
    shuffled: bool = False

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
            raise RobGIBError(
                f"data must be images (N, C, H, W) with labels (N,), not {tuple(x.shape)} with {tuple(y.shape)}."
            )
        if len(x) and not x.numel():
            raise RobGIBError(f"images of shape {tuple(x.shape[1:])} hold no pixels.")
        if not x.is_floating_point():
            raise RobGIBError(f"images must be floating point, not {x.dtype}; divide 8-bit images by 255.")
        if y.is_floating_point() or y.is_complex():
            raise RobGIBError(f"labels must be integers, not {y.dtype}; convert class numbers with labels.long().")
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

    def rows(self, count: int | None = None, seed: int = 0) -> np.ndarray:
        """Return the indices (n,) of the first ``count`` samples to use, in the order of use; None uses all.

        They are the first of a shuffled split. Of any other they are drawn, each class by its share; of a smaller count
        they are the first of those of a larger one.

        >>> split = Split(torch.zeros(100, 1, 2, 2), torch.arange(100) // 50)
        >>> np.bincount(split.y[split.rows(20)]).tolist()
        [10, 10]
        """
        count = len(self) if count is None else min(count, len(self))
        return np.arange(count) if self.shuffled else drawn_order(self.y.numpy(), seed)[:count]

    def sample(self, count: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the images and labels of :meth:`rows`, in memory where they are few."""
        return self.at(self.rows(count, seed))

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the images and labels of some rows (n,), in memory where they are few."""
        if np.array_equal(rows, np.arange(len(rows))):  # no copy
            return in_memory(self.x[: len(rows)]), self.y[: len(rows)]
        index = torch.from_numpy(rows)
        return in_memory(self.x[index]), self.y[index]


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
    def from_arrays(
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        name: str = "arrays",
        *,
        bounds: Bounds | None = None,
        channels: Literal["first", "last"] | None = None,
    ) -> Dataset:
        """Wrap your own images and labels as a test set.

        Args:
            x: images, floating point in [0, 1] or 8-bit: a tensor, an array or nested lists, (N, C, H, W) or
                (N, H, W, C) (:func:`as_images`); 8-bit (N, H, W) has one channel.
            y: labels (N,), class numbers from 0 of any integer kind, booleans for 0 and 1, or one-hot rows (N, K).
            name: of the data.
            bounds: the numbers that mean black and white; None is 0 and 1, and 0 and 255 for 8-bit images.
            channels: whether they are the second axis or the last; None is as the sides tell.

        Raises:
            RobGIBError: they hold no samples, do not fit each other, or are of another kind or range; or 8-bit images
                hold no number above 127, so that 255 is hardly their white, and ``bounds`` does not say what is.

        >>> x = np.full((5, 8, 8, 3), 200, np.uint8)
        >>> Dataset.from_arrays(x, np.eye(5)).shape
        (3, 8, 8)
        """
        images, labels = _as_tensor(x, "images"), _as_tensor(y, "labels")
        if images.ndim == 0 or len(images) == 0:
            raise RobGIBError("the data hold no samples; give at least one image with its label.")
        if images.ndim == 3 and images.dtype == torch.uint8:
            images = images[:, None]
        if labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all()):
            if not bool((labels.sum(1) == 1).all()):
                raise RobGIBError("labels (N, K) must be one-hot: a single 1 in each row.")
            labels = labels.argmax(1)
        test = Split(as_images(images, "images", bounds, channels), labels)
        none = Split(test.x[:0], test.y[:0])
        return Dataset(name, none, none, test, tuple(str(i) for i in range(int(test.y.max()) + 1)))

    @staticmethod
    def from_torch(
        source: object, name: str = "loader", most: int | None = None, *, seed: int = 0, information: int = 0
    ) -> Dataset:
        """Wrap a ``torch.utils.data`` Dataset of (image, label), or a DataLoader of batches of them, as a test set.

        Where only ``most`` samples are used, and a map-style data set knows its labels (``targets``, ``samples`` or
        ``labels``, also of a ``Subset``), only the samples that are drawn are decoded. Their numbers are then those of
        the data set, whatever the order of a loader. Other sources are read whole, from first to last.

        Args:
            source: the Dataset or DataLoader.
            name: of the data.
            most: how many samples will be drawn (:meth:`Split.rows`); None is all. An iterable of unknown length is
                read until it has given enough to draw from, 10,000 at least, and a warning says so where it has more.
            seed: of the draw.
            information: how many samples will be used for information, and as many to fit codes on.

        Raises:
            RobGIBError: what it gives are no pairs of images and labels of one size, or it gives them without end.
        """
        drawn = None if most is None else _by_index(source, name, most, seed, information)
        if drawn is not None:
            return drawn
        enough = None if most is None else max(most, 2 * information)
        return _read(lambda: source, name, enough)


def _read(make: Callable[[], object], name: str, most: int | None = None) -> Dataset:
    """Return the data of a torch Dataset or DataLoader; its failure is reported in one sentence."""
    try:
        source = make()
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=256)  # type: ignore[arg-type]
        images, labels = (torch.cat(part) for part in zip(*_batches(loader, most), strict=True))
    except RobGIBError:
        raise
    except SystemExit as error:
        raise RobGIBError(
            "the loader raises SystemExit, which would end the program; remove the exit from it."
        ) from error
    except Exception as error:  # of the loader's own code, whatever it is
        raise RobGIBError(
            f"the loader must return pairs of images and labels, as tensors of one size: {first_line(error)}."
        ) from error
    return Dataset.from_arrays(images, labels, name)


def _by_index(source: object, name: str, most: int, seed: int, information: int) -> Dataset | None:
    """The data of which only the samples that are used are decoded; None where all must be read.

    The result is the same as if all had been read: all labels are known, and other images are decoded on access.
    """
    known = known_labels(source.dataset if isinstance(source, DataLoader) else source)
    select = None if known is None else selecting(source)
    if known is None or select is None:
        return None

    def decode(rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        part = _read(lambda: select(rows), name).test
        return part.x, part.y

    samples, labels = Samples(decode), known
    for _ in range(2):  # a target_transform may change the labels, and with them the draw
        halves = _halves(labels, information, seed) if information else ()
        used = sorted({int(row) for part in (drawn_order(labels, seed)[:most], *halves) for row in part})
        if len(used) >= len(known):
            return None
        samples.decode(used)
        final = samples.labels_by(known)
        if final is None:
            return None
        labels = final
    samples.used = frozenset(used)
    x, y = LazyImages(samples, range(len(labels))), torch.from_numpy(labels)
    none = Split(torch.zeros(0, *samples.shape), y[:0])
    return Dataset(name, none, none, Split(x, y), tuple(str(i) for i in range(int(labels.max()) + 1)))  # type: ignore[arg-type]


def _batches(loader: DataLoader[Any], most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader; of an endless one as many as a draw of ``most`` samples needs."""
    source = loader.dataset
    known = 0 if isinstance(source, IterableDataset) else len(source)  # type: ignore[arg-type]
    count = size = 0
    for x, y, *_ in loader:
        images, labels = torch.as_tensor(x), torch.as_tensor(y)
        count, size = count + len(images), size + 4 * images.numel()
        yield images, labels
        if count < known:
            continue
        if most is not None and count >= max(_ITERATED, most, known):
            if not known:
                warnings.warn(
                    f"the loader has no length: samples are drawn from its first {count:,}, in its own order. If "
                    "that order is by class, later classes are missing.",
                    RobGIBWarning,
                    stacklevel=4,
                )
            return
        if count > known and (count > _ENDLESS[0] or size > _ENDLESS[1]):
            raise RobGIBError(
                f"the loader has returned {count:,} images and does not end; limit their number with samples=."
            )


def check_bounds(bounds: Bounds | None) -> None:
    """Raise unless ``bounds`` are two finite numbers, black and white."""
    if bounds is not None and (len(bounds) != 2 or not all(math.isfinite(b) for b in bounds) or bounds[0] == bounds[1]):
        raise RobGIBError(f"the bounds of images must be two different numbers, black and white, not {bounds}.")


def check_brightness(largest: int, what: str) -> None:
    """Raise if the ``largest`` value of 8-bit images is so small that 255 is probably not their white."""
    if 0 < largest < _DARK:
        raise RobGIBError(
            f"{what} are 8-bit and no value is above {largest}, so 255 is probably not white: give --data-bounds "
            f"0,{largest} (bounds=(0, {largest}) of Dataset.from_arrays and load_data), or 0,255."
        )


def as_images(
    x: Tensor, what: str, bounds: Bounds | None = None, channels: Literal["first", "last"] | None = None
) -> Tensor:
    """Bring images to (N, C, H, W), floating point in [0, 1].

    Where ``channels`` does not say which axis is theirs, it is the second (as documented), unless the last has a side
    of 1 or 3 and the second has not. Where neither has one, it is the one of the two that leaves square images, or the
    only one of at most 4.

    Args:
        x: images of any kind of number, or vectors and the like, which have no channels.
        what: they are, for messages.
        bounds: the numbers that mean black and white; None is 0 and 255 for 8-bit images, and else 0 and 1.
        channels: which axis they are.

    Raises:
        RobGIBError: which axis or which number is meant is ambiguous.
    """
    check_bounds(bounds)
    if x.ndim == 4 and (channels or _channels(tuple(x.shape), what)) == "last":
        x = x.permute(0, 3, 1, 2)
    if bounds is not None and not x.is_complex():
        x = (x.float() - bounds[0]) / (bounds[1] - bounds[0])
        if x.numel() and not (float(x.min()) >= -_ROUNDING and float(x.max()) <= 1 + _ROUNDING):
            raise RobGIBError(
                f"{what} have values outside the bounds {bounds[0]:g} and {bounds[1]:g}; correct the bounds."
            )
    elif x.dtype == torch.uint8:
        check_brightness(int(x.max()) if x.numel() else 0, what)
        x = x.float() / 255
    return (x.float() if x.is_floating_point() else x).contiguous()


def _channels(shape: tuple[int, ...], what: str) -> str:
    _, a, b, c = shape
    if a in (1, 3) or c in (1, 3):
        return "first" if a in (1, 3) else "last"
    first, last = (b == c != a, a == b != c) if b in (a, c) else (a <= 4 < c, c <= 4 < a)
    if first == last:
        raise RobGIBError(
            f"the channel axis of {what} {shape} is ambiguous; give channels='first' or 'last' to "
            "Dataset.from_arrays(x, y)."
        )
    return "first" if first else "last"


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


def read_images(data: Dataset) -> Dataset:
    """Return the data with small splits read into memory."""
    train, val, test = (replace(part, x=in_memory(part.x)) for part in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test)


def split_information(data: Dataset, limit: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return samples to estimate on and samples to fit codes on: disjoint, both stratified by class."""
    ours, theirs = information_rows(data, limit, seed)
    return data.test.at(ours), (data.train if len(data.train) else data.test).at(theirs)


def information_rows(data: Dataset, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of :func:`split_information`: of the test images, and of the training images if there are any."""
    if len(data.train):
        return data.test.rows(limit, seed), data.train.rows(limit, seed)
    return _halves(data.test.y.numpy(), limit, seed)


def _halves(labels: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two disjoint draws, each of at most ``limit`` samples and by the classes' shares."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    ours, theirs = (half[drawn_order(labels[half], seed)][:limit] for half in (order[::2], order[1::2]))
    return ours, theirs
