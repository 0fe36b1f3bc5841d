"""Usual slips between a model and its data are found by a paired test, at chance and above it, and said first."""

import io
import warnings

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import robgib
from robgib import RobGIBWarning
from robgib.evaluation import Record
from robgib.models.inference import PreparedModel, answers, prepare
from robgib.models.normalization import NORMALIZATIONS, Ported, normalization
from robgib.reporting import print_runs, runs_json, write_report
from robgib.robustness import chance


def reading_warnings(*arguments, **options):
    return [one.text for one in chance.reading_warnings(*arguments, **options)]


class Levels(nn.Module):
    """Tells dark, grey and bright apart around 0, as a network for normalised images does."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([-mean, self.edge - mean.abs(), mean], 1) + 0 * x.flatten(1)[:, :1]


class Renamed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).roll(3, 1)


class Halved(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.5


def doubts(model, data, count=300):
    x, y = data.test.x[:count], data.test.y[:count]
    prepared = prepare(model, x, classes=10)
    return reading_warnings(prepared, x, y, answers(prepared, x, y, classes=10).right)


def test_nothing_is_said_of_a_model_that_tells(digits, digits_cnn):
    assert doubts(digits_cnn, digits) == []


@pytest.mark.parametrize(
    ("levels", "edge", "words"),
    [
        ((0.1, 0.5, 0.9), 0.4, "with a normalisation to [−1, 1] it would be 100%"),
        ((0.9, 0.5, 0.1), 0.4, "with its classes in another order it would be 67%"),
        ((0.0001, 0.5, 0.7), 127, "or another order of the classes helps"),
    ],
)
def test_what_helps_is_named(levels, edge, words):
    y = torch.arange(90) % 3
    x = torch.tensor(levels)[y].view(-1, 1, 1, 1).expand(-1, 1, 4, 4) + 0.02 * torch.rand(90, 1, 4, 4)
    model = Levels(edge)
    prepared = prepare(model, x, classes=3)
    (doubt,) = reading_warnings(prepared, x, y, answers(prepared, x, y, classes=3).right)
    assert "no better than chance (33.3%, the largest class)" in doubt
    assert words in doubt


def test_a_network_that_was_trained_on_the_data_is_not_read_otherwise(recwarn):
    """An undertrained network may do better on brighter images, as behind another normalisation."""

    class Faint(nn.Module):
        def forward(self, x):
            bright = x.mean((1, 2, 3))
            return torch.stack([torch.full_like(bright, 0.6), bright], 1) + 0 * x.flatten(1)[:, :1]

    y = torch.arange(90) % 2
    x = (0.1 + 0.4 * y).view(-1, 1, 1, 1) + 0.02 * torch.rand(90, 1, 8, 8)
    prepared = prepare(Faint(), x, classes=2)
    right = answers(prepared, x, y, classes=2).right
    assert "normalis" in reading_warnings(prepared, x, y, right)[0]
    at_chance = "clean accuracy of 50.0% is no better than chance (50.0%, the largest class)"
    assert reading_warnings(prepared, x, y, right, alternatives=False) == [at_chance]
    part = robgib.Split(x, y)
    data = robgib.Dataset("faint", part, part, part, ("dark", "bright"), {"linf": 0.01, "l2": 0.1, "l1": 1.0})
    trained = {"kind": "zoo", "recipe": "faint", "recipe_digest": "", "test_accuracy": 0.5, "trained": True}
    for source, warned in ((trained, False), ({**trained, "data": "faint"}, True), ({}, True)):
        recwarn.clear()
        warnings.simplefilter("always")
        run = robgib.evaluate(
            Faint(), data, attacks=["fgsm-linf"], estimators=[], samples=90, signs=False, source=source, progress=False
        )
        assert ("normalis" in run.config["reading_warnings"][0]) == warned
        assert any("normalis" in str(one.message) for one in recwarn) == warned


def test_a_normalisation_that_is_done_twice_is_found(digits, digits_cnn):
    (told,) = doubts(normalization("half").before(digits_cnn, 1), digits)
    assert "with no normalisation it would be" in told  # of ours an option takes the place
    (told,) = doubts(nn.Sequential(Halved(), digits_cnn), digits)
    assert "with a normalisation to [−1, 1] undone, as if the images were normalised twice it would be" in told
    assert "take one of the two out of it, or undo it: x * 0.500 + 0.500" in told


def test_another_order_of_the_classes_is_found(digits, digits_cnn):
    (doubt,) = doubts(Renamed(digits_cnn), digits)
    assert "with its classes in another order it would be" in doubt


def test_a_network_that_knows_nothing_is_said_to(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data.zero_()
    (doubt,) = doubts(model, digits)
    assert doubt.endswith("or another order of the classes helps")


def test_few_images_say_nothing(digits):
    assert doubts(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, count=10) == []


class Before(nn.Module):
    """A network that wants its images otherwise: ``change`` takes that back."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.model(self.change(x))


