from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.kernels.hash_grid import Levels, encode
from compress3g.nerf.inside import fitted_levels, ranks, reachable


def _mask(side: int, seed: int, share: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(side, side, side, generator=generator) < share


def _points_in(kept: torch.Tensor, count: int) -> torch.Tensor:
    cells = kept.nonzero().flip(-1)  # x, y, z
    picked = cells[torch.randint(len(cells), (count,))]
    return (picked + torch.rand(count, 3)) / kept.shape[0]


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 9), cells=st.integers(1, 20), seed=st.integers(0, 99))
def test_reachable_vertices_are_those_around_kept_cells(side, cells, seed):
    kept = _mask(side, seed)
    expected = torch.zeros(cells + 1, cells + 1, cells + 1, dtype=torch.bool)
    for z, y, x in kept.nonzero().tolist():
        # Open intervals (i / side, (i + 1) / side) and (j / cells, (j + 1) / cells) in integers.
        spans = []
        for i in (z, y, x):
            hit = [
                j for j in range(cells) if j * side < (i + 1) * cells and i * cells < (j + 1) * side
            ]
            spans.append(slice(hit[0], hit[-1] + 2))
        expected[tuple(spans)] = True
    assert torch.equal(reachable(kept, cells), expected)


@settings(max_examples=20, deadline=None)
@given(
    side=st.integers(4, 16),
    entries=st.integers(30, 20000),
    finest=st.integers(16, 1024),
    seed=st.integers(0, 99),
)
def test_every_row_is_used_and_about_equally_often(side, entries, finest, seed):
    kept = _mask(side, seed, 0.1)
    kept[0, 0, 0] = True
    levels = fitted_levels(kept, entries, finest=finest)
    assert levels.entries <= entries
    numbers, start = ranks(levels, kept), 0
    assert len(numbers) == levels.ranks
    for cells, size, first in zip(
        levels.resolutions, levels.sizes, levels.first_ranks, strict=True
    ):
        if first < 0:
            continue
        inside = reachable(kept, cells).reshape(-1)
        used = torch.bincount(numbers[start : start + len(inside)][inside], minlength=size)
        assert len(used) == size
        assert int(used.min()) >= 1
        assert int(used.max() - used.min()) <= 1
        start += len(inside)


def test_a_table_with_enough_rows_is_a_dense_grid_without_its_empty_part():
    kept = _mask(16, 1, 0.05)
    levels = fitted_levels(kept, 1 << 20, finest=32)
    assert levels.sizes == tuple(int(reachable(kept, n).sum()) for n in levels.resolutions)
    dense = Levels.ranked(levels.resolutions, tuple((n + 1) ** 3 for n in levels.resolutions))
    table = torch.randn(dense.entries, 2)
    inside = torch.cat([reachable(kept, n).reshape(-1) for n in dense.resolutions])
    x = _points_in(kept, 500)
    everywhere = ranks(dense, torch.ones_like(kept))
    expected = encode(table, x, dense, ranks=everywhere)
    assert torch.equal(encode(table[inside], x, levels, ranks=ranks(levels, kept)), expected)


def test_a_smaller_mask_buys_finer_levels():
    box = torch.ones(16, 16, 16, dtype=torch.bool)
    corner = torch.zeros_like(box)
    corner[:5, :5, :5] = True
    whole, part = fitted_levels(box, 4096), fitted_levels(corner, 4096)
    assert part.resolutions[-1] > whole.resolutions[-1]
    assert part.resolutions[: len(whole.resolutions)] == whole.resolutions


def test_large_tables_get_fine_hashed_levels_on_top():
    kept = _mask(16, 1, 0.05)
    levels = fitted_levels(kept, 1 << 20)
    hashed = [i for i, first in enumerate(levels.first_ranks) if first < 0]
    assert hashed == list(range(len(levels.sizes) - len(hashed), len(levels.sizes)))
    assert len(hashed) >= 2
    assert all(levels.sizes[i].bit_count() == 1 for i in hashed)
    assert levels.entries <= 1 << 20
    # No row is wasted: ranked levels that are full hold all of their vertices.
    full = [int(reachable(kept, n).sum()) for n in levels.resolutions[: -len(hashed)]]
    assert levels.sizes[: len(full)] == tuple(full) or levels.entries > (1 << 20) - 16


@pytest.mark.parametrize("finest", [16, 30])
def test_levels_end_at_the_finest_that_was_asked_for(finest):
    kept = torch.ones(8, 8, 8, dtype=torch.bool)
    assert fitted_levels(kept, 1 << 22, finest=finest).resolutions[-1] <= finest
