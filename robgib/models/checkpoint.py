"""Checkpoints: write safetensors atomically; read foreign weights without running code of the file."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.files import read_json, write_file
from robgib.models.fitting import declared_normalizations, part_of, tidy
from robgib.models.normalization import Normalization
from robgib.models.programs import PICKLED_SUFFIXES, PROGRAM_SUFFIXES, is_program, read_program
from robgib.models.transformers_files import check_parts
from robgib.models.unpickle import StandIn, read_pickled
from robgib.reading import as_path

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "Checkpoint",
    "read_checkpoint",
    "read_record",
    "read_state",
    "save_checkpoint",
]

CHECKPOINT_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES, *PROGRAM_SUFFIXES)
_INDEX = ".index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        network: a network that needs no architecture, in eval mode; None if the file holds weights only.
        weights: a state dict (empty if there is a network).
        notes: how the file was read, one sentence each.
        pickled: the class of a pickled network of which only the weights were read.
        sets: every state dict in the file by its key, the usual names first; ``weights`` are those of the first, or of
            the requested one. :func:`~robgib.models.fit` finds the one that fits a network.
        wanted: key of the requested state dict.
        declared: the normalisations that the file describes beside its weights.
        check: compares the network's outputs with those of another reader of the same file, and returns notes.
    """

    network: nn.Module | None
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    pickled: str = ""
    sets: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    wanted: str | None = None
    declared: tuple[Normalization, ...] = ()
    check: Callable[[Tensor, Any], tuple[str, ...]] | None = None


def save_checkpoint(model: nn.Module, path: str | Path, record: dict[str, Any]) -> None:
    """Write the weights to ``path`` (safetensors) and the metadata record to ``path`` with ``.json``."""
    from safetensors.torch import save

    path = as_path(path, "path")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_file(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    write_file(path, save(state))


def read_record(path: str | Path) -> dict[str, Any] | None:
    """Return the metadata record beside a checkpoint, or None when there is none."""
    path = as_path(path, "path")
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        record = read_json(beside)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"the record {beside} is not readable JSON: {error}; correct or remove it.") from error
    return record if isinstance(record, dict) else None


