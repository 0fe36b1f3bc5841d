import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robgib import RobGIBError, SampleRNG, ThreatModel
from robgib.attacks.threat_model import CONVEX_NORMS, NORMS


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NORMS), st.floats(1e-3, 3), st.integers(0, 10_000))
def test_projection_and_random_start_stay_in_ball_and_box(norm, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 1, 6, 6, generator=generator)
    threat = ThreatModel(norm, min(eps, 1.0) if norm == "linf" else max(eps, 1.0) if norm == "l0" else eps)
    far = x + 4 * torch.randn(x.shape, generator=generator)
    near = threat.project(far, x)
    assert bool(threat.allows(near, x).all())
    assert torch.allclose(threat.project(near, x), near, atol=1e-6)
    assert bool(threat.allows(threat.random_start(x, SampleRNG(seed, range(5))), x).all())


def exactly(x_adv, x, norm):
    """Distances in float64, summed by numpy."""
    delta = np.abs(x_adv.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(len(x), -1)
    return {"linf": delta.max(1), "l2": np.sqrt((delta**2).sum(1)), "l1": delta.sum(1), "l0": (delta > 0).sum(1)}[norm]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", [8, 224, pytest.param(384, marks=pytest.mark.slow)])
def test_projections_land_inside_at_real_sizes(norm, side):
    """The sums over 3×224×224 numbers are off by a hundred-thousandth in float32: neither side may be caught by it."""
    generator = torch.Generator().manual_seed(side)
    x = torch.rand(2, 3, side, side, generator=generator)
    widest = ThreatModel(norm, 1).widest(x[0].numel())
    for eps in (1e-3, 0.03, 0.3, 1, 3, 30, 100, widest / 2, widest):
        if eps > widest or (norm == "l0" and eps < 1):
            continue
        threat = ThreatModel(norm, eps)
        for far in (
            torch.rand(x.shape, generator=generator),
            x + torch.randn(x.shape, generator=generator),
            x + eps * torch.randn(x.shape, generator=generator),
        ):
            near = threat.project(far, x)
            assert bool(threat.allows(near, x).all())
            reach = exactly(near, x, norm)
            assert (reach <= eps * (1 + 1e-7) + 1e-7).all()
            # What is scaled by a norm summed in float32, as authors of attacks do, is inside as well.
            delta = near - x
            size = delta.flatten(1).norm(p={"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[norm], dim=1)
            scaled = (x + delta * (eps / size.clamp_min(eps))[:, None, None, None]).clamp(0, 1)
            assert bool(threat.allows(scaled, x).all())
        # And a thousandth outside is outside, where float32 can tell.
        if (30 if norm == "l1" and side > 8 else 0.3) <= eps < widest / 4:
            delta = torch.where(x > 0.5, -1.0, 1.0)
            outside = x + delta * (1.001 * eps / exactly(x + delta, x, norm).max())
            assert not bool(threat.allows(outside, x).any())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8), ("linf", 1.01), ("l2", 8.1), ("l1", 65)])
def test_an_eps_beyond_the_box_is_another_unit(norm, eps):
    with pytest.raises(RobGIBError, match=f"eps {eps:g}.*more than the whole box.*write {eps:g}/255"):
        ThreatModel(norm, eps).check(64)
    ThreatModel(norm, {"linf": 1.0, "l2": 8.0, "l1": 64.0}[norm]).check(64)


@pytest.mark.parametrize("norm", CONVEX_NORMS)
def test_a_step_has_the_length_asked_for(norm):
    threat = ThreatModel(norm, 1.0)
    x, gradient = torch.full((3, 1, 4, 4), 0.5), torch.randn(3, 1, 4, 4)
    moved = threat.step(x, gradient, 0.25)
    assert threat.distance(moved, x) == pytest.approx([0.25] * 3, abs=1e-5)


