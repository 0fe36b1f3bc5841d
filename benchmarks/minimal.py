"""Minimum-norm attacks of RobGIB and other libraries, compared with the best of all attacks.

    python benchmarks/minimal.py --data-root DATA [--models digits-cnn,fashion-cnn-at] [--norms linf,l2,l1,l0]

All attacks run on the same images and networks with at most about 2,000 passes per image (a forward pass and a
gradient count as one each); passes are counted. Optimality is that of AttackBench (Cinà et al. 2025): the area between
the curve of robust accuracy of an attack and that of no attack, as a share of the area of the best attack per image. 1
means that the attack is the best one on every image. Curves are exact step functions. Every image is checked: it lies
in the box, is misclassified in a batch of one, and its distance is measured in float64. Prints Markdown.

Needs adv-lib, foolbox and adversarial-robustness-toolbox; a missing library is skipped.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import robgib
from robgib._torchvision import load_torchvision
from robgib.attacks import make_attack
from robgib.attacks.libraries import load_advlib
from robgib.attacks.objective import misclassified
from robgib.attacks.threat_model import distance
from robgib.models.inference import count_queries, eval_mode, predict
from robgib.runtime import SampleRNG

load_torchvision()

Finder = Callable[[nn.Module, Tensor, Tensor], Tensor]
WIDEST = {"linf": 1.0, "l2": 1e9, "l1": 1e9, "l0": 1e9}
OURS = {
    "linf": ["fmn-linf", "pdpgd-linf", "fab-t-linf:steps=70", "deepfool-linf"],
    "l2": [
        "ddn-l2", "fmn-l2", "pdgd-l2", "pdpgd-l2", "alma-l2", "superdeepfool-l2", "fab-t-l2:steps=70",
        "cw-l2:steps=110", "deepfool-l2",
    ],
    "l1": ["fmn-l1", "pdpgd-l1", "alma-l1", "fab-t-l1:steps=70"],
    "l0": ["sigma-zero-l0:steps=780", "fmn-l0"],
}  # fmt: skip


def ours(norm: str, pixels: int) -> dict[str, Finder]:
    """RobGIB's attacks by name."""
    finders: dict[str, Finder] = {}
    for spec in OURS[norm]:
        widest = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels), "l0": float(pixels)}[norm]
        attack = make_attack(f"{spec}{',' if ':' in spec else ':'}eps={widest}")
        finders[spec] = lambda model, x, y, attack=attack: attack.find(model, x, y, SampleRNG(0, range(len(x))))
    return finders


def advlib(norm: str) -> dict[str, Finder]:
    """adv-lib's attacks by name."""
    library, order = load_advlib(), {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}[norm]
    finders: dict[str, Finder] = {"fmn": lambda m, x, y: library.fmn(m, x, y, norm=order, steps=1000)}
    if norm != "l0":
        finders["fab"] = lambda m, x, y: library.fab(m, x, y, norm=order, n_iter=70, targeted=False)
        finders["pdpgd"] = lambda m, x, y: library.pdpgd(m, x, y, norm=order, num_steps=1000)
    if norm in ("l2", "l1"):
        finders["alma"] = lambda m, x, y: library.alma(m, x, y, distance=norm, num_steps=1000)
    if norm == "l2":
        finders["ddn"] = lambda m, x, y: library.ddn(m, x, y, steps=1000, levels=None)
        finders["pdgd"] = lambda m, x, y: library.pdgd(m, x, y, num_steps=1000)
        finders["sdf"] = lambda m, x, y: library.sdf(m, x, y)
        finders["df"] = lambda m, x, y: library.df(m, x, y)
    if norm in ("linf", "l2"):
        finders["tr"] = lambda m, x, y: library.tr(m, x, y, p=order, iter=100)
    if norm == "l0":
        finders["sigma_zero"] = lambda m, x, y: library.sigma_zero(m, x, y, num_steps=1000)
        finders["vfga"] = lambda m, x, y: library.vfga(m, x, y, False)
    return finders


