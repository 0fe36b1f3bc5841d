"""Loss comparison after PCA: a network a subset, on known answers, and what the components lose."""

import numpy as np
import pytest

from robgib.information import LossComparison

QUICK = {"steps": 150, "width": 16, "folds": 3}
RNG = np.random.default_rng(0)
BITS = RNG.integers(2, size=(600, 2))


@pytest.mark.parametrize(
    ("target", "total", "synergy"), [(BITS[:, 0] ^ BITS[:, 1], 1.0, 1.0), (BITS[:, 0], 1.0, 0.0)], ids=["xor", "first"]
)
def test_two_bits(target, total, synergy):
    found = LossComparison(**QUICK).estimate([BITS[:, 0], BITS[:, 1]], target)
    assert found.total.value == pytest.approx(total, abs=0.05)
    assert found.synergy.low - 0.02 <= synergy <= found.synergy.high + 0.02
    assert found.synergy.value == pytest.approx(synergy, abs=0.06)


@pytest.mark.parametrize(("components", "bits"), [(1, 0.0), (2, 1.0)])
def test_what_lies_in_small_components_is_lost(components, bits):
    label = BITS[:, 0]
    # Correlated noise is the large component; the difference of the two columns is the small one, and holds the label.
    noise = RNG.standard_normal((600, 1))
    x = np.hstack([noise, noise + 0.2 * (2.0 * label[:, None] - 1)])
    found = LossComparison(components=components, **QUICK).estimate([x], label)
    assert found.total.value == pytest.approx(bits, abs=0.15)


def test_weights_give_the_information_of_the_weighted_law():
    """Where the samples with an even second bit alone count, the exclusive or is the first bit."""
    weights = (BITS[:, 1] == 0).astype(float)
    found = LossComparison(**QUICK).estimate([BITS[:, 0], BITS[:, 1]], BITS[:, 0] ^ BITS[:, 1], weights=weights)
    assert found.total.value == pytest.approx(1.0, abs=0.1)
