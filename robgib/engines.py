"""Where calls are computed: in this process, by processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cloudpickle
from joblib.externals.loky import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from joblib.externals.loky.process_executor import BrokenProcessPool

from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.registry import PLUGIN
from robgib.runtime import end_with, resolve_device

__all__ = [
    "ENGINES",
    "HERE",
    "Engine",
    "Returned",
    "Shared",
    "Workers",
    "engine_of",
    "packed",
    "unpacked",
    "workers_of",
]

Name = Literal["local", "ray"]
ENGINES: tuple[Name, ...] = ("local", "ray")


@dataclass(frozen=True)
class Engine:
    """How work is distributed.

    Attributes:
        name: ``local`` (processes of this machine) or ``ray``.
        jobs: number of processes; a Ray cluster takes as many as it has CPUs (or GPUs) for.
        devices: devices of the calls, in turn. On Ray, ``cuda`` requests a GPU for each call.
        address: of a Ray cluster; None starts one on this machine.
    """

    name: Name = "local"
    jobs: int = 1
    devices: tuple[str, ...] = ("cpu",)
    address: str | None = None

    @property
    def alone(self) -> bool:
        """Whether all calls run in this process."""
        return self.name == "local" and self.jobs == 1 and len(self.devices) == 1


HERE = Engine()
"""One process of this machine."""


def engine_of(name: str, jobs: int, device: object, address: str | None) -> Engine:
    """Return the engine that options name.

    Args:
        name: ``local`` or ``ray``.
        jobs: number of processes; as many as there are devices, if that is more.
        device: a device, or several as ``cuda:0,cuda:1``.
        address: of a Ray cluster.

    Raises:
        RobGIBError: there is no such engine or device, or an address without Ray.

    >>> engine_of("local", 1, "cpu,cpu", None)
    Engine(name='local', jobs=2, devices=('cpu', 'cpu'), address=None)
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if address is not None and name != "ray":
        raise RobGIBError("--address needs --engine ray; give --engine ray too.")
    devices = tuple(part.strip() for part in str(device).split(","))
    if name == "local":  # a cluster has devices of its own
        devices = tuple(str(resolve_device(one)) for one in devices)
    return Engine("ray" if name == "ray" else "local", max(jobs, len(devices)), devices, address)


@dataclass(frozen=True)
class Returned:
    """What call ``number`` returned, or the error that ended it."""

    number: int
    value: Any = None
    error: Exception | None = None


class Shared(ABC):
    """A value that many calls use, sent to each machine or process once."""

    @abstractmethod
    def value(self) -> Any:
        """Return the value."""


@dataclass
class Workers(ABC):
    """Compute calls ``function(device, *arguments)``, each on one of the devices of an engine."""

    engine: Engine
    _once: dict[int, tuple[object, Shared]] = field(default_factory=dict)

    @abstractmethod
    def share(self, value: Any) -> Shared:
        """Return a value in the form in which calls receive it."""

    @abstractmethod
    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Returned]:
        """Call the function with each of ``calls``, and yield the results as they are ready.

        If a process or machine dies, its calls run again.
        """

    def share_once(self, owner: object, make: Callable[[], Any]) -> Shared:
        """Share the value that ``make`` returns, once for each ``owner``."""
        if id(owner) not in self._once:
            self._once[id(owner)] = (owner, self.share(make()))  # the owner is kept, so that its id stays its own
        return self._once[id(owner)][1]

    def device_of(self, number: int) -> str:
        """Return the device of call ``number``."""
        return self.engine.devices[number % len(self.engine.devices)]


@contextmanager
def workers_of(engine: Engine) -> Iterator[Workers]:
    """Yield the workers of an engine, and end them afterwards.

    Raises:
        RobGIBError: there is no such Ray cluster, or Ray is not installed.
    """
    if engine.alone:
        yield _Here(engine)
    elif engine.name == "local":
        with tempfile.TemporaryDirectory(prefix="robgib-") as folder:
            pool = _Processes(engine, folder=Path(folder))
            try:
                yield pool
            finally:
                pool.close()
    else:
        with _cluster(engine) as ray:
            yield _Ray(engine, ray=ray)


