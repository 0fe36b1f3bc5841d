"""Images that are read on demand, so that a data set may be larger than memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LazyImages",
    "Source",
    "in_memory",
]

_HELD = 2**28  # bytes of images that are kept as they were read
_FEW = 2**28  # bytes of float32 up to which images are read at once
_THREADS = 4


class Source(Protocol):
    """A source of images, read one at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of each."""

    def read(self, row: int) -> np.ndarray:
        """Pixels (C, H, W) of one: bytes, or float32 in [0, 1]."""

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Digests (32 bytes each) of some: of their files, or their pixels."""


def in_memory(x: Tensor) -> Tensor:
    """Read lazy images into memory if they are few; return others, and tensors, unchanged."""
    lazy: Any = x
    return lazy.read() if isinstance(lazy, LazyImages) and 4 * lazy.numel() <= _FEW else x


class LazyImages:
    """Images (N, C, H, W), float32 in [0, 1], decoded on demand.

    Rows of it are again lazy; in torch's functions, and for whatever else a tensor can do, it is read whole. What was
    read last is kept, as bytes where the pictures are of bytes, up to a quarter of a GiB.

    Args:
        source: of the images.
        rows: of the source that are meant, in order.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._rows = np.asarray(rows, dtype=np.int64)
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._rows), *self._source.shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 1 + len(self._source.shape)

    def numel(self) -> int:
        """Number of pixels."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True."""
        return True

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        """Return one image (C, H, W), or a part of the images, still unread; else what a tensor would return."""
        if isinstance(key, int | np.integer):
            return self._part(self._rows[[int(key)]]).read()[0]
        if isinstance(key, tuple):
            return self.read()[key]
        if isinstance(key, Tensor):
            key = key.cpu().numpy()
        return self._part(self._rows[key])

    def _part(self, rows: np.ndarray) -> LazyImages:
        made = LazyImages(self._source, rows)
        made._kept = self._kept
        return made

    def names(self) -> list[str] | None:
        """Return the paths of their files, or None if they have none."""
        of_source = getattr(self._source, "names", None)
        return None if of_source is None else of_source(self._rows.tolist())

    def split(self, size: int) -> list[LazyImages]:
        """Return parts of ``size`` images, still unread."""
        return [self[start : start + size] for start in range(0, max(1, len(self)), size)]

    def to(self, *arguments: Any, **options: Any) -> Tensor:
        """Read them, and move them to a device or type."""
        return self.read().to(*arguments, **options)

    def read(self) -> Tensor:
        """Return them as a tensor, decoded by several threads."""
        decoded = {row: self._kept[row] for row in dict.fromkeys(self._rows.tolist()) if row in self._kept}
        missing = [row for row in dict.fromkeys(self._rows.tolist()) if row not in decoded]
        if missing:
            with ThreadPoolExecutor(_THREADS) as pool:
                decoded.update(zip(missing, pool.map(self._source.read, missing), strict=True))
        out = torch.empty(self.shape)
        for number, row in enumerate(self._rows.tolist()):
            pixels = decoded[row]
            out[number] = torch.from_numpy(pixels)
            if pixels.dtype == np.uint8:
                out[number] /= 255
        for row in missing:
            self._kept[row] = decoded[row]
        while self._kept and len(self._kept) * next(iter(self._kept.values())).nbytes > _HELD:
            self._kept.popitem(last=False)
        return out

    def update_digest(self, sha: Any) -> None:
        """Add the digests of the images' files to ``sha``."""
        for file_digest in self._source.digests(self._rows.tolist()):
            sha.update(file_digest)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.read(), name)

    def __mul__(self, other: Any) -> Tensor:
        return self.read() * other

    def __sub__(self, other: Any) -> Tensor:
        return self.read() - other

    def __rsub__(self, other: Any) -> Tensor:
        return other - self.read()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def read(value: Any) -> Any:
            if isinstance(value, LazyImages):
                return value.read()
            return type(value)(read(v) for v in value) if type(value) in (list, tuple) else value

        return func(*read(tuple(args)), **{k: read(v) for k, v in (kwargs or {}).items()})
