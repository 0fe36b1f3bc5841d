"""One model: attack it, capture its layers, estimate their information, and put it all in one record."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robgib.attacks import (
    Attack,
    Outcome,
    Passes,
    Prepared,
    ThreatModel,
    accuracy_curve,
    attack_samples,
    failure_signs,
    make_attack,
    predict,
    prepare,
)
from robgib.corruptions import corruption_accuracy
from robgib.data import Dataset, load_data
from robgib.errors import RobGIBError, RobGIBWarning
from robgib.information import (
    Decomposition,
    Estimate,
    Estimator,
    capture,
    default_layers,
    group_inputs,
    group_units,
    make_estimator,
    reduce,
    unit_slices,
)
from robgib.information.features import Features
from robgib.information.measures import gib_objective, ib_objective, pmi_weights
from robgib.statistics import clopper_pearson
from robgib.store import CORRUPTION_COLUMNS, SIGN_COLUMNS, Run, environment
from robgib.training import Progress, resolve_device

__all__ = ["DEFAULT_ATTACKS", "DEFAULT_ESTIMATORS", "TERMS", "evaluate"]

DEFAULT_ATTACKS = ("fgsm-linf", "pgd-linf", "pgd-l2")
DEFAULT_ESTIMATORS = ("gaussian", "binned")
TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "S(Z;Y)", "IB", "GIB")
"""Per layer: prediction, IB complexity, GIB complexity, input-side and label-side synergy, objectives."""

NOISE = 0.01
"""Variance of the noise at which real-valued estimators see a layer (its scores have variance 1)."""
_PICTURES = 6


def evaluate(
    model: nn.Module,
    data: str | Dataset | tuple[Tensor, Tensor],
    *,
    attacks: Sequence[str | Attack] | Mapping[str, Attack] = DEFAULT_ATTACKS,
    estimators: Sequence[str | Estimator] = DEFAULT_ESTIMATORS,
    layers: Sequence[str] | None = None,
    name: str = "model",
    data_root: str | Path | None = None,
    samples: int | None = None,
    information_samples: int = 5000,
    features: str = "auto",
    feature_dims: int = 4,
    layer_dims: int = 8,
    unit_groups: int = 8,
    beta: float = 1.0,
    pmi: bool = False,
    cascade: bool = False,
    curve: bool = True,
    signs: bool = True,
    corruptions: bool = True,
    batch_size: int | None = None,
    precision: str = "float32",
    device: str | torch.device = "auto",
    seed: int = 0,
    catalogue: Sequence[Path] = (),
    source: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Measure a classifier's adversarial robustness, and the information in its layers.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, classes). Its modes, parameters and device are
            left as they were.
        data: name of a data set, a :class:`~robgib.data.Dataset`, or ``(images, labels)``. Attacks take the
            test images. Information is estimated on test images too; codes and components are fitted on
            training images, or, where the data have none, on every second test image (the rest is estimated on).
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, or a mapping of labels to them.
        estimators: specifications such as ``gaussian`` or ``binned:codes=8``, or estimator objects.
        layers: module names, or ``logits``; None takes every block's output and the logits.
        name: what the model is called.
        data_root: folder of the data files.
        samples: test images to attack; None takes all.
        information_samples: most images on which information is estimated (and likewise fitted).
        features: how the input is cut: ``patches:G``, ``pca:N``, ``pixels``, ``channels`` or ``tokens:G``; ``auto`` is
            ``patches:4`` for images, ``tokens:8`` for sequences, ``pixels`` for vectors of up to 64 numbers and
            ``pca:16`` for longer ones.
        feature_dims: principal components a feature.
        layer_dims: principal components of a layer, the same for every layer.
        unit_groups: groups of a layer's units, the features of S(Z;Y).
        beta: trade-off of the objectives IB and GIB.
        pmi: weigh each sample's pointwise terms by max(0, pmi(ŷ;y)), so that information counts where the
            prediction tells of the label.
        cascade: run the attacks of one norm and eps cheapest first, each on the samples that those before it left
            right. A robust accuracy is then what is left after that attack and all before it.
        curve: also measure accuracy against eps around each attack's own (in a cascade, around the last one's).
        signs: also look for signs that the attacks failed (:func:`~robgib.attacks.failure_signs`).
        corruptions: also measure accuracy under common corruptions (images only).
        batch_size: images at once; None finds it. It is halved where memory does not suffice.
        precision: ``float32``, or ``bfloat16`` for the gradients of attacks; float32 decides who is fooled.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of every random number.
        catalogue: further folders of attacks and plug-ins.
        source: what to record about where the model came from.
        progress: called with (task, done, total, note).

    Returns:
        A :class:`~robgib.store.Run`, whose tables are pandas DataFrames.

    Raises:
        RobGIBError: input that cannot be used; the message says what and how to mend it.
    """
    if not isinstance(model, nn.Module):
        raise RobGIBError(f"the model must be a torch.nn.Module, not {type(model).__name__}.")
    where = resolve_device(device)
    dataset = _dataset(data, data_root, seed)
    for what, value in (
        ("samples", samples),
        ("information_samples", information_samples),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise RobGIBError(f"{what} must be at least 1, not {value}.")
    if not (np.isfinite(beta) and beta >= 0):
        raise RobGIBError(f"beta must be a finite number of at least 0, not {beta}.")
    named_attacks = _attacks(attacks, dataset, catalogue)
    makers = [
        e if isinstance(e, Estimator) else make_estimator(e, catalogue, noise=NOISE, seed=seed) for e in estimators
    ]
    if features == "auto":
        features = _default_features(dataset.shape)
    for estimator in makers:
        if estimator.raw and not (dataset.enumerated and information_samples >= len(dataset.test)):
            raise RobGIBError(
                f"the {estimator.name} estimator counts all inputs there are, such as those of function:parity-3 with "
                f"at least {len(dataset.test)} information samples; choose another estimator for {dataset.name!r}."
            )
    if len({e.name for e in makers}) < len(makers):
        raise RobGIBError("an estimator is given twice; name each one once.")

    home = next(iter(model.parameters()), torch.zeros(())).device
    model.to(where)
    try:
        count = len(dataset.test) if samples is None else min(samples, len(dataset.test))
        x, y = dataset.test.x[:count], dataset.test.y[:count]
        parts = _split_information(dataset, information_samples, seed)
        clean = predict(model, x, classes=len(dataset.classes), batch_size=batch_size or 64, device=where)
        prepared = prepare(model, x, batch_size=batch_size, precision=precision, device=where)
        batch_size = prepared.batch_size
        chosen = tuple(dict.fromkeys(layers)) if layers else default_layers(model, x[:2].to(where))
        activations: list[dict[str, Any]] = []
        if makers:
            for part in parts:
                activations.append(
                    capture(model, part[0], chosen, batch_size=batch_size, device=where, progress=progress)
                )
        config = {
            "source": dict(source or {"kind": "python"}),
            "weights": _weights_digest(model),
            "data": {"name": dataset.name, "digest": dataset.digest, "classes": list(dataset.classes)},
            "samples": count,
            "attacks": {label: _describe(a) for label, a in named_attacks.items()},
            "cascade": cascade,
            "curve": curve,
            "estimators": {e.name: _describe(e) for e in makers},
            "information_samples": len(parts[0][0]),
            "fit_samples": len(parts[1][0]),
            "layers": list(chosen),
            "features": {
                "input": features,
                "dims": feature_dims,
                "layer_dims": layer_dims,
                "groups": unit_groups,
            },
            "beta": beta,
            "pmi": pmi,
            "precision": precision,
            "seed": seed,
        }
        tables = _attack_all(prepared, x, y, clean, named_attacks, cascade, curve, seed, where, progress)
        if corruptions and x.ndim == 4:
            tables["corruptions"] = corruption_accuracy(
                model, x, y, seed=seed, batch_size=batch_size, device=where, progress=progress
            )
        else:
            tables["corruptions"] = pd.DataFrame(columns=CORRUPTION_COLUMNS)
        seen = _signs(model, x, y, clean, named_attacks, seed, where, progress) if signs else []
        layer_rows: list[dict[str, Any]] = []
        feature_rows: list[dict[str, Any]] = []
        if makers:
            inputs = group_inputs(features, parts[0][0].numpy(), parts[1][0].numpy(), feature_dims)
            weights = None
            if pmi:
                answers = predict(model, parts[0][0], batch_size=batch_size, device=where)
                weights = pmi_weights(answers, parts[0][1].numpy())
            total = len(makers) * len(chosen)
            for number, (estimator, layer) in enumerate((e, n) for e in makers for n in chosen):
                if progress:
                    progress("estimating information", number, total, f"{estimator.name}, {layer}")
                rows, per_feature = _layer_terms(
                    estimator,
                    layer,
                    inputs,
                    activations[0][layer],
                    activations[1][layer],
                    parts[0][1].numpy(),
                    parts[1][1].numpy(),
                    layer_dims,
                    unit_groups,
                    beta,
                    weights,
                )
                base = {"estimator": estimator.name, "layer": layer, "depth": chosen.index(layer)}
                layer_rows += [{**base, **row} for row in rows]
                feature_rows += [{**base, **row} for row in per_feature]
            if progress:
                progress("estimating information", total, total)
    finally:
        model.to(home)
    return Run(
        name=name,
        config=config,
        environment=environment(where),
        layers=pd.DataFrame(layer_rows, columns=_LAYER_COLUMNS),
        features=pd.DataFrame(feature_rows, columns=_FEATURE_COLUMNS),
        signs=pd.DataFrame(seen, columns=SIGN_COLUMNS),
        **tables,
    )


_LAYER_COLUMNS = [
    "estimator", "layer", "depth", "term", "value", "low", "high", "saturated", "bound", "resolution",
    "samples", "note",
]  # fmt: skip
_FEATURE_COLUMNS = [
    "estimator", "layer", "depth", "feature", "single", "single_low", "single_high", "rest", "rest_low", "rest_high",
    "interaction", "interaction_low", "interaction_high",
]  # fmt: skip


def _default_features(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return f"patches:{min(4, *shape[1:])}"
    if len(shape) == 2:
        return f"tokens:{min(8, shape[0])}"
    return "pixels" if int(np.prod(shape)) <= 64 else "pca:16"


def _dataset(data: str | Dataset | tuple[Tensor, Tensor], root: str | Path | None, seed: int) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str):
        return load_data(data, root, seed)
    if isinstance(data, tuple) and len(data) == 2:
        return Dataset.from_arrays(*data)
    raise RobGIBError("data must be the name of a data set, a Dataset, or a pair (images, labels).")


def _attacks(
    attacks: Sequence[str | Attack] | Mapping[str, Attack], data: Dataset, extra: Sequence[Path]
) -> dict[str, Attack]:
    if isinstance(attacks, Mapping):
        return dict(attacks)
    if isinstance(attacks, str):
        raise RobGIBError(f"attacks must be a sequence of specifications, as in [{attacks!r}].")
    named: dict[str, Attack] = {}
    for item in attacks:
        attack = item if isinstance(item, Attack) else make_attack(item, data.eps, extra)
        label = item if isinstance(item, str) else type(item).__name__.lower()
        if label in named:
            raise RobGIBError(f"attack {label!r} is given twice; name each one once.")
        named[label] = attack
    return named


def _split_information(data: Dataset, limit: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The samples to estimate on, and those to fit codes on: disjoint."""
    test, train = data.test, data.train
    if len(train):
        return (test.x[:limit], test.y[:limit]), (train.x[:limit], train.y[:limit])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(test)))
    ours, theirs = order[::2][:limit], order[1::2][:limit]
    return (test.x[ours], test.y[ours]), (test.x[theirs], test.y[theirs])


def _weights_digest(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _describe(thing: Attack | Estimator) -> dict[str, Any]:
    """Class and fields of an attack or estimator, for the record."""
    fields = {
        f.name: getattr(thing, f.name)
        for f in dataclasses.fields(thing)  # type: ignore[arg-type]
        if not f.name.startswith("_")
    }
    if isinstance(thing, Attack):
        fields["threat"] = dataclasses.asdict(thing.threat)
    return {
        "class": type(thing).__name__,
        **{k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()},
    }


def _attack_all(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: np.ndarray,
    attacks: Mapping[str, Attack],
    cascade: bool,
    curve: bool,
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> dict[str, Any]:
    truth, count = y.numpy(), len(y)
    right = clean == truth
    summary, outcome_tables, curves = [], [], []
    pictures: dict[str, np.ndarray] = {}
    standing: dict[tuple[str, float], list[np.ndarray]] = {}
    before: dict[tuple[str, float], Outcome] = {}
    order = list(attacks.items())
    if cascade:
        threats = list(dict.fromkeys(a.threat for _, a in order))
        order.sort(key=lambda item: (threats.index(item[1].threat), item[1].cost))
    for number, (label, attack) in enumerate(order):
        budget = (attack.threat.norm, attack.threat.eps)
        last = not cascade or all(a.threat != attack.threat for _, a in order[number + 1 :])
        base = {"attack": label, "norm": attack.threat.norm, "eps": attack.threat.eps}

        known = before.get(budget) if cascade else None

        def run(
            attack: Attack = attack,
            label: str = label,
            known: Outcome | None = known,
            curved: bool = curve and last,
        ) -> _Attacked:
            began = time.perf_counter()
            found = attack_samples(
                model, x, y, attack, label=label, clean=known.prediction if known else clean, seed=seed,
                device=device, pictures=_PICTURES, progress=progress,
            )  # fmt: skip
            if known:
                found = _after(known, found, truth)
            seconds = time.perf_counter() - began
            if not curved:
                return found, [], found.distance, seconds
            points, distance = accuracy_curve(
                model, x, y, attack, found, label=label, clean=clean, seed=seed, device=device, progress=progress
            )
            return found, points, distance, seconds

        attacked, reason = _guarded(run, label)
        if attacked is None:
            summary.append(_summary(base, right, np.zeros(count, bool), 0.0, reason))
            continue
        outcome, points, nearest, seconds = attacked
        before[budget] = outcome
        robust = right & (outcome.prediction == truth)
        summary.append(_summary(base, right, robust, seconds, "", outcome.passes, nearest))
        standing.setdefault(budget, []).append(robust)
        outcome_tables.append(
            pd.DataFrame(
                {
                    "index": np.arange(count),
                    "label": truth,
                    **base,
                    "clean_prediction": clean,
                    "adversarial_prediction": outcome.prediction,
                    "robust": robust,
                    "linf": outcome.linf,
                    "l2": outcome.l2,
                    "distance": nearest,
                }
            )
        )
        for eps, hits in points:
            low, high = clopper_pearson(hits, count)
            curves.append(
                {
                    **base,
                    "at": eps,
                    "right": hits,
                    "samples": count,
                    "accuracy": hits / count,
                    "low": low,
                    "high": high,
                }
            )
        rows = sorted(outcome.pictures)
        if rows:
            pictures[f"{number}/attack"] = np.array(label)
            pictures[f"{number}/rows"] = np.array(rows)
            pictures[f"{number}/clean"] = x[rows].numpy()
            pictures[f"{number}/adversarial"] = np.stack([outcome.pictures[r] for r in rows])
            pictures[f"{number}/labels"] = truth[rows]
            pictures[f"{number}/clean_prediction"] = clean[rows]
            pictures[f"{number}/adversarial_prediction"] = outcome.prediction[rows]
    if attacks and not outcome_tables:
        raise RobGIBError(f"every attack failed; the first: {summary[0]['reason']}")
    for (norm, eps), masks in standing.items():
        if len(masks) > 1 and not cascade:
            base = {"attack": f"worst of {len(masks)}", "norm": norm, "eps": eps}
            summary.append(_summary(base, right, np.logical_and.reduce(masks), 0.0, ""))
    columns = ["attack", "norm", "eps", "samples", "correct", "robust", "clean_accuracy", "clean_low", "clean_high",
               "robust_accuracy", "low", "high", "seconds", "forward", "backward", "median_distance", "status",
               "reason"]  # fmt: skip
    if not summary:  # no attacks: the clean accuracy still stands
        summary = [_summary({"attack": "none", "norm": "", "eps": 0.0}, right, right, 0.0, "")]
    outcome_columns = ["index", "label", "attack", "norm", "eps", "clean_prediction", "adversarial_prediction",
                       "robust", "linf", "l2", "distance"]  # fmt: skip
    curve_columns = ["attack", "norm", "eps", "at", "right", "samples", "accuracy", "low", "high"]
    return {
        "robustness": pd.DataFrame(summary, columns=columns),
        "outcomes": pd.concat(outcome_tables, ignore_index=True)
        if outcome_tables
        else pd.DataFrame(columns=outcome_columns),
        "curve": pd.DataFrame(curves, columns=curve_columns),
        "pictures": pictures,
    }


def _after(before: Outcome, found: Outcome, truth: np.ndarray) -> Outcome:
    """What two attacks of a cascade did together: samples that fell to the first keep what it found."""
    fell = before.prediction != truth

    def kept(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.where(fell, one, two)

    return dataclasses.replace(
        found,
        linf=kept(before.linf, found.linf),
        l2=kept(before.l2, found.l2),
        distance=np.where(fell, before.distance, np.minimum(before.distance, found.distance)),
    )


def _signs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    clean: np.ndarray,
    attacks: Mapping[str, Attack],
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Checks for failed attacks, once a norm, at the largest eps of its attacks."""
    right = torch.from_numpy(clean == y.numpy())
    threats: dict[str, ThreatModel] = {}
    for attack in attacks.values():
        known = threats.get(attack.threat.norm)
        if known is None or attack.threat.eps > known.eps:
            threats[attack.threat.norm] = attack.threat
    rows = []
    for threat in threats.values():
        found = failure_signs(model, x[right], y[right], threat, seed=seed, device=device, progress=progress)
        rows += [{"norm": threat.norm, "eps": threat.eps, **dataclasses.asdict(sign)} for sign in found]
    return rows


_Attacked = tuple[Outcome, list[tuple[float, int]], np.ndarray, float]
"""An outcome, the points of its curve, the distances of the nearest images found on the way, and its seconds."""


def _guarded(run: Callable[[], _Attacked], label: str) -> tuple[_Attacked | None, str]:
    """Run one attack; what it raises becomes the reason of its failure, and the others go on."""
    try:
        return run(), ""
    except torch.OutOfMemoryError as error:
        raise RobGIBError("the device's memory does not suffice even for one image; use another --device.") from error
    except RobGIBError as error:
        return None, str(error)
    except Exception as error:
        return None, f"attack {label!r} raised {type(error).__name__}: {error}"


def _summary(
    base: dict[str, Any],
    right: np.ndarray,
    robust: np.ndarray,
    seconds: float,
    reason: str,
    passes: Passes | None = None,
    nearest: np.ndarray | None = None,
) -> dict[str, Any]:
    count, correct, standing = len(right), int(right.sum()), int(robust.sum())
    clean_low, clean_high = clopper_pearson(correct, count)
    low, high = clopper_pearson(standing, count)
    failed = bool(reason)
    return {
        **base,
        "samples": count,
        "correct": correct,
        "robust": np.nan if failed else standing,
        "clean_accuracy": correct / count,
        "clean_low": clean_low,
        "clean_high": clean_high,
        "robust_accuracy": np.nan if failed else standing / count,
        "low": np.nan if failed else low,
        "high": np.nan if failed else high,
        "seconds": round(seconds, 3),
        "forward": passes.forward if passes else 0,
        "backward": passes.backward if passes else 0,
        "median_distance": float(np.median(nearest[right])) if nearest is not None and correct else np.nan,
        "status": "failed" if failed else "ok",
        "reason": reason,
    }


def _layer_terms(
    estimator: Estimator,
    layer: str,
    inputs: Features,
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
            flat, flat_fit = z.reshape(len(z), -1), z_fit.reshape(len(z_fit), -1)
            target, target_fit = (flat, flat_fit) if estimator.raw else reduce(z, z_fit, dims)
            of_input = estimator.estimate(
                inputs.values, target, fit_features=inputs.fit, fit_target=target_fit, weights=weights
            )
            prediction = estimator.label_information(target, y, fit_representation=target_fit, weights=weights)
            units = unit_slices(flat, groups) if estimator.raw else group_units(z, z_fit, groups)
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
