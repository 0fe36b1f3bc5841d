"""What a process that was killed leaves behind is gone after the next one, and nothing finished is lost."""

import signal
import subprocess
import sys

import pytest

from robgib.files import atomic_directory, write_file

WRITE = """
import os, signal
from pathlib import Path
from robgib import files

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

target = Path({target!r})
{how}
"""
MOMENTS = {
    "while a folder is filled": "with files.atomic_directory(target) as folder:\n    (folder / 'a').touch()\n    die()",
    "between the two moves": (
        "moves = []\nreplace = os.replace\n"
        "os.replace = lambda *a: die() if moves else (moves.append(a), replace(*a))\n"
        "with files.atomic_directory(target) as folder:\n    (folder / 'a').touch()"
    ),
    "after them": (
        "files.shutil.rmtree = die\nwith files.atomic_directory(target) as folder:\n    (folder / 'a').touch()"
    ),
}


def killed(target, how):
    done = subprocess.run([sys.executable, "-c", WRITE.format(target=str(target), how=how)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("former", [False, True])
def test_of_folders(moment, former, tmp_path):
    target = tmp_path / "run"
    if former:
        target.mkdir()
        (target / "kept").touch()
    elif moment != "while a folder is filled":
        pytest.skip("nothing is moved aside")
    killed(target, MOMENTS[moment])
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(ZeroDivisionError), atomic_directory(target):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == (["run"] if former else [])
    if former:
        assert [p.name for p in target.iterdir()] == (["a"] if moment == "after them" else ["kept"])
    with atomic_directory(target) as folder:
        (folder / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_of_files(tmp_path):
    target = tmp_path / "record.json"
    killed(target, "os.replace = die\nfiles.write_file(target, b'half')")
    assert [p.name[:13] for p in tmp_path.iterdir()] == [".record.json."]
    write_file(target, b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
    assert target.read_bytes() == b"whole"


def test_what_another_process_still_writes_is_left_alone(tmp_path):
    target = tmp_path / "run"
    with atomic_directory(target) as ours:
        with atomic_directory(target) as theirs:
            (theirs / "b").touch()
        assert ours.is_dir()
        (ours / "a").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in target.iterdir()] == ["a"]
