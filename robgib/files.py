"""Atomic writes, digests, resumable downloads and the cache."""

from __future__ import annotations

import glob
import hashlib
import http.client
import io
import json
import os
import platform
import secrets
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from robgib.errors import RobGIBError, RobGIBWarning, first_line
from robgib.reading import DEEPEST, check_regular, too_deep

__all__ = [
    "MOST_BYTES",
    "Parts",
    "alone",
    "atomic_directory",
    "cache_folder",
    "check_file",
    "check_writable",
    "digest",
    "download",
    "parts_in",
    "read_array",
    "read_json",
    "sha256",
    "write_file",
]


def digest(content: Any) -> str:
    """SHA-256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested so deeply that it cannot be read.
    """
    check_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if too_deep(content):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return content


_LONGEST_NAME = 200  # bytes: file systems take 255, and names in the making are longer


def read_array(path: str | Path, what: str) -> np.ndarray:
    """Return the array of a ``.npy`` file, which is mapped and not yet in memory.

    Args:
        path: the file.
        what: it holds, in the plural, for the message.

    Raises:
        RobGIBError: the file is missing, is no regular file, or holds no array of numbers.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "fog.npy", np.eye(2))
    ...     read_array(Path(folder) / "fog.npy", "images").shape
    (2, 2)
    """
    try:
        check_regular(Path(path))
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RobGIBError(f"{what} {str(path)!r} cannot be read as a .npy file: {first_line(error)}.") from error
    return np.asarray(array)


def check_writable(root: Path) -> None:
    """Raise, before any work, if a folder cannot be written below ``root``; leave no trace."""
    place = root.absolute()
    try:
        while not place.exists():
            place = place.parent
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = f"{str(root)[:60]!r}…"
        raise RobGIBError(f"output folder {shown} cannot be created: {reason}; give --out another.") from error
    longest = max((len(os.fsencode(part)) for part in root.parts), default=0)
    if longest > _LONGEST_NAME:
        raise RobGIBError(
            f"output folder {str(root)[:60]!r}… has a name of {longest} bytes; give --out one of {_LONGEST_NAME}."
        )
    if not place.is_dir():
        raise RobGIBError(f"output folder {str(root)!r} cannot be created: {place} is a file; give --out a folder.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".robgib-", dir=place))
    except OSError as error:
        raise RobGIBError(
            f"output folder {str(root)!r} is not writable ({error.strerror}); give --out a writable folder."
        ) from error


def check_file(path: Path) -> None:
    """Raise, before any work, if a file cannot be written at ``path``; leave no trace."""
    if not path.name or path.is_dir():
        raise RobGIBError(f"output file {str(path)!r} is a folder; give --out the name of a file.")
    check_writable(path.parent)


_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # a folder may be shared by several machines


def _mark() -> str:
    """Return the ending of unfinished files' names: this machine and process, before random letters."""
    return f"{_HOST}-{os.getpid()}"


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none; there links need a right of their own


def _fresh(target: Path) -> tuple[int, Path]:
    """Open a new file beside ``target`` for writing, under an unpredictable name, following no link."""
    place = target.with_name(f".{target.name}.{_mark()}.{secrets.token_hex(8)}")
    return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), place


