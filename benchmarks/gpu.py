"""The job of ``gpu.sh``: one evaluation on one device, with its floor."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import robgib
from robgib.models import build
from robgib.models.inference import eval_mode, predict, prepare
from robgib.runtime import environment, resolve_device


def floor(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, device: torch.device, batch: int) -> float:
    """Seconds that an image takes forward and back in the bare network, in the evaluation's batches."""
    times = []
    with eval_mode(net):
        for _ in range(3):
            leaf = x[:batch].to(device).requires_grad_(True)
            began = time.perf_counter()
            torch.autograd.grad(F.cross_entropy(net(leaf), y[:batch].to(device)), leaf)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / len(leaf))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.manual_seed(0)
    net = build("resnet", (3, 32, 32), 10, {"depths": [2, 2, 2, 2], "width": 64}).eval()
    x = torch.rand(options.images, 3, 32, 32)
    y = torch.from_numpy(predict(net.to(device), x, device=device))
    began = time.perf_counter()
    run = robgib.evaluate(
        net, (x, y), attacks=["fgsm-linf:eps=8/255", "pgd-linf:eps=8/255,steps=20"],
        layers=[*robgib.information.default_layers(net.cpu(), x[:2])[-4:]], curve=False, signs=False,
        corruptions=False, device=device, progress=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        robgib.write_report([run], Path(folder) / "page.html")
    took = time.perf_counter() - began
    attacks = run.robustness[run.robustness["seconds"] > 0]
    seconds, passes = attacks["seconds"].sum(), int(attacks["forward"].sum())
    batch = prepare(net.to(device), x, classes=10, device=device).batch_size
    bare = int(attacks["backward"].sum()) * floor(net.to(device), x, y, device, batch)
    print(f"{environment(device)['device']}, torch {torch.__version__}, {options.images} images, batches of {batch}")
    print(f"in all {took:.1f} s with the page; attacks {seconds:.1f} s, {passes:,} images forward")
    print(f"floor {bare:.1f} s: {bare / seconds:.0%} of the attacks' time")


if __name__ == "__main__":
    main()
