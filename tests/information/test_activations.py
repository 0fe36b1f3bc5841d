import numpy as np
import pytest
import torch
from torch import nn

from robgib import RobGIBError
from robgib._torchvision import load_torchvision
from robgib.information import collect_activations, default_layers, layer_shapes
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
