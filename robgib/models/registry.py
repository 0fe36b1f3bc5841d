"""Architectures by name, and users' own factories."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from robgib._torchvision import load_torchvision
from robgib.errors import RobGIBError, RobGIBWarning, first_line, unknown_name
from robgib.models.bottleneck import variational_head
from robgib.models.normalization import IMAGENET, Ported
from robgib.models.state import Settings
from robgib.registry import Registry

__all__ = [
    "ARCHITECTURES",
    "build",
    "check_architecture",
    "check_file_architecture",
    "library_name",
    "load_timm",
    "register_architecture",
    "runs_code",
]

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry(
    "architecture", group="robgib.models", valid=callable, wanted="a function that builds a network"
)
"""Factories by name: ``factory(shape, classes, **options) -> nn.Module`` with logits (N, classes)."""


def register_architecture(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register a factory ``(shape: (C, H, W), classes: int, **options) -> nn.Module`` under ``name``."""
    return ARCHITECTURES.register(name)


_LIBRARIES = ("torchvision", "timm")


def runs_code(arch: str) -> bool:
    """Whether building ``arch`` imports and calls what it names: ``package.module:factory``."""
    return ":" in arch and arch not in ARCHITECTURES and arch.partition(":")[0] not in _LIBRARIES


def check_file_architecture(arch: str, options: dict[str, Any], file: str, allow_code: bool = False) -> None:
    """Raise unless an architecture that a file names can be built without running code that the file chooses.

    Args:
        arch: as for :func:`build`. :func:`build` rejects an unknown name.
        options: the factory's keyword arguments, as the file gives them.
        file: that names it, for the message.
        allow_code: whether ``package.module:factory`` may be imported and called all the same.

    Raises:
        RobGIBError: it is ``package.module:factory`` and that is not allowed, or an option would fetch weights.
    """
    if runs_code(arch) and not allow_code:
        raise RobGIBError(
            f"{file} names the architecture {arch!r}. Building it imports and runs code: give --allow-code "
            "(allow_code=True) if you trust whoever made the file."
        )
    if arch.partition(":")[0] in _LIBRARIES:
        _check_options(arch, options, f"{file}: ")


def check_architecture(arch: str) -> None:
    """Raise unless ``arch`` names an architecture, as :func:`build` takes it; the module of a factory is imported.

    It is for a name that a person gave; one from a file goes through :func:`check_file_architecture`.

    Raises:
        RobGIBError: an unknown name, or an import that fails.
    """
    library, colon, name = arch.partition(":")
    if arch in ARCHITECTURES:
        return
    if library in _LIBRARIES:
        _check_library(library, name)
    elif colon:
        _import_factory(arch)
    else:
        raise unknown_name("architecture", arch, ARCHITECTURES, meant=library_name(arch))


def library_name(name: str) -> str | None:
    """Return ``torchvision:NAME`` if torchvision has a network of that name.

    >>> library_name("resnet18")
    'torchvision:resnet18'
    """
    models = load_torchvision().models
    return f"torchvision:{name}" if name in models.list_models(module=models) else None


def _check_library(library: str, name: str) -> None:
    if library == "torchvision":
        models = load_torchvision().models
        known = models.list_models(module=models)
    else:
        known = load_timm().list_models()
    if name not in known:
        raise unknown_name(f"{library} model", name, known)


def build(
    arch: str,
    shape: tuple[int, ...],
    classes: int,
    options: dict[str, Any] | None = None,
    *,
    allow_code: bool = False,
) -> nn.Module:
    """Build an untrained model.

    Args:
        arch: a registered name; ``torchvision:NAME`` or ``timm:NAME``, untrained, for images in [0, 1]; or
            ``package.module:factory`` (called with ``options`` alone).
        shape: one image, (C, H, W).
        classes: number of classes.
        options: keyword arguments of the factory; ``bottleneck``, for a registered name, is the number of units of a
            stochastic code before the classes (:class:`~robgib.models.bottleneck.VariationalHead`).
        allow_code: import and call what ``package.module:factory`` names. Leave it out for a name from a file.

    Raises:
        RobGIBError: unknown name, code that is not allowed, an import that fails, options the factory does not take.
    """
    options = dict(options or {})
    if runs_code(arch) and not allow_code:
        raise RobGIBError(
            f"architecture {arch!r} imports and runs code; give --allow-code (allow_code=True) to allow it."
        )
    library, _, name = arch.partition(":")
    if arch not in ARCHITECTURES and library in _LIBRARIES:
        return _ported(library, name, shape, classes, options)
    bottleneck = options.pop("bottleneck", None) if arch in ARCHITECTURES else None
    if arch in ARCHITECTURES:
        factory, arguments = ARCHITECTURES[arch], (shape, classes)
    elif ":" in arch:
        factory, arguments = _import_factory(arch), ()  # type: ignore[assignment]
    else:
        raise unknown_name("architecture", arch, ARCHITECTURES, meant=library_name(arch))
    try:
        known = inspect.signature(factory).parameters
    except ValueError:  # a built-in without a signature
        known = None
    if known is not None and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        for key in options:
            if key not in known:
                raise unknown_name(f"option of architecture {arch!r}:", key, list(known)[len(arguments) :])
    try:
        with _settings_kept(f"architecture {arch!r}"):
            model = factory(*arguments, **options)
    except RobGIBError:
        raise
    except (Exception, SystemExit) as error:
        raise RobGIBError(
            f"architecture {arch!r} does not build: {type(error).__name__}: {first_line(error)}."
        ) from error
    if not isinstance(model, nn.Module):
        raise RobGIBError(f"architecture {arch!r} returned {type(model).__name__}, not a torch.nn.Module.")
    return model if bottleneck is None else variational_head(model, bottleneck, arch)


