"""Traces: what is estimated while a network trains, and that training does not notice."""

import copy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.data.dataset import split_information
from robgib.data.loaders import load_data
from robgib.information import Binned
from robgib.information.measures import pmi_weights
from robgib.information.views import entropy_estimate
from robgib.options import InformationOptions
from robgib.reporting.page import write_trace
from robgib.results import column_names
from robgib.training.compression import Point, agreed_verdict, verdict_of
from robgib.training.tracing import control, log_spaced, saved_epochs, trace
from robgib.zoo.loading import train_recipe
from robgib.zoo.recipe import find_recipe

RECIPE = """
data: digits
architecture: {name: mlp, hidden: [12, 8]}
training: {epochs: 3, batch_size: 32, learning_rate: 0.02}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "traced.yaml").write_text(RECIPE)
    return find_recipe("traced", [tmp_path])


def test_epochs_are_log_spaced():
    assert log_spaced(1) == (0, 1)
    assert log_spaced(8) == (0, 1, 2, 4, 8)
    assert log_spaced(60) == (0, 1, 2, 4, 8, 16, 32, 60)


@pytest.mark.parametrize(("shape", "cut"), [((1, 8, 8), 4), ((3, 6, 9), 3), ((1, 10, 10), 2)])
def test_permuted_patches_keep_the_patches_and_their_labels(shape, cut, digits, recipe):
    x = torch.rand(20, *shape)
    part = replace(digits.train, x=x, y=digits.train.y[:20])
    data = replace(digits, train=part, val=part, test=part)
    changed, training = control("permuted-patches", data, recipe.training)
    assert training == recipe.training
    assert torch.equal(changed.train.y, part.y)
    rows, columns = (side // cut for side in shape[1:])

    def pieces(image):
        return {
            image[:, i : i + rows, j : j + columns].numpy().tobytes()
            for i in range(0, shape[1], rows)
            for j in range(0, shape[2], columns)
        }

    assert all(pieces(a) == pieces(b) for a, b in zip(x, changed.train.x, strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(x, changed.train.x, strict=True)]
    assert sum(moved) > 15  # in an order of each image's own, which four patches have one time in 24
    assert len({tuple((a - b).flatten().tolist()) for a, b in zip(x, changed.train.x, strict=True)}) > 15
    assert not torch.equal(changed.train.x, changed.test.x)
    assert torch.equal(control("permuted-patches", data, recipe.training)[0].train.x, changed.train.x)


def test_permuted_patches_are_for_images(digits, recipe):
    for shape in ((12,), (1, 7, 7)):
        part = replace(digits.train, x=torch.rand(4, *shape), y=digits.train.y[:4])
        with pytest.raises(RobGIBError, match="is for images whose sides are multiples of 4, 3 or 2"):
            control("permuted-patches", replace(digits, train=part, val=part, test=part), recipe.training)


@pytest.fixture
def watched(recipe, digits, tmp_path):
    """The finished network, its record, and what loads it at each epoch."""
    held = {}

    def watch(epoch, model):
        held[epoch] = copy.deepcopy(model)

    model, record, _ = train_recipe(recipe, digits, tmp_path / "b.safetensors", watch=watch)
    return model, record, {epoch: (lambda one=one: one) for epoch, one in held.items()}


def test_training_is_the_same_with_and_without(recipe, digits, watched, tmp_path):
    traced, record, networks = watched
    plain, _, _ = train_recipe(recipe, digits, tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), traced.parameters(), strict=True))
    before = torch.get_rng_state()
    found = trace(networks, digits, ["binned"], samples=200)
    assert torch.equal(before, torch.get_rng_state())
    table = found.table
    assert list(table.columns) == column_names("trace")
    assert sorted(table["epoch"].unique()) == [0, 1, 2, 3]
    accuracy = table.groupby("epoch")["test_accuracy"].first()
    assert accuracy[0] < 0.3 < accuracy[3] == pytest.approx(record["test_accuracy"])
    pd.testing.assert_frame_equal(trace(networks, digits, ["binned"], samples=200).table, table)
    page = write_trace(table, found.compression, tmp_path / "b.safetensors", "traced").read_text()
    assert "traced in training" in page
    assert "Compression in training" in page
    assert pd.read_csv(tmp_path / "b.trace.csv").shape == table.shape
    assert pd.read_csv(tmp_path / "b.compression.csv").shape == found.compression.shape


def test_codes_are_the_same_at_all_epochs(digits):
    """A layer that only shrinks keeps less and less of the code that was fitted on all epochs."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))

    def shrunk(factor):
        model = nn.Sequential(copy.deepcopy(first), nn.Linear(6, 10))
        with torch.no_grad():
            model[0][1].weight *= factor
            model[0][1].bias *= factor
        return model

    networks = {e: (lambda f=f: shrunk(f)) for e, f in enumerate((1.0, 0.3, 0.1, 0.03))}
    found = trace(networks, digits, ["binned"], layers=["0"], samples=400)
    total = found.table.query("term == 'I(X;Z)'")["value"].to_numpy()
    assert (np.diff(total) < 0).all()
    told = found.compression.query("term == 'I(X;Z)'")
    pooled, own = (told[told["units"] == units] for units in ("pooled", "own"))
    assert len(pooled) == len(own) == 3  # with as many codes, half and twice as many
    assert (pooled["verdict"][1:] == "compresses").all()
    # The shrunk layer is the same one in other units: what it tells of the input can all be had from it.
    assert (own["verdict"] == "does not compress").all()
    assert told["verdict"].iloc[0] == "rescaling"


