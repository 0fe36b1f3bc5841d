"""False positives and power of the ladder of evidence, by simulated studies with known relations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from robgib.errors import RobGIBError
from robgib.runtime import Progress
from robgib.statistics import clopper_pearson
from robgib.studies.design import Cell, Study
from robgib.studies.ladder import LEAST, RUNGS, Question, counted, ladder
from robgib.studies.strata import FIELD, axes, cell_of, training_fields, varied_fields

__all__ = ["TRUTHS", "Truth", "simulate", "structure"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """The design of a study of N models, as numbers.

    Attributes:
        architecture: number of each model's architecture (N,).
        strength: number of each model's regime and strength (N,).
        rank: rank of each model's strength, standardised to mean 0 and standard deviation 1 (N,).
        cell: number of each model's cell (N,). Models of one cell differ by their seed alone.
    """

    architecture: npt.NDArray[np.int64]
    strength: npt.NDArray[np.int64]
    rank: Vector
    cell: npt.NDArray[np.int64]

    def effects(self, level: npt.NDArray[np.int64], rng: np.random.Generator) -> Vector:
        """Draw a standard normal effect for each level; return that of each model (N,)."""
        return rng.standard_normal(int(level.max(initial=0)) + 1)[level]

    def noise(self, rng: np.random.Generator, scale: float = 1.0) -> Vector:
        """Draw a normal value of standard deviation ``scale`` for each model (N,)."""
        return scale * rng.standard_normal(len(self.cell))


Draw = Callable[[Layout, np.random.Generator], tuple[Vector, Vector, Vector]]


@dataclass(frozen=True)
class Truth:
    """A simulated relation between a figure, an outcome and one baseline.

    Attributes:
        name: description for tables.
        true: number of rungs that hold under this relation. Reaching a higher rung is a false positive.
        draw: function of a :class:`Layout` and a generator that returns figure, outcome and baseline, (N,) each.
    """

    name: str
    true: int
    draw: Draw


def _alone(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    return of.noise(rng), of.noise(rng), of.noise(rng)


def _cells(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    x, y = (of.effects(of.cell, rng) + of.noise(rng, 0.3) for _ in range(2))
    return x, y, of.noise(rng)


def _outcome(of: Layout, rng: np.random.Generator) -> Vector:
    return of.rank + of.effects(of.architecture, rng) + of.noise(rng, 0.3)


def _architectures(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    return of.effects(of.architecture, rng) + of.noise(rng, 0.5), _outcome(of, rng), of.noise(rng)


def _profile(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    x = of.effects(of.architecture, rng) + of.effects(of.strength, rng) + of.noise(rng, 0.5)
    return x, _outcome(of, rng), of.noise(rng)


def _own_profiles(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    x = of.effects(of.architecture, rng) + of.effects(of.cell, rng) + of.noise(rng, 0.5)
    return x, _outcome(of, rng), of.noise(rng)


def _strength(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    x, y = (of.rank + 0.3 * of.effects(of.architecture, rng) + of.noise(rng, 0.5) for _ in range(2))
    return x, y, of.noise(rng)


def _baseline(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    behind = of.noise(rng)
    x = of.rank + behind + of.noise(rng, 0.5)
    return x, of.rank + behind + of.noise(rng, 0.3), behind + of.noise(rng, 0.05)


def _real(slope: float) -> Draw:
    def draw(of: Layout, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
        x = of.rank + of.noise(rng)
        y = of.rank + 0.3 * of.effects(of.architecture, rng) + slope * x + of.noise(rng, 0.3)
        return x, y, of.rank + of.noise(rng)

    return draw


TRUTHS: tuple[Truth, ...] = (
    Truth("no relation: independent models", 0, _alone),
    Truth("no relation: models of one training are alike", 0, _cells),
    Truth("no relation: effects of architectures", 0, _architectures),
    Truth("no relation: effects of architectures and strengths", 0, _profile),
    Truth("no relation: a profile over strengths of each architecture", 0, _own_profiles),
    Truth("through strength alone", 1, _strength),
    Truth("through a baseline alone", 2, _baseline),
    Truth("real, slope 0.3", 3, _real(0.3)),
    Truth("real, slope 1", 3, _real(1.0)),
)
"""The simulated relations; figure, outcome and baseline have a variance of about 1."""


def structure(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return one row per model of the part ``confirm``, with the fields of its recipe and no measured figures.

    Args:
        cells: the models of a study (:func:`~robgib.studies.cells`).

    Returns:
        Columns ``model``, ``data``, ``architecture``, ``regime``, ``strength``, ``training_seed``, and the other
        fields of the recipes, whose names begin with ``recipe.``.
    """
    return pd.DataFrame(
        [
            {
                "model": c.name,
                "data": c.recipe.data,
                "architecture": c.architecture,
                "regime": c.regime,
                "strength": c.strength,
                "training_seed": c.training_seed,
                **training_fields(c.recipe),
            }
            for c in cells
            if c.part == "confirm"
        ]
    )


