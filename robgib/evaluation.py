"""Evaluate one model: robust accuracy and the information in its layers, in one record."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from robgib.attacks.base import Attack, check_aim
from robgib.attacks.carried import carry
from robgib.attacks.registry import NamedAttack
from robgib.attacks.threat_model import NORMS
from robgib.attacks.transfer import Transfer
from robgib.data.conditions import read_masks, read_targets
from robgib.data.dataset import Dataset
from robgib.data.lazy import LazyImages, in_memory
from robgib.data.loaders import load_data
from robgib.engines import engine_of, workers_of
from robgib.errors import RobGIBError, RobGIBWarning, never_ends
from robgib.files import Parts, alone, digest, parts_in
from robgib.information.activations import check_layers
from robgib.information.analysis import (
    check_suited,
    check_used,
    layer_information,
    named_estimators,
    partitions_of,
    passes_of,
)
from robgib.information.base import Estimator
from robgib.information.features import check_features
from robgib.models.adapt import as_module
from robgib.models.checkpoint import weights_digest
from robgib.models.inference import PreparedModel, answers, check_finite_answers, one_thread_measures, outputs, prepare
from robgib.models.state import Settings
from robgib.options import (
    AttackOptions,
    Context,
    EngineOptions,
    InformationOptions,
    check,
    gather,
    or_default,
    plain_options,
)
from robgib.results import SCHEMA_VERSION, Run
from robgib.robustness.attacking import SHARES, Subject, attack_costs, curves_afforded
from robgib.robustness.audit import audit_wanted, without_audit
from robgib.robustness.beside import corrupted_samples
from robgib.robustness.chance import reading_warnings
from robgib.robustness.evaluate import (
    BUDGETS,
    check_budgets,
    given_eps,
    in_cascade,
    measure,
    read_attacks,
    threat_models,
    under_budgets,
)
from robgib.robustness.gradient_check import GRADIENT_IMAGES, GRADIENT_PASSES
from robgib.robustness.random_points import check_random_points
from robgib.runtime import (
    Progress,
    environment,
    first_device,
    installed_version,
    progress_bars,
    resolve_device,
)

__all__ = [
    "PlannedPart",
    "Record",
    "evaluate",
]

TorchData = torch.utils.data.Dataset[Any] | torch.utils.data.DataLoader[Any]


@dataclass(frozen=True)
class PlannedPart:
    """A part of an evaluation before it runs.

    Attributes:
        name: what is measured.
        passes: upper estimate of its forward passes; a backward pass counts as two.
        seconds: the same in seconds on this machine, from the time of one image's forward pass.
        switch: the command-line option that leaves it out, or reduces it.
    """

    name: str
    passes: int
    seconds: float
    switch: str


@dataclass(frozen=True)
class Record:
    """How a run is recorded, looked up and resumed.

    Attributes:
        source: where the model came from, for the record.
        known: looks up a finished run by the digest of everything that determines it (``config["request"]``), such as
            :func:`~robgib.results.find_run` in a folder. A run that it returns replaces a new evaluation.
        save: called with a new run, to write it.
        unfinished: folder that keeps every finished attack and estimate, and the partial results of a long attack,
            until the run is saved. After an interruption the same evaluation continues from there and gives the same
            tables. If two processes have the same request, one waits for the other.
        planned: called before the work with its parts (:class:`PlannedPart`), in the order of the work.
    """

    source: Mapping[str, Any] | None = None
    known: Callable[[str], Run | None] | None = None
    save: Callable[[Run], object] | None = None
    unfinished: Path | None = None
    planned: Callable[[Sequence[PlannedPart]], None] | None = None

    def __post_init__(self) -> None:
        check(self, "")


@never_ends
def evaluate(
    model: object,
    data: str | Dataset | tuple[ArrayLike | Tensor, ArrayLike | Tensor] | TorchData,
    *,
    attacks: str | Sequence[str | Attack] | Mapping[str, Attack] | None = None,
    estimators: Sequence[str | Estimator] | None = None,
    name: str = "model",
    attack: AttackOptions | None = None,
    information: InformationOptions | None = None,
    context: Context | None = None,
    record: Record | None = None,
    progress: Progress | bool = True,
    **fields: Any,
) -> Run:
    """Measure a classifier's adversarial robustness, and the information in its layers.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, classes): a module, an exported program or any function.
            Its modes, parameters and device are restored afterwards. Other outputs (a dictionary, several tensors,
            probabilities, one logit, half precision …) are read as logits; ``config["reading"]`` describes how. A model
            that changes its buffers in a call gets a copy of them for each call; this is noted there, too. Threads of
            one process wait for each other, so that their counts, notes and random numbers do not mix.
        data: name of a data set, a :class:`~robgib.data.Dataset`, ``(images, labels)``
            (:meth:`~robgib.data.Dataset.from_arrays`), or a Dataset or DataLoader of torch. Attacks use the test
            images. Information is estimated on test images, too; codes and components are fitted on training images. If
            there are none, they are fitted on every second test image, and information is estimated on the others.
        attacks: specifications such as ``pgd-linf:eps=8/255``, attack objects, a mapping of labels to them, or a
            budget: ``quick`` (FGSM and PGD), ``standard`` (Auto-PGD and the fast ensemble, in a cascade, audited by
            AutoAttack on a random sample) or ``full`` (AutoAttack). ``norm`` and ``eps``, such as ``norm="linf",
            eps="8/255"``, choose the threat model, and ``norm=["linf", "l2"]`` several.
        estimators: specifications such as ``probe`` or ``imputation:donors=32``, or estimator objects; an empty list
            omits information.
        name: name of the model in the results.
        attack: which attacks and further measurements to run (:class:`~robgib.options.AttackOptions`).
        information: what to estimate in the layers (:class:`~robgib.options.InformationOptions`).
        context: seed, device, batch size, folders (:class:`~robgib.options.Context`).
        record: how the run is recorded, looked up and resumed.
        progress: whether to show bars in a terminal or a notebook; or a function of (task, done, total, note).
        fields: fields of these four objects by name, such as ``samples=500``, ``layers=["logits"]`` or ``seed=1``; and
            of :class:`~robgib.options.EngineOptions`, which let several processes, devices or machines share the
            attacks, such as ``jobs=4`` or ``engine="ray"``.

    Samples are drawn with ``seed``, stratified by class (:meth:`~robgib.data.Split.rows`); ``config["drawn"]`` lists
    their rows. Named data sets are shuffled on loading, so their first samples are used. Indicators, corruptions and
    ``until_width`` use the first of the drawn samples.

    Returns:
        A :class:`~robgib.results.Run`, whose tables are pandas DataFrames.

    Raises:
        RobGIBError: unusable input; the message names the problem and the remedy.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> run = evaluate(model, data, attacks=["fgsm-linf"], estimators=[], samples=32, corruptions=False, signs=False)
    >>> int(run.robustness["samples"].item())
    32
    """
    attack, information, context, record, sharing = gather(
        "evaluate",
        fields,
        or_default("attack", attack, AttackOptions()),
        or_default("information", information, InformationOptions()),
        or_default("context", context, Context()),
        or_default("record", record, Record()),
        EngineOptions(),
    )
    engine = engine_of(sharing.engine, sharing.jobs, context.device, sharing.address)
    context = replace(context, device=first_device(context.device))
    if attacks is not None:
        attack = replace(attack, attacks=attacks)
    if estimators is not None:
        information = replace(information, estimators=estimators)
    if not isinstance(name, str) or not name:
        raise RobGIBError(f"name must be text, such as 'model', not {name!r}.")
    work = _work(model, data, name, attack, information, context, record)
    with progress_bars(progress) as bars, ExitStack() as stack:
        stack.enter_context(one_thread_measures())
        parts = Parts()
        if record.unfinished:
            place = record.unfinished / work.request[:32]
            stack.enter_context(alone(place, progress=bars))
            parts = parts_in(place)
        former = record.known(work.request) if record.known else None  # possibly of the process that was waited for
        if former is not None:
            parts.clear()  # left by a process that was killed after it had saved the run
            return former
        workers = stack.enter_context(workers_of(engine))
        run = _measure(work, replace(work.context, parts=parts, progress=bars, workers=workers))
        _save(run, record)
        parts.clear()
        return run


@dataclass(frozen=True)
class _Work:
    """An evaluation to run, with all its input checked."""

    net: torch.nn.Module
    data: Dataset
    name: str
    attacks: Mapping[str, Attack]
    estimators: Sequence[Estimator]
    attack: AttackOptions
    information: InformationOptions
    context: Context
    record: Record
    weights: str
    conditions: Mapping[str, Tensor]
    source: Mapping[str, Any]

    @functools.cached_property
    def request(self) -> str:
        """Digest of everything that determines the result."""
        data = self.data
        return digest(
            {
                "robgib": [installed_version("robgib"), SCHEMA_VERSION, torch.__version__],
                "model": [self.name, self.weights, _code(self.net), self.source],
                "data": [data.name, data.digest, data.test.shuffled, data.train.shuffled],
                "code": [_code(thing) for thing in (*self.attacks.values(), *self.estimators)],
                "options": self.options,
                "device": torch.device(self.context.device).type,
            }
        )

    @property
    def options(self) -> dict[str, Any]:
        """Every option that determines the result, for the record of the run."""
        surrogate = next((a.surrogate for a in self.attacks.values() if isinstance(a, Transfer)), None)
        by_content: dict[str, Any] = {
            name: digest(values.numpy().tobytes()) for name, values in self.conditions.items()
        }
        by_content |= {} if surrogate is None else {"transfer_from": weights_digest(surrogate)}
        attack, information = plain_options(replace(self.attack, **by_content)), plain_options(self.information)
        return {
            "attack": {**attack, "attacks": {label: _describe(a) for label, a in self.attacks.items()}},
            "information": {**information, "estimators": {e.name: _describe(e) for e in self.estimators}},
            "context": {"seed": self.context.seed},
        }


def _work(
    model: object,
    data: str | Dataset | tuple[ArrayLike | Tensor, ArrayLike | Tensor] | TorchData,
    name: str,
    attack: AttackOptions,
    information: InformationOptions,
    context: Context,
    record: Record,
) -> _Work:
    """Check the input of an evaluation.

    Raises:
        RobGIBError: input that cannot be used.
    """
    net = as_module(model)
    context = replace(context, device=resolve_device(context.device))
    # Check names before reading images, which can take long.
    attacks = _read_attacks(attack, context)
    estimators = named_estimators(information.estimators, context.seed, context.catalogue)
    check_used(estimators, information)
    _check_layers(net, information.layers)
    samples = information.information_samples
    most = samples or max(_LEAST_INFORMATION, min(_INFORMATION, attack.samples or 0))  # as many images will do
    most = most if len(information.estimators) else 0
    dataset = _dataset(data, context.data_root, context.seed, context.catalogue, attack.samples, most)
    if samples is None:
        samples = _information_samples(dataset, attack.samples)
    attack = replace(attack, cascade=in_cascade(attack.attacks, attack.cascade))
    conditions = _conditions(dataset, attack, context.seed)
    named = _fitted_attacks(attacks, attack, dataset, conditions)
    check_suited(estimators, dataset, samples)
    for cut in partitions_of(information.features, dataset.shape) if estimators else ():
        check_features(cut, dataset.shape)
    return _Work(
        net,
        dataset,
        name,
        named,
        estimators,
        without_audit(attack) if "targets" in conditions or attack.transfer_from is not None else attack,
        replace(information, information_samples=samples),
        context,
        record,
        weights_digest(net),
        conditions,
        dict(record.source or {}),
    )


def _read_attacks(attack: AttackOptions, context: Context) -> dict[str, Attack | NamedAttack]:
    """Return the attacks by label, before the data are known; with targets, those that reach them replace a budget."""
    if isinstance(attack.transfer_from, str):
        raise RobGIBError("transfer_from must be the surrogate itself: robgib.load_model(name)[0].")
    given = attack.attacks
    if attack.targets is not None and isinstance(given, str) and given in BUDGETS:
        given = [f"{stem}-{norm}" for norm, _ in threat_models(attack.norm, attack.eps) for stem in _AIMING]
    return read_attacks(given, context.catalogue, norm=attack.norm, eps=attack.eps)


def _fitted_attacks(
    attacks: Mapping[str, Attack | NamedAttack],
    attack: AttackOptions,
    data: Dataset,
    conditions: Mapping[str, Tensor],
) -> dict[str, Attack]:
    """Return the attacks under the budgets of the data, from the surrogate if there is one.

    Raises:
        RobGIBError: an attack does not fit the images or the targets, or has no ball for random points.
    """
    named = under_budgets(attacks, {**data.eps, **given_eps(attack.norm, attack.eps)})
    check_budgets(named, data.shape)
    if attack.random_points is not None:
        check_random_points(one.threat for one in named.values())
    if attack.transfer_from is not None:
        named = {label: Transfer.of(one, attack.transfer_from) for label, one in named.items()}
    for label, one in named.items():
        check_aim(one, carry(torch.zeros(1), **conditions), label)
    return named


_AIMING = ("apgd-ce", "pgd", "square")
"""Attacks that reach given targets, in place of the budgets."""


def _conditions(data: Dataset, attack: AttackOptions, seed: int) -> dict[str, Tensor]:
    """Return the masks and targets of the samples that will be attacked, by name."""
    rows = data.test.rows(attack.samples, seed)
    conditions = {}
    if attack.mask is not None:
        images: Any = data.test.x
        names = images[rows].names() if isinstance(images, LazyImages) else None
        conditions["mask"] = read_masks(attack.mask, data.shape, len(data.test), rows, names)
    if attack.targets is not None:
        labels = data.test.y[torch.from_numpy(rows)]
        conditions["targets"] = read_targets(attack.targets, labels, len(data.test), rows, len(data.classes))
    return conditions


def _measure(work: _Work, context: Context) -> Run:
    """Run the evaluation on the device, and move the networks back afterwards."""
    nets = [work.net, *(a.surrogate for a in work.attacks.values() if isinstance(a, Transfer))]
    homes = [next(iter(net.parameters()), torch.zeros(())).device for net in nets]
    for net in nets:
        net.to(context.device)
    before = Settings()
    try:
        return _measured(work, context)
    finally:
        for net, home in zip(nets, homes, strict=True):
            net.to(home)
        changed = before.changed()  # by a model that does so later than in its first calls, or by a plug-in
        before.restore()
        if changed:
            warnings.warn(
                f"{work.name}: settings of the process were changed ({', '.join(changed)}): they are restored.",
                RobGIBWarning,
                stacklevel=3,
            )


def _measured(work: _Work, context: Context) -> Run:
    attack, information, dataset, where = work.attack, work.information, work.data, context.device
    drawn = dataset.test.rows(attack.samples, context.seed)
    (x, y), count, classes = dataset.test.at(drawn), len(drawn), len(dataset.classes)
    prepared = prepare(
        work.net, x, classes=classes, batch_size=context.batch_size, precision=attack.precision, device=where
    )
    _check_classes(prepared, x[:2].to(where), dataset)
    began = time.perf_counter()
    clean = answers(prepared, x, y, classes=classes, seed=context.seed, device=where)
    check_finite_answers(clean)
    forward = (time.perf_counter() - began) / max(1, count * prepared.draws)
    costs = attack_costs(prepared, x, y, clean, work.attacks, context)
    if work.record.planned:
        work.record.planned(_plan(work, costs, count, forward))
    options = work.source.get("kind") not in _WITHOUT_OPTIONS
    own = bool(work.source.get("trained")) and "data" not in work.source  # read in training as now
    cautions = reading_warnings(prepared, x, y, clean.right, where, options=options, alternatives=not own)
    for caution in cautions:
        if caution.explained:  # a reason to stop: the network is probably read in a wrong way
            warnings.warn(f"{work.name}: {caution.text}", RobGIBWarning, stacklevel=2)
    assert information.information_samples is not None
    estimates = layer_information(
        prepared,
        dataset,
        work.estimators,
        samples=information.information_samples,
        options=information,
        context=context,
    )
    images = carry(in_memory(x)[:], **work.conditions) if work.conditions else x
    tables = measure(Subject(prepared, images, y, clean, work.attacks, costs, attack, context))
    count = int(tables["robustness"]["samples"].iloc[0])
    _number_as_given(tables, drawn)
    recorded = work.options
    recorded["attack"]["attacks"] |= tables.pop("further")
    reading = [*work.source.get("notes", ()), *_reading(prepared), *_missing(dataset, y[:count])]
    if estimates.not_finite:
        reading.append(f"{estimates.not_finite} images without a finite answer are excluded from information estimates")
    reading += estimates.left_out
    config = {
        "request": work.request,
        "source": dict(work.source or {"kind": "python"}),
        "weights": work.weights,
        "data": {"name": dataset.name, "digest": dataset.digest, "classes": list(dataset.classes)},
        "samples": count,
        "drawn": None if dataset.test.shuffled else drawn[:count].tolist(),
        "options": recorded,
        "information_samples": estimates.samples,
        "fit_samples": estimates.fit_samples,
        "layers": list(estimates.names),
        "partitions": list(estimates.partitions),
        **({"reading": reading} if reading else {}),
        **({"reading_warnings": [caution.text for caution in cautions]} if cautions else {}),
    }
    return Run(
        name=work.name,
        config=config,
        environment=environment(where),
        layers=estimates.layers,
        features=estimates.features,
        **tables,
    )


def _save(run: Run, record: Record) -> None:
    if not record.save:
        return
    try:
        record.save(run)
    except RobGIBError as error:
        if not record.unfinished:
            raise
        kept = "the measurements are kept, and the same evaluation into another folder reuses them"
        raise RobGIBError(f"{str(error).rstrip('.')}; {kept}.") from error


def _check_classes(model: PreparedModel, x: Tensor, data: Dataset) -> None:
    """Raise if the model has more classes than the folders, which are numbered in the order of their names."""
    classes = len(data.classes)
    count = outputs(model, x, device=x.device) if data.by_name else classes
    if count > classes:
        raise RobGIBError(
            f"the model has {count} classes, but {data.name} has {classes}, numbered in the order of their names; "
            "map them to the model's classes with --classes imagenet or --classes FILE (one class per line), or with "
            "robgib.data.map_classes in Python."
        )


def _plan(work: _Work, costs: Mapping[str, int], count: int, forward: float) -> list[PlannedPart]:
    """Return the parts of an evaluation that will run, with upper estimates from the time of one forward pass."""
    options = work.attack
    samples = work.information.information_samples
    assert samples is not None
    cuts = partitions_of(work.information.features, work.data.shape)
    passes = {"information": (passes_of(work.estimators, work.data, cuts, samples), "--no-information")}
    if work.attacks:
        each = {label: 3 * cost * count for label, cost in costs.items()}
        attacked = sum(each.values())
        budgets = dict.fromkeys(attack.threat for attack in work.attacks.values())
        audited = {
            threat: sum(each[label] for label, a in work.attacks.items() if a.threat == threat)
            for threat in budgets
            if audit_wanted([a for a in work.attacks.values() if a.threat == threat], options.audit)
        }
        check = GRADIENT_PASSES * min(count, GRADIENT_IMAGES) * (options.signs is not False)
        half = max(0, (attacked + sum(audited.values())) // 2 - check)
        curves, corrupted = _curves_and_corruptions(work, count, half)
        points = (options.random_points or 0) * count * sum(threat.norm in NORMS for threat in budgets)
        passes |= {
            "gradient check": (check, "--no-signs"),
            "attacks": (attacked, "--quick" if options.attacks in ("standard", "full") else "--samples"),
            "audit by AutoAttack": (sum(audited.values()), "--no-audit"),
            "attack-failure indicators": (_share_of(half, "signs", options.signs), "--no-signs"),
            "curve against eps": (curves, "--no-curve"),
            "common corruptions": (corrupted, "--no-corruptions"),
            "random points": (points, "--random-points"),
        }
    return [PlannedPart(name, int(n), forward * n, switch) for name, (n, switch) in passes.items() if n]


def _curves_and_corruptions(work: _Work, count: int, half: int) -> tuple[int, int]:
    """Return the passes of the curves and of the corruptions; 0 for what is left out as they do not suffice for it."""
    options = work.attack
    curves, corrupted = (_share_of(half, what, getattr(options, what)) for what in ("curve", "corruptions"))
    if not (options.curve or curves_afforded(work.attacks, bool(options.cascade), count, curves)):
        curves = 0
    asked = options.corruptions or options.all_corruptions or options.corruptions_from is not None
    if len(work.data.shape) != 3 or not (asked or corrupted_samples(count, corrupted)):
        corrupted = 0
    return curves, corrupted


def _share_of(half: int, what: str, wanted: bool | None) -> int:
    """Return the passes that a measurement beside the attacks takes by default, of ``half`` of theirs."""
    return 0 if wanted is False else int(SHARES[what] * half)


def _check_layers(model: torch.nn.Module, layers: Sequence[str] | None) -> None:
    """Raise if a layer is unknown."""
    if layers is not None and not all(layers):
        raise RobGIBError("layers must be names of modules, but one name is empty.")
    check_layers(model, layers or ())


def _number_as_given(tables: dict[str, Any], drawn: np.ndarray) -> None:
    """Number the samples in tables and pictures as the data do; ``drawn`` (n,) holds the rows that were attacked."""
    outcomes = tables["outcomes"]
    tables["outcomes"] = outcomes.assign(index=drawn[outcomes["index"].to_numpy(dtype=np.int64)])
    corrupted = tables["corrupted"]
    own = ~corrupted["from_file"].astype(bool)
    corrupted.loc[own, "index"] = drawn[corrupted.loc[own, "index"].to_numpy(dtype=np.int64)]
    for key in [k for k in tables["pictures"] if k.endswith("/rows")]:
        tables["pictures"][key] = drawn[tables["pictures"][key]]


_WITHOUT_OPTIONS = ("zoo", "robustbench")
"""Kinds of models whose normalisation is their own: the command line refuses another one."""
_NAMED = 10  # classes in a sentence


def _missing(data: Dataset, drawn: Tensor) -> list[str]:
    """A sentence on the classes of the test images that are missing among the drawn labels (n,), or none."""
    every = sorted(set(data.test.y.tolist()))
    missing = [data.classes[k] for k in sorted(set(every) - set(drawn.tolist()))]
    if not missing:
        return []
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return [
        f"{len(missing)} of the {len(every)} classes are missing among the {len(drawn)} drawn images: "
        f"{', '.join(missing[:_NAMED])}{more}"
    ]


_INFORMATION = 5000
_LEAST_INFORMATION = 200  # with fewer, every estimate is useless
_ROOM = 2**29  # bytes of images


def _information_samples(data: Dataset, samples: int | None) -> int:
    """Default number of images for information: as many as are attacked and fit into memory."""
    if data.enumerated:  # exact counts need all inputs
        return max(_INFORMATION, len(data.test))
    fit = _ROOM // (4 * int(np.prod(data.shape)))
    attacked = _INFORMATION if samples is None else samples
    return max(_LEAST_INFORMATION, min(_INFORMATION, attacked, fit))


def _code(thing: object) -> str:
    """Digest of a class's source code; for a network, also of its structure as text."""
    code: Any = getattr(thing, "code", None) or type(thing)
    try:
        text = _source(code)
    except (OSError, TypeError):
        text = type(thing).__qualname__
    return digest([text, str(thing) if isinstance(thing, torch.nn.Module) else ""])


