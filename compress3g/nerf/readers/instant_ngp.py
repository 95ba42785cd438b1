"""Captures in one transforms.json, as instant-ngp and nerfstudio write them."""

from __future__ import annotations

import logging
import posixpath
from pathlib import Path
from typing import Any

from ...errors import SceneError
from ._capture import Box, Capture, Frame, box_of_cameras, held_out, nothing_left
from ._transforms import box_of, lens_of, number, picture_of, pose_of, read_frames
from .images import size_of

_SCALE, _OFFSET = 0.33, 0.5  # instant-ngp's defaults
_log = logging.getLogger("compress3g.nerf")

_Named = list[tuple[str, Frame]]


def read(path: Path, downscale: int) -> Capture:
    """The capture in a transforms.json, or in the folder that has one.

    The box is the file's aabb, else that of its aabb_scale, scale and offset, else a cube around
    the point the cameras look at. The split is the file's train_filenames, test_filenames and
    val_filenames, else every 8th picture, sorted by name, is for testing.
    Raises SceneError, one line that names the file.
    """
    source = path if path.suffix == ".json" else path / "transforms.json"
    data, frames = read_frames(source)
    named: _Named = []
    size: tuple[int, int] | None = None
    for i, frame in enumerate(frames):
        file = picture_of(source, i, frame)
        if file.is_file():
            size = size or size_of(file)
            lens = lens_of(source, {**data, **frame}, size)
            pose = pose_of(source, i, frame.get("transform_matrix"))
            name = _normal(frame["file_path"])
            named.append((name, Frame(file=file, lens=lens, pose=pose)))
    if not named:
        raise nothing_left(source, picture_of(source, 0, frames[0]))
    if any("mask_path" in frame for frame in frames):
        _log.warning("%s names masks, which are not used", source)
    named.sort(key=lambda each: each[0])
    train, test = _split(source, data, named)
    return Capture(
        source=source,
        train=train,
        test=test,
        missing=len(frames) - len(named),
        box=box_of(source, data) or _box(source, data) or box_of_cameras([*train, *test]),
        photographed=True,
        shrink=downscale,
    )


def _normal(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _split(source: Path, data: dict[str, Any], named: _Named) -> tuple[list[Frame], list[Frame]]:
    lists = {key: _names(source, data, f"{key}_filenames") for key in ("train", "test", "val")}
    testing = lists["test"] or lists["val"]
    if not testing and not lists["train"]:
        return held_out(source, [frame for _, frame in named])
    if lists["train"]:
        train = [frame for name, frame in named if name in lists["train"]]
    else:
        train = [frame for name, frame in named if name not in testing]
    if not testing:
        testing = {name for name, _ in named} - lists["train"]
        if not testing:
            return held_out(source, train)
    test = [frame for name, frame in named if name in testing]
    for key, found in (("train", train), ("test", test)):
        if not found:
            raise SceneError(
                f"no image for {key} that {source} lists exists: mend {key}_filenames or remove it"
            )
    return train, test


def _names(source: Path, data: dict[str, Any], key: str) -> set[str]:
    names = data.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SceneError(f"{source}: {key} is not a list of file names: mend or remove it")
    return {_normal(name) for name in names}


def _box(source: Path, data: dict[str, Any]) -> Box | None:
    """instant-ngp's cube: side aabb_scale around (1/2)^3 after p -> p * scale + offset."""
    if not data.keys() & {"aabb_scale", "scale", "offset"}:
        return None
    side = number(source, data, "aabb_scale", 1.0)
    scale = number(source, data, "scale", _SCALE)
    offset = data.get("offset", _OFFSET)
    offsets = offset if isinstance(offset, list) else [offset] * 3
    if len(offsets) != 3:
        raise SceneError(f"{source}: offset is {offset!r}, not three numbers")
    shifts = [number(source, {"offset": each}, "offset") for each in offsets]
    if not (side > 0 and scale > 0):
        raise SceneError(f"{source}: aabb_scale {side:g} and scale {scale:g} must be positive")
    low = [(0.5 - side / 2 - shift) / scale for shift in shifts]
    return Box.of([*low, *(edge + side / scale for edge in low)])
