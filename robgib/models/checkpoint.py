"""Checkpoints: safetensors written whole or not at all; strangers' weights read, and nothing of theirs run."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.files import read_json, write_file
from robgib.models.programs import PICKLED_SUFFIXES, PROGRAM_SUFFIXES, is_program, read_program
from robgib.models.transformers_files import check_parts
from robgib.models.unpickle import StandIn, read_pickled

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "Checkpoint",
    "load_into",
    "read_checkpoint",
    "read_record",
    "read_state",
    "save_checkpoint",
]

CHECKPOINT_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES, *PROGRAM_SUFFIXES)
_INDEX = ".index.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        network: a network that needs no architecture, in eval mode; None where the file holds weights alone.
        weights: a state dict (empty where there is a network).
        notes: what else there is to know of how it was read, a sentence each.
        pickled: the class of a network that was pickled whole, and of which only the weights were taken.
        check: compares the network's answer to images with another reader's of the same file, and gives notes.
    """

    network: nn.Module | None
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    pickled: str = ""
    check: Callable[[Tensor, Any], tuple[str, ...]] | None = None


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
        record = read_json(beside)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"the record {beside} is not readable JSON: {error}; remove or mend it.") from error
    return record if isinstance(record, dict) else None


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


def read_checkpoint(
    path: Path, *, allow_pickle: bool = False, weights_key: str | None = None, allow_code: bool = False
) -> Checkpoint:
    """Read a checkpoint of any kind: a network that needs no architecture, or a state dict that does.

    Args:
        path: ``.safetensors``; ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.pth.tar`` (a state dict, a training
            script's file that holds one, or TorchScript); the index of sharded weights (``….index.json``); ``.ts`` or
            ``.torchscript``, ``.pt2`` (torch.export), ``.onnx``; or a folder that holds one of the first kinds.
        allow_pickle: unpickle a file that holds a network whole. That can run any code.
        weights_key: which of several state dicts in a file, such as ``state_dict_ema``; None takes the first of the
            usual names and notes the others.
        allow_code: read TorchScript and torch.export programs whatever they hold. That can run any code.

    Raises:
        RobGIBError: the file is missing, damaged, of another kind, or holds no weights.
    """
    if is_program(path):
        network, check = read_program(path, allow_code=allow_code)
        return Checkpoint(network, {}, check=check)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise RobGIBError(f"checkpoint {str(path)!r} does not exist.")
    if not path.is_file():
        raise RobGIBError(f"checkpoint {str(path)!r} is no file; give one.")
    if path.name.endswith(_INDEX):
        return Checkpoint(None, _sharded(path))
    if path.suffix == ".safetensors":
        return Checkpoint(None, _safetensors(path))
    if path.suffix not in PICKLED_SUFFIXES:
        raise RobGIBError(
            f"checkpoint {str(path)!r} has an unknown ending {path.suffix!r}; use {', '.join(CHECKPOINT_SUFFIXES)}."
        )
    _check_looks(path)
    content = _unpickled(path, allow_pickle)
    if isinstance(content, nn.Module):
        return Checkpoint(content.eval(), {})
    if allow_pickle:
        inner = [v for k, v in content.items() if isinstance(v, nn.Module)] if isinstance(content, dict) else []
        if inner:
            return Checkpoint(inner[0].eval(), {})
    return _chosen(path, content, weights_key)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict (:func:`read_checkpoint`); nothing is ever unpickled that is no tensor."""
    found = read_checkpoint(path)
    if found.network is not None:
        raise RobGIBError(f"{path} holds a network whole, not a state dict of tensors.")
    return found.weights


def _in_folder(folder: Path) -> Path:
    """The checkpoint in a folder as Hugging Face and others lay it out."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in (folder / f"{name}{_INDEX}", folder / name):
            if path.is_file():
                return path
    raise RobGIBError(
        f"{folder} is a folder without model.safetensors or pytorch_model.bin; name the checkpoint in it."
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_looks(path)
    try:
        return _sound(path, load_file(str(path)))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RobGIBError(f"{path} is not a whole safetensors file: {first_line(error)}.") from error


def _sharded(index: Path) -> dict[str, Tensor]:
    """The weights of several files beside their index, which maps each weight's name to its file."""
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"{index} is not an index of weights with a weight_map; fetch it again.") from error
    weights: dict[str, Tensor] = {}
    for name in check_parts(content, str(index)):
        if not (index.parent / name).is_file():
            raise RobGIBError(f"{index} names the file {name!r}, which is not beside it; fetch all parts.")
        weights |= read_checkpoint(index.parent / name).weights
    told = content["weight_map"]
    missing = [key for key in told if key not in weights]
    if missing:
        raise RobGIBError(
            f"{index} promises {missing[0]!r}, which is not in {told[missing[0]]}; fetch that file again."
        )
    return weights


