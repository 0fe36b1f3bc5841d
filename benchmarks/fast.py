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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import robgib
from benchmarks import built
from robgib.attacks import APGD, Attack, AutoAttack, FastEnsemble, fast
from robgib.models.inference import count_queries
from robgib.robustness.audit import Auditor, audit
from robgib.robustness.run_attack import AttackResult, after, run_attack

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
AUDITED = [
    "digits-mlp-relu,linf,0.05,400", "digits-cnn,linf,0.06,200", "digits-cnn,l2,0.35,200", "ViT,linf,0.05,150",
    "ConvNeXt,linf,0.05,150", "weight-normalised,linf,0.05,200",
]  # fmt: skip
REPEATED = [
    "a backbone without gradient,linf,0.06,60", "averaged over 5 × 5 pixels,linf,0.06,60",
    "of another network,linf,0.06,60", "binary activations,linf,0.06,100", "largest activations only,linf,0.06,100",
]  # fmt: skip
CHANGES: list[dict[str, object]] = [
    {"finalists": 1}, {"long": 25}, {"targets": 4}, {"_RESTARTS": 0}, {"_RESTARTS": 4}, {"_PIECES": 0}, {"_PIECES": 1},
    {"_NEXT": 10}, {"short": 5}, {"probe": 25}, {"near": 0.02}, {"schedule_start": 4}, {"_PIECE": 250},
    {"_SETTLE": 15}, {"_GAIN": 0.5}, {"_SCOUTS": 5}, {"_BLIND": 0.05}, {"_FEW": 3},
]  # fmt: skip


def read_case(case: str, data_root: str | None) -> tuple[nn.Module, str, float, Tensor, Tensor]:
    """Return model, norm, eps, images and labels of a case."""
    name, norm, eps, count = case.split(",")
    if name.startswith(("f24", "fashion", "digits")):
        model, data = robgib.load_model(name, data_root=data_root)
    else:
        data = robgib.load_data("digits")
        model = built.ordinary(name) if name in built.ORDINARY else built.false()[name]
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
    """Return the fast ensemble without the stages of a name. Without classes there are no finalists either."""
    names = (stage, "finalists") if stage == "classes" else (stage,)

    @dataclass(frozen=True)
    class Ablated(FastEnsemble):
        @property
        def stages(self) -> tuple[fast.Stage, ...]:
            def nothing(state: object, rows: Tensor) -> None: ...

            return tuple(replace(s, run=nothing, repeats=False) if s.name in names else s for s in super().stages)

    return Ablated


def ablate(case: str, data_root: str | None, wanted: Sequence[str] | None = None) -> None:
    """Print the robust accuracy and passes of each variant on one case."""
    model, norm, eps, x, y = read_case(case, data_root)
    names = dict.fromkeys(stage.name for stage in FastEnsemble(norm, eps).stages)
    variants: list[tuple[str, type[FastEnsemble], Mapping[str, object]]] = [("all", FastEnsemble, {})]
    variants += [(f"without {name}", without(name), {}) for name in names if name != "cross-entropy"]
    variants += [(", ".join(f"{k} {v}" for k, v in change.items()), FastEnsemble, change) for change in CHANGES]
    if wanted:
        variants = [variant for variant in variants if variant[0] in ("all", *wanted)]
    reference = run_attack(model, x, y, AutoAttack(norm, eps))
    print(f"| {case} | AutoAttack | {reference.right.mean():.1%} | {reference.passes.cost:,} | | |", flush=True)
    whole = None
    for name, kind, change in variants:
        with patched({name: value for name, value in change.items() if hasattr(fast, name)}):
            fields = {name: value for name, value in change.items() if not hasattr(fast, name)}
            found = run_attack(model, x, y, kind(norm, eps, **fields))  # type: ignore[arg-type]
        whole = whole or found
        more, passes = found.right.mean() - whole.right.mean(), found.passes.cost / whole.passes.cost - 1
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


