"""Packages that a library imports and that nothing here uses."""

import importlib
import sys

import pytest

from robgib._absent import stand_in


def test_what_is_missing_is_there_meanwhile_and_gone_after(tmp_path, monkeypatch):
    (tmp_path / "wants_it.py").write_text(
        "from no_such_thing import AutoAttack\nfrom no_such_thing.state import EvaluationState\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with stand_in("no_such_thing", ("AutoAttack", "EvaluationState"), ("state",)):
        library = importlib.import_module("wants_it")
    assert library.AutoAttack is None
    assert not [name for name in sys.modules if name.startswith("no_such_thing")]
    with pytest.raises(ImportError):
        importlib.import_module("no_such_thing")
    del sys.modules["wants_it"]


def test_what_is_installed_is_left_alone():
    import json

    with stand_in("json", ("loads",)):
        assert importlib.import_module("json") is json
    assert sys.modules["json"].loads is json.loads is not None


def test_it_is_gone_when_the_import_fails():
    with pytest.raises(RuntimeError), stand_in("no_such_thing", (), ("part",)):
        raise RuntimeError
    assert "no_such_thing" not in sys.modules
    assert "no_such_thing.part" not in sys.modules