def packed(what: str, value: Any, save: Callable[[Any, Any, Any], None]) -> bytes:
    """Return a value in a form for other processes; the code of plug-in files goes with it.

    Args:
        what: the value, for the message.
        value: the value.
        save: writes a value into a file with a pickling module, as ``torch.save`` does.

    Raises:
        RobGIBError: it cannot be sent.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(PLUGIN):
            cloudpickle.register_pickle_by_value(module)
    with tempfile.TemporaryFile() as file:
        try:
            save(value, file, cloudpickle)
        except Exception as error:
            raise RobGIBError(
                f"{what} cannot be sent to other processes ({type(error).__name__}: {first_line(error)}); "
                "compute in one process: leave out --jobs, --engine and all devices but one."
            ) from error
        file.seek(0)
        return file.read()


def unpacked(content: bytes) -> Any:
    """Return the value of :func:`packed` with a plain pickler."""
    return cloudpickle.loads(content)


@dataclass(frozen=True)
class _Own(Shared):
    held: Any

    def value(self) -> Any:
        return self.held


class _Here(Workers):
    """Calls in this process, one after another."""

    def share(self, value: Any) -> Shared:
        return _Own(value)

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Returned]:
        for number, call in enumerate(calls):
            try:
                value = function(self.device_of(number), *call)
            except Exception as error:
                yield Returned(number, error=error)
                continue
            yield Returned(number, value)


@lru_cache(maxsize=2)
def _content(path: Path) -> Any:
    return cloudpickle.loads(path.read_bytes())


@dataclass(frozen=True)
class _File(Shared):
    path: Path

    def value(self) -> Any:
        return _content(self.path)


_PATIENCE = 86_400  # seconds that a process waits while others finish a long call


@dataclass
class _Processes(Workers):
    """Calls in processes of this machine.

    If a process dies (for example because memory does not suffice), the calls that were running go again, one at a
    time. It is then known which call ends its process, and only that one fails.
    """

    folder: Path = Path()
    _pool: ProcessPoolExecutor | None = None

    def share(self, value: Any) -> Shared:
        path = self.folder / str(len(list(self.folder.iterdir())))
        path.write_bytes(cloudpickle.dumps(value))
        return _File(path)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(kill_workers=True)
        self._pool = None

    def _submit(self, function: Callable[..., Any], *call: Any) -> Future[Any]:
        # A pool of its own: the one that loky shares within a process is not what joblib expects to find there.
        if self._pool is None:
            # loky ends a worker whose memory grows and starts another, which is no concern of the user.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            self._pool = ProcessPoolExecutor(
                self.engine.jobs, timeout=_PATIENCE, initializer=end_with, initargs=(os.getpid(),)
            )
        return self._pool.submit(function, *call)

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Returned]:
        waiting = list(reversed(range(len(calls))))
        suspects: list[int] = []
        running: dict[Future[Any], int] = {}
        while waiting or suspects or running:
            alone = bool(suspects)
            while len(running) < (1 if alone else self.engine.jobs) and (suspects or (waiting and not alone)):
                number = (suspects or waiting).pop()
                running[self._submit(function, self.device_of(number), *calls[number])] = number
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                number = running.pop(future)
                try:
                    returned = Returned(number, future.result())
                except BrokenProcessPool:
                    self.close()
                    if not alone:
                        suspects += [number, *running.values()]
                        running.clear()
                        break
                    returned = Returned(number, error=RobGIBError(_DIED))
                except Exception as error:
                    returned = Returned(number, error=error)
                yield returned


_DIED = "its process died: it was killed, or memory did not suffice; use fewer jobs."


@contextmanager
def _cluster(engine: Engine) -> Iterator[Any]:
    """Connect to a Ray cluster, or start one on this machine; yield the module ``ray``."""
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
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class _Stored(Shared):
    reference: Any

    def value(self) -> Any:
        import ray

        return ray.get(self.reference)


def _caught(function: Callable[..., Any], device: str, call: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(device, *call), None
    except Exception as error:
        return None, error


@dataclass
class _Ray(Workers):
    """Calls as tasks of a Ray cluster, which runs those of a machine that dies again elsewhere."""

    ray: Any = None

    def share(self, value: Any) -> Shared:
        return _Stored(self.ray.put(value))

    def device_of(self, number: int) -> str:
        return "cuda" if self._gpus else "cpu"

    @property
    def _gpus(self) -> int:
        return 1 if any(device.startswith("cuda") for device in self.engine.devices) else 0

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Returned]:
        remote = self.ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=-1)(_caught)
        waiting = {remote.remote(function, self.device_of(i), call): i for i, call in enumerate(calls)}
        while waiting:
            done, _ = self.ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done[0])
            try:
                value, error = self.ray.get(done[0])
            except self.ray.exceptions.RayError as fault:
                value, error = None, RobGIBError(first_line(fault))
            yield Returned(number, value, error)
