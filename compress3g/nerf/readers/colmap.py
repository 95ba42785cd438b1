"""COLMAP captures: a sparse model beside the folder of its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SceneError
from . import _colmap_model as sparse
from ._capture import LARGEST, Box, Capture, Frame, Lens, box_of_cameras, held_out, nothing_left
from ._pictures import choose
from ._transforms import rigid
from .images import find

_FEWEST = 100  # points: below that percentiles say nothing
_NEARER = 0.9  # a little is nearer than the nearest points found


def read(path: Path, downscale: int) -> Capture:
    """The capture with a sparse model in sparse/0, sparse or the folder itself.

    The box holds 98% of the points along each axis, without points a cube around what the cameras
    look at; marching starts before the nearest points seen. Every 8th picture, sorted by name, is
    for testing. Raises SceneError, one line that names the file.
    """
    folder = sparse.find(path)
    if folder is None:
        raise SceneError(
            f"{path} has no COLMAP model: put cameras and images in {path / 'sparse/0'}"
        )
    model = sparse.read(folder)
    if not model.photos:
        raise SceneError(f"{model.source} lists no images: reconstruct the scene again")
    photos = sorted(model.photos, key=lambda photo: photo.name)
    pictures, shrink = _pictures(path, folder, photos, downscale)
    found = [(photo, file) for photo in photos if (file := _named(pictures, photo))]
    if not found:
        raise nothing_left(model.source, pictures / photos[0].name)
    frames = [_frame(model, photo, file) for photo, file in found]
    train, test = held_out(model.source, frames)
    return Capture(
        source=model.source,
        train=train,
        test=test,
        missing=len(photos) - len(found),
        box=_box(model) or box_of_cameras(frames),
        photographed=True,
        near=_near(
            model, [(photo, frame) for (photo, _), frame in zip(found, frames, strict=True)]
        ),
        shrink=shrink,
    )


def _pictures(
    path: Path, folder: Path, photos: list[sparse.Photo], downscale: int
) -> tuple[Path, int]:
    """The folder of the pictures, and the factor by which they are still to be made smaller."""

    def usable(folder: Path) -> bool:
        return any(_named(folder, photo) for photo in photos)

    roots = [path]
    # Someone who points at sparse/0 itself means the capture around it.
    if folder == path and path.absolute().name in ("0", "sparse"):
        roots += list(path.absolute().parents[:2])
    for root in roots:
        if chosen := choose(root, downscale, usable):
            return chosen
    for root in roots:
        for candidate in (root, root / "input"):
            if candidate.is_dir() and usable(candidate):
                return candidate, downscale
    return path / "images", downscale


def _named(folder: Path, photo: sparse.Photo) -> Path | None:
    """The picture of this name; smaller copies of a JPEG may be PNGs."""
    return find(folder / photo.name) or find((folder / photo.name).with_suffix(""))


def _frame(model: sparse.Model, photo: sparse.Photo, file: Path) -> Frame:
    camera = model.cameras.get(photo.camera)
    if camera is None:
        raise SceneError(
            f"{model.source}: image {photo.name} has camera {photo.camera}, which is not among the "
            "cameras: export the model again"
        )
    where = f"{model.source}: the pose of {photo.name}"
    turn = torch.tensor(photo.rotation, dtype=torch.float64)
    w, x, y, z = (turn / turn.norm()).tolist()
    to_camera = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    position = -to_camera.T @ torch.tensor(photo.translation, dtype=torch.float64)
    axes = to_camera.T * torch.tensor([1.0, -1.0, -1.0])  # OpenCV's y and z axes are the opposite
    pose = rigid(where, torch.cat([axes, position[:, None]], 1))
    return Frame(file=file, lens=_lens(model, photo, camera), pose=pose)


def _lens(model: sparse.Model, photo: sparse.Photo, camera: sparse.Camera) -> Lens:
    value = dict(zip(sparse.PARAMETERS[camera.model], camera.values, strict=True))
    fx, fy = value.get("fx", value.get("f", 0)), value.get("fy", value.get("f", 0))
    finite = (np.abs(camera.values) < LARGEST).all()
    if not (finite and min(fx, fy) > 0 and min(camera.width, camera.height) > 0):
        raise SceneError(
            f"{model.source}: camera {photo.camera} has no positive finite size and focal length: "
            "reconstruct the scene again"
        )
    k1, k2, k3, k4, p1, p2 = (value.get(k, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2"))
    return Lens(
        width=float(camera.width),
        height=float(camera.height),
        intrinsics=(fx, fy, value["cx"], value["cy"]),
        distortion=(k1, k2, k3, k4, p1, p2),
        fisheye=camera.model.endswith("FISHEYE"),
    )


def _box(model: sparse.Model) -> Box | None:
    if len(model.points) < _FEWEST:
        return None
    low, high = np.quantile(model.points, [0.01, 0.99], axis=0)
    return Box.of([*low, *high])


def _near(model: sparse.Model, frames: list[tuple[sparse.Photo, Frame]]) -> float | None:
    """0.9 times the least distance of a camera from the nearest 1% of the points it sees."""
    nearest = []
    for photo, frame in frames:
        row = np.searchsorted(model.ids, photo.points)
        known = row < len(model.ids)
        row = row[known][model.ids[row[known]] == photo.points[known]]
        if len(row):
            nearest.append(_distance(frame.pose, model.points[row]))
    return _NEARER * min(nearest) if nearest else None


def _distance(pose: Float[Tensor, "3 4"], points: np.ndarray) -> float:
    away = np.linalg.norm(points - pose[:, 3].numpy(), axis=1)
    return float(np.quantile(away, 0.01))
