"""Which weights of a file a network gets, and what normalises its images: chosen where it is plain, else asked for."""

import argparse
import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robgib
from robgib import RobGIBError, RobGIBWarning
from robgib.models import build, fit, load_into, read_checkpoint
from robgib.models.normalization import Normalization
from robgib.zoo.loading import load, load_checkpoint

HERE = "tests.models.test_fitting"


class Net(nn.Module):
    """A network that does not normalise by itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


class Normalizer(nn.Module):
    def __init__(self, mean, std, names=("new_mean", "new_std")):
        super().__init__()
        self.names = names
        self.register_buffer(names[0], torch.tensor([[[mean]]]))
        self.register_buffer(names[1], torch.tensor([[[std]]]))

    def forward(self, x):
        return (x - getattr(self, self.names[0])) / getattr(self, self.names[1])


class Inner(nn.Module):
    def __init__(self, net, normalizer):
        super().__init__()
        self.normalize, self.model = normalizer, net


class AttackerModel(nn.Module):
    """As robustness' of MadryLab: the network, its normaliser, and both once more inside what attacks it."""

    def __init__(self, net, normalizer):
        super().__init__()
        self.normalizer, self.model = normalizer, net
        self.attacker = Inner(net, copy.deepcopy(normalizer))

    def forward(self, x):
        return self.model(self.normalizer(x))


