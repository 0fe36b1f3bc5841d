import pickle

import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.models import build, load_into, read_state, save_checkpoint


@pytest.mark.parametrize("name", ["cnn", "vit", "mlp"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_architectures_take_every_image_size(name, shape):
    model = build(name, shape, 7)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_the_vit_attends_as_torch_does():
    """The attention equals torch.nn.MultiheadAttention with the same weights."""
    from robgib.models.vit import Attention

    torch.manual_seed(0)
    ours, peer = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    peer.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 5, 12)
    assert torch.allclose(ours(x), peer(x, x, x, need_weights=False)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet", {}, "unknown architecture 'resnet'"),
        ("cnn", {"width": 3}, "did you mean 'widths'"),
        ("vit", {"patch": 3}, "a patch of 3 does not divide images of 8x8"),
        ("vit", {"dim": 10, "heads": 4}, "divisible by its heads"),
        ("mlp", {"activation": "tan"}, "did you mean 'tanh'"),
        ("no.such:thing", {}, "module 'no.such' does not import"),
        ("math:nothing", {}, "has no callable 'nothing'"),
        ("builtins:dict", {}, "returned dict, not a torch.nn.Module"),
        ("math:sqrt", {}, "does not build"),
    ],
)
def test_bad_architectures(arch, options, message):
    with pytest.raises(RobGIBError, match=message):
        build(arch, (1, 8, 8), 10, options)


class TestCheckpoints:
    @pytest.fixture
    def model(self):
        return build("mlp", (1, 4, 4), 3)

    def test_safetensors_round_trip(self, model, tmp_path):
        path = tmp_path / "new" / "m.safetensors"
        save_checkpoint(model, path, {"name": "m"})
        other = build("mlp", (1, 4, 4), 3)
        load_into(other, read_state(path), "m")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert sorted(p.name for p in path.parent.iterdir()) == ["m.json", "m.safetensors"]

    @pytest.mark.parametrize("suffix", [".pt", ".pth"])
    def test_state_dict_files(self, model, tmp_path, suffix):
        path = tmp_path / f"m{suffix}"
        torch.save(model.state_dict(), path)
        load_into(build("mlp", (1, 4, 4), 3), read_state(path), "m")

    def test_a_malicious_pickle_does_not_run(self, tmp_path):
        target = tmp_path / "written"

        class Evil:
            def __reduce__(self):
                return (open, (str(target), "w"))

        torch.save({"w": Evil()}, tmp_path / "evil.pt")
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
        for name in ("evil.pt", "raw.pth"):
            with pytest.raises(RobGIBError, match="would have to be unpickled, which can run any code"):
                read_state(tmp_path / name)
        assert not target.exists()

    def test_whole_models_are_refused(self, model, tmp_path):
        torch.save(model, tmp_path / "m.pt")
        with pytest.raises(RobGIBError, match=r"save `model.state_dict\(\)`"):
            read_state(tmp_path / "m.pt")

    def test_wrong_keys_and_shapes_are_named(self, model):
        state = model.state_dict()
        state["extra.weight"] = state.pop("head.weight")
        with pytest.raises(RobGIBError, match=r"it lacks 'head.weight'; the architecture has no 'extra.weight'"):
            load_into(model, state, "m.pt")
        wide = build("mlp", (1, 4, 4), 5).state_dict()
        with pytest.raises(RobGIBError, match=r"'head.weight', 'head.bias' differ in shape \(\(5, 16\) in the file"):
            load_into(model, wide, "m.pt")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("m.safetensors", b"\x10\x00", "not a whole safetensors file"),
            ("m.pt", b"PK\x03\x04 nonsense", "not a readable PyTorch file|unpickled"),
            ("m.bin", b"x", "unknown ending '.bin'"),
        ],
    )
    def test_damaged_files(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RobGIBError, match=message):
            read_state(tmp_path / name)

    def test_missing_file(self, tmp_path):
        with pytest.raises(RobGIBError, match="does not exist"):
            read_state(tmp_path / "m.pt")

    def test_list_of_tensors_is_no_state_dict(self, tmp_path):
        torch.save([torch.zeros(2)], tmp_path / "m.pt")
        with pytest.raises(RobGIBError, match="holds list, not a plain state dict"):
            read_state(tmp_path / "m.pt")
