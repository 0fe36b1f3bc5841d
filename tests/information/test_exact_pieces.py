"""The predictor of codes from pieces, beside layers, gradients and steps that are written out."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import signal, special
from torch import nn

from robgib.information import pieces
from robgib.information.pieces import Pieces, _answers, _log_shares, _Network, _train, learn_codes


def test_settings_of_the_predictor():
    names = ("LEAST_SIDE", "MAPS", "POOLED", "HIDDEN", "OWN", "MASKS", "BATCH", "RATE", "HELD", "LOOKS", "LOOKED_AT")
    found = tuple(getattr(pieces, f"_{name}") for name in names)
    assert found == (4, (12, 24), 4, 128, 64, 4, 64, 3e-3, 10, 8, 1000)


@pytest.mark.parametrize("wide", [4, 3])
def test_pieces_are_cut_and_filled_up(wide):
    """Pieces of at least four by four numbers stay pictures; others are one row of numbers each."""
    x = torch.arange(2.0 * 2 * 5 * 9).view(2, 2, 5, 9)
    cells = [
        (slice(None), slice(None), slice(0, 5), slice(0, wide)),
        (slice(None), slice(None), slice(0, 4), slice(4, 9)),
    ]
    found = Pieces.of(x, cells, torch.tensor(3.0), torch.tensor(2.0)).x
    ready = (x - 3) / 2
    if wide == 4:
        expected = torch.zeros(2, 2, 2, 5, 5)
        expected[:, 0, :, :, :4], expected[:, 1, :, :4] = ready[..., :4], ready[:, :, :4, 4:]
    else:
        expected = torch.zeros(2, 2, 40)
        expected[:, 0, :30], expected[:, 1] = ready[..., :3].flatten(1), ready[:, :, :4, 4:].flatten(1)
    assert torch.equal(found, expected)
    vectors = Pieces.of(
        x[:, 0, 0], [(slice(None), slice(0, 8)), (slice(None), slice(8, 9))], torch.zeros(9), torch.ones(9)
    )
    assert vectors.x[:, 1].tolist() == [[8.0] + [0.0] * 7, [98.0] + [0.0] * 7]


def read_out(network, of_pieces, masks):
    """Scores (B, S, K) of the pieces' numbers (B, n, w) by the weights of the network."""
    weights = {name: values.detach().double().numpy() for name, values in network.named_parameters()}
    codes = np.einsum("bnd,ndh->bnh", of_pieces, weights["place"])
    hidden = np.einsum("sn,bnh->bsh", masks, codes) + masks @ weights["mask.weight"].T + weights["mask.bias"]
    hidden = np.maximum(np.maximum(hidden, 0) @ weights["read.1.weight"].T + weights["read.1.bias"], 0)
    return hidden @ weights["scores.weight"].T + weights["scores.bias"]


def test_rows_of_numbers_layer_by_layer():
    torch.manual_seed(3)
    network = _Network((2, 5), [3, 3, 2])
    torch.manual_seed(3)
    drawn = [torch.randn(2, 5, 64), torch.randn(2, 64), torch.randn(2, 64, 128)]
    for values, normal, scale in zip(
        (network.own, network.shift, network.place), drawn, (math.sqrt(2 / 5), 0.5, 1 / 8), strict=True
    ):
        assert torch.allclose(values, normal * scale)
    x, masks = torch.randn(4, 2, 5), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    own = np.einsum("bnd,ndh->bnh", x.double().numpy(), network.own.detach().double().numpy())
    own = np.maximum(own + network.shift.detach().double().numpy(), 0)
    expected = read_out(network, own, masks.double().numpy())
    one, two = network(x, masks[None])
    assert one.detach().numpy() == pytest.approx(expected[..., :6].reshape(4, 3, 2, 3), abs=1e-4)
    assert two.detach().numpy() == pytest.approx(expected[..., 6:].reshape(4, 3, 1, 2), abs=1e-4)


