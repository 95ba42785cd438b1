"""Freed memory that stays with the process, so that no call pays for fresh pages."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on malloc gives nothing back to the system; whether it could be told so.

    Large tensors otherwise come from the system and go back to it with every call, or do not,
    depending on what ran before: half of a call's time can go into pages of zeros, of whichever
    side of a comparison allocates more.
    """
    try:
        told = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return all([told(_MMAP_MAX, 0), told(_TRIM_THRESHOLD, _MOST), told(_TOP_PAD, 2**30)])
