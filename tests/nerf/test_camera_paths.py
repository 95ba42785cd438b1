from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError, SceneError
from compress3g.nerf.camera_paths import from_json, orbit, spiral
from compress3g.nerf.cameras import Cameras

# Poses come back in float32: 2^-24 relative per number, a few of them per result.
_CLOSE = 2e-5


def _normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _unit(v: torch.Tensor) -> torch.Tensor:
    return v / v.norm(dim=-1, keepdim=True)


def _rotation(seed: int) -> torch.Tensor:
    q = torch.linalg.qr(_normal(3, 3, seed=seed)).Q
    return q * torch.linalg.det(q)


def _upright(position: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Camera-to-world matrices without roll, z up, looking along -back."""
    back = _unit(back)
    right = _unit(torch.linalg.cross(back.new_tensor([0, 0, 1]).expand_as(back), back))
    return torch.stack([right, torch.linalg.cross(back, right), back, position], -1)


def _cameras(poses: torch.Tensor, size: tuple[int, int] = (64, 48)) -> Cameras:
    width, height = size
    n = len(poses)
    lens = torch.tensor([70.0, 72.0, width / 2 + 3, height / 2 - 2]).expand(n, 4)
    return Cameras(
        width=width,
        height=height,
        intrinsics=lens,
        distortion=torch.full((n, 6), 0.01),
        model="opencv",
        poses=poses.float(),
    )


def _around(centre: torch.Tensor, count: int = 40, seed: int = 0) -> Cameras:
    """Upright cameras on a dome of radius 3 around a point, looking straight at it."""
    direction = _unit(_normal(count, 3, seed=seed))
    direction[:, 2] = direction[:, 2].abs() * 0.6 + 0.1
    direction = _unit(direction)
    return _cameras(_upright(centre + 3 * direction, direction))


def _forward_facing(count: int = 30, seed: int = 0, focus: float | None = 5.0) -> Cameras:
    """Cameras near the origin that look along -x, at one point of it or straight ahead."""
    position = _normal(count, 3, seed=seed) * torch.tensor([0.05, 0.5, 0.3])
    back = torch.tensor([1.0, 0, 0]).double().expand(count, 3)
    if focus is not None:
        back = position + back * focus
    return _cameras(_upright(position, back))


def _turned(cameras: Cameras, rotation: torch.Tensor) -> Cameras:
    return _cameras((rotation @ cameras.poses.double()).float())


def _forward(path: Cameras) -> torch.Tensor:
    return -path.poses[:, :, 2].double()


def _elevation(path: Cameras, centre: torch.Tensor) -> torch.Tensor:
    offset = _unit(path.poses[:, :, 3].double() - centre)
    return offset[:, 2].asin().rad2deg()


def _steps(path: Cameras) -> torch.Tensor:
    """Distances from each position to the next, the last one's to the first."""
    position = path.poses[:, :, 3].double()
    return (position.roll(-1, 0) - position).norm(dim=1)


_CENTRE = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)


def _check_rigid(path: Cameras) -> None:
    axes = path.poses[:, :, :3].double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(axes)
    torch.testing.assert_close(axes.mT @ axes, eye, atol=1e-6, rtol=0)
    assert (torch.linalg.det(axes) > 0.999).all()
    assert path.poses.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(0, 999),
    st.integers(1, 40),
    st.sampled_from(["dome", "forward", "ahead", "any"]),
    st.sampled_from([orbit, spiral]),
    st.sampled_from([None, (32, 32), (7, 200)]),
)
def test_all_poses_are_orthonormal_and_right_handed(count, seed, frames, kind, way, size):
    cameras = {
        "dome": lambda: _around(_CENTRE, count, seed),
        "forward": lambda: _forward_facing(count, seed),
        "ahead": lambda: _forward_facing(count, seed, None),
        "any": lambda: _cameras(
            torch.stack(
                [
                    torch.cat([_rotation(seed + i), _normal(3, 1, seed=seed + i)], 1)
                    for i in range(count)
                ]
            )
        ),
    }[kind]()
    try:
        path = way(cameras, frames=frames, size=size)
    except SceneError:  # fine: few cameras, or those that look anywhere or one way
        assert kind == "any" or (way is orbit and kind != "dome") or count < 5
        return
    assert len(path) == frames
    assert (path.width, path.height) == (size or (64, 48))
    assert path.model == "pinhole"
    assert not path.distortion.any()
    assert (path.intrinsics[:, :2] > 0).all()
    _check_rigid(path)


