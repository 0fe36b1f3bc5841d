"""The same attacks in RobGIB and other libraries: robust accuracy, time, passes, and the lower bound of the time.

    python benchmarks/attacks.py --data-root DATA [--model fashion-cnn-at] [--attacks pgd-20,pgd-100,autoattack]

All libraries attack the same network on the same images with the same budget and seed, each with its own fastest batch
size of those tested. The lower bound is the time of the same number of forward and backward passes of the network
alone. Times on a CPU are of its own clock, which other programs do not advance. Prints Markdown. Needs torchattacks,
foolbox, adv-lib and adversarial-robustness-toolbox; a missing library is skipped.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib._torchvision import load_torchvision
from robgib.attacks import make_attack
from robgib.data.loaders import load_data
from robgib.models.inference import count_queries, eval_mode, predict, prepare
from robgib.robustness.run_attack import run_attack
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

load_torchvision()  # before the libraries import it

Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]


def peers(attack: str, eps: float) -> dict[str, Peer]:
    """Each library's form of the attack: a function of the model, a batch and its labels."""
    forms: dict[str, Peer] = {}
    steps = int(attack.removeprefix("pgd-")) if attack.startswith("pgd-") else 0

    def torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks as library

        if steps:
            return library.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps, random_start=True)(x, y)
        return library.AutoAttack(model, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0)(x, y)

    def foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox as library

        housed = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
        attacker = library.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps, random_start=True)
        return attacker(housed, x, y, epsilons=eps)[1]

    def art(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0, 1),
            device_type="gpu" if x.device.type == "cuda" else "cpu",
        )
        attacker = ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, num_random_init=1,
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attacker.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    def adv_lib(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from adv_lib.attacks import pgd_linf

        return pgd_linf(model, x, y, eps, steps=steps, absolute_step_size=2.5 * eps / steps)

    for name, package, form, has_ensemble in (
        ("torchattacks", "torchattacks", torchattacks, True),
        ("Foolbox", "foolbox", foolbox, False),
        ("adv-lib", "adv-lib", adv_lib, False),
        ("ART", "adversarial-robustness-toolbox", art, False),  # its ensemble is another one,
    ):
        try:
            number = version(package)
        except ImportError:
            continue
        if steps or has_ensemble:
            forms[f"{name} {number}"] = form
    return forms


def wait(device: str) -> None:
    """Let the device finish, so that the clock may be read."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def clock(device: str) -> float:
    """Seconds of this process on a CPU, of the wall on a GPU."""
    return time.perf_counter() if device.startswith("cuda") else time.process_time()


def floor(model: nn.Module, x: Tensor, y: Tensor, batches: list[int], device: str) -> tuple[float, float]:
    """Seconds that one image takes forward, and forward and backward, bare, at the best batch size."""
    only, both = [], []
    x, y = x.to(device), y.to(device)
    for size in batches:
        for _ in range(3):
            wait(device)
            began = clock(device)
            with torch.no_grad():
                for part in x.split(size):
                    model(part)
            wait(device)
            only.append((clock(device) - began) / len(x))
            began = clock(device)
            for part, labels in zip(x.split(size), y.split(size), strict=True):
                leaf = part.detach().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
            wait(device)
            both.append((clock(device) - began) / len(x))
    return min(only), min(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fashion-cnn-at")
    parser.add_argument("--attacks", default="pgd-20,pgd-100,autoattack")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batches", default="64,256,1000", help="sizes among which each peer gets its fastest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device, sizes = options.device, [int(b) for b in options.batches.split(",")]
    recipe = find_recipe(options.model)
    data = load_data(recipe.data, options.data_root)
    model, _ = load_recipe(recipe, data)
    model.to(device)
    x, y = data.test.x[: options.samples], data.test.y[: options.samples]
    clean = predict(model, x, device=device)
    place = torch.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} cores"
    print(
        f"{options.model}, {len(x)} images of {recipe.data}, L-infinity {options.eps:g}, clean accuracy "
        f"{100 * float((torch.from_numpy(clean) == y).float().mean()):.1f}%; {place} ({processor()}), "
        f"torch {torch.__version__.split('+')[0]}.\n"
    )
    with eval_mode(model):
        forward, both = floor(model, x, y, sizes, device)
        prepared = prepare(model, x, precision=options.precision, device=device)
        fused = floor(prepared.fused, x, y, [prepared.batch_size], device)[1]
    print(
        f"One image forward {1e6 * forward:.0f} µs, forward and backward {1e6 * both:.0f} µs; folded, channels-last "
        f"and in batches of {prepared.batch_size}: {1e6 * fused:.0f} µs.\n"
    )
    print("| attack | through | robust accuracy | s | forward | backward | floor / time | time / RobGIB's |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |", flush=True)
    for attack in options.attacks.split(","):
        steps = attack.removeprefix("pgd-")
        spec = f"pgd-linf:steps={steps},eps={options.eps}" if steps != attack else f"autoattack-linf:eps={options.eps}"
        ours = 0.0
        for name, form in {"RobGIB": None, **peers(attack, options.eps)}.items():
            best: tuple[float, float, int, int] | None = None
            for size in [None] if form is None else sizes if steps != attack else sizes[-2:-1] or sizes:
                for _ in range(options.repeats if steps == "20" else 1):
                    wait(device)
                    torch.manual_seed(0)
                    np.random.seed(0)  # noqa: NPY002  (ART draws from the global generator)
                    began = clock(device)
                    if form is None:
                        outcome = run_attack(
                            prepare(model, x, precision=options.precision, device=device),
                            x, y, make_attack(spec), clean=clean, device=device,
                        )  # fmt: skip
                        robust = float((torch.from_numpy(outcome.prediction) == y).float().mean())
                        passes = outcome.passes
                    else:
                        hits = 0
                        with eval_mode(model), count_queries(model) as passes, torch.enable_grad():
                            for part, labels in zip(x.split(size), y.split(size), strict=True):
                                part, labels = part.to(device), labels.to(device)
                                x_adv = form(model, part, labels).detach()
                                with torch.no_grad():
                                    hits += int((model(x_adv).argmax(1) == labels).sum())
                        robust = hits / len(x)
                    wait(device)
                    taken = clock(device) - began
                    if best is None or taken < best[0]:
                        best = (taken, robust, passes.forward, passes.backward)
            assert best is not None
            taken, robust, forth, back = best
            ours = ours or taken
            bare = back * both + max(0, forth - back) * forward
            print(
                f"| {attack} | {name} | {100 * robust:.1f}% | {taken:.2f} | {forth:,} | {back:,} | {bare / taken:.2f} "
                f"| {taken / ours:.2f} |",
                flush=True,
            )


def processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
