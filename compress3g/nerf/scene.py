"""A scene: pictures with cameras, split into training and test views, and the cube they show."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import ConfigError, SceneError
from .cameras import CameraModel, Cameras
from .readers import _colmap_model, blender, colmap, images, instant_ngp, llff
from .readers._capture import Box, Capture, Frame

SceneFormat = Literal["blender", "instant-ngp", "llff", "colmap"]

_READERS: dict[SceneFormat, Callable[[Path, int], Capture]] = {
    "blender": blender.read,
    "instant-ngp": instant_ngp.read,
    "llff": llff.read,
    "colmap": colmap.read,
}
_NEAR = 0.05  # of the cube's side: where marching starts in captures that do not tell
_SMALLEST = 11  # pixels a side: SSIM's window
_log = logging.getLogger("compress3g.nerf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """n pictures in [0, 255], straight alpha if c is 4, their cameras and their names."""

    cameras: Cameras
    images: UInt8[Tensor, "n h w c"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, index: Sequence[int]) -> Views:
        """The views at these positions."""
        rows = list(index)
        names = tuple(self.names[i] for i in rows)
        return Views(cameras=self.cameras.select(rows), images=self.images[rows], names=names)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Training and test views in world units, and the cube that is mapped to [0, 1]^3.

    centre, side: of that cube. near: distance along rays where marching starts, 0 for objects
    looked at from outside. has_alpha: whether any pixel of any picture is not opaque. downscale:
    what `load` was asked for.
    """

    name: str
    path: Path
    format: SceneFormat
    train: Views
    test: Views
    centre: Float[Tensor, "3"]
    side: float
    near: float
    has_alpha: bool
    downscale: int = 1

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        format: str = "auto",
        downscale: int = 1,
        near: float | None = None,
        box: Sequence[float] | None = None,
    ) -> Scene:
        """The scene in a folder, in any of the layouts blender, instant-ngp, llff and colmap.

        downscale: makes the pictures smaller by this factor. near, box (min x y z, max x y z):
        world units, None what the files suggest. Listed pictures that do not exist are skipped
        with one warning. Raises ConfigError for bad arguments and SceneError, one line that names
        the file and the remedy, for scenes that cannot be used.
        """
        chosen = _check_options(downscale, near, box)
        folder = Path(path)
        try:
            layout = _layout(folder, format)
            base = folder.parent if layout == "blender" and folder.is_file() else folder
            capture = _READERS[layout](base, downscale)
            _check_split(capture)
            found = cls._of(folder, layout, capture, chosen or _box(capture), near)
            return replace(found, downscale=downscale)
        except OSError as error:
            reason = f"{error.filename or ''} {error.strerror or error}".strip()
            raise SceneError(f"cannot read the scene {folder}: {reason}: mend its access") from None

    @classmethod
    def _of(
        cls, path: Path, layout: SceneFormat, capture: Capture, box: Box, near: float | None
    ) -> Scene:
        total = len(capture.train) + len(capture.test)
        if capture.missing:
            _log.warning(
                "%s: %d of %d listed images do not exist and are skipped",
                capture.source,
                capture.missing,
                capture.missing + total,
            )
        frames = [*capture.train, *capture.test]
        cameras = _cameras(capture, frames)
        if (share := cameras.unmapped()) > 0:
            _log.warning(
                "%s: %.1f%% of the pixels lie beyond what the lens model maps (its polynomial "
                "turns back): crop the images or calibrate again",
                capture.source,
                100 * share,
            )
        start = _near(capture, box, near)
        _check_seen(capture, cameras.select(slice(len(capture.train))), box, start)
        pictures = images.decode([frame.file for frame in frames], capture.shrink)
        if pictures.shape[3] == 4 and not pictures[: len(capture.train), ..., 3].any():
            raise SceneError(
                f"{capture.source}: all {len(capture.train)} training images are fully "
                "transparent: render them again, or save them without alpha"
            )
        train, test = (
            Views(cameras=cameras.select(part), images=pictures[part], names=_names(frames[part]))
            for part in (slice(len(capture.train)), slice(len(capture.train), total))
        )
        home = path.absolute()
        return cls(
            name=(home.parent if home.is_file() else home).name,
            path=home,
            format=layout,
            train=train,
            test=test,
            centre=box.centre.float(),
            side=box.side,
            near=start,
            has_alpha=pictures.shape[3] == 4,
        )

    def about(self) -> dict[str, Any]:
        """How to load it again, as JSON values."""
        names = ("name", "format", "downscale")
        return {"scene": str(self.path), **{name: getattr(self, name) for name in names}}

    def unit(self, views: Views) -> Cameras:
        """The cameras of views in the unit cube: positions at (p - centre) / side + 1/2."""
        return views.cameras.transformed(self.centre - 0.5 * self.side, 1 / self.side)


def _check_options(downscale: int, near: float | None, box: Sequence[float] | None) -> Box | None:
    if not isinstance(downscale, int) or downscale < 1:
        raise ConfigError(f"downscale {downscale} is impossible: give a whole number, 1 or more")
    if near is not None and not 0 <= near < math.inf:
        raise ConfigError(f"near {near} is impossible: give a distance of 0 or more")
    if box is None:
        return None
    try:
        found = Box.of([float(edge) for edge in box])
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise ConfigError(f"box {box} is impossible: give min x y z and max x y z, six numbers")
    return found


