"""The lookup in Triton: one program per block of points and level; fp32 sums by atomics.

Gradients are added in no fixed order, so two runs agree to rounding, not bit for bit. CPU tensors
are accepted only under Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._triton import check, jit, on, tl, triton, usable
from ._levels import PRIMES, Levels

__all__ = ["backward", "forward", "usable"]

_BLOCK = 128  # points per program


@jit
def _axis(x, point, inside, cells, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Lower vertex and fraction along one axis; NaN becomes 0 so that indices stay inside."""
    p = tl.load(x + 3 * point + axis, mask=inside, other=0.0) * cells.to(tl.float32)
    p = tl.where(p > 0.0, p, 0.0)
    p = tl.minimum(p, cells.to(tl.float32))
    low = tl.minimum(p.to(tl.int32), cells - 1)
    return low.to(tl.uint32), p - low.to(tl.float32)


@jit
def _entry(  # type: ignore[no-untyped-def]
    low_x, low_y, low_z, part_x, part_y, part_z, cells, mask,
    ranks, first_rank, inside, corner: tl.constexpr, PRIME_Y: tl.constexpr, PRIME_Z: tl.constexpr,
):  # fmt: skip
    """Row within the level and trilinear weight of one of the eight corners."""
    x, y, z = low_x + (corner & 1), low_y + (corner >> 1 & 1), low_z + (corner >> 2)
    weight = part_x if corner & 1 else 1.0 - part_x
    weight *= part_y if corner & 2 else 1.0 - part_y
    weight *= part_z if corner & 4 else 1.0 - part_z
    side = cells.to(tl.uint32) + 1
    hashed = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & mask
    dense = x + side * (y + side * z)
    plain = tl.where(mask == 0, dense, hashed).to(tl.int64)
    ranked = plain * 0 + first_rank >= 0
    looked_up = tl.load(ranks + first_rank + plain, mask=inside & ranked, other=0).to(tl.int64)
    return tl.where(ranked, looked_up, plain), weight


@jit
def _forward(  # type: ignore[no-untyped-def]
    table, x, shape, ranks, out, n, count,
    BLOCK: tl.constexpr, FEATURES: tl.constexpr, WIDE: tl.constexpr,
    PRIME_Y: tl.constexpr, PRIME_Z: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    first, cells = tl.load(shape + 4 * level), tl.load(shape + 4 * level + 1).to(tl.int32)
    mask = tl.load(shape + 4 * level + 2).to(tl.uint32)
    first_rank = tl.load(shape + 4 * level + 3)
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, WIDE)[None, :]
    inside = point < n
    here = inside[:, None] & (feature < FEATURES)
    low_x, part_x = _axis(x, point, inside, cells, 0)
    low_y, part_y = _axis(x, point, inside, cells, 1)
    low_z, part_z = _axis(x, point, inside, cells, 2)
    total = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    for corner in tl.static_range(8):
        row, weight = _entry(
            low_x,
            low_y,
            low_z,
            part_x,
            part_y,
            part_z,
            cells,
            mask,
            ranks,
            first_rank,
            inside,
            corner,
            PRIME_Y,
            PRIME_Z,
        )
        place = table + (first + row)[:, None] * FEATURES + feature
        total += weight[:, None] * tl.load(place, mask=here, other=0.0)
    target = out + (point[:, None] * count + level) * FEATURES + feature
    tl.store(target, total, mask=here)


@jit
def _backward(  # type: ignore[no-untyped-def]
    upstream, x, shape, ranks, grad, n, count,
    BLOCK: tl.constexpr, FEATURES: tl.constexpr, WIDE: tl.constexpr,
    PRIME_Y: tl.constexpr, PRIME_Z: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    first, cells = tl.load(shape + 4 * level), tl.load(shape + 4 * level + 1).to(tl.int32)
    mask = tl.load(shape + 4 * level + 2).to(tl.uint32)
    first_rank = tl.load(shape + 4 * level + 3)
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, WIDE)[None, :]
    inside = point < n
    here = inside[:, None] & (feature < FEATURES)
    source = upstream + (point[:, None] * count + level) * FEATURES + feature
    g = tl.load(source, mask=here, other=0.0)
    here = here & (g != 0.0)  # samples without a gradient cost no atomics
    low_x, part_x = _axis(x, point, inside, cells, 0)
    low_y, part_y = _axis(x, point, inside, cells, 1)
    low_z, part_z = _axis(x, point, inside, cells, 2)
    for corner in tl.static_range(8):
        row, weight = _entry(
            low_x,
            low_y,
            low_z,
            part_x,
            part_y,
            part_z,
            cells,
            mask,
            ranks,
            first_rank,
            inside,
            corner,
            PRIME_Y,
            PRIME_Z,
        )
        place = grad + (first + row)[:, None] * FEATURES + feature
        tl.atomic_add(place, weight[:, None] * g, mask=here, sem="relaxed")


@functools.lru_cache(maxsize=64)
def _shape(levels: Levels, device: torch.device) -> Int[Tensor, "levels 4"]:
    """First entry, cells per axis, hash mask (0: dense), first rank (-1: none) of each level."""
    rows = [
        (levels.offsets[i], n, levels.mask(i), levels.first_ranks[i])
        for i, n in enumerate(levels.resolutions)
    ]
    return torch.tensor(rows, dtype=torch.long, device=device)


def _launch(
    kernel: Any, source: Tensor, x: Tensor, levels: Levels, ranks: Tensor | None, target: Tensor
) -> None:
    count, n = len(levels.resolutions), len(x)
    if n == 0:
        return
    if ranks is None:  # a pointer that is never read
        ranks = torch.zeros(1, dtype=torch.int32, device=x.device)
    with on(x.device):
        kernel[(triton.cdiv(n, _BLOCK), count)](
            source,
            x,
            _shape(levels, x.device),
            ranks,
            target,
            n,
            count,
            BLOCK=_BLOCK,
            FEATURES=levels.features,
            WIDE=triton.next_power_of_2(levels.features),
            PRIME_Y=PRIMES[1],
            PRIME_Z=PRIMES[2],
        )


def forward(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    ranks: Int[Tensor, "vertices"] | None = None,
) -> Float[Tensor, "n width"]:
    """Features of all levels side by side."""
    x = x.detach().contiguous()
    check(table, x)
    out = torch.empty(len(x), levels.width, device=x.device)
    _launch(_forward, table.detach(), x, levels, ranks, out)
    return out


def backward(
    upstream: Float[Tensor, "n width"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    grad: Float[Tensor, "entries features"],
    ranks: Int[Tensor, "vertices"] | None = None,
) -> None:
    """Adds d(loss)/d(table) to `grad`."""
    x, upstream = x.detach().contiguous(), upstream.contiguous()
    check(upstream, x, grad)
    _launch(_backward, upstream, x, levels, ranks, grad)
