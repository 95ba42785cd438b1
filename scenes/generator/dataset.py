"""Writes one scene's folder: pictures, depth maps, cameras and the note of origin."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mitsuba as mi
import numpy as np
from PIL import Image

from . import lantern, orchard, spire
from .cameras import HORIZONTAL_FIELD, directions, framing_distance, pose, splits
from .meshes import Mesh
from .patterns import Array
from .tracing import DEPTH_SCALE, Bulb, assemble, depth_map, depth_picture, photograph

BOX_MARGIN = 1.07


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a scene is built, what lights it beside the studio, and what it is for."""

    build: Callable[[], list[Mesh]]
    bulbs: tuple[Bulb, ...]
    note: str


SCENES = {
    "lantern": Recipe(
        lantern.build,
        (Bulb((0.0, 0.0, -0.05), (1.5, 0.95, 0.5)),),
        "A carved and glazed lantern: a thin textured wall with windows onto an empty, lit inside. "
        "It shows whether empty space inside and outside an object is pruned.",
    ),
    "spire": Recipe(
        spire.build,
        (),
        "A spire of metal wire with lacquered balls: thin structures and highlights that move with "
        "the viewer.",
    ),
    "orchard": Recipe(
        orchard.build,
        (),
        "Forty-four small fruits that float apart: many disconnected parts, each with its own "
        "pattern, for occupancy and pruning.",
    ),
}


def _centred(meshes: list[Mesh]) -> list[Mesh]:
    """The meshes moved and scaled so that their bounding box is centred and reaches +-1."""
    everything = np.concatenate([mesh.vertices for mesh in meshes])
    low, high = everything.min(0), everything.max(0)
    scale = 2.0 / float((high - low).max())
    return [mesh.placed(np.eye(3), scale, -0.5 * scale * (low + high)) for mesh in meshes]


def _silhouette_agreement(alpha: Array, distances: Array) -> float:
    """Intersection over union of the covered pixels of a picture and of its depth map."""
    covered, hit = alpha > 0.5, distances > 0.0
    return float((covered & hit).sum() / max((covered | hit).sum(), 1))


def _write_cameras(folder: Path, split: str, matrices: list[Array]) -> None:
    """One transforms file."""
    frames: list[dict[str, Any]] = []
    for number, matrix in enumerate(matrices):
        frame: dict[str, Any] = {"file_path": f"./{split}/r_{number:03d}"}
        if split == "test":
            frame["depth_file_path"] = f"./{split}/r_{number:03d}_depth.png"
        frame["transform_matrix"] = [[round(float(x), 9) for x in row] for row in matrix]
        frames.append(frame)
    description: dict[str, Any] = {
        "camera_angle_x": HORIZONTAL_FIELD,
        "aabb": [[-BOX_MARGIN] * 3, [BOX_MARGIN] * 3],
    }
    if split == "test":
        description |= {"depth_scale": DEPTH_SCALE, "depth_kind": "ray_distance"}
    text = json.dumps(description | {"frames": frames}, indent=1)
    (folder / f"transforms_{split}.json").write_text(text + "\n", encoding="utf-8")


def _write_origin(folder: Path, name: str, size: int, spp: int, seed: int) -> None:
    """What the folder holds and how it was made."""
    text = f"""# {name}

{SCENES[name].note}

- Made by `python scenes/make_scenes.py {name} --size {size} --spp {spp} --seed {seed}`.
- Mitsuba {mi.__version__} (`scalar_rgb`, path integrator of depth 8, box filter),
  numpy {np.__version__}.
- All geometry, colours and lights are procedural and belong to this project (`scenes/generator/`);
  nothing was taken from anybody else.
- Pictures: {size} x {size} RGBA, straight alpha, sRGB after a soft shoulder above 0.55 (linear).
- Cameras: `transform_matrix` is camera-to-world, OpenGL axes; the centre of pixel (i, j) is at
  (i + 0.5, j + 0.5); focal length in pixels = 0.5 W / tan(0.5 camera_angle_x).
- Depth (`test/*_depth.png`, 16 bit): distance from the camera centre along the ray through the
  pixel centre, in units of `depth_scale`; 0 where the ray meets nothing.
- `aabb`: a cube around the object with a margin of {100 * (BOX_MARGIN - 1):.0f} %.
- Licence: Apache-2.0, like the project.
"""
    (folder / "ORIGIN.md").write_text(text, encoding="utf-8")


def write_scene(
    name: str, folder: Path, *, size: int, spp: int, seed: int, only: list[int] | None = None
) -> str:
    """Renders one scene into `folder`; returns a line of figures.

    With `only`, renders these view numbers alone, into `folder`/preview_NNN.png.
    """
    recipe = SCENES[name]
    meshes = _centred(recipe.build())
    distance = framing_distance(np.concatenate([mesh.vertices for mesh in meshes]))
    matrices = [pose(direction, distance) for direction in directions()]
    scene = assemble(meshes, recipe.bulbs)
    folder.mkdir(parents=True, exist_ok=True)
    if only is not None:
        for view in only:
            picture = photograph(scene, matrices[view], size, spp, seed + view)
            picture.save(folder / f"preview_{view:03d}.png")
        return f"{name}: {len(only)} previews"
    coverage, agreement, written = [], [], 0
    for split, views in splits().items():
        (folder / split).mkdir(exist_ok=True)
        for number, view in enumerate(views):
            file = folder / split / f"r_{number:03d}.png"
            picture = photograph(scene, matrices[view], size, spp, seed + view)
            picture.save(file, optimize=True)
            alpha = np.asarray(picture)[..., 3] / 255.0
            coverage.append(alpha.mean())
            written += file.stat().st_size
            if split == "test":
                distances = depth_map(scene, matrices[view], size)
                agreement.append(_silhouette_agreement(alpha, distances))
                _save_depth(file.with_name(f"r_{number:03d}_depth.png"), distances)
        _write_cameras(folder, split, [matrices[view] for view in views])
    _write_origin(folder, name, size, spp, seed)
    return (
        f"{name}: {len(coverage)} views, {written / 1e6:.2f} MB, alpha {np.mean(coverage):.3f}, "
        f"silhouette against depth {min(agreement):.3f}, cameras at {distance:.3f}"
    )


def _save_depth(file: Path, distances: Array) -> None:
    """Writes a depth map and reads it back."""
    depth_picture(distances).save(file, optimize=True)
    with Image.open(file) as stored:
        stored.verify()
