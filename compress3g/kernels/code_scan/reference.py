"""The scan in plain torch: gathers rows, takes maxima; the truth for tests, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .._pages import Pages
from ._scan import ScanTable

_CHUNK = 1 << 24  # gathered bytes held at once


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def scan(table: ScanTable, pages: Pages) -> Int[Tensor, "n"]:
    """Integer scores; -1 for pages without vectors."""
    pages.check()
    rows = table.bytes[:, : table.tokens]
    out = torch.empty(len(pages), dtype=torch.int32, device=rows.device)
    for place, owner, vector in pages.blocks(max(1, _CHUNK // table.tokens)):
        best = rows.new_zeros(place.stop - place.start, table.tokens)
        gathered = rows[pages.rows_of(vector)]
        best.scatter_reduce_(0, owner[:, None].expand(-1, table.tokens), gathered, "amax")
        total = best.sum(-1, dtype=torch.int32)
        out[place] = total.masked_fill(torch.bincount(owner, minlength=len(best)) == 0, -1)
    return out


def scan_batch(tables: Sequence[ScanTable], pages: Pages) -> Int[Tensor, "b n"]:
    """One query after the other."""
    return torch.stack([scan(table, pages) for table in tables])
