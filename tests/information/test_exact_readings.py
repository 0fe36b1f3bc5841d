"""Further terms of a layer, beside sums that are written out."""

import math
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from robgib.information import Estimate, readings
from robgib.information.discrete import adjusted_information
from robgib.information.observer import LayerView, Resolution
from robgib.information.readings import (
    RESOLUTIONS,
    _label_information,
    code_variants,
    noise_terms,
    subset_synergy,
    unit_terms,
)
from robgib.information.views import NOISE, Codebook


def test_settings_of_the_readings():
    assert (readings._DRAWS, readings._IMAGES, readings._NOISY) == (40, 500, 2000)
    assert RESOLUTIONS == ("k/2", "2k")
    defaults = {name: p.default for name, p in signature(subset_synergy).parameters.items() if p.default is not p.empty}
    assert defaults == {"batch_size": 256, "device": "cpu", "seed": 0}


@pytest.mark.parametrize(("codes", "sizes"), [(5, (2, 10)), (3, (2, 6)), (11, (5,)), (10, (5, 20))])
def test_codes_of_half_and_of_twice_as_many_symbols(codes, sizes):
    """At least two symbols, and no more than there are samples to fit them on, here 20."""
    rng = np.random.default_rng(0)
    fit = {"a": rng.standard_normal((20, 3)), "b": rng.standard_normal((20, 4))}
    main = [LayerView(name, Codebook.fit(fit[name], 2, codes)) for name in "ab"]
    main.append(LayerView("a", Resolution(2, codes, 0.1).fit(NOISE, fit["a"])))  # it has no codes
    found = code_variants(main, fit, Resolution(2, codes, 0.1, seed=3))
    expected = [(size, layer, variant) for size, variant in zip(sizes, RESOLUTIONS, strict=False) for layer in "ab"]
    assert [(len(v.fitted.centres), v.layer, v.variant) for v in found] == expected
    for view, of in zip(found, main[:2] * 2, strict=False):
        size = len(view.fitted.centres)
        assert view.fitted.centres == pytest.approx(of.fitted.resized(fit[view.layer], size, 3).centres)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_the_bottleneck_of_a_layer_in_noise(monkeypatch, flags):
    """I(T;Y) − β I(X;T) = 2 − 0.5 · 3; half-widths 0.3 and 0.5 · 0.8 make √(0.09 + 0.16) = 0.5."""
    monkeypatch.setattr(readings, "_NOISY", 4)
    total, label = Estimate(3.0, 2.2, 3.8, flags[0], "of the total"), Estimate(2.0, 1.7, 2.3, flags[1])
    seen = []
    fitted = SimpleNamespace(
        target=lambda *args: (
            seen.append(args),
            SimpleNamespace(total=total, label=label, resolution="noise", notes=("one", "of the total")),
        )[1]
    )
    resolution = SimpleNamespace(fit=lambda view, fit: (seen.append((view, fit)), fitted)[1])
    z, fit, y, weights = np.arange(6.0)[:, None], np.arange(7.0)[:, None], np.arange(6), np.arange(6.0)
    observation = SimpleNamespace(values={"a": z}, fit={"a": fit}, inputs=SimpleNamespace(y=y))
    first, second = noise_terms(observation, "a", resolution, 0.5, weights)
    (view, on), (name, values, fit_values, labels, weighed) = seen
    assert (view, name, on is fit) == (NOISE, "", True)
    assert values.tolist() == z[:4].tolist()
    assert fit_values.tolist() == fit[:4].tolist()
    assert labels.tolist() == [0, 1, 2, 3]
    assert weighed.tolist() == [0, 1, 2, 3]
    shared = {"bound": "counted", "resolution": "noise", "samples": 4, "note": "one; of the total"}
    assert first == {"term": "I(X;Z) noise", "value": 3.0, "low": 2.2, "high": 3.8, "flagged": flags[0]} | shared
    numbers = [second.pop(name) for name in ("value", "low", "high")]
    assert numbers == pytest.approx([0.5, 0.0, 1.0])
    assert second == {"term": "IB noise", "flagged": any(flags)} | shared
    noise_terms(observation, "a", resolution, 0.5)
    assert seen[-1][-1] is None


