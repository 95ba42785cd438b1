"""Marching in Triton: one program per ray; one launch counts, one fills.

Where a ray enters and leaves is torch's arithmetic, and no multiplication is fused with an
addition, so the samples are those of the reference, bit for bit. CPU tensors are accepted only
under Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .._triton import check, jit, on, tl, usable
from ._march import Samples
from .reference import span

__all__ = ["march", "usable"]

_BLOCK = 128  # lattice points at a time


@jit
def _cell(x, side):  # type: ignore[no-untyped-def]
    """Cell along one axis; NaN becomes 0 so that indices stay inside."""
    v = x * side.to(tl.float32)
    v = tl.where(v > 0.0, v, 0.0)
    return tl.minimum(v, (side - 1).to(tl.float32)).to(tl.int32)


@jit
def _march(  # type: ignore[no-untyped-def]
    origin, direction, jitter, leave, first, steps, bits, offset, count, out_x, out_t, out_ray,
    side, step, limit, FILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    at, gone = tl.load(jitter + ray), tl.load(leave + ray)
    low, total = tl.load(first + ray), tl.load(steps + ray)
    ox, oy, oz = (
        tl.load(origin + 3 * ray),
        tl.load(origin + 3 * ray + 1),
        tl.load(origin + 3 * ray + 2),
    )
    dx, dy, dz = (
        tl.load(direction + 3 * ray),
        tl.load(direction + 3 * ray + 1),
        tl.load(direction + 3 * ray + 2),
    )
    found = total * 0
    if FILL:
        base = tl.load(offset + ray)
    for start in range(0, total, BLOCK):
        k = start + tl.arange(0, BLOCK)
        t = (low + k.to(tl.float32) + at) * step
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        cell = (_cell(z, side) * side + _cell(y, side)) * side + _cell(x, side)
        byte = tl.load(bits + (cell >> 3)).to(tl.int32)
        hit = (((byte >> (cell & 7)) & 1) != 0) & (t < gone) & (k < total)
        number = found + tl.cumsum(hit.to(tl.int32), 0)
        if FILL:
            place = base + number - 1
            kept = hit & (number <= limit)
            # clamp(0, 1), NaN included.
            tl.store(out_x + 3 * place, tl.minimum(tl.maximum(x, 0.0), 1.0), mask=kept)
            tl.store(out_x + 3 * place + 1, tl.minimum(tl.maximum(y, 0.0), 1.0), mask=kept)
            tl.store(out_x + 3 * place + 2, tl.minimum(tl.maximum(z, 0.0), 1.0), mask=kept)
            tl.store(out_t + place, t, mask=kept)
            tl.store(out_ray + place, ray + place * 0, mask=kept)
        found += tl.sum(hit.to(tl.int32), 0)
    if not FILL:
        tl.store(count + ray, tl.minimum(found, limit).to(tl.int64))


def march(
    origin: Float[Tensor, "r 3"],
    direction: Float[Tensor, "r 3"],
    jitter: Float[Tensor, "r"],
    bits: UInt8[Tensor, "bytes"],
    side: int,
    step: float,
    near: float,
    limit: int,
) -> Samples:
    """All samples, ray after ray."""
    origin, direction, jitter = (t.contiguous() for t in (origin, direction, jitter))
    check(origin, direction, jitter)
    rays, device = len(origin), origin.device
    enter, leave, first = span(origin, direction, jitter, near=near, step=step)
    longest = ((leave - enter) / step).nan_to_num(0).clamp(0, 1 << 30).ceil().int() + 2
    offset, count = torch.zeros(2, rays + 1, dtype=torch.long, device=device)
    # What misses the cube leaves it before it starts.
    leave = leave.masked_fill(enter >= leave, -torch.inf)
    shared = (origin, direction, jitter, leave, first, longest, bits.contiguous(), offset)
    settings = (side, step, min(limit, (1 << 31) - 1))
    none = torch.zeros(1, device=device)

    def launch(outputs: tuple[Tensor, ...], *, fill: bool) -> None:
        if rays == 0:
            return
        options: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 1}
        with on(device):
            _march[(rays,)](*shared, count, *outputs, *settings, FILL=fill, BLOCK=_BLOCK, **options)

    launch((none, none, count), fill=False)
    torch.cumsum(count[:-1], 0, out=offset[1:])
    total = int(offset[-1])
    x, distance = torch.empty(total, 3, device=device), torch.empty(total, device=device)
    ray = torch.empty(total, dtype=torch.long, device=device)
    launch((x, distance, ray), fill=True)
    return Samples(x, distance, ray, offset)
