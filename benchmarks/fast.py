"""The fast ensemble and its audit against AutoAttack: robust accuracy, passes, and the samples of their difference.

    python -m benchmarks.fast --data-root DATA [--cases digits-cnn,linf,0.06,800 fashion-cnn-at,l2,1.5,300 …]
    python -m benchmarks.fast --audit [--cases …]       with the audit, and torchattacks' AutoAttack
    python -m benchmarks.fast --ablate [--cases …]      without each stage and with other constants
    python -m benchmarks.fast --repeats 2000 [--cases …]  how often the audit's bound holds over draws of its sample

A case is a network, a norm, an eps and a number of images: a model of the zoo, or one that benchmarks/built.py makes on
digits. For digits, whose test set is small, validation and training images follow the test images. Passes are forward
passes; a gradient counts as two. Prints Markdown.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import robgib
from benchmarks import built
from robgib.attacks import AutoAttack, FastEnsemble, fast
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
ABLATED = [
    "digits-cnn,linf,0.06,64", "digits-cnn,l2,0.35,64", "digits-mlp-relu,linf,0.05,128", "digits-vit,linf,0.05,48",
    "rippled,l2,0.5,48", "rounded,linf,0.1,48", "a backbone without gradient,linf,0.06,48", "soft terraces,l2,0.7,48",
    "largest activations only,linf,0.06,48",
]  # fmt: skip
CONSTANTS: list[dict[str, object]] = [
    {"_RESTARTS": 0}, {"_PIECES": 0}, {"_YIELD": 0}, {"_SCHEDULE_SHARES": (1,) * 6}, {"_LOOKED": 10**9}, {"_SCOUTS": 20},
    {"_SHORT_WALK": 1}, {"_HALF": 0}, {"_LONGER": 1}, {"_EVERY": 10**9}, {"_FADING": 0},
]  # fmt: skip


@cache
def nets() -> Mapping[str, nn.Module]:
    """Return the networks of benchmarks/built.py."""
    data = robgib.load_data("digits")
    return {**built.ordinary(data), **built.false(data)}


def read_case(case: str, data_root: str | None) -> tuple[nn.Module, str, float, Tensor, Tensor]:
    """Return model, norm, eps, images and labels of a case."""
    name, norm, eps, count = case.split(",")
    if name.startswith(("f24", "fashion", "digits")):
        model, data = robgib.load_model(name, data_root=data_root)
    else:
        model, data = nets()[name], robgib.load_data("digits")
    splits = (data.test,) if name.startswith(("f24", "fashion")) else (data.test, data.val, data.train)
    x, y = (torch.cat([getattr(s, part)[:] for s in splits])[: int(count)] for part in ("x", "y"))
    return model.eval(), norm, float(eps), x, y


@contextmanager
def patched(constants: Mapping[str, object]) -> Iterator[None]:
    """Set constants of the fast ensemble."""
    former = {name: getattr(fast, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(fast, name, value)
        yield
    finally:
        for name, value in former.items():
            setattr(fast, name, value)


def without(stage: str) -> type[FastEnsemble]:
    """Return the fast ensemble without the stages of a name; what they decide is decided without them."""

    @dataclass(frozen=True)
    class Ablated(FastEnsemble):
        @property
        def stages(self) -> tuple[fast.Stage, ...]:
            def nothing(state: object, rows: Tensor) -> None: ...

            return tuple(fast.replace(s, run=nothing, repeats=False) if s.name == stage else s for s in super().stages)

    return Ablated


def ablate(case: str, data_root: str | None) -> None:
    """Print the robust accuracy and passes of each variant on one case."""
    model, norm, eps, x, y = read_case(case, data_root)
    names = dict.fromkeys(stage.name for stage in FastEnsemble(norm, eps).stages)
    variants: list[tuple[str, type[FastEnsemble], Mapping[str, object]]] = [("all", FastEnsemble, {})]
    variants += [(f"without {name}", without(name), {}) for name in names if name != "cross-entropy"]
    variants += [(str(constants), FastEnsemble, constants) for constants in CONSTANTS]
    reference = run_attack(model, x, y, AutoAttack(norm, eps))
    print(f"| {case} | AutoAttack | {reference.right.mean():.1%} | {reference.passes.cost:,} | | |", flush=True)
    whole = None
    for name, kind, constants in variants:
        with patched(constants):
            found = run_attack(model, x, y, kind(norm, eps))
        whole = whole or found
        more, passes = found.right.mean() - whole.right.mean(), found.passes.cost / whole.passes.cost - 1
        if name == "all" or more or passes:
            print(
                f"| {case} | {name} | {found.right.mean():.1%} | {found.passes.cost:,} | {100 * more:+.1f} "
                f"| {100 * passes:+.0f} |",
                flush=True,
            )


def compare(case: str, data_root: str | None) -> None:
    """Print the robust accuracy and passes of AutoAttack and the fast ensemble on one case."""
    name, _, budget, _ = case.split(",")
    model, norm, eps, x, y = read_case(case, data_root)
    one, two = (run_attack(model, x, y, kind(norm, eps)) for kind in (AutoAttack, FastEnsemble))
    alone = (", ".join(map(str, np.flatnonzero((a.right == 0) & (b.right > 0)))) for a, b in ((two, one), (one, two)))
    print(
        f"| {name} | {norm} {budget} | {len(x)} | {one.right.mean():.2%} | {two.right.mean():.2%} "
        f"| {one.passes.cost:,} | {two.passes.cost:,} | {one.passes.cost / two.passes.cost:.1f} "
        f"| {one.seconds:.0f} | {two.seconds:.0f} | {' | '.join(alone)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--ablate", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.ablate:
        print("| case | variant | robust | passes | points | % passes |\n| --- | --- | --: | --: | --: | --: |", flush=True)
        for case in options.cases or ABLATED:
            ablate(case, options.data_root)
        return
    columns = "model budget images AutoAttack fast passes fast ratio s fast fast-alone AutoAttack-alone"
    print(f"| {' | '.join(columns.split())} |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- |", flush=True)
    for case in options.cases or CASES:
        compare(case, options.data_root)


if __name__ == "__main__":
    main()