def foolbox(norm: str) -> dict[str, Finder]:
    """Foolbox's attacks by name."""
    import foolbox as library

    kinds = {
        "linf": {"LInfFMNAttack": {"steps": 1000}, "LinfDeepFoolAttack": {"steps": 50}},
        "l2": {
            "L2FMNAttack": {"steps": 1000},
            "DDNAttack": {"steps": 1000},
            "L2CarliniWagnerAttack": {"steps": 110},
            "L2DeepFoolAttack": {"steps": 50},
        },
        "l1": {"L1FMNAttack": {"steps": 1000}, "EADAttack": {"steps": 110}},
        "l0": {"L0FMNAttack": {"steps": 1000}},
    }[norm]

    def finder(name: str, given: dict[str, int]) -> Finder:
        def find(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            housed = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
            return getattr(library.attacks, name)(**given)(housed, x, y, epsilons=None)[0]

        return find

    return {name: finder(name, given) for name, given in kinds.items()}


def art(norm: str) -> dict[str, Finder]:
    """ART's attacks by name."""
    if norm != "l2":
        return {}
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def finder(name: str, **given: object) -> Finder:
        def find(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            classifier = PyTorchClassifier(
                model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0, 1),
                device_type="gpu" if x.device.type == "cuda" else "cpu",
            )  # fmt: skip
            attack = getattr(evasion, name)(classifier, batch_size=len(x), verbose=False, **given)
            return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

        return find

    return {
        "CarliniL2Method": finder("CarliniL2Method", max_iter=110, binary_search_steps=9, initial_const=0.01),
        "DeepFool": finder("DeepFool", max_iter=50),
    }


def optimality(reach: dict[str, np.ndarray]) -> dict[str, float]:
    """AttackBench's optimality of each attack from its distances (N,), inf where it found none."""
    best = np.minimum.reduce(list(reach.values()))
    top = best[np.isfinite(best)].max()
    least = np.minimum(best, top).mean()
    return {name: float((top - np.minimum(d, top).mean()) / (top - least)) for name, d in reach.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="digits-cnn,digits-cnn-at,digits-vit,fashion-cnn-at")
    parser.add_argument("--norms", default="linf,l2,l1,l0")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.models.split(","):
        model, data = robgib.load_model(name, data_root=options.data_root)
        model.eval()
        x, y = data.test.x[: options.samples], data.test.y[: options.samples]
        right = torch.from_numpy(predict(model, x)) == y
        x, y = x[right], y[right]
        for norm in options.norms.split(","):
            print(f"\n{name}, {norm}, {len(x)} images\n")
            print("| attack | through | found | median | passes | s | optimality |")
            print("| --- | --- | --: | --: | --: | --: | --: |")
            rows, reach = {}, {}
            adapters = {"RobGIB": partial(ours, pixels=x[0].numel())}
            if not options.only_ours:
                adapters |= {"adv-lib": advlib, "Foolbox": foolbox, "ART": art}
            for library, adapter in adapters.items():
                try:
                    finders = adapter(norm)
                except (ImportError, robgib.RobGIBError):
                    continue
                for attack, find in finders.items():
                    torch.manual_seed(0)
                    began = time.perf_counter()
                    try:
                        with eval_mode(model), count_queries(model) as passes, torch.enable_grad():
                            x_adv = find(model, x.clone(), y.clone()).detach()
                    except Exception as error:  # a peer's own
                        print(f"| {attack} | {library} | {type(error).__name__}: {str(error)[:60]} | | | | |")
                        continue
                    taken = time.perf_counter() - began
                    with torch.no_grad(), eval_mode(model):
                        fooled = torch.cat(
                            [misclassified(model(f[None]), t[None]) for f, t in zip(x_adv, y, strict=True)]
                        )
                    inside = ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).flatten(1).all(1)
                    far = distance(x_adv.double(), x.double(), norm)
                    key = (library, attack)
                    reach[key] = torch.where(fooled & inside, far, torch.inf).numpy()
                    rows[key] = ((passes.forward + passes.backward) / len(x), taken)
            scores = optimality(reach)
            for key in sorted(scores, key=scores.__getitem__, reverse=True):
                d, (each, taken) = reach[key], rows[key]
                print(
                    f"| {key[1]} | {key[0]} | {np.isfinite(d).mean():.0%} | {np.median(d):.4g} | {each:,.0f} "
                    f"| {taken:.1f} | {scores[key]:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