def _layout(path: Path, wanted: str) -> SceneFormat:
    """The layout of a folder, by the files in it."""
    if wanted != "auto" and wanted not in get_args(SceneFormat):
        known = ", ".join(("auto", *get_args(SceneFormat)))
        raise ConfigError(f"format {wanted!r} is unknown: use one of {known}")
    if not path.exists():
        raise SceneError(f"{path} does not exist: give the folder of a scene")
    if path.is_dir() and not any(path.iterdir()):
        raise SceneError(f"{path} is an empty folder: give the folder of a scene")
    for name in _READERS:
        if wanted == name:
            return name
    if path.is_file():
        if path.suffix != ".json":
            raise SceneError(f"{path} is a file: give the folder of a scene")
        train = path.name == "transforms_train.json"
        return "blender" if train else "instant-ngp"
    if (path / "transforms_train.json").is_file():
        return "blender"
    if (path / "transforms.json").is_file():
        return "instant-ngp"
    if (path / "poses_bounds.npy").is_file():
        return "llff"
    if _colmap_model.find(path):
        return "colmap"
    raise SceneError(
        f"{path} has none of transforms_train.json, transforms.json, poses_bounds.npy and "
        "sparse/0/cameras.bin: give the folder that has"
    )


def _box(capture: Capture) -> Box:
    if capture.box is None:
        raise SceneError(
            f"{capture.source} does not tell where the scene is: give --box with its corners"
        )
    return capture.box


def _check_split(capture: Capture) -> None:
    train = {frame.file for frame in capture.train}
    for frame in capture.test:
        if frame.file in train:
            raise SceneError(
                f"{capture.source}: {frame.file} is listed for training and for testing: "
                "list it once"
            )


def _cameras(capture: Capture, frames: Sequence[Frame]) -> Cameras:
    """Cameras for the pictures as they will be decoded, whatever size their lenses are for."""
    size = images.size_of(frames[0].file)
    if min(size) < _SMALLEST:
        raise SceneError(
            f"{frames[0].file} is {size[0]}x{size[1]}: images need {_SMALLEST} pixels a side or "
            "more"
        )
    return Cameras(
        width=size[0] // capture.shrink,
        height=size[1] // capture.shrink,
        intrinsics=torch.stack([_intrinsics(capture, frame, size) for frame in frames]),
        distortion=torch.tensor([frame.lens.distortion for frame in frames]),
        model=_model(capture, frames),
        poses=torch.stack([frame.pose for frame in frames]).float(),
    )


def _intrinsics(capture: Capture, frame: Frame, size: tuple[int, int]) -> Float[Tensor, "4"]:
    """fx, fy, cx, cy in pixels of the decoded pictures."""
    width, height = size
    lens = frame.lens
    # A hundredth, and a pixel of rounding, is what making pictures smaller may change.
    if abs(height - width * lens.height / lens.width) > max(1.5, 0.01 * height):
        raise SceneError(
            f"{frame.file} is {width}x{height} but {capture.source} describes pictures of "
            f"{lens.width:g}x{lens.height:g}: use the pictures the cameras were estimated for"
        )
    x, y = width / lens.width, height / lens.height
    scale = torch.tensor([x, y, x, y], dtype=torch.float64) / capture.shrink
    return (torch.tensor(lens.intrinsics, dtype=torch.float64) * scale).float()


def _model(capture: Capture, frames: Sequence[Frame]) -> CameraModel:
    fisheye = {frame.lens.fisheye: frame.file for frame in frames}
    if len(fisheye) == 2:
        raise SceneError(
            f"{capture.source} mixes a fisheye lens ({fisheye[True]}) with another "
            f"({fisheye[False]}): keep the images of one"
        )
    if True in fisheye:
        return "opencv_fisheye"
    return "opencv" if any(any(frame.lens.distortion) for frame in frames) else "pinhole"


def _near(capture: Capture, box: Box, near: float | None) -> float:
    """Where marching starts: as asked for, else 0 unless cameras may stand inside the cube."""
    if near is not None:
        return float(near)
    for frame in (*capture.train, *capture.test):
        # The cube around the box is what is marched through.
        if (frame.pose[:, 3] - box.centre).abs().max() >= box.side / 2:
            continue
        if not capture.photographed:
            raise SceneError(
                f"{capture.source}: the camera of {frame.file} stands inside the scene's box: give "
                "--near, the distance where objects may begin, or a smaller --box"
            )
        return _NEAR * box.side if capture.near is None else capture.near
    return 0.0 if capture.near is None else capture.near


def _check_seen(capture: Capture, cameras: Cameras, box: Box, near: float) -> None:
    """Raises SceneError unless a training picture shows a point of the cube beyond `near`."""
    steps = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64) * box.side
    points = (torch.cartesian_prod(steps, steps, steps) + box.centre).float()
    for view in range(len(cameras)):
        pixel, _ = cameras.project(view, points)
        away = (points - cameras.poses[view, :, 3]).norm(dim=1)
        x, y = pixel.unbind(-1)
        shown = (x >= 0) & (y >= 0) & (x < cameras.width) & (y < cameras.height) & (away > near)
        if shown.any():
            return
    raise SceneError(
        f"{capture.source}: no training image shows the box around "
        f"{[round(float(c), 3) for c in box.centre]} with side {box.side:g} beyond distance "
        f"{near:g}: give --box or --near, or mend the poses"
    )


def _names(frames: Sequence[Frame]) -> tuple[str, ...]:
    """What to call the views: their pictures' names, with more where these are not unique."""
    stems = [frame.file.stem for frame in frames]
    longer = [f"{frame.file.parent.name}_{frame.file.stem}" for frame in frames]
    numbered = [f"{i:04d}_{stem}" for i, stem in enumerate(stems)]
    return next(tuple(n) for n in (stems, longer, numbered) if len(set(n)) == len(n))