def test_the_same_function_in_another_scale_is_not_compressed(digits, digits_cnn):
    """The hidden layer times c and the head by c, for c that rises and falls again."""

    def scaled(factor):
        model = copy.deepcopy(digits_cnn)
        with torch.no_grad():
            last = [m for m in model.hidden.modules() if isinstance(m, nn.Linear)][-1]
            last.weight *= factor
            last.bias *= factor
            model.head.weight /= factor
        return model

    networks = {e: (lambda f=f: scaled(f)) for e, f in enumerate((1.0, 1.5, 2.0, 1.0))}
    found = trace(networks, digits, ["gaussian", "binned"], layers=["hidden"], samples=400).compression
    first = found.drop_duplicates(["estimator", "term", "view"])
    assert len(first) == 4  # the noise view's I(X;Z) and its C, the rate view's and its
    assert "compresses" not in set(first["verdict"])
    counted = first.query("term == 'I(X;Z)'")
    assert (counted["compression"] > 0.05).any()  # in units pooled over the epochs it looks compressed
    assert found.query("units == 'own'")["compression"].to_numpy() == pytest.approx(0, abs=1e-6)
    assert "rescaling" in set(counted["verdict"])


def test_a_layer_that_loses_directions_is_compressed_in_both_units(digits):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))

    def narrowed(factor):
        model = nn.Sequential(copy.deepcopy(first), nn.Linear(6, 10))
        with torch.no_grad():
            model[0][1].weight[1:] *= factor
            model[0][1].bias[1:] *= factor
        return model

    networks = {e: (lambda f=f: narrowed(f)) for e, f in enumerate((1.0, 0.5, 0.2, 0.1))}
    found = trace(networks, digits, ["gaussian"], layers=["0"], samples=400).compression
    told = found[found["term"] == "I(X;Z)"]
    assert list(told["units"]) == ["pooled", "own"]
    assert (told["verdict"] == "compresses").all()


def test_a_pooled_code_that_resolves_nothing_of_an_epoch_is_marked(digits):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))

    def grown(factor):
        model = nn.Sequential(copy.deepcopy(first), nn.Linear(6, 10))
        with torch.no_grad():
            model[0][1].weight *= factor
            model[0][1].bias *= factor
        return model

    networks = {e: (lambda f=f: grown(f)) for e, f in enumerate((1e-3, 1.0))}
    table = trace(networks, digits, ["binned"], layers=["0"], samples=400).table.query("term == 'I(X;Z)'")
    assert table["value"].iloc[0] < 0.1
    assert list(table["flagged"]) == [True, False]
    assert "has 0.00 bits here, and 5." in table["note"].iloc[0]
    assert "own spread" not in table["note"].iloc[1]


