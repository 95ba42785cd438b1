"""Cameras nobody stood at: a turn around the scene, a spiral, or a path read from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, SceneError
from .cameras import Cameras
from .readers._transforms import number, pinhole_of, pose_of, read_frames

_SPREAD = 0.01  # mean squared sine between optical axes below which they have no common point
_FACING = 0.8  # length of the mean optical axis above which cameras face one way


def orbit(
    cameras: Cameras,
    *,
    frames: int = 90,
    elevation: float | None = None,
    radius: float | None = None,
    size: tuple[int, int] | None = None,
) -> Cameras:
    """One seamless turn around the point the cameras look at, starting beside the first of them.

    elevation: degrees above the horizon, None their median. radius: distance from the point in the
    scene's unit, None their median. size: (width, height) in pixels, None theirs; another size
    keeps everything they see in view. The paths have no distortion.
    Raises SceneError where the cameras look at no common point, ConfigError for bad numbers.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise ConfigError(f"an orbit of radius {radius} is impossible: give a positive number")
    if elevation is not None and not -90 < elevation < 90:
        raise ConfigError(
            f"an orbit at elevation {elevation} is impossible: give -89 to 89 degrees"
        )
    stand = _Stand.of(cameras)
    if stand.centre is None:
        raise SceneError("the cameras look at no common point to orbit: use the spiral path")
    distance, angle = stand.distance_and_elevation(stand.centre)
    turn = _turn(frames, 1)
    height = _constant(turn, angle.median() if elevation is None else math.radians(elevation))
    away = _constant(turn, distance.median() if radius is None else radius)
    return _path(cameras, stand.around(stand.centre, turn, height, away), size)


def spiral(cameras: Cameras, frames: int = 90, *, size: tuple[int, int] | None = None) -> Cameras:
    """Two seamless turns that sweep the space the cameras stand in.

    Where they face one way (a forward-facing capture), an ellipse in the plane of the mean camera,
    forth and back once, as wide as 90% of them, eyes on their common point or, without one,
    straight ahead (LLFF 1905.00889, section 5). Otherwise around their common point, from the
    lowest tenth of their elevations to the highest and back. size: as for `orbit`.
    Raises SceneError where they neither face one way nor look at a common point.
    """
    stand = _Stand.of(cameras)
    turn = _turn(frames, 2)
    if stand.forward.mean(0).norm() > _FACING:
        return _path(cameras, _ellipse(stand, turn), size)
    if stand.centre is None:
        raise SceneError("the cameras look at no common point: give the path as a JSON file")
    distance, angle = stand.distance_and_elevation(stand.centre)
    low, high = angle.quantile(0.1), angle.quantile(0.9)
    height = (low + high) / 2 - (high - low) / 2 * (turn / 2).cos()
    away = _constant(turn, distance.median())
    return _path(cameras, stand.around(stand.centre, turn, height, away), size)


def from_json(path: str | PathLike[str], *, size: tuple[int, int] | None = None) -> Cameras:
    """The cameras of a transforms file: camera-to-world matrices with OpenGL axes.

    Needs w, h (or size), camera_angle_x in radians or fl_x in pixels, and frames with a
    transform_matrix; fl_y, cx, cy are optional, and lens distortion is left out. Frames may have
    intrinsics of their own. size: (width, height) in pixels, None the file's.
    Raises SceneError, one line that names the file, for anything else.
    """
    path = Path(path)
    data, frames = read_frames(path, "camera path")
    width, height = (round(number(path, data, key, size and size[i])) for i, key in enumerate("wh"))
    if width < 1 or height < 1:
        raise SceneError(f"{path}: images of {width}x{height} pixels are impossible")
    lenses = [pinhole_of(path, {**data, **frame}, width, height) for frame in frames]
    poses = [pose_of(path, i, frame.get("transform_matrix")) for i, frame in enumerate(frames)]
    cameras = _pinhole((width, height), torch.tensor(lenses), torch.stack(poses).float())
    return _resized(cameras, size)