def test_l1_projection_is_the_nearest_image_in_ball_and_box():
    rng = np.random.default_rng(1)
    x = rng.random((30, 5))
    x[rng.random(x.shape) < 0.2] = 0
    far = x + rng.normal(size=x.shape)
    far[0] = x[0] + 0.01  # inside already
    near = ThreatModel("l1", 0.7).project(torch.from_numpy(far), torch.from_numpy(x)).numpy()
    assert near[0] == pytest.approx(far[0], abs=1e-12) or far[0].max() > 1
    for a, b, ours in zip(x, far, near, strict=True):
        # As a quadratic program over what is added and what is taken away.
        peer = minimize(
            lambda d, a=a, b=b: ((a + d[:5] - d[5:] - b) ** 2).sum(),
            rng.random(10) / 100,
            bounds=[*zip(np.zeros(5), 1 - a, strict=True), *zip(np.zeros(5), a, strict=True)],
            constraints={"type": "ineq", "fun": lambda d: 0.7 - d.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert ((ours - b) ** 2).sum() <= peer.fun + 1e-4  # the ball is 1e-5 smaller
        assert np.abs(ours - a).sum() <= 0.7 + 1e-9


def test_l1_steps_take_the_steepest_pixels_that_can_move():
    x = torch.full((1, 1, 10, 10), 0.5)
    gradient = torch.arange(100.0).view(1, 1, 10, 10)
    x[0, 0, 9, 9] = 1.0
    moved = ThreatModel("l1", 1.0).step(x, gradient, 0.2) - x
    assert moved.flatten().nonzero().flatten().tolist() == [98]


def test_random_start_fills_the_l1_ball_uniformly():
    x = torch.full((4000, 1, 1, 2), 0.5)
    threat = ThreatModel("l1", 0.4)
    radius = threat.distance(threat.random_start(x, SampleRNG(0, range(4000))), x).numpy()
    assert np.mean(radius < 0.2) == pytest.approx(0.25, abs=0.03)


def test_random_start_fills_the_l2_ball_uniformly():
    x = torch.full((4000, 1, 1, 2), 0.5)
    threat = ThreatModel("l2", 0.4)
    radius = threat.distance(threat.random_start(x, SampleRNG(0, range(4000))), x).numpy()
    # In two dimensions the share within radius r is (r/eps)^2.
    assert np.mean(radius < 0.2) == pytest.approx(0.25, abs=0.03)


def test_allows_marks_what_is_outside():
    x = torch.full((4, 1, 2, 2), 0.5)
    bad = x.clone()
    bad[0] += 0.2
    bad[1, 0, 0, 0] = float("nan")
    bad[2] -= 0.1
    assert ThreatModel("linf", 0.1).allows(bad, x).tolist() == [False, False, True, True]
    assert ThreatModel("linf", 1.0).allows(x + 0.7, x).tolist() == [False] * 4


@pytest.mark.parametrize("eps", [0, -0.1, float("nan"), float("inf"), "a"])
def test_bad_eps(eps):
    with pytest.raises(RobGIBError, match="eps must be"):
        ThreatModel("linf", eps)


def test_bad_norm():
    with pytest.raises(RobGIBError, match="unknown norm 'l3'"):
        ThreatModel("l3", 0.1)


class TestSampleRNG:
    def test_depends_on_seed_index_and_draw_alone(self):
        whole = SampleRNG(3, [10, 11, 12])
        first, second = whole.uniform((4,)), whole.normal((2,))
        part = SampleRNG(3, [11])
        assert torch.equal(part.uniform((4,)), first[1:2])
        assert torch.equal(part.normal((2,)), second[1:2])
        assert not torch.equal(SampleRNG(4, [10, 11, 12]).uniform((4,)), first)
        assert not torch.equal(whole.uniform((4,)), first)

    def test_draws_of_a_subset_count(self):
        a, b = SampleRNG(0, [0, 1, 2]), SampleRNG(0, [0, 1, 2])
        a.select(torch.tensor([False, True, False])).uniform((3,))
        b.select(torch.tensor([1])).uniform((3,))
        left, right = a.uniform((3,)), b.uniform((3,))
        assert torch.equal(left, right)
        fresh = SampleRNG(0, [0, 1, 2]).uniform((3,))
        assert torch.equal(left[0], fresh[0])
        assert not torch.equal(left[1], fresh[1])

    def test_distribution(self):
        draws = SampleRNG(0, range(5000)).uniform((1,)).flatten().numpy()
        assert draws.mean() == pytest.approx(0.5, abs=0.02)
        assert draws.var() == pytest.approx(1 / 12, abs=0.005)
        assert set(SampleRNG(0, range(100)).integers(3, (1,)).flatten().tolist()) == {0, 1, 2}
