"""COLMAP's sparse models, binary and text: cameras, images and points as they are in the files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ...errors import SceneError
from ._capture import LARGEST

PARAMETERS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
}
_NAMES = [
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"),
    *("FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE"),
]
_OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Camera:
    """A lens: the values of PARAMETERS[model]."""

    model: str
    width: int
    height: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An image: world-to-camera rotation (w, x, y, z) and translation, OpenCV axes."""

    name: str
    rotation: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int
    points: _Ids  # ids of the points seen in it


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A sparse model; `source` is the file of its images. Point ids are in rising order."""

    source: Path
    cameras: dict[int, Camera]
    photos: list[Photo]
    ids: _Ids
    points: npt.NDArray[np.float64]


def find(path: Path) -> Path | None:
    """The folder of the sparse model that belongs to a capture, None if it has none."""
    for folder in (path / "sparse" / "0", path / "sparse", path, path / "colmap" / "sparse" / "0"):
        if _suffix(folder):
            return folder
    return None


def read(folder: Path) -> Model:
    """The model in a folder `find` returned; binary files go before text.

    Raises SceneError naming the file and the place for one that is damaged.
    """
    suffix = _suffix(folder)
    files = [folder / f"{name}{suffix}" for name in ("cameras", "images", "points3D")]
    binary = suffix == ".bin"
    cameras = dict((_cameras_bin if binary else _cameras_txt)(files[0]))
    photos = list((_photos_bin if binary else _photos_txt)(files[1]))
    points: dict[int, tuple[float, ...]] = {}
    if files[2].is_file():
        points = dict((_points_bin if binary else _points_txt)(files[2]))
    ids = np.array(sorted(points), np.int64)
    positions = np.array([points[i] for i in ids.tolist()], np.float64).reshape(-1, 3)
    shown = (np.abs(positions) < LARGEST).all(1)  # also false for NaN
    return Model(files[1], cameras, photos, ids[shown], positions[shown])


def _suffix(folder: Path) -> str | None:
    for suffix in (".bin", ".txt"):
        if all((folder / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
            return suffix
    return None


class _Bytes:
    """Little-endian values of a file, one after the other."""

    def __init__(self, file: Path) -> None:
        self.file, self._data, self._at = file, file.read_bytes(), 0

    def take(self, layout: str) -> tuple[Any, ...]:
        self._need(struct.calcsize(f"<{layout}"))
        values = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            self._cut_off()
        found, self._at = self._data[self._at : end], end + 1
        return found.decode(errors="surrogateescape")

    def rows(self, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        self._need(dtype.itemsize * count)
        found = np.frombuffer(self._data, dtype, count, self._at)
        self._at += found.nbytes
        return found

    def skip(self, size: int) -> None:
        self._need(size)
        self._at += size

    def _need(self, size: int) -> None:
        if self._at + size > len(self._data):
            self._cut_off()

    def _cut_off(self) -> NoReturn:
        raise SceneError(
            f"{self.file} is cut off after {len(self._data)} bytes: copy or export the model again"
        )


def _cameras_bin(file: Path) -> Iterator[tuple[int, Camera]]:
    data = _Bytes(file)
    for _ in range(data.take("Q")[0]):
        number, kind, width, height = data.take("iiQQ")
        name = _NAMES[kind] if 0 <= kind < len(_NAMES) else f"number {kind}"
        _check_model(file, name)
        yield number, Camera(name, width, height, data.take(f"{len(PARAMETERS[name])}d"))


def _photos_bin(file: Path) -> Iterator[Photo]:
    data = _Bytes(file)
    for _ in range(data.take("Q")[0]):
        _, *pose, camera = data.take("i7di")
        name = data.text()
        seen = data.rows(_OBSERVATION, data.take("Q")[0])["point"]
        yield Photo(name, tuple(pose[:4]), tuple(pose[4:]), camera, seen[seen >= 0])


def _points_bin(file: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    data = _Bytes(file)
    for _ in range(data.take("Q")[0]):
        number, x, y, z, *_, length = data.take("q3d3BdQ")
        data.skip(8 * length)
        yield number, (x, y, z)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines without comments, numbered from 1; empty ones too, where they mean something."""
    text = file.read_bytes().decode(errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            yield number, line.strip()


def _damaged(file: Path, number: int) -> SceneError:
    return SceneError(f"{file}: line {number} is damaged: copy or export the model again")


def _cameras_txt(file: Path) -> Iterator[tuple[int, Camera]]:
    for number, line in _lines(file):
        if not line:
            continue
        try:
            key, name, width, height, *values = line.split()
            _check_model(file, name)
            camera = Camera(name, int(width), int(height), tuple(map(float, values)))
            if len(values) != len(PARAMETERS[name]):
                raise _damaged(file, number)
            yield int(key), camera
        except SceneError:
            raise
        except (ValueError, OverflowError):
            raise _damaged(file, number) from None


def _photos_txt(file: Path) -> Iterator[Photo]:
    lines = _lines(file)
    for number, line in lines:
        if not line:
            continue
        try:
            _, *pose, key, name = line.split(maxsplit=9)
            if len(pose) != 7:
                raise ValueError
            rotation, translation = tuple(map(float, pose[:4])), tuple(map(float, pose[4:]))
            camera = int(key)
            # The second line of an image lists its observations and is empty if there is none.
            number, second = next(lines, (number, ""))
            points = np.array(second.split()[2::3], np.int64)
            yield Photo(name, rotation, translation, camera, points[points >= 0])
        except (ValueError, OverflowError):
            raise _damaged(file, number) from None


def _points_txt(file: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    for number, line in _lines(file):
        if not line:
            continue
        try:
            key, x, y, z = line.split(maxsplit=4)[:4]
            yield int(np.int64(key)), (float(x), float(y), float(z))
        except (ValueError, OverflowError):
            raise _damaged(file, number) from None


def _check_model(file: Path, name: str) -> None:
    if name not in PARAMETERS:
        known = ", ".join(PARAMETERS)
        raise SceneError(
            f"{file}: camera model {name} is not one of {known}: undistort the images with COLMAP"
        )
