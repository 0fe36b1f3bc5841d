import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robgib._torchvision import load_torchvision
from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

load_torchvision()  # mended before other libraries import it
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Checkpoints of the test run, trained afresh; the user's cache stays out of it."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ROBGIB_CACHE"] = str(folder)
    os.environ.pop("ROBGIB_CATALOGUE", None)
    return folder


@pytest.fixture(scope="session")
def digits(cache) -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="session")
def digits_cnn(digits):
    return load_recipe(find_recipe("digits-cnn"), digits)[0]


@pytest.fixture(scope="session")
def digits_vit(digits):
    return load_recipe(find_recipe("digits-vit"), digits)[0]


@pytest.fixture(scope="session")
def fashion(cache) -> Dataset:
    """The real Fashion-MNIST, from ROBGIB_TEST_DATA or the shared folder beside the repository."""
    places = [os.environ.get("ROBGIB_TEST_DATA"), ROOT.parent / "shared" / "data"]
    folder = next((Path(p) for p in places if p and Path(p).is_dir()), None)
    if folder is None:
        pytest.skip("Fashion-MNIST is not here; set ROBGIB_TEST_DATA to its folder")
    return load_data("fashion-mnist", folder)


@pytest.fixture(scope="session")
def right_digits(digits, digits_cnn):
    """Test images that digits-cnn labels right, with their labels."""
    x, y = digits.test.x[:128], digits.test.y[:128]
    with torch.no_grad():
        keep = digits_cnn(x).argmax(1) == y
    return x[keep], y[keep]


@pytest.fixture
def cli(cache, tmp_path):
    """Run the real command line in a fresh folder."""

    def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "robgib", *arguments],
            cwd=cwd or tmp_path,
            env={**os.environ, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run the command line in this process: its output, or the sentence of its error."""
    from typer.testing import CliRunner

    from robgib import RobGIBError
    from robgib.cli.main import app

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is None:
            return result.output
        assert isinstance(result.exception, RobGIBError), result.output
        return str(result.exception)

    return run
