import gzip
import hashlib
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robgib import Dataset, RobGIBError, evaluate, load_data
from robgib.data.dataset import Split
from robgib.data.loaders import list_data, read_idx

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
    with pytest.raises(RobGIBError, match=r"train-images-idx3-ubyte is truncated: its header states 120x28x28"):
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
        from robgib._torchvision import load_torchvision

        torchvision = load_torchvision()

        calls = []

        def fetch(root, download):
            calls.append(root)
            write_fashion(Path(root) / "FashionMNIST" / "raw", compress=True)

        monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
        first = load_data("fashion-mnist")
        assert load_data("fashion-mnist").digest == first.digest
        assert len(calls) == 1

    def test_a_broken_download_leaves_nothing(self, empty_cache, monkeypatch):
        from robgib._torchvision import load_torchvision

        torchvision = load_torchvision()

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
        (torch.zeros(4, 1, 2, 2, dtype=torch.int32), torch.zeros(4).long(), "divide 8-bit images by 255"),
        (torch.rand(4, 1, 2, 2), torch.zeros(4), "^labels must be integers, not torch.float32; convert"),
        (torch.rand(4, 1, 2, 2), torch.tensor([0, 1, -1, 0]), "class numbers from 0"),
        (torch.full((4, 1, 2, 2), float("nan")), torch.zeros(4).long(), "must be finite"),
        (torch.rand(0, 1, 2, 2), torch.zeros(0).long(), "no samples"),
    ],
)
def test_bad_arrays(x, y, message):
    with pytest.raises(RobGIBError, match=message):
        Dataset.from_arrays(x, y)


def test_mnist_is_read_from_its_own_folder_first(tmp_path):
    write_fashion(tmp_path)
    write_fashion(tmp_path / "mnist", train=60)
    own = load_data("mnist", tmp_path)
    assert len(own.train) + len(own.val) == 60
    assert len(load_data("fashion-mnist", tmp_path).train) == 110


