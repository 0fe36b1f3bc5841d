"""The headline of a run: its accuracies, its checks, and the order of several models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robgib.registry import parse_value
from robgib.reporting.summary import display_names
from robgib.results import Run, checks_run, eps_text

__all__ = [
    "NORMS",
    "Headline",
    "Ranking",
    "budget_text",
    "headline",
    "of_images",
    "random_points_text",
    "rank",
    "written_eps",
]

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
"""Norms as people write them."""
_PLAIN = re.compile(r"\d{0,6}(\.\d{1,9})?(/[1-9]\d{0,5})?")


def written_eps(eps: float, attack: str = "") -> str:
    """Return a radius as its user wrote it: in the attack's label, or as is customary.

    >>> written_eps(8 / 255), written_eps(0.1), written_eps(0.05, "pgd-linf:eps=1/20"), written_eps(0.123456)
    ('8/255', '0.1', '1/20', '0.1235')
    """
    for pair in attack.partition(":")[2].split(","):
        key, _, text = pair.partition("=")
        if key.strip() == "eps" and _PLAIN.fullmatch(text.strip()):
            value = parse_value(text)
            if isinstance(value, int | float) and math.isclose(value, eps, rel_tol=1e-6):
                return text.strip()
    return eps_text(eps)


def budget_text(norm: str, eps: float, attack: str = "") -> str:
    """Return a budget as text.

    >>> budget_text("linf", 8 / 255)
    'L∞ 8/255'
    """
    return f"{NORMS.get(norm, norm)} {written_eps(eps, attack)}"


def random_points_text(run: Run) -> str:
    """Return one sentence on the random points of the balls that keep their label, or nothing if none were drawn.

    >>> from types import SimpleNamespace
    >>> from robgib.results import table
    >>> row = ("linf", 8 / 255, 100, 50, 48.5, 0.97, 0.88, 1.0)
    >>> random_points_text(SimpleNamespace(random_points=table("random_points", [row])))
    '97.0% [88.0%, 100.0%] of the random points in L∞ 8/255 keep the label (100 for each of 50 images)'
    """
    rows = run.random_points
    if rows.empty:
        return ""
    shares = [
        f"{r.share:.1%} [{r.low:.1%}, {r.high:.1%}] of the random points in {budget_text(r.norm, r.eps)}"
        for r in rows.itertuples()
    ]
    first = rows.iloc[0]
    return f"{' and '.join(shares)} keep the label ({first['points']} for each of {first['samples']} images)"


def of_images(run: Run) -> str:
    """Return on how many of the images the common corruptions were measured; empty if on all, or on none.

    >>> from types import SimpleNamespace
    >>> from robgib.results import table
    >>> corruptions = table("corruptions", [("noise", 1, 110, 121, 0.9, 0.85, 0.95)])
    >>> of_images(SimpleNamespace(corruptions=corruptions, robustness={"samples": [592]}))
    '121 of the 592 images'
    """
    if run.corruptions.empty:
        return ""
    counts, every = run.corruptions["samples"], max(run.robustness["samples"])
    few, most = counts.min(), counts.max()
    return "" if few >= every else f"{few if few == most else f'{few} to {most}'} of the {every} images"


@dataclass(frozen=True)
class Robustness:
    """The lowest robust accuracy of a model at one budget, with its 95% interval."""

    norm: str
    eps: float
    attack: str
    accuracy: float
    low: float
    high: float
    certified: float

    @property
    def budget(self) -> str:
        """The budget as text."""
        return budget_text(self.norm, self.eps, self.attack)


@dataclass(frozen=True)
class Headline:
    """One model in one sentence.

    Attributes:
        name: of the model.
        clean: accuracy on clean samples.
        budgets: the lowest robust accuracy at each budget, in the order of the attacks.
        flagged: names of the attack-failure indicators that the checks raised.
        checks: number of checks.
        unrun: number of them that did not run.
        failed: number of attacks that failed.
        weak: the attacks that ran where no ensemble of attacks did, each followed by where, and the attack that is
            missing; as ``("FGSM and PGD only", "AutoAttack")``.
    """

    name: str
    clean: float
    budgets: tuple[Robustness, ...]
    flagged: tuple[str, ...]
    checks: int
    unrun: int
    failed: int
    weak: tuple[tuple[str, str], ...] = ()

    @property
    def accuracies(self) -> str:
        """Clean and robust accuracy, as ``99.3% clean → 9.5% [7.2, 12.1] at L∞ 0.1``."""
        parts = []
        for b in self.budgets:
            certified = f", certified {b.certified:.1%}" if b.certified >= 0 else ""
            parts.append(f"{b.accuracy:.1%} [{100 * b.low:.1f}, {100 * b.high:.1f}] at {b.budget}{certified}")
        return f"{self.clean:.1%} clean" + (f" → {'; '.join(parts)}" if parts else "")

    @property
    def diagnostics(self) -> str:
        """What the checks of the attacks found."""
        parts = []
        if self.failed:
            parts.append(f"{self.failed} attack{'s' * (self.failed != 1)} failed")
        if self.flagged:
            count = len(self.flagged)
            parts.append(f"{count} attack-failure indicator{'s' * (count != 1)}: {', '.join(self.flagged)}")
        elif self.checks:
            parts.append(_without_indicator(self.checks, self.unrun))
        return "; ".join(parts)

    @property
    def limits(self) -> str:
        """What limits the attacks, in one sentence for each missing one; empty where ensembles of attacks ran."""
        return " ".join(
            f"Attacks: {ran}; {missing} was not run, and a stronger attack may lower this."
            for ran, missing in self.weak
        )

    @property
    def brief_limits(self) -> str:
        """The same in a few words."""
        return " ".join(f"{ran}, no {missing}." for ran, missing in self.weak)


def _without_indicator(checks: int, unrun: int) -> str:
    """Return that no check raised an indicator, with the number of those that ran.

    >>> _without_indicator(16, 0), _without_indicator(16, 9), _without_indicator(1, 1)
    ('no attack-failure indicator in 16 checks', 'no attack-failure indicator in the 7 checks that ran; 9 did not run', 'no attack-failure check ran')
    """  # noqa: E501
    ran = checks - unrun
    if not ran:
        return "no attack-failure check ran"
    if not unrun:
        return f"no attack-failure indicator in {_checks(checks)}"
    return f"no attack-failure indicator in the {_checks(ran)} that ran; {unrun} did not run"


def _checks(count: int) -> str:
    return f"{count} check{'s' * (count != 1)}"


_ENSEMBLES = {
    **dict.fromkeys(("linf", "l2", "l1"), ("AutoAttack", ("AutoAttack", "FastEnsemble"))),
    "l0": ("sigma-zero", ("SigmaZero",)),
}
"""By norm: the attack of the full evaluation, and the classes of attacks without which a result is weak."""
_WRAPPERS = ("ForeignAttack", "Transfer", "TransferredTransformation")  # classes that hold another attack
_FOUND = "FoundImages"  # the class of what the checks found: no attack
_MOST_NAMED = 4


def _weak(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the attacks that ran at the budgets without an ensemble, and what is missing: see :class:`Headline`."""
    table, attacks = run.robustness, run.attack_options["attacks"]
    recorded = attacks if isinstance(attacks, Mapping) else {}
    ran: dict[tuple[str, float], dict[str, str]] = {}
    for r in table[(table["status"] == "ok") & table["attack"].isin(list(recorded))].itertuples():
        kind = str(recorded[r.attack].get("class", ""))
        if kind != _FOUND:
            name = kind if kind and kind not in _WRAPPERS else str(r.attack)
            ran.setdefault((str(r.norm), float(r.eps)), {})[name] = kind
    weak: dict[str, list[tuple[str, float]]] = {}
    for (norm, eps), kinds in ran.items():
        missing, enough = _ENSEMBLES.get(norm, ("", ()))
        if missing and not any(k in enough or missing.lower() in n.lower() for n, k in kinds.items()):
            weak.setdefault(missing, []).append((norm, eps))
    sentences = []
    for missing, budgets in weak.items():
        names = list(dict.fromkeys(name for budget in budgets for name in ran[budget]))
        where = "" if len(budgets) == len(ran) else f" at {_listed([budget_text(*budget) for budget in budgets])}"
        named = _listed(names) if len(names) <= _MOST_NAMED else f"{len(names)} single attacks"
        sentences.append((f"{named} only{where}", missing))
    return tuple(sentences)


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def headline(run: Run, name: str) -> Headline:
    """Return the headline of a run; ``name`` is the model's as it is shown."""
    table = run.robustness
    tried = table[(table["status"] == "ok") & (table["attack"] != "none")]
    budgets = []
    for (norm, eps), rows in tried.groupby(["norm", "eps"], sort=False):
        worst = rows.loc[rows["robust_accuracy"].idxmin()]
        written = next((str(a) for a in rows["attack"] if "eps=" in str(a)), str(worst["attack"]))
        accuracy, low, high = (float(worst[key]) for key in ("robust_accuracy", "low", "high"))
        certified = float(rows["certified_accuracy"].max())
        budgets.append(Robustness(str(norm), float(eps), written, accuracy, low, high, certified))
    flagged = tuple(dict.fromkeys(run.signs.loc[run.signs["seen"].astype(bool), "name"]))
    failed = int((table["status"] != "ok").sum())
    unrun = int((~checks_run(run.signs)).sum())
    clean = float(table["clean_accuracy"].iloc[0])
    return Headline(name, clean, tuple(budgets), flagged, len(run.signs), unrun, failed, _weak(run))


