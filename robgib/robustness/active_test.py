"""The active test: whether an attack finds adversarial images that are known to exist (Zimmermann et al. 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robgib.attacks.base import Attack, given_to
from robgib.attacks.carried import carried, carry, masked
from robgib.attacks.threat_model import ThreatModel, per_sample
from robgib.errors import NoGradientError, RobGIBError, RobGIBWarning
from robgib.models.inference import BatchedModel, PreparedModel
from robgib.runtime import SampleRNG

__all__ = ["PASSES", "PLANTED", "planted_found"]

PLANTED = 20
"""Maximum number of planted images."""
PASSES = 260
"""Passes that planting one image takes."""
_INNER = 256  # random images, which the new classifier calls class 0
_INSIDE = 0.95  # their largest distance, as a share of eps
_RIDGE = 1e-2  # of the linear readout, as a share of the mean variance
_EDGE = 0.1  # place of the boundary between the nearest inner image (0) and the planted one (1)
_SCALE = 5.0  # difference of the logits between these


class Features(nn.Module):
    """The inputs (N, d) of a model's last linear layer."""

    def __init__(self, model: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to features (N, d)."""
        first_input: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda module, inputs: first_input.append(inputs[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return first_input[-1].flatten(1)


class Readout(nn.Module):
    """A linear classifier of two classes on the features of a model: the inputs of its last linear layer."""

    def __init__(self, features: Features, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, …) to logits (N, 2)."""
        score = self.features(x) @ self.weight + self.bias
        return torch.stack([-score, score], 1)


def planted_found(
    prepared: PreparedModel,
    x: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, Attack],
    *,
    seed: int = 0,
) -> dict[str, list[bool]]:
    """Plant an adversarial image in the ball of each image, and return whether each attack finds one.

    For each image a new linear classifier replaces the last layer. It calls the image and 256 random images inside the
    ball class 0, and one random image on the surface class 1. An attack that works on the model's features finds class
    1; one that fails on them leaves the planted image unfound, although it exists.

    Args:
        prepared: the model, in eval mode.
        x: images (N, …); those in whose ball no image can be planted are left out. If they carry a mask, all images
            differ inside it only.
        threat: the threat model.
        attacks: the attacks, by label; attacks that do not run on two classes are left out.
        seed: seed of the random images and of the attacks.

    Returns:
        By label, whether the attack found each planted image; empty if the model has no linear layer at its end.
    """
    last = next((m for m in reversed(list(prepared.model.modules())) if isinstance(m, nn.Linear)), None)
    hits_of: dict[str, list[bool]] = {label: [] for label in attacks}
    if last is None:
        return {}
    features = Features(prepared.model, last)
    x = carry(x.as_subclass(Tensor), mask=carried(x, "mask"))  # without targets: there are two classes here
    for row in range(len(x)):
        readout = _planted(features, x[row : row + 1], threat, SampleRNG(seed, [row]), prepared.batch_size)
        if readout is None:
            continue
        for label in list(hits_of):
            try:
                hits_of[label].append(_finds(attacks[label], readout, x[row : row + 1], seed + row))
            except NoGradientError:
                hits_of[label].append(False)
            except RobGIBError:
                del hits_of[label]
    return {label: hits for label, hits in hits_of.items() if hits}


def _finds(attack: Attack, readout: Readout, x: Tensor, seed: int) -> bool:
    model = BatchedModel(readout, 64) if attack.pooled else readout
    label = torch.zeros(1, dtype=torch.long, device=x.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)  # the attack has already emitted its warnings
        images = attack.perturb(model, *given_to(attack, x, label), SampleRNG(seed, [0])).detach()
    with torch.no_grad():
        return bool((readout(images).argmax(1) == 1).item()) and bool(attack.threat.allows(images, x).item())


def _planted(features: Features, x: Tensor, threat: ThreatModel, rng: SampleRNG, batch: int) -> Readout | None:
    """Return a classifier with one planted image in the ball of an image ``x`` (1, …), or None if none can be."""
    shape = tuple(x.shape[1:])
    directions = masked(torch.cat([rng.normal(shape, x.device) for _ in range(_INNER + 1)]), x)
    inner, planted = directions[:-1], directions[-1:]
    if threat.norm == "linf":
        shrunk = masked(torch.cat([2 * rng.uniform(shape, x.device) - 1 for _ in range(_INNER)]), x)
        inner, planted = _INSIDE * threat.eps * shrunk, threat.eps * planted.sign()
    else:
        size = threat.distance(directions, torch.zeros_like(directions))
        unit = directions / per_sample(size, directions)
        inner, planted = _INSIDE * threat.eps * unit[:-1], threat.eps * unit[-1:]
    low, high = threat.box
    images = torch.cat([x.as_subclass(Tensor), (x + inner).clamp(low, high), (x + planted).clamp(low, high)])
    with torch.no_grad():
        z = torch.cat([features(part) for part in images.split(batch)]).double()
    centred = z - z[:-1].mean(0)
    # Ridge regression on the indicator of the planted image, in its dual form.
    gram = centred @ centred.T
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(z), dtype=z.dtype, device=z.device)
    target = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    target[-1] = 1
    weight = centred.T @ torch.linalg.lstsq(gram + ridge, target[:, None]).solution[:, 0]
    score = centred @ weight
    gap = score[-1] - score[:-1].max()
    if not bool(torch.isfinite(gap)) or float(gap) <= 1e-6 * float(score.abs().max()):
        return None
    edge = score[:-1].max() + _EDGE * gap
    scale = _SCALE / gap
    bias = -(z[:-1].mean(0) @ weight + edge) * scale
    return Readout(features, (weight * scale).to(x.dtype), bias.to(x.dtype))