@dataclass(frozen=True, slots=True)
class _Stand:
    """Where cameras stand and look, in double."""

    position: Float[Tensor, "n 3"]
    forward: Float[Tensor, "n 3"]
    up: Float[Tensor, "3"]
    centre: Float[Tensor, "3"] | None  # the point they look at, None where there is no such

    @classmethod
    def of(cls, cameras: Cameras) -> _Stand:
        poses = cameras.poses.detach().cpu().double()
        if not len(poses):
            raise SceneError("there are no cameras to derive a path from")
        forward = -poses[:, :, 2]
        return cls(poses[:, :, 3], forward, _up(poses), _centre(poses[:, :, 3], forward))

    def distance_and_elevation(
        self, centre: Float[Tensor, "3"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Of every camera from the centre; elevation in radians, short of straight up or down."""
        offset = self.position - centre
        distance = offset.norm(dim=1)
        limit = math.radians(89)
        return distance, (offset @ self.up / distance).clamp(-1, 1).asin().clamp(-limit, limit)

    def around(
        self,
        centre: Float[Tensor, "3"],
        turn: Float[Tensor, "f"],
        elevation: Float[Tensor, "f"],
        distance: Float[Tensor, "f"],
    ) -> Float[Tensor, "f 3 4"]:
        """Poses around the centre, looking at it. Angles in radians, from the first camera's."""
        offset = self.position[0] - centre
        across = _unit(torch.linalg.cross(self.up, _level(offset, self.up)))
        ahead = torch.linalg.cross(across, self.up)
        level = turn.cos()[:, None] * ahead + turn.sin()[:, None] * across
        to = elevation.cos()[:, None] * level + elevation.sin()[:, None] * self.up
        return _looking(centre + distance[:, None] * to, to, self.up)


def _up(poses: Float[Tensor, "n 3 4"]) -> Float[Tensor, "3"]:
    """The direction people held their cameras upright in.

    Cameras without roll have horizontal x axes whatever their pitch, so up is what is most nearly
    orthogonal to all of them: the last right singular vector. Where the x axes do not span a plane
    it is the mean y axis.
    """
    right, mean = poses[:, :, 0], poses[:, :, 1].mean(0)
    _, spread, basis = torch.linalg.svd(right, full_matrices=True)
    up = basis[2]
    if len(spread) < 2 or spread[1] < 0.2 * spread[0] or (up @ mean).abs() < 0.1:
        up = mean
    return _unit(up if up @ mean >= 0 else -up)


def _centre(
    position: Float[Tensor, "n 3"], forward: Float[Tensor, "n 3"]
) -> Float[Tensor, "3"] | None:
    """The point nearest to all optical axes: sum (I - d d^T) (x - o) = 0; None if there is none."""
    across = torch.eye(3, dtype=forward.dtype) - forward[:, :, None] * forward[:, None, :]
    system = across.mean(0)
    if torch.linalg.eigvalsh(system)[0] < _SPREAD:
        return None
    point = torch.linalg.solve(system, (across @ position[:, :, None]).mean(0)[:, 0])
    in_front = ((point - position) * forward).sum(1).median() > 0
    return point if in_front else None


def _ellipse(stand: _Stand, turn: Float[Tensor, "f"]) -> Float[Tensor, "f 3 4"]:
    mean = stand.position.mean(0)
    back = _unit(-stand.forward.mean(0))
    pose = _looking(mean[None], back[None], stand.up)[0]
    # Coordinates in the mean camera; half the frequency in depth keeps two turns seamless.
    reach = ((stand.position - mean) @ pose[:, :3]).abs().quantile(0.9, dim=0)
    swing = torch.stack([turn.cos(), -turn.sin(), -(turn / 2).sin()], -1) * reach
    position = mean + swing @ pose[:, :3].T
    if stand.centre is None:
        return _looking(position, back.expand_as(position), stand.up)
    focus = mean - back * ((mean - stand.centre) @ back)
    return _looking(position, position - focus, stand.up)


def _looking(
    position: Float[Tensor, "f 3"], back: Float[Tensor, "f 3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "f 3 4"]:
    """Upright cameras that look along -back: columns right, up, back, position."""
    z = _unit(back)
    x = _unit(torch.linalg.cross(up.expand_as(z), z))
    return torch.stack([x, torch.linalg.cross(z, x), z, position], -1)


def _level(offset: Float[Tensor, "3"], up: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """The horizontal part of an offset, or any horizontal direction where it has none."""
    level = offset - (offset @ up) * up
    if level.norm() > 1e-6 * offset.norm():
        return level
    axis = torch.eye(3, dtype=up.dtype)[up.abs().argmin()]
    return axis - (axis @ up) * up


def _unit(v: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    return torch.nn.functional.normalize(v, dim=-1)


def _turn(frames: int, turns: int) -> Float[Tensor, "f"]:
    """Angles of whole turns, the end left out because it is the beginning."""
    if frames < 1:
        raise ConfigError(f"a path of {frames} frames is impossible: give at least 1")
    return torch.arange(frames, dtype=torch.float64) * (2 * math.pi * turns / frames)


def _constant(like: Float[Tensor, "f"], value: Float[Tensor, ""] | float) -> Float[Tensor, "f"]:
    return torch.full_like(like, float(value))


def _path(cameras: Cameras, poses: Float[Tensor, "f 3 4"], size: tuple[int, int] | None) -> Cameras:
    """Cameras at these poses with the median lens of the given ones, on the same device."""
    # Contiguous: the median of an expanded tensor is garbage in torch 2.13.
    lens = cameras.intrinsics.detach().contiguous().median(0).values.repeat(len(poses), 1)
    found = _pinhole((cameras.width, cameras.height), lens, poses.to(cameras.poses))
    return _resized(found, size)


def _pinhole(
    size: tuple[int, int], intrinsics: Float[Tensor, "f 4"], poses: Float[Tensor, "f 3 4"]
) -> Cameras:
    return Cameras(
        width=size[0],
        height=size[1],
        intrinsics=intrinsics,
        distortion=intrinsics.new_zeros(len(poses), 6),
        model="pinhole",
        poses=poses,
    )


def _resized(cameras: Cameras, size: tuple[int, int] | None) -> Cameras:
    """The same cameras with images of another size that show at least as much."""
    if size is None:
        return cameras
    if min(size) < 1:
        raise ConfigError(f"images of {size[0]}x{size[1]} pixels are impossible: give at least 1x1")
    old = cameras.intrinsics.new_tensor([cameras.width, cameras.height])
    factor = min(size[0] / cameras.width, size[1] / cameras.height)
    focal, middle = cameras.intrinsics[:, :2], cameras.intrinsics[:, 2:]
    moved = cameras.intrinsics.new_tensor(size) / 2 + (middle - old / 2) * factor
    return _pinhole(size, torch.cat([focal * factor, moved], -1), cameras.poses)
