"""What training regimes make of a batch: augmentation, adversarial images, TRADES, information penalties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.base import projected_gradient_ascent
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import ThreatModel
from robgib.errors import RobGIBError
from robgib.models.bottleneck import VariationalHead
from robgib.models.inference import eval_mode
from robgib.training.config import Adversary, Penalty

__all__ = [
    "adversarial",
    "augment",
    "check_penalty",
    "gaussian_complexity",
    "least_batch",
    "mart_loss",
    "penalty_of",
    "weights_moved",
]


def augment(x: Tensor, shift: int, flip: bool, noise: float = 0.0) -> Tensor:
    """Translate (one shift an image), mirror, and add Gaussian noise to a batch (N, C, H, W)."""
    n = len(x)
    if flip:
        x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    if shift:
        _, channels, height, width = x.shape
        padded = F.pad(x, (shift,) * 4)
        top, left_edge = torch.randint(0, 2 * shift + 1, (2, n), device=x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (left_edge[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[None, :, None, None]
        x = padded[image, channel, rows, columns]
    if noise:
        x = (x + noise * torch.randn_like(x)).clamp(0, 1)
    return x


def adversarial(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary, steps: int | None = None) -> Tensor:
    """Adversarial images (N, …) for the model in eval mode; random numbers are torch's."""
    threat, steps = ThreatModel(adversary.norm, adversary.eps), steps or adversary.steps
    if adversary.trades:
        noise = 0.001 / adversary.eps * torch.randn_like(x)  # the divergence has no gradient at the image itself
        with torch.no_grad(), eval_mode(model):
            y = model(x).softmax(1)  # cross-entropy to the clean prediction grows as the divergence does
    elif adversary.norm == "linf":
        noise = 2 * torch.rand_like(x) - 1
    else:
        noise = torch.randn_like(x)
        length = torch.rand(len(x), device=x.device) / noise.flatten(1).norm(dim=1)
        noise = noise * length.view(-1, *([1] * (x.ndim - 1)))
    start = threat.project(x + adversary.eps * noise, x)
    size = adversary.eps * (1.25 if steps == 1 else 2.5 / steps)
    with eval_mode(model):
        return projected_gradient_ascent(
            model, x, Objective.untargeted(y, "ce"), threat, start=start, steps=steps, step_size=size, keep="last"
        )


def mart_loss(clean: Tensor, attacked: Tensor, y: Tensor, weight: float) -> Tensor:
    """MART's loss (Wang et al. 2020, equation 11), without the smoothing of labels.

    The boosted cross-entropy −log p_y(x') − log(1 − max over other classes of p(x')), plus ``weight`` times the
    divergence of the predictions on x' from those on x, weighted by 1 − p_y(x); mean over the batch.

    Args:
        clean: logits (N, K) of the images x.
        attacked: logits (N, K) of the attacked images x'.
        y: labels (N,).
        weight: of the second term.
    """
    p, q = clean.softmax(1), attacked.softmax(1)
    others = q.scatter(1, y[:, None], 0.0).amax(1)
    boosted = F.cross_entropy(attacked, y, reduction="none") - torch.log1p(-others.clamp_max(1 - 1e-6))
    divergence = (p * (clean.log_softmax(1) - attacked.log_softmax(1))).sum(1)
    unsure = 1 - p.gather(1, y[:, None])[:, 0]
    return (boosted + weight * divergence * unsure).mean()


@contextmanager
def weights_moved(model: nn.Module, loss: Tensor, size: float) -> Iterator[None]:
    """Move the weights up a loss while the block runs: each matrix or kernel by ``size`` times its own norm.

    One step of adversarial weight perturbation (Wu et al. 2020, equations 8 to 10); biases and norms' factors stay.
    Buffers are restored, so that the statistics of batch norms are those of the weights before the move.
    """
    moved = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
    slopes = torch.autograd.grad(loss, moved, allow_unused=True)
    before = [p.detach().clone() for p in moved]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad():
        for p, slope in zip(moved, slopes, strict=True):
            if slope is not None:
                p.add_(size * p.norm() * slope / slope.norm().clamp_min(1e-12))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, own in zip(moved, before, strict=True):
                p.copy_(own)
            for buffer, own in buffers:
                buffer.copy_(own)