@functools.lru_cache(maxsize=256)  # finding a class parses its whole file
def _source(code: Any) -> str:
    return inspect.getsource(code)


def _dataset(
    data: str | Dataset | tuple[ArrayLike | Tensor, ArrayLike | Tensor] | TorchData,
    root: str | Path | None,
    seed: int,
    catalogue: Sequence[Path],
    samples: int | None,
    information: int,
) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str):
        return load_data(data, root, seed, catalogue=catalogue, lazy=True)
    if isinstance(data, tuple) and len(data) == 2:
        return Dataset.from_arrays(*data)
    if isinstance(data, torch.utils.data.Dataset | torch.utils.data.DataLoader):
        return Dataset.from_torch(data, most=samples, seed=seed, information=information)
    raise RobGIBError(
        "data must be the name of a data set, a Dataset, a pair (images, labels), or a Dataset or DataLoader of torch."
    )


def _reading(model: PreparedModel) -> list[str]:
    """Special treatment of the model in calls and in evaluation, one sentence each."""
    notes = list(model.notes)
    if model.random:
        notes.append(f"the model is stochastic: accuracies are means over {model.draws} draws per sample")
    return notes


def _describe(thing: Attack | Estimator) -> dict[str, Any]:
    """Class and fields of an attack or estimator, for the record."""
    fields = {
        f.name: getattr(thing, f.name)
        for f in dataclasses.fields(thing)  # type: ignore[arg-type]
        if f.name not in ("norm", "eps")  # the attack's threat contains them
    }
    if isinstance(thing, Attack):
        fields["threat"] = dataclasses.asdict(thing.threat)
    return {"class": type(thing).__name__, **{name: _stated(value) for name, value in fields.items()}}


def _stated(value: Any) -> Any:
    """A field of an attack or estimator, for the record: networks by their weights."""
    if isinstance(value, torch.nn.Module):
        return weights_digest(value)
    if isinstance(value, Attack):
        return _describe(value)
    return dict(value) if isinstance(value, Mapping) else value
