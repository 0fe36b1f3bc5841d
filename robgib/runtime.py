"""What a computation runs on: the device, versions, progress, and random numbers a sample at a time."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from robgib.errors import RobGIBError, ends_program, first_line, visible
from robgib.progress import Progress

__all__ = [
    "INSIDE",
    "Progress",
    "SampleRNG",
    "end_with",
    "environment",
    "faults_of",
    "first_device",
    "installed_version",
    "network_faults",
    "one_thread",
    "progress_bars",
    "resolve_device",
    "seed_torch",
]


INSIDE = "- "
"""What the name of a task begins with that runs inside another, in many stages; it is over when its total is 0."""
_WIDE = 100  # columns
_QUIET = 30.0  # seconds between two lines about one task, where lines are all there is


@contextmanager
def progress_bars(shown: bool | Progress = True, always: bool = False) -> Iterator[Progress | None]:
    """Yield the receiver of progress reports: bars, a function of the caller, or nothing.

    Args:
        shown: a function is given back; True is a bar for each task under way, on standard error where that is a
            terminal, or in a notebook; False is nothing.
        always: where there is neither terminal nor notebook (a file, a pipe), write a line when a task starts, when it
            ends, and every half minute.
    """
    if not isinstance(shown, bool):
        yield shown
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    notebook = "ipykernel" in sys.modules
    console = Console(stderr=not notebook)
    if not shown or not (always or notebook or console.is_terminal):
        yield None
        return
    if not notebook and not console.is_terminal:
        yield _plain_lines()
        return
    named = 44 if console.width >= _WIDE else 28

    def fixed(width: int) -> Column:
        return Column(width=width, no_wrap=True, overflow="ellipsis")

    with Bars(
        TextColumn("{task.description}", markup=False, table_column=fixed(named)),
        BarColumn(bar_width=8, table_column=fixed(8)),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}", table_column=fixed(11)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed(7)),
        TextColumn(
            "{task.fields[note]}",
            style="dim",
            markup=False,
            table_column=fixed(max(8, console.width - named - 8 - 11 - 7 - 4)),
        ),
        console=console,
    ) as bars:
        known: dict[str, TaskID] = {}

        def report(task: str, done: int, total: int, note: str = "") -> None:
            if task not in known:
                half = (named - 1) // 2
                shown = task if len(task) <= named else f"{task[:half]}…{task[-(named - 1 - half) :]}"
                known[task] = bars.add_task(visible(shown), total=total, note=visible(note))
            bars.update(known[task], completed=done, total=total, note=visible(note))
            inside = task.startswith(INSIDE)
            if done >= total and (total == 0 or not inside):
                finished = known.pop(task)
                bars.stop_task(finished)
                if inside or " at eps=" in task:  # the many small steps of a curve would fill the screen
                    bars.remove_task(finished)

        yield report


def _plain_lines() -> Progress:
    """Progress as lines of text on standard error."""
    last_shown: dict[str, float] = {}
    began: dict[str, float] = {}

    def report(task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        first, last = task not in last_shown, done >= total
        if " at eps=" in task or task.startswith(INSIDE) or not (first or last or now - last_shown[task] >= _QUIET):
            return  # a curve's many small steps would fill the file
        started = began.setdefault(task, now)
        last_shown[task] = now
        took = f", {now - started:.0f} s" if last and not first else ""
        told_now = visible(f"{task}: {done}/{total}{took}{f' ({note})' if note else ''}")
        print(told_now, file=sys.stderr, flush=True)
        if last:
            last_shown.pop(task)
            began.pop(task)

    return report


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise RobGIBError(f"unknown device {str(name)!r}; use cpu, cuda, cuda:N or auto.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RobGIBError(f"device {str(name)!r} is not available: this machine has no CUDA device; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RobGIBError(
            f"device {str(name)!r} is not available: this machine has {torch.cuda.device_count()} CUDA devices."
        )
    if device.type not in ("cpu", "cuda"):
        raise RobGIBError(f"device {str(name)!r} is not supported; use cpu, cuda, cuda:N or auto.")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute at one thread while the context lasts: for networks so small that threads would wait for each other.

    Beside another process such threads spin for their turn, and what takes seconds takes minutes.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools(len(sys.modules)).limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _pools(_modules: int) -> ThreadpoolController:
    """The thread pools of all loaded libraries, looked for again only where a module was imported since."""
    return ThreadpoolController()


def first_device(names: object) -> str:
    """Return the first of several devices, which computes what is not shared.

    >>> first_device("cuda:0,cuda:1"), first_device("cpu")
    ('cuda:0', 'cpu')
    """
    return str(names).split(",")[0].strip()


_LACKING = ("can't allocate memory", "not enough memory", "cannot allocate memory")


@contextmanager
def network_faults() -> Iterator[None]:
    """Run a network of unknown origin; convert its exceptions to those that callers expect.

    Where memory does not suffice it is ``torch.OutOfMemoryError``, as on CUDA: on a CPU torch says otherwise. A network
    that would end the program raises RuntimeError.

    >>> with network_faults():
    ...     raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    Traceback (most recent call last):
    torch.OutOfMemoryError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _LACKING):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
    except BaseException as error:
        if ends_program(error):
            raise RuntimeError(f"it would end the program ({type(error).__name__})") from error
        raise


