"""Branch and bound over the signs of ReLU inputs: tight bounds for small networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robgib.attacks.threat_model import ThreatModel
from robgib.robustness.linear_bounds import Bounds, lowest, pass_through, worst_move

__all__ = ["Question", "branch"]

_TOGETHER = 256  # parts bounded at once
_STEPS = 12  # ascent steps on slopes and multipliers for each part
_RATES = (0.15, 0.1)  # learning rates of Adam for slopes, in [0, 1], and for multipliers, as a share of their scale
_DECAY = 0.9  # of the learning rates, for each step


@dataclass(frozen=True)
class Question:
    """Whether one class can overtake the true one on a ball.

    Attributes:
        net: the network, in float64.
        x: the image (1, …).
        seed: coefficients (1, classes) of the logits whose sum is to stay positive: the margin.
        threat: the ball.
        bounds: bounds of the inputs of all activations on the ball, for this image.
        need: the part is proven if its bound exceeds this.
    """

    net: nn.Module
    x: Tensor
    seed: Tensor
    threat: ThreatModel
    bounds: Bounds
    need: float


@dataclass
class _Parts:
    """Parts of the ball, on which the inputs of some ReLUs have known signs.

    ``signs``, ``slopes`` and ``pulls`` map the number of a ReLU to tensors (P, …): known signs (0 if unknown), slopes
    of the lower line, and multipliers of the known signs. ``bound`` (P,) is a lower bound on each part.
    """

    signs: dict[int, Tensor]
    slopes: dict[int, Tensor]
    pulls: dict[int, Tensor]
    bound: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def pick(self, rows: Tensor) -> _Parts:
        """Return some of the parts."""
        signs, slopes, pulls = ({k: v[rows] for k, v in of.items()} for of in self._all())
        return _Parts(signs, slopes, pulls, self.bound[rows])

    def _all(self) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
        return self.signs, self.slopes, self.pulls

    def joined(self, other: _Parts) -> _Parts:
        """Return the parts of both."""
        both = zip(self._all(), other._all(), strict=True)
        signs, slopes, pulls = ({k: torch.cat([v, its[k]]) for k, v in mine.items()} for mine, its in both)
        return _Parts(signs, slopes, pulls, torch.cat([self.bound, other.bound]))

    def halves(self, where: Tensor) -> _Parts:
        """Split each part at a ReLU input, given by its place (P,) among all of them."""
        both = self.joined(self)
        sizes = [v[0].numel() for v in self.signs.values()]
        flat = torch.cat([v.flatten(1) for v in both.signs.values()], 1)
        sign = torch.ones_like(where, dtype=flat.dtype)
        flat[torch.arange(len(flat), device=flat.device), where.repeat(2)] = torch.cat([sign, -sign])
        parts = flat.split(sizes, 1)
        both.signs = {k: part.view_as(both.signs[k]) for k, part in zip(both.signs, parts, strict=True)}
        return both


def branch(question: Question, slopes: dict[int, Tensor], bound: float, limit: int) -> tuple[float, int]:
    """Prove that a margin is positive on a ball, or give up.

    The ball is divided by the sign of the input of one ReLU after another, where the relaxation loses most. Each part
    has linear bounds of its own, with the known signs as constraints (β-CROWN: Wang et al. 2021).

    Args:
        question: the margin and the ball.
        slopes: slopes (1, …) of the lower lines of each ReLU, by number, from which the optimisation starts.
        bound: the lower bound on the whole ball.
        limit: number of parts to bound at most.

    Returns:
        A lower bound of the margin on the ball, at least ``bound``, and the number of parts.
    """
    signs = {k: torch.zeros_like(v) for k, v in slopes.items()}
    start = {k: v.detach().clone() for k, v in slopes.items()}
    open_parts = _Parts(signs, start, {k: torch.zeros_like(v) for k, v in slopes.items()}, _like(slopes, bound))
    least, done = float("inf"), 0
    gaps, fooled = _improve(question, open_parts)
    while len(open_parts):
        if fooled or done >= limit or not bool((gaps.amax(1) > 0).all()):
            least = min(least, float(open_parts.bound.min()))
            break
        order = open_parts.bound.argsort()
        now, later = order[:_TOGETHER], order[_TOGETHER:]
        halves = open_parts.pick(now).halves(gaps[now].argmax(1))
        done += len(halves)
        own_gaps, fooled = _improve(question, halves)
        proven = halves.bound > question.need
        if bool(proven.any()):
            least = min(least, float(halves.bound[proven].min()))
        rest = (~proven).nonzero()[:, 0]
        open_parts = open_parts.pick(later).joined(halves.pick(rest))
        gaps = torch.cat([gaps[later], own_gaps[rest]])
    return max(bound, least), done


def _like(slopes: dict[int, Tensor], value: float) -> Tensor:
    """Return ``value`` as a tensor (P,) for the parts of the given slopes."""
    first = next(iter(slopes.values()))
    return torch.full((len(first),), value, dtype=first.dtype, device=first.device)


def _improve(question: Question, parts: _Parts) -> tuple[Tensor, bool]:
    """Raise the bounds of parts by gradient ascent on their slopes and multipliers, in place.

    Returns:
        What the relaxation of each ReLU costs the bound (P, units), 0 where its sign is known; and whether an image
        was found on which the margin is not positive.
    """
    known = _narrowed(question.bounds, parts)
    x = question.x.expand(len(parts), *question.x.shape[1:])
    seed = question.seed.expand(len(parts), -1)
    everyone = torch.arange(len(parts), device=x.device)
    scale = float(question.seed.abs().max()) or 1.0
    slopes = {k: v.clone().requires_grad_(True) for k, v in parts.slopes.items()}
    pulls = {k: v.clone().requires_grad_(True) for k, v in parts.pulls.items()}
    groups = [{"params": list(of.values()), "lr": r} for of, r in zip((slopes, pulls), _RATES, strict=True)]
    optimiser = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.ExponentialLR(optimiser, _DECAY)
    gaps = torch.zeros(0)
    for step in range(_STEPS + 1):
        last = step == _STEPS
        signed = {k: -v * parts.signs[k] * scale for k, v in pulls.items()}
        out, leaf, relaxation = pass_through(question.net, x, known, everyone, slopes, signed)
        assert isinstance(out, Tensor)
        now = lowest(out, seed, leaf, relaxation, question.threat, again=last, differentiate=not last)
        better = now.detach() > parts.bound
        parts.bound = torch.maximum(parts.bound, now.detach())
        for kept, found in ((parts.slopes, slopes), (parts.pulls, pulls)):
            for k, v in found.items():
                kept[k][better] = v.detach()[better]
        if last:
            gaps = torch.cat([(relaxation.gaps[k][-1] * (parts.signs[k] == 0)).flatten(1) for k in slopes], 1)
            return gaps, _refuted(question, out, leaf, seed)
        variables = [*slopes.values(), *pulls.values()]
        for variable, gradient in zip(
            variables, torch.autograd.grad(-now.sum(), variables, allow_unused=True), strict=True
        ):
            variable.grad = gradient
        optimiser.step()
        rates.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
            for pull in pulls.values():
                pull.clamp_min_(0)
    return gaps, False


def _refuted(question: Question, out: Tensor, leaf: Tensor, seed: Tensor) -> bool:
    """Whether the margin is not positive on an image that minimises one of the linear bounds."""
    (lean,) = torch.autograd.grad((seed * out).sum(), leaf)
    with torch.no_grad():
        margin = (question.net(leaf + worst_move(lean, leaf.detach(), question.threat)) * seed).sum(1)
    return bool((margin <= 0).any())


def _narrowed(bounds: Bounds, parts: _Parts) -> Bounds:
    """Return the bounds (P, …) of all activations' inputs on the parts."""
    below, above = [], []
    for number, (low, high) in enumerate(zip(bounds.below, bounds.above, strict=True)):
        low, high = (v.expand(len(parts), *v.shape[1:]) for v in (low, high))
        if number in parts.signs:
            sign = parts.signs[number]
            low = torch.where(sign > 0, low.clamp_min(0), low)
            high = torch.where(sign < 0, high.clamp_max(0), high)
        below.append(low)
        above.append(high)
    return Bounds(below, above, bounds.bent, bounds.late)
