"""Time and peak memory on pictures of 224 x 224: large networks, and folders of more pictures than memory holds.

    python benchmarks/large.py resnet50 --pictures 200
    python benchmarks/large.py vit_small_patch16_224 --pictures 200
    python benchmarks/large.py resnet50 --pictures 10000 --samples 50 --information 5000
    python benchmarks/large.py folder --pictures 50000

The pictures are noise over gradients, the weights random: neither time nor memory depends on them. Each prints a line.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import robgib
from robgib.data import Sizing
from robgib.information import DEFAULT_ESTIMATORS
from robgib.models import build
from robgib.models.inference import predict
from robgib.models.registry import load_timm

CLASSES = 10
KINDS = 200  # different pictures; the rest are links to them


def pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    drawn = []
    ramp = np.linspace(0, 200, 300)[None, :, None] * np.ones((260, 1, 3))
    (folder / "drawn").mkdir(parents=True)
    for i in range(min(KINDS, count)):
        path = folder / "drawn" / f"{i}.jpg"
        noisy = np.clip(ramp[:, :: rng.choice([-1, 1])] + rng.normal(0, 20, ramp.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(path, quality=90)
        drawn.append(path)
    for i in range(count):
        home = folder / "all" / f"{i % CLASSES}"
        home.mkdir(parents=True, exist_ok=True)
        os.link(drawn[i % len(drawn)], home / f"{i}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", help="resnet50, another network of timm's, or folder")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--samples", type=int, help="pictures to attack; all where not given")
    parser.add_argument("--information", type=int, help="pictures to estimate information on")
    parser.add_argument("--estimator", action="append", help="the default where not given")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        pictures(Path(place), options.pictures)
        began = time.perf_counter()
        data = robgib.load_data(f"folder:{place}/all", sizing=Sizing(256, (224, 224)))
        listed = time.perf_counter() - began
        if options.what == "folder":
            net = build("lenet", (3, 224, 224), CLASSES)
            layers, samples, attacks = ["logits"], options.samples or 100, ["fgsm-linf:eps=4/255"]
        else:
            net = load_timm().create_model(options.what, num_classes=CLASSES)
            blocks = [n for n, _ in net.named_children() if n.startswith("layer")] or [f"blocks.{i}" for i in (2, 5, 8)]
            layers, samples, attacks = [*blocks[:3], "logits"], options.samples, ["pgd-linf:eps=4/255,steps=10"]
        # Labelled as the network answers, so that there is something to attack.
        predicted = torch.from_numpy(predict(net.eval(), data.test.x[:samples]).astype(np.int64))
        y = torch.cat([predicted, data.test.y[len(predicted) :]])
        data = replace(data, by_name=False, test=replace(data.test, y=y))
        run = robgib.evaluate(
            net.eval(), data, attacks=attacks, layers=layers, samples=samples, information_samples=options.information,
            estimators=options.estimator or DEFAULT_ESTIMATORS, curve=False, signs=False, corruptions=False,
            progress=False,
        )  # fmt: skip
        took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    attack = run.robustness["seconds"].sum()
    print(
        f"{options.what}, {options.pictures} pictures, {len(layers)} layers: {took:.0f} s in all, "
        f"of which listing {listed:.0f} and attack {attack:.0f}; peak {peak:.2f} GiB; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
