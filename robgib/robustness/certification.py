"""Certified robustness by linear bounds on the network (CROWN)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel
from robgib.errors import first_line
from robgib.models.inference import PreparedModel, eval_mode
from robgib.results import eps_text
from robgib.robustness.attacking import Subject
from robgib.robustness.branching import Question, branch
from robgib.robustness.linear_bounds import (
    Bounds,
    NotCertifiableError,
    Pooled,
    Reached,
    bounds_of_inputs,
    lowest,
    pass_through,
    worst_move,
)
from robgib.runtime import SampleRNG, network_faults

__all__ = ["NotCertifiableError", "certify", "certify_tables"]

UNITS = 60_000
"""Maximum number of activation units of the whole network."""
_ROOM = 2**26  # maximum number of values in memory
_ROUNDING = 1e-5  # rounding error of float32, relative to the largest logit
_RATE = 0.2  # learning rate of Adam, for slopes in [0, 1]
_TRIALS = 4  # random images of each ball on which bounds are compared with the network itself
_BRANCHED = 4_000  # maximum number of values, twice the units, for branch and bound
_TOGETHER = 8  # samples per batch
_KEPT = 24  # samples whose bounds are saved together, for resume


def certify(
    model: PreparedModel,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    parts: int = 1000,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Compute, for each sample, a lower bound of the margin of the true class on its ball.

    Linear functions of the image bound the input of every activation, by backward propagation (CROWN: Zhang et al.
    2018). For the margin itself, gradient ascent optimises the lower slopes of ReLUs (Xu et al. 2021, with fixed inner
    bounds). In a small network, branch and bound over the signs of ReLU inputs then divides the balls of the samples
    that are not proven (Wang et al. 2021). Supported are affine layers, ReLU, leaky ReLU, tanh, sigmoid, max pooling,
    in any order and with shortcuts. Only images in the box count. Sums are in float64, and a hundred-thousandth of the
    largest logit is subtracted for the rounding of float32.

    Args:
        model: the classifier, prepared by :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        threat: the ball, of a convex norm.
        steps: number of ascent steps.
        parts: maximum number of parts of a ball in branch and bound; 0: none.
        device: device of the model.

    Returns:
        Bounds (N,) in logits. A sample with a bound above 0 is proven robust.

    Raises:
        NotCertifiableError: the network has other operations, is stochastic or too large, or the norm is L0.

    >>> import robgib
    >>> from robgib.models.inference import prepare
    >>> model, data = robgib.load_model("digits-mlp-relu")
    >>> x, y = data.test.x[:5], data.test.y[:5]
    >>> margin = certify(prepare(model, x), x, y, ThreatModel("linf", 0.01))
    >>> margin.shape, bool((margin > 0).any())
    ((5,), True)
    """
    if threat.norm not in CONVEX_NORMS:
        raise NotCertifiableError(f"certification does not support {threat.norm}: its ball is not convex.")
    if model.random or model.company:
        reason = "is stochastic" if model.random else "depends on the other images of a batch"
        raise NotCertifiableError(f"a network that {reason} cannot be certified.")
    x, y = x.to(device).double(), y.to(device)
    if not len(x):
        return np.zeros(0)
    try:
        net = copy.deepcopy(model.model).double()
        with eval_mode(net), network_faults():
            batches, first = [], _First()
            for start in range(0, len(x), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                batches.append(_margin_bounds(net, x[rows], y[rows], threat, steps, parts, first))
            bounds = np.concatenate(batches)
            _check_bounds(net, x, y, threat, bounds)
    except NotCertifiableError as error:
        raise NotCertifiableError(f"this network cannot be certified: {str(error).rstrip('.')}.") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a custom module may fail in float64
        raise NotCertifiableError(
            f"this network cannot be certified: {type(error).__name__}: {first_line(error)}"
        ) from error
    return bounds


@dataclass
class _First:
    """The linear function from image to the inputs of the first activation, which all samples share."""

    lean: Tensor | None = None

    def bounds(
        self, net: nn.Module, x: Tensor, z: Tensor, threat: ThreatModel, late: frozenset[int]
    ) -> tuple[Tensor, Tensor] | None:
        """Return bounds (B, …) of the inputs ``z`` (B, …) of the first activation; None if memory does not suffice.

        ``late`` are the calls of ReLU that are moved behind pooling (:class:`Bounds`).
        """
        units, size = z[0].numel(), x[0].numel()
        if units * size * len(x) > _ROOM:
            return None
        if self.lean is None:
            which = torch.zeros(units, dtype=torch.long, device=x.device)
            reached, leaf, _ = pass_through(net, x[:1], Bounds(late=late), which)
            assert isinstance(reached, Reached)
            diagonal = torch.eye(units, dtype=x.dtype, device=x.device).view_as(reached.value)
            (self.lean,) = torch.autograd.grad((diagonal * reached.value).sum(), leaf)
        ends = []
        for sign in (1.0, -1.0):
            lean = (sign * self.lean).repeat(len(x), *[1] * (x.ndim - 1))
            move = worst_move(lean, x.repeat_interleave(units, 0), threat)
            ends.append(z + sign * (lean * move).flatten(1).sum(1).view_as(z))
        return ends[0], torch.maximum(*ends)


def _margin_bounds(
    net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, parts: int, first: _First
) -> np.ndarray:
    with Pooled() as uses, torch.no_grad():
        answer = net(x)
    bounds = Bounds(late=frozenset(uses.pooled - uses.elsewhere))
    size = x[0].numel()
    while True:
        everyone = torch.arange(len(x), device=x.device)
        reached = pass_through(net, x, bounds, everyone)[0]
        if not isinstance(reached, Reached):
            logits = reached
            break
        z = reached.value
        units = z[0].numel()
        size += 2 * units
        if size > 2 * UNITS:
            raise NotCertifiableError(f"it has more than {UNITS:,} units, which would take hours per image")
        known = None if bounds.below else first.bounds(net, x, z, threat, bounds.late)
        low, high = known or bounds_of_inputs(net, x, bounds, z, threat, max(1, _ROOM // (8 * size)))
        bounds.below.append(low)
        bounds.above.append(high)
        bounds.bent.append(reached.bent)
    scale = answer.abs().amax(1)
    if not torch.allclose(logits, answer, rtol=0, atol=1e-9 * float(scale.max())):
        raise NotCertifiableError("its output changes when its activations are replaced by equivalent ones")
    need = _ROUNDING * scale
    margins = _Margins(net, x, y, logits.shape[1], bounds, threat, need)
    margins.optimise(steps)
    if parts and size <= _BRANCHED:
        margins.branch(parts)
    return (margins.least() - need).cpu().numpy()


class _Margins:
    """Lower bounds of the margin over each wrong class.

    Attributes:
        which: sample (P,) of each pair of a sample and a wrong class.
        other: the wrong class (P,).
        best: the lower bound (P,) so far.
        slopes: slopes (P, …) of the lower lines of each ReLU, by number.
    """

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        classes: int,
        bounds: Bounds,
        threat: ThreatModel,
        need: Tensor,
    ) -> None:
        self.net, self.x, self.y, self.bounds, self.threat, self.need = net, x, y, bounds, threat, need
        which = torch.arange(len(x), device=x.device).repeat_interleave(classes)
        other = torch.arange(classes, device=x.device).repeat(len(x))
        self.which, self.other = which[other != y[which]], other[other != y[which]]
        self.seed = torch.zeros(len(self.which), classes, dtype=x.dtype, device=x.device)
        self.seed.scatter_(1, y[self.which][:, None], 1.0).scatter_(1, self.other[:, None], -1.0)
        self.best = self._bound(torch.arange(len(self.which), device=x.device), None)
        self.slopes = {
            k: (high > -low).to(low)[self.which]
            for k, (low, high, bent) in enumerate(zip(bounds.below, bounds.above, bounds.bent, strict=True))
            if bent
        }

    def least(self) -> Tensor:
        """Return the lower bound of each sample's margin (B,)."""
        return self.best.view(len(self.x), -1).amin(1)

    def _bound(self, rows: Tensor, slopes: dict[int, Tensor] | None) -> Tensor:
        out, leaf, relaxation = pass_through(self.net, self.x, self.bounds, self.which[rows], slopes)
        assert isinstance(out, Tensor)
        return lowest(out, self.seed[rows], leaf, relaxation, self.threat, False, differentiate=slopes is not None)

    def optimise(self, steps: int) -> None:
        """Raise the bounds that prove nothing, by gradient ascent on the slopes."""
        rows = (self.best <= 0).nonzero()[:, 0]
        slopes = {k: v[rows].requires_grad_(True) for k, v in self.slopes.items()}
        if not slopes or not len(rows):
            return
        optimiser = torch.optim.Adam(slopes.values(), lr=_RATE)
        for _ in range(steps):
            now = self._bound(rows, slopes)
            self.best[rows] = torch.maximum(self.best[rows], now.detach())
            grads = torch.autograd.grad(-now.sum(), list(slopes.values()), allow_unused=True)
            for slope, grad in zip(slopes.values(), grads, strict=True):
                slope.grad = grad
            optimiser.step()
            with torch.no_grad():
                for slope in slopes.values():
                    slope.clamp_(0, 1)
        for k, slope in slopes.items():
            self.slopes[k][rows] = slope.detach()

    def branch(self, limit: int) -> None:
        """Raise the bounds that prove nothing by branch and bound, with at most ``limit`` parts for each sample."""
        for sample in range(len(self.x) if self.slopes else 0):
            mine = (self.which == sample).nonzero()[:, 0]
            rows = mine[self.best[mine] <= self.need[sample]]
            spent = 0
            for row in rows[
                self.best[rows].argsort()
            ]:  # the hardest class first: if it fails, the others do not matter
                at = slice(sample, sample + 1)
                own = Bounds(
                    [v[at] for v in self.bounds.below], [v[at] for v in self.bounds.above], self.bounds.bent,
                    self.bounds.late,
                )  # fmt: skip
                need = float(self.need[sample])
                question = Question(self.net, self.x[at], self.seed[row : row + 1], self.threat, own, need)
                start = {k: v[row : row + 1] for k, v in self.slopes.items()}
                bound, parts = branch(question, start, float(self.best[row]), limit - spent)
                self.best[row], spent = bound, spent + parts
                if bound <= need:
                    break


def _check_bounds(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, bounds: np.ndarray) -> None:
    """Raise an error if the margin on an image of a ball is below its bound."""
    rng = SampleRNG(0, range(len(x)))
    floor = torch.from_numpy(bounds).to(x)
    for trial in range(_TRIALS + 1):
        with torch.no_grad():
            logits = net(threat.random_start(x, rng) if trial else x)
            margin = -Objective.untargeted(y, "margin").value(logits)
        if bool((margin < floor).any()):
            raise NotCertifiableError(
                "its margin on an image of the ball is below the bound: not all of its operations were detected"
            )


def certify_tables(subject: Subject, tables: dict[str, Any]) -> None:
    """Add certified accuracy to the tables of attacks, once per budget, for the samples that remain robust.

    If certification is not possible, a note gives the reason.
    """
    outcomes, robustness = tables["outcomes"], tables["robustness"]
    x, y, progress = subject.x, subject.y, subject.context.progress
    threats = dict.fromkeys(a.threat for a in subject.attacks.values())
    for threat in threats:
        own = (outcomes["norm"] == threat.norm) & (outcomes["eps"] == threat.eps)
        here = (robustness["norm"] == threat.norm) & (robustness["eps"] == threat.eps) & (robustness["status"] == "ok")
        if not own.any():
            continue
        least_right = outcomes[own].groupby("index")["right"].min().reindex(range(len(x))).to_numpy()
        remaining = np.flatnonzero((least_right > 0) & (subject.clean.right > 0))
        margin = np.full(len(x), np.nan)
        try:
            for start in range(0, len(remaining), _KEPT):
                rows = remaining[start : start + _KEPT]
                kept = subject.context.parts.at("certified", threat.norm, f"{threat.eps:.9g}", str(start))
                known = kept.read()
                if known is None:
                    known = {"margin": certify(subject.model, x[rows], y[rows], threat, device=subject.device)}
                    kept.write(known)
                margin[rows] = known["margin"]
                if progress:
                    done = min(start + _KEPT, len(remaining))
                    progress("certifying", done, len(remaining), f"{threat.norm} {eps_text(threat.eps)}")
        except NotCertifiableError as error:
            reason = str(error).rstrip(".")
            notes = robustness.loc[here, "note"]
            robustness.loc[here, "note"] = notes.map(
                lambda note, reason=reason: f"{note}; {reason}" if note else reason
            )
            continue
        outcomes.loc[own, "certified_margin"] = margin[outcomes.loc[own, "index"]]
        robustness.loc[here, "certified"] = int((margin > 0).sum())
        robustness.loc[here, "certified_accuracy"] = float((margin > 0).mean())
