"""Distances in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from .._pages import Pages

_CHUNK = 1 << 22  # words held at once
_MASKS = (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _popcount(words: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Set bits of signed 64-bit words: sums of neighbouring 1, 2 and 4 bits, then of bytes."""
    odd, pairs, nibbles = _MASKS
    words = words - (words >> 1 & odd)
    words = (words & pairs) + (words >> 2 & pairs)
    words = words + (words >> 4) & nibbles
    return words * 0x0101010101010101 >> 56 & 0xFF


def scan(query: Int[Tensor, "t w"], bits: Int[Tensor, "v w"], pages: Pages) -> Int[Tensor, "n"]:
    """sum_t min_j; -1 for pages without vectors."""
    pages.check()
    tokens = len(query)
    out = torch.empty(len(pages), dtype=torch.int32, device=bits.device)
    for place, owner, vector in pages.blocks(max(1, _CHUNK // query.numel())):
        distance = _popcount(bits[vector][:, None] ^ query).sum(-1)
        best = distance.new_full((place.stop - place.start, tokens), 1 << 30)
        best.scatter_reduce_(0, owner[:, None].expand_as(distance), distance, "amin")
        empty = torch.bincount(owner, minlength=len(best)) == 0
        out[place] = best.sum(-1).masked_fill(empty, -1).to(torch.int32)
    return out
