"""The parts of the flow beside regressions, densities and mixtures that are written out."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import OAS
from torch import nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.transforms import MonotonicRQSTransform

from robgib.information import Flow
from robgib.information import flow as module
from robgib.information.decomposition import Problem
from robgib.information.flow import _PRIOR_SHARES, _Data, _draw, _Linear, _log_prob, _mixed
from robgib.information.masked_network import Columns, Folds, draw_masks, subsets
from robgib.information.preprocessing import SALTS, normal_scores

OWNER = torch.tensor([0, 1, 1])
MASKS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def drawn(count=60):
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((count, 3)) @ rng.standard_normal((3, 3)) + 2
    target = columns[:, :2] + rng.standard_normal((count, 2)) - 1
    return torch.from_numpy(columns).float(), torch.from_numpy(target).float()


def by_hand(columns, target):
    """Mean and covariance of the target given the columns of each subset, by the shrunk covariance of all."""
    joint = torch.cat([columns, target], 1).double().numpy()
    covariance = OAS().fit(joint).covariance_
    for mask in MASKS.numpy():
        own = np.flatnonzero(mask[OWNER.numpy()])
        slope = np.linalg.solve(covariance[np.ix_(own, own)], covariance[np.ix_(own, [3, 4])]) if len(own) else None
        given = covariance[np.ix_([3, 4], [3, 4])]
        if len(own):
            given = given - covariance[np.ix_([3, 4], own)] @ slope
        yield own, slope, given + 1e-6 * np.eye(2), joint.mean(0)


def test_the_linear_law_of_each_subset():
    columns, target = drawn()
    found = _Linear.fit(columns, target, MASKS, OWNER)
    for s, (own, slope, given, mean) in enumerate(by_hand(columns, target)):
        assert found.mean_x.numpy() == pytest.approx(mean[:3], rel=1e-5)
        assert found.mean_t.numpy() == pytest.approx(mean[3:], rel=1e-5)
        expected = np.zeros((3, 2))
        if len(own):
            expected[own] = slope
        assert found.slopes[s].numpy() == pytest.approx(expected, abs=1e-5)
        whiten = found.whiten[s].double().numpy()
        assert np.linalg.inv(whiten.T @ whiten) == pytest.approx(given, rel=1e-4)
        assert float(found.volume[s]) == pytest.approx(-np.linalg.slogdet(given)[1] / 2, abs=1e-4)


class Normal:
    """A flow that does nothing: its residuals are standard normal, whatever it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, context):
        self.seen.append(context)
        return self

    def log_prob(self, residual):
        return -(residual**2).sum(1) / 2 - residual.shape[1] / 2 * math.log(2 * math.pi)


def test_the_density_without_a_flow_is_that_of_the_linear_law():
    columns, target = drawn()
    data = _Data(columns, target, MASKS, OWNER)
    rows, which = torch.tensor([3, 3, 8, 20]), torch.tensor([0, 1, 2, 3])
    flow = Normal()
    found = _log_prob(flow, _Linear.fit(columns, target, MASKS, OWNER), data, rows, which)
    for place, (own, slope, given, mean) in enumerate(by_hand(columns, target)):
        x, t = columns[rows[place]].numpy(), target[rows[place]].numpy()
        centre = mean[3:] + ((x - mean[:3])[own] @ slope if len(own) else 0)
        assert float(found[place]) == pytest.approx(stats.multivariate_normal(centre, given).logpdf(t), rel=1e-3)
        shown = np.where(MASKS[place].numpy()[OWNER.numpy()] > 0, x, 0)
        assert flow.seen[0][place].tolist() == pytest.approx([*shown, *MASKS[place].tolist()])


def test_subsets_to_train_on():
    """Of 3 features: 0 is none, 1 all, 2 to 4 one, 5 to 7 all but one, and 8 to 11 others: a fifth each."""
    found = _draw(40_000, 3, 12, torch.Generator().manual_seed(0))
    shares = torch.bincount(found, minlength=12) / 40_000
    expected = torch.tensor([1 / 5, 1 / 5, *[1 / 15] * 6, *[1 / 20] * 4])
    assert len(shares) == 12
    assert (shares - expected).abs().max() < 0.006


def test_the_mixture_with_the_law_is_chosen_on_the_other_folds():
    rng = np.random.default_rng(0)
    fold = np.arange(30) % 3
    gain = 0.5 * rng.standard_normal(30) + np.array([-2.0, 1.0, 1.0])[fold]  # the flow of the first fold misleads
    choices = np.array([[math.log((1 - d) * math.exp(g) + d) for g in gain] for d in _PRIOR_SHARES])
    expected, chosen = np.zeros(30), []
    for f in range(3):
        best = choices[:, fold != f].sum(1).argmax()
        chosen.append(best)
        expected[fold == f] = choices[best, fold == f]
    assert _mixed(gain, fold, 3) == pytest.approx(expected)
    assert len(set(chosen)) > 1
    assert not _mixed(np.full(9, -50.0), np.arange(9) % 3, 3).any()  # the law alone


