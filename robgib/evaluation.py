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
    Answers,
    Attack,
    Outcome,
    Passes,
    Prepared,
    accuracy_curve,
    answers,
    attack_samples,
    check_decided,
    failure_signs,
    make_attack,
    predict,
    prepare,
    weaker_than_reference,
)
from robgib.corruptions import corruption_accuracy
from robgib.data import Dataset, load_data
from robgib.errors import NoGradientError, RobGIBError, RobGIBWarning, first_line
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
from robgib.models.inference import as_module
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
    model: object,
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
        model: maps images (N, C, H, W) in [0, 1] to logits (N, classes): a module, an exported program or any function.
            Its modes, parameters and device are left as they were. Where its output is something else (a dictionary,
            probabilities, one logit, half precision …) it is read as logits, and ``config["reading"]`` says how.
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
    net = as_module(model)
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

    for label, attack in named_attacks.items():
        try:
            attack.threat.check(int(np.prod(dataset.shape)))
        except RobGIBError as error:
            raise RobGIBError(f"attack {label!r}: {error}") from error

    home = next(iter(net.parameters()), torch.zeros(())).device
    net.to(where)
    try:
        count = len(dataset.test) if samples is None else min(samples, len(dataset.test))
        x, y = dataset.test.x[:count], dataset.test.y[:count]
        parts = _split_information(dataset, information_samples, seed)
        prepared = prepare(
            net, x, classes=len(dataset.classes), batch_size=batch_size, precision=precision, device=where
        )
        clean = answers(prepared, x, y, classes=len(dataset.classes), seed=seed, device=where)
        check_decided(clean)
        batch_size = prepared.batch_size
        chosen = tuple(dict.fromkeys(layers)) if layers else default_layers(prepared.model, x[:2].to(where))
        activations: list[dict[str, Any]] = []
        undecided = 0
        if makers and (clean.prediction < 0).any():
            decided = [predict(prepared, part[0], batch_size=batch_size, device=where) >= 0 for part in parts]
            undecided = int((~decided[0]).sum())
            parts = tuple((part[0][keep], part[1][keep]) for part, keep in zip(parts, decided, strict=True))  # type: ignore[assignment]
        if makers:
            for part in parts:
                activations.append(
                    capture(prepared.model, part[0], chosen, batch_size=batch_size, device=where, progress=progress)
                )
        config = {
            "source": dict(source or {"kind": "python"}),
            "weights": _weights_digest(net),
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
        reading = _reading(prepared)
        if undecided:
            reading.append(f"it has no answer to {undecided} of the images for information estimates: left out")
        if reading:
            config["reading"] = reading
        tables, left = _attack_all(prepared, x, y, clean, named_attacks, cascade, curve, seed, where, progress)
        if corruptions and x.ndim == 4:
            tables["corruptions"] = corruption_accuracy(
                prepared, x, y, seed=seed, batch_size=batch_size, device=where, progress=progress
            )
        else:
            tables["corruptions"] = pd.DataFrame(columns=CORRUPTION_COLUMNS)
        seen: list[dict[str, Any]] = []
        if signs:
            seen, beside = _signs(prepared, x, y, clean, named_attacks, left, seed, where, progress)
            _note(tables["robustness"], beside)
        layer_rows: list[dict[str, Any]] = []
        feature_rows: list[dict[str, Any]] = []
        if makers:
            inputs = group_inputs(features, parts[0][0].numpy(), parts[1][0].numpy(), feature_dims)
            weights = None
            if pmi:
                said = predict(prepared, parts[0][0], batch_size=batch_size, device=where)
                weights = pmi_weights(said, parts[0][1].numpy())
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
        net.to(home)
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

    def take(key: str, value: object) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().cpu()
            plain = plain.dequantize() if plain.is_quantized else plain
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple | list):  # packed weights of quantised modules
            for number, part in enumerate(value):
                take(f"{key}.{number}", part)
        else:
            sha.update(f"{key} {value!r}".encode())

    for key, value in sorted(model.state_dict().items()):
        take(key, value)
    return sha.hexdigest()


