"""Usable information: how much better than chance one masked predictor does, held out, from every feature subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robgib.information.base import Decomposition, Estimator, Prepared, Problem, decompose, register_estimator
from robgib.information.discrete import entropy
from robgib.information.masked_network import (
    Answer,
    Columns,
    Folds,
    Networks,
    Schedule,
    Vector,
    draw_masks,
    draw_singles,
    information,
    learning_floor,
    pooled_note,
    subsets,
    train,
)
from robgib.information.preprocessing import Codes, default_size, encode, relabel
from robgib.information.views import RATE, View
from robgib.options import Count, Positive
from robgib.runtime import one_thread, resolve_device

__all__ = [
    "LEAST_PER_SYMBOL",
    "Probe",
]

_APART = 0.06
"""Relative standard deviation of the error that all single-feature terms share, and of that of all leave-one-out terms:
on networks of random weights on ten bits, of whose code 97% was learnt, the leave-one-out terms were 9% too low."""
LEAST_PER_SYMBOL = 5  # samples, on average, below which a target's figure is not worth its name


@register_estimator("probe")
@dataclass(frozen=True)
class Probe(Estimator):
    """Usable information (Xu et al. 2020): I(X_S;T) as H(T) less the held-out cross-entropy of a predictor of X_S.

    One network is shown masked features and the mask, is trained on random masks, and answers for every subset.
    It is cross-fitted: each sample is predicted by a network that has not seen it, stopped and calibrated by the
    loss on samples that are neither its own nor its fold's. Calibration is per subset and may ignore the input,
    so what a subset does not carry is 0. The error is the mean's of the held-out pointwise terms, and what is
    lost by learning from few samples, as the gap to seen samples shows it (:func:`calibrated`).

    A real target is coded by k-means. Codes among the features become one column a symbol.

    Fields:
        target_codes: symbols of a real target; None is the cube root of the samples, within 4 and 16.
        folds: of the cross-fit; a network each, all trained side by side. None is 5, or 3 where there are at least as
            many samples for training alone.
        width: of the network's two hidden layers.
        steps: most training steps.
        batch: samples a step and fold.
        rate: step size.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of k-means, folds, weights, batches and masks.
    """

    name: ClassVar[str] = "probe"
    bound: ClassVar[str] = "lower (usable by the predictor)"
    summary: ClassVar[str] = "one masked predictor's held-out loss against chance, for every subset"
    least_samples: ClassVar[int] = 50
    regimes: ClassVar[tuple[str, ...]] = ("discrete", "classes", "hidden", "network")
    codes_target: ClassVar[bool] = True
    view: ClassVar[View] = RATE
    guide: ClassVar[str] = (
        "Each information is what one small network can use of a subset, held out and calibrated: a lower bound in "
        "expectation of the information about the target's code, and 0 if the network finds nothing. Differences of "
        "such bounds, such as II and S, are not bounds. For a layer, whose I(X;T) is counted, the terms are shares of "
        "the learnt total, applied to the counted total; what the learnt total lacks widens the intervals. It detects "
        "dependence of any form, also synergy, and supports many features. Weak or intricate dependence needs "
        "thousands of samples, and it takes seconds rather than milliseconds. An exclusive or of seven bits or more "
        "needs more than 5,000 samples. The interval includes the loss from learning on few samples, by the gap "
        "between training and held-out samples. It cannot exceed the entropy of the target's code; a note reports "
        "when it reaches it."
    )
    target_codes: Annotated[int, Field(ge=2)] | None = None
    folds: Annotated[int, Field(ge=3)] | None = None
    width: Count = 128
    steps: Count = 1500
    batch: Annotated[int, Field(ge=2)] = 128
    rate: Positive = 5e-3
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_device(self.device)

    def _prepare(self, features: tuple[Vector, ...], fit_features: tuple[Vector, ...]) -> Columns:
        return Columns.made(features, fit_features)

    def _estimate(self, problem: Problem) -> Decomposition:
        return self._estimate_many([problem])[0]

    def _estimate_many(self, problems: Sequence[Problem]) -> list[Decomposition]:
        """One trunk answers for every subset and all targets, with a head for each of them."""
        prepared, samples = problems[0].prepared, problems[0].samples
        inputs: Columns = prepared.own
        n, size, masks = len(inputs.of), self.target_codes or default_size(samples), subsets(len(inputs.of))
        both = [self._coded(p, size, inputs.more) for p in problems]
        targets = [t[:samples] for t in both]
        counts = [np.bincount(t) for t in both]
        learnable = [i for i, c in enumerate(counts) if len(c) > 1 and len(both[i]) >= LEAST_PER_SYMBOL * len(c)]
        answered: dict[int, tuple[Vector, Vector]] = {}
        if learnable:
            folds = Folds.draw(samples, self._count(inputs, samples), self.seed, targets[learnable[0]], inputs.more)
            heads = [torch.from_numpy(both[i]) for i in learnable]
            with torch.inference_mode(False), torch.enable_grad(), one_thread():
                answers = self._pointwise(inputs.network(), folds, masks, heads, problems[0].weights)
            answered = dict(zip(learnable, answers, strict=True))
        made = []
        for i, problem in enumerate(problems):
            notes = pooled_note(inputs.pooled)
            if not problem.discrete_target:
                notes.append(f"the target is coded by {len(counts[i])} symbols: the information is about this code")
            alone = len(np.unique(targets[i])) < 2
            resolution = f"target {len(counts[i])} codes, features {int(inputs.widths.sum())} columns"
            pointwise, floor, missing = np.zeros((samples, 2 * n + 1)), np.zeros(2 * n + 1), np.zeros(2 * n + 1)
            if alone:
                notes = ["the target takes one symbol only: it carries no information"]
            elif i not in answered:
                note = f"{samples} samples are too few for a target of {len(counts[i])} symbols: not estimable"
                nothing = np.full(2 * n + 1, np.nan)
                made.append(decompose(nothing, estimator=self, problem=problem, resolution=resolution, notes=[note]))
                continue
            else:
                pointwise, missing = answered[i]
                floor = learning_floor((masks @ inputs.widths.float()).numpy() * (len(counts[i]) - 1), samples)
                if pointwise[:, 0].mean() >= 0.98 * entropy(np.bincount(targets[i]).astype(float)):
                    notes.append("at the ceiling H(T)")
            made.append(
                decompose(
                    pointwise.mean(0),
                    estimator=self,
                    problem=problem,
                    resolution=resolution,
                    pointwise=pointwise,
                    floor=floor,
                    missing=missing,
                    apart=_APART,
                    notes=notes,
                )
            )
        return made

    def singles(
        self, prepared: Prepared, targets: Sequence[tuple[Codes, Codes]], weights: Vector | None = None
    ) -> list[tuple[Vector, Vector, Vector]]:
        """What each feature alone tells of each target, by a predictor that is trained on single features.

        Args:
            prepared: features (:meth:`prepare`).
            targets: codes of each, of the samples (N,) and of the samples for fitting (M,).
            weights: (N,).

        Returns:
            By target: pointwise bits (N, n), about what the features' terms lack (n,), and their floor (n,).
        """
        inputs: Columns = prepared.own
        samples, n = prepared.samples, len(inputs.of)
        both = [relabel(np.concatenate(pair) if inputs.more else pair[0]) for pair in targets]
        folds = Folds.draw(samples, self._count(inputs, samples), self.seed, more=inputs.more)
        with torch.inference_mode(False), torch.enable_grad(), one_thread():
            answers = self._pointwise(
                inputs.network(), folds, torch.eye(n), [torch.from_numpy(b) for b in both], weights, alone=True
            )
        widths = inputs.widths.numpy().astype(float)
        floors = [learning_floor(widths * int(b.max()), samples) for b in both]
        return [(pointwise, missing, floor) for (pointwise, missing), floor in zip(answers, floors, strict=True)]

    def _count(self, inputs: Columns, samples: int) -> int:
        """Folds of the cross-fit."""
        return self.folds or (3 if inputs.more >= samples else 5)

    def _coded(self, problem: Problem, size: int, more: int) -> Codes:
        """Codes of the target (N,), followed by those of the samples for training alone (M,)."""
        if problem.discrete_target:
            if not more:
                return relabel(problem.target)
            return relabel(np.concatenate([problem.target, problem.fit_target]))
        own = encode(problem.target, problem.fit_target, size, self.seed)
        return relabel(
            np.concatenate([own, encode(problem.fit_target, problem.fit_target, size, self.seed)]) if more else own
        )

    def _pointwise(
        self,
        network: Networks,
        folds: Folds,
        masks: Tensor,
        targets: Sequence[Tensor],
        weights: Vector | None,
        alone: bool = False,
    ) -> list[tuple[Vector, Vector]]:
        """By target: log2 q(t|x_S) − log2 q(t) of each sample, held out, (N, S), and what terms lack (S,).

        ``alone`` trains on single features only.
        """
        device = resolve_device(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        symbols = [int(t.max()) + 1 for t in targets]
        priors = [_log_prior(target, k, folds) for target, k in zip(targets, symbols, strict=True)]
        # Under a weighted law the predictor's answer is moved to that law's shares: q_w(t|x) ∝ q(t|x) p_w(t)/p(t).
        judged = priors
        if weights is not None:
            judged = [_log_prior(target, k, folds, weights) for target, k in zip(targets, symbols, strict=True)]
        count = len(folds.held)
        start = network.start(count, [self.width, self.width, sum(symbols)], generator)
        network = network.to(device)
        goals = [t.to(device) for t in targets]
        base = torch.cat(priors, 1).to(device).repeat(network.levels, 1)[:, None]

        def loss(parameters: list[Tensor], rows: Tensor, mask: Tensor) -> Tensor:
            scores = (network(parameters, rows, mask) + base).split(symbols, 2)
            total = torch.zeros(len(base), device=device)
            for of, goal in zip(scores, goals, strict=True):
                wanted = goal[rows].repeat(network.levels, 1)
                each = F.cross_entropy(of.flatten(0, 1), wanted.flatten(), reduction="none")
                total = total + each.view(wanted.shape).mean(1)
            return total

        best = train(
            loss,
            start,
            network.decay(count),
            folds,
            Schedule(self.steps, self.batch, self.rate, masks.shape[1], draw_singles if alone else draw_masks),
            generator=generator,
            device=device,
        )
        held_out = folds.held.to(device)

        @torch.no_grad()
        def ask(mask: Tensor, shift: int) -> list[Answer]:
            rows = held_out.roll(shift, 0)
            scores = network(best, rows, mask.to(device).expand(*rows.shape, -1)).cpu()
            who = (folds.of + shift) % count
            levels = scores.view(network.levels, *rows.shape, -1)[network.levels_of(mask)]
            own = levels[:, who, folds.slot].split(symbols, 2)
            return [(of, t[: len(who)], prior[who]) for of, t, prior in zip(own, targets, judged, strict=True)]

        return information(ask, masks, folds, len(targets))


def _log_prior(target: Tensor, symbols: int, folds: Folds, weights: Vector | None = None) -> Tensor:
    """Log shares (folds, K) of a target's symbols among the samples that each fold's networks train on, smoothed."""
    mass = torch.ones(len(target))
    if weights is not None:
        mass = torch.zeros(len(target))  # samples for training alone have no weights
        mass[: len(weights)] = torch.from_numpy(weights).float()
    trained_on = (F.one_hot(target[folds.train], symbols) * mass[folds.train][..., None]).sum(1)
    return ((trained_on + 0.5) / (trained_on + 0.5).sum(1, keepdim=True)).log()
