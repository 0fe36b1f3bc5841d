"""Estimators against the truth: how far each estimate is off on variables and networks of known information."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor

from robgib.errors import RobGIBError, RobGIBWarning, unknown_name
from robgib.information.analysis import SIGMA, default_codes, term_rows
from robgib.information.base import Decomposition, Estimator
from robgib.information.estimate import Estimate
from robgib.information.features import group_inputs
from robgib.information.measures import functionals
from robgib.information.observer import Resolution
from robgib.information.views import EXACT, NOISE, FittedView, Network, View
from robgib.results import table
from robgib.runtime import Progress, end_with
from robgib.statistics import share_test
from robgib.validation.fitted_pictures import fitted_pictures
from robgib.validation.known_networks import KnownNetwork, known_networks
from robgib.validation.known_pictures import known_pictures
from robgib.validation.known_variables import VariableTask, Vector
from robgib.validation.tasks import tasks

__all__ = [
    "HOLDS",
    "MARKED",
    "PICTURES",
    "REFUSED",
    "WRONG",
    "chosen_tasks",
    "known",
    "task_names",
    "validate",
    "verdict",
]

HOLDS, MARKED, REFUSED, WRONG = "holds", "marked", "refused", "wrong"
PICTURES = "pictures"
"""Names all networks on pictures."""
_ENOUGH = 0.9  # share of repeats in which a figure must hold the truth, or be marked
_LEVEL = 0.05  # at which fewer differ from chance
_FIT = 3000  # inputs that a network's codes, components and scales are fitted on, once for all repeats
_DIMS = 8
_OF_LAYER = ("I(X;Z)", "I(Z;Y)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)")
# Sides of bounds: C and r are at least what bounds of single-feature and leave-one-out terms give.
_SIDES = (0, 0, 1, -1, 1, -1)


def known() -> dict[str, VariableTask | KnownNetwork]:
    """Return everything that estimators can be held against, by name.

    >>> [name for name in known() if name in ("xor", "bmi-waves-2+1", "bijection")]
    ['xor', 'bmi-waves-2+1', 'bijection']
    """
    return {**tasks(), **_networks()}


def _networks() -> dict[str, KnownNetwork]:
    return {**known_networks(), **known_pictures(), **fitted_pictures()}


def chosen_tasks(names: Sequence[str] | None = None) -> list[VariableTask | KnownNetwork]:
    """Return tasks by name, each once; ``pictures`` names all networks on pictures.

    None takes all but those that need a data set, which take minutes each.

    Raises:
        RobGIBError: an unknown name.

    >>> [t.name for t in chosen_tasks(["texture", "xor"])]
    ['texture', 'xor']
    """
    every = known()
    if not names:
        return [t for t in every.values() if isinstance(t, VariableTask) or not t.needs]
    for name in names:
        if name != PICTURES and name not in every:
            raise unknown_name("validation task", name, [*every, PICTURES])
    pictures = [n for n, t in every.items() if isinstance(t, KnownNetwork) and t.shape is not None]
    wanted = [n for name in names for n in (pictures if name == PICTURES else [name])]
    return [every[n] for n in dict.fromkeys(wanted)]


def task_names() -> list[str]:
    """Return the names that the table gives them, in order: of variables, and NETWORK/LAYER."""
    return [*tasks(), *(f"{name}/{layer}" for name, network in _networks().items() for layer in network.layers)]


def _regime(task: VariableTask | KnownNetwork) -> str:
    return task.regime if isinstance(task, VariableTask) else "network"


def _asks(estimator: Estimator, task: VariableTask | KnownNetwork, every: bool) -> bool:
    """Whether an estimator is held against a task."""
    if isinstance(task, VariableTask):
        return not estimator.runs_network and (every or task.regime in estimator.regimes)
    return estimator.view != EXACT and (every or "network" in estimator.regimes)


def validate(
    estimators: Sequence[Estimator],
    chosen: Sequence[VariableTask | KnownNetwork],
    *,
    repeats: int = 20,
    seed: int = 0,
    every: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Hold estimators against the truth.

    Args:
        estimators: the estimators.
        chosen: variables and networks.
        repeats: draws of each.
        seed: of the draws.
        every: also ask estimators outside the regimes that they claim.
        jobs: processes that share the repeats, each with its part of the threads; the times are then theirs.
        progress: called after each repeat.

    Returns:
        A row an estimator, task (``NETWORK/LAYER`` of a network) and figure (I, S, C, and ``single-feature`` and
        ``leave-one-out`` pooled over the features; of a layer its terms): mean truth, ``bias`` and ``sd`` of the error
        in bits, ``coverage`` of the 95% interval, ``null``: share of shuffled targets whose intervals of I and S
        contain 0, ``flagged``: share of flagged figures, ``seconds`` an estimate (of a network: of all its layers),
            whether the estimator ``claims`` the
        regime, and the :func:`verdict`.
    """
    rows: list[dict[str, Any]] = []
    work = [(e, t) for e in estimators for t in chosen if _asks(e, t, every)]
    for number, (estimator, task) in enumerate(work):
        plug_in = type(estimator).__module__.startswith("robgib_plugin_")  # a file that others cannot import
        trials = []
        fixed = isinstance(task, KnownNetwork) and task.another is None
        views = _views(task, estimator.view) if isinstance(task, KnownNetwork) and fixed else {}
        parallel = Parallel(n_jobs=1 if plug_in else jobs, return_as="generator")
        for trial in parallel(delayed(_work)(os.getpid(), estimator, task, views, seed, r) for r in range(repeats)):
            trials.append(trial)
            if progress:
                progress(f"{estimator.name}: {task.name}", len(trials), repeats, f"{number + 1}/{len(work)}")
        for name in trials[0]:
            rows += _rows(estimator, _regime(task), name, task.samples, [t[name] for t in trials])
    return table("validation", rows)


