"""Supervised training of the zoo's networks, deterministic on CPU under a seed."""

from __future__ import annotations

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robgib.data.dataset import Dataset, Split
from robgib.errors import RobGIBError
from robgib.files import write_file
from robgib.runtime import Progress, network_faults, resolve_device, seed_torch
from robgib.training.config import Training
from robgib.training.losses import adversarial, augment, check_penalty, mart_loss, penalty_of, weights_moved

__all__ = [
    "accuracy",
    "train",
]


_HELD_OUT = 500  # images that decide when to stop


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, device: torch.device | str = "cpu", batch_size: int = 512) -> float:
    """Share of ``split`` that the model labels right."""
    hits = 0
    for start in range(0, len(split), batch_size):
        x, y = split.x[start : start + batch_size], split.y[start : start + batch_size]
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return hits / len(split)


def _schedule(optimizer: torch.optim.Optimizer, config: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's course over ``steps`` steps an epoch."""
    total = steps * config.epochs
    if config.schedule == "onecycle":
        start = 0.2 if config.warmup is None else max(config.warmup / config.epochs, 1 / total)
        if start * (total + 1) == 1:  # a rise of no steps, by whose length torch would divide
            start = 1 / total
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.learning_rate, total_steps=total + 1, pct_start=start
        )
    rising = round((config.warmup or 0) * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if config.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _batches(samples: int, size: int, least: int) -> list[int]:
    """Sizes of an epoch's batches: ``size`` each; the last one has the remaining samples.

    Fewer than ``least`` remaining samples, or a single one, which batch normalisation cannot use, join the batch
    before.
    """
    whole, remainder = divmod(samples, size)
    sizes = [size] * whole + ([remainder] if remainder else [])
    if len(sizes) > 1 and sizes[-1] < min(size, max(2, least)):
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes


@contextmanager
def _clear_errors(config: Training) -> Iterator[None]:
    """Raise one sentence if memory or torch.compile fails."""
    try:
        with network_faults():
            yield
    except torch.OutOfMemoryError as error:
        raise RobGIBError(
            f"memory does not hold a training batch of {config.batch_size}; lower training.batch_size in the recipe, "
            "or train on another --device."
        ) from error
    except Exception as error:
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise RobGIBError(
                f"torch.compile does not work here ({type(error).__name__}); leave training.compile out."
            ) from error
        raise


class _Learner:
    """The state of a training: it can be saved after an epoch and loaded again."""

    def __init__(self, model: nn.Module, config: Training, steps: int) -> None:
        self.model, self.config = model, config
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(
                model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
            )
        else:
            self.optimizer = torch.optim.SGD(
                model.parameters(),
                lr=config.learning_rate,
                momentum=0.9,
                nesterov=True,
                weight_decay=config.weight_decay,
            )
        self.schedule = _schedule(self.optimizer, config, steps)
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        self.forward: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
        self.history: list[dict[str, float]] = []
        self.sound: dict[str, Any] | None = None  # weights before catastrophic overfitting
        self.best: dict[str, Any] | None = None  # weights of the best epoch, with early stopping
        self.seconds = 0.0

    @property
    def result(self) -> nn.Module:
        """The network that the training would return now."""
        final: nn.Module = self.average.module if self.average is not None else self.model
        return final

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented images of a batch, and the attacked ones of adversarial training, else the same."""
        config = self.config
        clean = augment(x, config.shift, config.flip, config.noise)
        if not config.adversary:
            return clean, clean
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.amp):
            return clean, adversarial(self.forward, clean, y, config.adversary)

    def loss(self, clean: Tensor, attacked: Tensor, y: Tensor) -> tuple[Tensor, int]:
        """The loss of a batch, and how many of it the model labels right."""
        config = self.config
        trades, mart = (config.adversary.trades, config.adversary.mart) if config.adversary else (None, None)
        shown = clean if trades else attacked
        logits = self._logits(shown)
        if mart:
            loss = mart_loss(self._logits(clean), logits, y, mart)
        else:
            loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        if config.penalty:
            loss = loss + config.penalty.beta * penalty_of(self.model, shown, config.penalty)
        if trades:
            moved = self._logits(attacked)
            divergence = F.kl_div(moved.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean")
            loss = loss + trades * divergence
        return loss, int((logits.detach().argmax(1) == y).sum())

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.amp):
            logits: Tensor = self.forward(x).float()
        return logits

    def epoch(self, x: Tensor, y: Tensor, sizes: list[int], progress: Callable[[int, int, str], None] | None) -> None:
        """Train on every sample once, in a random order; add a row to the history.

        Args:
            x: training samples (N, …).
            y: labels (N,).
            sizes: sizes of the batches.
            progress: called with the steps done, the steps of the training, and a note.

        Raises:
            RobGIBError: the loss is not finite.
        """
        epochs, steps, began = self.config.epochs, len(sizes), time.perf_counter()
        number = len(self.history)  # of the epoch, from 0
        self.model.train()
        order = torch.randperm(len(x)).to(x.device)
        total, right, samples = 0.0, 0, 0
        for step, index in enumerate(order.split(sizes)):
            loss, hits = self.step(x[index], y[index])
            total, right, samples = total + float(loss.detach()), right + hits, samples + len(index)
            if progress and (step % 10 == 9 or step == steps - 1):
                rate = samples / (time.perf_counter() - began)
                note = (
                    f"epoch {number + 1}/{epochs}, loss {total / (step + 1):.3f}, "
                    f"{100 * right / samples:.1f}% right, {rate:,.0f}/s"
                )
                progress(number * steps + step + 1, epochs * steps, note)
        if not total < float("inf"):
            raise RobGIBError(
                f"training diverged in epoch {number + 1} (the loss is not finite); "
                "lower training.learning_rate in the recipe."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.history.append(
            {
                "epoch": number + 1,
                "loss": total / steps,
                "train_accuracy": right / samples,
                "learning_rate": float(self.schedule.get_last_lr()[0]),
                "seconds": self.seconds,
            }
        )

    def outcome(self, stopped: int | None) -> dict[str, Any]:
        """What the record of a training keeps; ``stopped`` is the epoch of catastrophic overfitting."""
        return {
            "epochs": self.config.epochs if stopped is None else stopped,
            "seconds": round(self.seconds, 1),
            "catastrophic_overfitting": stopped,
            "history": self.history,
        }

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
        """Take one step down the gradient of a batch's loss; return the loss and how many of it are labelled right."""
        clean, attacked = self.batch(x, y)
        loss, hits = self.loss(clean, attacked, y)
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.adversary and self.config.adversary.awp:
            with weights_moved(self.model, loss, self.config.adversary.awp):
                self.loss(clean, attacked, y)[0].backward()
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss, hits

    def keep_best(self, data: Dataset, device: torch.device) -> None:
        """Keep the weights if their accuracy on held-out images, attacked as in training, is the highest so far."""
        split = data.val if len(data.val) else data.train
        x, y = (part.to(device) for part in split.sample(_HELD_OUT, self.config.seed))
        model = self.result.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_torch(self.config.seed)
            shown = adversarial(model, x, y, self.config.adversary) if self.config.adversary else x
            with torch.no_grad():
                right = float((model(shown).argmax(1) == y).float().mean())
        self.history[-1]["held_out"] = right
        if right > max((row["held_out"] for row in self.history[:-1]), default=-1.0):
            self.best = copy.deepcopy(model.state_dict())

    def overfits(self, data: Dataset, device: torch.device) -> bool:
        """Whether fast adversarial training overfits to its own one-step attack (catastrophic overfitting).

        The criterion is that accuracy under PGD on held-out images is 20 points below its best (Wong, Rice & Kolter
        2020, section 5.3). Both accuracies are added to the history, and the last weights before that are kept.
        """
        assert self.config.adversary is not None
        split = data.val if len(data.val) else data.train
        x, y = (part.to(device) for part in split.sample(_HELD_OUT, self.config.seed))
        model = self.result.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_torch(self.config.seed)
            for name, steps in (("one_step", 1), ("pgd", 10)):
                attacked = adversarial(model, x, y, self.config.adversary, steps)
                with torch.no_grad():
                    self.history[-1][name] = float((model(attacked).argmax(1) == y).float().mean())
        if self.history[-1]["pgd"] < max(row["pgd"] for row in self.history) - 0.2:
            return True
        self.sound = copy.deepcopy(model.state_dict())
        return False

    def stopped(self, data: Dataset, device: torch.device) -> int | None:
        """The epoch, if it ends fast adversarial training; the weights before it are then put back."""
        adversary = self.config.adversary
        if not adversary or adversary.steps != 1 or not self.overfits(data, device):
            return None
        assert self.sound is not None
        self.result.load_state_dict(self.sound)
        return len(self.history)

    def put_away(self, path: Path, identity: str) -> None:
        """Write the state to ``path`` in one piece."""
        buffer = io.BytesIO()
        content = {
            "identity": identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "history": self.history,
            "sound": self.sound,
            "best": self.best,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
            "random_cuda": [torch.cuda.get_rng_state(d) for d in self._cuda()],
        }
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    def take_up(self, path: Path, identity: str) -> None:
        """Load the state that :meth:`put_away` wrote."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            same = content["identity"] == identity
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise RobGIBError(f"the unfinished training {path} cannot be read; remove it to start afresh.") from error
        if not same:
            raise RobGIBError(
                f"{path} is the unfinished training of another recipe, data set or length; remove it to start afresh."
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.history, self.sound, self.seconds = content["history"], content["sound"], content["seconds"]
        self.best = content.get("best")
        torch.set_rng_state(content["random"])
        for device, state in zip(self._cuda(), content["random_cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)

    def _cuda(self) -> list[torch.device]:
        return sorted({p.device for p in self.model.parameters() if p.device.type == "cuda"}, key=str)


def train(
    make: Callable[[], nn.Module],
    data: Dataset,
    config: Training,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    label: str = "training",
    watch: Callable[[int, nn.Module], None] | None = None,
    unfinished: tuple[Path, str] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network on the training split of a data set.

    The global random state is restored. The last batch of an epoch has the remaining samples; if it would have a single
    sample, or too few for the penalty, they join the batch before.

    Args:
        make: returns the untrained network.
        data: the data set.
        config: the settings of the training.
        device: where to compute.
        progress: called every ten steps.
        label: the task that ``progress`` names.
        watch: called with the number of finished epochs, from 0, and the model in eval mode. Random numbers that it
            draws do not change the training.
        unfinished: a file, and the identity of this training. The state is saved there after each epoch, and an
            interrupted training resumes from it to the same weights. The caller removes the file.

    Returns:
        The model in eval mode, and its record: ``epochs``, ``seconds``, ``train_accuracy``, ``val_accuracy``,
        ``test_accuracy``, ``history`` (one row per epoch), and ``catastrophic_overfitting``, the epoch in which fast
        adversarial training was stopped, or None.

    Raises:
        RobGIBError: the data set has no training split, the batches are too small for the penalty, the loss is not
            finite, memory does not suffice, or the unfinished training is another one.
    """
    _check_data(data, config)
    device = resolve_device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _clear_errors(config):
        seed_torch(config.seed)
        x, y = data.train.x.to(device), data.train.y.to(device)
        model = make()
        penalty = config.penalty
        least = check_penalty(model, penalty, data.shape, config.batch_size, len(x)) if penalty else 1
        sizes = _batches(len(x), config.batch_size, least)
        learner = _Learner(model.to(device), config, len(sizes))
        if unfinished and unfinished[0].is_file():
            learner.take_up(*unfinished)
        began = time.perf_counter() - learner.seconds

        def show(epochs: int) -> None:
            if watch:
                with torch.random.fork_rng(devices=cuda):
                    watch(epochs, learner.result.eval())

        if not learner.history:
            show(0)
        stopped = None
        while stopped is None and len(learner.history) < config.epochs:
            learner.epoch(x, y, sizes, partial(progress, label) if progress else None)
            if config.early_stopping:
                learner.keep_best(data, device)
            learner.seconds = learner.history[-1]["seconds"] = time.perf_counter() - began
            stopped = learner.stopped(data, device)
            show(len(learner.history))
            if unfinished and stopped is None:
                learner.put_away(*unfinished)
        if learner.best is not None:
            learner.result.load_state_dict(learner.best)
        model = learner.result.eval()
        return model, {**learner.outcome(stopped), **_accuracies(model, data, device)}


def _check_data(data: Dataset, config: Training) -> None:
    if not len(data.train):
        raise RobGIBError(f"data set {data.name!r} has no training images; train on another one.")
    if (config.shift or config.flip) and len(data.shape) != 3:
        raise RobGIBError(f"training.shift and training.flip need images; data set {data.name!r} has none.")


def _accuracies(model: nn.Module, data: Dataset, device: torch.device) -> dict[str, float | None]:
    """Accuracy on each split; None for a split without samples."""
    return {
        "train_accuracy": accuracy(model, data.train, device),
        "val_accuracy": accuracy(model, data.val, device) if len(data.val) else None,
        "test_accuracy": accuracy(model, data.test, device),
    }
