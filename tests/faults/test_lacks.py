"""A machine that lacks memory, and processes that die: one sentence, nothing half-written, the others go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robgib.engines import Engine
from robgib.studies.engines import Task, run_tasks
from robgib.zoo.recipe import find_recipe

HUNGRY = """
import torch
from torch import nn


class Hungry(nn.Module):
    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.size = nn.Linear(64, 10), size

    def forward(self, x):
        held = torch.empty(len(x), self.size, dtype=torch.uint8)  # as much memory as large maps would take
        return self.last(x.flatten(1)) + 0 * held[:, :1].float().nan_to_num()


def little():
    return Hungry(16 * 2**20)


def much():
    return Hungry(2**40)
"""

LIMITED = """
import resource, sys, torch
import robgib.cli, robgib.evaluation, robgib.zoo, robgib.reporting, robgib.robustness, robgib.information
torch.zeros(1)
size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), -1))
sys.argv[1:2] = []
robgib.cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no such limit here")
@pytest.mark.parametrize("batch", [(), ("--batch-size", "200")], ids=["found", "chosen"])
@pytest.mark.slow
def test_a_batch_that_memory_does_not_hold_is_halved(tmp_path, digits_cnn, batch):
    (tmp_path / "hungry.py").write_text(HUNGRY)

    def evaluated(factory, spare, *options):
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(spare), "evaluate", "net.pt", "--arch", f"hungry:{factory}",
             "--data", "digits", "--attack", "fgsm-linf:eps=0.1", "--no-information", "--no-curve", "--no-signs",
             "--no-corruptions", "--quiet", "--json", "--fresh", *options],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip

    code = f"import sys, torch; sys.path.insert(0, {str(tmp_path)!r}); import hungry; "
    code += "torch.save(hungry.little().state_dict(), 'net.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    spare = 2**30
    narrow, wide = evaluated("little", spare, *batch), evaluated("little", 0, "--batch-size", "16")
    assert narrow.returncode == 0, narrow.stderr[-2000:]
    told, known = (json.loads(done.stdout)["models"][0] for done in (narrow, wide))
    assert (told["clean"], told["attacks"]) == (known["clean"], known["attacks"])
    before = set(tmp_path.rglob("*"))
    never = evaluated("much", spare, *batch)
    assert never.returncode == 2, never.stdout
    assert "out of memory" in never.stderr
    assert "Traceback" not in never.stderr
    assert {p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)} <= before


def tasks(tmp_path, deaths):
    def work(folder, data, device, progress):
        name = folder.name.split(".")[1]
        tries = tmp_path / f"{name}.tries"
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        (folder / "result").write_text("half")
        if len(tries.read_text()) <= deaths.get(name, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "result").write_text(f"{name} {len(data.test)}")

    recipe = find_recipe("digits-cnn")
    return [Task(name, tmp_path / "out" / name, recipe, work) for name in ("a", "b", "c", "d", "e", "f")]


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [{"b": 99}, {"b": 99, "d": 1}])
def test_a_process_that_dies_fails_alone(tmp_path, digits, deaths):
    (tmp_path / "out").mkdir()
    found = dict(run_tasks(tasks(tmp_path, deaths), Engine(jobs=2)))
    assert sorted(found) == ["a", "b", "c", "d", "e", "f"]
    assert found.pop("b").startswith("its process died: it was killed, or memory did not suffice")
    assert set(found.values()) == {""}
    assert {p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")} == set(found)
    for name in found:
        assert (tmp_path / "out" / name / "result").read_text() == f"{name} {len(digits.test)}"
