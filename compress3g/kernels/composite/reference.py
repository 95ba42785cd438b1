"""The volume-rendering integral in plain torch: the truth for tests, and the fallback."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _rays(offset: Int[Tensor, "bounds"]) -> Int[Tensor, "n"]:
    return torch.repeat_interleave(
        torch.arange(len(offset) - 1, device=offset.device), offset.diff()
    )


def _before(values: Float[Tensor, "n"], offset: Int[Tensor, "bounds"]) -> Float[Tensor, "n"]:
    """Sum over the samples of the same ray that come earlier."""
    total = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    ray = _rays(offset)
    return (total[:-1] - total[offset[ray]]).to(values.dtype)


def weights(
    sigma: Float[Tensor, "n"], length: Float[Tensor, "r"], offset: Int[Tensor, "r+1"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "r"]]:
    """Rendering weights of samples and transmittance behind each ray's last sample."""
    ray = _rays(offset)
    depth = sigma * length[ray]
    weight = torch.exp(-_before(depth, offset)) * -torch.expm1(-depth)
    total = torch.zeros_like(length).index_add_(0, ray, depth)
    return weight, torch.exp(-total)


def forward(
    weight: Float[Tensor, "n"],
    left: Float[Tensor, "r"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    offset: Int[Tensor, "r+1"],
) -> Float[Tensor, "r 3"]:
    """sum_k w_k c_k + T_end b."""
    return (left[:, None] * background).index_add_(0, _rays(offset), weight[:, None] * colour)


def backward(
    upstream: Float[Tensor, "r 3"],
    weight: Float[Tensor, "n"],
    left: Float[Tensor, "r"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    length: Float[Tensor, "r"],
    offset: Int[Tensor, "r+1"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Gradients of density and colour.

    With g = dL/dC and S_k = sum_{j>=k} w_j <g, c_j> + T_end <g, b>:
    dL/dsigma_k = d (T_{k+1} <g, c_k> - S_{k+1}),  dL/dc_k = w_k g.
    """
    ray = _rays(offset)
    along = (upstream[ray] * colour).sum(-1)
    share = weight * along
    behind = left * (upstream * background).sum(-1)
    ray_sum = torch.zeros_like(left).index_add_(0, ray, share)
    suffix = (ray_sum + behind)[ray] - _before(share, offset) - share
    # T_k - w_k = T_{k+1}, and T_k = 1 - (weights before k).
    after = 1 - _before(weight, offset) - weight
    return length[ray] * (after * along - suffix), weight[:, None] * upstream[ray]
