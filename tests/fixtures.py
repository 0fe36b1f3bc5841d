"""Fixtures of all tests: trained networks, data, and the command line."""

import io
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from robgib._torchvision import load_torchvision
from robgib.cli import main
from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

load_torchvision()  # mended before other libraries import it
ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # two processes share the tests: threads would only wait for each other


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Checkpoints of the test run, trained afresh; the user's cache stays out of it."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ROBGIB_CACHE"] = str(folder)
    os.environ.pop("ROBGIB_CATALOGUE", None)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that is the same in all test processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def trained(cache, digits, shared):
    """Load a model of the zoo on digits, trained by one of the test processes for all of them."""

    def load(name: str) -> torch.nn.Module:
        with FileLock(shared / f"{name}.lock"):
            (cache / "zoo").mkdir(exist_ok=True)
            files = f"{name}-????????-????????.*"
            for file in shared.glob(files):
                shutil.copy(file, cache / "zoo")
            model = load_recipe(find_recipe(name), digits)[0]
            for file in (cache / "zoo").glob(files):
                shutil.copy(file, shared)
        return model

    return load


@pytest.fixture(scope="session")
def digits(cache) -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="session")
def digits_cnn(trained):
    return trained("digits-cnn")


@pytest.fixture(scope="session")
def digits_vit(trained):
    return trained("digits-vit")


@pytest.fixture(scope="session")
def digits_mlp(digits):
    """A trained perceptron, for what any network will do: a pass costs a tenth of one of digits-cnn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(digits.train.x), digits.train.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


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


@pytest.fixture(scope="session")
def right_by_mlp(digits, digits_mlp):
    """Test images that digits_mlp labels right, with their labels."""
    x, y = digits.test.x[:128], digits.test.y[:128]
    with torch.no_grad():
        keep = digits_mlp(x).argmax(1) == y
    return x[keep], y[keep]


def arguments_of(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "robgib", *words]


@pytest.fixture
def process(digits_cnn, tmp_path):
    """Run the real command line in a process of its own, in a fresh folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments_of(arguments), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )

    return run


@pytest.fixture
def cli(digits_cnn, tmp_path, monkeypatch):
    """Run the real entry point in a fresh folder, in this process: a second and more is saved each time."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["robgib", *arguments])
        out, err = io.StringIO(), io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        code: object = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = ended.code
            finally:
                signal.signal(signal.SIGTERM, handler)
        assert code is None or isinstance(code, int)
        return subprocess.CompletedProcess(arguments_of(arguments), code or 0, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def invoke(cli):
    """Run the command line in this process: its output, or the sentence of its error."""

    def run(*arguments: str) -> str:
        done = cli(*arguments)
        if done.returncode == 0:
            return done.stdout
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        return done.stderr.removeprefix("error: ").rstrip("\n")

    return run
