"""The claim of a study: correlations with their uncertainty, the ladder of evidence, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from robgib.reporting.summary import ALIKE
from robgib.statistics import partial_correlation, signed, smallest_correlation, williams_test
from robgib.studies.agreement import agreement
from robgib.studies.design import FAILED_ATTACK, Figure, Study, heading
from robgib.studies.ladder import (
    DRAWS,
    LEAST,
    Question,
    Rung,
    bootstrap,
    counted,
    highest,
    ladder,
    resamples,
    shown_p,
    usable_baselines,
)
from robgib.studies.measure import reason_in
from robgib.studies.strata import clusters

__all__ = [
    "COLLAPSED",
    "SIGNS",
    "Claim",
    "claim",
    "collapsed",
]

Vector = npt.NDArray[np.float64]
COLLAPSED = 0.1
"""A network is collapsed whose clean accuracy is less than this share of the way from chance to 1."""
_TOO_NOISY = 0.2  # reliability below which a correlation is not corrected for it
SIGNS: Mapping[str, int] = {"positive": 1, "negative": -1, "either": 0}
"""The sign that each expectation of a study names; 0 is either."""
_FEWEST_CONTROLS = 4
_NAMED = 3  # baselines that the sentence names
_DIFFERENCE = "|ρ(baseline)| − |ρ(figure)|"


@dataclass(frozen=True)
class Claim:
    """What a study shows.

    Attributes:
        verdict: the highest rung of the ladder that the primary figure reaches (``goes with``, ``at fixed training``,
            ``beyond the baselines``), ``not shown``, ``contradicted in sign``, or ``undetermined``.
        words: the verdict in a sentence or two.
        models: number of models that the verdict uses.
        ladder: the rungs, a row each: figure, interval, p, and a sentence.
        correlations: a row a figure or baseline and part: Spearman's, Pearson's and Kendall's coefficient, the
            bootstrap's interval, the permutation's p, and Holm's for the secondary figures.
        beside: the baselines beside the primary figure, a row each, the largest |ρ| first: the baseline's ρ, and
            |ρ(baseline)| − |ρ(figure)| with its interval.
        agreement: a row a figure or baseline: Kendall's τ overall, granulated, at fixed fields and given the
            baselines, and the sign errors (:func:`~robgib.studies.agreement.agreement`).
        against: the GIB's complexity against the IB's, a row a layer, partition and estimator.
        partial: Spearman's partial correlation of the primary figure given each baseline, and all.
        without: the correlation with each architecture and regime left out.
        facts: single numbers by name.
        notes: what must be known beside them.
    """

    verdict: str
    words: str
    models: int
    ladder: pd.DataFrame
    correlations: pd.DataFrame
    beside: pd.DataFrame
    agreement: pd.DataFrame
    against: pd.DataFrame
    partial: pd.DataFrame
    without: pd.DataFrame
    facts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def claim(study: Study, rows: pd.DataFrame) -> Claim:
    """Test a study's claim on its measured models (:func:`~robgib.studies.measure.measured_rows`).

    The verdict is the highest rung of the ladder of evidence that the primary figure reaches on the models to confirm
    on (:func:`~robgib.studies.ladder.ladder`). Everything else is secondary, and corrected after Holm. Collapsed
    networks, models that failed, and those without a finite primary figure or outcome are left out, with a note.
    """
    rng = np.random.default_rng([study.seed, 23])
    rows = _finite(collapsed(study, rows))
    usable = rows[rows["left_out"] == ""]
    if "outcome" not in usable:
        usable = usable.assign(outcome=np.nan)
    primary, baselines = study.primary.label, _baselines(study, usable)
    parts = {part: usable[usable["part"] == part] for part in ("confirm", "explore", "control")}
    correlations = _correlations(study, parts, baselines, rng)
    own = parts["confirm"]
    models = (own.dropna(subset=[primary, "outcome"]) if primary in own else own.iloc[:0]).reset_index(drop=True)
    notes = (
        *_notes(rows, models, primary, baselines),
        *_with_failed_attacks(study, rows),
        *_controls(correlations, primary),
    )
    if reason := _no_verdict(models, primary):
        no = pd.DataFrame()
        return Claim("undetermined", reason, len(models), no, correlations, no, no, no, no, no, {}, notes)
    rungs = ladder(Question(models, primary, SIGNS[study.expect], baselines), rng)
    against = _against(study, models, rng)
    facts = _facts(models)
    figures = [f.label for f in study.figures if f.label in models]
    shared = usable_baselines(models, baselines)
    beside = _beside(models, primary, shared, np.random.default_rng([study.seed, 29]))
    verdict, words = _verdict(study, rungs, beside, against, facts)
    return Claim(
        verdict=verdict,
        words=words,
        models=len(models),
        ladder=_ladder_table(rungs),
        correlations=correlations,
        beside=beside,
        agreement=agreement(models, [*figures, *shared], shared, SIGNS[study.expect] if len(figures) == 1 else 0),
        against=against,
        partial=_partial(models, primary, shared, _complexity(study, models)),
        without=_without(models, primary),
        facts=facts,
        notes=notes,
    )


def _finite(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with NaN for every infinite number."""
    numbers = rows.select_dtypes("number")
    return rows.assign(**numbers.mask(np.isinf(numbers)))


