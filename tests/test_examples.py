"""The examples: those in docstrings, and the notebook."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import robgib

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
MODULES = ["robgib", *(m.name for m in pkgutil.walk_packages(robgib.__path__, "robgib."))]
EXAMPLES = {
    name: found
    for name in MODULES
    if not name.endswith("__main__")
    and (found := [t for t in doctest.DocTestFinder().find(importlib.import_module(name)) if t.examples])
}


def test_the_main_calls_have_examples():
    assert sum(map(len, EXAMPLES.values())) >= 20


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstrings(name, digits_cnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in EXAMPLES[name]:
        runner.run(example)
    assert runner.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "report.html").stat().st_size > 100_000
    shown = [o for c in done.cells if c.cell_type == "code" for o in c.outputs]
    assert any("text/html" in o.get("data", {}) for o in shown)
    assert not any(o.output_type == "error" for o in shown)