def test_settings_of_the_flow():
    defaults = {f.name: f.default for f in fields(Flow)}
    assert defaults == {
        "noise": 0.0, "folds": 3, "width": 64, "splines": 1, "steps": 800, "batch": 256, "rate": 2e-3,
        "device": "auto", "seed": 0,
    }  # fmt: skip
    for least in ({"folds": 3}, {"splines": 0}, {"batch": 2}):
        assert Flow(**least)
        with pytest.raises(Exception, match=f"{next(iter(least))} must be at least"):
            Flow(**{name: value - 1 for name, value in least.items()})
    assert Flow.least_samples == 50
    assert (module._OTHERS, module._CHECK, module._PATIENCE, module._AVERAGING) == (32, 50, 4, 0.99)
    assert (module._DECAY, module._WORST) == (1.0, 1e4)
    assert _PRIOR_SHARES == (0.003, 0.01, 0.03, 0.1, 1.0)
    assert math.log(2) == module._LOG2


def test_the_flow_is_two_affine_transforms_around_splines_near_the_identity():
    """Every second spline, and the last transform, take the target's dimensions in reverse; 8 bins have 7 slopes."""
    torch.manual_seed(0)
    made = Flow(width=5, splines=3)._flow(2, 4)
    torch.manual_seed(0)
    common = {"context": 4, "hidden_features": (5, 5)}
    spline = {"univariate": MonotonicRQSTransform, "shapes": [(8,), (8,), (7,)]}
    back = {"order": torch.tensor([1, 0])}
    inner = [MaskedAutoregressiveTransform(2, **of, **spline, **common) for of in ({}, back, {})]
    outer = [MaskedAutoregressiveTransform(2, **of, **common) for of in ({}, back)]
    transforms = [outer[0], *inner, outer[1]]
    with torch.no_grad():
        for one in transforms:
            one.hyper[-1].weight.mul_(0.01)
            one.hyper[-1].bias.mul_(0.01)
    expected = {
        f"transform.transforms.{number}.{name}": values
        for number, one in enumerate(transforms)
        for name, values in one.state_dict().items()
    }
    expected |= {"base._0": torch.zeros(2), "base._1": torch.ones(2)}  # a standard normal law
    found = made.state_dict()
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
    learnt = {name for name, _ in made.named_parameters()}
    assert {name for name in expected if name.endswith(("weight", "bias"))} == learnt
    assert len(Flow(splines=0)._flow(1, 1).transform.transforms) == 2


class Shifted(nn.Module):
    """A flow with one parameter: residuals are normal around it."""

    def __init__(self, start):
        super().__init__()
        self.centre = nn.Parameter(torch.as_tensor(start).float())

    def forward(self, context):
        return self

    def log_prob(self, residual):
        return -((residual - self.centre) ** 2).sum(1) / 2


class Reference:
    """Training of one :class:`Shifted` flow: AdamW by its formulas, with the gradient worked out."""

    def __init__(self, start, rate):
        self.p = np.array(start, np.float64)
        self.average, self.rate = self.p.copy(), rate
        self.m, self.v, self.step = np.zeros(2), np.zeros(2), 0

    def train(self, residual):
        self.step += 1
        slope = -(residual - self.p).mean(0)
        slope = slope * min(1, 5 / (np.linalg.norm(slope) + 1e-6))
        self.m, self.v = 0.9 * self.m + 0.1 * slope, 0.999 * self.v + 0.001 * slope**2
        size = (self.m / (1 - 0.9**self.step)) / (np.sqrt(self.v / (1 - 0.999**self.step)) + 1e-8)
        self.p = self.p * (1 - self.rate) - self.rate * size
        share = 1 - min(0.99, (1 + self.step) / (10 + self.step))
        self.average = self.average + share * (self.p - self.average)


