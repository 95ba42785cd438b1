"""Each code of a page once: MaxSim over codes needs no more, and a page repeats itself a lot.

max over the vectors of a page of S[t, code] is the max over its set of codes, so the scores are the
same bit for bit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer

from ..errors import VectorError

_BLOCK = 1 << 22  # codes sorted at a time


def unique_codes(
    codes: Integer[np.ndarray, "n"], offsets: Int64[np.ndarray, "ends"]
) -> tuple[Integer[np.ndarray, "u"], Int64[np.ndarray, "ends"]]:
    """Ascending codes of every page without repetition, in the type they came in, and offsets.

    Page i holds codes[offsets[i]:offsets[i + 1]] and may be empty. Raises VectorError where the
    offsets do not ascend from 0 to the number of codes.

    >>> unique_codes(np.array([3, 1, 3, 7], np.uint8), np.array([0, 3, 3, 4]))
    (array([1, 3, 7], dtype=uint8), array([0, 2, 2, 3]))
    """
    lengths = np.diff(offsets)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(codes) or (lengths < 0).any():
        raise VectorError(f"offsets of pages do not ascend from 0 to {len(codes)}")
    kept, counts = [codes[:0]], np.zeros(len(lengths), np.int64)
    first = 0
    while first < len(lengths):
        # As many whole pages as fit a block, at least one.
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1
        last = max(last, first + 1)
        page = np.repeat(np.arange(last - first), lengths[first:last])
        key = np.unique(page << 32 | codes[offsets[first] : offsets[last]].astype(np.int64))
        kept.append((key & 0xFFFFFFFF).astype(codes.dtype))
        counts[first:last] = np.bincount(key >> 32, minlength=last - first)
        first = last
    return np.concatenate(kept), np.concatenate(([0], np.cumsum(counts)))