def _unpickled(path: Path, allow_pickle: bool) -> Any:
    """What a pickled file holds; with stand-ins for what is no tensor, unless unpickling is allowed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols: what it cannot read it refuses anyway
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        first = error
    except Exception as error:
        raise RobGIBError(f"{path} is not a readable PyTorch file: {first_line(error)}.") from error
    try:
        return read_pickled(path)
    except RobGIBError:
        raise
    except Exception as error:
        reason = str(first).split("WeightsUnpickler error:")[-1].strip().splitlines()[0].rstrip(".")
        raise RobGIBError(
            f"{path} is no file of torch.save, and would have to be unpickled, which can run any code "
            f"({reason}); save `model.state_dict()` as safetensors or with torch.save instead."
        ) from error


_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "module")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_OTHERS = ("optim", "sched", "scaler", "hyper_parameters", "callbacks", "loops", "args", "config", "metrics")
_DEEPEST = 4


def _states(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The state dicts within what a file holds, each with the keys that lead to it."""
    if isinstance(content, StandIn):
        if isinstance(content.state, dict) and isinstance(content.state.get("_modules"), dict):
            held = _of_module(content)
            if held:
                yield path, held
            return
        content = content.entries
    if not isinstance(content, dict) or len(path) > _DEEPEST:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    inner = [(k, v) for k, v in content.items() if isinstance(k, str) and isinstance(v, dict | StandIn)]
    if any(t.ndim for t in tensors.values()) or (tensors and not inner):
        yield path, tensors
    order = (*_USUAL, *_AVERAGED)
    for key, value in sorted(inner, key=lambda item: order.index(item[0]) if item[0] in order else len(order)):
        if not any(word in key.lower() for word in _OTHERS):
            yield from _states(value, (*path, key))


