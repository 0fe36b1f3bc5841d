"""How docstrings are shown on the site: their ``>>>`` examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe


def fenced(text: str) -> str:
    """Put examples into fences, which Markdown would take for quotations.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2")
    'Adds.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    blocks = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{b}\n```" if b.lstrip().startswith(">>> ") else b for b in blocks)


_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def named(text: str) -> str:
    """Show a reference such as ``:class:`~robgib.Run``` as code.

    >>> named("Returns a :class:`~robgib.Run`.")
    'Returns a `robgib.Run`.'
    """
    return _ROLE.sub(r"`\1`", text)


class Examples(griffe.Extension):
    """Applies :func:`fenced` and :func:`named` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **arguments: Any) -> None:
        """See griffe."""
        if obj.docstring is not None:
            obj.docstring.value = named(fenced(obj.docstring.value))
