from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError, ConfigError
from compress3g.kernels.ray_march import march, pack_bits, unpack_bits

MARGIN = 1e-4  # cells; float32 positions near 1 are off by about 1e-6 of the cube


def _rays(n, seed):
    g = torch.Generator().manual_seed(seed)
    origin = torch.rand(n, 3, generator=g) * 3 - 1
    direction = torch.rand(n, 3, generator=g) - origin
    direction[::7, 0] = 0.0
    direction[:, :][direction.norm(dim=-1) < 1e-3] = 1.0
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return origin, direction, torch.rand(n, generator=g)


def _twin(o, d, jitter, cells, step, near):
    """Lattice numbers that are samples, and those that may be, of one ray in double."""
    side = len(cells)
    k = np.arange(int(6 / step))
    t = (k + float(jitter)) * step
    p = o.double().numpy() + t[:, None] * d.double().numpy()
    inside = np.minimum(p, 1 - p).min(-1)
    cell = np.clip((p * side).astype(int), 0, side - 1)
    hit = (inside > 0) & (t > near) & cells.numpy()[cell[:, 2], cell[:, 1], cell[:, 0]]
    wall = np.abs(p * side - np.round(p * side)).min(-1)
    unsure = (wall < MARGIN) | (np.abs(inside) * side < MARGIN) | (np.abs(t - near) < MARGIN)
    return set(k[hit & ~unsure]), set(k[hit | unsure])


@settings(max_examples=8, deadline=None)
@given(
    side=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    step=st.sampled_from([0.011, 0.037]),
    near=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 99),
)
def test_every_body_finds_the_open_lattice_points(running, body, side, share, step, near, seed):
    cells = torch.rand(side, side, side, generator=torch.Generator().manual_seed(seed)) < share
    origin, direction, jitter = _rays(20, seed)
    with running("ray_march", body):
        s = march(origin, direction, jitter, pack_bits(cells), side=side, step=step, near=near)
    assert s.offset[0] == 0
    assert s.offset[-1] == len(s) == len(s.x) == len(s.ray)
    for r in range(len(origin)):
        own = slice(int(s.offset[r]), int(s.offset[r + 1]))
        assert (s.ray[own] == r).all()
        found = torch.round(s.distance[own].double() / step - jitter[r].double()).long().tolist()
        assert found == sorted(set(found))
        sure, possible = _twin(origin[r], direction[r], jitter[r], cells, step, near)
        assert sure <= set(found) <= possible
    x = origin[s.ray].double() + s.distance[:, None].double() * direction[s.ray].double()
    torch.testing.assert_close(s.x.double(), x, atol=2e-6, rtol=0)
    assert ((s.x >= 0) & (s.x <= 1)).all()


def test_a_sample_does_not_move_when_a_neighbour_closes_and_the_limit_keeps_the_first(
    running, body
):
    cells = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    rays = _rays(50, 2)
    with running("ray_march", body):
        full = march(*rays, pack_bits(torch.ones_like(cells)), side=6, step=0.01)
        some = march(*rays, pack_bits(cells), side=6, step=0.01)
        few = march(*rays, pack_bits(cells), side=6, step=0.01, limit=5)
    for r in range(50):
        a, b, c = (s.distance[s.offset[r] : s.offset[r + 1]].tolist() for s in (full, some, few))
        assert set(b) <= set(a)
        assert c == b[:5]


def test_no_rays_and_rays_that_miss_have_no_samples(running, body):
    bits = pack_bits(torch.ones(4, 4, 4, dtype=torch.bool))
    with running("ray_march", body):
        none = march(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), bits, side=4, step=0.1)
        away = torch.tensor([[2.0, 2.0, 2.0], [-1.0, 5.0, 0.5]])
        miss = march(away, torch.tensor([[1.0, 0, 0]] * 2), torch.zeros(2), bits, side=4, step=0.1)
    assert len(none) == len(miss) == 0
    assert none.offset.tolist() == [0]
    assert miss.offset.tolist() == [0, 0, 0]


