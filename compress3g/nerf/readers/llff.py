"""LLFF captures: poses_bounds.npy beside folders of pictures."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SceneError
from ._capture import LARGEST, Box, Capture, Frame, Lens, held_out
from ._pictures import choose
from ._transforms import rigid
from .images import pictures_in

_NEARER = 0.9  # the bounds are percentiles of the points seen: a little was nearer


def read(path: Path, downscale: int) -> Capture:
    """The capture in a folder with poses_bounds.npy and images or images_2, _4, _8.

    Row i belongs to the i-th picture by name. The box holds all that the cameras see between
    their bounds, and marching starts at 0.9 times the nearest bound, as in LLFF 1905.00889.
    Every 8th picture is for testing. Raises SceneError, one line that names the file.
    """
    source = path / "poses_bounds.npy"
    rows = _rows(source)
    chosen = choose(path, downscale, lambda folder: bool(pictures_in(folder)))
    if chosen is None:
        raise SceneError(f"{path} has no images: put them in {path / 'images'}")
    folder, shrink = chosen
    files = pictures_in(folder)
    if len(files) != len(rows):
        raise SceneError(
            f"{source} has {len(rows)} poses but {folder} has {len(files)} images: "
            "they must be as many, in the order of the names"
        )
    frames = [_frame(source, i, file, rows[i]) for i, file in enumerate(files)]
    train, test = held_out(source, frames)
    corners = [_frustum(frame, row) for frame, row in zip(frames, rows, strict=True)]
    return Capture(
        source=source,
        train=train,
        test=test,
        missing=0,
        box=Box.around(torch.cat(corners)),
        photographed=True,
        near=_NEARER * float(rows[:, 15].min()),
        shrink=shrink,
    )


def _rows(source: Path) -> Float[Tensor, "n 17"]:
    """Per picture: 3x4 pose and (height, width, focal) as the columns of 3x5, near and far."""
    try:
        array = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SceneError(
            f"cannot read {source}: {reason or 'it is damaged or no .npy file'}: copy it again"
        ) from None
    if getattr(array, "ndim", 0) != 2 or array.shape[1] != 17 or not len(array):
        shape = "x".join(map(str, getattr(array, "shape", ()))) or "no"
        raise SceneError(f"{source} has {shape} numbers, not Nx17: write one row for each image")
    if array.dtype.kind not in "fiu":
        raise SceneError(f"{source} has {array.dtype} entries, not numbers: write float64")
    rows = torch.from_numpy(array.astype(np.float64))
    bad = (~(rows.abs() < LARGEST).all(1)).nonzero()  # also NaN
    if len(bad):
        raise SceneError(
            f"{source}: row {int(bad[0])} is not finite or beyond {LARGEST:g}: estimate it again"
        )
    size_and_focal, near, far = rows[:, 4:15:5], rows[:, 15], rows[:, 16]
    bad = ((size_and_focal <= 0).any(1) | (near <= 0) | (far <= near)).nonzero()
    if len(bad):
        raise SceneError(
            f"{source}: row {int(bad[0])} needs height, width, focal > 0 and bounds 0 < near < far"
        )
    return rows


def _frame(source: Path, index: int, file: Path, row: Float[Tensor, "17"]) -> Frame:
    down, right, back, position, (height, width, focal) = row[:15].reshape(3, 5).unbind(1)
    pose = torch.stack([right, -down, back, position], 1)
    lens = Lens(
        width=float(width),
        height=float(height),
        intrinsics=(float(focal), float(focal), float(width) / 2, float(height) / 2),
    )
    return Frame(file=file, lens=lens, pose=rigid(f"{source}: the pose of row {index}", pose))


def _frustum(frame: Frame, row: Float[Tensor, "17"]) -> Float[Tensor, "8 3"]:
    """Corners of what a camera sees between its bounds."""
    lens = frame.lens
    x, y = lens.width / 2 / lens.intrinsics[0], lens.height / 2 / lens.intrinsics[1]
    face = torch.tensor([[i * x, j * y, -1] for i in (-1, 1) for j in (-1, 1)]).double()
    corners = torch.cat([face * row[15], face * row[16]])
    return corners @ frame.pose[:, :3].T + frame.pose[:, 3]
