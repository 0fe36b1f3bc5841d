"""Further terms of a layer: those of its units about the label, its ``noise`` view, and the subset synergy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robgib.information.activations import without_units
from robgib.information.base import Estimator
from robgib.information.discrete import adjusted_information
from robgib.information.estimate import Estimate
from robgib.information.observer import LayerView, Observation, Resolution
from robgib.information.views import NOISE, Codebook

__all__ = [
    "RESOLUTIONS",
    "SUBSET",
    "UNIT_TERMS",
    "code_variants",
    "noise_terms",
    "subset_synergy",
    "unit_terms",
]

Array = npt.NDArray[Any]
UNIT_TERMS = ("S(Z;Y)", "C(Z;Y)")
"""A layer's units as features, the label as target."""
SUBSET = "subset synergy"
RESOLUTIONS = ("k/2", "2k")
"""Of the codes at which the figures of the ``rate`` view are given beside those at k."""
_DRAWS = 40  # subsets of channels
_IMAGES = 500  # that they are tried on
_NOISY = 2000  # samples of a mixture: its cost goes with their square


def code_variants(main: Sequence[LayerView], fit: Mapping[str, Array], resolution: Resolution) -> list[LayerView]:
    """Fit codes of half and of twice as many symbols (:data:`RESOLUTIONS`) on the layers' activations (M, …)."""
    sizes = (max(2, resolution.codes // 2), 2 * resolution.codes)
    return [
        LayerView(view.layer, view.fitted.resized(fit[view.layer], size, resolution.seed), variant)
        for variant, size in zip(RESOLUTIONS, sizes, strict=True)
        for view in main
        if isinstance(view.fitted, Codebook) and size <= len(fit[view.layer])
    ]


def noise_terms(
    observation: Observation, layer: str, resolution: Resolution, beta: float, weights: Array | None = None
) -> list[dict[str, Any]]:
    """I(X;Z) and the IB of a layer in its ``noise`` view, where both are free; in the ``rate`` view, the code's size
    limits I(X;Z)."""
    few = slice(_NOISY)
    z, fit, y = observation.values[layer][few], observation.fit[layer], observation.inputs.y[few]
    target = resolution.fit(NOISE, fit).target("", z, fit[few], y, None if weights is None else weights[few])
    total, label = target.total, target.label
    half = float(np.hypot((label.high - label.low) / 2, beta * (total.high - total.low) / 2))
    ib = label.value - beta * total.value
    notes = "; ".join(dict.fromkeys([*target.notes, *filter(None, [total.note])]))
    objective = Estimate(ib, ib - half, ib + half, label.flagged or total.flagged)
    return [
        _row("I(X;Z) noise", total, target.resolution, len(z), "counted", notes),
        _row("IB noise", objective, target.resolution, len(z), "counted", notes),
    ]


def unit_terms(
    estimator: Estimator, observation: Observation, layer: str, groups: int, weights: Array | None = None
) -> list[dict[str, Any]]:
    """S(Z;Y) and C(Z;Y): groups of a layer's units as features, the label as target.

    For an estimator that runs the network, the rows are not estimable and say why.
    """
    z, fit, inputs = observation.values[layer], observation.fit[layer], observation.inputs
    if estimator.runs_network:
        note = (
            f"{' and '.join(UNIT_TERMS)} need an estimator of variables, such as binned or probe: {estimator.name} "
            "replaces pieces of the input, and a layer's units are not pieces of the input"
        )
        nothing = Estimate(np.nan, np.nan, np.nan)
        return [_row(term, nothing, f"{groups} groups of units", len(z), estimator.bound, note) for term in UNIT_TERMS]
    units = estimator.of_units(z, fit, groups)
    result = estimator.estimate(
        units.values, inputs.y, fit_features=units.fit, fit_target=inputs.y_fit, weights=weights
    )
    resolution, notes = f"{units.resolution}; {result.resolution}", "; ".join(result.notes)
    return [
        _row(term, e, resolution, result.samples, result.bound, notes)
        for term, e in zip(UNIT_TERMS, (result.synergy, result.complexity), strict=True)
    ]


def subset_synergy(
    model: nn.Module,
    x: Tensor,
    y: Array,
    predicted: Array,
    layers: Sequence[str],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """I(Y;Ŷ) minus its mean over random subsets of a layer's channels that are set to 0; one row per layer.

    Every size from one channel to all but one is equally likely. The interval includes the error of the samples and
    that of the random subsets.

    Args:
        model: on ``device``.
        x: images (N, …).
        y: labels (N,).
        predicted: the classes (N,) that the network predicts.
        layers: whose channels.
        batch_size: images at once.
        device: where the model is.
        seed: of the subsets.
    """
    few = slice(_IMAGES)
    rows = {}
    for layer in layers:
        rng = np.random.default_rng([seed, 17])  # not of its place: a layer's figure depends on itself alone

        def drawn(count: int, rng: np.random.Generator = rng) -> Iterator[Array]:
            for _ in range(_DRAWS if count > 1 else 0):
                yield rng.choice(count, rng.integers(1, count), replace=False)

        predictions = without_units(model, x[few], layer, drawn, batch_size=batch_size, device=device)
        where = f"{len(predictions)} random subsets of the channels set to 0"
        if not predictions:
            nothing = Estimate(np.nan, np.nan, np.nan)
            rows[layer] = _row(SUBSET, nothing, where, len(x[few]), "counted", "a single channel has no subsets")
            continue
        whole = _label_information(predicted[few], y[few], seed)
        kept = np.array([_label_information(answer, y[few], seed)[0] for answer in predictions])
        value = whole[0] - float(kept.mean())
        half = 1.96 * float(np.hypot(whole[1], kept.std(ddof=1) / np.sqrt(len(kept))))
        rows[layer] = _row(SUBSET, Estimate(value, value - half, value + half), where, len(x[few]), "counted", "")
    return rows


def _label_information(answer: Array, y: Array, seed: int) -> tuple[float, float]:
    """I(Y;Ŷ) in bits and its standard error."""
    if not (answer != answer[0]).any():
        return 0.0, 0.0
    information = adjusted_information(answer, y, 8, np.random.default_rng([seed, 7]))
    return information.value, information.error


def _row(term: str, e: Estimate, resolution: str, samples: int, bound: str, note: str) -> dict[str, Any]:
    return {
        "term": term,
        "value": e.value,
        "low": e.low,
        "high": e.high,
        "flagged": e.flagged,
        "bound": bound,
        "resolution": resolution,
        "samples": samples,
        "note": note,
    }
