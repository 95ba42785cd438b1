"""The saliency grid: one trainable number per voxel, how much of space is worth features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.hash_grid import Levels, encode


class SaliencyGrid(nn.Module):
    """p(x) = sigmoid(trilinear(G, x)), G of R^3 vertices on the faces of the box (HollowNeRF 3.2).

    Interpolated first, squashed after. G starts at one, so p starts at 0.731.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self._levels = Levels.single(resolution)
        self.logits = nn.Parameter(torch.ones(resolution**3, 1))

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """p of points in the unit cube."""
        return encode(self.logits, x, self._levels, accumulate=True).squeeze(-1).sigmoid()

    def volume(self) -> Float[Tensor, "z y x"]:
        """p at the vertices."""
        r = self.resolution
        return self.logits.detach().sigmoid().view(r, r, r)
