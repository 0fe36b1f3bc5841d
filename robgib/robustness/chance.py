"""Detect common preprocessing and label mistakes by testing alternatives on clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from robgib.models.inference import PreparedModel, answers
from robgib.models.normalization import NORMALIZATIONS, Ported
from robgib.runtime import network_faults
from robgib.statistics import share_test, sign_test

__all__ = [
    "ReadingWarning",
    "reading_warnings",
]

_FEWEST = 20
_FIRST = 64  # images on which every alternative is tested
_MOST = 256  # images on which an alternative is tested that does better on the first ones
_LEVEL = 0.001  # family-wise level of the paired tests
_BEHIND = 0.02  # accuracy by which a learned class order must be better than the other alternatives
_CHANCE = 0.01  # level of the test against chance
_CALLED = {
    "imagenet": "ImageNet's normalisation",
    "half": "a normalisation to [−1, 1]",
    "clip": "CLIP's normalisation",
    "cifar10": "CIFAR-10's normalisation",
    "cifar100": "CIFAR-100's normalisation",
    "svhn": "SVHN's normalisation",
    "mnist": "MNIST's normalisation",
    "fashion-mnist": "Fashion-MNIST's normalisation",
}
_ORDER = "give the names of its classes in its own order (--classes), or put its logits into the data's order"


@dataclass(frozen=True)
class ReadingWarning:
    """A reason to check how the model and its data are read.

    Attributes:
        text: a sentence.
        explained: whether an alternative reading of images or classes does better.
    """

    text: str
    explained: bool


@dataclass(frozen=True)
class _Way:
    """An alternative way to read images or classes: its name, its remedy, and its results on the images."""

    called: str
    remedy: str
    better: int
    worse: int
    share: float

    @property
    def p(self) -> float:
        """One-sided p-value of the exact McNemar test."""
        return sign_test(self.better, self.worse)

    def rank(self) -> float:
        """Accuracy, used for ranking. A class order is fitted to the answers, and so it is ranked lower."""
        return self.share - (_BEHIND if self.remedy == _ORDER else 0)


def reading_warnings(
    model: PreparedModel,
    x: Tensor,
    y: Tensor,
    right: np.ndarray,
    device: torch.device | str = "cpu",
    *,
    options: bool = True,
    alternatives: bool = True,
) -> list[ReadingWarning]:
    """Report common mistakes that explain wrong answers, and a clean accuracy no better than chance.

    The alternatives are the usual normalisations, the same undone, the images' own mean and standard deviation, a
    colour scale from 0 to 255, inverted colours, BGR channel order, class numbers shifted by one, and another order of
    the classes. An alternative is reported if it does better on the same images by an exact paired test (McNemar) at a
    family-wise level of 0.001. If too few answers are wrong for such a test, no alternative is tested. A stochastic
    model is called once per image.

    Args:
        model: the classifier.
        x: clean images (N, …) in [0, 1].
        y: labels (N,).
        right: shares (N,) of right answers.
        options: whether the options of normalisation apply to the model; else the remedies name Python's alone.
        device: device of the model.
        alternatives: whether alternatives are tested. A network that RobGIB trained on these data read them in training
            as it does now; a gain from brighter images, as an undertrained network has, is no mistake then.

    Returns:
        A list with one warning, or an empty list.
    """
    count = len(y)
    if count < _FEWEST or len(y.unique()) < 2:
        return []
    chance = float(np.bincount(y.numpy()).max()) / count
    hits = round(float(right.sum()))
    by_chance = share_test(hits, count, chance) >= _CHANCE
    shown = np.unique(np.linspace(0, count - 1, min(count, _MOST)).astype(int))
    changes = list(_changes(model, x, options)) if alternatives else []
    tried = len(changes) + len(_SHIFTS) + 1
    ways: list[_Way] = []
    if alternatives and float((1 - right[shown]).sum()) >= -np.log2(_LEVEL / tried):  # else no test can be significant
        with _buffers_kept(model.model):
            ways = _ways(replace(model, random=False), x[shown], y[shown].numpy(), changes, device)
    helps = max((w for w in ways if w.p < _LEVEL / tried), key=_Way.rank, default=None)
    at_chance = f"clean accuracy of {hits / count:.1%} is no better than chance ({chance:.1%}, the largest class)"
    if helps is not None:
        before = at_chance if by_chance else f"clean accuracy is {hits / count:.1%}"
        odds = f"exact paired test on {len(shown)} images, p = {min(1.0, helps.p * tried):.0e}"
        text = f"{before}; with {helps.called} it would be {helps.share:.0%} ({odds}): {helps.remedy}"
        return [ReadingWarning(text, explained=True)]
    usual = "the usual normalisations, colour scales, channel orders or another order of the classes"
    text = f"{at_chance}; none of {usual} helps" if alternatives else at_chance
    return [ReadingWarning(text, explained=False)] if by_chance else []


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of the model on exit."""
    before = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


Change = tuple[str, str, Callable[[Tensor], Tensor]]


