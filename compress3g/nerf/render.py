"""From rays to colours: march, density, weights, colour where it counts, composite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.composite import composite, weights
from ..kernels.ray_march import Samples
from .field import HollowField
from .harmonics import harmonics

_VISIBLE = 1e-4  # samples with less weight get no colour: three quarters of the network's work


@dataclass(frozen=True, slots=True)
class Rendered:
    """Colours of rays, and the weight of every sample."""

    colour: Float[Tensor, "r 3"]
    weight: Float[Tensor, "n"]
    left: Float[Tensor, "r"]


def shade(
    field: HollowField,
    samples: Samples,
    direction: Float[Tensor, "r 3"],
    background: Float[Tensor, "r 3"],
    step: float,
) -> Rendered:
    """Colours of rays over their backgrounds, differentiable in the field.

    direction: unit vectors; step: distance between samples in units of the cube.
    """
    length = torch.full_like(direction[:, 0], step)
    sigma, h = field.density(samples.x)
    weight, left = weights(sigma, length, samples.offset)
    visible: Int[Tensor, "m"] = (weight > _VISIBLE).nonzero()[:, 0]
    seen = field.colour(h, harmonics(direction), visible, samples.ray[visible])
    colour = seen.new_zeros(len(samples), 3).index_copy(0, visible, seen)
    return Rendered(composite(sigma, colour, background, length, samples.offset), weight, left)
