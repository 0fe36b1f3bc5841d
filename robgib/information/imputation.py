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
_FOLDS = 5
_AT_ONCE = 4096  # composed inputs


@dataclass(frozen=True)
class Imputation(Estimator):
    """I(X_-i;T) by the network itself: feature i is replaced by that of donors, and the network is run.

    The codes T that M composed inputs get are a histogram, which predicts the code of the input itself from X_-i alone;
    it is shrunk to the marginal by one weight, cross-fitted for each target and feature. The held-out log-loss bounds
    I(X_-i;T) ≥ H(T) − cross-entropy from below, whatever the donors are, for every layer from the same passes. The
    whole input gives H(T) exactly, with nothing learnt: no learning gap stands between I(X;T) and the rests, so that
    the degree of vulnerability, v = Σ_i [I(X;T) − I(X_-i;T)] / I(X;T), is bounded from above, and tightly.

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
    regimes: ClassVar[tuple[str, ...]] = ()
    guide: ClassVar[str] = (
        "The network itself answers what its code keeps without a feature. I(X;T) = H(T) is counted and nothing is "
        "learnt, so that a difference of the two is no learner's gap: the vulnerability is an upper bound, tight where "
        "donors are plausible. It gives no singles, hence no C, S and r, and needs a network: it cannot be held "
        "against samples of variables, only against networks whose terms are known."
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
        marginals = {
            t.name: (np.bincount(t.fit, minlength=k) + 0.5) / (len(t.fit) + 0.5 * k)
            for t, k in ((t, counts[t.name]) for t in targets)
        }
        fold = rng.permutation(len(rows)) % _FOLDS
        kept = {t.name: np.zeros((len(rows), len(network.inputs.names))) for t in targets}
        for i in range(len(network.inputs.names)):
            if progress:
                progress("imputing features", i, len(network.inputs.names), network.inputs.names[i])
            chosen = self._donors(network, rows, i, rng)
            found = self._histograms(network, rows, chosen, i, counts)
            for target in targets:
                own = target.values[rows]
                share = found[target.name][np.arange(len(rows)), own]
                kept[target.name][:, i] = np.log2(_shrunk(share, marginals[target.name][own], fold))
        if progress:
            progress("imputing features", len(network.inputs.names), len(network.inputs.names))
        made = []
        for target in targets:
            base = np.log2(marginals[target.name][target.values[rows]])
            pointwise = np.full((len(rows), 2 * len(network.inputs.names) + 1), np.nan)
            pointwise[:, 0] = -base
            pointwise[:, 1 + len(network.inputs.names) :] = kept[target.name] - base[:, None]
            problem = Problem(prepared, target.values[rows], target.fit, None if weights is None else weights[rows])
            made.append(
                decompose(
                    pointwise.mean(0),
                    estimator=self,
                    problem=problem,
                    resolution=f"{self.donors} {'nearest' if self.kind == 'near' else 'random'} donors a feature",
                    pointwise=pointwise,
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
    ) -> dict[str, Vector]:
        """Shares (N, K) of each code among the composed inputs, by target."""
        cell, donors = network.inputs.cells[i], chosen.shape[1]
        found = {name: np.zeros((len(rows), k)) for name, k in counts.items()}
        each = max(1, _AT_ONCE // donors)
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            composed = network.x[part].repeat_interleave(donors, 0)
            composed[cell] = network.donors[torch.from_numpy(chosen[start : start + each].reshape(-1))][cell]
            told = network.codes(composed)
            for name, k in counts.items():
                flat = np.repeat(np.arange(len(part)), donors) * k + np.minimum(told[name], k - 1)
                found[name][start : start + each] = (
                    np.bincount(flat, minlength=len(part) * k).reshape(len(part), k) / donors
                )
        return found


def _shrunk(share: Array, marginal: Array, fold: Array) -> Vector:
    """Probability (N,) of the true code: (1 − w)·share + w·marginal, w chosen for each fold by the others."""
    mixed = (1 - _SHRINK[:, None]) * share + _SHRINK[:, None] * marginal
    logs = np.log2(mixed)
    totals = np.stack([logs[:, fold == f].sum(1) for f in range(_FOLDS)], 1)
    best = (totals.sum(1, keepdims=True) - totals).argmax(0)
    return np.asarray(mixed[best[fold], np.arange(len(fold))])
