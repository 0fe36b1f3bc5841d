"""What a network's own code keeps when a feature is replaced by plausible other content: the network as predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Prepared, Problem, decompose
from robgib.information.masked_network import Columns
from robgib.information.probe import LEAST_PER_SYMBOL, Probe
from robgib.information.views import RATE, Network, Target, View
from robgib.options import Count
from robgib.runtime import Progress

__all__ = [
    "Imputation",
]

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
_SHRINK = np.concatenate([[0.002, 0.005], np.linspace(0.01, 0.1, 10), np.linspace(0.15, 1.0, 18)])
"""Shares of the marginal that are tried; 0 is none of them: a code that no donor gives would cost without bound."""
_LEAST = float(-np.log2(1 - _SHRINK[0]))  # bits that the least of these costs a code that all donors give
_UNLEARNT = 0.05  # standard deviation of what the predictor of single features lacks, in what it tells
_REST = 0.04  # standard deviation of what the donors' law is off, in what hiding a feature takes
_FOLDS = 5
_MISSING = 0.5  # standard deviation of what is left of that cost, in what was taken out
_AT_ONCE = 4096  # composed inputs
_NUMBERS = 2**25  # that they may hold together: large pictures are composed fewer at a time
_POOL = 2**26  # that all donors together may hold: of large pictures fewer are taken from
_FINE = 2**24
_ALPHAS = np.geomspace(1e-3, 1e4, 8)  # strengths of a ridge that are tried, by leaving one out
_TOLD = 0.05  # share of a feature's variance that the others must predict, for their line to be used
_FEW_VALUES = 8  # content of no more values than this is taken as it is
_LOOKED_AT = 500  # samples that those are counted in


@dataclass(frozen=True)
class Imputation(Estimator):
    """I(X_-i;T) by the network itself: feature i is replaced by that of donors, and the network is run.

    The codes T that M composed inputs get are a histogram, which predicts the code of the input itself from X_-i alone;
    it is shrunk to the marginal by one weight, cross-fitted for each target and feature. The held-out log-loss bounds
    I(X_-i;T) ≥ H(T) − cross-entropy from below, whatever the donors are, for every layer from the same passes. The
    whole input gives H(T) exactly, with nothing learnt: no learning gap stands between I(X;T) and the rests, so that
    the degree of vulnerability, v = Σ_i [I(X;T) − I(X_-i;T)] / I(X;T), is bounded from above. What a histogram of M
    donors costs goes as 1/M and is taken out by comparing all donors with halves (Quenouille 1956); half of that
    correction is in the interval. Where the donors are drawn from the true conditional law, as they are for independent
    or jointly Gaussian features, the bound is then met.

    The label is no code of the network: what the input tells of it is the held-out log-loss of the network's own
    answer, averaged over donors for the rests, both shrunk to the marginal. Total and rests are then of one family.

    Replacing features by marginal or conditional draws is what removal-based explanations do (Covert, Lundberg & Lee
    2021); here it gives information.

    Singles would need everything else to be imputed, which tells too little: what a feature alone tells is learnt by a
    :class:`~robgib.information.Probe` that is trained on single features only. No difference mixes the two families:
    II_i = [I(X;T) − I(X_-i;T)] − I(X_i;T), the bracket by the network, the single by the predictor. A single is a lower
    bound, so that C and r read a little low and S a little high: 4% to 10% of the singles on networks of known
    information, which is in the intervals.

    Fields:
        donors: draws M for each sample and feature.
        kind: ``near`` takes donors whose other features are nearest (principal components of the pieces), and moves
            their content by what a line tells of the difference in the other features, so that the composed input is
            plausible; ``marginal`` takes any, as they are.
        samples: most samples that are estimated on, since each costs n·M passes of the network.
        singles: whether to learn what features alone tell; without it C, S and r are not estimated.
        steps: training steps of that.
        device: of that.
        seed: of the draws, folds, weights and batches.
    """

    name: ClassVar[str] = "imputation"
    bound: ClassVar[str] = "singles and rests: lower; vulnerability: upper"
    summary: ClassVar[str] = "the network run on inputs with a feature replaced by other samples' content"
    view: ClassVar[View] = RATE
    runs_network: ClassVar[bool] = True
    regimes: ClassVar[tuple[str, ...]] = ("network",)
    guide: ClassVar[str] = (
        "The network itself answers what its code keeps without a feature. I(X;T) = H(T) is counted and nothing is "
        "learnt, so that a difference of the two is no learner's gap. Where the donors are plausible the vulnerability "
        "is all but unbiased: what M donors cost goes as 1/M and is taken out. Where they are not (features that "
        "determine each other, `marginal` donors) it is an upper bound. What a feature alone tells is learnt by a "
        "predictor that is trained on single features only: C, S and r rest on both, and no difference mixes them. It "
        "needs a network: it cannot be held against samples of variables, only against networks of known information."
    )
    donors: Count = 16
    kind: Literal["near", "marginal"] = "near"
    samples: Count = 500
    singles: bool = True
    steps: Count = 800
    device: str = "auto"
    seed: int = 0

    def passes(self, features: int, samples: int) -> int:
        """See :meth:`Estimator.passes`."""
        return features * self.donors * min(self.samples, samples)

    def _prepare(self, features: tuple[Array, ...], fit_features: tuple[Array, ...]) -> Columns:
        return Columns.made(features, fit_features)

    def _estimate(self, problem: Problem) -> Decomposition:
        raise RobGIBError(
            "the imputation estimator runs the network itself: it has no use for samples of variables alone."
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
        rng = np.random.default_rng([self.seed, 11])
        network = _narrowed(network, self.samples)
        rows = np.arange(len(network.x))[: self.samples]
        counts = {t.name: int(max(t.values.max(), t.fit.max())) + 1 for t in targets}
        marginals = {t.name: _marginal(t, counts[t.name], rows, weights) for t in targets}
        fold = rng.permutation(len(rows)) % _FOLDS
        shape = (len(rows), len(network.inputs.names))
        whole = self._whole(network, rows, targets, marginals, fold, counts)
        kept = {t.name: np.zeros(shape) for t in targets}
        fewer = {t.name: np.zeros(shape) for t in targets}
        for i in range(len(network.inputs.names)):
            if progress:
                progress("imputing features", i, len(network.inputs.names), network.inputs.names[i])
            chosen = self._donors(network, rows, i, rng)
            content = _Content.of(network, i, self.kind == "near")
            found = self._histograms(network, rows, chosen, i, counts, content)
            for target in targets:
                own = target.values[rows]
                base = marginals[target.name][own]
                halves = [part[target.name][np.arange(len(rows)), own] for part in found]
                kept[target.name][:, i] = np.log2(_shrunk((halves[0] + halves[-1]) / 2, base, fold))
                fewer[target.name][:, i] = np.mean([np.log2(_shrunk(h, base, fold)) for h in halves], 0)
        if progress:
            progress("imputing features", len(network.inputs.names), len(network.inputs.names))
        if progress:
            progress("learning single features", 0, 1)
        alone = self._singles(prepared, targets, weights)
        if progress:
            progress("learning single features", 1, 1)
        made = []
        for target in targets:
            n = len(network.inputs.names)
            if not (target.values != target.values[0]).any():
                nothing = Problem(prepared, target.values[rows], target.fit, None, None)
                note = "the target takes one value only: it carries no information"
                told = decompose(
                    np.zeros(2 * n + 1), estimator=self, problem=nothing, resolution="a constant target", notes=[note]
                )
                made.append(told)
                continue
            base = np.log2(marginals[target.name][target.values[rows]])
            pointwise = np.full((len(rows), 2 * n + 1), np.nan)
            pointwise[:, 0] = whole[target.name] - base
            singles, lacking, floor = alone.get(
                target.name, (np.full((len(rows), n), np.nan), np.zeros(n), np.zeros(n))
            )
            pointwise[:, 1 : 1 + n] = singles[: len(rows)]
            # A histogram of M donors costs what goes as 1/M: taken out by comparing all with halves (Quenouille 1956).
            added = kept[target.name] - fewer[target.name]
            pointwise[:, 1 + n :] = kept[target.name] + added - base[:, None]
            # Beyond the gap that learning shows, single features were told 4% to 10% short on known networks.
            lacking = np.hypot(lacking, _UNLEARNT * np.nan_to_num(singles).mean(0))
            taken = np.abs((pointwise[:, :1] - pointwise[:, 1 + n :]).mean(0))
            few = np.maximum(_MISSING * added.mean(0), _LEAST)
            missing = np.concatenate([[0.0], lacking, np.hypot(few, _REST * taken)])
            counted = None if target.total.saturated else target.total
            if target.code and counted is not None and weights is None:
                # Here nothing of the total is learnt: what the sample's mean is off from the count is no lack.
                pointwise[:, [0, *range(1 + n, 1 + 2 * n)]] += counted.value - pointwise[:, 0].mean()
            terms = pointwise.mean(0)
            if weights is None:
                terms[1 : 1 + n] = singles.mean(0)
            weighed = None if weights is None else weights[rows]
            problem = Problem(prepared, target.values[rows], target.fit, weighed, counted)
            result = decompose(
                terms,
                estimator=self,
                problem=problem,
                resolution=f"{self.donors} {'nearest' if self.kind == 'near' else 'random'} donors a feature",
                pointwise=pointwise,
                missing=missing,
                floor=np.concatenate([[0.0], floor, np.zeros(n)]),
                absent="what features alone tell was not learnt",
            )
            made.append(result if target.code else replace(result, bound="lower (usable by the network)"))
        return made

    def _whole(
        self,
        network: Network,
        rows: Array,
        targets: Sequence[Target],
        marginals: Mapping[str, Vector],
        fold: Array,
        counts: Mapping[str, int],
    ) -> dict[str, Vector]:
        """log2 p̂(t|x) (N,) by target: 0 where the network computes it, what its answer tells of it else."""
        found = {t.name: np.zeros(len(rows)) for t in targets}
        for target in (t for t in targets if not t.code):
            size, own = counts[target.name], target.values[rows]
            told = np.concatenate(
                [network.codes(part)[target.name] for part in network.x[rows].split(_at_once(network.x))]
            )
            share = _columns(told, size)[np.arange(len(rows)), own]
            found[target.name] = np.log2(_shrunk(share, marginals[target.name][own], fold))
        return found

    def _singles(
        self, prepared: Prepared, targets: Sequence[Target], weights: Array | None
    ) -> dict[str, tuple[Vector, Vector, Vector]]:
        """What each feature alone tells, by the probe's predictor, of the targets that there are samples enough for."""
        if not self.singles:
            return {}
        asked = [t for t in targets if len(t.values) >= LEAST_PER_SYMBOL * len(np.unique(t.values)) > 0]
        asked = [t for t in asked if (t.values != t.values[0]).any()]
        if not asked:
            return {}
        probe = Probe(steps=self.steps, seed=self.seed, device=self.device)
        found = probe.singles(prepared, [(t.values, t.fit) for t in asked], weights)
        return dict(zip([t.name for t in asked], found, strict=True))

    def _donors(self, network: Network, rows: Array, i: int, rng: np.random.Generator) -> Array:
        """Donors (N, M) for feature i of the samples ``rows``."""
        pool, count = len(network.donors), min(self.donors, len(network.donors) - network.same)
        if count < 1:
            raise RobGIBError("imputation needs other samples to take content from; give more.")
        if self.kind == "marginal":
            picked = rng.integers(pool - network.same, size=(len(rows), count))
            return picked + (network.same & (picked >= rows[:, None]))
        others = [j for j in range(len(network.inputs.names)) if j != i]
        if not others:
            return np.asarray(rng.integers(pool, size=(len(rows), count)))
        x = np.hstack([network.inputs.values[j][rows] for j in others])
        d = np.hstack([network.inputs.fit[j] for j in others])
        far = (d**2).sum(1) - 2 * x @ d.T
        if network.same:
            far[np.arange(len(rows)), rows] = np.inf
        return np.asarray(np.argpartition(far, count - 1, axis=1)[:, :count])

    def _histograms(
        self, network: Network, rows: Array, chosen: Array, i: int, counts: Mapping[str, int], content: _Content
    ) -> list[dict[str, Vector]]:
        """Shares (N, K) of each code among the composed inputs, by target: of half of the donors, and of the others."""
        cell, donors = network.inputs.cells[i], chosen.shape[1]
        half = donors // 2
        sides = [slice(0, half), slice(half, donors)] if half else [slice(0, donors)]
        found = [{name: np.zeros((len(rows), k)) for name, k in counts.items()} for _ in sides]
        each = max(1, _at_once(network.x) // donors)
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            composed = network.x[part].repeat_interleave(donors, 0)
            composed[cell] = content(part, chosen[start : start + each]).to(composed)
            told = network.codes(composed)
            for name, k in counts.items():
                if told[name].ndim == 2:  # shares of what is not computed, but told of
                    each_told = _columns(told[name], k).reshape(len(part), donors, k)
                    for shares, side in zip(found, sides, strict=True):
                        shares[name][start : start + each] = each_told[:, side].mean(1)
                    continue
                given = np.minimum(told[name], k - 1).reshape(len(part), donors)
                for shares, side in zip(found, sides, strict=True):
                    of_side = given[:, side]
                    flat = np.arange(len(part))[:, None] * k + of_side
                    counted = np.bincount(flat.reshape(-1), minlength=len(part) * k).reshape(len(part), k)
                    shares[name][start : start + each] = counted / of_side.shape[1]
        return found


@dataclass(frozen=True)
class _Content:
    """What takes a feature's place: the donors' own content, or what a line predicts of it and the donors' residuals.

    Attributes:
        cell: the feature's place in the inputs.
        donors: content of the donors (M, …), less what is predicted of it.
        predicted: of the inputs (N, …), or None.
        low: least of the donors' content, place by place.
        high: greatest.
    """

    cell: tuple[slice, ...]
    donors: Tensor
    predicted: Tensor | None
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, network: Network, i: int, moved: bool) -> _Content:
        """Find what the other features predict of feature i, where that is asked for and is anything."""
        cell = network.inputs.cells[i]
        own = network.donors[cell]
        low, high = own.amin(0), own.amax(0)
        others = [j for j in range(len(network.inputs.names)) if j != i]
        if not moved or network.same or not others or len(own[:_LOOKED_AT].unique()) <= _FEW_VALUES:
            return cls(cell, own, None, low, high)
        x, d = (np.hstack([part[j] for j in others]) for part in (network.inputs.values, network.inputs.fit))
        scale = d.std(0) + 1e-12
        flat = own.flatten(1).numpy()
        if flat.size <= _FINE:  # of large pictures the line is fitted in single precision: half the memory
            flat = flat.astype(np.float64)
        line = RidgeCV(alphas=_ALPHAS).fit(d / scale, flat)
        if -line.best_score_ > (1 - _TOLD) * flat.var(0).mean():
            return cls(cell, own, None, low, high)
        ours, theirs = (
            torch.from_numpy(line.predict(part / scale)).to(own).view(len(part), *own.shape[1:]) for part in (x, d)
        )
        return cls(cell, own - theirs, ours, low, high)

    def __call__(self, rows: Array, chosen: Array) -> Tensor:
        """Content (B·M, …) for inputs (B,) from donors (B, M)."""
        made = self.donors[torch.from_numpy(chosen.reshape(-1))]
        if self.predicted is None:
            return made
        made = made + self.predicted[torch.from_numpy(rows)].repeat_interleave(chosen.shape[1], 0)
        return made.clamp(self.low, self.high)


