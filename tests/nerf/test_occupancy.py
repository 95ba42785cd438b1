from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.kernels.hash_grid import Levels
from compress3g.kernels.ray_march import march, pack_bits
from compress3g.nerf.field import HollowField
from compress3g.nerf.occupancy import OccupancyGrid, dilate
from compress3g.nerf.saliency import SaliencyGrid

_SIDE = 6
_STEP = 1 / 100  # opaque from a density of one


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cells(seed: int, share: float = 0.3, side: int = _SIDE) -> torch.Tensor:
    return torch.rand(side, side, side, generator=_generator(seed)) < share


def _constant(value: float):
    return lambda x: torch.full((len(x),), value)


def _cell_of(x: torch.Tensor, side: int = _SIDE) -> torch.Tensor:
    return (x * side).floor().long()


def _inside(cells: torch.Tensor, value: float = 100.0):
    """Density `value` in these cells, indexed [z, y, x]."""

    def density(x):
        i, j, k = _cell_of(x, len(cells)).unbind(-1)
        return cells[k, j, i].float() * value

    return density


def test_everything_is_occupied_at_first():
    grid = OccupancyGrid(_SIDE, _STEP)
    assert grid.cells().all()
    assert grid.fraction() == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.floats(0, 1))
def test_bits_are_the_allowed_cells_eight_a_byte(side, seed, share):
    cells = _cells(seed, share, side)
    grid = OccupancyGrid(side, _STEP)
    grid.allow(cells)
    flat = [bool(c) for c in cells.reshape(-1)]
    expected = [
        sum(bit << i for i, bit in enumerate(flat[k : k + 8])) for k in range(0, side**3, 8)
    ]
    assert grid.bits.tolist() == expected
    assert torch.equal(grid.cells(), cells)
    assert grid.fraction() == pytest.approx(sum(flat) / side**3)


def test_marching_skips_what_is_not_allowed():
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[2, 1, 3] = True  # z, y, x
    grid = OccupancyGrid(4, _STEP)
    grid.allow(cells)
    origin = torch.tensor([[-0.5, 0.375, 0.625]])
    ray = (origin, torch.tensor([[1.0, 0, 0]]), torch.full((1,), 0.5))
    x = march(*ray, grid.bits, side=4, step=0.01).x
    assert len(x) == 25  # a quarter of the box at 0.01
    assert (_cell_of(x, 4) == torch.tensor([3, 1, 2])).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99))
def test_a_full_update_finds_exactly_the_dense_cells(seed):
    cells = _cells(seed)
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(_inside(cells), _generator(), share=1.0)
    assert torch.equal(grid.cells(), cells)


@pytest.mark.parametrize(("value", "occupied"), [(0.999, 0), (1.001, 20)])
def test_a_cell_that_hides_a_hundredth_per_sample_is_occupied(value, occupied):
    # One very dense cell lifts the mean above the opaque density, 0.01 / step = 1.
    def density(x):
        i, j, k = _cell_of(x).unbind(-1)
        index = i + _SIDE * (j + _SIDE * k)
        return torch.where(index == 0, 1e6, torch.where(index <= 20, value, 0.0))

    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(density, _generator(), share=1.0)
    assert int(grid.cells().sum()) == 1 + occupied
    assert grid.cells()[0, 0, 0]


def test_in_a_thin_scene_the_mean_density_is_the_limit():
    cells = _cells(1, 0.2)
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(_inside(cells, 0.01), _generator(), share=1.0)  # far below opaque
    assert torch.equal(grid.cells(), cells)


def test_an_empty_scene_is_empty():
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(_constant(0.0), _generator(), share=1.0)
    assert grid.fraction() == 0.0


def test_density_decays_by_a_twentieth_per_update_and_rises_at_once():
    grid = OccupancyGrid(_SIDE, _STEP)
    values = [5.0, 0.0, 0.0, 4.9, 1.0]
    expected = 0.0
    for value in values:
        grid.update(_constant(value), _generator(), share=1.0)
        expected = max(expected * 0.95, value)
        torch.testing.assert_close(grid.density, torch.full((_SIDE**3,), expected))


def test_cells_that_empty_are_freed_in_time():
    cells = _cells(2)
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(_inside(cells, 2.0), _generator(), share=1.0)
    for _ in range(math.ceil(math.log(0.5) / math.log(0.95))):
        assert grid.cells()[cells].all()
        half = cells.clone()
        half[:3] = False
        grid.update(_inside(half, 100.0), _generator(), share=1.0)
    assert torch.equal(grid.cells(), half)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 5))
def test_nothing_ever_leaves_the_allowed_cells(seed, share, allowed, updates):
    cells = _cells(seed, allowed)
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.allow(cells)
    generator = _generator(seed)
    for _ in range(updates):
        asked = []

        def density(x, asked=asked):
            asked.append(x)
            return torch.full((len(x),), 100.0)

        grid.update(density, generator, share=share)
        i, j, k = _cell_of(torch.cat([*asked, torch.zeros(0, 3)])).unbind(-1)
        assert cells[k, j, i].all()  # no query is wasted outside
        assert not (grid.cells() & ~cells).any()


def test_allowing_twice_keeps_what_both_allow():
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(_constant(7.0), _generator(), share=1.0)
    grid.allow(_cells(1, 0.5))
    grid.allow(_cells(2, 0.5))
    assert torch.equal(grid.cells(), _cells(1, 0.5) & _cells(2, 0.5))
    assert not grid.density.any()  # what was learned before says nothing about the new field