@pytest.mark.parametrize("elevation", [-60.0, 0.0, 25.0, 89.5])
@pytest.mark.parametrize("radius", [0.5, 4.0])
def test_an_orbit_keeps_the_given_elevation_and_radius_and_looks_at_the_centre(elevation, radius):
    path = orbit(_around(_CENTRE), frames=24, elevation=elevation, radius=radius)
    position = path.poses[:, :, 3].double()
    to_centre = _CENTRE - position
    assert torch.allclose(to_centre.norm(dim=1), torch.tensor(radius).double(), rtol=_CLOSE)
    looking = (_unit(to_centre) * _forward(path)).sum(1)
    assert (looking > 1 - 1e-6).all()
    # Near the pole the sine is flat: 1e-6 of it is 0.1 degrees.
    assert (_elevation(path, _CENTRE) - elevation).abs().max() < (0.1 if elevation > 89 else 0.01)


def test_an_orbit_takes_the_median_radius_and_elevation_of_the_cameras():
    cameras = _around(_CENTRE, 41)
    path = orbit(cameras, frames=10)
    offset = path.poses[:, :, 3].double() - _CENTRE
    assert torch.allclose(offset.norm(dim=1), torch.tensor(3.0).double(), rtol=_CLOSE)
    median = _elevation(cameras, _CENTRE).median()
    assert (_elevation(path, _CENTRE) - median).abs().max() < 0.01


@pytest.mark.parametrize("frames", [3, 8, 90])
def test_an_orbit_is_one_closed_even_turn(frames):
    path = orbit(_around(_CENTRE), frames=frames, elevation=0.0, radius=2.0)
    # Every chord, also the one from the last frame back to the first, spans 360/frames degrees.
    chord = torch.tensor(2 * 2 * math.sin(math.pi / frames)).double()
    assert torch.allclose(_steps(path), chord, rtol=1e-4)
    position = path.poses[:, :, 3].double() - _CENTRE
    assert position.mean(0).norm() < 1e-5
    # Each frame turns the same way by less than half a circle: one turn, not several.
    turn = torch.linalg.cross(position, position.roll(-1, 0))[:, 2]
    assert (turn > 0).all() or (turn < 0).all()


def test_an_orbit_starts_beside_the_first_camera():
    cameras = _around(_CENTRE)
    start = orbit(cameras, frames=12).poses[0, :2, 3].double() - _CENTRE[:2]
    first = cameras.poses[0, :2, 3].double() - _CENTRE[:2]
    assert _unit(start) @ _unit(first) > 1 - 1e-6


