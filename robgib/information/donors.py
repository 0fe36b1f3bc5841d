"""What is left out of an input, put back as plausible content: what a line predicts of it, and donors' residuals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.sparse.linalg import eigsh
from torch import Tensor

__all__ = [
    "Completion",
    "Pool",
    "most_donors",
    "places",
    "tell_apart",
]

_UNITS = 256  # of the classifier that tells composed inputs from real ones
_FOLDS = 5
_SHRUNK = 0.1  # of the classifier's weights, in units of the mean square of its inputs

Vector = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
_MOST = 10_000  # donors; more changed no figure by 1%
_NUMBERS = 2**26  # that all donors together may hold: of large pictures fewer are taken from
_FEW_VALUES = 8  # content of no more values than this is taken as it is
_LOOKED_AT = 500  # donors that those are counted in
_WIDE = 256  # columns above which only the leading components are found
_LEVERAGE = 10  # donors a column, below which the line's fit to each donor itself is taken out of its residual
_JITTER = 1e-6  # of the spread of distances: among donors that are equally near, chance decides


def most_donors(shape: Sequence[int]) -> int:
    """How many inputs of this shape content is taken from: 10,000, or what a quarter of a GiB holds.

    >>> most_donors((1, 28, 28)), most_donors((3, 224, 224))
    (10000, 445)
    """
    return max(2, min(_MOST, _NUMBERS // max(1, int(np.prod(shape)))))


def places(cells: Sequence[tuple[slice, ...]], shape: Sequence[int]) -> list[Rows]:
    """Where in a flattened input of this shape each piece lies.

    >>> [p.tolist() for p in places([(slice(None), slice(0, 1)), (slice(None), slice(1, 3))], (3,))]
    [[0], [1, 2]]
    """
    index = np.arange(int(np.prod(shape))).reshape(1, *shape)
    return [index[cell].ravel() for cell in cells]


def tell_apart(inputs: Tensor, composed: Tensor, replaced: Rows, rng: np.random.Generator) -> tuple[float, float]:
    """Measure how well a small classifier distinguishes inputs (N, D) from the inputs composed of them (N, D).

    It is a ridge regression on random rectified features (Rahimi & Recht 2008) of standardised numbers; half of the
    features use the replaced content alone. An input and its composed input are in the same fold.

    Returns:
        The held-out accuracy, 0.5 at chance, and its standard error.

    >>> draw = torch.Generator().manual_seed(0)
    >>> real, wide = torch.randn(400, 20, generator=draw), 2 * torch.randn(400, 20, generator=draw)
    >>> accuracy, error = tell_apart(real, wide, np.arange(20), np.random.default_rng(0))
    >>> accuracy > 0.9, error < 0.02
    (True, True)
    """
    rows, dims = inputs.shape
    if rows < 2 * _FOLDS:
        return 0.5, 0.5
    scale = inputs.std(0, correction=0)
    typical = float(scale.square().mean().sqrt())
    both = (torch.cat([inputs, composed]) - inputs.mean(0)) / scale.clamp_min(max(typical / 10, 1e-12))
    directions = torch.from_numpy(rng.standard_normal((dims, _UNITS))).float()
    alone = torch.zeros(dims, dtype=torch.bool)
    alone[torch.from_numpy(replaced)] = True
    directions[~alone, : _UNITS // 2] = 0
    projected = both @ directions
    shift = torch.from_numpy(rng.standard_normal(_UNITS)).float()
    rectified = torch.relu(projected / projected[:rows].std(0, correction=0).clamp_min(1e-12) + shift).double()
    rectified = torch.cat([rectified - rectified.mean(0), torch.ones(2 * rows, 1)], 1)
    wanted = torch.cat([torch.ones(rows), -torch.ones(rows)]).double()
    fold = torch.from_numpy(rng.permutation(rows) % _FOLDS).repeat(2)
    parts = [(rectified[fold == f], wanted[fold == f]) for f in range(_FOLDS)]
    grams, sides = (torch.stack(p) for p in zip(*((x.T @ x, x.T @ of) for x, of in parts), strict=True))
    right = torch.zeros(2 * rows, dtype=torch.float64)
    for f, (x, of) in enumerate(parts):
        gram = grams.sum(0) - grams[f]
        gram.diagonal().add_(_SHRUNK * float(gram.diagonal().mean()))
        weights = torch.linalg.solve(gram, sides.sum(0) - sides[f])
        right[fold == f] = (x @ weights * of > 0).double()
    each = right.view(2, rows).mean(0)
    return float(each.mean()), float(each.std()) / float(np.sqrt(rows))


@dataclass(frozen=True)
class Completion:
    """What takes the place of the pieces that are left out of some inputs.

    Attributes:
        predicted: of the inputs (N, D), what is kept as it is and what is left out as the line has it.
        content: of the donors (P, D), 0 where an input keeps its own.
        near: donors (N, M) of each input, the nearest first.
        low: least value (D,) that composed inputs may take.
        high: greatest.
        scores: of what is kept (N, d), in which donors are near.
    """

    predicted: Tensor
    content: Tensor
    near: Tensor
    low: Tensor
    high: Tensor
    scores: Vector

    def composed(self, each: int) -> Iterator[tuple[slice, Tensor]]:
        """Composed inputs (B·M, D), ``each`` of the inputs at a time, and which those are."""
        for start in range(0, len(self.near), each):
            part = slice(start, min(start + each, len(self.near)))
            made = self.content[self.near[part].reshape(-1)].view(len(self.near[part]), -1, self.content.shape[1])
            made += self.predicted[part, None]
            yield part, torch.clamp(made, self.low, self.high, out=made).flatten(0, 1)


@dataclass(frozen=True)
class Pool:
    """Donors, and what any part of them tells of the remainder along a line.

    The line is the conditional mean of a Gaussian whose covariance is that of the donors, shrunk after Ledoit & Wolf
    (2004). Where there are fewer donors than numbers in an input it is found from the donors' products.

    Attributes:
        x: donors (P, D), less their mean.
        mean: (D,).
        ridge: what is added to each variance.
        covariance: (D, D); None where it is found from products.
        precision: inverse of the covariance with the ridge.
        same: whether the donors are the inputs themselves.
        few: whether they take few values.
        low: least value of each number among them (D,).
        high: greatest.
    """

    x: Tensor
    mean: Tensor
    ridge: float
    covariance: Vector | None
    precision: Vector | None
    same: bool
    few: bool
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, donors: Tensor, same: bool) -> Pool:
        """Make donors (P, …) ready."""
        flat = donors.flatten(1).float()
        few = len(flat[:_LOOKED_AT].unique()) <= _FEW_VALUES
        mean = flat.mean(0)
        x = flat - mean
        count, dims = x.shape
        primal = count >= dims
        squared = (x.T @ x if primal else x @ x.T).double() / count
        ridge = _shrinkage(x, float((squared**2).sum()))
        covariance = squared.numpy() if primal else None
        precision = None
        if covariance is not None:
            loaded = covariance + ridge * np.eye(dims)
            precision = cho_solve(cho_factor(loaded, lower=True), np.eye(dims))
        return cls(x, mean, ridge, covariance, precision, same, few, flat.amin(0), flat.amax(0))

    def complete(
        self,
        inputs: Tensor,
        kept: Rows,
        replaced: Rows,
        count: int,
        near: bool,
        components: int,
        rng: np.random.Generator,
    ) -> Completion:
        """Complete what is kept of inputs (N, D).

        Args:
            inputs: flattened.
            kept: places that the inputs keep.
            replaced: places that take other content.
            count: donors M of each input.
            near: whether to take the nearest donors and the line; else any donors, as they are.
            components: principal components of what is kept, in which donors are near.
            rng: of the choice.
        """
        x = inputs.float() - self.mean
        line = near and not self.same and not self.few and len(kept) > 0
        scores, theirs = self._scores(x, kept, components) if near and len(kept) else (None, None)
        chosen = self._chosen(scores, theirs, len(x), count, rng)
        content = torch.zeros_like(self.x)
        predicted = inputs.float().clone()
        if line:
            ours, residual = self._line(x, kept, replaced)
            content[:, replaced] = residual
            predicted[:, replaced] = ours + self.mean[replaced]
        else:
            content[:, replaced] = self.x[:, replaced]
            predicted[:, replaced] = self.mean[replaced]
        low, high = torch.full_like(self.mean, -torch.inf), torch.full_like(self.mean, torch.inf)
        low[replaced], high[replaced] = self.low[replaced], self.high[replaced]
        kept_scores = np.zeros((len(x), 0)) if scores is None else scores
        return Completion(predicted, content, torch.from_numpy(chosen), low, high, kept_scores)

    def _chosen(
        self, scores: Vector | None, theirs: Vector | None, rows: int, count: int, rng: np.random.Generator
    ) -> Rows:
        """Donors (N, M), the nearest first."""
        pool = len(self.x)
        if scores is None or theirs is None:
            picked = rng.integers(pool - self.same, size=(rows, count))
            return np.asarray(picked + (self.same & (picked >= np.arange(rows)[:, None])))
        far = ((theirs**2).sum(1) - 2 * scores @ theirs.T).astype(np.float64)
        if len(np.unique(theirs[:, 0])) < pool / 2:
            far += _JITTER * max(float(theirs.var(0).sum()), 1e-12) * rng.random(far.shape)
        if self.same:
            far[np.arange(rows), np.arange(rows)] = np.inf
        picked = np.argpartition(far, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(far, picked, 1).argsort(1)
        return np.take_along_axis(picked, order, 1)

    def _scores(self, x: Tensor, kept: Rows, components: int) -> tuple[Vector, Vector]:
        """Principal components of what is kept: of the inputs (N, d) and of the donors (P, d)."""
        ours, theirs = x[:, kept], self.x[:, kept]
        if self.covariance is not None:
            axes = torch.from_numpy(_leading(self.covariance[np.ix_(kept, kept)], components)).float()
            return (ours @ axes).double().numpy(), (theirs @ axes).double().numpy()
        products = (theirs @ theirs.T).double().numpy()
        leading = _leading(products, components)
        back = leading / np.sqrt(np.maximum((leading * (products @ leading)).sum(0), 1e-12))
        return (ours @ theirs.T).double().numpy() @ back, products @ back

    def _line(self, x: Tensor, kept: Rows, replaced: Rows) -> tuple[Tensor, Tensor]:
        """What the line predicts of the inputs' missing content (N, d), and the donors' residuals (P, d)."""
        ours, theirs, wanted = x[:, kept], self.x[:, kept], self.x[:, replaced]
        count = len(self.x)
        if self.covariance is None or self.precision is None:
            products = (theirs @ theirs.T).double().numpy()
            inverse = cho_solve(cho_factor(products + count * self.ridge * np.eye(count), lower=True), np.eye(count))
            hat = products @ inverse
            weights = torch.from_numpy(inverse).float() @ wanted
            residual = wanted - torch.from_numpy(hat).float() @ wanted
            leverage = np.diag(hat)
            return ours @ theirs.T @ weights, residual / _kept_back(leverage)
        loaded = self.covariance[np.ix_(kept, kept)] + self.ridge * np.eye(len(kept))
        if len(replaced) <= len(kept):
            block = cho_factor(self.precision[np.ix_(replaced, replaced)], lower=True)
            slope = -cho_solve(block, self.precision[np.ix_(replaced, kept)]).T
        else:
            slope = cho_solve(cho_factor(loaded, lower=True), self.covariance[np.ix_(kept, replaced)])
        weights = torch.from_numpy(slope).float()
        residual = wanted - theirs @ weights
        if count < _LEVERAGE * len(kept):
            inverse = torch.from_numpy(cho_solve(cho_factor(loaded, lower=True), np.eye(len(kept)))).float()
            residual = residual / _kept_back(((theirs @ inverse) * theirs).sum(1).numpy() / count)
        return ours @ weights, residual


def _kept_back(leverage: npt.NDArray[np.floating]) -> Tensor:
    """What a line leaves of each donor's residual (P, 1), having been fitted to that donor too."""
    return torch.from_numpy(np.clip(1 - leverage, 0.1, 1.0)).float()[:, None]


def _leading(matrix: Vector, components: int) -> Vector:
    """Leading eigenvectors (D, d) of a symmetric matrix (D, D)."""
    dims = len(matrix)
    wanted = min(components, dims)
    if dims <= _WIDE:
        return np.asarray(eigh(matrix, subset_by_index=[dims - wanted, dims - 1])[1])
    return np.asarray(eigsh(matrix, k=wanted, v0=np.ones(dims), tol=1e-3)[1])


def _shrinkage(x: Tensor, norm: float) -> float:
    """What Ledoit & Wolf (2004) add to each variance of centred samples (P, D), for one unit of their covariance.

    ``norm`` is the squared Frobenius norm of the covariance.
    """
    count, dims = x.shape
    squares = (x**2).sum(1).double()
    mean = float(squares.mean()) / dims
    spread = max(norm / dims - mean**2, 1e-300)
    noise = max(float((squares**2).sum()) / count - norm, 0.0) / count / dims
    share = min(noise / spread, 0.99)
    return max(mean, 1e-12) * max(share / (1 - share), 1e-6)
