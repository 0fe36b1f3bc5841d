"""Information about a layer in noise, by one masked conditional normalising flow for every feature subset."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from sklearn.covariance import OAS
from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.information.base import Decomposition, Estimator, Problem, decompose, register_estimator
from robgib.information.masked_network import LOST, Columns, Folds, draw_masks, pooled_note, subsets
from robgib.information.preprocessing import SALTS, normal_scores
from robgib.information.views import NOISE, View
from robgib.options import Count, NonNegative, Positive
from robgib.runtime import one_thread, resolve_device, seed_torch

__all__ = [
    "Flow",
]

Vector = npt.NDArray[np.float64]
_LOG2 = math.log(2)
_OTHERS = 32  # subsets of random size among those trained on
_CHECK = 50  # steps between looks at the held-out loss
_PATIENCE = 4  # looks without a better one before training stops
_AVERAGING = 0.99  # of the weights over steps
_DECAY = 1.0
_NEAR_IDENTITY = 0.01
_WORST = 1e4  # nats that a sample may cost
_PRIOR_SHARES = (0.003, 0.01, 0.03, 0.1, 1.0)  # of q(t) in the answer, so that no single sample costs without bound
_CHUNK = 4096


@register_estimator("flow")
@dataclass(frozen=True)
class Flow(Estimator):
    """I(X_S;T) as the mean of log2 q(t|x_S) − log2 q(t), held out: q is one flow that is shown masked features.

    Autoregressive transforms (Papamakarios, Pavlakou & Murray 2017), affine and rational-quadratic splines (Durkan et
    al. 2019), conditioned on the features of a subset and on which those are, as zuko builds them, of what the linear
    law of the subset leaves: they start as that law, and learn what it lacks. One flow a fold is trained by maximum
    likelihood on random subsets, the empty one among them, and answers for all 2n+1; each sample is judged by a flow
    that has not seen it. The answer is mixed with q(t) by a share that does best on the other folds;
    1, which ignores the features, is allowed.

    E log q(t|x_S) bounds −h(T|X_S) from below; q(t) is learnt likewise. The difference of two such bounds is none,
    but both are answers of one flow, and what a subset does not carry is 0.

    Fields:
        noise: variance of the independent noise added to a real target's normal scores; 0 adds none, as for a layer
            that is seen in noise already.
        folds: of the cross-fit; a flow each.
        width: of the two hidden layers that set each transform.
        splines: spline transforms, between two affine ones.
        steps: training steps.
        batch: samples a step and fold.
        rate: step size.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of noise, folds, weights, batches and masks.
    """

    name: ClassVar[str] = "flow"
    bound: ClassVar[str] = "none (difference of two learnt entropies)"
    summary: ClassVar[str] = "one masked conditional normalising flow for every subset (needs zuko)"
    least_samples: ClassVar[int] = 50
    regimes: ClassVar[tuple[str, ...]] = ("gaussian", "network")
    view: ClassVar[View] = NOISE
    guide: ClassVar[str] = (
        "It learns the law of a real target given any subset of the features. It needs neither codes nor alternatives "
        "and has no ceiling, so that it suits the noise view, where contraction is visible. For smooth dependence it "
        "is exact to some hundredths of a bit. Intricate dependence, or more bits than a few thousand samples can "
        "teach, is learnt in part and underestimated. It does not support class targets (use probe). It is the "
        "slowest estimator: about half a minute per layer on one core."
    )
    noise: NonNegative = 0.0
    folds: Annotated[int, Field(ge=3)] = 3
    width: Count = 64
    splines: Annotated[int, Field(ge=0)] = 1
    steps: Count = 800
    batch: Annotated[int, Field(ge=2)] = 256
    rate: Positive = 2e-3
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_device(self.device)
        _zuko()

    def _prepare(self, features: tuple[Vector, ...], fit_features: tuple[Vector, ...]) -> Columns:
        return Columns.made(features, fit_features)

    def _estimate(self, problem: Problem) -> Decomposition:
        inputs: Columns = problem.prepared.own
        n, samples = len(inputs.of), problem.samples
        if problem.discrete_target:
            note = "the flow estimator takes real targets, not classes: not estimable; see probe"
            nothing = np.full(2 * n + 1, np.nan)
            return decompose(nothing, estimator=self, problem=problem, resolution="classes", notes=[note])
        target = problem.target
        if inputs.more:
            target = np.concatenate([target, problem.fit_target])
        scores = normal_scores(target)
        scores = scores[:, scores.any(0)]
        if self.noise > 0:
            rng = np.random.default_rng([self.seed, SALTS["flow"]])
            scores = scores + math.sqrt(self.noise) * rng.standard_normal(scores.shape)
        with torch.inference_mode(False), torch.enable_grad(), one_thread():
            pointwise, missing = self._pointwise(inputs, torch.from_numpy(scores).float(), samples)
        added = f", noise variance {self.noise:g}" if self.noise else ""
        return decompose(
            pointwise.mean(0),
            estimator=self,
            problem=problem,
            resolution=f"target {scores.shape[1]} dimensions{added}, features {int(inputs.widths.sum())} columns",
            pointwise=pointwise,
            floor=1 / samples / _LOG2,
            missing=missing,
            notes=pooled_note(inputs.pooled),
        )

    def _pointwise(self, inputs: Columns, target: Tensor, samples: int) -> tuple[Vector, Vector]:
        """Held-out log2 q(t|x_S) − log2 q(t) of each sample (N, 2n+1), and about what each term lacks (2n+1,)."""
        device, n, dims = resolve_device(self.device), len(inputs.of), target.shape[1]
        folds = Folds.draw(samples, self.folds, self.seed, more=inputs.more)
        network = inputs.network()
        columns, owner = network.values, network.owner
        generator = torch.Generator().manual_seed(self.seed)
        masks = torch.cat([torch.zeros(1, n), subsets(n), draw_masks(1, _OTHERS, n, generator)[0]])
        linear = [_Linear.fit(columns[rows], target[rows], masks, owner).to(device) for rows in folds.train]
        data = _Data(columns.to(device), target.to(device), masks.to(device), owner.to(device))
        with torch.random.fork_rng(devices=[]):
            seed_torch(self.seed)
            flows = [self._flow(dims, columns.shape[1] + n).to(device) for _ in range(self.folds)]
        self._train(flows, linear, data, folds, n, generator)

        @torch.no_grad()
        def answers(subset: int, shift: int) -> Tensor:
            """Log q of each sample (N,) by the flow ``shift`` folds after its own."""
            log_densities = torch.empty(samples)
            for fold in range(self.folds):
                rows, judge = torch.nonzero(folds.of == fold)[:, 0], (fold + shift) % self.folds
                for part in rows.split(_CHUNK):
                    which = torch.full((len(part),), subset, device=device)
                    log_densities[part] = _log_prob(flows[judge], linear[judge], data, part.to(device), which).cpu()
            return log_densities.nan_to_num(nan=-_WORST).clamp(-_WORST, _WORST)

        alone, alone_seen = answers(0, 0), answers(0, 1)
        pointwise, missing = np.zeros((samples, 2 * n + 1)), np.zeros(2 * n + 1)
        for j in range(2 * n + 1):
            if not masks[j + 1].any():
                continue
            gain, gain_seen = answers(j + 1, 0) - alone, answers(j + 1, 1) - alone_seen
            values = _mixed(gain.double().numpy(), folds.of.numpy(), self.folds)
            if values.mean() <= 0:
                continue
            pointwise[:, j] = values / _LOG2
            missing[j] = LOST * max(float(gain_seen.mean() - gain.mean()), 0.0) / _LOG2
        return pointwise, missing

    def _flow(self, dims: int, context: int) -> nn.Module:
        zuko = _zuko()
        made = zuko.flows.autoregressive.MaskedAutoregressiveTransform
        hidden = {"context": context, "hidden_features": (self.width, self.width)}
        splines = [
            made(
                dims,
                univariate=zuko.transforms.MonotonicRQSTransform,
                shapes=[(8,), (8,), (7,)],
                order=torch.arange(dims).flip(0) if i % 2 else None,
                **hidden,
            )
            for i in range(self.splines)
        ]
        first, last = made(dims, **hidden), made(dims, order=torch.arange(dims).flip(0), **hidden)
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(dims), torch.ones(dims), buffer=True
        )
        flow: nn.Module = zuko.lazy.Flow([first, *splines, last], base)
        with torch.no_grad():  # near the identity: it starts as the linear law, and learns what that lacks
            for module in flow.modules():
                if isinstance(module, nn.Sequential):
                    for outputs in list(module.parameters())[-2:]:
                        outputs.mul_(_NEAR_IDENTITY)
        return flow

    def _train(
        self,
        flows: list[nn.Module],
        linear: list[_Linear],
        data: _Data,
        folds: Folds,
        n: int,
        generator: torch.Generator,
    ) -> None:
        """Maximum likelihood on random subsets; each flow stops where the other folds' held-out loss is least."""
        device = data.target.device
        optimisers = [torch.optim.AdamW(f.parameters(), lr=self.rate, weight_decay=_DECAY) for f in flows]
        averages = [[p.detach().clone() for p in f.parameters()] for f in flows]
        available, count = folds.train.shape[1], len(data.masks)
        looks = [(rows.to(device), _draw(len(rows), n, count, generator).to(device)) for rows in folds.held[:, :1024]]
        history: list[list[float]] = []
        kept: list[list[list[Tensor]]] = []
        for step in range(self.steps + 1):
            if step:
                share = 1 - min(_AVERAGING, (1 + step) / (10 + step))
                for f, (flow, optimiser) in enumerate(zip(flows, optimisers, strict=True)):
                    rows = folds.train[f][torch.randint(available, (self.batch,), generator=generator)].to(device)
                    which = _draw(self.batch, n, count, generator).to(device)
                    loss = -_log_prob(flow, linear[f], data, rows, which).mean()
                    optimiser.zero_grad()
                    if bool(torch.isfinite(loss)):
                        loss.backward()
                        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
                        optimiser.step()
                    with torch.no_grad():
                        for a, p in zip(averages[f], flow.parameters(), strict=True):
                            a.lerp_(p, share)
            if step % _CHECK and step < self.steps:
                continue
            losses = []
            for f, flow in enumerate(flows):
                now = [p.detach().clone() for p in flow.parameters()]
                _put(flow, averages[f])
                with torch.no_grad():
                    losses.append(-float(_log_prob(flow, linear[f], data, *looks[f]).mean()))
                _put(flow, now)
            history.append(losses)
            kept.append([[a.clone() for a in average] for average in averages])
            best = int(np.nan_to_num(np.array(history).mean(1), nan=np.inf).argmin())
            if len(history) - 1 - best >= _PATIENCE:
                break
        table = np.nan_to_num(np.array(history), nan=np.inf)
        for f, flow in enumerate(flows):
            _put(flow, kept[int(np.delete(table, f, 1).mean(1).argmin())][f])
            flow.eval()


