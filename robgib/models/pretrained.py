"""Pretrained networks of torchvision, timm and Hugging Face's transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib._torchvision import load_torchvision
from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.files import read_json
from robgib.models.checkpoint import read_state
from robgib.models.fitting import load_into, unused_tensors
from robgib.models.normalization import Ported
from robgib.models.registry import load_timm
from robgib.models.transformers_files import INDEXES, Processing, check_config, check_parts, read_processing

__all__ = [
    "PRETRAINED",
    "Pretrained",
    "is_pretrained",
    "is_transformers_folder",
    "load_pretrained",
]


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network with its authors' description of input and classes.

    Attributes:
        model: from images (N, 3, H, W) in [0, 1] to logits, in eval mode; its normalisation is inside.
        classes: the names that each class goes by, the last to be shown; none where they are not known.
        resize: the shorter side that pictures are resized to, (height, width), or None.
        crop: height and width of the middle that is kept, or None.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        source: which weights they are.
        left_out: what the files hold that is not in the network, a sentence each.
        assumed: a sentence where the files do not state the normalisation, and ImageNet's was taken.
    """

    model: nn.Module
    classes: tuple[tuple[str, ...], ...]
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    source: str
    left_out: tuple[str, ...] = ()
    assumed: str = ""


def load_pretrained(name: str) -> Pretrained:
    """Load a pretrained network.

    Args:
        name: ``torchvision:NAME`` or ``torchvision:NAME/WEIGHTS``, ``timm:NAME``, ``hf:ORG/NAME``, or ``hf:`` and a
            folder with a ``config.json``. Weights that are not on this machine are downloaded.

    Raises:
        RobGIBError: an unknown name, a library that is not installed, or weights that cannot be had.
    """
    kind, _, rest = name.partition(":")
    return PRETRAINED[kind](rest)


def _torchvision(name: str) -> Pretrained:
    torchvision = load_torchvision()
    name, _, wanted = name.partition("/")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    all_weights = torchvision.models.get_model_weights(name)
    names = [w.name for w in all_weights]
    if wanted and wanted not in (*names, "DEFAULT"):
        raise unknown_name(f"weights of torchvision:{name}:", wanted, names)
    if not names:
        raise RobGIBError(f"torchvision has no trained weights of {name!r}; choose another network.")
    weights = all_weights[wanted] if wanted else all_weights.DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        promised = file.stem.rpartition("-")[2]  # the beginning of the digest

        def fetch() -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), promised, progress=False)

        _fetched(f"torchvision:{name}", f"put {weights.url} into {file.parent}", fetch)
    options = {} if name not in ("googlenet", "inception_v3") else {"init_weights": False, "aux_logits": True}
    net = torchvision.models.get_model(name, weights=None, num_classes=len(weights.meta["categories"]), **options)
    load_into(net, read_state(file), str(file))
    transforms = weights.transforms()
    made = Ported(net.eval(), transforms.mean, transforms.std).eval()
    classes = tuple((category,) for category in weights.meta["categories"])
    how = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    source = f"torchvision's {weights}"
    return Pretrained(made, classes, int(transforms.resize_size[0]), _pair(transforms.crop_size), how, source)


def _timm(name: str) -> Pretrained:
    timm = load_timm()
    known = timm.list_models(pretrained=True)
    if name not in known and name.partition(".")[0] not in timm.list_models():
        raise unknown_name("timm model", name, known)
    net = _fetched(
        f"timm:{name}",
        f"give a file of its weights with --arch timm:{name.partition('.')[0]}",
        lambda: timm.create_model(name, pretrained=True),
    ).eval()
    data_config = timm.data.resolve_model_data_config(net)
    done = _timm_processing(data_config)
    labels = net.pretrained_cfg.get("label_names")
    classes = tuple((str(label),) for label in labels) if labels else ()
    if not classes and net.num_classes == 1000 and "in1k" in str(net.pretrained_cfg.get("tag")):
        classes = tuple((c,) for c in load_torchvision().models._meta._IMAGENET_CATEGORIES)
    made = Ported(net, done.mean, done.std).eval()
    tag = net.pretrained_cfg.get("tag") or "its default weights"
    return Pretrained(made, classes, done.resize, done.crop, done.interpolation, f"timm's {name}, {tag}")


def _timm_processing(data_config: Mapping[str, Any]) -> Processing:
    """Return the image processing of a timm configuration."""
    height, width = data_config["input_size"][1:]
    share = float(data_config.get("crop_pct") or 1.0)
    squashed = data_config.get("crop_mode") == "squash"
    resize = (int(height / share), int(width / share)) if squashed else int(min(height, width) / share)
    mean, std = tuple(map(float, data_config["mean"])), tuple(map(float, data_config["std"]))
    return Processing(mean, std, resize, (height, width), str(data_config.get("interpolation", "bilinear")))


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder holds a network in the format of Hugging Face's transformers."""
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