@contextmanager
def faults_of(who: str) -> Iterator[None]:
    """Run foreign code (a network, a plug-in), and report its exceptions in one sentence that names it.

    Errors of RobGIB, warnings and interrupts stay what they are, and a lack of memory is ``torch.OutOfMemoryError``.

    Raises:
        RobGIBError: the code raised anything else, or would have ended the program.

    >>> with faults_of("the model"):
    ...     raise SystemExit(0)
    Traceback (most recent call last):
    robgib.errors.RobGIBError: the model would end the program (SystemExit); take that out of it.
    """
    try:
        with network_faults():
            yield
    except (RobGIBError, Warning, torch.OutOfMemoryError):
        raise
    except RecursionError as error:
        raise RobGIBError(
            f"{who} nests or calls itself too deeply (RecursionError); flatten it, or raise sys.setrecursionlimit."
        ) from error
    except Exception as error:
        if error.__cause__ is not None and ends_program(error.__cause__):
            ends = type(error.__cause__).__name__
            raise RobGIBError(f"{who} would end the program ({ends}); take that out of it.") from error.__cause__
        raise RobGIBError(f"{who} raised {type(error).__name__}: {first_line(error)}.") from error


_WATCH = 0.5  # seconds between two looks
_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_watched: set[int] = set()


def end_with(parent: int) -> None:
    """End this process when the process ``parent`` ends, also if that is killed (POSIX).

    It stops its own children in turn. In the process ``parent`` itself nothing happens.

    Args:
        parent: number of the process that this one works for.
    """
    if os.name != "posix" or os.getpid() == parent or os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    first = os.getppid()
    if first == parent and sys.platform == "linux":  # at once, whatever this process computes
        ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == first and _lives(parent):
            time.sleep(_WATCH)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="ends with its parent").start()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions of the libraries, and the machine that computed."""
    packages = ("robgib", "torch", "torchvision", "torchattacks", "numpy", "scipy", "scikit-learn", "pandas")
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} cores)",
        "packages": {package: installed_version(package) for package in packages},
    }


@cache  # each look-up parses the package's metadata
def installed_version(package: str) -> str:
    """Version of a package, or that it is not installed.

    >>> installed_version("no-such-package")
    'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def seed_torch(seed: int) -> None:
    """Seed the global generators of torch, of every device that is here.

    :func:`torch.manual_seed` also remembers the call, with its stack, for each kind of device that may come later: a
    millisecond and some kilobytes a call, on a machine that has none.

    >>> seed_torch(3)
    >>> first = torch.rand(2)
    >>> bool((torch.manual_seed(3) and torch.rand(2) == first).all())
    True
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class SampleRNG:
    """Random numbers that depend on the seed, the sample's index and the draw's count alone.

    Neither the batch size nor the device nor the order of the samples changes what a sample draws.
    """

    def __init__(self, seed: int, index: Sequence[int] | Tensor | np.ndarray) -> None:
        self._seed = int(seed)
        self._index = np.asarray(index, dtype=np.int64)
        self._draws = np.zeros(len(self._index), dtype=np.int64)
        self._rows = np.arange(len(self._index))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def index(self) -> np.ndarray:
        """The indices (n,) of the samples."""
        return np.asarray(self._index[self._rows])

    def select(self, mask: Tensor) -> SampleRNG:
        """Return the generator of a subset (boolean mask or row numbers); its draws count here too."""
        chosen = object.__new__(SampleRNG)
        chosen._seed, chosen._index, chosen._draws = self._seed, self._index, self._draws
        chosen._rows = self._rows[mask.cpu().numpy()]
        return chosen

    def generators(self) -> list[np.random.Generator]:
        """Return one fresh generator a sample, for draws of your own."""
        made = []
        for row in self._rows:
            counter = [0, 0, int(self._draws[row]), int(self._index[row])]
            made.append(np.random.Generator(np.random.Philox(key=self._seed & (2**64 - 1), counter=counter)))
            self._draws[row] += 1
        return made

    def uniform(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), float32 (N, *shape)."""
        rows = [g.random(shape, dtype=np.float32) for g in self.generators()]
        return self._stack(rows, shape, device)

    def normal(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32 (N, *shape)."""
        rows = [g.standard_normal(shape, dtype=np.float32) for g in self.generators()]
        return self._stack(rows, shape, device)

    def integers(self, high: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Uniform integers in [0, high), int64 (N, *shape)."""
        rows = [g.integers(high, size=shape) for g in self.generators()]
        return self._stack(rows, shape, device, np.int64)

    @staticmethod
    def _stack(
        rows: list[np.ndarray],
        shape: tuple[int, ...],
        device: torch.device | str,
        dtype: type[np.generic] = np.float32,
    ) -> Tensor:
        stacked = np.stack(rows) if rows else np.zeros((0, *shape), dtype)
        return torch.from_numpy(stacked).to(device)
