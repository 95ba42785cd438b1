"""The lookup in C: points split between threads forward, levels backward."""

from __future__ import annotations

import ctypes
import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._library import INTEGER, POINTER, address, function, status
from .._parallel import parallel_for
from ._levels import Levels

_FORWARD = (POINTER, POINTER, POINTER, POINTER, INTEGER, INTEGER, POINTER)
_BACKWARD = (POINTER, POINTER, POINTER, POINTER, INTEGER, INTEGER, POINTER, INTEGER)


class _Level(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_int64),
        ("first_rank", ctypes.c_int64),
        ("cells", ctypes.c_int32),
        ("mask", ctypes.c_uint32),
    ]


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


@functools.lru_cache(maxsize=64)
def _levels(levels: Levels) -> ctypes.Array[_Level]:
    rows = [
        _Level(levels.offsets[i], levels.first_ranks[i], n, levels.mask(i))
        for i, n in enumerate(levels.resolutions)
    ]
    return (_Level * len(rows))(*rows)


def forward(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    ranks: Int[Tensor, "vertices"] | None = None,
) -> Float[Tensor, "n width"]:
    """Features of all levels side by side."""
    x = x.contiguous()
    out = torch.empty(len(x), levels.width)
    parallel_for(
        function("hash_grid_forward", _FORWARD),
        len(x),
        address(table),
        address(x),
        ctypes.addressof(_levels(levels)),
        address(ranks),
        len(levels.resolutions),
        levels.features,
        address(out),
        grain=1024,
    )
    return out


def backward(
    upstream: Float[Tensor, "n width"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    grad: Float[Tensor, "entries features"],
    ranks: Int[Tensor, "vertices"] | None = None,
) -> None:
    """Adds d(loss)/d(table) to `grad`."""
    x = x.contiguous()
    count = len(levels.resolutions)
    parallel_for(
        function("hash_grid_backward", _BACKWARD),
        count,
        address(upstream),
        address(x),
        ctypes.addressof(_levels(levels)),
        address(ranks),
        count,
        levels.features,
        address(grad),
        len(x),
        grain=1,
        piece=1,
    )
