"""Traces: what is estimated while a network trains, and that training does not notice."""

import pandas as pd
import pytest
import torch

from robgib import RobGIBError, evaluate
from robgib.reporting.page import write_trace
from robgib.training.tracing import Tracer, log_spaced, saved_epochs
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


def test_training_is_the_same_with_and_without(recipe, digits, tmp_path):
    plain, _, _ = train_recipe(recipe, digits, tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    tracer = Tracer(digits, log_spaced(3), ["binned"], samples=200)
    traced, record, path = train_recipe(recipe, digits, tmp_path / "b.safetensors", watch=tracer)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), traced.parameters(), strict=True))
    table = tracer.table
    assert sorted(table["epoch"].unique()) == [0, 1, 2, 3]
    assert not table[["value", "low", "high"]].isna().any().any()
    accuracy = table.groupby("epoch")["test_accuracy"].first()
    assert accuracy[0] < 0.3 < accuracy[3] == pytest.approx(record["test_accuracy"])
    # The last epoch's figures are those of the finished model.
    direct = evaluate(traced, digits, attacks=[], estimators=["binned"], information_samples=200, signs=False).layers
    last = table[table["epoch"] == 3].reset_index(drop=True)
    assert (last["layer"] == direct["layer"]).all()
    assert last["value"].to_numpy() == pytest.approx(direct["value"].to_numpy())
    page = write_trace(table, path, "traced").read_text()
    assert "traced in training" in page
    assert pd.read_csv(path.with_suffix(".trace.csv")).shape == table.shape


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
    assert (tmp_path / "net.trace.html").stat().st_size > 100_000
    for options, message in (
        (("--trace", "--trace-at", "0,9"), "epochs from 0 to 3"),
        (("--trace", "--trace-at", "soon"), "not 'soon'"),
        (("--trace-at", "1"), "--trace-at belongs to --trace or --snapshots"),
        (("--estimator", "gaussian"), "--estimator belongs to --trace"),
        (("--trace", "--estimator", "gausian"), "did you mean 'gaussian'"),
    ):
        assert message in invoke("train", "traced", "--catalogue", ".", *options)


def test_bad_epochs(digits):
    for at in ((), (-1, 2)):
        with pytest.raises(RobGIBError, match="at least one epoch, from 0 on"):
            Tracer(digits, at)


class Stop(Exception):
    pass


def test_a_trace_goes_on_with_its_training(recipe, digits, tmp_path):
    whole = Tracer(digits, (0, 1, 2, 3), ["gaussian"], samples=200)
    train_recipe(recipe, digits, tmp_path / "whole.safetensors", watch=whole)
    keep = tmp_path / "net.trace.csv"
    first, second = (Tracer(digits, (0, 1, 2, 3), ["gaussian"], samples=200, keep=keep) for _ in range(2))

    def broken_off(epoch, model):
        first(epoch, model)
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train_recipe(recipe, digits, tmp_path / "net.safetensors", watch=broken_off)
    train_recipe(recipe, digits, tmp_path / "net.safetensors", watch=second)
    pd.testing.assert_frame_equal(second.table, whole.table)


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
    assert (tmp_path / "after" / "again.trace.html").stat().st_size > 100_000
    tables = [pd.read_csv(tmp_path / name) for name in ("net.trace.csv", "after/again.trace.csv")]
    pd.testing.assert_frame_equal(*tables)


def test_folders_that_are_no_trace(tmp_path, invoke):
    for files, message in (
        (["notes.txt"], "holds no checkpoints"),
        (["last.pt"], "does not tell its epoch"),
        (["epoch-1.pt", "net-01.pth"], "are both of epoch 1"),
    ):
        folder = tmp_path / message.replace(" ", "-")
        folder.mkdir()
        for name in files:
            (folder / name).touch()
        with pytest.raises(RobGIBError, match=message):
            saved_epochs(folder)
    assert "folder 'nowhere' does not exist" in invoke("trace", "nowhere")
