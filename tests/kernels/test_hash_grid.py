from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError, ConfigError
from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.registry import use

# Two dense and three hashed levels, of which the finest has 1025^3 vertices in 512 entries.
MIXED = Levels.geometric(count=5, log2_size=9, coarsest=4, finest=1024)


def _corners(point, levels, level):
    """The eight (row, weight) of one point by the definition, in Python integers and doubles.

    The position is rounded to float32 once, because that is the definition of the position: at
    N = 1024 its last bit is worth 6e-5 of a cell.
    """
    cells = levels.resolutions[level]
    p = [float(np.float32(c) * np.float32(cells)) for c in point]
    low = [min(int(v), cells - 1) for v in p]
    size = levels.sizes[level]
    for step in itertools.product((0, 1), repeat=3):
        x, y, z = (a + b for a, b in zip(low, step, strict=True))
        weight = 1.0
        for axis in range(3):
            part = p[axis] - low[axis]
            weight *= part if step[axis] else 1.0 - part
        if (cells + 1) ** 3 <= size:
            row = x + (cells + 1) * (y + (cells + 1) * z)
        else:
            row = ((x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32) % size
        yield levels.offsets[level] + row, weight


def _twin(table, x, levels, upstream):
    table, up = table.double().numpy(), upstream.double().numpy()
    out, grad = np.zeros(up.shape), np.zeros(table.shape)
    for i, point in enumerate(x.numpy()):
        for level in range(len(levels.resolutions)):
            at = slice(level * levels.features, (level + 1) * levels.features)
            for row, weight in _corners(point, levels, level):
                out[i, at] += weight * table[row]
                grad[row] += weight * up[i, at]
    return torch.from_numpy(out), torch.from_numpy(grad)


def _data(levels, n, seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.rand(levels.entries, levels.features, generator=g) * 2 - 1
    x, upstream = torch.rand(n, 3, generator=g), torch.randn(n, levels.width, generator=g)
    return table, x, upstream


def _both(table, x, levels, upstream):
    leaf = table.clone().requires_grad_()
    out = encode(leaf, x, levels)
    (grad,) = torch.autograd.grad(out, leaf, upstream)
    return out.detach(), grad


def _assert_equal(found, expected):
    out, grad = found
    torch.testing.assert_close(out.double(), expected[0].double(), atol=1e-6, rtol=0)
    scale = max(1.0, float(expected[1].abs().max())) if expected[1].numel() else 1.0
    torch.testing.assert_close(grad.double(), expected[1].double(), atol=1e-5 * scale, rtol=0)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(0, 70),
    features=st.integers(1, 5),
    count=st.integers(1, 4),
    log2_size=st.integers(3, 9),
    coarsest=st.integers(1, 9),
    growth=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_every_body_is_the_definition(
    running, body, n, features, count, log2_size, coarsest, growth, seed
):
    levels = Levels.geometric(
        count=count,
        features=features,
        log2_size=log2_size,
        coarsest=coarsest,
        finest=coarsest * growth,
    )
    table, x, upstream = _data(levels, n, seed)
    with running("hash_grid", body):
        _assert_equal(_both(table, x, levels, upstream), _twin(table, x, levels, upstream))


@settings(max_examples=12, deadline=None)
@given(n=st.integers(0, 70), features=st.integers(1, 3), seed=st.integers(0, 99))
def test_ranked_levels_look_their_rows_up_in_every_body(running, body, n, features, seed):
    """A ranked level equals the dense level whose vertex v has the values of row rank(v)."""
    dense = Levels.ranked((3, 9), (4**3, 10**3), features)
    levels = Levels.ranked((3, 9), (17, 301), features)
    table, x, upstream = _data(levels, n, seed)
    sizes = torch.tensor(levels.sizes).repeat_interleave(torch.tensor(dense.sizes))
    ranks = (torch.rand(levels.ranks, generator=torch.Generator().manual_seed(seed)) * sizes).int()
    rows = ranks + torch.tensor([0, 17]).repeat_interleave(torch.tensor(dense.sizes))
    out, grad = _twin(table[rows], x, dense, upstream)
    grad = torch.zeros(table.shape, dtype=torch.double).index_add_(0, rows, grad)
    leaf = table.clone().requires_grad_()
    with running("hash_grid", body):
        found = encode(leaf, x, levels, ranks=ranks)
        (found_grad,) = torch.autograd.grad(found, leaf, upstream)
    _assert_equal((found.detach(), found_grad), (out, grad))


def test_ranks_of_another_length_are_refused():
    levels = Levels.ranked((4,), (9,))
    with pytest.raises(ConfigError, match="look up 125 ranks, got none"):
        encode(torch.zeros(9, 2), torch.rand(3, 3), levels)
    with pytest.raises(ConfigError, match="look up 125 ranks, got 124"):
        encode(torch.zeros(9, 2), torch.rand(3, 3), levels, ranks=torch.zeros(124).int())


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 127, 130, 5000])
def test_compiled_bodies_equal_the_reference_for_every_remainder_of_the_block(running, compiled, n):
    data = _data(MIXED, n, n)
    with running("hash_grid", "reference"):
        expected = _both(data[0], data[1], MIXED, data[2])
    with running("hash_grid", compiled):
        _assert_equal(_both(data[0], data[1], MIXED, data[2]), expected)


