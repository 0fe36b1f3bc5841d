"""What mixing and learning cost, and what is shared or fused to save time: nothing else may change."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robgib.information.base import Estimator
from robgib.information.decomposition import Prepared, Problem, decompose
from robgib.information.observer import LayerView, _viewed
from robgib.information.pieces import _loss
from robgib.information.stacking import Stack
from robgib.information.views import Codebook


class Plain(Estimator):
    """Any estimator: only its name and bound are read."""

    name, bound, summary = "plain", "none", ""

    def _estimate(self, problem):
        raise NotImplementedError


def test_a_degree_that_is_not_possible_is_set_to_its_bound_and_says_so():
    """v of a label was reported as -0.02: no feature tells less than nothing beside the others."""
    x = np.arange(40) % 2
    problem = Problem(Prepared((x, x), (x, x), None), x, x)
    found = decompose([1.0, 0.6, 0.6, 1.03, 1.01], estimator=Plain(), problem=problem, resolution="")
    assert (found.vulnerability.value, found.vulnerability.low) == (0.0, 0.0)
    assert "-0.04 is not possible: set to 0" in found.vulnerability.note
    assert found.redundancy.value == pytest.approx(1.2)
    assert "not possible" not in found.redundancy.note
    above = decompose([1.0, 1.3, 1.2, 1.0, 1.0], estimator=Plain(), problem=problem, resolution="")
    assert above.redundancy.value == 2.0


def test_losses_of_like_targets_taken_together_are_those_of_each():
    draw = torch.Generator().manual_seed(0)
    sizes = [4, 4, 7, 4, 3, 3]
    scores = torch.randn(10, 5, sum(sizes), generator=draw)
    goals = torch.stack([torch.randint(k, (10,), generator=draw) for k in sizes], 1)
    goals[:4, 1] = -1  # not known
    goals[:, 4] = -1
    each = []
    for of, goal in zip(scores.split(sizes, 2), goals.T, strict=True):
        wanted = goal[:, None].expand(10, 5)
        known = wanted >= 0
        each.append(F.cross_entropy(of[known], wanted[known]) if known.any() else torch.zeros(()))
    assert float(_loss(scores, goals, sizes)) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_codebooks_of_several_sizes_share_scores():
    rng = np.random.default_rng(0)
    fit, z = (rng.standard_normal((n, 6, 2, 2)).astype(np.float32) for n in (400, 300))
    book = Codebook.fit(fit, 4, 8)
    few = book.resized(fit, 4)
    assert few.projection is book.projection
    assert few.centres == pytest.approx(Codebook.fit(fit, 4, 4).centres)
    views = [LayerView("a", book), LayerView("a", few, "k/2")]
    found = _viewed(views, {"a": z})
    double = z.astype(np.float64)
    for view in views:
        scores = view.fitted.projection(double)
        nearest = ((scores[:, None] - view.fitted.centres) ** 2).sum(2).argmin(1)
        assert (found[view.name] == nearest).mean() > 0.995  # single precision: a tie may fall otherwise
        assert (view.fitted(double) == nearest).all()


def test_what_weights_cost_lies_between_cross_fitted_and_apparent():
    """Predictors that foretell nothing: the best mixture is the marginal, whose gain is 0."""
    rng = np.random.default_rng(1)
    marginal = np.full((40, 1, 200), 0.25)
    useless = rng.dirichlet(np.ones(4), (40, 5, 200))[..., 0]
    own = np.concatenate([useless, marginal], 1)
    stack = Stack(np.arange(200) % 5).fit(own)
    crossed = (stack.log_probabilities(own) + 2).mean()
    apparent = crossed + stack.optimism(own).mean()
    assert crossed < 0 < apparent
    assert abs((crossed + apparent) / 2) < max(-crossed, apparent)
