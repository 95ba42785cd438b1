"""Triangle meshes with a colour per vertex: tubes, surfaces of revolution, level sets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .patterns import Array, linear

Faces = NDArray[np.int64]


class Material(Enum):
    """How a surface reflects; its colour comes from the mesh."""

    MATTE = "matte"
    GLAZE = "glaze"
    LACQUER = "lacquer"
    METAL = "metal"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Vertices [n, 3], outward faces [m, 3], linear RGB colours [n, 3] and one material."""

    vertices: Array
    faces: Faces
    colours: Array
    material: Material

    def placed(self, rotation: Array, scale: float, position: Array) -> Mesh:
        """The mesh rotated by [3, 3], then scaled, then moved."""
        vertices = scale * self.vertices @ rotation.T + position
        return Mesh(vertices, self.faces, self.colours, self.material)


@dataclass(frozen=True, slots=True)
class Surface:
    """An unpainted closed surface and the coordinates that patterns are drawn in.

    `along` [n] runs from 0 at one end to 1 at the other, `angle` [n] is in radians.
    """

    vertices: Array
    faces: Faces
    along: Array
    angle: Array

    def painted(self, colours: Array | str, material: Material) -> Mesh:
        """A mesh of one sRGB hex colour, or of a linear colour per vertex."""
        flat = linear(colours) if isinstance(colours, str) else colours
        return Mesh(self.vertices, self.faces, np.broadcast_to(flat, self.vertices.shape), material)


def merge(meshes: list[Mesh]) -> Mesh:
    """One mesh from many of the same material."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + at for mesh, at in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.colours for mesh in meshes]),
        meshes[0].material,
    )


def vertex_normals(vertices: Array, faces: Faces) -> Array:
    """Area-weighted unit normals [n, 3]."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.stack(
        [
            np.bincount(faces.reshape(-1), np.repeat(face_normals[:, axis], 3), len(vertices))
            for axis in range(3)
        ],
        -1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def _grid(rows: int, columns: int, closed: bool) -> Faces:
    """Two triangles per cell of a vertex grid that wraps in columns, and in rows if closed."""
    i, j = np.mgrid[0 : rows if closed else rows - 1, 0:columns]
    below, right = (i + 1) % rows, (j + 1) % columns
    a, b = (i * columns + j).reshape(-1), (i * columns + right).reshape(-1)
    c, d = (below * columns + right).reshape(-1), (below * columns + j).reshape(-1)
    return np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])


def revolve(radius: Array, height: Array, segments: int = 64) -> Surface:
    """A solid of revolution about z from a profile that runs upward and ends on the axis."""
    angle = np.arange(segments) * (2.0 * np.pi / segments)
    r = np.maximum(radius, 1e-5)[:, None]
    vertices = np.stack(
        [
            r * np.cos(angle),
            r * np.sin(angle),
            np.broadcast_to(height[:, None], (len(radius), segments)),
        ],
        -1,
    ).reshape(-1, 3)
    steps = np.hypot(np.diff(radius), np.diff(height))
    along = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    faces = _grid(len(radius), segments, closed=False)
    return Surface(vertices, faces, np.repeat(along, segments), np.tile(angle, len(radius)))


def sphere(segments: int = 64) -> Surface:
    """The unit sphere, `along` growing with z."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    return revolve(np.cos(polar), np.sin(polar), segments)


def ball(centre: Array, radius: float, colour: str, material: Material, segments: int = 40) -> Mesh:
    """A ball of one sRGB hex colour."""
    return sphere(segments).painted(colour, material).placed(np.eye(3), radius, centre)


def _frames(path: Array, closed: bool) -> tuple[Array, Array]:
    """Two unit vectors [n, 3] across a path, carried along it with the least possible twist."""
    if closed:
        tangent = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    else:
        tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.empty_like(path)
    start = np.eye(3)[np.argmin(np.abs(tangent[0]))]
    for i, direction in enumerate(tangent):
        carried = start if i == 0 else side[i - 1]
        across = carried - direction * (carried @ direction)
        side[i] = across / np.linalg.norm(across)
    return side, np.cross(tangent, side)


def tube(
    path: Array, radius: float | Array, *, closed: bool = False, segments: int = 14
) -> Surface:
    """A round tube along a polyline [n, 3]; `radius` may vary along it; open ends are capped."""
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path),))
    if not closed:
        path = np.concatenate([path[:1], path, path[-1:]])
        radii = np.concatenate([[1e-5], radii, [1e-5]])
    inner = path if closed else path[1:-1]
    side, up = _frames(inner, closed)
    if not closed:
        side, up = (np.concatenate([x[:1], x, x[-1:]]) for x in (side, up))
    angle = np.arange(segments) * (2.0 * np.pi / segments)
    across = np.cos(angle)[:, None] * side[:, None] + np.sin(angle)[:, None] * up[:, None]
    vertices = (path[:, None] + radii[:, None, None] * across).reshape(-1, 3)
    along = np.repeat(np.linspace(0.0, 1.0, len(path)), segments)
    faces = _grid(len(path), segments, closed)
    return Surface(vertices, faces, along, np.tile(angle, len(path)))


def hoop(
    radius: float, height: float, thickness: float, *, points: int = 160, segments: int = 16
) -> Surface:
    """A round ring about the z axis; a closed tube of constant thickness (its radius)."""
    angle = np.arange(points) * (2.0 * np.pi / points)
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(points, height)], -1)
    return tube(circle, thickness, closed=True, segments=segments)


def rotation(axis: Array, angle: float) -> Array:
    """Rotation matrix [3, 3] about an axis (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def spline(points: Array, count: int) -> Array:
    """Points [count, k] evenly spaced by length on a Catmull-Rom curve through [n, k]."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0.0, len(points) - 1 - 1e-9, 20 * count)
    i = t.astype(np.int64)
    f = (t - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    dense = 0.5 * (
        2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * (b - c) + d - a) * f**3
    )
    steps = np.linalg.norm(np.diff(dense, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(at, length, dense[:, k]) for k in range(points.shape[1])], -1)
