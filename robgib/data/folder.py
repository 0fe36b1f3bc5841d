"""Pictures in folders named for their classes, read on demand."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from robgib.data.dataset import COLOUR_EPS, Bounds, Dataset, Split, check_brightness, drawn_order, stratified
from robgib.data.lazy import LazyImages
from robgib.data.sizing import Sizing
from robgib.errors import RobGIBError, RobGIBWarning, first_line, number_text, visible
from robgib.files import cache_folder, digest, write_file

__all__ = ["read_folder"]

_THREADS = 4
_TESTS = ("test", "val", "validation", "valid")
_ENDINGS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Endings of pictures' names: torchvision's, and .gif."""
_SETTLED = 2.0  # seconds after which a file that changes again gets another time stamp, whatever its file system
_LOOKED_AT = 32  # pictures in which a white is looked for
_READER = 1  # version of how pictures are read, of which what is kept about a folder is a part


def read_folder(path: Path, seed: int, sizing: Sizing | None = None, bounds: Bounds | None = None) -> Dataset:
    """Read pictures in folders named for their classes: below ``train`` and ``test`` (or ``val``), or all for testing.

    8-bit pictures, 1-bit ones and those with a palette, 16-bit greys (of which 65535 is 1) and floats in [0, 1] are
    taken for what they are; what has no one meaning, such as transparency, is refused. Grey pictures among coloured
    ones get three equal channels. Pictures are turned upright as their EXIF orientation says. The test pictures are in
    an order of which every beginning holds the classes by their shares.

    A class is a folder, as torchvision's ImageFolder has it, with all pictures below it. Left out, which one warning
    says, are names that begin with a dot, files whose ending is no picture's, folders inside a class that are symbolic
    links, symbolic links to what the folder holds anyway, and all frames but the first. Symbolic links to pictures
    elsewhere are followed, which the warning says, too.

    Only the pictures' heads are read, and not even those if the cache has a record of the folder, by the names,
    sizes and times of its files.

    Args:
        path: the folder.
        seed: of the order, and of the split for validation.
        sizing: how pictures are resized and cropped; needed where they differ in size.
        bounds: the numbers of 8-bit pictures that mean black and white; None is 0 and 255.

    Raises:
        RobGIBError: no pictures, a class without any, or such as cannot be read, or of several sizes.
    """
    notes = _Notes()
    inside = {p.name for p in _folders(path)}
    tests = [name for name in _TESTS if name in inside and ("train" in inside or inside <= set(_TESTS))]
    if inside == {"train"}:
        raise RobGIBError(f"{path} holds train/ but no test/ or val/; give the folder of the test pictures.")
    if tests:
        notes.folders += [str(path / name) for name in sorted(inside - {"train", tests[0]})]
    unseen = _Pictures(path / tests[0] if tests else path, sizing, bounds, notes, path)
    learnt = _Pictures(path / "train", sizing, bounds, notes, path) if tests and "train" in inside else None
    if learnt is not None and learnt.classes != unseen.classes:
        raise RobGIBError(f"{path / 'train'} and {path / tests[0]} must hold the same classes.")
    if learnt is not None and learnt.shape != unseen.shape:
        raise RobGIBError(
            f"the pictures of {path / 'train'} are {learnt.shape} and those of {path / tests[0]} {unseen.shape}; "
            "bring all to one size (--input-size) and mode."
        )
    notes.warn(path)
    none = Split(torch.zeros((0, *unseen.shape)), torch.zeros(0, dtype=torch.int64))
    train, val = none, none
    if learnt is not None:
        parts = stratified(learnt.labels, (11 / 12, 1 / 12), seed)
        train, val = (learnt.split(part) for part in parts)
    test = unseen.split(drawn_order(unseen.labels, seed))
    return Dataset(f"folder:{path.name}", train, val, test, unseen.classes, COLOUR_EPS, by_name=True)


@dataclass
class _Notes:
    """Files that a folder's reader skipped, and pictures that it changed."""

    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)

    def warn(self, path: Path) -> None:
        """Report all of it in one warning."""
        kinds = (
            (self.hidden, "whose names begin with a dot"),
            (self.folders, "that are neither train nor test"),
            (self.links, "that are symbolic links to folders"),
            (self.again, "that are symbolic links to other pictures of the folder"),
            (self.others, f"without a picture's ending ({', '.join(_ENDINGS)})"),
        )
        left_out = [f"{len(names)} {what} ({_some(names, path)})" for names, what in kinds if names]
        parts = [f"left out: {', '.join(left_out)}"] if left_out else []
        if self.frames:
            parts.append(f"of {len(self.frames)} only the first frame is read ({_some(self.frames, path)})")
        if self.followed:
            parts.append(f"{len(self.followed)} are symbolic links to files elsewhere ({_some(self.followed, path)})")
        if self.turned:
            parts.append(
                f"{len(self.turned)} are rotated by their EXIF orientation ({_some(self.turned, path)}), unlike in "
                "torchvision's ImageFolder"
            )
        if parts:
            warnings.warn(f"folder {path}: {'; '.join(parts)}.", RobGIBWarning, stacklevel=3)


