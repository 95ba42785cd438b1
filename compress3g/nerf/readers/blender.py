"""Scenes laid out like NeRF-synthetic: transforms_train.json and pictures without suffix."""

from __future__ import annotations

from pathlib import Path

from ...errors import SceneError
from ._capture import Box, Capture, Frame, held_out, nothing_left
from ._transforms import box_of, lens_of, picture_of, pose_of, read_frames
from .images import size_of

_BOX = 1.5  # half the side of the cube all objects of NeRF-synthetic fit in


def read(path: Path, downscale: int) -> Capture:
    """The capture in a folder with transforms_train.json and maybe _test or _val.

    The box is the file's key aabb, else [-1.5, 1.5]^3. Test frames are those of
    transforms_test.json, else of transforms_val.json, else every 8th training frame.
    Raises SceneError, one line that names the file.
    """
    source = path / "transforms_train.json"
    if not source.is_file():
        raise SceneError(f"{source} does not exist: a Blender scene needs it")
    train, missing, box = _read(source)
    if not train:
        raise nothing_left(source, path)
    test: list[Frame] = []
    for name in ("transforms_test.json", "transforms_val.json"):
        if (path / name).is_file():
            test, absent, _ = _read(path / name)
            missing += absent
        if test:
            break
    else:
        train, test = held_out(source, train)
    return Capture(
        source=source,
        train=train,
        test=test,
        missing=missing,
        box=box or Box.of([-_BOX] * 3 + [_BOX] * 3),
        photographed=False,
        shrink=downscale,
    )


def _read(source: Path) -> tuple[list[Frame], int, Box | None]:
    """The frames of a file whose picture exists, the number of the others, and its box."""
    data, frames = read_frames(source)
    found: list[Frame] = []
    size: tuple[int, int] | None = None
    for i, frame in enumerate(frames):
        file = picture_of(source, i, frame)
        if file.is_file():
            size = size or size_of(file)
            lens = lens_of(source, {**data, **frame}, size)
            pose = pose_of(source, i, frame.get("transform_matrix"))
            found.append(Frame(file=file, lens=lens, pose=pose))
    return found, len(frames) - len(found), box_of(source, data)
