"""Two runs compared by sample, with known answers, and the formats of continuous integration."""

import io
import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import optimize

from robgib.cli.compare import _shown
from robgib.errors import RobGIBError
from robgib.reporting.comparison import (
    Finding,
    compare_runs,
    comparison_cells,
    comparison_findings,
    comparison_page,
    junit,
    lost_findings,
    run_findings,
    sarif,
)
from robgib.results import Run, column_names, save_run, table
from robgib.statistics import mcnemar_test, mean_difference, paired_difference


def run_of(name, clean, robust, digest="d", eps=8 / 255, attack="pgd-linf"):
    """A run of one attack with these right answers (N,)."""
    count = len(clean)
    outcomes = table(
        "outcomes",
        [
            {
                **dict.fromkeys(column_names("outcomes"), 0.0),
                "index": i,
                "label": 1,
                "attack": attack,
                "norm": "linf",
                "eps": eps,
                "clean_prediction": int(clean[i]),
                "adversarial_prediction": int(robust[i]),
                "robust": bool(robust[i]),
                "right": float(robust[i]),
            }
            for i in range(count)
        ],
    )
    row = {
        **dict.fromkeys(column_names("robustness"), 0.0),
        "attack": attack, "norm": "linf", "eps": eps, "samples": count, "correct": int(sum(clean)),
        "robust": int(sum(robust)), "clean_accuracy": float(np.mean(clean)), "robust_accuracy": float(np.mean(robust)),
        "status": "ok", "reason": "", "note": "", "seconds": 0.0,
    }  # fmt: skip
    options = {"attack": {"attacks": {}}, "information": {"estimators": {}}, "context": {"seed": 0}}
    config = {
        "data": {"name": "pictures", "digest": digest, "classes": ["0", "1"]},
        "options": options,
        "partitions": [],
    }
    empty = {key: table(key) for key in ("curve", "layers", "features", "signs", "corruptions")}
    return Run(name, config, {"packages": {}}, robustness=table("robustness", [row]), outcomes=outcomes, **empty)


def test_a_comparison_by_sample_has_the_exact_values():
    a = run_of("a", [1] * 18 + [0] * 2, [1] * 12 + [0] * 8)
    b = run_of("b", [1] * 18 + [0] * 2, [1] * 2 + [0] * 18)
    rows = compare_runs(a, b).set_index("measure")
    assert rows.index.tolist() == ["clean", "linf 8/255"]
    clean, robust = rows.loc["clean"], rows.loc["linf 8/255"]
    assert (clean["difference"], clean["p"], clean["only_a"], clean["only_b"]) == (0, 1, 0, 0)
    assert (robust["only_a"], robust["only_b"], robust["difference"]) == (10, 0, -0.5)
    assert robust["p"] == pytest.approx(2 / 2**10)
    assert robust["low"] < -0.5 < robust["high"] < 0


def test_the_page_of_a_comparison_has_its_figures_and_says_who_is_worse():
    a = run_of("a<b>", [1] * 20, [1] * 12 + [0] * 8)
    b = run_of("b", [1] * 20, [1] * 2 + [0] * 18)
    rows = compare_runs(a, b)
    text = comparison_page(rows, comparison_findings(rows, ("a<b>", "b"), "", None), ("a<b>", "b"), "1.0")
    low, high = (f"−{-100 * end:.1f}" for end in paired_difference(0, 10, 20))
    assert f"a&lt;b&gt; 60.0%, b 10.0%: difference −50.0 points [{low}, {high}], p\xa0=\xa00.00195." in text
    (robust,) = (cells for cells in comparison_cells(rows) if cells[0] == "linf 8/255")
    assert robust == ["linf 8/255", "20", "60.0%", "10.0%", "10", "0", "-50.0", robust[7], "0.00195"]
    assert all(f">{cell.replace('-', '−')}<" in text for cell in robust)
    equal = comparison_page(rows[:1], [], ("a<b>", "b"), "1.0")
    assert "b is not shown to be worse than a&lt;b&gt; in any of these accuracies." in equal


def test_only_samples_of_both_runs_are_compared():
    a, b = run_of("a", [1] * 6, [1] * 6), run_of("b", [1] * 4, [1, 0, 1, 0])
    rows = compare_runs(a, b)
    assert rows["samples"].tolist() == [4, 4]
    assert rows["only_a"].tolist() == [0, 2]


