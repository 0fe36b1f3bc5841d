"""PGD on a network as RobGIB prepares it and on the same compiled by torch.compile: CPU seconds, the first run apart.

    python -m benchmarks.compiled [--model digits-cnn] [--samples 100] [--steps 50] [--eps 0.06] [--data-root DATA]

The times are of this process and its children, since the compiler runs in others. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import replace

import torch

import robgib
from robgib.attacks import PGD
from robgib.models.inference import PreparedModel, prepare
from robgib.robustness.run_attack import AttackResult, run_attack


def seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="digits-cnn")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--eps", type=float, default=0.06)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, data = robgib.load_model(options.model, data_root=options.data_root)
    x, y = data.test.x[: options.samples], data.test.y[: options.samples]
    attack = PGD("linf", options.eps, steps=options.steps)

    def timed(prepared: PreparedModel) -> tuple[float, AttackResult]:
        began = seconds()
        result = run_attack(prepared, x, y, attack)
        return seconds() - began, result

    prepared = prepare(model, x)
    compiled = replace(prepared, fused=torch.compile(prepared.fused, dynamic=True))
    print("| model | form | first run, s | further runs, s | robust accuracy |")
    print("| --- | --- | --: | --: | --: |", flush=True)
    for name, form in (("prepared", prepared), ("compiled", compiled)):
        first, _ = timed(form)
        runs = [timed(form) for _ in range(options.repeats)]
        best, result = min(runs, key=lambda run: run[0])
        print(f"| {options.model} | {name} | {first:.2f} | {best:.2f} | {result.right.mean():.1%} |", flush=True)


if __name__ == "__main__":
    main()
