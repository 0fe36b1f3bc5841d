"""Where a study's work is done: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import io
import logging
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
from typing import Any, Literal

from joblib.externals.loky import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from joblib.externals.loky.process_executor import BrokenProcessPool

from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.errors import RobGIBError, first_line
from robgib.files import atomic_directory, cache_folder, write_file
from robgib.runtime import INSIDE, Progress, end_with, faults_of, one_thread
from robgib.zoo.loading import data_of
from robgib.zoo.recipe import Recipe

__all__ = [
    "ENGINES",
    "HERE",
    "Engine",
    "Task",
    "finish",
    "run_tasks",
]

Name = Literal["local", "ray"]
ENGINES: tuple[Name, ...] = ("local", "ray")


@dataclass(frozen=True)
class Engine:
    """How the work of a study is distributed.

    Attributes:
        name: ``local`` (processes of this machine) or ``ray``.
        jobs: processes at once; a Ray cluster takes as many as it has CPUs (or GPUs) for.
        devices: where to compute; several are dealt out in turn. On Ray ``cuda`` asks for a GPU for each task.
        address: of a Ray cluster; None starts one on this machine.
    """

    name: Name = "local"
    jobs: int = 1
    devices: tuple[str, ...] = ("cpu",)
    address: str | None = None


_PATIENCE = 86_400  # seconds
_SELDOM, _SHORT = 0.25, 5.0  # seconds
HERE = Engine()
"""One process of this machine."""


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

    A result is in its place before its name is given: what was finished when the process dies is not lost.

    Yields:
        The name of each finished task, and the sentence of its error, or nothing.

    Raises:
        RobGIBError: an engine that is not there.
    """
    if engine.name == "ray":
        yield from _on_ray(tasks, engine, data_root)
        return
    with _heard(progress, engine.jobs) as tell:
        dealt = [(task, engine.devices[i % len(engine.devices)]) for i, task in enumerate(tasks)]
        if engine.jobs == 1:
            yield from (_here(task, device, data_root, tell) for task, device in dealt)
        else:
            yield from _by_processes(dealt, engine.jobs, data_root, tell)


def _by_processes(
    dealt: Sequence[tuple[Task, str]], jobs: int, data_root: Path | None, tell: Tell | None
) -> Iterator[tuple[str, str]]:
    """Do tasks, each on its device, by so many processes.

    Where a process dies (killed, as a system does that lacks memory), those that were under way go again, one at a
    time: it is then known whose death it was, and only that one fails.
    """
    waiting = list(reversed(dealt))
    suspects: list[tuple[Task, str]] = []
    running: dict[Future[tuple[str, str]], tuple[Task, str]] = {}
    # A pool of its own: the one that loky shares within a process is not what joblib expects to find there.
    pool = _pool(jobs)
    try:
        while waiting or suspects or running:
            alone = bool(suspects)
            while len(running) < (1 if alone else jobs) and (suspects or (waiting and not alone)):
                one = (suspects or waiting).pop()
                running[pool.submit(_here, *one, data_root, tell)] = one
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                one = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    pool = _pool(jobs)
                    if alone:
                        yield one[0].name, "its process died: it was killed, or memory did not suffice; use fewer jobs."
                        continue
                    suspects += [one, *running.values()]
                    running.clear()
                    break
    finally:
        pool.shutdown(kill_workers=True)


def _pool(jobs: int) -> ProcessPoolExecutor:
    """So many processes that end with this one; a worker waits while others finish a long task."""
    return ProcessPoolExecutor(jobs, timeout=_PATIENCE, initializer=end_with, initargs=(os.getpid(),))


Tell = Callable[[tuple[str, int, int, str]], None]


@contextmanager
def _heard(progress: Progress | None, jobs: int) -> Iterator[Tell | None]:
    """What tasks tell their progress with: to the caller's function, from other processes through a queue."""
    if progress is None:
        yield None
        return
    if jobs == 1:
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


def _here(task: Task, device: str, data_root: Path | None, tell: Tell | None) -> tuple[str, str]:
    stages = _Stages(f"{INSIDE}{task.name}", tell) if tell else None
    try:
        if stages:
            stages("data", 0, 1)
        data = _data(task.recipe.data, data_root, task.recipe.catalogue)
        with one_thread(), atomic_directory(task.target) as folder, _faults():
            task.work(folder, data, device, stages)
    except RobGIBError as error:
        return task.name, str(error)
    finally:
        if stages:
            stages.over()
    return task.name, ""


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


def _on_ray(tasks: Sequence[Task], engine: Engine, data_root: Path | None) -> Iterator[tuple[str, str]]:
    try:
        import ray
    except ImportError as error:
        raise RobGIBError("the ray engine needs Ray: pip install 'robgib[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                address=engine.address,
                num_cpus=None if engine.address else engine.jobs,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if engine.address else False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RobGIBError(f"no Ray cluster at {engine.address}: {first_line(error)}") from error
    gpus = 1 if any(d.startswith("cuda") for d in engine.devices) else 0
    device = "cuda" if gpus else "cpu"
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_there)  # a node that dies is made up for
    try:
        loaded: dict[str, Dataset] = {}
        shared: dict[str, Any] = {}
        waiting: dict[Any, Task] = {}
        failed: list[tuple[str, str]] = []
        for task in tasks:
            try:
                data = data_of(task.recipe, data_root, loaded)
            except RobGIBError as error:
                failed.append((task.name, str(error)))
                continue
            if task.recipe.data not in shared:
                shared[task.recipe.data] = ray.put(data)  # once for all tasks
            file = task.checkpoint(data) if task.checkpoint else None
            weights = _weights(file) if file else {}
            waiting[remote.remote(task, shared[task.recipe.data], device, file, weights)] = task
        yield from failed
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(done[0])
            try:
                packed, weights, error_text = ray.get(done[0])
            except ray.exceptions.RayError as fault:
                yield task.name, first_line(fault)
                continue
            _keep(weights)
            if not error_text:
                with atomic_directory(task.target) as folder, tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                    archive.extractall(folder, filter="data")
            yield task.name, error_text
    finally:
        if ours:
            ray.shutdown()


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
    task: Task, data: Dataset, device: str, file: str | None, weights: Mapping[str, bytes]
) -> tuple[bytes, dict[str, bytes], str]:
    """Do a task on a machine of the cluster: the packed result, the weights that were made, and the error."""
    _keep(weights)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with one_thread(), _faults():
                task.work(Path(folder), data, device, None)
        except RobGIBError as error:
            return b"", {}, str(error)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path in sorted(Path(folder).rglob("*")):
                archive.add(path, path.relative_to(folder), recursive=False)
        made = {} if file is None or weights else _weights(file)
        return packed.getvalue(), made, ""
