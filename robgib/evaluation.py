"""One model: what attacks leave of its accuracy beside what its layers hold, joined in one record."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeInt
from torch import Tensor

from robgib.attacks.base import Attack
from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.errors import RobGIBError
from robgib.files import Parts, alone, digest, parts_in
from robgib.information.analysis import (
    DEFAULT_ESTIMATORS,
    SIGMA,
    layer_information,
    make_estimators,
    partitions_of,
    passes_of,
)
from robgib.information.base import Estimator
from robgib.models.adapt import as_module
from robgib.models.checkpoint import weights_digest
from robgib.models.inference import Prepared, answers, check_decided, prepare
from robgib.options import Count, NonNegative, Positive, Seed, checked_arguments
from robgib.results import SCHEMA_VERSION, Run
from robgib.robustness.chance import chance_doubts
from robgib.robustness.evaluate import DEFAULT_ATTACKS, check_budgets, in_cascade, named_attacks
from robgib.robustness.evaluate import evaluate as evaluate_robustness
from robgib.runtime import Progress, environment, progress_bars, resolve_device

__all__ = [
    "evaluate",
]

Codes = Annotated[int, Field(ge=2)]
TorchData = torch.utils.data.Dataset[Any] | torch.utils.data.DataLoader[Any]


@checked_arguments(
    "layers", "name", "data_root", "samples", "information_samples", "features", "feature_dims", "layer_dims", "codes",
    "sigma", "unit_groups", "beta", "pmi", "cascade", "curve", "signs", "corruptions", "save_adversarial",
    "until_width", "batch_size", "precision",
    "device", "seed", "catalogue", "source", "unfinished",
)  # fmt: skip
def evaluate(
    model: object,
    data: str | Dataset | tuple[ArrayLike | Tensor, ArrayLike | Tensor] | TorchData,
    *,
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack] = DEFAULT_ATTACKS,
    estimators: Sequence[str | Estimator] = DEFAULT_ESTIMATORS,
    layers: Sequence[str] | None = None,
    name: str = "model",
    data_root: str | Path | None = None,
    samples: Count | None = None,
    information_samples: Count | None = None,
    features: str | Sequence[str] = "auto",
    feature_dims: Count = 4,
    layer_dims: Count = 8,
    codes: Codes | None = None,
    sigma: Positive = SIGMA,
    unit_groups: NonNegativeInt = 0,
    beta: NonNegative = 1.0,
    pmi: bool = False,
    cascade: bool | None = None,
    curve: bool = True,
    signs: bool = True,
    corruptions: bool = True,
    certify: bool = False,
    save_adversarial: bool = False,
    until_width: Annotated[float, Field(gt=0, lt=1)] | None = None,
    batch_size: Count | None = None,
    precision: str = "float32",
    device: str | torch.device = "auto",
    seed: Seed = 0,
    catalogue: Sequence[Path] = (),
    source: Mapping[str, Any] | None = None,
    known: Callable[[str], Run | None] | None = None,
    save: Callable[[Run], object] | None = None,
    unfinished: Path | None = None,
    planned: Callable[[Mapping[str, float]], None] | None = None,
    progress: Progress | bool = True,
) -> Run:
    """Measure a classifier's adversarial robustness, and the information in its layers.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, classes): a module, an exported program or any function.
            Its modes, parameters and device are left as they were. Where its output is something else (a dictionary,
            probabilities, one logit, half precision …) it is read as logits, and ``config["reading"]`` says how.
        data: name of a data set, a :class:`~robgib.data.Dataset`, ``(images, labels)``
            (:meth:`~robgib.data.Dataset.from_arrays`), or a Dataset or DataLoader of torch. Attacks take the test
            images. Information is estimated on test images too; codes and components are fitted on training images, or,
            where the data have none, on every second test image (the rest is estimated on).
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, a mapping of labels to them, or a
            budget: ``quick``, ``standard`` (Auto-PGD, untargeted and targeted, in a cascade) or ``full`` (AutoAttack).
        estimators: specifications such as ``probe`` or ``imputation:donors=32``, or estimator objects.
        layers: module names, or ``logits``; None takes every block's output and the logits.
        name: what the model is called.
        data_root: folder of the data files.
        samples: test images to attack; None takes all.
        information_samples: most images on which information is estimated (and likewise fitted); None is 5,000, or
            ``samples`` where they are fewer, or as many as half a GiB holds.
        features: how the input is cut, one partition or several: ``patches:G``, ``pca:N``, ``pixels``, ``channels``,
            ``tokens:G`` or ``groups:G``; ``auto`` is ``patches:2`` and ``patches:4`` for images (``patches:2``
            alone above 64 pixels a side), ``tokens:4`` and
            ``tokens:8`` for sequences, ``pixels`` for vectors of up to 64 numbers, ``groups:4`` and ``groups:16`` for
            longer ones.
        feature_dims: principal components a feature, for estimators that see components; ``imputation`` sees all.
        layer_dims: principal components of a layer, the same for every layer.
        codes: symbols of a layer's code; None is four a class, 16 at least.
        sigma: noise in which the ``noise`` view sees a layer, in the layer's total standard deviation.
        unit_groups: groups of a layer's units, the features of S(Z;Y); 0 leaves it out.
        beta: trade-off of the objectives IB and GIB.
        pmi: weigh each sample's pointwise terms by 1[ŷ = y]·max(0, pmi(ŷ;y)), so that information counts where the
            prediction tells of the label.
        cascade: run the attacks of one norm and eps cheapest first, each on the samples that those before it left
            right. A robust accuracy is then what is left after that attack and all before it. None is as the budget
            does, and False for attacks that are listed.
        curve: also measure accuracy against eps around each attack's own; in a cascade by its cheapest attack.
        signs: also look for signs that the attacks failed (:func:`~robgib.robustness.failure_indicators`).
        corruptions: also measure accuracy under common corruptions (images only).
        certify: also look for samples that no attack can fool, by bounds on the network
            (:func:`~robgib.robustness.certify`): robust accuracy lies between their share and what the attacks left.
        save_adversarial: keep every adversarial image (:attr:`Run.adversarial`), for ``robgib verify``.
        until_width: attack no more samples than it takes until every budget's 95% interval is this narrow (0.02: two
            points), 100 at least; None attacks all of ``samples``.
        batch_size: images at once; None finds it. It is halved where memory does not suffice.
        precision: ``float32``, or ``bfloat16`` for the gradients of attacks; float32 decides who is fooled.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of every random number.
        catalogue: further folders of attacks and plug-ins.
        source: what to record about where the model came from.
        known: looks for a finished run by the digest of everything that was asked (``config["request"]``), such as
            :func:`~robgib.results.find_run` in a folder; what it gives is returned in the place of a new one.
        save: called with a new run, to write it.
        unfinished: folder in which every finished attack and estimate, and what a long attack has found so far, is kept
            until the run is saved: the same evaluation goes on from there after it was killed, to the same tables.
            Of two processes that ask for the same one waits for the other.
        planned: called before the work with about how many seconds its parts take at most on this machine, by name
            (``information``, ``attacks``, and ``beside`` for curve, signs and corruptions).
        progress: whether bars show in a terminal or a notebook; or called with (task, done, total, note).

    Returns:
        A :class:`~robgib.results.Run`, whose tables are pandas DataFrames.

    Raises:
        RobGIBError: input that cannot be used; the message says what and how to mend it.
    """
    net = as_module(model)
    where = resolve_device(device)
    dataset = _dataset(data, data_root, seed, catalogue)
    if information_samples is None:
        information_samples = _information_samples(dataset, samples)
    if layers is not None and not all(layers):
        raise RobGIBError("layers must be named by their modules; one of the names is empty.")
    # Everything that can be refused is refused before any work.
    cascade = in_cascade(attacks, cascade)
    named = named_attacks(attacks, dataset.eps, catalogue)
    check_budgets(named, dataset.shape)
    makers = make_estimators(estimators, dataset, information_samples, seed, catalogue, unit_groups)
    home = next(iter(net.parameters()), torch.zeros(())).device
    weights, content = weights_digest(net), dataset.digest
    request = digest(
        {
            "robgib": [version("robgib"), SCHEMA_VERSION, torch.__version__],
            "model": [weights, _code(net), dict(source or {})],
            "data": [dataset.name, content],
            "attacks": {label: [_describe(a), _code(a)] for label, a in named.items()},
            "estimators": [[_describe(e), _code(e)] for e in makers],
            "options": [
                layers, name, samples, information_samples, features, feature_dims, layer_dims, codes, sigma,
                unit_groups, beta, pmi, cascade, curve, signs, corruptions, certify, save_adversarial, until_width,
                precision, where.type, seed,
            ],
        }
    )  # fmt: skip
    with progress_bars(progress) as told, ExitStack() as stack:
        parts = Parts()
        if unfinished:
            place = unfinished / request[:32]
            stack.enter_context(alone(place, progress=told))
            parts = parts_in(place)
        former = known(request) if known else None  # of the process that was waited for
        if former is not None:
            parts.clear()  # of a process that was killed when all was written
            return former
        net.to(where)
        try:
            count = len(dataset.test) if samples is None else min(samples, len(dataset.test))
            x, y, classes = dataset.test.x[:count], dataset.test.y[:count], len(dataset.classes)
            prepared = prepare(net, x, classes=classes, batch_size=batch_size, precision=precision, device=where)
            outputs = _outputs(prepared, x[:2].to(where)) if dataset.by_name else classes
            if outputs > classes:
                raise RobGIBError(
                    f"the model tells {outputs} classes and {dataset.name} holds {classes}, numbered in the order "
                    "of their names: say which of the model's they are (--classes imagenet, or a file with a class a "
                    "line; in Python robgib.data.map_classes)."
                )
            began = time.perf_counter()
            clean = answers(prepared, x, y, classes=classes, seed=seed, device=where)
            check_decided(clean)
            if planned:
                forward = (time.perf_counter() - began) / max(1, count * prepared.draws)
                cuts = partitions_of(features, dataset.shape)
                planned(_plan(named, makers, dataset, cuts, information_samples, count, forward, corruptions))
            doubts = chance_doubts(prepared, x, y, clean.right, where)
            found = layer_information(
                prepared, dataset, makers, layers=layers, samples=information_samples, features=features,
                feature_dims=feature_dims, layer_dims=layer_dims, codes=codes, sigma=sigma, unit_groups=unit_groups,
                beta=beta, pmi=pmi, device=where, seed=seed, catalogue=catalogue, parts=parts, progress=told,
            )  # fmt: skip
            tables = evaluate_robustness(
                prepared, x, y, named, classes=classes, clean=clean, cascade=cascade, curve=curve, signs=signs,
                corruptions=corruptions, device=where, seed=seed, certify=certify, save_adversarial=save_adversarial,
                until_width=until_width, parts=parts,
                progress=told,
            )  # fmt: skip
        finally:
            net.to(home)
        count = int(tables["robustness"]["samples"].iloc[0])
        config = {
            "request": request,
            "source": dict(source or {"kind": "python"}),
            "weights": weights,
            "data": {"name": dataset.name, "digest": content, "classes": list(dataset.classes)},
            "samples": count,
            "attacks": {label: _describe(a) for label, a in named.items()},
            "cascade": cascade,
            "curve": curve,
            "estimators": {e.name: _describe(e) for e in makers},
            "information_samples": found.samples,
            "fit_samples": found.fit_samples,
            "layers": list(found.names),
            "features": {
                "input": list(found.partitions),
                "dims": feature_dims,
                "layer_dims": layer_dims,
                "codes": codes,
                "sigma": sigma,
                "groups": unit_groups,
            },
            "beta": beta,
            "pmi": pmi,
            "precision": precision,
            "seed": seed,
        }
        reading = [*doubts, *(source or {}).get("notes", ()), *_reading(prepared)]
        if found.undecided:
            reading.append(f"it has no answer to {found.undecided} of the images for information estimates: left out")
        if reading:
            config["reading"] = reading
        run = Run(
            name=name,
            config=config,
            environment=environment(where),
            layers=found.layers,
            features=found.features,
            **tables,
        )
        if save:
            try:
                save(run)
            except RobGIBError as error:
                if not unfinished:
                    raise
                kept = "what was measured is kept, and the same evaluation into another folder takes it from there"
                raise RobGIBError(f"{str(error).rstrip('.')}; {kept}.") from error
        parts.clear()
        return run


def _plan(
    attacks: Mapping[str, Attack],
    estimators: Sequence[Estimator],
    data: Dataset,
    partitions: Sequence[str],
    information_samples: int,
    count: int,
    forward: float,
    corruptions: bool,
) -> dict[str, float]:
    """Seconds at most of the parts of an evaluation, of the time that an image takes forward through the network."""
    attacked = sum(a.cost for a in attacks.values()) * 3 * count
    return {
        "information": forward * passes_of(estimators, data, partitions, information_samples),
        "attacks": forward * attacked,
        "beside": forward * (1.5 * attacked + (20 * count if corruptions else 0)),
    }


_INFORMATION = 5000
_LEAST_INFORMATION = 200  # below which no estimate would tell anything
_ROOM = 2**29  # bytes of images


def _information_samples(data: Dataset, samples: int | None) -> int:
    """How many images information is estimated on where nothing is said: as many as are attacked, and fit."""
    if data.enumerated:  # all that there are is what their information is counted of
        return max(_INFORMATION, len(data.test))
    fit = _ROOM // (4 * int(np.prod(data.shape)))
    asked = _INFORMATION if samples is None else samples
    return max(_LEAST_INFORMATION, min(_INFORMATION, asked, fit))


def _outputs(model: Prepared, x: Tensor) -> int:
    """How many classes a model tells."""
    with torch.no_grad():
        return int(model.model(x).shape[1])


def _code(thing: object) -> str:
    """Digest of the code that a class was written in; its shape as text for a network."""
    try:
        text = inspect.getsource(type(thing))
    except (OSError, TypeError):
        text = type(thing).__qualname__
    return digest([text, str(thing) if isinstance(thing, torch.nn.Module) else ""])


def _dataset(
    data: str | Dataset | tuple[ArrayLike | Tensor, ArrayLike | Tensor] | TorchData,
    root: str | Path | None,
    seed: int,
    catalogue: Sequence[Path],
) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str):
        return load_data(data, root, seed, catalogue=catalogue)
    if isinstance(data, tuple) and len(data) == 2:
        return Dataset.from_arrays(*data)
    if isinstance(data, torch.utils.data.Dataset | torch.utils.data.DataLoader):
        return Dataset.from_torch(data)
    raise RobGIBError(
        "data must be the name of a data set, a Dataset, a pair (images, labels), or a Dataset or DataLoader of torch."
    )


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
        if f.name not in ("norm", "eps")  # an attack's threat holds them
    }
    if isinstance(thing, Attack):
        fields["threat"] = dataclasses.asdict(thing.threat)
    return {
        "class": type(thing).__name__,
        **{k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()},
    }
