"""The package: its metadata, the workflows, the container, the citation, and what is built from it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import robgib
from benchmarks.matrix import releases, requirements
from tests.test_extras import PROJECT

ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_licence_is_named_by_its_spdx_expression():
    assert PROJECT["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert not [name for name in PROJECT["classifiers"] if name.startswith("License")]  # refused beside an expression


def test_the_supported_versions_are_the_tested_ones():
    stated = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    jobs = WORKFLOWS["tests"]["jobs"]
    assert jobs["default"]["strategy"]["matrix"]["python"] == stated
    assert PROJECT["requires-python"] == f">={stated[0]}"
    assert jobs["torch"]["strategy"]["matrix"]["torch"] == releases()


def test_the_matrix_pairs_torch_with_its_torchvision():
    declared = dict(re.match(r"(torch|torchvision)>=([\d.]+),<", d).groups() for d in PROJECT["dependencies"][:2])
    assert requirements(releases()[0]) == [f"torch=={declared['torch']}.*", f"torchvision=={declared['torchvision']}.*"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_calls_targets_that_exist(name):
    assert {"tests", "docs", "release"} == set(WORKFLOWS)
    called = {word for step in steps(WORKFLOWS[name]) for word in re.findall(r"^make (\w+)", step.get("run", ""))}
    assert called <= TARGETS
    assert called


def test_a_release_is_published_without_a_stored_password():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert WORKFLOWS["release"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


def test_the_citation_is_of_this_software_and_refers_to_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["type"], cited["version"], cited["license"]) == ("software", robgib.__version__, PROJECT["license"])
    assert PROJECT["version"] == robgib.__version__
    assert "preferred-citation" not in cited  # it would stand in the software's place
    (paper,) = cited["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_paper_has_its_parts_and_references():
    _, front, text = (ROOT / "paper.md").read_text().split("---\n", 2)
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} == set(yaml.safe_load(front))
    assert re.findall(r"^# (.*)", text, re.M)[:2] == ["Summary", "Statement of need"]
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "paper.bib").read_text(), re.M))
    assert set(re.findall(r"@(\w+)", text)) == known
    assert 250 <= len(text.split()) <= 1750


def copied():
    """What the Dockerfile copies into the image before it installs the package."""
    lines = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    return [name for line in lines for name in line.split()]


def test_the_container_gets_what_it_copies():
    kept = re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.M)
    assert copied() == kept
    assert all((ROOT / name).exists() for name in kept)
    torch = [d for d in PROJECT["dependencies"] if d.startswith("torch")]
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if "pip install" in line and "torch>" in line
    ]
    assert len(lines) == 2  # CPU and CUDA
    assert all(f'"{name}"' in line for line in lines for name in torch)


def build(folder, kind, place):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", place], cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.mark.slow
def test_the_wheel_runs_outside_the_repository(digits_cnn, tmp_path):
    """Sdist from the repository, wheel from the sdist, and the command line from the unpacked wheel."""
    pytest.importorskip("hatchling")
    with tarfile.open(build(ROOT, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"robgib-{robgib.__version__}"
    assert {"docs", "tests", "examples", "paper.md", "Makefile"} <= {path.name for path in source.iterdir()}
    with zipfile.ZipFile(build(source, "wheel", tmp_path)) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    shutil.rmtree(source)
    assert {"robgib/py.typed", "robgib/content/attacks/pgd-linf.yaml", "robgib/content/zoo/digits-cnn.yaml"} <= names
    assert "robgib/content/ledger/ledger.csv" in names
    assert not [name for name in names if name.startswith(("tests", "docs"))]
    where = "import robgib; print(robgib.__file__)"
    for arguments, word in (
        (["-c", where], str(tmp_path / "site")),
        (["-m", "robgib", "zoo", "list"], "digits-cnn"),
        (["-m", "robgib", "attacks", "check", "pgd-linf"], "ok"),
        (["-m", "robgib", "evaluate", "digits-cnn", "--quick", "--samples", "40", "--no-information"], "Report: "),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


@pytest.mark.slow
def test_what_the_container_copies_makes_a_wheel(tmp_path):
    pytest.importorskip("hatchling")
    folder = tmp_path / "source"
    folder.mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    assert build(folder, "wheel", tmp_path).stat().st_size > 100_000
