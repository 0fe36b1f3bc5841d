"""How a computation reports its progress."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Progress"]


@runtime_checkable
class Progress(Protocol):
    """Receives how far a named task is; the command line draws a bar from it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``task`` are over."""
