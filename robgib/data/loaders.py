"""Data sets by name, and from users' own files; a seed determines the split."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robgib._torchvision import load_torchvision
from robgib.data.dataset import (
    COLOUR_EPS,
    Bounds,
    Dataset,
    Split,
    as_images,
    check_bounds,
    drawn_order,
    read_images,
    stratified,
)
from robgib.data.folder import read_folder
from robgib.data.sizing import Sizing, resized
from robgib.data.synthetic import function
from robgib.data.text import as_vectors, embed_tokens, read_texts
from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.files import atomic_directory, cache_folder
from robgib.registry import Entry, Registry, load_plugins, parse_value, read_yaml, yaml_files

__all__ = [
    "DATASETS",
    "check_data",
    "data_sets",
    "list_data",
    "load_data",
    "read_idx",
    "register_data",
]


def _digits(root: Path | None, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy((raw.images / 16).astype(np.float32))[:, None]
    y = torch.from_numpy(raw.target.astype(np.int64))
    train, val, test = (
        Split(x[i], y[i], shuffled=True) for i in map(torch.from_numpy, stratified(raw.target, (0.6, 0.07, 0.33), seed))
    )
    return Dataset("digits", train, val, test, tuple("0123456789"), {"linf": 0.1, "l2": 0.5, "l1": 1.0})


_SIDES = 4  # of an array in an IDX file: labels have one, images three


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
    if not 1 <= raw[3] <= _SIDES:
        raise RobGIBError(f"{path} is damaged: its header has {raw[3]} sides, not 1 to {_SIDES}; fetch the file again.")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise RobGIBError(
            f"{path} is truncated: its header states {'x'.join(map(str, shape))} bytes "
            f"but it has {body.size}; fetch the file again."
        )
    return body.reshape(shape)


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_GREY = {"linf": 0.1, "l2": 1.0, "l1": 10.0}
_CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")


def _as_images(x: np.ndarray, what: str, bounds: Bounds | None = None) -> Tensor:
    """Turn (N, H, W), (N, H, W, C) or (N, C, H, W), 8-bit or floating point, into float32 (N, C, H, W)."""
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4:
        raise RobGIBError(f"{what} must be images (N, H, W), (N, H, W, C) or (N, C, H, W), not {x.shape}.")
    numbers = np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint8
    if not numbers and not (bounds is not None and np.issubdtype(x.dtype, np.integer)):
        raise RobGIBError(
            f"{what} must be 8-bit or floating point in [0, 1], not {x.dtype}; give --data-bounds for other numbers."
        )
    kind = x.dtype if x.dtype == np.uint8 else np.float32
    return as_images(torch.from_numpy(np.require(x, kind, ["C", "W"])), what, bounds)


def _assembled(
    name: str,
    train: tuple[np.ndarray, np.ndarray] | None,
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    eps: Mapping[str, float],
    seed: int,
    bounds: Bounds | None = None,
    by_share: bool = False,
) -> Dataset:
    """Make a data set of arrays, with a twelfth of the training images for validation and shuffled test images.

    ``by_share`` shuffles them so that every beginning holds the classes by their shares, whatever they are.
    """
    y = test[1].astype(np.int64)
    whole = Split(_as_images(test[0], f"{name}'s test images", bounds), torch.from_numpy(y))
    # A fixed shuffle: the first n test images are then a fair draw of any size n.
    order = torch.from_numpy(drawn_order(y, seed) if by_share else np.random.default_rng(seed).permutation(len(y)))
    shuffled = Split(whole.x[order], whole.y[order], shuffled=True)
    if train is None:
        none = Split(whole.x[:0], whole.y[:0])
        return Dataset(name, none, none, shuffled, classes, eps)
    labels = train[1].astype(np.int64)
    learnt = Split(_as_images(train[0], f"{name}'s training images", bounds), torch.from_numpy(labels))
    if learnt.x.shape[1:] != whole.x.shape[1:]:
        raise RobGIBError(
            f"{name}'s training images are {tuple(learnt.x.shape[1:])} and its test images {tuple(whole.x.shape[1:])}."
        )
    parts = [torch.from_numpy(i) for i in stratified(labels, (11 / 12, 1 / 12), seed)]
    ours, validation = (Split(learnt.x[i], learnt.y[i], shuffled=True) for i in parts)
    return Dataset(name, ours, validation, shuffled, classes, eps)


def _find_idx(root: Path, places: tuple[str, ...]) -> list[Path] | str:
    """Return the four files in one of ``places`` below ``root``, or the name of the first missing one."""
    for place in (root / p for p in places):
        if not place.is_dir():
            continue
        paths = [next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None) for name in _IDX_FILES]
        if any(paths):
            for name, path in zip(_IDX_FILES, paths, strict=True):
                if path is None:
                    return name
            return [p for p in paths if p is not None]
    return _IDX_FILES[0]


def _idx(name: str, title: str, library: str, classes: tuple[str, ...]) -> Callable[[Path | None, int], Dataset]:
    """A data set of four IDX files, in a folder of its name or in torchvision's layout."""
    raw = f"{library}/raw"
    places = (name, raw, f"{name}/{raw}", ".")

    def load(root: Path | None, seed: int) -> Dataset:
        where = cache_folder() / "data" if root is None else root
        files = _find_idx(where, places if root is not None else places[:-1])
        if isinstance(files, str) and root is None:
            _download(library, where / name, title, f"{_IDX_FILES[0]}[.gz] and its three companions")
            files = _find_idx(where, places[:-1])
        if isinstance(files, str):
            raise RobGIBError(
                f"{title}'s {files}[.gz] is not in {where} (nor in its {name}/ or {raw}/); "
                "give --data-root the folder that holds the four IDX files."
            )
        arrays = [read_idx(path) for path in files]
        for images, labels, path in ((arrays[0], arrays[1], files[0]), (arrays[2], arrays[3], files[2])):
            fit = images.ndim == 3 and labels.ndim == 1 and len(images) == len(labels)
            if not fit or labels.max(initial=0) >= len(classes):
                raise RobGIBError(f"{path} and its labels do not have the sizes and classes of {title}.")
        return _assembled(name, (arrays[0], arrays[1]), (arrays[2], arrays[3]), classes, _GREY, seed)

    return load


