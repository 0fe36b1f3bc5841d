"""Networks trained on random feature subsets, cross-fitted and calibrated: what learned estimators share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from robgib.information.preprocessing import Codes, normal_scores, relabel

Vector = npt.NDArray[np.float64]
Loss = Callable[[list[Tensor], Tensor, Tensor], Tensor]
Answer = tuple[Tensor, Tensor, Tensor]
"""Scores (levels, N, K) of K alternatives, which is the true one (N,), and the log prior (N, K) or (1, K)."""
_LOG2 = math.log(2)
LOST = 1.25  # what is lost by learning, in gaps between seen and held-out samples: see `calibrated`
_MOST_SYMBOLS = 64  # columns of a coded feature
_AVERAGING = 0.997  # of the weights over steps; it replaces a decreasing step size
_CHECK = 25  # steps between looks at the held-out loss
_PATIENCE = 300  # steps without a better look before training stops
_SHARPNESS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
_PRIOR_SHARES = (0.0, 0.003, 0.01, 0.03, 0.1)  # in the answer: no single sample may cost without bound


def columns(values: npt.NDArray[Any]) -> tuple[Tensor, int]:
    """Turn a variable (N, d) into network inputs (N, c): normal scores if real, one column a symbol if codes.

    Returns:
        The columns, and how many symbols were too rare to get their own (they share one, and the codes' order
        is kept beside them).
    """
    if values.dtype.kind == "f":
        return torch.from_numpy(normal_scores(values)).float(), 0
    codes = relabel(values)
    counts = np.bincount(codes)
    if len(counts) <= _MOST_SYMBOLS:
        return F.one_hot(torch.from_numpy(codes)).float(), 0
    order = np.argsort(-counts, kind="stable")
    place = np.full(len(counts), _MOST_SYMBOLS - 1)
    place[order[: _MOST_SYMBOLS - 1]] = np.arange(_MOST_SYMBOLS - 1)
    own = F.one_hot(torch.from_numpy(place[codes]), _MOST_SYMBOLS).float()
    rank = torch.from_numpy(normal_scores(values.astype(np.float64))).float()
    return torch.cat([own, rank], 1), len(counts) - _MOST_SYMBOLS + 1


@dataclass(frozen=True)
class Columns:
    """Network inputs of all features.

    Attributes:
        of: each feature's (N + M, c_i).
        pooled: symbols of each that share a column.
        more: how many of the rows, the last M, are other samples, for training alone.
    """

    of: tuple[Tensor, ...]
    pooled: tuple[int, ...]
    more: int

    @classmethod
    def made(cls, features: Sequence[npt.NDArray[Any]], fit: Sequence[npt.NDArray[Any]]) -> Columns:
        """Turn features (N, d_i) into columns, together with other samples of them (M, d_i) if there are."""
        same = all(a is b for a, b in zip(features, fit, strict=True))
        both = features if same else [np.concatenate(pair) for pair in zip(features, fit, strict=True)]
        values, pooled = zip(*map(columns, both), strict=True)
        return cls(values, pooled, 0 if same else len(fit[0]))

    @property
    def widths(self) -> Tensor:
        """Columns of each feature (n,)."""
        return torch.tensor([c.shape[1] for c in self.of])

    def network(self) -> Masked:
        """The networks that see them."""
        count = len(self.of)
        return Masked(torch.cat(self.of, 1), torch.arange(count).repeat_interleave(self.widths), count)


def subsets(n: int) -> Tensor:
    """Masks (2n+1, n) of all features, of each one, and of all but each one."""
    eye = torch.eye(n)
    return torch.cat([torch.ones(1, n), eye, 1 - eye])


def draw_singles(rows: int, batch: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw training masks (rows, batch, n) of one feature each."""
    return F.one_hot(torch.randint(n, (rows, batch), generator=generator), n).float()