@pytest.mark.parametrize("features", [1, 2, 3])
def test_levels_larger_than_the_cache_equal_the_reference(running, compiled, features):
    # 2^19 entries: the kernel fetches them ahead of their use. One level is dense.
    levels = Levels.geometric(count=2, log2_size=19, coarsest=79, finest=1024, features=features)
    assert levels.dense(0)
    assert not levels.dense(1)
    data = _data(levels, 200, 1)
    with running("hash_grid", "reference"):
        expected = _both(data[0], data[1], levels, data[2])
    with running("hash_grid", compiled):
        _assert_equal(_both(data[0], data[1], levels, data[2]), expected)


def test_huge_finite_points_are_not_taken_for_infinite_ones(running, body):
    table, _, _ = _data(MIXED, 0, 1)
    x = torch.full((9, 3), 3e38)  # their sum overflows
    with running("hash_grid", body):
        assert torch.equal(encode(table, x, MIXED), encode(table, torch.ones(9, 3), MIXED))


def test_faces_and_corners_of_the_cube_are_the_definition(running, body):
    last = 1 - 2.0**-24  # the largest float32 below 1
    x = torch.tensor(list(itertools.product((0.0, 2.0**-30, 0.5, last, 1.0), repeat=3)))
    table, _, upstream = _data(MIXED, len(x), 5)
    with running("hash_grid", body):
        _assert_equal(_both(table, x, MIXED, upstream), _twin(table, x, MIXED, upstream))


def test_a_vertex_returns_its_own_entry(running, body):
    levels = Levels.single(9, features=2)
    table = torch.randn(levels.entries, 2)
    axis = torch.arange(9) / 8  # exact in float32
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    with running("hash_grid", body):
        out = encode(table, torch.stack([x, y, z], -1).view(-1, 3), levels)
    assert torch.equal(out, table)


def test_a_dense_level_reproduces_linear_functions(running, body):
    levels = Levels.single(13)
    axis = torch.linspace(0, 1, 13, dtype=torch.double)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    table = (0.3 + 0.5 * x - 0.7 * y + 0.2 * z).reshape(-1, 1).float()
    points = torch.rand(200, 3)
    expected = 0.3 + points.double() @ torch.tensor([0.5, -0.7, 0.2]).double()
    with running("hash_grid", body):
        out = encode(table, points, levels)[:, 0]
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)


def test_points_outside_the_cube_are_moved_onto_it(running, body):
    table, _, _ = _data(MIXED, 0, 1)
    outside = torch.tensor([[-0.5, 0.3, 2.0], [1e20, -1e20, 0.5]])
    with running("hash_grid", body):
        assert torch.equal(encode(table, outside, MIXED), encode(table, outside.clamp(0, 1), MIXED))


def test_gradient_is_the_adjoint_of_the_lookup(running, body):
    # The lookup is linear in the table, so <g, E v> = <E^T g, v> needs no step size.
    table, x, upstream = _data(MIXED, 300, 8)
    with running("hash_grid", body):
        out, grad = _both(table, x, MIXED, upstream)
    left = (out.double() * upstream.double()).sum()
    right = (table.double() * grad.double()).sum()
    # Sums of 1e4 float32 products of size 1.
    torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-5)


def test_reference_passes_gradcheck_in_double():
    levels = Levels.geometric(count=3, log2_size=4, coarsest=1, finest=5)
    table, x, _ = _data(levels, 7, 2)
    with use(hash_grid="reference"):
        assert torch.autograd.gradcheck(
            lambda t: encode(t, x.double(), levels), table.double().requires_grad_()
        )


