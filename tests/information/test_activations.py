import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError, RobGIBWarning
from robgib._torchvision import load_torchvision
from robgib.information import collect_activations, default_layers, layer_shapes
from robgib.information.activations import _varying, find_layers, functions_of
from robgib.models import build

torchvision = load_torchvision()

X = torch.rand(6, 1, 8, 8)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(64, 8)
        self.unused = nn.Linear(8, 8)
        self.dead = nn.Linear(8, 4)
        nn.init.zeros_(self.dead.weight)
        nn.init.constant_(self.dead.bias, -1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.used(x.flatten(1))
        self.dead(h)
        return self.head(h)


def test_default_layers_of_own_models(digits_cnn):
    digits_vit = build("vit", (1, 8, 8), 10, {"patch": 2, "dim": 48, "depth": 3, "heads": 4}).eval()
    assert default_layers(digits_cnn, X[:2]) == ("blocks.0", "blocks.1", "blocks.2", "hidden", "logits")
    assert default_layers(digits_vit, X[:2]) == ("patches", "blocks.0", "blocks.1", "blocks.2", "logits")


def test_default_layers_of_a_plain_sequence():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert default_layers(model, X) == ("3", "5", "logits")


def test_default_layers_of_a_torchvision_model():
    model = torchvision.models.resnet18(num_classes=5)
    layers = default_layers(model, torch.rand(2, 3, 32, 32))
    assert layers == ("conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "logits")


def test_default_layers_of_a_wrapped_model(digits_cnn):
    class Wrapper(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    inner = ("blocks.0", "blocks.1", "blocks.2", "hidden")
    assert default_layers(Wrapper(digits_cnn), X[:2]) == (*(f"net.{n}" for n in inner), "logits")
    assert default_layers(Wrapper(Wrapper(digits_cnn)), X[:2]) == (*(f"net.net.{n}" for n in inner), "logits")
    assert default_layers(nn.Sequential(nn.Identity(), digits_cnn), X[:2]) == (*(f"1.{n}" for n in inner), "logits")
    assert default_layers(Wrapper(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), X[:2]) == ("logits",)


def test_default_layers_leave_out_what_does_not_run():
    assert default_layers(Odd(), X) == ("used", "dead", "logits")


def test_layer_shapes(digits_cnn):
    shapes = layer_shapes(digits_cnn, X[:1])
    assert shapes["blocks.0"] == (16, 4, 4)
    assert shapes["logits"] == (10,)


def test_capture_equals_the_forward_pass(digits_cnn):
    digits_cnn.train()
    held = collect_activations(digits_cnn, X, ["blocks.0", "logits"], batch_size=4)
    assert all(m.training for m in digits_cnn.modules())
    digits_cnn.eval()
    with torch.no_grad():
        first = digits_cnn.blocks[0](digits_cnn.normalize(X))
        assert held["blocks.0"] == pytest.approx(first.numpy(), abs=1e-5)
        assert held["logits"] == pytest.approx(digits_cnn(X).numpy(), abs=1e-4)


def test_tokens_give_the_class_token_and_maps_are_pooled():
    digits_vit = build("vit", (1, 8, 8), 10, {"patch": 2, "dim": 48, "depth": 3, "heads": 4})
    held = collect_activations(digits_vit, X, ["blocks.1"])
    assert held["blocks.1"].shape == (6, 48)
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(512, 2))
    assert collect_activations(conv, torch.rand(3, 1, 16, 16), ["0"])["0"].shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("heads", "unknown layer 'heads'; did you mean 'head'"),
        ("unused", "'unused' never fires"),
        ("dead", "'dead' never fires: it is the same for all 6"),
    ],
)
def test_bad_layers(layer, message):
    with pytest.raises(RobGIBError, match=message):
        collect_activations(Odd(), X, [layer])


def test_nan_activations():
    model = Odd()
    with torch.no_grad():
        model.used.weight[0, 0] = np.nan
    with pytest.raises(RobGIBError, match="'used' holds NaN"):
        collect_activations(model, X, ["used"])


