"""Contrastive information: how well one masked critic tells a sample's own target from others', held out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.masked_network import (
    Answer,
    Columns,
    Folds,
    Masked,
    Schedule,
    columns,
    information,
    layers,
    learning_floor,
    perceptron,
    pooled_note,
    subsets,
    train,
)
from robgib.information.preprocessing import SALTS, relabel
from robgib.options import Count, NonNegative, Positive
from robgib.runtime import one_thread, resolve_device

__all__ = [
    "InfoNCE",
]

Vector = npt.NDArray[np.float64]
_DIMS = 32  # in which the critic compares features and target
_FULL = 0.9  # share of log2 K from which a figure is marked


@register_estimator("infonce")
@dataclass(frozen=True)
class InfoNCE(Estimator):
    """InfoNCE (van den Oord, Li & Vinyals 2018): I(X_S;T) ≥ log2 K less the loss of finding T among K alternatives.

    The critic is separable, f(x_S)·g(t) (Poole et al. 2019), and f is shown masked features and the mask: one
    critic, trained on random masks, answers for every subset. Cross-fitting, stopping and calibration are those of
    :class:`~robgib.information.Probe`: each sample is judged by a critic that has not seen it, among K
    samples of its fold, at a sharpness (0 allowed) chosen on the other folds. The error is the mean's of the held-out
    pointwise terms.

    Real variables are taken by their normal scores, codes by one column a symbol.

    Fields:
        noise: variance of the independent noise added to a real target's normal scores (unit variance): the
            resolution. 0 adds none; the figure of a deterministic target is then flagged and says no more.
        folds: of the cross-fit; a critic each, all trained side by side.
        width: of the hidden layers, two for f and two for g.
        steps: most training steps.
        batch: samples a step and fold, which are each other's alternatives in training.
        alternatives: about how many are held against each other when judged: K.
        rate: step size.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of noise, folds, weights, batches and masks.
    """

    name: ClassVar[str] = "infonce"
    bound: ClassVar[str] = "lower (at most log2 of the alternatives)"
    summary: ClassVar[str] = "one masked contrastive critic for every subset, InfoNCE bound held out"
    least_samples: ClassVar[int] = 50
    regimes: ClassVar[tuple[str, ...]] = ("discrete",)
    guide: ClassVar[str] = (
        "Each information is a lower bound in expectation: how well one small critic identifies the sample's own "
        "target among K alternatives, held out and calibrated. It takes real targets without codes, for dependence of "
        "any form and features of many dimensions, at about twice the cost of the probe. It is too low for strong or "
        "intricate dependence (by 0.1 bit of 0.5 on additive uniform noise) and cannot exceed log2 K, near which it "
        "is flagged; a deterministic target of real values is always flagged, unless noise is added. Differences of "
        "such bounds, such as II and S, are not bounds. The interval includes the loss from learning, by the gap "
        "between training and held-out samples."
    )
    noise: NonNegative = 0.0
    folds: Annotated[int, Field(ge=3)] = 5
    width: Count = 128
    steps: Count = 1500
    batch: Annotated[int, Field(ge=2)] = 128
    alternatives: Annotated[int, Field(ge=2)] = 256
    rate: Positive = 5e-3
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_device(self.device)

    def _prepare(self, features: tuple[Vector, ...], fit_features: tuple[Vector, ...]) -> Columns:
        return Columns.made(features, features)

    def label_information(
        self,
        representation: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        fit_representation: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Decomposition:
        """Estimate I(Z;Y) with the noise that Z has as a target."""
        return self.estimate([labels], representation, fit_target=fit_representation, weights=weights)

    def _estimate(self, problem: Problem) -> Decomposition:
        n, samples = len(problem.features), problem.samples
        codes = relabel(problem.target) if problem.discrete_target else None
        inputs: Columns = problem.prepared.own
        target, pooled = columns(problem.target)
        what = f"{target.shape[1]} codes" if codes is not None else f"{target.shape[1]} dimensions"
        if self.noise and codes is None:
            rng = np.random.default_rng([self.seed, SALTS["infonce"]])
            target = target + math.sqrt(self.noise) * torch.from_numpy(rng.standard_normal(target.shape)).float()
            what += f", noise variance {self.noise:g}"
        folds = Folds.draw(samples, self.folds, self.seed, codes)
        alternatives = _Alternatives.draw(folds, self.alternatives, self.seed)
        resolution = f"target {what}, {alternatives.count} alternatives"
        widths, network, masks = inputs.widths, inputs.network(), subsets(n)
        with torch.inference_mode(False), torch.enable_grad(), one_thread():
            pointwise, missing = self._pointwise(network, folds, masks, target, alternatives)
        terms = pointwise.mean(0)
        # How many of the K alternatives fit as well varies: with 2^I kinds, this costs (2^I − 1)/2K nats.
        missing += (2.0**terms - 1) / (2 * alternatives.count * math.log(2))
        flagged = terms >= _FULL * math.log2(alternatives.count)
        notes = pooled_note([pooled, *inputs.pooled])
        if flagged.any():
            notes.append(f"flagged figures are near log2 {alternatives.count}, the maximum of the contrast")
        return decompose(
            terms,
            estimator=self,
            problem=problem,
            resolution=resolution,
            pointwise=pointwise,
            floor=learning_floor((masks @ widths.float()).numpy() * target.shape[1], samples),
            missing=missing,
            flagged=flagged,
            notes=notes,
        )

    def _pointwise(
        self, network: Masked, folds: Folds, masks: Tensor, target: Tensor, alternatives: _Alternatives
    ) -> tuple[Vector, Vector]:
        """Per-sample log2 of e^score over its mean over the alternatives, held out, (N, 2n+1), and what is lacking."""
        device = resolve_device(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        start = network.start(self.folds, [self.width, self.width, _DIMS], generator)
        of_features = len(start)
        members = network.levels * self.folds
        start += layers(members, [target.shape[1], self.width, self.width, _DIMS], generator, last=1.0)
        network, goal = network.to(device), target.to(device)

        def critic(parameters: list[Tensor], rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            f = network(parameters[:of_features], rows, mask)
            g = perceptron(goal[rows].repeat(network.levels, 1, 1), parameters[of_features:])
            return f, g / math.sqrt(_DIMS)

        def loss(parameters: list[Tensor], rows: Tensor, mask: Tensor) -> Tensor:
            f, g = critic(parameters, rows, mask)
            scores = torch.log_softmax(f @ g.transpose(1, 2), 2)
            return -scores.diagonal(dim1=1, dim2=2).mean(1)

        best = train(
            loss,
            start,
            network.decay(self.folds),
            folds,
            Schedule(self.steps, self.batch, self.rate, masks.shape[1]),
            generator=generator,
            device=device,
        )
        held_out, count = folds.held.to(device), alternatives.count
        reference = torch.full((1, count), -math.log(count))

        @torch.no_grad()
        def ask(mask: Tensor, shift: int) -> list[Answer]:
            rows, who = held_out.roll(shift, 0), (folds.of + shift) % self.folds
            f, g = (
                v.cpu().view(network.levels, *rows.shape, _DIMS)[:, who, folds.slot]
                for v in critic(best, rows, mask.to(device).expand(*rows.shape, -1))
            )
            scores = f[:, alternatives.block] @ g[:, alternatives.block].transpose(2, 3)
            return [(scores[:, alternatives.of, alternatives.slot], alternatives.slot, reference)]

        return information(ask, masks, folds)[0]


@dataclass(frozen=True)
class _Alternatives:
    """Which samples are held against each other.

    Attributes:
        block: samples of a fold, K to a block (blocks, K).
        of: block in which each sample is judged (N,).
        slot: its place in it (N,).
    """

    block: Tensor
    of: Tensor
    slot: Tensor

    @property
    def count(self) -> int:
        """Alternatives K to choose from, the true one among them."""
        return self.block.shape[1]

    @classmethod
    def draw(cls, folds: Folds, wanted: int, seed: int) -> _Alternatives:
        """Deal each fold's samples into blocks of about ``wanted``, filled up with others of the fold."""
        rng = np.random.default_rng(seed)
        most = folds.held.shape[1]
        blocks = max(1, round(most / wanted))
        size = -(-most // blocks)
        made: list[npt.NDArray[np.int64]] = []
        of, slot = np.empty((2, len(folds.of)), np.int64)
        for f in range(len(folds.held)):
            own = rng.permutation(np.flatnonzero(folds.of.numpy() == f))
            filled = np.concatenate([own, own[: blocks * size - len(own)]])
            of[own], slot[own] = len(made) + np.arange(len(own)) // size, np.arange(len(own)) % size
            made += list(filled.reshape(blocks, size))
        return cls(torch.from_numpy(np.stack(made)), torch.from_numpy(of), torch.from_numpy(slot))