def write_cifar(folder, count=30):
    """CIFAR-10's files as torchvision checks them, but for their digests, which the test sets."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    digests = {}
    for name in names:
        content = {
            "data": rng.integers(256, size=(count, 3072)).astype(np.uint8),
            "labels": list(np.arange(count) % 10),
        }
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    for name in [*names, "batches.meta"]:
        digests[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    return digests


def test_cifar10_from_a_local_folder(tmp_path, monkeypatch):
    from robgib._torchvision import load_torchvision

    torchvision = load_torchvision()

    digests = write_cifar(tmp_path / "cifar10")
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, digests[n]] for n in digests if n.startswith("data")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digests["batches.meta"]})
    data = load_data("cifar10", tmp_path)
    assert data.shape == (3, 32, 32)
    assert (len(data.train) + len(data.val), len(data.test)) == (150, 30)
    assert data.classes[3] == "class 3"
    assert load_data("cifar10", tmp_path / "cifar10").digest == data.digest
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RobGIBError, match=r"CIFAR-10's files are not in .*, or damaged; give --data-root"):
        load_data("cifar10", tmp_path)


class TestNpz:
    def arrays(self, **changed):
        rng = np.random.default_rng(0)
        held = {
            "x_train": rng.integers(256, size=(48, 6, 6, 3)).astype(np.uint8),
            "y_train": np.arange(48) % 4,
            "x_test": rng.integers(256, size=(20, 6, 6, 3)).astype(np.uint8),
            "y_test": np.arange(20) % 4,
        }
        return {k: v for k, v in {**held, **changed}.items() if v is not None}

    def load(self, folder, held):
        np.savez(folder / "mine.npz", **held)
        return load_data(f"npz:{folder / 'mine.npz'}")

    def test_arrays_of_bytes_or_floats_in_either_order(self, tmp_path):
        held = self.arrays()
        data = self.load(tmp_path, held)
        assert (len(data.train), len(data.val), len(data.test)) == (44, 4, 20)
        assert data.shape == (3, 6, 6)
        assert len(data.classes) == 4
        # The test images in another order, each with its own label.
        wanted = {(x.tobytes(), int(y)) for x, y in zip(held["x_test"], held["y_test"], strict=True)}
        bytes_again = (data.test.x * 255).round().byte().permute(0, 2, 3, 1).numpy()
        assert {(x.tobytes(), int(y)) for x, y in zip(bytes_again, data.test.y, strict=True)} == wanted
        floats = {k: v.transpose(0, 3, 1, 2) / 255 if k.startswith("x") else v for k, v in held.items()}
        assert self.load(tmp_path, floats).test.x == pytest.approx(data.test.x.numpy(), abs=1e-7)

    def test_test_images_alone(self, tmp_path):
        data = self.load(tmp_path, {"x": np.random.default_rng(0).random((10, 8, 8)), "y": np.arange(10) % 3})
        assert (len(data.train), len(data.test), data.shape) == (0, 10, (1, 8, 8))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"y_test": None}, r"holds x_test, x_train, y_train; it must hold x_test and y_test"),
            ({"y_test": np.arange(19)}, "labels must be integers, one per image"),
            ({"y_test": np.arange(20) - 1}, "class numbers from 0, not -1"),
            ({"y_test": np.arange(20) / 2}, "labels must be integers"),
            ({"x_test": np.zeros((20, 6))}, r"test images must be images \(N, H, W\)"),
            ({"x_test": np.zeros((20, 6, 6), int)}, "8-bit or floating point"),
            ({"x_test": np.full((20, 6, 6), 3.0)}, r"lie in \[0, 1\]"),
            ({"x_test": np.zeros((20, 5, 5, 3))}, r"training images are \(3, 6, 6\) and its test images \(3, 5, 5\)"),
        ],
    )
    def test_bad_arrays(self, tmp_path, changed, message):
        with pytest.raises(RobGIBError, match=message):
            self.load(tmp_path, self.arrays(**changed))

    def test_bad_files(self, tmp_path):
        with pytest.raises(RobGIBError, match=r"file '.*none.npz' does not exist"):
            load_data(f"npz:{tmp_path / 'none.npz'}")
        whole = tmp_path / "mine.npz"
        self.load(tmp_path, self.arrays())
        whole.write_bytes(whole.read_bytes()[:200])
        with pytest.raises(RobGIBError, match=r"not a readable \.npz"):
            load_data(f"npz:{whole}")
        np.savez(whole, x=np.array([{"a": 1}], dtype=object), y=np.arange(1))
        with pytest.raises(RobGIBError, match=r"not a readable \.npz"):
            load_data(f"npz:{whole}")


class TestFolder:
    def write(self, folder, classes=("cat", "dog"), count=12, size=(7, 5), mode="RGB"):
        rng = np.random.default_rng(len(str(folder)))
        for name in classes:
            (folder / name).mkdir(parents=True)
            for i in range(count):
                shape = (*size, 3) if mode == "RGB" else size
                Image.fromarray(rng.integers(256, size=shape).astype(np.uint8)).save(folder / name / f"{i}.png")

    def test_pictures_by_class(self, tmp_path):
        self.write(tmp_path / "train")
        self.write(tmp_path / "test", count=3)
        data = load_data(f"folder:{tmp_path}")
        assert (len(data.train), len(data.val), len(data.test)) == (22, 2, 6)
        assert data.shape == (3, 7, 5)
        assert data.classes == ("cat", "dog")
        assert data.name == f"folder:{tmp_path.name}"
        flat = tmp_path / "flat"
        self.write(flat, mode="L")
        assert load_data(f"folder:{flat}").shape == (1, 7, 5)
        assert len(load_data(f"folder:{flat}").train) == 0

    def test_bad_folders(self, tmp_path):
        with pytest.raises(RobGIBError, match=r"folder '.*nowhere' does not exist"):
            load_data(f"folder:{tmp_path / 'nowhere'}")
        with pytest.raises(RobGIBError, match="no folders of pictures"):
            load_data(f"folder:{tmp_path}")
        self.write(tmp_path / "test")
        Image.new("RGB", (9, 9)).save(tmp_path / "test" / "dog" / "odd.png")
        with pytest.raises(RobGIBError, match=r"odd.png is 9x9 and .* is 7x5 \(2 sizes in all\); .*--input-size"):
            load_data(f"folder:{tmp_path}")
        (tmp_path / "test" / "dog" / "odd.png").write_bytes(b"no picture")
        with pytest.raises(RobGIBError, match="not a readable picture"):
            load_data(f"folder:{tmp_path}")
        (tmp_path / "test" / "dog" / "odd.png").unlink()
        self.write(tmp_path / "train", classes=("cat", "cow"))
        with pytest.raises(RobGIBError, match="must hold the same classes"):
            load_data(f"folder:{tmp_path}")


class TestPictures:
    """Pictures of every kind are what they show, or are refused."""

    RAMP = np.array([[0, 8192, 16384], [32768, 49152, 65535]], np.uint16)
    BYTES = np.array([[0, 32, 64], [128, 192, 255]], np.uint8)

    def load(self, folder, pictures):
        for i, (name, picture) in enumerate(pictures.items()):
            (folder / f"{i}").mkdir(parents=True)
            picture.save(folder / f"{i}" / name)
        data = load_data(f"folder:{folder}")
        return {int(y): x.numpy() for x, y in zip(data.test.x, data.test.y, strict=True)}

    @pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
    def test_sixteen_bits_beside_eight(self, name, tmp_path):
        found = self.load(tmp_path, {name: Image.fromarray(self.RAMP), "a.png": Image.fromarray(self.BYTES)})
        assert found[0][0] == pytest.approx(self.RAMP / 65535, abs=1e-7)
        assert found[1][0] == pytest.approx(self.BYTES / 255, abs=1e-7)
        assert found[0].dtype == np.float32

    def test_floats_and_bits_beside_eight(self, tmp_path):
        shares = np.array([[0, 0.1, 0.25], [0.5, 0.75, 1]], np.float32)
        bits = Image.fromarray(self.BYTES).point(lambda v: 255 * (v > 100)).convert("1")
        pictures = {"f.tif": Image.fromarray(shares), "b.png": bits, "a.png": Image.fromarray(self.BYTES)}
        found = self.load(tmp_path, pictures)
        assert np.array_equal(found[0][0], shares)
        assert np.array_equal(found[1][0], self.BYTES > 100)
        assert found[2][0] == pytest.approx(self.BYTES / 255, abs=1e-7)

    def test_colours(self, tmp_path):
        rgb = np.stack([self.BYTES, self.BYTES[::-1], 255 - self.BYTES], axis=2)
        plain = Image.fromarray(rgb)
        opaque = plain.convert("RGBA")
        found = self.load(
            tmp_path,
            {"a.png": plain, "b.png": opaque, "c.png": plain.quantize(16), "d.tif": plain.convert("CMYK")},
        )
        for picture in found.values():
            assert picture.transpose(1, 2, 0) == pytest.approx(rgb / 255, abs=1e-7)

    def test_colours_of_more_bits_and_signed_numbers_are_refused(self, tmp_path):
        (tmp_path / "deep" / "a").mkdir(parents=True)
        (tmp_path / "deep" / "a" / "a.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(12))
        with pytest.raises(RobGIBError, match=r"a\.ppm has more than 8 bits per colour"):
            load_data(f"folder:{tmp_path / 'deep'}")
        rows = zlib.compress(b"\0" + bytes(12))
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
        png = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
        (tmp_path / "png" / "a").mkdir(parents=True)
        (tmp_path / "png" / "a" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
        with pytest.raises(RobGIBError, match=r"a\.png has more than 8 bits per colour"):
            load_data(f"folder:{tmp_path / 'png'}")
        (tmp_path / "signed" / "a").mkdir(parents=True)
        Image.fromarray(self.BYTES).save(tmp_path / "signed" / "a" / "a.tif", tiffinfo={339: 2})
        with pytest.raises(RobGIBError, match=r"a\.tif has signed values"):
            load_data(f"folder:{tmp_path / 'signed'}")

    def test_grey_with_alpha_is_grey(self, tmp_path):
        grey = Image.fromarray(self.BYTES)
        found = self.load(tmp_path, {"a.png": grey, "b.png": grey.convert("LA")})
        assert np.array_equal(found[0], found[1])

    @pytest.mark.parametrize(
        ("name", "picture", "message"),
        [
            ("a.png", Image.new("RGBA", (3, 2), (9, 9, 9, 100)), "has transparent pixels"),
            ("a.png", Image.new("LA", (3, 2), (9, 0)), "has transparent pixels"),
            ("a.tif", Image.fromarray(np.full((2, 3), 1.5, np.float32)), "has values from 1.5 to 1.5"),
            ("a.tif", Image.fromarray(np.full((2, 3), -0.1, np.float32)), "floats in"),
            ("a.tif", Image.fromarray(np.full((2, 3), np.nan, np.float32)), "floats in"),
            ("a.tif", Image.fromarray(np.full((2, 3), 70000, np.int32)), "white is unknown"),
            ("a.tif", Image.new("LAB", (3, 2)), "mode LAB"),
        ],
    )
    def test_what_has_no_one_meaning(self, name, picture, message, tmp_path):
        with pytest.raises(RobGIBError, match=message) as told:
            self.load(tmp_path, {name: picture})
        assert str(tmp_path / "0" / name) in str(told.value)

    def test_a_transparent_colour(self, tmp_path):
        picture = Image.fromarray(self.BYTES)
        (tmp_path / "0").mkdir()
        picture.save(tmp_path / "0" / "a.png", transparency=128)
        with pytest.raises(RobGIBError, match="has transparent pixels"):
            load_data(f"folder:{tmp_path}")

    @pytest.mark.parametrize("tags", [{262: 0}, {258: 12}])
    def test_tiffs_that_mean_other_numbers(self, tags, tmp_path):
        """White as 0, and 12 bits: Pillow gives the numbers as they lie."""
        from robgib.data.folder import _pixels

        picture = Image.fromarray(self.RAMP // 16)
        picture.format = "TIFF"
        picture.tag_v2 = {262: 1, 258: (16,), **{k: (v,) if k == 258 else v for k, v in tags.items()}}
        with pytest.raises(RobGIBError, match="white is unknown"):
            _pixels(picture, "a.tif")

    def test_a_picture_too_large_to_be_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
        with pytest.raises(RobGIBError, match="not a readable picture"):
            self.load(tmp_path, {"a.png": Image.fromarray(self.BYTES)})


class TestRounding:
    def test_a_hair_outside_is_clamped(self):
        x = torch.rand(4, 1, 2, 2)
        x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = -3e-8, 1 + 1.2e-7, 1 + 9e-7
        before = x.clone()
        data = Dataset.from_arrays(x, torch.zeros(4).long())
        assert torch.equal(data.test.x, x.clamp(0, 1))
        assert torch.equal(x, before)  # the caller's stay as they were
        assert float(Split(x.double(), torch.zeros(4).long()).x.max()) == 1

    @pytest.mark.parametrize(("value", "told"), [(-2e-6, "-2e-06"), (1.00001, "1.00001"), (float("inf"), "inf")])
    def test_more_than_rounding_is_refused(self, value, told):
        x = torch.full((4, 1, 2, 2), 0.5)
        x[1, 0, 1, 1] = value
        with pytest.raises(RobGIBError, match="put the normalisation inside the model") as error:
            Dataset.from_arrays(x, torch.zeros(4).long())
        assert told in str(error.value)


class TestLabels:
    KINDS = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_integer(self, kind):
        x, wanted = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 1, 0])
        labels = wanted.numpy().astype(kind)
        given = [labels, labels[::-1][::-1], labels.tolist(), labels.astype(labels.dtype.newbyteorder())]
        given += [wanted.to(getattr(torch, kind))] if hasattr(torch, kind) else []
        for y in given:
            data = Dataset.from_arrays(x, y)
            assert data.test.y.dtype == torch.int64
            assert torch.equal(data.test.y, wanted)
            assert data.classes == ("0", "1")
        if hasattr(torch, kind):
            assert Split(x, given[-1]).y.dtype == torch.int64

    def test_images_as_arrays_and_lists(self):
        x = np.random.default_rng(0).random((4, 1, 2, 2))
        for given in (x, x[::-1][::-1], x.tolist(), torch.from_numpy(x).requires_grad_(True)):
            assert Dataset.from_arrays(given, [0, 1, 2, 1]).test.x == pytest.approx(torch.from_numpy(x).float())

    @pytest.mark.parametrize("y", [["cat"] * 4, [[0], 1, 2, 3], [None] * 4])
    def test_no_numbers(self, y):
        with pytest.raises(RobGIBError, match="labels must be an array of numbers"):
            Dataset.from_arrays(torch.rand(4, 1, 2, 2), y)

    def test_in_an_evaluation(self, digits, digits_cnn):
        x, y = digits.test.x[:60], digits.test.y[:60]
        options = {"attacks": ["fgsm-linf"], "estimators": [], "signs": False, "curve": False, "corruptions": False}
        head = nn.Linear(10, 2)
        with torch.no_grad():  # low digits against high ones; random weights may be no better than chance
            head.weight[:] = torch.arange(10).gt(4).eq(torch.tensor([[False], [True]]))
            head.bias.zero_()
        model = nn.Sequential(digits_cnn, head).eval()
        runs = [evaluate(model, (x, (y > 4).to(kind)), **options) for kind in (torch.bool, torch.int64)]
        assert runs[0].robustness["robust"].tolist() == runs[1].robustness["robust"].tolist()

    def test_in_a_file(self, tmp_path):
        np.savez(tmp_path / "two.npz", x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6) % 2 == 1)
        data = load_data(f"npz:{tmp_path / 'two.npz'}")
        assert sorted(data.test.y.tolist()) == [0, 0, 0, 1, 1, 1]
        assert data.classes == ("0", "1")


class TestWhatPeopleHave:
    """Arrays and loaders as they come, each read by one rule."""

    COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)

    def test_eight_bit_pictures_with_their_colours_last(self):
        data = Dataset.from_arrays(self.COLOURS, [0, 1, 2, 0, 1, 2])
        assert data.shape == (3, 8, 9)
        assert data.test.x[1, 2] == pytest.approx(torch.from_numpy(self.COLOURS[1, :, :, 2]).float() / 255)
        floats = Dataset.from_arrays(self.COLOURS.astype(np.float32) / 255, [0, 1, 2, 0, 1, 2])
        assert floats.test.x == pytest.approx(data.test.x)
        grey = Dataset.from_arrays(self.COLOURS[..., 0], np.arange(6))
        assert grey.shape == (1, 8, 9)

    def test_colours_first_stay_where_they_are(self):
        x = torch.rand(4, 3, 8, 3)
        assert Dataset.from_arrays(x, torch.zeros(4).long()).test.x.equal(x)

    def test_one_hot_labels(self):
        y = np.eye(6)[[2, 0, 5, 1, 1, 3]]
        assert Dataset.from_arrays(self.COLOURS, y).test.y.tolist() == [2, 0, 5, 1, 1, 3]
        with pytest.raises(RobGIBError, match="one-hot"):
            Dataset.from_arrays(self.COLOURS, np.ones((6, 3)))

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_loader_of_torch(self, wrapped, digits, digits_cnn):
        held = torch.utils.data.TensorDataset(digits.test.x[:60], digits.test.y[:60])
        source = torch.utils.data.DataLoader(held, batch_size=16) if wrapped else held
        asked = {
            "attacks": ["fgsm-linf:eps=0.05"],
            "estimators": [],
            "curve": False,
            "signs": False,
            "corruptions": False,
        }
        given, plain = (evaluate(digits_cnn, d, **asked) for d in (source, (digits.test.x[:60], digits.test.y[:60])))
        keys = ["attack", "robust_accuracy", "clean_accuracy"]
        assert given.robustness[keys].equals(plain.robustness[keys])

    def test_a_loader_of_something_else(self):
        with pytest.raises(RobGIBError, match="pairs of images and labels"):
            Dataset.from_torch(torch.utils.data.TensorDataset(torch.rand(4, 1, 2, 2)))


def named(folder, name, source):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"source: {source}\nclasses: [{', '.join('abcdefghij')}]\n")
    return folder


def test_data_of_a_catalogue_are_seen_with_that_catalogue_alone(tmp_path):
    own = named(tmp_path / "own", "letters", "digits")
    assert load_data("letters", catalogue=[own]).classes[0] == "a"
    assert "letters" not in list_data()
    with pytest.raises(RobGIBError, match="unknown data set 'letters'"):
        load_data("letters")


def test_a_catalogue_may_replace_data_of_the_same_name_for_itself(tmp_path):
    own = named(tmp_path / "own", "digits", "digits")
    assert load_data("digits").classes[0] == "0"
    assert load_data("digits", catalogue=[own]).classes[0] == "a"
    assert load_data("digits").classes[0] == "0"


def test_a_yaml_file_resizes_and_takes_the_first(tmp_path, digits):
    (tmp_path / "small.yaml").write_text("source: digits\nsize: [4, 4]\nfirst: {train: 90, test: 20}\n")
    small = load_data("small", catalogue=[tmp_path])
    assert (small.shape, len(small.train), len(small.val), len(small.test)) == ((1, 4, 4), 90, len(digits.val), 20)
    assert torch.equal(small.test.y, digits.test.y[:20])
    assert torch.allclose(
        small.test.x.mean((1, 2, 3)), digits.test.x[:20].mean((1, 2, 3)), atol=0.03
    )  # a mean of neighbours


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("size: 14", "size must be height and width such as"),
        ("size: [0, 4]", "sides of 1 to 4,096 pixels, not 0"),
        ("first: 100", "first must map train, val and test to numbers"),
        ("first: {train: -1}", "first must map train, val and test to numbers"),
        ("first: {trian: 5}", "unknown part of the data .* 'trian'; did you mean 'train'"),
    ],
)
def test_what_a_yaml_file_cannot_ask_of_its_images(line, words, tmp_path):
    (tmp_path / "small.yaml").write_text(f"source: digits\n{line}\n")
    with pytest.raises(RobGIBError, match=words):
        load_data("small", catalogue=[tmp_path])


def test_data_whose_sources_lead_in_a_circle_are_refused(tmp_path):
    own = named(named(tmp_path / "own", "one", "other"), "other", "one")
    with pytest.raises(RobGIBError, match=r"source 'other' refers back to 'one'|source 'one' refers back to 'other'"):
        load_data("one", catalogue=[own])


def test_data_that_a_plugin_registers_stay_with_its_folder(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(
        "from robgib import register_data, load_data\n\n\n"
        "@register_data('mine')\ndef mine(root, seed):\n    return load_data('digits')\n"
    )
    assert load_data("mine", catalogue=[own]).shape == (1, 8, 8)
    assert "mine" in list_data([own])
    assert "mine" not in list_data()
