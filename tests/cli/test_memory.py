"""The memory of freed tensors."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from robgib.cli import app

MAPPED = """
import ctypes, sys
from robgib.cli import app

class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    sys.exit("no mallinfo2")
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
for prepare in (int, app.keep_freed_memory):
    prepare()
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(64 << 20))
    print(libc.mallinfo2().hblks - before)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")


@pytest.fixture(autouse=True)
def _as_by_default(monkeypatch):
    for name in app._OF_GLIBC:
        monkeypatch.delenv(name, raising=False)


@linux
def test_large_blocks_are_mapped_by_default_and_then_kept():
    """A block that is mapped by itself goes back to the system when it is freed."""
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, timeout=120)
    if "no mallinfo2" in done.stderr:
        pytest.skip("another allocator")
    assert done.stdout.split() == ["1", "0"], done.stderr


@linux
def test_what_the_environment_sets_is_kept(monkeypatch):
    called = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *what: called.append(what)))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "")  # restored afterwards
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    app.keep_freed_memory()
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    assert called == [app._OF_GLIBC["MALLOC_TRIM_THRESHOLD_"]]
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == str(app._OF_GLIBC["MALLOC_TRIM_THRESHOLD_"][1])
