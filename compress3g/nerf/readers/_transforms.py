"""Cameras from a JSON file of transforms: the one place that checks every number of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SceneError
from ._capture import LARGEST, Box, Lens
from .images import find

_PERSPECTIVE = frozenset({"PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"})
_FISHEYE = frozenset({"OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"})


def read_frames(path: Path, what: str = "cameras") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything in a transforms file, and its frames, of which there is at least one.

    Raises SceneError naming the file; `what` says what was expected of it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise SceneError(f"cannot read the {what} {path}: {reason}") from None
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise SceneError(f"{path} has no list of frames: it is not a transforms file")
    if not frames:
        raise SceneError(f"{path} has an empty list of frames: it needs at least one")
    return data, frames


def number(path: Path, data: dict[str, Any], key: str, default: float | None = None) -> float:
    """The finite number under `key`.

    Raises SceneError where there is none and no default, or something else.
    """
    value = data.get(key, default)
    if value is None:
        raise SceneError(f"{path} does not say {key}: add it")
    if not isinstance(value, (int, float)) or not abs(value) < LARGEST:  # also false for NaN
        raise SceneError(f"{path}: {key} is {value!r}, not a finite number")
    return float(value)


def pinhole_of(path: Path, data: dict[str, Any], width: float, height: float) -> list[float]:
    """fx, fy, cx, cy in pixels of one frame, whose keys go before the file's.

    Raises SceneError for a missing or impossible focal length.
    """
    if "fl_x" not in data and "camera_angle_x" not in data:
        raise SceneError(f"{path} says neither camera_angle_x nor fl_x: add one of them")
    focal = number(path, data, "fl_x", 0.0) or _focal(width, number(path, data, "camera_angle_x"))
    across = focal
    if "fl_y" not in data and "camera_angle_y" in data:
        across = _focal(height, number(path, data, "camera_angle_y"))
    other = number(path, data, "fl_y", across)
    if not min(focal, other) > 0:
        raise SceneError(f"{path}: a focal length of {min(focal, other):g} pixels is impossible")
    middle = number(path, data, "cx", width / 2), number(path, data, "cy", height / 2)
    return [focal, other, *middle]


def _focal(width: float, angle: float) -> float:
    return 0.5 * width / math.tan(0.5 * angle) if 0 < angle < math.pi else -1.0


def lens_of(path: Path, data: dict[str, Any], size: tuple[int, int]) -> Lens:
    """The lens of one frame, whose keys go before the file's.

    size: (width, height) of its picture, for files that do not say w and h.
    Raises SceneError for a camera model other than the OpenCV ones and for impossible numbers.
    """
    width, height = (number(path, data, key, float(size[i])) for i, key in enumerate("wh"))
    if not (width >= 1 and height >= 1):
        raise SceneError(f"{path}: images of {width:g}x{height:g} pixels are impossible")
    name = data.get("camera_model", "OPENCV_FISHEYE" if data.get("is_fisheye") else "OPENCV")
    if name not in _PERSPECTIVE | _FISHEYE:
        known = ", ".join(sorted(_PERSPECTIVE | _FISHEYE))
        raise SceneError(
            f"{path}: camera_model {name!r} is not one of {known}: undistort the images"
        )
    fx, fy, cx, cy = pinhole_of(path, data, width, height)
    k1, k2, k3, k4, p1, p2 = (
        number(path, data, key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")
    )
    return Lens(
        width=width,
        height=height,
        intrinsics=(fx, fy, cx, cy),
        distortion=(k1, k2, k3, k4, p1, p2),
        fisheye=name in _FISHEYE,
    )


def pose_of(path: Path, index: int, matrix: Any) -> Float[Tensor, "3 4"]:
    """A camera-to-world matrix without its last row and without scale, in double.

    Raises SceneError unless it is a finite 3x4 or 4x4 matrix that turns and moves only.
    """
    where = f"{path}: the transform_matrix of frame {index}"
    try:
        pose = torch.tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise SceneError(f"{where} is missing or not a matrix of numbers") from None
    if pose.shape not in ((4, 4), (3, 4)) or not pose.isfinite().all():
        raise SceneError(f"{where} is not a finite 4x4 or 3x4 matrix")
    return rigid(where, pose[:3])


def rigid(where: str, pose: Float[Tensor, "3 4"]) -> Float[Tensor, "3 4"]:
    """The pose with axes of length one.

    Raises SceneError, beginning with `where`, for a singular, sheared, mirroring or non-finite one.
    """
    if not (pose.abs() < LARGEST).all():
        raise SceneError(f"{where} is not finite or beyond {LARGEST:g}: estimate it again")
    scale = pose[:, :3].norm(dim=0)
    axes = pose[:, :3] / scale
    # Also false for the NaN of a zero column. 0.01 allows for matrices printed with few digits.
    if not (axes.T @ axes - torch.eye(3, dtype=axes.dtype)).abs().max() < 0.01:
        raise SceneError(f"{where} is singular or sheared: its first columns must be orthogonal")
    if torch.linalg.det(axes) < 0:
        raise SceneError(f"{where} mirrors space: negate one of its first three columns")
    return torch.cat([axes, pose[:, 3:]], 1)


def box_of(path: Path, data: dict[str, Any]) -> Box | None:
    """The box under the key aabb, [[min xyz], [max xyz]]; None without that key.

    Raises SceneError where it is no box.
    """
    corners = data.get("aabb")
    if corners is None:
        return None
    try:
        low, high = corners
        box = Box.of([float(edge) for edge in (*low, *high)])
    except (TypeError, ValueError, OverflowError):
        box = None
    if box is None:
        raise SceneError(f"{path}: aabb is no box: write [[min x, y, z], [max x, y, z]]")
    return box


def picture_of(path: Path, index: int, frame: dict[str, Any]) -> Path:
    """The picture of a frame, which may not exist, as an existing file wherever one fits.

    Raises SceneError where the frame names none.
    """
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise SceneError(f"{path}: frame {index} has no file_path: add it")
    # Files written on Windows have backslashes, which are legal characters of names elsewhere.
    candidates = [path.parent / name, path.parent / name.replace("\\", "/")]
    return next((found for each in candidates if (found := find(each))), candidates[0])
