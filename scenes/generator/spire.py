"""A spire of glossy wire with lacquered balls: thin structures and highlights that move."""

from __future__ import annotations

import math

import numpy as np

from .meshes import Material, Mesh, ball, hoop, tube
from .patterns import Array

WIRE = 0.032
STRUTS = 5
# (radius, height) of the hoops, from the foot upwards.
HOOPS = ((0.92, -0.95), (0.66, -0.38), (0.42, 0.12), (0.22, 0.58))
COLOURS = ("c8322b", "e8a020", "1f7a4d", "1d5fa8", "7b3f98")


def _outline(height: Array) -> Array:
    """Radius of the tower at each height."""
    radii, heights = zip(*((*HOOPS, (0.05, 0.98))), strict=True)
    return np.interp(height, heights, radii)


def _wire(turns: float, start: float) -> Array:
    """A path [n, 3] up the outline that winds `turns` times around the axis."""
    height = np.linspace(-0.95, 0.98, 260)
    angle = start + turns * 2.0 * math.pi * (height + 0.95) / 1.93
    radius = _outline(height)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1)


def build() -> list[Mesh]:
    """Straight and winding wires, hoops, and a ball wherever a strut meets a hoop."""
    starts = [2.0 * math.pi * i / STRUTS for i in range(STRUTS)]
    meshes = [tube(_wire(0.0, a), WIRE).painted("c9ccd2", Material.METAL) for a in starts]
    meshes += [tube(_wire(1.0, a), WIRE).painted("e2b25a", Material.METAL) for a in starts[:2]]
    for row, (radius, height) in enumerate(HOOPS):
        meshes.append(hoop(radius, height, WIRE).painted("e2b25a", Material.METAL))
        for i, angle in enumerate(starts):
            at = np.array([radius * math.cos(angle), radius * math.sin(angle), height])
            size = 0.105 - 0.012 * row
            colour = COLOURS[(i + 2 * row) % len(COLOURS)]
            meshes.append(ball(at, size, colour, Material.LACQUER))
    meshes.append(ball(np.array([0.0, 0.0, 1.02]), 0.11, "c8322b", Material.LACQUER))
    meshes.append(ball(np.array([0.0, 0.0, -0.38]), 0.24, "1d5fa8", Material.LACQUER, 96))
    return meshes
