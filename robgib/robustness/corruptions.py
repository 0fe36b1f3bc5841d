"""Accuracy under common corruptions."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from robgib.data.corruptions import CORRUPTIONS, corrupt
from robgib.models.inference import PreparedModel, answers
from robgib.options import Context, gather
from robgib.results import table
from robgib.runtime import SampleRNG
from robgib.statistics import clopper_pearson

__all__ = [
    "corruption_accuracy",
]

_BATCH = 64  # images per batch by default


def corruption_accuracy(
    model: nn.Module | PreparedModel,
    x: Tensor,
    y: Tensor,
    *,
    context: Context | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Measure accuracy at each corruption and severity, with 95% Clopper–Pearson intervals.

    Args:
        model: classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        context: seed of the noise, device (by default the CPU), batch size (by default 64) and progress
            (:class:`~robgib.options.Context`).
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        A table with one row per corruption and severity. ``jpeg`` needs images of one or three channels.
    """
    (context,) = gather("corruption_accuracy", fields, context or Context(device="cpu"))
    size = context.batch_size or _BATCH
    names = [n for n in CORRUPTIONS if n != "jpeg" or x.shape[1] in (1, 3)]
    rows = []
    for name in names:
        for severity in range(1, 6):
            shares = 0.0
            for start in range(0, len(x), 1024):
                part, index = x[start : start + 1024], range(start, min(start + 1024, len(x)))
                changed = corrupt(part, name, severity, SampleRNG(context.seed, index))
                labels = y[start : start + 1024]
                judged = answers(model, changed, labels, batch_size=size, seed=context.seed, device=context.device)
                shares += float(judged.right.sum())
            right = int(shares) if shares.is_integer() else shares
            low, high = clopper_pearson(right, len(x))
            rows.append((name, severity, right, len(x), right / len(x), low, high))
            context.report("corrupting", len(rows), 5 * len(names), name)
    return table("corruptions", rows)
