"""The convolution in Triton: one program per token and block of channels.

What each tap reads is one table of numbers made before, and the backward pass goes along the same
table the other way, so that every sum has one owner and one order. CPU tensors are accepted only
under Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._triton import check, jit, tl, triton, usable
from ._opaque import Inputs, run
from ._taps import sources

__all__ = ["backward", "convolve", "forward", "usable"]

_CHANNELS = 128  # per program
_TOKENS = 64  # per program that sums the gradients of the weights


@jit
def _total(  # type: ignore[no-untyped-def]
    x, weight, bias, table, token, first, channels, channel, here, TAPS: tl.constexpr
):  # fmt: skip
    """Before the activation; `token` and `first` count rows from the front of the batch."""
    total = tl.load(bias + channel, mask=here, other=0.0)
    for d in range(TAPS):
        source = tl.load(table + token * TAPS + d)
        there = here & (channel * 0 + source >= 0)
        value = tl.load(x + (first + source) * channels + channel, mask=there, other=0.0)
        total += value * tl.load(weight + (TAPS - 1 - d) * channels + channel, mask=here, other=0.0)
    return total


@jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, bias, table, upstream, out, steps, channels,
    TAPS: tl.constexpr, SILU: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel < channels
    first = token // steps * steps
    y = _total(x, weight, bias, table, token, first, channels, channel, here, TAPS)
    if SILU:
        opened = 1.0 / (1.0 + tl.exp(-y))
        if BACK:
            up = tl.load(upstream + token * channels + channel, mask=here, other=0.0)
            y = up * opened * (1.0 + y * (1.0 - opened))
        else:
            y = y * opened
    tl.store(out + token * channels + channel, y, mask=here)


@jit
def _input_grad(  # type: ignore[no-untyped-def]
    weight, table, upstream, out, steps, channels, direction,
    TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel < channels
    first = token // steps * steps
    own = token - first
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in range(TAPS):
        reader = own + j * direction
        inside = (channel * 0 + reader >= 0) & (channel * 0 + reader < steps) & here
        row = (first + reader) * channels + channel
        up = tl.load(upstream + row, mask=inside, other=0.0)
        for d in range(TAPS):
            # The table of a token outside is never used: its place is taken by the token's own.
            place = tl.where((reader >= 0) & (reader < steps), first + reader, token)
            source = tl.load(table + place * TAPS + d)
            tap = tl.load(weight + (TAPS - 1 - d) * channels + channel, mask=here, other=0.0)
            total += tl.where(channel * 0 + source == own, up * tap, 0.0)
    tl.store(out + token * channels + channel, total, mask=here)


@jit
def _weight_grad(  # type: ignore[no-untyped-def]
    x, table, upstream, out, tokens, steps, channels,
    TAPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d = tl.program_id(2)  # TAPS: the gradient of the bias
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(TOKENS):
        token = tl.program_id(0).to(tl.int64) * TOKENS + i
        now = (channel < channels) & (channel * 0 + token < tokens)
        up = tl.load(upstream + token * channels + channel, mask=now, other=0.0)
        last = tl.where(token < tokens, token, tokens - 1)
        source = tl.load(table + last * TAPS + tl.where(d < TAPS, d, 0))
        there = now & (channel * 0 + source >= 0)
        row = (last // steps * steps + source) * channels + channel
        value = tl.load(x + row, mask=there, other=0.0)
        total += up * tl.where(channel * 0 + d < TAPS, value, 1.0)
    place = (tl.program_id(0) * (TAPS + 1) + d) * channels + channel
    tl.store(out + place, total, mask=channel < channels)


def _table(x: Inputs) -> Int[Tensor, "b l taps"]:
    b, length = x.x.shape[:2]
    places, mode = x.positions, x.mode
    if places is None:
        places, mode = torch.arange(length, device=x.x.device).expand(b, length), "zero"
    return sources(places, x.weight.shape[1], mode=mode, reverse=x.reverse).contiguous()


def _ready(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, taps-first weight, bias and table, in float32 without gaps."""
    rows = x.x.detach().float().contiguous()
    weight = x.weight.detach().float().t().contiguous()
    bias = weight.new_zeros(rows.shape[2]) if x.bias is None else x.bias.detach().float()
    bias = bias.contiguous()
    check(rows, weight, bias)
    return rows, weight, bias, _table(x)


def _launch(
    kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **constants: Any
) -> None:
    if x.numel() == 0:
        return
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](*arguments, BLOCK=_CHANNELS, **constants)


def _over_tokens(
    x: Inputs, ready: tuple[Tensor, Tensor, Tensor, Tensor], upstream: Tensor | None
) -> Float[Tensor, "b l e"]:
    rows, weight, bias, table = ready
    b, length, e = rows.shape
    out = torch.empty_like(rows)
    _launch(
        _forward,
        (b * length, triton.cdiv(e, _CHANNELS)),
        rows,
        *(rows, weight, bias, table, rows if upstream is None else upstream, out, length, e),
        TAPS=weight.shape[0],
        SILU=x.silu,
        BACK=upstream is not None,
    )
    return out


def forward(x: Inputs) -> Float[Tensor, "b l e"]:
    """The result in float32."""
    return _over_tokens(x, _ready(x), None)


def backward(x: Inputs, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in float32."""
    ready = rows, weight, _, table = _ready(x)
    (b, length, e), taps = rows.shape, weight.shape[0]
    upstream = upstream.float().contiguous()
    if x.silu:
        upstream = _over_tokens(x, ready, upstream)
    blocks, direction = triton.cdiv(e, _CHANNELS), -1 if x.reverse else 1
    x_grad = torch.empty_like(rows)
    _launch(
        _input_grad,
        (b * length, blocks),
        rows,
        *(weight, table, upstream, x_grad, length, e, direction),
        TAPS=taps,
    )
    parts = rows.new_zeros(triton.cdiv(b * length, _TOKENS), taps + 1, e)
    _launch(
        _weight_grad,
        (len(parts), blocks, taps + 1),
        rows,
        *(rows, table, upstream, parts, b * length, length, e),
        TAPS=taps,
        TOKENS=_TOKENS,
    )
    total = parts.sum(0)
    # Tap d is the weight's column taps-1-d.
    return x_grad, total[:taps].flip(0).t().contiguous(), total[taps].clone()


def convolve(x: Inputs) -> Tensor:
    """The result, in the type of x."""
    return run(x, "triton")
