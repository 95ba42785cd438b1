"""A grid that lives inside a mask: which vertices it needs, and how entries are shared out."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..kernels.hash_grid import Levels

_COARSEST, _GROWTH = 8, 1.5
_FINEST_RANKED = 160  # ranks of 161^3 vertices are 17 MB; finer levels are hashed
_CROWD = 8  # vertices per row, over all levels, that the networks can still tell apart


def reachable(kept: Bool[Tensor, "z y x"], cells: int) -> Bool[Tensor, "v v v"]:
    """Vertices of a level of `cells` cells per axis that points in kept cells interpolate.

    Both grids span the same cube; their cells need not line up.
    """
    side = kept.shape[0]
    near = torch.zeros(cells + 1, side, device=kept.device)
    for i in range(side):
        # Cell i touches the level's cells i cells / side .. ceil((i + 1) cells / side) - 1.
        near[i * cells // side : -(-(i + 1) * cells // side) + 1, i] = 1
    found = kept.float()
    for _ in range(3):  # one axis each time; three turns bring them back in order
        found = torch.tensordot(found, near, dims=([0], [1])).clamp(max=1)
    return found > 0


def fitted_levels(kept: Bool[Tensor, "z y x"], entries: int, *, finest: int = 1024) -> Levels:
    """Levels of at most `entries` rows together, every row inside the mask.

    Resolutions 8, 12, 18, .. as far as the table can serve them. A level takes no more rows than it
    has reachable vertices; all others get the same number, so coarse levels are free of collisions
    and what they leave goes to finer ones. Large tables serve levels too fine to be looked up:
    these are hashed, and so have a power of two of rows.
    """
    cells: list[int] = []
    vertices: list[int] = []
    for n in (round(_COARSEST * _GROWTH**level) for level in itertools.count()):
        needed = _count(kept, n)
        if cells and (n > finest or sum(vertices) + needed > _CROWD * entries):
            break
        cells.append(n)
        vertices.append(needed)
    looked_up = sum(n <= _FINEST_RANKED for n in cells)
    shares = share_out(vertices, entries)[looked_up:]
    hashed = [1 << share.bit_length() - 1 for share in shares]
    ranked = share_out(vertices[:looked_up], entries - sum(hashed))
    left = entries - sum(hashed) - sum(ranked)
    for i in reversed(range(len(hashed))):
        if hashed[i] <= left:
            left, hashed[i] = left - hashed[i], 2 * hashed[i]
    return Levels.ranked(tuple(cells), (*ranked, *hashed), hashed=len(hashed))


def _count(kept: Bool[Tensor, "z y x"], cells: int) -> int:
    """Reachable vertices; by volume where there would be too many to list."""
    if cells <= _FINEST_RANKED:
        return int(reachable(kept, cells).sum())
    return int(kept.double().mean() * (cells + 1) ** 3)


def share_out(wanted: list[int], total: int) -> tuple[int, ...]:
    """min(wanted, limit) each, with the largest limit at which they add up to `total` at most."""
    left, sizes = total, [0] * len(wanted)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for done, i in enumerate(order):
        sizes[i] = min(wanted[i], left // (len(order) - done))
        left -= sizes[i]
    return tuple(sizes)


def ranks(levels: Levels, kept: Bool[Tensor, "z y x"]) -> Int[Tensor, "vertices"]:
    """Row within its level of every vertex of every ranked level, x fastest; int32.

    Reachable vertices are numbered along x, y, z and wrap around at the end of the level: rows are
    used equally often, and vertices that share one lie far apart. All others get row 0.
    """
    parts = []
    shapes = zip(levels.resolutions, levels.sizes, levels.first_ranks, strict=True)
    for cells, size in ((cells, size) for cells, size, first in shapes if first >= 0):
        inside = reachable(kept, cells).reshape(-1)
        number = (inside.long().cumsum(0) - 1) % size
        parts.append(torch.where(inside, number, 0).to(torch.int32))
    return torch.cat(parts)
