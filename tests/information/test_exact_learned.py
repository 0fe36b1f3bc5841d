"""What the probe and the contrast do with trained networks, on networks that are not trained, sample by sample."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robgib.information import InfoNCE, Probe, infonce, probe
from robgib.information.decomposition import Prepared, Problem
from robgib.information.infonce import _DIMS, _FULL, _Alternatives
from robgib.information.masked_network import (
    Columns,
    Folds,
    draw_masks,
    draw_singles,
    layers,
    learning_floor,
    perceptron,
    subsets,
)
from robgib.information.preprocessing import SALTS, encode, relabel
from robgib.information.probe import _log_prior

N, FOLDS = 13, 3
RNG = np.random.default_rng(0)
X = [RNG.standard_normal((N, 1)), RNG.standard_normal((N, 2)), RNG.standard_normal((N, 1))]
Y = np.array([0, 1, 2, 1] * 3 + [0])
U = np.array([0, 1] * 6 + [0])
COLUMNS = Columns.made(X, X)


@pytest.fixture
def untrained(monkeypatch):
    """Hand back the start instead of training, and keep what was asked of the training and of the networks."""
    seen = {}

    def stub(module):
        def train(loss, start, decay, folds, schedule, *, generator, device):
            seen.update(loss=loss, start=start, decay=decay, folds=folds, schedule=schedule)
            return start

        def information(ask, masks, folds, targets=1):
            seen.update(ask=ask, masks=masks, targets=targets)
            return ["asked"] * targets

        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "information", information)
        return seen

    return stub


def member(start, number):
    """The parameters of one of the networks side by side."""
    return [p[number : number + 1] for p in start]


def alone(network, parameters, i, mask):
    """The outputs of one network on one sample, under a mask (n,)."""
    gates, *rest = parameters
    shown = network.values[i] * mask[network.owner] * gates[0, 0]
    return perceptron(torch.cat([shown, mask])[None, None], rest)[0, 0]


def defaults(kind):
    return {
        k: p.default for k, p in inspect.signature(kind).parameters.items() if p.default is not inspect.Parameter.empty
    }


def test_settings_by_default():
    both = {"width": 128, "steps": 1500, "batch": 128, "rate": 0.005, "device": "auto", "seed": 0}
    assert defaults(Probe) == {"target_codes": None, "folds": None, **both}
    assert defaults(InfoNCE) == {"noise": 0.0, "folds": 5, "alternatives": 256, **both}
    assert (probe._APART, probe.LEAST_PER_SYMBOL) == (0.06, 5)


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 1.5, N)])
@pytest.mark.parametrize("single", [False, True])
def test_the_answers_of_the_probe(untrained, weights, single):
    seen = untrained(probe)
    network, folds, masks = COLUMNS.network(), Folds.draw(N, FOLDS, 1), subsets(3)
    heads = [torch.from_numpy(Y), torch.from_numpy(U)]
    estimator = Probe(folds=FOLDS, width=5, steps=7, batch=4, rate=0.02, seed=3)
    kind = {"alone": True} if single else {}
    assert estimator._pointwise(network, folds, masks, heads, weights, **kind) == ["asked"] * 2
    start, schedule = seen["start"], seen["schedule"]
    expected = network.start(FOLDS, [5, 5, 3 + 2], torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(start, expected, strict=True))
    assert torch.equal(seen["decay"], network.decay(FOLDS))
    assert (schedule.steps, schedule.batch, schedule.rate, schedule.features) == (7, 4, 0.02, 3)
    assert schedule.draw is (draw_singles if single else draw_masks)
    assert (seen["masks"] is masks, seen["targets"]) == (True, 2)

    priors = [_log_prior(h, k, folds) for h, k in zip(heads, (3, 2), strict=True)]
    rows = torch.tensor([[0, 5], [3, 12], [7, 7]])
    shown = masks[torch.tensor([[0, 1], [4, 6], [2, 3]])]
    losses = seen["loss"](start, rows, shown)
    for number in range(2 * FOLDS):
        own, total = number % FOLDS, 0.0
        for i, mask in zip(rows[own], shown[own], strict=True):
            scores = alone(network, member(start, number), i, mask).split([3, 2])
            for of, prior, goal in zip(scores, priors, heads, strict=True):
                total -= float(torch.log_softmax(of + prior[own], 0)[goal[i]]) / 2
        assert float(losses[number]) == pytest.approx(total, rel=1e-4)

    judged = [_log_prior(h, k, folds, weights) for h, k in zip(heads, (3, 2), strict=True)]
    for shift in (0, 1):
        answers = seen["ask"](masks[4], shift)
        for t, (scores, goals, prior) in enumerate(answers):
            assert goals.tolist() == heads[t].tolist()
            for i in range(N):
                who = (int(folds.of[i]) + shift) % FOLDS
                assert torch.equal(prior[i], judged[t][who])
                for level in range(2):
                    parts = alone(network, member(start, level * FOLDS + who), i, masks[4]).split([3, 2])
                    assert torch.allclose(scores[level, i], parts[t], atol=1e-5)


def handed(monkeypatch, module):
    """What an estimator hands over to be decomposed, problem by problem."""
    calls = []
    monkeypatch.setattr(module, "decompose", lambda terms, **more: calls.append({"terms": terms, **more}))
    return calls


def problem(target, fit=None):
    target = target if target.dtype.kind == "i" else target.reshape(len(target), -1)
    return Problem(Prepared(tuple(X), tuple(X), COLUMNS), target, target if fit is None else fit)


def test_what_the_probe_hands_over(monkeypatch):
    calls = handed(monkeypatch, probe)
    given = np.random.default_rng(1).random((N, 7)) * 0.2
    told = {}

    def pointwise(self, network, folds, masks, targets, weights, alone=False):
        told.update(masks=masks, targets=targets, folds=folds, weights=weights, alone=alone)
        told["grad"] = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        return [(given, np.full(7, 0.3))] * len(targets)

    monkeypatch.setattr(Probe, "_pointwise", pointwise)
    real = np.random.default_rng(2).standard_normal(N)
    with torch.inference_mode():
        Probe(target_codes=2, seed=4)._estimate_many([problem(U), problem(np.zeros(N, int)), problem(Y), problem(real)])
    binary, constant, few, coded = calls
    assert torch.equal(told["masks"], subsets(3))
    assert (told["weights"], told["alone"], told["grad"]) == (None, False, True)
    # 13 samples are fewer than five a symbol of three; a constant target is not learnt.
    assert [t.tolist() for t in told["targets"]] == [U.tolist(), encode(real[:, None], real[:, None], 2, 4).tolist()]
    assert torch.equal(told["folds"].of, Folds.draw(N, 5, 4, U).of)
    assert binary["terms"] == pytest.approx(given.mean(0))
    assert binary["pointwise"] is given
    assert binary["missing"].tolist() == [0.3] * 7
    assert (binary["apart"], binary["notes"]) == (0.06, [])
    assert binary["resolution"] == "target 2 codes, features 4 columns"
    columns = np.array([4, 1, 2, 1, 3, 2, 3])
    assert binary["floor"] == pytest.approx(learning_floor(columns * 1.0, N))
    assert coded["notes"] == ["the target is coded by 2 symbols: the information is about this code"]
    assert constant["notes"] == ["the target takes one symbol only: it carries no information"]
    for of in (constant["terms"], constant["floor"], constant["missing"], constant["pointwise"]):
        assert not np.asarray(of).any()
    assert constant["pointwise"].shape == (N, 7)
    assert constant["floor"].shape == constant["missing"].shape == (7,)
    assert few["notes"] == ["13 samples are too few for a target of 3 symbols: not estimable"]
    assert (few["terms"].shape, np.isnan(few["terms"]).all()) == ((7,), True)
    assert few["resolution"] == "target 3 codes, features 4 columns"


def test_the_probe_at_its_ceiling_and_at_its_fewest_samples(monkeypatch):
    calls = handed(monkeypatch, probe)
    y = np.array([0] * 7 + [1] * 3)
    x = [np.arange(10.0)[:, None]]
    entropy = -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.3))
    for share, notes in ((0.9801, ["at the ceiling H(T)"]), (0.9799, [])):
        monkeypatch.setattr(
            Probe, "_pointwise", lambda *a, share=share, **k: [(np.full((10, 3), share * entropy), np.zeros(3))]
        )
        Probe()._estimate(Problem(Prepared(tuple(x), tuple(x), Columns.made(x, x)), y, y))  # ten: five a symbol
        assert calls[-1]["notes"] == notes
    nine = [x[0][:9]]
    Probe()._estimate(Problem(Prepared(tuple(nine), tuple(nine), Columns.made(nine, nine)), y[:9], y[:9]))
    assert np.isnan(calls[-1]["terms"]).all()


def test_single_features_by_the_probe(monkeypatch):
    told = {}

    def pointwise(self, network, folds, masks, targets, weights, alone=False):
        told.update(masks=masks, targets=targets, folds=folds, weights=weights, alone=alone)
        return [("bits", "lack")] * len(targets)

    monkeypatch.setattr(Probe, "_pointwise", pointwise)
    weights = np.ones(N)
    found = Probe(folds=4, seed=2).singles(Prepared(tuple(X), tuple(X), COLUMNS), [(Y + 5, U), (U, Y)], weights)
    assert torch.equal(told["masks"], torch.eye(3))
    assert (told["alone"], told["weights"] is weights) == (True, True)
    assert [t.tolist() for t in told["targets"]] == [Y.tolist(), U.tolist()]
    assert torch.equal(told["folds"].held, Folds.draw(N, 4, 2).held)
    for (bits, lack, floor), k in zip(found, (3, 2), strict=True):
        assert (bits, lack) == ("bits", "lack")
        assert floor == pytest.approx(learning_floor(np.array([1.0, 2, 1]) * (k - 1), N))
    further = [np.vstack([x, x[:2] + 1]) for x in X]
    more = Columns(tuple(torch.from_numpy(f).float() for f in further), (0, 0, 0), 2)
    Probe().singles(Prepared(tuple(X), tuple(x[:2] for x in X), more), [(Y, np.array([3, 0]))])
    assert told["targets"][0].tolist() == [*Y.tolist(), 3, 0]


def test_codes_of_samples_for_training_alone():
    real, other = np.random.default_rng(3).standard_normal((9, 1)), np.random.default_rng(4).standard_normal((6, 1))
    given = problem(real, other)
    own, theirs = encode(real, other, 3, 5), encode(other, other, 3, 5)
    assert Probe(seed=5)._coded(given, 3, 6).tolist() == relabel(np.concatenate([own, theirs])).tolist()
    assert Probe(seed=5)._coded(given, 3, 0).tolist() == relabel(own).tolist()
    classes = problem(np.array([4, 7, 4]), np.array([9, 7]))
    assert Probe()._coded(classes, 3, 0).tolist() == [0, 1, 0]
    assert Probe()._coded(classes, 3, 2).tolist() == [0, 1, 0, 2, 1]


def test_the_answers_of_the_contrast(untrained):
    seen = untrained(infonce)
    network, folds, masks = COLUMNS.network(), Folds.draw(N, FOLDS, 1), subsets(3)
    target = torch.from_numpy(np.random.default_rng(5).standard_normal((N, 2))).float()
    alternatives = _Alternatives.draw(folds, 3, 0)
    estimator = InfoNCE(folds=FOLDS, width=5, steps=7, batch=4, rate=0.02, seed=3)
    assert estimator._pointwise(network, folds, masks, target, alternatives) == "asked"
    generator = torch.Generator().manual_seed(3)
    of_x = network.start(FOLDS, [5, 5, _DIMS], generator)
    of_t = layers(2 * FOLDS, [2, 5, 5, _DIMS], generator, last=1.0)
    assert all(torch.equal(a, b) for a, b in zip(seen["start"], [*of_x, *of_t], strict=True))
    schedule = seen["schedule"]
    assert (schedule.steps, schedule.batch, schedule.rate, schedule.features) == (7, 4, 0.02, 3)
    assert torch.equal(seen["decay"], network.decay(FOLDS))

    def score(number, i, j, mask):
        f = alone(network, member(of_x, number), i, mask)
        g = perceptron(target[j][None, None], member(of_t, number))[0, 0]
        return float(f @ g) / math.sqrt(_DIMS)

    rows = torch.tensor([[0, 5, 2], [3, 12, 1], [7, 9, 4]])
    shown = masks[torch.tensor([[0, 1, 2], [4, 6, 0], [2, 3, 5]])]
    losses = seen["loss"](seen["start"], rows, shown)
    for number in range(2 * FOLDS):
        own, total = number % FOLDS, 0.0
        for a, (i, mask) in enumerate(zip(rows[own], shown[own], strict=True)):
            against = torch.tensor([score(number, i, j, mask) for j in rows[own]])
            total -= float(torch.log_softmax(against, 0)[a]) / 3
        assert float(losses[number]) == pytest.approx(total, rel=1e-3)

    for shift in (0, 1):
        ((scores, slots, reference),) = seen["ask"](masks[4], shift)
        assert slots.tolist() == alternatives.slot.tolist()
        assert reference.flatten().tolist() == pytest.approx([-math.log(alternatives.count)] * alternatives.count)
        for i in range(N):
            who = (int(folds.of[i]) + shift) % FOLDS
            block = alternatives.block[alternatives.of[i]]
            for level in range(2):
                wanted = [score(level * FOLDS + who, i, j, masks[4]) for j in block]
                assert scores[level, i].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_what_the_contrast_hands_over(monkeypatch, noise):
    calls, told = handed(monkeypatch, infonce), {}
    given = np.tile([3.0, 0.5, 1.0, 0.0, 2.0, 2.5, 1.5], (N, 1))

    def pointwise(self, network, folds, masks, target, alternatives):
        told.update(target=target, masks=masks, folds=folds, count=alternatives.count)
        told["grad"] = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        return given.copy(), np.full(7, 0.1)

    monkeypatch.setattr(InfoNCE, "_pointwise", pointwise)
    real = np.random.default_rng(6).standard_normal((N, 2))
    estimator = InfoNCE(noise=noise, folds=FOLDS, alternatives=3, seed=7)
    with torch.inference_mode():
        estimator._estimate(problem(real))
    (made,) = calls
    count = told["count"]
    assert told["grad"]
    columns, _ = infonce.columns(real)
    drawn = np.random.default_rng([7, SALTS["infonce"]]).standard_normal((N, 2))
    assert told["target"].numpy() == pytest.approx(columns.numpy() + math.sqrt(noise) * drawn, abs=1e-5)
    assert torch.equal(told["folds"].of, Folds.draw(N, FOLDS, 7).of)
    terms = given[0]
    assert made["missing"] == pytest.approx(0.1 + (2**terms - 1) / (2 * count * math.log(2)))
    assert made["flagged"].tolist() == (terms >= _FULL * math.log2(count)).tolist()
    assert made["floor"] == pytest.approx(learning_floor(np.array([4.0, 1, 2, 1, 3, 2, 3]) * 2, N))
    assert made["notes"] == [f"flagged figures are near log2 {count}, the maximum of the contrast"]
    added = ", noise variance 0.25" if noise else ""
    assert made["resolution"] == f"target 2 dimensions{added}, {count} alternatives"
    calls.clear()
    estimator._estimate(problem(Y))
    assert calls[0]["resolution"] == f"target 3 codes, {count} alternatives"
    assert torch.equal(told["target"], F.one_hot(torch.from_numpy(Y)).float())  # symbols get no noise
    assert torch.equal(told["folds"].of, Folds.draw(N, FOLDS, 7, Y).of)
