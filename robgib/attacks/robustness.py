"""Run attacks on a model: per-sample outcomes, each adversarial image verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.attack import Attack, frozen
from robgib.attacks.threat import SampleRNG, distance
from robgib.errors import AttackContractError, RobGIBError
from robgib.training import Progress

__all__ = ["Outcome", "accuracy_curve", "attack_samples", "predict"]


@dataclass(frozen=True)
class Outcome:
    """What one attack did to N samples. Samples that were wrong beforehand are not attacked.

    Attributes:
        prediction: adversarial prediction (N,), int64.
        linf: perturbation size in L-infinity (N,).
        l2: perturbation size in L2 (N,).
        pictures: adversarial images of the first fooled samples, by row.
    """

    prediction: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    pictures: dict[int, np.ndarray]


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
        for batch in x.split(batch_size):
            try:
                logits = model(batch.to(device))
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise RobGIBError(
                    f"the model does not take images of shape {tuple(batch.shape[1:])}: {str(error).splitlines()[0]}."
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
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    label: str = "attack",
    clean: np.ndarray | None = None,
    index: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Attack the samples that the model labels right.

    Args:
        model: classifier on ``device``.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attack: the attack with its threat model.
        label: name for messages and progress.
        clean: clean predictions (N,); None computes them.
        index: each sample's own number (N,), which with ``seed`` fixes its random numbers.
        seed: of the attack's random numbers.
        batch_size: images at once.
        device: where the model is.
        pictures: how many adversarial images of fooled samples to keep.
        progress: called after each batch.

    Raises:
        AttackContractError: the attack returned a wrong shape, or an image outside the ball or the box.
    """
    clean = predict(model, x, batch_size=batch_size, device=device) if clean is None else clean
    index = np.arange(len(x)) if index is None else np.asarray(index)
    prediction = clean.astype(np.int64).copy()
    sizes = {norm: np.zeros(len(x)) for norm in ("linf", "l2")}
    kept: dict[int, np.ndarray] = {}
    todo = np.flatnonzero(clean == y.numpy())
    with frozen(model):
        for start in range(0, len(todo), batch_size):
            rows = todo[start : start + batch_size]
            batch, labels = x[rows].to(device), y[rows].to(device)
            found = attack.perturb(model, batch, labels, SampleRNG(seed, index[rows]))
            found = _verify(attack, label, found, batch)
            with torch.no_grad():
                logits = model(found)
            # A non-finite output is not a success of the attack: it is left as the true class.
            finite = torch.isfinite(logits).all(1)
            prediction[rows] = torch.where(finite, logits.argmax(1), labels).cpu().numpy()
            for norm, values in sizes.items():
                values[rows] = distance(found, batch, norm).cpu().numpy()
            for row, image in zip(rows, found, strict=True):
                if len(kept) < pictures and prediction[row] != int(y[row]):
                    kept[int(row)] = image.cpu().numpy()
            if progress:
                progress(label, min(start + batch_size, len(todo)), len(todo))
    return Outcome(prediction, sizes["linf"], sizes["l2"], kept)


def accuracy_curve(
    model: nn.Module,
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
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Return (eps, samples still right) at 0, at the attack's eps and at multiples of it, ascending.

    What is known is used: a sample fooled at one eps counts as fooled at every larger one, and one that
    ``known`` (the outcome at the attack's own eps) did not fool counts as right at every smaller one.
    """
    eps, truth = attack.threat.eps, y.numpy()
    index = np.arange(len(x)) if index is None else index
    right = clean == truth
    fooled_here = right & (known.prediction != truth)
    curve = [(0.0, int(right.sum()))]
    fooled = ~right
    for factor in sorted([*factors, 1.0]):
        if factor == 1.0:
            fooled = fooled | fooled_here
        else:
            todo = np.flatnonzero((fooled_here if factor < 1 else right) & ~fooled)
            if len(todo):
                scaled = _at(attack, eps * factor)
                outcome = attack_samples(
                    model,
                    x[todo],
                    y[todo],
                    scaled,
                    label=f"{label} at eps={eps * factor:.3g}",
                    clean=clean[todo],
                    index=index[todo],
                    seed=seed,
                    batch_size=batch_size,
                    device=device,
                    progress=progress,
                )
                fooled[todo] |= outcome.prediction != truth[todo]
        curve.append((eps * factor, int((~fooled).sum())))
    return curve


def _at(attack: Attack, eps: float) -> Attack:
    """The same attack at another eps; a step size given in absolute terms scales along."""
    changes: dict[str, object] = {"threat": replace(attack.threat, eps=eps)}
    step = getattr(attack, "step_size", None)
    if isinstance(step, float):
        changes["step_size"] = step * eps / attack.threat.eps
    return replace(attack, **changes)  # type: ignore[arg-type]
