"""Networks on pictures, where what a patch tells is spread over all its pixels."""

import numpy as np
import pytest

from robgib.information import Imputation
from robgib.validation.known_pictures import known_pictures
from robgib.validation.validate import _try_network, _views, task_names, validate

PICTURES = known_pictures()
QUICK = Imputation(samples=200, steps=150)


def trial(name, estimator, seed=0):
    network = PICTURES[name]
    (found,) = _try_network(estimator, network, _views(network, "rate"), np.random.default_rng(seed)).values()
    return {n: (v, bool(i)) for n, v, i in zip(found.names, found.value, found.inside, strict=True)}


@pytest.mark.parametrize("name", ["checkerboard", pytest.param("copied-bits", marks=pytest.mark.slow), "texture"])
def test_a_bit_that_every_patch_tells(name):
    """Components of a patch hold little of it: r was told as 0.1 and 2.8 for 4, v as 0.9 for 0 (copied bits: right)."""
    found = trial(name, QUICK)
    assert found["r(X;Z)"][0] == pytest.approx(4, abs=0.15)
    assert found["v(X;Z)"][0] == pytest.approx(0, abs=0.15)
    assert found["S(X;Z)"][0] == pytest.approx(-1, abs=0.1)
    assert all(inside for _, inside in found.values())


def test_each_patch_of_the_pictures_tells_the_bit():
    for name, of in (("checkerboard", "sign"), ("copied-bits", "sign")):
        network = PICTURES[name]
        x, bit = network.draw(4000, np.random.default_rng(5))
        pictures = x.reshape(-1, 12, 12)
        board = np.indices((6, 6)).sum(0) % 2 * 2.0 - 1
        for a in (0, 6):
            for b in (0, 6):
                sign = (pictures[:, a : a + 6, b : b + 6] * board).mean((1, 2)) > 0
                assert (sign == bit).mean() > 0.999
        assert np.array_equal(network.layers[of](x)[:, 0] > 0, (pictures[:, :6, :6] * board).mean((1, 2)) > 0)


def test_they_are_among_the_tasks():
    assert {"checkerboard/sign", "texture/sign", "gaussian-digits/logits"} <= set(task_names())


@pytest.mark.slow
def test_one_bit_holds_in_every_repeat():
    table = validate([QUICK], [PICTURES[n] for n in ("checkerboard", "copied-bits", "texture")], repeats=10)
    assert set(table["verdict"]) == {"holds"}


@pytest.mark.slow
def test_a_trained_network_on_gaussian_pictures():
    table = validate([Imputation()], [PICTURES["gaussian-digits"]], repeats=10)
    assert not table.query("verdict == 'wrong'")[["task", "figure"]].to_numpy().tolist()
    degrees = table[table["figure"].isin(["r(X;Z)", "v(X;Z)"])]
    assert (degrees["bias"].abs() < 0.1 * degrees["truth"].clip(lower=1)).all()
