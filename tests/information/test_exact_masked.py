"""What learned estimators share, beside figures by hand and references written in loops."""

import math

import numpy as np
import pytest
import torch

from robgib.information import InfoNCE, Probe
from robgib.information.infonce import _Alternatives
from robgib.information.masked_network import (
    _PRIOR_SHARES,
    _SHARPNESS,
    Columns,
    Folds,
    Masked,
    Schedule,
    calibrated,
    columns,
    draw_masks,
    draw_singles,
    information,
    layers,
    learning_floor,
    perceptron,
    pooled_note,
    subsets,
    train,
)
from robgib.information.preprocessing import normal_scores
from robgib.information.probe import _log_prior

LOG2 = math.log(2)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


# Inputs.


def test_columns_of_a_variable():
    real = np.random.default_rng(0).standard_normal((30, 2))
    found, pooled = columns(real)
    assert (pooled, found.dtype) == (0, torch.float32)
    assert found.numpy() == pytest.approx(normal_scores(real), abs=1e-6)
    found, pooled = columns(np.array([[7], [3], [7], [9]]))
    assert (found.tolist(), pooled) == ([[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], 0)
    found, pooled = columns(np.arange(64)[:, None])
    assert (tuple(found.shape), pooled) == ((64, 64), 0)


def test_rare_symbols_share_a_column():
    codes = np.repeat(np.arange(67), np.where(np.arange(67) < 4, 1, 3))[:, None]  # four of 67 are rare
    found, pooled = columns(codes)
    assert (pooled, tuple(found.shape)) == (4, (193, 65))
    assert found[:, :64].argmax(1).tolist() == [63] * 4 + np.repeat(np.arange(63), 3).tolist()
    assert (found[:, :64].sum(1) == 1).all()
    assert found[:, 64:].numpy() == pytest.approx(normal_scores(codes.astype(float)), abs=1e-6)
    assert pooled_note([0, 4, 1]) == ["2 variables have over 64 symbols: the rare ones are pooled"]
    assert pooled_note([0, 0]) == []


def test_columns_of_all_features_with_samples_for_training_alone():
    x, more = np.array([[0], [1], [1]]), np.array([[2], [0]])
    own = Columns.made((x, x), (x, x))
    assert own.more == 0
    both = Columns.made((x, x[::-1]), (more, more))
    assert both.more == 2
    assert both.pooled == (0, 0)
    assert both.of[0].argmax(1).tolist() == [0, 1, 1, 2, 0]
    assert both.of[1].argmax(1).tolist() == [1, 1, 0, 2, 0]
    assert Columns.made((x, x), (x, more)).more == 3  # as many as the first has: one differs
    assert both.widths.tolist() == [3, 3]
    network = both.network()
    assert (network.owner.tolist(), network.n) == ([0, 0, 0, 1, 1, 1], 2)
    assert torch.equal(network.values, torch.cat(both.of, 1))


def test_masks():
    assert subsets(2).tolist() == [[1, 1], [1, 0], [0, 1], [0, 1], [1, 0]]
    assert subsets(3)[4:].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    singles = draw_singles(3, 400, 5, drawn())
    assert singles.shape == (3, 400, 5)
    assert (singles.sum(2) == 1).all()
    assert singles.sum((0, 1)).min() > 180  # of 240
    masks = draw_masks(2, 20_000, 6, drawn())
    assert masks.shape == (2, 20_000, 6)
    sizes = torch.bincount(masks.sum(2).long().flatten(), minlength=7) / 40_000
    # A quarter each: full, all but one, one; and of random size, of which each is as frequent (a seventh).
    expected = torch.tensor([1, 1, 1, 1, 1, 1, 1]) / 28 + torch.tensor([0, 1, 0, 0, 0, 1, 1]) / 4
    assert (sizes - expected).abs().max() < 0.01


# Folds.


def test_folds_are_dealt_in_turn():
    order = np.argsort(np.random.default_rng(3).random(7))
    folds = Folds.draw(7, 3, 3, more=2)
    assert folds.of[order].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert folds.slot[order].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert folds.held.tolist() == [
        [order[0], order[3], order[6]], [order[1], order[4], order[1]], [order[2], order[5], order[2]]
    ]  # fmt: skip
    for f in range(3):
        outside = np.flatnonzero(folds.of.numpy() != f)[:4]
        assert folds.train[f].tolist() == [*outside, 7, 8]
    assert Folds.draw(7, 3, 3).train.shape == (3, 4)


def test_folds_share_each_class():
    codes = np.repeat([0, 1, 2], [6, 3, 9])
    folds = Folds.draw(18, 3, 0, codes)
    for code, share in ((0, 2), (1, 1), (2, 3)):
        assert torch.bincount(folds.of[torch.from_numpy(codes == code)]).tolist() == [share] * 3


# Networks.


def test_layers_start_with_their_gains():
    made = layers(2, [3, 5, 4], drawn(), last=0.4)
    rng = drawn()
    expected = [torch.randn((2, 3, 5), generator=rng) * math.sqrt(2 / 3),
                torch.randn((2, 5, 4), generator=rng) * math.sqrt(0.4 / 5)]  # fmt: skip
    assert all(torch.allclose(a, b) for a, b in zip(made[::2], expected, strict=True))
    assert [tuple(b.shape) for b in made[1::2]] == [(2, 1, 5), (2, 1, 4)]
    assert not any(b.any() for b in made[1::2])
    assert torch.allclose(layers(1, [2, 2], drawn())[0], torch.randn((1, 2, 2), generator=drawn()) * math.sqrt(0.1 / 2))


def test_networks_by_hand():
    rng = np.random.default_rng(0)
    a, b, c, d = rng.standard_normal((1, 3, 4)), rng.standard_normal((1, 1, 4)), rng.standard_normal((1, 4, 2)), 0.5
    x = rng.standard_normal((1, 6, 3))
    weights = [torch.from_numpy(v) for v in (a, b, c, np.full((1, 1, 2), d))]
    expected = np.maximum(x[0] @ a[0] + b[0], 0) @ c[0] + d
    assert perceptron(torch.from_numpy(x), weights)[0].numpy() == pytest.approx(expected)

    values, owner = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([0, 0, 1])
    network = Masked(values, owner, 2)
    assert (network.levels, network.levels_of(torch.ones(2))) == (2, [0, 1])
    gates, *rest = network.start(2, [4, 7], drawn())
    assert torch.equal(gates, torch.ones(4, 1, 3))
    assert [tuple(p.shape) for p in rest] == [(4, 5, 4), (4, 1, 4), (4, 4, 7), (4, 1, 7)]  # a mask beside the columns
    identity = [torch.tensor([[[1.0, 2.0, 3.0]]]).repeat(4, 1, 1), torch.eye(5).repeat(4, 1, 1), torch.zeros(4, 1, 5)]
    rows = torch.tensor([[0, 1], [1, 0]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    found = network(identity, rows, masks)
    once = [[[1, 4, 0, 1, 0], [0, 0, 18, 0, 1]], [[4, 10, 18, 1, 1], [0, 0, 0, 0, 0]]]
    assert found.tolist() == once + once
    assert network.to(torch.device("cpu")).n == 2
    for samples, strong in ((5000, 3.0), (1250, 6.0)):
        decay = Masked(torch.zeros(samples, 1), torch.zeros(1), 1).decay(2)
        assert decay.shape == (4, 1, 1)
        assert decay.flatten().tolist() == pytest.approx([strong, strong, 0.3, 0.3])


# Training.


def adam(start, slope, gates, decay, rate, steps, look, count):
    """Adam (Kingma & Ba 2015), decayed gates, averaged weights, and each member's best look at the other folds.

    Returns:
        The best averages, and the steps that were made.
    """
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    average, best, lowest, last = p.copy(), p.copy(), np.full(len(p), np.inf), 0
    for t in range(1, steps + 1):
        g = slope(p)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p[:, gates] *= 1 - rate * decay[:, None]
        kept = min(0.997, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * p
        if t % 25 and t < steps:
            continue
        own = look(average).reshape(-1, count)
        others = ((own.sum(1, keepdims=True) - own) / (count - 1)).ravel()
        better = others < lowest - 1e-4
        lowest[better], best[better] = others[better], average[better]
        if better.any():
            last = t
        elif t - last >= 300:
            break
    return best, t


@pytest.mark.parametrize(("steps", "made"), [(60, 60), (2000, None)])
def test_training_goes_through_the_steps_of_adam_and_stops_in_time(steps, made):
    count, members = 3, 6
    rng = np.random.default_rng(0)
    start, goal = rng.standard_normal((2, members, 2))
    unseen = start + rng.uniform(0.1, 0.7, (members, 2)) * (goal - start)  # passed on the way
    decay = np.repeat([0.5, 0.1], count)
    folds, calls = Folds.draw(15, count, 0), []

    def look(p):
        # Of five samples held out, three are looked at together and two, which count double here.
        return ((p - unseen) ** 2).sum(1) * (3 / 5 * 1 + 2 / 5 * 2)

    def loss(parameters, rows, masks):
        p = torch.cat(parameters, 2)[:, 0]
        calls.append((torch.is_grad_enabled(), rows, masks))
        if torch.is_grad_enabled():
            return ((p - torch.from_numpy(goal)) ** 2).sum(1)
        return ((p - torch.from_numpy(unseen)) ** 2).sum(1) * (1 if rows.shape[1] == 3 else 2)

    parameters = [torch.from_numpy(start[:, None, i : i + 1].copy()) for i in (0, 1)]
    found = train(
        loss, parameters, torch.from_numpy(decay)[:, None, None], folds, Schedule(steps, 3, 0.01, 4),
        generator=drawn(), device=torch.device("cpu"),
    )  # fmt: skip
    best, last = adam(start, lambda p: 2 * (p - goal), [0], decay, 0.01, steps, look, count)
    assert torch.cat(found, 2)[:, 0].numpy() == pytest.approx(best, abs=1e-6)
    assert sum(training for training, *_ in calls) == last == (made or last)
    assert last < 2000
    for training, rows, masks in calls:
        assert masks.shape == (*rows.shape, 4)
        allowed = folds.train if training else folds.held
        assert all(set(r.tolist()) <= set(a.tolist()) for r, a in zip(rows, allowed, strict=True))
    assert {rows.shape[1] for training, rows, _ in calls if training} == {3}


# Calibration.

SHARPNESS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
PRIOR_SHARES = (0.0, 0.003, 0.01, 0.03, 0.1)


def answers(seed, n=24, k=3, levels=2, strength=1.0):
    rng = np.random.default_rng(seed)
    own = rng.integers(k, size=n)
    scores = rng.standard_normal((levels, n, k))
    scores[:, np.arange(n), own] += strength * np.array([0.5, 1.5])[:levels, None]
    prior = np.log(rng.dirichlet(np.full(k, 5.0), n))
    return scores, own, prior


def test_the_grid_of_calibrations():
    assert (_SHARPNESS, _PRIOR_SHARES) == (SHARPNESS, PRIOR_SHARES)


def gains_in_loops(scores, own, prior):
    """By mixture, sharpness, share of the prior and sample."""
    table = np.zeros((3, len(SHARPNESS) * len(PRIOR_SHARES), len(own)))
    for i, mix in enumerate((0, 0.5, 1)):
        for j, sharp in enumerate(SHARPNESS):
            for d, share in enumerate(PRIOR_SHARES):
                for s, t in enumerate(own):
                    mixed = (1 - mix) * scores[0, s] + mix * scores[-1, s]
                    chance = np.exp(sharp * mixed) * np.exp(prior[s])
                    chance = (1 - share) * chance / chance.sum() + share * np.exp(prior[s])
                    table[i, j * len(PRIOR_SHARES) + d, s] = math.log(chance[t]) - prior[s, t]
    return table


@pytest.mark.parametrize("seed", range(4))
def test_calibration_in_loops(seed):
    held_out = answers(seed, strength=0.4)
    trained_on = (answers(seed + 50, strength=2.0)[0], *held_out[1:])
    fold = np.random.default_rng(seed).permutation(np.arange(24) % 4)
    seen, fresh = gains_in_loops(*trained_on), gains_in_loops(*held_out)
    by_fold = [[table[:, :, fold == f].mean(2) for f in range(4)] for table in (fresh, seen)]
    held = np.stack(by_fold[0], -1)
    gap = np.stack([by_fold[1][f - 1] for f in range(4)], -1) - held  # the networks of a fold were trained on the last
    expected, mean_gap = np.zeros(24), []
    for f in range(4):
        rest = [g for g in range(4) if g != f]
        best = [(held[m][:, rest].mean(1)).argmax() for m in range(3)]
        value = [held[m, t, f] + gap[m, t, f] - gap[m, t, rest].mean() for m, t in enumerate(best)]
        m = int(np.argmax(value))
        expected[fold == f] = fresh[m, best[m], fold == f]
        mean_gap.append(gap[m, best[m], f])
    as_tensors = [tuple(torch.from_numpy(v.copy()) for v in a) for a in (held_out, trained_on)]
    values, found = calibrated(*as_tensors, torch.from_numpy(fold))
    assert values.numpy() == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx(np.mean(mean_gap), abs=1e-6)


def test_pointwise_information_is_in_bits_and_never_below_nothing():
    folds = Folds.draw(24, 4, 0)
    good, seen = answers(0, strength=3.0), answers(9, strength=6.0)
    bad = (answers(1, strength=0.0)[0] * 0, *good[1:])  # nothing is gained

    def ask(mask, shift):
        asked.append((mask.tolist(), shift))
        source = bad if mask.tolist() == [0.0, 1.0] else (good, seen)[shift]
        source = (source[0], *good[1:])
        return [tuple(torch.from_numpy(v.copy()) for v in source)] * 2

    asked = []
    masks = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    both = information(ask, masks, folds, targets=2)
    assert asked == [([1.0, 1.0], 0), ([1.0, 1.0], 1), ([0.0, 1.0], 0), ([0.0, 1.0], 1)]
    values, gap = calibrated(*ask(masks[0], 0)[:1], *ask(masks[0], 1)[:1], folds.of)
    assert gap != 0
    for pointwise, missing in both:
        assert pointwise[:, 0] == pytest.approx(values.numpy() / LOG2)
        assert missing[0] == pytest.approx(1.25 * max(gap, 0) / LOG2)
        assert not pointwise[:, 1:].any()
        assert not missing[1:].any()


def test_a_term_that_loses_information_is_nothing():
    folds = Folds.draw(24, 4, 0)
    good = answers(0, strength=3.0)
    # On each fold the answers are right where the others' are wrong, so that a calibration by the others misleads.
    scores = good[0] * np.where(folds.of.numpy() == 0, -6.0, 2.0)[None, :, None]

    def ask(mask, shift):
        return [tuple(torch.from_numpy(np.array(v)) for v in (scores, *good[1:]))]

    values, _ = calibrated(*ask(None, 0), *ask(None, 0), folds.of)
    assert values.mean() < 0
    ((pointwise, missing),) = information(ask, torch.ones(1, 2), folds)
    assert not pointwise.any()
    assert not missing.any()


def test_the_floor_of_what_is_learnt():
    # Three standard deviations of a chi-squared of p degrees over 2N: 3·√(2p)/(2N) nats.
    assert learning_floor(np.array([8.0, 2.0]), 100) == pytest.approx([3 * 4 / 200 / LOG2, 3 * 2 / 200 / LOG2])


# The probe's prior and folds, and InfoNCE's alternatives.


def test_shares_of_symbols_where_the_networks_train():
    target = torch.tensor([0, 1, 1, 0, 1, 2])
    folds = Folds(torch.zeros(4), torch.zeros(4), torch.zeros(2, 2), torch.tensor([[0, 1, 4], [2, 3, 5]]))
    found = _log_prior(target, 3, folds).exp()
    assert found.numpy() == pytest.approx(np.array([[1.5, 2.5, 0.5], [1.5, 1.5, 1.5]]) / 4.5)
    weighted = _log_prior(target, 3, folds, np.array([2.0, 1.0, 0.5, 3.0])).exp()  # the last two are not judged
    assert weighted.numpy() == pytest.approx(np.array([[2.5, 1.5, 0.5], [3.5, 1, 0.5]]) / np.array([[4.5], [5]]))


def test_folds_of_the_probe():
    def inputs(more):
        return Columns((), (), more)

    assert [Probe()._count(inputs(m), 100) for m in (0, 99, 100, 200)] == [5, 5, 3, 3]
    assert Probe(folds=7)._count(inputs(200), 100) == 7


def test_alternatives_are_dealt_in_blocks_of_a_fold():
    folds = Folds.draw(30, 3, 0)
    made = _Alternatives.draw(folds, 4, seed=5)
    # Ten samples of a fold in round(10/4) = 2 blocks of five.
    assert (tuple(made.block.shape), made.count) == ((6, 5), 5)
    rng = np.random.default_rng(5)
    for f in range(3):
        own = rng.permutation(np.flatnonzero(folds.of.numpy() == f))
        assert made.block[2 * f : 2 * f + 2].flatten().tolist() == own.tolist()
    assert (made.block[made.of, made.slot] == torch.arange(30)).all()
    uneven = _Alternatives.draw(Folds.draw(20, 3, 0), 4, 5)  # seven, seven and six samples: two blocks of four
    assert tuple(uneven.block.shape) == (6, 4)
    assert (uneven.block[uneven.of, uneven.slot] == torch.arange(20)).all()
    for f in range(3):
        row = uneven.block[2 * f : 2 * f + 2].flatten().tolist()
        assert row[: len(set(row))] == list(dict.fromkeys(row))
        assert row[len(set(row)) :] == row[: 8 - len(set(row))]  # filled up with its first
    assert _Alternatives.draw(Folds.draw(9, 3, 0), 256, 0).count == 3
    assert InfoNCE().alternatives == 256