def test_units_come_first_whatever_the_layout():
    torch.manual_seed(0)
    swin = load_torchvision().models.swin_t(weights=None, num_classes=3).eval()
    held = collect_activations(swin, torch.rand(2, 3, 64, 64), ["features.0", "features.1", "features.3"])
    assert [v.shape[:2] for v in held.values()] == [(2, 96), (2, 96), (2, 192)]  # they give (N, H, W, C)
    with torch.no_grad():
        first = swin.features[0](torch.zeros(2, 3, 64, 64))
    assert first.shape[-1] == 96
    next_one = load_torchvision().models.convnext_tiny(weights=None, num_classes=3).eval()
    held = collect_activations(next_one, torch.rand(2, 3, 64, 64), ["features.1", "features.2"])
    assert [v.shape for v in held.values()] == [(2, 96, 4, 4), (2, 192, 4, 4)]  # its blocks end with a permutation
    waves = nn.Sequential(
        nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.AdaptiveAvgPool1d(8), nn.Flatten(), nn.Linear(40, 3)
    ).eval()
    x = torch.rand(4, 2, 50)
    held = collect_activations(waves, x, ["0", "1"])
    assert held["0"].shape == (4, 5, 16)
    with torch.no_grad():
        means = waves[0](x).mean(2).numpy()
    assert held["0"].mean(2) == pytest.approx(means, abs=1e-5)
    tokens = nn.Sequential(nn.Linear(2, 7), nn.Flatten(), nn.Linear(350, 3)).eval()
    assert collect_activations(tokens, x.transpose(1, 2), ["0"])["0"].shape == (4, 7)


def test_wide_layers_are_reduced_as_they_are_captured():
    """Random directions keep distances, and are the same for other samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 300, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(300 * 64, 3))
    x = torch.rand(40, 1, 8, 8)
    whole = collect_activations(net, x, ["1", "logits"])
    small = collect_activations(net, x, ["1", "logits"], reduced=True)
    assert whole["1"].shape == (40, 300, 4, 4)
    assert small["1"].shape == (40, 1024)
    assert np.array_equal(whole["logits"], small["logits"])
    again = collect_activations(net, x[5:9], ["1"], reduced=True, batch_size=3)["1"]
    assert np.allclose(again, small["1"][5:9], atol=1e-4)

    def distances(z):
        flat = z.reshape(len(z), -1).astype(float)
        return np.linalg.norm(flat[:, None] - flat[None], axis=2)[np.triu_indices(len(z), 1)]

    ratio = distances(small["1"]) / distances(whole["1"])
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.std() < 0.05


class Rewritten(nn.Module):
    """A network whose layers are written over after they return, in the way that ``how`` names, or are not."""

    def __init__(self, how):
        super().__init__()
        self.how, self.fc, self.act, self.head = how, nn.Linear(64, 8), nn.ReLU(how == "module"), nn.Linear(8, 3)
        self.answer = torch.zeros(3, 3)

    def forward(self, x):
        with torch.inference_mode(self.how == "inference"):
            return self.answered(self.fc(x.flatten(1)))

    def answered(self, h):
        if self.how == "inference":
            h.relu_()
        if self.how == "add":
            h += 1
            return self.head(h.relu())
        if self.how == "view":
            h[:, :4].unsqueeze(2)[..., 0].fill_(0)
        if self.how == "data":  # what autograd does not see
            h.data[:, :4] = 0
        if self.how == "buffer":
            self.answer[:] = self.head(self.act(h))
            return self.answer
        return self.head(self.act(h))


@pytest.mark.parametrize("how", ["module", "add", "view", "data", "inference", "buffer"])
def test_what_a_layer_gave_is_kept_though_it_is_written_over(how):
    torch.manual_seed(0)
    model = Rewritten(how).eval()
    held = collect_activations(model, X, ["fc", "logits"], batch_size=3)
    with torch.no_grad():
        assert held["fc"] == pytest.approx(model.fc(X.flatten(1)).numpy(), abs=1e-6)
        told = np.concatenate([model(part).numpy().copy() for part in X.split(3)])
    assert held["logits"] == pytest.approx(told, abs=1e-6)


class Tied(nn.Module):
    """A block that is called four times, of which the first call has another name too."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Linear(64, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.again = nn.ModuleList([self.block])
        self.head, self.seen = nn.Linear(8, 3), []

    def forward(self, x):
        h, self.seen = self.stem(x.flatten(1)), []
        for _ in range(4):
            h = self.block(h)
            self.seen.append(h)
        return self.head(h)


def test_every_call_of_a_module_is_a_layer():
    torch.manual_seed(0)
    model = Tied().eval()
    calls = [f"block[{i}]" for i in (1, 2, 3, 4)]
    assert default_layers(model, X[:2]) == ("stem", *calls, "logits")
    assert find_layers(model, X[:2], ["block", "stem"])[0] == (*calls, "stem")
    assert find_layers(model, X[:2], ["block[2]"])[0] == ("block[2]",)
    held = collect_activations(model, X, ["block"])
    assert list(held) == calls
    with torch.no_grad():
        model(X)
    for name, wanted in zip(calls, model.seen, strict=True):
        assert held[name] == pytest.approx(wanted.numpy(), abs=1e-6)
    with pytest.raises(RobGIBError, match=r"unknown layer 'block\[5\]'"):
        collect_activations(model, X, ["block[5]"])


