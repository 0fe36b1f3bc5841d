"""Run attacks on a model: per-sample outcomes, each adversarial image verified."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, MinimalNorm, frozen
from robgib.attacks.passes import PRECISIONS, InBatches, Passes, count_passes, fitting_batch, quicken
from robgib.attacks.threat import SampleRNG, distance, per_sample
from robgib.errors import AttackContractError, RobGIBError, first_line, unknown_name
from robgib.training import Progress

__all__ = ["Outcome", "Prepared", "accuracy_curve", "attack_samples", "predict", "prepare"]


_POOL = 2**24  # pixels that an attack holds at once, at most
_BATCHES = 16  # that it holds at once: survivors then leave one in sixteen ragged, and the bar still moves


@dataclass(frozen=True)
class Outcome:
    """What one attack did to N samples. Samples that were wrong beforehand are not attacked.

    Attributes:
        prediction: adversarial prediction (N,), int64.
        linf: perturbation size in L-infinity (N,).
        l2: perturbation size in L2 (N,).
        distance: distance (N,), in the attack's norm, of the nearest image found that the model labels wrong, also
            outside the ball if the attack looks there; 0 for samples wrong beforehand, inf where none was found.
        pictures: adversarial images of the first fooled samples, by row.
        passes: images that went through the model, and gradients that came back, all told.
    """

    prediction: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    distance: np.ndarray
    pictures: dict[int, np.ndarray]
    passes: Passes


@dataclass(frozen=True)
class Prepared:
    """A model made ready for attacks: the faster form that they climb, and how many images it takes at once."""

    model: nn.Module
    quick: nn.Module
    batch_size: int
    precision: str = "float32"


def prepare(
    model: nn.Module,
    sample: Tensor,
    *,
    batch_size: int | None = None,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> Prepared:
    """Make a model on ``device`` ready for attacks on images like ``sample`` (N, …), of which a few will do.

    Args:
        model: classifier.
        sample: clean images in [0, 1].
        batch_size: images at once; None finds it. It is halved where memory does not suffice.
        precision: ``float32``, or ``bfloat16`` for gradients; who is fooled is decided in float32 either way.
        device: where the model is.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    with frozen(model):
        few = sample[:8].to(device)
        return Prepared(model, quicken(model, few), batch_size or fitting_batch(model, few), precision)


def check_logits(logits: Tensor, x: Tensor, classes: int | None = None) -> None:
    """Raise when a model's output is not finite logits (N, classes)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RobGIBError(
            f"the model's output is {shape} for {len(x)} images; it must be logits of shape (N, classes)."
        )
    if classes is not None and logits.shape[1] < classes:
        raise RobGIBError(
            f"the model gives {logits.shape[1]} logits and the data have {classes} classes; "
            "use a model and data that belong together."
        )
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise RobGIBError(
            f"the model gives NaN or infinite logits on {bad} of {len(x)} clean images; no result would mean anything."
        )


@torch.no_grad()
def predict(
    model: nn.Module,
    x: Tensor,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return predicted classes (N,) of images ``x``, after checking that the logits make sense."""
    found = []
    with frozen(model):
        net = InBatches(model, batch_size)
        for batch in x.split(batch_size):
            try:
                logits = net(batch.to(device))
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise RobGIBError(
                    f"the model does not take images of shape {tuple(batch.shape[1:])}: {first_line(error)}."
                ) from error
            check_logits(logits, batch, classes)
            found.append(logits.argmax(1).cpu())
    return torch.cat(found).numpy()


def _verify(attack: Attack, label: str, x_adv: object, x: Tensor) -> Tensor:
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise AttackContractError(f"attack {label!r} returned {got} for images of shape {tuple(x.shape)}.")
    x_adv = x_adv.detach().to(x.dtype)
    bad = ~attack.threat.allows(x_adv, x)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        low, high = attack.threat.box
        raise AttackContractError(
            f"attack {label!r} left its threat model on {int(bad.sum())} of {len(x)} images: the first has "
            f"{attack.threat.norm} distance {float(attack.threat.distance(x_adv, x)[row]):.6g} (eps "
            f"{attack.threat.eps:.6g}) and values in [{float(x_adv[row].min()):.6g}, {float(x_adv[row].max()):.6g}] "
            f"(box [{low:g}, {high:g}])."
        )
    return x_adv


