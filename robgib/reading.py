"""What may be read of a file that someone else wrote: no pipe is waited for, and no nesting is without end."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from robgib.errors import RobGIBError

__all__ = ["DEEPEST", "as_path", "check_regular", "too_deep"]

DEEPEST = 50
"""Levels of nesting that a file may have: what walks through its content calls itself for each."""


def as_path(value: object, name: str) -> Path:
    """Return an argument that names a file or a folder as a path.

    Raises:
        RobGIBError: it is neither text nor a path.

    >>> as_path("net.pt", "path").suffix
    '.pt'
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise RobGIBError(f"{name} must be a path, such as 'folder/file', not {value!r}.")
    return Path(value)


def check_regular(path: Path) -> None:
    """Raise if ``path`` exists and is not a regular file: reading a pipe would wait forever.

    Raises:
        OSError: it is a pipe, a device or a folder.

    >>> check_regular(Path("/dev/null"))
    Traceback (most recent call last):
    OSError: [Errno 22] it is no regular file: '/dev/null'
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def too_deep(content: object) -> bool:
    """Whether lists and mappings are nested more than :data:`DEEPEST` levels deep.

    >>> too_deep({"a": [1, [2]]})
    False
    """
    level = [content]
    for _ in range(DEEPEST):
        if not level:
            return False
        distinct = {id(one): one for one in level if isinstance(one, Mapping | list | tuple)}  # aliases: each once
        level = [part for one in distinct.values() for part in (one.values() if isinstance(one, Mapping) else one)]
    return any(isinstance(one, Mapping | list | tuple) for one in level)
