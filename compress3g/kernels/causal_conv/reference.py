"""The convolution in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ._taps import Mode, sources


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, *, reverse: bool) -> Tensor:
    taps = weight.shape[1]
    padding = (0, taps - 1) if reverse else (taps - 1, 0)
    weight = weight.flip(1) if reverse else weight
    rows = F.pad(x.transpose(1, 2), padding)
    return F.conv1d(rows, weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)


def _with_holes(x: Tensor, weight: Tensor, bias: Tensor | None, source: Tensor) -> Tensor:
    rows = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], 1)  # the last one is "none"
    index = source % rows.shape[1]
    out = x.new_zeros(x.shape) if bias is None else bias.expand(x.shape)
    for back in range(weight.shape[1]):
        read = rows.gather(1, index[:, :, back, None].expand(x.shape))
        out = out + weight[:, weight.shape[1] - 1 - back] * read
    return out


def convolve(
    x: Float[Tensor, "b l e"],
    weight: Float[Tensor, "e taps"],
    bias: Float[Tensor, "e"] | None,
    positions: Int[Tensor, "b l"] | None,
    *,
    mode: Mode,
    reverse: bool,
    silu: bool,
) -> Float[Tensor, "b l e"]:
    """The result, differentiable by autograd."""
    work = torch.promote_types(x.dtype, torch.float32)
    rows, weight = x.to(work), weight.to(work)
    bias = None if bias is None else bias.to(work)
    if positions is None or x.numel() == 0:
        out = _dense(rows, weight, bias, reverse=reverse) if x.numel() else rows * 1
    else:
        source = sources(positions, weight.shape[1], mode=mode, reverse=reverse)
        out = _with_holes(rows, weight, bias, source)
    return (F.silu(out) if silu else out).to(x.dtype)