def _download(library: str, target: Path, title: str, wanted: str, **options: str) -> None:
    torchvision = load_torchvision()
    try:
        with atomic_directory(target) as folder:
            getattr(torchvision.datasets, library)(str(folder), download=True, **options)
    except Exception as error:
        raise RobGIBError(
            f"{title} could not be downloaded ({type(error).__name__}); give --data-root a folder that holds {wanted}."
        ) from error


def _library(name: str, title: str, library: str, files: str) -> Callable[[Path | None, int], Dataset]:
    """A data set that torchvision reads: CIFAR-10, CIFAR-100, SVHN."""

    def load(root: Path | None, seed: int) -> Dataset:
        torchvision = load_torchvision()
        kind = getattr(torchvision.datasets, library)
        parts = ({"split": "train"}, {"split": "test"}) if library == "SVHN" else ({"train": True}, {"train": False})
        places = [root, root / name] if root is not None else [cache_folder() / "data" / name]
        for attempt in (1, 2):
            for place in places:
                try:
                    train, test = (kind(str(place), **part) for part in parts)
                except RuntimeError:  # not there, or damaged
                    continue
                except Exception as error:
                    raise RobGIBError(
                        f"{title} in {place} cannot be read ({type(error).__name__}: {error})."
                    ) from error
                arrays = [
                    (np.asarray(d.data), np.asarray(getattr(d, "labels", None) if library == "SVHN" else d.targets))
                    for d in (train, test)
                ]
                classes = tuple(getattr(train, "classes", [str(i) for i in range(10)]))
                return _assembled(name, arrays[0], arrays[1], classes, COLOUR_EPS, seed)
            if root is None and attempt == 1:
                for part in ("train", "test") if library == "SVHN" else ("",):
                    _download(library, places[0], title, files, **({"split": part} if part else {}))
        raise RobGIBError(
            f"{title}'s files are not in {root}, or damaged; give --data-root a folder that holds {files}."
        )

    return load


