"""The tasks of a study, shared among processes of this machine or a Ray cluster."""

from __future__ import annotations

import io
import math
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.engines import Engine, Returned, Shared, Workers, workers_of
from robgib.errors import RobGIBError
from robgib.files import atomic_directory, cache_folder, write_file
from robgib.runtime import INSIDE, Progress, end_with, faults_of, one_thread
from robgib.zoo.loading import data_of
from robgib.zoo.recipe import Recipe

__all__ = [
    "Task",
    "finish",
    "run_tasks",
]

_SELDOM, _SHORT = 0.25, 5.0  # seconds


@dataclass(frozen=True)
class Task:
    """One piece of work, whose result is a folder.

    Attributes:
        name: of the model.
        target: folder that the result becomes, on the machine that started the study.
        recipe: of the model; its data are loaded once for all tasks.
        work: writes the result into a folder, given that, the data, the device, and a callback for its progress.
        checkpoint: file name in the zoo's cache of the weights that it needs or makes, given the data.
    """

    name: str
    target: Path
    recipe: Recipe
    work: Callable[[Path, Dataset, str, Progress | None], None]
    checkpoint: Callable[[Dataset], str] | None = None


def finish(
    study: str,
    tasks: Sequence[Task],
    before: str,
    total: int,
    engine: Engine,
    data_root: Path | None,
    progress: Progress | None,
) -> dict[str, str]:
    """Run the remaining tasks of a study, and report the progress over all of them.

    Args:
        study: its name.
        tasks: what is left.
        before: what was done with the others before, such as ``measured``.
        total: of all.
        engine: what does the work.
        data_root: folder of the data files.
        progress: called after each task, and while tasks of this machine run.

    Returns:
        The sentence of the error of each task that failed, by name.
    """
    done, errors = total - len(tasks), {}
    if progress and total:
        progress(f"study {study}", done, total, f"{done} {before} before")
    for name, error in run_tasks(tasks, engine, data_root, progress):
        done += 1
        if error:
            errors[name] = error
        if progress:
            failed = f", {len(errors)} failed" if errors else ""
            progress(f"study {study}", done, total, f"{name}{': failed' if error else ''}{failed}")
    return errors


def run_tasks(
    tasks: Sequence[Task], engine: Engine, data_root: Path | None = None, progress: Progress | None = None
) -> Iterator[tuple[str, str]]:
    """Run the tasks in any order, and report the progress of each that runs on this machine.

    A result is stored before its name is yielded, so that finished tasks are kept if the process is killed.

    Yields:
        The name of each finished task, and the sentence of its error, or nothing.

    Raises:
        RobGIBError: an engine that is not there.
    """
    with workers_of(engine) as workers:
        if engine.name == "ray":
            yield from _on_ray(tasks, workers, data_root)
            return
        with _heard(progress, engine) as tell:
            for returned in workers.run(_here, [(task, data_root, tell) for task in tasks]):
                yield tasks[returned.number].name, _error_of(returned) or returned.value


def _error_of(returned: Returned) -> str:
    """Return the message of an error that a task's process ended with; raise an error of the study itself."""
    if returned.error is None:
        return ""
    if isinstance(returned.error, RobGIBError):
        return str(returned.error)
    raise returned.error


Tell = Callable[[tuple[str, int, int, str]], None]


@contextmanager
def _heard(progress: Progress | None, engine: Engine) -> Iterator[Tell | None]:
    """Pass the progress of tasks to the caller's function; other processes send theirs through a queue."""
    if progress is None:
        yield None
        return
    if engine.alone:
        yield lambda report: progress(*report)
        return
    manager = SyncManager()
    manager.start(end_with, (os.getpid(),))
    with manager:
        queue = manager.Queue()

        def listen() -> None:
            while (report := queue.get()) is not None:
                progress(*report)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield queue.put
        finally:
            queue.put(None)
            listener.join(_SHORT)


