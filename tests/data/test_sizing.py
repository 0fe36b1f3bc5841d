"""Pictures brought to one size, and data sets larger than memory."""

import numpy as np
import pytest
import torch
from PIL import Image

import robgib
from robgib import RobGIBError, load_data
from robgib._torchvision import load_torchvision
from robgib.data import Sizing, lazy
from robgib.data.lazy import LazyImages


def write(where, sizes, mode="RGB", classes=("cat", "dog")):
    rng = np.random.default_rng(1)
    for name in classes:
        (where / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            shape = (*size, 3) if mode == "RGB" else size
            Image.fromarray(rng.integers(256, size=shape).astype(np.uint8)).save(where / name / f"{i:03}.png")
    return where


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (16, 16)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
def test_as_torchvision_does(size, how):
    transforms = load_torchvision().transforms
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3)).astype(np.uint8))
    theirs = transforms.Compose(
        [transforms.Resize(20, transforms.InterpolationMode(how)), transforms.CenterCrop((15, 18))]
    )(picture)
    ours = Sizing(20, (15, 18), how).picture(picture)
    assert np.array_equal(np.asarray(theirs), np.asarray(ours))
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    if how != "nearest":
        near = Sizing(20, (15, 18), how).images(x)[0].permute(1, 2, 0).numpy()
        gap = np.abs(near - np.asarray(ours) / 255)
        # Pillow rounds and clamps between its two passes, which bicubic overshoots feel.
        assert gap.max() < (0.02 if how == "bilinear" else 0.1)
        assert gap.mean() < 0.003


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sizing(0), "sides of 1 to 4,096"),
        (lambda: Sizing(10, (20, 20)), "does not fit a shorter side of 10"),
        (lambda: Sizing(10, None, "cubic"), "interpolation must be one of"),
        (lambda: Sizing(None, (20, 20)).size(10, 30), "smaller than the crop of 20x20; give --resize"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(RobGIBError, match=message):
        make()


def test_pictures_of_many_sizes_and_kinds(tmp_path):
    write(tmp_path, [(20, 30), (40, 25), (16, 16)])
    Image.new("L", (50, 40), 100).save(tmp_path / "cat" / "grey.png")
    with pytest.raises(RobGIBError, match=r"sizes in all\); bring them to one, with --input-size"):
        load_data(f"folder:{tmp_path}")
    data = load_data(f"folder:{tmp_path}", sizing=Sizing(16, (16, 16)))
    assert data.shape == (3, 16, 16)
    grey = (data.test.x - 100 / 255).abs().flatten(1).amax(1) < 1e-6
    assert int(grey.sum()) == 1


def test_every_beginning_holds_the_classes_by_their_shares(tmp_path):
    write(tmp_path, [(4, 4)] * 30)
    write(tmp_path, [(4, 4)] * 10, classes=("emu",))
    y = load_data(f"folder:{tmp_path}").test.y
    for count in (14, 28, 42):
        counts = np.bincount(y[:count].numpy(), minlength=3)
        assert np.abs(counts - count * np.array([3, 3, 1]) / 7).max() <= 1.5
    assert not torch.equal(y, load_data(f"folder:{tmp_path}", seed=1).test.y) or len(y) == 0


def test_train_and_val_are_no_classes(tmp_path):
    write(tmp_path / "train", [(4, 4)] * 24)
    write(tmp_path / "val", [(4, 4)] * 6)
    data = load_data(f"folder:{tmp_path}")
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (("cat", "dog"), 44, 4, 12)
    only = tmp_path / "only"
    write(only / "train", [(4, 4)] * 3)
    with pytest.raises(RobGIBError, match=r"holds train/ but no test/ or val/"):
        load_data(f"folder:{only}")


class TestLazyImages:
    @pytest.fixture
    def both(self, tmp_path, monkeypatch):
        write(tmp_path, [(9, 8)] * 12)
        at_once = load_data(f"folder:{tmp_path}")
        monkeypatch.setattr(lazy, "_FEW", 0)
        return at_once, load_data(f"folder:{tmp_path}")

    def test_they_are_the_same_images(self, both):
        eager, lazy = both
        x, z = eager.test.x, lazy.test.x
        assert isinstance(z, LazyImages)
        assert isinstance(z[3:9], LazyImages)
        assert torch.equal(x, z.read())
        assert torch.equal(x[3], z[3])
        assert torch.equal(x[3:9][[1, 4]], z[3:9][np.array([1, 4])].to("cpu"))
        assert torch.equal(x[eager.test.y == 1], z[lazy.test.y == 1].read())
        assert torch.equal(torch.cat([x, x]), torch.cat([z, z]))
        assert torch.equal(x.amax((2, 3)), z.amax((2, 3)))
        assert [len(p) for p in z.split(10)] == [10, 10, 4]
        assert torch.equal(x[:, :, 2:4], z[:, :, 2:4])
        assert z.shape == x.shape

    def test_an_evaluation_is_the_same(self, both):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 9 * 8, 2))
        runs = [
            robgib.evaluate(net, data, attacks=["pgd-linf:eps=0.02,steps=3"], estimators=[], progress=False)
            for data in both
        ]
        for name in ("robustness", "outcomes", "corruptions"):
            one, two = (getattr(run, name).drop(columns=["seconds"], errors="ignore") for run in runs)
            assert one.equals(two)

    def test_little_is_read_where_little_is_asked_for(self, both, monkeypatch):
        _, lazy = both
        asked = []
        source = lazy.test.x._source
        read = type(source).read
        monkeypatch.setattr(type(source), "read", lambda self, row: asked.append(row) or read(self, row))
        lazy.test.x[:3][1:].read()
        lazy.test.x[:3].read()
        assert len(asked) == 3  # what was read is kept

    def test_other_data_can_be_resized(self, digits):
        data = load_data("digits", sizing=Sizing(16, (12, 12)))
        assert data.shape == (1, 12, 12)
        few = data.test.x[:5]
        assert torch.equal(few.read(), Sizing(16, (12, 12)).images(load_data("digits").test.x[:5]))
        assert data.digest != digits.digest
        with pytest.raises(RobGIBError, match="holds no pictures"):
            load_data("function:parity-3", sizing=Sizing(4))
