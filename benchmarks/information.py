"""Where the default information estimate spends its CPU time, part by part, as shares of the whole.

    python benchmarks/information.py [--model fashion-cnn] [--features patches:2,patches:4] [--data-root DATA]

CPU seconds depend on the machine and on what else runs on it. Therefore each part is also given in units of the
network: one unit is what the plain network takes for the composed inputs of this run, measured beside it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from robgib.data.loaders import load_data
from robgib.information import analysis, donors, imputation, observer
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

PARTS = {
    "capture, fit codes and noise views": [(analysis._Layers, "observe")],
    "cut inputs into features": [(analysis, "group_inputs")],
    "find donors and lines": [(donors.Pool, "of"), (donors.Pool, "complete")],
    "compose inputs": [(donors.Completion, "composed")],
    "run the network": [(observer, "collect_activations")],
    "code the layers": [(observer, "_viewed")],
    "count codes": [(imputation._Draws, "add"), (imputation._Draws, "shares"), (imputation._Draws, "own")],
    "find neighbours": [(imputation, "_around")],
    "test the donors": [(imputation, "tell_apart"), (imputation, "_differ")],
    "learn the predictor": [(imputation, "_learnt")],
    "mix": [(imputation, "_mixed")],
}


class Clock:
    """CPU seconds by part, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[str] = ["everything else"]
        self.since = time.process_time()

    def turn(self, part: str | None) -> None:
        """Book the time since the last turn; then a part begins, or with None ends."""
        now = time.process_time()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now
        if part is None:
            self.open.pop()
        else:
            self.open.append(part)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time is that of a part, also where it yields."""

        def call(*args: Any, **options: Any) -> Any:
            self.turn(part)
            try:
                result = function(*args, **options)
            finally:
                self.turn(None)
            return self.each(part, result) if isinstance(result, Iterator) else result

        return call

    def each(self, part: str, steps: Iterator[Any]) -> Iterator[Any]:
        """Steps whose time is that of a part."""
        while True:
            self.turn(part)
            try:
                step = next(steps)
            except StopIteration:
                return
            finally:
                self.turn(None)
            yield step

    def watch(self, stack: ExitStack) -> None:
        """Time the functions of all parts until the stack closes."""
        for part, functions in PARTS.items():
            for owner, name in functions:
                own = owner.__dict__[name]
                if isinstance(own, classmethod):
                    made: Any = classmethod(self.timed(part, own.__func__))
                else:
                    made = self.timed(part, own)
                stack.enter_context(mock.patch.object(owner, name, made))


def plain_pass(model: torch.nn.Module, x: torch.Tensor) -> float:
    """CPU seconds that the network takes for one image, the best of five tries."""
    best = float("inf")
    with torch.inference_mode():
        for _ in range(5):
            began = time.process_time()
            for part in x.split(256):
                model(part)
            best = min(best, time.process_time() - began)
    return best / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fashion-cnn")
    parser.add_argument("--features", default="auto")
    parser.add_argument("--data-root", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = find_recipe(options.model)
    data = load_data(recipe.data, options.data_root)
    model, _ = load_recipe(recipe, data)
    model.eval()
    features = options.features if options.features == "auto" else options.features.split(",")
    analysis.layer_information(model, data, samples=100, features=features)  # what is imported or built once
    unit = plain_pass(model, data.test.at(np.arange(min(2048, len(data.test))))[0])
    with ExitStack() as stack:
        clock = Clock()
        clock.watch(stack)
        found = analysis.layer_information(model, data, features=features)
        clock.turn(None)
    made = analysis.make_estimators(["imputation"], data, 5000)
    passes = analysis.passes_of(made, data, found.partitions, 5000)
    whole = sum(clock.seconds.values())
    print(f"{options.model}, {len(found.names)} layers, {', '.join(found.partitions)}: {whole:.1f} CPU s, ", end="")
    print(f"{passes:,} composed inputs at most, of which the plain network takes {passes * unit:.1f} CPU s\n")
    print("| part | CPU s | share | in units of the network |\n| --- | --: | --: | --: |")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"| {part} | {seconds:.1f} | {seconds / whole:.0%} | {seconds / passes / unit:.2f} |")
    print(f"| all | {whole:.1f} | 100% | {whole / passes / unit:.2f} |")


if __name__ == "__main__":
    main()
