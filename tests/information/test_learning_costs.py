"""What mixing and learning cost, and what is shared or fused to save time: nothing else may change."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robgib.information.activations import LOGITS, collect_activations
from robgib.information.analysis import term_rows
from robgib.information.base import Estimator
from robgib.information.decomposition import Prepared, Problem, decompose
from robgib.information.features import group_inputs
from robgib.information.imputation import _Draws
from robgib.information.observer import LayerView, _faster, _viewed
from robgib.information.pieces import _loss
from robgib.information.stacking import Stack
from robgib.information.views import Codebook
from robgib.validation.validate import is_marked


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


@pytest.mark.parametrize(
    "terms", [[1.0, 0.6, 0.6, 1.03, 1.01], [2.0, 2.3, 2.2, 1.0, 1.0], [1.0, -0.2, 0.1, -0.3, -0.1]]
)
def test_synergy_and_complexity_move_with_a_degree_that_is_set_to_its_bound(terms):
    """S and C kept the impossible value: S/I differed from (v - r)/n."""
    problem = _problem()
    found = decompose(terms, estimator=Plain(), problem=problem, resolution="")
    total, r, v = found.total.value, found.redundancy.value, found.vulnerability.value
    assert 0 <= r <= 2
    assert 0 <= v <= 2
    assert found.synergy.value / total == pytest.approx((v - r) / 2)
    assert found.complexity.value / total == pytest.approx(1 + (r - v) / 2)
    assert np.mean([i.value for i in found.interaction]) == pytest.approx(found.synergy.value)
    assert "not possible" in found.synergy.note
    before = terms[0] - (sum(terms[1:3]) + sum(terms[3:])) / 2
    assert found.synergy.low - 1e-9 <= np.clip(before, -total, total) <= found.synergy.high + 1e-9


def test_without_single_features_v_is_still_set_to_its_bound():
    found = decompose(
        [1.0, np.nan, np.nan, 1.03, 1.01], estimator=Plain(), problem=_problem(), resolution="", absent="none"
    )
    assert found.vulnerability.value == 0
    assert np.isnan(found.redundancy.value)
    assert np.isnan(found.synergy.value)


def test_losses_of_like_targets_taken_together_are_those_of_each():
    draw = torch.Generator().manual_seed(0)
    sizes = [4, 4, 7, 4, 3, 3]
    scores = torch.randn(10, 5, sum(sizes), generator=draw)
    runs = [scores[:, :, a:b].unflatten(2, (-1, k)) for a, b, k in ((0, 8, 4), (8, 15, 7), (15, 19, 4), (19, 25, 3))]
    goals = torch.stack([torch.randint(k, (10,), generator=draw) for k in sizes], 1)
    goals[:4, 1] = -1  # not known
    goals[:, 4] = -1
    each = []
    for of, goal in zip(scores.split(sizes, 2), goals.T, strict=True):
        wanted = goal[:, None].expand(10, 5)
        known = wanted >= 0
        each.append(F.cross_entropy(of[known], wanted[known]) if known.any() else torch.zeros(()))
    assert float(_loss(runs, goals)) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


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


def convolutional():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        nn.Linear(6 * 64, 3),
    )
    with torch.no_grad():
        network(torch.rand(50, 1, 8, 8))  # running statistics
        for norm in (network[0][1], network[1][1]):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    return network.eval()


def test_the_faster_copy_has_the_same_layers():
    network, x = convolutional(), torch.rand(20, 1, 8, 8)
    copied = _faster(network, ["0", "1", LOGITS], "cpu")
    assert [type(block[1]) for block in copied[:2]] == [nn.Identity, nn.Identity]
    assert isinstance(network[0][1], nn.BatchNorm2d)
    ours, theirs = (collect_activations(of, x, ["0", "1", LOGITS]) for of in (copied, network))
    for name, values in ours.items():
        assert values == pytest.approx(theirs[name], abs=1e-4)


def test_a_convolution_that_is_a_layer_itself_keeps_its_values():
    network, x = convolutional(), torch.rand(20, 1, 8, 8)
    copied = _faster(network, ["0.0", LOGITS], "cpu")
    assert [type(block[1]) for block in copied[:2]] == [nn.BatchNorm2d, nn.Identity]
    ours, theirs = (collect_activations(of, x, ["0.0"])["0.0"] for of in (copied, network))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_probabilities_by_quarters_are_those_of_whole_histograms():
    rng = np.random.default_rng(0)
    rows, draws, k = 30, 10, 5
    codes, own, around = (
        rng.integers(k, size=(rows, draws)),
        rng.integers(k, size=rows),
        rng.permuted(np.tile(np.arange(rows), (rows, 1)), axis=1),
    )
    counted = _Draws(SimpleNamespace(sizes={"a": k}), np.zeros((rows, draws)))
    for part in (slice(0, 12), slice(12, rows)):
        counted.add(part, {"a": codes[part].reshape(-1)})
    found = counted.own("a", own, around)
    at = np.arange(draws)
    parts = [at >= 0, at % 2 == 0, at % 2 == 1, at < 5, at >= 5]
    for number, part in enumerate(parts):
        shares = (codes[:, part, None] == np.arange(k)).mean(1)
        assert found[number, 0] == pytest.approx(shares[np.arange(rows), own])
        assert found[number, 1] == pytest.approx(shares[around[:, :6], own[:, None]].mean(1))
        assert found[number, 4] == pytest.approx(shares[around, own[:, None]].mean(1))
    assert counted.shares("a") == pytest.approx((codes[:, :, None] == np.arange(k)).mean(1))


def test_a_remark_is_shown_and_limits_no_figure():
    """The note of a classifier of pixels counted as a mark, so that a figure that missed was no miss."""
    rng = np.random.default_rng(0)
    found = replace(
        decompose([1.0, 0.5, 0.5, 0.5, 0.5], estimator=Plain(), problem=_problem(), resolution="x"),
        remarks=("a classifier tells composed inputs from real ones",),
    )
    codes = rng.integers(2, size=40)
    target = Codebook.counted("a", codes, codes, codes, None, "rate", "2 codes")
    features = group_inputs("pixels", rng.random((40, 2)), rng.random((40, 2)))
    rows = {row["term"]: row for row in term_rows(target, found, features, 1.0)}
    assert "a classifier tells" in rows["v(X;Z)"]["note"]
    assert not is_marked(rows["v(X;Z)"], found)
    assert is_marked(rows["v(X;Z)"], replace(found, remarks=()))


def _problem():
    x = np.arange(40) % 2
    return Problem(Prepared((x, x), (x, x), None), x, x)
