"""Images and labels that carry what belongs to each sample: a mask of what may change, a target, a row number.

An attack selects samples by indexing; what they carry is selected with them. Other operations return plain tensors, so
that an attack which loses a mask changes other pixels, which its verification reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Carrying", "carried", "carry", "masked", "restored"]


class Carrying(Tensor):
    """A tensor (N, …) with further tensors (N, …), by name, that are selected with it."""

    extras: Mapping[str, Tensor]

    # All operations but those below return plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        """Select samples and what they carry; a selection of single values carries nothing."""
        plain = self.as_subclass(Tensor)
        picked = plain[index]
        if picked.ndim < plain.ndim:
            return picked
        return carry(picked, **{name: value[index] for name, value in self.extras.items()})

    def clone(self, **options: Any) -> Tensor:
        """Return a copy that carries the same."""
        return carry(self.as_subclass(Tensor).clone(**options), **self.extras)

    def detach(self) -> Tensor:
        """Return it without gradient history."""
        return carry(self.as_subclass(Tensor).detach(), **self.extras)

    def to(self, *arguments: Any, **options: Any) -> Tensor:
        """Return it on another device or in another type; what it carries moves to its device."""
        moved = self.as_subclass(Tensor).to(*arguments, **options)
        return carry(moved, **{name: value.to(moved.device) for name, value in self.extras.items()})


def carry(values: Tensor, **extras: Tensor | None) -> Tensor:
    """Return ``values`` (N, …) that carry further tensors (N, …); None is left out.

    A tensor of a class that wraps another tensor has no memory of its own to view, and carries nothing.

    >>> images = carry(torch.zeros(3, 2), mask=torch.tensor([[True, False]]).expand(3, 2))
    >>> carried(images[1:], "mask").shape, carried(images + 1, "mask") is None
    (torch.Size([2, 2]), True)
    """
    given = {name: value for name, value in extras.items() if value is not None}
    if not given:
        return values
    former = values.extras if isinstance(values, Carrying) else {}
    try:
        made = values.as_subclass(Tensor).as_subclass(Carrying)
        if made is values:  # as_subclass may return the tensor itself
            made = values.view_as(values).as_subclass(Carrying)
    except RuntimeError:  # a wrapper
        return values
    made.extras = {**former, **given}
    return made


def carried(values: Tensor, name: str) -> Tensor | None:
    """Return what ``values`` carry under a name, or None."""
    return values.extras.get(name) if isinstance(values, Carrying) else None


def masked(change: Tensor, x: Tensor) -> Tensor:
    """Return a change (N, …) of the images ``x`` (N, …), 0 where the mask that they carry does not allow one."""
    mask = carried(x, "mask")
    return change if mask is None else change * mask


def restored(images: Tensor, x: Tensor) -> Tensor:
    """Return images (N, …), with the pixels of ``x`` (N, …) where the mask that they carry does not allow a change."""
    mask = carried(x, "mask")
    return images if mask is None else torch.where(mask, images, x)
