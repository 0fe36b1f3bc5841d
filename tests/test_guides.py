"""The plug-in guides, followed to the letter: their files are written and their commands run."""

import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
_FENCE = re.compile(r"```(python|yaml|console)\n(.*?)```", re.S)


@pytest.mark.parametrize(
    "guide", ["model", *(pytest.param(g, marks=pytest.mark.slow) for g in ("estimator", "attack", "data"))]
)
def test_guide(guide, cli, tmp_path):
    ran = []
    for kind, body in _FENCE.findall((DOCS / f"plugin-{guide}.md").read_text()):
        first, _, rest = body.partition("\n")
        if kind != "console" and first.startswith("# mine/"):
            place = tmp_path / first.removeprefix("# ")
            place.parent.mkdir(exist_ok=True)
            place.write_text(rest)
        for line in body.splitlines() if kind == "console" else ():
            words = shlex.split(line)
            assert words[:2] == ["$", "robgib"], line
            done = cli(*words[2:])
            assert done.returncode == 0, (line, done.stderr)
            ran.append(done.stdout)
    assert len(ran) >= 3
