"""The ladder of evidence: does a figure go with an outcome, also at fixed training, also beyond simple baselines?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import statsmodels.api as sm
from scipy import stats
from sklearn.preprocessing import StandardScaler

from robgib.statistics import signed, weighted_correlation
from robgib.studies.strata import axes, cell_of, clusters, exchangeable, indicators, relabelled, weighted_ranks

__all__ = [
    "DRAWS",
    "LEAST",
    "RESAMPLES",
    "RUNGS",
    "Question",
    "Rung",
    "beyond_baselines",
    "counted",
    "fixed_training",
    "goes_with",
    "highest",
    "ladder",
    "shown_p",
]

Vector = npt.NDArray[np.float64]
Status = Literal["reached", "not reached", "opposite", "undetermined"]
RUNGS = ("goes with", "at fixed training", "beyond the baselines")
LEAST = 8
"""Fewer models than this carry no verdict."""
DRAWS = 2000
"""Permutations behind p."""
RESAMPLES = 10_000
"""Bootstrap resamples: with 2,000 the ends of an interval over 13 groups differed by 0.06 between seeds."""
_LEVEL = 0.05
_EXACT = 1e-9  # distance of a leverage from 1 at which a model is fitted exactly
_FREE = 5  # degrees of freedom that a regression must leave
_PENALTIES = np.logspace(-2, 3, 6)


@dataclass(frozen=True)
class Rung:
    """The result of one rung of the ladder.

    Attributes:
        name: one of :data:`RUNGS`.
        status: ``reached``, ``not reached``, ``opposite`` (significant, with the sign opposite to the expected one), or
            ``undetermined`` (no test is possible).
        figure: a correlation in [−1, 1]; on the last rung, the share of the squared error of prediction for unseen
            architectures that the figure removes.
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        p: p-value of the test.
        draws: number of random permutations behind p, whose smallest value is 1 / (draws + 1); 0 if p is not limited by
            them.
        sentence: the result in a sentence.
    """

    name: str
    status: Status
    figure: float
    low: float
    high: float
    p: float
    draws: int
    sentence: str


@dataclass(frozen=True)
class Question:
    """The claim that the ladder tests: a figure goes with an outcome.

    Attributes:
        rows: one row per model, with the columns ``outcome``, ``label``, the baselines, ``data``, ``architecture``,
            ``regime``, ``strength`` and ``training_seed``.
        label: name of the figure's column.
        expect: expected sign of the correlation: 1, −1, or 0 for either.
        baselines: names of the baselines' columns.
    """

    rows: pd.DataFrame
    label: str
    expect: int = 0
    baselines: tuple[str, ...] = ()

    @property
    def x(self) -> Vector:
        """Values of the figure (N,)."""
        return self.rows[self.label].to_numpy(float)

    @property
    def y(self) -> Vector:
        """Values of the outcome (N,)."""
        return self.rows["outcome"].to_numpy(float)


def shown_p(p: float, draws: int = 0) -> str:
    """Return p as text; at the floor of a permutation test it is a bound, not a value.

    >>> shown_p(1 / 2001, 2000), shown_p(0.0312, 2000), shown_p(0.0004)
    ('< 0.0005', '= 0.031', '= 0.0004')
    """
    floor = 1 / (draws + 1) if draws else 0.0
    return f"< {floor:.2g}" if p <= floor * (1 + 1e-9) else f"= {p:.2g}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> counted(1, "baseline"), counted(3, "group")
    ('1 baseline', '3 groups')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ladder(question: Question, rng: np.random.Generator) -> tuple[Rung, ...]:
    """Test the three rungs in order (:data:`RUNGS`); a rung above one that is not reached is not tested.

    The exception is a first rung for which no test is possible: the second rung has a test of its own and is tested.

    Args:
        question: the claim and the models.
        rng: generator of the permutations and the bootstrap.

    Returns:
        The three rungs.

    >>> rng = np.random.default_rng(0)
    >>> rows = pd.DataFrame([{"data": "digits", "architecture": a, "regime": "at", "strength": s, "training_seed": k}
    ...                      for a in ("cnn", "mlp", "vit", "vgg") for s in (0.0, 0.1, 0.2) for k in (0, 1)])
    >>> rows["v"] = rng.standard_normal(len(rows))
    >>> rows["outcome"] = rows["v"] + 0.1 * rng.standard_normal(len(rows))
    >>> [rung.status for rung in ladder(Question(rows, "v", expect=1), rng)]
    ['reached', 'reached', 'undetermined']
    """
    first = goes_with(question, rng)
    if first.status in ("not reached", "opposite"):
        below = f"the rung {first.name!r} is not reached in the expected sign"
        return first, _untested(RUNGS[1], below), _untested(RUNGS[2], below)
    second = fixed_training(question, rng, _sign(question, first))
    if second.status != "reached":
        return first, second, _untested(RUNGS[2], f"the rung {second.name!r} is not reached")
    return first, second, beyond_baselines(question, rng, _sign(question, second))


def highest(rungs: Sequence[Rung]) -> str:
    """Return the verdict: the name of the highest rung that is reached.

    Without one it is ``contradicted in sign``, ``undetermined`` or ``not shown``, by the status of the first rung.
    """
    reached = [r for r in rungs if r.status == "reached"]
    if reached:
        return reached[-1].name
    return {"opposite": "contradicted in sign", "undetermined": "undetermined"}.get(rungs[0].status, "not shown")


def _sign(question: Question, below: Rung) -> int:
    """Return the sign that a rung must have: the expected one, otherwise that of the rung below."""
    return question.expect or (int(np.sign(below.figure)) if below.status == "reached" else 0)


def _untested(name: str, reason: str) -> Rung:
    return Rung(name, "not reached", math.nan, math.nan, math.nan, math.nan, 0, f"Not tested: {reason}.")


def _unknown(name: str, reason: str) -> Rung:
    return Rung(name, "undetermined", math.nan, math.nan, math.nan, math.nan, 0, f"Undetermined: {reason}.")


def _p(observed: float, drawn: Vector, sign: int, every: bool) -> float:
    """p of an observed correlation against those of permutations: one-sided for a sign, two-sided for 0.

    ``every`` says that all permutations were taken, the identity among them. A permutation that leaves nothing to
    correlate (NaN) counts as one that is as far out, which is the careful choice.
    """
    score = (lambda r: sign * r) if sign else np.abs
    hits = int((~(score(drawn) < score(np.array(observed)) - 1e-12)).sum())
    return hits / len(drawn) if every else (1 + hits) / (1 + len(drawn))


def _status(figure: float, low: float, high: float, p: float, expect: int) -> Status:
    clear = low > 0 or high < 0
    if not clear or not p < _LEVEL:
        return "not reached"
    return "reached" if expect in (0, int(np.sign(figure))) else "opposite"


def goes_with(question: Question, rng: np.random.Generator) -> Rung:
    """Test the first rung: Spearman's correlation over all models.

    The interval is the bootstrap's over cells, ranks taken anew in each draw. p relabels the levels of the recipes'
    fields (:func:`~robgib.studies.strata.relabelled`), so that an effect that architectures or strengths have of their
    own is no evidence.
    """
    rows, x, y = question.rows, question.x, question.y
    rho = float(stats.spearmanr(x, y).statistic)
    drawn = bootstrap(x, y, resamples(clusters(rows, LEAST), rng))
    low, high = (float(np.nanquantile(drawn, q)) for q in (0.025, 0.975))
    unit, of = exchangeable(rows, rng)
    frame = pd.DataFrame({"x": x, "y": y}).groupby(unit, sort=True).mean()
    mean_x, mean_y = frame["x"].to_numpy(), frame["y"].to_numpy()
    moved, every = relabelled(mean_x, mean_y, of, DRAWS, rng)
    own = float(stats.spearmanr(mean_x, mean_y).statistic) if len(mean_x) > 2 else math.nan
    # Means over the exchanged units that go the other way are no evidence for the sign of ρ.
    p = _p(own, moved, _side(question.expect, own), every) if own * rho > 0 else 1.0
    if every and len(moved) < 1 / _LEVEL:
        reason = (
            f"ρ = {signed(rho, low, high)} over {len(x)} models, of which the architectures and strengths "
            f"can be relabelled in {len(moved)} ways only; no test at 5% is possible"
        )
        return Rung(RUNGS[0], "undetermined", rho, low, high, p, 0, f"Undetermined: {reason}.")
    status = _status(rho, low, high, p, question.expect)
    draws = 0 if every else len(moved)
    figures = f"ρ = {signed(rho, low, high)}, p {shown_p(p, draws)}, over {len(x)} models"
    sentence = {
        "reached": f"The figure goes with the outcome over all models: {figures}.",
        "opposite": f"The correlation over all models has the sign opposite to the expected one: {figures}.",
    }.get(status, f"No correlation over all models is shown: {figures}.")
    return Rung(RUNGS[0], status, rho, low, high, p, draws, sentence)


def _side(expect: int, observed: float) -> int:
    """Return the side of the test: one-sided if the correlation has the expected sign, otherwise two-sided (0)."""
    return expect if expect and expect == int(np.sign(observed)) else 0


def fixed_training(question: Question, rng: np.random.Generator, sign: int) -> Rung:
    """Test the second rung: the correlation among models of one cell, which differ by their seed alone.

    Ranks over all models are centred in each cell. p permutes the outcome within cells; the interval is the
    bootstrap's over cells (of few cells, over the models in them), ranks and means taken anew in each draw.
    """
    cell = cell_of(question.rows)
    size = np.bincount(cell)[cell]
    shared = size > 1
    if not shared.any():
        return _unknown(RUNGS[1], "no two models share a training")
    order = np.flatnonzero(shared)[np.argsort(cell[shared], kind="stable")]
    x, y = question.x[order], question.y[order]
    numbers, of = np.unique(cell[order], return_inverse=True)
    cells = len(numbers)
    ways = math.prod(math.factorial(int(n)) for n in np.bincount(of))
    if ways < (1 if sign else 2) / _LEVEL:
        return _unknown(
            RUNGS[1], f"{len(x)} models in {counted(cells, 'group')} of one training are too few for a test at 5%"
        )
    a, b = (centred(stats.rankdata(v)[None], np.ones((1, len(v))), of)[0] for v in (x, y))
    if a.std() < 1e-12 or b.std() < 1e-12:
        return _unknown(RUNGS[1], "the figure or the outcome is the same for all models of one training")
    r = float(np.corrcoef(a, b)[0, 1])
    keys = rng.random((DRAWS, len(x))) + of  # sorted, they permute within the cells, which lie one after another
    moved = b[np.argsort(keys, axis=1)] @ a / math.sqrt((a @ a) * (b @ b))
    p = _p(r, moved, _side(sign, r), every=False)
    groups = (
        [np.flatnonzero(of == k) for k in range(cells)] if cells >= LEAST else [np.array([i]) for i in range(len(x))]
    )
    counts = resamples(groups, rng)
    a, b = (centred(weighted_ranks(v, counts), counts, of) for v in (x, y))
    drawn = weighted_correlation(a, b, counts)
    low, high = (float(np.nanquantile(drawn, q)) for q in (0.025, 0.975))
    status = _status(r, low, high, p, sign)
    figures = (
        f"r = {signed(r, low, high)}, p {shown_p(p, DRAWS)}, over {len(x)} models in {counted(cells, 'group')} that "
        "differ by their seed alone"
    )
    sentence = {
        "reached": f"The figure goes with the outcome at fixed training too: {figures}.",
        "opposite": f"At fixed training the correlation has the opposite sign: {figures}.",
    }.get(status, f"At fixed training no correlation is shown: {figures}.")
    return Rung(RUNGS[1], status, r, low, high, p, DRAWS, sentence)


def centred(ranks: Vector, counts: Vector, of: npt.NDArray[np.int64]) -> Vector:
    """Return ranks (draws, N) less the mean of their group in each draw.

    Args:
        ranks: (draws, N).
        counts: how often each row is in each draw (draws, N).
        of: number of each row's group (N,).

    >>> centred(np.array([[1.0, 3.0, 5.0]]), np.array([[1.0, 1.0, 2.0]]), np.array([0, 0, 1])).tolist()
    [[-1.0, 1.0, 0.0]]
    """
    member = indicators(of)
    total = np.maximum(counts @ member, 1e-12)
    return np.asarray(ranks - ((ranks * counts) @ member / total)[:, of])


def bootstrap(x: Vector, y: Vector, counts: Vector) -> Vector:
    """Return Spearman's ρ of x and y (N,) in each bootstrap resample (draws,); each resample is ranked by itself.

    Args:
        x: (N,).
        y: (N,).
        counts: how often each row is in each resample (draws, N), as :func:`resamples` returns.
    """
    return weighted_correlation(weighted_ranks(x, counts), weighted_ranks(y, counts), counts)


def resamples(groups: Sequence[npt.NDArray[np.int64]], rng: np.random.Generator, draws: int | None = None) -> Vector:
    """Draw bootstrap resamples of whole groups of rows (a cluster bootstrap).

    Args:
        groups: indices of the rows of each group; together they are all N rows.
        rng: generator.
        draws: number of resamples; None is :data:`RESAMPLES`.

    Returns:
        How often each row is in each resample (draws, N).
    """
    member = np.zeros((len(groups), sum(map(len, groups))))
    for k, rows in enumerate(groups):
        member[k, rows] = 1.0
    times = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=draws or RESAMPLES)
    return np.asarray(times @ member)


def beyond_baselines(question: Question, rng: np.random.Generator, sign: int) -> Rung:
    """Test the last rung: what the figure adds to all baselines.

    Two tests must agree: the figure's partial effect given the baselines and indicators of architecture, strength and
    every other field (ordinary least squares on normal scores, errors robust to unequal variance), and the error with
    which a ridge regression on the baselines and the other fields predicts architectures that it was not fitted on,
    with the figure and without (its penalty chosen among the other architectures).
    """
    rows = question.rows
    baselines = usable_baselines(rows, question.baselines)
    if not baselines:
        return _unknown(RUNGS[2], "no baseline was measured on every model")
    if rows["architecture"].nunique() < 3:
        return _unknown(RUNGS[2], "fewer than three architectures leave none to predict from the others")
    effect = partial_effect(rows, question.label, baselines)
    number = counted(len(baselines), "baseline")
    if math.isnan(effect[0]):
        few = f"{len(rows)} models are too few for {number} and the fields of the recipes"
        same = f"the figure is a linear function of the {number} and the fields of the recipes"
        return _unknown(RUNGS[2], same if _freedom(rows, _given(rows, baselines)) >= _FREE else few)
    without, with_it = (prediction_errors(rows, columns) for columns in (baselines, (*baselines, question.label)))
    gained = without**2 - with_it**2
    counts = resamples(clusters(rows, LEAST), rng)
    share = float(gained.sum() / (without**2).sum())
    drawn = (counts @ gained) / (counts @ without**2)
    low, high = (float(np.quantile(drawn, q)) for q in (0.025, 0.975))
    beta, error, p = effect
    right = p < _LEVEL and (not sign or np.sign(beta) == sign)
    status: Status = "reached" if right and low > 0 else "not reached"
    evidence = (
        f"given {number} and the recipes' fields its standardised effect is {signed(beta)} ± "
        f"{1.96 * error:.2f} (p {shown_p(p)}), and it removes {100 * share:.0f}% [{100 * low:.0f}%, {100 * high:.0f}%] "
        f"of the squared error with which they predict another architecture "
        f"(RMSE {np.sqrt((without**2).mean()):.3f} → {np.sqrt((with_it**2).mean()):.3f})"
    )
    head = "The figure adds to the baselines" if status == "reached" else "It is not shown to add to the baselines"
    return Rung(RUNGS[2], status, share, low, high, p, 0, f"{head}: {evidence}.")


def usable_baselines(rows: pd.DataFrame, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the baselines that are finite for every model and are not constant."""
    return tuple(n for n in names if n in rows and np.isfinite(rows[n].astype(float)).all() and rows[n].nunique() > 1)


