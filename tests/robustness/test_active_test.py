"""The active test: attacks find planted images on ordinary features, and gradient attacks miss them behind rounding."""

import torch

from robgib import ThreatModel, failure_indicators, make_attack
from robgib.models.inference import eval_mode, prepare
from robgib.robustness.active_test import planted_found
from robgib.robustness.failure_indicators import PLANTED_NAME
from tests.unusual import Quantised

THREAT = ThreatModel("linf", 0.1)


def shares(model, x, *specs):
    prepared = prepare(model, x)
    with eval_mode(prepared.model):
        found = planted_found(prepared, x, THREAT, {spec: make_attack(spec) for spec in specs})
    return {spec: (sum(hits), len(hits)) for spec, hits in found.items()}


def test_planted_images_are_found_on_an_ordinary_network(digits, digits_mlp):
    found = shares(digits_mlp, digits.test.x[:10], "apgd-ce-linf:eps=0.1,steps=30", "square-linf:eps=0.1,queries=500")
    for hits, planted in found.values():
        assert planted >= 8
        assert hits >= 0.8 * planted


def test_gradient_attacks_miss_planted_images_behind_rounding(digits, digits_mlp):
    found = shares(Quantised(digits_mlp), digits.test.x[:10], "pgd-linf:eps=0.1", "square-linf:eps=0.1,queries=1000")
    (missing, planted), (hits, _) = found.values()
    assert missing == 0
    assert hits >= 0.8 * planted


def test_the_indicator_names_the_share_of_every_attack(digits, digits_mlp):
    x, y = digits.test.x[:12], digits.test.y[:12]
    left = torch.ones(12).double().numpy()
    attacks = {spec: (make_attack(spec), left) for spec in ("pgd-linf:eps=0.1", "square-linf:eps=0.1,queries=500")}
    for model, seen in ((digits_mlp, False), (Quantised(digits_mlp), True)):
        # Enough passes for the active test, and for no other check that runs attacks.
        found = failure_indicators(model, x, y, THREAT, attacks=attacks, passes=4 * 12 * 700)
        (sign,) = [s for s in found if s.name == PLANTED_NAME]
        assert sign.seen == seen
        assert all(f"{spec} finds" in sign.detail for spec in attacks)


def test_a_model_without_a_linear_layer_is_left_out(digits):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 10, 8), torch.nn.Flatten())
    assert shares(model, digits.test.x[:2], "pgd-linf:eps=0.1") == {}
