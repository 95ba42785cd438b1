"""Distances in C, pages split between threads."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Int
from torch import Tensor

from .._library import INTEGER, POINTER, address, function, status
from .._pages import Pages
from .._parallel import parallel_for

_GRAIN = 32


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def scan(query: Int[Tensor, "t w"], bits: Int[Tensor, "v w"], pages: Pages) -> Int[Tensor, "n"]:
    """sum_t min_j; -1 for pages without vectors."""
    tokens, words = query.shape
    columns = torch.nn.functional.pad(query.T, (0, -tokens % 8)).contiguous()
    out = torch.empty(len(pages), dtype=torch.int32)
    struct = pages.struct()
    parallel_for(
        function("hamming_scan", (POINTER, INTEGER, INTEGER, POINTER, POINTER, POINTER)),
        len(pages),
        address(columns),
        tokens,
        words,
        address(bits),
        ctypes.addressof(struct),
        address(out, (torch.int32,)),
        grain=_GRAIN,
    )
    if len(out) and int(out.min()) < -1:
        pages.refuse()
    return out
