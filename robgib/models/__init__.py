"""Architectures, recipes and checkpoints."""

from robgib.models import cnn, mlp, resnet, text, vgg, vit  # noqa: F401  (each enters itself in the registry)
from robgib.models.checkpoint import (
    CHECKPOINT_SUFFIXES,
    load_into,
    read_checkpoint,
    read_record,
    read_state,
    save_checkpoint,
)
from robgib.models.registry import ARCHITECTURES, Normalize, build, register_architecture

__all__ = [
    "ARCHITECTURES",
    "CHECKPOINT_SUFFIXES",
    "Normalize",
    "build",
    "load_into",
    "read_checkpoint",
    "read_record",
    "read_state",
    "register_architecture",
    "save_checkpoint",
]
