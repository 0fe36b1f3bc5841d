"""Checkpoints: safetensors written whole or not at all; strangers' state dicts read without unpickling."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, first_line
from robgib.files import write_file
from robgib.models.programs import PROGRAM_SUFFIXES, is_program, read_program

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "load_into",
    "read_checkpoint",
    "read_record",
    "read_state",
    "save_checkpoint",
]

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", *PROGRAM_SUFFIXES)


def save_checkpoint(model: nn.Module, path: Path, record: dict[str, Any]) -> None:
    """Write the weights to ``path`` (safetensors) and the metadata record to ``path`` with ``.json``."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_file(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    write_file(path, save(state))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the metadata record beside a checkpoint, or None when there is none."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RobGIBError(f"the record {beside} is not readable JSON: {error}; remove or mend it.") from error
    return record if isinstance(record, dict) else None


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")


def _is_state(content: object) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _check_looks(path: Path) -> None:
    """Raise where a file's beginning shows that it is no checkpoint at all.

    Raises:
        RobGIBError: it is empty, or a web page or text that a download left in its place.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip()
    except OSError as error:
        raise RobGIBError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        raise RobGIBError(f"{path} is empty: the download or the copy failed; fetch the file again.")
    if head[:1] == b"<" and any(word in head.lower() for word in (b"<html", b"<!doctype", b"<?xml")):
        raise RobGIBError(
            f"{path} is a web page, not a checkpoint: a download gave an error page; fetch the file again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise RobGIBError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`.")


def read_checkpoint(path: Path, *, allow_pickle: bool = False) -> nn.Module | dict[str, Tensor]:
    """Read a checkpoint of any kind: a network that needs no architecture, or a state dict that does.

    Args:
        path: ``.safetensors``, ``.pt`` or ``.pth`` (state dict, or TorchScript), ``.ts`` or ``.torchscript``, ``.pt2``
            (torch.export), ``.onnx``.
        allow_pickle: unpickle a ``.pt`` or ``.pth`` that holds more than weights. That can run any code.
    """
    if is_program(path):
        return read_program(path)
    return _read(path, allow_pickle)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, ``.pt`` or ``.pth``; nothing is ever unpickled.

    A training script's file is unwrapped: the state dict in it goes by ``state_dict``, ``model``, ``ema`` or the like.
    """
    state = _read(path, False)
    assert isinstance(state, dict)
    return state


def _read(path: Path, allow_pickle: bool) -> nn.Module | dict[str, Tensor]:
    if not path.is_file():
        raise RobGIBError(f"checkpoint {str(path)!r} does not exist.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise RobGIBError(f"{path} is not a whole safetensors file: {error}.") from error
    if path.suffix not in (".pt", ".pth"):
        raise RobGIBError(
            f"checkpoint {str(path)!r} has an unknown ending {path.suffix!r}; use {', '.join(CHECKPOINT_SUFFIXES)}."
        )
    _check_looks(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols: what it cannot read it refuses anyway
            content = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0].rstrip(".")
        raise RobGIBError(
            f"{path} holds more than weights and would have to be unpickled, which can run any code "
            f"({reason}); save `model.state_dict()` as safetensors or with torch.save instead, "
            "or give --allow-pickle if you trust whoever made the file."
        ) from error
    except Exception as error:
        raise RobGIBError(f"{path} is not a readable PyTorch file: {first_line(error)}.") from error
    if isinstance(content, nn.Module):
        return content.eval()
    if isinstance(content, dict) and not all(isinstance(v, Tensor) for v in content.values()):
        inner = [content[key] for key in _WRAPPERS if key in content]
        whole = next((v for v in inner if isinstance(v, nn.Module)), None)
        if whole is not None:  # only where unpickling was allowed
            return whole.eval()
        content = next((v for v in inner if _is_state(v)), content)
    if not _is_state(content):
        raise RobGIBError(
            f"{path} holds {type(content).__name__}, not a plain state dict of tensors; save `model.state_dict()`."
        )
    return content


def _prefixed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with a common prefix taken off or put on, if that makes its keys the model's."""

    def common(keys: Iterable[str]) -> str:
        firsts = {key.partition(".")[0] for key in keys}
        return f"{firsts.pop()}." if len(firsts) == 1 else ""

    theirs, ours = common(state), common(own)
    for off, on in ((theirs, ""), ("", ours), (theirs, ours)):
        changed = {f"{on}{key.removeprefix(off)}": value for key, value in state.items()}
        if changed.keys() == own.keys():
            return changed
    return state


def load_into(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict strictly, naming the first keys or shapes that do not fit.

    A prefix that all of its keys, or all of the model's, begin with (``module.``, ``model.``, ``net.``) may be missing
    from the others.
    """
    own = model.state_dict()
    state = _prefixed(state, own)

    def some(keys: list[str]) -> str:
        return ", ".join(repr(k) for k in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    problems = []
    if missing := [k for k in own if k not in state]:
        problems.append(f"it lacks {some(missing)}")
    if extra := [k for k in state if k not in own]:
        problems.append(f"the architecture has no {some(extra)}")
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        k = wrong[0]
        problems.append(
            f"{some(wrong)} differ in shape ({tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model)"
        )
    if problems:
        raise RobGIBError(f"{source} does not fit the architecture: {'; '.join(problems)}.")
    model.load_state_dict(state)


def weights_digest(model: nn.Module) -> str:
    sha = hashlib.sha256()

    def take(key: str, value: object) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().cpu()
            plain = plain.dequantize() if plain.is_quantized else plain
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple | list):  # packed weights of quantised modules
            for number, part in enumerate(value):
                take(f"{key}.{number}", part)
        else:
            sha.update(f"{key} {value!r}".encode())

    for key, value in sorted(model.state_dict().items()):
        take(key, value)
    return sha.hexdigest()
