"""The convolution in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._opaque import Inputs
from ._taps import sources


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


def convolve(x: Inputs) -> Tensor:
    """The result, differentiable by autograd."""
    work = torch.promote_types(x.x.dtype, torch.float32)
    rows, weight = x.x.to(work), x.weight.to(work)
    bias = None if x.bias is None else x.bias.to(work)
    if rows.numel() == 0:
        out = rows * 1
    elif x.positions is None:
        out = _dense(rows, weight, bias, reverse=x.reverse)
    else:
        source = sources(x.positions.long(), weight.shape[1], mode=x.mode, reverse=x.reverse)
        out = _with_holes(rows, weight, bias, source)
    return (F.silu(out) if x.silu else out).to(x.x.dtype)
