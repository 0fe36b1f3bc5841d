"""Run folders: everything one evaluation found, on disk whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from robgib.errors import RobGIBError

__all__ = [
    "CORRUPTION_COLUMNS",
    "SIGN_COLUMNS",
    "TABLES",
    "Run",
    "check_writable",
    "digest",
    "environment",
    "load_run",
    "save_run",
    "write_file",
    "write_whole",
]

TABLES = ("robustness", "outcomes", "curve", "layers", "features", "signs", "corruptions")
SIGN_COLUMNS = ["norm", "eps", "name", "seen", "detail", "meaning"]
CORRUPTION_COLUMNS = ["corruption", "severity", "right", "samples", "accuracy", "low", "high"]
_LATER = {"signs": SIGN_COLUMNS, "corruptions": CORRUPTION_COLUMNS}  # tables that folders of early versions lack
_LATER_COLUMNS = {"robust_accuracy_8bit": np.nan, "undecided": 0, "note": ""}  # and columns of the robustness table


@dataclass(frozen=True)
class Run:
    """One evaluated model.

    Attributes:
        name: the model's name.
        config: everything that determines the result.
        environment: versions and machine.
        robustness: a row an attack: eps, samples, correct, robust, clean and robust accuracy with 95%
            Clopper–Pearson intervals (``low``, ``high``), robust accuracy when adversarial images are rounded to 8
            bits, samples to which the model has no finite answer (``undecided``, none of them robust), seconds, status,
            and a note on what must be known beside the figure. For a model that answers at random ``correct`` and
            ``robust`` are sums of the samples' shares of right answers.
        outcomes: a row a sample and attack: clean and adversarial prediction (-1: not decided), robust, the shares of
            draws answered right on the adversarial image and on its 8-bit copy, L-inf and L2 size.
        curve: a row an attack and eps: samples still right.
        layers: a row a layer, estimator and term: value in bits, 95% interval, saturation, resolution.
        features: a row a layer, estimator and input feature: I(X_i;Z), I(X_-i;Z) and II_i with intervals.
        signs: a row a threat model and check for a failed attack: whether it was seen, what was measured, and what it
            would mean.
        corruptions: a row a common corruption and severity: samples right, accuracy with its interval.
        pictures: per attack the rows, clean and adversarial images of some fooled samples.
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    robustness: pd.DataFrame
    outcomes: pd.DataFrame
    curve: pd.DataFrame
    layers: pd.DataFrame
    features: pd.DataFrame
    signs: pd.DataFrame
    corruptions: pd.DataFrame
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the run's folder: the model's name and the digest of the configuration."""
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name).strip(".-") or "model"
        return f"{safe}-{digest(self.config)[:8]}"

    def save(self, root: str | Path = "runs") -> Path:
        """Write the run folder below ``root`` and return it."""
        return save_run(self, Path(root))

    def report(self, path: str | Path) -> Path:
        """Write the HTML page of this run and return its path."""
        from robgib.reporting import write_report

        return write_report([self], Path(path))


def digest(content: Any) -> str:
    """SHA-256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions of what computed, and on what."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in (
        "robgib",
        "torch",
        "torchvision",
        "torchattacks",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
    ):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} cores)",
        "packages": versions,
    }


def check_writable(root: Path) -> None:
    """Raise before any work is done when a folder cannot be written below ``root``; leave nothing behind."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise RobGIBError(f"output folder {str(root)!r} cannot be made: {place} is a file; give --out a folder.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".robgib-", dir=place))
    except OSError as error:
        raise RobGIBError(
            f"output folder {str(root)!r} is not writable ({error.strerror}); give --out a folder that is."
        ) from error


def write_file(target: Path, content: bytes) -> None:
    """Write a file and its folder, the file whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}.") from error


@contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` when the block ends, and vanishes when it fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}; give --out another folder.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            former = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.replace(target, former / "former")
            os.replace(temporary, target)
            shutil.rmtree(former, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise RobGIBError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_run(run: Run, root: Path, also: Callable[[Path], None] | None = None) -> Path:
    """Write ``root/<name>-<digest>/``, replacing a former one whole.

    ``also`` is called with the folder before it takes its name, to add files to it.
    """
    target = root / run.folder
    with write_whole(target) as folder:
        (folder / "config.json").write_text(json.dumps({"name": run.name, **run.config}, indent=2, default=str) + "\n")
        (folder / "environment.json").write_text(json.dumps(run.environment, indent=2) + "\n")
        for table in TABLES:
            getattr(run, table).to_csv(folder / f"{table}.csv", index=False)
        np.savez_compressed(folder / "pictures.npz", **run.pictures)  # type: ignore[arg-type]
        if also:
            also(folder)
    return target


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RobGIBError: the folder is missing, or is not a whole run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RobGIBError(f"run folder {str(folder)!r} does not exist.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(config.pop("name"))
        tables = {}
        for table in TABLES:
            file = folder / f"{table}.csv"
            later = table in _LATER and not file.exists()
            tables[table] = pd.DataFrame(columns=_LATER[table]) if later else pd.read_csv(file, keep_default_na=True)
        for column, value in _LATER_COLUMNS.items():
            if column not in tables["robustness"]:
                tables["robustness"][column] = value
        for held in tables.values():
            for column in ("note", "reason"):
                if column in held:
                    held[column] = held[column].fillna("")
        with np.load(folder / "pictures.npz", allow_pickle=False) as archive:
            pictures = {k: archive[k] for k in archive.files}
        surroundings = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise RobGIBError(
            f"{str(folder)!r} is not a whole run folder ({type(error).__name__}: {error}); evaluate the model again."
        ) from error
    return Run(name, config, surroundings, pictures=pictures, **tables)
