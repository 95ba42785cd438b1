"""Vectors in a codec and a query prepared for them: what the backends of this operation score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int8, UInt8
from torch import Tensor

Factor = Float16[Tensor, "v"] | Float[Tensor, "v"] | None


def pad(columns: Float[Tensor, "... t"]) -> Float[Tensor, "... padded"]:
    """Contiguous, tokens last and padded with zeros to a multiple of 8."""
    return torch.nn.functional.pad(columns, (0, -columns.shape[-1] % 8)).contiguous()


@dataclass(frozen=True, slots=True)
class Rows:
    """<q_t, r_j> = sum_b table[b, stream[j, b], t]; similarity factor_j (base[code_j, t] + it)."""

    base: Float[Tensor, "k padded"] | None
    table: Float[Tensor, "b 256 padded"]
    stream: UInt8[Tensor, "v b"]
    factor: Factor
    tokens: int


@dataclass(frozen=True, slots=True)
class Products:
    """<q_t, r_j> with r_j = stream[j], or levels[stream[j, b]] for two dimensions a byte."""

    base: Float[Tensor, "k padded"] | None
    query: Float[Tensor, "d padded"]
    stream: Float16[Tensor, "v d"] | Int8[Tensor, "v d"] | UInt8[Tensor, "v d/2"]
    factor: Factor
    tokens: int
    levels: Float[Tensor, "256 2"] | None = None


Decoded = Rows | Products
