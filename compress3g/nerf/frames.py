"""Rendered views as 8-bit pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..engine.checkpoint import atomic_write
from .cameras import Cameras
from .model import NerfModel


def frames_of(
    model: NerfModel, cameras: Cameras, background: float = 1.0
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every view of the cameras, which are in units of the cube, rendered when it is asked for."""
    for view in range(len(cameras)):
        yield to_bytes(model.render(cameras, view, background))


def to_bytes(picture: Float[Tensor, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours in [0, 1] as 0 .. 255, rounded."""
    return (picture.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def save_picture(picture: Float[Tensor, "h w 3"], path: Path) -> None:
    """Writes colours in [0, 1] as a PNG, atomically."""
    image = Image.fromarray(to_bytes(picture))
    atomic_write(path, lambda file: image.save(file, "PNG"))