def _of_module(module: StandIn, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a pickled network, whose code is not run, by what it had in its attributes."""
    state = module.state if isinstance(module.state, dict) else {}
    held: dict[str, Tensor] = {}
    skipped = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        of_kind = state.get(kind)
        for name, value in (of_kind if isinstance(of_kind, dict) else {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in skipped):
                held[f"{prefix}{name}"] = value
    modules = state.get("_modules")
    for name, inner in (modules if isinstance(modules, dict) else {}).items():
        if isinstance(inner, StandIn):
            held |= _of_module(inner, f"{prefix}{name}.")
    return held


def _chosen(path: Path, content: Any, weights_key: str | None) -> Checkpoint:
    """The state dict among those that a file holds."""
    found = {".".join(keys): state for keys, state in _states(content)}
    if weights_key is not None:
        if weights_key not in found:
            raise unknown_name(f"weights in {path}:", weights_key, [k for k in found if k])
        return Checkpoint(None, _sound(path, found[weights_key]), (f"its weights are those of {weights_key!r}",))
    if not found:
        what = type(content).source if isinstance(content, StandIn) else type(content).__name__
        held = (
            f"{what} with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) and content else what
        )
        raise RobGIBError(f"{path} holds {held}, not a plain state dict of tensors; save `model.state_dict()`.")
    if isinstance(content, dict) and found.get("") is not None and len(found) > 1 and len(found[""]) < len(content) / 2:
        del found[""]  # some tensor beside the state dicts
    key, state = next(iter(found.items()))
    notes = []
    others = [k for k in found if k != key and len(found[k]) >= len(state) / 2]
    if others:
        told = "the top" if not key else repr(key)
        notes.append(
            f"its weights are those of {told}; the file also holds {', '.join(map(repr, others[:3]))} (--weights-key)"
        )
    at: Any = content
    for part in key.split(".") if key and not isinstance(content, StandIn) else ():
        at = at.get(part) if isinstance(at, dict) else None
    pickled = at.source if isinstance(at, StandIn) else ""
    if pickled:
        notes.append(f"the file holds a network of the class {pickled!r}, of which only the weights were taken")
    return Checkpoint(None, _sound(path, state), tuple(notes), pickled)


def _sound(path: Path, state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """The state dict, once its tensors are seen to hold numbers as networks do."""
    for key, value in state.items():
        kind = (
            "a sparse tensor" if value.layout != torch.strided
            else "a quantised tensor" if value.is_quantized
            else "a tensor without content (meta)" if value.is_meta
            else "complex numbers" if value.is_complex()
            else ""
        )  # fmt: skip
        if kind:
            raise RobGIBError(f"{path} holds {kind}, {key!r}; save the weights as plain tensors of numbers.")
    if not state:
        raise RobGIBError(f"{path} holds no weights.")
    return dict(state)


_WRAPPERS = ("module", "_orig_mod")
"""Names that torch's wrappers put into keys: data parallel and averaged models; compiled ones."""
_BESIDE = ("criterion", "loss", "loss_fn", "metrics", "train_metrics", "val_metrics", "test_metrics", "n_averaged")
_COUNTS = ("total_ops", "total_params", "n_averaged", "num_batches_tracked")


def _matched(state: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], str]:
    """The state by the model's keys where a prefix or a wrapper's names stand between; what is left out; the prefix."""
    plain = {".".join(p for p in key.split(".") if p not in _WRAPPERS): key for key in own}
    tidy = {".".join(p for p in key.split(".") if p not in _WRAPPERS): key for key in state}
    firsts = {key.partition(".")[0] for key in plain}
    common = f"{firsts.pop()}." if len(firsts) == 1 and all("." in key for key in plain) else ""
    for wanted in dict.fromkeys(("", common)):
        short = {key.removeprefix(wanted): key for key in plain}
        counts = {key for key in short if key.rpartition(".")[2] == "num_batches_tracked"}
        needed = short.keys() - counts or short.keys()
        first = next(iter(needed)) if needed else ""
        prefixes = [key.removesuffix(first) for key in tidy if key == first or key.endswith(f".{first}")]
        for prefix in sorted(prefixes, key=len):
            inside = {key.removeprefix(prefix): key for key in tidy if key.startswith(prefix)}
            extra = [k for k in inside if k not in short and not _is_beside(k)]
            if extra or not needed <= inside.keys():
                continue
            found = {plain[short[k]]: state[tidy[inside[k]]] for k in short if k in inside}
            found |= {plain[short[k]]: own[plain[short[k]]] for k in counts - inside.keys()}
            used = {tidy[inside[k]] for k in short if k in inside}
            return found, [key for key in state if key not in used], prefix
    return state, [], ""


def _is_beside(key: str) -> bool:
    """Whether a key is of what stands beside a network: its loss, metrics, counts of operations."""
    return key.partition(".")[0] in _BESIDE or key.rpartition(".")[2] in _COUNTS


def load_into(model: nn.Module, state: dict[str, Tensor], source: str) -> tuple[str, ...]:
    """Load a state dict strictly, naming the first keys or shapes that do not fit.

    A prefix that the model's keys have in the file (``module.``, ``model.``, ``backbone.`` …), or that the file's lack,
    and the names of torch's wrappers may stand between them.

    Returns:
        What was taken off or left out, a sentence each.
    """
    own = model.state_dict()
    state, left_out, prefix = _matched(state, own)

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
    notes = [f"the prefix {prefix!r} was taken off its weights' names"] if prefix else []
    if left_out := [k for k in left_out if k.rpartition(".")[2] != "num_batches_tracked"]:
        notes.append(
            f"{len(left_out)} of the file's tensors were left out, being none of the network's: {some(left_out)}"
        )
    halves = {
        str(v.dtype).removeprefix("torch.")
        for k, v in state.items()
        if v.dtype != own[k].dtype and v.is_floating_point()
    }
    if halves:
        notes.append(f"its weights are {', '.join(sorted(halves))} in the file, and computed with in float32")
    model.load_state_dict(state)
    return tuple(notes)


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
