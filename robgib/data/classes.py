"""Map the classes of a data set to those of a model, by the names, ids or numbers of its folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from robgib.data.dataset import Dataset, Split
from robgib.errors import RobGIBError, unknown_name
from robgib.files import read_json

__all__ = [
    "class_indices",
    "map_classes",
    "read_classes",
]

_MOST = 100_000  # classes
_ID = re.compile(r"n\d{8}")  # of a WordNet synset, as ImageNet's folders are called


@cache
def _imagenet() -> tuple[tuple[str, ...], ...]:
    text = (resources.files("robgib.data") / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines())


def read_classes(spec: str | Path | Sequence[str]) -> list[tuple[str, ...]]:
    """Return a model's classes in its order. Each is a tuple of its names; pages show the last.

    Args:
        spec: ``imagenet`` (its 1,000 synset ids and names), a list of names, or a file: a text with a class a line (an
            id, a tab, a name; or the name alone), or JSON, a list or a mapping of numbers to names or to [id, name], as
            ``imagenet_class_index.json`` and the ``id2label`` of Hugging Face's configurations are.

    Raises:
        RobGIBError: a file that is missing or says something else.

    >>> len(read_classes("imagenet")), read_classes("imagenet")[207]
    (1000, ('n02099601', 'golden retriever'))
    >>> read_classes(["cat", "dog"])
    [('cat',), ('dog',)]
    """
    if not isinstance(spec, str | Path):
        return _checked([(str(name),) for name in spec], "the classes")
    if spec == "imagenet":
        return list(_imagenet())
    path = Path(spec)
    if not path.is_file():
        raise RobGIBError(f"classes {str(spec)!r}: no such file; give an existing file, or imagenet.")
    try:
        if path.suffix == ".json":
            content = read_json(path)
            content = content.get("id2label", content) if isinstance(content, dict) else content
            if isinstance(content, dict):
                content = [content[str(i)] for i in range(len(content))]
            made = [tuple(map(str, c)) if isinstance(c, list) else (str(c),) for c in content]
        else:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            made = [tuple(part.strip() for part in line.split("\t")) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RobGIBError(
            f"classes {str(spec)!r} cannot be read; write one class per line, or JSON by number."
        ) from error
    return _checked(made, str(spec))


def _checked(classes: list[tuple[str, ...]], what: str) -> list[tuple[str, ...]]:
    if not 1 < len(classes) <= _MOST or not all(c and all(c) for c in classes):
        raise RobGIBError(f"{what} must name 2 to {_MOST:,} classes, each with at least one name.")
    return classes


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def class_indices(names: Sequence[str], classes: Sequence[tuple[str, ...]]) -> list[int]:
    """Return the model's class index of each class of a data set, by id, name or number.

    Raises:
        RobGIBError: one that is none of them, or that several go by.

    >>> class_indices(["n02099601", "Tench", "3"], read_classes("imagenet"))
    [207, 0, 3]
    """
    known: dict[str, list[int]] = {}
    for number, of in enumerate(classes):
        for name in dict.fromkeys(map(_plain, of)):
            known.setdefault(name, []).append(number)
    indices = []
    for name in names:
        by_id = _ID.match(name)
        at = known.get(_plain(name)) or (known.get(by_id[0]) if by_id else None)
        if at is None and name.isdigit() and int(name) < len(classes):
            at = [int(name)]
        if at is None:
            raise unknown_name("class", name, [c[-1] for c in classes])
        if len(at) > 1:
            raise RobGIBError(f"{len(at)} of the model's classes are called {name!r}; name the folder by id or number.")
        indices.append(at[0])
    if len(set(indices)) < len(indices):
        twice = next(names[i] for i, k in enumerate(indices) if indices.index(k) < i)
        raise RobGIBError(f"two classes of the data are the same class of the model, {twice!r} among them.")
    return indices


def map_classes(data: Dataset, classes: Sequence[tuple[str, ...]]) -> Dataset:
    """Return the data with the model's classes, and labels numbered as the model numbers them.

    Raises:
        RobGIBError: as :func:`class_indices` does.
    """
    numbers = torch.tensor(class_indices(data.classes, classes))

    def mapped(part: Split) -> Split:
        return replace(part, y=numbers[part.y])

    return replace(
        data,
        train=mapped(data.train),
        val=mapped(data.val),
        test=mapped(data.test),
        classes=tuple(c[-1] for c in classes),
        by_name=False,
    )
