"""Small fruits that float apart: many disconnected parts, each with a coarse pattern of its own."""

from __future__ import annotations

import math

import numpy as np

from .meshes import Material, Mesh, Surface, hoop, revolve, rotation, sphere
from .patterns import Array, linear, mix, smoothstep

COUNT = 44
SEED = 5
GAP = 0.05  # between the bounding spheres of neighbours
PAIRS = (
    ("d7342b", "f7e3b0"), ("f0a91f", "8c3b1a"), ("2f8f4e", "e9f0c2"), ("2a66b0", "f4d35e"),
    ("8a4a9e", "f3c4d8"), ("e86a33", "3b2a55"), ("159a9c", "f9f3e3"), ("c2185b", "ffd9a0"),
)  # fmt: skip


def _places(generator: np.random.Generator) -> tuple[Array, Array]:
    """Centres [n, 3] and radii [n] of spheres that do not touch, inside the unit ball."""
    centres, radii = np.zeros((0, 3)), np.zeros(0)
    while len(radii) < COUNT:
        radius = generator.uniform(0.10, 0.155)
        centre = generator.uniform(-1.0, 1.0, 3)
        apart = np.linalg.norm(centres - centre, axis=1) - radii - radius
        if np.linalg.norm(centre) < 1.0 - radius and (apart > GAP).all():
            centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
    return centres, radii


def _pear() -> Surface:
    """A pear that fits the unit sphere."""
    t = np.linspace(0.0, math.pi, 40)
    radius = np.sin(t) * (0.72 - 0.25 * np.cos(t + math.pi))
    return revolve(radius, -np.cos(t) * 0.95, 48)


def _solid(kind: int) -> Surface:
    """One of four outlines that fit the unit sphere."""
    if kind == 0:
        return sphere(48)
    if kind == 1:
        return _pear()
    if kind == 2:
        return hoop(0.68, 0.0, 0.30, points=64, segments=24)
    squashed = sphere(48)
    return Surface(
        squashed.vertices * np.array([1.0, 1.0, 0.62]),
        squashed.faces,
        squashed.along,
        squashed.angle,
    )


def _pattern(surface: Surface, kind: int, pair: tuple[str, str]) -> Array:
    """Plain with a blush, halves, or three broad wedges, in two colours."""
    first, second = linear(pair[0]), linear(pair[1])
    if kind == 0:
        weight = smoothstep(0.2, 1.0, surface.along) * 0.45
    elif kind == 1:
        weight = smoothstep(0.46, 0.54, surface.along)
    else:
        weight = smoothstep(-0.15, 0.15, np.cos(3.0 * surface.angle))
    return mix(np.broadcast_to(first, surface.vertices.shape), second, weight)


def build() -> list[Mesh]:
    """All fruits, turned at random."""
    generator = np.random.default_rng(SEED)
    meshes = []
    for i, (centre, radius) in enumerate(zip(*_places(generator), strict=True)):
        surface = _solid(i % 4)
        colours = _pattern(surface, (i // 4) % 3, PAIRS[i % len(PAIRS)])
        material = (Material.GLAZE, Material.LACQUER, Material.MATTE)[i % 3]
        turn = rotation(generator.normal(size=3), generator.uniform(0.0, 2.0 * math.pi))
        meshes.append(surface.painted(colours, material).placed(turn, float(radius), centre))
    return meshes