def _some(names: Sequence[str], path: Path) -> str:
    shown = [visible(os.path.relpath(name, path)) for name in names[:3]]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _folders(path: Path, notes: _Notes | None = None) -> list[Path]:
    """Return the subfolders by name, without hidden ones and links to a parent or to one of them."""
    whole = path.resolve()
    try:
        inside = sorted(p for p in path.iterdir() if p.is_dir())
    except OSError as error:
        raise RobGIBError(f"{path} cannot be read: {error.strerror or error}.") from error
    folders = []
    for one in inside:
        if one.name.startswith("."):
            if notes:
                notes.hidden.append(str(one))
        elif one.is_symlink() and (whole.is_relative_to(one.resolve()) or one.resolve().is_relative_to(whole)):
            # It would hold all classes, or another class once more.
            if notes:
                notes.links.append(str(one))
        else:
            folders.append(one)
    return folders


def _files_of(folder: Path, notes: _Notes, root: Path) -> list[str]:
    """Return the pictures below the folder of a class, in order; ``root`` is the folder that the user named."""
    pictures: list[str] = []

    def stop(error: OSError) -> None:
        raise RobGIBError(f"{error.filename} cannot be read: {error.strerror or error}.") from error

    for where, inside, files in os.walk(folder, onerror=stop):
        links = [name for name in inside if os.path.islink(os.path.join(where, name))]
        hidden = [name for name in (*inside, *files) if name.startswith(".")]
        notes.hidden += [os.path.join(where, name) for name in hidden]
        notes.links += [os.path.join(where, name) for name in links if name not in hidden]
        inside[:] = sorted(set(inside) - set(links) - set(hidden))
        for name in sorted(set(files) - set(hidden)):
            whole = os.path.join(where, name)
            if not name.lower().endswith(_ENDINGS):
                notes.others.append(whole)
            elif not os.path.islink(whole):
                pictures.append(whole)
            elif _is_listed(whole, root):  # under its own class
                notes.again.append(whole)
            else:
                notes.followed.append(whole)
                pictures.append(whole)
    if not pictures:
        raise RobGIBError(
            f"the class folder {folder} holds no pictures ({', '.join(_ENDINGS)}); remove it, or add pictures."
        )
    return sorted(pictures)


def _is_listed(link: str, root: Path) -> bool:
    """Whether a symbolic link leads to a picture that is below ``root`` anyway."""
    target, whole = Path(os.path.realpath(link)), root.resolve()
    if not target.is_relative_to(whole) or not target.name.lower().endswith(_ENDINGS):
        return False
    return not any(part.startswith(".") for part in target.relative_to(whole).parts)


_Mark = tuple[int, int, int, int, int]


