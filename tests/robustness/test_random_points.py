"""Probabilistic robustness: known shares, the run folder, the terminal, the page."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import robgib
from robgib import RobGIBError
from robgib.attacks import ThreatModel, carry
from robgib.measures import probabilistic_robustness
from robgib.reporting.console import print_runs, runs_json
from robgib.reporting.page import render
from robgib.results import load_run
from robgib.robustness.random_points import random_points_row
from robgib.robustness.verify import verify
from robgib.statistics import clopper_pearson


class FirstPixel(nn.Module):
    """Logits (N, 2): class 1 where the first pixel exceeds 0.5."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        return torch.stack([0.5 - first, first - 0.5], 1)


T = np.linspace(-1, 1, 4001)
CAP = (1 - T**2) ** 1.5
X, Y = torch.full((6, 1, 2, 2), 0.45), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("norm", "share"),
    [
        ("linf", 0.75),  # the first pixel is uniform in [0.35, 0.55]
        ("l2", float(np.sum(CAP[T < 0.5]) / np.sum(CAP))),  # the volume below half of the radius, in four dimensions
    ],
)
def test_the_share_of_a_half_space_is_known(norm, share):
    row = random_points_row(FirstPixel(), X, Y, ThreatModel(norm, 0.1), 400)
    assert row["share"] == pytest.approx(share, abs=0.03)
    assert (row["low"], row["high"]) == clopper_pearson(row["kept"], 6)
    assert row["kept"] == pytest.approx(6 * row["share"])
    assert (row["points"], row["samples"]) == (400, 6)
    assert probabilistic_robustness(FirstPixel(), X, Y, 0.1, norm=norm, points=400)[0] == pytest.approx(share, abs=0.03)


def test_points_differ_inside_the_mask_only():
    mask = torch.ones(6, 1, 2, 2, dtype=torch.bool)
    mask[:, :, 0, 0] = False
    assert random_points_row(FirstPixel(), carry(X, mask=mask), Y, ThreatModel("linf", 0.1), 20)["share"] == 1.0


def test_points_do_not_depend_on_the_other_images():
    whole = random_points_row(FirstPixel(), X, Y, ThreatModel("linf", 0.1), 7, seed=3)
    parts = [random_points_row(FirstPixel(), X[:n], Y[:n], ThreatModel("linf", 0.1), 7, seed=3) for n in (5, 6)]
    assert parts[1] == whole
    assert 0 <= parts[1]["kept"] - parts[0]["kept"] <= 1


@pytest.fixture(scope="module")
def run(digits, digits_mlp):
    return robgib.evaluate(
        digits_mlp, digits, attacks=["pgd-linf:eps=0.15,steps=3", "fgsm-l2:eps=0.5", "patch:eps=2,places=1,steps=2"],
        random_points=4, estimators=[], samples=20, curve=False, signs=False, corruptions=False, progress=False,
        save_adversarial=True,
    )  # fmt: skip


def test_a_run_holds_shows_and_verifies_them(run, digits_mlp, tmp_path):
    table = run.random_points
    assert table[["norm", "eps", "points", "samples"]].to_numpy().tolist() == [
        ["linf", 0.15, 4, 20],
        ["l2", 0.5, 4, 20],
    ]
    again = load_run(run.save(tmp_path))
    assert again.random_points.equals(table.astype(again.random_points.dtypes))
    text = f"{table['share'][0]:.1%} [{table['low'][0]:.1%}, {table['high'][0]:.1%}] of the random points in L∞ 0.15"
    out = Console(record=True, width=300)
    print_runs([run], out, out)
    assert text in out.export_text()
    assert text in render([run])
    assert runs_json([run], ["x"])["models"][0]["random_points"][0]["share"] == table["share"][0]
    assert not [v.what for v in verify(again, run.adversarial, digits_mlp) if not v.holds]
    for column, what in (
        ("share", "share that keeps the label"),
        ("points", "threat models"),
        ("eps", "threat models"),
    ):
        changed = replace(again, random_points=again.random_points.assign(**{column: again.random_points[column] * 2}))
        found = [v.what for v in verify(changed, run.adversarial, digits_mlp) if not v.holds]
        assert [f"random points: {what}" in one for one in found] == [True]
    changed = replace(again, random_points=again.random_points[:1])
    assert [v.what for v in verify(changed, run.adversarial, digits_mlp) if not v.holds]


def test_points_need_a_ball(digits, digits_mlp):
    with pytest.raises(RobGIBError, match=r"random points are drawn from the balls .* give an attack of a norm"):
        robgib.evaluate(digits_mlp, digits, attacks=["patch:eps=2"], random_points=5, estimators=[], samples=9)
