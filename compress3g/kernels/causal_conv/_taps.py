"""Which token each tap of the convolution reads."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Mode = Literal["none", "zero", "hold"]


def sources(
    positions: Int[Tensor, "b l"], taps: int, *, mode: Mode, reverse: bool
) -> Int[Tensor, "b l taps"]:
    """Token read by tap d (d positions back in the order of the scan) of each token, -1 for none.

    "zero": the token at exactly that position; "hold": the last one at or before it.
    """
    place = -positions.flip(1) if reverse else positions
    b, length = place.shape
    wanted = place[:, :, None] - torch.arange(taps, device=place.device)
    # Ascending in both directions: the last token at or before each wanted position.
    flat = wanted.flatten(1)
    found = torch.searchsorted(place.contiguous(), flat, right=True) - 1
    if mode == "zero":
        there = place.gather(1, found.clamp_min(0)) == flat
        found = torch.where(there, found, -1)
    found = found.view(b, length, taps)
    if reverse:
        found = torch.where(found < 0, found, length - 1 - found).flip(1)
    return found
