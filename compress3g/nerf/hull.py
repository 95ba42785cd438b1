"""The visual hull: space that every view with alpha allows, found before training starts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from .scene import Scene

_MARGIN = 9  # pixels by which silhouettes are widened: cells are coarser than pixels


def visual_hull(scene: Scene, side: int) -> Bool[Tensor, "z y x"]:
    """Cells of the unit cube whose centres no training view sees against full transparency.

    A cell goes when any view shows its centre inside the picture, in front of the camera, and more
    than 9 pixels away from anything opaque. Cells outside every picture stay.
    """
    cameras = scene.unit(scene.train)
    centres = (torch.arange(side) + 0.5) / side
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    left = torch.arange(len(points))  # carved cells need not be projected again
    for view in range(len(scene.train)):
        opaque = scene.train.images[view, :, :, 3] > 0
        wide = F.max_pool2d(opaque[None].float(), 2 * _MARGIN + 1, 1, _MARGIN)[0] > 0
        pixel, depth = cameras.project(view, points[left])
        column, row = pixel.floor().long().unbind(-1)
        shown = (depth > 0) & (column >= 0) & (row >= 0)
        shown &= (column < cameras.width) & (row < cameras.height)
        seen = torch.ones_like(shown)
        seen[shown] = wide[row[shown], column[shown]]
        left = left[seen]
    hull = torch.zeros(len(points), dtype=torch.bool)
    hull[left] = True
    return hull.view(side, side, side)
