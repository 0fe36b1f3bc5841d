"""What a study's models say: correlations with their uncertainty, what may stand behind them, and the verdict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
from statsmodels.stats.multitest import multipletests

from robgib.reporting.summary import ALIKE
from robgib.statistics import partial_correlation, smallest_correlation, williams_test
from robgib.studies.design import Study
from robgib.studies.measure import COVARIATES

__all__ = [
    "Claim",
    "claim",
]

Vector = npt.NDArray[np.float64]
LEAST = 8
"""Fewer models than this carry no verdict."""
_CELL = ["data", "architecture", "regime", "dose"]
"""What models of one cell have in common: they differ by their seed alone."""
_DRAWS = 2000
_LEVEL = 0.05
_TOO_NOISY = 0.2  # reliability below which a correlation is not corrected for it


@dataclass(frozen=True)
class Claim:
    """Everything a study found.

    Attributes:
        verdict: ``supported``, ``contradicted``, ``not shown``, or ``cannot be told``.
        words: the verdict in a sentence or two.
        models: how many it rests on.
        correlations: a row a figure and part: Spearman's, Pearson's and Kendall's coefficient, the bootstrap's
            interval, the permutation's p, and Holm's for the secondary figures.
        effects: the primary figure within cells (seeds apart), within architectures (doses), between regimes, and in
            the mixed model.
        partial: Spearman's partial correlation of the primary figure given each covariate, and all.
        without: the correlation with each architecture and regime left out.
        facts: single numbers by name.
        notes: what must be known beside them.
    """

    verdict: str
    words: str
    models: int
    correlations: pd.DataFrame
    effects: pd.DataFrame
    partial: pd.DataFrame
    without: pd.DataFrame
    facts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def claim(study: Study, rows: pd.DataFrame) -> Claim:
    """Test a study's claim on its measured models (:func:`~robgib.studies.measure.measured_rows`).

    The primary figure's Spearman correlation with the outcome over the models to confirm on decides, at 5% by
    permutation; everything else is secondary, and corrected after Holm.
    """
    rng = np.random.default_rng([study.seed, 23])
    usable = rows[rows["left_out"] == ""]
    if "outcome" not in usable:
        usable = usable.assign(outcome=np.nan)
    primary = study.primary.label
    parts = {part: usable[usable["part"] == part] for part in ("confirm", "explore", "control")}
    table = [_correlation(part, f.label, parts[part], rng) for part in parts for f in study.figures]
    correlations = pd.DataFrame([c for c in table if c["models"]])
    own = parts["confirm"]
    if correlations.empty:
        correlations = pd.DataFrame(columns=["part", "figure", "models", "rho", "low", "high", "p"])
    else:
        second = (correlations["part"] == "confirm") & (correlations["figure"] != primary) & correlations["p"].notna()
        correlations["p_holm"] = np.nan
        if second.any():
            correlations.loc[second, "p_holm"] = multipletests(correlations.loc[second, "p"], method="holm")[1]
    held = own.dropna(subset=[primary, "outcome"]) if primary in own else own.iloc[:0]
    notes = _notes(rows, held, primary)
    nothing = pd.DataFrame()
    if len(held) < LEAST:
        words = (
            f"{len(held)} usable models are too few for a verdict (at least {LEAST}); the correlations below are for "
            "the eye only."
        )
        return Claim("cannot be told", words, len(held), correlations, nothing, nothing, nothing, {}, notes)
    if held[primary].nunique() < 2 or held["outcome"].nunique() < 2:
        same = primary if held[primary].nunique() < 2 else "the outcome"
        words = f"{same} is the same for all {len(held)} models: there is nothing to correlate."
        return Claim("cannot be told", words, len(held), correlations, nothing, nothing, nothing, {}, notes)
    main = correlations[(correlations["part"] == "confirm") & (correlations["figure"] == primary)].iloc[0]
    facts = _facts(study, held, rng)
    effects = _effects(held, primary, rng)
    verdict, words = _verdict(study, main, effects, facts)
    return Claim(
        verdict,
        words,
        len(held),
        correlations,
        effects,
        _partial(study, held, primary),
        _without(held, primary),
        facts,
        notes,
    )


def _correlation(part: str, label: str, rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """The three coefficients of one figure with the outcome, an interval and a p of the first."""
    held = rows.dropna(subset=[label, "outcome"]) if label in rows else rows.iloc[:0]
    found: dict[str, Any] = {"part": part, "figure": label, "models": len(held)}
    names = ("rho", "low", "high", "p", "pearson", "kendall", "marked", "reliability", "corrected")
    found |= dict.fromkeys(names, np.nan)
    if len(held) < 4 or held[label].nunique() < 2 or held["outcome"].nunique() < 2:
        return found
    x, y = held[label].to_numpy(float), held["outcome"].to_numpy(float)
    rho = float(stats.spearmanr(x, y).statistic)
    ranks = stats.rankdata(x), stats.rankdata(y)
    drawn = _weighted_correlations(*ranks, _resamples(_clusters(held), rng))
    centred = [_standard(r) for r in ranks]
    reliable = [_reliability(v, held[f"{k}_se"].to_numpy(float)) for k, v in ((label, x), ("outcome", y))]
    pearson = float(stats.pearsonr(x, y).statistic)
    shuffled = rng.permuted(np.tile(centred[1], (_DRAWS, 1)), axis=1) @ centred[0] / len(x)
    found |= {
        "rho": rho,
        "low": float(np.nanquantile(drawn, 0.025)),
        "high": float(np.nanquantile(drawn, 0.975)),
        "p": float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + _DRAWS)),
        "pearson": pearson,
        "kendall": float(stats.kendalltau(x, y).statistic),
        "marked": float(held[f"{label}_marked"].astype(float).mean()),
        "reliability": reliable[0],
        "corrected": _corrected(pearson, *reliable),
    }
    return found


def _reliability(values: Vector, errors: Vector) -> float:
    """Share of the variance over models that is not the figure's own estimation error."""
    return float(max(0.0, 1 - (errors**2).mean() / max(values.var(ddof=1), 1e-30)))


