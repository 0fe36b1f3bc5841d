"""Run the default tests with each release of torch that RobGIB supports, each in an environment of its own.

    python benchmarks/matrix.py [RELEASE …] [--index URL] [--tests PATH …]

``make matrix`` runs all releases, ``make matrix TORCH=2.6`` one. ``--index`` names the package index of torch, such as
its index of CPU builds. The environments stay in ``.matrix``. Prints Markdown; exits with 1 if a release fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".matrix"
_AHEAD = 15  # torchvision 0.(n + 15) belongs to torch 2.n


def releases() -> list[str]:
    """The releases of torch that pyproject.toml allows, such as 2.6."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"torch>=2\.(\d+),<2\.(\d+)"', text)
    assert found is not None
    return [f"2.{minor}" for minor in range(int(found[1]), int(found[2]))]


def requirements(release: str) -> list[str]:
    """What to install for a release of torch, such as 2.6.

    >>> requirements("2.6")
    ['torch==2.6.*', 'torchvision==0.21.*']
    """
    minor = int(release.partition(".")[2])
    return [f"torch=={release}.*", f"torchvision==0.{minor + _AHEAD}.*"]


def run(release: str, index: str | None, tests: list[str]) -> str:
    """Install one release and run the tests; returns the last line of pip or pytest."""
    python = FOLDER / f"torch-{release}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = requirements(release)
    steps = (
        [*pip, *pins, *(["--index-url", index] if index else [])],
        [*pip, *pins, "-e", f"{ROOT}[test]"],
        [str(python), "-m", "pytest", "-n", "2", "--dist", "worksteal", *tests],
    )
    last = ""
    for step in steps:
        done = subprocess.run(
            step, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        )  # fmt: skip
        (FOLDER / f"torch-{release}.log").open("a", encoding="utf-8").write(done.stdout)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode:
            return f"failed: {last}"
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", nargs="*", help="releases of torch, such as 2.6 (default: all)")
    parser.add_argument("--index", help="package index of torch and torchvision")
    parser.add_argument("--tests", nargs="*", default=[], help="tests to run (default: all but the slow ones)")
    given = parser.parse_args()
    unknown = set(given.release) - set(releases())
    if unknown:
        parser.error(f"unknown release {', '.join(sorted(unknown))}; known: {', '.join(releases())}.")
    FOLDER.mkdir(exist_ok=True)
    print("| torch | tests | minutes |\n| --- | --- | --: |", flush=True)
    outcomes = []
    for release in given.release or releases():
        start = time.perf_counter()
        outcomes.append(run(release, given.index, given.tests))
        print(f"| {release} | {outcomes[-1]} | {(time.perf_counter() - start) / 60:.1f} |", flush=True)
    sys.exit(any(outcome.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    main()