Loader = Callable[[Path | None, int], Dataset]
DATASETS: Registry[Loader] = Registry(
    "data set", group="robgib.data", valid=callable, wanted="a function that loads a data set"
)
"""The data sets by name; each takes the data folder (or None) and the split's seed."""


def register_data(name: str) -> Callable[[Loader], Loader]:
    """Register a function ``(root: Path | None, seed: int) -> Dataset`` under ``name``.

    Args:
        name: what the data set is called, in recipes and on the command line.

    >>> import torch
    >>> from robgib import Dataset, Split
    >>> @register_data("two-greys")
    ... def two_greys(root, seed):
    ...     y = torch.arange(40) % 2
    ...     part = Split(y.float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 2, y)
    ...     return Dataset("two-greys", part, part, part, ("black", "grey"), {"linf": 0.1, "l2": 0.2, "l1": 1.0})
    >>> load_data("two-greys").shape
    (1, 4, 4)
    """
    return DATASETS.register(name)


for _name, _loader in {
    "digits": _digits,
    "fashion-mnist": _idx("fashion-mnist", "Fashion-MNIST", "FashionMNIST", _CLOTHES),
    "mnist": _idx("mnist", "MNIST", "MNIST", tuple("0123456789")),
    "cifar10": _library("cifar10", "CIFAR-10", "CIFAR10", "cifar-10-batches-py/"),
    "cifar100": _library("cifar100", "CIFAR-100", "CIFAR100", "cifar-100-python/"),
    "svhn": _library("svhn", "SVHN", "SVHN", "train_32x32.mat and test_32x32.mat"),
}.items():
    register_data(_name)(_loader)


_MOST_CLASSES = 100_000


def _npz(path: Path, seed: int, bounds: Bounds | None = None) -> Dataset:
    """Arrays of an .npz file: ``x_test`` and ``y_test``, with ``x_train`` and ``y_train`` if there are; or x and y."""
    arrays = _arrays(path)
    wanted = ("x_test", "y_test") if "x_test" in arrays else ("x", "y")
    missing = [n for n in wanted if n not in arrays]
    if missing:
        raise RobGIBError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; it must hold x_test and y_test (and may hold "
            "x_train and y_train), or x and y."
        )
    pairs = [(arrays[a], arrays[b]) for a, b in (wanted, ("x_train", "y_train")) if a in arrays and b in arrays]
    for x, y in pairs:
        _check_pair(path, x, y)
    count = 1 + max(int(y.max()) for _, y in pairs)
    train = pairs[1] if len(pairs) > 1 else None
    names = tuple(map(str, range(count)))
    return _assembled(f"npz:{path.name}", train, pairs[0], names, COLOUR_EPS, seed, bounds, by_share=True)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an .npz file, by name."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except AttributeError as error:  # an array alone
        raise RobGIBError(
            f"{path} is not an .npz file of arrays but a single array; save it with numpy.savez."
        ) from error
    except Exception as error:  # numpy's reader raises of all kinds where a file is damaged
        raise RobGIBError(f"{path} is not a readable .npz file of arrays: {first_line(error)}.") from error
    if not all(isinstance(part, np.ndarray) for part in arrays.values()):
        raise RobGIBError(f"{path} holds members that are not arrays; save it with numpy.savez.")
    return arrays


