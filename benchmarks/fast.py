"""The fast ensemble against AutoAttack: robust accuracy, passes, seconds, and the samples on which they disagree.

    python benchmarks/fast.py --data-root DATA [--cases digits-cnn,linf,0.06,800 fashion-cnn-at,l2,1.5,300 …]

A case is a model of the zoo, a norm, an eps and a number of images. For digits, whose test set is small, validation and
training images follow the test images. Passes are forward passes; a gradient counts as two. Prints Markdown.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from torch import Tensor, nn

import robgib
from robgib.attacks import AutoAttack, FastEnsemble
from robgib.robustness.run_attack import run_attack

CASES = [
    "digits-cnn,linf,0.06,800", "digits-cnn,l2,0.35,800", "digits-cnn-at,l2,0.7,800", "digits-cnn-at,linf,0.12,800",
    "digits-mlp-relu,linf,0.05,1000", "digits-mlp-tanh,linf,0.05,1000", "digits-mlp-tanh,l2,0.3,1000",
    "digits-vit,linf,0.05,400", "digits-vit,l2,0.3,250", "fashion-cnn,linf,0.02,300", "fashion-vit,linf,0.02,150",
    "fashion-cnn-at,l2,1.0,150", "fashion-cnn-at,l2,1.5,300", "fashion-cnn-at,linf,0.1,400",
    "f24-cnn-at,l2,1.0,400", "f24-cnn-narrow-at,l2,1.0,400", "f24-cnn-narrow-at,linf,0.1,400",
    "f24-cnn-trades,l2,1.0,400", "f24-cnn-trades,linf,0.1,400", "f24-resnet-at,l2,1.0,400",
    "f24-resnet-at,linf,0.1,400", "f24-resnet-trades,l2,1.0,400", "f24-resnet-trades,linf,0.1,400",
    "f24-vgg-at,l2,1.0,400", "f24-vgg-trades,l2,1.0,400", "f24-vgg-trades,linf,0.1,400", "f24-vit-at,l2,1.0,400",
    "f24-vit-trades,l2,1.0,400", "f24-vit-trades,linf,0.1,400",
]  # fmt: skip


def read_case(case: str, data_root: str | None) -> tuple[nn.Module, str, float, Tensor, Tensor]:
    """Return model, norm, eps, images and labels of a case."""
    name, norm, eps, count = case.split(",")
    model, data = robgib.load_model(name, data_root=data_root)
    splits = (data.test, data.val, data.train) if name.startswith("digits") else (data.test,)
    x, y = (torch.cat([getattr(s, part)[:] for s in splits])[: int(count)] for part in ("x", "y"))
    return model, norm, float(eps), x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = "model budget images AutoAttack fast passes fast ratio s fast fast-alone AutoAttack-alone"
    print(f"| {' | '.join(columns.split())} |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- |", flush=True)
    for case in options.cases:
        name, _, budget, _ = case.split(",")
        model, norm, eps, x, y = read_case(case, options.data_root)
        one, two = (run_attack(model, x, y, kind(norm, eps)) for kind in (AutoAttack, FastEnsemble))
        alone = (
            ", ".join(map(str, np.flatnonzero((a.right == 0) & (b.right > 0)))) for a, b in ((two, one), (one, two))
        )
        print(
            f"| {name} | {norm} {budget} | {len(x)} | {one.right.mean():.2%} | {two.right.mean():.2%} "
            f"| {one.passes.cost:,} | {two.passes.cost:,} | {one.passes.cost / two.passes.cost:.1f} "
            f"| {one.seconds:.0f} | {two.seconds:.0f} | {' | '.join(alone)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
