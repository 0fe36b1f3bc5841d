"""A layer's units about the label, and what the network loses without some of them."""

import numpy as np
import pytest
import torch
from torch import nn

from robgib.information import layer_information
from robgib.information.activations import without_units
from robgib.information.readings import subset_synergy


class Voting(nn.Module):
    """Four units that each hold the class (copied), or of which a single one does (alone)."""

    def __init__(self, copied):
        super().__init__()
        self.units, self.head = nn.Conv2d(1, 4, 1, bias=False), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.units.weight[:, 0, 0, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0] if copied else [1.0, 0.0, 0.0, 0.0])
            self.head.weight.copy_(torch.stack([-torch.ones(4), torch.ones(4)]))

    def forward(self, x):
        return self.head(self.units(x).flatten(2).mean(2))


@pytest.fixture
def signs():
    y = torch.arange(400) % 2
    return (2.0 * y - 1).view(-1, 1, 1, 1).expand(400, 1, 2, 2).clone(), y


def test_units_are_set_to_nothing_one_subset_after_another(signs):
    x, y = signs
    model = Voting(copied=False).eval()
    held = without_units(model, x, "units", lambda n: [np.array([1, 2, 3]), np.array([0])], batch_size=150)
    assert (held[0] == y.numpy()).all()
    assert (held[1] == 0).all()  # without its only unit it can but guess
    (of_logits,) = without_units(model, x, "logits", lambda n: [np.array([1])])
    assert (of_logits == y.numpy()).all()  # the other answer is below 0 for one class and above for the other


def test_copies_have_no_subset_synergy_and_a_single_unit_has_what_its_absence_costs(signs):
    x, y = signs
    for copied, truth in ((True, 0.0), (False, 0.5)):  # half of the subsets hold a given one of four units
        model = Voting(copied).eval()
        with torch.no_grad():
            told = model(x).argmax(1).numpy()
        row = subset_synergy(model, x, y.numpy(), told, ["units"])["units"]
        assert row["low"] <= truth <= row["high"]
        assert row["value"] == pytest.approx(truth, abs=1e-9 if copied else 0.25)


def test_every_estimator_tells_the_units_reading_or_why_not(digits, digits_cnn):
    found = layer_information(
        digits_cnn, digits, ["binned", "imputation:single_feature=false,donors=2,samples=60,steps=20"],
        layers=["hidden"], samples=300, features="patches:2", unit_groups=4,
    ).layers.set_index(["estimator", "term"])  # fmt: skip
    own = found.loc["binned"]["value"]
    assert np.isfinite(own["S(Z;Y)"])
    assert own["C(Z;Y)"] > 0
    for term in ("S(Z;Y)", "C(Z;Y)"):
        assert np.isnan(found.loc["imputation"]["value"][term])
        assert "need an estimator of variables" in found.loc["imputation"]["note"][term]
    synergy = [found.loc[(name, "subset synergy"), "value"] for name in ("binned", "imputation")]
    assert synergy[0] == synergy[1]
    assert 0.2 < synergy[0] < 1.5
