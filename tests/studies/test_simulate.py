"""The calibration of the ladder on simulated studies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robgib.errors import RobGIBError
from robgib.studies import cells, open_study, simulate, structure
from robgib.studies.simulate import TRUTHS
from tests.studies.test_claims import STUDY, made


def small(draws, *names):
    rows = made(np.random.default_rng(0))[["model", "data", "architecture", "regime", "strength", "training_seed"]]
    found = simulate(STUDY, rows, draws, [t for t in TRUTHS if t.name in names])
    return found.pivot(index="truth", columns="rung", values="share"), found


def test_what_strength_causes_stays_on_the_first_rung():
    share, table = small(6, "through strength alone", "real, slope 1")
    assert share.loc["through strength alone", "goes with"] > 0.5  # reached in 29 of 30 studies of this structure
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


REPORTS = Path(__file__).parents[2] / "reports"


def test_the_structure_of_a_ledger_is_that_of_its_design():
    study, rows = open_study(REPORTS / "ledger" / "study.yaml", [REPORTS / "ledger" / "catalogue"]).structure()
    assert study.expect == "negative"
    assert len(rows) == 240
    fields = [c for c in rows if c not in ("model", "training_seed")]
    assert (rows.groupby(fields).size() == 2).all()
    levels = {"recipe.width", "recipe.depth", "recipe.epochs", "recipe.learning_rate", "recipe.weight_decay",
              "recipe.batch_size", "recipe.augmentation", "recipe.early_stopping"}  # fmt: skip
    assert levels <= set(fields)
    truths = [t for t in TRUTHS if t.name in ("no relation: independent models", "real, slope 1")]
    share = simulate(study, rows, 1, truths).pivot(index="truth", columns="rung", values="share")
    assert share.loc["real, slope 1"].to_list() == [1, 1, 1]
    assert share.loc["no relation: independent models", "beyond the baselines"] == 0


def test_a_study_without_a_ladder_cannot_be_simulated():
    with pytest.raises(RobGIBError, match="has no ladder of evidence to simulate"):
        open_study(next(REPORTS.glob("phases*/study.yaml"))).structure()


def test_a_study_of_too_few_models_for_a_verdict_is_not_simulated():
    rows = made(np.random.default_rng(0)).iloc[:7]
    with pytest.raises(RobGIBError, match="'made' has 7 models to confirm on, and a verdict needs at least 8"):
        simulate(STUDY, rows, 1, TRUTHS[:1])
