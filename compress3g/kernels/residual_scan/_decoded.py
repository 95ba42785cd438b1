"""Vectors in a codec and a query prepared for them: what the backends of this operation score.

Where the stored side is coarse, the query's side is rounded to integers, so that sums are exact and
a row of 32 tokens is one cache line. What that costs is far below the rounding of the float16
factor (2^-11 of a similarity): each table entry is off by at most 2^-16 of the largest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int8, Int16, UInt8
from torch import Tensor

Factor = Float16[Tensor, "v"] | Float[Tensor, "v"] | None

# Largest values of the two sides of a product, so that 256 of them fit a signed 32-bit sum.
_BYTE_QUERY = 32767
_NIBBLE_LEVEL, _NIBBLE_QUERY = 2047, 4095


@dataclass(frozen=True, slots=True)
class Rows:
    """<q_t, r_j> = step sum_b table[b, stream[j, b], t].

    With scales the last two bytes of a vector are numbers of its gain, by which <q_t, r_j> is
    multiplied, and of its factor.
    """

    base: Float[Tensor, "k padded"] | None
    table: Int16[Tensor, "b 256 pitch"]
    step: float
    stream: UInt8[Tensor, "v bytes"]
    factor: Factor
    tokens: int
    scales: Float[Tensor, "2 256"] | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """<q_t, r_j> = step sum_d query[d/2, t, d mod 2] r_j[d], all integers.

    r_j is stream[j], or levels[stream[j, b]] for the two dimensions of byte b.
    """

    base: Float[Tensor, "k padded"] | None
    query: Int16[Tensor, "pairs padded 2"]
    step: float
    stream: Int8[Tensor, "v d"] | UInt8[Tensor, "v pairs"]
    factor: Factor
    tokens: int
    levels: Int16[Tensor, "256 2"] | None = None


@dataclass(frozen=True, slots=True)
class Products:
    """<q_t, x_j> in floats, x_j = stream[j]."""

    query: Float[Tensor, "d padded"]
    stream: Float16[Tensor, "v d"]
    tokens: int
    base: None = None
    factor: None = None


Decoded = Rows | Pairs | Products


def pad(columns: Tensor, multiple: int = 8) -> Tensor:
    """Contiguous, tokens last and padded with zeros to a multiple of 8."""
    return torch.nn.functional.pad(columns, (0, -columns.shape[-1] % multiple)).contiguous()


def _integers(values: Tensor, largest: int) -> tuple[Tensor, float]:
    """Values in steps of their largest magnitude / `largest`, and the step."""
    step = float(values.abs().max()) / largest if values.numel() else 0.0
    step = step or 1.0
    return (values / step).round_().clamp_(-largest, largest).to(torch.int16), step


def rows(
    base: Tensor | None,
    entries: Float[Tensor, "b 256 t"],
    stream: Tensor,
    factor: Factor,
    scales: Float[Tensor, "2 256"] | None = None,
) -> Rows:
    """Operand of byte tables."""
    table, step = _integers(entries, 32767)
    return Rows(base, pad(table, 32), step, stream, factor, entries.shape[-1], scales)


def pairs(
    base: Tensor | None,
    query: Float[Tensor, "t d"],
    stream: Tensor,
    factor: Factor,
    levels: Float[Tensor, "256 2"] | None = None,
) -> Pairs:
    """Operand of int8 vectors, or of two dimensions a byte."""
    whole, step = _integers(query, _BYTE_QUERY if levels is None else _NIBBLE_QUERY)
    even = torch.nn.functional.pad(whole, (0, whole.shape[1] % 2))
    halves = pad(even.T.unflatten(0, (-1, 2)).transpose(0, 1))  # [2, d/2, padded]
    table = halves.permute(1, 2, 0).contiguous()
    if levels is None:
        return Pairs(base, table, step, stream, factor, len(query))
    values, unit = _integers(levels, _NIBBLE_LEVEL)
    return Pairs(base, table, step * unit, stream, factor, len(query), values)