@dataclass(frozen=True)
class Ranking:
    """The order of several models.

    Attributes:
        order: indices of the runs, the most robust first; as given where they do not compare.
        text: a sentence on the order.
    """

    order: tuple[int, ...]
    text: str


def rank(runs: Sequence[Run]) -> Ranking:
    """Order models by robust accuracy at the first budget that all of them share.

    Models of different data, or without a shared budget, keep their order.
    """
    lines = [headline(run, name) for run, name in zip(runs, display_names(runs), strict=True)]
    given = tuple(range(len(runs)))
    if len(runs) < 2:
        return Ranking(given, "")
    if len({str(run.config["data"].get("digest", run.config["data"]["name"])) for run in runs}) > 1:
        return Ranking(given, "The models were evaluated on different data, so they are not ranked.")
    by_budget = [{(b.norm, b.eps): b for b in line.budgets} for line in lines]
    shared = next((key for key in by_budget[0] if all(key in own for own in by_budget)), None)
    if shared is None:
        return Ranking(given, "The models share no budget, so they are not ranked.")
    at = [own[shared] for own in by_budget]
    order = tuple(sorted(given, key=lambda i: -at[i].accuracy))
    tied = [
        f"{lines[a].name} and {lines[b].name}"
        for a, b in zip(order, order[1:], strict=False)
        if at[b].high >= at[a].low
    ]
    text = f"Ranked by robust accuracy at {at[0].budget}."
    if tied:
        text += f" Their 95% intervals overlap: {'; '.join(tied)}."
    return Ranking(order, text)
