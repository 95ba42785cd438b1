"""Rows and columns of a page's patches in a few bytes: pages of one model look alike.

A page of 32 by 32 patches takes 4 KiB as numbers and about 100 bytes here, for heat maps alone.
"""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Int16, Int64, UInt8

_LEVEL = 6


def pack_places(
    grid: Int16[np.ndarray, "m 2"], lengths: Int64[np.ndarray, "p"]
) -> tuple[UInt8[np.ndarray, "b"], Int64[np.ndarray, "p"]]:
    """Bytes of all pages and how many belong to each: columns first, differences, deflated."""
    packed, start = [], 0
    for length in lengths.tolist():
        page = np.asarray(grid[start : start + length], np.int16).T
        steps = np.diff(page, axis=1, prepend=np.int16(0)).astype("<i2")
        packed.append(zlib.compress(steps.tobytes(), _LEVEL))
        start += length
    whole = np.frombuffer(b"".join(packed), np.uint8)
    return whole, np.asarray([len(p) for p in packed], np.int64)


def unpack_places(packed: UInt8[np.ndarray, "b"]) -> Int16[np.ndarray, "m 2"]:
    """The grid of one page.

    >>> packed, _ = pack_places(np.array([[0, 0], [0, 1], [-1, -1]], np.int16), np.array([3]))
    >>> unpack_places(packed).tolist()
    [[0, 0], [0, 1], [-1, -1]]
    """
    steps = np.frombuffer(zlib.decompress(packed.tobytes()), "<i2").reshape(2, -1)
    return np.cumsum(steps, axis=1, dtype=np.int16).T.copy()
