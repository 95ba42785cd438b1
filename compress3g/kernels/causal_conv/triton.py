"""The convolution in Triton: one program per tile of tokens and channels.

Tap d reads the token d positions back in the order of the scan, which is at most d tokens back, and
is found from the positions of those. The backward pass looks the other way by the same rule, so
that every sum has one owner and one order. CPU tensors are accepted only under Triton's interpreter
(TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._triton import check, jit, on, tl, triton, usable
from ._opaque import Inputs, run

__all__ = ["backward", "convolve", "forward", "usable"]

_CHANNELS = 64  # per program
_ROWS = 32  # tokens per tile
_TILES = 8  # per program that sums the gradients of the weights

_HOLES = {"none": 0, "zero": 1, "hold": 2}


@jit
def _distance(  # type: ignore[no-untyped-def]
    positions, token, own, far, steps, HOLES: tl.constexpr
):  # fmt: skip
    """Positions between each token and the one `far` tokens on; more than any tap without one."""
    other = own + far
    inside = (other >= 0) & (other < steps)
    apart = tl.where(own >= 0, far, far)
    if HOLES != 0:
        here = tl.load(positions + token)
        apart = tl.load(positions + token + far, mask=inside, other=0) - here
    return tl.where(inside, tl.abs(apart), 1 << 30)


@jit
def _source(  # type: ignore[no-untyped-def]
    positions, token, own, d, back, steps, HOLES: tl.constexpr
):  # fmt: skip
    """How many tokens on tap d reads, and whether there is one."""
    found = tl.where(own >= 0, 1 << 30, 0)
    for j in range(d + 1):
        i = d - j
        distance = _distance(positions, token, own, i * back, steps, HOLES)
        hit = distance == d
        if HOLES == 2:
            hit = (distance >= d) & (distance < 1 << 30)
        found = tl.where(hit, i * back, found)
    return tl.where(found < 1 << 30, found, 0), found < 1 << 30


@jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, bias, positions, upstream, out, x_batch, x_step, tokens, steps, channels, back,
    TAPS: tl.constexpr, HOLES: tl.constexpr, SILU: tl.constexpr, BACK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wanted = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.where(wanted < tokens, wanted, tokens - 1)
    here = channel < channels
    both = (wanted < tokens)[:, None] & here[None, :]
    own = token % steps
    start = x + token // steps * x_batch
    y = tl.load(bias + channel, mask=here, other=0.0)[None, :] + tl.zeros((ROWS, BLOCK), tl.float32)
    for d in tl.static_range(TAPS):
        on, there = _source(positions, token, own, d, back, steps, HOLES)
        row = start + (own + on) * x_step
        value = tl.load(row[:, None] + channel[None, :], mask=both & there[:, None], other=0.0)
        tap = tl.load(weight + (TAPS - 1 - d) * channels + channel, mask=here, other=0.0)
        y += value * tap[None, :]
    place = token[:, None] * channels + channel[None, :]
    if SILU:
        opened = 1.0 / (1.0 + tl.exp(-y))
        if BACK:
            up = tl.load(upstream + place, mask=both, other=0.0)
            y = up * opened * (1.0 + y * (1.0 - opened))
        else:
            y = y * opened
    tl.store(out + place, y, mask=both)


@jit
def _input_grad(  # type: ignore[no-untyped-def]
    weight, positions, upstream, out, tokens, steps, channels, back,
    TAPS: tl.constexpr, HOLES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wanted = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.where(wanted < tokens, wanted, tokens - 1)
    here = channel < channels
    both = (wanted < tokens)[:, None] & here[None, :]
    own = token % steps
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for j in tl.static_range(TAPS):
        # The token j tokens on may read this one by the taps from j on.
        ahead = own - j * back
        inside = (ahead >= 0) & (ahead < steps)
        reader = tl.where(inside, token - j * back, token)
        distance = _distance(
            positions, reader, tl.where(inside, ahead, own), j * back, steps, HOLES
        )
        distance = tl.where(inside, distance, 1 << 30)
        row = upstream + reader * channels
        up = tl.load(row[:, None] + channel[None, :], mask=both & inside[:, None], other=0.0)
        nearer = tl.where(own >= 0, -1, -1)
        if HOLES == 2 and j > 0:
            nearer = _distance(
                positions, reader, tl.where(inside, ahead, own), (j - 1) * back, steps, HOLES
            )
        for i in tl.static_range(TAPS - j):
            d = j + i
            hit = distance == d
            if HOLES == 2:
                hit = (distance >= d) & (distance < 1 << 30) & (nearer < d)
            tap = tl.load(weight + (TAPS - 1 - d) * channels + channel, mask=here, other=0.0)
            total += tl.where(hit[:, None], up * tap[None, :], 0.0)
    tl.store(out + token[:, None] * channels + channel[None, :], total, mask=both)


@jit
def _weight_grad(  # type: ignore[no-untyped-def]
    x, positions, upstream, out, x_batch, x_step, tokens, steps, channels, back,
    TAPS: tl.constexpr, HOLES: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel < channels
    for d in tl.static_range(TAPS + 1):  # TAPS: the gradient of the bias
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in range(TILES):
            wanted = (tl.program_id(0).to(tl.int64) * TILES + i) * ROWS + tl.arange(0, ROWS)
            token = tl.where(wanted < tokens, wanted, tokens - 1)
            both = (wanted < tokens)[:, None] & here[None, :]
            place = token[:, None] * channels + channel[None, :]
            up = tl.load(upstream + place, mask=both, other=0.0)
            if d < TAPS:
                own = token % steps
                on, there = _source(positions, token, own, d, back, steps, HOLES)
                row = x + token // steps * x_batch + (own + on) * x_step
                up *= tl.load(
                    row[:, None] + channel[None, :], mask=both & there[:, None], other=0.0
                )
            total += tl.sum(up, 0)
        tl.store(out + (tl.program_id(0) * (TAPS + 1) + d) * channels + channel, total, mask=here)


class _Call:
    """Rows, taps-first weight, bias and positions, and what all kernels are told."""

    def __init__(self, x: Inputs) -> None:
        rows = x.x.detach().float()
        self.rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        self.weight = x.weight.detach().float().t().contiguous()
        bias = self.weight.new_zeros(rows.shape[2]) if x.bias is None else x.bias.detach().float()
        self.bias = bias.contiguous()
        check(self.weight, self.bias)
        holes = 0 if x.positions is None else _HOLES[x.mode]
        self.positions = self.rows if holes == 0 else x.positions.int().contiguous()  # type: ignore[union-attr]
        (b, self.steps, self.channels), self.taps = rows.shape, len(self.weight)
        self.tokens = b * self.steps
        self.back = 1 if x.reverse else -1
        self.constants = {"TAPS": self.taps, "HOLES": holes, "ROWS": _ROWS, "BLOCK": _CHANNELS}
        self.silu = x.silu

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Tokens of all sequences, of one, channels, and the way to the token before."""
        return self.tokens, self.steps, self.channels, self.back

    def launch(self, kernel: Any, tiles: int, *arguments: Any, **constants: Any) -> None:
        if self.rows.numel() == 0:
            return
        device = self.rows.device
        grid = tiles, triton.cdiv(self.channels, _CHANNELS)
        with on(device):
            kernel[grid](*arguments, **self.constants, **constants)

    def over_tokens(self, upstream: Tensor | None) -> Float[Tensor, "b l e"]:
        """The result, or given `upstream` its gradient before the activation."""
        out = torch.empty(self.rows.shape, device=self.rows.device)
        self.launch(
            _forward,
            triton.cdiv(self.tokens, _ROWS),
            *(self.rows, self.weight, self.bias, self.positions),
            *(out if upstream is None else upstream, out, *self.rows.stride()[:2], *self.sizes),
            SILU=self.silu,
            BACK=upstream is not None,
        )
        return out


def forward(x: Inputs) -> Float[Tensor, "b l e"]:
    """The result in float32."""
    return _Call(x).over_tokens(None)


def backward(x: Inputs, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in float32."""
    call = _Call(x)
    upstream = upstream.float().contiguous()
    if x.silu:
        upstream = call.over_tokens(upstream)
    x_grad = torch.empty(call.rows.shape, device=upstream.device)
    call.launch(
        _input_grad,
        triton.cdiv(call.tokens, _ROWS),
        *(call.weight, call.positions, upstream, x_grad, *call.sizes),
    )
    parts = upstream.new_zeros(
        triton.cdiv(call.tokens, _ROWS * _TILES), call.taps + 1, call.channels
    )
    call.launch(
        _weight_grad,
        len(parts),
        *(call.rows, call.positions, upstream, parts, *call.rows.stride()[:2], *call.sizes),
        TILES=_TILES,
    )
    total = parts.sum(0)
    # Tap d is the weight's column taps-1-d.
    return x_grad, total[: call.taps].flip(0).t().contiguous(), total[call.taps].clone()


def convolve(x: Inputs) -> Tensor:
    """The result, in the type of x."""
    return run(x, "triton")
