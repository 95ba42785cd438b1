"""Marching in C: one pass counts, one fills; many lattice points are looked up at once."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .._library import POINTER, address, function, status
from .._parallel import parallel_for
from ._march import Samples


class _March(ctypes.Structure):
    _fields_ = [
        ("step", ctypes.c_float),
        ("near", ctypes.c_float),
        ("side", ctypes.c_int32),
        ("limit", ctypes.c_int32),
    ]


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


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
    rays = tuple(tensor.contiguous() for tensor in (origin, direction, jitter))
    settings = _March(step, near, side, limit)
    n = len(origin)
    shared = (*map(address, rays), address(bits), ctypes.addressof(settings))
    offset = torch.zeros(n + 1, dtype=torch.long)
    count = torch.empty(n, dtype=torch.long)
    parallel_for(function("ray_march_count", [POINTER] * 6), n, *shared, address(count), grain=128)
    torch.cumsum(count, 0, out=offset[1:])
    total = int(offset[-1])
    x, distance = torch.empty(total, 3), torch.empty(total)
    ray = torch.empty(total, dtype=torch.long)
    parallel_for(
        function("ray_march_fill", [POINTER] * 9),
        n,
        *shared,
        *map(address, (offset, x, distance, ray)),
        grain=128,
    )
    return Samples(x, distance, ray, offset)