def test_bins_are_swept_and_have_the_range_of_all_inputs():
    """One input of 4,096 lies far out; and a layer whose fall is seen in few bins alone is not said to compress."""
    data = load_data("function:sphere")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        base[1].weight[1] = 0
        base[1].weight[1, :] = 2.0 ** torch.arange(12)
        held = base[1](data.test.x.flatten(1))

    networks = {e: (lambda: base) for e in range(2)}
    found = trace(networks, data, ["exact"], layers=["1"])
    pooled = found.compression.query("units == 'pooled' and term == 'I(X;Z)'")
    range_of_all = f"from {float(held.min()):.3g} to {float(held.max()):.3g}"
    assert [r.split("units in ")[1] for r in pooled["resolution"]] == [
        f"{n} bins {range_of_all}" for n in (30, 15, 60, 120)
    ]
    assert len(found.compression) == 16  # I and C, in two units
    assert (found.compression["verdict"] == "does not compress").all()


@pytest.mark.parametrize(
    ("told", "agreed"),
    [
        ([("pooled", "compresses"), ("own", "undetermined")], "undetermined"),
        ([("pooled", "does not compress"), ("own", "compresses")], "rescaling"),
        ([("pooled", "compresses"), ("pooled", "undetermined"), ("own", "compresses")], "compresses"),
        ([("pooled", "compresses"), ("own", "compresses"), ("own", "does not compress")], "depends on the resolution"),
    ],
)
def test_a_verdict_is_what_all_agree_on(told, agreed):
    assert agreed_verdict(told) == agreed


def test_a_network_that_does_not_change_is_not_compressed(digits, digits_mlp):
    same = {e: (lambda: digits_mlp) for e in range(4)}
    found = trace(same, digits, ["binned", "imputation:donors=2,steps=20"], layers=["2"], samples=200).compression
    assert (found["compression"] == 0).all()
    assert (found["low"] == 0).all()
    assert (found.loc[found["estimator"] == "counted", "high"] == 0).all()
    assert (found.loc[found["estimator"] == "counted", "verdict"] == "does not compress").all()
    assert "compresses" not in set(found["verdict"])  # of 200 samples little more can be told of what is learnt


