"""Start distributions of PGD under L2 and L1, and losses of its restarts: the tables of reports/evidence/attacks.md.

    python benchmarks/starts.py --data-root DATA [--models digits-cnn,digits-cnn-at,digits-vit,fashion-cnn-at]

Prints the percentage of images that remain right, by start or by loss, as the mean over seeds: lower is stronger. All
entries of a row use the same images and number of passes. Prints Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from robgib.attacks import APGD, PGD, Attack, ThreatModel
from robgib.attacks.threat_model import Norm, per_sample
from robgib.data.loaders import load_data
from robgib.models.inference import eval_mode
from robgib.runtime import SampleRNG
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

BUDGETS = {
    "digits-cnn": {"linf": (0.06, 0.1), "l2": (0.35, 0.5), "l1": (1.0, 2.0)},
    "digits-cnn-at": {"linf": (0.1, 0.15), "l2": (0.7, 1.0), "l1": (2.0, 4.0)},
    "digits-vit": {"linf": (0.06, 0.1), "l2": (0.35, 0.5), "l1": (1.0, 2.0)},
    "fashion-cnn-at": {"linf": (0.1, 0.12), "l2": (1.0, 1.5), "l1": (8.0, 12.0)},
}
STARTS = ("clean", "volume", "radius", "half", "surface")


@dataclass(frozen=True)
class Started(ThreatModel):
    """A threat model with a start distribution: uniform direction, and a radius by the rule."""

    rule: str = "radius"

    def random_start(self, x: Tensor, rng: SampleRNG) -> Tensor:
        """Draw a start by the rule; ``clean`` is the image itself."""
        if self.rule == "clean":
            return x
        count = x[0].numel()
        if self.norm == "l1":
            size = -torch.log1p(-rng.uniform((count,), x.device))
            noise = (size / size.sum(1, keepdim=True)).view_as(x) * (2 * rng.integers(2, tuple(x.shape[1:])) - 1)
        else:
            noise = rng.normal(tuple(x.shape[1:]), x.device)
            noise = noise / per_sample(torch.linalg.vector_norm(noise.flatten(1), dim=1), noise)
        radius = rng.uniform((1,), x.device).flatten()
        radius = {"volume": radius ** (1 / count), "half": radius / 2, "surface": torch.ones_like(radius)}.get(
            self.rule, radius
        )
        return self.project(x + self.eps * per_sample(radius, noise) * noise, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root")
    parser.add_argument("--models", default=",".join(BUDGETS))
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--tables", default="starts,restarts,apgd,losses")
    options = parser.parse_args()
    for table in options.tables.split(","):
        columns = ("ce", "margin") if table == "losses" else STARTS
        print(f"\n| model | budget | {' | '.join(columns)} |\n| --- | --- |{' --- |' * len(columns)}", flush=True)
        for name in options.models.split(","):
            recipe = find_recipe(name)
            data = load_data(recipe.data, options.data_root if recipe.data != "digits" else None)
            model = load_recipe(recipe, data)[0].eval()
            x, y = data.test.x[: options.images], data.test.y[: options.images]
            for norm, budgets in BUDGETS[name].items():
                if norm in {"losses": ("l1",), "apgd": ("linf", "l1")}.get(table, ("linf",)):
                    continue
                for eps in budgets:
                    attacks = [attack(table, norm, eps, column) for column in columns]
                    shares = [left(model, x, y, one, options.seeds) for one in attacks]
                    cells = " | ".join(f"**{v:.1f}**" if v == min(shares) else f"{v:.1f}" for v in shares)
                    print(f"| {name} | {norm} {eps:g} | {cells} |", flush=True)


def attack(table: str, norm: Norm, eps: float, column: str) -> Attack:
    if table == "losses":
        return PGD(norm, eps, steps=50, restarts=5, loss=column)
    restarts = 5 if table == "restarts" else 1
    made = APGD(norm, eps, steps=50) if table == "apgd" else PGD(norm, eps, steps=20, restarts=restarts)
    object.__setattr__(made, "_threat", Started(norm, eps, rule=column))  # the same ball with other starts
    return made


def left(model: torch.nn.Module, x: Tensor, y: Tensor, attacker: Attack, seeds: int) -> float:
    with eval_mode(model):
        with torch.no_grad():
            right = model(x).argmax(1) == y
        x, y, count = x[right], y[right], len(x)
        shares = []
        for seed in range(seeds):
            x_adv = attacker.perturb(model, x, y, SampleRNG(seed, range(len(x))))
            with torch.no_grad():
                shares.append(100 * int((model(x_adv).argmax(1) == y).sum()) / count)
    return mean(shares)


if __name__ == "__main__":
    main()