@pytest.mark.parametrize(
    ("samples", "steps", "apart", "rate", "stops"),
    [(24, 30, 4.0, 0.2, 12), (60, 22, 0.0, 0.01, 22), (3090, 4, 0.0, 0.2, 4)],
)
def test_training_beside_formulas_that_are_written_out(monkeypatch, samples, steps, apart, rate, stops):
    """Looks at steps 0, 4, 8, …, the last; three without a better one end it. Each flow is that of the others' best."""
    monkeypatch.setattr(module, "_CHECK", 4)
    monkeypatch.setattr(module, "_PATIENCE", 3)
    rng, n = np.random.default_rng(1), 2
    folds = Folds.draw(samples, 3, 5)
    target = rng.standard_normal((samples, 2)) + apart * (folds.of.numpy()[:, None] - 1) + [0.3, -0.2]
    masks = torch.cat([torch.zeros(1, n), subsets(n), torch.ones(3, n)])
    data = _Data(torch.zeros(samples, 2), torch.from_numpy(target).float(), masks, torch.tensor([0, 1]))
    scales = 1 + np.arange(len(masks)) % 3 * 4.0  # of the residuals, by subset: some gradients are above 5
    whiten = torch.eye(2) * torch.tensor(scales)[:, None, None]
    law = [torch.zeros(2), torch.zeros(2), torch.zeros(len(masks), 2, 2), whiten, 2 * torch.tensor(scales).log()]
    linear = [_Linear(*(of.float() for of in law))] * 3
    starts = np.array([[0.5, 0.1], [-0.2, 0.3], [0.0, -0.4]]) * (1 if apart else 40)
    flows = [Shifted(start) for start in starts]
    draw = torch.Generator().manual_seed(7)
    Flow(steps=steps, batch=8, rate=rate)._train(flows, linear, data, folds, n, draw)

    draw = torch.Generator().manual_seed(7)
    looks = [(rows, _draw(len(rows), n, len(masks), draw)) for rows in folds.held[:, :1024]]
    references = [Reference(start, rate) for start in starts]
    losses, kept, last = [], [], 0
    for step in range(steps + 1):
        for f, reference in enumerate(references if step else []):
            rows = folds.train[f][torch.randint(folds.train.shape[1], (8,), generator=draw)]
            reference.train(target[rows] * scales[_draw(8, n, len(masks), draw)][:, None])
        if step % 4 == 0 or step == steps:
            last = step
            losses.append([])
            for (rows, which), reference in zip(looks, references, strict=True):
                scale = scales[which][:, None]
                residual = target[rows] * scale - reference.average
                losses[-1].append(((residual**2).sum(1) / 2 - 2 * np.log(scale[:, 0])).mean())
            kept.append([reference.average for reference in references])
            if len(losses) - 1 - np.mean(losses, 1).argmin() >= 3:
                break
    assert last == stops
    best = [int(np.mean([[row[g] for g in range(3) if g != f] for row in losses], 1).argmin()) for f in range(3)]
    for f, flow in enumerate(flows):
        assert flow.centre.detach().numpy() == pytest.approx(kept[best[f]][f], abs=2e-4)
        assert not flow.training


def test_training_leaves_out_what_is_not_finite(monkeypatch):
    target = torch.full((12, 2), torch.nan)
    masks = torch.cat([torch.zeros(1, 1), subsets(1), torch.ones(2, 1)])
    nothing = _Linear(
        torch.zeros(1), torch.zeros(2), torch.zeros(6, 1, 2), torch.eye(2).repeat(6, 1, 1), torch.zeros(6)
    )
    flows = [Shifted(np.array([0.5, 0.5])) for _ in range(3)]
    data = _Data(torch.zeros(12, 1), target, masks, torch.zeros(1, dtype=torch.int64))
    Flow(steps=3, batch=4)._train(flows, [nothing] * 3, data, Folds.draw(12, 3, 0), 1, torch.Generator().manual_seed(0))
    assert [f.centre.tolist() for f in flows] == [[0.5, 0.5]] * 3


