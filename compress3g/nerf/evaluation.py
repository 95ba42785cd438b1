"""Scores of a model on the views of a scene."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from .metrics import ViewScore, composite_over, psnr, ssim
from .model import NerfModel
from .scene import Views


def evaluate(
    model: NerfModel, views: Views
) -> Iterator[tuple[ViewScore, Float[Tensor, "h w 3"], Float[Tensor, "h w 3"]]]:
    """Score, true picture and rendered picture of each view, one after the other.

    Over white, clipped to [0, 1], at the size of the images: how NeRF-synthetic is scored.
    """
    cameras = model.to_unit(views.cameras)
    for i, name in enumerate(views.names):
        truth, rendered = composite_over(views.images[i]), model.render(cameras, i)
        yield ViewScore(name, psnr(truth, rendered), ssim(truth, rendered)), truth, rendered
