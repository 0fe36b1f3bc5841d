"""The information half of an evaluation: the terms of a model's layers, as tables."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robgib.data.dataset import Dataset, split_information
from robgib.errors import RobGIBError, RobGIBWarning
from robgib.information.activations import collect_activations, default_layers
from robgib.information.base import Decomposition, Estimate, Estimator
from robgib.information.base import Prepared as PreparedFeatures
from robgib.information.features import Features, group_inputs
from robgib.information.measures import gib_objective, ib_objective, pmi_weights
from robgib.information.registry import make_estimator
from robgib.models.inference import Prepared, predict, prepare
from robgib.results import table
from robgib.runtime import Progress

__all__ = [
    "DEFAULT_ESTIMATORS",
    "NOISE",
    "TERMS",
    "LayerInformation",
    "default_features",
    "layer_information",
    "make_estimators",
]

DEFAULT_ESTIMATORS = ("gaussian", "binned")
TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "S(Z;Y)", "IB", "GIB")
"""Per layer: prediction, IB complexity, GIB complexity, input-side and label-side synergy, objectives."""
NOISE = 0.01
"""Variance of the noise at which real-valued estimators see a layer (its scores have variance 1)."""


def layer_information(
    model: object,
    data: Dataset,
    estimators: Sequence[str | Estimator] = DEFAULT_ESTIMATORS,
    *,
    layers: Sequence[str] | None = None,
    samples: int = 5000,
    features: str = "auto",
    feature_dims: int = 4,
    layer_dims: int = 8,
    unit_groups: int = 8,
    beta: float = 1.0,
    pmi: bool = False,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> LayerInformation:
    """Estimate the information terms of a model's layers.

    Args:
        model: classifier on ``device``, or what :func:`~robgib.models.inference.prepare` made of it.
        data: estimated on test images; codes and components are fitted on training images, or, where the data have
            none, on every second test image (the rest is estimated on).
        estimators: specifications such as ``gaussian`` or ``binned:codes=8``, or estimator objects.
        layers: module names, or ``logits``; None takes every block's output and the logits.
        samples: most images to estimate on, and to fit on.
        features: how the input is cut (:func:`~robgib.information.features.group_inputs`), or ``auto``.
        feature_dims: principal components a feature.
        layer_dims: principal components of a layer, the same for every layer.
        unit_groups: groups of a layer's units, the features of S(Z;Y).
        beta: trade-off of the objectives IB and GIB.
        pmi: weigh each sample's pointwise terms by max(0, pmi(ŷ;y)).
        batch_size: images at once; None finds it.
        device: where the model is.
        seed: of every random number.
        catalogue: further folders of plug-ins.
        progress: called with (task, done, total, note).

    Raises:
        RobGIBError: an unknown name, a layer that cannot be watched, or samples that an estimator cannot use.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> found = layer_information(model, data, ["gaussian"], layers=["logits"], samples=200)
    >>> found.layers["term"].tolist()
    ['I(Z;Y)', 'I(X;Z)', 'C(X;Z)', 'S(X;Z)', 'S(Z;Y)', 'IB', 'GIB']
    """
    makers = make_estimators(estimators, data, samples, seed, catalogue)
    if features == "auto":
        features = default_features(data.shape)
    if not isinstance(model, Prepared):
        model = prepare(model, data.test.x, classes=len(data.classes), batch_size=batch_size, device=device)
    size = model.batch_size
    chosen = tuple(dict.fromkeys(layers)) if layers else default_layers(model.model, data.test.x[:2].to(device))
    parts, undecided = split_information(data, samples, seed), 0
    if makers:
        parts, undecided = _decided_parts(model, parts, size, device)
    held = [
        collect_activations(model.model, x, chosen, batch_size=size, device=device, progress=progress)
        for x, _ in (parts if makers else ())
    ]
    layer_rows: list[dict[str, Any]] = []
    feature_rows: list[dict[str, Any]] = []
    if makers:
        (x, y), (x_fit, y_fit) = parts
        inputs = group_inputs(features, x.numpy(), x_fit.numpy(), feature_dims)
        weights = pmi_weights(predict(model, x, batch_size=size, device=device), y.numpy()) if pmi else None
        total = len(makers) * len(chosen)
        ready: dict[str, PreparedFeatures] = {}
        for number, (estimator, layer) in enumerate((e, n) for e in makers for n in chosen):
            if progress:
                progress("estimating information", number, total, f"{estimator.name}, {layer}")
            try:
                if estimator.name not in ready:  # one at a time: nothing of the last estimator's is needed any more
                    ready = {estimator.name: estimator.prepare(inputs.values, inputs.fit)}
            except RobGIBError as error:
                raise RobGIBError(f"estimator {estimator.name!r}: {error}") from error
            rows, per_feature = _layer_terms(
                estimator, layer, inputs, ready[estimator.name], held[0][layer], held[1][layer], y.numpy(),
                y_fit.numpy(), layer_dims, unit_groups, beta, weights,
            )  # fmt: skip
            base = {"estimator": estimator.name, "layer": layer, "depth": chosen.index(layer)}
            layer_rows += [{**base, **row} for row in rows]
            feature_rows += [{**base, **row} for row in per_feature]
        if progress:
            progress("estimating information", total, total)
    return LayerInformation(
        table("layers", layer_rows),
        table("features", feature_rows),
        chosen,
        features,
        len(parts[0][0]),
        len(parts[1][0]),
        undecided,
    )


@dataclass(frozen=True)
class LayerInformation:
    """What :func:`layer_information` found.

    Attributes:
        layers: a row an estimator, layer and term (:data:`~robgib.results.SCHEMA`).
        features: a row an estimator, layer and feature of the input.
        names: the layers, in order.
        partition: how the input was cut into features.
        samples: images that were estimated on.
        fit_samples: images that codes and components were fitted on.
        undecided: images left out, since the model has no finite answer to them.
    """

    layers: pd.DataFrame
    features: pd.DataFrame
    names: tuple[str, ...]
    partition: str
    samples: int
    fit_samples: int
    undecided: int


def make_estimators(
    estimators: Sequence[str | Estimator], data: Dataset, samples: int, seed: int = 0, catalogue: Sequence[Path] = ()
) -> list[Estimator]:
    """Build estimators for a model's layers, and see that they can use the data.

    Raises:
        RobGIBError: an unknown name or option, an estimator that is given twice, or one that the data do not suit.
    """
    made = [e if isinstance(e, Estimator) else make_estimator(e, catalogue, noise=NOISE, seed=seed) for e in estimators]
    for estimator in made:
        estimator.check_inputs(len(data.test) if data.enumerated else None, samples)
    if len({e.name for e in made}) < len(made):
        raise RobGIBError("an estimator is given twice; name each one once.")
    return made


Part = tuple[Tensor, Tensor]


def _decided_parts(
    model: Prepared, parts: tuple[Part, Part], batch_size: int, device: torch.device | str
) -> tuple[tuple[Part, Part], int]:
    """The images (and labels) that the model has an answer to, and how many of the first part it has none to."""
    kept = [predict(model, x, batch_size=batch_size, device=device) >= 0 for x, _ in parts]
    ours, theirs = ((x[keep], y[keep]) for (x, y), keep in zip(parts, kept, strict=True))
    return (ours, theirs), int((~kept[0]).sum())


def default_features(shape: tuple[int, ...]) -> str:
    """How samples of this shape are cut where nothing else is said."""
    if len(shape) == 3:
        return f"patches:{min(4, *shape[1:])}"
    if len(shape) == 2:
        return f"tokens:{min(8, shape[0])}"
    return "pixels" if int(np.prod(shape)) <= 64 else "pca:16"


def _layer_terms(
    estimator: Estimator,
    layer: str,
    inputs: Features,
    prepared: PreparedFeatures,
    z: np.ndarray,
    z_fit: np.ndarray,
    y: np.ndarray,
    y_fit: np.ndarray,
    dims: int,
    groups: int,
    beta: float,
    weights: np.ndarray | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The terms of one layer by one estimator, and the features' part in them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobGIBWarning)  # what it says is in the notes, which are shown
            target, target_fit = estimator.of_layer(z, z_fit, dims)
            of_input = estimator.estimate(prepared, target, fit_target=target_fit, weights=weights)
            prediction = estimator.label_information(target, y, fit_representation=target_fit, weights=weights)
            units = estimator.of_units(z, z_fit, groups)
            of_label = estimator.estimate(units.values, y, fit_features=units.fit, fit_target=y_fit, weights=weights)
    except RobGIBError as error:
        raise RobGIBError(f"estimator {estimator.name!r} on layer {layer!r}: {error}") from error
    p, total, cost = prediction.total, of_input.total, of_input.complexity
    side = f"{inputs.resolution}; {of_input.resolution}"
    rows = [
        _row("I(Z;Y)", p, prediction, prediction.resolution),
        _row("I(X;Z)", total, of_input, side),
        _row("C(X;Z)", cost, of_input, side),
        _row("S(X;Z)", of_input.synergy, of_input, side),
        _row("S(Z;Y)", of_label.synergy, of_label, f"{units.resolution}; {of_label.resolution}"),
        _row("IB", _objective(ib_objective(p.value, total.value, beta), p, total, beta), of_input, side),
        _row("GIB", _objective(gib_objective(p.value, cost.value, beta), p, cost, beta / 2), of_input, side),
    ]
    features = [
        {
            "feature": feature,
            **{
                f"{key}{suffix}": getattr(estimate, part)
                for key, estimate in (("single", single), ("rest", rest), ("interaction", interaction))
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
        for feature, single, rest, interaction in zip(
            inputs.names, of_input.singles, of_input.rests, of_input.interaction, strict=True
        )
    ]
    return rows, features


def _objective(value: float, prediction: Estimate, cost: Estimate, weight: float) -> Estimate:
    """An objective's interval from its two terms', their errors taken as independent."""
    half = float(np.hypot((prediction.high - prediction.low) / 2, weight * (cost.high - cost.low) / 2))
    return Estimate(
        value,
        value - half,
        value + half,
        prediction.saturated or cost.saturated,
        prediction.note or cost.note,
    )


def _row(term: str, estimate: Estimate, source: Decomposition, resolution: str) -> dict[str, Any]:
    return {
        "term": term,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "saturated": estimate.saturated,
        "bound": source.bound,
        "resolution": resolution,
        "samples": source.samples,
        "note": "; ".join(source.notes),
    }