@given(side=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_bits_is_numpys_little_endian_and_unpacks(side, seed):
    cells = torch.rand(side, side, side, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(cells)
    assert np.array_equal(bits.numpy(), np.packbits(cells.numpy().ravel(), bitorder="little"))
    assert torch.equal(unpack_bits(bits, side), cells)


@pytest.mark.parametrize("wrong", ["bits", "step", "nan", "direction"])
def test_impossible_input_is_refused(wrong):
    origin, direction, jitter = _rays(3, 0)
    bits = torch.zeros(7 if wrong == "bits" else 8, dtype=torch.uint8)
    if wrong == "nan":
        origin[1, 2] = float("nan")
    if wrong == "direction":
        direction[1] = 0
    with pytest.raises(ConfigError):
        march(origin, direction, jitter, bits, side=4, step=0.0 if wrong == "step" else 0.1)


def test_grids_whose_cells_do_not_count_in_an_integer_are_refused():
    origin, direction, jitter = _rays(3, 0)
    with pytest.raises(ConfigError, match="1291"):
        march(origin, direction, jitter, torch.zeros(8, dtype=torch.uint8), side=1291, step=0.1)


@pytest.mark.parametrize("step", [0.0004, 0.003, 0.02, 0.2])
def test_cells_of_many_steps_and_steps_of_many_cells_are_both_crossed(running, compiled, step):
    cells = torch.rand(20, 20, 20, generator=torch.Generator().manual_seed(7)) < 0.02
    scene, found = _rays(60, 3), []
    for body in ("reference", compiled):
        with running("ray_march", body):
            samples = march(*scene, pack_bits(cells), side=20, step=step)
        found.append(_lattice_points(samples, scene[2], step))
    # Only points within a rounding of a wall may be judged differently.
    assert len(found[0] ^ found[1]) <= 2e-3 * len(found[0]) + 1


def _lattice_points(samples, jitter, step):
    k = torch.round(samples.distance.double() / step - jitter.double()[samples.ray]).long()
    return set(zip(samples.ray.tolist(), k.tolist(), strict=True))


@pytest.mark.parametrize("rays", [1, 127, 128, 129, 700])
def test_compiled_bodies_equal_the_reference(running, compiled, rays):
    cells = torch.rand(13, 13, 13, generator=torch.Generator().manual_seed(rays)) < 0.3
    scene = _rays(rays, rays)
    found = []
    for body in ("reference", compiled):
        with running("ray_march", body):
            samples = march(*scene, pack_bits(cells), side=13, step=0.01)
        found.append(_lattice_points(samples, scene[2], 0.01))
    # Only points within a rounding of a wall may be judged differently.
    assert len(found[0] ^ found[1]) <= 2e-3 * len(found[0]) + 1


def test_rays_along_the_axes_cross_every_cell_alike(running, body):
    side, eye = 8, torch.eye(3)
    direction = torch.cat([eye, -eye])
    origin = torch.where(direction == 0, 0.3, -0.5 * direction + (direction < 0).float())
    bits = pack_bits(torch.ones(side, side, side, dtype=torch.bool))
    with running("ray_march", body):
        samples = march(origin, direction, torch.full((6,), 0.5), bits, side=side, step=1 / 64)
    assert samples.offset.diff().tolist() == [64] * 6
    for ray in range(6):
        x = samples.x[samples.offset[ray] : samples.offset[ray + 1], ray % 3]
        assert torch.bincount((x * side).long(), minlength=side).tolist() == [8] * side


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_ray_of_more_steps_than_a_float_counts_ends_at_once(running, body, share):
    direction = torch.tensor([[1e-30, 0.0, 0.0], [1.0, 0.0, 0.0]])
    bits = pack_bits(torch.full((4, 4, 4), bool(share)))
    with running("ray_march", body):
        samples = march(torch.full((2, 3), 0.5), direction, torch.zeros(2), bits, side=4, step=0.1)
    assert samples.offset.tolist() == [0, 0, 5 if share else 0]


def test_strided_rays_are_accepted(running, body):
    origin, direction, jitter = _rays(50, 4)
    bits = pack_bits(torch.rand(7, 7, 7) < 0.5)
    strided = (
        *(t.T.contiguous().T for t in (origin, direction)),
        torch.stack([jitter] * 2, -1)[:, 0],
    )
    with running("ray_march", body):
        expected = march(origin, direction, jitter, bits, side=7, step=0.03)
        found = march(*strided, bits, side=7, step=0.03)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.offset, expected.offset)


def test_threads_do_not_change_a_sample(running, compiled, two_threads):
    bits = pack_bits(torch.rand(16, 16, 16) < 0.2)
    scene, results = _rays(3000, 9), []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        with running("ray_march", compiled):
            results.append(march(*scene, bits, side=16, step=0.02))
    assert torch.equal(results[0].x, results[1].x)
    assert torch.equal(results[0].distance, results[1].distance)
    assert torch.equal(results[0].ray, results[1].ray)


def test_doubles_are_refused_by_the_compiled_kernel(running, compiled):
    origin, direction, jitter = _rays(5, 0)
    bits = torch.zeros(8, dtype=torch.uint8)
    with running("ray_march", compiled), pytest.raises(BackendError, match="float64"):
        march(origin.double(), direction, jitter, bits, side=4, step=0.1)
