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

_BLOCK = 32  # as in body.h: points that are looked up together
_GRAIN = 1024 // _BLOCK
_FORWARD = (*[POINTER] * 4, INTEGER, INTEGER, POINTER, POINTER, INTEGER)
_SPLIT = (POINTER, POINTER, INTEGER, INTEGER, POINTER, INTEGER)
_BACKWARD = (POINTER, POINTER, POINTER, INTEGER, INTEGER, POINTER, INTEGER)


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


def _scratch(n: int, levels: Levels) -> tuple[int, Tensor]:
    """Number of blocks of points, and room for coordinates and features of all of them."""
    blocks = -(-n // _BLOCK)
    return blocks, torch.empty((3 + levels.width) * blocks * _BLOCK)


def forward(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    ranks: Int[Tensor, "vertices"] | None = None,
) -> Float[Tensor, "n width"]:
    """Features of all levels side by side."""
    x = x.contiguous()
    blocks, scratch = _scratch(len(x), levels)
    out = torch.empty(len(x), levels.width)
    parallel_for(
        function("hash_grid_forward", _FORWARD),
        blocks,
        address(table),
        address(x),
        ctypes.addressof(_levels(levels)),
        address(ranks, (torch.int32,)),
        len(levels.resolutions),
        levels.features,
        address(out),
        address(scratch),
        len(x),
        grain=_GRAIN,
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
    blocks, scratch = _scratch(len(x), levels)
    parallel_for(
        function("hash_grid_split", _SPLIT),
        blocks,
        address(upstream),
        address(x),
        count,
        levels.features,
        address(scratch),
        len(x),
        grain=_GRAIN,
    )
    if blocks:
        parallel_for(
            function("hash_grid_backward", _BACKWARD),
            count,
            address(scratch),
            ctypes.addressof(_levels(levels)),
            address(ranks, (torch.int32,)),
            count,
            levels.features,
            address(grad),
            len(x),
            grain=1,
            piece=1,
        )
