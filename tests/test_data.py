import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from robgib import Dataset, RobGIBError, load_data
from robgib.data import read_idx

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, compress=False, train=120, test=30):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i, count in enumerate((train, train, test, test)):
        array = rng.integers(256, size=(count, 28, 28)) if i % 2 == 0 else rng.permutation(np.arange(count) % 10)
        content = idx(array.astype(np.uint8))
        path = folder / (NAMES[i] + (".gz" if compress else ""))
        path.write_bytes(gzip.compress(content) if compress else content)
    return folder


def test_digits_splits(digits):
    sizes = [len(s) for s in (digits.train, digits.val, digits.test)]
    assert sum(sizes) == 1797
    assert digits.shape == (1, 8, 8)
    assert digits.train.x.dtype == torch.float32
    assert float(digits.train.x.max()) == 1
    flat = [{row.tobytes() for row in s.x.numpy().reshape(len(s), -1)} for s in (digits.train, digits.test)]
    assert len(flat[0] & flat[1]) <= 1  # disjoint, but for images that the data repeat
    for split in (digits.train, digits.test):
        assert np.bincount(split.y.numpy()).min() > 0.08 * len(split)


def test_splits_are_fixed_by_the_seed(digits):
    assert load_data("digits").digest == digits.digest
    assert load_data("digits", seed=1).digest != digits.digest


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_from_a_folder(tmp_path, compress, place):
    write_fashion(tmp_path / place, compress)
    data = load_data("fashion-mnist", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (110, 10, 30)
    assert data.shape == (1, 28, 28)
    assert 0 <= float(data.test.x.min()) <= float(data.test.x.max()) <= 1
    assert len(data.classes) == 10


def test_truncated_idx(tmp_path):
    folder = write_fashion(tmp_path / "plain")
    path = folder / NAMES[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RobGIBError, match=r"train-images-idx3-ubyte is truncated: its header promises 120x28x28"):
        load_data("fashion-mnist", folder)
    folder = write_fashion(tmp_path / "gz", compress=True)
    path = folder / (NAMES[2] + ".gz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RobGIBError, match="cannot be read"):
        load_data("fashion-mnist", folder)


def test_not_idx(tmp_path):
    (tmp_path / "x").write_bytes(b"hello, world")
    with pytest.raises(RobGIBError, match="not an IDX file"):
        read_idx(tmp_path / "x")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(RobGIBError, match=r"data folder .* does not exist"):
        load_data("fashion-mnist", tmp_path / "no")
    with pytest.raises(RobGIBError, match=r"train-images-idx3-ubyte\[.gz\] is not in"):
        load_data("fashion-mnist", tmp_path)
    (write_fashion(tmp_path) / NAMES[3]).unlink()
    with pytest.raises(RobGIBError, match=NAMES[3]):
        load_data("fashion-mnist", tmp_path)


class TestDownload:
    @pytest.fixture
    def empty_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path))
        return tmp_path

    def test_into_the_cache(self, empty_cache, monkeypatch):
        from robgib._torchvision import torchvision

        calls = []

        def fetch(root, download):
            calls.append(root)
            write_fashion(Path(root) / "FashionMNIST" / "raw", compress=True)

        monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
        first = load_data("fashion-mnist")
        assert load_data("fashion-mnist").digest == first.digest
        assert len(calls) == 1

    def test_a_broken_download_leaves_nothing(self, empty_cache, monkeypatch):
        from robgib._torchvision import torchvision

        def fetch(root, download):
            (Path(root) / "FashionMNIST").mkdir()
            raise OSError("no network")

        monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
        with pytest.raises(RobGIBError, match="could not be downloaded"):
            load_data("fashion-mnist")
        assert not [p for p in empty_cache.rglob("*") if p.name != "data"]


def test_unknown_data():
    with pytest.raises(RobGIBError, match="unknown data set 'digit'; did you mean 'digits'"):
        load_data("digit")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(4, 1, 2, 2) * 255, torch.zeros(4).long(), r"lie in \[0, 1\]"),
        (torch.rand(4, 1, 2, 2), torch.zeros(3).long(), r"with labels \(N,\)"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4).long(), "divide 8-bit images by 255"),
        (torch.rand(4, 1, 2, 2), torch.zeros(4), "labels integers"),
        (torch.rand(4, 1, 2, 2), torch.tensor([0, 1, -1, 0]), "class numbers from 0"),
        (torch.full((4, 1, 2, 2), float("nan")), torch.zeros(4).long(), "must be finite"),
        (torch.rand(0, 1, 2, 2), torch.zeros(0).long(), "no samples"),
    ],
)
def test_bad_arrays(x, y, message):
    with pytest.raises(RobGIBError, match=message):
        Dataset.from_arrays(x, y)
