"""Where a study's work is done: killed and taken up again, and on a Ray cluster of which a node dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from joblib import Parallel, delayed

from robgib import RobGIBError
from robgib.engines import Engine
from robgib.studies import cells, measure, measured_rows, read_study
from robgib.studies.engines import Task, run_tasks
from robgib.zoo.recipe import find_recipe
from tests.studies.test_study import QUICK, SMALL, written


def rows_of(study, found, **options):
    table = measured_rows(study, measure(study, found, **options))
    assert not (table["left_out"] != "").any(), table["left_out"].tolist()
    return table


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_to_the_tables_of_two_processes(cache, tmp_path, monkeypatch):
    text = QUICK.replace("samples: 40", "samples: 41")  # measured by no other test
    file = written(tmp_path, text.replace("[0.02, 0.1]", "[0.02, 0.05, 0.1]").partition("controls:")[0])
    study = read_study(file)
    found = cells(study)
    command = [sys.executable, "-m", "robgib", "study", "run", str(file), "--out", str(tmp_path / "out"), "--quiet"]
    held = cache / "measured"
    before = set(held.iterdir()) if held.exists() else set()
    process = subprocess.Popen(command, env={**os.environ, "ROBGIB_CACHE": str(cache)}, start_new_session=True)
    done: set = set()
    for _ in range(6000):  # ends earlier, unless the machine is very busy
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


def children_of(process):
    """Numbers of the processes that a process started, and those started in turn, that still run."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                told = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if told[0] != "Z":
                parents[int(place.name)] = int(told[1])
    found, level = set(), {process}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found


def lives(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(processes, seconds):
    """Those that still run when the time is over."""
    for _ in range(int(seconds / 0.1)):
        if not any(map(lives, processes)):
            return set()
        time.sleep(0.1)
    return {p for p in processes if lives(p)}


WORKING = """
import os, sys, time
from pathlib import Path
from robgib.engines import Engine
from robgib.studies.engines import Task, run_tasks
from robgib.zoo.recipe import find_recipe

NOTED = os.path.abspath(sys.argv[1])  # processes of Ray have other arguments

def work(folder, data, device, progress):
    Path(NOTED, str(os.getpid())).touch()
    while True:
        time.sleep(0.01)

if __name__ == "__main__":
    tasks = [Task(f"task-{k}", Path(NOTED, f"made-{k}"), find_recipe("digits-cnn"), work) for k in range(2)]
    for _ in run_tasks(tasks, Engine(sys.argv[2], jobs=2), progress=lambda *said: None):
        pass
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_no_process_outlives_a_study_that_is_killed(engine, tmp_path):
    """Five were left."""
    if engine == "ray":
        pytest.importorskip("ray")
    (tmp_path / "working.py").write_text(WORKING)
    (tmp_path / "told").mkdir()
    command = [sys.executable, str(tmp_path / "working.py"), str(tmp_path / "told"), engine]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        for _ in range(1200):
            if len(list((tmp_path / "told").glob("[0-9]*"))) == 2 or process.poll() is not None:
                break
            time.sleep(0.1)
        children = children_of(process.pid)
        working = {int(p.name) for p in (tmp_path / "told").glob("[0-9]*")}
        assert len(working) == 2
        assert working <= children
        assert len(children) >= 3  # the two, and the one that carries what they report
        process.kill()
        process.wait()
        assert not ended(working if engine == "ray" else children, 20)  # agents of Ray end later, and compute nothing
    finally:
        for left in children_of(process.pid) | {p for p in locals().get("children", ()) if lives(p)}:
            os.kill(left, signal.SIGKILL)
        process.kill()


def test_a_process_ends_with_one_that_is_not_its_parent(tmp_path):
    """Where something between them started it, as a fork server does."""
    script = (
        "import os, sys, time\nfrom robgib.runtime import end_with\nend_with(int(sys.argv[1]))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    worked_for = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(worked_for.pid)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert child.stdout.readline() == "ready\n"
        assert child.poll() is None
        worked_for.kill()
        worked_for.wait()
        assert child.wait(timeout=30) == -signal.SIGKILL
    finally:
        child.kill()
        worked_for.kill()


def test_a_model_that_ends_the_program_fails_alone(tmp_path):
    def work(folder, data, device, progress):
        if folder.name.startswith(".ends"):
            raise SystemExit(0)
        if folder.name.startswith(".raises"):
            raise KeyError("one")
        (folder / "done").touch()

    recipe = find_recipe("digits-cnn")
    tasks = [Task(name, tmp_path / name, recipe, work) for name in ("ends", "raises", "works")]
    told = dict(run_tasks(tasks, Engine()))
    assert told["ends"] == "its measurement would end the program (SystemExit); take that out of it."
    assert told["raises"] == "its measurement raised KeyError: 'one'."
    assert told["works"] == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["works"]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_view_of_a_study_shows_what_runs(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
    study = read_study(written(tmp_path, QUICK))
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
        ("--address needs --engine ray", ["--address", "auto"]),
        ("unknown device", ["--device", "cpu,gpu"]),
    ):
        done = cli("study", "run", "small.yaml", *options)
        assert done.returncode == 2
        assert words in done.stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    study = read_study(tmp_path / "small.yaml")
    with pytest.raises(RobGIBError, match=r"pip install 'robgib\[ray\]'"):
        measure(study.model_copy(update={"seed": 99}), cells(study), engine=Engine("ray"))