class Scaled(Normal):
    """Residuals are normal with a deviation of its own; what it answers to two samples is no finite number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def to(self, device):
        return self

    def log_prob(self, residual):
        found = super().log_prob(residual * self.factor)
        found[self.seen[-1][:, 0] == 77] = torch.nan
        found[self.seen[-1][:, 0] == 78] = -math.inf
        return found


@pytest.mark.parametrize("sizes", [(6, 4), (6,)])
def test_held_out_densities_of_each_subset(monkeypatch, sizes):
    """Each sample is judged by its own fold's flow, and by the next one's for what is lost by learning."""
    rng, n, count, bits = np.random.default_rng(3), len(sizes), 45, math.log(2)
    of = tuple(torch.from_numpy(rng.standard_normal((count + 6, d))).float() for d in sizes)
    of[0][4], of[0][7] = 77.0, 78.0
    target = of[0][:, :1] + 0.5 * torch.from_numpy(rng.standard_normal((count + 6, 2))).float()
    seen = {}
    factors = iter([1.0, 1.02, 0.98])

    def made(self, dims, context):
        seen["made"] = (dims, context, torch.initial_seed())
        return Scaled(next(factors))

    def train(self, flows, linear, data, folds, features, generator):
        seen.update(flows=flows, linear=linear, data=data, features=features, generator=generator)

    monkeypatch.setattr(Flow, "_flow", made)
    monkeypatch.setattr(Flow, "_train", train)
    monkeypatch.setattr(module, "_CHUNK", 4)
    pointwise, missing = Flow(seed=9, device="cpu")._pointwise(Columns(of, (0,) * n, 6), target, count)
    assert (pointwise.shape, missing.shape) == ((count, 2 * n + 1), (2 * n + 1,))
    assert (seen["made"], seen["features"]) == ((2, sum(sizes) + n, 9), n)
    draw = torch.Generator().manual_seed(9)
    masks = torch.cat([torch.zeros(1, n), subsets(n), draw_masks(1, 32, n, draw)[0]])
    assert torch.equal(seen["data"].masks, masks)
    assert torch.equal(draw.get_state(), seen["generator"].get_state())
    folds, owner = Folds.draw(count, 3, 9, more=6), torch.arange(n).repeat_interleave(torch.tensor(sizes))
    columns = torch.cat(of, 1)
    laws = [_Linear.fit(columns[rows], target[rows], masks, owner) for rows in folds.train]

    def judged(subset, fold):
        flow = Scaled([1.0, 1.02, 0.98][fold])
        which = torch.full((count,), subset)
        found = _log_prob(flow, laws[fold], _Data(columns, target, masks, owner), torch.arange(count), which)
        return np.clip(np.nan_to_num(found.double().numpy(), nan=-1e4), -1e4, 1e4)

    each, of_fold = np.arange(count), folds.of.numpy()
    lost = 0
    for j in range(2 * n + 1):
        own, next_one = (
            np.stack([judged(j + 1, f) - judged(0, f) for f in range(3)])[(of_fold + shift) % 3, each]
            for shift in (0, 1)
        )
        values = _mixed(own, of_fold, 3)
        if not masks[j + 1].any() or values.mean() <= 0:
            values, own, next_one = np.zeros(count), own * 0, own * 0
        assert pointwise[:, j] == pytest.approx(values / bits, rel=1e-4, abs=1e-4)
        assert missing[j] == pytest.approx(1.25 * max(next_one.mean() - own.mean(), 0) / bits, rel=1e-3, abs=1e-3)
        lost += missing[j]
    assert lost > 0 or n == 1
    assert pointwise[:, 0].mean() > 0.5


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_what_the_flow_hands_over(monkeypatch, noise):
    rng, seen = np.random.default_rng(4), {}
    answer, lacking = rng.random((60, 5)), rng.random(5)

    def pointwise(self, inputs, target, samples):
        learns = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        seen.update(inputs=inputs, target=target, samples=samples, grad=learns)
        return answer, lacking

    monkeypatch.setattr(Flow, "_pointwise", pointwise)
    monkeypatch.setattr(module, "decompose", lambda terms, **more: seen.update(terms=terms, **more))
    features, fit = ([rng.standard_normal((m, d)) for d in (1, 2)] for m in (60, 8))
    target, fit_target = (np.hstack([rng.standard_normal((m, 2)), np.ones((m, 1))]) for m in (60, 8))
    of = Flow(noise=noise, seed=3)
    with torch.inference_mode():
        of._estimate(Problem(of.prepare(features, fit), target, fit_target))
    scores = normal_scores(np.concatenate([target, fit_target]))[:, :2]  # the constant is left out
    if noise:
        draw = np.random.default_rng([3, SALTS["flow"]])
        scores = scores + math.sqrt(noise) * draw.standard_normal(scores.shape)
    assert seen["target"].numpy() == pytest.approx(scores, abs=1e-5)
    assert (seen["samples"], seen["inputs"].more, seen["grad"]) == (60, 8, True)
    assert seen["terms"] == pytest.approx(answer.mean(0))
    assert (seen["pointwise"] is answer, seen["missing"] is lacking) == (True, True)
    assert seen["floor"] == pytest.approx(1 / 60 / math.log(2))
    added = ", noise variance 0.3" if noise else ""
    assert seen["resolution"] == f"target 2 dimensions{added}, features 3 columns"
    of._estimate(Problem(of.prepare(features), target, target))
    assert len(seen["target"]) == 60
    of._estimate(Problem(of.prepare(features), np.arange(60) % 2, np.arange(60) % 2))
    assert seen["terms"].shape == (5,)
    assert np.isnan(seen["terms"]).all()
