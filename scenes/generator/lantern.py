"""A carved and glazed lantern: a thin shell with windows onto an empty, lit inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from skimage.measure import marching_cubes

from .meshes import Material, Mesh, ball, hoop, revolve, rotation, spline
from .patterns import (
    Array,
    fractal_noise,
    linear,
    mix,
    paint_over,
    palette,
    random_choice,
    smoothstep,
    voronoi,
)

# (radius, height) of the middle of the wall, from the foot to the rim of the lid.
PROFILE = spline(
    np.array(
        [
            (0.50, -1.00), (0.40, -0.90), (0.42, -0.82), (0.66, -0.66), (0.89, -0.34), (0.96, 0.0),
            (0.88, 0.34), (0.66, 0.62), (0.42, 0.76), (0.34, 0.84), (0.36, 0.90),
        ]
    ),
    700,
)  # fmt: skip
THICKNESS = 0.055
GRID = 352
TILES = 22  # mosaic columns around the belly


@dataclass(frozen=True, slots=True)
class Row:
    """A ring of equal openings: their number, height, half extents, outline, half-step shift."""

    count: int
    height: float
    half_width: float
    half_height: float
    outline: str
    shifted: bool = False


ROWS = (
    Row(9, 0.0, 0.19, 0.31, "pointed"),
    Row(9, 0.29, 0.105, 0.105, "star", shifted=True),
    Row(9, -0.31, 0.105, 0.105, "star", shifted=True),
    Row(18, 0.555, 0.055, 0.055, "round"),
    Row(18, -0.60, 0.055, 0.075, "pointed"),
    Row(10, -0.945, 0.055, 0.055, "round"),
)


def _outline_distance(row: Row, u: Array, v: Array) -> Array:
    """Approximate signed distance to one opening centred at (0, 0), negative inside."""
    if row.outline == "round":
        return np.hypot(u, v) - row.half_width
    if row.outline == "star":
        angle, radius = np.arctan2(v, u), np.hypot(u, v)
        return radius - row.half_width * (0.80 + 0.20 * np.cos(8.0 * angle))
    # A pointed oval: the overlap of two circles whose centres lie at u = +-offset.
    offset = (row.half_height**2 - row.half_width**2) / (2.0 * row.half_width)
    return np.hypot(np.abs(u) + offset, v) - (row.half_width + offset)


def opening_distance(angle: Array, along: Array) -> Array:
    """Approximate signed distance [n] on the wall to the nearest opening, negative inside.

    `angle` is the azimuth; `along` is the index on PROFILE.
    """
    step = float(np.linalg.norm(PROFILE[1] - PROFILE[0]))
    nearest = np.full(np.broadcast_shapes(angle.shape, along.shape), 9.0)
    for row in ROWS:
        at = int(np.argmin(np.abs(PROFILE[:, 1] - row.height)))
        spacing = 2.0 * math.pi / row.count
        local = (angle - (0.5 * spacing if row.shifted else 0.0) + 0.5 * spacing) % spacing
        u = (local - 0.5 * spacing) * PROFILE[at, 0]
        nearest = np.minimum(nearest, _outline_distance(row, u, (along - at) * step))
    return nearest


def _wall_coordinates(radius: Array, height: Array) -> tuple[Array, Array]:
    """Signed distance to the profile (outside positive) and the index of its nearest point."""
    flat = np.stack([radius.reshape(-1), height.reshape(-1)], -1)
    normal = np.gradient(PROFILE, axis=0)[:, ::-1] * np.array([1.0, -1.0])
    squared = (flat**2).sum(1)[:, None] - 2.0 * flat @ PROFILE.T + (PROFILE**2).sum(1)[None]
    index = squared.argmin(1)
    distance = np.linalg.norm(flat - PROFILE[index], axis=1)
    side = np.sign(((flat - PROFILE[index]) * normal[index]).sum(1))
    return (side * distance).reshape(radius.shape), index.reshape(radius.shape).astype(np.float64)


def _smooth_maximum(a: Array, b: Array, width: float) -> Array:
    """The maximum with its crease rounded over `width`."""
    h = np.clip(0.5 + 0.5 * (a - b) / width, 0.0, 1.0)
    return b + (a - b) * h + width * h * (1.0 - h)


def _level_set() -> tuple[Array, float]:
    """Signed distance on a [GRID]^3 lattice over a centred cube, and the cube's half side."""
    half = 1.06
    axis = np.linspace(-half, half, GRID)
    plane = np.linspace(0.0, half * 1.45, 512)
    table_distance, table_along = (
        np.stack(column)
        for column in zip(
            *(_wall_coordinates(plane, np.full_like(plane, z)) for z in axis), strict=True
        )
    )
    x, y = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    field = np.empty((GRID, GRID, GRID), dtype=np.float32)
    for k in range(GRID):
        # Beyond the ends of the profile the side flips: interpolating the signed distance would
        # put a sheet of zeros there.
        distance = np.interp(radius, plane, np.abs(table_distance[k]))
        along = np.interp(radius, plane, table_along[k])
        opening = opening_distance(angle, along)
        thickness = THICKNESS + 0.022 * np.exp(-(((opening - 0.015) / 0.02) ** 2))
        field[:, :, k] = _smooth_maximum(distance - 0.5 * thickness, -opening, 0.012)
    return field, half


