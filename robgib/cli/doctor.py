"""``robgib doctor``: what is installed, where things are kept, and what is broken."""

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
    "mended": "mended inside RobGIB, broken outside",
    "absent": "not installed",
    "broken": "cannot be imported",
    "": "unknown: it needs torch",
}
_MENDED = "only RobGIB can import it: it was built for another torch, and `import torchvision` fails elsewhere"


@dataclass(frozen=True)
class Problem:
    """What is broken, and what mends it: a command, or a sentence."""

    what: str
    remedy: str


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        versions: by package, and Python's; empty where it is not installed.
        devices: by the name that ``--device`` takes, and what each is.
        torchvision: its ``state`` (``works``, ``mended``, ``absent`` or ``broken``).
        folders: the cache with its size and free space in bytes, and the folders of the catalogue.
        extras: by name; whether each is ``installed``, its packages' ``versions``, and the line that installs it.
        problems: what is broken.
    """

    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    torchvision: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON, for scripts.")] = False,
) -> None:
    """Say what is installed, where things are kept, and what is broken; exit with 1 where something is."""
    found = diagnose()
    if as_json:
        typer.echo(json.dumps({"ok": not found.problems, **asdict(found)}, indent=2))
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def diagnose() -> Diagnosis:
    """Look at the packages, the devices and the folders."""
    found = Diagnosis()
    found.versions = {"python": platform.python_version(), "robgib": robgib.__version__}
    found.versions |= {name: _version(name) for name in ("torch", "torchvision")}
    _look_at_torch(found)
    _look_at_packages(found, *_requirements())
    _look_at_folders(found)
    return found


def _version(package: str) -> str:
    """The version of a package, or nothing where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _requirements() -> tuple[list[Requirement], list[str]]:
    """What RobGIB requires, and its extras for users; nothing where it runs without having been installed."""
    try:
        about = metadata.metadata("robgib")
    except metadata.PackageNotFoundError:
        return [], []
    extras = sorted(set(about.get_all("Provides-Extra") or ()).difference(_NO_EXTRA))
    return [Requirement(line) for line in about.get_all("Requires-Dist") or ()], extras


def _look_at_torch(found: Diagnosis) -> None:
    """Add the devices, and whether torchvision fits torch."""
    try:
        torch = importlib.import_module("torch")
        found.devices["cpu"] = f"{os.cpu_count()} cores"
        for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            memory = torch.cuda.get_device_properties(k).total_memory / 2**30
            found.devices[f"cuda:{k}"] = f"{torch.cuda.get_device_name(k)}, {memory:.0f} GiB"
        state, why = importlib.import_module("robgib._torchvision").torchvision_state()
    except Exception as error:
        what = f"torch cannot be imported: {first_line(error)}"
        found.problems.append(Problem(what, "pip install --force-reinstall torch torchvision"))
        return
    found.torchvision["state"] = state
    if state != "works":
        whats = {"mended": _MENDED, "absent": "it is not installed", "broken": f"it cannot be imported: {why}"}
        found.problems.append(Problem(f"torchvision: {whats[state]}", torchvision_line(torch.__version__)))


def torchvision_line(torch_version: str) -> str:
    """The command that installs the torchvision that belongs to a version of torch.

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
    """Say that a package is missing or of a version that does not do, or nothing."""
    version = _version(requirement.name)
    if not version:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed, and {requirement.specifier} is required"
    return ""


def _wanted(requirement: Requirement, extra: str) -> bool:
    """Whether this Python on this system requires it, with the extra; all do what has no conditions."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _look_at_packages(found: Diagnosis, requirements: list[Requirement], extras: list[str]) -> None:
    """Add the extras, and what is wrong with the packages that RobGIB requires."""
    core = [r for r in requirements if _wanted(r, "")]
    for requirement in core:
        missing = requirement.name == "torchvision" and found.torchvision.get("state") == "absent"  # said already
        if (wrong := _unmet(requirement)) and not missing:
            found.problems.append(Problem(wrong, f'pip install "{requirement.name}{requirement.specifier}"'))
    for name in extras:
        parts = [r for r in requirements if r not in core and _wanted(r, name)]
        versions = {r.name: _version(r.name) for r in parts}
        line, whole = f'pip install "robgib[{name}]"', all(versions.values())
        found.extras[name] = {"installed": whole, "versions": versions, "install": line}
        if whole and (wrong := "; ".join(filter(None, map(_unmet, parts)))):
            found.problems.append(Problem(f"the extra {name}: {wrong}", line))


def _look_at_folders(found: Diagnosis) -> None:
    """Add the cache and the catalogue, and whether they can be used."""
    cache = cache_folder()
    found.folders["cache"] = {"path": str(cache), "bytes": _size(cache), "free": None}
    try:
        check_writable(cache)
        place = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.exists())
        found.folders["cache"]["free"] = shutil.disk_usage(place).free
    except (RobGIBError, OSError):
        what = f"the cache folder {str(cache)!r} is not writable"
        found.problems.append(Problem(what, "set ROBGIB_CACHE to a folder that is"))
    try:
        paths = dict.fromkeys(str(p) for kind in ("attacks", "zoo") for p in robgib.registry.folders(kind))
        found.folders["catalogue"] = list(paths)
    except RobGIBError as error:
        found.folders["catalogue"] = []
        found.problems.append(Problem(first_line(error), "correct ROBGIB_CATALOGUE"))


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    size = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                size += os.lstat(Path(place) / name).st_size
            except OSError:  # it went meanwhile
                continue
    return size


def _show(found: Diagnosis) -> None:
    """Print what was found, on one screen of 80 columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    cache = found.folders["cache"]
    free = "" if cache["free"] is None else f", {cache['free'] / 1e9:.1f} GB free"
    table.add_row("versions", escape(", ".join(f"{k} {v or 'not installed'}" for k, v in found.versions.items())))
    table.add_row("devices", escape("; ".join(f"{k}: {v}" for k, v in found.devices.items()) or "none"))
    table.add_row("torchvision", _STATES[found.torchvision.get("state", "")])
    table.add_row("cache", escape(f"{cache['path']} ({cache['bytes'] / 1e9:.1f} GB{free})"))
    table.add_row("catalogue", escape("\n".join(found.folders["catalogue"]) or "none"))
    lines = Table.grid(padding=(0, 2))
    for name, extra in found.extras.items():
        versions = ", ".join(f"{k} {v}" for k, v in extra["versions"].items())
        lines.add_row(escape(name), escape(versions if extra["installed"] else extra["install"]))
    table.add_row("extras", lines if found.extras else "unknown: RobGIB runs without having been installed")
    out.print(table, highlight=False)
    if not found.problems:
        out.print("Nothing is broken.")
    for problem in found.problems:
        out.print(f"[bold red]broken:[/] {escape(problem.what)}.", highlight=False)
        out.print(escape(f"  {problem.remedy}"), highlight=False, soft_wrap=True)