def convolved(x, layer, size, padding):
    """A convolution of stride 2 (B, o, H, W), by scipy."""
    weight, bias = (p.detach().double().numpy() for p in layer.parameters())
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    assert weight.shape[2:] == (size, size)
    of = [[sum(signal.correlate2d(a, b, "valid") for a, b in zip(one, w, strict=True)) for w in weight] for one in x]
    return np.maximum(np.array(of) + bias[:, None, None], 0)[..., ::2, ::2]


@pytest.mark.parametrize(("side", "maps", "pooled"), [((6, 7), (2, 2), (2, 2)), ((18, 24), (5, 6), (4, 4))])
def test_pictures_layer_by_layer(side, maps, pooled):
    """Two convolutions of stride 2; their maps are averaged to at most four by four."""
    torch.manual_seed(1)
    network = _Network((2, 1, *side), [2])
    wide = 24 * pooled[0] * pooled[1]
    assert tuple(network.place.shape) == (2, wide, 128)
    assert float(network.place.std()) == pytest.approx(math.sqrt(1 / wide), rel=0.05)
    x, masks = torch.randn(1, 2, 1, *side), torch.tensor([[1.0, 1.0]])
    first, _, second, _ = network.maps
    made = convolved(convolved(x[0].double().numpy(), first, 4, 1), second, 3, 1)
    assert made.shape == (2, 24, *maps)
    edges = [[(i * m // p, -((-(i + 1) * m) // p)) for i in range(p)] for m, p in zip(maps, pooled, strict=True)]
    means = np.stack([np.stack([made[..., a:b, c:d].mean((2, 3)) for c, d in edges[1]], -1) for a, b in edges[0]], -2)
    (found,) = network(x, masks[None])
    expected = read_out(network, means.reshape(1, 2, -1), masks.double().numpy())
    assert found[:, :, 0].detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_logs_of_smoothed_shares():
    goals = torch.tensor([[0, 1], [0, -1], [2, -1]])
    expected = [math.log(2.5 / 4.5), math.log(0.5 / 4.5), math.log(1.5 / 4.5), math.log(0.5 / 2), math.log(1.5 / 2)]
    assert _log_shares(goals, [3, 2]).tolist() == pytest.approx(expected)


def test_probabilities_of_codes(monkeypatch):
    monkeypatch.setattr(pieces, "_ANSWERED", 2)
    rng = np.random.default_rng(0)
    scores, wanted = rng.standard_normal((5, 3, 2, 4)), torch.tensor([[0, 3], [1, -1], [2, 2], [3, 1], [-1, 0]])
    masks = torch.ones(3, 2)

    def network(x, shown):
        assert shown.shape == (1, 3, 2)
        return [torch.from_numpy(scores[x.numpy()])]

    found = _answers(network, torch.arange(5), wanted, masks, "cpu")
    shares = special.softmax(scores, 3)
    assert found.shape == (2, 3, 5)
    for i in range(5):
        for t in range(2):
            code = int(wanted[i, t])
            assert found[t, :, i] == pytest.approx(shares[i, :, t, code] if code >= 0 else [1.0] * 3)


class Tilted(nn.Module):
    """Scores of two codes: a number each, and one more that counts by the pieces that are shown."""

    def __init__(self):
        super().__init__()
        self.level, self.tilt = nn.Parameter(torch.tensor([0.8, -0.8])), nn.Parameter(torch.zeros(2))

    def forward(self, x, masks):
        return [(self.level + (x[:, None] * masks).sum(-1)[..., None] * self.tilt)[:, :, None]]


def codes_of(level, tilt, x, masks, goals):
    """Mean cross-entropy of two codes, and its slopes."""
    shown = (x[:, None] * masks).sum(-1)
    odds = level + shown[..., None] * tilt
    shares = special.softmax(odds, 2)
    error = (shares - np.eye(2)[goals][:, None]) / shown.size
    loss = -np.log(np.take_along_axis(shares, goals[:, None, None] + np.zeros(shown.shape, int)[..., None], 2)).mean()
    return loss, error.sum((0, 1)), (shown[..., None] * error).sum((0, 1))


@pytest.mark.parametrize(("count", "steps", "held", "best"), [(60, 20, 0.6, None), (45, 5, 0.0, 1), (1, 3, 1.0, 3)])
def test_training_beside_steps_that_are_written_out(monkeypatch, count, steps, held, best):
    """Adam with a cosine's step sizes; of every ten inputs the first is held out, and tells which step is best."""
    monkeypatch.setattr(pieces, "_RATE", 0.2)
    monkeypatch.setattr(pieces, "_LOOKED_AT", 5)
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.uniform(0.5, 1, (count, 2)))
    codes = (rng.random(count) < 0.9).astype(int)
    out = np.arange(0, count, 10)
    codes[out] = rng.permutation(len(out)) < round(held * len(out))
    masks = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    network, draw = Tilted().double(), torch.Generator().manual_seed(4)
    _train(network, x, torch.from_numpy(codes)[:, None], masks, steps, draw, "cpu")

    draw = torch.Generator().manual_seed(4)
    x, masks, rows = x.numpy(), masks.numpy(), np.setdiff1d(np.arange(count), out) if count > 1 else out
    out = out[:5]
    shown = masks[torch.randint(3, (len(out), 4), generator=draw)]
    look = (x[out], shown, codes[out])
    p, m, v = np.array([0.8, -0.8, 0, 0]), np.zeros(4), np.zeros(4)
    looks = []
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (64,), generator=draw)]
        _, *slopes = codes_of(p[:2], p[2:], x[batch], masks[torch.randint(3, (64, 4), generator=draw)], codes[batch])
        slope = np.concatenate(slopes)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        rate = 0.2 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        p = p - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        if step % max(1, steps // 8) == 0 or step == steps:
            looks.append((codes_of(p[:2], p[2:], *look)[0], step, p))
    _, step, p = min(looks, key=lambda look: look[0])
    assert step == best if best else 1 < step < steps
    assert torch.cat([network.level, network.tilt]).tolist() == pytest.approx(p.tolist(), abs=1e-6)


@pytest.mark.parametrize(("inputs", "steps", "expected"), [(7, 9, [(4, 4), (7, 5)]), (6, 1, [(6, 1)])])
def test_a_learning_curve_of_two_points(monkeypatch, inputs, steps, expected):
    seen, made = [], []

    def train(network, x, goals, masks, count, generator, device):
        assert torch.equal(goals, torch.tensor(np.stack(targets, 1))[: len(x)])
        seen.append((len(x), count))
        assert not torch.is_inference_mode_enabled()
        assert (torch.is_grad_enabled(), generator.initial_seed(), torch.initial_seed()) == (True, 5, 5)
        assert network.scores.bias.tolist() == pytest.approx(
            _log_shares(torch.tensor(np.stack(targets, 1)), [2, 3]).tolist()
        )

    def answers(network, x, wanted, masks, device):
        made.append((x, wanted, masks, device))
        return np.full((2, 1, 4), len(seen))

    monkeypatch.setattr(pieces, "_train", train)
    monkeypatch.setattr(pieces, "_answers", answers)
    monkeypatch.setattr(pieces, "_Network", lambda shape, sizes: (made.append((tuple(shape), sizes)), network)[1])
    network = nn.Module()
    network.scores = nn.Linear(1, 5)
    rng = np.random.default_rng(0)
    targets = [rng.integers(k, size=inputs) for k in (2, 3)]
    asked = [np.arange(4) % 2, np.arange(4) % 3]
    test, masks = torch.zeros(4, 2, 3), torch.ones(1, 2)
    train_on = SimpleNamespace(x=torch.zeros(inputs, 2, 3))
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = learn_codes(train_on, targets, [2, 3], masks, SimpleNamespace(x=test), asked, steps=steps, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == expected
    assert made[0] == ((2, 3), [2, 3])
    for x, wanted, shown, device in made[1:]:
        assert (x is test, shown is masks, device) == (True, True, "cpu")
        assert torch.equal(wanted, torch.tensor(np.stack(asked, 1)))
    assert [f.tolist() for f in found] == [[[[1.0] * 4], [[2.0] * 4]] if steps > 1 else [[[0.0] * 4], [[1.0] * 4]]] * 2
