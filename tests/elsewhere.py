"""A second device in the place of a GPU: its tensors are kept on the CPU, and never mix with the CPU's."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")  # the only one that every build knows; its tensors hold nothing, these do


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on the other device."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self):
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


def _run(function, arguments, options):
    name = str(function)
    told = options.get("device")
    given = [a for a in torch.utils._pytree.tree_leaves((arguments, options)) if isinstance(a, torch.Tensor)]
    ours = [a for a in given if isinstance(a, Elsewhere)]
    theirs = [a for a in given if not isinstance(a, Elsewhere) and a.ndim > 0]
    if ours and theirs and not name.startswith(("aten.copy_", "aten._to_copy", "aten.index")):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    if name.startswith("aten.index") and ours and not isinstance(arguments[0], Elsewhere):
        raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor: {name}")
    put = name.startswith("aten.index_put") and isinstance(arguments[0], Elsewhere)
    if put and not isinstance(arguments[2], Elsewhere) and arguments[2].ndim:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    plain = tree_map(lambda a: a.held if isinstance(a, Elsewhere) else a, (arguments, options))
    if told is not None and torch.device(told).type == DEVICE.type:
        plain[1]["device"] = torch.device("cpu")
    if plain[1].get("pin_memory"):
        plain[1]["pin_memory"] = False
    made = function(*plain[0], **plain[1])
    here = told is not None and torch.device(told).type == "cpu"
    there = (told is not None and not here) or (bool(ours) and not here)
    if name.startswith("aten.copy_"):
        there = isinstance(arguments[0], Elsewhere)
    if name.startswith("aten._foreach_") and "_." in name:
        return None
    if not there:
        return made
    if "_." in name or name.startswith("aten.copy_"):  # what it changes in place is what it gives
        return arguments[0]
    return tree_map(lambda a: Elsewhere(a) if isinstance(a, torch.Tensor) else a, made)


class _Factories(TorchDispatchMode):
    """Makes tensors there that are asked for there."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


@contextmanager
def a_second_device():
    """Within, tensors can be made on and moved to ``DEVICE``."""
    with _Factories():
        yield DEVICE