def _reading(model: Prepared) -> list[str]:
    """How the model is called and judged, where that is out of the ordinary; a sentence each."""
    told = list(model.notes)
    if model.random:
        told.append(f"it answers at random: accuracies are means over {model.draws} draws a sample")
    return told


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
    clean: Answers,
    attacks: Mapping[str, Attack],
    cascade: bool,
    curve: bool,
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The tables of all attacks, and by attack the shares (N,) of right answers that it left."""
    truth, count = y.numpy(), len(y)
    summary, outcome_tables, curves = [], [], []
    pictures: dict[str, np.ndarray] = {}
    standing: dict[tuple[str, float], list[Outcome]] = {}
    before: dict[tuple[str, float], Outcome] = {}
    left: dict[str, np.ndarray] = {}
    failures: list[Exception] = []
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
                model, x, y, attack, label=label, clean=Answers(known.prediction, known.right) if known else clean,
                seed=seed, device=device, pictures=_PICTURES, progress=progress,
            )  # fmt: skip
            if known:
                found = _after(known, found)
            seconds = time.perf_counter() - began
            if not curved:
                return found, [], found.distance, seconds
            points, distance = accuracy_curve(
                model, x, y, attack, found, label=label, clean=clean, seed=seed, device=device, progress=progress,
                attacked=known.right > 0 if known else None,
            )  # fmt: skip
            return found, points, distance, seconds

        attacked = _guarded(run, label)
        if isinstance(attacked, Exception):
            summary.append(_summary(base, clean, None, 0.0, str(attacked)))
            failures.append(attacked)
            continue
        outcome, points, nearest, seconds = attacked
        before[budget] = outcome
        left[label] = outcome.right
        summary.append(_summary(base, clean, outcome, seconds, "", nearest))
        standing.setdefault(budget, []).append(outcome)
        outcome_tables.append(
            pd.DataFrame(
                {
                    "index": np.arange(count),
                    "label": truth,
                    **base,
                    "clean_prediction": clean.prediction,
                    "adversarial_prediction": outcome.prediction,
                    "robust": (clean.right > 0) & (outcome.prediction == truth),
                    "right": outcome.right,
                    "right_8bit": outcome.right_8bit,
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
            pictures[f"{number}/clean_prediction"] = clean.prediction[rows]
            pictures[f"{number}/adversarial_prediction"] = outcome.prediction[rows]
    # Without gradients nothing is found out about robustness, but the signs say why, and what to do.
    if attacks and not outcome_tables and not all(isinstance(f, NoGradientError) for f in failures):
        raise RobGIBError(f"every attack failed; the first: {summary[0]['reason']}")
    for (norm, eps), outcomes in standing.items():
        if len(outcomes) > 1 and not cascade:
            base = {"attack": f"worst of {len(outcomes)}", "norm": norm, "eps": eps}
            worst = dataclasses.replace(
                outcomes[0],
                prediction=_worst_answer(outcomes),
                right=np.minimum.reduce([o.right for o in outcomes]),
                right_8bit=np.minimum.reduce([o.right_8bit for o in outcomes]),
                passes=Passes(),
                notes=(),
            )
            summary.append(_summary(base, clean, worst, 0.0, ""))
    columns = ["attack", "norm", "eps", "samples", "correct", "robust", "clean_accuracy", "clean_low", "clean_high",
               "robust_accuracy", "low", "high", "robust_accuracy_8bit", "undecided", "seconds", "forward", "backward",
               "median_distance", "status", "reason", "note"]  # fmt: skip
    if not summary:  # no attacks: the clean accuracy still stands
        nowhere = np.zeros(count)
        unharmed = Outcome(clean.prediction, clean.right, clean.right, nowhere, nowhere, nowhere, {}, Passes())
        summary = [_summary({"attack": "none", "norm": "", "eps": 0.0}, clean, unharmed, 0.0, "")]
    outcome_columns = ["index", "label", "attack", "norm", "eps", "clean_prediction", "adversarial_prediction",
                       "robust", "right", "right_8bit", "linf", "l2", "distance"]  # fmt: skip
    curve_columns = ["attack", "norm", "eps", "at", "right", "samples", "accuracy", "low", "high"]
    tables = {
        "robustness": pd.DataFrame(summary, columns=columns),
        "outcomes": pd.concat(outcome_tables, ignore_index=True)
        if outcome_tables
        else pd.DataFrame(columns=outcome_columns),
        "curve": pd.DataFrame(curves, columns=curve_columns),
        "pictures": pictures,
    }
    return tables, left


def _after(before: Outcome, found: Outcome) -> Outcome:
    """What two attacks of a cascade did together: samples that the first did more to keep what it found."""
    first = (before.right == 0) | (before.right < found.right)

    def kept(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.where(first, one, two)

    fields = ("prediction", "right", "right_8bit", "linf", "l2")
    return dataclasses.replace(
        found,
        **{name: kept(getattr(before, name), getattr(found, name)) for name in fields},  # type: ignore[arg-type]
        distance=np.where(before.right == 0, before.distance, np.minimum(before.distance, found.distance)),
        notes=tuple(dict.fromkeys((*before.notes, *found.notes))),
    )


def _worst_answer(outcomes: Sequence[Outcome]) -> np.ndarray:
    """For each sample the prediction (N,) of the attack that left the smallest share of right answers."""
    which = np.stack([o.right for o in outcomes]).argmin(0)
    return np.stack([o.prediction for o in outcomes])[which, np.arange(len(which))]


def _signs(
    model: Prepared,
    x: Tensor,
    y: Tensor,
    clean: Answers,
    attacks: Mapping[str, Attack],
    left: Mapping[str, np.ndarray],
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Checks for failed attacks, once a norm, at the largest eps of its attacks; and notes on attacks by name.

    At other eps an attack is only held against the checks' own. What goes wrong in a check takes nothing from the rest.
    """
    right = clean.right >= 0.5
    threats = {(a.threat.norm, a.threat.eps): a.threat for a in attacks.values()}
    widest = {norm: max(eps for n, eps in threats if n == norm) for norm, _ in threats}
    rows: list[dict[str, Any]] = []
    beside: dict[str, str] = {}
    for (norm, eps), threat in threats.items():
        here = {n: (attacks[n], left[n][right]) for n in left if attacks[n].threat == threat}
        try:
            if eps == widest[norm]:
                found = failure_signs(
                    model, x[right], y[right], threat, attacks=here, seed=seed, device=device, progress=progress
                )
                rows += [{"norm": norm, "eps": eps, **dataclasses.asdict(sign)} for sign in found]
            beside |= weaker_than_reference(model, x[right], y[right], threat, here, seed=seed, device=device)
        except (RuntimeError, RobGIBError) as error:
            told = f"{type(error).__name__}: {first_line(error)}"
            rows.append(
                {
                    "norm": norm,
                    "eps": eps,
                    "name": "checks did not end",
                    "seen": True,
                    "detail": told,
                    "meaning": "nothing is known of failed attacks under this threat model; the rest stands",
                }
            )
    return rows, beside


