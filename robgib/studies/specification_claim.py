"""Summarise a specification curve: the analyses that support the claim, and the choices that separate them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from robgib.statistics import signed
from robgib.studies.analyses import CHOICES, COMPRESSION, OUTCOMES, UNIT_SYNERGY
from robgib.studies.specification import RESCALED

__all__ = [
    "SpecificationClaim",
    "matched_difference",
    "quiet_analyses",
    "specification_claim",
]

OUT, NOT, OPEN = OUTCOMES["compresses"], OUTCOMES["does not compress"], "undetermined"
SUBSET_SYNERGY = "more subset synergy, smaller generalisation gap"
_NEARLY_ALL = 0.95
_MOST_FLIPS = 2**14
_DRAWS = 9999
_MOST_SHUFFLES = 10**6


@dataclass(frozen=True)
class SpecificationClaim:
    """The result of a specification curve.

    Attributes:
        verdict: ``comes out``, ``does not come out``, ``depends on the analysis``, or ``undetermined``.
        words: in a few sentences.
        models: networks that it rests on.
        choices: a row a choice and level: how many analyses, and the shares in which the claim comes out.
        separating: a row a choice: the two levels that differ most, analyses that differ in nothing else compared.
        controls: a row a control: the share in which the claim comes out there.
        others: a row a further claim and group of networks.
        notes: what must be known beside them.
    """

    verdict: str
    words: str
    models: int
    choices: pd.DataFrame
    separating: pd.DataFrame
    controls: pd.DataFrame
    others: pd.DataFrame
    notes: tuple[str, ...] = ()


def specification_claim(
    rows: pd.DataFrame, networks: pd.DataFrame, errors: Mapping[str, str] | None = None
) -> SpecificationClaim:
    """Count in which analyses the claim comes out, and compare analyses that differ in one choice alone.

    Args:
        rows: of all analyses (:func:`~robgib.studies.specification.specification_rows`).
        networks: a row a network.
        errors: of the networks that failed.
    """
    notes = tuple(f"left out ({why}): {name}" for name, why in (errors or {}).items())
    nothing = pd.DataFrame()
    if rows.empty:
        return SpecificationClaim(
            "undetermined", "No network could be analysed.", 0, nothing, nothing, nothing, nothing, notes
        )
    about = rows[rows["claim"] == COMPRESSION]
    own = about[about["control"] == ""]
    choices = _levels(own)
    separating = _separating(own)
    quiet = quiet_analyses(about)
    controls = _controls(about)
    share = float((own["outcome"] == OUT).mean())
    against = float((own["outcome"] == NOT).mean())
    verdict = "comes out" if share >= _NEARLY_ALL else "does not come out" if against >= _NEARLY_ALL else ""
    words = [
        f"Of {len(own):,} analyses of {own['network'].nunique()} networks the claim comes out in {share:.0%}, does not "
        f"in {against:.0%}, and {1 - share - against:.0%} are undetermined.",
        *_sentences(choices, separating),
        _of_controls(controls),
        _of_quiet(own, quiet),
        _of_epochs(own),
    ]
    others = pd.DataFrame([*_unit_rows(rows), *_gap_rows(networks)])
    return SpecificationClaim(
        verdict or "depends on the analysis",
        " ".join(filter(None, words)),
        int(own["network"].nunique()),
        choices,
        separating,
        controls,
        others,
        notes,
    )


_SHARES = {"out": OUT, "does_not": NOT, "undetermined": OPEN}
_NAMES = {
    "kind": "network", "term": "term", "features": "features", "view": "view", "fitted": "bins, codes or noise",
    "estimator": "estimator", "weights": "PMI weights", "layer": "layer",
}  # fmt: skip


def _levels(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for choice, name in _NAMES.items():
        for level, of in own.groupby(choice, sort=False):
            counts = of["outcome"].value_counts(normalize=True)
            shares = {key: float(counts.get(outcome, 0.0)) for key, outcome in _SHARES.items()}
            change = float(of["change"].median())
            rows.append({"choice": name, "level": str(level), "analyses": len(of), **shares, "median_change": change})
    return pd.DataFrame(rows)


def matched_difference(own: pd.DataFrame, choice: str, level: str, other: str) -> tuple[float, float, int, int]:
    """How much more often the claim comes out at one level of a choice than at another, all other choices alike.

    Args:
        own: rows of analyses.
        choice: name of the column.
        level: one value.
        other: another value.

    Returns:
        The mean over networks of the difference of shares, the two-sided p of an exact sign-flip test over networks
        (every analysis of a network shares its training, so that the network is the unit), pairs, and networks.
    """
    keys = [c for c in ("network", *CHOICES) if c != choice]
    if choice in ("features", "estimator"):
        keys = [c for c in keys if c not in ("features", "estimator")]
    tables = [
        own[own[choice] == value].assign(out=lambda t: t["outcome"] == OUT).groupby(keys)["out"].mean()
        for value in (level, other)
    ]
    pairs = pd.concat(tables, axis=1, keys=["a", "b"]).dropna()
    by_network = (pairs["a"] - pairs["b"]).groupby(level="network").mean().to_numpy()
    return (*_sign_flip(by_network), len(pairs), len(by_network))


def _sign_flip(differences: np.ndarray) -> tuple[float, float]:
    """The mean and the two-sided p of flipping signs; all of them where there are few, else random ones."""
    n = len(differences)
    if not n:
        return float("nan"), float("nan")
    if 2**n <= _MOST_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        drawn = np.random.default_rng(0).choice([1.0, -1.0], size=(_DRAWS, n))
        signs = np.vstack([np.ones(n), drawn])
    means = signs @ differences / n
    return float(differences.mean()), float((np.abs(means) >= abs(means[0]) - 1e-12).mean())


def _separating(own: pd.DataFrame) -> pd.DataFrame:
    """For each choice the two levels that differ most; networks differ in more than their kind and are not matched."""
    rows = []
    for choice, name in _NAMES.items():
        levels = list(own[choice].unique())
        if len(levels) < 2:
            continue
        if choice == "kind":
            shares = own.assign(out=own["outcome"] == OUT).groupby(choice)["out"].mean().sort_values()
            rows.append({"choice": name, "more": str(shares.index[-1]), "less": str(shares.index[0]),
                         "difference": float(shares.iloc[-1] - shares.iloc[0]), "p": float("nan"),
                         "pairs": 0, "networks": int(own["network"].nunique())})  # fmt: skip
            continue
        found = {(a, b): matched_difference(own, choice, a, b) for a, b in itertools.combinations(levels, 2)}
        found = {pair: value for pair, value in found.items() if value[2]}
        if not found:
            continue
        (a, b), (difference, p, pairs, count) = max(found.items(), key=lambda one: abs(one[1][0]))
        if difference < 0:
            a, b, difference = b, a, -difference
        # Of all pairs of levels the largest is shown: its p is that of one, times their number (Bonferroni).
        rows.append({"choice": name, "more": str(a), "less": str(b), "difference": difference,
                     "p": min(1.0, p * len(found)), "pairs": pairs, "networks": count})  # fmt: skip
    return pd.DataFrame(rows).sort_values("difference", ascending=False, ignore_index=True)


def quiet_analyses(about: pd.DataFrame) -> pd.DataFrame:
    """The analyses of each kind of network that find no compression where only the scale of the layer changes.

    Returns:
        The kind and the choices of those that were applied to both rescaled networks and came out in neither.
    """
    keys = ["kind", *CHOICES]
    scaled = about[about["control"].isin(RESCALED)]
    came = scaled.assign(out=scaled["outcome"] == OUT).groupby(keys)["out"].agg(["sum", "size"])
    return came[(came["sum"] == 0) & (came["size"] >= len(RESCALED))].reset_index()[keys]


def _controls(about: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for how, of in about.groupby("control", sort=False):
        like = about[(about["control"] == "") & about["kind"].isin(of["kind"].unique())]
        like = like.merge(of[list(CHOICES)].drop_duplicates())
        row = {"control": str(how) or "none: trained on the labels", "networks": int(of["network"].nunique()),
               "analyses": len(of), "out": float((of["outcome"] == OUT).mean()),
               "out_trained": float((like["outcome"] == OUT).mean())}  # fmt: skip
        rows.append({**row, "p": _label_p(about, of) if how == "random-labels" else float("nan")})
    return pd.DataFrame(rows)


def _label_p(about: pd.DataFrame, shuffled: pd.DataFrame) -> float:
    """Two-sided p that labels make no difference to the share: all ways to shuffle networks within their kind."""
    like = about[about["control"].isin(["", "random-labels"])].merge(shuffled[["kind", *CHOICES]].drop_duplicates())
    shares = like.assign(out=like["outcome"] == OUT).groupby(["kind", "network", "control"])["out"].mean().reset_index()
    seen, possible = [], []
    for _, of in shares.groupby("kind"):
        values, trained = of["out"].to_numpy(), (of["control"] == "").to_numpy()
        if trained.all() or not trained.any():
            continue
        places = itertools.combinations(range(len(values)), int(trained.sum()))
        possible.append([values[list(c)].mean() - np.delete(values, list(c)).mean() for c in places])
        seen.append(values[trained].mean() - values[~trained].mean())
    if not seen or np.prod([float(len(p)) for p in possible]) > _MOST_SHUFFLES:
        return float("nan")
    means = np.array([np.mean(c) for c in itertools.product(*possible)])
    return float((np.abs(means) >= abs(np.mean(seen)) - 1e-12).mean())


def _sentences(choices: pd.DataFrame, separating: pd.DataFrame) -> list[str]:
    kinds = choices[choices["choice"] == _NAMES["kind"]]
    made = ["By network: " + ", ".join(f"{r.level} {r.out:.0%}" for r in kinds.itertuples()) + "."]
    matched = separating[separating["pairs"] > 0].head(3)
    parts = [
        f"{r.choice} ({r.more} more often than {r.less}, by {100 * r.difference:.0f} points, p = {r.p:.2g})"
        for r in matched.itertuples()
    ]
    if parts:
        made.append(f"Among analyses that differ in one choice alone, most is separated by {', then '.join(parts)}.")
    return made


def _of_controls(controls: pd.DataFrame) -> str:
    parts = [
        f"{r.control} {r.out:.0%} (the same analyses of trained networks {r.out_trained:.0%}"
        f"{'' if np.isnan(r.p) else f', p = {r.p:.2g}'})"
        for r in controls.itertuples()
        if not r.control.startswith("none")
    ]
    return f"It comes out in controls too: {'; '.join(parts)}." if parts else ""


def _of_quiet(own: pd.DataFrame, quiet: pd.DataFrame) -> str:
    if quiet.empty:
        return ""
    of = own.merge(quiet)
    kinds = [f"{kind} {(g['outcome'] == OUT).sum()} of {len(g)}" for kind, g in of.groupby("kind", sort=False)]
    return (
        f"{len(of):,} analyses find nothing where only the scale of the layer or of a unit changes, and the function "
        f"does not; among these the claim comes out in: {', '.join(kinds) or 'none'}."
    )


def _of_epochs(own: pd.DataFrame) -> str:
    out = own[own["outcome"] == OUT]
    if out.empty:
        return ""
    first = float((out["peak_epoch"] == 0).mean())
    return f"In {first:.0%} of those in which it comes out the untrained network is the peak: nothing rose before."


def _unit_rows(rows: pd.DataFrame) -> list[dict[str, object]]:
    of_units = rows[rows["claim"] == UNIT_SYNERGY]
    made = []
    for (kind, how), of in of_units.groupby(["kind", "control"], sort=False):
        counts = of["outcome"].value_counts()
        made.append({"claim": UNIT_SYNERGY, "networks": f"{kind}{f', {how}' if how else ''}", "analyses": len(of),
                     **{key: int(counts.get(o, 0)) for key, o in _SHARES.items()},
                     "found": f"change of S {signed(of['change'].min())} to {signed(of['change'].max())} bits, "
                              f"of I(X;Z) {signed(of['rise'].min())} to {signed(of['rise'].max())}"})  # fmt: skip
    return made


def _gap_rows(networks: pd.DataFrame) -> list[dict[str, object]]:
    """Spearman's ρ of subset synergy and generalisation gap over the networks, by an exact or random permutation."""
    made = []
    groups: Sequence[tuple[str, pd.DataFrame]] = [("all networks", networks)]
    if "control" in networks:
        groups = [*groups, ("trained on the labels", networks[networks["control"] == ""])]
    for name, of in groups:
        pairs = of[["subset_synergy", "gap"]].dropna() if "gap" in of else of.iloc[:0]
        if len(pairs) < 5:
            continue
        x, y = (stats.rankdata(pairs[c]) for c in ("subset_synergy", "gap"))
        x, y = ((v - v.mean()) / max(float(np.linalg.norm(v - v.mean())), 1e-300) for v in (x, y))
        rho = float(x @ y)
        drawn = np.random.default_rng(0).permuted(np.tile(y, (_DRAWS, 1)), axis=1) @ x
        p = float((1 + (np.abs(drawn) >= abs(rho) - 1e-12).sum()) / (1 + _DRAWS))
        outcome = OPEN if p > 0.05 else OUT if rho < 0 else NOT
        made.append({"claim": SUBSET_SYNERGY, "networks": f"{name} ({len(pairs)})", "analyses": 1,
                     **{key: int(o == outcome) for key, o in _SHARES.items()},
                     "found": f"Spearman's ρ {signed(rho)}, p = {p:.2g}"})  # fmt: skip
    return made