def collapsed(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the networks that did not learn left out, where the outcome is one of robustness.

    A network that predicts one class for all images is robust, and its figures are those of a constant. One such
    network can produce a correlation. The limit is :data:`COLLAPSED` of the way from ``chance`` (a column; otherwise
    0.1) to 1, or the study's ``least_accuracy``, if given. Controls are kept.
    """
    if study.outcome.measure == "generalisation_gap" or "clean_accuracy" not in rows:
        return rows
    chance = rows.get("chance", 0.1)
    least = study.least_accuracy if study.least_accuracy is not None else chance + COLLAPSED * (1 - chance)
    below = (rows["clean_accuracy"] < least) & (rows["left_out"] == "") & (rows["part"] != "control")
    reason = "collapsed: clean accuracy near chance"
    if study.least_accuracy is not None:
        reason = f"clean accuracy below {study.least_accuracy:g}"
    return rows.assign(left_out=rows["left_out"].mask(below, reason))


def _no_verdict(models: pd.DataFrame, primary: str) -> str:
    """Return the reason why there is no verdict; empty if there is one."""
    if len(models) < LEAST:
        return (
            f"{len(models)} usable models are too few for a verdict (at least {LEAST}); the correlations below are "
            "descriptive."
        )
    for column, name in ((primary, heading(primary)), ("outcome", "the outcome")):
        if models[column].nunique() < 2:
            return f"{name} is the same for all {len(models)} models: there is nothing to correlate."
    return ""


def _baselines(study: Study, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns of the baselines. Clean accuracy is part of a generalisation gap, and so no baseline of it."""
    names = [n for n in ("strength", *study.measures) if n in rows]
    return tuple(n for n in names if n != "clean_accuracy" or study.outcome.measure != "generalisation_gap")


def _correlations(
    study: Study, parts: Mapping[str, pd.DataFrame], baselines: tuple[str, ...], rng: np.random.Generator
) -> pd.DataFrame:
    figures = [f.label for f in study.figures]
    table = [_correlation(part, label, parts[part], rng) for part in parts for label in figures]
    table += [{**_correlation("confirm", b, parts["confirm"], rng), "part": "baseline"} for b in baselines]
    correlations = pd.DataFrame([c for c in table if c["models"]])
    if correlations.empty:
        return pd.DataFrame(columns=["part", "figure", "models", "rho", "low", "high", "p"])
    second = (correlations["part"] == "confirm") & (correlations["figure"] != figures[0]) & correlations["p"].notna()
    correlations["p_holm"] = np.nan
    if second.any():
        correlations.loc[second, "p_holm"] = multipletests(correlations.loc[second, "p"], method="holm")[1]
    return correlations


def _correlation(part: str, label: str, rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return three correlations of one figure with the outcome, and the interval and p of the first."""
    rows = rows.dropna(subset=[label, "outcome"]) if label in rows else rows.iloc[:0]
    row: dict[str, Any] = {"part": part, "figure": label, "models": len(rows)}
    names = ("rho", "low", "high", "p", "pearson", "kendall", "marked", "reliability", "corrected")
    row |= dict.fromkeys(names, np.nan)
    if len(rows) < 4 or rows[label].nunique() < 2 or rows["outcome"].nunique() < 2:
        return row
    x, y = rows[label].to_numpy(float), rows["outcome"].to_numpy(float)
    rho = float(stats.spearmanr(x, y).statistic)
    drawn = bootstrap(x, y, resamples(clusters(rows, LEAST), rng))
    ranks = [stats.zscore(stats.rankdata(v)) for v in (x, y)]
    shuffled = rng.permuted(np.tile(ranks[1], (DRAWS, 1)), axis=1) @ ranks[0] / len(x)
    pearson = float(stats.pearsonr(x, y).statistic)
    row |= {
        "rho": rho,
        **_interval(drawn),
        "p": float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + DRAWS)),
        "pearson": pearson,
        "kendall": float(stats.kendalltau(x, y).statistic),
    }
    if f"{label}_se" in rows:
        reliable = [_reliability(v, rows[f"{k}_se"].to_numpy(float)) for k, v in ((label, x), ("outcome", y))]
        row |= {
            "marked": float(rows[f"{label}_marked"].astype(float).mean()),
            "reliability": reliable[0],
            "corrected": _corrected(pearson, *reliable),
        }
    return row


def _reliability(values: Vector, errors: Vector) -> float:
    """Return the share of the variance over models that is not error of estimation; NaN if no error is known."""
    known = errors[np.isfinite(errors)]
    if not len(known):
        return math.nan
    return float(max(0.0, 1 - (known**2).mean() / max(values.var(ddof=1), 1e-30)))


def _corrected(pearson: float, *reliable: float) -> float:
    """Return Pearson's correlation, corrected for attenuation by errors of estimation (Spearman 1904).

    It is NaN if most of the variance of either is error, or if it exceeds 1: the intervals then include errors that
    all models share, which do not lower a correlation.
    """
    if min(reliable) < _TOO_NOISY:
        return math.nan
    value = pearson / math.sqrt(math.prod(reliable))
    return value if abs(value) < 1 else math.nan


def _spearman(x: Vector, y: Vector) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)


def _complexity(study: Study, rows: pd.DataFrame) -> str | None:
    """The column of I(X;Z) of the primary figure's layer, estimator and partition, if the study has it."""
    same = study.primary.model_copy(update={"figure": "ib_complexity"}).label
    return same if same in rows and same != study.primary.label else None


def _partial(rows: pd.DataFrame, label: str, baselines: tuple[str, ...], complexity: str | None) -> pd.DataFrame:
    known = [*baselines]
    if complexity and rows[complexity].notna().all() and rows[complexity].nunique() > 1:
        known.append(complexity)
    x, y = rows[label].to_numpy(float), rows["outcome"].to_numpy(float)
    table = []
    for name, columns in (*((c, [c]) for c in known), ("all of them", known)):
        if columns:
            given = rows[columns].to_numpy(float)
            rho, p = partial_correlation(x, y, given)
            other = partial_correlation(given[:, 0], y, x[:, None])[0] if len(columns) == 1 else math.nan
            table.append({"given": name, "rho": rho, "p": p, "of it given the figure": other})
    return pd.DataFrame(table, columns=["given", "rho", "p", "of it given the figure"])


def _without(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the correlation without each architecture and each regime."""
    table = []
    for key in ("architecture", "regime"):
        if rows[key].nunique() < 2:
            continue
        for group in rows[key].unique():
            rest = rows[rows[key] != group]
            if len(rest) >= 4:
                rho = _spearman(rest[label].to_numpy(float), rest["outcome"].to_numpy(float))
                table.append({"left out": f"{key} {group}", "models": len(rest), "rho": rho})
    return pd.DataFrame(table, columns=["left out", "models", "rho"])


def _beside(rows: pd.DataFrame, label: str, baselines: tuple[str, ...], rng: np.random.Generator) -> pd.DataFrame:
    """Compare the magnitude of each baseline's correlation with that of the figure, the closest baseline first."""
    names = ["baseline", "rho", _DIFFERENCE, "low", "high"]
    x, y = rows[label].to_numpy(float), rows["outcome"].to_numpy(float)
    counts = resamples(clusters(rows, LEAST), rng)
    rho, drawn = _spearman(x, y), np.abs(bootstrap(x, y, counts))
    table = []
    for name in baselines:
        other = rows[name].to_numpy(float)
        of_it, moved = _spearman(other, y), np.abs(bootstrap(other, y, counts)) - drawn
        table.append({"baseline": name, "rho": of_it, _DIFFERENCE: abs(of_it) - abs(rho), **_interval(moved)})
    return pd.DataFrame(table, columns=names).sort_values("rho", key=lambda rho: -rho.abs(), ignore_index=True)


def _interval(drawn: Vector) -> dict[str, float]:
    """Return the 95% interval of a bootstrap's draws."""
    return {"low": float(np.nanquantile(drawn, 0.025)), "high": float(np.nanquantile(drawn, 0.975))}


def _against(study: Study, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Compare C of the GIB with I of the IB: one row per layer, partition and estimator, the primary figure's first.

    A row has the correlation of C and I, and compares the magnitudes of their correlations with the outcome.
    """
    pairs: dict[tuple[str, str, str], dict[str, Figure]] = {}
    for figure in study.figures:
        if figure.figure in ("gib_complexity", "ib_complexity"):
            pairs.setdefault((figure.estimator, figure.partition, figure.layer), {})[figure.figure] = figure
    own = (study.primary.estimator, study.primary.partition, study.primary.layer)
    table = []
    for key in sorted(pairs, key=lambda k: k != own):
        of = pairs[key]
        if len(of) < 2 or any(f.label not in rows for f in of.values()):
            continue
        both = rows.dropna(subset=[f.label for f in of.values()])
        values = [both[of[k].label].to_numpy(float) for k in ("gib_complexity", "ib_complexity")]
        if len(both) >= LEAST and all(np.ptp(v) > 0 for v in values):
            head = {"layer": key[2], "partition": key[1], "estimator": key[0].partition(":")[0], "models": len(both)}
            table.append({**head, **_compared(values[0], values[1], both, rng)})
    return pd.DataFrame(table)


def _compared(c: Vector, i: Vector, rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    """|ρ(C)| − |ρ(I)| with the bootstrap's interval, and Williams' test of the magnitudes of Pearson's r."""
    y = rows["outcome"].to_numpy(float)
    counts = resamples(clusters(rows, LEAST), rng)
    drawn = np.abs(bootstrap(c, y, counts)) - np.abs(bootstrap(i, y, counts))
    rho_c, rho_i = _spearman(c, y), _spearman(i, y)
    r_c, r_i, alike = (float(np.corrcoef(a, b)[0, 1]) for a, b in ((c, y), (i, y), (c, i)))
    t, p = williams_test(abs(r_c), abs(r_i), alike * float(np.sign(r_c) * np.sign(r_i)), len(rows))
    return {
        "corr(C, I)": alike,
        "ρ(C)": rho_c,
        "ρ(I)": rho_i,
        "|ρ(C)| − |ρ(I)|": abs(rho_c) - abs(rho_i),
        **_interval(drawn),
        "Williams' t": t,
        "Williams' p": p,
    }


def _facts(rows: pd.DataFrame) -> dict[str, float]:
    """The power of so many models, and in how many estimates the bound IB ≤ GIB holds."""
    facts = {"smallest correlation shown with 80% power": smallest_correlation(len(rows))}
    if "bound_of" in rows and rows["bound_of"].sum() > 0:
        facts |= {
            "estimates of IB and GIB": float(rows["bound_of"].sum()),
            "of them IB ≤ GIB": float(rows["bound_held"].sum()),
            "largest IB − GIB, bits": float(rows["bound_worst"].max()),
        }
    return facts


def _notes(rows: pd.DataFrame, models: pd.DataFrame, primary: str, baselines: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    failed = rows[rows["left_out"] != ""]
    for reason, group in failed.groupby("left_out", sort=False):
        notes.append(f"left out ({reason}): {', '.join(group['model'])}")
    own = rows[(rows["left_out"] == "") & (rows["part"] == "confirm")]
    for column, name in ((primary, heading(primary)), ("outcome", "the outcome")):
        lacking = own["model"][own[column].isna()] if column in own else own["model"]
        if len(lacking):
            notes.append(f"left out ({name} is missing or infinite): {', '.join(lacking)}")
    marked = models[models[f"{primary}_marked"].eq(True)] if f"{primary}_marked" in models else models.iloc[:0]
    if len(marked):
        notes.append(f"the primary figure is marked in {len(marked)} of {len(models)} models: see their own pages")
    shared = usable_baselines(models, baselines)
    for name in baselines:
        missing = models["model"][~np.isfinite(models[name].astype(float))]
        if name not in shared and len(missing):
            notes.append(
                f"the baseline {heading(name)} is missing for {', '.join(missing)}{_reasons(models, name)}: it has its "
                "own ρ over the other models, and is not among the baselines that the figure must add to"
            )
    return tuple(notes)


def _with_failed_attacks(study: Study, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return what the correlation is with the models that were left out since an attack failed on them.

    Attacks often fail on the most robust ones, so that leaving them out is a choice by the outcome.
    """
    failed = rows["left_out"].str.startswith(FAILED_ATTACK) & (rows["part"] == "confirm")
    every = collapsed(study, rows.assign(left_out=rows["left_out"].mask(failed, "")))
    every = every[(every["part"] == "confirm") & (every["left_out"] == "")]
    row = _correlation("confirm", study.primary.label, every, np.random.default_rng([study.seed, 31]))
    if not failed.any() or not math.isfinite(row["rho"]):
        return ()
    return (
        f"with the {int(failed.sum())} models that were left out for {FAILED_ATTACK}, whose outcome is too high, "
        f"ρ = {signed(row['rho'], row['low'], row['high'])} over {row['models']} models",
    )


def _reasons(models: pd.DataFrame, name: str) -> str:
    """Why a baseline failed, in brackets; nothing if the table does not say."""
    texts = models.get("baselines_failed", pd.Series(dtype=str)).dropna().astype(str)
    reasons = dict.fromkeys(reason for text in texts if (reason := reason_in(text, name)))
    return f" ({'; '.join(reasons)})" if reasons else ""


def _controls(correlations: pd.DataFrame, primary: str) -> tuple[str, ...]:
    """Return a note on the controls, on which no correlation must be found."""
    own = correlations[(correlations["part"] == "control") & (correlations["figure"] == primary)]
    if own.empty:
        return ()
    row = own.iloc[0]
    if row["models"] < _FEWEST_CONTROLS or not math.isfinite(row["rho"]):
        return (f"{int(row['models'])} usable controls are too few for a test (at least {_FEWEST_CONTROLS})",)
    shown = "a correlation is found, although there must be none" if row["p"] < 0.05 else "no correlation is found"
    figures = f"ρ = {signed(row['rho'])}, p {shown_p(row['p'], DRAWS)}"
    return (f"on {int(row['models'])} controls {shown}: {figures}",)


def _ladder_table(rungs: tuple[Rung, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "rung": r.name,
                "status": r.status,
                "figure": r.figure,
                "low": r.low,
                "high": r.high,
                "p": "" if math.isnan(r.p) else shown_p(r.p, r.draws).removeprefix("= "),
                "in words": r.sentence,
            }
            for r in rungs
        ]
    )


def _verdict(
    study: Study, rungs: tuple[Rung, ...], beside: pd.DataFrame, against: pd.DataFrame, facts: Mapping[str, float]
) -> tuple[str, str]:
    """Return the highest rung that is reached, and the sentences of all rungs that were tested."""
    verdict = highest(rungs)
    tested = [r.sentence for r in rungs if not r.sentence.startswith("Not tested")]
    words = f"Figure: {heading(study.primary.figure)}; outcome: {study.outcome.noun}. {' '.join(tested)}"
    if verdict == "not shown":
        least = facts["smallest correlation shown with 80% power"]
        words += f" So many models show a correlation of {least:.2f} or more four times in five."
    else:
        words += _rivals(beside)
    if len(against) and against["corr(C, I)"].iloc[0] > ALIKE:
        alike = against["corr(C, I)"].iloc[0]
        words += f" C and I are collinear on these models (corr = {alike:.3f}): nothing separates the GIB from the IB."
    return verdict, words


def _rivals(beside: pd.DataFrame) -> str:
    """Return the sentence on the baselines whose |ρ| is not shown to be smaller than the figure's."""
    alike = beside[beside["high"] >= 0]
    if beside.empty:
        return ""
    if alike.empty:
        return f" None of {counted(len(beside), 'baseline')} correlates with the outcome as closely."
    named = ", ".join(f"{heading(name)} {signed(rho)}" for name, rho in alike[["baseline", "rho"]].head(_NAMED).values)
    more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
    share = f"{len(alike)} of {counted(len(beside), 'baseline')}"
    return f" For {share} |ρ| is not shown to be smaller than the figure's: {named}{more}."
