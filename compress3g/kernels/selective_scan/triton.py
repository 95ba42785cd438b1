"""The recurrence in Triton: one program per sequence and block of channels, states in registers.

Every 32 steps the states are kept; the backward pass goes through the blocks from the last, forward
once more to fill a scratch with the states inside, then back. Sums over channels are made in one
fixed order. The elementwise rest, with the decay of the holes, is torch's. CPU tensors are accepted
only under Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._triton import check, jit, tl, triton, usable
from ._around import run
from ._inputs import Inputs, Outputs

__all__ = ["scan", "usable"]

_CHANNELS = 32  # per program
_KEEP = 32  # steps between two kept states


@jit
def _places(  # type: ignore[no-untyped-def]
    groups, SHARE: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Group of this program, its channels and states, and which of them exist."""
    group = tl.program_id(1) % groups
    within = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, WIDE)
    return group, group * SHARE + within, within < SHARE, state, state < STATES


@jit
def _forward(  # type: ignore[no-untyped-def]
    decay, drive, A, B, C, start, y, last, kept, groups,
    STEPS: tl.constexpr, SHARE: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    group, channel, here, state, real = _places(groups, SHARE, STATES, WIDE, BLOCK)
    channels = groups * SHARE
    both = here[:, None] & real[None, :]
    cell = channel[:, None] * STATES + state[None, :]
    rate = tl.load(A + cell, mask=both, other=0.0)
    h = tl.load(start + batch * channels * STATES + cell, mask=both, other=0.0)
    blocks = (STEPS + KEEP - 1) // KEEP
    for k in range(STEPS):
        if k % KEEP == 0:
            place = kept + (batch * blocks + k // KEEP) * channels * STATES + cell
            tl.store(place, h, mask=both)
        row = (batch * STEPS + k) * channels + channel
        few = ((batch * groups + group) * STEPS + k) * STATES + state
        size = tl.load(decay + row, mask=here, other=0.0)
        push = tl.load(drive + row, mask=here, other=0.0)
        b = tl.load(B + few, mask=real, other=0.0)
        c = tl.load(C + few, mask=real, other=0.0)
        h = tl.exp(size[:, None] * rate) * h + push[:, None] * b[None, :]
        tl.store(y + row, tl.sum(h * c[None, :], 1), mask=here)
    tl.store(last + batch * channels * STATES + cell, h, mask=both)


@jit
def _backward(  # type: ignore[no-untyped-def]
    decay, drive, A, B, C, kept, upstream, last, scratch,
    decay_grad, drive_grad, A_grad, B_grad, C_grad, start_grad, groups,
    STEPS: tl.constexpr, SHARE: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    group, channel, here, state, real = _places(groups, SHARE, STATES, WIDE, BLOCK)
    channels = groups * SHARE
    both = here[:, None] & real[None, :]
    cell = channel[:, None] * STATES + state[None, :]
    own = (batch * groups + group) * tl.num_programs(2) + tl.program_id(2)
    inside = tl.arange(0, BLOCK)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    scratch += own * KEEP * BLOCK * WIDE
    rate = tl.load(A + cell, mask=both, other=0.0)
    grad = tl.load(last + batch * channels * STATES + cell, mask=both, other=0.0)
    rate_grad = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    blocks = (STEPS + KEEP - 1) // KEEP
    for later in range(blocks):
        first = (blocks - 1 - later) * KEEP
        place = kept + (batch * blocks + blocks - 1 - later) * channels * STATES + cell
        h = tl.load(place, mask=both, other=0.0)
        for i in range(KEEP):
            k = first + i
            row = (batch * STEPS + k) * channels + channel
            few = ((batch * groups + group) * STEPS + k) * STATES + state
            # A comparison of plain numbers would not be a mask in the interpreter.
            now, shown = here & (channel * 0 + k < STEPS), real & (state * 0 + k < STEPS)
            size = tl.load(decay + row, mask=now, other=0.0)
            push = tl.load(drive + row, mask=now, other=0.0)
            b = tl.load(B + few, mask=shown, other=0.0)
            tl.store(scratch + i * BLOCK * WIDE + inside, h)
            h = tl.exp(size[:, None] * rate) * h + push[:, None] * b[None, :]
        tl.debug_barrier()
        for back in range(KEEP):
            i = KEEP - 1 - back
            k = first + i
            row = (batch * STEPS + k) * channels + channel
            few = ((batch * groups + group) * STEPS + k) * STATES + state
            part = (own * STEPS + k) * STATES + state
            now, shown = here & (channel * 0 + k < STEPS), real & (state * 0 + k < STEPS)
            size = tl.load(decay + row, mask=now, other=0.0)
            push = tl.load(drive + row, mask=now, other=0.0)
            up = tl.load(upstream + row, mask=now, other=0.0)
            b = tl.load(B + few, mask=shown, other=0.0)
            c = tl.load(C + few, mask=shown, other=0.0)
            before = tl.load(scratch + i * BLOCK * WIDE + inside)
            factor = tl.exp(size[:, None] * rate)
            after = factor * before + push[:, None] * b[None, :]
            whole = grad + up[:, None] * c[None, :]
            tl.store(C_grad + part, tl.sum(up[:, None] * after, 0), mask=shown)
            tl.store(B_grad + part, tl.sum(push[:, None] * whole, 0), mask=shown)
            tl.store(drive_grad + row, tl.sum(whole * b[None, :], 1), mask=now)
            grad = whole * factor
            exponent = grad * before
            tl.store(decay_grad + row, tl.sum(exponent * rate, 1), mask=now)
            rate_grad += exponent * size[:, None]
        tl.debug_barrier()
    tl.store(A_grad + batch * channels * STATES + cell, rate_grad, mask=both)
    tl.store(start_grad + batch * channels * STATES + cell, grad, mask=both)


def _launch(kernel: Any, tensors: list[Tensor], A: Tensor, B: Tensor) -> None:
    (b, groups, length, n), share = B.shape, A.shape[0] // B.shape[1]
    if b == 0:
        return
    with torch.cuda.device(A.device) if A.is_cuda else contextlib.nullcontext():
        kernel[(b, groups, triton.cdiv(share, _CHANNELS))](
            *tensors,
            groups,
            STEPS=length,
            SHARE=share,
            STATES=n,
            WIDE=triton.next_power_of_2(n),
            BLOCK=_CHANNELS,
            KEEP=_KEEP,
        )


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        decay, drive, A, B, C, state = (t.contiguous() for t in given)
        check(decay, drive, A, B, C, state)
        y, last = torch.empty_like(decay), torch.empty_like(state)
        kept = state.new_empty(len(state), -(-decay.shape[1] // _KEEP), *state.shape[1:])
        _launch(_forward, [decay, drive, A, B, C, state, y, last, kept], A, B)
        ctx.save_for_backward(decay, drive, A, B, C, kept)
        return y, last

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        decay, drive, A, B, C, kept = ctx.saved_tensors
        y_grad, last_grad = (t.contiguous() for t in upstream)
        b, groups, length, n = B.shape
        blocks = -(-(A.shape[0] // groups) // _CHANNELS)
        wide = triton.next_power_of_2(n)
        scratch = A.new_empty(b, groups, blocks, _KEEP, _CHANNELS, wide)
        parts = A.new_empty(2, b, groups, blocks, length, n)
        states = A.new_empty(2, b, *A.shape)
        rows = [torch.empty_like(decay), torch.empty_like(drive)]
        grads = [*rows, states[0], parts[0], parts[1], states[1]]
        _launch(
            _backward,
            [decay, drive, A, B, C, kept, y_grad, last_grad, scratch, *grads],
            A,
            B,
        )
        over_blocks = parts.sum(3)
        return (*rows, states[0].sum(0), over_blocks[0], over_blocks[1], states[1])


def _recurrence(
    decay: Float[Tensor, "b l e"],
    drive: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b g l n"],
    C: Float[Tensor, "b g l n"],
    state: Float[Tensor, "b e n"],
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b e n"]]:
    y, last = _Recurrence.apply(decay, drive, A, B, C, state)  # type: ignore[no-untyped-call]
    return y, last


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """Outputs, differentiable by autograd."""
    return run(x, _recurrence)
