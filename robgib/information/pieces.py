"""One network that predicts codes from any subset of an input's pieces, each seen in full."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.runtime import seed_torch

__all__ = [
    "Pieces",
    "learn_codes",
]

Vector = npt.NDArray[np.float64]
_LEAST_SIDE = 4  # of a piece that is taken for a picture
_MAPS = (12, 24)
_POOLED = 4  # a side of the last maps
_HIDDEN = 128
_OWN = 64  # units of a piece's own first layer, where it is no picture
_MASKS = 4  # subsets of each input in a batch
_BATCH = 64
_RATE = 3e-3
_HELD = 10  # of so many inputs one is held out, to choose the best step by
_LOOKS = 8
_LOOKED_AT = 1000  # inputs that are held out, each under a few subsets
_ANSWERED = 128  # inputs that are answered for at a time


@dataclass(frozen=True)
class Pieces:
    """The pieces of inputs (N, n, …), filled up with zeros to one size.

    Attributes:
        x: their content.
    """

    x: Tensor

    @classmethod
    def of(cls, inputs: Tensor, cells: Sequence[tuple[slice, ...]], mean: Tensor, scale: Tensor) -> Pieces:
        """Cut inputs (N, …), standardised by a mean and a scale that fit them."""
        ready = (inputs.float() - mean) / scale
        parts = [ready[cell] for cell in cells]
        picture = parts[0].ndim == 4 and all(min(p.shape[2:]) >= _LEAST_SIDE for p in parts)
        if not picture:
            parts = [p.flatten(1) for p in parts]
        size = [max(p.shape[a] for p in parts) for a in range(1, parts[0].ndim)]
        x = torch.zeros(len(inputs), len(parts), *size)
        for i, p in enumerate(parts):
            x[:, i][tuple([slice(None)] + [slice(0, s) for s in p.shape[1:]])] = p
        return cls(x)


class _Network(nn.Module):
    """A code of each piece; those of the pieces that are shown are added up, and the sum is read out.

    No piece's code sees another piece, so that one pass answers for every subset.
    """

    def __init__(self, shape: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.runs = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
        count, channels = shape[0], shape[1]
        self.maps: nn.Module | None = None
        wide = channels
        if len(shape) == 4:
            self.maps = nn.Sequential(
                nn.Conv2d(channels, _MAPS[0], 4, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(_MAPS[0], _MAPS[1], 3, stride=2, padding=1),
                nn.ReLU(),
            )
            side = [math.ceil(s // 2 / 2) for s in shape[2:]]
            pooled = [min(_POOLED, s) for s in side]
            self.pool = nn.Identity() if pooled == side else nn.AdaptiveAvgPool2d((pooled[0], pooled[1]))
            wide = _MAPS[1] * pooled[0] * pooled[1]
        else:
            self.own = nn.Parameter(torch.randn(count, wide, _OWN) * math.sqrt(2 / wide))
            self.shift = nn.Parameter(0.5 * torch.randn(count, _OWN))
            wide = _OWN
        self.place = nn.Parameter(torch.randn(count, wide, _HIDDEN) * math.sqrt(1 / wide))
        self.mask = nn.Linear(count, _HIDDEN)
        self.read = nn.Sequential(nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU())
        self.scores = nn.Linear(_HIDDEN, sum(sizes))

    def forward(self, x: Tensor, masks: Tensor) -> list[Tensor]:
        """Scores (B, S, T, K) of inputs (B, n, …) under masks (B or 1, S, n), for each run of T targets of K codes."""
        if self.maps is not None:
            of_pieces = self.pool(self.maps(x.flatten(0, 1))).flatten(1).view(*x.shape[:2], -1)
        else:
            of_pieces = torch.relu(torch.einsum("bnd,ndh->bnh", x, self.own) + self.shift)
        codes = torch.einsum("bnd,ndh->bnh", of_pieces, self.place)
        hidden = self.read(masks @ codes + self.mask(masks))
        places = [size * count for size, count in self.runs]
        heads = zip(self.scores.weight.split(places), self.scores.bias.split(places), self.runs, strict=True)
        return [F.linear(hidden, w, b).unflatten(2, (count, size)) for w, b, (size, count) in heads]


def learn_codes(
    train: Pieces,
    targets: Sequence[npt.NDArray[np.int64]],
    sizes: Sequence[int],
    masks: Tensor,
    test: Pieces,
    asked: Sequence[npt.NDArray[np.int64]],
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Vector]:
    """Train on inputs and their codes, and answer for others: a learning curve of two points.

    The first half of the steps see half of the inputs. Then the network answers, and goes on with all of them: a run of
    its own for the first point would cost half as much again.

    Args:
        train: pieces of the inputs (P, n, …).
        targets: codes (P,) of each target; below 0 where it is not known.
        sizes: number of codes of each.
        masks: subsets (S, n) that it is trained on and asked for.
        test: pieces of other inputs (N, n, …).
        asked: of each target, the codes (N,) whose probabilities are wanted.
        steps: of training, over both halves.
        seed: of weights, batches and subsets.
        device: where to train.

    Returns:
        Probabilities (2, S, N) of the codes that are asked for, of each target, by half of the inputs and steps and by
        all; 1 where a code is below 0.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.from_numpy(np.stack(asked, 1))
    answers = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        seed_torch(seed)
        network = _Network(train.x.shape[1:], sizes)
        goals = torch.from_numpy(np.stack(targets, 1))
        with torch.no_grad():
            network.scores.bias.copy_(_log_shares(goals, sizes))
        network = network.to(device)
        for rows, count in ((-(-len(goals) // 2), steps // 2), (len(goals), steps - steps // 2)):
            if count:
                _train(network, train.x[:rows], goals[:rows], masks, count, generator, device)
            answers.append(_answers(network, test.x, wanted, masks, device))
    return list(np.stack(answers, 1))


def _answers(network: _Network, x: Tensor, wanted: Tensor, masks: Tensor, device: torch.device | str) -> Vector:
    """Probabilities (T, S, N) of codes (N, T) of inputs (N, n, …)."""
    parts = []
    with torch.no_grad():
        for part, of in zip(x.split(_ANSWERED), wanted.split(_ANSWERED), strict=True):
            parts.append(_surprise(network(part.to(device), masks[None].to(device)), of.to(device)).cpu())
    return np.asarray(torch.cat(parts, 1).double().neg().exp().transpose(1, 2))


def _log_shares(goals: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logs of the targets' shares, one after another."""
    counts = [torch.bincount(g[g >= 0], minlength=k) + 0.5 for g, k in zip(goals.T, sizes, strict=True)]
    return torch.cat([(c / c.sum()).log() for c in counts]).float()


def _train(
    network: _Network,
    x: Tensor,
    goals: Tensor,
    masks: Tensor,
    steps: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> None:
    """Train it to its best step, as the inputs that are held out tell, which are the same for more inputs."""
    index = torch.arange(len(x))
    held_out = index % _HELD == 0
    out, rows = index[held_out][:_LOOKED_AT], index[~held_out] if len(x) > 1 else index

    def drawn(count: int) -> Tensor:
        return masks[torch.randint(len(masks), (count, _MASKS), generator=generator)]

    look = [of.to(device) for of in (x[out], drawn(len(out)), goals[out])]
    fused = torch.device(device).type in ("cpu", "cuda") or None
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE, fused=fused)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, least = copy.deepcopy(network.state_dict()), math.inf
    every = max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (_BATCH,), generator=generator)]
        shown = drawn(_BATCH)
        optimiser.zero_grad()
        _loss(network(x[batch].to(device), shown.to(device)), goals[batch].to(device)).backward()
        optimiser.step()
        falling.step()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                loss = float(_loss(network(*look[:2]), look[2]))
            if loss < least:
                best, least = copy.deepcopy(network.state_dict()), loss
    network.load_state_dict(best)


def _surprise(scores: Sequence[Tensor], goals: Tensor) -> Tensor:
    """Nats (T, B, S) that scores, (B, S, t, K) for each run of like targets, give codes (B, T); below 0 is none."""
    parts = []
    for of, wanted in zip(scores, goals.split([s.shape[2] for s in scores], 1), strict=True):
        codes = wanted[:, None].expand(of.shape[:3])
        losses = F.cross_entropy(of.flatten(0, 2), codes.reshape(-1), ignore_index=-1, reduction="none")
        parts.append(losses.view(of.shape[:3]).permute(2, 0, 1))
    return torch.cat(parts)


def _loss(scores: Sequence[Tensor], goals: Tensor) -> Tensor:
    """Mean cross-entropy of scores for codes (B, T), over targets."""
    known = (goals >= 0).sum(0).clamp_min(1) * scores[0].shape[1]
    return (_surprise(scores, goals).sum((1, 2)) / known).mean()
