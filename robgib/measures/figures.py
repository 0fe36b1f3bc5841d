"""Baselines: a small function each, with its source, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib import registry
from robgib.attacks.objective import Objective
from robgib.data.dataset import Dataset, split_information
from robgib.information.activations import LOGITS, collect_activations, find_layers
from robgib.information.features import Projection
from robgib.models.adapt import seeded
from robgib.models.inference import eval_mode
from robgib.models.state import State

__all__ = ["MEASURES", "Sample", "list_measures", "measure_model", "sample_of"]

_IMAGES = 256
_BATCH = 64


@dataclass(frozen=True)
class Sample:
    """What a measure may look at.

    Attributes:
        x: test images (N, C, H, W) in [0, 1].
        y: their labels (N,).
        fit: other images (M, C, H, W), for what is fitted beside the network.
        seed: of everything that is drawn.
        memory: figures of one model that several measures need, by name; None keeps none.
    """

    x: Tensor
    y: Tensor
    fit: Tensor
    seed: int = 0
    memory: dict[str, float] | None = field(default=None, compare=False, repr=False)

    @property
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, at most 64 at once."""
        return zip(self.x.split(_BATCH), self.y.split(_BATCH), strict=True)

    @property
    def generator(self) -> torch.Generator:
        """A fresh source of random numbers."""
        return torch.Generator().manual_seed(self.seed)


Measure = Callable[[nn.Module, Sample], float]

MEASURES: registry.Registry[Measure] = registry.Registry(
    "measure",
    group="robgib.measures",
    valid=callable,
    wanted="a function of a model and a robgib.measures.Sample that returns a number",
)
"""The measures by name. A plug-in enters its own with ``@MEASURES.register("name")``."""


def list_measures(catalogue: Sequence[Path] = ()) -> list[str]:
    """Return the names of all measures.

    >>> "gradient_norm" in list_measures()
    True
    """
    return list(MEASURES.entries(catalogue))


def sample_of(data: Dataset, seed: int = 0, images: int = _IMAGES) -> Sample:
    """Return the images that measures are taken on: test images, and training images to fit on."""
    (x, y), (fit, _) = split_information(data, images, seed)
    return Sample(x, y, fit, seed)


def measure_model(
    model: nn.Module, sample: Sample, names: Sequence[str] | None = None, catalogue: Sequence[Path] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """Take measures of a classifier on the CPU. Model, sample and random generators are restored after each.

    Args:
        model: classifier.
        sample: what they are taken on.
        names: which; None takes all.
        catalogue: further folders of plug-ins.

    Returns:
        The figures by name, and the reason by name of each that failed or is not finite, whose figure is NaN.

    Raises:
        RobGIBError: a name that there is not.

    >>> flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> sample = Sample(torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long), torch.rand(8, 1, 2, 2))
    >>> sorted(measure_model(flat, sample, ["weight_norm", "linear_r2"])[0])
    ['linear_r2', 'weight_norm']
    """
    chosen = {n: MEASURES.find(n, catalogue) for n in (list_measures(catalogue) if names is None else names)}
    figures, failed = {}, {}
    memory: dict[str, float] = {}
    with eval_mode(model):
        state = State([model])
        for name, measure in chosen.items():
            # A measure of one's own may change what it is given, and draw random numbers.
            own = replace(sample, x=sample.x.clone(), y=sample.y.clone(), fit=sample.fit.clone(), memory=memory)
            try:
                with seeded(sample.seed):
                    figures[name] = float(measure(model, own))
                if not math.isfinite(figures[name]):
                    failed[name] = f"it returned {figures[name]}"
                    figures[name] = math.nan
            except Exception as error:  # a measure that does not fit a model must not lose the others
                figures[name], failed[name] = math.nan, f"{type(error).__name__}: {error}"
            state.restore()
    return figures, failed


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified correctly, (N,)."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(_BATCH)]) == y


def _slopes(value: Callable[[Tensor, Tensor], Tensor], sample: Sample) -> Tensor:
    """Gradients (N, D) of a value of each image with respect to the image."""
    slopes = []
    for x, y in sample.batches:
        leaf = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(value(leaf, y).sum(), leaf)[0].flatten(1))
    return torch.cat(slopes)


def _margin(scores: Tensor, y: Tensor) -> Tensor:
    """The label's score less the highest other one, (N,)."""
    return -Objective.untargeted(y, "margin").value(scores)


@MEASURES.register("clean_accuracy")
def clean_accuracy(model: nn.Module, sample: Sample) -> float:
    """Share of images classified correctly (Tsipras et al. 2019: at odds with robustness)."""
    memory = {} if sample.memory is None else sample.memory
    if "clean_accuracy" not in memory:
        memory["clean_accuracy"] = float(_right(model, sample.x, sample.y).float().mean())
    return memory["clean_accuracy"]