def test_double_tables_are_refused_by_the_compiled_kernel(running, compiled):
    table, x, _ = _data(MIXED, 3, 0)
    with running("hash_grid", compiled), pytest.raises(BackendError, match="float64"):
        encode(table.double(), x, MIXED)


def test_accumulate_adds_into_the_existing_gradient(running, body):
    table, x, upstream = _data(MIXED, 90, 3)
    leaf = table.clone().requires_grad_()
    with running("hash_grid", body):
        _, expected = _both(table, x, MIXED, upstream)
        for times in (1, 2, 3):
            encode(leaf, x, MIXED, accumulate=True).backward(upstream)
            assert leaf.grad is not None
            place = leaf.grad.data_ptr() if times == 1 else place
            assert leaf.grad.data_ptr() == place
            torch.testing.assert_close(leaf.grad, times * expected, atol=1e-4, rtol=1e-5)


def test_strided_points_and_gradients_are_accepted(running, body):
    table, x, upstream = _data(MIXED, 50, 4)
    strided = x.T.contiguous().T
    wide = torch.stack([upstream, upstream], -1)[..., 0]
    assert not strided.is_contiguous()
    assert not wide.is_contiguous()
    with running("hash_grid", body):
        expected = _both(table, x, MIXED, upstream)
        _assert_equal(_both(table, strided, MIXED, wide), expected)


def test_no_points_give_no_features_and_no_gradient(running, body):
    table, x, upstream = _data(MIXED, 0, 0)
    with running("hash_grid", body):
        out, grad = _both(table, x, MIXED, upstream)
    assert out.shape == (0, MIXED.width)
    assert not grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_points_that_are_not_finite_are_counted_in_the_error(running, body, bad):
    table, x, _ = _data(MIXED, 10, 0)
    x[3, 1] = x[7, 0] = x[7, 2] = bad
    with running("hash_grid", body), pytest.raises(ConfigError, match="2 of 10 points"):
        encode(table, x, MIXED)


def test_a_nan_gradient_reaches_the_table(running, body):
    table, x, upstream = _data(MIXED, 5, 0)
    upstream[2, 0] = float("nan")
    with running("hash_grid", body):
        assert _both(table, x, MIXED, upstream)[1].isnan().any()


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="table of shape"):
        encode(torch.zeros(MIXED.entries + 1, 2), torch.rand(3, 3), MIXED)


def test_threads_do_not_change_a_bit(running, compiled, two_threads):
    table, x, upstream = _data(MIXED, 5000, 6)
    with running("hash_grid", compiled):
        pooled = _both(table, x, MIXED, upstream)
        torch.set_num_threads(1)
        alone = _both(table, x, MIXED, upstream)
    assert torch.equal(pooled[0], alone[0])
    assert torch.equal(pooled[1], alone[1])


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 20),
    log2_size=st.integers(3, 20),
    coarsest=st.integers(1, 64),
    growth=st.integers(1, 64),
)
def test_levels_follow_one_another_without_gaps(count, log2_size, coarsest, growth):
    levels = Levels.geometric(
        count=count, log2_size=log2_size, coarsest=coarsest, finest=coarsest * growth
    )
    assert levels.resolutions[0] == coarsest
    assert levels.resolutions[-1] == (coarsest * growth if count > 1 else coarsest)
    assert list(levels.resolutions) == sorted(levels.resolutions)
    ends = [a + b for a, b in zip(levels.offsets, levels.sizes, strict=True)]
    assert list(levels.offsets) == [0, *ends[:-1]]
    for level, size in enumerate(levels.sizes):
        assert levels.dense(level) or size == 1 << log2_size
        assert size % 8 == 0


# HollowNeRF 2308.10122, Table 1: the Instant-NGP row in millions, 9,344 of them in the networks.
@pytest.mark.parametrize(
    ("log2_size", "millions"),
    [(14, 0.50), (15, 0.94), (16, 1.77), (17, 3.34), (18, 6.22), (19, 11.49)],
)
def test_entry_counts_are_those_of_the_paper(log2_size, millions):
    total = 2 * Levels.geometric(log2_size=log2_size).entries + 9344
    assert round(total / 1e6, 2) == millions


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"features": 0}, {"coarsest": 9, "finest": 8}, {"log2_size": 2}]
)
def test_impossible_grids_are_refused(wrong):
    with pytest.raises(ConfigError, match="impossible"):
        Levels.geometric(**wrong)


def test_a_dense_grid_needs_two_vertices():
    with pytest.raises(ConfigError, match="at least 2"):
        Levels.single(1)
