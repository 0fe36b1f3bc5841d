import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from robgib import evaluate
from robgib.reporting.console import print_runs
from robgib.reporting.page import render
from robgib.reporting.summary import FIGURES, collinearity, correlate, summarise, unstable_orders


@pytest.fixture(scope="module")
def run(digits, digits_mlp):
    return evaluate(
        digits_mlp,
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


def test_collinearity_of_the_complexities_over_models(run):
    runs = [scaled(run, f"m{i}", factor, 0.1 * i) for i, factor in enumerate((1.0, 0.9, 0.8, 0.7, 0.6))]
    assert collinearity(summarise(runs)) == {("gaussian", "patches:4"): pytest.approx(1, abs=1e-6)}
    assert np.isnan(collinearity(summarise(runs[:4]))["gaussian", "patches:4"])


def test_too_few_models_are_not_correlated(run):
    runs = [scaled(run, f"m{i}", 1 - 0.1 * i, 0.1 * i) for i in range(4)]
    assert all(np.isnan(c.rho) for c in correlate(summarise(runs)))


def test_models_of_one_name_have_distinct_names(run):
    other = dataclasses.replace(run, config={**run.config, "seed": 1})
    assert summarise([run, other])["model"].nunique() == 2


def coded(run, name, means):
    """A run whose two layers have such vulnerabilities at k/2, k and 2k codes, and of the predicted label the last."""
    base = run.layers[run.layers["term"] == "v(X;Z)"].iloc[0].to_dict() | {"view": "rate", "low": 0.0, "high": 1.0}
    rows = [
        {**base, "layer": layer, "depth": depth, "term": f"v(X;Z){ending}", "value": value, "flagged": False}
        for layer, depth in (("a", 0), ("b", 1))
        for ending, value in zip((" k/2", "", " 2k"), means, strict=False)
    ]
    rows += [
        {**base, "layer": "Ŷ", "depth": -1, "term": "v(X;Z)", "value": means[3], "flagged": False},
        *({**base, "layer": layer, "depth": d, "term": t, "value": 1.0, "flagged": False}
          for layer, d in (("a", 0), ("b", 1)) for t in ("I(X;Z)", "C(X;Z)", "IB", "IB noise")),
    ]  # fmt: skip
    return dataclasses.replace(run, name=name, layers=pd.DataFrame(rows)[list(run.layers.columns)])


def test_an_order_of_models_that_turns_with_the_codes_is_told(run):
    one, two = coded(run, "one", [0.5, 0.6, 0.9, 0.2]), coded(run, "two", [0.4, 0.7, 1.0, 0.3])
    assert not unstable_orders([one])
    assert not unstable_orders([one, coded(run, "two", [0.6, 0.7, 1.0, 0.1])])
    (told,) = unstable_orders([one, two])
    assert told.endswith(
        "by v the order depends on the resolution (k/2: two < one; k: one < two; 2k: one < two; by Ŷ, which needs no "
        "codes: one < two)"
    )
    assert "the order depends on the resolution" in render([one, two])
    out = io.StringIO()
    print_runs([one, two], Console(file=out, width=300), Console(file=io.StringIO()), layers=True)
    text = out.getvalue()
    assert "the order depends on the resolution" in text
    assert "v at k/2, k and 2k codes: a 0.50, 0.60, 0.90; b 0.50, 0.60, 0.90" in text
    header = next(line for line in text.splitlines() if "layer" in line and "rate" in line)
    assert "I(X;Z)" not in header.replace("I(X;Z) noise", "")  # of a code it is the rate that was chosen
    assert "IB noise" in header
    rows = [line.split()[0] for line in text.splitlines() if line.split()]
    assert [r for r in rows if r in "Ŷab"][:3] == ["Ŷ", "a", "b"]


def test_the_terminal_names_the_most_sensitive_layer_and_its_features(run):
    def printed(low_of_top):
        layers = run.layers.copy()
        layers["flagged"] = False
        v = layers.index[layers["term"] == "v(X;Z)"]
        layers.loc[v, ["value", "low", "high"]] = [1.0, 0.8, 1.2]
        top = layers.index[(layers["term"] == "v(X;Z)") & (layers["layer"] == "logits")]
        layers.loc[top, ["value", "low", "high"]] = [2.0, low_of_top, 2.5]
        shown = io.StringIO()
        plain = Console(file=shown, width=400)
        print_runs([dataclasses.replace(run, layers=layers)], plain, plain)
        return shown.getvalue()

    assert "`logits` depends most on individual patches: masking one of 16 loses 12% of its information" in printed(1.3)
    assert "depends most" not in printed(1.2)  # intervals touch: the order is open


def test_the_interval_of_a_mean_over_layers_keeps_the_ends_of_the_layers(run):
    layers = run.layers.copy()
    own = (layers["term"] == "C(X;Z)") & (layers["depth"] >= 0)
    layers.loc[own, ["value", "low", "high"]] = [2.3, 2.05, 2.95]
    table = summarise([dataclasses.replace(run, layers=layers)])
    ends = ["gib_complexity", "gib_complexity_low", "gib_complexity_high"]
    assert list(table.loc[0, ends]) == pytest.approx([2.3, 2.05, 2.95])