def _mark(name: str) -> _Mark:
    """Return the facts that identify an unchanged file: device, inode, size and times."""
    try:
        status = os.stat(name)
    except OSError as error:
        raise RobGIBError(f"picture {name} cannot be read: {error.strerror or error}.") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Pictures:
    """The pictures of one folder: a source of images."""

    def __init__(self, folder: Path, sizing: Sizing | None, bounds: Bounds | None, notes: _Notes, root: Path) -> None:
        classes = _folders(folder, notes)
        if not classes:
            raise RobGIBError(f"{folder} holds no folders of pictures named for their classes.")
        listed = [_files_of(one, notes, root) for one in classes]
        self._files = [name for names in listed for name in names]
        self._sizing, self._bounds = sizing or Sizing(), bounds
        self.labels = np.repeat(np.arange(len(classes)), [len(names) for names in listed])
        self.classes = tuple(one.name for one in classes)
        self._marks = [_mark(name) for name in self._files]
        self._kept = _Kept(folder, self._files, self._marks, f"{self._sizing} {bounds}")
        if self._kept.found is None:
            self._kept.found = self._look()
            self._kept.write()
        listing = self._kept.found
        self._colours = listing["shape"][0]
        self.shape: tuple[int, ...] = tuple(listing["shape"])
        notes.frames += [self._files[i] for i in listing["frames"]]
        notes.turned += [self._files[i] for i in listing["turned"]]

    def _look(self) -> dict[str, Any]:
        """Read the headers of all files, and a few whole pictures."""
        with ThreadPoolExecutor(_THREADS) as pool:
            looks = list(pool.map(_look, self._files))
        sizes = {look.size for look in looks}
        out = sorted({self._size(name, *look.size) for name, look in zip(self._files, looks, strict=True)})
        if len(out) > 1:
            other = next(i for i, look in enumerate(looks) if look.size != looks[0].size)
            raise RobGIBError(
                f"{self._files[other]} is {'x'.join(map(str, looks[other].size))} and {self._files[0]} is "
                f"{'x'.join(map(str, looks[0].size))} ({len(sizes)} sizes in all); bring them to one, with "
                "--input-size or --resize and --crop."
            )
        self._colours = 3 if any(look.coloured for look in looks) else 1
        self.shape = (self._colours, *out[0])
        if self._bounds is None:
            some = [self.read(row) for row in drawn_order(self.labels, 0)[:_LOOKED_AT]]
            if all(pixels.dtype == np.uint8 for pixels in some):
                what = f"the pictures of {Path(self._files[0]).parent.parent}"
                check_brightness(max(int(pixels.max()) for pixels in some), what)
        return {
            "shape": list(self.shape),
            "frames": [i for i, look in enumerate(looks) if look.frames],
            "turned": [i for i, look in enumerate(looks) if look.turned],
        }

    def _size(self, name: str, height: int, width: int) -> tuple[int, int]:
        try:
            return self._sizing.size(height, width)
        except RobGIBError as error:
            raise RobGIBError(f"{name}: {error}") from error

    def split(self, rows: np.ndarray) -> Split:
        """Return a split of some pictures, still unread."""
        images: Any = LazyImages(self, rows)
        return Split(images, torch.from_numpy(self.labels[rows]), shuffled=True)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the paths of some pictures."""
        return [self._files[row] for row in rows]

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Return digests of the files and of how they are resized."""
        if self._kept.digests is None:
            with ThreadPoolExecutor(_THREADS) as pool:
                digests = list(pool.map(self._digest, range(len(self._files))))
            self._kept.digests = digests
            self._kept.write()
        return [self._kept.digests[row] for row in rows]

    def _digest(self, row: int) -> bytes:
        self._check(row)
        try:
            content = Path(self._files[row]).read_bytes()
        except OSError as error:
            raise RobGIBError(f"picture {self._files[row]} cannot be read: {error.strerror or error}.") from error
        how = str(self._sizing) + ("" if self._bounds is None else str(self._bounds))
        return hashlib.sha256(content + how.encode()).digest()

    def _check(self, row: int) -> None:
        if _mark(self._files[row]) != self._marks[row]:
            raise RobGIBError(
                f"picture {self._files[row]} has changed since its folder was listed; start again, and do not change "
                "pictures while they are used."
            )

    def read(self, row: int) -> np.ndarray:
        """Pixels (C, H, W) of one picture."""
        name = self._files[row]
        self._check(row)
        with _opened(name) as picture:
            pixels = _upright(_pixels(picture, name), picture)
        if self._sizing.changes:
            if pixels.dtype == np.uint8:
                pixels = np.asarray(self._sizing.picture(Image.fromarray(pixels)))
            else:
                pixels = self._sizing.images(torch.from_numpy(np.array(pixels))[None, None])[0, 0].numpy()
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self._bounds is not None and planes.dtype == np.uint8:
            low, high = self._bounds
            planes = ((planes - np.float32(low)) / np.float32(high - low)).astype(np.float32)
            if planes.min() < 0 or planes.max() > 1:
                raise RobGIBError(f"{name} has values outside the bounds {low:g} and {high:g}; correct the bounds.")
        return np.array(np.broadcast_to(planes, (self._colours, *planes.shape[1:])))


class _Kept:
    """The cache's record of a folder's pictures: their shape, and digests once computed.

    It is true as long as the files are the same by name, size and times, which :func:`_mark` has.
    """

    def __init__(self, folder: Path, files: Sequence[str], marks: Sequence[_Mark], how: str) -> None:
        names = [os.path.relpath(name, folder) for name in files]
        self._key = digest([_READER, how, names, marks])
        self._path = cache_folder() / "folders" / f"{digest([str(folder.resolve()), how])[:32]}.npz"
        self._settled = time.time() - max(max(m[3:]) for m in marks) / 1e9 > _SETTLED
        self.found: dict[str, Any] | None = None
        self.digests: list[bytes] | None = None
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                if str(archive["key"]) != self._key:
                    return
                listing = {name: archive[name].tolist() for name in ("shape", "frames", "turned")}
                digests = archive["digests"]
        except Exception:  # not there or damaged: it is made anew
            return
        self.found = listing
        self.digests = [row.tobytes() for row in digests] if len(digests) == len(files) else None

    def write(self) -> None:
        """Write the record, unless a file is so new that a change could go unnoticed."""
        if not self._settled or self.found is None:
            return
        digests = np.frombuffer(b"".join(self.digests or ()), np.uint8).reshape(-1, 32)
        numbers = {name: np.array(values, dtype=np.int64) for name, values in self.found.items()}
        content = io.BytesIO()
        np.savez(content, key=np.array(self._key), digests=digests, **numbers)  # type: ignore[arg-type]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, content.getvalue())
        except (OSError, RobGIBError):  # a cache that cannot be written to is done without
            return