def draw_masks(rows: int, batch: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw training masks (rows, batch, n): a quarter each are full, all but one, one, and of random size.

    The subsets that are asked for get most of the training; those of random size make a dependence that
    few features carry easier to find, as there is less noise beside it.
    """
    kind = torch.randint(4, (rows, batch, 1), generator=generator)
    one = F.one_hot(torch.randint(n, (rows, batch), generator=generator), n).float()
    share = torch.rand((rows, batch, 1), generator=generator)
    some = (torch.rand((rows, batch, n), generator=generator) < share).float()
    masks = torch.where(kind == 1, 1 - one, torch.where(kind == 2, one, some))
    return torch.where(kind == 0, torch.ones(()), masks)


@dataclass(frozen=True)
class Folds:
    """Cross-fitting folds of near-equal size.

    Attributes:
        of: fold of each sample (N,).
        slot: place of each sample among its fold's (N,).
        held: samples of each fold (k, E), a shorter fold filled up with its first.
        train: samples outside each fold (k, L), and those that no fold holds.
    """

    of: Tensor
    slot: Tensor
    held: Tensor
    train: Tensor

    @classmethod
    def draw(cls, samples: int, count: int, seed: int, codes: Codes | None = None, more: int = 0) -> Folds:
        """Deal the samples to folds at random, class by class if there are ``codes`` (N,).

        ``more`` samples that follow them are for training alone.
        """
        rng = np.random.default_rng(seed)
        chance = rng.random(samples)
        order = np.argsort(chance) if codes is None else np.lexsort((chance, codes))
        of, slot = np.empty((2, samples), np.int64)
        of[order], slot[order] = np.arange(samples) % count, np.arange(samples) // count
        members = [order[f::count] for f in range(count)]
        most = len(members[0])
        held_out = np.stack([np.concatenate([m, m[: most - len(m)]]) for m in members])
        least = samples - most
        extra = np.arange(samples, samples + more)
        train = np.stack([np.concatenate([np.flatnonzero(of != f)[:least], extra]) for f in range(count)])
        return cls(*(torch.from_numpy(a) for a in (of, slot, held_out, train)))


def layers(members: int, sizes: Sequence[int], generator: torch.Generator, last: float = 0.1) -> list[Tensor]:
    """Weights (members, a, b) and biases (members, 1, b) of perceptrons side by side; ``last`` is the outputs' gain."""
    made = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        scale = math.sqrt((2.0 if i < len(sizes) - 2 else last) / a)
        made += [torch.randn((members, a, b), generator=generator) * scale, torch.zeros(members, 1, b)]
    return made


def perceptron(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Outputs (members, B, b) of inputs (members, B, a)."""
    for i in range(0, len(weights), 2):
        if i:
            inputs = torch.relu(inputs)
        inputs = torch.baddbmm(weights[i + 1], inputs, weights[i])
    return inputs


class Networks(Protocol):
    """Networks side by side, some of each fold (``levels``), that answer for feature subsets."""

    @property
    def levels(self) -> int:
        """Networks of a fold."""

    def levels_of(self, mask: Tensor) -> list[int]:
        """The networks of a fold that answer for a subset (n,)."""

    def to(self, device: torch.device) -> Networks:
        """Move the values."""

    def decay(self, folds: int) -> Tensor:
        """Rate at which the gates of each member decay (members, 1, 1)."""

    def start(self, folds: int, sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """Draw the parameters: gates, then layers of the given output sizes."""

    def __call__(self, parameters: Sequence[Tensor], rows: Tensor, masks: Tensor) -> Tensor:
        """Outputs (levels · folds, B, b) for samples (folds, B) under masks (folds, B, n)."""


@dataclass(frozen=True)
class Masked:
    """Networks that see the features of a subset and which those are: one a fold and a strength of decay.

    Before the first layer each column meets a gate of its own, and only the gates decay. A decayed factor before
    a weight acts as a lasso on their product, which drops the columns that do not help: this is what finds a
    dependence between a few columns of many. How much decay serves depends on the problem, hence two strengths
    (:meth:`decay`), between which the held-out loss decides for each subset.

    Attributes:
        values: columns of all features (N, c).
        owner: feature of each column (c,).
        n: number of features.
    """

    values: Tensor
    owner: Tensor
    n: int

    levels: ClassVar[int] = 2

    def levels_of(self, mask: Tensor) -> list[int]:
        """The networks of a fold that answer for a subset: all of them."""
        return list(range(self.levels))

    def to(self, device: torch.device) -> Masked:
        """Move the values."""
        return Masked(self.values.to(device), self.owner.to(device), self.n)

    def decay(self, folds: int) -> Tensor:
        """Rate at which the gates of each member decay (members, 1, 1); more samples need less."""
        strong = 3 * math.sqrt(5000 / len(self.values))
        return torch.tensor([strong, 0.3]).repeat_interleave(folds)[:, None, None]

    def start(self, folds: int, sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """Draw the parameters: gates, then layers of the given output sizes."""
        members, wide = self.levels * folds, self.values.shape[1]
        return [torch.ones(members, 1, wide), *layers(members, [wide + self.n, *sizes], generator)]

    def __call__(self, parameters: Sequence[Tensor], rows: Tensor, masks: Tensor) -> Tensor:
        """Outputs (levels · folds, B, b) for samples (folds, B) under masks (folds, B, n)."""
        shown = (self.values[rows] * masks[..., self.owner]).repeat(self.levels, 1, 1) * parameters[0]
        return perceptron(torch.cat([shown, masks.repeat(self.levels, 1, 1)], -1), parameters[1:])


@dataclass(frozen=True)
class Schedule:
    """How the networks of all folds are trained.

    Attributes:
        steps: most steps.
        batch: samples a step.
        rate: step size.
        features: number of features, n.
        draw: of the training masks (rows, batch, n).
    """

    steps: int
    batch: int
    rate: float
    features: int
    draw: Callable[[int, int, int, torch.Generator], Tensor] = draw_masks

    def masks(self, rows: int, batch: int, generator: torch.Generator) -> Tensor:
        """Draw training masks (rows, batch, n)."""
        return self.draw(rows, batch, self.features, generator)


def train(
    loss: Loss,
    parameters: list[Tensor],
    decay: Tensor,
    folds: Folds,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> list[Tensor]:
    """Train all members at once with Adam on random masks; each stops where the other folds' held-out loss is least.

    Args:
        loss: from (parameters, samples (folds, B), masks (folds, B, n)) to each member's mean loss.
        parameters: initial values, the gates first.
        decay: of each member's gates.
        folds: what each member trains on and what it is held to.
        schedule: steps, batches, step size and masks.
        generator: of batches and masks, on the CPU so that they do not depend on the device.
        device: where to train.

    Returns:
        Averaged parameters at each member's best step.
    """
    count, available = folds.train.shape
    current = [p.to(device).requires_grad_() for p in parameters]
    average = [p.detach().clone() for p in current]
    best = [a.clone() for a in average]
    shrink = 1 - schedule.rate * decay.to(device)
    optimiser = torch.optim.Adam(current, lr=schedule.rate)
    held_out = folds.held[:, : min(folds.held.shape[1], 2048)]
    looks = [
        (part.to(device), schedule.masks(count, part.shape[1], generator).to(device))
        for part in held_out.split(schedule.batch, 1)
    ]
    lowest = torch.full((len(decay),), math.inf)
    last = 0
    for step in range(1, schedule.steps + 1):
        rows = folds.train.gather(1, torch.randint(available, (count, schedule.batch), generator=generator))
        masks = schedule.masks(count, schedule.batch, generator)
        optimiser.zero_grad()
        loss(current, rows.to(device), masks.to(device)).sum().backward()
        optimiser.step()
        with torch.no_grad():
            current[0].mul_(shrink)
            weight = 1 - min(_AVERAGING, (1 + step) / (10 + step))
            for a, p in zip(average, current, strict=True):
                a.lerp_(p, weight)
            if step % _CHECK and step < schedule.steps:
                continue
            share = [rows.shape[1] / held_out.shape[1] for rows, _ in looks]
            losses = sum(s * loss(average, *look).cpu() for s, look in zip(share, looks, strict=True))
            by_fold = torch.as_tensor(losses).view(-1, count)
            others = ((by_fold.sum(1, keepdim=True) - by_fold) / (count - 1)).flatten()
            better = others < lowest - 1e-4
            lowest = torch.where(better, others, lowest)
            for a, b in zip(average, best, strict=True):
                b[better] = a[better]
        if better.any():
            last = step
        elif step - last >= _PATIENCE:
            break
    return best


def calibrated(held_out_answers: Answer, training_answers: Answer, fold: Tensor) -> tuple[Tensor, float]:
    """Held-out log answer over log prior of the true alternative, in nats, for calibrated answers.

    The answer to a sample is the softmax of its scores over K alternatives with the log prior. Its sharpness and its
    share of the prior are those that do best on the other folds; sharpness 0 ignores the input, so that a subset that
    carries nothing comes out at 0. The mixture of the levels of decay is chosen for each fold's networks, of which
    one may have failed: by what they gain on samples that they have seen, less the gap between seen and held-out
    samples on the other folds.

    Args:
        held_out_answers: answers to each sample by the networks that were not trained on it.
        training_answers: answers by the networks of the next fold, which were.
        fold: of each sample (N,).

    Returns:
        The pointwise values (N,), and the mean gap. It measures how much is lost by learning from few samples: by
        maximum likelihood half of it would be (Akaike 1974); on classes and codes with known information these
        networks, stopped early, lose 0.4 to 1.8 times the gap, 1.25 times by root mean square.
    """
    folds = F.one_hot(fold).double()
    folds /= folds.sum(0)
    pointwise = _gains(held_out_answers)
    held_out = pointwise.double() @ folds
    gap = (_gains(training_answers).double() @ folds).roll(1, 2) - held_out  # networks f + 1 trained on fold f
    count = gap.shape[2]

    def of_others(values: Tensor) -> Tensor:
        return (values.sum(2, keepdim=True) - values) / (count - 1)

    tuned = of_others(held_out).argmax(1, keepdim=True)  # of each mixture and fold
    expected = (held_out + gap - of_others(gap)).gather(1, tuned)[:, 0]
    mixture = expected.argmax(0)
    each = torch.arange(count)
    choice = tuned[mixture, 0, each]
    values = pointwise[mixture[fold], choice[fold], torch.arange(len(fold))]
    return values, float(gap[mixture, choice, each].mean())


def _gains(answer: Answer) -> Tensor:
    """Log answer over log prior of the true alternative for every mixture and tuning (mixtures, tunings, N)."""
    scores, own, reference = answer
    index = torch.arange(len(own))
    mixtures = []
    for mix in torch.linspace(0, 1, 3):
        grid = []
        mixed = torch.lerp(scores[0], scores[-1], float(mix))
        mixed -= mixed.max(1, keepdim=True).values
        true, work = mixed[index, own], torch.empty_like(mixed)
        for sharpness in _SHARPNESS:
            torch.mul(mixed, sharpness, out=work).add_(reference).exp_()
            gain = sharpness * true - work.sum(1).log()
            grid += [gain if not d else torch.log((1 - d) * gain.exp() + d) for d in _PRIOR_SHARES]
        mixtures.append(torch.stack(grid))
    return torch.stack(mixtures)


def information(
    ask: Callable[[Tensor, int], Sequence[Answer]], masks: Tensor, folds: Folds, targets: int = 1
) -> list[tuple[Vector, Vector]]:
    """For each target: pointwise held-out information (N, S) in bits of every subset, and about what each lacks (S,).

    Args:
        ask: from a mask (n,) and a number s to what each sample is answered, about each target, by the networks s folds
            after its own.
        masks: (S, n).
        folds: the folds.
        targets: how many.
    """
    terms = [(np.zeros((len(folds.of), len(masks))), np.zeros(len(masks))) for _ in range(targets)]
    for j, mask in enumerate(masks):
        if not mask.any():
            continue
        for (pointwise, missing), held_out, trained_on in zip(terms, ask(mask, 0), ask(mask, 1), strict=True):
            values, gap = calibrated(held_out, trained_on, folds.of)
            pointwise[:, j], missing[j] = values.numpy() / _LOG2, LOST * max(gap, 0.0) / _LOG2
    for pointwise, missing in terms:
        # A predictor may ignore what it is shown: where that does better, usable information is 0.
        nothing = pointwise.mean(0) < 0
        pointwise[:, nothing], missing[nothing] = 0.0, 0.0
    return terms


def learning_floor(parameters: Vector, samples: int) -> Vector:
    """Standard deviation in bits that a term has however steady its pointwise values, from a linear model's parameters.

    Maximum likelihood with p parameters misses by a chi-squared of p degrees over 2N; networks, stopped early and
    drawn at random, miss the known answers by about three times its standard deviation.
    """
    return np.asarray(3 * np.sqrt(parameters / 2) / samples / _LOG2)


def pooled_note(pooled: Sequence[int]) -> list[str]:
    """What to say of codes that share a column."""
    count = sum(p > 0 for p in pooled)
    return [f"{count} variables have over {_MOST_SYMBOLS} symbols: the rare ones are pooled"] if count else []
