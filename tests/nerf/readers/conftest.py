from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT, FOCAL = 32, 24, 40.0
COLMAP_MODELS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6,
    "FOV": 7,
    "SIMPLE_RADIAL_FISHEYE": 8,
    "RADIAL_FISHEYE": 9,
}


def _looking_at_the_middle(count: int) -> np.ndarray:
    """Camera-to-world matrices, OpenGL axes, on a bent circle of radius about four."""
    poses = np.zeros((count, 4, 4))
    for i, turn in enumerate(np.linspace(0, 2 * np.pi, count, endpoint=False)):
        eye = np.array([4 * np.cos(turn), 4 * np.sin(turn), 1 + 0.5 * np.sin(2 * turn)])
        back = eye / np.linalg.norm(eye)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        poses[i, :3] = np.stack([right, np.cross(back, right), back, eye], 1)
        poses[i, 3, 3] = 1
    return poses


def _quaternion(turn: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix: the eigenvector of Bar-Itzhack's matrix."""
    a, b, c, d, e, f, g, h, i = turn.ravel()
    matrix = np.array(
        [
            [a - e - i, 0, 0, 0],
            [d + b, e - a - i, 0, 0],
            [g + c, h + f, i - a - e, 0],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix, UPLO="L")[1][:, -1]
    return np.array([w, x, y, z])


@dataclass
class Rig:
    """Ten pictures of random pixels, and the four ways to write down where they were taken."""

    folder: Path
    count: int = 10
    channels: int = 3
    lens: dict[str, Any] = field(default_factory=dict)
    model: str = "SIMPLE_PINHOLE"
    values: tuple[float, ...] = (FOCAL, WIDTH / 2, HEIGHT / 2)

    def __post_init__(self):
        self.poses = _looking_at_the_middle(self.count)
        rng = np.random.default_rng(0)
        shape = (self.count, HEIGHT, WIDTH, self.channels)
        self.pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        self.points = rng.normal(0, 0.5, (200, 3))
        self.names = [f"p{i:02d}.png" for i in range(self.count)]

    def pictures(self, folder: str) -> None:
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for name, pixels in zip(self.names, self.pixels, strict=True):
            Image.fromarray(pixels).save(self.folder / folder / name)

    def transforms(self, indices, **more) -> dict[str, Any]:
        frames = [
            {
                "file_path": f"images/{self.names[i][:-4]}",
                "transform_matrix": self.poses[i].tolist(),
            }
            for i in indices
        ]
        return {
            "camera_angle_x": 2 * np.arctan(0.5 * WIDTH / FOCAL),
            **self.lens,
            **more,
            "frames": frames,
        }

    def blender(self, **more) -> Path:
        self.pictures("images")
        test = list(range(0, self.count, 8))
        train = [i for i in range(self.count) if i not in test]
        self.write("transforms_train.json", self.transforms(train, **more))
        self.write("transforms_test.json", self.transforms(test, **more))
        return self.folder

    def instant_ngp(self, **more) -> Path:
        self.pictures("images")
        # Out of order: readers sort by name.
        self.write("transforms.json", self.transforms(reversed(range(self.count)), **more))
        return self.folder

    def llff(self, images: str = "images", originals: int = 1) -> Path:
        self.pictures(images)
        np.save(self.folder / "poses_bounds.npy", self.rows(originals))
        return self.folder

    def rows(self, originals: int = 1) -> np.ndarray:
        right, up, back, eye = np.moveaxis(self.poses[:, :3], 2, 0)
        size = np.tile([HEIGHT * originals, WIDTH * originals, FOCAL * originals], (self.count, 1))
        rows = np.stack([-up, right, back, eye, size], 2).reshape(self.count, 15)
        return np.concatenate([rows, np.tile([3.0, 6.0], (self.count, 1))], 1)

    def colmap(self, *, binary: bool = True, sparse: str = "sparse/0") -> Path:
        self.pictures("images")
        model = self.folder / sparse
        model.mkdir(parents=True, exist_ok=True)
        (self._binary if binary else self._text)(model)
        return self.folder

    def to_camera(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """COLMAP's pose: rotation (w, x, y, z) and translation of world to camera."""
        turn = (self.poses[i, :3, :3] * [1, -1, -1]).T
        return _quaternion(turn), -turn @ self.poses[i, :3, 3]

    def _binary(self, model: Path) -> None:
        values = struct.pack(f"<{len(self.values)}d", *self.values)
        head = struct.pack("<QiiQQ", 1, 7, COLMAP_MODELS[self.model], WIDTH, HEIGHT)
        (model / "cameras.bin").write_bytes(head + values)
        data = struct.pack("<Q", self.count)
        for i in reversed(range(self.count)):
            turn, move = self.to_camera(i)
            data += struct.pack("<i7di", i + 1, *turn, *move, 7) + self.names[i].encode() + b"\0"
            data += struct.pack("<Q", 3)
            for seen in (i, -1, i + 1):
                data += struct.pack("<ddq", 1.0, 2.0, seen)
        (model / "images.bin").write_bytes(data)
        data = struct.pack("<Q", len(self.points))
        for i, point in enumerate(self.points):
            data += struct.pack("<Q3d3BdQ", i, *point, 1, 2, 3, 0.5, 2) + bytes(16)
        (model / "points3D.bin").write_bytes(data)

    def _text(self, model: Path) -> None:
        values = " ".join(map(repr, map(float, self.values)))
        (model / "cameras.txt").write_text(
            f"# Camera list\n\n7 {self.model} {WIDTH} {HEIGHT} {values}\n"
        )
        lines = ["# Image list", "#   two lines each"]
        for i in reversed(range(self.count)):
            turn, move = self.to_camera(i)
            numbers = " ".join(repr(float(x)) for x in (*turn, *move))
            lines += [f"{i + 1} {numbers} 7 {self.names[i]}"]
            # An image without observations has an empty second line.
            lines += ["" if i % 2 else f"1.0 2.0 {i} 3.0 4.0 -1 5.0 6.0 {i + 1}"]
        (model / "images.txt").write_text("\n".join(lines) + "\n")
        rows = [f"{i} {x} {y} {z} 1 2 3 0.5 1 2" for i, (x, y, z) in enumerate(self.points)]
        (model / "points3D.txt").write_text("# Points\n" + "\n".join(rows) + "\n")

    def write(self, name: str, data: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(json.dumps(data))

    def change(self, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
        """Change what a JSON file says."""
        data = json.loads((self.folder / name).read_text())
        edit(data)
        self.write(name, data)


@pytest.fixture
def rig(tmp_path):
    """A rig in a fresh folder, with options of `Rig`."""
    return lambda name="scene", **options: Rig(tmp_path / name, **options)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("COMPRESS3G_CACHE", str(folder))
    return folder
