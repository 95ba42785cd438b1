"""The scan in Triton: one program per page and 128 tokens; the same integers as everywhere.

CPU tensors are accepted only under Triton's interpreter (TRITON_INTERPRET=1 before the first
import).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .._pages import Pages
from .._triton import check_device, jit, on, tl, triton, usable
from ._scan import ScanTable

__all__ = ["scan", "scan_batch", "usable"]

_COLUMNS = 128  # tokens per program, at most
_BLOCK = 32  # codes gathered at once


@jit
def _scan(  # type: ignore[no-untyped-def]
    table, codes, begin, end, out, pitch,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0).to(tl.int64)
    first, last = tl.load(begin + page), tl.load(end + page)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    best = tl.zeros((COLUMNS,), dtype=tl.int32)
    for start in range(first, last, BLOCK):
        place = start + tl.arange(0, BLOCK)
        # Signed 16-bit memory holds unsigned codes.
        code = tl.load(codes + place, mask=place < last, other=0).to(tl.int32) & MASK
        here = (place < last)[:, None] & (column < pitch)[None, :]
        row = tl.load(table + code.to(tl.int64)[:, None] * pitch + column[None, :], here, other=0)
        best = tl.maximum(best, tl.max(row.to(tl.int32), axis=0))
    tl.store(out + page * tl.num_programs(1) + tl.program_id(1), tl.sum(best, axis=0))


def scan(table: ScanTable, pages: Pages) -> Int[Tensor, "n"]:
    """Integer scores; -1 for pages without vectors."""
    rows, codes = table.bytes, pages.codes
    assert codes is not None
    check_device(rows)
    pages.check()
    if len(pages) == 0:
        return torch.empty(0, dtype=torch.int32, device=rows.device)
    begin, end = pages.offsets[:-1], pages.offsets[1:]
    if pages.selected is not None:
        begin, end = begin[pages.selected], end[pages.selected]
    pitch = rows.shape[1]
    columns = min(_COLUMNS, triton.next_power_of_2(pitch))
    pieces = triton.cdiv(pitch, columns)
    out = torch.empty(len(pages), pieces, dtype=torch.int32, device=rows.device)
    wide = codes.dtype == torch.uint16
    with on(rows.device):
        _scan[(len(pages), pieces)](
            rows,
            codes.view(torch.int16) if wide else codes,
            begin.contiguous(),
            end.contiguous(),
            out,
            pitch,
            BLOCK=_BLOCK,
            COLUMNS=columns,
            MASK=0xFFFF if wide else 0xFF,
        )
    return out.sum(1, dtype=torch.int32).masked_fill(begin == end, -1)


def scan_batch(tables: Sequence[ScanTable], pages: Pages) -> Int[Tensor, "b n"]:
    """One query after the other."""
    return torch.stack([scan(table, pages) for table in tables])
