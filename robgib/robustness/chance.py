"""Why a clean accuracy may be no better than chance: the usual slips between a model and its data, tried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from robgib.models.inference import Prepared, predict
from robgib.models.normalization import NORMALIZATIONS

__all__ = [
    "chance_doubts",
]

_TRIED = 500  # images that the alternatives are tried on
_FEWEST = 20
_LEVEL = 0.01  # at which an accuracy is told from chance
_HELPS = 0.2  # by how much an alternative must do better to be named
_NORMALIZATIONS = {
    "imagenet": "ImageNet's normalisation",
    "cifar10": "CIFAR-10's normalisation",
    "mnist": "MNIST's normalisation",
    "half": "a normalisation to [−1, 1]",
}


def chance_doubts(
    model: Prepared, x: Tensor, y: Tensor, right: np.ndarray, device: torch.device | str = "cpu"
) -> list[str]:
    """Say it where the clean accuracy is not told from chance, and which of the usual slips would explain it.

    Args:
        model: the classifier.
        x: clean images (N, …) in [0, 1].
        y: labels (N,).
        right: share of right answers to each (N,).
        device: where the model is.

    Returns:
        A sentence, or nothing.
    """
    count = len(y)
    if count < _FEWEST:
        return []
    chance = float(np.bincount(y.numpy()).max()) / count
    hits = round(float(right.sum()))
    if len(y.unique()) < 2 or stats.binom.sf(hits - 1, count, chance) < _LEVEL:
        return []
    told = f"its clean accuracy of {hits / count:.1%} is no better than chance ({chance:.1%}, the largest class)"
    shown, wanted = x[:_TRIED], y[:_TRIED].numpy()
    best, name = 0.0, ""
    for called, change in _changes(x):
        share = float((predict(model, change(shown), device=device, batch_size=model.batch_size) == wanted).mean())
        best, name = max((best, name), (share, f"with {called}"))
    share = _reordered(predict(model, shown, device=device, batch_size=model.batch_size), wanted)
    best, name = max((best, name), (share, "with its classes in another order"))
    if best >= hits / count + _HELPS:
        option = next((f" (--normalize {key})" for key, what in _NORMALIZATIONS.items() if name == f"with {what}"), "")
        return [f"{told}; {name} it would be {best:.0%}{option}"]
    usual = "the usual normalisations, colour scales, channel orders or another order of the classes"
    return [f"{told}; none of {usual} helps"]


def _changes(x: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    if x.ndim != 4:
        return
    channels = x.shape[1]
    for key, name in _NORMALIZATIONS.items():
        mean, std = NORMALIZATIONS[key]
        if len(mean) in (1, channels):
            m, s = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
            yield name, partial(_normalised, mean=m, std=s)
    yield "colours from 0 to 255", lambda part: part * 255
    yield "black and white exchanged", lambda part: 1 - part
    if channels == 3:
        yield "blue, green, red in the place of red, green, blue", lambda part: part.flip(1)


def _normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean) / std


def _reordered(told: np.ndarray, wanted: np.ndarray) -> float:
    """Accuracy once the model's classes are renamed: the names from every second image, the accuracy on the others."""
    size = int(max(told.max(), wanted.max())) + 1
    seen = told >= 0
    counts = np.zeros((size, size))
    np.add.at(counts, (told[::2][seen[::2]], wanted[::2][seen[::2]]), 1)
    rows, columns = optimize.linear_sum_assignment(-counts)
    renamed = np.full(size, -1)
    renamed[rows] = columns
    return float((renamed[told[1::2]] == wanted[1::2])[seen[1::2]].mean()) if seen[1::2].any() else 0.0
