import dataclasses
import html.parser
import re
from pathlib import Path

import pytest

from robgib import RobGIBError, evaluate, results, write_report
from robgib.cli.evaluate import report
from robgib.reporting import render


@pytest.fixture(scope="module")
def run(digits, digits_mlp):
    return evaluate(
        digits_mlp,
        digits,
        attacks=["fgsm-linf", "pgd-linf:steps=3"],
        estimators=["gaussian", "imputation:donors=2,steps=20"],
        layers=["2", "logits"],
        samples=60,
        name="network",
    )


def visible(page):
    """The page's text without scripts and styles."""

    class Text(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.parts, self.hidden = [], 0

        def handle_starttag(self, tag, attributes):
            self.hidden += tag in ("script", "style")

        def handle_endtag(self, tag):
            self.hidden -= tag in ("script", "style")

        def handle_data(self, data):
            if not self.hidden:
                self.parts.append(data)

    parser = Text()
    parser.feed(page)
    return " ".join(" ".join(parser.parts).split())


def test_page_holds_what_was_measured(run):
    text = visible(render([run]))
    for r in run.robustness.itertuples():
        assert f"{100 * r.robust_accuracy:.1f}% [{100 * r.low:.1f}%, {100 * r.high:.1f}%]" in text
    for r in run.layers[run.layers["value"].notna()].itertuples():
        assert f"{r.value:.2f}" in text
        if r.high > r.low and abs(r.high + r.low - 2 * r.value) < 0.001:
            assert f"{r.value:.2f} ± {(r.high - r.low) / 2:.2f}" in text
        elif r.high > r.low:
            assert f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" in text
    for heading in (
        "Accuracy, clean and under attack", "Attack-failure indicators", "Classes and confusions", "Adversarial images",
        "Information about the input by layer", "Information plane", "How each figure was obtained",
    ):  # fmt: skip
        assert heading in text
    assert "too few to correlate" not in text


def test_every_heading_of_the_tables_comes_from_the_schema(run, monkeypatch):
    def renamed(column):
        return dataclasses.replace(column, label=f"{column.label}, as the schema calls it") if column.label else column

    schema = {name: tuple(map(renamed, columns)) for name, columns in results.SCHEMA.items()}
    monkeypatch.setattr("robgib.reporting.cells.SCHEMA", schema)
    headings = re.findall(r"<th [^>]*>([^<]*)</th>", render([run]))
    assert {h for h in headings if h in ("attack", "budget", "robust accuracy", "indicator", "measured")} <= {
        "robust accuracy"  # of the table by class
    }
    assert {f"{h}, as the schema calls it" for h in ("attack", "budget", "robust accuracy", "indicator")} <= {*headings}


def test_page_needs_no_network(run):
    page = render([run])
    loads = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']([^\"']+)", page)
    assert loads
    assert all(source.startswith("data:") for source in loads)


def test_too_few_models_are_said(run):
    other = dataclasses.replace(run, name="other")
    assert "2 models are too few to correlate" in visible(render([run, other]))


def test_five_models_are_correlated(run):
    runs = []
    for i in range(5):
        robustness = run.robustness.copy()
        robustness["robust_accuracy"] = 0.1 * i
        layers = run.layers.copy()
        layers.loc[layers["term"] == "I(X;Z)", ["value", "low", "high"]] *= 1 + 0.05 * i
        runs.append(dataclasses.replace(run, name=f"m{i}", robustness=robustness, layers=layers))
    text = visible(render(runs))
    assert "Spearman" in text
    assert "+1.00" in text
    assert "too few to correlate" not in text


def test_flagged_and_missing_figures_are_shown_as_such(run):
    layers = run.layers.copy()
    layers.loc[0, "flagged"] = True
    layers.loc[1, ["value", "low", "high"]] = float("nan")
    layers.loc[1, "note"] = "too few samples"
    page = render([dataclasses.replace(run, layers=layers)])
    text = visible(page)
    assert f"{layers.loc[0, 'value']:.2f} ± {(layers.loc[0, 'high'] - layers.loc[0, 'low']) / 2:.2f}*" in text
    assert 'class="mark hollow"' in page
    assert "not estimable" in text
    assert "too few samples" in text


def test_names_are_escaped(run):
    page = render([dataclasses.replace(run, name="<script>alert(1)</script>")])
    assert "<script>alert" not in page.replace("\\u003cscript", "")


def test_writing(run, tmp_path):
    path = write_report([run], tmp_path / "deep" / "report.html")
    assert 50_000 < path.stat().st_size < 1_000_000
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(RobGIBError, match=r"cannot write .*under-a-file.html: File exists"):
        write_report([run], path / "under-a-file.html")
    with pytest.raises(RobGIBError, match="at least one run"):
        write_report([], path)


def test_kept_reports_still_make_a_page():
    from pathlib import Path

    from robgib import load_run

    kept = Path(__file__).parents[2] / "reports" / "digits"
    runs = [load_run(folder) for folder in sorted(kept.iterdir()) if folder.is_dir()]
    assert [run.name for run in runs] == ["digits-cnn", "digits-vit"]
    assert [f"{run.folder}" for run in runs] == sorted(f.name for f in kept.iterdir() if f.is_dir())
    assert "digits-vit" in visible(render(runs))


def test_the_default_page_overwrites_only_that_of_the_same_runs(tmp_path, monkeypatch):
    kept = sorted((Path(__file__).parents[2] / "reports" / "digits").glob("digits-*"))
    monkeypatch.chdir(tmp_path)
    report(kept[:1], None)
    first = (tmp_path / "report.html").read_text()
    report(kept[:1], None)  # the same page again
    with pytest.raises(RobGIBError, match=r"'report.html' exists and is not the page of these runs; .* --out"):
        report(kept, None)
    assert (tmp_path / "report.html").read_text() == first
    report(kept, Path("report.html"))  # named: overwritten
    assert (tmp_path / "report.html").read_text() != first
    (tmp_path / "report.html").write_text("notes of mine")
    with pytest.raises(RobGIBError, match="--out"):
        report(kept, None)


def test_a_figure_has_its_star_in_every_table_and_the_legend_says_why(run):
    layers = run.layers.copy()
    own = layers["term"].eq("I(Z;Y)") & layers["layer"].eq("2")
    layers.loc[own, ["value", "low", "high", "flagged", "note"]] = [2.82, 2.66, 2.98, True, "the label is noisy"]
    (words,) = re.findall(
        r"<h2>Information about the input by layer</h2>.*?(?=<h2>)",
        render([dataclasses.replace(run, layers=layers)]),
        re.DOTALL,
    )
    assert re.search(r"2\.82 ± 0\.16(?!\*)", words) is None
    assert "2.82 ± 0.16*" in words
    assert re.search(r"\* marks flagged figures, which are not reliable: [^<]*the label is noisy", words)
