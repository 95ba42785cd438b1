"""Marching in plain torch: every lattice point is tested; the truth for tests, and the fallback."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ._march import Samples, unpack_bits

_CHUNK = 1 << 22  # lattice points held at once
_MOST_STEPS = 1 << 24  # a float counts lattice steps exactly up to here


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _span(origin: Tensor, direction: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the unit cube; enter >= leave for a miss."""
    t0, t1 = -origin / direction, (1 - origin) / direction
    parallel = direction == 0
    outside = (parallel & ((origin < 0) | (origin > 1))).any(-1)
    low = torch.minimum(t0, t1).masked_fill(parallel, -torch.inf).amax(-1).clamp(min=near)
    high = torch.maximum(t0, t1).masked_fill(parallel, torch.inf).amin(-1)
    return low, high.masked_fill(outside, -torch.inf)


def span(
    origin: Float[Tensor, "r 3"],
    direction: Float[Tensor, "r 3"],
    jitter: Float[Tensor, "r"],
    *,
    near: float,
    step: float,
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"], Float[Tensor, "r"]]:
    """Where rays enter and leave, enter >= leave for a miss, and the first k inside."""
    enter, leave = _span(origin, direction, near)
    enter = torch.where(leave < step * _MOST_STEPS, enter, leave)
    return enter, leave, torch.ceil(enter / step - jitter)


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
    cells = unpack_bits(bits, side)
    enter, leave, first = span(origin, direction, jitter, near=near, step=step)
    longest = int(((leave - enter) / step).clamp(min=0).max().ceil()) + 2 if len(origin) else 0
    rays = max(1, _CHUNK // max(1, longest))
    parts = []
    for low in range(0, len(origin), rays):
        at = slice(low, low + rays)
        k = first[at, None] + torch.arange(longest, device=origin.device)
        t = (k + jitter[at, None]) * step
        x = origin[at, None] + t[..., None] * direction[at, None]
        cell = (x * side).clamp(0, side - 1).nan_to_num(0).long()
        open_ = cells[cell[..., 2], cell[..., 1], cell[..., 0]]
        hit = open_ & (t < leave[at, None]) & (enter < leave)[at, None]
        hit &= hit.cumsum(-1) <= limit
        ray = hit.nonzero()[:, 0] + low
        parts.append((x[hit].clamp(0, 1), t[hit], ray))
    x, t, ray = (torch.cat(p) for p in zip(*parts, strict=True)) if parts else _nothing(origin)
    count = torch.bincount(ray, minlength=len(origin))
    return Samples(x, t, ray, torch.cat([count.new_zeros(1), count.cumsum(0)]))


def _nothing(origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return origin[:0], origin[:0, 0], torch.zeros(0, dtype=torch.long, device=origin.device)