def _corrected(pearson: float, *reliable: float) -> float:
    """Pearson's correlation had both been measured without error (Spearman 1904).

    NaN where error is most of either, and where it comes out above 1: the intervals then hold errors that all models
    share, which lower no correlation.
    """
    if min(reliable) < _TOO_NOISY:
        return math.nan
    value = pearson / math.sqrt(math.prod(reliable))
    return value if abs(value) < 1 else math.nan


def _spearman(x: Vector, y: Vector) -> float:
    a, b = stats.rankdata(x), stats.rankdata(y)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _clusters(rows: pd.DataFrame) -> list[npt.NDArray[np.int64]]:
    """Rows of models that differ by their seed alone, which are resampled together; where those groups are too few to
    resample, each model alone."""
    groups = rows.groupby(_CELL, sort=False).indices
    if len(groups) < LEAST:
        return [np.array([i]) for i in range(len(rows))]
    return [np.asarray(i) for i in groups.values()]


def _resamples(clusters: Sequence[npt.NDArray[np.int64]], rng: np.random.Generator) -> Vector:
    """How often each row is drawn (draws, N), whole clusters at a time."""
    member = np.zeros((len(clusters), sum(map(len, clusters))))
    for k, rows in enumerate(clusters):
        member[k, rows] = 1.0
    return np.asarray(rng.multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), size=_DRAWS) @ member)