def _ours(place: Path) -> bool:
    """Whether a file or folder belongs to this user and is no link; others can write into shared folders."""
    status = place.lstat()
    return not stat.S_ISLNK(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _sweep(target: Path) -> None:
    """Remove the remains of killed processes at ``target``; restore a version that one had moved aside."""
    for remains in target.parent.glob(f".{glob.escape(target.name)}.{_HOST}-*"):
        owner = remains.name.rpartition(f"{_HOST}-")[2].partition(".")[0]
        if not owner.isdigit() or _lives(int(owner)) or not _ours(remains):
            continue
        former = remains / "former"
        if former.exists() and not target.exists():
            os.replace(former, target)
        if remains.is_dir():
            shutil.rmtree(remains, ignore_errors=True)
        else:
            remains.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_file(target: Path, content: bytes) -> None:
    """Write a file atomically; make its folder."""
    if not target.name or target.is_dir():
        raise RobGIBError(f"cannot write {target}: it is a folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        opened, temporary = _fresh(target)
        try:
            with open(opened, "wb") as file:
                file.write(content)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}.") from error


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block succeeds, and is removed when it fails.

    What a process that was killed left of it goes with the next one that is made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary = _beside(target)
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}; give --out another folder.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            former = _beside(target)
            os.replace(target, former / "former")
            os.replace(temporary, target)
            shutil.rmtree(former, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A fresh hidden folder beside ``target``."""
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.{_mark()}.", dir=target.parent))


class Parts:
    """Finished parts of a long computation, kept in a folder until the result is written; without a folder none.

    The words of a key identify a part, which maps names to arrays or JSON values.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = Parts(Path(folder))
    ...     kept.at("attack", "pgd").write({"right": np.ones(2), "seconds": 1.5})
    ...     kept.at("attack").at("pgd").read()["seconds"], kept.at("attack", "fgsm").read()
    (1.5, None)
    """

    def __init__(self, folder: Path | None = None, key: tuple[str, ...] = ()) -> None:
        self.folder, self.key = folder, key
        self._failed: list[str] = []  # shared by all parts: what was said once is not said again

    def at(self, *words: str) -> Parts:
        """Return the parts below a name that these words form."""
        other = Parts(self.folder, (*self.key, *words))
        other._failed = self._failed
        return other

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{digest(self.key)[:16]}.npz"

    def read(self) -> dict[str, Any] | None:
        """Return the part, or None if there is none or it cannot be read."""
        if self.folder is None or self.folder.is_symlink() or not self._file.is_file():
            return None
        try:
            with np.load(self._file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            content: dict[str, Any] = json.loads(str(arrays.pop("json")))
        except Exception:  # numpy's reader raises of all kinds where a file is damaged: the part is made again
            return None
        return {**content, **arrays}

    def write(self, content: Mapping[str, Any]) -> None:
        """Keep a part in place of a former one; if it cannot be written, warn and keep none from then on."""
        if self.folder is None or self._failed:
            return
        if self.folder.is_symlink():  # the folder's name is predictable, and a link may point anywhere
            self._failed.append(str(self.folder))
            sentence = f"finished parts cannot be kept: {self.folder} is a symbolic link; remove it."
            warnings.warn(sentence, RobGIBWarning, stacklevel=2)
            return
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        rest = json.dumps({k: v for k, v in content.items() if k not in arrays}, default=lambda value: value.item())
        buffer = io.BytesIO()
        np.savez(buffer, json=np.array(rest), **arrays)  # type: ignore[arg-type]
        try:
            write_file(self._file, buffer.getvalue())
        except RobGIBError as error:
            self._failed.append(str(error))
            warnings.warn(f"finished parts cannot be kept: {error}", RobGIBWarning, stacklevel=2)

    def clear(self) -> None:
        """Remove all parts, also those of other keys, once the result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


_OLD = 30 * 86_400  # seconds after which parts of a work that nobody took up again go


def parts_in(folder: Path) -> Parts:
    """Return the parts in ``folder``; delete other computations' parts that are a month old."""
    for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
        with suppress(OSError):
            if other != folder and time.time() - other.stat().st_mtime > _OLD:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
    return Parts(folder)


@contextmanager
def alone(
    target: Path, doing: str = "is on it", progress: Callable[[str, int, int], None] | None = None
) -> Iterator[bool]:
    """Let one process at a time work at ``target``, by a lock file that the system frees when the process ends.

    While another process holds the lock, the context waits; ``progress`` reports once that another process is
    ``doing`` so. Yields whether there is a lock: if none can be created, the work continues without one.
    """
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress(f"waiting: another process {doing}", 0, 1)
            lock.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            if not target.exists():
                Path(lock.lock_file).unlink()
        lock.release()


def cache_folder() -> Path:
    """Return the folder of checkpoints and downloads: ``ROBGIB_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("ROBGIB_CACHE") or platformdirs.user_cache_dir("robgib"))


def sha256(path: Path) -> str:
    """SHA-256 digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


MOST_BYTES = 4 * 2**30
"""Of a download whose size nobody states."""


def download(
    url: str,
    target: Path,
    digest: str,
    name: str,
    progress: Callable[[str, int, int, str], None] | None = None,
    size: int | None = None,
) -> None:
    """Download ``url`` to ``target`` atomically.

    What comes is kept beside it as ``.part``, and the next try goes on after it.

    Args:
        url: http or https; what it redirects to, too.
        target: where it goes.
        digest: its SHA-256 digest.
        name: of what it is, for messages.
        progress: called with the bytes so far.
        size: its bytes; None takes what the server says, and :data:`MOST_BYTES` at most.

    Raises:
        RobGIBError: it cannot be downloaded, is larger than was promised or than the disk, or another file.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, name, progress, size)
    except _TooMuch as error:
        part.unlink(missing_ok=True)
        raise RobGIBError(f"model {name!r}: {url} {error}; nothing was kept.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        with suppress(OSError):
            if part.lstat().st_size == 0:
                part.unlink()
        raise RobGIBError(
            f"model {name!r}: {url} could not be downloaded ({error}); the received part is kept for the next attempt."
        ) from error
    actual = sha256(part)
    if actual != digest:
        part.unlink()
        raise RobGIBError(
            f"model {name!r}: the file from {url} has the SHA-256 digest {actual}, but the recipe states {digest}; it "
            "was not kept."
        )
    os.replace(part, target)


class _TooMuch(Exception):
    """A download larger than stated, or than the free space."""


class _Redirected(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        """See urllib."""
        if not newurl.lower().startswith(("http://", "https://")):
            raise ValueError(f"it redirects to {newurl!r}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener of http and https alone; urllib's own also reads files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirected,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _to_go_on(part: Path) -> IO[bytes]:
    """Open the partial file to read and append; make a new one unless it is this user's own."""
    if os.path.lexists(part):
        status = part.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not _ours(part):
            part.unlink()
    # In the folder of downloads nothing else has this name, and nobody who may not write there can put a link in.
    return open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o666), "a+b")


