"""The pages in a real browser: no error in its console, and a size that can be sent."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

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
        "[...t.querySelectorAll('th button')].find(b => b.textContent === 'weight_norm').click();"
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
