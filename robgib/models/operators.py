"""The operators that a file's computation may call: those that compute, and neither files, processes nor settings."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

__all__ = [
    "operators",
]


@lru_cache
def operators(namespace: str) -> frozenset[str]:
    """The names, without their overloads, that are allowed of a namespace of torch's operators.

    >>> "conv2d" in operators("aten"), "save" in operators("aten"), operators("c10d")
    (True, False, frozenset())
    """
    text = (resources.files("robgib.models") / "operators.txt").read_text(encoding="utf-8")
    names: dict[str, set[str]] = {}
    words = names.setdefault("", set())
    for word in text.split():
        if word.endswith(":"):
            words = names.setdefault(word[:-1], set())
        else:
            words.add(word)
    return frozenset(names.get(namespace, ()))
