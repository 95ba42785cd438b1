"""How visible each cell of space is from the training views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.composite import weights

if TYPE_CHECKING:
    from .trainer import Trainer

_RAYS = 40_000
_BUNDLE = 2_000


@torch.no_grad()
def visibility(trainer: Trainer, rays: int = _RAYS) -> Float[Tensor, "z y x"]:
    """Largest rendering weight of any sample in each cell, over random training rays, in [0, 1].

    w_k = T_k (1 - exp(-sigma_k d)): zero in empty space and behind opaque surfaces.
    """
    side = trainer.occupancy.side
    largest = torch.zeros(side**3, device=trainer.device)
    for _ in range(-(-rays // _BUNDLE)):
        samples, _ = trainer.march_random_rays(_BUNDLE)
        sigma, _ = trainer.field.density(samples.x)
        length = sigma.new_full((_BUNDLE,), trainer.phase.march_step)
        weight, _ = weights(sigma, length, samples.offset)
        largest.scatter_reduce_(0, cell_of(samples.x, side), weight, "amax")
    return largest.view(side, side, side)


def cell_of(x: Float[Tensor, "n 3"], side: int) -> Int[Tensor, "n"]:
    """Index of the cell, x fastest, that holds each point of the unit cube.

    >>> cell_of(torch.tensor([[0.0, 0.5, 1.0]]), 2)
    tensor([6])
    """
    cell = (x * side).long().clamp_(0, side - 1)
    return cell[:, 0] + side * (cell[:, 1] + side * cell[:, 2])