def test_runs_on_other_data_or_other_budgets_are_not_paired():
    a = run_of("a", [1, 1], [1, 0])
    with pytest.raises(RobGIBError, match="the runs are not on the same data"):
        compare_runs(a, run_of("b", [1, 1], [1, 0], digest="other"))
    assert compare_runs(a, run_of("b", [1, 1], [1, 0], eps=0.1))["measure"].tolist() == ["clean"]
    other = compare_runs(a, run_of("b", [1, 1], [1, 0], attack="fgsm-linf"))
    assert other["note"].tolist() == ["", "attacked by pgd-linf and by fgsm-linf"]


@pytest.mark.parametrize(("only_a", "only_b", "count"), [(12, 2, 44), (3, 0, 20), (7, 7, 30), (1, 4, 15)])
def test_the_interval_of_a_paired_difference_inverts_the_score_test(only_a, only_b, count):
    """With the nuisance share by maximum likelihood, found numerically."""

    def statistic(difference):
        def loss(q):
            p, rest = q + difference, 1 - 2 * q - difference
            return -(only_a * math.log(p) + only_b * math.log(q) + (count - only_a - only_b) * math.log(rest))

        low, high = max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return (only_a - only_b - count * difference) / math.sqrt(count * (2 * q + difference - difference**2))

    low, high = paired_difference(only_a, only_b, count)
    assert statistic(low) == pytest.approx(1.959964, abs=1e-3)
    assert statistic(high) == pytest.approx(-1.959964, abs=1e-3)
    mirrored = paired_difference(only_b, only_a, count)
    assert mirrored == pytest.approx((-high, -low))


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar_test(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_test(0, 0) == 1


def test_a_loss_is_an_error_and_a_margin_decides_by_the_interval():
    a = run_of("a", [1] * 60, [1] * 40 + [0] * 20)
    same, worse = run_of("b", [1] * 60, [1] * 40 + [0] * 20), run_of("c", [1] * 60, [1] * 25 + [0] * 35)

    def levels(other, margin=None):
        return [f.level for f in comparison_findings(compare_runs(a, other), ("a", "b"), "b", margin)]

    assert levels(same) == ["note", "note"]
    assert levels(worse) == ["note", "error"]
    assert levels(worse, 0.5) == ["note", "note"]
    assert levels(same, 0.01) == ["error", "error"]  # 60 samples do not exclude a loss of 1 point
    assert levels(same, 0.1) == ["note", "note"]


def test_junit_and_sarif_hold_what_failed():
    run = run_of("net <1>", [1] * 10, [1] * 3 + [0] * 7)
    sign = {"norm": "linf", "eps": 0.1, "name": "zero gradients", "seen": True, "detail": "0 on 50%", "meaning": ""}
    run = replace(run, signs=pd.DataFrame([sign]))
    findings = run_findings(run, "runs/net/config.json", 0.4)
    suite = ElementTree.fromstring(junit(findings, "robgib")).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    case = suite.find("testcase")
    assert case.get("name") == "net <1>: pgd-linf, linf 8/255"
    assert "30.0%" in case.find("failure").get("message")
    log = sarif(findings, "1.0")
    assert log["version"] == "2.1.0"
    results = log["runs"][0]["results"]
    assert [(r["ruleId"], r["level"]) for r in results] == [
        ("robgib/robust-accuracy", "error"), ("robgib/attack-failure-indicator", "warning")
    ]  # fmt: skip
    rules = {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]}
    assert {r["ruleId"] for r in results} <= rules
    assert not [f for f in run_findings(run, "", 0.2) if f.level == "error"]


def test_the_command_compares_run_folders_and_exits_with_1(cli, tmp_path):
    runs = [run_of("a", [1] * 30, [1] * 20 + [0] * 10), run_of("b", [1] * 30, [1] * 5 + [0] * 25)]
    first, second = (str(save_run(run, tmp_path)) for run in runs)
    worse = cli("compare", first, second)
    assert worse.returncode == 1
    assert "b is worse" in worse.stdout
    better = cli("compare", second, first, "--format", "json", "--out", str(tmp_path / "c.json"))
    assert better.returncode == 0
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert [row["difference"] for row in rows] == [0, 0.5]
    assert cli("compare", first, second, "--out", str(tmp_path / "c.html")).returncode == 1
    assert "b 16.7%" in (tmp_path / "c.html").read_text()
    written = cli("export", first, "--fail-under", "80%", "--out", str(tmp_path / "r.xml"))
    assert written.returncode == 1
    assert ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite").get("failures") == "1"


