"""Architectures by name, and how a stranger's factory is found."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError, unknown_name
from robgib.models.bottleneck import variational_head

__all__ = ["ARCHITECTURES", "Normalize", "build", "register_architecture"]

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {}
"""Factories by name: ``factory(shape, classes, **options) -> nn.Module`` with logits (N, classes)."""


def register_architecture(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Enter a factory ``(shape: (C, H, W), classes: int, **options) -> nn.Module`` under ``name``."""

    def enter(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        ARCHITECTURES[name] = factory
        return factory

    return enter


class Normalize(nn.Module):
    """Per-channel ``(x - mean) / std`` as the first layer, so that attacks work in pixel scale."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return (x - self.mean) / self.std


def build(arch: str, shape: tuple[int, ...], classes: int, options: dict[str, Any] | None = None) -> nn.Module:
    """Build an untrained model.

    Args:
        arch: a registered name; ``torchvision:NAME`` or ``timm:NAME``, untrained, for images in [0, 1]; or
            ``package.module:factory`` (called with ``options`` alone).
        shape: one image, (C, H, W).
        classes: number of classes.
        options: keyword arguments of the factory; ``bottleneck``, for a registered name, is the number of units of a
            stochastic code before the classes (:class:`~robgib.models.bottleneck.VariationalHead`).

    Raises:
        RobGIBError: unknown name, an import that fails, options the factory does not take.
    """
    options = dict(options or {})
    library, _, name = arch.partition(":")
    if library in ("torchvision", "timm"):
        return _ported(library, name, shape, classes, options)
    bottleneck = options.pop("bottleneck", None) if arch in ARCHITECTURES else None
    if ":" in arch:
        factory, arguments = _import_factory(arch), ()
    elif arch in ARCHITECTURES:
        factory, arguments = ARCHITECTURES[arch], (shape, classes)  # type: ignore[assignment]
    else:
        raise unknown_name("architecture", arch, ARCHITECTURES)
    try:
        known = inspect.signature(factory).parameters
    except ValueError:  # a built-in without a signature
        known = None
    if known is not None and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        for key in options:
            if key not in known:
                raise unknown_name(f"option of architecture {arch!r}:", key, list(known)[len(arguments) :])
    try:
        model = factory(*arguments, **options)
    except RobGIBError:
        raise
    except Exception as error:
        raise RobGIBError(f"architecture {arch!r} does not build: {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise RobGIBError(f"architecture {arch!r} returned {type(model).__name__}, not a torch.nn.Module.")
    return model if bottleneck is None else variational_head(model, bottleneck, arch)


class Ported(nn.Module):
    """Another library's network, ``net``, behind normalisation; grey images are given to it as three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        # Not in the state dict, whose keys but for "net." are then the library's own.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        out: Tensor = self.net((x.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return out


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _ported(library: str, name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> nn.Module:
    """Build a network of torchvision's or timm's; ``mean`` and ``std`` among the options are the normalisation's."""
    mean, std = (options.pop(key, default) for key, default in zip(("mean", "std"), _IMAGENET, strict=True))
    if shape[0] not in (1, 3):
        raise RobGIBError(f"{library}:{name} takes images of 1 or 3 channels, not {shape[0]}.")
    if library == "torchvision":
        from robgib._torchvision import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        make = partial(torchvision.models.get_model, name, weights=None, num_classes=classes)
    else:
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise RobGIBError(f"timm is not installed ({error}); `pip install robgib[timm]` adds it.") from error
        known = timm.list_models()
        make = partial(timm.create_model, name, pretrained=False, num_classes=classes)
    if name not in known:
        raise unknown_name(f"{library} model", name, known)
    try:
        return Ported(make(**options), mean, std)
    except Exception as error:
        raise RobGIBError(f"{library}:{name} does not build: {type(error).__name__}: {error}.") from error


def _import_factory(arch: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = arch.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `--arch mynet:make` finds ./mynet.py, as `python -m` would
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RobGIBError(
            f"--arch {arch!r}: module {module_name!r} does not import ({type(error).__name__}: {error})."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise RobGIBError(f"--arch {arch!r}: module {module_name!r} has no callable {attribute!r}.")
    return factory