@contextmanager
def _opened(name: str) -> Any:
    try:
        # By a file, not its name: Pillow maps files that it opens itself into memory, and then takes rows of a turned
        # TIFF for columns.
        with open(name, "rb") as file, Image.open(file, formats=_FORMATS) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise RobGIBError(f"{name} is not a readable picture: {first_line(error)}.") from error


@dataclass(frozen=True)
class _Look:
    """A picture's header: its upright size, and whether it is coloured, rotated, or the first of several frames."""

    size: tuple[int, int]
    coloured: bool
    turned: bool
    frames: bool


def _look(name: str) -> _Look:
    if not Path(name).is_file():  # a pipe, which would be waited for
        raise RobGIBError(f"picture {name} is no regular file; remove it.")
    with _opened(name) as picture:
        grey = picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith(("I", "F"))
        turn = _orientation(picture)
        if turn > 1 and picture.format == "TIFF":
            picture.load()  # Pillow turns these itself
        swapped = turn >= 5 and picture.format != "TIFF"
        size = (picture.width, picture.height) if swapped else (picture.height, picture.width)
        several = picture.format in _ANIMATED and bool(getattr(picture, "is_animated", False))
        return _Look(size, not grey, turn > 1, several)


_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture: 1 is upright, 5 to 8 change height and width."""
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # of whatever kind its damaged metadata raise
        return 1
    return orientation if orientation in _TURNS else 1


_TURNS: dict[Any, Any] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}
"""What turns pixels (H, W, ...) of an EXIF orientation upright."""


def _upright(pixels: np.ndarray, picture: Image.Image) -> np.ndarray:
    turn = _TURNS.get(_orientation(picture))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are read: Pillow decides by content, and supports formats that start another program."""


def _pixels(picture: Image.Image, name: str) -> np.ndarray:
    """Pixels (H, W) of a grey picture or (H, W, 3) of a coloured one: bytes, or float32 in [0, 1].

    Raises:
        RobGIBError: the brightness that the picture's values stand for is unknown.
    """
    mode, kind = picture.mode, picture.format
    tags = getattr(picture, "tag_v2", {})
    if 2 in np.atleast_1d(tags.get(339, (1,))):
        raise RobGIBError(f"{name} has signed values, whose white is unknown; save it unsigned.")
    if mode.startswith(("I", "F")):
        return _grey_numbers(picture, name, tags)
    if _depth(name, kind, tags) > 8:
        raise RobGIBError(
            f"{name} has more than 8 bits per colour, of which only 8 can be read; save it with 8, or grey."
        )
    if mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise RobGIBError(
                f"{name} has transparent pixels, whose colour depends on the background; save it on a background."
            )
    if mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))
    if mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        return np.asarray(picture.convert("RGB"))
    raise RobGIBError(f"{name} has the mode {mode}, whose colours are unknown; save it as RGB or grey.")


def _grey_numbers(picture: Image.Image, name: str, tags: Mapping[int, Any]) -> np.ndarray:
    """Pixels (H, W) in [0, 1] of a grey picture whose values are integers of 16 bits, or floats in [0, 1]."""
    mode = picture.mode
    # Pillow gives a TIFF's numbers as they lie, whatever their depth and whether 0 is black.
    depth = tags.get(258, (16,)) if mode.startswith("I") else (32,)
    usual = tags.get(262, 1) == 1 and "transparency" not in picture.info
    plain = usual and tuple(np.atleast_1d(depth)) in ((16,), (32,))
    numbers = np.asarray(picture)
    sixteen = mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM"))
    if plain and sixteen and numbers.min() >= 0 and numbers.max() <= 65535:
        return (numbers / np.float32(65535)).astype(np.float32)
    if plain and mode == "F" and numbers.min() >= 0 and numbers.max() <= 1:
        return numbers.astype(np.float32)
    low, high = number_text(numbers.min()), number_text(numbers.max())
    raise RobGIBError(
        f"{name} has values from {low} to {high} (mode {mode}), whose white "
        "is unknown; save it with 8 or 16 bits, or as floats in [0, 1]."
    )


def _depth(name: str, kind: str | None, tags: Mapping[int, Any]) -> int:
    """Return the bits per value in a picture's file."""
    with open(name, "rb") as file:
        head = file.read(200)
    if kind == "PNG":
        return head[24]
    if kind == "PPM" and head[:2] in (b"P3", b"P6"):
        words = re.sub(rb"#[^\n]*\n", b" ", head).split()
        return int(words[3]).bit_length()
    return int(np.max(tags.get(258, (8,))))
