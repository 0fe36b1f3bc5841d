"""What fells the samples nearest to the boundary: the table of docs/attacks.md behind the fast ensemble's last round.

    python -m benchmarks.near --data-root DATA [--cases f24-resnet-trades,linf,0.1,400 … --samples 24 --seeds 2]

A case is a model of the zoo, a norm, an eps and a number of images. On what APGD-CE and APGD-T of three classes leave,
the samples with least of their lead on the clean image go through each of the attacks, from the best image so far where
it says so. Prints how many fall, seed by seed, and the passes that a sample takes that does not: forward passes, a
gradient counted as two. Prints Markdown.
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
        """By how much a wrong class leads (N,)."""
        with torch.no_grad():
            return self.margin.value(self.model(images))

    def climb(self, rng: SampleRNG, steps: int, start: Tensor | None, likeliest: bool = False) -> Tensor:
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
        """Climbs of 50 steps, from random images or from what Square finds in 50 queries."""
        found = self.best
        for turn in range(times):
            start = self.random(rng, 50) if from_square else None
            found = self.better(found, self.climb(rng, 50, start, likeliest=turn % 2 == 0))
        return found

    def in_turn(self, rng: SampleRNG, times: int, queries: int, steps: int) -> Tensor:
        """Random search on from the best image, and a short climb, in turn."""
        found = self.best
        for _ in range(times):
            found = self.better(found, self.random(rng, queries, found))
            found = self.better(found, self.climb(rng, steps, found))
        return found


# Passes of a sample that does not fall: a step of APGD takes three, a query of Square one.
ATTACKS: dict[str, tuple[int, Callable[[Samples, SampleRNG], Tensor]]] = {
    "climb on, 100 steps": (300, lambda s, rng: s.climb(rng, 100, s.best)),
    "climb on, 300 steps": (900, lambda s, rng: s.climb(rng, 300, s.best)),
    "8 climbs from random images": (1200, lambda s, rng: s.restarts(rng, 8, from_square=False)),
    "8 climbs from Square's images": (1600, lambda s, rng: s.restarts(rng, 8, from_square=True)),
    "Square, 2,500 queries": (2500, lambda s, rng: s.random(rng, 2500)),
    "Square, 5,000 queries": (5000, lambda s, rng: s.random(rng, 5000)),
    "Square on from the best image, 2,500": (2500, lambda s, rng: s.random(rng, 2500, s.best)),
    "5 times 500 queries on, 30 steps": (2950, lambda s, rng: s.in_turn(rng, 5, 500, 30)),
}


def nearest(case: str, data_root: str | None, count: int) -> tuple[Samples, SampleRNG, int]:
    """The samples of a case that come nearest to the boundary and stand; how many stand in all."""
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
    fell: dict[str, list[str]] = {name: [] for name in ATTACKS}
    heads = []
    for case in options.cases:
        samples, rng, stand = nearest(case, options.data_root, options.samples)
        name, norm, eps, _ = case.split(",")
        heads.append(f"{name}, {norm} {eps} ({len(samples.x)} of {stand})")
        for label, (_, attack) in ATTACKS.items():
            counts = (int((samples.value(attack(samples, rng)) > 0).sum()) for _ in range(options.seeds))
            fell[label].append(", ".join(map(str, counts)))
    print(f"| attack | passes | {' | '.join(heads)} |")
    print(f"| --- | --: |{' --: |' * len(heads)}")
    for label, (passes, _) in ATTACKS.items():
        print(f"| {label} | {passes:,} | {' | '.join(fell[label])} |", flush=True)


if __name__ == "__main__":
    main()
