"""Which rows of a layer's input are tokens, and which are padding."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Size, Tensor


def counted(shape: Size, valid: Bool[Tensor, "b t"] | None) -> Bool[Tensor, "n"] | None:
    """Of an input of that shape, features last and all else one row each, the rows that count.

    valid: False for padding. None for all rows: without `valid`, and where the input has other
    tokens than the batch, whose padding nothing tells.
    """
    if valid is None:
        return None
    rows = shape[:-1]
    if rows[:2] == valid.shape:
        more = rows[2:]
        return valid.reshape(*valid.shape, *[1] * len(more)).expand(rows).reshape(-1)
    # Some layers are given tokens without their batch.
    return valid.reshape(-1) if rows.numel() == valid.numel() else None
