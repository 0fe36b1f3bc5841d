"""Checks of the files beside a transformers network, before the library acts on them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robgib.errors import RobGIBError, visible
from robgib.models.normalization import IMAGENET

__all__ = [
    "INDEXES",
    "Processing",
    "check_config",
    "check_parts",
    "read_processing",
]

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that say in which file each weight lies."""

_CODE = {
    "auto_map": "names code of its own",
    "custom_pipelines": "names code of its own",
    "quantization_config": "asks for quantised weights, which other packages unpack",
    "kernel_config": "names compiled code",
    "use_kernels": "asks for compiled code",
    "use_pretrained_backbone": "asks for another network's weights",
    "transformers_weights": "names the file of its weights",
    "checkpoint_path": "names the file of its weights",
}
_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Ways to compute attention that a configuration may name: a plain one is used in their place."""


def _entries(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a configuration with its value, at any depth."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(part, list):
        for value in part:
            yield from _entries(value)


def check_config(config: Any, name: str) -> None:
    """Raise if a ``config.json`` makes the library fetch, import or run more than its own network.

    Args:
        config: content of the file.
        name: of the network, for the message.

    Raises:
        RobGIBError: it is not a mapping, or requests code, compiled kernels, other weights or their unpacking.

    >>> check_config({"model_type": "vit", "_attn_implementation": "kernels-community/flash-attn"}, "hf:net")
    Traceback (most recent call last):
    robgib.errors.RobGIBError: config.json of hf:net requests '_attn_implementation': \
'kernels-community/flash-attn', which would be fetched and run; remove the entry.
    """
    if not isinstance(config, Mapping):
        raise RobGIBError(f"config.json of {name} is not a mapping; download its files again.")
    for key, value in _entries(config):
        if value and key in _CODE:
            raise RobGIBError(f"config.json of {name} {_CODE[key]} ({key}), which is not run; take another network.")
        if key == "architecture" and not re.fullmatch(r"[\w.]+", str(value)):  # timm's, which may be a place
            raise RobGIBError(
                f"config.json of {name} takes the network from {visible(str(value))[:80]!r}, which RobGIB does not "
                "fetch; name that network itself."
            )
        if not key.endswith("_implementation") or value is None:
            continue
        allowed = _ATTENTION if "attn" in key else ("eager",)
        implementations = list(value.values()) if isinstance(value, Mapping) else [value]
        for one in implementations:
            if one is not None and one not in allowed:
                raise RobGIBError(
                    f"config.json of {name} requests {key!r}: {visible(str(one))[:80]!r}, which would be fetched and "
                    "run; remove the entry."
                )


def check_parts(index: Any, file: str) -> list[str]:
    """Return the sorted names of the files in an index of sharded weights; all must be beside it.

    Args:
        index: content of the file.
        file: the index's name, for the message.

    Raises:
        RobGIBError: it is not an index, or names a file elsewhere or of another kind.

    >>> check_parts({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, "index.json")
    ['model-1.safetensors', 'model-2.safetensors']
    """
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(files, Mapping) or not files or not all(isinstance(part, str) for part in files.values()):
        raise RobGIBError(f"{file} is not an index of weights with a weight_map; download it again.")
    for part in sorted(set(files.values())):
        if not re.fullmatch(r"[\w+=@-][\w.+=@ -]*\.(safetensors|bin|pt|pth|ckpt)", part):
            raise RobGIBError(
                f"{file} names the file {visible(part)[:80]!r}, which is not a weights file beside it; "
                "download all parts."
            )
    return sorted(set(files.values()))


@dataclass(frozen=True)
class Processing:
    """Image processing of a ``preprocessor_config.json``.

    Attributes:
        mean: by channel, or one.
        std: likewise.
        resize: the shorter side that pictures are resized to, (height, width), or None.
        crop: height and width of the middle that is kept, or None.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        assumed: whether the file does not state mean and standard deviation, so that ImageNet's were taken.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    assumed: bool = False


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LARGEST = 16384  # pixels a side


def read_processing(config: Any, image_size: Any, name: str) -> Processing:
    """Read a processor's configuration.

    Args:
        config: content of the file; an empty mapping if there is none.
        image_size: the value in the network's own configuration, or None.
        name: of the network, for the messages.

    Raises:
        RobGIBError: a field is of another type or size than such a field.

    >>> read_processing({"size": {"height": 32, "width": 48}, "image_mean": 0.5, "image_std": [0.5]}, None, "hf:net")
    Processing(mean=(0.5,), std=(0.5,), resize=(32, 48), crop=None, interpolation='bilinear', \
assumed=False)
    """
    if not isinstance(config, Mapping):
        raise _wrong(name, "", config, "a mapping")
    fields = dict(config)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean, std = IMAGENET
    normalizes = _switch(fields, "do_normalize", name)
    if normalizes:
        mean, std = _numbers(fields, "image_mean", mean, name), _numbers(fields, "image_std", std, name)
        if min(std) <= 0:
            raise _wrong(name, "image_std", fields.get("image_std"), "numbers above 0")
    else:
        mean, std = (0.0,), (1.0,)
    resample = fields.get("resample", 2)
    if resample is None:
        resample = 2
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in range(6):
        raise _wrong(name, "resample", resample, "Pillow's number of an interpolation")
    resize, crop = _sizes(fields, image_size, name)
    assumed = normalizes and not {"image_mean", "image_std"} <= fields.keys()
    return Processing(mean, std, resize, crop, _RESAMPLE.get(resample, "bilinear"), assumed)


def _wrong(name: str, key: str, value: Any, wanted: str) -> RobGIBError:
    shown = visible(repr(value))[:80]
    return RobGIBError(
        f"preprocessor_config.json of {name}: {key or 'it'} must be {wanted}, not {shown}; correct it, or "
        "download it again."
    )


def _switch(fields: Mapping[str, Any], key: str, name: str) -> bool:
    """Whether a step is applied; the default is yes."""
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, key, value, "true or false")
    return value is not False


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(fields: Mapping[str, Any], key: str, usual: tuple[float, ...], name: str) -> tuple[float, ...]:
    """Return values per channel, or the usual ones if the field is absent."""
    if key not in fields:
        return usual
    values = fields[key] if isinstance(fields[key], list) else [fields[key]]
    if len(values) not in (1, 3) or not all(map(_number, values)):
        raise _wrong(name, key, fields[key], "one number, or one a channel")
    return tuple(float(v) for v in values)