def _mosaic(angle: Array, along: Array, step: float) -> Array:
    """Glazed tiles in dark grout."""
    u = (angle / (2.0 * np.pi) % 1.0) * TILES
    number, border = voronoi(u, along * step / (2.0 * np.pi * 0.96) * TILES, TILES, seed=11)
    colours = random_choice(
        number, palette("0e6f8c 1295a8 f1e6cf 0b3a6e f1e6cf e0a32e 39b3a6 c8452c 155a9a"), 12
    )
    return mix(linear("1d2433"), colours, smoothstep(0.03, 0.10, border))


def _chevrons(angle: Array, along: Array, step: float) -> Array:
    """Zigzags in three colours."""
    u = angle / (2.0 * np.pi) * 10.0
    wave = np.abs(u % 1.0 - 0.5) * 0.2
    stripe = np.floor((along * step + wave) / 0.10).astype(np.int64) % 4
    return palette("0b3a6e f1e6cf c8452c f1e6cf")[stripe]


def _scales(angle: Array, along: Array, step: float) -> Array:
    """Overlapping fish scales."""
    v = along * step / 0.16
    row = np.floor(v)
    u = angle / (2.0 * np.pi) * 14.0 + 0.5 * (row % 2)
    radius = np.hypot(u % 1.0 - 0.5, (v % 1.0) * 0.9)
    number = (row * 64 + np.floor(u) % 14).astype(np.int64)
    inner = random_choice(number, palette("e8893c f0c35a d9542f f6e3b4"), 14)
    return mix(inner, linear("7a1f1a"), smoothstep(0.36, 0.46, radius))


def _outer_colours(angle: Array, along: Array, points: Array) -> Array:
    """Bands of mosaic, chevrons and scales between gold lines."""
    step = float(np.linalg.norm(PROFILE[1] - PROFILE[0]))
    height = np.interp(along, np.arange(len(PROFILE)), PROFILE[:, 1])
    colours = _mosaic(angle, along, step)
    colours = np.where((height < -0.47)[:, None], _chevrons(angle, along, step), colours)
    colours = np.where((height > 0.45)[:, None], _scales(angle, along, step), colours)
    foot = mix(
        linear("0b3a6e"),
        linear("1295a8"),
        smoothstep(0.45, 0.55, (angle / (2.0 * np.pi) * 16.0) % 1.0),
    )
    colours = np.where((height < -0.80)[:, None], foot, colours)
    for line in (-0.80, -0.47, 0.45):
        colours = paint_over(colours, np.abs(height - line) < 0.018, "e3b04b")
    opening = opening_distance(angle, along)
    colours = paint_over(colours, opening < 0.052, "10204a")
    colours = paint_over(colours, opening < 0.034, "e9bd5c")
    return colours * (0.72 + 0.5 * fractal_noise(points, 9.0, 4, 21))[:, None]


