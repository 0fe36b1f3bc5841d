"""What a network's own code keeps when a feature is replaced by plausible other content: the network as predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Prepared, Problem, decompose
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
_FOLDS = 5
_MISSING = 0.5  # standard deviation of what is left of that cost, in what was taken out
_AT_ONCE = 4096  # composed inputs


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
    features, the bound is then met.

    Replacing features by marginal or conditional draws is what removal-based explanations do (Covert, Lundberg & Lee
    2021); here it gives information.

    Singles would need everything else to be imputed, which tells too little: they, and with them C, S and r, are not
    estimated here; see ``probe``.

    Fields:
        donors: draws M for each sample and feature.
        kind: ``near`` takes donors whose other features are nearest (principal components of the pieces), so that the
            composed input is plausible; ``marginal`` takes any.
        samples: most samples that are estimated on, since each costs n·M passes of the network.
        seed: of the draws and folds.
    """

    name: ClassVar[str] = "imputation"
    bound: ClassVar[str] = "rests: lower, vulnerability: upper (the network as predictor)"
    summary: ClassVar[str] = "the network run on inputs with a feature replaced by other samples' content"
    view: ClassVar[View] = RATE
    runs_network: ClassVar[bool] = True
    regimes: ClassVar[tuple[str, ...]] = ("network",)
    guide: ClassVar[str] = (
        "The network itself answers what its code keeps without a feature. I(X;T) = H(T) is counted and nothing is "
        "learnt, so that a difference of the two is no learner's gap. Where the donors are plausible the vulnerability "
        "is all but unbiased: what M donors cost goes as 1/M and is taken out. Where they are not (features that "
        "determine each other, `marginal` donors) it is an upper bound. It gives no singles, hence no C, S and r, and "
        "needs a network: it cannot be held against samples of variables, only against networks of known information."
    )
    donors: Count = 16
    kind: Literal["near", "marginal"] = "near"
    samples: Count = 1000
    seed: int = 0

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
                "use patches, tokens, channels or pixels."
            )
        rng = np.random.default_rng([self.seed, 11])
        rows = np.arange(len(network.x))[: self.samples]
        counts = {t.name: int(max(t.values.max(), t.fit.max())) + 1 for t in targets}
        marginals = {t.name: _marginal(t, counts[t.name], rows, weights) for t in targets}
        fold = rng.permutation(len(rows)) % _FOLDS
        shape = (len(rows), len(network.inputs.names))
        kept = {t.name: np.zeros(shape) for t in targets}
        fewer = {t.name: np.zeros(shape) for t in targets}
        for i in range(len(network.inputs.names)):
            if progress:
                progress("imputing features", i, len(network.inputs.names), network.inputs.names[i])
            chosen = self._donors(network, rows, i, rng)
            found = self._histograms(network, rows, chosen, i, counts)
            for target in targets:
                own = target.values[rows]
                base = marginals[target.name][own]
                halves = [part[target.name][np.arange(len(rows)), own] for part in found]
                kept[target.name][:, i] = np.log2(_shrunk((halves[0] + halves[-1]) / 2, base, fold))
                fewer[target.name][:, i] = np.mean([np.log2(_shrunk(h, base, fold)) for h in halves], 0)
        if progress:
            progress("imputing features", len(network.inputs.names), len(network.inputs.names))
        made = []
        for target in targets:
            base = np.log2(marginals[target.name][target.values[rows]])
            pointwise = np.full((len(rows), 2 * len(network.inputs.names) + 1), np.nan)
            pointwise[:, 0] = -base
            # A histogram of M donors costs what goes as 1/M: taken out by comparing all with halves (Quenouille 1956).
            added = kept[target.name] - fewer[target.name]
            pointwise[:, 1 + len(network.inputs.names) :] = kept[target.name] + added - base[:, None]
            missing = np.concatenate([np.zeros(1 + shape[1]), np.maximum(_MISSING * added.mean(0), _LEAST)])
            problem = Problem(prepared, target.values[rows], target.fit, None if weights is None else weights[rows])
            made.append(
                decompose(
                    pointwise.mean(0),
                    estimator=self,
                    problem=problem,
                    resolution=f"{self.donors} {'nearest' if self.kind == 'near' else 'random'} donors a feature",
                    pointwise=pointwise,
                    missing=missing,
                    absent="imputation gives no singles",
                )
            )
        return made

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
        self, network: Network, rows: Array, chosen: Array, i: int, counts: Mapping[str, int]
    ) -> list[dict[str, Vector]]:
        """Shares (N, K) of each code among the composed inputs, by target: of half of the donors, and of the others."""
        cell, donors = network.inputs.cells[i], chosen.shape[1]
        half = donors // 2
        sides = [slice(0, half), slice(half, donors)] if half else [slice(0, donors)]
        found = [{name: np.zeros((len(rows), k)) for name, k in counts.items()} for _ in sides]
        each = max(1, _AT_ONCE // donors)
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            composed = network.x[part].repeat_interleave(donors, 0)
            composed[cell] = network.donors[torch.from_numpy(chosen[start : start + each].reshape(-1))][cell]
            told = network.codes(composed)
            for name, k in counts.items():
                given = np.minimum(told[name], k - 1).reshape(len(part), donors)
                for shares, side in zip(found, sides, strict=True):
                    of_side = given[:, side]
                    flat = np.arange(len(part))[:, None] * k + of_side
                    counted = np.bincount(flat.reshape(-1), minlength=len(part) * k).reshape(len(part), k)
                    shares[name][start : start + each] = counted / of_side.shape[1]
        return found


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
