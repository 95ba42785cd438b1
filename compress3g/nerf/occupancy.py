"""Which cells of space hold anything: the bit grid that ray marching skips by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..kernels.ray_march import pack_bits, unpack_bits

Density = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]

_DECAY = 0.95  # of the running maximum, per update (Instant-NGP, appendix C)
_OPAQUE = 0.01  # a sample that hides less than this is empty


class OccupancyGrid(nn.Module):
    """A running maximum of density per cell, and the bits where it matters.

    `allowed` is the hard mask nothing may leave: a visual hull, or what a pruner kept.
    """

    density: Tensor
    allowed: Tensor
    bits: Tensor

    def __init__(self, side: int, step: float) -> None:
        super().__init__()
        self.side, self.step = side, step
        self.register_buffer("density", torch.zeros(side**3))
        self.register_buffer("allowed", torch.ones(side, side, side, dtype=torch.bool))
        self.register_buffer("bits", pack_bits(self.allowed))

    def allow(self, cells: Bool[Tensor, "z y x"]) -> None:
        """Narrow space to these cells and start with all of them occupied."""
        self.allowed &= cells
        self.density.zero_()
        self.bits = pack_bits(self.allowed)

    def narrow(self, cells: Bool[Tensor, "z y x"]) -> None:
        """Forbid all but these cells from now on; what is known of the others stays."""
        self.allowed &= cells
        self.bits = pack_bits(self.cells() & self.allowed)

    def restore(self, density: Tensor, allowed: Tensor, bits: Tensor) -> None:
        """Take over a saved state: densities, and both sets of cells as packed bits."""
        device = self.bits.device
        self.density, self.bits = density.to(device), bits.to(device)
        self.allowed = unpack_bits(allowed, self.side).to(device)

    def cells(self) -> Bool[Tensor, "z y x"]:
        """Occupied cells."""
        return unpack_bits(self.bits, self.side)

    def fraction(self) -> float:
        """Occupied share of the box."""
        return float(self.cells().float().mean())

    @torch.no_grad()
    def update(self, density: Density, generator: torch.Generator, *, share: float) -> None:
        """Refresh the running maximum in a `share` of the allowed cells and set the bits anew.

        Half of a partial share is drawn from occupied cells, half from all allowed ones. The
        density must be the gated one, or pruned space would stay occupied.
        """
        candidates = self.allowed.reshape(-1).nonzero()[:, 0]
        if not len(candidates):
            return
        if share < 1:
            count = max(1, int(len(candidates) * share / 2))
            occupied = self.cells().reshape(-1).nonzero()[:, 0]
            pools = [pool for pool in (candidates, occupied) if len(pool)]
            candidates = torch.cat(
                [
                    pool[torch.randint(len(pool), (count,), generator=generator).to(pool.device)]
                    for pool in pools
                ]
            )
        x = self._points(candidates, generator)
        self.density.mul_(_DECAY)
        new = torch.cat([density(part) for part in x.split(1 << 16)]) if len(x) else x[:, 0]
        self.density.scatter_reduce_(0, candidates, new, "amax")  # a cell may be drawn twice
        cells = self.density.view_as(self.allowed)
        level = cells[self.allowed]
        limit = min(_OPAQUE / self.step, float(level.mean())) if len(level) else 0.0
        self.bits = pack_bits((cells > limit) & self.allowed)

    def _points(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """One random point in each cell."""
        s = self.side
        low = torch.stack([cells % s, cells // s % s, cells // (s * s)], -1)
        inside = torch.rand(len(cells), 3, generator=generator).to(low.device)
        return (low + inside) / s


def dilate(cells: Bool[Tensor, "z y x"], radius: int = 1) -> Bool[Tensor, "z y x"]:
    """Cells within `radius` (Chebyshev) of a set cell."""
    size = 2 * radius + 1
    grown = torch.nn.functional.max_pool3d(cells[None, None].float(), size, 1, radius)
    return grown[0, 0] > 0