@dataclass(frozen=True)
class _Data:
    """Columns (N, c), target (N, d), the subsets' masks (S, n), and the feature of each column (c,)."""

    columns: Tensor
    target: Tensor
    masks: Tensor
    owner: Tensor


@dataclass(frozen=True)
class _Linear:
    """The linear-Gaussian law of the target given each of S subsets: t = m + (x − μ) A_S + L_S e.

    Attributes:
        mean_x: μ (c,).
        mean_t: m (d,).
        slopes: A (S, c, d), zero outside the subset.
        whiten: L⁻¹ (S, d, d), lower triangular.
        volume: log |L⁻¹| (S,).
    """

    mean_x: Tensor
    mean_t: Tensor
    slopes: Tensor
    whiten: Tensor
    volume: Tensor

    @classmethod
    def fit(cls, columns: Tensor, target: Tensor, masks: Tensor, owner: Tensor) -> _Linear:
        """From the covariance of all, shrunk (Chen et al. 2010, as scikit-learn has it)."""
        joint = torch.cat([columns, target], 1).double()
        width, dims = columns.shape[1], target.shape[1]
        covariance = torch.from_numpy(OAS().fit(joint.numpy()).covariance_)
        slopes, whiten = torch.zeros(len(masks), width, dims), torch.zeros(len(masks), dims, dims)
        for s, mask in enumerate(masks):
            own = torch.nonzero(mask[owner] > 0)[:, 0]
            residual = covariance[width:, width:]
            if len(own):
                solved = torch.linalg.solve(covariance[own][:, own], covariance[own][:, width:])
                slopes[s, own] = solved.float()
                residual = residual - covariance[width:][:, own] @ solved
            residual = residual + 1e-6 * torch.eye(dims, dtype=torch.float64)
            whiten[s] = torch.linalg.inv(torch.linalg.cholesky(residual)).float()
        volume = whiten.diagonal(dim1=1, dim2=2).log().sum(1)
        return cls(joint[:, :width].mean(0).float(), joint[:, width:].mean(0).float(), slopes, whiten, volume)

    def to(self, device: torch.device) -> _Linear:
        """Move it."""
        return _Linear(*(getattr(self, f.name).to(device) for f in fields(self)))