def _inner_colours(angle: Array, along: Array, points: Array) -> Array:
    """Warm clay with painted rings and spots."""
    ring = np.sin(along * (2.0 * np.pi / 70.0) + 0.8 * np.sin(4.0 * angle))
    colours = mix(linear("d98a4e"), linear("f3d9a4"), smoothstep(-0.15, 0.15, ring))
    return colours * (0.8 + 0.3 * fractal_noise(points, 4.0, 2, 22))[:, None]


def _shell() -> Mesh:
    """The carved wall."""
    field, half = _level_set()
    spacing = 2.0 * half / (GRID - 1)
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(spacing,) * 3)
    points = vertices.astype(np.float64) - half
    angle = np.arctan2(points[:, 1], points[:, 0])
    distance, along = np.empty(len(points)), np.empty(len(points))
    for part in np.array_split(np.arange(len(points)), 64):
        radius = np.hypot(points[part, 0], points[part, 1])
        distance[part], along[part] = _wall_coordinates(radius, points[part, 2])
    colours = _outer_colours(angle, along, points)
    inside = (distance < -0.35 * THICKNESS)[:, None]
    colours = np.where(inside, _inner_colours(angle, along, points), colours)
    cut = (np.abs(distance) <= 0.35 * THICKNESS)[:, None]
    colours = np.where(cut, linear("efc777"), colours)
    return Mesh(points, faces.astype(np.int64), np.clip(colours, 0.01, 0.92), Material.GLAZE)


def _lid() -> Mesh:
    """A fluted dome over the neck, striped, hollow underneath."""
    outer = np.linspace(0.0, 0.5 * np.pi, 60)
    radius = np.concatenate([[0.0], 0.30 * np.cos(outer[::-1]), 0.36 * np.cos(outer)])
    height = np.concatenate(
        [[1.07], 0.90 + 0.17 * np.sin(outer[::-1]), 0.90 + 0.23 * np.sin(outer)]
    )
    surface = revolve(radius, height, 240)
    flute = 1.0 + 0.035 * np.cos(12.0 * surface.angle)
    stripe = np.cos(12.0 * surface.angle) * (1.0 - 0.25 * (surface.vertices[:, 2] - 0.9))
    colours = mix(linear("a4161a"), linear("f4dfae"), smoothstep(0.55, 0.68, stripe))
    colours = colours * (0.85 + 0.25 * fractal_noise(surface.vertices, 5.0, 2, 23))[:, None]
    painted = surface.painted(colours, Material.GLAZE)
    vertices = painted.vertices * np.stack([flute, flute, np.ones_like(flute)], -1)
    return Mesh(vertices, painted.faces, painted.colours, Material.GLAZE)


def build() -> list[Mesh]:
    """The shell, its lid and brass fittings, inside [-1, 1] in x and y."""
    brass = "e2b25a"
    ring = hoop(0.10, 0.0, 0.026, points=96).painted(brass, Material.METAL)
    fittings = [
        hoop(0.375, 0.905, 0.034).painted(brass, Material.METAL),
        hoop(0.505, -1.0, 0.045).painted(brass, Material.METAL),
        ball(np.array([0.0, 0.0, 1.14]), 0.055, brass, Material.METAL),
        ring.placed(
            rotation(np.array([1.0, 0.0, 0.0]), 0.5 * math.pi), 1.0, np.array([0, 0, 1.27])
        ),
    ]
    return [_shell(), _lid(), *fittings]