def _check_pair(path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Raise unless these are images and their labels."""
    whole = np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_
    if x.ndim == 0:
        raise RobGIBError(f"{path}: the images must be an array (N, H, W) or (N, C, H, W), not one number.")
    if y.ndim != 1 or len(x) != len(y) or not whole or not len(y):
        raise RobGIBError(f"{path}: labels must be integers, one per image, not {y.dtype} {y.shape} for {len(x)}.")
    if y.min() < 0:
        raise RobGIBError(f"{path}: labels must be class numbers from 0, not {y.min()}.")
    if int(y.max()) >= _MOST_CLASSES:
        raise RobGIBError(f"{path}: labels must be class numbers below {_MOST_CLASSES:,}, not {y.max()}.")


def _function(name: str, seed: int) -> Dataset:
    """A function of twelve inputs: all patterns of bits to test on, some of them to train on; or draws of numbers."""
    chosen = function(name)
    classes = 1 + int(chosen.draw(4096, 0)[1].max())
    names = tuple(map(str, range(classes)))
    eps = {"linf": 0.25, "l2": 0.5, "l1": 1.0}
    if chosen.real:
        train, val, test = (
            Split(torch.from_numpy(x), torch.from_numpy(y), shuffled=True)
            for x, y in (chosen.draw(size, 3 * seed + i) for i, size in enumerate((8192, 1024, 4096)))
        )
        return Dataset(f"function:{name}", train, val, test, names, eps)
    x, y = chosen.draw(4096, 0)
    order = np.random.default_rng(seed).permutation(len(y))
    learnt, validation = (
        Split(torch.from_numpy(x[i]), torch.from_numpy(y[i]), shuffled=True)
        for i in stratified(y, (chosen.learnt, 1 - chosen.learnt), seed)
    )
    every = Split(torch.from_numpy(x[order]), torch.from_numpy(y[order]), shuffled=True)
    return Dataset(f"function:{name}", learnt, validation, every, names, eps, enumerated=True)


def _text(path: Path, seed: int) -> Dataset:
    """Text files in folders named for their classes, below ``train`` and ``test``, as token vectors."""
    for part in ("train", "test"):
        if not (path / part).is_dir():
            raise RobGIBError(f"{path} must hold train/ and test/, each with a folder of text files for every class.")
    (learnt, labels, classes), (unseen, truth, others) = (read_texts(path / part) for part in ("train", "test"))
    if classes != others:
        raise RobGIBError(f"{path / 'train'} and {path / 'test'} must hold the same classes.")
    ours, validation = stratified(labels, (11 / 12, 1 / 12), seed)
    vectors = embed_tokens([learnt[i] for i in ours], seed)
    order = np.random.default_rng(seed).permutation(len(truth))
    train, val, test = (
        Split(torch.from_numpy(as_vectors([texts[i] for i in index], vectors)), torch.from_numpy(y[index]).long(), True)
        for texts, y, index in ((learnt, labels, ours), (learnt, labels, validation), (unseen, truth, order))
    )
    return Dataset(f"text:{path.name}", train, val, test, classes, {"linf": 0.05, "l2": 1.0, "l1": 10.0})


_FILES = ("npz", "folder", "text")
"""Data of one's own by prefix, before the colon and the path."""


def check_data(name: str, catalogue: Sequence[Path] = ()) -> None:
    """Raise unless ``name`` is a known data set, also of these folders, or an existing path."""
    kind, colon, path = name.partition(":")
    if DATASETS.built_in(name) or name in (named := data_sets(catalogue)):
        return
    if kind == "function" and colon:
        function(path)
    elif not (colon and kind in _FILES):
        known = [*named, "npz:FILE", "folder:DIR", "text:DIR", "function:NAME"]
        raise unknown_name("data set", name, known, "robgib data list")
    elif not (Path(path).is_file() if kind == "npz" else Path(path).is_dir()):
        raise RobGIBError(f"data {name!r}: {'file' if kind == 'npz' else 'folder'} {path!r} does not exist.")


def data_sets(catalogue: Sequence[Path] = ()) -> dict[str, Entry[Loader]]:
    """Return the data sets by name, with those that plug-ins and YAML files of these folders, and entry points, add.

    A YAML file's ``source`` is a data set's name or path (``npz:faces.npz``, relative to the file), ``classes`` a list
    of names, ``eps`` customary budgets by norm, ``bounds`` the numbers that mean black and white, ``description`` a
    line. ``size`` is the height and width that images are resized to, and ``first`` how many samples are used of each
    part, ``{train: 4000, val: 500, test: 2000}``: the first of those that lie in a drawn order, else a draw.

    Raises:
        RobGIBError: a folder that does not exist, a plug-in that does not import, or a file that says something else.
    """
    load_plugins(catalogue)
    known: dict[str, Entry[Loader]] = dict(DATASETS.entries(catalogue))
    files = yaml_files("data", catalogue)
    sources = {name: str(read_yaml(path)["source"]) for name, path in files.items()}
    for name, path in files.items():
        _check_chain(name, path, sources, known)
    own = {name: Entry(name, _named_source(name, path, known, catalogue), str(path)) for name, path in files.items()}
    return {**known, **own}


def _check_chain(name: str, path: Path, sources: Mapping[str, str], known: Mapping[str, object]) -> None:
    """Raise if the sources of data sets refer to each other in a circle; a file may replace a built-in data set."""
    first = source = sources[name]
    visited = [name]
    while source in sources and not (source == visited[-1] and source in known):
        if source in visited:
            raise RobGIBError(f"{path}: source {first!r} refers back to {source!r}; name another data set.")
        visited.append(source)
        source = sources[source]


_KEYS = ("source", "classes", "eps", "description", "bounds", "size", "first")
_PARTS = ("train", "val", "test")


def _named_source(name: str, path: Path, known: Mapping[str, Entry[Loader]], catalogue: Sequence[Path]) -> Loader:
    """Return the loader of a YAML file's data set; ``known`` are the data sets without a YAML file."""
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise unknown_name(f"key in {path}:", str(key), _KEYS)
    source, names, given = str(content["source"]), content.get("classes"), content.get("eps") or {}
    kind, colon, place = source.partition(":")
    if colon and kind in _FILES:
        source = f"{kind}:{path.parent / place}"
    eps: dict[str, float] = {}
    for norm, value in given.items() if isinstance(given, dict) else [("", given)]:
        budget = parse_value(value)
        if norm not in ("linf", "l2", "l1", "l0") or isinstance(budget, bool) or not isinstance(budget, int | float):
            raise RobGIBError(f"{path}: eps must map linf, l2, l1 and l0 to numbers such as 8/255, not {given!r}.")
        eps[norm] = float(budget)
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise RobGIBError(f"{path}: classes must be a list of names, not {names!r}.")
    limits, bounds = content.get("bounds"), None
    if limits is not None:
        if not (isinstance(limits, list) and len(limits) == 2 and all(type(b) in (int, float) for b in limits)):
            raise RobGIBError(f"{path}: bounds must be two numbers such as [0, 16], not {limits!r}.")
        bounds = float(limits[0]), float(limits[1])
    sizing, first = _size_and_first(path, content)

    def load(root: Path | None, seed: int) -> Dataset:
        if source == name and name in known:  # what it replaces
            data = known[name].value(root, seed)
        else:
            data = load_data(source, root, seed, catalogue=catalogue, bounds=bounds, lazy=True)
        if names is not None and len(names) != len(data.classes):
            raise RobGIBError(f"{path} names {len(names)} classes, but the data have {len(data.classes)}.")
        classes = data.classes if names is None else tuple(names)
        train, val, test = (_first(getattr(data, part), first.get(part), seed) for part in _PARTS)
        chosen = replace(data, name=name, classes=classes, eps={**data.eps, **eps}, train=train, val=val, test=test)
        return resized(chosen, sizing)

    return load


def _size_and_first(path: Path, content: Mapping[str, object]) -> tuple[Sizing | None, dict[str, int]]:
    """What a YAML file says of its images' size, and of how many samples of each part are used."""
    size, first = content.get("size"), content.get("first") or {}
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(s) is int for s in size)):
        raise RobGIBError(f"{path}: size must be height and width such as [14, 14], not {size!r}.")
    counts = first.values() if isinstance(first, dict) else [None]
    if not isinstance(first, dict) or not all(type(n) is int and n > 0 for n in counts):
        raise RobGIBError(f"{path}: first must map train, val and test to numbers of samples, not {first!r}.")
    for part in first:
        if part not in _PARTS:
            raise unknown_name(f"part of the data in {path}:", str(part), _PARTS)
    try:
        return (None if size is None else Sizing((size[0], size[1]))), {str(part): n for part, n in first.items()}
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error


