"""Supervised training of the zoo's networks, and traces of their information."""

from robgib.training.config import Adversary, Penalty, Training
from robgib.training.loop import accuracy, train
from robgib.training.tracing import Tracer, log_spaced, saved_epochs, snapshots

__all__ = [
    "Adversary",
    "Penalty",
    "Tracer",
    "Training",
    "accuracy",
    "log_spaced",
    "saved_epochs",
    "snapshots",
    "train",
]