def _ways(
    model: PreparedModel, x: Tensor, wanted: np.ndarray, changes: list[Change], device: torch.device | str
) -> list[_Way]:
    """Return the results of each alternative on images (N, …) with labels (N,)."""
    predicted = _predicted(model, x, device)
    if predicted is None:
        return []
    base = predicted == wanted
    ways = []
    first = np.arange(0, len(x), max(1, len(x) // _FIRST))
    for called, remedy, change in changes:
        some = _predicted(model, change(x[first]), device)
        if some is None or int((some == wanted[first]).sum()) <= int(base[first].sum()):
            continue
        whole = some if len(first) == len(x) else _predicted(model, change(x), device)
        if whole is not None:
            ways.append(_compared(called, remedy, whole == wanted, base))
    for called, by in _SHIFTS.items():
        ways.append(_compared(called, _ORDER, np.where(predicted >= 0, predicted + by, predicted) == wanted, base))
    renamed = _reordered(predicted, wanted)
    return [*ways, _compared("its classes in another order", _ORDER, renamed == wanted[1::2], base[1::2])]


_SHIFTS = {"its classes numbered one higher": 1, "its classes numbered one lower": -1}


def _compared(called: str, remedy: str, right: np.ndarray, base: np.ndarray) -> _Way:
    return _Way(called, remedy, int((right & ~base).sum()), int((base & ~right).sum()), float(right.mean()))


def _predicted(model: PreparedModel, x: Tensor, device: torch.device | str) -> np.ndarray | None:
    """Return the predicted classes (N,) of images (N, …), or None if the model raises an error."""
    try:
        with network_faults():
            return answers(model, x, torch.zeros(len(x), dtype=torch.long), device=device).prediction
    except Exception:  # a model may refuse images outside [0, 1]
        return None


def _changes(model: PreparedModel, x: Tensor, options: bool) -> Iterator[Change]:
    """Yield alternative preprocessings, each with its name and the option that selects it.

    An option replaces the normalisation of a library's network.
    """
    if x.ndim != 4:
        return
    channels = x.shape[1]
    behind = next((m for m in model.model.modules() if isinstance(m, Ported)), None)
    before = (torch.zeros(1, 1, 1), torch.ones(1, 1, 1)) if behind is None else (behind.mean.cpu(), behind.std.cpu())
    inside = 3 if behind is not None and behind.widen else channels

    def given(part: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (part - mean) / std * before[1] + before[0]

    kinds = {k: v for k, v in NORMALIZATIONS.items() if len(v[0]) in (1, inside)}
    if behind is not None:
        kinds["none"] = ((0.0,), (1.0,))
    for key, numbers in kinds.items():
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in numbers)
        if not (torch.equal(mean, before[0]) and torch.equal(std, before[1])):
            python = f"in Python robgib.models.normalization({key!r}).before(model, {channels})"
            remedy = f"give --normalize {key} ({python})" if options else f"put it before the network, {python}"
            called = _CALLED.get(key, "no normalisation")
            yield called, remedy, partial(given, mean=mean, std=std)
        if behind is None and key != "none":
            called = f"{_CALLED.get(key, key)} undone, as if the images were normalised twice"
            yield called, f"take one of the two out of it, or undo it: x * {_texts(std)} + {_texts(mean)}", partial(
                _undone, mean=mean, std=std
            )  # fmt: skip
    some = x[:: max(1, len(x) // _MOST)]
    mean, std = some.mean((0, 2, 3)), some.std((0, 2, 3))
    if bool((std > 0).all()):
        remedy = f"give --mean {_texts(mean)} --std {_texts(std)}"
        if not options:
            made = f"robgib.models.Normalization(({_texts(mean)},), ({_texts(std)},)).before(model, {channels})"
            remedy = f"put it before the network, in Python {made}"
        own = partial(given, mean=mean.view(-1, 1, 1), std=std.view(-1, 1, 1))
        yield "the mean and standard deviation of these images as its normalisation", remedy, own
    wrap = "wrap the network, so that it takes"
    scaled = partial(given, mean=torch.zeros(1, 1, 1), std=torch.full((1, 1, 1), 1 / 255))
    bounds = "give --bounds 0,255, or " if options else ""
    yield "colours from 0 to 255", f"{bounds}{wrap} 255 * x", scaled
    if channels == 3:
        colours = "blue, green, red in the place of red, green, blue"
        yield colours, f"{wrap} x.flip(1)", lambda part: part.flip(1)
    yield "black and white exchanged", f"{wrap} 1 - x", lambda part: 1 - part


def _undone(part: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return part * std + mean


def _texts(numbers: Tensor) -> str:
    return ",".join(f"{v:.3f}" for v in numbers.flatten())


def _reordered(predicted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return every second prediction under the class order that fits the other predictions best."""
    size = int(max(predicted.max(), wanted.max())) + 1
    answered = predicted[::2] >= 0
    counts = np.zeros((size, size))
    np.add.at(counts, (predicted[::2][answered], wanted[::2][answered]), 1)
    rows, columns = optimize.linear_sum_assignment(-counts)
    renamed = np.full(size + 1, -1)  # missing predictions remain -1
    renamed[rows] = columns
    return renamed[predicted[1::2]]