def partial_effect(rows: pd.DataFrame, label: str, baselines: Sequence[str]) -> tuple[float, float, float]:
    """Return the standardised effect of a figure on the outcome, its standard error, and p, given the baselines.

    This is ordinary least squares on normal scores (van der Waerden), with indicators of every field of the recipes and
    HC3 standard errors (MacKinnon & White 1985). Normal scores are used because a sum of ranks is not linear in them:
    ranks would assign a bend of a baseline's effect to the figure. All three are NaN if fewer than five degrees of
    freedom are left, or if the figure is a linear function of the baselines and fields. A model that is alone with a
    level of a field is fitted exactly: it says nothing of the effect, and is left out, since HC3 would divide by 0.
    """
    y, x = (_scores(rows[c]) for c in ("outcome", label))
    given = _given(rows, baselines)
    rank = int(np.linalg.matrix_rank(given))
    if _freedom(rows, given) < _FREE or np.linalg.matrix_rank(np.column_stack([given, x])) == rank:
        return math.nan, math.nan, math.nan
    shared = (_basis(given) ** 2).sum(1) < 1 - _EXACT
    fitted = sm.OLS(y[shared], np.column_stack([x[shared], _basis(given[shared])])).fit(cov_type="HC3", use_t=True)
    return float(fitted.params[0]), float(fitted.bse[0]), float(fitted.pvalues[0])


