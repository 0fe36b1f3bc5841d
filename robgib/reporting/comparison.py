"""Two runs compared on the same samples, and results in the formats of continuous integration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pandas as pd
from markupsafe import Markup

from robgib.errors import RobGIBError, visible
from robgib.reporting.charts import Axis, Chart, Series, figure
from robgib.reporting.page import page, typeset
from robgib.results import OF_FILES, Run, eps_text
from robgib.statistics import (
    mcnemar_test,
    mean_difference,
    paired_difference,
    sign_flip_test,
    signed,
    signed_interval,
)

__all__ = [
    "Finding",
    "compare_runs",
    "comparison_cells",
    "comparison_findings",
    "comparison_page",
    "junit",
    "lost_findings",
    "run_findings",
    "sarif",
]

_LEVEL = 0.05


def compare_runs(a: Run, b: Run) -> pd.DataFrame:
    """Compare two runs sample by sample.

    Args:
        a: the first run.
        b: the second run, on the same data; only samples that both runs attacked are compared.

    Returns:
        One row for clean accuracy, one for each budget that both runs attacked (the worst case over its attacks), and
        one for common corruptions, with the columns ``measure``, ``samples``, ``a`` and ``b`` (accuracies), ``only_a``
        and ``only_b`` (samples that one model alone classifies correctly; of corruptions those that it classifies
        correctly more often), ``difference`` (b − a) with its 95% interval ``low``, ``high`` (Tango's score interval;
        of corruptions Bonett and Price's), ``p`` of McNemar's exact test (of corruptions of the exact sign-flip test),
        and a ``note``.

    Raises:
        RobGIBError: the runs are on other data, have no sample in common, or one alone has masks, targets or a
            surrogate.
    """
    if a.config["data"].get("digest") != b.config["data"].get("digest"):
        names = [str(run.config["data"]["name"]) for run in (a, b)]
        raise RobGIBError(
            f"the runs are not on the same data ({names[0]} and {names[1]}); evaluate both models on one data set."
        )
    conditions = _conditions(a, b)
    first, second = _answers(a), _answers(b)
    common = first.index.intersection(second.index)
    if not len(common):
        raise RobGIBError("the runs have no sample in common; evaluate both with the same --samples and --seed.")
    first, second = first.loc[common], second.loc[common]
    pairs = _corrupted_pairs(a, b)
    rows = [_paired("clean", first["clean"], second["clean"], _not_compared(a, b, pairs))]
    for budget in (column for column in first if column != "clean" and column in second):
        norm, eps = budget
        attacks = [_attacks(run, budget) for run in (a, b)]
        note = "" if attacks[0] == attacks[1] else f"attacked by {attacks[0]} and by {attacks[1]}"
        note = "; ".join(filter(None, (note, conditions)))
        rows.append(_paired(f"{norm} {eps_text(eps)}", first[budget], second[budget], note))
    return pd.DataFrame([*rows, *_corrupted(a, b, pairs)])


def _conditions(a: Run, b: Run) -> str:
    """Return a note if masks, targets or surrogates of two runs differ.

    Raises:
        RobGIBError: one run alone has any.
    """
    differ = []
    for name, called in (("mask", "masks"), ("targets", "targets"), ("transfer_from", "surrogates")):
        values = [run.config["options"]["attack"].get(name) for run in (a, b)]
        if (values[0] is None) != (values[1] is None):
            alone = a if values[1] is None else b
            raise RobGIBError(
                f"{alone.name} was attacked with {called} and the other run without; evaluate both models with the "
                f"same --{name.replace('_', '-')}."
            )
        differ += [called] if values[0] != values[1] else []
    return f"the runs have other {' and '.join(differ)}" if differ else ""


def _budgets(run: Run, status: str) -> set[tuple[str, float]]:
    """Return the norms and eps of the attacks of a run that ended so."""
    rows = run.robustness[(run.robustness["status"] == status) & (run.robustness["norm"] != "")]
    return set(zip(rows["norm"], rows["eps"], strict=True))


def _not_compared(a: Run, b: Run, pairs: pd.DataFrame) -> str:
    """Return a note on the budgets, and corruptions without ``pairs``, that are not compared."""
    parts = []
    for run, other in ((a, b), (b, a)):
        alone = sorted(_budgets(run, "ok") - _budgets(other, "ok"))
        parts += [f"{norm} {eps_text(eps)} (only {run.name})" for norm, eps in alone]
    if len(a.corruptions) and len(b.corruptions) and pairs.empty:
        old = [run.name for run in (a, b) if run.corrupted.empty]
        keep = "keeps" if len(old) == 1 else "keep"
        reason = f"{' and '.join(old)} {keep} no answers by sample" if old else "the runs have none in common"
        parts.append(f"common corruptions ({reason})")
    return f"not compared: {', '.join(parts)}" if parts else ""


def _answers(run: Run) -> pd.DataFrame:
    """Return, by sample, whether the clean answer is right, and whether it is under all attacks of each budget."""
    outcomes = run.outcomes
    if outcomes.empty:
        raise RobGIBError(f"{run.name} has no attack, and its samples are not recorded; evaluate it with an attack.")
    clean = (outcomes["clean_prediction"] == outcomes["label"]).groupby(outcomes["index"]).first()
    right = outcomes["right"].where(outcomes["right"].notna(), outcomes["robust"].astype(float))
    columns: dict[Any, pd.Series] = {"clean": clean}
    for budget, rows in outcomes.groupby(["norm", "eps"], sort=False):
        columns[budget] = right.loc[rows.index].groupby(rows["index"]).min() >= 0.5
    return pd.DataFrame(columns)


def _attacks(run: Run, budget: tuple[str, float]) -> str:
    rows = run.robustness
    here = rows[(rows["norm"] == budget[0]) & (rows["eps"] == budget[1]) & ~rows["attack"].str.startswith("worst of")]
    return ", ".join(here["attack"])


def _paired(measure: str, one: pd.Series, two: pd.Series, note: str) -> dict[str, Any]:
    only_a, only_b, count = int((one & ~two).sum()), int((two & ~one).sum()), len(one)
    low, high = paired_difference(only_b, only_a, count)
    return {
        "measure": measure,
        "samples": count,
        "a": float(one.mean()),
        "b": float(two.mean()),
        "only_a": only_a,
        "only_b": only_b,
        "difference": (only_b - only_a) / count,
        "low": low,
        "high": high,
        "p": mcnemar_test(only_a, only_b),
        "note": note,
    }


def _corrupted_pairs(a: Run, b: Run) -> pd.DataFrame:
    """Return the answers of both runs (``right_a``, ``right_b``) by sample, for the corruptions that both measured."""
    tables = []
    for run in (a, b):
        name = run.corrupted["corruption"].astype(str)
        # A run names corruptions of files apart from generated ones if it has both.
        own = name.where(~run.corrupted["from_file"].astype(bool), name.str.removesuffix(OF_FILES))
        tables.append(run.corrupted.assign(corruption=own))
    return tables[0].merge(tables[1], on=["corruption", "from_file", "index"], suffixes=("_a", "_b"))


def _corrupted(a: Run, b: Run, pairs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the row of common corruptions: those that both runs measured, on the samples of both."""
    if pairs.empty:
        return
    kinds = pairs["corruption"].nunique()
    by_file = pairs.groupby("from_file")["index"].nunique()
    shares = pairs.groupby(["from_file", "index"])[["right_a", "right_b"]].mean()
    # Sums of the same shares in another order may differ by rounding, and a tie is no difference.
    difference = (shares["right_b"] - shares["right_a"]).round(9)
    low, high = mean_difference(difference.tolist())
    files = [run.attack_options.get("corruptions_from") for run in (a, b)]
    notes = [
        f"mean over {kinds} common corruption{'s' if kinds > 1 else ''} and their severities; “only A” counts images "
        "that A classifies correctly more often; interval of Bonett and Price (2012), exact sign-flip test"
    ]
    notes += ["the runs read corrupted images from other folders"] if by_file.get(True) and files[0] != files[1] else []
    yield {
        "measure": "corrupted",
        "samples": len(shares),
        "a": float(shares["right_a"].mean()),
        "b": float(shares["right_b"].mean()),
        "only_a": int((difference < 0).sum()),
        "only_b": int((difference > 0).sum()),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "p": sign_flip_test(difference.tolist()),
        "note": "; ".join(notes),
    }


@dataclass(frozen=True)
class Finding:
    """A result as a test of continuous integration.

    Attributes:
        rule: identifier of what was tested.
        name: what was tested.
        text: the result in words.
        level: ``note`` (passed), ``warning`` or ``error``.
        place: file or folder that it belongs to.
    """

    rule: str
    name: str
    text: str
    level: str
    place: str


def comparison_findings(table: pd.DataFrame, names: tuple[str, str], place: str, margin: float | None) -> list[Finding]:
    """Return the rows of :func:`compare_runs` as findings; an error is a row on which the second model is worse.

    With ``margin`` it is a row on which it may be worse by more than that: the interval of the difference reaches
    below. Otherwise it is a row of a significant loss (5%, two-sided).
    """
    findings = []
    for r in table.itertuples():
        unclear = margin is not None and r.low < -margin
        worse = r.difference < 0 and r.p < _LEVEL
        interval = signed_interval(100 * r.low, 100 * r.high, digits=1)
        text = (
            f"{names[0]} {r.a:.1%}, {names[1]} {r.b:.1%}: difference {signed(100 * r.difference, digits=1)} points "
            f"{interval}, p = {r.p:.3g}"
        )
        bad = worse if margin is None else unclear
        findings.append(Finding("robgib/worse", f"{r.measure} accuracy", text, "error" if bad else "note", place))
    return findings


HEADINGS = ("accuracy", "samples", "A", "B", "only A", "only B", "B − A, points", "95% interval", "p")
"""Of the cells of a comparison."""


def comparison_cells(table: pd.DataFrame) -> list[list[str]]:
    """Return the rows of :func:`compare_runs` as texts (:data:`HEADINGS`)."""
    return [
        [
            r.measure,
            str(r.samples),
            f"{r.a:.1%}",
            f"{r.b:.1%}",
            str(r.only_a),
            str(r.only_b),
            signed(100 * r.difference, digits=1),
            signed_interval(100 * r.low, 100 * r.high, digits=1),
            f"{r.p:.3g}",
        ]
        for r in table.itertuples()
    ]


def comparison_page(table: pd.DataFrame, findings: Sequence[Finding], names: tuple[str, str], version: str) -> str:
    """Return the page of a comparison as self-contained HTML.

    Args:
        table: result of :func:`compare_runs`.
        findings: results of :func:`comparison_findings` and :func:`lost_findings`.
        names: of the two models.
        version: version of robgib, shown at the foot of the page.
    """
    bad = [one for one in findings if one.level == "error"]
    headlines = [(f"{one.name}: {one.text}.", True) for one in bad]
    if not bad:
        headlines = [(f"{names[1]} is not shown to be worse than {names[0]} in any of these accuracies.", False)]
    cells = comparison_cells(table)
    points = [100 * table[column] for column in ("difference", "low", "high")]
    series = Series(
        list(range(len(table))),
        points[0].tolist(),
        y_interval=(points[1].tolist(), points[2].tolist()),
        hover=[": ".join((r[0], r[6])) for r in cells],
    )
    x = Axis(form="category", categories=tuple(table["measure"]))
    chart = Chart([series], x, Axis("accuracy of B − accuracy of A, points", rules=(0.0,)))
    return page(
        "compare.html.j2",
        title=f"{names[0]} and {names[1]}",
        names=names,
        headlines=headlines,
        picture=Markup(figure([chart], [], "Difference of accuracies by measure")),
        headings=HEADINGS,
        numbers=[False, *[True] * (len(HEADINGS) - 1)],
        rows=[[typeset(cell) for cell in row] for row in cells],
        notes=[f"{r.measure}: {r.note}" for r in table.itertuples() if r.note],
        version=version,
    )


def lost_findings(a: Run, b: Run, place: str) -> list[Finding]:
    """Return an error for each budget of the first run that the second lacks since all its attacks there failed."""
    lost = (_budgets(a, "ok") & _budgets(b, "failed")) - _budgets(b, "ok")
    return [
        Finding(
            "robgib/attack-failed",
            f"{norm} {eps_text(eps)} accuracy",
            f"not compared: every attack of {b.name} on this budget ended with an error",
            "error",
            place,
        )
        for norm, eps in sorted(lost)
    ]


def run_findings(run: Run, place: str, least: float | None = None) -> list[Finding]:
    """Return the results of a run as findings.

    An error is a failed attack, or a robust accuracy below ``least``; a warning is an indicator of a failed attack.
    """
    findings = []
    for r in run.robustness.itertuples():
        name = f"{run.name}: {r.attack}" + (f", {r.norm} {eps_text(r.eps)}" if r.norm else "")
        if r.status != "ok":
            findings.append(Finding("robgib/attack-failed", name, str(r.reason), "error", place))
            continue
        text = f"robust accuracy {r.robust_accuracy:.1%} [{r.low:.1%}, {r.high:.1%}] on {r.samples} samples"
        low = least is not None and r.robust_accuracy < least
        findings.append(Finding("robgib/robust-accuracy", name, text, "error" if low else "note", place))
    for s in run.signs.itertuples():
        name = f"{run.name}: {s.name}, {s.norm} {eps_text(s.eps)}"
        level = "warning" if s.seen else "note"
        findings.append(Finding("robgib/attack-failure-indicator", name, str(s.detail), level, place))
    return findings


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _safe(text: str) -> str:
    """Return text that terminals, XML and JSON in UTF-8 take: other characters are escaped."""
    return _NO_XML.sub(lambda found: ascii(found[0])[1:-1], visible(text))


_RULES = {
    "robgib/worse": "The second model has a lower accuracy than the first on the same samples.",
    "robgib/attack-failed": "An attack ended with an error.",
    "robgib/robust-accuracy": "The robust accuracy is lower than required.",
    "robgib/attack-failure-indicator": "The attack may have failed: robust accuracy may be too high.",
}


def junit(findings: Sequence[Finding], suite: str) -> str:
    """Return findings as a JUnit report: errors are failures, and warnings are written to a test's output.

    >>> found = [Finding("robgib/worse", "clean accuracy", "a 90%, b 80%", "error", "runs/a")]
    >>> "<failure" in junit(found, "compare")
    True
    """
    errors = sum(one.level == "error" for one in findings)
    root = ElementTree.Element("testsuites")
    top = ElementTree.SubElement(
        root, "testsuite", name=_safe(suite), tests=str(len(findings)), failures=str(errors), errors="0"
    )
    for one in findings:
        case = ElementTree.SubElement(top, "testcase", classname=one.rule.replace("/", "."), name=_safe(one.name))
        if one.level == "error":
            ElementTree.SubElement(case, "failure", message=_safe(one.text)).text = _RULES[one.rule]
        else:
            ElementTree.SubElement(case, "system-out").text = _safe(f"{one.level}: {one.text}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """Return findings as a SARIF 2.1.0 log; those that passed are left out.

    >>> sarif([], "1.0")["runs"][0]["results"]
    []
    """
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "RobGIB",
                        "version": version,
                        "rules": [{"id": rule, "shortDescription": {"text": text}} for rule, text in _RULES.items()],
                    }
                },
                "results": list(_sarif_results(findings)),
            }
        ],
    }


def _sarif_results(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    for one in findings:
        if one.level == "note":
            continue
        where = {"physicalLocation": {"artifactLocation": {"uri": _uri(one.place)}, "region": {"startLine": 1}}}
        yield {
            "ruleId": one.rule,
            "level": one.level,
            "message": {"text": _safe(f"{one.name}: {one.text}")},
            "locations": [where],
        }


def _uri(place: str) -> str:
    """Return a path as a URI, relative if it is.

    >>> _uri("runs/a net #2/config.json")
    'runs/a%20net%20%232/config.json'
    """
    path = Path(place)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