def undone(name):
    """As a network for images that are normalised so, which gets them as they are."""
    mean, std = (v[0] for v in NORMALIZATIONS[name])
    return lambda x: x * std + mean


class Shifted(Before):
    def forward(self, x):
        return self.model(x).roll(1, 1)


class TestAboveChance:
    """A slip need not lower the accuracy to chance: it is looked for wherever enough answers are wrong."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (undone("mnist"), "with MNIST's normalisation it would be"),
            (lambda x: (0.3 + 0.7 * x) / 2, "the mean and standard deviation of these images|a normalisation to|MNIST"),
            (lambda x: 0.4 + x / 255 * 0.6, "with colours from 0 to 255 it would be"),
            (lambda x: 0.9 - 0.8 * x, "with black and white exchanged it would be"),
        ],
    )
    def test_the_way_that_helps_is_named_with_its_option(self, change, words, digits, digits_cnn):
        (doubt,) = doubts(Before(digits_cnn, change), digits)
        assert any(word in doubt for word in words.split("|")), doubt
        assert "exact paired test" in doubt

    def test_more_than_chance_is_right_and_more_could_be(self, digits, digits_cnn):
        model = Before(digits_cnn, undone("half"))
        x, y = digits.test.x[:300], digits.test.y[:300]
        prepared = prepare(model, x, classes=10)
        share = answers(prepared, x, y, classes=10).right.mean()
        assert share > 0.2  # no class is a fifth of the images
        (doubt,) = reading_warnings(prepared, x, y, answers(prepared, x, y, classes=10).right)
        assert doubt.startswith(f"clean accuracy is {share:.1%}; with ")
        assert "with a normalisation to [−1, 1] it would be 100%" in doubt
        assert "give --normalize half" in doubt

    def test_blue_green_red(self):
        torch.manual_seed(0)
        y = torch.arange(240) % 2
        x = torch.rand(240, 3, 4, 4) * 0.6
        x[y == 1, 0] += 0.4
        x[y == 0, 2] += 0.25
        model = Before(nn.Identity(), lambda x: x.mean((2, 3))[:, [0, 2]] - torch.tensor([0.08, 0.0]))
        assert "blue, green, red" in self.doubt(model, x, y)
        assert "x.flip(1)" in self.doubt(model, x, y)

    def doubt(self, model, x, y):
        prepared = prepare(model, x, classes=2)
        (doubt,) = reading_warnings(prepared, x, y, answers(prepared, x, y, classes=2).right)
        return doubt

    def test_classes_one_higher(self, digits, digits_cnn):
        (doubt,) = doubts(Shifted(digits_cnn, None), digits)
        assert "with its classes numbered one lower it would be" in doubt or "in another order" in doubt

    def test_the_normalisation_of_a_library_s_network_is_replaced_not_doubled(self, digits, digits_cnn):
        right = Ported(Before(digits_cnn, undone("mnist")), (0.1307,), (0.3081,), widen=False).eval()
        wrong = Ported(Before(digits_cnn, undone("mnist")), (0.9,), (0.9,), widen=False).eval()
        plain = Ported(digits_cnn, (0.9,), (0.9,), widen=False).eval()
        assert doubts(right, digits) == []
        (doubt,) = doubts(wrong, digits)
        assert "--normalize mnist" in doubt
        (doubt,) = doubts(plain, digits)
        assert "with no normalisation it would be 100%" in doubt
        assert "--normalize none" in doubt

    def test_the_option_that_is_named_brings_what_is_promised(self, digits, digits_cnn):
        model = Before(digits_cnn, undone("mnist"))
        mended = normalization("mnist").before(model, 1).eval()
        assert doubts(mended, digits) == []


class Watched(Before):
    """Counts the images that it is given, and refuses what is not in [0, 1] where it is strict."""

    def __init__(self, model, strict=False):
        super().__init__(model, None)
        self.seen, self.strict = 0, strict
        self.register_buffer("mean_seen", torch.zeros(1))

    def forward(self, x):
        assert not (self.strict and (x.min() < 0 or x.max() > 1)), "images are in [0, 1]"
        self.seen += len(x)
        self.mean_seen += x.mean()
        return self.model(x)


class TestCost:
    def test_nothing_is_tried_where_no_test_could_tell(self, digits, digits_cnn):
        model = Watched(digits_cnn)
        x, y = digits.test.x, digits.test.y
        prepared = prepare(model, x, classes=10)
        right = answers(prepared, x, y, classes=10).right
        model.seen = 0
        assert reading_warnings(prepared, x, y, right) == []
        assert model.seen == 0

    def test_one_batch_is_tried_and_nothing_of_the_model_stays_changed(self, digits, digits_cnn):
        model = Watched(Before(digits_cnn, lambda x: x.flip(3)))
        x, y = digits.test.x, digits.test.y
        prepared = prepare(model, x, classes=10)
        right = answers(prepared, x, y, classes=10).right
        model.seen, before = 0, model.mean_seen.clone()
        reading_warnings(prepared, x, y, right)
        assert 0 < model.seen <= 256 + 10 * 256
        assert torch.equal(model.mean_seen, before)

    def test_a_model_that_refuses_other_images(self, digits, digits_cnn):
        model = Watched(Before(digits_cnn, lambda x: 0.9 - 0.8 * x), strict=True)
        (doubt,) = doubts(model, digits)
        assert "black and white exchanged" in doubt

    def test_a_model_that_answers_at_random_is_asked_once(self, digits, digits_cnn):
        class Noisy(Watched):
            def forward(self, x):
                return super().forward(x + 0.02 * torch.randn_like(x))

        model = Noisy(Before(digits_cnn, undone("mnist")))
        x, y = digits.test.x[:300], digits.test.y[:300]
        prepared = prepare(model, x, classes=10)
        assert prepared.random
        right = answers(prepared, x, y, classes=10).right
        model.seen = 0
        (doubt,) = reading_warnings(prepared, x, y, right)
        assert "MNIST" in doubt
        assert model.seen <= 256 * 11

    def test_text_has_no_colours(self):
        torch.manual_seed(0)
        x, y = torch.rand(100, 12), torch.arange(100) % 2
        prepared = prepare(nn.Linear(12, 2), x, classes=2)
        doubt = reading_warnings(prepared, x, y, answers(prepared, x, y, classes=2).right)
        assert all("--normalize" not in sentence for sentence in doubt)

    def test_chance_alone_names_nothing(self):
        torch.manual_seed(1)
        named = 0
        for seed in range(15):
            generator = torch.Generator().manual_seed(seed)
            x = torch.rand(200, 3, 4, 4, generator=generator)
            y = torch.randint(0, 3, (200,), generator=generator)
            model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
            prepared = PreparedModel(model, model, 256)
            doubt = reading_warnings(prepared, x, y, answers(prepared, x, y, classes=3).right)
            named += any("paired test" in sentence for sentence in doubt)
        assert named == 0


@pytest.mark.parametrize("kind", ["zoo", "robustbench"])
def test_no_option_is_named_that_such_a_model_does_not_take(kind, digits, digits_cnn):
    """--normalize was named for models of the zoo, which refuse it."""
    record = Record(source={"kind": kind})
    asked = {"attacks": [], "estimators": [], "signs": False, "curve": False, "corruptions": False, "samples": 300}
    with pytest.warns(RobGIBWarning, match=r"Python robgib.models.normalization\('mnist'\).before\(model, 1\)") as said:
        robgib.evaluate(Before(digits_cnn, undone("mnist")), digits, record=record, **asked)
    assert not any("--" in str(one.message) for one in said)


def test_it_is_said_first_in_terminal_run_page_and_json(digits, digits_cnn, tmp_path):
    model = Before(digits_cnn, undone("mnist"))
    options = {
        "attacks": ["fgsm-linf:eps=0.05"],
        "estimators": [],
        "curve": False,
        "signs": False,
        "corruptions": False,
    }
    with pytest.warns(RobGIBWarning, match=r"^mine: clean accuracy .*--normalize mnist"):
        run = robgib.evaluate(model, digits, name="mine", samples=200, progress=False, **options)
    (doubt,) = run.config["reading_warnings"]
    assert "reading" not in run.config
    text = io.StringIO()
    console = Console(file=text, width=500)
    print_runs([run], console, console)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("mine: ")
    assert lines[1] == f"  Check first: {doubt}."
    (found,) = runs_json([run], [""])["models"]
    assert found["reading_warnings"] == found["doubts"] == [doubt]
    page = write_report([run], tmp_path / "report.html").read_text()
    assert page.index("--normalize mnist") < page.index("Accuracy, clean and under attack")
    robgib.results.save_run(run, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    assert robgib.load_run(folder).config["reading_warnings"] == [doubt]
    assert np.isfinite(run.robustness["clean_accuracy"]).all()
