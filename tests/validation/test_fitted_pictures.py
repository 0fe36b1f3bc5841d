"""Networks on laws that are fitted to pictures: exact conditional draws, truths kept on disk, bounds from one side."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from torch.nn import functional as F

from robgib import RobGIBError
from robgib.data.loaders import load_data
from robgib.information import Imputation
from robgib.information.observer import Resolution
from robgib.validation.fitted_pictures import fitted_pictures
from robgib.validation.known_networks import known_networks
from robgib.validation.laws import Law
from robgib.validation.validate import _held, _views, chosen_tasks, validate

fitted = importlib.import_module("robgib.validation.fitted_pictures")
known = importlib.import_module("robgib.validation.known_networks")
CORRELATED = np.array([[1.0, 0.8, 0.1], [0.8, 1.5, 0.3], [0.1, 0.3, 0.7]])


def test_draws_follow_the_conditional_law():
    law = Law.of(np.ones(1), np.array([[1.0, 2.0, 3.0]]), CORRELATED[None])
    rng = np.random.default_rng(0)
    drawn = law.given(np.array([0, 2]), 4000, rng)(np.array([2.0, 9.0, 2.5]), rng)
    assert (drawn[:, [0, 2]] == [2.0, 2.5]).all()
    gain = np.linalg.solve(CORRELATED[np.ix_([0, 2], [0, 2])], CORRELATED[[0, 2], 1])
    assert drawn[:, 1].mean() == pytest.approx(2 + gain @ [1.0, -0.5], abs=0.05)
    assert drawn[:, 1].var() == pytest.approx(1.5 - gain @ CORRELATED[[0, 2], 1], abs=0.06)


def test_a_mixtures_class_is_drawn_given_what_is_held():
    """By Bayes' rule, counted among draws of all whose first number is near the one held."""
    law = Law.of(np.array([0.3, 0.7]), np.array([[0.0, 5.0], [1.5, -5.0]]), np.stack([np.eye(2), 2 * np.eye(2)]))
    rng = np.random.default_rng(1)
    x, classes = law.draw(200_000, rng)
    near = np.abs(x[:, 0] - 0.4) < 0.1
    conditional = law.given(np.array([0]), 1000, rng)
    assert conditional.posterior(np.array([0.4, 0.0]))[0] == pytest.approx((classes[near] == 0).mean(), abs=0.02)
    assert (conditional(np.array([0.4, 0.0]), rng)[:, 1] > 0).mean() == pytest.approx((x[near, 1] > 0).mean(), abs=0.05)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Digits, as large as Fashion-MNIST's pictures, in its place."""
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path))
    digits = load_data("digits")

    def grown(split):
        return type(split)(F.interpolate(split.x, size=(28, 28)), split.y)

    large = type(digits)("fashion-mnist", grown(digits.train), grown(digits.val), grown(digits.test), digits.classes)
    monkeypatch.setattr(fitted, "load_cached", lambda name: large)
    monkeypatch.setattr(fitted, "_TRAINED", 500)
    monkeypatch.setattr(fitted, "_MASKED", 400)
    monkeypatch.setattr(fitted, "_HELD", 200)
    monkeypatch.setattr(known, "_DRAWN", {"population": 600, "parts": 2, "alone": (8, 40), "rest": (8, 20)})
    monkeypatch.setattr(known, "_COUNTED", 1000)
    for function in (fitted._pictures, fitted._train_part, fitted._network, fitted._law, _views):
        function.cache_clear()
    yield tmp_path / "validation"
    for function in (fitted._pictures, fitted._train_part, fitted._network, fitted._law, _views):
        function.cache_clear()


@pytest.mark.parametrize(
    "name",
    ["gaussian-fashion-cnn", pytest.param("mixture-fashion-cnn", marks=pytest.mark.slow), "real-fashion-cnn"],
)
def test_truths_are_drawn_once_and_kept(small, name, monkeypatch):
    network = fitted.fitted_pictures()[name]
    x, _ = network.draw(400, np.random.default_rng(1))
    seen = {n: Resolution(8, 16, 0.3).fit("rate", z) for n, z in network.all_layers(x).items()}
    found = network.truths(seen)
    assert list(found) == ["blocks.1", "hidden", "logits"]
    for terms, label in found.values():
        assert len(terms) == 9
        assert 0 < terms[0] <= 4
        assert (terms[1:] <= terms[0] + 1e-9).all()
        assert 0 <= label <= 4
    files = {"terms", "counts"} if name != "real-fashion-cnn" else {"terms"}
    assert {"counts" if "-counts-" in f.name else "terms" for f in small.glob(f"{name}-*.json")} == files
    assert len(list(small.glob(f"{name}-*.json"))) == len(files)
    for drawn in ("_drawn_truths", "_drawn_counts"):
        monkeypatch.setattr(type(network), drawn, None)  # they are read from now on
    again = network.truths(seen)
    for layer, (terms, label) in found.items():
        assert again[layer][0] == pytest.approx(terms)
        assert again[layer][1] == pytest.approx(label)


def test_an_adversarially_trained_network_is_asked(small):
    network = fitted.fitted_pictures()["gaussian-fashion-cnn-at"]
    network = type(network)(**{**vars(network), "samples": 60, "donors": 200, "symbols": 8})
    table = validate([Imputation(samples=60, steps=5, donors=2)], [network], repeats=2)
    assert set(table["figure"]) >= {"C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)"}
    assert len(list(small.glob("cnn-*.pt"))) == 1


def test_samples_that_are_estimated_on_are_no_donors(small):
    """Real pictures are drawn in pairs: content of the picture itself would tell its own code."""
    network = fitted.fitted_pictures()["real-fashion-cnn"]
    (x, _), (donors, _) = network.both(np.random.default_rng(0))
    assert not {row.tobytes() for row in x} & {row.tobytes() for row in donors}
    assert len({row.tobytes() for row in x}) == len(x)


def test_a_bound_from_one_side_refutes_what_lies_wholly_beyond_it():
    interval = [SimpleNamespace(value=1.0, low=0.9, high=1.1, flagged=False)] * 2
    for sides, bound, held in (
        ((1, -1), (1.05, 0.95), True),
        ((1, -1), (1.2, 0.8), False),
        ((1, -1), (0.2, 5.0), True),
    ):
        _, inside, _ = _held(interval, np.array(bound), False, sides)
        assert inside.all() == held
        assert inside.any() == held


def test_tasks_that_need_a_data_set_are_asked_for_by_name():
    names = {t.name for t in chosen_tasks()}
    assert "texture" in names
    assert not names & set(fitted_pictures())
    pictures = {t.name for t in chosen_tasks(["pictures"])}
    assert set(fitted_pictures()) | {"checkerboard", "gaussian-digits-4"} <= pictures
    assert not pictures & set(known_networks())
    with pytest.raises(RobGIBError, match="validation task 'fashion'"):
        chosen_tasks(["fashion"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fitted_pictures()))
def test_a_default_figure_of_a_network_on_pictures_is_not_wrong(name):
    """The truth by exact conditional draws, of a network trained on Fashion-MNIST or CIFAR-10."""
    network = fitted_pictures()[name]
    try:
        load_data(network.needs)
    except RobGIBError:
        pytest.skip(f"{network.needs} is not there")
    table = validate([Imputation()], [network], repeats=2)
    assert not table.query("verdict == 'wrong'")[["task", "figure"]].to_numpy().tolist()
