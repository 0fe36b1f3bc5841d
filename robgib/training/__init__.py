"""Supervised training of the zoo's networks, and traces of their information."""

from robgib.training.config import Adversary, Penalty, Training
from robgib.training.loop import accuracy, train
from robgib.training.tracing import CONTROLS, Trace, control, log_spaced, saved_epochs, snapshots, trace

__all__ = [
    "CONTROLS",
    "Adversary",
    "Penalty",
    "Trace",
    "Training",
    "accuracy",
    "control",
    "log_spaced",
    "saved_epochs",
    "snapshots",
    "trace",
    "train",
]
