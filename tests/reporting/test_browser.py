"""The pages in a real browser: no error in its console, and a size that can be sent."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robgib import load_run
from robgib.reporting import render
from robgib.studies import Study, claim, study_page
from tests.studies.test_claims import STUDY, made

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def console(path, *flags):
    """What a browser's console says of a page."""
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
         "--virtual-time-budget=5000", *flags, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = made(np.random.default_rng(0), slope=-0.1)
    path = tmp_path_factory.mktemp("page") / "study.html"
    path.write_text(study_page(STUDY, rows, claim(STUDY, rows), "0"), encoding="utf-8")
    return path


def test_a_page_can_be_sent(page):
    assert isinstance(STUDY, Study)
    assert page.stat().st_size < 1e6


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("flags", [(), ("--blink-settings=preferredColorScheme=0",)], ids=["light", "dark"])
def test_the_console_is_silent_and_the_page_whole(page, flags):
    said, document = console(page, *flags)
    assert said == []
    assert document.count("<nav") == 1
    assert document.count('href="#part-') == document.count("<h2")
    assert "<svg" in document


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_table_is_sorted_by_its_heading(page, tmp_path):
    click = (
        "<script>addEventListener('load', () => { const t = [...document.querySelectorAll('table')].at(-1);"
        "[...t.querySelectorAll('th button')].find(b => b.textContent === 'weight norm').click();"
        "const at = t.tHead.rows[0].querySelector('[aria-sort]').cellIndex;"
        "document.title = [...t.tBodies[0].rows].map(r => r.cells[at].textContent).join(' '); });</script></body>"
    )
    sorted_page = tmp_path / "sorted.html"
    sorted_page.write_text(page.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    said, document = console(sorted_page)
    assert said == []
    title = document[document.index("<title>") + 7 : document.index("</title>")]
    values = pd.to_numeric(pd.Series(title.split()))
    assert len(values) > 20
    assert values.is_monotonic_increasing


NARROW = """<!doctype html><iframe id="narrow" style="width:390px;height:900px;border:0"></iframe><script>
const frame = document.getElementById("narrow");
frame.onload = () => {
  const inside = frame.contentDocument, width = inside.documentElement.clientWidth;
  inside.querySelectorAll("details").forEach(d => { d.open = true; });
  const cut = [...inside.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > width + 1);
  document.title = `${inside.documentElement.scrollWidth <= width} ${cut.length} ${cut.map(e => e.outerHTML)}`;
};
frame.srcdoc = %s;</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_nothing_is_cut_on_a_narrow_screen(page, tmp_path):
    kept = Path(__file__).parents[2] / "reports" / "digits"
    runs = [load_run(folder) for folder in sorted(kept.iterdir()) if folder.is_dir()]
    for text in (page.read_text(encoding="utf-8"), render(runs)):
        narrow = tmp_path / "narrow.html"
        narrow.write_text(NARROW % json.dumps(text).replace("</", "<\\/").replace("<!--", "<\\!--"), encoding="utf-8")
        messages, document = console(narrow)
        assert messages == []
        assert re.search("<title>([^<]{,200})", document)[1].strip() == "true 0"


def test_two_models_fit_two_megabytes_and_load_nothing():
    kept = Path(__file__).parents[2] / "reports" / "digits"
    text = render([load_run(folder) for folder in sorted(kept.iterdir()) if folder.is_dir()])
    assert len(text.encode()) < 2e6
    loads = re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    assert all(source.startswith(("data:", "#")) for source in loads)