class Buffers(nn.Module):
    """Holds mean and standard deviation itself, beside a network or among its own weights."""

    def __init__(self, net, names):
        super().__init__()
        self.net, self.names = net, names
        self.register_buffer(names[0], torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer(names[1], torch.tensor([0.2]).view(1, 1, 1, 1))

    def forward(self, x):
        return self.net((x - getattr(self, self.names[0])) / getattr(self, self.names[1]))


class WithMean(Net):
    """Normalises inside, by a mean and a standard deviation that are not in its state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1]).view(1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2]).view(1, 1, 1), persistent=False)

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


def make():
    return Net()


def make_normalized():
    return WithMean()


def net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


WRAPPERS = {
    "AttackerModel": lambda n: AttackerModel(n, Normalizer(0.3, 0.2)),
    "AttackerModel, data parallel": lambda n: nn.DataParallel(AttackerModel(n, Normalizer(0.3, 0.2))),
    "Sequential": lambda n: nn.Sequential(Normalizer(0.3, 0.2, ("mean", "std")), n),
    "mean and std": lambda n: Buffers(n, ("mean", "std")),
    "mu and sigma": lambda n: Buffers(n, ("mu", "sigma")),
    "pixel_mean": lambda n: Buffers(n, ("pixel_mean", "pixel_std")),
    "means and sds": lambda n: nn.Sequential(Normalizer(0.3, 0.2, ("means", "sds")), n),
}


def run(path, arch="make", **options):
    return load_checkpoint(path, arch=f"{HERE}:{arch}", data="digits", **options)


class TestNormalisers:
    """A wrapper's normaliser is part of what was trained."""

    @pytest.mark.parametrize("layout", ["flat", "nested"])
    @pytest.mark.parametrize("kind", WRAPPERS)
    def test_it_is_applied(self, kind, layout, digits, tmp_path):
        whole = WRAPPERS[kind](net()).eval()
        state = whole.state_dict()
        torch.save({"model": state, "epoch": 1} if layout == "nested" else state, tmp_path / "n.pt")
        found = run(tmp_path / "n.pt")
        x = digits.test.x[:20]
        with torch.no_grad():
            wanted = whole.module(x) if isinstance(whole, nn.DataParallel) else whole(x)
            assert torch.allclose(found.model(x), wanted, atol=1e-5)
            assert not torch.allclose(net()(x), wanted, atol=0.1)  # it matters
        assert any("holds a normaliser beside the network" in n and "is applied" in n for n in found.notes)
        assert "images are normalised by mean 0.3, std 0.2" in found.notes
        assert found.left_out == ()

    def test_it_lies_among_the_network_s_own_weights(self, digits, tmp_path):
        state = {**net().state_dict(), "mean": torch.tensor([0.3]), "std": torch.tensor([0.2])}
        save_file(state, str(tmp_path / "n.safetensors"))
        found = run(tmp_path / "n.safetensors")
        x = digits.test.x[:20]
        assert torch.allclose(found.model(x), net()((x - 0.3) / 0.2), atol=1e-5)

    def test_what_the_caller_says_comes_first(self, digits, tmp_path):
        torch.save(AttackerModel(net(), Normalizer(0.3, 0.2)).state_dict(), tmp_path / "n.pt")
        found = run(tmp_path / "n.pt", normalization=Normalization((0.5,), (0.5,)))
        x = digits.test.x[:20]
        assert torch.allclose(found.model(x), net()((x - 0.5) / 0.5), atol=1e-5)
        (told,) = found.left_out
        assert "'normalizer.new_mean'" in told

    @pytest.mark.parametrize(
        ("beside", "why"),
        [
            ({"normalize.mean": torch.tensor([123.7])}, "it is not a mean in"),
            ({"normalize.mean": torch.tensor([123.7]), "normalize.std": torch.tensor([58.4])}, "it is not a mean in"),
            ({"normalize.mean": torch.tensor([0.5]), "normalize.std": torch.tensor([0.0])}, "it is not a mean in"),
            ({"normalize.mean": torch.tensor([0.5, 0.4]), "normalize.std": torch.tensor([0.2])}, "it is not a mean in"),
            (
                {
                    "a.mean": torch.tensor([0.5]), "a.std": torch.tensor([0.2]),
                    "b.mean": torch.tensor([0.4]), "b.std": torch.tensor([0.2]),
                },
                "there are several, and they differ",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_applied_is_refused(self, beside, why, tmp_path):
        state = {**{f"model.{k}": v for k, v in net().state_dict().items()}, **beside}
        torch.save(state, tmp_path / "n.pt")
        with pytest.raises(
            RobGIBError, match=rf"holds a normaliser .*cannot be applied \({why}.*--normalize, or --mean"
        ):
            run(tmp_path / "n.pt")
        assert run(tmp_path / "n.pt", normalization=Normalization()).left_out

    def test_an_architecture_that_has_another_inside(self, tmp_path):
        torch.save(AttackerModel(net(), Normalizer(0.3, 0.2)).state_dict(), tmp_path / "n.pt")
        with pytest.raises(RobGIBError, match="the architecture contains another one"):
            run(tmp_path / "n.pt", "make_normalized")
        torch.save(AttackerModel(net(), Normalizer(0.1, 0.2)).state_dict(), tmp_path / "n.pt")
        assert isinstance(run(tmp_path / "n.pt", "make_normalized").model, WithMean)  # the same: once is enough

    def test_other_means_are_no_normalisers(self, tmp_path):
        other = {"bn.running_mean": torch.zeros(4), "head2.mu": torch.zeros(40), "head2.sigma": torch.ones(40)}
        state = {**{f"model.{k}": v for k, v in net().state_dict().items()}, **other}
        torch.save(state, tmp_path / "n.pt")
        found = run(tmp_path / "n.pt")
        assert isinstance(found.model, Net)
        assert found.left_out == (
            "3 tensors of the file were not used, since the network has none of these names: 'bn.running_mean', "
            "'head2.mu', 'head2.sigma'",
        )


TOLD = {
    "beside the weights": lambda s: {"state_dict": s, "mean": [0.3], "std": [0.2]},
    "as tensors": lambda s: {"state_dict": s, "mean": torch.tensor([0.3]), "std": torch.tensor([0.2])},
    "nested": lambda s: {"model": s, "normalize": {"mean": torch.tensor([0.3]), "std": torch.tensor([0.2])}},
    "arguments": lambda s: {"state_dict": s, "args": argparse.Namespace(image_mean=(0.3,), image_std=(0.2,), lr=1)},
    "timm": lambda s: {"state_dict": s, "pretrained_cfg": {"mean": (0.3,), "std": (0.2,), "input_size": (1, 8, 8)}},
}


class TestWhatAFileSays:
    @pytest.mark.parametrize("layout", TOLD)
    def test_of_normalisation_is_done(self, layout, digits, tmp_path):
        torch.save(TOLD[layout](net().state_dict()), tmp_path / "n.pt")
        self.check(run(tmp_path / "n.pt"), digits)

    def check(self, found, digits):
        x = digits.test.x[:20]
        assert torch.allclose(found.model(x), net()((x - 0.3) / 0.2), atol=1e-5)
        assert "the normalisation that the file describes is applied" in found.notes
        assert found.left_out == ()

    def test_in_the_metadata_of_safetensors(self, digits, tmp_path):
        told = {"pretrained_cfg": json.dumps({"mean": [0.3], "std": [0.2]}), "format": "pt"}
        save_file(net().state_dict(), str(tmp_path / "n.safetensors"), told)
        self.check(run(tmp_path / "n.safetensors"), digits)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("config.json", {"architecture": "net", "pretrained_cfg": {"mean": [0.3], "std": [0.2]}}),
            ("preprocessor_config.json", {"image_mean": [0.3], "image_std": [0.2], "do_normalize": True}),
        ],
    )
    def test_in_the_configuration_beside_it(self, name, told, digits, tmp_path):
        save_file(net().state_dict(), str(tmp_path / "model.safetensors"))
        (tmp_path / name).write_text(json.dumps(told))
        self.check(run(tmp_path), digits)

    @pytest.mark.parametrize("told", ['{"image_mean": ["a"], "image_std": null}', "[", "3"])
    def test_that_is_no_normalisation(self, told, tmp_path):
        save_file(net().state_dict(), str(tmp_path / "model.safetensors"))
        (tmp_path / "preprocessor_config.json").write_text(told)
        assert isinstance(run(tmp_path).model, Net)

    def test_that_it_says_in_two_ways(self, tmp_path):
        file = {"state_dict": net().state_dict(), "mean": [0.3], "std": [0.2], "args": {"mean": [0.5], "std": [0.5]}}
        torch.save(file, tmp_path / "n.pt")
        found = run(tmp_path / "n.pt")
        assert isinstance(found.model, Net)
        assert any(
            "several normalisations (mean 0.3, std 0.2 or mean 0.5, std 0.5 (half)): none" in n for n in found.notes
        )

    def test_beside_an_architecture_with_its_own(self, tmp_path):
        torch.save(TOLD["timm"](net().state_dict()), tmp_path / "n.pt")
        found = run(tmp_path / "n.pt", "make_normalized")
        assert isinstance(found.model, WithMean)
        assert any("the architecture has its own: only that one is applied" in n for n in found.notes)


def below(prefix, state):
    return {f"{prefix}.{k}": v for k, v in state.items()}


TWO = {
    "teacher and student": (lambda a, b: {**below("teacher", a), **below("student", b)}, "teacher", "student"),
    "the same, nested": (
        lambda a, b: {"state_dict": {**below("module.teacher.net", a), **below("module.student.net", b)}},
        "state_dict.teacher.net",
        "state_dict.student.net",
    ),
    "encoder_q and encoder_k": (
        lambda a, b: {**below("encoder_q", a), **below("encoder_k", b)},
        "encoder_q",
        "encoder_k",
    ),
    "model and ema": (lambda a, b: {"model": a, "ema": b, "epoch": 3}, "model", "ema"),
    "state_dict_ema": (lambda a, b: {"state_dict_ema": b, "state_dict": a}, "state_dict", "state_dict_ema"),
    "a list of dictionaries": (lambda a, b: {"nets": {"f": a, "g": b}}, "nets.f", "nets.g"),
    "the top and below it": (lambda a, b: {**a, **below("ema_model.module", b)}, ".", "ema_model"),
}


class TestSeveralNetworks:
    @pytest.mark.parametrize("layout", TWO)
    def test_are_named_and_asked_for(self, layout, tmp_path):
        put, first, second = TWO[layout]
        a, b = net(1), net(2)
        torch.save(put(a.state_dict(), b.state_dict()), tmp_path / "two.pt")
        with pytest.raises(RobGIBError, match="holds 2 complete sets of the network's weights") as told:
            run(tmp_path / "two.pt")
        assert repr(first) in str(told.value)
        assert repr(second) in str(told.value)
        assert "--weights-key" in str(told.value)
        x = torch.rand(3, 1, 8, 8)
        for key, wanted in ((first, a), (second, b)):
            found = run(tmp_path / "two.pt", weights_key=key)
            assert torch.equal(found.model(x), wanted(x)), key
            if key != ".":
                state = read_checkpoint(tmp_path / "two.pt", weights_key=key).weights
                assert torch.equal(state["conv.bias"], wanted.state_dict()["conv.bias"])

    def test_a_part_of_the_name_will_do(self, tmp_path):
        a, b = net(1), net(2)
        torch.save(TWO["the same, nested"][0](a.state_dict(), b.state_dict()), tmp_path / "two.pt")
        x = torch.rand(3, 1, 8, 8)
        for key in ("student", "module.student", "state_dict.module.student", "student.net"):
            assert torch.equal(run(tmp_path / "two.pt", weights_key=key).model(x), b(x))
        with pytest.raises(RobGIBError, match=r"unknown weights in .*'studnt'"):
            run(tmp_path / "two.pt", weights_key="studnt")
        with pytest.raises(RobGIBError, match="holds 2 complete sets"):
            run(tmp_path / "two.pt", weights_key="state_dict")

    def test_safetensors_have_prefixes_too(self, tmp_path):
        a, b = net(1), net(2)
        save_file(
            {**below("teacher", a.state_dict()), **below("student", b.state_dict())}, str(tmp_path / "t.safetensors")
        )
        with pytest.raises(RobGIBError, match="holds 2 complete sets"):
            run(tmp_path / "t.safetensors")
        x = torch.rand(3, 1, 8, 8)
        assert torch.equal(run(tmp_path / "t.safetensors", weights_key="teacher").model(x), a(x))
        with pytest.raises(RobGIBError, match="did you mean 'teacher'"):
            run(tmp_path / "t.safetensors", weights_key="teachers")

    def test_a_normaliser_outside_the_chosen_one_is_applied(self, digits, tmp_path):
        both = {**below("teacher", net(1).state_dict()), **below("student", net(2).state_dict())}
        torch.save({**both, "mean": torch.tensor([0.3]), "std": torch.tensor([0.2])}, tmp_path / "t.pt")
        x = digits.test.x[:20]
        found = run(tmp_path / "t.pt", weights_key="student")
        assert torch.allclose(found.model(x), net(2)((x - 0.3) / 0.2), atol=1e-5)

    def test_one_of_another_shape_is_none(self, tmp_path):
        torch.manual_seed(3)
        other = Net()
        other.head = nn.Linear(4 * 36, 1)
        torch.save({"discriminator": other.state_dict(), "classifier": net().state_dict()}, tmp_path / "gan.pt")
        found = run(tmp_path / "gan.pt")
        assert torch.equal(found.model.head.weight, net().head.weight)
        assert found.left_out == ("the file also holds 'discriminator', which is not used (--weights-key chooses)",)

    def test_what_lies_in_a_loss_is_none(self, tmp_path):
        state = {**below("model", net(1).state_dict()), **below("criterion.features", net(2).state_dict())}
        torch.save({"state_dict": state}, tmp_path / "n.ckpt")
        found = run(tmp_path / "n.ckpt")
        assert torch.equal(found.model.head.weight, net(1).head.weight)
        (told,) = found.left_out
        assert told.startswith("4 tensors of the file were not used: 'criterion.features.conv.weight'")
        assert "the network has none of these names" not in told

    def test_networks_that_are_unpickled_whole(self, tmp_path):
        torch.save({"model": net(1), "ema": net(2), "criterion": nn.CrossEntropyLoss()}, tmp_path / "n.pt")
        with pytest.raises(RobGIBError, match="holds 2 networks, 'model', 'ema'; choose one"):
            read_checkpoint(tmp_path / "n.pt", allow_pickle=True)
        found = read_checkpoint(tmp_path / "n.pt", allow_pickle=True, weights_key="ema").network
        assert torch.equal(found.head.weight, net(2).head.weight)
        with pytest.raises(RobGIBError, match="holds 2 complete sets"):
            run(tmp_path / "n.pt")
        assert torch.equal(run(tmp_path / "n.pt", weights_key="ema").model.head.weight, net(2).head.weight)

    def test_load_into_asks_too(self):
        state = {**below("a", net(1).state_dict()), **below("b", net(2).state_dict())}
        with pytest.raises(RobGIBError, match="'a', 'b'"):
            load_into(net(), state, "it")


def test_a_normaliser_that_the_network_has_itself_is_said():
    net = build("cnn", (1, 8, 8), 10)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    pair = {"preprocess.mean": net.normalize.mean.clone(), "preprocess.std": net.normalize.std.clone()}
    found = fit(net, {"": {**state, **pair}}, "net.pt")
    assert found.normalization is None
    assert "('preprocess.mean', 'preprocess.std'), the same as inside it: it is applied once" in " ".join(found.notes)


def test_load_model_warns_of_what_it_left_out(tmp_path):
    state = {**below("model", net().state_dict()), "neck.weight": torch.ones(2)}
    torch.save({"state_dict": state, "optimizer": {}}, tmp_path / "n.pt")
    with pytest.warns(RobGIBWarning, match=r"^n: 1 tensor of the file was not used, .*'neck.weight'"):
        robgib.load_model(tmp_path / "n.pt", arch=f"{HERE}:make", data="digits")
    found = load(tmp_path / "n.pt", arch=f"{HERE}:make", data="digits")
    assert set(found.left_out) <= set(found.notes)


def test_fit_says_where_the_weights_were(tmp_path):
    torch.save({"model": net(1).state_dict(), "best": net(1).state_dict()}, tmp_path / "n.pt")
    content = read_checkpoint(tmp_path / "n.pt")
    found = fit(net(), content.sets, "it")
    assert found.notes == ("the weights are those of 'model'", "the file holds the same weights as 'best'")
    assert found.left_out == ()
