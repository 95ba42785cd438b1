"""What every reader returns: pictures with cameras, their split, and where the scene is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SceneError

LARGEST = 1e18  # in any file: beyond that squares are infinite in the float32 of cameras
_HOLD_OUT = (
    8  # every eighth picture is for testing, as in LLFF 1905.00889 and all who compare to it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """A lens as its file describes it, for pictures of width x height pixels.

    intrinsics: fx, fy, cx, cy in those pixels. distortion: k1 k2 k3 k4 p1 p2 of OpenCV's models.
    """

    width: float
    height: float
    intrinsics: tuple[float, float, float, float]
    distortion: tuple[float, float, float, float, float, float] = (0.0,) * 6
    fisheye: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One picture, and its camera-to-world pose in OpenGL axes, world units, double."""

    file: Path
    lens: Lens
    pose: Float[Tensor, "3 4"]


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Corners of an axis-aligned box, world units, double."""

    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]

    @classmethod
    def of(cls, corners: Sequence[float]) -> Box | None:
        """The box of six numbers, min xyz and max xyz; None where they do not make one."""
        values = torch.tensor(corners, dtype=torch.float64)
        if values.shape != (6,) or not (values.abs() < LARGEST).all():  # also false for NaN
            return None
        if (values[:3] >= values[3:]).any():
            return None
        return cls(values[:3], values[3:])

    @classmethod
    def around(cls, points: Float[Tensor, "m 3"]) -> Box:
        """The smallest box of all points."""
        return cls(points.amin(0), points.amax(0))

    @property
    def centre(self) -> Float[Tensor, "3"]:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def side(self) -> float:
        """The longest edge: that of the smallest cube around the box with the same middle."""
        return float((self.high - self.low).max())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """A scene on disk: nothing decoded yet.

    source: the file the cameras come from, for messages.
    missing: number of frames listed there whose picture does not exist.
    box: where the scene is, None where the files do not tell.
    photographed: whether cameras may stand inside the box, as they do in rooms and gardens.
    near: distance from a camera in front of which nothing was seen, None where files do not tell.
    shrink: factor by which the pictures are still to be made smaller.
    """

    source: Path
    train: Sequence[Frame]
    test: Sequence[Frame]
    missing: int
    box: Box | None
    photographed: bool
    near: float | None = None
    shrink: int = 1


def held_out(source: Path, frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Training and test frames where files name no split: every 8th, the first included, is test.

    Raises SceneError where nothing would be left to train on.
    """
    if len(frames) < 2:
        raise SceneError(f"{source} leaves one image to train and test on: add more images")
    train = [frame for i, frame in enumerate(frames) if i % _HOLD_OUT]
    return train, list(frames[::_HOLD_OUT])


def nothing_left(source: Path, sought: Path) -> SceneError:
    """The error for a scene all of whose pictures are missing."""
    return SceneError(
        f"no image listed in {source} exists, for example {sought}: put the images there"
    )


def box_of_cameras(frames: Sequence[Frame]) -> Box | None:
    """A cube around the point the cameras look at that reaches the furthest of them.

    The point minimises the squared distances to all optical axes. None where the axes are nearly
    parallel or the point is behind the cameras: then nothing tells how far away things are.
    """
    poses = torch.stack([frame.pose for frame in frames])
    position, forward = poses[:, :, 3], -poses[:, :, 2]
    across = torch.eye(3, dtype=poses.dtype) - forward[:, :, None] * forward[:, None, :]
    system = across.mean(0)
    if torch.linalg.eigvalsh(system)[0] < 0.01:
        return None
    centre = torch.linalg.solve(system, (across @ position[:, :, None]).mean(0)[:, 0])
    if ((centre - position) * forward).sum(1).median() <= 0:
        return None
    reach = (position - centre).abs().max()
    if not reach > 0:
        return None
    return Box(centre - reach, centre + reach)
