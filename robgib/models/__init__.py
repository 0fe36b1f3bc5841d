"""Architectures, checkpoints, and classifiers as attacks and estimators call them."""

from robgib.models import cnn, mlp, resnet, text, vgg, vit
from robgib.models.checkpoint import (
    CHECKPOINT_SUFFIXES,
    load_into,
    read_checkpoint,
    read_record,
    read_state,
    save_checkpoint,
    weights_digest,
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
    "cnn",  # each architecture enters itself in the registry
    "load_into",
    "mlp",
    "read_checkpoint",
    "read_record",
    "read_state",
    "register_architecture",
    "resnet",
    "runs_code",
    "save_checkpoint",
    "text",
    "vgg",
    "vit",
    "weights_digest",
]
