"""The calibration of the ladder on simulated studies."""

import numpy as np
import pandas as pd
import pytest

from robgib.studies import cells, simulate, structure
from robgib.studies.simulate import TRUTHS
from tests.studies.test_claims import STUDY, made


def small(draws, *names):
    rows = made(np.random.default_rng(0))[["model", "data", "architecture", "regime", "strength", "training_seed"]]
    found = simulate(STUDY, rows, draws, [t for t in TRUTHS if t.name in names])
    return found.pivot(index="truth", columns="rung", values="share"), found


def test_what_strength_causes_stays_on_the_first_rung():
    share, table = small(6, "through strength alone", "real, slope 1")
    assert share.loc["through strength alone", "goes with"] == 1
    assert share.loc["through strength alone", "at fixed training"] < 0.5
    assert share.loc["real, slope 1", "at fixed training"] == 1
    meaning = table.set_index(["truth", "rung"])["meaning"]
    assert meaning["through strength alone", "goes with"] == "power"
    assert meaning["through strength alone", "at fixed training"] == "false positives"
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()


@pytest.mark.slow
def test_false_positives_keep_their_level():
    """Whatever architectures and strengths do by themselves; a permutation of the models says 'supported' in 30%."""
    _, table = small(100, *(t.name for t in TRUTHS if t.true < 3))
    false = table[table["meaning"] == "false positives"]
    assert (false["low"] <= 0.05).all()


def test_the_structure_is_that_of_the_models_to_confirm_on():
    study = STUDY.model_copy(update={"controls": STUDY.confirm.model_copy(update={"models": ["digits-vit"]})})
    rows = structure(cells(study))
    assert rows["model"].tolist() == ["digits-cnn"]
    assert isinstance(rows, pd.DataFrame)
    assert rows["recipe.training.epochs"].notna().all()