@MEASURES.register("gradient_norm")
def gradient_norm(model: nn.Module, sample: Sample) -> float:
    """Mean L2 norm of the loss's input gradient (Simon-Gabriel et al. 2019)."""
    slopes = _slopes(lambda x, y: F.cross_entropy(model(x), y, reduction="none"), sample)
    return float(slopes.norm(dim=1).mean())


@MEASURES.register("probability_margin")
def probability_margin(model: nn.Module, sample: Sample) -> float:
    """Mean margin of the predicted probabilities."""
    with torch.no_grad():
        return float(torch.cat([_margin(model(x).softmax(1), y) for x, y in sample.batches]).mean())


@MEASURES.register("logit_margin")
def logit_margin(model: nn.Module, sample: Sample) -> float:
    """Mean margin of the logits (Jiang et al. 2019)."""
    with torch.no_grad():
        return float(torch.cat([_margin(model(x), y) for x, y in sample.batches]).mean())


@MEASURES.register("margin_per_gradient")
def margin_per_gradient(model: nn.Module, sample: Sample) -> float:
    """Median of the logit margin over the L1 norm of its gradient: the L∞ distance to the boundary of a linear model
    (Hein & Andriushchenko 2017)."""
    slopes = _slopes(lambda x, y: _margin(model(x), y), sample).abs().sum(1)
    with torch.no_grad():
        margins = torch.cat([_margin(model(x), y) for x, y in sample.batches])
    return float((margins / slopes.clamp_min(1e-12)).median())


@MEASURES.register("local_lipschitz")
def local_lipschitz(model: nn.Module, sample: Sample, eps: float = 8 / 255, steps: int = 5) -> float:
    """Mean over images of the largest ‖p(x) − p(x')‖₁ / ‖x − x'‖∞ that a gradient ascent finds within eps of the image
    (Yang et al. 2020, equation 3)."""
    ratios = []
    generator = sample.generator
    for x, _ in sample.batches:
        with torch.no_grad():
            base = model(x).softmax(1)
        moved = x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)
        best = torch.zeros(len(x))
        for step in range(steps + 1):
            leaf = moved.detach().requires_grad_()
            change = (model(leaf).softmax(1) - base).abs().sum(1)
            distance = (leaf.detach() - x).flatten(1).abs().amax(1).clamp_min(1e-6)
            best = torch.maximum(best, change.detach() / distance)
            if step < steps:
                slope = torch.autograd.grad(change.sum(), leaf)[0]
                moved = x + (leaf.detach() + 2.5 * eps / steps * slope.sign() - x).clamp(-eps, eps)
        ratios.append(best)
    return float(torch.cat(ratios).mean())


@MEASURES.register("boundary_thickness")
def boundary_thickness(model: nn.Module, sample: Sample, eps: float = 1.0, steps: int = 10, points: int = 32) -> float:
    """Mean thickness of the boundary between an image and a targeted L2 adversarial image of it: the length on which
    the difference of the two classes' probabilities lies between 0 and 0.75 (Yang et al. 2020, definition 1)."""
    lengths = []
    generator = sample.generator
    for x, _ in sample.batches:
        with torch.no_grad():
            scores = model(x)
        own = scores.argmax(1)
        draw = torch.rand(scores.shape, generator=generator).scatter(1, own[:, None], -1.0)
        target = draw.argmax(1)
        moved = x.clone()
        for _step in range(steps):
            leaf = moved.detach().requires_grad_()
            slope = torch.autograd.grad(F.cross_entropy(model(leaf), target, reduction="sum"), leaf)[0]
            ahead = leaf.detach() - 2.5 * eps / steps * _unit(slope) - x
            size = ahead.flatten(1).norm(dim=1).clamp_min(1e-12)
            moved = x + ahead * (eps / size).clamp_max(1).view(-1, *[1] * (x.dim() - 1))
        inside = torch.zeros(len(x))
        with torch.no_grad():
            for t in (np.arange(points) + 0.5) / points:
                p = model(x + float(t) * (moved - x)).softmax(1)
                gap = (p.gather(1, own[:, None]) - p.gather(1, target[:, None]))[:, 0]
                inside += ((gap > 0) & (gap < 0.75)).float() / points
        lengths.append(inside * (moved - x).flatten(1).norm(dim=1))
    return float(torch.cat(lengths).mean())


def _unit(slope: Tensor) -> Tensor:
    size = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
    return slope / size.view(-1, *[1] * (slope.dim() - 1))


@MEASURES.register("weight_norm")
def weight_norm(model: nn.Module, sample: Sample) -> float:
    """L2 norm of all parameters (Neyshabur et al. 2015)."""
    return math.sqrt(sum(float((p.detach() ** 2).sum()) for p in model.parameters()))