def simulate(
    study: Study,
    rows: pd.DataFrame,
    draws: int = 200,
    truths: Sequence[Truth] = TRUTHS,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Simulate studies with the structure of a given one, and count how often each rung of the ladder is reached.

    Args:
        study: the design. Its seed starts the random numbers; its expected sign is that of the simulated relations.
        rows: one row per model (:func:`structure`).
        draws: number of simulated studies for each relation.
        truths: the relations.
        progress: called after each simulated study.

    Returns:
        One row per relation and rung: ``share`` of the studies that reach it, with its exact (Clopper-Pearson) 95%
        interval (``low``, ``high``); ``draws``; and ``meaning``: ``false positives`` or ``power``.

    Raises:
        RobGIBError: fewer models than a verdict needs.

    >>> study = Study(name="a", question="?", primary={"figure": "vulnerability"}, confirm={"models": ["digits-cnn"]})
    >>> rows = pd.DataFrame([{"model": f"{a}-{s}-{k}", "data": "digits", "architecture": a, "regime": "at",
    ...                       "strength": s, "training_seed": k}
    ...                      for a in ("cnn", "mlp", "vit", "vgg") for s in (0.0, 0.1, 0.2) for k in (0, 1)])
    >>> table = simulate(study, rows, draws=1, truths=[t for t in TRUTHS if t.name == "real, slope 1"])
    >>> table[["rung", "meaning"]].to_numpy().tolist()[0]
    ['goes with', 'power']
    """
    if len(rows) < LEAST:
        raise RobGIBError(
            f"study {study.name!r} has {counted(len(rows), 'model')} to confirm on, and a verdict needs at least "
            f"{LEAST}: there is nothing to simulate; add models."
        )
    varied = varied_fields(rows)
    rows = rows.drop(columns=[c for c in rows if c.startswith(FIELD) and c not in varied])
    layout = _layout(rows)
    sign = -1 if study.expect == "negative" else 1
    expect = 0 if study.expect == "either" else sign
    table = []
    for number, truth in enumerate(truths):
        reached = dict.fromkeys(RUNGS, 0)
        for k in range(draws):
            rng = np.random.default_rng([study.seed, number, k])
            x, y, baseline = truth.draw(layout, rng)
            made = rows.assign(figure=sign * x, outcome=y, baseline=baseline)
            for rung in ladder(Question(made, "figure", expect, ("strength", "baseline")), rng):
                reached[rung.name] += rung.status == "reached"
            if progress:
                progress("simulate", number * draws + k + 1, len(truths) * draws, truth.name)
        table += [_row(truth, i, name, reached[name], draws) for i, name in enumerate(RUNGS)]
    return pd.DataFrame(table)


def _row(truth: Truth, rung: int, name: str, hits: int, draws: int) -> Mapping[str, object]:
    low, high = clopper_pearson(hits, draws)
    meaning = "power" if rung < truth.true else "false positives"
    return {"truth": truth.name, "rung": name, "meaning": meaning, "share": hits / draws, "low": low, "high": high,
            "draws": draws}  # fmt: skip


def _layout(rows: pd.DataFrame) -> Layout:
    none = np.zeros(len(rows), dtype=np.int64)
    levels = axes(rows)
    rank = rows["strength"].rank().to_numpy(float)
    spread = rank.std()
    return Layout(
        levels.get("architecture", none),
        levels.get("strength", none),
        (rank - rank.mean()) / spread if spread > 0 else np.zeros(len(rows)),
        cell_of(rows),
    )
