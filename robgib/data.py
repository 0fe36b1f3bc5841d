"""Labelled images as tensors in pixel scale, split once by seed."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from robgib.errors import RobGIBError, unknown_name
from robgib.store import write_whole

__all__ = ["DATASETS", "Dataset", "Split", "cache_folder", "load_data", "read_idx"]


@dataclass(frozen=True)
class Split:
    """Images ``x``: float32 (N, C, H, W) in [0, 1]; labels ``y``: int64 (N,)."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
            raise RobGIBError(
                f"data must be images (N, C, H, W) with labels (N,), not {tuple(x.shape)} with {tuple(y.shape)}."
            )
        if not x.is_floating_point() or y.is_floating_point():
            raise RobGIBError(
                f"images must be floating point and labels integers, not {x.dtype} and {y.dtype}; "
                "divide 8-bit images by 255."
            )
        if len(x) and not (bool(torch.isfinite(x).all()) and float(x.min()) >= 0 and float(x.max()) <= 1):
            raise RobGIBError(
                f"images must be finite and lie in [0, 1], not in [{float(x.min()):g}, {float(x.max()):g}]; "
                "put the normalisation inside the model."
            )
        if len(y) and int(y.min()) < 0:
            raise RobGIBError(f"labels must be class numbers from 0, not {int(y.min())}.")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts; ``train`` and ``val`` may be empty for data given as arrays.

    ``eps`` holds the customary perturbation budget per norm, in pixel scale [0, 1].
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    eps: Mapping[str, float] = field(default_factory=lambda: {"linf": 8 / 255, "l2": 0.5, "l1": 12.0})

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
                sha.update(np.ascontiguousarray(tensor.numpy()).data)
        return sha.hexdigest()

    @staticmethod
    def from_arrays(x: Tensor, y: Tensor, name: str = "arrays") -> Dataset:
        """Wrap your own images and labels as a test set."""
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        if len(x) == 0:
            raise RobGIBError("the data hold no samples; give at least one image with its label.")
        test = Split(x.float() if x.is_floating_point() else x, y if y.is_floating_point() else y.long())
        none = Split(test.x[:0], test.y[:0])
        return Dataset(name, none, none, test, tuple(str(i) for i in range(int(y.max()) + 1)))


def cache_folder() -> Path:
    """Where checkpoints and downloads are kept: ``ROBGIB_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("ROBGIB_CACHE") or platformdirs.user_cache_dir("robgib"))


def _stratified(y: np.ndarray, sizes: tuple[float, ...], seed: int) -> list[np.ndarray]:
    """Indices of disjoint parts with ``sizes`` as shares of every class."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for label in np.unique(y):
        index = rng.permutation(np.flatnonzero(y == label))
        edges = np.round(np.cumsum(sizes) * len(index)).astype(int)
        for part, chunk in zip(parts, np.split(index, edges[:-1]), strict=False):
            part.append(chunk)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _digits(root: Path | None, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy((raw.images / 16).astype(np.float32))[:, None]
    y = torch.from_numpy(raw.target.astype(np.int64))
    train, val, test = (
        Split(x[i], y[i]) for i in map(torch.from_numpy, _stratified(raw.target, (0.6, 0.07, 0.33), seed))
    )
    return Dataset("digits", train, val, test, tuple("0123456789"), {"linf": 0.1, "l2": 0.5, "l1": 1.0})


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, plain or gzipped, and check its size against its header."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise RobGIBError(f"{path} cannot be read ({error}): it may be cut short; fetch the file again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise RobGIBError(f"{path} is not an IDX file of unsigned bytes; fetch the file again.")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if body.size != int(np.prod(shape, dtype=np.int64)):
        raise RobGIBError(
            f"{path} is truncated: its header promises {'x'.join(map(str, shape))} bytes "
            f"and {body.size} are there; fetch the file again."
        )
    return body.reshape(shape)


_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _find_idx(root: Path) -> list[Path] | str:
    """The four files below ``root``, or the name of the first one missing."""
    raw = Path("FashionMNIST") / "raw"  # torchvision's layout
    places = (root, root / "fashion-mnist", root / raw, root / "fashion-mnist" / raw)
    for place in places:
        if not place.is_dir():
            continue
        found = [
            next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None) for name in _FASHION_FILES
        ]
        if any(found):
            for name, path in zip(_FASHION_FILES, found, strict=True):
                if path is None:
                    return name
            return [p for p in found if p is not None]
    return _FASHION_FILES[0]


def _fashion_mnist(root: Path | None, seed: int) -> Dataset:
    where = cache_folder() / "data" if root is None else root
    files = _find_idx(where)
    if isinstance(files, str) and root is None:
        from robgib._torchvision import torchvision

        try:
            with write_whole(where / "fashion-mnist") as folder:
                torchvision.datasets.FashionMNIST(str(folder), download=True)
            files = _find_idx(where)
        except Exception as error:
            raise RobGIBError(
                f"Fashion-MNIST could not be downloaded ({type(error).__name__}); give --data-root a folder "
                f"that holds {_FASHION_FILES[0]}[.gz] and its three companions."
            ) from error
    if isinstance(files, str):
        raise RobGIBError(
            f"Fashion-MNIST's {files}[.gz] is not in {where} (nor in its fashion-mnist/ or FashionMNIST/raw/); "
            "give --data-root the folder that holds the four IDX files."
        )
    arrays = [read_idx(path) for path in files]
    for images, labels, path in ((arrays[0], arrays[1], files[0]), (arrays[2], arrays[3], files[2])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) > 9:
            raise RobGIBError(f"{path} and its labels do not fit each other as Fashion-MNIST's files do.")
    as_split = [
        Split(torch.from_numpy(x.astype(np.float32) / 255)[:, None], torch.from_numpy(y.astype(np.int64)))
        for x, y in ((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    ]
    train, val = map(torch.from_numpy, _stratified(arrays[1], (11 / 12, 1 / 12), seed))
    whole, test = as_split
    # A fixed shuffle: the first n test images are then a fair draw of any size n.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(test)))
    names = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
    return Dataset(
        "fashion-mnist",
        Split(whole.x[train], whole.y[train]),
        Split(whole.x[val], whole.y[val]),
        Split(test.x[order], test.y[order]),
        tuple(names),
        {"linf": 0.1, "l2": 1.0, "l1": 10.0},
    )


DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
}
"""The data sets by name; each takes the data folder (or None) and the split's seed."""


def load_data(name: str, root: str | Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: a key of :data:`DATASETS`.
        root: folder with the data files; None looks in the cache and downloads where there is a network.
        seed: of the train/validation/test split.

    Raises:
        RobGIBError: unknown name, missing folder, missing or damaged file.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    folder = None if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise RobGIBError(f"data folder {str(folder)!r} does not exist; give --data-root an existing folder.")
    return DATASETS[name](folder, seed)
