"""Attack-failure indicators: detection rates on models built to show them, and false alarms on models of the zoo.

    python -m benchmarks.signs --data-root DATA [--draws 8] [--into reports/evidence/signs.md]

Draws differ in size and seed: 50 correctly classified images for the built models, 15 to 100 for those of the zoo, at
the default eps of their data sets. An indicator on a zoo model is a false alarm, since none of them masks gradients.
Prints Markdown, or writes it between the marks of a page.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path

import torch
from scipy import stats
from torch import nn

from robgib.attacks import ThreatModel, make_attack
from robgib.data.dataset import Dataset
from robgib.data.loaders import load_data
from robgib.models.inference import eval_mode, prepare
from robgib.robustness.failure_indicators import CHECKS, failure_indicators
from robgib.robustness.run_attack import run_attack
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe, recipes
from tests import unusual

_SIZES = (15, 19, 25, 30, 40, 50, 70, 100)
_BEGIN, _END = "<!-- made by benchmarks.signs -->\n", "<!-- end -->"


def rough(height: str) -> nn.Module:
    """A function of one pixel with ripples, or with a gap that long steps, or all steps, jump over."""

    class OnePixel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u = x[:, 0, 0, 0] - 0.5
            value = (
                1 - 30 * (u.abs() - 0.09).clamp_min(0) + 2e-3 * torch.sin(800 * u)
                if height == "ripples"
                else 10 * (u - 0.0513).abs() - {"gap": 0.01, "narrow gap": 0.002}[height]
            )
            return torch.stack([value, torch.zeros_like(value)], 1)

    return OnePixel()


def built(base: nn.Module) -> dict[str, tuple[list[nn.Module], str]]:
    """Return, by indicator, the models built to show it and their description."""
    return {
        "random outputs": (
            [unusual.Noisy(base), unusual.RarelyNoisy(base), unusual.OwnNoise(base)],
            "noise at each call; in one call of ten; in one of ten, from a generator of its own",
        ),
        "outputs depend on the batch": ([unusual.Company(base)], "the batch's mean is taken off"),
        "outputs are probabilities": (
            [unusual.Probabilities(base), unusual.Probabilities(base, 2e5), unusual.OneProbability(base)],
            "a softmax at the end; a saturated one; one sigmoid",
        ),
        "test-time optimisation": ([unusual.Optimises(base)], "a step on the image before the answer"),
        "zero gradients": (
            [unusual.Quantised(base), unusual.Saturated(base), unusual.Cut(base)],
            "images rounded; logits × 1,000; the image detached",
        ),
        "loss does not grow": ([unusual.Quantised(base)], "images rounded"),
        "one step beats many": ([rough("ripples")], "ripples on the loss"),
        "unbounded eps does not reach 0": (
            [unusual.Quantised(base), unusual.Detached(base)],
            "images rounded; a branch without gradient",
        ),
        "black box beats gradients": (
            [unusual.Quantised(base), unusual.Saturated(base), unusual.Detached(base), unusual.Cut(base)],
            "images rounded; logits × 1,000; a branch without gradient; the image detached",
        ),
        "boundary steps beat ascent": ([rough("narrow gap")], "a gap that all steps jump over"),
        "large-to-small eps beats ascent": (
            [unusual.HardOfHearing()],
            "no response to changes of a pixel up to 0.2 from grey; L2 0.4",
        ),
        "more effort still helps": ([rough("gap")], "a gap that long steps jump over"),
        "weaker than a short attack": ([base], "an ordinary network, attacked with steps that do not reach the edge"),
    }


def draw(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ``count`` correctly classified images."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: 3 * count]
    net = prepare(model, x[:16]).model
    with eval_mode(net), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        keep = order[net(x[order]).argmax(1) == y[order]][:count]
    return x[keep], y[keep]


def hits(name: str, model: nn.Module, data: Dataset, draws: int) -> tuple[int, int, int]:
    """Return on how many draws an indicator is seen, the number of draws, and on how many any other one is seen."""
    hit = others = 0
    for seed in range(draws):
        if name in ("one step beats many", "boundary steps beat ascent", "more effort still helps"):
            generator = torch.Generator().manual_seed(seed)
            x = 0.5 + 1e-3 * (2 * torch.rand(50, generator=generator) - 1)[:, None, None, None].expand(-1, 1, 2, 2)
            y, threat = torch.zeros(50).long(), ThreatModel("linf", 0.14)
        elif name == "large-to-small eps beats ascent":
            x, y, threat = torch.full((50, 1, 8, 8), 0.5), torch.zeros(50).long(), ThreatModel("l2", 0.4)
        else:
            labels = (data.test.y > 4).long() if isinstance(model, unusual.OneLogit) else data.test.y
            x, y = draw(model, data.test.x, labels, 50, seed)
            threat = ThreatModel("linf", 0.1)
        attacks = None
        if name == "weaker than a short attack":
            weak = make_attack("torchattacks:PGD:eps=0.1,alpha=0.001,steps=5")
            attacks = {"weak": (weak, run_attack(model, x, y, weak).right)}
        names = {s.name for s in failure_indicators(model, x, y, threat, attacks=attacks, seed=seed) if s.seen}
        hit += name in names
        others += bool(names - {name})
    return hit, draws, others


def alarms(names: list[str], root: Path, draws: int) -> tuple[dict[str, int], int, list[str]]:
    """Return, by indicator, on how many draws of zoo models it is seen; the number of draws; and details."""
    seen = dict.fromkeys(CHECKS, 0)
    total, where = 0, []
    data_sets: dict[str, Dataset] = {}
    for name in names:
        recipe = find_recipe(name)
        data = data_sets.setdefault(recipe.data, load_data(recipe.data, root))
        model = load_recipe(recipe, data)[0]
        prepared = prepare(model, data.test.x[:16])
        attack = make_attack("pgd-linf", data.eps)
        for seed in range(draws):
            x, y = draw(model, data.test.x, data.test.y, _SIZES[seed % len(_SIZES)], seed)
            attacks = {"pgd-linf": (attack, run_attack(prepared, x, y, attack, seed=seed + 1000).right)}
            indicators = failure_indicators(prepared, x, y, attack.threat, attacks=attacks, seed=seed)
            total += 1
            for one in indicators:
                if one.seen:
                    seen[one.name] += 1
                    where.append(f"{name} ({len(x)} images): {one.name}: {one.detail}")
        print(f"{name}: {total} draws so far, {sum(seen.values())} indicators", flush=True)
    return seen, total, where


def _rate(count: int, total: int) -> str:
    """A share with its interval, in percent."""
    test = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    return f"{count} of {total} ({100 * count / total:.1f}%; {100 * test.low:.1f}–{100 * test.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--models", nargs="*", help="of the zoo; all by default")
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    digits = load_data("digits")
    base = load_recipe(find_recipe("digits-cnn"), digits)[0]
    lines = ["| indicator | models built to show it | seen | missed |", "| --- | --- | ---: | ---: |"]
    for name, (models, description) in built(base).items():
        counts = [hits(name, copy.deepcopy(m), digits, options.draws) for m in models]
        seen, total = sum(c[0] for c in counts), sum(c[1] for c in counts)
        lines.append(f"| {name} | {description} | {seen} of {total} | {total - seen} |")
        print(lines[-1], flush=True)
    names = options.models or sorted(recipes())
    seen_by, total, where = alarms(names, options.data_root, options.draws)
    lines += ["", "| indicator | false alarms on the zoo's models |", "| --- | ---: |"]
    lines += [f"| {name} | {_rate(seen_by[name], total)} |" for name in CHECKS]
    any_seen = len({w.rpartition(":")[0].split("):")[0] for w in where})
    lines += ["", f"{len(names)} models, {total} draws, {any_seen} draws with an indicator.", ""]
    lines += [f"- {description}" for description in where]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.into:
        page = options.into.read_text(encoding="utf-8")
        head, _, rest = page.partition(_BEGIN)
        options.into.write_text(f"{head}{_BEGIN}{text}{_END}{rest.partition(_END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
