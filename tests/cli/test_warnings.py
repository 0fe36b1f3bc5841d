"""Warnings on the command line are text alone, whoever wrote it."""

import sys
import warnings
from contextlib import suppress

import pytest

from robgib import RobGIBWarning
from robgib.cli import app


@pytest.mark.parametrize("kind", [UserWarning, DeprecationWarning, RobGIBWarning])
def test_a_warning_does_not_steer_the_terminal(kind, monkeypatch, capsys):
    monkeypatch.setattr(app, "app", lambda **_: warnings.showwarning("\x1b]0;owned\x07 text", kind, "file.py", 3))
    # as Python itself has it; pytest's keeps what it is given
    monkeypatch.setattr(warnings, "showwarning", lambda message, *where: print(message, file=sys.stderr))
    with suppress(SystemExit):
        app.run()
    told = capsys.readouterr()
    assert "text" in told.err
    assert "\x1b]" not in told.out + told.err
    assert "\x07" not in told.out + told.err
