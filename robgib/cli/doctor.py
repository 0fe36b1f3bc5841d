"""``robgib doctor``: report what is installed, where files are stored, and what is broken."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

import robgib
from robgib.cli.common import out
from robgib.errors import RobGIBError, first_line
from robgib.files import cache_folder, check_writable

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_NO_EXTRA = ("test",)  # for developers
_STATES = {
    "works": "works",
    "mended": "works inside RobGIB, broken elsewhere",
    "absent": "not installed",
    "broken": "cannot be imported",
    "": "unknown, since torch cannot be imported",
}
_MENDED = "only RobGIB can import it: it was built for another torch, and `import torchvision` fails elsewhere"


@dataclass(frozen=True)
class Problem:
    """What is broken, and how to repair it: a command, or a sentence."""

    what: str
    remedy: str


@dataclass
class Diagnosis:
    """The state of an installation.

    Attributes:
        versions: of Python and the packages, by name; empty for a package that is not installed.
        devices: description of each device, by its name for ``--device``.
        torchvision: its ``state`` (``works``, ``mended``, ``absent`` or ``broken``).
        folders: the cache with its size and free space in bytes, and the folders of the catalogue.
        extras: by name: whether each is ``installed``, the ``versions`` of its packages, and the line that installs it.
        problems: what is broken.
    """

    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    torchvision: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for scripts.")] = False,
) -> None:
    """Report what is installed, where files are stored, and what is broken; exit with 1 if something is broken."""
    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps({"ok": not diagnosis.problems, **asdict(diagnosis)}, indent=2))
    else:
        _show(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(1)


def diagnose() -> Diagnosis:
    """Inspect the packages, the devices and the folders."""
    diagnosis = Diagnosis()
    diagnosis.versions = {"python": platform.python_version(), "robgib": robgib.__version__}
    diagnosis.versions |= {name: _version(name) for name in ("torch", "torchvision")}
    _look_at_torch(diagnosis)
    _look_at_packages(diagnosis, *_requirements())
    _look_at_folders(diagnosis)
    return diagnosis


def _version(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _requirements() -> tuple[list[Requirement], list[str]]:
    """RobGIB's requirements, and its extras for users; none if it runs from source without installation."""
    try:
        about = metadata.metadata("robgib")
    except metadata.PackageNotFoundError:
        return [], []
    extras = sorted(set(about.get_all("Provides-Extra") or ()).difference(_NO_EXTRA))
    return [Requirement(line) for line in about.get_all("Requires-Dist") or ()], extras


def _look_at_torch(diagnosis: Diagnosis) -> None:
    """Add the devices, and whether torchvision matches torch."""
    try:
        torch = importlib.import_module("torch")
        diagnosis.devices["cpu"] = f"{os.cpu_count()} cores"
        for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            memory = torch.cuda.get_device_properties(k).total_memory / 2**30
            diagnosis.devices[f"cuda:{k}"] = f"{torch.cuda.get_device_name(k)}, {memory:.0f} GiB"
        state, why = importlib.import_module("robgib._torchvision").torchvision_state()
    except Exception as error:
        what = f"torch cannot be imported: {first_line(error)}"
        diagnosis.problems.append(Problem(what, "pip install --force-reinstall torch torchvision"))
        return
    diagnosis.torchvision["state"] = state
    if state != "works":
        whats = {"mended": _MENDED, "absent": "it is not installed", "broken": f"it cannot be imported: {why}"}
        diagnosis.problems.append(Problem(f"torchvision: {whats[state]}", torchvision_line(torch.__version__)))


def torchvision_line(torch_version: str) -> str:
    """Return the command that installs the torchvision of the same release as a version of torch.

    >>> print(torchvision_line("2.13.0+cpu"))
    pip install --force-reinstall --no-deps "torchvision==0.28.*" \\
        --index-url https://download.pytorch.org/whl/cpu
    >>> print(torchvision_line("2.6.0"))
    pip install --force-reinstall --no-deps "torchvision==0.21.*"
    """
    release, _, build = torch_version.partition("+")
    fitting = int(release.split(".")[1]) + 15  # torch 2.6 and torchvision 0.21 are one release, and so on
    line = f'pip install --force-reinstall --no-deps "torchvision==0.{fitting}.*"'
    if build == "cpu":
        return f"{line} \\\n    --index-url {_CPU_INDEX}"
    return f"{line}  # from the index that torch came from" if build else line