def _first(split: Split, count: int | None, seed: int) -> Split:
    """So many samples of a part; all if it has no more, or if no number is given."""
    if count is None:
        return split
    rows = torch.from_numpy(split.rows(count, seed))
    return Split(split.x[rows], split.y[rows], shuffled=True)


def list_data(catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of the data sets.

    >>> "digits" in list_data()
    True
    """
    return list(data_sets(catalogue))


def load_data(
    name: str,
    root: str | Path | None = None,
    seed: int = 0,
    *,
    catalogue: Sequence[Path] = (),
    sizing: Sizing | None = None,
    bounds: Bounds | None = None,
    lazy: bool = False,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of :func:`list_data`; ``npz:FILE``, arrays x_test and y_test with x_train and y_train if there are
            (or x and y); ``folder:DIR``, pictures in folders named for their classes, below train/ and test/ or
            straight below DIR; ``text:DIR``, text files likewise; or ``function:NAME``, of twelve inputs
            (:mod:`robgib.data.synthetic`).
        root: folder with the data files; None looks in the cache and downloads where there is a network.
        seed: of the train/validation/test split.
        catalogue: further folders, whose plug-ins and YAML files may add data sets.
        sizing: how images are resized and cropped.
        bounds: the numbers of npz: and folder: that mean black and white; None is 0 and 255 where they are of 8 bits.
        lazy: leave the pictures of folder: unread until they are needed, even if they are few.

    Raises:
        RobGIBError: unknown name, missing folder, missing or damaged file; or 8-bit images hold no number above 127, so
            that 255 is hardly their white, and ``bounds`` does not say what is.
    """
    check_data(name, catalogue)
    check_bounds(bounds)
    kind, _, path = name.partition(":")
    registered = data_sets(catalogue).get(name)
    if bounds is not None and (registered or kind not in ("npz", "folder")):
        raise RobGIBError(f"bounds apply to npz: and folder: data only; {name!r} has its own.")
    if registered:
        data = _registered(registered.value, root, seed)
        return resized(data if lazy else read_images(data), sizing)
    if kind == "function":
        return resized(_function(path, seed), sizing)
    if kind == "folder":
        data = read_folder(Path(path), seed, sizing, bounds)
        return data if lazy else read_images(data)
    return resized(_npz(Path(path), seed, bounds) if kind == "npz" else _text(Path(path), seed), sizing)


def load_cached(name: str) -> Dataset:
    """Load a registered data set, or a copy of it as folders of pictures in the cache (``data/NAME-jpeg``).

    Raises:
        RobGIBError: as for :func:`load_data`.

    >>> load_cached("digits").shape
    (1, 8, 8)
    """
    copied = cache_folder() / "data" / f"{name}-jpeg"
    return load_data(f"folder:{copied}" if copied.is_dir() else name)


def _registered(load: Loader, root: str | Path | None, seed: int) -> Dataset:
    folder = None if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise RobGIBError(f"data folder {str(folder)!r} does not exist; give --data-root an existing folder.")
    return load(folder, seed)
