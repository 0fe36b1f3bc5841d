"""What a network's own code keeps when features are replaced by plausible other content: the network as predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Prepared, Problem, decompose, register_estimator
from robgib.information.donors import Completion, Pool, most_donors, places, tell_apart
from robgib.information.pieces import Pieces, learn_codes
from robgib.information.stacking import FOLDS, Stack, stacked
from robgib.information.views import RATE, Network, Target, View
from robgib.options import Count, former_names
from robgib.runtime import Progress, one_thread, resolve_device

__all__ = [
    "Imputation",
]

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
_AT_ONCE = 4096  # composed inputs
_NUMBERS = 2**25  # that they may hold together: large pictures are composed fewer at a time
_ALONE = 12  # draws of a single feature are those of a rest, times this over the number of features
_AROUND = (6, 14, 30, 80)  # inputs near one another whose histograms are averaged
_PARTS = ((0, 2), (1, 3), (0, 1), (2, 3), (0,), (1,), (2,), (3,))  # quarters of the draws that are compared
_DOUBLING = (0.5, 0.65)  # least and most that one doubling of draws brings of what the one before brought
_LEVEL = 1e-3  # at which donors are called implausible, over all subsets
_BETTER = 0.05  # share of H(T) by which the predictor must be better than they are
_APART = 0.1  # share of inputs whose codes must differ
_COMMON = 10  # inputs that a code must have to be counted by itself
_WIDELY = 8  # features up to which all samples are estimated on, and above fewer, down to half
_MORE = (1.0, 3.0)  # of what the last doubling of donors and steps brought, in the figure, and at most to come
_GAUGED = 1000  # donors that a predictor is asked for again, to see what it gains where it was trained
_LEAST = 1e-12
_APPARENT = 0.6  # share of composed and real inputs that a classifier must tell apart


@register_estimator("imputation")
@former_names(singles="single_feature")
@dataclass(frozen=True)
class Imputation(Estimator):
    """I(X_A;T) of single features and of all but one, by the network itself and a learnt predictor, mixed.

    The content outside A is replaced by the prediction of a ridge regression on every number that is kept, plus the
    residual of donors that are near in what is kept. The network runs on M such inputs; the histogram of their codes is
    p̂(t|x_A). If the donors follow the true conditional law, as for independent or jointly Gaussian features, it is
    right, apart from the cost of M draws, which is of order 1/M and is removed by a comparison of all draws with halves
    (Quenouille 1956). Under other dependence between features it is not right. Therefore a predictor is learnt as well
    (:func:`~robgib.information.pieces.learn_codes`), from every number of A and the network's own codes of the donors.
    Both, the histograms of neighbours and the marginal are mixed, with weights that are cross-fitted on the log-loss.

    The held-out log-loss bounds every I(X_A;T) ≥ H(T) − cross-entropy from below, for any donors and any predictor, and
    for every layer from the same passes. I(X;T) = H(T) is counted. Therefore r and C are bounded from below, and v and
    S from above. An interval reaches from the bound to what the halves of the draws, nearer against farther donors, and
    the learning curve of the predictor over half and all of the donors and steps extrapolate.

    The label is not a code of the network. The information about it is the held-out log-loss of the network's own
    answer, averaged over draws for subsets, both mixed with the marginal. Total and terms are then of one family.

    Removal-based explanations replace features by marginal or conditional draws as well (Covert, Lundberg & Lee 2021).

    Fields:
        donors: draws M for each sample where one feature is left out; where one is kept they are 12/n times as many.
        kind: ``near`` takes donors that are nearest in what is kept, and the line; ``marginal`` takes any, as they are.
        samples: most samples that are estimated on, since each costs 2n·M passes of the network.
        single_feature: whether to estimate single-feature information; without it C, S and r are not estimated.
        steps: training steps of the learnt predictor.
        components: principal components of what is kept, in which donors are near; all else sees every number.
        device: of the training.
        seed: of the draws, folds, weights and batches.
    """

    name: ClassVar[str] = "imputation"
    bound: ClassVar[str] = "single-feature, leave-one-out, C, r: lower; S, v: upper"
    summary: ClassVar[str] = "the network run on inputs with features replaced by plausible other content"
    view: ClassVar[View] = RATE
    runs_network: ClassVar[bool] = True
    regimes: ClassVar[tuple[str, ...]] = ("network",)
    guide: ClassVar[str] = (
        "The network itself predicts its code when features are replaced, and so does a predictor that is trained on "
        "its codes; the held-out log-loss determines how the two are mixed. Single-feature and leave-one-out terms "
        "are lower bounds of one family, so that C and r are bounded from below, S and v from above; I(X;T) = H(T) is "
        "counted. The interval reaches from the bound to an extrapolation of learning curves. With plausible donors "
        "the bounds are almost tight; a note reports if composed inputs get other codes than real ones. It needs a "
        "network: it can be validated on networks of known information, not on samples of variables."
    )
    donors: Count = 16
    kind: Literal["near", "marginal"] = "near"
    samples: Count = 500
    single_feature: bool = True
    steps: Count = 800
    components: Count = 16
    device: str = "auto"
    seed: int = 0

    def passes(self, features: int, samples: int) -> int:
        """See :meth:`Estimator.passes`."""
        each = self.donors + (self.draws(features) if self.single_feature else 0)
        return features * each * min(self.rows(features), samples) + samples

    def rows(self, features: int) -> int:
        """Samples that are estimated on: with many features fewer, since each costs passes and errors average out."""
        return max(self.samples // 2, min(self.samples, self.samples * _WIDELY // features), 1)

    def draws(self, features: int) -> int:
        """Donors of each input where one feature is kept: what is left is much, and may come out as anything."""
        return self.donors * max(1, _ALONE // features)

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> None:
        return None

    def _estimate(self, problem: Problem) -> Decomposition:
        raise RobGIBError(
            "the imputation estimator runs the network itself, and cannot estimate from samples of variables alone; "
            "evaluate the network (robgib.evaluate), or choose another estimator."
        )

    def of_network(
        self,
        prepared: Prepared,
        targets: Sequence[Target],
        network: Network | None = None,
        weights: Array | None = None,
        progress: Progress | None = None,
    ) -> list[Decomposition]:
        """See :meth:`Estimator.of_network`."""
        assert network is not None
        if not network.inputs.cells:
            raise RobGIBError(
                f"the imputation estimator replaces pieces of the input, which {network.inputs.resolution} are not; "
                "use patches, tokens, groups, channels or pixels."
            )
        if len(network.donors) - network.same < 1:
            raise RobGIBError("imputation needs other samples to take content from; give more.")
        varying = [t for t in targets if (t.values != t.values[0]).any()]
        setting = _Setting.of(self, network, varying, weights)
        results = _asked(self, setting, progress) if varying else {}
        return [self._decomposed(prepared, t, setting, results.get(t.name)) for t in targets]

    def _decomposed(
        self, prepared: Prepared, target: Target, setting: _Setting, learnt: _Found | None
    ) -> Decomposition:
        """The terms of one target; all 0 where it does not vary."""
        n, rows = len(setting.network.inputs.names), len(setting.x)
        if learnt is None:
            problem = Problem(prepared, target.values[:rows], target.fit, None, None)
            note = "the target takes one value only: it carries no information"
            nothing = np.zeros(2 * n + 1)
            return decompose(nothing, estimator=self, problem=problem, resolution="a constant target", notes=[note])
        base = np.log2(setting.marginals[target.name][setting.own[target.name]])
        pointwise = np.full((rows, 2 * n + 1), np.nan)
        pointwise[:, 0] = _whole(setting, target, learnt) - base
        pointwise[:, -len(setting.subsets) :] = learnt.pointwise - base[:, None]
        counted = None if target.total.flagged else target.total
        if target.code and counted is not None and setting.weights is None:
            # Here nothing of the total is learnt: what the sample's mean is off from the count is no lack.
            pointwise[:, [0, *range(1 + n, 1 + 2 * n)]] += counted.value - pointwise[:, 0].mean()
        below, above, floor = np.zeros((3, 2 * n + 1))
        for to, own in ((below, learnt.below), (above, learnt.above), (floor, learnt.floor)):
            to[-len(own) :] = own
        result = decompose(
            pointwise.mean(0),
            estimator=self,
            problem=Problem(prepared, target.values[:rows], target.fit, setting.weights, counted),
            resolution=self._resolution(n),
            pointwise=pointwise,
            below=below,
            above=above,
            floor=floor,
            notes=_donor_warnings(learnt),
            absent="what features alone tell was not learnt",
        )
        result = replace(result, remarks=_remarks(learnt))
        if not target.code:
            return replace(result, bound="lower (usable by the network)")
        return replace(result, bound="lower", sided=counted is not None)

    def _resolution(self, n: int) -> str:
        kind = "nearest" if self.kind == "near" else "random"
        alone = f", {self.draws(n)} of a feature alone" if self.single_feature and n > 1 else ""
        return f"{self.donors} {kind} donors of a rest{alone}; {self.steps} steps"


@dataclass(frozen=True)
class _Setting:
    """The inputs, donors and targets of one network and one partition.

    Attributes:
        network: with the donors that there is room for.
        x: inputs (N, …) that are estimated on.
        targets: those that vary.
        own: codes (N,) of the inputs by target.
        seen: codes (P,) of the donors; −1 where it is not known.
        sizes: number of codes.
        marginals: shares (K,) of the codes.
        fold: of each input (N,), for cross-fitting.
        weights: of the inputs (N,), of mean 1, or None.
        subsets: of the features (S, n): single features first, if requested, then all but one.
    """

    network: Network
    x: Tensor
    targets: Sequence[Target]
    own: Mapping[str, Array]
    seen: Mapping[str, Array]
    sizes: Mapping[str, int]
    marginals: Mapping[str, Vector]
    fold: Array
    weights: Array | None
    subsets: Array

    @classmethod
    def of(cls, estimator: Imputation, network: Network, targets: Sequence[Target], weights: Array | None) -> _Setting:
        """Run the network on the donors, and count."""
        network = _narrowed(network, estimator.rows(len(network.inputs.names)))
        count, n = len(network.x), len(network.inputs.names)
        rng = np.random.default_rng([estimator.seed, 11])
        codes = _codes(network, network.donors) if targets else {}
        own, labels, sizes = {}, {}, {}
        for t in targets:
            own[t.name] = t.values[:count]
            known = np.full(len(network.donors), -1, np.int64)
            if t.code:
                known[:] = codes[t.name]
            else:
                known[: len(t.fit)] = t.fit[: len(known)]
            labels[t.name] = known
            sizes[t.name] = int(max(t.values.max(), t.fit.max(), known.max())) + 1
        weighed = None if weights is None else weights[:count] / weights[:count].mean()
        marginals = {t.name: _marginal(own[t.name], labels[t.name], sizes[t.name], weighed) for t in targets}
        eye = np.eye(n, dtype=bool)
        subsets = np.concatenate([eye, ~eye]) if estimator.single_feature else ~eye
        fold = rng.permutation(count) % FOLDS
        return cls(network, network.x, targets, own, labels, sizes, marginals, fold, weighed, subsets)


@dataclass(frozen=True)
class _Found:
    """What was found of one target.

    Attributes:
        pointwise: log2 p̂(t|x_A) of each input and subset (N, S), what M draws cost taken out.
        below: how far the bounds lie below its means (S,).
        above: how far beyond them the truth may lie (S,).
        floor: standard deviation (S,) below which a term is not distinguishable from 0.
        implausible: whether the donors of a subset are shown not to be drawn from the conditional law (S,).
        apparent: shares of composed and real inputs that a classifier tells apart by their pixels, of the subsets where
            that is beyond chance.
    """

    pointwise: Vector
    below: Vector
    above: Vector
    floor: Vector
    implausible: npt.NDArray[np.bool_]
    apparent: tuple[float, ...] = ()


class _Draws:
    """Codes of composed inputs, counted for each input by quarters: even and odd draws of near and far donors."""

    def __init__(self, setting: _Setting, near: Array) -> None:
        rows, self.count = near.shape
        at = np.arange(self.count)
        self.quarter = 2 * (at >= self.count // 2) + at % 2
        self.counts = {name: np.zeros((rows, 4, k), np.float32) for name, k in setting.sizes.items()}
        self.each = np.bincount(self.quarter, minlength=4)

    def add(self, part: slice, codes: Mapping[str, Array]) -> None:
        """Count what the network says of composed inputs (B·M) of the inputs ``part``."""
        rows = part.stop - part.start
        for name, counts in self.counts.items():
            k = counts.shape[2]
            if codes[name].ndim == 2:  # shares of a label that the network does not compute
                each = _columns(codes[name], k).reshape(rows, self.count, k)
                for q in range(4):
                    counts[part, q] = each[:, self.quarter == q].sum(1)
                continue
            given = np.minimum(codes[name], k - 1).reshape(rows, self.count)
            flat = (np.arange(rows)[:, None] * 4 + self.quarter) * k + given
            counts[part] = np.bincount(flat.reshape(-1), minlength=rows * 4 * k).reshape(rows, 4, k)

    def shares(self, name: str) -> Vector:
        """Histograms (N, K) of all draws."""
        return np.asarray(self.counts[name].sum(1) / self.count)

    def own(self, name: str, own: Array, around: Array) -> Vector:
        """Probabilities (1 + 8, J, N) of the inputs' codes (N,) by all draws and by each part of :data:`_PARTS`.

        They are taken from an input's own histogram, and from those of the inputs ``around`` it (N, q), itself first:
        the nearest :data:`_AROUND` of them. Each is a sum over quarters, which are looked up once.
        """
        counts = self.counts[name][around, :, own[:, None]]
        alone = self.counts[name][np.arange(len(own)), :, own]
        by_quarter = np.stack([alone, *(counts[:, :q].mean(1) for q in _AROUND)])
        every = np.ones(4) / self.count
        taken = [every]
        for part in _PARTS:
            inside = np.isin(np.arange(4), part)
            mass = self.each[inside].sum()
            taken.append(inside / mass if mass else every)
        return np.asarray(np.einsum("pq,jnq->pjn", np.stack(taken), by_quarter))


def _asked(estimator: Imputation, setting: _Setting, progress: Progress | None) -> dict[str, _Found]:
    """Run the network on composed inputs, learn the predictor, and mix the two, for all targets at once."""
    names = [t.name for t in setting.targets]
    drawn = {
        name: np.zeros((1 + len(_PARTS), len(setting.subsets), len(_AROUND) + 1, len(setting.x))) for name in names
    }
    differ = {name: np.zeros(len(setting.subsets), bool) for name in names}
    apart = np.zeros((len(setting.subsets), 2))
    rng = np.random.default_rng([estimator.seed, 12])
    cells = places(setting.network.inputs.cells, setting.x.shape[1:])
    pool = Pool.of(setting.network.donors, setting.network.same)
    flat, shape = setting.x.flatten(1), setting.x.shape[1:]
    for s, subset in enumerate(setting.subsets):
        if progress:
            progress("imputing features", s, len(setting.subsets), "")
        replaced = np.concatenate([cells[i] for i in np.flatnonzero(~subset)] or [np.zeros(0, np.int64)])
        kept = np.setdiff1d(np.concatenate(cells), replaced)
        wanted = estimator.draws(len(cells)) if subset.sum() == 1 < len(cells) else estimator.donors
        count = min(wanted, len(pool.x) - pool.same)
        completion = pool.complete(flat, kept, replaced, count, estimator.kind == "near", estimator.components, rng)
        draws = _Draws(setting, completion.near.numpy())
        some = torch.empty_like(flat, dtype=torch.float32)
        for part, made in completion.composed(max(1, _at_once(setting.x) // count)):
            draws.add(part, _codes(setting.network, made.view(-1, *shape)))
            some[part] = made.view(part.stop - part.start, count, -1)[:, count // 2]
        apart[s] = tell_apart(flat.float(), some, replaced, rng)
        around = _around(completion, rng)
        for t in setting.targets:
            own = setting.own[t.name]
            drawn[t.name][:, s] = draws.own(t.name, own, around)
            if t.code:
                differ[t.name][s] = _differ(draws.shares(t.name), own, _LEVEL / len(setting.subsets))
    if progress:
        progress("imputing features", len(setting.subsets), len(setting.subsets))
    learnt, gaps = _learnt(estimator, setting, progress)
    shown = tuple(_shown_apart(apart))
    results = {name: _mixed(setting, name, drawn[name], learnt[name], gaps[name], differ[name]) for name in names}
    # Donors are a property of the inputs: those that the codes of one target refute are implausible for all.
    refuted = np.any([of.implausible for of in results.values()], axis=0)
    return {name: replace(of, apparent=shown, implausible=refuted) for name, of in results.items()}


def _learnt(
    estimator: Imputation, setting: _Setting, progress: Progress | None
) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """Probabilities (2, S, N) of the inputs' own codes by the learnt predictor, of all and of half the donors; and by
    how many bits (S,) it predicts codes of donors, which it was trained on, better than those of the inputs."""
    answers = {t.name: np.zeros((2, len(setting.subsets), len(setting.x))) for t in setting.targets}
    network = setting.network
    gaps = {t.name: np.zeros(len(setting.subsets)) for t in setting.targets}
    if network.same:  # it would be asked for what it was trained on
        for t in setting.targets:
            answers[t.name][:] = setting.marginals[t.name][setting.own[t.name]]
        return answers, gaps
    donors = network.donors.float()
    mean = donors.mean(0)
    scale = donors.std(0, correction=0)
    picture = donors.ndim == 4
    scale = (scale**2).mean().sqrt() if picture else scale
    scale = torch.where(scale > 0, scale, torch.ones(()))
    train, test = (Pieces.of(part, network.inputs.cells, mean, scale) for part in (donors, setting.x))
    masks = torch.from_numpy(setting.subsets).float()
    names = [t.name for t in setting.targets]
    if progress:
        progress("learning codes", 0, 1, "")
    again = min(len(donors), _GAUGED)
    with one_thread():
        learnt = learn_codes(
            train,
            [setting.seen[name] for name in names],
            [setting.sizes[name] for name in names],
            masks,
            Pieces(torch.cat([train.x[:again], test.x])),
            [np.concatenate([setting.seen[name][:again], setting.own[name]]) for name in names],
            steps=estimator.steps,
            seed=estimator.seed,
            device=resolve_device(estimator.device),
        )
    for name, (half, whole) in zip(names, learnt, strict=True):
        answers[name][:] = whole[:, again:], half[:, again:]
        gaps[name] = _gap(setting, name, whole[:, :again], answers[name][0])
    if progress:
        progress("learning codes", 1, 1)
    return answers, gaps


def _gap(setting: _Setting, name: str, on: Vector, own: Vector) -> Vector:
    """How many bits (S,) a predictor gains on donors, of probabilities (S, G), beyond what it gains on inputs (S, N).

    The mean over all single-feature and all leave-one-out subsets: the gap of one subset is mostly chance.
    """
    codes, marginal = setting.seen[name][: on.shape[1]], setting.marginals[name]
    known = np.flatnonzero(codes >= 0)
    on_donors = np.log2(np.maximum(on[:, known], _LEAST) / marginal[codes[known]]).mean(1)
    on_inputs = np.log2(np.maximum(own, _LEAST) / marginal[setting.own[name]]).mean(1)
    alone = setting.subsets.sum(1) == 1
    gaps = np.zeros(len(on_inputs))
    for kind in (alone, ~alone):
        if kind.any():
            gaps[kind] = max(float((on_donors - on_inputs)[kind].mean()), 0.0)
    return gaps


def _mixed(
    setting: _Setting, name: str, drawn: Vector, learnt: Vector, gap: Vector, differ: npt.NDArray[np.bool_]
) -> _Found:
    """The cross-fitted mixture of histograms (1 + 8, S, J, N), learnt predictors (C, S, N) and the marginal."""
    base = setting.marginals[name][setting.own[name]]
    marginal = np.broadcast_to(base, (drawn.shape[1], 1, len(base)))

    def predictors(histograms: Vector, predictor: Vector) -> Vector:
        return np.concatenate([histograms, predictor[:, None], marginal], 1)

    stack = Stack(setting.fold, setting.weights).fit(predictors(drawn[0], learnt[0]))
    whole = stack.log_probabilities(predictors(drawn[0], learnt[0]))
    even, odd, near, far, *quarters = (stack.again(predictors(h, learnt[0])) for h in drawn[1:])
    mean = _mean(setting.weights)
    halved = (even + odd) / 2
    added = _still_to_come(mean(whole - halved), mean(halved - np.mean(quarters, 0)), setting) * (whole - halved)
    cost = np.maximum(mean(added), 0)
    closer = np.maximum(mean(near - far) / 2, 0)
    # One wrong prediction in N costs about log2 N: a smaller term is not distinguishable from 0.
    floor = np.log2(predictors(drawn[0], learnt[0]).mean(1) / base).std(1) / np.sqrt(len(base))
    floor = np.maximum(floor, np.log2(len(base)) / len(base))
    # What more donors and steps would bring to the learnt predictor counts by its share of the mixture.
    lone = [stacked(np.stack([of, marginal[:, 0]], 1), setting.fold) for of in learnt]
    rise = np.maximum(mean(lone[0] - lone[1]), 0) * stack.weights[:, :, -2].mean(0)
    fitted = np.maximum(stack.optimism(predictors(drawn[0], learnt[0])), 0) / 2
    sure = cost + _MORE[0] * rise + fitted
    # It is no better than the law where it was trained, and falls short of it elsewhere by about as much.
    short = gap * stack.weights[:, :, -2].mean(0)
    above = (cost + fitted) / 2 + closer + (_MORE[1] - _MORE[0]) * rise + short
    pointwise = (whole + added + (_MORE[0] * rise + fitted)[:, None]).T
    return _Found(pointwise, sure, above, floor, differ | _refuted(setting, drawn[0], lone[0], base))


def _still_to_come(last: Vector, before: Vector, setting: _Setting) -> Vector:
    """What more draws would bring, in what the last doubling of them brought (S, 1).

    A histogram of M draws costs what goes as 1/M, and would bring as much again (Quenouille 1956). In a mixture that
    falls more slowly, single-feature and leave-one-out terms are each a geometric series of the last two gains.
    """
    alone = setting.subsets.sum(1) == 1
    shares = np.zeros((len(last), 1))
    for kind in (alone, ~alone):
        ratio = last[kind].sum() / max(before[kind].sum(), 1e-12)
        ratio = float(np.clip(ratio, *_DOUBLING))
        shares[kind & (last > 0)] = ratio / (1 - ratio)
    return shares


def _refuted(setting: _Setting, drawn: Vector, learnt: Vector, base: Vector) -> npt.NDArray[np.bool_]:
    """Whether the learnt predictor, log2 (S, N), predicts codes better than histograms (S, J, N), beyond error.

    It could not, if donors were drawn from the conditional law: no predictor does better than that law.
    """
    marginal = np.broadcast_to(base, (len(learnt), len(base)))
    by_draws = stacked(np.concatenate([drawn, marginal[:, None]], 1), setting.fold)
    gain = learnt - by_draws
    error = gain.std(1) / np.sqrt(len(base))
    least = _BETTER * -np.log2(base).mean()
    return np.asarray((gain.mean(1) > least) & (gain.mean(1) > stats.norm.isf(_LEVEL / len(learnt)) * error))


def _shown_apart(accuracies: Vector) -> list[float]:
    """Of accuracies and their errors (S, 2) those that no chance explains, and that are well above a half."""
    beyond = stats.norm.isf(_LEVEL / len(accuracies))
    return [float(share) for share, error in accuracies if share > max(_APPARENT, 0.5 + beyond * error)]


def _donor_warnings(result: _Found) -> list[str]:
    """What to say of donors that are shown to be implausible by the codes of composed inputs."""
    if not result.implausible.any():
        return []
    where = f"{int(result.implausible.sum())} of {len(result.implausible)} subsets"
    return [f"donors are implausible for {where}: v is an upper bound, r a lower one"]


def _remarks(result: _Found) -> tuple[str, ...]:
    """What to say of composed inputs that differ from real ones in their pixels: the network may not mind."""
    if not result.apparent:
        return ()
    where, right = f"{len(result.apparent)} of {len(result.implausible)} subsets", float(np.mean(result.apparent))
    return (f"a classifier tells composed inputs from real ones in {where} ({right:.0%} right)",)


def _whole(setting: _Setting, target: Target, result: _Found) -> Vector:
    """log2 p̂(t|x) (N,): 0 where the network computes it, what its answer tells of it else.

    Information about the label without a feature is available with it too: the leave-one-out mixtures are mixed with
    the network's answer, sharp and tempered, so that no leave-one-out term exceeds the total.
    """
    if target.code:
        return np.zeros(len(setting.x))
    own, n = setting.own[target.name], len(setting.network.inputs.names)
    columns = _columns(_codes(setting.network, setting.x)[target.name], setting.sizes[target.name])
    each, soft = np.arange(len(own)), np.sqrt(columns)
    answers = [columns[each, own], (soft / soft.sum(1, keepdims=True))[each, own]]
    leave_one_out = np.exp2(np.minimum(result.pointwise[:, -n:], 0)).T
    return stacked(np.stack([*answers, *leave_one_out, setting.marginals[target.name][own]])[None], setting.fold)[0]


def _codes(network: Network, x: Tensor) -> dict[str, Array]:
    """The codes of inputs (N, …), a part of them at a time."""
    parts = [network.codes(part) for part in x.split(_at_once(x))]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _around(completion: Completion, rng: np.random.Generator) -> Array:
    """Inputs (N, q) nearest each in what is kept, itself first; any where nothing is."""
    scores, rows = completion.scores, len(completion.near)
    count = min(_AROUND[-1], rows)
    if not scores.shape[1]:
        return rng.integers(rows, size=(rows, count))
    far = (scores**2).sum(1) - 2 * scores @ scores.T
    order = np.argpartition(far, count - 1, 1)[:, :count]
    return np.asarray(np.take_along_axis(order, np.take_along_axis(far, order, 1).argsort(1), 1))


def _mean(weights: Array | None) -> Callable[[Vector], Vector]:
    """Of values (…, N), the inputs weighed."""
    return lambda values: np.asarray(values.mean(-1) if weights is None else (values * weights).mean(-1))


def _differ(shares: Vector, own: Array, level: float) -> bool:
    """Whether the codes of composed inputs (N, K) are other than those of the inputs themselves (N,).

    The mean difference is held against its empirical error (Wald), rare codes taken together.
    """
    rows, size = shares.shape
    real = np.zeros((rows, size))
    real[np.arange(rows), own] = 1
    difference = real - shares
    both = (real + shares).sum(0)
    common = np.flatnonzero(both >= _COMMON)
    if len(common) < 2:
        return False
    apart = float(np.abs((real - shares).mean(0)).sum() / 2)
    if apart <= _APART:
        return False
    difference = difference[:, common[:-1]] if len(common) == (both > 0).sum() else difference[:, common]
    mean, spread = difference.mean(0), np.atleast_2d(np.cov(difference, rowvar=False)) / rows
    wald = float(mean @ np.linalg.pinv(spread, hermitian=True) @ mean)
    return bool(wald > stats.chi2.isf(level, difference.shape[1]))


def _narrowed(network: Network, samples: int) -> Network:
    """The network with the inputs that are estimated on, and no more donors than a quarter of a GiB holds."""
    if network.same:
        return network
    most = most_donors(network.donors.shape[1:])
    return replace(network, x=_read(network.x[:samples]), donors=_read(network.donors[:most]))


def _read(x: Tensor | LazyImages) -> Tensor:
    return x.read() if isinstance(x, LazyImages) else x


def _at_once(x: Tensor) -> int:
    """How many inputs like ``x`` (N, …) are composed at a time."""
    return max(1, min(_AT_ONCE, _NUMBERS // max(1, int(np.prod(x.shape[1:])))))


def _columns(shares: Array, size: int) -> Vector:
    """Shares (N, K) of the first ``size`` alternatives; of those that there are none of, 0."""
    made = np.zeros((len(shares), size))
    made[:, : shares.shape[1]] = shares[:, :size]
    return made


def _marginal(own: Array, codes: Array, size: int, weights: Array | None) -> Vector:
    """Shares (K,) of a target's codes, smoothed: of other samples, or of the same where the law is weighted."""
    counted = np.bincount(codes[codes >= 0], minlength=size) if weights is None else np.bincount(own, weights, size)
    return np.asarray((counted + 0.5) / (counted.sum() + 0.5 * size))