@contextmanager
def _settings_kept(who: str) -> Iterator[None]:
    """Restore the settings of the process that the code of a network changes, and warn of it."""
    before = Settings()
    try:
        yield
    finally:
        changed = before.changed()
        before.restore()
    if changed:
        warnings.warn(
            f"{who} changes settings of the process ({', '.join(changed)}): they are restored.",
            RobGIBWarning,
            stacklevel=4,
        )


_FETCHING = ("checkpoint_path", "cache_dir")


def _check_options(arch: str, options: dict[str, Any], where: str = "") -> None:
    """Refuse the libraries' options that download or unpickle weights: the networks are untrained."""
    for key in map(str, options):
        if key.startswith(("pretrained", "weights")) or key in _FETCHING:
            raise RobGIBError(
                f"{where}architecture {arch!r} is built untrained, but option {key!r} fetches weights; remove it and "
                "give the weights as a checkpoint."
            )


def _ported(library: str, name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> nn.Module:
    """Build a network of torchvision's or timm's; ``mean`` and ``std`` among the options are the normalisation's.

    Without them, timm's ``pretrained_cfg`` of the network determines it, or ImageNet's values.
    """
    _check_options(f"{library}:{name}", options)
    chosen = {key: options.pop(key) for key in ("mean", "std") if key in options}
    if shape[0] not in (1, 3):
        raise RobGIBError(f"{library}:{name} takes images of 1 or 3 channels, not {shape[0]}.")
    _check_library(library, name)
    if library == "torchvision":
        make = partial(load_torchvision().models.get_model, name, weights=None, num_classes=classes)
    else:
        make = partial(load_timm().create_model, name, pretrained=False, num_classes=classes)
    try:
        net = make(**options)
        settings = {"mean": IMAGENET[0], "std": IMAGENET[1], **(getattr(net, "pretrained_cfg", None) or {}), **chosen}
        return Ported(net, settings["mean"], settings["std"])
    except Exception as error:
        raise RobGIBError(f"{library}:{name} does not build: {type(error).__name__}: {first_line(error)}.") from error


def load_timm() -> Any:
    """Import timm, after repairing torchvision's import.

    Raises:
        RobGIBError: it is not installed.
    """
    load_torchvision()
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise RobGIBError(f'timm is not installed ({error}); `pip install "robgib[timm]"` adds it.') from error


def _import_factory(arch: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = arch.partition(":")
    if module_name.endswith(".py"):
        path = Path(module_name).with_suffix("")
        named = path.name if path.is_absolute() or ".." in path.parts else ".".join(path.parts)
        raise RobGIBError(f"--arch {arch!r} names a file; did you mean its module, '{named}:{attribute}'?")
    load_torchvision()  # a factory may import it, or what imports it, and it may need mending
    try:
        here = os.getcwd()
    except OSError as error:
        raise RobGIBError(f"--arch {arch!r}: the working folder no longer exists; change to another folder.") from error
    if here not in sys.path:
        sys.path.insert(0, here)  # `--arch mynet:make` finds ./mynet.py, as `python -m` would
    try:
        with _settings_kept(f"module {module_name!r}"):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RobGIBError(
            f"--arch {arch!r}: module {module_name!r} does not import ({type(error).__name__}: {first_line(error)})."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise RobGIBError(f"--arch {arch!r}: module {module_name!r} has no callable {attribute!r}.")
    return factory
