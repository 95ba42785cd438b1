"""The lookup in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._levels import PRIMES, Levels


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def corners(
    x: Float[Tensor, "n 3"], levels: Levels, ranks: Int[Tensor, "vertices"] | None, level: int
) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    """Rows of the table and trilinear weights of the eight vertices around each point."""
    cells = levels.resolutions[level]
    position = x.clamp(0, 1) * cells
    low = position.floor().clamp(max=cells - 1)
    part = position - low
    corner = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=x.device)
    vertex = low.long()[:, None, :] + corner
    weight = torch.where(corner.bool(), part[:, None, :], 1 - part[:, None, :]).prod(-1)
    if levels.mask(level) == 0:
        side = cells + 1
        index = vertex[..., 0] + side * (vertex[..., 1] + side * vertex[..., 2])
        if ranks is not None and levels.first_ranks[level] >= 0:
            index = ranks[levels.first_ranks[level] + index].long()
    else:
        # 64-bit products keep their low 32 bits: the wrap-around of the C code's uint32.
        x_, y_, z_ = (vertex[..., a] * PRIMES[a] & 0xFFFFFFFF for a in range(3))
        index = (x_ ^ y_ ^ z_) & (levels.mask(level))
    return index + levels.offsets[level], weight


def forward(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    ranks: Int[Tensor, "vertices"] | None = None,
) -> Float[Tensor, "n width"]:
    """Features of all levels side by side."""
    parts = []
    for level in range(len(levels.resolutions)):
        index, weight = corners(x, levels, ranks, level)
        parts.append((table[index] * weight[..., None].to(table.dtype)).sum(1))
    return torch.cat(parts, -1)


def backward(
    upstream: Float[Tensor, "n width"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    grad: Float[Tensor, "entries features"],
    ranks: Int[Tensor, "vertices"] | None = None,
) -> None:
    """Adds d(loss)/d(table) to `grad`."""
    features = levels.features
    for level in range(len(levels.resolutions)):
        index, weight = corners(x, levels, ranks, level)
        share = upstream[:, None, level * features : (level + 1) * features] * weight[..., None]
        grad.index_add_(0, index.reshape(-1), share.reshape(-1, features).to(grad.dtype))
