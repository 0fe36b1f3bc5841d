"""Networks that libraries hold trained: torchvision's, timm's, and image classifiers of Hugging Face's transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robgib._torchvision import load_torchvision
from robgib.errors import RobGIBError, first_line, unknown_name
from robgib.files import read_json
from robgib.models.checkpoint import read_state
from robgib.models.fitting import load_into
from robgib.models.normalization import IMAGENET, Ported
from robgib.models.registry import load_timm

__all__ = [
    "PRETRAINED",
    "Pretrained",
    "is_pretrained",
    "is_transformers_folder",
    "load_pretrained",
]


@dataclass(frozen=True)
class Pretrained:
    """A trained network with what its makers say of its input and its classes.

    Attributes:
        model: from images (N, 3, H, W) in [0, 1] to logits, in eval mode; its normalisation is inside.
        classes: the names that each class goes by, the last to be shown; none where they are not told.
        resize: the shorter side that pictures are resized to, (height, width), or None.
        crop: height and width of the middle that is kept, or None.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        source: which weights they are.
    """

    model: nn.Module
    classes: tuple[tuple[str, ...], ...]
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    source: str


def load_pretrained(name: str) -> Pretrained:
    """Load a trained network.

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
    told = weights.transforms()
    made = Ported(net.eval(), told.mean, told.std).eval()
    classes = tuple((category,) for category in weights.meta["categories"])
    how = str(getattr(told.interpolation, "value", told.interpolation))
    source = f"torchvision's {weights}"
    return Pretrained(made, classes, int(told.resize_size[0]), _pair(told.crop_size), how, source)


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
    told = timm.data.resolve_model_data_config(net)
    height, width = told["input_size"][1:]
    share = float(told.get("crop_pct") or 1.0)
    squashed = told.get("crop_mode") == "squash"
    resize = (int(height / share), int(width / share)) if squashed else int(min(height, width) / share)
    labels = net.pretrained_cfg.get("label_names")
    classes = tuple((str(label),) for label in labels) if labels else ()
    if not classes and net.num_classes == 1000 and "in1k" in str(net.pretrained_cfg.get("tag")):
        classes = tuple((c,) for c in load_torchvision().models._meta._IMAGENET_CATEGORIES)
    made = Ported(net, told["mean"], told["std"]).eval()
    how = str(told.get("interpolation", "bilinear"))
    tag = net.pretrained_cfg.get("tag") or "its default weights"
    return Pretrained(made, classes, resize, (height, width), how, f"timm's {name}, {tag}")


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder holds a network as Hugging Face's transformers write it."""
    try:
        told = read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and ("model_type" in told or "architectures" in told)


class Transformer(nn.Module):
    """An image classifier of transformers, ``net``, whose logits are its answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.net(x).logits
        return logits


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


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
    where, mend = (str(folder), "fetch its files again") if local else (name, "download it, and give hf:FOLDER")
    logging = importlib.import_module("transformers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # Neither code of the hub's nor anything pickled is run.
        net, told = _fetched(
            f"hf:{name}",
            mend,
            lambda: library.AutoModelForImageClassification.from_pretrained(
                where, trust_remote_code=False, local_files_only=local, output_loading_info=True
            ),
        )
        config = _fetched(f"hf:{name}", mend, lambda: _processor(library, where, local))
    finally:
        logging.set_verbosity(before)
    lacking = sorted(told.get("missing_keys", ()))
    if lacking:
        raise RobGIBError(f"hf:{name} holds no weights for {lacking[0]!r}: it is no trained classifier of images.")
    labels = getattr(net.config, "id2label", {}) or {}
    classes = (
        tuple(_names(str(labels[i])) for i in range(len(labels))) if set(labels) == set(range(len(labels))) else ()
    )
    mean: Sequence[float]
    std: Sequence[float]
    mean, std = IMAGENET
    if config:
        plain = config.get("do_normalize", True) is False
        mean, std = ((0.0,), (1.0,)) if plain else (config.get("image_mean", mean), config.get("image_std", std))
    made = Ported(Transformer(net.eval()), mean, std).eval()
    resize, crop = _sizes(config, net.config)
    how = _RESAMPLE.get(int(config.get("resample", 2)), "bilinear")
    return Pretrained(made, classes, resize, crop, how, f"Hugging Face's {name}" if not local else f"the folder {name}")


def _names(label: str) -> tuple[str, ...]:
    """The names that a class goes by: of ``tench, Tinca tinca`` both, and the whole."""
    parts = [part.strip() for part in label.split(",")]
    return (*parts, label) if len(parts) > 1 else (label,)


def _processor(library: Any, where: str, local: bool) -> Mapping[str, Any]:
    """What ``preprocessor_config.json`` says, where there is one."""
    cached = importlib.import_module("transformers.utils").cached_file
    path = cached(
        where,
        "preprocessor_config.json",
        local_files_only=local,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        return {}
    told = read_json(Path(path))
    return told if isinstance(told, dict) else {}


def _sizes(config: Mapping[str, Any], network: Any) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """The sides that pictures are resized and cropped to, as processors write them in several ways."""
    size, crop = config.get("size"), config.get("crop_size")
    share = config.get("crop_pct")
    cut = _side(crop) if crop is not None and config.get("do_center_crop", True) else None
    if size is None:
        side = getattr(network, "image_size", None)
        both = _side(side) if side is not None else None
        return both, None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        shorter = int(size["shortest_edge"])
        if share and cut is None:  # ConvNeXt's
            return (int(shorter / share), (shorter, shorter)) if shorter < 384 else ((shorter, shorter), None)
        return shorter, cut
    return _side(size), cut


def _side(value: Any) -> tuple[int, int]:
    if isinstance(value, Mapping):
        return int(value.get("height", value.get("shortest_edge", 0))), int(value.get("width", value.get("height", 0)))
    return _pair(value)


def _pair(value: Any) -> tuple[int, int]:
    """A side or two as height and width."""
    if isinstance(value, list | tuple):
        return (int(value[0]), int(value[-1]))
    return int(value), int(value)


def _fetched(name: str, mend: str, load: Callable[[], Any]) -> Any:
    """What a library loads or downloads, its failure said in a sentence."""
    try:
        return load()
    except RobGIBError:
        raise
    except (Exception, SystemExit) as error:
        raise RobGIBError(
            f"{name} could not be loaded ({type(error).__name__}: {first_line(error)[:200]}); {mend}."  # type: ignore[arg-type]
        ) from error


PRETRAINED: Mapping[str, Callable[[str], Pretrained]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _transformers,
}
"""Where trained networks come from, by the word before the colon of their names."""


def is_pretrained(name: str) -> bool:
    """Whether a model's name is that of a network which a library holds trained, by the word before its colon."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in PRETRAINED