def _check_looks(path: Path) -> None:
    """Raise if the beginning of a file shows that it is not a checkpoint.

    Raises:
        RobGIBError: it is empty, or a web page or text from a failed download.
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
            f"{path} is a web page, not a checkpoint: the download returned an error page; fetch the file again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise RobGIBError(f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull`.")


def read_checkpoint(
    path: str | Path, *, allow_pickle: bool = False, weights_key: str | None = None, allow_code: bool = False
) -> Checkpoint:
    """Read a checkpoint of any kind: a complete network, or a state dict that needs an architecture.

    Args:
        path: ``.safetensors``; ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.pth.tar`` (a state dict, a training
            script's file that holds one, or TorchScript); the index of sharded weights (``….index.json``); ``.ts`` or
            ``.torchscript``, ``.pt2`` (torch.export), ``.onnx``; or a folder that holds one of the first kinds.
        allow_pickle: unpickle a file that holds a pickled network. That can run any code.
        weights_key: one of several sets of weights in a file: the key of a state dict, such as ``state_dict_ema``, a
            prefix of its keys, such as ``teacher``, or both joined by a dot.
        allow_code: read TorchScript and torch.export programs whatever they hold. That can run any code.

    Raises:
        RobGIBError: the file is missing, damaged, of another kind, or holds no weights.
    """
    path = as_path(path, "path")
    if is_program(path):
        program, check = read_program(path, allow_code=allow_code)
        return Checkpoint(program, {}, check=check)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise RobGIBError(f"checkpoint {str(path)!r} does not exist.")
    if not path.is_file():
        raise RobGIBError(f"checkpoint {str(path)!r} is not a file.")
    if path.name.endswith(_INDEX):
        return _of_sets(path, {"": _sharded(path)}, weights_key, _declared_beside(path))
    if path.suffix == ".safetensors":
        weights, metadata = _safetensors(path)
        return _of_sets(path, {"": weights}, weights_key, [*declared_normalizations(metadata), *_declared_beside(path)])
    if path.suffix not in PICKLED_SUFFIXES:
        raise RobGIBError(
            f"checkpoint {str(path)!r} has an unknown ending {path.suffix!r}; use {', '.join(CHECKPOINT_SUFFIXES)}."
        )
    _check_looks(path)
    content = _unpickled(path, allow_pickle)
    if isinstance(content, nn.Module):
        return Checkpoint(content.eval(), {})
    if allow_pickle and isinstance(content, dict):
        network = _network_in(path, content, weights_key)
        if network is not None:
            return Checkpoint(network.eval(), {})
    return _chosen(path, content, weights_key)


def _network_in(path: Path, content: dict[Any, Any], weights_key: str | None) -> nn.Module | None:
    """The unpickled network among a file's objects; None if there is none, or if the key names something else."""
    named = {str(k): v for k, v in content.items() if isinstance(v, nn.Module)}
    if weights_key is not None:
        return named.get(weights_key)
    networks = {
        k: v for k, v in named.items() if not any(word in k.lower() for word in (*_OTHERS, "criterion", "loss"))
    }
    if len(networks) > 1:
        raise RobGIBError(
            f"{path} holds {len(networks)} networks, {', '.join(map(repr, list(networks)[:3]))}; choose one with "
            f"--weights-key {next(iter(networks))} (in Python weights_key={next(iter(networks))!r})."
        )
    return next(iter(networks.values()), None)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a file's only state dict (:func:`read_checkpoint`); only tensors are ever unpickled."""
    path = as_path(path, "path")
    checkpoint = read_checkpoint(path)
    if len(checkpoint.sets) > 1:
        raise RobGIBError(
            f"{path} holds several state dicts, {', '.join(map(repr, checkpoint.sets))}; "
            "save one of them to its own file."
        )
    if checkpoint.network is not None:
        raise RobGIBError(f"{path} holds a complete network, not a state dict of tensors.")
    return checkpoint.weights


def _in_folder(folder: Path) -> Path:
    """Return the checkpoint in a folder with the layout of Hugging Face and others."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in (folder / f"{name}{_INDEX}", folder / name):
            if path.is_file():
                return path
    raise RobGIBError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin; give the path of a checkpoint file."
    )


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file; texts of the metadata may be JSON."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    _check_looks(path)
    try:
        with safe_open(str(path), "pt") as file:
            metadata = {k: _plain(v) for k, v in (file.metadata() or {}).items()}
        return _sound(path, load_file(str(path))), metadata
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RobGIBError(f"{path} is not a complete safetensors file: {first_line(error)}.") from error


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_CONFIGURATIONS = ("config.json", "preprocessor_config.json")


def _declared_beside(path: Path) -> list[Normalization]:
    """Return the configurations of timm and transformers in the files beside the weights."""
    if path.name.removesuffix(_INDEX) not in ("model.safetensors", "pytorch_model.bin"):
        return []
    declared: list[Normalization] = []
    for name in _CONFIGURATIONS:
        if (path.parent / name).is_file():
            try:
                declared += declared_normalizations(read_json(path.parent / name))
            except (OSError, ValueError, RecursionError):
                continue  # a file of another library, which is not needed
    return declared


def _sharded(index: Path) -> dict[str, Tensor]:
    """Return the weights of several files; their index, beside them, maps the name of each weight to its file."""
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise RobGIBError(f"{index} is not an index of weights with a weight_map; download it again.") from error
    weights: dict[str, Tensor] = {}
    for name in check_parts(content, str(index)):
        if not (index.parent / name).is_file():
            raise RobGIBError(f"{index} names the file {name!r}, which is not beside it; download all parts.")
        weights |= read_checkpoint(index.parent / name).weights
    files = content["weight_map"]
    missing = [key for key in files if key not in weights]
    if missing:
        raise RobGIBError(
            f"{index} lists {missing[0]!r} in {files[missing[0]]}, but it is not there; fetch that file again."
        )
    return weights


def _unpickled(path: Path, allow_pickle: bool) -> Any:
    """Return the content of a pickled file, with stand-ins for other objects unless unpickling is allowed."""
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
            f"{path} holds more than weights and would have to be unpickled, which can run any code ({reason}); save "
            "`model.state_dict()` as safetensors or with torch.save."
        ) from error


_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "module")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_OTHERS = ("optim", "sched", "scaler", "hyper_parameters", "callbacks", "loops", "args", "config", "metrics")
_DEEPEST = 4


def _states(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the state dicts in the content of a file, each with its path of keys."""
    if isinstance(content, StandIn):
        if isinstance(content.state, dict) and isinstance(content.state.get("_modules"), dict):
            state = _of_module(content)
            if state:
                yield path, state
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
    """Return the state dict of a pickled network from its attributes, without running its code."""
    state = module.state if isinstance(module.state, dict) else {}
    tensors: dict[str, Tensor] = {}
    skipped = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        of_kind = state.get(kind)
        for name, value in (of_kind if isinstance(of_kind, dict) else {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in skipped):
                tensors[f"{prefix}{name}"] = value
    modules = state.get("_modules")
    for name, inner in (modules if isinstance(modules, dict) else {}).items():
        if isinstance(inner, StandIn):
            tensors |= _of_module(inner, f"{prefix}{name}.")
    return tensors


def _chosen(path: Path, content: Any, weights_key: str | None) -> Checkpoint:
    """Return the content of a file of state dicts or of pickled networks."""
    states = {".".join(keys): state for keys, state in _states(content)}
    if not states:
        what = type(content).source if isinstance(content, StandIn) else type(content).__name__
        kind = (
            f"{what} with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) and content else what
        )
        raise RobGIBError(f"{path} holds {kind}, not a plain state dict of tensors; save `model.state_dict()`.")
    if (
        isinstance(content, dict)
        and states.get("") is not None
        and len(states) > 1
        and len(states[""]) < len(content) / 2
    ):
        del states[""]  # some tensor beside the state dicts
    declared = [*declared_normalizations(_configurations(content)), *_declared_beside(path)]
    weights = {k: state for k, state in states.items() if not _only_normalizes(state)}
    chosen = _of_sets(path, weights or states, weights_key, declared)
    at: Any = content
    key = next(iter(chosen.sets))
    for part in key.split(".") if key and not isinstance(content, StandIn) else ():
        at = at.get(part) if isinstance(at, dict) else None
    pickled = at.source if isinstance(at, StandIn) else ""
    notes = (
        (f"the file holds a pickled network of the class {pickled!r}; only its weights were read",) if pickled else ()
    )
    return replace(chosen, pickled=pickled, notes=notes)


def _only_normalizes(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict contains only the mean and standard deviation of a normalisation."""
    return len(state) == 2 and bool(declared_normalizations(state))


def _configurations(content: Any, deep: int = _DEEPEST) -> Any:
    """Return the numbers, text and lists of nested mappings (also an argument parser's), not weights and networks."""
    if isinstance(content, StandIn) and content.source.rpartition(".")[2] in ("Namespace", "SimpleNamespace"):
        content = content.state
    if isinstance(content, dict) and deep:
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        kept = content if _only_normalizes(tensors) else {k: v for k, v in content.items() if k not in tensors}
        return {k: _configurations(v, deep - 1) for k, v in kept.items()}
    return content if isinstance(content, int | float | str | list | tuple | Tensor) else None


def _of_sets(
    path: Path, sets: dict[str, dict[str, Tensor]], weights_key: str | None, declared: Sequence[Normalization] = ()
) -> Checkpoint:
    """Return the sets of weights of a file, or those that a key selects.

    Raises:
        RobGIBError: the key selects nothing.
    """
    if weights_key is None:
        weights = _sound(path, next(iter(sets.values())))
        return Checkpoint(None, weights, sets=_all_sound(path, sets), declared=tuple(declared))
    inside = {key: _below(state, key, weights_key) for key, state in sets.items()}
    matching = {key: state for key, state in inside.items() if state}
    if not matching:
        prefixes = {tidy(k).partition(".")[0] for state in sets.values() for k in state if "." in tidy(k)}
        raise unknown_name(f"weights in {path}:", weights_key, [k for k in sets if k] or sorted(prefixes))
    matching = {k: v for k, v in matching.items() if k == weights_key} or matching
    weights = _sound(path, next(iter(matching.values())))
    sets = _all_sound(path, {**{k: sets[k] for k in matching}, **sets})
    return Checkpoint(None, weights, sets=sets, wanted=weights_key, declared=tuple(declared))


def _all_sound(path: Path, sets: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The sets of weights that may fit a network."""
    kept = {}
    for key, state in sets.items():
        with suppress(RobGIBError):
            kept[key] = _sound(path, state)
    return kept


def _below(state: dict[str, Tensor], key: str, wanted: str) -> dict[str, Tensor]:
    """Return the part of the state dict at a key that ``wanted`` names: all of it, or the part with a prefix."""
    if wanted == key or (wanted == "." and not key):
        return state
    return part_of(state, wanted.removeprefix(f"{key}.") if key else wanted)


def _sound(path: Path, state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Return the state dict after a check that its tensors are dense and real."""
    for key, value in state.items():
        kind = (
            "a sparse tensor" if value.layout != torch.strided
            else "a quantized tensor" if value.is_quantized
            else "a meta tensor without values" if value.is_meta
            else "complex numbers" if value.is_complex()
            else ""
        )  # fmt: skip
        if kind:
            raise RobGIBError(f"{path} holds {kind}, {key!r}; save the weights as dense tensors of real numbers.")
    if not state:
        raise RobGIBError(f"{path} holds no weights.")
    return dict(state)


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