def _sizes(
    fields: Mapping[str, Any], image_size: Any, name: str
) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """Return the sides to resize and crop to, which processors write in several ways."""
    size, crop, share = fields.get("size"), fields.get("crop_size"), fields.get("crop_pct")
    if share is not None and not (_number(share) and 0 < share <= 1):
        raise _wrong(name, "crop_pct", share, "a share")
    cut = None
    if crop is not None and _switch(fields, "do_center_crop", name):
        cut = _side(crop, "crop_size", name)
    if size is None:
        return (None if image_size is None else _side(image_size, "image_size", name)), None
    if isinstance(size, Mapping) and size.get("shortest_edge") is not None:
        shorter = _side(size["shortest_edge"], "size", name)[0]
        if share and cut is None:  # ConvNeXt's
            return (int(shorter / share), (shorter, shorter)) if shorter < 384 else ((shorter, shorter), None)
        return shorter, cut
    return _side(size, "size", name), cut


def _side(value: Any, key: str, name: str) -> tuple[int, int]:
    """Return one side, two, or a mapping of them as height and width."""
    sides = [value]
    if isinstance(value, Mapping):
        height = value.get("height", value.get("shortest_edge"))
        sides = [height, value.get("width", height)]
    elif isinstance(value, list | tuple):
        sides = list(value)
    whole = [int(s) for s in sides if _number(s) and s == int(s) and 0 < s <= _LARGEST]
    if len(whole) != len(sides) or len(whole) not in (1, 2):
        raise _wrong(name, key, value, "a whole number of pixels above 0, or height and width")
    return whole[0], whole[-1]
