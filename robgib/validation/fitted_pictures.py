"""Networks trained on real pictures: run on a law that is fitted to these, where the truth is drawn, or on the pictures
themselves, where a classifier of masked pictures gives bounds of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.data.dataset import Dataset, Split
from robgib.data.loaders import load_cached
from robgib.files import cache_folder, digest, write_file
from robgib.information.activations import LOGITS, collect_activations
from robgib.information.donors import places
from robgib.information.features import group_inputs
from robgib.information.views import FittedView, entropy_estimate
from robgib.models.registry import build
from robgib.runtime import one_thread, seed_torch
from robgib.training.config import Adversary, Training
from robgib.training.loop import train
from robgib.validation.known_networks import Drawn, KnownNetwork, each_layer
from robgib.validation.known_variables import Vector
from robgib.validation.laws import Law

__all__ = [
    "fitted_pictures",
]

_TRAINED = 12_000  # pictures that a network is trained on
_RIDGE = 1e-4  # variance that is added to each pixel's: some never vary
_BATCH = 256
_MASKED = 30_000  # pictures that the classifier of masked pictures is trained on
_EPOCHS = 3
_HELD = 6000  # that its bounds are measured on
_Z = 1.645  # a bound is one-sided


@dataclass(frozen=True)
class _Subject:
    """What a network is, what it is trained on, and the law of what it is run on.

    Attributes:
        data: a data set.
        architecture: a registered name.
        options: of the architecture.
        layers: that are asked about.
        epochs: of training.
        eps: radius of adversarial training; 0 trains on clean pictures.
        by_class: whether the law is one Gaussian a class.
    """

    data: str
    architecture: str
    options: Mapping[str, Any]
    layers: tuple[str, ...]
    epochs: int = 3
    eps: float = 0.0
    by_class: bool = False
    seed: int = 0
    rate: float = field(default=5e-3)

    @property
    def key(self) -> str:
        """Tell it from others."""
        return digest([asdict(self), _TRAINED, _RIDGE])[:16]


_CNN = {"widths": [8, 16], "hidden": 32, "dropout": 0.0}
_CNN_LAYERS = ("blocks.1", "hidden", LOGITS)


@cache
def _pictures(name: str) -> Dataset:
    return load_cached(name)


@cache
def _train_part(name: str) -> tuple[Tensor, Tensor]:
    """The pictures (P, C, H, W) that networks are trained on, and their labels."""
    data = _pictures(name)
    rows = data.train.rows(_TRAINED, 0)
    return data.train.at(rows)


@cache
def _network(key: str) -> nn.Module:
    """A subject's network, trained on first use and kept on disk."""
    subject = _SUBJECTS[key]
    x, y = _train_part(subject.data)
    data = _pictures(subject.data)

    def made() -> nn.Module:
        return build(subject.architecture, tuple(x.shape[1:]), len(data.classes), dict(subject.options))

    place = cache_folder() / "validation" / f"{subject.architecture}-{subject.key}.pt"
    network = made()
    if place.is_file():
        network.load_state_dict(torch.load(place, weights_only=True))
        return network.eval()
    few = Dataset(data.name, Split(x, y), Split(x[:0], y[:0]), Split(x[:500], y[:500]), data.classes, data.eps)
    adversary = Adversary(eps=subject.eps, steps=3) if subject.eps else None
    config = Training(epochs=subject.epochs, learning_rate=subject.rate, adversary=adversary, seed=subject.seed)
    with one_thread():
        network, _ = train(made, few, config)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    write_file(place, buffer.getvalue())  # whole, also where several processes train it
    return network.eval()


@cache
def _law(data: str, by_class: bool) -> Law:
    """Fit a law to the pictures that the networks are trained on."""
    x, y = _train_part(data)
    return Law.fitted(x.flatten(1).double().numpy(), y.numpy() if by_class else None, _RIDGE)


