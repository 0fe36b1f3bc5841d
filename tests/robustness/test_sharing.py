"""Shards of attacks computed by several processes, devices or machines: the tables of one process."""

import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robgib
from robgib import RobGIBError
from robgib.engines import Engine, Returned, Workers, _Own, engine_of
from robgib.files import Parts
from robgib.options import Context
from robgib.results import RUN_TABLES
from robgib.robustness import evaluate
from robgib.robustness.run_attack import run_attack

run_module = sys.modules[run_attack.__module__]
ARRAYS = ("prediction", "right", "right_8bit", "linf", "l2", "distance", "attacked")


class Backwards(Workers):
    """Computes the calls from the last one on, each with values that went through a pickle."""

    def __init__(self, most=None):
        super().__init__(Engine(jobs=2))
        self.most, self.shards = most, 0

    def share(self, value):
        return _Own(value)

    def run(self, function, calls):
        order = list(reversed(range(len(calls)))) if self.most is None else list(range(self.most))
        for number in order:
            self.shards += 1
            torch.manual_seed(number)  # what a process drew before does not matter
            np.random.seed(number)  # noqa: NPY002
            yield Returned(number, function("cpu", *calls[number]))
        if self.most is not None:
            raise KeyboardInterrupt


class Noisy(nn.Module):
    """Answers at random."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.02 * torch.randn_like(x))


def same(one, two):
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert one.pictures.keys() == two.pictures.keys()
    assert all(np.array_equal(v, two.pictures[k]) for k, v in one.pictures.items())
    assert (one.passes.forward, one.passes.backward) == (two.passes.forward, two.passes.backward)
    assert one.notes == two.notes


SPECS = (
    "pgd-linf:steps=4", "apgd-dlr-l2:steps=5", "ddn-l2:steps=5", "square-linf:queries=10", "fab-l2:steps=3", "fgsm-l1",
    pytest.param("fast-linf:short=2,long=3,probe=5", marks=pytest.mark.slow),
    "pgd-linf:steps=3,restarts=2,target=random",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_shards_give_the_results_of_one_process(spec, digits, digits_mlp, monkeypatch):
    """Whatever the order in which they are computed: random numbers belong to a sample or a shard."""
    monkeypatch.setattr(run_module, "_POOL", 200)
    x, y = digits.test.x[:300], digits.test.y[:300]
    attack = robgib.make_attack(spec, {"linf": 0.05, "l2": 0.3, "l1": 1.0})
    workers = Backwards()
    options = {"pictures": 5, "seed": 3}
    one = run_attack(digits_mlp, x, y, attack, **options)
    same(run_attack(digits_mlp, x, y, attack, context=Context(device="cpu", workers=workers), **options), one)
    assert workers.shards >= 2


def test_shards_of_a_model_that_answers_at_random(digits, digits_mlp):
    x, y, net = digits.test.x[:150], digits.test.y[:150], Noisy(digits_mlp)
    attack = robgib.make_attack("pgd-linf:eps=0.05,steps=2,eot=2")
    one = run_attack(net, x, y, attack)
    same(run_attack(net, x, y, attack, context=Context(device="cpu", workers=Backwards())), one)


def test_shared_attacks_go_on_where_they_were_interrupted(digits, digits_mlp, tmp_path, monkeypatch):
    x, y = digits.test.x[:300], digits.test.y[:300]
    attack = robgib.make_attack("pgd-linf:eps=0.05,steps=3")
    one = run_attack(digits_mlp, x, y, attack)
    monkeypatch.setattr(run_module, "_KEPT", 0.0)
    kept, first, second = Parts(tmp_path / "kept"), Backwards(most=1), Backwards()
    with pytest.raises(KeyboardInterrupt):
        run_attack(digits_mlp, x, y, attack, context=Context(device="cpu", parts=kept, workers=first))
    again = run_attack(digits_mlp, x, y, attack, context=Context(device="cpu", parts=kept, workers=second))
    assert (first.shards, second.shards) == (1, 2)
    same(again, one)


def tables_of(run):
    return {name: getattr(run, name).drop(columns="seconds", errors="ignore") for name in RUN_TABLES}


def equal_tables(one, two):
    for name, table in tables_of(one).items():
        pd.testing.assert_frame_equal(table, tables_of(two)[name], check_dtype=False)


@pytest.mark.slow
def test_two_processes_give_the_tables_of_one(digits, digits_mlp):
    options = {
        "attacks": ["pgd-linf:eps=0.05,steps=5", "fgsm-l2:eps=0.3"], "estimators": [], "samples": 300, "curve": False,
        "signs": False, "corruptions": False, "progress": False,
    }  # fmt: skip
    one = robgib.evaluate(digits_mlp, digits, device="cpu", **options)
    equal_tables(robgib.evaluate(digits_mlp, digits, device="cpu,cpu", jobs=2, **options), one)


def test_two_processes_give_the_tables_of_one_with_masks_and_targets(digits, digits_mlp):
    """Each sample keeps its mask and its target, in whatever process."""
    masks = np.zeros((len(digits.test), 8, 8), bool)
    masks[::2, :5], masks[1::2, 3:] = True, True
    options = {
        "attacks": ["pgd-linf:eps=0.3,steps=4", "square-linf:eps=0.3,queries=10"], "mask": masks,
        "targets": (digits.test.y.numpy() + 1) % 10, "save_adversarial": True, "estimators": [], "samples": 300,
        "curve": False, "signs": False, "corruptions": False, "progress": False,
    }  # fmt: skip
    one = robgib.evaluate(digits_mlp, digits, device="cpu", **options)
    two = robgib.evaluate(digits_mlp, digits, device="cpu,cpu", jobs=2, **options)
    equal_tables(two, one)
    assert one.adversarial.keys() == two.adversarial.keys()
    assert all(np.array_equal(values, two.adversarial[name]) for name, values in one.adversarial.items())
    assert len(one.adversarial["pgd-linf:eps=0.3,steps=4/rows"])


class FromTheEnd(Backwards):
    """Computes the last shard, and is then interrupted."""

    def run(self, function, calls):
        for number in list(reversed(range(len(calls))))[: self.most]:
            self.shards += 1
            yield Returned(number, function("cpu", *calls[number]))
        raise KeyboardInterrupt


@pytest.mark.parametrize("spec", ["pgd-linf:eps=0.05,steps=3", "rotation-translation:eps=30,angles=3,shifts=1,steps=0"])
def test_shards_that_finish_out_of_order_outlast_an_interruption(spec, digits, digits_mlp, tmp_path, monkeypatch):
    x, y = digits.test.x[:300], digits.test.y[:300]
    attack = robgib.make_attack(spec)
    one = run_attack(digits_mlp, x, y, attack, pictures=300)
    monkeypatch.setattr(run_module, "_KEPT", 0.0)
    kept, first, second = Parts(tmp_path / "kept"), FromTheEnd(most=1), Backwards()
    options = {"pictures": 300}
    with pytest.raises(KeyboardInterrupt):
        run_attack(digits_mlp, x, y, attack, context=Context(device="cpu", parts=kept, workers=first), **options)
    again = run_attack(digits_mlp, x, y, attack, context=Context(device="cpu", parts=kept, workers=second), **options)
    assert (first.shards, second.shards) == (1, 2)
    same(again, one)
    assert again.parameters.keys() == one.parameters.keys()
    assert all(np.array_equal(values, again.parameters[row]) for row, values in one.parameters.items())


def test_the_modes_of_a_model_are_read_once_for_a_shard(digits, digits_mlp, monkeypatch):
    made = []
    state = run_module.State
    monkeypatch.setattr(run_module, "State", lambda *a, **k: made.append(a) or state(*a, **k))
    run_attack(digits_mlp, digits.test.x[:20], digits.test.y[:20], robgib.make_attack("fgsm-linf:eps=0.05"))
    assert not made  # the one of the whole shard holds them


def test_what_is_no_engine_is_refused():
    with pytest.raises(RobGIBError, match="workers"):
        Context(workers=3)


def test_a_cascade_is_shared(digits, digits_mlp):
    x, y = digits.test.x[:300], digits.test.y[:300]
    options = {"curve": False, "signs": False, "corruptions": False, "audit": 0}
    attacks = ["pgd-linf:eps=0.05,steps=5", "apgd-dlr-linf:eps=0.05,steps=5"]
    found = [
        evaluate(digits_mlp, x, y, attacks, cascade=True, context=Context(device="cpu", workers=workers), **options)
        for workers in (None, Backwards())
    ]
    for name in ("robustness", "outcomes"):
        one, two = (tables[name].drop(columns="seconds", errors="ignore") for tables in found)
        pd.testing.assert_frame_equal(one, two)


def test_what_cannot_be_sent_is_one_sentence(digits, digits_mlp):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.lock = digits_mlp, threading.Lock()

        def forward(self, x):
            return self.net(x)

    x, y = digits.test.x[:200], digits.test.y[:200]
    attack = robgib.make_attack("fgsm-linf:eps=0.05")
    with pytest.raises(RobGIBError, match=r"the model cannot be sent to other processes .*leave out --jobs"):
        run_attack(Held(), x, y, attack, context=Context(device="cpu", workers=Backwards()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "rai"}, "unknown engine 'rai'; did you mean 'ray'"),
        ({"address": "auto"}, "--address needs --engine ray"),
        ({"device": "cpu,gpu"}, "unknown device"),
    ],
)
def test_an_engine_that_is_not_there_is_one_sentence(options, words, digits, digits_mlp):
    with pytest.raises(RobGIBError, match=words):
        robgib.evaluate(digits_mlp, digits, attacks=["fgsm-linf"], estimators=[], samples=20, **options)


def test_each_device_has_a_process():
    assert engine_of("local", 1, "cpu", None).alone
    assert engine_of("local", 1, "cpu,cpu", None).jobs == 2
    assert not engine_of("local", 2, "cpu", None).alone


@pytest.mark.slow
def test_a_cluster_of_which_a_node_dies_gives_the_tables_of_one_process(digits, digits_mlp):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {
        "attacks": ["apgd-ce-linf:eps=0.05,steps=100,restarts=2", "square-linf:eps=0.05,queries=500"],
        "estimators": [], "samples": 360, "curve": False, "signs": False, "corruptions": False, "device": "cpu",
    }  # fmt: skip
    one = robgib.evaluate(digits_mlp, digits, progress=False, **options)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        died = []

        def kill(task, done, total, note=""):
            if not died and 0 < done < total:  # the first shard is there
                cluster.remove_node(nodes[1], allow_graceful=False)
                died.append(time.monotonic())

        shared = robgib.evaluate(digits_mlp, digits, engine="ray", address=cluster.address, progress=kill, **options)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert died
    equal_tables(shared, one)


@pytest.mark.slow
def test_a_cluster_gives_the_tables_of_one_process_with_masks_and_targets(digits, digits_mlp):
    ray = pytest.importorskip("ray")
    masks = np.zeros((len(digits.test), 8, 8), bool)
    masks[::2, :5], masks[1::2, 3:] = True, True
    options = {
        "attacks": ["pgd-linf:eps=0.3,steps=4", "square-linf:eps=0.3,queries=10"], "mask": masks,
        "targets": (digits.test.y.numpy() + 1) % 10, "estimators": [], "samples": 300, "curve": False,
        "signs": False, "corruptions": False, "device": "cpu", "progress": False,
    }  # fmt: skip
    one = robgib.evaluate(digits_mlp, digits, **options)
    try:
        shared = robgib.evaluate(digits_mlp, digits, engine="ray", jobs=2, **options)
    finally:
        ray.shutdown()
    equal_tables(shared, one)
