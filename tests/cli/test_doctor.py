"""What the doctor finds, on installations with one thing wrong at a time."""

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from robgib import _torchvision
from robgib.cli import doctor
from robgib.cli.common import Console

ABOUT = """Metadata-Version: 2.4
Name: robgib
Version: 0.1.0
Requires-Dist: torch<2.14,>=2.6
Requires-Dist: torchvision<0.29,>=0.21
Requires-Dist: scipy>=1.10
Requires-Dist: requests>=2; python_version < "3"
Provides-Extra: foolbox
Requires-Dist: foolbox>=3.3; extra == "foolbox"
Provides-Extra: onnx
Requires-Dist: onnx2torch>=1.5; extra == "onnx"
Requires-Dist: onnx>=1.16; extra == "onnx"
Provides-Extra: test
Requires-Dist: pytest>=8.0; extra == "test"
"""
INSTALLED = {"torch": "2.13.0", "torchvision": "0.28.0", "scipy": "1.17.1", "foolbox": "3.3.4", "onnx": "1.20.0"}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that these packages are installed, and that torchvision is in that state."""
    from email import message_from_string

    def pretend(state=("works", ""), **versions):
        here = {name: v for name, v in {**INSTALLED, **versions}.items() if v}

        def version(name):
            if name not in here:
                raise metadata.PackageNotFoundError(name)
            return here[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "metadata", lambda name: message_from_string(ABOUT))
        monkeypatch.setattr(_torchvision, "torchvision_state", lambda: state)
        monkeypatch.setattr("torch.__version__", "2.13.0+cpu")

    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
    pretend()
    return pretend


def asked(cli):
    done = cli("doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1) == bool(told["problems"])
    return told


def test_where_nothing_is_broken(cli, installed, tmp_path):
    (tmp_path / "cache" / "zoo").mkdir(parents=True)
    (tmp_path / "cache" / "zoo" / "net").write_bytes(bytes(1234))
    told = asked(cli)
    assert (told["ok"], told["torchvision"]) == (True, {"state": "works"})
    assert told["versions"]["torch"] == "2.13.0"
    assert told["devices"]["cpu"].endswith(" cores")
    assert told["folders"]["cache"]["path"] == str(tmp_path / "cache")
    assert told["folders"]["cache"]["bytes"] == 1234
    assert [Path(p).name for p in told["folders"]["catalogue"]] == ["attacks", "zoo"]
    assert told["extras"] == {
        "foolbox": {"installed": True, "versions": {"foolbox": "3.3.4"}, "install": 'pip install "robgib[foolbox]"'},
        "onnx": {
            "installed": False,
            "versions": {"onnx2torch": "", "onnx": "1.20.0"},
            "install": 'pip install "robgib[onnx]"',
        },
    }
    assert "Nothing is broken." in cli("doctor").stdout


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("mended", "torchvision: only RobGIB can import it"),
        ("absent", "torchvision: it is not installed"),
        ("broken", "torchvision: it cannot be imported: no libpng"),
    ],
)
def test_torchvision_with_the_line_that_mends_it(cli, installed, state, what):
    installed((state, "no libpng"), **({"torchvision": ""} if state == "absent" else {}))
    (problem,) = asked(cli)["problems"]
    assert problem["what"].startswith(what)
    assert problem["remedy"] == (
        'pip install --force-reinstall --no-deps "torchvision==0.28.*" \\\n'
        "    --index-url https://download.pytorch.org/whl/cpu"
    )
    shown = cli("doctor").stdout
    assert all(line in shown for line in problem["remedy"].splitlines())


@pytest.mark.parametrize(
    ("versions", "what", "remedy"),
    [
        ({"scipy": ""}, "scipy is not installed", 'pip install "scipy>=1.10"'),
        ({"scipy": "1.9"}, "scipy 1.9 is installed, but >=1.10 is required", 'pip install "scipy>=1.10"'),
        ({"foolbox": "3.2"}, "the extra foolbox: foolbox 3.2 is installed, but", 'pip install "robgib[foolbox]"'),
        ({"torch": "2.14.0"}, "torch 2.14.0 is installed, but <2.14,>=2.6 is", 'pip install "torch<2.14,>=2.6"'),
    ],
)
def test_packages_that_do_not_do(cli, installed, versions, what, remedy):
    installed(**versions)
    (problem,) = asked(cli)["problems"]
    assert problem["what"].startswith(what)
    assert problem["remedy"] == remedy


def test_folders_that_cannot_be_used(cli, installed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("ROBGIB_CATALOGUE", str(tmp_path / "nowhere"))
    cache, catalogue = asked(cli)["problems"]
    assert cache["what"].endswith("is not writable")
    assert "ROBGIB_CACHE" in cache["remedy"]
    assert "nowhere" in catalogue["what"]
    assert "ROBGIB_CATALOGUE" in catalogue["remedy"]


def test_torch_that_cannot_be_imported(cli, installed, monkeypatch):
    plain = importlib.import_module

    def fails(name, *package):
        if name == "torch":
            raise OSError("libtorch.so: no such file")
        return plain(name, *package)

    monkeypatch.setattr(doctor.importlib, "import_module", fails)
    (problem,) = asked(cli)["problems"]
    assert problem["what"] == "torch cannot be imported: libtorch.so: no such file"
    assert "unknown, since torch cannot be imported" in cli("doctor").stdout


def test_it_fits_one_screen_of_80_columns(cli, installed, monkeypatch):
    monkeypatch.setattr(doctor, "out", Console(width=80, emoji=False))
    installed(("mended", ""))
    lines = cli("doctor").stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_without_having_been_installed(cli, installed, monkeypatch):
    def lacks(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", lacks)
    assert asked(cli)["extras"] == {}
    assert "RobGIB is not installed as a package" in cli("doctor").stdout


def test_the_state_of_torchvision(monkeypatch):
    """As it is here, and where its import fails."""
    here = _torchvision.torchvision_state()
    assert here == (("works" if _torchvision._library is None else "mended"), "")

    def fails():
        raise ImportError("no libpng.\nmore")

    monkeypatch.setattr(_torchvision, "load_torchvision", fails)
    assert _torchvision.torchvision_state() == ("broken", "no libpng")
    monkeypatch.setattr(_torchvision, "find_spec", lambda name: None)
    assert _torchvision.torchvision_state() == ("absent", "")
    assert "torchvision" in sys.modules
