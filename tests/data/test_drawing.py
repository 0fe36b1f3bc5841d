"""Which samples are used where fewer are asked for: drawn, whatever order the data lie in."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import robgib
from robgib import Dataset, RobGIBError, RobGIBWarning, Split
from robgib.data import dataset
from robgib.data.dataset import split_information

CLASSES = 5
ASKED = {"attacks": ["fgsm-linf:eps=0.1"], "estimators": [], "curve": False, "signs": False, "corruptions": False}


class Level(nn.Module):
    """Tells the class from the brightness, better of dark images."""

    def forward(self, x):
        level = x.flatten(1).mean(1, keepdim=True)
        return -((level - (torch.arange(CLASSES) + 0.5) / CLASSES) ** 2) * 100


@pytest.fixture
def by_class():
    """A hundred images of five classes, class by class."""
    y = torch.arange(100) // 20
    x = (y.float() + 0.5) / CLASSES + 0.02 * torch.rand(100, generator=torch.Generator().manual_seed(0))
    return x.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), y


class Stream(IterableDataset):
    def __init__(self, pairs, endless=False):
        self.pairs, self.endless = list(pairs), endless

    def __iter__(self):
        yield from self.pairs
        while self.endless:
            yield from self.pairs


def folder_of(x, y, root):
    """The pictures in folders, as torchvision's ImageFolder lists them: class by class."""
    from robgib._torchvision import load_torchvision

    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        place = root / "abcde"[int(label)]
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8)).save(place / f"{i:03}.png")
    torchvision = load_torchvision()
    steps = [torchvision.transforms.Grayscale(), torchvision.transforms.ToTensor()]
    return torchvision.datasets.ImageFolder(str(root), torchvision.transforms.Compose(steps))


@pytest.mark.parametrize("kind", ["arrays", "dataset", "torch", "loader", "stream", "imagefolder", "folder", "npz"])
def test_every_source_is_drawn_from(kind, by_class, tmp_path):
    """The first ten of data that lie class by class were of one class, without a word."""
    x, y = by_class
    none = Split(x[:0], y[:0])
    pairs = TensorDataset(x, y)
    np.savez(tmp_path / "held.npz", x=x.numpy(), y=y.numpy())
    sources = {
        "arrays": lambda: (x, y),
        "dataset": lambda: Dataset("own", none, none, Split(x, y), tuple("abcde")),
        "torch": lambda: pairs,
        "loader": lambda: DataLoader(pairs, batch_size=7),
        "stream": lambda: Stream(pairs),
        "imagefolder": lambda: folder_of(x, y, tmp_path / "pictures"),
        "folder": lambda: folder_of(x, y, tmp_path / "pictures") and f"folder:{tmp_path / 'pictures'}",
        "npz": lambda: f"npz:{tmp_path / 'held.npz'}",
    }
    run = robgib.evaluate(Level(), sources[kind](), samples=10, **ASKED)
    assert np.bincount(run.outcomes["label"]).tolist() == [2] * CLASSES
    if kind not in ("folder", "npz"):  # shuffled as they are loaded
        drawn = run.config["drawn"]
        assert run.outcomes["index"].tolist() == drawn
        assert y[drawn].tolist() == run.outcomes["label"].tolist()


def test_draws_are_seeded_and_nested(by_class):
    split = Split(*by_class)
    assert split.rows(40, 3)[:10].tolist() == split.rows(10, 3).tolist()
    assert split.rows(10, 3).tolist() != split.rows(10, 4).tolist()
    assert sorted(split.rows()) == list(range(100))
    assert Split(*by_class, shuffled=True).rows(10).tolist() == list(range(10))


@pytest.mark.parametrize("name", ["digits", "function:parity-3"])
def test_data_by_name_are_shuffled_already(name):
    """So that figures that were published on the first N of them stay."""
    data = robgib.load_data(name)
    assert data.test.shuffled
    assert data.test.rows(7).tolist() == list(range(7))