def _unmet(requirement: Requirement) -> str:
    """A sentence if a package is missing or has an unsuitable version; otherwise empty."""
    version = _version(requirement.name)
    if not version:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed, but {requirement.specifier} is required"
    return ""


def _wanted(requirement: Requirement, extra: str) -> bool:
    """Whether this Python on this system requires it, with the extra. A requirement without conditions always holds."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _look_at_packages(diagnosis: Diagnosis, requirements: list[Requirement], extras: list[str]) -> None:
    """Add the extras, and the faults of the packages that RobGIB requires."""
    core = [r for r in requirements if _wanted(r, "")]
    for requirement in core:
        missing = (
            requirement.name == "torchvision" and diagnosis.torchvision.get("state") == "absent"
        )  # already reported
        if (wrong := _unmet(requirement)) and not missing:
            diagnosis.problems.append(Problem(wrong, f'pip install "{requirement.name}{requirement.specifier}"'))
    for name in extras:
        parts = [r for r in requirements if r not in core and _wanted(r, name)]
        versions = {r.name: _version(r.name) for r in parts}
        line, whole = f'pip install "robgib[{name}]"', all(versions.values())
        diagnosis.extras[name] = {"installed": whole, "versions": versions, "install": line}
        if whole and (wrong := "; ".join(filter(None, map(_unmet, parts)))):
            diagnosis.problems.append(Problem(f"the extra {name}: {wrong}", line))


def _look_at_folders(diagnosis: Diagnosis) -> None:
    """Add the cache and the catalogue, and whether they are usable."""
    cache = cache_folder()
    diagnosis.folders["cache"] = {"path": str(cache), "bytes": _size(cache), "free": None}
    try:
        check_writable(cache)
        place = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.exists())
        diagnosis.folders["cache"]["free"] = shutil.disk_usage(place).free
    except (RobGIBError, OSError):
        what = f"the cache folder {str(cache)!r} is not writable"
        diagnosis.problems.append(Problem(what, "set ROBGIB_CACHE to a writable folder"))
    try:
        paths = dict.fromkeys(str(p) for kind in ("attacks", "zoo") for p in robgib.registry.folders(kind))
        diagnosis.folders["catalogue"] = list(paths)
    except RobGIBError as error:
        diagnosis.folders["catalogue"] = []
        diagnosis.problems.append(Problem(first_line(error), "correct ROBGIB_CATALOGUE"))


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    size = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                size += os.lstat(Path(place) / name).st_size
            except OSError:  # deleted meanwhile
                continue
    return size


def _show(diagnosis: Diagnosis) -> None:
    """Print the report, on one screen of 80 columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    cache = diagnosis.folders["cache"]
    free = "" if cache["free"] is None else f", {cache['free'] / 1e9:.1f} GB free"
    table.add_row("versions", escape(", ".join(f"{k} {v or 'not installed'}" for k, v in diagnosis.versions.items())))
    table.add_row("devices", escape("; ".join(f"{k}: {v}" for k, v in diagnosis.devices.items()) or "none"))
    table.add_row("torchvision", _STATES[diagnosis.torchvision.get("state", "")])
    table.add_row("cache", escape(f"{cache['path']} ({cache['bytes'] / 1e9:.1f} GB{free})"))
    table.add_row("catalogue", escape("\n".join(diagnosis.folders["catalogue"]) or "none"))
    lines = Table.grid(padding=(0, 2))
    for name, extra in diagnosis.extras.items():
        versions = ", ".join(f"{k} {v}" for k, v in extra["versions"].items())
        lines.add_row(escape(name), escape(versions if extra["installed"] else extra["install"]))
    table.add_row("extras", lines if diagnosis.extras else "unknown: RobGIB is not installed as a package")
    out.print(table, highlight=False)
    if not diagnosis.problems:
        out.print("Nothing is broken.")
    for problem in diagnosis.problems:
        out.print(f"[bold red]broken:[/] {escape(problem.what)}.", highlight=False)
        out.print(escape(f"  {problem.remedy}"), highlight=False, soft_wrap=True)
