"""The hash-grid lookup in torch eager, in every form that is known to be fast somewhere.

All forms share one way to compute indices, the fastest found: corners lead, so that every operation
runs over points; and one table per level, so that autograd makes no gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress3g.kernels.hash_grid import Levels

_PRIMES = (1, 2654435761, 805459861)

Form = Callable[[Tensor, Tensor, Tensor], Tensor]  # table of a level, index and weight [8, n]


def corners(x: Tensor, levels: Levels, level: int) -> tuple[Tensor, Tensor]:
    """Rows within a level and trilinear weights of the eight vertices around points, [8, n]."""
    cells = levels.resolutions[level]
    position = x.T * cells
    low = position.long().clamp_(max=cells - 1)
    part = position - low
    side = cells + 1
    steps = torch.tensor((1, side, side * side) if levels.dense(level) else _PRIMES)[:, None]
    terms = torch.stack([low * steps, (low + 1) * steps], 1)
    x_, y_, z_ = terms[0], terms[1][:, None], terms[2][:, None, None]
    dense, mask = levels.dense(level), levels.sizes[level] - 1
    index = x_ + (y_ + z_) if dense else (x_ ^ (y_ ^ z_)) & mask
    parts = torch.stack([1 - part, part], 1)
    weight = parts[0] * (parts[1][:, None] * parts[2][:, None, None])
    return index.reshape(8, -1), weight.reshape(8, -1)


def _bracket(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return (table[index] * weight[..., None]).sum(0)


def _index_select(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    rows = table.index_select(0, index.view(-1)).view(*index.shape, -1)
    return (rows * weight[..., None]).sum(0)


def _gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    rows = table.gather(0, index.view(-1, 1).expand(-1, table.shape[1])).view(*index.shape, -1)
    return (rows * weight[..., None]).sum(0)


def _embedding(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return (F.embedding(index, table) * weight[..., None]).sum(0)


def _embedding_bag(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    bags, shares = index.T.contiguous(), weight.T.contiguous()
    return F.embedding_bag(bags, table, mode="sum", per_sample_weights=shares)


class _ByHand(torch.autograd.Function):
    """The fastest lookup with the fastest scatter, straight into an existing gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return _embedding_bag(table.detach(), index, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, None, None]:
        table, index, weight = ctx.saved_tensors
        for f, column in enumerate(upstream[0].unbind(-1)):
            share = (weight * column).view(-1)
            table.grad[:, f] += torch.bincount(index.view(-1), share, len(table))
        return None, None, None


BY_HAND = "embedding_bag, backward by hand (bincount)"
FORMS: dict[str, Form] = {
    "table[index]": _bracket,
    "index_select": _index_select,
    "gather": _gather,
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    BY_HAND: _ByHand.apply,
}


def tables(table: Tensor, levels: Levels) -> list[Tensor]:
    """One leaf per level with a gradient to add to."""
    parts = [
        table.detach()[start : start + size].clone().requires_grad_()
        for start, size in zip(levels.offsets, levels.sizes, strict=True)
    ]
    for part in parts:
        part.grad = torch.zeros_like(part)
    return parts


def encode(form: Form, parts: list[Tensor], x: Tensor, levels: Levels) -> Tensor:
    """Features of all levels side by side."""
    found = (form(part, *corners(x, levels, level)) for level, part in enumerate(parts))
    return torch.cat(list(found), -1)