def test_until_width_signs_and_corruptions_see_all_classes(by_class, monkeypatch):
    seen = {}
    module = importlib.import_module("robgib.robustness.beside")
    for name in ("corrupted_images", "examine"):
        whole = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda net, x, y, *a, _n=name, _w=whole, **o: seen.update({_n: y}) or _w(net, x, y, *a, **o)
        )
    x, y = (part.repeat(3, *[1] * (part.ndim - 1)) for part in by_class)
    order = y.argsort(stable=True)
    asked = {**ASKED, "signs": True, "corruptions": True, "until_width": 0.3}
    run = robgib.evaluate(Level(), (x[order], y[order]), **asked)
    assert len(run.outcomes) < 300
    for labels in (torch.tensor(run.outcomes["label"].to_numpy()), seen["corrupted_images"][:10]):
        assert np.ptp(np.bincount(labels, minlength=CLASSES)) <= 1
    assert len(set(seen["examine"][:20].tolist())) > 1
    corrupted = run.corrupted[run.corrupted["corruption"] == "noise"]
    assert corrupted["index"].tolist() == run.config["drawn"][: len(corrupted)]


def test_information_is_of_all_classes(by_class):
    x, y = by_class
    none = Split(x[:0], y[:0])
    apart = Dataset("own", Split(x, y), none, Split(x, y), tuple("abcde"))
    alone = Dataset.from_arrays(x, y)
    for data in (apart, alone):
        for _, labels in split_information(data, 20, 0):
            assert np.bincount(labels).tolist() == [4] * CLASSES
    (ours, _), (theirs, _) = split_information(alone, 100, 0)
    assert len(ours) == len(theirs) == 50
    assert torch.equal(torch.cat([ours, theirs]).flatten(1).sum(1).sort()[0], x.flatten(1).sum(1).sort()[0])


def test_classes_that_were_not_drawn_are_named(by_class):
    run = robgib.evaluate(Level(), by_class, samples=3, **ASKED)
    absent = sorted(set("01234") - set(run.outcomes["label"].astype(str)))
    assert run.config["reading"] == [f"2 of the 5 classes are missing among the 3 drawn images: {', '.join(absent)}"]
    assert "reading" not in robgib.evaluate(Level(), by_class, samples=10, **ASKED).config


def test_a_drawn_run_is_verified_against_the_data_as_given(by_class, tmp_path):
    x, y = by_class
    run = robgib.evaluate(Level(), (x, y), samples=10, save_adversarial=True, **{**ASKED, "curve": True})
    folder = robgib.results.save_run(run, tmp_path)
    held, saved = robgib.results.load_run(folder), robgib.results.load_adversarial(folder)
    claims = list(robgib.robustness.verify(held, saved, Level(), (x, y)))
    assert [c.what for c in claims if not c.holds] == []
    other = list(robgib.robustness.verify(held, saved, Level(), (x.flip(0), y)))
    assert "the images and labels are those of the data" in [c.what for c in other if not c.holds]