@MEASURES.register("spectral_norm")
def spectral_norm(model: nn.Module, sample: Sample) -> float:
    """Sum of the logarithms of the weights' spectral norms, a convolution's as a matrix of its output channels
    (Bartlett et al. 2017)."""
    weights = [p.detach().flatten(1) for p in model.parameters() if p.dim() > 1]
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in weights]
    return float(sum(math.log(max(n, 1e-12)) for n in norms))


@MEASURES.register("flatness")
def flatness(model: nn.Module, sample: Sample, size: float = 0.05, draws: int = 3) -> float:
    """Mean rise of the loss when each weight moves by a normal error of 5% of its magnitude (Jiang et al. 2020,
    magnitude-aware sharpness); 0 is flat."""
    other = deepcopy(model)
    base = _loss(model, sample)
    generator, rises = sample.generator, []
    for _ in range(draws):
        with torch.no_grad():
            for moved, own in zip(other.parameters(), model.parameters(), strict=True):
                moved.copy_(own + size * own.abs() * torch.randn(own.shape, generator=generator))
        rises.append(_loss(other, sample) - base)
    return float(np.mean(rises))


def _loss(model: nn.Module, sample: Sample) -> float:
    with torch.no_grad():
        return float(sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in sample.batches)) / len(sample.x)


@MEASURES.register("linear_r2")
def linear_r2(model: nn.Module, sample: Sample) -> float:
    """Share of the logits' variance that a linear map of the image predicts: of its 32 principal components, fitted on
    other images (Moosavi-Dezfooli et al. 2019: robust networks are more linear)."""
    return _linear(model, sample, LOGITS)


@MEASURES.register("linear_r2_layer")
def linear_r2_layer(model: nn.Module, sample: Sample) -> float:
    """The same of the last layer before the logits."""
    return _linear(model, sample, _last_layer(model, sample))


def _last_layer(model: nn.Module, sample: Sample) -> str:
    """The last layer before the logits; the logits of a network of one layer."""
    layers, _ = find_layers(model, sample.x[:2])
    return next((n for n in reversed(layers) if n != LOGITS), LOGITS)


def _units(model: nn.Module, x: Tensor, layer: str) -> npt.NDArray[np.float64]:
    """A layer's activations as rows (N, units), those of maps and tokens side by side."""
    values = collect_activations(model, x, [layer])[layer]
    return np.asarray(values, dtype=np.float64).reshape(len(values), -1)


def _linear(model: nn.Module, sample: Sample, layer: str) -> float:
    own, other = (_units(model, part, layer) for part in (sample.x, sample.fit))
    project = Projection.fit(sample.fit.numpy(), 32)
    given, fitted = (np.column_stack([np.ones(len(v)), project(v.numpy())]) for v in (sample.x, sample.fit))
    coefficients = np.linalg.lstsq(fitted, other, rcond=None)[0]
    return 1 - float(((own - given @ coefficients) ** 2).sum() / max(((own - own.mean(0)) ** 2).sum(), 1e-30))


@MEASURES.register("patch_swap_drop")
def patch_swap_drop(model: nn.Module, sample: Sample) -> float:
    """Accuracy lost when one of 2 × 2 patches is replaced by that of another image, mean over the four."""
    x = sample.x
    height, width = x.shape[2] // 2, x.shape[3] // 2
    if min(height, width) < 1:
        return math.nan
    donor, rights = x.roll(1, 0), []
    for rows in (slice(0, height), slice(height, None)):
        for columns in (slice(0, width), slice(width, None)):
            changed = x.clone()
            changed[:, :, rows, columns] = donor[:, :, rows, columns]
            rights.append(float(_right(model, changed, sample.y).float().mean()))
    return clean_accuracy(model, sample) - float(np.mean(rights))


@MEASURES.register("noise_drop")
def noise_drop(model: nn.Module, sample: Sample, deviation: float = 0.1) -> float:
    """Accuracy lost under Gaussian noise of standard deviation 0.1 (Ford et al. 2019)."""
    noisy = sample.x + deviation * torch.randn(sample.x.shape, generator=sample.generator)
    return clean_accuracy(model, sample) - float(_right(model, noisy.clamp(0, 1), sample.y).float().mean())


@MEASURES.register("effective_rank")
def effective_rank(model: nn.Module, sample: Sample) -> float:
    """Exponential of the entropy of the last layer's normalised singular values (Roy & Vetterli 2007)."""
    layer = _last_layer(model, sample)
    values = _units(model, sample.x, layer)
    sizes = np.linalg.svd(values - values.mean(0), compute_uv=False)
    share = sizes[sizes > 1e-12 * max(sizes.max(initial=0.0), 1e-30)]
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
