"""The volume-rendering integral in C, rays split between threads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._library import POINTER, address, function, status
from .._parallel import parallel_for

_GRAIN = 128


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def weights(
    sigma: Float[Tensor, "n"], length: Float[Tensor, "r"], offset: Int[Tensor, "r+1"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "r"]]:
    """Rendering weights of samples and transmittance behind each ray's last sample."""
    sigma, length, offset = sigma.contiguous(), length.contiguous(), offset.contiguous()
    weight, left = torch.empty_like(sigma), torch.empty_like(length)
    tensors = (sigma, length, offset, weight, left)
    parallel_for(
        function("composite_weights", [POINTER] * 5),
        len(length),
        *map(address, tensors),
        grain=_GRAIN,
    )
    return weight, left


def forward(
    weight: Float[Tensor, "n"],
    left: Float[Tensor, "r"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    offset: Int[Tensor, "r+1"],
) -> Float[Tensor, "r 3"]:
    """sum_k w_k c_k + T_end b."""
    colour, background, offset = colour.contiguous(), background.contiguous(), offset.contiguous()
    out = torch.empty_like(background)
    tensors = (weight, left, colour, background, offset, out)
    parallel_for(
        function("composite_forward", [POINTER] * 6),
        len(left),
        *map(address, tensors),
        grain=_GRAIN,
    )
    return out


def backward(
    upstream: Float[Tensor, "r 3"],
    weight: Float[Tensor, "n"],
    left: Float[Tensor, "r"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    length: Float[Tensor, "r"],
    offset: Int[Tensor, "r+1"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Gradients of density and colour; the equation stands in body.h."""
    colour, background = colour.contiguous(), background.contiguous()
    length, offset = length.contiguous(), offset.contiguous()
    sigma_grad, colour_grad = torch.empty_like(weight), torch.empty_like(colour)
    tensors = (
        *(upstream, weight, left, colour, background, length, offset),
        *(sigma_grad, colour_grad),
    )
    parallel_for(
        function("composite_backward", [POINTER] * 9),
        len(left),
        *map(address, tensors),
        grain=_GRAIN,
    )
    return sigma_grad, colour_grad
