"""The scan in C, pages split between threads."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .._library import INTEGER, POINTER, address, function, status
from .._pages import Pages
from .._parallel import parallel_for
from ._scan import ScanTable

_GRAIN = 256
_INT32 = (torch.int32,)
_ROOM = 1 << 13  # different codes of one block of pages: 16 kB
# Bytes of a row of queries side by side: three cache lines were fastest for K = 256, 2048 and 4096.
_GROUP_COLUMNS = 192


class _Batch(ctypes.Structure):
    _fields_ = [
        ("table", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("queries", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("results", ctypes.c_int64),
    ]


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def scan(table: ScanTable, pages: Pages) -> Int[Tensor, "n"]:
    """Integer scores; -1 for pages without vectors."""
    out = torch.empty(len(pages), dtype=torch.int32)
    struct = pages.struct()
    parallel_for(
        function("code_scan", (POINTER, INTEGER, POINTER, POINTER)),
        len(pages),
        address(table.bytes),
        table.bytes.shape[1],
        ctypes.addressof(struct),
        address(out, _INT32),
        grain=_GRAIN,
    )
    return _accepted(out, pages)


def _accepted(out: Tensor, pages: Pages) -> Tensor:
    if out.numel() and int(out.min()) < -1:
        pages.refuse()
    return out


def _groups(tables: Sequence[ScanTable]) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of all queries side by side in groups; their places, and those of the queries."""
    rows = len(tables[0].bytes)
    groups: list[list[int]] = []
    queries: list[list[int]] = []
    for q, table in enumerate(tables):
        eights = -(-table.tokens // 8)
        used = sum(n for _, n in queries[groups[-1][2] :]) if groups else 0
        if not groups or 8 * (used + eights) > _GROUP_COLUMNS:
            groups.append([0, 0, q, 0])
            used = 0
        queries.append([used, eights])
        groups[-1][3] += 1
        groups[-1][1] = -(-8 * (used + eights) // 32) * 32
    for before, group in itertools.pairwise(groups):
        group[0] = before[0] + rows * before[1]
    flat = torch.zeros(rows * sum(group[1] for group in groups), dtype=torch.uint8)
    for start, columns, first, count in groups:
        wide = flat[start : start + rows * columns].view(rows, columns)
        for q in range(first, first + count):
            at, eights = queries[q]
            wide[:, 8 * at : 8 * (at + eights)] = tables[q].bytes[:, : 8 * eights]
    return flat, torch.tensor(groups), torch.tensor(queries)


def scan_batch(tables: Sequence[ScanTable], pages: Pages) -> Int[Tensor, "b n"]:
    """All queries in one pass over the codes."""
    out = torch.empty(len(tables), len(pages), dtype=torch.int32)
    flat, groups, queries = _groups(tables)
    struct = pages.struct()
    batch = _Batch(address(flat), address(groups), address(queries), len(groups), len(pages))
    kernel = function("code_scan_batch", (*[POINTER] * 5, INTEGER))
    room = max(_ROOM, pages.rows + 1)

    def piece(lo: int, hi: int) -> None:
        seen = torch.zeros(pages.rows, dtype=torch.uint8)
        codes = torch.empty(room, dtype=torch.int16)
        kernel(
            ctypes.addressof(batch),
            ctypes.addressof(struct),
            address(out, _INT32),
            address(seen),
            address(codes, (torch.int16,)),
            room,
            lo,
            hi,
        )

    parallel_for(piece, len(pages), grain=_GRAIN)
    return _accepted(out, pages)
