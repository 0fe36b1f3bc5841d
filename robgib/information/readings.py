"""Further readings of a layer beside the features of the input: its units about the label, and its noise view."""

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
from robgib.information.views import Codebook, NoisyLayer, Target

__all__ = [
    "RESOLUTIONS",
    "SUBSET",
    "UNIT_TERMS",
    "noise_terms",
    "subset_synergy",
    "swept",
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


def swept(
    now: Mapping[str, Array],
    then: Mapping[str, Array],
    y: Array,
    weights: Array | None,
    dims: int,
    codes: int,
    seed: int,
) -> tuple[dict[str, Codebook], dict[str, Target], dict[str, tuple[str, str]]]:
    """Layers in codes of half and of twice as many symbols.

    Returns:
        The codebooks and the targets by name, and by the same names the layer and which of :data:`RESOLUTIONS` it is.
    """
    books: dict[str, Codebook] = {}
    targets: dict[str, Target] = {}
    of: dict[str, tuple[str, str]] = {}
    for how, size in zip(RESOLUTIONS, (max(2, codes // 2), 2 * codes), strict=True):
        for layer, fit in then.items():
            if size > len(fit):
                continue
            name = f"{layer}\n{how}"  # no module is called so
            books[name] = Codebook.fit(fit, dims, size, seed)
            targets[name] = books[name].target(name, now[layer], fit, y, weights)
            of[name] = (layer, how)
    return books, targets, of


def noise_terms(
    z: Array, fit: Array, y: Array, dims: int, sigma: float, beta: float, seed: int, weights: Array | None = None
) -> list[dict[str, Any]]:
    """I(X;Z) and the IB of a layer in its ``noise`` view, where both can move: that of a code is the rate chosen."""
    few = slice(_NOISY)
    target = NoisyLayer.fit(fit, dims, sigma, seed).target(
        "", z[few], fit[few], y[few], None if weights is None else weights[few]
    )
    total, label = target.total, target.label
    half = float(np.hypot((label.high - label.low) / 2, beta * (total.high - total.low) / 2))
    ib = label.value - beta * total.value
    full = label.saturated or total.saturated
    notes = "; ".join(dict.fromkeys([*target.notes, *filter(None, [total.note])]))
    return [
        _row("I(X;Z) noise", total, target.resolution, len(z[few]), "counted", notes),
        _row("IB noise", Estimate(ib, ib - half, ib + half, full), target.resolution, len(z[few]), "counted", notes),
    ]


def unit_terms(
    estimator: Estimator, z: Array, fit: Array, y: Array, y_fit: Array, groups: int, weights: Array | None
) -> list[dict[str, Any]]:
    """S(Z;Y) and C(Z;Y): groups of a layer's units (N, U, …) as features, the label as target.

    Of an estimator that runs the network the rows say why they hold nothing.
    """
    if estimator.runs_network:
        note = (
            f"{' and '.join(UNIT_TERMS)} need an estimator of variables, such as binned or probe: {estimator.name} "
            "replaces pieces of the input, which a layer's units are not"
        )
        nothing = Estimate(np.nan, np.nan, np.nan)
        return [_row(term, nothing, f"{groups} groups of units", len(z), estimator.bound, note) for term in UNIT_TERMS]
    units = estimator.of_units(z, fit, groups)
    found = estimator.estimate(units.values, y, fit_features=units.fit, fit_target=y_fit, weights=weights)
    where, notes = f"{units.resolution}; {found.resolution}", "; ".join(found.notes)
    return [
        _row(term, e, where, found.samples, found.bound, notes)
        for term, e in zip(UNIT_TERMS, (found.synergy, found.complexity), strict=True)
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
    """I(Y;Ŷ) less its mean with random subsets of a layer's channels set to 0, a row a layer.

    Subsets have any size from one channel to all but one, each size alike. The interval holds the error of the samples
    and that of the subsets drawn.

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
    found = {}
    for number, layer in enumerate(layers):
        rng = np.random.default_rng([seed, 17, number])

        def drawn(count: int, rng: np.random.Generator = rng) -> Iterator[Array]:
            for _ in range(_DRAWS if count > 1 else 0):
                yield rng.choice(count, rng.integers(1, count), replace=False)

        told = without_units(model, x[few], layer, drawn, batch_size=batch_size, device=device)
        where = f"{len(told)} random subsets of the channels set to 0"
        if not told:
            nothing = Estimate(np.nan, np.nan, np.nan)
            found[layer] = _row(SUBSET, nothing, where, len(x[few]), "counted", "a single channel has no subsets")
            continue
        whole = _told(predicted[few], y[few], seed)
        kept = np.array([_told(answer, y[few], seed)[0] for answer in told])
        value = whole[0] - float(kept.mean())
        half = 1.96 * float(np.hypot(whole[1], kept.std(ddof=1) / np.sqrt(len(kept))))
        found[layer] = _row(SUBSET, Estimate(value, value - half, value + half), where, len(x[few]), "counted", "")
    return found


def _told(answer: Array, y: Array, seed: int) -> tuple[float, float]:
    """I(Y;Ŷ) in bits and its standard error."""
    if not (answer != answer[0]).any():
        return 0.0, 0.0
    found = adjusted_information(answer, y, 8, np.random.default_rng([seed, 7]))
    return found.value, found.error


def _row(term: str, e: Estimate, resolution: str, samples: int, bound: str, note: str) -> dict[str, Any]:
    return {
        "term": term,
        "value": e.value,
        "low": e.low,
        "high": e.high,
        "saturated": e.saturated,
        "bound": bound,
        "resolution": resolution,
        "samples": samples,
        "note": note,
    }
