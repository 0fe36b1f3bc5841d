"""Attacks on as many samples as an interval takes."""

import numpy as np
import pandas as pd
import pytest

import robgib
from robgib import RobGIBError, RobGIBWarning
from robgib.robustness.evaluate import evaluate
from robgib.robustness.until import samples_needed
from robgib.robustness.verify import verify
from robgib.statistics import clopper_pearson

PLAIN = {"signs": False, "corruptions": False, "curve": False}


@pytest.fixture(scope="module")
def images(digits):
    return digits.train.x[:600], digits.train.y[:600]


@pytest.mark.parametrize("cascade", [False, True])
def test_it_stops_when_all_intervals_are_narrow(cascade, digits_mlp, images):
    attacks = ["pgd-linf:eps=0.1,steps=5", "pgd-linf:eps=0.1,steps=20", "fgsm-l2:eps=0.2"]
    tables = evaluate(digits_mlp, *images, attacks, cascade=cascade, until_width=0.15, **PLAIN)
    table = tables["robustness"]
    count = int(table["samples"].iloc[0])
    assert 100 < count < 600
    assert (table["samples"] == count).all()
    last = table.groupby(["norm", "eps"]).tail(1)
    assert bool((last["high"] - last["low"] <= 0.15).all())
    whole = evaluate(digits_mlp, *(v[:count] for v in images), attacks, cascade=cascade, **PLAIN)
    ignored = ["seconds", "forward", "backward"]
    pd.testing.assert_frame_equal(table.drop(columns=ignored), whole["robustness"].drop(columns=ignored))
    pd.testing.assert_frame_equal(tables["outcomes"], whole["outcomes"])


def test_a_wide_interval_stops_at_once_and_a_narrow_one_never(digits_mlp, images):
    tables = evaluate(digits_mlp, *images, ["fgsm-linf:eps=0.1"], until_width=0.5, **PLAIN)
    assert tables["robustness"]["samples"].item() == 100
    with pytest.warns(
        RobGIBWarning, match=r"after all 600 samples the widest 95% interval is \d\.\d%, not 1\.0%"
    ) as caught:
        tables = evaluate(digits_mlp, *images, ["fgsm-linf:eps=0.1"], until_width=0.01, **PLAIN)
    (row,) = tables["robustness"].to_dict("records")
    assert row["samples"] == 600
    assert f"is {row['high'] - row['low']:.1%}, " in str(caught[0].message)
    assert f"about {samples_needed(row['robust'], 600, 0.01):,}." in str(caught[0].message)


def test_a_failed_attack_is_reported_and_the_others_run(digits_mlp, images):
    tables = evaluate(
        digits_mlp, *images, ["fgsm-linf:eps=0.1", "torchattacks:TIFGSM:eps=0.1"], until_width=0.3, **PLAIN
    )
    assert tables["robustness"]["status"].tolist() == ["ok", "failed"]


def test_how_many_samples_an_interval_takes():
    for hits, width in ((0, 0.02), (10, 0.05), (50, 0.02), (97, 0.1)):
        count = samples_needed(hits, 100, width)
        low, high = clopper_pearson(round(hits / 100 * count), count)
        assert high - low <= width
        low, high = clopper_pearson(round(hits / 100 * count * 0.9), int(count * 0.9))
        assert high - low > width


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_stopping_early_keeps_the_intervals_promise(share):
    """The truth lies in the interval at which it stopped in about 95 of 100 runs; 600 runs are sure to two points."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        hits, count = np.cumsum(rng.random(4000) < share), 100
        low, high = clopper_pearson(int(hits[count - 1]), count)
        while high - low > 0.08:
            count += min(count, max(32, samples_needed(int(hits[count - 1]), count, 0.08) - count))
            low, high = clopper_pearson(int(hits[count - 1]), count)
        held += low <= share <= high
    assert held / 600 > 0.93


def test_a_run_says_how_many_and_can_be_verified(digits_mlp, digits):
    run = robgib.evaluate(
        digits_mlp,
        digits,
        attacks=["fgsm-linf"],
        estimators=[],
        until_width=0.25,
        save_adversarial=True,
        progress=False,
    )
    assert run.config["samples"] == 100 == run.robustness["samples"].iloc[0]
    assert all(claim.holds for claim in verify(run, run.adversarial, digits_mlp))
    with pytest.raises(RobGIBError, match="until_width"):
        robgib.evaluate(digits_mlp, digits, attacks=["fgsm-linf"], until_width=1.5)
