"""The differentiable volume-rendering integral, whichever backend runs it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..cost import spend
from ..registry import pick


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sigma: Tensor,
        colour: Tensor,
        background: Tensor,
        length: Tensor,
        offset: Tensor,
        backend: ModuleType,
    ) -> Tensor:
        with spend("composite", None):
            weight, left = backend.weights(sigma, length, offset)
            out: Tensor = backend.forward(weight, left, colour, background, offset)
        ctx.save_for_backward(weight, left, colour, background, length, offset)
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        with spend("composite.backward", None):
            sigma_grad, colour_grad = ctx.backend.backward(
                upstream[0].contiguous(), *ctx.saved_tensors
            )
        return sigma_grad, colour_grad, None, None, None, None


def weights(
    sigma: Float[Tensor, "n"], length: Float[Tensor, "r"], offset: Int[Tensor, "r+1"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "r"]]:
    """Rendering weights w_k = T_k (1 - exp(-sigma_k d)) and what is left of each ray, T_end.

    Samples of ray r are offset[r] .. offset[r+1]-1, front to back; d = length[r] is the distance
    between its samples. Not differentiable: for choosing samples and for masks.
    """
    with torch.no_grad(), spend("composite.weights", None):
        return pick("composite", sigma.device).weights(  # type: ignore[no-any-return]
            sigma.detach(), length, offset
        )


def composite(
    sigma: Float[Tensor, "n"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    length: Float[Tensor, "r"],
    offset: Int[Tensor, "r+1"],
) -> Float[Tensor, "r 3"]:
    """Colours C = sum_k w_k c_k + T_end b of rays over their backgrounds.

    Differentiable in sigma and colour (NeRF 2003.08934, equation 3).
    """
    backend = pick("composite", sigma.device)
    out: Tensor = _Composite.apply(  # type: ignore[no-untyped-call]
        sigma, colour, background, length, offset, backend
    )
    return out
