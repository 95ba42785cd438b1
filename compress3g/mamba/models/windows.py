"""Windows of a grid as sequences of their own, and where their tokens lie in the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def counts(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Windows along height and width; the last ones may reach beyond the grid."""
    return -(-grid[0] // side), -(-grid[1] // side)


def to_windows(x: Float[Tensor, "b d rows columns"], side: int) -> Float[Tensor, "_s l d"]:
    """Tokens of each window, row by row, zeros beyond the grid; the windows of an image in turn."""
    b, d, high, wide = x.shape
    down, across = counts((high, wide), side)
    if (down * side, across * side) != (high, wide):
        x = F.pad(x, (0, across * side - wide, 0, down * side - high))
    parts = x.reshape(b, d, down, side, across, side).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(b * down * across, side * side, d)


def from_windows(
    x: Float[Tensor, "s l d"], grid: tuple[int, int]
) -> Float[Tensor, "_b d rows columns"]:
    """The grid again, without what lay beyond it."""
    side, d = math.isqrt(x.shape[1]), x.shape[2]
    down, across = counts(grid, side)
    images = x.shape[0] // (down * across)
    parts = x.reshape(images, down, across, side, side, d).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(images, d, down * side, across * side)[:, :, : grid[0], : grid[1]]


def places(length: int, grid: tuple[int, int]) -> Int[Tensor, "s l"]:
    """Index in the grid of each token of an image's windows, -1 beyond the grid."""
    index = torch.arange(grid[0] * grid[1]).reshape(1, 1, *grid) + 1
    return to_windows(index.double(), math.isqrt(length))[..., 0].long() - 1


def in_image(
    positions: Int[Tensor, "s k"], length: int, grid: tuple[int, int]
) -> Int[Tensor, "_b m"]:
    """Index in the grid, ascending, of kept tokens given by window; -1 for padding, first."""
    table = places(length, grid).to(positions.device)
    images = len(positions) // len(table)
    found = table.repeat(images, 1).gather(1, positions)
    return found.reshape(images, -1).sort(1).values


def beyond(
    positions: Int[Tensor, "s k"], length: int, grid: tuple[int, int]
) -> Bool[Tensor, "s k"]:
    """Which of the tokens lie beyond the grid."""
    table = places(length, grid).to(positions.device)
    return table.repeat(len(positions) // len(table), 1).gather(1, positions) < 0