def _given(rows: pd.DataFrame, baselines: Sequence[str]) -> Vector:
    """A constant, the normal scores of the baselines, and indicators of every field: the columns of a regression."""
    fields = [indicators(level) for level in axes(rows).values()]
    return np.column_stack([np.ones(len(rows)), *(_scores(rows[b]) for b in baselines), *fields])


def _freedom(rows: pd.DataFrame, given: Vector) -> int:
    """Degrees of freedom that a regression on these columns and one figure leaves."""
    return len(rows) - int(np.linalg.matrix_rank(given)) - 1


def _basis(columns: Vector) -> Vector:
    """An orthonormal basis (N, rank) of the space of columns (N, k)."""
    left, size, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, size > size[0] * max(columns.shape) * np.finfo(float).eps])


def _scores(values: pd.Series) -> Vector:
    """Normal scores (van der Waerden) of values (N,), standardised."""
    ranks = stats.rankdata(values)
    return np.asarray(stats.zscore(stats.norm.ppf(ranks / (len(ranks) + 1))))


def prediction_errors(rows: pd.DataFrame, columns: Sequence[str]) -> Vector:
    """Return the errors (N,) of predicting the outcome of each architecture from the other architectures.

    The predictor is a ridge regression on the columns and on indicators of every field but data and architecture. The
    indicators are needed because otherwise a column that encodes such a field would seem to add to the baselines. The
    penalty is chosen by nested cross-validation over the other architectures.
    """
    fields = [indicators(of) for name, of in axes(rows).items() if name not in ("data", "architecture")]
    x, y = np.column_stack([rows[list(columns)], *fields]).astype(float), rows["outcome"].to_numpy(float)
    group = rows["architecture"].to_numpy()
    errors = np.zeros(len(y))
    for left_out in np.unique(group):
        train = group != left_out
        inner = sum(
            (_missed(x, y, train & (group != one), train & (group == one)) ** 2).sum(1)
            for one in np.unique(group[train])
        )
        errors[~train] = _missed(x, y, train, ~train)[int(np.argmin(inner))]
    return errors


def _missed(x: Vector, y: Vector, fit: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> Vector:
    """Errors (penalties, test models) of ridge regressions on standardised columns, by their closed form."""
    scale = StandardScaler().fit(x[fit])
    left, size, right = np.linalg.svd(scale.transform(x[fit]), full_matrices=False)
    middle = y[fit].mean()
    shrunk = size / (size**2 + _PENALTIES[:, None]) * (left.T @ (y[fit] - middle))
    return np.asarray(y[test] - middle - shrunk @ right @ scale.transform(x[test]).T)