def _weighted_correlations(x: Vector, y: Vector, weights: Vector) -> Vector:
    """Pearson's correlation of x and y (N,) under each row of weights (draws, N); of ranks it is the bootstrap of
    Spearman's, the ranks being those of the whole sample."""
    w = weights / weights.sum(1, keepdims=True)
    a, b = x - w @ x[:, None], y - w @ y[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((w * a * b).sum(1) / np.sqrt((w * a**2).sum(1) * (w * b**2).sum(1)))


def _effects(rows: pd.DataFrame, label: str, rng: np.random.Generator) -> pd.DataFrame:
    """The primary figure's correlation with the outcome at each level of how the models differ."""
    line, base = _CELL[:-1], _CELL[:-2]
    levels = (
        ("within cells (seeds)", _within(rows, label, _CELL)),
        ("within architecture and regime (dose)", _within(_means(rows, label, _CELL), label, line)),
        ("between regimes, within architecture", _within(_means(rows, label, line), label, base)),
    )
    found = []
    for name, (x, y, groups) in levels:
        row: dict[str, Any] = {"effect": name, "models": len(x), "estimate": np.nan, "low": np.nan, "high": np.nan}
        if len(x) - len(groups) >= 3 and x.std() > 1e-12 and y.std() > 1e-12:
            r = float(np.corrcoef(x, y)[0, 1])
            low, high = _interval_within(r, x, y, groups, rng)
            row |= {"estimate": r, "low": low, "high": high}
        found.append(row)
    found.append(_mixed(rows, label))
    return pd.DataFrame(found)


def _means(rows: pd.DataFrame, label: str, keys: list[str]) -> pd.DataFrame:
    return rows.groupby(keys, sort=False)[[label, "outcome"]].mean().reset_index()


def _interval_within(
    r: float, x: Vector, y: Vector, groups: Sequence[npt.NDArray[np.int64]], rng: np.random.Generator
) -> tuple[float, float]:
    """95% interval of the correlation r of deviations from the groups' means: two of a pair are one, mirrored.

    Whole groups are resampled; of few groups their members are, and Fisher's z is spread by what the means cost.
    """
    if len(groups) >= LEAST:
        drawn, factor = _weighted_correlations(x, y, _resamples(groups, rng)), 1.0
    else:
        alone = [np.array([i]) for i in range(len(x))]
        drawn, factor = _weighted_correlations(x, y, _resamples(alone, rng)), math.sqrt(len(x) / (len(x) - len(groups)))
    z = np.arctanh(np.clip(drawn, -1 + 1e-12, 1 - 1e-12))
    middle = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    low, high = (middle + factor * (float(np.nanquantile(z, q)) - middle) for q in (0.025, 0.975))
    return math.tanh(low), math.tanh(high)


def _within(rows: pd.DataFrame, label: str, keys: list[str]) -> tuple[Vector, Vector, list[npt.NDArray[np.int64]]]:
    """Deviations from the group's mean, of groups of two and more, and which of them are of one group."""
    size = rows.groupby(keys)[label].transform("size")
    held = rows[size > 1].reset_index(drop=True)
    if held.empty:
        return np.zeros(0), np.zeros(0), []
    mean = held.groupby(keys)[[label, "outcome"]].transform("mean")
    return (
        (held[label] - mean[label]).to_numpy(float),
        (held["outcome"] - mean["outcome"]).to_numpy(float),
        [np.asarray(i) for i in held.groupby(keys, sort=False).indices.values()],
    )


def _mixed(rows: pd.DataFrame, label: str) -> dict[str, Any]:
    """outcome ~ figure + dose + (1 | architecture) + (1 | regime), the figure and the outcome standardised."""
    found: dict[str, Any] = {
        "effect": "mixed model: outcome ~ figure + dose + (1|architecture) + (1|regime)",
        "models": len(rows),
        "estimate": np.nan,
        "low": np.nan,
        "high": np.nan,
    }
    y, x, dose = (_standard(rows[c].to_numpy(float)) for c in ("outcome", label, "dose"))
    columns = [np.ones(len(rows)), x, *([dose] if dose.std() > 0 else [])]
    if len(rows) < 4 * len(columns) or rows["architecture"].nunique() + rows["regime"].nunique() < 3:
        return found
    of = {k: _dummies(rows[k]) for k in ("architecture", "regime") if rows[k].nunique() > 1}
    one = np.ones(len(rows), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of variance components at 0, which are no fault
        try:
            spec = _components(of)
            fitted = MixedLM(y, np.column_stack(columns), one, exog_vc=spec).fit(reml=True)
        except (np.linalg.LinAlgError, ValueError):
            return found
    value, error = float(fitted.fe_params[1]), float(fitted.bse_fe[1])
    if np.isfinite(error):
        found |= {"estimate": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
    return found


def _components(of: dict[str, Vector]) -> Any:
    names = list(of)
    return VCSpec(names, [[[f"{n}{i}" for i in range(of[n].shape[1])]] for n in names], [[of[n]] for n in names])


def _dummies(values: pd.Series) -> Vector:
    return np.asarray(pd.get_dummies(values).to_numpy(float))


def _standard(values: Vector) -> Vector:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros(len(values))


def _partial(study: Study, rows: pd.DataFrame, label: str) -> pd.DataFrame:
    known = [
        c for c in COVARIATES if c != "clean_accuracy" or study.outcome.measure != "generalisation_gap"
    ]  # its part
    told = [c for c in known if c in rows and rows[c].notna().all() and rows[c].nunique() > 1]
    complexity = next((c for c in rows if c.startswith("ib_complexity") and not c.endswith(("_se", "_marked"))), None)
    if complexity and complexity != label and rows[complexity].notna().all() and rows[complexity].nunique() > 1:
        told.append(complexity)
    x, y = rows[label].to_numpy(float), rows["outcome"].to_numpy(float)
    found = []
    for name, columns in (*((c, [c]) for c in told), ("all of them", told)):
        if columns:
            rho, p = partial_correlation(x, y, rows[columns].to_numpy(float))
            found.append({"given": name, "rho": rho, "p": p})
    return pd.DataFrame(found, columns=["given", "rho", "p"])


def _without(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    """The correlation with each group of models left out."""
    found = []
    for key in ("architecture", "regime"):
        if rows[key].nunique() < 2:
            continue
        for group in rows[key].unique():
            rest = rows[rows[key] != group]
            if len(rest) >= 4:
                rho = _spearman(rest[label].to_numpy(float), rest["outcome"].to_numpy(float))
                found.append({"left out": f"{key} {group}", "models": len(rest), "rho": rho})
    return pd.DataFrame(found, columns=["left out", "models", "rho"])


def _facts(study: Study, rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    """GIB against IB: how alike C and I are over the models, and whether one correlates more with the outcome."""
    facts = {"smallest correlation shown with 80% power": smallest_correlation(len(rows))}
    if "bound_of" in rows and rows["bound_of"].sum() > 0:
        facts |= {
            "estimates of IB and GIB": float(rows["bound_of"].sum()),
            "of them IB ≤ GIB": float(rows["bound_held"].sum()),
            "largest IB − GIB, bits": float(rows["bound_worst"].max()),
        }
    labels = {f.figure: f.label for f in study.figures}
    gib, ib = labels.get("gib_complexity"), labels.get("ib_complexity")
    if gib and ib:
        both = rows.dropna(subset=[gib, ib])
        if len(both) >= LEAST and both[gib].nunique() > 1 and both[ib].nunique() > 1:
            c, i, y = (both[k].to_numpy(float) for k in (gib, ib, "outcome"))
            alike = float(np.corrcoef(c, i)[0, 1])
            ranks, weights = [stats.rankdata(v) for v in (c, i, y)], _resamples(_clusters(both), rng)
            r_c, r_i = (float(np.corrcoef(v, y)[0, 1]) for v in (c, i))
            drawn = np.abs(_weighted_correlations(ranks[0], ranks[2], weights)) - np.abs(
                _weighted_correlations(ranks[1], ranks[2], weights)
            )
            t, p = williams_test(r_c, r_i, alike, len(both))
            facts |= {
                "corr(C, I)": alike,
                "|ρ(C)| − |ρ(I)|": abs(_spearman(c, y)) - abs(_spearman(i, y)),
                "|ρ(C)| − |ρ(I)|, low": float(np.nanquantile(drawn, 0.025)),
                "|ρ(C)| − |ρ(I)|, high": float(np.nanquantile(drawn, 0.975)),
                "Williams' t": t,
                "Williams' p": p,
            }
    return facts


def _notes(rows: pd.DataFrame, held: pd.DataFrame, primary: str) -> tuple[str, ...]:
    notes = []
    failed = rows[rows["left_out"] != ""]
    for reason, group in failed.groupby("left_out", sort=False):
        notes.append(f"left out ({reason}): {', '.join(group['model'])}")
    marked = held[held[f"{primary}_marked"].astype(bool)] if f"{primary}_marked" in held else held.iloc[:0]
    if len(marked):
        notes.append(f"the primary figure is marked in {len(marked)} of {len(held)} models: see their own pages")
    return tuple(notes)


def _verdict(study: Study, main: pd.Series, effects: pd.DataFrame, facts: dict[str, float]) -> tuple[str, str]:
    rho, low, high, p = (float(main[k]) for k in ("rho", "low", "high", "p"))
    told = f"Spearman's ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.3g}, over {int(main['models'])} models"
    sign = "positive" if rho > 0 else "negative"
    if p >= _LEVEL or low <= 0 <= high:
        least = facts["smallest correlation shown with 80% power"]
        verdict = "not shown"
        words = f"No correlation is shown: {told}. So many models show one of {least:.2f} or more four times in five."
    elif study.expect in ("either", sign):
        verdict, words = "supported", f"{study.primary.figure} goes with {study.outcome.noun}, {sign}ly: {told}."
    else:
        verdict = "contradicted"
        words = f"The correlation is {sign}, where the claim expects a {study.expect} one: {told}."
    inside = effects[effects["effect"].str.startswith("within") & effects["estimate"].notna()]
    clear = inside[(inside["low"] > 0) | (inside["high"] < 0)]
    if verdict in ("supported", "contradicted") and len(inside):
        agree = clear[np.sign(clear["estimate"]) == np.sign(rho)]
        if len(agree):
            words += f" It is there {' and '.join(agree['effect'])} too."
        else:
            words += " Within cells or doses it is not shown: what differs between the groups may stand behind it."
        for r in clear[np.sign(clear["estimate"]) != np.sign(rho)].itertuples():
            words += (
                f" {str(r.effect).capitalize()} it is the opposite: {r.estimate:+.2f} [{r.low:+.2f}, {r.high:+.2f}]."
            )
    alike = facts.get("corr(C, I)")
    if alike is not None and alike > ALIKE:
        words += f" The GIB is not told from the IB on these models: corr(C, I) = {alike:.3f}."
    return verdict, words
