"""The differentiable lookup, whichever backend runs it."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError
from ..cost import spend
from ..registry import pick
from ._levels import Levels


def _flops(points: int, levels: Levels) -> int:
    """2 x 8 per point, level and feature: a multiply-add for each corner of the cell.

    The gradient scatters as many as the look-up gathers. Indices and trilinear weights are not
    counted, as additions of a bias are not.
    """
    return 16 * points * levels.width


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        x: Tensor,
        levels: Levels,
        ranks: Tensor | None,
        backend: ModuleType,
        in_place: bool,
    ) -> Tensor:
        ctx.save_for_backward(table, x, ranks)
        ctx.levels, ctx.backend, ctx.in_place = levels, backend, in_place
        with spend("hash_grid", lambda: _flops(len(x), levels)):
            return backend.forward(table, x, levels, ranks)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        table, x, ranks = ctx.saved_tensors
        # A large table's gradient is mostly zeros: a fresh one per step costs more than the kernel.
        direct = ctx.in_place and table.grad is not None
        grad = table.grad if direct else torch.zeros_like(table)
        with spend("hash_grid.backward", lambda: _flops(len(x), ctx.levels)):
            ctx.backend.backward(upstream[0].contiguous(), x, ctx.levels, grad, ranks)
        return (None if direct else grad), None, None, None, None, None


def encode(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    *,
    ranks: Int[Tensor, "vertices"] | None = None,
    accumulate: bool = False,
) -> Float[Tensor, "n width"]:
    """Features of points in the unit cube, level after level, differentiable in `table`.

    ranks: int32 entries that ranked levels look up, as long as `levels.ranks`.
    accumulate: add the gradient straight into `table.grad` when that exists, as an optimiser loop
    wants it; leave it off under `torch.autograd.grad`.
    Raises ConfigError on a table or ranks of another shape or on points that are not finite.
    """
    if tuple(table.shape) != (levels.entries, levels.features):
        raise ConfigError(
            f"table of shape {tuple(table.shape)} for {levels.entries} x {levels.features}"
        )
    if levels.ranks != (0 if ranks is None else len(ranks)):
        found = "none" if ranks is None else str(len(ranks))
        raise ConfigError(f"levels look up {levels.ranks} ranks, got {found}")
    # A sum is finite only if every number is, and costs a tenth of asking each.
    if not (math.isfinite(x.detach().sum()) or bool(torch.isfinite(x).all())):
        raise ConfigError(
            f"{int((~torch.isfinite(x)).any(-1).sum())} of {len(x)} points are NaN or Inf"
        )
    backend = pick("hash_grid", table.device)
    if not (torch.is_grad_enabled() and table.requires_grad):
        with spend("hash_grid", lambda: _flops(len(x), levels)):
            return backend.forward(table, x, levels, ranks)  # type: ignore[no-any-return]
    out: Tensor = _Encode.apply(table, x, levels, ranks, backend, accumulate)  # type: ignore[no-untyped-call]
    return out
