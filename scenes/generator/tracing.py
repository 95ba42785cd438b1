"""Mitsuba: lights, materials, path-traced images and depth maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import drjit
import mitsuba as mi
import numpy as np
from PIL import Image

from .cameras import HORIZONTAL_FIELD, pixel_rays
from .meshes import Material, Mesh, merge, vertex_normals
from .patterns import Array

DEPTH_SCALE = 1e-4  # world units per step of a 16-bit depth image


@dataclass(frozen=True, slots=True)
class Panel:
    """A soft box at infinity: towards (azimuth, elevation), half extents, radiance [3].

    Angles are in degrees.
    """

    azimuth: float
    elevation: float
    half_width: float
    half_height: float
    radiance: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Bulb:
    """A point light without a body: position [3], intensity [3]."""

    position: tuple[float, float, float]
    intensity: tuple[float, float, float]


STUDIO = (
    Panel(40.0, 48.0, 24.0, 18.0, (15.0, 13.2, 10.8)),
    Panel(175.0, 25.0, 22.0, 26.0, (2.6, 3.4, 4.6)),
    Panel(-75.0, 35.0, 12.0, 24.0, (6.5, 6.3, 6.2)),
    Panel(-140.0, -30.0, 35.0, 12.0, (1.6, 1.2, 1.0)),
)


def initialise(threads: int) -> None:
    """Chooses the scalar Mitsuba variant and the number of threads."""
    mi.set_variant("scalar_rgb")
    drjit.set_thread_count(threads)


def _sky(panels: tuple[Panel, ...]) -> dict[str, Any]:
    """A studio at infinity: a cool-to-warm vertical gradient and soft boxes."""
    rows, columns = 256, 512
    polar = (np.arange(rows)[:, None] + 0.5) * (math.pi / rows)
    turn = (np.arange(columns)[None] + 0.5) * (2.0 * math.pi / columns)
    elevation = 90.0 - np.degrees(polar)
    azimuth = np.degrees(np.arctan2(np.cos(turn), np.sin(turn)))
    height = 0.5 + 0.5 * np.sin(np.radians(elevation))[..., None]
    low, high = np.array([0.40, 0.36, 0.33]), np.array([0.62, 0.70, 0.82])
    image = np.broadcast_to(low + (high - low) * height, (rows, columns, 3)).copy()
    for panel in panels:
        away = (azimuth - panel.azimuth + 180.0) % 360.0 - 180.0
        x = np.abs(away) * np.cos(np.radians(elevation)) / panel.half_width
        y = np.abs(elevation - panel.elevation) / panel.half_height
        inside = 1.0 - np.clip(((x**8 + y**8) ** 0.125 - 0.9) / 0.2, 0.0, 1.0)
        image += inside[..., None] * np.array(panel.radiance)
    return {
        "type": "envmap",
        "bitmap": mi.Bitmap(image.astype(np.float32)),
        "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90),
    }


_ROUGHNESS = {
    Material.MATTE: 0.9,
    Material.GLAZE: 0.4,
    Material.LACQUER: 0.22,
    Material.METAL: 0.32,
}


def _reflection(material: Material) -> Any:
    """The Mitsuba material that takes its colour from the mesh."""
    return mi.load_dict(
        {
            "type": "principled",
            "base_color": {"type": "mesh_attribute", "name": "vertex_color"},
            "roughness": _ROUGHNESS[material],
            "metallic": 1.0 if material is Material.METAL else 0.0,
            "specular": 0.5,
        }
    )


def _shape(mesh: Mesh) -> Any:
    """A Mitsuba mesh with smooth normals and a colour per vertex."""
    properties = mi.Properties()
    properties["mesh_bsdf"] = _reflection(mesh.material)
    shape = mi.Mesh(
        mesh.material.value,
        len(mesh.vertices),
        len(mesh.faces),
        has_vertex_normals=True,
        props=properties,
    )
    shape.add_attribute("vertex_color", 3, mesh.colours.astype(np.float32).reshape(-1))
    normals = vertex_normals(mesh.vertices, mesh.faces)
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.astype(np.float32).reshape(-1)
    parameters["vertex_normals"] = normals.astype(np.float32).reshape(-1)
    parameters["faces"] = mesh.faces.astype(np.uint32).reshape(-1)
    parameters.update()
    return shape


def assemble(meshes: list[Mesh], bulbs: tuple[Bulb, ...] = ()) -> Any:
    """The Mitsuba scene of all meshes under the studio light."""
    parts: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 8, "hide_emitters": True},
        "sky": _sky(STUDIO),
    }
    for material in Material:
        same = [mesh for mesh in meshes if mesh.material is material]
        if same:
            parts[f"shape_{material.value}"] = _shape(merge(same))
    for number, bulb in enumerate(bulbs):
        parts[f"bulb_{number}"] = {
            "type": "point",
            "position": list(bulb.position),
            "intensity": {"type": "rgb", "value": list(bulb.intensity)},
        }
    return mi.load_dict(parts)


def _sensor(matrix: Array, size: int, spp: int, seed: int) -> Any:
    """Mitsuba's camera looks along +z with x to the left: the OpenGL one turned about y."""
    return mi.load_dict(
        {
            "type": "perspective",
            "fov": math.degrees(HORIZONTAL_FIELD),
            "fov_axis": "x",
            "to_world": mi.ScalarTransform4f(matrix @ np.diag([-1.0, 1.0, -1.0, 1.0])),
            "sampler": {"type": "multijitter", "sample_count": spp, "seed": seed},
            "film": {
                "type": "hdrfilm",
                "width": size,
                "height": size,
                "pixel_format": "rgba",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
        }
    )


def _tone(linear: Array) -> Array:
    """Linear up to 0.55, then a smooth shoulder towards 1, so that highlights keep their hue."""
    knee = 0.55
    shoulder = knee + (1.0 - knee) * np.tanh((linear - knee) / (1.0 - knee))
    return np.where(linear <= knee, linear, shoulder)


def photograph(scene: Any, matrix: Array, size: int, spp: int, seed: int) -> Image.Image:
    """A straight-alpha sRGB picture from a camera-to-world matrix (OpenGL axes)."""
    rendered = mi.render(scene, sensor=_sensor(matrix, size, spp, seed), spp=spp, seed=seed)
    rgba = np.array(rendered, dtype=np.float64)
    alpha = np.clip(rgba[..., 3:], 0.0, 1.0)
    linear = _tone(np.maximum(rgba[..., :3], 0.0) / np.maximum(alpha, 1e-6))
    srgb = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )
    # Colours of fully transparent pixels carry nothing: black compresses best.
    straight = np.concatenate([np.where(alpha > 0.5 / 255.0, srgb, 0.0), alpha], -1)
    return Image.fromarray((straight * 255.0 + 0.5).astype(np.uint8), "RGBA")


def depth_map(scene: Any, matrix: Array, size: int) -> Array:
    """Distance [size, size] from the camera centre along each pixel-centre ray, 0 for a miss."""
    origin, rays = pixel_rays(matrix, size)
    start = mi.Point3f(*origin.tolist())
    distances = np.zeros((size, size))
    for row, column in np.ndindex(size, size):
        ray = mi.Ray3f(start, mi.Vector3f(*rays[row, column].tolist()))
        hit = scene.ray_intersect_preliminary(ray)
        if hit.is_valid():
            distances[row, column] = hit.t
    return distances


def depth_picture(distances: Array) -> Image.Image:
    """A 16-bit picture of distances in steps of DEPTH_SCALE."""
    steps = np.clip(np.rint(distances / DEPTH_SCALE), 0, 65535)
    return Image.fromarray(steps.astype(np.uint16))
