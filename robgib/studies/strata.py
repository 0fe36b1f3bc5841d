"""Which models of a study were trained alike: the fields of their recipes, cells, and exchangeable settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robgib.statistics import weighted_correlation
from robgib.zoo.recipe import Recipe

__all__ = [
    "FIELD",
    "axes",
    "cell_of",
    "clusters",
    "exchangeable",
    "indicators",
    "relabelled",
    "training_fields",
    "varied_fields",
    "weighted_ranks",
]

Vector = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
FIELD = "recipe."
"""Prefix of the columns that hold further fields of the recipes."""
_AXES = ("data", "architecture", "strength")  # the first fields of a design
_BASIC = ("data", "architecture", "regime", "strength")
_MOST_PLACES = 1_000_000
_OVERLAP = 0.7  # share of the cells that a relabelling must keep, on average


def training_fields(recipe: Recipe) -> dict[str, Any]:
    """Return every field of a recipe that determines its training, but the seed, by its dotted name.

    >>> fields = training_fields(Recipe(name="a", data="digits", architecture={"name": "mlp"}))
    >>> fields["recipe.training.epochs"], "recipe.training.seed" in fields
    (10, False)
    """
    content = recipe.model_dump(include={"data", "architecture", "training", "checkpoint"})
    content["training"].pop("seed")
    return {f"{FIELD}{name}": value for name, value in _flat(content, "")}


def _flat(content: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            fields += _flat(value, f"{prefix}{key}.")
        else:
            fields.append((f"{prefix}{key}", value if isinstance(value, int | float | str | None) else str(value)))
    return fields


def varied_fields(rows: pd.DataFrame) -> list[str]:
    """Return the recipe columns that separate models of one data set, architecture, regime and strength."""
    known = rows[rows[list(_BASIC)].notna().all(axis=1)]
    basic = _numbered(known, _BASIC).tolist()

    def varies(column: str) -> bool:
        pairs = {
            (k, value) for k, value in zip(basic, known[column].astype(str).tolist(), strict=True) if value == value
        }
        return len(pairs) > len({k for k, _ in pairs})

    return [c for c in rows if c.startswith(FIELD) and varies(c)]


def cell_of(rows: pd.DataFrame) -> Rows:
    """Return the number of each model's cell (N,): models of one cell differ by their seed alone."""
    return _numbered(rows, [*_BASIC, *varied_fields(rows)])


