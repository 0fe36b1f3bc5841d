"""Accuracy under common corruptions."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from robgib.data.corruptions import CORRUPTIONS, corrupt
from robgib.models.inference import PreparedModel, answers
from robgib.results import table
from robgib.runtime import Progress, SampleRNG
from robgib.statistics import clopper_pearson

__all__ = [
    "corruption_accuracy",
]


def corruption_accuracy(
    model: nn.Module | PreparedModel,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure accuracy at each corruption and severity, with 95% Clopper–Pearson intervals.

    Args:
        model: classifier on ``device``, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        seed: seed of the noise.
        batch_size: number of images per batch.
        device: device of the model.
        progress: callback after each severity.

    Returns:
        A table with one row per corruption and severity. ``jpeg`` needs images of one or three channels.
    """
    names = [n for n in CORRUPTIONS if n != "jpeg" or x.shape[1] in (1, 3)]
    rows = []
    for name in names:
        for severity in range(1, 6):
            shares = 0.0
            for start in range(0, len(x), 1024):
                part, index = x[start : start + 1024], range(start, min(start + 1024, len(x)))
                changed = corrupt(part, name, severity, SampleRNG(seed, index))
                labels = y[start : start + 1024]
                judged = answers(model, changed, labels, batch_size=batch_size, seed=seed, device=device)
                shares += float(judged.right.sum())
            right = int(shares) if shares.is_integer() else shares
            low, high = clopper_pearson(right, len(x))
            rows.append((name, severity, right, len(x), right / len(x), low, high))
            if progress:
                progress("corrupting", len(rows), 5 * len(names), name)
    return table("corruptions", rows)
