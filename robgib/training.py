"""Supervised training of the zoo's networks, deterministic on CPU under a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.threat import Norm, ThreatModel
from robgib.data import Dataset, Split
from robgib.errors import RobGIBError

__all__ = ["Progress", "Training", "accuracy", "resolve_device", "train"]


class Progress(Protocol):
    """Receives how far a named task is; the command line draws a bar from it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``task`` are over."""


class Adversary(BaseModel):
    """Adversarial training (Madry et al. 2018): each batch is replaced by what an attack makes of it.

    One step is fast adversarial training (Wong, Rice & Kolter 2020): from a random start, 1.25 eps long.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    norm: Norm = "linf"
    eps: PositiveFloat
    """Radius of the ball, pixel scale."""
    steps: PositiveInt = 7
    """Gradient steps, each 2.5 eps / steps long."""


class Training(BaseModel):
    """The training keys of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 1e-2
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    shift: NonNegativeInt = 0
    """Largest random translation in pixels, zero-filled."""
    flip: bool = False
    """Random horizontal mirroring."""
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    adversary: Adversary | None = None
    """Train on adversarial images instead of clean ones."""
    seed: int = 0


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RobGIBError(f"unknown device {str(name)!r}; use cpu, cuda, cuda:N or auto.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RobGIBError(f"device {str(name)!r} was asked for, and no CUDA device is here; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RobGIBError(f"device {str(name)!r} was asked for, and {torch.cuda.device_count()} CUDA devices are here.")
    if device.type not in ("cpu", "cuda"):
        raise RobGIBError(f"device {str(name)!r} is not supported; use cpu, cuda, cuda:N or auto.")
    return device


def _augment(x: Tensor, shift: int, flip: bool) -> Tensor:
    """Translate (one shift an image) and mirror a batch (N, C, H, W)."""
    n, _, height, width = x.shape
    if flip:
        x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    if shift:
        padded = F.pad(x, (shift,) * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, n), device=x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = padded[image, channel, rows, columns]
    return x


def _adversarial(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> Tensor:
    """Adversarial images (N, …) for the model in eval mode; random numbers are torch's."""
    from robgib.attacks.attack import Goal, ascend, frozen

    threat = ThreatModel(adversary.norm, adversary.eps)
    if adversary.norm == "linf":
        noise = 2 * torch.rand_like(x) - 1
    else:
        noise = torch.randn_like(x)
        length = torch.rand(len(x), device=x.device) / noise.flatten(1).norm(dim=1)
        noise = noise * length.view(-1, *([1] * (x.ndim - 1)))
    start = threat.project(x + adversary.eps * noise, x)
    step = adversary.eps * (1.25 if adversary.steps == 1 else 2.5 / adversary.steps)
    with frozen(model):
        return ascend(
            model, x, Goal(y, False, "ce"), threat, start=start, steps=adversary.steps, step_size=step, keep="last"
        )


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, device: torch.device | str = "cpu", batch_size: int = 512) -> float:
    """Share of ``split`` that the model labels right."""
    hits = 0
    for start in range(0, len(split), batch_size):
        x, y = split.x[start : start + batch_size], split.y[start : start + batch_size]
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return hits / len(split)


def train(
    make: Callable[[], nn.Module],
    data: Dataset,
    config: Training,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    label: str = "training",
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train ``make()`` on ``data.train`` with a one-cycle learning rate.

    The global random state is left as it was. ``watch`` is called with the number of epochs over, from 0 on, and the
    model in eval mode; whatever random numbers it draws, the training goes on as it would have without.

    Returns:
        The model in eval mode, and its accuracies with the time taken (``epochs``, ``seconds``,
        ``train_accuracy``, ``val_accuracy``, ``test_accuracy``).

    Raises:
        RobGIBError: the data set has no training split, or the loss stops being finite.
    """
    if not len(data.train):
        raise RobGIBError(f"data set {data.name!r} has no training images; train on another one.")
    device = resolve_device(device)
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = make().to(device)
        x, y = data.train.x.to(device), data.train.y.to(device)
        steps = max(1, -(-len(x) // config.batch_size))
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                model.parameters(),
                lr=config.learning_rate,
                momentum=0.9,
                nesterov=True,
                weight_decay=config.weight_decay,
            )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.learning_rate, total_steps=steps * config.epochs + 1, pct_start=0.2
        )

        def show(epochs: int) -> None:
            if watch:
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    watch(epochs, model.eval())

        show(0)
        for epoch in range(config.epochs):
            model.train()
            order = torch.randperm(len(x)).to(device)
            total = 0.0
            for step, index in enumerate(order.split(config.batch_size)):
                batch = _augment(x[index], config.shift, config.flip)
                if config.adversary:
                    batch = _adversarial(model, batch, y[index], config.adversary)
                loss = F.cross_entropy(model(batch), y[index], label_smoothing=config.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                if progress and (step % 10 == 9 or step == steps - 1):
                    note = f"epoch {epoch + 1}/{config.epochs}, loss {total / (step + 1):.3f}"
                    progress(label, epoch * steps + step + 1, config.epochs * steps, note)
            if not total < float("inf"):
                raise RobGIBError(
                    f"training diverged in epoch {epoch + 1} (the loss is not finite); "
                    "lower training.learning_rate in the recipe."
                )
            optimizer.zero_grad(set_to_none=True)
            show(epoch + 1)
        optimizer.zero_grad(set_to_none=True)
        model.eval()
        result = {
            "epochs": config.epochs,
            "seconds": round(time.perf_counter() - began, 1),
            "train_accuracy": accuracy(model, data.train, device),
            "val_accuracy": accuracy(model, data.val, device) if len(data.val) else None,
            "test_accuracy": accuracy(model, data.test, device),
        }
    return model, result
