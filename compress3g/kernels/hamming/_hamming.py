"""Distances sum_t min_j of bits, and scores of a float query against signs."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError
from .._pages import Array, Pages, as_tensor
from ..registry import pick
from ..residual_scan._decoded import rows
from ..residual_scan._score import byte_table, finite, placed, same, tokens_of

_U64 = (torch.uint64,)
MOST_WORDS = 1 << 10


def _bits(bits: Array) -> Tensor:
    stored = as_tensor(bits, "bits", _U64, 2)
    if not 1 <= stored.shape[1] <= MOST_WORDS:
        raise ConfigError(f"bits in {stored.shape[1]} words: need 1 to {MOST_WORDS}")
    return stored


def scan(query: Array, bits: Array, offsets: Array, pages: Array | None = None) -> Int[Tensor, "n"]:
    """Distances sum_t min_j popcount(query_t xor bits_j) of all pages, or of the given ones.

    query: u64 [T, W]; bits: u64 [N, W]; page p owns the rows offsets[p] .. offsets[p+1]-1. A page
    without vectors gets -1. Distances come as i32, in the order of `pages`.
    Raises ConfigError when shapes, dtypes, offsets or page numbers do not fit, or the query has no
    or more than 1024 tokens.
    """
    stored = _bits(bits)
    tokens = as_tensor(query, "query", _U64, 2)
    tokens_of(tokens, "query")
    same("query", tuple(tokens.shape), (len(tokens), stored.shape[1]), "the words of `bits`")
    own = Pages.of(offsets, pages, vectors=len(stored))
    placed(own, tokens, stored)
    backend = pick("hamming", own.offsets.device)
    return backend.scan(  # type: ignore[no-any-return]
        tokens.view(torch.int64), stored.view(torch.int64), own
    )


def score(
    query: Array, bits: Array, scale: Array, offsets: Array, pages: Array | None = None
) -> Float[Tensor, "n"]:
    """Scores sum_t max_j scale_j <q_t, s_j>, s_j = +1 where the bit is set and -1 elsewhere.

    query: f32 [T, 64 W], dimension d standing for bit d mod 64, from the lowest, of word d // 64;
    scale: f16 [N]. All else as in `scan`; pages without vectors score -inf.
    Raises ConfigError also on values that are not finite.
    """
    stored = _bits(bits)
    tokens = finite(query, "query", 2)
    tokens_of(tokens, "query")
    wanted = (len(tokens), 64 * stored.shape[1])
    same("query", tuple(tokens.shape), wanted, f"{stored.shape[1]} words of 64 bits")
    factor = as_tensor(scale, "scale", (torch.float16,), 1)
    same("scale", tuple(factor.shape), (len(stored),), f"{len(stored)} vectors")
    own = Pages.of(offsets, pages, vectors=len(stored))
    placed(own, tokens, stored, factor)
    every = torch.arange(256, device=tokens.device)[:, None]
    signs = 2.0 * (every >> torch.arange(8, device=tokens.device) & 1) - 1
    # Bytes of little-endian words: byte b holds the dimensions from 8 b on.
    signed = rows(None, byte_table(tokens, signs), stored.view(torch.uint8), factor)
    return pick("residual_scan", own.offsets.device).score(signed, own)  # type: ignore[no-any-return]
