"""Arrays and folders are read as they were meant, or refused in a sentence."""

import shutil
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import robgib
from robgib import Dataset, RobGIBError, RobGIBWarning, load_data
from robgib.data import folder as reader
from robgib.data.loaders import read_idx

RNG = np.random.default_rng(0)


class TestEightBits:
    """Numbers of 8 bits are of 255 only where they look like it."""

    @pytest.mark.parametrize("largest", [1, 16, 127])
    def test_a_small_range_is_asked_about(self, largest, tmp_path):
        """Digits of 0 to 16 became almost black."""
        x = RNG.integers(0, largest + 1, (20, 8, 8)).astype(np.uint8)
        x[0, 0, 0] = largest
        y = np.arange(20) % 2
        np.savez(tmp_path / "small.npz", x=x, y=y)
        for read in (lambda: Dataset.from_arrays(x, y), lambda: load_data(f"npz:{tmp_path / 'small.npz'}")):
            with pytest.raises(RobGIBError, match=rf"no value is above {largest}, .* --data-bounds 0,{largest} "):
                read()
        told = Dataset.from_arrays(x, y, bounds=(0, largest))
        assert torch.equal(told.test.x[:, 0], torch.from_numpy(x) / largest)
        data = load_data(f"npz:{tmp_path / 'small.npz'}", bounds=(0, largest))
        assert float(data.test.x.max()) == 1
        dark = Dataset.from_arrays(x, y, bounds=(0, 255))
        assert torch.equal(dark.test.x[:, 0], torch.from_numpy(x) / 255)

    @pytest.mark.parametrize("x", [np.zeros((4, 8, 8), np.uint8), np.full((4, 8, 8), 128, np.uint8)])
    def test_others_are_not(self, x):
        assert torch.equal(Dataset.from_arrays(x, [0, 1, 0, 1]).test.x[:, 0], torch.from_numpy(x) / 255)

    def test_bounds_are_of_any_numbers(self, tmp_path):
        x = RNG.integers(0, 256, (6, 5, 5))
        for given in (x, x.astype(float), x.astype(np.uint16).astype(np.int32)):
            assert Dataset.from_arrays(given[:, None], np.arange(6) % 2, bounds=(0, 255)).test.x == pytest.approx(
                x[:, None] / 255, abs=1e-6
            )
        signed = Dataset.from_arrays(2 * torch.rand(6, 1, 5, 5) - 1, np.arange(6) % 2, bounds=(-1, 1))
        assert 0 <= float(signed.test.x.min()) < float(signed.test.x.max()) <= 1
        with pytest.raises(RobGIBError, match="have values outside the bounds 0 and 100; correct"):
            Dataset.from_arrays(x[:, None], np.arange(6) % 2, bounds=(0, 100))
        for bounds in ((1, 1), (0, np.inf), (0,)):
            with pytest.raises(RobGIBError, match="two different numbers, black and white"):
                Dataset.from_arrays(x[:, None], np.arange(6) % 2, bounds=bounds)
        with pytest.raises(RobGIBError, match="'digits' has its own"):
            load_data("digits", bounds=(0, 16))

    def test_masks_in_a_folder(self, tmp_path):
        for name in "ab":
            (tmp_path / "masks" / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(RNG.integers(0, 2, (6, 6)).astype(np.uint8)).save(
                    tmp_path / "masks" / name / f"{i}.png"
                )
        with pytest.raises(RobGIBError, match="masks are 8-bit and no value is above 1"):
            load_data(f"folder:{tmp_path / 'masks'}")
        assert set(load_data(f"folder:{tmp_path / 'masks'}", bounds=(0, 1)).test.x.unique().tolist()) == {0.0, 1.0}
        with pytest.raises(RobGIBError, match=r"outside the bounds 0 and 0\.5"):
            load_data(f"folder:{tmp_path / 'masks'}", bounds=(0, 0.5))
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "my-masks.yaml").write_text("source: folder:../masks\nbounds: [0, 1]\n")
        assert float(load_data("my-masks", catalogue=[tmp_path]).test.x.max()) == 1

    def test_from_the_command_line(self, cli, tmp_path):
        x = (RNG.random((40, 8, 8)) * 17).astype(np.uint8)
        np.savez(tmp_path / "small.npz", x=x, y=np.arange(40) % 10)
        asked = ["evaluate", "digits-cnn", "--data", "npz:small.npz", "--attack", "fgsm-linf", "--no-information",
                 "--no-curve", "--no-signs", "--no-corruptions", "--quiet"]  # fmt: skip
        refused = cli(*asked)
        assert refused.returncode == 2
        assert "--data-bounds 0,16" in refused.stderr
        assert cli(*asked, "--data-bounds", "0,16").returncode == 0
        assert "must be two numbers" in cli(*asked, "--data-bounds", "16").stderr


