"""Completed inputs against the conditional law of jointly Gaussian ones."""

import numpy as np
import pytest
import torch

from robgib.information.donors import Pool, places

DIMS = 12
ROOT = np.random.default_rng(0).standard_normal((DIMS, DIMS)) / 3
COVARIANCE = ROOT @ ROOT.T + 0.2 * np.eye(DIMS)
KEPT, LEFT = np.arange(8), np.arange(8, DIMS)


def drawn(count, seed):
    return np.random.default_rng(seed).multivariate_normal(np.arange(DIMS) / DIMS, COVARIANCE, count)


@pytest.mark.parametrize(("kept", "left"), [(KEPT, LEFT), (LEFT, KEPT)])
def test_donors_are_drawn_from_the_conditional_law(kept, left):
    pool = Pool.of(torch.from_numpy(drawn(6000, 1)).float(), False)
    x = drawn(40, 2)
    found = pool.complete(torch.from_numpy(x).float(), kept, left, 400, True, 16, np.random.default_rng(3))
    made = np.concatenate([m.numpy() for _, m in found.composed(7)]).reshape(40, 400, DIMS)
    assert np.allclose(made[:, :, kept], x[:, None, kept], atol=1e-5)
    gain = np.linalg.solve(COVARIANCE[np.ix_(kept, kept)], COVARIANCE[np.ix_(kept, left)])
    mean = np.arange(DIMS)[left] / DIMS + (x[:, kept] - np.arange(DIMS)[kept] / DIMS) @ gain
    spread = COVARIANCE[np.ix_(left, left)] - COVARIANCE[np.ix_(left, kept)] @ gain
    assert np.abs(made[:, :, left].mean(1) - mean).mean() < 0.06
    own = np.mean([np.cov(m, rowvar=False) for m in made[:, :, left]], 0)
    assert own == pytest.approx(spread, abs=0.12)


def test_fewer_donors_than_numbers_keep_their_spread():
    """A line that is fitted to each donor would leave too small a residual of it."""
    rng = np.random.default_rng(4)
    factors = rng.standard_normal((3, 100))
    pictures = rng.standard_normal((60, 3)) @ factors + rng.standard_normal((60, 100))
    pool = Pool.of(torch.from_numpy(pictures).float(), False)
    assert pool.covariance is None
    kept, left = np.arange(70), np.arange(70, 100)
    x = rng.standard_normal((200, 3)) @ factors + rng.standard_normal((200, 100))
    found = pool.complete(torch.from_numpy(x).float(), kept, left, 5, True, 16, rng)
    error = (torch.from_numpy(x).float() - found.predicted)[:, left]
    assert float(found.content[:, left].std()) == pytest.approx(float(error.std()), rel=0.2)


def test_few_values_are_taken_as_they_are_and_ties_are_broken_by_chance():
    bits = np.random.default_rng(5).integers(2, size=(2000, 3)).astype(np.float32)
    pool = Pool.of(torch.from_numpy(bits), False)
    x = torch.from_numpy(bits[:50])
    found = pool.complete(x, np.array([0]), np.array([1, 2]), 20, True, 16, np.random.default_rng(6))
    made = np.concatenate([m.numpy() for _, m in found.composed(8)])
    assert set(np.unique(made)) == {0.0, 1.0}
    assert (bits[found.near.numpy(), 0] == bits[:50, :1]).all()
    assert len(found.near.unique()) > 500  # not the same few donors for all


def test_places_of_a_grid():
    cells = [(slice(None), slice(None), slice(0, 1), slice(0, 2)), (slice(None), slice(None), slice(1, 2), slice(0, 2))]
    assert [p.tolist() for p in places(cells, (1, 2, 2))] == [[0, 1], [2, 3]]
