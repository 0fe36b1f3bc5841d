"""What is measured beside the attacks, and what it may cost."""

import pytest

from robgib.models.inference import count_queries, prepare
from robgib.robustness.evaluate import evaluate
from robgib.robustness.gradient_check import GRADIENT_IMAGES, GRADIENT_PASSES


@pytest.mark.parametrize("specs", [["fgsm-linf"], ["pgd-linf:eps=0.02"], ["apgd-ce-linf:eps=0.02", "fgsm-linf"]])
def test_all_beside_the_attacks_takes_half_of_their_passes_at_most(specs, digits_mlp, digits):
    """Besides a gradient check of known size; curve, indicators, corruptions and convergence."""
    x, y = digits.test.x[:100], digits.test.y[:100]
    prepared = prepare(digits_mlp, x)
    with count_queries(prepared.model, prepared.fused) as passes:
        tables = evaluate(prepared, x, y, specs, default_eps={"linf": 0.02})
    rows = tables["robustness"]
    attacks = int((rows["forward"] + 2 * rows["backward"]).sum())
    clean = len(x) * (1 + len(specs))  # predictions, and the first images of each attack for its convergence
    assert passes.cost - attacks - clean <= max(attacks // 2, GRADIENT_IMAGES * GRADIENT_PASSES) + 50
    assert not tables["convergence"].empty


def test_nothing_is_looked_for_where_nothing_remains(digits_mlp, digits):
    x, y = digits.test.x[:60], digits.test.y[:60]
    tables = evaluate(digits_mlp, x, y, ["pgd-linf:eps=0.4"])
    assert tables["robustness"]["robust"].tolist() == [0]
    details = tables["signs"].set_index("name")["detail"]
    assert details["zero gradients"] == "skipped: pgd-linf:eps=0.4 fooled every image"
    assert details["weaker than a short attack"] == "skipped: pgd-linf:eps=0.4 fooled every image"
