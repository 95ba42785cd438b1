"""The four serpentine orders of PlainMamba (2403.17695, 3.2) over a grid."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

# What a step says about the one before it; row 0 of `direction_Bs` belongs to the first cell.
_BEGIN, _RIGHT, _LEFT, _UP, _DOWN = range(5)


def _rows(high: int, wide: int, *, upwards: bool) -> list[tuple[int, int]]:
    """Cells row by row, every other row backwards, the top row always from the left.

    Upwards it is the same snake: it starts where the downward one would end.
    """
    cells = []
    for row in range(high):
        columns = range(wide) if row % 2 == 0 else range(wide - 1, -1, -1)
        cells += [(row, column) for column in columns]
    return cells[::-1] if upwards else cells


def _step(before: tuple[int, int] | None, cell: tuple[int, int]) -> int:
    if before is None:
        return _BEGIN
    down, right = cell[0] - before[0], cell[1] - before[1]
    return {(0, 1): _RIGHT, (0, -1): _LEFT, (-1, 0): _UP, (1, 0): _DOWN}[down, right]


@lru_cache(maxsize=64)
def _tables(high: int, wide: int) -> tuple[list[list[int]], list[list[int]]]:
    ranks = [[0] * (high * wide) for _ in range(4)]
    ids = [[0] * (high * wide) for _ in range(4)]
    for order in range(4):
        turned = order >= 2  # columns: rows of the transposed grid
        cells = _rows(*((wide, high) if turned else (high, wide)), upwards=order % 2 == 1)
        before = None
        for rank, (a, b) in enumerate(cells):
            cell = (b, a) if turned else (a, b)
            index = cell[0] * wide + cell[1]
            ranks[order][index], ids[order][index] = rank, _step(before, cell)
            before = cell
    return ranks, ids


def serpentine(high: int, wide: int) -> tuple[Int[Tensor, "4 n"], Int[Tensor, "4 n"]]:
    """For each order: the rank of every cell of the grid, and its direction id.

    Rows from the top, the same backwards, columns from the left, the same backwards. Both tensors
    are indexed by the cell, row by row.

    >>> serpentine(2, 2)[0].tolist()
    [[0, 1, 3, 2], [3, 2, 0, 1], [0, 3, 1, 2], [3, 0, 2, 1]]
    """
    # Numbers are kept, not tensors: one made while a graph is traced must not be met again.
    ranks, ids = _tables(high, wide)
    return torch.tensor(ranks), torch.tensor(ids)
