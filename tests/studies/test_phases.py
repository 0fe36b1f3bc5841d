"""Studies of compression in training."""

import json

import numpy as np
import pandas as pd
import pytest

from robgib import RobGIBError
from robgib.studies import followed, open_study, phases_claim, phases_rows, read_phases, trace_all

SMALL = """
kind: compression
question: Does the tanh network compress?
expect: {sphere-tanh: compresses}
train:
  - recipe: sphere-tanh
    vary: {training.seed: [0, 1], training.epochs: [3]}
controls:
  random_labels: [{recipe: sphere-tanh, vary: {training.epochs: [2]}}]
"""


def written(tmp_path, text=SMALL):
    file = tmp_path / "small.yaml"
    file.write_text(text)
    return file


def rows(**verdicts):
    """Networks of groups with these verdicts of the primary figure."""
    made = [
        {
            "network": f"{group}-{i}", "group": group, "control": "", "layer": "hidden", "term": "C(X;Z)",
            "verdict": verdict, "compression": 0.5 if verdict == "compresses" else 0.0, "primary": True, "left_out": "",
        }
        for group, told in verdicts.items()
        for i, verdict in enumerate(told)
    ]  # fmt: skip
    return pd.DataFrame(made)


YES, NO, OPEN = "compresses", "does not compress", "undetermined"


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ([YES] * 5, "supported"),
        ([YES] * 4 + [OPEN], "supported"),
        ([YES] * 4 + [NO], "not shown"),
        ([YES] * 2 + [OPEN] * 3, "not shown"),
        ([NO] * 3 + [YES] * 2, "contradicted"),
    ],
)
def test_verdicts_are_counts(tmp_path, told, verdict):
    study = read_phases(written(tmp_path))
    found = phases_claim(study, rows(**{"sphere-tanh": told}))
    assert found.verdict == verdict
    assert f"{told.count(YES)} of 5 networks" in found.words
    assert found.groups["compresses"].item() == told.count(YES)
    other = {NO: f"verdicts of the others: {NO} ", OPEN: f"verdicts of the others: {OPEN} "}
    assert [words in found.words for words in other.values()] == [NO in told, OPEN in told]


def test_from_the_command_line_to_the_page_and_again(cli, cache, tmp_path):
    file = written(tmp_path)
    planned = cli("study", "plan", "small.yaml")
    assert "3 networks, 0 traced before" in planned.stdout
    done = cli("study", "run", "small.yaml", "--out", "found", "--quiet")
    assert done.returncode == 0, done.stderr
    held = {p.name for p in (tmp_path / "found").iterdir()}
    assert held == {"study.html", "study.md", "study.json", "networks.csv", "traces.csv"}
    told = json.loads((tmp_path / "found" / "study.json").read_text())
    assert told["verdict"] in ("supported", "not shown", "contradicted")
    traces = pd.read_csv(tmp_path / "found" / "traces.csv")
    assert set(traces["control"].fillna("")) == {"", "random-labels"}
    study = read_phases(file)
    networks = followed(study)
    again = trace_all(study, networks)
    assert all(t.error == "" for t in again)
    assert np.isfinite(phases_rows(study, again)["compression"]).all()
    assert "3 networks, 3 traced before" in cli("study", "plan", "small.yaml").stdout
    assert not list((cache / "measured").glob("*.unfinished"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("sphere-tanh: compresses", "sphere-relu: compresses"),
            "line 1: expect names 'sphere-relu', which is no recipe of train",
        ),
        (("sphere-tanh: compresses", "sphere-tanh: shrinks"), "expect"),
        (("[{recipe: sphere-tanh,", "[{recipe: sphere-tan,"), "did you mean 'sphere-tanh'"),
        (("kind: compression", "kind: compression\nestimator: exat"), "unknown estimator"),
        (("{sphere-tanh: compresses}", "{}"), "line 4: expect: must have at least 1 entry"),
        (("kind: compression", "kind: compression\nsamples: 100000"), "asks for 100,000 samples"),
    ],
)
def test_what_does_not_exist_is_one_sentence(tmp_path, change, words):
    with pytest.raises(RobGIBError, match=words):
        open_study(written(tmp_path, SMALL.replace(*change))).plan(None)


def test_the_formats_asked_for_are_written(cli, tmp_path):
    written(tmp_path, SMALL.replace("[0, 1]", "[0]"))
    done = cli("study", "run", "small.yaml", "--out", "found", "--format", "json", "--format", "markdown", "--quiet")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "found").iterdir()} == {"study.md", "study.json", "networks.csv", "traces.csv"}
    assert "Written: found/study.json" in done.stdout
    wrong = cli("study", "run", "small.yaml", "--format", "pdf")
    assert wrong.returncode == 2
    assert "'pdf' is not one of 'html', 'markdown', 'json'" in " ".join(wrong.stderr.split())


def test_controls_that_lose_nothing_or_their_arrangement(tmp_path):
    text = SMALL.replace(
        "  random_labels: [{recipe: sphere-tanh, vary: {training.epochs: [2]}}]",
        "  bijective: [{recipe: sphere-bijective, vary: {training.epochs: [2]}}]\n"
        "  permuted_patches: [{recipe: sphere-tanh, vary: {training.epochs: [2]}}]",
    )
    study = read_phases(written(tmp_path, text))
    *_, permuted, lossless = followed(study)
    assert [permuted.name, permuted.control] == ["sphere-tanh-permuted-patches", "permuted-patches"]
    assert [lossless.name, lossless.control] == ["sphere-bijective", "bijective"]
    traced = trace_all(study, [permuted, lossless])
    assert "is for images" in traced[0].error
    counted = traced[1].table.query("layer == 'blocks.3' and term == 'I(X;Z)'")
    assert (counted["value"] == 12).all()  # bits: every pattern is told from every other, at every epoch
    assert "Controls, bijective: 0 of 1 compress." in phases_claim(study, phases_rows(study, traced)).words
    with pytest.raises(RobGIBError, match="must lose no information, but its architecture is 'mlp'"):
        followed(read_phases(written(tmp_path, text.replace("recipe: sphere-bijective", "recipe: sphere-relu"))))


def test_an_unknown_kind_is_refused(cli, tmp_path):
    written(tmp_path, SMALL.replace("kind: compression", "kind: compresion"))
    done = cli("study", "run", "small.yaml")
    assert done.returncode == 2
    assert "kind" in done.stderr
    assert "Traceback" not in done.stderr
