"""What code of others may change and must not: a model's weights, buffers, modes and hooks, and torch's settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Settings",
    "State",
    "same",
    "settings_kept",
]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_SCRIPTED: Any = torch.jit.ScriptModule


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    if torch.equal(one, two):
        return True
    return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())


class State:
    """The state of models at one moment, so that changes can be found and reverted later.

    Args:
        models: the models; what they share is held once.
        weights: whether parameters are held: a copy of each.
        buffers: likewise.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    >>> state = State([net])
    >>> _ = net.train()
    >>> with torch.no_grad():
    ...     _ = net[0].bias.add_(1)
    >>> state.changed(), state.modes()
    (['0.bias'], ['', '0', '1'])
    >>> state.restore()
    >>> state.changed(), state.modes()
    ([], [])
    """

    def __init__(self, models: Sequence[nn.Module], weights: bool = True, buffers: bool = True) -> None:
        named = {id(m): (name, m) for model in models for name, m in model.named_modules()}
        self._modules = list(named.values())
        self._modes = [module.training for _, module in self._modules]
        self._hooks = [_hooks(module) for _, module in self._modules]
        kinds = [kind for kind, wanted in (("_parameters", weights), ("_buffers", buffers)) if wanted]
        self._tensors: list[tuple[str, nn.Module, str, str, Tensor, Tensor, Tensor | None]] = []
        self._names = [[set(_tensors(module, kind)) for kind in kinds] for _, module in self._modules]
        self._kinds = kinds
        for prefix, module in self._modules:
            for kind in kinds:
                for name, tensor in _tensors(module, kind).items():
                    if tensor is not None:
                        path = f"{prefix}.{name}".lstrip(".")
                        grad = tensor.grad if tensor.is_leaf else None
                        self._tensors.append((path, module, kind, name, tensor, tensor.detach().clone(), grad))

    def changed(self) -> list[str]:
        """Names of the weights and buffers that changed or are new, and of modules whose hooks changed."""
        changes = []
        for path, module, kind, name, tensor, before, _ in self._tensors:
            now = _tensors(module, kind).get(name)
            if now is None or not same(now.detach(), before) or not same(tensor.detach(), before):
                changes.append(path)
        for (prefix, module), names, hooks in zip(self._modules, self._names, self._hooks, strict=True):
            for kind, before_names in zip(self._kinds, names, strict=True):
                changes += [
                    f"{prefix}.{name}".lstrip(".") for name in _tensors(module, kind) if name not in before_names
                ]
            if _hooks(module) != hooks:
                changes.append(f"hooks of {prefix or type(module).__name__}")
        return changes

    def modes(self) -> list[str]:
        """Names of the modules whose mode (train or eval) changed."""
        return [name for (name, m), mode in zip(self._modules, self._modes, strict=True) if m.training != mode]

    def restore_modes(self) -> None:
        """Restore the modes."""
        for (_, module), mode in zip(self._modules, self._modes, strict=True):
            module.training = mode

    def restore_tensors(self) -> None:
        """Restore weights and buffers without autograd's knowledge: a graph that contains them remains valid."""
        for _, module, kind, name, tensor, before, grad in self._tensors:
            if _tensors(module, kind).get(name) is not tensor and not isinstance(module, _SCRIPTED):
                getattr(module, kind)[name] = tensor
            if tensor.shape != before.shape:
                tensor.data = before.clone()
            else:
                tensor.data.copy_(before)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad
        for (_, module), names in zip(self._modules, self._names, strict=True):
            for kind, before_names in zip(self._kinds, names, strict=True):
                for name in set(_tensors(module, kind)) - before_names:
                    del getattr(module, kind)[name]

    def restore(self) -> None:
        """Restore everything."""
        self.restore_modes()
        self.restore_tensors()
        for (_, module), hooks in zip(self._modules, self._hooks, strict=True):
            if _hooks(module) != hooks:
                for kind, before in zip(_HOOKS, hooks, strict=False):
                    now: Any = getattr(module, kind, {})
                    for key in [key for key in now if key not in before]:
                        del now[key]
                if not hooks[-1]:
                    vars(module).pop("forward", None)


def _tensors(module: nn.Module, kind: str) -> dict[str, Tensor | None]:
    """A module's own parameters or buffers by name."""
    return dict(getattr(module, kind).items())


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    """The keys of a module's hooks, and whether its forward is its own rather than its class's."""
    return (*(tuple(getattr(module, kind, ())) for kind in _HOOKS), "forward" in vars(module))


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _put_folder(place: str | None) -> None:
    if place is not None:
        os.chdir(place)


def _put_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "whether gradients are computed": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _put_device),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the working folder": (_folder, _put_folder),
}
"""Settings of the process, with what reads and what sets each."""
_SEED = "the seed of torch"


class Settings:
    """Settings of the process at one moment, so that changes can be found and reverted later.

    Args:
        seed: whether the seed of torch's generator is one of them; random numbers that were drawn are no change.

    >>> before = Settings()
    >>> torch.set_default_dtype(torch.float64)
    >>> before.changed()
    ['the default dtype']
    >>> before.restore()
    >>> before.changed()
    []
    """

    def __init__(self, seed: bool = True) -> None:
        self._held = {name: read() for name, (read, _) in _SETTINGS.items()}
        self._seed = (torch.initial_seed(), torch.get_rng_state()) if seed else None

    def changed(self) -> list[str]:
        """Names of the settings that changed."""
        changes = [name for name, (read, _) in _SETTINGS.items() if read() != self._held[name]]
        return [*changes, _SEED] if self._seed is not None and torch.initial_seed() != self._seed[0] else changes

    def restore(self) -> None:
        """Restore what changed."""
        changed = self.changed()
        if self._seed is not None and _SEED in changed:
            torch.set_rng_state(self._seed[1])
        for name in changed:
            if name != _SEED:
                _SETTINGS[name][1](self._held[name])


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore the settings of the process on exit, but for the seed.

    >>> with settings_kept():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.get_default_dtype()
    torch.float32
    """
    before = Settings(seed=False)
    try:
        yield
    finally:
        before.restore()
