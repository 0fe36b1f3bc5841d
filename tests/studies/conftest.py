"""Fewer resamples for studies that are made up; published figures and exact tests take all."""

import importlib

import pytest

ladder = importlib.import_module("robgib.studies.ladder")  # the package has a function of this name


@pytest.fixture(autouse=True)
def _fewer_resamples(request, monkeypatch):
    test = f"{request.module.__name__}.{request.node.name}"
    if not any(word in test for word in ("published", "exact", "tested_again_on_a_table")):
        monkeypatch.setattr(ladder, "RESAMPLES", 2000)
