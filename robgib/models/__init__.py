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
from robgib.models.registry import (
    ARCHITECTURES,
    Normalize,
    build,
    check_file_architecture,
    register_architecture,
    runs_code,
)

__all__ = [
    "ARCHITECTURES",
    "CHECKPOINT_SUFFIXES",
    "Normalize",
    "build",
    "check_file_architecture",
    "load_into",
    "read_checkpoint",
    "read_record",
    "read_state",
    "register_architecture",
    "runs_code",
    "save_checkpoint",
]
