"""Checkpoints as people have them: what wraps the weights is taken off and said, and nothing of a file's is run."""

import argparse
import importlib
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from robgib import RobGIBError
from robgib.models import build, load_into, read_checkpoint, save_checkpoint
from robgib.zoo.loading import load_checkpoint


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("mlp", (1, 4, 4), 3)


def states(network):
    state = network.state_dict()
    other = {k: v + 1 for k, v in state.items()}
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    return state, other, optimizer.state_dict()


LAYOUTS = {
    "plain": lambda s, o, a: s,
    "lightning": lambda s, o, a: {
        "epoch": 3,
        "state_dict": {**{f"model.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(3)},
        "hyper_parameters": argparse.Namespace(lr=0.1, where=pathlib.PurePosixPath("x")),
        "optimizer_states": [a],
        "callbacks": {"best": torch.ones(3)},
    },
    "data parallel, compiled": lambda s, o, a: {"model_state": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "averaged": lambda s, o, a: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(5)},
    "compiled inside": lambda s, o, a: {k.replace("head.", "head._orig_mod."): v for k, v in s.items()},
    "model_state_dict": lambda s, o, a: {"model_state_dict": s, "optimizer_state_dict": a, "loss": 0.3},
    "params": lambda s, o, a: {"params": s},
    "nested": lambda s, o, a: {"net": {"state_dict": s, "epoch": 4}},
    "net.state_dict": lambda s, o, a: {"net.state_dict": s},
    "numpy scalars": lambda s, o, a: {"state_dict": s, "best": np.float64(0.7), "step": np.int64(4)},
    "epoch as a tensor": lambda s, o, a: {"state_dict": s, "epoch": torch.tensor(4)},
    "counts": lambda s, o, a: {**s, "total_ops": torch.zeros(1), "head.total_params": torch.zeros(1)},
    "backbone and more": lambda s, o, a: {**{f"backbone.{k}": v for k, v in s.items()}, "neck.weight": torch.ones(2)},
    "averaged beside": lambda s, o, a: {"state_dict_ema": o, "state_dict": s},
}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_wherever_they_lie(layout, suffix, network, tmp_path):
    state, other, adam = states(network)
    path = tmp_path / f"net{suffix}"
    torch.save(LAYOUTS[layout](state, other, adam), path)
    fresh = build("mlp", (1, 4, 4), 3)
    load_into(fresh, read_checkpoint(path).weights, "it")
    assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())


def test_what_was_taken_off_or_left_out_is_said(network, tmp_path):
    state, other, _ = states(network)
    torch.save(LAYOUTS["lightning"](state, other, {}), tmp_path / "a.ckpt")
    notes = load_into(network, read_checkpoint(tmp_path / "a.ckpt").weights, "it")
    assert notes[0] == "the prefix 'model.' was removed from the names of the weights"
    assert notes[1] == (
        "1 tensor of the file was not used, since the network has none of these names: 'criterion.weight'"
    )
    torch.save(LAYOUTS["averaged beside"](state, other, {}), tmp_path / "b.pt")
    found = read_checkpoint(tmp_path / "b.pt")
    assert list(found.sets) == ["state_dict", "state_dict_ema"]
    chosen = read_checkpoint(tmp_path / "b.pt", weights_key="state_dict_ema")
    assert torch.equal(chosen.weights["head.bias"], other["head.bias"])
    with pytest.raises(RobGIBError, match="did you mean 'state_dict_ema'"):
        read_checkpoint(tmp_path / "b.pt", weights_key="state_dict_emma")


def test_half_precision_is_computed_in_float32(network, tmp_path):
    torch.save({k: v.bfloat16() for k, v in network.state_dict().items()}, tmp_path / "h.pt")
    notes = load_into(network, read_checkpoint(tmp_path / "h.pt").weights, "it")
    assert notes == ("the weights are bfloat16 in the file, and float32 in the network",)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_a_smaller_architecture_is_not_filled_from_a_larger_one(network, tmp_path):
    larger = {**network.state_dict(), "layer4.weight": torch.ones(4, 4)}
    with pytest.raises(RobGIBError, match=r"the architecture has no 'layer4.weight'"):
        load_into(network, larger, "it")


class TestShards:
    def write(self, network, folder):
        from safetensors.torch import save_file

        state = dict(network.state_dict())
        names = sorted(state)
        parts = {"a-00001.safetensors": names[:3], "a-00002.safetensors": names[3:]}
        for file, keys in parts.items():
            save_file({k: state[k] for k in keys}, str(folder / file))
        told = {k: file for file, keys in parts.items() for k in keys}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": told}))
        return index, told

    def test_by_index_or_folder(self, network, tmp_path):
        index, _ = self.write(network, tmp_path)
        for path in (index, tmp_path):
            found = read_checkpoint(path).weights
            assert found.keys() == network.state_dict().keys()

    def test_a_part_that_is_missing_or_lies_elsewhere(self, network, tmp_path):
        index, told = self.write(network, tmp_path)
        (tmp_path / "a-00002.safetensors").unlink()
        with pytest.raises(RobGIBError, match=r"'a-00002.safetensors', which is not beside it; download all parts"):
            read_checkpoint(index)
        index.write_text(json.dumps({"weight_map": dict.fromkeys(told, "../../etc/passwd")}))
        with pytest.raises(RobGIBError, match="which is not a weights file beside it"):
            read_checkpoint(index)
        for other in (index.name, "/etc/passwd", "..\\a.bin", "a\0.bin", "a\x1b[31m.bin", ".", ""):
            index.write_text(json.dumps({"weight_map": dict.fromkeys(told, other)}))
            with pytest.raises(RobGIBError, match="which is not a weights file beside it"):
                read_checkpoint(index)
        for content in ("[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "[" * 100000):
            index.write_text(content)
            with pytest.raises(RobGIBError, match="not an index of weights"):
                read_checkpoint(index)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.ones(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda: torch.ones(3, device="meta"), "without values"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex numbers"),
    ],
)
def test_tensors_that_are_no_weights(tensor, message, tmp_path):
    torch.save({"a": torch.ones(2), "b": tensor()}, tmp_path / "m.pt")
    with pytest.raises(RobGIBError, match=message):
        read_checkpoint(tmp_path / "m.pt")


def test_keys_that_are_numbers(tmp_path):
    torch.save({0: torch.ones(2), 1: torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(RobGIBError, match="not a plain state dict"):
        read_checkpoint(tmp_path / "m.pt")


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    def forward(self, x):
        return self.body(x)


def make():
    """A stranger's factory."""
    return Custom()


def test_a_whole_pickled_network_gives_its_weights_to_the_architecture_named(tmp_path):
    theirs = Custom().eval()
    torch.save({"model": theirs, "epoch": 1}, tmp_path / "net.pth")
    found = load_checkpoint(tmp_path / "net.pth", arch="tests.models.test_checkpoints:make", data="digits")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(found.model(x), theirs(x))
    assert any("network of the class" in note for note in found.notes)


def _text(text):
    return pickle.BINUNICODE + len(text).to_bytes(4, "little") + text.encode()


@pytest.mark.parametrize(
    ("shared", "slots"),
    [
        ("torch._utils\n_rebuild_tensor", False),
        ("torch._utils\n_rebuild_tensor", True),
        ("torch\nUntypedStorage", True),
    ],
)
def test_nothing_that_torch_shares_is_changed_and_no_source_is_written(shared, slots, tmp_path, request, monkeypatch):
    """torch writes the source of a class to NAME.patch, if ``dump_patches`` is set of what a file says is a class."""
    monkeypatch.chdir(tmp_path)  # where torch would write it
    module, name = shared.split("\n")
    thing = getattr(importlib.import_module(module), name)
    request.addfinalizer(lambda: setattr(thing, "__name__", name))
    changes = pickle.EMPTY_DICT + pickle.MARK
    for key, value in (("dump_patches", pickle.NEWTRUE), ("__name__", _text(str(tmp_path / "PWNED")))):
        changes += _text(key) + value
    changes += pickle.SETITEMS
    state = pickle.MARK + pickle.NONE + changes + pickle.TUPLE if slots else changes
    built = pickle.GLOBAL + f"{shared}\n".encode() + state + pickle.BUILD
    container = pickle.MARK + _text("module") + built + _text("net.py") + _text("class Net: ...\n") + pickle.TUPLE
    parts = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})]
    parts += [pickle.PROTO + b"\x02" + container + pickle.BINPERSID + pickle.STOP, pickle.dumps([], 2)]
    (tmp_path / "net.pth").write_bytes(b"".join(parts))
    with pytest.raises(RobGIBError, match="would have to be unpickled, which can run any code"):
        read_checkpoint(tmp_path / "net.pth")
    assert thing.__name__ == name
    assert not hasattr(thing, "dump_patches")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]


def test_arch_beside_a_network_that_is_whole(tmp_path):
    torch.jit.save(torch.jit.trace(Custom().eval(), torch.rand(2, 1, 8, 8)), str(tmp_path / "n.ts"))
    with pytest.raises(RobGIBError, match="holds a complete network; remove --arch"):
        load_checkpoint(tmp_path / "n.ts", arch="mlp", data="digits")


def test_a_folder_without_weights(network, tmp_path):
    with pytest.raises(RobGIBError, match=r"holds neither model.safetensors"):
        read_checkpoint(tmp_path)
    save_checkpoint(network, tmp_path / "model.safetensors", {})
    assert read_checkpoint(tmp_path).weights.keys() == network.state_dict().keys()