def _layers_of(key: str, shape: tuple[int, ...]) -> Callable[[Vector], Mapping[str, Vector]]:
    """From inputs (N, d) to all layers, by one pass."""

    def at_once(x: Vector) -> Mapping[str, Vector]:
        pictures = torch.from_numpy(np.asarray(x, np.float32).reshape(-1, *shape))
        names = _SUBJECTS[key].layers
        activations: Mapping[str, Any] = collect_activations(
            _network(key), pictures, names, batch_size=_BATCH, check=False, reduced=True
        )
        return activations

    return at_once


def _known(name: str, what: str, subject: str, features: str, **own: Any) -> KnownNetwork:
    """A trained network on pictures; ``own`` are the fields that depend on what it is run on."""
    chosen = _SUBJECTS[subject]
    shape = _SHAPES[chosen.data]
    at_once = _layers_of(subject, shape)
    return KnownNetwork(
        name,
        what,
        each_layer(at_once, chosen.layers),
        None,
        dims=int(np.prod(shape)),
        shape=shape,
        features=features,
        at_once=at_once,
        donors=_TRAINED - 2000,
        needs=chosen.data,
        symbols=4 * 10,
        **own,
    )


def _fitted(name: str, what: str, subject: str, features: str = "patches:2") -> KnownNetwork:
    """A trained network on the law that is fitted to its pictures."""
    chosen = _SUBJECTS[subject]
    return _known(
        name,
        what,
        subject,
        features,
        law=lambda: _law(chosen.data, chosen.by_class),
        kept=f"{chosen.key} {features}",
    )


def _real(name: str, what: str, subject: str, features: str = "patches:2") -> KnownNetwork:
    """A trained network on real pictures that it has not seen, with bounds of its terms from one side."""
    chosen = _SUBJECTS[subject]
    at_once = _layers_of(subject, _SHAPES[chosen.data])

    def unseen() -> tuple[Tensor, Tensor]:
        data = _pictures(chosen.data)
        return data.test.at(np.arange(len(data.test)))

    def pair(samples: int, donors: int, rng: np.random.Generator) -> tuple[Drawn, Drawn]:
        (x, y), (z, t) = unseen(), _train_part(chosen.data)
        ours, theirs = rng.permutation(len(x))[:samples], rng.permutation(len(z))[:donors]
        return _drawn(x[ours], y[ours]), _drawn(z[theirs], t[theirs])

    def sampled(samples: int, rng: np.random.Generator) -> Drawn:
        x, y = unseen()
        rows = rng.integers(len(x), size=samples)
        return _drawn(x[rows], y[rows])

    return _known(
        name,
        what,
        subject,
        features,
        sampled=sampled,
        pair=pair,
        bounds=lambda views: _bounds(chosen, at_once, views, features),
        kept=f"{chosen.key} {features} {_MASKED} {_EPOCHS}",
    )


def _drawn(x: Tensor, y: Tensor) -> Drawn:
    return x.flatten(1).double().numpy(), y.numpy()


def _bounds(
    subject: _Subject, at_once: Callable[[Vector], Mapping[str, Vector]], views: Mapping[str, FittedView], features: str
) -> dict[str, Vector]:
    """The 2n+1 terms of every layer: the total counted, the others bounded from below by a classifier.

    A convolutional network is trained to predict the codes from pictures of which only a subset of the features is
    shown, and which those are. H(T) less its held-out log-loss, and less 1.645 standard errors, is a lower bound.
    """
    data = _pictures(subject.data)
    x = data.train.at(data.train.rows(_MASKED + _HELD, 1))[0]
    shape = tuple(x.shape[1:])
    cells = [torch.from_numpy(p) for p in places(group_inputs(features, x[:50].numpy(), x[:50].numpy()).cells, shape)]
    shown = torch.zeros(2 * len(cells), int(np.prod(shape)))
    for i, cell in enumerate(cells):
        shown[i, cell] = 1
        shown[len(cells) + i] = 1
        shown[len(cells) + i, cell] = 0
    shown = shown.view(-1, *shape)
    activations = at_once(x.flatten(1).numpy())
    codes = {n: torch.from_numpy(views[n](activations[n]).astype(np.int64)) for n in views}
    sizes = [int(c.max()) + 1 for c in codes.values()]
    with one_thread():
        network = _masked_classifier(x[:_MASKED], [c[:_MASKED] for c in codes.values()], sizes, shown)
    terms_of = {n: [entropy_estimate(c[_MASKED:].numpy()).value] for n, c in codes.items()}
    rest = x[_MASKED:]
    with torch.no_grad():
        for mask in shown:
            scores = torch.cat([network(_with_mask(part, mask.expand_as(part))) for part in rest.split(512)])
            for (name, goal), of in zip(codes.items(), scores.split(sizes, 1), strict=True):
                lost = F.cross_entropy(of, goal[_MASKED:], reduction="none") / np.log(2)
                least = terms_of[name][0] - float(lost.mean()) - _Z * float(lost.std()) / np.sqrt(len(lost))
                terms_of[name].append(max(least, 0.0))
    return {n: np.array(terms) for n, terms in terms_of.items()}