def gaussian_complexity(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """I(X;Z) and C(X;Z) in nats of the Gaussian with the covariances of features (N, n) and a code (N, k).

    Differentiable; the closed forms are those of the ``gaussian`` estimator, without its ranks and corrections.
    """
    n = x.shape[1]
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)  # a patch that never changes informs of nothing
    z = (z - z.mean(0)) / (z.std(0) + 1e-6)
    both = torch.cat([x, z], dim=1)
    ridge = 1e-3 * torch.eye(both.shape[1], device=x.device)
    whole = both.T @ both / (len(x) - 1) + ridge
    of_x, of_z, cross = whole[:n, :n], whole[n:, n:], whole[:n, n:]
    total = (torch.logdet(of_x) + torch.logdet(of_z) - torch.logdet(whole)) / 2
    explained = (cross * torch.linalg.solve(of_z, cross.T).T).sum(1)
    single_feature = -torch.log1p(-explained / of_x.diagonal()) / 2
    given_rest = torch.log(torch.linalg.inv(whole).diagonal()[:n] / torch.linalg.inv(of_x).diagonal()) / 2
    return total, (single_feature + total - given_rest).mean()


_NO_CODE = "training.penalty needs a stochastic code to act on; give the architecture `bottleneck: UNITS`, such as 32."


def _features(shape: Sequence[int], penalty: Penalty) -> int:
    """How many features of the input ``ib`` and ``gib`` look at, of one sample's shape."""
    return penalty.features**2 if len(shape) == 3 else math.prod(shape)


def least_batch(penalty: Penalty, shape: Sequence[int], units: int) -> int:
    """Fewest samples of ``shape``, without the batch's dimension, that a code of ``units`` can be charged on."""
    return 1 if penalty.kind == "vib" else 2 * (_features(shape, penalty) + units)


def check_penalty(model: nn.Module, penalty: Penalty, shape: Sequence[int], batch_size: int, samples: int) -> int:
    """Raise unless every batch of a training can be charged; return the fewest samples that a batch needs.

    Args:
        model: with a :class:`~robgib.models.bottleneck.VariationalHead`.
        penalty: to be charged.
        shape: of one sample, without the batch's dimension.
        batch_size: that of the training.
        samples: in the training set; a batch holds no more.

    Raises:
        RobGIBError: the model has no code to act on, or its batches are too small.
    """
    units = next((m.classes.in_features for m in model.modules() if isinstance(m, VariationalHead)), None)
    if units is None:
        raise RobGIBError(_NO_CODE)
    least = least_batch(penalty, shape, units)
    features = _features(shape, penalty)
    if min(batch_size, samples) < least:
        limit = f"training.batch_size is {batch_size}" if batch_size <= samples else f"there are {samples} to train on"
        mends = []
        if samples >= least:
            mends.append(f"raise training.batch_size to {least}")
        if (enough := min(batch_size, samples) // 2 - features) > 0:
            mends.append(f"lower the bottleneck to {enough}")
        if not mends:
            mends.append("lower training.penalty.features" if len(shape) == 3 else "train on more samples")
        raise RobGIBError(
            f"training.penalty {penalty.kind!r} needs batches of at least {least} samples, twice the {features} "
            f"features and {units} units of the bottleneck together, and {limit}; {' or '.join(mends)}."
        )
    return least


def penalty_of(model: nn.Module, x: Tensor, penalty: Penalty) -> Tensor:
    """The penalty in nats, without its factor, of the pass that ``model`` in training mode has just made of ``x``.

    Raises:
        RobGIBError: the model has no stochastic code, or ``ib`` or ``gib`` is computed on a batch that is too small.
    """
    drawn = [m.drawn for m in model.modules() if isinstance(m, VariationalHead) and m.drawn is not None]
    if not drawn:
        raise RobGIBError(_NO_CODE)
    mean, scale, code = (t.float() for t in drawn[0])
    if penalty.kind == "vib":
        return (mean.square() + scale.square() - 1 - 2 * scale.log()).sum(1).mean() / 2
    features = x.flatten(1)
    if x.ndim == 4:
        features = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), penalty.features).flatten(1)
    least = least_batch(penalty, x.shape[1:], code.shape[1])
    if len(x) < least:  # a penalty of nothing would pass for one that is charged
        raise RobGIBError(f"training.penalty {penalty.kind!r} needs a batch of at least {least} samples, not {len(x)}.")
    total, complexity = gaussian_complexity(features, code)
    return total if penalty.kind == "ib" else complexity / 2