def attack_samples(
    model: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    label: str = "attack",
    clean: np.ndarray | None = None,
    index: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Attack the samples that the model labels right.

    The attack may climb a faster form of the model; the model itself, in float32, decides who is fooled, and a sample
    that fooled the faster form alone is attacked again on the model.

    Args:
        model: classifier on ``device``, or what :func:`prepare` made of it.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attack: the attack with its threat model.
        label: name for messages and progress.
        clean: clean predictions (N,); None computes them.
        index: each sample's own number (N,), which with ``seed`` fixes its random numbers.
        seed: of the attack's random numbers.
        batch_size: images at once; None finds it.
        device: where the model is.
        pictures: how many adversarial images of fooled samples to keep.
        progress: called as the attack goes on.

    Raises:
        AttackContractError: the attack returned a wrong shape, or an image outside the ball or the box, or it changed
            the model (which is mended).
    """
    if clean is None:
        clean = predict(model.model if isinstance(model, Prepared) else model, x, device=device)
    if not isinstance(model, Prepared):
        model = prepare(model, x, batch_size=batch_size, device=device)
    net, quick, size = model.model, model.quick, model.batch_size
    index = np.arange(len(x)) if index is None else np.asarray(index)
    prediction = clean.astype(np.int64).copy()
    sizes = {norm: np.zeros(len(x)) for norm in ("linf", "l2")}
    nearest = np.where(clean == y.numpy(), np.inf, 0.0)
    kept: dict[int, np.ndarray] = {}
    todo = np.flatnonzero(clean == y.numpy())
    done, told = 0, time.monotonic()

    def watch() -> None:
        nonlocal told
        if progress and time.monotonic() - told > 0.2:
            told = time.monotonic()
            progress(label, done, len(todo), f"{passes.forward:,} passes")

    with _kept(net, label, not attack.pooled), frozen(net), count_passes(net, quick) as passes:
        plain = InBatches(net, size, watch=watch)
        fast = InBatches(quick, size, model.precision, watch)
        pool = max(size, min(_BATCHES * size, _POOL // max(1, x[:1].numel()))) if attack.pooled else size
        for start in range(0, len(todo), pool):
            rows = todo[start : start + pool]
            batch, labels, draws = x[rows].to(device), y[rows].to(device), SampleRNG(seed, index[rows])
            find = attack.find if isinstance(attack, MinimalNorm) else attack.perturb
            found = find(fast if attack.pooled else net, batch, labels, draws)
            found, image, answer = _judge(attack, label, plain, found, batch, labels)
            if attack.pooled and quick is not net:
                with torch.no_grad():
                    lost = ((fast(found).argmax(1) != labels) & (answer == labels)).nonzero().squeeze(1)
                if len(lost):
                    again = find(plain, batch[lost], labels[lost], SampleRNG(seed, index[rows][lost.cpu().numpy()]))
                    judged = _judge(attack, label, plain, again, batch[lost], labels[lost])
                    for held, better in zip((found, image, answer), judged, strict=True):
                        held[lost] = better
            fooled = answer != labels
            prediction[rows] = torch.where((image == found).flatten(1).all(1), answer, labels).cpu().numpy()
            reach = attack.threat.distance(found, batch)
            nearest[rows] = torch.where(fooled, reach, float("inf")).cpu().numpy()
            for norm, values in sizes.items():
                values[rows] = distance(image, batch, norm).cpu().numpy()
            if len(kept) < pictures:
                for row, picture in zip(rows, image, strict=True):
                    if len(kept) < pictures and prediction[row] != int(y[row]):
                        kept[int(row)] = picture.cpu().numpy()
            done = start + len(rows)
            if progress:
                progress(label, done, len(todo), f"{passes.forward:,} passes")
    return Outcome(prediction, sizes["linf"], sizes["l2"], nearest, kept, passes)


@contextmanager
def _kept(model: nn.Module, label: str, doubted: bool) -> Iterator[None]:
    """See that an attack that gets the model itself leaves its weights as they were; put them back if not."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())} if doubted else {}
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    changed = []
    try:
        yield
    finally:
        for name, tensor in held.items():
            if not torch.equal(tensor, before[name]):
                changed.append(name)
                with torch.no_grad():
                    tensor.copy_(before[name])
    if changed:
        raise AttackContractError(f"attack {label!r} changed the model ({', '.join(changed[:3])}).")


def _judge(
    attack: Attack, label: str, model: nn.Module, found: object, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was found (N, …), what of it lies in the ball (else the clean image), and the model's answers (N,).

    A non-finite output is not a success of the attack: it counts as the true class.
    """
    image = found
    if isinstance(attack, MinimalNorm) and isinstance(found, Tensor) and found.shape == x.shape:
        low, high = attack.threat.box
        found = found.detach().to(x.dtype)
        inside = ((found >= low - 1e-6) & (found <= high + 1e-6)).flatten(1).all(1)
        found = torch.where(per_sample(inside, x), found, x)
        image = torch.where(per_sample(attack.threat.allows(found, x), x), found, x)
    image = _verify(attack, label, image, x)
    if not isinstance(attack, MinimalNorm):
        found = image
    assert isinstance(found, Tensor)
    with torch.no_grad():
        logits = model(found)
    return found, image, torch.where(torch.isfinite(logits).all(1), logits.argmax(1), y)


def accuracy_curve(
    model: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    known: Outcome,
    *,
    label: str = "attack",
    clean: np.ndarray,
    factors: Sequence[float] = (0.25, 0.5, 0.75, 1.5, 2.0),
    index: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[tuple[float, int]], np.ndarray]:
    """Return (eps, samples still right) at 0, at the attack's eps and at multiples of it, ascending; and distances.

    What is known is used: an image found at a distance fools at every eps above it, and a sample that ``known`` (the
    outcome at the attack's own eps) did not fool counts as right at every smaller one. A minimal-norm attack's
    distances give the whole curve without another step.

    Returns:
        The curve, and the distance (N,) of the nearest image found for each sample on the way (see :class:`Outcome`).
    """
    eps, truth = attack.threat.eps, y.numpy()
    index = np.arange(len(x)) if index is None else index
    right = clean == truth
    fooled_here = right & (known.prediction != truth)
    nearest = known.distance.copy()
    curve = [(0.0, int(right.sum()))]
    if not isinstance(model, Prepared):
        model = prepare(model, x, batch_size=batch_size, device=device)
    for factor in sorted([*factors, 1.0]):
        at = eps * factor
        fooled = ~right | (nearest <= at + 1e-6)
        if factor == 1.0:
            fooled |= fooled_here
        elif not isinstance(attack, MinimalNorm):
            todo = np.flatnonzero((fooled_here if factor < 1 else right) & ~fooled)
            if len(todo):
                outcome = attack_samples(
                    model,
                    x[todo],
                    y[todo],
                    _at(attack, at),
                    label=f"{label} at eps={at:.3g}",
                    clean=clean[todo],
                    index=index[todo],
                    seed=seed,
                    device=device,
                    progress=progress,
                )
                nearest[todo] = np.minimum(nearest[todo], outcome.distance)
                fooled[todo] |= outcome.prediction != truth[todo]
        curve.append((at, int((~fooled).sum())))
    return curve, nearest


def _at(attack: Attack, eps: float) -> Attack:
    """The same attack at another eps; a step size given in absolute terms scales along."""
    changes: dict[str, object] = {"threat": replace(attack.threat, eps=eps)}
    step = getattr(attack, "step_size", None)
    if isinstance(step, float):
        changes["step_size"] = step * eps / attack.threat.eps
    return replace(attack, **changes)  # type: ignore[arg-type]