def test_narrowing_keeps_what_is_known():
    grid = OccupancyGrid(_SIDE, _STEP)
    dense, narrow = _cells(3, 0.5), _cells(4, 0.5)
    grid.update(_inside(dense), _generator(), share=1.0)
    before = grid.density.clone()
    grid.narrow(narrow)
    assert torch.equal(grid.cells(), dense & narrow)
    assert torch.equal(grid.density, before)
    # And a later update cannot leave it.
    grid.update(_constant(100.0), _generator(), share=1.0)
    assert torch.equal(grid.cells(), narrow)


def test_a_partial_update_asks_for_its_share_half_of_it_where_occupied():
    side = 20
    few = torch.zeros(side, side, side, dtype=torch.bool)
    few[4, 5, :10] = True
    grid = OccupancyGrid(side, _STEP)
    grid.update(_inside(few), _generator(), share=1.0)
    asked = []

    def density(x):
        asked.append(x)
        return _inside(few)(x)

    grid.update(density, _generator(1), share=0.25)
    x = torch.cat(asked)
    assert len(x) == side**3 // 4
    i, j, k = _cell_of(x, side).unbind(-1)
    # The other half hits these 10 of 8,000 cells about once in 1,000.
    assert int(few[k, j, i].sum()) == pytest.approx(side**3 // 8, abs=10)


def test_a_cell_drawn_twice_keeps_its_densest_sample():
    # One allowed cell, many draws of it in one partial update, a density that varies inside.
    one = torch.zeros(2, 2, 2, dtype=torch.bool)
    one[0, 0, 0] = True
    largest = []

    def density(x):
        largest.append(x[:, 0].max())
        return x[:, 0]

    grid = OccupancyGrid(2, _STEP)
    grid.allow(one)
    grid.update(density, _generator(5), share=0.999)
    grid.allowed.fill_(True)
    for seed in range(20):
        grid.density.zero_()
        largest.clear()
        grid.update(density, _generator(seed), share=0.9)
        assert torch.isclose(grid.density.max(), torch.stack(largest).max())


def test_points_are_spread_over_their_cells():
    grid = OccupancyGrid(2, _STEP)
    asked = []

    def density(x):
        asked.append(x)
        return torch.ones(len(x))

    generator = _generator()
    for _ in range(400):
        grid.update(density, generator, share=1.0)
    place = torch.cat(asked) * 2 % 1
    # 3,200 uniform numbers: mean 1/2 and variance 1/12, within five standard errors.
    assert (place.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 3200)
    assert (place.var(0) - 1 / 12).abs().max() < 0.01


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_generator_decides_everything(share):
    def bits(seed: int) -> torch.Tensor:
        grid, generator = OccupancyGrid(_SIDE, _STEP), _generator(seed)
        for _ in range(3):
            grid.update(lambda x: (x * 7).sin().prod(-1) * 3, generator, share=share)
        return grid.density

    assert torch.equal(bits(1), bits(1))
    assert not torch.equal(bits(1), bits(2))


def test_updates_carry_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(lambda x: x @ weight, _generator(), share=1.0)
    assert not grid.density.requires_grad


def test_space_whose_gate_is_closed_becomes_empty():
    field = HollowField(
        Levels.geometric(count=2, log2_size=8), saliency=SaliencyGrid(3), generator=_generator()
    )
    assert field.saliency is not None
    with torch.no_grad():
        # Vertices at x = 0 and 1/2 closed: the gated density is 0 for x < 1/2.
        field.saliency.logits.view(3, 3, 3)[:, :, :2] = -200.0
        field.saliency.logits.view(3, 3, 3)[:, :, 2] = 200.0
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.update(lambda x: field.density(x)[0], _generator(), share=1.0)
    assert not grid.cells()[:, :, :3].any()
    assert grid.cells()[:, :, 5].all()


def test_nothing_allowed_is_no_error():
    grid = OccupancyGrid(_SIDE, _STEP)
    grid.allow(torch.zeros(_SIDE, _SIDE, _SIDE, dtype=torch.bool))
    for share in (1.0, 0.5):
        grid.update(_constant(9.0), _generator(), share=share)
    assert grid.fraction() == 0.0


def test_a_saved_state_is_taken_over():
    grid, other = OccupancyGrid(_SIDE, _STEP), OccupancyGrid(_SIDE, _STEP)
    grid.allow(_cells(1, 0.6))
    grid.update(_inside(_cells(2, 0.5)), _generator(), share=1.0)
    other.restore(grid.density, pack_bits(_cells(1, 0.6)), grid.bits)
    for one in (grid, other):
        one.update(_constant(0.5), _generator(9), share=0.5)
    assert torch.equal(grid.density, other.density)
    assert torch.equal(grid.bits, other.bits)
    assert torch.equal(grid.allowed, other.allowed)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 99), st.floats(0, 0.2))
def test_dilation_is_every_cell_within_the_radius(side, radius, seed, share):
    cells = _cells(seed, share, side)
    expected = torch.zeros_like(cells)
    for z, y, x in cells.nonzero().tolist():
        low = [max(0, c - radius) for c in (z, y, x)]
        expected[low[0] : z + radius + 1, low[1] : y + radius + 1, low[2] : x + radius + 1] = True
    assert torch.equal(dilate(cells, radius), expected)
