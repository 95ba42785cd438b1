"""The 8-bit table of a query, and page scores from it, whichever backend runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ...errors import ConfigError
from .._pages import Array, Pages, as_tensor
from ..registry import pick

MOST_TOKENS = 1024
MOST_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class ScanTable:
    """Similarities of the query's tokens to all centroids: low + scale * bytes[centroid, token].

    Rows are padded with zeros to a multiple of 32 bytes.
    """

    bytes: UInt8[Tensor, "k padded"]
    low: float
    scale: float
    tokens: int


def quantise_table(similarity: Array) -> ScanTable:
    """Similarities [T, K] in eight bits, with one scale for the whole table.

    A scale per token would change the ranking; with one, the score of a page is off by at most
    T (high - low) / 510.
    Raises ConfigError on NaN or infinite similarities, no or more than 1024 tokens, no or more than
    65536 centroids.
    """
    similarity = as_tensor(similarity, "similarity", (torch.float32,), 2)
    tokens, rows = similarity.shape
    if not (1 <= tokens <= MOST_TOKENS and 1 <= rows <= MOST_ROWS):
        raise ConfigError(
            f"similarities of {tokens} query tokens to {rows} centroids: need 1 to {MOST_TOKENS} "
            f"tokens and 1 to {MOST_ROWS} centroids"
        )
    low, high = (float(bound) for bound in torch.aminmax(similarity))
    if not abs(high - low) < float("inf"):
        raise ConfigError(
            f"{int((~torch.isfinite(similarity)).sum())} of {tokens} x {rows} similarities are NaN "
            "or infinite: look at the query's vectors"
        )
    step = (high - low) / 255
    padded = torch.zeros(rows, -(-tokens // 32) * 32, dtype=torch.uint8, device=similarity.device)
    if step > 0:
        level = ((similarity - low) * (255 / (high - low))).round_().clamp_(0, 255)
        padded[:, :tokens] = level.to(torch.uint8).T
    return ScanTable(padded, low, step, tokens)


def _check(table: ScanTable) -> None:
    columns = -(-table.tokens // 32) * 32
    fits = table.bytes.ndim == 2 and table.bytes.shape[1] == columns
    fits = fits and 1 <= len(table.bytes) <= MOST_ROWS and 1 <= table.tokens <= MOST_TOKENS
    if not (fits and table.bytes.dtype == torch.uint8 and table.bytes.is_contiguous()):
        raise ConfigError(
            f"a table of {table.tokens} tokens with bytes of shape {tuple(table.bytes.shape)}: "
            "make it with quantise_table"
        )


def _pages(table: ScanTable, codes: Array, offsets: Array, pages: Array | None) -> Pages:
    rows = Pages.of(offsets, pages, codes=codes, rows=len(table.bytes))
    if rows.offsets.device != table.bytes.device:
        raise ConfigError(
            f"table on {table.bytes.device}, codes on {rows.offsets.device}: move them to one "
            "device"
        )
    return rows


def scan(
    table: ScanTable, codes: Array, offsets: Array, pages: Array | None = None
) -> Int[Tensor, "n"]:
    """Integer scores sum_t max_j bytes[code_j, t] of all pages, or of the given ones in that order.

    codes: u8 or u16, one per vector; page p owns codes offsets[p] .. offsets[p+1]-1. A page without
    vectors scores -1. The scores depend on the set of a page's codes only.
    Raises ConfigError when a code is not a row of the table, or offsets or pages do not fit.
    """
    _check(table)
    rows = _pages(table, codes, offsets, pages)
    return pick("code_scan", table.bytes.device).scan(table, rows)  # type: ignore[no-any-return]


def scan_batch(
    tables: Sequence[ScanTable], codes: Array, offsets: Array, pages: Array | None = None
) -> Int[Tensor, "b n"]:
    """`scan` for many queries in one pass over the codes; row b equals `scan(tables[b], ...)`.

    Raises ConfigError as `scan`, or when the tables are of different codebooks.
    """
    if not tables:
        raise ConfigError("no queries to scan for")
    for table in tables:
        _check(table)
        if table.bytes.shape[0] != len(tables[0].bytes):
            raise ConfigError(
                f"tables of {len(tables[0].bytes)} and {len(table.bytes)} centroids in one batch: "
                "all queries must be of one codebook"
            )
        if table.bytes.device != tables[0].bytes.device:
            raise ConfigError("tables on different devices in one batch: move them to one")
    rows = _pages(tables[0], codes, offsets, pages)
    backend = pick("code_scan", tables[0].bytes.device)
    return backend.scan_batch(tables, rows)  # type: ignore[no-any-return]


def score(table: ScanTable, total: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Similarities low T + scale total of integer scores; -inf for pages without vectors."""
    similarity = (table.low * table.tokens + total.double() * table.scale).float()
    return similarity.masked_fill(total < 0, -torch.inf)