@dataclass(frozen=True)
class _Trial:
    """One draw: figures, those they are held against, and the rest, an entry each."""

    names: tuple[str, ...]
    truth: Vector
    value: Vector
    inside: npt.NDArray[np.bool_]
    marked: npt.NDArray[np.bool_]
    null: tuple[bool, bool] | None
    flagged: bool
    seconds: float


Views = Mapping[str, tuple[FittedView, Vector, float]]
"""Of each layer: how it is seen, its true terms, and the true I(T;Y)."""


def _work(parent: int, *what: Any) -> dict[str, _Trial]:
    """:func:`_try` in a process that ends with the one that it works for."""
    end_with(parent)
    return _try(*what)


def _try(
    estimator: Estimator, task: VariableTask | KnownNetwork, views: Views, seed: int, repeat: int
) -> dict[str, _Trial]:
    rng = np.random.default_rng([seed, repeat])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobGIBWarning)
        if isinstance(task, KnownNetwork):
            if task.another is not None:
                task = task.another(1000 * seed + repeat)
                views = _views(task, estimator.view)
            return _try_network(estimator, task, views, rng)
        return {task.name: _try_variables(estimator, task, rng)}


def _try_variables(estimator: Estimator, task: VariableTask, rng: np.random.Generator) -> _Trial:
    sample = task.draw(task.samples, rng)
    n = (len(sample.truth) - 1) // 2
    truth = functionals(n) @ sample.truth
    order = rng.permutation(task.samples)
    began = time.perf_counter()
    try:
        result = estimator.estimate(sample.features, sample.target)
    except RobGIBError:
        result = None
    seconds = time.perf_counter() - began
    names = ("I", *["single-feature"] * n, *["leave-one-out"] * n, *["II"] * n, "S", "C", "slack")
    if result is None:
        nothing = np.full(len(truth), np.nan)
        never = np.zeros(len(truth), bool)
        return _Trial(names, truth, nothing, never, never, None, False, seconds)
    null = estimator.estimate(sample.features, sample.target[order])
    return _Trial(
        names,
        truth,
        *_held(_figures(result), truth, bool(result.notes)),
        (null.total.low <= 0 <= null.total.high, null.synergy.low <= 0 <= null.synergy.high),
        result.total.flagged or result.synergy.flagged,
        seconds,
    )


