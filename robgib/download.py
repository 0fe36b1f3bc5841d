"""Downloads that go on where they broke off, kept only if they are what was promised."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from robgib.errors import RobGIBError
from robgib.training import Progress

__all__ = ["download", "sha256"]


def sha256(path: Path) -> str:
    """SHA-256 digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, target: Path, digest: str, name: str, progress: Progress | None = None) -> None:
    """Download ``url`` to ``target``, there whole or not at all.

    What comes is kept beside it as ``.part``, and the next try goes on after it.

    Args:
        url: http, https or file.
        target: where it goes.
        digest: its SHA-256 digest.
        name: of what it is, for messages.
        progress: called with the bytes so far.

    Raises:
        RobGIBError: it cannot be downloaded, or is another file than was promised.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, name, progress)
    except (OSError, ValueError) as error:
        raise RobGIBError(
            f"model {name!r}: {url} could not be downloaded ({error}); what came is kept for the next try."
        ) from error
    found = sha256(part)
    if found != digest:
        part.unlink()
        raise RobGIBError(
            f"model {name!r}: what {url} gave has the SHA-256 digest {found}, not the recipe's {digest}; "
            "it was not kept."
        )
    os.replace(part, target)


def _fetch(url: str, part: Path, name: str, progress: Progress | None) -> None:
    held = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after what is held: the digest will tell whether that is all
            return
        raise
    with answer, part.open("ab" if held and answer.status == 206 else "wb") as file:
        total = file.tell() + int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            if progress:
                progress(f"downloading {name}", min(file.tell(), total), total, f"{file.tell() / 1e6:.1f} MB")
    if total and part.stat().st_size < total:
        raise OSError(f"it ended after {part.stat().st_size} of {total} bytes")
