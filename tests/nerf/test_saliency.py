from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from compress3g.errors import ConfigError
from compress3g.nerf.saliency import SaliencyGrid


def _grid(resolution: int, seed: int = 0, spread: float = 4.0) -> SaliencyGrid:
    grid = SaliencyGrid(resolution)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        grid.logits.copy_(torch.randn(resolution**3, 1, generator=generator) * spread)
    return grid


def _points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


def _logits(grid: SaliencyGrid) -> np.ndarray:
    """[z, y, x] in double."""
    r = grid.resolution
    return grid.logits.detach().double().numpy().reshape(r, r, r)


def _sigmoid(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-t))


def _true(grid: SaliencyGrid, x: torch.Tensor) -> np.ndarray:
    place = x.double().numpy()[:, ::-1].T * (grid.resolution - 1)
    return _sigmoid(map_coordinates(_logits(grid), place, order=1, mode="nearest"))


def test_a_fresh_grid_is_the_sigmoid_of_one_everywhere():
    p = SaliencyGrid(9)(_points(100))
    torch.testing.assert_close(p, torch.full((100,), 0.7310586))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(0, 99), st.integers(0, 40))
def test_p_is_the_sigmoid_of_the_trilinear_interpolation(resolution, seed, count):
    grid, x = _grid(resolution, seed), _points(count, seed)
    # Positions of up to 24 cells in float32 keep 19 bits of fraction; logits differ by 20 at most.
    np.testing.assert_allclose(grid(x).detach().numpy(), _true(grid, x), atol=2e-5)


def test_interpolation_comes_before_the_sigmoid():
    grid = SaliencyGrid(2)
    with torch.no_grad():
        grid.logits.copy_(torch.tensor([-8.0, 4.0]).repeat(4)[:, None])
    middle = grid(torch.tensor([[0.5, 0.5, 0.5]]))
    # sigmoid(-2) = 0.12; the mean of the sigmoids would be 0.49.
    torch.testing.assert_close(middle, torch.tensor([-2.0]).sigmoid())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 64), st.data())
def test_vertices_lie_on_the_faces_of_the_box(resolution, data):
    grid = SaliencyGrid(resolution)
    k = torch.tensor([data.draw(st.integers(0, resolution - 1)) for _ in range(3)])
    with torch.no_grad():
        grid.logits[k[0] + resolution * (k[1] + resolution * k[2])] = 5.0
    p = grid((k.float() / (resolution - 1))[None])
    # k/(R-1) is rounded: the neighbours, 4 lower, weigh in by up to 64 * 6e-8.
    torch.testing.assert_close(p, torch.tensor([5.0]).sigmoid(), atol=1e-6, rtol=0)


def test_corners_of_the_box_are_corners_of_the_grid():
    grid = _grid(5)
    corner = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    volume = grid.volume()
    wanted = [volume[0, 0, 0], volume[0, 0, -1], volume[0, -1, 0], volume[-1, 0, 0]]
    torch.testing.assert_close(grid(corner), torch.stack([*wanted, volume[-1, -1, -1]]))


def test_the_volume_is_p_at_the_vertices_indexed_zyx():
    grid = _grid(6)
    np.testing.assert_allclose(grid.volume().numpy(), _sigmoid(_logits(grid)), atol=1e-6)
    assert not grid.volume().requires_grad


def test_points_outside_get_the_value_of_the_face():
    grid = _grid(4)
    inside, outside = torch.tensor([[0.0, 0.3, 1.0]]), torch.tensor([[-2.0, 0.3, 1.5]])
    assert torch.equal(grid(outside), grid(inside))


def test_the_gradient_is_that_of_finite_differences():
    grid, x = _grid(5, spread=1.0), _points(64)
    upstream = torch.randn(64, generator=torch.Generator().manual_seed(3))
    (grid(x) * upstream).sum().backward()
    place = x.double().numpy()[:, ::-1].T * 4
    logits, step = _logits(grid), 1e-5
    for seed in range(6):
        way = np.random.default_rng(seed).standard_normal(logits.shape)
        up, down = (
            _sigmoid(map_coordinates(logits + s * way, place, order=1)) for s in (step, -step)
        )
        expected = ((up - down) / (2 * step)) @ upstream.double().numpy()
        found = grid.logits.grad.double().numpy().reshape(-1) @ way.reshape(-1)
        # The gradient in float32, the difference in double with an error of step^2.
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_gradients_add_up_over_backward_passes():
    grid, x = _grid(4), _points(10)
    grid(x).sum().backward()
    once = grid.logits.grad.clone()
    grid(x).sum().backward()
    torch.testing.assert_close(grid.logits.grad, 2 * once)


@pytest.mark.parametrize("resolution", [0, 1])
def test_a_grid_needs_two_vertices_per_axis(resolution):
    with pytest.raises(ConfigError, match="at least 2"):
        SaliencyGrid(resolution)


def test_points_that_are_not_numbers_are_refused():
    with pytest.raises(ConfigError, match="1 of 2 points"):
        SaliencyGrid(4)(torch.tensor([[0.1, 0.2, 0.3], [0.1, torch.nan, 0.3]]))
