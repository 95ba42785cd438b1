"""Where the cameras stand: an even spiral over the sphere, split into train and test."""

from __future__ import annotations

import math

import numpy as np

from .patterns import Array

HORIZONTAL_FIELD = math.radians(36.0)
VIEWS = 48
TEST_EVERY = 6


def directions() -> Array:
    """Unit vectors [48, 3] from the origin to the cameras, even in area.

    A golden-angle spiral from 37 degrees below the horizon to 72 above it.
    """
    low, high = -0.60, 0.95
    z = low + (high - low) * (np.arange(VIEWS) + 0.5) / VIEWS
    azimuth = np.arange(VIEWS) * math.pi * (3.0 - math.sqrt(5.0))
    flat = np.sqrt(1.0 - z * z)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], -1)


def splits() -> dict[str, list[int]]:
    """View numbers per split: every sixth one on the spiral is a test view."""
    test = list(range(TEST_EVERY // 2, VIEWS, TEST_EVERY))
    return {"train": [i for i in range(VIEWS) if i not in test], "test": test}


def pose(direction: Array, distance: float) -> Array:
    """Camera-to-world [4, 4] looking at the origin, z up; x right, y up, -z forward."""
    right = np.cross([0.0, 0.0, 1.0], direction)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(direction, right), direction], -1)
    matrix[:3, 3] = distance * direction
    return matrix


def framing_distance(vertices: Array, margin: float = 1.02) -> float:
    """The least distance from the origin at which every view holds all vertices [n, 3]."""
    slope = math.tan(0.5 * HORIZONTAL_FIELD)
    needed = 0.0
    for direction in directions():
        across = vertices @ pose(direction, 1.0)[:3, :2]
        reach = vertices @ direction + margin * np.abs(across).max(axis=1) / slope
        needed = max(needed, float(reach.max()))
    return needed


def pixel_rays(matrix: Array, size: int) -> tuple[Array, Array]:
    """Origin [3] and unit directions [size, size, 3] through the pixel centres, row 0 on top."""
    focal = 0.5 * size / math.tan(0.5 * HORIZONTAL_FIELD)
    row, column = np.mgrid[0:size, 0:size] + 0.5
    local = np.stack(
        [(column - 0.5 * size) / focal, (0.5 * size - row) / focal, -np.ones_like(row)], -1
    )
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    return matrix[:3, 3], local @ matrix[:3, :3].T