def official_autoattack(model: nn.Module, norm: str, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return AutoAttack of torchattacks' members with the parameters of Croce & Hein (2020).

    Its own AutoAttack takes 10 steps of each member instead of 100.
    """
    import torchattacks

    given = {"model": model, "eps": eps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": 0}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(**given, steps=100, loss="ce"),
            torchattacks.APGDT(**given, steps=100, n_classes=10),
            torchattacks.FAB(**given, steps=100, n_classes=10, multi_targeted=True),
            torchattacks.Square(**given, n_queries=5000),
        ]
    )


def audited(case: str, data_root: str | None) -> None:
    """Print robust accuracy and passes of torchattacks' AutoAttack, and of the fast ensemble without and with audit."""
    name, _, budget, _ = case.split(",")
    model, norm, eps, x, y = read_case(case, data_root)
    official = official_autoattack(model, norm, eps)
    with count_queries(model) as passes, torch.random.fork_rng(devices=[]):
        images = official(x, y)
    theirs = float((model(images).argmax(1) == y).float().mean())
    found = run_attack(model, x, y, FastEnsemble(norm, eps))
    outcome = audit(auditor_of(model, x, y), found, AutoAttack(norm, eps), "audit", spent=found.passes.cost)
    right, spent, note = found.right.mean(), found.passes.cost, "nothing to audit"
    if outcome:
        right, spent = outcome.result.right.mean(), spent + outcome.result.passes.cost
        note = f"{outcome.samples} of {int(found.right.sum())}, bound {100 * outcome.bound:.1f}"
    print(
        f"| {name} | {norm} {budget} | {len(x)} | {theirs:.1%} | {found.right.mean():.1%} | {right:.1%} | {note} "
        f"| {passes.cost:,} | {passes.cost / found.passes.cost:.1f} | {passes.cost / spent:.1f} |",
        flush=True,
    )


def auditor_of(model: nn.Module, x: Tensor, y: Tensor) -> Auditor:
    """Return what runs the attack of an audit."""

    def run(attack: Attack, known: AttackResult, rows: np.ndarray, label: str) -> AttackResult:
        return run_attack(model, x[rows], y[rows], attack, index=rows)

    return run


def repeat(case: str, data_root: str | None, draws: int) -> None:
    """Print how often the bound of an audit holds, over draws of its sample, after APGD-CE and the fast ensemble."""
    model, norm, eps, x, y = read_case(case, data_root)
    attack = AutoAttack(norm, eps)
    whole = run_attack(model, x, y, attack)

    def looked_up(attack: Attack, known: AttackResult, rows: np.ndarray, label: str) -> AttackResult:
        fields = ("prediction", "right", "right_8bit", "linf", "l2", "distance")
        part = {name: getattr(whole, name)[rows] for name in fields}
        return replace(whole, **part, pictures={}, attacked=None, steps=None)  # type: ignore[arg-type]

    fast_found = run_attack(model, x, y, FastEnsemble(norm, eps))
    for name, known in (("APGD-CE", run_attack(model, x, y, APGD(norm, eps))), ("fast", fast_found)):
        truth = after(known, whole).right.mean()
        hidden = round(len(x) * (known.right.mean() - truth))
        for bound in (None, 0.05):
            options = {"spent": fast_found.passes.cost, "bound": bound}
            run = partial(audit, looked_up, known, attack, "audit", **options)  # type: ignore[arg-type]
            each = [run(seed=seed) for seed in range(draws)]
            if each[0] is None:
                continue
            held = np.mean([a is not None and a.result.right.mean() - a.bound <= truth + 1e-9 for a in each])
            silent = [a for a in each if a is not None and a.samples < known.right.sum()]
            size = silent[0].samples if silent else int(known.right.sum())
            most = f"{100 * silent[0].bound:.1f}" if silent else ""
            fell, asked = 1 - len(silent) / draws, "default" if bound is None else f"{bound:.0%}"
            print(
                f"| {case.split(',')[0]} | {name} | {asked} | {len(x)} "
                f"| {int(known.right.sum())} | {hidden} | {size} | {most} | {fell:.1%} | {held:.1%} |",
                flush=True,
            )


def table_of(columns: str, text: int) -> None:
    """Print the head of a table whose first ``text`` columns are text."""
    names = columns.split(",")
    print("|", " | ".join(names), "|")
    print("|", " | ".join(["---"] * text + ["--:"] * (len(names) - text)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--variants", nargs="+", help="of the ablation; all by default")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--repeats", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.ablate:
        columns = "case,variant,robust,passes,points,% passes"
        cases, text, run = ABLATED, 2, partial(ablate, wanted=options.variants)
    elif options.audit:
        columns = "model,budget,images,AutoAttack,fast,with audit,audited,passes,ratio,ratio with audit"
        cases, text, run = AUDITED, 2, audited
    elif options.repeats:
        columns = "model,before the audit,asked,images,remain,AutoAttack fools,sample,bound,draws that fall,bound holds"
        cases, text, run = REPEATED, 3, partial(repeat, draws=options.repeats)
    else:
        columns = "model,budget,images,AutoAttack,fast,passes,fast,ratio,s,fast,fast alone,AutoAttack alone"
        cases, text, run = CASES, 2, compare
    table_of(columns, text)
    for case in options.cases or cases:
        run(case, options.data_root)


if __name__ == "__main__":
    main()