class Transformer(nn.Module):
    """An image classifier of transformers, ``net``, that returns its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.net(x).logits
        return logits


def _transformers(name: str) -> Pretrained:
    load_torchvision()
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise RobGIBError(f'transformers is not installed ({error}); `pip install "robgib[hf]"` adds it.') from error
    folder = Path(name)
    local = folder.is_dir()
    if local and not is_transformers_folder(folder):
        raise RobGIBError(f"{folder} has no config.json of a transformers model; give a folder that has one.")
    where, mend = (str(folder), "download its files again") if local else (name, "download it, and give hf:FOLDER")
    logging = importlib.import_module("transformers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        beside = partial(_beside, where, local)
        _fetched(f"hf:{name}", mend, lambda: _check_files(beside, name))
        net, loading = _fetched(f"hf:{name}", mend, lambda: _classifier(library, where, local))
        config = _fetched(f"hf:{name}", mend, lambda: beside("preprocessor_config.json", _ABSENT))
    finally:
        logging.set_verbosity(before)
    left_out = _unused(net, loading, f"hf:{name}")
    labels = getattr(net.config, "id2label", {}) or {}
    classes = (
        tuple(_names(str(labels[i])) for i in range(len(labels))) if set(labels) == set(range(len(labels))) else ()
    )
    done = _fetched(f"hf:{name}", mend, lambda: _processing(net, {} if config is _ABSENT else config, name))
    made = Ported(Transformer(net.eval()), done.mean, done.std).eval()
    source = f"Hugging Face's {name}" if not local else f"the folder {name}"
    file = "it has no preprocessor_config.json" if config is _ABSENT else "its files do not state it"
    assumed = f"the normalisation of images is assumed to be ImageNet's, since {file} (--normalize states another)"
    return Pretrained(
        made, classes, done.resize, done.crop, done.interpolation, source, left_out, assumed if done.assumed else ""
    )


def _unused(net: nn.Module, loading: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a sentence on the weights of the files that the network lacks; none if it uses all.

    Args:
        net: the loaded network.
        loading: transformers' report of its loading.
        name: of the network, for the messages.

    Raises:
        RobGIBError: weights of the network are missing or of another shape, or it has no classifier.
    """
    mend = "; correct config.json, or download its files again"
    for key, in_file, in_network in sorted(loading.get("mismatched_keys", ())):
        raise RobGIBError(
            f"{name}: its config.json and its weights do not fit: {key!r} has the shape {tuple(in_file)} in the file "
            f"and {tuple(in_network)} in the network{mend}."
        )
    lacking = sorted(loading.get("missing_keys", ()))
    if lacking:
        raise RobGIBError(
            f"{name} holds no weights for {lacking[0]!r}: it is not a trained image classifier; choose one that is."
        )
    unused = sorted(loading.get("unexpected_keys", ()))
    modules = dict(net.named_modules())
    body = getattr(net, "base_model_prefix", "")
    for key in unused:
        part = key.partition(".")[0]
        if part != body and part in modules and not any(True for _ in modules[part].parameters()):
            raise RobGIBError(f"{name}: its config.json leaves out the trained classifier ({key!r}){mend}.")
    labels: Any = getattr(getattr(net, "config", None), "num_labels", None)
    if isinstance(labels, int) and labels < 1:
        raise RobGIBError(f"{name}: its config.json describes {labels} classes{mend}.")
    return unused_tensors(unused, net.state_dict())


def _classifier(library: Any, where: str, local: bool) -> Any:
    """Return the network and transformers' report of its loading; no pickle and no code of the hub is run.

    Attention is computed by torch's own operators, whatever the files ask for.
    """
    options = {"trust_remote_code": False, "local_files_only": local}
    config = library.AutoConfig.from_pretrained(where, **options)
    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))):
        if part is not None:
            part._attn_implementation = "eager"
    return library.AutoModelForImageClassification.from_pretrained(
        where,
        config=config,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused, with their names
        **options,
    )


def _processing(net: Any, config: Any, name: str) -> Processing:
    """Return the image processing; for timm's networks the network's own configuration describes it."""
    if net.config.model_type == "timm_wrapper":
        resolve = load_timm().data.resolve_data_config
        stated = dict(net.config.pretrained_cfg or {})
        done = _timm_processing(resolve(pretrained_cfg=stated, model=net.timm_model))
        return replace(done, assumed=not {"mean", "std"} <= stated.keys())
    return read_processing(config, getattr(net.config, "image_size", None), f"hf:{name}")


def _names(label: str) -> tuple[str, ...]:
    """Return all names of a class: of ``tench, Tinca tinca`` both, and the whole text."""
    parts = [part.strip() for part in label.split(",")]
    return (*parts, label) if len(parts) > 1 else (label,)


_ABSENT = object()


def _beside(where: str, local: bool, file: str, absent: Any) -> Any:
    """Return the content of a network's JSON file, or ``absent`` if there is none."""
    cached = importlib.import_module("transformers.utils").cached_file
    path = cached(where, file, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    return absent if path is None else read_json(Path(path))


def _check_files(beside: Callable[..., Any], name: str) -> None:
    """Raise if a network's file makes the library use more than weights."""
    config = beside("config.json", _ABSENT)
    if config is not _ABSENT:
        check_config(config, f"hf:{name}")
    if beside("adapter_config.json", _ABSENT) is not _ABSENT:
        raise RobGIBError(
            f"hf:{name} holds an adapter of another network (adapter_config.json), which RobGIB does not fetch; "
            "choose a complete network."
        )
    for file in INDEXES:
        index = beside(file, _ABSENT)
        if index is not _ABSENT:
            check_parts(index, f"{file} of hf:{name}")


def _pair(value: Any) -> tuple[int, int]:
    """Return one or two sides as height and width."""
    if isinstance(value, list | tuple):
        return (int(value[0]), int(value[-1]))
    return int(value), int(value)


def _fetched(name: str, mend: str, load: Callable[[], Any]) -> Any:
    """Call a library's loader; report its failure in one sentence."""
    try:
        return load()
    except RobGIBError:
        raise
    except (Exception, SystemExit) as error:
        raise RobGIBError(
            f"{name} could not be loaded ({type(error).__name__}: {first_line(error)[:200]}); {mend}."
        ) from error


PRETRAINED: Mapping[str, Callable[[str], Pretrained]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _transformers,
}
"""Where trained networks come from, by the word before the colon of their names."""


def is_pretrained(name: str) -> bool:
    """Whether a model's name is that of a library's pretrained network, by the prefix before the colon."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in PRETRAINED
