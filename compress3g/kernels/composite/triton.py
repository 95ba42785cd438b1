"""The volume-rendering integral in Triton: one program per ray.

CPU tensors are accepted only under Triton's interpreter (TRITON_INTERPRET=1 before the first
import).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._triton import check, jit, on, tl, usable

__all__ = ["backward", "forward", "usable", "weights"]

_BLOCK = 64  # samples at a time


@jit
def _weights(sigma, length, offset, weight, left, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offset + ray), tl.load(offset + ray + 1)
    d = tl.load(length + ray)
    before = d * 0.0
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        depth = tl.load(sigma + place, mask=place < end, other=0.0) * d
        passed = before + tl.cumsum(depth, 0) - depth
        # 1 - exp(-x) cancels where x is small.
        series = depth * (1.0 - depth * (0.5 - depth * (1.0 / 6 - depth / 24)))
        alpha = tl.where(depth < 0.03, series, 1.0 - tl.exp(-depth))
        tl.store(weight + place, tl.exp(-passed) * alpha, mask=place < end)
        before += tl.sum(depth, 0)
    tl.store(left + ray, tl.exp(-before))


@jit
def _along(colour, place, here, red, green, blue):  # type: ignore[no-untyped-def]
    """<g, c_k> of a block of samples."""
    total = red * tl.load(colour + 3 * place, mask=here, other=0.0)
    total += green * tl.load(colour + 3 * place + 1, mask=here, other=0.0)
    return total + blue * tl.load(colour + 3 * place + 2, mask=here, other=0.0)


@jit
def _forward(weight, left, colour, background, offset, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offset + ray), tl.load(offset + ray + 1)
    for channel in tl.static_range(3):
        total = tl.load(left + ray) * tl.load(background + 3 * ray + channel)
        for start in range(begin, end, BLOCK):
            place = start + tl.arange(0, BLOCK)
            here = place < end
            w = tl.load(weight + place, mask=here, other=0.0)
            total += tl.sum(w * tl.load(colour + 3 * place + channel, mask=here, other=0.0), 0)
        tl.store(out + 3 * ray + channel, total)


@jit
def _backward(  # type: ignore[no-untyped-def]
    upstream, weight, left, colour, background, length, offset, sigma_grad, colour_grad,
    BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offset + ray), tl.load(offset + ray + 1)
    d = tl.load(length + ray)
    red, green = tl.load(upstream + 3 * ray), tl.load(upstream + 3 * ray + 1)
    blue = tl.load(upstream + 3 * ray + 2)
    # S_{k+1} = sum over the ray and its background, less what has gone by.
    behind = red * tl.load(background + 3 * ray) + green * tl.load(background + 3 * ray + 1)
    rest = tl.load(left + ray) * (behind + blue * tl.load(background + 3 * ray + 2))
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        here = place < end
        w = tl.load(weight + place, mask=here, other=0.0)
        rest += tl.sum(w * _along(colour, place, here, red, green, blue), 0)
    opened = d * 0.0 + 1.0
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        here = place < end
        w = tl.load(weight + place, mask=here, other=0.0)
        along = _along(colour, place, here, red, green, blue)
        suffix = rest - tl.cumsum(w * along, 0)
        after = opened - tl.cumsum(w, 0)
        tl.store(sigma_grad + place, d * (after * along - suffix), mask=here)
        tl.store(colour_grad + 3 * place, w * red, mask=here)
        tl.store(colour_grad + 3 * place + 1, w * green, mask=here)
        tl.store(colour_grad + 3 * place + 2, w * blue, mask=here)
        rest -= tl.sum(w * along, 0)
        opened -= tl.sum(w, 0)


def _launch(kernel: Any, *tensors: Tensor, offset: Tensor, rest: tuple[Tensor, ...]) -> None:
    check(*tensors, *rest)
    if len(offset) < 2:
        return
    like = tensors[0]
    with on(like.device):
        kernel[(len(offset) - 1,)](*tensors, offset.contiguous(), *rest, BLOCK=_BLOCK, num_warps=2)


def weights(
    sigma: Float[Tensor, "n"], length: Float[Tensor, "r"], offset: Int[Tensor, "r+1"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "r"]]:
    """Rendering weights of samples and transmittance behind each ray's last sample."""
    sigma, length = sigma.contiguous(), length.contiguous()
    weight, left = torch.empty_like(sigma), torch.empty_like(length)
    _launch(_weights, sigma, length, offset=offset, rest=(weight, left))
    return weight, left


def forward(
    weight: Float[Tensor, "n"],
    left: Float[Tensor, "r"],
    colour: Float[Tensor, "n 3"],
    background: Float[Tensor, "r 3"],
    offset: Int[Tensor, "r+1"],
) -> Float[Tensor, "r 3"]:
    """sum_k w_k c_k + T_end b."""
    tensors = (weight, left, colour.contiguous(), background.contiguous())
    out = torch.empty_like(tensors[3])
    _launch(_forward, *tensors, offset=offset, rest=(out,))
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
    """Gradients of density and colour; the equation stands in reference.py."""
    colour, background = colour.contiguous(), background.contiguous()
    tensors = (upstream.contiguous(), weight, left, colour, background, length.contiguous())
    grads = torch.empty_like(weight), torch.empty_like(colour)
    _launch(_backward, *tensors, offset=offset, rest=grads)
    return grads