def test_an_orbit_is_upright():
    path = orbit(_around(_CENTRE), frames=12)
    assert path.poses[:, 2, 0].abs().max() < _CLOSE  # horizontal x axes
    assert (path.poses[:, 2, 1] > 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cameras", [_around(_CENTRE), _forward_facing()])
@pytest.mark.parametrize("way", [orbit, spiral])
def test_a_path_turns_with_the_world(seed, cameras, way):
    # No axis of the world is special: up is found from the cameras.
    rotation = _rotation(seed)
    if way is orbit and cameras.poses[:, 0, 2].min() > 0.9:
        cameras = _around(_CENTRE, 9, seed)
    turned = way(_turned(cameras, rotation), frames=7)
    expected = rotation @ way(cameras, frames=7).poses.double()
    torch.testing.assert_close(turned.poses.double(), expected, atol=1e-4, rtol=0)


def test_upside_down_photos_orbit_the_other_way_up():
    cameras = _around(_CENTRE)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    poses = torch.cat([cameras.poses[:, :, :3] @ turn, cameras.poses[:, :, 3:]], -1)
    assert (orbit(_cameras(poses), frames=6).poses[:, 2, 1] < 0).all()


def test_an_orbit_from_straight_above_works():
    back = torch.tensor([[0.0, 0, 1], [0.3, 0.1, 1], [0.1, -0.4, 1], [-0.3, 0.1, 1]]).double()
    poses = _upright(_CENTRE + 2 * _unit(back), back + torch.tensor([1e-9, 0, 0]))
    path = orbit(_cameras(poses), frames=5, elevation=30.0)
    _check_rigid(path)
    assert torch.allclose(_elevation(path, _CENTRE), torch.tensor(30.0).double(), atol=0.5)


def test_a_few_stray_cameras_do_not_move_an_orbit_much():
    poses = _around(_CENTRE, 60).poses
    poses[:3, :, 3] += torch.tensor([[0.0, 0.3, 0], [0.3, 0, 0], [0, 0, -0.3]])
    path = orbit(_cameras(poses), frames=12, radius=3.0)
    middle = path.poses[:, :2, 3].double().mean(0)
    assert (middle - _CENTRE[:2]).norm() < 0.05


def test_a_path_has_the_median_lens_in_place_of_each_camera_s_own():
    cameras = _around(_CENTRE, 5)
    cameras.intrinsics.set_(torch.tensor([[50.0 + i, 60 - i, 30 + i, 20] for i in range(5)]))
    for path in (orbit(cameras, frames=3), spiral(cameras, 3)):
        assert torch.equal(path.intrinsics, torch.tensor([[52.0, 58, 32, 20]]).expand(3, 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_another_size_shows_everything_at_square_pixels(width, height):
    cameras = _around(_CENTRE, 3)
    plain = orbit(cameras, frames=2).intrinsics.double()[0]
    other = orbit(cameras, frames=2, size=(width, height)).intrinsics.double()[0]
    corners = torch.tensor([[0.0, 0], [64, 0], [0, 48], [64, 48]]).double()
    seen = (corners - plain[2:]) / plain[:2]
    pixel = seen * other[:2] + other[2:]
    # Float32 focal lengths on images of 300 pixels.
    assert (pixel > -1e-3).all()
    assert (pixel < torch.tensor([width, height]) + 1e-3).all()
    assert other[0] / other[1] == pytest.approx(70 / 72, rel=1e-6)
    # As large as possible: one direction is filled.
    span = pixel.amax(0) - pixel.amin(0)
    assert ((span - torch.tensor([width, height])).abs() < 1e-3).any()


def test_a_spiral_around_sweeps_the_elevations_of_the_cameras_at_their_distance():
    cameras = _around(_CENTRE, 60)
    path = spiral(cameras, 40)
    offset = path.poses[:, :, 3].double() - _CENTRE
    assert torch.allclose(offset.norm(dim=1), torch.tensor(3.0).double(), rtol=_CLOSE)
    assert ((_unit(-offset) * _forward(path)).sum(1) > 1 - 1e-6).all()
    height = _elevation(path, _CENTRE)
    low, high = _elevation(cameras, _CENTRE).quantile(torch.tensor([0.1, 0.9]).double())
    assert height[0] == pytest.approx(float(low), abs=0.01)
    assert height[20] == pytest.approx(float(high), abs=0.01)
    assert (height[:21].diff() > 0).all()
    assert (height[20:].diff() < 0).all()


def test_a_spiral_around_makes_two_closed_turns():
    path = spiral(_around(_CENTRE), 80)
    offset = path.poses[:, :2, 3].double() - _CENTRE[:2]
    angle = torch.atan2(offset[:, 1], offset[:, 0])
    step = (angle.roll(-1) - angle + math.pi) % (2 * math.pi) - math.pi
    assert step.abs().max() - step.abs().min() < 1e-4  # also from the last to the first
    assert abs(step.sum()) == pytest.approx(4 * math.pi, rel=1e-4)
    steps = _steps(path)
    assert steps[-1] < 1.5 * steps[:-1].max()


def test_a_forward_facing_spiral_looks_at_the_common_point():
    path = spiral(_forward_facing(focus=5.0), 30)
    to = _unit(torch.tensor([-5.0, 0, 0]).double() - path.poses[:, :, 3].double())
    assert ((to * _forward(path)).sum(1) > 1 - 1e-4).all()


def test_a_forward_facing_spiral_of_parallel_cameras_looks_straight_ahead():
    path = spiral(_forward_facing(focus=None), 30)
    ahead = torch.tensor([-1.0, 0, 0]).double().expand(30, 3)
    torch.testing.assert_close(_forward(path), ahead, atol=1e-6, rtol=0)


def test_a_forward_facing_spiral_stays_within_the_cameras_and_closes():
    cameras = _forward_facing(60)
    path = spiral(cameras, 60)
    position, stand = path.poses[:, :, 3].double(), cameras.poses[:, :, 3].double()
    offset = (stand - stand.mean(0)).abs()
    reach = offset.quantile(0.9, dim=0)
    found = (position - stand.mean(0)).abs().amax(0)
    # The mean camera's axes are the world's to within a few degrees.
    torch.testing.assert_close(found, reach, rtol=0.15, atol=0.02)
    steps = _steps(path)
    assert steps[-1] < 1.5 * steps[:-1].max()


def test_one_forward_facing_camera_makes_a_spiral_that_stands_still():
    camera = _forward_facing(1)
    path = spiral(camera, 5)
    torch.testing.assert_close(path.poses, camera.poses.expand(5, 3, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", [orbit, spiral])
def test_cameras_that_look_outwards_have_no_path(way):
    direction = _unit(_normal(20, 3, seed=1))
    with pytest.raises(SceneError, match="no common point"):
        way(_cameras(_upright(direction, -direction)))


def test_cameras_that_look_straight_ahead_have_no_orbit():
    with pytest.raises(SceneError, match="use the spiral"):
        orbit(_forward_facing(focus=None))


@pytest.mark.parametrize("way", [orbit, spiral])
def test_no_cameras_have_no_path(way):
    with pytest.raises(SceneError, match="no cameras"):
        way(_around(_CENTRE).select([]))


@pytest.mark.parametrize("way", [orbit, spiral])
def test_impossible_numbers_of_frames_and_sizes_are_refused(way):
    cameras = _around(_CENTRE)
    for frames in (0, -3):
        with pytest.raises(ConfigError, match=f"{frames} frames"):
            way(cameras, frames=frames)
    with pytest.raises(ConfigError, match="0x9 pixels"):
        way(cameras, frames=1, size=(0, 9))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_impossible_radii_are_refused(radius):
    with pytest.raises(ConfigError, match="radius"):
        orbit(_around(_CENTRE), radius=radius)


@pytest.mark.parametrize("elevation", [90.0, -90.0, 1000.0, math.nan])
def test_impossible_elevations_are_refused(elevation):
    with pytest.raises(ConfigError, match="elevation"):
        orbit(_around(_CENTRE), elevation=elevation)


def _document(cameras: Cameras) -> dict:
    bottom = torch.tensor([[0.0, 0, 0, 1]])
    frames = []
    for pose, lens in zip(cameras.poses, cameras.intrinsics, strict=True):
        keys = zip(("fl_x", "fl_y", "cx", "cy"), lens.tolist(), strict=True)
        frames.append({"transform_matrix": torch.cat([pose, bottom]).tolist(), **dict(keys)})
    return {"w": cameras.width, "h": cameras.height, "frames": frames}


def _written(tmp_path, document):
    path = tmp_path / "path.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_cameras_survive_a_file(tmp_path):
    cameras = orbit(_around(_CENTRE), frames=6)
    cameras.intrinsics[:, 0] += torch.arange(6)  # each frame has a lens of its own
    found = from_json(_written(tmp_path, _document(cameras)))
    assert (found.width, found.height, found.model) == (64, 48, "pinhole")
    assert torch.equal(found.intrinsics, cameras.intrinsics)
    # The axes are made of length one again.
    torch.testing.assert_close(found.poses, cameras.poses, atol=1e-6, rtol=0)
    assert not found.distortion.any()


def test_a_field_of_view_is_enough_of_a_lens(tmp_path):
    matrix = torch.eye(4).tolist()
    document = {"w": 40, "h": 20, "camera_angle_x": math.pi / 2}
    found = from_json(_written(tmp_path, {**document, "frames": [{"transform_matrix": matrix}]}))
    torch.testing.assert_close(found.intrinsics, torch.tensor([[20.0, 20, 20, 10]]))


def test_matrices_of_three_rows_and_a_scale_are_read(tmp_path):
    matrix = [[2, 0, 0, 5], [0, 2, 0, 6], [0, 0, 2, 7]]
    document = {"w": 4, "h": 4, "fl_x": 4, "frames": [{"transform_matrix": matrix}]}
    found = from_json(_written(tmp_path, document)).poses[0]
    assert torch.equal(found[:, :3], torch.eye(3))
    assert found[:, 3].tolist() == [5, 6, 7]


def test_a_size_goes_before_the_file_s(tmp_path):
    path = _written(tmp_path, _document(orbit(_around(_CENTRE), frames=2)))
    found = from_json(path, size=(128, 96))
    assert (found.width, found.height) == (128, 96)
    assert torch.equal(found.intrinsics, 2 * from_json(path).intrinsics)


def test_a_size_stands_in_for_a_file_without_one(tmp_path):
    matrix = torch.eye(4).tolist()
    document = {"camera_angle_x": math.pi / 2, "frames": [{"transform_matrix": matrix}]}
    found = from_json(_written(tmp_path, document), size=(40, 20))
    assert (found.width, found.height) == (40, 20)
    torch.testing.assert_close(found.intrinsics, torch.tensor([[20.0, 20, 20, 10]]))


def _broken() -> dict[str, tuple[dict | str, str]]:
    good = {"w": 8, "h": 8, "fl_x": 8.0}
    eye = torch.eye(4).tolist()

    def with_matrix(matrix) -> dict:
        return {**good, "frames": [{"transform_matrix": eye}, {"transform_matrix": matrix}]}

    frames = [{"transform_matrix": eye}]
    return {
        "not JSON": ("{", "JSON"),
        "a list": ("[]", "frames"),
        "no frames": (good, "frames"),
        "empty frames": ({**good, "frames": []}, "frames"),
        "frames of numbers": ({**good, "frames": [1]}, "frames"),
        "no size": ({"fl_x": 8, "frames": frames}, "w"),
        "a size of words": ({**good, "w": "wide", "frames": frames}, "w is 'wide'"),
        "no pixels": ({**good, "h": 0, "frames": frames}, "8x0"),
        "no lens": ({"w": 8, "h": 8, "frames": frames}, "camera_angle_x"),
        "a negative lens": ({**good, "fl_x": -3, "frames": frames}, "focal"),
        "half a turn of view": (
            {"w": 8, "h": 8, "camera_angle_x": 4, "frames": frames},
            "focal",
        ),
        "a lens that is not a number": ({**good, "fl_x": math.nan, "frames": frames}, "fl_x"),
        "no matrix": ({**good, "frames": [*frames, {}]}, "frame 1"),
        "a ragged matrix": (with_matrix([[1, 2], [3]]), "frame 1"),
        "a small matrix": (with_matrix([[1, 0], [0, 1]]), "frame 1"),
        "an infinite matrix": (with_matrix((torch.eye(4) * math.inf).tolist()), "frame 1"),
        "a singular matrix": (with_matrix(torch.zeros(4, 4).tolist()), "frame 1"),
        "a sheared matrix": (with_matrix((torch.eye(4) + 0.3).tolist()), "frame 1"),
        "a mirror": (with_matrix(torch.diag(torch.tensor([-1.0, 1, 1, 1])).tolist()), "frame 1"),
    }


@pytest.mark.parametrize("what", _broken())
def test_a_broken_file_is_one_line_that_names_it(tmp_path, what):
    document, match = _broken()[what]
    with pytest.raises(SceneError, match=match) as caught:
        from_json(_written(tmp_path, document))
    assert "path.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(SceneError, match=r"nowhere\.json"):
        from_json(tmp_path / "nowhere.json")


def test_an_impossible_size_is_refused(tmp_path):
    with pytest.raises((ConfigError, SceneError), match="0x5"):
        from_json(_written(tmp_path, _document(orbit(_around(_CENTRE), frames=1))), size=(0, 5))
