"""The scan in Triton, all of it: softplus, decay over holes, both orders, skip and gate.

One program runs one sequence for a block of channels of one group, its states in registers. A
program has one warp, so that no sum over states or channels crosses warps. The backward pass
keeps the states every KEEP steps; from the last block on, it goes forward once more to fill a
scratch with the states inside, then back. Sums over channels and sequences are made outside, in one
fixed order.
"""

from __future__ import annotations

from .._triton import jit, tl

# What decays over a hole beside Delta itself: nothing, gap * Delta, gap * base, a given G.
NO_HOLE, CURRENT, BASE, GIVEN = 0, 1, 2, 3


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
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), precise where it is tiny (the correction is W. Kahan's log1p)."""
    small = tl.exp(tl.minimum(x, 20.0))
    one = 1.0 + small
    exact = tl.where(one == 1.0, small, tl.log(one) * (small / tl.where(one == 1.0, 1.0, one - 1)))
    return tl.where(x > 20.0, x, exact)


@jit
def _sizes(  # type: ignore[no-untyped-def]
    raw, gap, hole, batch, k, steps, channel, now, shift, base,
    raw_batch, raw_step, hole_batch, hole_step, SOFTPLUS: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Before the softplus, Delta, the whole decay, and the gap; all 0 where `now` is False."""
    before = tl.load(raw + batch * raw_batch + k * raw_step + channel, mask=now, other=0.0) + shift
    delta = before
    if SOFTPLUS:
        delta = _softplus(before)
    delta = tl.where(now, delta, 0.0)
    count = 0.0
    decay = delta
    if MODE == 1 or MODE == 2:
        # A comparison of plain numbers would not be a mask in the interpreter.
        place = channel * 0 + k
        count = tl.load(gap + batch * steps + place, mask=now, other=0).to(tl.float32)
        decay = delta + count * (delta if MODE == 1 else base)
    if MODE == 3:
        extra = hole + batch * hole_batch + k * hole_step + channel
        decay = delta + tl.load(extra, mask=now, other=0.0)
    return before, delta, decay, count


@jit
def forward(  # type: ignore[no-untyped-def]
    u, raw, z, B, C, A, D, bias, base, gap, hole, start, out, ungated, last,
    u_batch, u_step, raw_batch, raw_step, z_batch, z_step, hole_batch, hole_step,
    B_batch, B_group, B_step, C_batch, C_group, C_step, steps, groups,
    SHARE: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, MODE: tl.constexpr, REVERSE: tl.constexpr, GATED: tl.constexpr,
    START: tl.constexpr, UNGATED: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    group, channel, here, state, real = _places(groups, SHARE, STATES, WIDE, BLOCK)
    channels = groups * SHARE
    both = here[:, None] & real[None, :]
    cell = channel[:, None] * STATES + state[None, :]
    # exp(x) is made of 2^x.
    rate = tl.load(A + cell, mask=both, other=0.0) * 1.4426950408889634
    shift = tl.load(bias + channel, mask=here, other=0.0)
    skip = tl.load(D + channel, mask=here, other=0.0)
    ground = tl.load(base + channel, mask=here, other=0.0)
    h = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    if START:
        h += tl.load(start + batch * channels * STATES + cell, mask=both, other=0.0)
    step = 0
    while step < steps:
        k = step
        if REVERSE:
            k = steps - 1 - step
        _before, delta, decay, _count = _sizes(
            raw, gap, hole, batch, k, steps, channel, here, shift, ground,
            raw_batch, raw_step, hole_batch, hole_step, SOFTPLUS, MODE,
        )  # fmt: skip
        value = tl.load(u + batch * u_batch + k * u_step + channel, mask=here, other=0.0)
        b = tl.load(
            B + batch * B_batch + group * B_group + k * B_step + state, mask=real, other=0.0
        )
        c = tl.load(
            C + batch * C_batch + group * C_group + k * C_step + state, mask=real, other=0.0
        )
        h = tl.exp2(decay[:, None] * rate) * h + (delta * value)[:, None] * b[None, :]
        y = tl.sum(h * c[None, :], 1) + skip * value
        row = (batch * steps + k) * channels + channel
        if UNGATED:
            tl.store(ungated + row, y, mask=here)
        if GATED:
            gate = tl.load(z + batch * z_batch + k * z_step + channel, mask=here, other=0.0)
            y = y * gate / (1.0 + tl.exp(-gate))
        tl.store(out + row, y, mask=here)
        step += 1
    if LAST:
        tl.store(last + batch * channels * STATES + cell, h, mask=both)


@jit
def backward(  # type: ignore[no-untyped-def]
    u, raw, z, B, C, A, D, bias, base, gap, hole, start, up, up_ungated, up_last, kept, scratch,
    u_grad, raw_grad, z_grad, hole_grad, B_grad, C_grad, A_grad, D_grad, bias_grad, base_grad,
    start_grad, u_batch, u_step, raw_batch, raw_step, z_batch, z_step, hole_batch, hole_step,
    B_batch, B_group, B_step, C_batch, C_group, C_step, up_batch, up_step, plain_batch, plain_step,
    steps, groups,
    SHARE: tl.constexpr, STATES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    KEEP: tl.constexpr, SOFTPLUS: tl.constexpr, MODE: tl.constexpr, REVERSE: tl.constexpr,
    GATED: tl.constexpr, START: tl.constexpr, UP: tl.constexpr, UNGATED: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    group, channel, here, state, real = _places(groups, SHARE, STATES, WIDE, BLOCK)
    channels = groups * SHARE
    both = here[:, None] & real[None, :]
    cell = channel[:, None] * STATES + state[None, :]
    own = (batch * groups + group) * tl.num_programs(2) + tl.program_id(2)
    inside = tl.arange(0, BLOCK)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    blocks = (steps + KEEP - 1) // KEEP
    scratch += own * KEEP * BLOCK * WIDE
    kept += own * blocks * BLOCK * WIDE
    plain_rate = tl.load(A + cell, mask=both, other=0.0)
    rate = plain_rate * 1.4426950408889634
    shift = tl.load(bias + channel, mask=here, other=0.0)
    skip = tl.load(D + channel, mask=here, other=0.0)
    ground = tl.load(base + channel, mask=here, other=0.0)
    h = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    grad = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    if START:
        h += tl.load(start + batch * channels * STATES + cell, mask=both, other=0.0)
    if LAST:
        grad += tl.load(up_last + batch * channels * STATES + cell, mask=both, other=0.0)
    step = 0
    while step < (blocks - 1) * KEEP:
        if step % KEEP == 0:
            tl.store(kept + step // KEEP * BLOCK * WIDE + inside, h)
        k = step
        if REVERSE:
            k = steps - 1 - step
        before, delta, decay, count = _sizes(
            raw, gap, hole, batch, k, steps, channel, here, shift, ground,
            raw_batch, raw_step, hole_batch, hole_step, SOFTPLUS, MODE,
        )  # fmt: skip
        value = tl.load(u + batch * u_batch + k * u_step + channel, mask=here, other=0.0)
        b = tl.load(
            B + batch * B_batch + group * B_group + k * B_step + state, mask=real, other=0.0
        )
        h = tl.exp2(decay[:, None] * rate) * h + (delta * value)[:, None] * b[None, :]
        step += 1
    tl.store(kept + (blocks - 1) * BLOCK * WIDE + inside, h)
    tl.debug_barrier()
    rate_sum = tl.zeros((BLOCK, WIDE), dtype=tl.float32)
    skip_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    shift_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    ground_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    later = blocks - 1
    while later >= 0:
        h = tl.load(kept + later * BLOCK * WIDE + inside)
        for i in range(KEEP):
            step = later * KEEP + i
            k = step
            if REVERSE:
                k = steps - 1 - step
            # A comparison of plain numbers would not be a mask in the interpreter.
            now, shown = here & (channel * 0 + step < steps), real & (state * 0 + step < steps)
            before, delta, decay, count = _sizes(
                raw, gap, hole, batch, k, steps, channel, now, shift, ground,
                raw_batch, raw_step, hole_batch, hole_step, SOFTPLUS, MODE,
            )  # fmt: skip
            value = tl.load(u + batch * u_batch + k * u_step + channel, mask=now, other=0.0)
            few = B + batch * B_batch + group * B_group + k * B_step + state
            b = tl.load(few, mask=shown, other=0.0)
            tl.store(scratch + i * BLOCK * WIDE + inside, h)
            h = tl.exp2(decay[:, None] * rate) * h + (delta * value)[:, None] * b[None, :]
        tl.debug_barrier()
        for back in range(KEEP):
            i = KEEP - 1 - back
            step = later * KEEP + i
            k = step
            if REVERSE:
                k = steps - 1 - step
            now, shown = here & (channel * 0 + step < steps), real & (state * 0 + step < steps)
            before, delta, decay, count = _sizes(
                raw, gap, hole, batch, k, steps, channel, now, shift, ground,
                raw_batch, raw_step, hole_batch, hole_step, SOFTPLUS, MODE,
            )  # fmt: skip
            value = tl.load(u + batch * u_batch + k * u_step + channel, mask=now, other=0.0)
            few = B + batch * B_batch + group * B_group + k * B_step + state
            b = tl.load(few, mask=shown, other=0.0)
            few = C + batch * C_batch + group * C_group + k * C_step + state
            c = tl.load(few, mask=shown, other=0.0)
            previous = tl.load(scratch + i * BLOCK * WIDE + inside)
            factor = tl.exp2(decay[:, None] * rate)
            push = delta * value
            h = factor * previous + push[:, None] * b[None, :]
            row = (batch * steps + k) * channels + channel
            y_grad = tl.zeros((BLOCK,), dtype=tl.float32)
            if UP:
                y_grad += tl.load(
                    up + batch * up_batch + k * up_step + channel, mask=now, other=0.0
                )
            if GATED:
                gate = tl.load(z + batch * z_batch + k * z_step + channel, mask=now, other=0.0)
                opened = 1.0 / (1.0 + tl.exp(-gate))
                y = tl.sum(h * c[None, :], 1) + skip * value
                slope = opened * (1.0 + gate * (1.0 - opened))
                tl.store(z_grad + row, y_grad * y * slope, mask=now)
                y_grad = y_grad * gate * opened
            if UNGATED:
                y_grad += tl.load(
                    up_ungated + batch * plain_batch + k * plain_step + channel, mask=now, other=0.0
                )
            whole = grad + y_grad[:, None] * c[None, :]
            part = (own * steps + k) * STATES + state
            tl.store(C_grad + part, tl.sum(y_grad[:, None] * h, 0), mask=shown)
            tl.store(B_grad + part, tl.sum(push[:, None] * whole, 0), mask=shown)
            push_grad = tl.sum(whole * b[None, :], 1)
            grad = whole * factor
            exponent = grad * previous
            decay_grad = tl.sum(exponent * plain_rate, 1)
            rate_sum += exponent * decay[:, None]
            skip_sum += y_grad * value
            tl.store(u_grad + row, y_grad * skip + push_grad * delta, mask=now)
            delta_grad = push_grad * value + decay_grad
            if MODE == 1:
                delta_grad += count * decay_grad
            if MODE == 2:
                ground_sum += count * decay_grad
            if MODE == 3:
                tl.store(hole_grad + row, decay_grad, mask=now)
            if SOFTPLUS:
                delta_grad = delta_grad / (1.0 + tl.exp(-before))
            delta_grad = tl.where(now, delta_grad, 0.0)
            shift_sum += delta_grad
            tl.store(raw_grad + row, delta_grad, mask=now)
        tl.debug_barrier()
        later -= 1
    tl.store(A_grad + batch * channels * STATES + cell, rate_sum, mask=both)
    tl.store(D_grad + batch * channels + channel, skip_sum, mask=here)
    tl.store(bias_grad + batch * channels + channel, shift_sum, mask=here)
    if MODE == 2:
        tl.store(base_grad + batch * channels + channel, ground_sum, mask=here)
    if START:
        tl.store(start_grad + batch * channels * STATES + cell, grad, mask=both)
