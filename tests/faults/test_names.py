"""Names are names: what a file calls things is shown as it is, and neither obeyed by a terminal nor by a page."""

import ast
import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robgib
from robgib.cli.common import Console
from robgib.errors import visible
from robgib.models import build
from robgib.reporting import print_runs, render, write_report
from robgib.results import csv_text, load_run, read_csv
from robgib.training.tracing import Trace

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LINK = "<a href='https://elsewhere.example'>click</a>"
HOSTILE = f"[/nothing] [red]x {LINK} </script><script>alert(1)</script> :fire: \x1b[31m\x1b]0;owned\x07\x9b2J \u202egnp"


def in_yaml(text):
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in text) + '"'


def shown_as_it_is(text):
    """Nothing of the name is lost, and nothing of it is left that a terminal would obey."""
    assert visible(text) == text
    whole = "".join(re.sub(r"[│┃\n]", " ", text).split())
    assert "[/nothing][red]x" in whole
    assert r"\x1b[31m\x1b]0;owned\x07\x9b2J" in whole
    assert ":fire:" in whole


@pytest.fixture
def catalogue(tmp_path):
    folder = tmp_path / "[b]own"
    folder.mkdir()
    (folder / "hostile.yaml").write_text(
        f"data: digits\ndescription: {in_yaml(HOSTILE)}\ngroup: '[i]group'\narchitecture: {{name: mlp}}\n"
    )
    (folder / "hostile-attack.yaml").write_text(
        f"attack: PGD\nnorm: linf\ndescription: {in_yaml(HOSTILE)}\nparameters: {{eps: 0.1}}\n"
    )
    return folder


@pytest.mark.parametrize("command", ["zoo list", "attacks list", "zoo show hostile"])
def test_descriptions_in_lists(cli, catalogue, command, monkeypatch):
    monkeypatch.setattr("robgib.cli.common.out._width", 900)
    done = cli(*command.split(), "--catalogue", str(catalogue))
    assert done.returncode == 0, done.stderr
    if "show" in command:
        assert visible(done.stdout) == done.stdout
        assert "[/nothing] [red]x" in done.stdout
    else:
        shown_as_it_is(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", HOSTILE),
        ("evaluate", f"{HOSTILE.replace('/', '')}.pt"),
        ("evaluate", "digits-cnn", "--attack", HOSTILE),
        ("evaluate", "digits-cnn", "--attack", f"pgd-linf:{HOSTILE}=3"),
        ("evaluate", "digits-cnn", "--estimator", HOSTILE),
        ("evaluate", "digits-cnn", "--data", HOSTILE),
        ("evaluate", "digits-cnn", "--layer", HOSTILE, "--attack", "fgsm-linf:eps=0.1", "--samples", "20"),
        ("evaluate", "digits-cnn", "--features", HOSTILE, "--attack", "fgsm-linf:eps=0.1", "--samples", "20"),
        ("evaluate", "digits-cnn", "--device", HOSTILE),
        ("zoo", "show", HOSTILE),
        ("zoo", "list", "--group", HOSTILE),
        ("study", "plan", HOSTILE),
        ("report", HOSTILE),
        ("attacks", "check", HOSTILE),
        ("attacks", "new", HOSTILE),
        ("zoo", "add", "none.pt", "--name", HOSTILE),
    ],
)
def test_names_in_errors(cli, arguments, tmp_path):
    before = set(tmp_path.iterdir())
    done = cli(*arguments)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert visible(done.stderr) == done.stderr
    assert {p for p in tmp_path.iterdir() if p.name != "runs" or any(p.iterdir())} == before