def test_a_run_that_lost_a_budget_to_a_failed_attack_fails_the_comparison(cli, tmp_path):
    a, b = run_of("a", [1] * 4, [1] * 4), run_of("b", [1] * 4, [1] * 4, eps=0.5)
    failed = a.robustness.assign(status="failed", reason="no gradient", robust=math.nan, robust_accuracy=math.nan)
    b = replace(b, robustness=pd.concat([b.robustness, failed], ignore_index=True))
    first, second = (str(save_run(run, tmp_path)) for run in (a, b))
    shown = cli("compare", first, second)
    assert shown.returncode == 1, shown.stderr
    assert "linf 8/255 accuracy: not compared: every attack of b on this budget" in " ".join(shown.stdout.split())
    assert "is worse" not in shown.stdout


def test_the_table_of_a_comparison_cuts_nothing_at_80_columns():
    row = {
        "measure": "common corruptions", "samples": 100_000, "a": 1.0, "b": 0.123, "only_a": 12345, "only_b": 10,
        "difference": -0.877, "low": -0.8812, "high": -0.8721, "p": 1.23e-100, "note": "not paired",
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=80).print(_shown(pd.DataFrame([row]), ("a" * 60, "digits-cnn-at-large")))
    shown = out.getvalue()
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    words = {*shown.split()}
    assert {"A:", "a" * 60, "B:", "digits-cnn-at-large", "accuracy", "samples", "interval", "points"} <= words
    assert {"common", "corruptions", "100000", "100.0%", "12.3%", "12345", "-87.7", "[-88.1,", "-87.2]"} <= words
    assert "1.23e-100" in words


def with_corrupted(run, right, from_file=False):
    """The run with the shares of right answers by corruption and sample."""
    rows = [(i, name, from_file, share) for name, shares in right.items() for i, share in enumerate(shares)]
    mean = float(np.mean([share for _, _, _, share in rows]))
    whole = table("corruptions", [(name, 1, 1, len(shares), mean, 0, 1) for name, shares in right.items()])
    return replace(run, corruptions=whole, corrupted=table("corrupted", rows))


def test_corruptions_are_compared_by_sample():
    plain = [run_of(name, [1] * 6, [1] * 6) for name in "ab"]
    a = with_corrupted(plain[0], {"fog": [1, 1, 1, 0.6, 1, 1], "snow": [1, 0.8, 1, 1, 1, 0]})
    b = with_corrupted(plain[1], {"fog": [0.6, 1, 0.8, 0.6, 0.4], "rain": [1] * 5})
    row = compare_runs(a, b).set_index("measure").loc["corrupted"]
    assert (row["samples"], row["only_a"], row["only_b"]) == (5, 3, 0)  # fog alone, of five samples
    assert (row["a"], row["b"]) == pytest.approx((4.6 / 5, 3.4 / 5))
    assert row["difference"] == pytest.approx(-1.2 / 5)
    assert row["p"] == pytest.approx(2 / 2**3)
    assert (row["low"], row["high"]) == pytest.approx(mean_difference([-0.4, 0, -0.2, 0, -0.6]))
    assert row["note"].startswith("mean over 1 common corruption and")
    both = {"fog": [1] * 6, "snow": [1] * 6}
    assert compare_runs(with_corrupted(a, both), with_corrupted(b, both))["p"].iloc[-1] == 1


def test_a_tie_over_several_corruptions_is_no_difference():
    """The same shares in another order have another sum in floating point."""
    rng = np.random.default_rng(0)
    shares = rng.integers(0, 6, (50, 15)) / 5
    others = rng.permuted(shares, axis=1)
    assert (shares.mean(1) != others.mean(1)).any()
    a, b = (
        with_corrupted(run_of(name, [1] * 50, [1] * 50), {f"c{k}": column for k, column in enumerate(of.T.tolist())})
        for name, of in (("a", shares), ("b", others))
    )
    row = compare_runs(a, b).iloc[-1]
    assert (row["measure"], row["only_a"], row["only_b"], row["difference"]) == ("corrupted", 0, 0, 0)


