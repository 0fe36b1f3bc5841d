"""What training regimes make of a batch: augmentation, adversarial images, TRADES, information penalties."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.attack import Goal, ascend, frozen
from robgib.attacks.threat import Norm, ThreatModel
from robgib.errors import RobGIBError
from robgib.models.bottleneck import VariationalHead

__all__ = ["Adversary", "Penalty", "adversarial", "augment", "gaussian_complexity", "penalty_of"]


class Adversary(BaseModel):
    """Adversarial training (Madry et al. 2018): each batch is replaced by what an attack makes of it.

    One step is fast adversarial training (Wong, Rice & Kolter 2020): from a random start, 1.25 eps long. With
    ``trades`` the loss is that of the clean batch plus ``trades`` times the Kullback–Leibler divergence of the
    predictions on the attacked one, which the attack raises (TRADES: Zhang et al. 2019, equation 5).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    norm: Norm = "linf"
    eps: PositiveFloat
    """Radius of the ball, pixel scale."""
    steps: PositiveInt = 7
    """Gradient steps, each 2.5 eps / steps long."""
    trades: PositiveFloat | None = None


class Penalty(BaseModel):
    """What the code before the classes may cost; the architecture needs ``bottleneck: UNITS``.

    ``vib``: the Kullback–Leibler divergence of the code's distribution from N(0, 1), an upper bound of I(X;Z) (Alemi et
    al. 2017, equation 17). ``ib``: I(X;Z), and ``gib``: C(X;Z) / 2, both of the Gaussian that has the batch's
    covariances, X being the mean brightness of ``features`` × ``features`` patches. Added to the loss times ``beta``
    (both in nats), so that the network descends −IB_β or −GIB_β.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["vib", "ib", "gib"]
    beta: NonNegativeFloat
    features: PositiveInt = 4


def augment(x: Tensor, shift: int, flip: bool, noise: float = 0.0) -> Tensor:
    """Translate (one shift an image), mirror, and add Gaussian noise to a batch (N, C, H, W)."""
    n = len(x)
    if flip:
        x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    if shift:
        _, channels, height, width = x.shape
        padded = F.pad(x, (shift,) * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, n), device=x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
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
        with torch.no_grad(), frozen(model):
            y = model(x).softmax(1)  # cross-entropy to the clean prediction grows as the divergence does
    elif adversary.norm == "linf":
        noise = 2 * torch.rand_like(x) - 1
    else:
        noise = torch.randn_like(x)
        length = torch.rand(len(x), device=x.device) / noise.flatten(1).norm(dim=1)
        noise = noise * length.view(-1, *([1] * (x.ndim - 1)))
    start = threat.project(x + adversary.eps * noise, x)
    size = adversary.eps * (1.25 if steps == 1 else 2.5 / steps)
    with frozen(model):
        return ascend(model, x, Goal(y, False, "ce"), threat, start=start, steps=steps, step_size=size, keep="last")


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
    singles = -torch.log1p(-explained / of_x.diagonal()) / 2
    given_rest = torch.log(torch.linalg.inv(whole).diagonal()[:n] / torch.linalg.inv(of_x).diagonal()) / 2
    return total, (singles + total - given_rest).mean()


def penalty_of(model: nn.Module, x: Tensor, penalty: Penalty) -> Tensor:
    """The penalty in nats, without its factor, of the pass that ``model`` in training mode has just made of ``x``."""
    drawn = [m.drawn for m in model.modules() if isinstance(m, VariationalHead) and m.drawn is not None]
    if not drawn:
        raise RobGIBError(
            "training.penalty needs a stochastic code to act on; give the architecture `bottleneck: UNITS`, such as 32."
        )
    mean, scale, code = (t.float() for t in drawn[0])
    if penalty.kind == "vib":
        return (mean.square() + scale.square() - 1 - 2 * scale.log()).sum(1).mean() / 2
    features = x.flatten(1)
    if x.ndim == 4:
        features = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), penalty.features).flatten(1)
    if len(x) < 2 * (features.shape[1] + code.shape[1]):
        return code.sum() * 0  # the last few samples of an epoch have no covariance to speak of
    total, complexity = gaussian_complexity(features, code)
    return total if penalty.kind == "ib" else complexity / 2
