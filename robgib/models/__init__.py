"""Architectures, checkpoints, and classifiers as attacks and estimators call them."""

from robgib.models import bijective, cnn, mlp, resnet, text, vgg, vit
from robgib.models.checkpoint import (
    CHECKPOINT_SUFFIXES,
    Checkpoint,
    read_checkpoint,
    read_record,
    read_state,
    save_checkpoint,
    weights_digest,
)
from robgib.models.fitting import Fitted, fit, load_into
from robgib.models.normalization import NORMALIZATIONS, Normalization, Normalize, normalization
from robgib.models.pretrained import PRETRAINED, Pretrained, is_pretrained, load_pretrained
from robgib.models.registry import (
    ARCHITECTURES,
    build,
    check_file_architecture,
    register_architecture,
    runs_code,
)

__all__ = [
    "ARCHITECTURES",
    "CHECKPOINT_SUFFIXES",
    "NORMALIZATIONS",
    "PRETRAINED",
    "Checkpoint",
    "Fitted",
    "Normalization",
    "Normalize",
    "Pretrained",
    "bijective",  # each architecture enters itself in the registry
    "build",
    "check_file_architecture",
    "cnn",
    "fit",
    "is_pretrained",
    "load_into",
    "load_pretrained",
    "mlp",
    "normalization",
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