class Named(nn.Module):
    """A network whose layers have such names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        name = HOSTILE.replace(".", "")
        self.layers = nn.ModuleDict({name: nn.Sequential(nn.Linear(64, 12), nn.ReLU())})
        self.last, self.path = nn.Linear(12, 10), f"layers.{name}"

    def forward(self, x):
        (first,) = self.layers.values()
        return self.last(first(x.flatten(1)))


@pytest.fixture(scope="module")
def run(digits):
    net = Named()
    rows = slice(0, 120)
    data = robgib.Dataset(
        HOSTILE, digits.train, digits.val, robgib.data.Split(digits.test.x[rows], digits.test.y[rows]),
        tuple(f"{i} {HOSTILE}" for i in range(10)),
    )  # fmt: skip
    return robgib.evaluate(
        net, data, attacks={HOSTILE: robgib.make_attack("fgsm-linf:eps=0.1")}, name=HOSTILE,
        estimators=["imputation:donors=4,steps=30"], layers=[net.path, "logits"], progress=False,
    )  # fmt: skip


def test_a_run_in_a_terminal(run, capsys):
    print_runs([run], Console(emoji=False, width=300), Console(stderr=True, emoji=False, width=300), layers=True)
    shown_as_it_is(capsys.readouterr().out)


def test_a_run_of_such_names_is_kept_where_it_is_told(run, tmp_path):
    folder = robgib.results.save_run(run, tmp_path / "runs")
    assert folder.parent == tmp_path / "runs"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert robgib.load_run(folder).name == HOSTILE
    outside = robgib.results.save_run(robgib.Run(**{**vars(run), "name": "../../outside"}), tmp_path / "runs")
    assert outside.parent == tmp_path / "runs"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_page_of_such_names_holds_no_link_and_runs_nothing(run, tmp_path):
    others = [robgib.Run(**{**vars(run), "name": f"{i} {HOSTILE}"}) for i in range(5)]
    path = write_report(others, tmp_path / "page.html")
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
         "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    drawn = done.stdout
    assert drawn.count("<svg") > 3
    assert "elsewhere.example" in drawn  # shown, as text
    assert re.findall(r"<a [^>]*elsewhere", drawn) == []
    texts = re.findall(r"<title>([^<]*)</title>", drawn)  # under the pointer
    assert any("&lt;a href='https://elsewhere.example'&gt;click&lt;/a&gt;" in text for text in texts)
    assert not any("&amp;lt;" in text for text in texts)


def test_figures_keep_markup_of_names_as_text(run):
    page = render([run])
    assert "\x1b" not in page
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert figures
    assert not any("<a href" in figure for figure in figures)


def test_a_trace_page_of_such_names(run):
    table = run.layers.assign(epoch=1, test_accuracy=0.5)
    assert isinstance(Trace, type)
    figure = robgib.reporting.figures.trace_terms(table, "imputation")
    assert "<svg" in figure
    assert "<a href" not in figure


def test_visible_keeps_what_is_written():
    for text in ("naïve 模型 🔥", "a\tb\nc", "I(X;Z) ≥ 0 — ½", "\u00ad"[:0]):
        assert visible(text) == text
    assert visible("\x00\x7f\x85\ud800") == r"\x00\x7f\x85\ud800"
    assert np.char.str_len(visible("\u202e")) == 6


FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "''=1", "＝1+1"]
PLAIN = ["a", "'a", "'", "", "1=1", " =1", "linf"]


def test_no_table_holds_a_formula_and_each_text_comes_back(tmp_path):
    texts = [*FORMULAS, *PLAIN]
    frame = pd.DataFrame({"=name": texts, "value": [-0.5] * len(texts), "mixed": [*texts[:-1], -1.5]})
    written = csv_text(frame)
    cells = [cell for row in csv.reader(io.StringIO(written, newline="")) for cell in row]
    assert not [c for c in cells if c[:1] in "=+-@\t\r\n＝" and c and c not in ("-0.5", "-1.5")]
    assert cells.count("-0.5") == len(texts)  # numbers stay numbers
    (tmp_path / "table.csv").write_text(written, encoding="utf-8", newline="")
    back = read_csv(tmp_path / "table.csv")
    assert list(back.columns) == list(frame.columns)
    assert back["=name"].fillna("").tolist() == texts
    assert back["value"].tolist() == [-0.5] * len(texts)


def test_an_attack_that_is_called_as_a_formula_is(digits, tmp_path):
    (tmp_path / "=1+1.yaml").write_text("attack: FGSM\nnorm: linf\n")
    run = robgib.evaluate(
        build("mlp", digits.shape, 10, {"hidden": [4]}).eval(), digits, attacks=["=1+1"], estimators=[], samples=10,
        catalogue=[tmp_path], signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    folder = run.save(tmp_path / "runs")
    for name in ("robustness", "outcomes", "curve"):
        assert "\n=1" not in (folder / f"{name}.csv").read_text()
        assert ",=1" not in (folder / f"{name}.csv").read_text()
        pd.testing.assert_frame_equal(
            getattr(load_run(folder), name), getattr(run, name), check_dtype=False, check_exact=False
        )
    assert "'=1+1,linf" in (folder / "robustness.csv").read_text()


def test_every_table_is_written_and_read_in_one_place():
    for file in Path(robgib.__file__).parent.rglob("*.py"):
        if file.name != "results.py":
            held = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
            assert not held & {"to_csv", "to_excel", "writerow"}, file
            assert "read_csv" not in held, file
