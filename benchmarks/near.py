"""Attacks on the samples nearest to the boundary: a stage of the fast ensemble in reports/evidence/attacks.md.

    python -m benchmarks.near --data-root DATA [--cases f24-resnet-trades,linf,0.1,400 … --samples 24 --seeds 2]

A case is a model of the zoo, a norm, an eps and a number of images. The samples are those that APGD-CE and APGD-T of
three classes leave right with the smallest share of their clean margin. Each attack runs on them, some from the best
image so far. Prints the number of fooled samples per seed, and the passes per sample that remains right: forward
passes; a gradient counts as two. Prints Markdown.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.fast import read_case
from robgib.attacks import APGD, Square
from robgib.attacks.linearization import wrong_classes
from robgib.attacks.objective import Criterion, Objective
from robgib.models.inference import prepare
from robgib.runtime import SampleRNG

CASES = [
    "f24-resnet-trades,linf,0.1,400", "f24-vgg-trades,linf,0.1,400", "f24-cnn-trades,linf,0.1,400",
    "digits-cnn-at,linf,0.12,800", "digits-cnn-at,l2,0.7,800", "digits-cnn,l2,0.35,800",
]  # fmt: skip


class Samples:
    """Clean images (N, …) and labels (N,) of a network, and the best image of each so far."""

    def __init__(self, model: nn.Module, norm: str, eps: float, x: Tensor, y: Tensor, best: Tensor) -> None:
        self.model, self.norm, self.eps, self.x, self.y, self.best = model, norm, eps, x, y, best
        self.margin = Objective.untargeted(y, "margin")
        with torch.no_grad():
            self.likeliest = wrong_classes(model(x), y)[:, 0]

    def value(self, images: Tensor) -> Tensor:
        """The margin (N,) of the most likely wrong class."""
        with torch.no_grad():
            return self.margin.value(self.model(images))

    def ascent(self, rng: SampleRNG, steps: int, start: Tensor | None, likeliest: bool = False) -> Tensor:
        """APGD towards one class of each sample."""
        with torch.no_grad():
            nearest = wrong_classes(self.model(self.best), self.y)[:, 0]
        target = self.likeliest if likeliest else nearest
        goal = Objective("dlr", target, Criterion(self.y), targeted=True)
        return APGD(self.norm, self.eps, steps=steps).ascend(self.model, self.x, goal, rng, start)[0]

    def random(self, rng: SampleRNG, queries: int, start: Tensor | None = None) -> Tensor:
        """Square, from its own patterns or from images."""
        return Square(self.norm, self.eps, queries=queries).search(self.model, self.x, self.margin, rng, start)[0]

    def better(self, *images: Tensor) -> Tensor:
        """The best of several images of each sample."""
        values = torch.stack([self.value(v) for v in images])
        return torch.stack(images)[values.argmax(0), torch.arange(len(self.x))]

    def restarts(self, rng: SampleRNG, times: int, from_square: bool) -> Tensor:
        """Ascents of 50 steps, from random images or from the result of Square with 50 queries."""
        best = self.best
        for turn in range(times):
            start = self.random(rng, 50) if from_square else None
            best = self.better(best, self.ascent(rng, 50, start, likeliest=turn % 2 == 0))
        return best

    def in_turn(self, rng: SampleRNG, times: int, queries: int, steps: int) -> Tensor:
        """Random search from the best image and a short ascent, alternating."""
        best = self.best
        for _ in range(times):
            best = self.better(best, self.random(rng, queries, best))
            best = self.better(best, self.ascent(rng, steps, best))
        return best


# Passes per sample that remains right: a step of APGD takes three, a query of Square one.
ATTACKS: dict[str, tuple[int, Callable[[Samples, SampleRNG], Tensor]]] = {
    "ascent from the best image, 100 steps": (300, lambda s, rng: s.ascent(rng, 100, s.best)),
    "ascent from the best image, 300 steps": (900, lambda s, rng: s.ascent(rng, 300, s.best)),
    "8 ascents from random images": (1200, lambda s, rng: s.restarts(rng, 8, from_square=False)),
    "8 ascents from Square's images": (1600, lambda s, rng: s.restarts(rng, 8, from_square=True)),
    "Square, 2,500 queries": (2500, lambda s, rng: s.random(rng, 2500)),
    "Square, 5,000 queries": (5000, lambda s, rng: s.random(rng, 5000)),
    "Square from the best image, 2,500": (2500, lambda s, rng: s.random(rng, 2500, s.best)),
    "5 times 500 queries from the best image, 30 steps": (2950, lambda s, rng: s.in_turn(rng, 5, 500, 30)),
}


def nearest(case: str, data_root: str | None, count: int) -> tuple[Samples, SampleRNG, int]:
    """Return the remaining samples of a case that are nearest to the boundary, and the number of all remaining ones."""
    model, norm, eps, x, y = read_case(case, data_root)
    network = prepare(model, x[:16]).model.eval().requires_grad_(False)
    keep = (network(x).argmax(1) == y).nonzero().squeeze(1)
    rng = SampleRNG(0, keep)
    x, y = x[keep], y[keep]
    rows, best = torch.arange(len(x)), x.clone()
    for attack in (APGD(norm, eps, steps=50), APGD(norm, eps, steps=50, loss="dlr", targets=3)):
        best[rows] = attack.perturb(network, x[rows], y[rows], rng.select(rows))
        rows = (network(best).argmax(1) == y).nonzero().squeeze(1)
    samples = Samples(network, norm, eps, x, y, best)
    share = samples.value(best) / samples.value(x)
    near = rows[share[rows].argsort()[:count]]
    return Samples(network, norm, eps, x[near], y[near], best[near]), SampleRNG(1, keep[near]), len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    fooled: dict[str, list[str]] = {name: [] for name in ATTACKS}
    heads = []
    for case in options.cases:
        samples, rng, remaining = nearest(case, options.data_root, options.samples)
        name, norm, eps, _ = case.split(",")
        heads.append(f"{name}, {norm} {eps} ({len(samples.x)} of {remaining})")
        for label, (_, attack) in ATTACKS.items():
            counts = (int((samples.value(attack(samples, rng)) > 0).sum()) for _ in range(options.seeds))
            fooled[label].append(", ".join(map(str, counts)))
    print(f"| attack | passes | {' | '.join(heads)} |")
    print(f"| --- | --: |{' --: |' * len(heads)}")
    for label, (passes, _) in ATTACKS.items():
        print(f"| {label} | {passes:,} | {' | '.join(fooled[label])} |", flush=True)


if __name__ == "__main__":
    main()