def _log_prob(flow: nn.Module, linear: _Linear, data: _Data, rows: Tensor, which: Tensor) -> Tensor:
    """Log q(t|x_S) of samples ``rows`` (B,), each for its own subset (B,)."""
    mask = data.masks[which]
    columns = data.columns[rows]
    predicted = torch.einsum("bc,bcd->bd", columns - linear.mean_x, linear.slopes[which])
    residual = torch.einsum("bij,bj->bi", linear.whiten[which], data.target[rows] - linear.mean_t - predicted)
    law = flow(torch.cat([columns * mask[:, data.owner], mask], -1))
    log_density: Tensor = law.log_prob(residual) + linear.volume[which]
    return log_density


def _draw(rows: int, n: int, count: int, generator: torch.Generator) -> Tensor:
    """Numbers (rows,) of subsets to train on: none of the features, all, one, all but one, or others, a fifth each."""
    kind = torch.randint(5, (rows,), generator=generator)
    one = torch.randint(n, (rows,), generator=generator)
    other = torch.randint(2 * n + 2, count, (rows,), generator=generator)
    return torch.stack([torch.zeros_like(one), torch.ones_like(one), 2 + one, 2 + n + one, other])[
        kind, torch.arange(rows)
    ]


def _put(flow: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for p, v in zip(flow.parameters(), values, strict=True):
            p.copy_(v)


def _mixed(gain: Vector, fold: npt.NDArray[np.int64], folds: int) -> Vector:
    """log of (1 − d)·exp(gain) + d for each sample (N,), d chosen for each fold by the others."""
    choices = np.stack(
        [np.logaddexp(np.log1p(-d) + gain, np.log(d)) if d < 1 else np.zeros_like(gain) for d in _PRIOR_SHARES]
    )
    sums = np.stack([choices[:, fold == f].sum(1) for f in range(folds)], 1)
    best = (sums.sum(1, keepdims=True) - sums).argmax(0)
    return np.asarray(choices[best[fold], np.arange(len(gain))])


def _zuko() -> Any:
    try:
        zuko = importlib.import_module("zuko")
        importlib.import_module("zuko.flows.autoregressive")
    except ImportError as error:
        raise RobGIBError("the flow estimator needs the zuko package; pip install 'robgib[flow]'.") from error
    return zuko