def _fetch(
    url: str,
    part: Path,
    name: str,
    progress: Callable[[str, int, int, str], None] | None,
    size: int | None,
) -> None:
    with _to_go_on(part) as file:
        received = os.fstat(file.fileno()).st_size
        if size is not None and received > size:  # of another file
            received = 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})
        try:
            answer = _opener().open(request, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # there is nothing after what is held: the digest will tell whether that is all
                return
            raise
        with answer:
            if not received or answer.status != 206:
                file.truncate(0)
                received = 0
            total = _promised(answer, received, size, part)
            most = total or MOST_BYTES
            while chunk := answer.read(1 << 20):
                received += len(chunk)
                if received > most:
                    raise _TooMuch(f"sends more than {most:,} bytes{'' if total else ' and does not state a size'}")
                file.write(chunk)
                if progress:
                    progress(f"downloading {name}", received, total or received, f"{received / 1e6:.1f} MB")
    if total and received < total:
        raise OSError(f"it ended after {received} of {total} bytes")


def _promised(answer: http.client.HTTPResponse, received: int, size: int | None, part: Path) -> int:
    """Return the size of the whole file in bytes: as stated, or by the server's header; 0 is unknown."""
    length = str(answer.headers.get("Content-Length") or "")
    coming = received + int(length) if length.isdecimal() and len(length) < 20 else 0
    if size is not None and coming and coming != size:
        raise _TooMuch(f"has {coming:,} bytes, but the recipe states {size:,}")
    if size is None and coming > MOST_BYTES:
        raise _TooMuch(f"has {coming:,} bytes, more than {MOST_BYTES:,}: state its size in the recipe")
    total = coming if size is None else size
    if total - received > (free := shutil.disk_usage(part.parent).free):
        raise _TooMuch(f"has {total:,} bytes, but {part.parent} has room for {free:,} only")
    return total
