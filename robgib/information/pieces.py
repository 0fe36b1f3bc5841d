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
_HELD = 0.1  # share of the inputs that the best step is chosen by
_LOOKS = 8


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

    def __init__(self, shape: Sequence[int], outputs: int) -> None:
        super().__init__()
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
        self.scores = nn.Linear(_HIDDEN, outputs)

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        """Scores (B, S, outputs) of inputs (B, n, …) under masks (B or 1, S, n)."""
        if self.maps is not None:
            of_pieces = self.pool(self.maps(x.flatten(0, 1))).flatten(1).view(*x.shape[:2], -1)
        else:
            of_pieces = torch.relu(torch.einsum("bnd,ndh->bnh", x, self.own) + self.shift)
        codes = torch.einsum("bnd,ndh->bnh", of_pieces, self.place)
        logits: Tensor = self.scores(self.read(masks @ codes + self.mask(masks)))
        return logits


def learn_codes(
    train: Pieces,
    targets: Sequence[npt.NDArray[np.int64]],
    sizes: Sequence[int],
    masks: Tensor,
    test: Pieces,
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Vector]:
    """Train on inputs and their codes, and answer for others.

    Args:
        train: pieces of the inputs (P, n, …).
        targets: codes (P,) of each target; below 0 where it is not known.
        sizes: number of codes of each.
        masks: subsets (S, n) that it is trained on and asked for.
        test: pieces of other inputs (N, n, …).
        steps: of training.
        seed: of weights, batches and subsets.
        device: where to train.

    Returns:
        Probabilities (S, N, K) of the codes of each target.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        network = _Network(train.x.shape[1:], sum(sizes))
        goals = torch.from_numpy(np.stack(targets, 1))
        with torch.no_grad():
            network.scores.bias.copy_(_log_shares(goals, sizes))
        network = _trained(network.to(device), train.x, goals, sizes, masks, steps, generator, device)
    answers: list[list[Tensor]] = [[] for _ in sizes]
    with torch.no_grad():
        for part in test.x.split(256):
            scores = network(part.to(device), masks[None].to(device)).cpu().double()
            for kept, of in zip(answers, scores.split(list(sizes), 2), strict=True):
                kept.append(of.softmax(2))
    return [torch.cat(parts).transpose(0, 1).numpy() for parts in answers]


def _log_shares(goals: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logs of the targets' shares, one after another."""
    counts = [torch.bincount(g[g >= 0], minlength=k) + 0.5 for g, k in zip(goals.T, sizes, strict=True)]
    return torch.cat([(c / c.sum()).log() for c in counts]).float()


def _trained(
    network: _Network,
    x: Tensor,
    goals: Tensor,
    sizes: Sequence[int],
    masks: Tensor,
    steps: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> _Network:
    """The network at its best step, as inputs that are held out tell."""
    held_out = max(1, int(_HELD * len(x)))
    order = torch.randperm(len(x), generator=generator)
    out, rows = order[:held_out][:1000], order[held_out:] if len(x) > 1 else order
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, least = copy.deepcopy(network.state_dict()), math.inf
    every = max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (_BATCH,), generator=generator)]
        shown = masks[torch.randint(len(masks), (_BATCH, _MASKS), generator=generator)]
        optimiser.zero_grad()
        _loss(network(x[batch].to(device), shown.to(device)), goals[batch].to(device), sizes).backward()
        optimiser.step()
        falling.step()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                scores = network(x[out].to(device), masks[None].to(device))
                loss = float(_loss(scores, goals[out].to(device), sizes))
            if loss < least:
                best, least = copy.deepcopy(network.state_dict()), loss
    network.load_state_dict(best)
    return network.eval()


def _loss(scores: Tensor, goals: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean cross-entropy of scores (B, S, ΣK), over targets; neighbours of one size are taken together."""
    total = scores.new_zeros(())
    target = column = 0
    for size, run in itertools.groupby(sizes):
        count = len(list(run))
        of = scores[:, :, column : column + count * size].unflatten(2, (count, size))
        wanted = goals[:, None, target : target + count].expand(of.shape[:3])
        losses = F.cross_entropy(of.reshape(-1, size), wanted.reshape(-1), ignore_index=-1, reduction="none")
        known = (wanted >= 0).sum((0, 1)).clamp_min(1)
        total = total + (losses.view(-1, count).sum(0) / known).sum()
        target, column = target + count, column + count * size
    return total / len(sizes)
