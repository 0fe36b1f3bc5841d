"""Where a study's work is done: killed and taken up again, and on a Ray cluster of which a node dies."""

import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from joblib import Parallel, delayed

from robgib import RobGIBError
from robgib.studies import Engine, cells, measure, measured_rows, read_study
from tests.studies.test_study import SMALL, written


def rows_of(study, found, **options):
    table = measured_rows(study, measure(study, found, **options))
    assert not (table["left_out"] != "").any(), table["left_out"].tolist()
    return table


def test_a_study_that_was_killed_goes_on_to_the_tables_of_two_processes(cache, tmp_path, monkeypatch):
    file = written(tmp_path, SMALL.replace("samples: 40", "samples: 41"))  # measured by no other test
    study = read_study(file)
    found = cells(study)
    command = [sys.executable, "-m", "robgib", "study", "run", str(file), "--out", str(tmp_path / "out"), "--quiet"]
    held = cache / "measured"
    before = set(held.iterdir()) if held.exists() else set()
    process = subprocess.Popen(command, env={**os.environ, "ROBGIB_CACHE": str(cache)}, start_new_session=True)
    done: set = set()
    for _ in range(600):
        done = {p for p in (held.iterdir() if held.exists() else ()) if not p.name.startswith(".")} - before
        if done or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(done) <= len(found)
    kept = {p: p.stat().st_mtime_ns for p in done}
    again = rows_of(study, found)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())  # what was finished is not measured again
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "elsewhere"))
    # Two processes share the models, and change nothing.
    pd.testing.assert_frame_equal(rows_of(study, found, engine=Engine(jobs=2)), again)
    # What else shares work in this process still can: a pool left behind was once taken for joblib's own.
    assert Parallel(n_jobs=2)(delayed(abs)(value) for value in (-1, -2)) == [1, 2]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_view_of_a_study_shows_what_runs(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
    study = read_study(written(tmp_path, SMALL))
    found = cells(study)
    told = []
    measure(study, found, engine=Engine(jobs=jobs), progress=lambda *said: told.append(said))
    whole = [said for said in told if said[0] == "study small"]
    assert [said[1] for said in whole] == list(range(len(found) + 1))
    for cell in found:
        stages = [said for said in told if said[0] == f"- {cell.name}"]
        assert stages[-1][1:3] == (0, 0)  # over, and gone from the screen
        words = " ".join(said[3] for said in stages)
        assert "estimating information" in words
        if jobs == 1:  # processes that an earlier test has started keep that one's cache, and its networks
            assert ("training" in words) == (cell.control is None)


@pytest.mark.slow
def test_a_cluster_of_which_a_node_dies_gives_the_same_tables(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    text = SMALL.replace("training.adversary.eps: [0.02, 0.1]", "training.adversary.eps: [0.02, 0.05, 0.1, 0.15]")
    study = read_study(written(tmp_path, text))
    found = cells(study)
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "local"))
    local = rows_of(study, found)
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "ray"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        killer = threading.Timer(8, lambda: cluster.remove_node(nodes[1], allow_graceful=False))
        killer.start()
        finished = []
        table = rows_of(
            study,
            found,
            engine=Engine("ray", address=cluster.address),
            progress=lambda task, done, total, note="": finished.append(done),
        )
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert finished[-1] == len(found)
    pd.testing.assert_frame_equal(table, local)


def test_an_engine_that_is_not_there_is_one_sentence(cli, tmp_path, monkeypatch):
    written(tmp_path, SMALL)
    for words, options in (
        ("unknown engine 'rai'; did you mean 'ray'", ["--engine", "rai"]),
        ("--address belongs to --engine ray", ["--address", "auto"]),
        ("unknown device", ["--device", "cpu,gpu"]),
    ):
        done = cli("study", "run", "small.yaml", *options)
        assert done.returncode == 2
        assert words in done.stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    study = read_study(tmp_path / "small.yaml")
    with pytest.raises(RobGIBError, match=r"pip install 'robgib\[ray\]'"):
        measure(study.model_copy(update={"seed": 99}), cells(study), engine=Engine("ray"))
