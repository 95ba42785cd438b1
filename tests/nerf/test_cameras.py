from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.nerf.cameras import Cameras
from compress3g.nerf.distortion import distort_radius, reach

LENSES = {
    "pinhole": [0.0] * 6,
    "opencv": [-0.25, 0.08, -0.012, 6e-4, -1e-3, 5e-4],
    "opencv_fisheye": [-0.03, 4e-3, -1e-3, 1e-4, 0.0, 0.0],
}


def _turn(axis, angle):
    """Rodrigues' rotation in double."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    cross = torch.stack(
        [torch.stack(row) for row in ((0 * x, -z, y), (z, 0 * x, -x), (-y, x, 0 * x))]
    )
    eye = torch.eye(3, dtype=torch.float64)
    return eye + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _cameras(model, dtype=torch.float64, width=160, height=120):
    poses = torch.stack(
        [
            torch.cat([_turn(axis, angle), torch.tensor(at).double()[:, None]], 1)
            for axis, angle, at in (
                ([0, 0, 1], 0.0, [0.0, 0.0, 0.0]),
                ([1, 2, 3], 0.7, [3.0, -4.0, 2.0]),
                ([-1, 0.3, 0.5], 2.9, [-1.0, 5.0, 0.5]),
            )
        ]
    )
    intrinsics = torch.tensor([[90.0, 95.0, 81.0, 58.5]]).double().expand(3, 4)
    return Cameras(
        width=width,
        height=height,
        intrinsics=intrinsics.to(dtype),
        distortion=torch.tensor(LENSES[model]).double().expand(3, 6).to(dtype),
        model=model,
        poses=poses.to(dtype),
    )


def _grid(cameras):
    y, x = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    return x.reshape(-1), y.reshape(-1)


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize(
    # float32: a hundred-pixel coordinate has steps of 1e-5, and poses lose as much again.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-8), (torch.float32, 1e-4)],
)
def test_points_on_the_ray_of_a_pixel_project_to_its_centre(model, dtype, tolerance):
    cameras = _cameras(model, dtype)
    x, y = _grid(cameras)
    for view in range(3):
        origin, direction = cameras.rays(torch.full_like(x, view), x, y)
        distance = torch.linspace(0.5, 4, len(x), dtype=dtype)[:, None]
        found, depth = cameras.project(view, origin + distance * direction)
        error = (found - torch.stack([x, y], -1) - 0.5).abs().max()
        assert error < tolerance
        assert (depth > 0).all()


@pytest.mark.parametrize("model", LENSES)
def test_rays_start_at_the_camera_and_have_length_one(model):
    cameras = _cameras(model)
    x, y = _grid(cameras)
    origin, direction = cameras.rays(torch.full_like(x, 2), x, y)
    assert torch.equal(origin, cameras.poses[2, :, 3].expand_as(origin))
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(len(x)).double())


def test_a_pinhole_looks_along_its_negative_z_with_y_up():
    cameras = _cameras("pinhole")
    intrinsics = torch.tensor([[100.0, 100.0, 80.5, 60.5]]).double().expand(3, 4)
    cameras = replace(cameras, intrinsics=intrinsics)
    view, x, y = (
        torch.zeros(3, dtype=torch.long),
        torch.tensor([80, 130, 80]),
        torch.tensor([60, 60, 10]),
    )
    _, direction = cameras.rays(view, x, y)
    expected = torch.tensor([[0, 0, -1.0], [0.5, 0, -1.0], [0, 0.5, -1.0]]).double()
    torch.testing.assert_close(direction, torch.nn.functional.normalize(expected, dim=1))


def test_a_fisheye_shows_equal_angles_at_equal_distances():
    cameras = replace(_cameras("opencv_fisheye"), distortion=torch.zeros(3, 6).double())
    angles = torch.tensor([0.0, 0.4, 0.8, 1.2, 1.6, 2.0]).double()  # past 90 degrees
    points = torch.stack([angles.sin(), 0 * angles, -angles.cos()], -1) * 3
    found, depth = cameras.project(0, points)
    torch.testing.assert_close(found[:, 0], 81 + 90 * angles)
    torch.testing.assert_close(found[:, 1], torch.full((6,), 58.5).double())
    torch.testing.assert_close(depth, 3 * angles.cos())


@pytest.mark.parametrize("model", ["pinhole", "opencv"])
def test_points_behind_a_lens_are_far_outside_the_picture(model):
    points = torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.2, 0.0], [0.0, 0.0, -1.0]]).double()
    found, depth = _cameras(model).project(0, points)
    assert found.isfinite().all()
    assert (found[:2] < -1e5).all()
    assert torch.allclose(found[2], torch.tensor([81.0, 58.5]).double())
    assert depth.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("model", ["opencv", "opencv_fisheye"])
def test_points_beyond_the_fold_are_not_mapped_back_into_the_picture(model):
    lens = torch.tensor([-1 / 3, 0, 0, 0, 0, 0]).double().expand(3, 6)  # folds at 1
    cameras = replace(_cameras(model), distortion=lens)
    offset = {"opencv": lambda r: r, "opencv_fisheye": math.tan}[model]
    points = torch.tensor([[offset(0.99), 0, -1], [offset(1.01), 0, -1]]).double()
    found, _ = cameras.project(0, points)
    assert found[0, 0] > 81
    assert (found[1] < -1e5).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-3, 2), min_size=1, max_size=5))
def test_selected_views_are_those_views(index):
    cameras = _cameras("opencv")
    found = cameras.select(index)
    assert len(found) == len(index)
    for i, row in enumerate(index):
        assert torch.equal(found.poses[i], cameras.poses[row])
        assert torch.equal(found.intrinsics[i], cameras.intrinsics[row])


def test_one_view_and_slices_are_selected_too():
    cameras = _cameras("pinhole")
    assert torch.equal(cameras.select(1).poses, cameras.poses[1:2])
    assert torch.equal(cameras.select(slice(1, None)).poses, cameras.poses[1:])
    assert torch.equal(cameras.select(torch.tensor([2, 0])).poses, cameras.poses[[2, 0]])
    assert len(cameras.select(slice(3, None))) == 0


@pytest.mark.parametrize("model", LENSES)
def test_a_transformed_scene_is_seen_in_the_same_pixels(model):
    cameras = _cameras(model)
    centre, scale = torch.tensor([1.0, -2.0, 0.5]).double(), 0.25
    moved = cameras.transformed(centre, scale)
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    before, depth = cameras.project(1, points)
    after, other = moved.project(1, (points - centre) * scale)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(other, depth * scale)


def test_moving_to_a_device_keeps_everything():
    cameras = _cameras("opencv")
    found = cameras.to(torch.device("meta"))
    assert found.poses.device.type == found.intrinsics.device.type == "meta"
    assert found.distortion.device.type == "meta"
    assert (found.width, found.height, found.model) == (160, 120, "opencv")


@pytest.mark.parametrize("model", ["opencv", "opencv_fisheye"])
def test_pixels_beyond_the_fold_are_counted(model):
    lens = torch.tensor([-1 / 3, 0, 0, 0, 0, 0]).double().expand(3, 6)  # shows nothing past 2/3
    cameras = replace(_cameras(model), distortion=lens)
    x, y = _grid(cameras)
    seen = torch.stack([(x + 0.5 - 81) / 90, (y + 0.5 - 58.5) / 95], 1).norm(dim=1)
    expected = float((seen > 2 / 3).double().mean())
    assert expected > 0.3
    assert cameras.unmapped() == pytest.approx(expected, abs=1e-9)
    assert _cameras(model).unmapped() == 0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["opencv", "opencv_fisheye"]),
    st.tuples(*[st.integers(-300, 300).map(lambda i: i / 1000)] * 4),
)
def test_every_pixel_that_a_lens_maps_comes_back(model, k):
    lens = torch.tensor([*k, 0, 0]).double().expand(3, 6)
    cameras = replace(_cameras(model), distortion=lens)
    x, y = _grid(cameras)
    view = torch.zeros_like(x)
    origin, direction = cameras.rays(view, x, y)
    found, _ = cameras.project(0, origin + 2 * direction)
    expected = torch.stack([x, y], 1) + 0.5
    seen = ((expected - torch.tensor([81, 58.5])) / torch.tensor([90, 95])).norm(dim=1)
    limit = reach(lens[:1], fisheye=model == "opencv_fisheye")
    # A thousandth inside the outermost circle, for a point on it may project to nothing.
    mapped = seen < 0.999 * float(distort_radius(limit, lens[:1]))
    assert mapped.any()
    assert (found - expected)[mapped].abs().max() < 1e-4
