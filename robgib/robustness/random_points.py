"""Probabilistic robustness: how many random points of the balls around images keep their label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from robgib.attacks.threat_model import NORMS, ThreatModel
from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError
from robgib.models.inference import PreparedModel, answers
from robgib.options import Context, gather, or_default
from robgib.runtime import SampleRNG
from robgib.statistics import clopper_pearson

__all__ = ["check_random_points", "random_points_row"]

_AT_ONCE = 256  # images in memory
_DRAW = 22  # separates the random numbers of the points from those of attacks


def random_points_row(
    model: nn.Module | PreparedModel,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    points: int,
    *,
    context: Context | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Measure the share of random points of the balls around images that keep the label (Robey et al. 2022).

    Points are uniform in the ball, and clipped to the box. If the images carry a mask, they differ inside it only. Of
    a stochastic model each point counts by its share of right answers.

    Args:
        model: classifier on the context's device, or the result of :func:`~robgib.models.inference.prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        threat: the balls, of a norm.
        points: number of points of each image.
        context: seed, device (by default the CPU) and progress (:class:`~robgib.options.Context`). The points of an
            image depend on the seed and its place alone.
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        A row of the table ``random_points``. Its 95% interval is Clopper and Pearson's of N trials, whose successes are
        the sum of the images' shares: images vary, not their points alone.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> row = random_points_row(model, data.test.x[:20], data.test.y[:20], ThreatModel("linf", 0.1), 5)
    >>> row["samples"], row["low"] <= row["share"] <= row["high"]
    (20, True)
    """
    (context,) = gather("random_points_row", fields, or_default("context", context, Context(device="cpu")))
    seed, count, kept = context.seed, len(y), 0.0
    own = int(np.random.SeedSequence([seed, _DRAW]).generate_state(1, np.uint32)[0])
    for start in range(0, count, _AT_ONCE):
        part, labels = x[start : start + _AT_ONCE], y[start : start + _AT_ONCE]
        part = part.read() if isinstance(part, LazyImages) else part
        rng = SampleRNG(own, range(start, start + len(labels)))
        for done in range(points):
            images = threat.random_start(part, rng)
            kept += float(answers(model, images, labels, seed=seed, device=context.device).right.sum())
            context.report("random points", start * points + (done + 1) * len(labels), count * points)
    share = kept / points
    right = int(share) if share.is_integer() else share
    low, high = clopper_pearson(right, count)
    return {
        "norm": threat.norm,
        "eps": threat.eps,
        "points": points,
        "samples": count,
        "kept": right,
        "share": right / count,
        "low": low,
        "high": high,
    }


def check_random_points(threats: Iterable[ThreatModel]) -> None:
    """Raise an error if no threat model is a norm, in whose ball points can be drawn.

    Raises:
        RobGIBError: none is.
    """
    if not any(threat.norm in NORMS for threat in threats):
        raise RobGIBError(
            f"random points are drawn from the balls of the attacks, and no attack has one; give an attack of a norm "
            f"({', '.join(NORMS)})."
        )