def _with_mask(x: Tensor, shown: Tensor) -> Tensor:
    """Pictures of which a part is shown, and as a last channel which part."""
    return torch.cat([(x - 0.5) * shown, shown[:, :1]], 1)


def _masked_classifier(x: Tensor, codes: Sequence[Tensor], sizes: Sequence[int], shown: Tensor) -> nn.Module:
    """Train a convolutional network on pictures (P, C, H, W) under masks (S, C, H, W) to predict codes (P,)."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        seed_torch(0)
        network = nn.Sequential(
            nn.Conv2d(x.shape[1] + 1, 24, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * (x.shape[2] // 4) * (x.shape[3] // 4), 256),
            nn.ReLU(),
            nn.Linear(256, sum(sizes)),
        )
        steps = _EPOCHS * (len(x) // 128)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            scores = network(_with_mask(x[rows], shown[torch.randint(len(shown), (128,))]))
            parts = zip(scores.split(list(sizes), 1), codes, strict=True)
            loss = torch.stack([F.cross_entropy(of, goal[rows]) for of, goal in parts]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    return network.eval()


_SHAPES = {"fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
_SUBJECTS = {
    "fashion": _Subject("fashion-mnist", "cnn", _CNN, _CNN_LAYERS),
    "fashion-at": _Subject("fashion-mnist", "cnn", _CNN, _CNN_LAYERS, eps=0.1),
    "fashion-vit": _Subject(
        "fashion-mnist",
        "vit",
        {"patch": 7, "dim": 32, "depth": 2, "heads": 2},
        ("blocks.0", "blocks.1", LOGITS),
        epochs=4,
    ),
    "fashion-classes": _Subject("fashion-mnist", "cnn", _CNN, _CNN_LAYERS, by_class=True),
    "cifar": _Subject("cifar10", "cnn", _CNN, _CNN_LAYERS),
}


def fitted_pictures() -> dict[str, KnownNetwork]:
    """Return the networks on pictures that need a data set, by name.

    >>> fitted_pictures()["gaussian-fashion-cnn"].needs
    'fashion-mnist'
    """
    fashion = "on pictures of the Gaussian fitted to Fashion-MNIST"
    listed = [
        _fitted("gaussian-fashion-cnn", f"a convolutional network {fashion}", "fashion"),
        _fitted("gaussian-fashion-cnn-4", f"the same network {fashion}, cut into 16", "fashion", "patches:4"),
        _fitted("gaussian-fashion-vit", f"a vision transformer {fashion}", "fashion-vit"),
        _fitted("gaussian-fashion-cnn-at", f"an adversarially trained network {fashion}", "fashion-at"),
        _fitted("gaussian-cifar-cnn", "a network on pictures of the Gaussian fitted to CIFAR-10", "cifar"),
        _fitted(
            "mixture-fashion-cnn",
            "the network on a mixture of Gaussians, one fitted to each class",
            "fashion-classes",
        ),
        _real("real-fashion-cnn", "the network on real pictures, with bounds from one side", "fashion"),
        _real("real-fashion-cnn-4", "the same, cut into 16", "fashion", "patches:4"),
    ]
    return {network.name: network for network in listed}
