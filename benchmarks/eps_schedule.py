"""APGD with a large-to-small eps schedule against strong attacks: the table of reports/evidence/attacks.md.

    python benchmarks/eps_schedule.py --data-root DATA [--models fashion-cnn-at --norm l2 --eps 1 --images 100]

Counts the correctly classified images that remain right under each attack, and the passes per image: forward passes; a
gradient counts as two. All attacks run on all images. Prints Markdown.
"""

from __future__ import annotations

import argparse

import torch

import robgib
from robgib.attacks import make_attack
from robgib.models.inference import count_queries
from robgib.runtime import SampleRNG

ATTACKS = {
    "APGD-CE, 100 steps": "apgd-ce-{}",
    "APGD-T, 9 classes, 100 steps": "apgd-t-{}",
    "FAB-T, 9 classes, 100 steps": "fab-t-{}",
    "Square, 5,000 queries": "square-{}:queries=5000",
    "PDPGD, 500 steps": "pdpgd-{}:steps=500",
    "APGD-CE, `schedule_start=3`": "apgd-ce-{}:schedule_start=3",
    "`schedule_start=5`": "apgd-ce-{}:schedule_start=5",
    "`schedule_start=8`": "apgd-ce-{}:schedule_start=8",
    "`schedule_start=12`": "apgd-ce-{}:schedule_start=12",
    "`schedule_start=8`, five runs": "apgd-ce-{}:schedule_start=8,restarts=5",
    "APGD-T, 3 classes, `schedule_start=8`": "apgd-t-{}:schedule_start=8,targets=3",
}
AUTOATTACK = tuple(ATTACKS)[:4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="fashion-cnn-at,f24-cnn-at")
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    rows: dict[str, list[str]] = {}
    heads = []
    for name in options.models.split(","):
        model, data = robgib.load_model(name, data_root=options.data_root)
        x, y = data.test.x[: options.images], data.test.y[: options.images]
        with torch.no_grad():
            right = model(x).argmax(1) == y
        x, y = x[right], y[right]
        heads.append(f"{name} ({len(x)})")
        fooled: dict[str, torch.Tensor] = {}
        for label, spec in ATTACKS.items():
            attack = make_attack(spec.format(options.norm)).at(options.eps)
            with count_queries(model) as passes:
                x_adv = attack.perturb(model, x, y, SampleRNG(0, range(len(x))))
            with torch.no_grad():
                fooled[label] = (model(x_adv).argmax(1) != y) & attack.threat.allows(x_adv, x)
            rows.setdefault(label, []).append(f"{int((~fooled[label]).sum())} | {passes.cost / len(x):,.0f}")
        for label, some in {"AutoAttack's four together": AUTOATTACK, "all together": tuple(ATTACKS)}.items():
            union = torch.stack([fooled[one] for one in some]).any(0)
            rows.setdefault(label, []).append(f"{int((~union).sum())} | ")
    print(f"| attack | {' | passes | '.join(heads)} | passes |\n| --- |{' --: | --: |' * len(heads)}")
    for label, cells in rows.items():
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
