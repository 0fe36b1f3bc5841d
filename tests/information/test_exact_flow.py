"""The parts of the flow beside regressions, densities and mixtures that are written out."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import OAS

from robgib.information.flow import _PRIOR_SHARES, _Data, _draw, _Linear, _log_prob, _mixed

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
