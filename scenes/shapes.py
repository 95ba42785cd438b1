"""Procedural solids for the shipped scenes, as Mitsuba shapes or (vertices, faces, uv) meshes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mitsuba as mi
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = tuple[float, ...]
Solid = tuple[Array, NDArray[np.int64], Array]


def ball(centre: Point, radius: float) -> dict[str, Any]:
    """An exact sphere."""
    return {"type": "sphere", "center": list(map(float, centre)), "radius": float(radius)}


def _placed(centre: Point, size: float, turn: Array) -> Any:
    angle = float(np.degrees(np.linalg.norm(turn)))
    axis = (turn / np.linalg.norm(turn)).tolist()
    move = mi.ScalarTransform4f().translate(list(map(float, centre)))
    return move @ mi.ScalarTransform4f().rotate(axis, angle) @ mi.ScalarTransform4f().scale(size)


def box(centre: Point, half: float, turn: Array) -> dict[str, Any]:
    """A cube of half side `half`, turned by a rotation vector."""
    return {"type": "cube", "to_world": _placed(centre, float(half), turn)}


def _grid_faces(rows: int, columns: int) -> NDArray[np.int64]:
    """Two triangles per cell of a (rows x columns) vertex grid."""
    i, j = np.mgrid[0 : rows - 1, 0 : columns - 1]
    a = (i * columns + j).reshape(-1)
    b, c, d = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)])


def _rotation(turn: Array) -> Array:
    angle = np.linalg.norm(turn)
    x, y, z = turn / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def cone(centre: Point, size: float, turn: Array, segments: int = 48) -> Solid:
    """A cone with its base, height 2 x size, turned by a rotation vector."""
    u = np.linspace(0, 2 * np.pi, segments + 1)
    rows = [(0.0, 1.0), (1.0, -1.0), (0.0, -1.0)]
    vertices = np.concatenate(
        [np.stack([r * np.cos(u), r * np.sin(u), np.full_like(u, z)], -1) for r, z in rows]
    )
    uv = np.concatenate([np.stack([u / np.pi, np.full_like(u, v)], -1) for v in (0, 0.7, 1)])
    placed = size * vertices @ _rotation(turn).T + np.asarray(centre)
    return placed, _grid_faces(3, segments + 1), uv


def tube(path: Array, radius: float, segments: int = 12) -> Solid:
    """A round tube along a polyline."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    helper = np.where(np.abs(along[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    side = np.cross(along, helper)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    up = np.cross(side, along)
    a = np.linspace(0, 2 * np.pi, segments + 1)
    offset = np.cos(a)[None, :, None] * side[:, None] + np.sin(a)[None, :, None] * up[:, None]
    vertices = (path[:, None] + radius * offset).reshape(-1, 3)
    v, u = np.mgrid[0 : len(path), 0 : segments + 1]
    uv = np.stack([u / segments, v / len(path)], -1).reshape(-1, 2)
    return vertices, _grid_faces(len(path), segments + 1)[:, ::-1], uv


def ring(
    centre: Point, radius: float, thickness: float, turn: Array | None = None, segments: int = 96
) -> Solid:
    """A torus around z, turned by a rotation vector."""
    a = np.linspace(0, 2 * np.pi, segments + 1)
    b = np.linspace(0, 2 * np.pi, 25)
    out = radius + thickness * np.cos(b)[None]
    vertices = np.stack(
        [
            *(np.cos(a)[:, None] * out, np.sin(a)[:, None] * out),
            np.broadcast_to(thickness * np.sin(b)[None], (segments + 1, 25)),
        ],
        -1,
    ).reshape(-1, 3)
    if turn is not None:
        vertices = vertices @ _rotation(turn).T
    u, v = np.mgrid[0 : segments + 1, 0:25]
    uv = np.stack([2 * u / segments, v / 24], -1).reshape(-1, 2)
    return vertices + np.asarray(centre), _grid_faces(segments + 1, 25)[:, ::-1], uv


def lathe(
    radius: Array,
    z: Array,
    thickness: float,
    cut: Callable[[Array, Array], Array] | None = None,
    segments: int = 128,
) -> Iterator[Solid]:
    """A wall of revolution: outer skin, inner skin, and the edges of what `cut(u, v)` removes."""
    u = np.arange(segments + 1) / segments
    v = np.linspace(0, 1, len(z))
    a = 2 * np.pi * u
    skins = []
    for r in (radius, np.maximum(radius - thickness, 1e-3)):
        x, y = r[:, None] * np.cos(a), r[:, None] * np.sin(a)
        skins.append(np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], -1).reshape(-1, 3))
    uv = np.stack(np.broadcast_arrays(u[None], v[:, None]), -1).reshape(-1, 2)
    middle = np.stack(np.meshgrid((v[:-1] + v[1:]) / 2, (u[:-1] + u[1:]) / 2, indexing="ij"))
    solid = np.ones(middle.shape[1:], bool) if cut is None else ~cut(middle[1], middle[0])
    faces = _grid_faces(len(z), segments + 1)[np.tile(solid.reshape(-1), 2)]
    yield skins[0], faces, uv
    yield skins[1], faces[:, ::-1], uv
    yield np.concatenate(skins), _rim(solid, len(z), segments + 1), np.concatenate([uv, uv])


def _rim(solid: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.int64]:
    """Quads that join the two skins along every border between wall and window."""
    inner = rows * columns
    quads = []
    padded = np.pad(solid, ((1, 1), (0, 0)))
    for i, j in np.argwhere(padded[1:] != padded[:-1]):
        quads.append((i * columns + j, i * columns + j + 1))
    around = np.roll(solid, 1, axis=1)
    for i, j in np.argwhere(solid != around):
        quads.append((i * columns + j, (i + 1) * columns + j))
    a, b = np.array(quads).T
    return np.concatenate(
        [np.stack([a, b, b + inner], -1), np.stack([a, b + inner, a + inner], -1)]
    )


def mesh(vertices: Array, faces: NDArray[np.int64], uv: Array, material: dict[str, Any]) -> Any:
    """A Mitsuba mesh."""
    properties = mi.Properties()
    properties["mesh_bsdf"] = mi.load_dict(material)
    shape = mi.Mesh("mesh", len(vertices), len(faces), has_vertex_texcoords=True, props=properties)
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = vertices.astype(np.float32).reshape(-1)
    parameters["faces"] = faces.astype(np.uint32).reshape(-1)
    parameters["vertex_texcoords"] = uv.astype(np.float32).reshape(-1)
    parameters.update()
    return shape