class TestChannels:
    @pytest.mark.parametrize(
        ("shape", "wanted"),
        [
            ((8, 8, 4), (4, 8, 8)),  # was read as 8 channels
            ((4, 8, 8), (4, 8, 8)),
            ((2, 20, 30), (2, 20, 30)),
            ((20, 30, 2), (2, 20, 30)),
            ((16, 16, 12), (12, 16, 16)),
            ((12, 16, 16), (12, 16, 16)),
            ((3, 8, 3), (3, 8, 3)),
            ((8, 8, 3), (3, 8, 8)),
            ((1, 28, 28), (1, 28, 28)),
            ((28, 28, 1), (1, 28, 28)),
        ],
    )
    def test_the_sides_tell(self, shape, wanted, tmp_path):
        x = RNG.random((4, *shape)).astype(np.float32)
        assert Dataset.from_arrays(x, [0, 1, 0, 1]).shape == wanted
        np.savez(tmp_path / "x.npz", x=x, y=np.arange(4) % 2)
        assert load_data(f"npz:{tmp_path / 'x.npz'}").shape == wanted

    @pytest.mark.parametrize("shape", [(8, 8, 8), (16, 5, 9), (2, 9, 4)])
    def test_or_do_not(self, shape):
        x = RNG.random((4, *shape)).astype(np.float32)
        with pytest.raises(RobGIBError, match=r"is ambiguous; give channels='first'"):
            Dataset.from_arrays(x, [0, 1, 0, 1])
        assert Dataset.from_arrays(x, [0, 1, 0, 1], channels="first").shape == shape
        assert Dataset.from_arrays(x, [0, 1, 0, 1], channels="last").shape == (shape[2], *shape[:2])


class TestDamagedFiles:
    def test_an_idx_header_of_255_sides(self, tmp_path):
        (tmp_path / "x").write_bytes(bytes([0, 0, 8, 255]) + struct.pack(">255I", *[1] * 255) + b"\0")
        with pytest.raises(RobGIBError, match="its header has 255 sides, not 1 to 4"):
            read_idx(tmp_path / "x")
        (tmp_path / "x").write_bytes(bytes([0, 0, 8, 4]) + struct.pack(">4I", *[2**32 - 1] * 4))  # overflowed
        with pytest.raises(RobGIBError, match="is truncated"):
            read_idx(tmp_path / "x")

    def test_a_number_in_an_npz(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=np.float32(0.5), y=np.arange(1))
        with pytest.raises(RobGIBError, match=r"the images must be an array .*, not one number"):
            load_data(f"npz:{tmp_path / 'x.npz'}")


def save(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), value).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    for i in range(3):
        save(tmp_path / "pets" / "cat" / f"{i}.png", 200 + i)
        save(tmp_path / "pets" / "dog" / f"{i}.png", 40 + i)
    return tmp_path / "pets"


def told(where):
    with pytest.warns(RobGIBWarning) as seen:
        data = load_data(f"folder:{where}")
    assert len(seen) == 1
    return data, str(seen[0].message)