def _narrowed(network: Network, samples: int) -> Network:
    """The network with the inputs that are estimated on, and no more donors than a quarter of a GiB holds."""
    if network.same:
        return network
    pool = max(1, _POOL // max(1, int(np.prod(network.donors.shape[1:]))))
    values, fit = (
        tuple(s[:n] for s in part) for part, n in ((network.inputs.values, samples), (network.inputs.fit, pool))
    )
    inputs = replace(network.inputs, values=values, fit=fit)
    return replace(network, x=network.x[:samples], donors=network.donors[:pool], inputs=inputs)


def _at_once(x: Tensor) -> int:
    """How many inputs like ``x`` (N, …) are composed at a time."""
    return max(1, min(_AT_ONCE, _NUMBERS // max(1, int(np.prod(x.shape[1:])))))


def _columns(shares: Array, size: int) -> Vector:
    """Shares (N, K) of the first ``size`` alternatives; of those that there are none of, 0."""
    made = np.zeros((len(shares), size))
    made[:, : shares.shape[1]] = shares[:, :size]
    return made


def _marginal(target: Target, size: int, rows: Array, weights: Array | None) -> Vector:
    """Shares (K,) of a target's codes, smoothed: of other samples, or of the same where the law is weighted."""
    if weights is None:
        counted = np.bincount(target.fit, minlength=size).astype(float)
    else:
        counted = np.bincount(target.values[rows], weights[rows], minlength=size)
    return np.asarray((counted + 0.5) / (counted.sum() + 0.5 * size))


def _shrunk(share: Array, marginal: Array, fold: Array) -> Vector:
    """Probability (N,) of the true code: (1 − w)·share + w·marginal, w chosen for each fold by the others."""
    mixed = (1 - _SHRINK[:, None]) * share + _SHRINK[:, None] * marginal
    logs = np.log2(mixed)
    totals = np.stack([logs[:, fold == f].sum(1) for f in range(_FOLDS)], 1)
    best = (totals.sum(1, keepdims=True) - totals).argmax(0)
    return np.asarray(mixed[best[fold], np.arange(len(fold))])
