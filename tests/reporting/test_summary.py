import dataclasses

import numpy as np
import pytest

from robgib import evaluate
from robgib.reporting.summary import FIGURES, correlate, summarise, told_apart


@pytest.fixture(scope="module")
def run(digits, digits_cnn):
    return evaluate(
        digits_cnn,
        digits,
        attacks=["fgsm-linf"],
        estimators=["gaussian"],
        features="patches:4",
        samples=60,
        curve=False,
        name="one",
    )


def scaled(run, name, factor, robust):
    """A run whose complexities fall by ``factor`` more steeply and whose robustness is ``robust``."""
    layers, robustness = run.layers.copy(), run.robustness.copy()
    last = layers["depth"] == layers["depth"].max()
    complexity = layers["term"].isin(["C(X;Z)", "I(X;Z)"])
    for column in ("value", "low", "high"):
        layers.loc[last & complexity, column] *= factor
    robustness["robust_accuracy"] = robust
    return dataclasses.replace(run, name=name, layers=layers, robustness=robustness)


def test_summary_figures(run):
    table = summarise([run])
    layers = run.layers[run.layers["depth"] >= 0]
    c = layers[layers["term"] == "C(X;Z)"].sort_values("depth")["value"].to_numpy()
    assert table["gib_depth_compression"][0] == pytest.approx((c.max() - c[-1]) / c.max())
    assert table["gib_depth_compression_low"][0] <= table["gib_depth_compression"][0]
    for figure, term in FIGURES.items():
        assert table[figure][0] == pytest.approx(layers[layers["term"] == term]["value"].mean())


def test_correlation_over_models(run):
    runs = [scaled(run, f"m{i}", factor, 0.1 * i) for i, factor in enumerate((1.0, 0.9, 0.8, 0.7, 0.6, 0.5))]
    found = {c.figure: c for c in correlate(summarise(runs))}
    assert found["gib_depth_compression"].rho == pytest.approx(1)
    assert found["ib_complexity"].rho == pytest.approx(-1)
    assert found["gib_depth_compression"].models == 6


def test_figures_that_cannot_be_told_apart_are_said(run):
    runs = [scaled(run, f"m{i}", factor, 0.1 * i) for i, factor in enumerate((1.0, 0.9, 0.8, 0.7, 0.6))]
    assert told_apart(summarise(runs)) == {("gaussian", "patches:4"): pytest.approx(1, abs=1e-6)}
    assert np.isnan(told_apart(summarise(runs[:4]))["gaussian", "patches:4"])


def test_too_few_models_are_not_correlated(run):
    runs = [scaled(run, f"m{i}", 1 - 0.1 * i, 0.1 * i) for i in range(4)]
    assert all(np.isnan(c.rho) for c in correlate(summarise(runs)))


def test_models_of_one_name_are_told_apart(run):
    other = dataclasses.replace(run, config={**run.config, "seed": 1})
    assert summarise([run, other])["model"].nunique() == 2
