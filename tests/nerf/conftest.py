from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from compress3g.nerf.scene import Scene

_SIZE, _ANGLE, _DISTANCE, _RADIUS = 40, 0.7, 3.0, 0.5


def _look_at_origin(position: np.ndarray) -> np.ndarray:
    back = position / np.linalg.norm(position)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], 1)
    return pose


def _picture(pose: np.ndarray) -> Image.Image:
    """A ball of radius 1/2 around the origin, coloured by its normal, ray traced."""
    focal = 0.5 * _SIZE / np.tan(0.5 * _ANGLE)
    y, x = np.mgrid[:_SIZE, :_SIZE] + 0.5
    local = np.stack([(x - _SIZE / 2) / focal, -(y - _SIZE / 2) / focal, -np.ones_like(x)], -1)
    direction = local @ pose[:3, :3].T
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    b = direction @ pose[:3, 3]
    root = b * b - (_DISTANCE**2 - _RADIUS**2)
    hit = root > 0
    t = -b - np.sqrt(np.where(hit, root, 0))
    normal = (pose[:3, 3] + t[..., None] * direction) / _RADIUS
    rgba = np.concatenate([0.5 + 0.4 * normal, np.ones_like(t)[..., None]], -1) * hit[..., None]
    return Image.fromarray((rgba.clip(0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def ball(tmp_path_factory):
    """The folder of a small scene in the NeRF-synthetic layout."""
    folder = tmp_path_factory.mktemp("scenes") / "ball"
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 3)):
        (folder / split).mkdir(parents=True)
        frames = []
        for i in range(count):
            direction = rng.normal(size=3)
            pose = _look_at_origin(_DISTANCE * direction / np.linalg.norm(direction))
            _picture(pose).save(folder / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": _ANGLE, "frames": frames, "aabb": [[-1] * 3, [1] * 3]})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


@pytest.fixture(scope="session")
def scene(ball):
    return Scene.load(ball)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
