"""Random training rays: pixels of all views, their rays in the unit cube, their colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .scene import Scene


@dataclass(frozen=True, slots=True)
class Rays:
    """Rays in units of the cube, and the straight-alpha colour seen along each, in [0, 1]."""

    origin: Float[Tensor, "r 3"]
    direction: Float[Tensor, "r 3"]
    rgba: Float[Tensor, "r 4"]

    def over(self, background: Float[Tensor, "r 3"]) -> Float[Tensor, "r 3"]:
        """Colours composited on a background, one colour per ray."""
        rgb, alpha = self.rgba[:, :3], self.rgba[:, 3:]
        return rgb * alpha + background * (1 - alpha)


class Pixels:
    """Draws random pixels of a scene's training views."""

    def __init__(self, scene: Scene, device: torch.device) -> None:
        self._cameras = scene.unit(scene.train).to(device)
        self._images = scene.train.images.to(device)

    def draw(self, count: int, generator: torch.Generator) -> Rays:
        """`count` rays, uniform over all pixels of all training views, with replacement."""
        n, height, width = self._images.shape[:3]
        # One draw on the CPU generator for any device: the same seed gives the same rays.
        pick = torch.randint(n * height * width, (count,), generator=generator)
        pick = pick.to(self._images.device)
        view, x, y = pick // (height * width), pick % width, pick // width % height
        origin, direction = self._cameras.rays(view, x, y)
        rgba = self._images[view, y, x].float() / 255
        if rgba.shape[1] == 3:
            rgba = torch.nn.functional.pad(rgba, (0, 1), value=1.0)
        return Rays(origin, direction, rgba)
