"""Runs in the trackers themselves: what they give back is what was found."""

import json
import os

import pytest

from robgib import RobGIBError
from robgib.reporting.trackers import check_tracker, log_run, metrics, parameters
from robgib.results import load_run

COMMAND = (
    "evaluate", "digits-cnn", "--attack", "fgsm-linf:eps=0.1", "--attack", "pgd-l2:eps=0.5,steps=3", "--samples", "40",
    "--estimator", "binned", "--no-signs", "--no-corruptions", "--quiet", "--json",
)  # fmt: skip


def test_tensorboard_holds_the_figures(cli, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time the finished run is shown again, and its events are written anew
        done = cli(*COMMAND, "--log", "tensorboard")
        assert done.returncode == 0, done.stderr
        assert "TensorBoard events in runs" in done.stderr
        folder = tmp_path / json.loads(done.stdout)["models"][0]["folder"]
        run, events = load_run(folder), EventAccumulator(str(folder), {"images": 0})
        assert len(list(folder.glob("events.*"))) == 1
        events.Reload()
        told = metrics(run)
        assert told["clean_accuracy"] == run.robustness["clean_accuracy"].iloc[0]
        assert len([name for name in told if name.startswith("robust_accuracy/")]) == 2
        assert any(name.startswith("I_X_Z/binned/patches_4/logits") for name in told)
        for name, value in told.items():
            assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name
        curves = [tag for tag in events.Tags()["scalars"] if tag.startswith("curve/")]
        assert len(curves) == 2
        assert len(events.Scalars(curves[0])) == len(run.curve) / 2
        assert events.Tags()["images"]
        assert {"parameters/text_summary", "layers/text_summary", "page/text_summary"} <= set(events.Tags()["tensors"])


def test_mlflow_holds_parameters_figures_tables_and_the_page(cli, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want a database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'tracked'}")
    mlflow.set_tracking_uri(None)
    done = cli(*COMMAND, "--log", "mlflow")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / json.loads(done.stdout)["models"][0]["folder"])
    client = mlflow.tracking.MlflowClient()
    (kept,) = client.search_runs([client.get_experiment_by_name("robgib").experiment_id])
    assert kept.info.run_name == "digits-cnn"
    assert kept.data.metrics == pytest.approx(metrics(run))
    assert kept.data.params == parameters(run)
    names = {part.path for part in client.list_artifacts(kept.info.run_id)}
    assert {"report.html", "robustness.csv", "layers.csv", "config.json"} <= names


def test_what_is_not_there_is_said_before_the_work(cli, tmp_path, monkeypatch):
    done = cli(*COMMAND, "--log", "wandb")
    assert (done.returncode, "known: mlflow, tensorboard" in done.stderr) == (2, True)
    monkeypatch.setattr("robgib.reporting.trackers.TRACKERS", {"mlflow": "nothing_there"})
    done = cli(*COMMAND, "--log", "mlflow")
    assert (done.returncode, "pip install 'robgib[mlflow]'" in done.stderr) == (2, True)
    assert not os.path.exists(tmp_path / "runs")
    with pytest.raises(RobGIBError, match="further package"):
        check_tracker("mlflow")


def test_a_tracker_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    from pathlib import Path

    folder = next(p for p in (Path(__file__).parents[2] / "reports" / "digits").iterdir() if p.is_dir())
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(RobGIBError, match="mlflow does not take the run"):
            log_run(load_run(folder), folder, "mlflow")
    finally:
        mlflow.set_tracking_uri(None)