def test_terms_of_units():
    z, fit = np.zeros((5, 3)), np.zeros((6, 3))
    inputs = SimpleNamespace(y=np.arange(5), y_fit=np.arange(6))
    observation, seen = SimpleNamespace(values={"a": z}, fit={"a": fit}, inputs=inputs), {}
    result = SimpleNamespace(
        resolution="two",
        notes=["p", "q"],
        samples=5,
        bound="lower",
        synergy=Estimate(1, 0, 2),
        complexity=Estimate(3, 2, 4),
    )
    estimator = SimpleNamespace(
        runs_network=False,
        of_units=lambda *args: (
            seen.update(units=args),
            SimpleNamespace(values="values", fit="fit", resolution="one"),
        )[1],
        estimate=lambda *args, **more: (seen.update(args=args, more=more), result)[1],
    )
    rows = unit_terms(estimator, observation, "a", 2, "weights")
    assert seen["units"] == (z, fit, 2)
    assert seen["args"] == ("values", inputs.y)
    assert seen["more"] == {"fit_features": "fit", "fit_target": inputs.y_fit, "weights": "weights"}
    shared = {"flagged": False, "bound": "lower", "resolution": "one; two", "samples": 5, "note": "p; q"}
    assert rows == [
        {"term": "S(Z;Y)", "value": 1, "low": 0, "high": 2} | shared,
        {"term": "C(Z;Y)", "value": 3, "low": 2, "high": 4} | shared,
    ]


def test_information_of_predictions_about_the_label():
    rng = np.random.default_rng(0)
    answer, y = rng.integers(3, size=60), rng.integers(3, size=60)
    expected = adjusted_information(answer, y, 8, np.random.default_rng([2, 7]))
    assert _label_information(answer, y, 2) == (expected.value, expected.error)
    assert _label_information(answer * 0 + 1, y, 2) == (0.0, 0.0)
    late = np.append(np.zeros(59, int), 1)  # one answer that is another, the last
    assert _label_information(late, y, 2)[1] > 0


@pytest.mark.parametrize("count", [5, 2, 1])
def test_the_synergy_of_random_subsets_of_channels(monkeypatch, count):
    """I(Y;Ŷ) less its mean over subsets of each size from one channel to all but one; 1.96 standard errors of both."""
    monkeypatch.setattr(readings, "_IMAGES", 50)
    monkeypatch.setattr(readings, "_DRAWS", 6)
    rng = np.random.default_rng(1)
    y, predicted = rng.integers(3, size=60), rng.integers(3, size=60)
    predicted = np.where(rng.random(60) < 0.7, y, predicted)
    seen = {}

    def without(model, x, layer, subsets, **more):
        seen[layer] = [list(map(int, s)) for s in subsets(count)]
        seen["more"] = (len(x), more)
        return [np.where(np.arange(50) % (2 + k) == 0, 0, predicted[:50]) for k, _ in enumerate(seen[layer])]

    monkeypatch.setattr(readings, "without_units", without)
    rows = subset_synergy(nn.Identity(), torch.zeros(60, 1), y, predicted, ["a", "b"], batch_size=9, seed=4)
    assert seen["more"] == (50, {"batch_size": 9, "device": "cpu"})
    for layer in "ab":  # the draws of a layer are not those of its place among others
        row = rows[layer]
        draw = np.random.default_rng([4, 17])
        sets = [
            draw.choice(count, draw.integers(1, count), replace=False).tolist() for _ in range(6 if count > 1 else 0)
        ]
        assert seen[layer] == sets
        assert (row["term"], row["samples"], row["bound"]) == ("subset synergy", 50, "counted")
        assert row["resolution"] == f"{len(sets)} random subsets of the channels set to 0"
        if count == 1:
            assert np.isnan([row["value"], row["low"], row["high"]]).all()
            assert row["note"] == "a single channel has no subsets"
            continue
        whole, error = _label_information(predicted[:50], y[:50], 4)
        kept = [
            _label_information(np.where(np.arange(50) % (2 + k) == 0, 0, predicted[:50]), y[:50], 4)[0]
            for k in range(6)
        ]
        mean = sum(kept) / 6
        variance = sum((k - mean) ** 2 for k in kept) / 5 / 6
        half = 1.96 * math.sqrt(error**2 + variance)
        expected = [whole - mean, whole - mean - half, whole - mean + half]
        assert [row["value"], row["low"], row["high"]] == pytest.approx(expected)
        assert row["note"] == ""
