from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.nerf.occupancy import OccupancyGrid, dilate


def test_only_dense_cells_stay_occupied(generator):
    grid = OccupancyGrid(8, 0.01)
    grid.update(lambda x: 100.0 * (x[:, 0] < 0.5), generator, share=1.0)
    assert torch.equal(grid.cells(), (torch.arange(8) < 4).expand(8, 8, 8))
    assert grid.fraction() == 0.5


def test_what_is_not_allowed_never_becomes_occupied(generator):
    grid = OccupancyGrid(8, 0.01)
    half = (torch.arange(8) < 4)[:, None, None].expand(8, 8, 8)
    grid.allow(half)
    for share in (1.0, 0.25):
        grid.update(lambda x: torch.full_like(x[:, 0], 50.0), generator, share=share)
    assert torch.equal(grid.cells(), half)


def test_density_that_is_gone_decays(generator):
    grid = OccupancyGrid(4, 0.1)
    grid.update(lambda x: torch.full_like(x[:, 0], 2.0), generator, share=1.0)
    grid.update(lambda x: torch.zeros_like(x[:, 0]), generator, share=1.0)
    torch.testing.assert_close(grid.density, torch.full((64,), 1.9))


def test_an_empty_grid_survives_an_update(generator):
    grid = OccupancyGrid(4, 0.1)
    grid.allow(torch.zeros(4, 4, 4, dtype=torch.bool))
    grid.update(lambda x: x[:, 0], generator, share=0.25)
    assert grid.fraction() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 7), st.integers(1, 2), st.integers(0, 999))
def test_dilation_is_the_chebyshev_ball(side, radius, seed):
    g = torch.Generator().manual_seed(seed)
    cells = torch.rand(side, side, side, generator=g) < 0.05
    expected = torch.zeros_like(cells)
    for z, y, x in cells.nonzero().tolist():
        low = [max(0, c - radius) for c in (z, y, x)]
        expected[low[0] : z + radius + 1, low[1] : y + radius + 1, low[2] : x + radius + 1] = True
    assert torch.equal(dilate(cells, radius), expected)