def test_a_module_that_is_called_now_more_often_now_less():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x):
            h = self.block(x.flatten(1))
            return self.head(self.block(h) if len(x) == 4 else h)

    with pytest.raises(RobGIBError, match=r"'block\[1\]' is not computed for all images"):
        collect_activations(Early(), X, ["block"], batch_size=4)


class Several(nn.Module):
    """Modules that give tuples and dictionaries, with the images first or second."""

    def __init__(self, batch_first):
        super().__init__()
        self.first = batch_first
        self.lstm = nn.LSTM(8, 5, num_layers=2, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=batch_first)
        self.both = Both()
        self.count = Counted()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = x[:, 0] if self.first else x[:, 0].transpose(0, 1)
        h, _ = self.lstm(x)
        h, _ = self.attention(h, h, h)
        told = self.both((h if self.first else h.transpose(0, 1))[:, -1])
        self.count(told["low"])
        return self.head(told["low"] + told["high"])


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, h):
        return {"low": self.low(h), "high": self.high(h), "one": torch.ones(len(h), 2)}


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, h):
        return len(h)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("images", [6, 8])  # 8 are as many as there are steps
def test_tensors_of_several_are_layers_and_what_is_none_is_told(batch_first, images):
    torch.manual_seed(0)
    model, x = Several(batch_first).eval(), torch.rand(images, 1, 8, 8)
    with pytest.warns(RobGIBWarning) as told:
        layers = default_layers(model, x[:2])
    parts = ["lstm(0)", "lstm(1.0)", "lstm(1.1)", "attention(0)", "attention(1)", "both(low)", "both(high)"]
    assert layers == (*parts, "logits")
    assert [str(w.message).split(" has")[0] for w in told] == ["layer 'both(one)'", "layer 'count'"]
    held = collect_activations(model, x, layers)
    inside = x[:, 0] if batch_first else x[:, 0].transpose(0, 1)
    with torch.no_grad():
        steps, (state, cell) = model.lstm(inside)
    assert held["lstm(0)"] == pytest.approx(steps.mean(1 if batch_first else 0).numpy(), abs=1e-6)
    assert held["lstm(1.0)"] == pytest.approx(state.transpose(0, 1).flatten(1).numpy(), abs=1e-6)
    assert held["lstm(1.1)"] == pytest.approx(cell.transpose(0, 1).flatten(1).numpy(), abs=1e-6)
    assert held["both(low)"].shape == (images, 5)
    assert list(collect_activations(model, x, ["both"])) == ["both(low)", "both(high)"]


@pytest.mark.parametrize("images", [4, 5, 9])
def test_blocks_whose_tokens_come_before_the_images(images):
    class TokensFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks = nn.Linear(16, 6), nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            h = self.embed(x.view(len(x), 4, 16)).transpose(0, 1)
            for block in self.blocks:
                h = block(h)
            return self.head(h.mean(0))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, h):
            return self.inner(h)

    torch.manual_seed(0)
    model, x = TokensFirst().eval(), torch.rand(images, 1, 8, 8)
    assert default_layers(model, x[:2]) == ("embed", "blocks.0", "blocks.1", "logits")
    held = collect_activations(model, x, ["blocks.1"])["blocks.1"]
    with torch.no_grad():
        assert model.head(torch.from_numpy(held)).numpy() == pytest.approx(model(x).numpy(), abs=1e-5)


def test_which_layers_are_functions_of_one():
    class Skipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.beside = nn.Linear(64, 8), nn.Linear(64, 8)
            self.block, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.stem(x.flatten(1))
            return self.head(self.last(h + self.block(h.relu_()) + self.beside(x.flatten(1)) * 0.1))

    torch.manual_seed(0)
    model = Skipped().eval()
    later = ["block", "last", "logits"]
    assert functions_of(model, X, "stem", later) == {"block"}  # the last hears of the image beside it too
    assert functions_of(model, X, "block", later[1:]) == set()
    assert functions_of(model, X, "last", ["logits"]) == {"logits"}
    assert functions_of(Tied().eval(), X, "block[2]", ["block[1]", "block[3]", "logits"]) == {"block[3]", "logits"}


@pytest.mark.parametrize(("images", "sentence"), [(1, "one image is too few"), (3, "these are too few images")])
def test_a_layer_that_is_the_same_for_very_few_images_asks_for_more_images(images, sentence):
    values = np.zeros((images, 5), np.float32)
    with pytest.raises(RobGIBError, match=f"{sentence}.*more with --samples"):
        _varying("f1", values, True)
    with pytest.raises(RobGIBError, match="never fires: it is the same for all 4 images"):
        _varying("f1", np.zeros((4, 5), np.float32), True)