def _note(robustness: pd.DataFrame, beside: Mapping[str, str]) -> None:
    """Put notes on attacks beside their figures."""
    for label, told in beside.items():
        here = robustness["attack"] == label
        robustness.loc[here, "note"] = robustness.loc[here, "note"].map(lambda note, told=told: _joined(note, told))


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


_Attacked = tuple[Outcome, list[tuple[float, float]], np.ndarray, float]
"""An outcome, the points of its curve, the distances of the nearest images found on the way, and its seconds."""


def _guarded(run: Callable[[], _Attacked], label: str) -> _Attacked | Exception:
    """Run one attack; what it raises is the reason of its failure, in a sentence, and the others go on."""
    try:
        return run()
    except torch.OutOfMemoryError as error:
        raise RobGIBError("the device's memory does not suffice even for one image; use another --device.") from error
    except RobGIBError as error:
        return error
    except Exception as error:
        return RobGIBError(f"attack {label!r} raised {type(error).__name__}: {error}")


def _summary(
    base: dict[str, Any],
    clean: Answers,
    outcome: Outcome | None,
    seconds: float,
    reason: str,
    nearest: np.ndarray | None = None,
) -> dict[str, Any]:
    """A row of the robustness table; ``outcome`` is None where the attack failed."""
    count, correct = len(clean.right), _whole(clean.right.sum())
    clean_low, clean_high = clopper_pearson(correct, count)
    standing = np.nan if outcome is None else _whole(outcome.right.sum())
    low, high = (np.nan, np.nan) if outcome is None else clopper_pearson(standing, count)
    return {
        **base,
        "samples": count,
        "correct": correct,
        "robust": standing,
        "clean_accuracy": correct / count,
        "clean_low": clean_low,
        "clean_high": clean_high,
        "robust_accuracy": standing / count,
        "low": low,
        "high": high,
        "robust_accuracy_8bit": np.nan if outcome is None else float(outcome.right_8bit.mean()),
        "undecided": 0 if outcome is None else int((outcome.prediction < 0).sum()),
        "seconds": round(seconds, 3),
        "forward": outcome.passes.forward if outcome else 0,
        "backward": outcome.passes.backward if outcome else 0,
        "median_distance": float(np.median(nearest[clean.right > 0])) if nearest is not None and correct else np.nan,
        "status": "ok" if outcome else "failed",
        "reason": reason,
        "note": _joined(*outcome.notes) if outcome else "",
    }


def _whole(total: float) -> float:
    """A count; whole, but where shares of draws are summed."""
    return int(total) if float(total).is_integer() else float(total)


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