class TestFolders:
    def test_links_inside_a_class_are_left_out(self, pictures):
        """`ln -s ..` added the pictures of other classes under its label."""
        (pictures / "cat" / "all").symlink_to("..")
        (pictures / "loop").symlink_to("..")
        data, message = told(pictures)
        assert (data.classes, len(data.test)) == (("cat", "dog"), 6)
        assert message.endswith("left out: 2 that are symbolic links to folders (loop, cat/all).")

    def test_links_to_files_and_to_classes_elsewhere_are_followed(self, pictures, tmp_path):
        save(tmp_path / "elsewhere" / "x.png", 100)
        (pictures / "emu").symlink_to(tmp_path / "elsewhere")
        (pictures / "cat" / "x.png").symlink_to(tmp_path / "elsewhere" / "x.png")
        data, message = told(pictures)
        assert (data.classes, len(data.test)) == (("cat", "dog", "emu"), 8)
        assert message.endswith("1 are symbolic links to files elsewhere (cat/x.png).")

    def test_links_to_what_is_in_the_folder_anyway_are_left_out(self, pictures, tmp_path):
        """Such a picture was taken under two labels, without a word."""
        (pictures / "cat" / "x.png").symlink_to(pictures / "dog" / "0.png")
        (pictures / "emu").symlink_to("dog")
        data, message = told(pictures)
        assert (data.classes, len(data.test)) == (("cat", "dog"), 6)
        assert "1 that are symbolic links to folders (emu)" in message
        assert "1 that are symbolic links to other pictures of the folder (cat/x.png)" in message

    def test_links_from_the_test_to_the_training_pictures(self, pictures):
        (pictures.parent / "all").mkdir()
        for part in ("train", "test"):
            shutil.copytree(pictures, pictures.parent / "all" / part)
        (pictures.parent / "all" / "test" / "cat" / "x.png").symlink_to("../../train/cat/1.png")
        data, message = told(pictures.parent / "all")
        assert len(data.test) == 6
        assert "symbolic links to other pictures of the folder (test/cat/x.png)" in message

    def test_pictures_that_all_lie_in_a_hidden_store(self, pictures):
        """As git-annex and DVC keep them."""
        for file in sorted(pictures.glob("*/*.png")):
            held = pictures / ".store" / f"{file.parent.name}{file.name}"
            held.parent.mkdir(exist_ok=True)
            file.rename(held)
            file.symlink_to(held)
        data, message = told(pictures)
        assert len(data.test) == 6
        assert "6 are symbolic links to files elsewhere" in message

    def test_what_is_hidden_or_no_picture_is_left_out_and_said(self, pictures):
        (pictures / ".git").mkdir()
        save(pictures / ".ipynb_checkpoints" / "a.png", 1)
        save(pictures / "cat" / ".ipynb_checkpoints" / "0.png", 1)
        (pictures / "dog" / "._0.png").write_bytes(b"of a Mac")
        (pictures / "dog" / "notes.txt").write_text("x")
        data, message = told(pictures)
        assert (data.classes, len(data.test)) == (("cat", "dog"), 6)
        assert (
            "left out: 4 whose names begin with a dot (.git, .ipynb_checkpoints, cat/.ipynb_checkpoints, …)" in message
        )
        assert "1 without a picture's ending (.bmp, " in message
        assert message.endswith("(dog/notes.txt).")

    @pytest.mark.parametrize("beside", [".git", "docs"])
    def test_train_and_test_are_parts_whatever_lies_beside(self, pictures, beside):
        """They became classes."""
        pictures.rename(pictures.parent / "test")
        for i in range(12):
            save(pictures / "train" / "cat" / f"{i}.png", 200)
            save(pictures / "train" / "dog" / f"{i}.png", 40)
        (pictures.parent / "test").rename(pictures / "test")
        (pictures / beside).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobGIBWarning)
            data = load_data(f"folder:{pictures}")
        assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 22, 6)

    def test_a_class_without_pictures(self, pictures):
        (pictures / "bird").mkdir()
        with pytest.raises(RobGIBError, match=r"bird holds no pictures \(.*\); remove"):
            load_data(f"folder:{pictures}")

    def test_gifs_are_read_and_of_several_frames_the_first(self, pictures):
        save(pictures / "cat" / "one.gif", 90)
        more = [Image.new("L", (6, 4), v) for v in (60, 70)]
        for name in ("two.gif", "two.tiff", "two.png", "two.webp"):
            lossless = {"lossless": True} if name.endswith("webp") else {}
            save(pictures / "dog" / name, 50, save_all=True, append_images=more, **lossless)
        data, message = told(pictures)
        assert len(data.test) == 11
        values = (255 * data.test.x[:, 0, 0, 0]).round().int().tolist()
        assert sorted(values) == [40, 41, 42, 50, 50, 50, 50, 90, 200, 201, 202]
        assert message.endswith("of 4 only the first frame is read (dog/two.gif, dog/two.png, dog/two.tiff, …).")

    @pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
    @pytest.mark.parametrize("turn", range(1, 9))
    def test_pictures_are_turned_upright(self, ending, turn, tmp_path):
        block = np.kron(np.array([[0, 80, 160], [240, 120, 40]], np.uint8), np.ones((8, 8), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = turn
        flat, quality = Image.fromarray(block), {"quality": 100} if ending == "jpg" else {}
        (tmp_path / "a").mkdir()
        flat.save(tmp_path / "a" / f"x.{ending}", exif=exif, **quality)
        with open(tmp_path / "a" / f"x.{ending}", "rb") as file:
            wanted = np.asarray(ImageOps.exif_transpose(Image.open(file))).astype(int)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            x = load_data(f"folder:{tmp_path}").test.x[0, 0]
        assert x.shape == wanted.shape
        assert np.abs((255 * x.numpy()).round() - wanted).max() <= 1
        assert ["EXIF orientation" in str(w.message) for w in seen] == [True] * (turn > 1)

    def test_a_tree_that_is_none_of_pictures_is_refused_at_once(self, monkeypatch):
        """The links of /proc were followed for ever."""
        walked = []
        walk = reader.os.walk
        monkeypatch.setattr(reader.os, "walk", lambda *a, **o: walked.append(a) or walk(*a, **o))
        with pytest.raises(RobGIBError, match=r"/proc/\S+ (holds no pictures|cannot be read)"):
            load_data("folder:/proc")
        assert len(walked) == 1

    @pytest.mark.parametrize("change", ["gone", "other", "larger"])
    def test_a_picture_that_changes_while_it_is_used(self, pictures, change):
        data = load_data(f"folder:{pictures}", lazy=True)
        one = pictures / "cat" / "1.png"
        one.unlink()
        if change != "gone":
            Image.new("L", (6, 4) if change == "other" else (9, 9), 7).save(one)
        for use in (data.test.x.read, lambda: data.digest):
            with pytest.raises(RobGIBError, match=r"1\.png (has changed since|cannot be read: No such file)"):
                use()


class TestKeptFolders:
    """What the cache holds about a folder spares reading it, and no more."""

    @pytest.fixture
    def old(self, pictures, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(reader, "_SETTLED", -1.0)
        return pictures

    def test_nothing_is_opened_for_a_run_that_is_shown_again(self, old, tmp_path, monkeypatch):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 2))
        asked = {"attacks": ["fgsm-linf:eps=0.1"], "estimators": [], "signs": False, "corruptions": False,
                 "known": lambda request: robgib.results.find_run(tmp_path / "runs", request),
                 "save": lambda run: robgib.results.save_run(run, tmp_path / "runs")}  # fmt: skip
        first = robgib.evaluate(net, f"folder:{old}", **asked)
        opened = []
        whole = reader._opened
        monkeypatch.setattr(reader, "_opened", lambda name: opened.append(name) or whole(name))
        monkeypatch.setattr(reader._Pictures, "_digest", lambda self, row: opened.append(row))
        again = robgib.evaluate(net, f"folder:{old}", **asked)
        assert again.config["request"] == first.config["request"]
        assert opened == []

    def test_a_change_is_seen(self, old):
        def digest():
            return load_data(f"folder:{old}", lazy=True).digest

        first = digest()
        assert digest() == first
        one = old / "cat" / "1.png"
        content = one.read_bytes()
        save(one, 99)
        assert digest() != first
        one.write_bytes(content)
        assert digest() == first
        one.rename(old / "dog" / "9.png")
        assert digest() != first

    def test_a_damaged_cache_is_done_without(self, old, tmp_path):
        first = load_data(f"folder:{old}", lazy=True).digest
        kept = list((tmp_path / "cache" / "folders").iterdir())
        assert len(kept) == 1
        for content in (b"", kept[0].read_bytes()[:100]):
            kept[0].write_bytes(content)
            assert load_data(f"folder:{old}", lazy=True).digest == first

    def test_new_files_are_not_trusted(self, pictures, tmp_path, monkeypatch):
        """One that changes within the tick of a clock would look the same."""
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        assert load_data(f"folder:{pictures}", lazy=True).digest
        assert not (tmp_path / "cache").exists()


class TestRefusedFirst:
    """What can be refused is refused before pictures are read."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"attacks": ["pdg-linf"]}, "unknown attack"),
            ({"estimators": ["gausian"]}, "unknown estimator"),
            ({"layers": ["blok1"]}, "unknown layer 'blok1'"),
            ({"attacks": ["pgd-linf:setps=3"]}, "unknown parameter"),
        ],
    )
    def test_misspelt_names(self, options, message, monkeypatch):
        class Unread(torch.utils.data.Dataset):
            def __len__(self):
                return 5

            def __getitem__(self, row):
                raise AssertionError("an image was read")

        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 2))
        with pytest.raises(RobGIBError, match=message):
            robgib.evaluate(net, Unread(), **options)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--arch", "vgx"], "unknown architecture 'vgx'"),
            (["--arch", "nowhere:make"], "module 'nowhere' does not import"),
            (["--arch", "torchvision:resnet81"], "unknown torchvision model 'resnet81'"),
            (["--arch", "mlp", "--attack", "pdg"], "unknown attack 'pdg'"),
            (["--arch", "mlp", "--layer", "blok", "--attack", "fgsm-linf:eps=0.1"], "unknown layer 'blok'"),
            (["--arch", "mlp", "--features", "patsches:2", "--attack", "fgsm-linf:eps=0.1"], "patsches"),
            (["--arch", "mlp", "--features", "patches:9", "--attack", "fgsm-linf:eps=0.1"], "no such grid"),
        ],
    )
    def test_from_the_command_line(self, more, message, cli, pictures, monkeypatch):
        torch.save(robgib.models.build("mlp", (1, 4, 6), 2).state_dict(), pictures.parent / "net.pt")
        read = []
        whole = reader._Pictures.read
        monkeypatch.setattr(reader._Pictures, "read", lambda self, row: read.append(row) or whole(self, row))
        monkeypatch.setattr(reader, "_LOOKED_AT", 1)
        refused = cli("evaluate", "net.pt", "--data", f"folder:{pictures}", *more)
        assert refused.returncode == 2
        assert message in refused.stderr.replace("\n", " ")
        assert len(set(read)) <= 4


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RobGIBError, match="the working folder no longer exists"):
        robgib.models.build("nowhere:make", (1, 4, 4), 2, allow_code=True)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    asked = {"attacks": ["fgsm-linf:eps=0.1"], "estimators": [], "signs": False, "curve": False, "corruptions": False}
    run = robgib.evaluate(net, (torch.rand(8, 1, 4, 4), torch.arange(8) % 2), **asked)
    assert len(run.outcomes) == 8
