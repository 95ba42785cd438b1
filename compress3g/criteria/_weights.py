"""The weights of units, laid out by unit; and sums of per-feature numbers over units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Cut, Gates, Units
from ..core._layout import layout_of

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]


def weights_of(
    model: nn.Module, cut: Cut, size: int, *, gradient: bool = False
) -> Float[Tensor, "size chunk rest"]:
    """Columns of a reader, or rows of a writer, of all `size` units, in float32.

    gradient: their gradients instead; zeros where there is none.
    """
    layout = layout_of(model, cut.module)
    name, dim = layout.tensors[cut.axis][0]
    weight: Tensor = getattr(layout.owner, name)
    if gradient:
        weight = torch.zeros_like(weight) if weight.grad is None else weight.grad
    slots = cut.slots(torch.arange(size, device=weight.device))
    each = weight.detach().movedim(dim, 0)[slots].float()
    return each.reshape(size, cut.chunk, -1)


def summed(
    units: Sequence[Units], each: Callable[[Units, Cut], Float[Tensor, "size chunk"]]
) -> Gates:
    """Per unit, the sum over its readers and over the features that it has there."""
    return {
        u.name: torch.stack([each(u, cut).sum(1).cpu() for cut in u.reads]).sum(0) for u in units
    }


def features(values: Float[Tensor, "f"], u: Units, cut: Cut) -> Float[Tensor, "size chunk"]:
    """A number per input feature of a reader, laid out by unit."""
    return values[cut.slots(torch.arange(u.size, device=values.device))].view(u.size, cut.chunk)


def cycle(batches: Sequence[Any]) -> Iterator[Any]:
    """The batches again and again."""
    return itertools.cycle(batches)