def _numbered(rows: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """Which combination of the columns' values each row has, numbered in the order in which they come (N,)."""
    keys: dict[tuple[str, ...], int] = {}
    combinations = zip(*(rows[c].astype(str).tolist() for c in columns), strict=True)
    return np.array([keys.setdefault(k, len(keys)) for k in combinations], dtype=np.int64)


def axes(rows: pd.DataFrame) -> dict[str, Rows]:
    """Return the fields in which the models differ, the seed apart, and the level of each model (N,) by field.

    Regime and strength are one field, ``strength``: a strength has no meaning without its regime.
    """
    columns: dict[str, list[str]] = {
        "data": ["data"], "architecture": ["architecture"], "strength": ["regime", "strength"],
        **{c.removeprefix(FIELD): [c] for c in varied_fields(rows)},
    }  # fmt: skip
    levels = {name: _numbered(rows, of) for name, of in columns.items()}
    return {name: level for name, level in levels.items() if level.max(initial=0) > 0}


def indicators(level: Rows) -> Vector:
    """Return a column of 0 and 1 for each level (N, levels)."""
    return (level[:, None] == np.unique(level)).astype(float)


def clusters(rows: pd.DataFrame, least: int) -> list[Rows]:
    """Return the rows of each cell, which a bootstrap draws together; of fewer cells than ``least`` each row alone."""
    cell = cell_of(rows)
    groups = [np.flatnonzero(cell == k) for k in np.unique(cell)]
    return groups if len(groups) >= least else [np.array([i]) for i in range(len(rows))]


def weighted_ranks(values: Vector, counts: Vector) -> Vector:
    """Return mid-ranks (draws, N) of values (N,) in each resample, which holds row i ``counts[draw, i]`` times.

    >>> weighted_ranks(np.array([3.0, 1.0, 2.0]), np.array([[1.0, 2.0, 0.0]])).tolist()
    [[3.0, 1.5, 2.5]]
    """
    below = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
    return counts @ below.T + 0.5


def relabelled(
    x: Vector, y: Vector, levels: Sequence[Rows], draws: int, rng: np.random.Generator
) -> tuple[Vector, bool]:
    """Spearman's ρ of x and y (N,) with the levels of each field of x permuted.

    Where x depends on the fields by effects of their levels that have nothing to do with y, each such relabelling is as
    probable as the study itself, whatever y depends on. A permutation of the models would take effects that they share
    for independent ones. A model whose relabelled setting the study does not have is left out of that draw.

    Args:
        x: one value a cell.
        y: the same.
        levels: of each field, the cell's level (N,); none for values that may be permuted freely.
        draws: how many relabellings; where there are no more than these, each is taken once.
        rng: of the draws.

    Returns:
        ρ of each relabelling, the identity among them where all are taken, NaN where the models that are left do not
        differ; and whether all are.
    """
    of = list(levels) or [np.arange(len(x))]
    sizes = [int(level.max()) + 1 for level in of]
    every = math.prod(map(math.factorial, sizes)) <= draws
    if every:
        chosen = itertools.product(*(itertools.permutations(range(size)) for size in sizes))
        orders = [np.array(one) for one in zip(*chosen, strict=True)]
    else:
        orders = _orders(sizes, draws, rng)
    source = _sources(of, orders)
    there = source >= 0
    taken = np.zeros(source.shape, dtype=bool)
    draw, place = np.nonzero(there)
    taken[draw, source[draw, place]] = True
    moved = np.take_along_axis(weighted_ranks(x, taken.astype(float)), source * there, axis=1)
    rho = weighted_correlation(moved, weighted_ranks(y, there.astype(float)), there.astype(float))
    return rho, every


def exchangeable(rows: pd.DataFrame, rng: np.random.Generator) -> tuple[Rows, list[Rows]]:
    """Return what is relabelled: the unit of each model (N,), and of each field the level of each unit.

    A unit is a cell, and each field is relabelled by itself; where the design has too few of their combinations, all
    but the first together. In a design of many fields that are not crossed a unit is what shares data, architecture,
    regime and strength, which are relabelled each by itself; the other fields are noise then. Where not even these are
    crossed, cells are relabelled freely; where there are no fields, models.
    """
    cell, by_name = cell_of(rows), axes(rows)
    fields = list(by_name.values())
    if not fields:
        each = np.arange(len(rows))
        return each, [each]
    basic = [level for name, level in by_name.items() if name in _AXES]
    ways = [(cell, fields)]
    if len(fields) > 2:
        ways.append((cell, [fields[0], _together(fields[1:])]))
    if 1 < len(basic) < len(fields):
        ways.append((_together(basic), basic))
    for unit, levels in ways:
        first = np.unique(unit, return_index=True)[1]
        of = [level[first] for level in levels]
        if _crossed(of, rng):
            return unit, of
    return cell, [np.unique(cell)]


def _crossed(levels: Sequence[Rows], rng: np.random.Generator) -> bool:
    """Whether a relabelling of each field leaves most units in the design."""
    sizes = [int(level.max()) + 1 for level in levels]
    if math.prod(sizes) > _MOST_PLACES:
        return False
    return bool((_sources(levels, _orders(sizes, 100, rng)) >= 0).mean() >= _OVERLAP)


def _orders(sizes: Sequence[int], draws: int, rng: np.random.Generator) -> list[Rows]:
    """Random orders (draws, levels) of the levels of each field."""
    return [np.argsort(rng.random((draws, size)), axis=1) for size in sizes]


def _together(levels: Sequence[Rows]) -> Rows:
    return np.unique(np.column_stack(levels), axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _sources(levels: Sequence[Rows], orders: Sequence[Rows]) -> Rows:
    """The cell (draws, N) that has the reordered levels of each cell, or −1."""
    place = np.full([int(level.max()) + 1 for level in levels], -1, dtype=np.int64)
    place[tuple(levels)] = np.arange(len(levels[0]))
    return np.asarray(place[tuple(order[:, level] for order, level in zip(orders, levels, strict=True))])