def _here(device: str, task: Task, data_root: Path | None, tell: Tell | None) -> str:
    """Do a task on this machine; return the message of its error, or nothing."""
    stages = _Stages(f"{INSIDE}{task.name}", tell) if tell else None
    try:
        if stages:
            stages("data", 0, 1)
        data = _data(task.recipe.data, data_root, task.recipe.catalogue)
        with one_thread(), atomic_directory(task.target) as folder, _faults():
            task.work(folder, data, device, stages)
    except RobGIBError as error:
        return str(error)
    finally:
        if stages:
            stages.over()
    return ""


@contextmanager
def _faults() -> Iterator[None]:
    """Turn any error of a task into its result, so that the study continues; a full disk still ends the study."""
    try:
        yield
    except OSError:
        raise
    except BaseException:
        with faults_of("its measurement"):
            raise


class _Stages:
    """The progress of a task in many stages as that of one: the stage is its note. At most a few words a second."""

    def __init__(self, name: str, tell: Tell) -> None:
        self.name, self.tell = name, tell
        self.stage, self.last = "", -math.inf

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if task != self.stage or now - self.last > _SELDOM:
            self.stage, self.last = task, now
            self.tell((self.name, done, total, task.removesuffix(self.name.removeprefix(INSIDE)).strip()))

    def over(self) -> None:
        self.tell((self.name, 0, 0, ""))


@lru_cache(maxsize=1)
def _data(name: str, root: Path | None, catalogue: tuple[Path, ...]) -> Dataset:
    """Return the data of a recipe. The last data set is kept, since consecutive tasks mostly share it."""
    return load_data(name, root, catalogue=catalogue)


def _on_ray(tasks: Sequence[Task], workers: Workers, data_root: Path | None) -> Iterator[tuple[str, str]]:
    loaded: dict[str, Dataset] = {}
    shared: dict[str, Shared] = {}
    sent: list[Task] = []
    calls: list[tuple[Any, ...]] = []
    for task in tasks:
        try:
            data = data_of(task.recipe, data_root, loaded)
        except RobGIBError as error:
            yield task.name, str(error)
            continue
        if task.recipe.data not in shared:
            shared[task.recipe.data] = workers.share(data)  # once for all tasks
        file = task.checkpoint(data) if task.checkpoint else None
        calls.append((task, shared[task.recipe.data], file, _weights(file) if file else {}))
        sent.append(task)
    for returned in workers.run(_there, calls):
        task = sent[returned.number]
        if fault := _error_of(returned):
            yield task.name, fault
            continue
        content, weights, error_text = returned.value
        _keep(weights)
        if not error_text:
            with atomic_directory(task.target) as folder, tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="data")
        yield task.name, error_text


def _weights(file: str) -> dict[str, bytes]:
    """What the zoo's cache holds of a checkpoint: the weights, their record and log, by file name."""
    stem = Path(file).stem
    files = sorted((cache_folder() / "zoo").glob(f"{stem}.*")) if (cache_folder() / "zoo" / file).exists() else []
    return {path.name: path.read_bytes() for path in files}


def _keep(weights: Mapping[str, bytes]) -> None:
    """Put files into this machine's zoo cache that are not there yet."""
    for name, content in weights.items():
        place = cache_folder() / "zoo" / name
        if not place.exists():
            write_file(place, content)


def _there(
    device: str, task: Task, data: Shared, file: str | None, weights: Mapping[str, bytes]
) -> tuple[bytes, dict[str, bytes], str]:
    """Do a task on a machine of the cluster: the packed result, the weights that were made, and the error."""
    _keep(weights)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with one_thread(), _faults():
                task.work(Path(folder), data.value(), device, None)
        except RobGIBError as error:
            return b"", {}, str(error)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path in sorted(Path(folder).rglob("*")):
                archive.add(path, path.relative_to(folder), recursive=False)
        made = {} if file is None or weights else _weights(file)
        return packed.getvalue(), made, ""