def test_corruptions_of_files_are_compared_beside_generated_ones():
    """A run that generated fog too calls that of files otherwise."""
    a, b = (run_of(name, [1] * 3, [1] * 3) for name in "ab")
    alone = with_corrupted(a, {"fog": [1, 0.2, 1]}, from_file=True)
    both = [with_corrupted(b, {"fog": [0, 0, 0]}), with_corrupted(b, {"fog (files)": [1, 0.8, 1]}, from_file=True)]
    whole = replace(both[1], corrupted=pd.concat([run.corrupted for run in both], ignore_index=True))
    row = compare_runs(alone, whole).iloc[-1]
    assert (row["measure"], row["samples"], row["only_b"]) == ("corrupted", 3, 1)
    assert row["difference"] == pytest.approx(0.2)


def test_corruptions_that_cannot_be_paired_are_named():
    a, b = (with_corrupted(run_of(name, [1], [1]), {"fog": [1]}) for name in "ab")
    old = replace(b, corrupted=table("corrupted"))
    rows = compare_runs(a, old)
    assert "corrupted" not in set(rows["measure"])
    assert "common corruptions (b keeps no answers by sample)" in rows["note"][0]
    both = compare_runs(replace(a, corrupted=table("corrupted")), old)
    assert "common corruptions (a and b keep no answers by sample)" in both["note"][0]
    assert (
        "common corruptions (the runs have none in common)"
        in compare_runs(a, with_corrupted(b, {"snow": [1]}))["note"][0]
    )
    files = [with_corrupted(run, {"fog": [1]}, from_file=True) for run in (a, b)]
    files = [with_condition(run, "corruptions_from", run.name) for run in files]
    assert "other folders" in compare_runs(*files)["note"].iloc[-1]


def with_condition(run, name, value):
    options = {**run.config["options"], "attack": {**run.config["options"]["attack"], name: value}}
    return replace(run, config={**run.config, "options": options})


@pytest.mark.parametrize("name", ["mask", "targets", "transfer_from"])
def test_runs_under_other_conditions_are_not_paired(name):
    """A run whose attacks may change half of each image only would look more robust."""
    a, b = run_of("a", [1] * 4, [1] * 4), run_of("b", [1] * 4, [0] * 4)
    one, two = (with_condition(a, name, value) for value in ("1234", "5678"))
    with pytest.raises(RobGIBError, match=f"a was attacked with .* evaluate both models with the same --{name[:4]}"):
        compare_runs(one, b)
    with pytest.raises(RobGIBError, match="a was attacked with"):
        compare_runs(b, one)
    assert compare_runs(one, with_condition(b, name, "1234"))["note"].tolist() == ["", ""]
    assert "the runs have other" in compare_runs(one, two)["note"][1]


def test_a_budget_of_one_run_is_named_and_a_failed_attack_is_an_error():
    a, b = run_of("a", [1, 1], [1, 0]), run_of("b", [1, 1], [1, 0], eps=0.5)
    assert compare_runs(a, b)["note"].tolist() == ["not compared: linf 8/255 (only a), linf 0.5 (only b)"]
    assert lost_findings(a, b, "b") == []
    failed = pd.concat([b.robustness, a.robustness.assign(status="failed", robust=math.nan)], ignore_index=True)
    (lost,) = lost_findings(a, replace(b, robustness=failed), "b")
    assert (lost.name, lost.level) == ("linf 8/255 accuracy", "error")
    assert lost_findings(replace(b, robustness=failed), a, "a") == []


def test_reports_hold_any_name():
    strange = "net\x00 \ufffe \ud800 \u202e <&>\"' ]]> \x1b[31m\x85 é"
    levels = ("error", "warning", "note")
    findings = [Finding("robgib/worse", strange, strange, level, "runs/a net #1%/é.json") for level in levels]
    suite = ElementTree.fromstring(junit(findings, strange).encode()).find("testsuite")
    assert [case.get("name") for case in suite] == [suite.get("name")] * 3
    assert suite.get("name").endswith("<&>\"' ]]> \\x1b[31m\\x85 é")
    results = json.loads(json.dumps(sarif(findings, "1"), ensure_ascii=False).encode())["runs"][0]["results"]
    places = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results}
    assert places == {"runs/a%20net%20%231%25/%C3%A9.json"}
    assert all(r["message"]["text"].isprintable() for r in results)