class TestByIndex:
    """Only the samples that are drawn are decoded, where the labels are known; the draw is that of the whole."""

    class Counted(torch.utils.data.Dataset):
        """Pairs whose labels are held under a name, and which counts what is decoded."""

        def __init__(self, x, y, holds="targets", other=lambda label: label):
            self.x, self.y, self.other, self.decoded = x, y, other, []
            if holds == "samples":
                self.samples = [(f"{i}.png", label) for i, label in enumerate(y.tolist())]
            elif holds:
                setattr(self, holds, y.tolist() if holds == "labels" else y)

        def __len__(self):
            return len(self.y)

        def __getitem__(self, index):
            self.decoded.append(int(index))
            return self.x[index], self.other(int(self.y[index]))

    WRAPPERS = {
        "plain": lambda data: data,
        "loader": lambda data: DataLoader(data, batch_size=7),
        "shuffled loader": lambda data: DataLoader(data, batch_size=7, shuffle=True),
        "subset": lambda data: torch.utils.data.Subset(data, range(len(data))),
        "concatenated": lambda data: torch.utils.data.ConcatDataset([data]),
    }

    @pytest.mark.parametrize(
        ("holds", "wrap"), zip(["targets", "samples", "labels", "targets", "samples"], WRAPPERS, strict=True)
    )
    def test_what_is_not_drawn_is_not_decoded(self, holds, wrap, by_class):
        data = self.Counted(*by_class, holds)
        run = robgib.evaluate(Level(), self.WRAPPERS[wrap](data), samples=10, **ASKED)
        assert sorted(data.decoded) == sorted(run.config["drawn"])
        plain = robgib.evaluate(Level(), by_class, samples=10, **ASKED)
        assert run.config["drawn"] == plain.config["drawn"]
        assert run.outcomes.drop(columns="seconds", errors="ignore").equals(
            plain.outcomes.drop(columns="seconds", errors="ignore")
        )

    def test_labels_that_nobody_knows(self, by_class):
        data = self.Counted(*by_class, holds=None)
        run = robgib.evaluate(Level(), data, samples=10, **ASKED)
        assert len(data.decoded) == 100
        assert run.config["drawn"] == robgib.evaluate(Level(), by_class, samples=10, **ASKED).config["drawn"]

    def test_a_loader_that_chooses_its_samples(self, by_class):
        data = self.Counted(*by_class)
        loader = DataLoader(data, sampler=torch.utils.data.SubsetRandomSampler(range(40, 100)))
        robgib.evaluate(Level(), loader, samples=10, **ASKED)
        assert set(data.decoded) == set(range(40, 100))

    @pytest.mark.parametrize(("other", "most"), [(lambda label: (label + 3) % CLASSES, 20), (lambda label: 1, 20)])
    def test_a_transform_of_the_labels(self, other, most, by_class):
        x, y = by_class
        data = self.Counted(x, y, other=other)
        run = robgib.evaluate(Level(), data, samples=10, **ASKED)
        assert len(set(data.decoded)) <= most
        plain = robgib.evaluate(Level(), (x, torch.tensor([other(int(one)) for one in y])), samples=10, **ASKED)
        assert run.config["drawn"] == plain.config["drawn"]
        assert run.outcomes["label"].equals(plain.outcomes["label"])

    def test_labels_that_are_of_something_else(self, by_class):
        x, y = by_class
        data = self.Counted(x, y)
        data.targets = torch.arange(100) % 7
        run = robgib.evaluate(Level(), data, samples=10, **ASKED)
        assert np.bincount(run.outcomes["label"]).tolist() == [2] * CLASSES

    def test_information_and_the_digest(self, by_class):
        x, y = (part.repeat(5, *[1] * (part.ndim - 1)) for part in by_class)
        data = self.Counted(x, y)
        made = Dataset.from_torch(data, most=30, information=60, seed=3)
        whole = Dataset.from_arrays(x, y)
        for mine, all_of_it in zip(split_information(made, 60, 3), split_information(whole, 60, 3), strict=True):
            assert all(torch.equal(*pair) for pair in zip(mine, all_of_it, strict=True))
        assert torch.equal(made.test.sample(30, 3)[0], Split(x, y).sample(30, 3)[0])
        assert len(set(data.decoded)) == len(data.decoded) <= 30 + 2 * 60
        one, two, changed = (
            Dataset.from_torch(self.Counted(images, y), most=30) for images in (x, x, (x + 0.001).clamp(0, 1))
        )
        before = one.digest
        one.test.x.read()
        assert one.digest == before == two.digest != changed.digest

    def test_everything_is_read_where_everything_is_used(self, by_class):
        data = self.Counted(*by_class)
        run = robgib.evaluate(Level(), data, **ASKED)
        assert len(data.decoded) == len(run.outcomes) == 100


class TestStreams:
    """Iterables of unknown length."""

    def test_one_without_an_end(self, by_class, monkeypatch):
        """It was read for ever."""
        monkeypatch.setattr(dataset, "_ENDLESS", (500, 2**33))
        monkeypatch.setattr(dataset, "_ITERATED", 300)
        stream = Stream(TensorDataset(*by_class), endless=True)
        for source in (stream, DataLoader(stream, batch_size=8)):
            with pytest.raises(RobGIBError, match=r"images and does not end; limit"):
                robgib.evaluate(Level(), source, **ASKED)
            with pytest.warns(RobGIBWarning, match=r"has no length: samples are drawn from its first [35][01][24]"):
                run = robgib.evaluate(Level(), source, samples=10, **ASKED)
            assert np.bincount(run.outcomes["label"]).tolist() == [2] * CLASSES

    def test_one_that_raises(self):
        class Gone(TensorDataset):
            def __getitem__(self, index):
                raise FileNotFoundError(2, "No such file", "7.png")

        with pytest.raises(RobGIBError, match=r"the loader must return pairs of images and labels.*7\.png"):
            Dataset.from_torch(Gone(torch.zeros(3, 1, 2, 2), torch.zeros(3).long()))


def test_a_label_that_the_model_has_no_logit_of(by_class):
    """It counted as an error of the model's."""
    x, y = by_class
    for use in (
        lambda: robgib.robustness.evaluate(Level(), x, y + 2, ["fgsm-linf:eps=0.1"]),
        lambda: robgib.evaluate(Level(), (x, y + 2), **ASKED),
    ):
        with pytest.raises(RobGIBError, match="the model returns 5 logits, but the data have 7 classes"):
            use()