def _figures(decomposition: Decomposition) -> list[Estimate]:
    return [
        decomposition.total,
        *decomposition.single_feature,
        *decomposition.leave_one_out,
        *decomposition.interaction,
        decomposition.synergy,
        decomposition.complexity,
        decomposition.slack,
    ]


def _held(
    figures: Sequence[Estimate], truth: Vector, noted: bool, sides: Sequence[int] | None = None
) -> tuple[Vector, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Values, whether intervals hold the truth, and whether figures are marked.

    Where the truth is known from one ``side`` alone (1: it is no less than what is given, −1: no more), an interval
    holds it unless the bound refutes all of it.
    """
    # Rounding: a figure without any error may differ from the truth in the last digit.
    known = zip(figures, truth, sides or [0] * len(truth), strict=True)
    inside = np.array([(side > 0 or e.low - 1e-9 <= t) and (side < 0 or t <= e.high + 1e-9) for e, t, side in known])
    return np.array([e.value for e in figures]), inside, np.array([e.flagged or noted for e in figures])


@lru_cache(maxsize=100)
def _views(network: KnownNetwork, view: View) -> Views:
    """A network's layers in one view, fitted once for all repeats, with the truth."""
    x, _ = network.draw(_FIT, np.random.default_rng(1))
    classes = 2 if network.classes is None else len(network.classes)
    resolution = Resolution(_DIMS, network.symbols or default_codes(classes, _FIT), SIGMA)
    fitted = {name: resolution.fit(view, layer) for name, layer in network.all_layers(x).items()}
    truths = network.truths(fitted)
    return {name: (one, *truths[name]) for name, one in fitted.items()}


def _try_network(
    estimator: Estimator, network: KnownNetwork, views: Views, rng: np.random.Generator
) -> dict[str, _Trial]:
    """The rows that a reader would see of each layer, against the truth."""
    (x, y), (x_fit, _) = network.both(rng)
    now, then = network.all_layers(x), network.all_layers(x_fit)
    x, x_fit = (part if network.shape is None else part.reshape(-1, *network.shape) for part in (x, x_fit))
    inputs = group_inputs(network.features, x, x_fit)
    targets = [fitted.target(n, now[n], then[n], y) for n, (fitted, *_) in views.items()]
    runs = Network(torch.from_numpy(x), torch.from_numpy(x_fit), False, inputs, _codes_of(network, views))
    began = time.perf_counter()
    decompositions = estimator.of_network(estimator.prepare(inputs.values, inputs.fit), targets, runs)
    seconds = time.perf_counter() - began
    trials = {}
    for target, decomposition in zip(targets, decompositions, strict=True):
        _, terms, label = views[target.name]
        shown = {row["term"]: row for row in term_rows(target, decomposition, inputs, 1.0)}
        truth = _layer_truth(terms, label)
        rows = [shown[name] for name in _OF_LAYER]
        made = [Estimate(r["value"], r["low"], r["high"], r["flagged"]) for r in rows]
        sides = _SIDES if network.bounds is not None else None
        value, inside, marked = _held(made, truth, False, sides)
        marked |= np.array([is_marked(r, decomposition) for r in rows])
        trials[f"{network.name}/{target.name}"] = _Trial(
            _OF_LAYER, truth, value, inside, marked, None, any(r["flagged"] for r in rows), seconds
        )
    return trials


def is_marked(row: Mapping[str, Any], decomposition: Decomposition) -> bool:
    """Whether a row of a layer's terms says that its figure is limited: remarks do not."""
    return bool(row["flagged"] or {*row["note"].split("; ")} - {"", *decomposition.remarks})


def _layer_truth(terms: Vector, label: float) -> Vector:
    n, total = (len(terms) - 1) // 2, terms[0]
    single_feature, leave_one_out = terms[1 : n + 1], terms[n + 1 :]
    cost = float((single_feature + leave_one_out).mean())
    degrees = [float(single_feature.sum() / total), float((total - leave_one_out).sum() / total)]
    return np.array([total, label, cost, total - cost, *degrees])


def _codes_of(network: KnownNetwork, views: Views) -> Callable[[Tensor], dict[str, npt.NDArray[Any]]]:
    def codes(x: Tensor) -> dict[str, npt.NDArray[Any]]:
        activations = network.all_layers(x.numpy())
        return {name: fitted(activations[name]) for name, (fitted, *_) in views.items() if fitted.view != NOISE}

    return codes


def verdict(inside: npt.NDArray[np.bool_], marked: npt.NDArray[np.bool_], refused: npt.NDArray[np.bool_]) -> str:
    """What repeats (R, m) of m like figures say: ``holds``, ``marked``, ``refused`` or ``wrong``.

    A figure holds if its interval covers the truth in at least 90% of the repeats, or in so many that the difference
    from 90% is not significant (5%, one-sided). It is marked if that is true without the figures that have a mark or a
    note, refused if less than half of the repeats have a figure, and wrong otherwise: it misses without a mark.

    >>> import numpy as np
    >>> never, always = np.zeros((40, 1), bool), np.ones((40, 1), bool)
    >>> verdict(always, never, never), verdict(never, always, never), verdict(never, never, never)
    ('holds', 'marked', 'wrong')
    """
    if refused.mean() > 0.5:
        return REFUSED
    missed = ~inside & ~refused

    def too_often(what: npt.NDArray[np.bool_]) -> bool:
        count = round(float(what.mean()) * len(what))
        return share_test(count, len(what), 1 - _ENOUGH) < _LEVEL

    if not too_often(missed):
        return HOLDS
    return WRONG if too_often(missed & ~marked) else MARKED


def _rows(estimator: Estimator, regime: str, task: str, samples: int, trials: Sequence[_Trial]) -> list[dict[str, Any]]:
    truth, value, inside, marked = (
        np.stack([getattr(t, what) for t in trials]) for what in ("truth", "value", "inside", "marked")
    )
    refused = np.isnan(value)
    nulls = [t.null for t in trials if t.null is not None]
    rows = []
    for figure in dict.fromkeys(trials[0].names):
        columns = [i for i, name in enumerate(trials[0].names) if name == figure and np.isfinite(truth[:, i]).all()]
        if not columns or figure in ("II", "slack"):
            continue
        of = np.ix_(range(len(trials)), columns)
        error = (value - truth)[of]
        given = ~refused[of]
        shown = bool(given.any())
        rows.append(
            {
                "estimator": estimator.name,
                "regime": regime,
                "task": task,
                "samples": samples,
                "figure": figure,
                "truth": float(truth[of].mean()),
                "bias": float(error[given].mean()) if shown else float("nan"),
                "sd": float(np.mean([_spread(e) for e in error.T])),
                "coverage": float(inside[of][given].mean()) if shown else float("nan"),
                "null": float(np.mean(nulls)) if nulls else float("nan"),
                "flagged": float(np.mean([t.flagged for t in trials])),
                "seconds": float(np.median([t.seconds for t in trials])),
                "repeats": len(trials),
                "claims": regime in estimator.regimes,
                "verdict": verdict(inside[of], marked[of], refused[of]),
            }
        )
    return rows


def _spread(errors: Vector) -> float:
    given = errors[~np.isnan(errors)]
    return float(given.std(ddof=1)) if len(given) > 1 else float("nan")
