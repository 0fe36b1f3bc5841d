"""Features: pieces of the input, or groups of a layer's units, each reduced to a few dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.random_projection import SparseRandomProjection

from robgib.data.lazy import LazyImages
from robgib.errors import RobGIBError, unknown_name

__all__ = [
    "Features",
    "Projection",
    "check_features",
    "directions",
    "group_inputs",
    "group_units",
    "reduce",
    "unit_slices",
]

Vector = npt.NDArray[np.float64]
_KINDS = {"patches": 4, "pca": 16, "pixels": 0, "channels": 0, "tokens": 8, "groups": 4}
"""With an example of the number that each takes."""
WIDE = 4096
"""Numbers of a sample above which it is projected on random directions first."""
_DIRECTIONS = 1024
_READ = 2**24  # numbers of a batch in which images are read

Cut = tuple[slice, ...]


@lru_cache(maxsize=8)
def directions(size: int) -> SparseRandomProjection:
    """Return 1,024 random directions for samples of so many numbers, the same each time (Li, Hastie & Church 2006).

    They keep distances to some 5%.
    """
    return SparseRandomProjection(_DIRECTIONS, random_state=0).fit(np.zeros((1, size), np.float32))


@dataclass(frozen=True)
class Features:
    """n named features of N samples (N, d_i), and the same features of the samples they were fitted on.

    Attributes:
        names: of the features.
        values: scores (N, d_i) of each.
        fit: the same of the samples that the reductions were fitted on.
        resolution: a description.
        cells: the place of each in a batch of inputs; empty if they are not pieces of the input.
        blank: names of pieces that do not vary and are left out.
    """

    names: tuple[str, ...]
    values: tuple[Vector, ...]
    fit: tuple[Vector, ...]
    resolution: str
    cells: tuple[tuple[slice, ...], ...] = ()
    blank: tuple[str, ...] = ()


@dataclass(frozen=True)
class Projection:
    """Onto the leading principal components of some samples; the components keep their variances.

    Attributes:
        mean: of the samples (D,).
        axes: (D, d), orthonormal; one of zeros where nothing varies.
    """

    mean: Vector
    axes: Vector

    @property
    def dims(self) -> int:
        """Number of components d."""
        return self.axes.shape[1]

    @classmethod
    def fit(cls, fit: npt.ArrayLike, dims: int) -> Projection:
        """Find at most ``dims`` components of samples (N, …); those without variance are dropped.

        Where there are more columns than samples they are found by a randomised solver (Halko, Martinsson & Tropp
        2011), with a fixed seed.
        """
        x = np.asarray(fit, np.float64).reshape(len(np.asarray(fit)), -1)
        if not (x != x[0]).any():
            return cls(x[0], np.zeros((x.shape[1], 1)))
        wide = x.shape[1] > len(x)
        solver = "randomized" if wide else "covariance_eigh"
        pca = PCA(min(dims, *x.shape), svd_solver=solver, random_state=0, iterated_power=7).fit(x)
        variance = pca.explained_variance_
        keep = max(1, int((variance > 1e-10 * max(variance[0], 1e-12)).sum()))
        axes = pca.components_[:keep].T
        # The sign of an axis is arbitrary: fix it, so that codes do not depend on the linear algebra library.
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(keep)] < 0, -1.0, 1.0)
        return cls(pca.mean_, axes)

    def __call__(self, values: npt.ArrayLike, single: bool = False) -> Vector:
        """Scores (N, d) of samples (N, …); with ``single``, samples in single precision give scores in it, faster."""
        given = np.asarray(values)
        dtype = np.float32 if single and given.dtype == np.float32 else np.float64
        v = np.asarray(given, dtype, order="C").reshape(len(given), -1)
        return np.asarray((v - self.mean.astype(dtype)) @ self.axes.astype(dtype))


def reduce(values: npt.ArrayLike, fit: npt.ArrayLike, dims: int) -> tuple[Vector, Vector]:
    """Project ``values`` and ``fit`` (N, …) on the leading principal components of ``fit``.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(100, 3)) * [3, 2, 0]
    >>> reduce(x, x, 8)[0].shape
    (100, 2)
    """
    projection = Projection.fit(fit, dims)
    return projection(values), projection(fit)


def check_features(spec: str, shape: tuple[int, ...]) -> None:
    """Raise if samples of this shape cannot be cut in this way; see :func:`group_inputs`."""
    kind, _, size = spec.partition(":")
    actual = f"(N, {', '.join(map(str, shape))})"
    if kind not in _KINDS:
        raise unknown_name("kind of features", kind, _KINDS)
    if kind in ("patches", "channels") and len(shape) != 3:
        raise RobGIBError(f"features {spec!r} need images (N, C, H, W), not {actual}; use pca:N.")
    if kind == "tokens" and len(shape) != 2:
        raise RobGIBError(f"features {spec!r} need sequences (N, L, D), not {actual}; use pca:N.")
    if kind == "groups" and len(shape) != 1:
        raise RobGIBError(f"features {spec!r} need vectors (N, D), not {actual}; use patches:G or tokens:G.")
    if _KINDS[kind]:
        if not size.isdigit() or int(size) < 1:
            raise RobGIBError(f"features {spec!r}: give a whole number, as in {kind}:{_KINDS[kind]}.")
    elif size:
        raise RobGIBError(f"features {spec!r}: {kind} takes no number.")
    if kind == "patches" and int(size) > min(shape[1:]):
        raise RobGIBError(
            f"features {spec!r}: images of {shape[1]}x{shape[2]} have no such grid; give a smaller number."
        )


def group_inputs(spec: str, x: npt.ArrayLike | LazyImages, fit: npt.ArrayLike | LazyImages, dims: int = 4) -> Features:
    """Cut images into features.

    Pieces of more than 4,096 numbers are projected on 1,024 random directions before their principal components are
    computed, and lazy images are read in batches, so that images of 224 pixels need little memory.

    Args:
        spec: ``patches:G`` (a G x G grid), ``pca:N`` (N leading components, one a feature), ``pixels`` (one
            a feature), ``channels``, ``tokens:G`` (G runs of a sequence), or ``groups:G`` (G runs of a vector).
        x: images (N, C, H, W); vectors (N, D) for ``pca``, ``pixels`` and ``groups``; sequences (N, L, D) for
            ``tokens``.
        fit: images on which the reductions are fitted.
        dims: principal components kept of each patch or channel.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).uniform(size=(50, 3, 8, 8))
    >>> group_inputs("patches:2", x, x).resolution
    '4 patches of 4 dimensions'
    """
    kind, _, size = spec.partition(":")
    x, fit = (part if isinstance(part, LazyImages) else np.asarray(part) for part in (x, fit))
    check_features(spec, tuple(x.shape[1:]))
    if kind == "pca":
        return _components(x, fit, int(size))
    if kind == "pixels":
        return _pixels(spec, np.asarray(x), np.asarray(fit))
    return _reduced_pieces(spec, x, fit, _cuts(kind, size, tuple(x.shape)), dims)


def _components(x: npt.NDArray[Any] | LazyImages, fit: npt.NDArray[Any] | LazyImages, count: int) -> Features:
    """The leading principal components, one per feature."""
    (values,), (reference,) = (_pieces(part, [(slice(None),)]) for part in (x, fit))
    values, reference = reduce(values, reference, count)
    columns = range(values.shape[1])
    return Features(
        tuple(f"component {i}" for i in columns),
        tuple(values[:, [i]] for i in columns),
        tuple(reference[:, [i]] for i in columns),
        f"{values.shape[1]} principal components",
    )


def _pixels(spec: str, x: npt.NDArray[Any], fit: npt.NDArray[Any]) -> Features:
    """The pixels that vary, one per feature."""
    flat, flat_fit = x.reshape(len(x), -1), fit.reshape(len(fit), -1)
    varying = np.flatnonzero((flat_fit.std(0) > 0) | (flat.std(0) > 0))
    if not len(varying):
        raise RobGIBError(f"features {spec!r}: no pixel varies over the samples; give samples that differ.")
    noun = "pixel" if x.ndim == 4 else "input"
    places = (np.unravel_index(i, x.shape[1:]) for i in varying)
    return Features(
        tuple(f"{noun} {i}" for i in varying),
        tuple(flat[:, [i]].astype(np.float64) for i in varying),
        tuple(flat_fit[:, [i]].astype(np.float64) for i in varying),
        f"{len(varying)} {noun}s that vary",
        tuple((slice(None), *(slice(int(k), int(k) + 1) for k in place)) for place in places),
        tuple(f"{noun} {i}" for i in np.setdiff1d(np.arange(flat.shape[1]), varying)),
    )


def _cuts(kind: str, size: str, shape: tuple[int, ...]) -> list[tuple[str, Cut]]:
    """Names of the pieces of samples of a shape (N, …), and where each lies."""
    if kind == "channels":
        return [(f"channel {c}", (slice(None), slice(c, c + 1))) for c in range(shape[1])]
    if kind in ("tokens", "groups"):
        noun = "tokens" if kind == "tokens" else "inputs"
        return [(f"{noun} {a}-{b - 1}", (slice(None), slice(a, b))) for a, b in _runs(shape[1], int(size))]
    rows, columns = (_runs(side, int(size)) for side in shape[2:])
    return [
        (f"patch {r},{c}", (slice(None), slice(None), slice(*row), slice(*column)))
        for r, row in enumerate(rows)
        for c, column in enumerate(columns)
    ]


def _runs(length: int, count: int) -> list[tuple[int, int]]:
    """Cut a length into at most ``count`` runs; the ends of each.

    >>> _runs(7, 3)
    [(0, 2), (2, 5), (5, 7)]
    """
    edges = np.linspace(0, length, min(count, length) + 1).round().astype(int).tolist()
    return list(zip(edges[:-1], edges[1:], strict=True))


def _reduced_pieces(
    spec: str,
    x: npt.NDArray[Any] | LazyImages,
    fit: npt.NDArray[Any] | LazyImages,
    cuts: list[tuple[str, Cut]],
    dims: int,
) -> Features:
    """The pieces that vary, each reduced to ``dims`` principal components."""
    places = [cut for _, cut in cuts]
    pieces = list(zip(*(_pieces(part, places) for part in (x, fit)), strict=True))
    varying = [_varies(values) or _varies(reference) for values, reference in pieces]
    if not any(varying):
        raise RobGIBError(f"features {spec!r}: no feature varies over the samples; give samples that differ.")
    pairs = [reduce(values, reference, dims) for (values, reference), kept in zip(pieces, varying, strict=True) if kept]
    blank = tuple(name for (name, _), kept in zip(cuts, varying, strict=True) if not kept)
    cuts = [cut for cut, kept in zip(cuts, varying, strict=True) if kept]
    widest = max(values.shape[1] for values, _ in pairs)
    left_out = f", {len(blank)} blank ones left out" if blank else ""
    return Features(
        tuple(name for name, _ in cuts),
        tuple(values for values, _ in pairs),
        tuple(reference for _, reference in pairs),
        f"{len(cuts)} {spec.partition(':')[0]} of {widest} dimensions{left_out}",
        tuple(cut for _, cut in cuts),
        blank,
    )


def _pieces(x: npt.NDArray[Any] | LazyImages, cuts: Sequence[Cut]) -> list[npt.NDArray[Any]]:
    """What the samples (N, …) hold at each cut, wide pieces on random directions."""
    each = max(1, _READ // max(1, int(np.prod(x.shape[1:]))))
    if not isinstance(x, LazyImages):
        return [_narrowed(x[cut], each) for cut in cuts]
    parts_by_cut: list[list[npt.NDArray[Any]]] = [[] for _ in cuts]
    for part in x.split(each):
        images = part.read().numpy()
        for parts, cut in zip(parts_by_cut, cuts, strict=True):
            parts.append(_narrowed(images[cut], each))
    return [np.concatenate(parts) for parts in parts_by_cut]


def _narrowed(values: npt.NDArray[Any], each: int) -> npt.NDArray[Any]:
    """Samples (N, …) on random directions (N, D) where they hold many numbers, ``each`` at a time; else as they are."""
    size = int(np.prod(values.shape[1:]))
    if size <= WIDE or not len(values):
        return values
    parts = [values[start : start + each].reshape(-1, size) for start in range(0, len(values), each)]
    return np.concatenate([directions(size).transform(part) for part in parts])


def _varies(values: npt.NDArray[np.generic]) -> bool:
    return bool(len(values) and (values != values[0]).any())


def unit_slices(z: npt.ArrayLike, groups: int = 8) -> Features:
    """Cut a layer's units (N, U) into consecutive groups, as they are."""
    values = np.asarray(z, np.float64)
    edges = np.linspace(0, values.shape[1], min(groups, values.shape[1]) + 1).round().astype(int)
    cuts = tuple(values[:, a:b] for a, b in zip(edges[:-1], edges[1:], strict=True))
    names = tuple(f"units {a}-{b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True))
    return Features(names, cuts, cuts, f"{len(cuts)} groups of units")


def group_units(z: npt.ArrayLike, fit: npt.ArrayLike, groups: int = 8, dims: int = 4) -> Features:
    """Cut a layer's units or channels (N, U, …) into consecutive groups, each reduced to ``dims`` dimensions."""
    z, fit = np.asarray(z), np.asarray(fit)
    groups = min(groups, z.shape[1])
    edges = np.linspace(0, z.shape[1], groups + 1).round().astype(int)
    pairs = [reduce(z[:, a:b], fit[:, a:b], dims) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    widest = max(p[0].shape[1] for p in pairs)
    return Features(
        tuple(f"units {a}-{b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)),
        tuple(p[0] for p in pairs),
        tuple(p[1] for p in pairs),
        f"{groups} groups of units of {widest} dimensions",
    )
