"""What donors give, beside regressions and components by scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import Ridge

from robgib.information import donors
from robgib.information.donors import Pool, _kept_back, _leading, _shrinkage, most_donors, places, tell_apart


def correlated(count, dims, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, dims)) @ rng.standard_normal((dims, dims)) + rng.random(dims)).astype(
        np.float32
    )


def pool_of(count, dims, same=False, seed=0):
    x = correlated(count, dims, seed)
    return x, Pool.of(torch.from_numpy(x).unflatten(1, (1, dims)), same)


def test_how_many_donors_there_is_room_for():
    assert [most_donors(s) for s in ((1, 28, 28), (3, 224, 224), (2**26,), (), (6711,))] == [
        10_000,
        445,
        2,
        10_000,
        9999,
    ]


def test_places_in_an_input():
    cells = [(slice(None), slice(0, 2), slice(1, 2)), (slice(None), slice(2, 3), slice(0, 3))]
    assert [p.tolist() for p in places(cells, (3, 3))] == [[1, 4], [6, 7, 8]]


@pytest.mark.parametrize(("count", "dims"), [(40, 6), (6, 40), (500, 3)])
def test_the_shrinkage_is_ledoit_and_wolfs(count, dims):
    x = correlated(count, dims)
    x -= x.mean(0)
    covariance = x.T.astype(np.float64) @ x / count
    share = ledoit_wolf_shrinkage(x.astype(np.float64), assume_centered=True)
    # (1 − a) Σ + a m 1 is, but for a factor, Σ + m a / (1 − a).
    expected = np.trace(covariance) / dims * share / (1 - share)
    assert _shrinkage(torch.from_numpy(x), float((covariance**2).sum())) == pytest.approx(expected, rel=1e-4)


def test_the_shrinkage_of_extremes():
    """A share of at most 0.99, and at least a millionth of the mean variance."""
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert _shrinkage(two, 0.5) == pytest.approx(0.5 * 0.99 / 0.01)  # a multiple of one: all of it is shrunk
    line = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert _shrinkage(line, 4.0) == pytest.approx(1e-6)  # no noise: every product is the same
    assert _shrinkage(torch.zeros(3, 2), 0.0) == pytest.approx(1e-18)


def test_a_pool():
    x, pool = pool_of(50, 4)
    assert pool.mean.numpy() == pytest.approx(x.mean(0), rel=1e-5)
    assert pool.x.numpy() == pytest.approx(x - x.mean(0), abs=1e-5)
    assert (pool.low.tolist(), pool.high.tolist()) == (x.min(0).tolist(), x.max(0).tolist())
    assert pool.covariance == pytest.approx(np.cov(x.T, bias=True), rel=1e-4)
    assert pool.precision == pytest.approx(np.linalg.inv(np.cov(x.T, bias=True) + pool.ridge * np.eye(4)), rel=1e-3)
    assert pool_of(4, 4)[1].covariance is not None
    assert pool_of(3, 4)[1].covariance is pool_of(3, 4)[1].precision is None
    assert not pool.few
    values = torch.arange(600) % 9
    assert Pool.of((values % 8)[:, None], False).few  # eight values
    assert not Pool.of(values[:, None], False).few
    late = torch.cat([values[:500] % 8, torch.tensor([99])])[:, None]  # 500 are looked at
    assert Pool.of(late, False).few
    dual = pool_of(5, 9)[1]
    covariance = (dual.x.T @ dual.x).double().numpy() / 5
    assert dual.ridge == pytest.approx(_shrinkage(dual.x, float((covariance**2).sum())), rel=1e-4)


KEPT, LEFT = np.array([0, 2, 3, 5]), np.array([1, 4])


@pytest.mark.parametrize(("count", "swapped"), [(300, False), (300, True), (30, False), (30, True), (5, False)])
def test_the_line_is_a_ridge_regression(count, swapped):
    kept, left = (LEFT, KEPT) if swapped else (KEPT, LEFT)
    x, pool = pool_of(count, 6)
    centred = x - x.mean(0)
    ridge = Ridge(alpha=count * pool.ridge, fit_intercept=False).fit(centred[:, kept], centred[:, left])
    ours = torch.from_numpy(correlated(7, 6, seed=1))
    predicted, residual = pool._line(ours, kept, left)
    assert predicted.numpy() == pytest.approx(ridge.predict(ours.numpy()[:, kept]), rel=2e-3, abs=2e-3)
    gram = centred[:, kept].T @ centred[:, kept] + count * pool.ridge * np.eye(len(kept))
    leverage = np.einsum("pi,ij,pj->p", centred[:, kept], np.linalg.inv(gram), centred[:, kept])
    expected = centred[:, left] - ridge.predict(centred[:, kept])
    if count < 10 * len(kept):  # otherwise the fit to each donor itself is too little to take out
        expected = expected / np.clip(1 - leverage, 0.1, 1)[:, None]
    assert residual.numpy() == pytest.approx(expected, rel=5e-3, abs=5e-3)


def test_leverage_is_taken_out_below_ten_donors_a_column():
    for count, plain in ((40, True), (39, False)):
        x, pool = pool_of(count, 6)
        centred = torch.from_numpy(x - x.mean(0))
        predicted, residual = pool._line(centred, KEPT, LEFT)
        assert bool(torch.allclose(residual, centred[:, LEFT] - predicted, atol=1e-4)) is plain
    assert _kept_back(np.array([0.0, 0.5, 0.95, 1.2, -0.1])).ravel().tolist() == pytest.approx([1, 0.5, 0.1, 0.1, 1])


def test_components_are_those_of_what_is_kept():
    x, pool = pool_of(40, 6)
    ours = torch.from_numpy(correlated(7, 6, seed=1))
    scores, theirs = pool._scores(ours, KEPT, 2)
    centred = x[:, KEPT] - x[:, KEPT].mean(0)
    axes = np.linalg.svd(centred)[2][:2].T
    expected = [ours.numpy()[:, KEPT] @ axes, centred @ axes]
    for got, wanted in zip((scores, theirs), expected, strict=True):
        assert got @ theirs.T == pytest.approx(wanted @ expected[1].T, rel=1e-3, abs=1e-3)
    x, pool = pool_of(5, 9)
    kept = np.arange(7)
    scores, theirs = pool._scores(torch.from_numpy(correlated(7, 9, seed=1)), kept, 3)
    centred = x[:, kept] - x[:, kept].mean(0)
    axes = np.linalg.svd(centred)[2][:3].T
    assert theirs @ theirs.T == pytest.approx(centred @ axes @ axes.T @ centred.T, rel=1e-3, abs=1e-3)
    wanted = correlated(7, 9, seed=1)[:, kept] @ axes @ axes.T @ centred.T
    assert scores @ theirs.T == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("dims", "exact"), [(20, True), (256, True), (257, False)])
def test_leading_eigenvectors(dims, exact):
    root = np.random.default_rng(0).standard_normal((dims, dims)) * np.linspace(3, 0.1, dims)
    matrix = root.T @ root
    found, expected = _leading(matrix, 3), np.linalg.eigh(matrix)[1][:, -3:]
    assert found.shape == (dims, 3)
    tolerance = 1e-8 if exact else 1e-2
    assert np.abs(found @ found.T - expected @ expected.T).max() < tolerance
    assert _leading(matrix[:2, :2], 3).shape == (2, 2)


def test_the_nearest_donors_in_order():
    x, pool = pool_of(40, 6)
    ours = torch.from_numpy(correlated(7, 6, seed=1))
    scores, theirs = pool._scores(ours - pool.mean, KEPT, 2)
    far = ((scores[:, None] - theirs[None]) ** 2).sum(2)
    got = pool.complete(ours, KEPT, LEFT, 5, True, 2, np.random.default_rng(0))
    assert got.near.tolist() == np.argsort(far, 1)[:, :5].tolist()
    assert got.scores == pytest.approx(scores)
    own = Pool.of(torch.from_numpy(x), True)
    scores, theirs = own._scores(torch.from_numpy(x) - own.mean, KEPT, 2)
    far = ((scores[:, None] - theirs[None]) ** 2).sum(2)
    np.fill_diagonal(far, np.inf)  # no input is its own donor
    found = own.complete(torch.from_numpy(x), KEPT, LEFT, 39, True, 2, np.random.default_rng(0)).near.numpy()
    assert found.tolist() == np.argsort(far, 1)[:, :39].tolist()


def test_the_nearest_of_many_donors():
    _, pool = pool_of(700, 6)
    ours = torch.from_numpy(correlated(50, 6, seed=1))
    scores, theirs = pool._scores(ours - pool.mean, KEPT, 2)
    far = ((scores[:, None] - theirs[None]) ** 2).sum(2)
    for count in (1, 2, 3, 8):
        got = pool.complete(ours, KEPT, LEFT, count, True, 2, np.random.default_rng(0))
        assert got.near.tolist() == np.argsort(far, 1)[:, :count].tolist()


def test_chance_decides_among_equals_alone():
    """Of twenty donors of two values, ten are equally near; of values that differ, none."""
    bits = torch.tensor([0.0, 1.0]).repeat(10)[:, None].repeat(1, 2) * torch.tensor([1.0, 3.0])
    pool = Pool.of(bits, False)
    drawn = [pool.complete(bits[:2], np.array([0]), np.array([1]), 3, True, 1, np.random.default_rng(s)).near
             for s in range(20)]  # fmt: skip
    assert all((d[0] % 2 == 0).all() and (d[1] % 2 == 1).all() for d in drawn)
    assert len({int(v) for d in drawn for v in d[0]}) == 10
    half = torch.arange(20.0) // 2  # ten values of twenty: not fewer than half, so that no noise is drawn
    scores = half.numpy()[:, None]
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    Pool.of(half[:, None], False)._chosen(scores, scores, 20, 3, rng)
    assert rng.bit_generator.state == before
    fewer = np.minimum(scores, 8)
    Pool.of(half[:, None], False)._chosen(fewer, fewer, 20, 3, rng)
    assert rng.bit_generator.state != before
    # The noise is at most a millionth of the scores' variance, 0.048: a squared distance of 1e-7 is not turned round.
    near = np.repeat([0.0, 1e-7**0.5, 1.0], [10, 9, 1])[:, None]
    for seed in range(5):
        found = Pool.of(half[:, None], False)._chosen(near[:1], near, 1, 10, np.random.default_rng(seed))
        assert sorted(found[0]) == list(range(10))


@pytest.mark.parametrize("same", [False, True])
def test_any_donors(same):
    x, pool = pool_of(10, 6, same)
    got = pool.complete(torch.from_numpy(x), KEPT, LEFT, 400, False, 2, np.random.default_rng(3))
    picked = np.random.default_rng(3).integers(9 if same else 10, size=(10, 400))
    if same:  # nine others: those from the input's own place on are moved by one
        picked = np.array([[p + (p >= i) for p in row] for i, row in enumerate(picked)])
    assert got.near.tolist() == picked.tolist()
    assert got.scores.shape == (10, 0)
    assert got.predicted[:, LEFT].numpy() == pytest.approx(np.tile(x.mean(0)[LEFT], (10, 1)), rel=1e-4)
    assert got.predicted[:, KEPT].tolist() == x[:, KEPT].tolist()
    assert got.content[:, LEFT].numpy() == pytest.approx((x - x.mean(0))[:, LEFT], abs=1e-5)
    assert not got.content[:, KEPT].any()
    assert got.low[LEFT].tolist() == x.min(0)[LEFT].tolist()
    assert got.high[LEFT].tolist() == x.max(0)[LEFT].tolist()
    assert torch.isinf(got.low[KEPT]).all()
    assert torch.isinf(got.high[KEPT]).all()
    assert (got.low[KEPT] < 0).all()
    assert (got.high[KEPT] > 0).all()
    made = torch.cat([m for _, m in got.composed(3)]).view(10, 400, 6)
    assert [p for p, _ in got.composed(4)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert made[3, 7, LEFT].numpy() == pytest.approx(x[int(got.near[3, 7]), LEFT], rel=1e-4)


def test_a_line_where_donors_are_near_and_values_many():
    x, pool = pool_of(60, 6)
    ours = torch.from_numpy(correlated(7, 6, seed=1))
    got = pool.complete(ours, KEPT, LEFT, 4, True, 2, np.random.default_rng(0))
    predicted, residual = pool._line(ours - pool.mean, KEPT, LEFT)
    assert got.predicted[:, LEFT].numpy() == pytest.approx((predicted + pool.mean[LEFT]).numpy(), rel=1e-5)
    assert got.content[:, LEFT].tolist() == residual.tolist()
    made = torch.cat([m for _, m in got.composed(7)]).view(7, 4, 6)
    expected = (predicted + pool.mean[LEFT])[:, None] + residual[got.near]
    expected = expected.clamp(torch.from_numpy(x.min(0))[LEFT], torch.from_numpy(x.max(0))[LEFT])
    assert made[:, :, LEFT].numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)
    for other in (Pool.of(torch.from_numpy(x), True), pool):
        kept = KEPT if other is not pool else np.array([], int)  # nothing to predict from
        plain = other.complete(ours, kept, LEFT, 4, True, 2, np.random.default_rng(0))
        assert plain.content[:, LEFT].numpy() == pytest.approx((x - x.mean(0))[:, LEFT], abs=1e-5)
    assert plain.scores.shape == (7, 0)
    one = pool.complete(ours, np.array([0]), np.array([1]), 4, True, 2, np.random.default_rng(0))
    assert one.scores.shape == (7, 1)
    assert one.content[:, 1].tolist() == pool._line(ours - pool.mean, np.array([0]), np.array([1]))[1][:, 0].tolist()


def test_how_well_composed_inputs_are_told_apart():
    """The classifier put together by hand: rectified features, five folds, ridge of a tenth of the mean square."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((100, 6)).astype(np.float32) * np.array([1, 2, 1, 1, 1, 0.01], np.float32)
    composed = (1.1 * real[::-1] + np.array([0.1] * 5 + [0.05], np.float32)).copy()
    replaced = np.array([1, 4])
    got = tell_apart(torch.from_numpy(real), torch.from_numpy(composed), replaced, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    deviations = real.std(0)
    least = np.sqrt((deviations**2).mean()) / 10
    both = (np.vstack([real, composed]) - real.mean(0)) / np.maximum(deviations, least)
    directions = rng.standard_normal((6, 256))
    directions[[0, 2, 3, 5], :128] = 0
    projected = both @ directions
    shift = rng.standard_normal(256)
    z = np.maximum(projected / projected[:100].std(0) + shift, 0)
    z = np.hstack([z - z.mean(0), np.ones((200, 1))])
    wanted = np.repeat([1.0, -1.0], 100)
    fold = np.tile(rng.permutation(100) % 5, 2)
    right = np.zeros(200)
    for f in range(5):
        x, y = z[fold != f], wanted[fold != f]
        gram = x.T @ x
        weights = np.linalg.solve(gram + 0.1 * np.trace(gram) / 257 * np.eye(257), x.T @ y)
        right[fold == f] = (z[fold == f] @ weights) * wanted[fold == f] > 0
    each = right.reshape(2, 100).mean(0)
    assert 0.5 < each.mean() < 1
    assert got == pytest.approx((each.mean(), stats.sem(each)))
    few = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    assert tell_apart(few, 5 * few + 9, np.arange(3), np.random.default_rng(0)) == (0.5, 0.5)
    ten = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    assert tell_apart(ten, 5 * ten + 9, np.arange(3), np.random.default_rng(0))[0] >= 0.9
    assert donors._FOLDS == 5


def test_constant_inputs_are_not_divided_by_nothing():
    same = torch.ones(20, 3)
    assert tell_apart(same, same + 1, np.arange(3), np.random.default_rng(0))[0] == 1