@pytest.mark.parametrize("kind", ["codes", "pointwise"])
def test_a_flat_truth_gives_an_interval_that_holds_nothing(kind):
    """Epochs of one law, drawn for the same samples with some dependence: in 93% of draws or more the low end is 0."""
    rng, held, missed = np.random.default_rng(0), [], []
    for seed in range(200):
        curve = {}
        base = rng.standard_normal(400)
        for epoch in range(8):
            values = 0.6 * base + 0.8 * rng.standard_normal(400)
            if kind == "codes":
                codes = np.digitize(values, [-1, -0.3, 0.3, 1])
                curve[epoch] = Point(entropy_estimate(codes).value, 0.0, codes=codes)
            else:
                curve[epoch] = Point(3 + values.mean(), 0.0, pointwise=3 + values)
        told = verdict_of(curve, seed // 50)  # the curves of a network share their resamples, too
        held.append(told["low"] == 0)
        missed.append(told["verdict"] == "compresses")
    assert np.mean(held) >= 0.93
    assert np.mean(missed) <= 0.05


def test_a_fall_is_found_and_its_interval_holds_it():
    rng, inside, seen = np.random.default_rng(1), [], []
    truth = np.array([1.0, 2.0, 3.0, 2.6, 2.0])
    for seed in range(100):
        base = rng.standard_normal(500)
        curve = {e: Point(float((t + base).mean()), 0.0, pointwise=t + base + rng.standard_normal(500))
                 for e, t in enumerate(truth)}  # fmt: skip
        curve = {e: replace(p, value=float(p.pointwise.mean())) for e, p in curve.items()}
        told = verdict_of(curve, seed // 50)
        inside.append(told["low"] <= 1 / 3 <= told["high"])
        seen.append(told["verdict"] == "compresses" and told["peak_epoch"] == 2)
    assert np.mean(inside) >= 0.93
    assert np.mean(seen) >= 0.98


def test_controls(recipe, digits):
    same, still = control("untrained", digits, recipe.training)
    assert same is digits
    assert still.learning_rate < 1e-9
    other, _ = control("random-labels", digits, recipe.training)
    assert torch.equal(other.train.x, digits.train.x)
    assert (other.train.y == digits.train.y).float().mean() < 0.2
    assert torch.equal(other.train.y.bincount(), digits.train.y.bincount())


def test_from_the_command_line(cli, invoke, tmp_path):
    (tmp_path / "traced.yaml").write_text(RECIPE)
    done = cli(
        "train", "traced", "--catalogue", ".", "--trace", "--trace-at", "0,3", "--estimator", "gaussian", "--out",
        "net.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Trace: net.trace.html" in done.stdout
    table = pd.read_csv(tmp_path / "net.trace.csv")
    assert set(table["epoch"]) == {0, 3}
    assert set(table["estimator"]) == {"gaussian"}
    assert "Compression in training" in done.stdout
    assert not (tmp_path / "net.epochs").exists()
    told = pd.read_csv(tmp_path / "net.compression.csv")
    both = {"rescaling", "depends on the resolution"}
    assert set(told["verdict"]) <= {"compresses", "does not compress", "undetermined", *both}
    assert (tmp_path / "net.trace.html").stat().st_size > 10_000
    for options, message in (
        (("--trace", "--trace-at", "0,9"), "epochs from 0 to 3"),
        (("--trace", "--trace-at", "soon"), "not 'soon'"),
        (("--trace-at", "1"), "--trace-at needs --trace or --snapshots"),
        (("--estimator", "gaussian"), "--estimator needs --trace"),
        (("--trace", "--estimator", "gausian"), "did you mean 'gaussian'"),
        (("--trace", "--estimator", "exact"), "choose another estimator for 'digits'"),
        (("--control", "untrainde"), "did you mean 'untrained'"),
    ):
        assert message in invoke("train", "traced", "--catalogue", ".", *options)


def test_bad_epochs(digits, digits_cnn):
    for networks in ({}, {-1: lambda: digits_cnn}):
        with pytest.raises(RobGIBError, match="at least one epoch, from 0 on"):
            trace(networks, digits)


def test_of_checkpoints_afterwards(cli, tmp_path):
    (tmp_path / "traced.yaml").write_text(RECIPE)
    done = cli(
        "train", "traced", "--catalogue", ".", "--trace", "--snapshots", "--trace-at", "0,2,3",
        "--estimator", "gaussian", "--out", "net.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Snapshots: net.epochs" in done.stdout
    assert list(saved_epochs(tmp_path / "net.epochs")) == [0, 2, 3]
    done = cli("trace", "net.epochs", "--estimator", "gaussian", "--out", "after/again.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "after" / "again.trace.html").stat().st_size > 10_000
    tables = [pd.read_csv(tmp_path / name) for name in ("net.trace.csv", "after/again.trace.csv")]
    pd.testing.assert_frame_equal(*tables)


def test_a_control_from_the_command_line(cli, tmp_path):
    (tmp_path / "traced.yaml").write_text(RECIPE)
    done = cli(
        "train", "traced", "--catalogue", ".", "--trace", "--trace-at", "0,3", "--control", "untrained",
        "--estimator", "binned",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = pd.read_csv(tmp_path / "traced-untrained.compression.csv")
    assert (told.loc[told["estimator"] == "counted", "verdict"] == "does not compress").all()
    assert "compresses" not in set(told["verdict"])


def test_folders_that_are_no_trace(tmp_path, invoke):
    for files, message in (
        (["notes.txt"], "holds no checkpoints"),
        (["last.pt"], "has no epoch in its record or name"),
        (["epoch-1.pt", "net-01.pth"], "are both of epoch 1"),
    ):
        folder = tmp_path / message.replace(" ", "-")
        folder.mkdir()
        for name in files:
            (folder / name).touch()
        with pytest.raises(RobGIBError, match=message):
            saved_epochs(folder)
    assert "folder 'nowhere' does not exist" in invoke("trace", "nowhere")


def test_a_layer_that_collapsed_ends_at_nothing(digits, digits_cnn):
    """Its C(X;Z) was left out where it was 0, so that the trace ended at the epoch before."""
    dead = copy.deepcopy(digits_cnn)
    for parameter in dead.parameters():
        parameter.data.zero_()
    found = trace(
        {0: lambda: digits_cnn, 1: lambda: dead},
        digits,
        ["imputation:donors=2,steps=20"],
        layers=["hidden"],
        samples=100,
    )
    last = found.compression.drop_duplicates("term").set_index("term")
    for term in ("I(X;Z)", "C(X;Z)"):
        assert last.loc[term, "final"] == 0
        assert last.loc[term, "compression"] == 1
        assert last.loc[term, "verdict"] == "compresses"
    at_the_end = found.table[(found.table["epoch"] == 1) & (found.table["term"] == "C(X;Z)")]
    assert (at_the_end[["value", "low", "high"]] == 0).all(axis=None)


class Careless(Binned):
    """A plug-in that changes the network on which it estimates."""

    name: ClassVar[str] = "careless"
    network: ClassVar[nn.Module]

    def of_network(self, *args):
        with torch.no_grad():
            next(self.network.parameters()).add_(1)
        return super().of_network(*args)


def test_a_plug_in_that_changes_the_network_is_refused_in_a_trace_too(digits, digits_cnn):
    """A trace captured layers by itself, and did not check that; an evaluation did."""
    Careless.network = copy.deepcopy(digits_cnn)
    before = copy.deepcopy(Careless.network.state_dict())
    with pytest.raises(RobGIBError, match="'careless', epoch 0: it changed the model"):
        trace({0: lambda: Careless.network}, digits, [Careless()], layers=["logits"], samples=60)
    assert all(torch.equal(before[k], v) for k, v in Careless.network.state_dict().items())


def test_a_trace_takes_the_options_of_an_evaluation(digits, digits_cnn):
    options = InformationOptions(layers=["logits"], features="patches:2", codes=10)
    found = trace({0: lambda: digits_cnn}, digits, ["binned"], samples=60, options=options)
    by_name = trace(
        {0: lambda: digits_cnn}, digits, ["binned"], samples=60, layers=["logits"], features="patches:2", codes=10
    )
    pd.testing.assert_frame_equal(found.table, by_name.table)
    with pytest.raises(RobGIBError, match="a trace takes one partition of the input, not 2; give one of them"):
        trace({0: lambda: digits_cnn}, digits, ["binned"], features=["patches:2", "patches:4"])
    with pytest.raises(RobGIBError, match="unknown option of trace: 'layer'; did you mean 'layers'"):
        trace({0: lambda: digits_cnn}, digits, ["binned"], layer=["logits"])


def test_a_trace_is_weighted_by_what_the_network_predicts(digits, digits_cnn):
    """At one epoch, every term is that of a weighted evaluation's counted code; an untrained network has no weights."""
    options = {"layers": ["hidden"], "samples": 300, "features": "patches:2", "seed": 0}
    plain, weighted = (
        trace({1: lambda: digits_cnn}, digits, ["binned"], pmi=pmi, **options).table.set_index("term")
        for pmi in (False, True)
    )
    x, y = split_information(digits, 300, 0)[0]
    weights = pmi_weights(digits_cnn(x).argmax(1).numpy(), y.numpy())
    assert weights.std() > 0.01
    assert weighted.loc["I(X;Z)", "value"] != plain.loc["I(X;Z)", "value"]
    assert weighted.loc["C(X;Z)", "value"] != plain.loc["C(X;Z)", "value"]
    assert weighted["note"].str.contains("weighted by PMI").all()
    assert not plain["note"].str.contains("weighted by PMI").any()


def test_resampled_codes_keep_their_weights():
    """With all weight on samples of one symbol the entropy is 0 in every resample, whatever the other codes are."""
    codes = np.repeat([0, 1], 200)
    weights = np.repeat([2.0, 0.0], 200)
    point = Point(0.0, 0.0, codes=codes, weights=weights)
    fell = verdict_of({0: Point(1.0, 0.0, codes=codes), 1: point}, 0)
    assert fell["low"] > 0.8
    flat = verdict_of({0: point, 1: point}, 0)
    assert np.isnan(flat["compression"])  # nothing to compress
