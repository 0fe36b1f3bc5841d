import pickle

import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib.models import build, load_into, read_checkpoint, read_state, save_checkpoint


@pytest.mark.parametrize("name", ["cnn", "vit", "vit-tiny", "mlp", "lenet", "vgg", "resnet", "bijective"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_architectures_take_every_image_size(name, shape):
    model = build(name, shape, 7)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_sizes_are_the_papers():
    """Numbers of parameters: ResNet-18 for CIFAR-10 11.2 million, WRN-28-10 36.5 million, ViT-Tiny 5.4 million."""
    sizes = {
        name: sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters()) for name in ("resnet", "wide-resnet")
    }
    assert sizes["resnet"] == 11_173_962
    assert sizes["wide-resnet"] == 36_479_194
    # Twelve blocks of 12 D² + 13 D, and the embedding, its positions, the norm and the head.
    for name, width in (("vit-tiny", 192), ("vit-small", 384)):
        expected = 12 * (12 * width**2 + 13 * width) + (49 + 65 + 1 + 2 + 10) * width + 10
        assert sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters()) == expected
    small = build("wide-resnet", (3, 32, 32), 10, {"depth": 10, "widen": 1})
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_networks_of_torchvision(tmp_path):
    from robgib._torchvision import load_torchvision

    torchvision = load_torchvision()

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    for shape in ((3, 32, 32), (1, 28, 28)):
        assert build("torchvision:resnet18", shape, 7)(torch.rand(2, *shape)).shape == (2, 7)
    model = build("torchvision:resnet18", (3, 32, 32), 7, {"mean": [0.5] * 3, "std": [0.25] * 3}).eval()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "a.pt"
    )
    load_into(model, read_state(tmp_path / "a.pt"), "a.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(x), theirs((x - 0.5) / 0.25), atol=1e-5)
    with pytest.raises(RobGIBError, match="1 or 3 channels, not 2"):
        build("torchvision:resnet18", (2, 8, 8), 7)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 5), (12,)])
def test_a_bijective_network_loses_nothing(shape):
    torch.manual_seed(0)
    net = build("bijective", shape, 3, {"depth": 5})
    x = torch.rand(4, *shape)
    held = net.spread(x)
    for block in net.blocks:
        nn.init.normal_(block.shift[2].weight)  # far from the identity
        held = block(held)
    assert torch.allclose(net.inverse(held), x, atol=1e-4)
    assert torch.allclose(net.head(held), net(x))
    jacobian = torch.autograd.functional.jacobian(lambda v: net.blocks(v[None])[0], net.spread(x)[0])
    assert torch.linalg.det(jacobian.double()).abs().item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(RobGIBError, match="one block and one hidden unit"):
        build("bijective", shape, 3, {"depth": 0})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "ema", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_are_taken_off(wrapper, prefix, tmp_path):
    model, other = (build("mlp", (1, 4, 4), 3) for _ in range(2))
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 4, "optimizer": {"lr": 0.1}} if wrapper else state, tmp_path / "net.pth")
    load_into(other, read_state(tmp_path / "net.pth"), "net.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


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
        ("rsenet", {}, "did you mean 'resnet'"),
        ("wide-resnet", {"depth": 20}, r"is 6 n \+ 4"),
        ("torchvision:resnet8", {}, "unknown torchvision model 'resnet8'"),
        ("torchvision:resnet18", {"colour": 3}, "torchvision:resnet18 does not build"),
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
        build(arch, (1, 8, 8), 10, options, allow_code=True)


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

        state = build("mlp", (1, 4, 4), 3).state_dict()
        torch.save({"w": Evil()}, tmp_path / "evil.pt")
        torch.save({"state_dict": state, "hyper_parameters": Evil()}, tmp_path / "beside.pt")
        torch.save({"state_dict": state, "args": Evil()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(RobGIBError, match="holds dict with 'w', not a plain state dict"):
            read_state(tmp_path / "evil.pt")
        with pytest.raises(RobGIBError, match="would have to be unpickled, which can run any code"):
            read_state(tmp_path / "raw.pth")
        for name in ("beside.pt", "old.pt"):  # what stands beside the weights is not needed, and not run
            assert read_state(tmp_path / name).keys() == state.keys()
        assert not target.exists()

    def test_of_whole_models_the_weights_are_taken(self, model, tmp_path):
        torch.save(model, tmp_path / "m.pt")
        torch.save({"epoch": 3, "model": model}, tmp_path / "w.pt")
        for name in ("m.pt", "w.pt"):
            found = read_checkpoint(tmp_path / name)
            assert found.pickled.endswith("mlp.MLP")
            assert found.weights.keys() == model.state_dict().keys()
            assert all(torch.equal(found.weights[k], v) for k, v in model.state_dict().items())

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
            ("m.safetensors", b"\x10\x00", "not a complete safetensors file"),
            ("m.pt", b"PK\x03\x04 nonsense", "not a readable PyTorch file|unpickled"),
            ("m.h5", b"x", "unknown ending '.h5'"),
            ("m.bin", b"x", "not a readable PyTorch file|unpickled"),
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
