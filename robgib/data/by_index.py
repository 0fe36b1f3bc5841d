"""Map-style data sets of torch whose labels are known: only the samples that are used are decoded."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

__all__ = [
    "Samples",
    "known_labels",
    "selecting",
]

_LABELS = ("targets", "labels", "_labels", "samples", "imgs")
"""Where data sets hold all labels: torchvision's ``targets``, its ``samples`` of (path, class), and others."""


def known_labels(source: object) -> np.ndarray | None:
    """Return the labels (N,) that a map-style data set knows without decoding a sample, or None.

    They are those before a ``target_transform``.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> pairs = TensorDataset(torch.rand(4, 1, 2, 2), torch.tensor([0, 0, 1, 1]))
    >>> known_labels(Subset(pairs, [3, 0])).tolist()
    [1, 0]
    """
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
        return None
    if isinstance(source, ConcatDataset):
        parts = [known_labels(part) for part in source.datasets]
        return np.concatenate([p for p in parts if p is not None]) if all(p is not None for p in parts) else None
    if isinstance(source, Subset):
        inner = known_labels(source.dataset)
        return None if inner is None else inner[np.asarray(source.indices, dtype=np.int64)]
    if isinstance(source, TensorDataset):
        return _whole(source.tensors[1], len(source)) if len(source.tensors) > 1 else None
    candidates = (_whole(getattr(source, name, None), len(source)) for name in _LABELS)
    return next((labels for labels in candidates if labels is not None), None)


def _whole(values: Any, count: int) -> np.ndarray | None:
    """Return the values as ``count`` class numbers from 0, or None if they are none."""
    if not isinstance(values, list | tuple | np.ndarray | Tensor) or len(values) != count or not count:
        return None
    try:
        if isinstance(values, list | tuple) and all(isinstance(one, tuple) and len(one) == 2 for one in values):
            values = [label for _, label in values]
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = array.ndim == 1 and array.dtype.kind in "iu" and int(array.min()) >= 0
    return array.astype(np.int64) if whole else None


def selecting(source: object) -> Callable[[Sequence[int]], DataLoader[Any]] | None:
    """Return a function from indices to a loader of these samples; None if a loader chooses its samples itself."""
    if not isinstance(source, DataLoader):
        return lambda rows: DataLoader(Subset(source, rows), batch_size=256)  # type: ignore[arg-type]
    loader: Any = source
    plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)
    )
    if not plain or not whole:
        return None
    return lambda rows: DataLoader(
        Subset(loader.dataset, rows),
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


class Samples:
    """The images of a data set by index, each decoded once (a :class:`~robgib.data.lazy.Source`).

    Args:
        decode: returns the images (n, C, H, W), float32 in [0, 1], and labels (n,) at some indices.
    """

    def __init__(self, decode: Callable[[Sequence[int]], tuple[Tensor, Tensor]]) -> None:
        self._decode = decode
        self._images: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self.labels: dict[int, int] = {}
        """Labels of the decoded samples, by index."""
        self.used: frozenset[int] = frozenset()
        """The samples that the digest is of: others may be decoded later."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of each image."""
        return tuple(next(iter(self._images.values())).shape)

    def decode(self, rows: Iterable[int]) -> None:
        """Decode the samples at some indices, unless that has been done."""
        with self._lock:  # the code of a data set need not bear several threads
            missing = [row for row in rows if row not in self._images]
            if missing:
                images, labels = self._decode(missing)
                self._images.update(zip(missing, images.numpy(), strict=True))
                self.labels.update(zip(missing, labels.tolist(), strict=True))

    def read(self, row: int) -> np.ndarray:
        """Pixels (C, H, W) of one, float32 in [0, 1]."""
        self.decode([row])
        return self._images[row]

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Digests of the pixels of some; zeros for those that are not used."""
        return [hashlib.sha256(self._images[r].tobytes()).digest() if r in self.used else bytes(32) for r in rows]

    def labels_by(self, known: np.ndarray) -> np.ndarray | None:
        """Return all labels (N,), given those before a ``target_transform``; None where they are unknown.

        The decoded samples show the result of each known label; labels with several results are unknown.
        """
        shown: dict[int, int] = {}
        for row, label in self.labels.items():
            if shown.setdefault(int(known[row]), label) != label:
                return None
        if all(before == after for before, after in shown.items()):
            return known
        if set(np.unique(known).tolist()) - set(shown):
            return None
        return np.vectorize(shown.__getitem__, otypes=[np.int64])(known)
